//! Takes single files out of a volume backup, into a folder of this machine.
//!
//! ```text
//! block index ─▶ where the content of files lies ─────────────────────────────────┐
//!          └───▶ what lies between it ─▶ headers of the tar: the files without ─▶ wanted ─▶ assemble ─▶ checked ─▶ files
//! ```
//! The index names the files that copies compare: those of the server, without its WAL. Where every name is one of them, nothing but
//! their frames is read. For any other name, and for a folder, the headers of the tar are looked at, from one to the next, and the
//! content that lies between two of them is not read. A set without an index is one that names no file.
//!
//! Every frame is checked as it is read, and every block that the index knows. What is written before the verdict is worthless.

pub(super) mod between;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType};

use crate::backup_set::Object;
use crate::backup_set::block_index::{IndexError, IndexReader, Line, Part, SMALLEST_BLOCK};
use crate::pipeline::{PipelineError, assemble};

use super::block_index::unreadable_index;
use super::process::Line as Messages;
use super::unpack::chain::{Checked, Objects, index_text};
use super::unpack::place;
use super::{Event, Failure, Trouble, UnpackJob, keys_for, pipeline_failure, storage_failure};
use between::{Between, cut};

/// Files to take out of a tar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchJob {
    /// The tar; into no volumes.
    pub tar: UnpackJob,
    /// Its block index, where it has one.
    pub index: Option<Object>,
    /// How many entries the tar has.
    pub entries: u64,
    /// The files, and folders with files.
    pub names: Vec<PathInCopy>,
    /// The folder they go to.
    pub to: PathBuf,
}

/// A file or a folder in a copy of volumes, as the tar calls it: relative, with no way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct PathInCopy(String);

/// The text names nothing that could be in a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names nothing in a copy: write data/17/pg_hba.conf, or a folder for every file below it")]
pub struct PathInCopyError(String);

impl PathInCopy {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for PathInCopy {
    type Err = PathInCopyError;
    /// A name as the containers have it, `/data/17`, is one in the tar.
    fn from_str(text: &str) -> Result<Self, PathInCopyError> {
        let parts = Path::new(text.trim_start_matches('/')).components().map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        });
        let parts = parts.collect::<Option<Vec<&str>>>().filter(|parts| !parts.is_empty());
        parts.map(|parts| Self(parts.join("/"))).ok_or_else(|| PathInCopyError(text.to_owned()))
    }
}

impl TryFrom<String> for PathInCopy {
    type Error = PathInCopyError;
    fn try_from(text: String) -> Result<Self, PathInCopyError> {
        text.parse()
    }
}

/// Does the job.
pub(super) fn run(job: &FetchJob, line: &Messages) -> Result<Vec<String>, Failure> {
    let (files, bytes) = fetch(job, line)?;
    line.tell(&Event::Fetched { files, bytes });
    Ok(vec![])
}

/// Writes the files. Returns their number and size.
fn fetch(job: &FetchJob, line: &Messages) -> Result<(usize, u64), Failure> {
    let tar = &job.tar;
    let folder = tar.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    let keys = keys_for(&tar.object, tar.keys.as_ref())?;
    let mut wish = Wish::of(&job.names);
    let Layout { block_bytes, between, mut found } = match &job.index {
        Some(index) => {
            let text = index_text(tar, index, &folder, keys, line)?;
            let layout = IndexReader::begin(&text[..]).and_then(|lines| Layout::read(lines, |path| wish.takes(path)));
            layout.map_err(|error| unreadable_index(&error))?
        }
        None => Layout::unknown(tar.object.plain.bytes),
    };
    let objects = Objects::open(tar, &folder)?;
    let unsealed = objects.unsealed(keys)?;
    let sources = objects.sources(&unsealed)?;
    let unreadable = |error: &PipelineError| pipeline_failure(&format!("reading {}", objects.names()), error);
    if !wish.is_of_known_files() {
        let mut headers = Between::new(&sources, &between, &line.meter, &line.stop);
        let entries = look_through(&mut headers, &mut wish, &mut found);
        if let Some(error) = &headers.failure {
            return Err(unreadable(error));
        }
        let entries = entries?;
        if entries != job.entries {
            let what = format!("the tar has {entries} entries where they can be found, {} were written", job.entries);
            return Err(Failure::new(Trouble::Damaged, what));
        }
    }
    wish.is_fulfilled()?;
    if let Some(name) = found.keys().find(|name| place(name, &tar.volumes).is_none()) {
        let what = format!("the tar has {}, which is in none of its volumes", name.display());
        return Err(Failure::new(Trouble::Damaged, what));
    }
    let parts = found.values().flat_map(|line| line.parts.iter().copied().map(Ok));
    let mut files =
        Files { to: &job.to, rest: found.iter().map(|(name, line)| (name.as_path(), line.bytes())), open: None };
    let mut checked = Checked::new(found.values().cloned().map(Ok), block_bytes, &mut files);
    let put = assemble(&sources, parts, &mut checked, tar.threads(), &line.meter, &line.stop);
    checked.verdict()?;
    let bytes = put.map_err(|error| unreadable(&error))?;
    // Empty ones may come last.
    while files.go_on().map_err(|error| unreadable(&PipelineError::Sink { written: bytes, source: error }))? {}
    Ok((found.len(), bytes))
}

/// What was asked for, and how much of it was found.
struct Wish<'a>(Vec<(&'a str, Found)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Files below it.
    Below,
    /// It is a file.
    Itself,
}

