//! Walks the volumes and writes what is chosen of them into the tar, on a thread of its own.
//!
//! The server goes on meanwhile: what vanishes between the look at a folder and the look at a file was dropped, and is not copied;
//! what changes is repaired by the WAL.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::backup_set::DamagedFile;
use crate::backup_set::block_index::{Line, Stamp};
use crate::pipeline::handover::Giver;
use crate::worker::attributes::{self, Attribute};
use crate::worker::{Failure, Trouble};

use super::archive::{self, BLOCK, Broken, Kind, Owner, content, header, padding};
use super::blocks::{Blocks, Comparison};
use super::pace::Pace;
use super::pages::Pages;
use super::passing::Passing;
use super::selection::{Choice, Selection, is_left_out};
use super::server_manifest::ServerManifest;
use super::unread::Row;

/// Why the copy ended early.
pub(super) enum CopyError {
    /// The other end of the pipeline is gone, and knows why.
    Gone,
    /// Something here.
    Failed(Failure),
}

impl From<Failure> for CopyError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The tar that is being written.
pub(super) struct Copier<'a> {
    pub(super) out: Giver,
    pub(super) selection: &'a Selection,
    pub(super) manifest: ServerManifest,
    /// Holds reading back, where it is limited.
    pace: Option<Pace>,
    pub(super) stop: &'a CancellationToken,
    /// Files with several names that are in the tar already.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// What is copied when everything else is.
    last: Vec<PathBuf>,
    /// Notes what is in each block, where that is asked for.
    blocks: Option<Blocks>,
    /// The LSN before which pages are judged by their checksums; None: they have none.
    pub(super) judge_before: Option<u64>,
    /// Files with damaged pages.
    pub(super) damaged: Vec<DamagedFile>,
    /// Extended attributes that no tar holds, each with its file.
    pub(super) unkept: Vec<String>,
    /// Entries written.
    pub(super) entries: u64,
}

