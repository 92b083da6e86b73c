//! Keeps Consul told: who leads, what the checks say, what is known of the backups. Everything it says is on the board.
//!
//! ```text
//! every 10 s:  session renewed, lock held? ─▶ role ─▶ the loop (with the slots that others fired)
//! every 30 s, and when a verdict changed:  services there? ─▶ register what is missing ─▶ speak for every check ─▶ KV
//! ```
//!
//! Freshness is on services of pglife's own, never on the node and never on the database's service: a stale backup must not take
//! a database out of DNS. Its services stay when the daemon ends: when nobody speaks for them, the checks turn critical.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lease::{Lease, Standing, next};
use crate::causes;
use crate::cluster::ClusterName;
use crate::consul::service::{
    Check, CheckKind, CheckRegistration, Others, Registration, Service, Status, maintenance_check,
};
use crate::consul::session::{RENEW, SessionId};
use crate::consul::{Consul, ConsulError};
use crate::policy::freshness::Level;
use crate::state::{Fired, FiredSlots};
use crate::status::board::{Board, Role, Snapshot};
use crate::status::{self, ClusterStatus, KindStatus, ProofStatus, of_servers, verdicts};

/// How often every check is spoken for.
const BEAT: Duration = Duration::from_secs(30);
/// How long the agent waits before it takes silence for trouble.
const TTL: &str = "120s";
/// The name of the services with the backups' checks.
const BACKUPS: &str = "pglife-backup";

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
    fn session(&self) -> Option<SessionId> {
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

/// What `state/<cluster>/backup/<kind>` holds.
fn document(status: &KindStatus) -> String {
    let text = serde_json::json!({
        "last_backup": status.last_backup,
        "last_attempt_at": status.last_attempt_at,
        "last_attempt": status.last_attempt,
        "failures_since_success": status.failures_since_success,
        "next_run_at": status.next_run_at,
        "limits": status.limits,
    });
    text.to_string()
}

/// What `state/<cluster>/drill` holds.
fn proof_document(proof: &ProofStatus) -> String {
    let text = serde_json::json!({
        "last_proven": proof.last_proven,
        "bad": proof.bad,
        "last_drill_at": proof.last_drill.as_ref().map(|drill| drill.at),
        "last_drill": proof.last_drill.as_ref().map(|drill| drill.result),
        "failures_since_success": proof.failures_since_success,
        "next_run_at": proof.next_run_at,
        "limits": proof.limits,
        "recovery": proof.recovery,
    });
    text.to_string()
}

/// The daemon's own service.
fn own(snapshot: &Snapshot, role: Role, http: Option<SocketAddr>) -> Registration {
    let id = format!("pglife-{}", snapshot.instance);
    let http_check = http.map(|address| CheckRegistration {
        id: format!("{id}-http"),
        name: "pglife daemon".to_owned(),
        notes: "the daemon's wheel turns".to_owned(),
        status: Status::Warning,
        kind: CheckKind::Http {
            url: format!("http://{}/healthz", reachable(address)),
            interval: "10s".to_owned(),
            timeout: "5s".to_owned(),
        },
    });
    // Who stands by leaves it to the leader.
    let coverage = snapshot.uncovered.as_ref().filter(|_| role != Role::Standby).map(|_| CheckRegistration {
        id: coverage_check(&snapshot.instance),
        name: "PostgreSQL servers without a policy".to_owned(),
        notes: "kept by pglife".to_owned(),
        status: Status::Warning,
        kind: CheckKind::Ttl { ttl: TTL.to_owned() },
    });
    let tag = match role {
        Role::Standby => "standby",
        Role::Alone | Role::Leader => "leader",
    };
    Registration {
        id,
        name: "pglife".to_owned(),
        tags: vec![tag.to_owned()],
        meta: meta(snapshot, None),
        address: String::new(),
        port: http.map_or(0, |address| address.port()),
        checks: http_check.into_iter().chain(coverage).collect(),
    }
}

/// The id of the check on servers that no policy covers.
fn coverage_check(instance: &str) -> String {
    format!("pglife-{instance}-{}", status::Check::Coverage)
}

/// Where the agent on this machine reaches what listens there: "everywhere" is no address to connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let loopback: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(loopback, address.port())
}

