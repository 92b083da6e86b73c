//! Years of the daemon in two minutes: three thousand scheduled runs in one process, which must not grow with them.
//!
//! Most runs are of clusters on a host that is down: copies of these fail, and verifications have nothing to read. A dozen clusters
//! are real to the daemon; behind all of them is one server, reached by a dozen paths of the same engine's socket.

#![expect(clippy::print_stderr, reason = "libtest shows it where the test fails")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, events};
use crate::house::{House, docker, wait_for_server};

const REAL: usize = 12;
const HOLLOW: usize = 340;
/// So many runs are a life, and a tenth of them its youth.
const LIFE: usize = 3000;
/// It takes about two minutes; a slow machine may take longer.
const LONGEST: Duration = Duration::from_secs(400);

/// What may have grown from the youth to the end.
const MEMORY_KIB: u64 = 24 << 10;
const FILES: usize = 12;
/// On disk a run is a row, and its event another.
const DISK_BYTES_PER_RUN: u64 = 1024;

/// The daemon from outside.
#[derive(Debug)]
struct Size {
    memory_kib: u64,
    files: usize,
    containers: usize,
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
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let names = docker(&["ps", "-a", "--format", "{{.Label \"pglife.cluster\"}}"]);
        let state = std::fs::read_dir(self.house.path("state")).expect("a folder");
        let sizes = state.map(|entry| entry.expect("an entry").metadata().map_or(0, |metadata| metadata.len()));
        Size {
            memory_kib: memory.expect("a number").trim().parse().expect("a number"),
            files: std::fs::read_dir(process.join("fd")).expect("it lives").count(),
            containers: names.lines().filter(|name| name.contains(&self.house.name(""))).count(),
            disk_bytes: sizes.sum(),
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
    assert!(old.files < young.files + FILES, "{what}");
    assert!(old.containers <= REAL, "{what}");
    let runs = u64::try_from(LIFE).expect("small");
    assert!(old.disk_bytes < young.disk_bytes + runs * DISK_BYTES_PER_RUN, "{what}");
    let Life { house, daemon } = life;
    assert_eq!(daemon.stop(), 0);
    assert!(!events(&house, "backup.succeeded").is_empty(), "some of it was real");
}
