//! A container that somebody else made moves to a newer major: its place is taken by one that is like it in everything else.

use serde_json::{Value, json};

use super::{fill, killed, major, phase, seen, trouble};
use crate::adopt::OFFICIAL;
use crate::house::{House, docker, free_port, sql, try_docker, wait_for, wait_for_server};

const PGDATA: &str = "/var/lib/postgresql/data";

/// What is the container's own, as Docker shows it; the engine lists mounts and aliases in any order.
fn own(container: &str) -> Value {
    let text = docker(&["inspect", container]);
    let found: Value = serde_json::from_str::<Value>(&text).expect("JSON")[0].take();
    let host = &found["HostConfig"];
    let mut environment: Vec<&str> =
        found["Config"]["Env"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    environment.retain(|variable| variable.starts_with("POSTGRES_") || variable.starts_with("TZ="));
    let mut mounts: Vec<&str> =
        found["Mounts"].as_array().expect("a list").iter().filter_map(|mount| mount["Destination"].as_str()).collect();
    // What the image of 18 declares above it.
    mounts.retain(|mount| *mount != "/var/lib/postgresql");
    mounts.sort_unstable();
    let label = &found["Config"]["Labels"]["app"];
    let kept = ["Memory", "RestartPolicy", "PortBindings", "NetworkMode"].map(|key| &host[key]);
    json!([kept, environment, mounts, label, found["Config"]["Healthcheck"], found["Config"]["Cmd"]])
}

fn aliases(container: &str) -> String {
    docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{json .Aliases}}{{end}}", container])
}

fn volume_of(container: &str) -> String {
    let format =
        format!("{{{{range .Mounts}}}}{{{{if eq .Destination \"{PGDATA}\"}}}}{{{{.Name}}}}{{{{end}}}}{{{{end}}}}");
    docker(&["inspect", "-f", &format, container]).trim().to_owned()
}

/// Containers and volumes with the house's name.
fn things(house: &House) -> Vec<String> {
    let all = docker(&["ps", "-a", "--format", "{{.Names}} {{.State}}"])
        + &docker(&["volume", "ls", "--format", "{{.Name}}"]);
    let mut mine: Vec<String> = all.lines().filter(|line| line.contains(&house.name(""))).map(str::to_owned).collect();
    mine.sort();
    mine
}

/// A network of the test, removed at its end.
struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        try_docker(&["network", "rm", &self.0]);
    }
}

