//! Workers: the data plane. A worker is a process that does the heavy work next to the data and tells what it saw; it
//! decides nothing.
//!
//! ```text
//!   control plane                                    worker (pglife worker)
//!   ─────────────                                    ──────────────────────
//!   Request, one JSON line  ──── stdin ────▶         does it
//!                           ◀─── stdout ────         Event, one JSON line each; the last one of a request is `verdict`
//!   Renewed, one line       ──── stdin ────▶         its stores sign with newer credentials from here on
//!   closes stdin            ──── EOF ──────▶         kills its children, removes what is half done, ends
//! ```
//!
//! * A worker container runs the *cluster's own image* with the static executable of pglife mounted into it, so the tools are
//!   always the right version. Verification needs no tools and runs as a plain child process.
//! * Secrets come in a request, never in argv, environment or labels.
//! * A dead control plane closes stdin, whatever killed it, and that ends the worker.
//! * Every request ends in exactly one [`Event::Verdict`]. A stream that ends without one is a failure.
//!
//! [`session`] is the control plane's end, [`process`] the worker's own; [`dump`], [`volume`], [`restore`], [`unpack`], [`locate`],
//! [`fetch`], [`verify`], [`copy`] and [`check`] do the work.

mod attributes;
mod block_index;
pub mod check;
pub mod copy;
mod destinations;
pub mod dump;
mod failure;
pub mod fetch;
mod files;
mod join;
mod locate;
pub mod pg_upgrade;
pub mod process;
pub mod refresh;
pub mod restore;
pub mod session;
pub mod unpack;
mod upgrade;
pub mod verify;
pub mod volume;
mod volume_jobs;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::backup_set::certificate::Check;
use crate::backup_set::{Codec, Object, ServerProfile, SetId, StoredObject, Tablespace};
use crate::cluster::{DatabaseName, PgMajor, RepoName, RoleName};
use crate::encryption::{Keys, Recipients};
use crate::facts::{self, Facts};
use crate::policy::Assertion;
use crate::postgres::Login;
use crate::postgres::hot_backup::Lsn;
use crate::postgres::inspect::TableInServer;
use crate::storage::s3::{Credentials, Renewable};
use crate::storage::{FolderLocation, Location};

pub use failure::{Failure, Trouble};
use failure::{pipeline_failure, storage_failure, writing_failure};
pub use volume_jobs::{
    BlocksJob, ChainJob, Excerpt, FilesCheck, JoinJob, LocateJob, ParentJob, PartOfDatabase, SettleIn, Since,
    UnpackJob, VolumeJob,
};

/// The protocol's version. Both ends are the same executable; a difference means that a stale one was injected.
pub const PROTOCOL: &str = env!("CARGO_PKG_VERSION");

/// Where a worker container sees the set it works on.
pub const SET_FOLDER: &str = "/pglife-set";
/// Where a worker container sees the folder of the host in which that with the data lies, where it is to see it.
pub const BESIDE: &str = "/pglife-beside";
/// Where a worker container sees its scratch volume.
pub const SCRATCH_FOLDER: &str = "/pglife-scratch";

/// What the control plane asks of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Log in and say what server that is.
    Inspect {
        /// How to log in.
        login: Login,
        /// How long to go on trying while the server does not answer, in seconds.
        patience_seconds: u64,
    },
    /// Dump globals and databases into the set folder.
    Dump(DumpJob),
    /// Copy the volumes of a running server into the set folder.
    Volume(Box<VolumeJob>),
    /// Unpack a volume backup into new volumes.
    Unpack(Box<UnpackJob>),
    /// Guess which files of a volume backup a table needs.
    Locate(Box<LocateJob>),
    /// Have volumes with an earlier copy hold what a volume backup holds.
    Refresh(Box<refresh::RefreshJob>),
    /// Make one object of a tar that is spread over several sets.
    Join(Box<JoinJob>),
    /// Take single files out of a volume backup.
    Fetch(Box<fetch::FetchJob>),
    /// Restore globals and databases from the set folder into an empty server.
    Restore(Box<RestoreJob>),
    /// Read objects and compare them with what was recorded.
    Verify(VerifyJob),
    /// Copy stored objects from one repository to another.
    Copy(CopyJob),
    /// Look whether a restored server holds what was backed up.
    Check(Box<CheckJob>),
    /// Look at the pages of a server that is shut down.
    Pages(PagesJob),
    /// Say which files a server has a table in, and its catalogue.
    FindTable {
        /// How to log in.
        login: Login,
        /// The database.
        database: DatabaseName,
        /// The table.
        table: TableName,
    },
    /// Say what stands in the way of an upgrade.
    Survey {
        /// How to log in.
        login: Login,
    },
    /// Say what the image has of PostgreSQL beside the server.
    LookAtImage {
        /// The major in it.
        major: PgMajor,
    },
    /// Say what the control file of a data directory says.
    ReadControlFile {
        /// The major that wrote it.
        major: PgMajor,
        /// The data directory, where the worker sees it.
        pgdata: String,
    },
    /// Say how much is free.
    MeasureFreeSpace {
        /// A folder on the disk that is meant.
        folder: String,
    },
    /// Make an empty folder.
    MakeFolder {
        /// The folder.
        folder: String,
        /// One whose owner and mode it gets.
        like: String,
    },
    /// Remove a folder with all that is in it.
    RemoveFolder {
        /// The folder.
        folder: String,
    },
    /// Say how far the server's transactions are.
    CountTransactions {
        /// How to log in.
        login: Login,
    },
    /// Take the facts of a server on which nobody works.
    TakeFacts(TakeFactsJob),
    /// Carry into a new server what no dump holds.
    Settle(SettleJob),
    /// Copy the server's programs and what they need out of its image.
    CopyInstallation {
        /// The major.
        major: PgMajor,
        /// The folder they go to.
        to: String,
    },
    /// Upgrade an empty copy of a running server.
    RehearsePgUpgrade(Box<pg_upgrade::RehearseJob>),
    /// Make a new data directory like an old one.
    Initialise(Box<pg_upgrade::InitialiseJob>),
    /// Move the data of a server that is shut down into it.
    PgUpgrade(Box<pg_upgrade::TransferJob>),
}

