//! Copies that build on each other: each is whole, none is larger than what changed, and nobody takes away what it needs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{SUMS_AGREE, is_accepted, is_left_alone, let_rest, let_work, pages_are_sound, working};
use crate::house::{House, docker, files_below, sql};
use crate::s3::Server;

const CHAINS_OF_THREE: &str = "[backup.volume]\nfull_every = 3";

/// What was taken, and the objects in it.
struct Taken {
    set: String,
    stored: u64,
    parent: Option<String>,
    objects: Vec<String>,
}

fn take(house: &House, cluster: &str, more: &[&str]) -> Taken {
    let taken = house.items(&[&["backup", cluster, "--kind", "volume"], more].concat()).remove(0);
    assert_eq!(taken["warnings"], serde_json::json!([]));
    let peak = taken["worker_peak_memory_bytes"].as_u64().expect("a number");
    assert!(peak > 0 && peak < 256 << 20, "the worker used {peak} bytes");
    let set = taken["set"].as_str().expect("an id").to_owned();
    let listed = house.items(&["backups", "list", cluster]);
    let listed = listed.iter().find(|one| one["set"] == taken["set"]).expect("it is listed");
    let shown = house.items(&["backups", "show", cluster, "--backup", &set]).remove(0);
    let names = shown["objects"].as_array().expect("objects").iter().filter_map(|object| object["name"].as_str());
    Taken {
        set,
        stored: taken["stored_bytes"].as_u64().expect("a number"),
        parent: listed["parent"].as_str().map(str::to_owned),
        objects: names.filter(|name| name.starts_with("volume.")).map(str::to_owned).collect(),
    }
}

/// Rows that were committed before a copy ended; all of them must be in it.
fn mark(container: &str, mark: &str) {
    sql(
        container,
        "postgres",
        &format!("create table if not exists mark (n text); insert into mark values ('{mark}')"),
    );
}

pub(super) fn marks(container: &str) -> String {
    sql(container, "postgres", "select string_agg(n, ' ' order by n) from mark")
}

#[test]
fn every_copy_of_a_chain_is_whole() {
    let house = House::new("volchain");
    let source = working(&house, "17", CHAINS_OF_THREE);
    let container = format!("{source}-db");
    mark(&container, "1");
    let first = take(&house, &source, &[]);
    assert_eq!(
        (first.parent, first.objects),
        (None, vec!["volume.tar.zst".to_owned(), "volume.blocks.zst".to_owned()])
    );

    // Relations are extended, rewritten, dropped, moved and truncated between the copies, and while they are made.
    for statement in [
        "update pgbench_accounts set abalance = abalance where aid % 1000 = 0",
        "create table later as select n, md5(n::text) as label from generate_series(1, 5000) n",
        "alter table kept set tablespace pg_default",
        "truncate truncated",
        "vacuum full rewritten",
    ] {
        sql(&container, "postgres", statement);
    }
    mark(&container, "2");
    // Not all of a chain has to be written with one codec.
    house.policy("source", "17", &format!("{CHAINS_OF_THREE}\ncodec = \"gzip:6\""));
    let second = take(&house, &source, &[]);
    assert_eq!(second.parent.as_ref(), Some(&first.set));
    assert_eq!(second.objects, ["volume.changes.gz", "volume.blocks.gz"]);
    house.policy("source", "17", CHAINS_OF_THREE);
    assert!(second.stored < first.stored / 2, "{} of {}", second.stored, first.stored);
    sql(&container, "postgres", "drop table later; alter table kept set tablespace fast");
    let_work(&container);
    mark(&container, "3");
    let third = take(&house, &source, &[]);
    assert_eq!(third.parent.as_ref(), Some(&second.set));
    is_left_alone(&container);
    let_rest(&container);
    // Three in a row are enough.
    let fourth = take(&house, &source, &[]);
    assert_eq!((&fourth.parent, fourth.objects[0].as_str()), (&None, "volume.tar.zst"));
    let verified = house.items(&["backups", "verify", &source]);
    assert!(verified.len() == 4 && verified.iter().all(|one| one["intact"] == true), "{verified:?}");

    // Each restores with one command, and without pglife.
    for (number, set) in [("2", &second.set), ("3", &third.set)] {
        let copy = house.name(&format!("copy{number}"));
        house.pglife(&["restore", &source, "--backup", set, "--into", &copy]).ok();
        let restored = format!("{copy}-db");
        assert_eq!(sql(&restored, "postgres", SUMS_AGREE), "t", "{set}");
        assert_eq!(marks(&restored), if number == "2" { "1 2" } else { "1 2 3" }, "{set}");
        assert_eq!(sql(&restored, "postgres", "select count(*), min(label) is not null from kept"), "20000|t");
        let later = sql(&restored, "postgres", "select to_regclass('later') is not null");
        assert_eq!(later, if number == "2" { "t" } else { "f" });
        docker(&["stop", &restored]);
        pages_are_sound(&restored);
    }
    let folder = house.set_folder(&source, &third.set);
    let text = fs::read_to_string(folder.join("RECOVER.md")).expect("instructions");
    crate::recovery::follow(&text, &folder);
    let recovered = format!("recovered-{source}");
    assert_eq!(sql(&recovered, "postgres", SUMS_AGREE), "t");
    assert_eq!(marks(&recovered), "1 2 3");

    // Exported, it is a full one, which needs no other.
    let planned = house.items(&["backup", &source, "--kind", "volume", "--dry-run"]).remove(0);
    assert_eq!(planned["blocks"]["ancestors"], serde_json::json!([fourth.set]));
    let out = house.path("out");
    house.pglife(&["backups", "export", &source, "--backup", &second.set, "--to", &out.to_string_lossy()]).ok();
    assert_eq!(out.metadata().expect("it is there").mode() & 0o7777, 0o700);
    let mut names: Vec<String> =
        files_below(&out).iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["COMMIT", "RECOVER.md", "manifest.json", "recipe.json", "volume.tar.gz"]);
    let label = format!("tar -xOf - data/17/backup_label < <(gzip -dc {}/volume.tar.gz)", out.display());
    let label = Command::new("bash").args(["-c", &label]).output().expect("it runs");
    let label = String::from_utf8_lossy(&label.stdout).into_owned();
    assert!(label.contains(&format!("LABEL: pglife {}", second.set)), "{label}");
    files_are_fetched(&house, &source, &second.set, &out.join("volume.tar.gz"));

    needs_are_known(&house, &source, [&first.set, &second.set, &third.set]);
}

