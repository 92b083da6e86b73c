//! `pglife env`: environments of containers, kept in Consul's KV.
//!
//! `pglife env CLUSTER -- COMMAND` needs no configuration, only what tools of Consul read from the environment
//! (`CONSUL_HTTP_ADDR`, …): it runs inside any container. The command takes pglife's place, so it has its process id, its signals and
//! its exit code; with `--watch` pglife stays beside it.

mod connection;
mod server_settings;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::Subcommand;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::consul::{Consul, ConsulError};
use crate::control::failed;
use crate::environment::{Merged, VariableName, merge};
use crate::exit::Exit;
use crate::policy::Duration;

use watch::OnChange;

/// The command line.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    keys: Option<Keys>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Set a variable for the containers of a cluster
    Set {
        /// The cluster
        cluster: ClusterName,
        /// The variable
        name: VariableName,
        /// Its value; `-` reads it from stdin, so that nobody sees it in a list of processes
        value: OsString,
    },
    /// Print the value of a variable, as it is
    Get {
        /// The cluster
        cluster: ClusterName,
        /// The variable
        name: VariableName,
    },
    /// List the variables
    List {
        /// The cluster
        cluster: ClusterName,
        /// Show the values too, secret or not
        #[arg(long)]
        values: bool,
    },
    /// Remove a variable
    Unset {
        /// The cluster
        cluster: ClusterName,
        /// The variable
        name: VariableName,
    },
}

/// Running a command.
#[derive(Debug, clap::Args)]
struct Run {
    /// The cluster whose variables the command gets
    #[arg(required = true)]
    cluster: Option<ClusterName>,
    /// Variables that the container has already are replaced too
    #[arg(long = "override")]
    over: bool,
    /// Go on without the variables where Consul is away
    #[arg(long)]
    optional: bool,
    /// How long Consul is waited for: 30s
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: Duration,
    /// Write the server's settings into this folder too, before the command starts: /config
    #[arg(long, value_name = "FOLDER")]
    settings: Option<PathBuf>,
    /// Stay, and when a variable changes `restart` the command, or send it a signal: `signal:HUP`
    #[arg(long, value_name = "restart|signal:NAME")]
    watch: Option<OnChange>,
    /// How long a command that is restarted may take to end
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    stop_within: Duration,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    match args.keys {
        None => execute(args.run, context).await,
        Some(keys) => {
            let consul = connection::open(context)?;
            let what = "the environment was not changed";
            match keys {
                Keys::Set { cluster, name, value } => {
                    let value = if value == "-" { from_stdin()? } else { value.as_bytes().to_vec() };
                    if value.contains(&0) {
                        return Err(Failure::message(Exit::Usage, format!("{what}: the value of {name} holds a NUL")));
                    }
                    consul.put(&key(&consul, &cluster, &name), value).await.map_err(away(what))?;
                }
                Keys::Unset { cluster, name } => {
                    consul.delete(&key(&consul, &cluster, &name)).await.map_err(away(what))?;
                }
                Keys::Get { cluster, name } => return get(&consul, &cluster, &name, context).await,
                Keys::List { cluster, values } => list(&consul, &cluster, values, context).await?,
            }
            Ok(Exit::Ok)
        }
    }
}

/// Where the variables of a cluster are.
fn folder(consul: &Consul, cluster: &ClusterName) -> String {
    consul.key(&format!("env/{cluster}"))
}

fn key(consul: &Consul, cluster: &ClusterName, name: &VariableName) -> String {
    format!("{}/{name}", folder(consul, cluster))
}

fn away(what: &str) -> impl Fn(ConsulError) -> Failure {
    move |error| failed(what)(error).into()
}

fn from_stdin() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = std::io::stdin().read_to_end(&mut value);
    read.map_err(|error| Failure::new(Exit::Failed, anyhow::Error::new(error).context("stdin cannot be read")))?;
    // What an editor or `echo` adds.
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Ok(value)
}

async fn get(consul: &Consul, cluster: &ClusterName, name: &VariableName, context: &Context) -> Result<Exit, Failure> {
    let found = consul.get(&key(consul, cluster, name)).await.map_err(away("the environment cannot be read"))?;
    let Some(found) = found else {
        let what = format!("{name} is not set for cluster \"{cluster}\"");
        return Err(Failure::message(Exit::NotFound, what).next(format!("pglife env list {cluster}")));
    };
    context.output.bytes(&found.bytes())?;
    Ok(Exit::Ok)
}

/// A row of `env list`.
#[derive(Serialize)]
struct Row {
    name: String,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Why it is not set for commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfit: Option<String>,
}

