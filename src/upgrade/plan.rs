//! What an upgrade will do, fixed before it begins; and what stands in its way, all of it at once. Pure.

use serde::{Deserialize, Serialize};

use crate::backup_set::ServerProfile;
use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RoleName, VolumeName};
use crate::docker::body::RestartPolicy;
use crate::docker::container::is_below;
use crate::postgres::survey::Survey;

/// Version of the frozen plan; a newer one is refused.
pub const PLAN_VERSION: u32 = 1;

/// Every name, image, volume and option of one upgrade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlan {
    /// Format version.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its host.
    pub host: HostName,
    /// The method: `dump`.
    pub method: String,
    /// The major it has.
    pub from: PgMajor,
    /// The major it gets.
    pub to: PgMajor,
    /// The image it has.
    pub old_image: PinnedImage,
    /// The image it gets.
    pub new_image: PinnedImage,
    /// The database container's name, before and after.
    pub container: ContainerName,
    /// The data container's name, before and after.
    pub data_container: ContainerName,
    /// Id of the old database container.
    pub old_container_id: String,
    /// Id of the old data container.
    pub old_data_container_id: String,
    /// What the old database container is called while it is kept.
    pub kept_container: ContainerName,
    /// What the old data container is called while it is kept.
    pub kept_data_container: ContainerName,
    /// The volume with the old data.
    pub old_volume: String,
    /// The volume for the new data.
    pub new_volume: VolumeName,
    /// The other volumes, which both servers use, one after the other: source and destination.
    pub shared: Vec<(String, String)>,
    /// The old database container's restart policy.
    pub restart: RestartPolicy,
    /// The role that initdb makes.
    pub bootstrap_role: RoleName,
    /// The old server's system identifier.
    pub system_identifier: u64,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u64,
    /// Databases that are carried.
    pub databases: Vec<DatabaseName>,
    /// Their size together.
    pub bytes: u64,
    /// The value of `image` in the policy afterwards, where the policy names an image.
    pub policy_image: Option<String>,
}

/// An image by its name, and what that name meant when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

/// The containers that work and prove while nobody can reach the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The old server, for the last backup.
    Source,
    /// The new server, into which the backup is restored.
    Target,
    /// The new server with everything it will serve with.
    Proof,
}

impl Trial {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Source, Self::Target, Self::Proof];
}

impl UpgradePlan {
    /// The name of a container for work or proof.
    pub fn trial(&self, trial: Trial) -> ContainerName {
        let what = match trial {
            Trial::Source => "source",
            Trial::Target => "target",
            Trial::Proof => "proof",
        };
        ContainerName::new(format!("pglife-upgrade-{}-{what}", self.cluster)).expect("a cluster's name fits")
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The upgrade does not begin.
    Blocks,
    /// The operator should read it.
    Warning,
    /// Good to know.
    Note,
}

/// Something about the cluster that matters to an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity, what: what.into(), remedy: remedy.into() }
    }

    /// One that stops the upgrade before it begins.
    pub fn blocks(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Blocks, what, remedy)
    }
}

/// Settings that a major removed (the release notes, "Migration to Version …"), with what to do about them.
const REMOVED: [(u16, &str, &str); 15] = [
    (14, "operator_precedence_warning", "remove it"),
    (14, "vacuum_cleanup_index_scale_factor", "remove it"),
    (15, "stats_temp_directory", "remove it"),
    (16, "force_parallel_mode", "write debug_parallel_query instead, or remove it"),
    (16, "promote_trigger_file", "remove it; pg_promote() does that"),
    (16, "vacuum_defer_cleanup_age", "remove it"),
    (16, "lc_collate", "remove it"),
    (16, "lc_ctype", "remove it"),
    (17, "db_user_namespace", "remove it"),
    (17, "old_snapshot_threshold", "remove it"),
    (17, "trace_recovery_messages", "remove it"),
    (13, "wal_keep_segments", "write wal_keep_size instead"),
    (12, "default_with_oids", "remove it"),
    (11, "replacement_sort_tuples", "remove it"),
    (10, "min_parallel_relation_size", "write min_parallel_table_scan_size instead"),
];

