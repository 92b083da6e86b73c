//! A house of its own for each test: configuration, state, repository and clusters that nobody else touches.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::room::Room;

/// The folder, and the clusters made in it.
pub struct House {
    folder: tempfile::TempDir,
    prefix: String,
    /// Given back last, when nothing of the house is left.
    _room: Room,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
    line: String,
}

/// The label of what a test makes with Docker itself; its value begins with the house's name.
const MARK: &str = "pglife.test";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The executable under test.
pub fn executable() -> &'static str {
    env!("CARGO_BIN_EXE_pglife")
}

impl House {
    /// Configuration with one local repository, ready to use. `test` shows in the names of containers.
    pub fn new(test: &str) -> Self {
        let room = Room::wait();
        let folder = tempfile::Builder::new().prefix("pglife-it-").tempdir().expect("a folder");
        // It ends with a letter, so that it is not the beginning of another house's name.
        let prefix = format!("it-{test}-{}-{}h", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let house = Self { folder, prefix, _room: room };
        std::fs::create_dir(house.path("policies")).expect("a folder");
        house.write(
            "pglife.toml",
            // The servers of other tests are none of this house's.
            "state_dir = \"state\"\npolicies = \"policies\"\n\n[coverage]\ncontainers = false\n\n[repos.local]\ntype = \"local\"\npath = \"repo\"\n",
        );
        house.pglife(&["repo", "init"]).ok();
        house
    }

    /// Has everything happen on another Docker engine than the machine's; `host` is what `[hosts.local]` says.
    pub fn on_host(&self, host: &str) {
        let text = std::fs::read_to_string(self.path("pglife.toml")).expect("settings");
        let text = text.split("[hosts.local]").next().expect("the part before").to_owned();
        self.write("pglife.toml", &format!("{text}[hosts.local]\n{host}\n"));
    }

    /// A path inside the house.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    /// Makes two keys, outside of everything pglife is told of, and has backups encrypted for both. Returns their files: the one
    /// for every day, and the escrow one.
    pub fn encrypt(&self) -> [String; 2] {
        let files = ["everyday.key", "escrow.key"].map(|name| self.path(name).to_string_lossy().into_owned());
        let recipients = files.each_ref().map(|file| {
            let made = self.items(&["key", "generate", file]).remove(0);
            made["recipient"].as_str().expect("a recipient").to_owned()
        });
        let settings = std::fs::read_to_string(self.path("pglife.toml")).expect("settings");
        let [everyday, escrow] = &recipients;
        let encryption = format!("\n[encryption]\nrecipients = [\"{everyday}\"]\nescrow = [\"{escrow}\"]\n");
        self.write("pglife.toml", &(settings + &encryption));
        files
    }

    /// Writes a file inside the house.
    pub fn write(&self, inside: &str, text: &str) {
        std::fs::write(self.path(inside), text).expect("written");
    }

    /// Writes a file that only its owner may read.
    pub fn write_secret(&self, inside: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        self.write(inside, text);
        std::fs::set_permissions(self.path(inside), std::fs::Permissions::from_mode(0o600)).expect("set");
    }

    /// The full name of a cluster of this house.
    pub fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// Writes a policy for a managed cluster of `major`; `more` is TOML that follows `[cluster]`'s keys. Returns its full name.
    pub fn policy(&self, short: &str, major: &str, more: &str) -> String {
        let name = self.name(short);
        self.write(&format!("policies/{name}.toml"), &format!("[cluster]\nmajor = \"{major}\"\n{more}\n"));
        name
    }

    /// Makes a running cluster of `major`, with `more` in its policy. Returns its full name.
    pub fn cluster(&self, short: &str, major: &str, more: &str) -> String {
        let name = self.policy(short, major, more);
        self.pglife(&["cluster", "create", &name]).ok();
        name
    }

    /// The command, ready to be changed before it is run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_with("pglife.toml", arguments)
    }

