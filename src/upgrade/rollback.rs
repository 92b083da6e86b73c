//! The way back from the new server to the old one, for an operator who wants it.
//!
//! ```text
//! look while it serves: did anybody write? ─ yes, not accepted ─▶ refused, nothing touched
//!   ─▶ journal: committed (cut here, it goes forward) ─▶ new server stopped ─▶ control file: did anybody write meanwhile?
//!       ├─ nobody ─────────────▶ journal: undoing ─▶ the old server serves
//!       ├─ somebody, or the server itself ─▶ looked at again, where nobody finds it ─▶ nobody, or yes
//!       ├─ yes, not accepted ──▶ the new server serves again, refused
//!       └─ yes, accepted ──────▶ journal: undoing, keep the new volume ─▶ backup of the new server, where nobody finds it
//!                                  ├─ taken ──▶ the volume goes  ─▶ the old server serves
//!                                  └─ failed ─▶ the volume stays ─▶ the old server serves
//! ```
//!
//! What was written to the new server is never lost: it is in a backup, or in a volume that stays.

use super::content;
use super::drive::Scene;
use super::journal::{Goal, Phase};
use super::plan::Trial;
use super::record::{Recorded, require_last};
use super::writes::written;
use super::{Upgraded, go_back, needs_operator};
use crate::backup;
use crate::backup_set::SetId;
use crate::cluster::DatabaseName;
use crate::control::{ControlPlane, OperationError, Progress, failed};
use crate::docker::Container;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::provision;
use crate::state::Operation;
use crate::worker::{Event, Request};

/// Changes that are told; more say nothing more.
const MOST_CHANGES: usize = 20;

/// Goes back to the old server: by itself where nobody wrote to the new one, else only if `accept_data_loss` says so.
pub async fn rollback(
    control: &ControlPlane,
    policy: &Policy,
    accept_data_loss: bool,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("rollback of the {} did not begin", require_last(control, &policy.name)?.plan);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        let last = require_last(control, &policy.name)?;
        let mut scene = Scene::new(control, &run, &engine, policy, &last.plan, last.id.clone(), progress).called(&what);
        scene.report = last.report.clone();
        let mut warnings = Vec::new();
        match last.phase {
            Phase::Open | Phase::Undoing => {}
            Phase::Committed | Phase::Upgraded => {
                let left = match leave_new_server(&mut scene, &last, accept_data_loss).await {
                    Ok(left) => left,
                    Err(error) => {
                        scene.reopen(true).await.into_iter().for_each(|trouble| tracing::warn!("{trouble}"));
                        return Err(error);
                    }
                };
                if left == Left::Written {
                    warnings.push(rescue(&mut scene).await.map_err(|error| needs_operator(error, policy))?);
                }
            }
            Phase::AsBefore | Phase::Finalized => {
                return Err(OperationError::new(
                    Exit::NotFound,
                    format!("{what}: there is nothing to go back from (it is {})", last.phase.as_str()),
                )
                .safe("nothing was touched"));
            }
        }
        go_back(&mut scene).await.map_err(|error| needs_operator(error, policy))?;
        Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings })
    }
    .await;
    run.end(ended, |done| {
        let exit = if done.recorded.report.keep_new_volume { Exit::Warnings } else { Exit::Ok };
        (exit, "rolled back".to_owned(), None)
    })
    .await
}

/// What the new server is left with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing that the old one does not have.
    Untouched,
    /// Something that was written to it.
    Written,
}

/// What is known of writes while the server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Nobody wrote before this transaction id.
    Nothing { next: u64 },
    /// Somebody did, and what came of it.
    Something(String),
    /// That cannot be told.
    Unknown(String),
}

