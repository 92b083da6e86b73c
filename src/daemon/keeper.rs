//! Keeps Consul told: who leads, what the checks say, what is known of the backups. Everything it says is on the board.
//!
//! ```text
//! every 10 s:  session renewed, lock held? ─▶ role ─▶ the loop (with the slots that others fired)
//! every 30 s, and when a verdict changed:  services there? ─▶ register what is missing ─▶ speak for every check ─▶ KV
//! ```
//!
//! Freshness is on services of pglife's own, never on the node and never on the database's service: a stale backup must not take
//! a database out of DNS. Its services stay when the daemon ends: when nobody speaks for them, the checks turn critical.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lease::{Lease, Standing, next};
use crate::causes;
use crate::cluster::ClusterName;
use crate::consul::service::{Check, Others, Service, Status};
use crate::consul::session::{RENEW, SessionId};
use crate::consul::{Consul, ConsulError};
use crate::state::{Fired, FiredSlots};
use crate::status::board::{Board, Role, Snapshot};

use told::{Database, databases, document, is_whole, of_cluster, own, proof_document, said, surplus};

/// How often every check is spoken for.
const BEAT: Duration = Duration::from_secs(30);

/// What the loop is told.
#[derive(Debug)]
pub(super) enum News {
    /// This daemon leads from now on; these slots are in KV.
    Leader(SharedSlots),
    /// It does not lead.
    Other(Role),
    /// Consul came, or went.
    Answers(bool, String),
}

/// What the loop and the keeper share.
#[derive(Debug, Default)]
pub(super) struct Fence(Mutex<Option<SessionId>>);

