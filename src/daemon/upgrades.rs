//! Upgrades that were cut, and servers before an upgrade whose time is over: when the daemon turns to them.
//!
//! Whoever works on a cluster, or resumes its upgrade by hand, is not raced; what could not be done is not tried all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Daemon;
use super::jobs::{KEPT, Report};
use super::runs::claim;
use crate::cluster::ClusterName;
use crate::control::ControlPlane;
use crate::policy::{Policy, Task};
use crate::upgrade;

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How long a cluster that somebody worked on is left alone.
const GRACE: Duration = Duration::from_secs(20);
/// What could not be done is tried again after so long, and what was refused after so much longer.
const AGAIN: Duration = Duration::from_secs(600);
const REFUSED: Duration = Duration::from_secs(6 * 3600);

/// Which clusters are left alone until when. Pure: it is told the time.
#[derive(Debug, Default)]
pub(super) struct Patience {
    looked: Option<Instant>,
    later: BTreeMap<ClusterName, Instant>,
}

impl Patience {
    /// True once for each [`LOOK`].
    fn is_time(&mut self, now: Instant) -> bool {
        let is_time = self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK);
        if is_time {
            self.looked = Some(now);
        }
        is_time
    }

    /// Somebody works on the cluster.
    fn busy(&mut self, cluster: &ClusterName, now: Instant) {
        let later = self.later.entry(cluster.clone()).or_insert(now);
        *later = (*later).max(now + GRACE);
    }

    fn started(&mut self, cluster: &ClusterName, now: Instant) {
        self.later.insert(cluster.clone(), now + AGAIN);
    }

    fn is_left_alone(&self, cluster: &ClusterName, now: Instant) -> bool {
        self.later.get(cluster).is_some_and(|later| now < *later)
    }

    /// Nothing was done, because somebody was quicker.
    pub(super) fn outrun(&mut self, cluster: &ClusterName) {
        self.later.remove(cluster);
    }

    /// What came of it.
    pub(super) fn ended(&mut self, cluster: &ClusterName, report: &Report, now: Instant) {
        if report.kind == Some(KEPT) {
            self.later.insert(cluster.clone(), now + REFUSED);
        } else if report.result != "failed" {
            self.later.remove(cluster);
        }
    }
}

impl Daemon {
    /// Starts what is overdue, if it is time to look. The journal is on this machine: nobody else can do it, whoever leads.
    pub(super) fn see_to_upgrades(&mut self, now: Timestamp) {
        if !self.upgrades.is_time(Instant::now()) {
            return;
        }
        let control = Arc::clone(&self.control);
        for policy in control.configuration.policies.values() {
            if control.state.is_busy(&policy.name) {
                self.upgrades.busy(&policy.name, Instant::now());
            } else if !self.upgrades.is_left_alone(&policy.name, Instant::now()) && is_overdue(&control, policy, now) {
                self.upgrades.started(&policy.name, Instant::now());
                self.start(policy, Task::Upgrade, claim(policy, Task::Upgrade), None, now);
            }
        }
    }
}

fn is_overdue(control: &ControlPlane, policy: &Policy, now: Timestamp) -> bool {
    match upgrade::last(control, &policy.name) {
        Ok(last) => last.is_some_and(|last| upgrade::overdue(policy, &last, now).is_some()),
        Err(error) => {
            tracing::warn!(cluster = %policy.name, "{}", error.chain());
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_works_on_a_cluster_is_not_raced_and_a_refusal_is_not_repeated_soon() {
        let (cluster, begin) = (ClusterName::new("chado").expect("a name"), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut patience = Patience::default();
        assert!(patience.is_time(at(0)) && !patience.is_time(at(9)) && patience.is_time(at(10)));
        assert!(!patience.is_left_alone(&cluster, at(0)));
        patience.busy(&cluster, at(0));
        assert!(patience.is_left_alone(&cluster, at(19)) && !patience.is_left_alone(&cluster, at(20)));
        // Another run does not shorten the wait after a start.
        patience.started(&cluster, at(20));
        patience.busy(&cluster, at(30));
        assert!(patience.is_left_alone(&cluster, at(619)) && !patience.is_left_alone(&cluster, at(620)));
        let report = |kind, result| Report { kind: Some(kind), result, text: String::new(), is_main: true };
        patience.ended(&cluster, &report("upgrade.failed", "failed"), at(620));
        patience.started(&cluster, at(620));
        patience.ended(&cluster, &report(KEPT, "warnings"), at(630));
        assert!(patience.is_left_alone(&cluster, at(630 + 6 * 3600 - 1)));
        patience.ended(&cluster, &report("upgrade.resumed", "ok"), at(640));
        assert!(!patience.is_left_alone(&cluster, at(641)));
    }
}
