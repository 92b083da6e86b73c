//! Imports run downward only: a room uses the rooms above it in this table, never those below; adapters do not use each other.

use std::path::Path;

use crate::house::files_below;

/// The rooms, from the vocabulary down to the command line.
const LAYERS: [&[&str]; 15] = [
    &["causes", "cluster", "encryption", "environment", "exit", "sql"],
    &["backup_set", "document", "facts"],
    &["policy", "settings"],
    &["configuration"],
    &["storage", "docker", "postgres", "state", "consul", "notify"],
    &["kv"],
    &["pipeline"],
    &["worker"],
    &["control"],
    &["dependents", "provision"],
    &["backup", "restore", "verification", "prune", "status", "sync"],
    &["drill", "export", "extract"],
    &["http", "selftest"],
    &["upgrade"],
    &["daemon"],
];

/// What is below everything else.
const LAST: [&str; 1] = ["cli"];

/// Within these layers a room may use its neighbours; adapters may not, and operations neither.
const NEIGHBOURLY: [usize; 3] = [0, 1, 2];

fn layer(room: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&room));
    found.or(LAST.contains(&room).then_some(LAYERS.len())).unwrap_or_else(|| panic!("room {room} is not in the table"))
}

#[test]
fn imports_run_downward() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for file in files_below(&source).iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let inside = file.strip_prefix(&source).expect("below");
        if file.ends_with("tests.rs") {
            continue; // tests may look anywhere
        }
        let room = inside.components().next().expect("a room").as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        if ["main", "lib"].contains(&room) {
            continue;
        }
        let text = std::fs::read_to_string(file).expect("readable");
        for (number, line) in text.lines().enumerate() {
            // Tests may look anywhere; they stand at the end of a file.
            if line.starts_with("#[cfg(test)]") {
                break;
            }
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect();
                looked_at += 1;
                let (here, there) = (layer(room), layer(&used));
                let allowed = used == room || there < here || (there == here && NEIGHBOURLY.contains(&here));
                if !allowed {
                    wrong.push(format!("{}:{}: {room} uses {used}", inside.display(), number + 1));
                }
            }
        }
    }
    assert!(looked_at > 100, "only {looked_at} imports were found: the test does not see the house");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
