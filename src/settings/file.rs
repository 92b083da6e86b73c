//! Reads `pglife.toml`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::{Coverage, DEFAULT_SOCKET, Daemon, Endpoint, Policies, Repository, S3Repository, Settings};
use crate::cluster::{HostName, RepoName};
use crate::document::{self, Entry, Outcome, Problem, Table};

mod consul;
mod encryption;
mod notify;

const PATH_HELP: &str = "a path, relative to the folder of pglife.toml or absolute";

/// Reads the text of `file`, which lies in `folder` (absolute). `docker_host` is the environment's `DOCKER_HOST`; it
/// counts only where the file has no `[hosts]`, as the address of the host `local`.
pub fn read(file: &Path, text: &str, folder: &Path, docker_host: Option<&str>) -> Outcome<Settings> {
    let mut of_environment = None;
    let mut outcome = document::read(file, text, |root| {
        let path = |table: &Table<'_>, key: &str| read_path(table, key, folder);
        let hosts = root.section("hosts", |table| {
            if table.is_present() {
                table.each_named(|host| read_host(host, folder)).into_iter().collect()
            } else {
                let (endpoint, problem) = endpoint_of_environment(file, docker_host);
                of_environment = problem;
                HostName::new("local").map(|local| (local, endpoint)).into_iter().collect()
            }
        });
        let repositories = root.section("repos", |table| read_repositories(table, folder));
        let encryption = root.optional("encryption", |table| encryption::read(table, folder)).flatten();
        let consul = root.optional("consul", |table| consul::read(table, folder));
        Settings {
            folder: folder.to_owned(),
            state_dir: path(root, "state_dir").unwrap_or_else(|| PathBuf::from("/var/lib/pglife")),
            policies: read_policies(root, folder, consul.is_some())
                .unwrap_or_else(|| Policies::Folder(folder.join("policies"))),
            hosts,
            repositories,
            encryption,
            daemon: root.section("daemon", read_daemon),
            http: root.section("http", read_http),
            consul: consul.flatten(),
            notify: notify::read(root, folder),
            coverage: root.section("coverage", read_coverage),
        }
    });
    outcome.problems.extend(of_environment);
    outcome
}

fn read_daemon(table: &Table<'_>) -> Daemon {
    let default = Daemon::default();
    let count = |key: &str, default: NonZeroUsize| {
        let given = table.get(key).and_then(|entry| entry.integer(1..=1000));
        given.and_then(|given| usize::try_from(given).ok()).and_then(NonZeroUsize::new).unwrap_or(default)
    };
    Daemon {
        instance: table
            .get("instance")
            .and_then(|entry| entry.parse("the daemon's name among others, such as the machine's")),
        runs_per_host: count("runs_per_host", default.runs_per_host),
        runs_per_repository: count("runs_per_repository", default.runs_per_repository),
        stop_within: table
            .get("stop_within")
            .and_then(|entry| entry.parse(crate::policy::DURATION_HELP))
            .unwrap_or(default.stop_within),
    }
}

fn read_coverage(table: &Table<'_>) -> Coverage {
    let told = table.get("containers").and_then(|entry| entry.flag());
    told.map_or_else(Coverage::default, |containers| Coverage { containers })
}

/// Loopback, unless it is told otherwise: what is shown is not for everybody, and there is no login.
fn read_http(table: &Table<'_>) -> Option<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], 8432));
    let help = "an address and a port: \"127.0.0.1:8432\", \"[::1]:8432\"; or \"off\"";
    let Some(entry) = table.get("listen") else { return Some(default) };
    match entry.text(help)? {
        "off" => None,
        text => {
            let address = text.parse().ok();
            if address.is_none() {
                entry.problem(format!("{text:?} is not an address with a port"), help);
            }
            address
        }
    }
}

const POLICIES_HELP: &str = "a folder, relative to that of pglife.toml or absolute, or \"consul\"";

