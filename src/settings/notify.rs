//! Where the daemon tells what happens: `[[notify]]`.

use std::path::PathBuf;
use std::str::FromStr;

use crate::cluster::ClusterName;

/// One place that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name, in events and on the command line.
    pub name: String,
    /// What it understands.
    pub kind: ChannelKind,
    /// Where it is.
    pub url: Place,
    /// The file with the key that webhooks are signed with.
    pub secret_file: Option<PathBuf>,
    /// The clusters it hears of; empty: all.
    pub clusters: Vec<ClusterName>,
    /// What it hears of: `check.critical`, `run.*`, `*`.
    pub on: Vec<Pattern>,
    /// The tasks whose runs it is pinged for.
    pub tasks: Vec<String>,
}

/// A URL, which is often as good as a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// As it is written.
    Written(String),
    /// In a file of its own.
    File(PathBuf),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Written(_) => out.write_str("Written"),
            Self::File(file) => write!(out, "File({})", file.display()),
        }
    }
}

/// What a place understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// JSON of pglife's own, signed.
    Webhook,
    /// `{"text": …}`, as Slack and Mattermost take it.
    Slack,
    /// A ping at the start and the end of each run, as healthchecks.io and its kind take it.
    Healthchecks,
}

impl ChannelKind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Healthchecks => "healthchecks",
        }
    }
}

impl FromStr for ChannelKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Webhook, Self::Slack, Self::Healthchecks];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| format!("{text:?} is not known"))
    }
}

/// A kind of news, or several: `run.failed`, `check.*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Every kind.
    pub fn everything() -> Self {
        Self("*".to_owned())
    }

    /// Whether it means `kind`.
    pub fn matches(&self, kind: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => kind.starts_with(beginning),
            None => kind == self.0,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let is_good = |letter: char| letter.is_ascii_lowercase() || letter == '.' || letter == '_';
        let plain = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || !plain.chars().all(is_good) {
            return Err(format!("{text:?} is no kind of news"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Channel {
    /// Whether it hears of `kind` about `cluster`.
    pub fn hears(&self, kind: &str, cluster: Option<&ClusterName>) -> bool {
        let about = cluster.is_none_or(|cluster| self.clusters.is_empty() || self.clusters.contains(cluster));
        about && self.on.iter().any(|pattern| pattern.matches(kind))
    }
}
