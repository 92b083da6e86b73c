//! Servers of drills that are kept: they can be looked at, outlive other commands, and go when their time is up or on a word.

use serde_json::Value;

use crate::house::{House, docker, sql, try_docker, wait_for};

use super::{drill, forge_facts, of_drills, shop};

fn seconds_left(kept: &Value) -> i64 {
    let until: jiff::Timestamp = kept["until"].as_str().expect("a time").parse().expect("a time");
    until.duration_since(jiff::Timestamp::now()).as_secs()
}

/// Bytes of memory and billionths of a processor that a container may use.
fn limits(container: &str) -> String {
    docker(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", container]).trim().to_owned()
}

#[test]
fn a_server_is_kept_used_and_removed() {
    let house = House::new("kept");
    let (cluster, set) = shop(&house, "[drill]\nmemory = \"512MB\"\ncpus = 1\n");
    let server = format!("{cluster}-drill-db");
    house.pglife(&["drill", "remove", &cluster]).exits(5).says(&["keeps a server"]);
    house.pglife(&["drill", &cluster, "--port", "5499"]).exits(2).says(&["--keep"]);

    // Proven, and there was no wish to see a good one.
    let (answer, _) = drill(&house, &[&cluster, "--keep-on-failure"], 0);
    assert!(answer["kept"].is_null());
    assert_eq!(of_drills(&house), Vec::<String>::new());

    let (answer, said) = drill(&house, &[&cluster, "--keep", "4h"], 0);
    assert_eq!(answer["result"], "proven", "{said}");
    let kept = &answer["kept"];
    assert!((14_000..=14_400).contains(&seconds_left(kept)), "{kept}");
    assert!(
        said.contains(&format!("docker exec -it {server} psql -U postgres")) && said.contains("pglife drill remove")
    );
    assert_eq!(sql(&server, "orders", "select count(*) from item"), "1000");
    let network = docker(&["inspect", "-f", "{{.HostConfig.NetworkMode}} {{.HostConfig.PortBindings}}", &server]);
    assert_eq!(network.trim(), "none map[]");
    assert_eq!(limits(&server), "512000000 1000000000", "what the policy allows it");
    let labels = docker(&["inspect", "-f", "{{json .Config.Labels}}", &server]);
    assert!(
        labels.contains("\"SERVICE_IGNORE\":\"true\"") && labels.contains("\"pglife.purpose\":\"kept\""),
        "{labels}"
    );

    let status = &house.items(&["status", &cluster])[0];
    assert_eq!(status["kept"]["until"], kept["until"]);
    house.pglife(&["status", &cluster]).ok().says(&[&server, &format!("pglife drill remove {cluster}")]);

    // The next drill says what is in its way; other commands leave it alone.
    let before = house.items(&["status", &cluster])[0]["proof"]["last_drill"].clone();
    house.pglife(&["drill", &cluster]).exits(11).says(&["is kept until", &format!("pglife drill remove {cluster}")]);
    assert_eq!(house.items(&["status", &cluster])[0]["proof"]["last_drill"], before, "nothing was begun");
    house.backup(&cluster);
    house.pglife(&["repo", "gc"]).ok();
    assert_eq!(sql(&server, "orders", "select count(*) from item"), "1000");
    let gone = house.items(&["drill", "remove", &cluster]);
    assert_eq!(gone.len(), 6, "two containers, four volumes: {gone:?}");
    assert_eq!(of_drills(&house), Vec::<String>::new());

    // A bad backup is one to look at; the server that failed its test is kept, and says so for scripts too.
    forge_facts(&house.set_folder(&cluster, &set), |facts| {
        let tables = facts["databases"]["orders"]["tables"].as_array_mut().expect("tables");
        let item = tables.iter_mut().find(|table| table["name"] == "item").expect("the table");
        item["content"]["rows"]["count"] = 1001.into();
    });
    let (answer, said) = drill(&house, &[&cluster, "--backup", &set, "--keep-on-failure=30s"], 20);
    assert_eq!(answer["result"], "bad", "{said}");
    assert!(seconds_left(&answer["kept"]) <= 30);
    assert_eq!(sql(&server, "orders", "select count(*) from item"), "1000");
    // Until its time is up: then the next command on its engine, whoever gives it, removes it with all that belongs to it.
    wait_for("the end of its time", || seconds_left(&answer["kept"]) < 0);
    house.backup(&cluster);
    assert_eq!(of_drills(&house), Vec::<String>::new());
}

#[test]
fn a_copy_of_the_volumes_is_kept_and_published() {
    let house = House::new("keptvol");
    let (cluster, _) = shop(&house, "");
    let server = format!("{cluster}-drill-db");
    house.items(&["backup", &cluster, "--kind", "volume"]);
    docker(&["update", "--memory", "1g", "--memory-swap", "2g", "--cpus", "1.5", &format!("{cluster}-db")]);
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let ways = ["--backup", "latest:volume", "--keep", "1h", "--port", &port];
    // Somebody has the port: the backup is proven all the same, and nothing half-made is kept.
    let (answer, said) = drill(&house, &[&[cluster.as_str()], &ways[..]].concat(), 3);
    assert!(answer["result"] == "proven" && answer["kept"].is_null(), "{answer}");
    assert!(said.contains("could not be kept"), "{said}");
    assert_eq!(of_drills(&house), Vec::<String>::new());
    drop(taken);
    let (answer, said) = drill(&house, &[&[cluster.as_str()], &ways[..]].concat(), 0);
    assert_eq!(answer["result"], "proven", "{said}");
    // Its files were looked at while it was down; it runs again.
    assert_eq!(sql(&server, "orders", "select count(*) from item"), "1000");
    assert_eq!(limits(&server), "1073741824 1500000000", "as much as the cluster's own");
    assert_eq!(answer["kept"]["address"], format!("127.0.0.1:{port}"));
    let published = docker(&["port", &server]);
    assert_eq!(published.trim(), format!("5432/tcp -> 127.0.0.1:{port}"), "on loopback and nowhere else");
    // From outside, with a password of the cluster's own.
    let address = format!("host=127.0.0.1 port={port} user=keeper password=x dbname=orders");
    let mut psql = std::process::Command::new("docker");
    psql.args(["run", "--rm", "--network", "host", "--entrypoint", "psql", "pglife/postgres:17", "-At", "-c"]);
    psql.args(["select count(*) from item", &address]);
    assert_eq!(crate::house::run(psql).ok().stdout.trim(), "1000");
    // It archives and replicates nowhere, whatever the copy was told to.
    assert_eq!(sql(&server, "postgres", "show archive_mode"), "off");
    // Killed behind our back, nothing of it stays for ever.
    try_docker(&["rm", "-f", &server]).ok();
    house.backup(&cluster);
    assert_eq!(of_drills(&house), Vec::<String>::new());
}
