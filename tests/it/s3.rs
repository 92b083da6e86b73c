//! S3 servers for tests: real ones, that can be stopped, killed, paused and started again with the same address and data.

#![allow(clippy::unused_self, reason = "a server is asked, whoever answers")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use pglife::storage::s3::{Bucket, Credentials, Limits, Patience, S3Store, Secret};

use crate::authority::Authority;
use crate::house::{House, docker, wait_for};

/// May do everything, and may only read.
pub const ADMIN: (&str, &str) = ("pglife-test", "pglife-test-secret");
/// May do everything too: who comes after ADMIN.
pub const RENEWED: (&str, &str) = ("pglife-renewed", "pglife-renewed-secret");
pub const READER: (&str, &str) = ("pglife-reader", "pglife-reader-secret");
/// An identity that may do nothing that its bucket does not allow.
pub const NOBODY: (&str, &str) = ("pglife-nobody", "pglife-nobody-secret");

/// A SeaweedFS server in a container of a house, which removes it.
pub struct Server {
    container: String,
    address: String,
    scheme: &'static str,
}

/// The server runs as long as this file is there. Its container, and with it the address, outlive it.
const RUN: &str = "/run-the-server";

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start(house: &House, short: &str) -> Self {
        let server = Self::prepare(house, short, &[], "http");
        server.start_again();
        server
    }

    /// Starts a server with a certificate for its address, signed by an authority whose certificate is returned.
    pub fn start_with_tls(house: &House, short: &str) -> (Self, String) {
        let server = Self::prepare(house, short, &["-s3.cert.file=/cert.pem", "-s3.key.file=/key.pem"], "https");
        let authority = Authority::new(house.path("authority"));
        let signed = authority.sign("s3", &format!("subjectAltName = IP:{}", server.address));
        for (file, place) in [(&signed.certificate, "/cert.pem"), (&signed.key, "/key.pem")] {
            docker(&["cp", &file.to_string_lossy(), &format!("{}:{place}", server.container)]);
        }
        server.start_again();
        (server, std::fs::read_to_string(authority.certificate()).expect("a certificate"))
    }

    /// Makes the container, which has its address from now on.
    fn prepare(house: &House, short: &str, more: &[&str], scheme: &'static str) -> Self {
        let image = ["inspect", "--type", "image", "--format", "{{json .Config.Cmd}}", "pglife/test-seaweedfs"];
        let command: Vec<String> = serde_json::from_str(&docker(&image)).expect("JSON");
        let script = format!("while :; do [ -e {RUN} ] && \"$@\"; sleep 0.1; done");
        let mut arguments = vec!["--no-healthcheck", "--init", "pglife/test-seaweedfs", "sh", "-c", &script, "sh"];
        arguments.extend(command.iter().map(String::as_str).chain(more.iter().copied()));
        let container = house.foreign(short, &arguments);
        let address = docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &container]).trim().to_owned();
        house.write("identities.json", &identities());
        let identities = house.path("identities.json").display().to_string();
        docker(&["cp", &identities, &format!("{container}:/etc/seaweedfs/s3.json")]);
        Self { container, address, scheme }
    }

    /// `http://…` of the server.
    pub fn endpoint(&self) -> String {
        format!("{}://{}:8333", self.scheme, self.address)
    }

    /// The bucket called `bucket`, as the administrator reaches it. It is not made.
    pub fn reach(&self, bucket: &str) -> Bucket {
        Bucket {
            bucket: bucket.to_owned(),
            prefix: "pre fix/pg".to_owned(),
            endpoint: Some(self.endpoint()),
            region: "us-east-1".to_owned(),
            path_style: true,
            credentials: credentials(ADMIN).into(),
            authorities: String::new(),
            object_lock: None,
        }
    }

    /// Makes a bucket, and says how it is reached.
    pub fn bucket(&self, bucket: &str) -> Bucket {
        self.make(bucket, &[]);
        self.reach(bucket)
    }

    /// Makes `bucket`, and a repository `offsite` of the house in it.
    pub fn offsite(&self, house: &House, bucket: &str) {
        self.bucket(bucket);
        let credentials = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", ADMIN.0, ADMIN.1);
        house.write_secret("s3.credentials", &credentials);
        let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
        let repository = format!(
            "\n[repos.offsite]\ntype = \"s3\"\nbucket = \"{bucket}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
             credentials_file = \"s3.credentials\"\n",
            self.endpoint()
        );
        house.write("pglife.toml", &format!("{settings}{repository}"));
        house.pglife(&["repo", "init", "offsite"]).ok();
    }

    /// Makes a bucket with versions and Object Lock.
    pub fn locked_bucket(&self, bucket: &str) -> Bucket {
        self.make(bucket, &["-H", "x-amz-bucket-object-lock-enabled: true"]);
        self.reach(bucket)
    }

    fn make(&self, bucket: &str, more: &[&str]) {
        let url = format!("{}/{bucket}", self.endpoint());
        let ended = self.curl(&[&["-X", "PUT"], more, &[&url]].concat());
        assert_eq!(ended.1, "200", "{}", ended.0);
    }

    /// A signed request of the administrator. Returns body and status.
    pub fn curl(&self, arguments: &[&str]) -> (String, String) {
        let mut command = std::process::Command::new("curl");
        let user = format!("{}:{}", ADMIN.0, ADMIN.1);
        command.args(["-sSk", "-w", "\n%{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user]);
        let ended = crate::house::run({
            command.args(arguments);
            command
        })
        .ok();
        let (body, status) = ended.stdout.rsplit_once('\n').expect("a status");
        (body.to_owned(), status.to_owned())
    }

    /// Kills the server; what it had not written is lost.
    pub fn kill(&self) {
        docker(&["exec", &self.container, "sh", "-c", &format!("rm {RUN}; killall -9 weed")]);
        wait_for("the end of the server", || !self.is_up());
    }

    /// Starts the server, with its data and address, and waits until it answers.
    pub fn start_again(&self) {
        docker(&["exec", &self.container, "touch", RUN]);
        self.wait_until_up();
    }

    /// Stops every process of the server: it accepts connections and says nothing.
    pub fn pause(&self) {
        docker(&["pause", &self.container]);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        docker(&["unpause", &self.container]);
    }

    fn is_up(&self) -> bool {
        let url = format!("{}/healthz", self.endpoint());
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sfk", "-m", "2", "-o", "/dev/null", &url]);
        crate::house::run(curl).exit == 0
    }

    fn wait_until_up(&self) {
        wait_for("the S3 server's answer", || self.is_up());
        // It answers before it can store: a bucket that comes and goes tells when it can.
        let url = format!("{}/is-it-up", self.endpoint());
        wait_for("the S3 server", || self.curl(&["-X", "PUT", &url]).1 == "200");
        wait_for("the S3 server", || self.curl(&["-X", "DELETE", &url]).1 == "204");
    }
}

/// The identities, as the server's file has them.
fn identities() -> String {
    let identity = |(key, secret): (&str, &str), actions: &[&str]| {
        let credentials = [serde_json::json!({ "accessKey": key, "secretKey": secret })];
        serde_json::json!({ "name": key, "credentials": credentials, "actions": actions })
    };
    let identities = [
        identity(ADMIN, &["Admin", "Read", "Write", "List", "Tagging"]),
        identity(RENEWED, &["Admin", "Read", "Write", "List", "Tagging"]),
        identity(READER, &["Read", "List"]),
        identity(NOBODY, &[]),
    ];
    serde_json::json!({ "identities": identities }).to_string()
}

/// An identity's credentials.
pub fn credentials((access_key, secret): (&str, &str)) -> Credentials {
    Credentials { access_key: access_key.to_owned(), secret_key: Secret::new(secret), session_token: None }
}

/// Limits that give up soon.
pub fn impatient() -> Limits {
    let patience = Patience { total: Duration::from_secs(6), silence: Duration::from_secs(3) };
    Limits { patience, ..Limits::default() }
}

/// A store as pglife uses it.
pub fn store(bucket: &Bucket) -> S3Store {
    S3Store::open(bucket).expect("a store")
}

/// A store that gives up soon.
pub fn impatient_store(bucket: &Bucket) -> S3Store {
    S3Store::with_limits(bucket, impatient()).expect("a store")
}

/// What a [`Proxy`] does to the answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Hands it on.
    Whole,
    /// Breaks the connection after so many bytes: 0 for an answer that is lost.
    Cut(usize),
    /// Breaks the connection, and the server never sees the request.
    Refused,
    /// Answers in the server's place, with 403 and this code, by a clock that is so many seconds ahead.
    Forbidden(&'static str, i64),
}

/// Stands between a client and a server, and loses answers. It lasts as long as the test's process.
pub struct Proxy {
    address: String,
}

impl Proxy {
    /// `judge` sees the head of every request, its first line first.
    pub fn before(server: &Server, judge: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1", server, judge)
    }

    /// The same where containers reach it too.
    pub fn before_workers(server: &Server, judge: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let gateway = ["inspect", "--format", "{{.NetworkSettings.Gateway}}", &server.container];
        Self::at(docker(&gateway).trim(), server, judge)
    }

    /// The same at an address of this machine.
    pub fn at(host: &str, server: &Server, judge: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let upstream = format!("{}:8333", server.address);
        let judge = Arc::new(judge);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, upstream, judge) = (client.expect("a client"), upstream.clone(), Arc::clone(&judge));
                std::thread::spawn(move || relay(client, &upstream, &*judge));
            }
        });
        Self { address }
    }

    /// `http://…` of the proxy.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket, reached through here.
    pub fn reach(&self, bucket: &Bucket) -> Bucket {
        Bucket { endpoint: Some(self.endpoint()), ..bucket.clone() }
    }
}