/// Single files of an incremental set, which changed or did not, and which its index knows or does not, are what they are in `tar`.
fn files_are_fetched(house: &House, source: &str, set: &str, tar: &Path) {
    let stock = house.path("stock");
    fs::create_dir(&stock).expect("a folder");
    let (tar, stock_folder) = (tar.to_string_lossy(), stock.to_string_lossy());
    // Owners are of no use here.
    let unpacked = Command::new("tar").args(["--no-same-owner", "-xzf", &tar, "-C", &stock_folder]).status();
    assert!(unpacked.expect("it runs").success());
    let changed = sql(&format!("{source}-db"), "postgres", "select pg_relation_filepath('pgbench_accounts')");
    let changed = format!("data/17/{changed}");
    let fetch = |to: &str, names: &[&str]| {
        let to = house.path(to);
        let mut arguments = vec!["backups", "export", source, "--backup", set, "-o", "json"];
        let folder = to.to_string_lossy().into_owned();
        arguments.extend(["--to", &folder]);
        arguments.extend(names.iter().flat_map(|name| ["--path", *name]));
        (house.pglife(&arguments), to)
    };
    let fetches: [&[&str]; 2] =
        [&[&changed, "/data/17/PG_VERSION"], &["data/17/pg_wal", "data/17/base/1", "config", &changed]];
    for (number, names) in fetches.into_iter().enumerate() {
        let (ended, to) = fetch(&format!("fetched{number}"), names);
        let answer: Value = serde_json::from_str(&ended.ok().stdout).expect("JSON");
        let fetched = files_below(&to);
        let below = |name: &&str| files_below_or_itself(&stock.join(name.trim_start_matches('/')));
        let mut expected: Vec<PathBuf> = names.iter().flat_map(below).collect();
        expected.sort();
        let inside = |paths: &[PathBuf], folder: &Path| -> Vec<PathBuf> {
            paths.iter().map(|path| path.strip_prefix(folder).expect("below").to_owned()).collect()
        };
        assert_eq!(inside(&fetched, &to), inside(&expected, &stock));
        let mut bytes = 0;
        for (file, other) in fetched.iter().zip(&expected) {
            assert!(fs::read(file).expect("read") == fs::read(other).expect("read"), "{}", file.display());
            let metadata = file.metadata().expect("it is there");
            bytes += metadata.len();
            assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, to.metadata().expect("there").uid()));
        }
        assert_eq!(to.metadata().expect("it is there").mode() & 0o7777, 0o700);
        let item = &answer["items"][0];
        assert_eq!((&item["files"], &item["bytes"]), (&fetched.len().into(), &bytes.into()));
    }
    let (ended, to) = fetch("nothing", &[&changed, "data/17/base/nothing"]);
    ended.exits(5).says(&["data/17/base/nothing", "data/17/postgresql.conf", "pg_relation_filepath"]);
    assert!(!to.exists());
}

