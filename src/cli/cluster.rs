//! `pglife cluster`: make, take over, list, show and remove clusters.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::{ClusterName, ContainerName, HostName, RoleName};
use crate::control::{ControlPlane, failed};
use crate::exit::Exit;
use crate::policy::{Layout, Policy};
use crate::provision::{self, adopt};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the containers of a policy and start the server
    Create {
        /// The cluster; not needed when there is only one
        cluster: Option<ClusterName>,
    },
    /// Take over a container that runs PostgreSQL already: look at it and write a policy for it
    Adopt(AdoptArgs),
    /// List the clusters and their containers
    List,
    /// Show a cluster's containers, volumes and server
    Show {
        /// The cluster; not needed when there is only one
        cluster: Option<ClusterName>,
    },
    /// Stop and remove a cluster's containers; its volumes stay
    Remove {
        /// The cluster; must be named
        cluster: ClusterName,
        /// Remove the volumes too: the data is gone then. Needs --yes
        #[arg(long, requires = "yes")]
        volumes: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct AdoptArgs {
    /// The container
    container: ContainerName,
    /// What the cluster shall be called [default: the container's name]
    #[arg(long, value_name = "CLUSTER")]
    name: Option<ClusterName>,
    /// The Docker host it is on
    #[arg(long, default_value = "local")]
    host: HostName,
    /// The superuser [default: what POSTGRES_USER says, else postgres]
    #[arg(long, value_name = "ROLE")]
    user: Option<RoleName>,
    /// A file with that role's password, where the server asks for one on 127.0.0.1
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    match args.command {
        Command::Create { cluster } => create(&control, cluster.as_ref(), context).await,
        Command::Adopt(args) => take_over(&control, args, context).await,
        Command::List => list(&control, context).await,
        Command::Show { cluster } => show(&control, cluster.as_ref(), context).await,
        Command::Remove { cluster, volumes, yes } => remove(&control, &cluster, volumes, yes, context).await,
    }
}

#[derive(Serialize)]
struct CreatedItem<'a> {
    cluster: &'a ClusterName,
    container: String,
    version: String,
    system_identifier: u64,
    admin_password_file: Option<PathBuf>,
}

async fn create(control: &ControlPlane, cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let policy = control.configuration.select(cluster)?;
    let reporter = context.reporter();
    let created = provision::create(control, policy, &|tick| reporter.tick(tick)).await;
    reporter.finish();
    let created = created?;
    let item = CreatedItem {
        cluster: &policy.name,
        container: policy.container.to_string(),
        version: created.server.version.clone(),
        system_identifier: created.server.system_identifier,
        admin_password_file: created.password_file.clone(),
    };
    context.output.items("Cluster", &[item], |_| {
        let mut table = output::table(&["CLUSTER", "CONTAINER", "POSTGRESQL", "SYSTEM IDENTIFIER"]);
        table.add_row([
            policy.name.to_string(),
            policy.container.to_string(),
            created.server.version.clone(),
            created.server.system_identifier.to_string(),
        ]);
        table
    })?;
    if let (Layout::Managed(managed), Some(file)) = (&policy.layout, &created.password_file) {
        context.output.note(&format!("the password of role \"{}\" is in {}", managed.admin_user, file.display()));
    }
    context.output.note(&format!("take a first backup: pglife backup {}", policy.name));
    Ok(Exit::Ok)
}

async fn take_over(control: &ControlPlane, args: AdoptArgs, context: &Context) -> Result<Exit, Failure> {
    let name = match args.name {
        Some(name) => name,
        None => ClusterName::new(args.container.as_str()).map_err(|error| {
            Failure::new(Exit::Usage, error).next("give the cluster a name of its own: --name NAME")
        })?,
    };
    let request = adopt::Request {
        container: args.container,
        name: name.clone(),
        host: args.host,
        user: args.user,
        // The policy is read elsewhere than here: a relative path would mean another file.
        password_file: args.password_file.map(|file| std::path::absolute(&file).unwrap_or(file)),
    };
    let adopted = adopt::adopt(control, &request).await?;
    context.output.items("AdoptedCluster", std::slice::from_ref(&adopted), |_| {
        let mut table = output::table(&["CLUSTER", "CONTAINER", "POSTGRESQL", "PGDATA", "STORAGE", "USER"]);
        table.add_row([
            name.to_string(),
            request.container.to_string(),
            adopted.version.clone(),
            adopted.found.pgdata.clone(),
            adopted.found.storage.clone().unwrap_or_else(|| "the container itself".to_owned()),
            adopted.found.user.to_string(),
        ]);
        table
    })?;
    for warning in &adopted.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    context.output.note(&format!(
        "its policy is {}; look at it, then take a first backup: pglife backup {name}",
        adopted.policy.display()
    ));
    Ok(if adopted.warnings.is_empty() { Exit::Ok } else { Exit::Warnings })
}

