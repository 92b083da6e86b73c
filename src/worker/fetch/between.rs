//! The tar as far as it is no content of files that the index names, from any place in it.

use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::ops::Range;

use tokio_util::sync::CancellationToken;

use crate::backup_set::block_index::{Part, push_part};
use crate::pipeline::{Meter, PipelineError, Source, assemble};

/// What is left of the part that holds the byte at `at` of the tar. None: no part does.
fn part_at(parts: &[(u64, Part)], at: u64) -> Option<Part> {
    let after = parts.partition_point(|(begins, _)| *begins <= at);
    let (begins, part) = parts.get(after.checked_sub(1)?)?;
    let inside = at - begins;
    (inside < part.bytes).then(|| Part { offset: part.offset + inside, bytes: part.bytes - inside, ..*part })
}

/// Where `bytes` of the tar lie, from `at` on. None: not all of them are in `parts`.
pub(super) fn cut(parts: &[(u64, Part)], mut at: u64, mut bytes: u64) -> Option<Vec<Part>> {
    let mut found = Vec::new();
    while bytes > 0 {
        let part = part_at(parts, at)?;
        let some = part.bytes.min(bytes);
        push_part(&mut found, Part { bytes: some, ..part });
        at += some;
        bytes -= some;
    }
    Some(found)
}

/// A reader of it. Of what is content of a file that the index names, it has nothing; whoever looks at headers skips it.
pub(in crate::worker) struct Between<'a> {
    sources: &'a [Source<'a>],
    /// Each with where it begins in the tar.
    pub(in crate::worker) parts: &'a [(u64, Part)],
    meter: &'a Meter,
    stop: &'a CancellationToken,
    at: u64,
    /// The frame that was needed last: its source, its place among the plain bytes, its content.
    held: (u32, Range<u64>, Vec<u8>),
    /// Why the last read failed.
    pub(in crate::worker) failure: Option<PipelineError>,
}

impl<'a> Between<'a> {
    pub(in crate::worker) fn new(
        sources: &'a [Source<'a>],
        parts: &'a [(u64, Part)],
        meter: &'a Meter,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { sources, parts, meter, stop, at: 0, held: (0, 0..0, vec![]), failure: None }
    }

    /// Has the frame at hand that holds the beginning of `part`, where there is one.
    fn hold(&mut self, part: &Part) -> Result<(), PipelineError> {
        let (source, place, content) = &mut self.held;
        if *source == part.source && place.contains(&part.offset) {
            return Ok(());
        }
        let around = self.sources.get(part.source as usize).and_then(|source| source.frame_around(part.offset));
        // Where there is none, reading the part says so.
        let frame = around.unwrap_or(part.offset..part.offset.saturating_add(1));
        (*source, *place) = (part.source, 0..0);
        content.clear();
        let whole = Part { source: part.source, offset: frame.start, bytes: frame.end - frame.start };
        let parts = std::iter::once(Ok(whole));
        assemble(self.sources, parts, content, NonZeroUsize::MIN, self.meter, self.stop)?;
        *place = frame;
        Ok(())
    }
}

impl Read for Between<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(part) = part_at(self.parts, self.at) else { return Ok(0) };
        if let Err(error) = self.hold(&part) {
            self.failure = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        let (_, place, content) = &self.held;
        let from = usize::try_from(part.offset - place.start).unwrap_or(usize::MAX);
        let most = usize::try_from(part.bytes).unwrap_or(usize::MAX);
        let some = content.get(from..).unwrap_or_default();
        let some = &some[..some.len().min(most).min(buffer.len())];
        buffer[..some.len()].copy_from_slice(some);
        self.at += some.len() as u64;
        Ok(some.len())
    }
}

impl Seek for Between<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
