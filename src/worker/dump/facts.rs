//! The facts of a dump: taken in its snapshots, beside it. A backup without them is still a backup: what goes wrong here is told,
//! and a drill says that it cannot prove what nobody looked at.

use std::io::Write;
use std::sync::PoisonError;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::backup_set::{Content, Measured, Object};
use crate::cluster::DatabaseName;
use crate::facts::{Algorithm, DatabaseFacts, Facts, Statement, TableContent};
use crate::pipeline::seal::seal_bytes;
use crate::postgres::PostgresError;
use crate::postgres::facts::{Asker, Look, Snapshot};

use super::super::{DatabaseDump, Event, FactsJob, Failure, Trouble};
use super::{Produced, Work};

/// What was seen of a database, or why nothing was.
pub(super) type Seen = Result<DatabaseFacts, String>;

impl Work<'_> {
    /// Where questions about the whole cluster are asked.
    fn entry(&self) -> DatabaseName {
        let first = self.job.databases.first().map(|dump| dump.database.clone());
        first.unwrap_or_else(|| DatabaseName::new("template1").expect("a plain name"))
    }

    /// Asks until `stop` fires, and waits for locks no longer than the dump does.
    fn asker<'a>(&'a self, wanted: &FactsJob, stop: &'a CancellationToken) -> Asker<'a> {
        Asker { login: &self.job.login, lock_timeout_ms: wanted.lock_timeout_ms, stop }
    }

    /// What belongs to no database; None where no facts are wanted.
    pub(super) fn cluster_facts(&self) -> Option<Result<Vec<Statement>, PostgresError>> {
        let asker = self.asker(self.job.facts.as_ref()?, &self.stop);
        let databases: Vec<DatabaseName> = self.job.databases.iter().map(|dump| dump.database.clone()).collect();
        Some(self.runtime.block_on(asker.of_cluster(&self.entry(), &databases)))
    }

    /// Runs `pg_dump` and, in the same snapshot and beside it, looks at what it dumps.
    pub(super) fn dump_and_look(&self, database: &DatabaseDump) -> Result<(Produced, Option<Seen>), Failure> {
        let produce = |arguments: &[String]| self.produce("pg_dump", arguments, &database.object, "");
        let Some(wanted) = &self.job.facts else { return Ok((produce(&database.arguments)?, None)) };
        // The first look at the sequences comes before pg_dump's, which from 18 on is among the first things it does.
        let ended = self.stop.child_token();
        let asker = self.asker(wanted, &ended);
        let begun = self.runtime.block_on(async {
            let snapshot = self.open_snapshot(asker, database).await?;
            Ok((snapshot, asker.sequences_now(&database.database).await?))
        });
        let (snapshot, first): (Snapshot, _) = match begun {
            Ok(begun) => begun,
            // The dump will say what is wrong with the database, if anything is.
            Err(error) => {
                let error: PostgresError = error;
                return Ok((produce(&database.arguments)?, Some(Err(error.to_string()))));
            }
        };
        let mut arguments = database.arguments.clone();
        arguments.push(format!("--snapshot={}", snapshot.id));
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                self.runtime.block_on(async {
                    let algorithm = Algorithm::of_server(asker.version(&database.database).await?);
                    let look = Look { mode: wanted.mode, algorithm, snapshot: Some(&snapshot.id) };
                    asker.of_database(&database.database, &look).await
                })
            });
            let produced = produce(&arguments);
            if produced.is_err() {
                ended.cancel();
            }
            let later = self.runtime.block_on(asker.sequences_now(&database.database));
            let seen = looking.join().unwrap_or_else(|_| {
                Err(PostgresError::Query { what: "its facts", reason: "the worker hit a bug".to_owned() })
            });
            let seen = seen.and_then(|mut seen| {
                seen.sequences = first;
                seen.second_look(&later?);
                Ok(seen)
            });
            Ok((produced?, Some(seen.map_err(|error| error.to_string()))))
        })
    }

    async fn open_snapshot(&self, asker: Asker<'_>, database: &DatabaseDump) -> Result<Snapshot, PostgresError> {
        let shared = "9.5".parse().is_ok_and(|since| self.job.major >= since);
        if !shared {
            // pg_dump --snapshot is there since 9.5 (release notes).
            let reason = "pg_dump of this version cannot share a snapshot".to_owned();
            return Err(PostgresError::Query { what: "its facts", reason });
        }
        asker.export_snapshot(&database.database).await
    }

    /// Keeps what was seen of `database`, whose archive has `contents`.
    pub(super) fn keep_facts(&self, database: &DatabaseDump, mut seen: Seen, contents: &str) {
        match &mut seen {
            Ok(seen) if database.arguments.iter().any(|argument| argument.starts_with("--exclude-table-data")) => {
                leave_out_unlisted(seen, contents);
            }
            Ok(_) => {}
            Err(why) => self.line.warn(format!(
                "database \"{}\" is backed up, but its facts were not taken, so that no drill can prove it: {why}",
                database.database
            )),
        }
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).insert(database.database.clone(), seen);
    }

    /// Writes the object with the facts.
    pub(super) fn write_facts(
        &self,
        wanted: &FactsJob,
        before: Option<Result<Vec<Statement>, PostgresError>>,
        after: Option<Result<Vec<Statement>, PostgresError>>,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let version = self.runtime.block_on(self.asker(wanted, &self.stop).version(&self.entry()));
        let version = match version {
            Ok(version) => version,
            // A dropped database, perhaps: the major is known.
            Err(_) => self.job.major.to_string().parse::<u32>().map_or(90_600, |major| major * 10_000),
        };
        let mut facts = Facts::of_server(version, wanted.mode, Algorithm::of_server(version));
        match (before, after) {
            (Some(Ok(before)), Some(Ok(after))) => facts.settle_cluster(before, &after),
            (Some(Err(error)), _) | (_, Some(Err(error))) => {
                self.line.warn(format!(
                    "roles and settings are backed up, but no facts of them were taken, so that no drill can prove them: {error}"
                ));
                facts.cluster_unknown = Some(error.to_string());
            }
            (None, _) | (_, None) => facts.cluster_unknown = Some("nobody asked".to_owned()),
        }
        for (database, seen) in std::mem::take(&mut *self.facts.lock().unwrap_or_else(PoisonError::into_inner)) {
            match seen {
                Ok(seen) => drop(facts.databases.insert(database, seen)),
                Err(why) => drop(facts.unknown.insert(database, why)),
            }
        }
        let plain = facts.to_bytes();
        let stored = match &self.job.recipients {
            Some(recipients) => seal_bytes(&plain, recipients),
            None => plain.clone(),
        };
        let mut upload = self.destinations.begin(&wanted.object)?;
        upload
            .write_all(&stored)
            .map_err(|error| Failure::from_error(Trouble::Repository, &format!("writing {}", wanted.object), &error))?;
        upload.commit()?;
        self.line.tell(&Event::Object(Object {
            name: wanted.object.clone(),
            content: Content::Facts,
            stored: Measured::of(&stored),
            plain: Measured::of(&plain),
            seconds: facts.seconds() + begun.elapsed().as_secs_f64(),
        }));
        Ok(())
    }
}

/// Tables whose rows the policy leaves out are those that the archive has no data of.
fn leave_out_unlisted(seen: &mut DatabaseFacts, contents: &str) {
    for table in &mut seen.tables {
        let entry = format!(" TABLE DATA {} {} ", table.schema, table.name);
        if !contents.lines().any(|line| line.contains(&entry)) {
            table.content = TableContent::Unknown("the policy leaves its rows out of the backup".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::TableFacts;

    #[test]
    fn tables_without_data_in_the_archive_are_left_out() {
        let table = |name: &str| TableFacts {
            schema: "public".to_owned(),
            name: name.to_owned(),
            content: TableContent::Rows { count: 3, hash: None },
        };
        let mut seen =
            DatabaseFacts { tables: vec![table("kept"), table("audit"), table("we ird")], ..Default::default() };
        let contents =
            ";\n3421; 0 16385 TABLE DATA public kept postgres\n3422; 0 16390 TABLE DATA public we ird postgres\n";
        leave_out_unlisted(&mut seen, contents);
        let known: Vec<bool> =
            seen.tables.iter().map(|table| matches!(table.content, TableContent::Rows { .. })).collect();
        assert_eq!(known, [true, false, true]);
    }
}
