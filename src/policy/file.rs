//! Reads `policies/<cluster>.toml`.

mod drill;
mod timing;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

use super::schedule::{self, Schedule, Zone};
use super::{
    Adopted, DURATION_HELP, DatabaseSelection, DumpPolicy, Duration, ImageName, LONGEST_CHAIN, Layout, Login, Managed,
    Policy, RehearsalPolicy, Retention, TablePattern, VerifyPolicy, VolumeName, VolumePolicy, dependents, freshness,
    io_priority, rate, retention, upgrade,
};
use crate::backup_set::{Codec, CopyMode};
use crate::cluster::{ClusterName, ContainerName, HostName, PgMajor, RepoName, RoleName};
use crate::document::{self, Entry, Position, Problem, Table};
use crate::settings::{Endpoint, Settings};

use timing::{read_zone, shortest_gap};

/// What came of reading one policy file.
#[derive(Debug)]
pub struct Reading {
    /// The policy; `None` when there are problems.
    pub policy: Option<Policy>,
    /// Everything wrong in this file, in its order.
    pub problems: Vec<Problem>,
    /// The containers the file names, for the search for two policies with the same container.
    pub claims: Vec<Claim>,
    /// The path of every key the reader asked for.
    pub known: BTreeSet<String>,
}

/// A container that a policy counts as its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key that says so, or would.
    pub key: &'static str,
    /// Its place; that of the section where the name is the default.
    pub position: Option<Position>,
    /// The engine the container is on.
    pub endpoint: Option<Endpoint>,
    /// The container.
    pub container: ContainerName,
}

/// Reads the text of `file`, the policy of `cluster`, against the hosts and repositories of `settings`.
pub fn read(file: &Path, text: &str, cluster: &ClusterName, settings: &Settings) -> Reading {
    let mut claims = Vec::new();
    let outcome = document::read(file, text, |root| {
        let reader = Reader { cluster, settings };
        let server = root.section("cluster", |table| reader.server(table, &mut claims));
        let (dump, volume) = root.section("backup", |backup| {
            let dump = backup.section("dump", |table| reader.dump(table, server.host.as_ref()));
            let adopted = matches!(server.layout, Some(Layout::Adopted(_)));
            let volume = backup.section("volume", |table| reader.volume(table, &dump, adopted));
            (dump, volume)
        });
        let retention = root.optional("retention", read_retention);
        let drill = root.section("drill", |table| drill::read(table, reader.timing(table, &dump.timezone)));
        let verify = root.optional("verify", |table| reader.verify(table, &dump));
        let rehearsal = root.optional("rehearsal", |table| reader.rehearsal(table, &dump)).flatten();
        let upgrade = root.section("upgrade", |table| {
            let zone = table.get("timezone").map_or_else(|| Some(dump.timezone.clone()), |entry| read_zone(&entry));
            upgrade::read(table, zone.unwrap_or(Zone::UTC))
        });
        let dependents = root.section("dependents", dependents::read);
        let (dump_freshness, volume_freshness, drill_freshness) = root.section("freshness", |table| {
            let limits = |kind: &str, schedule: Option<&Schedule>| {
                table.optional(kind, |limits| read_limits(limits, schedule)).flatten()
            };
            (
                limits("dump", dump.schedule.as_ref()),
                limits("volume", volume.schedule.as_ref()),
                limits("drill", drill.schedule.as_ref()),
            )
        });
        Some(Policy {
            name: cluster.clone(),
            host: server.host?,
            major: server.major?,
            container: server.container?,
            port: server.port,
            register: server.register,
            login: server.login?,
            layout: server.layout?,
            dump,
            volume,
            drill,
            retention,
            dump_freshness,
            volume_freshness,
            drill_freshness,
            verify,
            rehearsal,
            upgrade,
            dependents,
        })
    });
    let policy = outcome.value.flatten().filter(|_| outcome.problems.is_empty());
    Reading { policy, problems: outcome.problems, claims, known: outcome.known }
}

struct Reader<'r> {
    cluster: &'r ClusterName,
    settings: &'r Settings,
}

/// The section `[cluster]`; `None` where something is missing or wrong, which is a problem already told.
struct Server {
    host: Option<HostName>,
    major: Option<PgMajor>,
    container: Option<ContainerName>,
    port: NonZeroU16,
    register: bool,
    login: Option<Login>,
    layout: Option<Layout>,
}

const CONTAINER_HELP: &str = "the container's name in Docker";
const ROLE_HELP: &str = "the role's name in PostgreSQL";
const FILE_HELP: &str = "a path, relative to the folder of pglife.toml or absolute";
const MAJOR_HELP: &str = "a quoted major version: \"17\", or \"9.6\" before 10";
const DEFAULT_PORT: NonZeroU16 = NonZeroU16::new(5432).expect("not zero");