#[derive(Serialize)]
struct Row {
    cluster: ClusterName,
    host: String,
    major: String,
    layout: &'static str,
    container: String,
    state: String,
    image: Option<String>,
    data_container: Option<String>,
    volumes: Vec<String>,
    networks: Vec<String>,
}

async fn row(control: &ControlPlane, policy: &Policy) -> Result<Row, Failure> {
    let engine = control.engine(&policy.host).await.map_err(failed("the cluster cannot be looked at"))?;
    let found = provision::inventory(&engine, policy).await?;
    let state = match &found.database {
        None => "not created".to_owned(),
        Some(container) => match &container.health {
            Some(health) if container.running => health.clone(),
            _ => container.status.clone(),
        },
    };
    Ok(Row {
        cluster: policy.name.clone(),
        host: policy.host.to_string(),
        major: policy.major.to_string(),
        layout: match policy.layout {
            Layout::Managed(_) => "managed",
            Layout::Adopted(_) => "adopted",
        },
        container: policy.container.to_string(),
        state,
        image: found.database.as_ref().map(|container| container.image.clone()),
        data_container: found.data.map(|container| container.name),
        networks: found.database.iter().flat_map(|container| container.networks.keys().cloned()).collect(),
        volumes: match &found.database {
            Some(container) => {
                container.mounts.iter().map(|mount| format!("{} at {}", mount.source, mount.destination)).collect()
            }
            None => found.volumes.iter().map(ToString::to_string).collect(),
        },
    })
}

async fn list(control: &ControlPlane, context: &Context) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    for policy in control.configuration.policies.values() {
        rows.push(row(control, policy).await?);
    }
    context.output.items("ClusterList", &rows, |wide| {
        let mut heads = vec!["CLUSTER", "HOST", "MAJOR", "LAYOUT", "CONTAINER", "STATE"];
        if wide {
            heads.extend(["IMAGE", "DATA CONTAINER"]);
        }
        let mut table = output::table(&heads);
        for row in &rows {
            let mut cells = vec![
                row.cluster.to_string(),
                row.host.clone(),
                row.major.clone(),
                row.layout.to_owned(),
                row.container.clone(),
                row.state.clone(),
            ];
            if wide {
                cells.extend(
                    [&row.image, &row.data_container].map(|cell| cell.clone().unwrap_or_else(|| "-".to_owned())),
                );
            }
            table.add_row(cells);
        }
        table
    })?;
    Ok(Exit::Ok)
}

async fn show(control: &ControlPlane, cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let policy = control.configuration.select(cluster)?;
    let row = row(control, policy).await?;
    context.output.items("Cluster", std::slice::from_ref(&row), |_| {
        let mut table = output::table(&["WHAT", "VALUE"]);
        let mut line = |what: &str, value: String| {
            table.add_row([what.to_owned(), value]);
        };
        line("cluster", row.cluster.to_string());
        line("policy", control.configuration.policy_place(&policy.name).display().to_string());
        line("host", row.host.clone());
        line("layout", row.layout.to_owned());
        line("major", row.major.clone());
        line("container", format!("{} ({})", row.container, row.state));
        line("image", row.image.clone().unwrap_or_else(|| "-".to_owned()));
        line("data container", row.data_container.clone().unwrap_or_else(|| "-".to_owned()));
        for volume in &row.volumes {
            line("volume", volume.clone());
        }
        for network in &row.networks {
            line("network", network.clone());
        }
        table
    })?;
    Ok(Exit::Ok)
}

async fn remove(
    control: &ControlPlane,
    cluster: &ClusterName,
    volumes: bool,
    yes: bool,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = control.configuration.select(Some(cluster))?;
    let with = if volumes { " and its volumes, with all data in them" } else { "; its volumes stay" };
    context.confirm(yes, &format!("stop and remove the containers of cluster \"{cluster}\"{with}")).await?;
    let reporter = context.reporter();
    let removed = provision::remove(control, policy, volumes, &|tick| reporter.tick(tick)).await;
    reporter.finish();
    let removed = removed?;
    for container in &removed.containers {
        context.output.note(&format!("removed container {container}"));
    }
    for volume in &removed.volumes {
        context.output.note(&format!("removed volume {volume}"));
    }
    for volume in &removed.kept {
        context.output.note(&format!("kept volume {volume}"));
    }
    context.output.note(&format!(
        "its backups stay in the repository, and its policy in {}",
        control.configuration.policy_place(cluster).display()
    ));
    Ok(Exit::Ok)
}
