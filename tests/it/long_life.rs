//! Years of the daemon in two minutes: three thousand scheduled runs in one process, which must not grow with them.
//!
//! Most runs are of clusters on a host that is down: copies of these fail, and verifications have nothing to read. A dozen clusters
//! are real to the daemon; behind all of them is one server, reached by a dozen paths of the same engine's socket.

#![expect(clippy::print_stderr, reason = "libtest shows it where the test fails")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::house::{House, docker, files_below, wait_for_server};

const REAL: usize = 12;
const HOLLOW: usize = 340;
/// So many runs are a life, and a tenth of them its youth.
const LIFE: usize = 3000;
/// Every minute has a slot of about a thousand schedules. It takes about two minutes; a slow machine may take longer.
const LONGEST: Duration = Duration::from_secs(900);

/// What may have grown from the youth to the end. The daemon holds the newest 200 runs of each cluster, of which there are hardly
/// ten in such a life; that is 10 to 14 MiB here.
const MEMORY_KIB: u64 = 24 << 10;
/// Runs that are on at that moment have some open.
const OPEN_FILES: usize = 20;
/// On disk a run is a row, and its event another.
const DISK_BYTES_PER_RUN: u64 = 1024;
/// Each run that is on has a file for its lock; each cluster keeps one.
const STATE_FILES: usize = 50;

/// The daemon from outside.
#[derive(Debug)]
struct Size {
    memory_kib: u64,
    open_files: usize,
    containers: usize,
    state_files: usize,
    disk_bytes: u64,
}

/// The daemon's house.
struct Life {
    house: House,
    daemon: Daemon,
}

impl Life {
    fn begin() -> Self {
        let house = House::new("longlife");
        let server = house.foreign("db", &["-e", "POSTGRES_PASSWORD=x", "pglife/test-official:17"]);
        wait_for_server(&server);
        let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
        let mut hosts = format!("[hosts.down]\nendpoint = \"unix://{}\"\n", house.path("nobody.sock").display());
        for number in 0..REAL {
            let socket = house.path(&format!("{number}.sock"));
            std::os::unix::fs::symlink("/var/run/docker.sock", &socket).expect("a link");
            hosts.push_str(&format!("[hosts.h{number}]\nendpoint = \"unix://{}\"\n", socket.display()));
            let place = format!("container = \"{server}\"\npgdata = \"/var/lib/postgresql/data\"");
            let kept = "[retention]\nlast = 2\n";
            write_policy(&house, &format!("real{number}"), &format!("h{number}"), &place, kept);
        }
        for number in 0..HOLLOW {
            let volume = "[backup.volume]\nschedule = \"* * * * *\"\nsplay = \"50s\"\n";
            write_policy(&house, &format!("hollow{number}"), "down", "", volume);
        }
        let daemon = "[http]\nlisten = \"off\"\n[daemon]\nruns_per_host = 2\nruns_per_repository = 6\n";
        house.write("pglife.toml", &format!("{settings}{hosts}{daemon}"));
        house.pglife(&["policy", "validate"]).ok();
        let daemon = Daemon::start(&house);
        Self { house, daemon }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.house.path("daemon.log")).expect("a log")
    }

    fn runs(&self) -> usize {
        self.log().matches("a run starts").count()
    }

    fn size(&self) -> Size {
        let process = PathBuf::from(format!("/proc/{}", self.daemon.id()));
        let status = std::fs::read_to_string(process.join("status")).expect("it lives");
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let state = files_below(&self.house.path("state"));
        // Some are gone by now.
        let bytes = state.iter().map(|file| file.metadata().map_or(0, |metadata| metadata.len()));
        Size {
            memory_kib: memory.expect("a number").trim().parse().expect("a number"),
            open_files: std::fs::read_dir(process.join("fd")).expect("it lives").count(),
            containers: workers(&self.house),
            state_files: state.len(),
            disk_bytes: bytes.sum(),
        }
    }

    /// Waits until so many runs have started; how large it is then.
    fn live(&self, runs: usize, deadline: Instant) -> Size {
        while self.runs() < runs {
            assert!(Instant::now() < deadline, "{} of {runs} runs", self.runs());
            std::thread::sleep(Duration::from_secs(1));
        }
        self.size()
    }
}

/// How many containers there are besides the server.
fn workers(house: &House) -> usize {
    let names = docker(&["ps", "-a", "--format", "{{.Label \"pglife.cluster\"}}"]);
    names.lines().filter(|name| name.contains(&house.name(""))).count()
}

/// A policy with a dump and a verification every minute, and what else it says.
fn write_policy(house: &House, short: &str, host: &str, place: &str, more: &str) {
    let schedule = "schedule = \"* * * * *\"\nsplay = \"50s\"\n";
    house.policy(
        short,
        "17",
        &format!("host = \"{host}\"\n{place}\n[backup.dump]\n{schedule}{more}[verify]\n{schedule}sample = \"1/1\"\n"),
    );
}

#[test]
fn three_thousand_runs_leave_the_daemon_as_small_as_three_hundred() {
    let deadline = Instant::now() + LONGEST;
    let life = Life::begin();
    let young = life.live(LIFE / 10, deadline);
    let old = life.live(LIFE, deadline);
    let what = format!("young {young:?}, old {old:?}");
    eprintln!("{what}");
    assert!(old.memory_kib < young.memory_kib + MEMORY_KIB, "{what}");
    assert!(old.open_files < young.open_files + OPEN_FILES, "{what}");
    assert!(old.containers <= REAL, "{what}");
    assert!(old.state_files < young.state_files + STATE_FILES, "{what}");
    let runs = u64::try_from(LIFE).expect("small");
    assert!(old.disk_bytes < young.disk_bytes + runs * DISK_BYTES_PER_RUN, "{what}");
    let Life { house, daemon } = life;
    assert_eq!(daemon.stop(), 0);
    assert_eq!(workers(&house), 0);
    // There was real work among it.
    let all = house.items(&["events", "-n", "10000"]);
    let count = |kind: &str| all.iter().filter(|event| event["kind"] == kind).count();
    let told = ["backup.succeeded", "prune.done", "verify.done", "backup.failed"].map(|kind| (kind, count(kind)));
    eprintln!("{told:?}");
    let [(_, taken), (_, pruned), (_, verified), (_, failed)] = told;
    assert!(taken >= 2 * REAL && verified > LIFE / 4 && failed > LIFE / 3, "{told:?}");
    // Of each cluster two stay, and each one more has an older one go.
    assert!(pruned > 0 && pruned >= taken - 2 * REAL, "{told:?}");
}
