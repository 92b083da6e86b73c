//! `pglife check`: a gate for monitors and scripts.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::exit::Exit;
use crate::policy::freshness::Level;
use crate::status::{self, ClusterStatus, Verdict, of_servers, verdicts};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster; not needed when there is only one
    #[arg(conflicts_with = "all")]
    cluster: Option<ClusterName>,
    /// Every cluster
    #[arg(long)]
    all: bool,
    /// One line, and the exit codes of monitoring plugins: 0 ok, 1 warning, 2 critical, 3 unknown
    #[arg(long)]
    nagios: bool,
}

/// One check.
#[derive(Serialize)]
struct Item<'a> {
    /// None: it is about what no policy covers.
    cluster: Option<&'a ClusterName>,
    #[serde(flatten)]
    verdict: Verdict,
}

/// What was found.
struct Found {
    rows: Vec<ClusterStatus>,
    /// What is said of servers without a policy, where everything was asked for.
    servers: Option<Verdict>,
}

impl Found {
    fn items(&self) -> Vec<Item<'_>> {
        let of_clusters = self
            .rows
            .iter()
            .flat_map(|row| verdicts(row).into_iter().map(|verdict| Item { cluster: Some(&row.cluster), verdict }));
        let of_servers = self.servers.iter().map(|verdict| Item { cluster: None, verdict: verdict.clone() });
        of_clusters.chain(of_servers).collect()
    }
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    if !args.nagios {
        let found = look(args, context).await?;
        return show(&found, context);
    }
    // A plugin tells everything on stdout, in one line, what went wrong included.
    let (line, exit) = match look(args, context).await {
        Ok(found) => nagios(&found, Timestamp::now()),
        Err(failure) => {
            (format!("PGLIFE UNKNOWN - {}", failure.chain().join(": ").replace(['\n', '|'], " ")), Exit::Warnings)
        }
    };
    context.output.data(&format!("{line}\n"))?;
    Ok(exit)
}

async fn look(args: &Args, context: &Context) -> Result<Found, Failure> {
    let control = context.control().await?;
    let only = if args.all { None } else { Some(control.configuration.select(args.cluster.as_ref())?.name.clone()) };
    let rows = status::look(&control, only.as_ref(), Timestamp::now()).await?;
    let servers = if args.all { status::uncovered_servers(&control).await } else { None };
    Ok(Found { rows, servers: servers.map(|uncovered| of_servers(&uncovered)) })
}

fn show(found: &Found, context: &Context) -> Result<Exit, Failure> {
    let items = found.items();
    context.output.items("CheckList", &items, |_| {
        let mut table = output::table(&["CLUSTER", "CHECK", "LEVEL", "WHY"]);
        for Item { cluster, verdict } in &items {
            table.add_row([
                cluster.map_or_else(|| "-".to_owned(), ClusterName::to_string),
                verdict.check.to_string(),
                verdict.level.as_str().to_owned(),
                verdict.text.clone(),
            ]);
        }
        table
    })?;
    Ok(exit(&items))
}

/// Stale is 30, a repository that cannot be used 10, a warning 3.
fn exit(items: &[Item<'_>]) -> Exit {
    let of_level = |level: Level| items.iter().filter(move |item| item.verdict.level == level);
    let is_repository = |item: &Item<'_>| matches!(item.verdict.check, status::Check::Repository(_));
    if of_level(Level::Critical).any(|item| !is_repository(item)) {
        Exit::Stale
    } else if of_level(Level::Critical).next().is_some() {
        Exit::Repository
    } else if of_level(Level::Warn).next().is_some() {
        Exit::Warnings
    } else {
        Exit::Ok
    }
}

/// The line and the code of a monitoring plugin (Monitoring Plugins Development Guidelines).
fn nagios(found: &Found, now: Timestamp) -> (String, Exit) {
    let (rows, all) = (&found.rows, found.items());
    let worst = all.iter().map(|item| item.verdict.level).max();
    // The codes are the plugin's, not pglife's: 1 and 2 are what `Failed` and `Usage` are elsewhere.
    let (state, exit) = match worst {
        Some(Level::Ok) => ("OK", Exit::Ok),
        Some(Level::Warn) => ("WARNING", Exit::Failed),
        Some(Level::Critical) => ("CRITICAL", Exit::Usage),
        None => ("UNKNOWN", Exit::Warnings),
    };
    let mut told: Vec<String> = all
        .iter()
        .filter(|item| item.verdict.level > Level::Ok)
        .map(|Item { cluster, verdict }| {
            let cluster = cluster.map_or_else(String::new, |cluster| format!("{cluster} "));
            format!("{cluster}{}: {}", verdict.check, verdict.text)
        })
        .collect();
    if told.is_empty() {
        told.push(format!("{} clusters, {} checks", rows.len(), all.len()));
    }
    let mut numbers = Vec::new();
    for row in rows {
        for (name, kind) in [("dump", &row.dump), ("volume", &row.volume)] {
            let Some(last) = kind.last_known_at else { continue };
            let age = now.duration_since(last).as_secs().max(0);
            let limits = kind
                .limits
                .map_or_else(String::new, |limits| format!("{};{}", limits.warn_seconds, limits.critical_seconds));
            numbers.push(format!("'{}_{name}_age'={age}s;{limits}", row.cluster));
        }
        numbers.extend(row.proof.recovery.iter().map(|recovery| {
            let budget = recovery.budget_seconds.map_or_else(String::new, |budget| budget.to_string());
            format!("'{}_{}_restore'={:.3}s;{budget}", row.cluster, recovery.kind, recovery.seconds)
        }));
    }
    let words = told.join("; ").replace(['\n', '|'], " ");
    (format!("PGLIFE {state} - {words} | {}", numbers.join(" ")).trim_end_matches(" | ").to_owned(), exit)
}
