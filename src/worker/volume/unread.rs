//! Which blocks of a file need not be read, because the server's WAL summaries say that they are as they were. Pure.
//!
//! Only of main forks, and only where everything fits: the file is called as the server calls it and has whole pages, and the block has
//! as many bytes as in the parent. Everything else is read:
//!
//! * Forks `_fsm` are not all in the WAL. Records that take a bit of `_vm` away name the heap's block only, before the newest minor versions. `_init` is small.
//! * A file that is not in the parent; one that is longer now, where it is. Where it was truncated, or is another one under the name of
//!   one that was dropped, the summaries say so.
//!
//! What changes after the copy began is repaired by replay, whether it was read or not: so are files that shrink or vanish meanwhile. Hint bits
//! are not in the WAL and may be those of the parent; the server sets them again.

use std::ops::Range;
use std::path::Path;

use crate::postgres::page::{BYTES as PAGE, SEGMENT};
use crate::postgres::wal_summary::{Changes, RelationFile};

use super::relations::Place;
use super::selection::{relation_file, segment_of};

/// Oids that every server has: of `pg_default`.
const PG_DEFAULT: u32 = 1663;

/// What is done with a row of blocks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// These bytes are read.
    Read(Range<u64>),
    /// These blocks are not.
    Leave(Range<usize>),
}

/// The rows of the file that the server calls `name`, which had `before` bytes in the parent and has `now`; None: all of it is read.
pub(super) fn rows(changes: &Changes, name: &Path, before: u64, now: u64, block_bytes: u64) -> Option<Vec<Row>> {
    let page = PAGE as u64;
    let (relation, segment) = main_fork(name)?;
    let whole = |bytes: u64| bytes.is_multiple_of(page) && bytes <= u64::from(SEGMENT) * page;
    if !whole(before) || !whole(now) || !block_bytes.is_multiple_of(page) {
        return None;
    }
    let first_page = u64::from(segment) * u64::from(SEGMENT);
    let mut rows: Vec<Row> = Vec::new();
    for number in 0..now.div_ceil(block_bytes) {
        let start = number * block_bytes;
        let bytes = block_bytes.min(now - start);
        let pages = first_page + start / page..first_page + (start + bytes) / page;
        let same = bytes == block_bytes.min(before.saturating_sub(start)) && !changes.touch(relation, pages);
        let block = usize::try_from(number).ok()?;
        match rows.last_mut() {
            Some(Row::Leave(blocks)) if same => blocks.end = block + 1,
            Some(Row::Read(read)) if !same => read.end = start + bytes,
            _ if same => rows.push(Row::Leave(block..block + 1)),
            _ => rows.push(Row::Read(start..start + bytes)),
        }
    }
    rows.iter().any(|row| matches!(row, Row::Leave(_))).then_some(rows)
}

