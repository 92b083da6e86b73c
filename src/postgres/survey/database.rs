//! What one database has that matters to an upgrade.

use tokio_postgres::Client;

use super::{Outdated, OutdatedKind, PostgresError, Survey, failed};
use crate::cluster::DatabaseName;

/// The first oid of objects that users make (`FirstNormalObjectId` in `access/transam.h`); those of extensions are above it too.
const NORMAL: &str = "oid >= 16384";

/// Functions over arrays whose arguments became `anycompatible…` in 14 (`check_for_incompatible_polymorphics` in `pg_upgrade`).
const ARRAY_FUNCTIONS: &str = "array['array_append(anyarray,anyelement)', 'array_cat(anyarray,anyarray)', \
     'array_prepend(anyelement,anyarray)', 'array_remove(anyarray,anyelement)', \
     'array_replace(anyarray,anyelement,anyelement)', 'array_position(anyarray,anyelement)', \
     'array_position(anyarray,anyelement,integer)', 'array_positions(anyarray,anyelement)', \
     'width_bucket(anyelement,anyarray)']";

/// Looks into the database behind `client`.
pub(super) async fn look(client: &Client, database: &DatabaseName, survey: &mut Survey) -> Result<(), PostgresError> {
    client
        .batch_execute("set search_path = pg_catalog; set lock_timeout = '10s'; set role none")
        .await
        .map_err(|error| failed("the settings of a session", &error))?;
    let version = client
        .query_one("select current_setting('server_version_num')::int4", &[])
        .await
        .map_err(|error| failed("its version", &error))?
        .get::<_, i32>(0);
    for name in list(client, "extensions", "select extname::text from pg_extension order by 1").await? {
        survey.extensions.entry(name).or_default().push(database.clone());
    }
    let libraries = format!(
        "select probin::text, min({NORMAL_FUNCTION}) from pg_proc p where {NORMAL} and probin is not null and {} group by 1",
        of_no_extension("pg_proc")
    );
    let rows = client.query(&libraries, &[]).await.map_err(|error| failed("libraries of functions", &error))?;
    for row in &rows {
        let function: String = row.get(1);
        survey.libraries.entry(row.get(0)).or_insert_with(|| format!("function {function} of database \"{database}\""));
    }
    let collations = format!(
        "select unnest(array[collcollate, collctype])::text, min(collname::text) from pg_collation p \
         where {NORMAL} and collprovider = 'c' and {} group by 1",
        of_no_extension("pg_collation")
    );
    // Providers are there since 10; before, all collations are of the operating system.
    if version >= 100_000 {
        let rows = client.query(&collations, &[]).await.map_err(|error| failed("collations", &error))?;
        for row in rows.iter().filter(|row| row.get::<_, Option<String>>(0).is_some()) {
            let collation: String = row.get(1);
            survey
                .locales
                .entry(row.get(0))
                .or_insert_with(|| format!("collation \"{collation}\" of database \"{database}\""));
        }
    }
    for (kind, text) in outdated(version) {
        let names = list(client, "what later majors do not take", &text).await?;
        survey.outdated.extend(names.into_iter().map(|name| Outdated { kind, name, database: database.clone() }));
    }
    Ok(())
}

/// A function with its arguments, as text.
const NORMAL_FUNCTION: &str = "p.oid::regprocedure::text";

fn of_no_extension(catalogue: &str) -> String {
    format!(
        "not exists (select 1 from pg_depend d where d.classid = '{catalogue}'::regclass and d.objid = p.oid and d.deptype = 'e')"
    )
}

/// What to ask a server of this `server_version_num` for.
fn outdated(version: i32) -> Vec<(OutdatedKind, String)> {
    let own = |catalogue: &str| format!("p.{NORMAL} and {}", of_no_extension(catalogue));
    let mut asked = vec![(
        OutdatedKind::NullableChild,
        "select format('%I.%I (%I)', n.nspname, c.relname, mine.attname) from pg_inherits i \
         join pg_attribute mine on mine.attrelid = i.inhrelid \
         join pg_attribute theirs on theirs.attrelid = i.inhparent and theirs.attname = mine.attname \
         join pg_class c on c.oid = mine.attrelid join pg_namespace n on n.oid = c.relnamespace \
         where theirs.attnum > 0 and theirs.attnotnull and not mine.attnotnull order by 1"
            .to_owned(),
    )];
    if version < 140_000 {
        asked.push((
            OutdatedKind::PostfixOperator,
            format!(
                "select p.oid::regoperator::text from pg_operator p where p.oprright = 0 and {} order by 1",
                own("pg_operator")
            ),
        ));
        let old = format!(
            "(select b.oid from pg_proc b where b.oid < 16384 and b.oid::regprocedure::text = any ({ARRAY_FUNCTIONS}))"
        );
        asked.push((
            OutdatedKind::ArrayFunction,
            format!(
                "select 'aggregate ' || p.oid::regprocedure::text from pg_proc p join pg_aggregate a on a.aggfnoid = p.oid \
                 where {} and (a.aggtransfn::oid in {old} or a.aggfinalfn::oid in {old}) \
                 and a.aggtranstype in ('anyarray'::regtype, 'anyelement'::regtype) \
                 union all select 'operator ' || p.oid::regoperator::text from pg_operator p \
                 where {} and p.oprcode::oid in {old} and p.oprleft in ('anyarray'::regtype, 'anyelement'::regtype) \
                 order by 1",
                own("pg_proc"),
                own("pg_operator")
            ),
        ));
        asked.push((
            OutdatedKind::Conversion,
            format!(
                "select format('%I.%I', n.nspname, p.conname) from pg_conversion p \
                 join pg_namespace n on n.oid = p.connamespace where {} and p.conproc::oid >= 16384 order by 1",
                own("pg_conversion")
            ),
        ));
    }
    if version < 120_000 {
        asked.push((
            OutdatedKind::Oids,
            "select p.oid::regclass::text from pg_class p where p.relhasoids and p.oid >= 16384 and p.relkind = 'r' order by 1"
                .to_owned(),
        ));
        asked.push((
            OutdatedKind::Type,
            "select format('%s.%I of type %s', p.attrelid::regclass, p.attname, format_type(p.atttypid, null)) \
             from pg_attribute p join pg_class c on c.oid = p.attrelid where c.oid >= 16384 and p.attnum > 0 \
             and not p.attisdropped and c.relkind in ('r', 'p', 'm', 'v', 'f', 'c') \
             and format_type(p.atttypid, null) in ('abstime', 'reltime', 'tinterval', 'abstime[]', 'reltime[]', 'tinterval[]') \
             order by 1"
                .to_owned(),
        ));
    }
    asked
}

async fn list(client: &Client, what: &'static str, text: &str) -> Result<Vec<String>, PostgresError> {
    let rows = client.query(text, &[]).await.map_err(|error| failed(what, &error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
