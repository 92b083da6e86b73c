//! Policies in a real Consul 1.8: pushed, followed by the daemon, kept for the time when Consul is away.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::consul::{Consul, LEAST, ask};
use crate::daemon::{Daemon, events};
use crate::house::{House, docker, run, wait_for};

/// Has a house's policies come from Consul. The folder stays for what is pushed.
fn from_consul(house: &House, consul: &Consul, more: &str) {
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    let settings = settings.replace("policies = \"policies\"", "policies = \"consul\"");
    house.write("pglife.toml", &format!("{settings}{}{more}", consul.settings()));
}

fn key(name: &str) -> String {
    format!("/v1/kv/pglife/config/clusters/{name}")
}

/// Writes a document past pglife.
#[track_caller]
fn put(consul: &Consul, name: &str, text: &str) {
    assert_eq!(ask(consul.port, "PUT", &key(name), None, text).1.trim(), "true", "{name}");
}

/// What `/readyz` says, of the daemon that was started last.
fn readiness(house: &House) -> String {
    let log = std::fs::read_to_string(house.path("daemon.log")).unwrap_or_default();
    let port =
        log.rsplit("HTTP is served at http://127.0.0.1:").next().and_then(|rest| rest.split('/').next()?.parse().ok());
    port.map(|port| ask(port, "GET", "/readyz", None, "").1).unwrap_or_default()
}

