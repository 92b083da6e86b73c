//! The main job: a cluster, a backup, a look at it, a restore; and both hold the same.

use crate::house::{House, docker, sql};

#[test]
fn a_backup_restores_into_a_second_cluster() {
    let house = House::new("job");
    let source = house.cluster("source", "17", "");
    let container = format!("{source}-db");
    sql(&container, "postgres", "create database shop");
    sql(
        &container,
        "shop",
        "create table orders as select g as id, md5(g::text) as note from generate_series(1, 10000) g",
    );
    let sum = "select count(*), md5(string_agg(note, ',' order by id)) from orders";
    let before = sql(&container, "shop", sum);

    let set = house.backup(&source);
    let listed = house.items(&["backups", "list", &source]);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["set"], set.as_str());
    assert_eq!(house.items(&["backups", "verify", &source])[0]["intact"], true);

    let copy = house.name("copy");
    house.pglife(&["restore", &source, "--into", &copy]).ok();
    assert_eq!(sql(&format!("{copy}-db"), "shop", sum), before);
    // The restored cluster has a policy of its own and a history of its own.
    house.backup(&copy);
    assert_eq!(house.items(&["backups", "list", &source]).len(), 1);

    // No worker is left behind, nor scratch space.
    let workers =
        docker(&["ps", "-a", "--filter", "label=pglife.purpose=worker", "--format", "{{.Label \"pglife.cluster\"}}"]);
    assert!(!workers.lines().any(|cluster| cluster == source || cluster == copy), "{workers}");
}
