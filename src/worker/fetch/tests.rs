use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::backup_set::block_index::{IndexWriter, block_digest, push_part};
use crate::backup_set::{Ancestor, Content, SetId};
use crate::pipeline::frames::FrameBytes;
use crate::pipeline::{Compression, Meter, compress};
use crate::storage::{FolderLocation, Location};
use crate::worker::ChainJob;

const PAGE: usize = SMALLEST_BLOCK as usize;
pub(in crate::worker) const TABLE: &str = "data/17/base/5/16384";
const WAL: &str = "data/17/pg_wal/000000010000000000000001";

pub(in crate::worker) fn files() -> BTreeMap<String, Vec<u8>> {
    let content = |bytes: usize, seed: usize| -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from((at * seed + at / PAGE) % 251).expect("small")).collect()
    };
    let long = format!("data/17/base/5/{}", "x".repeat(120));
    [
        ("config/mine.conf", content(18, 3)),
        ("data/17/PG_VERSION", content(3, 5)),
        (TABLE, content(5 * PAGE + 7, 7)),
        ("data/17/base/5/16384_vm", vec![]),
        (&long, content(PAGE, 11)),
        ("data/17/base/50", content(PAGE + 1, 13)),
        (WAL, content(4 * PAGE, 17)),
        ("data/17/zero", vec![]),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

/// Of which files an index has the blocks.
fn is_compared(name: &str) -> bool {
    name.starts_with("data/17") && name != WAL
}

/// A set with what it needs, in folders of this machine.
pub(in crate::worker) struct Stored {
    folder: tempfile::TempDir,
    pub(in crate::worker) job: FetchJob,
}

#[derive(Clone, Copy, PartialEq)]
pub(in crate::worker) enum Form {
    WithoutIndex,
    Full,
    Incremental,
}

fn id(day: u8) -> SetId {
    format!("202611{day}T023000Z-volume-k3x9qa").parse().expect("an id")
}

fn store(path: &Path, plain: &[u8], content: Content) -> Object {
    let compression = Compression {
        codec: "zstd:1".parse().expect("a codec"),
        threads: NonZeroUsize::MIN,
        frame_bytes: FrameBytes::new(5000).expect("a size"),
    };
    let mut file = File::create_new(path).expect("new");
    let stop = CancellationToken::new();
    let sealed = compress(&mut &*plain, &mut file, compression, None, &Meter::new(), &stop).expect("stored");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    Object { name, content, stored: sealed.stored, plain: sealed.plain, seconds: 0.0 }
}

/// Stores a copy of `files`. In an incremental one, every other block is the parent's.
pub(in crate::worker) fn stored(form: Form) -> Stored {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entries = 0;
    let mut add = |kind: EntryType, name: &str, target: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        entries += 1;
        match kind {
            EntryType::Regular | EntryType::Directory => tar.append_data(&mut header, name, content),
            _ => tar.append_link(&mut header, name, target),
        }
        .expect("memory");
    };
    add(EntryType::Directory, "data/17/pg_notify", "", &[]);
    for (name, content) in files() {
        add(EntryType::Regular, &name, "", &content);
    }
    add(EntryType::Link, "data/17/base/alias", TABLE, &[]);
    add(EntryType::Symlink, "data/17/pg_tblspc/16400", "/data/fast", &[]);
    let tar = tar.into_inner().expect("a tar");

    let folder = tempfile::tempdir().expect("a folder");
    let places = ["own", "parent"].map(|name| folder.path().join(name));
    for place in &places {
        std::fs::create_dir(place).expect("a folder");
    }
    let mut own = Vec::new();
    let mut lines = vec![Line::default()];
    let mut give = |parts: &mut Vec<Part>, bytes: &[u8], at: usize, number: usize| {
        let (source, offset) = match form {
            Form::Incremental if number % 2 == 1 => (1, at),
            _ => {
                own.extend_from_slice(bytes);
                (0, own.len() - bytes.len())
            }
        };
        push_part(parts, Part { source, offset: offset as u64, bytes: bytes.len() as u64 });
    };
    let mut at = 0;
    for entry in Archive::new(&tar[..]).entries().expect("a tar") {
        let entry = entry.expect("an entry");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        if entry.header().entry_type() != EntryType::Regular || !is_compared(&name) {
            continue;
        }
        let begins = usize::try_from(entry.raw_file_position()).expect("small");
        let ends = begins + usize::try_from(entry.size()).expect("small");
        let mut between = Line::default();
        give(&mut between.parts, &tar[at..begins], at, 0);
        let mut line = Line { path: Some(name), ..Line::default() };
        for (number, block) in tar[begins..ends].chunks(PAGE).enumerate() {
            line.blocks.push(block_digest(block));
            give(&mut line.parts, block, begins + number * PAGE, number);
        }
        lines.extend([between, line]);
        at = ends;
    }
    let mut between = Line::default();
    give(&mut between.parts, &tar[at..], at, 0);
    lines.push(between);
    let object = store(&places[0].join("volume.zst"), &own, Content::Facts);
    let parent = store(&places[1].join("volume.zst"), &tar, Content::Facts);

    let incremental = form == Form::Incremental;
    let sources = if incremental { vec![id(22), id(21)] } else { vec![id(22)] };
    let mut writer = IndexWriter::begin(Vec::new(), SMALLEST_BLOCK, sources).expect("memory");
    for line in &lines {
        writer.push(line).expect("memory");
    }
    let (text, tar_bytes) = writer.finish().expect("memory");
    assert_eq!(tar_bytes, tar.len() as u64);
    let index = store(&places[0].join("blocks.zst"), &text, Content::Blocks);
    let [place, beside] = places.map(|folder| FolderLocation { location: Location::Local { folder }, folder: None });
    let ancestor = Ancestor { set: id(21), name: parent.name, stored: parent.stored, plain: parent.plain };
    let chain = incremental.then(|| ChainJob { tar_bytes, index: index.clone(), ancestors: vec![(ancestor, beside)] });
    let tar = UnpackJob {
        place,
        object,
        volumes: vec!["/data".to_owned(), "/config".to_owned()],
        left_out: vec![],
        threads: 2,
        keys: None,
        chain,
        check: None,
        settle_in: None,
        excerpt: None,
    };
    let index = (form != Form::WithoutIndex).then_some(index);
    let to = folder.path().join("to");
    Stored { folder, job: FetchJob { tar, index, entries, names: vec![], to } }
}

