//! A repository in a folder of the local file system (or of one mounted like it, NFS included).
//!
//! ```text
//! begin ─▶ .pglife-unfinished-… in the object's folder ─▶ write … ─▶ fsync ─▶ rename, never over another ─▶ fsync folders
//! ```
//! * An object is there whole, or not at all: it gets its name after its bytes are on the disk, and [`Upload::commit`]
//!   returns after the name is, too, with every folder on the way to the root.
//! * What a killed process leaves has a name no [`Key`] can have: it is never listed, and
//!   [`Store::sweep_unfinished`] removes it.
//! * Files have mode 0640, folders 0750. A worker runs as root in a container while pglife may run as a user: root
//!   gives what it creates to the owner of the root folder.
//! * Symbolic links inside the repository are not followed by [`Store::list`]; the root itself may be one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Access, Advice, Gid, Uid};
use tempfile::NamedTempFile;

use super::key::UNFINISHED;
use super::{Key, Listed, Place, ReadAt, StorageError, Store, Upload};

const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// What `mkfs` puts into the root of a file system; no part of a repository.
const LOST_AND_FOUND: &str = "lost+found";

/// How often making an upload's folder is tried while a deletion elsewhere removes it as empty.
const FOLDER_ATTEMPTS: usize = 16;

/// How many bytes of an upload may wait for the disk.
const WRITE_BACK: u64 = 8 << 20;

/// The objects under a root folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalStore {
    root: PathBuf,
}

/// An object that is being written.
#[derive(Debug)]
struct LocalUpload {
    store: LocalStore,
    key: Key,
    file: NamedTempFile,
    written: u64,
    /// How much of that the kernel was asked to bring to the disk.
    on_its_way: u64,
    write_failed: bool,
}

/// A stored object, opened for reading.
#[derive(Debug)]
struct LocalObject {
    file: File,
    size: u64,
}

impl LocalStore {
    /// The store in `root`. Nothing is looked at yet; [`Repository::open`](super::Repository::open) checks the place.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an object lies or would lie.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Makes a folder for somebody who writes into it by its path, such as a worker that has it mounted.
    pub fn create_folder(&self, folder: &Key) -> Result<PathBuf, StorageError> {
        self.make_folder(Some(folder), self.owner()?)
    }

    /// Moves a folder with all that is in it to a place where there is nothing, durably and at once.
    pub fn move_folder(&self, from: &Key, to: &Key) -> Result<(), StorageError> {
        let (source_path, path) = (self.path(from), self.path(to));
        if path.exists() {
            return Err(StorageError::AlreadyExists { path: self.place(Some(to)) });
        }
        self.make_folder(to.folder().as_ref(), self.owner()?)?;
        fs::rename(&source_path, &path).map_err(|source| self.writing("move a folder to", &path, source))?;
        self.sync_folders(to)?;
        self.remove_empty_folders(from.folder());
        self.sync_folders(from).or_else(|error| match error {
            // It was the last one there, and its folder went with it.
            StorageError::NotFound { .. } => Ok(()),
            error => Err(error),
        })
    }

    /// Who gets what is created here, if the process is root and the root folder is somebody else's.
    fn owner(&self) -> Result<Option<(Uid, Gid)>, StorageError> {
        let metadata = fs::metadata(&self.root).map_err(|source| self.reading("look at", &self.root, source))?;
        let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        let applies = rustix::process::geteuid().is_root() && !(uid.is_root() && gid.is_root());
        Ok(applies.then_some((uid, gid)))
    }

