//! What stays and what goes: prune, pins, deletion by hand, leftovers, exports. Against a repository on disk.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pglife::backup_set::{Commit, Kind, Manifest, SetId, SetLocation};
use pglife::prune::leftovers::{self, LeftoverKind};
use pglife::prune::{Outcome, remove_set};
use pglife::storage::s3::{LockMode, ObjectLock};
use pglife::storage::{Key, Store};
use serde_json::Value;

use crate::house::{House, files_below};
use crate::s3::{Server, store};

/// Makes a backup of `cluster` that is like `set`, but was complete at another time. Returns its id.
fn copy(house: &House, cluster: &str, set: &str, completed_at: Timestamp) -> String {
    let from = house.set_folder(cluster, set);
    let manifest = std::fs::read(from.join("manifest.json")).expect("a manifest");
    let manifest = Manifest::from_bytes(&manifest).expect("sealed");
    let started_at = completed_at - SignedDuration::from_mins(10);
    let entropy = u32::try_from(completed_at.as_second() % 1_000_000).expect("small");
    let id = SetId::new(started_at, Kind::Dump, entropy);
    let manifest = Manifest { set: id.clone(), started_at, completed_at, ..manifest };
    let to = from.with_file_name(id.as_str());
    for file in files_below(&from) {
        let name = file.strip_prefix(&from).expect("below");
        if !matches!(name.to_str(), Some("manifest.json" | "COMMIT")) {
            let target = to.join(name);
            std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
            std::fs::hard_link(&file, target).expect("linked");
        }
    }
    let bytes = manifest.to_bytes();
    std::fs::write(to.join("manifest.json"), &bytes).expect("written");
    std::fs::write(to.join("COMMIT"), Commit::to_manifest(&manifest, &bytes).to_bytes()).expect("written");
    id.to_string()
}

/// A cluster with one backup, and `older` more: one a day, the newest first.
fn cluster_with_backups(house: &House, policy: &str, older: i64) -> (String, Vec<String>) {
    let cluster = house.cluster("kept", "17", policy);
    let newest = house.backup(&cluster);
    let now = Timestamp::now();
    let made = (1..=older).map(|day| copy(house, &cluster, &newest, now - SignedDuration::from_hours(24 * day)));
    let sets = std::iter::once(newest.clone()).chain(made).collect();
    (cluster, sets)
}

fn listed(house: &House, cluster: &str) -> Vec<String> {
    let items = house.items(&["backups", "list", cluster]);
    items.iter().map(|item| item["set"].as_str().expect("an id").to_owned()).collect()
}

fn all_intact(house: &House, cluster: &str) {
    house.pglife(&["backups", "verify", cluster]).ok();
}

fn chosen<'v>(items: &'v [Value], verdict: &str) -> Vec<&'v str> {
    let fit = items.iter().filter(|item| item["verdict"] == verdict);
    fit.map(|item| item["set"].as_str().expect("an id")).collect()
}

#[test]
fn pruning_shows_its_plan_first_and_leaves_what_the_policy_promises() {
    let house = House::new("prune");
    let policy = "[retention]\nlast = 2\ndaily = 4\nmonthly = 2\n";
    let (cluster, sets) = cluster_with_backups(&house, policy, 70);

    let plan = house.items(&["prune", &cluster]);
    assert_eq!(plan.len(), 71);
    let (keep, delete) = (chosen(&plan, "keep"), chosen(&plan, "delete"));
    assert!(sets[..4].iter().all(|set| keep.contains(&set.as_str())), "{keep:?}");
    assert!((4..=5).contains(&keep.len()), "four days, and the last of the month before: {keep:?}");
    assert!(plan.iter().all(|item| item["outcome"] == "planned"));
    assert!(plan.iter().all(|item| !item["reasons"].as_array().expect("a list").is_empty()), "each says why");
    house.pglife(&["prune", &cluster]).ok().says(&[
        &format!("nothing was deleted; {} backups", delete.len()),
        &format!("pglife prune {cluster} --confirm"),
    ]);
    assert_eq!(listed(&house, &cluster).len(), 71, "a plan deletes nothing");

    let done = house.pglife(&["prune", &cluster, "--confirm"]).ok();
    assert!(done.stderr.contains(&format!("{} backups deleted", delete.len())), "{}", done.stderr);
    assert_eq!(listed(&house, &cluster), keep);
    all_intact(&house, &cluster);
    for gone in delete {
        let left = files_below(&house.path("repo"));
        assert!(!left.iter().any(|file| file.to_string_lossy().contains(gone)), "{left:?}");
    }
    house.pglife(&["prune", &cluster, "--confirm"]).ok().says(&["0 backups deleted"]);
    // What stays restores.
    let oldest = house.name("oldest");
    house.pglife(&["restore", &cluster, "--backup", "oldest", "--into", &oldest]).ok();
}

