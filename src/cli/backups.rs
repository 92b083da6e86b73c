//! `pglife backups`: what there is, what is in it, whether it is intact; and what people do to one.

mod delete;
mod export;
mod pin;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup_set::{Commit, Content, Manifest, Parents, Selector, SetId};
use crate::cluster::{ClusterName, RepoName};
use crate::control::{ControlPlane, Found, Held, catalogue, or_elsewhere};
use crate::encryption::Recipient;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::prune::pins;
use crate::storage::{self, Key};
use crate::verification::{self, Sample, Verified};
use crate::worker::fetch::PathInCopy;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the backups of a cluster, or of all
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show one backup with everything in it
    Show {
        #[command(flatten)]
        place: Place,
        /// Which: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
        #[arg(long, default_value = "latest", value_name = "SELECTOR")]
        backup: Selector,
        #[command(flatten)]
        identity: Identity,
    },
    /// Read backups again, byte by byte, and compare them with what was written
    Verify {
        #[command(flatten)]
        place: Place,
        /// Only this one; without it, all of them
        #[arg(long, value_name = "SELECTOR")]
        backup: Option<Selector>,
        /// A share of them each day: with 1/7 every backup is read once a week
        #[arg(long, value_name = "N/T", conflicts_with = "backup")]
        sample: Option<Sample>,
        #[command(flatten)]
        identity: Identity,
    },
    /// Keep a backup whatever retention says, in every repository of the policy that holds it
    Pin {
        #[command(flatten)]
        place: Place,
        /// Which: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
        #[arg(long, value_name = "SELECTOR")]
        backup: Selector,
        /// Why, for whoever finds it in a year
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long: 90d, 2027-03-31 (that day included), 2027-03-31T12:00Z; without it, until unpinned
        #[arg(long, value_name = "WHEN")]
        until: Option<pin::Until>,
    },
    /// Leave a pinned backup to retention again
    Unpin {
        #[command(flatten)]
        place: Place,
        /// Which: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
        #[arg(long, value_name = "SELECTOR")]
        backup: Selector,
    },
    /// Write a backup to a folder that needs no pglife, and check every byte on the way
    Export {
        #[command(flatten)]
        place: Place,
        /// Which: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
        #[arg(long, default_value = "latest", value_name = "SELECTOR")]
        backup: Selector,
        /// The folder: empty, or not there yet
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// Only this file of a copy of volumes, or every file below this folder, by its name in the tar: data/17/base; can be repeated
        #[arg(long = "path", value_name = "NAME")]
        paths: Vec<PathInCopy>,
        #[command(flatten)]
        identity: Identity,
    },
    /// Delete one backup
    Delete {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        wish: delete::Wish,
    },
}

#[derive(Debug, clap::Args)]
struct Identity {
    /// The file with the key of encrypted backups, instead of the configured one
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    match &args.command {
        Command::List { place } => list(&control, place, context),
        Command::Show { place, backup, identity } => {
            show(&control, place, backup, identity.identity.as_deref(), context)
        }
        Command::Verify { place, backup, sample, identity } => {
            let wish = Wish { backup: backup.as_ref(), sample: *sample, identity: identity.identity.as_deref() };
            verify(&control, place, &wish, context).await
        }
        Command::Pin { place, backup, reason, until } => pin::pin(&control, place, backup, reason, *until, context),
        Command::Unpin { place, backup } => pin::unpin(&control, place, backup, context),
        Command::Export { place, backup, to, paths, identity } => {
            let wish = export::Wish { backup, paths, identity: identity.identity.as_deref() };
            export::run(&control, place, &wish, to, context).await
        }
        Command::Delete { place, wish } => delete::run(&control, place, wish, context).await,
    }
}

fn policy<'a>(control: &'a ControlPlane, place: &Place) -> Result<&'a Policy, Failure> {
    Ok(control.configuration.select(place.cluster.as_ref())?)
}

