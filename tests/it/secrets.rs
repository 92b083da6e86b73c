//! Passwords are where they must be, and nowhere else.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::house::{Ended, House, docker, files_below, try_docker, wait_for_server};

/// Each password has letters in it that occur nowhere else and that no quoting changes.
const ADMIN: (&str, &str) = ("S3cret 'ad\"min\\ $w ", "Qadmin7Lq");
const ROLE: (&str, &str) = ("S3cret 'ro\"le\\ $w ", "Qrole8Zw");
const ADOPTED: (&str, &str) = ("S3cret 'ad\"opted\\ $w ", "Qadopted9Vx");
const VARIABLE: &str = "Qvariable5Tp";

#[test]
fn passwords_are_nowhere_else() {
    let house = House::new("secret");
    let word = |(quotes, letters): (&str, &str)| format!("{quotes}{letters}");
    let mut seen = Seen { house: &house, places: Vec::new() };

    // A managed cluster whose admin has a password from a file, one with a generated password, and an adopted one.
    house.write("admin.password", &word(ADMIN));
    let file = house.path("admin.password").to_string_lossy().into_owned();
    let given = house.policy("given", "17", &format!("admin_password_file = \"{file}\""));
    let made = house.policy("made", "17", "");
    seen.runs(&["-vv", "cluster", "create", &given]);
    seen.runs(&["-vv", "cluster", "create", &made]);
    let kept = house.path(&format!("state/secrets/{made}.admin"));
    let generated = std::fs::read_to_string(&kept).expect("the generated password").trim().to_owned();
    assert!(generated.len() >= 20);
    assert_eq!(std::fs::metadata(&kept).expect("there").permissions().mode() & 0o777, 0o600);

    house.write("adopted.password", &word(ADOPTED));
    let mount = format!("{}:/word:ro", house.path("adopted.password").display());
    let variable = format!("APP_PASSWORD={VARIABLE}");
    let variables = ["TEST_LOCAL_AUTH=scram-sha-256", "POSTGRES_PASSWORD_FILE=/word", &variable];
    let options: Vec<&str> = variables.iter().flat_map(|variable| ["-e", variable]).chain(["-v", &mount]).collect();
    let adopted = house.foreign("adopted", &[&options[..], &["pglife/test-official:17"]].concat());
    wait_for_server(&adopted);
    let password_file = house.path("adopted.password").to_string_lossy().into_owned();
    seen.runs(&["-vv", "cluster", "adopt", &adopted, "--password-file", &password_file]);

    let containers = [format!("{given}-db"), format!("{made}-db")];
    for container in &containers {
        let quoted = word(ROLE).replace('\'', "''");
        say(container, &format!("create role keeper login password '{quoted}';"));
    }
    // They do what they are for.
    for (container, password) in [(&containers[0], &word(ADMIN)), (&containers[1], &generated)] {
        let login = ["exec", "-e", &format!("PGPASSWORD={password}"), container, "psql", "-X", "-h", "127.0.0.1"];
        docker(&[&login[..], &["-U", "admin", "-d", "admin", "-c", "select 1"]].concat());
    }

    // Whatever is started meanwhile is looked at while it runs.
    for cluster in [&given, &made, &adopted] {
        seen.runs_watched(&["-vv", "backup", cluster], cluster);
    }
    let copy = house.name("copy");
    seen.runs_watched(&["-vv", "restore", &given, "--into", &copy], &copy);
    seen.runs(&["backups", "show", &given, "-o", "json"]);
    seen.runs(&["cluster", "show", &given, "-o", "json"]);
    seen.runs(&["status", "-o", "wide"]);
    seen.runs(&["doctor", "-vv"]);

    let mut images = BTreeSet::new();
    let all = docker(&["ps", "-a", "--format", "{{.Names}}"]);
    for container in all.lines().filter(|name| name.starts_with(&house.name(""))) {
        images.insert(docker(&["inspect", "--format", "{{.Image}}", container]));
        let logs = try_docker(&["logs", container]);
        seen.look(&format!("logs of {container}"), format!("{}{}", logs.stdout, logs.stderr).into_bytes());
        // What the user gave to a container with -e is shown by Docker: that one is not ours.
        if *container != adopted {
            seen.look(&format!("inspect {container}"), docker(&["inspect", container]).into_bytes());
        }
        if container.ends_with("-db") {
            let log = docker(&["exec", container, "sh", "-c", "cat /log/*"]);
            seen.look(&format!("/log of {container}"), log.into_bytes());
        }
    }
    for image in images {
        seen.look(&format!("image {image}"), docker(&["inspect", image.trim()]).into_bytes());
    }
    for file in files_below(&house.path("repo")) {
        let stored = std::fs::read(&file).expect("readable");
        if file.extension().is_some_and(|extension| extension == "zst") {
            seen.look(&format!("unpacked {}", file.display()), zstd::decode_all(&stored[..]).expect("zstd"));
        }
        seen.look(&file.display().to_string(), stored);
    }
    let state = files_below(&house.path("state"));
    for file in state.iter().filter(|file| !file.starts_with(house.path("state/secrets"))) {
        seen.look(&file.display().to_string(), std::fs::read(file).expect("readable"));
    }
    for policy in files_below(&house.path("policies")) {
        seen.look(&policy.display().to_string(), std::fs::read(policy).expect("readable"));
    }

    // The search does find: the verifiers, which must be there, and a word in a packed file, were one to slip in.
    assert!(!seen.where_is("SCRAM-SHA-256$").is_empty());
    assert!(!seen.where_is("worker of ").is_empty(), "no worker was seen while it ran");
    for needle in [ADMIN.1, ROLE.1, ADOPTED.1, VARIABLE, &generated] {
        assert_eq!(seen.where_is(needle), Vec::<String>::new(), "{needle}");
    }
}

