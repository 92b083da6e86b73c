//! Containers that depend on a database go down with it, in order, and come back with it; nobody else's is touched.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, events};
use crate::house::{House, docker, try_docker, wait_for, wait_for_server};
use crate::upgrade::phase;

mod restarted;

const STATE: &str = "{{.State.Status}}";

fn state(container: &str) -> String {
    docker(&["inspect", "--format", STATE, container]).trim().to_owned()
}

fn started(container: &str) -> String {
    docker(&["inspect", "--format", "{{.State.StartedAt}}", container]).trim().to_owned()
}

/// A database, and three containers that depend on it, one after the other.
struct Scene {
    house: House,
    cluster: String,
    database: String,
    chain: [String; 3],
}

impl Scene {
    fn new(test: &str) -> Self {
        let house = House::new(test);
        let cluster = house.cluster("c", "17", "");
        let database = format!("{cluster}-db");
        let label = format!("pglife.depends-on={cluster}");
        let one = |short: &str, order: &str, more: &[&str]| {
            let order = format!("pglife.order={order}");
            // It says when it is told to end, and obeys.
            let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
            let arguments = ["--label", &label, "--label", &order];
            house.foreign(short, &[&arguments, more, &["busybox", "sh", "-c", script]].concat())
        };
        let healthy = ["--health-cmd", "true", "--health-interval", "1s"];
        let chain =
            [one("api", "1", &healthy), one("web", "2", &["--label", "pglife.on-up=restart"]), one("cron", "3", &[])];
        wait_for_server(&database);
        Self { house, cluster, database, chain }
    }

    fn states(&self) -> [String; 3] {
        self.chain.each_ref().map(|container| state(container))
    }

    fn all(&self, wanted: &str) -> bool {
        self.states().iter().all(|state| state == wanted)
    }

    /// The names in the events of one kind, in order, shortened.
    fn told(&self, kind: &str) -> Vec<String> {
        let prefix = self.house.name("");
        let name = |text: String| text.split(':').next().expect("a name").trim_start_matches(&prefix).to_owned();
        events(&self.house, kind).into_iter().map(name).collect()
    }

    fn healthy(&self) -> bool {
        docker(&["inspect", "--format", "{{.State.Health.Status}}", &self.database]).trim() == "healthy"
    }

    /// Waits until the database is healthy, then until all are back; returns how long that took.
    fn come_back(&self) -> Duration {
        wait_for("a healthy database", || self.healthy());
        let since = Instant::now();
        wait_for("all of them back", || self.all("running"));
        since.elapsed()
    }
}

