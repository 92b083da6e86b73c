//! Somebody kills a worker or a server in the middle, or the disk is full: the old server serves, and the message says so.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{filled, major, phase, seen, things};
use crate::house::{Ended, House, docker, sql, try_docker, wait_for, wait_for_server};

/// Enough rows for every step to last a while.
const MANY: &str = "create table many as select i, md5(i::text) m from generate_series(1, 1200000) i";

pub(super) fn begin(house: &House, cluster: &str, to: &str, method: &str) -> Child {
    let mut command = house.command(&["upgrade", cluster, "--to", to, "--method", method, "--yes"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn wait_for_step(house: &House, cluster: &str, wanted: &str) {
    wait_for(&format!("the step {wanted}"), || {
        let ended = house.pglife(&["upgrade", "status", cluster, "-o", "json"]);
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap_or_default();
        answer["items"][0]["step"] == wanted && answer["items"][0]["phase"] == "open"
    });
}

/// The worker of the cluster that runs now.
fn worker(cluster: &str) -> Option<String> {
    let filters = [format!("label=pglife.cluster={cluster}"), "label=pglife.purpose=worker".to_owned()];
    let list = docker(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]);
    list.lines().next().map(str::to_owned)
}

pub(super) fn ended(child: Child) -> Ended {
    Ended::of(child.wait_with_output().expect("it ends"), "the upgrade".to_owned())
}

#[test]
fn a_worker_or_a_server_that_is_killed_in_the_middle_ends_as_before() {
    let house = House::new("upshot");
    let (cluster, container) = filled(&house, "17");
    sql(&container, "postgres", MANY);
    let (content, world) = (seen(&container), things(&cluster));
    let source = format!("pglife-upgrade-{cluster}-source");
    let target = format!("pglife-upgrade-{cluster}-target");
    for (step, server) in [
        ("facts", None),
        ("backup", None),
        ("restore", None),
        ("compare", None),
        ("facts", Some(&source)),
        ("backup", Some(&source)),
        ("restore", Some(&target)),
        ("compare", Some(&target)),
    ] {
        let child = begin(&house, &cluster, "18", "dump");
        wait_for_step(&house, &cluster, step);
        let mut victim = server.cloned();
        wait_for("a worker", || {
            let found = worker(&cluster);
            victim = server.cloned().or_else(|| found.clone());
            found.is_some()
        });
        let victim = victim.expect("a container");
        try_docker(&["kill", &victim]).ok();
        let ended = ended(child).exits(22);
        assert!(ended.stderr.contains("serves as before"), "{step} {server:?}: {}", ended.stderr);
        wait_for_server(&container);
        assert_eq!((seen(&container), things(&cluster)), (content.clone(), world.clone()), "{step} {server:?}");
        assert_eq!((major(&container), phase(&house, &cluster)), ("17".to_owned(), "as-before".to_owned()));
    }
}

/// `pg_upgrade` and the servers that it starts run in the worker, and die with it; the old server recovers by itself.
#[test]
fn what_is_killed_in_the_middle_of_pg_upgrade_ends_as_before() {
    let house = House::new("upshot2");
    let (cluster, container) = filled(&house, "15");
    sql(&container, "postgres", MANY);
    let (content, world) = (seen(&container), things(&cluster));
    for (pause, pglife_too) in [(400, false), (2000, true)] {
        let mut child = begin(&house, &cluster, "17", "pg_upgrade");
        wait_for_step(&house, &cluster, "transfer");
        wait_for("a worker", || worker(&cluster).is_some());
        std::thread::sleep(Duration::from_millis(pause));
        if pglife_too {
            child.kill().expect("it is killed");
            child.wait().expect("it ends");
            assert_eq!(phase(&house, &cluster), "open");
            house.pglife(&["upgrade", "resume", &cluster]).exits(22);
        } else {
            try_docker(&["kill", &worker(&cluster).expect("a worker")]).ok();
            let ended = ended(child).exits(22);
            assert!(ended.stderr.contains("serves as before"), "{pause}: {}", ended.stderr);
        }
        wait_for_server(&container);
        assert_eq!((seen(&container), things(&cluster)), (content.clone(), world.clone()), "{pause} {pglife_too}");
        assert_eq!((major(&container), phase(&house, &cluster)), ("15".to_owned(), "as-before".to_owned()));
    }
}

#[test]
fn a_full_disk_under_the_new_server_ends_as_before() {
    let house = House::new("upfull");
    let (cluster, container) = filled(&house, "17");
    sql(&container, "postgres", MANY);
    let (content, world) = (seen(&container), things(&cluster));
    let child = begin(&house, &cluster, "18", "dump");
    wait_for_step(&house, &cluster, "backup");
    // The volume that the upgrade is about to make, but small.
    let volume = format!("pglife-{cluster}-data-pg18");
    let options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=100m"];
    let label = format!("pglife.cluster={cluster}");
    docker(&[&["volume", "create", "--label", &label], &options[..], &[&volume]].concat());
    let ended = ended(child).exits(22);
    assert!(ended.stderr.contains("No space left") && ended.stderr.contains("serves as before"), "{}", ended.stderr);
    wait_for_server(&container);
    assert_eq!((seen(&container), things(&cluster), major(&container)), (content, world, "17".to_owned()));
}

/// A server in another container is not to be seen by its process id, but by the lock of the volume.
#[test]
fn pg_upgrade_leaves_a_volume_alone_that_another_container_uses() {
    let house = House::new("uplock");
    let (cluster, container) = filled(&house, "15");
    // The image makes checksums; the new cluster must have none where the old one has none.
    docker(&["stop", &container]);
    let volumes = format!("--volumes-from={cluster}-data");
    let disable = ["pglife/postgres:15", "pg_checksums", "--disable", "--pgdata=/data/15"];
    docker(&[&["run", "--rm", "--user=postgres", &volumes], &disable[..]].concat());
    docker(&["start", &container]);
    wait_for_server(&container);
    let (content, world) = (seen(&container), things(&cluster));

    // Somebody who came by a way that no engine shows: waits for the lock of the server that nobody knows, and has it when that is stopped.
    let holder = format!("{cluster}-holder");
    let folder = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("pglife-{cluster}-data")]);
    let bind = format!("{}:/held", folder.trim());
    let script = "until [ ! -e /held/15/postmaster.pid ]; do sleep 0.02; done; until [ -e /held/15/postmaster.pid ]; do sleep 0.02; done; \
        exec flock /held/run/lock sleep 600";
    docker(&["run", "-d", "--name", &holder, "-v", &bind, "--entrypoint=sh", "pglife/postgres:15", "-c", script]);
    let to_17 = ["upgrade", &cluster, "--to", "17", "--method", "pg_upgrade", "--yes"];
    let ended = house.pglife(&to_17).exits(23);
    assert!(ended.stderr.contains("locking the old data volume"), "{}", ended.stderr);
    docker(&["rm", "-f", &holder]);
    house.pglife(&["upgrade", "resume", &cluster]).exits(22);
    wait_for_server(&container);
    assert_eq!((seen(&container), things(&cluster), major(&container)), (content.clone(), world, "15".to_owned()));

    house.pglife(&to_17).ok();
    wait_for_server(&container);
    assert_eq!((seen(&container), major(&container)), (content, "17".to_owned()));
    assert_eq!(sql(&container, "postgres", "show data_checksums"), "off");
}
