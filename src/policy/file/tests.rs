//! What the reader takes, refuses and says; and that the schema and the example agree with it.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::policy::form::{PolicyFile, schema};
use crate::policy::{IoPriority, Rate};

const EXAMPLE: &str = include_str!("../../../policies/example.toml");

const SETTINGS: &str = "
[hosts.local]
endpoint = 'unix:///var/run/docker.sock'
[hosts.db1]
endpoint = 'tcp://db1:2376'
ca = 'ca'
cert = 'cert'
key = 'key'
[repos.local]
type = 'local'
path = 'repo'
[repos.offsite]
type = 's3'
bucket = 'offsite'
";

fn settings(text: &str) -> Settings {
    let outcome = crate::settings::file::read(Path::new("pglife.toml"), text, Path::new("/etc/pglife"), None);
    assert_eq!(outcome.problems, []);
    outcome.value.expect("no syntax error")
}

fn only_local() -> Settings {
    settings("[repos.local]\ntype = 'local'\npath = 'repo'\n")
}

fn reading(text: &str, settings: &Settings) -> Reading {
    let cluster = ClusterName::new("chado").expect("a name");
    super::read(Path::new("policies/chado.toml"), text, &cluster, settings)
}

pub(super) fn policy(text: &str) -> Policy {
    let reading = reading(text, &only_local());
    let problems: String = reading.problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat();
    assert_eq!(problems, "");
    reading.policy.expect("no problems")
}

fn problems(text: &str) -> String {
    let reading = reading(text, &settings(SETTINGS));
    assert_eq!(reading.policy.is_none(), !reading.problems.is_empty(), "a policy has no problems");
    reading.problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat()
}

