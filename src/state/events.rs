//! What happened, for those who ask later: `pglife events`.

use jiff::Timestamp;
use rusqlite::params;
use serde::Serialize;

use super::{State, StateError};
use crate::cluster::ClusterName;

/// So many of the newest events are kept.
const KEPT: i64 = 10_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRecord {
    /// Its number: later ones have higher numbers.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// The cluster it is about, if it is about one.
    pub cluster: Option<ClusterName>,
    /// What kind: `backup.failed`.
    pub kind: String,
    /// What, in words.
    pub text: String,
}

impl State {
    /// Records that something happened.
    pub fn record_event(
        &self,
        at: Timestamp,
        cluster: Option<&ClusterName>,
        kind: &str,
        text: &str,
    ) -> Result<(), StateError> {
        let connection = self.connection();
        connection
            .execute(
                "insert into events (at, cluster, kind, text) values (?1, ?2, ?3, ?4)",
                params![at.to_string(), cluster.map(ClusterName::as_str), kind, text],
            )
            .map_err(self.wrong())?;
        let oldest = connection.last_insert_rowid() - KEPT;
        connection.execute("delete from events where id <= ?1", [oldest]).map_err(self.wrong())?;
        Ok(())
    }

    /// The newest `limit` events later than number `after`, oldest first.
    pub fn events(&self, after: i64, limit: u32) -> Result<Vec<EventRecord>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("select id, at, cluster, kind, text from events where id > ?1 order by id desc limit ?2")
            .map_err(self.wrong())?;
        let rows = query
            .query_map(params![after, limit], |row| {
                let (at, cluster): (String, Option<String>) = (row.get(1)?, row.get(2)?);
                Ok(EventRecord {
                    id: row.get(0)?,
                    at: at.parse().unwrap_or_default(),
                    cluster: cluster.and_then(|name| ClusterName::new(name).ok()),
                    kind: row.get(3)?,
                    text: row.get(4)?,
                })
            })
            .map_err(self.wrong())?;
        let mut events = rows.collect::<Result<Vec<_>, _>>().map_err(self.wrong())?;
        events.reverse();
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_are_kept_and_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let cluster = ClusterName::new("chado").expect("a name");
        for number in 0..5 {
            let at = Timestamp::from_second(number).expect("a time");
            state.record_event(at, Some(&cluster), "backup.failed", &format!("number {number}")).expect("recorded");
        }
        let last = state.events(0, 2).expect("read");
        assert_eq!(last.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["number 3", "number 4"]);
        assert_eq!(state.events(last[0].id, 10).expect("read").len(), 1);
        state.connection().execute("update events set id = id + 20000", []).expect("moved");
        state.record_event(Timestamp::UNIX_EPOCH, None, "daemon.started", "").expect("recorded");
        assert_eq!(state.events(0, 100).expect("read").len(), 6);
        state
            .connection()
            .execute("update events set id = id + 30000 where kind = 'daemon.started'", [])
            .expect("moved");
        state.record_event(Timestamp::UNIX_EPOCH, None, "daemon.stopped", "").expect("recorded");
        assert_eq!(state.events(0, 100).expect("read").len(), 2, "older than the newest 10,000 are gone");
    }
}
