//! A cluster with everything comes back as it was: what `pg_dumpall` prints of source and copy is the same text.
//!
//! The database is `fixtures/everything`, the few lines that may differ are levelled by its `normalise*.sed`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::drill::is_proven_while_written_to;
use crate::house::{House, docker, docker_to_file, run, wait_for_server};

/// What a worker may use.
const MEMORY: u64 = 128 << 20;

/// The two ways of looking: the second one also shows what belongs to the databases postgres and template1.
pub const LOOKS: [&[&str]; 2] = [&[], &["--clean", "--if-exists"]];

/// A database that refuses connections and one that was half dropped can be dumped by nobody.
const POLICY: &str = "[backup.dump]\ndatabases = [\"*\", \"!closed\", \"!half dropped\"]";

#[test]
fn everything_of_13_comes_back_in_13_and_in_18_and_is_proven() {
    let house = House::new("all13");
    let source = filled(&house, "13");
    back_up(&house, &source);
    comes_back(&house, &source);

    let newer = house.name("newer");
    restores(&house, &["restore", &source, "--into", &newer, "--major", "18"]);
    for look in LOOKS {
        // Both by the later version's pg_dumpall, which prints many things in another way.
        let by_18 = |container: &str, name: &str| {
            let (file, volumes) = (house.path(name), format!("--volumes-from={container}"));
            let dumpall = ["pglife/postgres:18", "pg_dumpall", "--host=/data/run"];
            docker_to_file(&[&["run", "--rm", "--user=postgres", &volumes], &dumpall[..], look].concat(), &file);
            file
        };
        let (before, after) =
            (by_18(&format!("{source}-db"), "before.sql"), by_18(&format!("{newer}-db"), "after.sql"));
        same_text(&before, &after, &["normalise.sed", "normalise-upgrade.sed"]);
    }
    is_proven_while_written_to(&house, &source, "full");
}

#[test]
fn everything_of_15_comes_back_and_is_proven_by_counts() {
    in_same_major("15", "counts");
}

#[test]
fn everything_of_17_comes_back_and_is_proven() {
    in_same_major("17", "full");
}

#[test]
fn everything_of_18_comes_back_and_is_proven_by_a_sample_of_the_rows() {
    in_same_major("18", "sampled");
}

fn in_same_major(major: &str, facts: &str) {
    let house = House::new(&format!("all{major}"));
    let source = filled(&house, major);
    back_up(&house, &source);
    comes_back(&house, &source);
    is_proven_while_written_to(&house, &source, facts);
}

/// A cluster with everything in it.
pub fn filled(house: &House, major: &str) -> String {
    let cluster = house.cluster("source", major, POLICY);
    let container = format!("{cluster}-db");
    // By itself it writes nothing: a rollback of an upgrade is without loss only where nobody wrote.
    let settings = "printf 'max_prepared_transactions = 5\nfsync = off\nautovacuum = off\n' >/config/test.conf";
    docker(&["exec", &container, "sh", "-c", settings]);
    docker(&["restart", &container]);
    wait_for_server(&container);
    for folder in ["/data/tablespaces/fast", "/data/tablespaces/with space"] {
        docker(&["exec", &container, "install", "-d", "-o", "postgres", "-g", "postgres", "-m", "0700", folder]);
    }
    docker(&["cp", &fixtures().to_string_lossy(), &format!("{container}:/everything")]);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(fixtures()).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let inside = format!("/everything/{}", file.file_name().expect("a name").to_string_lossy());
        docker(&["exec", "-u", "postgres", &container, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &inside]);
    }
    cluster
}

fn back_up(house: &House, source: &str) {
    let taken = house.items(&["backup", source]).remove(0);
    let peak = taken["worker_peak_memory_bytes"].as_u64().expect("a number");
    assert!(peak > 0 && peak < MEMORY, "the worker used {peak} bytes");
    assert_eq!(taken["warnings"], serde_json::json!([]));
}

/// Restores into the same major and compares.
fn comes_back(house: &House, source: &str) {
    let copy = house.name("copy");
    restores(house, &["restore", source, "--into", &copy]);
    for look in LOOKS {
        let text = |cluster: &str, name: &str| {
            let (file, container) = (house.path(name), format!("{cluster}-db"));
            docker_to_file(&[&["exec", "-u", "postgres", &container, "pg_dumpall"], look].concat(), &file);
            file
        };
        same_text(&text(source, "before.sql"), &text(&copy, "after.sql"), &["normalise.sed"]);
    }
}

/// The server has something to say of subscriptions and MD5 passwords; nobody else may warn.
#[track_caller]
fn restores(house: &House, arguments: &[&str]) {
    let ended = house.pglife(arguments);
    let of_server = |line: &str| ["WARNING:  ", "HINT:  ", "DETAIL:  "].iter().any(|word| line.contains(word));
    let others: Vec<&str> =
        ended.stderr.lines().filter(|line| line.starts_with("warning: ") && !of_server(line)).collect();
    assert_eq!(others, Vec::<&str>::new());
    let exit = if ended.stderr.contains("warning: ") { 3 } else { 0 };
    ended.exits(exit);
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/everything")
}

/// Both files are the same, but for what the sed scripts level.
#[track_caller]
pub fn same_text(before: &Path, after: &Path, scripts: &[&str]) {
    for file in [before, after] {
        // The texts hold databases of several encodings.
        let mut sed = Command::new("sed");
        sed.env("LC_ALL", "C").arg("-i");
        for script in scripts {
            sed.arg("-f").arg(fixtures().join(script));
        }
        run({
            sed.arg(file);
            sed
        })
        .ok();
    }
    let [old, new] = [before, after].map(|file| std::fs::read(file).expect("readable"));
    assert!(old.len() > 1_000_000, "there is nothing to compare: {} bytes", old.len());
    if old != new {
        let mut diff = Command::new("diff");
        diff.arg("--text").arg(before).arg(after);
        let lines = run(diff).stdout;
        panic!("the texts differ:\n{}", lines.lines().take(80).collect::<Vec<_>>().join("\n"));
    }
}
