//! Stores against real servers: the contract, and everything that can go wrong on the way.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use pglife::backup::contract::{Trial, every_fault};
use pglife::backup_set::StoredObject;
use pglife::exit::Exit;
use pglife::prune::leftovers;
use pglife::storage::s3::{Bucket, Environment, LockMode, ObjectLock, S3Store, reach};
use pglife::storage::{FolderLocation, Key, Location, Repository, StorageError, Store, contract};
use pglife::worker::session::Session;
use pglife::worker::{CopyJob, Request};

use crate::house::{House, executable, wait_for};
use crate::s3::{
    ADMIN, Answer, NOBODY, Proxy, READER, RENEWED, Server, credentials, impatient, impatient_store, store,
};

const MIB: usize = 1 << 20;

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

/// A mebibyte that is different from every other.
fn mebibyte(number: usize) -> Vec<u8> {
    (0..MIB / 8).flat_map(|word| ((number << 32) + word).to_le_bytes()).collect()
}

fn write(
    store: &S3Store,
    key: &Key,
    mebibytes: std::ops::Range<usize>,
) -> io::Result<Box<dyn pglife::storage::Upload>> {
    let mut upload = store.begin(key).expect("begun");
    mebibytes.into_iter().try_for_each(|number| upload.write_all(&mebibyte(number)))?;
    Ok(upload)
}

fn assert_holds(store: &dyn Store, key: &Key, mebibytes: usize) {
    let object = store.open(key).expect("there");
    assert_eq!(object.size(), (mebibytes * MIB) as u64);
    let mut buffer = vec![0; MIB];
    for number in 0..mebibytes {
        object.read_exact_at(&mut buffer, (number * MIB) as u64).expect("read");
        assert!(buffer == mebibyte(number), "mebibyte {number}");
    }
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// The error, which must end a process with `exit` and name `place`, and its causes in one line.
#[track_caller]
fn told(error: &StorageError, exit: Exit, place: &str) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    assert_eq!(error.exit(), exit, "{text}");
    assert!(text.contains(place), "{text}");
    text
}

#[test]
fn a_bucket_keeps_the_contract() {
    let house = House::new("s3contract");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let count = std::cell::Cell::new(0);
    let limits = pglife::storage::s3::Limits {
        part_bytes: Some(contract::PART as u64),
        ..pglife::storage::s3::Limits::default()
    };
    contract::check(&|| {
        count.set(count.get() + 1);
        let bucket = Bucket { prefix: format!("run {}/ü", count.get()), ..bucket.clone() };
        Arc::new(S3Store::with_limits(&bucket, limits).expect("a store"))
    });
}

/// More than one page of everything that a listing is split by: few folders, many, and one that is long by itself.
#[test]
fn what_fills_several_pages_is_listed_whole() {
    let house = House::new("s3pages");
    let server = Server::start(&house, "s3");
    let bucket = Bucket { prefix: "night ly/ü".to_owned(), ..server.bucket("backups") };
    let store = store(&bucket);
    let sets = (0..1200).map(|set| format!("main/7-17/sets/20{:02}{:03}T0-dump/COMMIT", 13 + set / 100, set % 100));
    let long = (0..1050).map(|object| format!("main/7-17/sets/20261126T0-volume/db/{object}"));
    let others = ["pglife-repo.json", "main/note", "main/7-17/sets/loose", "other/7-17/sets/x/COMMIT", "ä/x"];
    let mut keys: Vec<Key> = sets.chain(long).chain(others.map(str::to_owned)).map(|text| key(&text)).collect();
    std::thread::scope(|scope| {
        for share in keys.chunks(keys.len().div_ceil(16)) {
            let store = &store;
            scope.spawn(move || share.iter().for_each(|key| store.put(key, b"x").expect("stored")));
        }
    });
    keys.sort();
    let listed = |folder: Option<&str>| -> Vec<Key> {
        let listed = store.list(folder.map(key).as_ref()).expect("listed");
        listed.into_iter().map(|listed| listed.key).collect()
    };
    assert!(listed(None) == keys, "{} listed of {}", listed(None).len(), keys.len());
    for folder in ["main", "main/7-17/sets", "main/7-17/sets/20261126T0-volume", "ä", "mai"] {
        let inside: Vec<Key> =
            keys.iter().filter(|key| key.as_str().starts_with(&format!("{folder}/"))).cloned().collect();
        assert!(listed(Some(folder)) == inside, "{folder}: {} listed of {}", listed(Some(folder)).len(), inside.len());
    }
}