#[test]
fn pins_deletions_and_exports() {
    let house = House::new("keep");
    let (cluster, sets) = cluster_with_backups(&house, "[retention]\nlast = 1\n", 3);
    let (newest, old) = (&sets[0], &sets[2]);

    // A pin holds against prune and against the hand.
    house.pglife(&["backups", "pin", &cluster, "--backup", old, "--reason", " "]).exits(2);
    house
        .pglife(&["backups", "pin", &cluster, "--backup", old, "--reason", "x", "--until", "2001-01-01"])
        .exits(2)
        .says(&["not later than now"]);
    house.pglife(&["backups", "pin", &cluster, "--backup", old, "--reason", "closing of 2026", "--until", "90d"]).ok();
    house.pglife(&["backups", "pin", &cluster, "--backup", old, "--reason", "again"]).exits(4).says(&[
        "pinned already until",
        "closing of 2026",
        "backups unpin",
    ]);
    let listed_old = house.items(&["backups", "list", &cluster]);
    let pinned: Vec<&Value> = listed_old.iter().filter(|item| item["pinned"].is_string()).collect();
    assert_eq!(pinned.len(), 1);
    assert!(pinned[0]["pinned"].as_str().expect("text").contains("closing of 2026"));
    house
        .pglife(&["backups", "delete", &cluster, "--backup", old, "--yes", "--force"])
        .exits(4)
        .says(&["pinned until", "backups unpin"]);
    let plan = house.items(&["prune", &cluster]);
    assert_eq!(chosen(&plan, "keep"), [old, newest]);

    // A pin that somebody damaged, or that a later version wrote, holds too.
    let pin = files_below(&house.path("repo")).into_iter().find(|file| file.to_string_lossy().contains("/pins/"));
    let pin = pin.expect("the pin's file");
    let sound = std::fs::read(&pin).expect("readable");
    std::fs::write(&pin, "{\"version\": 99}").expect("written");
    assert_eq!(chosen(&house.items(&["prune", &cluster]), "keep"), [old, newest]);
    std::fs::write(&pin, sound).expect("written");

    // By hand, one at a time; nobody is there to be asked.
    house.pglife(&["backups", "delete", &cluster, "--backup", &sets[3]]).exits(4).says(&["--yes"]);
    house.pglife(&["backups", "delete", &cluster, "--backup", &sets[3], "--yes"]).ok();
    house.pglife(&["prune", &cluster, "--confirm"]).ok();
    assert_eq!(listed(&house, &cluster), [old.as_str(), newest]);
    house.pglife(&["backups", "unpin", &cluster, "--backup", old]).ok();
    house.pglife(&["backups", "delete", &cluster, "--backup", old, "--yes"]).ok();
    house
        .pglife(&["backups", "delete", &cluster, "--backup", newest, "--yes"])
        .exits(4)
        .says(&["it is the only dump of cluster", "--force"]);

    // An export is the set, byte by byte.
    let to = house.path("safe/export");
    house.pglife(&["backups", "export", &cluster, "--to", to.to_str().expect("text")]).ok();
    let folder = house.set_folder(&cluster, newest);
    assert_eq!(contents(&to), contents(&folder));
    house.pglife(&["backups", "export", &cluster, "--to", to.to_str().expect("text")]).exits(4).says(&["not an empty"]);

    // A damaged one is not exported.
    let object = folder.join("globals.sql.zst");
    let mut bytes = std::fs::read(&object).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&object).expect("removed");
    std::fs::write(&object, bytes).expect("written");
    let other = house.path("safe/other");
    house
        .pglife(&["backups", "export", &cluster, "--to", other.to_str().expect("text")])
        .exits(21)
        .says(&["globals.sql.zst: its digest is", "was not written"]);
    assert_eq!(std::fs::read_dir(house.path("safe")).expect("a folder").count(), 1, "nothing half-made is left");

    house.pglife(&["backups", "delete", &cluster, "--backup", newest, "--yes", "--force"]).ok();
    assert!(listed(&house, &cluster).is_empty());
}