/// A set as listed.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    commit: &'a Commit,
    repositories: &'a [RepoName],
    #[serde(rename = "pinned", skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    /// When a drill proved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven_at: Option<Timestamp>,
}

fn list(control: &ControlPlane, place: &Place, context: &Context) -> Result<Exit, Failure> {
    let mut sets: Vec<Held> = Vec::new();
    let mut exit = Exit::Ok;
    let now = Timestamp::now();
    for policy in control.configuration.select_all(place.cluster.as_ref())? {
        let repositories = control.repositories_of(policy, place.repo.as_ref())?;
        let holdings = repositories.holdings(control, policy)?;
        sets.extend(holdings.sets);
        for problem in holdings.problems.iter().chain(repositories.failed.iter().map(|(_, error)| error)) {
            exit = Exit::Warnings;
            context.output.note(&format!("warning: {}", problem.chain()));
        }
    }
    for set in sets.iter().map(|held| &held.commit).filter(|set| set.damaged_pages > 0) {
        context.output.note(&format!(
            "warning: {} is suspect: it has {} pages that were damaged on the disk (pglife backups show {} --backup {0})",
            set.set, set.damaged_pages, set.cluster
        ));
    }
    let items: Vec<Item<'_>> = sets
        .iter()
        .map(|held| Item {
            commit: &held.commit,
            repositories: &held.repositories,
            pin: pins::words(&held.pin, now),
            proven_at: held.proof().map(|proof| proof.ended_at),
        })
        .collect();
    context.output.items("BackupList", &items, |wide| {
        let mut heads = vec!["CLUSTER", "BACKUP", "COMPLETED", "AGE", "DATABASES", "SIZE", "STORED", "TOOK"];
        if wide {
            heads.extend([
                "REPOSITORIES",
                "LINEAGE",
                "WARNINGS",
                "ENCRYPTED",
                "PINNED",
                "PROVEN",
                "BUILDS ON",
                "NOT READ",
            ]);
        }
        let mut table = output::table(&heads);
        for Item { commit: set, repositories, pin, proven_at } in &items {
            let mut row = vec![
                set.cluster.to_string(),
                set.set.to_string(),
                set.completed_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                human::age(set.completed_at, now),
                set.databases.to_string(),
                human::bytes(set.plain_bytes),
                human::bytes(set.stored_bytes),
                human::duration(SignedDuration::from_secs(set.seconds())),
            ];
            if wide {
                row.extend([human::list(*repositories), set.lineage.to_string(), set.warnings.to_string()]);
                row.push(if set.encryption.is_some() { "yes" } else { "no" }.to_owned());
                row.push(pin.clone().unwrap_or_else(|| "-".to_owned()));
                row.push(proven_at.map_or_else(|| "-".to_owned(), |at| human::age(at, now)));
                row.push(set.parent.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string));
                row.push(set.parent.as_ref().map_or_else(|| "-".to_owned(), |_| human::bytes(set.unread_bytes)));
            }
            table.add_row(row);
        }
        table
    })?;
    Ok(exit)
}

fn show(
    control: &ControlPlane,
    place: &Place,
    backup: &Selector,
    identity: Option<&Path>,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let repositories = control.repositories_of(policy, place.repo.as_ref())?;
    let Found { repository, commit, elsewhere, .. } = repositories.find(control, policy, backup)?;
    let (manifest, _) = control.manifest(repository, &commit, identity).map_err(or_elsewhere(&elsewhere))?;
    context.output.items("BackupManifest", std::slice::from_ref(&manifest), |wide| {
        let heads: &[&str] = if wide {
            &["DATABASE", "OBJECT", "SIZE", "STORED", "TOOK", "BLAKE3"]
        } else {
            &["DATABASE", "OBJECT", "SIZE", "STORED", "TOOK"]
        };
        let mut table = output::table(heads);
        for object in &manifest.objects {
            let what = match &object.content {
                Content::Globals => "(roles and tablespaces)".to_owned(),
                Content::Database { database, .. } => database.to_string(),
                Content::Volume(copy) => format!("(volumes {})", copy.volumes.join(" ")),
                Content::Blocks => "(block index)".to_owned(),
                Content::Facts => "(facts)".to_owned(),
                Content::Recipe | Content::Instructions | Content::Details => "-".to_owned(),
            };
            let mut row = vec![
                what,
                object.name.clone(),
                human::bytes(object.plain.bytes),
                human::bytes(object.stored.bytes),
                format!("{:.1}s", object.seconds),
            ];
            row.extend(wide.then(|| object.stored.blake3.to_string()));
            table.add_row(row);
        }
        table
    })?;
    let folder = Key::new(commit.location().folder()).expect("names make a key");
    if let Some(pin) = pins::words(&catalogue::pin(repository.store(), &commit.location())?, Timestamp::now()) {
        context.output.note(&format!("pinned    {pin}"));
    }
    note_manifest(&manifest, &repository.store().place(Some(&folder)), context);
    Ok(Exit::Ok)
}

