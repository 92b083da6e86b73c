//! `pglife upgrade --to N`: the cluster moves to a newer major; killed anywhere, it ends *upgraded* or *as before*. A restore in place
//! ([`in_place`]) goes the same way, with data from a backup instead of those of the old server.
//!
//! ```text
//! survey ─▶ findings, plan ─▶ journal: open
//!   ─▶ old server stopped ─▶ the same server in a container nobody knows: facts
//!   ─▶ new volume; the data go there by the method: through a backup, or as files by pg_upgrade
//!   ─▶ new server in a container nobody knows: settings, facts, compare ─▶ start with everything
//!   ─▶ journal: committed ─▶ old containers put aside ─▶ new ones in their place ─▶ policy ─▶ journal: upgraded
//! ```
//!
//! The old volume is not written to by anything but its own server, and stays until `finalize`. Until the commit a failure or
//! a resume goes back, after it forward; both by [`journal::next`], which looks at the world and not at what was intended.

mod adopted;
mod carried;
mod content;
mod drive;
mod finalize;
mod gate;
mod in_place;
pub mod journal;
mod look;
mod maintenance;
mod old_programs;
mod overdue;
pub mod plan;
pub mod preflight;
mod record;
mod rehearsal;
mod rollback;
mod transfer;
mod writes;

use jiff::Timestamp;

use crate::backup;
use crate::control::{ControlPlane, OperationError, Progress, Tick, failed};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::state::Operation;

use drive::Scene;
use journal::{Goal, Phase};
use look::check_findings;
use plan::{Method, OldServer, UpgradePlan};
use record::{check_journal, require_last};
use transfer::Origin;

pub use finalize::{By, finalize};
pub use in_place::{InPlace, InPlaceRequest, prepare_in_place, restore_in_place};
pub use look::{Prepared, UpgradeRequest, prepare};
pub use overdue::{Overdue, overdue};
pub use record::{Compared, Recorded, Report, last};
pub use rollback::rollback;