#[test]
fn a_store_works_from_inside_a_runtime_too() {
    let house = House::new("s3async");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let work = move || {
        let store = store(&bucket);
        let upload = write(&store, &key("async/large"), 0..20).expect("written");
        drop(write(&store, &key("async/dropped"), 0..10).expect("written"));
        upload.commit().expect("committed");
        assert_holds(&store, &key("async/large"), 20);
        store.delete(&key("async/large")).expect("deleted");
    };
    let several = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let same = work.clone();
    several.block_on(async move {
        same();
        tokio::spawn(async move { work() }).await.expect("no panic");
    });
}

#[test]
fn a_server_that_is_killed_ends_an_upload_with_an_error_and_loses_nothing() {
    let house = House::new("s3kill");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let store = impatient_store(&bucket);
    store.put(&key("before"), b"intact").expect("stored");
    let mut upload = write(&store, &key("set/object"), 0..20).expect("written");
    server.kill();
    let began = Instant::now();
    let failed = (0..200).find_map(|number| upload.write_all(&mebibyte(number)).err()).expect("no server");
    let error = StorageError::of_write(store.place(Some(&key("set/object"))), failed);
    told(&error, Exit::Repository, "s3://backups/pre fix/pg/set/object cannot be reached");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let spoilt = upload.commit().expect_err("spoilt");
    assert!(matches!(spoilt, StorageError::Incomplete { .. }), "{spoilt}");
    for error in [
        store.put(&key("x"), b"x").expect_err("no server"),
        store.read_small(&key("before"), 10).expect_err("no server"),
        store.list(None).expect_err("no server"),
        store.check_writable().expect_err("no server"),
    ] {
        told(&error, Exit::Repository, "s3://backups/pre fix/pg");
    }
    server.start_again();
    let listed = store.list(None).expect("listed");
    assert_eq!(listed.into_iter().map(|listed| listed.key).collect::<Vec<_>>(), [key("before")]);
    assert_eq!(store.read_small(&key("before"), 10).expect("read"), b"intact");
    assert_eq!(
        store.sweep_unfinished(Some(&key("set")), SystemTime::now() - Duration::from_secs(3600)).expect("swept"),
        0
    );
    assert_eq!(store.sweep_unfinished(Some(&key("set")), in_an_hour()).expect("swept"), 1);
    let upload = write(&store, &key("set/object"), 0..20).expect("written");
    upload.commit().expect("committed");
    assert_holds(&store, &key("set/object"), 20);
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let house = House::new("s3restart");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let store = store(&bucket);
    let mut upload = write(&store, &key("object"), 0..30).expect("written");
    server.kill();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| (30..80).try_for_each(|number| upload.write_all(&mebibyte(number))));
        server.start_again();
        writing.join().expect("no panic").expect("written");
    });
    upload.commit().expect("committed");
    assert_holds(&store, &key("object"), 80);
    let object = store.open(&key("object")).expect("opened");
    let mut buffer = vec![0; 10 * MIB];
    object.read_exact_at(&mut buffer, 0).expect("read");
    server.kill();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| object.read_exact_at(&mut buffer, 10 * MIB as u64));
        server.start_again();
        reading.join().expect("no panic").expect("read");
    });
    assert!(buffer.chunks(MIB).zip(10..).all(|(piece, number)| piece == mebibyte(number)));
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let house = House::new("s3pause");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let store = impatient_store(&bucket);
    let mut upload = write(&store, &key("object"), 0..10).expect("written");
    server.pause();
    let began = Instant::now();
    let failed = (0..200).find_map(|number| upload.write_all(&mebibyte(number)).err()).expect("no answer");
    let error = StorageError::of_write(store.place(Some(&key("object"))), failed);
    let text = told(&error, Exit::Repository, "s3://backups/pre fix/pg/object");
    assert!(text.contains("no byte came or went"), "{text}");
    drop(upload);
    told(&store.read_small(&key("x"), 10).expect_err("no answer"), Exit::Repository, "s3://backups/pre fix/pg/x");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    server.go_on();
    assert_eq!(store.list(None).expect("listed"), []);
}

