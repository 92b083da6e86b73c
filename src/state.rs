//! `state.db` and the locks beside it: which runs there were and how they ended, and who works on which cluster now.
//!
//! ```text
//! <state_dir>/state.db              runs and what each made, repositories that were seen (SQLite, WAL, synchronous=FULL)
//! <state_dir>/locks/<cluster>.lock  held by the run that works on the cluster
//! <state_dir>/runs/<run>.lock       held while the run lives: the kernel lets go of it, whatever ends the process
//! <state_dir>/sets/<set>.lock       shared by those who read a set; held alone by the one who deletes it
//! <state_dir>/daemon.lock           held by the daemon
//! ```
//!
//! The repository is the truth about backups; nothing here is needed to restore. A run whose lock is free and that has no
//! end in the table died: the next run of pglife says so in the table and cleans up what it left.

mod databases;
pub mod dependents;
mod events;
mod notices;
mod record;
mod runs;
mod slots;
pub mod upgrades;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use rustix::fs::{FlockOperation, flock};

use crate::backup_set::SetId;
use crate::cluster::{ClusterName, RepoName};
use crate::exit::Exit;

pub use databases::SeenDatabases;
pub use events::EventRecord;
pub use record::{Made, Operation, RUN_FOLDER, RunRecord, Thing};
pub use slots::{Fired, FiredSlots};

/// Version of the tables. A newer one is refused.
const SCHEMA_VERSION: u32 = 5;

/// Why the state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state directory cannot be used.
    #[error("the state directory {} cannot be used: could not {action}", folder.display())]
    Folder {
        /// The directory.
        folder: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error("the state database {} cannot be used", file.display())]
    Database {
        /// The file.
        file: PathBuf,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
    /// It was made by a newer pglife.
    #[error("the state database {} has version {found}, this pglife knows up to {SCHEMA_VERSION}; use the newer pglife", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Another run works on the cluster.
    #[error("another run works on cluster \"{cluster}\": {holder}")]
    Busy {
        /// The cluster.
        cluster: ClusterName,
        /// What the holder says of itself.
        holder: String,
    },
    /// Another daemon works with this state directory.
    #[error("another daemon works with the state directory {}: {holder}", folder.display())]
    SecondDaemon {
        /// The directory.
        folder: PathBuf,
        /// What the other one says of itself.
        holder: String,
    },
    /// The backup is being deleted.
    #[error("backup {set} is being deleted by another run")]
    Going {
        /// The set.
        set: SetId,
    },
}

impl StateError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Busy { .. } | Self::Going { .. } | Self::SecondDaemon { .. } => Exit::LockBusy,
            Self::Newer { .. } | Self::Folder { .. } | Self::Database { .. } => Exit::Failed,
        }
    }
}

/// The control plane's own memory.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    file: PathBuf,
    connection: Mutex<Connection>,
}

/// A lock that the kernel takes back when the process ends, however it ends.
#[derive(Debug)]
pub struct HeldLock {
    file: File,
    path: PathBuf,
    /// Lock files of runs are removed with the lock; those of clusters stay.
    remove: bool,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if self.remove {
            // A file that stays is harmless: nobody holds it.
            std::fs::remove_file(&self.path).ok();
        }
        flock(&self.file, FlockOperation::Unlock).ok();
    }
}

impl HeldLock {
    /// Lets go of the lock, and removes its file: what it stood for is gone.
    pub fn discard(mut self) {
        self.remove = true;
    }
}

