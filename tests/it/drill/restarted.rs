//! A drill during which the Docker engine itself is killed or restarted.

use std::process::Stdio;

use serde_json::Value;

use crate::engine::OwnEngine;
use crate::house::{Ended, House, wait_for};

use super::{certificates, drill};

/// Containers and volumes of drills, workers included.
fn left(engine: &OwnEngine) -> Vec<String> {
    let listed = [&["ps", "-a", "--format", "{{.Names}}"][..], &["volume", "ls", "--format", "{{.Name}}"]];
    let names = listed.map(|kind| engine.docker(kind)).concat();
    let of_drill = |name: &&str| name.contains("-drill") || name.contains("pglife-worker-");
    names.lines().filter(of_drill).map(str::to_owned).collect()
}

#[test]
fn an_engine_that_dies_is_no_verdict_and_the_next_command_clears() {
    let mut engine = OwnEngine::with_images(&["pglife/data", "pglife/postgres:17"]);
    let house = House::new("enginekill");
    house.on_host(&format!("endpoint = \"{}\"", engine.endpoint()));
    let cluster = house.cluster("source", "17", "");
    let (container, server) = (format!("{cluster}-db"), format!("{cluster}-drill-db"));
    let tables = "create table item as select i, md5(i::text) from generate_series(1, 10000) i; \
                  create materialized view slow as select pg_sleep(6) is null as slept";
    engine.sql(&container, "postgres", tables);
    let before = content(&engine, &container);
    let set = house.backup(&cluster);

    for killed in [true, false] {
        let mut command = house.command(&["drill", &cluster]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let refreshing = "select count(*) from pg_stat_activity where query ~* '^ *refresh' and state = 'active'";
        wait_for("the restore", || {
            let ask = engine.try_docker(&["exec", &server, "psql", "-U", "postgres", "-Atc", refreshing]);
            ask.exit == 0 && ask.stdout.trim() != "0"
        });
        if killed {
            engine.kill();
        } else {
            engine.stop();
        }
        let ended = Ended::of(child.wait_with_output().expect("it ends"), "the drill".to_owned());
        // Infrastructure, never a verdict on the backup.
        assert!([1, 14, 15].contains(&ended.exit), "killed {killed}: exit {}: {}", ended.exit, ended.stderr);
        ended.says(&[&cluster, "\n  next: "]);
        engine.begin();
        assert_eq!(certificates(&house, &cluster), Vec::<Value>::new(), "killed {killed}");

        if killed {
            // Docker 20.10 stops what it finds running when it comes back from a crash, and takes that for somebody's wish.
            engine.docker(&["start", &container]);
        }
        // The cluster's own server is as it was, and the next command clears what the drill left.
        engine.wait_for_server(&container);
        assert_eq!(content(&engine, &container), before, "killed {killed}");
        house.backup(&cluster);
        assert_eq!(left(&engine), Vec::<String>::new(), "killed {killed}");
    }
    let (answer, _) = drill(&house, &[&cluster, "--backup", &set], 0);
    assert_eq!(answer["result"], "proven");
    assert_eq!(left(&engine), Vec::<String>::new());
}

fn content(engine: &OwnEngine, container: &str) -> String {
    engine.sql(container, "postgres", "select count(*), sum(i), max(md5) from item")
}