/// Names and bytes of every file of a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |file: &std::path::PathBuf| {
        let name = file.strip_prefix(folder).expect("below").to_string_lossy().into_owned();
        (name, std::fs::read(file).expect("readable"))
    };
    files_below(folder).iter().map(read).collect()
}

#[test]
fn a_pruning_that_is_killed_leaves_whole_backups_and_the_next_one_goes_on() {
    let house = House::new("prunekill");
    let (cluster, _) = cluster_with_backups(&house, "[retention]\nlast = 1\n", 150);
    let mut kills = 0;
    for wait in [40, 60, 80, 100, 120] {
        let mut pruning = house.command(&["prune", &cluster, "--confirm"]);
        let mut child = pruning.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        std::thread::sleep(Duration::from_millis(wait));
        kills += i32::from(child.try_wait().expect("asked").is_none());
        child.kill().ok();
        child.wait().expect("ended");
        house.pglife(&["repo", "check"]).ok();
    }
    assert!(kills > 0, "it was never killed: the test does not see it");
    all_intact(&house, &cluster);
    house.pglife(&["prune", &cluster, "--confirm"]).ok();
    assert_eq!(listed(&house, &cluster).len(), 1);
    // What cut deletions left has ids of days ago; without a lease, that of yesterday goes as well.
    house.pglife(&["repo", "gc", "--lease", "0s"]).ok();
    let sets = house.set_folder(&cluster, &listed(&house, &cluster)[0]);
    assert_eq!(std::fs::read_dir(sets.parent().expect("sets")).expect("a folder").count(), 1);
    let again: Value = serde_json::from_str(&house.pglife(&["repo", "gc", "-o", "json"]).ok().stdout).expect("JSON");
    assert_eq!(again["items"].as_array().expect("a list").len(), 0);
    all_intact(&house, &cluster);
}

