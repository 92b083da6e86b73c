//! How far the backups of a cluster are proven, what drills came to, and how long a restore takes. Pure.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Findings, LimitsStatus, RunStatus, said};
use crate::backup_set::{Kind, RecoveryTime};
use crate::control::Held;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::freshness::{self, Freshness, Level};
use crate::state::{Operation, RunRecord};

/// How far the backups are proven.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct ProofStatus {
    /// The newest backup that a drill has proven.
    pub last_proven: Option<Proven>,
    /// `ok`, `warn`, `critical`, by the age of that backup; None where the policy has no limits.
    pub freshness: Option<String>,
    /// Why, in stable words.
    pub freshness_text: Option<String>,
    /// The policy's limits for that age.
    pub limits: Option<LimitsStatus>,
    /// Proven sets in the repositories.
    pub proven: usize,
    /// The newest backup that a drill found bad, as long as no newer one is proven.
    pub bad: Option<Disproven>,
    /// The last drill: its result is `proven`, `bad`, `unjudged` or `running`.
    pub last_drill: Option<RunStatus>,
    /// Drills since the last proof that proved nothing.
    pub failures_since_success: usize,
    /// When the daemon drills next.
    pub next_run_at: Option<Timestamp>,
    /// How long a restore takes, for each kind of backup of the newest history that is proven.
    pub recovery: Vec<RecoveryTime>,
    /// Why the sets could not be read; None: they were.
    pub unreadable: Option<String>,
}

/// A backup that a drill has proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Proven {
    /// Its id.
    pub set: String,
    /// When it was complete: what is proven is the data of that time.
    pub completed_at: Timestamp,
    /// When the drill proved it.
    pub proven_at: Timestamp,
    /// How long the restore took, in whole seconds.
    pub rto_seconds: u64,
}

/// A backup that a drill found bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Disproven {
    /// Its id.
    pub set: String,
    /// When it was complete.
    pub completed_at: Timestamp,
    /// When the drill found it bad.
    pub found_at: Timestamp,
}

/// What is known of the proofs of one cluster.
pub(super) fn of_cluster(policy: &Policy, findings: &Findings<'_>, now: Timestamp) -> ProofStatus {
    let sets: &[Held] = findings.sets.as_ref().map_or(&[], |sets| sets);
    let last_proven = sets.iter().filter_map(proven).max_by_key(|proven| proven.completed_at);
    let bad = sets.iter().filter_map(disproven).max_by_key(|bad| bad.completed_at);
    // What lies before a proven one will hardly be restored any more.
    let bad = bad.filter(|bad| last_proven.as_ref().is_none_or(|proven| proven.completed_at < bad.completed_at));
    let drills: Vec<&RunRecord> = findings.runs.iter().filter(|run| run.operation == Operation::Drill).collect();
    let came_to = |run: &RunRecord| came_to(run, findings.dead);
    let unreadable = findings.sets.as_ref().err().cloned();
    let judged =
        policy.drill_freshness.as_ref().map(|limits| judge(last_proven.as_ref(), limits, unreadable.is_some(), now));
    ProofStatus {
        freshness: judged.as_ref().map(|judged| judged.level.as_str().to_owned()),
        freshness_text: judged.map(|judged| judged.text),
        limits: policy.drill_freshness.as_ref().map(LimitsStatus::of),
        proven: sets.iter().filter(|held| held.proof().is_some()).count(),
        last_proven,
        bad,
        last_drill: drills.first().map(|run| RunStatus {
            at: run.started_at,
            result: came_to(run),
            message: said(run, findings.dead),
        }),
        failures_since_success: drills
            .iter()
            .map(|run| came_to(run))
            .filter(|came_to| *came_to != "running")
            .take_while(|came_to| *came_to != "proven")
            .count(),
        next_run_at: policy.drill.schedule.as_ref().and_then(|it| it.next_after(now)).map(|slot| slot.start),
        recovery: recovery(policy, sets),
        unreadable,
    }
}

/// Whether the newest proven backup is new enough. Where no repository can be read, nobody knows.
pub(super) fn judge(last: Option<&Proven>, limits: &freshness::Limits, unseen: bool, now: Timestamp) -> Freshness {
    if let Some(proven) = last {
        return freshness::evaluate(Some(proven.completed_at), Some(limits), now);
    }
    let level = if unseen { Level::Warn } else { Level::Critical };
    Freshness { level, text: nothing_proven(unseen).to_owned() }
}

/// What to say where no proven backup is known.
pub(super) fn nothing_proven(unseen: bool) -> &'static str {
    if unseen { "what is proven is not known, because no repository can be read" } else { "no backup is proven" }
}

fn proven(held: &Held) -> Option<Proven> {
    let proof = held.proof()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a restore")]
    let rto_seconds = proof.rto_seconds.max(0.0) as u64;
    Some(Proven {
        set: held.commit.set.to_string(),
        completed_at: held.commit.completed_at,
        proven_at: proof.ended_at,
        rto_seconds,
    })
}