/// The service with the checks of a cluster.
fn of_cluster(snapshot: &Snapshot, cluster: &ClusterStatus, http: Option<SocketAddr>) -> Registration {
    let id = format!("{BACKUPS}-{}", cluster.cluster);
    let checks = verdicts(cluster).into_iter().map(|verdict| CheckRegistration {
        id: format!("{id}-{}", verdict.check),
        name: format!("{} of {}", verdict.check, cluster.cluster),
        notes: "kept by pglife".to_owned(),
        // Whoever starts has not looked yet; a page at night for that would be a lie.
        status: Status::Warning,
        kind: CheckKind::Ttl { ttl: TTL.to_owned() },
    });
    Registration {
        checks: checks.collect(),
        name: BACKUPS.to_owned(),
        tags: vec![cluster.cluster.to_string(), format!("pg{}", cluster.major)],
        meta: meta(snapshot, Some(cluster)),
        address: String::new(),
        port: http.map_or(0, |address| address.port()),
        id,
    }
}

/// A database that is to be registered.
struct Database {
    registration: Registration,
    /// Whether it is known where clients reach it; where it is not, what is registered stays.
    is_reached: bool,
}

/// The services of databases. They are checked by the agent itself: neither the age of a backup nor a daemon that is gone takes
/// a database from its clients.
fn databases(consul: &Consul, snapshot: &Snapshot) -> Vec<Database> {
    let of_cluster = |cluster: &ClusterStatus| {
        let place = cluster.service.as_ref()?.place.as_ref();
        let id = consul.database_service_id(&cluster.cluster);
        let (address, port) = place.map_or((None, 0), |place| (place.address.as_deref(), place.port));
        let host = address.unwrap_or("127.0.0.1");
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let check = CheckRegistration {
            id: format!("{id}-connect"),
            name: format!("{} accepts connections", cluster.cluster),
            notes: "kept by pglife".to_owned(),
            status: if cluster.is_up() { Status::Passing } else { Status::Critical },
            kind: CheckKind::Tcp {
                address: format!("{host}:{port}"),
                interval: "10s".to_owned(),
                timeout: "5s".to_owned(),
            },
        };
        let registration = Registration {
            id,
            name: consul.database_service().to_owned(),
            tags: vec![cluster.cluster.to_string(), format!("pg{}", cluster.major)],
            meta: meta(snapshot, Some(cluster)),
            address: address.unwrap_or_default().to_owned(),
            port,
            checks: vec![check],
        };
        Some(Database { registration, is_reached: place.is_some() })
    };
    snapshot.clusters.iter().filter_map(of_cluster).collect()
}

fn meta(snapshot: &Snapshot, cluster: Option<&ClusterStatus>) -> BTreeMap<String, String> {
    let mut meta = BTreeMap::from([
        ("managed_by".to_owned(), "pglife".to_owned()),
        ("instance".to_owned(), snapshot.instance.clone()),
        ("version".to_owned(), snapshot.version.to_owned()),
    ]);
    if let Some(cluster) = cluster {
        meta.insert("cluster".to_owned(), cluster.cluster.to_string());
        meta.insert("pg_major".to_owned(), cluster.major.clone());
        meta.insert("host".to_owned(), cluster.host.clone());
    }
    meta
}

/// Whether the agent has a service as it is wanted, with its checks; where others are to go, with none but its
/// maintenance besides.
fn is_whole(
    registration: &Registration,
    others: Others,
    there: &BTreeMap<String, Service>,
    checks: &BTreeMap<String, Check>,
) -> bool {
    let maintenance = maintenance_check(&registration.id);
    let found = checks.iter().filter(|(id, check)| check.service == registration.id && **id != maintenance);
    there.get(&registration.id).is_some_and(|service| is_same(service, registration))
        && registration.checks.iter().all(|check| checks.contains_key(&check.id))
        && (others == Others::Stay || found.count() == registration.checks.len())
}

fn is_same(service: &Service, wanted: &Registration) -> bool {
    service.service == wanted.name
        && service.tags == wanted.tags
        && service.meta == wanted.meta
        && service.address == wanted.address
        && service.port == wanted.port
}

/// Services of this daemon that are not wanted any more. Nobody else's are touched.
fn surplus(there: &BTreeMap<String, Service>, wanted: &[Registration], snapshot: &Snapshot, role: Role) -> Vec<String> {
    // Before the first look nothing is known, so nothing is too much.
    if role != Role::Standby && snapshot.looked_at.is_none() {
        return vec![];
    }
    let is_ours = |service: &Service| {
        let is = |key: &str, value: &str| service.meta.get(key).is_some_and(|found| found == value);
        is("managed_by", "pglife") && is("instance", &snapshot.instance)
    };
    let unwanted =
        there.iter().filter(|(id, service)| is_ours(service) && wanted.iter().all(|wanted| wanted.id != **id));
    unwanted.map(|(id, _)| id.clone()).collect()
}

