//! What a repository holds: committed sets, read from their `COMMIT` objects alone.

use std::collections::{BTreeMap, HashMap};

use crate::backup_set::certificate::Verdict;
use crate::backup_set::{Certificate, Digest};
use crate::backup_set::{
    Commit, Manifest, Pin, Selector, SetId, SetLocation, StoredObject, drill_key_owner, pin_key_owner, set_object,
};
use crate::cluster::{ClusterName, Lineage};
use crate::encryption::Keys;
use crate::pipeline::seal::unseal_bytes;
use crate::policy::retention::Pinning;
use crate::storage::{Key, Listed, Repository, StorageError, Store};

use super::{ControlPlane, OperationError, failed};

/// The largest `COMMIT` that is read.
pub const COMMIT_LIMIT: u64 = 64 << 20;
/// The largest manifest that is read.
const MANIFEST_LIMIT: u64 = 1 << 30;
/// The largest pin that is read.
const PIN_LIMIT: u64 = 1 << 16;

/// What to do where a set is damaged.
const ANOTHER: &str = "use another backup: pglife backups list; take a new one, and look at the disk";

/// Something that looks like a set but cannot be read as one.
#[derive(Debug)]
pub struct Unreadable {
    /// The key of its `COMMIT`.
    pub key: Key,
    /// Why.
    pub error: OperationError,
}

/// The sets of a repository.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Committed sets, oldest first by completion time.
    pub sets: Vec<Commit>,
    /// Commit objects that could not be read: damaged, or of a newer format.
    pub unreadable: Vec<Unreadable>,
    /// Sets of which there are objects, but no `COMMIT`: being written, being deleted, or left over.
    pub uncommitted: Vec<SetLocation>,
    /// Sets for which there is a pin.
    pub pinned: Vec<SetLocation>,
    /// Certificates of drills.
    pub drilled: Vec<Listed>,
}

impl Catalogue {
    /// Takes in what was read as a `COMMIT`. Fails where the place is the trouble: then nothing is known of any set.
    fn add(
        &mut self,
        key: Key,
        location: &SetLocation,
        read: Result<Vec<u8>, StorageError>,
    ) -> Result<(), StorageError> {
        let cannot = || format!("{key} cannot be read");
        let commit = match read {
            // It was deleted since the listing.
            Err(StorageError::NotFound { .. }) => return Ok(()),
            Err(error) if error.is_of_place() => return Err(error),
            Err(error) => Err(failed(cannot())(error)),
            Ok(bytes) => Commit::from_bytes(&bytes).map_err(failed(cannot())),
        };
        let error = match commit {
            Ok(commit) if commit.location() == *location => {
                self.sets.push(commit);
                return Ok(());
            }
            Ok(commit) => OperationError::new(
                crate::exit::Exit::VerifyFailed,
                format!("{key} belongs to another set, {}", commit.set),
            ),
            Err(error) => error,
        };
        self.unreadable.push(Unreadable { key, error: error.next(ANOTHER) });
        Ok(())
    }

    /// The set of `cluster` that `selector` means. What could not be read is logged: it may be the one.
    pub fn find(
        &self,
        store: &dyn Store,
        cluster: &ClusterName,
        selector: &Selector,
    ) -> Result<Commit, OperationError> {
        for unreadable in &self.unreadable {
            tracing::warn!("{}", unreadable.error.chain());
        }
        let proofs = if selector.asks_for_proofs() { proven(store, self)? } else { Certificates::new() };
        selector
            .select(&self.sets, |set| proofs.contains_key(set))
            .cloned()
            .map_err(failed(format!("cluster \"{cluster}\": no such backup")))
    }
}

/// The set of `cluster` that `selector` means.
pub fn find(
    control: &ControlPlane,
    repository: &Repository,
    cluster: &ClusterName,
    selector: &Selector,
) -> Result<Commit, OperationError> {
    read(control, repository, Some(cluster))?.find(repository.store(), cluster, selector)
}

/// Reads the committed sets, of one cluster if given.
///
/// The objects are listed every time: the repository is the truth. What a `COMMIT` in a bucket says is remembered, because it
/// never changes and a request for each would take minutes; lost, it is read again.
pub fn read(
    control: &ControlPlane,
    repository: &Repository,
    cluster: Option<&ClusterName>,
) -> Result<Catalogue, OperationError> {
    let what = "the backups in the repository cannot be listed";
    let folder = cluster.map(|cluster| Key::new(cluster.as_str()).expect("a cluster's name is a key"));
    let listed = repository.store().list(folder.as_ref()).map_err(failed(what))?;
    let mut catalogue = Catalogue::default();
    let mut open: BTreeMap<String, SetLocation> = BTreeMap::new();
    let mut commits = Vec::new();
    for object in listed {
        if let Some((location, name)) = set_object(object.key.as_str()) {
            if name == "COMMIT" {
                commits.push((object, location));
            } else if open.last_key_value().is_none_or(|(_, last)| *last != location) {
                open.insert(location.folder(), location);
            }
        } else if drill_key_owner(object.key.as_str()).is_some() {
            catalogue.drilled.push(object);
        } else {
            catalogue.pinned.extend(pin_key_owner(object.key.as_str()));
        }
    }
    for (_, location) in &commits {
        open.remove(&location.folder());
    }
    catalogue.uncommitted = open.into_values().collect();
    let keys: Vec<Listed> = commits.iter().map(|(object, _)| object.clone()).collect();
    for ((object, location), read) in commits.into_iter().zip(contents(control, repository, folder.as_ref(), &keys)) {
        catalogue.add(object.key, &location, read).map_err(failed(what))?;
    }
    catalogue.sets.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(catalogue)
}

