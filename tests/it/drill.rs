//! Drills: a good backup is proven, a bad one is told apart from a broken machine, and nothing is left behind.

mod bucket;
mod kept;
mod killed;
mod restarted;
mod unjudged;

use std::path::Path;

use pglife::backup_set::{Commit, Content, Digest, Manifest, Measured};
use serde_json::Value;

use crate::house::{House, docker, sql, wait_for};

/// What a drill leaves or has in Docker.
pub fn of_drills(house: &House) -> Vec<String> {
    let mut all = Vec::new();
    for kind in [&["ps", "-a", "--format", "{{.Names}}"][..], &["volume", "ls", "--format", "{{.Name}}"]] {
        let mark = format!("{}-drill", house.name("source"));
        all.extend(docker(kind).lines().filter(|name| name.contains(&mark)).map(str::to_owned));
    }
    all
}

/// Drills the cluster and returns the answer, whatever its exit code.
#[track_caller]
fn drill(house: &House, arguments: &[&str], exit: i32) -> (Value, String) {
    let ended = house.pglife(&[&["drill"], arguments, &["-o", "json"]].concat()).exits(exit);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
    (answer["items"][0].clone(), ended.stderr)
}

#[track_caller]
fn certificates(house: &House, cluster: &str) -> Vec<Value> {
    house.items(&["drill", "list", cluster])
}

/// Starts writers on a database; they end with the container.
fn write_meanwhile(container: &str, database: &str) {
    let busy = "create table if not exists busy (id bigserial primary key, at timestamptz default now(), t text)";
    sql(container, database, busy);
    let script = "insert into busy (t) select md5(random()::text) from generate_series(1, 20); \
                  delete from busy where id % 7 = 3; update busy set t = t || 'x' where id % 11 = 5;";
    docker(&["exec", container, "sh", "-c", &format!("printf '%s\n' \"{script}\" >/tmp/busy.sql")]);
    // So many a second: more would keep the machine from what is tested.
    let bench = ["pgbench", "-n", "-f", "/tmp/busy.sql", "-c", "2", "-R", "50", "-T", "300", database];
    docker(&[&["exec", "-d", "-u", "postgres", container], &bench[..]].concat());
    wait_for("the first rows", || sql(container, database, "select count(*) > 100 from busy") == "t");
}

/// A cluster with everything is backed up and drilled while somebody writes to it.
pub fn is_proven_while_written_to(house: &House, cluster: &str, facts: &str) {
    let policy = house.path(&format!("policies/{cluster}.toml"));
    let text = std::fs::read_to_string(&policy).expect("a policy");
    std::fs::write(&policy, format!("{text}\n[drill]\nfacts = \"{facts}\"\n")).expect("written");
    let container = format!("{cluster}-db");
    write_meanwhile(&container, "everything");
    let set = house.backup(cluster);
    // The server itself warns of subscriptions and MD5 passwords.
    let ended = house.pglife(&["drill", cluster, "-o", "json"]);
    assert!([0, 3].contains(&ended.exit), "{}", ended.stderr);
    let (answer, said): (Value, _) = (serde_json::from_str(&ended.stdout).expect("JSON"), ended.stderr);
    let answer = &answer["items"][0];
    assert_eq!((&answer["result"], &answer["set"]), (&"proven".into(), &set.as_str().into()), "{said}");
    let extent = |what: &str| answer["extent"][what].as_u64().expect("a number");
    assert!(extent("databases") > 20 && extent("tables") > 50, "{}", answer["extent"]);
    let hashed = if facts == "counts" { 0..=0 } else { extent("tables") / 2..=extent("tables") };
    assert!(hashed.contains(&extent("hashed")), "{}", answer["extent"]);
    assert_eq!(of_drills(house), Vec::<String>::new());
    let [certificate] = &certificates(house, cluster)[..] else { panic!("one certificate") };
    assert_eq!((&certificate["verdict"], &certificate["chained"]), (&"proven".into(), &true.into()));
}

