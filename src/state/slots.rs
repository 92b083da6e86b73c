//! What the daemon remembers of its schedules, and the lock that keeps a second daemon out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::params;
use rustix::fs::{FlockOperation, flock};

use super::{HeldLock, State, StateError};
use crate::cluster::ClusterName;

/// The newest slot of a schedule that was run, or that was recorded as missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// The schedule it is a slot of. Of another schedule the slot says nothing.
    pub schedule: String,
    /// The slot.
    pub at: Timestamp,
}

/// Every schedule's newest slot, by cluster and by the name of what is scheduled.
pub type FiredSlots = BTreeMap<(ClusterName, String), Fired>;

impl State {
    /// The newest slots of all schedules.
    pub fn fired(&self) -> Result<FiredSlots, StateError> {
        let connection = self.connection();
        let mut query =
            connection.prepare("select cluster, task, schedule, fired_at from slots").map_err(self.wrong())?;
        let rows = query
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?)))
            .map_err(self.wrong())?;
        let mut slots = FiredSlots::new();
        for row in rows {
            let (cluster, task, schedule, at) = row.map_err(self.wrong())?;
            // What cannot be read counts as never seen: nothing is made up for then.
            if let (Ok(cluster), Ok(at)) = (ClusterName::new(cluster), at.parse()) {
                slots.insert((cluster, task), Fired { schedule, at });
            }
        }
        Ok(slots)
    }

    /// Remembers the newest slot of a schedule; on disk when this returns.
    pub fn set_fired(&self, cluster: &ClusterName, task: &str, fired: &Fired) -> Result<(), StateError> {
        self.connection()
            .execute(
                "insert or replace into slots (cluster, task, schedule, fired_at) values (?1, ?2, ?3, ?4)",
                params![cluster.as_str(), task, fired.schedule, fired.at.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// Takes the state directory for this daemon; whoever holds it is named otherwise.
    pub fn lock_daemon(&self, now: Timestamp) -> Result<HeldLock, StateError> {
        let path = self.folder.join("daemon.lock");
        let words = format!("process {} since {now}", std::process::id());
        if let Some(lock) = self.lock(path.clone(), &words, false)? {
            return Ok(lock);
        }
        let mut holder = String::new();
        File::open(&path).and_then(|mut file| file.read_to_string(&mut holder)).ok();
        Err(StateError::SecondDaemon { folder: self.folder.clone(), holder })
    }

    /// True while a run works on the cluster.
    pub fn is_busy(&self, cluster: &ClusterName) -> bool {
        is_held(&self.folder.join("locks").join(format!("{cluster}.lock")))
    }

    /// What the run that works on the cluster says of itself; None where none does.
    pub fn holder(&self, cluster: &ClusterName) -> Option<String> {
        let path = self.folder.join("locks").join(format!("{cluster}.lock"));
        is_held(&path).then(|| std::fs::read_to_string(path).unwrap_or_default())
    }

    /// True while a daemon works with this state directory.
    pub fn has_daemon(&self) -> bool {
        is_held(&self.folder.join("daemon.lock"))
    }
}

fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Operation;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn slots_are_remembered_across_processes() {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = ClusterName::new("chado").expect("a name");
        for second in [5, 7] {
            let state = State::open(folder.path()).expect("opened");
            state.set_fired(&cluster, "dump", &Fired { schedule: "a".to_owned(), at: at(second) }).expect("stored");
            state.set_fired(&cluster, "volume", &Fired { schedule: "b".to_owned(), at: at(1) }).expect("stored");
        }
        let slots = State::open(folder.path()).expect("opened").fired().expect("read");
        assert_eq!(slots.len(), 2);
        assert_eq!(slots[&(cluster, "dump".to_owned())], Fired { schedule: "a".to_owned(), at: at(7) });
    }

    #[test]
    fn a_second_daemon_is_kept_out_and_told_who_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) =
            (State::open(folder.path()).expect("opened"), State::open(folder.path()).expect("opened"));
        let held = first.lock_daemon(at(0)).expect("free");
        assert!(second.has_daemon());
        let error = second.lock_daemon(at(1)).expect_err("held");
        assert_eq!(error.exit(), crate::exit::Exit::LockBusy);
        assert!(error.to_string().contains("since 1970-01-01T00:00:00Z"), "{error}");
        drop(held);
        assert!(!second.has_daemon());
        second.lock_daemon(at(2)).expect("free again");
    }

    #[test]
    fn a_cluster_is_busy_while_a_run_works_on_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let cluster = ClusterName::new("chado").expect("a name");
        assert!(!state.is_busy(&cluster));
        let held = state.lock_cluster(&cluster, Operation::Dump, at(0)).expect("free");
        assert!(state.is_busy(&cluster));
        assert!(state.holder(&cluster).expect("a holder").starts_with("dump since 1970-01-01T00:00:00Z, process "));
        drop(held);
        assert_eq!(state.holder(&cluster), None);
        assert!(!state.is_busy(&cluster));
    }
}
