//! From a slot that is due to what came of its run: remembered on disk and in Consul before it starts, counted and told after it.

use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinError;

use super::admission::{Claim, ClaimKind, Limits, admit};
use super::agenda::{Step, decide, entries, remembered};
use super::jobs::{self, Ended, Job, Taken};
use super::keeper::share;
use super::{Daemon, announce};
use crate::cluster::ClusterName;
use crate::policy::{Policy, Task};
use crate::state::{Fired, Operation};
use crate::status::board::{Role, Running};

impl Daemon {
    /// Starts what is due and has room.
    pub(super) async fn start_due(&mut self, now: Timestamp) {
        let control = Arc::clone(&self.control);
        let daemon = &control.configuration.settings.daemon;
        let limits = Limits { per_host: daemon.runs_per_host, per_repository: daemon.runs_per_repository };
        for policy in control.configuration.policies.values() {
            for entry in entries(policy) {
                let step = decide(&entry, &self.fired, now);
                let Some(remember) = remembered(&entry, step, now) else { continue };
                let claim = claim(policy, entry.task);
                if let Step::Start(_) = step {
                    let running: Vec<Claim> = self.claims.values().cloned().collect();
                    if let Err(refusal) = admit(&running, &claim, limits) {
                        tracing::debug!(cluster = %policy.name, task = %entry.task, "waits: {refusal}");
                        continue;
                    }
                    if control.state.is_busy(&claim.cluster) {
                        tracing::debug!(cluster = %policy.name, task = %entry.task, "waits: a command works on it");
                        continue;
                    }
                }
                let before = self.remember(&policy.name, entry.task, remember);
                let Ok(before) = before else { continue };
                if !self.share(&policy.name).await && matches!(step, Step::Start(_)) {
                    // Another daemon could take over and not know of it; so it is as if it had not been looked at.
                    self.forget(&policy.name, entry.task, before);
                    return;
                }
                match step {
                    Step::Start(slot) => {
                        self.start(policy, entry.task, claim, Some(Taken { slot: slot.at, before }), now);
                    }
                    Step::Miss { slot, lateness } => {
                        let text = format!(
                            "the {} of {} was missed: a start would be {lateness} late; the next one is on time",
                            entry.task,
                            entry.schedule.timezone.show(slot.at)
                        );
                        self.count(&policy.name, entry.task, "missed");
                        let kind = if claim.kind == ClaimKind::Drill { "drill.missed" } else { "backup.missed" };
                        self.event(Some(&policy.name), kind, &text);
                    }
                    Step::Wait | Step::Begin => {}
                }
            }
        }
    }

    /// Remembers a slot on disk, and returns what was remembered before: of a schedule that is new, that it was there just before
    /// the slot. Without that nothing may start.
    fn remember(&mut self, cluster: &ClusterName, task: Task, fired: Fired) -> Result<Fired, ()> {
        if let Err(error) = self.control.state.set_fired(cluster, task.as_str(), &fired) {
            if self
                .board
                .flag("state", Some(format!("nothing is started, because its slot cannot be remembered: {error}")))
            {
                tracing::error!(%cluster, %task, "a slot cannot be remembered, so nothing is started: {error}");
            }
            return Err(());
        }
        self.board.flag("state", None);
        let at = fired.at.checked_sub(SignedDuration::from_secs(1)).unwrap_or(fired.at);
        let new = Fired { schedule: fired.schedule.clone(), at };
        let before = self.fired.insert((cluster.clone(), task.as_str().to_owned()), fired);
        Ok(before.filter(|before| before.schedule == new.schedule).unwrap_or(new))
    }

    /// Takes back what was remembered: nothing was started.
    fn forget(&mut self, cluster: &ClusterName, task: Task, before: Fired) {
        if self.control.state.set_fired(cluster, task.as_str(), &before).is_ok() {
            self.fired.insert((cluster.clone(), task.as_str().to_owned()), before);
        }
    }

