//! A restore in place ends *restored* or *as before*, wherever it is cut, and what was there is kept.

use serde_json::Value;

use crate::house::{House, docker, sql, try_docker, wait_for_server};
use crate::upgrade::{fill, killed, phase, seen, things};

/// A cluster with content, in which nothing writes by itself, with more settings.
fn filled(house: &House, major: &str, policy: &str, settings: &str) -> (String, String) {
    let cluster = house.cluster("c", major, policy);
    let container = format!("{cluster}-db");
    fill(&container);
    let quiet = format!("printf 'autovacuum = off\\n{settings}' >/config/quiet.conf");
    docker(&["exec", &container, "sh", "-c", &quiet]);
    docker(&["restart", &container]);
    wait_for_server(&container);
    (cluster, container)
}

fn rows(container: &str) -> String {
    sql(container, "postgres", "select count(*) from t")
}

fn restored(ended: &str) -> Value {
    serde_json::from_str::<Value>(ended).expect("JSON")["items"][0].clone()
}

#[test]
fn a_copy_of_the_volumes_takes_the_place_of_the_data() {
    let house = House::new("inplace");
    let (cluster, container) = filled(&house, "17", "", "");
    let content = seen(&container);
    let taken = house.items(&["backup", &cluster, "--kind", "volume"]).remove(0);
    let set = taken["set"].as_str().expect("an id");
    sql(&container, "postgres", "insert into t values (0, 'later')");
    let (later, world) = (seen(&container), things(&cluster));
    assert_ne!(later, content);

    let begin = ["restore", &cluster, "--backup", "latest:volume", "--in-place", "--yes"];
    let [_, _, _, _, in_place, _] = begin;
    let plan = house.items(&["restore", &cluster, in_place, "--dry-run"]).remove(0);
    assert_eq!(plan["plan"]["method"], format!("restore of {set}"));
    assert_eq!(plan["plan"]["old_server"], "serves");
    house.pglife(&["restore", &cluster, in_place]).exits(4).says(&["--yes"]);
    house.pglife(&["restore", &cluster, in_place, "--into", "x", "--yes"]).exits(2);
    house.pglife(&["restore", &cluster, in_place, "--database", "postgres", "--yes"]).exits(2);
    house.pglife(&["restore", &cluster]).exits(2);
    assert_eq!((&seen(&container), &things(&cluster)), (&later, &world));

    // What no server starts with is known soon, and nothing is touched.
    docker(&["exec", &container, "sh", "-c", "echo 'max_connections = many' >/config/wrong.conf"]);
    let began = std::time::Instant::now();
    house.pglife(&begin).exits(15).says(&["max_connections", "the server ended", "serves as before"]);
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    docker(&["exec", &container, "rm", "/config/wrong.conf"]);
    assert_eq!((&seen(&container), &things(&cluster)), (&later, &world));

    for step in ["unpack", "target", "stop", "proof"] {
        killed(&house, &begin, &format!("after:{step}"));
        assert_eq!(phase(&house, &cluster), "open", "{step}");
        house.pglife(&begin).exits(11).says(&["upgrade resume"]);
        house.pglife(&["upgrade", "resume", &cluster]).exits(22);
        wait_for_server(&container);
        assert_eq!((&seen(&container), &things(&cluster)), (&later, &world), "{step}");
    }

    killed(&house, &begin, "after:set-data-aside");
    assert_eq!(phase(&house, &cluster), "committed");
    house.pglife(&["upgrade", "resume", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!(seen(&container), content);
    let running = things(&cluster).iter().filter(|thing| thing.ends_with(" running")).count();
    assert_eq!(running, 1);
    // Nobody wrote to it but the server itself: back without a loss to accept.
    sql(&container, "postgres", "vacuum analyze");
    house.pglife(&["upgrade", "rollback", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!((&seen(&container), &things(&cluster)), (&later, &world));

    let done = restored(&house.pglife(&[&begin[..], &["-o", "json"]].concat()).ok().stdout);
    assert_eq!((done["phase"].as_str(), done["report"]["backup"].as_str()), (Some("upgraded"), Some(set)));
    wait_for_server(&container);
    assert_eq!(seen(&container), content);
    house.pglife(&begin).exits(4).says(&["is still kept", "finalize"]);
    sql(&container, "postgres", "insert into t values (0, 'new'), (0, 'new')");
    let parts = ["table public.t: 5000 rows at the commit, 5002 now", "--accept-data-loss"];
    house.pglife(&["upgrade", "rollback", &cluster]).exits(4).says(&parts);
    assert_eq!(rows(&container), "5002");
    // The backups of the server before have the same identifier, and are none of this one.
    let first = done["report"]["first_backup"].as_str().expect("an id");
    house.pglife(&["backups", "delete", &cluster, "--backup", first, "--yes"]).ok();
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).exits(4).says(&["no repository has a backup of the new"]);

    // It is the cluster, with all that pglife does with one.
    house.backup(&cluster);
    let next = house.items(&["backup", &cluster, "--kind", "volume", "--incremental"]).remove(0);
    assert_eq!(next["warnings"], serde_json::json!([]));
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).ok();
    assert_eq!(things(&cluster).len(), world.len(), "{:?}", things(&cluster));
    assert_eq!(rows(&container), "5002");
    house.pglife(&["drill", &cluster, "--backup", "latest:volume"]).ok();
}

#[test]
fn a_dump_takes_the_place_of_data_that_no_server_starts_on() {
    let house = House::new("inplacedump");
    let (cluster, container) = filled(
        &house,
        "15",
        "[backup.dump]\ndatabases = [\"*\", \"!aside\"]",
        "archive_mode = on\\narchive_command = true\\n",
    );
    let content = seen(&container);
    sql(&container, "postgres", "create database aside");
    let set = house.backup(&cluster);
    let damage = "rm $(find /data -name pg_control)";
    docker(&["exec", &container, "sh", "-c", damage]);
    docker(&["kill", &container]);
    docker(&["start", &container]);
    let volume = docker(&[
        "inspect",
        "--format",
        "{{range .Mounts}}{{if eq .Destination \"/data\"}}{{.Name}}{{end}}{{end}}",
        &container,
    ]);
    let volume = volume.trim();
    let before = things(&cluster);

    // A damaged backup changes nothing.
    let object = house.set_folder(&cluster, &set).join("db/postgres.dump.zst");
    let whole = std::fs::read(&object).expect("the dump");
    std::fs::write(&object, &whole[..whole.len() / 2]).expect("shorter");
    let begin = ["restore", &cluster, "--in-place", "--yes"];
    house.pglife(&begin).exits(21).says(&["is as it was"]);
    assert_eq!(names(&things(&cluster)), names(&before));
    std::fs::write(&object, whole).expect("whole");

    // What the dump does not have is told before.
    let absent = "database \"aside\" is not in the backup (the policy leaves it out)";
    house.pglife(&["restore", &cluster, "--in-place", "--dry-run"]).ok().says(&[absent, "archive_mode is on"]);
    house.pglife(&begin).exits(3).says(&[
        absent,
        "archive_mode is on",
        "postgresql.auto.conf was not carried over",
        volume,
        "upgrade rollback",
    ]);
    wait_for_server(&container);
    // What ALTER SYSTEM said is not there; who may log in is.
    assert_eq!(seen(&container).replace("4MB|t|1", "9MB|t|1"), content);
    let statistics = "select count(distinct tablename) from pg_stats where tablename in ('t', 'p')";
    assert_eq!(sql(&container, "postgres", statistics), "2");

    // Back to what does not start, and forward again.
    house.pglife(&["upgrade", "rollback", &cluster]).ok().says(&["did not serve then"]);
    assert_eq!(names(&things(&cluster)), names(&before));
    house.pglife(&begin).exits(3);
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).ok();
    assert_eq!(try_docker(&["volume", "inspect", volume]).exit, 1);
    assert_eq!(seen(&container).replace("4MB|t|1", "9MB|t|1"), content);
}

/// Without what they do: one that does not start is now starting and now not.
fn names(things: &[String]) -> Vec<&str> {
    things.iter().map(|thing| thing.split(' ').next().unwrap_or_default()).collect()
}
