//! What was taken down, where a daemon on another machine finds it: whoever leads next brings it back.

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterName;
use crate::consul::session::SessionId;
use crate::consul::{Consul, ConsulError};
use crate::control::{OperationError, failed};
use crate::state::State;
use crate::state::dependents::Taken;

/// The leader's way into Consul's KV, while its session lives.
#[derive(Debug)]
pub struct Shared<'a> {
    /// Consul.
    pub consul: &'a Consul,
    /// This daemon's name among others.
    pub instance: &'a str,
    /// The session that holds the leader's lock.
    pub session: &'a SessionId,
    /// It did not answer; nobody waits for it again until somebody looks anew.
    pub is_silent: AtomicBool,
}

/// What is in KV for a cluster.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    /// The daemon that wrote it.
    by: String,
    /// When.
    at: Timestamp,
    /// What it had taken down, in the order in which it did.
    taken: Vec<Taken>,
}

/// What a daemon that begins to lead learns.
#[derive(Debug, Default, PartialEq)]
struct Learned<'a> {
    /// Another one took these down.
    new: Vec<&'a Taken>,
    /// Another one has brought these back since.
    back: Vec<&'a Taken>,
}

/// What `own` memory lacks and has too much. What another daemon wrote counts, but for what was taken down here since then.
fn learned<'a>(own: &'a [Taken], told: &'a Document, instance: &str) -> Learned<'a> {
    if told.by == instance {
        return Learned::default();
    }
    let is_in = |list: &[Taken], one: &Taken| list.iter().any(|other| other.name == one.name);
    Learned {
        new: told.taken.iter().filter(|taken| !is_in(own, taken)).collect(),
        back: own.iter().filter(|taken| taken.at <= told.at && !is_in(&told.taken, taken)).collect(),
    }
}

impl Shared<'_> {
    fn key(&self, cluster: &ClusterName) -> String {
        self.consul.key(&format!("state/{cluster}/dependents"))
    }

    /// Brings this machine's memory and KV in line; before that a new leader neither takes down nor brings back.
    pub async fn take_over(&self, state: &State, cluster: &ClusterName) -> Result<(), OperationError> {
        let what = || format!("what another daemon took down for cluster \"{cluster}\" is not known");
        let pair = self.consul.get(&self.key(cluster)).await.map_err(failed(what()))?;
        let told = pair.and_then(|pair| {
            let unreadable = |error| tracing::warn!("{} cannot be read and counts as empty: {error}", pair.key);
            serde_json::from_str(&pair.text()).map_err(unreadable).ok()
        });
        let told = told.unwrap_or_else(|| Document { by: self.instance.to_owned(), ..Document::default() });
        let own = state.taken_down(cluster).map_err(failed(what()))?;
        let Learned { new, back } = learned(&own, &told, self.instance);
        for taken in new {
            state.take_down(cluster, taken).map_err(failed(what()))?;
        }
        for taken in back {
            state.brought_back(cluster, &taken.name).map_err(failed(what()))?;
        }
        let own = state.taken_down(cluster).map_err(failed(what()))?;
        if own == told.taken { Ok(()) } else { self.write(cluster, own).await.map(drop).map_err(failed(what())) }
    }

    /// Tells what is taken down now. That it fails keeps nobody from being taken down or brought back.
    pub async fn tell(&self, state: &State, cluster: &ClusterName) {
        if self.is_silent.load(Ordering::Relaxed) {
            return;
        }
        let taken = match state.taken_down(cluster) {
            Ok(taken) => taken,
            Err(error) => return tracing::warn!(%cluster, "what is taken down cannot be shared: {error}"),
        };
        match self.write(cluster, taken).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%cluster, "what is taken down is not shared: this daemon leads no more"),
            Err(error) => {
                self.is_silent.store(true, Ordering::Relaxed);
                tracing::warn!(%cluster, "what is taken down cannot be shared: {error}");
            }
        }
    }

    async fn write(&self, cluster: &ClusterName, taken: Vec<Taken>) -> Result<bool, ConsulError> {
        let document = Document { by: self.instance.to_owned(), at: Timestamp::now(), taken };
        let text = serde_json::to_string(&document).expect("texts and times");
        self.consul.put_as(self.session, &self.key(cluster), &text).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::dependents::TakenHow;

    #[test]
    fn a_new_leader_learns_what_the_one_before_did() {
        let taken = |name: &str, second| Taken {
            name: name.to_owned(),
            id: name.to_owned(),
            how: TakenHow::Stopped,
            at: Timestamp::from_second(second).expect("a time"),
            reason: String::new(),
        };
        let own = [taken("both", 1), taken("back-since", 2), taken("by-a-command-here", 9)];
        let list = vec![taken("both", 1), taken("new", 3)];
        let told = Document { by: "other".to_owned(), at: Timestamp::from_second(5).expect("a time"), taken: list };
        assert_eq!(learned(&own, &told, "me"), Learned { new: vec![&told.taken[1]], back: vec![&own[1]] });
        // Its own words of before a restart tell a daemon nothing: its memory is on disk.
        assert_eq!(learned(&own, &told, "other"), Learned::default());
    }
}
