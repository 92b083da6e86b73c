//! `volume.blocks.zst`: what the tar of a volume set is put together from, and what is in each block of its files.
//!
//! The tar of an incremental set is not stored as one object: what stands in an earlier set of its chain already is not stored
//! again. The index says where every byte of the tar lies, and it is all that the next set of the chain needs of this one.
//!
//! ```text
//! {"version":1,"block_bytes":8192,"sources":["20261122T…","20261121T…"]}       this set, its parent, the parent's …
//! {"parts":[[0,0,1024]]}                                                       1024 bytes of this set's object, from 0 on
//! {"parts":[[1,81920,8192],[0,1024,8192]],"path":"data/17/base/5/16384","blocks":"…","stamp":[…],"crc":…,"crcs":"…"}
//! {"end":18944,"lines":2}
//! ```
//!
//! It is a line of JSON each, in the order of the tar. A *part* is `[source, offset, bytes]`: the plain bytes of that source's
//! object. The parts of all lines, one after the other, are the tar. A line with a path has the content of that file, and no more;
//! `blocks` are 16 bytes in base64 for each block of the content, the last one as long as it is: the first half of its BLAKE3. `crcs`, where there are any, are 4 bytes for each, little end first: its CRC-32C, so that the
//! next copy can tell the CRC-32C of a file of which it reads only some blocks.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{FormatError, SetId};

/// The newest format of the index this version reads, and the one it writes.
pub const BLOCK_INDEX_VERSION: u32 = 1;

/// Bytes of a page of PostgreSQL, and the smallest block.
pub const SMALLEST_BLOCK: u32 = 8 << 10;
/// The largest block.
const LARGEST_BLOCK: u32 = 1 << 20;
/// Blocks in an index at most, as long as they need not be larger than the largest: 64 MiB of digests.
const MOST_BLOCKS: u64 = 4 << 20;
/// Bytes of a digest.
pub const BLOCK_DIGEST_BYTES: usize = 16;

const DOCUMENT: &str = "the block index";

/// What is kept of the BLAKE3 of a block. Two blocks that differ have the same one once in 2^64 attempts *to make them so*.
pub type BlockDigest = [u8; BLOCK_DIGEST_BYTES];

/// The digest of a block.
pub fn block_digest(block: &[u8]) -> BlockDigest {
    shortened(&blake3::hash(block))
}

/// What is kept of a digest.
pub fn shortened(digest: &blake3::Hash) -> BlockDigest {
    *digest.as_bytes().first_chunk().expect("a BLAKE3 is longer")
}

/// How long blocks are where `bytes` are to be copied: a page, and longer where there would be too many of them. Pure.
pub fn block_bytes(bytes: u64) -> u32 {
    let mut block = SMALLEST_BLOCK;
    while block < LARGEST_BLOCK && bytes / u64::from(block) > MOST_BLOCKS {
        block *= 2;
    }
    block
}

/// Bytes of a stream, in one of the objects it is put together from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64)", into = "(u32, u64, u64)")]
pub struct Part {
    /// Which object: 0 is the set's own, 1 its parent's, and so on.
    pub source: u32,
    /// Where they begin, among the plain bytes of the object.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

impl From<(u32, u64, u64)> for Part {
    fn from((source, offset, bytes): (u32, u64, u64)) -> Self {
        Self { source, offset, bytes }
    }
}

impl From<Part> for (u32, u64, u64) {
    fn from(part: Part) -> Self {
        (part.source, part.offset, part.bytes)
    }
}

/// Adds a part, to the last one where it continues it.
pub fn push_part(parts: &mut Vec<Part>, part: Part) {
    match parts.last_mut() {
        _ if part.bytes == 0 => {}
        Some(last) if last.source == part.source && last.offset + last.bytes == part.offset => last.bytes += part.bytes,
        _ => parts.push(part),
    }
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Format version of this document.
    pub version: u32,
    /// Bytes in a block.
    pub block_bytes: u32,
    /// The sets whose objects the parts lie in: this one, its parent, the parent's parent.
    pub sources: Vec<SetId>,
}

/// What lies in a row in the tar: the content of a file, or what is between files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Where it lies.
    pub parts: Vec<Part>,
    /// The file's name in the tar; None: it is no file's content, or of one that is not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The digests of the content's blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "digests")]
    pub blocks: Vec<BlockDigest>,
    /// By what the file is known again, where it lay still before it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// The CRC-32C of the content, where there is a stamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc: Option<u32>,
    /// The CRC-32C of each of the blocks; none: they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "crcs")]
    pub crcs: Vec<u32>,
}

/// What a file system says of a file that nobody can write to without changing it: the inode, and when the content and the inode
/// were changed, in nanoseconds since 1970. The second of the times cannot be set by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, i64, i64)", into = "(u64, i64, i64)")]
pub struct Stamp {
    /// The number of the inode.
    pub inode: u64,
    /// `mtime`.
    pub modified: i64,
    /// `ctime`.
    pub changed: i64,
}