/// A small cluster with a backup.
pub fn shop(house: &House, policy: &str) -> (String, String) {
    let cluster = house.cluster("source", "17", policy);
    let container = format!("{cluster}-db");
    sql(&container, "postgres", "create role keeper login password 'x'");
    sql(&container, "postgres", "create database orders");
    let tables = "create table item (id serial primary key, name text); \
                  insert into item (name) select 'item ' || g from generate_series(1, 1000) g; \
                  create index item_name on item (name); grant select on item to keeper; \
                  create table \"we ird\" (j json, p point); insert into \"we ird\" values ('{\"a\": 1}', '(1,2)')";
    sql(&container, "orders", tables);
    let set = house.backup(&cluster);
    (cluster, set)
}

/// Makes `folder` a set whose digests are right again after `change` has changed it: what digests do not find, facts must.
fn forge(folder: &Path, change: impl FnOnce(&mut Manifest)) {
    let bytes = std::fs::read(folder.join("manifest.json")).expect("a manifest");
    let mut manifest = Manifest::from_bytes(&bytes).expect("sealed");
    change(&mut manifest);
    let bytes = manifest.to_bytes();
    let commit = Commit::to_manifest(&manifest, &bytes).to_bytes();
    for (name, bytes) in [("manifest.json", bytes), ("COMMIT", commit)] {
        std::fs::remove_file(folder.join(name)).expect("removed");
        std::fs::write(folder.join(name), bytes).expect("written");
    }
}

/// Rewrites the facts of a set with `change`, and its digests with them.
pub fn forge_facts(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("facts.json");
    let mut facts: Value = serde_json::from_slice(&std::fs::read(&file).expect("facts")).expect("JSON");
    change(&mut facts);
    let bytes = serde_json::to_vec(&facts).expect("JSON");
    std::fs::remove_file(&file).expect("removed");
    std::fs::write(&file, &bytes).expect("written");
    forge(folder, |manifest| {
        let object = manifest.objects.iter_mut().find(|object| object.content == Content::Facts).expect("facts");
        (object.stored, object.plain) = (Measured::of(&bytes), Measured::of(&bytes));
    });
}