/// A folder that is really called so is "./consul".
fn read_policies(root: &Table<'_>, folder: &Path, has_consul: bool) -> Option<Policies> {
    let entry = root.get("policies")?;
    if entry.text(POLICIES_HELP)? != "consul" {
        return path_of(&entry, folder).map(Policies::Folder);
    }
    if !has_consul {
        let help = "add [consul] with an address, or name a folder (one that is called so is \"./consul\")";
        entry.problem("policies from Consul need the section [consul]", help);
    }
    Some(Policies::Consul)
}

fn read_path(table: &Table<'_>, key: &str, folder: &Path) -> Option<PathBuf> {
    path_of(&table.get(key)?, folder)
}

fn path_of(entry: &Entry<'_>, folder: &Path) -> Option<PathBuf> {
    let text = entry.text(PATH_HELP)?;
    if text.is_empty() || text.contains('\0') {
        entry.problem("the path is empty or holds a NUL", PATH_HELP);
        return None;
    }
    Some(folder.join(text))
}

const ENDPOINT_HELP: &str = "unix:///var/run/docker.sock, or tcp://db1.example.org:2376 with ca, cert and key";

fn read_host(host: &Table<'_>, folder: &Path) -> Endpoint {
    let files = ["ca", "cert", "key"].map(|key| (key, host.get(key).map(|entry| (path_of(&entry, folder), entry))));
    // What stands in after a problem is never used: there is a problem.
    let fallback = Endpoint::Unix(PathBuf::from(DEFAULT_SOCKET));
    let Some(entry) = required(host, "endpoint", ENDPOINT_HELP) else { return fallback };
    let Some(text) = entry.text(ENDPOINT_HELP) else { return fallback };
    match Address::read(text) {
        None => {
            entry.problem(format!("{text:?} is not a Docker endpoint"), ENDPOINT_HELP);
            fallback
        }
        Some(Address::Unix(socket)) => {
            for (key, given) in files {
                if let Some((_, given)) = given {
                    given.problem(format!("{key} has no effect with a unix socket"), "remove the key");
                }
            }
            Endpoint::Unix(socket)
        }
        Some(Address::Tcp(address)) => {
            let [ca, cert, key] = files.map(|(key, given)| {
                if given.is_none() {
                    let message = "a tcp endpoint needs ca, cert and key";
                    host.missing(key, message, "without TLS everybody who reaches the port is root on that machine");
                }
                given.and_then(|(path, _)| path).unwrap_or_default()
            });
            Endpoint::Tls { address, ca, cert, key }
        }
    }
}

fn endpoint_of_environment(file: &Path, docker_host: Option<&str>) -> (Endpoint, Option<Problem>) {
    let fallback = Endpoint::Unix(PathBuf::from(DEFAULT_SOCKET));
    let Some(text) = docker_host.filter(|text| !text.is_empty()) else { return (fallback, None) };
    if let Some(Address::Unix(socket)) = Address::read(text) {
        return (Endpoint::Unix(socket), None);
    }
    let mut problem = Problem::of_file(
        file,
        format!("the environment's DOCKER_HOST={text} is not a unix socket"),
        "unset DOCKER_HOST, set it to unix://…, or write the hosts into pglife.toml: [hosts.local] endpoint = …",
    );
    problem.key.push_str("hosts.local.endpoint");
    (fallback, Some(problem))
}

enum Address {
    Unix(PathBuf),
    Tcp(String),
}

impl Address {
    fn read(text: &str) -> Option<Self> {
        if let Some(socket) = text.strip_prefix("unix://") {
            let absolute = socket.starts_with('/') && !socket.contains('\0');
            return absolute.then(|| Self::Unix(PathBuf::from(socket)));
        }
        let address = text.strip_prefix("tcp://")?.trim_end_matches('/');
        let (host, port) = address.rsplit_once(':')?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
        };
        (is_port && is_host).then(|| Self::Tcp(address.to_owned()))
    }
}