/// Requests to a bucket that are under way at once.
const REQUESTS: usize = 16;

/// The contents of the listed objects, in their order: from memory, where they are far away and were read before.
fn contents(
    control: &ControlPlane,
    repository: &Repository,
    folder: Option<&Key>,
    listed: &[Listed],
) -> Vec<Result<Vec<u8>, StorageError>> {
    let store = repository.store();
    let read = |object: &Listed| store.read_small(&object.key, COMMIT_LIMIT);
    if repository.folder().is_some() {
        // Near, reading costs as little as remembering, and shows damage.
        return listed.iter().map(read).collect();
    }
    let id = repository.id().to_string();
    let prefix = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
    let mut remembered = control.state.remembered(&id, &prefix).unwrap_or_else(|error| {
        tracing::warn!("the catalogue is read from the repository again: {error}");
        HashMap::new()
    });
    let mut found: Vec<Option<Result<Vec<u8>, StorageError>>> = listed
        .iter()
        .map(|object| {
            let content = remembered.remove(object.key.as_str())?;
            (content.len() as u64 == object.bytes).then_some(Ok(content))
        })
        .collect();
    let mut missing: Vec<(&Listed, &mut Option<_>)> =
        listed.iter().zip(&mut found).filter(|(_, found)| found.is_none()).collect();
    let share = missing.len().div_ceil(REQUESTS).max(1);
    std::thread::scope(|scope| {
        for share in missing.chunks_mut(share) {
            scope.spawn(move || share.iter_mut().for_each(|(object, found)| **found = Some(read(object))));
        }
    });
    let new: Vec<(String, Vec<u8>)> = missing
        .iter()
        .filter_map(|(object, found)| match &**found {
            Some(Ok(content)) => Some((object.key.to_string(), content.clone())),
            _ => None,
        })
        .collect();
    let gone: Vec<String> = remembered.into_keys().collect();
    if !(new.is_empty() && gone.is_empty())
        && let Err(error) = control.state.remember(&id, &new, &gone)
    {
        tracing::warn!("the catalogue will be read from the repository again: {error}");
    }
    found.into_iter().map(|found| found.expect("each was remembered or read")).collect()
}

/// The largest certificate that is read.
const CERTIFICATE_LIMIT: u64 = 4 << 20;

/// Reads these certificates of drills, oldest first, each with the digest of what is stored. One that cannot be read proves
/// nothing, and is logged.
pub fn certificates<'l>(
    store: &dyn Store,
    drilled: impl IntoIterator<Item = &'l Listed>,
) -> Result<Vec<(Certificate, Digest)>, OperationError> {
    let mut certificates = Vec::new();
    for Listed { key, .. } in drilled {
        let bytes = match store.read_small(key, CERTIFICATE_LIMIT) {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => continue,
            Err(error) => return Err(failed(format!("the certificate {key} cannot be read"))(error)),
        };
        match Certificate::from_bytes(&bytes) {
            Ok(certificate) if drill_key_owner(key.as_str()) == Some(certificate.location()) => {
                certificates.push((certificate, Digest::of(&bytes)));
            }
            Ok(_) => tracing::warn!("{key} belongs to another set; it proves nothing"),
            Err(error) => tracing::warn!("{key}: {error}; it proves nothing"),
        }
    }
    certificates.sort_by_key(|(certificate, _)| certificate.ended_at);
    Ok(certificates)
}

/// The certificates of the sets that are proven: whose last one says so, and says it of the manifest that is there.
pub fn proven(store: &dyn Store, catalogue: &Catalogue) -> Result<Certificates, OperationError> {
    let mut certificates = judged(store, catalogue)?;
    certificates.retain(|_, certificate| certificate.verdict == Verdict::Proven);
    Ok(certificates)
}

/// The last certificate of each set, where it is of the manifest that is there.
pub fn judged(store: &dyn Store, catalogue: &Catalogue) -> Result<Certificates, OperationError> {
    // The last of each set: a set's certificates lie in one folder, and are named by their time.
    let mut last: BTreeMap<&str, &Listed> = BTreeMap::new();
    for listed in &catalogue.drilled {
        let folder = listed.key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        let newest = last.entry(folder).or_insert(listed);
        if newest.key.as_str() < listed.key.as_str() {
            *newest = listed;
        }
    }
    let mut judged = Certificates::new();
    for (certificate, _) in certificates(store, last.into_values())? {
        let holds = |commit: &Commit| {
            commit.location() == certificate.location() && commit.manifest_blake3 == certificate.manifest
        };
        if catalogue.sets.iter().any(holds) {
            judged.insert(certificate.set.clone(), certificate);
        }
    }
    Ok(judged)
}