impl Reader<'_> {
    fn server(&self, table: &Table<'_>, claims: &mut Vec<Claim>) -> Server {
        let major_entry = table.get("major");
        if major_entry.is_none() {
            table.missing("major", "the major version is missing", MAJOR_HELP);
        }
        let major = major_entry.and_then(|entry| entry.parse::<PgMajor>(MAJOR_HELP));
        let host = self.host(table);
        let endpoint = host.as_ref().and_then(|host| self.settings.hosts.get(host));
        let mut claim = |key: &'static str, default_suffix: &str| {
            let entry = table.get(key);
            let container = match &entry {
                Some(entry) => entry.parse::<ContainerName>(CONTAINER_HELP)?,
                None => ContainerName::new(format!("{}-{default_suffix}", self.cluster)).ok()?,
            };
            let position = entry.map(|entry| entry.position()).or(table.position());
            claims.push(Claim { key, position, endpoint: endpoint.cloned(), container: container.clone() });
            Some(container)
        };
        let container = claim("container", "db");
        let port = table.get("port").and_then(|entry| entry.integer(1..=65_535));
        let port = port.and_then(|port| u16::try_from(port).ok()).and_then(NonZeroU16::new).unwrap_or(DEFAULT_PORT);
        let (login, layout) = if let Some(pgdata) = table.get("pgdata") {
            (self.tcp_login(table, true), adopted(table, &pgdata).map(Layout::Adopted))
        } else {
            let data_container = claim("data_container", "data");
            (self.managed_login(table), self.managed(table, major, data_container).map(Layout::Managed))
        };
        Server { host, major, container, port, register: self.register(table), login, layout }
    }

    fn register(&self, table: &Table<'_>) -> bool {
        let Some(entry) = table.get("register") else { return false };
        let register = entry.flag().unwrap_or(false);
        if register && self.settings.consul.is_none() {
            entry.problem(
                "there is no Consul to register the database in",
                "add [consul] to pglife.toml, or remove the key",
            );
        }
        register
    }

    fn host(&self, table: &Table<'_>) -> Option<HostName> {
        let hosts = &self.settings.hosts;
        let names = || hosts.keys().map(HostName::as_str).collect::<Vec<_>>().join(", ");
        let Some(entry) = table.get("host") else {
            let local = hosts.keys().find(|name| name.as_str() == "local");
            let default = if hosts.len() == 1 { hosts.keys().next() } else { local };
            if default.is_none() {
                table.missing("host", "the host is missing", format!("pglife.toml has: {}", names()));
            }
            return default.cloned();
        };
        let name = entry.parse::<HostName>("a name of [hosts] in pglife.toml")?;
        if !hosts.contains_key(&name) {
            entry.problem(format!("pglife.toml has no [hosts.{name}]"), format!("it has: {}", names()));
            return None;
        }
        Some(name)
    }

    fn managed(
        &self,
        table: &Table<'_>,
        major: Option<PgMajor>,
        data_container: Option<ContainerName>,
    ) -> Option<Managed> {
        let image = match table.get("image") {
            Some(entry) => entry.parse("the image's name in Docker"),
            None => major.and_then(|major| format!("pglife/postgres:{major}").parse::<ImageName>().ok()),
        };
        let admin_user = match table.get("admin_user") {
            Some(entry) => entry.parse::<RoleName>(ROLE_HELP).inspect(|role| {
                if role.as_str() == "postgres" || role.as_str().starts_with("pg_") {
                    let help = "postgres enters by the unix socket only; names that begin with pg_ are the server's";
                    entry.problem(format!("{role} cannot be the admin role"), help);
                }
            }),
            None => RoleName::new("admin").ok(),
        };
        let publish_help =
            "an address and a port of the Docker host: \"127.0.0.1:5433\", \"0.0.0.0:5432\", \"[::1]:5433\"";
        let publish = table.get("publish").and_then(|entry| {
            let text = entry.text(publish_help)?;
            let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
            if address.is_none() {
                entry.problem(format!("{text:?} is not an address with a port"), publish_help);
            }
            address
        });
        let network = table.get("network").and_then(|entry| entry.parse("the network's name in Docker"));
        let admin_database = table.get("admin_database").and_then(|entry| entry.parse("the database's name"));
        let admin_password_file = self.path(table, "admin_password_file");
        Some(Managed {
            image: image?,
            data_container: data_container?,
            network,
            publish,
            admin_user: admin_user?,
            admin_database,
            admin_password_file,
        })
    }

    fn managed_login(&self, table: &Table<'_>) -> Option<Login> {
        match (table.get("user"), table.get("password_file")) {
            (None, None) => RoleName::new("postgres").ok().map(|user| Login::Socket { user }),
            (Some(_), Some(_)) => self.tcp_login(table, false),
            (Some(user), None) => user.parse(ROLE_HELP).map(|user| Login::Socket { user }),
            (None, Some(file)) => {
                file.text(FILE_HELP)?;
                let help = "add user = \"…\", or remove password_file: the worker then uses the unix socket";
                file.problem("the role this password belongs to is missing", help);
                None
            }
        }
    }

    fn tcp_login(&self, table: &Table<'_>, default_user: bool) -> Option<Login> {
        let user = match table.get("user") {
            Some(entry) => entry.parse(ROLE_HELP),
            None => RoleName::new("postgres").ok().filter(|_| default_user),
        };
        let password_file = self.path(table, "password_file");
        Some(Login::Tcp { user: user?, password_file })
    }

    fn path(&self, table: &Table<'_>, key: &str) -> Option<PathBuf> {
        let entry = table.get(key)?;
        let text = entry.text(FILE_HELP)?;
        if text.is_empty() || text.contains('\0') {
            entry.problem("the path is empty or holds a NUL", FILE_HELP);
        }
        Some(self.settings.resolve(Path::new(text)))
    }

    fn dump(&self, table: &Table<'_>, host: Option<&HostName>) -> DumpPolicy {
        let jobs = table.get("jobs").and_then(|entry| entry.integer(1..=64));
        let jobs = jobs.and_then(|jobs| usize::try_from(jobs).ok()).and_then(NonZeroUsize::new);
        let lock_timeout = table.get("lock_timeout").and_then(|entry| {
            let duration = entry.parse::<Duration>(DURATION_HELP)?;
            if duration == Duration::ZERO {
                entry.problem("without a limit a dump could wait for a lock for ever", "at least 1s");
            }
            Some(duration)
        });
        let (schedule, timezone) = self.timing(table, &Zone::UTC);
        let repositories = self.repositories(table, host);
        DumpPolicy {
            schedule,
            timezone,
            required: read_required(table, repositories.len()),
            repositories,
            databases: read_databases(table).unwrap_or_else(DatabaseSelection::everything),
            exclude_table_data: read_table_patterns(table),
            jobs: jobs.unwrap_or(const { NonZeroUsize::new(2).expect("not zero") }),
            codec: table.get("codec").and_then(|entry| one_that_packs(&entry)).unwrap_or_default(),
            lock_timeout: lock_timeout.unwrap_or(Duration::from_secs(5)),
        }
    }

    fn volume(&self, table: &Table<'_>, dump: &DumpPolicy, adopted: bool) -> VolumePolicy {
        let mode = table.get("mode").and_then(|entry| {
            let help = "\"hot\" (the server runs) or \"cold\" (it is stopped for the copy)";
            match entry.text(help)? {
                "hot" => Some(CopyMode::Hot),
                "cold" => Some(CopyMode::Cold),
                other => {
                    entry.problem(format!("{other:?} is not known"), help);
                    None
                }
            }
        });
        let (schedule, timezone) = self.timing(table, &dump.timezone);
        VolumePolicy {
            schedule,
            timezone,
            mode: mode.unwrap_or_default(),
            volumes: if adopted { of_adopted(table) } else { read_volumes(table) },
            codec: table.get("codec").and_then(|entry| entry.parse(Codec::FORMS_FOR_TARS)).unwrap_or_default(),
            rate_limit: table.get("rate_limit").and_then(|entry| entry.parse(rate::HELP)),
            ionice: table.get("ionice").and_then(|entry| entry.parse(io_priority::HELP)),
            full_every: table
                .get("full_every")
                .and_then(|entry| entry.integer(1..=LONGEST_CHAIN))
                .and_then(NonZeroU32::new)
                .unwrap_or(NonZeroU32::MIN),
        }
    }

    fn verify(&self, table: &Table<'_>, dump: &DumpPolicy) -> VerifyPolicy {
        let (schedule, timezone) = self.timing(table, &dump.timezone);
        let sample = table.get("sample").and_then(|entry| entry.parse("a share for each day: \"1/7\", a seventh"));
        if table.is_present() && table.get("schedule").is_none() {
            table.missing("schedule", "the schedule is missing", schedule::HELP);
        }
        VerifyPolicy { schedule, timezone, sample: sample.unwrap_or_else(|| "1/7".parse().expect("a sample")) }
    }

    fn rehearsal(&self, table: &Table<'_>, dump: &DumpPolicy) -> Option<RehearsalPolicy> {
        let (schedule, timezone) = self.timing(table, &dump.timezone);
        for key in ["schedule", "to"] {
            if table.is_present() && table.get(key).is_none() {
                let help = if key == "to" { MAJOR_HELP } else { schedule::HELP };
                table.missing(key, format!("{key} is missing"), help);
            }
        }
        let to = table.get("to")?.parse::<PgMajor>(MAJOR_HELP)?;
        Some(RehearsalPolicy { schedule, timezone, to })
    }

    fn repositories(&self, table: &Table<'_>, host: Option<&HostName>) -> Vec<RepoName> {
        let known = &self.settings.repositories;
        let names = || known.keys().map(RepoName::as_str).collect::<Vec<_>>().join(", ");
        let in_settings = || match known.len() {
            0 => "pglife.toml has no [repos.<name>]: add one".to_owned(),
            _ => format!("pglife.toml has: {}", names()),
        };
        let usable = |name: &RepoName, problem: &dyn Fn(String, String)| match known.get(name) {
            Some(_) => {
                if let Some(host) = host
                    && !self.settings.is_within_reach(host, name)
                {
                    let help = "the workers run beside the data and store there themselves: name buckets";
                    let message = format!("{name} is a folder of this machine, and [hosts.{host}] is another one");
                    problem(message, help.to_owned());
                }
            }
            None => problem(format!("pglife.toml has no [repos.{name}]"), in_settings()),
        };
        let Some(entry) = table.get("repos") else {
            let mut names = known.keys();
            let (Some(only), None) = (names.next(), names.next()) else {
                table.missing("repos", "the repositories are missing", in_settings());
                return Vec::new();
            };
            usable(only, &|message, help| table.missing("repos", message, help));
            return vec![only.clone()];
        };
        let help = "a list of names of [repos] in pglife.toml: [\"local\"]";
        let mut chosen: Vec<RepoName> = Vec::new();
        let items = entry.list(help);
        if items.as_ref().is_some_and(Vec::is_empty) {
            entry.problem("a backup needs a repository", in_settings());
        }
        for item in items.into_iter().flatten() {
            let Some(name) = item.parse::<RepoName>(help) else { continue };
            usable(&name, &|message, help| item.problem(message, help));
            if chosen.contains(&name) {
                item.problem(format!("{name} is named twice"), "name each repository once");
            }
            chosen.push(name);
        }
        chosen
    }

    /// The keys that say when; `usual` is the zone where the table names none. A zone that cannot be read leaves no schedule.
    fn timing(&self, table: &Table<'_>, usual: &Zone) -> (Option<Schedule>, Zone) {
        let timezone = table.get("timezone").map_or_else(|| Some(usual.clone()), |entry| read_zone(&entry));
        let schedule = timing::read(table, self.cluster, timezone.as_ref());
        (schedule, timezone.unwrap_or(Zone::UTC))
    }
}