/// The relation whose main fork a file is part of, and which segment it is. None for every name that the server would not have chosen.
fn main_fork(name: &Path) -> Option<(RelationFile, u32)> {
    let file = name.file_name()?.to_str()?;
    let (_, fork) = relation_file(file)?;
    let Place { tablespace, database, file_number } = Place::of(name.to_str()?)?;
    let segment = segment_of(file);
    let chosen = if segment == 0 { file_number.to_string() } else { format!("{file_number}.{segment}") };
    if fork.is_some() || file != chosen || file_number == 0 {
        return None;
    }
    let tablespace = if tablespace == 0 { PG_DEFAULT } else { tablespace };
    Some((RelationFile { tablespace, database, number: file_number }, segment))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: RelationFile = RelationFile { tablespace: 1663, database: 5, number: 16384 };
    const P: u64 = PAGE as u64;

    fn of(changes: &Changes, name: &str, before: u64, now: u64) -> Option<Vec<Row>> {
        rows(changes, Path::new(name), before, now, P)
    }

    #[test]
    fn only_main_forks_are_left() {
        let nothing = Changes::none(1);
        let left = Some(vec![Row::Leave(0..3)]);
        for name in ["base/5/16384", "base/5/16384.7", "global/1262", "pg_tblspc/16400/PG_17_202406281/5/16401.1"] {
            assert_eq!(of(&nothing, name, 3 * P, 3 * P), left, "{name}");
        }
        for name in [
            "base/5/16384_fsm",
            "base/5/16384_vm",
            "base/5/16384_init",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/016384",
            "base/5/0",
            "base/5/t3_16384",
            "base/5/99999999999",
            "base/5/PG_VERSION",
            "base/5/x/16384",
            "base/five/16384",
            "global/pg_control",
            "global/pg_filenode.map",
            "pg_xact/0000",
            "pg_wal/16384",
            "16384",
            "pg_tblspc/16400/16401",
        ] {
            assert_eq!(of(&nothing, name, 3 * P, 3 * P), None, "{name}");
        }
    }

    #[test]
    fn what_the_summaries_name_is_read() {
        let mut changes = Changes::none(1);
        changes.note(TABLE, 1, false);
        assert_eq!(
            of(&changes, "base/5/16384", 4 * P, 4 * P),
            Some(vec![Row::Leave(0..1), Row::Read(P..2 * P), Row::Leave(2..4)])
        );
        // Its second segment begins with page 131072.
        changes.note(TABLE, 131_072 + 2, false);
        assert_eq!(of(&changes, "base/5/16384.1", 3 * P, 3 * P), Some(vec![Row::Leave(0..2), Row::Read(2 * P..3 * P)]));
        assert_eq!(of(&changes, "base/6/16384", P, P), Some(vec![Row::Leave(0..1)]), "another database's");
        assert_eq!(of(&changes, "pg_tblspc/16400/PG_17_1/5/16384", P, P), Some(vec![Row::Leave(0..1)]));
        // It was made anew, or truncated to nothing.
        changes.note(TABLE, 0, true);
        assert_eq!(of(&changes, "base/5/16384", 4 * P, 4 * P), None);
        assert_eq!(of(&changes, "base/5/16384.1", 4 * P, 4 * P), None);
        let mut made = Changes::none(1);
        made.note(RelationFile { number: 0, ..TABLE }, 0, true);
        assert_eq!(of(&made, "base/5/1259", 4 * P, 4 * P), None);
    }

    #[test]
    fn files_of_another_length_are_read_where_they_are() {
        let nothing = Changes::none(1);
        let file = "base/5/16384";
        assert_eq!(of(&nothing, file, P, 3 * P), Some(vec![Row::Leave(0..1), Row::Read(P..3 * P)]));
        assert_eq!(of(&nothing, file, 3 * P, P), Some(vec![Row::Leave(0..1)]));
        assert_eq!(of(&nothing, file, 0, P), None);
        assert_eq!(of(&nothing, file, P, 0), None);
        assert_eq!(of(&nothing, file, 2 * P, 2 * P + 1), None);
        assert_eq!(of(&nothing, file, 2 * P - 1, 2 * P), None);
        let large = (u64::from(SEGMENT) + 1) * P;
        assert_eq!(of(&nothing, file, large, large), None);
        // The last block of two pages has one page more than it had.
        let two = |before, now| rows(&nothing, Path::new(file), before, now, 2 * P);
        assert_eq!(two(3 * P, 4 * P), Some(vec![Row::Leave(0..1), Row::Read(2 * P..4 * P)]));
        assert_eq!(two(3 * P, 3 * P), Some(vec![Row::Leave(0..2)]));
        assert_eq!(two(4 * P, 3 * P), Some(vec![Row::Leave(0..1), Row::Read(2 * P..3 * P)]));
    }

    proptest! {
        #[test]
        fn the_copy_is_what_is_on_disk(
            before in prop::collection::vec(0..3_u8, 0..40),
            changed in prop::collection::vec((0..40_usize, 3..9_u8), 0..10),
            length in 0..50_usize,
            segment in 0..2_u32,
            together in prop::sample::select(vec![1_u32, 2, 4]),
        ) {
            let first = segment * SEGMENT;
            let mut changes = Changes::none(together);
            let mut note = |page: usize, is_limit| changes.note(TABLE, first + u32::try_from(page).expect("small"), is_limit);
            // A page each; what is beyond is new, and may or may not be in the WAL.
            let mut now = before.clone();
            for (page, value) in &changed {
                if let Some(there) = now.get_mut(*page) {
                    *there = *value;
                    note(*page, false);
                }
            }
            if length < now.len() {
                note(length, true);
            }
            now.resize(length, 9);
            let block = u64::from(together) * P;
            let bytes = |pages: &[u8]| pages.len() as u64 * P;
            let name = if segment == 0 { "base/5/16384".to_owned() } else { format!("base/5/16384.{segment}") };
            let Some(rows) = rows(&changes, Path::new(&name), bytes(&before), bytes(&now), block) else { return Ok(()) };
            let mut copied = Vec::new();
            for row in &rows {
                let (pages, source) = match row {
                    Row::Read(bytes) => (bytes.start / P..bytes.end / P, &now),
                    Row::Leave(blocks) => {
                        let page = |block: usize| block as u64 * u64::from(together);
                        (page(blocks.start)..page(blocks.end).min(before.len() as u64), &before)
                    }
                };
                copied.extend(pages.map(|page| source[usize::try_from(page).expect("small")]));
            }
            prop_assert_eq!(copied, now);
        }
    }
}
