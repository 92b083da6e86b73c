//! Asking a server for its facts (see [`crate::facts`]), from 9.4 on.
//!
//! ```text
//! holder:   begin repeatable read ─▶ pg_export_snapshot ───────────── held until pg_dump and the looks below have ended
//! pg_dump:                            --snapshot=…
//! looker:                             set transaction snapshot … ─▶ a few tables ─▶ commit ─▶ the next few …
//! ```
//!
//! Many short transactions in one snapshot, because locks are held until a transaction ends, and their number is limited. A table
//! that is dropped or rewritten meanwhile (a rewrite hides its rows from older snapshots) is reported as unknown, never as empty.
//! Only `ACCESS SHARE` locks are taken, and none is waited for longer than the dump itself would.

mod statements;
mod tables;

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::cluster::DatabaseName;
use crate::facts::{Algorithm, DatabaseFacts, Mode, SequenceFacts, SequencePlace, Statement};

use super::{Login, PostgresError, connect, words};

/// How long the server may take to hear that an answer is wanted no more.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// How a server is asked: nothing is waited for longer than it says, and nothing goes on in the server once `stop` fires.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// The server.
    pub login: &'a Login,
    /// How long to wait for a lock, in milliseconds.
    pub lock_timeout_ms: u64,
    /// Fires when the answer is wanted no more.
    pub stop: &'a CancellationToken,
}

/// How facts are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look<'a> {
    /// How closely.
    pub mode: Mode,
    /// How rows are hashed; both sides of a comparison must do it alike.
    pub algorithm: Algorithm,
    /// The snapshot of [`Asker::export_snapshot`]; without one, as things are now.
    pub snapshot: Option<&'a str>,
}

/// A snapshot that others can use while this lives.
pub struct Snapshot {
    _holder: Client,
    /// What `set transaction snapshot` and `pg_dump --snapshot` call it.
    pub id: String,
}

impl Asker<'_> {
    /// `server_version_num` of the server.
    pub async fn version(self, database: &DatabaseName) -> Result<u32, PostgresError> {
        self.session(database).await.map(|(_, version)| version)
    }

    /// Takes a snapshot of `database` that lasts until it is dropped.
    pub async fn export_snapshot(self, database: &DatabaseName) -> Result<Snapshot, PostgresError> {
        let (holder, _) = self.session(database).await?;
        holder
            .batch_execute("begin transaction isolation level repeatable read, read only")
            .await
            .map_err(failed("a transaction"))?;
        let row = holder.query_one("select pg_export_snapshot()::text", &[]).await.map_err(failed("a snapshot"))?;
        Ok(Snapshot { id: row.get(0), _holder: holder })
    }

    /// What belongs to no database, but to these databases themselves.
    pub async fn of_cluster(
        self,
        entry: &DatabaseName,
        databases: &[DatabaseName],
    ) -> Result<Vec<Statement>, PostgresError> {
        let (client, version) = self.session(entry).await?;
        let names: Vec<&str> = databases.iter().map(DatabaseName::as_str).collect();
        self.unless_stopped(&client, statements::of_cluster(&client, version, &names)).await
    }

    /// What `database` holds.
    pub async fn of_database(self, database: &DatabaseName, look: &Look<'_>) -> Result<DatabaseFacts, PostgresError> {
        let begun = Instant::now();
        let (client, version) = self.session(database).await?;
        let looker = tables::Looker { client: &client, version, look };
        let looking = async {
            looker.begin().await?;
            let mut found = DatabaseFacts {
                next_transaction: next_transaction(&client).await?,
                sequences: sequences(&client, version).await?,
                statements: statements::of_database(&client, version).await?,
                ..DatabaseFacts::default()
            };
            found.statements.push(looker.large_objects().await?);
            let wanted = looker.tables().await?;
            looker.end().await?;
            found.tables = looker.contents(&wanted).await?;
            Ok(found)
        };
        let mut found = self.unless_stopped(&client, looking).await?;
        found.seconds = begun.elapsed().as_secs_f64();
        Ok(found)
    }

    /// The server's next transaction id, asked in `database`; None where an older one is under way.
    pub async fn next_transaction(self, database: &DatabaseName) -> Result<Option<u64>, PostgresError> {
        let (client, _) = self.session(database).await?;
        self.unless_stopped(&client, next_transaction(&client)).await
    }

    /// Where the sequences of `database` stand now.
    pub async fn sequences_now(self, database: &DatabaseName) -> Result<Vec<SequenceFacts>, PostgresError> {
        let (client, version) = self.session(database).await?;
        self.unless_stopped(&client, sequences(&client, version)).await
    }

    /// A session that outlives silence and prints values in one way only.
    async fn session(self, database: &DatabaseName) -> Result<(Client, u32), PostgresError> {
        let client = connect(self.login, database).await?;
        let version = client.query_one("select current_setting('server_version_num')::int4", &[]).await;
        let version = u32::try_from(version.map_err(failed("its version"))?.get::<_, i32>(0)).unwrap_or_default();
        let lock_timeout = format!("set lock_timeout = {}", self.lock_timeout_ms);
        let mut settings = vec![
            lock_timeout.as_str(),
            "set role none",
            "set search_path = pg_catalog",
            "set datestyle = 'ISO, YMD'",
            "set intervalstyle = postgres",
            "set timezone = 'UTC'",
            "set extra_float_digits = 3",
            "set bytea_output = hex",
            "set xmloption = content",
            "set quote_all_identifiers = off",
            "set lc_monetary = 'C'",
            "set lc_numeric = 'C'",
        ];
        if version >= 90_500 {
            settings.push("set row_security = off");
        }
        if version >= 90_600 {
            settings.push("set idle_in_transaction_session_timeout = 0");
        }
        if version >= 110_000 {
            settings.push("set jit = off");
        }
        if version >= 140_000 {
            settings.push("set idle_session_timeout = 0");
            // A worker that is killed cancels nothing; the server sees that it is gone.
            settings.push("set client_connection_check_interval = '1s'");
        }
        if version >= 170_000 {
            settings.push("set transaction_timeout = 0");
        }
        client.batch_execute(&settings.join("; ")).await.map_err(failed("the settings of a session"))?;
        Ok((client, version))
    }

    /// The answer, unless `stop` fires first: then what the server does for `client` is cancelled there. A session whose client is
    /// just gone goes on waiting for a lock, in front of everybody who comes after it.
    async fn unless_stopped<T>(
        self,
        client: &Client,
        answer: impl Future<Output = Result<T, PostgresError>>,
    ) -> Result<T, PostgresError> {
        tokio::select! {
            answer = answer => answer,
            () = self.stop.cancelled() => {
                // Where it cannot be cancelled, the limit for locks ends it.
                tokio::time::timeout(CANCEL_PATIENCE, client.cancel_token().cancel_query(NoTls)).await.ok();
                Err(PostgresError::Cancelled)
            }
        }
    }
}

