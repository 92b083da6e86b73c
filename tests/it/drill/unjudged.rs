//! Drills that come to no verdict: they are recorded, told and counted, and prove nothing in either way.

use crate::daemon::events;
use crate::house::{House, docker};

use super::{certificates, drill, of_drills, shop};

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
    assert!(explained.contains("no key was given") && explained.contains("ended with exit 10"), "{explained}");
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
    assert_eq!(events(&house, "drill.rehearsed").len(), 1);
}

#[test]
fn a_drill_without_its_image_is_in_the_record() {
    let house = House::new("noimage");
    // An image of the test's own, so that it can be taken away.
    let image = format!("{}:17", house.name("image"));
    let container = docker(&["create", "pglife/postgres:17"]);
    docker(&["commit", container.trim(), &image]);
    docker(&["rm", container.trim()]);
    let cluster = house.policy("source", "17", &format!("image = \"{image}\"\n"));
    house.pglife(&["cluster", "create", &cluster]).ok();
    house.backup(&cluster);
    house.pglife(&["cluster", "remove", &cluster, "--yes"]).ok();
    docker(&["rmi", &image]);
    let (_, said) = drill(&house, &[&cluster], 5);
    assert!(said.contains(&image) && said.contains("next: "), "{said}");
    assert!(events(&house, "drill.unjudged")[0].contains(&image));
    assert_eq!(proof(&house, &cluster)["last_drill"]["result"], "unjudged");
    assert!(certificates(&house, &cluster).is_empty());
}
