//! The data go over through a backup: of the old server, into the new one.

use std::path::Path;

use super::super::drive::Scene;
use super::super::plan::Trial;
use super::Place;
use crate::backup;
use crate::backup_set::{Selector, SetId};
use crate::cluster::DatabaseName;
use crate::control::{OperationError, worker_threads};
use crate::docker::Container;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::restore::{self, Chosen, RestorePlan, Wanted, plan_restore};

/// Backs up the server of `policy`, which nobody knows, and restores that into a new one, which nobody knows either.
pub(super) async fn transfer(
    scene: &mut Scene<'_>,
    policy: &Policy,
    databases: &[DatabaseName],
    identity: Option<&Path>,
) -> Result<Container, OperationError> {
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
    scene.make_volume().await?;
    let target = scene.start_trial(Trial::Target).await?;
    scene.end(step);

    let step = scene.step("restore")?;
    let image = scene.new_image().await?;
    let policy = scene.target_policy();
    let (chosen, how) = self::taken(scene, &taken.commit.set, databases, identity)?;
    restore_into(scene, Place { policy: &policy, target: &target, image: &image }, &chosen, &how).await?;
    scene.end(step);
    Ok(target)
}

/// Restores a dump into the server in `target`. Returns what the operator should read.
pub(super) async fn restore_into(
    scene: &Scene<'_>,
    Place { policy, target, image }: Place<'_>,
    chosen: &Chosen,
    plan: &RestorePlan,
) -> Result<Vec<String>, OperationError> {
    let scratch = restore::scratch_volume(scene.run, scene.engine, policy).await.map_err(scene.failed())?;
    let restored = restore::into_server(
        scene.control,
        scene.run,
        scene.engine,
        target,
        image,
        policy,
        &chosen.source(),
        &chosen.commit,
        plan,
        chosen.keys.clone(),
        &scratch,
        scene.what(),
        scene.progress,
    )
    .await;
    if let Err(error) = scene.engine.remove_volume(&scratch).await {
        tracing::warn!("the scratch volume is left for the next sweep: {error}");
    }
    restored.map(|(_, warnings)| warnings)
}

/// The set that was just taken, with all of `databases` in it, and how it is restored.
fn taken(
    scene: &Scene<'_>,
    set: &SetId,
    databases: &[DatabaseName],
    identity: Option<&Path>,
) -> Result<(Chosen, RestorePlan), OperationError> {
    let what = scene.what();
    let chosen = Chosen::find(
        scene.control,
        &scene.source_policy(),
        (&Selector::Prefix(set.to_string()), None, identity),
        what,
    )?;
    let manifest = &chosen.manifest;
    let missing: Vec<String> = databases
        .iter()
        .filter(|database| manifest.database_object(database).is_none())
        .map(|database| format!("\"{database}\""))
        .collect();
    if !missing.is_empty() {
        let list = missing.join(", ");
        return Err(OperationError::new(Exit::Failed, format!("{what}: not in the last backup: {list}")));
    }
    let plan = plan_restore(manifest, scene.plan.to, &Wanted::Everything, worker_threads())
        .map_err(|error| OperationError::new(error.exit(), format!("{what}: {error}")))?;
    Ok((chosen, plan))
}
