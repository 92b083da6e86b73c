//! What an upgrade will do, every name fixed before it begins.

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RoleName, VolumeName};
use crate::docker::body::RestartPolicy;
use crate::policy::UpgradeMethod;

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
    /// How the data go over.
    pub method: UpgradeMethod,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_downtime_grows_with_the_data_and_with_the_schema() {
        let small = expected_downtime(4.0, 8 << 20);
        assert!((8..20).contains(&small), "{small}");
        assert!(expected_downtime(60.0, 8 << 20) >= small + 55);
        assert!(expected_downtime(4.0, 10 << 30) > small + 60);
    }
}