async fn list(consul: &Consul, cluster: &ClusterName, values: bool, context: &Context) -> Result<(), Failure> {
    let tree = consul.tree(&folder(consul, cluster), None).await.map_err(away("the environment cannot be read"))?;
    let merged = merge(tree.values(), &BTreeSet::new(), true);
    let rows: Vec<Row> = tree
        .values()
        .map(|(name, value)| Row {
            bytes: value.len(),
            value: values.then(|| String::from_utf8_lossy(&value).into_owned()),
            unfit: merged.unfit.iter().find(|(unfit, _)| *unfit == name).map(|(_, why)| why.to_string()),
            name,
        })
        .collect();
    context.output.items("VariableList", &rows, |_| {
        let mut table = output::table(if values { &["NAME", "BYTES", "VALUE"] } else { &["NAME", "BYTES"] });
        for row in &rows {
            let mut cells = vec![row.name.clone(), row.bytes.to_string()];
            cells.extend(row.value.as_ref().map(|value| value.escape_debug().to_string()));
            table.add_row(cells);
        }
        table
    })?;
    for row in &rows {
        if let Some(why) = &row.unfit {
            context.output.note(&format!("{} is not set for commands: {why}", row.name));
        }
    }
    Ok(())
}

/// The variables of a cluster, as a command gets them.
struct Variables {
    consul: Consul,
    folder: String,
    own: BTreeSet<String>,
    over: bool,
}

impl Variables {
    /// Reads them, and the moment they are of.
    async fn read(&self) -> Result<(Merged, u64), ConsulError> {
        let tree = self.consul.tree(&self.folder, None).await?;
        Ok((merge(tree.values(), &self.own, self.over), tree.index))
    }

    /// Reads them after the next change. Consul's death does the command no harm: it is asked again.
    async fn next(&self, index: &mut Option<u64>) -> Merged {
        let heard = |error: Option<&ConsulError>| {
            if let Some(error) = error {
                tracing::warn!("{error}; the command goes on, and it is asked again");
            }
        };
        let tree = self.consul.next_tree(&self.folder, index, heard).await;
        merge(tree.values(), &self.own, self.over)
    }

    /// Reads them, and tries again for a while where Consul is away.
    async fn read_patiently(&self, patience: Duration) -> Result<(Merged, u64), ConsulError> {
        let began = Instant::now();
        loop {
            match self.read().await {
                Err(error) if error.is_passing() && began.elapsed() < patience.as_std() => {
                    tracing::debug!("{error}; it is tried again");
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
                read => return read,
            }
        }
    }
}

async fn execute(run: Run, context: &Context) -> Result<Exit, Failure> {
    let (Some(cluster), Some(program)) = (&run.cluster, run.command.first()) else {
        return Err(Failure::message(Exit::Usage, "a cluster and a command are needed"));
    };
    let consul = connection::open(context)?;
    let own = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let variables = Variables { folder: folder(&consul, cluster), consul, own, over: run.over };
    let what = format!("{} was not started", program.display());
    let read = match (variables.read_patiently(run.wait).await, &run.settings) {
        // Nothing is written before all is read.
        (Ok(read), Some(into)) => {
            let from = server_settings::folder(&variables.consul, cluster);
            match variables.consul.tree(&from, None).await {
                Ok(tree) => server_settings::write(into, tree.values(), &from, context).map(|()| Ok(read))?,
                Err(error) => Err(error),
            }
        }
        (read, _) => read,
    };
    let (merged, index) = match read {
        Ok((merged, index)) => (merged, Some(index)),
        Err(error) if run.optional => {
            let failure: Failure =
                failed("the variables cannot be read; the command is started without them")(error).into();
            context.output.note(&format!("pglife: warning: {}", failure.chain().join(": ")));
            (Merged::default(), None)
        }
        Err(error) => {
            return Err(away(&what)(error)
                .next("see to it, or start it without the variables: --optional, or wait: --wait 30s"));
        }
    };
    for (name, why) in &merged.unfit {
        context.output.note(&format!("pglife: warning: {} {name} is left out: {why}", variables.folder));
    }
    if let Some(on_change) = run.watch {
        let watched =
            watch::Watched { variables: &variables, command: &run.command, on_change, stop_within: run.stop_within };
        return watched.run(merged.set, index, context).await;
    }
    let mut command = std::process::Command::new(program);
    command.args(&run.command[1..]).envs(as_environment(&merged.set));
    let error = command.exec();
    Err(not_started(program, error, context))
}

fn as_environment(set: &BTreeMap<VariableName, Vec<u8>>) -> impl Iterator<Item = (&str, &OsStr)> {
    set.iter().map(|(name, value)| (name.as_str(), OsStr::from_bytes(value)))
}

/// As env(1) and shells tell it: 127 where there is no such program, else 126.
fn not_started(program: &OsStr, error: std::io::Error, context: &Context) -> Failure {
    context.end_with(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
    let what = format!("{} cannot be started", program.display());
    Failure::new(Exit::NotFound, anyhow::Error::new(error).context(what))
}