/// Stops the new server, if it may be left: nobody wrote to it, or that is accepted.
async fn leave_new_server(scene: &mut Scene<'_>, last: &Recorded, accepted: bool) -> Result<Left, OperationError> {
    let serving = scene.new_container().await?.filter(|container| container.running);
    let seen = match (&serving, last.report.next_transaction) {
        (_, None) => {
            Seen::Unknown("an earlier pglife committed the upgrade, and noted nothing to compare with".to_owned())
        }
        (None, Some(next)) => Seen::Nothing { next },
        (Some(container), Some(at_commit)) => {
            let clients = if accepted { Clients::MayHaveWritten } else { Clients::Enter };
            look(scene, &scene.new_policy(), container, at_commit, clients).await
        }
    };
    let expected = match seen {
        Seen::Nothing { next } => Some(next),
        Seen::Something(_) | Seen::Unknown(_) if accepted => None,
        Seen::Something(words) => return Err(refused(scene, last, &words).safe("nothing was touched")),
        Seen::Unknown(why) => {
            let words = format!("whether anybody wrote to the new server cannot be told: {why}");
            return Err(refused(scene, last, &words).safe("nothing was touched"));
        }
    };
    // Cut after this, a resume has the new server serve again.
    scene.phase(Phase::Committed)?;
    scene.close(&format!("rollback of the {}", scene.plan)).await?;
    let step = scene.step("leave-new-server")?;
    scene.stop_new().await?;
    let control = scene.control_file().await;
    scene.end(step);
    let untouched = match (&control, expected) {
        // After a crash the counter is only as new as the last checkpoint.
        (Ok(control), Some(expected)) => control.is_shut_down() && control.next_transaction == expected,
        _ => false,
    };
    if untouched {
        return Ok(Left::Untouched);
    }
    if accepted {
        return Ok(Left::Written);
    }
    let why = match control {
        // The server itself may have written meanwhile: autovacuum, for example. Nobody finds it now.
        Ok(control) if control.is_shut_down() => match look_again(scene, last).await {
            Ok(Seen::Nothing { .. }) => return Ok(Left::Untouched),
            Ok(Seen::Something(what)) => format!("somebody wrote to the new server while it was looked at: {what}"),
            Ok(Seen::Unknown(why)) => format!("whether somebody wrote meanwhile cannot be told: {why}"),
            Err(error) => format!("whether somebody wrote meanwhile cannot be told: {}", error.chain()),
        },
        Ok(control) => format!("the new server did not shut down in order ({}), so that nobody can say", control.state),
        Err(error) => format!("the new server's control file cannot be read: {}", error.chain()),
    };
    let error = refused(scene, last, &why);
    if serving.is_none() {
        return Err(error.safe("nothing was touched: the new server was not serving"));
    }
    scene.drive(Goal::Upgraded).await?;
    scene.check_serving().await?;
    scene.phase(last.phase)?;
    Err(error.safe("the new server serves again"))
}

fn refused(scene: &Scene<'_>, last: &Recorded, why: &str) -> OperationError {
    let since = last.report.serving_at.map_or_else(|| "the commit".to_owned(), |at| at.to_string());
    OperationError::new(
        Exit::Refused,
        format!("{}: the old server has nothing of what was written since {since}; {why}", scene.what()),
    )
    .next(format!(
        "if that may be lost to it: pglife upgrade rollback {} --accept-data-loss; a backup of the new server is taken \
         first, and where that fails its volume stays",
        scene.plan.cluster
    ))
}

/// Looks at the new server once more, where no client finds it.
async fn look_again(scene: &mut Scene<'_>, last: &Recorded) -> Result<Seen, OperationError> {
    let (Some(at_commit), Some(_)) = (last.report.next_transaction, content::kept(scene)) else {
        return Ok(Seen::Unknown("what it held at the commit is not known".to_owned()));
    };
    let step = scene.step("look-again")?;
    let container = scene.start_trial(Trial::Proof).await?;
    let policy = scene.fenced_policy();
    scene.answer(&policy, &container, &scene.new_image().await?, provision::FIRST_START_SECONDS).await?;
    let seen = look(scene, &policy, &container, at_commit, Clients::Out).await;
    scene.remove_trial(Trial::Proof).await?;
    scene.end(step);
    Ok(seen)
}

/// The clients of the server that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    /// They enter it.
    Enter,
    /// They enter it, and what they wrote may be left.
    MayHaveWritten,
    /// They do not find it: only the server itself can write.
    Out,
}

