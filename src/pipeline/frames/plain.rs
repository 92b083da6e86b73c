//! Frames that are their content, and the seek table that comes after them.
//!
//! ```text
//! 12 bytes a frame │ number of frames │ magic 16
//! ```
//! A tar says itself where it ends: its readers take what comes after that for nothing. Other objects are not written this way.

use crc_fast::CrcAlgorithm;

use super::{ENTRY_BYTES, Entry, number, word};

const MAGIC: [u8; 16] = *b"pglife: frames\r\n";

/// What ends an object.
const FOOTER_BYTES: usize = 4 + MAGIC.len();

/// A frame's checksum is the CRC-32 of its content.
pub(super) fn checksum(frame: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, frame)).expect("a CRC-32 has 32 bits")
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.encode()).collect();
    bytes.extend_from_slice(&number(entries.len()).to_le_bytes());
    bytes.extend_from_slice(&MAGIC);
    bytes
}

pub(super) fn table_bytes(frames: usize) -> usize {
    frames * ENTRY_BYTES + FOOTER_BYTES
}

/// The number of frames by the end of an object; nothing where that is no table of this format.
pub(super) fn frame_count(end: &[u8]) -> Option<usize> {
    let footer = end.last_chunk::<FOOTER_BYTES>()?;
    footer.ends_with(&MAGIC).then(|| word(footer, 0) as usize)
}

/// The entries of a table, if it is one.
pub(super) fn decode(tail: &[u8]) -> Vec<Entry> {
    let entries = tail.get(..tail.len().saturating_sub(FOOTER_BYTES)).unwrap_or_default();
    entries.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::decode).collect()
}
