//! Which files of a copy of volumes one table needs: a guess before there is a server, and its proof when there is one.
//!
//! ```text
//! pg_filenode.map ─▶ pg_class, pg_namespace: every row in their pages ─▶ the guess ─▶ unpacked ─▶ replay ─▶ what the server says ⊆ the guess?
//! ```
//! The copy has those files as they were while somebody wrote to them, and rows of transactions that never ended; so the guess has more
//! than is needed, and where the table was made or rewritten while the copy was made, it may have less. What the server says when it
//! has replayed its WAL is the truth, if its catalogue was among what was unpacked, and that is in what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use tar::Archive;

use crate::backup_set::block_index::{IndexReader, Part};
use crate::cluster::{DatabaseName, PgMajor};
use crate::pipeline::assemble;
use crate::postgres::catalog_page::{self, PG_CLASS, PG_NAMESPACE, Relation};
use crate::postgres::{self, Login, inspect, page};

use super::block_index::unreadable_index;
use super::fetch::between::Between;
use super::process::Line;
use super::unpack::chain::{Objects, index_text};
use super::unpack::excerpt::{FIRST_OF_USERS, LARGE_OBJECTS};
use super::volume::relations::Place;
use super::{
    Event, Excerpt, Failure, LocateJob, PartOfDatabase, TableName, Trouble, keys_for, pipeline_failure, storage_failure,
};

/// Does the job.
pub(super) fn run(job: &LocateJob, line: &Line) -> Result<Vec<String>, Failure> {
    let tar = &job.tar;
    let excerpt =
        tar.excerpt.as_ref().ok_or_else(|| Failure::new(Trouble::Request, "a table is looked for in an excerpt"))?;
    let folder = tar.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    let keys = keys_for(&tar.object, tar.keys.as_ref())?;
    let index = tar.chain.as_ref().map(|chain| index_text(tar, &chain.index, &folder, keys, line)).transpose()?;
    let objects = Objects::open(tar, &folder)?;
    let unsealed = objects.unsealed(keys)?;
    let sources = objects.sources(&unsealed)?;
    let unreadable = |error| pipeline_failure(&format!("reading {}", objects.names()), &error);
    let read = |parts: &[Part], sink: &mut dyn Write| {
        let parts = parts.iter().copied().map(Ok);
        assemble(&sources, parts, sink, tar.threads(), &line.meter, &line.stop).map(drop).map_err(unreadable)
    };
    let files = if let Some(text) = &index {
        Files::Indexed(text)
    } else {
        let whole = [(0, Part { source: 0, offset: 0, bytes: tar.object.plain.bytes })];
        let mut headers = Between::new(&sources, &whole, &line.meter, &line.stop);
        let walked = walk(&mut headers, excerpt);
        if let Some(error) = headers.failure {
            return Err(unreadable(error));
        }
        Files::Walked(walked?)
    };
    let mut seen = Seen::look(&files, excerpt, job.database, &BTreeSet::new())?;
    let mut map = Vec::new();
    read(&seen.map, &mut map)?;
    let mut guess = Guess::new(job.major, &job.table, &catalog_page::mapped(&map));
    for number in guess.files_of(PG_CLASS) {
        let parts = seen.parts(number, &files, excerpt, job.database)?;
        read(&parts, &mut Pages::new(|page| guess.see_relations(page)))?;
    }
    for number in guess.files_of(PG_NAMESPACE) {
        let parts = seen.parts(number, &files, excerpt, job.database)?;
        read(&parts, &mut Pages::new(|page| guess.see_schemas(page)))?;
    }
    let part = PartOfDatabase { database: job.database, files: guess.files() };
    let bytes = seen.bytes(&part);
    line.tell(&Event::Located { files: part.files, bytes });
    Ok(vec![])
}

/// Asks a server which files it has a table in, and its catalogue.
pub(super) async fn find_table(
    login: &Login,
    database: &DatabaseName,
    table: &TableName,
    line: &Line,
) -> Result<(), Failure> {
    let client = postgres::connect(login, database).await?;
    let found = inspect::find_table(&client, &table.schema, &table.name).await?;
    line.tell(&Event::Table(Box::new(found)));
    Ok(())
}

