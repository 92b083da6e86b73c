//! Dependents when the Docker engine itself is restarted, is away for a while, or is killed.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, events};
use crate::engine::OwnEngine;
use crate::house::{House, wait_for};

/// How soon all are back once the database is healthy.
const SOON: Duration = Duration::from_secs(10);
const CHAIN: [&str; 3] = ["api", "web", "cron"];

/// An engine with a database, three containers that depend on it, one after the other, and one that somebody has stopped.
struct Scene {
    engine: OwnEngine,
    house: House,
    database: String,
}

impl Scene {
    fn new() -> Self {
        let engine = OwnEngine::with_images(&["pglife/data", "pglife/postgres:17", "busybox"]);
        let house = House::new("depsengine");
        house.on_host(&format!("endpoint = \"{}\"", engine.endpoint()));
        let cluster = house.cluster("c", "17", "");
        let database = format!("{cluster}-db");
        engine.wait_for_server(&database);
        let depends_on = format!("pglife.depends-on={cluster}");
        for (order, name) in CHAIN.into_iter().chain(["idle"]).enumerate() {
            let order = format!("pglife.order={order}");
            let labels = ["run", "-d", "--name", name, "--label", &depends_on, "--label", &order];
            let health = ["--health-cmd", "true", "--health-interval", "1s"];
            let script = ["busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];
            engine.docker(&[&labels[..], &health, &script].concat());
        }
        engine.docker(&["stop", "idle"]);
        Self { engine, house, database }
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.engine.docker(&["inspect", "--format", format, container]).trim().to_owned()
    }

    fn is_healthy(&self) -> bool {
        self.inspect(&self.database, "{{.State.Health.Status}}") == "healthy"
    }

    fn all(&self, wanted: &str) -> bool {
        CHAIN.iter().all(|name| self.inspect(name, "{{.State.Status}}") == wanted)
    }

    /// How things are, for whoever reads that the test failed.
    fn account(&self) -> String {
        let log = std::fs::read_to_string(self.house.path("daemon.log")).unwrap_or_default();
        let containers = self.engine.docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
        format!("{containers}\n{log}")
    }

    /// Waits until all are back, which is soon after the database is healthy, and in order; nobody else is.
    fn come_back(&self, what: &str) {
        wait_for("a healthy database", || self.is_healthy());
        let since = Instant::now();
        while !self.all("running") {
            assert!(since.elapsed() < SOON, "{what}: {}", self.account());
            std::thread::sleep(Duration::from_millis(200));
        }
        let started: Vec<String> = CHAIN.iter().map(|name| self.inspect(name, "{{.State.StartedAt}}")).collect();
        assert!(started.is_sorted(), "{what}: {started:?}");
        assert_eq!(self.inspect("idle", "{{.State.Status}}"), "exited", "{what}");
        wait_for("nothing is owed", || {
            let listed = self.house.items(&["deps", "list"]);
            listed.iter().all(|row| row["down_since"] == Value::Null)
        });
    }
}

#[test]
fn they_come_back_with_the_engine_that_was_restarted_away_or_killed() {
    let mut scene = Scene::new();
    let daemon = Daemon::start(&scene.house);
    wait_for("the start", || !events(&scene.house, "daemon.started").is_empty());
    wait_for("health", || {
        scene.is_healthy() && CHAIN.iter().all(|name| scene.inspect(name, "{{.State.Health.Status}}") == "healthy")
    });
    // The daemon has looked when it has heard of that.
    std::thread::sleep(Duration::from_secs(2));

    for away in [Duration::ZERO, Duration::from_secs(17)] {
        scene.engine.stop();
        std::thread::sleep(away);
        scene.engine.begin();
        // The engine starts the database, and none of them: they have no restart policy.
        scene.come_back(&format!("away for {away:?}"));
    }

    // Docker 20.10 stops what it finds running when it comes back from a crash, and takes that for somebody's wish.
    scene.engine.kill();
    scene.engine.begin();
    wait_for("the end of all", || scene.all("exited"));
    let database = scene.database.clone();
    if scene.inspect(&database, "{{.State.Status}}") != "running" {
        scene.engine.docker(&["start", &database]);
    }
    scene.come_back("killed");
    assert_eq!(events(&scene.house, "dependent.failed"), Vec::<String>::new());
    assert_eq!(daemon.stop(), 0);
}
