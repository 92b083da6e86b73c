//! Volume backups of servers that work: what was committed before the end is there, what is stock opens it, nothing is left behind.

mod extract;
mod incremental;
mod refresh;

use std::path::Path;
use std::process::Command;

use crate::house::{House, docker, run, sql, try_docker, wait_for};

#[test]
fn a_server_of_13_is_copied_while_it_works() {
    hot("13");
}

#[test]
fn a_server_of_15_is_copied_while_it_works() {
    hot("15");
}

#[test]
fn a_server_of_17_is_copied_while_it_works() {
    hot("17");
}

#[test]
fn a_server_of_18_is_copied_while_it_works() {
    hot("18");
}

/// What must be true of pgbench's tables at any one moment.
pub(crate) const SUMS_AGREE: &str = "select (select sum(abalance) from pgbench_accounts) = all (array[(select sum(bbalance) from pgbench_branches), \
    (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)])";

/// Runs a command in a container, as postgres, beside the test.
pub(crate) fn beside(container: &str, script: &str) {
    docker(&["exec", "-d", "-u", "postgres", container, "bash", "-c", script]);
}

/// A cluster with tables of every kind that matters here.
fn working(house: &House, major: &str, policy: &str) -> String {
    let cluster = house.cluster("source", major, policy);
    let container = format!("{cluster}-db");
    docker(&["exec", &container, "install", "-d", "-o", "postgres", "-g", "postgres", "/data/table spaces/fast one"]);
    for statement in [
        "create tablespace fast location '/data/table spaces/fast one'",
        "create table kept tablespace fast as select n, md5(n::text) as label from generate_series(1, 20000) n",
        "create unlogged table passing tablespace fast as select n from generate_series(1, 1000) n",
        "create unlogged table passing_here as select n from generate_series(1, 1000) n",
        "create table witness (n int primary key, lsn pg_lsn)",
        "create table rewritten as select n, repeat('x', 200) as filler from generate_series(1, 20000) n",
        "create table truncated as select n, repeat('y', 200) as filler from generate_series(1, 20000) n",
    ] {
        sql(&container, "postgres", statement);
    }
    docker(&["exec", "-u", "postgres", &container, "pgbench", "-i", "-q", "-s", "8", "postgres"]);
    docker(&[
        "exec",
        &container,
        "sh",
        "-c",
        "echo 'work_mem = 5MB' >/config/mine.conf; mkdir -p /log/old; ln -s ../postgresql.log /log/old/link",
    ]);
    cluster
}

/// Everything that may happen to files while they are copied.
fn let_work(container: &str) {
    beside(container, "pgbench -n -c 4 -T 40 postgres");
    let insert = "insert into witness select coalesce(max(n), 0) + 1, pg_current_wal_insert_lsn() from witness";
    beside(container, &format!("for i in $(seq 400); do echo '{insert};'; done | psql -X -q -d postgres"));
    let shuffle = "vacuum full rewritten; truncate truncated; insert into truncated select n, repeat(md5(n::text), 9) from generate_series(1, 5000) n; \
        create table dropped as select n, repeat(md5(n::text), 9) from generate_series(1, 20000) n; drop table dropped; \
        create temp table t as select n from generate_series(1, 20000) n; drop table t;";
    beside(container, &format!("for i in $(seq 200); do echo \"{shuffle}\"; done | psql -X -q -d postgres"));
    wait_for("work in the source", || sql(container, "postgres", "select count(*) > 5 from witness") == "t");
}

/// Ends the work: it has done its part, and what comes after it needs the machine.
fn let_rest(container: &str) {
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid() and application_name in ('pgbench', 'psql')";
    sql(container, "postgres", end);
}

fn back_up(house: &House, cluster: &str) -> String {
    let taken = house.items(&["backup", cluster, "--kind", "volume", "--mode", "hot"]).remove(0);
    assert_eq!((&taken["warnings"], &taken["kind"]), (&serde_json::json!([]), &"volume".into()));
    let peak = taken["worker_peak_memory_bytes"].as_u64().expect("a number");
    assert!(peak > 0 && peak < 256 << 20, "the worker used {peak} bytes");
    taken["set"].as_str().expect("an id").to_owned()
}

