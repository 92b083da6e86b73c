//! What a cluster has behind it: its backups and what drills found of them, its runs, its last upgrade. Pure.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Findings, how_it_ended, proof, said};
use crate::backup_set::Kind;
use crate::backup_set::certificate::Verdict;
use crate::cluster::RepoName;
use crate::control::Held;
use crate::state::{Operation, RunRecord};

/// So many of the newest backups are told.
const SETS: usize = 400;

/// What a cluster has behind it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct History {
    /// Committed sets, oldest first.
    pub sets: Vec<PastSet>,
    /// Runs, newest first.
    pub runs: Vec<PastRun>,
    /// The last upgrade.
    pub upgrade: Option<PastUpgrade>,
}

/// A committed set.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PastSet {
    /// Its id.
    pub set: String,
    /// What it holds.
    pub kind: Kind,
    /// When it was complete.
    pub completed_at: Timestamp,
    /// Bytes before the codec.
    pub plain_bytes: u64,
    /// Bytes in one repository.
    pub stored_bytes: u64,
    /// The repositories that hold it.
    pub repositories: Vec<RepoName>,
    /// What the last drill of it found.
    pub drill: Option<PastDrill>,
}

/// The last drill of a set, as its certificate tells.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PastDrill {
    /// `proven` or `bad`.
    pub verdict: Verdict,
    /// When it ended.
    pub at: Timestamp,
    /// How long the restore took, in seconds.
    pub rto_seconds: f64,
    /// The checks that found something.
    pub red: Vec<String>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PastRun {
    /// What it did.
    pub operation: Operation,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in seconds; None where it lives or died.
    pub seconds: Option<f64>,
    /// `ok`, `warnings`, `failed`, `running`; of a drill `proven`, `bad`, `unjudged`, `running`.
    pub result: &'static str,
    /// What it said.
    pub message: String,
}

/// The last upgrade, as the journal has it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PastUpgrade {
    /// It must still be carried to an end.
    pub is_open: bool,
    /// How far it is, in the journal's word.
    pub phase: String,
    /// The step begun last.
    pub step: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When the journal was last written.
    pub updated_at: Timestamp,
    /// What of its plan and its report is told.
    #[serde(flatten)]
    pub told: ToldOfUpgrade,
}

/// Some words of the plan and of the report, which have their home above this room.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ToldOfUpgrade {
    /// The major it left.
    pub from: String,
    /// The major it goes to.
    pub to: String,
    /// How the data go over.
    pub method: String,
    /// The steps that were done, and how long each took, in seconds.
    #[serde(rename = "seconds")]
    pub steps: Vec<(String, f64)>,
    /// Why it was undone.
    pub failure: Option<String>,
    /// What is left for the operator to do.
    pub left_to_do: Vec<String>,
}

impl ToldOfUpgrade {
    /// Of the plan and the report, as JSON; what is missing there is empty here.
    fn of(plan: &str, report: &str) -> Self {
        let read = |text: &str| serde_json::from_str::<Self>(text).unwrap_or_default();
        let (plan, report) = (read(plan), read(report));
        Self { from: plan.from, to: plan.to, method: plan.method, ..report }
    }
}

/// Tells what was found.
pub(super) fn of_cluster(findings: &Findings<'_>) -> History {
    let sets: &[Held] = findings.sets.as_ref().map_or(&[], |sets| sets);
    History {
        sets: sets[sets.len().saturating_sub(SETS)..].iter().map(past_set).collect(),
        runs: findings.runs.iter().map(|run| past_run(run, findings.dead)).collect(),
        upgrade: findings.upgrade.as_ref().map(|upgrade| PastUpgrade {
            is_open: upgrade.is_open(),
            phase: upgrade.phase.clone(),
            step: upgrade.step.clone(),
            started_at: upgrade.started_at,
            updated_at: upgrade.updated_at,
            told: ToldOfUpgrade::of(&upgrade.plan, &upgrade.report),
        }),
    }
}

fn past_set(held: &Held) -> PastSet {
    let drill = held.judged.as_ref().map(|certificate| PastDrill {
        verdict: certificate.verdict,
        at: certificate.ended_at,
        rto_seconds: certificate.rto_seconds,
        red: certificate.red().map(|check| check.name.clone()).collect(),
    });
    PastSet {
        set: held.commit.set.to_string(),
        kind: held.commit.kind,
        completed_at: held.commit.completed_at,
        plain_bytes: held.commit.plain_bytes,
        stored_bytes: held.commit.stored_bytes,
        repositories: held.repositories.clone(),
        drill,
    }
}

fn past_run(run: &RunRecord, dead: &[String]) -> PastRun {
    let result = if run.operation == Operation::Drill { proof::came_to(run, dead) } else { how_it_ended(run, dead) };
    PastRun {
        operation: run.operation,
        started_at: run.started_at,
        seconds: run.ended_at.map(|end| end.duration_since(run.started_at).as_secs_f64()),
        result,
        message: said(run, dead),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::UpgradeMethod;
    use crate::upgrade::Report;

    #[test]
    fn the_words_of_the_journal_are_understood() {
        let report = Report {
            seconds: vec![("stop".to_owned(), 1.5)],
            failure: Some("the disk is full".to_owned()),
            left_to_do: vec!["reindex".to_owned()],
            ..Report::default()
        };
        let plan = serde_json::json!({ "version": 1, "from": "9.6", "to": "18", "method": UpgradeMethod::PgUpgrade });
        let told = ToldOfUpgrade::of(&plan.to_string(), &serde_json::to_string(&report).expect("JSON"));
        assert_eq!((told.from.as_str(), told.to.as_str(), told.method.as_str()), ("9.6", "18", "pg_upgrade"));
        assert_eq!((told.steps, told.failure, told.left_to_do), (report.seconds, report.failure, report.left_to_do));
        assert_eq!(ToldOfUpgrade::of("rubbish", ""), ToldOfUpgrade::default());
    }
}
