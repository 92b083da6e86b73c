//! The daemon and a real Consul 1.8: what the checks say, who leads, and what becomes of it when one of them dies.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::authority::{Authority, Signed};
use crate::daemon::{Daemon, events, http_port};
use crate::house::{House, docker, free_port, try_docker, wait_for};

/// A Consul agent at a port of this machine.
pub struct Consul {
    container: String,
    pub port: u16,
    token: Option<&'static str>,
}

const ROOT: &str = "b1gs33cr-3t11-1111-1111-111111111111";
pub const LEAST: &str = "1e5a1000-2222-2222-2222-222222222222";

/// True where an answer has as many bytes as its head says.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let lines = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= head + 4 + length)
}

/// One request; status and body of the answer. Status 0 where there is none.
pub fn ask(port: u16, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let token = token.map_or_else(String::new, |token| format!("X-Consul-Token: {token}\r\n"));
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{token}Content-Length: {length}\r\n\r\n{body}"
        )?;
        let (mut answer, mut part) = (Vec::new(), [0; 65_536]);
        // Not everybody closes the connection when asked to.
        while !is_whole(&answer) {
            match stream.read(&mut part)? {
                0 => break,
                read => answer.extend_from_slice(&part[..read]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange().unwrap_or_default();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (status, String::new()) };
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        if length == 0 {
            break;
        }
        whole.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    (status, whole)
}

impl Consul {
    /// An agent in development mode: a restart forgets everything.
    pub fn forgetful(house: &House) -> Self {
        let consul = Self { container: house.name("consul"), port: free_port(), token: None };
        consul.run(house, &[], "");
        consul
    }

    /// A forgetful one that is reached over TLS, too; its port for that. It asks callers for a certificate of `clients`.
    fn secure(house: &House, certificate: &Signed, clients: Option<&Authority>) -> (Self, u16) {
        let consul = Self { container: house.name("consul"), port: free_port(), token: None };
        let (https, mut mounts) = (free_port(), Vec::new());
        let authority = clients.map(Authority::certificate);
        let own = [(&certificate.certificate, "/tls/cert.pem"), (&certificate.key, "/tls/key.pem")];
        for (file, place) in own.into_iter().chain(authority.as_ref().map(|file| (file, "/tls/ca.pem"))) {
            mounts.extend(["-v".to_owned(), format!("{}:{place}:ro", file.display())]);
        }
        let mounts: Vec<&str> = mounts.iter().map(String::as_str).collect();
        let own = "cert_file = \"/tls/cert.pem\" key_file = \"/tls/key.pem\"";
        let asks = "ca_file = \"/tls/ca.pem\" verify_incoming_https = true";
        let asks = if clients.is_some() { asks } else { "" };
        consul.run(house, &mounts, &format!("ports {{ https = {https} }} {own} {asks}"));
        (consul, https)
    }

    /// Starts a forgetful one again that was removed, at the same port.
    pub fn restart(&self, house: &House) {
        self.run(house, &[], "");
    }

    /// An agent that refuses whoever has no token.
    pub fn strict(house: &House) -> Self {
        let consul = Self { container: house.name("consul"), port: free_port(), token: Some(ROOT) };
        consul.run_strict(house);
        consul
    }

    pub fn run_strict(&self, house: &House) {
        let rules = format!(
            "acl {{ enabled = true default_policy = \"deny\" tokens {{ master = \"{ROOT}\" agent = \"{ROOT}\" }} }}"
        );
        self.run(house, &[], &rules);
    }

    /// In the network of this machine, as an agent is: it asks the daemon how it is.
    fn run(&self, house: &House, mounts: &[&str], rules: &str) {
        let ports = [("server", free_port()), ("serf-lan", free_port()), ("serf-wan", free_port())];
        let ports = ports.map(|(name, port)| format!("-{name}-port={port}"));
        let http = format!("-http-port={}", self.port);
        let command = [
            "consul",
            "agent",
            "-dev",
            "-bind=127.0.0.1",
            "-client=127.0.0.1",
            "-log-level=warn",
            "-dns-port=-1",
            "-grpc-port=-1",
        ];
        let more = [&http, &ports[0], &ports[1], &ports[2]].map(String::as_str);
        let rules = ["-hcl", rules];
        let rules = if rules[1].is_empty() { &[][..] } else { &rules[..] };
        let image = ["--network", "host", "pglife/test-consul"];
        house.foreign("consul", &[mounts, &image, &command[..], &more, rules].concat());
        wait_for("a leader", || self.get("/v1/status/leader").as_str().is_some_and(|leader| !leader.is_empty()));
    }

    pub fn get(&self, path: &str) -> Value {
        serde_json::from_str(&ask(self.port, "GET", path, self.token, "").1).unwrap_or_default()
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> String {
        let mut answer = (0, String::new());
        // Right after the election the agent's ACLs may not be ready yet.
        wait_for(path, || {
            answer = ask(self.port, "PUT", path, self.token, &body.to_string());
            answer.0 == 200
        });
        answer.1.trim().to_owned()
    }

    /// Makes the token of the policy that the documentation shows, and a database's service as registrator makes it.
    pub fn furnish(&self) {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/consul.md")).expect("the page");
        let rules = page.split("```text\n").find(|block| block.starts_with("key_prefix")).expect("the policy");
        let rules = rules.split("```").next().expect("a part");
        self.put("/v1/acl/policy", &json!({ "Name": "pglife", "Rules": rules }));
        self.put("/v1/acl/token", &json!({ "SecretID": LEAST, "Policies": [{ "Name": "pglife" }] }));
        self.put("/v1/agent/service/register", &json!({ "ID": "host:main-db:5432", "Name": "postgres", "Port": 5432 }));
    }

    /// Status and output of every check of a service name, by the check's id.
    fn checks(&self, service: &str) -> BTreeMap<String, (String, String)> {
        let found = self.get(&format!("/v1/health/checks/{service}"));
        let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let checks = found.as_array().into_iter().flatten();
        checks.map(|check| (text(check, "CheckID"), (text(check, "Status"), text(check, "Output")))).collect()
    }

    fn is(&self, check: &str, status: &str) -> bool {
        self.checks("pglife-backup").get(check).is_some_and(|(found, _)| found == status)
    }

    /// What `pglife.toml` says of it.
    pub fn settings(&self) -> String {
        format!("\n[consul]\naddress = \"http://127.0.0.1:{}\"\n", self.port)
    }
}

#[test]
fn freshness_goes_from_passing_to_critical_and_never_touches_the_database() {
    let house = House::new("consulfresh");
    let consul = Consul::strict(&house);
    consul.furnish();
    house.write_secret("token", LEAST);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    let http = "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\ninstance = \"one\"\n";
    house.write("pglife.toml", &format!("{settings}{}token_file = \"token\"\n{http}", consul.settings()));
    let cluster = house.cluster("fresh", "17", "[freshness]\ndump = { warn = \"40s\", critical = \"70s\" }");
    let check = format!("pglife-backup-{cluster}-dump");
    house.backup(&cluster);
    let daemon = Daemon::start(&house);
    let port = http_port(&house);
    let freshness = || ask(port, "GET", &format!("/v1/clusters/{cluster}/freshness"), None, "").0;
    wait_for("passing", || consul.is(&check, "passing") && freshness() == 200);
    assert!(consul.is(&format!("pglife-backup-{cluster}-repo-local"), "passing"));
    let output = consul.checks("pglife-backup")[&check].1.clone();
    assert!(output.contains("last success 20") && output.contains("fresh until"), "{output}");
    let services = consul.get("/v1/agent/services");
    let service = &services[format!("pglife-backup-{cluster}")];
    assert_eq!(service["Tags"], json!([cluster, "pg17"]), "{services}");
    assert_eq!(service["Meta"]["managed_by"], "pglife");
    wait_for("the daemon's own check", || {
        consul.checks("pglife").get("pglife-one-http").is_some_and(|(status, _)| status == "passing")
    });

    wait_for("warning", || consul.is(&check, "warning") && freshness() == 429);
    wait_for("critical", || consul.is(&check, "critical") && freshness() == 503);
    house.pglife(&["check", &cluster]).exits(30);
    // The database is in the catalogue as before, and so is its node.
    let healthy = consul.get("/v1/health/service/postgres?passing");
    assert_eq!(healthy.as_array().map(Vec::len), Some(1), "{healthy}");
    let all = consul.get("/v1/agent/checks");
    for (id, found) in all.as_object().expect("checks") {
        let service = found["ServiceID"].as_str().unwrap_or_default();
        assert!(service.starts_with("pglife-") && !id.contains(':'), "{id}: {found}");
    }
    let state = consul.get(&format!("/v1/kv/pglife/state/{cluster}/backup/dump?raw"));
    assert!(state["last_backup"]["set"].is_string(), "{state}");
    // What a look at the page and at the metrics shows at that moment.
    let page = ask(port, "GET", "/", None, "").1;
    assert!(page.contains("badge critical") && page.contains("critical since"), "{page}");
    let metrics = ask(port, "GET", "/metrics", None, "").1;
    assert!(metrics.contains("pglife_consul_up 1") && metrics.contains("pglife_leader 1"), "{metrics}");
    assert!(
        metrics.contains(&format!(
            "pglife_backup_last_success_timestamp_seconds{{cluster=\"{cluster}\",kind=\"dump\"}} 1"
        ))
    );

    house.backup(&cluster);
    wait_for("passing again", || consul.is(&check, "passing"));

    // Consul dies, and what it knew is gone with it: commands work, and all is said again when it is back.
    docker(&["rm", "-f", &consul.container]);
    house.backup(&cluster);
    wait_for("the loss", || !events(&house, "consul.lost").is_empty());
    assert_eq!(ask(port, "GET", "/healthz", None, "").0, 200);
    let flags = ask(port, "GET", "/readyz", None, "");
    assert!(flags.0 == 503 && flags.1.contains("does not answer"), "{flags:?}");
    consul.run_strict(&house);
    consul.furnish();
    let back = Instant::now();
    wait_for("all is said again", || consul.is(&check, "passing"));
    assert!(back.elapsed() < Duration::from_secs(60), "{:?}", back.elapsed());
    assert!(!events(&house, "consul.back").is_empty());

    // A token that is not good enough.
    house.write_secret("token", "00000000-0000-0000-0000-000000000000");
    house.pglife(&["backup", &cluster]).exits(12).says(&[
        "Consul",
        "refused",
        "token_file",
        "safe: nothing was changed",
    ]);
    house.write_secret("token", LEAST);
    house.backup(&cluster);
    assert_eq!(daemon.stop(), 0);
    assert!(consul.get("/v1/agent/services")["pglife-one"].is_null(), "its own service goes with the daemon");
    assert!(consul.get("/v1/kv/pglife/leader")[0]["Session"].is_null(), "the lock is free");
    let lock = &consul.get(&format!("/v1/kv/pglife/locks/{cluster}"))[0];
    assert!(lock.is_object() && lock["Session"].is_null(), "there was a lock, and it is free: {lock}");
}

#[test]
fn consul_is_spoken_to_over_tls_where_its_authority_is_known() {
    let house = House::new("consultls");
    let (authority, stranger) = (Authority::new(house.path("authority")), Authority::new(house.path("stranger")));
    let (consul, https) = Consul::secure(&house, &authority.sign("consul", "subjectAltName = IP:127.0.0.1"), None);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    let trusting = |address: &str, ca: Option<&Authority>| {
        let ca = ca.map_or_else(String::new, |ca| format!("ca = \"{}\"\n", ca.certificate().display()));
        let consul = format!("\n[consul]\naddress = \"https://{address}:{https}\"\n{ca}[http]\nlisten = \"off\"\n");
        house.write("pglife.toml", &(settings.clone() + &consul));
    };
    trusting("127.0.0.1", Some(&authority));
    let cluster = house.cluster("safe", "17", "");
    house.pglife(&["env", "set", &cluster, "A", "1"]).ok();
    assert_eq!(house.pglife(&["env", "get", &cluster, "A"]).ok().stdout, "1");
    house.backup(&cluster);
    assert!(consul.get(&format!("/v1/kv/pglife/locks/{cluster}"))[0].is_object(), "the backup's lock was there");
    let daemon = Daemon::start(&house);
    wait_for("the checks", || consul.is(&format!("pglife-backup-{cluster}-dump"), "passing"));
    assert_eq!(daemon.stop(), 0);

    // Somebody else's authority, the system's, and another name than the certificate's.
    for (address, ca) in [("127.0.0.1", Some(&stranger)), ("127.0.0.1", None), ("localhost", Some(&authority))] {
        trusting(address, ca);
        house.pglife(&["env", "get", &cluster, "A"]).exits(13).says(&["certificate", "`ca`", "next:"]);
    }
    // Without TLS nothing is told to the port, and nothing waits for ever.
    trusting("127.0.0.1", None);
    let text = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &text.replace("https://", "http://"));
    house.pglife(&["env", "get", &cluster, "A"]).exits(13).says(&["next:"]);
}

/// `verify_incoming`: an agent that asks who calls.
#[test]
fn an_agent_that_asks_for_a_certificate_is_shown_one() {
    let house = House::new("consulmtls");
    let (authority, stranger) = (Authority::new(house.path("authority")), Authority::new(house.path("stranger")));
    let signed = authority.sign("consul", "subjectAltName = IP:127.0.0.1");
    let (_consul, https) = Consul::secure(&house, &signed, Some(&authority));
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    let use_of = "extendedKeyUsage = clientAuth";
    let env = |cluster: &str, client: Option<&Signed>| {
        let client = client.map_or_else(String::new, |client| {
            format!("cert = \"{}\"\nkey = \"{}\"\n", client.certificate.display(), client.key.display())
        });
        let ca = authority.certificate();
        let consul = format!("\n[consul]\naddress = \"https://127.0.0.1:{https}\"\nca = \"{}\"\n", ca.display());
        house.write("pglife.toml", &(settings.clone() + &consul + &client));
        house.pglife(&["env", "set", cluster, "A", "1"])
    };
    let cluster = house.cluster("asked", "17", "");
    let ours = authority.sign("pglife", use_of);
    env(&cluster, Some(&ours)).ok();
    house.backup(&cluster);
    for bad in [None, Some(stranger.sign("pglife", use_of)), Some(authority.sign_expired("expired", use_of))] {
        env(&cluster, bad.as_ref()).exits(13).says(&["certificate", "`cert`", "next:"]);
    }
    // Two files that do not belong together, and one that is none.
    let key = authority.sign("other", use_of).key;
    env(&cluster, Some(&Signed { certificate: ours.certificate.clone(), key })).exits(2).says(&["`key`", "next:"]);
    env(&cluster, Some(&Signed { certificate: house.path("none.pem"), key: ours.key })).exits(2).says(&["none.pem"]);
}

/// A lock of a machine that hangs: it is seen, and broken by hand only.
#[test]
fn a_lock_that_nobody_lets_go_of_is_seen_and_broken() {
    let house = House::new("consullock");
    let consul = Consul::forgetful(&house);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}{}", consul.settings()));
    let cluster = house.cluster("held", "17", "");
    let answer = consul.put("/v1/session/create", &json!({ "Name": "elsewhere", "LockDelay": "0s" }));
    let session: Value = serde_json::from_str(&answer).expect("JSON");
    let id = session["ID"].as_str().expect("an id");
    let path = format!("/v1/kv/pglife/locks/{cluster}?acquire={id}");
    assert_eq!(consul.put(&path, &json!({ "op": "dump", "instance": "elsewhere" })), "true");

    house.pglife(&["backup", &cluster]).exits(11).says(&["elsewhere", "75 seconds"]);
    let held = house.items(&["lock", "list"]);
    assert_eq!((held.len(), &held[0]["lock"], &held[0]["place"]), (1, &json!(cluster), &json!("consul")), "{held:?}");
    house.pglife(&["lock", "break", &cluster]).exits(4).says(&["--yes"]);
    assert_eq!(house.items(&["lock", "list"]).len(), 1);
    let broken = house.pglife(&["lock", "break", &cluster, "--yes"]).ok();
    broken.says(&["elsewhere"]);
    assert!(events(&house, "lock.broken")[0].contains("elsewhere"));
    house.pglife(&["lock", "break", &cluster, "--yes"]).exits(5).says(&["nobody holds it"]);
    house.backup(&cluster);
    assert_eq!(house.items(&["lock", "list"]), Vec::<Value>::new());
}

