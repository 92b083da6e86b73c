//! One database out of a copy of volumes: it is as it was when the copy ended, and of the others nothing is there.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{beside, is_left_alone, let_rest};
use crate::house::{House, docker, sql, try_docker, wait_for, wait_for_server};

/// What must be the same in the source and in what was restored.
const CONTENT: &str = "select (select md5(string_agg(l::text, '' order by n)) from lines l), \
    (select md5(string_agg(e::text, '' order by n)) from elsewhere e), (select count(*) from big), \
    (select pg_get_userbyid(relowner) from pg_class where relname = 'lines'), \
    (select spcname from pg_tablespace t join pg_class c on c.reltablespace = t.oid where relname = 'elsewhere')";

/// A table that must be named with care: its schema and name, and how SQL writes both.
const ODD: [&str; 2] = ["odd schema.Big-$ \"one\".?", "\"odd schema\".\"Big-$ \"\"one\"\".?\""];

/// Two databases with tables in a tablespace. Of the second, many tables wait for their first vacuum; without page checksums, that
/// changes pages without writing all of them into the WAL.
fn working(house: &House) -> String {
    let cluster = house.cluster("source", "17", "");
    let container = format!("{cluster}-db");
    docker(&["stop", &container]);
    let tool = "/usr/lib/postgresql/17/bin/pg_checksums";
    let from =
        ["run", "--rm", "--network", "none", "--volumes-from", &container, "-u", "postgres", "--entrypoint", tool];
    docker(&[&from[..], &["pglife/postgres:17", "--disable", "-D", "/data/17"]].concat());
    docker(&["start", &container]);
    wait_for_server(&container);
    docker(&["exec", &container, "install", "-d", "-o", "postgres", "-g", "postgres", "/data/table spaces/fast one"]);
    for statement in
        ["create tablespace fast location '/data/table spaces/fast one'", "create role keeper", "create database one"]
    {
        sql(&container, "postgres", statement);
    }
    sql(&container, "postgres", "create database two tablespace fast");
    for statement in [
        "create table lines as select n, md5(n::text) as label from generate_series(1, 20000) n",
        "create index on lines (label)",
        "alter table lines owner to keeper",
        "create table elsewhere tablespace fast as select n, n::text as label from generate_series(1, 5000) n",
        "create table big as select n, repeat(md5(n::text), 9) as filler from generate_series(1, 60000) n",
        "create table witness (n int primary key, lsn pg_lsn)",
        "create table rewritten as select n from generate_series(1, 3000) n",
        "create schema \"odd schema\"",
        &format!("create table {} (n int generated always as identity, filler text)", ODD[1]),
        &format!("alter table {} alter filler set storage external", ODD[1]),
        &format!("insert into {} (filler) select repeat(md5(n::text), 300) from generate_series(1, 50) n", ODD[1]),
        "vacuum full pg_class",
        "vacuum full pg_index",
    ] {
        sql(&container, "one", statement);
    }
    for statement in [
        "create table secret as select n, repeat(md5(n::text), 9) as filler from generate_series(1, 100000) n",
        "create table hashed as select n from generate_series(1, 20000) n",
        "create index on hashed using hash (n)",
        "do $$ begin for i in 1..400 loop execute format('create table waits%s as select n from generate_series(1, 300) n', i); \
         end loop; end $$",
    ] {
        sql(&container, "two", statement);
    }
    cluster
}

/// In both databases something happens all the time.
fn let_work(container: &str) {
    let insert = "insert into witness select coalesce(max(n), 0) + 1, pg_current_wal_insert_lsn() from witness";
    beside(
        container,
        &format!("for i in $(seq 400); do echo '{insert}; select pg_sleep(0.01);'; done | psql -X -q -d one"),
    );
    beside(container, "for i in $(seq 6000); do echo 'vacuum full rewritten;'; done | psql -X -q -d one");
    beside(
        container,
        "for i in $(seq 400); do echo \"vacuum waits$i; select pg_sleep(0.02);\"; done | psql -X -q -d two",
    );
    let shuffle = "delete from hashed where n % 7 = 0; vacuum hashed; insert into hashed select n from generate_series(1, 5000) n; \
        update secret set n = n where n % 100 = 0; create table dropped as select * from secret limit 1000; drop table dropped;";
    beside(container, &format!("for i in $(seq 200); do echo \"{shuffle}\"; done | psql -X -q -d two"));
    wait_for("work in the source", || sql(container, "one", "select count(*) > 5 from witness") == "t");
}

