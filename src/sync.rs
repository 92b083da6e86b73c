//! `pglife repo sync`: the copies that a repository should hold and does not, made from another one that does.
//!
//! ```text
//! what each repository holds ─▶ plan (pure): what is missing where, and is worth keeping
//!   ─▶ for each set: run begins ─▶ worker copies the stored objects, checked ─▶ COMMIT, the same bytes ─▶ run ends
//! ```
//!
//! The sets are copied as they lie there: nothing is opened, so encrypted ones need no key. Until `COMMIT` is there a copy is
//! no backup; a run that ends in any other way removes what it wrote.
//!
//! The lock of the cluster keeps out who shares the state directory or Consul. Somebody who shares neither may copy the same
//! set, or delete it, at the same time; [`commit_copy`] says how a set that is listed is whole all the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::backup_set::{Commit, Measured, SetId, SetLocation, StoredObject};
use crate::cluster::RepoName;
use crate::control::{
    ControlPlane, Held, OperationError, Progress, Repositories, Tick, catalogue, close_worker, failed,
};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::state::{Operation, Thing};
use crate::storage::{Key, Repository, StorageError, Store};
use crate::worker::session::{Session, SessionError};
use crate::worker::{CopyJob, Event, Request};

/// A copy that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The set.
    pub commit: Commit,
    /// The repositories that hold it, in the order they are read from: never empty.
    pub from: Vec<RepoName>,
    /// The one that does not.
    pub to: RepoName,
}

/// What is missing in `to`, oldest first: every set that another repository holds, and that `keeps` says is worth keeping.
/// Pure.
pub fn plan(sets: &[Held], to: &RepoName, keeps: &BTreeSet<SetId>) -> Vec<Missing> {
    sets.iter()
        .filter(|held| !held.repositories.contains(to) && keeps.contains(&held.commit.set))
        .filter(|held| !held.repositories.is_empty())
        .map(|held| Missing { commit: held.commit.clone(), from: held.repositories.clone(), to: to.clone() })
        .collect()
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// The repository it was made from.
    pub from: RepoName,
    /// The damage that was found in the copies that were tried before.
    pub damage: Vec<OperationError>,
}

/// Makes one missing copy, from the first holder whose own is whole.
pub async fn copy(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &Repositories,
    missing: &Missing,
    progress: Progress<'_>,
) -> Result<Copied, OperationError> {
    let Missing { commit, from, to } = missing;
    let what = |from: &RepoName| format!("copying backup {} from repository \"{from}\" to \"{to}\" failed", commit.set);
    let first = from.first().expect("planned from one at least");
    let open = |name: &RepoName| {
        let found = repositories.open.iter().find(|(open, _)| open == name).map(|(_, repository)| repository);
        found.ok_or_else(|| {
            OperationError::new(Exit::Repository, format!("{}: repository \"{name}\" is not open", what(first)))
        })
    };
    let destination = open(to)?;
    destination.store().check_writable().map_err(failed(what(first)))?;
    // Whoever deletes it waits.
    let _held = control.state.hold_set(&commit.set).map_err(failed(what(first)))?;
    let run = control.begin_without_engine(Operation::Sync, &policy.name).await?;
    let thing = Thing::SetObjects { repository: to.clone(), set: commit.location() };
    let mut damage = Vec::new();
    let copied = async {
        for from in from {
            let copied = async {
                // A run that could not clear up behind itself is mostly why the copy is missing.
                control.clear_uncommitted(to, &commit.location())?;
                run.will_make(&policy.host, &thing)?;
                work(control, open(from)?, destination, commit, &what(from), progress).await
            };
            match copied.await {
                Ok(()) => return Ok(from.clone()),
                Err(error) if error.exit == Exit::VerifyFailed => damage.push(error),
                Err(error) => return Err(error),
            }
        }
        Err(damage.swap_remove(0))
    };
    let copied: Result<RepoName, OperationError> = copied.await;
    let copied = copied.map_err(|error| error.safe("the copies that there are, and the cluster, are as they were"));
    let summary = |from: &RepoName| (Exit::Ok, format!("copied from \"{from}\" to \"{to}\""), Some(commit.set.clone()));
    let from = run.end(copied, summary).await?;
    Ok(Copied { from, damage })
}

