//! Whole backups in a bucket of a real S3 server: taken, listed, verified, restored, synchronised and pruned.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::house::{Ended, House, docker, sql};
use crate::s3::{ADMIN, Answer, Proxy, Server};

const SUM: &str = "select count(*), md5(string_agg(note, ',' order by n)) from t";

/// A house with a bucket beside its folder, and a cluster that backs up to both.
struct Scene {
    house: House,
    server: Server,
    cluster: String,
    container: String,
}

impl Scene {
    fn new(test: &str, megabytes: usize) -> Self {
        let house = House::new(test);
        let server = Server::start(&house, "s3");
        server.bucket("pglife-backups");
        house.write_secret(
            "s3.credentials",
            &format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", ADMIN.0, ADMIN.1),
        );
        let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
        let bucket = format!(
            "\n[repos.offsite]\ntype = \"s3\"\nbucket = \"pglife-backups\"\nprefix = \"night ly\"\nendpoint = \"{}\"\nregion = \
             \"us-east-1\"\ncredentials_file = \"s3.credentials\"\n",
            server.endpoint()
        );
        house.write("pglife.toml", &format!("{settings}{bucket}"));
        house.pglife(&["repo", "init", "offsite"]).ok();
        let cluster =
            house.cluster("main", "17", "[backup.dump]\nrepos = [\"local\", \"offsite\"]\n[retention]\nlast = 1\n");
        let container = format!("{cluster}-db");
        sql(&container, "postgres", "create database shop");
        // md5 of random text does not compress well: what is stored is about half of it.
        let rows = megabytes * 1_000_000 / 260;
        sql(
            &container,
            "shop",
            &format!(
                "create table t as select n, {} as note from generate_series(1, {rows}) n",
                ["md5(random()::text)"; 8].join(" || ")
            ),
        );
        Self { house, server, cluster, container }
    }

    fn sets_in(&self, repository: &str) -> Vec<String> {
        let sets = self.house.items(&["backups", "list", &self.cluster, "--repo", repository]);
        sets.iter().map(|set| set["set"].as_str().expect("an id").to_owned()).collect()
    }

    /// Has the bucket reached by another way.
    fn reach_by(&self, endpoint: &str) {
        let settings = std::fs::read_to_string(self.house.path("pglife.toml")).expect("read");
        let line = |line: &str| {
            if line.starts_with("endpoint = ") { format!("endpoint = \"{endpoint}\"\n") } else { format!("{line}\n") }
        };
        self.house.write("pglife.toml", &settings.lines().map(line).collect::<String>());
    }

    /// The keys in the bucket, whoever made them.
    fn keys(&self) -> Vec<String> {
        let (listing, _) = self.server.curl(&[&format!("{}/pglife-backups?list-type=2", self.server.endpoint())]);
        listing.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()).map(str::to_owned).collect()
    }

    /// Restores the newest set of `repository`, and compares.
    fn restores_from(&self, repository: &str, short: &str, more: &[&str]) {
        let copy = self.house.name(short);
        let restore = ["restore", &self.cluster, "--repo", repository, "--into", &copy];
        self.house.pglife(&[&restore, more].concat()).ok();
        assert_eq!(sql(&format!("{copy}-db"), "shop", SUM), sql(&self.container, "shop", SUM));
        self.house.pglife(&["cluster", "remove", &copy, "--volumes", "--yes"]).ok();
    }
}

