//! What the operator wants for one cluster: a policy, validated, with every default filled in.
//!
//! Pure: a policy is read from text ([`file`]), asked with the clock as a parameter ([`schedule`], [`freshness`],
//! [`retention`]) and shown again ([`form`]). Nothing in here looks at the disk, the clock or Docker.
//!
//! ```text
//! policies/<cluster>.toml ──file::read──▶ Policy ──form::PolicyFile::from──▶ effective TOML or JSON
//!                                           │                                (and the JSON Schema)
//!                                           ├─▶ Schedule::due, next_after
//!                                           ├─▶ freshness::evaluate
//!                                           └─▶ retention::decide
//! ```
//!
//! Invariant: a `Policy` is consistent with the `pglife.toml` it was read with: its host and repositories exist and
//! are of a kind that this version can use.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backup_set::{Codec, CopyMode};
use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RepoName, RoleName};
use crate::facts;

mod dependents;
mod duration;
pub mod file;
pub mod form;
pub mod freshness;
mod io_priority;
mod memory;
mod names;
mod rate;
pub mod retention;
mod sample;
pub mod schedule;
mod selection;
mod upgrade;

pub use dependents::{Dependents, OnDown, OnUp};
pub(crate) use duration::HELP as DURATION_HELP;
pub use duration::{Duration, DurationError};
pub use io_priority::{IoPriority, IoPriorityError};
pub use memory::{Memory, MemoryError};
pub use names::{ImageName, NetworkName, PolicyValueError, TablePattern};
pub use rate::{Rate, RateError};
pub use retention::Retention;
pub use sample::{Sample, SampleError};
pub use schedule::{OnMissed, Schedule, Zone};
pub use selection::{DatabaseSelection, DatabaseSelectionError};
pub use upgrade::{UpgradeMethod, UpgradePolicy, Window};

/// One cluster's policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The cluster, after which the policy file is named.
    pub name: ClusterName,
    /// The Docker host it runs on, one of `[hosts]`.
    pub host: HostName,
    /// The major version of its server.
    pub major: PgMajor,
    /// The database container.
    pub container: ContainerName,
    /// The port the server listens on inside its container; part of the unix socket's name too.
    pub port: NonZeroU16,
    /// Whether the daemon registers the database in Consul.
    pub register: bool,
    /// How pglife's workers log in.
    pub login: Login,
    /// Who laid the containers out.
    pub layout: Layout,
    /// How dumps are made.
    pub dump: DumpPolicy,
    /// What pruning keeps; `None` keeps everything.
    pub retention: Option<Retention>,
    /// How the volumes are copied.
    pub volume: VolumePolicy,
    /// How backups are proven.
    pub drill: DrillPolicy,
    /// How old the newest dump may be; `None` sets no limit.
    pub dump_freshness: Option<freshness::Limits>,
    /// How old the newest copy of the volumes may be; `None` sets no limit.
    pub volume_freshness: Option<freshness::Limits>,
    /// How old the newest proven backup may be; `None` sets no limit.
    pub drill_freshness: Option<freshness::Limits>,
    /// What share of the backups the daemon verifies, and when; `None`: none.
    pub verify: Option<VerifyPolicy>,
    /// Into which major the newest dump is restored to rehearse an upgrade, and when; `None`: into none.
    pub rehearsal: Option<RehearsalPolicy>,
    /// What must hold before an upgrade.
    pub upgrade: UpgradePolicy,
    /// What becomes of the containers that depend on it.
    pub dependents: Dependents,
}

impl Policy {
    /// Everything that is scheduled, by its name in state, metrics and messages.
    pub fn schedules(&self) -> impl Iterator<Item = (Task, &Schedule)> {
        // After the upgrade there is nothing left to rehearse, and the policy is no worse for it.
        let rehearsal = self.rehearsal.as_ref().filter(|rehearsal| rehearsal.to > self.major);
        let schedules = [
            (Task::Dump, self.dump.schedule.as_ref()),
            (Task::Volume, self.volume.schedule.as_ref()),
            (Task::Drill, self.drill.schedule.as_ref()),
            (Task::Rehearsal, rehearsal.and_then(|rehearsal| rehearsal.schedule.as_ref())),
            (Task::Verify, self.verify.as_ref().and_then(|verify| verify.schedule.as_ref())),
        ];
        schedules.into_iter().filter_map(|(task, schedule)| Some((task, schedule?)))
    }
}

/// What the daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// A dump, and pruning after it.
    Dump,
    /// A copy of the volumes, and pruning after it.
    Volume,
    /// A backup that is not proven yet is restored and compared.
    Drill,
    /// The newest dump is restored into a newer major and compared.
    Rehearsal,
    /// The day's share of backups is read and compared.
    Verify,
    /// An upgrade that was cut is carried to its end, or its old server is let go of. Never scheduled: it is due when it is.
    Upgrade,
}

