//! `pglife drill`: proves a backup, and shows the certificates of drills.

use std::num::NonZeroU16;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup_set::certificate::{Certificate, Check, Outcome};
use crate::backup_set::{Selector, SetId};
use crate::cluster::{ClusterName, PgMajor, RepoName};
use crate::control::{ControlPlane, OperationError};
use crate::drill::{self, DrillRequest, Drilled, Judgement, Keep, Kept, Listed};
use crate::exit::Exit;
use crate::policy::{Duration, DurationError};

/// The command line.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    wish: Wish,
}

#[derive(Debug, clap::Args)]
struct Wish {
    /// The cluster the backup is of; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Which backup: an id or its beginning, latest, latest:volume, latest:unproven, oldest, @2026-11-01T00:00Z
    #[arg(long, default_value = "latest", value_name = "SELECTOR")]
    backup: Selector,
    /// Rehearse an upgrade: restore into this newer major, and tell what would break
    #[arg(long, value_name = "MAJOR")]
    to: Option<PgMajor>,
    /// Write the result as JUnit XML too, whatever it is
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
    /// The file with the key of an encrypted backup, instead of the configured one
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Keep the restored server for so long, to look at it: 30m, 4h, 2d
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    keep: Option<Duration>,
    /// Keep it only where the backup is not proven; for 4h unless said otherwise
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = lifetime,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "4h",
        conflicts_with = "keep"
    )]
    keep_on_failure: Option<Duration>,
    /// Publish the server that is kept on 127.0.0.1, at this port; without it, it has no network
    #[arg(long, value_name = "PORT")]
    port: Option<NonZeroU16>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime: Duration = text.parse().map_err(|error: DurationError| error.to_string())?;
    if lifetime == Duration::ZERO || lifetime > drill::LONGEST {
        return Err(format!("a server is kept for {} at most, and for longer than nothing", drill::LONGEST));
    }
    Ok(lifetime)
}

