//! Does what [`super::decide`] decides, and tells of it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::decide::{FLAPPING, Memory, Seen, Step, decide};
use super::shared::Shared;
use super::{COMPOSE_PROJECT, Dependent, Follower, compose_project, find};
use crate::control::{ControlPlane, OperationError, failed};
use crate::docker::{Container, DockerError, Engine, label};
use crate::exit::Exit;
use crate::policy::{OnDown, Policy};
use crate::state::HeldLock;
use crate::state::dependents::{Taken, TakenHow};

/// More steps than a cluster has containers come from something that undoes what we do.
const MOST_STEPS: usize = 200;
/// How long those that come back are waited for when a command asks for it.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// The dependents of one cluster.
#[derive(Debug)]
pub struct Dependents<'a> {
    /// The control plane.
    pub control: &'a ControlPlane,
    /// The cluster's host.
    pub engine: &'a Engine,
    /// The cluster.
    pub policy: &'a Policy,
    /// Where others are told; only a daemon that leads does.
    pub shared: Option<&'a Shared<'a>>,
}

/// What a look finds.
#[derive(Debug)]
pub struct Look {
    /// How the database is.
    pub database: Seen,
    /// Its container, where there is one.
    container: Option<Container>,
    /// Who follows it, in the order in which they come back.
    pub followers: Vec<Follower>,
    /// What was taken down and is not back.
    pub taken: Vec<Taken>,
}

impl Look {
    /// Those that go down with the database, in that order: they run, and nobody has taken them down already.
    pub fn would_go_down(&self) -> impl Iterator<Item = &Follower> {
        self.followers.iter().rev().filter(|follower| {
            let is_taken = self.taken.iter().any(|taken| taken.name == follower.name);
            follower.on_down != OnDown::Nothing && !is_taken && follower.running && !follower.paused
        })
    }

    /// Who follows it, as it is shown.
    pub fn listed(self) -> Vec<Dependent> {
        let listed = self.followers.into_iter().map(|follower| {
            let taken = self.taken.iter().find(|taken| taken.name == follower.name);
            Dependent {
                order: follower.order,
                state: follower.health.filter(|_| follower.running).unwrap_or(follower.status),
                on_down: follower.on_down.as_str(),
                on_up: follower.on_up.as_str(),
                down_since: taken.map(|taken| taken.at),
                reason: taken.map(|taken| taken.reason.clone()),
                problem: follower.problem,
                container: follower.name,
            }
        });
        listed.collect()
    }
}

