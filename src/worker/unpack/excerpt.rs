//! As much of a copy as a server needs to replay the WAL and to serve one of its databases.
//!
//! The files of the other databases' relations are made with the length they had, and hold nothing: replay finds them, and they need
//! no room. What they held is not read, where it can be told without reading it where that lies:
//!
//! ```text
//! with a block index:  the parts of all other files ─▶ assemble, checked ─▶ tar with holes ─▶ files
//! without:             header ─▶ file ─▶ header ─▶ seek ─▶ header …
//! ```
//! A server that was copied in backup mode writes every page in full into the WAL at its first change after the start of the copy
//! (PostgreSQL manual, Making a Base Backup Using the Low Level API), so that replay asks little of what the files held. Where it
//! does ask, it may be told to go on (`ignore_invalid_pages`); who does that must look of whose relations it complains.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tar::Archive;

use super::unpack;
use crate::backup_set::block_index::{IndexError, IndexReader, Line, Part};
use crate::storage::Folder;
use crate::worker::block_index::unreadable_index;
use crate::worker::fetch::between::Between;
use crate::worker::files::replace;
use crate::worker::process::Line as Messages;
use crate::worker::unpack::chain::Objects;
use crate::worker::volume::relations::Place;
use crate::worker::{Failure, Trouble, UnpackJob, keys_for, pipeline_failure};

/// What of a copy is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    /// The data directory, where the worker sees it.
    pub pgdata: String,
    /// The folders of tablespaces, in the copy.
    pub tablespaces: Vec<String>,
    /// Oids of the databases whose relations are only as long as they were.
    pub hollow: Vec<u32>,
    /// Entries in the tar.
    pub entries: u64,
    /// Settings of the server that is started on it, which win over all others.
    pub settings: String,
    /// Of one more database, which relations' files are whole; None: no other is hollow.
    #[serde(default)]
    pub part: Option<PartOfDatabase>,
}

/// Relations of a database, by the numbers of their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartOfDatabase {
    /// The oid of the database.
    pub database: u32,
    /// The numbers, beside those of the catalogue as `initdb` made it.
    pub files: BTreeSet<u32>,
}

/// The first number that no catalogue has at first (`FirstNormalObjectId`).
pub(in crate::worker) const FIRST_OF_USERS: u32 = 16384;
/// `pg_largeobject` and its index: part of the catalogue, and large.
pub(in crate::worker) const LARGE_OBJECTS: [u32; 2] = [2613, 2683];

impl PartOfDatabase {
    /// Whether the files of this number are whole. There is no number 0.
    pub fn has(&self, number: u32) -> bool {
        let is_of_catalogue = (1..FIRST_OF_USERS).contains(&number) && !LARGE_OBJECTS.contains(&number);
        is_of_catalogue || self.files.contains(&number)
    }
}

impl Excerpt {
    /// True for a file that is only as long as it was; `name` is that in the tar. What is not known for one is whole.
    pub fn is_hollow(&self, name: &Path) -> bool {
        self.in_server(name).iter().any(|inside| self.empties(inside))
    }

    /// What the server calls the file `name` of the tar, relative to its data directory; tablespaces all have the oid 0.
    pub(in crate::worker) fn in_server(&self, name: &Path) -> Vec<String> {
        let path = Path::new("/").join(name);
        let in_pgdata = path.strip_prefix(&self.pgdata).ok().map(Path::to_owned);
        let in_tablespaces = self.tablespaces.iter().filter_map(|folder| {
            let inside = path.strip_prefix(folder).ok()?;
            Some(Path::new("pg_tblspc/0").join(inside))
        });
        in_pgdata.into_iter().chain(in_tablespaces).filter_map(|inside| inside.to_str().map(str::to_owned)).collect()
    }

    /// True for a relation's file that is empty; `file` is relative to the data directory.
    fn empties(&self, file: &str) -> bool {
        Place::of(file).is_some_and(|place| self.is_empty_at(&place))
    }

    /// The same for the place of one.
    pub(in crate::worker) fn is_empty_at(&self, place: &Place) -> bool {
        let left_out = |part: &PartOfDatabase| part.database == place.database && !part.has(place.file_number);
        self.hollow.contains(&place.database) || self.part.as_ref().is_some_and(left_out)
    }

