//! Repositories in real folders.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::local::LocalStore;
use super::*;
use crate::exit::Exit;

fn store() -> (TempDir, LocalStore) {
    let root = tempfile::tempdir().expect("a folder");
    let store = LocalStore::at(root.path());
    (root, store)
}

fn at(folder: impl Into<PathBuf>) -> Location {
    Location::Local { folder: folder.into() }
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn keys(store: &LocalStore) -> Vec<String> {
    store.list(None).expect("listed").into_iter().map(|listed| listed.key.into()).collect()
}

/// Every name under a folder, unfinished uploads and empty folders included.
fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        if path.is_dir() {
            names.extend(self::names(&path));
        }
    }
    names
}

#[test]
fn an_object_reads_back_as_written() {
    let (_root, store) = store();
    let key = key("chado/7301-17/sets/x/db/we ird.dump.zst");
    let mut upload = store.begin(&key).expect("begun");
    upload.write_all(b"first ").expect("written");
    upload.write_all(b"second").expect("written");
    upload.commit().expect("committed");

    assert_eq!(store.head(&key).expect("there"), Listed { key: key.clone(), bytes: 12 });
    assert_eq!(store.read_small(&key, 12).expect("read"), b"first second");
    let object = store.open(&key).expect("opened");
    assert_eq!(object.size(), 12);
    let mut middle = [0; 5];
    object.read_exact_at(&mut middle, 4).expect("read");
    assert_eq!(&middle, b"t sec");
    let beyond = object.read_exact_at(&mut middle, 8).expect_err("beyond the end");
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn an_upload_is_not_there_before_its_commit_nor_after_its_end_without() {
    let (root, store) = store();
    let key = key("a/b/object");
    let begin = || {
        let mut upload = store.begin(&key).expect("begun");
        upload.write_all(b"bytes").expect("written");
        assert_eq!(keys(&store), [""; 0]);
        assert!(matches!(store.head(&key), Err(StorageError::NotFound { .. })));
        assert!(matches!(store.open(&key), Err(StorageError::NotFound { .. })));
        upload
    };
    drop(begin());
    assert_eq!(keys(&store), [""; 0]);
    assert!(names(root.path()).iter().all(|name| name == "a" || name == "b"));

    begin().abort().expect("aborted");
    assert_eq!(names(root.path()), [""; 0], "an aborted upload leaves no folder either");

    // A process that is killed drops nothing.
    std::mem::forget(begin());
    assert_eq!(keys(&store), [""; 0]);
    assert_eq!(names(root.path()).len(), 3);
    let hour = Duration::from_secs(3600);
    assert_eq!(store.sweep_unfinished(None, SystemTime::now() - hour).expect("swept"), 0, "it may still be running");
    assert_eq!(store.sweep_unfinished(None, SystemTime::now() + hour).expect("swept"), 1);
    assert_eq!(names(root.path()), [""; 0], "its folders go with it");

    // So does what a deletion leaves that is killed after the last object.
    std::fs::create_dir_all(root.path().join("c/d/e")).expect("made");
    assert_eq!(store.sweep_unfinished(None, SystemTime::now() - hour).expect("swept"), 0);
    assert_eq!(names(root.path()).len(), 3, "somebody may be about to write there");
    assert_eq!(store.sweep_unfinished(None, SystemTime::now() + hour).expect("swept"), 0);
    assert_eq!(names(root.path()), [""; 0]);

    begin().commit().expect("committed");
    assert_eq!(keys(&store), ["a/b/object"]);
    assert_eq!(store.sweep_unfinished(None, SystemTime::now() + hour).expect("swept"), 0);
}

#[test]
fn an_object_is_never_overwritten() {
    let (root, store) = store();
    let key = key("COMMIT");
    let mut late = store.begin(&key).expect("begun");
    late.write_all(b"late").expect("written");
    store.put(&key, b"first").expect("stored");
    let error = late.commit().expect_err("the key is taken");
    assert!(matches!(error, StorageError::AlreadyExists { .. }), "{error}");
    assert!(matches!(store.put(&key, b"again"), Err(StorageError::AlreadyExists { .. })));
    assert_eq!(store.read_small(&key, 100).expect("read"), b"first");
    assert_eq!(names(root.path()), ["COMMIT"]);
}

#[test]
fn of_many_uploads_to_one_key_one_wins() {
    let (_root, store) = store();
    let key = key("a/object");
    let wins = thread::scope(|scope| {
        let uploads: Vec<_> = (0..8_u8)
            .map(|byte| {
                scope.spawn({
                    let (store, key) = (&store, &key);
                    move || store.put(key, &[byte; 100]).is_ok()
                })
            })
            .collect();
        uploads.into_iter().map(|upload| upload.join().expect("no panic")).filter(|won| *won).count()
    });
    assert_eq!(wins, 1);
    let bytes = store.read_small(&key, 100).expect("read");
    assert_eq!(bytes, vec![bytes[0]; 100]);
}

#[test]
fn folders_that_vanish_beside_an_upload_do_not_harm_it() {
    let (_root, store) = store();
    thread::scope(|scope| {
        for name in ["x", "y"] {
            let store = &store;
            scope.spawn(move || {
                for round in 0..300 {
                    let key = key(&format!("deep/er/folder/{name}{round}"));
                    store.put(&key, b"bytes").expect("stored");
                    store.delete(&key).expect("deleted");
                }
            });
        }
    });
    assert_eq!(keys(&store), [""; 0]);
}

#[test]
fn objects_are_listed_in_the_order_of_their_keys() {
    let (root, store) = store();
    for text in ["b/x", "a-b/x", "a/b/c", "a.x", "a/b.c", "z"] {
        store.put(&key(text), text.as_bytes()).expect("stored");
    }
    fs::create_dir(root.path().join("lost+found")).expect("made");
    fs::set_permissions(root.path().join("lost+found"), Permissions::from_mode(0o000)).expect("set");
    symlink(root.path(), root.path().join("loop")).expect("linked");
    assert_eq!(keys(&store), ["a-b/x", "a.x", "a/b.c", "a/b/c", "b/x", "z"]);
    let inside = store.list(Some(&key("a"))).expect("listed");
    assert_eq!(inside, [Listed { key: key("a/b.c"), bytes: 5 }, Listed { key: key("a/b/c"), bytes: 5 }]);
    assert_eq!(store.list(Some(&key("nothing/here"))).expect("listed"), []);
    assert_eq!(store.list(Some(&key("z"))).expect("listed"), [], "an object is no folder");
}

#[test]
fn a_deletion_takes_empty_folders_along_but_not_the_root() {
    let (root, store) = store();
    store.put(&key("a/b/c/one"), b"1").expect("stored");
    store.put(&key("a/two"), b"2").expect("stored");
    store.delete(&key("a/b/c/one")).expect("deleted");
    assert_eq!(names(root.path()).len(), 2);
    for absent in ["a/b/c/one", "a", "a/two/three"] {
        let error = store.delete(&key(absent)).expect_err("no object");
        assert!(matches!(error, StorageError::NotFound { .. }), "{error}");
        assert_eq!(error.exit(), Exit::NotFound);
    }
    store.delete(&key("a/two")).expect("deleted");
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn a_folder_is_no_object_and_an_object_no_folder() {
    let (_root, store) = store();
    store.put(&key("a/b"), b"1").expect("stored");
    assert!(matches!(store.open(&key("a")), Err(StorageError::NotFound { .. })));
    assert!(matches!(store.head(&key("a")), Err(StorageError::NotFound { .. })));
    assert!(store.put(&key("a/b/c"), b"2").is_err());
    assert!(store.put(&key("a"), b"2").is_err());
    assert_eq!(keys(&store), ["a/b"]);
}

#[test]
fn an_object_that_is_too_large_is_not_read() {
    let (_root, store) = store();
    store.put(&key("manifest.json"), &[0; 101]).expect("stored");
    let error = store.read_small(&key("manifest.json"), 100).expect_err("too large");
    assert!(matches!(error, StorageError::TooLarge { bytes: 101, limit: 100, .. }), "{error}");
}

#[test]
fn files_and_folders_have_the_modes_and_the_owner_of_the_repository() {
    let (root, store) = store();
    // Tests run as root, as workers do; then the owner of the root folder is handed down.
    assert!(rustix::process::geteuid().is_root(), "this test needs root: workers run as root");
    std::os::unix::fs::chown(root.path(), Some(1234), Some(5678)).expect("chowned");
    store.put(&key("a/b/object"), b"x").expect("stored");
    for (name, mode) in [("a", 0o750), ("a/b", 0o750), ("a/b/object", 0o640)] {
        let metadata = fs::metadata(root.path().join(name)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678), "{name}");
    }
}

#[test]
fn a_missing_root_is_told_from_a_missing_object() {
    let (root, store) = store();
    let lost = LocalStore::at(root.path().join("not mounted"));
    let object = key("a/b");
    let errors = [
        lost.begin(&object).map(drop),
        lost.put(&object, b"x"),
        lost.open(&object).map(drop),
        lost.head(&object).map(drop),
        lost.read_small(&object, 1).map(drop),
        lost.list(None).map(drop),
        lost.list(Some(&object)).map(drop),
        lost.delete(&object),
        lost.sweep_unfinished(None, SystemTime::now()).map(drop),
        lost.free_bytes().map(drop),
    ];
    for error in errors {
        let error = error.expect_err("no root");
        assert!(matches!(error, StorageError::Missing { .. }), "{error}");
        assert_eq!(error.exit(), Exit::Repository);
    }
    assert!(store.free_bytes().expect("a file system") > Some(0));
}

#[test]
fn a_failed_write_says_why_and_spoils_the_upload() {
    let full = |raw| {
        let source = io::Error::from_raw_os_error(raw);
        StorageError::writing("write", Path::new("/repo/a"), source, || 17)
    };
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let error = full(errno.raw_os_error());
        assert!(matches!(error, StorageError::Full { free: 17, .. }), "{error}");
        assert_eq!(error.exit(), Exit::Failed);
    }
    for errno in [rustix::io::Errno::ROFS, rustix::io::Errno::ACCESS, rustix::io::Errno::PERM] {
        let error = full(errno.raw_os_error());
        assert!(matches!(error, StorageError::ReadOnly { .. }), "{error}");
        assert_eq!(error.exit(), Exit::Repository);
    }
}