impl Stored {
    /// What the tar is put together from.
    pub(in crate::worker) fn chain(&self) -> ChainJob {
        let FetchJob { tar, index, .. } = &self.job;
        let index = index.as_ref().expect("an index");
        let whole = || ChainJob { tar_bytes: tar.object.plain.bytes, index: index.clone(), ancestors: vec![] };
        tar.chain.clone().unwrap_or_else(whole)
    }

    /// What is written where `names` are asked for.
    fn fetch(&mut self, names: &[&str]) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
        self.job.names = names.iter().map(|name| name.parse().expect("a name")).collect();
        self.job.to = tempfile::tempdir_in(self.folder.path()).expect("a folder").keep();
        let (files, bytes) = fetch(&self.job, &Messages::new(CancellationToken::new()))?;
        let written = below(&self.job.to, &self.job.to);
        assert_eq!((files, bytes), (written.len(), written.values().map(|content| content.len() as u64).sum()));
        Ok(written)
    }

    /// Changes a byte in the first frame of an object.
    fn damage(&self, object: &str) {
        let path = self.folder.path().join(object);
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    }
}

fn below(folder: &Path, root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(below(&path, root));
        } else {
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path).expect("read"));
        }
    }
    files
}

#[test]
fn names_are_those_of_the_tar() {
    for (text, name) in [
        ("data/17/pg_hba.conf", "data/17/pg_hba.conf"),
        ("/data/17/", "data/17"),
        ("//data//17/./base", "data/17/base"),
        ("data/table spaces/fast", "data/table spaces/fast"),
    ] {
        assert_eq!(text.parse::<PathInCopy>().expect("a name").as_str(), name);
    }
    for text in ["", "/", ".", "./data", "..", "data/../etc/passwd", "/data/.."] {
        assert!(text.parse::<PathInCopy>().is_err(), "{text:?}");
    }
}

#[test]
fn a_folder_is_every_file_below_it_and_no_other() {
    let names = ["data/17/base/5", "data/17/PG_VERSION", "log"].map(|name| name.parse().expect("a name"));
    let mut wish = Wish::of(&names);
    let taken: BTreeSet<&str> = [
        "data/17/base/5/16384",
        "data/17/base/50",
        "data/17/base/51/1",
        "data/17/PG_VERSION",
        "data/17/PG_VERSION.old",
        "logs/x",
    ]
    .into_iter()
    .filter(|path| wish.takes(Path::new(path)))
    .collect();
    assert_eq!(taken, BTreeSet::from(["data/17/base/5/16384", "data/17/PG_VERSION"]));
    assert!(!wish.is_of_known_files());
    let missing = wish.is_fulfilled().expect_err("log is not there");
    assert!(missing.trouble == Trouble::Absent && missing.message.ends_with(": log"), "{}", missing.message);
}

