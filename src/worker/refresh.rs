//! Makes volumes that hold an earlier copy of a server hold a backup of it, and writes no more than what differs.
//!
//! ```text
//! block index ─▶ what lies between files ─▶ headers of the tar: all that there shall be
//!   ─▶ barred: no server starts on it ─▶ what shall not be there is removed
//!   ─▶ files ─▶ compared with their digests (N threads) ─▶ blocks that differ ─▶ assemble ─▶ checked ─▶ written
//!   ─▶ links, owners, modes, times ─▶ on disk ─▶ bar away
//! ```
//! Of a set without an index all is read, and still only what differs is written.
//!
//! The bar is a `backup_label` that no server takes: from the first change on until everything is on disk, the data directory is half of
//! one copy and half of another. Whoever is cut in between does it again from the beginning.

mod bar;
mod compare;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::Archive;

use crate::backup_set::Object;
use crate::backup_set::block_index::{IndexReader, Line};
use crate::pipeline::{PipelineError, Source, assemble};

use super::block_index::unreadable_index;
use super::fetch::Layout;
use super::fetch::between::{Between, cut};
use super::process::Line as Messages;
use super::unpack::chain::{Checked, Objects, index_text};
use super::unpack::head::{Head, Kind, Refused};
use super::unpack::{broken, failed, finish_folders, make_folder, settle, sync};
use super::{Event, Failure, Trouble, UnpackJob, keys_for, pipeline_failure, storage_failure};
use bar::Bar;
use compare::{Piece, pieces};

/// Volumes that are to hold what a backup holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefreshJob {
    /// The tar, and the volumes, with an earlier copy in them.
    pub tar: UnpackJob,
    /// Its block index, where it has one.
    pub index: Option<Object>,
    /// How many entries the tar has.
    pub entries: u64,
    /// The data directory, where the worker sees it.
    pub pgdata: String,
}

/// Does the job. No server may run on the volumes.
pub(super) fn run(job: &RefreshJob, line: &Messages) -> Result<Vec<String>, Failure> {
    let tar = &job.tar;
    let folder = tar.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    let keys = keys_for(&tar.object, tar.keys.as_ref())?;
    let layout = match &job.index {
        Some(index) => {
            let text = index_text(tar, index, &folder, keys, line)?;
            let layout = IndexReader::begin(&text[..]).and_then(|lines| Layout::read(lines, |_| true));
            layout.map_err(|error| unreadable_index(&error))?
        }
        None => Layout::unknown(tar.object.plain.bytes),
    };
    let block_bytes = layout.block_bytes;
    let objects = Objects::open(tar, &folder)?;
    let unsealed = objects.unsealed(keys)?;
    let sources = objects.sources(&unsealed)?;
    let unreadable = |error: &PipelineError| pipeline_failure(&format!("reading {}", objects.names()), error);
    let wanted = Wanted::read(&sources, layout, job, line, unreadable)?;

    let bar = Bar::put(Path::new(&job.pgdata)).map_err(|error| failed("barring the data directory", &error))?;
    line.tell(&Event::Barred);
    wanted.clear(&tar.volumes, &bar)?;
    wanted.make_folders()?;
    let (pieces, kept) = pieces(&wanted.files, block_bytes, tar.threads(), line)?;
    let parts = pieces.iter().flat_map(|piece| piece.line.parts.iter().copied().map(Ok));
    let mut files = Files::new(&pieces, &bar);
    let mut checked = Checked::new(pieces.iter().map(|piece| Ok(piece.line.clone())), block_bytes, &mut files);
    let put = assemble(&sources, parts, &mut checked, tar.threads(), &line.meter, &line.stop);
    checked.verdict()?;
    let written = files.written;
    match (put, files.failure.take()) {
        (_, Some((path, error))) => return Err(failed(&format!("writing {}", path.display()), &error)),
        (Err(error), None) => return Err(unreadable(&error)),
        (Ok(_), None) => {}
    }
    let mut refused = Refused::default();
    wanted.finish(&bar, &mut refused)?;
    if let Some(words) = refused.words() {
        line.warn(words);
    }
    if let Some(settle_in) = &tar.settle_in {
        settle(settle_in)?;
    }
    for volume in &tar.volumes {
        sync(volume)?;
    }
    bar.lift().map_err(|error| failed("letting a server start on the data directory", &error))?;
    line.tell(&Event::Refreshed { written, kept });
    Ok(vec![])
}