/// No page of a server that is stopped is damaged: its container is `stopped`, and its data directory `/data/17`.
fn pages_are_sound(stopped: &str) {
    let checks = "/usr/lib/postgresql/17/bin/pg_checksums --check -D /data/17";
    let volumes = ["run", "--rm", "--network", "none", "--volumes-from", stopped];
    let command = ["-u", "postgres", "--entrypoint", "sh", "pglife/postgres:17", "-c", checks];
    docker(&[&volumes[..], &command].concat());
}

/// Nothing of a backup is left in the server.
#[track_caller]
pub(crate) fn is_left_alone(container: &str) {
    wait_for("the end of the backup's session", || {
        let left = "select (select count(*) from pg_replication_slots) + (select count(*) from pg_stat_activity where application_name = 'pglife')";
        sql(container, "postgres", left) == "0"
    });
    let label = try_docker(&["exec", container, "sh", "-c", "ls /data/*/backup_label"]);
    assert_ne!(label.exit, 0, "{}", label.stdout);
}

fn hot(major: &str) {
    let house = House::new(&format!("vol{major}"));
    let source = working(&house, major, "");
    let container = format!("{source}-db");
    let_work(&container);
    let set = back_up(&house, &source);
    is_left_alone(&container);
    let_rest(&container);

    let object = house.manifest(&source, &set)["objects"][0].clone();
    assert_eq!((&object["name"], &object["content"]), (&"volume.tar.zst".into(), &"volume".into()));
    let stop = object["stop_lsn"].as_str().expect("an LSN").to_owned();
    assert_eq!(house.items(&["backups", "verify", &source])[0]["intact"], true);
    opens_with_stock_tools(&house, &house.set_folder(&source, &set).join("volume.tar.zst"), major);

    let copy = house.name("copy");
    house.pglife(&["restore", &source, "--backup", "latest:volume", "--into", &copy]).ok();
    let restored = format!("{copy}-db");
    assert_eq!(sql(&restored, "postgres", SUMS_AGREE), "t");
    // A row was committed before the stop, if the one after it was begun before the stop.
    let committed = sql(&container, "postgres", &format!("select max(n) - 1 from witness where lsn <= '{stop}'"));
    let committed: u32 = committed.parse().expect("some rows");
    assert!(committed > 4, "{committed}");
    let there = sql(&restored, "postgres", &format!("select count(*) from witness where n <= {committed}"));
    assert_eq!(there, committed.to_string(), "rows that were committed before the stop at {stop}");
    assert_eq!(sql(&restored, "postgres", "select count(*), min(label) is not null from kept"), "20000|t");
    assert_eq!(sql(&restored, "postgres", "select count(*) from rewritten"), "20000");
    let unlogged = "select (select count(*) from passing), (select count(*) from passing_here)";
    assert_eq!(sql(&restored, "postgres", unlogged), "0|0");
    assert_eq!(sql(&restored, "postgres", "show work_mem"), "5MB");
    assert_eq!(sql(&restored, "postgres", "select pg_is_in_recovery()"), "f");
    let same = ["/secret/adminpass", "/data/run", "/log/old", "/config/mine.conf", "/data/table spaces/fast one"];
    for path in same {
        let owner = |container: &str| docker(&["exec", container, "stat", "-c", "%U:%G %a %F", path]);
        assert_eq!(owner(&restored), owner(&container), "{path}");
    }
    assert_eq!(docker(&["exec", &restored, "readlink", "/log/old/link"]).trim(), "../postgresql.log");
    let password = |container: &str| docker(&["exec", container, "cat", "/secret/adminpass"]);
    assert_eq!(password(&restored), password(&container));
    // It takes writes, and backups of its own.
    sql(&restored, "postgres", "insert into kept values (0, 'new')");
    house.pglife(&["backup", &copy, "--kind", "volume"]).ok();
    // Every page is whole.
    docker(&["stop", &restored]);
    let image = format!("pglife/postgres:{major}");
    let data = format!("/data/{major}");
    docker(&[
        "run",
        "--rm",
        "--user=postgres",
        &format!("--volumes-from={restored}"),
        &image,
        "pg_checksums",
        "-c",
        "-D",
        &data,
    ]);
}