/// Takes a copy. Returns it, and what its objects are called.
fn back_up(house: &House, cluster: &str, key: &str) -> (String, Vec<String>) {
    let taken = house.pglife(&["backup", cluster, "--kind", "volume", "-o", "json"]);
    // It may be told that it does not build on the one before, which is encrypted.
    assert!([0, 3].contains(&taken.exit), "{}", taken.stderr);
    let taken: Value = serde_json::from_str(&taken.stdout).expect("JSON");
    let set = taken["items"][0]["set"].as_str().expect("an id").to_owned();
    let shown = house.items(&["backups", "show", cluster, "--backup", &set, "--identity", key]).remove(0);
    let names = shown["objects"].as_array().expect("objects").iter().filter_map(|object| object["name"].as_str());
    let names = names.filter(|name| name.starts_with("volume.")).map(str::to_owned).collect();
    (set, names)
}

/// Containers and volumes of throwaway servers and their dumps.
fn left_over(house: &House) -> String {
    let name = format!("name={}", house.name("part"));
    let containers = docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &name]);
    let volumes = docker(&["volume", "ls", "-q", "--filter", &format!("label=pglife.cluster={}", house.name("part"))]);
    let beside = format!("label=pglife.cluster={}", house.name("part-extract"));
    containers + &volumes + &docker(&["volume", "ls", "-q", "--filter", &beside])
}