#[test]
fn a_commit_whose_answer_is_lost_is_known_by_its_token() {
    let house = House::new("s3lost");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let lost = Arc::new(AtomicUsize::new(0));
    let (left, dead) = (Arc::clone(&lost), Arc::new(AtomicBool::new(false)));
    let died = Arc::clone(&dead);
    let is_commit =
        |line: &str| line.contains("x-id=PutObject") || line.starts_with("POST ") && !line.contains("?uploads");
    let proxy = Proxy::before(&server, move |line| {
        if died.load(Ordering::SeqCst) {
            return Answer::Refused;
        }
        let lose = is_commit(line)
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if lose {
            // The last one takes the server along.
            died.store(line.contains("dying"), Ordering::SeqCst);
            Answer::Cut(0)
        } else {
            Answer::Whole
        }
    });
    let store = impatient_store(&proxy.reach(&bucket));
    let direct = impatient_store(&bucket);
    for (name, mebibytes, answers) in
        [("small", 1, 1), ("large", 20, 1), ("small-always", 1, 1000), ("large-always", 20, 1000)]
    {
        lost.store(answers, Ordering::SeqCst);
        let upload = write(&store, &key(name), 0..mebibytes).expect("written");
        upload.commit().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(lost.load(Ordering::SeqCst) < answers, "{name}: no answer was lost");
        assert_holds(&direct, &key(name), mebibytes);
    }
    for (name, mebibytes) in [("dying-small", 1), ("dying-large", 20)] {
        dead.store(false, Ordering::SeqCst);
        lost.store(0, Ordering::SeqCst);
        let upload = write(&store, &key(name), 0..mebibytes).expect("written");
        lost.store(1, Ordering::SeqCst);
        let error = upload.commit().expect_err("nobody answers");
        assert!(matches!(error, StorageError::Uncertain { .. }), "{error:?}");
        told(&error, Exit::Repository, &format!("s3://backups/pre fix/pg/{name}"));
        assert_holds(&direct, &key(name), mebibytes);
    }
    dead.store(false, Ordering::SeqCst);
    // An object that somebody else stored meanwhile is not taken for ours.
    let upload = write(&store, &key("theirs"), 0..20).expect("written");
    direct.put(&key("theirs"), b"theirs").expect("stored");
    lost.store(1, Ordering::SeqCst);
    let error = upload.commit().expect_err("taken");
    assert!(matches!(error, StorageError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(direct.read_small(&key("theirs"), 10).expect("read"), b"theirs");
}

#[test]
fn a_read_that_breaks_goes_on_where_it_stopped() {
    let house = House::new("s3cut");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    let proxy = Proxy::before(&server, move |line| {
        // Every second answer with a body breaks after some of it.
        if line.starts_with("GET ") && counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            Answer::Cut(MIB)
        } else {
            Answer::Whole
        }
    });
    let direct = store(&bucket);
    write(&direct, &key("object"), 0..10).expect("written").commit().expect("committed");
    let store = store(&proxy.reach(&bucket));
    let object = store.open(&key("object")).expect("opened");
    let mut buffer = vec![0; 10 * MIB];
    object.read_exact_at(&mut buffer, 0).expect("read");
    assert!(buffer.chunks(MIB).zip(0..).all(|(piece, number)| piece == mebibyte(number)));
    assert!(cuts.load(Ordering::SeqCst) > 2, "nothing broke");
    // What was opened is what is read, or an error.
    direct.delete(&key("object")).expect("deleted");
    write(&direct, &key("object"), 1..11).expect("written").commit().expect("committed");
    let changed =
        StorageError::of_read(store.place(None), object.read_exact_at(&mut buffer, 0).expect_err("another object"));
    assert!(matches!(changed, StorageError::Changed { .. }), "{changed:?}");
}

#[test]
fn each_refusal_says_what_is_refused_and_ends_as_promised() {
    let house = House::new("s3refuse");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    Repository::init(&Location::S3(bucket.clone())).expect("made");
    Repository::open(&Location::S3(bucket.clone())).expect("opened");

    let mut wrong = bucket.clone();
    wrong.credentials = credentials((ADMIN.0, "revoked")).into();
    let mut unknown = bucket.clone();
    unknown.credentials = credentials(("nobody", ADMIN.1)).into();
    for bucket in [wrong, unknown] {
        let store = store(&bucket);
        let upload = write(&store, &key("object"), 0..1).expect("nothing was sent yet");
        let mut large = store.begin(&key("large")).expect("begun");
        let failed = (0..9).find_map(|number| large.write_all(&mebibyte(number)).err()).expect("refused");
        for error in [
            Repository::open(&Location::S3(bucket.clone())).map(drop).expect_err("refused"),
            Repository::init(&Location::S3(bucket.clone())).map(drop).expect_err("refused"),
            upload.commit().expect_err("refused"),
            StorageError::of_write(store.place(None), failed),
            store.head(&key("x")).map(drop).expect_err("refused"),
            store.list(None).map(drop).expect_err("refused"),
            store.delete(&key("x")).expect_err("refused"),
            store.check_writable().expect_err("refused"),
            store.sweep_unfinished(None, SystemTime::now()).map(drop).expect_err("refused"),
        ] {
            assert!(matches!(error, StorageError::CredentialsRefused { .. }), "{error:?}");
            let text = told(&error, Exit::Credentials, "s3://backups/pre fix/pg");
            assert!(text.contains("403") && !text.contains("revoked\"") && !text.contains(READER.1), "{text}");
        }
    }

    let reader = store(&Bucket { credentials: credentials(READER).into(), ..bucket.clone() });
    reader.read_small(&key("pglife-repo.json"), 1000).expect("it may read");
    assert_eq!(reader.list(None).expect("it may list").len(), 1);
    for error in [
        reader.put(&key("x"), b"x").expect_err("read-only"),
        reader.delete(&key("pglife-repo.json")).expect_err("read-only"),
        reader.check_writable().expect_err("read-only"),
    ] {
        assert!(matches!(error, StorageError::NotPermitted { .. }), "{error:?}");
        told(&error, Exit::Credentials, "s3://backups/pre fix/pg");
    }

    let nowhere = server.reach("no-such-bucket");
    let missing = store(&nowhere);
    for error in [
        Repository::open(&Location::S3(nowhere.clone())).map(drop).expect_err("missing"),
        Repository::init(&Location::S3(nowhere.clone())).map(drop).expect_err("missing"),
        missing.open(&key("x")).map(drop).expect_err("missing"),
        missing.delete(&key("x")).expect_err("missing"),
        missing.list(None).map(drop).expect_err("missing"),
        missing.check_writable().expect_err("missing"),
    ] {
        assert!(matches!(error, StorageError::NoBucket { .. }), "{error:?}");
        told(&error, Exit::Repository, "\"no-such-bucket\" does not exist");
    }

    let limits = pglife::storage::s3::Limits { clock: || SystemTime::now() - Duration::from_secs(3600), ..impatient() };
    let late = S3Store::with_limits(&bucket, limits).expect("a store");
    for error in [
        late.head(&key("x")).map(drop).expect_err("late"),
        late.put(&key("x"), b"x").expect_err("late"),
        late.read_small(&key("x"), 1).map(drop).expect_err("late"),
    ] {
        let StorageError::ClockSkew { here, there: Some(there), .. } = &error else { panic!("{error:?}") };
        let text = told(&error, Exit::Repository, "s3://backups/pre fix/pg/x");
        assert!(text.contains(&here.to_string()) && text.contains(&there.to_string()), "{text}");
        let by = there.as_second() - here.as_second();
        assert!((3590..=3660).contains(&by) && text.contains("behind the service's"), "{by}: {text}");
    }

    let nobody = Bucket { endpoint: Some("http://127.0.0.1:1".to_owned()), ..bucket };
    let error = impatient_store(&nobody).list(None).expect_err("nobody there");
    let text = told(&error, Exit::Repository, "s3://backups/pre fix/pg cannot be reached");
    assert!(text.contains("Connection refused"), "{text}");
}

/// A file as `~/.aws/credentials`.
fn credentials_file((access_key, secret): (&str, &str)) -> String {
    format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret}\naws_session_token =\n")
}

