//! One writer for each cluster, on all machines: a lock in Consul, beside the file lock, which holds on one machine only.
//!
//! The session is this run's own. A process that dies lets the lock go when its session ends: at most 75 s later.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{ControlPlane, OperationError, failed};
use crate::cluster::ClusterName;
use crate::consul::session::{RENEW, SessionId};
use crate::consul::{Consul, ConsulError};
use crate::exit::Exit;
use crate::settings::WhenAway;
use crate::state::Operation;

/// The lock, renewed while it lives.
#[derive(Debug)]
pub(super) struct ClusterLock {
    consul: Arc<Consul>,
    session: SessionId,
    key: String,
    renewing: JoinHandle<()>,
}

impl Drop for ClusterLock {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Takes the cluster, where there is Consul. While that is away, the policy of `[consul]` decides.
pub(super) async fn take(
    control: &ControlPlane,
    cluster: &ClusterName,
    operation: Operation,
    what: &str,
) -> Result<Option<ClusterLock>, OperationError> {
    let (Some(consul), Some(settings)) = (&control.consul, &control.configuration.settings.consul) else {
        return Ok(None);
    };
    match try_take(consul, cluster, operation).await {
        Ok(Ok(lock)) => Ok(Some(lock)),
        Ok(Err(holder)) => {
            let words = format!("{what}: another run works on cluster \"{cluster}\", by the lock in Consul: {holder}");
            Err(OperationError::new(Exit::LockBusy, words)
                .next("wait for that run to end; a machine that died lets the lock go within 75 seconds"))
        }
        Err(error) if error.is_passing() && settings.when_away == WhenAway::Run => {
            tracing::warn!(%cluster, "without the lock in Consul, which keeps other machines out: {error}");
            Ok(None)
        }
        Err(error) => Err(failed(what)(error).safe("nothing was changed")),
    }
}

async fn try_take(
    consul: &Arc<Consul>,
    cluster: &ClusterName,
    operation: Operation,
) -> Result<Result<ClusterLock, String>, ConsulError> {
    let key = consul.key(&format!("locks/{cluster}"));
    let session = consul.create_session(&format!("pglife/{cluster}")).await?;
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let words = serde_json::json!({
        "op": operation.as_str(), "instance": machine, "pid": std::process::id(), "since": Timestamp::now(),
    });
    let held = consul.acquire(&key, &session, &words.to_string()).await;
    if !matches!(held, Ok(true)) {
        // It would end by itself; this is quicker, and leaves no lock-delay behind.
        consul.destroy(&session).await.ok();
    }
    if !held? {
        let holder = consul.get(&key).await?.map(|pair| pair.text()).unwrap_or_default();
        return Ok(Err(holder));
    }
    let (agent, held) = (Arc::clone(consul), session.clone());
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(RENEW).await;
            match agent.renew(&held).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(
                        "the lock in Consul is lost; what was begun goes on, other machines are not kept out"
                    );
                    return;
                }
                Err(error) => tracing::warn!("the lock in Consul could not be renewed: {error}"),
            }
        }
    });
    Ok(Ok(ClusterLock { consul: Arc::clone(consul), session, key, renewing }))
}

impl ClusterLock {
    /// Lets go of the lock.
    pub(super) async fn release(self) {
        self.renewing.abort();
        let ended = async {
            self.consul.release(&self.key, &self.session).await?;
            self.consul.destroy(&self.session).await
        };
        if let Err(error) = ended.await {
            tracing::warn!("the lock in Consul ends by itself: {error}");
        }
    }
}

/// A lock that somebody holds.
#[derive(Debug, Serialize)]
pub struct LockHeld {
    /// The cluster (`<cluster>-drill`: its drills), or `leader`.
    pub lock: String,
    /// `consul`, or `this machine`.
    pub place: &'static str,
    /// What the holder says of itself.
    pub holder: String,
}

impl ControlPlane {
    /// Every lock of clusters that is held, on this machine and in Consul, and who leads.
    pub async fn locks(&self) -> Result<Vec<LockHeld>, OperationError> {
        let mut held = Vec::new();
        for cluster in self.configuration.policies.keys() {
            for name in [cluster.clone(), cluster.for_drills()] {
                if let Some(holder) = self.state.holder(&name) {
                    held.push(LockHeld { lock: name.to_string(), place: "this machine", holder });
                }
            }
        }
        let Some(consul) = &self.consul else { return Ok(held) };
        let cannot = "the locks in Consul cannot be read";
        let (locks, leader) = (consul.key("locks"), consul.key("leader"));
        let mut pairs = consul.list(&locks).await.map_err(failed(cannot))?;
        pairs.extend(consul.get(&leader).await.map_err(failed(cannot))?);
        held.extend(pairs.iter().filter(|pair| pair.holder().is_some()).map(|pair| LockHeld {
            lock: pair.key.rsplit('/').next().unwrap_or_default().to_owned(),
            place: "consul",
            holder: pair.text(),
        }));
        Ok(held)
    }

    /// Ends the session that holds the lock of `cluster` in Consul, and returns what its holder said of itself.
    pub async fn break_lock(&self, cluster: &ClusterName) -> Result<String, OperationError> {
        let what = format!("the lock of cluster \"{cluster}\" was not broken");
        let Some(consul) = &self.consul else {
            return Err(OperationError::new(Exit::NotFound, format!("{what}: there is no [consul]"))
                .next("on this machine the kernel takes a lock back when its process ends: end that process"));
        };
        let key = consul.key(&format!("locks/{cluster}"));
        let pair = consul.get(&key).await.map_err(failed(&what))?;
        let Some((session, holder)) = pair.and_then(|pair| Some((pair.holder()?, pair.text()))) else {
            return Err(OperationError::new(Exit::NotFound, format!("{what}: nobody holds it in Consul"))
                .next("see what is held: pglife lock list"));
        };
        consul.destroy(&session).await.map_err(failed(&what))?;
        let text = format!("the lock in Consul was broken by hand; its holder said of itself: {holder}");
        self.state.record_event(Timestamp::now(), Some(cluster), "lock.broken", &text).map_err(failed(&what))?;
        Ok(holder)
    }
}
