//! An upgrade ends *upgraded* or *as before*, wherever it is cut, and says which.

mod adopted;
mod by_itself;
mod everything;
mod gate;
mod rollback;
mod trouble;

use serde_json::Value;

use crate::house::{House, docker, sql, try_docker, wait_for_server};

/// Something of most kinds, with a number to recognise it by.
const CONTENT: &str = "create table t as select i, md5(i::text) m from generate_series(1, 5000) i; \
    create index on t (m); create sequence s; select setval('s', 4711); \
    create table p (i int, k int) partition by list (k); create table p1 partition of p for values in (1); \
    insert into p select i, 1 from generate_series(1, 100) i; select lo_from_bytea(4242, 'large'); \
    create role bob login password 'secret'; alter role bob set work_mem = '3MB'; comment on table t is 'it''s';";

pub fn fill(container: &str) {
    sql(container, "postgres", CONTENT);
    sql(container, "postgres", "alter system set work_mem = '9MB'");
    sql(container, "postgres", r#"create database "we ird""#);
    sql(container, "we ird", "create table x as select 1 as one");
    let line = "echo 'host all bob 192.0.2.0/24 scram-sha-256' >>$PGDATA/pg_hba.conf";
    docker(&["exec", container, "sh", "-c", line]);
}

/// A cluster of `major` with content, whose server has read all of its settings; and its database container.
fn filled(house: &House, major: &str) -> (String, String) {
    filled_with(house, major, "")
}

/// The same, with `more` in its policy.
fn filled_with(house: &House, major: &str, more: &str) -> (String, String) {
    let cluster = house.cluster("c", major, more);
    let container = format!("{cluster}-db");
    fill(&container);
    docker(&["restart", &container]);
    wait_for_server(&container);
    (cluster, container)
}

/// All that a client sees of the content.
pub fn seen(container: &str) -> String {
    let text = "select (select count(*) || ' ' || sum(i) || ' ' || max(m) from t), (select count(*) from p), \
        (select last_value from s), encode(lo_get(4242), 'escape'), obj_description('t'::regclass), \
        current_setting('work_mem'), (select a.rolpassword is not null and r.rolconfig = '{work_mem=3MB}' \
        from pg_authid a join pg_roles r using (rolname) where rolname = 'bob'), (select count(*) from pg_hba_file_rules where user_name = '{bob}')";
    sql(container, "postgres", text) + &sql(container, "we ird", "select one from x")
}

fn major(container: &str) -> String {
    sql(container, "postgres", "select current_setting('server_version_num')::int / 10000")
}

/// Containers and volumes that carry the cluster's label, as Docker lists them.
pub fn things(cluster: &str) -> Vec<String> {
    let label = format!("label=pglife.cluster={cluster}");
    let mut found: Vec<String> = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}} {{.State}}"])
        .lines()
        .chain(docker(&["volume", "ls", "--filter", &label, "--format", "{{.Name}}"]).lines())
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

pub fn phase(house: &House, cluster: &str) -> String {
    let ended = house.pglife(&["upgrade", "status", cluster, "-o", "json"]);
    let answer: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    answer["items"][0]["phase"].as_str().expect("a phase").to_owned()
}

fn moves(from: &str, to: &str, method: &str) -> Value {
    let house = House::new(&format!("up{from}to{to}{}", &method[..1]));
    let (cluster, container) = filled(&house, from);
    let before = seen(&container);
    assert!(before.contains("9MB|t|1"), "{before}");

    let done = house.items(&["upgrade", &cluster, "--to", to, "--method", method, "--yes"]).remove(0);
    assert_eq!((done["phase"].as_str(), done["from"].as_str()), (Some("upgraded"), Some(from)));
    assert_eq!(done["method"], method);
    assert!(done["report"]["compared"]["rows"].as_u64().expect("a number") > 5000);
    wait_for_server(&container);
    assert_eq!(major(&container), to);
    assert_eq!(seen(&container), before);
    // Statistics are there, partitioned tables included.
    assert_eq!(
        sql(&container, "postgres", "select count(distinct tablename) from pg_stats where tablename in ('t', 'p')"),
        "2"
    );

    // Everything else of pglife works on it, and the old server goes only when asked.
    house.backup(&cluster);
    house.pglife(&["cluster", "remove", &cluster, "--volumes", "--yes"]).exits(4).says(&["finalize"]);
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).ok();
    let left = things(&cluster);
    assert!(left.iter().all(|thing| !thing.contains(&format!("pg{from}"))), "{left:?}");
    assert_eq!(seen(&container), before);
    house.pglife(&["upgrade", "rollback", &cluster, "--accept-data-loss"]).exits(5);
    done["report"].clone()
}