    /// True for a line of a log that names a relation whose content was there. Of the others a server may say what it likes.
    pub fn is_alarming(&self, line: &str) -> bool {
        let words = line.split(|letter: char| !(letter.is_ascii_alphanumeric() || "/_.".contains(letter)));
        let mut files = words.filter(|word| Place::of(word).is_some());
        files.any(|file| !self.empties(file))
    }

    /// True for a line of a block index whose content is not read.
    pub(super) fn leaves_out(&self, line: &Result<Line, IndexError>) -> bool {
        let path = line.as_ref().ok().and_then(|line| line.path.as_ref());
        path.is_some_and(|path| self.is_hollow(Path::new(path)))
    }

    /// The places in a tar whose content is not read, by its index.
    pub(super) fn holes(&self, lines: IndexReader<&[u8]>) -> Result<Vec<Range<u64>>, Failure> {
        let (mut holes, mut at) = (Vec::new(), 0);
        for line in lines {
            let left_out = self.leaves_out(&line);
            let end = at + line.map_err(|error| unreadable_index(&error))?.bytes();
            if left_out && end > at {
                holes.push(at..end);
            }
            at = end;
        }
        Ok(holes)
    }

    /// Adds the settings to those of `ALTER SYSTEM`: the last one is the one that counts.
    pub(super) fn set_settings(&self) -> io::Result<()> {
        let path = Path::new(&self.pgdata).join("postgresql.auto.conf");
        let mut text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        text.extend_from_slice(b"\n");
        text.extend_from_slice(self.settings.as_bytes());
        replace(&path, &text)
    }
}

/// Unpacks what is wanted of a tar that is one object without an index: from header to header.
pub(super) fn read_whole(job: &UnpackJob, excerpt: &Excerpt, folder: &Folder, line: &Messages) -> Result<(), Failure> {
    let keys = keys_for(&job.object, job.keys.as_ref())?;
    let objects = Objects::open(job, folder)?;
    let unsealed = objects.unsealed(keys)?;
    let sources = objects.sources(&unsealed)?;
    let whole = [(0, Part { source: 0, offset: 0, bytes: job.object.plain.bytes })];
    let mut tar = Between::new(&sources, &whole, &line.meter, &line.stop);
    let unpacked =
        Archive::new(&mut tar).entries_with_seek().map_err(super::broken).and_then(|found| unpack(found, job, line));
    if let Some(error) = &tar.failure {
        return Err(pipeline_failure(&format!("reading {}", objects.names()), error));
    }
    let entries = unpacked?;
    if entries == excerpt.entries {
        return Ok(());
    }
    let what = format!("the tar has {entries} entries where they can be found, {} were written", excerpt.entries);
    Err(Failure::new(Trouble::Damaged, what))
}

/// A tar of which some places were not read: zeros are there, and whoever skips them takes no time.
pub(super) struct Filled<R> {
    /// What was read, one after the other.
    source: R,
    /// The places in the tar that are still to come.
    holes: VecDeque<Range<u64>>,
    at: u64,
}

impl<R: Read> Filled<R> {
    pub(super) fn new(source: R, holes: Vec<Range<u64>>) -> Self {
        Self { source, holes: holes.into(), at: 0 }
    }

    /// How many bytes come before a hole begins, or before the one at hand ends; and whether there is one at hand.
    fn run(&mut self) -> (u64, bool) {
        while self.holes.front().is_some_and(|hole| hole.end <= self.at) {
            self.holes.pop_front();
        }
        match self.holes.front() {
            None => (u64::MAX, false),
            Some(hole) if hole.start > self.at => (hole.start - self.at, false),
            Some(hole) => (hole.end - self.at, true),
        }
    }
}

impl<R: Read> Read for Filled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (run, in_hole) = self.run();
        let some = usize::try_from(run).unwrap_or(usize::MAX).min(buffer.len());
        let some = if in_hole {
            buffer[..some].fill(0);
            some
        } else {
            self.source.read(&mut buffer[..some])?
        };
        self.at += some as u64;
        Ok(some)
    }
}

