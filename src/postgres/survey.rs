//! What stands in the way of an upgrade, or has to be carried by hand, as the running server tells it.

mod database;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::cluster::DatabaseName;

use super::pg_upgrade::TemplateLocale;
use super::{PostgresError, words};

/// What a server told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// The data directory, as the server sees it.
    pub data_directory: String,
    /// Free bytes of the file system that holds it.
    pub free_bytes: u64,
    /// True where the folder above that with the data is seen, and lies on another disk.
    #[serde(default)]
    pub is_own_disk: bool,
    /// True where the server is a standby.
    pub in_recovery: bool,
    /// Prepared transactions: their names and databases.
    pub prepared: Vec<String>,
    /// Replication slots that outlive a session.
    pub slots: Vec<String>,
    /// Standbys and other receivers of WAL that are connected now.
    pub receivers: Vec<String>,
    /// Enabled subscriptions, with their databases.
    pub subscriptions: Vec<String>,
    /// Settings in configuration files.
    pub settings: Vec<FileSetting>,
    /// Settings of roles and databases: whose, and `name=value`.
    pub role_settings: Vec<(String, String)>,
    /// `pg_hba.conf` and `pg_ident.conf`, as the server sees them.
    pub access_files: Vec<String>,
    /// Folders with its sockets, as the setting has them.
    #[serde(default)]
    pub socket_folders: Vec<String>,
    /// Libraries that the server or its sessions load: the setting that names them, and its value.
    pub preloaded: Vec<(String, String)>,
    /// Extensions, and the databases that have them.
    pub extensions: BTreeMap<String, Vec<DatabaseName>>,
    /// Libraries of functions that belong to no extension, and one such function.
    pub libraries: BTreeMap<String, String>,
    /// Locales of the operating system, and who needs each.
    pub locales: BTreeMap<String, String>,
    /// Encoding and locale of `template0`.
    pub template: TemplateLocale,
    /// What a dump can say, and a later major does not understand.
    pub outdated: Vec<Outdated>,
}

/// Something in a database that a later major does not take from a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outdated {
    /// The kind.
    pub kind: OutdatedKind,
    /// Which one.
    pub name: String,
    /// The database.
    pub database: DatabaseName,
}

/// Kinds of things that a later major does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutdatedKind {
    /// An operator with a left operand only: gone in 14.
    PostfixOperator,
    /// An aggregate or operator over an array function whose arguments have another type since 14.
    ArrayFunction,
    /// A conversion by a function of the user's own, which gets another argument since 14.
    Conversion,
    /// A table with oids: gone in 12.
    Oids,
    /// A column of a type that is gone since 12.
    Type,
    /// A column that may be null though the parent's may not: a dump cannot say that.
    NullableChild,
}

/// A line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSetting {
    /// The file.
    pub file: String,
    /// The setting.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What the server has against it.
    pub error: Option<String>,
}

