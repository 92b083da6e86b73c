//! The journal of upgrades: what was intended. What *is* is asked of the world; see [`crate::upgrade`].

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use super::{State, StateError};
use crate::cluster::ClusterName;

/// One upgrade, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeRecord {
    /// Its id: that of the run that began it.
    pub id: String,
    /// The cluster.
    pub cluster: ClusterName,
    /// How far it is; the words are `upgrade::journal::Phase`'s.
    pub phase: String,
    /// The step begun last.
    pub step: String,
    /// The frozen plan, as JSON.
    pub plan: String,
    /// What happened, as JSON: the report.
    pub report: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When the journal was last written.
    pub updated_at: Timestamp,
    /// When it began to take down who depends on the cluster, and then the old server. None: it has not come to that.
    pub closed_at: Option<Timestamp>,
}

impl UpgradeRecord {
    /// True while it must still be carried to an end.
    pub fn is_open(&self) -> bool {
        ["open", "undoing", "committed"].contains(&self.phase.as_str())
    }

    /// True while it takes down and brings back who depends on the cluster, and nobody else may. Not while the old server serves and
    /// the new one is only made, which may take hours.
    pub fn has_the_dependents(&self) -> bool {
        self.is_open() && (self.phase != "open" || self.closed_at.is_some())
    }
}

/// The columns, in the order they are read.
const COLUMNS: &str = "id, cluster, phase, step, plan, report, started_at, updated_at, \
     (select at from upgrades_closed where upgrades_closed.id = upgrades.id)";

pub(super) const TABLE: &str = "create table if not exists upgrades (
     id text primary key, cluster text not null, phase text not null, step text not null, plan text not null,
     report text not null, started_at text not null, updated_at text not null) strict;
     create table if not exists upgrades_closed (id text primary key, at text not null) strict, without rowid;";

impl State {
    /// Records that an upgrade begins: before this, nothing of it is in the world.
    pub fn begin_upgrade(
        &self,
        id: &str,
        cluster: &ClusterName,
        phase: &str,
        plan: &str,
        now: Timestamp,
    ) -> Result<(), StateError> {
        self.connection()
            .execute(
                "insert into upgrades (id, cluster, phase, step, plan, report, started_at, updated_at) \
                 values (?1, ?2, ?3, 'plan', ?4, '{}', ?5, ?5)",
                params![id, cluster.as_str(), phase, plan, now.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// Records that a step of an upgrade begins.
    pub fn upgrade_step(&self, id: &str, step: &str, now: Timestamp) -> Result<(), StateError> {
        self.connection()
            .execute("update upgrades set step = ?2, updated_at = ?3 where id = ?1", params![id, step, now.to_string()])
            .map_err(self.wrong())?;
        Ok(())
    }

    /// Records that an upgrade takes down who depends on its cluster from now on.
    pub fn upgrade_closes(&self, id: &str, now: Timestamp) -> Result<(), StateError> {
        self.connection()
            .execute("insert or replace into upgrades_closed (id, at) values (?1, ?2)", params![id, now.to_string()])
            .map_err(self.wrong())?;
        Ok(())
    }

    /// Records that an upgrade is in another phase now.
    pub fn upgrade_phase(&self, id: &str, phase: &str, now: Timestamp) -> Result<(), StateError> {
        self.connection()
            .execute(
                "update upgrades set phase = ?2, updated_at = ?3 where id = ?1",
                params![id, phase, now.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// Records what an upgrade found out.
    pub fn upgrade_report(&self, id: &str, report: &str, now: Timestamp) -> Result<(), StateError> {
        self.connection()
            .execute(
                "update upgrades set report = ?2, updated_at = ?3 where id = ?1",
                params![id, report, now.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// The last upgrade of a cluster.
    pub fn last_upgrade(&self, cluster: &ClusterName) -> Result<Option<UpgradeRecord>, StateError> {
        self.connection()
            .query_row(
                &format!(
                    "select {COLUMNS} from upgrades where cluster = ?1 order by started_at desc, rowid desc limit 1"
                ),
                [cluster.as_str()],
                record,
            )
            .optional()
            .map_err(self.wrong())
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<UpgradeRecord> {
    Ok(UpgradeRecord {
        id: row.get(0)?,
        cluster: super::parsed(row, 1)?,
        phase: row.get(2)?,
        step: row.get(3)?,
        plan: row.get(4)?,
        report: row.get(5)?,
        started_at: super::parsed(row, 6)?,
        updated_at: super::parsed(row, 7)?,
        closed_at: row.get::<_, Option<String>>(8)?.map(|_| super::parsed(row, 8)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_dependents_from_the_stop_to_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        let cluster = ClusterName::new("shop").expect("a name");
        let now = Timestamp::UNIX_EPOCH;
        let has = || state.last_upgrade(&cluster).expect("read").expect("one").has_the_dependents();
        for (closes, on_the_way) in
            [(false, "open"), (true, "open"), (true, "committed"), (true, "undoing"), (false, "undoing")]
        {
            let id = format!("{on_the_way}-{closes}");
            state.begin_upgrade(&id, &cluster, "open", "{}", now).expect("begun");
            // Unpacking may take hours.
            state.upgrade_step(&id, "unpack", now).expect("noted");
            assert!(!has(), "{id}");
            if closes {
                state.upgrade_closes(&id, now).expect("noted");
                assert!(has(), "{id}");
            }
            state.upgrade_phase(&id, on_the_way, now).expect("noted");
            assert_eq!(has(), closes || on_the_way != "open", "{id}");
            for end in ["upgraded", "finalized", "as-before"] {
                state.upgrade_phase(&id, end, now).expect("noted");
                assert!(!has(), "{id} {end}");
            }
        }
    }
}
