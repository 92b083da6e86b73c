//! `pglife upgrade`: a cluster moves to a newer major; and what became of it.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::cluster::{ClusterName, PgMajor};
use crate::exit::Exit;
use crate::policy::UpgradeMethod;
use crate::upgrade::journal::Phase;
use crate::upgrade::plan::{DataContainer, Method, OldServer, UpgradePlan};
use crate::upgrade::preflight::{Finding, Severity};
use crate::upgrade::{self, Prepared, Recorded, Report, UpgradeRequest, Upgraded};

/// The command line.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// The major version to move to
    #[arg(long, value_name = "MAJOR", required = true)]
    to: Option<PgMajor>,
    /// The image to move to, instead of pglife/postgres:MAJOR
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How the data go over, instead of what the policy says: `dump`, through a backup, or `pg_upgrade`, as files
    #[arg(long, value_name = "METHOD")]
    method: Option<UpgradeMethod>,
    /// The file with the key of encrypted backups, instead of the configured one
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Restore the newest backup into the new major first, in a throwaway server, and compare
    #[arg(long)]
    rehearse: bool,
    /// Begin outside the window of the policy
    #[arg(long)]
    outside_window: bool,
    /// Look at everything and show what would be done; nothing is changed
    #[arg(long, visible_alias = "dry-run")]
    plan: bool,
    /// With --plan: end with 6 where the upgrade could begin, with 4 where something blocks it
    #[arg(long, requires = "plan")]
    exit_code: bool,
    /// Do it: the cluster is down meanwhile
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the last upgrade
    Status(Which),
    /// Carry an upgrade that was cut to its end
    Resume(Which),
    /// Go back to the old server
    Rollback(Rollback),
    /// Remove the old server for good
    Finalize(Finalize),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
}

#[derive(Debug, clap::Args)]
struct Rollback {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Go back even though clients wrote to the new server; it is backed up before, or its volume stays
    #[arg(long)]
    accept_data_loss: bool,
}

#[derive(Debug, clap::Args)]
struct Finalize {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// A plan, as programs read it.
#[derive(Serialize)]
struct PlanItem<'a> {
    blocked: bool,
    findings: &'a [Finding],
    steps: &'a [String],
    plan: &'a UpgradePlan,
}

/// An upgrade, as programs read it.
#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    upgrade: &'a str,
    from: PgMajor,
    to: PgMajor,
    method: &'a Method,
    /// `open`, `undoing`, `committed`, `upgraded`, `as-before`, `finalized`.
    phase: &'static str,
    step: &'a str,
    started_at: Timestamp,
    updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_seconds: Option<f64>,
    kept_container: &'a str,
    kept_volume: &'a str,
    report: &'a Report,
    warnings: &'a [String],
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    match (args.command, args.to) {
        (Some(Command::Status(which)), _) => status(&which, context).await,
        (Some(Command::Resume(which)), _) => resume(&which, context).await,
        (Some(Command::Rollback(args)), _) => rollback(&args, context).await,
        (Some(Command::Finalize(args)), _) => finalize(&args, context).await,
        (None, Some(to)) => {
            let request = UpgradeRequest {
                to,
                image: args.image,
                method: args.method,
                identity: args.identity,
                rehearse: args.rehearse,
                outside_window: args.outside_window,
            };
            begin(args.cluster.as_ref(), request, (args.plan, args.exit_code, args.yes), context).await
        }
        (None, None) => Err(Failure::message(Exit::Usage, "--to MAJOR is missing")),
    }
}