async fn work(
    control: &ControlPlane,
    source: &Repository,
    destination: &Repository,
    commit: &Commit,
    what: &str,
    progress: Progress<'_>,
) -> Result<(), OperationError> {
    let location = commit.location();
    let key = |text: String| Key::new(text).expect("a set's names make a key");
    let mut objects = catalogue::stored_objects(source, commit)?;
    let manifest = Measured::of(&catalogue::stored_manifest(source, commit)?);
    objects.push(StoredObject { name: commit.naming().document("manifest.json"), stored: manifest });
    let expected = Some(objects.iter().map(|object| object.stored.bytes).sum());
    let sizes = objects.iter().map(|object| (key(location.key(&object.name)), object.stored.bytes)).collect();
    let job = CopyJob {
        from: source.folder_location(key(location.folder())),
        to: destination.folder_location(key(location.folder())),
        objects,
    };
    progress(Tick::Step(format!("copying {}", commit.set)));
    let mut session = Session::in_child().await.map_err(failed(what))?;
    let done = session
        .request(&Request::Copy(job), &control.cancel, |event| {
            if let Event::Progress { plain_bytes, stored_bytes } = event {
                progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected });
            }
        })
        .await;
    close_worker(session).await;
    done.map_err(|error| match &error {
        SessionError::Failed { trouble: crate::worker::Trouble::Damaged, .. } => failed(what)(error).next(format!(
            "see what else is damaged: pglife backups verify {} --backup {}; then take a new backup",
            commit.cluster, commit.set
        )),
        _ => failed(what)(error),
    })?;
    // The same bytes make the same commitment; and as always it comes last.
    let commit_key = key(location.commit_key());
    let bytes = source.store().read_small(&commit_key, catalogue::COMMIT_LIMIT).map_err(failed(what))?;
    if commit_copy(destination.store(), &location, &sizes, &bytes).map_err(failed(what))? {
        return Ok(());
    }
    let why = format!("{what}: objects of it vanish: somebody deletes it there, or clears the repository");
    Err(OperationError::new(Exit::LockBusy, why)
        .next("see which other pglife works on this repository; then run the same command again"))
}

/// Makes a set of the objects that were copied, `sizes` of them; false if somebody takes them away meanwhile.
///
/// Who deletes the set removes `COMMIT` first, then the objects, and looks for `COMMIT` at the end
/// ([`remove_set`](crate::prune::remove_set)). So the objects are looked for once more after `COMMIT` is there: of a deletion
/// and a copy at the same time at least the later one sees the other, and takes `COMMIT` back.
fn commit_copy(
    store: &dyn Store,
    location: &SetLocation,
    sizes: &BTreeMap<Key, u64>,
    commit: &[u8],
) -> Result<bool, StorageError> {
    let key = |text: String| Key::new(text).expect("a set's names make a key");
    let (folder, commit_key) = (key(location.folder()), key(location.commit_key()));
    let is_whole = || -> Result<bool, StorageError> {
        let there: BTreeMap<Key, u64> =
            store.list(Some(&folder))?.into_iter().map(|found| (found.key, found.bytes)).collect();
        Ok(sizes.iter().all(|(key, bytes)| there.get(key) == Some(bytes)))
    };
    if !is_whole()? {
        return Ok(false);
    }
    match store.put(&commit_key, commit) {
        // Somebody else copied it too, or the answer to an earlier attempt was lost.
        Err(StorageError::AlreadyExists { path }) => match store.read_small(&commit_key, catalogue::COMMIT_LIMIT) {
            Ok(found) if found == commit => {}
            Err(StorageError::NotFound { .. }) => return Ok(false),
            Ok(_) => return Err(StorageError::AlreadyExists { path }),
            Err(error) => return Err(error),
        },
        stored => stored?,
    }
    if is_whole()? {
        // It may have gone again, but then all of it goes.
        return store.head(&commit_key).map(|_| true).or_else(absent);
    }
    store.delete(&commit_key).map(|()| false).or_else(absent)
}