/// What is said of every check.
fn said(snapshot: &Snapshot, now: Timestamp) -> Vec<(String, Status, String)> {
    let mut said = Vec::new();
    for cluster in &snapshot.clusters {
        for verdict in verdicts(&cluster.at(now)) {
            said.push((
                format!("{BACKUPS}-{}-{}", cluster.cluster, verdict.check),
                status_of(verdict.level),
                verdict.text,
            ));
        }
    }
    let servers = snapshot.uncovered.as_ref().map(|uncovered| of_servers(uncovered));
    said.extend(servers.map(|it| (coverage_check(&snapshot.instance), status_of(it.level), it.text)));
    said
}

fn status_of(level: Level) -> Status {
    match level {
        Level::Ok => Status::Passing,
        Level::Warn => Status::Warning,
        Level::Critical => Status::Critical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Disproven;

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

    #[test]
    fn nobody_else_s_services_are_touched() {
        let board = Board::new("one".to_owned(), Timestamp::UNIX_EPOCH);
        board.change(|snapshot| snapshot.looked_at = Some(Timestamp::UNIX_EPOCH));
        let snapshot = board.read();
        let service = |managed: &str, instance: &str| Service {
            service: BACKUPS.to_owned(),
            tags: vec![],
            meta: BTreeMap::from([
                ("managed_by".to_owned(), managed.to_owned()),
                ("instance".to_owned(), instance.to_owned()),
            ]),
            address: String::new(),
            port: 0,
        };
        let there = BTreeMap::from([
            ("pglife-backup-gone".to_owned(), service("pglife", "one")),
            ("pglife-backup-theirs".to_owned(), service("pglife", "two")),
            ("postgres".to_owned(), service("", "")),
            ("pglife-one".to_owned(), service("pglife", "one")),
        ]);
        let wanted = [own(&snapshot, Role::Leader, None)];
        assert_eq!(surplus(&there, &wanted, &snapshot, Role::Leader), ["pglife-backup-gone"]);
    }

    #[test]
    fn a_bad_backup_turns_its_check_critical_and_is_in_kv() {
        let at = Timestamp::UNIX_EPOCH;
        let bad = Disproven { set: "the-set".to_owned(), completed_at: at, found_at: at };
        let cluster = ClusterStatus {
            dump: KindStatus { last_known_at: Some(at), ..KindStatus::default() },
            proof: ProofStatus { bad: Some(bad), ..ProofStatus::default() },
            ..ClusterStatus::example()
        };
        let document: serde_json::Value = serde_json::from_str(&proof_document(&cluster.proof)).expect("JSON");
        assert_eq!(document["bad"]["set"], "the-set");
        let board = Board::new("one".to_owned(), at);
        let checks = of_cluster(&board.read(), &cluster, None).checks;
        let checks: Vec<&str> = checks.iter().map(|check| check.id.as_str()).collect();
        assert_eq!(checks, ["pglife-backup-chado-dump", "pglife-backup-chado-drill"]);
        board.change(|snapshot| snapshot.clusters.push(cluster));
        let said = said(&board.read(), at);
        let (_, status, words) = said.iter().find(|(id, _, _)| id == "pglife-backup-chado-drill").expect("a check");
        assert_eq!(*status, Status::Critical);
        assert!(words.contains("found backup the-set bad"), "{words}");
    }

    #[test]
    fn everywhere_is_reached_at_loopback() {
        let reached = |address: &str| reachable(address.parse().expect("an address")).to_string();
        assert_eq!(
            [reached("0.0.0.0:1"), reached("[::]:2"), reached("10.0.0.1:3")],
            ["127.0.0.1:1", "[::1]:2", "10.0.0.1:3"]
        );
    }

    #[test]
    fn ids_cannot_be_mistaken_for_registrator_s() {
        let board = Board::new("one".to_owned(), Timestamp::UNIX_EPOCH);
        let http = Some("127.0.0.1:8432".parse().expect("an address"));
        let own = own(&board.read(), Role::Leader, http);
        assert!(!own.id.contains(':') && own.checks.iter().all(|check| !check.id.contains(':')));
        let text = serde_json::to_string(&own).expect("JSON");
        assert!(text.contains(r#""CheckID":"pglife-one-http""#) && text.contains(r#""Interval":"10s""#), "{text}");
        assert!(!text.contains("DeregisterCriticalServiceAfter"));
    }
}
