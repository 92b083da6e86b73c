//! Containers that somebody else made: taken over, backed up, and restored into a cluster of pglife's own.

mod files;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::house::{House, docker, run, sql, wait_for_server};

/// A stand-in with the layout of the official image.
pub(crate) const OFFICIAL: &str = "pglife/test-official:17";
const WORD: &str = "S3cret 'adopted' \"word\" \\ $x";

/// What a container is, in a form that two looks have in common: the engine lists mounts in any order.
fn inspected(container: &str) -> Value {
    let text = docker(&["inspect", container]);
    let mut items: Value = serde_json::from_str(&text).expect("JSON");
    let mut look = ["Config", "HostConfig", "Mounts"].map(|key| items[0][key].take());
    let mounts = look[2].as_array_mut().expect("a list of mounts");
    mounts.sort_by_key(|mount| mount["Destination"].to_string());
    json!([look, items[0]["State"]["StartedAt"]])
}

#[test]
fn a_container_of_the_official_image_is_adopted_wherever_its_data_lies() {
    let house = House::new("adopt");
    let folder = house.path("data");
    std::fs::create_dir(&folder).expect("a folder");
    let volume = format!("{}:/var/lib/postgresql/data", house.volume("volume"));
    let below = format!("{}:/srv", house.volume("below"));
    let bind = format!("{}:/var/lib/postgresql/data", folder.display());
    let start = |short: &str, options: &[&str]| {
        let word = ["-e", "POSTGRES_PASSWORD=unimportant", "-e", "POSTGRES_DB=shop"];
        let container = house.foreign(short, &[options, &word, &[OFFICIAL]].concat());
        wait_for_server(&container);
        let rows = "create table t as select i, md5(i::text) as note from generate_series(1, 1000) i";
        sql(&container, "shop", rows);
        container
    };
    let by_volume = start("volume", &["-v", &volume]);
    let by_bind = start("bind", &["-v", &bind]);
    let from_below = start("below", &["-v", &below, "-e", "PGDATA=/srv/pg/17"]);

    for (container, storage, pgdata) in [
        (&by_volume, format!("volume {}", house.name("volume")), "/var/lib/postgresql/data"),
        (&by_bind, format!("bind {}", folder.display()), "/var/lib/postgresql/data"),
        (&from_below, format!("volume {}", house.name("below")), "/srv/pg/17"),
    ] {
        let before = inspected(container);
        let adopted = house.items(&["cluster", "adopt", container]).remove(0);
        assert_eq!(adopted["found"]["storage"], storage.as_str());
        assert_eq!(adopted["found"]["pgdata"], pgdata);
        assert_eq!(adopted["major"], "17");
        assert_eq!(inspected(container), before, "the container was changed");
        house.pglife(&["policy", "validate"]).ok();
        house.backup(container);
    }
    house.pglife(&["cluster", "adopt", &by_volume]).exits(4).says(&[&by_volume, "adopted"]);
    // Not pglife's to remove.
    house.pglife(&["cluster", "remove", &by_volume, "--yes"]).exits(4).says(&["adopted"]);

    let copy = house.name("copy");
    house.pglife(&["restore", &from_below, "--into", &copy]).ok();
    let sum = "select count(*), md5(string_agg(note, ',' order by i)) from t";
    assert_eq!(sql(&format!("{copy}-db"), "shop", sum), sql(&from_below, "shop", sum));
    house.backup(&copy);
}

