//! The stored form: ordinary zstd frames, and the seek table that says where they are.
//!
//! ```text
//! ┌─────────┬─────────┬───┬─────────┬───────────────────────────────────────────────────────────────┐
//! │ frame 0 │ frame 1 │ … │ frame n │ skippable frame: header 8 │ 12 bytes a frame │ footer 9        │
//! └─────────┴─────────┴───┴─────────┴───────────────────────────────────────────────────────────────┘
//! ```
//! This is the *zstd seekable format* (facebook/zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`,
//! version 0.1.0) with checksums. Stock `zstd -dc` decodes the frames one after the other and skips the table. pglife
//! asks more of an object than the format does: each frame carries its content size and checksum and no dictionary, the
//! table's checksum of a frame is the one in the frame's own last four bytes, and frames and table fill the object.
//!
//! Nothing read here is trusted: counts and sizes are checked against the object before anything is allocated.

use zstd::zstd_safe;

use super::{Corruption, FrameFault, PipelineError};
use crate::storage::ReadAt;

/// The most plain bytes a frame may hold, which bounds the memory that reading any object takes.
pub const MAX_FRAME_BYTES: u32 = 16 << 20;

/// The most frames an object may have: 32 TiB of plain bytes in frames of 2 MiB.
pub const MAX_FRAMES: usize = 1 << 24;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const ZSTD_MAGIC: u32 = 0xFD2F_B528;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 12;
const FOOTER_BYTES: usize = 9;
/// Seek table descriptor: checksums are present, nothing else.
const WITH_CHECKSUMS: u8 = 0x80;
/// Magic, header descriptor, content size, one block header, checksum.
const SMALLEST_FRAME: u32 = 4 + 1 + 1 + 3 + 4;

/// How many plain bytes go into each frame: 1 to [`MAX_FRAME_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameBytes(u32);

impl FrameBytes {
    /// 2 MiB, for dumps: larger frames save less than 1 % of the size and cost memory.
    pub const DUMP: Self = Self(2 << 20);

    /// Checks the size.
    pub fn new(bytes: u32) -> Option<Self> {
        (1..=MAX_FRAME_BYTES).contains(&bytes).then_some(Self(bytes))
    }

    /// The size in bytes.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// What the seek table says about one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The length of the whole frame as stored.
    pub stored_bytes: u32,
    /// The length of its content.
    pub plain_bytes: u32,
    /// The low 32 bits of the XXH64 of its content: the frame's own last four bytes.
    pub checksum: u32,
}

/// One frame of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Counted from 0.
    pub index: usize,
    /// Where it starts in the object.
    pub offset: u64,
    /// Where its content starts in the plain stream.
    pub plain_offset: u64,
    /// Its sizes and checksum.
    pub entry: Entry,
}

/// Where the frames of an object are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeekTable {
    entries: Vec<Entry>,
}

impl Entry {
    /// The entry of a frame that was just written, with `plain_bytes` of content.
    pub(super) fn of(frame: &[u8], plain_bytes: usize) -> Option<Self> {
        let (_, checksum) = frame.split_last_chunk()?;
        Some(Self {
            stored_bytes: u32::try_from(frame.len()).ok()?,
            plain_bytes: u32::try_from(plain_bytes).ok()?,
            checksum: u32::from_le_bytes(*checksum),
        })
    }

    fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0..4].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        Self { stored_bytes: word(bytes, 0), plain_bytes: word(bytes, 4), checksum: word(bytes, 8) }
    }

    fn is_possible(self) -> bool {
        self.plain_bytes <= MAX_FRAME_BYTES
            && self.stored_bytes >= SMALLEST_FRAME
            && self.stored_bytes as usize <= zstd_safe::compress_bound(self.plain_bytes as usize)
    }
}

