//! What every store does, as tests: unit tests run it on local and memory, `tests/it` on a real S3 server.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Key, Listed, StorageError, Store};
use crate::exit::Exit;

/// Stores that work in parts should be made with parts of this size: the suite looks at sizes around it. S3 has none
/// that are smaller.
pub const PART: usize = 5 << 20;

/// Names that are hard to get through a file system, an URL, a signature and XML. (None has a backslash, which SeaweedFS
/// takes for a slash: [`backup_set`](crate::backup_set) makes no such names.)
const ODD: [&str; 10] = [
    "we ird \"näme\".dump.zst",
    "100% + 1%20",
    "a+b c",
    "日本語/テスト",
    "q?x=1&y=2#frag",
    "%2E.%2F..%2Fetc%2Fpasswd",
    "<tag>&amp;",
    "*~'(!)",
    "é-composed é-decomposed",
    " leading and trailing /dot.",
];

/// Runs the suite. Each call of `make` gives an empty store of its own.
pub fn check(make: &dyn Fn() -> Arc<dyn Store>) {
    sizes_around_a_part_come_back(&*make());
    ranges_are_exact(&*make());
    nothing_is_there_before_its_commit(&*make());
    what_has_a_name_keeps_it(&*make());
    of_many_uploads_to_one_key_one_wins(&*make());
    odd_names_are_names(&*make());
    objects_are_listed_in_order(&*make());
    what_is_deleted_is_gone(&*make());
    what_is_too_large_is_not_read(&*make());
    the_first_name_is_found(&*make());
    the_last_change_is_known(&*make());
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn keys(store: &dyn Store, folder: Option<&str>) -> Vec<String> {
    let folder = folder.map(key);
    store.list(folder.as_ref()).expect("listed").into_iter().map(|listed| listed.key.into()).collect()
}

/// Bytes that are different everywhere.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|number| u8::try_from((number ^ number >> 8 ^ number >> 16) & 0xff).expect("a byte")).collect()
}

fn assert_absent(store: &dyn Store, key: &Key) {
    let errors =
        [store.head(key).map(drop), store.open(key).map(drop), store.read_small(key, 1).map(drop), store.delete(key)];
    for error in errors {
        let error = error.expect_err("no such object");
        assert!(matches!(&error, StorageError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(key.as_str()), "{error}");
        assert_eq!(error.exit(), Exit::NotFound);
    }
}

fn sizes_around_a_part_come_back(store: &dyn Store) {
    for length in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 5 * PART + 7] {
        let (key, content) = (key(&format!("sizes/{length}")), bytes(length));
        let mut upload = store.begin(&key).expect("begun");
        for piece in content.chunks(100_007) {
            upload.write_all(piece).expect("written");
        }
        upload.flush().expect("flushed");
        upload.commit().expect("committed");
        assert_eq!(store.head(&key).expect("there"), Listed { key: key.clone(), bytes: length as u64 });
        assert!(store.read_small(&key, length as u64).expect("read") == content, "{length}");
    }
    assert_eq!(keys(store, None).len(), 7);
}

fn ranges_are_exact(store: &dyn Store) {
    let (key, content) = (key("object"), bytes(3 * PART));
    store.put(&key, &content).expect("stored");
    let object = store.open(&key).expect("opened");
    assert_eq!(object.size(), content.len() as u64);
    for (first, length) in [(0, 0), (0, 1), (1, PART), (PART - 1, 2), (0, 3 * PART), (3 * PART - 1, 1), (3 * PART, 0)] {
        let mut buffer = vec![0; length];
        object.read_exact_at(&mut buffer, first as u64).expect("read");
        assert!(buffer == content[first..first + length], "{length} from {first}");
    }
    for (first, length) in [(3 * PART, 1), (3 * PART - 1, 2), (0, 3 * PART + 1), (1 << 40, 1)] {
        let error = object.read_exact_at(&mut vec![0; length], first as u64).expect_err("beyond the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length} from {first}");
    }
}

fn nothing_is_there_before_its_commit(store: &dyn Store) {
    let (key, elsewhere) = (key("folder/object"), key("folde"));
    let hour = Duration::from_secs(3600);
    let begin = || {
        let mut upload = store.begin(&key).expect("begun");
        upload.write_all(&bytes(2 * PART + 1)).expect("written");
        assert_absent(store, &key);
        assert_eq!(keys(store, None), [""; 0]);
        upload
    };
    begin().abort().expect("aborted");
    drop(begin());
    assert_eq!(keys(store, None), [""; 0]);
    // A process that is killed drops nothing.
    std::mem::forget(begin());
    assert_eq!(keys(store, None), [""; 0]);
    let (now, later) = (SystemTime::now() - hour, SystemTime::now() + hour);
    assert_eq!(store.sweep_unfinished(None, now).expect("swept"), 0, "it may still be running");
    assert_eq!(store.sweep_unfinished(Some(&elsewhere), later).expect("swept"), 0, "it is not in this folder");
    let swept = store.sweep_unfinished(Some(&self::key("folder")), later).expect("swept");
    // The one that was dropped may still be on its way out.
    assert!((1..=2).contains(&swept), "{swept}");
    assert_eq!(store.sweep_unfinished(None, later).expect("swept"), 0);

    begin().commit().expect("committed");
    assert_eq!(keys(store, None), ["folder/object"]);
    assert_eq!(store.sweep_unfinished(None, later).expect("swept"), 0, "what is committed is not swept");
    assert_eq!(store.read_small(&key, 1 << 30).expect("read").len(), 2 * PART + 1);
}

