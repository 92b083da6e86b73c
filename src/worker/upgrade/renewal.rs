//! What a restore of a dump makes anew, and files do not bring: extensions in the version of the new image, and indexes in the order in which
//! its libraries sort.

use tokio_postgres::Client;

use crate::cluster::DatabaseName;
use crate::postgres::{self, Login};
use crate::sql::quote_identifier;

use super::super::process::Line;
use super::super::{Event, Failure, Renewal, Trouble};
use super::query_failed;

/// Indexes over text whose order is a library's: those of `C` and of PostgreSQL itself are not. What an expression or a condition
/// compares inside is not to be seen, so they count too. Toast tables and system tables have none.
const SORTED: &str = "select distinct pg_catalog.format('%I.%I', n.nspname, c.relname) \
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid \
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    join pg_catalog.pg_database d on d.datname = pg_catalog.current_database() \
    left join lateral unnest(i.indcollation) u (sorted_by) on true \
    left join pg_catalog.pg_collation k on k.oid = u.sorted_by \
    where c.oid >= 16384 and c.relkind = 'i' and c.relpersistence <> 't' and i.indisvalid and (i.indexprs is not null or i.indpred is not null \
    or k.collprovider = 'i' or k.collprovider = 'c' and k.collcollate not in ('C', 'POSIX') \
    or k.collprovider = 'd' and (coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'i' \
    or coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' and d.datcollate not in ('C', 'POSIX'))) \
    order by 1";

/// Collations of the user's own whose recorded version is not that of the library.
const COLLATIONS: &str = "select pg_catalog.format('%I.%I', n.nspname, k.collname) from pg_catalog.pg_collation k \
    join pg_catalog.pg_namespace n on n.oid = k.collnamespace where k.oid >= 16384 and k.collversion is not null \
    and k.collversion is distinct from pg_catalog.pg_collation_actual_version(k.oid) order by 1";

const EXTENSIONS: &str = "select name::text from pg_catalog.pg_available_extensions where installed_version is not null \
    and installed_version <> default_version order by 1";

/// Renews what is in one database.
pub(super) async fn renew(login: &Login, database: &DatabaseName, wanted: Renewal, line: &Line) -> Result<(), Failure> {
    let client = postgres::connect(login, database).await?;
    // Nobody's triggers act on what is done here.
    let silence = if wanted.major.is_at_least(17) {
        "set session_replication_role = replica; set event_triggers = off"
    } else {
        // Those that fire always, or for a replica, do so still, and may refuse what follows.
        "set session_replication_role = replica"
    };
    execute(&client, silence, "silence for event triggers").await?;
    let extensions = if wanted.extensions { list(&client, EXTENSIONS, "extensions").await? } else { vec![] };
    for name in extensions {
        let statement = format!("alter extension {} update", quote_identifier(&name));
        attempt(&client, database, &statement, line).await;
    }
    if !wanted.reindex {
        return Ok(());
    }
    let indexes = list(&client, SORTED, "indexes").await?;
    for index in &indexes {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        execute(&client, &format!("reindex index {index}"), "an index, built anew because text sorts otherwise now")
            .await?;
    }
    line.tell(&Event::Reindexed { indexes: indexes.len() as u64 });
    // Only now: a version says that everything is in its order.
    for collation in list(&client, COLLATIONS, "collations").await? {
        attempt(&client, database, &format!("alter collation {collation} refresh version"), line).await;
    }
    if wanted.major.is_at_least(15) {
        let statement = format!("alter database {} refresh collation version", quote_identifier(database.as_str()));
        attempt(&client, database, &statement, line).await;
    }
    Ok(())
}

/// Does what can be done later, too: an operator is told where it was refused.
async fn attempt(client: &Client, database: &DatabaseName, statement: &str, line: &Line) {
    if let Err(failure) = execute(client, statement, "what is to be renewed").await {
        line.warn(format!("in database \"{database}\" is left to do: {statement}; {}", failure.message));
    }
}

async fn list(client: &Client, text: &str, what: &'static str) -> Result<Vec<String>, Failure> {
    let rows = client.query(text, &[]).await.map_err(|error| query_failed(what, &error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn execute(client: &Client, text: &str, what: &'static str) -> Result<(), Failure> {
    client.batch_execute(text).await.map_err(|error| query_failed(what, &error))
}