/// The files in a tar, as far as they are known by their names.
enum Files<'a> {
    /// By its block index.
    Indexed(&'a [u8]),
    /// By its headers: names, and where their content lies.
    Walked(Vec<(String, Part)>),
}

impl Files<'_> {
    /// Shows each file's name, where it has one, and where its content lies.
    fn each(&self, mut see: impl FnMut(Option<&str>, &[Part])) -> Result<(), Failure> {
        match self {
            Files::Indexed(text) => {
                for line in IndexReader::begin(*text).map_err(|error| unreadable_index(&error))? {
                    let line = line.map_err(|error| unreadable_index(&error))?;
                    see(line.path.as_deref(), &line.parts);
                }
            }
            Files::Walked(walked) => walked.iter().for_each(|(name, part)| see(Some(name), std::slice::from_ref(part))),
        }
        Ok(())
    }
}

fn walk(headers: &mut Between<'_>, excerpt: &Excerpt) -> Result<Vec<(String, Part)>, Failure> {
    let broken =
        |error: io::Error| Failure::from_error(Trouble::Damaged, "the headers of the tar cannot be read", &error);
    let mut walked = Vec::new();
    let mut entries = 0;
    for entry in Archive::new(headers).entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        entries += 1;
        let name = entry.path().map_err(broken)?.display().to_string();
        walked.push((name, Part { source: 0, offset: entry.raw_file_position(), bytes: entry.size() }));
    }
    if entries == excerpt.entries {
        return Ok(walked);
    }
    let what = format!("the tar has {entries} entries where they can be found, {} were written", excerpt.entries);
    Err(Failure::new(Trouble::Damaged, what))
}

/// What was seen of a database's files.
#[derive(Default)]
struct Seen {
    /// Where its `pg_filenode.map` lies.
    map: Vec<Part>,
    /// Where the main forks of relations lie of which rows may be read, by number.
    main: BTreeMap<u32, Vec<Part>>,
    /// Bytes of relations, by number.
    bytes: BTreeMap<u32, u64>,
    /// Bytes of whatever else an excerpt has.
    others: u64,
}

impl Seen {
    /// Looks at all files; of relations of the catalogue it notes where they lie, and of those in `also`.
    fn look(files: &Files<'_>, excerpt: &Excerpt, database: u32, also: &BTreeSet<u32>) -> Result<Self, Failure> {
        let mut seen = Self::default();
        files.each(|name, parts| {
            let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
            let inside = name.map(|name| excerpt.in_server(Path::new(name))).unwrap_or_default();
            if inside.iter().any(|file| is_map_of(database, file)) {
                seen.map.extend_from_slice(parts);
            }
            match inside.iter().find_map(|file| Place::of(file)) {
                Some(place) if excerpt.is_empty_at(&place) => {}
                Some(Place { database: of, file_number: number, .. }) if of == database => {
                    *seen.bytes.entry(number).or_default() += bytes;
                    let is_small = number < FIRST_OF_USERS && !LARGE_OBJECTS.contains(&number);
                    let is_main =
                        name.is_some_and(|name| !name.rsplit('/').next().is_some_and(|name| name.contains('_')));
                    if is_main && (is_small || also.contains(&number)) {
                        seen.main.entry(number).or_default().extend_from_slice(parts);
                    }
                }
                _ => seen.others += bytes,
            }
        })?;
        Ok(seen)
    }

    /// Where the main fork of a relation lies.
    fn parts(
        &mut self,
        number: u32,
        files: &Files<'_>,
        excerpt: &Excerpt,
        database: u32,
    ) -> Result<Vec<Part>, Failure> {
        if !self.main.contains_key(&number) && self.bytes.contains_key(&number) {
            self.main.extend(Self::look(files, excerpt, database, &[number].into())?.main);
        }
        Ok(self.main.get(&number).cloned().unwrap_or_default())
    }

