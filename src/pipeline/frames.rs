//! The stored form: ordinary zstd frames, gzip members or plain bytes, and the seek table that says where they are.
//!
//! ```text
//! ┌─────────┬─────────┬───┬─────────┬────────────┐
//! │ frame 0 │ frame 1 │ … │ frame n │ seek table │
//! └─────────┴─────────┴───┴─────────┴────────────┘
//! ```
//! Stock `zstd -dc` and `gzip -dc` decode the frames one after the other; the table ([`zstd`], [`gzip`]) has no content for them. For stock
//! `tar`, a table after a tar that is not packed ([`plain`]) is none of it.
//! pglife asks more of an object: a frame carries its content's size and checksum, the table's checksum of a frame is the one in
//! the frame's own last bytes (of a plain one it is in the table alone), and frames and table fill the object.
//!
//! Nothing read here is trusted: counts and sizes are checked against the object before anything is allocated.

pub(super) mod gzip;
mod plain;
mod zstd;

use super::{Corruption, FrameFault, PipelineError};
use crate::backup_set::Codec;
use crate::storage::ReadAt;

/// The most plain bytes a frame may hold, which bounds the memory that reading any object takes.
pub const MAX_FRAME_BYTES: u32 = 16 << 20;

/// The most frames an object may have: 32 TiB of plain bytes in frames of 2 MiB.
pub const MAX_FRAMES: usize = 1 << 24;

/// The bytes an entry takes in the table.
const ENTRY_BYTES: usize = 12;
/// The end of an object that says which format it has, and how long its table is. No object is shorter.
const END_BYTES: usize = gzip::FOOTER_BYTES;

/// What frames are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// zstd frames.
    Zstd,
    /// gzip members.
    Gzip,
    /// The content as it is.
    Plain,
}

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
    /// Of its content, as the frame itself has it: of zstd the low 32 bits of the XXH64, of gzip the CRC-32. Of plain ones the CRC-32.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekTable {
    format: Format,
    entries: Vec<Entry>,
}

impl Format {
    /// What a codec makes.
    pub fn of(codec: Codec) -> Self {
        match codec {
            Codec::Zstd(_) => Self::Zstd,
            Codec::Gzip(_) => Self::Gzip,
            Codec::Plain => Self::Plain,
        }
    }

    /// The most bytes a frame of `plain_bytes` may take.
    pub(super) fn bound(self, plain_bytes: usize) -> usize {
        match self {
            Self::Zstd => zstd::bound(plain_bytes),
            Self::Gzip => gzip::bound(plain_bytes),
            Self::Plain => plain_bytes,
        }
    }

    fn smallest_frame(self) -> u32 {
        match self {
            Self::Zstd => zstd::SMALLEST_FRAME,
            Self::Gzip => gzip::SMALLEST_FRAME,
            Self::Plain => 0,
        }
    }

    /// The entry of a frame that was just written, with `plain_bytes` of content.
    pub(super) fn entry(self, frame: &[u8], plain_bytes: usize) -> Option<Entry> {
        let checksum = match self {
            Self::Zstd => zstd::checksum(frame),
            Self::Gzip => gzip::checksum(frame),
            Self::Plain => Some(plain::checksum(frame)),
        };
        Some(Entry {
            stored_bytes: u32::try_from(frame.len()).ok()?,
            plain_bytes: u32::try_from(plain_bytes).ok()?,
            checksum: checksum?,
        })
    }

    /// Checks a stored frame against its entry, as far as that goes without decoding it. What passes decodes to exactly
    /// `entry.plain_bytes` or fails.
    pub(super) fn check(self, stored: &[u8], entry: Entry) -> Result<(), FrameFault> {
        let promised = match self {
            Self::Zstd => zstd::content_size(stored),
            Self::Gzip => gzip::content_size(stored),
            Self::Plain => Some(stored.len() as u64),
        };
        let header = promised.ok_or(FrameFault::Header)?;
        if header != u64::from(entry.plain_bytes) {
            return Err(FrameFault::ContentSize { header, table: entry.plain_bytes });
        }
        // Where a gzip member ends, only its decoder finds out.
        if self == Self::Zstd && !zstd::is_one_frame(stored) {
            return Err(FrameFault::Length);
        }
        match self.entry(stored, entry.plain_bytes as usize) {
            Some(own) if own == entry => Ok(()),
            _ => Err(FrameFault::OtherFrame),
        }
    }

