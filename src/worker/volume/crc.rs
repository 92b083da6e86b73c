//! The CRC-32C of a file out of those of its blocks, so that a block that is not read still counts in the server's own manifest.
//!
//! A CRC is linear: that of `a` and `b` in a row is that of `a`, moved along by the length of `b`, xor that of `b`. For the length of a
//! block the move is four looks into tables.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

/// The CRC-32C of bytes.
pub(super) fn crc_of(bytes: &[u8]) -> u32 {
    narrow(checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

fn narrow(crc: u64) -> u32 {
    u32::try_from(crc).expect("32 bits")
}

/// That of `first` and `second` in a row; the second is of so many bytes.
fn combined(first: u32, second: u32, bytes: u64) -> u32 {
    narrow(checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), bytes))
}

/// Adds the CRCs of blocks of one length.
#[derive(Debug)]
pub(super) struct Combiner {
    block_bytes: usize,
    /// Where each value of each byte of a CRC moves to.
    tables: Box<[[u32; 256]; 4]>,
}

impl Combiner {
    pub(super) fn new(block_bytes: usize) -> Self {
        let mut tables = Box::new([[0_u32; 256]; 4]);
        for (number, values) in tables.iter_mut().enumerate() {
            for bit in 0..8 {
                let moved = combined(1 << (number * 8 + bit), 0, block_bytes as u64);
                for (value, all) in values.iter_mut().enumerate() {
                    if value & (1 << bit) != 0 {
                        *all ^= moved;
                    }
                }
            }
        }
        Self { block_bytes, tables }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// That of everything so far and the next block, which has so many bytes.
    pub(super) fn add(&self, so_far: u32, next: u32, bytes: usize) -> u32 {
        if bytes != self.block_bytes {
            return combined(so_far, next, bytes as u64);
        }
        let moved = self
            .tables
            .iter()
            .zip(so_far.to_le_bytes())
            .fold(0, |moved, (values, byte)| moved ^ values[usize::from(byte)]);
        moved ^ next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_that_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..5000), block in 1..700_usize) {
            let combiner = Combiner::new(block);
            let whole = bytes.chunks(block).fold(0, |so_far, block| combiner.add(so_far, crc_of(block), block.len()));
            prop_assert_eq!(whole, crc_of(&bytes));
        }
    }

    #[test]
    fn it_is_castagnoli_s() {
        assert_eq!(crc_of(b"123456789"), 0xE306_9283);
        assert_eq!(crc_of(b""), 0);
    }
}
