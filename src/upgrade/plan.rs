//! What an upgrade, or a restore in place, will do: every name fixed before it begins.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backup_set::{SetId, SetIdError};
use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RoleName, VolumeName};
use crate::docker::body::RestartPolicy;
use crate::policy::UpgradeMethod;

/// Version of the frozen plan; a newer one is refused.
pub const PLAN_VERSION: u32 = 1;

/// Where the data of the new server come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Method {
    /// From the old server, which is of an older major.
    Upgrade(UpgradeMethod),
    /// From a backup; the old server has the same major.
    Restore(SetId),
}

/// What a restore in place is told by, before its set.
const RESTORE: &str = "restore of ";

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upgrade(method) => out.write_str(method.as_str()),
            Self::Restore(set) => write!(out, "{RESTORE}{set}"),
        }
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.to_string()
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix(RESTORE) {
            None => text.parse().map(Self::Upgrade),
            Some(set) => set.parse().map(Self::Restore).map_err(|error: SetIdError| error.to_string()),
        }
    }
}

/// What the old server did when the plan was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldServer {
    /// It answered.
    #[default]
    Serves,
    /// Its container ran, and nobody could log in.
    Runs,
    /// Its container did not run.
    Stopped,
}

/// Every name, image, volume and option of one upgrade or restore in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlan {
    /// Format version.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its host.
    pub host: HostName,
    /// How the data go over.
    pub method: Method,
    /// What the old server did.
    #[serde(default)]
    pub old_server: OldServer,
    /// The major it has.
    pub from: PgMajor,
    /// The major it gets.
    pub to: PgMajor,
    /// The image it has.
    pub old_image: PinnedImage,
    /// The image it gets.
    pub new_image: PinnedImage,
    /// The database container's name, before and after.
    pub container: ContainerName,
    /// Id of the old database container.
    pub old_container_id: String,
    /// What the old database container is called while it is kept.
    pub kept_container: ContainerName,
    /// How the containers of the cluster are laid out.
    #[serde(flatten)]
    pub containers: Containers,
    /// The volume with the old data.
    pub old_volume: String,
    /// The volume for the new data.
    pub new_volume: VolumeName,
    /// The old database container's restart policy.
    pub restart: RestartPolicy,
    /// The role that initdb makes.
    pub bootstrap_role: RoleName,
    /// The old server's system identifier; where it did not answer, the one of the backup.
    pub system_identifier: u64,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u64,
    /// Databases that are carried.
    pub databases: Vec<DatabaseName>,
    /// Their size together.
    pub bytes: u64,
    /// The value of `image` in the policy afterwards, where the policy names an image.
    pub policy_image: Option<String>,
    /// What the new image sorts otherwise than the old one, each with both versions: where files go over, indexes over text are
    /// built anew for it.
    #[serde(default)]
    pub sorting: Vec<String>,
    /// Containers that go down with the cluster, in that order, as it was when the plan was made.
    #[serde(default)]
    pub dependents: Vec<String>,
    /// Bytes that the new volume needs.
    #[serde(default)]
    pub needed_bytes: u64,
    /// How long nobody is served, roughly, in seconds; None where nothing is known that tells.
    #[serde(default)]
    pub expected_downtime: Option<u64>,
}

/// How the containers of a cluster are laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Containers {
    /// As pglife makes them.
    Pair(DataContainer),
    /// As somebody else made it.
    Single(Single),
}

/// The data container beside the database container, which has the volumes from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataContainer {
    /// Its name, before and after.
    #[serde(rename = "data_container")]
    pub name: ContainerName,
    /// Id of the old one.
    #[serde(rename = "old_data_container_id")]
    pub old_id: String,
    /// What the old one is called while it is kept.
    #[serde(rename = "kept_data_container")]
    pub kept: ContainerName,
    /// The other volumes, which both servers use, one after the other: source and destination.
    pub shared: Vec<(String, String)>,
}