#[test]
fn credentials_that_end_in_the_middle_are_renewed_or_named() {
    const MUCH: usize = 100;
    let house = House::new("s3renew");
    let server = Server::start(&house, "s3");
    let direct = server.bucket("backups");
    house.write_secret("credentials", &credentials_file(ADMIN));
    // The first ones end with the third part; whoever renews the file does it then, where there is somebody.
    let over = Arc::new(AtomicBool::new(false));
    let somebody_renews = Arc::new(AtomicBool::new(true));
    let (ended, renews, file) = (Arc::clone(&over), Arc::clone(&somebody_renews), house.path("credentials"));
    let proxy = Proxy::before(&server, move |head| {
        let with_first = head.contains(&format!("Credential={}/", ADMIN.0));
        let third = head.starts_with("PUT ") && head.contains("partNumber=3");
        if third && !ended.swap(true, Ordering::SeqCst) && renews.load(Ordering::SeqCst) {
            std::fs::write(&file, credentials_file(RENEWED)).expect("written");
        }
        if with_first && ended.load(Ordering::SeqCst) {
            return Answer::Forbidden("ExpiredToken", 0);
        }
        Answer::Whole
    });
    let settings = pglife::settings::S3Repository {
        bucket: "backups".to_owned(),
        prefix: direct.prefix.clone(),
        endpoint: Some(proxy.endpoint()),
        region: None,
        credentials_file: Some(house.path("credentials")),
        ca_file: None,
        path_style: true,
        object_lock: None,
        object_lock_mode: pglife::settings::LockMode::Governance,
    };
    let bucket = reach(&settings, &Environment::default()).expect("credentials");

    // A worker hears of the newer ones by its session.
    std::fs::create_dir(house.path("from")).expect("a folder");
    let much: Vec<u8> = (0..MUCH).flat_map(mebibyte).collect();
    std::fs::write(house.path("from/much"), &much).expect("made");
    let (job, stop) = copy_of_much(&house, &bucket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::in_child_of(executable().as_ref()).await.expect("a worker");
        session.request(&Request::Copy(job), &stop, |_| {}).await.expect("copied with two pairs of credentials");
        session.close().await.expect("closed");
    });
    assert!(over.load(Ordering::SeqCst));
    assert_holds(&store(&direct), &key("much"), MUCH);

    // So does a store of the control plane, whichever it began with. Where nobody renews them, it says so.
    house.write_secret("credentials", &credentials_file(ADMIN));
    over.store(false, Ordering::SeqCst);
    somebody_renews.store(false, Ordering::SeqCst);
    let bucket = reach(&settings, &Environment::default()).expect("credentials");
    let ours = impatient_store(&bucket);
    ours.put(&key("before"), b"x").expect("stored");
    let mut upload = ours.begin(&key("after")).expect("begun");
    let failed = (0..MUCH).find_map(|number| upload.write_all(&mebibyte(number)).err()).expect("they are over");
    let error = StorageError::of_write(ours.place(Some(&key("after"))), failed);
    assert!(matches!(error, StorageError::CredentialsExpired { .. }), "{error:?}");
    let text = told(&error, Exit::Credentials, "s3://backups/pre fix/pg/after");
    assert!(text.contains("have expired, and no newer ones came") && text.contains("ExpiredToken"), "{text}");
    drop(upload);
    house.write_secret("credentials", &credentials_file(RENEWED));
    wait_for("the newer credentials", || ours.put(&key("again"), b"x").is_ok());
    assert_eq!(store(&direct).list(None).expect("listed").len(), 3);
}