/// `zstd` and `tar` open it, it has what it should, and PostgreSQL's own tool accepts the directory.
fn opens_with_stock_tools(house: &House, object: &Path, major: &str) {
    let mut list = Command::new("bash");
    list.args(["-euo", "pipefail", "-c", "zstd -dc \"$0\" | tar -t"]).arg(object);
    let names = run(list).ok().stdout;
    let at = |name: &str| names.lines().position(|line| line == name);
    let inside = |name: &str| format!("data/{major}/{name}");
    for name in [
        "PG_VERSION",
        "global/pg_control",
        "backup_label",
        "tablespace_map",
        "pg_wal/",
        "pg_notify/",
        "backup_manifest",
    ] {
        assert!(at(&inside(name)).is_some(), "{name} is not in\n{names}");
    }
    for name in ["postmaster.pid", "postmaster.opts", "pg_replslot/x", "global/pg_internal.init"] {
        assert!(at(&inside(name)).is_none(), "{name} is in\n{names}");
    }
    for name in ["secret/adminpass", "config/mine.conf", "log/postgresql.log", "data/run/"] {
        assert!(at(name).is_some(), "{name} is not in\n{names}");
    }
    let base = names.lines().enumerate().filter(|(_, line)| line.contains("/base/") || line.starts_with("log/")).last();
    let (base, _) = base.expect("relations");
    assert!(at(&inside("global/pg_control")).expect("it is there") > base, "pg_control comes last");
    assert!(!names.contains("/pgsql_tmp") && !names.contains(".s.PGSQL"), "{names}");

    is_accepted(house, object, major);
}

/// Stock tools unpack it, and PostgreSQL's own accepts the directory, and would not if it were another one.
fn is_accepted(house: &House, object: &Path, major: &str) {
    let volume = house.volume(&format!("stock{major}"));
    let image = format!("pglife/postgres:{major}");
    let mut unpack = Command::new("bash");
    let script =
        "zstd -dc \"$0\" | docker run --rm -i -v \"$1\":/data --entrypoint tar \"$2\" -x -p --numeric-owner -C / data";
    unpack.args(["-euo", "pipefail", "-c", script]).arg(object).args([&volume, &image]);
    run(unpack).ok();
    let mount = format!("{volume}:/data");
    let data = format!("/data/{major}");
    let said = try_docker(&["run", "--rm", "--user=postgres", "-v", &mount, &image, "pg_verifybackup", &data]);
    assert!(
        format!("{}{}", said.stdout, said.stderr).contains("successfully verified"),
        "{}{}",
        said.stdout,
        said.stderr
    );
    said.ok();
    // A file that was changed is found: the list is not empty words.
    let spoil = format!("printf x | dd of={data}/PG_VERSION conv=notrunc 2>/dev/null");
    docker(&["run", "--rm", "-v", &mount, &image, "sh", "-c", &spoil]);
    try_docker(&["run", "--rm", "--user=postgres", "-v", &mount, &image, "pg_verifybackup", &data])
        .exits(1)
        .says(&["PG_VERSION"]);
}

#[test]
fn a_server_of_13_is_copied_while_it_is_stopped() {
    cold("13");
}

#[test]
fn a_server_of_15_is_copied_while_it_is_stopped() {
    cold("15");
}

#[test]
fn a_server_of_17_is_copied_while_it_is_stopped() {
    cold("17");
}

#[test]
fn a_server_of_18_is_copied_while_it_is_stopped() {
    cold("18");
}

/// A digest of everything in the server, as text.
pub(crate) fn everything(container: &str) -> String {
    let script = "pg_dumpall -U postgres | grep -Ev '^.(un)?restrict ' | md5sum";
    docker(&["exec", "-u", "postgres", container, "bash", "-o", "pipefail", "-c", script])
}

