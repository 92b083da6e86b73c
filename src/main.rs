//! The `pglife` executable: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use pglife::cli::{Cli, start};

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(start(cli));
    // A question nobody answered must not keep the process alive.
    runtime.shutdown_background();
    Ok(ExitCode::from(exit))
}
