//! Dependents follow their clusters: a task for each cluster looks, and has [`dependents`] decide; a task for each host listens to
//! its engine's events, and has the others look sooner.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::keeper::Fence;
use crate::cluster::HostName;
use crate::control::{ControlPlane, OperationError, failed};
use crate::dependents::act::Dependents;
use crate::dependents::decide::Memory;
use crate::dependents::shared::Shared;
use crate::docker::Engine;
use crate::policy::Policy;
use crate::status::board::{Board, Role};

/// How often each cluster is looked at, whatever the events say.
const LOOK: Duration = Duration::from_secs(10);
/// Events come in showers.
const SHOWER: Duration = Duration::from_millis(200);
/// When Consul is asked again that did not say what the daemon before took down.
const AGAIN: SignedDuration = SignedDuration::from_secs(3);
/// How soon an engine that went away is tried again, and how late at most.
const RECONNECT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// What is heard from a host: how often something happened, and how often the engine went away.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    events: u64,
    ends: u64,
}

/// Watches with the newest of `controls` until `cancel`.
pub(super) async fn run(
    mut controls: watch::Receiver<Arc<ControlPlane>>,
    board: Arc<Board>,
    fence: Arc<Fence>,
    cancel: CancellationToken,
) {
    while !cancel.is_cancelled() {
        let control = Arc::clone(&controls.borrow_and_update());
        let round = cancel.child_token();
        let mut tasks = JoinSet::new();
        let mut hosts: BTreeMap<HostName, watch::Sender<Heard>> = BTreeMap::new();
        for policy in control.configuration.policies.values() {
            let happened =
                hosts.entry(policy.host.clone()).or_insert_with(|| watch::Sender::new(Heard::default())).subscribe();
            let watcher = Watcher {
                control: Arc::clone(&control),
                policy: policy.clone(),
                board: Arc::clone(&board),
                fence: Arc::clone(&fence),
                engine: None,
                memory: Memory::default(),
                knows_of_others: false,
            };
            tasks.spawn(watcher.run(happened, round.clone()));
        }
        for (host, happens) in hosts {
            tasks.spawn(listen(Arc::clone(&control), host, happens, round.clone()));
        }
        // Nothing is dropped half-way: each task ends between two steps.
        tokio::select! {
            changed = controls.changed() => if changed.is_err() { cancel.cancel() },
            () = cancel.cancelled() => {}
        }
        round.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

/// Listens to the events of a host; after each interruption everything is looked at anew.
async fn listen(control: Arc<ControlPlane>, host: HostName, happens: watch::Sender<Heard>, cancel: CancellationToken) {
    let mut pause = RECONNECT[0];
    while !cancel.is_cancelled() {
        // An event between the look and the first one that is heard must not be lost.
        let since = Timestamp::now() - SignedDuration::from_secs(1);
        if let Ok(engine) = control.engine(&host).await {
            let mut events = Box::pin(engine.container_events(since));
            happens.send_modify(|heard| heard.events += 1);
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = cancel.cancelled() => return,
                };
                match event {
                    Some(Ok(name)) => {
                        tracing::trace!(%host, name, "something happened to a container");
                        happens.send_modify(|heard| heard.events += 1);
                        pause = RECONNECT[0];
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%host, "events end: {error}");
                        break;
                    }
                    None => break,
                }
            }
            happens.send_modify(|heard| heard.ends += 1);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
        pause = (pause * 2).min(RECONNECT[1]);
    }
}

/// Has the dependents of a cluster follow it.
struct Watcher {
    control: Arc<ControlPlane>,
    policy: Policy,
    board: Arc<Board>,
    fence: Arc<Fence>,
    engine: Option<Engine>,
    memory: Memory,
    /// What the daemon that led before took down is known.
    knows_of_others: bool,
}

impl Watcher {
    async fn run(mut self, mut happened: watch::Receiver<Heard>, cancel: CancellationToken) {
        let mut ends = happened.borrow().ends;
        while !cancel.is_cancelled() {
            let heard = *happened.borrow_and_update();
            if std::mem::replace(&mut ends, heard.ends) != heard.ends {
                self.memory.engine_is_away(Timestamp::now());
            }
            let wait = self.look().await;
            tokio::select! {
                () = tokio::time::sleep(wait) => continue,
                changed = happened.changed() => if changed.is_err() { return },
                () = cancel.cancelled() => return,
            }
            tokio::time::sleep(SHOWER).await;
            happened.mark_unchanged();
        }
    }

    /// Does what is to be done. How long nothing more is, if nothing happens.
    async fn look(&mut self) -> Duration {
        if self.board.read().role == Role::Standby {
            // Another daemon watches; what this one knew is of no use when it takes over.
            self.memory = Memory::default();
            self.knows_of_others = false;
            return LOOK;
        }
        match self.settle().await {
            Ok(Some(until)) => until.duration_since(Timestamp::now()).unsigned_abs().min(LOOK),
            Ok(None) => LOOK,
            Err(error) => {
                tracing::debug!(cluster = %self.policy.name, "{}", error.chain());
                self.engine = None;
                self.memory.engine_is_away(Timestamp::now());
                LOOK
            }
        }
    }

    async fn settle(&mut self) -> Result<Option<Timestamp>, OperationError> {
        let (control, policy) = (&*self.control, &self.policy);
        let told = self.board.read();
        let session = self.fence.session().filter(|_| told.consul_up == Some(true));
        let shared = control.consul.as_deref().zip(session.as_ref()).map(|(consul, session)| Shared {
            consul,
            instance: &told.instance,
            session,
            is_silent: AtomicBool::new(false),
        });
        match &shared {
            Some(shared) if !self.knows_of_others => {
                if let Err(error) = shared.take_over(&control.state, &policy.name).await {
                    tracing::warn!("{}", error.chain());
                    return Ok(Some(Timestamp::now() + AGAIN));
                }
                self.knows_of_others = true;
            }
            Some(_) => {}
            // Without Consul this one is on its own.
            None => self.knows_of_others = false,
        }
        let engine = match &mut self.engine {
            Some(engine) => engine,
            None => self.engine.insert(control.engine(&policy.host).await.map_err(failed("its host cannot be used"))?),
        };
        let settled = Dependents { control, engine, policy, shared: shared.as_ref() }.settle(&mut self.memory).await;
        self.knows_of_others &= shared.is_some_and(|shared| !shared.is_silent.into_inner());
        settled
    }
}