    fn allows(self, entry: Entry) -> bool {
        entry.plain_bytes <= MAX_FRAME_BYTES
            && entry.stored_bytes >= self.smallest_frame()
            && entry.stored_bytes as usize <= self.bound(entry.plain_bytes as usize)
    }
}

impl Entry {
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
}

/// The little-endian number at `at`; the caller knows that it is there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl SeekTable {
    /// Of an object that is yet to be written.
    pub(super) fn new(format: Format) -> Self {
        Self { format, entries: Vec::new() }
    }

    /// What its frames are made of.
    pub(super) fn format(&self) -> Format {
        self.format
    }

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

    /// The table as it ends the object.
    pub fn encode(&self) -> Vec<u8> {
        match self.format {
            Format::Zstd => zstd::encode(&self.entries),
            Format::Gzip => gzip::encode(&self.entries),
            Format::Plain => plain::encode(&self.entries),
        }
    }

    /// Reads the table in `tail`, the last bytes of an object of `object_bytes`; [`tail_of`] says how many.
    fn decode(format: Format, tail: &[u8], object_bytes: u64) -> Result<Self, Corruption> {
        let damaged = |why| Corruption::SeekTable { why };
        let entries = match format {
            Format::Zstd => zstd::decode(tail),
            Format::Gzip => gzip::decode(tail),
            Format::Plain => plain::decode(tail),
        };
        let table = Self { format, entries };
        // A table has one encoding.
        if table.encode() != tail {
            return Err(damaged("it is not written as pglife writes it"));
        }
        if table.is_empty() {
            return Err(damaged("it lists no frame"));
        }
        if !table.entries.iter().all(|entry| format.allows(*entry)) {
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
        let mut end = [0; END_BYTES];
        let end_at = size.checked_sub(END_BYTES as u64).ok_or(Corruption::NoSeekTable)?;
        object.read_exact_at(&mut end, end_at).map_err(PipelineError::object)?;
        let (format, bytes) = tail_of(&end, size)?; // at most 193 MiB and the object's size
        let mut tail = vec![0; usize::try_from(bytes).map_err(|_| Corruption::NoSeekTable)?];
        object.read_exact_at(&mut tail, size - bytes).map_err(PipelineError::object)?;
        Ok(Self::decode(format, &tail, size)?)
    }
}

/// A number of frames or table bytes, which [`MAX_FRAMES`] keeps small.
fn number(count: usize) -> u32 {
    u32::try_from(count).expect("at most 2^24 frames are pushed or decoded")
}

