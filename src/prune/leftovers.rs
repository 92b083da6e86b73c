//! `pglife repo gc`: what unfinished runs left in a repository.
//!
//! | what | left by |
//! | --- | --- |
//! | `<cluster>/incoming/<run>/…` | a backup that died, and whose state directory is gone |
//! | `<cluster>/<lineage>/sets/<set>/…` without `COMMIT` | the same, later; or a deletion that was cut |
//! | `<cluster>/<lineage>/pins/<set>.json` without a set | a deletion that was cut at its very end |
//! | unfinished uploads | a worker that died |
//!
//! Nothing of this is a backup. Invariants: what is younger than the lease stays, because a pglife elsewhere may be at work
//! on it, and it is as young as the last thing in it: who copies an old backup writes today under an old name. So does everything of a cluster that a run of this state directory works on, and everything whose age or meaning
//! is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use jiff::Timestamp;

use super::{Outcome, remove_all};
use crate::backup_set::{SetLocation, pin_key_owner, set_object};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, OperationError, failed, run_began};
use crate::exit::Exit;
use crate::policy::Duration;
use crate::state::{Operation, StateError};
use crate::storage::{Key, Repository, StorageError, Store};

/// How old a leftover must be, where nothing else is said: longer than any backup takes.
pub const LEASE: Duration = Duration::from_hours(24);

/// Something that is no backup and no longer becomes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The cluster it is of.
    pub cluster: ClusterName,
    /// The folder, or the object.
    pub place: Key,
    /// What it is.
    pub kind: LeftoverKind,
    /// When the run that left it began.
    pub began: Timestamp,
    /// Its objects.
    pub objects: Vec<Key>,
    /// Their size.
    pub bytes: u64,
}

/// What a leftover is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftoverKind {
    /// What a worker wrote for a run that did not come to its commit.
    Incoming,
    /// A set without `COMMIT`.
    Uncommitted(SetLocation),
    /// A pin without a set.
    Pin,
}

/// What was found and what was done about it.
#[derive(Debug, Default)]
pub struct Collected {
    /// The leftovers, with what was done about each; [`Outcome::Kept`] in a dry run.
    pub leftovers: Vec<(Leftover, Outcome)>,
    /// Unfinished uploads that were removed.
    pub uploads: u64,
}

/// Finds what is older than `lease`, in the order of its place.
pub fn find(store: &dyn Store, lease: Duration, now: Timestamp) -> Result<Vec<Leftover>, StorageError> {
    let mut sets: BTreeSet<String> = BTreeSet::new();
    let mut committed: BTreeSet<String> = BTreeSet::new();
    let mut objects = Vec::new();
    for listed in store.list(None)? {
        let text = listed.key.as_str();
        if let Some((location, name)) = set_object(text) {
            sets.insert(location.folder());
            if name == "COMMIT" {
                committed.insert(location.folder());
            }
            let (folder, began) = (location.folder(), location.id.started_at());
            objects.push((location.cluster.clone(), folder, LeftoverKind::Uncommitted(location), began, listed));
        } else if let Some(location) = pin_key_owner(text) {
            objects.push((location.cluster, text.to_owned(), LeftoverKind::Pin, location.id.started_at(), listed));
        } else if let Some((cluster, run)) = incoming(text) {
            let (folder, began) = (format!("{cluster}/incoming/{run}"), run_began(run));
            objects.push((cluster, folder, LeftoverKind::Incoming, began, listed));
        }
    }
    let mut found: BTreeMap<String, Leftover> = BTreeMap::new();
    for (cluster, place, kind, began, listed) in objects {
        let owner = match &kind {
            LeftoverKind::Pin => pin_key_owner(&place).is_some_and(|location| sets.contains(&location.folder())),
            LeftoverKind::Uncommitted(_) => committed.contains(&place),
            LeftoverKind::Incoming => false,
        };
        // What is older than the lease; what has no age is left alone.
        let Some(began) = began.filter(|began| now.duration_since(*began) > lease.as_signed() && !owner) else {
            continue;
        };
        let Ok(at) = Key::new(place.as_str()) else { continue };
        let empty = || Leftover { cluster, place: at, kind, began, objects: Vec::new(), bytes: 0 };
        let leftover = found.entry(place).or_insert_with(empty);
        leftover.objects.push(listed.key);
        leftover.bytes += listed.bytes;
    }
    let mut old = Vec::new();
    for leftover in found.into_values() {
        if leftover.kind == LeftoverKind::Pin || !is_young(store.last_change(&leftover.place)?, lease, now) {
            old.push(leftover);
        }
    }
    Ok(old)
}