#[test]
fn a_backup_is_proven_used_and_found_bad() {
    let house = House::new("drill");
    let policy = "[drill]\nrto_budget = \"1h\"\nassert = [{ name = \"items\", database = \"orders\", sql = \"select count(*) from item\", min = 1000 }]\n\
                  [freshness]\ndrill = { warn = \"2d\", critical = \"8d\" }";
    let (cluster, set) = shop(&house, policy);
    let status = |house: &House| house.items(&["status", &cluster])[0]["proof"].clone();
    assert_eq!(status(&house)["freshness"], "critical");
    house.pglife(&["backups", "show", &cluster, "--backup", "latest:proven"]).exits(5);

    let junit = house.path("drill.xml").to_string_lossy().into_owned();
    let (answer, said) = drill(&house, &[&cluster, "--junit", &junit], 0);
    assert_eq!((&answer["result"], &answer["verdict"]), (&"proven".into(), &"proven".into()), "{said}");
    let checks: Vec<&str> =
        answer["checks"].as_array().expect("checks").iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(checks, ["restore", "databases", "facts", "assertion items"]);
    assert!(answer["rto_seconds"].as_f64() > Some(0.1));
    let xml = std::fs::read_to_string(&junit).expect("a report");
    assert!(xml.contains("failures=\"0\" errors=\"0\"") && xml.contains("tests=\"4\""), "{xml}");
    assert_eq!(of_drills(&house), Vec::<String>::new());
    let status_now = status(&house);
    assert_eq!((&status_now["freshness"], &status_now["last_proven"]["set"]), (&"ok".into(), &set.as_str().into()));
    let newer = house.backup(&cluster);
    assert_ne!(newer, set);
    let shown = house.items(&["backups", "show", &cluster, "--backup", "latest:proven"]);
    assert_eq!(shown[0]["set"], set.as_str());

    // A changed row that every digest vouches for: found by the facts, named, and certified as bad; the chain goes on.
    let folder = house.set_folder(&cluster, &newer);
    forge_facts(&folder, |facts| {
        let tables = facts["databases"]["orders"]["tables"].as_array_mut().expect("tables");
        let item = tables.iter_mut().find(|table| table["name"] == "item").expect("the table");
        item["content"]["rows"]["count"] = 1001.into();
    });
    let (_, said) = drill(&house, &[&cluster, "--backup", &newer, "--junit", &junit], 20);
    let words = "database \"orders\": table public.item: 1,001 rows backed up, 1,000 restored";
    assert!(said.contains(words), "{said}");
    assert!(std::fs::read_to_string(&junit).expect("a report").contains("failures=\"1\" errors=\"0\""));
    let verdicts: Vec<Value> = certificates(&house, &cluster).iter().map(|one| one["verdict"].clone()).collect();
    assert_eq!(verdicts, ["proven", "bad"]);
    let shown = house.items(&["backups", "show", &cluster, "--backup", "latest:proven"]);
    assert_eq!(shown[0]["set"], set.as_str());
    let listed = house.items(&["backups", "list", &cluster]);
    assert!(listed[0]["proven_at"].is_string() && listed[1]["proven_at"].is_null());
    // A certificate that is taken away is missed.
    let folder = house.path("repo").join(&cluster);
    let first = crate::house::files_below(&folder).into_iter().find(|file| {
        let path = file.to_string_lossy();
        path.contains("/drills/") && path.contains(&set)
    });
    std::fs::remove_file(first.expect("a certificate")).expect("removed");
    house.pglife(&["drill", "list", &cluster]).exits(3).says(&["does not follow the one before it"]);
}

/// What is no fault of the backup is no verdict; the ways to spoil a backup itself are the selftest's.
#[test]
fn trouble_is_no_verdict() {
    let house = House::new("drillbad");
    let (cluster, set) = shop(&house, "");
    let folder = house.set_folder(&cluster, &set);
    let whole = house.path("whole");
    let copy = |from: &Path, to: &Path| {
        let mut cp = std::process::Command::new("cp");
        cp.arg("-a").arg(from).arg(to);
        crate::house::run(cp).ok();
    };
    copy(&folder, &whole);
    let again = || {
        std::fs::remove_dir_all(&folder).expect("removed");
        copy(&whole, &folder);
    };
    // A set without facts proves nothing; that is no verdict, and leaves no certificate.
    forge(&folder, |manifest| manifest.objects.retain(|object| object.content != Content::Facts));
    let (_, said) = drill(&house, &[&cluster], 1);
    assert!(said.contains("not checked: facts") && said.contains("take a new backup"), "{said}");
    again();
    // Neither is an engine that does not answer.
    let junit = house.path("drill.xml");
    let mut command = house.command(&["drill", &cluster, "--junit", &junit.to_string_lossy()]);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    crate::house::run(command).exits(14);
    assert!(std::fs::read_to_string(&junit).expect("a report").contains("failures=\"0\" errors=\"1\""));
    assert_eq!(certificates(&house, &cluster), Vec::<Value>::new());
    // And the set itself is as good as ever.
    drill(&house, &[&cluster], 0);
}

