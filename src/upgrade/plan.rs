//! What an upgrade will do, every name fixed before it begins.

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RoleName, VolumeName};
use crate::docker::body::RestartPolicy;

/// Version of the frozen plan; a newer one is refused.
pub const PLAN_VERSION: u32 = 1;

/// Every name, image, volume and option of one upgrade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlan {
    /// Format version.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its host.
    pub host: HostName,
    /// The method: `dump`.
    pub method: String,
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
    /// The data container's name, before and after.
    pub data_container: ContainerName,
    /// Id of the old database container.
    pub old_container_id: String,
    /// Id of the old data container.
    pub old_data_container_id: String,
    /// What the old database container is called while it is kept.
    pub kept_container: ContainerName,
    /// What the old data container is called while it is kept.
    pub kept_data_container: ContainerName,
    /// The volume with the old data.
    pub old_volume: String,
    /// The volume for the new data.
    pub new_volume: VolumeName,
    /// The other volumes, which both servers use, one after the other: source and destination.
    pub shared: Vec<(String, String)>,
    /// The old database container's restart policy.
    pub restart: RestartPolicy,
    /// The role that initdb makes.
    pub bootstrap_role: RoleName,
    /// The old server's system identifier.
    pub system_identifier: u64,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u64,
    /// Databases that are carried.
    pub databases: Vec<DatabaseName>,
    /// Their size together.
    pub bytes: u64,
    /// The value of `image` in the policy afterwards, where the policy names an image.
    pub policy_image: Option<String>,
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

impl UpgradePlan {
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