impl Task {
    /// Its name in state, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Volume => "volume",
            Self::Drill => "drill",
            Self::Rehearsal => "rehearsal",
            Self::Verify => "verify",
            Self::Upgrade => "upgrade",
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Into which major upgrades are rehearsed, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct RehearsalPolicy {
    /// When.
    pub schedule: Option<Schedule>,
    /// Whose clock the schedule is read on.
    pub timezone: Zone,
    /// The newer major.
    pub to: PgMajor,
}

/// Which share of the backups is verified, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyPolicy {
    /// When.
    pub schedule: Option<Schedule>,
    /// Whose clock the schedule is read on, and whose days the shares are of.
    pub timezone: Zone,
    /// The share of a day.
    pub sample: Sample,
}

/// Who laid the containers out: pglife, or somebody before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// A database container and a data container, as `pglife cluster create` makes them.
    Managed(Managed),
    /// Any container with the official image's layout, as `pglife cluster adopt` takes it over.
    Adopted(Adopted),
}

/// What `pglife cluster create` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Managed {
    /// The image of the database container.
    pub image: ImageName,
    /// The container that declares the volumes.
    pub data_container: ContainerName,
    /// The Docker network the database container joins; `None`: Docker's default bridge.
    pub network: Option<NetworkName>,
    /// The host's address on which the server's port is published; `None`: it is not.
    pub publish: Option<SocketAddr>,
    /// The role that administers the cluster from outside.
    pub admin_user: RoleName,
    /// The database made for that role; `None`: the image's default.
    pub admin_database: Option<DatabaseName>,
    /// A file with that role's first password; `None`: one is generated.
    pub admin_password_file: Option<PathBuf>,
}

/// What is known about a container that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The data directory inside the container.
    pub pgdata: PathBuf,
}

/// How a worker reaches the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Through the unix socket in `/data/run`, which the images of pglife offer to the role made by initdb alone.
    Socket {
        /// That role.
        user: RoleName,
    },
    /// By TCP to 127.0.0.1, in the database container's network namespace.
    Tcp {
        /// The role; it must be able to read everything.
        user: RoleName,
        /// A file on the control plane's machine with its password; `None`: the server asks for none.
        password_file: Option<PathBuf>,
    },
}

/// How dumps are made, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct DumpPolicy {
    /// When; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// Whose clock the schedule is read on, and whose days retention counts.
    pub timezone: Zone,
    /// Where to; at least one, each once.
    pub repositories: Vec<RepoName>,
    /// So many copies make a backup; with fewer it has failed, with some missing it is degraded.
    pub required: NonZeroUsize,
    /// Which databases.
    pub databases: DatabaseSelection,
    /// Tables whose definition is dumped, but not their rows (`pg_dump --exclude-table-data`).
    pub exclude_table_data: Vec<TablePattern>,
    /// How many databases are dumped at the same time.
    pub jobs: NonZeroUsize,
    /// How the dump is compressed.
    pub codec: Codec,
    /// How long `pg_dump` waits for a lock before it gives up (`--lock-wait-timeout`).
    pub lock_timeout: Duration,
}

/// How the volumes are copied, and when. Where to is as for dumps.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumePolicy {
    /// When; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// Whose clock the schedule is read on.
    pub timezone: Zone,
    /// While the server runs, or while it is stopped.
    pub mode: CopyMode,
    /// Which volumes, each once; the one with the data is always among them.
    pub volumes: Vec<VolumeName>,
    /// How the copy is compressed.
    pub codec: Codec,
    /// How fast it is read at most; `None`: as fast as it goes.
    pub rate_limit: Option<Rate>,
    /// Whose turn it is at the disk while it is read; `None`: nobody's before others.
    pub ionice: Option<IoPriority>,
    /// How many copies may build on each other; 1: each holds everything.
    pub full_every: NonZeroU32,
}

/// The longest chain of copies that build on each other: a restore reads from all of them at once.
pub const LONGEST_CHAIN: u32 = 31;

/// How backups are proven, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillPolicy {
    /// When the daemon drills; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// Whose clock the schedule is read on.
    pub timezone: Zone,
    /// How closely dumps look at tables, so that a drill can compare them.
    pub facts: facts::Mode,
    /// How long a restore may take; `None` sets no limit.
    pub rto_budget: Option<Duration>,
    /// What the throwaway server may use; `None`: as much as the cluster's own.
    pub memory: Option<Memory>,
    /// The same of processors.
    pub cpus: Option<NonZeroU32>,
    /// What must be true of the restored cluster besides.
    pub assertions: Vec<Assertion>,
}

/// Something the operator wants to be true of a restored cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assertion {
    /// What it is called in certificates.
    pub name: String,
    /// The database it is asked in.
    pub database: DatabaseName,
    /// One value: true, or a number within the bounds.
    pub sql: String,
    /// The least the number may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// The most it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

/// A volume of a data container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VolumeName {
    /// The data directories.
    Data,
    /// Settings files.
    Config,
    /// Passwords and keys.
    Secret,
    /// The server's log.
    Log,
}

impl VolumeName {
    /// All of them, in the order they are copied.
    pub const ALL: [Self; 4] = [Self::Data, Self::Config, Self::Secret, Self::Log];

    /// Where the containers see it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Data => "/data",
            Self::Config => "/config",
            Self::Secret => "/secret",
            Self::Log => "/log",
        }
    }
}
