//! One writer for each cluster, on all machines: a lock in Consul, beside the file lock, which holds on one machine only.
//!
//! The session is this run's own. A process that dies lets the lock go when its session ends: at most 75 s later.

use std::sync::Arc;

use jiff::Timestamp;
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
