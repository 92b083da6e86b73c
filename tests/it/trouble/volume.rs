//! Volume backups of servers that do not stand still.

use std::time::{Duration, Instant};

use super::{Beside, eventually};
use crate::house::{House, docker, sql};

struct Copied {
    house: House,
    cluster: String,
    container: String,
}

impl Copied {
    /// An empty cluster, of which about 25 MB are copied.
    fn new(test: &str, major: &str, rate_limit: &str) -> Self {
        let house = House::new(test);
        let cluster = house.cluster("c", major, &format!("[backup.volume]\nrate_limit = \"{rate_limit}\""));
        let container = format!("{cluster}-db");
        Self { house, cluster, container }
    }

    fn ask(&self, statement: &str) -> String {
        sql(&self.container, "postgres", statement)
    }

    /// A backup that runs beside the test, with the server in backup mode.
    fn copying(&self) -> Beside {
        let beside = Beside::start(self.house.command(&["backup", &self.cluster, "--kind", "volume"]));
        let slots = "select count(*) from pg_replication_slots where temporary and restart_lsn is not null";
        eventually("backup mode", || self.ask(slots) == "1");
        beside
    }
}

#[test]
fn a_server_that_leaves_backup_mode_ends_the_copy() {
    let scene = Copied::new("volleft", "17", "1MB/s");
    scene.ask("alter system set max_slot_wal_keep_size = '16MB'");
    scene.ask("select pg_reload_conf()");
    for trouble in ["killed", "restarted", "terminated", "crashed", "without WAL"] {
        let beside = scene.copying();
        match trouble {
            "killed" => drop(docker(&["kill", &scene.container])),
            "restarted" => drop(docker(&["restart", &scene.container])),
            "terminated" => {
                let ended = "select bool_and(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pglife'";
                assert_eq!(scene.ask(ended), "t");
            }
            "crashed" => {
                let crash = "kill -9 $(pgrep -f '^postgres: checkpointer')";
                docker(&["exec", &scene.container, "sh", "-c", crash]);
            }
            _ => {
                let fill = "create table filler as select repeat(md5(n::text), 30) from generate_series(1, 60000) n";
                for _ in 0..3 {
                    scene.ask(fill);
                    scene.ask("drop table filler");
                    scene.ask("select pg_switch_wal()");
                    scene.ask("checkpoint");
                }
            }
        }
        let begun = Instant::now();
        let words = ["left backup mode", &scene.cluster, "\n  safe: ", "\n  next: see what the server says"];
        beside.ended().exits(15).says(&words);
        // The rest of the copy alone would take longer.
        assert!(begun.elapsed() < Duration::from_secs(10), "{trouble}: {:?}", begun.elapsed());
        assert_eq!(scene.house.items(&["backups", "list", &scene.cluster]).len(), 0, "{trouble}");
        if trouble == "killed" {
            docker(&["start", &scene.container]);
        }
        eventually("the server", || scene.house.pglife(&["backup", &scene.cluster, "--dry-run"]).exit == 0);
    }
    scene.house.policy("c", "17", "");
    scene.house.pglife(&["backup", &scene.cluster, "--kind", "volume"]).ok();
}

/// Its folder is made when the folder around it was copied already.
#[test]
fn a_tablespace_that_is_made_meanwhile_is_in_the_copy() {
    for major in ["13", "17"] {
        let scene = Copied::new(&format!("voltbs{major}"), major, "4MB/s");
        let beside = scene.copying();
        // The copy has left the volume's top behind when it is at work inside the data directory.
        std::thread::sleep(Duration::from_millis(1500));
        let folder = ["install", "-d", "-o", "postgres", "-g", "postgres", "/data/a late/one"];
        docker(&[&["exec", &scene.container], &folder[..]].concat());
        scene.ask("create tablespace late location '/data/a late/one'");
        scene.ask("create table kept tablespace late as select n from generate_series(1, 20000) n");
        beside.ended().ok();
        let copy = scene.house.name("copy");
        scene.house.pglife(&["restore", &scene.cluster, "--backup", "latest:volume", "--into", &copy]).ok();
        assert_eq!(sql(&format!("{copy}-db"), "postgres", "select count(*), sum(n) from kept"), "20000|200010000");
    }
}
