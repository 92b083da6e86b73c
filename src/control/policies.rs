//! Policies that operations write, wherever the policies are.

use std::path::PathBuf;

use super::ControlPlane;
use crate::cluster::ClusterName;
use crate::kv::{self, KvError};

impl ControlPlane {
    /// The text of the policy of `cluster`, as it is now.
    pub async fn policy_text(&self, cluster: &ClusterName) -> Result<String, KvError> {
        kv::policy_text(&self.configuration.settings, self.consul.as_deref(), cluster).await
    }

    /// Whether a new policy could be written now.
    pub async fn may_write_policy(&self, cluster: &ClusterName) -> Result<(), KvError> {
        kv::may_write(&self.configuration.settings, self.consul.as_deref(), cluster).await
    }

    /// Writes a new policy that was checked, whole or not at all, and never over another one. Returns where it is.
    pub async fn write_policy(&self, cluster: &ClusterName, text: &str) -> Result<PathBuf, KvError> {
        kv::write_policy(&self.configuration.settings, self.consul.as_deref(), cluster, text).await
    }

    /// Replaces a policy that is `old` by a text that was checked.
    pub async fn replace_policy(&self, cluster: &ClusterName, old: &str, new: &str) -> Result<(), KvError> {
        kv::replace_policy(&self.configuration.settings, self.consul.as_deref(), cluster, old, new).await
    }
}
