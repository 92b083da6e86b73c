//! Deletions that are cut anywhere, locks of the store, leftovers.

use std::sync::Arc;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::Outcome::{Deleted, InUse, Kept};
use super::leftovers::{LEASE, LeftoverKind};
use super::*;
use crate::backup_set::{Kind, Manifest, Pin, example_manifest};
use crate::configuration::{self, Configuration};
use crate::policy::Duration;
use crate::storage::faulty::{Ban, Fault, FaultyStore};
use crate::storage::local::LocalStore;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

const LOCKED_UNTIL: &str = "2027-01-01T00:00:00Z";

/// A configuration with a repository and the cluster chado, whose retention keeps the last two.
struct House {
    folder: tempfile::TempDir,
    store: LocalStore,
    control: ControlPlane,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        std::fs::create_dir(folder.path().join("policies")).expect("a folder");
        write("pglife.toml", "state_dir = 'state'\n[repos.local]\ntype = 'local'\npath = 'repo'\n");
        write("policies/chado.toml", "[cluster]\nmajor = '17'\n[retention]\nlast = 2\n");
        let opened = configuration::open(Some(&folder.path().join("pglife.toml"))).expect("settings");
        let configuration: Configuration =
            opened.with_folder(&folder.path().join("policies")).expect("a configuration");
        let control = ControlPlane::open(configuration, CancellationToken::new()).expect("opened");
        let root = folder.path().join("repo");
        Repository::init(&crate::storage::Location::Local { folder: root.clone() }).expect("a repository");
        Self { folder, store: LocalStore::at(root), control }
    }

    fn policy(&self) -> &Policy {
        self.control.configuration.policies.values().next().expect("a policy")
    }

    fn repository(&self) -> (RepoName, Repository) {
        let open = self.control.repositories_of(self.policy(), None).expect("a repository").open;
        open.into_iter().next().expect("one")
    }

    /// Writes a committed set of the day `day` of November 2026, as a backup would.
    fn set(&self, day: u8) -> Commit {
        self.set_on(day, None)
    }

    /// The same, of one that builds on `parent`.
    fn set_on(&self, day: u8, parent: Option<&Commit>) -> Commit {
        let manifest = Manifest {
            set: SetId::new(at(&format!("2026-11-{day:02}T02:30:00Z")), Kind::Dump, day.into()),
            completed_at: at(&format!("2026-11-{day:02}T02:40:00Z")),
            ..example_manifest()
        };
        let bytes = manifest.to_bytes();
        let parent = parent.map(|parent| parent.set.clone());
        let commit = Commit { parent, ..Commit::to_manifest(&manifest, &bytes) };
        let place = |name: &str| key(&commit.location().key(name));
        for object in &manifest.objects {
            self.store.put(&place(&object.name), b"stored").expect("stored");
        }
        self.store.put(&place("manifest.json"), &bytes).expect("stored");
        self.store.put(&place("COMMIT"), &commit.to_bytes()).expect("stored");
        commit
    }

    /// As if the object had been stored then.
    fn age(&self, text: &str, stored_at: &str) {
        let file = std::fs::File::options().write(true).open(self.store.path(&key(text))).expect("opened");
        file.set_modified(at(stored_at).into()).expect("set");
    }

    fn keys(&self) -> Vec<String> {
        self.store.list(None).expect("listed").into_iter().map(|listed| listed.key.into()).collect()
    }

    /// The listed sets, each of which must be whole.
    fn whole_sets(&self) -> Vec<SetId> {
        let (_, repository) = self.repository();
        let catalogue = catalogue::read(&self.control, &repository, None).expect("listed");
        assert!(catalogue.unreadable.is_empty());
        for commit in &catalogue.sets {
            let manifest = catalogue::manifest(&repository, commit, None).expect("a manifest");
            for object in &manifest.objects {
                let found = self.store.head(&key(&commit.location().key(&object.name))).expect("an object");
                assert_eq!(found.bytes, object.stored.bytes);
            }
        }
        catalogue.sets.into_iter().map(|commit| commit.set).collect()
    }

    fn pin(&self, commit: &Commit, until: Option<Timestamp>) -> Result<(), OperationError> {
        let (name, repository) = self.repository();
        let now = Timestamp::now();
        let pin = Pin::new(commit.set.clone(), "the audit", now, until).expect("a pin");
        pins::pin(&self.control, &pins::Holder { name, repository, commit: commit.clone() }, &pin)
    }

    async fn prune(&self) -> PruneResult {
        prune(&self.control, self.policy(), None).await.expect("a result")
    }
}

