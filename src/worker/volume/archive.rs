//! The tar as it is written: headers, padding, and the promise of a header kept whatever becomes of the file.
//!
//! The format is POSIX.1-2001 (pax): a ustar header, with an extended header before it where a name is long, a file large, or where it
//! has extended attributes. A
//! header is written before its file is read, and the file of a running server may shrink or grow meanwhile: what is more than was
//! promised is cut, what is less is filled with zeros. Replay of the WAL repairs both.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

use tar::{EntryType, Header};

use crate::pipeline::handover::Giver;
use crate::worker::attributes::Attribute;

/// Bytes in a block of a tar.
pub(super) const BLOCK: usize = 512;
/// Bytes that a name in an ordinary header may have.
const SHORT: usize = 100;
/// The first size that an ordinary header does not hold: 8 GiB.
const LARGE: u64 = 1 << 33;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A folder; its name ends with a slash in the tar.
    Folder,
    /// A file, with the bytes it is promised to have.
    File(u64),
    /// A symbolic link, and where it leads.
    Symlink(&'a [u8]),
    /// Another name of a file that came before, by its name in the tar.
    HardLink(&'a [u8]),
}

/// Whose an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits, set-user-id and the like included.
    pub(super) mode: u32,
    /// In seconds; before 1970 there is nothing.
    pub(super) mtime: u64,
}

impl From<&std::fs::Metadata> for Owner {
    fn from(metadata: &std::fs::Metadata) -> Self {
        Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            mtime: u64::try_from(metadata.mtime()).unwrap_or_default(),
        }
    }
}

/// The blocks that come before the content of an entry.
pub(super) fn header(name: &[u8], owner: Owner, kind: Kind<'_>, attributes: &[Attribute]) -> Vec<u8> {
    let mut name = name.to_vec();
    if kind == Kind::Folder && !name.ends_with(b"/") {
        name.push(b'/');
    }
    let (entry_type, size, target) = match kind {
        Kind::Folder => (EntryType::Directory, 0, &[][..]),
        Kind::File(size) => (EntryType::Regular, size, &[][..]),
        Kind::Symlink(target) => (EntryType::Symlink, 0, target),
        Kind::HardLink(target) => (EntryType::Link, 0, target),
    };
    let mut records = Vec::new();
    if name.len() > SHORT {
        records.extend(record("path", &name));
    }
    if target.len() > SHORT {
        records.extend(record("linkpath", target));
    }
    if size >= LARGE {
        records.extend(record("size", size.to_string().as_bytes()));
    }
    for (key, value) in attributes.iter().filter_map(Attribute::record) {
        records.extend(record(&key, value));
    }
    let mut blocks = Vec::new();
    if !records.is_empty() {
        // For readers that do not know the extension it is a file of this name.
        let extended = Owner { mode: 0o600, ..owner };
        let size = records.len() as u64;
        blocks.extend_from_slice(&block(b"PaxHeaders/extended", extended, EntryType::XHeader, size, &[]));
        blocks.append(&mut records);
        blocks.resize(blocks.len() + padding(size), 0);
    }
    blocks.extend_from_slice(&block(&name, owner, entry_type, size, target));
    blocks
}

fn block(name: &[u8], owner: Owner, entry_type: EntryType, size: u64, target: &[u8]) -> [u8; BLOCK] {
    let mut header = Header::new_ustar();
    let short = |text: &[u8]| text.len().min(SHORT);
    header.as_old_mut().name[..short(name)].copy_from_slice(&name[..short(name)]);
    header.as_old_mut().linkname[..short(target)].copy_from_slice(&target[..short(target)]);
    header.set_entry_type(entry_type);
    header.set_uid(owner.uid.into());
    header.set_gid(owner.gid.into());
    header.set_mode(owner.mode);
    header.set_mtime(owner.mtime);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

/// A record of an extended header: its own length, which counts its own digits, a key and a value.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3; // a space, an equals sign, the end of the line
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// Zeros that fill the last block of `size` bytes.
pub(super) fn padding(size: u64) -> usize {
    let rest = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    (BLOCK - rest) % BLOCK
}

/// Why an entry was not written.
#[derive(Debug)]
pub(super) enum Broken {
    /// The other end of the pipeline is gone, and knows why.
    Gone,
    /// The file cannot be read.
    Unreadable(io::Error),
}

/// Writes the content of a file: `promised` bytes, whatever the source has; [`padding`] comes after it. `see` is shown the content as it is in
/// the tar.
pub(super) fn content(
    source: &mut dyn Read,
    promised: u64,
    out: &mut Giver,
    see: &mut dyn FnMut(&[u8]),
) -> Result<(), Broken> {
    // Whether reading or handing over failed, is known here only by who spoke.
    let mut unreadable = None;
    let mut rest = promised;
    while rest > 0 {
        let mut source = Telling { source, failure: &mut unreadable };
        match out.pass(&mut source, rest, see) {
            Ok(0) => break,
            Ok(read) => rest -= read as u64,
            Err(_) => return Err(unreadable.map_or(Broken::Gone, Broken::Unreadable)),
        }
    }
    let zeros = [0; 8 << 10];
    while rest > 0 {
        let some = &zeros[..usize::try_from(rest).unwrap_or(zeros.len()).min(zeros.len())];
        see(some);
        out.write_all(some).map_err(|_| Broken::Gone)?;
        rest -= some.len() as u64;
    }
    Ok(())
}

/// A source that keeps the error it failed with.
struct Telling<'a> {
    source: &'a mut dyn Read,
    failure: &'a mut Option<io::Error>,
}

