//! The way back from the new server to the old one, for an operator who wants it.

use super::drive::Scene;
use super::journal::Phase;
use super::record::require_last;
use super::{Upgraded, go_back, needs_operator};
use crate::backup;
use crate::control::{ControlPlane, OperationError, Progress, failed};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::state::Operation;

/// Goes back to the old server. What was written to the new one since is in a backup, and not in the old one.
pub async fn rollback(
    control: &ControlPlane,
    policy: &Policy,
    accept_data_loss: bool,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("rollback of the upgrade of cluster \"{}\" did not begin", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        let last = require_last(control, &policy.name)?;
        match last.phase {
            Phase::Open | Phase::Undoing => {}
            Phase::Committed | Phase::Upgraded if accept_data_loss => {}
            Phase::Committed | Phase::Upgraded => {
                return Err(OperationError::new(
                    Exit::Refused,
                    format!(
                        "{what}: since {} clients may have written to the new server; the old one has nothing of that",
                        last.report.serving_at.map_or_else(|| "the commit".to_owned(), |at| at.to_string())
                    ),
                )
                .safe("nothing was touched")
                .next("add --accept-data-loss if that is meant: a backup of the new server is taken first"));
            }
            Phase::AsBefore | Phase::Finalized => {
                return Err(OperationError::new(
                    Exit::NotFound,
                    format!("{what}: there is nothing to go back from (it is {})", last.phase.as_str()),
                )
                .safe("nothing was touched"));
            }
        }
        let mut scene = Scene::new(control, &run, &engine, policy, &last.plan, last.id.clone(), progress);
        scene.report = last.report.clone();
        let mut warnings = Vec::new();
        if last.phase == Phase::Upgraded {
            scene.say("backup of the new server");
            let taken = backup::take_in_run(control, &run, &scene.new_policy(), &engine, progress).await;
            let taken = taken.map_err(|error| {
                error.safe("nothing was touched: the new server serves").next(
                    "see why the new server cannot be backed up; what was written to it would be lost without a backup",
                )
            })?;
            warnings.push(format!("what was written to the new server is in backup {}", taken.commit.set));
        }
        go_back(&mut scene).await.map_err(|error| needs_operator(error, policy))?;
        Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings })
    }
    .await;
    run.end(ended, |_| (Exit::Ok, "rolled back".to_owned(), None)).await
}
