//! The data come from a backup: into a new volume, while the old server still serves. Nobody is served only from the stop of the old
//! server to the start of the new one.

use super::super::content;
use super::super::drive::Scene;
use super::super::in_place::InPlace;
use super::super::journal::Phase;
use super::super::plan::{OldServer, Trial};
use super::super::preflight;
use super::{Place, mount, prove, stop_old, through_backup};
use crate::causes;
use crate::control::{OperationError, close_worker, failed, start_worker};
use crate::docker::Image;
use crate::docker::worker::{WorkerNetwork, WorkerPlan};
use crate::exit::Exit;
use crate::provision;
use crate::restore::{self, Plan, RestorePlan, VolumeRestorePlan, VolumeScene};
use crate::worker::pg_upgrade::OLD_DATA;
use crate::worker::{Event, Request, SettleJob};

/// Does everything up to the commit, and the commit.
pub(super) async fn until_commit(scene: &mut Scene<'_>, in_place: &InPlace) -> Result<(), OperationError> {
    scene.report.backup = Some(in_place.chosen.commit.set.clone());
    scene.save_report()?;
    let step = scene.step("volume")?;
    scene.make_volume().await?;
    check_space(scene).await?;
    scene.end(step);

    let image = scene.new_image().await?;
    let warnings = match &in_place.how {
        Plan::Dump(plan) => into_new_server(scene, in_place, plan, &image).await?,
        Plan::Volume(plan) => unpack(scene, in_place, plan, &image).await?,
    };
    scene.report.left_to_do.extend(in_place.warnings.iter().cloned().chain(warnings));
    scene.save_report()?;
    if scene.plan.old_server == OldServer::Serves {
        note_facts(scene, &image).await?;
    }
    scene.remove_trial(Trial::Target).await?;

    stop_old(scene).await?;
    prove(scene).await?;
    scene.phase(Phase::Committed)
}

/// The old server writes to the same disk, as likely as not: it must not become full under it.
async fn check_space(scene: &Scene<'_>) -> Result<(), OperationError> {
    let plan = scene.plan;
    let worker = WorkerPlan {
        run: scene.run.id.clone(),
        cluster: plan.cluster.clone(),
        image_id: plan.new_image.id.clone(),
        mounts: vec![mount(plan.new_volume.as_str(), "/data", false)],
        network: WorkerNetwork::Nothing,
        serves: false,
    };
    let session = start_worker(scene.engine, &worker).await.map_err(failed(scene.what()))?;
    let free = |event| match event {
        Event::FreeSpace { bytes } => Some(bytes),
        _ => None,
    };
    let request = Request::MeasureFreeSpace { folder: "/data".to_owned() };
    let free = scene.control.ask(session, &request, scene.what(), free).await?;
    let Some(shortage) = preflight::shortage(plan.needed_bytes, free) else { return Ok(()) };
    let why = format!("{}: {shortage}", scene.what());
    Err(OperationError::new(Exit::Refused, why)
        .next("make room on the disk with Docker's volumes, then run the same command again"))
}

/// Notes what the new server holds: by that a rollback knows later whether anybody wrote to it. The cluster serves meanwhile; where it
/// does not, nobody waits for this.
async fn note_facts(scene: &mut Scene<'_>, image: &Image) -> Result<(), OperationError> {
    let step = scene.step("facts")?;
    let policy = scene.target_policy();
    let target = scene.engine.require_container(&policy.container).await.map_err(scene.failed())?;
    let facts = content::facts_of(scene, &policy, &target, image, &scene.plan.databases, None).await?;
    content::keep(scene, &facts)?;
    scene.end(step);
    Ok(())
}

