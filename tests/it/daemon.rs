//! The daemon: what is scheduled happens, once; what is not wanted any more goes; it ends in good order.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::house::{Ended, House, docker, sql, wait_for};

/// A daemon that ends with the test.
pub struct Daemon {
    child: Option<Child>,
}

/// The port at which the daemon that was started last in this house serves HTTP.
pub fn http_port(house: &House) -> u16 {
    let mut port = None;
    wait_for("the page's address", || {
        let log = std::fs::read_to_string(house.path("daemon.log")).unwrap_or_default();
        let last = log.rsplit_once("HTTP is served at http://127.0.0.1:");
        port = last.and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        port.is_some()
    });
    port.expect("a port")
}

impl Daemon {
    /// Starts it; what it says is in `daemon.log` of the house.
    pub fn start(house: &House) -> Self {
        Self::start_with(house, "pglife.toml")
    }

    /// Starts it with a settings file of its own.
    pub fn start_with(house: &House, settings: &str) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(house.path("daemon.log")).expect("a file");
        let mut command = house.command_with(settings, &["daemon", "-v"]);
        command.stdout(Stdio::null()).stderr(log);
        Self { child: Some(command.spawn().expect("started")) }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("alive").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = self.id();
        let id = rustix::process::Pid::from_raw(i32::try_from(id).expect("an id")).expect("an id");
        rustix::process::kill_process(id, signal).expect("signalled");
    }

    /// Has it read its configuration again.
    pub fn reload(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// Asks it to end, and waits for that. Returns its exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.child.take().expect("alive");
        let mut ended = None;
        wait_for("the daemon's end", || {
            ended = child.try_wait().expect("asked");
            ended.is_some()
        });
        ended.expect("ended").code().unwrap_or(-1)
    }

    /// Kills it as the kernel would.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("alive");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The texts of the events of one kind.
pub fn events(house: &House, kind: &str) -> Vec<String> {
    let all = house.items(&["events", "-n", "1000"]);
    let of_kind = all.iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["text"].as_str().expect("text").to_owned()).collect()
}

fn sets(house: &House, cluster: &str) -> BTreeSet<String> {
    let items = house.items(&["backups", "list", cluster, "--repo", "local"]);
    items.iter().map(|item| item["set"].as_str().expect("an id").to_owned()).collect()
}

fn nagios(ended: &Ended) -> (i32, &str) {
    (ended.exit, ended.stdout.split(" - ").next().expect("a part"))
}

#[test]
fn what_is_scheduled_happens_and_older_backups_go() {
    let house = House::new("daemon");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[repos.nas]\ntype = \"local\"\npath = \"nas\"\n"));
    house.pglife(&["repo", "init", "nas"]).ok();
    let policy = "[backup.dump]\nschedule = \"* * * * *\"\nrepos = [\"local\", \"nas\"]\n[retention]\nlast = 1\n\
                  [freshness]\ndump = { warn = \"26h\", critical = \"50h\" }\n\
                  [verify]\nschedule = \"* * * * *\"\nsample = \"1/1\"";
    let cluster = house.cluster("kept", "17", policy);
    let never = house.pglife(&["check", &cluster]).exits(30);
    assert!(never.stdout.contains("never backed up"), "{}", never.stdout);
    assert_eq!(nagios(&house.pglife(&["check", &cluster, "--nagios"])), (2, "PGLIFE CRITICAL"));
    let by_hand = [house.backup(&cluster), house.backup(&cluster)];
    house.pglife(&["check", "--all"]).ok();
    assert_eq!(nagios(&house.pglife(&["check", "--all", "--nagios"])), (0, "PGLIFE OK"));

    // One of the repositories is away: that is told, and keeps nobody from the other one.
    std::fs::rename(house.path("nas"), house.path("away")).expect("moved");
    let daemon = Daemon::start(&house);
    wait_for("the start", || events(&house, "daemon.started").len() == 1);
    house.pglife(&["daemon"]).exits(11).says(&["another daemon works", "process", "next:"]);
    wait_for("a scheduled backup", || !events(&house, "backup.succeeded").is_empty());
    wait_for("pruning", || !events(&house, "prune.done").is_empty() && !events(&house, "prune.failed").is_empty());
    let left = sets(&house, &cluster);
    assert!(left.len() == 1 && by_hand.iter().all(|set| !left.contains(set)), "{left:?}");
    assert!(events(&house, "prune.done")[0].contains("\"local\": 2 backups deleted"));
    assert!(events(&house, "prune.failed")[0].contains("\"nas\""), "{:?}", events(&house, "prune.failed"));
    assert!(events(&house, "backup.succeeded")[0].contains("pglife repo sync nas"));
    assert!(events(&house, "backup.failed").is_empty());
    let status = house.pglife(&["status", &cluster, "-o", "json"]);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["items"][0]["last_attempt"], "warnings");
    house.pglife(&["check", &cluster]).exits(10);
    std::fs::rename(house.path("away"), house.path("nas")).expect("moved back");

    // A policy that is not valid changes nothing but is told; the last good one goes on.
    let file = format!("policies/{cluster}.toml");
    let good = std::fs::read_to_string(house.path(&file)).expect("read");
    house.write(&file, &format!("{good}\n[backup.dumb]\n"));
    daemon.reload();
    // No command of pglife reads this configuration either, so the log has to tell.
    wait_for("the refusal", || {
        let log = std::fs::read_to_string(house.path("daemon.log")).expect("read");
        log.contains("the last good one goes on") && log.contains("backup.dumb")
    });
    house.write(&file, &good);
    daemon.reload();
    wait_for("the reload", || !events(&house, "configuration.reloaded").is_empty());
    assert!(events(&house, "configuration.invalid")[0].contains("backup.dumb"));
    wait_for("the next backup", || events(&house, "backup.succeeded").len() >= 2);
    wait_for("a verification", || !events(&house, "verify.done").is_empty());
    assert_eq!(daemon.stop(), 0);
    assert_eq!(events(&house, "daemon.stopped").len(), 1);

    // No slot ran twice, no two runs at a time.
    let text = std::fs::read_to_string(house.path("daemon.log")).expect("read");
    assert!(!text.contains("panic"), "{text}");
}