impl State {
    /// Opens the state in `folder`, and makes both where they are missing.
    #[expect(clippy::disallowed_methods, reason = "this is SQLite's one home")]
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let failed =
            |action: &'static str| move |source| StateError::Folder { folder: folder.to_owned(), action, source };
        for sub in ["locks", "runs", "sets"] {
            std::fs::create_dir_all(folder.join(sub)).map_err(failed("create it"))?;
        }
        let file = folder.join("state.db");
        let wrong = |source| StateError::Database { file: file.clone(), source };
        let connection = Connection::open(&file).map_err(wrong)?;
        connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(wrong)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(wrong)?;
        connection.pragma_update(None, "synchronous", "full").map_err(wrong)?;
        let found: u32 = connection.query_row("pragma user_version", [], |row| row.get(0)).map_err(wrong)?;
        if found > SCHEMA_VERSION {
            return Err(StateError::Newer { file, found });
        }
        connection
            .execute_batch(&format!(
                "begin immediate;
                 create table if not exists runs (
                     run text primary key, cluster text not null, operation text not null, started_at text not null,
                     ended_at text, exit integer, message text not null default '', set_id text) strict;
                 create index if not exists runs_by_cluster on runs (cluster, started_at);
                 create table if not exists made (
                     run text not null references runs (run), host text not null, kind text not null, name text not null,
                     primary key (run, host, kind, name)) strict;
                 create table if not exists remembered (
                     repository text not null, key text not null, content blob not null,
                     primary key (repository, key)) strict, without rowid;
                 create table if not exists known_repositories (
                     name text not null, place text not null, id text not null, since text not null,
                     primary key (name, place, id)) strict, without rowid;
                 create table if not exists slots (
                     cluster text not null, task text not null, schedule text not null, fired_at text not null,
                     primary key (cluster, task)) strict, without rowid;
                 create table if not exists events (
                     id integer primary key autoincrement, at text not null, cluster text, kind text not null,
                     text text not null) strict;
                 create table if not exists said (
                     subject text primary key, state text not null) strict, without rowid;
                 create table if not exists databases (
                     cluster text primary key, at text not null, names text not null) strict, without rowid;
                 create table if not exists dependents (
                     cluster text not null, name text not null, id text not null, how text not null, at text not null,
                     reason text not null, primary key (cluster, name)) strict;
                 {}
                 pragma user_version = {SCHEMA_VERSION};
                 commit;",
                upgrades::TABLE
            ))
            .map_err(wrong)?;
        Ok(Self { folder: folder.to_owned(), file, connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self) -> impl Fn(rusqlite::Error) -> StateError {
        let file = self.file.clone();
        move |source| StateError::Database { file: file.clone(), source }
    }

    fn lock(&self, path: PathBuf, words: &str, remove: bool) -> Result<Option<HeldLock>, StateError> {
        let failed =
            |action: &'static str| move |source| StateError::Folder { folder: self.folder.clone(), action, source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open a lock"))?;
        // Whoever asks whether a lock is held touches it for a moment: that must not look like a holder.
        let attempts = [0, 20, 50].into_iter().map(std::time::Duration::from_millis);
        let taken = attempts.into_iter().any(|wait| {
            std::thread::sleep(wait);
            flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        if !taken {
            return Ok(None);
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(words.as_bytes())
        };
        write(&mut file).map_err(failed("write into a lock"))?;
        Ok(Some(HeldLock { file, path, remove }))
    }

    /// Takes for this process what `operation` locks of the cluster; whoever holds it is named otherwise.
    pub fn lock_cluster(
        &self,
        cluster: &ClusterName,
        operation: Operation,
        now: Timestamp,
    ) -> Result<HeldLock, StateError> {
        let path = self.folder.join("locks").join(format!("{}.lock", operation.locks(cluster)));
        let words = format!("{} since {now}, process {}", operation.as_str(), std::process::id());
        if let Some(lock) = self.lock(path.clone(), &words, false)? {
            return Ok(lock);
        }
        let mut holder = String::new();
        // Without its words it is still busy.
        File::open(&path).and_then(|mut file| file.read_to_string(&mut holder)).ok();
        Err(StateError::Busy { cluster: cluster.clone(), holder })
    }

    fn set_lock(&self, set: &SetId) -> PathBuf {
        self.folder.join("sets").join(format!("{set}.lock"))
    }

    /// Holds a set, with any others who do, so that nobody deletes it while it is read.
    pub fn hold_set(&self, set: &SetId) -> Result<HeldLock, StateError> {
        let path = self.set_lock(set);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| StateError::Folder { folder: self.folder.clone(), action: "open a lock", source })?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(HeldLock { file, path, remove: false }),
            Err(_) => Err(StateError::Going { set: set.clone() }),
        }
    }

    /// Holds several sets, all or none.
    pub fn hold_sets<'s>(&self, sets: impl IntoIterator<Item = &'s SetId>) -> Result<Vec<HeldLock>, StateError> {
        sets.into_iter().map(|set| self.hold_set(set)).collect()
    }

    /// Takes a set in order to delete it; None while somebody holds it.
    pub fn take_set(&self, set: &SetId) -> Result<Option<HeldLock>, StateError> {
        self.lock(self.set_lock(set), "", false)
    }

    /// The file with the key that opens what this machine notes of copies of volumes, and nothing else.
    pub fn reader_key(&self) -> PathBuf {
        self.folder.join("reader.key")
    }

    fn run_lock(&self, run: &str) -> PathBuf {
        self.folder.join("runs").join(format!("{run}.lock"))
    }

