//! What a restore will do, fixed before it begins. Pure.

use serde::Serialize;

use crate::backup_set::{Kind, Manifest, Object, SetId, Tablespace, restore_order};
use crate::cluster::{ClusterName, DatabaseName, PgMajor};
use crate::docker::container::is_below;
use crate::encryption::Keys;
use crate::exit::Exit;
use crate::postgres::Login;
use crate::sql::quote_conninfo;
use crate::storage::FolderLocation;
use crate::worker::{DatabaseRestore, RestoreJob, SCRATCH_FOLDER, TableName};

/// What of a set is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Everything,
    /// The roles, and one database.
    Database(DatabaseName),
    /// The roles, and one database with the rows of one table only.
    Table(DatabaseName, TableName),
}

impl Wanted {
    /// The one database that is wanted.
    pub fn database(&self) -> Option<&DatabaseName> {
        match self {
            Self::Everything => None,
            Self::Database(database) | Self::Table(database, _) => Some(database),
        }
    }

    /// The one table whose rows are wanted.
    pub fn table(&self) -> Option<&TableName> {
        match self {
            Self::Everything | Self::Database(_) => None,
            Self::Table(_, table) => Some(table),
        }
    }
}

/// Everything about a restore that is about to begin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestorePlan {
    /// The set.
    pub set: SetId,
    /// The cluster it is of.
    pub source: ClusterName,
    /// Its major.
    pub from_major: PgMajor,
    /// The new server's major.
    pub major: PgMajor,
    /// Roles and tablespaces.
    pub globals: Object,
    /// Tablespaces whose folders are made.
    pub tablespaces: Vec<Tablespace>,
    /// Databases, in order.
    pub databases: Vec<DatabaseRestore>,
    /// Databases restored side by side.
    pub jobs: usize,
    /// `pg_restore -j` inside one.
    pub restore_jobs: usize,
    /// Codec threads.
    pub threads: usize,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// The set cannot be restored as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Sets of that kind are not restored this way.
    #[error("{0} is a set of kind {1}, which this version does not restore")]
    OtherKind(SetId, Kind),
    /// A dump does not go back to an older major.
    #[error("the backup is of PostgreSQL {from}; it cannot be restored into the older {to}")]
    OlderMajor {
        /// The set's major.
        from: PgMajor,
        /// The one asked for.
        to: PgMajor,
    },
    /// The set does not have it.
    #[error("database \"{database}\" is not in the backup; it has: {available}")]
    NoSuchDatabase {
        /// What was asked for.
        database: DatabaseName,
        /// What there is.
        available: String,
    },
    /// Volumes go back whole: what comes out of them goes another way.
    #[error("{0} is a copy of the volumes, which is restored as a whole: databases and tables come from a dump")]
    OnlyWhole(SetId),
    /// Nothing can log in to it.
    #[error("database \"{0}\" refused connections when the copy was made, so nothing can dump it")]
    RefusesConnections(DatabaseName),
    /// Volumes hold the files of one major.
    #[error("{set} is a copy of the volumes of PostgreSQL {from}, which no other major reads; {to} was asked for")]
    OtherMajor {
        /// The set.
        set: SetId,
        /// Its major.
        from: PgMajor,
        /// The one asked for.
        to: PgMajor,
    },
    /// The set has no volumes.
    #[error("the backup has no volumes in it; it is not a whole volume backup")]
    NoVolumes,
    /// The set has no globals.
    #[error("the backup has no roles and tablespaces; it is not a whole logical backup")]
    NoGlobals,
    /// A tablespace would lie outside the data volume.
    #[error(
        "tablespace \"{name}\" lies in {location}, outside the data volume /data, where a new container has nothing; recover by hand with the backup's RECOVER.md"
    )]
    TablespaceOutside {
        /// Its name.
        name: String,
        /// Its folder.
        location: String,
    },
}

