//! From the running old server to a new one that is proven: everything up to the commit.

use std::path::Path;

use jiff::Timestamp;

use super::drive::{STOP_PATIENCE, Scene, no_restart};
use super::journal::Phase;
use super::look::{Prepared, check_findings, survey_of};
use super::plan::Trial;
use super::{carried, content, preflight};
use crate::backup;
use crate::backup_set::Selector;
use crate::cluster::DatabaseName;
use crate::control::{Found, OperationError, close_worker, failed};
use crate::docker::label::{self, Purpose};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Image};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::postgres::survey::Survey;
use crate::provision;
use crate::restore::{self, Wanted, plan_restore};
use crate::worker::{Request, SettleJob};

/// Where a worker sees the old data volume, read-only.
const OLD_DATA: &str = "/pglife-old-data";

/// Does everything up to the commit, and the commit.
pub(super) async fn until_commit(scene: &mut Scene<'_>, prepared: &Prepared) -> Result<(), OperationError> {
    let plan = scene.plan;
    let identity = prepared.identity.as_deref();

    let step = scene.step("stop")?;
    scene.report.stopped_at = Some(Timestamp::now());
    scene.save_report()?;
    scene.engine.set_restart_policy(&plan.old_container_id, no_restart()).await.map_err(scene.failed())?;
    scene.engine.stop(&plan.old_container_id, STOP_PATIENCE).await.map_err(scene.failed())?;
    scene.end(step);

    let step = scene.step("source")?;
    let source = scene.start_trial(Trial::Source).await?;
    let source_image = scene.engine.require_image(&source.image_id).await.map_err(scene.failed())?;
    let policy = scene.source_policy();
    let (profile, survey) =
        survey_of(scene.control, scene.run, scene.engine, &policy, &source, &source_image, scene.what()).await?;
    // What came since the plan; nobody can change it any more.
    let mut findings = preflight::findings(&profile, &survey, plan.to);
    findings.extend(preflight::missing_in_image(&survey, &prepared.installation, &plan.new_image.name, plan.to));
    check_findings(&findings, scene.what(), &plan.cluster)?;
    let databases = profile.connectable();
    scene.end(step);

    let step = scene.step("facts")?;
    let expected = content::facts_of(scene, &policy, &source, &source_image, &databases, None).await?;
    scene.end(step);

    let step = scene.step("backup")?;
    let taken = backup::take_in_run(scene.control, scene.run, &policy, scene.engine, scene.progress).await?;
    if taken.exit == Exit::Failed || !taken.warnings.is_empty() && taken.repositories().next().is_none() {
        return Err(OperationError::new(Exit::Failed, format!("{}: {}", scene.what(), taken.warnings.join("; "))));
    }
    scene.report.backup = Some(taken.commit.set.clone());
    scene.save_report()?;
    scene.remove_trial(Trial::Source).await?;
    scene.end(step);

    let step = scene.step("target")?;
    let mut labels = label::of_cluster(Purpose::Cluster, &scene.run.id, &plan.cluster);
    labels.insert(label::ROLE.to_owned(), "data".to_owned());
    labels.insert(label::UPGRADE.to_owned(), scene.id.clone());
    scene.engine.ensure_volume(&plan.new_volume, &labels).await.map_err(scene.failed())?;
    let target = scene.start_trial(Trial::Target).await?;
    scene.end(step);

    let step = scene.step("restore")?;
    let image = scene.new_image().await?;
    let policy = scene.policy_of(plan.trial(Trial::Target), true);
    restore_into(scene, &policy, &target, &image, &taken.commit, &databases, identity).await?;
    scene.end(step);

    let step = scene.step("settle")?;
    settle(scene, &policy, &target, &image, &survey, &databases).await?;
    scene.end(step);

    let step = scene.step("compare")?;
    let found = content::facts_of(scene, &policy, &target, &image, &databases, Some(&expected)).await?;
    content::compare_both(scene, &expected, &found)?;
    content::keep(scene, &found)?;
    scene.remove_trial(Trial::Target).await?;
    scene.end(step);

    // With the secrets, the log and every setting that it will serve with.
    let step = scene.step("proof")?;
    let proof = scene.start_trial(Trial::Proof).await?;
    let policy = scene.policy_of(plan.trial(Trial::Proof), true);
    let identifier = scene.answer(&policy, &proof, &image, provision::FIRST_START_SECONDS).await?;
    scene.report.system_identifier = Some(identifier);
    scene.remove_trial(Trial::Proof).await?;
    scene.report.next_transaction = Some(scene.control_file().await?.next_transaction);
    scene.end(step);

    scene.phase(Phase::Committed)
}

