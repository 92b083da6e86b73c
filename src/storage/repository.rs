//! The marker that makes a folder a repository.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::local::LocalStore;
use super::{FolderLocation, Key, Location, StorageError, Store};

/// The newest repository format that this pglife reads and writes.
const FORMAT: u64 = 1;

const MARKER: &str = "pglife-repo.json";
const MARKER_LIMIT: u64 = 4096;

/// A checked repository.
#[derive(Debug, Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    location: Location,
    id: RepositoryId,
}

/// The random name a repository gets when it is made: 32 hexadecimal digits. A copy of a repository shares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryId(String);

/// `pglife-repo.json`.
#[derive(Serialize, Deserialize)]
struct Marker {
    version: u64,
    id: RepositoryId,
}

/// What every version of the marker holds.
#[derive(Deserialize)]
struct MarkerVersion {
    version: u64,
}

impl Repository {
    /// Makes a repository at `location`, with its folder if that does not exist. A repository that is there already is
    /// opened.
    pub fn init(location: &Location) -> Result<Self, StorageError> {
        let store = location.store()?;
        store.make_place()?;
        let opened = Self::open_store(location, &store);
        if !matches!(opened, Err(StorageError::NotARepository { .. })) {
            return opened;
        }
        match store.first_foreign_name()? {
            None => {}
            Some(marker) if marker == MARKER => return opened,
            Some(found) => return Err(StorageError::NotEmpty { root: store.place(None), found }),
        }
        let place = store.place(None);
        let failed = |what| {
            let path = place.clone();
            move |source| StorageError::Io { what, path, source }
        };
        let id = RepositoryId::random().map_err(failed("make a random id for"))?;
        let marker = serde_json::to_string(&Marker { version: FORMAT, id });
        let mut text = marker.map_err(io::Error::from).map_err(failed("describe"))?;
        text.push('\n');
        match store.put(&marker_key(), text.as_bytes()) {
            // Somebody else made it at the same moment.
            Ok(()) | Err(StorageError::AlreadyExists { .. }) => Self::open_store(location, &store),
            Err(error) => Err(error),
        }
    }

    /// Opens the repository at `location`, for reading: see [`Store::check_writable`].
    pub fn open(location: &Location) -> Result<Self, StorageError> {
        location.knock(&marker_key())?;
        Self::open_store(location, &location.store()?)
    }

    /// Its objects.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Its folder on this machine, if it is in one.
    pub fn folder(&self) -> Option<LocalStore> {
        match &self.location {
            Location::Local { folder } => Some(LocalStore::at(folder)),
            Location::S3(_) => None,
        }
    }

    /// How a worker reaches a folder of it, and the folder to mount at `mount_point` for that, if it lies on the Docker host.
    pub fn for_worker(&self, folder: &Key, mount_point: &str) -> (FolderLocation, Option<PathBuf>) {
        match &self.location {
            Location::Local { folder: root } => {
                let inside = FolderLocation { location: Location::Local { folder: mount_point.into() }, folder: None };
                (inside, Some(LocalStore::at(root).path(folder)))
            }
            // A bucket is the same from everywhere.
            Location::S3(_) => (self.folder_location(folder.clone()), None),
        }
    }

    /// How a process on this machine reaches a folder of it.
    pub fn folder_location(&self, folder: Key) -> FolderLocation {
        FolderLocation { location: self.location.clone(), folder: Some(folder) }
    }

    /// How it is reached.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its id.
    pub fn id(&self) -> &RepositoryId {
        &self.id
    }

    fn open_store(location: &Location, store: &Arc<dyn Store>) -> Result<Self, StorageError> {
        let root = store.place(None);
        let damaged = |why: &dyn fmt::Display| StorageError::NotARepository {
            root: root.clone(),
            why: format!("its {MARKER} is damaged: {why}"),
        };
        let bytes = match store.read_small(&marker_key(), MARKER_LIMIT) {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => {
                return Err(StorageError::NotARepository { root, why: format!("it holds no {MARKER}") });
            }
            Err(error @ StorageError::TooLarge { .. }) => return Err(damaged(&error)),
            Err(error) => return Err(error),
        };
        let MarkerVersion { version } = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
        if version > FORMAT {
            return Err(StorageError::NewerFormat { root, found: version, supported: FORMAT });
        }
        let Marker { id, .. } = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
        Ok(Self { store: Arc::clone(store), location: location.clone(), id })
    }
}

fn marker_key() -> Key {
    Key::new(MARKER).expect("a plain file name")
}

impl RepositoryId {
    fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{:032x}", u128::from_be_bytes(bytes))))
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl TryFrom<String> for RepositoryId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        if text.len() == 32 && text.bytes().all(is_hex) {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is not a repository id (32 hexadecimal digits)"))
        }
    }
}

impl From<RepositoryId> for String {
    fn from(id: RepositoryId) -> String {
        id.0
    }
}