/// A certificate for each set.
pub type Certificates = BTreeMap<SetId, Certificate>;

/// Pins by the set they are for.
pub type Pins = BTreeMap<(Lineage, SetId), Pinning>;

/// The pins of a catalogue's sets.
pub fn pins(store: &dyn Store, catalogue: &Catalogue) -> Result<Pins, OperationError> {
    let mut pins = Pins::new();
    for location in &catalogue.pinned {
        pins.insert((location.lineage, location.id.clone()), pin(store, location)?);
    }
    Ok(pins)
}

/// The pin of one set.
pub fn pin(store: &dyn Store, location: &SetLocation) -> Result<Pinning, OperationError> {
    let key = Key::new(location.pin_key()).expect("a set's names make a key");
    let bytes = match store.read_small(&key, PIN_LIMIT) {
        Ok(bytes) => bytes,
        Err(StorageError::NotFound { .. }) => return Ok(Pinning::Absent),
        Err(StorageError::TooLarge { .. }) => return Ok(Pinning::Unreadable),
        Err(error) => return Err(failed(format!("the pin of {} cannot be read", location.id))(error)),
    };
    Ok(match Pin::from_bytes(&bytes) {
        Ok(pin) if pin.set == location.id => Pinning::Present(pin),
        Ok(_) => Pinning::Unreadable,
        Err(error) => {
            tracing::warn!("{key}: {error}");
            Pinning::Unreadable
        }
    })
}

/// Reads the manifest that `commit` commits to. An encrypted one needs `keys`; [`ControlPlane::manifest`] finds them.
///
/// [`ControlPlane::manifest`]: super::ControlPlane::manifest
pub fn manifest(repository: &Repository, commit: &Commit, keys: Option<&Keys>) -> Result<Manifest, OperationError> {
    let what = || format!("the manifest of {} cannot be read", commit.set);
    let stored = stored_manifest(repository, commit)?;
    let plain = match (&commit.encryption, keys) {
        (None, _) => stored,
        (Some(_), Some(keys)) => unseal_bytes(&stored, keys).map_err(failed(what()))?,
        (Some(_), None) => {
            let why = format!("{}: the backup is encrypted, and no key was given", what());
            return Err(OperationError::new(crate::exit::Exit::Credentials, why));
        }
    };
    Manifest::from_bytes(&plain).map_err(|error| failed(what())(error).next(ANOTHER))
}

/// The objects of a set as they are stored, the manifest and `COMMIT` aside. Needs no key.
pub fn stored_objects(repository: &Repository, commit: &Commit) -> Result<Vec<StoredObject>, OperationError> {
    match &commit.encryption {
        Some(encryption) => {
            stored_manifest(repository, commit)?;
            Ok(encryption.objects.clone())
        }
        None => Ok(manifest(repository, commit, None)?.objects.iter().map(Into::into).collect()),
    }
}

/// Reads the manifest that `commit` commits to as it is stored, encrypted or not, and compares it with its digest.
pub fn stored_manifest(repository: &Repository, commit: &Commit) -> Result<Vec<u8>, OperationError> {
    let what = || format!("the manifest of {} cannot be read", commit.set);
    let key = Key::new(commit.manifest_key()).expect("a set's names make a key");
    let bytes = repository.store().read_small(&key, MANIFEST_LIMIT).map_err(|error| {
        if error.is_of_place() {
            return failed(what())(error);
        }
        // A committed set without its manifest is a damaged set, not a wrong name.
        OperationError {
            exit: crate::exit::Exit::VerifyFailed,
            next: Some(ANOTHER.to_owned()),
            ..failed(what())(error)
        }
    })?;
    commit.check_manifest(&bytes).map_err(failed(what())).map_err(|error| error.next(ANOTHER))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::storage::Place;

    #[test]
    fn a_commit_that_is_damaged_is_unreadable_but_a_store_that_is_gone_is_no_damage() {
        let key = Key::new("chado/7412345678901234567-17/sets/20261122T023000Z-dump-k3x9qa/COMMIT").expect("a key");
        let (location, _) = set_object(key.as_str()).expect("a set's");
        let path = || Place::new("s3://bucket/x");
        let mut catalogue = Catalogue::default();
        catalogue.add(key.clone(), &location, Ok(b"rubbish".to_vec())).expect("told later");
        catalogue.add(key.clone(), &location, Err(StorageError::NotFound { path: path() })).expect("it is gone");
        assert_eq!((catalogue.sets.len(), catalogue.unreadable.len()), (0, 1));
        assert_eq!(catalogue.unreadable[0].error.exit, Exit::VerifyFailed);
        assert!(catalogue.unreadable[0].error.next.is_some());
        let gone = StorageError::Unreachable { path: path(), source: "no route to host".into() };
        assert_eq!(catalogue.add(key, &location, Err(gone)).expect_err("all of it").exit(), Exit::Repository);
    }
}
