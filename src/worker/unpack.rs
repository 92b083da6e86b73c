//! Unpacks a volume backup into new, empty volumes: owners, modes and times as they were, and everything on disk before the verdict.
//!
//! ```text
//! object ─▶ decompress (N threads, checked) ─▶ tar ─▶ files      a thread of its own
//!   or the objects of a chain ─▶ assemble ─▶ tar ─▶ files
//!   or as much of either as one database needs ([`excerpt`])
//! ```
//! A name that would lead out of the volumes is refused. The digests are known at the end, so until the verdict what lies there is
//! worthless: nobody may start a server on it.

pub(super) mod chain;
pub(super) mod excerpt;
mod settle_in;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{Archive, Entries, EntryType};
use tokio_util::sync::CancellationToken;

use crate::pipeline::handover::{Taker, handover};
use crate::pipeline::{PipelineError, Sealed, decompress};
use crate::storage::Folder;

use super::process::Line;
use super::{Failure, Trouble, UnpackJob, check, keys_for, pipeline_failure, storage_failure};

/// Bytes written at once.
const BLOCK: usize = 256 << 10;

/// Does the job.
pub fn run(job: &UnpackJob, line: &Line) -> Result<Vec<String>, Failure> {
    let folder = job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    match &job.excerpt {
        Some(excerpt) if job.chain.is_none() => excerpt::read_whole(job, excerpt, &folder, line)?,
        _ => stream(job, &folder, line)?,
    }
    for volume in &job.volumes {
        sync(volume)?;
    }
    let tools = job.check.as_ref().map_or(Ok(vec![]), |check| check::files(check, line))?;
    // Only now: the server's own list has the files as they were copied.
    if let Some(settle_in) = &job.settle_in {
        let users = fs::read_to_string("/etc/passwd").map_err(|error| failed("reading /etc/passwd", &error))?;
        settle_in::settle_in(settle_in, Path::new("/data"), &users)?;
        sync("/data")?;
    }
    if let Some(excerpt) = &job.excerpt {
        excerpt.set_settings().map_err(|error| failed("setting up the throwaway server", &error))?;
    }
    Ok(tools)
}

/// Reads the tar from its beginning to its end, while another thread unpacks it.
fn stream(job: &UnpackJob, folder: &Folder, line: &Line) -> Result<(), Failure> {
    let (mut giver, taker) = handover();
    let (read, unpacked) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| unpack_stream(Patient { taker, stop: &line.stop }, job));
        let read = match &job.chain {
            None => read_whole(job, folder, &mut giver, line),
            Some(chain) => chain::read(job, chain, folder, &mut giver, line),
        };
        let read = read.and_then(|()| giver.finish().map_err(|_| Unread::Abandoned));
        (read, unpacking.join())
    });
    let unpacked = unpacked.unwrap_or_else(|_| Err(Failure::new(Trouble::Other, "unpacking hit a bug")));
    match (read, unpacked) {
        (Ok(()), Ok(())) => Ok(()),
        // Nobody took what was read: the other side knows why.
        (Ok(()) | Err(Unread::Abandoned), Err(failure)) | (Err(Unread::Failed(failure)), _) => Err(failure),
        (Err(Unread::Abandoned), Ok(())) => Err(Failure::new(Trouble::Other, "unpacking ended early")),
    }
}

/// Everything in a volume is on disk then.
fn sync(volume: &str) -> Result<(), Failure> {
    let synced = File::open(volume).and_then(|folder| rustix::fs::syncfs(folder).map_err(Into::into));
    synced.map_err(|error| failed(&format!("writing {volume} to disk"), &error))
}

/// Why a tar was not read to its end.
pub(super) enum Unread {
    /// Nobody took it.
    Abandoned,
    /// It cannot be read.
    Failed(Failure),
}

impl Unread {
    fn of(what: &str, error: &PipelineError) -> Self {
        match error {
            PipelineError::SinkClosed { .. } | PipelineError::Sink { .. } => Self::Abandoned,
            error => Self::Failed(pipeline_failure(what, error)),
        }
    }
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Reads a tar that is one object.
fn read_whole(job: &UnpackJob, folder: &Folder, sink: &mut dyn io::Write, line: &Line) -> Result<(), Unread> {
    let name = &job.object.name;
    let object = folder.open(name).map_err(|error| storage_failure(&format!("cannot read {name}"), &error))?;
    let keys = keys_for(&job.object, job.keys.as_ref())?;
    let expect = Sealed { plain: job.object.plain, stored: job.object.stored };
    decompress(&*object, Some(&expect), keys, sink, job.threads(), &line.meter, &line.stop)
        .map(drop)
        .map_err(|error| Unread::of(&format!("reading {name}"), &error))
}

/// A taker that waits, until it should stop.
struct Patient<'a> {
    taker: Taker,
    stop: &'a CancellationToken,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.taker.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && !self.stop.is_cancelled() => {}
                other => return other,
            }
        }
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    let trouble = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Trouble::Full,
        _ => Trouble::Other,
    };
    Failure::from_error(trouble, &format!("{what} failed"), error)
}

