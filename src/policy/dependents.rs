//! What becomes of the containers that depend on a cluster: the section `[dependents]`.

use std::str::FromStr;

use crate::document::Table;

/// What containers that depend on a cluster do unless their own labels say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dependents {
    /// When it goes down.
    pub on_down: OnDown,
    /// When it is back.
    pub on_up: OnUp,
    /// Whether `depends_on` of a compose file counts, besides pglife's labels.
    pub compose: bool,
}

/// What is done to a dependent when the database goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDown {
    /// It is stopped.
    #[default]
    Stop,
    /// Its processes are frozen.
    Pause,
    /// Nothing.
    Nothing,
}

/// What is done to a dependent when the database is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUp {
    /// What was taken down is started, or thawed.
    #[default]
    Start,
    /// The same; and one that ran on while the database restarted is restarted.
    Restart,
    /// Nothing.
    Nothing,
}

impl OnDown {
    const WORDS: [(Self, &'static str); 3] = [(Self::Stop, "stop"), (Self::Pause, "pause"), (Self::Nothing, "none")];

    /// Its word, in policies and labels.
    pub fn as_str(self) -> &'static str {
        word_of(self, &Self::WORDS)
    }
}

impl OnUp {
    const WORDS: [(Self, &'static str); 3] =
        [(Self::Start, "start"), (Self::Restart, "restart"), (Self::Nothing, "none")];

    /// Its word, in policies and labels.
    pub fn as_str(self) -> &'static str {
        word_of(self, &Self::WORDS)
    }
}

fn word_of<T: Copy + PartialEq>(value: T, words: &[(T, &'static str)]) -> &'static str {
    words.iter().find(|(known, _)| *known == value).map_or("", |(_, word)| word)
}

fn from_word<T: Copy>(text: &str, words: &[(T, &'static str)]) -> Result<T, String> {
    words
        .iter()
        .find(|(_, word)| *word == text)
        .map(|(known, _)| *known)
        .ok_or_else(|| format!("{text:?} is not known"))
}

impl FromStr for OnDown {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        from_word(text, &Self::WORDS)
    }
}

impl FromStr for OnUp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        from_word(text, &Self::WORDS)
    }
}

/// Reads the section.
pub(super) fn read(table: &Table<'_>) -> Dependents {
    let on_down = table.get("on_down").and_then(|entry| entry.parse("\"stop\", \"pause\" or \"none\""));
    let on_up = table.get("on_up").and_then(|entry| entry.parse("\"start\", \"restart\" or \"none\""));
    Dependents {
        on_down: on_down.unwrap_or_default(),
        on_up: on_up.unwrap_or_default(),
        compose: table.get("compose").and_then(|entry| entry.flag()).unwrap_or(false),
    }
}