impl<'a> Wish<'a> {
    fn of(names: &'a [PathInCopy]) -> Self {
        Self(names.iter().map(|name| (name.as_str(), Found::Nothing)).collect())
    }

    /// Whether the file called `path` is asked for, which is there.
    fn takes(&mut self, path: &Path) -> bool {
        let mut taken = false;
        for (name, found) in &mut self.0 {
            if path.starts_with(*name) {
                *found = if path == Path::new(name) { Found::Itself } else { Found::Below };
                taken = true;
            }
        }
        taken
    }

    /// Whether every name is a file that was found: there is nothing else to look for.
    fn is_of_known_files(&self) -> bool {
        self.0.iter().all(|(_, found)| *found == Found::Itself)
    }

    fn is_fulfilled(&self) -> Result<(), Failure> {
        let missing: Vec<&str> =
            self.0.iter().filter(|(_, found)| *found == Found::Nothing).map(|(name, _)| *name).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("the backup has no file of this name, and no folder with files: {}", missing.join(", "));
        Err(Failure::new(Trouble::Absent, what))
    }
}

/// Where things lie in a tar, as far as that matters.
pub(super) struct Layout {
    pub(super) block_bytes: u32,
    /// What is no content of a file that the index names, with where each part begins in the tar.
    pub(super) between: Vec<(u64, Part)>,
    /// The files that are wanted, by name. One without a path in its line is not compared.
    pub(super) found: BTreeMap<PathBuf, Line>,
}

impl Layout {
    /// What an index says; `takes` says of each file that it names whether it is wanted.
    pub(super) fn read(lines: IndexReader<&[u8]>, mut takes: impl FnMut(&Path) -> bool) -> Result<Self, IndexError> {
        let mut layout = Self { block_bytes: lines.header().block_bytes, between: vec![], found: BTreeMap::new() };
        let mut at = 0;
        for line in lines {
            let line = line?;
            let bytes = line.bytes();
            match &line.path {
                None => {
                    let mut begins = at;
                    for part in line.parts.into_iter().filter(|part| part.bytes > 0) {
                        layout.between.push((begins, part));
                        begins += part.bytes;
                    }
                }
                Some(path) if takes(Path::new(path)) => {
                    layout.found.insert(path.into(), line);
                }
                Some(_) => {}
            }
            at += bytes;
        }
        Ok(layout)
    }

    /// Of a tar that is one object, of which nothing else is known.
    pub(super) fn unknown(bytes: u64) -> Self {
        let whole = Part { source: 0, offset: 0, bytes };
        Self { block_bytes: SMALLEST_BLOCK, between: vec![(0, whole)], found: BTreeMap::new() }
    }
}

/// Looks at every header of the tar, and adds to `found` what is wanted and not there yet. Returns the number of entries.
fn look_through(
    headers: &mut Between<'_>,
    wish: &mut Wish<'_>,
    found: &mut BTreeMap<PathBuf, Line>,
) -> Result<u64, Failure> {
    let broken =
        |error: io::Error| Failure::from_error(Trouble::Damaged, "the headers of the tar cannot be read", &error);
    let between = headers.parts;
    let mut links = Vec::new();
    let mut entries = 0;
    let mut archive = Archive::new(headers);
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        entries += 1;
        let name = entry.path().map_err(broken)?.into_owned();
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous if wish.takes(&name) && !found.contains_key(&name) => {
                let parts = cut(between, entry.raw_file_position(), entry.size()).ok_or_else(|| {
                    let what = format!("the block index does not say where {} lies", name.display());
                    Failure::new(Trouble::Damaged, what)
                })?;
                found.insert(name, Line { parts, ..Line::default() });
            }
            EntryType::Link if wish.takes(&name) => {
                let target = entry.link_name().map_err(broken)?.unwrap_or_default().into_owned();
                links.push((name, target));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        let content = found.get(&target).cloned().ok_or_else(|| {
            let (name, target) = (name.display(), target.display());
            Failure::new(Trouble::Absent, format!("{name} is another name of {target}: ask for that one as well"))
        })?;
        found.insert(name, content);
    }
    Ok(entries)
}

/// Writes files, one after the other.
struct Files<'a, I> {
    to: &'a Path,
    /// The names and sizes of those to come.
    rest: I,
    /// The one at hand, and how much of it is still to come.
    open: Option<(File, u64)>,
}

impl<'a, I: Iterator<Item = (&'a Path, u64)>> Files<'a, I> {
    /// Ends the file at hand and begins the next one. False where there is none.
    fn go_on(&mut self) -> io::Result<bool> {
        if let Some((file, _)) = self.open.take() {
            file.sync_all()?;
        }
        let Some((name, bytes)) = self.rest.next() else { return Ok(false) };
        let path = self.to.join(name);
        let folder = path.parent().unwrap_or(self.to);
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path));
        let file = made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        self.open = Some((file, bytes));
        Ok(true)
    }
}

impl<'a, I: Iterator<Item = (&'a Path, u64)>> Write for Files<'a, I> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.open.as_ref().is_none_or(|(_, rest)| *rest == 0) {
            if !self.go_on()? {
                return Ok(0);
            }
        }
        let Some((file, rest)) = &mut self.open else { return Ok(0) };
        let some = usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len());
        file.write_all(&bytes[..some])?;
        *rest -= some as u64;
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
