//! What must hold of a set on its way into any store, whatever happens on the way, as tests: unit tests run it on a folder
//! and in memory, `tests/it` on a real S3 server.
//!
//! Every operation that the store is asked for fails once, in every way of [`Fault`]. After each: the sets that are listed
//! are exactly the committed ones, and each is whole; the next backup works; clearing leaves nothing behind.

use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use super::{Documents, commit_set};
use crate::backup_set::{Codec, Commit, Content, Manifest, SetLocation, example_manifest};
use crate::docker::Container;
use crate::encryption::{Keys, Recipients};
use crate::pipeline::frames::FrameBytes;
use crate::pipeline::seal::{measure, unseal_bytes};
use crate::pipeline::{Compression, Meter, Sealed, compress, decompress};
use crate::storage::faulty::{Action, Fault, FaultyStore};
use crate::storage::{Key, StorageError, Store};

/// A kind of store, and how the set is made that goes through it.
pub struct Trial<'a> {
    /// Gives an empty store of its own each time.
    pub make: &'a (dyn Fn() -> Arc<dyn Store> + Sync),
    /// Removes all that is no backup, however young: what `pglife repo gc` does.
    pub clear: &'a (dyn Fn(&dyn Store) + Sync),
    /// What the last object holds, beside a little text: more than one part of a store that works in parts.
    pub large_bytes: usize,
    /// How much is written at once.
    pub write_bytes: usize,
    /// How many faults are tried side by side.
    pub threads: usize,
}

const CUT: &str = "20261122T023000Z-dump-aaaaaa";
const NEXT: &str = "20261123T023000Z-dump-bbbbbb";

/// Goes through every operation and every way to fail; returns how many faults were tried. Panics where something does not
/// hold.
pub fn every_fault(trial: &Trial<'_>, sealed: bool) -> usize {
    let keys = sealed.then(Keys::ephemeral);
    let recipients =
        keys.as_ref().map(|keys| Recipients::new(keys.recipients().to_vec(), vec![]).expect("a recipient"));
    let scene = Scene { trial, keys: keys.as_ref(), recipients: recipients.as_ref() };
    let counting = FaultyStore::counting((trial.make)());
    let commit = scene.write(&counting, CUT, trial.large_bytes).expect("nothing fails");
    let operations = counting.done().len();
    scene.is_whole(&counting, &commit, trial.large_bytes);
    assert!(operations > 25, "{operations}");

    let faults = || Fault::ALL.into_iter().chain([Fault::Pretends]);
    let faults: Vec<(usize, Fault)> = (0..operations).flat_map(|at| faults().map(move |fault| (at, fault))).collect();
    let (next, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..trial.threads.max(1) {
            scope.spawn(|| {
                while let Some(&(at, fault)) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    tried.fetch_add(usize::from(scene.one_fault(at, fault)), Ordering::Relaxed);
                }
            });
        }
    });
    tried.into_inner()
}

struct Scene<'a> {
    trial: &'a Trial<'a>,
    keys: Option<&'a Keys>,
    recipients: Option<&'a Recipients>,
}

