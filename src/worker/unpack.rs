//! Unpacks a volume backup into new, empty volumes: owners, modes and times as they were, and everything on disk before the verdict
//! (but for an excerpt).
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
pub(super) mod head;
mod settle_in;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entries};
use tokio_util::sync::CancellationToken;

use crate::backup_set::block_index::IndexReader;
use crate::pipeline::handover::{Taker, handover};
use crate::pipeline::{PipelineError, Sealed, decompress};
use crate::storage::Folder;

use super::block_index::unreadable_index;
use super::process::Line;
use super::{Failure, SettleIn, Trouble, UnpackJob, check, keys_for, pipeline_failure, storage_failure};
use excerpt::Filled;
use head::{Head, Kind, Refused};

/// Bytes written at once.
const BLOCK: usize = 256 << 10;

/// Does the job.
pub fn run(job: &UnpackJob, line: &Line) -> Result<Vec<String>, Failure> {
    let folder = job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    match &job.excerpt {
        Some(excerpt) if job.chain.is_none() => excerpt::read_whole(job, excerpt, &folder, line)?,
        _ => stream(job, &folder, line)?,
    }
    // A throwaway server, for which an excerpt is, ends with the machine: nothing of it is to be on disk.
    let stays = job.excerpt.is_none();
    for volume in job.volumes.iter().filter(|_| stays) {
        sync(volume)?;
    }
    let tools = job.check.as_ref().map_or(Ok(vec![]), |check| check::files(check, line))?;
    // Only now: the server's own list has the files as they were copied.
    if let Some(settle_in) = &job.settle_in {
        settle(settle_in)?;
        if stays {
            sync("/data")?;
        }
    }
    if let Some(excerpt) = &job.excerpt {
        excerpt.set_settings().map_err(|error| failed("setting up the throwaway server", &error))?;
    }
    Ok(tools)
}

/// Makes a data directory of another image one of this image.
pub(super) fn settle(settle_in: &SettleIn) -> Result<(), Failure> {
    let users = fs::read_to_string("/etc/passwd").map_err(|error| failed("reading /etc/passwd", &error))?;
    settle_in::settle_in(settle_in, Path::new("/data"), &users)
}

