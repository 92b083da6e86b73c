//! The files of adopted clusters: copied from wherever they lie, and restored into clusters of pglife's own.

use serde_json::json;

use super::OFFICIAL;
use crate::house::{House, docker, sql, try_docker, wait_for_server};
use crate::volume::{SUMS_AGREE, beside, everything, is_left_alone};

/// An image like the official one, whose server is another user, and whose `ldd` tells of another C library: what an image of
/// another distribution looks like to pglife.
struct Elsewhere(String);

impl Elsewhere {
    fn build(house: &House) -> Self {
        let name = format!("{}:17", house.name("elsewhere"));
        let folder = house.path("image");
        std::fs::create_dir(&folder).expect("a folder");
        let change = "usermod -u 4711 postgres && groupmod -g 4712 postgres && chown -R postgres:postgres /var/lib/postgresql && \
             printf '#!/bin/sh\\necho ldd 2.19\\n' >/usr/local/bin/ldd && chmod 0755 /usr/local/bin/ldd";
        house.write("image/Dockerfile", &format!("FROM {OFFICIAL}\nRUN {change}\n"));
        docker(&["build", "-q", "--network=none", "-t", &name, &folder.to_string_lossy()]);
        Self(name)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        try_docker(&["rmi", "-f", &self.0]);
    }
}

#[test]
fn they_are_copied_wherever_they_lie() {
    let house = House::new("adoptfiles");
    let image = Elsewhere::build(&house);
    let rules = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\n";
    house.write("rules", rules);
    let volume = |short: &str, at: &str| format!("{}:{at}", house.volume(short));
    let mounts = [
        volume("data", "/srv"),
        volume("ssd", "/mnt"),
        volume("wal", "/wal"),
        format!("{}:/etc/rules/pg_hba.conf:ro", house.path("rules").display()),
    ];
    let variables = ["PGDATA=/srv/pg/17", "POSTGRES_INITDB_WALDIR=/wal/17", "POSTGRES_PASSWORD=x", "PGPORT=5433"];
    let mut arguments: Vec<&str> = mounts.iter().flat_map(|mount| ["-v", mount]).collect();
    arguments.extend(variables.iter().flat_map(|variable| ["-e", variable]));
    arguments.extend([&image.0, "postgres", "-c", "hba_file=/etc/rules/pg_hba.conf"]);
    let legacy = house.foreign("legacy", &arguments);
    wait_for_server(&legacy);
    assert_eq!(docker(&["exec", &legacy, "readlink", "/srv/pg/17/pg_wal"]).trim(), "/wal/17");
    docker(&["exec", &legacy, "install", "-d", "-o", "postgres", "-g", "postgres", "/mnt/fast one"]);
    for statement in [
        "create tablespace fast location '/mnt/fast one'",
        "create table kept tablespace fast as select n, md5(n::text) as label from generate_series(1, 20000) n",
        "create index kept_label on kept (label) tablespace fast",
    ] {
        sql(&legacy, "postgres", statement);
    }
    docker(&["exec", "-u", "postgres", &legacy, "pgbench", "-i", "-q", "-s", "2", "postgres"]);
    house.pglife(&["cluster", "adopt", &legacy]).ok();

    let planned = house.items(&["backup", &legacy, "--kind", "volume", "--dry-run"]).remove(0);
    let moved = json!([
        { "from": "/srv/pg/17", "to": "/data/17" },
        { "from": "/mnt/fast one", "to": "/data/tablespaces/mnt/fast one" }
    ]);
    assert_eq!(planned["moved"], moved);
    let shown = house.pglife(&["backup", &legacy, "--kind", "volume", "--dry-run"]).ok().stdout;
    assert!(shown.contains("/mnt/fast one") && shown.contains("/data/tablespaces/mnt/fast one"), "{shown}");
    beside(&legacy, "pgbench -n -c 2 -T 15 postgres");
    let full = house.items(&["backup", &legacy, "--kind", "volume", "--incremental"]).remove(0);
    assert_eq!(full["warnings"], json!([]));
    sql(&legacy, "postgres", "insert into kept values (0, 'later')");
    let taken = house.items(&["backup", &legacy, "--kind", "volume", "--incremental"]).remove(0);
    is_left_alone(&legacy);
    let set = taken["set"].as_str().expect("an id");
    let object = house.manifest(&legacy, set)["objects"][0].clone();
    assert_eq!((&object["name"], &object["moved"]), (&"volume.changes.zst".into(), &moved));
    house.pglife(&["drill", &legacy, "--backup", "latest:volume"]).exits(3).says(&["/etc/rules/pg_hba.conf"]);

    let copy = house.name("copy");
    let restored = house.pglife(&["restore", &legacy, "--backup", set, "--into", &copy]).exits(3);
    restored.says(&["/etc/rules/pg_hba.conf", "not in the backup", "/config"]);
    let container = format!("{copy}-db");
    assert_eq!(sql(&container, "postgres", SUMS_AGREE), "t");
    assert_eq!(sql(&container, "postgres", "select count(*), min(label) is not null from kept"), "20001|t");
    let place = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'";
    assert_eq!(sql(&container, "postgres", place), "/data/tablespaces/mnt/fast one");
    let owner =
        docker(&["exec", &container, "sh", "-c", "find /data/17 /data/tablespaces/mnt/fast* -not -user postgres"]);
    assert_eq!(owner, "", "everything is the server's");
    // Text may sort otherwise in the new image.
    let file = "select pg_relation_filenode('kept_label'), pg_relation_filenode('kept')";
    let [old, new] = [&legacy, &container].map(|container| sql(container, "postgres", file));
    let [(old_index, old_table), (new_index, new_table)] = [&old, &new].map(|both| both.split_once('|').expect("two"));
    assert!(old_index != new_index && old_table == new_table, "{old} became {new}");
    let policy = std::fs::read_to_string(house.path(&format!("policies/{copy}.toml"))).expect("a policy");
    assert!(!policy.contains("image"), "it is made from pglife's own: {policy}");
    // A cluster like any other: it is restarted, backed up whole, and removed.
    docker(&["restart", &container]);
    wait_for_server(&container);
    let whole = house.items(&["backup", &copy, "--kind", "volume"]).remove(0);
    let all = &house.manifest(&copy, whole["set"].as_str().expect("an id"))["objects"][0]["volumes"];
    assert_eq!(all, &json!(["/data", "/config", "/secret", "/log"]));
    house.pglife(&["cluster", "remove", &copy, "--volumes", "--yes"]).ok();
}