impl Fence {
    fn set(&self, session: Option<SessionId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// The session that holds the leader's lock.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The slots of one cluster as they are in KV.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Schedule(BTreeMap<String, Slot>);

#[derive(Debug, Serialize, Deserialize)]
struct Slot {
    schedule: String,
    at: Timestamp,
    /// The daemon that wrote it.
    #[serde(default)]
    by: String,
}

/// A slot as it is in KV.
#[derive(Debug)]
pub(super) struct SharedSlot {
    fired: Fired,
    /// This daemon wrote it, and knows better: it may have taken it back, or never heard that it was written.
    is_ours: bool,
}

/// The slots in KV, by cluster and task.
pub(super) type SharedSlots = BTreeMap<(ClusterName, String), SharedSlot>;

/// Writes the slots of a cluster where a later leader finds them. False: they are not written, and nothing may start.
pub(super) async fn share(
    consul: &Consul,
    fence: &Fence,
    instance: &str,
    cluster: &ClusterName,
    fired: &FiredSlots,
) -> bool {
    let Some(session) = fence.session() else { return false };
    let of_cluster = fired.iter().filter(|((name, _), _)| name == cluster);
    let slots = of_cluster.map(|((_, task), fired)| {
        (task.clone(), Slot { schedule: fired.schedule.clone(), at: fired.at, by: instance.to_owned() })
    });
    let text = serde_json::to_string(&Schedule(slots.collect())).expect("texts");
    match consul.put_as(&session, &consul.key(&format!("state/{cluster}/schedule")), &text).await {
        Ok(written) => written,
        Err(error) => {
            tracing::warn!(%cluster, "a slot cannot be shared through Consul, so its run waits: {error}");
            false
        }
    }
}

/// Takes what others know newer, and what was forgotten here.
pub(super) fn merge(ours: &mut FiredSlots, shared: SharedSlots) -> Vec<(ClusterName, String)> {
    let mut changed = Vec::new();
    for (key, slot) in shared {
        let newer = ours.get(&key).is_none_or(|known| !slot.is_ours && known.at < slot.fired.at);
        if newer {
            ours.insert(key.clone(), slot.fired);
            changed.push(key);
        }
    }
    changed
}

/// What the keeper works with.
pub(super) struct Keeper {
    pub(super) consul: Arc<Consul>,
    pub(super) board: Arc<Board>,
    pub(super) fence: Arc<Fence>,
    pub(super) news: mpsc::Sender<News>,
    /// Where HTTP is served.
    pub(super) http: Option<SocketAddr>,
    /// Without Consul nothing is started.
    pub(super) waits: bool,
}

impl Keeper {
    /// Works until `cancel`; then lets go of the lock. The checks stay.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let instance = self.board.read().instance;
        let mut lease = Lease::new(&self.consul, &instance);
        let mut standing: Option<Standing> = None;
        let mut answers: Option<bool> = None;
        let mut beaten: Option<(Instant, Vec<Status>)> = None;
        let mut written = HashMap::new();
        while !cancel.is_cancelled() {
            let (attempt, error) = lease.attempt(&self.consul).await;
            self.hear(&mut answers, error.as_ref()).await;
            let before = standing.map(|standing| standing.role);
            let now = next(standing, attempt, self.waits, Instant::now());
            standing = Some(now);
            self.fence.set(lease.session().filter(|_| now.role == Role::Leader).cloned());
            if before != Some(now.role) && !self.announce(now.role).await {
                standing = before.map(|role| Standing { role, held_at: None });
            }
            if error.is_none() {
                let told = self.beat(now.role, &mut beaten, &mut written, lease.session()).await;
                if let Err(error) = told {
                    tracing::warn!("Consul could not be told: {error}");
                    beaten = None;
                }
            } else {
                beaten = None;
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = cancel.cancelled() => {}
            }
        }
        self.fence.set(None);
        lease.end(&self.consul).await;
        if let Err(error) = self.consul.deregister(&format!("pglife-{instance}")).await {
            tracing::warn!("the daemon's own service stays registered: {error}");
        }
    }

    async fn hear(&self, answers: &mut Option<bool>, error: Option<&ConsulError>) {
        let up = error.is_none();
        let words = error.map(|error| causes::chain(error)).unwrap_or_default();
        self.board.change(|snapshot| snapshot.consul_up = Some(up));
        let flag = error.map(|error| format!("{}; next: {}", causes::chain(error), error.next()));
        self.board.flag("consul", flag);
        if *answers != Some(up) && (!up || answers.is_some()) {
            self.news.send(News::Answers(up, words)).await.ok();
        }
        *answers = Some(up);
    }

    /// Tells the loop of a new role; a leader brings the slots that were fired before it. False: it cannot lead yet.
    async fn announce(&self, role: Role) -> bool {
        let news = if role == Role::Leader {
            match self.slots().await {
                Ok(slots) => News::Leader(slots),
                Err(error) => {
                    tracing::warn!("what other daemons started cannot be read, so nothing is started yet: {error}");
                    return false;
                }
            }
        } else {
            News::Other(role)
        };
        self.news.send(news).await.is_ok()
    }

    /// Every slot in KV.
    async fn slots(&self) -> Result<SharedSlots, ConsulError> {
        let instance = self.board.read().instance;
        let mut slots = SharedSlots::new();
        let below = self.consul.key("state");
        for pair in self.consul.list(&below).await? {
            let Some(rest) = pair.key.strip_prefix(&below).and_then(|rest| rest.strip_prefix('/')) else { continue };
            let Some(Ok(cluster)) = rest.strip_suffix("/schedule").map(ClusterName::new) else { continue };
            let Ok(Schedule(of_cluster)) = serde_json::from_str(&pair.text()) else {
                tracing::warn!("{} cannot be read and counts as empty", pair.key);
                continue;
            };
            for (task, slot) in of_cluster {
                let is_ours = slot.by == instance;
                let fired = Fired { schedule: slot.schedule, at: slot.at };
                slots.insert((cluster.clone(), task), SharedSlot { fired, is_ours });
            }
        }
        Ok(slots)
    }

    /// Brings the agent in line with the board, if it is time.
    async fn beat(
        &self,
        role: Role,
        beaten: &mut Option<(Instant, Vec<Status>)>,
        written: &mut HashMap<String, String>,
        session: Option<&SessionId>,
    ) -> Result<(), ConsulError> {
        let snapshot = self.board.read();
        let now = Timestamp::now();
        let said = if role == Role::Standby || snapshot.looked_at.is_none() { vec![] } else { said(&snapshot, now) };
        let levels: Vec<Status> = said.iter().map(|(_, status, _)| *status).collect();
        let is_due = beaten.as_ref().is_none_or(|(at, before)| at.elapsed() >= BEAT || *before != levels);
        if !is_due {
            return Ok(());
        }
        let mut wanted = vec![own(&snapshot, role, self.http)];
        if role != Role::Standby && snapshot.looked_at.is_some() {
            wanted.extend(snapshot.clusters.iter().map(|cluster| of_cluster(&snapshot, cluster, self.http)));
        }
        let (there, checks) = (self.consul.services().await?, self.consul.checks().await?);
        for registration in &wanted {
            if !is_whole(registration, Others::Go, &there, &checks) {
                tracing::info!("registering {} in Consul", registration.id);
                self.consul.register(registration, Others::Go).await?;
            }
        }
        let databases = if role == Role::Standby { vec![] } else { databases(&self.consul, &snapshot) };
        self.register_databases(&databases, &there, &checks).await;
        wanted.extend(databases.into_iter().map(|database| database.registration));
        for id in surplus(&there, &wanted, &snapshot, role) {
            tracing::info!("deregistering {id} in Consul");
            self.consul.deregister(&id).await?;
        }
        for (check, status, output) in &said {
            if !self.consul.update(check, *status, output).await? {
                tracing::warn!("Consul has forgotten the check {check}; it is registered again at the next beat");
            }
        }
        *beaten = Some((Instant::now(), levels));
        if let (Role::Leader, Some(session)) = (role, session) {
            self.write_states(&snapshot, written, session).await?;
        }
        Ok(())
    }

    /// Registers the databases whose policies ask for it. What is refused keeps nobody from hearing of the backups.
    async fn register_databases(
        &self,
        databases: &[Database],
        there: &BTreeMap<String, Service>,
        checks: &BTreeMap<String, Check>,
    ) {
        let mut trouble = None;
        for Database { registration, is_reached } in databases {
            if !is_reached || is_whole(registration, Others::Stay, there, checks) {
                continue;
            }
            tracing::info!("registering {} in Consul", registration.id);
            if let Err(error) = self.consul.register(registration, Others::Stay).await {
                trouble = Some(format!(
                    "{} is not registered: {}; next: {}",
                    registration.id,
                    causes::chain(&error),
                    error.next()
                ));
            }
        }
        if self.board.flag("consul_database", trouble.clone())
            && let Some(text) = trouble
        {
            tracing::error!("{text}");
        }
    }

    /// What is known of the backups, for those who read KV; each document only when it changed.
    async fn write_states(
        &self,
        snapshot: &Snapshot,
        written: &mut HashMap<String, String>,
        session: &SessionId,
    ) -> Result<(), ConsulError> {
        for cluster in &snapshot.clusters {
            let upgrade = cluster.history.upgrade.as_ref();
            let upgrade = upgrade.map(|upgrade| serde_json::to_string(upgrade).expect("texts and times"));
            let documents = [
                ("backup/dump", Some(document(&cluster.dump))),
                ("backup/volume", Some(document(&cluster.volume))),
                ("drill", Some(proof_document(&cluster.proof))),
                ("upgrade", upgrade),
            ];
            for (name, text) in documents {
                let Some(text) = text else { continue };
                let key = self.consul.key(&format!("state/{}/{name}", cluster.cluster));
                if written.get(&key) != Some(&text) && self.consul.put_as(session, &key, &text).await? {
                    written.insert(key, text);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_memory_of_others_counts_and_of_our_own_what_was_forgotten() {
        let key = |name: &str| (ClusterName::new(name).expect("a name"), "dump".to_owned());
        let fired = |second| Fired { schedule: "s".to_owned(), at: Timestamp::from_second(second).expect("a time") };
        let slot = |second, is_ours| SharedSlot { fired: fired(second), is_ours };
        let mut ours = FiredSlots::from(["a", "b", "taken-back"].map(|name| (key(name), fired(5))));
        let shared = SharedSlots::from([
            (key("a"), slot(7, false)),
            (key("b"), slot(3, false)),
            (key("c"), slot(1, false)),
            (key("forgotten"), slot(2, true)),
            (key("taken-back"), slot(7, true)),
        ]);
        assert_eq!(merge(&mut ours, shared), ["a", "c", "forgotten"].map(key));
        let after = ["a", "b", "c", "forgotten", "taken-back"].map(|name| ours[&key(name)].clone());
        assert_eq!(after, [7, 5, 1, 2, 5].map(fired));
    }
}
