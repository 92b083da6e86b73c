//! What a server is and what is in it, asked once at the beginning of every job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::backup_set::{DatabaseProfile, ServerProfile, Tablespace};
use crate::cluster::{DatabaseName, PgMajor, RoleName};

use crate::sql::{quote_identifier, quote_literal};

use super::catalog_page::PG_CLASS;
use super::{Login, PostgresError, words};

/// Settings whose values may hold a password or a key; their values are never recorded.
const SECRET_SETTINGS: [&str; 4] = ["primary_conninfo", "ssl_passphrase_command", "archive_command", "restore_command"];

/// Asks the server behind `client` for everything a plan needs.
pub async fn profile(client: &Client, login: &Login) -> Result<ServerProfile, PostgresError> {
    let version_num: u32 = setting(client, "server_version_num").await?.parse().map_err(|_| PostgresError::Query {
        what: "its version",
        reason: "server_version_num is not a number".to_owned(),
    })?;
    let major = PgMajor::from_version_num(version_num)
        .map_err(|error| PostgresError::Query { what: "its version", reason: error.to_string() })?;
    if setting(client, "is_superuser").await? != "on" {
        return Err(PostgresError::NotSuperuser { user: login.user.clone() });
    }
    Ok(ServerProfile {
        version: setting(client, "server_version").await?,
        major,
        system_identifier: system_identifier(client).await?,
        bootstrap_role: bootstrap_role(client).await?,
        data_checksums: setting(client, "data_checksums").await? == "on",
        wal_segment_bytes: wal_segment_bytes(client).await?,
        databases: databases(client).await?,
        tablespaces: tablespaces(client).await?,
        settings: given_settings(client).await?,
        files: files(client).await?,
    })
}

/// The data directory, as the server sees it.
pub async fn data_directory(client: &Client) -> Result<String, PostgresError> {
    setting(client, "data_directory").await
}

/// True while the database with this oid is there. A dump that failed because its database was dropped is told apart by this.
pub async fn database_exists(client: &Client, oid: u32) -> Result<bool, PostgresError> {
    let row = client.query_one("select exists (select 1 from pg_catalog.pg_database where oid = $1)", &[&oid]).await;
    row.map(|row| row.get(0)).map_err(|error| query_error("a database", &error))
}

/// What a server says of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInServer {
    /// The numbers of the files of the database's catalogue, but for large objects.
    pub catalogue: Vec<u32>,
    /// The table, if there is one of that name with rows of its own.
    pub table: Option<RowsOfTable>,
}

/// Where the rows of a table are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsOfTable {
    /// The numbers of its files, those of its TOAST table, and of that one's index.
    pub files: Vec<u32>,
    /// Schemas and names of the sequences that belong to it, or from which its columns take their defaults.
    pub sequences: Vec<(String, String)>,
    /// Only the server knows where its rows are: it is of another access method than `heap`, or an extension's.
    pub is_special: bool,
}

