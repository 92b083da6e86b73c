//! zstd frames, and their seek table in a skippable frame.
//!
//! ```text
//! skippable frame: header 8 │ 12 bytes a frame │ footer 9
//! ```
//! This is the *zstd seekable format* (facebook/zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`,
//! version 0.1.0) with checksums. Each frame carries its content size and checksum and no dictionary.

use zstd::zstd_safe;

use super::{ENTRY_BYTES, Entry, number, word};
use crate::pipeline::Corruption;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const ZSTD_MAGIC: u32 = 0xFD2F_B528;
const HEADER_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;
/// Seek table descriptor: checksums are present, nothing else.
const WITH_CHECKSUMS: u8 = 0x80;
/// Magic, header descriptor, content size, one block header, checksum.
pub(super) const SMALLEST_FRAME: u32 = 4 + 1 + 1 + 3 + 4;

pub(super) fn bound(plain_bytes: usize) -> usize {
    zstd_safe::compress_bound(plain_bytes)
}

/// A frame's checksum is its last four bytes.
pub(super) fn checksum(frame: &[u8]) -> Option<u32> {
    frame.last_chunk().copied().map(u32::from_le_bytes)
}

/// How many bytes a frame says it has; nothing where it is none that pglife writes.
pub(super) fn content_size(stored: &[u8]) -> Option<u64> {
    // RFC 8878, 3.1.1.1.1: bit 2 is the checksum flag; bits 0-1 a dictionary, bit 3 reserved, bit 4 unused.
    let is_ours = stored.len() >= SMALLEST_FRAME as usize && word(stored, 0) == ZSTD_MAGIC && stored[4] & 0x1F == 0x04;
    zstd_safe::get_frame_content_size(stored).ok().flatten().filter(|_| is_ours)
}

pub(super) fn is_one_frame(stored: &[u8]) -> bool {
    zstd_safe::find_frame_compressed_size(stored) == Ok(stored.len())
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(table_bytes(entries.len()));
    bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&number(ENTRY_BYTES * entries.len() + FOOTER_BYTES).to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(&entry.encode());
    }
    bytes.extend_from_slice(&number(entries.len()).to_le_bytes());
    bytes.push(WITH_CHECKSUMS);
    bytes.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    bytes
}

pub(super) fn table_bytes(frames: usize) -> usize {
    HEADER_BYTES + ENTRY_BYTES * frames + FOOTER_BYTES
}

/// The number of frames by the end of an object; nothing where that is no table of this format.
pub(super) fn frame_count(end: &[u8]) -> Result<Option<usize>, Corruption> {
    let Some(footer) = end.last_chunk::<FOOTER_BYTES>().filter(|footer| word(*footer, 5) == SEEKABLE_MAGIC) else {
        return Ok(None);
    };
    if footer[4] != WITH_CHECKSUMS {
        return Err(Corruption::SeekTable { why: "its descriptor is not the one pglife writes" });
    }
    Ok(Some(word(footer, 0) as usize))
}

/// The entries of a table, if it is one.
pub(super) fn decode(tail: &[u8]) -> Vec<Entry> {
    let entries = tail.get(HEADER_BYTES..tail.len().saturating_sub(FOOTER_BYTES)).unwrap_or_default();
    entries.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::decode).collect()
}