#[test]
fn a_daemon_that_is_killed_or_asked_to_end_leaves_nothing_half_made() {
    let house = House::new("daemonend");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[daemon]\nstop_within = \"1s\"\n"));
    let policy = "[backup.dump]\nschedule = \"* * * * *\"\nlock_timeout = \"10m\"\n";
    let cluster = house.cluster("busy", "17", policy);
    let container = format!("{cluster}-db");
    sql(&container, "postgres", "create table held as select 1 as n");
    // Whoever dumps waits for this one.
    let mut holder = std::process::Command::new("docker")
        .args(["exec", "-i", &container, "psql", "-q", "-U", "postgres", "-c"])
        .arg("begin; lock table held in access exclusive mode; select pg_sleep(300)")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let workers = || {
        docker(&[
            "ps",
            "-q",
            "--filter",
            &format!("label=pglife.cluster={cluster}"),
            "--filter",
            "label=pglife.expires-at",
        ])
    };

    let daemon = Daemon::start(&house);
    wait_for("a worker", || !workers().trim().is_empty());
    daemon.kill();
    let daemon = Daemon::start(&house);
    wait_for("the next worker, the first one's remains being gone", || {
        events(&house, "daemon.started").len() == 2 && workers().lines().count() == 1
    });
    // Long enough for the run to be at its dump, in which it waits.
    wait_for("the dump", || {
        sql(&container, "postgres", "select count(*) from pg_stat_activity where wait_event_type = 'Lock'") != "0"
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.stop(), 143, "what was aborted is told by the exit code");
    holder.kill().ok();
    holder.wait().ok();
    wait_for("the workers' end", || workers().trim().is_empty());
    assert!(house.items(&["backups", "list", &cluster]).is_empty());
    let failed = events(&house, "backup.failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    let incoming = house.path(&format!("repo/{cluster}/incoming"));
    assert!(!incoming.exists() || std::fs::read_dir(&incoming).expect("read").next().is_none());
}

/// The first row of `pglife status`.
fn status(house: &House, cluster: &str) -> Value {
    let told = house.pglife(&["status", cluster, "-o", "json"]);
    serde_json::from_str::<Value>(&told.stdout).expect("JSON")["items"][0].clone()
}

/// Drills happen by themselves, of what is not proven yet, and beside the backups; one that finds a backup bad is told everywhere.
#[test]
fn an_upgrade_is_rehearsed_until_the_cluster_has_the_major() {
    let house = House::new("daemonrehearse");
    let policy = "[rehearsal]\nto = \"18\"\nschedule = \"* * * * *\"\n";
    let cluster = house.cluster("kept", "17", policy);
    sql(&format!("{cluster}-db"), "postgres", "create table item as select n as id from generate_series(1, 1000) n");
    let set = house.backup(&cluster);
    let next = house.items(&["policy", "next", &cluster, "-n", "1"]);
    assert_eq!(next[0]["kind"], "rehearsal", "{next:?}");

    let daemon = Daemon::start(&house);
    wait_for("a rehearsal", || !events(&house, "drill.rehearsed").is_empty());
    let told = &events(&house, "drill.rehearsed")[0];
    assert!(told.contains(&set) && told.contains("PostgreSQL 18"), "{told}");
    assert_eq!(status(&house, &cluster)["rehearsal"]["result"], "ok");
    assert_eq!(daemon.stop(), 0);
    // It proves nothing about the backup.
    assert_eq!(status(&house, &cluster)["proof"]["last_proven"], Value::Null);

    let file = format!("policies/{cluster}.toml");
    let same = std::fs::read_to_string(house.path(&file)).expect("a policy").replace("to = \"18\"", "to = \"17\"");
    house.write(&file, &same);
    house.pglife(&["policy", "validate"]).ok();
    assert_eq!(house.items(&["policy", "next", &cluster]), Vec::<Value>::new());
}

#[test]
fn what_is_not_proven_is_drilled_and_a_bad_backup_is_told() {
    let house = House::new("daemondrill");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    // One run at a time on this host: a drill that counted as one would keep the backups waiting.
    house.write("pglife.toml", &format!("{settings}\n[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nruns_per_host = 1\n"));
    let cluster = house.cluster("kept", "17", "[drill]\nschedule = \"* * * * *\"\nrto_budget = \"1h\"");
    let container = format!("{cluster}-db");
    sql(&container, "postgres", "create database orders");
    sql(&container, "orders", "create table item as select n as id from generate_series(1, 1000) n");
    let (older, newer) = (house.backup(&cluster), house.backup(&cluster));
    let next = house.items(&["policy", "next", &cluster, "-n", "2"]);
    assert!(next.len() == 2 && next.iter().all(|run| run["kind"] == "drill"), "{next:?}");
    let checked = house.pglife(&["check", &cluster]).exits(3).stdout;
    assert!(checked.contains("no backup is proven"), "{checked}");

    let daemon = Daemon::start(&house);
    wait_for("the first drill", || status(&house, &cluster)["proof"]["last_drill"].is_object());
    // A backup does not wait for it.
    if status(&house, &cluster)["proof"]["last_drill"]["result"] == "running" {
        house.backup(&cluster);
    }
    wait_for("a proof", || !events(&house, "drill.proven").is_empty());
    assert!(events(&house, "drill.proven")[0].contains(&newer), "{:?}", events(&house, "drill.proven"));
    // The one that was started last.
    let ask = |path: &str| crate::consul::ask(http_port(&house), "GET", path, None, "");
    let metrics = || ask("/metrics").1;
    wait_for("the metrics", || {
        metrics().contains(&format!("pglife_drill_runs_total{{cluster=\"{cluster}\",result=\"proven\"}} 1\n"))
    });
    // How long it took is in the certificate, which the next look reads.
    wait_for("its duration", || {
        metrics().contains(&format!("pglife_drill_last_duration_seconds{{cluster=\"{cluster}\",kind=\"dump\"}} "))
    });
    let told = metrics();
    assert!(told.contains(&format!("pglife_drill_bad{{cluster=\"{cluster}\"}} 0\n")), "{told}");
    assert_eq!(daemon.stop(), 0);

    // The next one that waits is made bad, digests and all.
    let bad = house.backup(&cluster);
    crate::drill::forge_facts(&house.set_folder(&cluster, &bad), |facts| {
        let tables = facts["databases"]["orders"]["tables"].as_array_mut().expect("tables");
        let item = tables.iter_mut().find(|table| table["name"] == "item").expect("the table");
        item["content"]["rows"]["count"] = 1001.into();
    });
    house.pglife(&["check", &cluster]).ok();
    let daemon = Daemon::start(&house);
    wait_for("the next drill", || status(&house, &cluster)["proof"]["last_drill"]["result"] != "proven");
    wait_for("a verdict", || !events(&house, "drill.failed").is_empty());
    let told = &events(&house, "drill.failed")[0];
    assert!(told.contains(&bad) && told.contains("1,001 rows backed up, 1,000 restored"), "{told}");
    wait_for("the page's word", || {
        let (code, words) = ask(&format!("/v1/clusters/{cluster}/freshness"));
        code == 503 && words.contains(&bad)
    });
    assert!(metrics().contains(&format!("pglife_drill_bad{{cluster=\"{cluster}\"}} 1\n")));
    assert_eq!(daemon.stop(), 0);
    let checked = house.pglife(&["check", &cluster]).exits(30).stdout;
    assert!(checked.contains(&format!("found backup {bad} bad")), "{checked}");
    assert_eq!(nagios(&house.pglife(&["check", &cluster, "--nagios"])), (2, "PGLIFE CRITICAL"));
    let explained = house.pglife(&["explain", &cluster, "drill"]).ok().stdout;
    assert!(explained.contains(&bad) && explained.contains("pglife drill show"), "{explained}");
    // A proof of an older one changes nothing; of a newer one, everything.
    house.pglife(&["drill", &cluster, "--backup", &older]).ok();
    house.pglife(&["check", &cluster]).exits(30);
    house.backup(&cluster);
    house.pglife(&["drill", &cluster]).ok();
    house.pglife(&["check", &cluster]).ok();
}
