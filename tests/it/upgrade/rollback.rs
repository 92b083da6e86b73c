//! Going back: by itself where nobody wrote to the new server, asked for twice where somebody did, and never with a loss.

use serde_json::Value;

use super::{filled, filled_with, killed, major, phase, seen, things};
use crate::house::{House, docker, free_port, sql, try_docker, wait_for_server};

/// An upgraded cluster, its database container, what a client saw before, and what there was.
fn upgraded(house: &House) -> (String, String, String, Vec<String>) {
    let (cluster, container) = filled(house, "17");
    let (content, world) = (seen(&container), things(&cluster));
    house.pglife(&["upgrade", &cluster, "--to", "18", "--yes"]).ok();
    wait_for_server(&container);
    assert_eq!(major(&container), "18");
    (cluster, container, content, world)
}

fn sets(house: &House, cluster: &str) -> usize {
    house.items(&["backups", "list", cluster]).len()
}

#[test]
fn nobody_wrote_and_it_goes_back_without_a_loss_to_accept() {
    let house = House::new("upback");
    let (cluster, container, content, world) = upgraded(&house);
    // Clients that only read, and what the server writes by itself.
    assert_eq!(seen(&container), content);
    sql(&container, "postgres", "vacuum analyze");
    let before = sets(&house, &cluster);
    house.pglife(&["upgrade", "rollback", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container), things(&cluster)), ("17".to_owned(), content.clone(), world));
    assert_eq!(sets(&house, &cluster), before, "nothing was to be saved");

    // Before the new server ever stood in its place, too.
    killed(&house, &["upgrade", &cluster, "--to", "18", "--yes"], "after:committed");
    house.pglife(&["upgrade", "rollback", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container)), ("17".to_owned(), content));
}

/// What is written between the look and the stop: by a container that is taken down just then. The image stops by SIGINT.
#[test]
fn what_is_written_while_it_is_looked_at_is_looked_at_again() {
    let house = House::new("upagain");
    let port = free_port();
    let (cluster, container) = filled_with(&house, "17", &format!("publish = \"127.0.0.1:{port}\""));
    sql(&container, "postgres", "create table bobs as select 1 as i; alter table bobs owner to bob");
    let content = seen(&container);
    house.pglife(&["upgrade", &cluster, "--to", "18", "--yes"]).ok();
    wait_for_server(&container);

    let last_words = format!("psql -X -h 127.0.0.1 -p {port} -U bob -d postgres -f /house/words; exit 0");
    let script = format!("trap '{last_words}' INT TERM; while :; do sleep 0.1; done");
    let (label, folder) = (format!("pglife.depends-on={cluster}"), format!("{}:/house:ro", house.path("").display()));
    let arguments = ["--network", "host", "-v", &folder, "-e", "PGPASSWORD=secret", "--label", &label];
    let image = ["--entrypoint", "bash", "pglife/postgres:17", "-c", &script];
    let speaker = house.foreign("speaker", &[&arguments[..], &image].concat());

    house.write("words", "insert into bobs values (2)");
    let back = ["upgrade", "rollback", &cluster];
    let parts =
        ["while it was looked at", "table public.bobs: 1 rows at the commit, 2 now", "the new server serves again"];
    let ended = house.pglife(&back);
    let words = try_docker(&["logs", &speaker]);
    assert!(words.stdout.contains("INSERT 0 1"), "{}{}", words.stdout, words.stderr);
    ended.exits(4).says(&parts);
    assert_eq!((major(&container), phase(&house, &cluster)), ("18".to_owned(), "upgraded".to_owned()));
    let running = docker(&["inspect", "-f", "{{.State.Running}}", &speaker]);
    assert_eq!(running.trim(), "true");

    // As autovacuum does.
    sql(&container, "postgres", "delete from bobs where i = 2");
    house.write("words", "analyze bobs");
    house.pglife(&back).ok();
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container)), ("17".to_owned(), content));
}

#[test]
fn what_somebody_wrote_is_named_and_stays_in_a_backup() {
    let house = House::new("upwrote");
    let (cluster, container, content, world) = upgraded(&house);
    sql(&container, "postgres", "insert into t values (0, 'new'); select nextval('s'); alter role bob createdb");
    sql(&container, "we ird", "update x set one = 2");
    house.pglife(&["upgrade", "rollback", &cluster]).exits(4).says(&[
        "table public.t: 5000 rows at the commit, 5001 now",
        "table public.x: 1 rows, but not the same",
        "sequence public.s",
        "role bob",
        "--accept-data-loss",
        "nothing was touched",
    ]);
    assert_eq!((major(&container), phase(&house, &cluster)), ("18".to_owned(), "upgraded".to_owned()));

    let back = house.pglife(&["upgrade", "rollback", &cluster, "--accept-data-loss"]).ok();
    back.says(&["what was written to the new server is in backup"]);
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container), things(&cluster)), ("17".to_owned(), content, world));
    let newest = house.items(&["backups", "list", &cluster]);
    let of_18: Vec<&Value> =
        newest.iter().filter(|set| set["lineage"].as_str().is_some_and(|l| l.ends_with("-18"))).collect();
    let set = of_18.last().expect("a backup of the new server")["set"].as_str().expect("an id");
    let copy = house.name("copy");
    house.pglife(&["restore", &cluster, "--backup", set, "--into", &copy]).ok();
    assert_eq!(sql(&format!("{copy}-db"), "postgres", "select count(*) from t"), "5001");
    assert_eq!(sql(&format!("{copy}-db"), "we ird", "select one from x"), "2");
}

#[test]
fn cut_on_its_way_back_it_goes_on_and_loses_nothing() {
    let house = House::new("upcut");
    let (cluster, container, content, _) = upgraded(&house);
    sql(&container, "postgres", "insert into t values (0, 'new')");
    let back = ["upgrade", "rollback", &cluster, "--accept-data-loss"];

    // Before anything is given up, the new server serves again.
    killed(&house, &back, "after:leave-new-server");
    assert_eq!(phase(&house, &cluster), "committed");
    house.pglife(&["upgrade", "resume", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!(sql(&container, "postgres", "select count(*) from t"), "5001");

    // A backup that cannot be taken: the volume stays.
    let volume = format!("pglife-{cluster}-data-pg18");
    std::fs::rename(house.path("repo"), house.path("gone")).expect("renamed");
    house.pglife(&back).exits(3).says(&["could not be backed up", &volume, "stays"]);
    std::fs::rename(house.path("gone"), house.path("repo")).expect("renamed");
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container)), ("17".to_owned(), content.clone()));
    let line = format!("--volume={volume}:/data");
    let server = house.foreign("look", &["-e", "PGDATA=/data/18", &line, "pglife/postgres:18"]);
    wait_for_server(&server);
    assert_eq!(sql(&server, "postgres", "select count(*) from t"), "5001");
    docker(&["rm", "-f", &server]);
    house.pglife(&["upgrade", &cluster, "--to", "18", "--plan", "--exit-code"]).exits(4);
    docker(&["volume", "rm", &volume]);

    // Cut while it is backed up: the volume stays, too.
    house.pglife(&["upgrade", &cluster, "--to", "18", "--yes"]).ok();
    wait_for_server(&container);
    sql(&container, "postgres", "insert into t values (0, 'new')");
    killed(&house, &back, "before:rescue");
    assert_eq!(phase(&house, &cluster), "undoing");
    house.pglife(&["upgrade", "resume", &cluster]).exits(22).says(&[&volume, "which stays"]);
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container)), ("17".to_owned(), content));
    assert_eq!(try_docker(&["volume", "inspect", &volume]).exit, 0);
}
