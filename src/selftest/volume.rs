//! Where to write into the tar of a volume backup so that it stays a tar, and mostly a data directory, but not the one that was
//! copied. Every change keeps the tar's length.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::FileExt as _;

use tar::{Archive, EntryType, Header};

use super::archive::Patch;
use crate::postgres::page;
use crate::worker::volume::server_manifest;

/// The first number that the server gives to a relation of users.
const FIRST_NORMAL: u32 = 16384;
/// Larger relations are left alone: they are read as a whole.
const MOST: u64 = 256 << 20;

/// A way to spoil the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A byte of a row is another one; the server's own manifest would tell.
    Row,
    /// The same, and the server's manifest fits it; the page's checksum would tell.
    Page,
    /// A B-tree index has an entry less; the manifest and the page's checksum fit it.
    IndexEntry,
    /// The file of a table is not there under its name.
    LoseTable,
    /// Neither is the last file of the WAL.
    LoseWal,
    /// Neither is what tells the server where replay begins.
    LoseLabel,
}

/// A file in the tar.
#[derive(Debug)]
struct Entry {
    /// Its name in the data directory.
    name: String,
    /// Where its header begins.
    header: u64,
    /// Where its content begins.
    at: u64,
    bytes: u64,
}

/// The files of the data directory in a tar.
struct DataDirectory<'f> {
    tar: &'f File,
    entries: Vec<Entry>,
}

/// Finds what to write for `change` into `tar`, which has a data directory at `pgdata`. Some words where there is nothing of it.
pub(super) fn spoil(tar: &File, pgdata: &str, change: Change) -> io::Result<Result<Vec<Patch>, &'static str>> {
    let directory = DataDirectory::read(tar, pgdata)?;
    let nothing = "no table or index of users has a page for it";
    match change {
        Change::Row => Ok(directory.page(changed_row)?.map(|changed| changed.patches).ok_or(nothing)),
        Change::Page => directory.page_and_manifest(changed_row, nothing),
        Change::IndexEntry => directory.page_and_manifest(without_index_entry, nothing),
        Change::LoseTable => match directory.page(changed_row)? {
            Some(changed) => directory.lose(&directory.entries[changed.entry]).map(Ok),
            None => Ok(Err(nothing)),
        },
        Change::LoseWal => directory.lose_last(|name| {
            let file = name.strip_prefix("pg_wal/").unwrap_or_default();
            file.len() == 24 && file.bytes().all(|byte| byte.is_ascii_hexdigit())
        }),
        Change::LoseLabel => directory.lose_last(|name| name == "backup_label"),
    }
}

fn patch(at: u64, bytes: &[u8]) -> io::Result<Patch> {
    Ok(Patch { at: usize::try_from(at).map_err(io::Error::other)?, bytes: bytes.to_vec() })
}

/// Changes a page, of this block of its relation, if it is one for it.
type Changer = fn(&mut [u8; page::BYTES], u32) -> bool;

/// A page of a file that is to be another one.
struct Changed {
    /// The place of the file among the entries.
    entry: usize,
    patches: Vec<Patch>,
    /// The file with the page changed.
    content: Vec<u8>,
}

impl<'f> DataDirectory<'f> {
    fn read(tar: &'f File, pgdata: &str) -> io::Result<Self> {
        let mut source = tar;
        source.rewind()?;
        let root = format!("{}/", pgdata.trim_matches('/'));
        let mut archive = Archive::new(source);
        let mut entries = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            if let (EntryType::Regular, Some(name)) = (entry.header().entry_type(), path.strip_prefix(&root)) {
                entries.push(Entry {
                    name: name.to_owned(),
                    header: entry.raw_header_position(),
                    at: entry.raw_file_position(),
                    bytes: entry.size(),
                });
            }
        }
        Ok(Self { tar, entries })
    }

    fn content(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(entry.bytes).map_err(io::Error::other)?];
        self.tar.read_exact_at(&mut content, entry.at)?;
        Ok(content)
    }

    /// The first page of the largest relation that `change` changes.
    fn page(&self, change: Changer) -> io::Result<Option<Changed>> {
        let mut relations: Vec<usize> = (0..self.entries.len()).filter(|at| is_relation(&self.entries[*at])).collect();
        relations.sort_by_key(|at| std::cmp::Reverse(self.entries[*at].bytes));
        for entry in relations {
            let mut content = self.content(&self.entries[entry])?;
            let (pages, _) = content.as_chunks_mut::<{ page::BYTES }>();
            let found = pages.iter_mut().zip(0_u32..).find_map(|(page, block)| {
                let mut changed = *page;
                (is_filled(page) && change(&mut changed, block)).then(|| {
                    *page = changed;
                    (block, changed)
                })
            });
            if let Some((block, page)) = found {
                let at = self.entries[entry].at + u64::from(block) * page::BYTES as u64;
                return Ok(Some(Changed { entry, patches: vec![patch(at, &page)?], content }));
            }
        }
        Ok(None)
    }

    /// The same; and the server's own manifest is made to fit.
    fn page_and_manifest(
        &self,
        change: Changer,
        nothing: &'static str,
    ) -> io::Result<Result<Vec<Patch>, &'static str>> {
        let Some(mut changed) = self.page(change)? else { return Ok(Err(nothing)) };
        if let Some(manifest) = self.entries.iter().find(|entry| entry.name == "backup_manifest") {
            let text = self.content(manifest)?;
            let name = &self.entries[changed.entry].name;
            let Some(fitting) = server_manifest::with_content(&text, name, &changed.content) else {
                return Ok(Err("its backup_manifest does not have the file"));
            };
            changed.patches.push(patch(manifest.at, &fitting)?);
        }
        Ok(Ok(changed.patches))
    }

    fn lose_last(&self, is_it: impl Fn(&str) -> bool) -> io::Result<Result<Vec<Patch>, &'static str>> {
        let found = self.entries.iter().filter(|entry| is_it(&entry.name)).max_by(|a, b| a.name.cmp(&b.name));
        found.map_or(Ok(Err("the copy has none")), |entry| self.lose(entry).map(Ok))
    }

    /// Gives it another name, which means nothing to the server.
    fn lose(&self, entry: &Entry) -> io::Result<Vec<Patch>> {
        let mut header = Header::new_ustar();
        self.tar.read_exact_at(header.as_mut_bytes(), entry.header)?;
        let name = &mut header.as_old_mut().name;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name[end - 1] = b'~';
        header.set_cksum();
        Ok(vec![patch(entry.header, header.as_bytes())?])
    }
}