#[test]
fn they_are_copied_while_the_server_is_stopped_and_come_back_by_hand_too() {
    let house = House::new("adoptcold");
    let folder = house.path("data");
    std::fs::create_dir(&folder).expect("a folder");
    let bind = format!("{}:/var/lib/postgresql/data", folder.display());
    let legacy = house.foreign("legacy", &["-v", &bind, "-e", "POSTGRES_PASSWORD=x", OFFICIAL]);
    wait_for_server(&legacy);
    sql(&legacy, "postgres", "create table t as select i, md5(i::text) as note from generate_series(1, 1000) i");
    house.pglife(&["cluster", "adopt", &legacy]).ok();
    let before = everything(&legacy);
    let taken = house.items(&["backup", &legacy, "--kind", "volume", "--mode", "cold"]).remove(0);
    assert_eq!(taken["warnings"], json!([]));
    assert_eq!(everything(&legacy), before, "it is back, as it was");

    let copy = house.name("copy");
    house.pglife(&["restore", &legacy, "--backup", "latest:volume", "--into", &copy]).ok();
    assert_eq!(everything(&format!("{copy}-db")), before);

    let folder = house.set_folder(&legacy, taken["set"].as_str().expect("an id"));
    let text = std::fs::read_to_string(folder.join("RECOVER.md")).expect("instructions");
    crate::recovery::follow(&text, &folder);
    assert_eq!(everything(&format!("recovered-{legacy}")), before);
}

#[test]
fn what_cannot_be_copied_is_refused() {
    let house = House::new("adoptrefused");
    // Its data is gone with the container.
    let inside = house.foreign("inside", &["-e", "PGDATA=/inside", "-e", "POSTGRES_PASSWORD=x", OFFICIAL]);
    wait_for_server(&inside);
    house.pglife(&["cluster", "adopt", &inside]).exits(3).says(&["lies in the container itself"]);
    let refused = house.pglife(&["backup", &inside, "--kind", "volume"]).exits(4);
    refused.says(&["/inside", "lies in the container itself", "--kind dump"]);

    let mount = format!("{}:/var/lib/postgresql/data", house.volume("data"));
    let spread = house.foreign("spread", &["-v", &mount, "-e", "POSTGRES_PASSWORD=x", OFFICIAL]);
    wait_for_server(&spread);
    docker(&["exec", &spread, "install", "-d", "-o", "postgres", "/elsewhere"]);
    sql(&spread, "postgres", "create tablespace fast location '/elsewhere'");
    house.pglife(&["cluster", "adopt", &spread]).ok();
    let refused = house.pglife(&["backup", &spread, "--kind", "volume"]).exits(4);
    refused.says(&["fast", "/elsewhere", "/var/lib/postgresql/data"]);
    assert_eq!(house.items(&["backups", "list", &spread]), [serde_json::Value::Null; 0]);
    is_left_alone(&spread);
}
