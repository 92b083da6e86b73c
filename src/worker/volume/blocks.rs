//! What is in each block of a copy, and what of it an earlier copy has already.
//!
//! The tar is written as always, but a block of a file that is in the parent, at the same place of the same file, is not: it is noted
//! where that one lies. What is written, and what is only noted, becomes the set's block index ([`crate::backup_set::block_index`]).
//! Whether a block is as it was is told by its digest, or by the server ([`super::unread`]): then it is not even read.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;
use tokio_util::sync::CancellationToken;

use crate::backup_set::SetId;
use crate::backup_set::block_index::{
    BlockDigest, IndexError, IndexReader, IndexWriter, Line, Part, Stamp, block_digest, push_part,
};
use crate::pipeline::Meter;
use crate::postgres::wal_summary::Changes;
use crate::worker::block_index::{read_index, unreadable_index};
use crate::worker::{Failure, ParentJob, keys_for, storage_failure};

use super::archive::Broken;
use super::crc::Combiner;
use super::unread::{Row, rows};

/// What is read of a file at once; a multiple of every block size.
const CHUNK: usize = 1 << 20;
/// Chunks under way: one is read while another is compared.
const BUFFERS: usize = 3;

/// The files of the parent.
#[derive(Debug, Default)]
pub(super) struct Parent {
    block_bytes: u32,
    sources: Vec<SetId>,
    files: HashMap<Box<str>, Known>,
}

#[derive(Debug)]
struct Known {
    parts: Vec<Part>,
    blocks: Vec<BlockDigest>,
    /// The CRC-32C of each, where they are known.
    crcs: Vec<u32>,
    /// By what it is known to be untouched, and its CRC-32C.
    still: Option<(Stamp, u32)>,
}

impl Known {
    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Whether each of its blocks can stand for itself: it lies in one piece, and its CRC is known.
    fn is_known_by_block(&self, block_bytes: u64) -> bool {
        let (mut end, all) = (0, self.bytes());
        let in_one_piece = self.parts.iter().all(|part| {
            end += part.bytes;
            end.is_multiple_of(block_bytes) || end == all
        });
        in_one_piece && self.crcs.len() == self.blocks.len()
    }
}

impl Parent {
    /// Reads the parent's index.
    pub(super) fn read(job: &ParentJob, stop: &CancellationToken) -> Result<Self, Failure> {
        let folder = job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
        let keys = keys_for(&job.index, job.keys.as_ref())?;
        let text = read_index(&folder, &job.index, keys, &Meter::new(), stop)?;
        let mut parent = IndexReader::begin(&text[..]).and_then(Self::of).map_err(|error| unreadable_index(&error))?;
        if job.read_all {
            parent.files.values_mut().for_each(|known| known.still = None);
        }
        Ok(parent)
    }

    fn of(index: IndexReader<&[u8]>) -> Result<Self, IndexError> {
        let mut parent = Self {
            block_bytes: index.header().block_bytes,
            sources: index.header().sources.clone(),
            files: HashMap::new(),
        };
        for line in index {
            let Line { parts, path, blocks, stamp, crc, crcs } = line?;
            if let Some(path) = path {
                parent.files.insert(path.into(), Known { parts, blocks, crcs, still: stamp.zip(crc) });
            }
        }
        Ok(parent)
    }
}

/// The index as far as it has come.
#[derive(Debug)]
pub(super) struct Blocks {
    writer: IndexWriter<Vec<u8>>,
    block_bytes: usize,
    parent: Parent,
    /// Plain bytes of the set's own object so far.
    given: u64,
    /// What was written since the last file's content.
    between: Vec<Part>,
    buffers: [Vec<u8>; BUFFERS],
    /// What the server says has changed; None: nobody asked, or it does not know.
    changes: Option<Changes>,
    /// Adds CRCs of blocks, where they are noted for the next copy.
    combiner: Option<Arc<Combiner>>,
    /// Bytes of files that were not read.
    unread: u64,
}

/// The file whose content is being written.
pub(super) struct Comparison<'a> {
    known: Option<&'a Known>,
    block_bytes: usize,
    given: &'a mut u64,
    unread: &'a mut u64,
    buffers: &'a mut [Vec<u8>; BUFFERS],
    /// The part of `known` at hand, and where in the file it begins.
    part: usize,
    part_at: u64,
    /// How much of the file has passed.
    at: u64,
    line: Line,
}

