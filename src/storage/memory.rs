//! A store that forgets: objects in memory, for tests.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Key, Listed, Place, ReadAt, StorageError, Store, Upload};

/// The objects. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    content: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    objects: BTreeMap<Key, (Arc<[u8]>, SystemTime)>,
    uploads: BTreeMap<u64, (Key, SystemTime)>,
    next_upload: u64,
}

#[derive(Debug)]
struct MemoryUpload {
    store: MemoryStore,
    key: Key,
    id: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct MemoryObject(Arc<[u8]>);

impl MemoryStore {
    fn content(&self) -> MutexGuard<'_, Content> {
        // A test that panicked elsewhere leaves maps that are whole.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key) -> Result<Arc<[u8]>, StorageError> {
        let found = self.content().objects.get(key).map(|(bytes, _)| Arc::clone(bytes));
        found.ok_or_else(|| StorageError::NotFound { path: self.place(Some(key)) })
    }
}

fn is_inside(key: &Key, folder: Option<&Key>) -> bool {
    folder.is_none_or(|folder| key.is_inside(folder))
}

impl Store for MemoryStore {
    fn begin(&self, key: &Key) -> Result<Box<dyn Upload>, StorageError> {
        let mut content = self.content();
        let id = content.next_upload;
        content.next_upload += 1;
        content.uploads.insert(id, (key.clone(), SystemTime::now()));
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.clone(), id, bytes: Vec::new() }))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn ReadAt>, StorageError> {
        Ok(Box::new(MemoryObject(self.find(key)?)))
    }

    fn head(&self, key: &Key) -> Result<Listed, StorageError> {
        Ok(Listed { key: key.clone(), bytes: self.find(key)?.len() as u64 })
    }

    fn list(&self, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError> {
        let content = self.content();
        let inside = content.objects.iter().filter(|(key, _)| is_inside(key, folder));
        Ok(inside.map(|(key, (bytes, _))| Listed { key: key.clone(), bytes: bytes.len() as u64 }).collect())
    }

    fn last_change(&self, folder: &Key) -> Result<Option<SystemTime>, StorageError> {
        let content = self.content();
        let inside = content.objects.iter().filter(|(key, _)| is_inside(key, Some(folder)));
        Ok(inside.map(|(_, (_, stored))| *stored).max())
    }

    fn delete(&self, key: &Key) -> Result<(), StorageError> {
        match self.content().objects.remove(key) {
            Some(_) => Ok(()),
            None => Err(StorageError::NotFound { path: self.place(Some(key)) }),
        }
    }

    fn sweep_unfinished(&self, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError> {
        let mut content = self.content();
        let uploads = content.uploads.len();
        content.uploads.retain(|_, (key, began)| !is_inside(key, folder) || *began >= before);
        Ok((uploads - content.uploads.len()) as u64)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    fn check_writable(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn make_place(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn first_foreign_name(&self) -> Result<Option<String>, StorageError> {
        Ok(self.content().objects.keys().next().and_then(|key| key.components().next()).map(str::to_owned))
    }

    fn place(&self, key: Option<&Key>) -> Place {
        Place::new(key.map_or_else(|| "memory:".to_owned(), |key| format!("memory:{key}")))
    }
}

impl Write for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for MemoryUpload {
    fn commit(mut self: Box<Self>) -> Result<(), StorageError> {
        let path = self.store.place(Some(&self.key));
        let bytes = std::mem::take(&mut self.bytes);
        let mut content = self.store.content();
        if content.uploads.remove(&self.id).is_none() {
            return Err(StorageError::Incomplete { path });
        }
        if content.objects.contains_key(&self.key) {
            return Err(StorageError::AlreadyExists { path });
        }
        content.objects.insert(self.key.clone(), (bytes.into(), SystemTime::now()));
        Ok(())
    }

    fn abort(self: Box<Self>) -> Result<(), StorageError> {
        Ok(()) // that is what dropping does
    }
}

impl Drop for MemoryUpload {
    fn drop(&mut self) {
        self.store.content().uploads.remove(&self.id);
    }
}

impl ReadAt for MemoryObject {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|first| Some(first..first.checked_add(buffer.len())?));
        match range.and_then(|range| self.0.get(range)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