    /// Bytes of an excerpt with `part` of the database.
    fn bytes(&self, part: &PartOfDatabase) -> u64 {
        self.others + self.bytes.iter().filter(|(number, _)| part.has(**number)).map(|(_, bytes)| bytes).sum::<u64>()
    }
}

/// True for the `pg_filenode.map` of a database; `file` is relative to the data directory.
fn is_map_of(database: u32, file: &str) -> bool {
    let beside = file.strip_suffix("pg_filenode.map").map(|folder| format!("{folder}1"));
    beside.and_then(|file| Place::of(&file)).is_some_and(|place| place.database == database)
}

/// Shows each page that is written to it.
struct Pages<F> {
    page: Vec<u8>,
    see: F,
}

impl<F: FnMut(&[u8; page::BYTES])> Pages<F> {
    fn new(see: F) -> Self {
        Self { page: Vec::with_capacity(page::BYTES), see }
    }
}

impl<F: FnMut(&[u8; page::BYTES])> Write for Pages<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = bytes.len().min(page::BYTES - self.page.len());
        self.page.extend_from_slice(&bytes[..some]);
        if let Ok(page) = self.page[..].try_into() {
            (self.see)(page);
            self.page.clear();
        }
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What rows of a catalogue say, of whatever version they are.
struct Guess<'a> {
    major: PgMajor,
    table: &'a TableName,
    /// File numbers of the catalogue, by oid: `pg_filenode.map`'s and `pg_class`'s.
    catalogue: BTreeSet<(u32, u32)>,
    /// Those of all sequences: a dump reads them, and they have a page each.
    sequences: BTreeSet<u32>,
    /// Tables of that name: oid, schema, file number, TOAST table.
    tables: BTreeSet<(u32, u32, u32, u32)>,
    /// TOAST tables and their indexes: oid, oid of the table by their name, file number.
    toasts: Vec<(u32, u32, u32)>,
    /// Schemas of that name.
    schemas: BTreeSet<u32>,
}

impl<'a> Guess<'a> {
    fn new(major: PgMajor, table: &'a TableName, mapped: &[(u32, u32)]) -> Self {
        Self {
            major,
            table,
            catalogue: mapped.iter().copied().collect(),
            sequences: BTreeSet::new(),
            tables: BTreeSet::new(),
            toasts: vec![],
            schemas: BTreeSet::new(),
        }
    }

    /// The file numbers of a relation of the catalogue.
    fn files_of(&self, oid: u32) -> Vec<u32> {
        self.catalogue.range((oid, 0)..=(oid, u32::MAX)).map(|(_, number)| *number).collect()
    }

    fn see_relations(&mut self, page: &[u8; page::BYTES]) {
        catalog_page::relations(page, self.major).for_each(|relation| self.see(&relation));
    }

    fn see(&mut self, relation: &Relation<'_>) {
        let &Relation { oid, name, schema, file_number, toast, kind } = relation;
        if file_number == 0 {
            return;
        }
        if oid < FIRST_OF_USERS {
            if !LARGE_OBJECTS.contains(&oid) {
                self.catalogue.insert((oid, file_number));
            }
        } else if kind == b'S' {
            self.sequences.insert(file_number);
        } else if kind == b'r' && name == self.table.name.as_bytes() {
            self.tables.insert((oid, schema, file_number, toast));
        } else if let Some(of) = toast_of(name) {
            self.toasts.push((oid, of, file_number));
        }
    }

    fn see_schemas(&mut self, page: &[u8; page::BYTES]) {
        let named = catalog_page::schemas(page).filter(|(_, name)| *name == self.table.schema.as_bytes());
        self.schemas.extend(named.map(|(oid, _)| oid));
    }