fn what_has_a_name_keeps_it(store: &dyn Store) {
    for (name, length) in [("small", 10), ("large", 2 * PART + 1)] {
        let key = key(name);
        let mut late = store.begin(&key).expect("begun");
        late.write_all(&bytes(length)).expect("written");
        store.put(&key, b"first").expect("stored");
        for error in [late.commit(), store.put(&key, &bytes(length))] {
            let error = error.expect_err("the key is taken");
            assert!(matches!(error, StorageError::AlreadyExists { .. }), "{error}");
        }
        assert_eq!(store.read_small(&key, 100).expect("read"), b"first");
    }
    let later = SystemTime::now() + Duration::from_secs(3600);
    assert_eq!(store.sweep_unfinished(None, later).expect("swept"), 0, "a commit that failed leaves nothing");
}

fn of_many_uploads_to_one_key_one_wins(store: &dyn Store) {
    for (name, length) in [("small", 100), ("large", 2 * PART)] {
        let key = key(name);
        let start = std::sync::Barrier::new(6);
        let won: Vec<u8> = std::thread::scope(|scope| {
            let uploads: Vec<_> = (0..6_u8)
                .map(|byte| {
                    let (key, start) = (&key, &start);
                    scope.spawn(move || {
                        let mut upload = store.begin(key).expect("begun");
                        upload.write_all(&vec![byte; length]).expect("written");
                        start.wait();
                        match upload.commit() {
                            Ok(()) => Some(byte),
                            Err(StorageError::AlreadyExists { .. }) => None,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            uploads.into_iter().filter_map(|upload| upload.join().expect("no panic")).collect()
        });
        let content = store.read_small(&key, 1 << 30).expect("read");
        assert!(won.contains(&content[0]), "{name}: {won:?}, but {} is stored", content[0]);
        assert!(content == vec![content[0]; length], "{name}: parts of several uploads");
        // Not every S3 service puts parts together and looks at the name in one step.
        assert!(won.len() == 1 || name == "large", "{name}: {won:?}");
    }
}

fn odd_names_are_names(store: &dyn Store) {
    for name in ODD {
        let (key, folder) = (key(&format!("{name}/{name}")), key(name));
        for content in [bytes(10), bytes(PART + 1)] {
            store.put(&key, &content).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(store.head(&key).expect("there").bytes, content.len() as u64);
            assert!(store.read_small(&key, 1 << 30).expect("read") == content, "{name}");
            assert_eq!(store.list(Some(&folder)).expect("listed").len(), 1, "{name}");
            store.delete(&key).expect("deleted");
        }
        store.put(&key, b"x").expect("stored");
    }
    let listed: BTreeSet<String> = keys(store, None).into_iter().collect();
    assert_eq!(listed, ODD.iter().map(|name| format!("{name}/{name}")).collect());
}

fn objects_are_listed_in_order(store: &dyn Store) {
    for text in ["b/x", "a-b/x", "a/b/c", "a.x", "a/b.c", "z", "ä"] {
        store.put(&key(text), text.as_bytes()).expect("stored");
    }
    assert_eq!(keys(store, None), ["a-b/x", "a.x", "a/b.c", "a/b/c", "b/x", "z", "ä"]);
    let inside = store.list(Some(&key("a"))).expect("listed");
    assert_eq!(inside, [Listed { key: key("a/b.c"), bytes: 5 }, Listed { key: key("a/b/c"), bytes: 5 }]);
    assert_eq!(keys(store, Some("nothing/here")), [""; 0]);
    assert_eq!(keys(store, Some("z")), [""; 0], "an object is no folder");
    assert_absent(store, &key("a"));
    assert_absent(store, &key("a/b"));
}

fn what_is_deleted_is_gone(store: &dyn Store) {
    let (one, two) = (key("a/b/one"), key("a/b/two"));
    store.put(&one, b"1").expect("stored");
    store.put(&two, &bytes(2 * PART)).expect("stored");
    store.delete(&two).expect("deleted");
    assert_absent(store, &two);
    assert_eq!(keys(store, None), ["a/b/one"]);
    store.delete(&one).expect("deleted");
    assert_absent(store, &one);
    assert_eq!(keys(store, None), [""; 0]);
    store.put(&one, b"another").expect("stored");
    assert_eq!(store.read_small(&one, 10).expect("read"), b"another");
}

fn what_is_too_large_is_not_read(store: &dyn Store) {
    let key = key("manifest.json");
    store.put(&key, &[0; 101]).expect("stored");
    assert_eq!(store.read_small(&key, 101).expect("read").len(), 101);
    let error = store.read_small(&key, 100).expect_err("too large");
    assert!(matches!(error, StorageError::TooLarge { bytes: 101, limit: 100, .. }), "{error}");
}

fn the_first_name_is_found(store: &dyn Store) {
    store.make_place().expect("made");
    store.check_writable().expect("writable");
    assert_eq!(store.first_foreign_name().expect("listed"), None);
    assert_eq!(keys(store, None), [""; 0], "nothing was written to find out");
    store.put(&key("folder/object"), b"x").expect("stored");
    assert!(store.first_foreign_name().expect("listed").expect("a name").starts_with("folder"));
}

fn the_last_change_is_known(store: &dyn Store) {
    let (folder, nothing) = (key("a/folder"), key("a/fold"));
    assert_eq!(store.last_change(&folder).expect("asked"), None);
    // Services tell whole seconds, by a clock of their own.
    let tolerance = Duration::from_secs(60);
    let before = SystemTime::now() - tolerance;
    store.put(&key("a/folder/b/object"), b"x").expect("stored");
    let change = store.last_change(&folder).expect("asked").expect("something is there");
    assert!(change > before && change < SystemTime::now() + tolerance, "{change:?}");
    assert_eq!(store.last_change(&nothing).expect("asked"), None);
}
