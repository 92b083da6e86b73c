//! Encryption at rest: an ordinary age file around the stored form, written as a stream and read at any place.
//!
//! ```text
//! ┌─────────────────────────────┬─────────────────────────┬───┬──────────────────────────┐
//! │ header: a stanza a recipient│ chunk 0: 64 KiB + 16    │ … │ last chunk, marked so    │
//! └─────────────────────────────┴─────────────────────────┴───┴──────────────────────────┘
//! ```
//! The format is age's (<https://age-encryption.org/v1>); stock `age -d` opens it. Each chunk is authenticated, with its
//! place and whether it is the last, so that chunks cannot be changed, moved or cut off unnoticed; the header is
//! authenticated by the key that is in it.
//!
//! * [`Seal`] writes. [`Seal::finish`] is the end; a seal that is dropped leaves a stream that does not open.
//! * [`Unsealed`] reads at any place, in constant memory: the chunks of one read at a time. Its size is the authenticated
//!   one. On the way it hashes the stored bytes in their order, so that opening an object and checking its stored digest is
//!   one pass.
//! * Who holds a recipient can seal: encryption keeps secrets, it does not prove who wrote.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use age::DecryptError;
use age::stream::{StreamReader, StreamWriter};
use tokio_util::sync::CancellationToken;

use super::measure::Gauge;
use super::{Corruption, Meter, PipelineError};
use crate::backup_set::Measured;
use crate::encryption::{Keys, Recipients};
use crate::storage::ReadAt;

/// Plain bytes in a chunk of age.
const CHUNK: u64 = 64 << 10;
/// A chunk as stored: with its authentication tag.
const SEALED_CHUNK: u64 = CHUNK + 16;
/// The longest header that is read: 2000 recipients.
const LONGEST_HEADER: u64 = 256 << 10;
/// Stored bytes hashed at a time where nobody reads them.
const REST: usize = 4 << 20;

/// A stream on its way into an object, sealed or as it is.
pub struct Seal<W: Write>(Way<W>);

enum Way<W: Write> {
    Open(W),
    Sealed(StreamWriter<W>),
}

impl<W: Write> Seal<W> {
    /// Begins an object: sealed to `recipients`, or left open.
    pub fn begin(sink: W, recipients: Option<&Recipients>) -> io::Result<Self> {
        Ok(Self(match recipients {
            None => Way::Open(sink),
            Some(recipients) => Way::Sealed(recipients.encryptor().wrap_output(sink)?),
        }))
    }

    /// Ends the stream. Without it, a sealed object does not open.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Way::Open(sink) => Ok(sink),
            Way::Sealed(stream) => stream.finish(),
        }
    }
}

impl<W: Write> Write for Seal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Way::Open(sink) => sink.write(bytes),
            Way::Sealed(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Way::Open(sink) => sink.flush(),
            Way::Sealed(stream) => stream.flush(),
        }
    }
}

/// Seals bytes held in memory.
pub fn seal_bytes(plain: &[u8], recipients: &Recipients) -> Vec<u8> {
    let mut seal = Seal::begin(Vec::new(), Some(recipients)).expect("memory takes everything");
    seal.write_all(plain).expect("memory takes everything");
    seal.finish().expect("memory takes everything")
}

/// Opens bytes held in memory.
pub fn unseal_bytes(sealed: &[u8], keys: &Keys) -> Result<Vec<u8>, PipelineError> {
    let object = Bytes(sealed);
    let unsealed = Unsealed::open(&object, keys)?;
    // The size is authenticated, and smaller than what is in memory already.
    let mut plain = vec![0; usize::try_from(unsealed.size()).map_err(|_| broken("it is too large for memory"))?];
    unsealed.read_exact_at(&mut plain, 0).map_err(PipelineError::object)?;
    Ok(plain)
}

#[derive(Debug)]
struct Bytes<'a>(&'a [u8]);

impl ReadAt for Bytes<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        Read::read_exact(&mut &rest[..], buffer)
    }
}

/// The inside of a sealed object. Bytes that do not authenticate are an [`io::Error`] with a [`Corruption`] in it; after any
/// error, every further read fails.
pub struct Unsealed<'a> {
    object: &'a dyn ReadAt,
    /// None after a failed read: age's reader is in no defined state then.
    stream: Mutex<Option<StreamReader<Outside<'a>>>>,
    view: Arc<Mutex<View>>,
    /// Where the first chunk begins.
    chunks_at: u64,
    size: u64,
}

impl<'a> Unsealed<'a> {
    /// Finds a key that opens `object`, and authenticates its size.
    #[expect(clippy::disallowed_methods, reason = "this is the one home of sealed streams")]
    pub fn open(object: &'a dyn ReadAt, keys: &Keys) -> Result<Self, PipelineError> {
        let end = object.size().min(LONGEST_HEADER);
        let view = Arc::new(Mutex::new(View {
            end,
            position: 0,
            wanted_until: 0,
            unreadable: false,
            hashed: Gauge::default(),
        }));
        let outside = Outside { object, position: 0, window: vec![], window_at: 0, view: Arc::clone(&view) };
        let refuse = |error: DecryptError| match error {
            DecryptError::NoMatchingKeys => PipelineError::WrongKey,
            DecryptError::Io(source) => PipelineError::object(look(&view).judge(source)),
            DecryptError::InvalidMac | DecryptError::DecryptionFailed => {
                broken("its header does not authenticate").into()
            }
            _ => broken("it does not begin as an age file").into(),
        };
        let decryptor = age::Decryptor::new_buffered(outside).map_err(refuse)?;
        let mut stream = decryptor.decrypt(keys.identities()).map_err(refuse)?;
        let chunks_at = {
            let mut view = look(&view);
            view.end = object.size();
            view.position
        };
        // Decrypts the last chunk *as* the last one.
        let size = stream.seek(SeekFrom::End(0)).map_err(|source| PipelineError::object(look(&view).judge(source)))?;
        Ok(Self { object, stream: Mutex::new(Some(stream)), view, chunks_at, size })
    }