async fn restore_into(
    scene: &Scene<'_>,
    policy: &Policy,
    target: &Container,
    image: &Image,
    commit: &crate::backup_set::Commit,
    databases: &[DatabaseName],
    identity: Option<&Path>,
) -> Result<(), OperationError> {
    let (control, what) = (scene.control, scene.what());
    let repositories = control.repositories_of(policy, None)?;
    let selector: Selector = commit.set.as_str().parse().map_err(failed(what))?;
    let Found { repository, commit, .. } = repositories.find(control, policy, &selector)?;
    let _held = control.state.hold_set(&commit.set).map_err(failed(what))?;
    let (manifest, keys) = control.manifest(repository, &commit, identity)?;
    let missing: Vec<String> = databases
        .iter()
        .filter(|database| manifest.database_object(database).is_none())
        .map(|database| format!("\"{database}\""))
        .collect();
    if !missing.is_empty() {
        let list = missing.join(", ");
        return Err(OperationError::new(Exit::Failed, format!("{what}: not in the last backup: {list}")));
    }
    let plan = plan_restore(&manifest, scene.plan.to, &Wanted::Everything, restore::worker_threads())
        .map_err(|error| OperationError::new(error.exit(), format!("{what}: {error}")))?;
    let scratch = restore::scratch_volume(scene.run, scene.engine, policy).await.map_err(scene.failed())?;
    let restored = restore::into_server(
        control,
        scene.run,
        scene.engine,
        target,
        image,
        policy,
        &restore::Source::in_place(repository, &commit, &[]),
        &commit,
        &plan,
        keys,
        &scratch,
        what,
        scene.progress,
    )
    .await;
    if let Err(error) = scene.engine.remove_volume(&scratch).await {
        tracing::warn!("the scratch volume is left for the next sweep: {error}");
    }
    restored.map(|_| ())
}

async fn settle(
    scene: &Scene<'_>,
    policy: &Policy,
    target: &Container,
    image: &Image,
    survey: &Survey,
    databases: &[DatabaseName],
) -> Result<(), OperationError> {
    let mount = |source: &str, destination: &str, writable| WorkerMount {
        source: source.to_owned(),
        destination: destination.to_owned(),
        writable,
    };
    let plan = scene.plan;
    let mounts = vec![mount(&plan.old_volume, OLD_DATA, false), mount(plan.new_volume.as_str(), "/data", true)];
    let (mut session, _) = scene.enter(policy, target, image, mounts, provision::FIRST_START_SECONDS).await?;
    let (login, _) = scene.control.login(policy, target)?;
    // Those in /config are shared as they are.
    let in_data = survey.access_files.iter().filter_map(|file| Some((file.strip_prefix("/data/")?, file)));
    let files = in_data.map(|(inside, file)| {
        let name = file.rsplit('/').next().unwrap_or_default();
        (format!("{OLD_DATA}/{inside}"), format!("/data/{}/{name}", plan.to))
    });
    let job = SettleJob {
        login,
        files: files.collect(),
        statements: carried::system_settings(survey),
        analyse: databases.to_vec(),
    };
    let done = session.request(&Request::Settle(job), &scene.control.cancel, |_| {}).await;
    close_worker(session).await;
    done.map(|_| ()).map_err(failed(scene.what()))
}