    fn create_unfinished(&self, key: &Key, owner: Option<(Uid, Gid)>) -> Result<NamedTempFile, StorageError> {
        let mut attempts = 0;
        loop {
            let folder = self.make_folder(key.folder().as_ref(), owner)?;
            let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&folder);
            attempts += 1;
            match file {
                Ok(file) => return Ok(file),
                // A deletion beside us found the folder empty.
                Err(source) if source.kind() == io::ErrorKind::NotFound && attempts < FOLDER_ATTEMPTS => {}
                Err(source) => return Err(self.writing("create", &self.path(key), source)),
            }
        }
    }

    /// Makes the folders down to `folder`, and returns its path. It may be gone again: deletions remove empty folders.
    fn make_folder(&self, folder: Option<&Key>, owner: Option<(Uid, Gid)>) -> Result<PathBuf, StorageError> {
        let mut path = self.root.clone();
        for component in folder.iter().flat_map(|key| key.components()) {
            path.push(component);
            match make_one_folder(&path, owner) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound && self.root.is_dir() => {}
                Err(source) => return Err(self.writing("create the folder", &path, source)),
            }
        }
        Ok(path)
    }

    /// Removes `folder` and those above it as far as they are empty. Returns the one that remains, `None` for the root.
    fn remove_empty_folders(&self, folder: Option<Key>) -> Option<Key> {
        let mut remaining = folder;
        while let Some(folder) = &remaining {
            match fs::remove_dir(self.path(folder)) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::DirectoryNotEmpty {
                        tracing::debug!(%folder, %error, "an empty folder stays in the repository");
                    }
                    break;
                }
            }
            remaining = folder.folder();
        }
        remaining
    }

    /// Makes the names on the way from the root to `key` durable.
    fn sync_folders(&self, key: &Key) -> Result<(), StorageError> {
        let mut folder = key.folder();
        loop {
            let path = folder.as_ref().map_or_else(|| self.root.clone(), |key| self.path(key));
            sync_folder(&path).map_err(|source| self.writing("make durable", &path, source))?;
            match folder {
                Some(inner) => folder = inner.folder(),
                None => return Ok(()),
            }
        }
    }

    /// Visits every file inside `folder`.
    fn walk(
        &self,
        folder: Option<&Key>,
        visit: &mut dyn FnMut(Entry) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut folders = vec![folder.cloned()];
        while let Some(folder) = folders.pop() {
            let path = folder.as_ref().map_or_else(|| self.root.clone(), |key| self.path(key));
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                // Deleted while we walk; but a root that is not there is an error.
                Err(source) if is_absent(&source) && folder.is_some() && self.root.is_dir() => continue,
                Err(source) => return Err(self.reading("list", &path, source)),
            };
            for entry in entries {
                let entry = entry.map_err(|source| self.reading("list", &path, source))?;
                let path = entry.path();
                let metadata = match entry.metadata() {
                    Ok(metadata) => metadata,
                    Err(source) if is_absent(&source) => continue,
                    Err(source) => return Err(self.reading("look at", &path, source)),
                };
                let name = entry.file_name();
                let name = name.to_str().unwrap_or_default();
                if name.starts_with(UNFINISHED) && metadata.is_file() {
                    visit(Entry::Unfinished { path, metadata })?;
                    continue;
                }
                if folder.is_none() && name == LOST_AND_FOUND {
                    continue;
                }
                let key = folder.as_ref().map_or_else(|| Key::new(name), |folder| folder.join(name));
                match key {
                    Ok(key) if metadata.is_dir() => {
                        visit(Entry::Folder { path, metadata })?;
                        folders.push(Some(key));
                    }
                    Ok(key) if metadata.is_file() => visit(Entry::Object { key, metadata })?,
                    _ => {
                        tracing::warn!(path = %path.display(), "a repository holds something that pglife did not write");
                    }
                }
            }
        }
        Ok(())
    }

    /// What a failed read means; if the root is gone, that is the matter.
    pub(super) fn reading(&self, what: &'static str, path: &Path, source: io::Error) -> StorageError {
        self.judge(StorageError::reading(what, path, source))
    }

    /// What a failed change means; if the root is gone, that is the matter.
    pub(super) fn writing(&self, what: &'static str, path: &Path, source: io::Error) -> StorageError {
        self.judge(StorageError::writing(what, path, source, || self.free_bytes().ok().flatten().unwrap_or(0)))
    }

    fn judge(&self, error: StorageError) -> StorageError {
        match error {
            StorageError::NotFound { .. } if !self.root.is_dir() => StorageError::Missing { root: self.place(None) },
            error => error,
        }
    }
}