/// Hands one request and its answer on; then the connection ends.
fn relay(mut client: TcpStream, upstream: &str, judge: &dyn Fn(&str) -> Answer) {
    let mut request = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let (head, length) = loop {
        let Ok(read @ 1..) = client.read(&mut buffer) else { return };
        request.extend_from_slice(&buffer[..read]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            break (head, end + 4 + length.unwrap_or(0_usize));
        }
    };
    while request.len() < length {
        let Ok(read @ 1..) = client.read(&mut buffer) else { return };
        request.extend_from_slice(&buffer[..read]);
    }
    let first = head.lines().next().unwrap_or_default();
    let fate = judge(&head);
    match fate {
        Answer::Refused => return,
        Answer::Forbidden(code, ahead) => {
            let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
            let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
            let body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>refused on the \
                 way</Message><RequestId>4711</RequestId></Error>"
            );
            let head = format!(
                "HTTP/1.1 403 Forbidden\r\nDate: {date}\r\nx-amz-request-id: 4711\r\nContent-Type: application/xml\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            client.write_all(format!("{head}{body}").as_bytes()).ok();
            return;
        }
        Answer::Whole | Answer::Cut(_) => {}
    }
    let Ok(mut server) = TcpStream::connect(upstream) else { return };
    let (line, rest) = request.split_at(first.len() + 2);
    let sent = server.write_all(line).and_then(|()| server.write_all(b"Connection: close\r\n"));
    if sent.and_then(|()| server.write_all(rest)).is_err() {
        return;
    }
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok();
    if let Answer::Cut(after) = fate {
        answer.truncate(after);
    }
    client.write_all(&answer).ok();
}