/// Whether what changed then may still be worked on. What lies ahead of the clock is young.
fn is_young(changed: Option<SystemTime>, lease: Duration, now: Timestamp) -> bool {
    let changed = changed.and_then(|changed| Timestamp::try_from(changed).ok());
    changed.is_some_and(|changed| now.duration_since(changed) <= lease.as_signed())
}

/// The cluster and the run of a key such as `chado/incoming/20261122t023000z-0badcafe/db/x.dump.zst`.
fn incoming(key: &str) -> Option<(ClusterName, &str)> {
    let mut parts = key.splitn(4, '/');
    let (cluster, folder, run, _) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if folder == "incoming" { Some((cluster.parse().ok()?, run)) } else { None }
}

/// Removes what [`find`] finds, and stale uploads; only looks where `dry_run`.
pub fn collect(
    control: &ControlPlane,
    repository: &Repository,
    lease: Duration,
    dry_run: bool,
    now: Timestamp,
) -> Result<Collected, OperationError> {
    let what = "clearing the repository failed";
    let safe = "no backup was touched";
    let store = repository.store();
    let leftovers = find(store, lease, now).map_err(failed(what))?;
    let mut collected = Collected::default();
    if dry_run {
        collected.leftovers = leftovers.into_iter().map(|leftover| (leftover, Outcome::Kept)).collect();
        return Ok(collected);
    }
    let mut clusters: BTreeMap<ClusterName, Vec<Leftover>> = BTreeMap::new();
    for leftover in leftovers {
        clusters.entry(leftover.cluster.clone()).or_default().push(leftover);
    }
    for (cluster, leftovers) in clusters {
        let lock = match control.state.lock_cluster(&cluster, Operation::Gc, now) {
            Ok(lock) => Some(lock),
            Err(StateError::Busy { .. }) => None,
            Err(error) => return Err(failed(what)(error).safe(safe)),
        };
        for leftover in leftovers {
            if control.cancel.is_cancelled() {
                let interrupted = OperationError::new(Exit::Interrupted, "clearing the repository was interrupted");
                return Err(interrupted.safe(safe).next("run the same command again"));
            }
            let outcome = match lock {
                Some(_) => clear(store, &leftover).map_err(|error| failed(what)(error).safe(safe))?,
                None => Outcome::InUse,
            };
            collected.leftovers.push((leftover, outcome));
        }
    }
    if let Ok(before) = now.checked_sub(lease.as_signed()) {
        let busy = control.state.live_runs().map_err(failed(what))?.into_iter().map(|run| run.cluster).collect();
        let known = control.configuration.policies.keys().cloned();
        let known = known.chain(collected.leftovers.iter().map(|(leftover, _)| leftover.cluster.clone())).collect();
        let swept = sweep_uploads(store, &busy, &known, before.into());
        collected.uploads = swept.map_err(|error| failed(what)(error).safe(safe))?;
    }
    Ok(collected)
}

/// Removes uploads that began before `before`, and are of no `busy` cluster. While there is one, only those of `known`
/// clusters can be told from its own; the others wait for the next time.
fn sweep_uploads(
    store: &dyn Store,
    busy: &BTreeSet<ClusterName>,
    known: &BTreeSet<ClusterName>,
    before: SystemTime,
) -> Result<u64, StorageError> {
    if busy.is_empty() {
        return store.sweep_unfinished(None, before);
    }
    known.difference(busy).try_fold(0, |removed, cluster| {
        let folder = Key::new(cluster.as_str()).expect("a cluster's name is a key");
        Ok(removed + store.sweep_unfinished(Some(&folder), before)?)
    })
}

/// Removes one leftover, unless it has become a backup meanwhile.
pub fn clear(store: &dyn Store, leftover: &Leftover) -> Result<Outcome, StorageError> {
    if let LeftoverKind::Uncommitted(location) = &leftover.kind {
        return match store.head(&Key::new(location.commit_key()).expect("a set's names make a key")) {
            Err(StorageError::NotFound { .. }) => super::remove_set(store, location),
            Err(error) => Err(error),
            Ok(_) => Ok(Outcome::InUse),
        };
    }
    remove_all(store, leftover.objects.iter().cloned())
}