fn read_repositories(table: &Table<'_>, folder: &Path) -> BTreeMap<RepoName, Repository> {
    let mut first_at: Vec<(Repository, String)> = Vec::new();
    let repositories = table.each_named(|repository| {
        let read = read_repository(repository, folder);
        match first_at.iter().find(|(other, _)| is_same_place(other, &read)) {
            Some((_, other)) => {
                let (key, what, help) = match &read {
                    Repository::Local { .. } => ("path", "path", "give each repository a directory of its own"),
                    Repository::S3(_) => ("prefix", "bucket and prefix", "give each repository a prefix of its own"),
                };
                repository.missing(key, format!("[{other}] has the same {what}"), help);
            }
            None => first_at.push((read.clone(), repository.path().to_owned())),
        }
        read
    });
    repositories.into_iter().collect()
}

/// One copy under two names would count as two. What was not given is no place.
fn is_same_place(a: &Repository, b: &Repository) -> bool {
    match (a, b) {
        (Repository::Local { path: a }, Repository::Local { path: b }) => a == b && !a.as_os_str().is_empty(),
        (Repository::S3(a), Repository::S3(b)) => {
            (&a.endpoint, &a.bucket, &a.prefix) == (&b.endpoint, &b.bucket, &b.prefix) && !a.bucket.is_empty()
        }
        _ => false,
    }
}

const TYPE_HELP: &str = "type = \"local\" with a path, or type = \"s3\" with a bucket";

fn read_repository(table: &Table<'_>, folder: &Path) -> Repository {
    const LOCAL: [&str; 1] = ["path"];
    const S3: [&str; 9] = [
        "bucket",
        "prefix",
        "endpoint",
        "region",
        "credentials_file",
        "ca_file",
        "path_style",
        "object_lock",
        "object_lock_mode",
    ];
    let refuse = |keys: &[&str], kind: &str| {
        for key in keys {
            if let Some(entry) = table.get(key) {
                entry.problem(format!("{key} has no effect with type = \"{kind}\""), TYPE_HELP);
            }
        }
    };
    let nowhere = Repository::Local { path: PathBuf::new() };
    let kind = required(table, "type", TYPE_HELP).and_then(|entry| match entry.text(TYPE_HELP)? {
        kind @ ("local" | "s3") => Some(kind),
        other => {
            entry.problem(format!("{other:?} is not a type of repository"), TYPE_HELP);
            None
        }
    });
    match kind {
        Some("local") => {
            refuse(&S3, "local");
            let given = required(table, "path", "a directory of the Docker host");
            given.and_then(|entry| path_of(&entry, folder)).map_or(nowhere, |path| Repository::Local { path })
        }
        Some(_) => {
            refuse(&LOCAL, "s3");
            Repository::S3(read_s3(table, folder))
        }
        None => {
            // Known keys all the same: one problem is enough.
            for key in LOCAL.iter().chain(&S3) {
                table.get(key);
            }
            nowhere
        }
    }
}

fn required<'a>(table: &Table<'a>, key: &str, help: &str) -> Option<Entry<'a>> {
    let entry = table.get(key);
    if entry.is_none() {
        table.missing(key, format!("the {key} is missing"), help);
    }
    entry
}

