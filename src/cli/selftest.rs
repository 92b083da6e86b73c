//! `pglife selftest`: prints what was spoiled, and by what it was noticed.

use std::path::PathBuf;

use super::{Context, Failure, human, output};
use crate::backup_set::Selector;
use crate::cluster::{ClusterName, RepoName};
use crate::exit::Exit;
use crate::selftest::{self, Noticed, SelftestRequest};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster the backup is of; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Which backup: an id or its beginning, latest, latest:proven, oldest, @2026-11-01T00:00Z
    #[arg(long, default_value = "latest:dump", value_name = "SELECTOR")]
    backup: Selector,
    /// Only this kind of mutation, such as flip or drop-row; may be given again
    #[arg(long, value_name = "MUTATION")]
    only: Vec<String>,
    /// The repository, instead of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
    /// The file with the key of an encrypted backup, instead of the configured one
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The folder for the copies, on the Docker host; the state directory without it
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(args.cluster.as_ref())?;
    let scratch = args.scratch.map(std::path::absolute).transpose();
    let request = SelftestRequest {
        backup: args.backup,
        repository: args.repo,
        identity: args.identity,
        only: args.only,
        scratch: scratch.map_err(|error| Failure::new(Exit::Usage, anyhow::Error::new(error).context("--scratch")))?,
    };
    let reporter = context.reporter();
    let tested = Box::pin(selftest::selftest(&control, policy, &request, &|tick| reporter.tick(tick))).await;
    reporter.finish();
    let tested = tested?;
    context.output.items("Selftest", &tested.trials, |_| {
        let mut table = output::table(&["MUTATION", "RESULT", "BY", "FOUND", "TOOK"]);
        for trial in &tested.trials {
            let result = match trial.result {
                Noticed::Noticed => "noticed",
                Noticed::Missed => "MISSED",
                Noticed::NotApplicable => "not applicable",
            };
            table.add_row([
                trial.mutation.clone(),
                result.to_owned(),
                trial.by.join(", "),
                trial.found.first().cloned().unwrap_or_default(),
                human::seconds(trial.seconds),
            ]);
        }
        table
    })?;
    let missed: Vec<&str> = tested.missed().map(|trial| trial.mutation.as_str()).collect();
    let noticed = tested.trials.iter().filter(|trial| trial.result == Noticed::Noticed).count();
    match tested.exit() {
        Exit::Ok => {
            context.output.note(&format!("{noticed} ways to spoil {}: all noticed", tested.set));
            Ok(Exit::Ok)
        }
        exit if missed.is_empty() => {
            let what = format!("nothing of {} could be spoiled, so nothing was tested", tested.set);
            Err(Failure::message(exit, what).next("take a backup of a database with rows in it, and name that"))
        }
        exit => {
            let what = format!("copies of {} that were spoiled pass as good: {}", tested.set, missed.join(", "));
            Err(Failure::message(exit, what)
                .next("do not rely on verify and drill for this: report it, with the output of this command"))
        }
    }
}
