//! The server, its databases and its tools get into trouble.

use super::{Holder, Scene, eventually, kill, workers_of};
use crate::house::{docker, sql};

#[test]
fn a_wrong_password_is_told_as_such() {
    let scene = Scene::new("password");
    sql(&scene.container, "postgres", "create role keeper superuser login password 'right'");
    scene.house.write("secret", "wrong\n");
    scene.house.policy("c", "17", "user = \"keeper\"\npassword_file = \"secret\"");
    let ended = scene.backup_fails(
        12,
        &["password authentication failed for user \"keeper\"", "`user` and `password_file`", "\n  because: "],
    );
    assert!(!ended.stderr.contains("wrong"), "{}", ended.stderr);
    scene.house.write("secret", "");
    scene.backup_fails(12, &["keeper"]);
    std::fs::remove_file(scene.house.path("secret")).expect("removed");
    scene.backup_fails(12, &["the password file ", "secret cannot be read", "No such file"]);
    std::fs::create_dir(scene.house.path("secret")).expect("made");
    scene.backup_fails(12, &["the password file ", "secret cannot be read"]);
    std::fs::remove_dir(scene.house.path("secret")).expect("removed");

    // A role that may log in and may not see the passwords of others.
    sql(&scene.container, "postgres", "create role clerk login password 'right'");
    scene.house.write("secret", "right\n");
    scene.house.policy("c", "17", "user = \"clerk\"\npassword_file = \"secret\"");
    scene.backup_fails(12, &["role \"clerk\" is not a superuser"]);

    scene.house.policy("c", "17", "user = \"keeper\"\npassword_file = \"secret\"");
    scene.recovers();
}

#[test]
fn a_server_that_is_down_or_silent_is_told_as_such() {
    let scene = Scene::new("down");
    docker(&["stop", "-t", "30", &scene.container]);
    scene.backup_fails(15, &[&format!("container \"{}\" does not run", scene.container), "docker start"]);
    scene.holds(&[&scene.good]);
    docker(&["start", &scene.container]);
    scene.recovers();

    // It runs and says nothing.
    docker(&["pause", &scene.container]);
    scene.backup_fails(15, &["the server does not answer", "docker logs"]);
    docker(&["unpause", &scene.container]);

    let sets = scene.house.items(&["backups", "list", &scene.cluster]);
    let sets: Vec<&str> = sets.iter().map(|set| set["set"].as_str().expect("an id")).collect();
    scene.holds(&sets);
    scene.house.backup(&scene.cluster);
}

/// The processes of a container that run `name`, as the host numbers them.
fn processes(container: &str, name: &str) -> Vec<u32> {
    let listed = docker(&["top", container, "-eo", "pid,comm"]);
    let fields = listed.lines().skip(1).filter_map(|line| line.trim().split_once(' '));
    fields.filter(|(_, command)| command.trim() == name).map(|(pid, _)| pid.parse().expect("a pid")).collect()
}

#[test]
fn a_database_dropped_during_the_run_is_a_warning() {
    let scene = Scene::new("dropped");
    sql(&scene.container, "postgres", "create database \"to go\"");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    sql(&scene.container, "postgres", "drop database \"to go\"");
    drop(holder);
    let warning = "database \"to go\" is not in the backup: it was dropped while the backup ran";
    beside.ended().exits(3).says(&[warning]);
    let listed = scene.house.items(&["backups", "list", &scene.cluster]);
    let set = listed.iter().map(|item| item["set"].as_str().expect("an id")).find(|set| *set != scene.good);
    let set = set.expect("a new one");
    scene.holds(&[&scene.good, set]);
    let shown = scene.house.pglife(&["backups", "show", &scene.cluster, "--backup", set]).ok();
    assert!(shown.stderr.contains("left out  to go") && shown.stdout.contains("shop"), "{shown:?}");
    assert_eq!(scene.last_attempt(), "warnings");

    // While pg_dump is in it.
    sql(&scene.container, "postgres", "drop database shop with (force)");
    sql(&scene.container, "postgres", "create database shop");
    sql(
        &scene.container,
        "shop",
        "create table orders as select repeat(md5(g::text), 9) from generate_series(1, 9999) g",
    );
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    sql(&scene.container, "postgres", "drop database shop with (force)");
    drop(holder);
    beside.ended().exits(3).says(&["database \"shop\" is not in the backup: it was dropped while the backup ran"]);
    scene.house.pglife(&["backup", &scene.cluster]).ok();
}

#[test]
fn a_table_that_stays_locked_fails_the_backup() {
    let scene = Scene::with_policy("locked", "[backup.dump]\nlock_timeout = \"1s\"");
    let holder = scene.hold();
    scene.backup_fails(1, &["database \"shop\"", "statement timeout", "LOCK TABLE public.orders", "lock_timeout"]);
    assert_eq!(scene.last_attempt(), "failed");
    drop(holder);
    scene.recovers();
    assert_eq!(scene.last_attempt(), "ok");
}

