//! Containers that were taken down because their database was: whoever comes next brings them back.

use jiff::Timestamp;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{HeldLock, State, StateError};
use crate::cluster::ClusterName;

/// How a container was taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakenHow {
    /// It was stopped.
    Stopped,
    /// Its processes were frozen.
    Paused,
}

impl TakenHow {
    /// Its word in the table and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        }
    }
}

/// A container that was taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// The engine's id.
    pub id: String,
    /// How.
    pub how: TakenHow,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

impl State {
    /// Takes the dependents of a cluster for this process, to take them down or bring them back; None while another one has them.
    pub fn lock_dependents(&self, cluster: &ClusterName) -> Result<Option<HeldLock>, StateError> {
        self.lock(self.folder.join("locks").join(format!("{cluster}.dependents.lock")), "", false)
    }

    /// Remembers that a container is about to be taken down; on disk when this returns.
    pub fn take_down(&self, cluster: &ClusterName, taken: &Taken) -> Result<(), StateError> {
        self.connection()
            .execute(
                "insert or replace into dependents (cluster, name, id, how, at, reason) values (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    cluster.as_str(),
                    taken.name,
                    taken.id,
                    taken.how.as_str(),
                    taken.at.to_string(),
                    taken.reason
                ],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// A container is back, or not ours any more.
    pub fn brought_back(&self, cluster: &ClusterName, name: &str) -> Result<(), StateError> {
        self.connection()
            .execute("delete from dependents where cluster = ?1 and name = ?2", params![cluster.as_str(), name])
            .map_err(self.wrong())?;
        Ok(())
    }

    /// What was taken down for a cluster and is not back, in the order in which it was.
    pub fn taken_down(&self, cluster: &ClusterName) -> Result<Vec<Taken>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("select name, id, how, at, reason from dependents where cluster = ?1 order by rowid")
            .map_err(self.wrong())?;
        let rows = query
            .query_map([cluster.as_str()], |row| {
                let (how, at): (String, String) = (row.get(2)?, row.get(3)?);
                Ok(Taken {
                    name: row.get(0)?,
                    id: row.get(1)?,
                    how: if how == TakenHow::Paused.as_str() { TakenHow::Paused } else { TakenHow::Stopped },
                    at: at.parse().unwrap_or_default(),
                    reason: row.get(4)?,
                })
            })
            .map_err(self.wrong())?;
        rows.collect::<Result<_, _>>().map_err(self.wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_down_is_known_to_whoever_comes_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = ClusterName::new("chado").expect("a name");
        let taken = |name: &str| Taken {
            name: name.to_owned(),
            id: format!("{name}0"),
            how: TakenHow::Paused,
            at: Timestamp::UNIX_EPOCH,
            reason: "the database is down".to_owned(),
        };
        let state = State::open(folder.path()).expect("opened");
        for name in ["web", "api", "web"] {
            state.take_down(&cluster, &taken(name)).expect("remembered");
        }
        let state = State::open(folder.path()).expect("opened");
        assert_eq!(state.taken_down(&cluster).expect("read"), [taken("api"), taken("web")]);
        state.brought_back(&cluster, "api").expect("forgotten");
        assert_eq!(state.taken_down(&cluster).expect("read"), [taken("web")]);
        assert_eq!(state.taken_down(&ClusterName::new("other").expect("a name")).expect("read"), []);
    }
}