/// Newer credentials for the request under way. It has no verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewed {
    /// Which of [`Request::credentials`].
    pub renewed: usize,
    /// What is valid from now on.
    pub credentials: Credentials,
}

impl Request {
    /// The credentials that its places in buckets are reached with, in an order that both ends share.
    pub fn credentials(&self) -> Vec<Renewable> {
        let places: Vec<&FolderLocation> = match self {
            Self::Dump(job) => job.destinations.iter().map(|destination| &destination.place).collect(),
            Self::Volume(job) => {
                let parent = job.blocks.as_ref().and_then(|blocks| blocks.parent.as_ref());
                let destinations = job.destinations.iter().map(|destination| &destination.place);
                destinations.chain(parent.map(|parent| &parent.place)).collect()
            }
            Self::Unpack(job) => job.places(),
            Self::Locate(job) => job.tar.places(),
            Self::Refresh(job) => job.tar.places(),
            Self::Join(job) => job.tar.places().into_iter().chain([&job.to]).collect(),
            Self::Fetch(job) => job.tar.places(),
            Self::Restore(job) => vec![&job.place],
            Self::Verify(job) => vec![&job.place],
            Self::Copy(job) => vec![&job.from, &job.to],
            Self::Check(job) => vec![&job.place],
            Self::Inspect { .. }
            | Self::Pages(_)
            | Self::FindTable { .. }
            | Self::Survey { .. }
            | Self::LookAtImage { .. }
            | Self::ReadControlFile { .. }
            | Self::MeasureFreeSpace { .. }
            | Self::MakeFolder { .. }
            | Self::RemoveFolder { .. }
            | Self::CountTransactions { .. }
            | Self::TakeFacts(_)
            | Self::Settle(_)
            | Self::CopyInstallation { .. }
            | Self::RehearsePgUpgrade(_)
            | Self::Initialise(_)
            | Self::PgUpgrade(_) => vec![],
        };
        let of_bucket = |place: &FolderLocation| match &place.location {
            Location::S3(bucket) => Some(bucket.credentials.clone()),
            Location::Local { .. } => None,
        };
        places.into_iter().filter_map(of_bucket).collect()
    }
}

/// The facts of a server on which nobody works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakeFactsJob {
    /// How to log in.
    pub login: Login,
    /// The databases.
    pub databases: Vec<DatabaseName>,
    /// How closely tables are looked at.
    pub mode: crate::facts::Mode,
    /// How rows are hashed.
    pub algorithm: crate::facts::Algorithm,
}

/// What no dump holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SettleJob {
    /// How to log in to the new server.
    pub login: Login,
    /// Files to copy, from and to, where the worker sees them.
    pub files: Vec<(String, String)>,
    /// Statements, each on its own.
    pub statements: Vec<String>,
    /// Databases that get statistics.
    pub analyse: Vec<DatabaseName>,
    /// What a restore would have made anew, where the data came as files.
    pub renew: Option<Renewal>,
}

/// What is made anew where the data came as files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The server's major.
    pub major: PgMajor,
    /// Whether extensions get the version of the image.
    pub extensions: bool,
    /// Whether libraries that sort text changed, so that indexes may be in another order.
    pub reindex: bool,
}

