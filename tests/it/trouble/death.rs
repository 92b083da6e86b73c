//! pglife itself is killed, or asked to stop.

use super::{Beside, Scene, docker_has, eventually, workers_of};
use crate::house::{docker, sql};

/// The worker of a cluster ends by itself, because its stdin is closed.
#[track_caller]
fn await_the_end_of_the_worker(cluster: &str) {
    eventually("the worker ends by itself", || {
        workers_of(cluster)
            .iter()
            .all(|worker| docker(&["inspect", "-f", "{{.State.Running}}", worker]).trim() == "false")
    });
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_to_the_next_one() {
    let scene = Scene::new("kill");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    beside.signal("KILL");
    assert_eq!(beside.ended().exit, -1);
    await_the_end_of_the_worker(&scene.cluster);
    // The lock is still held, and will be; nobody of ours waits for it all the same.
    let sessions = "select count(*) from pg_stat_activity where application_name = 'pglife'";
    let begun = std::time::Instant::now();
    eventually("no session of pglife is left", || sql(&scene.container, "postgres", sessions) == "0");
    assert!(begun.elapsed().as_secs() < 30, "the server gave up by itself");
    assert_eq!(scene.last_attempt(), "failed");
    let listed = scene.house.items(&["backups", "list", &scene.cluster]);
    assert_eq!(listed.len(), 1);
    drop(holder);
    let next = scene.house.backup(&scene.cluster);
    scene.holds(&[&scene.good, &next]);
    assert_eq!(scene.last_attempt(), "ok");
}

#[test]
fn a_killed_backup_is_tidied_up_by_the_doctor_too() {
    let scene = Scene::new("killd");
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    beside.signal("KILL");
    beside.ended();
    drop(holder);
    await_the_end_of_the_worker(&scene.cluster);
    let left = workers_of(&scene.cluster);
    assert!(!left.is_empty());
    scene.house.pglife(&["repo", "gc", "--lease", "0s", "--dry-run"]).ok();
    assert_eq!(workers_of(&scene.cluster), left, "a dry run removes nothing");
    scene.house.pglife(&["doctor"]).ok();
    assert_eq!(scene.last_attempt(), "failed");
    scene.recovers();
}

#[test]
fn a_signal_ends_a_backup_in_good_order() {
    let scene = Scene::new("signal");
    let holder = scene.hold();
    for (signal, exit) in [("INT", 130), ("TERM", 143)] {
        let beside = scene.backup_that_waits();
        beside.signal(signal);
        beside.ended().exits(exit).says(&["stopped on request", &scene.cluster, "\n  safe: "]);
        scene.holds(&[&scene.good]);
        assert_eq!(scene.last_attempt(), "failed");
    }
    // Impatient: the second one ends it at once, and the next run cleans up.
    let beside = scene.backup_that_waits();
    beside.signal("STOP");
    for signal in ["INT", "TERM", "CONT"] {
        beside.signal(signal);
    }
    let ended = beside.ended();
    assert!([130, 143].contains(&ended.exit), "{ended:?}");
    drop(holder);
    let next = scene.house.backup(&scene.cluster);
    scene.holds(&[&scene.good, &next]);
}

#[test]
fn a_restore_that_is_killed_leaves_nothing_to_the_next_one() {
    let scene = Scene::new("killr");
    let copy = scene.house.name("copy");
    let restore = ["restore", &scene.cluster, "--into", &copy];
    let kill_it = || {
        let beside = Beside::start(scene.house.command(&restore));
        eventually("the restore's worker is there", || !workers_of(&copy).is_empty());
        beside.signal("KILL");
        assert_eq!(beside.ended().exit, -1);
        assert!(!docker_has(&copy).is_empty(), "killed too late");
        await_the_end_of_the_worker(&copy);
    };
    // A run on another cluster removes what is left.
    kill_it();
    scene.recovers();
    assert_eq!(docker_has(&copy), [""; 0]);
    // So does the doctor.
    kill_it();
    scene.house.pglife(&["doctor"]).ok();
    assert_eq!(docker_has(&copy), [""; 0]);
    // And the same command again.
    kill_it();
    scene.house.pglife(&restore).ok();
    super::nothing_is_left_of(&copy, &scene.house.path("repo"));
}

#[test]
fn a_signal_ends_a_restore_in_good_order() {
    let scene = Scene::new("signalr");
    let copy = scene.house.name("copy");
    for (signal, exit) in [("INT", 130), ("TERM", 143)] {
        let beside = Beside::start(scene.house.command(&["restore", &scene.cluster, "--into", &copy]));
        eventually("the restore's worker is there", || !workers_of(&copy).is_empty());
        beside.signal(signal);
        beside.ended().exits(exit).says(&[&copy, "\n  safe: "]);
        assert_eq!(docker_has(&copy), [""; 0]);
        assert!(!scene.house.path(&format!("policies/{copy}.toml")).exists());
    }
    scene.house.pglife(&["restore", &scene.cluster, "--into", &copy]).ok();
}

#[test]
fn a_create_that_is_killed_can_be_repeated() {
    let scene = Scene::new("killc");
    let second = scene.house.policy("second", "17", "");
    let create = ["cluster", "create", &second];
    let beside = Beside::start(scene.house.command(&create));
    eventually("its database container is there", || docker_has(&second).contains(&format!("{second}-db")));
    beside.signal("KILL");
    beside.ended();
    scene.house.pglife(&create).ok();
    scene.house.backup(&second);
}

/// A process can be killed after `COMMIT` and before the end of the run is recorded: the backup is a backup then.
#[test]
fn a_run_that_died_after_its_commit_keeps_its_backup() {
    let scene = Scene::new("committed");
    let folder = scene.house.set_folder(&scene.cluster, &scene.good);
    let state = rusqlite::Connection::open(scene.house.path("state/state.db")).expect("the state");
    let run: String = state
        .query_row("select run from runs where set_id = ?1", [&scene.good], |row| row.get(0))
        .expect("the run of the backup");
    state.execute("update runs set ended_at = null, exit = null where run = ?1", [&run]).expect("updated");
    state
        .execute(
            "insert into made (run, host, kind, name) values (?1, 'local', 'set-folder', ?2)",
            [&run, folder.to_str().expect("UTF-8")],
        )
        .expect("inserted");
    drop(state);
    scene.recovers();
}