/// The name in the tar of a path in a volume: relative.
fn name_of(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> CopyError {
    CopyError::Failed(Failure::from_error(Trouble::Other, &format!("reading {} failed", path.display()), error))
}

/// None for what is no longer there.
fn unless_vanished<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, CopyError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        out: Giver,
        selection: &'a Selection,
        manifest: ServerManifest,
        rate_limit: Option<u64>,
        blocks: Option<Blocks>,
        stop: &'a CancellationToken,
    ) -> Self {
        let pace = rate_limit.map(Pace::new);
        Self {
            out,
            selection,
            manifest,
            pace,
            stop,
            links: HashMap::new(),
            last: vec![],
            blocks,
            judge_before: None,
            damaged: vec![],
            unkept: vec![],
            entries: 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        if let Some(blocks) = &mut self.blocks {
            blocks.wrote(bytes.len() as u64);
        }
        self.out.write_all(bytes).map_err(|_| CopyError::Gone)
    }

    fn go_on(&self) -> Result<(), CopyError> {
        if self.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled").into());
        }
        Ok(())
    }

    fn head(&mut self, path: &Path, owner: Owner, kind: Kind<'_>, given: &[Attribute]) -> Result<(), CopyError> {
        self.entries += 1;
        let unkept = given.iter().filter(|attribute| attribute.record().is_none());
        self.unkept.extend(unkept.map(|attribute| format!("{} of {}", attribute.name(), path.display())));
        self.write(&header(name_of(path), owner, kind, given))
    }

    /// The head of a folder that is there.
    fn head_of_folder(&mut self, folder: &Path, metadata: &Metadata) -> Result<(), CopyError> {
        let given = unless_vanished(folder, File::open(folder).and_then(attributes::read))?.unwrap_or_default();
        self.head(folder, Owner::from(metadata), Kind::Folder, &given)
    }

    /// Copies a volume, all but what comes last.
    pub(super) fn volume(&mut self, folder: &Path) -> Result<(), CopyError> {
        let metadata = fs::symlink_metadata(folder).map_err(|error| unreadable(folder, &error))?;
        self.folder(folder, &metadata)
    }

    /// Copies what comes last: `pg_control`.
    pub(super) fn last(&mut self) -> Result<(), CopyError> {
        for path in std::mem::take(&mut self.last) {
            let failed = |error| unreadable(&path, &error);
            let metadata = fs::symlink_metadata(&path).map_err(failed)?;
            // The server writes it while we read: twice the same is whole.
            let mut bytes = fs::read(&path).map_err(failed)?;
            for _ in 0..100 {
                let again = fs::read(&path).map_err(failed)?;
                if bytes == again {
                    break;
                }
                bytes = again;
            }
            self.made(&path, Owner::from(&metadata), &bytes)?;
        }
        Ok(())
    }

    fn folder(&mut self, folder: &Path, metadata: &Metadata) -> Result<(), CopyError> {
        self.head_of_folder(folder, metadata)?;
        let Some(listing) = unless_vanished(folder, fs::read_dir(folder))? else { return Ok(()) };
        let mut names: Vec<OsString> = Vec::new();
        for entry in listing {
            names.extend(unless_vanished(folder, entry)?.map(|entry| entry.file_name()));
        }
        names.sort_unstable();
        if self.selection.holds_relations(folder) {
            let texts: Vec<String> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            let unlogged = self.selection.unlogged(texts.iter().map(String::as_str));
            let mut texts = texts.iter();
            names.retain(|_| texts.next().is_some_and(|name| !is_left_out(name, &unlogged)));
        }
        for name in names {
            self.go_on()?;
            let path = folder.join(name);
            let choice = self.selection.choose(&path);
            match choice {
                Choice::Leave => continue,
                Choice::Last => {
                    self.last.push(path);
                    continue;
                }
                Choice::Take | Choice::Empty => {}
            }
            let Some(metadata) = unless_vanished(&path, fs::symlink_metadata(&path))? else { continue };
            let kind = metadata.file_type();
            if choice == Choice::Empty {
                // A link to a folder elsewhere becomes a folder: what is in it is not copied anyway.
                let metadata =
                    if kind.is_symlink() { unless_vanished(&path, fs::metadata(&path))? } else { Some(metadata) };
                if let Some(metadata) = metadata.filter(Metadata::is_dir) {
                    self.head_of_folder(&path, &metadata)?;
                }
            } else if kind.is_dir() {
                self.folder(&path, &metadata)?;
            } else if kind.is_symlink() {
                let Some(target) = unless_vanished(&path, fs::read_link(&path))? else { continue };
                let target = self.selection.target(&path, target);
                self.head(&path, Owner::from(&metadata), Kind::Symlink(target.as_os_str().as_bytes()), &[])?;
            } else if kind.is_file() {
                self.file(&path)?;
            } else if !kind.is_socket() && !kind.is_fifo() {
                let what = format!("{} is a device, which a volume backup does not hold; remove it", path.display());
                return Err(Failure::new(Trouble::Request, what).into());
            }
        }
        Ok(())
    }

    /// Copies a file as it is now.
    fn file(&mut self, path: &Path) -> Result<(), CopyError> {
        let Some(file) = unless_vanished(path, File::open(path))? else { return Ok(()) };
        let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
        if metadata.nlink() > 1 {
            let known = self.links.get(&(metadata.dev(), metadata.ino())).cloned();
            if let Some(first) = known {
                return self.head(path, Owner::from(&metadata), Kind::HardLink(&first), &[]);
            }
            self.links.insert((metadata.dev(), metadata.ino()), name_of(path).to_vec());
        }
        let disk = OnDisk { file: &file, stamp: stamp(&metadata, SystemTime::now()) };
        self.content(path, Owner::from(&metadata), metadata.len(), &mut &file, Some(disk))
    }

    /// Writes a file of which only its bytes are known.
    pub(super) fn made(&mut self, path: &Path, owner: Owner, mut bytes: &[u8]) -> Result<(), CopyError> {
        self.content(path, owner, bytes.len() as u64, &mut bytes, None)
    }

    /// Writes a folder that is made up.
    pub(super) fn made_folder(&mut self, path: &Path, owner: Owner) -> Result<(), CopyError> {
        self.head(path, owner, Kind::Folder, &[])
    }

    /// Writes a file's header and content. With `disk`, content that the parent has, and nobody has changed since, is not read.
    fn content(
        &mut self,
        path: &Path,
        owner: Owner,
        bytes: u64,
        source: &mut (dyn Read + Send),
        disk: Option<OnDisk<'_>>,
    ) -> Result<(), CopyError> {
        let given =
            disk.map_or(Ok(vec![]), |disk| attributes::read(disk.file)).map_err(|error| unreadable(path, &error))?;
        self.head(path, owner, Kind::File(bytes), &given)?;
        let in_server = self.selection.in_server(path).filter(|name| {
            // WAL is checked by what is in it; and the manifest is not in itself.
            !name.starts_with("pg_wal") && name != Path::new("backup_manifest")
        });
        let Some(in_server) = in_server else {
            if let Some(blocks) = &mut self.blocks {
                // WAL is never the same twice.
                blocks.wrote(bytes);
            }
            let mut stopped = Stoppable { source, pace: self.pace.as_mut(), stop: self.stop };
            let written = content(&mut stopped, bytes, &mut self.out, &mut |_| ());
            return self.written(path, bytes, written);
        };
        let name = std::str::from_utf8(name_of(path)).ok();
        let untouched = match (&mut self.blocks, name, disk.and_then(|disk| disk.stamp)) {
            (Some(blocks), Some(name), Some(stamp)) => blocks.untouched(name, bytes, stamp),
            _ => None,
        };
        let crc = match untouched {
            Some(crc) => {
                self.write(&[0; BLOCK][..padding(bytes)])?;
                crc
            }
            None => self.content_of_server(path, &in_server, bytes, source, disk)?,
        };
        self.manifest.add(&in_server, bytes, owner.mtime, crc);
        Ok(())
    }

    /// Reads and writes the content of a file that the server's manifest is to list. Returns its CRC-32C.
    fn content_of_server(
        &mut self,
        path: &Path,
        in_server: &Path,
        bytes: u64,
        source: &mut (dyn Read + Send),
        disk: Option<OnDisk<'_>>,
    ) -> Result<u32, CopyError> {
        let (pages, combiner) = (self.pages(path), self.blocks.as_ref().and_then(Blocks::combiner));
        let (out, pace, stop) = (&mut self.out, &mut self.pace, self.stop);
        let mut line = None;
        let mut passing;
        let written = match (&mut self.blocks, std::str::from_utf8(name_of(path)).ok()) {
            (Some(blocks), Some(name)) => {
                passing = Passing::new(pages, combiner);
                let known = disk.and_then(|disk| Some((disk.file, blocks.rows(name, in_server, bytes)?)));
                let mut give = |bytes: &[u8]| out.write_all(bytes).map_err(|_| Broken::Gone);
                let mut file = blocks.begin_file(name);
                let mut read =
                    |source: &mut (dyn Read + Send), bytes: u64, file: &mut Comparison<'_>, passing: &mut Passing| {
                        let mut source = Stoppable { source, pace: pace.as_mut(), stop };
                        file.read(&mut source, bytes, &mut |bytes| passing.see(bytes), &mut give)
                    };
                let done = match known {
                    None => read(source, bytes, &mut file, &mut passing),
                    Some((on_disk, rows)) => rows.into_iter().try_for_each(|row| match row {
                        Row::Leave(blocks) => file.leave(blocks).map(|(crcs, bytes)| passing.leave(crcs, bytes)),
                        Row::Read(bytes) => {
                            let mut source = on_disk;
                            source.seek(SeekFrom::Start(bytes.start)).map_err(Broken::Unreadable)?;
                            read(&mut source, bytes.end - bytes.start, &mut file, &mut passing)
                        }
                    }),
                };
                done.map(|()| line = Some(file.finish()))
            }
            (blocks, _) => {
                if let Some(blocks) = blocks {
                    blocks.wrote(bytes);
                }
                passing = Passing::new(pages, None);
                let mut stopped = Stoppable { source, pace: pace.as_mut(), stop };
                content(&mut stopped, bytes, out, &mut |bytes| passing.see(bytes))
            }
        };
        let (crc, crcs, pages) = passing.finish();
        if let (Some(blocks), Some(line)) = (&mut self.blocks, line) {
            let stamp = disk.and_then(|disk| disk.stamp);
            blocks.note(Line { crcs, ..line }, stamp.map(|stamp| (stamp, crc)));
        }
        self.written(path, bytes, written)?;
        if let Some(pages) = pages {
            self.damaged.extend(pages.finish(path, in_server));
        }
        Ok(crc)
    }

    /// What follows the content of a file.
    fn written(&mut self, path: &Path, bytes: u64, written: Result<(), Broken>) -> Result<(), CopyError> {
        match written {
            Ok(()) => self.write(&[0; BLOCK][..padding(bytes)]),
            Err(Broken::Gone) => Err(CopyError::Gone),
            Err(Broken::Unreadable(error)) => {
                self.go_on()?;
                Err(unreadable(path, &error))
            }
        }
    }

    /// What looks at the pages of the file at `path`, if it has any that can be judged.
    fn pages(&self, path: &Path) -> Option<Pages> {
        let before = self.judge_before?;
        let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
        if self.selection.holds_pages(folder) { Pages::of(name, before) } else { None }
    }

    /// Copies a file that must have exactly `bytes` bytes.
    pub(super) fn whole_file(&mut self, path: &Path, bytes: u64) -> Result<Owner, CopyError> {
        let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
        if metadata.len() != bytes {
            let what = format!("{} has {} bytes, not {bytes}", path.display(), metadata.len());
            return Err(Failure::new(Trouble::Other, what).into());
        }
        let owner = Owner::from(&metadata);
        self.content(path, owner, bytes, &mut file, None)?;
        Ok(owner)
    }

    /// Ends the tar. Returns the number of its entries, and what is known of its blocks.
    pub(super) fn finish(mut self) -> Result<(u64, Option<Blocks>), CopyError> {
        self.write(&archive::END)?;
        self.out.finish().map_err(|_| CopyError::Gone)?;
        Ok((self.entries, self.blocks))
    }
}

