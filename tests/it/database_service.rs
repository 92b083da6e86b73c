//! The database's own service in Consul: registered where its policy asks for it, found while its backups are red, and in
//! maintenance while it is upgraded.

use std::process::Stdio;

use serde_json::json;

use crate::consul::{Consul, LEAST};
use crate::daemon::{Daemon, events};
use crate::house::{House, docker, free_port, wait_for};

const DATABASE: &str = "da7aba5e-3333-3333-3333-333333333333";

/// The token of both policies that the documentation shows.
fn furnish(consul: &Consul) {
    consul.furnish();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/consul.md")).expect("the page");
    let rules = page.split("```text\n").find(|block| block.starts_with("service \"postgres\"")).expect("the policy");
    let rules = rules.split("```").next().expect("a part");
    consul.put("/v1/acl/policy", &json!({ "Name": "database", "Rules": rules }));
    let policies = json!([{ "Name": "pglife" }, { "Name": "database" }]);
    consul.put("/v1/acl/token", &json!({ "SecretID": DATABASE, "Policies": policies }));
}

#[test]
fn a_database_is_found_while_its_backups_are_red_and_not_while_it_is_upgraded() {
    let house = House::new("registered");
    let consul = Consul::strict(&house);
    furnish(&consul);
    house.write_secret("token", LEAST);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    let http = "[http]\nlisten = \"off\"\n[daemon]\ninstance = \"one\"\n";
    house.write("pglife.toml", &format!("{settings}{}token_file = \"token\"\n{http}", consul.settings()));
    let port = free_port();
    let keys = format!("publish = \"127.0.0.1:{port}\"\nregister = true\n");
    let cluster =
        house.cluster("db", "17", &format!("{keys}[freshness]\ndump = {{ warn = \"1h\", critical = \"2h\" }}"));
    let (own, registrator) = (format!("postgres-{cluster}"), format!("host:{cluster}-db:5432"));
    consul.put("/v1/agent/service/register", &json!({ "ID": registrator, "Name": "postgres", "Port": port }));
    let found = |id: &str| {
        let healthy = consul.get("/v1/health/service/postgres?passing");
        let mut services = healthy.as_array().into_iter().flatten().map(|entry| entry["Service"].clone());
        services.find(|service| service["ID"] == id)
    };
    let is_in_maintenance = |id: &str| consul.get("/v1/agent/checks")[format!("_service_maintenance:{id}")].is_object();

    // Without the right to it the backups are spoken of all the same, and the flag says what is missing.
    let daemon = Daemon::start(&house);
    let backups = format!("pglife-backup-{cluster}");
    wait_for("the backups' service", || consul.get("/v1/agent/services")[&backups].is_object());
    wait_for("the refusal", || {
        std::fs::read_to_string(house.path("daemon.log")).expect("a log").contains(&format!("{own} is not registered"))
    });
    assert!(found(&own).is_none());
    house.write_secret("token", DATABASE);
    wait_for("the database's service", || found(&own).is_some());
    let service = found(&own).expect("just seen");
    assert_eq!((&service["Address"], &service["Port"]), (&json!("127.0.0.1"), &json!(port)), "{service}");
    assert_eq!(service["Tags"], json!([cluster, "pg17"]), "{service}");
    // Never backed up.
    house.pglife(&["check", &cluster]).exits(30);
    wait_for("the backups' check", || {
        consul.get("/v1/agent/checks")[format!("{backups}-dump")]["Status"] == "critical"
    });
    assert!(found(&own).is_some() && found(&registrator).is_some());

    // Killed in the middle of an upgrade: the daemon takes it back, and it is found again.
    let upgrade = || {
        let mut command = house.command(&["upgrade", &cluster, "--to", "18", "--method", "dump", "--yes"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
    };
    let mut child = upgrade();
    wait_for("the maintenance", || is_in_maintenance(&own) && is_in_maintenance(&registrator));
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert!(found(&own).is_none() && found(&registrator).is_none());
    // Consul lets go of the lock by itself, too, but later.
    house.pglife(&["lock", "break", &cluster, "--yes"]).ok();
    wait_for("the end of the upgrade", || !events(&house, "upgrade.undone").is_empty());
    wait_for("its service again", || found(&own).is_some() && found(&registrator).is_some());

    // A maintenance that somebody else set stays.
    consul.put(&format!("/v1/agent/service/maintenance/{registrator}?enable=true&reason=a%20new%20disk"), &json!(null));
    let mut child = upgrade();
    wait_for("the maintenance", || is_in_maintenance(&own));
    assert!(child.wait().expect("it ends").success());
    assert!(!is_in_maintenance(&own) && is_in_maintenance(&registrator));
    wait_for("its new tags", || found(&own).is_some_and(|service| service["Tags"] == json!([cluster, "pg18"])));
    let state = || consul.get(&format!("/v1/kv/pglife/state/{cluster}/upgrade?raw"));
    wait_for("the upgrade in KV", || state()["phase"] == "upgraded" && state()["is_open"] == false);
    assert_eq!(daemon.stop(), 0);
    // Its backups are not watched any more; the database is served as before.
    assert!(found(&own).is_some() && events(&house, "daemon.failed").is_empty());

    // Without Consul an upgrade is left all the same.
    docker(&["rm", "-f", &house.name("consul")]);
    let ended = house.pglife(&["upgrade", "rollback", &cluster]).ok();
    assert!(ended.stderr.contains("could not be put into maintenance"), "{}", ended.stderr);
}
