//! `pglife restore`: a new cluster from a backup.

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup_set::{Selector, SetId};
use crate::cluster::{ClusterName, DatabaseName, PgMajor, RepoName};
use crate::exit::Exit;
use crate::restore::{self, Plan, RestoreRequest, Wanted};
use crate::worker::TableName;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster the backup is of; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Which backup: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
    #[arg(long, default_value = "latest", value_name = "SELECTOR")]
    backup: Selector,
    /// The new cluster; containers NAME-db and NAME-data are made for it
    #[arg(long, value_name = "NAME")]
    into: ClusterName,
    /// Restore into this newer major version
    #[arg(long, value_name = "MAJOR")]
    major: Option<PgMajor>,
    /// Restore into this image, instead of the one the cluster ran from
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Restore the roles and this database only
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

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let source = control.configuration.select(args.cluster.as_ref())?.clone();
    let wanted = match (args.database, args.table) {
        (None, _) => Wanted::Everything,
        (Some(database), None) => Wanted::Database(database),
        (Some(database), Some(table)) => Wanted::Table(database, table),
    };
    let request = RestoreRequest {
        backup: args.backup,
        into: args.into,
        repository: args.repo,
        major: args.major,
        image: args.image,
        wanted,
        identity: args.identity,
    };
    let prepared = restore::prepare(&control, &source, &request).await?;
    if args.dry_run {
        let note = |set: &SetId, major: PgMajor| {
            context.output.note(&format!(
                "nothing was done; {set} would be restored into a new PostgreSQL {major} cluster \"{}\"",
                request.into
            ));
        };
        let plan = match &prepared.plan {
            Plan::Dump(plan) => plan,
            Plan::Volume(plan) => {
                context.output.items("VolumeRestorePlan", std::slice::from_ref(&**plan), |_| {
                    let mut table = output::table(&["VOLUMES", "OBJECT", "SIZE"]);
                    let size = human::bytes(plan.object.plain.bytes);
                    table.add_row([plan.volumes.join(" "), plan.object.name.clone(), size]);
                    table
                })?;
                note(&plan.set, plan.major);
                return Ok(Exit::Ok);
            }
        };
        context.output.items("RestorePlan", std::slice::from_ref(&**plan), |_| {
            let mut table = output::table(&["DATABASE", "OBJECT", "SIZE"]);
            for database in &plan.databases {
                table.add_row([
                    database.database.to_string(),
                    database.object.name.clone(),
                    human::bytes(database.object.plain.bytes),
                ]);
            }
            table
        })?;
        note(&plan.set, plan.major);
        return Ok(Exit::Ok);
    }
    let reporter = context.reporter();
    let restored = restore::restore(&control, prepared, &|tick| reporter.tick(tick)).await;
    reporter.finish();
    let restored = restored?;
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