/// What the frames of an object are made of, and how many bytes the seek table takes, from the object's end.
fn tail_of(end: &[u8; END_BYTES], object_bytes: u64) -> Result<(Format, u64), Corruption> {
    let zstd = zstd::frame_count(end)?.map(|frames| (Format::Zstd, frames));
    let other = || gzip::frame_count(end).map(|frames| (Format::Gzip, frames));
    let plain = || plain::frame_count(end).map(|frames| (Format::Plain, frames));
    let (format, frames) = zstd.or_else(other).or_else(plain).ok_or(Corruption::NoSeekTable)?;
    let damaged = |why| Err(Corruption::SeekTable { why });
    if frames > MAX_FRAMES {
        return damaged("it lists more frames than an object may have");
    }
    let bytes = match format {
        Format::Zstd => zstd::table_bytes(frames),
        Format::Gzip => gzip::table_bytes(frames),
        Format::Plain => plain::table_bytes(frames),
    } as u64;
    // Each frame takes some bytes of its own: a table alone cannot fill an object.
    if bytes + u64::from(format.smallest_frame()) * frames as u64 > object_bytes {
        return damaged("it lists more frames than the object has room for");
    }
    Ok((format, bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [Format; 2] = [Format::Zstd, Format::Gzip];

    fn entry(format: Format) -> impl Strategy<Value = Entry> {
        (0..=MAX_FRAME_BYTES, any::<u32>(), any::<prop::sample::Index>()).prop_map(
            move |(plain_bytes, checksum, size)| {
                let room = format.bound(plain_bytes as usize) - format.smallest_frame() as usize;
                let stored_bytes = format.smallest_frame() + u32::try_from(size.index(room + 1)).expect("small");
                Entry { stored_bytes, plain_bytes, checksum }
            },
        )
    }

    fn table() -> impl Strategy<Value = SeekTable> {
        prop::sample::select(&FORMATS[..]).prop_flat_map(|format| {
            prop::collection::vec(entry(format), 1..50).prop_map(move |entries| SeekTable { format, entries })
        })
    }

    fn decode(table: &SeekTable, bytes: &[u8]) -> Result<SeekTable, Corruption> {
        SeekTable::decode(table.format, bytes, object_bytes(table))
    }

    fn object_bytes(table: &SeekTable) -> u64 {
        table.frame_bytes() + table.encode().len() as u64
    }

    proptest! {
        #[test]
        fn a_table_reads_back_as_written(table in table()) {
            let bytes = table.encode();
            prop_assert_eq!(decode(&table, &bytes), Ok(table.clone()));
            let mut object = vec![0; END_BYTES];
            object.extend_from_slice(&bytes);
            let end = object.last_chunk().expect("an end");
            prop_assert_eq!(tail_of(end, object_bytes(&table)), Ok((table.format, bytes.len() as u64)));
            let last = table.frames().last().expect("frames");
            prop_assert_eq!(last.offset + u64::from(last.entry.stored_bytes), table.frame_bytes());
            prop_assert_eq!(last.plain_offset + u64::from(last.entry.plain_bytes), table.plain_bytes());
        }

        #[test]
        fn a_table_that_reads_is_the_only_one_of_its_kind(table in table(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut bytes = table.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = decode(&table, &bytes) {
                // Only a checksum or sizes that happen to add up can change unnoticed, and the frames tell.
                prop_assert_eq!(other.encode(), bytes);
                prop_assert_ne!(other, table);
            }
        }

        #[test]
        fn anything_else_is_refused_without_harm(tail in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
            for format in FORMATS {
                prop_assert!(SeekTable::decode(format, &tail, size).is_err());
            }
        }

        #[test]
        fn a_footer_promises_no_more_than_the_object_holds(frames in any::<u32>(), size in any::<u64>()) {
            for format in FORMATS {
                // The end of a table of one frame, with another count.
                let entry = Entry { stored_bytes: 100, plain_bytes: 100, checksum: 0 };
                let encoded = SeekTable { format, entries: vec![entry] }.encode();
                let mut end = *[&[0; 100][..], &encoded].concat().last_chunk::<END_BYTES>().expect("an end");
                let count_at = END_BYTES - if format == Format::Zstd { 9 } else { 14 };
                prop_assert_eq!(word(&end, count_at), 1);
                end[count_at..count_at + 4].copy_from_slice(&frames.to_le_bytes());
                if let Ok((found, bytes)) = tail_of(&end, size) {
                    prop_assert_eq!(found, format);
                    prop_assert!(bytes <= size && bytes < 200 << 20);
                }
            }
        }

        #[test]
        fn no_bytes_make_the_frame_check_panic(stored in prop::collection::vec(any::<u8>(), 0..64), entry in entry(Format::Zstd)) {
            let beginnings = [&[0x28, 0xB5, 0x2F, 0xFD, 0x24][..], &[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF]];
            for (format, beginning) in FORMATS.into_iter().zip(beginnings) {
                prop_assert!(format.check(&stored, entry).is_err());
                let disguised = [beginning, &stored].concat();
                let other = Entry { stored_bytes: 1, ..entry };
                prop_assert!(format.check(&disguised, other).is_err());
            }
        }
    }

    #[test]
    fn a_size_that_would_not_fit_memory_is_refused() {
        for format in FORMATS {
            let entries = vec![Entry { stored_bytes: u32::MAX, plain_bytes: u32::MAX, checksum: 0 }; 3];
            let table = SeekTable { format, entries };
            let refused = decode(&table, &table.encode());
            assert_eq!(refused, Err(Corruption::SeekTable { why: "it lists a frame of impossible size" }));
        }
    }

    #[test]
    fn a_table_of_many_members_reads_back() {
        for frames in [4999, 5000, 5001, 12_345] {
            let entry = |at: usize| Entry { stored_bytes: number(at + 20), plain_bytes: number(at + 20), checksum: 7 };
            let table = SeekTable { format: Format::Gzip, entries: (0..frames).map(entry).collect() };
            assert_eq!(decode(&table, &table.encode()), Ok(table.clone()), "{frames}");
        }
    }

    #[test]
    fn frame_sizes_have_bounds() {
        assert_eq!(FrameBytes::new(0), None);
        assert_eq!(FrameBytes::new(MAX_FRAME_BYTES).map(FrameBytes::get), Some(16 << 20));
        assert_eq!(FrameBytes::new(MAX_FRAME_BYTES + 1), None);
    }
}