#[test]
fn a_repository_is_made_once_and_opened_again() {
    let parent = tempfile::tempdir().expect("a folder");
    let root = parent.path().join("var/backups");
    let made = Repository::init(&at(&root)).expect("made");
    assert_eq!(Repository::init(&at(&root)).expect("opened").id(), made.id());
    assert_eq!(Repository::open(&at(&root)).expect("opened").id(), made.id());
    made.store().check_writable().expect("writable");
    made.store().put(&key("a/b"), b"x").expect("stored");
    assert_eq!(
        Repository::init(&at(&root)).expect("opened").id(),
        made.id(),
        "a repository in use is no foreign folder"
    );
    let marker = fs::read_to_string(root.join("pglife-repo.json")).expect("read");
    assert_eq!(marker, format!("{{\"version\":1,\"id\":\"{}\"}}\n", made.id()));
    assert_ne!(Repository::init(&at(parent.path().join("other"))).expect("made").id(), made.id());
}

#[test]
fn what_is_no_repository_is_refused_each_for_its_reason() {
    let parent = tempfile::tempdir().expect("a folder");
    let root = parent.path();
    let missing = Repository::open(&at(root.join("missing"))).expect_err("missing");
    assert!(matches!(missing, StorageError::Missing { .. }), "{missing}");
    assert!(!root.join("missing").exists());

    let empty = Repository::open(&at(root)).expect_err("no marker");
    assert!(matches!(&empty, StorageError::NotARepository { .. }), "{empty}");
    assert!(empty.to_string().contains("is not mounted"), "{empty}");

    fs::write(root.join("somebody's"), b"x").expect("written");
    let foreign = Repository::init(&at(root)).expect_err("foreign");
    assert!(matches!(&foreign, StorageError::NotEmpty { found, .. } if found == "somebody's"), "{foreign}");
    assert_eq!(foreign.exit(), Exit::Refused);
    let file = Repository::init(&at(root.join("somebody's"))).expect_err("a file");
    assert!(matches!(file, StorageError::NotARepository { .. }), "{file}");

    let marker = root.join("pglife-repo.json");
    fs::write(&marker, r#"{"version":2,"ids":[],"what":"is new"}"#).expect("written");
    for newer in [Repository::open(&at(root)), Repository::init(&at(root))] {
        let newer = newer.expect_err("newer");
        assert!(matches!(newer, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{newer}");
        assert_eq!(newer.exit(), Exit::Repository);
    }
    for damage in ["", "{", "{}", r#"{"version":1}"#, r#"{"version":1,"id":"../x"}"#, &"x".repeat(5000)] {
        fs::write(&marker, damage).expect("written");
        fs::remove_file(root.join("somebody's")).unwrap_or_default();
        for damaged in [Repository::open(&at(root)), Repository::init(&at(root))] {
            let damaged = damaged.expect_err("damaged");
            assert!(matches!(damaged, StorageError::NotARepository { .. }), "{damaged}");
            assert!(damaged.to_string().contains("is damaged"), "{damaged}");
        }
        assert_eq!(fs::read_to_string(&marker).expect("read"), damage, "what is damaged is left for the operator");
    }
}

#[test]
fn a_folder_keeps_the_contract() {
    let folders = tempfile::tempdir().expect("a folder");
    let count = std::cell::Cell::new(0);
    contract::check(&|| {
        count.set(count.get() + 1);
        let root = folders.path().join(count.get().to_string());
        fs::create_dir(&root).expect("a folder");
        Arc::new(LocalStore::at(root))
    });
}

#[test]
fn memory_keeps_the_contract_and_so_does_a_store_that_only_counts() {
    contract::check(&|| Arc::new(memory::MemoryStore::default()));
    contract::check(&|| Arc::new(faulty::FaultyStore::counting(Arc::new(memory::MemoryStore::default()))));
}

#[test]
fn whatever_fails_an_object_is_there_whole_or_not_at_all() {
    use faulty::{Action, Fault, FaultyStore};
    let subject = |store: &dyn Store| -> Result<Vec<u8>, StorageError> {
        store.put(&key("object"), b"content")?;
        store.read_small(&key("object"), 100)
    };
    let counting = FaultyStore::counting(Arc::new(memory::MemoryStore::default()));
    subject(&counting).expect("nothing fails");
    let done = counting.done();
    let actions: Vec<Action> = done.iter().map(|done| done.action).collect();
    assert_eq!(actions, [Action::Begin, Action::Write, Action::Commit, Action::Open, Action::Read]);
    for (at, operation) in done.iter().enumerate() {
        for fault in Fault::ALL {
            let (_root, inner) = store();
            let faulty = FaultyStore::failing(Arc::new(inner.clone()), at, fault);
            let error = subject(&faulty).expect_err("it fails");
            assert!(error.to_string().contains("object"), "{operation} {fault:?}: {error}");
            let committed = at > 2 || at == 2 && matches!(fault, Fault::FailsAfterwards | Fault::KilledAfterwards);
            assert_eq!(keys(&inner), if committed { vec!["object"] } else { vec![] }, "{operation} {fault:?}");
            let killed = matches!(fault, Fault::Killed | Fault::KilledAfterwards);
            assert_eq!(faulty.list(None).is_err(), killed, "{operation} {fault:?}");
            // What a killed process leaves is swept.
            let unfinished = at < 3 && killed && !committed && !(at == 0 && fault == Fault::Killed);
            let swept = inner.sweep_unfinished(None, SystemTime::now() + Duration::from_secs(1)).expect("swept");
            assert_eq!(swept, u64::from(unfinished), "{operation} {fault:?}");
        }
    }
}
