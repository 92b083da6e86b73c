//! Object keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of an object in a repository: components joined by `/`, as in `chado/7301-17/sets/…/COMMIT`.
///
/// A key is safe as a relative path (no empty, `.` or `..` component, no control character) and as an S3 key. Keys are
/// ordered by their bytes, as S3 lists them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// The text cannot name an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} cannot name an object: {why}")]
pub struct KeyError {
    key: String,
    why: &'static str,
}

/// What the names of unfinished uploads start with; no component of a key does.
pub(super) const UNFINISHED: &str = ".pglife-unfinished-";

/// S3's limit.
const MAX_BYTES: usize = 1024;
/// The limit of Linux file systems.
const MAX_COMPONENT_BYTES: usize = 255;

impl Key {
    /// Checks a key.
    pub fn new(key: impl Into<String>) -> Result<Self, KeyError> {
        let key = key.into();
        match fault(&key) {
            None => Ok(Self(key)),
            Some(why) => Err(KeyError { key, why }),
        }
    }

    /// The key of something inside the folder that this key names.
    pub fn join(&self, inside: &str) -> Result<Self, KeyError> {
        Self::new(format!("{self}/{inside}"))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its components; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The folder it lies in, if that is not the root.
    pub fn folder(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(folder, _)| Self(folder.to_owned()))
    }

    /// Whether it lies somewhere inside `folder`.
    pub fn is_inside(&self, folder: &Self) -> bool {
        self.0.strip_prefix(&folder.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn fault(key: &str) -> Option<&'static str> {
    if key.len() > MAX_BYTES {
        return Some("it is longer than 1024 bytes");
    }
    if key.chars().any(char::is_control) {
        return Some("it holds a control character");
    }
    key.split('/').find_map(|component| match component {
        "" => Some("it is empty, or has an empty component"),
        "." | ".." => Some("it has a component . or .."),
        _ if component.len() > MAX_COMPONENT_BYTES => Some("it has a component longer than 255 bytes"),
        _ if component.starts_with(UNFINISHED) => Some("it has the name of an unfinished upload"),
        _ => None,
    })
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_reads_back_as_written(components in prop::collection::vec("[^/\\x00-\\x1f\\x7f-\\x9f.][^/\\x00-\\x1f\\x7f-\\x9f]{0,20}", 1..6)) {
            let text = components.join("/");
            let key = Key::new(&text).expect("a key");
            prop_assert_eq!(key.as_str(), &text);
            prop_assert_eq!(key.components().collect::<Vec<_>>(), components.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(Some(key.file_name()), components.last().map(String::as_str));
            let json = serde_json::to_string(&key).expect("json");
            prop_assert_eq!(serde_json::from_str::<Key>(&json).expect("a key"), key.clone());
            prop_assert_eq!(key.folder().is_none(), components.len() == 1);
            if let Some(folder) = key.folder() {
                prop_assert!(key.is_inside(&folder) && !folder.is_inside(&key) && !key.is_inside(&key));
                prop_assert_eq!(folder.join(key.file_name()), Ok(key));
            }
        }

        #[test]
        fn a_key_never_leaves_its_root(text in "[a./\\\\\\x00\\n-]{0,12}") {
            if let Ok(key) = Key::new(text) {
                let path = Path::new(key.as_str());
                prop_assert!(path.components().all(|component| matches!(component, Component::Normal(_))));
                prop_assert_eq!(path.components().count(), key.components().count());
            }
        }
    }

    #[test]
    fn what_cannot_name_an_object_is_refused() {
        let long = "x".repeat(256);
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            "a\0b",
            "a\nb",
            "a\u{85}",
            &long,
            ".pglife-unfinished-x/a",
        ] {
            let error = Key::new(text).expect_err(text);
            assert!(error.to_string().starts_with(&format!("{text:?} cannot name an object: ")), "{error}");
        }
        assert!(Key::new("x/".repeat(513)).is_err());
        assert!(Key::new("db/we ird \"näme\".dump.zst").is_ok());
    }
}