#[test]
fn a_server_that_asks_for_a_password_is_adopted_with_it() {
    let house = House::new("word");
    house.write("word", &format!("{WORD}\n"));
    house.write("wrong", "not this one\n");
    let mount = format!("{}:/word:ro", house.path("word").display());
    let variables = ["TEST_LOCAL_AUTH=scram-sha-256", "POSTGRES_PASSWORD_FILE=/word", "POSTGRES_USER=shop keeper"];
    let options: Vec<&str> = variables.iter().flat_map(|variable| ["-e", variable]).chain(["-v", &mount]).collect();
    let container = house.foreign("db", &[&options[..], &[OFFICIAL]].concat());
    wait_for_server(&container);
    let file = |name: &str| house.path(name).to_string_lossy().into_owned();

    let adopt = ["cluster", "adopt", &container, "--name", &house.name("shop"), "--user", "shop keeper"];
    let policies = || std::fs::read_dir(house.path("policies")).expect("a folder").count();
    let wrong = house.pglife(&[&adopt[..], &["--password-file", &file("wrong")]].concat()).exits(12);
    wrong.says(&["shop keeper", "password", "no policy was written"]);
    house.pglife(&adopt).exits(12).says(&["--password-file"]);
    let absent = house.pglife(&[&adopt[..], &["--password-file", &file("absent")]].concat()).exits(12);
    absent.says(&["absent", "cannot be read"]);
    assert_eq!(policies(), 0);

    house.pglife(&[&adopt[..], &["--password-file", &file("word")]].concat()).ok();
    house.pglife(&["policy", "validate"]).ok();
    house.backup(&house.name("shop"));
    // The word is changed, and the policy's file is not.
    house.write("word", "changed\n");
    house.pglife(&["backup"]).exits(12).says(&["shop keeper", "password_file"]);
}

#[test]
fn something_else_is_not_adopted() {
    let house = House::new("else");
    let sleeper = house.foreign("sleeper", &["busybox", "sleep", "600"]);
    house.pglife(&["cluster", "adopt", &sleeper]).exits(4).says(&[&sleeper, "PGDATA", "PostgreSQL"]);
    house.pglife(&["cluster", "adopt", &house.name("nobody")]).exits(5).says(&[&house.name("nobody")]);
    docker(&["stop", "-t", "0", &sleeper]);
    house.pglife(&["cluster", "adopt", &sleeper]).exits(15).says(&["does not run", "docker start"]);
    assert_eq!(std::fs::read_dir(house.path("policies")).expect("a folder").count(), 0);
}

/// A project of `docker/compose.yaml`, taken down at the end.
struct Compose {
    cluster: String,
}

impl Compose {
    fn command(&self, arguments: &[&str]) -> Command {
        let plugin = Command::new("docker").args(["compose", "version"]).output().is_ok_and(|out| out.status.success());
        let mut command = Command::new(if plugin { "docker" } else { "docker-compose" });
        if plugin {
            command.arg("compose");
        }
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docker/compose.yaml");
        // Port 0: any that is free.
        command.env("PGLIFE_CLUSTER", &self.cluster).env("PGLIFE_PORT", "0");
        command.arg("-p").arg(&self.cluster).arg("-f").arg(file).args(arguments);
        command
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        run(self.command(&["down", "-v", "-t", "1"]));
    }
}

#[test]
fn a_cluster_of_the_compose_file_is_adopted() {
    let house = House::new("compose");
    let compose = Compose { cluster: house.name("main") };
    // As the file's own head says.
    run(compose.command(&["up", "--no-start", "data"])).ok();
    house.write("word", &format!("{WORD}\n"));
    let data = format!("--volumes-from={}-data", compose.cluster);
    for (secret, text) in [("adminuser", "keeper"), ("adminpass", WORD)] {
        let keep = "umask 077; printf %s \"$2\" >\"/secret/$1\"";
        docker(&["run", "--rm", &data, "busybox", "sh", "-c", keep, "sh", secret, text]);
    }
    run(compose.command(&["up", "-d"])).ok();
    let container = format!("{}-db", compose.cluster);
    wait_for_server(&container);
    let word = house.path("word").to_string_lossy().into_owned();
    let adopt = ["cluster", "adopt", &container, "--name", &compose.cluster, "--user", "keeper"];
    house.pglife(&[&adopt[..], &["--password-file", &word]].concat()).ok();
    sql(&container, "postgres", "create database shop");
    let set = house.backup(&compose.cluster);
    assert!(house.set_folder(&compose.cluster, &set).join("db/shop.dump.zst").is_file());
}
