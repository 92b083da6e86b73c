//! `pglife host list|check`: the Docker engines, and whether they can be used.

use std::time::Instant;

use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::{ClusterName, HostName};
use crate::configuration::Configuration;
use crate::control::{ControlPlane, failed};
use crate::exit::Exit;
use crate::settings::Endpoint;

/// The command line.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the Docker hosts of pglife.toml
    List,
    /// Try to use each of them, or one
    Check {
        /// The host [default: all]
        host: Option<HostName>,
    },
}

/// A row of `host list`.
#[derive(Debug, Serialize)]
struct HostRow {
    host: HostName,
    endpoint: String,
    /// Reached by mutual TLS; else this machine's own.
    tls: bool,
    clusters: Vec<ClusterName>,
}

/// A row of `host check`.
#[derive(Debug, Serialize)]
struct HostCheck {
    #[serde(flatten)]
    host: HostRow,
    /// The engine's version.
    docker: Option<String>,
    /// How long it took to answer, in seconds.
    seconds: f64,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    match &args.command {
        Command::List => list(context).await,
        Command::Check { host } => check(host.as_ref(), context).await,
    }
}

fn row(configuration: &Configuration, host: &HostName, endpoint: &Endpoint) -> HostRow {
    let on_it = configuration.policies.values().filter(|policy| policy.host == *host);
    HostRow {
        host: host.clone(),
        endpoint: endpoint.to_string(),
        tls: matches!(endpoint, Endpoint::Tls { .. }),
        clusters: on_it.map(|policy| policy.name.clone()).collect(),
    }
}

fn names(clusters: &[ClusterName]) -> String {
    if clusters.is_empty() {
        return "-".to_owned();
    }
    clusters.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(", ")
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let configuration = context.configuration().await?;
    let hosts = &configuration.settings.hosts;
    let rows: Vec<HostRow> = hosts.iter().map(|(host, endpoint)| row(&configuration, host, endpoint)).collect();
    context.output.items("HostList", &rows, |_| {
        let mut table = output::table(&["HOST", "ENDPOINT", "CLUSTERS"]);
        for row in &rows {
            table.add_row([row.host.to_string(), row.endpoint.clone(), names(&row.clusters)]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

async fn check(chosen: Option<&HostName>, context: &Context) -> Result<Exit, Failure> {
    let control: ControlPlane = context.control().await?;
    let configuration = &control.configuration;
    let hosts = &configuration.settings.hosts;
    if let Some(unknown) = chosen.filter(|chosen| !hosts.contains_key(chosen)) {
        let known = hosts.keys().map(HostName::as_str).collect::<Vec<_>>().join(", ");
        let what = format!("pglife.toml has no host \"{unknown}\"; it has: {known}");
        return Err(Failure::message(Exit::NotFound, what).next("check the name, or add [hosts.<name>]"));
    }
    let (mut rows, mut exit) = (Vec::new(), Exit::Ok);
    for (host, endpoint) in hosts.iter().filter(|(host, _)| chosen.is_none_or(|chosen| chosen == *host)) {
        let began = Instant::now();
        let engine = control.engine(host).await;
        let seconds = began.elapsed().as_secs_f64();
        let docker = match engine {
            Ok(engine) => Some(engine.version().to_owned()),
            Err(error) => {
                exit = error.exit();
                context.output.failure(&failed(format!("host \"{host}\" cannot be used"))(error).into());
                None
            }
        };
        rows.push(HostCheck { host: row(configuration, host, endpoint), docker, seconds });
    }
    context.output.items("HostCheckList", &rows, |_| {
        let mut table = output::table(&["", "HOST", "ENDPOINT", "DOCKER", "ANSWERED IN", "CLUSTERS"]);
        for row in &rows {
            let state = if row.docker.is_some() { "ok" } else { "BAD" };
            table.add_row([
                state.to_owned(),
                row.host.host.to_string(),
                row.host.endpoint.clone(),
                row.docker.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{:.2} s", row.seconds),
                names(&row.host.clusters),
            ]);
        }
        table
    })?;
    Ok(exit)
}