/// Asks the server behind `client`; free space is for the caller to fill in, who sees the volume.
pub async fn survey(client: &Client) -> Result<Survey, PostgresError> {
    let list = async |what: &'static str, text: &str| -> Result<Vec<String>, PostgresError> {
        let rows = client.query(text, &[]).await.map_err(|error| failed(what, &error))?;
        Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect())
    };
    let row = client
        .query_one(
            "select pg_catalog.current_setting('data_directory'), pg_catalog.pg_is_in_recovery(), \
             pg_catalog.current_setting('hba_file'), pg_catalog.current_setting('ident_file'), \
             pg_catalog.current_setting('unix_socket_directories')",
            &[],
        )
        .await
        .map_err(|error| failed("its files", &error))?;
    let settings = client
        .query(
            // What the command line says wins: the line of the file is no mistake for that.
            "select f.sourcefile, f.name, coalesce(f.setting, ''), \
             case when f.error = 'setting could not be applied' and s.context = 'postmaster' and s.source = 'command line' \
             then null else f.error end \
             from pg_catalog.pg_file_settings f left join pg_catalog.pg_settings s on lower(s.name) = lower(f.name) \
             where f.sourcefile is not null and f.name is not null order by f.seqno",
            &[],
        )
        .await
        .map_err(|error| failed("its configuration files", &error))?;
    let role_settings = client
        .query(
            "select coalesce('role \"' || r.rolname || '\"', 'all roles') || \
             coalesce(' in database \"' || d.datname || '\"', ''), u.setting \
             from pg_catalog.pg_db_role_setting s left join pg_catalog.pg_roles r on r.oid = s.setrole \
             left join pg_catalog.pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) u (setting) order by 1, 2",
            &[],
        )
        .await
        .map_err(|error| failed("the settings of roles", &error))?;
    Ok(Survey {
        data_directory: row.get(0),
        free_bytes: 0,
        in_recovery: row.get(1),
        prepared: list(
            "prepared transactions",
            "select gid || ' in database \"' || database || '\"' from pg_catalog.pg_prepared_xacts order by 1",
        )
        .await?,
        slots: list(
            "replication slots",
            "select slot_name || ' (' || slot_type || ')' from pg_catalog.pg_replication_slots \
             where not temporary order by 1",
        )
        .await?,
        receivers: list(
            "replication",
            "select coalesce(nullif(application_name, ''), 'without a name') || coalesce(' at ' || client_addr, '') \
             from pg_catalog.pg_stat_replication order by 1",
        )
        .await?,
        subscriptions: list(
            "subscriptions",
            "select s.subname || ' in database \"' || d.datname || '\"' from pg_catalog.pg_subscription s \
             join pg_catalog.pg_database d on d.oid = s.subdbid where s.subenabled order by 1",
        )
        .await?,
        settings: settings
            .iter()
            .map(|row| FileSetting { file: row.get(0), name: row.get(1), value: row.get(2), error: row.get(3) })
            .collect(),
        role_settings: role_settings.iter().map(|row| (row.get(0), row.get(1))).collect(),
        access_files: vec![row.get(2), row.get(3)],
        socket_folders: parts(row.get(4)),
        preloaded: preloaded(client).await?,
        locales: database_locales(client).await?,
        template: template(client).await?,
        ..Survey::default()
    })
}

/// The parts of a setting that is a list.
fn parts(list: &str) -> Vec<String> {
    let parts = list.split(',').map(|part| part.trim().trim_matches('"'));
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl Survey {
    /// Looks into `database`, behind `client`.
    pub async fn look_into(&mut self, client: &Client, database: &DatabaseName) -> Result<(), PostgresError> {
        database::look(client, database, self).await
    }
}

async fn preloaded(client: &Client) -> Result<Vec<(String, String)>, PostgresError> {
    let rows = client
        .query(
            "select name, setting from pg_catalog.pg_settings where setting <> '' and name in \
             ('shared_preload_libraries', 'session_preload_libraries', 'local_preload_libraries', 'archive_library') \
             order by name",
            &[],
        )
        .await
        .map_err(|error| failed("the libraries it loads", &error))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn database_locales(client: &Client) -> Result<BTreeMap<String, String>, PostgresError> {
    let rows = client
        .query(
            "select unnest(array[datcollate, datctype])::text, min(datname::text) from pg_catalog.pg_database \
             where datname <> 'template0' group by 1",
            &[],
        )
        .await
        .map_err(|error| failed("the locales of databases", &error))?;
    Ok(rows.iter().map(|row| (row.get(0), format!("database \"{}\"", row.get::<_, String>(1)))).collect())
}

/// Databases have a provider since 15, whose locale has had two names.
async fn template(client: &Client) -> Result<TemplateLocale, PostgresError> {
    let text = "select pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, \
         coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c'), \
         coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale') \
         from pg_catalog.pg_database d where datname = 'template0'";
    let row = client.query_one(text, &[]).await.map_err(|error| failed("the locale of template0", &error))?;
    let provider = match row.get::<_, &str>(3) {
        "i" => "icu",
        "b" => "builtin",
        _ => "libc",
    };
    Ok(TemplateLocale {
        encoding: row.get(0),
        collate: row.get(1),
        ctype: row.get(2),
        provider: provider.to_owned(),
        locale: row.get(4),
    })
}

fn failed(what: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, reason: words(error) }
}
