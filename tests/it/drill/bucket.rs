//! Backups that are in a bucket only are proven from there: the throwaway server itself reaches nothing.

use crate::house::{House, sql};
use crate::s3::Server;

use super::{certificates, drill, of_drills};

#[test]
fn a_dump_and_a_copy_of_the_volumes_are_proven_from_a_bucket() {
    let house = House::new("drills3");
    let server = Server::start(&house, "s3");
    server.offsite(&house, "pglife-drills");
    let cluster = house.cluster("source", "17", "[backup.dump]\nrepos = [\"offsite\"]\n[drill]\nrto_budget = \"1h\"");
    let container = format!("{cluster}-db");
    sql(&container, "postgres", "create database orders");
    sql(
        &container,
        "orders",
        "create table item as select n as id, md5(n::text) as label from generate_series(1, 20000) n",
    );
    let dump = house.backup(&cluster);
    let volume = house.items(&["backup", &cluster, "--kind", "volume"])[0]["set"].as_str().expect("an id").to_owned();
    // Nothing of it is on this machine.
    assert!(!house.path(&format!("repo/{cluster}")).exists());

    // Without a word on which: the newest that is not proven, then the other one.
    for (set, stage) in [(&volume, "unpack"), (&dump, "restore")] {
        let (answer, said) = drill(&house, &[&cluster, "--backup", "latest:unproven"], 0);
        assert_eq!((&answer["result"], &answer["set"]), (&"proven".into(), &set.as_str().into()), "{said}");
        let stages: Vec<&str> =
            answer["stages"].as_array().expect("stages").iter().filter_map(|it| it["name"].as_str()).collect();
        assert!(stages.contains(&"fetch") && stages.contains(&stage), "{stages:?}");
        assert_eq!(answer["certified_in"], serde_json::json!(["offsite"]));
        assert_eq!(of_drills(&house), Vec::<String>::new());
    }
    let listed = certificates(&house, &cluster);
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|one| one["chained"] == true && one["recovery"]["within_budget"] == true), "{listed:?}");
    // Both are: the newest is as good as any.
    let (answer, _) = drill(&house, &[&cluster, "--backup", "latest:unproven"], 0);
    assert_eq!(answer["set"], volume.as_str());
    let shown = house.items(&["drill", "show", &cluster]);
    assert_eq!((&shown[0]["recovery"]["kind"], &shown[0]["recovery"]["measurements"]), (&"volume".into(), &1.into()));

    // A bucket that does not answer is no verdict.
    server.kill();
    drill(&house, &[&cluster], 10);
    let status = house.pglife(&["status", &cluster, "-o", "json"]).exits(3);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["items"][0]["proof"]["last_drill"]["result"], "unjudged");
}
