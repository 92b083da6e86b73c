//! The tar of an incremental set, out of its own object and those of the sets it needs.
//!
//! Every frame is checked as it is read, and every block of every file against the digest that the block index has of it: what is
//! put together wrongly is noticed, whatever the reason.

use std::io::{self, Write};

use super::Unread;
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
    let text = read_index(folder, &chain.index, keys, &line.meter, &line.stop)?;
    let lines = || IndexReader::begin(&text[..]).map_err(|error| unreadable_index(&error));
    let header = lines()?.header().clone();
    if !header.sources[1..].iter().eq(chain.ancestors.iter().map(|(ancestor, _)| &ancestor.set)) {
        let what = format!("{} names other sets than the manifest", chain.index.name);
        return Err(Failure::new(Trouble::Damaged, what).into());
    }
    let mut objects = vec![open(folder, &job.object.name, job.object.stored.bytes, None)?];
    for (ancestor, place) in &chain.ancestors {
        let folder = place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
        objects.push(open(&folder, &ancestor.name, ancestor.stored.bytes, Some(ancestor.set.as_str()))?);
    }
    let names: Vec<String> = std::iter::once(job.object.name.clone())
        .chain(chain.ancestors.iter().map(|(ancestor, _)| format!("{}/{}", ancestor.set, ancestor.name)))
        .collect();
    let unsealed = unseal(&objects, &names, keys)?;
    let mut sources = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let inside: &dyn ReadAt = unsealed.get(number).map_or(&*objects[number], |unsealed| unsealed);
        sources.push(Source::open(inside).map_err(|error| pipeline_failure(&format!("reading {name}"), &error))?);
    }
    let parts = lines()?.flat_map(parts);
    let mut checked =
        Checked { lines: lines()?, block_bytes: header.block_bytes as usize, file: None, wrong: None, sink };
    let put = assemble(&sources, parts, &mut checked, job.threads(), &line.meter, &line.stop);
    if let Some(wrong) = checked.wrong {
        return Err(Failure::new(Trouble::Damaged, wrong).into());
    }
    let bytes = put.map_err(|error| Unread::of(&format!("reading {}", names.join(", ")), &error))?;
    if bytes == chain.tar_bytes {
        return Ok(());
    }
    let what = format!("the tar that was put together has {bytes} bytes, it had {}", chain.tar_bytes);
    Err(Failure::new(Trouble::Damaged, what).into())
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

/// The insides of sealed objects; none where they are not sealed.
fn unseal<'a>(
    objects: &'a [Box<dyn ReadAt>],
    names: &[String],
    keys: Option<&Keys>,
) -> Result<Vec<Unsealed<'a>>, Failure> {
    let Some(keys) = keys else { return Ok(vec![]) };
    let mut unsealed = Vec::new();
    for (object, name) in objects.iter().zip(names) {
        let inside = Unsealed::open(&**object, keys);
        unsealed.push(inside.map_err(|error| pipeline_failure(&format!("reading {name}"), &error))?);
    }
    Ok(unsealed)
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

/// Compares every block with the index, and hands the bytes on.
struct Checked<'a> {
    lines: IndexReader<&'a [u8]>,
    block_bytes: usize,
    file: Option<File>,
    /// The first difference.
    wrong: Option<String>,
    sink: &'a mut (dyn Write + Send),
}

impl Checked<'_> {
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

impl Write for Checked<'_> {
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
            let mut checked = Checked { lines, block_bytes: page, file: None, wrong: None, sink: &mut sink };
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