impl PlanError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoSuchDatabase { .. } => Exit::NotFound,
            Self::OtherKind(..)
            | Self::OnlyWhole(_)
            | Self::RefusesConnections(_)
            | Self::OtherMajor { .. }
            | Self::OlderMajor { .. }
            | Self::TablespaceOutside { .. } => Exit::Refused,
            Self::NoGlobals | Self::NoVolumes => Exit::VerifyFailed,
        }
    }

    /// What the operator can do.
    pub fn next(&self) -> Option<&'static str> {
        match self {
            Self::OnlyWhole(_) | Self::OtherMajor { .. } => Some("restore from a dump: --backup latest:dump"),
            Self::RefusesConnections(_) => Some("restore all of the copy: the same command without --database"),
            _ => None,
        }
    }
}

/// Plans a restore of the set that `manifest` describes into a new server of `major`.
pub fn plan_restore(
    manifest: &Manifest,
    major: PgMajor,
    wanted: &Wanted,
    threads: usize,
) -> Result<RestorePlan, PlanError> {
    if manifest.kind != Kind::Dump {
        return Err(PlanError::OtherKind(manifest.set.clone(), manifest.kind));
    }
    let from_major = manifest.server.major;
    if major < from_major {
        return Err(PlanError::OlderMajor { from: from_major, to: major });
    }
    if let Some(outside) = manifest.server.tablespaces.iter().find(|space| !is_below(&space.location, "/data")) {
        return Err(PlanError::TablespaceOutside { name: outside.name.clone(), location: outside.location.clone() });
    }
    let (only, table) = (wanted.database(), wanted.table());
    if let Some(database) = only
        && manifest.database_object(database).is_none()
    {
        let available = manifest.databases().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ");
        return Err(PlanError::NoSuchDatabase { database: database.clone(), available });
    }
    let chosen = manifest.databases().map(|(name, _)| name).filter(|name| only.is_none_or(|only| only == *name));
    let databases: Vec<DatabaseRestore> = restore_order(chosen)
        .into_iter()
        .filter_map(|step| {
            let mut arguments = vec![
                "--no-password".to_owned(),
                "--exit-on-error".to_owned(),
                "--create".to_owned(),
                // Materialized views are refreshed as their owners, whom row security may keep from their own tables.
                "--enable-row-security".to_owned(),
                format!("--dbname=dbname={}", quote_conninfo(step.connect_to)),
            ];
            if step.replaces {
                arguments.extend(["--clean", "--if-exists"].map(str::to_owned));
            }
            Some(DatabaseRestore {
                database: step.database.clone(),
                object: manifest.database_object(step.database)?.clone(),
                alone: step.replaces,
                arguments,
                table: table.cloned(),
            })
        })
        .collect();
    let mut warnings = Vec::new();
    if only.is_none() {
        warnings.extend(
            manifest
                .skipped
                .iter()
                .filter(|skipped| !skipped.intended)
                .map(|skipped| format!("database \"{}\" is not in the backup: {}", skipped.database, skipped.reason)),
        );
    }
    if let Some(table) = table {
        warnings.push(format!(
            "only {table} has rows; foreign keys were left out, because the rows they refer to are not there"
        ));
    }
    let side_by_side = databases.iter().filter(|database| !database.alone).count();
    let jobs = side_by_side.clamp(1, 2);
    Ok(RestorePlan {
        set: manifest.set.clone(),
        source: manifest.cluster.clone(),
        from_major,
        major,
        globals: manifest.globals().ok_or(PlanError::NoGlobals)?.clone(),
        tablespaces: manifest.server.tablespaces.clone(),
        databases,
        jobs,
        restore_jobs: threads.max(2),
        threads,
        warnings,
    })
}

impl RestorePlan {
    /// The request for the worker, with the keys of an encrypted set.
    pub fn job(&self, login: Login, place: FolderLocation, keys: Option<Keys>) -> RestoreJob {
        RestoreJob {
            login,
            major: self.major,
            from_major: self.from_major,
            place,
            scratch: SCRATCH_FOLDER.to_owned(),
            globals: self.globals.clone(),
            tablespaces: self.tablespaces.clone(),
            databases: self.databases.clone(),
            jobs: self.jobs,
            restore_jobs: self.restore_jobs,
            threads: self.threads,
            keys,
        }
    }

    /// Bytes that will be unpacked.
    pub fn plain_bytes(&self) -> u64 {
        self.globals.plain.bytes + self.databases.iter().map(|database| database.object.plain.bytes).sum::<u64>()
    }
}