/// Readers of dumps take what comes after them for a part of them.
fn one_that_packs(entry: &Entry<'_>) -> Option<Codec> {
    let codec = entry.parse(Codec::FORMS)?;
    if codec == Codec::Plain {
        entry.problem("dumps are always packed: \"none\" is for copies of volumes", Codec::FORMS);
        return None;
    }
    Some(codec)
}

fn adopted(table: &Table<'_>, pgdata: &Entry<'_>) -> Option<Adopted> {
    for key in ["image", "data_container", "network", "publish", "admin_user", "admin_database", "admin_password_file"]
    {
        if let Some(entry) = table.get(key) {
            let help = "remove it, or remove pgdata if pglife shall make the containers";
            entry.problem(format!("{key} has no effect for an adopted cluster (one with pgdata)"), help);
        }
    }
    let help = "the absolute path of the data directory inside the container: \"/var/lib/postgresql/data\"";
    let text = pgdata.text(help)?;
    if !text.starts_with('/')
        || text.contains('\0')
        || Path::new(text).components().any(|part| part.as_os_str() == "..")
    {
        pgdata.problem(format!("{text:?} is not an absolute path"), help);
    }
    Some(Adopted { pgdata: PathBuf::from(text) })
}

fn read_databases(table: &Table<'_>) -> Option<DatabaseSelection> {
    let help = "a list of patterns: [\"*\"], [\"*\", \"!scratch_*\"], [\"chado\"]";
    let entry = table.get("databases")?;
    let patterns: Option<Vec<&str>> = entry.list(help)?.iter().map(|item| item.text(help)).collect();
    DatabaseSelection::new(patterns?).map_err(|error| entry.problem(error.to_string(), help)).ok()
}