/// Everything a dump needs; no choice is left to the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpJob {
    /// How to log in.
    pub login: Login,
    /// The server's major: the tools must be of it.
    pub major: PgMajor,
    /// The role that initdb made.
    pub bootstrap_role: RoleName,
    /// Where the set is written to.
    pub destinations: Vec<Destination>,
    /// The object for roles, tablespaces and settings.
    pub globals: String,
    /// The databases, in the order they are begun.
    pub databases: Vec<DatabaseDump>,
    /// Databases dumped side by side.
    pub jobs: usize,
    /// Codec of every object.
    pub codec: Codec,
    /// Codec threads for each database.
    pub threads: usize,
    /// Whom the objects are sealed to; None: to nobody.
    pub recipients: Option<Recipients>,
    /// The facts to take beside; None: none.
    pub facts: Option<FactsJob>,
}

/// Facts to take in the snapshots of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsJob {
    /// The object they go to.
    pub object: String,
    /// How closely tables are looked at.
    pub mode: facts::Mode,
    /// How long to wait for a lock, in milliseconds.
    pub lock_timeout_ms: u64,
}

/// One repository that a set is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Its name.
    pub repository: RepoName,
    /// The set's folder in it, as the worker reaches it.
    pub place: FolderLocation,
}

/// One database to dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseDump {
    /// Its name.
    pub database: DatabaseName,
    /// Its oid, to tell a dropped database from a failed dump.
    pub oid: u32,
    /// The object it goes to.
    pub object: String,
    /// Arguments of `pg_dump`.
    pub arguments: Vec<String>,
}

/// Everything a restore needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreJob {
    /// How to log in to the new server.
    pub login: Login,
    /// Its major: the tools must be of it.
    pub major: PgMajor,
    /// The major the set was taken from.
    pub from_major: PgMajor,
    /// The set's folder, as the worker reaches it.
    pub place: FolderLocation,
    /// Scratch folder for unpacked dumps.
    pub scratch: String,
    /// Roles, tablespaces and settings.
    pub globals: Object,
    /// Tablespaces whose folders must exist before the globals.
    pub tablespaces: Vec<Tablespace>,
    /// The databases, in order; each only after the ones before it that must not run beside it.
    pub databases: Vec<DatabaseRestore>,
    /// Databases restored side by side.
    pub jobs: usize,
    /// `pg_restore -j` inside one database.
    pub restore_jobs: usize,
    /// Codec threads.
    pub threads: usize,
    /// What opens sealed objects.
    pub keys: Option<Keys>,
}

/// One database to restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseRestore {
    /// Its name.
    pub database: DatabaseName,
    /// Its object.
    pub object: Object,
    /// It exists in every new server and runs alone.
    pub alone: bool,
    /// Arguments of `pg_restore`, without `-j` and the file.
    pub arguments: Vec<String>,
    /// The one table that gets its rows; None for all.
    pub table: Option<TableName>,
}

/// A table, by schema and name as they are in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}.{}", self.schema, self.name)
    }
}

impl std::str::FromStr for TableName {
    type Err = String;
    /// `schema.table`, or `table` in schema public. A dot inside a name cannot be told from the one between.
    fn from_str(text: &str) -> Result<Self, String> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || name.is_empty() {
            return Err(format!("{text:?} is not a table: write schema.table"));
        }
        Ok(Self { schema: schema.to_owned(), name: name.to_owned() })
    }
}

/// Objects to read and compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyJob {
    /// The set's folder.
    pub place: FolderLocation,
    /// Objects that are opened and compared inside and out.
    pub objects: Vec<Object>,
    /// Objects that are compared as they are stored, because nothing is there to open them.
    pub stored: Vec<StoredObject>,
    /// Codec threads.
    pub threads: usize,
    /// What opens sealed objects.
    pub keys: Option<Keys>,
}

/// Objects to copy as they are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyJob {
    /// The set's folder in the repository that holds it.
    pub from: FolderLocation,
    /// Its folder in the one that does not.
    pub to: FolderLocation,
    /// The objects, all but `COMMIT`.
    pub objects: Vec<StoredObject>,
}

/// What to look for in a restored server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckJob {
    /// How to log in.
    pub login: Login,
    /// Its major: the tools must be of it.
    pub major: PgMajor,
    /// The set's folder, as the worker reaches it.
    pub place: FolderLocation,
    /// The facts to compare with; None where the set has none.
    pub facts: Option<Object>,
    /// What opens a sealed object.
    pub keys: Option<Keys>,
    /// The facts of a dump that was made before a copy of the volumes, and which one.
    #[serde(default)]
    pub beside: Option<(SetId, Facts)>,
    /// The databases that must be there.
    pub databases: Vec<DatabaseName>,
    /// Whether tables and indexes are read in full (`pg_amcheck`), where the server has it.
    pub structure: bool,
    /// What must be true besides.
    pub assertions: Vec<Assertion>,
}