    /// Small objects of a repository that never change, by their keys, as far as they were read before. `repository` is its
    /// id; `folder` is what the keys begin with, possibly empty.
    pub fn remembered(&self, repository: &str, folder: &str) -> Result<HashMap<String, Vec<u8>>, StateError> {
        let connection = self.connection();
        // From the folder's name to the one after all that begin with it.
        let mut query = connection
            .prepare(
                "select key, content from remembered where repository = ?1 and key >= ?2 and key < ?2 || char(1114111)",
            )
            .map_err(self.wrong())?;
        let rows = query.query_map([repository, folder], |row| Ok((row.get(0)?, row.get(1)?))).map_err(self.wrong())?;
        rows.collect::<Result<HashMap<_, _>, _>>().map_err(self.wrong())
    }

    /// Remembers small objects that never change, and forgets those that are gone.
    pub fn remember(&self, repository: &str, read: &[(String, Vec<u8>)], gone: &[String]) -> Result<(), StateError> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(self.wrong())?;
        for (key, content) in read {
            change
                .execute("insert or replace into remembered values (?1, ?2, ?3)", params![repository, key, content])
                .map_err(self.wrong())?;
        }
        for key in gone {
            change
                .execute("delete from remembered where repository = ?1 and key = ?2", [repository, key])
                .map_err(self.wrong())?;
        }
        change.commit().map_err(self.wrong())
    }

    /// The ids of the repositories that were found at `place` under `name`, and accepted; the oldest acquaintance first.
    pub fn known_repositories(&self, name: &RepoName, place: &str) -> Result<Vec<(String, Timestamp)>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("select id, since from known_repositories where name = ?1 and place = ?2 order by since, id")
            .map_err(self.wrong())?;
        let rows =
            query.query_map([name.as_str(), place], |row| Ok((row.get(0)?, parsed(row, 1)?))).map_err(self.wrong())?;
        rows.collect::<Result<Vec<_>, _>>().map_err(self.wrong())
    }

    /// Remembers that the repository `id` belongs at `place`, under `name`.
    pub fn know_repository(&self, name: &RepoName, place: &str, id: &str, now: Timestamp) -> Result<(), StateError> {
        self.connection()
            .execute(
                "insert or ignore into known_repositories values (?1, ?2, ?3, ?4)",
                params![name.as_str(), place, id, now.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(())
    }
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| {
        let error = std::io::Error::other(format!("{text:?} is not what belongs here"));
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

#[cfg(test)]
mod tests {
    use super::runs::KEPT_RUNS;
    use super::*;
    use crate::cluster::HostName;

    fn cluster() -> ClusterName {
        ClusterName::new("chado").expect("a name")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_cluster_is_worked_on_by_one_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let held = state.lock_cluster(&cluster(), Operation::Dump, at(0)).expect("free");
        let Err(StateError::Busy { holder, .. }) = state.lock_cluster(&cluster(), Operation::Restore, at(1)) else {
            panic!("two runs hold one cluster");
        };
        assert!(holder.contains("dump since 1970-01-01T00:00:00Z"), "{holder}");
        drop(held);
        state.lock_cluster(&cluster(), Operation::Restore, at(2)).expect("free again");
    }

    #[test]
    fn a_drill_keeps_no_backup_from_running_but_a_second_drill() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let _drill = state.lock_cluster(&cluster(), Operation::Drill, at(0)).expect("free");
        let _dump =
            state.lock_cluster(&cluster(), Operation::Dump, at(0)).expect("a drill holds nothing of the cluster");
        let second =
            state.lock_cluster(&cluster(), Operation::Rehearsal, at(1)).expect_err("there is one server for drills");
        assert_eq!(second.exit(), Exit::LockBusy);
        // It is the cluster's run all the same.
        let _alive = state.begin_run("r1", &cluster(), Operation::Drill, at(0)).expect("begun");
        assert_eq!(state.runs(Some(&cluster()), 10).expect("read").len(), 1);
    }

    #[test]
    fn a_run_whose_lock_is_free_is_dead_until_it_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let lock = state.begin_run("r1", &cluster(), Operation::Create, at(0)).expect("begun");
        let host = HostName::new("local").expect("a name");
        let things = [Thing::Volume("v".to_owned()), Thing::Container("c".to_owned())];
        for thing in &things {
            state.will_make("r1", &host, thing).expect("recorded");
        }
        assert!(state.dead_runs().expect("read").is_empty());
        assert_eq!(state.live_runs().expect("read").len(), 1);
        assert!(!state.is_over("r1"));
        drop(lock);
        assert_eq!(state.dead_runs().expect("read").len(), 1);
        assert!(state.live_runs().expect("read").is_empty());
        assert!(state.is_over("r1"));
        // Undone in the reverse order.
        let made: Vec<Thing> = state.made_by("r1").expect("read").into_iter().map(|made| made.thing).collect();
        assert_eq!(made, [things[1].clone(), things[0].clone()]);

        state.end_run("r1", Exit::Failed, "died", None, at(5)).expect("ended");
        assert!(state.dead_runs().expect("read").is_empty());
        assert!(state.made_by("r1").expect("read").is_empty());
        let runs = state.runs(Some(&cluster()), 10).expect("read");
        assert_eq!((runs[0].exit, runs[0].ended_at, runs[0].message.as_str()), (Some(1), Some(at(5)), "died"));
    }

    #[test]
    fn the_record_of_runs_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let run = |second: i64, cluster: &ClusterName| {
            let name = format!("{cluster}{second}");
            let lock = state.begin_run(&name, cluster, Operation::Dump, at(second)).expect("begun");
            (name, lock)
        };
        let other = ClusterName::new("other").expect("a name");
        let (old, _lives) = run(0, &cluster());
        let (of_other, _lock) = run(1, &other);
        state.end_run(&of_other, Exit::Ok, "", None, at(2)).expect("ended");
        for second in 2..=KEPT_RUNS + 5 {
            let (name, _lock) = run(second, &cluster());
            state.end_run(&name, Exit::Ok, "", None, at(second)).expect("ended");
        }
        let runs = state.runs(Some(&cluster()), u32::MAX).expect("read");
        // The newest ones, and the one that still lives.
        assert_eq!(i64::try_from(runs.len()), Ok(KEPT_RUNS + 1));
        assert_eq!(runs[0].started_at, at(KEPT_RUNS + 5));
        assert_eq!(state.live_runs().expect("read")[0].run, old);
        assert_eq!(state.runs(Some(&other), 9).expect("read").len(), 1);
    }

    #[test]
    fn a_set_that_is_read_is_not_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let set: SetId = "20261122T023000Z-dump-k3x9qa".parse().expect("an id");
        let readers = [state.hold_set(&set).expect("held"), state.hold_set(&set).expect("held again")];
        assert!(state.take_set(&set).expect("asked").is_none());
        drop(readers);
        let taken = state.take_set(&set).expect("asked").expect("free");
        assert!(matches!(state.hold_set(&set), Err(StateError::Going { .. })));
        taken.discard();
        assert_eq!(std::fs::read_dir(folder.path().join("sets")).expect("readable").count(), 0);
    }

    #[test]
    fn what_is_remembered_is_its_own_repository_s_and_folder_s() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let entry = |key: &str, content: &str| (key.to_owned(), content.as_bytes().to_vec());
        let entries = [entry("a/1", "one"), entry("a/é\u{10FFFF}", "odd"), entry("ab/2", "two"), entry("b/3", "three")];
        state.remember("r", &entries, &[]).expect("kept");
        state.remember("other", &[entry("a/1", "else")], &[]).expect("kept");
        let keys = |folder: &str| {
            let mut keys: Vec<String> = state.remembered("r", folder).expect("read").into_keys().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys("a/"), ["a/1", "a/é\u{10FFFF}"]);
        assert_eq!(keys("").len(), 4);
        state.remember("r", &[entry("a/1", "new")], &["b/3".to_owned(), "nowhere".to_owned()]).expect("kept");
        assert_eq!(state.remembered("r", "").expect("read")["a/1"], b"new");
        assert_eq!(keys("b/"), [""; 0]);
        assert_eq!(state.remembered("other", "").expect("read")["a/1"], b"else");
    }

    #[test]
    fn repositories_are_known_by_name_and_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let name: RepoName = "usb".parse().expect("a name");
        state.know_repository(&name, "/mnt/a", "one", at(0)).expect("kept");
        state.know_repository(&name, "/mnt/a", "two", at(1)).expect("kept");
        state.know_repository(&name, "/mnt/a", "one", at(2)).expect("kept");
        let known = state.known_repositories(&name, "/mnt/a").expect("read");
        assert_eq!(known, [("one".to_owned(), at(0)), ("two".to_owned(), at(1))]);
        assert!(state.known_repositories(&name, "/mnt/b").expect("read").is_empty());
        let other: RepoName = "nas".parse().expect("a name");
        assert!(state.known_repositories(&other, "/mnt/a").expect("read").is_empty());
    }

    #[test]
    fn unknown_runs_are_not_ours_to_judge() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!State::open(folder.path()).expect("opened").is_over("another daemon's"));
    }

    #[test]
    fn a_newer_database_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        State::open(folder.path())
            .expect("opened")
            .connection()
            .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
            .expect("set");
        assert!(
            matches!(State::open(folder.path()), Err(StateError::Newer { found, .. }) if found == SCHEMA_VERSION + 1)
        );
    }
}
