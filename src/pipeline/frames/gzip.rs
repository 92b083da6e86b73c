//! gzip members, and their seek table in the headers of empty ones.
//!
//! ```text
//! empty member: header │ extra field 'PT': 12 bytes a frame, of up to 5000 │ no content      as many as it takes
//! empty member: header │ extra field 'PN': number of frames                │ no content      one, of 30 bytes
//! ```
//! RFC 1952: a file is any number of members one after the other, and a reader passes over extra fields that it does not know.

use super::{ENTRY_BYTES, Entry, number, word};

/// Magic, deflate.
const MAGIC: [u8; 3] = [0x1F, 0x8B, 8];
/// Flags: nothing, or an extra field.
const PLAIN: u8 = 0;
const WITH_EXTRA: u8 = 4;
const HEADER_BYTES: usize = 10;
/// CRC-32 and size of the content.
const TRAILER_BYTES: usize = 8;
/// Nothing, deflated: one final block of fixed codes that holds its end only.
const NOTHING: [u8; 2] = [3, 0];
/// An empty member but for what its extra field holds: that has a length, and a name and a length inside.
const EMPTY_BYTES: usize = HEADER_BYTES + 2 + 4 + NOTHING.len() + TRAILER_BYTES;
const ENTRIES: [u8; 2] = *b"PT";
const COUNT: [u8; 2] = *b"PN";
/// An extra field has up to 65,535 bytes.
const ENTRIES_IN_A_MEMBER: usize = 5000;

/// The member that ends an object.
pub(super) const FOOTER_BYTES: usize = EMPTY_BYTES + 4;
pub(super) const SMALLEST_FRAME: u32 = 10 + 2 + 8;

/// Far more than deflate needs for what it cannot make smaller: 5 bytes for each 16 KiB.
pub(super) fn bound(plain_bytes: usize) -> usize {
    plain_bytes + plain_bytes / 1024 + 128
}

/// The beginning of a member, up to its compressed content.
pub(in crate::pipeline) fn begin(member: &mut Vec<u8>) {
    member.extend_from_slice(&header(PLAIN));
}

/// The end of a member.
pub(in crate::pipeline) fn end(member: &mut Vec<u8>, checksum: u32, plain_bytes: usize) {
    member.extend_from_slice(&checksum.to_le_bytes());
    member.extend_from_slice(&number(plain_bytes).to_le_bytes());
}

/// The compressed content of a member that passed [`content_size`].
pub(in crate::pipeline) fn content(member: &[u8]) -> &[u8] {
    &member[HEADER_BYTES..member.len() - TRAILER_BYTES]
}

fn header(flags: u8) -> [u8; HEADER_BYTES] {
    let [a, b, deflate] = MAGIC;
    // No time, so that the same content makes the same object; no word of level and system.
    [a, b, deflate, flags, 0, 0, 0, 0, 0, 0xFF]
}

/// A member's checksum stands before its size.
pub(super) fn checksum(member: &[u8]) -> Option<u32> {
    let trailer = member.last_chunk::<TRAILER_BYTES>()?;
    Some(word(trailer, 0))
}

/// How many bytes a member says it has; nothing where it is none that pglife writes.
pub(super) fn content_size(stored: &[u8]) -> Option<u64> {
    let trailer = stored.last_chunk::<TRAILER_BYTES>()?;
    let is_ours = stored.len() >= SMALLEST_FRAME as usize && stored.starts_with(&header(PLAIN));
    is_ours.then(|| word(trailer, 4).into())
}

/// Adds an empty member with an extra field.
fn push_empty(bytes: &mut Vec<u8>, name: [u8; 2], data: &[u8]) {
    let length = |bytes: usize| u16::try_from(bytes).expect("at most 5000 entries").to_le_bytes();
    bytes.extend_from_slice(&header(WITH_EXTRA));
    bytes.extend_from_slice(&length(4 + data.len()));
    bytes.extend_from_slice(&name);
    bytes.extend_from_slice(&length(data.len()));
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&NOTHING);
    bytes.extend_from_slice(&[0; TRAILER_BYTES]);
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(table_bytes(entries.len()));
    for entries in entries.chunks(ENTRIES_IN_A_MEMBER) {
        let data: Vec<u8> = entries.iter().flat_map(|entry| entry.encode()).collect();
        push_empty(&mut bytes, ENTRIES, &data);
    }
    push_empty(&mut bytes, COUNT, &number(entries.len()).to_le_bytes());
    bytes
}

pub(super) fn table_bytes(frames: usize) -> usize {
    frames.div_ceil(ENTRIES_IN_A_MEMBER) * EMPTY_BYTES + frames * ENTRY_BYTES + FOOTER_BYTES
}

/// The number of frames by the end of an object; nothing where that is no table of this format.
pub(super) fn frame_count(end: &[u8]) -> Option<usize> {
    let footer = end.last_chunk::<FOOTER_BYTES>()?;
    let count = word(footer, FOOTER_BYTES - TRAILER_BYTES - NOTHING.len() - 4);
    let mut expected = Vec::with_capacity(FOOTER_BYTES);
    push_empty(&mut expected, COUNT, &count.to_le_bytes());
    (expected == footer).then_some(count as usize)
}

/// The entries of a table, if it is one.
pub(super) fn decode(tail: &[u8]) -> Vec<Entry> {
    let members = tail.get(..tail.len().saturating_sub(FOOTER_BYTES)).unwrap_or_default();
    let mut entries = Vec::with_capacity(members.len() / ENTRY_BYTES);
    for member in members.chunks(EMPTY_BYTES + ENTRIES_IN_A_MEMBER * ENTRY_BYTES) {
        let end = member.len().saturating_sub(NOTHING.len() + TRAILER_BYTES);
        let (chunk, _) = member.get(HEADER_BYTES + 2 + 4..end).unwrap_or_default().as_chunks::<ENTRY_BYTES>();
        entries.extend(chunk.iter().map(Entry::decode));
    }
    entries
}
