//! Environments of containers, from a real Consul.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use std::time::Duration;

use serde_json::json;

use crate::consul::{Consul, LEAST, ask};
use crate::house::{Ended, House, docker, executable, run, sql, try_docker, wait_for};

/// `pglife env …`, with no configuration anywhere.
fn env(consul: &Consul, arguments: &[&str]) -> Command {
    let mut command = Command::new(executable());
    command.arg("env").args(arguments).current_dir("/").stdin(Stdio::null());
    command.env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", consul.port));
    command
}

fn done(consul: &Consul, arguments: &[&str]) -> Ended {
    run(env(consul, arguments))
}

#[test]
fn a_command_gets_what_was_set_for_its_cluster() {
    let house = House::new("env");
    let consul = Consul::forgetful(&house);
    done(&consul, &["set", "shop", "GREETING", "good \n morning"]).ok();
    let mut secret = env(&consul, &["set", "shop", "SECRET", "-"]);
    let mut child = secret.stdin(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("stdin").write_all(b"x\xffy=z\n").expect("written");
    assert!(child.wait().expect("it ends").success());
    done(&consul, &["set", "other", "GREETING", "bad evening"]).ok();

    // Rubbish that somebody else wrote: a loader's variable, no name, a folder, a NUL, as much as a key can hold.
    let large = "l".repeat(512 << 10);
    for (key, value) in [("LD_PRELOAD", "/x.so"), ("no name", "x"), ("sub/X", "x"), ("NUL", "a\0b"), ("LARGE", &large)]
    {
        let path = format!("/v1/kv/pglife/env/shop/{}", key.replace(' ', "%20"));
        assert_eq!(ask(consul.port, "PUT", &path, None, value).0, 200, "{key}");
    }
    assert_eq!(done(&consul, &["get", "shop", "LARGE"]).ok().stdout.len(), 512 << 10);
    ask(consul.port, "DELETE", "/v1/kv/pglife/env/shop/LARGE", None, "");
    let shows = "printf '%s|%s|%s|%s|%s' \"$GREETING\" \"$(printf %s \"$SECRET\" | od -An -tx1 | tr -d ' ')\" \"${LD_PRELOAD:-}\" \"${NUL:-}\" \"$PATH\"";
    let ended = done(&consul, &["shop", "--", "sh", "-c", shows]).ok();
    let path = std::env::var("PATH").expect("a path");
    assert_eq!(ended.stdout, format!("good \n morning|78ff793d7a|||{path}"));
    ended.says(&["LD_PRELOAD is left out: it decides which code programs load", "no name is left out", "sub/X", "NUL"]);

    // What the container says itself wins, unless it is told otherwise.
    for (more, wins) in [(&[][..], "mine"), (&["--override"], "good \n morning")] {
        let mut command = env(&consul, &[more, &["shop", "--", "printenv", "GREETING"]].concat());
        assert_eq!(
            run({
                command.env("GREETING", "mine");
                command
            })
            .ok()
            .stdout,
            format!("{wins}\n")
        );
    }
    // Its exit code, and those of shells for what cannot be started.
    done(&consul, &["shop", "--", "sh", "-c", "exit 42"]).exits(42);
    done(&consul, &["shop", "--", "/nowhere/at/all"]).exits(127).says(&["/nowhere/at/all cannot be started"]);
    done(&consul, &["shop", "--", "/etc/passwd"]).exits(126);

    // Seen, and taken back. Values are shown when they are asked for only.
    let listed = done(&consul, &["list", "shop"]).ok();
    assert!(listed.stdout.contains("GREETING") && !listed.stdout.contains("morning"), "{}", listed.stdout);
    assert!(done(&consul, &["list", "shop", "--values"]).ok().stdout.contains(r"good \n morning"));
    assert_eq!(done(&consul, &["get", "shop", "GREETING"]).ok().stdout, "good \n morning");
    done(&consul, &["unset", "shop", "GREETING"]).ok();
    done(&consul, &["get", "shop", "GREETING"])
        .exits(5)
        .says(&["GREETING is not set for cluster \"shop\"", "\n  next: "]);
    assert_eq!(done(&consul, &["shop", "--", "sh", "-c", "echo ${GREETING:-none}"]).ok().stdout, "none\n");
    done(&consul, &["set", "shop", "LD_PRELOAD", "/x.so"]).exits(2);
    assert_eq!(done(&consul, &["get", "other", "GREETING"]).ok().stdout, "bad evening");
}

#[test]
fn consul_is_away_or_refuses() {
    let house = House::new("envaway");
    let consul = Consul::strict(&house);
    consul.furnish();
    let echo = ["shop", "--", "echo", "started"];
    done(&consul, &echo).exits(12).says(&["echo was not started", "refused", "\n  next: "]);
    let with_token = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = env(&consul, arguments);
        command.env(name, value);
        run(command)
    };
    // The least policy of the documentation is enough, from a variable and from a file.
    with_token("CONSUL_HTTP_TOKEN", LEAST, &["set", "shop", "A", "1"]).ok();
    house.write_secret("token", LEAST);
    let file = house.path("token").display().to_string();
    assert_eq!(with_token("CONSUL_HTTP_TOKEN_FILE", &file, &["shop", "--", "printenv", "A"]).ok().stdout, "1\n");
    // And the one that the page shows for a container, which may not set anything.
    let page = page();
    let rules = page.split("```text\n").find(|block| block.starts_with("key_prefix")).expect("a policy");
    let rules = rules.split("```").next().expect("a part");
    let reader = "2ead0000-2222-2222-2222-222222222222";
    consul.put("/v1/acl/policy", &json!({ "Name": "reader", "Rules": rules }));
    consul.put("/v1/acl/token", &json!({ "SecretID": reader, "Policies": [{ "Name": "reader" }] }));
    assert_eq!(with_token("CONSUL_HTTP_TOKEN", reader, &["shop", "--", "printenv", "A"]).ok().stdout, "1\n");
    with_token("CONSUL_HTTP_TOKEN", reader, &["set", "shop", "A", "2"]).exits(12);
    with_token("CONSUL_HTTP_TOKEN", reader, &["blog", "--", "echo", "started"]).exits(12);
    let wrong = "00000000-1111-2222-3333-444444444444";
    let refused = with_token("CONSUL_HTTP_TOKEN", wrong, &echo).exits(12);
    assert!(!refused.stderr.contains(wrong), "{}", refused.stderr);

    docker(&["stop", "-t", "0", &house.name("consul")]);
    done(&consul, &echo).exits(13).says(&["echo was not started", "does not answer", "--optional", "--wait"]);
    let optional = done(&consul, &["--optional", "shop", "--", "echo", "started"]).ok();
    assert_eq!(optional.stdout, "started\n");
    optional.says(&["warning", "without them", "does not answer"]);
    // It comes while it is waited for.
    let mut waiting = env(&consul, &["--wait", "60s", "shop", "--", "printenv", "A"]);
    waiting.env("CONSUL_HTTP_TOKEN", LEAST).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = waiting.spawn().expect("it starts");
    std::thread::sleep(Duration::from_secs(1));
    docker(&["start", &house.name("consul")]);
    // A development agent forgets: the variable is gone, and so is the token.
    let ended = Ended::of(child.wait_with_output().expect("it ends"), "the wait".to_owned());
    assert!([1, 12].contains(&ended.exit), "{ended:?}");
    // Without any address there is nobody to ask.
    let mut nobody = Command::new(executable());
    nobody
        .args(["env", "shop", "--", "true"])
        .current_dir("/")
        .env_remove("CONSUL_HTTP_ADDR")
        .env_remove("PGLIFE_CONFIG");
    run(nobody).exits(2).says(&["Consul cannot be asked", "CONSUL_HTTP_ADDR"]);
}

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/environment.md")).expect("the page")
}