    /// Puts the slots of a cluster where the next leader finds them; true where there is no need to.
    pub(super) async fn share(&mut self, cluster: &ClusterName) -> bool {
        let control = Arc::clone(&self.control);
        let Some(consul) = &control.consul else { return true };
        if self.board.read().role != Role::Leader {
            self.unannounced = true;
            return true;
        }
        let instance = self.board.read().instance;
        share(consul, &self.fence, &instance, cluster, &self.fired).await
    }

    pub(super) fn start(&mut self, policy: &Policy, task: Task, claim: Claim, taken: Option<Taken>, now: Timestamp) {
        self.claims.insert((policy.name.clone(), task), claim);
        self.board.change(|snapshot| {
            snapshot.running.push(Running {
                cluster: policy.name.clone(),
                task: task.as_str(),
                started_at: now,
                step: "starting".to_owned(),
                plain_bytes: 0,
                stored_bytes: 0,
                expected_bytes: None,
            });
        });
        tracing::info!(cluster = %policy.name, %task, slot = jobs::shown(taken.as_ref()), "a run starts");
        self.announcer.tell(announce::News::Begins(policy.name.clone(), task.as_str()));
        let job = Job {
            control: Arc::clone(&self.control),
            board: Arc::clone(&self.board),
            policy: policy.clone(),
            task,
            taken,
        };
        let handle = tokio::runtime::Handle::current();
        // A thread of its own: pruning and listing block.
        self.jobs.spawn_blocking(move || handle.block_on(jobs::run(job)));
    }

    pub(super) async fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A panic; its claim cannot be told from the others', so the daemon's own end is the honest answer.
                tracing::error!("a run ended in a panic: {error}");
                self.event(None, "daemon.failed", &format!("a run ended in a panic: {error}"));
                std::panic::resume_unwind(error.into_panic());
            }
        };
        let Ended { cluster, task, outcome, taken, seconds } = ended;
        self.claims.remove(&(cluster.clone(), task));
        self.board.change(|snapshot| {
            snapshot.running.retain(|running| running.cluster != cluster || running.task != task.as_str());
        });
        match outcome {
            // Somebody was quicker: the slot is still to be run.
            jobs::Outcome::Busy => {
                let slot = jobs::shown(taken.as_ref());
                tracing::info!(%cluster, %task, slot, "another run works on the cluster; it is tried again");
                if let Some(taken) = taken {
                    self.forget(&cluster, task, taken.before);
                    // Else another daemon that takes over would take it for done.
                    self.share(&cluster).await;
                }
                if task == Task::Upgrade {
                    self.upgrades.outrun(&cluster);
                }
            }
            jobs::Outcome::Done(reports) => {
                for report in &reports {
                    if task == Task::Upgrade {
                        self.upgrades.ended(&cluster, report, Instant::now());
                    }
                    if report.is_main {
                        let good = matches!(report.result, "ok" | "warnings" | "proven");
                        let ended = announce::News::Ended(cluster.clone(), task.as_str(), good, report.text.clone());
                        self.announcer.tell(ended);
                        self.count(&cluster, task, report.result);
                        if good {
                            self.board.change(|snapshot| {
                                snapshot.durations.insert((cluster.clone(), task.as_str()), seconds);
                            });
                        }
                    }
                    if let Some(kind) = report.kind {
                        self.event(Some(&cluster), kind, &report.text);
                    }
                }
            }
        }
        self.looked = None;
    }

    fn count(&self, cluster: &ClusterName, task: Task, result: &'static str) {
        self.board.change(|snapshot| {
            *snapshot.ended.entry((cluster.clone(), task.as_str(), result)).or_default() += 1;
        });
    }
}

/// What a run takes up.
pub(super) fn claim(policy: &Policy, task: Task) -> Claim {
    let (kind, operation) = match task {
        Task::Drill | Task::Rehearsal => (ClaimKind::Drill, Operation::Drill),
        Task::Dump | Task::Volume | Task::Verify | Task::Upgrade => (ClaimKind::Backup, Operation::Dump),
    };
    Claim {
        cluster: operation.locks(&policy.name),
        host: policy.host.clone(),
        repositories: policy.dump.repositories.clone(),
        kind,
    }
}