impl<'a> Comparison<'a> {
    /// The next bytes of the content: `promised`, zeros where `source` has fewer. `see` is shown all of them, `give` what must be
    /// written. In whole blocks, but for the end of the file.
    pub(super) fn read(
        &mut self,
        source: &mut (dyn Read + Send),
        promised: u64,
        see: &mut (dyn FnMut(&[u8]) + Send),
        give: &mut dyn FnMut(&[u8]) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let mut buffers = std::mem::take(self.buffers);
        let read = in_chunks(source, promised, &mut buffers, see, &mut |chunk| {
            // What must be written is written in rows of blocks.
            let mut row = 0..0;
            for (number, block) in chunk.chunks(self.block_bytes).enumerate() {
                let at = number * self.block_bytes;
                if self.block(block, *self.given) {
                    *self.given += block.len() as u64;
                    if row.end != at {
                        give(&chunk[row])?;
                        row = at..at;
                    }
                    row.end = at + block.len();
                }
            }
            give(&chunk[row])
        });
        *self.buffers = buffers;
        read
    }

    /// The next `blocks` are not read: they are as the parent has them. Returns their CRCs, and how many bytes they are.
    pub(super) fn leave(&mut self, blocks: Range<usize>) -> Result<(&'a [u32], u64), Broken> {
        let wrong = || Broken::Unreadable(io::Error::other("what is known of the copy before does not fit"));
        let known = self.known.filter(|_| blocks.start == self.line.blocks.len()).ok_or_else(wrong)?;
        let (digests, crcs) = (known.blocks.get(blocks.clone()), known.crcs.get(blocks));
        let (digests, crcs) = digests.zip(crcs).ok_or_else(wrong)?;
        let (from, end) = (self.at, known.bytes());
        for digest in digests {
            let bytes = (self.block_bytes as u64).min(end.saturating_sub(self.at));
            if !self.refer(bytes) {
                return Err(wrong());
            }
            self.line.blocks.push(*digest);
            self.at += bytes;
        }
        let bytes = self.at - from;
        *self.unread += bytes;
        Ok((crcs, bytes))
    }

    /// Ends the file. Its line is to be noted.
    pub(super) fn finish(self) -> Line {
        self.line
    }

    /// Notes the next block. True where it must be written.
    fn block(&mut self, block: &[u8], own: u64) -> bool {
        let digest = block_digest(block);
        let number = self.line.blocks.len();
        let bytes = block.len() as u64;
        self.line.blocks.push(digest);
        let there = self.known.is_some_and(|known| known.blocks.get(number) == Some(&digest)) && self.refer(bytes);
        if !there {
            push_part(&mut self.line.parts, Part { source: 0, offset: own, bytes });
        }
        self.at += bytes;
        !there
    }

    /// Notes where the next `bytes` lie in the parent. False where that is not all of a part.
    fn refer(&mut self, bytes: u64) -> bool {
        let Some(known) = self.known else { return false };
        while let Some(part) = known.parts.get(self.part) {
            let inside = self.at - self.part_at;
            if inside >= part.bytes {
                self.part_at += part.bytes;
                self.part += 1;
                continue;
            }
            if inside + bytes > part.bytes {
                return false;
            }
            push_part(&mut self.line.parts, Part { source: part.source + 1, offset: part.offset + inside, bytes });
            return true;
        }
        false
    }
}

impl Blocks {
    /// Begins the index of `set`; without a parent, everything is its own.
    pub(super) fn begin(set: SetId, block_bytes: u32, parent: Option<Parent>) -> Self {
        let parent = parent.unwrap_or_else(|| Parent { block_bytes, ..Parent::default() });
        let block_bytes = parent.block_bytes;
        let sources = [vec![set], parent.sources.clone()].concat();
        let writer = IndexWriter::begin(Vec::new(), block_bytes, sources).expect("memory takes everything");
        let block_bytes = block_bytes as usize;
        Self {
            writer,
            block_bytes,
            parent,
            given: 0,
            between: vec![],
            buffers: Default::default(),
            changes: None,
            combiner: None,
            unread: 0,
        }
    }

    /// Bytes in a block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Notes the CRCs of blocks from here on, so that the next copy can leave some out.
    pub(super) fn note_crcs(&mut self) {
        self.combiner = Some(Arc::new(Combiner::new(self.block_bytes)));
    }

    /// What has changed since the parent: the rest is not read from here on.
    pub(super) fn rely_on(&mut self, changes: Changes) {
        self.changes = Some(changes);
    }

