//! What is on record of a run: what it does, how it ended, and what it made.

use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::backup_set::{SetId, SetLocation, set_object};
use crate::cluster::{ClusterName, HostName, RepoName};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Makes a cluster.
    Create,
    /// Takes over a container.
    Adopt,
    /// Looks at a server without changing anything: a dry run, a doctor's visit.
    Look,
    /// Takes a logical backup.
    Dump,
    /// Takes a volume backup.
    Volume,
    /// Restores into a new cluster.
    Restore,
    /// Restores into a throwaway server, to see whether a backup is good.
    Drill,
    /// Spoils copies of a backup, to see whether that is noticed.
    Selftest,
    /// The same into a newer major, to see what an upgrade would break.
    Rehearsal,
    /// Removes a cluster.
    Remove,
    /// Deletes the backups that retention does not keep.
    Prune,
    /// Deletes one backup by hand.
    Delete,
    /// Clears what unfinished runs left in a repository.
    Gc,
    /// Makes a missing copy of a backup.
    Sync,
    /// Moves a cluster to a newer major.
    Upgrade,
    /// Reads backups and compares them with what was written.
    Verify,
}

impl Operation {
    /// Its name in the table and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Adopt => "adopt",
            Self::Look => "look",
            Self::Dump => "dump",
            Self::Volume => "volume",
            Self::Restore => "restore",
            Self::Drill => "drill",
            Self::Selftest => "selftest",
            Self::Rehearsal => "rehearsal",
            Self::Remove => "remove",
            Self::Prune => "prune",
            Self::Delete => "delete",
            Self::Gc => "gc",
            Self::Sync => "sync",
            Self::Upgrade => "upgrade",
            Self::Verify => "verify",
        }
    }

    /// What it locks when it works on `cluster`: a drill works on its throwaway server, and keeps no backup from running.
    pub fn locks(self, cluster: &ClusterName) -> ClusterName {
        match self {
            Self::Drill | Self::Rehearsal | Self::Selftest => cluster.for_drills(),
            _ => cluster.clone(),
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::Create,
            Self::Adopt,
            Self::Look,
            Self::Dump,
            Self::Volume,
            Self::Restore,
            Self::Drill,
            Self::Selftest,
            Self::Rehearsal,
            Self::Remove,
            Self::Prune,
            Self::Delete,
            Self::Gc,
            Self::Sync,
            Self::Upgrade,
            Self::Verify,
        ];
        all.into_iter().find(|operation| operation.as_str() == name)
    }
}

/// One run, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunRecord {
    /// Its id.
    pub run: String,
    /// The cluster it works on.
    pub cluster: ClusterName,
    /// What it does.
    pub operation: Operation,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; None while it lives.
    pub ended_at: Option<Timestamp>,
    /// Its exit code; None while it lives.
    pub exit: Option<u8>,
    /// What it said at the end.
    pub message: String,
    /// The set it committed or restored.
    pub set: Option<SetId>,
}

/// Something a run made on a host, to be undone if the run dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The run.
    pub run: String,
    /// The Docker host.
    pub host: HostName,
    /// What it is.
    pub thing: Thing,
}

/// What a run can make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    /// A container, by name.
    Container(String),
    /// A volume, by name.
    Volume(String),
    /// The folder of a set that is not committed, by path.
    SetFolder(PathBuf),
    /// The objects of a set that is not committed, where a repository has no folders.
    SetObjects {
        /// The repository.
        repository: RepoName,
        /// The set.
        set: SetLocation,
    },
    /// A folder of the run's own, whose name begins with [`RUN_FOLDER`]; it may hold a state directory.
    Folder(PathBuf),
    /// A container that was stopped and has to run again, by the engine's id.
    Stopped(String),
}

/// What the name of a run's own folder begins with.
pub const RUN_FOLDER: &str = "pglife-run-";

impl Thing {
    pub(super) fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Container(name) => ("container", name.clone()),
            Self::Volume(name) => ("volume", name.clone()),
            Self::SetFolder(path) => ("set-folder", path.to_string_lossy().into_owned()),
            Self::Folder(path) => ("folder", path.to_string_lossy().into_owned()),
            Self::Stopped(id) => ("stopped", id.clone()),
            Self::SetObjects { repository, set } => ("set-objects", format!("{repository}:{}", set.commit_key())),
        }
    }

    pub(super) fn from_columns(kind: &str, name: String) -> Option<Self> {
        match kind {
            "container" => Some(Self::Container(name)),
            "volume" => Some(Self::Volume(name)),
            "set-folder" => Some(Self::SetFolder(name.into())),
            "folder" => Some(Self::Folder(name.into())),
            "stopped" => Some(Self::Stopped(name)),
            "set-objects" => {
                let (repository, key) = name.split_once(':')?;
                Some(Self::SetObjects { repository: repository.parse().ok()?, set: set_object(key)?.0 })
            }
            _ => None,
        }
    }
}
