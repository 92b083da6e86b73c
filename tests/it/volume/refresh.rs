//! A restored copy becomes another one of the same server, with no more written than what differs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::incremental::marks;
use super::{SUMS_AGREE, back_up, pages_are_sound, working};
use crate::house::{House, docker, run, sql, try_docker, wait_for, wait_for_server};

/// Where in the object of a full copy the frame lies that holds the middle of the file called `path`.
fn frame_of(folder: &Path, path: &str) -> u64 {
    let mut unpack = Command::new("zstd");
    unpack.arg("-dc").arg(folder.join("volume.blocks.zst"));
    let index = run(unpack).ok().stdout;
    let lines = index.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let line = lines.into_iter().find(|line| line["path"] == path).expect("the file is in the index");
    let number = |at: usize| line["parts"][0][at].as_u64().expect("a number");
    assert_eq!(number(0), 0, "of a full copy");
    let middle = number(1) + number(2) / 2;
    let object = std::fs::read(folder.join("volume.tar.zst")).expect("the object");
    let word = |at: usize| u64::from(u32::from_le_bytes(object[at..at + 4].try_into().expect("four bytes")));
    let frames = usize::try_from(word(object.len() - 9)).expect("small");
    let (mut offset, mut plain) = (0, 0);
    for entry in (0..frames).map(|frame| object.len() - 9 - 12 * (frames - frame)) {
        if middle < plain + word(entry + 4) {
            return offset;
        }
        offset += word(entry);
        plain += word(entry + 4);
    }
    panic!("no frame holds {path}");
}