#[test]
fn the_key_of_a_backup_is_nowhere_else() {
    let house = House::new("secretkey");
    let keys = house.encrypt();
    let source = house.cluster("source", "17", "");
    let mut seen = Seen { house: &house, places: Vec::new() };
    seen.runs_watched(&["-vvv", "backup", &source], &source);
    let copy = house.name("copy");
    // The way in is a file; from there it goes to the worker, which is looked at while it runs.
    seen.runs_watched(&["-vvv", "restore", &source, "--into", &copy, "--identity", &keys[0]], &copy);
    for command in [["backups", "verify"], ["backups", "show"], ["key", "check"]] {
        seen.runs(&["-vvv", command[0], command[1], &source, "-o", "json", "--identity", &keys[1]]);
    }
    for folder in ["repo", "state", "policies"] {
        for file in files_below(&house.path(folder)) {
            seen.look(&file.display().to_string(), std::fs::read(&file).expect("readable"));
        }
    }
    assert!(!seen.where_is(&format!("worker of {copy}")).is_empty(), "no worker was seen while it ran");
    for key in &keys {
        let text = std::fs::read_to_string(key).expect("a key");
        let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("the public half");
        let secret = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).expect("the secret half");
        assert!(!seen.where_is(public).is_empty(), "the search does find");
        assert_eq!(seen.where_is(secret), Vec::<String>::new());
    }
}

/// Everything that was looked at.
struct Seen<'a> {
    house: &'a House,
    places: Vec<(String, Vec<u8>)>,
}

impl Seen<'_> {
    fn look(&mut self, place: &str, bytes: Vec<u8>) {
        self.places.push((place.to_owned(), bytes));
    }

    fn where_is(&self, needle: &str) -> Vec<String> {
        let holds = |text: &[u8]| text.windows(needle.len()).any(|window| window == needle.as_bytes());
        let found = self.places.iter().filter(|(place, bytes)| place.contains(needle) || holds(bytes));
        found.map(|(place, _)| place.clone()).collect()
    }

    /// Runs pglife and looks at what it prints.
    fn runs(&mut self, arguments: &[&str]) {
        let ended = self.house.pglife(arguments);
        self.keep(arguments, ended);
    }

    fn keep(&mut self, arguments: &[&str], ended: Ended) {
        let Ended { stdout, stderr, .. } = ended.ok();
        self.look(&format!("pglife {}", arguments.join(" ")), [stdout, stderr].concat().into_bytes());
    }

    /// The same, looking all the time at the workers of `cluster`.
    fn runs_watched(&mut self, arguments: &[&str], cluster: &str) {
        let label = format!("label=pglife.cluster={cluster}");
        let workers = ["ps", "-q", "--filter", &label, "--filter", "label=pglife.purpose=worker"];
        let house = self.house;
        let (ended, seen) = std::thread::scope(|scope| {
            let running = scope.spawn(|| house.pglife(arguments));
            let mut seen = Vec::new();
            while !running.is_finished() {
                for worker in docker(&workers).lines() {
                    // It may end at any moment.
                    let inspected = try_docker(&["inspect", worker]).stdout;
                    let processes = try_docker(&["top", worker, "-eo", "args"]).stdout;
                    seen.push((format!("worker of {cluster}"), format!("{inspected}{processes}").into_bytes()));
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            (running.join().expect("it ran"), seen)
        });
        self.places.extend(seen);
        self.keep(arguments, ended);
    }
}

/// Statements for the server by stdin, as somebody would type them.
fn say(container: &str, statements: &str) {
    let mut psql = Command::new("docker");
    psql.args(["exec", "-i", container, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]);
    let mut child = psql.stdin(Stdio::piped()).spawn().expect("docker");
    child.stdin.take().expect("stdin").write_all(statements.as_bytes()).expect("written");
    assert!(child.wait().expect("waited").success());
}