/// The example with every optional key in force, but for those of the other layout.
fn example_in_force(layout: &str) -> String {
    let other_layout: &[&str] = match layout {
        "managed" => &["pgdata", "user", "password_file"],
        _ => &[
            "image",
            "data_container",
            "network",
            "publish",
            "admin_user",
            "admin_database",
            "admin_password_file",
            "volumes",
        ],
    };
    let in_force = |line: &str| {
        let section = line.starts_with("# [");
        let (key, _) =
            if section { return Some(line[2..].to_owned()) } else { line.strip_prefix("# ")?.split_once(" = ")? };
        let is_key = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (is_key && !other_layout.contains(&key)).then(|| line[2..].to_owned())
    };
    EXAMPLE.lines().map(|line| in_force(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_example_is_valid_as_written_and_with_every_key() {
    let plain = policy(EXAMPLE);
    assert_eq!(plain.container.as_str(), "chado-db");
    let managed = policy(&example_in_force("managed"));
    assert!(matches!(&managed.layout, Layout::Managed(managed) if managed.network.is_some()));
    let adopted = policy(&example_in_force("adopted"));
    assert!(matches!(&adopted.layout, Layout::Adopted(_)));
    assert!(matches!(&adopted.login, Login::Tcp { password_file: Some(_), .. }));
}

/// What the example shows as a default is the default.
#[test]
fn the_example_tells_the_true_defaults() {
    let no_defaults = [
        "network",
        "publish",
        "admin_database",
        "admin_password_file",
        "rate_limit",
        "ionice",
        "rto_budget",
        "memory",
        "cpus",
        "assert",
        "require_proven",
        "window",
        "keep_old",
    ];
    let in_force: String = example_in_force("managed")
        .lines()
        .filter(|line| !no_defaults.iter().any(|key| line.starts_with(&format!("{key} = "))))
        .map(|line| format!("{line}\n"))
        .collect::<Vec<_>>()
        .concat();
    let named_main = |text: &str| {
        let cluster = ClusterName::new("main").expect("a name");
        super::read(Path::new("policies/main.toml"), text, &cluster, &only_local()).policy.expect("valid")
    };
    // What has no default, put in force there too.
    let plain = [
        "[backup.volume]",
        "schedule = \"0 3",
        "volume = { warn",
        "drill = { warn",
        "schedule = \"0 5",
        "[verify]",
        "schedule = \"0 6",
        "[rehearsal]",
        "to = \"18\"",
        "schedule = \"0 7",
    ]
    .iter()
    .fold(EXAMPLE.to_owned(), |text, key| text.replace(&format!("# {key}"), key));
    assert_eq!(named_main(&in_force), named_main(&plain));
}

#[test]
fn the_smallest_policy_has_defaults() {
    insta::assert_snapshot!(toml::to_string(&PolicyFile::from(&policy("[cluster]\nmajor = '17'\n"))).expect("TOML"), @r#"
    [cluster]
    host = "local"
    major = "17"
    image = "pglife/postgres:17"
    container = "chado-db"
    data_container = "chado-data"
    register = false
    port = 5432
    admin_user = "admin"

    [backup.dump]
    timezone = "UTC"
    repos = ["local"]
    required = 1
    databases = ["*"]
    exclude_table_data = []
    jobs = 2
    codec = "zstd:1"
    lock_timeout = "5s"

    [backup.volume]
    timezone = "UTC"
    full_every = 1
    mode = "hot"
    volumes = ["/data", "/config", "/secret", "/log"]
    codec = "zstd:1"

    [drill]
    timezone = "UTC"
    facts = "full"

    [upgrade]
    method = "dump"
    rehearse = false
    timezone = "UTC"

    [dependents]
    on_down = "stop"
    on_up = "start"
    compose = false
    "#);
}

#[test]
fn adopted_clusters_are_reached_by_tcp() {
    let policy = policy("[cluster]\nmajor = '9.6'\npgdata = '/var/lib/postgresql/data'\ncontainer = 'old'\n");
    assert_eq!(policy.layout, Layout::Adopted(Adopted { pgdata: PathBuf::from("/var/lib/postgresql/data") }));
    let user = RoleName::new("postgres").expect("a role");
    assert_eq!(policy.login, Login::Tcp { user, password_file: None });
}

#[test]
fn relative_paths_begin_at_pglife_toml() {
    let policy = policy("[cluster]\nmajor = '17'\nuser = 'dumper'\npassword_file = 'secrets/chado'\n");
    let Login::Tcp { password_file, .. } = policy.login else { panic!("a user means TCP") };
    assert_eq!(password_file.as_deref(), Some(Path::new("/etc/pglife/secrets/chado")));
}

#[test]
fn an_empty_policy_says_what_is_missing() {
    insta::assert_snapshot!(problems(""), @r#"
    policies/chado.toml: cluster.major: the major version is missing
        help: a quoted major version: "17", or "9.6" before 10
    policies/chado.toml: backup.dump.repos: the repositories are missing
        help: pglife.toml has: local, offsite
    "#);
}

#[test]
fn every_problem_of_the_server_is_told() {
    let told = problems(
        "[cluster]\nmajor = 17\nhost = 'nowhere'\nimage = 'a b'\ncontainer = '-x'\ndata_container = 7\nnetwork = \
         'host'\npublish = '5433'\nport = 0\nadmin_user = 'postgres'\nadmin_database = ''\nadmin_password_file = \
         ''\nuser = 'dumper'\ncontaine = 'x'\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml: backup.dump.repos: the repositories are missing
        help: pglife.toml has: local, offsite
    policies/chado.toml:2:9: cluster.major: a string is expected, not an integer
        help: a quoted major version: "17", or "9.6" before 10
    policies/chado.toml:3:8: cluster.host: pglife.toml has no [hosts.nowhere]
        help: it has: db1, local
    policies/chado.toml:4:9: cluster.image: image "a b" is not valid: a name such as pglife/postgres:17 or registry.example.org/postgres@sha256:… is expected
        help: the image's name in Docker
    policies/chado.toml:5:13: cluster.container: container name "-x" is not valid: 2 to 128 of A-Z, a-z, 0-9, '_', '.', '-', beginning with a letter or digit
        help: the container's name in Docker
    policies/chado.toml:6:18: cluster.data_container: a string is expected, not an integer
        help: the container's name in Docker
    policies/chado.toml:7:11: cluster.network: network "host" is not valid: the name of a user-defined Docker network is expected
        help: the network's name in Docker
    policies/chado.toml:8:11: cluster.publish: "5433" is not an address with a port
        help: an address and a port of the Docker host: "127.0.0.1:5433", "0.0.0.0:5432", "[::1]:5433"
    policies/chado.toml:9:8: cluster.port: 0 is out of range
        help: a whole number from 1 to 65535
    policies/chado.toml:10:14: cluster.admin_user: postgres cannot be the admin role
        help: postgres enters by the unix socket only; names that begin with pg_ are the server's
    policies/chado.toml:11:18: cluster.admin_database: database name "" is not valid: 1 to 63 bytes without NUL
        help: the database's name
    policies/chado.toml:12:23: cluster.admin_password_file: the path is empty or holds a NUL
        help: a path, relative to the folder of pglife.toml or absolute
    policies/chado.toml:14:1: cluster.containe: unknown key
        help: did you mean container?
    "#);
}

#[test]
fn every_problem_of_an_adopted_server_is_told() {
    let told = problems(
        "[cluster]\nmajor = '17.2'\nhost = 'db1'\npgdata = 'data'\nimage = 'x'\npublish = 'x'\n[backup.dump]\nrepos = \
         ['local']\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:2:9: cluster.major: PostgreSQL major version "17.2" is not valid: one number since 10 ("17"), two before ("9.4")
        help: a quoted major version: "17", or "9.6" before 10
    policies/chado.toml:4:10: cluster.pgdata: "data" is not an absolute path
        help: the absolute path of the data directory inside the container: "/var/lib/postgresql/data"
    policies/chado.toml:5:9: cluster.image: image has no effect for an adopted cluster (one with pgdata)
        help: remove it, or remove pgdata if pglife shall make the containers
    policies/chado.toml:6:11: cluster.publish: publish has no effect for an adopted cluster (one with pgdata)
        help: remove it, or remove pgdata if pglife shall make the containers
    policies/chado.toml:8:10: backup.dump.repos[0]: local is a folder of this machine, and [hosts.db1] is another one
        help: the workers run beside the data and store there themselves: name buckets
    "#);
}

#[test]
fn every_problem_of_the_backup_is_told() {
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nschedule = '0 30 2 * * *'\ntimezone = 'Europe/Berlln'\non_missed = \
         'later'\nmax_lateness = '1m'\nsplay = 10\nrepos = ['local', 'offsite', 'nas', 'local', 3]\ndatabases = \
         ['!x']\nexclude_table_data = ['']\njobs = 65\ncodec = 'lz4:1'\nlock_timeout = '0s'\n\n[backup.volume]\nmode = \
         'warm'\nvolumes = ['/log', '/log', '/srv']\n[backups]\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:4:12: backup.dump.schedule: "0 30 2 * * *" has 6 fields, not 5
        help: five fields: minute hour day month weekday, such as "30 2 * * *"; or @hourly, @daily, @weekly, @monthly, @yearly
    policies/chado.toml:5:12: backup.dump.timezone: "Europe/Berlln" is not a time zone of the IANA database
        help: did you mean Europe/Berlin?
    policies/chado.toml:6:13: backup.dump.on_missed: "later" is not known
        help: "run_once" or "skip"
    policies/chado.toml:7:16: backup.dump.max_lateness: a run less than 2m late is punctual
        help: choose more, or on_missed = "skip"
    policies/chado.toml:8:9: backup.dump.splay: a string is expected, not an integer
        help: a number and its unit, s, m, h, d or w: "5s", "10m", "26h", "8d", "1h30m"
    policies/chado.toml:9:30: backup.dump.repos[2]: pglife.toml has no [repos.nas]
        help: pglife.toml has: local, offsite
    policies/chado.toml:9:37: backup.dump.repos[3]: local is named twice
        help: name each repository once
    policies/chado.toml:9:46: backup.dump.repos[4]: a string is expected, not an integer
        help: a list of names of [repos] in pglife.toml: ["local"]
    policies/chado.toml:10:13: backup.dump.databases: no pattern includes a database
        help: a list of patterns: ["*"], ["*", "!scratch_*"], ["chado"]
    policies/chado.toml:11:23: backup.dump.exclude_table_data[0]: table pattern "" is not valid: 1 to 1024 bytes on one line
        help: a list of patterns as pg_dump --exclude-table-data reads them: ["audit.*"]
    policies/chado.toml:12:8: backup.dump.jobs: 65 is out of range
        help: a whole number from 1 to 64
    policies/chado.toml:13:9: backup.dump.codec: "lz4:1" is not a codec
        help: "zstd:1" (fast) to "zstd:19" (small), or "gzip:1" to "gzip:9"
    policies/chado.toml:14:16: backup.dump.lock_timeout: without a limit a dump could wait for a lock for ever
        help: at least 1s
    policies/chado.toml:17:8: backup.volume.mode: "warm" is not known
        help: "hot" (the server runs) or "cold" (it is stopped for the copy)
    policies/chado.toml:18:11: backup.volume.volumes: without /data it is no backup of the cluster
        help: a list of "/data", "/config", "/secret", "/log"
    policies/chado.toml:18:20: backup.volume.volumes[1]: /log is named twice
        help: name each volume once
    policies/chado.toml:18:28: backup.volume.volumes[2]: "/srv" is no volume of a data container
        help: a list of "/data", "/config", "/secret", "/log"
    policies/chado.toml:19:2: backups: unknown key
        help: did you mean backup?
    "#);
}

#[test]
fn a_speed_is_read() {
    let limited =
        policy("[cluster]\nmajor = '17'\n[backup.volume]\nrate_limit = '200MB/s'\nionice = 'idle'\nmode = 'cold'\n");
    assert_eq!(limited.volume.ionice, Some(IoPriority::Idle));
    assert_eq!(limited.volume.rate_limit.map(Rate::bytes_per_second), Some(200_000_000));
    assert_eq!(limited.volume.mode, CopyMode::Cold);
    let told =
        problems("[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\n[backup.volume]\nrate_limit = '200'\n");
    assert!(told.contains("backup.volume.rate_limit: \"200\" is not a speed"), "{told}");
}

#[test]
fn keys_without_effect_are_refused() {
    let told = problems(
        "[cluster]\nmajor = '17'\npassword_file = 'x'\n[backup.dump]\nrepos = []\nsplay = '5m'\ntimezone = 'UTC'\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:3:17: cluster.password_file: the role this password belongs to is missing
        help: add user = "…", or remove password_file: the worker then uses the unix socket
    policies/chado.toml:5:9: backup.dump.repos: a backup needs a repository
        help: pglife.toml has: local, offsite
    policies/chado.toml:6:9: backup.dump.splay: splay has no effect without a schedule
        help: add schedule, or remove the key
    "#);
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\nschedule = '0 0 30 2 *'\non_missed = \
         'skip'\nmax_lateness = '5h'\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:5:12: backup.dump.schedule: "0 0 30 2 *" never happens: there is no such date
        help: five fields: minute hour day month weekday, such as "30 2 * * *"; or @hourly, @daily, @weekly, @monthly, @yearly
    policies/chado.toml:7:16: backup.dump.max_lateness: max_lateness has no effect with on_missed = "skip"
        help: remove one of the two
    "#);
}

#[test]
fn impossible_combinations_are_refused() {
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\nschedule = '@daily'\nsplay = '1d'\n[retention]\nlast \
         = 0\ndaily = -1\nhourly = 3\n[freshness]\ndump = { warn = '20h', critical = '10h' }\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:6:9: backup.dump.splay: the splay is not shorter than the 1d between two runs
        help: choose a splay well below that
    policies/chado.toml:8:8: retention.last: with last = 0 pruning could remove every backup
        help: at least 1: this is the floor that pruning never goes below
    policies/chado.toml:9:9: retention.daily: -1 is out of range
        help: a whole number from 0 to 10000
    policies/chado.toml:10:1: retention.hourly: unknown key
        help: known here: daily, last, monthly, weekly, yearly
    policies/chado.toml:12:17: freshness.dump.warn: the schedule leaves 1d between two runs, so 20h always warns before the next
        help: choose more than the time between two runs, and some hours for the run itself
    policies/chado.toml:12:35: freshness.dump.critical: warn (20h) is not between zero and critical (10h)
        help: warn comes first: { warn = "26h", critical = "50h" }
    "#);
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\n[freshness]\ndump = { warn = '1d', crit = '2d' \
         }\nvolume = { warn = '1d', critical = '2d' }\n[drill]\n[dependents]\non_down = 'kill'\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:6:8: freshness.dump.critical: critical is missing
        help: { warn = "26h", critical = "50h" }
    policies/chado.toml:6:23: freshness.dump.crit: unknown key
        help: did you mean critical?
    policies/chado.toml:10:11: dependents.on_down: "kill" is not known
        help: "stop", "pause" or "none"
    "#);
}

#[test]
fn problems_of_upgrades_are_told() {
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\n[upgrade]\nmethod = 'logical'\nrequire_proven = \
         '0s'\nrehearse = 'yes'\nwindow = { start = '25:00', end = '5' }\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:6:10: upgrade.method: "logical" is not supported by this version
        help: "dump", or "pg_upgrade"
    policies/chado.toml:7:18: upgrade.require_proven: no time at all is the same as no such key
        help: at least 1s, or remove the key
    policies/chado.toml:8:12: upgrade.rehearse: true or false is expected, not a string
        help: true, or false
    policies/chado.toml:9:20: upgrade.window.start: "25:00" is not a time of day
        help: hours and minutes: { start = "22:00", end = "05:00" }
    policies/chado.toml:9:35: upgrade.window.end: "5" is not a time of day
        help: hours and minutes: { start = "22:00", end = "05:00" }
    "#);
    let told = problems(
        "[cluster]\nmajor = '17'\n[backup.dump]\nrepos = ['local']\n[upgrade]\nwindow = { start = '05:00', end = '05:00' }\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:6:35: upgrade.window.end: the window ends when it starts
        help: hours and minutes: { start = "22:00", end = "05:00" }
    "#);
}

#[test]
fn only_syntax_errors_are_told_of_what_is_not_toml() {
    insta::assert_snapshot!(problems("[cluster]\nmajor = \n[cluster]\nx = 'y\n"), @r"
    policies/chado.toml:2:9: not TOML: string values must be quoted, expected literal string
    policies/chado.toml:3:2: not TOML: duplicate key
    policies/chado.toml:4:7: not TOML: invalid literal string, expected `'`
    ");
}

// -- The schema and the reader ---------------------------------------------------------------------------------

/// The schema's keys: their full paths and what the schema says of each.
fn schema_keys() -> Vec<(String, Value)> {
    fn walk(root: &Value, node: &Value, path: &str, keys: &mut Vec<(String, Value)>) {
        let node = node["$ref"].as_str().map_or(node, |reference| {
            root.pointer(reference.trim_start_matches('#')).expect("a definition of this schema")
        });
        if node["type"] == "object" {
            assert_eq!(node["additionalProperties"], Value::Bool(false), "{path} is open");
        }
        for (key, property) in node["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            walk(root, property, &path, keys);
            let resolved = property["$ref"].as_str().and_then(|reference| root.pointer(&reference[1..]));
            keys.push((path, resolved.unwrap_or(property).clone()));
        }
    }
    let (schema, mut keys) = (schema(), Vec::new());
    walk(&schema, &schema, "", &mut keys);
    keys
}

#[test]
fn the_schema_has_the_reader_s_keys() {
    let mut known = BTreeSet::new();
    for layout in ["managed", "adopted"] {
        known.extend(reading(&example_in_force(layout), &only_local()).known);
    }
    assert_eq!(schema_keys().into_iter().map(|(path, _)| path).collect::<BTreeSet<_>>(), known);
}

/// The example shows every key, so that nobody has to guess.
#[test]
fn the_example_has_the_schema_s_keys() {
    fn walk(table: &toml::Table, path: &str, keys: &mut BTreeSet<String>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if let toml::Value::Table(table) = value {
                walk(table, &path, keys);
            }
            keys.insert(path);
        }
    }
    let mut shown = BTreeSet::new();
    for layout in ["managed", "adopted"] {
        walk(&example_in_force(layout).parse().expect("TOML"), "", &mut shown);
    }
    assert_eq!(schema_keys().into_iter().map(|(path, _)| path).collect::<BTreeSet<_>>(), shown);
}

/// For each key, a value of a type the schema does not allow is a problem of that key to the reader too.
#[test]
fn the_schema_has_the_reader_s_types() {
    for (path, property) in schema_keys() {
        let wrong = match property["type"].as_str() {
            Some("string") => "7",
            Some("integer" | "array" | "object" | "boolean") => "'text'",
            None if property["oneOf"].is_array() => "7",
            other => panic!("{path}: {other:?}"),
        };
        let told = problems(&format!("{path} = {wrong}\n"));
        assert!(told.contains(&format!(": {path}: ")) && told.contains(" is expected, not "), "{path}: {told}");
    }
}

/// The limits the schema states are the reader's.
#[test]
fn the_schema_has_the_reader_s_ranges() {
    let mut checked = 0;
    for (path, property) in schema_keys() {
        for (bound, outside) in [("minimum", -1), ("maximum", 1)] {
            let Some(bound) = property[bound].as_i64() else { continue };
            let complains = |value: i64| problems(&format!("{path} = {value}\n")).contains(&format!(": {path}: "));
            assert!(!complains(bound), "{path} = {bound}");
            assert!(complains(bound + outside), "{path} = {}", bound + outside);
            checked += 1;
        }
    }
    assert_eq!(
        checked, 19,
        "port, jobs, full_every, cpus and the five retention rules have two limits each, required has one"
    );
}

#[test]
fn the_schema_requires_what_the_reader_requires() {
    let schema = schema();
    assert_eq!(schema["required"], serde_json::json!(["cluster"]));
    assert_eq!(schema["$defs"]["ClusterSection"]["required"], serde_json::json!(["major"]));
    assert!(!schema.to_string().contains("null"), "TOML has no null");
}

// -- Properties --------------------------------------------------------------------------------------------------

fn durations() -> impl Strategy<Value = String> {
    (1u32..500, prop_oneof!["m", "h", "d"]).prop_map(|(number, unit)| format!("{number}{unit}"))
}

fn codec() -> BoxedStrategy<String> {
    prop_oneof![
        (1u32..=19).prop_map(|level| format!("'zstd:{level}'")),
        (1u32..=9).prop_map(|level| format!("'gzip:{level}'"))
    ]
    .boxed()
}

/// Lines of a policy, each there or not, each valid by itself.
fn policies() -> impl Strategy<Value = String> {
    let line = |key: &'static str, values: BoxedStrategy<String>| {
        proptest::option::of(values)
            .prop_map(move |value| value.map(|value| format!("{key} = {value}\n")).unwrap_or_default())
    };
    let quoted = |values: BoxedStrategy<String>| values.prop_map(|value| format!("'{value}'")).boxed();
    let text = |pattern: &'static str| quoted(pattern.boxed());
    let cluster = (
        line("image", text("[a-z]{1,9}(:[0-9]{1,3})?")),
        line("container", text("a[a-z0-9_.-]{1,9}")),
        line("data_container", text("b[a-z0-9_.-]{1,9}")),
        line("network", text("n[a-z]{4,9}")),
        line("publish", text("127\\.0\\.0\\.1:[1-9][0-9]{3}")),
        line("port", (1u32..=65_535).prop_map(|port| port.to_string()).boxed()),
        line("admin_user", text("[A-Z ]{1,20}")),
        line("admin_password_file", text("[a-z/ ]{1,20}")),
        proptest::option::of(Just("user = \"du'mper\"\npassword_file = 'x'\n".to_owned()))
            .prop_map(Option::unwrap_or_default),
    );
    let dump = (
        line("timezone", quoted(prop_oneof!["UTC", "Europe/Berlin", "America/New_York"].boxed())),
        line("max_lateness", quoted(durations().boxed()).prop_filter("punctual", |d| d != "'1m'").boxed()),
        line("splay", text("[0-9]{1,2}m")),
        line("databases", Just("['*', '!x_*', 'chado']".to_owned()).boxed()),
        line("exclude_table_data", Just("['audit.*', '\"Odd Schema\".t']".to_owned()).boxed()),
        line("jobs", (1u32..=64).prop_map(|jobs| jobs.to_string()).boxed()),
        line("codec", codec()),
        line("lock_timeout", quoted(durations().boxed())),
    );
    let volume = (
        line("schedule", Just("'0 3 * * 0'".to_owned()).boxed()),
        line("timezone", quoted(prop_oneof!["UTC", "Europe/Berlin"].boxed())),
        line("volumes", prop_oneof!["\\['/log', '/data'\\]", "\\['/data'\\]"].boxed()),
        line("codec", codec()),
    );
    let drill = (
        line("schedule", Just("'0 5 * * *'".to_owned()).boxed()),
        line("timezone", quoted(prop_oneof!["UTC", "Europe/Berlin"].boxed())),
        line("facts", prop_oneof!["'counts'", "'full'"].boxed()),
        line("rto_budget", quoted(durations().boxed())),
        line("memory", quoted((64u32..99).prop_map(|n| format!("{n}MB")).boxed())),
        line("cpus", (1u32..=1024).prop_map(|cpus| cpus.to_string()).boxed()),
    );
    let rules = (
        line("last", (1u32..99).prop_map(|n| n.to_string()).boxed()),
        line("weekly", text("").prop_map(|_| "4".to_owned()).boxed()),
    );
    let freshness = proptest::option::of((25u32..99, 1u32..99)).prop_map(|limits| {
        limits.map_or(String::new(), |(warn, more)| {
            format!("[freshness]\ndump = {{ warn = '{warn}h', critical = '{}h' }}\n", warn + more)
        })
    });
    (cluster, dump, volume, drill, proptest::option::of(rules), freshness).prop_map(|(c, d, v, p, rules, freshness)| {
        let rules = rules.map_or(String::new(), |(last, weekly)| format!("[retention]\n{last}{weekly}"));
        let cluster = [c.0, c.1, c.2, c.3, c.4, c.5, c.6, c.7, c.8].concat();
        let dump = [d.0, d.1, d.2, d.3, d.4, d.5, d.6, d.7].concat();
        let volume = [v.0, v.1, v.2, v.3].concat();
        let drill = [p.0, p.1, p.2, p.3, p.4, p.5].concat();
        format!(
            "[cluster]\nmajor = '17'\n{cluster}[backup.dump]\nschedule = '30 2 * * *'\n{dump}[backup.volume]\n{volume}[drill]\n{drill}{rules}{freshness}"
        )
    })
}

proptest! {
    /// What `policy show` prints reads back as the same policy, and shows as the same text.
    #[test]
    fn policies_read_back(text in policies()) {
        let policy = policy(&text);
        let shown = toml::to_string(&PolicyFile::from(&policy)).expect("TOML");
        let again = reading(&shown, &only_local());
        prop_assert_eq!(&again.problems, &[]);
        let again = again.policy.expect("no problems");
        prop_assert_eq!(toml::to_string(&PolicyFile::from(&again)).expect("TOML"), shown);
        prop_assert_eq!(again, policy);
    }

    #[test]
    fn garbage_never_panics(text in ".{0,200}") {
        problems(&text);
    }

    #[test]
    fn garbage_in_the_right_places_never_panics(values in proptest::collection::vec(
        (proptest::sample::select(schema_keys()), "('[a-z0-9*!: ]{0,9}'|-?[0-9]{1,20}|\\[\\]|\\['[a-z*]{0,3}'\\]|\\{\\}|true|1.5)"), 0..9,
    )) {
        let text: String = values.iter().map(|((path, _), value)| format!("{path} = {value}\n")).collect::<Vec<_>>().concat();
        problems(&text);
    }
}

#[test]
fn problems_of_rehearsals_and_of_the_database_s_service_are_told() {
    let told = problems(
        "[cluster]\nmajor = '17'\nregister = true\n[backup.dump]\nrepos = ['local']\n[rehearsal]\nto = 'next'\n",
    );
    insta::assert_snapshot!(told, @r#"
    policies/chado.toml:3:12: cluster.register: there is no Consul to register the database in
        help: add [consul] to pglife.toml, or remove the key
    policies/chado.toml:6:1: rehearsal.schedule: schedule is missing
        help: five fields: minute hour day month weekday, such as "30 2 * * *"; or @hourly, @daily, @weekly, @monthly, @yearly
    policies/chado.toml:7:6: rehearsal.to: PostgreSQL major version "next" is not valid: one number since 10 ("17"), two before ("9.4")
        help: a quoted major version: "17", or "9.6" before 10
    "#);
}

#[test]
fn a_cluster_that_has_the_major_has_nothing_to_rehearse() {
    let tasks = |to: &str| {
        let policy = policy(&format!("[cluster]\nmajor = '17'\n[rehearsal]\nto = '{to}'\nschedule = '@weekly'\n"));
        policy.schedules().map(|(task, _)| task.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(tasks("18"), ["rehearsal"]);
    assert!(tasks("17").is_empty() && tasks("9.6").is_empty());
}