/// Asks for a table, and for the catalogue that says so.
///
/// Nothing is looked up in an index, for they may be as incomplete as what is asked about: each relation's own row says where it is.
pub async fn find_table(client: &Client, schema: &str, name: &str) -> Result<TableInServer, PostgresError> {
    const WHAT: &str = "the files of a table";
    const NUMBER: &str =
        "case when relfilenode <> 0 then relfilenode else coalesce(pg_catalog.pg_relation_filenode(oid), 0) end";
    let failed = |error| query_error(WHAT, &error);
    client
        .batch_execute("set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off")
        .await
        .map_err(failed)?;
    let catalogue = format!(
        "select oid, {NUMBER} from pg_catalog.pg_class \
         where relkind in ('r', 'i', 't', 'm') and not relisshared and oid < 16384 and oid not in (2613, 2683)"
    );
    let catalogue = client.query(&catalogue, &[]).await.map_err(failed)?;
    if !catalogue.iter().any(|row| row.get::<_, u32>(0) == PG_CLASS) {
        return Err(PostgresError::Query { what: WHAT, reason: "pg_class does not have itself".to_owned() });
    }
    let catalogue = catalogue.iter().map(|row| row.get(1)).collect();
    // 2: heap. The shards of Citus's tables are other tables.
    let table = "select c.oid, c.reltoastrelid, c.relam <> 2 \
            or exists (select 1 from pg_catalog.pg_depend d where d.classid = 1259 and d.objid = c.oid and d.deptype = 'e') \
            or exists (select 1 from pg_catalog.pg_extension where extname = 'citus') \
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
        where n.nspname::text = $1 and c.relname::text = $2 and c.relkind = 'r'";
    let Some(found) = client.query_opt(table, &[&schema, &name]).await.map_err(failed)? else {
        return Ok(TableInServer { catalogue, table: None });
    };
    let (oid, toast): (u32, u32) = (found.get(0), found.get(1));
    let files = format!(
        "select {NUMBER} from pg_catalog.pg_class where oid in ($1, $2) \
         or oid in (select indexrelid from pg_catalog.pg_index where indrelid = $2)"
    );
    let files = client.query(&files, &[&oid, &toast]).await.map_err(failed)?;
    // Owned ones depend on the table; of others a default depends, which is a column's of the table.
    let sequences = "select n.nspname::text, s.relname::text \
        from pg_catalog.pg_class s join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
        where s.relkind = 'S' and s.oid in ( \
            select objid from pg_catalog.pg_depend \
            where classid = 1259 and refclassid = 1259 and refobjid = $1 and deptype in ('a', 'i') \
            union all \
            select d.refobjid from pg_catalog.pg_depend d join pg_catalog.pg_attrdef a on a.oid = d.objid \
            where d.classid = 2604 and d.refclassid = 1259 and a.adrelid = $1)";
    let sequences = client.query(sequences, &[&oid]).await.map_err(failed)?;
    let table = RowsOfTable {
        files: files.iter().map(|row| row.get(0)).collect(),
        sequences: sequences.iter().map(|row| (row.get(0), row.get(1))).collect(),
        is_special: found.get(2),
    };
    Ok(TableInServer { catalogue, table: Some(table) })
}

/// SQL that makes a restored copy of the database behind `client` as it is here, where `pg_dump` says nothing of it: schema
/// public and PL/pgSQL come with every new database, even where they were dropped; before 15 the owner and the comment of schema
/// public are not dumped (both seen with 13 to 18).
pub async fn unsaid(client: &Client, major: PgMajor, bootstrap_role: &RoleName) -> Result<Vec<String>, PostgresError> {
    let row = client
        .query_one(
            "select (select r.rolname::text from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner \
                     where n.nspname = 'public'), \
             (select pg_catalog.obj_description(oid, 'pg_namespace') from pg_catalog.pg_namespace where nspname = 'public'), \
             exists (select 1 from pg_catalog.pg_extension where extname = 'plpgsql')",
            &[],
        )
        .await
        .map_err(|error| query_error("schema public", &error))?;
    let (owner, comment, plpgsql): (Option<String>, Option<String>, bool) = (row.get(0), row.get(1), row.get(2));
    let mut statements = Vec::new();
    match owner {
        None => statements.push("drop schema if exists public".to_owned()),
        Some(owner) if !major.is_at_least(15) => {
            if owner != bootstrap_role.as_str() {
                statements.push(format!("alter schema public owner to {}", quote_identifier(&owner)));
            }
            if comment.as_deref() != Some("standard public schema") {
                let comment = comment.map_or_else(|| "null".to_owned(), |comment| quote_literal(&comment));
                statements.push(format!("comment on schema public is {comment}"));
            }
        }
        Some(_) => {}
    }
    if !plpgsql {
        statements.push("drop extension if exists plpgsql".to_owned());
    }
    Ok(statements)
}

/// SQL for settings that `pg_dumpall` says nothing of: those of `ALTER ROLE ALL SET` (seen with 13 to 18: it dumps what belongs to
/// a role, and `pg_dump` what belongs to a database).
pub async fn settings_of_every_role(client: &Client) -> Result<Vec<String>, PostgresError> {
    let rows = client
        .query("select unnest(setconfig) from pg_catalog.pg_db_role_setting where setrole = 0 and setdatabase = 0", &[])
        .await
        .map_err(|error| query_error("the settings of every role", &error))?;
    Ok(rows.iter().filter_map(|row| setting_of_every_role(row.get(0))).collect())
}

