//! Drills that come to no verdict: they are recorded, told and counted, and prove nothing in either way.

use crate::daemon::events;
use crate::house::House;

use super::{certificates, drill, forge, of_drills, shop};

/// What `status` says of the drills of a cluster.
fn proof(house: &House, cluster: &str) -> serde_json::Value {
    house.items(&["status", cluster])[0]["proof"].clone()
}

#[test]
fn a_drill_that_cannot_begin_is_in_the_record() {
    let house = House::new("unjudged");
    let [key, _] = house.encrypt();
    let policy = "[freshness]\ndrill = { warn = \"2d\", critical = \"8d\" }";
    let (cluster, set) = shop(&house, policy);
    let fails = |count: u64, exit: i32, arguments: &[&str], words: &str| {
        let (_, said) = drill(&house, &[&[cluster.as_str()], arguments].concat(), exit);
        assert!(said.contains(words), "{said}");
        let proof = proof(&house, &cluster);
        assert_eq!(
            (&proof["last_drill"]["result"], &proof["failures_since_success"]),
            (&"unjudged".into(), &count.into())
        );
        let last = proof["last_drill"]["message"].as_str().expect("words");
        assert!(last.contains(words), "{last}");
        assert!(events(&house, "drill.unjudged").last().expect("an event").contains(words));
    };
    fails(1, 12, &[], "no key was given");
    fails(2, 5, &["--backup", "2020"], "no such backup");
    let repository = house.path("repo");
    std::fs::rename(&repository, house.path("away")).expect("moved");
    let (_, said) = drill(&house, &[&cluster, "--identity", &key], 10);
    assert!(said.contains("repository \"local\" cannot be used"), "{said}");
    std::fs::rename(house.path("away"), &repository).expect("moved back");
    let mut command = house.command(&["drill", &cluster, "--identity", &key]);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    crate::house::run(command).exits(14);
    let told = proof(&house, &cluster);
    assert_eq!((&told["failures_since_success"], &told["freshness"]), (&4.into(), &"critical".into()));
    assert!(told["last_drill"]["message"].as_str().expect("words").contains("does not answer"));
    assert_eq!(events(&house, "drill.unjudged").len(), 4);

    let explained = house.pglife(&["explain", &cluster, "drill"]).ok().stdout;
    for words in ["ended with exit 14", "ended with exit 10", "no such backup"] {
        assert!(explained.contains(words), "{explained}");
    }
    let checked = house.pglife(&["check", &cluster]).exits(30).stdout;
    assert!(checked.contains("no backup is proven; 4 drills since came to no proof"), "{checked}");
    assert!(certificates(&house, &cluster).is_empty());
    assert_eq!(of_drills(&house), Vec::<String>::new());

    // With the key it is proven, and nothing of that is left to worry about.
    drill(&house, &[&cluster, "--identity", &key], 0);
    let told = proof(&house, &cluster);
    assert_eq!((&told["last_drill"]["result"], &told["failures_since_success"]), (&"proven".into(), &0.into()));
    assert_eq!(told["last_proven"]["set"], set.as_str());
    assert!(events(&house, "drill.proven")[0].contains(&set));
    house.pglife(&["check", &cluster]).ok();
    // The rehearsal of an upgrade is no drill, whatever comes of it.
    drill(&house, &[&cluster, "--to", "18"], 12);
    assert_eq!(proof(&house, &cluster)["failures_since_success"], 0);
    assert_eq!(events(&house, "drill.rehearsal_failed").len(), 1);
}

#[test]
fn a_drill_without_its_image_is_in_the_record() {
    let house = House::new("noimage");
    let (cluster, set) = shop(&house, "");
    // As if it had been taken from a major that this host has no image of.
    forge(&house.set_folder(&cluster, &set), |manifest| {
        manifest.server.major = "16".parse().expect("a major");
        manifest.image.id = format!("sha256:{}", "0".repeat(64));
        manifest.image.name = "pglife/postgres:16".to_owned();
    });
    let (_, said) = drill(&house, &[&cluster], 5);
    assert!(said.contains("image pglife/postgres:16 is not on host") && said.contains("next: "), "{said}");
    assert!(events(&house, "drill.unjudged")[0].contains("pglife/postgres:16"));
    assert_eq!(proof(&house, &cluster)["last_drill"]["result"], "unjudged");
    assert!(certificates(&house, &cluster).is_empty());
}
