//! What a scheduled run does, from its start to what is told of it.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::backup;
use crate::backup_set::{Kind, Selector};
use crate::cluster::{ClusterName, RepoName};
use crate::control::{ControlPlane, OperationError, Tick};
use crate::drill::{self, DrillRequest, Judgement};
use crate::exit::Exit;
use crate::policy::{Policy, Task};
use crate::prune::{self, Outcome as Pruned};
use crate::state::Fired;
use crate::status::board::{Board, Running};
use crate::upgrade::journal::Phase;
use crate::upgrade::{self, By, Overdue};
use crate::verification;

/// A run that is to be done.
pub(super) struct Job {
    pub(super) control: Arc<ControlPlane>,
    pub(super) board: Arc<Board>,
    pub(super) policy: Policy,
    pub(super) task: Task,
    /// The slot it is of; None for what is not scheduled.
    pub(super) taken: Option<Taken>,
}

/// A slot that was taken, and is remembered.
#[derive(Debug)]
pub(super) struct Taken {
    /// When it was due.
    pub(super) slot: Timestamp,
    /// What was remembered before.
    pub(super) before: Fired,
}

/// As the log shows it.
pub(super) fn shown(taken: Option<&Taken>) -> String {
    taken.map_or_else(|| "-".to_owned(), |taken| taken.slot.to_string())
}

/// What came of it.
pub(super) struct Ended {
    pub(super) cluster: ClusterName,
    pub(super) task: Task,
    pub(super) outcome: Outcome,
    pub(super) taken: Option<Taken>,
    pub(super) seconds: f64,
}

pub(super) enum Outcome {
    /// Another run was there first; nothing was done.
    Busy,
    /// What was done, in order.
    Done(Vec<Report>),
}

/// One thing that was done, or not.
pub(super) struct Report {
    /// The kind of event: `backup.succeeded`. None where the operation has told it itself.
    pub(super) kind: Option<&'static str>,
    /// `ok`, `warnings` or `failed`; of a drill `proven`, `bad` or `unjudged`.
    pub(super) result: &'static str,
    pub(super) text: String,
    /// True for what was scheduled, false for what follows from it.
    pub(super) is_main: bool,
}

pub(super) async fn run(job: Job) -> Ended {
    let begun = Instant::now();
    let outcome = match job.task {
        Task::Dump => back_up(&job, Kind::Dump).await,
        Task::Volume => back_up(&job, Kind::Volume).await,
        Task::Drill => {
            let backup = Selector::LatestUnproven;
            drill(&job, DrillRequest { backup, repository: None, identity: None, major: None }).await
        }
        Task::Rehearsal => rehearse(&job).await,
        Task::Verify => verify(&job).await,
        Task::Upgrade => see_to_upgrade(&job).await,
    };
    let Job { policy, task, taken, .. } = job;
    Ended { cluster: policy.name, task, outcome, taken, seconds: begun.elapsed().as_secs_f64() }
}

async fn back_up(job: &Job, kind: Kind) -> Outcome {
    let taken = backup::take(&job.control, &job.policy, kind, None, &|tick| show(job, tick)).await;
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) if error.exit == Exit::LockBusy => return Outcome::Busy,
        Err(error) => return Outcome::Done(vec![failure("backup.failed", &error)]),
    };
    let (event, result) = match taken.exit {
        Exit::Ok => ("backup.succeeded", "ok"),
        Exit::Warnings => ("backup.succeeded", "warnings"),
        _ => ("backup.failed", "failed"),
    };
    let mut text = format!("{} {}", taken.commit.kind, taken.commit.set);
    for warning in &taken.warnings {
        text.push_str("; ");
        text.push_str(warning);
    }
    let mut reports = vec![Report { kind: Some(event), result, text, is_main: true }];
    if taken.exit != Exit::Failed && job.policy.retention.is_some() {
        // Each repository by itself: one that is away, or takes nothing back, keeps nobody from the others.
        for repository in &job.policy.dump.repositories {
            reports.extend(prune_one(job, repository).await);
        }
    }
    Outcome::Done(reports)
}

/// Prunes one repository after a backup; whatever comes of it, the backup is taken.
async fn prune_one(job: &Job, repository: &RepoName) -> Option<Report> {
    show(job, Tick::Step(format!("pruning {repository}")));
    let result = match prune::prune(&job.control, &job.policy, Some(repository)).await {
        Ok(result) => result,
        Err(error) => return Some(Report { is_main: false, ..failure("prune.failed", &error) }),
    };
    if let Some(error) = &result.failure {
        return Some(Report { is_main: false, ..failure("prune.failed", error) });
    }
    let outcomes = || result.pruned.iter().flat_map(|pruned| &pruned.outcomes);
    let deleted = outcomes().filter(|outcome| matches!(outcome, Pruned::Deleted)).count();
    let locked = outcomes().filter(|outcome| matches!(outcome, Pruned::Locked(_) | Pruned::PartlyLocked(_))).count();
    let unreadable = result.pruned.iter().map(|pruned| pruned.plan.unreadable.len()).sum::<usize>();
    if deleted + locked + unreadable == 0 {
        return None;
    }
    let mut text = format!("repository \"{repository}\": {deleted} backups deleted");
    if locked > 0 {
        text.push_str(&format!(", {locked} locked by the repository until a later date"));
    }
    if unreadable > 0 {
        text.push_str(&format!(", {unreadable} left alone because they cannot be read"));
    }
    let (kind, result) = if locked + unreadable > 0 { ("prune.warned", "warnings") } else { ("prune.done", "ok") };
    Some(Report { kind: Some(kind), result, text, is_main: false })
}

