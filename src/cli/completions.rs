//! `pglife completions`: a shell's completions, to be sourced or installed.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Context, Failure};
use crate::exit::Exit;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pglife", &mut script);
    context.output.data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