fn files_below_or_itself(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { files_below(path) } else { vec![path.to_owned()] }
}

/// Nobody takes away what another set needs, and damage to it is told of every set that it is damage to.
fn needs_are_known(house: &House, source: &str, [first, second, third]: [&String; 3]) {
    let delete = |set: &str| house.pglife(&["backups", "delete", source, "--backup", set, "--yes", "--force"]);
    delete(first).exits(4).says(&[second, "builds on it", "delete that one first"]);
    let policy = format!("{CHAINS_OF_THREE}\n[retention]\nlast = 2");
    house.policy("source", "17", &policy);
    let pruned = house.items(&["prune", source, "--confirm"]);
    assert!(pruned.iter().all(|one| one["outcome"] == "kept"), "{pruned:?}");
    let reasons = |set: &str| {
        let found = pruned.iter().find(|one| one["set"] == set).expect("it is there");
        found["reasons"].to_string()
    };
    assert!(reasons(first).contains(second.as_str()) && reasons(second).contains(third.as_str()));

    let object = house.set_folder(source, first).join("volume.tar.zst");
    let mut bytes = fs::read(&object).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, bytes).expect("written");
    // What a fetch does not need, it does not read.
    let fetch = |name: &str| {
        let to = house.path("spoiled").to_string_lossy().into_owned();
        house.pglife(&["backups", "export", source, "--backup", first, "--path", name, "--to", &to])
    };
    fetch("data").exits(21).says(&["volume.tar.zst", "pglife backups verify"]);
    assert!(!house.path("spoiled").exists());
    fetch("data/17/PG_VERSION").ok();
    let verified = house.pglife(&["backups", "verify", source, "-o", "json", "--backup", third]).exits(21);
    verified.says(&[&format!("{third} in repository \"local\" builds on {first}, which is damaged")]);
    // Changed bytes are not taken for content: where they are needed, the restore ends.
    let into = house.name("spoiled");
    let restored = house.pglife(&["restore", source, "--backup", third, "--into", &into]);
    assert!([0, 21].contains(&restored.exit), "{}", restored.stderr);
    fs::remove_file(&object).expect("removed");
    let lost = house.name("lost");
    house.pglife(&["restore", source, "--backup", third, "--into", &lost]).exits(21).says(&[first]);
    // The next copy does not need what is gone.
    let fifth = take(house, source, &[]);
    assert!(fifth.parent.as_ref().is_some_and(|parent| parent != third));
    // Nor one whose blocks are not known any more, and says so.
    let planned = || house.items(&["backup", source, "--kind", "volume", "--dry-run"]).remove(0);
    assert_eq!(planned()["blocks"]["ancestors"][0], fifth.set);
    fs::remove_file(house.set_folder(source, &fifth.set).join("volume.blocks.zst")).expect("removed");
    let full = house.pglife(&["backup", source, "--kind", "volume", "-o", "json"]).exits(3);
    full.says(&["a full copy was taken", &fifth.set]);
    delete(third).ok();
    delete(second).ok();
    delete(first).ok();
}

