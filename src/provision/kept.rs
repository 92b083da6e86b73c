//! Servers of drills that stay for a while.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::docker::{DockerError, Engine, label};
use crate::policy::Policy;

/// A server of an earlier drill, as its labels tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StillKept {
    /// Its container.
    pub container: String,
    /// Until when.
    pub until: Timestamp,
}

/// The server that a drill of the cluster of `policy` keeps.
pub async fn find(engine: &Engine, policy: &Policy) -> Result<Option<StillKept>, DockerError> {
    let cluster = format!("{}={}", label::CLUSTER, policy.name.for_drills());
    let found = engine.containers_labelled(&[&cluster, label::EXPIRES]).await?;
    let now = Timestamp::now();
    let kept = found.into_iter().find(|container| label::is_kept(&container.labels, now));
    Ok(kept.map(|kept| StillKept { until: label::expires_at(&kept.labels).unwrap_or(now), container: kept.name }))
}
