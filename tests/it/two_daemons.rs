//! Two daemons, one Consul: whoever is killed, hangs, is cut off or loses its session, no slot runs twice, and the other takes over.

#![expect(clippy::print_stderr, reason = "libtest shows it where the test fails")]

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::consul::Consul;
use crate::daemon::Daemon;
use crate::house::{House, docker, wait_for};

const NAMES: [&str; 2] = ["one", "two"];
/// Disturbances besides those that the other one takes over from.
const DISTURBANCES: usize = 18;
/// As long as a session lives without its daemon, and the delay of the lock after that, with some room.
const TAKEOVER: Duration = Duration::from_secs(90);

/// The way from a daemon to Consul, which can be cut and mended, or lose every packet.
struct Way {
    port: u16,
    /// The connections; None while it is cut.
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Way {
    fn to(consul: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let connections = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut connections = connections.lock().expect("no panic");
                let Some(connections) = connections.as_mut() else { continue };
                let (Ok(client), Ok(agent)) = (client, TcpStream::connect(("127.0.0.1", consul))) else { continue };
                for (from, to) in [(&client, &agent), (&agent, &client)] {
                    let (from, to) = (from.try_clone().expect("a clone"), to.try_clone().expect("a clone"));
                    connections.push(from.try_clone().expect("a clone"));
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        Self { port, open }
    }

    fn cut(&self) {
        for connection in self.open.lock().expect("no panic").take().into_iter().flatten() {
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    fn mend(&self) {
        *self.open.lock().expect("no panic") = Some(Vec::new());
    }

    /// Nothing comes through in either direction, and nobody is told, until what this returns is dropped.
    fn partition(&self) -> Partition {
        let partition = Partition(self.port);
        partition.rules("-I");
        partition
    }
}

/// Packets from and to this port of the loopback are dropped.
struct Partition(u16);

impl Partition {
    fn rules(&self, action: &str) {
        for side in ["--dport", "--sport"] {
            let mut command = std::process::Command::new("iptables");
            command.args(["-w", action, "OUTPUT", "-o", "lo", "-p", "tcp", side, &self.0.to_string(), "-j", "DROP"]);
            crate::house::run(command).ok();
        }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.rules("-D");
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// Numbers that look random, and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's linear congruential generator; its high bits are good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn second() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs()
}

fn second_of_minute() -> u64 {
    second() % 60
}

fn minute() -> u64 {
    second() / 60
}

fn minute_of(slot: &str) -> u64 {
    let at: jiff::Timestamp = slot.parse().expect("a time");
    u64::try_from(at.as_second()).expect("later") / 60
}

struct Scene {
    house: House,
    consul: Consul,
    ways: [Way; 2],
    daemons: [Option<Daemon>; 2],
}

impl Scene {
    fn new(test: &str) -> Self {
        let house = House::new(test);
        let consul = Consul::forgetful(&house);
        let ways = [Way::to(consul.port), Way::to(consul.port)];
        let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
        for (name, way) in NAMES.iter().zip(&ways) {
            let text = settings.replace("\"state\"", &format!("\"state-{name}\""));
            let consul = format!("[consul]\naddress = \"http://127.0.0.1:{}\"\nwhen_away = \"wait\"\n", way.port);
            let own = format!("[http]\nlisten = \"off\"\n[daemon]\ninstance = \"{name}\"\n");
            house.write(&format!("{name}.toml"), &format!("{text}\n{consul}{own}"));
        }
        Self { house, consul, ways, daemons: [None, None] }
    }

    fn start(&mut self, which: usize) {
        self.daemons[which] = Some(Daemon::start_with(&self.house, &format!("{}.toml", NAMES[which])));
    }

    /// Who holds the leader's lock, and by which session.
    fn leader(&self) -> Option<(usize, String)> {
        let session = self.consul.get("/v1/kv/pglife/leader")[0]["Session"].as_str()?.to_owned();
        let name = self.consul.get("/v1/kv/pglife/leader?raw")["instance"].clone();
        Some((NAMES.iter().position(|known| name == *known)?, session))
    }

    fn kill(&mut self, which: usize) {
        self.daemons[which].take().expect("alive").kill();
    }

    fn disturb(&mut self, dice: &mut Dice) {
        // More often than not whoever leads is hit.
        let some = usize::try_from(dice.roll(2)).expect("small");
        let which = self.leader().filter(|_| dice.roll(3) > 0).map_or(some, |(leader, _)| leader);
        let pause = Duration::from_millis(500 + dice.roll(3500));
        let what = dice.roll(5);
        eprintln!(
            "{}: {} for {pause:?}",
            ["killed", "stopped", "cut off", "partitioned", "session ended"][usize::try_from(what).expect("small")],
            NAMES[which]
        );
        match what {
            0 => {
                self.kill(which);
                std::thread::sleep(pause);
                self.start(which);
            }
            1 => {
                let daemon = self.daemons[which].as_ref().expect("alive");
                daemon.signal(Signal::STOP);
                std::thread::sleep(pause);
                daemon.signal(Signal::CONT);
            }
            2 => {
                self.ways[which].cut();
                std::thread::sleep(pause);
                self.ways[which].mend();
            }
            3 => {
                let _partition = self.ways[which].partition();
                std::thread::sleep(pause);
            }
            _ => {
                if let Some((_, session)) = self.leader() {
                    self.consul.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
                }
                std::thread::sleep(pause);
            }
        }
        std::thread::sleep(Duration::from_millis(dice.roll(3000)));
    }

    /// Waits until somebody leads; which one.
    fn wait_for_leader(&self) -> usize {
        let mut leader = None;
        wait_for("a leader", || {
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("just seen").0
    }

    fn wait_for_takeover_from(&self, which: usize) {
        let began = Instant::now();
        wait_for("the takeover", || self.leader().is_some_and(|(leader, _)| leader != which));
        assert!(began.elapsed() < TAKEOVER, "{:?}", began.elapsed());
        eprintln!("{} took over after {:?}", NAMES[1 - which], began.elapsed());
    }

    /// How often each slot was begun, and not given back because somebody else worked on the cluster.
    fn slots(&self) -> BTreeMap<(String, String), i32> {
        let log = std::fs::read_to_string(self.house.path("daemon.log")).expect("a log");
        let mut slots = BTreeMap::new();
        for line in log.lines() {
            let count = if line.contains("a run starts") {
                1
            } else if line.contains("it is tried again") {
                -1
            } else {
                continue;
            };
            let of = |key: &str| {
                let (_, rest) = line.split_once(&format!(" {key}="))?;
                Some(rest.split(' ').next()?.trim_matches('"').to_owned())
            };
            let (Some(cluster), Some(slot)) = (of("cluster"), of("slot")) else { continue };
            *slots.entry((cluster, slot)).or_default() += count;
        }
        slots
    }
}

#[test]
fn each_slot_runs_once_whoever_is_killed_cut_off_or_loses_its_session() {
    let seed = std::env::var("PGLIFE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(second);
    eprintln!("PGLIFE_SEED={seed} repeats it");
    let mut dice = Dice(seed);
    let mut scene = Scene::new("twodaemons");
    let every_minute = "[backup.dump]\nschedule = \"* * * * *\"\nrepos = [\"local\"]\n";
    let clusters = ["a", "b"].map(|short| scene.house.cluster(short, "17", every_minute));
    scene.start(0);
    scene.start(1);
    scene.wait_for_leader();
    for _ in 0..DISTURBANCES / 2 {
        scene.disturb(&mut dice);
    }

    // Gone for good: the other one takes over.
    let leader = scene.wait_for_leader();
    scene.kill(leader);
    scene.wait_for_takeover_from(leader);
    scene.start(leader);
    for _ in DISTURBANCES / 2..DISTURBANCES {
        scene.disturb(&mut dice);
    }
    // Partitioned right after a slot, and without its session: the other one leads in the same minute, and knows of the slot. A slow
    // machine may need another minute for that.
    let sets = |cluster: &str| scene.house.items(&["backups", "list", cluster]).len();
    let backed_up = || {
        let before = clusters.each_ref().map(|cluster| sets(cluster));
        wait_for("backups of both", || clusters.iter().zip(before).all(|(cluster, before)| sets(cluster) > before));
    };
    let mut taken_over_in = None;
    for _ in 0..5 {
        let leader = scene.wait_for_leader();
        wait_for("the end of a minute", || second_of_minute() > 50);
        backed_up();
        let partition = scene.ways[leader].partition();
        let (_, session) = scene.leader().expect("a leader");
        scene.consul.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
        let minute = minute();
        scene.wait_for_takeover_from(leader);
        let is_in_one_minute = minute == self::minute() && second_of_minute() < 55;
        wait_for("the end of the minute", || second_of_minute() < 10);
        drop(partition);
        if is_in_one_minute {
            taken_over_in = Some(minute);
            break;
        }
    }
    let taken_over_in = taken_over_in.expect("a takeover in the minute of a slot");

    // In calm again both clusters are backed up; nothing was begun twice, and since that takeover nothing was left out.
    scene.wait_for_leader();
    backed_up();
    for daemon in scene.daemons.each_mut().into_iter().filter_map(Option::take) {
        assert_eq!(daemon.stop(), 0);
    }
    let slots = scene.slots();
    assert!(slots.len() >= 4 && slots.values().all(|count| (0..=1).contains(count)), "{slots:?}");
    for cluster in &clusters {
        let minutes: Vec<u64> =
            slots.keys().filter(|(name, _)| name == cluster).map(|(_, slot)| minute_of(slot)).collect();
        let since: Vec<u64> = minutes.into_iter().filter(|minute| *minute >= taken_over_in).collect();
        assert!(since.len() >= 2 && since.is_sorted_by(|one, next| one + 1 == *next), "{cluster}: {since:?}");
    }
    // The lock is free, and nothing is left of the runs that died.
    assert!(scene.leader().is_none());
    for (name, cluster) in NAMES.iter().zip(&clusters) {
        let mut command = scene.house.command_with(&format!("{name}.toml"), &["backup", cluster]);
        assert!(command.output().expect("it runs").status.success(), "{name}");
    }
    let workers = clusters.iter().map(|cluster| {
        let label = format!("label=pglife.cluster={cluster}");
        docker(&["ps", "-aq", "--filter", &label, "--filter", "label=pglife.purpose=worker"])
    });
    assert_eq!(workers.collect::<String>(), "");
}

/// A slot whose cluster somebody else works on is still to be run, by whoever leads then.
#[test]
fn a_slot_that_has_to_wait_is_not_lost_with_the_daemon_that_waited() {
    let mut scene = Scene::new("twowait");
    // A slot of this minute counts as punctual for another one; the next is tomorrow.
    let now = jiff::Timestamp::now().strftime("%M %H * * *");
    let dump = format!("[backup.dump]\nschedule = \"{now}\"\nrepos = [\"local\"]\n");
    let cluster = scene.house.cluster("a", "17", &dump);
    let answer = scene.consul.put("/v1/session/create", &json!({ "Name": "elsewhere", "LockDelay": "0s" }));
    let session: Value = serde_json::from_str(&answer).expect("JSON");
    let session = session["ID"].as_str().expect("an id");
    let lock = format!("/v1/kv/pglife/locks/{cluster}?acquire={session}");
    assert_eq!(scene.consul.put(&lock, &json!({ "op": "upgrade", "instance": "elsewhere" })), "true");

    scene.start(0);
    assert_eq!(scene.wait_for_leader(), 0);
    scene.start(1);
    let log = |house: &House| std::fs::read_to_string(house.path("daemon.log")).unwrap_or_default();
    wait_for("an attempt", || log(&scene.house).contains("it is tried again"));
    assert_eq!(scene.daemons[0].take().expect("alive").stop(), 0);
    wait_for("the takeover", || scene.leader().is_some_and(|(leader, _)| leader == 1));
    scene.consul.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
    wait_for("the backup", || !scene.house.items(&["backups", "list", &cluster]).is_empty());
    assert_eq!(scene.daemons[1].take().expect("alive").stop(), 0);
    let slots = scene.slots();
    assert!(slots.len() == 1 && slots.values().all(|count| *count == 1), "{slots:?}");
}

/// An application that one daemon stopped, because its database was down, is not left behind when another daemon takes over.
#[test]
fn what_one_daemon_took_down_the_next_one_brings_back() {
    let mut scene = Scene::new("twodeps");
    let cluster = scene.house.cluster("a", "17", "");
    let (database, label) = (format!("{cluster}-db"), format!("pglife.depends-on={cluster}"));
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let web = scene.house.foreign("web", &["--label", &label, "busybox", "sh", "-c", script]);
    let runs = || docker(&["inspect", "--format", "{{.State.Running}}", &web]).trim() == "true";
    let down_since = |scene: &Scene| {
        let command = scene.house.command_with("one.toml", &["deps", "list", &cluster, "-o", "json"]);
        let listed: Value = serde_json::from_str(&crate::house::run(command).ok().stdout).expect("JSON");
        listed["items"][0]["down_since"].clone()
    };

    scene.start(0);
    assert_eq!(scene.wait_for_leader(), 0);
    scene.start(1);
    docker(&["stop", &database]);
    wait_for("the application's end", || !runs());
    assert_eq!(scene.daemons[0].take().expect("alive").stop(), 0);
    wait_for("the takeover", || scene.leader().is_some_and(|(leader, _)| leader == 1));
    docker(&["start", &database]);
    wait_for("the application", runs);

    // The first one leads again. What it has taken down itself was brought back since, and then stopped by hand.
    assert!(down_since(&scene).is_string());
    docker(&["stop", &web]);
    scene.start(0);
    assert_eq!(scene.daemons[1].take().expect("alive").stop(), 0);
    wait_for("its knowledge", || down_since(&scene).is_null());
    assert!(!runs());
    assert_eq!(scene.daemons[0].take().expect("alive").stop(), 0);
}