    /// What adds the CRCs of blocks, where they are to be noted.
    pub(super) fn combiner(&self) -> Option<Arc<Combiner>> {
        self.combiner.clone()
    }

    /// Bytes of files that were not read.
    pub(super) fn unread(&self) -> u64 {
        self.unread
    }

    /// Which blocks of the file that is called `name` in the tar, `in_server` by the server, and has so many bytes, need be read; None: all.
    pub(super) fn rows(&self, name: &str, in_server: &Path, bytes: u64) -> Option<Vec<Row>> {
        let (changes, _) = self.changes.as_ref().zip(self.combiner.as_ref())?;
        let block_bytes = self.block_bytes as u64;
        let known = self.parent.files.get(name).filter(|known| known.is_known_by_block(block_bytes))?;
        rows(changes, in_server, known.bytes(), bytes, block_bytes)
    }

    /// Bytes were written that are no file's content.
    pub(super) fn wrote(&mut self, bytes: u64) {
        push_part(&mut self.between, Part { source: 0, offset: self.given, bytes });
        self.given += bytes;
    }

    fn push(&mut self, line: &Line) {
        self.writer.push(line).expect("memory takes everything");
    }

    /// Notes the content of the file that is called `name` in the tar and has so many bytes, where nobody has touched it since the
    /// parent was made: it need not be read. Returns its CRC-32C. Pure but for the note.
    pub(super) fn untouched(&mut self, name: &str, bytes: u64, stamp: Stamp) -> Option<u32> {
        let known = self.parent.files.get(name)?;
        let (then, crc) = known.still?;
        if then != stamp || known.bytes() != bytes {
            return None;
        }
        let parts = known.parts.iter().map(|part| Part { source: part.source + 1, ..*part }).collect();
        let (blocks, crcs) = (known.blocks.clone(), known.crcs.clone());
        let line = Line { parts, path: Some(name.to_owned()), blocks, crcs, ..Line::default() };
        self.unread += bytes;
        self.note(line, Some((stamp, crc)));
        Some(crc)
    }

    /// Adds the line of a file, with what it is known by the next time.
    pub(super) fn note(&mut self, mut line: Line, still: Option<(Stamp, u32)>) {
        let between = Line { parts: std::mem::take(&mut self.between), ..Line::default() };
        self.push(&between);
        (line.stamp, line.crc) = still.unzip();
        self.push(&line);
    }

    /// Begins the content of the file that is called `name` in the tar.
    pub(super) fn begin_file(&mut self, name: &str) -> Comparison<'_> {
        Comparison {
            known: self.parent.files.get(name),
            block_bytes: self.block_bytes,
            given: &mut self.given,
            unread: &mut self.unread,
            buffers: &mut self.buffers,
            part: 0,
            part_at: 0,
            at: 0,
            line: Line { path: Some(name.to_owned()), ..Line::default() },
        }
    }

    /// Ends the index: its text, and how many bytes the tar has.
    pub(super) fn finish(mut self) -> (Vec<u8>, u64) {
        let between = Line { parts: std::mem::take(&mut self.between), ..Line::default() };
        self.push(&between);
        self.writer.finish().expect("memory takes everything")
    }
}

/// Reads `promised` bytes, zeros where `source` has fewer, and hands them on in chunks: to `see`, where it is read, and then to `each`. A
/// large file is read on a thread of its own, so that both ends have a core.
fn in_chunks(
    source: &mut (dyn Read + Send),
    promised: u64,
    buffers: &mut [Vec<u8>; BUFFERS],
    see: &mut (dyn FnMut(&[u8]) + Send),
    each: &mut dyn FnMut(&[u8]) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let mut rest = promised;
    let mut next = |buffer: &mut Vec<u8>| -> Result<bool, Broken> {
        buffer.resize(usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK), 0);
        let read = fill(source, buffer).map_err(Broken::Unreadable)?;
        buffer[read..].fill(0);
        see(buffer);
        rest -= buffer.len() as u64;
        Ok(!buffer.is_empty())
    };
    if promised <= CHUNK as u64 {
        return if next(&mut buffers[0])? { each(&buffers[0]) } else { Ok(()) };
    }
    let (full_sender, full) = bounded::<Vec<u8>>(BUFFERS);
    let (empty_sender, empty) = bounded::<Vec<u8>>(BUFFERS);
    for buffer in buffers.iter_mut() {
        empty_sender.send(std::mem::take(buffer)).expect("there is room for all buffers");
    }
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            // Nobody gives a buffer back when the other end has failed, and knows why.
            while let Ok(mut buffer) = empty.recv() {
                if !next(&mut buffer)? || full_sender.send(buffer).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let compared = full.iter().try_for_each(|chunk| {
            each(&chunk)?;
            empty_sender.send(chunk).ok();
            Ok(())
        });
        drop((full, empty_sender));
        let read = reading.join().unwrap_or_else(|_| Err(Broken::Unreadable(io::Error::other("reading hit a bug"))));
        compared.and(read)
    })
}

