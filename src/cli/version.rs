//! `pglife version`.

use serde::Serialize;

use super::{Context, Failure, output};
use crate::exit::Exit;

#[derive(Serialize)]
struct Program {
    name: &'static str,
    version: &'static str,
    target: String,
}

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let program = Program { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION"), target };
    if context.output.format().is_for_programs() {
        context.output.items("Version", &[program], |_| output::table(&[]))?;
    } else {
        context.output.data(&format!("{} {} ({})\n", program.name, program.version, program.target))?;
    }
    Ok(Exit::Ok)
}
