//! The command line: what can be asked, and the way from the question to the exit code.
//!
//! ```text
//! main ──▶ Cli (clap) ──▶ start ──▶ run ──▶ cli/<subcommand>.rs ──▶ Exit, or Failure ──▶ exit code
//!                           │                     │
//!                     signals cancel        Output prints (data on stdout, all else on stderr)
//! ```
//!
//! A subcommand is a file in `cli/` with its clap `Args` and a `run(args, &Context) -> Result<Exit, Failure>`, a
//! variant of [`Command`], and a line in [`run`]. Only [`output`] prints.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use clap::{Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::configuration::{self, Configuration, Opened};
use crate::control::ControlPlane;
use crate::exit::Exit;
use crate::kv::{self, KvError, OnInvalid, Source};

mod backup;
mod backups;
mod check;
mod cluster;
mod completions;
mod config;
mod daemon;
mod deps;
mod doctor;
mod drill;
mod env;
mod events;
mod explain;
mod failure;
mod host;
pub mod human;
mod init;
mod key;
mod lock;
mod notify;
pub mod output;
mod policy;
mod progress;
mod prune;
mod repo;
mod restore;
mod selftest;
mod status;
mod upgrade;
mod version;

pub use failure::Failure;
pub use output::{Format, Output};
use progress::Reporter;

/// Looks after PostgreSQL clusters that run in Docker containers: backups that are proven to restore.
#[derive(Debug, Parser)]
#[command(name = "pglife", version, max_term_width = 120, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand understands.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The configuration file [default: ./pglife.toml, then /etc/pglife/pglife.toml]
    #[arg(short, long, global = true, env = "PGLIFE_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the answer is written
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|wide|json|jsonl|yaml"
    )]
    output: Format,
    /// How progress is shown, on stderr
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|plain|json|none"
    )]
    progress: ProgressMode,
    /// Print the answer and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log more to stderr; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How the log is written
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true, value_name = "text|json")]
    log_format: LogFormat,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, else nothing.
    #[default]
    Auto,
    /// A line now and then.
    Plain,
    /// JSON lines.
    Json,
    /// Nothing.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented pglife.toml and a first policy
    Init(init::Args),
    /// Show how the clusters and their backups are
    Status(status::Args),
    /// A gate for monitors: are the backups fresh, can the repositories be used
    Check(check::Args),
    /// Start what the policies schedule, until asked to end
    Daemon(daemon::Args),
    /// Show what happened
    Events(events::Args),
    /// Explain a check: why it says what it says, and what to do
    Explain(explain::Args),
    /// Make, take over, list and remove clusters
    Cluster(cluster::Args),
    /// Take a backup now
    Backup(backup::Args),
    /// List, show, verify, pin, export and delete backups
    Backups(backups::Args),
    /// Show which backups retention keeps and why; delete the others with --confirm
    Prune(prune::Args),
    /// Make a new cluster from a backup
    Restore(restore::Args),
    /// Prove a backup: restore it into a throwaway server and compare; show the certificates
    Drill(drill::Args),
    /// Spoil copies of a backup, and see that each is noticed
    Selftest(selftest::Args),
    /// Move a cluster to a newer major version; see, resume and undo it
    Upgrade(upgrade::Args),
    /// Make, list, check and clear repositories
    Repo(repo::Args),
    /// Make the keys of encrypted backups, and check that they open them
    Key(key::Args),
    /// Containers that depend on clusters: list them, restart them in order
    Deps(deps::Args),
    /// Run a command with a cluster's variables from Consul; set and list them
    Env(env::Args),
    /// List the Docker hosts, and try to use them
    Host(host::Args),
    /// Who works on which cluster; break a lock in Consul
    Lock(lock::Args),
    /// Tell those who are to be told that this is a test
    Notify(notify::Args),
    /// Check and show policies
    Policy(policy::Args),
    /// Policies in Consul's KV: show them, put them there, get them into files
    Config(config::Args),
    /// Try everything a backup needs, and say what to mend
    Doctor,
    /// Print the completions of a shell
    Completions(completions::Args),
    /// Print the version
    Version,
    /// Work next to the data; started by pglife itself, with its orders on stdin
    #[command(hide = true)]
    Worker,
}

