//! How large the parts of an upload are.
//!
//! An upload has at most 10,000 parts of at least 5 MiB, the last excepted, and nobody knows its length when it begins.
//! Memory is (parts under way + 1) × part. So parts grow with what is stored already:
//!
//! | stored so far | part | under way | memory |
//! | --- | --- | --- | --- |
//! | 0 to 8 GiB | 8 MiB | 6 | 56 MiB |
//! | to 100 GiB | 24 MiB | 3 | 96 MiB |
//! | to 5 TiB | 1/1270 of it | 1 | 1/635 of it: 162 MiB at 100 GiB, 1.6 GiB at 1 TiB |
//!
//! Up to 100 GiB memory is constant. Beyond it cannot be: 10,000 parts of 24 MiB end at 234 GiB.
//!
//! Cloudflare R2 wants all parts but the last of one size: there, 10,000 × 24 MiB = 234 GiB is the most.

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// S3's limit: Amazon S3 User Guide, "Amazon S3 multipart upload limits".
pub(super) const MAX_PARTS: i32 = 10_000;

/// Up to here memory is constant.
const STEADY: u64 = 100 * GIB;
const LARGEST_STEADY: u64 = 24 * MIB;
/// Above [`STEADY`] a part is this fraction of what is stored.
const FRACTION: u64 = 1270;
/// What the parts in memory may have together, as long as one is under way at least.
const BUDGET: u64 = 96 * MIB;

/// The size of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    /// As the table says.
    Growing,
    /// All of one size.
    Equal(u64),
}

impl Sizes {
    /// All of one size, so that the memory is the steady one.
    pub(super) fn equal() -> Self {
        Self::Equal(LARGEST_STEADY)
    }

    /// The size of the part that follows `stored` bytes.
    pub(super) fn next(self, stored: u64) -> u64 {
        match self {
            Self::Equal(bytes) => bytes,
            Self::Growing if stored < 8 * GIB => 8 * MIB,
            Self::Growing if stored < STEADY => LARGEST_STEADY,
            Self::Growing => (stored / FRACTION).next_multiple_of(MIB),
        }
    }
}

/// How many parts of `part` bytes may be under way, `most` at most.
pub(super) fn under_way(part: u64, most: usize) -> usize {
    let fit = usize::try_from(BUDGET / part.max(1)).unwrap_or(usize::MAX);
    fit.saturating_sub(1).clamp(1, most.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIB: u64 = 1 << 40;

    /// Number of parts, largest part, most memory of an object of `bytes`.
    fn upload(bytes: u64, sizes: Sizes) -> (i32, u64, u64) {
        let (mut stored, mut parts, mut largest, mut memory) = (0, 0, 0, 0);
        while stored < bytes {
            let part = sizes.next(stored);
            memory = memory.max(part * (under_way(part, 6) as u64 + 1));
            largest = largest.max(part);
            stored += part;
            parts += 1;
        }
        (parts, largest, memory)
    }

    #[test]
    fn five_tebibytes_fit_into_the_parts_that_s3_allows() {
        let (parts, largest, _) = upload(5 * TIB, Sizes::Growing);
        assert!(parts < MAX_PARTS, "{parts}");
        assert!(largest < 5 * GIB, "{largest}");
    }

    #[test]
    fn memory_is_constant_up_to_a_hundred_gigabytes() {
        assert_eq!(upload(100_000_000_000, Sizes::Growing).2, 96 * MIB);
        assert_eq!(upload(5_000_000_000, Sizes::Growing).2, 56 * MIB);
        assert_eq!(upload(TIB, Sizes::Growing).2 / MIB, 1652);
        assert_eq!(upload(234 * GIB, Sizes::equal()), (9984, 24 * MIB, 96 * MIB));
    }

    proptest! {
        #[test]
        fn parts_never_shrink_and_are_never_too_small(stored in 0..5 * TIB, more in 0..TIB) {
            for sizes in [Sizes::Growing, Sizes::equal()] {
                prop_assert!(sizes.next(stored) >= 5 * MIB);
                prop_assert!(sizes.next(stored + more) >= sizes.next(stored));
            }
        }

        #[test]
        fn memory_is_the_budget_or_two_parts(stored in 0..5 * TIB, most in 0_usize..10) {
            let part = Sizes::Growing.next(stored);
            let parts = under_way(part, most) as u64 + 1;
            prop_assert!(parts == 2 || (parts > 2 && parts * part <= BUDGET && parts <= most as u64 + 1));
        }
    }
}