impl Store for LocalStore {
    fn begin(&self, key: &Key) -> Result<Box<dyn Upload>, StorageError> {
        let path = self.path(key);
        let failed = |what, source| self.writing(what, &path, source);
        let owner = self.owner()?;
        let file = self.create_unfinished(key, owner)?;
        // Explicitly, whatever the umask says.
        file.as_file()
            .set_permissions(Permissions::from_mode(FILE_MODE))
            .map_err(|source| failed("set the mode of", source))?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&file, Some(uid), Some(gid))
                .map_err(|source| failed("set the owner of", source.into()))?;
        }
        let (store, key) = (self.clone(), key.clone());
        Ok(Box::new(LocalUpload { store, key, file, written: 0, on_its_way: 0, write_failed: false }))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn ReadAt>, StorageError> {
        let path = self.path(key);
        let failed = |source| self.reading("open", &path, source);
        let file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StorageError::NotFound { path: path.as_path().into() });
        }
        Ok(Box::new(LocalObject { file, size: metadata.len() }))
    }

    fn head(&self, key: &Key) -> Result<Listed, StorageError> {
        let path = self.path(key);
        let metadata = fs::metadata(&path).map_err(|source| self.reading("look at", &path, source))?;
        if !metadata.is_file() {
            return Err(StorageError::NotFound { path: path.as_path().into() });
        }
        Ok(Listed { key: key.clone(), bytes: metadata.len() })
    }

    fn list(&self, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError> {
        let mut objects = Vec::new();
        self.walk(folder, &mut |entry| {
            if let Entry::Object { key, metadata, .. } = entry {
                objects.push(Listed { key, bytes: metadata.len() });
            }
            Ok(())
        })?;
        objects.sort_unstable();
        Ok(objects)
    }

    fn last_change(&self, folder: &Key) -> Result<Option<SystemTime>, StorageError> {
        let mut last = None;
        self.walk(Some(folder), &mut |entry| {
            let (path, metadata) = match entry {
                Entry::Object { key, metadata } => (self.path(&key), metadata),
                // An upload that is being written is the youngest there is.
                Entry::Unfinished { path, metadata } => (path, metadata),
                Entry::Folder { .. } => return Ok(()),
            };
            let modified = metadata.modified().map_err(|source| self.reading("look at", &path, source))?;
            last = last.max(Some(modified));
            Ok(())
        })?;
        Ok(last)
    }

    fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::IsADirectory => {
                return Err(StorageError::NotFound { path: path.as_path().into() });
            }
            Err(source) if is_absent(&source) => return Err(self.reading("delete", &path, source)),
            Err(source) => return Err(self.writing("delete", &path, source)),
        }
        let remaining = self.remove_empty_folders(key.folder());
        let folder = remaining.map_or_else(|| self.root.clone(), |key| self.path(&key));
        match sync_folder(&folder) {
            Err(source) if !is_absent(&source) => Err(self.writing("make durable the deletion in", &folder, source)),
            _ => Ok(()), // gone as well: somebody else removed it, and answers for its parent
        }
    }

    fn sweep_unfinished(&self, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError> {
        let mut removed = 0;
        let mut folders = Vec::new();
        self.walk(folder, &mut |entry| {
            let (Entry::Unfinished { path, metadata } | Entry::Folder { path, metadata }) = entry else {
                return Ok(());
            };
            let modified = metadata.modified().map_err(|source| self.reading("look at", &path, source))?;
            if modified >= before {
                return Ok(());
            }
            if metadata.is_dir() {
                folders.push(path);
                return Ok(());
            }
            fs::remove_file(&path).map_err(|source| self.writing("delete", &path, source))?;
            removed += 1;
            Ok(())
        })?;
        // A deletion that is killed after a folder's last object leaves the folder. Those inside come last.
        for path in folders.iter().rev() {
            match fs::remove_dir(path) {
                Err(error) if !is_absent(&error) && error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                    tracing::debug!(path = %path.display(), %error, "an empty folder stays in the repository");
                }
                _ => {}
            }
        }
        Ok(removed)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let space =
            rustix::fs::statvfs(&self.root).map_err(|source| self.reading("look at", &self.root, source.into()))?;
        Ok(Some(space.f_bavail.saturating_mul(space.f_frsize)))
    }

    fn check_writable(&self) -> Result<(), StorageError> {
        rustix::fs::access(&self.root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|source| self.writing("write to", &self.root, source.into()))
    }

    fn make_place(&self) -> Result<(), StorageError> {
        let made = fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.root);
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                StorageError::NotARepository { root: self.place(None), why: "it is no folder".to_owned() }
            }
            _ => StorageError::writing("create the folder", self.place(None), source, || 0),
        })
    }

    fn first_foreign_name(&self) -> Result<Option<String>, StorageError> {
        let failed = |source| self.reading("list", &self.root, source);
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name != LOST_AND_FOUND && !name.starts_with(UNFINISHED) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn place(&self, key: Option<&Key>) -> Place {
        match key {
            Some(key) => self.path(key).as_path().into(),
            None => self.root.as_path().into(),
        }
    }
}

