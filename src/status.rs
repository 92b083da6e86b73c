//! How the clusters are: plain snapshots that the command line, the page, the metrics and Consul show. Pure, but for [`look`],
//! which asks the world, and [`board`], where the daemon keeps the newest answer.

pub mod board;
mod coverage;
mod history;
mod look;
mod proof;
mod service;
mod verdict;

use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::backup_set::Kind;
use crate::cluster::{ClusterName, RepoName};
use crate::control::Held;
use crate::dependents::Dependent;
use crate::exit::Exit;
use crate::policy::freshness::{self, Level};
use crate::policy::{Policy, Schedule};
use crate::provision::kept::StillKept;
use crate::state::upgrades::UpgradeRecord;
use crate::state::{Operation, RunRecord, SeenDatabases};

pub use coverage::{CoverageStatus, UncoveredServer};
pub use history::{History, PastDrill, PastRun, PastSet, PastUpgrade, ToldOfUpgrade};
pub use look::{look, uncovered_servers};
pub use proof::{Disproven, ProofStatus, Proven};
pub use service::{Place, ServiceStatus};
pub use verdict::{Check, Verdict, of_servers, verdicts};

/// How one cluster is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its host.
    pub host: String,
    /// Its major.
    pub major: String,
    /// The database container's state, such as `healthy`, `exited`, `not created`; what is wrong where Docker does not say.
    pub server: String,
    /// Its dumps.
    #[serde(flatten)]
    pub dump: KindStatus,
    /// Its volume backups.
    pub volume: KindStatus,
    /// What of it is proven.
    pub proof: ProofStatus,
    /// Its repositories.
    pub repositories: Vec<RepositoryStatus>,
    /// Its last pruning.
    pub prune: Option<RunStatus>,
    /// Its last verification by the daemon.
    pub verify: Option<RunStatus>,
    /// The last rehearsal of an upgrade.
    pub rehearsal: Option<RunStatus>,
    /// The server that a drill of it keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<StillKept>,
    /// Which databases are in no backup; None where no run has looked yet.
    pub coverage: Option<CoverageStatus>,
    /// How it is registered in Consul; None where its policy does not ask for that.
    pub service: Option<ServiceStatus>,
    /// Who depends on it, in the order in which they come back.
    pub dependents: Vec<Dependent>,
    /// What of this could not be found out.
    pub problems: Vec<String>,
    /// What lies behind it. Shared, because whoever reads the board takes a copy.
    #[serde(skip)]
    pub history: Arc<History>,
}

impl ClusterStatus {
    /// Whether the database container runs, and is healthy where that is known.
    pub fn is_up(&self) -> bool {
        is_up(&self.server)
    }

    /// The same at a later time: nothing is looked at again, but a backup grows older.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Self {
        let mut later = self.clone();
        for kind in [&mut later.dump, &mut later.volume] {
            let Some(limits) = kind.limits.map(LimitsStatus::limits) else { continue };
            let judged = judge(kind.last_known_at, limits.as_ref(), kind.unreadable.is_some(), now);
            kind.freshness = Some(judged.level.as_str().to_owned());
            kind.freshness_text = Some(judged.text);
        }
        if let Some(limits) = later.proof.limits.and_then(LimitsStatus::limits) {
            let judged = proof::judge(later.proof.last_proven.as_ref(), &limits, later.proof.unreadable.is_some(), now);
            later.proof.freshness = Some(judged.level.as_str().to_owned());
            later.proof.freshness_text = Some(judged.text);
        }
        later
    }
}

/// How the backups of one kind are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KindStatus {
    /// The newest committed set.
    pub last_backup: Option<LastBackup>,
    /// `ok`, `warn`, `critical`; None where the policy has no limits.
    pub freshness: Option<String>,
    /// Why, in stable words.
    pub freshness_text: Option<String>,
    /// Committed sets in the repositories.
    pub backups: usize,
    /// The last backup run: when it began.
    pub last_attempt_at: Option<Timestamp>,
    /// How it ended: `ok`, `warnings`, `failed`, `running`.
    pub last_attempt: Option<&'static str>,
    /// What it said.
    pub last_message: String,
    /// Backup runs that failed since the last one that did not.
    pub failures_since_success: usize,
    /// When the next one is due.
    pub next_run_at: Option<Timestamp>,
    /// The policy's limits for its age.
    pub limits: Option<LimitsStatus>,
    /// When the newest set was complete, as far as is known: where no repository can be read, from the record of runs.
    pub last_known_at: Option<Timestamp>,
    /// Why the sets could not be read; None: they were.
    pub unreadable: Option<String>,
}

/// The ages at which a backup becomes worrying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LimitsStatus {
    /// Worth a warning.
    pub warn_seconds: u64,
    /// Must not be.
    pub critical_seconds: u64,
}