#[test]
fn one_daemon_leads_another_takes_over_and_silence_is_critical() {
    let house = House::new("consullead");
    let consul = Consul::forgetful(&house);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}{}", consul.settings()));
    let cluster = house.cluster("both", "17", "[backup.dump]\nschedule = \"* * * * *\"");
    let alone = house.cluster("solo", "17", "");
    house.backup(&alone);

    // Two daemons with memories of their own; only the first one knows the second cluster.
    let of = |name: &str, policies: &str| {
        let text = settings
            .replace("\"state\"", &format!("\"state-{name}\""))
            .replace("\"policies\"", &format!("\"{policies}\""));
        let own = format!("[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\ninstance = \"{name}\"\n");
        house.write(&format!("{name}.toml"), &format!("{text}{}{own}", consul.settings()));
    };
    std::fs::create_dir(house.path("fewer")).expect("a folder");
    let policy = format!("{cluster}.toml");
    std::fs::copy(house.path(&format!("policies/{policy}")), house.path(&format!("fewer/{policy}"))).expect("copied");
    of("one", "policies");
    of("two", "fewer");
    let leader = || {
        let lock = &consul.get("/v1/kv/pglife/leader")[0];
        if lock["Session"].is_string() {
            consul.get("/v1/kv/pglife/leader?raw")["instance"].clone()
        } else {
            Value::Null
        }
    };
    let one = Daemon::start_with(&house, "one.toml");
    wait_for("the first one leads", || leader() == "one");
    let two = Daemon::start_with(&house, "two.toml");
    let solo = format!("pglife-backup-{alone}-dump");
    wait_for("the checks", || consul.is(&solo, "passing"));
    wait_for("the standby", || consul.get("/v1/agent/services")["pglife-two"]["Tags"] == json!(["standby"]));
    let starts = || {
        let items = house.items(&["backups", "list", &cluster]);
        let minute = |item: &Value| item["started_at"].as_str().expect("a time")[..16].to_owned();
        items.iter().map(minute).collect::<Vec<String>>()
    };
    wait_for("a backup by the first one", || !starts().is_empty());

    one.kill();
    let killed = Instant::now();
    wait_for("the second one leads", || leader() == "two");
    assert!(killed.elapsed() < Duration::from_secs(90), "{:?}", killed.elapsed());
    let so_far = starts().len();
    wait_for("a backup by the second one", || starts().len() > so_far);
    // Each slot ran once. (The slot's minute is the start's: nothing waits here for more than seconds.)
    let mut minutes = starts();
    let count = minutes.len();
    minutes.dedup();
    assert_eq!(minutes.len(), count, "{:?}", starts());
    // Nobody speaks for the cluster that only the first one knew.
    wait_for("silence is critical", || consul.is(&solo, "critical") || killed.elapsed() > Duration::from_secs(155));
    assert!(consul.is(&solo, "critical") && killed.elapsed() < Duration::from_secs(150), "{:?}", killed.elapsed());
    assert!(consul.checks("pglife-backup")[&solo].1.contains("TTL expired"));

    // A run elsewhere holds the cluster's lock: it is told by whom.
    let session: Value =
        serde_json::from_str(&consul.put("/v1/session/create", &json!({ "TTL": "60s" }))).expect("JSON");
    let session = session["ID"].as_str().expect("an id");
    let lock = format!("/v1/kv/pglife/locks/{alone}?acquire={session}");
    assert_eq!(consul.put(&lock, &json!({ "op": "upgrade", "instance": "elsewhere" })), "true");
    house.pglife(&["backup", &alone]).exits(11).says(&["elsewhere", "Consul", "next:"]);
    assert_eq!(two.stop(), 0);

    // Without Consul: a warning where that is allowed, exit 13 where it is not.
    try_docker(&["rm", "-f", &consul.container]).ok();
    house.pglife(&["backup", &alone]).ok().says(&["without the lock in Consul"]);
    let strict = std::fs::read_to_string(house.path("pglife.toml")).expect("read") + "when_away = \"wait\"\n";
    house.write("pglife.toml", &strict);
    house.pglife(&["backup", &alone]).exits(13).says(&["does not answer", "safe: nothing was changed", "next:"]);
}