/// All that there shall be.
struct Wanted {
    /// As they are in the tar: what lies in a folder comes after it.
    heads: Vec<Head>,
    /// The files: where each goes, and its content. One without a path in its line is not compared.
    files: Vec<(PathBuf, Line)>,
}

impl Wanted {
    /// Reads the headers. What would lead out of the volumes is refused: nothing is changed before all of it is known.
    fn read(
        sources: &[Source<'_>],
        layout: Layout,
        job: &RefreshJob,
        line: &Messages,
        unreadable: impl Fn(&PipelineError) -> Failure,
    ) -> Result<Self, Failure> {
        let Layout { between, mut found, .. } = layout;
        let mut headers = Between::new(sources, &between, &line.meter, &line.stop);
        let wanted = Self::look_through(&mut headers, &mut found, &job.tar.volumes);
        if let Some(error) = &headers.failure {
            return Err(unreadable(error));
        }
        let wanted = wanted?;
        let entries = wanted.heads.len() as u64;
        if entries != job.entries {
            let what = format!("the tar has {entries} entries where they can be found, {} were written", job.entries);
            return Err(Failure::new(Trouble::Damaged, what));
        }
        match found.into_keys().next() {
            None => Ok(wanted),
            Some(name) => {
                let what = format!("the block index names {}, and the tar has no such file", name.display());
                Err(Failure::new(Trouble::Damaged, what))
            }
        }
    }

    fn look_through(
        headers: &mut Between<'_>,
        found: &mut std::collections::BTreeMap<PathBuf, Line>,
        volumes: &[String],
    ) -> Result<Self, Failure> {
        let between = headers.parts;
        let mut wanted = Self { heads: vec![], files: vec![] };
        let mut archive = Archive::new(headers);
        for entry in archive.entries_with_seek().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let head = Head::read(&mut entry, volumes)?;
            if head.kind == Kind::File {
                let content = match found.remove(&*entry.path().map_err(broken)?) {
                    Some(known) => Some(known).filter(|known| known.bytes() == entry.size()),
                    None => cut(between, entry.raw_file_position(), entry.size())
                        .map(|parts| Line { parts, ..Line::default() }),
                };
                let content = content.ok_or_else(|| {
                    let what = format!("the block index does not say where {} lies", head.path.display());
                    Failure::new(Trouble::Damaged, what)
                })?;
                wanted.files.push((head.path.clone(), content));
            }
            wanted.heads.push(head);
        }
        Ok(wanted)
    }

    /// Removes what shall not be there, and what is something else than it shall be.
    fn clear(&self, volumes: &[String], bar: &Bar) -> Result<(), Failure> {
        let kinds: HashMap<&Path, &Kind> = self.heads.iter().map(|head| (head.path.as_path(), &head.kind)).collect();
        volumes.iter().try_for_each(|volume| {
            let lost_and_found = Path::new(volume).join("lost+found");
            clear(Path::new(volume), &kinds, &|path| path == lost_and_found || path == bar.label())
        })
    }

    fn make_folders(&self) -> Result<(), Failure> {
        let mut folders = self.heads.iter().filter(|head| head.kind == Kind::Folder);
        folders.try_for_each(|head| {
            make_folder(&head.path).map_err(|error| failed(&format!("making {}", head.path.display()), &error))
        })
    }

