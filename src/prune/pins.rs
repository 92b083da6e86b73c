//! `pglife backups pin|unpin`: the effects. What a pin is stands in [`Pin`].

use jiff::Timestamp;

use crate::backup_set::{Commit, Pin, Selector};
use crate::cluster::RepoName;
use crate::control::{ControlPlane, OperationError, catalogue, failed};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::retention::Pinning;
use crate::storage::{Key, Repository, StorageError};

/// A set in one of the repositories that hold it.
#[derive(Debug)]
pub struct Holder {
    /// The repository's name.
    pub name: RepoName,
    /// The repository.
    pub repository: Repository,
    /// The set.
    pub commit: Commit,
}

/// Every repository of `policy`, or `only` one, that holds the set that `selector` means in the first of them.
pub fn holders(
    control: &ControlPlane,
    policy: &Policy,
    only: Option<&RepoName>,
    selector: &Selector,
) -> Result<Vec<Holder>, OperationError> {
    let mut holders: Vec<Holder> = Vec::new();
    let mut missing = None;
    for (name, repository) in super::open_all(control, policy, only)? {
        let wanted = match holders.first() {
            None => selector.clone(),
            Some(first) => Selector::Prefix(first.commit.set.to_string()),
        };
        match catalogue::find(control, &repository, &policy.name, &wanted) {
            Ok(commit) => holders.push(Holder { name, repository, commit }),
            // Another repository may have it.
            Err(error) if error.exit == Exit::NotFound => {
                missing.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if holders.is_empty() => Err(error),
        _ => Ok(holders),
    }
}

/// Pins a set in one repository.
pub fn pin(control: &ControlPlane, holder: &Holder, pin: &Pin) -> Result<(), OperationError> {
    let Holder { name, repository, commit } = holder;
    let what = format!("backup {} was not pinned in repository \"{name}\"", commit.set);
    // Whoever deletes a set takes it alone: from here on it is not deleted.
    let _held = control.state.hold_set(&commit.set).map_err(failed(&what))?;
    let location = commit.location();
    let key = Key::new(location.pin_key()).expect("a set's names make a key");
    let store = repository.store();
    let refuse = |why: String| {
        let next = format!("to replace it, first: pglife backups unpin {} --backup {}", commit.cluster, commit.set);
        OperationError::new(Exit::Refused, format!("{what}: {why}")).safe("the pin that is there holds").next(next)
    };
    match catalogue::pin(store, &location)? {
        Pinning::Absent => {}
        Pinning::Present(old) if !old.holds(pin.pinned_at) => match store.delete(&key) {
            Ok(()) | Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(failed(what)(error)),
        },
        Pinning::Present(old) => {
            let until = old.until.map(|until| format!(" until {until}")).unwrap_or_default();
            return Err(refuse(format!("it is pinned already{until}: {}", old.reason)));
        }
        Pinning::Unreadable => return Err(refuse("it has a pin that this pglife cannot read".to_owned())),
    }
    store.put(&key, &pin.to_bytes()).map_err(failed(&what))?;
    let commit_key = Key::new(location.commit_key()).expect("a set's names make a key");
    match store.head(&commit_key) {
        Ok(_) => Ok(()),
        // Deleted between the look and the hold: a pin without a set would be a lie.
        Err(StorageError::NotFound { .. }) => {
            if let Err(error) = store.delete(&key) {
                tracing::warn!("a pin without a set is left for `pglife repo gc`: {error}");
            }
            Err(OperationError::new(Exit::NotFound, format!("{what}: it has just been deleted")))
        }
        Err(error) => Err(failed(what)(error)),
    }
}

/// Removes the pin of a set in one repository. False where there was none. A repository that locks what is stored locks
/// pins too.
pub fn unpin(holder: &Holder) -> Result<bool, OperationError> {
    let Holder { name, repository, commit } = holder;
    let what = format!("backup {} was not unpinned in repository \"{name}\"", commit.set);
    let key = Key::new(commit.location().pin_key()).expect("a set's names make a key");
    match repository.store().delete(&key) {
        Ok(()) => Ok(true),
        Err(StorageError::NotFound { .. }) => Ok(false),
        Err(error @ StorageError::Locked { .. }) => {
            let next = "unpin it again when the lock has ended; the backup stays until then".to_owned();
            Err(OperationError { next: Some(next), ..failed(what)(error) })
        }
        Err(error) => Err(failed(what)(error)),
    }
}

/// What a table says about the pin of a set; nothing where none holds at `now`.
pub fn words(pin: &Pinning, now: Timestamp) -> Option<String> {
    match pin {
        Pinning::Present(pin) if pin.holds(now) => Some(match pin.until {
            Some(until) => format!("until {until}: {}", pin.reason),
            None => pin.reason.clone(),
        }),
        Pinning::Unreadable => Some("cannot be read".to_owned()),
        Pinning::Present(_) | Pinning::Absent => None,
    }
}
