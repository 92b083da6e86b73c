//! Reads `[consul]`.

use std::path::Path;

use super::{path_of, read_path, required};
use crate::document::Table;
use crate::settings::{ClientCertificate, Consul};

pub(super) fn read(table: &Table<'_>, folder: &Path) -> Option<Consul> {
    let help = "http://127.0.0.1:8500, the agent on this machine";
    let address = required(table, "address", help).and_then(|entry| {
        let text = entry.text(help)?;
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let host = rest.unwrap_or_default().trim_end_matches('/');
        if text.contains('@') {
            // It is not repeated: it may hold a secret.
            entry.problem("an address holds no user and no password", "write the token into a token_file");
        } else if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            entry.problem(format!("{text:?} is not the address of a Consul agent"), help);
        }
        Some(text.trim_end_matches('/').to_owned())
    });
    let is_plain = address.as_ref().is_some_and(|address| address.starts_with("http://"));
    for key in ["ca", "cert", "key"] {
        if let Some(entry) = table.get(key).filter(|_| is_plain) {
            let message = format!("{key} has no effect with an address without TLS");
            entry.problem(message, "use https://, or remove the key");
        }
    }
    let client = match ["cert", "key"].map(|key| table.get(key)) {
        [Some(cert), Some(key)] => {
            path_of(&cert, folder).zip(path_of(&key, folder)).map(|(cert, key)| ClientCertificate { cert, key })
        }
        [None, None] => None,
        [Some(one), None] | [None, Some(one)] => {
            one.problem("cert and key go together", "name both files, or neither");
            None
        }
    };
    let prefix_help = "what every key begins with: \"pglife\", \"service/pglife\"";
    let prefix = table.get("kv_prefix").and_then(|entry| {
        let text = entry.text(prefix_help)?.trim_matches('/').to_owned();
        let is_good = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
        if text.is_empty() || text.contains("//") || !text.bytes().all(is_good) {
            entry.problem("a prefix is made of letters, digits, '-', '_', '.' and '/'", prefix_help);
        }
        Some(text)
    });
    let when_away = table.get("when_away").and_then(|entry| entry.parse("\"run\" or \"wait\""));
    let service_help = "what clients ask Consul for: \"postgres\"";
    let service = table.get("database_service").and_then(|entry| {
        let text = entry.text(service_help)?.to_owned();
        let is_good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if text.is_empty() || text.len() > 48 || !text.bytes().all(is_good) || text.starts_with("pglife") {
            let message =
                "a service's name is made of up to 48 letters, digits and '-', and does not begin with pglife";
            entry.problem(message, service_help);
        }
        Some(text)
    });
    let usual = Consul::at(address?);
    Some(Consul {
        token_file: read_path(table, "token_file", folder),
        ca: read_path(table, "ca", folder),
        client,
        kv_prefix: prefix.unwrap_or(usual.kv_prefix),
        when_away: when_away.unwrap_or(usual.when_away),
        database_service: service.unwrap_or(usual.database_service),
        address: usual.address,
    })
}