impl Scene<'_> {
    /// Lets operation number `at` fail. False if there was none: sealing is random, and may write in fewer pieces.
    fn one_fault(&self, at: usize, fault: Fault) -> bool {
        let store = (self.trial.make)();
        let faulty = FaultyStore::failing(Arc::clone(&store), at, fault);
        let ended = self.write(&faulty, CUT, self.trial.large_bytes);
        let Some(operation) = faulty.done().into_iter().nth(at) else { return false };
        let when = format!("{fault:?} at {at}, {operation}");
        let is_commit = operation.key.as_ref().is_some_and(|key| key.file_name() == "COMMIT");
        if fault == Fault::Pretends && is_commit && operation.action == Action::Write {
            // A COMMIT that is damaged: such a set is neither listed nor cleared.
            assert!(ended.is_err(), "{when}");
            return true;
        }
        let found = listed(&*store);
        match &ended {
            // A set is listed though its run failed only if it was the answer to COMMIT that was lost.
            Err(_) if found.is_empty() => {}
            Err(_) => assert!(is_commit, "{when}"),
            Ok(_) => assert_eq!(found.len(), 1, "{when}"),
        }
        for commit in &found {
            self.is_whole(&*store, commit, self.trial.large_bytes);
        }

        let next = self.write(&*store, NEXT, 0).unwrap_or_else(|error| panic!("{when}: {error}"));
        self.is_whole(&*store, &next, 0);
        (self.trial.clear)(&*store);
        let left = listed(&*store);
        let folders: Vec<String> = left.iter().map(|commit| commit.location().folder()).collect();
        assert_eq!(folders.len(), found.len() + 1, "{when}");
        for object in store.list(None).expect("listed") {
            let of_a_set = folders.iter().any(|folder| object.key.as_str().starts_with(folder));
            assert!(of_a_set || object.key.as_str() == "pglife-repo.json", "{when}: {} is left", object.key);
        }
        true
    }

    /// Writes a set as a backup does: the objects of a worker, then everything else and `COMMIT`.
    fn write(&self, store: &dyn Store, set: &str, large_bytes: usize) -> Result<Commit, Box<dyn std::error::Error>> {
        let mut manifest = example_manifest();
        manifest.set = set.parse().expect("an id");
        manifest.encryption = self.recipients.cloned();
        let location =
            SetLocation { cluster: manifest.cluster.clone(), lineage: manifest.lineage, id: manifest.set.clone() };
        let (meter, stop) = (Meter::new(), CancellationToken::new());
        let last = manifest.objects.len() - 1;
        for (number, object) in manifest.objects.iter_mut().enumerate() {
            if self.recipients.is_some() {
                object.name = format!("db/{number:04}.dump.zst.age");
            }
            let key = Key::new(location.key(&object.name)).expect("a key");
            let mut upload = BufWriter::with_capacity(self.trial.write_bytes, store.begin(&key)?);
            let bytes = content(number, if number == last { large_bytes } else { 0 });
            let sealed = compress(&mut &bytes[..], &mut upload, self.compression(), self.recipients, &meter, &stop)?;
            (object.plain, object.stored) = (sealed.plain, sealed.stored);
            upload.flush()?;
            let (upload, unwritten) = upload.into_parts();
            assert!(unwritten.expect("no panic").is_empty(), "it was flushed");
            upload.commit()?;
        }
        let recipe = super::recipe(&container(), &manifest).to_bytes();
        let documents = Documents::of(location, manifest, &recipe, None);
        commit_set(store, &documents)?;
        Ok(documents.commit)
    }

    fn compression(&self) -> Compression {
        // Small objects are of several frames, but a large one not of thousands.
        let frame_bytes = if self.trial.large_bytes == 0 { 6 << 10 } else { 1 << 20 };
        Compression {
            codec: Codec::default(),
            threads: NonZeroUsize::MIN,
            frame_bytes: FrameBytes::new(frame_bytes).expect("a frame size"),
        }
    }

    /// Every object of a committed set is there and is what was written, inside and out.
    fn is_whole(&self, store: &dyn Store, commit: &Commit, large_bytes: usize) {
        let location = commit.location();
        let key = |name: &str| Key::new(location.key(name)).expect("a key");
        let read = store.read_small(&key(&commit.naming().document("manifest.json")), 1 << 30);
        let stored = read.unwrap_or_else(|error| panic!("{error}"));
        commit.check_manifest(&stored).expect("its manifest");
        let plain = self.keys.map_or(stored.clone(), |keys| unseal_bytes(&stored, keys).expect("opened"));
        let manifest = Manifest::from_bytes(&plain).expect("a manifest");
        let (meter, stop) = (Meter::new(), CancellationToken::new());
        let mut databases = 0;
        for (number, object) in manifest.objects.iter().enumerate() {
            let opened = store.open(&key(&object.name)).expect("opened");
            assert_eq!(measure(&*opened, &meter, &stop).expect("read"), object.stored, "{}", object.name);
            if matches!(object.content, Content::Globals | Content::Database { .. }) {
                let expect = Sealed { plain: object.plain, stored: object.stored };
                let mut found = Vec::new();
                decompress(&*opened, Some(&expect), self.keys, &mut found, NonZeroUsize::MIN, &meter, &stop)
                    .expect("unpacked");
                assert!(found == content(number, if number == 3 { large_bytes } else { 0 }), "{}", object.name);
                databases += 1;
            }
        }
        assert_eq!(databases, 4);
    }
}

/// What a database gives: enough for several frames and several writes; `large_bytes` of it cannot be compressed.
fn content(number: usize, large_bytes: usize) -> Vec<u8> {
    let line = |row: usize| format!("{number}: row {row} of a table, {}\n", row.wrapping_mul(2_654_435_761));
    let mut bytes: Vec<u8> = (0..200).flat_map(|row| line(row).into_bytes()).collect();
    let text = bytes.len();
    bytes.resize(text + large_bytes, 0);
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes[text..]);
    bytes
}

/// The sets a store lists.
fn listed(store: &dyn Store) -> Vec<Commit> {
    let objects = store.list(None).expect("listed");
    let commits = objects.iter().filter(|object| object.key.file_name() == "COMMIT");
    commits
        .filter_map(|object| match store.read_small(&object.key, 1 << 20) {
            Ok(bytes) => Some(Commit::from_bytes(&bytes).expect("a commit")),
            Err(StorageError::NotFound { .. }) => None,
            Err(error) => panic!("{error}"),
        })
        .collect()
}

fn container() -> Container {
    Container {
        id: "c0ffee".to_owned(),
        name: "chado-db".to_owned(),
        image: "pglife/postgres:17".to_owned(),
        image_id: "sha256:0123".to_owned(),
        running: true,
        status: "running".to_owned(),
        ..Container::default()
    }
}