/// Whether it is the first file of a relation of users, and not too large to be read.
fn is_relation(entry: &Entry) -> bool {
    let parts: Vec<&str> = entry.name.split('/').collect();
    let number = |text: &str| text.parse::<u32>().ok();
    match parts[..] {
        ["base", database, file] => {
            number(database).is_some() && number(file) >= Some(FIRST_NORMAL) && entry.bytes <= MOST
        }
        _ => false,
    }
}

fn half(page: &[u8; page::BYTES], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

// Places in the header of a page.
const CHECKSUM: usize = 8;
const LOWER: usize = 12;
const UPPER: usize = 14;
const SPECIAL: usize = 16;
/// Bytes of the header, after which the item pointers begin.
const HEADER: usize = 24;
/// Bytes of an item pointer: fifteen bits of its place in the page, two of its state, fifteen of its length.
const POINTER: usize = 4;
const NORMAL: u32 = 1;
const DEAD: u32 = 3;

fn is_filled(page: &[u8; page::BYTES]) -> bool {
    half(page, UPPER) != 0 && (HEADER..page::BYTES).contains(&half(page, LOWER)) && half(page, SPECIAL) <= page::BYTES
}

fn pointer(page: &[u8; page::BYTES], item: usize) -> u32 {
    let at = HEADER + item * POINTER;
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// Another last byte of the first row of a table's page, whose checksum is left as it was.
fn changed_row(page: &mut [u8; page::BYTES], _block: u32) -> bool {
    // The pages of tables are those without anything special at their end.
    if half(page, SPECIAL) != page::BYTES || half(page, LOWER) == HEADER {
        return false;
    }
    let row = pointer(page, 0);
    let end = (row & 0x7fff) as usize + (row >> 17) as usize;
    let is_row = row >> 15 & 3 == NORMAL && (HEADER + POINTER..=page::BYTES).contains(&end);
    if is_row {
        page[end - 1] ^= 1;
    }
    is_row
}

// What a B-tree keeps at the end of its pages (`nbtree.h`): neighbours, level, flags, and the cycle of a vacuum.
const BTREE_SPECIAL: usize = page::BYTES - 16;
const NEXT: usize = BTREE_SPECIAL + 4;
const FLAGS: usize = BTREE_SPECIAL + 12;
const CYCLE: usize = BTREE_SPECIAL + 14;
const LAST_CYCLE: usize = 0xff7f;
const LEAF: usize = 1;
/// What a leaf may be besides: the root.
const ROOT: usize = 2;

/// The last entry of a leaf is marked as one that points to nothing.
fn without_index_entry(page: &mut [u8; page::BYTES], block: u32) -> bool {
    if half(page, SPECIAL) != BTREE_SPECIAL || half(page, CYCLE) > LAST_CYCLE || half(page, FLAGS) & !ROOT != LEAF {
        return false;
    }
    let items = (half(page, LOWER) - HEADER) / POINTER;
    // Where there is a page to the right, the first item is the bound to it.
    let is_rightmost = page[NEXT..NEXT + 4] == [0; 4];
    let entries = items.saturating_sub(usize::from(!is_rightmost));
    if entries < 2 {
        return false;
    }
    let last = pointer(page, items - 1);
    if last >> 15 & 3 != NORMAL {
        return false;
    }
    let at = HEADER + (items - 1) * POINTER;
    page[at..at + POINTER].copy_from_slice(&(last | DEAD << 15).to_le_bytes());
    if half(page, CHECKSUM) != 0 {
        let fitting = page::checksum(page, block);
        page[CHECKSUM..CHECKSUM + 2].copy_from_slice(&fitting.to_le_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with two items at its end, before `special` bytes.
    fn page(special: usize) -> [u8; page::BYTES] {
        let mut page = [0; page::BYTES];
        let special = page::BYTES - special;
        let mut write = |at: usize, value: usize| {
            page[at..at + 2].copy_from_slice(&u16::try_from(value).expect("a half").to_le_bytes());
        };
        for (at, value) in [(LOWER, HEADER + 2 * POINTER), (UPPER, special - 64), (SPECIAL, special)] {
            write(at, value);
        }
        for item in 0..2_u32 {
            let place = u32::try_from(special).expect("a half") - 32 * (item + 1);
            let pointer = place | NORMAL << 15 | 32 << 17;
            let at = HEADER + item as usize * POINTER;
            page[at..at + POINTER].copy_from_slice(&pointer.to_le_bytes());
        }
        page
    }

    fn leaf(flags: u8, next: u8) -> [u8; page::BYTES] {
        let mut page = page(16);
        page[FLAGS] = flags;
        page[NEXT] = next;
        page[CHECKSUM] = 1;
        page
    }

    #[test]
    fn the_first_row_of_a_table_is_changed() {
        let (whole, mut changed) = (page(0), page(0));
        assert!(is_filled(&whole) && changed_row(&mut changed, 0));
        let different: Vec<usize> = (0..page::BYTES).filter(|at| whole[*at] != changed[*at]).collect();
        assert_eq!(different, [page::BYTES - 1]);
        assert!(!changed_row(&mut leaf(1, 0), 0), "an index is no table");
        assert!(!is_filled(&[0; page::BYTES]));
    }

    #[test]
    fn an_entry_of_an_index_is_forgotten_and_the_checksum_fits() {
        for flags in [1, 3] {
            let mut page = leaf(flags, 0);
            assert!(without_index_entry(&mut page, 7));
            assert_eq!((pointer(&page, 0) >> 15 & 3, pointer(&page, 1) >> 15 & 3), (NORMAL, DEAD));
            assert_eq!(half(&page, CHECKSUM), usize::from(page::checksum(&page, 7)));
        }
        // A page inside the tree, the page about it, a deleted one; one whose only entry it would be.
        for (flags, next) in [(0, 0), (8, 0), (5, 0), (1, 1)] {
            assert!(!without_index_entry(&mut leaf(flags, next), 7), "{flags} {next}");
        }
        let mut gist = leaf(1, 0);
        gist[CYCLE..].copy_from_slice(&0xff81_u16.to_le_bytes());
        assert!(!without_index_entry(&mut gist, 7) && !without_index_entry(&mut page(0), 7));
    }

    #[test]
    fn a_file_loses_its_name_and_the_tar_stays_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tar");
        let mut builder = tar::Builder::new(File::create_new(&path).expect("made"));
        for (name, content) in [
            ("data/17/base/5/16384", &page(0)[..]),
            ("data/17/base/5/1259", &page(0)[..]),
            ("data/17/pg_wal/000000010000000000000002", b"wal"),
            ("data/17/pg_wal/000000010000000000000003", b"wal"),
            ("data/17/pg_wal/archive_status/x", b""),
            ("config/backup_label", b"not the server's"),
        ] {
            let mut header = Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).expect("appended");
        }
        builder.finish().expect("finished");
        drop(builder);
        let file = File::options().read(true).write(true).open(&path).expect("opened");
        let names = || -> Vec<String> {
            let mut archive = Archive::new(File::open(&path).expect("opened"));
            let entries = archive.entries().expect("a tar");
            entries.map(|entry| entry.expect("an entry").path().expect("a name").display().to_string()).collect()
        };
        for change in [Change::LoseTable, Change::LoseWal] {
            let patches = spoil(&file, "/data/17", change).expect("read").expect("something");
            for patch in patches {
                file.write_all_at(&patch.bytes, patch.at as u64).expect("written");
            }
        }
        assert!(names().contains(&"data/17/base/5/1638~".to_owned()), "{:?}", names());
        assert!(names().contains(&"data/17/pg_wal/00000001000000000000000~".to_owned()), "{:?}", names());
        assert!(names().contains(&"data/17/pg_wal/000000010000000000000002".to_owned()), "{:?}", names());
        assert_eq!(spoil(&file, "/data/17", Change::LoseLabel).expect("read"), Err("the copy has none"));
        let nothing = spoil(&file, "/data/17", Change::IndexEntry).expect("read").expect_err("no index");
        assert!(nothing.contains("page"), "{nothing}");
    }
}
