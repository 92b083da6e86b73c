//! A stream out of parts of several stored objects: an incremental copy, from the objects of its chain.
//!
//! ```text
//! parts ─▶ feed: which frame holds the next one? ─▶ N codec threads ─▶ in order: the parts of it ─▶ sink
//! ```
//!
//! Parts come in the order of the stream, and within each object mostly forwards: of each object, the frame that was needed last is
//! kept. A frame that holds many parts is unpacked once, as long as no other frame of its object comes between.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;

use tokio_util::sync::CancellationToken;

use super::codec::Unpacker;
use super::decompress::damaged;
use super::frames::{Format, Frame, SeekTable};
use super::in_order::in_order;
use super::{Meter, PipelineError};
use crate::backup_set::block_index::Part;
use crate::storage::ReadAt;

/// An object that parts lie in, from inside.
#[derive(Debug)]
pub struct Source<'a> {
    object: &'a dyn ReadAt,
    format: Format,
    frames: Vec<Frame>,
    plain_bytes: u64,
}

impl<'a> Source<'a> {
    /// Reads where its frames are. `object` is unsealed, if it was sealed.
    pub fn open(object: &'a dyn ReadAt) -> Result<Self, PipelineError> {
        let table = SeekTable::read(object)?;
        Ok(Self { object, format: table.format(), frames: table.frames().collect(), plain_bytes: table.plain_bytes() })
    }

    /// What the frame that holds the byte at `offset` holds, among the plain bytes.
    pub fn frame_around(&self, offset: u64) -> Option<Range<u64>> {
        let frame = self.frame_at(offset)?;
        Some(frame.plain_offset..frame.plain_offset + u64::from(frame.entry.plain_bytes))
    }

    /// The frame that holds the byte at `offset`.
    fn frame_at(&self, offset: u64) -> Option<Frame> {
        let after = self.frames.partition_point(|frame| frame.plain_offset <= offset);
        self.frames.get(after.checked_sub(1)?).copied().filter(|_| offset < self.plain_bytes)
    }
}

/// A part of a stream, as far as one frame holds it.
#[derive(Debug)]
struct Piece {
    source: usize,
    /// Within the frame.
    at: usize,
    bytes: usize,
}

/// A frame, and what is taken out of it and of those that are kept until the next one is needed.
#[derive(Debug)]
struct Load {
    source: usize,
    frame: Frame,
    pieces: Vec<Piece>,
}

/// Which frames the parts need, one after the other.
struct Schedule<'a, P> {
    sources: &'a [Source<'a>],
    parts: P,
    /// What is left of the part at hand.
    rest: Option<Part>,
    /// The frame of each source that is at hand when what comes next is written.
    current: Vec<Option<Frame>>,
    /// The frame that is needed next.
    wanted: Option<(usize, Frame)>,
}

impl<P: Iterator<Item = Result<Part, PipelineError>>> Schedule<'_, P> {
    fn next(&mut self) -> Result<Option<Load>, PipelineError> {
        let mut load = self.wanted.take().map(|(source, frame)| self.load(source, frame));
        loop {
            let Some(part) = self.rest.take().map(Ok).or_else(|| self.parts.next()).transpose()? else {
                return Ok(load);
            };
            if part.bytes == 0 {
                continue;
            }
            let source = part.source as usize;
            let outside = || outside(&part);
            let held = self.current.get(source).ok_or_else(outside)?.filter(|frame| within(frame, part.offset));
            let Some(frame) = held else {
                let frame = self.sources[source].frame_at(part.offset).ok_or_else(outside)?;
                self.rest = Some(part);
                match &mut load {
                    Some(_) => {
                        self.wanted = Some((source, frame));
                        return Ok(load);
                    }
                    None => load = Some(self.load(source, frame)),
                }
                continue;
            };
            let at = part.offset - frame.plain_offset;
            let bytes = part.bytes.min(u64::from(frame.entry.plain_bytes) - at);
            let rest = Part { offset: part.offset + bytes, bytes: part.bytes - bytes, ..part };
            self.rest = (rest.bytes > 0).then_some(rest);
            // A frame is at most 16 MiB.
            let (at, bytes) = (usize::try_from(at).unwrap_or(usize::MAX), usize::try_from(bytes).unwrap_or(usize::MAX));
            load.as_mut().ok_or_else(outside)?.pieces.push(Piece { source, at, bytes });
        }
    }

    fn load(&mut self, source: usize, frame: Frame) -> Load {
        self.current[source] = Some(frame);
        Load { source, frame, pieces: vec![] }
    }
}

fn within(frame: &Frame, offset: u64) -> bool {
    (frame.plain_offset..frame.plain_offset + u64::from(frame.entry.plain_bytes)).contains(&offset)
}