fn is_running(container: &str) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", container]).trim() == "true"
}

fn cold(major: &str) {
    let house = House::new(&format!("volcold{major}"));
    let source = working(&house, major, "[backup.volume]\nmode = \"cold\"");
    let container = format!("{source}-db");
    let began = |container: &str| docker(&["inspect", "--format", "{{.State.StartedAt}}", container]);
    let first = began(&container);
    let planned = house.pglife(&["backup", &source, "--kind", "volume", "--dry-run"]).ok();
    planned.says(&["while the server is stopped"]);
    assert_eq!(began(&container), first, "a dry run stops nothing");
    let before = everything(&container);
    let taken = house.items(&["backup", &source, "--kind", "volume"]).remove(0);
    assert_eq!(taken["warnings"], serde_json::json!([]));
    assert_ne!(began(&container), first, "it was stopped");
    assert_eq!(everything(&container), before, "it is back, as it was");

    let set = taken["set"].as_str().expect("an id");
    let object = house.manifest(&source, set)["objects"][0].clone();
    assert_eq!((&object["mode"], &object["backup_label"]), (&"cold".into(), &"".into()));
    assert_eq!(house.items(&["backups", "verify", &source])[0]["intact"], true);
    is_accepted(&house, &house.set_folder(&source, set).join("volume.tar.zst"), major);
    let copy = house.name("copy");
    house.pglife(&["restore", &source, "--backup", set, "--into", &copy]).ok();
    let restored = format!("{copy}-db");
    assert_eq!(everything(&restored), before);
    // What a running server's copy does not have.
    let unlogged = "select (select count(*) from passing), (select count(*) from passing_here)";
    assert_eq!(sql(&restored, "postgres", unlogged), "1000|1000");
    let log = docker(&["exec", &restored, "cat", "/log/postgresql.log"]);
    let last = log.rsplit_once("starting PostgreSQL").expect("its start").1;
    assert!(
        !last.contains("redo starts") && !last.contains("not properly shut down"),
        "it starts without recovery: {last}"
    );
}

#[test]
fn a_stopped_server_is_started_again_whatever_dies() {
    let house = House::new("volcoldkill");
    let source = working(&house, "17", &format!("{SLOW}\nmode = \"cold\""));
    let container = format!("{source}-db");
    let answers = || try_docker(&["exec", &container, "pg_isready", "-q", "-h", "127.0.0.1"]).exit == 0;
    for victim in ["worker", "interrupted", "pglife, then status", "pglife, then a backup"] {
        let mut child = house
            .command(&["backup", &source, "--kind", "volume"])
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for("the stop of the server", || !is_running(&container));
        let worker = || {
            let of_cluster = format!("label=pglife.cluster={source}");
            docker(&["ps", "-q", "--filter", "label=pglife.purpose=worker", "--filter", &of_cluster]).trim().to_owned()
        };
        match victim {
            "worker" => {
                docker(&["kill", &worker()]);
                let ended = child.wait_with_output().expect("its output");
                assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
                assert!(is_running(&container), "{victim}");
            }
            "interrupted" => {
                let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("an id")).expect("not zero");
                rustix::process::kill_process(id, rustix::process::Signal::INT).expect("sent");
                let ended = child.wait_with_output().expect("its output");
                assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
                assert!(is_running(&container), "{victim}");
            }
            _ => {
                child.kill().expect("killed");
                child.wait().expect("it ended");
                assert!(!is_running(&container), "nobody is there to start it yet");
                if victim.ends_with("status") {
                    house.pglife(&["status", &source]).says(&["did not start it: it is started"]);
                } else {
                    house.pglife(&["backup", &source, "--kind", "volume", "--mode", "hot", "--dry-run"]).ok();
                }
                assert!(is_running(&container), "{victim}");
            }
        }
        wait_for("the server", answers);
        assert_eq!(house.items(&["backups", "list", &source]), [serde_json::Value::Null; 0], "{victim}");
    }
    // A data directory with a label is somebody's copy, not a server at rest; this one does not start with it, either.
    let label = "/data/17/backup_label";
    docker(&["exec", &container, "touch", label]);
    house.pglife(&["backup", &source, "--kind", "volume"]).exits(15).says(&["/data/17 holds a copy", "backup_label"]);
    assert_eq!(house.items(&["backups", "list", &source]), [serde_json::Value::Null; 0]);
    docker(&["run", "--rm", "--volumes-from", &container, "busybox", "rm", label]);
    docker(&["start", &container]);
    wait_for("the server", answers);
    house.policy("source", "17", "[backup.volume]\nmode = \"cold\"");
    house.pglife(&["backup", &source, "--kind", "volume"]).ok();
    assert_eq!(house.items(&["backups", "list", &source]).len(), 1);
}

