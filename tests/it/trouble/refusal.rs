//! What pglife does not do, and how it says so.

use std::io::Write as _;
use std::process::Stdio;

use super::{Scene, docker_has};
use crate::house::{House, docker, executable, run};

#[test]
fn a_name_that_is_taken_is_not_touched() {
    let scene = Scene::new("taken");
    let (house, cluster) = (&scene.house, &scene.cluster);
    let before = docker_has(cluster);
    let started = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &scene.container]);
    let taken = ["already there on host \"local\"", "\n  safe: nothing was touched", "\n  next: "];
    house.pglife(&["cluster", "create", cluster]).exits(4).says(&taken).says(&[&scene.container]);
    house.pglife(&["restore", cluster, "--into", cluster]).exits(4).says(&taken);
    assert_eq!(docker_has(cluster), before);
    assert_eq!(docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &scene.container]), started);

    // Somebody else's container, and somebody else's volume.
    let copy = house.name("copy");
    let container = format!("{copy}-db");
    let foreign = ForeignContainer::named(&container);
    house.pglife(&["restore", cluster, "--into", &copy]).exits(4).says(&taken).says(&[&container]);
    house.policy("copy", "17", "");
    house.pglife(&["cluster", "create", &copy]).exits(4).says(&taken).says(&[&container]);
    // It carries no label of pglife's: it is not pglife's to remove.
    let ended = house.pglife(&["cluster", "remove", &copy, "--yes"]);
    assert!([4, 5].contains(&ended.exit), "{ended:?}");
    assert!(docker(&["inspect", "-f", "{{.State.Running}}", &container]).contains("true"));
    drop(foreign);
    let volume = format!("pglife-{copy}-data");
    docker(&["volume", "create", &volume]);
    house.pglife(&["cluster", "create", &copy]).exits(4).says(&taken).says(&[&volume]);
    house.pglife(&["cluster", "remove", &copy, "--volumes", "--yes"]).exits(5);
    docker(&["volume", "inspect", &volume]);
    docker(&["volume", "rm", &volume]);
    house.pglife(&["cluster", "create", &copy]).ok();
    scene.recovers();
}

struct ForeignContainer(String);

impl ForeignContainer {
    fn named(name: &str) -> Self {
        docker(&["run", "-d", "--name", name, "busybox", "sleep", "600"]);
        Self(name.to_owned())
    }
}

impl Drop for ForeignContainer {
    fn drop(&mut self) {
        docker(&["rm", "-f", &self.0]);
    }
}

#[test]
fn nothing_is_removed_without_a_yes() {
    let scene = Scene::new("remove");
    let (house, cluster) = (&scene.house, &scene.cluster);
    let before = docker_has(cluster);
    house.pglife(&["cluster", "remove", cluster]).exits(4).says(&["nobody is there to confirm it", "--yes"]);
    house.pglife(&["cluster", "remove", cluster, "--volumes"]).exits(2).says(&["--yes"]);
    assert_eq!(docker_has(cluster), before);
    house.pglife(&["cluster", "remove", cluster, "--yes"]).ok().says(&["kept volume"]);
    let kept = docker_has(cluster);
    assert!(!kept.is_empty() && kept.iter().all(|name| name.starts_with("pglife-")), "{kept:?}");
    // Its backups do not need it.
    scene.holds(&[&scene.good]);
    scene.house.pglife(&["backup", cluster]).exits(5).says(&["there is no container", "\n  next: "]);
    house.pglife(&["restore", cluster, "--into", cluster]).exits(4).says(&["volume "]);
    house.pglife(&["cluster", "remove", cluster, "--volumes", "--yes"]).ok();
    assert_eq!(docker_has(cluster), [""; 0]);
    house.pglife(&["cluster", "remove", cluster, "--yes"]).exits(5);
    house.pglife(&["restore", cluster, "--into", cluster]).ok();
    house.backup(cluster);
}

