//! From a stored object back to the stream it was made of.

use std::io::Write;
use std::num::NonZeroUsize;

use tokio_util::sync::CancellationToken;

use super::codec::Unpacker;
use super::frames::{Frame, SeekTable};
use super::in_order::in_order;
use super::measure::Gauge;
use super::seal::{self, Unsealed};
use super::{Corruption, FrameFault, Meter, PipelineError, Sealed};
use crate::backup_set::Measured;
use crate::encryption::Keys;
use crate::storage::ReadAt;

/// Unpacks `object`, sealed if there are `keys`, into `sink`, and returns what passed at each end.
///
/// Each frame is checked (place, size, checksum) before its content goes to the sink. With `expect`, the sizes are
/// compared before anything is written and the digests at the end, so that the sink may have taken everything when an
/// error comes: what it made of it must be thrown away. Without `expect` no damage makes wrong data, but the object may be another one.
///
/// `sink` is [`std::io::sink()`] to verify, a child's input, or a file. A sink whose reader went away is
/// [`PipelineError::SinkClosed`], not corruption. A sink that blocks holds up the end of a failed or cancelled run: to
/// cancel, also end the child that reads.
pub fn decompress(
    object: &dyn ReadAt,
    expect: Option<&Sealed>,
    keys: Option<&Keys>,
    sink: &mut dyn Write,
    threads: NonZeroUsize,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<Sealed, PipelineError> {
    if let Some(expect) = expect {
        compare_stored_size(expect.stored.bytes, object.size())?;
    }
    let sealed = match keys {
        None => {
            let mut stored = Gauge::default();
            let plain = unpack_all(object, expect, sink, threads, meter, stop, &mut |bytes| stored.update(bytes))?;
            Sealed { plain, stored: stored.finish() }
        }
        Some(keys) => {
            let unsealed = Unsealed::open(object, keys).map_err(|error| blame(error, object, expect, stop))?;
            let plain = unpack_all(&unsealed, expect, sink, threads, meter, stop, &mut |_| ())?;
            // The seal itself, which passed no codec.
            meter.add_stored(usize::try_from(object.size() - unsealed.size()).unwrap_or_default());
            Sealed { plain, stored: unsealed.stored()? }
        }
    };
    if let Some(expect) = expect {
        compare(expect, &sealed)?;
    }
    Ok(sealed)
}

/// A header that was changed looks like one for other keys, until the whole object is looked at.
fn blame(
    error: PipelineError,
    object: &dyn ReadAt,
    expect: Option<&Sealed>,
    stop: &CancellationToken,
) -> PipelineError {
    match (&error, expect) {
        (PipelineError::WrongKey, Some(expect)) => match seal::measure(object, &Meter::new(), stop) {
            Ok(found) => compare_stored(expect.stored, found).map_or_else(Into::into, |()| error),
            Err(unreadable) => unreadable,
        },
        _ => error,
    }
}

/// Unpacks the frames of `object`; `passed` sees all of its bytes in order.
fn unpack_all(
    object: &dyn ReadAt,
    expect: Option<&Sealed>,
    sink: &mut dyn Write,
    threads: NonZeroUsize,
    meter: &Meter,
    stop: &CancellationToken,
    passed: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Measured, PipelineError> {
    let table = SeekTable::read(object)?;
    if let Some(expect) = expect {
        compare_plain_size(expect.plain.bytes, table.plain_bytes())?;
    }
    let mut plain = Gauge::default();
    let mut rows = table.frames();
    in_order(
        threads,
        |input, _| {
            let Some(frame) = rows.next() else { return Ok(None) };
            input.resize(frame.entry.stored_bytes as usize, 0);
            object.read_exact_at(input, frame.offset).map_err(PipelineError::object)?;
            passed(input);
            meter.add_stored(input.len());
            Ok(Some(frame))
        },
        || {
            let mut unpacker = Unpacker::new(table.format()).map_err(|source| PipelineError::Codec { source })?;
            Ok(move |frame: &Frame, input: &[u8], output: &mut Vec<u8>| {
                unpacker.unpack(frame.entry, input, output).map_err(|fault| damaged(frame, fault))
            })
        },
        |_, _, output| {
            sink.write_all(output).map_err(|source| PipelineError::sink(source, plain.bytes()))?;
            plain.update(output);
            meter.add_plain(output.len());
            Ok(())
        },
        stop,
    )?;
    sink.flush().map_err(|source| PipelineError::sink(source, plain.bytes()))?;
    // A table has one encoding: these are the bytes that were read.
    let tail = table.encode();
    passed(&tail);
    meter.add_stored(tail.len());
    Ok(plain.finish())
}

pub(super) fn damaged(frame: &Frame, fault: FrameFault) -> PipelineError {
    Corruption::Frame { frame: frame.index, offset: frame.offset, fault }.into()
}

fn compare(expect: &Sealed, found: &Sealed) -> Result<(), Corruption> {
    compare_stored(expect.stored, found.stored)?;
    compare_plain_size(expect.plain.bytes, found.plain.bytes)?;
    let Measured { blake3: expected, .. } = expect.plain;
    if found.plain.blake3 != expected {
        return Err(Corruption::PlainDigest { expected, found: found.plain.blake3 });
    }
    Ok(())
}

/// Compares an object as it is stored with what was recorded.
pub fn compare_stored(expect: Measured, found: Measured) -> Result<(), Corruption> {
    compare_stored_size(expect.bytes, found.bytes)?;
    if found.blake3 == expect.blake3 {
        Ok(())
    } else {
        Err(Corruption::StoredDigest { expected: expect.blake3, found: found.blake3 })
    }
}

fn compare_stored_size(expected: u64, found: u64) -> Result<(), Corruption> {
    if found == expected { Ok(()) } else { Err(Corruption::StoredSize { expected, found }) }
}

fn compare_plain_size(expected: u64, found: u64) -> Result<(), Corruption> {
    if found == expected { Ok(()) } else { Err(Corruption::PlainSize { expected, found }) }
}