#[test]
fn they_follow_a_database_that_is_killed_stopped_paused_and_restarted() {
    let scene = Scene::new("deps");
    let (house, database) = (&scene.house, scene.database.as_str());
    let bystander = house.foreign("bystander", &["busybox", "sleep", "600"]);
    let listed = house.items(&["deps", "list", &scene.cluster]);
    let names: Vec<&str> = listed.iter().map(|row| row["container"].as_str().expect("a name")).collect();
    assert_eq!(names, scene.chain.each_ref().map(String::as_str));
    assert_eq!(listed[1]["on_up"], "restart");
    let daemon = Daemon::start(house);
    wait_for("the start", || !events(house, "daemon.started").is_empty());
    std::thread::sleep(Duration::from_secs(2));

    // Killed, and nobody starts it.
    docker(&["kill", database]);
    wait_for("all of them down", || scene.all("exited"));
    assert_eq!(scene.told("dependent.stopped"), ["cron", "web", "api"]);
    let row = house.items(&["deps", "list", &scene.cluster]).remove(0);
    assert!(
        row["down_since"].is_string() && row["reason"].as_str().expect("why").contains("exited with code 137"),
        "{row}"
    );
    // The daemon dies too; the next one knows what is owed.
    daemon.kill();
    docker(&["start", database]);
    wait_for("a healthy database", || scene.healthy());
    assert!(scene.all("exited"));
    let daemon = Daemon::start(house);
    assert!(scene.come_back() < Duration::from_secs(10));
    assert_eq!(scene.told("dependent.started"), ["api", "web", "cron"]);
    assert_eq!(house.items(&["deps", "list", &scene.cluster])[0]["down_since"], Value::Null);

    // One that a human stopped stays as it is.
    docker(&["stop", &scene.chain[2]]);
    std::thread::sleep(Duration::from_secs(1));
    docker(&["stop", database]);
    wait_for("all of them down", || scene.all("exited"));
    docker(&["start", database]);
    wait_for("a healthy database", || scene.healthy());
    let since = Instant::now();
    wait_for("two of them back", || scene.states() == ["running", "running", "exited"]);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(scene.states(), ["running", "running", "exited"]);
    docker(&["start", &scene.chain[2]]);

    // A restart is over before anybody is stopped; who wants to is restarted after it.
    let before = scene.chain.each_ref().map(|container| started(container));
    docker(&["restart", database]);
    wait_for("the restart of one", || started(&scene.chain[1]) != before[1]);
    assert_eq!((started(&scene.chain[0]), started(&scene.chain[2])), (before[0].clone(), before[2].clone()));
    assert_eq!(scene.told("dependent.restarted"), ["web"]);

    // Frozen.
    docker(&["pause", database]);
    wait_for("all of them down", || scene.all("exited"));
    docker(&["unpause", database]);
    assert!(scene.come_back() < Duration::from_secs(15));

    assert_eq!(state(&bystander), "running");
    assert_eq!(events(house, "dependent.failed"), Vec::<String>::new());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn they_are_restarted_in_order_by_hand() {
    let scene = Scene::new("depshand");
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let before = scene.chain.each_ref().map(|container| started(container));
    house.pglife(&["deps", "restart", cluster]).ok().says(&["3 were taken down, 3 are back"]);
    assert!(scene.all("running"));
    assert!(scene.chain.iter().zip(&before).all(|(container, before)| started(container) != *before));
    assert_eq!(scene.told("dependent.stopped"), ["cron", "web", "api"]);
    assert_eq!(scene.told("dependent.started"), ["api", "web", "cron"]);

    // The same beside a daemon, which does not meddle.
    let daemon = Daemon::start(house);
    wait_for("the start", || !events(house, "daemon.started").is_empty());
    house.pglife(&["deps", "restart", cluster]).ok().says(&["3 were taken down, 3 are back"]);
    assert_eq!(scene.told("dependent.started"), ["api", "web", "cron", "api", "web", "cron"]);
    assert_eq!(daemon.stop(), 0);
    // Of a database that is down nobody is taken down.
    docker(&["stop", &scene.database]);
    house.pglife(&["deps", "restart", cluster]).exits(15).says(&["the database is down", "\n  next: "]);
    assert!(scene.all("running"));
}

#[test]
fn one_of_two_clusters_comes_back_when_both_serve() {
    let house = House::new("depstwo");
    let clusters = ["a", "b"].map(|short| house.cluster(short, "17", ""));
    let [first, second] = clusters.each_ref().map(|cluster| format!("{cluster}-db"));
    let label = format!("pglife.depends-on={},{}", clusters[0], clusters[1]);
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let both = house.foreign("both", &["--label", &label, "busybox", "sh", "-c", script]);
    for database in [&first, &second] {
        wait_for_server(database);
    }
    let daemon = Daemon::start(&house);
    wait_for("the start", || !events(&house, "daemon.started").is_empty());
    std::thread::sleep(Duration::from_secs(2));
    docker(&["stop", &first, &second]);
    wait_for("it is down", || state(&both) == "exited");
    docker(&["start", &first]);
    wait_for("word of the other", || !events(&house, "dependent.waits").is_empty());
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(state(&both), "exited");
    docker(&["start", &second]);
    wait_for("it is back", || state(&both) == "running");
    let waits = events(&house, "dependent.waits");
    assert!(waits.len() == 1 && waits[0].contains(&clusters[1]), "{waits:?}");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn what_a_compose_file_says_is_followed_even_while_the_database_is_swapped() {
    let house = House::new("depscompose");
    let name = house.name("adopted");
    let project = format!("com.docker.compose.project={name}");
    let labels = ["--label", &project, "--label", "com.docker.compose.service=db"];
    let server = ["-e", "POSTGRES_PASSWORD=x", "pglife/test-official:17"];
    let database = house.foreign("adopted-db", &[&labels[..], &server].concat());
    wait_for_server(&database);
    let policy = |more: &str| {
        let cluster =
            format!("[cluster]\nmajor = \"17\"\ncontainer = \"{database}\"\npgdata = \"/var/lib/postgresql/data\"\n");
        house.write(&format!("policies/{name}.toml"), &format!("{cluster}{more}"));
    };
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let service = |service: &str, needs: &str| {
        let (service_label, needs) =
            (format!("com.docker.compose.service={service}"), format!("com.docker.compose.depends_on={needs}"));
        let labels = ["--label", &project, "--label", &service_label, "--label", &needs];
        house.foreign(service, &[&labels[..], &["busybox", "sh", "-c", script]].concat())
    };
    let (api, app) = (service("api", "db:service_healthy:true"), service("app", "api:service_started:false"));
    // Nobody is stopped unasked.
    policy("");
    assert_eq!(house.items(&["deps", "list", &name]), Vec::<Value>::new());
    policy("[dependents]\ncompose = true\n");
    let listed = house.items(&["deps", "list", &name]);
    let found: Vec<&str> = listed.iter().filter_map(|item| item["container"].as_str()).collect();
    assert_eq!(found, [api.as_str(), app.as_str()], "{listed:?}");

    let daemon = Daemon::start(&house);
    wait_for("the start", || !events(&house, "daemon.started").is_empty());
    std::thread::sleep(Duration::from_secs(2));
    let aside = house.name("aside");
    docker(&["stop", &database]);
    docker(&["rename", &database, &aside]);
    wait_for("their end", || state(&app) == "exited" && state(&api) == "exited");
    docker(&["rename", &aside, &database]);
    docker(&["start", &database]);
    wait_for("their return", || state(&app) == "running" && state(&api) == "running");
    assert!(started(&api) < started(&app));
    assert_eq!(daemon.stop(), 0);
}

/// Kills a worker, unless it has said its last word by then: what is held up, and is not removed meanwhile, still had work to do.
fn kill_in_the_middle(worker: &str) {
    if try_docker(&["pause", worker]).exit == 0 {
        std::thread::sleep(Duration::from_millis(500));
        try_docker(&["kill", worker]);
        // Where the engine leaves a paused process frozen, it dies of the signal now.
        try_docker(&["unpause", worker]);
    }
}

/// Who wants to know when: each line of the journal of what happened, by kind and name.
fn story(scene: &Scene) -> Vec<String> {
    let all = scene.house.items(&["events", "-n", "1000"]);
    let prefix = scene.house.name("");
    let dependents = all.iter().filter_map(|event| {
        let kind = event["kind"].as_str()?.strip_prefix("dependent.")?;
        let name = event["text"].as_str()?.split(':').next()?;
        Some(format!("{kind} {}", name.trim_start_matches(&prefix)))
    });
    dependents.collect()
}

#[test]
fn an_upgrade_takes_them_down_and_brings_them_back_whichever_way_it_ends() {
    let scene = Scene::new("depsup");
    let (house, cluster) = (&scene.house, scene.cluster.as_str());
    let there_and_back =
        ["stopped cron", "stopped web", "stopped api", "started api", "started web", "started cron"].map(str::to_owned);
    // A daemon that watches does not meddle.
    let daemon = Daemon::start(house);
    wait_for("the start", || !events(house, "daemon.started").is_empty());

    // Its worker is killed while they are down, then pglife itself, and resumed: as before, both times.
    for (time, pglife_too) in [(0, false), (1, true)] {
        let mut command = house.command(&["upgrade", cluster, "--to", "18", "--method", "dump", "--yes"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        wait_for("all of them down", || scene.all("exited"));
        if pglife_too {
            child.kill().expect("it is killed");
            child.wait().expect("it ends");
            house.pglife(&["upgrade", "resume", cluster]).exits(22);
        } else {
            // One that has answered already is not missed: the next one is.
            wait_for("the way back", || {
                let is_on_its_way = phase(house, cluster) != "open";
                if !is_on_its_way {
                    let label = format!("label=pglife.cluster={cluster}");
                    let list = docker(&["ps", "-q", "--filter", &label, "--filter", "label=pglife.purpose=worker"]);
                    list.lines().take(1).for_each(kill_in_the_middle);
                }
                is_on_its_way
            });
            assert_eq!(child.wait().expect("it ends").code(), Some(22));
        }
        assert_eq!(story(&scene)[6 * time..], there_and_back);
        assert!(scene.all("running"));
    }

    // Upgraded, and back again.
    let plan = house.pglife(&["upgrade", cluster, "--to", "18", "--method", "dump", "--plan"]).ok().stdout;
    let order: Vec<&str> = scene.chain.iter().rev().map(String::as_str).collect();
    let listed = format!("in this order: {}", order.join(", "));
    assert!(plan.contains(&listed), "{plan}");
    house.pglife(&["upgrade", cluster, "--to", "18", "--method", "dump", "--yes"]).ok();
    assert_eq!(story(&scene)[12..], there_and_back);
    house.pglife(&["upgrade", "rollback", cluster]).ok();
    assert_eq!(story(&scene)[18..], there_and_back);
    assert!(scene.all("running"));
    assert_eq!(daemon.stop(), 0);
}
