//! A policy as its file would say it with every default written out, and the JSON Schema of such a file.
//!
//! [`super::file`] reads files; this is the way back, for `pglife policy show`, and what `pglife policy schema` prints
//! for editors. Tests hold the two against each other: what is shown reads back as the same policy, and the schema
//! has exactly the keys, with the types, that the reader takes.

mod timing;

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{DrillPolicy, Layout, Login, Policy, UpgradePolicy, VolumeName, VolumePolicy, freshness};

pub use timing::{OnMissedForm, TimingKeys};

/// The policy of one cluster of pglife: `policies/<cluster>.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "pglife policy")]
pub struct PolicyFile {
    /// The server and its containers.
    pub cluster: ClusterSection,
    /// The backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSection>,
    /// How backups are proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillSection>,
    /// What `pglife prune` keeps. Without this section everything is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionSection>,
    /// How old the newest backup may be. Never backed up is always critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freshness: Option<FreshnessSection>,
    /// Backups that the daemon reads and compares with what was written. Without this section it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySection>,
    /// Rehearsals of an upgrade: the daemon restores the newest dump into a newer major. Without this section it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalSection>,
    /// What must hold before an upgrade, and when one may begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeSection>,
    /// What becomes of the containers that depend on the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dependents: Option<DependentsSection>,
}

/// What containers that depend on the cluster do, unless their own labels say otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DependentsSection {
    /// When the database goes down: `stop`, `pause` or `none`. Default: `stop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(stop|pause|none)$"))]
    pub on_down: Option<String>,
    /// When it is back: `start`, `restart` (those that ran on, too) or `none`. Default: `start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(start|restart|none)$"))]
    pub on_up: Option<String>,
    /// Whether `depends_on` of a compose file counts, besides pglife's labels. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose: Option<bool>,
}

/// What must hold before `pglife upgrade`, and when it may begin.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeSection {
    /// How the data go over: `dump`, through a backup. Default: `dump`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(dump|pg_upgrade)$"))]
    pub method: Option<String>,
    /// A backup not older than this must be proven; where none is, one is taken and drilled first. Default: none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub require_proven: Option<String>,
    /// Whether the newest backup is restored into the new major first, beside the running cluster. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearse: Option<bool>,
    /// When upgrades may begin. Default: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowForm>,
    /// The IANA time zone the window is read in. Default: that of the dumps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// How long the old server is kept: `finalize` refuses before. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub keep_old: Option<String>,
}

/// Hours of a day; past midnight where it ends before it starts.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowForm {
    /// Its beginning: "22:00".
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,
    /// Its end, which is no part of it: "05:00".
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub end: String,
}

/// Which share of the backups is verified, and when.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["schedule"]))]
pub struct VerifySection {
    /// When.
    #[serde(flatten)]
    pub timing: TimingKeys,
    /// The share of a day: "1/7", a seventh, so that each backup is read once in 7 days. Default: "1/7".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9]+/[0-9]+$"))]
    pub sample: Option<String>,
}

/// Which upgrade is rehearsed, and when.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["schedule", "to"]))]
pub struct RehearsalSection {
    /// When.
    #[serde(flatten)]
    pub timing: TimingKeys,
    /// The newer major: "18". Once the cluster has it, nothing is rehearsed any more.
    pub to: String,
}