/// One container, which mounts everything itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Single {
    /// Where it mounts the volume with the data.
    pub data_mount: String,
    /// Its data directory: there, or below; that of the new server, too.
    pub pgdata: String,
    /// Settings without which the data may not go into an empty server.
    pub restore_settings: Vec<(String, String)>,
    /// The folder of the host for the new data, where the old ones lie in one. The new volume stands for it, to say whose it is.
    #[serde(default)]
    pub new_folder: Option<String>,
}

/// Where database containers that pglife made have the volume with the data.
const DATA: &str = "/data";

impl UpgradePlan {
    /// The data container, where the cluster has one.
    pub fn data_container(&self) -> Option<&DataContainer> {
        match &self.containers {
            Containers::Pair(data) => Some(data),
            Containers::Single(_) => None,
        }
    }

    /// The one container, where the cluster is adopted.
    pub fn single(&self) -> Option<&Single> {
        match &self.containers {
            Containers::Pair(_) => None,
            Containers::Single(single) => Some(single),
        }
    }

    /// Where the database containers, old and new, mount the volume with the data.
    pub fn data_mount(&self) -> &str {
        self.single().map_or(DATA, |single| &single.data_mount)
    }

    /// The folder of the host with the new data, where they lie in one.
    pub fn new_folder(&self) -> Option<&str> {
        self.single().and_then(|single| single.new_folder.as_deref())
    }

    /// What is mounted for the new data: the volume, or a folder of the host.
    pub fn new_data(&self) -> &str {
        self.new_folder().unwrap_or(self.new_volume.as_str())
    }

    /// Where the old data lie, in words.
    pub fn old_place(&self) -> String {
        let kind = if self.old_volume.starts_with('/') { "folder" } else { "volume" };
        format!("{kind} {}", self.old_volume)
    }

    /// Where the new data lie, in words.
    pub fn new_place(&self) -> String {
        match self.new_folder() {
            Some(folder) => format!("folder {folder}"),
            None => format!("volume {}", self.new_volume),
        }
    }

    /// The new data directory, for one who sees the new volume at `root`.
    pub fn new_data_below(&self, root: &str) -> String {
        match &self.containers {
            Containers::Pair(_) => format!("{root}/{}", self.to),
            Containers::Single(Single { data_mount, pgdata, .. }) => {
                format!("{root}{}", pgdata.strip_prefix(data_mount.as_str()).unwrap_or_default())
            }
        }
    }

    /// What the containers of the old server are called while they are kept.
    pub fn kept_containers(&self) -> String {
        match self.data_container() {
            Some(data) => format!("{} and {}", self.kept_container, data.kept),
            None => self.kept_container.to_string(),
        }
    }
}

/// How long nobody is served while files go over, roughly: what `pg_upgrade` took with the schema alone; every row is read twice, and
/// each file written once; and what stopping, starting and looking takes of a server of any size.
pub fn expected_downtime(rehearsed_seconds: f64, bytes: u64) -> u64 {
    /// Stops, starts, workers.
    const ALWAYS: f64 = 6.0;
    /// Copying and hashing on two cores.
    const BYTES_IN_A_SECOND: f64 = 50e6;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rough number"
    )]
    let seconds = (ALWAYS + rehearsed_seconds + bytes as f64 / BYTES_IN_A_SECOND).ceil() as u64;
    seconds
}

/// An image by its name, and what that name meant when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

/// The containers that work and prove while nobody can reach the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The old server, for the last backup.
    Source,
    /// The new server, into which the backup is restored.
    Target,
    /// The new server with everything it will serve with.
    Proof,
}

impl Trial {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Source, Self::Target, Self::Proof];
}

/// What it is, for people: `upgrade of cluster "shop" to PostgreSQL 18`.
impl fmt::Display for UpgradePlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.method {
            Method::Upgrade(_) => write!(out, "upgrade of cluster \"{}\" to PostgreSQL {}", self.cluster, self.to),
            method @ Method::Restore(_) => write!(out, "{method} in place of cluster \"{}\"", self.cluster),
        }
    }
}

impl UpgradePlan {
    /// Whether the policy says something else afterwards.
    pub fn changes_policy(&self) -> bool {
        self.from != self.to || self.policy_image.is_some()
    }

