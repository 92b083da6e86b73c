//! What an upgrade carries that no dump holds: settings of `ALTER SYSTEM`, and the major in the policy. Pure.

use super::plan::UpgradePlan;
use crate::cluster::PgMajor;
use crate::postgres::inspect::setting_of_every_role;
use crate::postgres::survey::Survey;

/// `ALTER SYSTEM` statements for what the old server was given in this way.
pub(super) fn system_settings(survey: &Survey) -> Vec<String> {
    let mut last = std::collections::BTreeMap::new();
    for setting in survey.settings.iter().filter(|setting| setting.file.ends_with("/postgresql.auto.conf")) {
        last.insert(setting.name.as_str(), setting.value.as_str());
    }
    last.into_iter().map(|(name, value)| alter_system(name, value)).collect()
}

/// Statements for the settings of every role, of which `pg_dumpall`, and so `pg_upgrade`, says nothing.
pub(super) fn settings_of_every_role(survey: &Survey) -> Vec<String> {
    let of_all = survey.role_settings.iter().filter(|(whose, _)| whose == "all roles");
    of_all.filter_map(|(_, setting)| setting_of_every_role(setting)).collect()
}

/// Files that are carried from the old data volume into the new data directory: where each lies below the root of the one, and in the
/// other. Files elsewhere are the new container's as they are the old one's.
pub(super) fn files(survey: &Survey, plan: &UpgradePlan) -> Vec<(String, String)> {
    let root = plan.data_mount();
    let mut files: Vec<&str> = survey.access_files.iter().map(String::as_str).collect();
    let (tls, rules) = (tls_files(survey), format!("{}/pg_hba.conf", survey.data_directory));
    if plan.single().is_some() {
        // ALTER SYSTEM is carried by statements.
        let settings = survey.settings.iter().map(|setting| setting.file.as_str());
        files.extend(settings.filter(|file| !file.ends_with("/postgresql.auto.conf")));
        files.extend(tls.iter().map(String::as_str));
        // Even where others are in force: those of the new data directory let everybody in.
        files.push(&rules);
    }
    files.sort_unstable();
    files.dedup();
    let places = files.into_iter().filter_map(|file| {
        let inside = file.strip_prefix(root)?.strip_prefix('/')?;
        let in_directory = file.strip_prefix(survey.data_directory.as_str()).and_then(|rest| rest.strip_prefix('/'));
        let name = in_directory.or_else(|| file.rsplit('/').next()).unwrap_or_default();
        Some((inside.to_owned(), name.to_owned()))
    });
    places.collect()
}

/// What the server reads for TLS, where that is on: a name alone is one in the data directory.
pub(super) fn tls_files(survey: &Survey) -> Vec<String> {
    let last = |name: &str| {
        let found = survey.settings.iter().rev().find(|setting| setting.name.eq_ignore_ascii_case(name));
        found.map(|setting| setting.value.as_str())
    };
    if last("ssl").is_none_or(|value| ["off", "false", "no", "0"].contains(&value.to_ascii_lowercase().as_str())) {
        return vec![];
    }
    let defaults = [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", ""),
        ("ssl_crl_file", ""),
        ("ssl_dh_params_file", ""),
    ];
    let files = defaults.map(|(name, default)| last(name).unwrap_or(default));
    let whole = |file: &str| {
        if file.starts_with('/') { file.to_owned() } else { format!("{}/{file}", survey.data_directory) }
    };
    files.into_iter().filter(|file| !file.is_empty()).map(whole).collect()
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
pub(super) fn policy_with(text: &str, major: PgMajor, image: Option<&str>) -> String {
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