#[test]
fn a_copy_is_refreshed_with_what_differs() {
    let house = House::new("refresh");
    let source = working(&house, "17", "[backup.volume]\nfull_every = 2");
    let container = format!("{source}-db");
    sql(&container, "postgres", "create table mark (n text); insert into mark values ('1')");
    let first = back_up(&house, &source);
    let copy = house.name("copy");
    let restored = format!("{copy}-db");
    let into = |set: &str, more: &[&str]| {
        let arguments = [&["restore", &source, "--backup", set, "--into", &copy, "--delta"], more].concat();
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let pglife = |arguments: Vec<String>| house.pglife(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let refreshed = |set: &str| {
        let done = pglife(into(set, &["--yes", "-o", "json"])).ok();
        wait_for_server(&restored);
        let item = serde_json::from_str::<Value>(&done.stdout).expect("JSON")["items"][0].clone();
        let bytes = |key: &str| item[key].as_u64().expect("a number");
        (bytes("written_bytes"), bytes("kept_bytes"))
    };
    pglife(into(&first, &["--yes"])).exits(5).says(&["without --delta"]);
    house.pglife(&["restore", &source, "--backup", &first, "--into", &copy]).ok();
    let identity = docker(&["inspect", "--format", "{{.Id}}", &restored]);

    // The source goes on, and the copy goes its own way.
    for statement in [
        "update pgbench_accounts set abalance = abalance where aid % 5000 = 0",
        "vacuum full rewritten",
        "truncate truncated",
        "create table later as select generate_series(1, 5000) n",
        "insert into mark values ('2')",
    ] {
        sql(&container, "postgres", statement);
    }
    let second = back_up(&house, &source);
    sql(
        &restored,
        "postgres",
        "create table own as select generate_series(1, 50000) n; drop table kept; insert into mark values ('own')",
    );
    let own = "echo 'work_mem = 1MB' >/config/own.conf; rm /config/mine.conf; chmod 777 /log; \
               cd /data/17; chmod 644 PG_VERSION; ln postgresql.conf another; mkdir -p strange/folder";
    docker(&["exec", &restored, "sh", "-c", own]);

    // What would lose data is refused.
    pglife(into(&second, &[])).exits(4).says(&["--yes", "is gone afterwards"]);
    house.pglife(&["restore", &source, "--into", &source, "--delta", "--yes"]).exits(4).says(&["--in-place"]);
    let other = house.cluster("other", "17", "");
    house.pglife(&["restore", &source, "--into", &other, "--delta", "--yes"]).exits(4).says(&["is no copy of"]);
    let dump = house.backup(&source);
    pglife(into(&dump, &["--yes"])).exits(4).says(&["latest:volume"]);
    pglife(into(&second, &["--dry-run"])).ok().says(&["nothing was done"]);
    assert_eq!(
        (marks(&restored).as_str(), sql(&format!("{other}-db"), "postgres", "select 1").as_str()),
        ("1 own", "1")
    );

    let (written, kept) = refreshed(&second);
    assert!(written > 0 && written < kept / 2, "{written} bytes were written, {kept} kept");
    assert_eq!(docker(&["inspect", "--format", "{{.Id}}", &restored]), identity);
    assert_eq!(marks(&restored), "1 2");
    assert_eq!(sql(&restored, "postgres", SUMS_AGREE), "t");
    assert_eq!(sql(&restored, "postgres", "select count(*), min(label) is not null from kept"), "20000|t");
    assert_eq!(sql(&restored, "postgres", "select to_regclass('own') is null, to_regclass('later') is null"), "t|f");
    assert_eq!(sql(&restored, "postgres", "show work_mem"), "5MB");
    for path in ["/log", "/data/17/PG_VERSION", "/config/mine.conf", "/data/table spaces/fast one"] {
        let owner = |container: &str| docker(&["exec", container, "stat", "-c", "%U:%G %a %F %h", path]);
        assert_eq!(owner(&restored), owner(&container), "{path}");
    }
    for path in ["/config/own.conf", "/data/17/another", "/data/17/strange"] {
        assert_ne!(try_docker(&["exec", &restored, "ls", path]).exit, 0, "{path}");
    }

    // Back in time, and while it is down.
    docker(&["stop", &restored]);
    refreshed(&first);
    assert_eq!(marks(&restored), "1");

    // A backup that is damaged where it is needed: no server starts on what is half done.
    let accounts = sql(&restored, "postgres", "select pg_relation_filepath('pgbench_accounts')");
    sql(&restored, "postgres", "update pgbench_accounts set filler = 'mine'");
    let folder = house.set_folder(&source, &first);
    let at = usize::try_from(frame_of(&folder, &format!("data/17/{accounts}"))).expect("small");
    let object = folder.join("volume.tar.zst");
    let whole = std::fs::read(&object).expect("the object");
    let mut spoilt = whole.clone();
    spoilt[at + 1000] ^= 1;
    std::fs::write(&object, spoilt).expect("spoilt");
    pglife(into(&first, &["--yes"])).exits(21).says(&["no server starts", "backups verify"]);
    docker(&["start", &restored]);
    wait_for("the end of a server that must not start", || {
        let state = docker(&["inspect", "--format", "{{.State.Running}} {{.RestartCount}}", &restored]);
        state.trim() != "true 0"
    });
    let log = try_docker(&["logs", "--tail", "20", &restored]);
    let said = format!("{}{}", log.stdout, log.stderr);
    let in_file = docker(&[
        "run",
        "--rm",
        "--volumes-from",
        &restored,
        "--entrypoint",
        "sh",
        "pglife/postgres:17",
        "-c",
        "cat /log/*.log",
    ]);
    assert!(format!("{said}{in_file}").contains("invalid data in file \"backup_label\""), "{said}{in_file}");
    docker(&["stop", &restored]);
    std::fs::write(&object, whole).expect("whole");
    // The other one, too, is a way out; a backup whose blocks are not known is one as well.
    refreshed(&second);
    assert_eq!(marks(&restored), "1 2");
    house.policy("source", "17", "[backup.volume]\ncodec = \"none\"");
    sql(&container, "postgres", "insert into mark values ('3')");
    let third = back_up(&house, &source);
    refreshed(&third);
    assert_eq!((marks(&restored).as_str(), sql(&restored, "postgres", SUMS_AGREE).as_str()), ("1 2 3", "t"));
    docker(&["stop", &restored]);
    pages_are_sound(&restored);
}