#[test]
fn the_daemon_follows_consul_and_outlives_it() {
    let house = House::new("kvdaemon");
    let consul = Consul::forgetful(&house);
    from_consul(&house, &consul, "[http]\nlisten = \"127.0.0.1:0\"\n");
    let (first, second) = (house.policy("first", "17", ""), house.policy("second", "17", ""));
    // Nothing is there yet: that is fine, and so is pushing.
    house.pglife(&["policy", "validate"]).ok().says(&["policies: 0"]);
    house.pglife(&["status"]).ok();
    let told = house.items(&["config", "push", "--dry-run"]);
    assert_eq!((told.len(), &told[0]["step"]), (2, &json!("new")), "{told:?}");
    assert!(consul.get("/v1/kv/pglife/config/?keys").is_null(), "a dry run writes nothing");
    house.pglife(&["config", "push"]).ok();
    assert!(house.items(&["config", "push"]).iter().all(|item| item["step"] == "same"));
    let validated = house.items(&["policy", "validate"]);
    assert_eq!(validated[0]["file"], json!(format!("consul:pglife/config/clusters/{first}")));

    let daemon = Daemon::start(&house);
    wait_for("the start", || !events(&house, "daemon.started").is_empty());
    let reloads = || events(&house, "configuration.reloaded").len();
    // Long enough for the question to be asked that waits.
    std::thread::sleep(Duration::from_secs(1));
    let (before, began) = (reloads(), Instant::now());
    house.policy("second", "17", "[backup.dump]\nschedule = \"0 3 1 1 *\"\n");
    house.pglife(&["config", "push"]).ok();
    wait_for("the reload", || reloads() > before);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    // One that is not valid: a command tells it as of a file; the daemon goes on with the last good ones.
    put(&consul, &second, "[cluster]\nmajor = 17\n");
    let text = format!("consul:pglife/config/clusters/{second}:2:9: cluster.major: a string is expected");
    house.pglife(&["status"]).exits(2).says(&[&text, "pglife config push DIR"]);
    wait_for("the flag", || readiness(&house).contains("the last good one goes on"));
    house.pglife(&["config", "show"]).ok().says(&["a string is expected"]);
    let shown = house.items(&["config", "show"]);
    let of = |name: &str| shown.iter().find(|item| item["cluster"] == *name).expect("shown").clone();
    assert_eq!((&of(&first)["valid"], &of(&first)["local"]), (&json!(true), &json!("same")), "{shown:?}");
    assert_eq!((&of(&second)["valid"], &of(&second)["local"]), (&json!(false), &json!("differs")), "{shown:?}");
    // A daemon that is started now has the last good ones too.
    assert_eq!(daemon.stop(), 0);
    let daemon = Daemon::start(&house);
    wait_for("the flag again", || readiness(&house).contains("the last good one goes on"));
    // Mended; this is also how it is undone.
    house.pglife(&["config", "push"]).ok();
    wait_for("the flag's end", || !readiness(&house).contains("the last good one goes on"));
    assert!(events(&house, "configuration.invalid")[0].contains("cluster.major"));

    // All is gone: nobody believes that.
    ask(consul.port, "DELETE", "/v1/kv/pglife/config?recurse", None, "");
    wait_for("the flag of a wiped KV", || readiness(&house).contains("no policy is left below pglife/config/clusters"));
    assert!(readiness(&house).contains("pglife config push DIR"));
    let listed = house.pglife(&["policy", "validate"]).ok();
    assert!(listed.stdout.contains(&second), "{}", listed.stdout);
    listed.says(&["warning", "no policy is left"]);
    house.pglife(&["config", "push"]).ok();
    wait_for("their return", || !readiness(&house).contains("no policy is left"));

    // Consul dies: everything works on, from the copy, and says so.
    docker(&["rm", "-f", &house.name("consul")]);
    let listed = house.pglife(&["policy", "validate"]).ok();
    assert!(listed.stdout.contains(&first) && listed.stdout.contains(&second), "{}", listed.stdout);
    listed.says(&["warning: the policies of 20", "as they were last read from Consul", "does not answer"]);
    house.pglife(&["status"]).ok().says(&["does not answer"]);
    house.pglife(&["config", "push"]).exits(13).says(&["nothing was pushed", "does not answer", "next:"]);
    wait_for("the flag of the loss", || readiness(&house).contains("as they were last read from Consul"));
    assert_eq!(daemon.stop(), 0);
    let daemon = Daemon::start(&house);
    wait_for("a start without Consul", || readiness(&house).contains("as they were last read from Consul"));
    let copy = house.path("state/policies-from-consul.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).expect("a copy").permissions());
    assert_eq!(mode & 0o777, 0o600);

    // It is back, and knows nothing: it is told again.
    consul.restart(&house);
    wait_for("the flag of an empty Consul", || readiness(&house).contains("no policy is left"));
    let before = reloads();
    house.policy("second", "17", "[backup.dump]\nschedule = \"0 4 1 1 *\"\n");
    house.pglife(&["config", "push"]).ok();
    wait_for("the reload after all that", || reloads() > before && !readiness(&house).contains("no policy is left"));
    assert_eq!(daemon.stop(), 0);

    // Without Consul and without a copy nothing can be known.
    std::fs::remove_file(&copy).expect("removed");
    docker(&["rm", "-f", &house.name("consul")]);
    house.pglife(&["status"]).exits(13).says(&["there is no copy of them in", "does not answer", "next:"]);
}

#[test]
fn policies_go_there_and_back_and_nobody_is_overwritten() {
    let house = House::new("kvpush");
    let consul = Consul::forgetful(&house);
    let (first, second) = (house.policy("first", "17", ""), house.policy("second", "15", ""));
    // Before the switch: a folder is used, and pushed.
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.pglife(&["config", "push"]).exits(2).says(&["there is no [consul]"]);
    house.write("pglife.toml", &settings.replace("policies = \"policies\"", "policies = \"consul\""));
    house.pglife(&["status"]).exits(2).says(&["pglife.toml:2:12: policies: ", "[consul]"]);
    house.write("pglife.toml", &format!("{settings}{}", consul.settings()));
    house.pglife(&["config", "push"]).ok();
    house.pglife(&["config", "show"]).ok().says(&["does not say policies = \"consul\""]);

    // What is not valid, alone or beside what stays there, is refused whole.
    house.write(&format!("policies/{first}.toml"), "[cluster]\nmajor = '18'\n");
    house.write(&format!("policies/{second}.toml"), "[cluster]\nmajor = '15'\nimag = 'x'\n");
    house.pglife(&["config", "push"]).exits(2).says(&["imag: unknown key", "nothing was written"]);
    std::fs::create_dir(house.path("more")).expect("a folder");
    house.write("more/other.toml", &format!("[cluster]\nmajor = '17'\ncontainer = '{first}-db'\n"));
    let more = house.path("more").display().to_string();
    house.pglife(&["config", "push", &more]).exits(2).says(&["is also the container of"]);
    assert_eq!(ask(consul.port, "GET", &format!("{}?raw", key(&first)), None, "").1, "[cluster]\nmajor = \"17\"\n\n");

    // What is not in the folder stays, unless it is said.
    house.write("more/other.toml", "[cluster]\nmajor = '17'\n");
    let steps = |items: Vec<serde_json::Value>| -> Vec<String> {
        items.iter().map(|item| item["step"].as_str().expect("a step").to_owned()).collect()
    };
    assert_eq!(steps(house.items(&["config", "push", &more])), ["left", "left", "new"]);
    assert_eq!(steps(house.items(&["config", "push", &more, "--delete", "--dry-run"])), ["deleted", "deleted", "same"]);
    std::fs::create_dir(house.path("none")).expect("a folder");
    let none = house.path("none").display().to_string();
    house.pglife(&["config", "push", &none, "--delete"]).exits(4).says(&["there is no policy in"]);

    // Back into files, never over one that says something else.
    let got = house.path("got").display().to_string();
    assert_eq!(steps(house.items(&["config", "pull", &got])), ["new", "new", "new"]);
    assert_eq!(std::fs::read_to_string(house.path("got/other.toml")).expect("read"), "[cluster]\nmajor = '17'\n");
    house.write("got/other.toml", "mine");
    house.pglife(&["config", "pull", &got]).exits(4).says(&["got/other.toml", "--force"]);
    assert_eq!(std::fs::read_to_string(house.path("got/other.toml")).expect("read"), "mine");
    assert_eq!(steps(house.items(&["config", "pull", &got, "--force"])), ["same", "same", "changed"]);
    put(&consul, "Not%20A%20Name", "x");
    put(&consul, "sub%2Fkey", "x");
    house.pglife(&["config", "pull", &got]).exits(3).says(&["Not A Name was left out", "sub/key was left out"]);
    // They are in the way of commands, and of nobody who mends that.
    assert_eq!(
        steps(house.items(&["config", "push", &got, "--delete"])),
        ["deleted", "same", "same", "same", "deleted"]
    );

    // Somebody else writes between the reading and the writing.
    house.write("got/other.toml", "[cluster]\nmajor = '18'\n");
    house.write("got/another.toml", "[cluster]\nmajor = '18'\n");
    let proxy = interfere(consul.port, "other");
    let through = settings.clone() + &format!("\n[consul]\naddress = \"http://127.0.0.1:{proxy}\"\n");
    let direct = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", &through);
    house
        .pglife(&["config", "push", &got])
        .exits(11)
        .says(&["config/clusters/other was changed by somebody else", "next:"]);
    house.write("pglife.toml", &direct);
    assert_eq!(ask(consul.port, "GET", &format!("{}?raw", key("other")), None, "").1, "somebody else's");
    assert_eq!(ask(consul.port, "GET", &key("another"), None, "").0, 404, "all or nothing");
}

/// Lets what a client says through to Consul; before a transaction, somebody else writes a key.
fn interfere(consul: u16, name: &'static str) -> u16 {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let (mut first, mut length, mut line) = (String::new(), 0_u64, String::new());
            reader.read_line(&mut first).ok();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = told.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = String::new();
            reader.by_ref().take(length).read_to_string(&mut body).ok();
            let mut words = first.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if path.starts_with("/v1/txn") {
                assert_eq!(ask(consul, "PUT", &key(name), None, "somebody else's").0, 200);
            }
            let (status, answer) = ask(consul, method, path, None, &body);
            let head = format!("HTTP/1.1 {status} X\r\nX-Consul-Index: 1\r\nConnection: close\r\n");
            let answer = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
            reader.get_mut().write_all(answer.as_bytes()).ok();
        }
    });
    port
}