fn note_manifest(manifest: &Manifest, folder: &storage::Place, context: &Context) {
    let note = |text: String| context.output.note(&text);
    note(format!("backup    {} of cluster {}, lineage {}", manifest.set, manifest.cluster, manifest.lineage));
    note(format!(
        "server    PostgreSQL {}, image {} ({})",
        manifest.server.version, manifest.image.name, manifest.image.id
    ));
    note(format!(
        "taken     {} to {}, by pglife {}, codec {}",
        manifest.started_at.strftime("%Y-%m-%d %H:%M:%SZ"),
        manifest.completed_at.strftime("%H:%M:%SZ"),
        manifest.pglife,
        manifest.codec
    ));
    for ancestor in manifest.ancestors() {
        note(format!("builds on {}", ancestor.set));
    }
    if let Some(incremental) = manifest.volume().and_then(|(_, copy)| copy.incremental.as_ref()) {
        let (unread, all) = (human::bytes(incremental.unread_bytes), human::bytes(incremental.tar_bytes));
        note(format!(
            "not read  {unread} of {all}: nothing had changed there; their page checksums were not looked at"
        ));
        if let Some(why) = &incremental.summaries_unused {
            note(format!("summaries of the server's WAL did not tell what changed: {why}"));
        }
    }
    note(format!("folder    {folder}  (RECOVER.md there tells how to recover without pglife)"));
    if let Some(recipients) = &manifest.encryption {
        let names: Vec<&str> = recipients.all().map(Recipient::as_str).collect();
        note(format!("encrypted to {}", names.join(", ")));
    }
    for skipped in &manifest.skipped {
        note(format!("left out  {}: {}", skipped.database, skipped.reason));
    }
    for warning in &manifest.warnings {
        note(format!("warning   {warning}"));
    }
}

#[derive(Serialize)]
struct Row<'a> {
    cluster: &'a ClusterName,
    repository: RepoName,
    #[serde(flatten)]
    verified: Verified,
}

/// What is to be verified, and with what.
struct Wish<'a> {
    backup: Option<&'a Selector>,
    sample: Option<Sample>,
    identity: Option<&'a Path>,
}