/// Settings that initdb itself writes into `postgresql.conf`; the new one has its own.
const OF_INITDB: [&str; 13] = [
    "max_connections",
    "shared_buffers",
    "dynamic_shared_memory_type",
    "max_wal_size",
    "min_wal_size",
    "log_timezone",
    "datestyle",
    "timezone",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "default_text_search_config",
];

fn removed(name: &str, from: PgMajor, to: PgMajor) -> Option<&'static str> {
    let gone_in = |first: u16| !from.is_at_least(first) && to.is_at_least(first);
    let found = REMOVED.iter().find(|(first, setting, _)| gone_in(*first) && setting.eq_ignore_ascii_case(name));
    found.map(|(_, _, remedy)| *remedy)
}

/// What stands in the way, or should be known, of the server that told `profile` and `survey`.
pub fn findings(profile: &ServerProfile, survey: &Survey, to: PgMajor) -> Vec<Finding> {
    let from = profile.major;
    let mut found = Vec::new();
    let mut blocks = |what: String, remedy: &str| found.push(Finding::blocks(what, remedy));
    if survey.in_recovery {
        blocks("the server is a standby".to_owned(), "upgrade the primary; make the standby anew from it");
    }
    for name in &survey.prepared {
        blocks(
            format!("prepared transaction {name}: it would be lost"),
            "finish it: COMMIT PREPARED or ROLLBACK PREPARED in that database",
        );
    }
    for name in &survey.subscriptions {
        blocks(
            format!("subscription {name} is enabled: it would apply changes to two servers"),
            "ALTER SUBSCRIPTION … DISABLE; after the upgrade make it anew",
        );
    }
    for database in &profile.databases {
        if database.name.as_str() != "template0" && !database.connectable {
            blocks(
                format!("database \"{}\" refuses connections: nobody can dump it", database.name),
                "ALTER DATABASE … ALLOW_CONNECTIONS true; one that was half dropped: DROP DATABASE …",
            );
        }
    }
    for space in &profile.tablespaces {
        if !is_below(&space.location, "/data") {
            blocks(
                format!("tablespace \"{}\" lies in {}, outside the data volume", space.name, space.location),
                "move its tables into another tablespace and drop it",
            );
        }
    }
    for setting in &survey.settings {
        if let Some(error) = &setting.error {
            blocks(
                format!("{} has a mistake at {}: {error}", setting.file, setting.name),
                "mend that file, then reload",
            );
        }
        if let Some(remedy) = removed(&setting.name, from, to) {
            let (name, file) = (&setting.name, &setting.file);
            blocks(format!("setting {name} in {file} is unknown to PostgreSQL {to}"), remedy);
        }
        if is_own_change(setting, survey) {
            blocks(
                format!(
                    "{} was set to '{}' in {}, which is not carried: the new data directory has a new one",
                    setting.name, setting.value, setting.file
                ),
                "write it into a *.conf file in /config, or ALTER SYSTEM SET it, and take it out of that file",
            );
        }
    }
    for (whose, setting) in &survey.role_settings {
        let name = setting.split('=').next().unwrap_or_default();
        if let Some(remedy) = removed(name, from, to) {
            blocks(
                format!("setting {name} of {whose} is unknown to PostgreSQL {to}; it would stop the restore"),
                &format!("{remedy}: ALTER ROLE or ALTER DATABASE … RESET {name}"),
            );
        }
    }
    for name in &survey.access_files {
        if !is_below(name, &survey.data_directory) && !is_below(name, "/config") {
            blocks(
                format!("{name} lies outside the data directory and /config, where the new container has nothing"),
                "move it into /config",
            );
        }
    }
    let bytes: u64 = profile.databases.iter().map(|database| database.bytes).sum();
    let needed = bytes + bytes / 10 + (256 << 20);
    if survey.free_bytes < needed {
        blocks(
            format!(
                "the host's disk for volumes has {} MB free; a second copy of the data needs {} MB",
                survey.free_bytes >> 20,
                needed >> 20
            ),
            "free space on it, or enlarge it",
        );
    }
    for name in &survey.slots {
        found.push(Finding::new(
            Severity::Warning,
            format!("replication slot {name} is not carried"),
            "make it anew afterwards; what consumes it must begin again",
        ));
    }
    for name in &survey.receivers {
        found.push(Finding::new(
            Severity::Warning,
            format!("standby or receiver {name} cannot follow the new server"),
            "make it anew from the new server",
        ));
    }
    if !profile.data_checksums && to.is_at_least(18) {
        found.push(Finding::new(
            Severity::Note,
            "the new server will have data checksums, which the old one has not",
            "nothing: they are the default since 18",
        ));
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// True for a line of the data directory's own `postgresql.conf` that somebody wrote there by hand.
fn is_own_change(setting: &crate::postgres::survey::FileSetting, survey: &Survey) -> bool {
    let in_data = is_below(&setting.file, &survey.data_directory);
    let automatic = setting.file.ends_with("/postgresql.auto.conf");
    let name = setting.name.to_ascii_lowercase();
    let of_initdb = OF_INITDB.contains(&name.as_str()) && (name != "max_connections" || setting.value == "100");
    in_data && !automatic && !of_initdb
}

/// `ALTER SYSTEM` statements for what the old server was given in this way.
pub fn system_settings(survey: &Survey) -> Vec<String> {
    let mut last = std::collections::BTreeMap::new();
    for setting in survey.settings.iter().filter(|setting| setting.file.ends_with("/postgresql.auto.conf")) {
        last.insert(setting.name.as_str(), setting.value.as_str());
    }
    last.into_iter().map(|(name, value)| alter_system(name, value)).collect()
}

/// Settings that hold a list keep its parts apart: a quoted whole would be one part.
fn alter_system(name: &str, value: &str) -> String {
    const LISTS: [&str; 10] = [
        "shared_preload_libraries",
        "session_preload_libraries",
        "local_preload_libraries",
        "search_path",
        "temp_tablespaces",
        "listen_addresses",
        "unix_socket_directories",
        "debug_io_direct",
        "synchronized_standby_slots",
        "createrole_self_grant",
    ];
    let name_text = name.split('.').map(crate::sql::quote_identifier).collect::<Vec<_>>().join(".");
    let value_text = if LISTS.contains(&name) && !value.is_empty() {
        let parts = value.split(',').map(|part| part.trim().trim_matches('"'));
        parts.map(crate::sql::quote_literal).collect::<Vec<_>>().join(", ")
    } else {
        crate::sql::quote_literal(value)
    };
    format!("alter system set {name_text} = {value_text}")
}

/// The text of a policy with another `major`, and another `image` where it names one; everything else stays as it is.
pub fn policy_with(text: &str, major: PgMajor, image: Option<&str>) -> String {
    let mut in_cluster = false;
    let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with('[') {
            in_cluster = trimmed.starts_with("[cluster]");
        }
        let key = trimmed.split('=').next().unwrap_or_default().trim();
        let value = match (in_cluster && trimmed.contains('='), key, image) {
            (true, "major", _) => Some(quoted(&major.to_string())),
            (true, "image", Some(image)) => Some(quoted(image)),
            _ => None,
        };
        match value {
            Some(value) => {
                let indent = &line[..line.len() - trimmed.len()];
                let comment = trimmed.find(" #").map(|at| &trimmed[at..]).unwrap_or_default();
                lines.push(format!("{indent}{key} = {value}{comment}"));
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + if text.ends_with('\n') { "\n" } else { "" }
}

#[cfg(test)]
mod tests;
