//! `pglife daemon`: start what the policies schedule, until asked to end.

use super::{Context, Failure};
use crate::configuration;
use crate::daemon;
use crate::exit::Exit;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_: &Args, context: &Context) -> Result<Exit, Failure> {
    let load = || configuration::load(context.config.as_deref());
    let told =
        |summary: &str| context.output.note(&format!("the daemon runs: {summary}; events: pglife events --follow"));
    Ok(daemon::run(&load, &context.cancel, told).await?)
}