/// The server and its containers. With `pgdata` the container is an adopted one, else pglife makes two: one for the
/// server, one for the data.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// The Docker host, one of `[hosts]` in pglife.toml. Default: `local`, or the only one there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The major version of the server: "17", or "9.6" before 10.
    #[schemars(regex(pattern = r"^([1-9][0-9]{1,2}|[89]\.[0-9]{1,2})$"))]
    pub major: String,
    /// The image of the database container. Default: `pglife/postgres:<major>`. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The database container. Default: `<cluster>-db`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The container that declares the volumes. Default: `<cluster>-data`. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_container: Option<String>,
    /// The data directory inside an adopted container; this key makes the cluster an adopted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/"))]
    pub pgdata: Option<String>,
    /// The Docker network to join. Default: Docker's own bridge. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Address and port of the Docker host on which the server is reached: "127.0.0.1:5433". Default: not published.
    /// Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<String>,
    /// Whether the daemon registers the database in Consul, where its port is published. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<bool>,
    /// The port the server listens on inside its container. Default: 5432.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,
    /// The role that administers the cluster from outside. Default: `admin`. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_user: Option<String>,
    /// The database made for that role. Default: the image's own choice. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_database: Option<String>,
    /// A file with that role's first password. Default: one is generated. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_password_file: Option<String>,
    /// The superuser pglife's workers log in as. Managed clusters are reached through their unix socket unless there is
    /// a `password_file`; adopted ones by TCP to 127.0.0.1 inside the container. Default: `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with the password of `user`, for TCP. Default: the server asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
}

/// The backups.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupSection {
    /// Logical dumps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<DumpSection>,
    /// Copies of the volumes; of an adopted cluster, of its data directory and its tablespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSection>,
}

/// Copies of the data container's volumes, to the repositories of the dumps.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSection {
    /// When.
    #[serde(flatten)]
    pub timing: TimingKeys,
    /// How fast the volumes are read at most: `200MB/s`. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9]+[kMG]B/s$"))]
    pub rate_limit: Option<String>,
    /// When it is the copy's turn at the disk: `idle`, when nobody else wants it, or `best-effort:0` (first) to `best-effort:7` (last).
    /// Default: as everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(idle|best-effort:[0-7])$"))]
    pub ionice: Option<String>,
    /// One in how many holds everything; the others hold what changed since the one before. Default: 1, all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31))]
    pub full_every: Option<u32>,
    /// How: `hot`, while the server runs; `cold`, while it is stopped. Default: `hot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(hot|cold)$"))]
    pub mode: Option<String>,
    /// Which of `/data`, `/config`, `/secret`, `/log`; `/data` always. Default: all. Not for adopted clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub volumes: Option<Vec<String>>,
    /// zstd:1 (fast) to zstd:19 (small), gzip:1 to gzip:9, or none. Default: zstd:1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(none|zstd:([1-9]|1[0-9])|gzip:[1-9])$"))]
    pub codec: Option<String>,
}

/// Logical dumps: the globals and each database.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DumpSection {
    /// When.
    #[serde(flatten)]
    pub timing: TimingKeys,
    /// The repositories, of `[repos]` in pglife.toml. Default: the only one there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub repos: Option<Vec<String>>,
    /// How many copies, in as many repositories, make a backup: with fewer it has failed, with some missing it is degraded.
    /// Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub required: Option<u32>,
    /// The databases: `*` stands for any text, `!` in front excludes. Default: `["*"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub databases: Option<Vec<String>>,
    /// Tables whose definition is dumped but not their rows, as `pg_dump --exclude-table-data` reads them. Default: `[]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_table_data: Option<Vec<String>>,
    /// How many databases are dumped at the same time. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub jobs: Option<u32>,
    /// zstd:1 (fast) to zstd:19 (small), or gzip:1 to gzip:9. Default: zstd:1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(zstd:([1-9]|1[0-9])|gzip:[1-9])$"))]
    pub codec: Option<String>,
    /// How long `pg_dump` waits for a lock before it gives up. Default: 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub lock_timeout: Option<String>,
}

/// How a duration is written.
const DURATION: &str = "^([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$";

/// How many backups `pglife prune` keeps in each lineage; what any rule keeps is kept.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetentionSection {
    /// The newest ones, whatever their age: the floor of all pruning. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub last: Option<u32>,
    /// The newest of each of so many days. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub daily: Option<u32>,
    /// The newest of each of so many weeks. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub weekly: Option<u32>,
    /// The newest of each of so many months. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub monthly: Option<u32>,
    /// The newest of each of so many years. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub yearly: Option<u32>,
}

