//! One backup into several repositories: each has its own verdict, and one that is down does not harm the others.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::house::{House, executable, sql};

/// A house with two more repositories, and a cluster that backs up to all three.
struct Scene {
    house: House,
    cluster: String,
}

const REPOSITORIES: [&str; 3] = ["local", "nas", "usb"];

impl Scene {
    fn new(test: &str, required: usize) -> Self {
        let house = House::new(test);
        let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
        let more = |name: &str| format!("\n[repos.{name}]\ntype = \"local\"\npath = \"{name}\"\n");
        house.write("pglife.toml", &format!("{settings}{}{}", more("nas"), more("usb")));
        for name in ["nas", "usb"] {
            house.pglife(&["repo", "init", name]).ok();
        }
        let dump = format!("[backup.dump]\nrepos = [\"local\", \"nas\", \"usb\"]\nrequired = {required}\n");
        let cluster = house.cluster("main", "17", &dump);
        let container = format!("{cluster}-db");
        sql(&container, "postgres", "create database shop");
        sql(&container, "shop", "create table t as select n, repeat(md5(n::text), 9) from generate_series(1, 20000) n");
        Self { house, cluster }
    }

    fn folder(&self, repository: &str) -> PathBuf {
        self.house.path(if repository == "local" { "repo" } else { repository })
    }

    /// The sets a repository holds, all of them intact.
    fn sets_in(&self, repository: &str) -> Vec<String> {
        self.house.pglife(&["backups", "verify", &self.cluster, "--repo", repository]).ok();
        let sets = self.house.items(&["backups", "list", &self.cluster, "--repo", repository]);
        sets.iter().map(|set| set["set"].as_str().expect("an id").to_owned()).collect()
    }

    /// The objects of a set in a repository, with their bytes.
    fn objects_in(&self, repository: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = self.folder(repository).join(&self.cluster);
        let read = |path: PathBuf| {
            let bytes = std::fs::read(&path).expect("read");
            (path.strip_prefix(&folder).expect("below").to_owned(), bytes)
        };
        crate::house::files_below(&folder).into_iter().map(read).collect()
    }
}

#[test]
fn every_repository_holds_the_same_bytes_and_one_that_is_down_harms_no_other() {
    let scene = Scene::new("copies", 2);
    let first = scene.house.backup(&scene.cluster);
    let objects = scene.objects_in("local");
    assert!(objects.len() > 6, "{} objects", objects.len());
    for repository in REPOSITORIES {
        assert_eq!(scene.sets_in(repository), [first.as_str()]);
        assert!(scene.objects_in(repository) == objects, "repository {repository} differs");
    }
    let listed = scene.house.items(&["backups", "list", &scene.cluster]);
    assert_eq!(listed[0]["repositories"], serde_json::json!(REPOSITORIES));

    // One is down from the start: the backup is good, and says what is missing.
    let away = scene.house.path("away");
    std::fs::rename(scene.folder("local"), &away).expect("moved");
    let degraded = scene.house.pglife(&["backup", &scene.cluster, "-o", "json"]).exits(3);
    let degraded = degraded.says(&["repository \"local\" does not hold this backup", "pglife repo sync local"]);
    let answer: serde_json::Value = serde_json::from_str(&degraded.stdout).expect("JSON");
    let second = answer["items"][0]["set"].as_str().expect("an id").to_owned();
    assert_eq!(answer["items"][0]["repositories"], serde_json::json!(["nas", "usb"]));
    assert_eq!(answer["items"][0]["missing"], serde_json::json!(["local"]));

    // It is the first of the policy, and everything goes on from the others.
    scene.house.pglife(&["backups", "list", &scene.cluster]).exits(3).says(&["repository \"local\""]);
    let copy = scene.house.name("copy");
    scene.house.pglife(&["restore", &scene.cluster, "--backup", &second, "--into", &copy]).ok();
    assert_eq!(sql(&format!("{copy}-db"), "shop", "select count(*) from t").trim(), "20000");
    scene.house.pglife(&["status", &scene.cluster]).exits(3).says(&[]);

    // Fewer than required: that is a failure, and what was made is a backup all the same.
    std::fs::rename(scene.folder("nas"), scene.house.path("away too")).expect("moved");
    let failed = scene.house.pglife(&["backup", &scene.cluster]).exits(1);
    failed.says(&["1 copies were made, 2 are required", "repository \"nas\"", "is a good backup"]);
    assert_eq!(scene.sets_in("usb").len(), 3);
    std::fs::rename(scene.house.path("away too"), scene.folder("nas")).expect("moved back");
    std::fs::rename(&away, scene.folder("local")).expect("moved back");
    assert_eq!(scene.sets_in("local"), [first.as_str()]);
    assert_eq!(scene.sets_in("nas"), [first.as_str(), second.as_str()]);

    // What is missing is made from what is there: the same bytes, in every repository.
    let planned = scene.house.items(&["repo", "sync", "--dry-run"]);
    assert_eq!(planned.len(), 3, "{planned:?}");
    assert_eq!(scene.sets_in("local"), [first.as_str()], "a dry run copies nothing");
    scene.house.pglife(&["repo", "sync", "nas"]).ok();
    assert_eq!(scene.sets_in("nas").len(), 3);
    scene.house.pglife(&["repo", "sync"]).ok();
    let objects = scene.objects_in("usb");
    for repository in REPOSITORIES {
        assert_eq!(scene.sets_in(repository).len(), 3);
        assert!(scene.objects_in(repository) == objects, "repository {repository} differs");
    }
    assert_eq!(scene.house.items(&["repo", "sync"]), [serde_json::Value::Null; 0]);

    // None at all.
    for repository in REPOSITORIES {
        std::fs::rename(scene.folder(repository), scene.house.path(&format!("{repository} away"))).expect("moved");
    }
    scene.house.pglife(&["backup", &scene.cluster]).exits(10).says(&["repository \"local\""]);
}

