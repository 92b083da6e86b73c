//! What is to be done about a cluster's last upgrade without anybody asking for it. Pure.

use jiff::{SignedDuration, Timestamp};

use super::journal::Phase;
use super::record::Recorded;
use crate::policy::{Duration, Policy};

/// How long an open upgrade that nobody works on is left to whoever may be about to resume it.
const GRACE: SignedDuration = SignedDuration::from_secs(20);

/// Something that nobody has to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// An upgrade was cut: it is carried to its end.
    Resume,
    /// The time for which the policy keeps the old server is over.
    Finalize,
}

/// Where an upgrade stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) phase: Phase,
    /// When the journal was last written.
    pub(super) updated_at: Timestamp,
    /// When the new server answered.
    pub(super) serving_at: Option<Timestamp>,
}

impl Standing {
    pub(super) fn of(last: &Recorded) -> Self {
        Self { phase: last.phase, updated_at: last.updated_at, serving_at: last.report.serving_at }
    }

    /// Until when a policy that says `keep_old` keeps the old server.
    pub(super) fn kept_until(self, keep: Duration) -> Timestamp {
        self.serving_at.unwrap_or(self.updated_at).checked_add(keep.as_signed()).unwrap_or(Timestamp::MAX)
    }
}

/// What is overdue about `last`, if nobody works on the cluster.
pub fn overdue(policy: &Policy, last: &Recorded, now: Timestamp) -> Option<Overdue> {
    decide(policy, Standing::of(last), now)
}

fn decide(policy: &Policy, last: Standing, now: Timestamp) -> Option<Overdue> {
    if last.phase.goal().is_some() {
        return (now.duration_since(last.updated_at) >= GRACE).then_some(Overdue::Resume);
    }
    let keep = policy.upgrade.keep_old.filter(|_| last.phase == Phase::Upgraded)?;
    (now >= last.kept_until(keep)).then_some(Overdue::Finalize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::file;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn told(policy: &str, phase: Phase, now: i64) -> Option<Overdue> {
        let policy = file::example(&format!("[cluster]\nmajor = '17'\n{policy}"));
        decide(&policy, Standing { phase, updated_at: at(2000), serving_at: Some(at(1000)) }, at(now))
    }

    #[test]
    fn what_was_cut_goes_on_after_a_while() {
        for phase in [Phase::Open, Phase::Undoing, Phase::Committed] {
            assert_eq!(told("", phase, 2019), None);
            assert_eq!(told("", phase, 2020), Some(Overdue::Resume));
        }
        for phase in [Phase::AsBefore, Phase::Finalized] {
            assert_eq!(told("[upgrade]\nkeep_old = '1s'", phase, i64::from(u32::MAX)), None);
        }
    }

    #[test]
    fn the_old_server_goes_when_its_time_is_over_and_never_without_a_time() {
        assert_eq!(told("", Phase::Upgraded, i64::from(u32::MAX)), None);
        let keep = "[upgrade]\nkeep_old = '1h'";
        assert_eq!(told(keep, Phase::Upgraded, 4599), None);
        assert_eq!(told(keep, Phase::Upgraded, 4600), Some(Overdue::Finalize));
    }
}