impl Dependents<'_> {
    /// Looks at the database and at who follows it.
    pub async fn look(&self) -> Result<Look, OperationError> {
        self.look_again(None).await
    }

    /// The same, with the container that was seen last: where it is gone, its labels still say who depends on its service.
    async fn look_again(&self, before: Option<&Container>) -> Result<Look, OperationError> {
        let what = || format!("the dependents of cluster \"{}\" cannot be looked at", self.policy.name);
        let cannot = |error: DockerError| failed(what())(error);
        let database = self.engine.container(self.policy.container.as_str()).await.map_err(cannot)?;
        let mut found = BTreeMap::new();
        for container in self.engine.containers_labelled(&[label::DEPENDS_ON]).await.map_err(cannot)? {
            found.insert(container.id.clone(), container);
        }
        let labelled = database.as_ref().or(before);
        let project = labelled.filter(|_| self.policy.dependents.compose).and_then(compose_project);
        if let Some(project) = project {
            let of_project = format!("{COMPOSE_PROJECT}={project}");
            for container in self.engine.containers_labelled(&[&of_project]).await.map_err(cannot)? {
                found.insert(container.id.clone(), container);
            }
        }
        // A daemon in a container must not take itself down.
        let own = own_container(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let all: Vec<_> = found.into_values().filter(|container| own.as_ref() != Some(&container.id)).collect();
        let taken = self.control.state.taken_down(&self.policy.name).map_err(failed(what()))?;
        let mut followers = find(&self.policy.name, labelled, &all, self.policy.dependents);
        // A process that never saw the database does not know its compose project; who was taken down follows all the same.
        let is_missing = |taken: &&Taken| followers.iter().all(|follower| follower.name != taken.name);
        let missing: Vec<&Taken> = taken.iter().filter(is_missing).collect();
        for taken in missing {
            if let Some(container) = self.engine.container(&taken.name).await.map_err(cannot)? {
                followers.push(super::follower(&self.policy.name, &container, 0, self.policy.dependents));
            }
        }
        Ok(Look { database: Seen::of(database.as_ref()), container: database, followers, taken })
    }

    /// Does what is to be done, one thing after the other, until nothing is left. Returns when to look again, if something is due.
    pub async fn settle(&self, memory: &mut Memory) -> Result<Option<Timestamp>, OperationError> {
        let Some(_alone) = self.control.state.lock_dependents(&self.policy.name).map_err(self.failed())? else {
            return Ok(Some(Timestamp::now() + SignedDuration::from_secs(1)));
        };
        for _ in 0..MOST_STEPS {
            if self.control.cancel.is_cancelled() {
                return Ok(None);
            }
            if self.are_an_upgrades()? {
                // What was known is of the server before.
                *memory = Memory::default();
                return Ok(None);
            }
            let mut look = self.look_again(memory.container.as_ref()).await?;
            if let Some(container) = look.container.take() {
                memory.container = Some(container);
            }
            let now = Timestamp::now();
            match decide(memory, &look.database, &look.followers, &look.taken, now) {
                Step::Nothing => return Ok(None),
                Step::Wait(until) => return Ok(Some(until)),
                step => self.apply(step, &look.followers, memory).await?,
            }
        }
        Ok(Some(Timestamp::now() + SignedDuration::from_secs(30)))
    }

    /// An upgrade takes them down and brings them back itself, from the stop of the old server on.
    fn are_an_upgrades(&self) -> Result<bool, OperationError> {
        let last = self.control.state.last_upgrade(&self.policy.name);
        let last = last.map_err(failed("the journal of upgrades cannot be read"))?;
        Ok(last.is_some_and(|upgrade| upgrade.has_the_dependents()))
    }

    async fn apply(&self, step: Step, followers: &[Follower], memory: &mut Memory) -> Result<(), OperationError> {
        let now = Timestamp::now();
        match step {
            Step::Nothing | Step::Wait(_) => {}
            Step::TakeDown { name, how, running, remember, reason } => {
                let Some(follower) = followers.iter().find(|follower| follower.name == name) else { return Ok(()) };
                let downs = memory.recent_downs(now);
                if downs >= FLAPPING && followers.last().is_some_and(|last| last.name == name) {
                    let text = format!(
                        "the database went down {downs} times within 10 minutes; its dependents come back later each time"
                    );
                    self.event("dependent.flapping", &text);
                }
                if let Err(error) = self.take_down(follower, how, running, remember, &reason).await {
                    self.event("dependent.failed", &format!("{name} could not be taken down: {}", error.chain()));
                }
            }
            Step::BringBack(taken) => match self.bring_back(&taken, followers).await {
                Ok(None) => memory.is_back(&taken.name, now),
                Ok(Some(other)) => {
                    if memory.put_off(&taken.name, now) {
                        let text = format!("{}: it depends on \"{other}\" too, which does not serve", taken.name);
                        self.event("dependent.waits", &text);
                    }
                }
                Err(error) => {
                    if memory.has_failed(&taken.name, now) {
                        let text = format!("{} could not be started; it is tried again: {}", taken.name, error.chain());
                        self.event("dependent.failed", &text);
                    }
                }
            },
            Step::Restart(name) => {
                let done = async {
                    self.engine.stop_gently(&name).await?;
                    self.engine.start(&name).await
                };
                match done.await.map_err(self.failed()) {
                    Ok(()) => {
                        memory.is_back(&name, now);
                        self.event("dependent.restarted", &format!("{name}: the database was restarted"));
                    }
                    Err(error) => {
                        self.event("dependent.failed", &format!("{name} could not be restarted: {}", error.chain()));
                    }
                }
            }
            Step::Forget { name, reason } => {
                self.is_not_ours(&name).await?;
                self.event("dependent.left", &format!("{name}: {reason}"));
            }
        }
        Ok(())
    }

    async fn take_down(
        &self,
        follower: &Follower,
        how: TakenHow,
        running: bool,
        remember: bool,
        reason: &str,
    ) -> Result<(), OperationError> {
        let name = &follower.name;
        if remember {
            let (id, reason) = (follower.id.clone(), reason.to_owned());
            let taken = Taken { name: name.clone(), id, how, at: Timestamp::now(), reason };
            self.control.state.take_down(&self.policy.name, &taken).map_err(self.failed())?;
            self.tell_others().await;
        }
        if !running {
            self.event("dependent.ended", &format!("{name} ended by itself; {reason}"));
            return Ok(());
        }
        match how {
            TakenHow::Stopped => self.engine.stop_gently(name).await.map_err(self.failed())?,
            TakenHow::Paused => self.engine.pause(name).await.map_err(self.failed())?,
        }
        self.event(&format!("dependent.{}", how.as_str()), &format!("{name}: {reason}"));
        Ok(())
    }

    /// It is back, by us or somebody else.
    async fn is_not_ours(&self, name: &str) -> Result<(), OperationError> {
        self.control.state.brought_back(&self.policy.name, name).map_err(self.failed())?;
        self.tell_others().await;
        Ok(())
    }

    async fn tell_others(&self) {
        if let Some(shared) = self.shared {
            shared.tell(&self.control.state, &self.policy.name).await;
        }
    }

    /// Another cluster that it depends on, and that does not serve.
    async fn other_that_is_down(
        &self,
        taken: &Taken,
        followers: &[Follower],
    ) -> Result<Option<String>, OperationError> {
        let Some(follower) = followers.iter().find(|follower| follower.name == taken.name) else { return Ok(None) };
        let policies = &self.control.configuration.policies;
        for other in policies.values().filter(|other| follower.others.iter().any(|name| *name == other.name.as_str())) {
            // On another host it is another container's dependent of the same name.
            if other.host == self.policy.host {
                let container = self.engine.container(other.container.as_str()).await.map_err(self.failed())?;
                if !matches!(Seen::of(container.as_ref()), Seen::Up { .. }) {
                    return Ok(Some(other.name.to_string()));
                }
            }
        }
        Ok(None)
    }

    /// Brings it back; or names another cluster that must serve first.
    async fn bring_back(&self, taken: &Taken, followers: &[Follower]) -> Result<Option<String>, OperationError> {
        if let Some(other) = self.other_that_is_down(taken, followers).await? {
            return Ok(Some(other));
        }
        match taken.how {
            TakenHow::Stopped => self.engine.start(&taken.name).await.map_err(self.failed())?,
            TakenHow::Paused => self.engine.unpause(&taken.name).await.map_err(self.failed())?,
        }
        self.is_not_ours(&taken.name).await?;
        let word = if taken.how == TakenHow::Paused { "unpaused" } else { "started" };
        self.event(
            &format!("dependent.{word}"),
            &format!("{}: the database serves; down since {}", taken.name, taken.at),
        );
        Ok(None)
    }

    /// Keeps everybody else from them, the daemon for one, until what it returns is dropped.
    pub async fn alone(&self) -> Result<HeldLock, OperationError> {
        let deadline = Timestamp::now() + PATIENCE;
        loop {
            match self.control.state.lock_dependents(&self.policy.name).map_err(self.failed())? {
                Some(held) => return Ok(held),
                None if Timestamp::now() > deadline => {
                    let what = format!("another pglife works on the dependents of cluster \"{}\"", self.policy.name);
                    return Err(
                        OperationError::new(Exit::LockBusy, what).next("see what it does: pglife events --follow")
                    );
                }
                None => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Takes all of them down, the last first. What cannot be stopped is an error, and those before it stay up.
    pub async fn take_all_down(&self, reason: &str) -> Result<usize, OperationError> {
        let look = self.look().await?;
        let mut count = 0;
        for follower in look.would_go_down() {
            self.take_down(follower, follower.how(), true, follower.comes_back(), reason).await?;
            count += 1;
        }
        Ok(count)
    }

    /// Brings back all that were taken down, the first first, each waited for until it is healthy. What cannot be brought back is
    /// named at the end.
    pub async fn bring_all_back(&self) -> Result<usize, OperationError> {
        let (mut memory, mut count) = (Memory::default(), 0);
        let mut troubles: Vec<String> = Vec::new();
        let deadline = Timestamp::now() + PATIENCE;
        loop {
            let look = self.look().await?;
            let now = Timestamp::now();
            if look.taken.iter().all(|taken| troubles.iter().any(|trouble| trouble.starts_with(&taken.name))) {
                break;
            }
            let step = decide(&mut memory, &look.database, &look.followers, &look.taken, now);
            match step {
                Step::BringBack(taken) => match self.bring_back(&taken, &look.followers).await {
                    Ok(None) => {
                        memory.is_back(&taken.name, now);
                        count += 1;
                    }
                    Ok(Some(other)) => {
                        memory.put_off(&taken.name, now);
                        troubles.push(format!("{}: it depends on \"{other}\" too, which does not serve", taken.name));
                    }
                    Err(error) => {
                        memory.has_failed(&taken.name, now);
                        troubles.push(format!("{}: {}", taken.name, error.chain()));
                    }
                },
                Step::Forget { .. } => self.apply(step, &look.followers, &mut memory).await?,
                _ if now > deadline => {
                    let left: Vec<&str> = look.taken.iter().map(|taken| taken.name.as_str()).collect();
                    troubles.push(format!("{}: the database did not serve in time", left.join(", ")));
                    break;
                }
                _ => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
        if troubles.is_empty() {
            return Ok(count);
        }
        let what = format!("dependents of cluster \"{}\" are not back: {}", self.policy.name, troubles.join("; "));
        Err(OperationError::new(Exit::Failed, what)
            .safe("the cluster itself is not touched by this")
            .next(format!("pglife deps list {}; then docker start them, or pglife deps restart", self.policy.name)))
    }

    fn failed<E: crate::control::Advise>(&self) -> impl FnOnce(E) -> OperationError + use<E> {
        failed(format!("a dependent of cluster \"{}\" could not be changed", self.policy.name))
    }

    fn event(&self, kind: &str, text: &str) {
        tracing::info!(cluster = %self.policy.name, "{kind}: {text}");
        let recorded = self.control.state.record_event(Timestamp::now(), Some(&self.policy.name), kind, text);
        if let Err(error) = recorded {
            tracing::warn!("an event could not be recorded: {error}");
        }
    }
}

/// The id of the container that this process is in: Docker mounts its files over `/etc/hostname`. None outside of one.
fn own_container(mounts: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/etc/hostname"))?;
    let id = line.split(' ').nth(3)?.split("/containers/").nth(1)?.split('/').next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_the_container_it_is_in() {
        let id = "0a".repeat(32);
        let inside = format!(
            "812 700 0:49 / / rw - fuse.overlay overlay rw\n830 812 254:0 /var/lib/docker/containers/{id}/hostname \
             /etc/hostname rw,relatime - ext4 /dev/vda rw\n"
        );
        assert_eq!(own_container(&inside), Some(id.clone()));
        // On the machine itself Docker's mounts are seen too, but not there.
        let outside = format!("90 25 0:51 / /var/lib/docker/containers/{id}/mounts/shm rw - tmpfs shm rw\n");
        assert_eq!(own_container(&outside), None);
        assert_eq!(own_container(""), None);
    }
}