#[test]
fn a_certificate_is_trusted_when_its_authority_is_named() {
    let house = House::new("s3tls");
    let (server, authority) = Server::start_with_tls(&house, "s3");
    let bucket = Bucket { authorities: authority, ..server.bucket("backups") };
    let trusting = store(&bucket);
    write(&trusting, &key("object"), 0..20).expect("written").commit().expect("committed");
    assert_holds(&trusting, &key("object"), 20);
    // Another authority: what this machine trusts does not matter.
    let (_, stranger) = Server::start_with_tls(&house, "other");
    let began = Instant::now();
    let error = store(&Bucket { authorities: stranger, ..bucket.clone() }).list(None).expect_err("a stranger");
    assert!(matches!(error, StorageError::Untrusted { .. }), "{error:?}");
    told(&error, Exit::Repository, "s3://backups/pre fix/pg");
    assert!(began.elapsed() < Duration::from_secs(5), "it is not tried again");
    let none = S3Store::open(&Bucket { authorities: String::new(), ..bucket }).expect_err("no authority");
    assert!(matches!(none, StorageError::Untrusted { .. }), "{none:?}");
}

#[test]
fn a_locked_object_is_not_deleted_before_its_time() {
    let house = House::new("s3lock");
    let server = Server::start(&house, "s3");
    let bucket = server.locked_bucket("locked");
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let name = format!("{mode:?}");
        let lock = |seconds| {
            let object_lock = Some(ObjectLock { seconds, mode });
            store(&Bucket { prefix: "pg".to_owned(), object_lock, ..bucket.clone() })
        };
        let long = lock(3600);
        for (size, mebibytes) in [("small", 1), ("large", 20)] {
            let key = key(&format!("{name}/{size}"));
            write(&long, &key, 0..mebibytes).expect("written").commit().expect("committed");
            let url = format!("{}/locked/pg/{key}", server.endpoint());
            let (head, _) = server.curl(&["-I", &url]);
            let head = head.to_ascii_lowercase();
            assert!(head.contains(&format!("x-amz-object-lock-mode: {}", name.to_ascii_lowercase())), "{head}");
            let error = long.delete(&key).expect_err("locked");
            let StorageError::Locked { until: Some(until), .. } = &error else { panic!("{error:?}") };
            let left = SystemTime::from(*until).duration_since(SystemTime::now()).expect("later");
            assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
            told(&error, Exit::Refused, &format!("s3://locked/pg/{key} is locked until {until}"));
            assert_holds(&long, &key, mebibytes);
        }
        let (short, key) = (lock(3), key(&format!("{name}/short")));
        write(&short, &key, 0..1).expect("written").commit().expect("committed");
        short.delete(&key).expect_err("locked");
        wait_for("the end of the lock", || short.delete(&key).is_ok());
        // Not only its name is gone: no version and no delete marker stays.
        let url = format!("{}/locked?prefix=pg%2F{}&versions=", server.endpoint(), key.as_str().replace('/', "%2F"));
        let (versions, _) = server.curl(&[&url]);
        assert!(versions.contains("ListVersionsResult") && !versions.contains("<VersionId>"), "{versions}");
    }
}