#[test]
fn clearing_takes_leftovers_and_no_backup() {
    let house = House::new("gc");
    let cluster = house.policy("main", "17", "");
    let old = SetId::new(Timestamp::now() - SignedDuration::from_hours(30), Kind::Dump, 7);
    let young = SetId::new(Timestamp::now() - SignedDuration::from_hours(1), Kind::Dump, 8);
    let write = |path: &str, text: &str| {
        let path = house.path("repo").join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
        path
    };
    // A leftover is as young as the last thing in it, whatever its name.
    let age = |path: std::path::PathBuf| {
        let file = std::fs::File::options().write(true).open(path).expect("opened");
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(25 * 3600)).expect("set");
    };
    let lineage = format!("{cluster}/7412345678901234567-17");
    age(write(&format!("{lineage}/sets/{old}/globals.sql.zst"), "left"));
    let copied = SetId::new(Timestamp::now() - SignedDuration::from_hours(300), Kind::Dump, 10);
    write(&format!("{lineage}/sets/{copied}/globals.sql.zst"), "being copied back elsewhere");
    write(&format!("{lineage}/sets/{young}/globals.sql.zst"), "being written elsewhere");
    // Nobody knows what is in a set that a later version wrote; it has a COMMIT.
    let later = SetId::new(Timestamp::now() - SignedDuration::from_hours(40), Kind::Dump, 9);
    write(&format!("{lineage}/sets/{later}/globals.sql.zst"), "later");
    write(&format!("{lineage}/sets/{later}/COMMIT"), "{\"version\": 99}");
    age(write(&format!("{cluster}/incoming/20200101t000000z-0badcafe/db/x.dump.zst"), "left"));

    let found = house.items(&["repo", "gc", "--dry-run"]);
    assert_eq!(found.len(), 2, "{found:?}");
    house.pglife(&["repo", "gc"]).ok().says(&["2 leftovers and 0 unfinished uploads removed"]);
    let left: Vec<String> =
        files_below(&house.path("repo")).iter().map(|file| file.to_string_lossy().into_owned()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    for stays in [&young, &copied] {
        assert!(left.iter().any(|file| file.contains(stays.as_str())), "{left:?}");
    }
    // It cannot be read, so nothing is decided about it; and the operator hears of it.
    house.pglife(&["prune", &cluster, "--confirm"]).exits(3).says(&["left alone", "format version 99"]);
    assert!(files_below(&house.path("repo")).len() == 5);
}

#[test]
fn pruning_needs_neither_docker_nor_a_running_cluster_and_all_repositories() {
    let house = House::new("nodocker");
    let cluster =
        house.policy("main", "17", "host = \"local\"\n[backup.dump]\nrepos = [\"local\"]\n[retention]\nlast = 1\n");
    house.write(
        "pglife.toml",
        "state_dir = \"state\"\npolicies = \"policies\"\n[hosts.local]\nendpoint = \"unix:///nowhere.sock\"\n[repos.local]\ntype = \"local\"\npath = \"repo\"\n[repos.away]\ntype = \"local\"\npath = \"away\"\n",
    );
    house.pglife(&["prune", &cluster, "--confirm"]).ok();
    house
        .pglife(&["prune", &cluster, "--confirm", "--repo", "away"])
        .exits(10)
        .says(&["repository \"away\"", "nothing was changed in any repository"]);
    house.pglife(&["prune", "nobody"]).exits(5);
    // While a run works on the cluster, nothing is deleted.
    let lock = std::fs::File::options().write(true).open(house.path(&format!("state/locks/{cluster}.lock")));
    let lock = lock.expect("the file of an earlier run");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("locked");
    house.pglife(&["prune", &cluster, "--confirm"]).exits(11);
    house.pglife(&["prune", &cluster]).ok();
}

/// The objects of a set, `COMMIT` last.
const OBJECTS: [&str; 4] = ["db/x.dump.zst", "globals.sql.zst", "manifest.json", "COMMIT"];

fn store_set(store: &dyn Store, location: &SetLocation) {
    for name in OBJECTS {
        store.put(&Key::new(location.key(name)).expect("a key"), b"x").expect("stored");
    }
}

fn names(store: &dyn Store) -> Vec<String> {
    store.list(None).expect("listed").into_iter().map(|listed| listed.key.into()).collect()
}

