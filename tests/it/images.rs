//! The images that only other tests need answer as those tests expect.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::house::{House, docker, try_docker, wait_for};

#[test]
fn consul_elects_itself() {
    let house = House::new("consul");
    let consul = house.foreign("consul", &["pglife/test-consul"]);
    let address = format!("{}:8500", address(&consul));
    // An empty text until there is one.
    wait_for("a leader", || answer(&address, "/v1/status/leader").trim_end().ends_with("\n\"127.0.0.1:8300\""));
}

#[test]
fn the_s3_server_answers_and_asks_who_is_there() {
    let house = House::new("s3");
    let server = house.foreign("s3", &["pglife/test-seaweedfs"]);
    let address = format!("{}:8333", address(&server));
    wait_for("an answer", || answer(&address, "/healthz").contains(" 200 OK\r\n"));
    let refusal = answer(&address, "/");
    assert!(refusal.contains(" 403 Forbidden\r\n") && refusal.contains("<Code>AccessDenied</Code>"), "{refusal}");
}

#[test]
fn the_program_runs_in_its_own_image() {
    let ended = try_docker(&["run", "--rm", "--label", "pglife.test=image", "pglife/pglife", "version"]).ok();
    assert!(ended.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", ended.stdout);
}

fn address(container: &str) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker(&["inspect", "--format", format, container]).trim().to_owned()
}

/// The answer to a GET, with its head; empty where there is none.
fn answer(address: &str, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}