#[test]
fn the_permissions_in_the_documentation_are_enough_and_do_not_delete() {
    let house = House::new("s3policy");
    let server = Server::start(&house, "s3");
    let bucket = server.locked_bucket("example-backups");
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/repositories.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let policy = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a policy");
    let mut policy: serde_json::Value = serde_json::from_str(policy).expect("JSON");
    // The page shows a policy of a user; SeaweedFS takes one of a bucket.
    for statement in policy["Statement"].as_array_mut().expect("statements") {
        statement["Principal"] = serde_json::json!({ "AWS": "*" });
    }
    let url = format!("{}/example-backups?policy=", server.endpoint());
    let unsigned = "x-amz-content-sha256: UNSIGNED-PAYLOAD";
    let (answer, status) = server.curl(&["-X", "PUT", "-H", unsigned, "-d", &policy.to_string(), &url]);
    assert!(status.starts_with('2'), "{answer}");

    let daemon = Bucket { credentials: credentials(NOBODY).into(), ..bucket.clone() };
    let object_lock = Some(ObjectLock { seconds: 3600, mode: LockMode::Governance });
    for (name, bucket) in [("plain", daemon.clone()), ("locked", Bucket { object_lock, ..daemon })] {
        let bucket = Bucket { prefix: name.to_owned(), ..bucket };
        Repository::init(&Location::S3(bucket.clone())).expect("made");
        let repository = Repository::open(&Location::S3(bucket.clone())).expect("opened");
        repository.store().check_writable().expect("writable");
        let store = store(&bucket);
        write(&store, &key("set/large"), 0..20).expect("written").commit().expect("committed");
        assert_holds(&store, &key("set/large"), 20);
        write(&store, &key("set/aborted"), 0..20).expect("written").abort().expect("aborted");
        std::mem::forget(write(&store, &key("set/dead"), 0..20).expect("written"));
        assert_eq!(store.sweep_unfinished(None, in_an_hour()).expect("swept"), 1);
        assert_eq!(store.list(None).expect("listed").len(), 2);
        let error = store.delete(&key("set/large")).expect_err("not allowed");
        match name {
            "plain" => assert!(matches!(error, StorageError::NotPermitted { what: "delete", .. }), "{error:?}"),
            _ => assert!(matches!(error, StorageError::Locked { until: Some(_), .. }), "{error:?}"),
        }
        assert_holds(&store, &key("set/large"), 20);
    }
}