/// Looks at the server in `container`, which runs. What it says is only told, so every error is an answer.
async fn look(scene: &Scene<'_>, policy: &Policy, container: &Container, at_commit: u64, clients: Clients) -> Seen {
    let (databases, next, writing) = match transactions(scene, policy, container).await {
        Ok(found) => found,
        Err(error) => return Seen::Unknown(error.chain()),
    };
    let writing = writing && clients != Clients::Out;
    if next == at_commit && !writing {
        return Seen::Nothing { next };
    }
    if clients == Clients::MayHaveWritten {
        return Seen::Something("the new server wrote".to_owned());
    }
    if writing {
        return Seen::Something("transactions write to the new server just now".to_owned());
    }
    let Some(then) = content::kept(scene) else {
        let count = next - at_commit;
        return Seen::Unknown(format!("what it held at the commit is not known, and {count} transactions wrote"));
    };
    scene.say("comparing the new server with what it held at the commit");
    let facts = async {
        let image = scene.new_image().await?;
        content::facts_of(scene, policy, container, &image, &databases, Some(&then)).await
    };
    match facts.await {
        Ok(now) => match written(&then, &now) {
            // The server itself wrote, statistics of a table for example.
            changes if changes.is_empty() => Seen::Nothing { next },
            mut changes => {
                let more = changes.len().saturating_sub(MOST_CHANGES);
                changes.truncate(MOST_CHANGES);
                if more > 0 {
                    changes.push(format!("… and {more} more"));
                }
                let list = changes.iter().map(|change| format!("\n  - {change}")).collect::<Vec<_>>().concat();
                Seen::Something(format!("what changed:{list}"))
            }
        },
        Err(error) => Seen::Unknown(error.chain()),
    }
}

/// The databases of the server in `container`, how far its transactions are, and whether some write just now. No wait for one that
/// is starting.
async fn transactions(
    scene: &Scene<'_>,
    policy: &Policy,
    container: &Container,
) -> Result<(Vec<DatabaseName>, u64, bool), OperationError> {
    let image = scene.new_image().await?;
    let (session, profile) = scene.enter(policy, container, &image, vec![], 10).await?;
    let (login, _) = scene.control.login(policy, container)?;
    let counted = |event| match event {
        Event::Transactions { next, writing } => Some((next, writing)),
        _ => None,
    };
    let request = Request::CountTransactions { login };
    let (next, writing) = scene.control.ask(session, &request, scene.what(), counted).await?;
    Ok((profile.connectable(), next, writing))
}

/// Sees to it that what was written to the new server stays: in a backup, else in its volume. Says where it is.
async fn rescue(scene: &mut Scene<'_>) -> Result<String, OperationError> {
    // Cut after this, the way goes back, and the volume stays.
    scene.report.keep_new_volume = true;
    scene.phase(Phase::Undoing)?;
    let step = scene.step("rescue")?;
    let taken = back_up(scene).await;
    if scene.control.cancel.is_cancelled() {
        return Err(OperationError::new(Exit::Interrupted, format!("{}: stopped on request", scene.what())));
    }
    scene.remove_trial(Trial::Proof).await?;
    let words = match taken {
        Ok(set) => {
            scene.report.keep_new_volume = false;
            format!("what was written to the new server is in backup {set}")
        }
        Err(error) => {
            let plan = scene.plan;
            let remove = match plan.new_folder() {
                Some(folder) => format!("rm -r {folder}; docker volume rm {}", plan.new_volume),
                None => format!("docker volume rm {}", plan.new_volume),
            };
            format!(
                "the new server could not be backed up ({}); its {} stays: look at it with {}, and when it is not needed any more: {remove}",
                error.chain(),
                plan.new_place(),
                plan.new_image.name
            )
        }
    };
    scene.end(step);
    scene.save_report()?;
    Ok(words)
}

/// A backup of the new server, where no client finds it.
async fn back_up(scene: &Scene<'_>) -> Result<SetId, OperationError> {
    scene.start_trial(Trial::Proof).await?;
    let policy = scene.fenced_policy();
    let container = scene.engine.require_container(&policy.container).await.map_err(scene.failed())?;
    let image = scene.new_image().await?;
    scene.answer(&policy, &container, &image, provision::FIRST_START_SECONDS).await?;
    let taken = backup::take_in_run(scene.control, scene.run, &policy, scene.engine, scene.progress).await?;
    if taken.repositories().next().is_none() {
        return Err(OperationError::new(Exit::Failed, taken.warnings.join("; ")));
    }
    Ok(taken.commit.set)
}
