//! A folder of a store: what a worker is given to read from or to write into.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Listed, Location, Place, ReadAt, StorageError, Store, Upload};

/// How a folder of a store is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderLocation {
    /// The store.
    pub location: Location,
    /// The folder in it; `None`: all of it.
    pub folder: Option<Key>,
}

/// An opened folder; names are relative to it.
#[derive(Debug, Clone)]
pub struct Folder {
    store: Arc<dyn Store>,
    folder: Option<Key>,
}

impl FolderLocation {
    /// Connects to the store. Nothing is looked at yet.
    pub fn open(&self) -> Result<Folder, StorageError> {
        Ok(Folder { store: self.location.store()?, folder: self.folder.clone() })
    }
}

impl Folder {
    fn key(&self, name: &str) -> Result<Key, StorageError> {
        Ok(match &self.folder {
            Some(folder) => folder.join(name)?,
            None => Key::new(name)?,
        })
    }

    /// See [`Store::begin`].
    pub fn begin(&self, name: &str) -> Result<Box<dyn Upload>, StorageError> {
        self.store.begin(&self.key(name)?)
    }

    /// See [`Store::open`].
    pub fn open(&self, name: &str) -> Result<Box<dyn ReadAt>, StorageError> {
        self.store.open(&self.key(name)?)
    }

    /// See [`Store::head`].
    pub fn head(&self, name: &str) -> Result<Listed, StorageError> {
        self.store.head(&self.key(name)?)
    }

    /// See [`Store::read_small`].
    pub fn read_small(&self, name: &str, limit: u64) -> Result<Vec<u8>, StorageError> {
        self.store.read_small(&self.key(name)?, limit)
    }

    /// Where an object lies or would lie.
    pub fn place(&self, name: &str) -> Place {
        self.store.place(self.key(name).ok().as_ref())
    }
}