/// Where an entry goes. None for a name that leads out of the volumes.
pub(super) fn place(name: &Path, volumes: &[String]) -> Option<PathBuf> {
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let path = Path::new("/").join(name);
    (plain && volumes.iter().any(|volume| path.starts_with(volume))).then_some(path)
}

fn broken(error: &io::Error) -> Failure {
    failed("reading the tar", error)
}

fn unpack_stream(source: Patient<'_>, job: &UnpackJob) -> Result<(), Failure> {
    let mut archive = Archive::new(source);
    unpack(archive.entries().map_err(|error| broken(&error))?, job)?;
    // What follows the end of a tar is nothing, but it must be taken.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| broken(&error))?;
    Ok(())
}

/// Unpacks what there is. Returns how many entries that are.
fn unpack<R: Read>(found: Entries<'_, R>, job: &UnpackJob) -> Result<u64, Failure> {
    let UnpackJob { volumes, left_out, excerpt, .. } = job;
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    // A folder gets its time and mode when nothing is put into it any more.
    let mut folders = BTreeMap::new();
    for entry in found {
        let mut entry = entry.map_err(|error| broken(&error))?;
        count += 1;
        let name = entry.path().map_err(|error| broken(&error))?.into_owned();
        let refuse = |why: &str| Failure::new(Trouble::Damaged, format!("the tar has {}, {why}", name.display()));
        if place(&name, left_out).is_some() {
            continue;
        }
        let path = place(&name, volumes).ok_or_else(|| refuse("which is in none of its volumes"))?;
        let link = entry.link_name().map_err(|error| broken(&error))?.map(std::borrow::Cow::into_owned);
        let header = entry.header();
        let number = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok());
        let (Some(uid), Some(gid)) = (number(header.uid()), number(header.gid())) else {
            return Err(refuse("with an owner that is no number"));
        };
        let mode = header.mode().map_err(|error| broken(&error))? & 0o7777;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(header.mtime().map_err(|error| broken(&error))?);
        let entry_type = header.entry_type();
        let written = match (entry_type, link) {
            (EntryType::Directory, _) => make_folder(&path).and_then(|()| {
                folders.insert(path.clone(), (mode, time));
                chown(&path, Some(uid), Some(gid))
            }),
            (EntryType::Regular | EntryType::Continuous, _) => {
                let hollow = excerpt.as_ref().is_some_and(|excerpt| excerpt.is_hollow(&name));
                let bytes = entry.size();
                let content = if hollow { Content::Zeros(bytes) } else { Content::Read(&mut entry, &mut block) };
                make_file(&path, content, (uid, gid), mode, time)
            }
            (EntryType::Symlink, Some(target)) => {
                symlink(target, &path).and_then(|()| lchown(&path, Some(uid), Some(gid)))
            }
            (EntryType::Link, Some(target)) => {
                let target = place(&target, volumes).ok_or_else(|| refuse("a link that leads out of its volumes"))?;
                fs::hard_link(target, &path)
            }
            _ => return Err(refuse("of a type that no volume backup has")),
        };
        written.map_err(|error| failed(&format!("writing {}", path.display()), &error))?;
    }
    for (path, (mode, time)) in folders.into_iter().rev() {
        let finished = fs::set_permissions(&path, Permissions::from_mode(mode))
            .and_then(|()| File::open(&path)?.set_modified(time));
        finished.map_err(|error| failed(&format!("finishing {}", path.display()), &error))?;
    }
    Ok(count)
}

fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        // The volumes themselves are there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// What a file gets.
enum Content<'a> {
    /// What the first has, by way of the second.
    Read(&'a mut dyn Read, &'a mut [u8]),
    /// So many bytes, which need no room on the disk.
    Zeros(u64),
}

fn make_file(path: &Path, content: Content<'_>, owner: (u32, u32), mode: u32, time: SystemTime) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    match content {
        Content::Read(content, block) => loop {
            match content.read(block)? {
                0 => break,
                read => file.write_all(&block[..read])?,
            }
        },
        Content::Zeros(bytes) => file.set_len(bytes)?,
    }
    fchown(&file, Some(owner.0), Some(owner.1))?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_modified(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_the_volumes() {
        let volumes = ["/data".to_owned(), "/log".to_owned()];
        let place = |name: &str| place(Path::new(name), &volumes);
        assert_eq!(place("data/17/PG_VERSION"), Some(PathBuf::from("/data/17/PG_VERSION")));
        assert_eq!(place("data/"), Some(PathBuf::from("/data")));
        for name in ["/data/17", "data/../etc/passwd", "database", "config/x.conf", "", "./data/x", "etc/passwd"] {
            assert_eq!(place(name), None, "{name}");
        }
    }
}
