//! What is learnt of a file's content as it passes: its CRC-32C, where it is asked for that of each block, and damaged pages.

use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};

use super::crc::{Combiner, crc_of};
use super::pages::Pages;

/// Looks at the content of a file.
#[derive(Debug)]
pub(super) struct Passing {
    crc: Crc,
    pages: Option<Pages>,
}

#[derive(Debug)]
enum Crc {
    Whole(Box<Digest>),
    Each { combiner: Arc<Combiner>, whole: u32, each: Vec<u32> },
}

impl Passing {
    /// With `combiner`, what passes must come in whole blocks of its length, but for the end.
    pub(super) fn new(pages: Option<Pages>, combiner: Option<Arc<Combiner>>) -> Self {
        let crc = match combiner {
            None => Crc::Whole(Box::new(Digest::new(CrcAlgorithm::Crc32Iscsi))),
            Some(combiner) => Crc::Each { combiner, whole: 0, each: vec![] },
        };
        Self { crc, pages }
    }

    /// Bytes of the file, in order.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        match &mut self.crc {
            Crc::Whole(digest) => digest.update(bytes),
            Crc::Each { combiner, whole, each } => {
                for block in bytes.chunks(combiner.block_bytes()) {
                    let crc = crc_of(block);
                    *whole = combiner.add(*whole, crc, block.len());
                    each.push(crc);
                }
            }
        }
        if let Some(pages) = &mut self.pages {
            pages.see(bytes);
        }
    }

    /// The next `bytes` of the file are not seen; `crcs` are those of their blocks.
    pub(super) fn leave(&mut self, crcs: &[u32], bytes: u64) {
        let mut rest = usize::try_from(bytes).unwrap_or(usize::MAX);
        if let Crc::Each { combiner, whole, each } = &mut self.crc {
            for crc in crcs {
                let block = rest.min(combiner.block_bytes());
                *whole = combiner.add(*whole, *crc, block);
                rest -= block;
            }
            each.extend_from_slice(crcs);
        }
        if let Some(pages) = &mut self.pages {
            pages.leave(bytes);
        }
    }

    /// The CRC-32C of all of it, those of its blocks where they were asked for, and what looked at its pages.
    pub(super) fn finish(self) -> (u32, Vec<u32>, Option<Pages>) {
        match self.crc {
            Crc::Whole(digest) => (u32::try_from(digest.finalize()).expect("32 bits"), vec![], self.pages),
            Crc::Each { whole, each, .. } => (whole, each, self.pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_left_out_counts_all_the_same(
            content in prop::collection::vec(any::<u8>(), 0..3000),
            left in prop::collection::vec(any::<bool>(), 30),
            block in 100..400_usize,
        ) {
            let combiner = Arc::new(Combiner::new(block));
            let (mut all, mut some) = (Passing::new(None, None), Passing::new(None, Some(combiner)));
            all.see(&content);
            for (bytes, left) in content.chunks(block).zip(left) {
                if left { some.leave(&[crc_of(bytes)], bytes.len() as u64) } else { some.see(bytes) }
            }
            let ((whole, none, _), (same, each, _)) = (all.finish(), some.finish());
            prop_assert_eq!((whole, none.len()), (same, 0));
            prop_assert_eq!(each, content.chunks(block).map(crc_of).collect::<Vec<_>>());
        }
    }
}
