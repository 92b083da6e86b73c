//! Follows the policies in Consul, where they are there, by blocking queries: a change is known within seconds.
//!
//! What it knows hangs on a channel that holds the newest only; the loop reads it and judges whether it is valid. Consul's death,
//! a token that is refused, and a KV that lost everything change nothing but what is said about it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use crate::consul::tree::Tree;
use crate::consul::{Consul, ConsulError};
use crate::kv::{self, Documents, LastGood, Source, Stale};
use crate::settings::Settings;

/// The policies in Consul, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// What Consul said last, valid or not; never nothing where there was something.
    pub(super) documents: Documents,
    /// Why that is not what it says now.
    pub(super) stale: Option<Staleness>,
}

/// Why the policies are not what Consul says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staleness {
    /// In words.
    pub(super) stale: Stale,
    /// Whether Consul answers, and has lost them.
    pub(super) is_wiped: bool,
}

impl From<&Source> for Known {
    fn from(source: &Source) -> Self {
        match source {
            Source::Folder => Self::default(),
            Source::Consul { documents, .. } => Self { documents: documents.clone(), stale: None },
            Source::Copy { documents, stale } => {
                let stale = Staleness { stale: stale.clone(), is_wiped: false };
                Self { documents: documents.clone(), stale: Some(stale) }
            }
        }
    }
}

impl Known {
    /// What is known after Consul has answered. One that lost everything is not believed.
    fn heard(&self, documents: Documents, wiped: impl FnOnce() -> Stale) -> Self {
        if kv::is_wiped(&documents, &self.documents) {
            let stale = match &self.stale {
                Some(before) if before.is_wiped => before.stale.clone(),
                _ => wiped(),
            };
            return Self { documents: self.documents.clone(), stale: Some(Staleness { stale, is_wiped: true }) };
        }
        Self { documents, stale: None }
    }

    /// What is known when Consul does not answer.
    fn missed(&self, away: Stale) -> Self {
        Self { documents: self.documents.clone(), stale: Some(Staleness { stale: away, is_wiped: false }) }
    }
}

/// What follows the policies.
pub(super) struct Watcher {
    pub(super) consul: Arc<Consul>,
    pub(super) settings: Settings,
    pub(super) known: Sender<Known>,
}

impl Watcher {
    /// Works until `cancel`; `source` is what the daemon started with.
    pub(super) async fn run(self, source: Source, cancel: CancellationToken) {
        let mut index = match source {
            Source::Consul { index, .. } => Some(index),
            Source::Folder | Source::Copy { .. } => None,
        };
        let folder = kv::folder(&self.consul);
        loop {
            // Nothing is lost with a question that is dropped.
            let tree = tokio::select! {
                tree = self.consul.next_tree(&folder, &mut index, |error| self.heard(error)) => tree,
                () = cancel.cancelled() => return,
            };
            self.learn(&tree, &folder);
        }
    }

    /// Nothing changed, or Consul does not answer.
    fn heard(&self, error: Option<&ConsulError>) {
        let now = Timestamp::now();
        let Some(error) = error else {
            let known = self.known.borrow().clone();
            // The copy is as good as the answer, where it is a copy of this; whether it is valid the loop says.
            if known.stale.is_none()
                && LastGood::of(&self.settings).is_some_and(|last| last.documents() == known.documents)
            {
                kv::keep(&self.settings, &known.documents, now);
            }
            return;
        };
        self.change(|known| {
            // Its time stays what it was when Consul went.
            let as_of = known.stale.as_ref().map(|before| before.stale.as_of);
            known.missed(Stale::away(as_of.or_else(|| self.as_of()).unwrap_or(now), error))
        });
    }

    fn as_of(&self) -> Option<Timestamp> {
        LastGood::of(&self.settings).map(|last| last.as_of)
    }

    fn learn(&self, tree: &Tree, folder: &str) {
        let file = LastGood::file(&self.settings.state_dir);
        self.change(|known| {
            known
                .heard(kv::documents(tree), || Stale::wiped(self.as_of().unwrap_or_else(Timestamp::now), folder, &file))
        });
    }

    fn change(&self, next: impl FnOnce(&Known) -> Known) {
        self.known.send_if_modified(|known| {
            let next = next(known);
            let is_news = *known != next;
            *known = next;
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(names: &[&str]) -> Documents {
        names.iter().map(|name| ((*name).to_owned(), b"x".to_vec())).collect()
    }

    fn stale(why: &str) -> Stale {
        Stale { as_of: Timestamp::UNIX_EPOCH, why: why.to_owned(), next: "next".to_owned() }
    }

    #[test]
    fn nothing_but_words_changes_while_consul_is_away_or_empty() {
        let good = Known { documents: documents(&["a", "b"]), stale: None };
        let away = good.missed(stale("away"));
        assert_eq!(away.documents, good.documents);
        assert_eq!(away.heard(good.documents.clone(), || stale("wiped")), good, "it is back");
        let wiped = away.heard(Documents::new(), || stale("wiped"));
        assert_eq!((&wiped.documents, wiped.stale.as_ref().map(|told| told.is_wiped)), (&good.documents, Some(true)));
        assert_eq!(wiped.heard(Documents::new(), || stale("again")), wiped, "it is told once");
        let fewer = wiped.heard(documents(&["b"]), || stale("wiped"));
        assert_eq!(fewer, Known { documents: documents(&["b"]), stale: None }, "one that was removed is gone");
        let nothing = Known::default();
        assert_eq!(nothing.heard(Documents::new(), || stale("wiped")), nothing);
    }
}