#[test]
fn the_page_is_true() {
    let house = House::new("envpage");
    let consul = Consul::forgetful(&house);
    let page = page();
    let section = page.split("## Set and look").nth(1).expect("a section");
    let block = section.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    house.write("api", "123456789 123456789 1234\n");
    let folder = std::path::Path::new(executable()).parent().expect("a folder").display().to_string();
    let mut commands = 0;
    for step in block.split("$ ").filter(|step| !step.is_empty()) {
        let (line, shown) = step.split_once('\n').expect("a line");
        let line = line.replace("/run/secrets/api", &house.path("api").display().to_string());
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", consul.port));
        shell.env("PATH", format!("{folder}:{}", std::env::var("PATH").expect("a path")));
        let ended = run(shell).ok();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&ended.stdout), words(shown), "{line}");
        commands += 1;
    }
    assert_eq!(commands, 5);
}

/// A command that is watched: what it prints, line by line.
struct Beside {
    child: Child,
    lines: crossbeam_channel::Receiver<String>,
}

impl Beside {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let (sender, lines) = crossbeam_channel::bounded(100);
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    #[track_caller]
    fn says(&self, wanted: &str) {
        let line = self.lines.recv_timeout(Duration::from_secs(30)).expect("a line");
        assert_eq!(line, wanted);
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([&format!("-{name}"), &self.child.id().to_string()]);
        run(kill).ok();
    }