/// Long after everything in the tests.
const LATER: &str = "2027-06-01T00:00:00Z";

#[tokio::test]
async fn pruning_deletes_what_the_plan_says_and_leaves_no_object_of_it() {
    let house = House::new();
    let sets: Vec<Commit> = (1..=5).map(|day| house.set(day)).collect();
    house.pin(&sets[1], None).expect("pinned");
    let plan = plan(&house.control, house.policy(), None, Timestamp::now()).expect("a plan");
    let going: Vec<&SetId> = plan[0].going().map(|planned| &planned.commit.set).collect();
    assert_eq!(going, [&sets[0].set, &sets[2].set]);
    assert_eq!(house.whole_sets().len(), 5, "a plan changes nothing");

    let result = house.prune().await;
    assert!(result.failure.is_none());
    assert_eq!(result.pruned[0].outcomes, [Deleted, Kept, Deleted, Kept, Kept]);
    assert_eq!(house.whole_sets(), [&sets[1].set, &sets[3].set, &sets[4].set].map(Clone::clone));
    let left = house.keys();
    for gone in [&sets[0], &sets[2]] {
        assert!(!left.iter().any(|key| key.contains(gone.set.as_str())), "{left:?}");
    }
    let runs = house.control.state.runs(None, 1).expect("runs");
    assert_eq!((runs[0].operation, runs[0].exit), (Operation::Prune, Some(0)));
    assert_eq!(
        std::fs::read_dir(house.folder.path().join("state/sets")).expect("locks").count(),
        1,
        "the pinned one's"
    );
}

/// Killed between any two calls to the store, a deletion leaves sets that are whole, and leftovers that gc clears.
#[test]
fn a_deletion_that_is_cut_anywhere_leaves_whole_sets_and_leftovers() {
    let mut calls = 0;
    loop {
        let house = House::new();
        let sets: Vec<Commit> = (1..=3).map(|day| house.set(day)).collect();
        // An ended pin goes with its set.
        let ended = Pin {
            until: Some(at("2026-11-02T00:00:00Z")),
            ..Pin::new(sets[0].set.clone(), "x", at("2026-11-01T03:00:00Z"), None).expect("a pin")
        };
        house.store.put(&key(&sets[0].location().pin_key()), &ended.to_bytes()).expect("stored");
        let troubled = FaultyStore::failing(Arc::new(house.store.clone()), calls, Fault::Killed);
        let outcome = remove_set(&troubled, &sets[0].location());

        let listed = house.whole_sets();
        assert!(listed.ends_with(&[sets[1].set.clone(), sets[2].set.clone()]));
        assert_eq!(calls == 0, listed.contains(&sets[0].set), "killed after {calls} calls");
        if calls > 0 {
            let (_, repository) = house.repository();
            let collected =
                leftovers::collect(&house.control, &repository, LEASE, false, at(LATER)).expect("collected");
            assert!(collected.leftovers.iter().all(|(_, outcome)| *outcome == Outcome::Deleted));
            assert!(!house.keys().iter().any(|key| key.contains(sets[0].set.as_str())), "killed after {calls} calls");
            assert_eq!(house.whole_sets().len(), 2);
        }
        match outcome {
            Ok(outcome) => {
                assert_eq!(outcome, Outcome::Deleted);
                break;
            }
            Err(error) => assert!(matches!(error, StorageError::Io { .. }), "{error}"),
        }
        calls += 1;
    }
    assert_eq!(calls, 9, "COMMIT, a listing, four objects, the manifest, a look for COMMIT, the pin");
}