fn disproven(held: &Held) -> Option<Disproven> {
    let found_at = held.disproof()?.ended_at;
    Some(Disproven { set: held.commit.set.to_string(), completed_at: held.commit.completed_at, found_at })
}

/// What a drill came to, by the exit code in its record.
pub(super) fn came_to(run: &RunRecord, dead: &[String]) -> &'static str {
    match run.exit {
        None if dead.contains(&run.run) => "unjudged",
        None => "running",
        Some(code) if code == Exit::Ok.code() || code == Exit::Warnings.code() => "proven",
        Some(code) if code == Exit::DrillFailed.code() => "bad",
        Some(_) => "unjudged",
    }
}

fn recovery(policy: &Policy, sets: &[Held]) -> Vec<RecoveryTime> {
    let Some(newest) = sets.iter().max_by_key(|held| held.commit.completed_at) else { return vec![] };
    let budget = policy.drill.rto_budget.map(|budget| budget.as_signed().as_secs_f64());
    let certificates = || sets.iter().filter_map(|held| held.judged.as_ref());
    let kinds = [Kind::Dump, Kind::Volume].into_iter();
    kinds.filter_map(|kind| RecoveryTime::measured(certificates(), newest.commit.lineage, kind, budget)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::certificate::{Certificate, Verdict, tests::example};
    use crate::backup_set::{Commit, example_manifest};
    use crate::policy::retention::Pinning;
    use crate::policy::{Duration, file};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A set that was complete at a second, and what its last drill found, when.
    fn held(completed_at: i64, judged: Option<(Verdict, i64)>) -> Held {
        let manifest = example_manifest();
        let commit = Commit {
            set: format!("20260101T000000Z-dump-{completed_at:06}").parse().expect("an id"),
            completed_at: at(completed_at),
            ..Commit::to_manifest(&manifest, &manifest.to_bytes())
        };
        let judged = judged.map(|(verdict, second)| Certificate {
            set: commit.set.clone(),
            lineage: commit.lineage,
            verdict,
            ended_at: at(second),
            ..example()
        });
        Held { commit, repositories: vec![], pin: Pinning::Absent, judged }
    }

    fn run(number: i64, exit: Option<Exit>) -> RunRecord {
        RunRecord {
            run: format!("r{number}"),
            cluster: "chado".parse().expect("a name"),
            operation: Operation::Drill,
            started_at: at(number),
            ended_at: exit.map(|_| at(number + 1)),
            exit: exit.map(Exit::code),
            message: "said".to_owned(),
            set: None,
        }
    }

    fn status(sets: &[Held], runs: &[RunRecord]) -> ProofStatus {
        let policy = file::example("[cluster]\nmajor = '17'\n[drill]\nschedule = '@daily'\nrto_budget = '10s'\n");
        let dead = ["r9".to_owned()];
        let findings = Findings { sets: Ok(sets), runs, dead: &dead, ..Findings::nothing() };
        of_cluster(&policy, &findings, at(0))
    }

    #[test]
    fn a_bad_backup_is_told_until_a_newer_one_is_proven() {
        let (proven, bad) = (Some((Verdict::Proven, 500)), Some((Verdict::Bad, 600)));
        let told = |sets: &[Held]| status(sets, &[]).bad.map(|bad| bad.completed_at.as_second());
        assert_eq!(told(&[held(100, proven), held(200, bad)]), Some(200));
        assert_eq!(told(&[held(100, proven), held(200, bad), held(300, None)]), Some(200));
        assert_eq!(told(&[held(100, proven), held(200, bad), held(300, proven)]), None);
        // A proof of an older one does not make it good, however late it came.
        assert_eq!(told(&[held(100, Some((Verdict::Proven, 900))), held(200, bad)]), Some(200));
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_repository_that_is_away_is_no_reason_to_call_everything_unproven() {
        let limits = freshness::Limits::new(Duration::from_hours(1), Duration::from_hours(2)).expect("ordered");
        assert_eq!(judge(None, &limits, true, at(0)).level, Level::Warn);
        assert_eq!(judge(None, &limits, false, at(0)).level, Level::Critical);
    }

    #[test]
    fn drills_that_prove_nothing_are_counted() {
        let runs = [
            run(9, None),
            run(5, Some(Exit::Credentials)),
            run(4, Some(Exit::DrillFailed)),
            run(3, Some(Exit::Warnings)),
            run(2, Some(Exit::Failed)),
        ];
        let told = status(&[], &runs);
        assert_eq!(told.failures_since_success, 3);
        assert_eq!(told.last_drill.expect("one").result, "unjudged");
        let going = status(&[], &[run(10, None), run(4, Some(Exit::DrillFailed))]);
        assert_eq!((going.failures_since_success, going.last_drill.expect("one").result), (1, "running"));
        assert!(going.next_run_at.is_some());
    }

    #[test]
    fn the_time_of_a_restore_is_held_against_the_budget() {
        let told = status(&[held(100, Some((Verdict::Proven, 500)))], &[]);
        assert_eq!(told.recovery.len(), 1);
        assert_eq!((told.recovery[0].seconds, told.recovery[0].within_budget), (12.5, Some(false)));
    }
}
