//! Which databases a cluster had when a run last looked.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::{State, StateError};
use crate::cluster::{ClusterName, DatabaseName};

/// The databases of a cluster, its templates aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDatabases {
    /// When they were seen.
    pub at: Timestamp,
    /// Their names, sorted.
    pub names: Vec<DatabaseName>,
}

impl State {
    /// Remembers which databases there are.
    pub fn saw_databases(&self, cluster: &ClusterName, seen: &SeenDatabases) -> Result<(), StateError> {
        let names = serde_json::to_string(&seen.names).expect("texts");
        self.connection()
            .execute(
                "insert or replace into databases (cluster, at, names) values (?1, ?2, ?3)",
                params![cluster.as_str(), seen.at.to_string(), names],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// The databases that were seen last; None where nobody has looked yet.
    pub fn seen_databases(&self, cluster: &ClusterName) -> Result<Option<SeenDatabases>, StateError> {
        let found = self
            .connection()
            .query_row("select at, names from databases where cluster = ?1", [cluster.as_str()], |row| {
                Ok((super::parsed(row, 0)?, row.get::<_, String>(1)?))
            })
            .optional()
            .map_err(self.wrong())?;
        // What cannot be read is looked at again by the next run.
        Ok(found.and_then(|(at, names)| Some(SeenDatabases { at, names: serde_json::from_str(&names).ok()? })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let cluster = ClusterName::new("chado").expect("a name");
        assert_eq!(state.seen_databases(&cluster).expect("read"), None);
        for (second, names) in [(1, &["app"][..]), (2, &["app", "Ünïcode \"x\""])] {
            let names = names.iter().map(|name| DatabaseName::new(*name).expect("a name")).collect();
            let seen = SeenDatabases { at: Timestamp::from_second(second).expect("a time"), names };
            state.saw_databases(&cluster, &seen).expect("kept");
            assert_eq!(state.seen_databases(&cluster).expect("read"), Some(seen));
        }
    }
}