#[test]
fn what_the_store_locks_stays_and_is_told_with_its_date() {
    let house = House::new();
    let commit = house.set(1);
    let location = commit.location();
    let until = Some(at(LOCKED_UNTIL));

    let before = house.keys();
    let keeping = |keys: Vec<Key>, ban| FaultyStore::keeping(Arc::new(house.store.clone()), keys, ban);
    let ban = Ban::Locked(at(LOCKED_UNTIL));
    let locked = keeping(before.iter().map(|text| key(text)).collect(), ban);
    assert_eq!(remove_set(&locked, &location).expect("an outcome"), Outcome::Locked(until));
    assert_eq!(house.keys(), before, "with COMMIT locked nothing of the set is touched");

    let globals = key(&location.key("globals.sql.zst"));
    let partly = keeping(vec![globals], ban);
    assert_eq!(remove_set(&partly, &location).expect("an outcome"), Outcome::PartlyLocked(until));
    assert!(house.whole_sets().is_empty());
    assert_eq!(remove_set(&house.store, &location).expect("an outcome"), Outcome::Deleted, "the lock has ended");
}

#[test]
fn what_the_credentials_forbid_stays_and_is_told_by_name() {
    let house = House::new();
    let commit = house.set(1);
    let location = commit.location();
    let keeping = |keys: &[Key]| FaultyStore::keeping(Arc::new(house.store.clone()), keys.to_vec(), Ban::Forbidden);
    let (commit_key, globals) = (key(&location.commit_key()), key(&location.key("globals.sql.zst")));

    let before = house.keys();
    let outcome = remove_set(&keeping(std::slice::from_ref(&commit_key)), &location).expect("an outcome");
    assert_eq!(outcome, Outcome::Forbidden);
    assert_eq!(house.keys(), before, "nothing of the set is touched");
    assert_eq!(house.whole_sets(), std::slice::from_ref(&commit.set));

    let partly = keeping(std::slice::from_ref(&globals));
    let outcome = remove_set(&partly, &location).expect("an outcome");
    assert_eq!(outcome, Outcome::PartlyForbidden(vec![globals]));
    assert!(house.whole_sets().is_empty());
    assert_eq!(house.keys().len(), 2, "the others are gone: {:?}", house.keys());
}

#[tokio::test]
async fn a_set_that_is_read_or_pinned_meanwhile_stays() {
    let house = House::new();
    let sets: Vec<Commit> = (1..=4).map(|day| house.set(day)).collect();
    let read = house.control.state.hold_set(&sets[0].set).expect("held");
    let result = house.prune().await;
    assert_eq!(result.pruned[0].outcomes[..2], [Outcome::InUse, Outcome::Deleted]);
    house.pin(&sets[0], None).expect("pinned while it is read");
    drop(read);

    // A plan that was made before the pin.
    let stale = delete_set(&house.control, &house.store, &sets[0], Timestamp::now()).expect("an outcome");
    assert_eq!(stale, Outcome::InUse);
    assert_eq!(house.whole_sets().len(), 3);
}

#[tokio::test]
async fn an_interrupted_pruning_says_what_was_not_done() {
    let house = House::new();
    (1..=4).for_each(|day| drop(house.set(day)));
    house.control.cancel.cancel();
    let result = house.prune().await;
    assert_eq!(result.failure.expect("a failure").exit, Exit::Interrupted);
    assert_eq!(result.pruned[0].outcomes, [Outcome::NotDeleted, Outcome::NotDeleted, Kept, Kept]);
    assert_eq!(house.whole_sets().len(), 4);
}

