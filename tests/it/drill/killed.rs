//! Drills in which something dies, at whichever stage: no certificate, nothing left behind, and the cluster itself saw nothing of it.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::house::{House, docker, sql, try_docker, wait_for};

use super::{certificates, drill, of_drills, shop};

/// Looks again and again who of pglife is in a server.
struct Watch {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Vec<String>>,
}

impl Watch {
    fn of(container: &str) -> Self {
        let (container, stop) = (container.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let looking = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let visitors = "select query from pg_stat_activity where application_name ~ '^pglife|^pg_'";
                seen.extend(sql(&container, "postgres", visitors).lines().map(str::to_owned));
                std::thread::sleep(Duration::from_millis(100));
            }
            seen
        });
        Self { stop, looking }
    }

    fn seen(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.join().expect("it looks")
    }
}

fn begin(house: &House, cluster: &str) -> Child {
    house.command(&["drill", cluster]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
}

fn is_there(name: &str) -> bool {
    docker(&["ps", "-a", "--format", "{{.Names}}"]).lines().any(|one| one == name)
}

/// The worker beside the server of the drill.
fn worker(cluster: &str) -> Option<String> {
    let of_drill = format!("label=pglife.cluster={cluster}-drill");
    let list = docker(&["ps", "-q", "--filter", &of_drill, "--filter", "label=pglife.purpose=worker"]);
    list.lines().next().map(str::to_owned)
}

/// Whether a restore into the server stands at the view that takes its time.
fn restores(server: &str) -> bool {
    let refreshing = "select count(*) from pg_stat_activity where query ~* '^ *refresh' and state = 'active'";
    let answer = try_docker(&["exec", server, "psql", "-U", "postgres", "-Atc", refreshing]);
    answer.exit == 0 && answer.stdout.trim() != "0"
}

#[test]
fn whatever_dies_there_is_no_certificate_and_nothing_is_left() {
    let house = House::new("drillkill");
    let (cluster, _) = shop(&house, "");
    let (container, server) = (format!("{cluster}-db"), format!("{cluster}-drill-db"));
    sql(&container, "postgres", "alter system set autovacuum = off");
    sql(&container, "postgres", "select pg_reload_conf()");
    // It is computed anew when it is restored: long enough to be hit.
    sql(&container, "orders", "create materialized view slow as select pg_sleep(4) is null as slept");
    let set = house.backup(&cluster);
    let state = || {
        sql(
            &container,
            "postgres",
            "select txid_snapshot_xmax(txid_current_snapshot()), sum(pg_database_size(oid)) from pg_database",
        )
    };
    let before = state();
    let watch = Watch::of(&container);

    // pglife itself: what it leaves the next command removes.
    let (data, beside) = (format!("{cluster}-drill-data"), || worker(&cluster).is_some());
    let stages: [(&str, &dyn Fn() -> bool); 4] = [
        ("the data container", &|| is_there(&data)),
        ("the server", &|| is_there(&server)),
        ("a worker", &beside),
        ("the restore", &|| restores(&server)),
    ];
    for (stage, reached) in stages {
        let mut child = begin(&house, &cluster);
        wait_for(stage, reached);
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        assert_eq!(certificates(&house, &cluster), Vec::<Value>::new(), "{stage}");
        assert!(!of_drills(&house).is_empty(), "{stage}");
    }
    // Its worker, or its server: that is no verdict, and pglife removes what it made.
    for victim in ["worker", "server"] {
        let mut child = begin(&house, &cluster);
        wait_for("the restore", || restores(&server));
        let killed = if victim == "worker" { worker(&cluster).expect("a worker") } else { server.clone() };
        docker(&["kill", &killed]);
        let exit = child.wait().expect("it ends").code().expect("an exit code");
        assert!(![0, 3, 20].contains(&exit), "{victim}: exit {exit}");
        assert_eq!(certificates(&house, &cluster), Vec::<Value>::new(), "{victim}");
        assert_eq!(of_drills(&house), Vec::<String>::new(), "{victim}");
        let last = house.items(&["status", &cluster])[0]["proof"]["last_drill"]["result"].clone();
        assert!(last != "proven" && last != "bad", "{victim}: {last}");
    }
    // And the backup is as good as ever.
    drill(&house, &[&cluster, "--backup", &set], 0);
    assert_eq!(of_drills(&house), Vec::<String>::new());

    // The cluster saw nothing of all this: no session, no transaction, not a byte.
    assert_eq!(watch.seen(), Vec::<String>::new());
    assert_eq!(state(), before);
    let log = docker(&["exec", &container, "sh", "-c", "cat /log/*"]);
    assert!(!log.contains("PANIC") && !log.contains("was terminated by signal"), "{log}");
    // A backup goes on while one is killed, and clears what is left.
    let mut child = begin(&house, &cluster);
    wait_for("the server", || is_there(&server));
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    house.backup(&cluster);
    assert_eq!(of_drills(&house), Vec::<String>::new());
}
