//! The selftest: a spoiled backup is noticed, however it is spoiled, and by the check that is there for it; and it leaves nothing.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use crate::drill::{of_drills, shop};
use crate::house::{House, wait_for};

/// Folders of runs in the state directory.
fn folders(house: &House) -> Vec<String> {
    let entries = std::fs::read_dir(house.path("state")).expect("a state directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("pglife-run-")).collect()
}

fn words<'v>(trial: &'v Value, key: &str) -> Vec<&'v str> {
    trial[key].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

#[test]
fn every_mutation_is_noticed_and_every_check_is_needed() {
    let house = House::new("selftest");
    let (cluster, set) = shop(&house, "");
    let trials = house.items(&["selftest", &cluster]);
    let results: BTreeSet<&str> = trials.iter().filter_map(|trial| trial["result"].as_str()).collect();
    assert_eq!(results, BTreeSet::from(["noticed"]), "{trials:#?}");
    // 3 × (COMMIT, manifest, globals, a database, facts, recipe, instructions), and 11 that digests do not show.
    assert_eq!(trials.len(), 3 * 7 + 11);

    // Who notices what: without the one check there is, it would be missed.
    let by = |mutation: &str| {
        let trial = trials.iter().find(|trial| trial["mutation"] == mutation).expect("it was tried");
        (words(trial, "by").join(","), words(trial, "found").join("\n"))
    };
    for (mutation, check, found) in [
        ("lose COMMIT", "listing", "not listed"),
        ("flip COMMIT", "listing", "digest"),
        ("flip manifest.json", "verify", "digest"),
        ("cut db/admin.dump.zst", "verify", "admin"),
        ("flip recipe.json", "verify", "recipe.json"),
        ("lose RECOVER.md", "verify", "RECOVER.md"),
        ("change-row", "facts", "their content is not what was backed up"),
        ("drop-row", "facts", "rows backed up"),
        ("drop-index", "facts", "index public.item_name: backed up, but missing"),
        ("drop-grant", "facts", "public.item"),
        ("forget-database", "facts", "backed up, but not found"),
        ("change-role", "facts", "role keeper: login"),
        ("stale-facts", "facts", "rows backed up"),
        ("stale-sequence", "facts", "sequence public.item_id_seq: stood at"),
        ("forget-facts", "facts", "in the backup, but not in its facts"),
    ] {
        let (witness, said) = by(mutation);
        assert_eq!(witness, check, "{mutation}: {said}");
        assert!(said.contains(found), "{mutation}: {said}");
    }

    // The cluster's own history knows nothing of it.
    assert_eq!(house.items(&["drill", "list", &cluster]), Vec::<Value>::new());
    assert_eq!(house.items(&["status", &cluster])[0]["proof"]["last_proven"], Value::Null);
    assert_eq!((folders(&house), of_drills(&house)), (vec![], vec![]));
    house.pglife(&["backups", "verify", &cluster]).ok();
    house.pglife(&["drill", &cluster, "--backup", &set]).ok();

    // What it cannot do is said.
    house.pglife(&["selftest", &cluster, "--only", "melt"]).exits(2).says(&["melt", "drop-row"]);
    house.pglife(&["selftest", &cluster, "--backup", "latest:volume"]).exits(5);
}

/// Digests that are right, and more and more of what the server keeps about its own files: each time one check is left.
#[test]
fn a_copy_of_the_volumes_is_spoiled_too() {
    let house = House::new("selftestvolume");
    let (cluster, _) = shop(&house, "");
    house.items(&["backup", &cluster, "--kind", "volume"]);
    let trials = house.items(&["selftest", &cluster, "--backup", "latest:volume"]);
    // 3 × (COMMIT, manifest, volumes, recipe, instructions), and 6 that digests do not show.
    assert_eq!(trials.len(), 3 * 5 + 6);
    assert!(trials.iter().all(|trial| trial["result"] == "noticed"), "{trials:#?}");
    for (mutation, check, found) in [
        ("flip volume.tar.zst", "verify", "volume.tar.zst"),
        ("change-file", "files", "checksum mismatch for file"),
        ("lose-table", "files", "is present in the manifest but not on disk"),
        ("lose-wal", "files", "WAL parsing failed"),
        ("lose-label", "files", "\"backup_label\" is present in the manifest but not on disk"),
        ("change-page", "structure,page checksums", "checksum"),
        ("lose-entry", "structure", "lacks matching index tuple"),
    ] {
        let trial = trials.iter().find(|trial| trial["mutation"] == mutation).expect("it was tried");
        let said = words(trial, "found").join("\n");
        assert_eq!(words(trial, "by").join(","), check, "{mutation}: {said}");
        assert!(said.contains(found), "{mutation}: {said}");
    }
    assert_eq!((folders(&house), of_drills(&house)), (vec![], vec![]));
    house.pglife(&["drill", &cluster, "--backup", "latest:volume"]).ok();

    // Of one that builds on it a full one is spoiled; and the codec is that of the backup.
    for (codec, objects) in [("none", 6), ("gzip:1", 5)] {
        house.policy("source", "17", &format!("[backup.volume]\ncodec = \"{codec}\""));
        house.items(&["backup", &cluster, "--kind", "volume", "--incremental"]);
        let only = ["--only", "flip", "--only", "change-file"];
        let trials = house.items(&[&["selftest", &cluster, "--backup", "latest:volume"][..], &only].concat());
        assert_eq!(trials.len(), objects + 1, "{codec}: {trials:#?}");
        assert!(trials.iter().all(|trial| trial["result"] == "noticed"), "{codec}: {trials:#?}");
    }
}

#[test]
fn an_encrypted_backup_is_spoiled_too_and_a_killed_selftest_leaves_nothing() {
    let house = House::new("selftestkey");
    let [everyday, escrow] = house.encrypt();
    let (cluster, _) = shop(&house, "");
    std::fs::rename(&everyday, format!("{everyday}.away")).expect("away");
    house.pglife(&["selftest", &cluster]).exits(12).says(&["--identity"]);
    let arguments =
        ["selftest", &cluster, "--identity", &escrow, "--only", "drop-row", "--only", "change-role", "--only", "flip"];
    let trials = house.items(&arguments);
    assert_eq!(trials.len(), 8 + 2, "{trials:#?}");
    assert!(trials.iter().all(|trial| trial["result"] == "noticed"), "{trials:#?}");

    let scratch = house.path("elsewhere").to_string_lossy().into_owned();
    let arguments = [&arguments[..], &["--scratch", &scratch]].concat();
    let mut child = house.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("a throwaway server", || !of_drills(&house).is_empty());
    // Another drill would take the same names.
    house.pglife(&["drill", &cluster, "--identity", &escrow]).exits(11);
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_eq!(std::fs::read_dir(&scratch).expect("the folder").count(), 1);
    house.backup(&cluster);
    assert_eq!(of_drills(&house), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&scratch).expect("the folder").count(), 0);
}
