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

fn moves(from: &str, to: &str, in_the_way: &[(&str, &str)]) {
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

    let mut scripts = vec!["normalise.sed", "normalise-upgrade.sed"];
    moves_by(&house, &cluster, to, "dump", &scripts);

    // pg_upgrade says itself what it cannot take; mended one after the other it goes over.
    for (words, way_out) in in_the_way {
        let refused = house.pglife(&["upgrade", &cluster, "--to", to, "--method", "pg_upgrade", "--yes"]).exits(4);
        refused.says(&[words, "--method dump", "nothing was touched"]);
        sql(&container, "everything", &format!("set pglife.refuse = 'off'; {way_out}"));
    }
    scripts.push("normalise-pg_upgrade.sed");
    moves_by(&house, &cluster, to, "pg_upgrade", &scripts);
}

/// There, compared, and back: looking is no writing, so that nothing is lost.
fn moves_by(house: &House, cluster: &str, to: &str, method: &str, scripts: &[&str]) {
    let container = format!("{cluster}-db");
    let before = texts(house, &container, to, "before");
    let done = house.items(&["upgrade", cluster, "--to", to, "--method", method, "--yes"]).remove(0);
    assert_eq!((done["phase"].as_str(), done["method"].as_str()), (Some("upgraded"), Some(method)));
    wait_for_server(&container);
    let after = texts(house, &container, to, "after");
    for (before, after) in before.iter().zip(&after) {
        same_text(before, after, scripts);
    }
    house.pglife(&["upgrade", "rollback", cluster]).ok();
    wait_for_server(&container);
}

/// What pg_upgrade cannot take, in its own words, and the way out.
const REG_PROC: (&str, &str) = ("public.values_of_all_types.rp", "alter table values_of_all_types drop column rp");
const CONVERSION: (&str, &str) = ("shop.latin", "drop conversion shop.latin");

#[test]
fn everything_moves_from_13_to_18() {
    moves("13", "18", &[REG_PROC, CONVERSION]);
}

#[test]
fn everything_moves_from_15_to_17() {
    moves("15", "17", &[REG_PROC]);
}