impl LimitsStatus {
    fn of(limits: &freshness::Limits) -> Self {
        Self { warn_seconds: limits.warn().as_secs(), critical_seconds: limits.critical().as_secs() }
    }

    fn limits(self) -> Option<freshness::Limits> {
        let seconds = crate::policy::Duration::from_secs;
        freshness::Limits::new(seconds(self.warn_seconds), seconds(self.critical_seconds))
    }
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunStatus {
    /// When it began.
    pub at: Timestamp,
    /// `ok`, `warnings`, `failed`, `running`.
    pub result: &'static str,
    /// What it said.
    pub message: String,
}

/// How a repository of a cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RepositoryStatus {
    /// Its name.
    pub name: RepoName,
    /// Why it cannot be used; None: it can.
    pub problem: Option<String>,
    /// Free space, where it is a folder.
    pub free_bytes: Option<u64>,
    /// Committed sets of this cluster in it.
    pub backups: usize,
}

/// The newest committed set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LastBackup {
    /// Its id.
    pub set: String,
    /// When it was complete.
    pub completed_at: Timestamp,
    /// Bytes before the codec.
    pub plain_bytes: u64,
    /// Bytes in the repository.
    pub stored_bytes: u64,
    /// Pages in it that were damaged on the disk: it is suspect.
    pub damaged_pages: u64,
}

/// What was found about a cluster, each part on its own: what cannot be found out is a problem, not the end.
#[derive(Debug)]
pub struct Findings<'a> {
    /// State of the database container.
    pub server: Result<String, String>,
    /// The server that a drill of it keeps.
    pub kept: Option<StillKept>,
    /// Where clients reach it.
    pub place: Option<Place>,
    /// Committed sets, in any order.
    pub sets: Result<&'a [Held], String>,
    /// The last runs on the cluster, newest first.
    pub runs: &'a [RunRecord],
    /// Runs among them whose process is gone.
    pub dead: &'a [String],
    /// Its repositories.
    pub repositories: Vec<RepositoryStatus>,
    /// The databases that a run saw last.
    pub databases: Option<SeenDatabases>,
    /// Who depends on it.
    pub dependents: Result<Vec<Dependent>, String>,
    /// Its last upgrade.
    pub upgrade: Option<UpgradeRecord>,
}

/// Makes the snapshot of one cluster.
pub fn of_cluster(policy: &Policy, findings: &Findings<'_>, now: Timestamp) -> ClusterStatus {
    let mut problems = Vec::new();
    let server = findings.server.clone().unwrap_or_else(|problem| {
        problems.push(problem);
        "unknown".to_owned()
    });
    if let Err(problem) = &findings.sets {
        problems.push(problem.clone());
    }
    let dependents = findings.dependents.clone().unwrap_or_else(|problem| {
        // A host that is down is told once.
        problems.extend(findings.server.is_ok().then_some(problem));
        vec![]
    });
    if let Some(open) = findings.upgrade.as_ref().filter(|upgrade| upgrade.is_open()) {
        problems.push(format!(
            "an upgrade or a restore in place is open, at {}; if no pglife works on it: pglife upgrade resume {}",
            open.step, policy.name
        ));
    }
    if policy.register && is_up(&server) && findings.place.is_none() {
        problems.push(format!(
            "it is not registered in Consul, because clients cannot reach it: port {} of container {} is not published, or \
             only on its own machine",
            policy.port, policy.container
        ));
    }
    let dump = Asked {
        kind: Kind::Dump,
        operation: Operation::Dump,
        limits: policy.dump_freshness.as_ref(),
        schedule: policy.dump.schedule.as_ref(),
    };
    let volume = Asked {
        kind: Kind::Volume,
        operation: Operation::Volume,
        limits: policy.volume_freshness.as_ref(),
        schedule: policy.volume.schedule.as_ref(),
    };
    ClusterStatus {
        cluster: policy.name.clone(),
        host: policy.host.to_string(),
        major: policy.major.to_string(),
        server,
        dump: of_kind(&dump, findings, now),
        volume: of_kind(&volume, findings, now),
        proof: proof::of_cluster(policy, findings, now),
        repositories: findings.repositories.clone(),
        kept: findings.kept.clone(),
        prune: last_of(Operation::Prune, findings),
        verify: last_of(Operation::Verify, findings),
        rehearsal: last_of(Operation::Rehearsal, findings),
        coverage: findings.databases.as_ref().map(|seen| coverage::of_cluster(policy, seen)),
        service: policy.register.then(|| ServiceStatus { place: findings.place.clone() }),
        dependents,
        problems,
        history: Arc::new(history::of_cluster(findings)),
    }
}

fn is_up(server: &str) -> bool {
    matches!(server, "healthy" | "running")
}

/// What the policy says of one kind.
struct Asked<'a> {
    kind: Kind,
    operation: Operation,
    limits: Option<&'a freshness::Limits>,
    schedule: Option<&'a Schedule>,
}

