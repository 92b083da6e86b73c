//! `pglife restore`: a new cluster from a backup, or the cluster's own data from it.

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup_set::{Kind, Selector, SetId};
use crate::cluster::{ClusterName, DatabaseName, PgMajor, RepoName};
use crate::control::ControlPlane;
use crate::exit::Exit;
use crate::extract::{self, ExtractionPlan};
use crate::policy::Policy;
use crate::restore::{self, Plan, RefreshRequest, RestoreRequest, Restored, VolumeRestorePlan, Wanted};
use crate::upgrade::plan::{OldServer, Trial, UpgradePlan};
use crate::upgrade::{self, InPlace, InPlaceRequest};
use crate::worker::TableName;

/// The command line.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(group = clap::ArgGroup::new("replaces").args(["in_place", "delta"]))]
pub(super) struct Args {
    /// The cluster the backup is of; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Which backup: an id or its beginning, latest, oldest, @2026-11-01T00:00Z [default: latest; with --delta latest:volume]
    #[arg(long, value_name = "SELECTOR")]
    backup: Option<Selector>,
    /// The new cluster; containers NAME-db and NAME-data are made for it
    #[arg(long, value_name = "NAME", required_unless_present = "in_place")]
    into: Option<ClusterName>,
    /// Replace the cluster's own data; the server and the data before are kept until `pglife upgrade finalize`
    #[arg(long, conflicts_with_all = ["into", "major", "image", "database", "table"])]
    in_place: bool,
    /// With --into a cluster that was restored from a copy of volumes of the same server: write only what differs from this one.
    /// What was written to it is gone then
    #[arg(long, requires = "into", conflicts_with_all = ["major", "image", "database", "table"])]
    delta: bool,
    /// Restore into this newer major version
    #[arg(long, value_name = "MAJOR")]
    major: Option<PgMajor>,
    /// Restore into this image, instead of the one the cluster ran from
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Restore the roles and this database only; from a copy of volumes, by way of a throwaway server
    #[arg(long, value_name = "DATABASE")]
    database: Option<DatabaseName>,
    /// Restore the rows of this table only: schema.table. Needs --database
    #[arg(long, value_name = "TABLE", requires = "database")]
    table: Option<TableName>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
    /// The file with the key of an encrypted backup, instead of the configured one
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Check everything and tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// With --in-place and --delta: do it; the cluster is down meanwhile, and what was written since the backup is not in it afterwards
    #[arg(long, requires = "replaces")]
    yes: bool,
}

#[derive(Serialize)]
struct Item {
    cluster: ClusterName,
    backup: String,
    container: String,
    image: String,
    policy: String,
    databases: Vec<DatabaseName>,
    warnings: Vec<String>,
}

/// A restore in place, as programs read it.
#[derive(Serialize)]
struct InPlaceItem<'a> {
    warnings: &'a [String],
    steps: &'a [String],
    plan: &'a UpgradePlan,
}

fn steps_in_place(in_place: &InPlace) -> Vec<String> {
    let plan = &in_place.plan;
    let (container, target) = (&plan.container, plan.trial(Trial::Target));
    let set = in_place.how.set();
    let mut steps = vec![match &in_place.how {
        Plan::Dump(how) => format!(
            "make volume {}; start PostgreSQL {} on it in {target}, which nobody knows; restore the {} databases of {set} into it; \
             carry over pg_hba.conf and pg_ident.conf{}",
            plan.new_volume,
            plan.to,
            how.databases.len(),
            if plan.old_server == OldServer::Serves { ", postgresql.conf and settings of ALTER SYSTEM" } else { "" }
        ),
        Plan::Volume(how) => format!(
            "make volume {}; unpack {} of {set} into it; start PostgreSQL {} on it in {target}, which nobody knows, until it has \
             replayed its WAL",
            plan.new_volume,
            how.volumes.join(" "),
            plan.to
        ),
    }];
    if !plan.dependents.is_empty() {
        steps.push(format!("stop what depends on it, in this order: {}", plan.dependents.join(", ")));
    }
    if plan.old_server != OldServer::Stopped {
        steps.push(format!("stop container {container}; from here on nobody is served"));
    }
    steps.extend([
        format!("start the new server once with every setting, in {}", plan.trial(Trial::Proof)),
        "commit: until here a failure goes back, from here on forward".to_owned(),
    ]);
    steps.extend(super::upgrade::swap(plan));
    if !plan.dependents.is_empty() {
        steps.push("bring back what depends on it, each when the one before it is healthy".to_owned());
    }
    steps.push("take the first backup".to_owned());
    steps
}