#[test]
fn whoever_is_hostile_gets_nowhere_by_http() {
    let house = House::new("http");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
    let cluster = house.policy("never", "17", "");
    let daemon = Daemon::start(&house);
    let port = http_port(&house);
    let get = |path: &str| ask(port, "GET", path, None, "");
    wait_for("a first look", || get("/readyz").0 == 200);
    assert_eq!(get(&format!("/v1/clusters/{cluster}/freshness")).0, 503);
    assert!(get("/").1.contains("never backed up"));
    for path in [
        "/v1/clusters/none/freshness",
        "/v1/clusters/..%2f..%2fetc/freshness",
        "/../../etc/passwd",
        "/%2e%2e/x",
        "/x?%3Cscript%3E",
    ] {
        let (status, body) = get(path);
        assert_eq!(status, 404, "{path}");
        assert!(!body.contains("script") && !body.contains("root:"), "{body}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(ask(port, method, "/api/v1/status", None, "x").0, 405, "{method}");
    }
    let status = ask(port, "GET", &format!("/{}", "a".repeat(200_000)), None, "").0;
    assert!([0, 400, 414, 431].contains(&status), "{status}");
    // Heads that never end are given up, and keep nobody out.
    let mut slow: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connected")).collect();
    for stream in &mut slow {
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").expect("written");
    }
    let begun = Instant::now();
    wait_for("an answer to somebody else", || get("/healthz").0 == 200);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    let mut head = String::new();
    let mut reader = &stream;
    (&stream).write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
    reader.read_to_string(&mut head).expect("an answer");
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "cache-control: no-store"]
    {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    assert_eq!(daemon.stop(), 0);
}