/// Reads until `buffer` is full or the source ends.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::crc::crc_of;
    use super::super::passing::Passing;
    use super::*;
    use crate::backup_set::block_index::SMALLEST_BLOCK;
    use crate::postgres::wal_summary::RelationFile;

    const PAGE: usize = SMALLEST_BLOCK as usize;

    /// Files by name, a byte for each of their pages, and how long the last page is.
    type Files = BTreeMap<String, (Vec<u8>, usize)>;

    fn content((pages, last): &(Vec<u8>, usize)) -> Vec<u8> {
        let mut bytes: Vec<u8> = pages.iter().flat_map(|page| vec![*page; PAGE]).collect();
        bytes.truncate(bytes.len().saturating_sub(PAGE - last.min(&PAGE)));
        bytes
    }

    /// Copies `files`, and returns the tar, the object and the index.
    fn copy(files: &Files, set: &str, parent: Option<Parent>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (mut tar, mut object) = (Vec::new(), Vec::new());
        let mut blocks = Blocks::begin(set.parse().expect("an id"), SMALLEST_BLOCK, parent);
        for (name, file) in files {
            let head = vec![b'#'; 512];
            blocks.wrote(512);
            object.extend_from_slice(&head);
            tar.extend_from_slice(&head);
            let bytes = content(file);
            let mut see = |seen: &[u8]| tar.extend_from_slice(seen);
            let mut give = |given: &[u8]| {
                object.extend_from_slice(given);
                Ok(())
            };
            let line =
                read_all(&mut blocks, name, &mut &bytes[..], bytes.len() as u64, &mut see, &mut give).expect("memory");
            blocks.note(line, None);
        }
        let (index, bytes) = blocks.finish();
        assert_eq!(bytes, tar.len() as u64);
        (tar, object, index)
    }

    /// Reads all of a file.
    fn read_all(
        blocks: &mut Blocks,
        name: &str,
        source: &mut (dyn Read + Send),
        promised: u64,
        see: &mut (dyn FnMut(&[u8]) + Send),
        give: &mut dyn FnMut(&[u8]) -> Result<(), Broken>,
    ) -> Result<Line, Broken> {
        let mut file = blocks.begin_file(name);
        file.read(source, promised, see, give)?;
        Ok(file.finish())
    }

    fn parent_of(index: &[u8]) -> Parent {
        Parent::of(IndexReader::begin(index).expect("an index")).expect("an index")
    }

    fn put_together(index: &[u8], objects: &[&[u8]]) -> Vec<u8> {
        let lines = IndexReader::begin(index).expect("an index").map(|line| line.expect("a line"));
        let bytes = |part: Part| {
            let at = usize::try_from(part.offset).expect("small");
            &objects[part.source as usize][at..at + usize::try_from(part.bytes).expect("small")]
        };
        lines.flat_map(|line| line.parts).flat_map(bytes).copied().collect()
    }

    fn files() -> impl Strategy<Value = Files> {
        let file = (prop::collection::vec(0..4_u8, 0..6), 1..=PAGE);
        prop::collection::btree_map("[a-f]", file, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_copy_of_a_chain_is_whole(generations in prop::collection::vec(files(), 1..5)) {
            let ids = ["k3x9qa", "k3x9qb", "k3x9qc", "k3x9qd"].map(|random| format!("20261122T023000Z-volume-{random}"));
            let mut objects: Vec<Vec<u8>> = Vec::new();
            let mut parent = None;
            for (files, id) in generations.iter().zip(&ids) {
                let (tar, object, index) = copy(files, id, parent.take());
                objects.insert(0, object);
                let sources: Vec<&[u8]> = objects.iter().map(|object| &object[..]).collect();
                prop_assert!(put_together(&index, &sources) == tar);
                parent = Some(parent_of(&index));
            }
        }

        #[test]
        fn nothing_is_written_twice(files in files()) {
            let (_, _, index) = copy(&files, "20261122T023000Z-volume-k3x9qa", None);
            let (_, object, _) = copy(&files, "20261122T023000Z-volume-k3x9qb", Some(parent_of(&index)));
            prop_assert_eq!(object.len(), files.len() * 512);
        }
    }

    #[test]
    fn a_file_that_shrinks_is_filled_with_zeros() {
        let mut blocks = Blocks::begin("20261122T023000Z-volume-k3x9qa".parse().expect("an id"), SMALLEST_BLOCK, None);
        let mut given = Vec::new();
        let mut give = |bytes: &[u8]| {
            given.extend_from_slice(bytes);
            Ok(())
        };
        read_all(&mut blocks, "a", &mut &[7; 10][..], 20_000, &mut |_| (), &mut give).expect("memory");
        assert_eq!(given, [vec![7; 10], vec![0; 19_990]].concat());
    }

    #[test]
    fn a_large_file_is_the_same_in_chunks() {
        let content: Vec<u8> = (0..3 * CHUNK + 4711).map(|at| u8::try_from(at / 777 % 251).expect("small")).collect();
        for (missing, fails) in [(0, false), (CHUNK + 5, false), (0, true)] {
            let mut blocks =
                Blocks::begin("20261122T023000Z-volume-k3x9qa".parse().expect("an id"), SMALLEST_BLOCK, None);
            let (mut seen, mut given) = (Vec::new(), Vec::new());
            let mut see = |bytes: &[u8]| seen.extend_from_slice(bytes);
            let mut give = |bytes: &[u8]| {
                given.extend_from_slice(bytes);
                if fails { Err(Broken::Gone) } else { Ok(()) }
            };
            let mut source = &content[..content.len() - missing];
            let done = read_all(&mut blocks, "a", &mut source, content.len() as u64, &mut see, &mut give);
            assert_eq!(done.is_err(), fails);
            if !fails {
                let mut expected = content.clone();
                let end = expected.len() - missing;
                expected[end..].fill(0);
                assert!(seen == expected && given == expected);
            }
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let before = Files::from([("a".to_owned(), (vec![1, 2, 3, 4, 5], PAGE))]);
        let after = Files::from([("a".to_owned(), (vec![1, 9, 3, 4, 5, 6], PAGE))]);
        let (_, _, index) = copy(&before, "20261122T023000Z-volume-k3x9qa", None);
        let (_, object, index) = copy(&after, "20261122T023000Z-volume-k3x9qb", Some(parent_of(&index)));
        assert_eq!(object.len(), 512 + 2 * PAGE);
        let file = IndexReader::begin(&index[..]).expect("an index").map(|line| line.expect("a line")).nth(1);
        let parts = file.expect("a file").parts;
        let page = SMALLEST_BLOCK.into();
        let expected: Vec<Part> =
            [(1, 512, page), (0, 512, page), (1, 512 + 2 * page, 3 * page), (0, 512 + page, page)]
                .map(Part::from)
                .into();
        assert_eq!(parts, expected);
    }

    #[test]
    fn what_the_server_says_has_not_changed_is_not_read() {
        let name = "data/17/base/5/16384";
        let pages = |values: &[u8]| -> Vec<u8> { values.iter().flat_map(|value| vec![*value; PAGE]).collect() };
        let copy = |set: &str, content: &[u8], parent: Option<(&[u8], Changes)>| {
            let (before, changes) = parent.unzip();
            let mut blocks = Blocks::begin(set.parse().expect("an id"), SMALLEST_BLOCK, before.map(parent_of));
            blocks.note_crcs();
            if let Some(changes) = changes {
                blocks.rely_on(changes);
            }
            let mut object = Vec::new();
            let mut give = |given: &[u8]| {
                object.extend_from_slice(given);
                Ok(())
            };
            let length = content.len() as u64;
            let rows = blocks.rows(name, Path::new("base/5/16384"), length).unwrap_or(vec![Row::Read(0..length)]);
            let mut passing = Passing::new(None, blocks.combiner());
            let mut file = blocks.begin_file(name);
            for row in rows {
                match row {
                    Row::Leave(blocks) => {
                        let (crcs, bytes) = file.leave(blocks).expect("it is known");
                        passing.leave(crcs, bytes);
                    }
                    Row::Read(bytes) => {
                        let at = usize::try_from(bytes.start).expect("small");
                        let mut see = |bytes: &[u8]| passing.see(bytes);
                        file.read(&mut &content[at..], bytes.end - bytes.start, &mut see, &mut give).expect("memory");
                    }
                }
            }
            let mut line = file.finish();
            let (crc, crcs, _) = passing.finish();
            line.crcs = crcs;
            blocks.note(line, None);
            let unread = blocks.unread();
            (object, blocks.finish().0, crc, unread)
        };
        let (first, first_index, _, unread) = copy("20261122T023000Z-volume-k3x9qa", &pages(&[1, 2, 3, 4]), None);
        assert_eq!(unread, 0);
        // The third page changed behind the server's back; the fifth is new.
        let mut changes = Changes::none(1);
        changes.note(RelationFile { tablespace: 1663, database: 5, number: 16384 }, 1, false);
        let (second, index, crc, unread) =
            copy("20261122T023000Z-volume-k3x9qb", &pages(&[1, 9, 7, 4, 5]), Some((&first_index, changes)));
        let expected = pages(&[1, 9, 3, 4, 5]);
        assert!(put_together(&index, &[&second, &first]) == expected);
        assert_eq!((crc, unread, second.len()), (crc_of(&expected), 3 * PAGE as u64, 2 * PAGE));
        // The next relies on what was not read, too.
        let (third, index, crc, unread) =
            copy("20261122T023000Z-volume-k3x9qc", &pages(&[0; 5]), Some((&index, Changes::none(1))));
        assert!(third.is_empty() && put_together(&index, &[&third, &second, &first]) == expected);
        assert_eq!((crc, unread), (crc_of(&expected), 5 * PAGE as u64));
        // Without CRCs, everything is read.
        let text = String::from_utf8(index).expect("text");
        let (before, after) = text.split_once(",\"crcs\":\"").expect("it has some");
        let older = format!("{before}{}", after.split_once('"').expect("its end").1);
        let (fourth, _, _, unread) =
            copy("20261122T023000Z-volume-k3x9qd", &pages(&[0; 5]), Some((older.as_bytes(), Changes::none(1))));
        assert_eq!((fourth.len(), unread), (5 * PAGE, 0));
    }

    #[test]
    fn what_nobody_has_touched_is_not_read() {
        let stamp = Stamp { inode: 7, modified: 1_700_000_000_000_000_001, changed: 1_700_000_000_000_000_002 };
        let mut blocks = Blocks::begin("20261122T023000Z-volume-k3x9qa".parse().expect("an id"), SMALLEST_BLOCK, None);
        let content = vec![7; 2 * PAGE + 1];
        for (name, still) in [("still", Some((stamp, 4711))), ("moved", None)] {
            blocks.wrote(512);
            let line =
                read_all(&mut blocks, name, &mut &content[..], content.len() as u64, &mut |_| (), &mut |_| Ok(()));
            blocks.note(line.expect("memory"), still);
        }
        let (index, bytes) = blocks.finish();
        let next = |name: &str, bytes: u64, stamp: Stamp| {
            let id = "20261122T023000Z-volume-k3x9qb".parse().expect("an id");
            let mut blocks = Blocks::begin(id, SMALLEST_BLOCK, Some(parent_of(&index)));
            blocks.wrote(512);
            let crc = blocks.untouched(name, bytes, stamp);
            (crc, blocks.finish())
        };
        let length = content.len() as u64;
        let (crc, (copied, _)) = next("still", length, stamp);
        assert_eq!((crc, bytes), (Some(4711), 2 * (512 + length)));
        let lines: Vec<Line> = IndexReader::begin(&copied[..]).expect("an index").map(Result::unwrap).collect();
        assert_eq!(lines[1].parts, [Part::from((1, 512, length))]);
        assert_eq!((lines[1].blocks.len(), lines[1].stamp, lines[1].crc), (3, Some(stamp), Some(4711)));
        for (name, bytes, stamp) in [
            ("moved", length, stamp),
            ("new", length, stamp),
            ("still", length - 1, stamp),
            ("still", length, Stamp { inode: 8, ..stamp }),
            ("still", length, Stamp { modified: stamp.modified + 1, ..stamp }),
            ("still", length, Stamp { changed: stamp.changed + 1, ..stamp }),
        ] {
            assert_eq!(next(name, bytes, stamp).0, None, "{name} {bytes} {stamp:?}");
        }
    }
}