/// How backups are proven: `pglife drill`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrillSection {
    /// When.
    #[serde(flatten)]
    pub timing: TimingKeys,
    /// How closely a dump looks at tables: `counts`, `sampled` or `full`. Default: `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(counts|sampled|full)$"))]
    pub facts: Option<String>,
    /// How long a restore may take. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub rto_budget: Option<String>,
    /// How much memory the throwaway server may use: `4GB`. Default: as much as the cluster's own container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9]+[MG]B$"))]
    pub memory: Option<String>,
    /// How many processors it may use. Default: as many as the cluster's own container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub cpus: Option<u32>,
    /// What must be true of the restored cluster besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assert: Vec<AssertForm>,
}

/// A query with one value: true, or a number within `min` and `max`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssertForm {
    /// What it is called in certificates.
    pub name: String,
    /// The database it is asked in.
    pub database: String,
    /// The query.
    pub sql: String,
    /// The least the number may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// The most it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

/// How old the newest backup of each kind may be.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FreshnessSection {
    /// The limits for dumps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<LimitsForm>,
    /// The limits for copies of the volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<LimitsForm>,
    /// The limits for the newest backup that a drill has proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<LimitsForm>,
}

/// Two ages, `warn` below `critical`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsForm {
    /// The age that is worth a warning.
    #[schemars(regex(pattern = DURATION))]
    pub warn: String,
    /// The age that must not be.
    #[schemars(regex(pattern = DURATION))]
    pub critical: String,
}

impl From<&Policy> for PolicyFile {
    fn from(policy: &Policy) -> Self {
        let show = |path: &std::path::PathBuf| path.display().to_string();
        let (user, password_file) = match &policy.login {
            Login::Socket { user } => (Some(user.to_string()).filter(|user| user != "postgres"), None),
            Login::Tcp { user, password_file } => (Some(user.to_string()), password_file.as_ref().map(show)),
        };
        let (managed, adopted) = match &policy.layout {
            Layout::Managed(managed) => (Some(managed), None),
            Layout::Adopted(adopted) => (None, Some(adopted)),
        };
        let dump = &policy.dump;
        let limits = |limits: Option<freshness::Limits>| {
            limits.map(|limits| LimitsForm { warn: limits.warn().to_string(), critical: limits.critical().to_string() })
        };
        let texts = |texts: &[String]| Some(texts.to_vec());
        Self {
            cluster: ClusterSection {
                host: Some(policy.host.to_string()),
                major: policy.major.to_string(),
                image: managed.map(|managed| managed.image.to_string()),
                container: Some(policy.container.to_string()),
                data_container: managed.map(|managed| managed.data_container.to_string()),
                pgdata: adopted.map(|adopted| show(&adopted.pgdata)),
                network: managed.and_then(|managed| managed.network.as_ref()).map(ToString::to_string),
                publish: managed.and_then(|managed| managed.publish).map(|address| address.to_string()),
                register: Some(policy.register),
                port: Some(policy.port.get().into()),
                admin_user: managed.map(|managed| managed.admin_user.to_string()),
                admin_database: managed.and_then(|managed| managed.admin_database.as_ref()).map(ToString::to_string),
                admin_password_file: managed.and_then(|managed| managed.admin_password_file.as_ref()).map(show),
                user,
                password_file,
            },
            backup: Some(BackupSection {
                dump: Some(DumpSection {
                    timing: TimingKeys::of(dump.schedule.as_ref(), &dump.timezone),
                    repos: Some(dump.repositories.iter().map(ToString::to_string).collect()),
                    required: u32::try_from(dump.required.get()).ok(),
                    databases: texts(dump.databases.patterns()),
                    exclude_table_data: Some(dump.exclude_table_data.iter().map(ToString::to_string).collect()),
                    jobs: u32::try_from(dump.jobs.get()).ok(),
                    codec: Some(dump.codec.to_string()),
                    lock_timeout: Some(dump.lock_timeout.to_string()),
                }),
                volume: Some(VolumeSection {
                    volumes: managed.map(|_| paths(&policy.volume.volumes)),
                    ..VolumeSection::from(&policy.volume)
                }),
            }),
            drill: Some(DrillSection::from(&policy.drill)),
            retention: policy.retention.map(|retention| RetentionSection {
                last: Some(retention.last.get()),
                daily: Some(retention.daily),
                weekly: Some(retention.weekly),
                monthly: Some(retention.monthly),
                yearly: Some(retention.yearly),
            }),
            freshness: [policy.dump_freshness, policy.volume_freshness, policy.drill_freshness]
                .iter()
                .any(Option::is_some)
                .then(|| FreshnessSection {
                    dump: limits(policy.dump_freshness),
                    volume: limits(policy.volume_freshness),
                    drill: limits(policy.drill_freshness),
                }),
            verify: policy.verify.as_ref().filter(|verify| verify.schedule.is_some()).map(|verify| VerifySection {
                timing: TimingKeys::of(verify.schedule.as_ref(), &verify.timezone),
                sample: Some(verify.sample.to_string()),
            }),
            rehearsal: policy.rehearsal.as_ref().filter(|rehearsal| rehearsal.schedule.is_some()).map(|rehearsal| {
                let timing = TimingKeys::of(rehearsal.schedule.as_ref(), &rehearsal.timezone);
                RehearsalSection { timing, to: rehearsal.to.to_string() }
            }),
            upgrade: Some(UpgradeSection::from(&policy.upgrade)),
            dependents: Some(DependentsSection {
                on_down: Some(policy.dependents.on_down.as_str().to_owned()),
                on_up: Some(policy.dependents.on_up.as_str().to_owned()),
                compose: Some(policy.dependents.compose),
            }),
        }
    }
}

