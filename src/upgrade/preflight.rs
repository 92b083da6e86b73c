//! What stands in the way of an upgrade, or should be known, all of it at once and each with its remedy. Pure.

use serde::Serialize;

use super::plan::Containers;
use crate::backup_set::ServerProfile;
use crate::cluster::PgMajor;
use crate::docker::container::is_below;
use crate::policy::UpgradeMethod;
use crate::postgres::installation::Installation;
use crate::postgres::survey::{FileSetting, OutdatedKind, Survey};

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

    /// One that the operator should read.
    pub fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, remedy)
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

/// What stands in the way, or should be known, of the server in `containers` that told `profile` and `survey`.
pub fn findings(profile: &ServerProfile, survey: &Survey, to: PgMajor, containers: &Containers) -> Vec<Finding> {
    let from = profile.major;
    let is_ours = matches!(containers, Containers::Pair(_));
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
        if !is_ours || !is_below(&space.location, "/data") {
            let why = if is_ours { "outside the data volume" } else { "and none of an adopted cluster is carried" };
            blocks(
                format!("tablespace \"{}\" lies in {}, {why}", space.name, space.location),
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
        if is_ours && is_own_change(setting, survey) {
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
    for outdated in &survey.outdated {
        let (first, what, remedy) = words(outdated.kind);
        if to.is_at_least(first) {
            blocks(format!("{what} {} in database \"{}\"", outdated.name, outdated.database), remedy);
        }
    }
    for name in survey.access_files.iter().filter(|_| is_ours) {
        if !is_below(name, &survey.data_directory) && !is_below(name, "/config") {
            blocks(
                format!("{name} lies outside the data directory and /config, where the new container has nothing"),
                "move it into /config",
            );
        }
    }
    let needed = needed_bytes(profile);
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
        found.push(Finding::warning(
            format!("replication slot {name} is not carried"),
            "make it anew afterwards; what consumes it must begin again",
        ));
    }
    for name in &survey.receivers {
        found.push(Finding::warning(
            format!("standby or receiver {name} cannot follow the new server"),
            "make it anew from the new server",
        ));
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// What matters to one method only.
pub fn of_method(method: UpgradeMethod, profile: &ServerProfile, survey: &Survey, to: PgMajor) -> Vec<Finding> {
    match method {
        UpgradeMethod::Dump => {
            let (what, remedy) = ARCHIVE_OF_ANOTHER_SERVER;
            let archive = profile.archives().then(|| Finding::warning(what, remedy));
            let checksums = (!profile.data_checksums && to.is_at_least(18)).then(|| {
                Finding::new(
                    Severity::Note,
                    "the new server will have data checksums, which the old one has not",
                    "nothing: they are the default since 18",
                )
            });
            archive.into_iter().chain(checksums).collect()
        }
        UpgradeMethod::PgUpgrade => {
            // Since 17 it wants to carry logical ones, and refuses where one has not consumed everything.
            let logical = survey.slots.iter().filter(|name| name.ends_with("(logical)"));
            let refused = logical.filter(|_| profile.major.is_at_least(17)).map(|name| {
                Finding::blocks(
                    format!("pg_upgrade carries replication slot {name} only where everything was consumed"),
                    "drop it, and make it anew afterwards: pg_drop_replication_slot(…); or upgrade with --method dump",
                )
            });
            refused.collect()
        }
    }
}

/// What becomes of an archive of WAL where a dump goes into a new server, and what to do about it.
pub(super) const ARCHIVE_OF_ANOTHER_SERVER: (&str, &str) = (
    "archive_mode is on: the server is a new one then, whose WAL begins anew, with names that its archive may have already",
    "give it another place for that first, and make standbys anew",
);

/// Bytes that a second copy of the data needs.
pub fn needed_bytes(profile: &ServerProfile) -> u64 {
    with_room(profile.databases.iter().map(|database| database.bytes).sum())
}

/// Bytes that a server needs into which so many are restored.
pub fn with_room(bytes: u64) -> u64 {
    bytes + bytes / 10 + ROOM_TO_START
}

/// Bytes that a server needs beside its data to start on them, for WAL above all.
pub const ROOM_TO_START: u64 = 256 << 20;

/// What is said where fewer bytes are free than are needed.
pub fn shortage(needed: u64, free: u64) -> Option<String> {
    let short = free < needed;
    short.then(|| {
        format!("its new volume needs {} MB, and its disk has {} MB free", needed.div_ceil(1 << 20), free >> 20)
    })
}

/// The first major that does not take it from a dump, what it is, and what to do.
fn words(kind: OutdatedKind) -> (u16, &'static str, &'static str) {
    match kind {
        OutdatedKind::PostfixOperator => (
            14,
            "PostgreSQL 14 has no postfix operators any more:",
            "DROP OPERATOR …, or make one with the operand on the right",
        ),
        OutdatedKind::ArrayFunction => (
            14,
            "array functions have arguments of other types since PostgreSQL 14; it would not be made again:",
            "drop it, and after the upgrade make it anew with anycompatiblearray and anycompatible",
        ),
        OutdatedKind::Conversion => (
            14,
            "functions of conversions have another argument since PostgreSQL 14; it would not be made again: conversion",
            "DROP CONVERSION …, and after the upgrade make it anew",
        ),
        OutdatedKind::Oids => (
            12,
            "PostgreSQL 12 has no tables with oids any more:",
            "ALTER TABLE … SET WITHOUT OIDS; keep them in a column first if they are used",
        ),
        OutdatedKind::Type => (
            12,
            "PostgreSQL 12 does not have the type any more:",
            "give the column the type timestamptz, interval or tstzrange",
        ),
        OutdatedKind::NullableChild => (
            10,
            "the column may be null, and its parent's may not, which a dump cannot say:",
            "ALTER TABLE … ALTER COLUMN … SET NOT NULL, after filling what is null there",
        ),
    }
}

/// Extensions that PostgreSQL brought along, and the first major that does not.
const REMOVED_EXTENSIONS: [(u16, &str); 5] =
    [(10, "tsearch2"), (11, "chkpass"), (12, "timetravel"), (17, "adminpack"), (17, "old_snapshot")];

/// What the server that told `survey` needs of its image and `installation`, the one in `image`, does not have.
pub fn missing_in_image(survey: &Survey, installation: &Installation, image: &str, to: PgMajor) -> Vec<Finding> {
    let build = format!("build an image of PostgreSQL {to} that has it, and name it: --image NAME (docs/images.md)");
    let mut found = Vec::new();
    for (name, databases) in survey.extensions.iter().filter(|(name, _)| !installation.extensions.contains(*name)) {
        let list = databases.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let what = format!("extension {name}, in database {list}, is not in {image}");
        let removed = REMOVED_EXTENSIONS.iter().find(|(first, removed)| removed == name && to.is_at_least(*first));
        found.push(match removed {
            Some((first, _)) => {
                Finding::blocks(what, format!("PostgreSQL {first} removed it: DROP EXTENSION {name} in each of them"))
            }
            None => Finding::blocks(what, format!("{build}; or, where nothing needs it: DROP EXTENSION {name}")),
        });
    }
    let lists = survey.preloaded.iter().map(|(setting, value)| (format!("setting {setting}"), value.as_str()));
    let of_roles = survey.role_settings.iter().filter_map(|(whose, text)| {
        let (name, value) = text.split_once('=')?;
        name.ends_with("_preload_libraries").then(|| (format!("setting {name} of {whose}"), value))
    });
    for (whose, value) in lists.chain(of_roles) {
        let names = value.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
        for name in names.filter(|name| !installation.has_library(name)) {
            // Nobody but a superuser loads from elsewhere.
            if whose.contains("local_preload") && installation.has_library(&format!("plugins/{name}")) {
                continue;
            }
            found.push(Finding::blocks(
                format!("{whose} loads library {name}, which is not in {image}: its sessions would fail, or the server itself"),
                format!("{build}; or take it out of the setting"),
            ));
        }
    }
    for (library, function) in survey.libraries.iter().filter(|(library, _)| !installation.has_library(library)) {
        found.push(Finding::blocks(
            format!("library {library} of {function} is not in {image}"),
            format!("{build}; or, where nothing needs it: DROP FUNCTION"),
        ));
    }
    for (locale, whose) in survey.locales.iter().filter(|(locale, _)| !installation.has_locale(locale)) {
        found.push(Finding::blocks(format!("locale {locale} of {whose} is not in {image}"), build.clone()));
    }
    found
}

/// True for a line of the data directory's own `postgresql.conf` that somebody wrote there by hand.
fn is_own_change(setting: &FileSetting, survey: &Survey) -> bool {
    let in_data = is_below(&setting.file, &survey.data_directory);
    let automatic = setting.file.ends_with("/postgresql.auto.conf");
    let name = setting.name.to_ascii_lowercase();
    let of_initdb = OF_INITDB.contains(&name.as_str()) && (name != "max_connections" || setting.value == "100");
    in_data && !automatic && !of_initdb
}

#[cfg(test)]
mod tests;
