//! Two majors in one worker: the old server's programs, copied out of its own image, beside those of the new one's.
//!
//! ```text
//! worker in the old image:  programs, libraries, share ─▶ scratch volume
//! worker in the new image:  what it has of those libraries itself goes again; then
//!     rehearse   schema of the running server ─▶ old server in scratch ─▶ pg_upgrade ─▶ new one in scratch; both are thrown away
//!     initialise initdb ─▶ new volume, while the old server still serves
//!     transfer   old volume ─▶ pg_upgrade ─▶ new volume; every file that was copied is compared
//! ```
//!
//! The servers run as the owner of the data, in a worker without a network, with a socket that nobody else sees. A worker
//! that ends takes all of them along.

mod installation;
mod rehearsal;
mod servers;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::backup_set::Tablespace;
use crate::cluster::PgMajor;
use crate::postgres::Login;
use crate::postgres::pg_upgrade::{self, Parity};

use super::process::Line;
use super::{Event, Failure, Trouble};
use servers::{Programs, Servers, failed_io};

pub(super) use installation::copy_out;
pub(super) use rehearsal::rehearse;

/// Where a worker sees the volume with the old data, while the new one is at `/data`.
pub const OLD_DATA: &str = "/pglife-old-data";

/// The programs of the old major, as [`super::Request::CopyInstallation`] left them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldPrograms {
    /// The major.
    pub major: PgMajor,
    /// Where the programs are.
    pub programs: String,
    /// Where the libraries are that they need.
    pub libraries: String,
}

/// What two majors need to work in one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The old programs.
    pub old: OldPrograms,
    /// The new major, which the image has.
    pub to: PgMajor,
    /// What both clusters have alike.
    pub parity: Parity,
    /// `shared_preload_libraries`.
    pub preloaded: String,
    /// The old data directory, where the worker sees it.
    pub old_data: String,
    /// An empty folder to work in.
    pub scratch: String,
    /// Processes side by side.
    pub jobs: usize,
}

/// A rehearsal with the schema of a running server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RehearseJob {
    /// How to log in to it.
    pub login: Login,
    /// Both majors.
    pub pair: Pair,
}

/// A new data directory, to be made while the old server still serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitialiseJob {
    /// The major.
    pub major: PgMajor,
    /// What it must have as the old one has it.
    pub parity: Parity,
    /// The old data directory, where the worker sees it: whose it is, the new one is.
    pub old_data: String,
    /// The new data directory, which is not there yet.
    pub new_data: String,
}

/// Everything `pg_upgrade` needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferJob {
    /// Both majors.
    pub pair: Pair,
    /// The new data directory, as [`initialise`] made it.
    pub new_data: String,
    /// Tablespaces, all of them below `/data`.
    pub tablespaces: Vec<Tablespace>,
}

/// Files that `pg_upgrade` copied, each found to be the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identical {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Makes the new data directory.
pub(super) fn initialise(job: &InitialiseJob, line: &Line) -> Result<Vec<String>, Failure> {
    let new = Programs::of_image(job.major, &job.old_data)?;
    new.initialise(Path::new(&job.new_data), &job.parity, line)?;
    Ok(vec![])
}

/// Moves the data of a server that is shut down into a new data directory.
pub(super) fn transfer(job: &TransferJob, line: &Line) -> Result<Vec<String>, Failure> {
    let pair = &job.pair;
    // Servers in other containers take it too; process ids mean nothing to them.
    let lock = Path::new(OLD_DATA).join("run/lock");
    let _held = File::open(&lock)
        .and_then(|file| {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        })
        .map_err(|error| failed_io(&format!("locking the old data volume ({})", lock.display()), &error))?;
    let servers = Servers::prepare(pair)?;
    let new_data = Path::new(&job.new_data);
    let links = link_tablespaces(job, &servers)?;
    let output = servers.upgrade((Path::new(&pair.old_data), new_data), pair, true, line)?;
    let identical = compare_files(&output, line)?;
    // The links lead to the old volume, which the new server does not have.
    for link in links {
        std::fs::remove_file(&link).map_err(|error| failed_io(&format!("removing {}", link.display()), &error))?;
    }
    line.tell(&Event::Transferred(identical));
    Ok(servers.versions())
}

/// The old server's tablespaces are where it knows them, though its volume is elsewhere now; the new ones come beside.
fn link_tablespaces(job: &TransferJob, servers: &Servers) -> Result<Vec<PathBuf>, Failure> {
    let mut links = Vec::new();
    for space in &job.tablespaces {
        let location = Path::new(&space.location);
        let Ok(inside) = location.strip_prefix("/data") else { continue };
        let what = |path: &Path| format!("tablespace \"{}\" at {}", space.name, path.display());
        let failed = |error| failed_io(&what(location), &error);
        servers.new.make_folder(location)?;
        let old = Path::new(OLD_DATA).join(inside);
        for entry in std::fs::read_dir(&old).map_err(|error| failed_io(&what(&old), &error))? {
            let name = entry.map_err(failed)?.file_name();
            let link = location.join(&name);
            std::os::unix::fs::symlink(old.join(&name), &link).map_err(failed)?;
            links.push(link);
        }
    }
    Ok(links)
}

/// Every file that `output` of `pg_upgrade --verbose` says was copied has the same bytes as the one it was copied from.
fn compare_files(output: &Path, line: &Line) -> Result<Identical, Failure> {
    let said = File::open(output).map_err(|error| failed_io("what pg_upgrade said", &error))?;
    let mut identical = Identical::default();
    // Names of databases come in the encoding of each; those of files are numbers.
    for text in BufReader::new(said).split(b'\n') {
        let text = text.map_err(|error| failed_io("what pg_upgrade said", &error))?;
        let text = String::from_utf8_lossy(&text);
        let Some((from, to)) = pg_upgrade::copied(&text) else { continue };
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        let bytes = same_bytes(Path::new(from), Path::new(to))
            .map_err(|error| failed_io(&format!("comparing {from} with its copy {to}"), &error))?;
        let Some(bytes) = bytes else {
            return Err(Failure::new(Trouble::Damaged, format!("{to} is not a true copy of {from}")));
        };
        identical.files += 1;
        identical.bytes += bytes;
        line.meter.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    Ok(identical)
}

/// How many bytes both files have, where they are the same.
fn same_bytes(one: &Path, other: &Path) -> std::io::Result<Option<u64>> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let bytes = one.metadata()?.len();
    if other.metadata()?.len() != bytes {
        return Ok(None);
    }
    let (mut left, mut mine, mut theirs) = (bytes, vec![0; 1 << 20], vec![0; 1 << 20]);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(mine.len());
        one.read_exact(&mut mine[..size])?;
        other.read_exact(&mut theirs[..size])?;
        if mine[..size] != theirs[..size] {
            return Ok(None);
        }
        left -= size as u64;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_differs_in_one_byte_is_no_copy() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let mut bytes = vec![7u8; (2 << 20) + 17];
        std::fs::write(path("a"), &bytes).expect("written");
        std::fs::write(path("b"), &bytes).expect("written");
        let compared = |other: &str| same_bytes(&path("a"), &path(other)).expect("read");
        assert_eq!(compared("b"), Some(bytes.len() as u64));
        let last = bytes.len() - 1;
        bytes[last] = 8;
        std::fs::write(path("b"), &bytes).expect("written");
        assert_eq!(compared("b"), None);
        std::fs::write(path("b"), &bytes[..last]).expect("written");
        assert_eq!(compared("b"), None);
        assert!(same_bytes(&path("a"), &path("c")).is_err());
    }
}