fn of_kind(asked: &Asked<'_>, findings: &Findings<'_>, now: Timestamp) -> KindStatus {
    let sets = || {
        findings.sets.iter().flat_map(|sets| sets.iter().map(|held| &held.commit)).filter(|set| set.kind == asked.kind)
    };
    let newest = sets().max_by_key(|set| set.completed_at);
    let attempts: Vec<&RunRecord> = findings.runs.iter().filter(|run| run.operation == asked.operation).collect();
    let ended = |run: &RunRecord| how_it_ended(run, findings.dead);
    // Where no repository can be read, what the runs said at their end is the best there is.
    let recorded = || attempts.iter().filter(|run| run.set.is_some()).filter_map(|run| run.ended_at).max();
    let unreadable = findings.sets.as_ref().err().cloned();
    let last_known_at = match unreadable {
        None => newest.map(|set| set.completed_at),
        Some(_) => recorded(),
    };
    let judged = asked.limits.map(|limits| judge(last_known_at, Some(limits), unreadable.is_some(), now));
    let failures_since_success =
        attempts.iter().filter(|run| ended(run) != "running").take_while(|run| ended(run) == "failed").count();
    KindStatus {
        last_backup: newest.map(|set| LastBackup {
            set: set.set.to_string(),
            completed_at: set.completed_at,
            plain_bytes: set.plain_bytes,
            stored_bytes: set.stored_bytes,
            damaged_pages: set.damaged_pages,
        }),
        freshness: judged.as_ref().map(|judged| judged.level.as_str().to_owned()),
        freshness_text: judged.map(|judged| judged.text),
        backups: sets().count(),
        last_attempt_at: attempts.first().map(|run| run.started_at),
        last_attempt: attempts.first().map(|run| ended(run)),
        last_message: attempts.first().map(|run| said(run, findings.dead)).unwrap_or_default(),
        failures_since_success,
        next_run_at: asked.schedule.and_then(|schedule| schedule.next_after(now)).map(|slot| slot.start),
        limits: asked.limits.map(LimitsStatus::of),
        last_known_at,
        unreadable,
    }
}

/// The freshness of a backup; one that cannot be seen at the moment is never simply fresh.
fn judge(
    last: Option<Timestamp>,
    limits: Option<&freshness::Limits>,
    unseen: bool,
    now: Timestamp,
) -> freshness::Freshness {
    let judged = freshness::evaluate(last, limits, now);
    if !unseen {
        return judged;
    }
    let text = match last {
        None => "no backup is known, and no repository can be read".to_owned(),
        Some(_) => format!("{}; that is from the record of runs, no repository can be read", judged.text),
    };
    freshness::Freshness { level: judged.level.max(Level::Warn), text }
}

fn how_it_ended(run: &RunRecord, dead: &[String]) -> &'static str {
    match (run.exit, dead.contains(&run.run)) {
        (None, false) => "running",
        (Some(code), _) if code == Exit::Ok.code() => "ok",
        (Some(code), _) if code == Exit::Warnings.code() => "warnings",
        (Some(_), _) | (None, true) => "failed",
    }
}

fn last_of(operation: Operation, findings: &Findings<'_>) -> Option<RunStatus> {
    findings.runs.iter().find(|run| run.operation == operation).map(|run| RunStatus {
        at: run.started_at,
        result: how_it_ended(run, findings.dead),
        message: said(run, findings.dead),
    })
}

/// What a run said at its end; one that died said nothing.
fn said(run: &RunRecord, dead: &[String]) -> String {
    if run.exit.is_none() && dead.contains(&run.run) {
        return "the process died; the next run removes what it left".to_owned();
    }
    run.message.clone()
}

#[cfg(test)]
impl Findings<'_> {
    /// Everything answered, and nothing was there.
    pub(crate) fn nothing() -> Self {
        Self {
            server: Ok("healthy".to_owned()),
            kept: None,
            place: None,
            sets: Ok(&[]),
            runs: &[],
            dead: &[],
            repositories: vec![],
            databases: None,
            dependents: Ok(vec![]),
            upgrade: None,
        }
    }
}

#[cfg(test)]
impl ClusterStatus {
    /// A cluster that serves and of which nothing else is known.
    pub(crate) fn example() -> Self {
        Self {
            cluster: "chado".parse().expect("a name"),
            host: "local".to_owned(),
            major: "17".to_owned(),
            server: "healthy".to_owned(),
            dump: KindStatus::default(),
            volume: KindStatus::default(),
            proof: ProofStatus::default(),
            repositories: vec![],
            prune: None,
            verify: None,
            rehearsal: None,
            kept: None,
            coverage: None,
            service: None,
            dependents: vec![],
            problems: vec![],
            history: Arc::default(),
        }
    }
}