#[test]
fn damage_is_not_copied() {
    let scene = Scene::new("copybad", 1);
    scene.house.pglife(&["backup", &scene.cluster, "--repo", "usb"]).ok();
    let dump = crate::house::files_below(&scene.folder("usb")).into_iter().find(|path| path.ends_with("shop.dump.zst"));
    let dump = dump.expect("the dump");
    let good = std::fs::read(&dump).expect("read");
    let mut bytes = good.clone();
    bytes[5000] ^= 1;
    std::fs::write(&dump, &bytes).expect("written");
    let failed = scene.house.pglife(&["repo", "sync", "nas"]).exits(21);
    failed.says(&["db/shop.dump.zst is damaged, and was not copied", "\"usb\" to \"nas\"", "backups verify"]);
    assert_eq!(crate::house::files_below(&scene.folder("nas")).len(), 1, "only the marker is there");
    std::fs::write(&dump, &good).expect("written");
    scene.house.pglife(&["repo", "sync", "nas"]).ok();
    assert_eq!(scene.sets_in("nas").len(), 1);
}

#[test]
fn a_disk_that_fills_up_ends_its_own_copy_only() {
    let scene = Scene::new("copyfull", 1);
    let disk = scene.folder("nas");
    std::fs::remove_dir_all(&disk).expect("removed");
    std::fs::create_dir(&disk).expect("made");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=200k", "tmpfs"]).arg(&disk).status();
    assert!(mount.expect("mount runs").success(), "the test needs to be root to mount");
    scene.house.pglife(&["repo", "init", "nas"]).ok();
    let degraded = scene.house.pglife(&["backup", &scene.cluster]).exits(3);
    let left = crate::house::files_below(&disk);
    Command::new("umount").arg("-l").arg(&disk).status().ok();
    degraded.says(&["repository \"nas\" does not hold this backup", "no space left", "pglife repo sync nas"]);
    assert_eq!(left.len(), 1, "only the marker stays: {left:?}");
    for repository in ["local", "usb"] {
        assert_eq!(scene.sets_in(repository).len(), 1);
    }
}

#[test]
fn the_message_about_a_damaged_backup_knows_where_another_copy_is() {
    let scene = Scene::new("copyother", 1);
    scene.house.pglife(&["backup", &scene.cluster, "--repo", "nas"]).ok();
    let set = scene.sets_in("nas").remove(0);
    let verified = scene.house.items(&["backups", "verify", &scene.cluster, "--backup", &set]);
    assert_eq!(verified.len(), 1, "{verified:?}");
    assert_eq!(verified[0]["repository"], "nas");

    scene.house.pglife(&["repo", "sync"]).ok();
    let objects = scene.objects_in("nas");
    // The first one is damaged: the message knows where there is another.
    let (manifest, _) = objects.iter().find(|(path, _)| path.ends_with("manifest.json")).expect("the manifest");
    std::fs::remove_file(scene.folder("local").join(&scene.cluster).join(manifest)).expect("removed");
    let failed = scene.house.pglife(&["backups", "show", &scene.cluster]).exits(21);
    failed.says(&["repository \"nas\" holds this backup too: --repo nas"]);
    scene.house.pglife(&["backups", "show", &scene.cluster, "--repo", "nas"]).ok();
    // An object that is not there is damage, not a wrong name.
    let (dump, _) = objects.iter().find(|(path, _)| path.ends_with("shop.dump.zst")).expect("the dump");
    std::fs::remove_file(scene.folder("nas").join(&scene.cluster).join(dump)).expect("removed");
    let to = scene.house.path("exported").to_string_lossy().into_owned();
    let export = ["backups", "export", &scene.cluster, "--repo", "nas", "--to", &to];
    scene.house.pglife(&export).exits(21).says(&["shop.dump.zst does not exist", "take a new one now"]);
    scene.house.pglife(&["backups", "export", &scene.cluster, "--repo", "usb", "--to", &to]).ok();
    scene.house.pglife(&["repo", "check", "no-such"]).exits(5).says(&["configured: local, nas, usb"]);
}

