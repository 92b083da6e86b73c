//! `pglife explain`: why a check says what it says, on what evidence, and what to do next.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, failed};
use crate::exit::Exit;
use crate::policy::freshness::Level;
use crate::state::{Operation, RunRecord};
use crate::status::{self, Check, ClusterStatus, KindStatus, Verdict, verdicts};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The check, as `pglife check` and Consul call it: `main dump`, `main-repo-offsite`, `pglife-backup-main-dump`
    #[arg(required = true, num_args = 1..=2, value_name = "CHECK")]
    check: Vec<String>,
}

/// Runs that are looked through for evidence.
const RUNS: u32 = 50;

/// The answer.
#[derive(Serialize)]
struct Explanation {
    cluster: ClusterName,
    #[serde(flatten)]
    verdict: Verdict,
    evidence: Vec<String>,
    next: Vec<String>,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let name = args.check.join("-");
    let (cluster, check) = find(&control, &name)?;
    let rows = status::look(&control, Some(&cluster), Timestamp::now()).await?;
    let found = rows.first().and_then(|row| {
        let of_name = verdicts(row).into_iter().find(|verdict| verdict.check.to_string() == check);
        of_name.map(|verdict| (row, verdict))
    });
    let Some((row, verdict)) = found else {
        let known = rows.iter().flat_map(verdicts).map(|verdict| format!("{cluster} {}", verdict.check));
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(Failure::message(Exit::NotFound, format!("there is no check \"{name}\""))
            .next(format!("there are: {known}")));
    };
    let runs = control.state.runs(Some(&cluster), RUNS).map_err(failed("the runs cannot be read"))?;
    let explanation = explain(row, verdict, &runs, control.state.has_daemon(), Timestamp::now());
    context.output.items("Explanation", std::slice::from_ref(&explanation), |_| {
        let mut table = output::table(&["", ""]);
        table.add_row(["check", &format!("{} {}", explanation.cluster, explanation.verdict.check)]);
        table.add_row(["level", explanation.verdict.level.as_str()]);
        table.add_row(["because", &explanation.verdict.text]);
        for text in &explanation.evidence {
            table.add_row(["evidence", text]);
        }
        for text in &explanation.next {
            table.add_row(["next", text]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

/// The cluster and its check that `name` means. The longest cluster's name wins: names may begin alike.
fn find(control: &ControlPlane, name: &str) -> Result<(ClusterName, String), Failure> {
    let plain = name.strip_prefix("pglife-backup-").unwrap_or(name);
    let mut clusters: Vec<&ClusterName> = control.configuration.policies.keys().collect();
    clusters.sort_by_key(|cluster| std::cmp::Reverse(cluster.as_str().len()));
    let found = clusters.iter().find_map(|cluster| {
        let check = plain.strip_prefix(cluster.as_str())?.strip_prefix('-')?;
        Some(((*cluster).clone(), check.to_owned()))
    });
    found.ok_or_else(|| {
        Failure::message(Exit::NotFound, format!("there is no check \"{name}\""))
            .next("see what there is: pglife check --all")
    })
}

fn explain(row: &ClusterStatus, verdict: Verdict, runs: &[RunRecord], daemon: bool, now: Timestamp) -> Explanation {
    let (mut evidence, mut next) = (Vec::new(), Vec::new());
    let cluster = &row.cluster;
    let is_bad = verdict.level > Level::Ok;
    match &verdict.check {
        Check::Dump => {
            (evidence, next) = of_kind(row, &row.dump, Operation::Dump, runs, daemon, now);
        }
        Check::Volume => {
            (evidence, next) = of_kind(row, &row.volume, Operation::Volume, runs, daemon, now);
        }
        Check::Drill => {
            (evidence, next) = of_proof(row, runs, daemon, now);
        }
        Check::Coverage => {
            if let Some(coverage) = &row.coverage {
                evidence.push(format!("which databases there are was seen {}", human::age(coverage.seen_at, now)));
            }
            next.push(format!(
                "let a pattern of [backup.dump] databases in the policy of {cluster} take it, such as \"*\"; or leave it out by name, such as \"!{}\"",
                row.coverage.as_ref().and_then(|it| it.uncovered.first()).map_or("scratch", |name| name.as_str())
            ));
            next.push(format!("then take a backup: pglife backup {cluster}"));
        }
        Check::Repository(name) => {
            let found = row.repositories.iter().find(|repository| repository.name == *name);
            if let Some(repository) = found.filter(|repository| repository.problem.is_none()) {
                evidence.push(format!("it holds {} backups of {cluster}", repository.backups));
                evidence.extend(repository.free_bytes.map(|free| format!("{} are free", human::bytes(free))));
            }
            if is_bad {
                next.push(format!("see what it says: pglife repo check {name}"));
                next.push(format!("when it is back, make the copies that are missing: pglife repo sync {name}"));
            }
        }
    }
    if !is_bad {
        next = vec!["nothing".to_owned()];
    }
    Explanation { cluster: cluster.clone(), verdict, evidence, next }
}

/// Evidence, and what to do, about what is proven.
fn of_proof(row: &ClusterStatus, runs: &[RunRecord], daemon: bool, now: Timestamp) -> (Vec<String>, Vec<String>) {
    let (mut evidence, mut next) = (Vec::new(), Vec::new());
    let (cluster, proof) = (&row.cluster, &row.proof);
    if let Some(bad) = &proof.bad {
        evidence.push(format!("{} is bad: the drill of {} found it so", bad.set, bad.found_at));
        next.push(format!("see what it does not bring back: pglife drill show {cluster} --backup {}", bad.set));
        next.push(format!("take a new one and prove it: pglife backup {cluster} && pglife drill {cluster}"));
    } else {
        next.push(format!("prove the newest one now: pglife drill {cluster}"));
    }
    evidence.push(match &proof.last_proven {
        Some(proven) => format!("the newest proven one is {}, {}", proven.set, human::age(proven.completed_at, now)),
        None => "no backup is proven".to_owned(),
    });
    evidence.extend(
        proof
            .recovery
            .iter()
            .map(|recovery| format!("a restore of a {} takes {}", recovery.kind, human::recovery(recovery))),
    );
    evidence.extend(failed_runs(Operation::Drill, runs));
    match proof.next_run_at {
        Some(at) if daemon => evidence.push(format!("the next drill is due {}", human::age(at, now))),
        Some(at) => {
            evidence
                .push(format!("the next drill is due {}, but no daemon works here to start it", human::age(at, now)));
            next.push("start the daemon: pglife daemon".to_owned());
        }
        None => evidence.push("there is no schedule: drills are made by hand, or from elsewhere".to_owned()),
    }
    (evidence, next)
}

/// The last runs of `operation` that did not end well.
fn failed_runs(operation: Operation, runs: &[RunRecord]) -> impl Iterator<Item = String> {
    let failed = runs.iter().filter(move |run| run.operation == operation && run.exit.is_some_and(|exit| exit != 0));
    failed.take(3).map(|run| {
        let exit = run.exit.unwrap_or_default();
        format!("the run of {} ended with exit {exit}: {}", run.started_at, run.message)
    })
}

/// Evidence, and what to do, about one kind of backup.
fn of_kind(
    row: &ClusterStatus,
    kind: &KindStatus,
    operation: Operation,
    runs: &[RunRecord],
    daemon: bool,
    now: Timestamp,
) -> (Vec<String>, Vec<String>) {
    let (mut evidence, mut next) = (Vec::new(), Vec::new());
    let cluster = &row.cluster;
    if let Some(last) = &kind.last_backup {
        evidence.push(format!("the newest one is {}, {}", last.set, human::age(last.completed_at, now)));
    }
    if let Some(unreadable) = &kind.unreadable {
        evidence.push(format!("the repositories: {unreadable}"));
    }
    evidence.extend(failed_runs(operation, runs));
    evidence.push(format!("the server is {}", row.server));
    match kind.next_run_at {
        Some(at) if daemon => evidence.push(format!("the next run is due {}", human::age(at, now))),
        Some(at) => {
            evidence.push(format!("the next run is due {}, but no daemon works here to start it", human::age(at, now)));
            next.push("start the daemon: pglife daemon".to_owned());
        }
        None => evidence.push("there is no schedule: it is made by hand, or from elsewhere".to_owned()),
    }
    if !matches!(row.server.as_str(), "healthy" | "running" | "starting") {
        next.push("see why the server does not run: pglife doctor".to_owned());
    }
    next.push(format!("take one now: pglife backup {cluster} --kind {}", operation.as_str()));
    (evidence, next)
}
