//! `pglife deps list|restart`: the containers that depend on clusters.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, failed};
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
    order: i64,
    container: String,
    /// `running`, `exited`, …, or what its health check says.
    state: String,
    on_down: &'static str,
    on_up: &'static str,
    /// When pglife took it down.
    down_since: Option<Timestamp>,
    reason: Option<String>,
    problem: Option<String>,
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
        for row in &rows {
            table.add_row([
                row.cluster.to_string(),
                row.order.to_string(),
                row.container.clone(),
                row.state.clone(),
                row.on_down.to_owned(),
                row.on_up.to_owned(),
                row.down_since.map_or_else(|| "-".to_owned(), |since| since.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            ]);
        }
        table
    })?;
    for row in &rows {
        for note in row.reason.iter().chain(&row.problem) {
            context.output.note(&format!("{}: {note}", row.container));
        }
    }
    Ok(Exit::Ok)
}

async fn of_cluster(control: &ControlPlane, policy: &Policy) -> Result<Vec<Row>, Failure> {
    let what = format!("the dependents of cluster \"{}\" cannot be looked at", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(what))?;
    let look = Dependents { control, engine: &engine, policy }.look().await?;
    let rows = look.followers.into_iter().map(|follower| {
        let taken = look.taken.iter().find(|taken| taken.name == follower.name);
        Row {
            cluster: policy.name.clone(),
            order: follower.order,
            state: follower.health.filter(|_| follower.running).unwrap_or(follower.status),
            on_down: follower.on_down.as_str(),
            on_up: follower.on_up.as_str(),
            down_since: taken.map(|taken| taken.at),
            reason: taken.map(|taken| taken.reason.clone()),
            problem: follower.problem,
            container: follower.name,
        }
    });
    Ok(rows.collect())
}

async fn restart(control: &ControlPlane, cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let policy = control.configuration.select(cluster)?;
    let what = format!("the dependents of cluster \"{}\" were not restarted", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let dependents = Dependents { control, engine: &engine, policy };
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