/// As the transaction's snapshot sees it.
async fn next_transaction(client: &Client) -> Result<Option<u64>, PostgresError> {
    let row = client.query_one("select txid_current_snapshot()::text", &[]).await.map_err(failed("its snapshot"))?;
    Ok(settled(row.get(0)))
}

/// The first transaction id that a snapshot `xmin:xmax:…` does not see, where it sees all before it.
fn settled(snapshot: &str) -> Option<u64> {
    let mut ids = snapshot.split(':').map(str::parse::<u64>);
    let (first_unseen, next) = (ids.next()?.ok()?, ids.next()?.ok()?);
    (first_unseen == next).then_some(next)
}

/// Each in a statement of its own: a sequence is a relation with one row. Those that are dropped meanwhile are left out.
async fn sequences(client: &Client, version: u32) -> Result<Vec<SequenceFacts>, PostgresError> {
    const WHAT: &str = "its sequences";
    let rows = client
        .query(
            &format!(
                "select n.nspname::text, c.relname::text, \
                 pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind = 'S' and c.relpersistence <> 't' and {} order by 1, 2",
                statements::of_users("pg_class", "c.oid", "n")
            ),
            &[],
        )
        .await
        .map_err(failed(WHAT))?;
    let mut found = Vec::new();
    for batch in rows.chunks(200) {
        let union = batch
            .iter()
            .enumerate()
            .map(|(place, row)| {
                let quoted: String = row.get(2);
                format!("select {place}::int4, last_value::int8, is_called from {quoted}")
            })
            .collect::<Vec<_>>()
            .join(" union all ");
        let looked = client.query(&union, &[]).await.map_err(failed(WHAT))?;
        for values in &looked {
            let row = &batch[usize::try_from(values.get::<_, i32>(0)).unwrap_or_default()];
            let place = SequencePlace { last_value: values.get(1), is_called: values.get(2) };
            found.push(SequenceFacts { schema: row.get(0), name: row.get(1), before: place, after: place });
        }
    }
    tracing::trace!(version, sequences = found.len(), "looked at sequences");
    Ok(found)
}

fn failed(what: &'static str) -> impl Fn(tokio_postgres::Error) -> PostgresError {
    move |error| PostgresError::Query { what, reason: words(&error) }
}

#[cfg(test)]
mod tests {
    use super::settled;

    #[test]
    fn a_snapshot_is_settled_where_nothing_before_it_is_under_way() {
        assert_eq!(settled("812:812:"), Some(812));
        assert_eq!(settled("4294967999:4294967999:"), Some(4_294_967_999));
        assert_eq!(settled("810:812:810,811"), None);
        assert_eq!(settled(""), None);
    }
}