/// What is not there is no error here.
fn absent(error: StorageError) -> Result<bool, StorageError> {
    match error {
        StorageError::NotFound { .. } => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backup_set::{COMMIT_VERSION, Digest, Kind};
    use crate::policy::retention::Pinning;
    use crate::prune::remove_set;
    use crate::storage::faulty::FaultyStore;
    use crate::storage::memory::MemoryStore;

    fn held(id: &str, repositories: &[&str]) -> Held {
        let at = "2026-11-22T02:30:00Z".parse().expect("a time");
        Held {
            commit: Commit {
                version: COMMIT_VERSION,
                set: format!("20261122T023000Z-dump-{id}").parse().expect("an id"),
                kind: Kind::Dump,
                cluster: "chado".parse().expect("a name"),
                lineage: "7412345678901234567-17".parse().expect("a lineage"),
                started_at: at,
                completed_at: at,
                manifest_blake3: Digest::of(b""),
                databases: 1,
                plain_bytes: 1,
                stored_bytes: 1,
                warnings: 0,
                damaged_pages: 0,
                unread_bytes: 0,
                parent: None,
                encryption: None,
            },
            repositories: repositories.iter().map(|name| name.parse().expect("a name")).collect(),
            pin: Pinning::Absent,
            judged: None,
        }
    }

    #[test]
    fn what_is_missing_and_worth_keeping_is_planned() {
        let sets = [
            held("aaaaaa", &["local", "offsite"]),
            held("bbbbbb", &["local"]),
            held("cccccc", &["nas"]),
            held("dddddd", &["local"]),
        ];
        let keeps: BTreeSet<SetId> = sets[..3].iter().map(|held| held.commit.set.clone()).collect();
        let offsite: RepoName = "offsite".parse().expect("a name");
        let planned: Vec<(String, String)> = plan(&sets, &offsite, &keeps)
            .into_iter()
            .map(|missing| (missing.commit.set.to_string(), missing.from[0].to_string()))
            .collect();
        let expected = [("20261122T023000Z-dump-bbbbbb", "local"), ("20261122T023000Z-dump-cccccc", "nas")];
        assert_eq!(planned, expected.map(|(set, from)| (set.to_owned(), from.to_owned())));
    }

    /// A set that is copied into a store.
    struct Copying {
        location: SetLocation,
        sizes: BTreeMap<Key, u64>,
    }

    impl Copying {
        fn new() -> Self {
            let location = held("aaaaaa", &[]).commit.location();
            let names = ["db/x.dump.zst", "globals.sql.zst", "manifest.json"];
            let sizes = names.map(|name| (Key::new(location.key(name)).expect("a key"), name.len() as u64));
            Self { location, sizes: sizes.into() }
        }

        /// Stores the objects; content with those that are there.
        fn write(&self, store: &dyn Store) {
            for key in self.sizes.keys() {
                let name = key.as_str().strip_prefix(&format!("{}/", self.location.folder())).expect("inside");
                match store.put(key, name.as_bytes()) {
                    Ok(()) | Err(StorageError::AlreadyExists { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }

        fn commit(&self, store: &dyn Store) -> Result<bool, StorageError> {
            commit_copy(store, &self.location, &self.sizes, b"commit")
        }

        /// Whether it is listed; then it must be whole.
        fn is_listed(&self, store: &dyn Store, when: &str) -> bool {
            let commit = Key::new(self.location.commit_key()).expect("a key");
            let listed = store.head(&commit).is_ok();
            for (key, bytes) in self.sizes.iter().filter(|_| listed) {
                let found = store.head(key).unwrap_or_else(|error| panic!("{when}: {error}"));
                assert_eq!(found.bytes, *bytes, "{when}");
            }
            listed
        }
    }

    /// Two control planes without common state: one copies a set, the other one deletes it, or clears the repository, at any
    /// moment of it. A set that is listed afterwards is whole, and who did not copy it says so.
    #[test]
    fn a_copy_that_is_deleted_under_the_hand_is_whole_or_not_listed() {
        let copying = Arc::new(Copying::new());
        for at in 0.. {
            let inner = MemoryStore::default();
            copying.write(&inner);
            let (copied, store) = (Arc::clone(&copying), inner.clone());
            let others = move || drop(remove_set(&store, &copied.location).expect("removed"));
            let shared = FaultyStore::shared(Arc::new(inner.clone()), at, others);
            let committed = copying.commit(&shared).expect("an answer");
            let over = shared.done().len() <= at;
            assert_eq!(copying.is_listed(&inner, &format!("deleted before {at}")), over);
            assert_eq!(committed, over, "deleted before {at}");
            if over {
                assert!(at > 5, "{at}");
                break;
            }
        }
    }

    #[test]
    fn a_set_that_comes_back_while_it_is_deleted_is_whole_or_not_listed() {
        let copying = Arc::new(Copying::new());
        // The other one has written its objects some time before it commits, or writes them just then.
        for (late, at) in [false, true].into_iter().flat_map(|late| (0..20).map(move |at| (late, at))) {
            let inner = MemoryStore::default();
            copying.write(&inner);
            assert!(copying.commit(&inner).expect("committed"));
            let (copied, store) = (Arc::clone(&copying), inner.clone());
            let others = move || {
                if late {
                    copied.write(&store);
                }
                copied.commit(&store).map(drop).expect("an answer");
            };
            let shared = FaultyStore::shared(Arc::new(inner.clone()), at, others);
            remove_set(&shared, &copying.location).expect("removed");
            let when = format!("copied before {at}, {late}");
            // Somebody who comes before the look at the end is seen.
            assert!(!copying.is_listed(&inner, &when) || shared.done().len() <= at || late, "{when}");
        }
    }

    #[test]
    fn of_two_who_copy_the_same_set_both_are_content() {
        let (copying, store) = (Copying::new(), MemoryStore::default());
        copying.write(&store);
        assert!(copying.commit(&store).expect("committed"));
        assert!(copying.commit(&store).expect("it is the same"));
        let location = &copying.location;
        let other = commit_copy(&store, location, &copying.sizes, b"another").expect_err("another one");
        assert!(matches!(other, StorageError::AlreadyExists { .. }), "{other}");
    }
}
