//! What stands in the way of an upgrade, or has to be carried by hand, as the running server tells it.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::{PostgresError, words};

/// What a server told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// The data directory, as the server sees it.
    pub data_directory: String,
    /// Free bytes of the file system that holds it.
    pub free_bytes: u64,
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
             pg_catalog.current_setting('hba_file'), pg_catalog.current_setting('ident_file')",
            &[],
        )
        .await
        .map_err(|error| failed("its files", &error))?;
    let settings = client
        .query(
            "select sourcefile, name, coalesce(setting, ''), error from pg_catalog.pg_file_settings \
             where sourcefile is not null and name is not null order by seqno",
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
    })
}

fn failed(what: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, reason: words(error) }
}
