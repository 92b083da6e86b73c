//! A store that fails when it is told to: around any other store, for tests.
//!
//! A test lets its subject work on a store that only counts, and then once for every operation that was counted and every
//! [`Fault`]:
//!
//! ```
//! # use std::sync::Arc;
//! # use pglife::storage::faulty::{Fault, FaultyStore};
//! # use pglife::storage::{Key, Store, memory::MemoryStore};
//! # let subject = |store: &dyn Store| store.put(&Key::new("a").expect("a key"), b"x");
//! let counting = FaultyStore::counting(Arc::new(MemoryStore::default()));
//! subject(&counting).expect("nothing fails yet");
//! for (at, operation) in counting.done().into_iter().enumerate() {
//!     let store = MemoryStore::default();
//!     let failed = subject(&FaultyStore::failing(Arc::new(store.clone()), at, Fault::Killed));
//!     assert!(failed.is_err() && store.list(None).expect("listed").is_empty(), "{operation}");
//! }
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Key, Listed, Place, ReadAt, StorageError, Store, Upload};

/// What a store can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// [`Store::begin`].
    Begin,
    /// One `write` to an upload.
    Write,
    /// [`Upload::commit`].
    Commit,
    /// [`Upload::abort`].
    Abort,
    /// [`Store::open`].
    Open,
    /// [`ReadAt::read_exact_at`].
    Read,
    /// [`Store::head`].
    Head,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::sweep_unfinished`].
    Sweep,
    /// What looks at the place: free bytes, whether it is writable, whether anything is there; and what makes it.
    Place,
}

/// One operation that was done or tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What.
    pub action: Action,
    /// On which object or folder.
    pub key: Option<Key>,
}

impl fmt::Display for Done {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.action)?;
        self.key.iter().try_for_each(|key| write!(out, " {key}"))
    }
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not done. What follows works.
    Fails,
    /// It is done, but the answer is lost. What follows works.
    FailsAfterwards,
    /// The process is killed before it: nothing that follows is done, no upload is cleaned up.
    Killed,
    /// The process is killed after it was done.
    KilledAfterwards,
    /// A write or a commit is not done, but answered as if it had been. Other operations work.
    Pretends,
}

impl Fault {
    /// Those of a store that does not lie: all but [`Fault::Pretends`].
    pub const ALL: [Self; 4] = [Self::Fails, Self::FailsAfterwards, Self::Killed, Self::KilledAfterwards];
}

/// Why some objects cannot be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ban {
    /// The store locks them until then.
    Locked(jiff::Timestamp),
    /// The credentials do not allow it.
    Forbidden,
}

/// A store around another.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    course: Course,
    /// What cannot be deleted.
    kept: Option<(BTreeSet<Key>, Ban)>,
}

/// What happened so far and what is to happen. Clones share it.
#[derive(Debug, Clone)]
struct Course {
    fault: Option<(usize, Fault)>,
    others: Option<(usize, Others)>,
    done: Arc<Mutex<Vec<Done>>>,
}

/// What somebody else does meanwhile.
#[derive(Clone)]
struct Others(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Others {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Others")
    }
}

#[derive(Debug)]
struct FaultyUpload {
    /// `None` once it has ended.
    inner: Option<Box<dyn Upload>>,
    course: Course,
    key: Key,
    place: Place,
    write_failed: bool,
}

#[derive(Debug)]
struct FaultyObject {
    inner: Box<dyn ReadAt>,
    course: Course,
    key: Key,
    place: Place,
}

impl FaultyStore {
    /// Never fails.
    pub fn counting(inner: Arc<dyn Store>) -> Self {
        Self { inner, course: Course { fault: None, others: None, done: Arc::default() }, kept: None }
    }

    /// Deletes everything but `keys`.
    pub fn keeping(inner: Arc<dyn Store>, keys: impl IntoIterator<Item = Key>, ban: Ban) -> Self {
        Self { kept: Some((keys.into_iter().collect(), ban)), ..Self::counting(inner) }
    }

    /// Fails at the operation number `at`, from 0 on.
    pub fn failing(inner: Arc<dyn Store>, at: usize, fault: Fault) -> Self {
        Self { inner, course: Course { fault: Some((at, fault)), others: None, done: Arc::default() }, kept: None }
    }

    /// Never fails, but somebody else does `what` right before the operation number `at`.
    pub fn shared(inner: Arc<dyn Store>, at: usize, what: impl Fn() + Send + Sync + 'static) -> Self {
        let others = Some((at, Others(Arc::new(what))));
        Self { inner, course: Course { fault: None, others, done: Arc::default() }, kept: None }
    }

    /// What was done or tried so far; what was tried after the process was killed is not in it.
    pub fn done(&self) -> Vec<Done> {
        self.course.done().clone()
    }

    fn through<T>(
        &self,
        action: Action,
        key: Option<&Key>,
        call: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        self.course.through(action, key, self.inner.place(key), call)
    }
}

impl Course {
    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process is dead.
    fn is_over(&self) -> bool {
        let killed = |fault| matches!(fault, Fault::Killed | Fault::KilledAfterwards);
        self.fault.is_some_and(|(at, fault)| killed(fault) && self.done().len() > at)
    }

    fn through<T>(
        &self,
        action: Action,
        key: Option<&Key>,
        place: Place,
        call: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        self.through_or(None, action, key, place, call)
    }

    /// `pretended` is the answer of a store that lies.
    fn through_or<T>(
        &self,
        pretended: Option<T>,
        action: Action,
        key: Option<&Key>,
        place: Place,
        call: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let fail = |words: &str| {
            let source = io::Error::other(format!("a fault of the test: {words} {action:?}"));
            Err(StorageError::Io { what: "use", path: place, source })
        };
        if self.is_over() {
            return fail("killed before");
        }
        let number = {
            let mut done = self.done();
            done.push(Done { action, key: key.cloned() });
            done.len() - 1
        };
        if let Some((_, others)) = self.others.as_ref().filter(|(at, _)| *at == number) {
            (others.0)();
        }
        match self.fault {
            Some((at, Fault::Fails)) if at == number => fail("no"),
            Some((at, Fault::Killed)) if at == number => fail("killed at"),
            Some((at, Fault::FailsAfterwards)) if at == number => {
                call()?;
                fail("the answer was lost of")
            }
            Some((at, Fault::KilledAfterwards)) if at == number => {
                // A killed process drops nothing.
                std::mem::forget(call()?);
                fail("killed after")
            }
            Some((at, Fault::Pretends)) if at == number => pretended.map_or_else(call, Ok),
            _ => call(),
        }
    }
}

impl Store for FaultyStore {
    fn begin(&self, key: &Key) -> Result<Box<dyn Upload>, StorageError> {
        let inner = self.through(Action::Begin, Some(key), || self.inner.begin(key))?;
        Ok(Box::new(FaultyUpload {
            inner: Some(inner),
            course: self.course.clone(),
            key: key.clone(),
            place: self.inner.place(Some(key)),
            write_failed: false,
        }))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn ReadAt>, StorageError> {
        let inner = self.through(Action::Open, Some(key), || self.inner.open(key))?;
        let place = self.inner.place(Some(key));
        Ok(Box::new(FaultyObject { inner, course: self.course.clone(), key: key.clone(), place }))
    }

    fn head(&self, key: &Key) -> Result<Listed, StorageError> {
        self.through(Action::Head, Some(key), || self.inner.head(key))
    }

    fn list(&self, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError> {
        self.through(Action::List, folder, || self.inner.list(folder))
    }

    fn last_change(&self, folder: &Key) -> Result<Option<SystemTime>, StorageError> {
        self.through(Action::List, Some(folder), || self.inner.last_change(folder))
    }

    fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.through(Action::Delete, Some(key), || {
            let path = || self.inner.place(Some(key));
            match &self.kept {
                Some((keys, Ban::Locked(until))) if keys.contains(key) => {
                    Err(StorageError::Locked { path: path(), until: Some(*until) })
                }
                Some((keys, Ban::Forbidden)) if keys.contains(key) => {
                    let source = "a ban of the test".into();
                    Err(StorageError::NotPermitted { what: "delete", path: path(), source })
                }
                _ => self.inner.delete(key),
            }
        })
    }

    fn sweep_unfinished(&self, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError> {
        self.through(Action::Sweep, folder, || self.inner.sweep_unfinished(folder, before))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.through(Action::Place, None, || self.inner.free_bytes())
    }

    fn check_writable(&self) -> Result<(), StorageError> {
        self.through(Action::Place, None, || self.inner.check_writable())
    }

    fn make_place(&self) -> Result<(), StorageError> {
        self.through(Action::Place, None, || self.inner.make_place())
    }

    fn first_foreign_name(&self) -> Result<Option<String>, StorageError> {
        self.through(Action::Place, None, || self.inner.first_foreign_name())
    }

    fn place(&self, key: Option<&Key>) -> Place {
        self.inner.place(key)
    }
}

impl FaultyUpload {
    fn incomplete(&self) -> StorageError {
        StorageError::Incomplete { path: self.place.clone() }
    }
}

impl Write for FaultyUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.write_failed {
            return Err(self.incomplete().into());
        }
        let Self { inner, course, key, place, .. } = self;
        let pretended = Some(bytes.len());
        let written = course.through_or(pretended, Action::Write, Some(key), place.clone(), || match inner {
            Some(inner) => inner.write(bytes).map_err(|error| StorageError::of_write(place.clone(), error)),
            None => Ok(0),
        });
        written.map_err(|error| {
            self.write_failed = true;
            error.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for FaultyUpload {
    fn commit(mut self: Box<Self>) -> Result<(), StorageError> {
        let (course, key, place) = (self.course.clone(), self.key.clone(), self.place.clone());
        course.through_or(Some(()), Action::Commit, Some(&key), place, || match self.inner.take() {
            Some(inner) if !self.write_failed => inner.commit(),
            _ => Err(self.incomplete()),
        })
    }

    fn abort(mut self: Box<Self>) -> Result<(), StorageError> {
        let (course, key, place) = (self.course.clone(), self.key.clone(), self.place.clone());
        course.through(Action::Abort, Some(&key), place, || self.inner.take().map_or(Ok(()), Upload::abort))
    }
}

impl Drop for FaultyUpload {
    fn drop(&mut self) {
        if self.course.is_over() {
            std::mem::forget(self.inner.take());
        }
    }
}

impl ReadAt for FaultyObject {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.course.through(Action::Read, Some(&self.key), self.place.clone(), || {
            let read = self.inner.read_exact_at(buffer, offset);
            Ok(read.map_err(|error| (error.kind(), StorageError::of_read(self.place.clone(), error))))
        });
        match read {
            Ok(Ok(())) => Ok(()),
            Ok(Err((io::ErrorKind::UnexpectedEof, _))) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err((_, error))) | Err(error) => Err(error.into()),
        }
    }
}