    /// The name of a container for work or proof.
    pub fn trial(&self, trial: Trial) -> ContainerName {
        let what = match trial {
            Trial::Source => "source",
            Trial::Target => "target",
            Trial::Proof => "proof",
        };
        ContainerName::new(format!("pglife-upgrade-{}-{what}", self.cluster)).expect("a cluster's name fits")
    }
}

/// Of a cluster of pglife's own.
#[cfg(test)]
pub(super) fn example() -> UpgradePlan {
    let major = PgMajor::since_10;
    let image = |name: &str| PinnedImage { name: name.to_owned(), id: "sha256:1".to_owned() };
    let container = |name: &str| ContainerName::new(name).expect("a name");
    UpgradePlan {
        version: PLAN_VERSION,
        cluster: ClusterName::new("shop").expect("a name"),
        host: HostName::new("local").expect("a name"),
        method: Method::Upgrade(UpgradeMethod::Dump),
        old_server: OldServer::Serves,
        from: major(17),
        to: major(18),
        old_image: image("pglife/postgres:17"),
        new_image: image("pglife/postgres:18"),
        container: container("shop-db"),
        old_container_id: "2".to_owned(),
        kept_container: container("shop-db-pg17"),
        containers: Containers::Pair(DataContainer {
            name: container("shop-data"),
            old_id: "1".to_owned(),
            kept: container("shop-data-pg17"),
            shared: vec![("pglife-shop-config".to_owned(), "/config".to_owned())],
        }),
        old_volume: "pglife-shop-data".to_owned(),
        new_volume: VolumeName::new("pglife-shop-data-pg18").expect("a name"),
        restart: RestartPolicy::default(),
        bootstrap_role: RoleName::new("postgres").expect("a name"),
        system_identifier: 7,
        wal_segment_bytes: 16 << 20,
        databases: vec![],
        bytes: 0,
        policy_image: None,
        sorting: vec![],
        dependents: vec![],
        needed_bytes: 0,
        expected_downtime: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_read_as_it_is_written() {
        let set = "20261127T010203Z-volume-a1b2c3".parse().expect("an id");
        for method in
            [Method::Upgrade(UpgradeMethod::Dump), Method::Upgrade(UpgradeMethod::PgUpgrade), Method::Restore(set)]
        {
            let text = serde_json::to_string(&method).expect("JSON");
            assert_eq!(serde_json::from_str::<Method>(&text).expect("JSON"), method, "{text}");
        }
        assert!(Method::try_from("restore of ".to_owned()).is_err());
    }

    /// The journal may hold a plan of an earlier pglife, which knew no other layout.
    #[test]
    fn a_plan_is_read_as_it_was_always_written() {
        let plan = example();
        let value = serde_json::to_value(&plan).expect("JSON");
        for (key, text) in
            [("data_container", "shop-data"), ("old_data_container_id", "1"), ("kept_data_container", "shop-data-pg17")]
        {
            assert_eq!(value[key], text);
        }
        assert_eq!(value["shared"][0][1], "/config");
        assert_eq!(serde_json::from_value::<UpgradePlan>(value).expect("a plan"), plan);
        let single = Single {
            data_mount: "/var/lib/postgresql".to_owned(),
            pgdata: "/var/lib/postgresql/18/docker".to_owned(),
            restore_settings: vec![],
            new_folder: None,
        };
        let plan = UpgradePlan { containers: Containers::Single(single), ..plan };
        let text = serde_json::to_string(&plan).expect("JSON");
        assert_eq!(serde_json::from_str::<UpgradePlan>(&text).expect("a plan"), plan);
        assert_eq!(plan.new_data_below("/data"), "/data/18/docker");
    }

    #[test]
    fn the_expected_downtime_grows_with_the_data_and_with_the_schema() {
        let small = expected_downtime(4.0, 8 << 20);
        assert!((8..20).contains(&small), "{small}");
        assert!(expected_downtime(60.0, 8 << 20) >= small + 55);
        assert!(expected_downtime(4.0, 10 << 30) > small + 60);
    }
}
