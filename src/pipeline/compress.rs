//! From a producer's stream to a stored object.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use tokio_util::sync::CancellationToken;

use super::codec::Packer;
use super::frames::{Format, FrameBytes, SeekTable};
use super::in_order::{Ending, in_order};
use super::measure::Gauge;
use super::seal::Seal;
use super::{Meter, PipelineError, Sealed};
use crate::backup_set::Codec;
use crate::encryption::Recipients;

/// How an object is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The codec and its level.
    pub codec: Codec,
    /// Threads that compress. Reading and writing take one thread each beside them, with little work.
    pub threads: NonZeroUsize,
    /// Plain bytes in each frame.
    pub frame_bytes: FrameBytes,
}

/// Compresses `source` into `sink` until the source ends, sealed to `recipients` if there are any, and returns what passed
/// at each end.
///
/// Unsealed, the same bytes with the same codec and frame size make the same object, whatever the number of threads. `sink` is
/// flushed, but not made durable or committed; and the end of `source` says nothing about its producer: ask for its exit
/// status before committing.
///
/// A source that fails with [`io::ErrorKind::TimedOut`] has nothing to say at the moment and is asked again
/// ([`PipeSource`](super::pipe::PipeSource)); any other source may hold up the end of a failed or cancelled run for as long as one `read` takes.
pub fn compress(
    source: &mut (dyn Read + Send),
    sink: &mut dyn Write,
    compression: Compression,
    recipients: Option<&Recipients>,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<Sealed, PipelineError> {
    let mut plain = Gauge::default();
    let written = Cell::new(0);
    let failure = Cell::new(None);
    let sink_failed = |source| PipelineError::sink(failure.take().unwrap_or(source), written.get());
    let outside = Outside { sink, stored: Gauge::default(), written: &written, failure: &failure, meter };
    let mut seal = Seal::begin(outside, recipients).map_err(sink_failed)?;
    let format = Format::of(compression.codec);
    let mut table = SeekTable::new(format);
    let mut at_start = true;
    let frame_bytes = compression.frame_bytes.get();

    in_order(
        compression.threads,
        |input, ending| {
            let filled = fill(source, input, frame_bytes, meter, ending)?;
            // An empty source makes one empty frame, so that every object starts as a file of its format does.
            if filled == 0 && !at_start {
                return Ok(None);
            }
            at_start = false;
            plain.update(&input[..filled]);
            Ok(Some(filled))
        },
        || {
            yield_to_the_producer();
            let mut packer = Packer::new(compression.codec).map_err(|source| PipelineError::Codec { source })?;
            Ok(move |&filled: &usize, input: &[u8], output: &mut Vec<u8>| {
                packer.pack(&input[..filled], output).map_err(|source| PipelineError::Codec { source })
            })
        },
        |&filled, _, output| {
            let no_frame = || PipelineError::Codec { source: io::ErrorKind::InvalidData.into() };
            table.push(format.entry(output, filled).ok_or_else(no_frame)?)?;
            seal.write_all(output).map_err(sink_failed)
        },
        stop,
    )?;
    seal.write_all(&table.encode()).map_err(sink_failed)?;
    let mut outside = seal.finish().map_err(sink_failed)?;
    outside.flush().map_err(sink_failed)?;
    Ok(Sealed { plain: plain.finish(), stored: outside.stored.finish() })
}

/// The sink, with what it took: measured here, outside of the seal.
struct Outside<'a> {
    sink: &'a mut dyn Write,
    stored: Gauge,
    written: &'a Cell<u64>,
    /// What the sink said when it failed: what is in between does not pass everything on.
    failure: &'a Cell<Option<io::Error>>,
    meter: &'a Meter,
}

impl Write for Outside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // All or nothing, so that what is counted in an error ends with a whole write.
        if let Err(error) = self.sink.write_all(bytes) {
            let kind = error.kind();
            self.failure.set(Some(error));
            return Err(kind.into());
        }
        self.stored.update(bytes);
        self.written.set(self.stored.bytes());
        self.meter.add_stored(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Lets the producer in the same container go first: it is one process, so every moment it waits for a core is lost, while
/// frames can be compressed on any core at any time. Best effort.
fn yield_to_the_producer() {
    // On Linux this is the calling thread alone.
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "the codec keeps its priority");
    }
}

/// Reads a whole frame, less at the end of the source.
fn fill(
    source: &mut (dyn Read + Send),
    input: &mut Vec<u8>,
    frame_bytes: usize,
    meter: &Meter,
    ending: &Ending<'_>,
) -> Result<usize, PipelineError> {
    input.resize(frame_bytes, 0); // once for each slot
    let mut filled = 0;
    while filled < frame_bytes {
        let read = source.read(&mut input[filled..]);
        // Also at the end of the data: a cancelled run kills its producer, and that end is not the data's.
        ending.check()?;
        match read {
            Ok(0) => break,
            Ok(bytes) => {
                filled += bytes;
                meter.add_plain(bytes);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
            Err(source) => return Err(PipelineError::Source { source }),
        }
    }
    Ok(filled)
}
