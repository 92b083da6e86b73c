//! The repository is full, read-only, gone, somebody else's or damaged.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use pglife::backup_set::{Commit, Digest};
use pglife::cluster::ClusterName;

use super::{Scene, docker_has};
use crate::house::sql;

/// A small file system of its own, unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    fn mounted_on(folder: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&folder).status();
        assert!(mount.expect("mount runs").success(), "the test needs to be root to mount");
        Self(folder)
    }

    fn remount(&self, mode: &str) {
        let mount = Command::new("mount").args(["-o", &format!("remount,{mode}")]).arg(&self.0).status();
        assert!(mount.expect("mount runs").success());
    }

    /// Fills it, but for `pages` of 4 KiB.
    fn fill_but(&self, pages: u64) {
        let path = self.0.join("lost+found");
        let mut file = std::fs::File::create(path).expect("a file");
        let mut size = 0;
        while file.write_all(&[7; 4096]).is_ok() {
            size += 4096;
        }
        file.set_len(size - pages * 4096).expect("shorter");
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("lost+found")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_repository_keeps_what_it_has() {
    let scene = Scene::new("full");
    let disk = Disk::mounted_on(scene.house.path("disk"), "6m");
    repository_at(&scene, &disk.0.join("repo"));
    scene.house.pglife(&["repo", "init"]).ok();
    let good = scene.house.backup(&scene.cluster);
    // Too large a database.
    sql(
        &scene.container,
        "shop",
        "create table big as select md5(random()::text) || md5(random()::text) from generate_series(1, 300000)",
    );
    let full = ["no space left", "earlier backups", "free space"];
    let listed = |expected: &[&str]| {
        super::nothing_is_left_of(&scene.cluster, &disk.0.join("repo"));
        let sets = scene.house.items(&["backups", "list", &scene.cluster]);
        assert_eq!(sets.iter().map(|set| set["set"].as_str().expect("an id")).collect::<Vec<_>>(), expected);
        scene.house.pglife(&["backups", "verify", &scene.cluster]).ok();
    };
    scene.backup_fails(1, &full);
    scene.backup_fails(1, &["database \"shop\"", "db/shop.dump.zst"]);
    listed(&[&good]);
    sql(&scene.container, "shop", "drop table big");
    // Full at every other point of the way to COMMIT.
    let mut sets = vec![good];
    let mut failed = 0;
    for pages in [0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 16, 24, 64, 512] {
        disk.fill_but(pages);
        let ended = scene.house.pglife(&["backup", &scene.cluster, "-o", "json"]);
        match ended.exit {
            0 => {
                let answer: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
                sets.push(answer["items"][0]["set"].as_str().expect("an id").to_owned());
            }
            1 => {
                ended.says(&full).says(&scene.failure());
                failed += 1;
            }
            _ => panic!("{pages} pages: {ended:?}"),
        }
        disk.free();
        listed(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert!(failed > 1 && sets.len() > 1, "{failed} failed, {} did not", sets.len());
}

fn repository_at(scene: &Scene, path: &Path) {
    let text = std::fs::read_to_string(scene.house.path("pglife.toml")).expect("read");
    let text = text.split("[repos.local]").next().expect("the part before").to_owned();
    let path = path.display();
    scene.house.write("pglife.toml", &format!("{text}[repos.local]\ntype = \"local\"\npath = \"{path}\"\n"));
}

#[test]
fn a_repository_that_cannot_be_written_is_told_as_such() {
    let scene = Scene::new("repo");
    let repo = scene.house.path("repo");
    let fails = |parts: &[&str]| {
        // Nothing began, so nothing is said to be safe.
        let ended = scene.house.pglife(&["backup", &scene.cluster]).exits(10).says(parts).says(&["\n  next: "]);
        assert!(super::workers_of(&scene.cluster).is_empty());
        ended
    };
    let copy = scene.house.name("copy");
    let restore_fails = || {
        scene.house.pglife(&["restore", &scene.cluster, "--into", &copy]).exits(10);
        assert_eq!(docker_has(&copy), [""; 0]);
    };

    // A disk that is not mounted: the folder is gone, or there and empty.
    let away = scene.house.path("away");
    std::fs::rename(&repo, &away).expect("moved");
    fails(&["repository \"local\" cannot be used", "mount it", "pglife repo init local"]);
    restore_fails();
    std::fs::create_dir(&repo).expect("made");
    fails(&["is not a pglife repository", "mount it"]);
    restore_fails();
    scene.house.pglife(&["backups", "list", &scene.cluster]).exits(10);
    scene.house.pglife(&["backups", "verify", &scene.cluster]).exits(10);
    scene.house.pglife(&["repo", "check"]).exits(10);
    scene.house.pglife(&["status"]).exits(3).says(&["is not a pglife repository"]);
    // Somebody else's folder.
    std::fs::write(repo.join("thesis.odt"), "").expect("written");
    fails(&["is not a pglife repository"]);
    scene.house.pglife(&["repo", "init"]).exits(4).says(&["thesis.odt"]);
    std::fs::remove_dir_all(&repo).expect("removed");
    std::fs::write(&repo, "").expect("written");
    fails(&["cannot be used"]);
    std::fs::remove_file(&repo).expect("removed");
    std::fs::rename(&away, &repo).expect("moved back");
    scene.holds(&[&scene.good]);

    // Of a newer format, and damaged.
    let marker = repo.join("pglife-repo.json");
    let text = std::fs::read_to_string(&marker).expect("read");
    let with = |text: &str| {
        std::fs::remove_file(&marker).expect("removed");
        std::fs::write(&marker, text).expect("written");
    };
    with(&text.replace("\"version\":1", "\"version\":2"));
    fails(&["has format 2, this pglife knows up to 1", "nothing was touched"]);
    restore_fails();
    scene.house.pglife(&["repo", "init"]).exits(10);
    for damaged in ["", "{", "{\"version\":1}", "{\"version\":1,\"id\":\"../..\"}", "null", "\0\0\0"] {
        with(damaged);
        fails(&["is not a pglife repository", "pglife-repo.json is damaged"]);
    }
    with(&text);
    scene.recovers();

    // Read-only.
    let disk = Disk::mounted_on(scene.house.path("disk"), "8m");
    repository_at(&scene, &disk.0.join("repo"));
    scene.house.pglife(&["repo", "init"]).ok();
    let set = scene.house.backup(&scene.cluster);
    disk.remount("ro");
    fails(&["cannot be written", "read-write"]);
    scene.house.pglife(&["doctor"]).exits(10);
    // Enough to restore from.
    scene.house.pglife(&["backups", "verify", &scene.cluster]).ok();
    scene.house.pglife(&["restore", &scene.cluster, "--into", &copy]).ok();
    disk.remount("rw");
    scene.house.backup(&scene.cluster);
    assert!(scene.house.items(&["backups", "list", &scene.cluster]).iter().any(|item| item["set"] == set.as_str()));
}

#[test]
fn a_repository_that_vanishes_in_the_middle_fails_the_backup() {
    let scene = Scene::new("vanish");
    let (repo, away) = (scene.house.path("repo"), scene.house.path("away"));
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    std::fs::rename(&repo, &away).expect("moved");
    drop(holder);
    let ended = beside.ended();
    assert!([1, 10].contains(&ended.exit), "{ended:?}");
    ended.says(&[&scene.cluster, "\n  safe: ", "\n  next: "]);
    std::fs::rename(&away, &repo).expect("moved back");
    let next = scene.house.backup(&scene.cluster);
    scene.holds(&[&scene.good, &next]);
}

/// A set folder that is put back as it was.
struct Original {
    folder: PathBuf,
    copy: PathBuf,
}

impl Original {
    fn of(folder: PathBuf, copy: PathBuf) -> Self {
        copy_folder(&folder, &copy);
        Self { folder, copy }
    }

    fn put_back(&self) {
        std::fs::remove_dir_all(&self.folder).expect("removed");
        copy_folder(&self.copy, &self.folder);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs").success());
}

/// Flips a bit in the middle.
fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(file, bytes).expect("written");
}

fn truncate(file: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("opened");
    let size = file.metadata().expect("its size").len();
    file.set_len(size - bytes.min(size)).expect("cut");
}

fn append(file: &Path) {
    std::fs::OpenOptions::new().append(true).open(file).expect("opened").write_all(b"\0").expect("written");
}

#[test]
fn damage_is_found_and_named() {
    let scene = Scene::new("damage");
    let (cluster, set) = (&scene.cluster, &scene.good);
    let folder = scene.house.set_folder(cluster, set);
    let original = Original::of(folder.clone(), scene.house.path("original"));
    let verify_finds = |object: &str| {
        let ended = scene.house.pglife(&["backups", "verify", cluster]).exits(21);
        ended.says(&[set, object, "backups are damaged", "\n  next: "]);
    };
    let copy = scene.house.name("copy");
    let restore_fails = |object: &str| {
        let ended = scene.house.pglife(&["restore", cluster, "--into", &copy]).exits(21);
        ended.says(&[set, object, "\n  safe: ", "\n  next: "]);
        assert_eq!(docker_has(&copy), [""; 0]);
        assert!(!scene.house.path(&format!("policies/{copy}.toml")).exists());
        super::nothing_is_left_of(&copy, &scene.house.path("repo"));
    };
    let shop = "db/shop.dump.zst";
    let objects =
        [shop, "db/postgres.dump.zst", "db/template1.dump.zst", "globals.sql.zst", "recipe.json", "RECOVER.md"];
    for object in objects {
        let file = folder.join(object);
        for damage in [flip, |file: &Path| truncate(file, 1), |file: &Path| truncate(file, u64::MAX), append] {
            damage(&file);
            verify_finds(object);
            original.put_back();
        }
        std::fs::remove_file(&file).expect("removed");
        verify_finds(object);
        original.put_back();
    }
    // The digest is of what is stored, whoever made it: another good object is damage, too.
    std::fs::rename(folder.join(shop), folder.join("x")).expect("moved");
    std::fs::rename(folder.join("db/postgres.dump.zst"), folder.join(shop)).expect("moved");
    std::fs::rename(folder.join("x"), folder.join("db/postgres.dump.zst")).expect("moved");
    verify_finds(shop);
    verify_finds("db/postgres.dump.zst");
    restore_fails("postgres");
    original.put_back();

    for damage in
        [flip, |file: &Path| truncate(file, 1), append, |file: &Path| std::fs::remove_file(file).expect("removed")]
    {
        damage(&folder.join("manifest.json"));
        verify_finds("manifest.json");
        let ended = scene.house.pglife(&["restore", cluster, "--into", &copy]).exits(21);
        ended.says(&[set, "manifest", "\n  next: "]);
        assert_eq!(docker_has(&copy), [""; 0]);
        original.put_back();
    }
    flip(&folder.join(shop));
    restore_fails(shop);
    original.put_back();
    std::fs::remove_file(folder.join("globals.sql.zst")).expect("removed");
    restore_fails("globals.sql.zst");
    original.put_back();
    scene.recovers();
}

#[test]
fn a_damaged_commit_is_named_and_a_missing_one_is_no_backup() {
    let scene = Scene::new("commit");
    let (cluster, set) = (&scene.cluster, &scene.good);
    let folder = scene.house.set_folder(cluster, set);
    let original = Original::of(folder.clone(), scene.house.path("original"));
    let file = folder.join("COMMIT");
    let text = std::fs::read_to_string(&file).expect("read");
    let copy = scene.house.name("copy");
    let commit = Commit::from_bytes(text.as_bytes()).expect("a commit");
    let sealed = |commit: Commit| String::from_utf8(commit.to_bytes()).expect("text");
    for damaged in [
        "",
        "{",
        "\0",
        &text.replace("\"warnings\": 0", "\"warnings\": 1"),
        &sealed(Commit { set: "20200101T000000Z-dump-aaaaaa".parse().expect("an id"), ..commit.clone() }),
        &sealed(Commit { cluster: ClusterName::new("x").expect("a name"), ..commit.clone() }),
    ] {
        std::fs::write(&file, damaged).expect("written");
        scene.house.pglife(&["backups", "verify", cluster]).exits(21).says(&[set, "COMMIT"]);
        let listed = scene.house.pglife(&["backups", "list", cluster]);
        assert!([0, 3, 21].contains(&listed.exit), "{listed:?}");
        listed.says(&["COMMIT"]);
        scene.house.pglife(&["status"]).says(&["COMMIT"]);
        scene.house.pglife(&["restore", cluster, "--into", &copy]).exits(5);
        original.put_back();
    }
    // A digest that is not the manifest's.
    let other = Commit { manifest_blake3: Digest::of(b"another"), ..commit.clone() };
    std::fs::write(&file, sealed(other)).expect("written");
    let ended = scene.house.pglife(&["backups", "verify", cluster]).exits(21);
    ended.says(&[set, "manifest.json"]);
    original.put_back();
    std::fs::write(&file, sealed(Commit { version: 9, ..commit })).expect("written");
    scene.house.pglife(&["backups", "list", cluster]).says(&["COMMIT", "version 9"]);
    original.put_back();

    std::fs::remove_file(&file).expect("removed");
    assert!(scene.house.items(&["backups", "list", cluster]).is_empty());
    scene.house.pglife(&["restore", cluster, "--into", &copy]).exits(5).says(&["there is none at all"]);
    assert_eq!(docker_has(&copy), [""; 0]);
    original.put_back();
    scene.recovers();
}