#[test]
fn a_bucket_is_a_repository_like_any_other() {
    let scene = Scene::new("bucket", 20);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let first = house.backup(cluster);
    assert_eq!(house.items(&["backups", "list", cluster])[0]["repositories"], serde_json::json!(["local", "offsite"]));
    let verified = house.items(&["backups", "verify", cluster]);
    assert_eq!(verified.len(), 2);
    assert!(verified.iter().all(|row| row["intact"] == Value::Bool(true)), "{verified:?}");
    scene.restores_from("offsite", "copy", &[]);
    assert!(house.pglife(&["doctor"]).ok().stdout.contains("s3://pglife-backups/night ly"));

    // No secret has left for where it does not belong.
    let state = std::fs::read(house.path("state/state.db")).expect("read");
    assert!(!state.windows(ADMIN.1.len()).any(|window| window == ADMIN.1.as_bytes()));

    // The folder is lost with all that was in it: the bucket alone brings the database back, without the old state too.
    std::fs::remove_dir_all(house.path("repo")).expect("removed");
    std::fs::rename(house.path("state"), house.path("old state")).expect("moved");
    house.pglife(&["repo", "check", "offsite"]).ok();
    let copy = house.name("saved");
    house.pglife(&["restore", cluster, "--into", &copy]).ok();
    assert_eq!(sql(&format!("{copy}-db"), "shop", SUM), sql(&scene.container, "shop", SUM));
    // And fills a new folder.
    house.pglife(&["repo", "init", "local"]).ok();
    house.pglife(&["repo", "sync", "local"]).ok();
    assert_eq!(scene.sets_in("local"), [first.as_str()]);
    house.pglife(&["backups", "verify", cluster, "--repo", "local"]).ok();

    // Retention works there as it does here.
    let second = house.backup(cluster);
    house.pglife(&["prune", cluster, "--confirm"]).ok();
    for repository in ["local", "offsite"] {
        assert_eq!(scene.sets_in(repository), [second.as_str()]);
    }
    assert_eq!(house.items(&["repo", "gc", "--lease", "0s"]), [Value::Null; 0]);
    let (listing, _) = scene.server.curl(&[&format!("{}/pglife-backups?list-type=2", scene.server.endpoint())]);
    assert!(listing.contains(&second) && !listing.contains(&first), "{listing}");
}

#[test]
fn an_encrypted_backup_goes_to_a_bucket_and_comes_back() {
    let scene = Scene::new("sealbucket", 4);
    let [everyday, escrow] = scene.house.encrypt();
    scene.house.backup(&scene.cluster);
    let verify = ["backups", "verify", &scene.cluster, "--repo", "offsite"];
    for (more, opened) in [(&[][..], false), (&["--identity", &everyday], true), (&["--identity", &escrow], true)] {
        let verified = scene.house.items(&[&verify, more].concat());
        assert_eq!((&verified[0]["intact"], &verified[0]["opened"]), (&Value::Bool(true), &Value::Bool(opened)));
    }
    scene.restores_from("offsite", "copy", &["--identity", &escrow]);
    let (listing, _) = scene.server.curl(&[&format!("{}/pglife-backups?list-type=2", scene.server.endpoint())]);
    assert!(listing.contains("db/0001.dump.zst.age") && !listing.contains("shop."), "{listing}");
}

