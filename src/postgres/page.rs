//! The pages of relations: what PostgreSQL's `bufpage.h`, `itemid.h` and `checksum_impl.h` say of them, as it builds them by default.

/// Bytes of a page.
pub(crate) const BYTES: usize = 8 << 10;
/// Pages in a segment of a relation: 1 GiB.
pub(crate) const SEGMENT: u32 = 131_072;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each lane begins: PostgreSQL's own numbers.
#[rustfmt::skip]
const BASES: [u32; LANES] = [
    0x5B1F_36E9, 0xB852_5960, 0x02AB_50AA, 0x1DE6_6D2A, 0x79FF_467A, 0x9BB9_F8A3, 0x217E_7CD2, 0x83E1_3D2C,
    0xF8D4_474F, 0xE39E_B970, 0x42C6_AE16, 0x9932_16FA, 0x7B09_3B5D, 0x98DA_FF3C, 0xF718_902A, 0x0B1C_9CDB,
    0xE58F_764B, 0x1876_36BC, 0x5D7B_3BB1, 0xE73D_E7DE, 0x92BE_C979, 0xCCA6_C0B2, 0x304A_0979, 0x85AA_43D4,
    0x7831_25BB, 0x6CA8_EAA2, 0xE407_EAC6, 0x4B5C_FC3E, 0x9FBF_8C76, 0x15CA_20BE, 0xF2CA_9FD3, 0x959B_D756,
];

/// The checksum of a page whose own place for it counts as zero, for the block that it is in its relation.
pub(crate) fn checksum(page: &[u8; BYTES], block: u32) -> u16 {
    let mut sums = BASES;
    let step = |sum: u32, value: u32| {
        let mixed = sum ^ value;
        mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
    };
    let (words, _) = page.as_chunks::<4>();
    let (rows, _) = words.as_chunks::<LANES>();
    // One loop for each row, with nothing to decide in it: the compiler takes several lanes at once.
    let mut add = |row: &[u32; LANES]| {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum = step(*sum, *value);
        }
    };
    for (number, row) in rows.iter().enumerate() {
        let mut values = row.map(u32::from_le_bytes);
        if number == 0 {
            values[2] &= 0xFFFF_0000; // pd_checksum
        }
        add(&values);
    }
    add(&[0; LANES]);
    add(&[0; LANES]);
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    u16::try_from(folded % 65_535 + 1).expect("at most 65535")
}

/// Whether a page is damaged: it is older than `before`, and not what its checksum says. A page that was never filled has none.
pub(crate) fn is_damaged(page: &[u8; BYTES], block: u32, before: u64) -> bool {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let word = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    let (lsn, stored, upper) = (word(0) << 32 | word(4), half(8), half(14));
    upper != 0 && lsn < before && stored != checksum(page, block)
}