fn paths(volumes: &[VolumeName]) -> Vec<String> {
    volumes.iter().map(|volume| volume.path().to_owned()).collect()
}

impl From<&VolumePolicy> for VolumeSection {
    fn from(volume: &VolumePolicy) -> Self {
        Self {
            timing: TimingKeys::of(volume.schedule.as_ref(), &volume.timezone),
            mode: Some(volume.mode.as_str().to_owned()),
            volumes: Some(paths(&volume.volumes)),
            codec: Some(volume.codec.to_string()),
            rate_limit: volume.rate_limit.map(|rate| rate.to_string()),
            ionice: volume.ionice.map(|priority| priority.to_string()),
            full_every: Some(volume.full_every.get()),
        }
    }
}

impl From<&UpgradePolicy> for UpgradeSection {
    fn from(upgrade: &UpgradePolicy) -> Self {
        Self {
            method: Some(upgrade.method.as_str().to_owned()),
            require_proven: upgrade.require_proven.map(|age| age.to_string()),
            rehearse: Some(upgrade.rehearse),
            window: upgrade.window.map(|window| WindowForm { start: window.start(), end: window.end() }),
            timezone: Some(upgrade.timezone.to_string()),
            keep_old: upgrade.keep_old.map(|time| time.to_string()),
        }
    }
}

impl From<&DrillPolicy> for DrillSection {
    fn from(drill: &DrillPolicy) -> Self {
        Self {
            timing: TimingKeys::of(drill.schedule.as_ref(), &drill.timezone),
            facts: Some(drill.facts.to_string()),
            rto_budget: drill.rto_budget.map(|budget| budget.to_string()),
            memory: drill.memory.map(|memory| memory.to_string()),
            cpus: drill.cpus.map(NonZeroU32::get),
            assert: drill
                .assertions
                .iter()
                .map(|assertion| AssertForm {
                    name: assertion.name.clone(),
                    database: assertion.database.to_string(),
                    sql: assertion.sql.clone(),
                    min: assertion.min,
                    max: assertion.max,
                })
                .collect(),
        }
    }
}

/// The JSON Schema of a policy file.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(PolicyFile).to_value();
    without_null(&mut schema);
    schema
}

/// schemars describes an `Option` as "or null". TOML has no null: an absent key is an absent key.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(options)) = map.get_mut("anyOf") {
                options.retain(|option| option["type"] != "null");
                if let [Value::Object(only)] = options.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    map.extend(only);
                }
            }
            map.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
