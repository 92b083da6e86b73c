//! A Docker engine elsewhere, by mutual TLS: a real one, that asks for certificates.

use std::path::Path;

use serde_json::json;

use crate::authority::{Authority, Signed};
use crate::engine::OwnEngine;
use crate::house::{House, free_port, sql};
use crate::s3::{ADMIN, Answer, Proxy, Server};

const THERE: &str = "subjectAltName = IP:127.0.0.1\nextendedKeyUsage = serverAuth";
const HERE: &str = "extendedKeyUsage = clientAuth";
const IMAGES: [&str; 3] = ["pglife/data", "pglife/postgres:17", "pglife/postgres:18"];

/// An engine at a port of its own, and whom it trusts.
struct Elsewhere {
    engine: OwnEngine,
    port: u16,
    authority: Authority,
    ours: Signed,
}

impl Elsewhere {
    fn new(house: &House) -> Self {
        let authority = Authority::new(house.path("authority"));
        let (theirs, ours) = (authority.sign("engine", THERE), authority.sign("pglife", HERE));
        let port = free_port();
        let engine = OwnEngine::start(json!({
            "hosts": [format!("tcp://127.0.0.1:{port}")],
            "tlsverify": true,
            "tlscacert": authority.certificate(),
            "tlscert": theirs.certificate,
            "tlskey": theirs.key,
        }));
        Self { engine, port, authority, ours }
    }

    /// `[hosts.db1]` with these files.
    fn host(&self, ca: &Path, ours: &Signed) -> String {
        format!(
            "\n[hosts.db1]\nendpoint = \"tcp://127.0.0.1:{}\"\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            self.port,
            ca.display(),
            ours.certificate.display(),
            ours.key.display()
        )
    }
}

/// pglife.toml with two hosts and two repositories.
fn settings(house: &House, host: &str, endpoint: &str) {
    house.write_secret(
        "s3.credentials",
        &format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", ADMIN.0, ADMIN.1),
    );
    house.write(
        "pglife.toml",
        &format!(
            "state_dir = \"state\"\npolicies = \"policies\"\n\n[repos.local]\ntype = \"local\"\npath = \"repo\"\n\n\
             [repos.offsite]\ntype = \"s3\"\nbucket = \"backups\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
             credentials_file = \"s3.credentials\"\n\n[hosts.local]\nendpoint = \"unix:///var/run/docker.sock\"\n{host}"
        ),
    );
}

#[test]
fn a_cluster_elsewhere_is_backed_up_proven_restored_and_upgraded() {
    let house = House::new("elsewhere");
    let mut there = Elsewhere::new(&house);
    let server = Server::start(&house, "s3");
    server.bucket("backups");
    let bucket = Proxy::at(there.engine.gateway(), &server, |_| Answer::Whole);
    settings(&house, &there.host(&there.authority.certificate(), &there.ours), &bucket.endpoint());
    house.pglife(&["repo", "init", "offsite"]).ok();
    there.engine.load(&IMAGES);

    // A folder of this machine is no place for it.
    let cluster = house.policy("far", "17", "host = \"db1\"\n[backup.dump]\nrepos = [\"local\", \"offsite\"]\n");
    let refused = house.pglife(&["policy", "validate"]).exits(2);
    refused.says(&["local is a folder of this machine, and [hosts.db1] is another one", "name buckets"]);
    house.policy("far", "17", "host = \"db1\"\n[backup.dump]\nrepos = [\"offsite\"]\n");

    house.pglife(&["cluster", "create", &cluster]).ok();
    let container = format!("{cluster}-db");
    let content = "select count(*), sum(i), max(m) from t";
    there.engine.sql(
        &container,
        "postgres",
        "create table t as select i, md5(i::text) m from generate_series(1, 20000) i",
    );
    let before = there.engine.sql(&container, "postgres", content);
    // Beside it one here, with the same repository.
    let near = house.cluster("near", "17", "host = \"local\"\n[backup.dump]\nrepos = [\"local\", \"offsite\"]\n");
    sql(&format!("{near}-db"), "postgres", "create table here ()");
    for one in [&cluster, &near] {
        house.backup(one);
    }
    let volume = house.items(&["backup", &cluster, "--kind", "volume"]).remove(0);
    assert_eq!(volume["kind"], "volume");
    for set in ["latest", "latest:volume"] {
        house.pglife(&["drill", &cluster, "--backup", set]).ok();
    }
    let status = house.items(&["status", &cluster]).remove(0);
    assert_eq!(
        (&status["host"], &status["proof"]["last_drill"]["result"]),
        (&json!("db1"), &json!("proven")),
        "{status}"
    );
    let hosts = house.pglife(&["host", "check"]).ok().stdout;
    assert!(hosts.contains("db1") && hosts.contains("local"), "{hosts}");

    let copy = house.name("copy");
    house.pglife(&["restore", &cluster, "--into", &copy]).ok();
    assert_eq!(there.engine.sql(&format!("{copy}-db"), "postgres", content), before);
    house.pglife(&["upgrade", &copy, "--to", "18", "--method", "dump", "--yes"]).ok();
    there.engine.wait_for_server(&format!("{copy}-db"));
    assert_eq!(there.engine.sql(&format!("{copy}-db"), "postgres", content), before);

    // Workers there cannot be handed a folder that is here.
    let folder_here = ["\"local\" is a folder of this machine", "\"db1\"", "\n  next: ", "--repo"];
    house.pglife(&["backup", &cluster, "--repo", "local"]).exits(4).says(&folder_here);
    let other = house.policy("other", "17", "host = \"db1\"\n[backup.dump]\nrepos = [\"offsite\"]\n");
    house.pglife(&["restore", &near, "--into", &other]).exits(4).says(&folder_here);
    house.pglife(&["restore", &near, "--repo", "offsite", "--into", &other]).ok();
    assert_eq!(there.engine.sql(&format!("{other}-db"), "postgres", "select count(*) from here"), "0");
    house.pglife(&["selftest", &cluster]).exits(4).says(&["\"db1\"", "\n  next: "]);

    // The machine is down: told as such, and nobody else is kept from anything. It is back: so is everything.
    there.engine.stop();
    let down = house.pglife(&["backup", &cluster]).exits(14);
    down.says(&["the Docker engine of host \"db1\"", "does not answer", &cluster, "[hosts.db1]"]);
    house.backup(&near);
    let both = house.pglife(&["status", "-o", "json"]);
    assert!(
        both.stdout.contains("\"server\": \"unknown\"") && both.stdout.contains("\"server\": \"healthy\""),
        "{}",
        both.stdout
    );
    house.pglife(&["host", "check"]).exits(14);
    house.pglife(&["host", "check", "local"]).ok();
    there.engine.begin();
    there.engine.wait_for_server(&container);
    house.backup(&cluster);
}