const SLOW: &str = "[backup.volume]\ncodec = \"zstd:19\"";

#[test]
fn what_is_killed_leaves_nothing() {
    let house = House::new("volkill");
    let source = working(&house, "17", SLOW);
    let container = format!("{source}-db");
    for victim in ["worker", "pglife"] {
        let mut child = house
            .command(&["backup", &source, "--kind", "volume"])
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for("backup mode", || {
            sql(
                &container,
                "postgres",
                "select count(*) from pg_replication_slots where temporary and restart_lsn is not null",
            ) == "1"
        });
        if victim == "worker" {
            let worker = docker(&[
                "ps",
                "-q",
                "--filter",
                "label=pglife.purpose=worker",
                "--filter",
                &format!("label=pglife.cluster={source}"),
            ]);
            docker(&["kill", worker.trim()]);
            let ended = child.wait_with_output().expect("its output");
            assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
        } else {
            child.kill().expect("killed");
            child.wait().expect("it ended");
        }
        is_left_alone(&container);
        assert_eq!(house.items(&["backups", "list", &source]), [serde_json::Value::Null; 0]);
    }
    house.policy("source", "17", "");
    back_up(&house, &source);
    assert_eq!(house.items(&["backups", "list", &source]).len(), 1);
    let left: Vec<_> = crate::house::files_below(&house.path("repo"))
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "incoming"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn encrypted_into_two_repositories_and_back() {
    let house = House::new("volcrypt");
    let key = house.encrypt()[1].clone();
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", &format!("{settings}\n[repos.nas]\ntype = \"local\"\npath = \"nas\"\n"));
    house.pglife(&["repo", "init", "nas"]).ok();
    let source = working(&house, "17", "[backup.dump]\nrepos = [\"local\", \"nas\"]");
    let taken = house.items(&["backup", &source, "--kind", "all"]);
    assert_eq!(taken.iter().map(|taken| &taken["kind"]).collect::<Vec<_>>(), ["dump", "volume"]);
    assert_eq!(taken[1]["repositories"], serde_json::json!(["local", "nas"]));
    let set = taken[1]["set"].as_str().expect("an id");

    // From outside, and with the key.
    for repository in ["local", "nas"] {
        house.pglife(&["backups", "verify", &source, "--backup", set, "--repo", repository]).ok();
    }
    house.pglife(&["backups", "verify", &source, "--backup", set, "--identity", &key]).ok();
    house.pglife(&["key", "check", "--identity", &key, &source]).ok();
    let shown = house.pglife(&["backups", "show", &source, "--backup", set, "--identity", &key]).ok();
    assert!(shown.stdout.contains("volume.tar.zst.age"), "{}", shown.stdout);
    house.pglife(&["backups", "export", &source, "--backup", set, "--to", &house.path("out").to_string_lossy()]).ok();

    // One copy is lost, and made again; the other one is lost then.
    let lost = house.set_folder(&source, set);
    std::fs::remove_dir_all(&lost).expect("removed");
    house.pglife(&["repo", "sync", "local"]).ok();
    std::fs::rename(house.path("nas"), house.path("away")).expect("moved");
    let copy = house.name("copy");
    house.pglife(&["restore", &source, "--backup", set, "--into", &copy]).exits(12);
    house.pglife(&["restore", &source, "--backup", set, "--into", &copy, "--identity", &key]).ok();
    assert_eq!(sql(&format!("{copy}-db"), "postgres", SUMS_AGREE), "t");

    let folder = house.set_folder(&source, set);
    let text = std::fs::read_to_string(folder.join("RECOVER.md")).expect("instructions");
    assert!(text.contains("encrypted copy of the volumes"), "{text}");
    crate::recovery::follow_encrypted(&text, &folder, &key);
    assert_eq!(sql(&format!("recovered-{source}"), "postgres", SUMS_AGREE), "t");
}