#[test]
fn every_mistake_in_a_policy_is_told_at_once() {
    let house = House::new("policy");
    house.write(
        "policies/one.toml",
        "[cluster]\nmajor = 17\nhots = \"local\"\n\n[backup.dump]\nschedule = \"61 * * * *\"\nrepos = [\"nowhere\"]\n\
         lock_timeout = \"5\"\njobs = 0\n\n[retention]\nlast = 0\n",
    );
    house.write("policies/two.toml", "[cluster]\nmajor = \"17\"\ncontainer = \"same-db\"\nhost = \"mars\"\n");
    house.write("policies/three.toml", "[cluster]\nmajor = \"17\"\ncontainer = \"same-db\"\n");
    house.write("policies/four.toml", "[cluster]\nmajor = \"17\"\ncontainer = \"same-db\"\n");
    house.write("policies/five.toml", "[cluster\n");
    house.write("policies/Six.toml", "[cluster]\nmajor = \"17\"\n");
    for command in [&["policy", "validate"][..], &["status"], &["backup", "one"], &["doctor"]] {
        house.pglife(command).exits(2).says(&[
            "one.toml:2:",
            "one.toml:3:",
            "one.toml:6:",
            "one.toml:7:",
            "one.toml:8:",
            "one.toml:9:",
            "one.toml:12:",
            "two.toml:4:",
            "same-db",
            "five.toml:1:",
            "Six",
        ]);
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let house = House::new("unknown");
    house.pglife(&["backup"]).exits(2).says(&["no cluster is configured", "\n  next: "]);
    let one = house.policy("one", "17", "");
    house.pglife(&["backups", "list", "--", "nobody"]).exits(5).says(&["nobody"]);
    house.pglife(&["backup", "nobody"]).exits(5).says(&["nobody", &one]);
    house.pglife(&["restore", &one, "--into", "copy"]).exits(5).says(&["there is none at all", "\n  next: "]);
    house.pglife(&["restore", &one, "--into", "copy", "--backup", "newest"]).exits(2).says(&["newest"]);
    house.pglife(&["backups", "verify", &one, "--backup", "20200101"]).exits(5);
    house.pglife(&["backup", &one]).exits(5).says(&["there is no container", "cluster create"]);
    let two = house.policy("two", "17", "");
    house.pglife(&["backup"]).exits(2).says(&[&one, &two]);
    house.pglife(&["restore", "--into", "copy"]).exits(2).says(&[&one, &two]);
    house.pglife(&["backup", &one, "--repo", "nowhere"]).exits(5).says(&["nowhere"]);
    house.pglife(&["restore", &one, "--into", "../x"]).exits(2);
    house.pglife(&["nonsense"]).exits(2);
    // No configuration at all, and one that is a folder.
    std::fs::remove_file(house.path("pglife.toml")).expect("removed");
    house.pglife(&["status"]).exits(2).says(&["pglife.toml", "does not exist"]);
    std::fs::create_dir(house.path("pglife.toml")).expect("made");
    house.pglife(&["status"]).exits(2).says(&["pglife.toml"]);
}

#[test]
fn a_state_that_cannot_be_used_is_told_as_such() {
    let house = House::new("state");
    let cluster = house.policy("c", "17", "");
    house.pglife(&["status"]).ok();
    let file = house.path("state/state.db");
    let version = |version: u32| {
        let state = rusqlite::Connection::open(&file).expect("the state");
        state.pragma_update(None, "user_version", version).expect("written");
    };
    version(99);
    house.pglife(&["backup", &cluster]).exits(1).says(&["has version 99, this pglife knows up to", "a later one"]);
    version(1);
    house.pglife(&["status"]).ok();
    std::fs::remove_file(&file).expect("removed");
    std::fs::write(&file, "not a database at all, whatever its name").expect("written");
    house.pglife(&["status"]).exits(1).says(&["state.db", "not a database", "\n  next: "]);
    // Its loss costs no backup: everything is in the repository.
    std::fs::remove_dir_all(house.path("state")).expect("removed");
    house.pglife(&["status"]).ok();
    std::fs::remove_dir_all(house.path("state")).expect("removed");
    std::fs::write(house.path("state"), "").expect("written");
    house.pglife(&["status"]).exits(1).says(&["the state directory", "\n  next: "]);
}

#[test]
fn programs_are_told_the_exit_code_last() {
    let house = House::new("json");
    let cluster = house.policy("c", "17", "");
    for (arguments, exit) in
        [(&["backup", &cluster][..], 5), (&["backup", "nobody"], 5), (&["cluster", "remove", &cluster], 4)]
    {
        for format in ["json", "jsonl"] {
            let ended = house.pglife(&[arguments, &["-o", format]].concat()).exits(exit);
            assert_eq!(ended.stdout, "");
            let last: serde_json::Value =
                serde_json::from_str(ended.stderr.lines().last().expect("a line")).expect("JSON");
            assert_eq!(last["message_type"], "exit_error");
            assert_eq!(last["code"], exit);
            assert!(last["message"].as_str().is_some_and(|message| !message.is_empty()), "{last}");
        }
    }
}

#[test]
fn a_worker_survives_garbage() {
    for garbage in [
        &b"nonsense\n"[..],
        b"{}\n",
        b"{\"request\":\"dump\"}\n",
        b"\0\xff\xfe\n",
        b"\n\n",
        b"{\"request\":\"inspect\",\"login\":{\"host\":\"/nowhere\",\"port\":1,\"user\":\"u\",\"password\":\"hunter2\"},\"patience_seconds\":-1}\n",
        &[b'['; 100_000],
        b"{\"request\":\"verify\",\"folder\":\"/nonexistent\",\"objects\":[],\"threads\":0}\n",
        b"",
    ] {
        let mut command = std::process::Command::new(executable());
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // It may have ended by then.
        child.stdin.take().expect("piped").write_all(garbage).ok();
        let output = child.wait_with_output().expect("its output");
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{garbage:?}: {output:?}");
        assert!(told.starts_with("{\"event\":\"hello\""), "{told}");
        assert!(!told.contains("hunter2") && !String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    }
    // A person who tries it.
    run({
        let mut command = std::process::Command::new(executable());
        command.arg("worker").stdin(Stdio::null());
        command
    })
    .ok();
}