    fn ended_code(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_change_restarts_the_command_or_tells_it() {
    let house = House::new("envwatch");
    let consul = Consul::forgetful(&house);
    done(&consul, &["set", "shop", "A", "1"]).ok();
    let script = "trap 'echo ended; exit 7' TERM; trap 'echo hangup' HUP; echo \"A=$A B=${B:-}\"; \
                  while :; do sleep 0.1; done";
    let restarted = Beside::start(env(&consul, &["--watch", "restart", "shop", "--", "sh", "-c", script]));
    restarted.says("A=1 B=");
    let told = Beside::start(env(&consul, &["--watch", "signal:HUP", "shop", "--", "sh", "-c", script]));
    told.says("A=1 B=");
    // Two in a row are one change; the same value again, and somebody else's, are none.
    done(&consul, &["set", "shop", "A", "2"]).ok();
    done(&consul, &["set", "shop", "B", "3"]).ok();
    restarted.says("ended");
    restarted.says("A=2 B=3");
    told.says("hangup");
    done(&consul, &["set", "shop", "A", "2"]).ok();
    done(&consul, &["set", "shop2", "A", "9"]).ok();
    std::thread::sleep(Duration::from_secs(3));

    // Consul dies, and comes back with nothing: the command goes on, and is told what there is then.
    docker(&["restart", "-t", "0", &house.name("consul")]);
    wait_for("a leader", || consul.get("/v1/status/leader").as_str().is_some_and(|leader| !leader.is_empty()));
    restarted.says("ended");
    restarted.says("A= B=");
    told.says("hangup");
    // What an operator sends goes to the command, and its exit code comes back.
    told.signal("HUP");
    told.says("hangup");
    told.signal("TERM");
    told.says("ended");
    assert_eq!(told.ended_code(), Some(7));
    restarted.signal("TERM");
    restarted.says("ended");
    assert_eq!(restarted.ended_code(), Some(7));

    // One that does not want to end is killed; one that ends by itself is not started again.
    let stubborn = "trap '' TERM; echo begun; while :; do sleep 0.1; done";
    let stubborn =
        Beside::start(env(&consul, &["--watch", "restart", "--stop-within", "1s", "shop", "--", "sh", "-c", stubborn]));
    stubborn.says("begun");
    done(&consul, &["set", "shop", "A", "4"]).ok();
    stubborn.says("begun");
    stubborn.signal("TERM");
    assert_eq!(stubborn.ended_code(), Some(137));
    done(&consul, &["--watch", "restart", "shop", "--", "sh", "-c", "exit 3"]).exits(3);
}

/// The image's own entrypoint asks, where it is told of an agent and a cluster.
#[test]
fn a_server_gets_its_secrets_and_settings_from_consul() {
    let house = House::new("envimage");
    let consul = Consul::forgetful(&house);
    for (name, value) in [("ADMIN_USER", "boss"), ("ADMIN_PASS", "from consul"), ("TZ", "Europe/Berlin")] {
        done(&consul, &["set", "shop", name, value]).ok();
    }
    let setting = |name: &str, text: &str| {
        let path = format!("/v1/kv/pglife/config/clusters/shop/{name}");
        assert_eq!(crate::consul::ask(consul.port, "PUT", &path, None, text).0, 200);
    };
    setting("20-memory.conf", "work_mem = '7MB'\n");
    setting("30-more.conf", "maintenance_work_mem = '70MB'\n");
    setting("pg_hba.conf", "local all all trust\n");
    let address = format!("CONSUL_HTTP_ADDR=127.0.0.1:{}", consul.port);
    let binary = format!("{}:/pglife/pglife:ro", executable());
    let container = house.foreign(
        "server",
        &[
            "--network",
            "host",
            "-e",
            &address,
            "-e",
            "PGLIFE_CLUSTER=shop",
            "-e",
            "PGLIFE_SETTINGS=consul",
            "-v",
            &binary,
            "pglife/postgres:17",
            "postgres",
            "-c",
            "listen_addresses=",
        ],
    );
    wait_for("the server", || try_docker(&["exec", &container, "pg_isready", "-q"]).exit == 0);
    let roles = "select count(*) from pg_roles where rolname = 'boss'";
    wait_for("the role", || sql(&container, "postgres", roles) == "1");
    let server = docker(&[
        "exec",
        &container,
        "sh",
        "-c",
        "tr '\\0' '\\n' </proc/1/environ; cat /proc/*/cmdline | tr '\\0' ' '",
    ]);
    assert!(server.contains("TZ=Europe/Berlin") && !server.contains("from consul"), "{server}");

    // Its settings too: those that are gone go, those that somebody put there stay, and who may enter is not among them.
    let shown =
        || sql(&container, "postgres", "select current_setting('work_mem') || current_setting('maintenance_work_mem')");
    assert_eq!(shown(), "7MB70MB");
    let files =
        || docker(&["exec", &container, "ls", "-A", "/config"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(files(), "20-memory.conf 30-more.conf");
    let log = try_docker(&["logs", &container]).stderr;
    assert!(log.contains("clusters/shop/pg_hba.conf is left out"), "{log}");
    docker(&["exec", &container, "sh", "-c", "echo \"work_mem = '9MB'\" >/config/40-own.conf"]);
    setting("20-memory.conf", "work_mem = '8MB'\n");
    setting("40-own.conf", "work_mem = '1MB'\n");
    let gone = crate::consul::ask(consul.port, "DELETE", "/v1/kv/pglife/config/clusters/shop/30-more.conf", None, "");
    assert_eq!(gone.0, 200);
    docker(&["restart", &container]);
    wait_for("the server", || try_docker(&["exec", &container, "pg_isready", "-q"]).exit == 0);
    assert_eq!((shown().as_str(), files().as_str()), ("9MB64MB", "20-memory.conf 40-own.conf"));
    let written = docker(&["exec", &container, "cat", "/config/20-memory.conf"]);
    assert!(written.starts_with("# From Consul") && written.ends_with("\nwork_mem = '8MB'\n"), "{written}");

    // No executable, or no agent: it says so, and starts nothing.
    let nothing = house.foreign("nothing", &["-e", &address, "-e", "PGLIFE_CLUSTER=shop", "pglife/postgres:17"]);
    wait_for("its end", || docker(&["inspect", "--format", "{{.State.Status}}", &nothing]).trim() == "exited");
    let log = try_docker(&["logs", &nothing]).stderr;
    assert!(log.contains("PGLIFE_CLUSTER") && log.contains("/pglife/pglife"), "{log}");
}