async fn in_place(
    control: &ControlPlane,
    policy: &Policy,
    request: &InPlaceRequest,
    (dry_run, yes): (bool, bool),
    context: &Context,
) -> Result<Exit, Failure> {
    let prepared = upgrade::prepare_in_place(control, policy, request).await?;
    let set = prepared.how.set();
    for warning in &prepared.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    if dry_run {
        let steps = steps_in_place(&prepared);
        let item = InPlaceItem { warnings: &prepared.warnings, steps: &steps, plan: &prepared.plan };
        context.output.items("InPlacePlan", &[item], |_| {
            let mut table = output::table(&["", "WHAT"]);
            for (number, step) in steps.iter().enumerate() {
                table.add_row([format!("step {}", number + 1), step.clone()]);
            }
            table
        })?;
        context.output.note(&format!(
            "nothing was done; to do it: the same command with --backup {set} --yes instead of --dry-run"
        ));
        return Ok(Exit::Ok);
    }
    let what = format!(
        "replace the data of cluster \"{}\" by those of {set}; what was written since is not in it afterwards",
        policy.name
    );
    context.confirm(yes, &what).await?;
    let reporter = context.reporter();
    let done = Box::pin(upgrade::restore_in_place(control, policy, &prepared, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    super::upgrade::tell_end(&done?, context)
}

/// What a refresh will do, or did, as programs read it.
#[derive(Serialize)]
struct RefreshItem<'a> {
    cluster: &'a ClusterName,
    container: &'a str,
    image: &'a str,
    written_bytes: u64,
    kept_bytes: u64,
    databases: &'a [DatabaseName],
    warnings: &'a [String],
    backup: &'a SetId,
}

async fn refresh(
    control: &ControlPlane,
    source: &Policy,
    request: &RefreshRequest,
    (dry_run, yes): (bool, bool),
    context: &Context,
) -> Result<Exit, Failure> {
    let prepared = restore::prepare_refresh(control, source, request).await?;
    let (set, into) = (&prepared.plan.set, &request.into);
    if dry_run {
        tell_volume_plan(&prepared.plan, context)?;
        context.output.note(&format!(
            "nothing was done; cluster \"{into}\" would hold what {set} holds, with no more written than what differs; to do it: the same \
             command with --backup {set} --yes instead of --dry-run"
        ));
        return Ok(Exit::Ok);
    }
    let what =
        format!("replace the data of cluster \"{into}\" by those of {set}; what was written to it is gone afterwards");
    context.confirm(yes, &what).await?;
    let reporter = context.reporter();
    let done = restore::refresh(control, &prepared, &|tick| reporter.tick(tick)).await;
    reporter.finish();
    let done = done?;
    let item = RefreshItem {
        cluster: into,
        container: &done.container,
        image: &done.image,
        written_bytes: done.written_bytes,
        kept_bytes: done.kept_bytes,
        databases: &prepared.plan.databases,
        warnings: &done.warnings,
        backup: set,
    };
    context.output.items("Refresh", &[item], |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "CONTAINER", "WRITTEN", "KEPT"]);
        table.add_row([
            into.to_string(),
            set.to_string(),
            done.container.clone(),
            human::bytes(done.written_bytes),
            human::bytes(done.kept_bytes),
        ]);
        table
    })?;
    for warning in &done.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    Ok(if done.warnings.is_empty() { Exit::Ok } else { Exit::Warnings })
}