/// The copy of an adopted cluster has its data directory and its tablespaces where the others have the volume with the data.
fn of_adopted(table: &Table<'_>) -> Vec<VolumeName> {
    if let Some(entry) = table.get("volumes") {
        let help = "remove it: the data directory and the tablespaces are copied, wherever they lie";
        entry.problem("volumes has no effect for an adopted cluster (one with pgdata)", help);
    }
    vec![VolumeName::Data]
}

fn read_volumes(table: &Table<'_>) -> Vec<VolumeName> {
    let help = "a list of \"/data\", \"/config\", \"/secret\", \"/log\"";
    let Some(entry) = table.get("volumes") else { return VolumeName::ALL.to_vec() };
    let Some(items) = entry.list(help) else { return VolumeName::ALL.to_vec() };
    let mut chosen = Vec::new();
    for item in items {
        let Some(text) = item.text(help) else { continue };
        match VolumeName::ALL.into_iter().find(|volume| volume.path() == text) {
            None => item.problem(format!("{text:?} is no volume of a data container"), help),
            Some(volume) if chosen.contains(&volume) => {
                item.problem(format!("{text} is named twice"), "name each volume once");
            }
            Some(volume) => chosen.push(volume),
        }
    }
    if !chosen.contains(&VolumeName::Data) {
        entry.problem("without /data it is no backup of the cluster", help);
    }
    // In one order, whatever that of the file is.
    chosen.sort();
    chosen
}