/// A data directory to look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PagesJob {
    /// The major: the tools must be of it.
    pub major: PgMajor,
    /// The data directory, where the worker sees it.
    pub pgdata: String,
    /// The system identifier it must have.
    pub system_identifier: u64,
    /// Whether it has page checksums.
    pub checksums: bool,
    /// How far recovery must have come.
    pub consistent_at: Option<Lsn>,
}

/// What a worker tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The worker is there.
    Hello {
        /// Its protocol.
        protocol: String,
    },
    /// How far it is; totals since the request began.
    Progress {
        /// Bytes before the codec.
        plain_bytes: u64,
        /// Bytes in the repository.
        stored_bytes: u64,
    },
    /// Something for the operator's eyes.
    Log {
        /// True where the run is not what was asked for.
        warning: bool,
        /// The words.
        message: String,
    },
    /// The answer to [`Request::Inspect`].
    Server(ServerProfile),
    /// An object is written and safe on disk.
    Object(Object),
    /// A repository takes no more of the set; the others go on.
    RepositoryFailed {
        /// Which.
        repository: RepoName,
        /// What kind of trouble.
        trouble: Trouble,
        /// What failed and why.
        message: String,
    },
    /// A database was dropped while the run went on; there is no object for it.
    Vanished {
        /// Its name.
        database: DatabaseName,
    },
    /// The answer to [`Request::Fetch`].
    Fetched {
        /// How many files were written.
        files: usize,
        /// Their size.
        bytes: u64,
    },
    /// The answer to [`Request::Locate`].
    Located {
        /// The numbers of the files.
        files: BTreeSet<u32>,
        /// Bytes that an excerpt with them takes on disk.
        bytes: u64,
    },
    /// The answer to [`Request::FindTable`].
    Table(Box<TableInServer>),
    /// From here on a [`Request::Refresh`] changes what is there.
    Barred,
    /// The answer to [`Request::Refresh`].
    Refreshed {
        /// Bytes that were written.
        written: u64,
        /// Bytes that were there already, by their digests.
        kept: u64,
    },
    /// A database is restored.
    Restored {
        /// Its name.
        database: DatabaseName,
    },
    /// An object was read and is not what was recorded.
    Damaged {
        /// The object's name.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// The answer to [`Request::Survey`].
    Surveyed(Box<crate::postgres::survey::Survey>),
    /// The answer to [`Request::LookAtImage`].
    Image(Box<crate::postgres::installation::Installation>),
    /// The answer to [`Request::MeasureFreeSpace`].
    FreeSpace {
        /// Bytes that anybody may write.
        bytes: u64,
    },
    /// The answer to [`Request::ReadControlFile`].
    ControlFile(crate::postgres::control_data::ControlData),
    /// The answer to [`Request::CountTransactions`].
    Transactions {
        /// The id after that of the last one that ended, with its epoch in the upper half.
        next: u64,
        /// Whether older ones that write still go on.
        writing: bool,
    },
    /// The answer to [`Request::TakeFacts`].
    FactsTaken(Box<crate::facts::Facts>),
    /// The answer to [`Request::CopyInstallation`].
    InstallationCopied(pg_upgrade::OldPrograms),
    /// The answer to [`Request::RehearsePgUpgrade`].
    Rehearsed {
        /// How long `pg_upgrade` took.
        seconds: f64,
        /// What it has against the schema.
        obstacle: Option<String>,
    },
    /// The answer to [`Request::PgUpgrade`].
    Transferred(pg_upgrade::Identical),
    /// Indexes were built anew, in the order of other libraries.
    Reindexed {
        /// How many.
        indexes: u64,
    },
    /// Something was checked.
    Checked(Check),
    /// How much there was to compare.
    Compared(facts::Extent),
    /// The end of a request.
    Verdict(Verdict),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Everything asked for was done, and every check agreed.
    Ok {
        /// Versions of the tools used, as they print them.
        tools: Vec<String>,
        /// Peak resident memory of the worker itself, in bytes.
        peak_memory_bytes: u64,
    },
    /// It was not done.
    Failed {
        /// What kind of trouble.
        trouble: Trouble,
        /// What failed and why, in the tool's own words.
        message: String,
    },
}

/// The keys to open `object` with: none where it is not sealed.
fn keys_for<'a>(object: &Object, keys: Option<&'a Keys>) -> Result<Option<&'a Keys>, Failure> {
    match (object.is_sealed(), keys) {
        (false, _) => Ok(None),
        (true, Some(keys)) => Ok(Some(keys)),
        (true, None) => Err(Failure::new(Trouble::Key, format!("{} is encrypted, and no key was given", object.name))),
    }
}
