//! The data go over as files: `pg_upgrade` copies them from the old volume into the new one.
//!
//! The old volume is written to by nothing but programs of its own major, which start its server and shut it down in order.

use super::super::drive::Scene;
use super::super::look::Prepared;
use super::super::old_programs::{OLD_PROGRAMS, pair};
use super::super::plan::Trial;
use super::mount;
use crate::backup_set::ServerProfile;
use crate::cluster::VolumeName;
use crate::control::{OperationError, close_worker, failed, start_worker};
use crate::docker::Container;
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::exit::Exit;
use crate::postgres::survey::Survey;
use crate::worker::pg_upgrade::{InitialiseJob, OLD_DATA, OldPrograms, TransferJob};
use crate::worker::session::Session;
use crate::worker::{Event, Request};

/// Makes the new volume and an empty cluster in it, while the old server still serves.
pub(super) async fn initialise(scene: &mut Scene<'_>, prepared: &Prepared) -> Result<(), OperationError> {
    let plan = scene.plan;
    let job = InitialiseJob {
        major: plan.to,
        parity: prepared.parity.clone(),
        old_data: old_data(scene, &prepared.data_directory)?,
        new_data: new_data(scene),
    };
    let step = scene.step("volume")?;
    scene.make_volume().await?;
    let old = mount(&plan.old_volume, OLD_DATA, false);
    let mut session = start(scene, vec![old, mount(plan.new_volume.as_str(), "/data", true)]).await?;
    let request = Request::Initialise(Box::new(job));
    let made = session.request(&request, &scene.control.cancel, |_| {}).await;
    close_worker(session).await;
    made.map_err(failed(scene.what()))?;
    scene.end(step);
    Ok(())
}

/// Moves the data of the old server into the cluster that was made for it, and starts the new one, which nobody knows.
pub(super) async fn transfer(
    scene: &mut Scene<'_>,
    old_programs: Option<&(VolumeName, OldPrograms)>,
    profile: &ServerProfile,
    survey: &Survey,
) -> Result<Container, OperationError> {
    let plan = scene.plan;
    let Some((scratch, programs)) = old_programs else {
        return Err(OperationError::new(Exit::Failed, format!("{}: the old programs are not laid out", scene.what())));
    };
    let old_data = old_data(scene, &survey.data_directory)?;

    let step = scene.step("transfer")?;
    // In order: pg_upgrade takes no data of a server that was cut.
    scene.remove_trial(Trial::Source).await?;
    let mounts = vec![
        mount(scratch.as_str(), OLD_PROGRAMS, true),
        mount(&plan.old_volume, OLD_DATA, true),
        mount(plan.new_volume.as_str(), "/data", true),
    ];
    let job = TransferJob {
        pair: pair(programs, plan, profile, survey, old_data),
        new_data: new_data(scene),
        tablespaces: profile.tablespaces.clone(),
    };
    let session = start(scene, mounts).await?;
    let transferred = |event| match event {
        Event::Transferred(identical) => Some(identical),
        _ => None,
    };
    let request = Request::PgUpgrade(Box::new(job));
    scene.report.identical = Some(scene.control.ask(session, &request, scene.what(), transferred).await?);
    scene.save_report()?;
    scene.end(step);

    let step = scene.step("target")?;
    let target = scene.start_trial(Trial::Target).await?;
    scene.end(step);
    Ok(target)
}

/// The old data directory, where a worker sees it.
fn old_data(scene: &Scene<'_>, directory: &str) -> Result<String, OperationError> {
    let Some(inside) = directory.strip_prefix("/data/") else {
        let text = format!("{}: its data directory {directory} is not below /data", scene.what());
        return Err(OperationError::new(Exit::Refused, text));
    };
    Ok(format!("{OLD_DATA}/{inside}"))
}

fn new_data(scene: &Scene<'_>) -> String {
    format!("/data/{}", scene.plan.to)
}

/// A worker in the new image, without a network, that may start servers.
async fn start(scene: &Scene<'_>, mounts: Vec<WorkerMount>) -> Result<Session, OperationError> {
    let worker = WorkerPlan {
        run: scene.run.id.clone(),
        cluster: scene.plan.cluster.clone(),
        image_id: scene.plan.new_image.id.clone(),
        mounts,
        network: WorkerNetwork::Nothing,
        serves: true,
    };
    start_worker(scene.engine, &worker).await.map_err(failed(scene.what()))
}
