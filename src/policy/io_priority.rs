//! Whose turn it is at the disk, as policies and `ionice` write it: `idle`, `best-effort:7`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A scheduling class of the kernel's, below or beside that of all others (`ioprio_set`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IoPriority {
    /// As everybody: from 0, first, to 7, last.
    BestEffort(u8),
    /// When nobody else wants the disk.
    Idle,
}

/// The text is no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a priority at the disk")]
pub struct IoPriorityError(String);

/// What the messages and the documentation show as examples.
pub(crate) const HELP: &str = "\"idle\", or \"best-effort:0\" (first) to \"best-effort:7\" (last)";

impl IoPriority {
    /// The arguments of ionice(1).
    pub fn arguments(self) -> Vec<String> {
        match self {
            Self::BestEffort(level) => vec!["-c".to_owned(), "2".to_owned(), "-n".to_owned(), level.to_string()],
            Self::Idle => vec!["-c".to_owned(), "3".to_owned()],
        }
    }
}

impl fmt::Display for IoPriority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BestEffort(level) => write!(out, "best-effort:{level}"),
            Self::Idle => out.write_str("idle"),
        }
    }
}

impl FromStr for IoPriority {
    type Err = IoPriorityError;
    fn from_str(text: &str) -> Result<Self, IoPriorityError> {
        let levels = (0..=7).map(Self::BestEffort);
        let found = levels.chain([Self::Idle]).find(|priority| priority.to_string() == text);
        found.ok_or_else(|| IoPriorityError(text.to_owned()))
    }
}

impl TryFrom<String> for IoPriority {
    type Error = IoPriorityError;
    fn try_from(text: String) -> Result<Self, IoPriorityError> {
        text.parse()
    }
}

impl From<IoPriority> for String {
    fn from(priority: IoPriority) -> String {
        priority.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_priority_has_one_spelling() {
        for (text, arguments) in [("idle", "-c 3"), ("best-effort:0", "-c 2 -n 0"), ("best-effort:7", "-c 2 -n 7")] {
            let priority: IoPriority = text.parse().expect("a priority");
            assert_eq!((priority.to_string().as_str(), priority.arguments().join(" ").as_str()), (text, arguments));
        }
        for text in ["", "Idle", "best-effort", "best-effort:8", "best-effort:07", "realtime:0"] {
            assert!(text.parse::<IoPriority>().is_err(), "{text:?}");
        }
    }
}