/// What a subcommand works with.
#[derive(Debug)]
pub struct Context {
    config: Option<PathBuf>,
    /// The only way to print.
    pub output: Output,
    /// How progress is shown; [`ProgressMode::Auto`] is already decided.
    pub progress: ProgressMode,
    /// Cancelled by SIGINT and SIGTERM: end in good order, soon.
    pub cancel: CancellationToken,
    /// How the process ends where another program says it.
    ends_with: OnceLock<u8>,
}

impl Context {
    /// Reads `pglife.toml` alone.
    fn settings(&self) -> Result<Opened, Failure> {
        Ok(configuration::open(self.config.as_deref())?)
    }

    /// Reads the configuration; every call reads it again. Where its policies are a copy of what was in Consul, it says so.
    pub async fn configuration(&self) -> Result<Configuration, Failure> {
        Ok(self.load().await?)
    }

    async fn load(&self) -> Result<Configuration, KvError> {
        let loaded = kv::load(self.config.as_deref(), OnInvalid::Tell).await?;
        if let Source::Copy { stale, .. } = loaded.source {
            self.output.note(&format!("pglife: warning: {stale}"));
        }
        Ok(loaded.configuration)
    }

    /// Reads the configuration and opens the state that belongs to it.
    pub async fn control(&self) -> Result<ControlPlane, Failure> {
        Ok(ControlPlane::open(self.configuration().await?, self.cancel.clone())?)
    }

    /// The process ends with the exit code of another program, not with one of pglife's.
    fn end_with(&self, code: u8) {
        self.ends_with.set(code).ok();
    }

    /// Shows progress as it was asked for.
    fn reporter(&self) -> Reporter {
        Reporter::new(self.progress, &self.output)
    }

    /// Asks the operator before something that cannot be undone, unless `--yes` was given. `what` completes "About to …".
    pub async fn confirm(&self, yes: bool, what: &str) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        let refuse = |reason: &str| {
            Failure::message(Exit::Refused, format!("refused to {what}: {reason}")).next("add --yes if that is meant")
        };
        if !io::stdin().is_terminal() {
            return Err(refuse("nobody is there to confirm it"));
        }
        output::prompt(&format!("About to {what}. Type yes to go on: "))?;
        let answer = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        // Nothing is lost with a question that is not answered: the process is about to end.
        let answer = tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Ok(String::new())).unwrap_or_default(),
            () = self.cancel.cancelled() => String::new(),
        };
        if answer.trim() == "yes" { Ok(()) } else { Err(refuse("it was not confirmed")) }
    }
}

/// Runs what the command line asks for, to the exit code.
pub async fn start(cli: Cli) -> u8 {
    let Cli { global, command } = cli;
    start_log(&global);
    let output = Output::new(global.output, global.quiet);
    let cancel = CancellationToken::new();
    let signals = match Signals::listen(cancel.clone()) {
        Ok(signals) => signals,
        Err(error) => {
            let failure = Failure::new(Exit::Failed, anyhow::Error::new(error).context("signals cannot be received"));
            output.failure(&failure);
            return failure.exit.code();
        }
    };
    let progress = match global.progress {
        ProgressMode::Auto if global.quiet || !io::stderr().is_terminal() => ProgressMode::None,
        chosen => chosen,
    };
    let context = Context { config: global.config, output, progress, cancel, ends_with: OnceLock::new() };
    let ended = Box::pin(run(command, &context)).await;
    let exit = match ended {
        Ok(exit) => exit,
        Err(mut failure) => {
            // What fails after a signal fails because of it.
            failure.exit = signals.received().unwrap_or(failure.exit);
            context.output.failure(&failure);
            failure.exit
        }
    };
    signals.listener.abort();
    context.ends_with.get().copied().unwrap_or(exit.code())
}