impl Wish {
    /// What is to become of the server.
    fn keep(&self) -> Result<Option<Keep>, OperationError> {
        let keep = |lifetime, only_on_failure| Some(Keep { lifetime, only_on_failure, port: self.port });
        match (self.keep, self.keep_on_failure) {
            (Some(lifetime), _) => Ok(keep(lifetime, false)),
            (None, Some(lifetime)) => Ok(keep(lifetime, true)),
            (None, None) if self.port.is_some() => {
                let what = "--port is of a server that is kept, and none is";
                Err(OperationError::new(Exit::Usage, what).next("add --keep 4h, or --keep-on-failure"))
            }
            (None, None) => Ok(None),
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the certificates of drills
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show the last certificate of a backup
    Show {
        #[command(flatten)]
        place: Place,
        /// Which backup: an id or its beginning; without it, the one that was drilled last
        #[arg(long, value_name = "SELECTOR")]
        backup: Option<Selector>,
    },
    /// Remove the server that a drill keeps
    Remove {
        /// The cluster that was drilled; not needed when there is only one
        cluster: Option<ClusterName>,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    match args.command {
        None => prove(args.wish, context).await,
        Some(Command::List { place }) => list(&place, context).await,
        Some(Command::Show { place, backup }) => show(&place, backup.as_ref(), context).await,
        Some(Command::Remove { cluster }) => remove(cluster.as_ref(), context).await,
    }
}

/// What came of a drill, for programs.
#[derive(Serialize)]
struct Item<'a> {
    result: String,
    rehearsal: bool,
    certified_in: &'a [RepoName],
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a Kept>,
    #[serde(flatten)]
    certificate: &'a Certificate,
}

async fn prove(wish: Wish, context: &Context) -> Result<Exit, Failure> {
    let cluster = wish.cluster.as_ref().map_or_else(|| "pglife".to_owned(), ToString::to_string);
    let ended = drilled(&wish, context).await;
    if let Some(file) = &wish.junit {
        let name = match &ended {
            Ok(drilled) => drilled.certificate.cluster.to_string(),
            Err(_) => cluster,
        };
        let xml = drill::junit::xml(&name, &ended);
        if let Err(error) = std::fs::write(file, xml) {
            let what = format!("the report cannot be written to {}", file.display());
            let unwritten = Failure::new(Exit::Failed, anyhow::Error::new(error).context(what));
            return match ended {
                // What the drill came to counts for more.
                Err(error) => Err(error.into()),
                Ok(drilled) if matches!(drilled.judgement, Judgement::Bad) => tell(&drilled, context),
                Ok(_) => Err(unwritten),
            };
        }
    }
    tell(&ended?, context)
}

async fn drilled(wish: &Wish, context: &Context) -> Result<Drilled, OperationError> {
    let flat = |failure: Failure| {
        let what = failure.chain().join(": ");
        OperationError { next: failure.next, ..OperationError::new(failure.exit, what) }
    };
    let control = context.control().await.map_err(flat)?;
    let policy = control.configuration.select(wish.cluster.as_ref()).map_err(|error| flat(error.into()))?;
    let request = DrillRequest {
        backup: wish.backup.clone(),
        repository: wish.repo.clone(),
        identity: wish.identity.clone(),
        major: wish.to,
    };
    let keep = wish.keep()?;
    let reporter = context.reporter();
    let drilled = Box::pin(drill::drill_and_keep(&control, policy, &request, keep, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    drilled
}

/// Prints what a drill came to.
fn tell(drilled: &Drilled, context: &Context) -> Result<Exit, Failure> {
    let certificate = &drilled.certificate;
    let item = Item {
        result: match &drilled.judgement {
            Judgement::Proven => "proven".to_owned(),
            Judgement::Bad => "bad".to_owned(),
            Judgement::Unknown(_) => "not judged".to_owned(),
        },
        rehearsal: drilled.rehearsal,
        certified_in: &drilled.certified,
        warnings: &drilled.warnings,
        kept: drilled.kept.as_ref(),
        certificate,
    };
    context.output.items("Drill", &[item], |_| checks_table(certificate))?;
    for warning in &drilled.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    let subject = format!("backup {} of cluster \"{}\"", certificate.set, certificate.cluster);
    if let Some(extent) = &certificate.extent {
        context.output.note(&format!(
            "compared: {} databases, {} tables with {} rows ({} tables by content), {} sequences, {} other statements",
            extent.databases, extent.tables, extent.rows, extent.hashed, extent.sequences, extent.statements
        ));
    }
    let stages: Vec<String> =
        certificate.stages.iter().map(|stage| format!("{} {}", stage.name, human::seconds(stage.seconds))).collect();
    if !stages.is_empty() {
        context.output.note(&format!(
            "took: {}; a restore takes {}",
            stages.join(", "),
            human::seconds(certificate.rto_seconds)
        ));
    }
    if let Some(kept) = &drilled.kept {
        let mut ways = kept.connect.iter();
        context.output.note(&format!("kept until {}: {}", kept.until, ways.next().map_or("", String::as_str)));
        for way in ways {
            context.output.note(&format!("from this machine, with a password of the cluster's: {way}"));
        }
        context.output.note(&format!("to remove it before: pglife drill remove {}", certificate.cluster));
    }
    let findings = || {
        let faults = |check: &Check| check.faults().map(|found| format!("{}: {found}", check.name)).collect::<Vec<_>>();
        let red = certificate.red().flat_map(faults);
        red.take(20).collect::<Vec<_>>().join("\n  ")
    };
    match &drilled.judgement {
        Judgement::Proven if drilled.rehearsal => {
            context.output.note(&format!(
                "{subject} restores into PostgreSQL {}; a rehearsal is no proof of the backup, and leaves no certificate",
                certificate.major
            ));
            Ok(drilled.exit())
        }
        Judgement::Proven => {
            context.output.note(&format!("{subject} is proven; certificate in {}", human::list(&drilled.certified)));
            Ok(drilled.exit())
        }
        Judgement::Bad if drilled.rehearsal => {
            let what =
                format!("{subject} does not come through an upgrade to {}:\n  {}", certificate.major, findings());
            Err(Failure::message(drilled.exit(), what)
                .next("mend what is named above in the cluster, take a new backup, and rehearse again"))
        }
        Judgement::Bad => {
            let what = format!("{subject} is BAD: it does not bring back what was backed up:\n  {}", findings());
            let next = format!(
                "take a new backup and drill it: pglife backup {0} && pglife drill {0}; meanwhile the newest proven one is: \
                 pglife backups show {0} --backup latest:proven",
                certificate.cluster
            );
            Err(Failure::message(drilled.exit(), what).next(next))
        }
        Judgement::Unknown(open) => {
            let words = findings();
            let words = if words.is_empty() { String::new() } else { format!(":\n  {words}") };
            let what = format!("{subject} was restored, but is not judged: not checked: {}{words}", open.join(", "));
            let next = if certificate.checks.iter().all(|check| check.name != "facts")
                && open.iter().any(|name| name == "facts")
            {
                "it was taken without facts by an earlier pglife: take a new backup, and drill that"
            } else {
                "mend what kept the checks from being made, then run the same command again"
            };
            Err(Failure::message(drilled.exit(), what).next(next))
        }
    }
}

/// Something that is gone.
#[derive(Serialize)]
struct Gone {
    what: &'static str,
    name: String,
}

async fn remove(cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(cluster)?;
    let removed = drill::remove(&control, policy).await?;
    let containers = removed.containers.into_iter().map(|name| Gone { what: "container", name });
    let volumes = removed.volumes.into_iter().map(|name| Gone { what: "volume", name });
    let gone: Vec<Gone> = containers.chain(volumes).collect();
    context.output.items("RemovedList", &gone, |_| {
        let mut table = output::table(&["REMOVED", "NAME"]);
        for Gone { what, name } in &gone {
            table.add_row([*what, name.as_str()]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

fn checks_table(certificate: &Certificate) -> comfy_table::Table {
    let mut table = output::table(&["BACKUP", "CHECK", "RESULT", "FINDINGS", "TOOK"]);
    for check in &certificate.checks {
        let result = match check.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Unknown => "unknown",
        };
        table.add_row([
            certificate.set.to_string(),
            check.name.clone(),
            result.to_owned(),
            check.found.len().to_string(),
            human::seconds(check.seconds),
        ]);
    }
    table
}

fn certificates(control: &ControlPlane, place: &Place, context: &Context) -> Result<(Vec<Listed>, Exit), Failure> {
    let (mut all, mut exit) = (Vec::new(), Exit::Ok);
    for policy in control.configuration.select_all(place.cluster.as_ref())? {
        let repositories = control.repositories_of(policy, place.repo.as_ref())?;
        for (_, error) in &repositories.failed {
            exit = Exit::Warnings;
            context.output.note(&format!("warning: {}", error.chain()));
        }
        all.extend(drill::list(control, policy, &repositories)?);
    }
    for broken in all.iter().filter(|listed| !listed.chained) {
        exit = Exit::Warnings;
        context.output.note(&format!(
            "warning: the certificate of {} does not follow the one before it: something was changed or taken away",
            broken.certificate.set
        ));
    }
    Ok((all, exit))
}

async fn list(place: &Place, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let (all, exit) = certificates(&control, place, context)?;
    let now = Timestamp::now();
    context.output.items("CertificateList", &all, |wide| {
        let mut heads = vec!["CLUSTER", "BACKUP", "VERDICT", "AGE", "RESTORE TOOK", "CHANGE", "BUDGET", "ROWS"];
        if wide {
            heads.extend(["REPOSITORIES", "CHAINED", "IMAGE", "BY"]);
        }
        let mut table = output::table(&heads);
        for Listed { certificate, repositories, recovery, chained } in &all {
            let mut row = vec![
                certificate.cluster.to_string(),
                certificate.set.to_string(),
                certificate.verdict.to_string(),
                human::age(certificate.ended_at, now),
                human::seconds(certificate.rto_seconds),
                recovery
                    .as_ref()
                    .and_then(|recovery| recovery.change_percent)
                    .map_or_else(|| "-".to_owned(), |change| format!("{change:+.0} %")),
                certificate.rto_budget_seconds.map_or_else(|| "-".to_owned(), human::seconds),
                certificate.extent.as_ref().map_or_else(|| "-".to_owned(), |extent| extent.rows.to_string()),
            ];
            if wide {
                row.extend([
                    human::list(repositories),
                    if *chained { "yes" } else { "NO" }.to_owned(),
                    certificate.image.name.clone(),
                    certificate.by.clone(),
                ]);
            }
            table.add_row(row);
        }
        table
    })?;
    Ok(exit)
}

async fn show(place: &Place, backup: Option<&Selector>, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(place.cluster.as_ref())?;
    let place = Place { cluster: Some(policy.name.clone()), repo: place.repo.clone() };
    let set: Option<SetId> = match backup {
        None => None,
        Some(selector) => {
            let repositories = control.repositories_of(policy, place.repo.as_ref())?;
            Some(repositories.find(&control, policy, selector)?.commit.set)
        }
    };
    let (all, exit) = certificates(&control, &place, context)?;
    let wanted = |listed: &&Listed| set.as_ref().is_none_or(|set| listed.certificate.set == *set);
    let Some(last) = all.iter().rfind(wanted) else {
        let subject = set.map_or_else(|| format!("cluster \"{}\"", policy.name), |set| format!("backup {set}"));
        return Err(Failure::message(Exit::NotFound, format!("{subject} has no certificate: no drill has judged it"))
            .next(format!("drill it: pglife drill {}", policy.name)));
    };
    context.output.items("Certificate", std::slice::from_ref(last), |_| checks_table(&last.certificate))?;
    if let Some(recovery) = &last.recovery {
        let median = human::seconds(recovery.median_seconds);
        context.output.note(&format!(
            "a restore takes {}; the median of the last {} is {median}",
            human::recovery(recovery),
            recovery.measurements
        ));
    }
    for check in &last.certificate.checks {
        for found in &check.found {
            context.output.note(&format!("{}: {found}", check.name));
        }
    }
    Ok(exit)
}
