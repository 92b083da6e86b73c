//! The last policies from Consul that were valid, kept in the state directory for the time when Consul is away.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Documents;
use crate::configuration;
use crate::settings::Settings;

/// The version of the copy's form.
const FORMAT: u32 = 1;
/// A copy of the same is written anew when its time is older than this.
const FRESH: SignedDuration = SignedDuration::from_mins(1);

/// `policies-from-consul.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    format: u32,
    /// The key they were below: another prefix has other policies.
    key: String,
    /// When they were last what Consul said.
    pub as_of: Timestamp,
    /// The documents, by cluster. They were valid, so they are text.
    #[serde(rename = "documents")]
    pub(super) texts: BTreeMap<String, String>,
}

impl LastGood {
    /// Where it is.
    pub fn file(state_dir: &Path) -> PathBuf {
        state_dir.join("policies-from-consul.json")
    }

    /// That of the policies which these settings mean.
    pub fn of(settings: &Settings) -> Option<Self> {
        Self::read(&settings.state_dir, &super::folder_of(settings))
    }

    /// Reads it. One that cannot be read counts as none: the log says why.
    pub(super) fn read(state_dir: &Path, key: &str) -> Option<Self> {
        let file = Self::file(state_dir);
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("the copy of the policies, {}, cannot be read: {error}", file.display());
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(last) if last.format == FORMAT => Some(last).filter(|last| last.key == key),
            Ok(last) => {
                tracing::warn!("{} has format {}, which this pglife does not know", file.display(), last.format);
                None
            }
            Err(error) => {
                tracing::warn!("the copy of the policies, {}, cannot be read: {error}", file.display());
                None
            }
        }
    }

    /// The documents.
    pub fn documents(&self) -> Documents {
        self.texts.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())).collect()
    }

    /// Writes it: there is the old one or the new one, never a half. The same is not written again within a minute.
    pub(super) fn keep(state_dir: &Path, key: &str, documents: &Documents, now: Timestamp) -> io::Result<()> {
        let text = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), String::from_utf8_lossy(bytes).into_owned());
        let texts = documents.iter().map(text).collect();
        let new = Self { format: FORMAT, key: key.to_owned(), as_of: now, texts };
        let is_fresh = Self::read(state_dir, key)
            .is_some_and(|old| old.texts == new.texts && now.duration_since(old.as_of).abs() < FRESH);
        if is_fresh {
            return Ok(());
        }
        std::fs::create_dir_all(state_dir)?;
        let text = serde_json::to_vec_pretty(&new).map_err(io::Error::other)?;
        configuration::replace(&Self::file(state_dir), &text, std::fs::Permissions::from_mode(0o600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_whole_and_for_its_key_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let state_dir = folder.path().join("state");
        assert_eq!(LastGood::read(&state_dir, "k"), None);
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let documents = Documents::from([("a".to_owned(), "ä = 1\n".into())]);
        let keep = |documents: &Documents, now| LastGood::keep(&state_dir, "k", documents, time(now)).expect("kept");
        let as_of = || LastGood::read(&state_dir, "k").expect("there").as_of;
        keep(&documents, "2026-11-26T03:00:00Z");
        assert_eq!(LastGood::read(&state_dir, "k").expect("there").documents(), documents);
        assert_eq!(LastGood::read(&state_dir, "other"), None);
        let mode = std::fs::metadata(LastGood::file(&state_dir)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        keep(&documents, "2026-11-26T03:00:59Z");
        assert_eq!(as_of(), time("2026-11-26T03:00:00Z"));
        keep(&documents, "2026-11-26T03:01:00Z");
        assert_eq!(as_of(), time("2026-11-26T03:01:00Z"));
        keep(&Documents::new(), "2026-11-26T03:01:01Z");
        assert_eq!(as_of(), time("2026-11-26T03:01:01Z"));
        let left = std::fs::read_dir(&state_dir).expect("read").count();
        assert_eq!(left, 1, "nothing half-written is left");
        for rubbish in ["", "{}", r#"{"format":2,"key":"k","as_of":"2026-11-26T03:00:00Z","documents":{}}"#] {
            std::fs::write(LastGood::file(&state_dir), rubbish).expect("written");
            assert_eq!(LastGood::read(&state_dir, "k"), None, "{rubbish}");
        }
    }
}