async fn verify(control: &ControlPlane, place: &Place, wish: &Wish<'_>, context: &Context) -> Result<Exit, Failure> {
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let mut rows = Vec::new();
    let mut broken = Vec::new();
    let mut unreachable = Vec::new();
    let policies = match wish.backup {
        // A selector means one set, so it needs one cluster.
        Some(_) => vec![policy(control, place)?],
        None => control.configuration.select_all(place.cluster.as_ref())?,
    };
    let reporter = context.reporter();
    for policy in policies {
        let repositories = control.repositories_of(policy, place.repo.as_ref())?;
        let holdings = repositories.holdings(control, policy)?;
        let chosen = match wish.backup {
            Some(selector) => Some(holdings.select(policy, selector)?.commit.set.clone()),
            None => None,
        };
        // One that builds on others is as good as they are.
        let chosen = chosen.map(|chosen| {
            let parents = Parents::of(holdings.sets.iter().map(|held| &held.commit));
            let mut all: BTreeSet<SetId> = parents.ancestors(&chosen).cloned().collect();
            all.insert(chosen);
            all
        });
        let wanted = |held: &&Held| {
            let set = &held.commit.set;
            chosen.as_ref().is_none_or(|chosen| chosen.contains(set))
                && wish.sample.is_none_or(|sample| sample.takes(set, today))
        };
        let mut lost = BTreeSet::new();
        let first = rows.len();
        for held in holdings.sets.iter().filter(wanted) {
            // Every copy is verified: one that is intact says nothing of another.
            for (name, repository) in repositories.open.iter().filter(|(name, _)| held.repositories.contains(name)) {
                if lost.contains(name) {
                    continue;
                }
                let tick = |tick| reporter.tick(tick);
                let verified = match verification::verify(control, repository, &held.commit, wish.identity, &tick).await
                {
                    Ok(verified) => verified,
                    // Pruned since it was listed.
                    Err(error) if error.exit == Exit::NotFound && chosen.is_none() => continue,
                    // What another repository holds may be intact all the same.
                    Err(error) if error.exit == Exit::Repository && !control.cancel.is_cancelled() => {
                        lost.insert(name);
                        unreachable.push(error);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                broken.extend(verified.damage.iter().map(|damage| {
                    format!("{} in repository \"{name}\", {}: {}", verified.set, damage.object, damage.why)
                }));
                rows.push(Row { cluster: &policy.name, repository: name.clone(), verified });
            }
        }
        for (name, _) in &repositories.open {
            let here = holdings.sets.iter().filter(|held| held.repositories.contains(name)).map(|held| &held.commit);
            let rows = rows[first..].iter_mut().filter(|row: &&mut Row<'_>| row.repository == *name);
            let verified: Vec<&mut Verified> = rows.map(|row| &mut row.verified).collect();
            let damaged = verified.iter().filter(|one| !one.intact).map(|one| one.set.clone()).collect();
            let suspects = verification::suspects(here, &damaged);
            for one in verified {
                one.suspect = suspects.get(&one.set).cloned();
                broken.extend(one.suspect.iter().map(|ancestor| verification::suspicion(&one.set, name, ancestor)));
            }
        }
        for problem in holdings.problems {
            match problem.exit {
                Exit::VerifyFailed => broken.push(problem.chain()),
                _ => unreachable.push(problem),
            }
        }
        unreachable.extend(repositories.failed.into_iter().map(|(_, error)| error));
    }
    reporter.finish();
    context.output.items("VerificationList", &rows, |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "REPOSITORY", "VERDICT", "OBJECTS", "READ"]);
        for row in &rows {
            let verdict = match (row.verified.intact, row.verified.opened) {
                (true, _) if row.verified.suspect.is_some() => "SUSPECT".to_owned(),
                (true, true) => "intact".to_owned(),
                (true, false) => "intact outside".to_owned(),
                (false, _) => format!("{} DAMAGED", row.verified.damage.len()),
            };
            table.add_row([
                row.cluster.to_string(),
                row.verified.set.to_string(),
                row.repository.to_string(),
                verdict,
                row.verified.objects.to_string(),
                human::bytes(row.verified.stored_bytes),
            ]);
        }
        table
    })?;
    if rows.iter().any(|row| row.verified.intact && !row.verified.opened) {
        context.output.note(
            "intact outside: every stored byte is what was written, but the content was not opened, because no key is here; \
             to open it: --identity FILE",
        );
    }
    if broken.is_empty() {
        // What could not be looked at is not intact.
        return unreachable.into_iter().next().map_or(Ok(Exit::Ok), |error| Err(error.into()));
    }
    Err(Failure::message(Exit::VerifyFailed, format!("backups are damaged:\n  {}", broken.join("\n  ")))
        .next("take a new backup now, find out what happened to the disk, and keep the damaged set until the new one is verified"))
}