#[test]
fn the_instructions_of_a_volume_set_are_enough() {
    let house = House::new("volrecover");
    let source = working(&house, "15", "[backup.volume]\ncodec = \"none\"");
    let set = back_up(&house, &source);
    let folder = house.set_folder(&source, &set);
    let text = std::fs::read_to_string(folder.join("RECOVER.md")).expect("instructions");
    crate::recovery::follow(&text, &folder);
    let recovered = format!("recovered-{source}");
    assert_eq!(sql(&recovered, "postgres", SUMS_AGREE), "t");
    assert_eq!(sql(&recovered, "postgres", "select count(*) from kept"), "20000");
}

#[test]
fn a_copy_is_no_faster_than_its_limit() {
    let house = House::new("volrate");
    let rest = "[backup.volume]\nvolumes = [\"/data\"]\nionice = \"idle\"";
    let source = house.cluster("source", "17", &format!("{rest}\nrate_limit = \"4MB/s\""));
    let seconds = || {
        let set = house.items(&["backup", &source, "--kind", "volume"]).remove(0);
        assert_eq!(set["warnings"], serde_json::json!([]));
        let object = house.manifest(&source, set["set"].as_str().expect("an id"))["objects"][0].clone();
        let bytes = object["plain"]["bytes"].as_f64().expect("a number");
        (object["seconds"].as_f64().expect("a number"), bytes)
    };
    let waits_at_the_disk = || {
        let cluster = format!("label=pglife.cluster={source}");
        let worker = docker(&["ps", "-q", "--filter", "label=pglife.purpose=worker", "--filter", &cluster]);
        let threads = "for thread in /proc/[0-9]*/task/*; do ionice -p ${thread##*/}; done";
        let looked = worker.lines().map(|worker| try_docker(&["exec", worker, "sh", "-c", threads]).stdout);
        looked.collect::<String>().lines().any(|priority| priority == "idle")
    };
    let (limited, bytes) = std::thread::scope(|scope| {
        let copying = scope.spawn(seconds);
        wait_for("a copy that lets others go first", waits_at_the_disk);
        copying.join().expect("it was copied")
    });
    assert!(limited > bytes / 4e6 * 0.9, "{bytes} bytes in {limited} s");
    house.policy("source", "17", rest);
    let (free, bytes) = seconds();
    assert!(free < limited, "{bytes} bytes in {free} s without a limit, with one in {limited} s");
}

