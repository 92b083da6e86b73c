//! Servers of drills that are kept for a while, for somebody who wants to look; and how they go.
//!
//! ```text
//! drill ─▶ verdict, certificate ─▶ its server is stopped and made again on the same volumes: label `kept`, and until when
//!                                       └─ what the run made stays as long as that server does ([`label::kept_runs`])
//! sweep, by any later command ─▶ the time is up: everything goes          pglife drill remove ─▶ everything goes at once
//! ```
//!
//! Labels cannot be changed, and how long a drill takes is known at its end: so the server is made a second time.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use jiff::Timestamp;
use serde::Serialize;

use crate::backup_set::Kind;
use crate::control::{ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed};
use crate::docker::Container;
use crate::docker::label::{self, Purpose};
use crate::exit::Exit;
use crate::policy::{Duration, Policy};
use crate::provision::{self, ClusterPlan, Life};
use crate::restore::Prepared;
use crate::state::Operation;

use super::throwaway;

/// A server may be kept for so long.
pub const LONGEST: Duration = Duration::from_hours(14 * 24);
/// How long it may take until it answers again, where it can.
const PATIENCE_SECONDS: u64 = 120;

/// The wish to look at the server of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// For how long, from the end of the drill on.
    pub lifetime: Duration,
    /// Only where the backup is not proven.
    pub only_on_failure: bool,
    /// The port at which it is reached from this machine; None: by `docker exec` only, and it reaches nobody.
    pub port: Option<NonZeroU16>,
}

/// A server that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its container.
    pub container: String,
    /// Until when.
    pub until: Timestamp,
    /// The address at which it is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Commands that connect to it.
    pub connect: Vec<String>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Containers.
    pub containers: Vec<String>,
    /// Volumes.
    pub volumes: Vec<String>,
}

/// Refuses to begin while a server of an earlier drill is kept: it has the names, and somebody looks at it.
pub(super) async fn refuse_while_kept(control: &ControlPlane, policy: &Policy) -> Result<(), OperationError> {
    // What is wrong with the engine is told, and recorded, by the drill itself.
    let Ok(engine) = control.engine(&policy.host).await else { return Ok(()) };
    let Ok(Some(kept)) = provision::kept::find(&engine, policy).await else { return Ok(()) };
    let what = format!(
        "drill of cluster \"{}\" did not begin: the server of an earlier one, container \"{}\", is kept until {}",
        policy.name, kept.container, kept.until
    );
    Err(OperationError::new(Exit::LockBusy, what)
        .safe("nothing was touched")
        .next(format!("when nobody needs it any more: pglife drill remove {}; or wait", policy.name)))
}

/// Makes the server of a drill stay, whatever came of the drill.
pub(super) async fn keep(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: &Prepared,
    wish: Keep,
    progress: Progress<'_>,
) -> Result<(Kept, Vec<String>), OperationError> {
    let what = "the server of the drill could not be kept";
    let Prepared { engine, .. } = prepared;
    let Some(found) = engine.container(prepared.cluster.container.as_str()).await.map_err(failed(what))? else {
        return Err(OperationError::new(Exit::NotFound, format!("{what}: the drill did not get so far as to make it")));
    };
    progress(Tick::Step("keeping the server".to_owned()));
    let until = Timestamp::now() + wish.lifetime.as_signed();
    let until = until.round(jiff::Unit::Second).unwrap_or(until);
    let plan = plan(&prepared.cluster, wish.port, until, throwaway::settings(&prepared.chosen.manifest));
    engine.stop(&found.id, provision::STOP_PATIENCE).await.map_err(failed(what))?;
    engine.remove_container(&found.id).await.map_err(failed(what))?;
    let container = provision::make_database(run, engine, &plan, what, progress).await?;
    let mut warnings = Vec::new();
    // One that does not come up is what somebody wants to look at.
    if let Err(error) = answers(control, run, prepared, &container, what).await {
        warnings.push(format!("the server that is kept does not answer: {}", error.chain()));
    }
    run.give_up(&plan.host, &throwaway::fetched(run)).await;
    run.keep_made()?;
    let psql = format!("psql -U {}", plan.bootstrap_role);
    let mut connect = vec![format!("docker exec -it {} {psql}", container.name)];
    if let Some(address) = plan.publish {
        let who = match prepared.chosen.commit.kind {
            Kind::Dump => "ROLE",
            Kind::Volume => "ROLE_THAT_PG_HBA_LETS_IN",
        };
        connect.push(format!("psql -h {} -p {} -U {who} DATABASE", address.ip(), address.port()));
    }
    Ok((Kept { container: container.name, until, address: plan.publish, connect }, warnings))
}

/// How the server is made the second time. Pure.
fn plan(cluster: &ClusterPlan, port: Option<NonZeroU16>, until: Timestamp, settings: String) -> ClusterPlan {
    let mut plan = ClusterPlan { life: Life::Kept(until), settings: Some(settings), ..cluster.clone() };
    if let Some(port) = port {
        plan.publish = Some((Ipv4Addr::LOCALHOST, port.get()).into());
        plan.network = Some("bridge".to_owned());
        plan.settings = plan.settings.map(|settings| settings + "listen_addresses = '*'\n");
    }
    plan
}

async fn answers(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: &Prepared,
    container: &Container,
    what: &str,
) -> Result<(), OperationError> {
    let (session, _) = provision::await_server(
        control,
        run,
        &prepared.policy,
        &prepared.engine,
        container,
        &prepared.image,
        vec![],
        what,
        PATIENCE_SECONDS,
        None,
    )
    .await?;
    close_worker(session).await;
    Ok(())
}

/// Removes what drills of the cluster of `policy` left, or keep.
pub async fn remove(control: &ControlPlane, policy: &Policy) -> Result<Removed, OperationError> {
    let what = format!("the server of a drill of cluster \"{}\" was not removed", policy.name);
    // A drill that goes on is not taken away from under itself.
    let _lock = control.state.lock_cluster(&policy.name, Operation::Drill, Timestamp::now()).map_err(failed(&what))?;
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let (managed, cluster) =
        (format!("{}=true", label::MANAGED), format!("{}={}", label::CLUSTER, policy.name.for_drills()));
    let labels = [managed.as_str(), cluster.as_str(), label::EXPIRES];
    let is_of_drill = |labels: &std::collections::HashMap<String, String>| {
        let purpose = labels.get(label::PURPOSE).map(String::as_str);
        [Purpose::Drill, Purpose::Kept].iter().any(|kind| purpose == Some(kind.as_str()))
    };
    let mut removed = Removed { containers: vec![], volumes: vec![] };
    for container in engine.containers_labelled(&labels).await.map_err(failed(&what))? {
        if is_of_drill(&container.labels) {
            engine.remove_container(&container.id).await.map_err(failed(&what))?;
            removed.containers.push(container.name);
        }
    }
    for (volume, labels) in engine.volumes_labelled(&labels).await.map_err(failed(&what))? {
        if is_of_drill(&labels) {
            engine.remove_volume(&volume).await.map_err(failed(&what))?;
            removed.volumes.push(volume.to_string());
        }
    }
    if removed.containers.is_empty() && removed.volumes.is_empty() {
        let nothing = format!("no drill of cluster \"{}\" keeps a server on host \"{}\"", policy.name, policy.host);
        return Err(OperationError::new(Exit::NotFound, nothing));
    }
    Ok(removed)
}
