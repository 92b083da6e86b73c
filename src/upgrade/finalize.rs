//! Lets go of the old server, once a backup of the new one is there.

use jiff::Timestamp;

use super::Upgraded;
use super::content;
use super::journal::Phase;
use super::overdue::Standing;
use super::record::{Recorded, require_last};
use crate::cluster::VolumeName;
use crate::control::{ControlPlane, Held, OperationError, failed};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::state::Operation;

/// Who has the old server removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// An operator, who knows what the new server is worth: a backup of it is enough.
    Command,
    /// Nobody in particular: the policy's `keep_old` is over. Only with a backup of the new server that a drill has proven.
    Timer,
}

/// Removes the old server for good.
pub async fn finalize(control: &ControlPlane, policy: &Policy, by: By) -> Result<Upgraded, OperationError> {
    let what = format!("finalize of the {} did not begin", require_last(control, &policy.name)?.plan);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        let last = require_last(control, &policy.name)?;
        if last.phase == Phase::Finalized {
            return Ok(Upgraded { recorded: last, warnings: vec![] });
        }
        if last.phase != Phase::Upgraded {
            return Err(OperationError::new(
                Exit::Refused,
                format!("{what}: it is {}, so there is no old server to remove", last.phase.as_str()),
            )
            .safe("nothing was touched"));
        }
        check_kept_long_enough(policy, &last, Timestamp::now(), &what)?;
        check_backed_up(control, policy, &last, by, &what)?;
        let plan = &last.plan;
        let kept_data = plan.data_container().map(|data| (&data.kept, &data.old_id));
        for (name, id) in [(&plan.kept_container, &plan.old_container_id)].into_iter().chain(kept_data) {
            if let Some(found) = engine.container(name.as_str()).await.map_err(failed(&what))?
                && found.id == *id
            {
                match plan.single() {
                    // Whether its volume with the data goes, which may have no name, is decided below.
                    Some(_) => engine.remove_container_only(&found.id).await,
                    None => engine.remove_container(&found.id).await,
                }
                .map_err(failed(&what))?;
            }
        }
        let mut warnings = Vec::new();
        if plan.single().is_some_and(|single| single.pgdata != single.data_mount && single.new_folder.is_none()) {
            warnings.push(format!(
                "volume {} stays: it may hold more than the data directory; if nothing needs it any more: docker volume rm {0}",
                plan.old_volume
            ));
        } else if let Ok(volume) = VolumeName::new(plan.old_volume.clone()) {
            engine.remove_volume(&volume).await.map_err(failed(&what))?;
        }
        if plan.new_folder().is_some() {
            // It said whose the folder was, which stays without it. The one with the old data is not ours to delete.
            engine.remove_volume(&plan.new_volume).await.map_err(failed(&what))?;
            warnings.push(format!("folder {} of the host stays, with the old data", plan.old_volume));
        }
        content::forget(control, &last.id);
        control.state.upgrade_phase(&last.id, Phase::Finalized.as_str(), Timestamp::now()).map_err(failed(&what))?;
        Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings })
    }
    .await;
    run.end(ended, |_| (Exit::Ok, "finalized".to_owned(), None)).await
}

/// The policy may want the old server for some time.
fn check_kept_long_enough(policy: &Policy, last: &Recorded, now: Timestamp, what: &str) -> Result<(), OperationError> {
    let Some(keep) = policy.upgrade.keep_old else { return Ok(()) };
    let until = Standing::of(last).kept_until(keep);
    if now >= until {
        return Ok(());
    }
    Err(OperationError::new(
        Exit::Refused,
        format!("{what}: `keep_old` keeps the old server for {keep}, until {until:.0}"),
    )
    .safe("nothing was touched: the old server is kept")
    .next("wait until then; or take `keep_old` out of the section [upgrade] of the policy"))
}

/// The old data go only when a backup of the new server is there.
fn check_backed_up(
    control: &ControlPlane,
    policy: &Policy,
    last: &Recorded,
    by: By,
    what: &str,
) -> Result<(), OperationError> {
    let holdings = control.repositories_of(policy, None)?.holdings(control, policy)?;
    let of_new = |commit: &crate::backup_set::Commit| {
        // A server restored from a copy of volumes has the identifier of the one before: what tells them apart is the time.
        commit.lineage.major == last.plan.to
            && Some(commit.lineage.system_identifier) == last.report.system_identifier
            && last.report.stopped_at.is_none_or(|stopped| commit.completed_at >= stopped)
    };
    let good = |held: &Held| of_new(&held.commit) && (by == By::Command || held.proof().is_some());
    if holdings.sets.iter().any(good) {
        return Ok(());
    }
    let (lacks, next) = match by {
        By::Command => ("a backup of the new server", format!("take one: pglife backup {}", policy.name)),
        By::Timer => ("a proven backup of the new server", format!("prove one: pglife drill {}", policy.name)),
    };
    Err(OperationError::new(Exit::Refused, format!("{what}: no repository has {lacks}"))
        .safe("nothing was touched: the old server is kept")
        .next(next))
}
