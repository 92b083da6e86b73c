//! Broken on purpose. Each case ends in the exit code it was promised, with a message a DBA understands, and nothing lost:
//! the backup from before is intact, nothing half-made is listed or left, and the next run works.
//!
//! What is slow to happen is made to wait: a session that holds a table keeps `pg_dump` where the test wants it.

mod death;
mod docker_engine;
mod refusal;
mod repository;
mod server;
mod volume;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::house::{Ended, House, docker, sql};

/// Long enough for a loaded machine; a test that waits so long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `state` is reached.
#[track_caller]
fn eventually(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !state() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A pglife that runs beside the test.
struct Beside {
    child: Option<Child>,
    line: String,
}

impl Beside {
    fn start(mut command: Command) -> Self {
        let line = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        Self { child: Some(child), line }
    }

    /// Sends a signal to it, by name.
    fn signal(&self, signal: &str) {
        kill(self.child.as_ref().expect("it runs").id(), signal);
    }

    /// Waits for its end.
    #[track_caller]
    fn ended(mut self) -> Ended {
        let mut child = self.child.take().expect("it runs");
        eventually(&format!("the end of {}", self.line), || child.try_wait().expect("a child").is_some());
        Ended::of(child.wait_with_output().expect("its output"), self.line.clone())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[track_caller]
fn kill(process: u32, signal: &str) {
    let done = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status().expect("kill runs");
    assert!(done.success(), "kill -{signal} {process}");
}

/// A session that holds a table in ACCESS EXCLUSIVE mode until it is dropped: whoever dumps the table waits.
struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    fn of(container: &str, database: &str, table: &str) -> Self {
        let mut child = Command::new("docker")
            .args(["exec", "-i", container, "psql", "-X", "-q", "-A", "-t", "-U", "postgres", "-d", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("docker exec");
        let mut stdin = child.stdin.take().expect("piped");
        writeln!(stdin, "begin; lock table {table} in access exclusive mode; select 'held';").expect("psql listens");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("psql answers");
        assert_eq!(line.trim(), "held");
        Self { child, stdin: Some(stdin) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().ok();
    }
}

/// How many sessions of pglife wait for a lock.
fn dumps_that_wait(container: &str) -> u32 {
    let waiting =
        "select count(*) from pg_stat_activity where application_name = 'pglife' and wait_event_type = 'Lock'";
    sql(container, "postgres", waiting).parse().expect("a number")
}

/// A cluster with a database `shop` whose table `orders` can be held, a backup from before, and a policy that waits for locks
/// for a minute.
struct Scene {
    house: House,
    cluster: String,
    container: String,
    /// The backup from before.
    good: String,
}

impl Scene {
    fn new(test: &str) -> Self {
        Self::with_policy(test, "[backup.dump]\njobs = 1\nlock_timeout = \"60s\"")
    }

    fn with_policy(test: &str, policy: &str) -> Self {
        let house = House::new(test);
        let cluster = house.cluster("c", "17", policy);
        let container = format!("{cluster}-db");
        sql(&container, "postgres", "create database shop");
        // The largest database is dumped first.
        sql(
            &container,
            "shop",
            "create table orders as select g as id, repeat(md5(g::text), 9) as note from generate_series(1, 9999) g",
        );
        let good = house.backup(&cluster);
        Self { house, cluster, container, good }
    }

    /// Holds the table that every dump needs.
    fn hold(&self) -> Holder {
        Holder::of(&self.container, "shop", "orders")
    }

    /// A backup that runs beside the test and waits for the held table: `pg_dump`, and whoever takes the facts.
    fn backup_that_waits(&self) -> Beside {
        eventually("nobody is left who waits", || dumps_that_wait(&self.container) == 0);
        let beside = Beside::start(self.house.command(&["backup", &self.cluster]));
        eventually("both wait for a lock", || dumps_that_wait(&self.container) == 2);
        beside
    }

    /// Takes a backup, which must fail with `exit` and say every one of `parts`, besides what every failure says.
    #[track_caller]
    fn backup_fails(&self, exit: i32, parts: &[&str]) -> Ended {
        self.house.pglife(&["backup", &self.cluster]).exits(exit).says(parts).says(&self.failure())
    }

    /// What every failed backup says.
    fn failure(&self) -> [&str; 4] {
        [&self.cluster, "pglife: error: ", "\n  safe: ", "\n  next: "]
    }

    /// Nothing half-made is left or listed, and the backups in `sets` are there, intact.
    #[track_caller]
    fn holds(&self, sets: &[&str]) {
        nothing_is_left_of(&self.cluster, &self.house.path("repo"));
        let listed = self.house.items(&["backups", "list", &self.cluster]);
        let listed: Vec<&str> = listed.iter().map(|item| item["set"].as_str().expect("an id")).collect();
        assert_eq!(sorted(listed), sorted(sets.to_vec()));
        for verified in self.house.items(&["backups", "verify", &self.cluster]) {
            assert_eq!(verified["intact"], true, "{verified}");
        }
    }

    /// Nothing was lost, and the next backup works.
    #[track_caller]
    fn recovers(&self) {
        self.holds(&[&self.good]);
        let next = self.house.backup(&self.cluster);
        self.holds(&[&self.good, &next]);
    }

    /// What the last backup run of `status` is.
    fn last_attempt(&self) -> String {
        let rows = self.house.items(&["status", &self.cluster]);
        rows[0]["last_attempt"].as_str().unwrap_or_default().to_owned()
    }
}

fn sorted(mut names: Vec<&str>) -> Vec<&str> {
    names.sort_unstable();
    names
}

/// No worker, no scratch volume, and no unfinished set of the cluster.
#[track_caller]
fn nothing_is_left_of(cluster: &str, repository: &Path) {
    assert_eq!(workers_of(cluster), [""; 0], "workers");
    let scratch = ["--filter", "label=pglife.purpose=scratch", "--format", "{{.Label \"pglife.cluster\"}}"];
    let scratch = docker(&[&["volume", "ls"], &scratch[..]].concat());
    assert!(!scratch.lines().any(|owner| owner == cluster), "a scratch volume of {cluster}");
    let incoming = repository.join(cluster).join("incoming");
    assert!(!incoming.exists(), "{} is left", incoming.display());
}

/// The worker containers of a cluster, running or not.
fn workers_of(cluster: &str) -> Vec<String> {
    let label = format!("label=pglife.cluster={cluster}");
    let listed = docker(&["ps", "-a", "-q", "--filter", "label=pglife.purpose=worker", "--filter", &label]);
    listed.lines().map(str::to_owned).collect()
}

/// Everything else that Docker has of a cluster: containers and volumes, by name.
fn docker_has(cluster: &str) -> Vec<String> {
    let label = format!("label=pglife.cluster={cluster}");
    let containers = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
    let volumes = docker(&["volume", "ls", "--filter", &label, "--format", "{{.Name}}"]);
    let mut names: Vec<String> = containers.lines().chain(volumes.lines()).map(str::to_owned).collect();
    names.sort();
    names
}
