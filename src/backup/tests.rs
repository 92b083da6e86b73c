//! The contract of a set on its way into a store, on the stores that need no server.

use std::sync::Arc;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};

use super::contract::{Trial, every_fault};
use crate::policy::Duration;
use crate::prune::leftovers;
use crate::storage::local::LocalStore;
use crate::storage::memory::MemoryStore;
use crate::storage::{Location, Repository, Store};

fn clear(store: &dyn Store) {
    let later = Timestamp::now() + SignedDuration::from_hours(24 * 365 * 10);
    for leftover in leftovers::find(store, Duration::ZERO, later).expect("looked") {
        leftovers::clear(store, &leftover).expect("cleared");
    }
    store.sweep_unfinished(None, SystemTime::from(later)).expect("swept");
}

fn run(make: &(dyn Fn() -> Arc<dyn Store> + Sync)) {
    for sealed in [false, true] {
        every_fault(&Trial { make, clear: &clear, large_bytes: 0, write_bytes: 100, threads: 2 }, sealed);
    }
}

#[test]
fn a_store_in_memory_may_fail_anywhere() {
    run(&|| Arc::new(MemoryStore::default()));
}

#[test]
fn a_folder_may_fail_anywhere() {
    // In memory, where making durable costs nothing.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let count = std::sync::atomic::AtomicUsize::new(0);
    run(&|| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = folder.path().join(number.to_string());
        Repository::init(&Location::Local { folder: root.clone() }).expect("made");
        Arc::new(LocalStore::at(root))
    });
}