#[test]
fn a_bucket_that_locks_a_set_keeps_it_whole_and_tells_until_when() {
    let house = House::new("prunelock");
    let server = Server::start(&house, "s3");
    let location = SetLocation {
        cluster: "main".parse().expect("a name"),
        lineage: "7412345678901234567-17".parse().expect("a lineage"),
        id: "20260101T023000Z-dump-k3x9qa".parse().expect("an id"),
    };

    let free = store(&server.bucket("free"));
    store_set(&free, &location);
    assert_eq!(remove_set(&free, &location).expect("an outcome"), Outcome::Deleted);
    assert_eq!(names(&free), [""; 0]);

    let mut bucket = server.locked_bucket("locked");
    // A set that was cut when it was stored, without a lock: what is there is no backup.
    let unlocked = store(&bucket);
    unlocked.put(&Key::new(location.key("globals.sql.zst")).expect("a key"), b"x").expect("stored");
    let found = leftovers::find(&unlocked, leftovers::LEASE, Timestamp::now()).expect("found");
    assert!(found.is_empty(), "it was stored just now: {found:?}");
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(25);
    let found = leftovers::find(&unlocked, leftovers::LEASE, tomorrow).expect("found");
    assert!(matches!(&found[..], [only] if matches!(only.kind, LeftoverKind::Uncommitted(_))), "{found:?}");
    assert_eq!(remove_set(&unlocked, &location).expect("an outcome"), Outcome::Deleted);

    bucket.object_lock = Some(ObjectLock { seconds: 86_400, mode: LockMode::Governance });
    let locked = store(&bucket);
    store_set(&locked, &location);
    let before = names(&locked);
    assert_eq!(before.len(), OBJECTS.len());
    let outcome = remove_set(&locked, &location).expect("an outcome");
    let Outcome::Locked(Some(until)) = outcome else { panic!("{outcome:?}") };
    let hours = until.duration_since(Timestamp::now()).as_hours();
    assert!((22..=24).contains(&hours), "locked for {hours} hours more");
    assert_eq!(names(&locked), before, "nothing of it is touched");
}

#[test]
fn every_repository_is_judged_alone_and_all_of_them_must_be_there() {
    let house = House::new("prunetwo");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[repos.nas]\ntype = \"local\"\npath = \"nas\"\n"));
    house.pglife(&["repo", "init", "nas"]).ok();
    let policy = "[backup.dump]\nrepos = [\"local\", \"nas\"]\n[retention]\nlast = 1\n";
    let cluster = house.cluster("kept", "17", policy);
    let sets: Vec<String> = (0..3).map(|_| house.backup(&cluster)).collect();
    let in_repository = |name: &str| {
        let items = house.items(&["backups", "list", &cluster, "--repo", name]);
        items.iter().map(|item| item["set"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };

    // A pin holds in both.
    house.pglife(&["backups", "pin", &cluster, "--backup", &sets[0], "--reason", "audit"]).ok();
    let pins = |folder: &str| {
        let files = files_below(&house.path(folder));
        files.into_iter().filter(|file| file.to_string_lossy().contains("/pins/")).count()
    };
    assert_eq!((pins("repo"), pins("nas")), (1, 1));

    // With one of them away nothing is deleted in the other.
    std::fs::rename(house.path("nas"), house.path("away")).expect("moved");
    house.pglife(&["prune", &cluster, "--confirm"]).exits(10).says(&["nothing was changed in any", "--repo"]);
    assert_eq!(in_repository("local"), sets);
    house.pglife(&["prune", &cluster, "--confirm", "--repo", "local"]).ok().says(&["1 backup deleted"]);
    std::fs::rename(house.path("away"), house.path("nas")).expect("moved back");
    assert_eq!((in_repository("local").len(), in_repository("nas").len()), (2, 3));

    let plan = house.items(&["prune", &cluster]);
    let going: Vec<&Value> = plan.iter().filter(|item| item["verdict"] == "delete").collect();
    assert!(matches!(going[..], [only] if only["repository"] == "nas" && only["set"] == sets[1].as_str()), "{plan:?}");
    house.pglife(&["prune", &cluster, "--confirm"]).ok();
    for name in ["local", "nas"] {
        assert_eq!(in_repository(name), [sets[0].as_str(), sets[2].as_str()], "{name}");
    }
    all_intact(&house, &cluster);
    house.pglife(&["backups", "unpin", &cluster, "--backup", &sets[0]]).ok();
    assert_eq!((pins("repo"), pins("nas")), (0, 0));
}
