//! Encrypted backups: taken without a key, restored with any one of them, and closed to everybody else.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::house::{House, files_below, sql};

const DATABASE: &str = "payroll_qz7";
const ROLE: &str = "clerk_qz7";
const MARKER: &str = "the marker row qz7 of the payroll";
const SUM: &str = "select count(*), md5(string_agg(note, ',' order by id)) from wages";

/// A running cluster with something to hide. Returns its name.
fn secretive(house: &House) -> String {
    let source = house.cluster("source", "17", "");
    let container = format!("{source}-db");
    sql(&container, "postgres", &format!("create role {ROLE} login"));
    sql(&container, "postgres", &format!("create database {DATABASE} owner {ROLE}"));
    let rows = format!(
        "create table wages as select g as id, '{MARKER} ' || md5(g::text) as note from generate_series(1, 20000) g"
    );
    sql(&container, DATABASE, &rows);
    source
}

/// Files of the repository whose name or bytes hold `word`.
fn telling(folder: &Path, word: &str) -> Vec<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| {
        let bytes = std::fs::read(file).expect("readable");
        file.to_string_lossy().contains(word) || bytes.windows(word.len()).any(|window| window == word.as_bytes())
    });
    files
}

#[test]
fn a_backup_needs_no_key_and_tells_nothing() {
    let house = House::new("sealed");
    let [everyday, escrow] = house.encrypt();
    let secrets = [&everyday, &escrow].map(|file| std::fs::read_to_string(file).expect("a key"));
    for file in [&everyday, &escrow] {
        std::fs::rename(file, format!("{file}.away")).expect("away");
    }
    let source = secretive(&house);
    let dry = house.pglife(&["backup", &source, "--dry-run"]).ok();
    assert!(dry.stdout.contains("db/0001.dump.zst.age"), "{}", dry.stdout);
    let set = house.backup(&source);

    // Nothing of the content is in the repository, in no name and in no byte.
    let repository = house.path("repo");
    for word in [DATABASE, ROLE, MARKER, "wages", "template1"] {
        assert_eq!(telling(&repository, word), [""; 0].map(PathBuf::from), "{word}");
    }
    let folder = house.set_folder(&source, &set);
    let names: Vec<String> = files_below(&folder)
        .iter()
        .map(|file| file.strip_prefix(&folder).expect("inside").to_string_lossy().into_owned())
        .collect();
    let expected = "COMMIT RECOVER.details.md.age RECOVER.md db/0001.dump.zst.age db/0002.dump.zst.age \
                    db/0003.dump.zst.age db/0004.dump.zst.age facts.json.age globals.sql.zst.age manifest.json.age recipe.json.age";
    assert_eq!(names.join(" "), expected);

    // What needs no key.
    let listed = house.items(&["backups", "list", &source]).remove(0);
    assert_eq!(listed["set"], set.as_str());
    assert_eq!(listed["encryption"]["escrow"].as_array().map(Vec::len), Some(1));
    assert_eq!(house.items(&["status", &source]).len(), 1);
    assert!(house.pglife(&["doctor"]).ok().stdout.contains("no key is here, and none is needed for backups"));
    let verified = house.items(&["backups", "verify", &source]).remove(0);
    assert_eq!((&verified["intact"], &verified["opened"]), (&Value::Bool(true), &Value::Bool(false)));
    let told = house.pglife(&["backups", "verify", &source]).ok().says(&["the content was not opened", "--identity"]);
    assert!(told.stdout.contains("intact outside"), "{}", told.stdout);

    // A copy for the safe is made of what is stored, as it is stored.
    let exported = house.path("exported");
    let to = exported.to_string_lossy().into_owned();
    house.pglife(&["backups", "export", &source, "--to", &to]).ok();
    for name in &names {
        let [one, other] = [&folder, &exported].map(|folder| std::fs::read(folder.join(name)).expect("a file"));
        assert!(one == other, "{name}");
    }
    assert_eq!(files_below(&exported).len(), names.len());

    // What does: the message names what to bring.
    let recipient = |secret: &str| {
        let line = secret.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("a public key");
        line.to_owned()
    };
    let [one, other] = secrets.each_ref().map(|secret| recipient(secret));
    let into = house.name("copy");
    let ask = ["encrypted", "--identity FILE", &one, &other, "(escrow)"];
    house.pglife(&["backups", "show", &source]).exits(12).says(&ask);
    house.pglife(&["restore", &source, "--into", &into]).exits(12).says(&ask);
    house.pglife(&["key", "check", &source]).exits(12).says(&ask);
    assert!(!house.path(&format!("policies/{into}.toml")).exists());

    // Every byte is checked from outside.
    for (object, at) in [("db/0001.dump.zst.age", 70_000), ("recipe.json.age", 10), ("manifest.json.age", 300)] {
        let path = folder.join(object);
        let good = std::fs::read(&path).expect("readable");
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, bad).expect("written");
        house.pglife(&["backups", "verify", &source]).exits(21).says(&[object]);
        std::fs::write(&path, &good[..good.len() - 1]).expect("written");
        house.pglife(&["backups", "verify", &source]).exits(21).says(&[object]);
        std::fs::remove_file(&path).expect("removed");
        house.pglife(&["backups", "verify", &source]).exits(21).says(&[object]);
        std::fs::write(&path, good).expect("written");
    }
    house.pglife(&["backups", "verify", &source]).ok();

    // A search that finds nothing proves nothing, unless it would find something: the same backup, open.
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", settings.split("[encryption]").next().expect("the rest"));
    let open = house.backup(&source);
    assert!(telling(&house.set_folder(&source, &open), DATABASE).len() >= 3);
    // Both kinds live side by side, and the old one opens still.
    assert_eq!(house.items(&["backups", "verify", &source]).len(), 2);
    let identity = format!("{everyday}.away");
    let show = ["backups", "show", &source, "--backup", "oldest", "--identity", &identity];
    assert_eq!(house.items(&show)[0]["set"], set.as_str());
}

