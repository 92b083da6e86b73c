//! The data go over as files: `pg_upgrade` copies them from the old volume into the new one.
//!
//! The old volume is written to by nothing but programs of its own major, which start its server and shut it down in order.

use super::super::drive::Scene;
use super::super::old_programs::{OLD_PROGRAMS, pair};
use super::super::plan::Trial;
use crate::backup_set::ServerProfile;
use crate::cluster::VolumeName;
use crate::control::{OperationError, failed, start_worker};
use crate::docker::Container;
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::exit::Exit;
use crate::postgres::survey::Survey;
use crate::worker::pg_upgrade::{OLD_DATA, OldPrograms, TransferJob};
use crate::worker::{Event, Request};

/// Moves the data of the old server, and starts the new one, which nobody knows.
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
    let Some(inside) = survey.data_directory.strip_prefix("/data/") else {
        let text = format!("{}: its data directory {} is not below /data", scene.what(), survey.data_directory);
        return Err(OperationError::new(Exit::Refused, text));
    };

    let step = scene.step("volume")?;
    // In order: pg_upgrade takes no data of a server that was cut.
    scene.remove_trial(Trial::Source).await?;
    super::make_volume(scene).await?;
    scene.end(step);

    let step = scene.step("transfer")?;
    let mount = |source: &str, destination: &str| WorkerMount {
        source: source.to_owned(),
        destination: destination.to_owned(),
        writable: true,
    };
    let worker = WorkerPlan {
        run: scene.run.id.clone(),
        cluster: plan.cluster.clone(),
        image_id: plan.new_image.id.clone(),
        mounts: vec![
            mount(scratch.as_str(), OLD_PROGRAMS),
            mount(&plan.old_volume, OLD_DATA),
            mount(plan.new_volume.as_str(), "/data"),
        ],
        network: WorkerNetwork::Nothing,
        serves: true,
    };
    let job = TransferJob {
        pair: pair(programs, plan, profile, survey, format!("{OLD_DATA}/{inside}")),
        new_data: format!("/data/{}", plan.to),
        tablespaces: profile.tablespaces.clone(),
    };
    let session = start_worker(scene.engine, &worker).await.map_err(failed(scene.what()))?;
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