fn outside(part: &Part) -> PipelineError {
    let why = format!(
        "bytes {} to {} of source {} are not there",
        part.offset,
        part.offset.saturating_add(part.bytes),
        part.source
    );
    PipelineError::object(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Puts the stream together that `parts` describe, out of `sources`, into `sink`. Returns how many bytes it has.
///
/// Each frame is checked (place, size, checksum) before anything of it goes to the sink; whether the parts are the right ones, the
/// sink must know.
pub fn assemble(
    sources: &[Source<'_>],
    parts: impl Iterator<Item = Result<Part, PipelineError>> + Send,
    sink: &mut dyn Write,
    threads: NonZeroUsize,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<u64, PipelineError> {
    let mut schedule = Schedule { sources, parts, rest: None, current: vec![None; sources.len()], wanted: None };
    let mut kept = vec![Vec::new(); sources.len()];
    let mut written = 0;
    in_order(
        threads,
        |input, _| {
            let Some(load) = schedule.next()? else { return Ok(None) };
            input.resize(load.frame.entry.stored_bytes as usize, 0);
            let object = sources[load.source].object;
            object.read_exact_at(input, load.frame.offset).map_err(PipelineError::object)?;
            meter.add_stored(input.len());
            Ok(Some(load))
        },
        || {
            // A chain may have been written with more than one codec.
            let unpackers = sources.iter().map(|source| Unpacker::new(source.format)).collect::<io::Result<Vec<_>>>();
            let mut unpackers = unpackers.map_err(|source| PipelineError::Codec { source })?;
            Ok(move |load: &Load, input: &[u8], output: &mut Vec<u8>| {
                let unpacked = unpackers[load.source].unpack(load.frame.entry, input, output);
                unpacked.map_err(|fault| damaged(&load.frame, fault))
            })
        },
        |load, _, output| {
            kept[load.source].clear();
            kept[load.source].extend_from_slice(output);
            for piece in &load.pieces {
                let bytes = &kept[piece.source][piece.at..piece.at + piece.bytes];
                sink.write_all(bytes).map_err(|source| PipelineError::sink(source, written))?;
                written += bytes.len() as u64;
                meter.add_plain(bytes.len());
            }
            Ok(())
        },
        stop,
    )?;
    sink.flush().map_err(|source| PipelineError::sink(source, written))?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::frames::FrameBytes;
    use crate::pipeline::{Compression, compress};

    #[derive(Debug)]
    struct Memory(Vec<u8>);

    impl ReadAt for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let offset = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
            Ok(())
        }
    }

    fn stored(plain: &[u8], frame_bytes: u32, codec: &str) -> Memory {
        let compression = Compression {
            codec: codec.parse().expect("a codec"),
            threads: NonZeroUsize::MIN,
            frame_bytes: FrameBytes::new(frame_bytes).expect("a size"),
        };
        let mut object = Vec::new();
        compress(&mut &*plain, &mut object, compression, None, &Meter::new(), &CancellationToken::new())
            .expect("memory");
        Memory(object)
    }

    fn put_together(objects: &[Memory], parts: &[Part]) -> Result<Vec<u8>, PipelineError> {
        let sources: Vec<Source<'_>> = objects.iter().map(|object| Source::open(object).expect("frames")).collect();
        let mut stream = Vec::new();
        let threads = NonZeroUsize::new(2).expect("two");
        let parts = parts.iter().copied().map(Ok);
        let bytes = assemble(&sources, parts, &mut stream, threads, &Meter::new(), &CancellationToken::new())?;
        assert_eq!(bytes, stream.len() as u64);
        Ok(stream)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_stream_is_what_its_parts_are(
            sizes in prop::collection::vec(1..5000_usize, 1..4),
            wanted in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
            frame_bytes in 1..3000_u32,
        ) {
            let plain: Vec<Vec<u8>> = sizes
                .iter()
                .enumerate()
                .map(|(source, size)| (0..*size).map(|at| u8::try_from((at * (source + 3)) % 251).expect("small")).collect())
                .collect();
            let codecs = ["zstd:1", "gzip:1"].iter().cycle();
            let objects: Vec<Memory> = plain.iter().zip(codecs).map(|(plain, codec)| stored(plain, frame_bytes, codec)).collect();
            let mut expected = Vec::new();
            let parts: Vec<Part> = wanted
                .iter()
                .map(|(source, from, to)| {
                    let source = source.index(plain.len());
                    let (from, to) = (from.index(sizes[source] + 1), to.index(sizes[source] + 1));
                    let (from, to) = (from.min(to), from.max(to));
                    expected.extend_from_slice(&plain[source][from..to]);
                    Part { source: u32::try_from(source).expect("few"), offset: from as u64, bytes: (to - from) as u64 }
                })
                .collect();
            prop_assert!(put_together(&objects, &parts).expect("a stream") == expected);
        }
    }

    #[test]
    fn parts_that_are_not_there_are_an_error() {
        let objects = [stored(&[7; 1000], 300, "zstd:1")];
        for part in [(0, 999, 2), (0, 1000, 1), (0, u64::MAX - 5, 3), (1, 0, 1)] {
            assert!(
                put_together(&objects, &[Part { source: 0, offset: 3, bytes: 5 }, part.into()]).is_err(),
                "{part:?}"
            );
        }
    }
}
