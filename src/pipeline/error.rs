//! What can end a stream early.

use std::io;

use crate::backup_set::Digest;
use crate::exit::Exit;
use crate::storage::StorageError;

/// Why a stream ended early. Nothing was committed: the object it was to become does not exist.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The producer's stream broke. (A producer that fails mostly just ends its stream: ask it for its verdict.)
    #[error("the data could not be read from its producer")]
    Source {
        /// What the system said.
        source: io::Error,
    },
    /// The stored object could not be read. This says nothing about its content.
    #[error("the stored object could not be read; its content was not judged")]
    Object {
        /// What the system said.
        source: io::Error,
    },
    /// The data could not be written where it was to go.
    #[error("the data could not be written after {written} bytes")]
    Sink {
        /// Bytes the sink took before, in whole frames.
        written: u64,
        /// What the system said; a [`StorageError`] inside it if the sink is a repository.
        source: io::Error,
    },
    /// The reader of the data went away (`EPIPE`). `pg_restore -l` does so as soon as it has read enough: ask it for
    /// its verdict.
    #[error("the program reading the data closed its input after {written} bytes")]
    SinkClosed {
        /// Bytes the sink took before, in whole frames.
        written: u64,
    },
    /// The compressor failed, which can only be for want of memory.
    #[error("the codec could not compress")]
    Codec {
        /// What it said.
        source: io::Error,
    },
    /// The stream is longer than one object can index.
    #[error("the data is too long for one object: more than {frames} frames")]
    TooLong {
        /// The most frames an object can have.
        frames: usize,
    },
    /// The stored object is not what was written.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// None of the keys that were given opens the object.
    #[error("the object is sealed to other keys than the one that was given")]
    WrongKey,
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// How a stored object differs from what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// The number of stored bytes is wrong.
    #[error("the object has {found} bytes, {expected} were written: it {}", if found < expected { "was cut short" } else { "has grown" })]
    StoredSize {
        /// As written.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The stored bytes are not those that were written.
    #[error("the stored bytes changed: their BLAKE3 is {found}, {expected} was written")]
    StoredDigest {
        /// As written.
        expected: Digest,
        /// As found.
        found: Digest,
    },
    /// The number of plain bytes is wrong.
    #[error("the object unpacks to {found} bytes, {expected} were packed")]
    PlainSize {
        /// As packed.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The plain bytes are not those that were packed.
    #[error("the object unpacks to other data: its BLAKE3 is {found}, {expected} was packed")]
    PlainDigest {
        /// As packed.
        expected: Digest,
        /// As found.
        found: Digest,
    },
    /// The age file around it does not open as one that was written whole.
    #[error("the object's encryption does not hold: {why}")]
    Seal {
        /// What is wrong with it.
        why: &'static str,
    },
    /// No seek table ends the object.
    #[error("the object does not end in a seek table: it was cut short, or pglife did not write it")]
    NoSeekTable,
    /// The seek table does not fit the object.
    #[error("the object's seek table is damaged: {why}")]
    SeekTable {
        /// What does not fit.
        why: &'static str,
    },
    /// A frame does not fit the seek table, or does not decode.
    #[error("frame {frame} at byte {offset} is damaged: {fault}")]
    Frame {
        /// Counted from 0.
        frame: usize,
        /// Where it starts in the object.
        offset: u64,
        /// What is wrong with it.
        fault: FrameFault,
    },
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// It does not start as a zstd frame or gzip member as pglife writes it.
    #[error("it is not a frame with content size and checksum")]
    Header,
    /// It ends elsewhere than the seek table says.
    #[error("it does not end where the seek table says")]
    Length,
    /// It promises another number of plain bytes than the seek table.
    #[error("it promises {header} plain bytes, the seek table {table}")]
    ContentSize {
        /// In the frame's header.
        header: u64,
        /// In the seek table.
        table: u32,
    },
    /// Its checksum is not the one in the seek table: it is another frame.
    #[error("its checksum is not the one in the seek table")]
    OtherFrame,
    /// It cannot be decoded, or its content does not match its checksum.
    #[error("its decoder says: {0}")]
    Undecodable(String),
}

impl PipelineError {
    /// A failed write, after `written` bytes.
    pub(super) fn sink(source: io::Error, written: u64) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::SinkClosed { written },
            _ => Self::Sink { written, source },
        }
    }

    /// A failed read of a stored object, sealed or not.
    pub(super) fn object(source: io::Error) -> Self {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<Corruption>()) {
            Some(corruption) => corruption.clone().into(),
            None => Self::Object { source },
        }
    }

    /// How the process ends because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Corrupt(_) => Exit::VerifyFailed,
            Self::WrongKey => Exit::Credentials,
            Self::Source { source } | Self::Object { source } | Self::Sink { source, .. } => {
                storage_error(source).map_or(Exit::Failed, StorageError::exit)
            }
            Self::SinkClosed { .. } | Self::Codec { .. } | Self::TooLong { .. } | Self::Cancelled => Exit::Failed,
        }
    }
}

/// The repository's own error, where one caused an [`io::Error`].
fn storage_error(error: &io::Error) -> Option<&StorageError> {
    error.get_ref()?.downcast_ref()
}
