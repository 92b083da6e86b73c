//! The way of the bytes: a producer's stream into a stored object, and a stored object back into a stream.
//!
//! ```text
//! compress     source ─▶ feed: hash, count ─▶ N codec threads ─▶ in order ─▶ seal ─▶ hash, count ─▶ sink
//! decompress   object ─▶ unseal, hash, count ─▶ feed ─▶ N codec threads ─▶ in order: hash, count ─▶ sink
//! assemble     parts of several objects ─▶ feed ─▶ N codec threads ─▶ in order ─▶ sink
//! ```
//!
//! * The stored object is a row of ordinary zstd frames or gzip members and a seek table ([`frames`]): `zstd -dc` or `gzip -dc`
//!   opens it, and this module unpacks its frames in parallel with no other index.
//! * Encrypted, it is all of that in an ordinary age file ([`seal`]): `age -d | zstd -dc` opens it.
//! * Memory is constant: `threads + 3` slots of one frame each travel round and round; every channel is bounded by
//!   their number. The seek table alone grows, by 12 bytes a frame (6 bytes for each MiB of a dump).
//! * The bytes are counted and hashed with BLAKE3 at both ends: as the producer wrote them, and as they are stored;
//!   [`Sealed`] carries the result.
//! * End of data is an explicit message. An error, a closed sink or a cancelled token ends all threads.
//! * The end of the *source* is no verdict: the caller asks the producer how it ended (the exit status of `pg_dump`)
//!   after [`compress()`] returns, and only then commits.
//!
//! Everything here blocks and runs on plain threads: call it under `spawn_blocking`.

pub mod frames;
pub mod handover;
pub mod pipe;
pub mod seal;

mod assemble;
mod codec;
mod compress;
mod decompress;
mod error;
mod in_order;
mod measure;

pub use assemble::{Source, assemble};
pub use compress::{Compression, compress};
pub use decompress::{compare_stored, decompress};
pub use error::{Corruption, FrameFault, PipelineError};
pub use measure::{Meter, Sealed};

#[cfg(test)]
mod tests;