#[test]
fn an_adopted_container_is_replaced_by_one_that_is_like_it() {
    let network = Network(format!("it-upadopt-{}", std::process::id()));
    let house = House::new("upadopt");
    docker(&["network", "create", &network.0]);
    house.write("init.sql", "create table made_at_the_first_start (i int)");
    house.write("word", "S3cret 'word'\n");
    let (data, port) = (format!("{}:{PGDATA}", house.volume("pgdata")), format!("127.0.0.1:{}:5432", free_port()));
    let script = format!("{}:/docker-entrypoint-initdb.d/init.sql:ro", house.path("init.sql").display());
    let word = format!("{}:/word:ro", house.path("word").display());
    let options = [
        "-v",
        &data,
        "-v",
        &script,
        "-v",
        &word,
        "-p",
        &port,
        "-e",
        "POSTGRES_PASSWORD_FILE=/word",
        "-e",
        "TZ=Europe/Berlin",
    ];
    let more = ["--network", &network.0, "--network-alias", "db", "--memory", "700m", "--restart", "unless-stopped"];
    let check = [
        "--label",
        "app=shop",
        "--health-cmd",
        "pg_isready -q",
        OFFICIAL,
        "postgres",
        "-c",
        "max_locks_per_transaction=77",
    ];
    let container = house.foreign("db", &[&options[..], &more, &check].concat());
    wait_for_server(&container);
    fill(&container);
    // Who may enter, and with what, is said in the data directory alone.
    let change = format!(
        "sed -i 's/^host all all 127.*/host all all 127.0.0.1\\/32 scram-sha-256/' {PGDATA}/pg_hba.conf && mkdir {PGDATA}/conf.d && \
         echo \"max_connections = 55\" >{PGDATA}/conf.d/a.conf && echo \"include_dir = 'conf.d'\" >>{PGDATA}/postgresql.conf && \
         chown -R postgres:postgres {PGDATA}/conf.d"
    );
    docker(&["exec", &container, "sh", "-c", &change]);
    docker(&["restart", &container]);
    wait_for_server(&container);
    let secret = house.path("word").to_string_lossy().into_owned();
    let cluster = house.name("shop");
    house.pglife(&["cluster", "adopt", &container, "--name", &cluster, "--password-file", &secret]).ok();
    let settings = "select current_setting('max_connections') || current_setting('max_locks_per_transaction')";
    let content = || {
        seen(&container)
            + &sql(&container, "postgres", settings)
            + &sql(&container, "postgres", "table made_at_the_first_start")
    };
    let (before, container_before, world) = (content(), own(&container), things(&house));
    assert!(before.contains("9MB|t|1") && before.ends_with("5577"), "{before}");
    let old_id = docker(&["inspect", "-f", "{{.Id}}", &container]);

    // Looked at, and nothing is touched.
    let to_18 = ["upgrade", &cluster, "--to", "18"];
    let plan = house.items(&[&to_18[..], &["--plan"]].concat()).remove(0);
    assert_eq!(
        (&plan["blocked"], &plan["plan"]["new_image"]["name"]),
        (&json!(false), &json!("pglife/test-official:18")),
        "{plan}"
    );
    assert_eq!(plan["plan"]["old_volume"], house.name("pgdata"));
    house
        .pglife(&["upgrade", &cluster, "--to", "19", "--plan"])
        .exits(5)
        .says(&["docker pull pglife/test-official:19", "--image"]);
    house
        .pglife(&[&to_18[..], &["--image", "pglife/postgres:18", "--plan"]].concat())
        .exits(4)
        .says(&["pglife's own", "--image"]);
    house.pglife(&[&to_18[..], &["--method", "pg_upgrade", "--plan"]].concat()).exits(4).says(&["--method dump"]);
    assert_eq!((content(), own(&container), things(&house)), (before.clone(), container_before.clone(), world.clone()));

    // Cut before the commit.
    let begin = [&to_18[..], &["--yes"]].concat();
    for step in ["source", "restore", "proof"] {
        killed(&house, &begin, &format!("after:{step}"));
        assert_eq!(phase(&house, &cluster), "open", "{step}");
        house.pglife(&["upgrade", "resume", &cluster]).exits(22);
        wait_for_server(&container);
        assert_eq!(
            (content(), own(&container), things(&house)),
            (before.clone(), container_before.clone(), world.clone()),
            "{step}"
        );
        assert_eq!(docker(&["inspect", "-f", "{{.Id}}", &container]), old_id, "{step}");
    }

    // Cut after it; and back.
    killed(&house, &begin, "after:set-database-aside");
    assert_eq!(phase(&house, &cluster), "committed");
    house.pglife(&["upgrade", "resume", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!(
        (major(&container), content(), own(&container)),
        ("18".to_owned(), before.clone(), container_before.clone())
    );
    assert!(aliases(&container).contains("\"db\""), "{}", aliases(&container));
    assert_eq!(volume_of(&container), format!("pglife-{cluster}-data-pg18"));
    let running = things(&house).iter().filter(|thing| thing.ends_with(" running")).count();
    assert_eq!(running, 1, "{:?}", things(&house));
    house.pglife(&["upgrade", "rollback", &cluster]).ok();
    wait_for_server(&container);
    assert_eq!((content(), own(&container), things(&house)), (before.clone(), container_before.clone(), world));
    assert_eq!(docker(&["inspect", "-f", "{{.Id}}", &container]), old_id);

    // For good: by the password that it always had, and by none other.
    let done = house.items(&begin).remove(0);
    assert_eq!((done["phase"].as_str(), done["report"]["left_to_do"].clone()), (Some("upgraded"), json!([])), "{done}");
    wait_for_server(&container);
    assert_eq!((major(&container), content(), own(&container)), ("18".to_owned(), before.clone(), container_before));
    let enter = |word: &str| {
        let word = format!("PGPASSWORD={word}");
        let psql = ["psql", "-X", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1"];
        try_docker(&[&["exec", "-e", &word, &container], &psql[..]].concat()).exit
    };
    assert_eq!((enter("S3cret 'word'"), enter("another"), enter("unused")), (0, 2, 2));
    house.backup(&cluster);
    house.pglife(&["upgrade", "finalize", &cluster, "--yes"]).ok();
    let left = things(&house);
    assert_eq!(try_docker(&["volume", "inspect", &house.name("pgdata")]).exit, 1, "{left:?}");
    assert_eq!((content(), left.len()), (before, 2), "{left:?}");
}

/// Nobody named its volume, and what would be lost or served twice is refused.
#[test]
fn what_cannot_be_replaced_is_told_before_anything_is_touched() {
    let house = House::new("upadoptbad");
    let start = |short: &str, options: &[&str]| {
        let container = house.foreign(short, &[options, &["-e", "POSTGRES_PASSWORD=x", OFFICIAL]].concat());
        wait_for_server(&container);
        house.pglife(&["cluster", "adopt", &container]).ok();
        container
    };
    let sockets = format!("{}:/var/run/postgresql", house.volume("sockets"));
    let wal = "POSTGRES_INITDB_WALDIR=/wal";
    let bad = start("bad", &["--rm", "-v", &sockets, "-e", wal, "-l", "com.docker.compose.project=shop"]);
    let before = things(&house);
    let plan = house.pglife(&["upgrade", &bad, "--to", "18", "--plan", "--exit-code"]).exits(4);
    let parts = ["--rm", "/wal", "socket folder", "docker compose up"];
    assert!(parts.iter().all(|part| plan.stdout.contains(part)), "{}", plan.stdout);
    house.pglife(&["upgrade", &bad, "--to", "18", "--yes"]).exits(4).says(&["nothing was touched"]);
    assert_eq!(things(&house), before);

    // Beside the data directory there may be something of somebody's. Its volume must be that of the user, who cannot take it.
    let anonymous = start("anonymous", &["--user", "999:999", "-e", &format!("PGDATA={PGDATA}/own")]);
    sql(&anonymous, "postgres", "create table t as select generate_series(1, 100) i");
    let volume = volume_of(&anonymous);
    house.pglife(&["upgrade", &anonymous, "--to", "18", "--yes"]).ok();
    wait_for_server(&anonymous);
    assert_eq!(
        (major(&anonymous), sql(&anonymous, "postgres", "select count(*) from t")),
        ("18".to_owned(), "100".to_owned())
    );
    let (old, new) = (volume.as_str(), volume_of(&anonymous));
    assert!(old != new && try_docker(&["volume", "inspect", old]).exit == 0, "{old} {new}");
    house.pglife(&["upgrade", "finalize", &anonymous, "--yes"]).ok().says(&[old, "stays"]);
    docker(&["volume", "rm", old]);
    assert_eq!(sql(&anonymous, "postgres", "select count(*) from t"), "100");
}

/// Data in a folder of the host go into another one beside it.
#[test]
fn a_folder_of_the_host_gets_a_new_one_beside_it() {
    let house = House::new("upadoptfold");
    std::fs::create_dir(house.path("data")).expect("a folder");
    let bind = format!("{}:{PGDATA}", house.path("data").display());
    let container = house.foreign("db", &["-v", &bind, "-e", "POSTGRES_PASSWORD=x", OFFICIAL]);
    wait_for_server(&container);
    house.pglife(&["cluster", "adopt", &container]).ok();
    sql(&container, "postgres", "create table t as select generate_series(1, 100) i");
    let rows = || sql(&container, "postgres", "select count(*) from t");
    let folders = || -> Vec<String> {
        let all = std::fs::read_dir(house.path("")).expect("a folder");
        let names = all.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut found: Vec<String> = names.filter(|name| name.starts_with("data")).collect();
        found.sort();
        found
    };
    let version = |folder: &str| std::fs::read_to_string(house.path(folder).join("PG_VERSION")).expect("a version");
    let (begin, world) = (["upgrade", &container, "--to", "18", "--yes"], things(&house));

    // Interrupted, it goes back by itself, and lets go of the folder.
    let interrupted = trouble::begin(&house, &container, "18", "dump");
    wait_for("the new folder", || folders().len() == 2);
    let id = rustix::process::Pid::from_raw(i32::try_from(interrupted.id()).expect("an id")).expect("not zero");
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("sent");
    trouble::ended(interrupted).exits(130);
    wait_for_server(&container);
    assert_eq!((phase(&house, &container).as_str(), rows().as_str()), ("as-before", "100"));
    assert_eq!((things(&house), folders()), (world.clone(), vec!["data".to_owned()]));

    killed(&house, &begin, "after:restore");
    assert_eq!(folders().len(), 2, "{:?}", folders());
    house.pglife(&["upgrade", "resume", &container]).exits(22);
    wait_for_server(&container);
    assert_eq!((rows(), things(&house), folders()), ("100".to_owned(), world.clone(), vec!["data".to_owned()]));

    house.pglife(&begin).ok();
    wait_for_server(&container);
    assert_eq!((major(&container), rows()), ("18".to_owned(), "100".to_owned()));
    let [old, new] = folders().try_into().expect("two folders");
    assert_eq!((version(&old).trim(), version(&new).trim()), ("17", "18"));
    let format = "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}}\n{{end}}";
    let mounts = docker(&["inspect", "-f", format, &container]);
    assert!(mounts.contains(&format!("bind {} {PGDATA}", house.path(&new).display())), "{mounts}");
    sql(&container, "postgres", "insert into t values (0)");
    house.pglife(&["upgrade", "finalize", &container, "--yes"]).ok().says(&["stays, with the old data"]);
    // The folder stays, and the volume that stood for it is gone.
    assert_eq!((rows(), things(&house).len(), folders()), ("101".to_owned(), world.len(), vec![old, new]));
}
