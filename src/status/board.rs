//! What the daemon knows at the moment, for everybody who shows it: HTTP, metrics, Consul. Whoever reads takes a copy.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{ClusterStatus, UncoveredServer};
use crate::cluster::{ClusterName, HostName};

/// Whether this daemon starts scheduled runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// There is no Consul, or it does not answer: it does, on its own judgement.
    Alone,
    /// It holds the leader's lock.
    Leader,
    /// Another daemon does.
    Standby,
}

/// A run that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Running {
    /// The cluster.
    pub cluster: ClusterName,
    /// What: `dump`, `volume`, `verify`.
    pub task: &'static str,
    /// When it was started.
    pub started_at: Timestamp,
    /// The step it is at.
    pub step: String,
    /// Bytes read in this step.
    pub plain_bytes: u64,
    /// Bytes stored in this step.
    pub stored_bytes: u64,
    /// How many bytes are expected.
    pub expected_bytes: Option<u64>,
}

/// What the daemon knows.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Snapshot {
    /// The daemon's name among others.
    pub instance: String,
    /// Its version.
    pub version: &'static str,
    /// When it began.
    pub started_at: Timestamp,
    /// When it last turned its wheel.
    pub turned_at: Timestamp,
    /// When it last looked at the clusters; None: not yet.
    pub looked_at: Option<Timestamp>,
    /// Whether it starts scheduled runs.
    pub role: Role,
    /// The clusters.
    pub clusters: Vec<ClusterStatus>,
    /// Servers that no policy covers; None where nobody looks for them, or not yet.
    pub uncovered: Option<Vec<UncoveredServer>>,
    /// The runs that go on.
    pub running: Vec<Running>,
    /// What an operator should know about the daemon itself, by subject.
    pub flags: BTreeMap<&'static str, String>,
    /// Whether Consul answers; None: it is not configured.
    pub consul_up: Option<bool>,
    /// Whether the Docker engines answer.
    pub docker_up: BTreeMap<HostName, bool>,
    /// Runs that ended since the daemon began, by cluster, task and result.
    #[serde(skip)]
    pub ended: BTreeMap<(ClusterName, &'static str, &'static str), u64>,
    /// How long the last successful run took, in seconds.
    #[serde(skip)]
    pub durations: BTreeMap<(ClusterName, &'static str), f64>,
}

/// Where the newest snapshot hangs.
#[derive(Debug)]
pub struct Board(Mutex<Snapshot>);

impl Board {
    /// A board with nothing on it yet.
    pub fn new(instance: String, now: Timestamp) -> Self {
        Self(Mutex::new(Snapshot {
            instance,
            version: env!("CARGO_PKG_VERSION"),
            started_at: now,
            turned_at: now,
            looked_at: None,
            role: Role::Alone,
            clusters: Vec::new(),
            uncovered: None,
            running: Vec::new(),
            flags: BTreeMap::new(),
            consul_up: None,
            docker_up: BTreeMap::new(),
            ended: BTreeMap::new(),
            durations: BTreeMap::new(),
        }))
    }

    fn locked(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what hangs there.
    pub fn read(&self) -> Snapshot {
        self.locked().clone()
    }

    /// Changes something.
    pub fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        change(&mut self.locked())
    }

    /// Raises a flag, or takes it down; true where that is news.
    pub fn flag(&self, subject: &'static str, text: Option<String>) -> bool {
        self.change(|snapshot| match text {
            Some(text) => snapshot.flags.insert(subject, text.clone()).is_none_or(|before| before != text),
            None => snapshot.flags.remove(subject).is_some(),
        })
    }
}