#[test]
fn pins_are_not_replaced_by_accident() {
    let house = House::new();
    let commit = house.set(1);
    house.pin(&commit, Some(at("2090-01-01T00:00:00Z"))).expect("pinned");
    let again = house.pin(&commit, None).expect_err("pinned already");
    assert_eq!(again.exit, Exit::Refused);
    assert!(again.what.contains("until 2090-01-01T00:00:00Z: the audit"), "{}", again.what);

    let (name, repository) = house.repository();
    let holder = pins::Holder { name, repository, commit: commit.clone() };
    assert!(pins::unpin(&holder).expect("unpinned"));
    assert!(!pins::unpin(&holder).expect("asked"), "there is none any more");

    // One that has ended is replaced.
    let ended =
        Pin::new(commit.set.clone(), "x", at("2026-11-01T03:00:00Z"), Some(at("2026-11-02T00:00:00Z"))).expect("a pin");
    house.store.put(&key(&commit.location().pin_key()), &ended.to_bytes()).expect("stored");
    house.pin(&commit, None).expect("pinned");

    // A set that is gone gets none.
    remove_set(&house.store, &commit.location()).expect("removed");
    assert_eq!(house.pin(&commit, None).expect_err("gone").exit, Exit::NotFound);
    assert_eq!(house.keys(), ["pglife-repo.json"]);
}

#[tokio::test]
async fn what_must_stay_is_deleted_by_hand_only_with_force_and_never_with_a_pin() {
    let house = House::new();
    let (name, repository) = house.repository();
    let only = house.set(1);
    let refused =
        delete(&house.control, house.policy(), &name, &repository, &only, false).await.expect_err("the only one");
    assert_eq!(refused.exit, Exit::Refused);
    assert!(refused.what.contains("the only dump of cluster \"chado\""), "{}", refused.what);
    let second = house.set(2);
    house.pin(&second, None).expect("pinned");
    let pinned = delete(&house.control, house.policy(), &name, &repository, &second, true).await.expect_err("pinned");
    assert!(pinned.next.expect("advice").contains("backups unpin chado"));
    let done = delete(&house.control, house.policy(), &name, &repository, &only, false).await;
    assert_eq!(done.expect("deleted"), Outcome::Deleted);
    assert_eq!(house.whole_sets(), [second.set]);
}

/// What cannot go yet keeps what it builds on; and nothing goes before what builds on it.
#[tokio::test]
async fn a_set_goes_after_those_that_build_on_it() {
    let house = House::new();
    let full = house.set(1);
    let child = house.set_on(2, Some(&full));
    house.set_on(3, Some(&child));
    let [other, newest] = [4, 5].map(|day| house.set(day));
    let (name, repository) = house.repository();
    let by_hand = delete(&house.control, house.policy(), &name, &repository, &full, true).await.expect_err("needed");
    assert!(by_hand.next.expect("advice").contains(child.set.as_str()), "whatever the force");

    let held = house.control.state.hold_set(&child.set).expect("held");
    let outcomes = |result: &PruneResult| result.pruned[0].outcomes.clone();
    assert_eq!(outcomes(&house.prune().await), [Outcome::Needed, InUse, Deleted, Kept, Kept]);
    assert_eq!(house.whole_sets(), [&full, &child, &other, &newest].map(|commit| commit.set.clone()));
    drop(held);
    assert_eq!(outcomes(&house.prune().await), [Deleted, Deleted, Kept, Kept]);

    // One that stays keeps all of its chain.
    let sixth = house.set_on(6, Some(&newest));
    assert_eq!(outcomes(&house.prune().await), [Deleted, Kept, Kept]);
    let seventh = house.set_on(7, Some(&sixth));
    house.set_on(8, Some(&seventh));
    assert_eq!(outcomes(&house.prune().await), [const { Kept }; 4]);
}

