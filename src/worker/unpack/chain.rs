//! The tar of an incremental set, out of its own object and those of the sets it needs.
//!
//! Every frame is checked as it is read, and every block of every file against the digest that the block index has of it: what is
//! put together wrongly is noticed, whatever the reason.

use std::io::{self, Write};

use super::Unread;
use crate::backup_set::Object;
use crate::backup_set::block_index::{IndexError, IndexReader, Line, Part, shortened};
use crate::encryption::Keys;
use crate::pipeline::seal::Unsealed;
use crate::pipeline::{PipelineError, Source, assemble};
use crate::storage::{Folder, ReadAt};
use crate::worker::block_index::{read_index, unreadable_index};
use crate::worker::process::Line as Messages;
use crate::worker::{ChainJob, Failure, Trouble, UnpackJob, keys_for, pipeline_failure, storage_failure};

/// Puts the tar together into `sink`.
pub(in crate::worker) fn read(
    job: &UnpackJob,
    chain: &ChainJob,
    folder: &Folder,
    sink: &mut (dyn Write + Send),
    line: &Messages,
) -> Result<(), Unread> {
    let keys = keys_for(&job.object, job.keys.as_ref())?;
    let text = index_text(job, &chain.index, folder, keys, line)?;
    read_indexed(job, chain, &text, folder, sink, line)
}

/// The same with the text of its index. What an excerpt leaves out does not come.
pub(super) fn read_indexed(
    job: &UnpackJob,
    chain: &ChainJob,
    text: &[u8],
    folder: &Folder,
    sink: &mut (dyn Write + Send),
    line: &Messages,
) -> Result<(), Unread> {
    let keys = keys_for(&job.object, job.keys.as_ref())?;
    let lines = || IndexReader::begin(text).map_err(|error| unreadable_index(&error));
    let objects = Objects::open(job, folder)?;
    let unsealed = objects.unsealed(keys)?;
    let sources = objects.sources(&unsealed)?;
    let excerpt = job.excerpt.as_ref();
    let is_read = |line: &Result<Line, IndexError>| !excerpt.is_some_and(|excerpt| excerpt.leaves_out(line));
    let parts = lines()?.filter(is_read).flat_map(parts);
    let block_bytes = lines()?.header().block_bytes;
    let left_out: u64 = match excerpt {
        None => 0,
        Some(excerpt) => excerpt.holes(lines()?)?.iter().map(|hole| hole.end - hole.start).sum(),
    };
    let mut checked = Checked::new(lines()?.filter(is_read), block_bytes, sink);
    let put = assemble(&sources, parts, &mut checked, job.threads(), &line.meter, &line.stop);
    checked.verdict()?;
    let bytes = put.map_err(|error| Unread::of(&format!("reading {}", objects.names()), &error))?;
    if bytes + left_out == chain.tar_bytes {
        return Ok(());
    }
    let what = format!("the tar that was put together has {} bytes, it had {}", bytes + left_out, chain.tar_bytes);
    Err(Failure::new(Trouble::Damaged, what).into())
}

/// The text of the block index `index`, which must name the sets that the manifest names.
pub(in crate::worker) fn index_text(
    job: &UnpackJob,
    index: &Object,
    folder: &Folder,
    keys: Option<&Keys>,
    line: &Messages,
) -> Result<Vec<u8>, Failure> {
    let text = read_index(folder, index, keys, &line.meter, &line.stop)?;
    let lines = IndexReader::begin(&text[..]).map_err(|error| unreadable_index(&error))?;
    if lines.header().sources[1..].iter().eq(job.ancestors().map(|(ancestor, _)| &ancestor.set)) {
        return Ok(text);
    }
    Err(Failure::new(Trouble::Damaged, format!("{} names other sets than the manifest", index.name)))
}

/// The objects that a tar lies in: the set's own, and those of the sets it needs, nearest first. Each with what it is called.
pub(in crate::worker) struct Objects(Vec<(String, Box<dyn ReadAt>)>);

impl Objects {
    pub(in crate::worker) fn open(job: &UnpackJob, folder: &Folder) -> Result<Self, Failure> {
        let own = open(folder, &job.object.name, job.object.stored.bytes, None)?;
        let mut objects = vec![(job.object.name.clone(), own)];
        for (ancestor, place) in job.ancestors() {
            let folder = place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
            let object = open(&folder, &ancestor.name, ancestor.stored.bytes, Some(ancestor.set.as_str()))?;
            objects.push((format!("{}/{}", ancestor.set, ancestor.name), object));
        }
        Ok(Self(objects))
    }

    /// What they are called, for whoever reads that they cannot be read.
    pub(in crate::worker) fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// Their insides; none where they are not sealed.
    pub(in crate::worker) fn unsealed(&self, keys: Option<&Keys>) -> Result<Vec<Unsealed<'_>>, Failure> {
        let Some(keys) = keys else { return Ok(vec![]) };
        let mut unsealed = Vec::new();
        for (name, object) in &self.0 {
            unsealed.push(Unsealed::open(&**object, keys).map_err(|error| unreadable(name, &error))?);
        }
        Ok(unsealed)
    }

    /// Where their frames are.
    pub(in crate::worker) fn sources<'s>(&'s self, unsealed: &'s [Unsealed<'_>]) -> Result<Vec<Source<'s>>, Failure> {
        let mut sources = Vec::new();
        for (number, (name, object)) in self.0.iter().enumerate() {
            let inside: &dyn ReadAt = unsealed.get(number).map_or(&**object, |unsealed| unsealed);
            sources.push(Source::open(inside).map_err(|error| unreadable(name, &error))?);
        }
        Ok(sources)
    }
}

