//! `pglife restore --into NAME --delta`: a cluster that was restored from copies of the same server becomes another one of them, with no
//! more written than what differs.
//!
//! ```text
//! set ─▶ plan ─▶ its containers, its control file: a copy of the same server? ─▶ run begins ─▶ server stopped
//!   ─▶ worker: barred, written, bar away ([`crate::worker::refresh`]) ─▶ server started; it replays the WAL
//! ```
//!
//! What was written to that cluster is gone then, and nothing of it is kept: it is for a copy beside its source, never for the source.

use std::path::PathBuf;

use super::volume::{VolumeRestorePlan, VolumeScene, into_volumes, plan_volume_restore, serve, unpacker};
use super::{Chosen, Wanted};
use crate::backup_set::{Kind, Object, Selector};
use crate::cluster::{ClusterName, RepoName};
use crate::control::{
    ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed, or_elsewhere, worker_threads,
};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Engine, Image};
use crate::exit::Exit;
use crate::policy::{Layout, Managed, Policy};
use crate::provision;
use crate::state::Operation;
use crate::worker::refresh::RefreshJob;
use crate::worker::{Event, Request};

/// What is asked for.
#[derive(Debug)]
pub struct RefreshRequest {
    /// The set.
    pub backup: Selector,
    /// The cluster that becomes a copy of it.
    pub into: ClusterName,
    /// The repository, where it is not the policy's first.
    pub repository: Option<RepoName>,
    /// The file with a key, where it is not the configured one; encrypted sets need one.
    pub identity: Option<PathBuf>,
}

/// A refresh that could begin.
#[derive(Debug)]
pub struct Refresh {
    chosen: Chosen,
    engine: Engine,
    image: Image,
    container: Container,
    /// The cluster that becomes a copy.
    policy: Policy,
    /// Its volumes, each at its place.
    volumes: Vec<WorkerMount>,
    network: Option<String>,
    /// What will be done.
    pub plan: VolumeRestorePlan,
    index: Option<Object>,
    entries: u64,
}

/// A refresh that was done.
#[derive(Debug)]
pub struct Refreshed {
    /// The database container.
    pub container: String,
    /// Its image.
    pub image: String,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Bytes that were there already, by their digests.
    pub kept_bytes: u64,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// Finds the set, looks at the cluster and makes the plan; nothing is changed.
pub async fn prepare_refresh(
    control: &ControlPlane,
    source: &Policy,
    request: &RefreshRequest,
) -> Result<Refresh, OperationError> {
    let (from, into) = (&source.name, &request.into);
    let what = format!("cluster \"{into}\" was not refreshed from a backup of \"{from}\"");
    let refused = |why: String| OperationError::new(Exit::Refused, why).safe("nothing was touched");
    if into == from {
        return Err(refused(format!("{what}: with --delta nothing of its own data would be kept"))
            .next(format!("pglife restore {from} --in-place keeps them until you finalize it")));
    }
    let anew = format!("make it: pglife restore {from} --into {into} (without --delta)");
    let policy = control.configuration.policies.get(into).ok_or_else(|| {
        OperationError::new(Exit::NotFound, format!("{what}: there is no cluster of that name")).next(&anew)
    })?;
    let Layout::Managed(layout) = &policy.layout else {
        return Err(refused(format!("{what}: it is adopted, and its containers are not pglife's")));
    };
    let wish = (&request.backup, request.repository.as_ref(), request.identity.as_deref());
    let chosen = Chosen::find(control, source, wish, &what)?;
    control.check_reach(&policy.host, &chosen.repository_name, &what)?;
    let manifest = &chosen.manifest;
    if manifest.kind != Kind::Volume {
        return Err(refused(format!("{what}: {} is a dump, and --delta compares files", manifest.set))
            .next("name a copy of volumes, such as --backup latest:volume"));
    }
    let planned = plan_volume_restore(manifest, policy.major, &Wanted::Everything, worker_threads());
    let plan = planned.map_err(|error| {
        OperationError::new(error.exit(), format!("{what}: {error}")).safe("nothing was touched").next(&anew)
    })?;
    let index = manifest.blocks().cloned();
    let entries = manifest.volume().map_or(0, |(_, copy)| copy.entries);

    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Look, into, &engine).await?;
    let looked = look(&run, &engine, (policy, layout), &plan, &what).await;
    let looked = looked.map_err(|error| if error.next.is_none() { error.next(&anew) } else { error });
    let (container, image, volumes) =
        run.end(looked, |_| (Exit::Ok, format!("plan of a refresh from {}", plan.set), None)).await?;
    let network = layout.network.as_ref().map(|network| network.as_str().to_owned());
    let policy = policy.clone();
    Ok(Refresh { chosen, engine, image, container, policy, volumes, network, plan, index, entries })
}