#[test]
fn leftovers_are_what_no_backup_needs_and_nobody_works_on() {
    let house = House::new();
    let (_, repository) = house.repository();
    let commit = house.set(1);
    house.pin(&commit, None).expect("pinned");
    let set = |day: &str| format!("chado/7412345678901234567-17/sets/{day}T023000Z-dump-aaaaaa/globals.sql.zst");
    let pin = |day: &str| format!("chado/7412345678901234567-17/pins/{day}T023000Z-dump-aaaaaa.json");
    for text in [
        set("20261102"),
        set("20261109"),
        pin("20261103"),
        "chado/incoming/20261104t023000z-00000001/db/x.dump.zst".to_owned(),
        "gone/incoming/20261105t023000z-00000001/globals.sql.zst".to_owned(),
        // Nobody can tell what these are, or how old.
        "chado/incoming/readme/x".to_owned(),
        "chado/7412345678901234567-17/sets/notes.txt".to_owned(),
        "chado/7412345678901234567-17/sets/99999999T999999Z-dump-aaaaaa/globals.sql.zst".to_owned(),
        "chado/7412345678901234567-17/drills/x.json".to_owned(),
    ] {
        house.store.put(&key(&text), b"left").expect("stored");
        house.age(&text, "2026-11-08T02:30:00Z");
    }
    // An old backup that somebody copies back today.
    let copied = set("20261101").replace("aaaaaa", "bbbbbb");
    house.store.put(&key(&copied), b"left").expect("stored");
    house.age(&copied, "2026-11-09T11:00:00Z");
    let now = at("2026-11-09T12:00:00Z");
    let found = leftovers::find(&house.store, LEASE, now).expect("found");
    let places: Vec<&str> = found.iter().map(|leftover| leftover.place.as_str()).collect();
    assert_eq!(
        places,
        [
            pin("20261103").as_str(),
            "chado/7412345678901234567-17/sets/20261102T023000Z-dump-aaaaaa",
            "chado/incoming/20261104t023000z-00000001",
            "gone/incoming/20261105t023000z-00000001",
        ]
    );
    assert_eq!(found[0].kind, LeftoverKind::Pin);

    // A run works on chado: what is of it stays.
    let cluster = house.policy().name.clone();
    let lock = house.control.state.lock_cluster(&cluster, Operation::Dump, now).expect("locked");
    let collected = leftovers::collect(&house.control, &repository, LEASE, false, now).expect("collected");
    let outcomes: Vec<Outcome> = collected.leftovers.into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [InUse, InUse, InUse, Deleted]);
    drop(lock);
    let dry = leftovers::collect(&house.control, &repository, LEASE, true, now).expect("looked");
    assert_eq!(dry.leftovers.len(), 3);
    leftovers::collect(&house.control, &repository, LEASE, false, now).expect("collected");
    assert!(leftovers::find(&house.store, LEASE, now).expect("found").is_empty());
    assert_eq!(house.whole_sets(), [commit.set]);
    assert_eq!(house.keys().len(), 14, "{:?}", house.keys());
    assert!(house.keys().contains(&copied));
}

#[test]
fn uploads_of_a_run_that_works_are_not_swept() {
    let house = House::new();
    let (_, repository) = house.repository();
    let upload = |cluster: &str| {
        let place = format!("{cluster}/7412345678901234567-17/sets/20261102T023000Z-dump-aaaaaa/globals.sql.zst");
        house.store.begin(&key(&place)).expect("begun")
    };
    let chado = house.policy().name.clone();
    let _uploads = [upload("chado"), upload("other")];
    let now = at("2999-01-01T00:00:00Z");
    let swept = || leftovers::collect(&house.control, &repository, LEASE, false, now).expect("collected").uploads;
    let lock = house.control.state.begin_run("r1", &chado, Operation::Dump, now).expect("begun");
    assert_eq!(swept(), 0, "one is of the run, and whose the other one is cannot be known");
    drop(lock);
    let other: ClusterName = "other".parse().expect("a name");
    let lock = house.control.state.begin_run("r2", &other, Operation::Dump, now).expect("begun");
    assert_eq!(swept(), 1);
    drop(lock);
    assert_eq!(swept(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// What is committed is never a leftover, whatever the lease and the clock.
    #[test]
    fn a_committed_set_is_no_leftover(days in prop::collection::btree_set(1u8..29, 0..4), lease in 0u64..100_000, now in 0i64..4_000_000_000) {
        let house = House::new();
        for day in &days {
            house.set(*day);
        }
        let now = Timestamp::from_second(now).expect("in range");
        prop_assert!(leftovers::find(&house.store, Duration::from_secs(lease), now).expect("found").is_empty());
    }
}