/// Where nobody wrote since the last dump, a copy of the volumes must hold what that dump's facts say.
#[test]
fn a_copy_of_the_volumes_is_compared_with_the_dump_before_it() {
    let house = House::new("drillbeside");
    let (cluster, _) = shop(&house, "");
    let container = format!("{cluster}-db");
    let again = |policy: &str| {
        sql(&container, "postgres", &format!("alter system set {policy}"));
        sql(&container, "postgres", "select pg_reload_conf()");
    };
    // What it writes by itself is a write too.
    again("autovacuum = off");
    sql(&container, "orders", "create unlogged table passing as select 1 as n");
    let dump = house.backup(&cluster);
    house.items(&["backup", &cluster, "--kind", "volume"]);
    let names = |answer: &Value| -> Vec<String> {
        let checks = answer["checks"].as_array().expect("checks");
        checks.iter().map(|check| check["name"].as_str().expect("a name").to_owned()).collect()
    };
    let volume = [&cluster[..], "--backup", "latest:volume"];
    let (answer, said) = drill(&house, &volume, 0);
    let beside = format!("facts of {dump}");
    assert!(names(&answer).contains(&beside) && answer["extent"]["hashed"].as_u64() > Some(1), "{answer} {said}");
    // They are really compared.
    forge_facts(&house.set_folder(&cluster, &dump), |facts| {
        let tables = facts["databases"]["orders"]["tables"].as_array_mut().expect("tables");
        let item = tables.iter_mut().find(|table| table["name"] == "item").expect("the table");
        item["content"]["rows"]["count"] = 1001.into();
    });
    let (_, said) = drill(&house, &volume, 20);
    assert!(
        said.contains(&beside) && said.contains("table public.item: 1,001 rows backed up, 1,000 restored"),
        "{said}"
    );
    // Somebody wrote, and went: nothing can be compared, and nothing is held against the copy.
    sql(&container, "orders", "begin; insert into item (name) values ('gone'); rollback");
    house.items(&["backup", &cluster, "--kind", "volume"]);
    let (answer, _) = drill(&house, &volume, 0);
    assert!(!names(&answer).contains(&beside), "{answer}");
}

/// A copy of the volumes is proven by its files, recovery, control data, page checksums and pg_amcheck; so is an encrypted dump, whose certificate
/// tells no names. A rehearsal in a newer major is no proof.
#[test]
fn volumes_encrypted_dumps_and_rehearsals() {
    let house = House::new("drillvol");
    let [key, _] = house.encrypt();
    let (cluster, set) = shop(&house, "");
    let volumes = house.items(&["backup", &cluster, "--kind", "volume"])[0]["set"].as_str().expect("an id").to_owned();
    let (answer, said) = drill(&house, &[&cluster, "--backup", "latest:volume", "--identity", &key], 0);
    assert_eq!((&answer["result"], &answer["set"]), (&"proven".into(), &volumes.as_str().into()), "{said}");
    let checks = answer["checks"].as_array().expect("checks").iter().filter_map(|check| check["name"].as_str());
    // The server may have written since the dump, all by itself.
    let checks: Vec<&str> = checks.filter(|name| !name.starts_with("facts of ")).collect();
    assert_eq!(checks, ["files", "restore", "databases", "structure", "control data", "page checksums"]);

    // Without a key nothing is known.
    drill(&house, &[&cluster, "--backup", &set], 12);
    let (answer, said) = drill(&house, &[&cluster, "--backup", &set, "--identity", &key], 0);
    assert_eq!(answer["result"], "proven", "{said}");
    for file in crate::house::files_below(&house.path("repo")) {
        let text = std::fs::read(&file).expect("readable");
        let told = String::from_utf8_lossy(&text);
        assert!(!told.contains("keeper") && !told.contains("we ird"), "{} tells a name", file.display());
    }
    assert_eq!(Digest::of(b"").to_string().len(), 64);

    let (answer, said) = drill(&house, &[&cluster, "--backup", &set, "--identity", &key, "--to", "18"], 0);
    assert_eq!((&answer["result"], &answer["rehearsal"]), (&"proven".into(), &true.into()), "{said}");
    assert_eq!(certificates(&house, &cluster).len(), 2, "a rehearsal leaves no certificate");
    assert_eq!(of_drills(&house), Vec::<String>::new());
}
