//! `pglife daemon`: start what the policies schedule, until asked to end.

use super::{Context, Failure};
use crate::daemon;
use crate::exit::Exit;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_: &Args, context: &Context) -> Result<Exit, Failure> {
    let told =
        |summary: &str| context.output.note(&format!("the daemon runs: {summary}; events: pglife events --follow"));
    Ok(daemon::run(context.config.as_deref(), &context.cancel, told).await?)
}
