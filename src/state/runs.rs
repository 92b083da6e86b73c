//! Which runs there were and are, and what each made that must go if it dies.

use std::fs::File;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use rustix::fs::{FlockOperation, flock};

use super::{HeldLock, Made, Operation, RunRecord, State, StateError, Thing, parsed};
use crate::backup_set::SetId;
use crate::cluster::{ClusterName, HostName};
use crate::exit::Exit;

/// So many runs of each cluster stay on record, besides those that live.
pub(super) const KEPT_RUNS: i64 = 1000;

impl State {
    /// Records that a run begins. It counts as alive until the lock is dropped.
    pub fn begin_run(
        &self,
        run: &str,
        cluster: &ClusterName,
        operation: Operation,
        now: Timestamp,
    ) -> Result<HeldLock, StateError> {
        let lock = self
            .lock(self.run_lock(run), "", true)?
            .ok_or_else(|| StateError::Busy { cluster: cluster.clone(), holder: format!("run {run}") })?;
        self.connection()
            .execute(
                "insert into runs (run, cluster, operation, started_at) values (?1, ?2, ?3, ?4)",
                params![run, cluster.as_str(), operation.as_str(), now.to_string()],
            )
            .map_err(self.wrong())?;
        Ok(lock)
    }

    /// Records how a run ended; what it made is then no longer to be undone. Of each cluster the last [`KEPT_RUNS`] stay on record.
    pub fn end_run(
        &self,
        run: &str,
        exit: Exit,
        message: &str,
        set: Option<&SetId>,
        now: Timestamp,
    ) -> Result<(), StateError> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(self.wrong())?;
        change
            .execute(
                "update runs set ended_at = ?2, exit = ?3, message = ?4, set_id = ?5 where run = ?1",
                params![run, now.to_string(), exit.code(), message, set.map(SetId::as_str)],
            )
            .map_err(self.wrong())?;
        change.execute("delete from made where run = ?1", [run]).map_err(self.wrong())?;
        change
            .execute(
                "delete from runs where cluster = (select cluster from runs where run = ?1) and ended_at is not null
                 and started_at < (select started_at from runs of_cluster where of_cluster.cluster = runs.cluster
                                   order by started_at desc limit 1 offset ?2)",
                params![run, KEPT_RUNS - 1],
            )
            .map_err(self.wrong())?;
        change.commit().map_err(self.wrong())
    }

    /// Records, before it is made, something that must go if the run dies.
    pub fn will_make(&self, run: &str, host: &HostName, thing: &Thing) -> Result<(), StateError> {
        let (kind, name) = thing.columns();
        self.connection()
            .execute(
                "insert or ignore into made (run, host, kind, name) values (?1, ?2, ?3, ?4)",
                params![run, host.as_str(), kind, name],
            )
            .map_err(self.wrong())?;
        Ok(())
    }

    /// What a run made is complete and stays, whatever becomes of the run.
    pub fn keep_made(&self, run: &str) -> Result<(), StateError> {
        self.connection().execute("delete from made where run = ?1", [run]).map_err(self.wrong())?;
        Ok(())
    }

    /// What a run has made and would leave behind if it died, newest first.
    pub fn made_by(&self, run: &str) -> Result<Vec<Made>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("select host, kind, name from made where run = ?1 order by rowid desc")
            .map_err(self.wrong())?;
        let rows = query
            .query_map([run], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))
            .map_err(self.wrong())?;
        let mut made = Vec::new();
        for row in rows {
            let (host, kind, name) = row.map_err(self.wrong())?;
            if let (Ok(host), Some(thing)) = (HostName::new(host), Thing::from_columns(&kind, name)) {
                made.push(Made { run: run.to_owned(), host, thing });
            }
        }
        Ok(made)
    }

    /// Runs that have no end and whose process is gone.
    pub fn dead_runs(&self) -> Result<Vec<RunRecord>, StateError> {
        Ok(self.open_runs()?.into_iter().filter(|run| !self.is_alive(&run.run)).collect())
    }

    /// Runs whose process is at work.
    pub fn live_runs(&self) -> Result<Vec<RunRecord>, StateError> {
        Ok(self.open_runs()?.into_iter().filter(|run| self.is_alive(&run.run)).collect())
    }

    fn open_runs(&self) -> Result<Vec<RunRecord>, StateError> {
        self.select("where ended_at is null order by started_at", &[])
    }

    /// True when the run is known here and its process is gone or it has ended. An unknown run may be somebody else's.
    pub fn is_over(&self, run: &str) -> bool {
        let known = self
            .connection()
            .query_row("select ended_at is not null from runs where run = ?1", [run], |row| row.get::<_, bool>(0))
            .optional();
        match known {
            Ok(Some(ended)) => ended || !self.is_alive(run),
            _ => false,
        }
    }

    fn is_alive(&self, run: &str) -> bool {
        let Ok(file) = File::open(self.run_lock(run)) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// The last runs, newest first; of one cluster if given.
    pub fn runs(&self, cluster: Option<&ClusterName>, limit: u32) -> Result<Vec<RunRecord>, StateError> {
        match cluster {
            Some(cluster) => self.select(
                "where cluster = ?1 order by started_at desc, rowid desc limit ?2",
                &[&cluster.as_str(), &limit],
            ),
            None => self.select("order by started_at desc, rowid desc limit ?1", &[&limit]),
        }
    }

    fn select(&self, rest: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<RunRecord>, StateError> {
        let connection = self.connection();
        let text =
            format!("select run, cluster, operation, started_at, ended_at, exit, message, set_id from runs {rest}");
        let mut query = connection.prepare(&text).map_err(self.wrong())?;
        let rows = query.query_map(values, run_record).map_err(self.wrong())?;
        rows.collect::<Result<Vec<_>, _>>().map_err(self.wrong())
    }
}

fn run_record(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    let operation: String = row.get(2)?;
    Ok(RunRecord {
        run: row.get(0)?,
        cluster: parsed(row, 1)?,
        operation: Operation::from_name(&operation).ok_or(rusqlite::Error::InvalidQuery)?,
        started_at: parsed(row, 3)?,
        ended_at: row.get::<_, Option<String>>(4)?.map(|_| parsed(row, 4)).transpose()?,
        exit: row.get(5)?,
        message: row.get(6)?,
        set: row.get::<_, Option<String>>(7)?.map(|_| parsed(row, 7)).transpose()?,
    })
}
