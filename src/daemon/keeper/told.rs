//! What Consul is told: services with their checks, what is said of each, documents in KV. Pure: everything is on the board.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;

use crate::consul::Consul;
use crate::consul::service::{
    Check, CheckKind, CheckRegistration, Others, Registration, Service, Status, maintenance_check,
};
use crate::policy::freshness::Level;
use crate::status::board::{Role, Snapshot};
use crate::status::{self, ClusterStatus, KindStatus, ProofStatus, of_servers, verdicts};

/// How long the agent waits before it takes silence for trouble.
const TTL: &str = "120s";
/// The name of the services with the backups' checks.
const BACKUPS: &str = "pglife-backup";

/// What `state/<cluster>/backup/<kind>` holds.
pub(super) fn document(status: &KindStatus) -> String {
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
pub(super) fn proof_document(proof: &ProofStatus) -> String {
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
pub(super) fn own(snapshot: &Snapshot, role: Role, http: Option<SocketAddr>) -> Registration {
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
pub(super) fn of_cluster(snapshot: &Snapshot, cluster: &ClusterStatus, http: Option<SocketAddr>) -> Registration {
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
pub(super) struct Database {
    pub(super) registration: Registration,
    /// Whether it is known where clients reach it; where it is not, what is registered stays.
    pub(super) is_reached: bool,
}

/// The services of databases. They are checked by the agent itself: neither the age of a backup nor a daemon that is gone takes
/// a database from its clients.
pub(super) fn databases(consul: &Consul, snapshot: &Snapshot) -> Vec<Database> {
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
pub(super) fn is_whole(
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
pub(super) fn surplus(
    there: &BTreeMap<String, Service>,
    wanted: &[Registration],
    snapshot: &Snapshot,
    role: Role,
) -> Vec<String> {
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
pub(super) fn said(snapshot: &Snapshot, now: Timestamp) -> Vec<(String, Status, String)> {
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
    use crate::status::board::Board;

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