fn read_s3(table: &Table<'_>, folder: &Path) -> S3Repository {
    let bucket = required(table, "bucket", "the bucket's name").and_then(|entry| {
        let name = entry.text("the bucket's name")?;
        if !is_bucket(name) {
            entry.problem(format!("{name:?} is not the name of a bucket"), "3 to 63 of a-z, 0-9, '.' and '-'");
        }
        Some(name.to_owned())
    });
    let endpoint = table.get("endpoint").and_then(|entry| {
        let help = "https://s3.example.org";
        let text = entry.text(help)?;
        let address = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = |rest: &str| !rest.trim_end_matches('/').is_empty() && !rest.contains(['?', '#', ' ']);
        if text.contains('@') {
            // It is not repeated: it may hold a secret.
            entry.problem("an endpoint holds no user and no password", "write them into a credentials_file");
        } else if !address.is_some_and(is_host) {
            entry.problem(format!("{text:?} is not the address of an S3 service"), help);
        }
        Some(text.trim_end_matches('/').to_owned())
    });
    let object_lock = table.get("object_lock").and_then(|entry| {
        let lock: crate::policy::Duration = entry.parse(crate::policy::DURATION_HELP)?;
        if lock == crate::policy::Duration::ZERO {
            entry.problem("a lock of no time protects nothing", "a duration such as \"30d\", or remove the key");
        }
        Some(lock)
    });
    let object_lock_mode = table.get("object_lock_mode").and_then(|entry| {
        if object_lock.is_none() {
            entry.problem("object_lock_mode has no effect without object_lock", "add object_lock, or remove the key");
        }
        entry.parse("\"governance\" or \"compliance\"")
    });
    let ca_file = table.get("ca_file").and_then(|entry| {
        if endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            entry.problem("ca_file has no effect with an endpoint without TLS", "use https://, or remove the key");
        }
        path_of(&entry, folder)
    });
    let path_style = table.get("path_style").and_then(|entry| entry.flag());
    let text = |key: &str, help: &str| table.get(key).and_then(|entry| entry.text(help)).map(str::to_owned);
    let prefix = text("prefix", "what every key begins with: \"backups/pg\"").unwrap_or_default();
    S3Repository {
        bucket: bucket.unwrap_or_default(),
        prefix: prefix.trim_matches('/').to_owned(),
        path_style: path_style.unwrap_or(endpoint.is_some()),
        endpoint,
        region: text("region", "the region's name: \"eu-central-1\""),
        credentials_file: read_path(table, "credentials_file", folder),
        ca_file,
        object_lock,
        object_lock_mode: object_lock_mode.unwrap_or_default(),
    }
}