#[test]
fn repositories_in_buckets_work_from_the_command_line() {
    let house = House::new("s3cli");
    let server = Server::start(&house, "s3");
    server.bucket("backups");
    house.write(
        "credentials",
        &format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", ADMIN.0, ADMIN.1),
    );
    let configure = |bucket: &str| {
        let endpoint = server.endpoint();
        house.write(
            "pglife.toml",
            &format!(
                "state_dir = 'state'\n[repos.offsite]\ntype = 's3'\nbucket = '{bucket}'\nprefix = 'pg'\nendpoint = \
                 '{endpoint}'\ncredentials_file = 'credentials'\n"
            ),
        );
    };
    configure("backups");
    let place = "s3://backups/pg";
    house.pglife(&["repo", "check"]).exits(10).says(&[place, "is not a pglife repository", "pglife repo init offsite"]);
    house.pglife(&["repo", "init"]).ok().says(&["ready at s3://backups/pg", "others may read the secret"]);
    house.pglife(&["repo", "init", "offsite"]).ok();
    house.pglife(&["repo", "check"]).ok();
    let listed = house.items(&["repo", "list"]);
    assert_eq!((listed[0]["type"].as_str(), listed[0]["place"].as_str()), (Some("s3"), Some(place)));

    configure("no-such-bucket");
    house.pglife(&["repo", "check"]).exits(10).says(&["s3://no-such-bucket/pg", "does not exist"]);
    configure("backups");
    house.write(
        "credentials",
        &format!("[default]\naws_access_key_id = {}\naws_secret_access_key = Revoked7\n", ADMIN.0),
    );
    let refused = house.pglife(&["repo", "check"]).exits(12).says(&[place, "does not accept the credentials"]);
    assert!(!refused.stderr.contains("Revoked7"));
    house.write("credentials", "[default]\n");
    house.pglife(&["repo", "check"]).exits(12).says(&[place, "has no aws_access_key_id"]);
    std::fs::remove_file(house.path("credentials")).expect("removed");
    house.pglife(&["repo", "init"]).exits(12).says(&[place, "credentials cannot be read"]);
}