/// Reads the tar from its beginning to its end, while another thread unpacks it.
fn stream(job: &UnpackJob, folder: &Folder, line: &Line) -> Result<(), Failure> {
    let keys = keys_for(&job.object, job.keys.as_ref())?;
    let indexed = match &job.chain {
        None => None,
        Some(chain) => Some((chain, chain::index_text(job, &chain.index, folder, keys, line)?)),
    };
    let holes = match (&job.excerpt, &indexed) {
        (Some(excerpt), Some((_, text))) => {
            Some(excerpt.holes(IndexReader::begin(&text[..]).map_err(|error| unreadable_index(&error))?)?)
        }
        _ => None,
    };
    let (mut giver, taker) = handover();
    let (read, unpacked) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| {
            let source = Patient { taker, stop: &line.stop };
            match holes {
                None => unpack_stream(source, job, line),
                Some(holes) => unpack_excerpt(Filled::new(source, holes), job, line),
            }
        });
        let read = match &indexed {
            None => read_whole(job, folder, &mut giver, line),
            Some((chain, text)) => chain::read_indexed(job, chain, text, folder, &mut giver, line),
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
pub(super) fn sync(volume: &str) -> Result<(), Failure> {
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

pub(super) fn failed(what: &str, error: &io::Error) -> Failure {
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

/// The failure that the tar itself cannot be read.
#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
pub(super) fn broken(error: io::Error) -> Failure {
    failed("reading the tar", &error)
}

fn unpack_stream(source: Patient<'_>, job: &UnpackJob, line: &Line) -> Result<(), Failure> {
    let mut archive = Archive::new(source);
    unpack(archive.entries().map_err(broken)?, job, line)?;
    // What follows the end of a tar is nothing, but it must be taken.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

fn unpack_excerpt(source: Filled<Patient<'_>>, job: &UnpackJob, line: &Line) -> Result<(), Failure> {
    let mut archive = Archive::new(source);
    unpack(archive.entries_with_seek().map_err(broken)?, job, line)?;
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

/// Unpacks what there is. Returns how many entries that are.
fn unpack<R: Read>(found: Entries<'_, R>, job: &UnpackJob, line: &Line) -> Result<u64, Failure> {
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    // A folder gets its owner, time and mode when nothing is put into it any more.
    let mut folders = BTreeMap::new();
    let mut refused = Refused::default();
    for entry in found {
        let mut entry = entry.map_err(broken)?;
        count += 1;
        let name = entry.path().map_err(broken)?.into_owned();
        if place(&name, &job.left_out).is_some() {
            continue;
        }
        let head = Head::read(&mut entry, &job.volumes)?;
        let written = match &head.kind {
            Kind::Folder => make_folder(&head.path),
            Kind::File => {
                let hollow = job.excerpt.as_ref().is_some_and(|excerpt| excerpt.is_hollow(&name));
                let bytes = entry.size();
                let content = if hollow { Content::Zeros(bytes) } else { Content::Read(&mut entry, &mut block) };
                make_file(&head, content, &mut refused)
            }
            Kind::Symlink(target) => head.make_symlink(target),
            Kind::Link(target) => fs::hard_link(target, &head.path),
        };
        written.map_err(|error| failed(&format!("writing {}", head.path.display()), &error))?;
        if head.kind == Kind::Folder {
            folders.insert(head.path.clone(), head);
        }
    }
    finish_folders(folders.values(), &mut refused)?;
    if let Some(words) = refused.words() {
        line.warn(words);
    }
    Ok(count)
}

/// Finishes folders, each of which comes after the one it lies in.
pub(super) fn finish_folders<'h>(
    folders: impl DoubleEndedIterator<Item = &'h Head>,
    refused: &mut Refused,
) -> Result<(), Failure> {
    for head in folders.rev() {
        head.finish_folder(refused).map_err(|error| failed(&format!("finishing {}", head.path.display()), &error))?;
    }
    Ok(())
}

pub(super) fn make_folder(path: &Path) -> io::Result<()> {
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

fn make_file(head: &Head, content: Content<'_>, refused: &mut Refused) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&head.path)?;
    match content {
        Content::Read(content, block) => write(&mut file, content, block, !is_wal(&head.path))?,
        Content::Zeros(bytes) => file.set_len(bytes)?,
    }
    head.finish_file(&file, refused)
}

/// So many zeros in a row become a hole. Fewer are written: they will be used soon, as likely as not.
const HOLE: u64 = 1 << 20;

/// True for the server's WAL: a hole in that would need room when nothing else is left.
fn is_wal(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "pg_wal" || part.as_os_str() == "pg_xlog")
}

/// Writes what `content` has to `file`, by way of `block`; long rows of zeros as holes, where it `may_have_holes`.
fn write(file: &mut File, content: &mut dyn Read, block: &mut [u8], may_have_holes: bool) -> io::Result<()> {
    let mut zeros = 0;
    loop {
        let read = content.read(block)?;
        let some = &block[..read];
        if may_have_holes && read > 0 && is_zeros(some) {
            zeros += read as u64;
            continue;
        }
        if zeros >= HOLE {
            let end = file.seek(SeekFrom::Current(i64::try_from(zeros).map_err(io::Error::other)?))?;
            file.set_len(end)?;
        } else {
            io::copy(&mut io::repeat(0).take(zeros), file)?;
        }
        zeros = 0;
        if read == 0 {
            return Ok(());
        }
        file.write_all(some)?;
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Compared with itself, one byte further: that is as fast as memory.
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_of_zeros_are_holes_and_what_is_read_is_the_same() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let row = |byte: u8, bytes: usize| vec![byte; bytes];
        let hole = usize::try_from(HOLE).expect("small");
        for (number, content) in [
            row(0, 4 * hole),
            [row(7, 3), row(0, 4 * hole), row(7, 5)].concat(),
            [row(0, hole - 1), row(7, 5000), row(0, 8 * hole)].concat(),
            row(7, hole),
            row(0, 1),
            vec![],
        ]
        .into_iter()
        .enumerate()
        {
            for may_have_holes in [true, false] {
                let path = folder.path().join(format!("{number}{may_have_holes}"));
                let mut file = File::create_new(&path).expect("made");
                write(&mut file, &mut &content[..], &mut [1; 4096], may_have_holes).expect("written");
                assert!(fs::read(&path).expect("read") == content, "{number}");
                let there = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).expect("there")) * 512;
                let has_hole = content.len() >= 4 * hole && may_have_holes;
                assert_eq!(there < content.len() as u64 / 2, has_hole, "{number} {may_have_holes}: {there}");
            }
        }
        assert!(
            is_wal(Path::new("/data/17/pg_wal/000000010000000000000001")) && !is_wal(Path::new("/data/17/base/5/1"))
        );
    }

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