    /// The same with other settings, a file of this house.
    pub fn command_with(&self, settings: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(executable());
        command.arg("--config").arg(self.path(settings)).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs pglife to its end.
    pub fn pglife(&self, arguments: &[&str]) -> Ended {
        run(self.command(arguments))
    }

    /// Runs pglife, which must succeed, and reads the items of its JSON answer.
    pub fn items(&self, arguments: &[&str]) -> Vec<Value> {
        let ended = self.pglife(&[arguments, &["-o", "json"]].concat()).ok();
        let answer: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        answer["items"].as_array().expect("a list").clone()
    }

    /// Takes a backup, which must succeed, and returns the set's id.
    pub fn backup(&self, cluster: &str) -> String {
        self.items(&["backup", cluster])[0]["set"].as_str().expect("an id").to_owned()
    }

    /// Starts a container that is not pglife's (`arguments` is what follows `docker run -d --name …`). Returns its full name.
    pub fn foreign(&self, short: &str, arguments: &[&str]) -> String {
        let name = self.name(short);
        let mark = format!("{MARK}={}", self.prefix);
        docker(&[&["run", "-d", "--name", &name, "--label", &mark], arguments].concat());
        name
    }

    /// Makes a volume that is not pglife's. Returns its full name.
    pub fn volume(&self, short: &str) -> String {
        let name = self.name(short);
        docker(&["volume", "create", "--label", &format!("{MARK}={}", self.prefix), &name]);
        name
    }

    /// The manifest of a committed set that is not encrypted.
    pub fn manifest(&self, cluster: &str, set: &str) -> Value {
        let text = std::fs::read_to_string(self.set_folder(cluster, set).join("manifest.json")).expect("a manifest");
        // What follows it is its own digest.
        serde_json::Deserializer::from_str(&text).into_iter().next().expect("a document").expect("JSON")
    }

    /// The folder of a committed set.
    pub fn set_folder(&self, cluster: &str, set: &str) -> PathBuf {
        let lineages = std::fs::read_dir(self.path("repo").join(cluster)).expect("the cluster's folder");
        let mut folders = lineages.map(|entry| entry.expect("an entry").path().join("sets").join(set));
        folders.find(|folder| folder.is_dir()).expect("the set's folder")
    }
}

/// Every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

impl Drop for House {
    fn drop(&mut self) {
        // Only what has the name of this house in its own, or in its cluster's, or was marked as the house's.
        let mine = |kind: &[&str], name: &str| -> Vec<String> {
            let format = format!("{{{{.{name}}}}} {{{{.Label \"pglife.cluster\"}}}} {{{{.Label \"{MARK}\"}}}}");
            let listed = docker(&[kind, &["--format", &format]].concat());
            let of_house = listed.lines().filter(|line| line.contains(&self.prefix));
            of_house.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
        };
        for container in mine(&["ps", "-a"], "Names") {
            try_docker(&["rm", "-f", "-v", &container]);
        }
        for volume in mine(&["volume", "ls"], "Name") {
            try_docker(&["volume", "rm", "-f", &volume]);
        }
    }
}

impl Ended {
    /// What came of the command that `line` describes; killed by a signal, its exit is -1.
    pub fn of(output: Output, line: String) -> Self {
        Self {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            line,
        }
    }

    /// It must have ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// It must have ended with `exit`.
    #[track_caller]
    pub fn exits(self, exit: i32) -> Self {
        assert_eq!(self.exit, exit, "{}\n--- stdout\n{}\n--- stderr\n{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Its stderr must contain every one of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{}: {part:?} is not in\n{}", self.line, self.stderr);
        }
        self
    }
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Ended {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Ended::of(output, format!("{command:?}"))
}

fn docker_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs docker, which must succeed, and returns its stdout.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    try_docker(arguments).ok().stdout
}

/// Runs docker to its end.
pub fn try_docker(arguments: &[&str]) -> Ended {
    run(docker_command(arguments))
}

/// Runs docker, which must succeed, with its stdout in a file: for what is not text of one encoding.
#[track_caller]
pub fn docker_to_file(arguments: &[&str], file: &Path) {
    let mut command = docker_command(arguments);
    command.stdout(std::fs::File::create(file).expect("a file"));
    run(command).ok();
}

/// Runs SQL as the bootstrap role inside a database container and returns what psql prints, unaligned, tuples only.
#[track_caller]
pub fn sql(container: &str, database: &str, text: &str) -> String {
    let command = psql(container, database, text);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    docker(&command).trim_end().to_owned()
}

/// What docker is told for [`sql`].
pub fn psql(container: &str, database: &str, text: &str) -> Vec<String> {
    // A connection string, because a plain name with `=` in it would be taken for one.
    let database = format!("dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"));
    let psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", &database, "-c", text];
    ["exec", "-i", container].iter().chain(&psql).map(|&word| word.to_owned()).collect()
}

/// A port of this machine that nobody uses, and that nobody is given who asks the kernel for any: those begin at 32,768.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = (0..12_000).map(|_| {
        let next = std::process::id().wrapping_mul(131).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        20_000 + u16::try_from(next % 12_000).expect("small")
    });
    let mut free = ports.filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.next().expect("a port that is free")
}

/// Waits until `done` holds.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until the server in a container answers by TCP, which it does only when it is set up.
#[track_caller]
pub fn wait_for_server(container: &str) {
    wait_for(&format!("the start of {container}"), || {
        try_docker(&["exec", container, "pg_isready", "-q", "-h", "127.0.0.1"]).exit == 0
    });
}