#[test]
fn any_one_key_restores_all_of_it() {
    let house = House::new("keys");
    let [everyday, escrow] = house.encrypt();
    let source = secretive(&house);
    let before = sql(&format!("{source}-db"), DATABASE, SUM);
    let set = house.backup(&source);

    for (identity, is_escrow) in [(&everyday, false), (&escrow, true)] {
        let checked = house.items(&["key", "check", &source, "--identity", identity]).remove(0);
        assert_eq!((&checked["escrow"], &checked["set"]), (&Value::Bool(is_escrow), &Value::from(set.as_str())));
        assert_eq!(checked["objects"], 9);
        let verified = house.items(&["backups", "verify", &source, "--identity", identity]).remove(0);
        assert_eq!((&verified["intact"], &verified["opened"]), (&Value::Bool(true), &Value::Bool(true)));
        let shown = house.items(&["backups", "show", &source, "--identity", identity]).remove(0);
        assert!(shown["objects"].to_string().contains(DATABASE));
    }

    // The everyday key by the configuration, the escrow key alone on another day.
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", &format!("{settings}identity_file = \"everyday.key\"\n"));
    let secrets = [&everyday, &escrow].map(|file| std::fs::read_to_string(file).expect("a key"));
    let mut said = String::new();
    let copy = house.name("copy");
    said += &house.pglife(&["-vvv", "restore", &source, "--into", &copy]).ok().stderr;
    assert_eq!(sql(&format!("{copy}-db"), DATABASE, SUM), before);
    std::fs::remove_file(&everyday).expect("removed");
    house.pglife(&["backups", "show", &source]).exits(12).says(&["everyday.key", "is not there"]);
    let again = house.name("again");
    said += &house.pglife(&["-vvv", "restore", &source, "--into", &again, "--identity", &escrow]).ok().stderr;
    assert_eq!(sql(&format!("{again}-db"), DATABASE, SUM), before);

    // The secrets are where they were put, and nowhere else.
    for secret in secrets.iter().map(|file| file.lines().last().expect("a key")) {
        assert!(secret.starts_with("AGE-SECRET-KEY-1") && !said.contains(secret));
        let mut holding = telling(&house.path(""), secret);
        holding.retain(|file| *file != Path::new(&escrow));
        assert_eq!(holding, [""; 0].map(PathBuf::from));
    }
}

