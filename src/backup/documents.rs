//! The small objects of a set, which tell what the large ones are; and how a set becomes a backup.

use std::collections::HashMap;

use crate::backup_set::{Commit, Content, Manifest, Measured, Object, SetLocation, cover, instructions};
use crate::encryption::Keys;
use crate::pipeline::seal::seal_bytes;
use crate::storage::{Key, StorageError, Store};

/// The small objects of a set, made once and the same in every repository. Those of an encrypted set are sealed here.
pub(crate) struct Documents {
    pub(super) location: SetLocation,
    /// Objects that lie there already, with the size they must have.
    written: Vec<(String, u64)>,
    /// Small objects, in the order they are stored.
    pub(crate) small: Vec<(String, Vec<u8>)>,
    /// What they tell.
    pub(crate) manifest: Manifest,
    /// The last of them.
    pub(crate) commit: Commit,
}

impl Documents {
    /// Those of the set that `manifest` describes, which gets them as objects. `recipe` is the text of `recipe.json`. Those of an
    /// encrypted set are sealed to its recipients; the manifest to the `reader` too, if there is one.
    pub(crate) fn of(location: SetLocation, mut manifest: Manifest, recipe: &[u8], reader: Option<&Keys>) -> Self {
        let written = manifest.objects.iter().map(|object| (object.name.clone(), object.stored.bytes)).collect();
        let (naming, recipients) = (manifest.naming(), manifest.encryption.clone());
        let sealed = |plain: &[u8]| match &recipients {
            Some(recipients) => seal_bytes(plain, recipients),
            None => plain.to_vec(),
        };
        let mut small = Vec::new();
        let mut add = |manifest: &mut Manifest, name: String, content: Content, plain: &[u8], stored: Vec<u8>| {
            let (plain, measured) = (Measured::of(plain), Measured::of(&stored));
            manifest.objects.push(Object { name: name.clone(), content, stored: measured, plain, seconds: 0.0 });
            small.push((name, stored));
        };
        add(&mut manifest, naming.document("recipe.json"), Content::Recipe, recipe, sealed(recipe));
        let mut text = instructions(&manifest).into_bytes();
        if recipients.is_some() {
            let name = naming.document("RECOVER.details.md");
            add(&mut manifest, name, Content::Details, &text, sealed(&text));
            // The other one is for whoever has not opened anything yet.
            text = cover(&manifest).into_bytes();
        }
        add(&mut manifest, "RECOVER.md".to_owned(), Content::Instructions, &text, text.clone());
        let bytes = manifest.to_bytes();
        let bytes = match (&recipients, reader) {
            (Some(recipients), Some(reader)) => seal_bytes(&bytes, &recipients.and(reader)),
            _ => sealed(&bytes),
        };
        let commit = Commit::to_manifest(&manifest, &bytes);
        small.push((naming.document("manifest.json"), bytes));
        Self { location, written, small, manifest, commit }
    }
}

/// The one place where a set becomes a backup: small objects, manifest, and `COMMIT` last. Each is durable before the next, and
/// what a store confirmed is looked at before it counts: some confirm what they do not hold.
pub(super) fn commit_set(store: &dyn Store, documents: &Documents) -> Result<(), StorageError> {
    let key = |name: &str| Key::new(documents.location.key(name)).expect("names make a key");
    let lost = |key: &Key, bytes, found| StorageError::Lost { path: store.place(Some(key)), bytes, found };
    for (name, bytes) in &documents.small {
        store.put(&key(name), bytes)?;
    }
    let folder = Key::new(documents.location.folder()).expect("names make a key");
    let held: HashMap<Key, u64> =
        store.list(Some(&folder))?.into_iter().map(|found| (found.key, found.bytes)).collect();
    // Digests were taken as the bytes were written; here it is whether they lie there.
    let small = documents.small.iter().map(|(name, bytes)| (name, bytes.len() as u64));
    for (name, bytes) in documents.written.iter().map(|(name, bytes)| (name, *bytes)).chain(small) {
        let key = key(name);
        let found = held.get(&key).copied();
        if found != Some(bytes) {
            return Err(lost(&key, bytes, found));
        }
    }
    let (key, commit) = (key("COMMIT"), documents.commit.to_bytes());
    store.put(&key, &commit)?;
    let bytes = commit.len() as u64;
    match store.read_small(&key, bytes) {
        Ok(found) if found == commit => Ok(()),
        Ok(found) => Err(lost(&key, bytes, Some(found.len() as u64))),
        Err(StorageError::NotFound { .. }) => Err(lost(&key, bytes, None)),
        // It was confirmed, and nothing speaks against it.
        Err(error) => {
            tracing::warn!("COMMIT was stored, but could not be read back: {error}");
            Ok(())
        }
    }
}
