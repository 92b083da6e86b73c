//! `pglife deps list|restart`: the containers that depend on clusters.

use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, failed};
use crate::dependents::Dependent;
use crate::dependents::act::Dependents;
use crate::dependents::decide::Seen;
use crate::exit::Exit;
use crate::policy::Policy;

/// The command line.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List who depends on the clusters, in the order in which they come back
    List {
        /// The cluster [default: all]
        cluster: Option<ClusterName>,
    },
    /// Take down all that depend on a cluster, the last first, and bring them back
    Restart {
        /// The cluster [default: the only one]
        cluster: Option<ClusterName>,
    },
}

/// A row of `deps list`.
#[derive(Debug, Serialize)]
struct Row {
    cluster: ClusterName,
    #[serde(flatten)]
    dependent: Dependent,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    match &args.command {
        Command::List { cluster } => list(&control, cluster.as_ref(), context).await,
        Command::Restart { cluster } => restart(&control, cluster.as_ref(), context).await,
    }
}

async fn list(control: &ControlPlane, cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    for policy in control.configuration.select_all(cluster)? {
        rows.extend(of_cluster(control, policy).await?);
    }
    context.output.items("DependentList", &rows, |_| {
        let mut table = output::table(&["CLUSTER", "ORDER", "CONTAINER", "STATE", "ON DOWN", "ON UP", "DOWN SINCE"]);
        for Row { cluster, dependent } in &rows {
            table.add_row([
                cluster.to_string(),
                dependent.order.to_string(),
                dependent.container.clone(),
                dependent.state.clone(),
                dependent.on_down.to_owned(),
                dependent.on_up.to_owned(),
                dependent
                    .down_since
                    .map_or_else(|| "-".to_owned(), |since| since.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            ]);
        }
        table
    })?;
    for Row { dependent, .. } in &rows {
        for note in dependent.reason.iter().chain(&dependent.problem) {
            context.output.note(&format!("{}: {note}", dependent.container));
        }
    }
    Ok(Exit::Ok)
}

async fn of_cluster(control: &ControlPlane, policy: &Policy) -> Result<Vec<Row>, Failure> {
    let what = format!("the dependents of cluster \"{}\" cannot be looked at", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(what))?;
    let listed = Dependents { control, engine: &engine, policy, shared: None }.look().await?.listed();
    Ok(listed.into_iter().map(|dependent| Row { cluster: policy.name.clone(), dependent }).collect())
}

async fn restart(control: &ControlPlane, cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let policy = control.configuration.select(cluster)?;
    let what = format!("the dependents of cluster \"{}\" were not restarted", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let dependents = Dependents { control, engine: &engine, policy, shared: None };
    let _alone = dependents.alone().await?;
    let look = dependents.look().await?;
    if let Seen::Down(reason) = &look.database {
        return Err(Failure::message(Exit::Postgres, format!("{what}: the database is down: {reason}"))
            .next(format!("docker start {}; they come back with it where a daemon runs", policy.container)));
    }
    let down = dependents.take_all_down("pglife deps restart").await?;
    let back = dependents.bring_all_back().await?;
    context.output.note(&format!("{down} were taken down, {back} are back"));
    Ok(Exit::Ok)
}
