//! The data go over through a backup: of the old server, into the new one.

use std::path::Path;

use super::super::drive::Scene;
use super::super::plan::Trial;
use crate::backup;
use crate::backup_set::Selector;
use crate::cluster::DatabaseName;
use crate::control::{Found, OperationError, failed};
use crate::docker::{Container, Image};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::restore::{self, Wanted, plan_restore};

/// Backs up the server of `policy`, which nobody knows, and restores that into a new one, which nobody knows either.
pub(super) async fn transfer(
    scene: &mut Scene<'_>,
    policy: &Policy,
    databases: &[DatabaseName],
    identity: Option<&Path>,
) -> Result<Container, OperationError> {
    let plan = scene.plan;
    let step = scene.step("backup")?;
    let taken = backup::take_in_run(scene.control, scene.run, policy, scene.engine, scene.progress).await?;
    if taken.exit == Exit::Failed || !taken.warnings.is_empty() && taken.repositories().next().is_none() {
        return Err(OperationError::new(Exit::Failed, format!("{}: {}", scene.what(), taken.warnings.join("; "))));
    }
    scene.report.backup = Some(taken.commit.set.clone());
    scene.save_report()?;
    scene.remove_trial(Trial::Source).await?;
    scene.end(step);

    let step = scene.step("target")?;
    super::make_volume(scene).await?;
    let target = scene.start_trial(Trial::Target).await?;
    scene.end(step);

    let step = scene.step("restore")?;
    let image = scene.new_image().await?;
    let policy = scene.policy_of(plan.trial(Trial::Target), true);
    restore_into(scene, &policy, &target, &image, &taken.commit, databases, identity).await?;
    scene.end(step);
    Ok(target)
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