#[test]
fn a_killed_pg_dump_fails_the_backup() {
    let scene = Scene::new("pgdump");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    let worker = workers_of(&scene.cluster).remove(0);
    for process in processes(&worker, "pg_dump") {
        kill(process, "KILL");
    }
    beside.ended().exits(1).says(&["database \"shop\"", "pg_dump: killed by signal 9"]).says(&scene.failure());
    drop(holder);
    scene.recovers();
}

#[test]
fn a_session_ended_by_the_server_fails_the_backup() {
    let scene = Scene::new("restart");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    sql(
        &scene.container,
        "postgres",
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pglife'",
    );
    beside.ended().exits(1).says(&["database \"shop\"", "terminating connection"]).says(&scene.failure());
    // The whole server, in the middle.
    let beside = scene.backup_that_waits();
    docker(&["restart", "-t", "30", &scene.container]);
    let ended = beside.ended().says(&scene.failure());
    assert!([1, 15].contains(&ended.exit), "{ended:?}");
    drop(holder);
    eventually("the server answers", || {
        docker(&["inspect", "-f", "{{.State.Health.Status}}", &scene.container]).trim() == "healthy"
    });
    scene.recovers();
}

#[test]
fn a_killed_worker_fails_the_backup() {
    let scene = Scene::new("worker");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    docker(&["kill", &workers_of(&scene.cluster)[0]]);
    beside.ended().exits(1).says(&["the worker ended before its work was done", "killed"]).says(&scene.failure());
    // Removed under its feet.
    let beside = scene.backup_that_waits();
    docker(&["rm", "-f", &workers_of(&scene.cluster)[0]]);
    beside.ended().exits(1).says(&["the worker ended before its work was done"]).says(&scene.failure());
    drop(holder);
    scene.recovers();
}

#[test]
fn a_server_of_another_major_is_refused() {
    let scene = Scene::new("major");
    let container = &scene.container;
    scene.house.policy("c", "15", "");
    scene.backup_fails(2, &["the policy says PostgreSQL 15, the server is 17", "correct `major`"]);
    scene.house.policy("c", "17", &format!("container = \"{container}\""));
    scene.recovers();
}

#[test]
fn two_backups_of_a_cluster_do_not_run_side_by_side() {
    let scene = Scene::new("busy");
    let holder = scene.hold();
    let first = scene.backup_that_waits();
    let process = first.child.as_ref().expect("it runs").id();
    scene.house.pglife(&["backup", &scene.cluster]).exits(11).says(&[
        "another run works on cluster",
        "dump since ",
        &format!("process {process}"),
        "\n  next: ",
    ]);
    // Nor may anybody look for orphans among what the first one uses; it is alive.
    let doctor = scene.house.pglife(&["doctor"]);
    assert!(!doctor.stdout.contains("swept container"), "{doctor:?}");
    assert_eq!(workers_of(&scene.cluster).len(), 1, "the doctor removed a live worker");
    assert_eq!(scene.last_attempt(), "running");
    drop(holder);
    first.ended().ok();
    assert_eq!(scene.last_attempt(), "ok");
    assert_eq!(scene.house.items(&["backups", "list", &scene.cluster]).len(), 2);
}

#[test]
fn another_pglife_on_the_host_is_left_alone() {
    let (here, there) = (Scene::new("here"), Scene::new("there"));
    let holder = here.hold();
    let beside = here.backup_that_waits();
    // Another state directory: its sweeps know nothing of the run here.
    there.house.backup(&there.cluster);
    there.house.pglife(&["doctor"]).ok();
    assert_eq!(workers_of(&here.cluster).len(), 1);
    drop(holder);
    beside.ended().ok();
    here.holds(
        &here
            .house
            .items(&["backups", "list", &here.cluster])
            .iter()
            .map(|set| set["set"].as_str().expect("an id"))
            .collect::<Vec<_>>(),
    );
    // Two clusters of one house, side by side.
    let second = here.house.cluster("d", "17", "");
    let holder = here.hold();
    let beside = here.backup_that_waits();
    here.house.backup(&second);
    drop(holder);
    beside.ended().ok();
}

#[test]
fn a_held_table_with_an_odd_name_is_named() {
    let scene = Scene::with_policy("held", "[backup.dump]\nlock_timeout = \"1s\"\njobs = 2");
    sql(&scene.container, "postgres", "create schema \"we ird\"; create table \"we ird\".\"ta'ble\" (id int)");
    let holder = Holder::of(&scene.container, "postgres", "\"we ird\".\"ta'ble\"");
    scene.backup_fails(1, &["database \"postgres\"", "we ird"]);
    drop(holder);
    scene.recovers();
}
