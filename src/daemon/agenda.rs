//! What is to be started now: a pure function of the policies, of the slots that were fired, and of the clock.
//!
//! A schedule that is seen for the first time, or that was changed, has nothing to make up for: the time it is first seen is
//! remembered as if a slot had fired then.

use jiff::Timestamp;

use crate::cluster::ClusterName;
use crate::policy::schedule::{Due, Slot};
use crate::policy::{Duration, Policy, Schedule, Task};
use crate::state::{Fired, FiredSlots};

/// One schedule of one cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'p> {
    /// The cluster.
    pub(super) cluster: &'p ClusterName,
    /// What is to be done.
    pub(super) task: Task,
    /// When.
    pub(super) schedule: &'p Schedule,
}

/// Every schedule of a policy.
pub(super) fn entries(policy: &Policy) -> impl Iterator<Item = Entry<'_>> {
    policy.schedules().map(|(task, schedule)| Entry { cluster: &policy.name, task, schedule })
}

/// A schedule as text: when this changes, earlier slots say nothing any more.
pub(super) fn signature(schedule: &Schedule) -> String {
    format!("{} {}", schedule.cron, schedule.timezone)
}

/// What is to be done about one schedule now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Wait,
    /// Remember the present as the beginning of this schedule.
    Begin,
    /// Remember the slot, then start the run.
    Start(Slot),
    /// Remember the slot, and tell that it was missed.
    Miss {
        /// The slot.
        slot: Slot,
        /// How late a start would be.
        lateness: Duration,
    },
}

/// Decides about one schedule.
pub(super) fn decide(entry: &Entry<'_>, fired: &FiredSlots, now: Timestamp) -> Step {
    let signature = signature(entry.schedule);
    let known = fired.get(&(entry.cluster.clone(), entry.task.as_str().to_owned()));
    let last = known.filter(|known| known.schedule == signature).map(|known| known.at);
    match (entry.schedule.due(last, now), last) {
        (Due::Run { slot }, _) => Step::Start(slot),
        (Due::Missed { slot, lateness }, Some(_)) => Step::Miss { slot, lateness },
        (Due::Wait { .. } | Due::Missed { .. }, None) => Step::Begin,
        (Due::Wait { .. }, Some(_)) => Step::Wait,
    }
}

/// What is remembered when a step is taken; nothing where nothing happens.
pub(super) fn remembered(entry: &Entry<'_>, step: Step, now: Timestamp) -> Option<Fired> {
    let at = match step {
        Step::Wait => return None,
        // Starts are slots moved by the delay: a slot whose start is still to come is not in the past.
        Step::Begin => now.checked_sub(entry.schedule.delay().as_signed()).unwrap_or(now),
        Step::Start(slot) | Step::Miss { slot, .. } => slot.at,
    };
    Some(Fired { schedule: signature(entry.schedule), at })
}

#[cfg(test)]
mod tests;