/// A new server, and the dump goes into it.
async fn into_new_server(
    scene: &mut Scene<'_>,
    in_place: &InPlace,
    plan: &RestorePlan,
    image: &Image,
) -> Result<Vec<String>, OperationError> {
    let step = scene.step("target")?;
    let target = scene.start_trial(Trial::Target).await?;
    scene.end(step);

    let step = scene.step("restore")?;
    let policy = scene.target_policy();
    let place = Place { policy: &policy, target: &target, image };
    let mut warnings = through_backup::restore_into(scene, place, &in_place.chosen, plan).await?;
    scene.end(step);

    let step = scene.step("settle")?;
    warnings.extend(carry_files(scene, place, plan).await?);
    scene.end(step);
    Ok(warnings)
}

/// Carries what no dump holds, from the old data directory: whether its server serves or not, who may log in is in there.
async fn carry_files(
    scene: &Scene<'_>,
    Place { policy, target, image }: Place<'_>,
    restored: &RestorePlan,
) -> Result<Vec<String>, OperationError> {
    let plan = scene.plan;
    let mounts = vec![mount(&plan.old_volume, OLD_DATA, false), mount(plan.new_volume.as_str(), "/data", true)];
    let (mut session, _) = scene.enter(policy, target, image, mounts, provision::FIRST_START_SECONDS).await?;
    let login = scene.control.login(policy, target)?.0;
    let settle = |files, analyse| {
        Request::Settle(SettleJob { login: login.clone(), files, statements: vec![], analyse, renew: None })
    };
    let mut warnings = Vec::new();
    for name in ["pg_hba.conf", "pg_ident.conf", "postgresql.conf", "postgresql.auto.conf"] {
        let inside = format!("{}/{name}", plan.to);
        // Settings may be why the old server does not serve.
        let carried = if name.starts_with("postgresql.") && plan.old_server != OldServer::Serves {
            Err("the server before does not answer".to_owned())
        } else {
            let files = vec![(format!("{OLD_DATA}/{inside}"), format!("/data/{inside}"))];
            let done = session.request(&settle(files, vec![]), &scene.control.cancel, |_| {}).await;
            done.map_err(|error| causes::chain(&error))
        };
        if let Err(why) = carried {
            let volume = &plan.old_volume;
            warnings
                .push(format!("{name} was not carried over ({why}); the one before is {inside} in volume {volume}"));
        }
    }
    let databases = restored.databases.iter().map(|restored| restored.database.clone()).collect();
    let analysed = session.request(&settle(vec![], databases), &scene.control.cancel, |_| {}).await;
    close_worker(session).await;
    analysed.map_err(failed(scene.what()))?;
    Ok(warnings)
}

/// The files go into the new volume, and a server on them replays the WAL.
async fn unpack(
    scene: &mut Scene<'_>,
    in_place: &InPlace,
    plan: &VolumeRestorePlan,
    image: &Image,
) -> Result<Vec<String>, OperationError> {
    let step = scene.step("unpack")?;
    let policy = scene.target_policy();
    let (source, what) = (in_place.chosen.source(), scene.what().to_owned());
    let (control, run, engine, progress) = (scene.control, scene.run, scene.engine, scene.progress);
    let volumes = VolumeScene { control, run, engine, image, policy: &policy, source: &source, what: &what, progress };
    let place = (vec![(scene.plan.new_volume.clone(), "/data".to_owned())], in_place.network.as_deref());
    // The server's own manifest is looked at by drills.
    let sorts_otherwise = restore::unpack(&volumes, place, plan, in_place.chosen.keys.clone(), &mut vec![]).await?;
    scene.end(step);

    let step = scene.step("target")?;
    let target = scene.start_trial(Trial::Target).await?;
    let (mut session, server) = scene.enter(&policy, &target, image, vec![], provision::RECOVERY_SECONDS).await?;
    let warnings = if server.system_identifier == plan.system_identifier {
        restore::renew(&volumes, plan, &mut session, &target, &sorts_otherwise).await
    } else {
        Err(OperationError::new(Exit::Failed, format!("{what}: another server answers than the one of the backup")))
    };
    close_worker(session).await;
    scene.end(step);
    warnings
}