#[test]
fn one_database_comes_out_of_a_copy_of_the_volumes() {
    let house = House::new("extract");
    let source = working(&house);
    let container = format!("{source}-db");
    let expected = sql(&container, "one", CONTENT);
    let part = house.name("part");
    let restored = format!("{part}-db");
    let restore = |set: &str, more: &[&str]| {
        house.pglife(&[&["restore", &source, "--backup", set, "--into", &part, "--database", "one"], more].concat())
    };
    let remove = || house.pglife(&["cluster", "remove", &part, "--volumes", "--yes"]).ok();

    // A full copy without an index, encrypted, while both databases are written to.
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    let [key, _] = house.encrypt();
    sql(&container, "postgres", "checkpoint");
    let_work(&container);
    let (full, names) = back_up(&house, &source, &key);
    assert_eq!(names, ["volume.tar.zst.age"]);
    is_left_alone(&container);
    let_rest(&container);
    let planned = restore(&full, &["--identity", &key, "--dry-run", "-o", "json"]).ok();
    let planned: Value = serde_json::from_str(&planned.stdout).expect("JSON");
    let databases = planned["items"][0]["databases"].as_array().expect("a list").iter();
    let unpacked: Vec<(&str, bool)> = databases
        .map(|one| (one["database"].as_str().expect("a name"), one["unpacked"].as_bool().expect("yes or no")))
        .collect();
    assert_eq!(unpacked, [("admin", false), ("one", true), ("postgres", true), ("template1", true), ("two", false)]);
    restore(&full, &["--identity", &key]).ok();
    assert_eq!(sql(&restored, "one", CONTENT), expected);
    let stop = house.items(&["backups", "show", &source, "--backup", &full, "--identity", &key]).remove(0);
    let stop = stop["objects"][0]["stop_lsn"].as_str().expect("an LSN").to_owned();
    let committed = sql(&container, "one", &format!("select max(n) - 1 from witness where lsn <= '{stop}'"));
    assert!(committed.parse::<u32>().expect("some rows") > 4, "{committed}");
    assert_eq!(sql(&restored, "one", &format!("select count(*) from witness where n <= {committed}")), committed);
    let databases = "select string_agg(datname, ' ' order by datname) from pg_database";
    assert_eq!(sql(&restored, "postgres", databases), "one postgres template0 template1");
    remove();
    // The file that a table is in was made after the catalogue was copied.
    restore(&full, &["--identity", &key, "--table", "rewritten"])
        .exits(3)
        .says(&["all of database \"one\" was unpacked", "only public.rewritten has rows"]);
    assert_eq!(
        sql(&restored, "one", "select (select count(*) from rewritten), (select count(*) from lines)"),
        "3000|0"
    );
    remove();
    assert_eq!(left_over(&house), "");
    house.write("pglife.toml", &settings);

    // One that builds on another: rows of the database lie in both.
    house.policy("source", "17", "[backup.volume]\nfull_every = 3");
    let (_, names) = back_up(&house, &source, &key);
    assert_eq!(names, ["volume.tar.zst", "volume.blocks.zst"]);
    for statement in [
        "delete from lines where n % 50 = 0",
        "insert into elsewhere select n, 'new' from generate_series(6000, 6100) n",
        "create sequence nobodys start 77; alter table lines alter n set default nextval('nobodys'); select nextval('nobodys')",
    ] {
        sql(&container, "one", statement);
    }
    sql(&container, "two", "create table more as select * from secret");
    let_work(&container);
    let (incremental, names) = back_up(&house, &source, &key);
    assert_eq!(names, ["volume.changes.zst", "volume.blocks.zst"]);
    let_rest(&container);
    let changed = sql(&container, "one", CONTENT);
    assert_ne!(changed, expected);

    // Killed on its way, it leaves what the next command removes.
    let mut command: Command =
        house.command(&["restore", &source, "--backup", &incremental, "--into", &part, "--database", "one"]);
    let mut killed =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("started");
    let throwaway = format!("{part}-extract-db");
    wait_for("the throwaway server", || try_docker(&["inspect", &throwaway]).exit == 0);
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    // Its worker ends with it, sooner or later.
    std::thread::sleep(Duration::from_millis(200));
    let absent = restore(&incremental, &["--table", "public.absent", "--progress", "plain"]).exits(5);
    let absent = absent.says(&["has no table public.absent", "looking for the files of public.absent"]);
    assert!(!absent.stderr.contains("dumping"), "{}", absent.stderr);
    assert_eq!(left_over(&house), "");

    let part_of_it = restore(&incremental, &["--table", "lines"]).exits(3).says(&["only public.lines has rows"]);
    assert!(!part_of_it.stderr.contains("was unpacked"), "{}", part_of_it.stderr);
    let rows = "select (select count(*) from lines), (select count(*) from big), (select count(*) from elsewhere)";
    assert_eq!(sql(&restored, "one", rows), "19600|0|0");
    assert_eq!(sql(&restored, "one", "select nextval('nobodys')"), "78", "the next default of lines");
    assert_eq!(sql(&restored, "postgres", databases), "one postgres template0 template1");
    remove();
    // Into a newer major, as a dump goes.
    std::fs::remove_file(house.path(&format!("policies/{part}.toml"))).expect("the policy of the one before");
    restore(&incremental, &["--major", "18"]).ok();
    assert_eq!(sql(&restored, "one", CONTENT), changed);
    assert_eq!(sql(&restored, "one", "show server_version_num").get(..2), Some("18"));
    remove();

    let unknown = ["restore", &source, "--backup", &incremental, "--into", &part, "--database", "three"];
    house
        .pglife(&unknown)
        .exits(5)
        .says(&["database \"three\" is not in the backup; it has: admin, one, postgres, template1, two"]);
    sql(&container, "postgres", "alter database two allow_connections false");
    // Where another relation cannot be read, a table comes out all the same.
    let content = format!("select count(*), md5(string_agg(filler, '' order by n)) from {}", ODD[1]);
    let expected = sql(&container, "one", &content);
    let big = sql(&container, "one", "select pg_relation_filepath('big')");
    let spoil = format!("dd if=/dev/urandom of=/data/17/{big} bs=8192 seek=9 count=50 conv=notrunc");
    docker(&["exec", &container, "sh", "-c", &spoil]);
    let (shut, _) = back_up(&house, &source, &key);
    std::fs::remove_file(house.path(&format!("policies/{part}.toml"))).expect("the policy of the one before");
    let odd = restore(&shut, &["--table", ODD[0]]).exits(3);
    assert!(!odd.stderr.contains("was unpacked"), "{}", odd.stderr);
    assert_eq!(sql(&restored, "one", &content), expected);
    let next = format!("insert into {} (filler) values ('') returning n", ODD[1]);
    assert_eq!(sql(&restored, "one", &next).lines().next(), Some("51"));
    remove();
    restore(&shut, &[]).exits(1).says(&["database \"one\"", "invalid page"]);
    let refused = ["restore", &source, "--backup", &shut, "--into", &part, "--database", "two"];
    house.pglife(&refused).exits(4).says(&["refused connections", "without --database"]);
    assert_eq!(left_over(&house), "");
    let verified = house.items(&["backups", "verify", &source, "--identity", &key]);
    assert!(verified.len() == 4 && verified.iter().all(|one| one["intact"] == true), "{verified:?}");
}