#[test]
fn files_are_what_they_are_in_the_tar() {
    for form in [Form::WithoutIndex, Form::Full, Form::Incremental] {
        let mut stored = stored(form);
        let expected = |wanted: &dyn Fn(&str) -> bool| -> BTreeMap<String, Vec<u8>> {
            files().into_iter().filter(|(name, _)| wanted(name)).collect()
        };
        let mut fetch = |names: &[&str]| stored.fetch(names).expect("fetched");
        assert_eq!(fetch(&[TABLE, "data/17/zero"]), expected(&|name| name == TABLE || name == "data/17/zero"));
        assert_eq!(fetch(&["/data/17/base/5/"]), expected(&|name| name.starts_with("data/17/base/5/")));
        assert_eq!(fetch(&[WAL]), expected(&|name| name == WAL));
        assert_eq!(fetch(&["config", "config/mine.conf"]), expected(&|name| name.starts_with("config/")));
        let mut all = fetch(&["data", "config"]);
        // A file with two names is two files.
        let alias = all.remove("data/17/base/alias");
        assert!(alias.is_some() && alias == all.get(TABLE).cloned());
        assert_eq!(all, files());
        let failure = stored.fetch(&["data/17/base/alias"]).expect_err("the content has another name");
        assert!(failure.trouble == Trouble::Absent && failure.message.contains(TABLE), "{}", failure.message);
        for nothing in ["data/17/base/6", "data/17/pg_notify", "data/17/pg_tblspc/16400"] {
            let failure = stored.fetch(&[TABLE, nothing]).expect_err(nothing);
            assert!(failure.trouble == Trouble::Absent && failure.message.ends_with(nothing), "{}", failure.message);
            assert_eq!(std::fs::read_dir(&stored.job.to).expect("a folder").count(), 0, "nothing is written");
        }
    }
}

#[test]
fn damage_is_noticed_where_it_matters() {
    let mut stored = stored(Form::Incremental);
    // None of the blocks that the set has of its parent lies in the first frame.
    stored.damage("parent/volume.zst");
    stored.fetch(&[TABLE]).expect("what is damaged is not read");
    stored.damage("own/volume.zst");
    let failure = stored.fetch(&["data/17/PG_VERSION"]).expect_err("it is in the first frame");
    assert_eq!(failure.trouble, Trouble::Damaged, "{}", failure.message);
    std::fs::remove_file(stored.folder.path().join("parent/volume.zst")).expect("removed");
    let failure = stored.fetch(&[TABLE]).expect_err("its parent is gone");
    assert!(failure.trouble == Trouble::Damaged && failure.message.contains(id(21).as_str()), "{}", failure.message);
}

#[test]
fn bytes_of_another_object_are_not_content() {
    let mut stored = stored(Form::Incremental);
    // Intact, but not what was copied.
    let other = store(&stored.folder.path().join("parent/other.zst"), &[7; PAGE].repeat(10), Content::Facts);
    let (ancestor, _) = &mut stored.job.tar.chain.as_mut().expect("a chain").ancestors[0];
    (ancestor.name, ancestor.stored) = (other.name, other.stored);
    let failure = stored.fetch(&[TABLE]).expect_err("blocks differ");
    assert_eq!(
        (failure.trouble, failure.message),
        (Trouble::Damaged, format!("block 1 of {TABLE} is not what was copied"))
    );
}

#[test]
fn a_tar_that_has_fewer_entries_than_were_written_is_damaged() {
    let mut stored = stored(Form::Full);
    stored.job.entries += 1;
    stored.fetch(&[TABLE]).expect("nobody counts");
    assert_eq!(stored.fetch(&["data"]).expect_err("one is missing").trouble, Trouble::Damaged);
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let mut stored = stored(Form::Full);
    stored.job.tar.volumes = vec!["/config".to_owned()];
    for name in [TABLE, "data"] {
        let failure = stored.fetch(&[name]).expect_err("it is in no volume");
        assert!(failure.trouble == Trouble::Damaged && failure.message.contains("none of its volumes"));
    }
}