    /// The numbers of all files that are needed.
    fn files(&self) -> BTreeSet<u32> {
        let tables: Vec<_> = self.tables.iter().filter(|(_, schema, ..)| self.schemas.contains(schema)).collect();
        let is_theirs =
            |(oid, of, _): &&(u32, u32, u32)| tables.iter().any(|(table, _, _, toast)| of == table || oid == toast);
        let toasts = self.toasts.iter().filter(is_theirs).map(|(.., number)| *number);
        let catalogue = self.catalogue.iter().map(|(_, number)| *number);
        let of_tables = tables.iter().map(|(_, _, number, _)| *number);
        catalogue.chain(of_tables).chain(toasts).chain(self.sequences.iter().copied()).collect()
    }
}

/// The oid of the table that a TOAST table or its index is of: `pg_toast_16400`, `pg_toast_16400_index`.
fn toast_of(name: &[u8]) -> Option<u32> {
    let rest = std::str::from_utf8(name).ok()?.strip_prefix("pg_toast_")?;
    rest.strip_suffix("_index").unwrap_or(rest).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(oid: u32, name: &str, schema: u32, file_number: u32, toast: u32, kind: u8) -> Relation<'_> {
        Relation { oid, name: name.as_bytes(), schema, file_number, toast, kind }
    }

    #[test]
    fn a_table_needs_what_any_version_of_its_rows_names() {
        let table = TableName { schema: "shop".to_owned(), name: "lines".to_owned() };
        let major = "17".parse().expect("a major");
        let mut guess = Guess::new(major, &table, &[(PG_CLASS, 20000), (1249, 1249)]);
        assert_eq!(guess.files_of(PG_CLASS), [20000]);
        for relation in [
            relation(PG_CLASS, "pg_class", 11, 0, 0, b'r'),
            relation(PG_NAMESPACE, "pg_namespace", 11, 2615, 0, b'r'),
            relation(PG_NAMESPACE, "pg_namespace", 11, 20001, 0, b'r'),
            relation(2613, "pg_largeobject", 11, 20002, 0, b'r'),
            relation(16400, "lines", 2201, 16400, 16403, b'r'),
            relation(16400, "lines", 2201, 16500, 16403, b'r'),
            relation(16403, "pg_toast_16400", 99, 16501, 0, b't'),
            relation(16404, "pg_toast_16400_index", 99, 16502, 0, b'i'),
            relation(16405, "lines_pkey", 2201, 16405, 0, b'i'),
            relation(16406, "number", 2202, 16406, 0, b'S'),
            relation(16407, "lines", 2202, 16407, 16410, b'r'),
            relation(16410, "pg_toast_16407", 99, 16410, 0, b't'),
            relation(16411, "other", 2201, 16411, 0, b'r'),
            relation(16412, "lines", 2201, 0, 0, b'p'),
        ] {
            guess.see(&relation);
        }
        assert_eq!(guess.files_of(PG_NAMESPACE), [2615, 20001]);
        guess.schemas.insert(2201);
        let files: Vec<u32> = guess.files().into_iter().collect();
        assert_eq!(files, [1249, 2615, 16400, 16406, 16500, 16501, 16502, 20000, 20001]);
    }

    #[test]
    fn the_map_of_a_database_is_known_wherever_it_lies() {
        assert!(is_map_of(5, "base/5/pg_filenode.map") && is_map_of(7, "pg_tblspc/0/PG_17_1/7/pg_filenode.map"));
        assert!(!is_map_of(5, "base/50/pg_filenode.map") && !is_map_of(0, "base/5/pg_filenode.map"));
        assert!(!is_map_of(5, "base/5/pg_filenode.map.tmp") && !is_map_of(5, "base/5/1259"));
    }

    #[test]
    fn pages_are_seen_whole_however_they_come() {
        let mut seen = Vec::new();
        let mut pages = Pages::new(|page: &[u8; page::BYTES]| seen.push(page[0]));
        let bytes: Vec<u8> = [vec![1; page::BYTES], vec![2; page::BYTES], vec![3; 10]].concat();
        bytes.chunks(5000).try_for_each(|some| pages.write_all(some)).expect("memory");
        assert_eq!(seen, [1, 2]);
    }
}
