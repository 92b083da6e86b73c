//! An upgrade as the journal has it: its plan, how far it is, and what it found out.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::Phase;
use super::plan::{self, UpgradePlan};
use crate::backup_set::SetId;
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, OperationError, failed};
use crate::exit::Exit;
use crate::facts::Extent;
use crate::policy::Policy;
use crate::state::upgrades::UpgradeRecord;
use crate::worker::pg_upgrade::Identical;

/// What an upgrade found out, kept in the journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The proven backup that the policy asked for.
    pub proven: Option<SetId>,
    /// Seconds that the restore took in the rehearsal.
    pub rehearsed: Option<f64>,
    /// The backup through which the data went.
    pub backup: Option<SetId>,
    /// The new server's system identifier.
    pub system_identifier: Option<u64>,
    /// The transaction id that the new server gave out next at the commit.
    pub next_transaction: Option<u64>,
    /// On the way back the new volume stays: nobody has a backup of what was written to it.
    pub keep_new_volume: bool,
    /// How much was compared.
    pub compared: Option<Compared>,
    /// Differences that are the majors' own.
    pub notes: Vec<String>,
    /// When the old server was stopped.
    pub stopped_at: Option<Timestamp>,
    /// When the new server answered.
    pub serving_at: Option<Timestamp>,
    /// Seconds of each step.
    pub seconds: Vec<(String, f64)>,
    /// Files that `pg_upgrade` copied, each compared byte by byte.
    pub identical: Option<Identical>,
    /// Indexes that were built anew because text sorts otherwise now.
    pub reindexed: Option<u64>,
    /// What is left for the operator to do.
    pub left_to_do: Vec<String>,
    /// Why it was undone.
    pub failure: Option<String>,
    /// The first backup of the new server.
    pub first_backup: Option<SetId>,
}

/// How much was compared between the old and the new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Databases.
    pub databases: u64,
    /// Tables.
    pub tables: u64,
    /// Rows, all of them hashed.
    pub rows: u64,
    /// Sequences.
    pub sequences: u64,
    /// Statements about everything else.
    pub statements: u64,
}

impl From<Extent> for Compared {
    fn from(extent: Extent) -> Self {
        Self {
            databases: extent.databases,
            tables: extent.tables,
            rows: extent.rows,
            sequences: extent.sequences,
            statements: extent.statements,
        }
    }
}

impl Report {
    /// How long nobody was served, in seconds, as far as this process or those before it saw it.
    pub fn downtime_seconds(&self) -> Option<f64> {
        Some(self.serving_at?.duration_since(self.stopped_at?).as_secs_f64())
    }
}

/// An upgrade as the journal has it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its id.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// The step begun last.
    pub step: String,
    /// Its plan.
    pub plan: UpgradePlan,
    /// What it found out.
    pub report: Report,
    /// When it began.
    pub started_at: Timestamp,
    /// When the journal was last written.
    pub updated_at: Timestamp,
}

impl Recorded {
    fn read(record: UpgradeRecord) -> Result<Self, OperationError> {
        let unreadable = |why: String| {
            OperationError::new(
                Exit::UpgradeNeedsOperator,
                format!("the journal of the upgrade of cluster \"{}\" cannot be read: {why}", record.cluster),
            )
            .next("use the pglife that wrote it, or a later one")
        };
        let plan: UpgradePlan = serde_json::from_str(&record.plan).map_err(|error| unreadable(error.to_string()))?;
        if plan.version > plan::PLAN_VERSION {
            return Err(unreadable(format!("its plan has version {}", plan.version)));
        }
        Ok(Self {
            phase: Phase::from_word(&record.phase).ok_or_else(|| unreadable(format!("phase {:?}", record.phase)))?,
            report: serde_json::from_str(&record.report).map_err(|error| unreadable(error.to_string()))?,
            id: record.id,
            step: record.step,
            plan,
            started_at: record.started_at,
            updated_at: record.updated_at,
        })
    }
}

/// The last upgrade of `cluster`, if there was one.
pub fn last(control: &ControlPlane, cluster: &ClusterName) -> Result<Option<Recorded>, OperationError> {
    let found = control.state.last_upgrade(cluster).map_err(failed("the journal of upgrades cannot be read"))?;
    found.map(Recorded::read).transpose()
}

pub(super) fn require_last(control: &ControlPlane, cluster: &ClusterName) -> Result<Recorded, OperationError> {
    last(control, cluster)?.ok_or_else(|| {
        OperationError::new(Exit::NotFound, format!("cluster \"{cluster}\" was never upgraded"))
            .next(format!("see what an upgrade would do: pglife upgrade {cluster} --to MAJOR --plan"))
    })
}

/// No upgrade may be open, and none that still keeps its old server.
pub(super) fn check_journal(control: &ControlPlane, policy: &Policy, what: &str) -> Result<(), OperationError> {
    let Some(last) = last(control, &policy.name)? else { return Ok(()) };
    let cluster = &policy.name;
    let refused = match last.phase {
        Phase::Open | Phase::Undoing | Phase::Committed => {
            OperationError::new(Exit::LockBusy, format!("{what}: the {} is open", last.plan))
                .next(format!("pglife upgrade resume {cluster}"))
        }
        Phase::Upgraded => {
            OperationError::new(Exit::Refused, format!("{what}: the server before the {} is still kept", last.plan))
                .next(format!("pglife upgrade finalize {cluster} --yes, or pglife upgrade rollback {cluster}"))
        }
        Phase::AsBefore | Phase::Finalized => return Ok(()),
    };
    Err(refused.safe("nothing was touched"))
}
