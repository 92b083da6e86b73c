//! Docker is down, goes away in the middle, or has not what is needed.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::{Beside, Scene, docker_has, eventually, workers_of};
use crate::house::{House, docker};

const SOCKET: &str = "/var/run/docker.sock";

/// A socket in front of the engine's that can be cut.
struct Proxy {
    socket: PathBuf,
    open: Arc<Mutex<Option<Vec<UnixStream>>>>,
}

impl Proxy {
    fn at(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let connections = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(engine)) = (client, UnixStream::connect(SOCKET)) else { return };
                let mut connections = connections.lock().expect("no panic");
                let Some(connections) = connections.as_mut() else { return };
                for (from, to) in [(&client, &engine), (&engine, &client)] {
                    let (from, to) = (from.try_clone().expect("a clone"), to.try_clone().expect("a clone"));
                    connections.push(from.try_clone().expect("a clone"));
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        Self { socket, open }
    }

    /// Nobody gets through any more.
    fn cut(&self) {
        std::fs::remove_file(&self.socket).expect("removed");
        for connection in self.open.lock().expect("no panic").take().expect("cut once") {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    std::io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Write).ok();
}

fn use_socket(house: &House, socket: &str) {
    house.on_host(&format!("endpoint = \"unix://{socket}\""));
}

#[test]
fn an_engine_that_is_down_is_told_as_such() {
    let scene = Scene::new("engine");
    use_socket(&scene.house, "/nonexistent.sock");
    let down =
        ["the Docker engine of host \"local\" (unix:///nonexistent.sock) does not answer", "docker info", "[hosts]"];
    scene.house.pglife(&["backup", &scene.cluster]).exits(14).says(&down).says(&[&scene.cluster, "\n  next: "]);
    scene.house.pglife(&["cluster", "create", &scene.cluster]).exits(14).says(&down);
    scene.house.pglife(&["cluster", "remove", &scene.cluster, "--yes"]).exits(14).says(&down);
    let copy = scene.house.name("copy");
    scene.house.pglife(&["restore", &scene.cluster, "--into", &copy]).exits(14).says(&down);
    scene.house.pglife(&["doctor"]).exits(14);
    // What needs no engine works without one.
    scene.holds(&[&scene.good]);
    let status = scene.house.pglife(&["status"]).exits(3).says(&["does not answer"]);
    assert!(status.stdout.contains("unknown"), "{status:?}");

    // A socket that nobody listens on, and one behind which nobody speaks HTTP.
    let dead = scene.house.path("dead.sock");
    drop(UnixListener::bind(&dead).expect("a socket"));
    use_socket(&scene.house, &dead.to_string_lossy());
    scene.house.pglife(&["backup", &scene.cluster]).exits(14).says(&["does not answer"]);
    let odd = scene.house.path("odd.sock");
    let listener = UnixListener::bind(&odd).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.and_then(|mut stream| stream.write_all(b"220 smtp.example.org\r\n")).ok();
        }
    });
    use_socket(&scene.house, &odd.to_string_lossy());
    scene.house.pglife(&["backup", &scene.cluster]).exits(14).says(&["does not answer"]);

    use_socket(&scene.house, SOCKET);
    scene.recovers();
}

#[test]
fn an_engine_that_goes_away_in_the_middle_of_a_backup() {
    let scene = Scene::new("cut");
    let socket = scene.house.path("proxy.sock");
    let proxy = Proxy::at(socket.clone());
    use_socket(&scene.house, &socket.to_string_lossy());
    let holder = scene.hold();
    let beside = scene.backup_that_waits();
    let worker = workers_of(&scene.cluster).remove(0);
    proxy.cut();
    beside.ended().exits(14).says(&["does not answer"]).says(&scene.failure());
    // The engine itself is there, and the worker noticed that nobody listens any more.
    eventually("the worker ends by itself", || {
        docker(&["inspect", "-f", "{{.State.Running}}", &worker]).trim() == "false"
    });
    drop(holder);
    let listed = scene.house.items(&["backups", "list", &scene.cluster]);
    assert_eq!(listed.len(), 1);
    use_socket(&scene.house, SOCKET);
    let next = scene.house.backup(&scene.cluster);
    scene.holds(&[&scene.good, &next]);
}

#[test]
fn an_engine_that_goes_away_in_the_middle_of_a_restore() {
    let scene = Scene::new("cutr");
    let socket = scene.house.path("proxy.sock");
    let proxy = Proxy::at(socket.clone());
    use_socket(&scene.house, &socket.to_string_lossy());
    let copy = scene.house.name("copy");
    let beside = Beside::start(scene.house.command(&["restore", &scene.cluster, "--into", &copy]));
    eventually("the restore's worker is there", || !workers_of(&copy).is_empty());
    proxy.cut();
    beside.ended().exits(14).says(&["does not answer", &copy, "\n  safe: ", "\n  next: "]);
    assert!(!docker_has(&copy).is_empty(), "cut too late");
    use_socket(&scene.house, SOCKET);
    // The same command again.
    scene.house.pglife(&["restore", &scene.cluster, "--into", &copy]).ok();
    scene.recovers();
}

#[test]
fn a_missing_image_is_named() {
    let house = House::new("image");
    let cluster = house.policy("c", "17", "image = \"pglife/nonexistent:1\"");
    let create = ["cluster", "create", &cluster];
    house.pglife(&create).exits(5).says(&[
        &cluster,
        "the image pglife/nonexistent:1 is not on host \"local\"",
        "\n  safe: ",
        "\n  next: pull or build pglife/nonexistent:1",
    ]);
    assert_eq!(docker_has(&cluster), [""; 0]);
    house.pglife(&["doctor"]).exits(5).says(&["pull or build"]);
    // An image without PostgreSQL in it.
    house.policy("c", "17", "image = \"busybox\"");
    let ended = house.pglife(&create);
    assert!([1, 4].contains(&ended.exit), "{ended:?}");
    ended.says(&[&cluster, "\n  safe: "]);
    assert_eq!(docker_has(&cluster), [""; 0]);
    // Another major than the policy says.
    house.policy("c", "15", "image = \"pglife/postgres:17\"");
    house
        .pglife(&create)
        .exits(2)
        .says(&["the policy says PostgreSQL 15, the image pglife/postgres:17 has 17", "\n  safe: "]);
    assert_eq!(docker_has(&cluster), [""; 0]);
    house.policy("c", "17", "");
    house.pglife(&create).ok();
}