#[test]
fn from_13_to_18() {
    moves("13", "18", "dump");
}

#[test]
fn from_15_to_17() {
    moves("15", "17", "dump");
}

/// The old image is three Debian releases older: other libraries, another order of text.
#[test]
fn from_13_to_18_by_pg_upgrade() {
    let report = moves("13", "18", "pg_upgrade");
    assert!(report["identical"]["files"].as_u64().expect("a number") > 5, "{report}");
    assert!(report["reindexed"].as_u64().expect("a number") > 0, "{report}");
    assert_eq!(report["backup"], Value::Null);
}

#[test]
fn what_stands_in_the_way_is_told_before_anything_is_touched() {
    let house = House::new("upbad");
    let cluster = house.cluster("c", "15", "");
    let container = format!("{cluster}-db");
    docker(&["exec", &container, "sh", "-c", "echo max_prepared_transactions=2 >/config/p.conf"]);
    docker(&["restart", &container]);
    wait_for_server(&container);
    sql(&container, "postgres", "create role r; alter role r set force_parallel_mode = on");
    sql(&container, "postgres", "create database closed allow_connections false");
    sql(&container, "postgres", "begin; create table q (i int); prepare transaction 'pending'");
    docker(&["exec", &container, "sh", "-c", "echo \"log_min_duration_statement = 5\" >>$PGDATA/postgresql.conf"]);
    let before = things(&cluster);

    let parts = ["force_parallel_mode", "\"closed\"", "pending", "log_min_duration_statement"];
    let planned = house.pglife(&["upgrade", &cluster, "--to", "17", "--plan", "--exit-code", "-o", "json"]).exits(4);
    for part in parts {
        assert!(planned.stdout.contains(&part.replace('"', "\\\"")), "{}", planned.stdout);
    }
    house.pglife(&["upgrade", &cluster, "--to", "17", "--yes"]).exits(4).says(&parts).says(&["nothing was touched"]);
    house.pglife(&["upgrade", &cluster, "--to", "15", "--plan"]).exits(4).says(&["is not newer"]);
    house.pglife(&["upgrade", &cluster, "--to", "13", "--plan"]).exits(4).says(&["is not newer"]);
    house.pglife(&["upgrade", &cluster, "--to", "99", "--plan"]).exits(5).says(&["pglife/postgres:99"]);
    house.pglife(&["upgrade", &cluster, "--to", "x"]).exits(2);
    house.pglife(&["upgrade", &cluster]).exits(2);
    house.pglife(&["upgrade", "resume", &cluster]).exits(5);
    assert_eq!(things(&cluster), before);
    assert_eq!(major(&container), "15");
}

/// Runs the command with a failpoint, which must kill it.
pub fn killed(house: &House, arguments: &[&str], point: &str) {
    let mut command = house.command(arguments);
    command.env("PGLIFE_FAILPOINT", point);
    let ended = crate::house::run(command);
    assert_eq!(ended.exit, -1, "{point} was not reached: {}", ended.stderr);
}

#[test]
fn killed_before_the_commit_it_ends_as_before() {
    let steps = ["stop", "source", "facts", "backup", "target", "restore", "settle", "compare", "proof"];
    ends_as_before("dump", ("17", "18"), &steps, "restore");
}