#[test]
fn another_key_opens_nothing() {
    let house = House::new("wrongkey");
    let [everyday, _] = house.encrypt();
    let source = house.cluster("source", "17", "");
    let set = house.backup(&source);

    let stranger = house.path("stranger.key").to_string_lossy().into_owned();
    let made = house.items(&["key", "generate", &stranger]).remove(0);
    let recipient = made["recipient"].as_str().expect("a recipient");
    house.pglife(&["key", "generate", &stranger]).exits(4).says(&["stranger.key was not written", "another file"]);
    let into = house.name("copy");
    for command in [
        &["backups", "show", &source][..],
        &["backups", "verify", &source],
        &["key", "check", &source],
        &["restore", &source, "--into", &into],
    ] {
        let ended = house.pglife(&[command, &["--identity", &stranger]].concat());
        ended.exits(12).says(&["sealed to other keys", recipient, "stranger.key", "(escrow)"]);
    }

    // What is no key at all, or one that nobody could use.
    let refused = |text: &str, says: &[&str]| {
        house.write("odd.key", text);
        let file = house.path("odd.key").to_string_lossy().into_owned();
        let ended = house.pglife(&["backups", "show", &source, "--identity", &file]).exits(12).says(says);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    };
    refused("hunter2", &["odd.key", "line 1", "pglife key generate"]);
    refused(&format!("{recipient}\n"), &["public half"]);
    refused("-----BEGIN AGE ENCRYPTED FILE-----\n", &["passphrase", "age -d"]);
    let nowhere = house.path("nowhere.key").to_string_lossy().into_owned();
    house
        .pglife(&["backups", "show", &source, "--identity", &nowhere])
        .exits(12)
        .says(&["nowhere.key", "No such file"]);

    // A damaged set is not a wrong key.
    let globals = house.set_folder(&source, &set).join("globals.sql.zst.age");
    let mut bytes = std::fs::read(&globals).expect("readable");
    bytes[60] ^= 1;
    std::fs::write(&globals, bytes).expect("written");
    let damaged = ["globals.sql.zst.age"];
    house.pglife(&["backups", "verify", &source, "--identity", &everyday]).exits(21).says(&damaged);
    house.pglife(&["key", "check", &source, "--identity", &everyday]).exits(21).says(&damaged);
    house.pglife(&["restore", &source, "--into", &into, "--identity", &everyday]).exits(21);

    // A set that is not encrypted has nothing to check.
    house.write("pglife.toml", "state_dir = \"state\"\n[repos.local]\ntype = \"local\"\npath = \"repo\"\n");
    house.backup(&source);
    house.pglife(&["key", "check", &source]).exits(4).says(&["not encrypted"]);
}

#[test]
fn every_repository_gets_the_same_sealed_bytes() {
    let house = House::new("sealedcopies");
    let [_, escrow] = house.encrypt();
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", &format!("{settings}\n[repos.usb]\ntype = \"local\"\npath = \"usb\"\n"));
    house.pglife(&["repo", "init", "usb"]).ok();
    let source = house.cluster("source", "17", "[backup.dump]\nrepos = [\"local\", \"usb\"]");
    house.backup(&source);
    // A copy that is missing is made later, from what is stored, and without a key.
    house.pglife(&["backup", &source, "--repo", "local"]).ok();
    house.pglife(&["repo", "sync", "usb"]).ok();
    let [local, usb] = ["repo", "usb"].map(|repository| {
        let folder = house.path(repository).join(&source);
        let files = files_below(&folder);
        let read = |file: &PathBuf| {
            (file.strip_prefix(&folder).expect("inside").to_owned(), std::fs::read(file).expect("readable"))
        };
        files.iter().map(read).collect::<Vec<_>>()
    });
    assert!(local.len() > 16 && local == usb);
    // Each copy opens by itself.
    for repository in ["local", "usb"] {
        let place = ["--repo", repository, "--identity", &escrow];
        house.pglife(&[&["key", "check", &source][..], &place].concat()).ok();
        let verified = house.items(&[&["backups", "verify", &source][..], &place].concat());
        assert_eq!(verified.len(), 2);
        assert!(verified.iter().all(|set| set["intact"] == true && set["opened"] == true));
    }
}