    /// Files have their length, links are there, and everything has its owner, mode and time.
    fn finish(&self, bar: &Bar, refused: &mut Refused) -> Result<(), Failure> {
        let mut files = self.files.iter();
        for head in &self.heads {
            let finished = match &head.kind {
                Kind::Folder => Ok(()),
                Kind::File => {
                    let bytes = files.next().map_or(0, |(_, line)| line.bytes());
                    open(&bar.place_of(&head.path)).and_then(|file| {
                        if file.metadata()?.len() != bytes {
                            file.set_len(bytes)?;
                        }
                        head.finish_file(&file, refused)
                    })
                }
                Kind::Symlink(target) => head.make_symlink(target),
                Kind::Link(target) => fs::hard_link(target, &head.path),
            };
            finished.map_err(|error| failed(&format!("finishing {}", head.path.display()), &error))?;
        }
        finish_folders(self.heads.iter().filter(|head| head.kind == Kind::Folder), refused)
    }
}

/// Removes what lies in `folder`, but what has the kind that it shall have, and what is `left_alone`. A file with several names is
/// removed, too: what is written to one of them would be in all.
fn clear(folder: &Path, kinds: &HashMap<&Path, &Kind>, left_alone: &dyn Fn(&Path) -> bool) -> Result<(), Failure> {
    let cannot = |path: &Path, error: &io::Error| failed(&format!("clearing {}", path.display()), error);
    let reading = |error: io::Error| cannot(folder, &error);
    for entry in fs::read_dir(folder).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        if left_alone(&path) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).map_err(|error| cannot(&path, &error))?;
        let removed = match kinds.get(path.as_path()) {
            Some(Kind::Folder) if metadata.is_dir() => {
                clear(&path, kinds, left_alone)?;
                continue;
            }
            Some(Kind::File) if metadata.is_file() && metadata.nlink() == 1 => continue,
            _ if metadata.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(|error| cannot(&path, &error))?;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes pieces, one after the other, where they are not there already.
struct Files<'a> {
    rest: std::slice::Iter<'a, Piece<'a>>,
    bar: &'a Bar,
    /// The file of the piece at hand, where the next byte goes, and how much of the piece is still to come.
    at_hand: Option<(&'a Path, File, u64, u64)>,
    /// What is there.
    there: Vec<u8>,
    /// Bytes that were written.
    written: u64,
    /// Where writing failed.
    failure: Option<(&'a Path, io::Error)>,
}

impl<'a> Files<'a> {
    fn new(pieces: &'a [Piece<'a>], bar: &'a Bar) -> Self {
        Self { rest: pieces.iter(), bar, at_hand: None, there: vec![], written: 0, failure: None }
    }

    /// Has the next piece at hand. None: there is none.
    fn go_on(&mut self) -> Option<Result<(), (&'a Path, io::Error)>> {
        let piece = self.rest.next()?;
        let file = match self.at_hand.take() {
            Some((path, file, ..)) if path == piece.path => Ok(file),
            _ => open(&self.bar.place_of(piece.path)),
        };
        Some(file.map_err(|error| (piece.path, error)).map(|file| {
            self.at_hand = Some((piece.path, file, piece.offset, piece.line.bytes()));
        }))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, (&'a Path, io::Error)> {
        while self.at_hand.as_ref().is_none_or(|(.., rest)| *rest == 0) {
            match self.go_on() {
                Some(gone_on) => gone_on?,
                None => return Ok(0),
            }
        }
        let Some((path, file, at, rest)) = &mut self.at_hand else { return Ok(0) };
        let some = &bytes[..usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len())];
        self.there.resize(some.len(), 0);
        // What cannot be read is not there.
        let is_there = file.read_exact_at(&mut self.there, *at).is_ok() && self.there == some;
        if !is_there {
            file.write_all_at(some, *at).map_err(|error| (*path, error))?;
            self.written += some.len() as u64;
        }
        *at += some.len() as u64;
        *rest -= some.len() as u64;
        Ok(some.len())
    }
}

impl Write for Files<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(|(path, error)| {
            let kind = error.kind();
            self.failure = Some((path, error));
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
