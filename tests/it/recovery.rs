//! A set opens with stock tools alone: `RECOVER.md` is followed to the letter, without pglife.

use std::process::Command;

use crate::house::{Ended, House, docker, docker_to_file, run, sql};

/// Names that break careless quoting, and settings that would keep a restore from working.
const ODD: [&str; 5] = ["we ird", "it's \"quoted\"", "-dash", "a=b", "Größe/$HOME `id` \\ %s"];

#[test]
fn the_instructions_of_a_set_of_13_in_gzip_are_enough() {
    instructions_are_enough("13", "gzip:6", Encrypted::No);
}

#[test]
fn the_instructions_of_a_set_of_18_are_enough() {
    instructions_are_enough("18", "zstd:1", Encrypted::No);
}

#[test]
fn the_instructions_of_an_encrypted_set_are_enough_with_one_key() {
    instructions_are_enough("17", "zstd:1", Encrypted::Yes);
}

#[derive(PartialEq)]
enum Encrypted {
    Yes,
    No,
}

fn instructions_are_enough(major: &str, codec: &str, encrypted: Encrypted) {
    let house = House::new(&format!("recover{major}"));
    // The escrow key: the one that is left on the worst day.
    let key = (encrypted == Encrypted::Yes).then(|| house.encrypt()[1].clone());
    let source = house.cluster("source", major, &format!("[backup.dump]\ncodec = \"{codec}\""));
    let container = format!("{source}-db");
    fill(&container);
    let set = house.backup(&source);

    let folder = house.set_folder(&source, &set);
    let text = std::fs::read_to_string(folder.join("RECOVER.md")).expect("instructions");
    let before = crate::house::files_below(&folder);
    let tool = codec.split(':').next().expect("a name");
    assert!(key.is_some() || text.contains(&format!("* Docker and `{tool}`.")), "{text}");
    // What the server says of the role that initdb made, and nothing else.
    let ended = match &key {
        None => follow(&text, &folder),
        Some(key) => {
            let (hidden, ended) = follow_encrypted(&text, &folder, key);
            assert!(hidden.contains("pg_restore") && !text.contains("pg_restore"));
            ended
        }
    };
    let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.len() == 1 && errors[0].contains("role \"postgres\" already exists"), "{}", ended.stderr);
    assert_eq!(crate::house::files_below(&folder), before, "the set's folder has changed");

    let recovered = format!("recovered-{source}");
    for look in [&[][..], &["--clean", "--if-exists"]] {
        let [old, new] = [&container, &recovered].map(|container| {
            let file = house.path(&format!("{container}.sql"));
            docker_to_file(&[&["exec", "-u", "postgres", container, "pg_dumpall"], look].concat(), &file);
            // Recent minor versions guard each script with a random key.
            let text = std::fs::read_to_string(&file).expect("text");
            text.lines().filter(|line| !line.contains("restrict ")).map(|line| format!("{line}\n")).collect::<String>()
        });
        if let Some((old, new)) = old.lines().zip(new.lines()).find(|(old, new)| old != new) {
            panic!("it was\n{old}\nand was recovered as\n{new}");
        }
        assert_eq!(old.len(), new.len());
    }
    assert_eq!(sql(&recovered, "a=b", "select count(*) from \"t's\""), "1000");
}

fn fill(container: &str) {
    docker(&["exec", container, "install", "-d", "-o", "postgres", "-g", "postgres", "/data/tablespaces/odd one"]);
    sql(container, "postgres", "create tablespace \"odd one\" location '/data/tablespaces/odd one'");
    sql(
        container,
        "postgres",
        "create role \"o'hara\" login password 'it''s \"secret\"'; grant pg_monitor to \"o'hara\"",
    );
    sql(container, "postgres", "create table here (i int); insert into here values (1)");
    sql(container, "postgres", "comment on schema public is 'mine'; alter schema public owner to \"o'hara\"");
    sql(container, "template1", "create table everywhere (i int)");
    for database in ODD {
        let quoted = format!("\"{}\"", database.replace('"', "\"\""));
        sql(container, "postgres", &format!("create database {quoted} owner \"o'hara\""));
        let table =
            "create table \"t's\" tablespace \"odd one\" as select i, md5(i::text) from generate_series(1, 1000) i";
        sql(container, database, table);
        sql(container, database, "comment on schema public is null; alter schema public owner to \"o'hara\"");
        sql(container, database, "create materialized view seen as select count(*) from \"t's\"");
        sql(container, "postgres", &format!("alter database {quoted} set default_transaction_read_only = on"));
        sql(container, "postgres", &format!("alter database {quoted} set array_nulls = off"));
    }
}

/// Follows instructions to the letter.
pub(crate) fn follow(text: &str, folder: &std::path::Path) -> Ended {
    run(in_shell(&shell_blocks(text), folder)).ok()
}

/// Follows the instructions of an encrypted set: where the key is, is for the reader to say; then the text that was hidden, in the
/// same shell. Returns that text too.
pub(crate) fn follow_encrypted(text: &str, folder: &std::path::Path, key: &str) -> (String, Ended) {
    let mut cover = run(in_shell(&format!("IDENTITY='{key}'\n{}", shell_blocks(text)), folder)).ok().stdout;
    let details = cover.split_off(cover.find("go on with ").expect("where it goes on") + 11);
    let hidden = std::fs::read_to_string(details.trim()).expect("the details");
    std::fs::remove_file(details.trim()).expect("removed");
    let ended = run(in_shell(&format!("IDENTITY='{key}'\n{}", shell_blocks(&hidden)), folder)).ok();
    (hidden, ended)
}

/// The blocks that are marked as commands, as one script.
fn shell_blocks(text: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, line) => {
                script.push_str(line);
                script.push('\n');
            }
            (false, _) => {}
        }
    }
    assert!(!inside && script.lines().count() > 3, "{text}");
    script
}

/// A shell that knows the system's own tools only.
fn in_shell(script: &str, folder: &std::path::Path) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", script]).current_dir(folder);
    shell
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(std::process::Stdio::null());
    shell
}