/// The little-endian number at `at`; the caller knows that it is there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl SeekTable {
    /// Adds the next frame. Fails when the object would have more than [`MAX_FRAMES`].
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), PipelineError> {
        if self.entries.len() == MAX_FRAMES {
            return Err(PipelineError::TooLong { frames: MAX_FRAMES });
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The number of frames.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the object has no frames.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        self.entries.iter().enumerate().scan((0, 0), |(offset, plain_offset), (index, &entry)| {
            let frame = Frame { index, offset: *offset, plain_offset: *plain_offset, entry };
            *offset += u64::from(entry.stored_bytes);
            *plain_offset += u64::from(entry.plain_bytes);
            Some(frame)
        })
    }

    /// The number of bytes the object unpacks to.
    pub fn plain_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.plain_bytes)).sum()
    }

    fn frame_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.stored_bytes)).sum()
    }

    /// The table as the skippable frame that ends the object.
    pub fn encode(&self) -> Vec<u8> {
        let content = ENTRY_BYTES * self.entries.len() + FOOTER_BYTES;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + content);
        bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&number(content).to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.encode());
        }
        bytes.extend_from_slice(&number(self.entries.len()).to_le_bytes());
        bytes.push(WITH_CHECKSUMS);
        bytes.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        bytes
    }

    /// Reads the table in `tail`, the last bytes of an object of `object_bytes`; [`tail_bytes`] says how many.
    pub fn decode(tail: &[u8], object_bytes: u64) -> Result<Self, Corruption> {
        let damaged = |why| Corruption::SeekTable { why };
        let (body, footer) = tail.split_last_chunk::<FOOTER_BYTES>().ok_or(Corruption::NoSeekTable)?;
        if tail_bytes(footer, object_bytes)? != tail.len() as u64 {
            return Err(damaged("its length does not fit its number of frames"));
        }
        let (header, entries) = body.split_at_checked(HEADER_BYTES).ok_or(Corruption::NoSeekTable)?;
        if word(header, 0) != SKIPPABLE_MAGIC {
            return Err(damaged("it does not start as a skippable frame"));
        }
        if word(header, 4) as usize != entries.len() + FOOTER_BYTES {
            return Err(damaged("its length does not fit its number of frames"));
        }
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        let table = Self { entries: entries.iter().map(Entry::decode).collect() };
        if table.is_empty() {
            return Err(damaged("it lists no frame"));
        }
        if !table.entries.iter().all(|entry| entry.is_possible()) {
            return Err(damaged("it lists a frame of impossible size"));
        }
        // No overflow: at most 2^24 frames of less than 2^25 bytes.
        if table.frame_bytes() + tail.len() as u64 != object_bytes {
            return Err(damaged("its frames do not add up to the object's size"));
        }
        Ok(table)
    }

    /// Reads the table of a stored object.
    pub fn read(object: &dyn ReadAt) -> Result<Self, PipelineError> {
        let size = object.size();
        let mut footer = [0; FOOTER_BYTES];
        let footer_at = size.checked_sub(FOOTER_BYTES as u64).ok_or(Corruption::NoSeekTable)?;
        object.read_exact_at(&mut footer, footer_at).map_err(PipelineError::object)?;
        let bytes = tail_bytes(&footer, size)?; // at most 192 MiB and the object's size
        let mut tail = vec![0; usize::try_from(bytes).map_err(|_| Corruption::NoSeekTable)?];
        object.read_exact_at(&mut tail, size - bytes).map_err(PipelineError::object)?;
        Ok(Self::decode(&tail, size)?)
    }
}

/// A number of frames or table bytes, which [`MAX_FRAMES`] keeps small.
fn number(count: usize) -> u32 {
    u32::try_from(count).expect("at most 2^24 frames are pushed or decoded")
}

/// How many bytes the seek table takes, from the object's last nine.
pub fn tail_bytes(footer: &[u8; FOOTER_BYTES], object_bytes: u64) -> Result<u64, Corruption> {
    if word(footer, 5) != SEEKABLE_MAGIC {
        return Err(Corruption::NoSeekTable);
    }
    if footer[4] != WITH_CHECKSUMS {
        return Err(Corruption::SeekTable { why: "its descriptor is not the one pglife writes" });
    }
    let frames = word(footer, 0) as usize;
    let bytes = (HEADER_BYTES + ENTRY_BYTES * frames + FOOTER_BYTES) as u64;
    if frames > MAX_FRAMES {
        return Err(Corruption::SeekTable { why: "it lists more frames than an object may have" });
    }
    // Each frame takes some bytes of its own: a table alone cannot fill an object.
    if bytes + u64::from(SMALLEST_FRAME) * frames as u64 > object_bytes {
        return Err(Corruption::SeekTable { why: "it lists more frames than the object has room for" });
    }
    Ok(bytes)
}