#[test]
fn the_next_holder_is_asked_where_a_copy_is_damaged() {
    let scene = Scene::new("copynext", 1);
    let set = scene.house.backup(&scene.cluster);
    std::fs::remove_dir_all(scene.folder("usb").join(&scene.cluster)).expect("removed");
    // The first holder's copy is damaged in an object, the second's is whole.
    let dump =
        crate::house::files_below(&scene.folder("local")).into_iter().find(|path| path.ends_with("shop.dump.zst"));
    let dump = dump.expect("the dump");
    let mut bytes = std::fs::read(&dump).expect("read");
    bytes[5000] ^= 1;
    std::fs::write(&dump, &bytes).expect("written");
    let told = scene.house.pglife(&["repo", "sync", "usb", "-o", "json"]).exits(21);
    let told = told.says(&["\"local\" to \"usb\"", "shop.dump.zst is damaged", "from repository \"nas\" instead"]);
    let answer: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!((&answer["items"][0]["from"], &answer["items"][0]["outcome"]), (&"nas".into(), &"copied".into()));
    assert_eq!(scene.sets_in("usb"), [set.as_str()]);
    assert!(scene.objects_in("usb") == scene.objects_in("nas"));
    // Nothing is missing any more, whatever is damaged.
    scene.house.pglife(&["repo", "sync"]).ok();
}

#[test]
fn another_repository_in_the_place_of_one_that_is_known_is_refused_until_it_is_accepted() {
    let scene = Scene::new("swapped", 1);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    house.backup(cluster);
    // The disk is swapped: another repository lies at the same path.
    let (usb, away) = (scene.folder("usb"), house.path("first disk"));
    std::fs::rename(&usb, &away).expect("moved");
    let other = House::new("swappedother");
    std::fs::rename(other.path("repo"), &usb).expect("moved");
    let refused = ["repository \"usb\"", "another repository than before", "pglife repo check usb --accept"];
    house.pglife(&["backups", "list", cluster, "--repo", "usb"]).exits(10).says(&refused);
    house.pglife(&["backup", cluster]).exits(3).says(&refused);
    house.pglife(&["prune", cluster, "--repo", "usb", "--confirm"]).exits(10).says(&refused);
    house.pglife(&["repo", "init", "usb"]).exits(10).says(&refused);
    assert_eq!(crate::house::files_below(&usb).len(), 1, "nothing was written to it");

    // Accepted, it is one like the other, and both may be there in turn.
    house.pglife(&["repo", "check", "usb", "--accept"]).ok();
    house.backup(cluster);
    assert_eq!(scene.sets_in("usb").len(), 1);
    std::fs::rename(&usb, house.path("second disk")).expect("moved");
    std::fs::rename(&away, &usb).expect("moved");
    house.pglife(&["repo", "check", "usb"]).ok();
    assert_eq!(scene.sets_in("usb").len(), 1);

    // One that is made anew is meant to be there.
    std::fs::remove_dir_all(&usb).expect("removed");
    house.pglife(&["repo", "init", "usb"]).ok();
    house.pglife(&["repo", "sync", "usb"]).ok();
    assert_eq!(scene.sets_in("usb").len(), 3);
}

/// Two control planes that share neither state directory nor Consul, and do to the same set what they like. One may be told to
/// run again; what is listed is whole whatever happens.
#[test]
fn control_planes_without_common_state_do_not_spoil_each_others_copies() {
    let scene = Scene::new("planes", 1);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let set = house.backup(cluster);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("two.toml", &settings.replace("state_dir = \"state\"", "state_dir = \"state two\""));
    let delete = ["backups", "delete", cluster, "--repo", "usb", "--backup", &set, "--yes", "--force"];
    let (sync, gc) = (&["repo", "sync", "usb"][..], &["repo", "gc", "usb", "--lease", "0s"][..]);
    for (round, other) in [sync, gc, &delete, sync, gc, &delete, sync, gc, &delete].into_iter().enumerate() {
        // Where there is something to delete, the other one deletes it before or while it is found missing.
        if other[1] != "delete" || round < 3 {
            std::fs::remove_dir_all(scene.folder("usb").join(cluster)).ok();
        }
        let started = |settings: &str, arguments: &[&str]| {
            let mut command = Command::new(executable());
            command.arg("--config").arg(house.path(settings)).args(arguments);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started")
        };
        let one = started("pglife.toml", sync);
        std::thread::sleep(Duration::from_millis(40 * round as u64));
        let others = started("two.toml", other);
        for child in [one, others] {
            let ended = child.wait_with_output().expect("ended");
            let said = String::from_utf8_lossy(&ended.stderr);
            let exit = ended.status.code();
            assert!(matches!(exit, Some(0 | 1 | 5 | 10 | 11)), "{round} {other:?}: {exit:?} {said}");
        }
        // Verifies whatever is listed.
        if !house.items(&["backups", "list", cluster, "--repo", "usb"]).is_empty() {
            assert_eq!(scene.sets_in("usb"), [set.as_str()]);
        }
        house.pglife(sync).ok();
        assert_eq!(scene.sets_in("usb"), [set.as_str()]);
        assert!(scene.objects_in("usb") == scene.objects_in("local"), "{round} {other:?}");
    }
}
