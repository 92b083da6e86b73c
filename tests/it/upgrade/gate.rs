//! What must hold before an upgrade touches anything, and what the new image must have.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{major, phase, things};
use crate::house::{House, docker, sql, wait_for_server};

/// What blocks the upgrade, each with its remedy.
fn blocking(house: &House, cluster: &str, to: &str) -> Vec<String> {
    let planned = house.pglife(&["upgrade", cluster, "--to", to, "--plan", "-o", "json"]).ok();
    let answer: Value = serde_json::from_str(&planned.stdout).expect("JSON");
    let findings = answer["items"][0]["findings"].as_array().expect("a list");
    let words =
        |one: &Value| format!("{} | {}", one["what"].as_str().expect("words"), one["remedy"].as_str().expect("words"));
    findings.iter().filter(|one| one["severity"] == "blocks").map(words).collect()
}

#[track_caller]
fn all_named(found: &[String], parts: &[&str]) {
    for part in parts {
        assert!(found.iter().any(|words| words.contains(part)), "{part}: {found:#?}");
    }
    assert_eq!(found.len(), parts.len(), "{found:#?}");
}

#[test]
fn what_the_new_image_does_not_have_is_told_before() {
    let house = House::new("uplack");
    let cluster = house.cluster("c", "15", "");
    let container = format!("{cluster}-db");
    docker(&["exec", &container, "localedef", "-i", "fr_FR", "-f", "UTF-8", "fr_FR.UTF-8"]);
    docker(&[
        "exec",
        &container,
        "sh",
        "-c",
        "echo \"shared_preload_libraries = 'auto_explain, old_snapshot'\" >/config/p.conf",
    ]);
    docker(&["restart", &container]);
    wait_for_server(&container);
    sql(&container, "postgres", "create extension adminpack; create extension hstore");
    sql(&container, "postgres", "create database other");
    sql(
        &container,
        "other",
        "create extension old_snapshot; create collation french (provider = libc, locale = 'fr_FR.utf8')",
    );
    sql(
        &container,
        "other",
        "create function own(text) returns boolean language c as '$libdir/adminpack', 'pg_file_unlink_v1_1'",
    );
    let world = things(&cluster);
    all_named(
        &blocking(&house, &cluster, "17"),
        &[
            "extension adminpack, in database \"postgres\", is not in pglife/postgres:17 | PostgreSQL 17 removed it",
            "extension old_snapshot, in database \"other\", is not in pglife/postgres:17",
            "setting shared_preload_libraries loads library old_snapshot",
            "library $libdir/adminpack of function public.own(text) of database \"other\"",
            "locale fr_FR.utf8 of collation \"french\" of database \"other\"",
        ],
    );
    house
        .pglife(&["upgrade", &cluster, "--to", "17", "--yes"])
        .exits(4)
        .says(&["extension adminpack", "nothing was touched"]);
    assert_eq!((things(&cluster), major(&container)), (world, "15".to_owned()));
}

#[test]
fn what_the_new_major_does_not_take_is_told_before() {
    let house = House::new("upold");
    let cluster = house.cluster("c", "13", "");
    let container = format!("{cluster}-db");
    sql(
        &container,
        "postgres",
        "create operator !!! (leftarg = int8, function = numeric_fac); \
         create aggregate collected (anyelement) (sfunc = array_append, stype = anyarray, initcond = '{}'); \
         create operator ||| (leftarg = anyarray, rightarg = anyelement, function = array_append); \
         create function own_conversion(int, int, cstring, internal, int) returns void language c strict \
         as '$libdir/utf8_and_iso8859_1', 'iso8859_1_to_utf8'; \
         create conversion own for 'LATIN1' to 'UTF8' from own_conversion; \
         create table parent (i int not null); create table child () inherits (parent); \
         alter table child alter i drop not null",
    );
    all_named(
        &blocking(&house, &cluster, "18"),
        &[
            "public.!!!(bigint,NONE) in database \"postgres\"",
            "aggregate public.collected(anyelement) in database",
            "operator public.|||(anyarray,anyelement) in database",
            "conversion public.own in database",
            "public.child (i) in database",
        ],
    );
    sql(
        &container,
        "postgres",
        "drop operator !!! (int8, none); drop aggregate collected (anyelement); drop operator ||| (anyarray, anyelement); \
         drop conversion own; alter table child alter i set not null",
    );
    assert_eq!(blocking(&house, &cluster, "18"), Vec::<String>::new());
}

#[test]
fn a_proven_backup_and_a_rehearsal_come_first() {
    let house = House::new("upgate");
    let cluster = house.cluster("c", "15", "[upgrade]\nrequire_proven = \"1h\"\nrehearse = true\nkeep_old = \"72h\"\n");
    let container = format!("{cluster}-db");
    // No preflight knows every view: 17 took this column away.
    sql(
        &container,
        "postgres",
        "create table t as select 1 as one; create view v as select buffers_backend from pg_stat_bgwriter",
    );
    let world = things(&cluster);
    house.pglife(&["upgrade", &cluster, "--to", "17", "--yes"]).exits(4).says(&[
        "its rehearsal",
        "buffers_backend",
        "nothing of it was touched",
    ]);
    assert_eq!((things(&cluster), major(&container)), (world, "15".to_owned()));
    house.pglife(&["upgrade", "status", &cluster]).ok().says(&["no upgrade was ever begun"]);

    sql(&container, "postgres", "drop view v");
    // What is proven already is not proven again; it still has the view, so a newer one must be rehearsed.
    let proofs = house.items(&["drill", "list", &cluster]).len();
    assert_eq!(proofs, 1);
    house.backup(&cluster);
    let done = house.items(&["upgrade", &cluster, "--to", "17", "--yes"]).remove(0);
    assert!(done["report"]["proven"].is_string() && done["report"]["rehearsed"].is_number(), "{}", done["report"]);
    assert_eq!(house.items(&["drill", "list", &cluster]).len(), proofs);
    wait_for_server(&container);
    assert_eq!(
        (major(&container), sql(&container, "postgres", "select one from t")),
        ("17".to_owned(), "1".to_owned())
    );
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).exits(4).says(&["keep_old", "the old server is kept"]);
    assert_eq!(phase(&house, &cluster), "upgraded");
}

#[test]
fn outside_its_window_it_does_not_begin() {
    let house = House::new("upwindow");
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let hour = seconds / 3600 % 24;
    let window = format!(
        "[upgrade]\nwindow = {{ start = \"{:02}:00\", end = \"{:02}:00\" }}\n",
        (hour + 3) % 24,
        (hour + 5) % 24
    );
    let cluster = house.cluster("c", "17", &window);
    let world = things(&cluster);
    house.pglife(&["upgrade", &cluster, "--to", "18", "--plan", "--exit-code"]).exits(6);
    let begin = ["upgrade", &cluster, "--to", "18", "--yes"];
    house.pglife(&begin).exits(4).says(&["its window is", "--outside-window", "nothing was touched"]);
    assert_eq!(things(&cluster), world);
    house.pglife(&[&begin[..], &["--outside-window"]].concat()).ok();
}