/// How an upgrade ended.
#[derive(Debug)]
pub struct Upgraded {
    /// As the journal has it now.
    pub recorded: Recorded,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// Does what was prepared.
pub async fn upgrade(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let plan = &prepared.plan;
    let begins = format!("{plan} did not begin");
    check_findings(&prepared.findings, &begins, &prepared.again())?;
    gate::check_window(&policy.upgrade, prepared.outside_window, Timestamp::now(), &begins)?;
    let report = gate::pass(control, policy, prepared, &begins, progress).await?;
    carry_out(control, policy, plan, report, Origin::OldServer(prepared), progress).await
}

/// Carries out a plan, from its entry into the journal to its end.
async fn carry_out(
    control: &ControlPlane,
    policy: &Policy,
    plan: &UpgradePlan,
    report: Report,
    origin: Origin<'_>,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("{plan} failed");
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let operation = match origin {
        Origin::OldServer(_) => Operation::Upgrade,
        Origin::Set(_) => Operation::Restore,
    };
    let run = control.begin(operation, &policy.name, &engine).await?;
    let ended = async {
        // Somebody may have been quicker.
        check_journal(control, policy, &what)?;
        let text = serde_json::to_string(plan).expect("a plan has only text keys");
        let id = run.id.clone();
        control
            .state
            .begin_upgrade(&id, &policy.name, Phase::Open.as_str(), &text, Timestamp::now())
            .map_err(failed(&what))?;
        let mut scene = Scene::new(control, &run, &engine, policy, plan, id, progress);
        scene.report = report;
        match transfer::until_commit(&mut scene, origin).await {
            Ok(()) => finish(&mut scene).await,
            Err(error) => Err(undo_after(&mut scene, error).await),
        }
    }
    .await;
    run.end(ended, |done| {
        let exit = if done.warnings.is_empty() { Exit::Ok } else { Exit::Warnings };
        (exit, plan.to_string(), done.recorded.report.backup.clone())
    })
    .await
}

/// After the commit: forward to the end, then the first backup of the new lineage.
async fn finish(scene: &mut Scene<'_>) -> Result<Upgraded, OperationError> {
    let (control, cluster) = (scene.control, scene.plan.cluster.clone());
    let forward = async {
        scene.drive(Goal::Upgraded).await?;
        scene.check_serving().await?;
        // While it is open the daemon leaves them alone.
        let trouble = scene.reopen(true).await;
        scene.phase(Phase::Upgraded).map(|()| trouble)
    }
    .await;
    let dependents = forward.map_err(|error: OperationError| {
        OperationError {
            exit: Exit::UpgradeNeedsOperator,
            next: Some(format!(
                "see to what is said above, then: pglife upgrade resume {cluster}; or go back: pglife upgrade rollback {cluster}"
            )),
            ..error
        }
        .safe("the new server's data are complete; the old server's are untouched and kept")
    })?;
    let mut warnings = scene.report.left_to_do.clone();
    warnings.extend(dependents);
    scene.say("first backup of the new server");
    let policy = scene.new_policy();
    match backup::take_in_run(control, scene.run, &policy, scene.engine, scene.progress).await {
        Ok(taken) => {
            warnings.extend(taken.warnings.iter().cloned());
            scene.report.first_backup = Some(taken.commit.set);
            scene.save_report()?;
        }
        Err(error) => warnings.push(format!(
            "the {} is done, but the first backup of the new server failed: {}; take one: pglife backup {cluster}",
            scene.plan,
            error.chain()
        )),
    }
    Ok(Upgraded { recorded: require_last(control, &cluster)?, warnings })
}

/// Goes back because of `error`, and says how it is now.
async fn undo_after(scene: &mut Scene<'_>, error: OperationError) -> OperationError {
    let cluster = scene.plan.cluster.clone();
    (scene.progress)(Tick::Warning(format!("{}; going back", error.chain())));
    scene.report.failure = Some(error.chain());
    if let Err(also) = scene.save_report() {
        tracing::warn!("{}", also.chain());
    }
    match go_back(scene).await {
        Ok(()) => OperationError {
            exit: match scene.plan.method {
                Method::Upgrade(_) => Exit::UpgradeRolledBack,
                // A restore that failed, and nothing more.
                Method::Restore(_) => error.exit,
            },
            safe: Some(match scene.plan.old_server {
                OldServer::Serves => {
                    format!("cluster \"{cluster}\" serves as before; what was made of the new server was removed")
                }
                OldServer::Runs | OldServer::Stopped => {
                    format!("cluster \"{cluster}\" is as it was; what was made of the new server was removed")
                }
            }),
            ..error
        },
        Err(also) => OperationError {
            what: format!("{}; and going back failed: {}", error.what, also.chain()),
            exit: Exit::UpgradeNeedsOperator,
            safe: Some("the old server's data are untouched".to_owned()),
            next: Some(format!("see to what is said above, then: pglife upgrade resume {cluster}")),
            ..error
        },
    }
}

async fn go_back(scene: &mut Scene<'_>) -> Result<(), OperationError> {
    scene.phase(Phase::Undoing)?;
    scene.drive(Goal::AsBefore).await?;
    if let Some(trouble) = scene.reopen(scene.plan.old_server == OldServer::Serves).await {
        // A bar that is not drawn shows no warning, either.
        tracing::warn!(cluster = %scene.plan.cluster, "{trouble}");
    }
    content::forget(scene.control, &scene.id);
    scene.phase(Phase::AsBefore)
}

/// Carries an upgrade that was cut to its end.
pub async fn resume(
    control: &ControlPlane,
    policy: &Policy,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("resume of the {} failed", require_last(control, &policy.name)?.plan);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        // Read under the lock: whoever had it may have carried on.
        let last = require_last(control, &policy.name)?;
        let Some(goal) = last.phase.goal() else {
            return Ok(Upgraded { recorded: last, warnings: vec![] });
        };
        let mut scene = Scene::new(control, &run, &engine, policy, &last.plan, last.id.clone(), progress);
        scene.report = last.report.clone();
        match goal {
            Goal::Upgraded => finish(&mut scene).await,
            Goal::AsBefore => {
                scene.report.failure.get_or_insert_with(|| format!("the process was cut at {}", last.step));
                scene.save_report()?;
                go_back(&mut scene).await.map_err(|error| needs_operator(error, policy))?;
                Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings: vec![] })
            }
        }
    }
    .await;
    run.end(ended, |done| (exit_of(done), format!("resumed: {}", done.recorded.phase.as_str()), None)).await
}

fn needs_operator(error: OperationError, policy: &Policy) -> OperationError {
    OperationError {
        exit: Exit::UpgradeNeedsOperator,
        next: Some(format!("see to what is said above, then: pglife upgrade resume {}", policy.name)),
        ..error
    }
    .safe("the old server's data are untouched")
}

/// How the process ends for an upgrade that came to an end.
pub fn exit_of(done: &Upgraded) -> Exit {
    match done.recorded.phase {
        Phase::AsBefore => Exit::UpgradeRolledBack,
        _ if done.warnings.is_empty() => Exit::Ok,
        _ => Exit::Warnings,
    }
}