#[test]
fn a_chain_is_sealed_copied_and_proven_out_of_a_bucket() {
    let house = House::new("volchains3");
    let key = house.encrypt()[0].clone();
    let server = Server::start(&house, "s3");
    server.offsite(&house, "pglife-chain");
    let source = house.cluster("source", "15", "[backup.dump]\nrepos = [\"offsite\", \"local\"]");
    let container = format!("{source}-db");
    sql(&container, "postgres", "create table t as select n, md5(n::text) as label from generate_series(1, 300000) n");
    // Whoever reads the rows first marks them as committed, on every page.
    sql(&container, "postgres", "vacuum t");
    // Whether the secret key is here or not.
    let identity = ["--identity", key.as_str()];
    let back_up = |more: &[&str]| {
        let taken = house.items(&[&["backup", &source, "--kind", "volume", "--incremental"], more].concat()).remove(0);
        (taken["set"].as_str().expect("an id").to_owned(), taken["stored_bytes"].as_u64().expect("a number"))
    };
    let (first, full) = back_up(&[]);
    sql(&container, "postgres", "update t set label = 'x' where n < 100");
    let (second, changed) = back_up(&["--mode", "cold"]);
    assert!(changed < full / 2, "{changed} of {full}");
    sql(&container, "postgres", "delete from t where n > 200000");
    let (third, _) = back_up(&[]);
    let listed = house.items(&["backups", "list", &source]);
    let parents: Vec<&Value> = listed.iter().map(|one| &one["parent"]).collect();
    assert_eq!(parents, [&Value::Null, &first.as_str().into(), &second.as_str().into()]);

    // One repository loses all of it, and gets it back, parents first.
    fs::remove_dir_all(house.path(&format!("repo/{source}"))).expect("removed");
    let copied = house.items(&["repo", "sync", "local"]);
    assert_eq!(copied.iter().map(|one| one["set"].clone()).collect::<Vec<_>>(), [first.as_str(), &second, &third]);
    house.pglife(&[&["backups", "verify", &source], &identity[..]].concat()).ok();
    // Out of the bucket alone; the certificate cannot be written to the other one.
    fs::rename(house.path("repo"), house.path("away")).expect("moved");
    let to = house.path("fetched").to_string_lossy().into_owned();
    let fetch = [
        "backups",
        "export",
        &source,
        "--backup",
        &third,
        "--path",
        "/data/15/PG_VERSION",
        "--path",
        "secret",
        "--to",
        &to,
    ];
    house.pglife(&fetch).exits(12).says(&["--identity"]);
    house.pglife(&[&fetch, &identity[..]].concat()).ok();
    assert_eq!(fs::read_to_string(house.path("fetched/data/15/PG_VERSION")).expect("fetched"), "15\n");
    assert!(house.path("fetched/secret/adminpass").is_file());
    let drilled = house.pglife(&[&["drill", &source, "--backup", "latest:volume"], &identity[..]].concat()).exits(3);
    drilled.says(&["proven"]);
    let copy = house.name("copy");
    house.pglife(&[&["restore", &source, "--backup", &third, "--into", &copy], &identity[..]].concat()).ok();
    let rows = "select count(*), count(*) filter (where label = 'x') from t";
    assert_eq!(sql(&format!("{copy}-db"), "postgres", rows), "200000|99");
}

/// What is in a table.
fn content(container: &str, database: &str, table: &str) -> String {
    let all = format!("select count(*) || ' ' || md5(string_agg(t::text, ',' order by t::text)) from {table} t");
    sql(container, database, &all)
}

/// What a set's manifest says of the copy that it builds on.
fn incremental(house: &House, cluster: &str, set: &str) -> Value {
    house.manifest(cluster, set)["objects"][0]["incremental"].clone()
}