enum Entry {
    Object {
        key: Key,
        metadata: fs::Metadata,
    },
    Unfinished {
        path: PathBuf,
        metadata: fs::Metadata,
    },
    /// Comes before what is in it.
    Folder {
        path: PathBuf,
        metadata: fs::Metadata,
    },
}

/// Makes a folder that all of pglife can use. One that exists is left as it is.
fn make_one_folder(path: &Path, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // Explicitly, whatever the umask says.
    fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))?;
    if let Some((uid, gid)) = owner {
        rustix::fs::chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Upload for LocalUpload {
    fn commit(self: Box<Self>) -> Result<(), StorageError> {
        let Self { store, key, file, write_failed, .. } = *self;
        let path = store.path(&key);
        if write_failed {
            return Err(StorageError::Incomplete { path: store.place(Some(&key)) });
        }
        file.as_file().sync_all().map_err(|source| store.writing("make durable", &path, source))?;
        file.persist_noclobber(&path).map_err(|failed| store.writing("give its name to", &path, failed.error))?;
        store.sync_folders(&key).inspect_err(|_| {
            // It failed, so it must not be there; if that fails as well, the caller still has the error.
            if let Err(error) = fs::remove_file(&path) {
                tracing::error!(path = %path.display(), %error, "an object whose upload failed could not be removed");
            }
        })
    }

    fn abort(self: Box<Self>) -> Result<(), StorageError> {
        let Self { store, key, file, .. } = *self;
        let path = file.path().to_owned();
        file.close().map_err(|source| store.writing("delete", &path, source))?;
        store.remove_empty_folders(key.folder());
        Ok(())
    }
}

impl LocalUpload {
    fn write_failed(&mut self, source: io::Error) -> StorageError {
        self.write_failed = true;
        self.store.writing("write", &self.store.path(&self.key), source)
    }

    /// Has the kernel begin to write what is not on its way yet, so that the fsync at the end finds little to do: else
    /// the disk idles while the data comes in, and everybody waits for the disk afterwards. Best effort.
    fn write_back(&mut self) {
        if let Some(bytes) = NonZeroU64::new(self.written - self.on_its_way).filter(|bytes| bytes.get() >= WRITE_BACK) {
            if let Err(error) = rustix::fs::fadvise(&self.file, self.on_its_way, Some(bytes), Advice::DontNeed) {
                tracing::debug!(%error, "the kernel writes when it likes");
            }
            self.on_its_way = self.written;
        }
    }
}

impl Write for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.as_file_mut().write(bytes) {
            Ok(written) => {
                self.written += written as u64;
                self.write_back();
                Ok(written)
            }
            Err(source) if source.kind() == io::ErrorKind::Interrupted => Err(source),
            Err(source) => Err(self.write_failed(source).into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // nothing is held back
    }
}

impl ReadAt for LocalObject {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
