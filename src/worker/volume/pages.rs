//! Page checksums, where the cluster has them: a page that is damaged on the disk is found while it is copied.
//!
//! A page is judged if it has not changed since the copy began, by its LSN: one that has is written anew by replay. What is wrong then is
//! read again, because the server may have been writing it just then; what stays wrong is damaged (as `pg_basebackup` does it).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::backup_set::DamagedFile;
use crate::postgres::page::{BYTES as PAGE, SEGMENT, is_damaged};

use super::selection::{relation_file, segment_of};

/// How often a page that is wrong is read again, and how long to wait before: longer than a write takes.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);
/// Blocks of a file that are told by number.
const MOST_TOLD: usize = 20;

/// Looks at the pages of a file as they pass.
#[derive(Debug)]
pub(super) struct Pages {
    /// The block of the relation that the file begins with.
    first: u32,
    /// Where the copy began; pages that changed since are not judged.
    before: u64,
    /// Pages that have passed.
    passed: u32,
    partial: Vec<u8>,
    /// Pages of the file that are wrong at first sight.
    wrong: Vec<u32>,
}

impl Pages {
    /// For the file called `name` in a folder with relations; None where it is none of theirs.
    pub(super) fn of(name: &str, before: u64) -> Option<Self> {
        relation_file(name)?;
        let first = segment_of(name).checked_mul(SEGMENT)?;
        Some(Self { first, before, passed: 0, partial: vec![], wrong: vec![] })
    }

    /// Bytes of the file, in order.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let (some, rest) = bytes.split_at(bytes.len().min(PAGE - self.partial.len()));
            self.partial.extend_from_slice(some);
            bytes = rest;
            let partial = std::mem::take(&mut self.partial);
            match partial.first_chunk::<PAGE>() {
                Some(page) => self.page(page),
                None => self.partial = partial,
            }
        }
        let (pages, rest) = bytes.as_chunks::<PAGE>();
        for page in pages {
            self.page(page);
        }
        self.partial.extend_from_slice(rest);
    }

    /// So many bytes of the file, in whole pages, are not looked at.
    pub(super) fn leave(&mut self, bytes: u64) {
        self.passed += u32::try_from(bytes / PAGE as u64).unwrap_or_default();
    }

    fn page(&mut self, page: &[u8; PAGE]) {
        if is_damaged(page, self.first.wrapping_add(self.passed), self.before) {
            self.wrong.push(self.passed);
        }
        self.passed += 1;
    }

    /// What is wrong with the file at `path` when it is looked at again; `name` is its name for the server.
    pub(super) fn finish(self, path: &Path, name: &Path) -> Option<DamagedFile> {
        let damaged: Vec<u32> = self.wrong.iter().copied().filter(|number| self.stays_wrong(path, *number)).collect();
        let count = u64::try_from(damaged.len()).unwrap_or(u64::MAX);
        let blocks = damaged.iter().take(MOST_TOLD).map(|number| self.first.wrapping_add(*number)).collect();
        (count > 0).then(|| DamagedFile { file: name.to_string_lossy().into_owned(), relation: None, count, blocks })
    }

    fn stays_wrong(&self, path: &Path, number: u32) -> bool {
        (0..TRIES).all(|_| {
            std::thread::sleep(PAUSE);
            let mut page = [0; PAGE];
            let read = File::open(path).and_then(|file| file.read_exact_at(&mut page, u64::from(number) * PAGE as u64));
            // A file that vanished or shrank was dropped or truncated: replay does so too.
            read.is_ok() && is_damaged(&page, self.first.wrapping_add(number), self.before)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::postgres::page::checksum;

    /// A page as the server writes it, of the LSN `lsn`.
    fn page(block: u32, lsn: u32, fill: u8) -> Vec<u8> {
        let mut page = [fill; PAGE];
        page[0..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page.to_vec()
    }

    fn wrong(name: &str, bytes: &[u8], before: u64, cut: usize) -> Vec<u32> {
        let mut pages = Pages::of(name, before).expect("a relation");
        for some in bytes.chunks(cut) {
            pages.see(some);
        }
        pages.wrong
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_seen(cut in 1..20_000_usize, at in 16..3 * PAGE, bit in 0..8_u8, fill in any::<u8>()) {
            let mut bytes: Vec<u8> = (0..3).flat_map(|block| page(SEGMENT + block, 7, fill)).collect();
            prop_assert_eq!(wrong("16384.1", &bytes, 100, cut), Vec::<u32>::new());
            bytes[at] ^= 1 << bit;
            // Where it makes the page look changed, or never filled, it is not judged.
            let inside = at % PAGE;
            prop_assume!(inside >= 16);
            prop_assert_eq!(wrong("16384.1", &bytes, 100, cut), vec![u32::try_from(at / PAGE).expect("small")]);
            // Replay writes it anew.
            prop_assert_eq!(wrong("16384.1", &bytes, 7, cut), Vec::<u32>::new());
        }
    }

    #[test]
    fn a_page_in_another_s_place_is_seen() {
        let swapped = [page(1, 7, 3), page(0, 7, 3)].concat();
        assert_eq!(wrong("16384", &swapped, 100, 4096), [0, 1]);
        assert_eq!(wrong("16384_vm", &vec![0; 3 * PAGE], 100, 4096), Vec::<u32>::new(), "never filled");
        assert!(Pages::of("pg_filenode.map", 100).is_none() && Pages::of("PG_VERSION", 100).is_none());
    }

    #[test]
    fn what_is_left_out_has_its_place() {
        let mut pages = Pages::of("16384", 100).expect("a relation");
        pages.leave(2 * PAGE as u64);
        pages.see(&[page(2, 7, 3), page(7, 7, 3)].concat());
        assert_eq!(pages.wrong, [3]);
    }

    #[test]
    fn what_is_wrong_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("16384");
        let mut torn = page(0, 7, 3);
        torn[100] ^= 1;
        let look = |on_disk: &[u8]| {
            std::fs::write(&path, on_disk).expect("written");
            let mut pages = Pages::of("16384", 100).expect("a relation");
            pages.see(&torn);
            pages.finish(&path, Path::new("base/5/16384"))
        };
        assert_eq!(look(&page(0, 7, 3)), None, "it was being written");
        assert_eq!(look(&[]), None, "it was truncated");
        let damaged = look(&torn).expect("damaged");
        assert_eq!((damaged.file.as_str(), damaged.count, &damaged.blocks[..]), ("base/5/16384", 1, &[0][..]));
    }
}