impl Read for Telling<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                *self.failure = Some(error);
            }
            kind.into()
        })
    }
}

/// The end of a tar.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::handover::handover;

    const OWNER: Owner = Owner { uid: 999, gid: 999, mode: 0o2750, mtime: 1_700_000_000 };

    /// What a stock reader of tars sees: name, type, size, target, content.
    type Seen = (Vec<u8>, EntryType, u64, Option<Vec<u8>>, Vec<u8>);

    fn read_back(archive: &[u8]) -> Vec<Seen> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().expect("a tar");
        entries
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("its content");
                let header = entry.header();
                assert_eq!((header.uid().ok(), header.gid().ok()), (Some(999), Some(999)));
                assert_eq!((header.mode().ok(), header.mtime().ok()), (Some(0o2750), Some(1_700_000_000)));
                (
                    entry.path_bytes().into_owned(),
                    header.entry_type(),
                    entry.size(),
                    entry.link_name_bytes().map(std::borrow::Cow::into_owned),
                    content,
                )
            })
            .collect()
    }

    /// A tar with one file, which promised one size and has another.
    fn archive_of(name: &[u8], promised: u64, source: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut giver, mut taker) = handover();
        let mut seen = Vec::new();
        giver.write_all(&header(name, OWNER, Kind::File(promised), &[])).expect("given");
        content(&mut &source[..], promised, &mut giver, &mut |bytes| seen.extend_from_slice(bytes)).expect("given");
        giver.write_all(&[0; BLOCK][..padding(promised)]).expect("given");
        giver.write_all(&END).expect("given");
        giver.finish().expect("ended");
        let mut archive = Vec::new();
        taker.read_to_end(&mut archive).expect("all of it");
        (archive, seen)
    }

    #[test]
    fn every_kind_reads_back() {
        let long = [b"data/17/".to_vec(), vec![b'x'; 200]].concat();
        let mut archive = header(b"data/17", OWNER, Kind::Folder, &[]);
        archive.extend(header(&long, OWNER, Kind::Symlink(&long), &[]));
        archive.extend(header(b"data/l", OWNER, Kind::HardLink(b"data/\xC3\x9C"), &[]));
        archive.extend(END);
        let seen = read_back(&archive);
        let expected: [Seen; 3] = [
            (b"data/17/".to_vec(), EntryType::Directory, 0, None, vec![]),
            (long.clone(), EntryType::Symlink, 0, Some(long), vec![]),
            (b"data/l".to_vec(), EntryType::Link, 0, Some(b"data/\xC3\x9C".to_vec()), vec![]),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn large_files_have_their_size() {
        let blocks = header(b"data/large", OWNER, Kind::File(LARGE), &[]);
        assert!(blocks.windows(19).any(|part| part == b"19 size=8589934592\n"), "{}", String::from_utf8_lossy(&blocks));
        assert_eq!(header(b"data/small", OWNER, Kind::File(LARGE - 1), &[]).len(), BLOCK);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_promise_is_kept(promised in 0..200_000_u64, has in 0..200_000_usize, name in "[a-zÜ/]{1,160}") {
            let source: Vec<u8> = (0..has).map(|at| u8::try_from(at % 250).expect("small") + 1).collect();
            let (archive, shown) = archive_of(name.as_bytes(), promised, &source);
            prop_assert_eq!(archive.len() % BLOCK, 0);
            let seen = read_back(&archive);
            prop_assert_eq!(seen.len(), 1);
            let (found, _, size, _, content) = &seen[0];
            prop_assert_eq!(found.as_slice(), name.as_bytes());
            prop_assert_eq!(*size, promised);
            let mut expected = source;
            expected.resize(usize::try_from(promised).expect("small"), 0);
            prop_assert!(*content == expected && shown == expected);
        }

        #[test]
        fn records_count_themselves(value in "[a-z]{1,2000}") {
            let record = record("path", value.as_bytes());
            let text = String::from_utf8(record.clone()).expect("text");
            let (length, _) = text.split_once(' ').expect("a length");
            prop_assert_eq!(length.parse::<usize>().expect("a number"), record.len());
        }
    }
}