/// Checks a stored frame against its entry, as far as that goes without decoding it. What passes decodes to exactly
/// `entry.plain_bytes` or fails.
pub(super) fn check(stored: &[u8], entry: Entry) -> Result<(), FrameFault> {
    // RFC 8878, 3.1.1.1.1: bit 2 is the checksum flag; bits 0-1 a dictionary, bit 3 reserved, bit 4 unused.
    let is_ours = stored.len() >= SMALLEST_FRAME as usize && word(stored, 0) == ZSTD_MAGIC && stored[4] & 0x1F == 0x04;
    let content = zstd_safe::get_frame_content_size(stored).ok().flatten();
    let (true, Some(header)) = (is_ours, content) else { return Err(FrameFault::Header) };
    if header != u64::from(entry.plain_bytes) {
        return Err(FrameFault::ContentSize { header, table: entry.plain_bytes });
    }
    if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
        return Err(FrameFault::Length);
    }
    match Entry::of(stored, entry.plain_bytes as usize) {
        Some(own) if own == entry => Ok(()),
        _ => Err(FrameFault::OtherFrame),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        (0..=MAX_FRAME_BYTES, any::<u32>(), any::<prop::sample::Index>()).prop_map(|(plain_bytes, checksum, size)| {
            let room = zstd_safe::compress_bound(plain_bytes as usize) - SMALLEST_FRAME as usize;
            let stored_bytes = SMALLEST_FRAME + u32::try_from(size.index(room + 1)).expect("small");
            Entry { stored_bytes, plain_bytes, checksum }
        })
    }

    fn table() -> impl Strategy<Value = SeekTable> {
        prop::collection::vec(entry(), 1..50).prop_map(|entries| SeekTable { entries })
    }

    fn object_bytes(table: &SeekTable) -> u64 {
        table.frame_bytes() + table.encode().len() as u64
    }

    proptest! {
        #[test]
        fn a_table_reads_back_as_written(table in table()) {
            let bytes = table.encode();
            prop_assert_eq!(SeekTable::decode(&bytes, object_bytes(&table)), Ok(table.clone()));
            let last = table.frames().last().expect("frames");
            prop_assert_eq!(last.offset + u64::from(last.entry.stored_bytes), table.frame_bytes());
            prop_assert_eq!(last.plain_offset + u64::from(last.entry.plain_bytes), table.plain_bytes());
        }

        #[test]
        fn a_table_that_reads_is_the_only_one_of_its_kind(table in table(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut bytes = table.encode();
            let size = object_bytes(&table);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = SeekTable::decode(&bytes, size) {
                // Only a checksum or sizes that happen to add up can change unnoticed, and the frames tell.
                prop_assert_eq!(other.encode(), bytes);
                prop_assert_ne!(other, table);
            }
        }

        #[test]
        fn anything_else_is_refused_without_harm(tail in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
            prop_assert!(SeekTable::decode(&tail, size).is_err());
        }

        #[test]
        fn a_footer_promises_no_more_than_the_object_holds(frames in any::<u32>(), size in any::<u64>()) {
            let mut footer = [0; FOOTER_BYTES];
            footer[0..4].copy_from_slice(&frames.to_le_bytes());
            footer[4] = WITH_CHECKSUMS;
            footer[5..].copy_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
            if let Ok(bytes) = tail_bytes(&footer, size) {
                prop_assert!(bytes <= size && bytes < 200 << 20);
            }
        }

        #[test]
        fn no_bytes_make_the_frame_check_panic(stored in prop::collection::vec(any::<u8>(), 0..64), entry in entry()) {
            let mut disguised = ZSTD_MAGIC.to_le_bytes().to_vec();
            disguised.push(0x24);
            disguised.extend_from_slice(&stored);
            prop_assert!(check(&stored, entry).is_err());
            let other = Entry { stored_bytes: 1, ..entry };
            prop_assert!(check(&disguised, other).is_err());
        }
    }

    #[test]
    fn a_size_that_would_not_fit_memory_is_refused() {
        let entries = vec![Entry { stored_bytes: u32::MAX, plain_bytes: u32::MAX, checksum: 0 }; 3];
        let table = SeekTable { entries };
        let refused = SeekTable::decode(&table.encode(), object_bytes(&table));
        assert_eq!(refused, Err(Corruption::SeekTable { why: "it lists a frame of impossible size" }));
    }

    #[test]
    fn frame_sizes_have_bounds() {
        assert_eq!(FrameBytes::new(0), None);
        assert_eq!(FrameBytes::new(MAX_FRAME_BYTES).map(FrameBytes::get), Some(16 << 20));
        assert_eq!(FrameBytes::new(MAX_FRAME_BYTES + 1), None);
    }
}
