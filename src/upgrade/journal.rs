//! How far an upgrade is, and what is to be done next. Pure.
//!
//! ```text
//! open ──▶ committed ──▶ upgraded ──▶ finalized
//!   │                       │
//!   └──────▶ undoing ◀──────┘ (rollback)
//!               └──▶ as before
//! ```
//!
//! The journal holds the phase, which is an intention. What to do next is decided from what is seen in the world, each time
//! anew, so it does not matter where the last process died.

use std::fmt;

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Begun; the old server is the cluster.
    Open,
    /// Given up; everything goes back to what it was.
    Undoing,
    /// The new server is the cluster, whether it stands in its place yet or not.
    Committed,
    /// The new server serves; the old one is kept.
    Upgraded,
    /// The old server serves, as before.
    AsBefore,
    /// The old server is gone.
    Finalized,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Open, Self::Undoing, Self::Committed, Self::Upgraded, Self::AsBefore, Self::Finalized];

    /// Its word in the journal and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Undoing => "undoing",
            Self::Committed => "committed",
            Self::Upgraded => "upgraded",
            Self::AsBefore => "as-before",
            Self::Finalized => "finalized",
        }
    }

    /// The phase with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// Where a resume goes; None where nothing is open.
    pub fn goal(self) -> Option<Goal> {
        match self {
            Self::Open | Self::Undoing => Some(Goal::AsBefore),
            Self::Committed => Some(Goal::Upgraded),
            Self::Upgraded | Self::AsBefore | Self::Finalized => None,
        }
    }
}

/// Where an upgrade ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The old server serves, untouched.
    AsBefore,
    /// The new server serves.
    Upgraded,
}

/// Who is found under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// Nobody.
    Empty,
    /// The container that was there before the upgrade.
    Old {
        /// It runs.
        running: bool,
    },
    /// The container that this upgrade made.
    New {
        /// It runs.
        running: bool,
    },
    /// Somebody else's container.
    Stranger,
}

/// What is seen in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether one thing is there")]
pub struct Observed {
    /// Containers for work and proof are there.
    pub trials: bool,
    /// Under the database container's name.
    pub database: Seat,
    /// Under the data container's name; None where the cluster has none.
    pub data: Option<Seat>,
    /// The old database container is under the name for keeping.
    pub database_aside: bool,
    /// The old data container is under the name for keeping.
    pub data_aside: bool,
    /// The new data volume is there.
    pub new_volume: bool,
    /// The new data lie in a folder of the host, and the volume does no more than to say whose that is.
    pub in_folder: bool,
    /// The policy says what it says with the new server.
    pub policy_is_new: bool,
    /// It says something else with the old one.
    pub policy_changes: bool,
    /// The old server ran before.
    pub ran: bool,
    /// The old database container has its own restart policy, not `no`.
    pub restarts: bool,
    /// It had one other than `no` before.
    pub had_restarts: bool,
}

/// One thing to do; each can be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Remove the containers for work and proof.
    RemoveTrials,
    /// See to it that Docker does not start the old server by itself.
    ForbidRestart,
    /// Stop the old server in good order.
    StopOld,
    /// Rename the old database container.
    SetDatabaseAside,
    /// Rename the old data container.
    SetDataAside,
    /// Make the new data container.
    MakeData,
    /// Make the new database container, like the old one.
    MakeDatabase,
    /// Start it.
    StartNew,
    /// Write the new major into the policy.
    WritePolicy,
    /// Remove the new database container.
    RemoveNewDatabase,
    /// Remove the new data container.
    RemoveNewData,
    /// Give the old data container its name back.
    BringDataBack,
    /// Give the old database container its name back.
    BringDatabaseBack,
    /// Write the old major into the policy.
    RestorePolicy,
    /// Remove the new data volume.
    RemoveNewVolume,
    /// Give the old container its restart policy back.
    RestoreRestart,
    /// Start the old server.
    StartOld,
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::RemoveTrials => "remove-trials",
            Self::ForbidRestart => "forbid-restart",
            Self::StopOld => "stop-old",
            Self::SetDatabaseAside => "set-database-aside",
            Self::SetDataAside => "set-data-aside",
            Self::MakeData => "make-data",
            Self::MakeDatabase => "make-database",
            Self::StartNew => "start-new",
            Self::WritePolicy => "write-policy",
            Self::RemoveNewDatabase => "remove-new-database",
            Self::RemoveNewData => "remove-new-data",
            Self::BringDataBack => "bring-data-back",
            Self::BringDatabaseBack => "bring-database-back",
            Self::RestorePolicy => "restore-policy",
            Self::RemoveNewVolume => "remove-new-volume",
            Self::RestoreRestart => "restore-restart",
            Self::StartOld => "start-old",
        })
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This.
    Do(Action),
    /// Nothing: the goal is reached.
    Done,
    /// The world is not what this upgrade made or found: an operator must look at it.
    Stuck(&'static str),
}

/// What is to be done next on the way to `goal`.
pub fn next(goal: Goal, seen: Observed) -> Next {
    if seen.trials {
        return Next::Do(Action::RemoveTrials);
    }
    if seen.database == Seat::Stranger || seen.data == Some(Seat::Stranger) {
        return Next::Stuck("a container that is not of this cluster has one of its names");
    }
    match goal {
        Goal::AsBefore => backward(seen),
        Goal::Upgraded => forward(seen),
    }
}

fn forward(seen: Observed) -> Next {
    if !seen.new_volume && !seen.in_folder {
        return Next::Stuck("the new data volume is gone");
    }
    let action = match (seen.database, seen.data) {
        (Seat::Old { .. }, _) if seen.restarts => Action::ForbidRestart,
        (Seat::Old { running: true }, _) => Action::StopOld,
        (Seat::Old { running: false }, _) => Action::SetDatabaseAside,
        (_, Some(Seat::Old { .. })) => Action::SetDataAside,
        (_, Some(Seat::Empty)) => Action::MakeData,
        (Seat::Empty, _) if !seen.database_aside => {
            return Next::Stuck("the old database container, after which the new one is made, is gone");
        }
        (Seat::Empty, _) => Action::MakeDatabase,
        (Seat::New { running: false }, _) => Action::StartNew,
        _ if seen.policy_changes && !seen.policy_is_new => Action::WritePolicy,
        _ => return Next::Done,
    };
    Next::Do(action)
}

fn backward(seen: Observed) -> Next {
    let action = match (seen.database, seen.data) {
        (Seat::New { .. }, _) => Action::RemoveNewDatabase,
        (_, Some(Seat::New { .. })) => Action::RemoveNewData,
        (_, Some(Seat::Empty)) if seen.data_aside => Action::BringDataBack,
        (_, Some(Seat::Empty)) => return Next::Stuck("the old data container is gone"),
        (Seat::Empty, _) if seen.database_aside => Action::BringDatabaseBack,
        (Seat::Empty, _) => return Next::Stuck("the old database container is gone"),
        _ if seen.policy_changes && seen.policy_is_new => Action::RestorePolicy,
        // Before its start: one that fails at once would otherwise not be started again.
        _ if seen.had_restarts && !seen.restarts => Action::RestoreRestart,
        (Seat::Old { running: false }, _) if seen.ran => Action::StartOld,
        // The old server serves before anything is cleared away.
        _ if seen.new_volume => Action::RemoveNewVolume,
        _ => return Next::Done,
    };
    Next::Do(action)
}

#[cfg(test)]
mod tests;