/// Begins a backup, and calls `trouble` with the id of its process when the worker has written some of it.
fn backup_with(scene: &Scene, trouble: impl FnOnce(u32)) -> Ended {
    let mut command = scene.house.command(&["backup", &scene.cluster, "--progress", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let stderr = child.stderr.take().expect("piped");
    let mut said = String::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    let mut trouble = Some(trouble);
    for line in &mut lines {
        let line = line.expect("text");
        said.push_str(&line);
        said.push('\n');
        let stored = serde_json::from_str::<Value>(&line).ok().and_then(|tick| tick["stored_bytes"].as_u64());
        if stored.is_some_and(|stored| stored > 1 << 20)
            && let Some(trouble) = trouble.take()
        {
            trouble(child.id());
        }
    }
    assert!(trouble.is_none(), "the backup was over before anything could happen to it:\n{said}");
    let mut output = child.wait_with_output().expect("ended");
    output.stderr.write_all(said.as_bytes()).expect("kept");
    Ended::of(output, "pglife backup".to_owned())
}

#[test]
fn a_server_that_dies_in_the_middle_costs_its_own_copy_only() {
    let scene = Scene::new("deadbucket", 150);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let ended = backup_with(&scene, |_| scene.server.kill());
    ended.exits(3).says(&[
        "repository \"offsite\" does not hold this backup",
        "s3://pglife-backups/night ly",
        "pglife repo sync offsite",
    ]);
    house.pglife(&["backups", "verify", cluster, "--repo", "local"]).ok();
    house.pglife(&["backups", "list", cluster, "--repo", "offsite"]).exits(10).says(&["s3://pglife-backups"]);
    scene.server.start_again();
    assert_eq!(scene.sets_in("offsite"), [""; 0]);

    house.pglife(&["repo", "sync", "offsite"]).ok();
    assert_eq!(scene.sets_in("offsite"), scene.sets_in("local"));
    house.pglife(&["backups", "verify", cluster, "--repo", "offsite"]).ok();
    // What the dead upload left is known as such.
    house.pglife(&["repo", "gc", "offsite", "--lease", "0s"]).ok();
    house.pglife(&["backups", "verify", cluster, "--repo", "offsite"]).ok();
    let uploads = format!("{}/pglife-backups?uploads=", scene.server.endpoint());
    let listed = scene.server.curl(&[&uploads]).0;
    assert!(listed.contains("ListMultipartUploadsResult") && !listed.contains("<Upload>"), "{listed}");
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_in_a_bucket() {
    let scene = Scene::new("killbucket", 150);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let settings = std::fs::read_to_string(house.path(&format!("policies/{cluster}.toml"))).expect("read");
    house.write(&format!("policies/{cluster}.toml"), &settings.replace("\"local\", ", ""));
    let uploads = format!("{}/pglife-backups?uploads=", scene.server.endpoint());
    let killed = backup_with(&scene, |process| {
        let id = rustix::process::Pid::from_raw(i32::try_from(process).expect("an id")).expect("not zero");
        rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("killed");
    });
    assert_eq!(killed.exit, -1);
    assert_eq!(scene.sets_in("offsite"), [""; 0]);
    // The next one clears up, and works.
    let set = house.backup(cluster);
    assert_eq!(scene.sets_in("offsite"), [set.as_str()]);
    house.pglife(&["backups", "verify", cluster]).ok();
    let listed = scene.server.curl(&[&uploads]).0;
    assert!(listed.contains("ListMultipartUploadsResult") && !listed.contains("<Upload>"), "{listed}");
    let keys = scene.keys();
    assert!(keys.iter().all(|key| key.contains(&set) || key.ends_with("pglife-repo.json")), "{keys:?}");
    assert!(
        docker(&[
            "ps",
            "-q",
            "--filter",
            &format!("label=pglife.cluster={cluster}"),
            "--filter",
            "label=pglife.purpose=worker"
        ])
        .is_empty()
    );
}

#[test]
fn the_volumes_go_to_a_bucket_and_come_back() {
    let scene = Scene::new("s3vol", 4);
    let taken = scene.house.items(&["backup", &scene.cluster, "--kind", "volume"]).remove(0);
    assert_eq!(taken["repositories"], serde_json::json!(["local", "offsite"]));
    // Of a stopped server too: its worker has a network of its own.
    scene.house.pglife(&["backup", &scene.cluster, "--kind", "volume", "--mode", "cold"]).ok();
    scene.house.pglife(&["backups", "verify", &scene.cluster, "--repo", "offsite"]).ok();
    let (copy, newest) = (scene.house.name("copy"), ["--backup", "latest:volume", "--repo", "offsite"]);
    scene.house.pglife(&[&["restore", &scene.cluster, "--into", &copy], &newest[..]].concat()).ok();
    assert_eq!(sql(&format!("{copy}-db"), "shop", SUM), sql(&scene.container, "shop", SUM));
}

/// What the proxy refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Nothing,
    /// Every deletion, and giving up uploads.
    Deletions,
    /// Deletions of anything but `COMMIT`.
    Objects,
    /// Deletions and manifests.
    Manifests,
    /// Everything: the clock is an hour late.
    Late,
    /// The same, from the first object on.
    LateToWrite,
}

#[test]
fn what_a_service_refuses_is_told_and_costs_nothing() {
    let scene = Scene::new("refusals", 4);
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let refusal = std::sync::Arc::new(std::sync::Mutex::new(Refusal::Nothing));
    let now = std::sync::Arc::clone(&refusal);
    let proxy = Proxy::before_workers(&scene.server, move |line| {
        let (deletes, writes) = (line.starts_with("DELETE "), line.starts_with("PUT ") || line.starts_with("POST "));
        let refused = match *now.lock().expect("no panic") {
            Refusal::Deletions => deletes,
            Refusal::Objects => deletes && !line.contains("/COMMIT"),
            Refusal::Manifests => deletes || writes && line.contains("manifest.json"),
            Refusal::Late => return Answer::Forbidden("RequestTimeTooSkewed", 3600),
            // Whether anything can be written is tried before.
            Refusal::LateToWrite if writes && !line.contains("write-check") => {
                return Answer::Forbidden("RequestTimeTooSkewed", 3600);
            }
            Refusal::LateToWrite | Refusal::Nothing => false,
        };
        if refused { Answer::Forbidden("AccessDenied", 0) } else { Answer::Whole }
    });
    let refuse = |what| *refusal.lock().expect("no panic") = what;
    scene.reach_by(&proxy.endpoint());
    let backup = || house.pglife(&["backup", cluster, "--repo", "offsite"]);

    // Without any permission to delete, backups are taken.
    refuse(Refusal::Deletions);
    let first = house.backup(cluster);
    let second = house.backup(cluster);
    assert_eq!(scene.sets_in("offsite"), [first.as_str(), second.as_str()]);
    house.pglife(&["backups", "verify", cluster, "--repo", "offsite"]).ok();
    house
        .pglife(&["repo", "check", "offsite"])
        .ok()
        .says(&["s3:AbortMultipartUpload", "AbortIncompleteMultipartUpload"]);

    // Pruning says of each set that it stays, and why.
    let prune = ["prune", cluster, "--repo", "offsite", "--confirm"];
    house.pglife(&prune).exits(12).says(&[
        &first,
        "do not allow to delete its COMMIT",
        "listed as before",
        "0 backups deleted",
    ]);
    let delete = ["backups", "delete", cluster, "--repo", "offsite", "--backup", &first, "--yes"];
    house.pglife(&delete).exits(12).says(&["do not allow to delete its COMMIT", "listed as before"]);
    assert_eq!(scene.sets_in("offsite"), [first.as_str(), second.as_str()]);
    house.pglife(&["backups", "verify", cluster, "--repo", "offsite"]).ok();

    // A backup that fails is not listed, though nothing of it can be removed.
    refuse(Refusal::Manifests);
    backup().exits(12).says(&["s3://pglife-backups/night ly", "manifest.json", "do not allow"]);
    assert_eq!(scene.sets_in("offsite"), [first.as_str(), second.as_str()]);

    // What is half deleted is no backup any more; what is left of it is named, and goes with other credentials.
    refuse(Refusal::Objects);
    house.pglife(&prune).exits(12).says(&[&first, "no longer listed", "manifest.json", "repo gc offsite"]);
    assert_eq!(scene.sets_in("offsite"), [second.as_str()]);
    house.pglife(&["repo", "gc", "offsite", "--lease", "0s"]).exits(12).says(&["do not allow"]);
    refuse(Refusal::Nothing);
    house.pglife(&["repo", "gc", "offsite", "--lease", "0s"]).ok();
    let keys = scene.keys();
    assert!(keys.iter().all(|key| key.contains(&second) || key.ends_with("pglife-repo.json")), "{keys:?}");

    // A clock that is wrong: at once, and in the middle.
    refuse(Refusal::Late);
    let skewed = ["clocks differ", "behind the service's", "NTP", "s3://pglife-backups/night ly"];
    backup().exits(10).says(&skewed);
    house.pglife(&["repo", "check", "offsite"]).exits(10).says(&skewed);
    let degraded = house.pglife(&["backup", cluster]).exits(3);
    degraded.says(&["repository \"offsite\" does not hold this backup", "clocks differ", "repo sync offsite"]);
    refuse(Refusal::LateToWrite);
    backup().exits(10).says(&["clocks differ", "behind the service's"]);
    refuse(Refusal::Nothing);
    assert_eq!(scene.sets_in("offsite"), [second.as_str()]);
    house.pglife(&["repo", "sync", "offsite"]).ok();
    house.pglife(&["backups", "verify", cluster]).ok();
}