/// Restores the newest dump into the major that the policy names.
async fn rehearse(job: &Job) -> Outcome {
    let Some(wanted) = &job.policy.rehearsal else { return Outcome::Done(vec![]) };
    let backup = Selector::Latest(Some(Kind::Dump));
    drill(job, DrillRequest { backup, repository: None, identity: None, major: Some(wanted.to) }).await
}

/// Restores a backup into a throwaway server and compares; the drill tells of it itself.
async fn drill(job: &Job, request: DrillRequest) -> Outcome {
    let drilled = Box::pin(drill::drill(&job.control, &job.policy, &request, &|tick| show(job, tick))).await;
    let (result, text) = match drilled {
        // A command drills, or keeps a server of a drill.
        Err(error) if error.exit == Exit::LockBusy => return Outcome::Busy,
        Err(error) => {
            tracing::error!("{}", error.chain());
            ("unjudged", error.chain())
        }
        Ok(drilled) => {
            let result = match drilled.judgement {
                Judgement::Proven => "proven",
                Judgement::Bad => "bad",
                Judgement::Unknown(_) => "unjudged",
            };
            (result, drilled.summary())
        }
    };
    Outcome::Done(vec![Report { kind: None, result, text, is_main: true }])
}

/// Reads the day's share of the backups.
async fn verify(job: &Job) -> Outcome {
    let (control, policy) = (&job.control, &job.policy);
    let Some(wanted) = &policy.verify else { return Outcome::Done(vec![]) };
    let day = wanted.timezone.show(Timestamp::now()).date();
    let verified = verification::verify_sample(control, policy, wanted.sample, day, &|tick| show(job, tick)).await;
    let report = match verified {
        Err(error) => failure("verify.failed", &error),
        Ok(sampled) if sampled.damage.is_empty() => Report {
            kind: Some("verify.done"),
            result: "ok",
            text: format!("{} copies of backups are what was written", sampled.looked_at),
            is_main: true,
        },
        Ok(sampled) => Report {
            kind: Some("verify.damaged"),
            result: "failed",
            text: format!("{}; next: pglife backups verify {}", sampled.damage.join("; "), policy.name),
            is_main: true,
        },
    };
    Outcome::Done(vec![report])
}

/// The event where the old server's time is over, and it stays for a reason.
pub(super) const KEPT: &str = "upgrade.kept";

/// Carries an upgrade that was cut to its end, or lets go of the server before it.
async fn see_to_upgrade(job: &Job) -> Outcome {
    let (control, policy) = (&job.control, &job.policy);
    let overdue = match upgrade::last(control, &policy.name) {
        Ok(last) => last.and_then(|last| upgrade::overdue(policy, &last, Timestamp::now())),
        Err(error) => return Outcome::Done(vec![failure("upgrade.failed", &error)]),
    };
    let done = match overdue {
        // Somebody was quicker.
        None => return Outcome::Busy,
        Some(Overdue::Resume) => Box::pin(upgrade::resume(control, policy, &|tick| show(job, tick))).await,
        Some(Overdue::Finalize) => upgrade::finalize(control, policy, By::Timer).await,
    };
    let report = match done {
        Err(error) if error.exit == Exit::LockBusy => return Outcome::Busy,
        Err(error) if error.exit == Exit::Refused => Report { result: "warnings", ..failure(KEPT, &error) },
        Err(error) => failure("upgrade.failed", &error),
        Ok(done) => {
            let plan = &done.recorded.plan;
            let (kind, said) = match done.recorded.phase {
                Phase::AsBefore => ("upgrade.undone", "was cut, and was undone: the cluster is as before"),
                Phase::Finalized => ("upgrade.finalized", "is final: the server before it was removed"),
                _ => ("upgrade.resumed", "was cut, and was carried to its end: the new server serves"),
            };
            let mut text = format!("the {plan} {said}");
            for warning in &done.warnings {
                text.push_str("; ");
                text.push_str(warning);
            }
            let result = if done.warnings.is_empty() { "ok" } else { "warnings" };
            Report { kind: Some(kind), result, text, is_main: true }
        }
    };
    Outcome::Done(vec![report])
}

fn failure(kind: &'static str, error: &OperationError) -> Report {
    let mut text = error.chain();
    if let Some(next) = &error.next {
        text.push_str("; next: ");
        text.push_str(next);
    }
    tracing::error!("{text}");
    Report { kind: Some(kind), result: "failed", text, is_main: true }
}

/// Shows on the board how far the run is.
fn show(job: &Job, tick: Tick) {
    job.board.change(|snapshot| {
        let is_this = |running: &&mut Running| running.cluster == job.policy.name && running.task == job.task.as_str();
        let Some(running) = snapshot.running.iter_mut().find(is_this) else { return };
        match tick {
            Tick::Step(step) => {
                running.step = step;
                (running.plain_bytes, running.stored_bytes, running.expected_bytes) = (0, 0, None);
            }
            Tick::Bytes { plain, stored, expected } => {
                (running.plain_bytes, running.stored_bytes, running.expected_bytes) = (plain, stored, expected);
            }
            Tick::Warning(text) => tracing::warn!(cluster = %job.policy.name, "{text}"),
        }
    });
}