#[test]
fn commands_write_policies_to_consul_and_the_least_token_is_enough() {
    let house = House::new("kvwrite");
    let consul = Consul::strict(&house);
    consul.furnish();
    from_consul(&house, &consul, "token_file = \"token\"\n");
    // A token that may nothing: the copy does not help where there is none.
    house.write_secret("token", "00000000-0000-0000-0000-000000000000");
    house.pglife(&["status"]).exits(12).says(&["refused", "next:"]);
    // The tokens of the page: one that reads, one that writes.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kv.md")).expect("the page");
    let blocks = page.split("```text\n").skip(1).filter(|block| block.starts_with("key_prefix"));
    let rules: Vec<&str> = blocks.map(|block| block.split("```").next().expect("a part")).collect();
    assert_eq!(rules.len(), 2);
    let tokens = ["4ead0000-2222-2222-2222-222222222222", "41170000-2222-2222-2222-222222222222"];
    for (token, rules) in tokens.iter().zip(rules) {
        consul.put("/v1/acl/policy", &json!({ "Name": &token[..4], "Rules": rules }));
        consul.put("/v1/acl/token", &json!({ "SecretID": token, "Policies": [{ "Name": &token[..4] }] }));
    }
    let shop = house.policy("shop", "17", "");
    house.write_secret("token", tokens[0]);
    house.pglife(&["policy", "validate"]).ok();
    house.pglife(&["config", "push"]).exits(12).says(&["0 of 1 changes were pushed", "refused"]);
    house.write_secret("token", tokens[1]);
    house.pglife(&["config", "push"]).ok();
    house.write_secret("token", tokens[0]);
    house.pglife(&["policy", "show", &shop]).ok();

    // The daemon's own token writes too: what is made new has its policy there, and never over another.
    house.write_secret("token", LEAST);
    house.pglife(&["cluster", "create", &shop]).ok();
    house.backup(&shop);
    let copy = house.name("copy");
    house.pglife(&["restore", &shop, "--into", &copy]).ok().says(&[&format!("consul:pglife/config/clusters/{copy}")]);
    let validated = house.items(&["policy", "validate"]);
    assert_eq!(validated.len(), 2, "{validated:?}");
    house.pglife(&["status", &copy]).ok();
    // An upgrade writes the new major over what it has read.
    house.pglife(&["upgrade", &copy, "--to", "18", "--yes"]).ok();
    let text = ask(consul.port, "GET", &format!("{}?raw", key(&copy)), Some(LEAST), "").1;
    assert!(text.contains("major = \"18\"") && text.starts_with("# Written by"), "{text}");
    // While Consul is away, what exists can be backed up; a new policy cannot be written, which is said before the work.
    docker(&["stop", "-t", "0", &house.name("consul")]);
    house.pglife(&["backup", &shop]).ok().says(&["warning: the policies of 20"]);
    let other = house.name("other");
    let refused = house.pglife(&["restore", &shop, "--into", &other]).exits(13);
    refused.says(&["did not begin", "does not answer"]);
    assert!(!house.items(&["policy", "validate"]).is_empty());
}

/// What the page shows of the commands is what they print.
#[test]
fn the_page_is_true() {
    let house = House::new("kvpage");
    let consul = Consul::forgetful(&house);
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("settings");
    house.write("pglife.toml", &format!("{settings}{}", consul.settings()));
    house.write("policies/shop.toml", "[cluster]\nmajor = \"17\"\n");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kv.md")).expect("the page");
    let block = page.split("```text\n").find(|block| block.starts_with("$ ")).expect("a block");
    let block = block.split("```").next().expect("a part");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let steps: Vec<&str> = block.split("$ ").filter(|step| !step.is_empty()).collect();
    assert_eq!(steps.len(), 4);
    for step in steps {
        let (line, shown) = step.split_once('\n').expect("a line");
        let arguments: Vec<&str> = line.split(' ').skip(1).collect();
        let mut command = house.command(&arguments);
        command.current_dir(house.path(""));
        assert_eq!(words(&run(command).ok().stdout), words(shown), "{line}");
    }
}
