//! The database with everything moves to a newer major as it is, by both methods: what `pg_dumpall` of the new major prints of it
//! before and after is the same text.

use std::path::PathBuf;

use serde_json::Value;

use crate::everything::{LOOKS, filled, same_text};
use crate::house::{House, docker_to_file, sql, wait_for_server};

/// What `pg_dumpall` of `major` says of the server in `container`.
fn texts(house: &House, container: &str, major: &str, when: &str) -> Vec<PathBuf> {
    let (image, volumes) = (format!("pglife/postgres:{major}"), format!("--volumes-from={container}"));
    let look = |(number, look): (usize, &&[&str])| {
        let file = house.path(&format!("{when}{number}.sql"));
        let dumpall = [image.as_str(), "pg_dumpall", "--host=/data/run"];
        docker_to_file(&[&["run", "--rm", "--user=postgres", &volumes], &dumpall[..], look].concat(), &file);
        file
    };
    LOOKS.iter().enumerate().map(look).collect()
}

fn moves(from: &str, to: &str) {
    let house = House::new(&format!("allup{from}"));
    let cluster = filled(&house, from);
    let container = format!("{cluster}-db");

    // What no dump can hold is named, and nothing else stands in the way.
    let planned = house.pglife(&["upgrade", &cluster, "--to", to, "--plan", "--exit-code", "-o", "json"]).exits(4);
    let answer: Value = serde_json::from_str(&planned.stdout).expect("JSON");
    let findings = answer["items"][0]["findings"].as_array().expect("a list").iter();
    let blocking: Vec<&str> =
        findings.filter(|one| one["severity"] == "blocks").map(|one| one["what"].as_str().expect("words")).collect();
    for part in ["database \"closed\"", "database \"half dropped\"", "prepared transaction it's \"not\" finished"] {
        assert!(blocking.iter().any(|what| what.contains(part)), "{part}: {blocking:#?}");
    }
    assert_eq!(blocking.len(), 3, "{blocking:#?}");
    sql(&container, "unfinished", "rollback prepared 'it''s \"not\" finished'");
    sql(&container, "postgres", "alter database closed allow_connections true");
    sql(&container, "postgres", "drop database \"half dropped\"");

    for method in ["dump", "pg_upgrade"] {
        let before = texts(&house, &container, to, "before");
        let done = house.items(&["upgrade", &cluster, "--to", to, "--method", method, "--yes"]).remove(0);
        assert_eq!((done["phase"].as_str(), done["method"].as_str()), (Some("upgraded"), Some(method)));
        wait_for_server(&container);
        let after = texts(&house, &container, to, "after");
        for (before, after) in before.iter().zip(&after) {
            same_text(before, after, &["normalise.sed", "normalise-upgrade.sed"]);
        }
        // Looking is no writing: nothing is lost.
        house.pglife(&["upgrade", "rollback", &cluster]).ok();
        wait_for_server(&container);
    }
}

#[test]
fn everything_moves_from_13_to_18() {
    moves("13", "18");
}

#[test]
fn everything_moves_from_15_to_17() {
    moves("15", "17");
}