async fn begin(
    cluster: Option<&ClusterName>,
    request: UpgradeRequest,
    (plan_only, exit_code, yes): (bool, bool, bool),
    context: &Context,
) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(cluster)?.clone();
    let prepared = upgrade::prepare(&control, &policy, &request).await?;
    let blocked = prepared.findings.iter().any(|finding| finding.severity == Severity::Blocks);
    if plan_only {
        show_plan(&prepared, blocked, context)?;
        return Ok(match (exit_code, blocked) {
            (false, _) => Exit::Ok,
            (true, false) => Exit::ChangesPending,
            (true, true) => Exit::Refused,
        });
    }
    if !blocked {
        for warning in prepared.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
            context.output.note(&format!("warning: {}; {}", warning.what, warning.remedy));
        }
        let what = format!(
            "upgrade cluster \"{}\" from PostgreSQL {} to {}; it is down meanwhile",
            policy.name, prepared.plan.from, prepared.plan.to
        );
        context.confirm(yes, &what).await?;
    }
    let reporter = context.reporter();
    let done = Box::pin(upgrade::upgrade(&control, &policy, &prepared, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    tell_end(&done?, context)
}

/// Shows how it ended.
pub(super) fn tell_end(done: &Upgraded, context: &Context) -> Result<Exit, Failure> {
    show(&[(&done.recorded, &done.warnings)], context)?;
    tell(done, context);
    Ok(upgrade::exit_of(done))
}

fn steps(prepared: &Prepared) -> Vec<String> {
    let plan = &prepared.plan;
    let container = &plan.container;
    let mut steps = prepared.before.clone();
    if prepared.method == UpgradeMethod::PgUpgrade {
        steps.push(format!("copy the programs of PostgreSQL {} out of {}", plan.from, plan.old_image.name));
    }
    let downtime = plan.expected_downtime.map(|seconds| format!(", for about {seconds} s")).unwrap_or_default();
    if !plan.dependents.is_empty() {
        steps.push(format!("stop what depends on it, in this order: {}", plan.dependents.join(", ")));
    }
    steps.extend([
        format!("stop container {container}; from here on nobody is served{downtime}"),
        format!(
            "start the same server in {}, which nobody knows; count and hash every row",
            plan.trial(upgrade::plan::Trial::Source)
        ),
    ]);
    steps.extend(transfer_steps(plan, prepared.method));
    steps.extend([
        "count and hash every row of the new server; compare with the old one".to_owned(),
        format!("start it once with every setting, in {}", plan.trial(upgrade::plan::Trial::Proof)),
        "commit: until here a failure goes back, from here on forward".to_owned(),
    ]);
    steps.extend(swap(plan));
    steps.extend(["write the new major into the policy".to_owned()]);
    if !plan.dependents.is_empty() {
        steps.push("bring back what depends on it, each when the one before it is healthy".to_owned());
    }
    steps.push("take the first backup".to_owned());
    steps
}

/// How the containers are swapped: the old ones are set aside, the new ones made.
pub(super) fn swap(plan: &UpgradePlan) -> [String; 2] {
    let UpgradePlan { container, kept_container, new_image, .. } = plan;
    let old = plan.old_place();
    match plan.data_container() {
        Some(DataContainer { name, kept, .. }) => [
            format!("rename {container} to {kept_container}, {name} to {kept}; both are kept, stopped, with {old}"),
            format!("make {name} and {container} from {}, like the old ones; serve", new_image.name),
        ],
        None => [
            format!("rename {container} to {kept_container}; it is kept, stopped, with {old}"),
            format!("make {container} from {}, like the old one; serve", new_image.name),
        ],
    }
}

/// How the data go over.
fn transfer_steps(plan: &UpgradePlan, method: UpgradeMethod) -> Vec<String> {
    let (place, needed) = (plan.new_place(), human::bytes(plan.needed_bytes));
    let target = plan.trial(upgrade::plan::Trial::Target);
    let settings = if plan.single().is_some() { ", postgresql.conf and what it names" } else { "" };
    match method {
        UpgradeMethod::Dump => vec![
            format!("take a backup of all {} databases ({})", plan.databases.len(), human::bytes(plan.bytes)),
            format!("make {place} ({needed}); start PostgreSQL {} on it in {target}", plan.to),
            format!("restore the backup; carry ALTER SYSTEM, pg_hba.conf and pg_ident.conf{settings}; ANALYZE"),
        ],
        UpgradeMethod::PgUpgrade => {
            let sorting = if plan.sorting.is_empty() {
                String::new()
            } else {
                format!("; build indexes over text anew, because it may sort otherwise ({})", plan.sorting.join("; "))
            };
            vec![
                format!(
                    "make {place} ({needed}), an empty cluster like the old one in it; pg_upgrade copies all {} databases ({}) \
                     from volume {}, every file is compared",
                    plan.databases.len(),
                    human::bytes(plan.bytes),
                    plan.old_volume
                ),
                format!("start PostgreSQL {} on it in {target}", plan.to),
                format!("carry ALTER SYSTEM, pg_hba.conf and pg_ident.conf; update extensions{sorting}; ANALYZE"),
            ]
        }
    }
}

fn show_plan(prepared: &Prepared, blocked: bool, context: &Context) -> Result<(), Failure> {
    let steps = steps(prepared);
    let item = PlanItem { blocked, findings: &prepared.findings, steps: &steps, plan: &prepared.plan };
    context.output.items("UpgradePlan", &[item], |_| {
        let mut table = output::table(&["", "WHAT", "WHAT TO DO"]);
        for finding in &prepared.findings {
            let severity = match finding.severity {
                Severity::Blocks => "blocks",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            table.add_row([severity, &finding.what, &finding.remedy]);
        }
        for (number, step) in steps.iter().enumerate() {
            table.add_row([format!("step {}", number + 1), step.clone(), String::new()]);
        }
        table
    })?;
    let plan = &prepared.plan;
    context.output.note(&if blocked {
        "nothing was done; what blocks must be mended first".to_owned()
    } else {
        format!(
            "nothing was done; to do it: pglife upgrade {} --to {} --method {} --yes",
            plan.cluster, plan.to, plan.method
        )
    });
    Ok(())
}

fn show(upgrades: &[(&Recorded, &[String])], context: &Context) -> Result<(), Failure> {
    let items: Vec<Item<'_>> = upgrades
        .iter()
        .map(|(recorded, warnings)| Item {
            cluster: &recorded.plan.cluster,
            upgrade: &recorded.id,
            from: recorded.plan.from,
            to: recorded.plan.to,
            method: &recorded.plan.method,
            phase: recorded.phase.as_str(),
            step: &recorded.step,
            started_at: recorded.started_at,
            updated_at: recorded.updated_at,
            downtime_seconds: recorded.report.downtime_seconds(),
            kept_container: recorded.plan.kept_container.as_str(),
            kept_volume: &recorded.plan.old_volume,
            report: &recorded.report,
            warnings,
        })
        .collect();
    context.output.items("UpgradeList", &items, |_| {
        let mut table = output::table(&["CLUSTER", "FROM", "TO", "PHASE", "DOWN", "COMPARED", "BACKUP"]);
        for item in &items {
            let dash = || "-".to_owned();
            table.add_row([
                item.cluster.to_string(),
                item.from.to_string(),
                item.to.to_string(),
                item.phase.to_owned(),
                item.downtime_seconds.map_or_else(dash, |seconds| format!("{seconds:.1} s")),
                item.report
                    .compared
                    .map_or_else(dash, |compared| format!("{} tables, {} rows", compared.tables, compared.rows)),
                item.report.backup.as_ref().map_or_else(dash, ToString::to_string),
            ]);
        }
        table
    })
}

fn tell(done: &Upgraded, context: &Context) {
    for warning in &done.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    tell_of(&done.recorded, context);
}

fn tell_of(recorded: &Recorded, context: &Context) {
    let plan = &recorded.plan;
    let cluster = &plan.cluster;
    context.output.note(&match recorded.phase {
        Phase::Upgraded if matches!(plan.method, Method::Restore(_)) => format!(
            "the data of the backup serve; the server before is kept in {} and {}; back to it: pglife upgrade rollback \
             {cluster}; when it is not needed any more: pglife upgrade finalize {cluster}",
            plan.kept_container,
            plan.old_place()
        ),
        Phase::Upgraded => format!(
            "PostgreSQL {} serves; the old server is kept in {} and {}; when it is not needed any more: pglife upgrade finalize {cluster}",
            plan.to,
            plan.kept_container,
            plan.old_place()
        ),
        Phase::AsBefore => {
            let why = recorded.report.failure.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let kept = if recorded.report.keep_new_volume {
                format!("; what the new server held is in {}, which stays", plan.new_place())
            } else {
                String::new()
            };
            let down = match plan.old_server {
                OldServer::Serves => "",
                OldServer::Runs | OldServer::Stopped => ", whose server did not serve then",
            };
            format!("cluster \"{cluster}\" has PostgreSQL {} as before{down}{why}{kept}", plan.from)
        }
        Phase::Finalized => format!("PostgreSQL {} serves; the old server was removed", plan.to),
        Phase::Open | Phase::Undoing | Phase::Committed => format!(
            "the {plan} is open, at {}; if no pglife works on it: pglife upgrade resume {cluster}",
            recorded.step
        ),
    });
}

async fn status(which: &Which, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let mut found = Vec::new();
    for policy in control.configuration.select_all(which.cluster.as_ref())? {
        found.extend(upgrade::last(&control, &policy.name)?);
    }
    show(&found.iter().map(|recorded| (recorded, [].as_slice())).collect::<Vec<_>>(), context)?;
    for recorded in &found {
        tell_of(recorded, context);
    }
    if found.is_empty() {
        context.output.note("no upgrade was ever begun");
    }
    let open = found.iter().any(|recorded| recorded.phase.goal().is_some());
    Ok(if open { Exit::Warnings } else { Exit::Ok })
}

async fn resume(which: &Which, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(which.cluster.as_ref())?.clone();
    let reporter = context.reporter();
    let done = Box::pin(upgrade::resume(&control, &policy, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    tell_end(&done?, context)
}

async fn rollback(args: &Rollback, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(args.cluster.as_ref())?.clone();
    let reporter = context.reporter();
    let done = Box::pin(upgrade::rollback(&control, &policy, args.accept_data_loss, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    let done = done?;
    show(&[(&done.recorded, &done.warnings)], context)?;
    tell(&done, context);
    Ok(if done.recorded.report.keep_new_volume { Exit::Warnings } else { Exit::Ok })
}

async fn finalize(args: &Finalize, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(args.cluster.as_ref())?.clone();
    let what = format!("remove the server that cluster \"{}\" had before, with its data", policy.name);
    context.confirm(args.yes, &what).await?;
    let done = upgrade::finalize(&control, &policy, upgrade::By::Command).await?;
    show(&[(&done.recorded, &done.warnings)], context)?;
    tell(&done, context);
    Ok(Exit::Ok)
}