/// The containers of the cluster, which must hold a copy of the server that the set is of.
async fn look(
    run: &Run<'_>,
    engine: &Engine,
    (policy, layout): (&Policy, &Managed),
    plan: &VolumeRestorePlan,
    what: &str,
) -> Result<(Container, Image, Vec<WorkerMount>), OperationError> {
    let refused = |why: String| OperationError::new(Exit::Refused, why).safe("nothing was touched");
    let container = engine.require_container(&policy.container).await.map_err(failed(what))?;
    let data = engine.require_container(&layout.data_container).await.map_err(failed(what))?;
    if container.status == "paused" {
        return Err(refused(format!("{what}: container \"{}\" is paused", container.name))
            .next(format!("docker unpause {0}, or docker stop {0}", container.name)));
    }
    let image = engine.require_image(&container.image_id).await.map_err(failed(what))?;
    let major = policy.major.to_string();
    if !image.is_ours() || image.labels.get("pglife.major") != Some(&major) {
        return Err(refused(format!(
            "{what}: container \"{}\" has no image of pglife's PostgreSQL {major}",
            container.name
        )));
    }
    let mut volumes = Vec::new();
    for volume in &plan.volumes {
        let mounted = data.mount_of(volume).filter(|mount| mount.destination == *volume).ok_or_else(|| {
            refused(format!("{what}: container \"{}\" has no volume at {volume}, and the backup has", data.name))
        })?;
        let (source, destination) = (mounted.source.clone(), volume.clone());
        volumes.push(WorkerMount { source, destination, writable: true });
    }
    let of_data = volumes.iter().find(|mount| mount.destination == "/data");
    let of_data = of_data.ok_or_else(|| refused(format!("{what}: {} has no volume /data", plan.set)))?;
    let below = format!("/{}", policy.major);
    let control = run.control_file(engine, &image.id, (&of_data.source, &below), policy.major, what).await?;
    let found = control.system_identifier;
    if found == plan.system_identifier {
        return Ok((container, image, volumes));
    }
    Err(refused(format!(
        "{what}: it is no copy of \"{}\": its system identifier is {found}, the one of the backup {}",
        plan.source, plan.system_identifier
    ))
    .next(format!("restore into another name; or, only if it is no longer needed, remove it first: pglife cluster remove {} --volumes --yes", policy.name)))
}

/// Does what was prepared.
pub async fn refresh(
    control: &ControlPlane,
    refresh: &Refresh,
    progress: Progress<'_>,
) -> Result<Refreshed, OperationError> {
    let (policy, set) = (&refresh.policy, &refresh.plan.set);
    let run = control.begin(Operation::Restore, &policy.name, &refresh.engine).await?;
    let refreshed = refresh_in_run(control, &run, refresh, progress).await;
    let refreshed = refreshed.map_err(or_elsewhere(&refresh.chosen.elsewhere));
    run.end(refreshed, |done| {
        let exit = if done.warnings.is_empty() { Exit::Ok } else { Exit::Warnings };
        (exit, done.warnings.join("; "), Some(set.clone()))
    })
    .await
}

async fn refresh_in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    refresh: &Refresh,
    progress: Progress<'_>,
) -> Result<Refreshed, OperationError> {
    let Refresh { chosen, engine, image, container, policy, plan, .. } = refresh;
    let what = format!("refresh of cluster \"{}\" from {} failed", policy.name, plan.set);
    let source = chosen.source();
    let scene = VolumeScene { control, run, engine, image, policy, source: &source, what: &what, progress };
    let mut session = unpacker(&scene, refresh.volumes.clone(), refresh.network.as_deref()).await?;
    progress(Tick::Step(format!("stopping {}", container.name)));
    let mut changed = false;
    let mut amount = (0, 0);
    let filled = async {
        engine.stop(&container.id, provision::STOP_PATIENCE).await.map_err(failed(&what))?;
        progress(Tick::Step(format!("comparing {} with {}", plan.volumes.join(" "), plan.set)));
        let request = Request::Refresh(Box::new(RefreshJob {
            tar: plan.job(&source, chosen.keys.clone()),
            index: refresh.index.clone(),
            entries: refresh.entries,
            pgdata: format!("/data/{}", policy.major),
        }));
        into_volumes(&scene, &mut session, plan, &request, |event| match event {
            Event::Barred => changed = true,
            Event::Refreshed { written, kept } => amount = (written, kept),
            _ => {}
        })
        .await
    }
    .await;
    close_worker(session).await;
    let served = match filled {
        Ok(sorts_otherwise) => {
            engine.start(&container.id).await.map_err(failed(&what))?;
            serve(&scene, plan, container, &sorts_otherwise).await
        }
        Err(error) if changed => {
            return Err(error
                .safe(format!(
                    "the backup is as it was; \"{}\" is down, and no server starts on its data, which are half of one copy and half of another",
                    policy.name
                ))
                .next(format!(
                    "see to what is said above, then: pglife restore {} --backup {} --into {} --delta --yes",
                    plan.source, plan.set, policy.name
                )));
        }
        Err(error) => {
            let started = if container.running { engine.start(&container.id).await } else { Ok(()) };
            return Err(match started {
                Ok(()) => error.safe(format!("the data of \"{}\" are as they were", policy.name)),
                Err(also) => {
                    error.safe(format!("the data of \"{}\" are as they were; it is down: {also}", policy.name))
                }
            });
        }
    };
    let (written_bytes, kept_bytes) = amount;
    let (container, image) = (container.name.clone(), image.reference.clone());
    Ok(Refreshed { container, image, written_bytes, kept_bytes, warnings: served? })
}
