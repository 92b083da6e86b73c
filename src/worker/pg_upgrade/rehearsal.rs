//! The way of an upgrade with the schema alone, beside the running server, of which nothing but the schema is read.
//!
//! `pg_upgrade --check` on the data of a running server would be one way, but it starts a server on them to see whether one
//! runs, and from another container it does not see the other: both would write. And it checks less: that the new major takes
//! every role, setting and object is only seen when it is made.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::postgres::pg_upgrade;
use crate::postgres::tools::Tool;

use super::super::process::Line;
use super::super::{Event, Failure, Trouble};
use super::servers::{Programs, Servers};
use super::{Pair, RehearseJob};

/// Makes an old cluster with the schema of the running server, and upgrades that. What `pg_upgrade` has against it is no failure,
/// but the answer.
pub(in super::super) fn rehearse(job: &RehearseJob, line: &Line) -> Result<Vec<String>, Failure> {
    let pair = &job.pair;
    let servers = match Servers::prepare(pair) {
        Ok(servers) => servers,
        Err(failure) if failure.trouble == Trouble::ToolMissing => {
            line.tell(&Event::Rehearsed { seconds: 0.0, obstacle: Some(failure.message) });
            return Ok(vec![]);
        }
        Err(failure) => return Err(failure),
    };
    let (old, new) = (folder(pair, "old"), folder(pair, "new"));
    make_old(&servers, &old, pair, line)?;
    fill_old(&servers, &old, job, line)?;
    servers.new.initialise(&new, &pair.parity, line)?;
    let began = Instant::now();
    let obstacle = match servers.upgrade((&old, &new), pair, false, line) {
        Ok(_) => None,
        Err(failure) if failure.trouble == Trouble::Tool => Some(failure.message),
        Err(failure) => return Err(failure),
    };
    line.tell(&Event::Rehearsed { seconds: began.elapsed().as_secs_f64(), obstacle });
    Ok(servers.versions())
}

fn folder(pair: &Pair, name: &str) -> PathBuf {
    Path::new(&pair.scratch).join(name)
}

fn make_old(servers: &Servers, old: &Path, pair: &Pair, line: &Line) -> Result<(), Failure> {
    servers.old.make_folder(old)?;
    let mut command = servers.old.command("initdb");
    command.arg("-D").arg(old).arg("-U").arg(pair.parity.role.as_str()).arg("--auth=trust").arg("--no-sync");
    command.args(pair.parity.initdb_options(pair.old.major));
    if pair.parity.checksums {
        command.arg("--data-checksums");
    } else if pair.old.major.is_at_least(18) {
        command.arg("--no-data-checksums");
    }
    Programs::run("initdb of the old major", command, line)
}

/// Roles, databases and everything in them but rows. What the old server refuses of its own dump is left out: `pg_upgrade` itself
/// looks at the real one again.
fn fill_old(servers: &Servers, old: &Path, job: &RehearseJob, line: &Line) -> Result<(), Failure> {
    let (pair, scratch) = (&job.pair, Path::new(&job.pair.scratch));
    let options = format!(
        "{} -c listen_addresses= -c unix_socket_directories={} -c fsync=off",
        pg_upgrade::server_options(scratch, pair.old.major),
        scratch.display()
    );
    let control = |action: &str| {
        let mut command = servers.old.command("pg_ctl");
        command.arg(action).arg("-w").arg("-s").arg("-D").arg(old).arg("-t").arg("120");
        command
    };
    let mut start = control("start");
    start.arg("-l").arg(scratch.join("old.log")).arg("-o").arg(&options);
    // The server keeps what it inherits.
    start.stderr(Stdio::null());
    let log = || std::fs::read_to_string(scratch.join("old.log")).unwrap_or_default();
    Programs::run("the old server, for the rehearsal", start, line)
        .map_err(|failure| Failure::new(failure.trouble, format!("{}\n{}", failure.message, log())))?;
    let filled = copy_schema(servers, job, line);
    let mut stop = control("stop");
    stop.arg("-m").arg("fast");
    let stopped = Programs::run("the old server, for the rehearsal", stop, line);
    filled.and(stopped)
}

fn copy_schema(servers: &Servers, job: &RehearseJob, line: &Line) -> Result<(), Failure> {
    let login = &job.login;
    let mut dump = servers.old.command_as_root("pg_dumpall");
    dump.arg("--schema-only")
        .arg("--no-tablespaces")
        .arg("--lock-wait-timeout=60000")
        .arg("--host")
        .arg(&login.host)
        .arg("--port")
        .arg(login.port.to_string())
        .arg("--username")
        .arg(login.user.as_str())
        .stdout(Stdio::piped());
    let mut dump = Tool::start("pg_dumpall", dump)?;
    let Some(schema) = dump.stdout() else { return Err(Failure::new(Trouble::Tool, "pg_dumpall has no stdout")) };
    let mut psql = servers.old.command("psql");
    psql.args(["-X", "-q", "-d", "postgres", "-h"])
        .arg(&job.pair.scratch)
        .arg("-U")
        .arg(job.pair.parity.role.as_str())
        .stdin(schema);
    Programs::run("psql", psql, line)?;
    let ending = dump.wait()?;
    if ending.succeeded() { Ok(()) } else { Err(Failure::new(Trouble::Tool, ending.describe())) }
}