async fn run(command: Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Init(args) => init::run(&args, context),
        Command::Status(args) => status::run(&args, context).await,
        Command::Check(args) => check::run(&args, context).await,
        Command::Daemon(args) => daemon::run(&args, context).await,
        Command::Events(args) => events::run(&args, context).await,
        Command::Explain(args) => explain::run(&args, context).await,
        Command::Cluster(args) => cluster::run(args, context).await,
        Command::Backup(args) => backup::run(&args, context).await,
        Command::Backups(args) => backups::run(&args, context).await,
        Command::Prune(args) => prune::run(&args, context).await,
        Command::Restore(args) => Box::pin(restore::run(args, context)).await,
        Command::Drill(args) => Box::pin(drill::run(args, context)).await,
        Command::Selftest(args) => selftest::run(args, context).await,
        Command::Upgrade(args) => Box::pin(upgrade::run(args, context)).await,
        Command::Repo(args) => repo::run(&args, context).await,
        Command::Key(args) => key::run(&args, context).await,
        Command::Deps(args) => deps::run(&args, context).await,
        Command::Env(args) => env::run(args, context).await,
        Command::Host(args) => host::run(&args, context).await,
        Command::Lock(args) => lock::run(&args, context).await,
        Command::Notify(args) => notify::run(&args, context).await,
        Command::Policy(args) => policy::run(args, context).await,
        Command::Config(args) => config::run(args, context).await,
        Command::Doctor => doctor::run(context).await,
        Command::Completions(args) => completions::run(&args, context),
        Command::Version => version::run(context),
        Command::Worker => Ok(crate::worker::process::run().await),
    }
}

/// Listens for SIGINT and SIGTERM: the first one cancels, the second one ends the process at once.
struct Signals {
    listener: tokio::task::JoinHandle<()>,
    received: Arc<OnceLock<Exit>>,
}

impl Signals {
    fn listen(cancel: CancellationToken) -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let received = Arc::new(OnceLock::new());
        let first = Arc::clone(&received);
        let listener = tokio::spawn(async move {
            loop {
                let exit = tokio::select! {
                    _ = interrupt.recv() => Exit::Interrupted,
                    _ = terminate.recv() => Exit::Terminated,
                };
                if first.set(exit).is_err() {
                    #[expect(clippy::disallowed_methods, reason = "the operator asked twice: end at once")]
                    std::process::exit(exit.code().into());
                }
                tracing::info!("signal received, ending");
                cancel.cancel();
            }
        });
        Ok(Self { listener, received })
    }

    fn received(&self) -> Option<Exit> {
        self.received.get().copied()
    }
}

/// The log goes to stderr. `RUST_LOG` wins over `-v`, for the day when one module must be watched.
fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "pglife=info,warn",
        (false, 2) => "pglife=debug,info",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    match global.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[tokio::test]
    async fn a_signal_cancels_and_names_the_exit_code() {
        let cancel = CancellationToken::new();
        let signals = Signals::listen(cancel.clone()).expect("signals can be received");
        assert_eq!(signals.received(), None);
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::TERM).expect("the signal is sent");
        cancel.cancelled().await;
        assert_eq!(signals.received(), Some(Exit::Terminated));
        signals.listener.abort();
    }

    #[test]
    fn global_options_are_understood_everywhere() {
        for line in [
            "pglife -o json policy next",
            "pglife policy next -o jsonl -n 3 main",
            "pglife policy validate -c x.toml -vv --progress plain --log-format json",
            "pglife version -q",
        ] {
            Cli::try_parse_from(line.split(' ')).expect(line);
        }
        for line in
            ["pglife", "pglife policy", "pglife -q -v version", "pglife -o xml version", "pglife policy next x y"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