/// Amazon S3 User Guide, "General purpose bucket naming rules".
fn is_bucket(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::settings::ClientCertificate;

    fn read_text(text: &str) -> Outcome<Settings> {
        read(Path::new("pglife.toml"), text, Path::new("/etc/pglife"), None)
    }

    fn problems(text: &str) -> String {
        read_text(text).problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat()
    }

    fn settings(text: &str) -> Settings {
        assert_eq!(problems(text), "");
        read_text(text).value.expect("no syntax error")
    }

    #[test]
    fn an_empty_file_has_defaults() {
        let settings = settings("");
        assert_eq!(settings.state_dir, Path::new("/var/lib/pglife"));
        assert_eq!(settings.policies, Policies::Folder(PathBuf::from("/etc/pglife/policies")));
        let socket = Endpoint::Unix(PathBuf::from(DEFAULT_SOCKET));
        let local = HostName::new("local").expect("a name");
        assert_eq!(settings.hosts, BTreeMap::from([(local, socket)]));
        assert!(settings.repositories.is_empty());
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let settings = settings("state_dir = 'state'\n[repos.here]\ntype = 'local'\npath = 'repo'\n");
        assert_eq!(settings.state_dir, Path::new("/etc/pglife/state"));
        let here = &settings.repositories[&RepoName::new("here").expect("a name")];
        assert_eq!(*here, Repository::Local { path: PathBuf::from("/etc/pglife/repo") });
    }

    #[test]
    fn the_environment_counts_only_without_hosts() {
        let endpoints = |text: &str, docker_host: &str| {
            let outcome = read(Path::new("pglife.toml"), text, Path::new("/etc"), Some(docker_host));
            let problems: Vec<String> = outcome.problems.iter().map(ToString::to_string).collect();
            (outcome.value.expect("read").hosts.into_values().collect::<Vec<_>>(), problems)
        };
        let unix = |socket: &str| vec![Endpoint::Unix(PathBuf::from(socket))];
        assert_eq!(endpoints("", "unix:///run/x.sock"), (unix("/run/x.sock"), vec![]));
        assert_eq!(endpoints("", ""), (unix(DEFAULT_SOCKET), vec![]));
        let hosts = "[hosts.local]\nendpoint = 'unix:///run/y.sock'\n";
        assert_eq!(endpoints(hosts, "tcp://example.org:2375"), (unix("/run/y.sock"), vec![]));
        let (_, problems) = endpoints("", "tcp://example.org:2375");
        insta::assert_snapshot!(problems.join("\n"), @r"
        pglife.toml: hosts.local.endpoint: the environment's DOCKER_HOST=tcp://example.org:2375 is not a unix socket
            help: unset DOCKER_HOST, set it to unix://…, or write the hosts into pglife.toml: [hosts.local] endpoint = …
        ");
    }

    #[test]
    fn policies_are_in_a_folder_or_in_consul() {
        let consul = "[consul]\naddress = 'http://127.0.0.1:8500'\n";
        assert_eq!(settings(&format!("policies = 'consul'\n{consul}")).policies, Policies::Consul);
        let folder = settings(&format!("policies = './consul'\n{consul}")).policies;
        assert_eq!(folder, Policies::Folder(PathBuf::from("/etc/pglife/./consul")));
        insta::assert_snapshot!(problems("state_dir = 'x'\npolicies = 'consul'\n"), @r#"
        pglife.toml:2:12: policies: policies from Consul need the section [consul]
            help: add [consul] with an address, or name a folder (one that is called so is "./consul")
        "#);
        // One that is wrong is one problem, not two.
        insta::assert_snapshot!(problems("policies = 'consul'\n[consul]\n"), @r"
        pglife.toml:2:1: consul.address: the address is missing
            help: http://127.0.0.1:8500, the agent on this machine
        ");
    }

    #[test]
    fn the_daemon_s_sections_are_read() {
        let plain = settings("");
        assert_eq!(plain.http.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:8432"));
        assert!(plain.consul.is_none());
        let told = settings(
            "[http]\nlisten = 'off'\n[daemon]\nruns_per_host = 7\nstop_within = '5m'\n[consul]\naddress = \
             'https://consul:8501/'\ntoken_file = 'token'\nca = 'ca.pem'\ncert = 'c.pem'\nkey = 'k.pem'\nkv_prefix = '/service/pglife/'\nwhen_away = \
             'wait'\n",
        );
        assert_eq!((told.http, told.daemon.runs_per_host.get(), told.daemon.stop_within.as_secs()), (None, 7, 300));
        let consul = told.consul.expect("there");
        assert_eq!((consul.address.as_str(), consul.kv_prefix.as_str()), ("https://consul:8501", "service/pglife"));
        assert_eq!(consul.token_file.as_deref(), Some(Path::new("/etc/pglife/token")));
        assert_eq!(consul.when_away, super::super::WhenAway::Wait);
        let [cert, key] = ["c.pem", "k.pem"].map(|file| PathBuf::from("/etc/pglife").join(file));
        assert_eq!(consul.client, Some(ClientCertificate { cert, key }));
        insta::assert_snapshot!(problems("[consul]\naddress = 'https://consul:8501'\nkey = 'k.pem'\n"), @r"
        pglife.toml:3:7: consul.key: cert and key go together
            help: name both files, or neither
        ");
        insta::assert_snapshot!(problems(
            "[http]\nlisten = 'x'\n[daemon]\nruns_per_host = 0\n[consul]\naddress = 'http://root:x@consul'\nca = \
             'ca.pem'\nkv_prefix = 'a b'\nwhen_away = 'panic'\n"), @r#"
        pglife.toml:2:10: http.listen: "x" is not an address with a port
            help: an address and a port: "127.0.0.1:8432", "[::1]:8432"; or "off"
        pglife.toml:4:17: daemon.runs_per_host: 0 is out of range
            help: a whole number from 1 to 1000
        pglife.toml:6:11: consul.address: an address holds no user and no password
            help: write the token into a token_file
        pglife.toml:7:6: consul.ca: ca has no effect with an address without TLS
            help: use https://, or remove the key
        pglife.toml:8:13: consul.kv_prefix: a prefix is made of letters, digits, '-', '_', '.' and '/'
            help: what every key begins with: "pglife", "service/pglife"
        pglife.toml:9:13: consul.when_away: "panic" is neither "run" nor "wait"
            help: "run" or "wait"
        "#);
    }

    #[test]
    fn every_problem_is_told() {
        let told = problems(
            "statedir = '/x'\nstate_dir = 5\n\n[hosts.a]\nendpoint = 'ssh://x'\n[hosts.b]\n[hosts.'c d']\nendpoint = \
             'unix:///x'\n[hosts.e]\nendpoint = 'tcp://e:2376'\ncert = 'x'\n[hosts.f]\nendpoint = 'unix:///x'\nca = \
             'x'\n\n[repos.a]\ntype = 'local'\n[repos.b]\ntype = 'ftp'\npath = 'x'\n[repos.c]\npath = 'y'\n[repos.d]\n\
             type = 's3'\nbucket = 'X'\npath = 'z'\nendpoint = 'x'\nobject_lock = '30'\n[repos.e]\ntype = 'local'\npath \
             = 'same'\nbucket = 'x'\n[repos.f]\ntype = 'local'\npath = 'same'\n[repos]\ng = 'x'\n",
        );
        insta::assert_snapshot!(told, @r#"
        pglife.toml:1:1: statedir: unknown key
            help: did you mean state_dir?
        pglife.toml:2:13: state_dir: a string is expected, not an integer
            help: a path, relative to the folder of pglife.toml or absolute
        pglife.toml:5:12: hosts.a.endpoint: "ssh://x" is not a Docker endpoint
            help: unix:///var/run/docker.sock, or tcp://db1.example.org:2376 with ca, cert and key
        pglife.toml:6:1: hosts.b.endpoint: the endpoint is missing
            help: unix:///var/run/docker.sock, or tcp://db1.example.org:2376 with ca, cert and key
        pglife.toml:7:8: hosts.c d: host name "c d" is not valid: 1 to 48 of A-Z, a-z, 0-9, '_' and '-', beginning with a letter or digit
        pglife.toml:9:1: hosts.e.ca: a tcp endpoint needs ca, cert and key
            help: without TLS everybody who reaches the port is root on that machine
        pglife.toml:9:1: hosts.e.key: a tcp endpoint needs ca, cert and key
            help: without TLS everybody who reaches the port is root on that machine
        pglife.toml:14:6: hosts.f.ca: ca has no effect with a unix socket
            help: remove the key
        pglife.toml:16:1: repos.a.path: the path is missing
            help: a directory of the Docker host
        pglife.toml:19:8: repos.b.type: "ftp" is not a type of repository
            help: type = "local" with a path, or type = "s3" with a bucket
        pglife.toml:21:1: repos.c.type: the type is missing
            help: type = "local" with a path, or type = "s3" with a bucket
        pglife.toml:25:10: repos.d.bucket: "X" is not the name of a bucket
            help: 3 to 63 of a-z, 0-9, '.' and '-'
        pglife.toml:26:8: repos.d.path: path has no effect with type = "s3"
            help: type = "local" with a path, or type = "s3" with a bucket
        pglife.toml:27:12: repos.d.endpoint: "x" is not the address of an S3 service
            help: https://s3.example.org
        pglife.toml:28:15: repos.d.object_lock: "30" is not a duration: the unit is missing
            help: a number and its unit, s, m, h, d or w: "5s", "10m", "26h", "8d", "1h30m"
        pglife.toml:32:10: repos.e.bucket: bucket has no effect with type = "local"
            help: type = "local" with a path, or type = "s3" with a bucket
        pglife.toml:33:1: repos.f.path: [repos.e] has the same path
            help: give each repository a directory of its own
        pglife.toml:37:5: repos.g: a table is expected, not a string
            help: write [repos.g] or repos.g = { … }
        "#);
    }

    #[test]
    fn two_names_for_one_bucket_are_no_two_repositories() {
        let bucket = |name: &str, prefix: &str| {
            format!("[repos.{name}]\ntype = 's3'\nbucket = 'abc'\nendpoint = 'https://s3'\nprefix = '{prefix}'\n")
        };
        assert_eq!(problems(&(bucket("a", "x") + &bucket("b", "y"))), "");
        insta::assert_snapshot!(problems(&(bucket("a", "x") + &bucket("b", "x/"))), @r"
        pglife.toml:6:1: repos.b.prefix: [repos.a] has the same bucket and prefix
            help: give each repository a prefix of its own
        ");
    }

    #[test]
    fn buckets_and_remote_hosts_are_read() {
        let settings = settings(
            "[hosts.db1]\nendpoint = 'tcp://[::1]:2376'\nca = 'ca.pem'\ncert = 'c'\nkey = '/k'\n[repos.off]\ntype = \
             's3'\nbucket = 'back-ups'\nprefix = '/pg/'\nendpoint = 'https://s3'\nobject_lock = '30d'\n",
        );
        insta::assert_debug_snapshot!((settings.hosts.values(), settings.repositories.values()), @r#"
        (
            [
                Tls {
                    address: "[::1]:2376",
                    ca: "/etc/pglife/ca.pem",
                    cert: "/etc/pglife/c",
                    key: "/k",
                },
            ],
            [
                S3(
                    S3Repository {
                        bucket: "back-ups",
                        prefix: "pg",
                        endpoint: Some(
                            "https://s3",
                        ),
                        region: None,
                        credentials_file: None,
                        ca_file: None,
                        path_style: true,
                        object_lock: Some(
                            Duration(
                                2592000,
                            ),
                        ),
                        object_lock_mode: Governance,
                    },
                ),
            ],
        )
        "#);
    }

    #[test]
    fn the_blocks_in_the_documentation_are_read() {
        let page = include_str!("../../docs/repositories.md");
        let blocks: Vec<&str> =
            page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("a part")).collect();
        let repositories = settings(&blocks.concat()).repositories;
        assert_eq!(repositories.len(), 6);
        assert_eq!(repositories.len(), blocks.len());
    }

    #[test]
    fn keys_of_a_bucket_that_have_no_effect_are_problems() {
        let told = problems(
            "[repos.a]\ntype = 's3'\nbucket = 'abc'\nendpoint = 'http://s3'\nca_file = 'ca.pem'\npath_style = 'no'\n\
             object_lock_mode = 'compliance'\n[repos.b]\ntype = 's3'\nbucket = 'abc'\nendpoint = 'https://'\n\
             object_lock = '0s'\nobject_lock_mode = 'strict'\n[repos.c]\ntype = 's3'\nbucket = 'abc'\nendpoint = \
             'https://user:secret@s3'\n",
        );
        insta::assert_snapshot!(told, @r#"
        pglife.toml:5:11: repos.a.ca_file: ca_file has no effect with an endpoint without TLS
            help: use https://, or remove the key
        pglife.toml:6:14: repos.a.path_style: true or false is expected, not a string
            help: true, or false
        pglife.toml:7:20: repos.a.object_lock_mode: object_lock_mode has no effect without object_lock
            help: add object_lock, or remove the key
        pglife.toml:11:12: repos.b.endpoint: "https://" is not the address of an S3 service
            help: https://s3.example.org
        pglife.toml:12:15: repos.b.object_lock: a lock of no time protects nothing
            help: a duration such as "30d", or remove the key
        pglife.toml:13:20: repos.b.object_lock_mode: "strict" is not a mode of Object Lock
            help: "governance" or "compliance"
        pglife.toml:17:12: repos.c.endpoint: an endpoint holds no user and no password
            help: write them into a credentials_file
        "#);
        let settings = settings("[repos.a]\ntype = 's3'\nbucket = 'abc'\n");
        let Repository::S3(s3) = &settings.repositories[&RepoName::new("a").expect("a name")] else { panic!("s3") };
        assert!(!s3.path_style && s3.object_lock.is_none());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".{0,200}") {
            read_text(&text);
        }

        #[test]
        fn garbage_of_the_right_kind_never_panics(lines in proptest::collection::vec(
            prop_oneof![
                "(state_dir|policies|type|path|endpoint|bucket) = ('[a-z:/]{0,9}'|[0-9]{1,3}|\\[\\]|\\{\\})",
                "\\[(hosts|repos|http)(\\.[a-z]{1,2})?\\]",
            ], 0..12)) {
            read_text(&lines.join("\n"));
        }
    }
}