fn read_table_patterns(table: &Table<'_>) -> Vec<TablePattern> {
    let help = "a list of patterns as pg_dump --exclude-table-data reads them: [\"audit.*\"]";
    let items = table.get("exclude_table_data").and_then(|entry| entry.list(help));
    items.into_iter().flatten().filter_map(|item| item.parse(help)).collect()
}

/// How many of `repositories` copies make a backup.
fn read_required(table: &Table<'_>, repositories: usize) -> NonZeroUsize {
    let Some(entry) = table.get("required") else { return NonZeroUsize::MIN };
    let most = u32::try_from(repositories.max(1)).unwrap_or(u32::MAX);
    let required = entry.integer(1..=most).and_then(|required| usize::try_from(required).ok());
    required.and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

fn read_retention(table: &Table<'_>) -> Retention {
    let rule = |key: &str| table.get(key).and_then(|entry| entry.integer(0..=retention::MOST)).unwrap_or(0);
    let last = table.get("last").and_then(|entry| match entry.integer(0..=retention::MOST)? {
        0 => {
            let message = "with last = 0 pruning could remove every backup";
            entry.problem(message, "at least 1: this is the floor that pruning never goes below");
            None
        }
        last => NonZeroU32::new(last),
    });
    Retention {
        last: last.unwrap_or(Retention::DEFAULT_LAST),
        daily: rule("daily"),
        weekly: rule("weekly"),
        monthly: rule("monthly"),
        yearly: rule("yearly"),
    }
}

fn read_limits(table: &Table<'_>, schedule: Option<&Schedule>) -> Option<freshness::Limits> {
    let limit = |key: &str| {
        let entry = table.get(key);
        if entry.is_none() && table.is_present() {
            table.missing(key, format!("{key} is missing"), "{ warn = \"26h\", critical = \"50h\" }");
        }
        entry
    };
    let (warn_entry, critical_entry) = (limit("warn"), limit("critical"));
    let warn = warn_entry.as_ref().and_then(|entry| entry.parse::<Duration>(DURATION_HELP));
    let critical = critical_entry.as_ref().and_then(|entry| entry.parse::<Duration>(DURATION_HELP));
    let (warn, critical) = (warn?, critical?);
    let limits = freshness::Limits::new(warn, critical);
    if limits.is_none()
        && let Some(entry) = &critical_entry
    {
        let message = format!("warn ({warn}) is not between zero and critical ({critical})");
        entry.problem(message, "warn comes first: { warn = \"26h\", critical = \"50h\" }");
    }
    if let Some(gap) = schedule.and_then(shortest_gap).filter(|gap| warn <= *gap)
        && let Some(entry) = &warn_entry
    {
        let message = format!("the schedule leaves {gap} between two runs, so {warn} always warns before the next");
        entry.problem(message, "choose more than the time between two runs, and some hours for the run itself");
    }
    limits
}

/// A policy of `chado` with one repository, for tests elsewhere.
#[cfg(test)]
pub(crate) fn example(text: &str) -> Policy {
    tests::policy(text)
}

#[cfg(test)]
mod tests;
