//! `pglife backup`: take a backup now.

use std::num::NonZeroU32;

use clap::ValueEnum;
use jiff::SignedDuration;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup::volume::{self, VolumePlan};
use crate::backup::{self, DumpPlan, Taken};
use crate::backup_set::{self, CopyMode, SetId};
use crate::cluster::{ClusterName, RepoName};
use crate::control::OperationError;
use crate::exit::Exit;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// What to take
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// How volumes are copied, instead of the policy's way
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<Mode>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
    /// Copy only what changed in the volumes since the last copy, where the policy does not say so
    #[arg(long)]
    incremental: bool,
    /// Look at the server and tell what would be done
    #[arg(long)]
    dry_run: bool,
}

/// How many copies build on each other where it is asked for on the command line only.
const FULL_EVERY: NonZeroU32 = NonZeroU32::new(7).expect("seven is not zero");

/// The kinds of backup this version takes.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Kind {
    /// Globals and every database, with `pg_dump`
    #[default]
    Dump,
    /// The data container's volumes, as a tar
    Volume,
    /// Both, the dump first
    All,
}

impl Kind {
    fn kinds(self) -> &'static [backup_set::Kind] {
        match self {
            Self::Dump => &[backup_set::Kind::Dump],
            Self::Volume => &[backup_set::Kind::Volume],
            Self::All => &[backup_set::Kind::Dump, backup_set::Kind::Volume],
        }
    }
}

/// The ways of copying volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The server runs and is in backup mode
    Hot,
    /// The server is stopped, and started again when the copy is through
    Cold,
}

/// The answer.
#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    kind: backup_set::Kind,
    set: String,
    /// The set that it builds on.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a SetId>,
    lineage: String,
    repositories: Vec<&'a RepoName>,
    missing: Vec<&'a RepoName>,
    started_at: jiff::Timestamp,
    completed_at: jiff::Timestamp,
    databases: usize,
    plain_bytes: u64,
    stored_bytes: u64,
    worker_peak_memory_bytes: u64,
    warnings: &'a [String],
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let mut policy = control.configuration.select(args.cluster.as_ref())?.clone();
    if args.mode.is_some() && !args.kind.kinds().contains(&backup_set::Kind::Volume) {
        let what = "--mode is about volumes, and a dump has none";
        return Err(OperationError::new(Exit::Usage, what).next("add --kind volume, or leave --mode out").into());
    }
    if args.incremental {
        if !args.kind.kinds().contains(&backup_set::Kind::Volume) {
            let what = "--incremental is about volumes, and a dump is always a full one";
            return Err(OperationError::new(Exit::Usage, what).next("add --kind volume, or leave it out").into());
        }
        if policy.volume.full_every == NonZeroU32::MIN {
            policy.volume.full_every = FULL_EVERY;
        }
    }
    match args.mode {
        Some(Mode::Hot) => policy.volume.mode = CopyMode::Hot,
        Some(Mode::Cold) => policy.volume.mode = CopyMode::Cold,
        None => {}
    }
    if args.dry_run {
        for kind in args.kind.kinds() {
            match kind {
                backup_set::Kind::Dump => {
                    show_plan(&backup::dry_run(&control, &policy, args.repo.as_ref()).await?, context)?;
                }
                backup_set::Kind::Volume => {
                    show_volume_plan(&volume::dry_run(&control, &policy, args.repo.as_ref()).await?, context)?;
                }
            }
        }
        return Ok(Exit::Ok);
    }
    let (mut taken, mut failed) = (Vec::new(), None);
    for kind in args.kind.kinds() {
        let reporter = context.reporter();
        let result = backup::take(&control, &policy, *kind, args.repo.as_ref(), &|tick| reporter.tick(tick)).await;
        reporter.finish();
        match result {
            Ok(one) => taken.push(one),
            // One kind that fails keeps nobody from the other; a person who wants to stop wants to stop.
            Err(error) if failed.is_none() && !context.cancel.is_cancelled() => failed = Some(error),
            Err(error) => {
                failed.get_or_insert(error);
                break;
            }
        }
    }
    if !taken.is_empty() {
        show(&taken, context)?;
    }
    match failed {
        Some(error) => Err(error.into()),
        // What is worse decides: failed before warnings.
        None if taken.iter().any(|taken| taken.exit == Exit::Failed) => Ok(Exit::Failed),
        None => Ok(taken.iter().map(|taken| taken.exit).find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok)),
    }
}