#[test]
fn a_page_that_is_damaged_on_the_disk_is_named() {
    let house = House::new("volpages");
    let source = house.cluster("source", "17", "");
    let container = format!("{source}-db");
    for statement in [
        "create database orders",
        "create table harmless as select n from generate_series(1, 10000) n",
        "vacuum harmless",
    ] {
        sql(&container, "postgres", statement);
    }
    sql(&container, "orders", "create table item as select n, md5(n::text) as label from generate_series(1, 10000) n");
    sql(&container, "orders", "vacuum item");
    sql(&container, "postgres", "checkpoint");
    // Pages that are written meanwhile are not taken for damaged ones.
    beside(&container, "pgbench -i -q -s 3 postgres && pgbench -n -c 2 -T 10 postgres");
    let whole = back_up(&house, &source);
    assert_eq!(house.manifest(&source, &whole)["objects"][0]["damaged"], serde_json::Value::Null);

    let file = sql(&container, "orders", "select pg_relation_filepath('item')");
    let plant = format!("printf 'rot' | dd of=/data/17/{file} bs=1 seek=$((3 * 8192 + 4000)) conv=notrunc status=none");
    docker(&["exec", "-u", "postgres", &container, "sh", "-c", &plant]);
    for mode in ["hot", "cold"] {
        let taken = house.pglife(&["backup", &source, "--kind", "volume", "--mode", mode, "-o", "json"]).exits(3);
        taken.says(&["1 damaged pages in", &file, "blocks 3", "take a dump"]);
        let listed = house.pglife(&["backups", "list", &source, "-o", "json"]).ok();
        let answer: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
        let newest = answer["items"].as_array().and_then(|sets| sets.last()).expect("one").clone();
        let set = newest["set"].clone();
        assert_eq!(newest["damaged_pages"], 1, "{newest}");
        listed.says(&["is suspect", set.as_str().expect("an id")]);
        let damaged = house.manifest(&source, set.as_str().expect("an id"))["objects"][0]["damaged"].clone();
        let relation = if mode == "hot" { "orders.public.item".into() } else { serde_json::Value::Null };
        assert_eq!((damaged.as_array().map(Vec::len), &damaged[0]["relation"]), (Some(1), &relation), "{damaged}");
        // A copy of it is no better: the drill says so too.
        house.pglife(&["drill", &source, "--backup", "latest:volume"]).exits(20);
    }
    // However fresh it is, it is no good backup; and the last good one stays, whatever the policy says.
    let checked = house.pglife(&["check", &source]).exits(30);
    assert!(checked.stdout.contains("damaged pages on the disk: 1"), "{}", checked.stdout);
    house.policy("source", "17", "[retention]\nlast = 1");
    let kept = house.pglife(&["prune", &source]).ok().stdout;
    assert!(kept.contains("newest without damaged pages"), "{kept}");
    house
        .pglife(&["backups", "delete", &source, "--backup", &whole, "--yes"])
        .exits(4)
        .says(&["without damaged pages"]);
}

#[test]
fn what_cannot_be_copied_or_restored_is_refused() {
    let house = House::new("volno");
    let source = house.cluster(
        "source",
        "17",
        "[freshness]\ndump = { warn = \"1d\", critical = \"2d\" }\nvolume = { warn = \"8d\", critical = \"15d\" }",
    );
    let container = format!("{source}-db");
    let planned = house.items(&["backup", &source, "--kind", "volume", "--dry-run"]);
    assert_eq!(planned[0]["volumes"], serde_json::json!(["/data", "/config", "/secret", "/log"]));
    house.pglife(&["backup", &source, "--mode", "hot"]).exits(2).says(&["--kind volume"]);
    back_up(&house, &source);

    // Each kind has its own freshness, and its own last run.
    let status = house.items(&["status", &source]).remove(0);
    assert_eq!((&status["freshness"], &status["volume"]["freshness"]), (&"critical".into(), &"ok".into()));
    assert_eq!((&status["last_attempt"], &status["volume"]["last_attempt"]), (&serde_json::Value::Null, &"ok".into()));
    assert_eq!((&status["backups"], &status["volume"]["backups"]), (&0.into(), &1.into()));

    let into = house.name("copy");
    let restore = |more: &[&str]| house.pglife(&[&["restore", &source, "--into", &into], more].concat());
    restore(&["--database", "postgres", "--dry-run"]).ok().says(&["throwaway server"]);
    restore(&["--major", "18"]).exits(4).says(&["no other major reads", "--backup latest:dump"]);
    restore(&["--dry-run"]).ok();

    docker(&["exec", &container, "install", "-d", "-o", "postgres", "-g", "postgres", "/srv/slow"]);
    sql(&container, "postgres", "create tablespace slow location '/srv/slow'");
    let refused = house.pglife(&["backup", &source, "--kind", "volume"]).exits(4);
    refused.says(&["tablespace \"slow\" lies in /srv/slow", "move it below /data"]);
    is_left_alone(&container);
    assert_eq!(house.items(&["backups", "list", &source]).len(), 1);
}