/// A file of the volumes, open.
#[derive(Clone, Copy)]
struct OnDisk<'a> {
    file: &'a File,
    /// By what it is known to be untouched later.
    stamp: Option<Stamp>,
}

/// How long a file must have lain still to be known again: within the clock's tick, two writes look like one.
const STILL: Duration = Duration::from_secs(2);

/// What a file system says of a file.
pub(super) fn stamp_of(metadata: &Metadata) -> Option<Stamp> {
    let nanoseconds = |seconds: i64, rest: i64| seconds.checked_mul(1_000_000_000)?.checked_add(rest);
    let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec())?;
    let changed = nanoseconds(metadata.ctime(), metadata.ctime_nsec())?;
    Some(Stamp { inode: metadata.ino(), modified, changed })
}

/// By what a file is known to be untouched later, if it lay still at `now`, before it is read.
fn stamp(metadata: &Metadata, now: SystemTime) -> Option<Stamp> {
    let stamp = stamp_of(metadata)?;
    let now = i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()?;
    let still = i64::try_from(STILL.as_nanos()).ok()?;
    (stamp.modified.max(stamp.changed) <= now.checked_sub(still)?).then_some(stamp)
}

/// A source that ends with an error when it should stop, and gives no more than its pace allows.
struct Stoppable<'a> {
    source: &'a mut (dyn Read + Send),
    pace: Option<&'a mut Pace>,
    stop: &'a CancellationToken,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let Some(pace) = &mut self.pace else { return self.source.read(buffer) };
        let most = buffer.len().min(pace.at_once());
        let read = self.source.read(&mut buffer[..most])?;
        pace.pass(read, || self.stop.is_cancelled());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_lay_still_is_known_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("16384");
        fs::write(&path, "before").expect("written");
        let metadata = fs::metadata(&path).expect("it is there");
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(metadata.ctime().unsigned_abs(), u32::try_from(metadata.ctime_nsec()).expect("below 1e9"));
        assert_eq!(stamp(&metadata, changed + Duration::from_millis(1999)), None);
        assert_eq!(stamp(&metadata, changed - Duration::from_secs(60)), None, "the clock was set back");
        let then = stamp(&metadata, changed + STILL).expect("it lay still");
        // The same length and the same time of the content, as `cp -p` or `touch -r` would leave it.
        let modified = metadata.modified().expect("a time");
        std::thread::sleep(Duration::from_millis(50));
        fs::write(&path, "after!").expect("written");
        File::options().write(true).open(&path).and_then(|file| file.set_modified(modified)).expect("set");
        let now = stamp(&fs::metadata(&path).expect("it is there"), SystemTime::now() + 2 * STILL).expect("still");
        assert_eq!((now.inode, now.modified), (then.inode, then.modified));
        assert_ne!(now, then);
    }
}