/// A worker's job: the house's file `from/much` goes into `bucket`.
fn copy_of_much(house: &House, bucket: &Bucket) -> (CopyJob, tokio_util::sync::CancellationToken) {
    let from = Location::Local { folder: house.path("from") };
    let source = from.store().expect("a store").open(&key("much")).expect("opened");
    let (meter, stop) = (pglife::pipeline::Meter::new(), tokio_util::sync::CancellationToken::new());
    let stored = pglife::pipeline::seal::measure(&*source, &meter, &stop).expect("read");
    let job = CopyJob {
        from: FolderLocation { location: from, folder: None },
        to: FolderLocation { location: Location::S3(bucket.clone()), folder: None },
        objects: vec![StoredObject { name: "much".to_owned(), stored }],
    };
    (job, stop)
}

#[test]
fn memory_does_not_grow_with_the_object() {
    const MUCH: u64 = 1500 << 20;
    let house = House::new("s3memory");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    // A sparse file as a stored object, which a worker copies.
    std::fs::create_dir(house.path("from")).expect("a folder");
    std::fs::File::create(house.path("from/much")).and_then(|file| file.set_len(MUCH)).expect("made");
    let (job, stop) = copy_of_much(&house, &bucket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let mut session = Session::in_child_of(executable().as_ref()).await.expect("a worker");
        let done = session.request(&Request::Copy(job), &stop, |_| {}).await.expect("copied");
        session.close().await.expect("closed");
        done
    });
    let peak = done.peak_memory_bytes;
    assert!((1 << 20..120 << 20).contains(&peak), "{peak}");
    assert_eq!(store(&bucket).head(&key("much")).expect("there").bytes, MUCH);
}

/// What `pglife repo gc` removes, however young.
fn clear(store: &dyn Store) {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365 * 10);
    for leftover in leftovers::find(store, pglife::policy::Duration::ZERO, later).expect("looked") {
        leftovers::clear(store, &leftover).expect("cleared");
    }
    store.sweep_unfinished(None, SystemTime::from(later)).expect("swept");
}

#[test]
fn a_set_on_its_way_into_a_bucket_may_fail_anywhere() {
    let house = House::new("s3faults");
    let server = Server::start(&house, "s3");
    let bucket = server.bucket("backups");
    let limits = pglife::storage::s3::Limits {
        part_bytes: Some(contract::PART as u64),
        ..pglife::storage::s3::Limits::default()
    };
    let count = AtomicUsize::new(0);
    let make = || -> Arc<dyn Store> {
        let bucket = Bucket { prefix: format!("run{}", count.fetch_add(1, Ordering::SeqCst)), ..bucket.clone() };
        Repository::init(&Location::S3(bucket.clone())).expect("made");
        Arc::new(S3Store::with_limits(&bucket, limits).expect("a store"))
    };
    // The last object is of two parts.
    let trial =
        Trial { make: &make, clear: &clear, large_bytes: contract::PART + MIB, write_bytes: 3 * MIB, threads: 3 };
    for sealed in [false, true] {
        let tried = every_fault(&trial, sealed);
        assert!(tried > 120, "{tried}");
    }
    let (uploads, _) = server.curl(&[&format!("{}/backups?uploads=", server.endpoint())]);
    assert!(uploads.contains("ListMultipartUploadsResult") && !uploads.contains("<Upload>"), "{uploads}");
}