impl From<(u64, i64, i64)> for Stamp {
    fn from((inode, modified, changed): (u64, i64, i64)) -> Self {
        Self { inode, modified, changed }
    }
}

impl From<Stamp> for (u64, i64, i64) {
    fn from(stamp: Stamp) -> Self {
        (stamp.inode, stamp.modified, stamp.changed)
    }
}

impl Line {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// The last line: with it, the index is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// Bytes of the tar.
    end: u64,
    /// Lines before this one, without the header.
    lines: u64,
}

mod digests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::{BLOCK_DIGEST_BYTES, BlockDigest};

    pub(super) fn serialize<S: Serializer>(blocks: &[BlockDigest], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(blocks.as_flattened()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BlockDigest>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let (blocks, rest) = bytes.as_chunks::<BLOCK_DIGEST_BYTES>();
        if rest.is_empty() { Ok(blocks.to_vec()) } else { Err(D::Error::custom("a digest is cut short")) }
    }
}

mod crcs {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(crcs: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let (crcs, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(D::Error::custom("a CRC is cut short"));
        }
        Ok(crcs.iter().map(|crc| u32::from_le_bytes(*crc)).collect())
    }
}

/// Writes an index, line by line.
#[derive(Debug)]
pub struct IndexWriter<W: Write> {
    sink: W,
    end: End,
}

impl<W: Write> IndexWriter<W> {
    /// Begins one.
    pub fn begin(mut sink: W, block_bytes: u32, sources: Vec<SetId>) -> io::Result<Self> {
        write_line(&mut sink, &Header { version: BLOCK_INDEX_VERSION, block_bytes, sources })?;
        Ok(Self { sink, end: End { end: 0, lines: 0 } })
    }

    /// Adds a line.
    pub fn push(&mut self, line: &Line) -> io::Result<()> {
        self.end.end += line.bytes();
        self.end.lines += 1;
        write_line(&mut self.sink, line)
    }

    /// Ends it. Returns the sink, and how many bytes the tar has.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        write_line(&mut self.sink, &self.end)?;
        Ok((self.sink, self.end.end))
    }
}

fn write_line(sink: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, line)?;
    sink.write_all(b"\n")
}

/// Reads an index, line by line: what it has must add up to what its end says.
#[derive(Debug)]
pub struct IndexReader<R: BufRead> {
    source: R,
    header: Header,
    text: String,
    found: End,
    ended: bool,
}