#[test]
fn only_what_the_server_says_has_changed_is_read() {
    let house = House::new("volsummaries");
    let source = working(&house, "17", "[backup.volume]\nfull_every = 9");
    let container = format!("{source}-db");
    let here = |statement: &str| sql(&container, "postgres", statement);
    let rows = "n, repeat(md5(n::text), 3) as label from generate_series(1, 40000) n";
    for statement in [
        "alter system set summarize_wal = on",
        "select pg_reload_conf()",
        &format!("create table still with (autovacuum_enabled = off) as select {rows}"),
        &format!("create table grows as select {rows}"),
        &format!("create table shrinks as select {rows}"),
        &format!("create table dropped as select {rows}"),
        "create index on grows (label)",
        "create database filled",
        "vacuum freeze",
    ] {
        here(statement);
    }
    sql(&container, "filled", &format!("create table t as select {rows}"));
    // Of the server, the rows are in memory: what happens to the file, it does not see.
    let file = format!("/data/17/{}", here("select pg_relation_filepath('still')"));
    let in_place = |script: &str| docker(&["exec", &container, "bash", "-euc", script]);
    let first = take(&house, &source, &[]);
    assert_eq!(first.parent, None);
    let history = &house.manifest(&source, &first.set)["objects"][0]["history"];
    assert!(history["summary"].as_str().is_some_and(|name| name.ends_with(".summary")), "{history}");

    for statement in [
        "update pgbench_accounts set abalance = abalance where aid % 5000 = 0",
        "insert into grows select n, md5(n::text) from generate_series(1, 3000) n",
        "delete from shrinks where n > 20000",
        "vacuum shrinks",
        "drop table dropped",
        "truncate truncated",
        "create table empty (n int)",
        "create table later as select n from generate_series(1, 5000) n",
        "create index on later (n)",
        "vacuum full rewritten",
        "alter table kept set tablespace pg_default",
        "create database copied template filled strategy file_copy",
        "checkpoint",
    ] {
        here(statement);
    }
    in_place(&format!("cp {file} /data/aside; printf planted | dd of={file} bs=1 seek=44000 conv=notrunc status=none"));
    let second = take(&house, &source, &[]);
    in_place(&format!("dd if=/data/aside of={file} conv=notrunc status=none; rm /data/aside"));
    assert_eq!(second.parent.as_ref(), Some(&first.set));
    let told = incremental(&house, &source, &second.set);
    assert_eq!(told["summaries_unused"], Value::Null);
    let (unread, all) =
        (told["unread_bytes"].as_u64().expect("a number"), told["tar_bytes"].as_u64().expect("a number"));
    assert!(unread > 90 << 20 && unread < all, "{unread} of {all}");
    // What was planted was not read: the copy has the page as it was.
    let out = house.path("still").to_string_lossy().into_owned();
    house.pglife(&["backups", "export", &source, "--backup", &second.set, "--path", &file, "--to", &out]).ok();
    let copied = fs::read(house.path("still").join(file.trim_start_matches('/'))).expect("fetched");
    assert!(copied.len() > 44_000 && !copied.windows(7).any(|bytes| bytes == b"planted"));
    house.pglife(&["backups", "show", &source, "--backup", &second.set]).ok().says(&["not read"]);

    for statement in [
        "insert into shrinks select n, md5(n::text) from generate_series(1, 30000) n",
        "delete from grows where n % 7 = 0",
        "drop database copied",
        "create database copied template filled strategy file_copy",
    ] {
        here(statement);
    }
    sql(&container, "copied", "delete from t where n % 3 = 0");
    let_work(&container);
    let third = take(&house, &source, &[]);
    is_left_alone(&container);
    let_rest(&container);
    let told = incremental(&house, &source, &third.set);
    assert_eq!(told["summaries_unused"], Value::Null);
    assert!(told["unread_bytes"].as_u64() > Some(10 << 20), "{told}");
    // Without the summaries it goes as ever, and says so; so it does after a restart.
    in_place("rm /data/17/pg_wal/summaries/*");
    let fourth = take(&house, &source, &[]);
    docker(&["restart", &container]);
    crate::house::wait_for_server(&container);
    let fifth = take(&house, &source, &[]);
    for (set, why) in [(&fourth.set, "not there"), (&fifth.set, "started after")] {
        let told = incremental(&house, &source, set);
        assert!(told["summaries_unused"].as_str().is_some_and(|reason| reason.contains(why)), "{told}");
        house.pglife(&["backups", "show", &source, "--backup", set]).ok().says(&[why]);
    }

    for (number, set) in [("3", &third.set), ("5", &fifth.set)] {
        let copy = house.name(&format!("copy{number}"));
        house.pglife(&["restore", &source, "--backup", set, "--into", &copy]).ok();
        let restored = format!("{copy}-db");
        assert_eq!(sql(&restored, "postgres", SUMS_AGREE), "t", "{set}");
        for (database, table) in [
            ("postgres", "still"),
            ("postgres", "grows"),
            ("postgres", "shrinks"),
            ("postgres", "later"),
            ("postgres", "kept"),
            ("postgres", "rewritten"),
            ("filled", "t"),
            ("copied", "t"),
        ] {
            let (found, expected) = (content(&restored, database, table), content(&container, database, table));
            assert_eq!(found, expected, "{database}.{table} of {set}");
        }
        sql(&restored, "postgres", "create extension if not exists amcheck");
        let whole = "select count(bt_index_check(c.oid, true)) > 0 from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'btree' \
            and c.relkind = 'i' and c.relpersistence = 'p'";
        assert_eq!(sql(&restored, "postgres", whole), "t");
    }
    // What is not read counts in PostgreSQL's own manifest: its own tool accepts the copy.
    let out = house.path("third");
    house.pglife(&["backups", "export", &source, "--backup", &third.set, "--to", &out.to_string_lossy()]).ok();
    is_accepted(&house, &out.join("volume.tar.zst"), "17");
}