#[test]
fn killed_before_the_commit_of_pg_upgrade_it_ends_as_before() {
    let steps = ["programs", "volume", "stop", "source", "facts", "transfer", "target", "settle", "compare", "proof"];
    ends_as_before("pg_upgrade", ("15", "17"), &steps, "target");
}

/// Kills it after each of its journalled steps; after one of them on its way back, too.
fn ends_as_before(method: &str, (from, to): (&str, &str), steps: &[&str], back_after: &str) {
    let house = House::new(&format!("upkill{}", &method[..1]));
    let (cluster, container) = filled(&house, from);
    let (content, world) = (&seen(&container), &things(&cluster));
    let (house, cluster, container) = (&house, cluster.as_str(), container.as_str());
    let begin = ["upgrade", cluster, "--to", to, "--method", method, "--yes"];
    for step in steps {
        killed(house, &begin, &format!("after:{step}"));
        assert_eq!(phase(house, cluster), "open", "{step}");
        house.pglife(&["backup", cluster]).exits(11).says(&["upgrade resume"]);
        house.pglife(&begin).exits(11).says(&["upgrade resume"]);
        if *step == back_after {
            for point in ["after:remove-trials", "after:start-old", "before:remove-new-volume", "before:as-before"] {
                killed(house, &["upgrade", "resume", cluster], point);
            }
        }
        house.pglife(&["upgrade", "resume", cluster]).exits(22);
        wait_for_server(container);
        assert_eq!((&seen(container), &things(cluster)), (content, world), "{method} {step}");
        assert_eq!(phase(house, cluster), "as-before", "{step}");
        let policy = docker(&["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", container]);
        assert_eq!(policy.trim(), "unless-stopped", "{step}");
    }
    killed(house, &begin, "before:committed");
    house.pglife(&["upgrade", "resume", cluster]).exits(22);
    wait_for_server(container);
    assert_eq!((&seen(container), &things(cluster)), (content, world), "{method}");
}

#[test]
fn killed_after_the_commit_it_ends_upgraded_and_goes_back_when_asked() {
    let points = [
        "committed",
        "set-database-aside",
        "set-data-aside",
        "make-data",
        "make-database",
        "start-new",
        "write-policy",
    ];
    ends_upgraded("dump", "17", "18", &points);
}

/// What comes after the commit is the same for both methods.
#[test]
fn killed_after_the_commit_of_pg_upgrade_it_ends_upgraded_and_goes_back_when_asked() {
    ends_upgraded("pg_upgrade", "15", "17", &["committed", "start-new"]);
}

fn ends_upgraded(method: &str, from: &str, to: &str, points: &[&str]) {
    let house = House::new(&format!("upkill2{}", &method[..1]));
    let (cluster, container) = filled(&house, from);
    let (content, world) = (seen(&container), things(&cluster));
    let mut first = true;
    for point in points {
        let begin = ["upgrade", &cluster, "--to", to, "--method", method, "--yes"];
        killed(&house, &begin, &format!("after:{point}"));
        assert_eq!(phase(&house, &cluster), "committed", "{point}");
        house.pglife(&["upgrade", "resume", &cluster]).ok();
        wait_for_server(&container);
        assert_eq!((major(&container), seen(&container)), (to.to_owned(), content.clone()), "{point}");
        assert_eq!(phase(&house, &cluster), "upgraded", "{point}");
        let running = things(&cluster).iter().filter(|thing| thing.ends_with(" running")).count();
        assert_eq!(running, 1, "{point}");

        let back = ["upgrade", "rollback", &cluster];
        if first {
            killed(&house, &back, "after:remove-new-database");
            killed(&house, &["upgrade", "resume", &cluster], "after:bring-database-back");
            house.pglife(&["upgrade", "resume", &cluster]).exits(22);
            first = false;
        } else {
            house.pglife(&back).ok();
        }
        wait_for_server(&container);
        assert_eq!((major(&container), seen(&container)), (from.to_owned(), content.clone()), "{point}");
        assert_eq!(things(&cluster), world, "{point}");
    }
    assert_eq!(try_docker(&["volume", "inspect", &format!("pglife-{cluster}-data-pg{to}")]).exit, 1);
}