fn tell_volume_plan(plan: &VolumeRestorePlan, context: &Context) -> Result<(), Failure> {
    context.output.items("VolumeRestorePlan", std::slice::from_ref(plan), |_| {
        let mut table = output::table(&["VOLUMES", "OBJECT", "SIZE"]);
        let size = human::bytes(plan.object.plain.bytes);
        table.add_row([plan.volumes.join(" "), plan.object.name.clone(), size]);
        table
    })?;
    Ok(())
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let source = control.configuration.select(args.cluster.as_ref())?.clone();
    let backup = args.backup.unwrap_or(Selector::Latest(args.delta.then_some(Kind::Volume)));
    let Some(into) = args.into else {
        let request = InPlaceRequest { backup, repository: args.repo, identity: args.identity };
        return in_place(&control, &source, &request, (args.dry_run, args.yes), context).await;
    };
    if args.delta {
        let request = RefreshRequest { backup, into, repository: args.repo, identity: args.identity };
        return refresh(&control, &source, &request, (args.dry_run, args.yes), context).await;
    }
    let wanted = match (args.database, args.table) {
        (None, _) => Wanted::Everything,
        (Some(database), None) => Wanted::Database(database),
        (Some(database), Some(table)) => Wanted::Table(database, table),
    };
    let request = RestoreRequest {
        backup,
        into,
        repository: args.repo,
        major: args.major,
        image: args.image,
        wanted,
        identity: args.identity,
    };
    let prepared = extract::prepare(&control, &source, &request).await?;
    if args.dry_run {
        tell_plan(&prepared, &request.into, context)?;
        return Ok(Exit::Ok);
    }
    let reporter = context.reporter();
    let restored = match prepared {
        extract::Prepared::Direct(prepared) => restore::restore(&control, *prepared, &|tick| reporter.tick(tick)).await,
        extract::Prepared::Extraction(extraction) => {
            extract::extract(&control, *extraction, &|tick| reporter.tick(tick)).await
        }
    };
    reporter.finish();
    tell(&restored?, context)
}

/// Tells what a restore would do.
fn tell_plan(prepared: &extract::Prepared, into: &ClusterName, context: &Context) -> Result<(), Failure> {
    let output = &context.output;
    let note = |set: &SetId, major: PgMajor| {
        output.note(&format!(
            "nothing was done; {set} would be restored into a new PostgreSQL {major} cluster \"{into}\""
        ));
    };
    let prepared = match prepared {
        extract::Prepared::Direct(prepared) => prepared,
        extract::Prepared::Extraction(extraction) => return tell_extraction(&extraction.plan, into, context),
    };
    match &prepared.plan {
        Plan::Dump(plan) => {
            output.items("RestorePlan", std::slice::from_ref(&**plan), |_| {
                let mut table = output::table(&["DATABASE", "OBJECT", "SIZE"]);
                for database in &plan.databases {
                    let size = human::bytes(database.object.plain.bytes);
                    table.add_row([database.database.to_string(), database.object.name.clone(), size]);
                }
                table
            })?;
            note(&plan.set, plan.major);
        }
        Plan::Volume(plan) => {
            tell_volume_plan(plan, context)?;
            note(&plan.set, plan.major);
        }
    }
    Ok(())
}

fn tell_extraction(plan: &ExtractionPlan, into: &ClusterName, context: &Context) -> Result<(), Failure> {
    context.output.items("ExtractionPlan", std::slice::from_ref(plan), |_| {
        let mut table = output::table(&["DATABASE", "SIZE", "UNPACKED"]);
        for database in &plan.databases {
            let unpacked = if database.unpacked { "yes" } else { "no: only the lengths of its files" };
            table.add_row([database.database.to_string(), human::bytes(database.bytes), unpacked.to_owned()]);
        }
        table
    })?;
    let ExtractionPlan { set, database, image, major, .. } = plan;
    context.output.note(&format!(
        "nothing was done; a throwaway server ({image}) would be started on that much of {set}, and \"{database}\" dumped from it and \
         restored into a new PostgreSQL {major} cluster \"{into}\""
    ));
    Ok(())
}

/// Tells what was restored.
fn tell(restored: &Restored, context: &Context) -> Result<Exit, Failure> {
    let item = Item {
        cluster: restored.cluster.clone(),
        backup: restored.commit.set.to_string(),
        container: restored.container.clone(),
        image: restored.image.clone(),
        policy: restored.policy.display().to_string(),
        databases: restored.databases.clone(),
        warnings: restored.warnings.clone(),
    };
    context.output.items("Restore", &[item], |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "CONTAINER", "IMAGE", "DATABASES"]);
        table.add_row([
            restored.cluster.to_string(),
            restored.commit.set.to_string(),
            restored.container.clone(),
            restored.image.clone(),
            restored.databases.len().to_string(),
        ]);
        table
    })?;
    for warning in &restored.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    context.output.note(&format!(
        "roles have the passwords they had when the backup was taken; the new policy is {}",
        restored.policy.display()
    ));
    Ok(if restored.warnings.is_empty() { Exit::Ok } else { Exit::Warnings })
}