fn unreadable(name: &str, error: &PipelineError) -> Failure {
    pipeline_failure(&format!("reading {name}"), error)
}

fn open(folder: &Folder, name: &str, bytes: u64, ancestor: Option<&str>) -> Result<Box<dyn ReadAt>, Failure> {
    let what = match ancestor {
        Some(set) => format!("cannot read {name} of backup {set}, which this one needs"),
        None => format!("cannot read {name}"),
    };
    let object = folder.open(name).map_err(|error| storage_failure(&what, &error))?;
    if object.size() == bytes {
        return Ok(object);
    }
    let what = format!("{what}: it has {} bytes, {bytes} were written", object.size());
    Err(Failure::new(Trouble::Damaged, what))
}

fn parts(line: Result<Line, IndexError>) -> Vec<Result<Part, PipelineError>> {
    match line {
        Ok(line) => line.parts.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(PipelineError::Source { source: io::Error::new(io::ErrorKind::InvalidData, error) })],
    }
}

/// The file whose content passes.
struct File {
    line: Line,
    /// Blocks that have passed.
    passed: usize,
    /// What has passed of the block at hand, and how many bytes that is.
    hasher: blake3::Hasher,
    filled: usize,
    /// Bytes of the content still to come.
    rest: u64,
}

/// Compares every block with what `lines` say of it, and hands the bytes on.
pub(in crate::worker) struct Checked<'a, L> {
    lines: L,
    block_bytes: usize,
    file: Option<File>,
    /// The first difference.
    wrong: Option<String>,
    sink: &'a mut (dyn Write + Send),
}

impl<'a, L: Iterator<Item = Result<Line, IndexError>>> Checked<'a, L> {
    pub(in crate::worker) fn new(lines: L, block_bytes: u32, sink: &'a mut (dyn Write + Send)) -> Self {
        Self { lines, block_bytes: block_bytes as usize, file: None, wrong: None, sink }
    }

    /// What was wrong with the bytes that have passed.
    pub(in crate::worker) fn verdict(self) -> Result<(), Failure> {
        self.wrong.map_or(Ok(()), |wrong| Err(Failure::new(Trouble::Damaged, wrong)))
    }

    /// The line that the next byte belongs to.
    fn current(&mut self) -> Result<&mut File, String> {
        while self.file.as_ref().is_none_or(|file| file.rest == 0) {
            let line =
                self.lines.next().ok_or("the tar is longer than its index")?.map_err(|error| error.to_string())?;
            let rest = line.bytes();
            self.file = Some(File { line, passed: 0, hasher: blake3::Hasher::new(), filled: 0, rest });
        }
        Ok(self.file.as_mut().expect("just filled"))
    }

    fn check(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let block_bytes = self.block_bytes;
        while !bytes.is_empty() {
            let file = self.current()?;
            let room = usize::try_from(file.rest).unwrap_or(usize::MAX).min(bytes.len());
            let Some(path) = &file.line.path else {
                file.rest -= room as u64;
                bytes = &bytes[room..];
                continue;
            };
            let (some, rest) = bytes.split_at(room.min(block_bytes - file.filled));
            bytes = rest;
            file.hasher.update(some);
            file.filled += some.len();
            file.rest -= some.len() as u64;
            if file.filled == block_bytes || file.rest == 0 {
                if file.line.blocks.get(file.passed) != Some(&shortened(&file.hasher.finalize())) {
                    return Err(format!("block {} of {path} is not what was copied", file.passed));
                }
                file.passed += 1;
                file.filled = 0;
                file.hasher.reset();
            }
        }
        Ok(())
    }
}

impl<L: Iterator<Item = Result<Line, IndexError>>> Write for Checked<'_, L> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(wrong) = self.check(bytes) {
            self.wrong = Some(wrong);
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.sink.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::block_index::{IndexWriter, SMALLEST_BLOCK, block_digest};

    #[test]
    fn a_block_that_is_another_is_noticed() {
        let page = SMALLEST_BLOCK as usize;
        let content: Vec<u8> = (0..page * 3 + 7).map(|at| u8::try_from(at % 251).expect("small")).collect();
        let part = |bytes| vec![Part { source: 0, offset: 0, bytes }];
        let id = "20261122T023000Z-volume-k3x9qa".parse().expect("an id");
        let mut writer = IndexWriter::begin(Vec::new(), SMALLEST_BLOCK, vec![id]).expect("memory");
        writer.push(&Line { parts: part(512), ..Line::default() }).expect("memory");
        let blocks = content.chunks(page).map(block_digest).collect();
        let file =
            Line { parts: part(content.len() as u64), path: Some("data/a".to_owned()), blocks, ..Line::default() };
        writer.push(&file).expect("memory");
        let (index, _) = writer.finish().expect("memory");
        let tar = [vec![0; 512], content].concat();
        let pass = |tar: &[u8]| {
            let mut sink = Vec::new();
            let lines = IndexReader::begin(&index[..]).expect("an index");
            let mut checked = Checked::new(lines, SMALLEST_BLOCK, &mut sink);
            let passed = tar.chunks(1000).try_for_each(|some| checked.write_all(some));
            passed.map_err(|_| checked.wrong.unwrap_or_default())
        };
        assert_eq!(pass(&tar), Ok(()));
        for (at, block) in [(512, 0), (512 + page, 1), (512 + 3 * page + 6, 3)] {
            let mut other = tar.clone();
            other[at] ^= 1;
            assert_eq!(pass(&other), Err(format!("block {block} of data/a is not what was copied")));
        }
        assert!(pass(&[tar, vec![0]].concat()).is_err());
    }
}
