//! A Docker engine of a test's own, that may be killed and started again, or reached over TLS, while every other test goes on
//! with the machine's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use crate::house::{Ended, docker, psql, run, wait_for};

/// The engine; everything in it goes with it.
pub struct OwnEngine {
    folder: tempfile::TempDir,
    bridge: Bridge,
    /// Where it listens besides its socket, and with which certificates: keys of dockerd's configuration file.
    more: Value,
    process: Option<Child>,
    /// What keeps its containers, whether it runs or not.
    keeper: Child,
}

impl OwnEngine {
    /// Starts one that has `images` of the machine's engine.
    pub fn with_images(images: &[&str]) -> Self {
        let engine = Self::start(json!({}));
        engine.load(images);
        engine
    }

    /// Starts one without images; `more` are keys for its configuration file.
    pub fn start(more: Value) -> Self {
        // A socket's path may have 107 letters.
        let folder = tempfile::Builder::new().prefix("pglife-own-").tempdir_in("/tmp").expect("a folder");
        let keeper = keeper(folder.path());
        let mut engine = Self { folder, bridge: Bridge::new(), more, process: None, keeper };
        engine.begin();
        engine
    }

    /// Hands it images of the machine's engine.
    pub fn load(&self, images: &[&str]) {
        let mut save = Command::new("docker").arg("save").args(images).stdout(Stdio::piped()).spawn().expect("docker");
        let mut load = Command::new("docker");
        load.args(["-H", &self.endpoint(), "load"]).stdin(save.stdout.take().expect("a pipe"));
        run(load).ok();
        assert!(save.wait().expect("it ends").success(), "docker save {images:?}");
    }

    /// A path in its folder.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    /// Its socket, as an endpoint.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// The address at which its containers reach this machine.
    pub fn gateway(&self) -> &str {
        &self.bridge.address
    }

    /// Runs docker on it to its end.
    pub fn try_docker(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new("docker");
        command.args(["-H", &self.endpoint()]).args(arguments).stdin(Stdio::null());
        run(command)
    }

    /// Runs docker on it, which must succeed, and returns its stdout.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        self.try_docker(arguments).ok().stdout
    }

    /// Runs SQL inside a database container of its own, as [`crate::house::sql`] does.
    #[track_caller]
    pub fn sql(&self, container: &str, database: &str, text: &str) -> String {
        let command = psql(container, database, text);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.docker(&command).trim_end().to_owned()
    }

    /// Waits until a server in it answers.
    #[track_caller]
    pub fn wait_for_server(&self, container: &str) {
        let ask = psql(container, "postgres", "select 1");
        let ask: Vec<&str> = ask.iter().map(String::as_str).collect();
        wait_for("the server answers", || self.try_docker(&ask).exit == 0);
    }

    /// Kills the engine's process; its containers go on, and the next one finds them.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it is killed");
        process.wait().expect("it ends");
    }

    /// Ends it as its service manager would: its containers are stopped.
    pub fn stop(&mut self) {
        if let Some(process) = &mut self.process.take() {
            end(process);
        }
    }

    /// Starts it, and waits until it answers.
    pub fn begin(&mut self) {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let mut settings = json!({
            "data-root": path("data"),
            "exec-root": path("run"),
            "containerd": path("containerd.sock"),
            "pidfile": path("pid"),
            "hosts": [self.endpoint()],
            "storage-driver": docker(&["info", "--format", "{{.Driver}}"]).trim(),
            // It leaves the machine's network alone. Without a bridge of its own it would remove the machine's.
            "bridge": self.bridge.name,
            "iptables": false,
            "ip-forward": false,
            "log-level": "warn",
        });
        for (key, value) in self.more.as_object().expect("keys") {
            match (settings[key].as_array_mut(), value.as_array()) {
                (Some(list), Some(more)) => list.extend_from_slice(more),
                _ => settings[key] = value.clone(),
            }
        }
        let file = self.path("daemon.json");
        std::fs::write(&file, settings.to_string()).expect("written");
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a file");
        let mut dockerd = Command::new("dockerd");
        dockerd.arg("--config-file").arg(&file).stdin(Stdio::null());
        dockerd.stdout(log.try_clone().expect("a clone")).stderr(log);
        self.process = Some(dockerd.spawn().expect("dockerd starts; this needs root"));
        wait_for("the engine answers", || {
            let process = self.process.as_mut().expect("it was started");
            if let Some(ended) = process.try_wait().expect("a child") {
                panic!("dockerd {ended}: {}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
            }
            self.try_docker(&["version"]).exit == 0
        });
    }
}

#[expect(clippy::print_stderr, reason = "it is all that is left of an engine in a test that failed")]
impl Drop for OwnEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(10).collect();
            eprintln!("the engine's last words, the last first: {last:#?}");
        }
        if self.process.is_none() && !std::thread::panicking() {
            self.begin();
        }
        let list = self.try_docker(&["ps", "-aq"]).stdout;
        let containers: Vec<&str> = list.lines().collect();
        if !containers.is_empty() {
            self.try_docker(&[&["rm", "-f", "-v"], &containers[..]].concat());
        }
        self.stop();
        end(&mut self.keeper);
        for mount in mounts_below(self.folder.path()) {
            run({
                let mut umount = Command::new("umount");
                umount.arg("-l").arg(mount);
                umount
            });
        }
    }
}

/// Starts containerd. Dockerd would start one of its own, which dies with it.
fn keeper(folder: &Path) -> Child {
    let path = |name: &str| folder.join(name);
    let socket = path("containerd.sock");
    let mut containerd = Command::new("containerd");
    containerd.arg("--root").arg(path("containerd")).arg("--state").arg(path("containerd-run"));
    containerd.arg("--address").arg(&socket).arg("--log-level").arg("error").stdin(Stdio::null());
    let keeper = containerd.spawn().expect("containerd starts; this needs root");
    wait_for("containerd listens", || socket.exists());
    keeper
}

/// Asks a process to end, and waits for that.
fn end(process: &mut Child) {
    let mut kill = Command::new("kill");
    kill.arg(process.id().to_string());
    run(kill);
    process.wait().ok();
}

/// Where its containers are, and meet this machine, and nobody else.
struct Bridge {
    name: String,
    address: String,
}

static COUNT: AtomicU8 = AtomicU8::new(1);

impl Bridge {
    fn new() -> Self {
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("pglt{process}-{count}");
        let address = format!("10.{}.{count}.1", 128 + process % 100);
        let bridge = Self { name, address };
        ip(&["link", "add", &bridge.name, "type", "bridge"]);
        ip(&["addr", "add", &format!("{}/24", bridge.address), "dev", &bridge.name]);
        ip(&["link", "set", &bridge.name, "up"]);
        bridge
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        ip(&["link", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command).ok();
}

/// What is still mounted below a folder, the deepest first.
fn mounts_below(folder: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut below: Vec<String> =
        points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect();
    below.sort_by_key(|point| std::cmp::Reverse(point.len()));
    below
}
