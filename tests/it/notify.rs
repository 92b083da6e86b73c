//! Who is told what happens: by a real daemon, over real HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::daemon::{Daemon, events};
use crate::house::{House, wait_for};

/// What somebody was told.
#[derive(Debug, Clone)]
struct Told {
    /// `POST /hook`.
    line: String,
    /// Lower case.
    head: String,
    body: String,
}

/// Somebody who listens, and answers with a status of the test's choice; 0: not at all.
#[derive(Clone)]
struct Listener {
    port: u16,
    status: Arc<AtomicU16>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Listener {
    fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let (status, told) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
        let listener = Self { port, status: Arc::clone(&status), told: Arc::clone(&told) };
        std::thread::spawn(move || {
            for client in socket.incoming() {
                let mut client = client.expect("a client");
                let status = status.load(Ordering::Relaxed);
                if status == 0 {
                    continue;
                }
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                let told_now = loop {
                    let Ok(read @ 1..) = client.read(&mut buffer) else { break None };
                    request.extend_from_slice(&buffer[..read]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let lower = head.to_lowercase();
                    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    if body.len() >= length.unwrap_or(0_usize) {
                        let line = head.lines().next().expect("a line").trim_end_matches(" HTTP/1.1").to_owned();
                        break Some(Told { line, head: lower, body: body.to_owned() });
                    }
                };
                told.lock().expect("no panic").extend(told_now);
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwell");
                client.write_all(answer.as_bytes()).ok();
            }
        });
        listener
    }

    fn all(&self) -> Vec<Told> {
        self.told.lock().expect("no panic").clone()
    }

    /// The events that webhooks were told of.
    fn notices(&self) -> Vec<Value> {
        let hooks = self.all().into_iter().filter(|told| told.line == "POST /hook");
        hooks.map(|told| serde_json::from_str(&told.body).expect("JSON")).collect()
    }

    fn events(&self) -> Vec<String> {
        self.notices().iter().map(|notice| notice["event"].as_str().expect("text").to_owned()).collect()
    }

    fn lines(&self, path: &str) -> Vec<Told> {
        self.all().into_iter().filter(|told| told.line.split('?').next() == Some(&format!("POST {path}"))).collect()
    }
}

fn write_settings(house: &House, listener: &Listener) {
    house.write_secret("hook.url", &format!("http://127.0.0.1:{}/hook\n", listener.port));
    house.write_secret("hook.key", "Jefe\n");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", listener.port);
    let channels = format!(
        "\n[[notify]]\nname = \"hook\"\ntype = \"webhook\"\nurl_file = \"hook.url\"\nsecret_file = \"hook.key\"\n\n\
         [[notify]]\nname = \"chat\"\ntype = \"slack\"\nurl = \"{}\"\non = [\"run.*\"]\n\n[[notify]]\nname = \"ping\"\ntype \
         = \"healthchecks\"\nurl = \"{}\"\n",
        at("/chat"),
        at("/ping/0")
    );
    house.write("pglife.toml", &format!("{settings}{channels}"));
}

#[test]
fn changes_are_told_once_and_when_they_are_over() {
    let house = House::new("notify");
    let listener = Listener::new();
    write_settings(&house, &listener);
    let cluster = house.cluster("c", "17", "[backup.dump]\nschedule = \"* * * * *\"\n");
    house.backup(&cluster);
    std::fs::rename(house.path("repo"), house.path("away")).expect("moved");
    let daemon = Daemon::start(&house);
    wait_for("a failed run", || listener.events().contains(&"run.failed".to_owned()));
    wait_for("a check", || listener.events().contains(&"check.critical".to_owned()));
    std::fs::rename(house.path("away"), house.path("repo")).expect("moved back");
    wait_for("a run", || listener.events().contains(&"run.recovered".to_owned()));
    wait_for("the check", || listener.events().contains(&"check.recovered".to_owned()));
    assert_eq!(daemon.stop(), 0);

    // Each once, whatever else failed in between; signed, with words that help.
    for event in ["run.failed", "run.recovered"] {
        assert_eq!(listener.events().iter().filter(|told| *told == event).count(), 1, "{:?}", listener.events());
    }
    let notices = listener.notices();
    let failed = notices.iter().find(|notice| notice["event"] == "run.failed").expect("told");
    assert_eq!((failed["cluster"].as_str(), failed["kind"].as_str()), (Some(cluster.as_str()), Some("Notice")));
    assert!(failed["text"].as_str().expect("text").contains("repository \"local\""), "{failed}");
    let first = &listener.lines("/hook")[0];
    assert!(
        first.head.contains("x-pglife-signature: sha256=") && first.head.contains("idempotency-key: "),
        "{first:?}"
    );
    let chat = listener.lines("/chat");
    assert!(chat.iter().all(|told| told.body.starts_with("{\"text\":\"run.")) && chat.len() == 2, "{chat:?}");

    // Those who wait for pings hear the beginning and the end of each run, as one.
    let rid = |told: &Told| told.line.split("rid=").nth(1).expect("an id").to_owned();
    let (starts, fails, ends) =
        (listener.lines("/ping/0/start"), listener.lines("/ping/0/fail"), listener.lines("/ping/0"));
    assert!(!fails.is_empty() && !ends.is_empty() && starts.len() == fails.len() + ends.len(), "{:?}", listener.all());
    assert!(fails.iter().chain(&ends).all(|end| starts.iter().any(|start| rid(start) == rid(end))));
    assert!(fails[0].body.contains("repository \"local\""), "{:?}", fails[0]);

    // A daemon that starts again repeats nothing.
    let before = listener.events();
    let daemon = Daemon::start(&house);
    wait_for("the second start", || events(&house, "daemon.started").len() == 2);
    wait_for("another run", || listener.lines("/ping/0").len() > ends.len());
    assert_eq!(daemon.stop(), 0);
    assert_eq!(listener.events(), before);
}

#[test]
fn nobody_who_is_told_can_harm_a_backup() {
    let house = House::new("notifybad");
    let listener = Listener::new();
    write_settings(&house, &listener);
    house.pglife(&["notify", "test"]).ok();
    let test: Vec<String> = listener.all().into_iter().map(|told| told.line).collect();
    assert_eq!(test[..2], ["POST /hook", "POST /chat"]);
    assert!(test[2].starts_with("POST /ping/0?rid="), "{test:?}");
    house.pglife(&["notify", "test", "nobody"]).exits(5).says(&["\"nobody\"", "hook, chat, ping"]);

    // It refuses, then does not answer at all: no word of its URL, and backups go on.
    listener.status.store(403, Ordering::Relaxed);
    let refused = house.pglife(&["notify", "test", "hook"]).exits(1);
    assert!(!refused.stderr.contains("/hook\""), "{}", refused.stderr);
    refused.says(&["[[notify]] \"hook\" answers 403: well", "\n  next: "]);
    std::fs::remove_file(house.path("hook.key")).expect("removed");
    house.pglife(&["notify", "test", "hook"]).exits(2).says(&["hook.key", "cannot be read"]);
    listener.status.store(0, Ordering::Relaxed);
    let cluster = house.cluster("c", "17", "[backup.dump]\nschedule = \"* * * * *\"\n");
    let daemon = Daemon::start(&house);
    wait_for("a backup", || !events(&house, "backup.succeeded").is_empty());
    wait_for("word of it", || !events(&house, "notify.failed").is_empty());
    let log = std::fs::read_to_string(house.path("daemon.log")).expect("read");
    assert!(!log.contains(&format!("{}/", listener.port)), "{log}");
    let began = std::time::Instant::now();
    assert_eq!(daemon.stop(), 0);
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    house.pglife(&["check", &cluster]).ok();
}
