//! `pglife repo`: make a repository, list them, check them, clear what unfinished runs left.

mod sync;

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::prune::outcome_words;
use super::{Context, Failure, human, output};
use crate::cluster::{ClusterName, RepoName};
use crate::control::{ControlPlane, OperationError, catalogue, failed};
use crate::exit::Exit;
use crate::policy::Duration;
use crate::prune::{Outcome, leftovers};
use crate::settings;
use crate::storage;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new, empty repository; content where it is there already
    Init {
        /// Its name in pglife.toml; not needed when there is only one
        repo: Option<RepoName>,
    },
    /// List the repositories
    List,
    /// Open every repository, try to write, and read every COMMIT
    Check {
        /// Only this one
        repo: Option<RepoName>,
        /// From now on the repository that is found there belongs there, though another one did before
        #[arg(long, requires = "repo")]
        accept: bool,
    },
    /// Remove what unfinished runs left; never anything of a backup
    Gc {
        /// Only this one
        repo: Option<RepoName>,
        /// Leave alone what a run that is not older than this may still work on
        #[arg(long, default_value_t = leftovers::LEASE, value_name = "DURATION")]
        lease: Duration,
        /// Look and tell, remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy the backups that a repository should hold and does not, from another that does
    Sync {
        /// Only to this one
        repo: Option<RepoName>,
        /// Look and tell, copy nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Serialize)]
struct Row {
    repository: RepoName,
    r#type: &'static str,
    place: String,
    id: Option<String>,
    free_bytes: Option<u64>,
    backups: Option<usize>,
    problem: Option<String>,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    match &args.command {
        Command::Init { repo } => init(&control, repo.as_ref(), context),
        Command::List => show(&control, None, false, context),
        Command::Check { repo, accept } => {
            if let (true, Some(name)) = (*accept, repo) {
                let repository = control.open_repository(name)?;
                control.accept_repository(name, &repository)?;
                context
                    .output
                    .note(&format!("repository \"{name}\" is from now on also the one with id {}", repository.id()));
            }
            show(&control, repo.as_ref(), true, context)
        }
        Command::Sync { repo, dry_run } => sync::run(&control, repo.as_ref(), *dry_run, context).await,
        Command::Gc { repo, lease, dry_run } => gc(&control, repo.as_ref(), *lease, *dry_run, context).await,
    }
}

fn init(control: &ControlPlane, repo: Option<&RepoName>, context: &Context) -> Result<Exit, Failure> {
    let repositories = &control.configuration.settings.repositories;
    let name = match repo {
        Some(name) => name,
        None if repositories.len() == 1 => repositories.keys().next().expect("one is there"),
        None => {
            let known = repositories.keys().map(RepoName::as_str).collect::<Vec<_>>().join(", ");
            return Err(
                Failure::message(Exit::Usage, format!("there are several repositories: {known}")).next("name one")
            );
        }
    };
    let location = control.location(name)?;
    // One that is there already may be another one than was expected; one that is made now is meant.
    let was_there = storage::Repository::open(&location).is_ok();
    let made = storage::Repository::init(&location).map_err(failed(format!("repository \"{name}\" was not made")))?;
    if was_there {
        control.repository(name)?;
    } else {
        control.accept_repository(name, &made)?;
    }
    let place = made.store().place(None);
    context.output.note(&format!("repository \"{name}\" is ready at {place}, id {}", made.id()));
    Ok(Exit::Ok)
}

fn show(control: &ControlPlane, only: Option<&RepoName>, check: bool, context: &Context) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    let mut problem: Option<OperationError> = None;
    for (name, settings) in &control.configuration.settings.repositories {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let (kind, place) = match settings {
            settings::Repository::Local { path } => ("local", path.display().to_string()),
            settings::Repository::S3(s3) => ("s3", s3.to_string()),
        };
        let looked = look(control, name, check);
        let mut row = Row {
            repository: name.clone(),
            r#type: kind,
            place,
            id: None,
            free_bytes: None,
            backups: None,
            problem: None,
        };
        match looked {
            Ok(found) => {
                (row.id, row.free_bytes, row.backups) = (Some(found.id), found.free_bytes, Some(found.backups));
            }
            Err(error) => {
                row.problem = Some(error.chain());
                problem.get_or_insert(error);
            }
        }
        rows.push(row);
    }
    if let Some(name) = only.filter(|_| rows.is_empty()) {
        return Err(control.no_repository(name).into());
    }
    context.output.items("RepositoryList", &rows, |_| {
        let mut table = output::table(&["REPOSITORY", "TYPE", "PLACE", "BACKUPS", "FREE", "STATE"]);
        for row in &rows {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            table.add_row([
                row.repository.to_string(),
                row.r#type.to_owned(),
                row.place.clone(),
                or_dash(row.backups.map(|count| count.to_string())),
                or_dash(row.free_bytes.map(human::bytes)),
                row.problem.clone().unwrap_or_else(|| "ok".to_owned()),
            ]);
        }
        table
    })?;
    match problem {
        Some(error) if check => Err(error.into()),
        _ => Ok(Exit::Ok),
    }
}

struct Found {
    id: String,
    free_bytes: Option<u64>,
    backups: usize,
}

fn look(control: &ControlPlane, name: &RepoName, check: bool) -> Result<Found, OperationError> {
    let what = || format!("repository \"{name}\" cannot be used");
    let repository = control.repository(name)?;
    if check {
        repository.store().check_writable().map_err(failed(what()))?;
    }
    let catalogue = catalogue::read(control, &repository, None)?;
    if let Some(unreadable) = catalogue.unreadable.into_iter().next().filter(|_| check) {
        return Err(unreadable.error);
    }
    Ok(Found {
        id: repository.id().to_string(),
        free_bytes: repository.store().free_bytes().map_err(failed(what()))?,
        backups: catalogue.sets.len(),
    })
}

/// A leftover, as programs read it.
#[derive(Serialize)]
struct Cleared {
    repository: RepoName,
    cluster: ClusterName,
    place: String,
    began_at: Timestamp,
    objects: usize,
    bytes: u64,
    /// `found`, `removed`, `locked`, `forbidden`, `in-use`.
    outcome: &'static str,
    #[serde(skip)]
    words: String,
}

async fn gc(
    control: &ControlPlane,
    only: Option<&RepoName>,
    lease: Duration,
    dry_run: bool,
    context: &Context,
) -> Result<Exit, Failure> {
    let names: Vec<&RepoName> = match only {
        Some(name) => vec![name],
        None => control.configuration.settings.repositories.keys().collect(),
    };
    if !dry_run {
        // What runs of this state directory left is theirs to undo.
        control.bury_dead_runs().await?;
    }
    let now = Timestamp::now();
    let mut rows = Vec::new();
    let mut uploads = 0;
    for name in names {
        let repository = control.repository(name)?;
        let collected = leftovers::collect(control, &repository, lease, dry_run, now)?;
        uploads += collected.uploads;
        rows.extend(collected.leftovers.into_iter().map(|(leftover, outcome)| {
            let (word, words) = match outcome {
                Outcome::Kept => ("found", "found".to_owned()),
                Outcome::Deleted => ("removed", "removed".to_owned()),
                Outcome::InUse | Outcome::Needed | Outcome::NotDeleted => ("in-use", "in use".to_owned()),
                Outcome::Locked(_) | Outcome::PartlyLocked(_) => ("locked", outcome_words(&outcome)),
                Outcome::Forbidden | Outcome::PartlyForbidden(_) => ("forbidden", outcome_words(&outcome)),
            };
            Cleared {
                repository: name.clone(),
                cluster: leftover.cluster,
                place: leftover.place.to_string(),
                began_at: leftover.began,
                objects: leftover.objects.len(),
                bytes: leftover.bytes,
                outcome: word,
                words,
            }
        }));
    }
    context.output.items("LeftoverList", &rows, |_| {
        let mut table = output::table(&["REPOSITORY", "PLACE", "BEGAN", "OBJECTS", "SIZE", "STATE"]);
        for row in &rows {
            table.add_row([
                row.repository.to_string(),
                row.place.clone(),
                row.began_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                row.objects.to_string(),
                human::bytes(row.bytes),
                row.words.clone(),
            ]);
        }
        table
    })?;
    let of = |outcome: &str| rows.iter().filter(|row| row.outcome == outcome).count();
    if dry_run {
        context.output.note(&format!("nothing was removed; {} leftovers are older than {lease}", rows.len()));
    } else {
        context.output.note(&format!("{} leftovers and {uploads} unfinished uploads removed", of("removed")));
    }
    if of("in-use") > 0 {
        context.output.note("what is in use belongs to a cluster that a run works on; it is left for the next time");
    }
    if of("forbidden") > 0 {
        context.output.note("the credentials do not allow to delete what is forbidden: use others for gc");
        return Ok(Exit::Credentials);
    }
    Ok(if of("locked") > 0 { Exit::Warnings } else { Exit::Ok })
}
