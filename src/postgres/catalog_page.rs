//! What pages of a database's catalogue say, read without a server. Pure.
//!
//! As PostgreSQL 13 to 18 have them (`bufpage.h`, `htup_details.h`, `pg_class.h`, `pg_namespace.h`, `relmapper.c`), on a machine of the
//! same kind. Every version of a row is told, whether a transaction that sees it ever ended or not; a page that was copied while it
//! was written may say anything. So this is good for a guess that somebody proves, and for nothing else.

use super::page;
use crate::cluster::PgMajor;

/// The oid of `pg_class`.
pub(crate) const PG_CLASS: u32 = 1259;
/// That of `pg_namespace`.
pub(crate) const PG_NAMESPACE: u32 = 2615;

/// `RELMAPPER_FILEMAGIC`.
const MAP_MAGIC: u32 = 0x0059_2717;
/// Mappings in a `pg_filenode.map` at most.
const MOST_MAPPINGS: usize = 64;

/// A row of `pg_class`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation<'p> {
    pub(crate) oid: u32,
    pub(crate) name: &'p [u8],
    pub(crate) schema: u32,
    /// 0: it has none, or `pg_filenode.map` knows.
    pub(crate) file_number: u32,
    /// 0: none.
    pub(crate) toast: u32,
    pub(crate) kind: u8,
}

/// The rows of `pg_class` in a page of it.
pub(crate) fn relations(page: &[u8; page::BYTES], major: PgMajor) -> impl Iterator<Item = Relation<'_>> {
    // 18 has one more column before.
    let behind = if major.is_at_least(18) { 112 } else { 108 };
    rows(page).filter_map(move |row| {
        Some(Relation {
            oid: word(row, 0)?,
            name: name(row)?,
            schema: word(row, 68)?,
            file_number: word(row, 88)?,
            toast: word(row, behind)?,
            kind: *row.get(behind + 7)?,
        })
    })
}

/// Oid and name of each schema in a page of `pg_namespace`.
pub(crate) fn schemas(page: &[u8; page::BYTES]) -> impl Iterator<Item = (u32, &[u8])> {
    rows(page).filter_map(|row| Some((word(row, 0)?, name(row)?)))
}

/// The file numbers of relations of which `pg_class` has none, by oid. Empty: it is no such map.
pub(crate) fn mapped(map: &[u8]) -> Vec<(u32, u32)> {
    let count = word(map, 4).and_then(|count| usize::try_from(count).ok()).unwrap_or_default();
    if word(map, 0) != Some(MAP_MAGIC) || count > MOST_MAPPINGS {
        return vec![];
    }
    (0..count).filter_map(|place| Some((word(map, 8 + 8 * place)?, word(map, 12 + 8 * place)?))).collect()
}

/// What stands in a page's rows behind their headers.
fn rows(page: &[u8; page::BYTES]) -> impl Iterator<Item = &[u8]> {
    let lower = usize::from(u16::from_ne_bytes([page[12], page[13]])).min(page::BYTES);
    let pointers = page.get(24..lower).unwrap_or_default().as_chunks::<4>().0;
    pointers.iter().filter_map(|pointer| {
        let pointer = u32::from_ne_bytes(*pointer);
        let (from, bytes) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
        // 1: there is a row.
        let row = page.get(from..from + bytes).filter(|_| pointer >> 15 & 3 == 1)?;
        row.get(usize::from(*row.get(22)?)..)
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// The name that follows an oid: 64 bytes, the last of which are zeros.
fn name(row: &[u8]) -> Option<&[u8]> {
    let name = row.get(4..68)?;
    Some(name.split(|byte| *byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page with rows; those with `false` are gone.
    fn page_of(rows: &[(bool, Vec<u8>)]) -> [u8; page::BYTES] {
        let mut page = [0; page::BYTES];
        let lower = u16::try_from(24 + 4 * rows.len()).expect("few");
        page[12..14].copy_from_slice(&lower.to_ne_bytes());
        let mut upper = page::BYTES;
        for (place, (there, row)) in rows.iter().enumerate() {
            upper -= row.len() + 32;
            page[upper + 22] = 32;
            page[upper + 32..upper + 32 + row.len()].copy_from_slice(row);
            let state = if *there { 1 } else { 3 };
            let pointer = u32::try_from(upper | state << 15 | (row.len() + 32) << 17).expect("small");
            page[24 + 4 * place..28 + 4 * place].copy_from_slice(&pointer.to_ne_bytes());
        }
        page
    }

    fn row(relation: &Relation<'_>, major: PgMajor) -> Vec<u8> {
        let behind = if major.is_at_least(18) { 112 } else { 108 };
        let mut row = vec![0; behind + 40];
        for (at, value) in
            [(0, relation.oid), (68, relation.schema), (88, relation.file_number), (behind, relation.toast)]
        {
            row[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        row[4..4 + relation.name.len()].copy_from_slice(relation.name);
        row[behind + 7] = relation.kind;
        row
    }

    #[test]
    fn rows_of_every_version_are_read() {
        for major in ["13", "17", "18"].map(|major| major.parse::<PgMajor>().expect("a major")) {
            let one = Relation {
                oid: 16400,
                name: "Märkte".as_bytes(),
                schema: 2200,
                file_number: 16500,
                toast: 16403,
                kind: b'r',
            };
            let two = Relation { oid: 1259, name: &[b'x'; 63], schema: 11, file_number: 0, toast: 0, kind: b'r' };
            let page = page_of(&[(true, row(&one, major)), (false, row(&one, major)), (true, row(&two, major))]);
            assert_eq!(relations(&page, major).collect::<Vec<_>>(), [one, two]);
            assert_eq!(schemas(&page).map(|(oid, _)| oid).collect::<Vec<_>>(), [16400, 1259]);
        }
    }

    #[test]
    fn a_map_is_read_and_nothing_else() {
        let map: Vec<u8> =
            [MAP_MAGIC, 2, 1259, 20000, 1249, 1249, 7].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(mapped(&map), [(1259, 20000), (1249, 1249)]);
        assert_eq!(mapped(&map[..15]), []);
        assert_eq!(mapped(&[0; 512]), []);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_page_is_survived(bytes in prop::collection::vec(any::<u8>(), page::BYTES), major in 13..19_u16) {
            let page: [u8; page::BYTES] = bytes.try_into().expect("a page");
            let major = major.to_string().parse().expect("a major");
            prop_assert!(relations(&page, major).count() <= page::BYTES / 4);
            prop_assert!(schemas(&page).count() <= page::BYTES / 4 && mapped(&page).len() <= MOST_MAPPINGS);
        }
    }
}