/// Why an index cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It cannot be got at.
    #[error("the block index cannot be read")]
    Unreadable(#[source] io::Error),
    /// It is not what this version reads.
    #[error(transparent)]
    Format(#[from] FormatError),
}

fn malformed(why: impl Into<String>) -> IndexError {
    FormatError::Malformed { document: DOCUMENT, why: why.into() }.into()
}

impl<R: BufRead> IndexReader<R> {
    /// Reads the first line.
    pub fn begin(mut source: R) -> Result<Self, IndexError> {
        let mut text = String::new();
        source.read_line(&mut text).map_err(IndexError::Unreadable)?;
        let header: Header = super::manifest::read_versioned(DOCUMENT, text.as_bytes(), BLOCK_INDEX_VERSION)?;
        if header.sources.is_empty() || !(SMALLEST_BLOCK..=LARGEST_BLOCK).contains(&header.block_bytes) {
            return Err(malformed("its first line names no set, or blocks of impossible size"));
        }
        Ok(Self { source, header, text, found: End { end: 0, lines: 0 }, ended: false })
    }

    /// The first line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn next_line(&mut self) -> Result<Option<Line>, IndexError> {
        self.text.clear();
        self.source.read_line(&mut self.text).map_err(IndexError::Unreadable)?;
        if self.text.is_empty() {
            return Err(malformed("it is cut short"));
        }
        let line: Line = match serde_json::from_str(&self.text) {
            Ok(line) => line,
            Err(error) => {
                let end: End = serde_json::from_str(&self.text).map_err(|_| malformed(error.to_string()))?;
                return if end == self.found { Ok(None) } else { Err(malformed("it does not add up")) };
            }
        };
        let block = u64::from(self.header.block_bytes);
        if line.path.is_some() && line.bytes().div_ceil(block) != line.blocks.len() as u64 {
            return Err(malformed(format!("the blocks of {} do not add up", line.path.unwrap_or_default())));
        }
        if !line.crcs.is_empty() && line.crcs.len() != line.blocks.len() {
            return Err(malformed(format!("the CRCs of {} do not add up", line.path.unwrap_or_default())));
        }
        if let Some(part) = line.parts.iter().find(|part| part.source as usize >= self.header.sources.len()) {
            return Err(malformed(format!("it names source {}, and has {}", part.source, self.header.sources.len())));
        }
        self.found.end += line.bytes();
        self.found.lines += 1;
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for IndexReader<R> {
    type Item = Result<Line, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_line();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> SetId {
        text.parse().expect("an id")
    }

    fn lines() -> impl Strategy<Value = Vec<Line>> {
        let part = (0..2_u32, 0..1_u64 << 40, 1..100_000_u64).prop_map(Part::from);
        let line = (prop::collection::vec(part, 0..5), prop::option::of("[a-z/]{1,20}"), any::<u8>()).prop_map(
            |(parts, path, seed)| {
                let mut line = Line { parts, path, ..Line::default() };
                if line.path.is_some() {
                    let count = line.bytes().div_ceil(u64::from(SMALLEST_BLOCK));
                    line.blocks = (0..count).map(|block| block_digest(&[seed, block.to_le_bytes()[0]])).collect();
                    line.crcs = line.blocks.iter().filter(|_| seed % 2 == 0).map(|_| seed.into()).collect();
                }
                line
            },
        );
        prop::collection::vec(line, 0..20)
    }

    fn write(lines: &[Line]) -> (Vec<u8>, u64) {
        let sources = vec![id("20261122T023000Z-volume-k3x9qa"), id("20261121T023000Z-volume-k3x9qa")];
        let mut writer = IndexWriter::begin(Vec::new(), SMALLEST_BLOCK, sources).expect("memory");
        for line in lines {
            writer.push(line).expect("memory");
        }
        writer.finish().expect("memory")
    }

    fn read(bytes: &[u8]) -> Result<Vec<Line>, IndexError> {
        IndexReader::begin(bytes)?.collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(lines in lines()) {
            let (bytes, end) = write(&lines);
            prop_assert_eq!(end, lines.iter().map(Line::bytes).sum::<u64>());
            prop_assert_eq!(read(&bytes).expect("an index"), lines);
        }

        #[test]
        fn one_that_is_cut_short_is_no_index(lines in lines(), at in any::<prop::sample::Index>()) {
            let (bytes, _) = write(&lines);
            // Without its last line break it says as much.
            prop_assert!(read(&bytes[..at.index(bytes.len() - 1)]).is_err());
        }

        #[test]
        fn a_line_that_is_lost_is_missed(lines in lines(), at in any::<prop::sample::Index>()) {
            prop_assume!(!lines.is_empty());
            let mut fewer = lines.clone();
            fewer.remove(at.index(lines.len()));
            let (whole, _) = write(&lines);
            let (mut bytes, _) = write(&fewer);
            let end = |bytes: &[u8]| bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("a line") + 1;
            bytes.truncate(end(&bytes));
            bytes.extend_from_slice(&whole[end(&whole)..]);
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn parts_that_continue_each_other_are_one(cuts in prop::collection::vec(0..1000_u64, 1..10)) {
            let mut parts = Vec::new();
            let mut offset = 7;
            for bytes in &cuts {
                push_part(&mut parts, Part { source: 3, offset, bytes: *bytes });
                offset += bytes;
            }
            prop_assert!(parts.len() <= 1);
            prop_assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), cuts.iter().sum::<u64>());
        }

        #[test]
        fn blocks_are_whole_pages_and_not_too_many(bytes in 0..1_u64 << 42) {
            let block = block_bytes(bytes);
            prop_assert!(block.is_power_of_two() && (SMALLEST_BLOCK..=LARGEST_BLOCK).contains(&block));
            prop_assert!(bytes / u64::from(block) <= MOST_BLOCKS || block == LARGEST_BLOCK);
        }
    }

    #[test]
    fn an_index_without_crcs_is_read_and_one_with_too_few_is_not() {
        let bytes = u64::from(SMALLEST_BLOCK) + 1;
        let parts = vec![Part { source: 0, offset: 0, bytes }];
        let blocks = vec![[7; BLOCK_DIGEST_BYTES]; 2];
        let mut line = Line { parts, path: Some("data/a".to_owned()), blocks, ..Line::default() };
        let (text, _) = write(std::slice::from_ref(&line));
        assert!(!String::from_utf8_lossy(&text).contains("crcs"), "what older versions wrote");
        assert_eq!(read(&text).expect("an index"), [line.clone()]);
        line.crcs = vec![1, u32::MAX];
        assert_eq!(read(&write(std::slice::from_ref(&line)).0).expect("an index"), [line.clone()]);
        line.crcs.pop();
        assert!(read(&write(&[line]).0).is_err());
    }

    #[test]
    fn a_source_that_is_not_named_is_refused() {
        let (bytes, _) = write(&[Line { parts: vec![Part { source: 2, offset: 0, bytes: 1 }], ..Line::default() }]);
        assert!(read(&bytes).is_err());
    }
}