#[test]
fn whom_we_do_not_trust_and_who_does_not_trust_us() {
    let house = House::new("trust");
    let mut there = Elsewhere::new(&house);
    let stranger = Authority::new(house.path("stranger"));
    let ca = there.authority.certificate();
    let check = |ca: &Path, ours: &Signed, words: &[&str]| {
        settings(&house, &there.host(ca, ours), "http://127.0.0.1:1");
        let ended = house.pglife(&["host", "check", "db1"]).exits(14);
        ended.says(words).says(&["host \"db1\"", "\n  next: ", "[hosts.db1]"]);
    };
    let broken = |name: &str, text: &str| {
        house.write(name, text);
        house.path(name)
    };

    check(&stranger.certificate(), &there.ours, &["invalid peer certificate", "not signed by the authority in `ca`"]);
    // Where its alert comes too late for us, it says what else may be, too.
    check(&ca, &stranger.sign("pglife", HERE), &["refuses our certificate", "the engine's --tlscacert"]);
    check(&ca, &there.authority.sign_expired("late", HERE), &["our certificate"]);
    let missing = Signed { certificate: house.path("nowhere.pem"), key: there.ours.key.clone() };
    check(&ca, &missing, &["nowhere.pem: No such file", "correct `ca`, `cert` or `key`"]);
    let other = Signed { certificate: there.ours.certificate.clone(), key: stranger.sign("x", HERE).key };
    check(&ca, &other, &["x.key: "]);
    let rubbish = Signed { certificate: broken("rubbish.pem", "-----BEGIN"), key: there.ours.key.clone() };
    check(&ca, &rubbish, &["rubbish.pem: there is no certificate in it"]);
    check(&broken("empty.pem", ""), &there.ours, &["empty.pem: there is no certificate in it"]);

    settings(&house, &there.host(&ca, &there.ours), "http://127.0.0.1:1");
    house.pglife(&["host", "check", "db1"]).ok();
    let listed = house.items(&["host", "list"]);
    assert_eq!(listed.len(), 2);
    assert_eq!((&listed[0]["host"], &listed[0]["tls"]), (&json!("db1"), &json!(true)));

    // The engine shows a certificate that is of the past, or another machine's.
    for (extension, expired, words) in [
        (THERE, true, "the engine's certificate has expired"),
        ("subjectAltName = DNS:db2.example.org", false, "the engine's certificate is for another name"),
    ] {
        there.engine.stop();
        let theirs = if expired {
            there.authority.sign_expired("engine", extension)
        } else {
            there.authority.sign("engine", extension)
        };
        assert!(theirs.certificate.is_file());
        there.engine.begin();
        house.pglife(&["host", "check", "db1"]).exits(14).says(&[words]);
    }
    // Nobody listens there.
    there.engine.stop();
    house.pglife(&["host", "check", "db1"]).exits(14).says(&["does not answer", "Connection refused", "firewall"]);
}
