//! `pglife lock list|break`: who works on which cluster.

use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::exit::Exit;

/// The command line.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the locks that are held, on this machine and in Consul
    List,
    /// End the session that holds a cluster's lock in Consul; its run is not ended by that
    Break {
        /// The cluster
        cluster: ClusterName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    match &args.command {
        Command::List => {
            let locks = control.locks().await?;
            context.output.items("LockList", &locks, |_| {
                let mut table = output::table(&["LOCK", "WHERE", "HOLDER"]);
                for held in &locks {
                    table.add_row([&held.lock, held.place, &held.holder]);
                }
                table
            })?;
        }
        Command::Break { cluster, yes } => {
            let what = format!(
                "break the lock of cluster \"{cluster}\" in Consul: a run that still goes on elsewhere would write beside the next one"
            );
            context.confirm(*yes, &what).await?;
            let holder = control.break_lock(cluster).await?;
            context.output.note(&format!("the session is ended; its holder said of itself: {holder}"));
        }
    }
    Ok(Exit::Ok)
}
