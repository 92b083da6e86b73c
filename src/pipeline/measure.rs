//! Counting and hashing: what is known about the bytes on each side of the codec.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::backup_set::Measured;

/// The two sides of a stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// What the producer wrote, and what a consumer gets back.
    pub plain: Measured,
    /// What lies in the repository.
    pub stored: Measured,
}

/// How far a running [`compress`](super::compress()) or [`decompress`](super::decompress()) is, for progress bars.
/// Start each run with a new one, or share one over several objects to count them together.
#[derive(Debug, Default)]
pub struct Meter {
    plain: AtomicU64,
    stored: AtomicU64,
}

impl Meter {
    /// A meter at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that passed on the plain side of the codec.
    pub fn plain(&self) -> u64 {
        self.plain.load(Ordering::Relaxed)
    }

    /// Bytes that passed on the stored side of the codec.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Counts bytes that pass as they are.
    pub(crate) fn add(&self, bytes: usize) {
        self.add_plain(bytes);
        self.add_stored(bytes);
    }

    /// Counts bytes on the plain side of the codec.
    pub fn add_plain(&self, bytes: usize) {
        self.plain.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_stored(&self, bytes: usize) {
        self.stored.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Measures a stream as it passes.
#[derive(Default)]
pub(super) struct Gauge {
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Gauge {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn finish(&self) -> Measured {
        Measured { bytes: self.bytes, blake3: self.hasher.finalize().into() }
    }
}
