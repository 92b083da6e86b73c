//! Repositories: where backup sets lie.
//!
//! A repository holds objects under [`Key`]s. Every object is write-once: it appears whole under its key when its upload
//! is committed, and never changes. An upload that is not committed leaves nothing that is ever listed, whatever kills
//! it. The marker object `pglife-repo.json` tells a repository from any other folder, above all from the empty mount
//! point of a disk that is not mounted.

pub mod contract;
pub mod faulty;
pub mod local;
pub mod memory;
pub mod s3;

mod error;
mod folder;
mod key;
mod repository;

use std::fmt;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use error::StorageError;
pub use folder::{Folder, FolderLocation};
pub use key::{Key, KeyError};
pub use repository::{Repository, RepositoryId};

/// Where something is, for messages: a path, or a bucket and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// A place as people write it, such as `s3://bucket/prefix/key`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self(path.display().to_string())
    }
}

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// One object as listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its key.
    pub key: Key,
    /// Its size.
    pub bytes: u64,
}

/// Write-once objects under keys. Calls block; any number of threads may call at once.
///
/// What every implementation must do is in the contract suite, which runs on all of them.
pub trait Store: fmt::Debug + Send + Sync {
    /// Starts an object. Its folder need not exist; the place itself must.
    fn begin(&self, key: &Key) -> Result<Box<dyn Upload>, StorageError>;

    /// Opens an object.
    fn open(&self, key: &Key) -> Result<Box<dyn ReadAt>, StorageError>;

    /// Looks at an object without opening it.
    fn head(&self, key: &Key) -> Result<Listed, StorageError>;

    /// Lists the objects inside `folder`, or all, in the order of their keys. Unfinished uploads are no objects. A folder
    /// that does not exist holds none.
    fn list(&self, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError>;

    /// When the last of what is inside `folder` was stored, by the store's own clock; nothing where nothing is there.
    fn last_change(&self, folder: &Key) -> Result<Option<SystemTime>, StorageError>;

    /// Deletes an object. When it returns, the object does not come back.
    fn delete(&self, key: &Key) -> Result<(), StorageError>;

    /// Removes what uploads inside `folder`, or all, left that ended without commit or abort before `before`, and folders
    /// that are empty since then. Returns how many uploads. Where the store does not let us look, it warns and removes none.
    fn sweep_unfinished(&self, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError>;

    /// How many bytes may still be written here, where the store knows.
    fn free_bytes(&self) -> Result<Option<u64>, StorageError>;

    /// Fails if nothing can be stored here. Nothing is written to find out.
    fn check_writable(&self) -> Result<(), StorageError>;

    /// Makes the place itself, where that is ours to make: a folder, not a bucket.
    fn make_place(&self) -> Result<(), StorageError>;

    /// The first name found in the place that a repository in the making does not have.
    fn first_foreign_name(&self) -> Result<Option<String>, StorageError>;

    /// Where an object lies or would lie; without a key, where the store is.
    fn place(&self, key: Option<&Key>) -> Place;

    /// Stores a small object whole.
    fn put(&self, key: &Key, bytes: &[u8]) -> Result<(), StorageError> {
        let mut upload = self.begin(key)?;
        match upload.write_all(bytes) {
            Ok(()) => upload.commit(),
            Err(error) => {
                if let Err(error) = upload.abort() {
                    tracing::warn!("an upload is left to be swept: {error}");
                }
                Err(StorageError::of_write(self.place(Some(key)), error))
            }
        }
    }

    /// Reads an object of at most `limit` bytes.
    fn read_small(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StorageError> {
        let object = self.open(key)?;
        let bytes = object.size();
        if bytes > limit {
            return Err(StorageError::TooLarge { path: self.place(Some(key)), bytes, limit });
        }
        let mut content = Vec::new();
        let read = Reader::new(&*object).read_to_end(&mut content);
        read.map_err(|error| StorageError::of_read(self.place(Some(key)), error))?;
        Ok(content)
    }
}

/// An object that is being written. Dropped without [`commit`](Self::commit), it was never there.
///
/// A failed write carries a [`StorageError`] inside its [`io::Error`], and spoils the upload.
pub trait Upload: Write + Send + fmt::Debug {
    /// Makes the object durable and gives it its name. Fails if an object has that name already.
    fn commit(self: Box<Self>) -> Result<(), StorageError>;

    /// Gives the upload up, and removes what it made.
    fn abort(self: Box<Self>) -> Result<(), StorageError>;
}

/// Bytes that can be read at any place: a stored object.
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// The number of bytes, as found when the object was opened.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset`, or fails; [`io::ErrorKind::UnexpectedEof`] if there are fewer.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A stored object from its first byte to its last.
#[derive(Debug)]
pub struct Reader<'a> {
    object: &'a dyn ReadAt,
    offset: u64,
}

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    pub fn new(object: &'a dyn ReadAt) -> Self {
        Self { object, offset: 0 }
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.object.size() - self.offset).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        self.object.read_exact_at(&mut buffer[..wanted], self.offset)?;
        self.offset += wanted as u64;
        Ok(wanted)
    }
}

/// How a place is reached: everything a process needs to open the store, secrets included. It travels to workers on their
/// stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "store", rename_all = "lowercase")]
pub enum Location {
    /// A folder.
    Local {
        /// Its path, as the process sees it.
        folder: PathBuf,
    },
    /// A bucket.
    S3(s3::Bucket),
}

impl Location {
    /// Fails soon where the store does not answer at all. Whether `key` is there does not matter.
    fn knock(&self, key: &Key) -> Result<(), StorageError> {
        let Self::S3(bucket) = self else { return Ok(()) };
        let limits = s3::Limits { patience: s3::Patience::AT_THE_DOOR, ..s3::Limits::default() };
        match s3::S3Store::with_limits(bucket, limits)?.head(key) {
            Ok(_) | Err(StorageError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The store there. Nothing is looked at yet; [`Repository::open`] checks the place.
    pub fn store(&self) -> Result<Arc<dyn Store>, StorageError> {
        match self {
            Self::Local { folder } => Ok(Arc::new(local::LocalStore::at(folder))),
            Self::S3(bucket) => Ok(Arc::new(s3::S3Store::open(bucket)?)),
        }
    }
}

#[cfg(test)]
mod tests;