fn item(taken: &Taken) -> Item<'_> {
    let commit = &taken.commit;
    Item {
        cluster: &commit.cluster,
        kind: commit.kind,
        set: commit.set.to_string(),
        parent: commit.parent.as_ref(),
        lineage: commit.lineage.to_string(),
        repositories: taken.repositories().collect(),
        missing: taken.copies.iter().filter(|copy| copy.failure.is_some()).map(|copy| &copy.repository).collect(),
        started_at: commit.started_at,
        completed_at: commit.completed_at,
        databases: commit.databases,
        plain_bytes: commit.plain_bytes,
        stored_bytes: commit.stored_bytes,
        worker_peak_memory_bytes: taken.worker_peak_memory_bytes,
        warnings: &taken.warnings,
    }
}

fn show(taken: &[Taken], context: &Context) -> Result<(), Failure> {
    let items: Vec<Item<'_>> = taken.iter().map(item).collect();
    context.output.items("Backup", &items, |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "REPOSITORY", "DATABASES", "SIZE", "STORED", "TOOK"]);
        for taken in taken {
            let commit = &taken.commit;
            table.add_row([
                commit.cluster.to_string(),
                commit.set.to_string(),
                human::list(taken.repositories()),
                commit.databases.to_string(),
                human::bytes(commit.plain_bytes),
                human::bytes(commit.stored_bytes),
                human::duration(SignedDuration::from_secs(commit.seconds())),
            ]);
        }
        table
    })?;
    for warning in taken.iter().flat_map(|taken| &taken.warnings) {
        context.output.note(&format!("warning: {warning}"));
    }
    Ok(())
}

fn show_plan(plan: &DumpPlan, context: &Context) -> Result<(), Failure> {
    context.output.items("DumpPlan", std::slice::from_ref(plan), |_| {
        let mut table = output::table(&["DATABASE", "ON DISK", "OBJECT"]);
        for dump in &plan.databases {
            let bytes = plan
                .server
                .databases
                .iter()
                .find(|database| database.name == dump.database)
                .map_or(0, |database| database.bytes);
            table.add_row([dump.database.to_string(), human::bytes(bytes), dump.object.clone()]);
        }
        for skipped in &plan.skipped {
            table.add_row([skipped.database.to_string(), "-".to_owned(), format!("left out: {}", skipped.reason)]);
        }
        table
    })?;
    for warning in &plan.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    context.output.note(&format!(
        "nothing was done; a backup of {} (PostgreSQL {}, lineage {}) would dump {} databases, {} side by side, codec {}",
        plan.cluster,
        plan.server.version,
        plan.lineage,
        plan.databases.len(),
        plan.jobs,
        plan.codec
    ));
    Ok(())
}

fn show_volume_plan(plan: &VolumePlan, context: &Context) -> Result<(), Failure> {
    context.output.items("VolumePlan", std::slice::from_ref(plan), |_| {
        if plan.moved.is_empty() {
            let mut table = output::table(&["VOLUME", "OBJECT"]);
            table.add_rows(plan.volumes.iter().map(|volume| [volume, plan.object()]));
            return table;
        }
        let mut table = output::table(&["FOLDER", "IN THE COPY", "OBJECT"]);
        table.add_rows(plan.moved.iter().map(|moved| [&moved.from, &moved.to, plan.object()]));
        table
    })?;
    for warning in &plan.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    context.output.note(&format!(
        "nothing was done; a backup of {} (PostgreSQL {}, lineage {}) would copy {} while the server {}, databases of {}, \
         codec {} on {} threads",
        plan.cluster,
        plan.server.version,
        plan.lineage,
        plan.ancestors()
            .first()
            .map_or_else(|| "its volumes".to_owned(), |parent| format!("what changed in its volumes since {parent}")),
        match plan.mode {
            CopyMode::Hot => "runs",
            CopyMode::Cold => "is stopped",
        },
        plan.expected_bytes().map_or_else(|| "unknown size".to_owned(), human::bytes),
        plan.codec,
        plan.threads
    ));
    Ok(())
}