impl<R: Read> Seek for Filled<R> {
    /// Forward only.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        let to = to.filter(|to| *to >= self.at).ok_or(io::ErrorKind::InvalidInput)?;
        while self.at < to {
            let (run, in_hole) = self.run();
            let some = run.min(to - self.at);
            if !in_hole && io::copy(&mut (&mut self.source).take(some), &mut io::sink())? < some {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.at += some;
        }
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::worker::fetch::tests::{Form, TABLE, files, stored};
    use crate::worker::unpack::chain;

    fn excerpt(hollow: &[u32]) -> Excerpt {
        Excerpt {
            pgdata: "/data/17".to_owned(),
            tablespaces: vec!["/data/table spaces/fast".to_owned(), "/data/17/inside".to_owned()],
            hollow: hollow.to_vec(),
            entries: 0,
            settings: String::new(),
            part: None,
        }
    }

    #[test]
    fn of_a_database_in_part_the_catalogue_is_whole() {
        let part = PartOfDatabase { database: 16384, files: [16401, 16390].into() };
        let excerpt = Excerpt { part: Some(part), ..excerpt(&[16400]) };
        for whole in [
            "base/16384/1259",
            "base/16384/16383",
            "base/16384/16390_vm",
            "base/16384/16401.3",
            "base/16384/pg_filenode.map",
            "base/5/16402",
            "base/5/2613",
            "global/16402",
        ] {
            assert!(!excerpt.is_hollow(&Path::new("data/17").join(whole)), "{whole}");
            assert!(
                Place::of(whole).is_none() || excerpt.is_alarming(&format!("page 1 of relation {whole}")),
                "{whole}"
            );
        }
        for hollow in
            ["base/16384/16384", "base/16384/16402_fsm", "base/16384/2613.1", "base/16384/2683", "base/16400/16401"]
        {
            assert!(excerpt.is_hollow(&Path::new("data/17").join(hollow)), "{hollow}");
            assert!(!excerpt.is_alarming(&format!("page 1 of relation {hollow}")), "{hollow}");
        }
        assert!(!excerpt.part.expect("one").has(0));
    }

    #[test]
    fn only_relations_of_other_databases_are_hollow() {
        let excerpt = excerpt(&[16400, 16500]);
        let is_hollow = |name: &str| excerpt.is_hollow(Path::new(name));
        for name in [
            "data/17/base/16400/2619",
            "data/17/base/16400/2619_fsm",
            "data/17/base/16400/2619_vm.1",
            "data/17/base/16500/16385.12",
            "data/table spaces/fast/PG_17_202406281/16400/16401",
            "data/17/inside/PG_17_202406281/16400/16401_init",
            "data/17/pg_tblspc/16399/PG_17_202406281/16400/7",
        ] {
            assert!(is_hollow(name), "{name}");
        }
        for name in [
            "data/17/base/16384/2619",
            "data/17/base/16400",
            "data/17/base/16400/PG_VERSION",
            "data/17/base/16400/pg_filenode.map",
            "data/17/base/1640/2619",
            "data/17/global/16400",
            "data/17/global/1262",
            "data/17/pg_xact/16400",
            "data/17/PG_VERSION",
            "data/17/pg_wal/000000010000000000000001",
            "data/170/base/16400/2619",
            "data/16/base/16400/2619",
            "data/table spaces/fast/PG_17_202406281/16384/16401",
            "data/table spaces/fast/other/16400/16401",
            "data/table spaces/faster/PG_17_202406281/16400/16401",
            "config/base/16400/2619",
        ] {
            assert!(!is_hollow(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_of_the_database_that_is_wanted_is_hollow(
            wanted in 1..1000_u32,
            others in prop::collection::hash_set(1..1000_u32, 0..20),
            number in 1..100_000_u32,
            end in prop::sample::select(vec!["", "_fsm", "_vm", "_init", ".1", "_vm.3"]),
            database in 1..1000_u32,
        ) {
            let hollow: Vec<u32> = others.into_iter().filter(|other| *other != wanted).collect();
            let excerpt = excerpt(&hollow);
            for folder in ["data/17/base", "data/table spaces/fast/PG_17_202406281", "data/17/pg_tblspc/5/PG_17_1"] {
                let of = |database: u32| format!("{folder}/{database}/{number}{end}");
                prop_assert!(!excerpt.is_hollow(Path::new(&of(wanted))));
                prop_assert_eq!(excerpt.is_hollow(Path::new(&of(database))), hollow.contains(&database));
            }
        }
    }

    #[test]
    fn a_server_may_complain_of_what_is_hollow_and_of_nothing_else() {
        let excerpt = excerpt(&[16400]);
        for line in [
            "2026-11-28 02:00:00.000 UTC [27] WARNING:  page 0 of relation base/16400/2619 is uninitialized",
            "WARNUNG:  Seite 3 der Relation pg_tblspc/16399/PG_17_202406281/16400/16401_vm existiert nicht",
            "WARNING:  WAL contains references to invalid pages",
            "LOG:  redo done at 0/3000120 system usage: CPU: user: 0.00 s, system: 0.00 s, elapsed: 0.00 s",
            "LOG:  could not open /data/base",
        ] {
            assert!(!excerpt.is_alarming(line), "{line}");
        }
        for line in [
            "WARNING:  page 0 of relation base/16384/2619 is uninitialized",
            "WARNING:  page 0 of relation pg_tblspc/16399/PG_17_202406281/16384/16401 does not exist",
            "WARNING:  page 1 of relation global/1262 does not exist",
            "WARNING:  page 1 of relation base/16400/7 does not exist, page 2 of relation \"base/5/7\" neither",
        ] {
            assert!(excerpt.is_alarming(line), "{line}");
        }
    }

    /// The tar as it is put together, and how many plain and stored bytes were read for it.
    fn tar(form: Form, hollow: Option<&[u32]>) -> (Vec<u8>, u64, u64) {
        let mut stored = stored(form);
        stored.job.tar.excerpt = hollow.map(excerpt);
        let line = Messages::new(CancellationToken::new());
        let folder = stored.job.tar.place.open().expect("a folder");
        let mut read = Vec::new();
        assert!(chain::read(&stored.job.tar, &stored.chain(), &folder, &mut read, &line).is_ok());
        let text = chain::index_text(&stored.job.tar, &stored.chain().index, &folder, None, &line).expect("an index");
        let lines = IndexReader::begin(&text[..]).expect("an index");
        let holes = stored.job.tar.excerpt.as_ref().map_or(vec![], |excerpt| excerpt.holes(lines).expect("an index"));
        let mut tar = Vec::new();
        io::copy(&mut Filled::new(&read[..], holes.clone()), &mut tar).expect("memory");
        // Whoever skips them reads the same of the rest.
        let mut skips = Filled::new(&read[..], holes.clone());
        for hole in &holes {
            skips.seek(SeekFrom::Start(hole.start.saturating_sub(3))).expect("it is there");
            let mut some = [1; 5];
            skips.read_exact(&mut some).expect("it is there");
            let from = usize::try_from(hole.start - 3).expect("small");
            assert_eq!(some, tar[from..from + 5]);
            skips.seek(SeekFrom::Start(hole.end)).expect("it is there");
        }
        assert!(
            skips.seek(SeekFrom::Start(tar.len() as u64 + 1)).is_err() && skips.seek(SeekFrom::Current(-1)).is_err()
        );
        (tar, line.meter.plain(), line.meter.stored())
    }

    #[test]
    fn what_is_hollow_is_zeros_and_the_rest_as_it_was() {
        for form in [Form::Full, Form::Incremental] {
            let (whole, plain, stored) = tar(form, None);
            assert_eq!(tar(form, Some(&[])), (whole.clone(), plain, stored));
            let (part, plain_of_part, stored_of_part) = tar(form, Some(&[5]));
            assert_eq!(part.len(), whole.len());
            assert_eq!(plain - plain_of_part, files()[TABLE].len() as u64);
            assert!(stored_of_part < stored, "{stored_of_part} {stored}");
            let (mut hollow, mut same) = (0, 0);
            let read = |bytes: &[u8]| -> Vec<(String, Vec<u8>)> {
                let mut archive = Archive::new(bytes);
                let entries = archive.entries().expect("a tar").map(|entry| {
                    let mut entry = entry.expect("an entry");
                    let name = entry.path().expect("a name").display().to_string();
                    let mut content = Vec::new();
                    io::copy(&mut entry, &mut content).expect("memory");
                    (name, content)
                });
                entries.collect()
            };
            for ((name, before), (also, after)) in read(&whole).into_iter().zip(read(&part)) {
                assert_eq!(name, also);
                if excerpt(&[5]).is_hollow(Path::new(&name)) {
                    assert_eq!(after, vec![0; before.len()], "{name}");
                    hollow += 1;
                } else {
                    assert_eq!(before, after, "{name}");
                    same += 1;
                }
            }
            assert!(hollow >= 2 && same >= files().len() - hollow, "{hollow} {same}");
        }
    }
}