    /// The object as it is stored, header included. What was not read until now is read for it.
    pub fn stored(&self) -> Result<Measured, PipelineError> {
        let mut view = look(&self.view);
        hash_rest(self.object, &mut view.hashed, |_| Ok(()))?;
        Ok(view.hashed.finish())
    }
}

/// The measure of an object as it is stored. Reads all of it; needs no key.
pub fn measure(object: &dyn ReadAt, meter: &Meter, stop: &CancellationToken) -> Result<Measured, PipelineError> {
    let mut hashed = Gauge::default();
    hash_rest(object, &mut hashed, |bytes| {
        meter.add_stored(bytes);
        if stop.is_cancelled() { Err(PipelineError::Cancelled) } else { Ok(()) }
    })?;
    Ok(hashed.finish())
}

fn hash_rest(
    object: &dyn ReadAt,
    hashed: &mut Gauge,
    mut after_each: impl FnMut(usize) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let mut block = vec![0; REST];
    while hashed.bytes() < object.size() {
        let left = object.size() - hashed.bytes();
        let block = &mut block[..usize::try_from(left).map_or(REST, |left| left.min(REST))];
        object.read_exact_at(block, hashed.bytes()).map_err(PipelineError::object)?;
        hashed.update(block);
        after_each(block.len())?;
    }
    Ok(())
}

impl fmt::Debug for Unsealed<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Unsealed({:?}, {} bytes)", self.object, self.size)
    }
}

impl ReadAt for Unsealed<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let until = offset.checked_add(buffer.len() as u64).filter(|until| *until <= self.size);
        let until = until.ok_or(io::ErrorKind::UnexpectedEof)?;
        if buffer.is_empty() {
            return Ok(());
        }
        let mut kept = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = kept.take().ok_or_else(|| io::Error::other("an earlier read of it failed"))?;
        // All the chunks of this read at once: where each read is a request over the network, it is one.
        look(&self.view).wanted_until = self.chunks_at + until.div_ceil(CHUNK) * SEALED_CHUNK;
        match stream.seek(SeekFrom::Start(offset)).and_then(|_| stream.read_exact(buffer)) {
            Ok(()) => {
                *kept = Some(stream);
                Ok(())
            }
            Err(error) => Err(look(&self.view).judge(error)),
        }
    }
}

/// What the two ends of age's reader share: it lets nobody at the stream inside it.
struct View {
    /// Where the bytes end, as far as age may see.
    end: u64,
    /// Where age reads next.
    position: u64,
    /// How far to read ahead.
    wanted_until: u64,
    /// The object could not be read: the error that age passes on is the repository's.
    unreadable: bool,
    /// The stored bytes from the first on, as far as they were read in order.
    hashed: Gauge,
}

fn look(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(why: &'static str) -> Corruption {
    Corruption::Seal { why }
}

impl View {
    /// Tells a repository that cannot be read from bytes that are wrong.
    fn judge(&self, error: io::Error) -> io::Error {
        if self.unreadable {
            return error;
        }
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it is cut short",
            _ => "a part does not authenticate: it was changed, moved or cut off",
        };
        io::Error::new(io::ErrorKind::InvalidData, broken(why))
    }
}

/// The stored bytes as age reads them.
struct Outside<'a> {
    object: &'a dyn ReadAt,
    position: u64,
    /// The bytes read last, from `window_at` on.
    window: Vec<u8>,
    window_at: u64,
    view: Arc<Mutex<View>>,
}

impl Outside<'_> {
    fn move_to(&mut self, position: u64) {
        self.position = position;
        look(&self.view).position = position;
    }
}

impl io::BufRead for Outside<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let mut view = look(&self.view);
        let inside = self.position.checked_sub(self.window_at).filter(|at| *at < self.window.len() as u64);
        // A chunk at least: less than that cannot be authenticated.
        let until = view.wanted_until.max(self.position.saturating_add(SEALED_CHUNK)).min(view.end);
        let bytes = until.saturating_sub(self.position);
        if bytes == 0 {
            return Ok(&[]);
        }
        if inside.is_none() {
            // What is left here after an error is nobody's.
            self.window.clear();
            self.window.resize(usize::try_from(bytes).map_err(io::Error::other)?, 0);
            self.window_at = self.position;
            if let Err(error) = self.object.read_exact_at(&mut self.window, self.position) {
                self.window.clear();
                view.unreadable = true;
                return Err(error);
            }
            let fresh = view.hashed.bytes().checked_sub(self.position).and_then(|at| usize::try_from(at).ok());
            if let Some(fresh) = fresh.and_then(|at| self.window.get(at..)) {
                view.hashed.update(fresh);
            }
        }
        let at = usize::try_from(self.position - self.window_at).map_err(io::Error::other)?;
        Ok(self.window.get(at..).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.move_to(self.position + bytes as u64);
    }
}

impl Read for Outside<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = Read::read(&mut io::BufRead::fill_buf(self)?, buffer)?;
        io::BufRead::consume(self, bytes);
        Ok(bytes)
    }
}

impl Seek for Outside<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.object.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.move_to(position.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