/// The statement that makes a stored `name=value` a setting of every role.
pub fn setting_of_every_role(setting: &str) -> Option<String> {
    /// What is a list of identifiers is stored as one, quoted where it must be (`GUC_LIST_QUOTE` in `guc_tables.c`).
    const LISTS: [&str; 6] = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    let (name, value) = setting.split_once('=')?;
    let is_list = LISTS.contains(&name.to_ascii_lowercase().as_str()) && !value.is_empty();
    let value = if is_list { value.to_owned() } else { quote_literal(value) };
    // A setting of an extension has a dot between two names.
    let name = name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".");
    Some(format!("ALTER ROLE ALL SET {name} TO {value};"))
}

fn query_error(what: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, reason: words(error) }
}

async fn setting(client: &Client, name: &str) -> Result<String, PostgresError> {
    let row = client.query_one("select pg_catalog.current_setting($1)", &[&name]).await;
    row.map(|row| row.get(0)).map_err(|error| query_error("a setting", &error))
}

/// `pg_control_system()` is there since 9.6 (PostgreSQL manual, System Information Functions).
async fn system_identifier(client: &Client) -> Result<u64, PostgresError> {
    let row = client.query_one("select system_identifier from pg_catalog.pg_control_system()", &[]).await;
    // The server shows the unsigned number as a signed one.
    row.map(|row| row.get::<_, i64>(0).cast_unsigned()).map_err(|error| query_error("its system identifier", &error))
}

/// The role with oid 10 is the one that initdb made (`BOOTSTRAP_SUPERUSERID` in `pg_authid.dat`).
async fn bootstrap_role(client: &Client) -> Result<RoleName, PostgresError> {
    let row = client
        .query_one("select rolname::text from pg_catalog.pg_roles where oid = 10", &[])
        .await
        .map_err(|error| query_error("the role made by initdb", &error))?;
    RoleName::new(row.get::<_, String>(0))
        .map_err(|error| PostgresError::Query { what: "the role made by initdb", reason: error.to_string() })
}

async fn wal_segment_bytes(client: &Client) -> Result<u64, PostgresError> {
    let row = client
        .query_one("select pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))", &[])
        .await
        .map_err(|error| query_error("the size of a WAL segment", &error))?;
    Ok(row.get::<_, i64>(0).cast_unsigned())
}

/// Its databases, by name.
pub async fn databases(client: &Client) -> Result<Vec<DatabaseProfile>, PostgresError> {
    // datconnlimit = -2 marks a database whose DROP was interrupted (since 15.4, 14.9, 13.12 …): nobody can connect.
    let rows = client
        .query(
            "select datname::text, oid, pg_catalog.pg_database_size(oid), datallowconn and datconnlimit <> -2, \
             datistemplate, pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text \
             from pg_catalog.pg_database order by datname",
            &[],
        )
        .await
        .map_err(|error| query_error("its databases", &error))?;
    rows.iter()
        .map(|row| {
            let name = DatabaseName::new(row.get::<_, String>(0))
                .map_err(|error| PostgresError::Query { what: "its databases", reason: error.to_string() })?;
            Ok(DatabaseProfile {
                name,
                oid: row.get(1),
                bytes: row.get::<_, i64>(2).cast_unsigned(),
                connectable: row.get(3),
                is_template: row.get(4),
                encoding: row.get(5),
                collate: row.get(6),
                ctype: row.get(7),
            })
        })
        .collect()
}

async fn tablespaces(client: &Client) -> Result<Vec<Tablespace>, PostgresError> {
    let rows = client
        .query(
            "select spcname::text, pg_catalog.pg_tablespace_location(oid) from pg_catalog.pg_tablespace \
             where spcname not in ('pg_default', 'pg_global') order by spcname",
            &[],
        )
        .await
        .map_err(|error| query_error("its tablespaces", &error))?;
    Ok(rows.iter().map(|row| Tablespace { name: row.get(0), location: row.get(1) }).collect())
}

/// Its files of settings and access rules.
async fn files(client: &Client) -> Result<Vec<String>, PostgresError> {
    let mut files = Vec::new();
    for name in ["config_file", "hba_file", "ident_file"] {
        files.push(setting(client, name).await?);
    }
    Ok(files)
}

async fn given_settings(client: &Client) -> Result<BTreeMap<String, String>, PostgresError> {
    let rows = client
        .query(
            "select name, setting from pg_catalog.pg_settings \
             where source in ('configuration file', 'command line', 'environment variable', 'global') \
             and not (name = any ($1)) order by name",
            &[&SECRET_SETTINGS.as_slice()],
        )
        .await
        .map_err(|error| query_error("its settings", &error))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
