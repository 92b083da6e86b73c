//! Selectors: how people name a set: an id or unique prefix, `latest`, `oldest`, `latest:dump`, `@<time>`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::{Commit, Kind, SetId};

/// Which set is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest set, of one kind if given.
    Latest(Option<Kind>),
    /// The newest set that a drill has proven.
    LatestProven,
    /// The newest set that no drill has proven, of the newest history.
    LatestUnproven,
    /// The oldest set.
    Oldest,
    /// The newest set completed at or before a time.
    At(Timestamp),
    /// The set whose id begins so.
    Prefix(String),
}

/// No set, or more than one, is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text is no selector.
    #[error(
        "{0:?} names no backup: use a set id or its beginning, latest, oldest, latest:dump, latest:volume, latest:proven, latest:unproven, or @2026-11-01T00:00Z"
    )]
    Malformed(String),
    /// Nothing fits.
    #[error("no backup fits {selector}; {available}")]
    NoMatch {
        /// What was asked for.
        selector: Selector,
        /// What there is, in words.
        available: String,
    },
    /// Several fit.
    #[error("{prefix:?} fits {} backups: {}; give more of the id", candidates.len(), candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The ids that fit.
        candidates: Vec<String>,
    },
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest(None) => out.write_str("latest"),
            Self::Latest(Some(kind)) => write!(out, "latest:{kind}"),
            Self::LatestProven => out.write_str("latest:proven"),
            Self::LatestUnproven => out.write_str("latest:unproven"),
            Self::Oldest => out.write_str("oldest"),
            Self::At(time) => write!(out, "@{time}"),
            Self::Prefix(prefix) => out.write_str(prefix),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let malformed = || SelectorError::Malformed(text.to_owned());
        match text {
            "latest" => return Ok(Self::Latest(None)),
            "latest:proven" => return Ok(Self::LatestProven),
            "latest:unproven" => return Ok(Self::LatestUnproven),
            "oldest" => return Ok(Self::Oldest),
            _ => {}
        }
        if let Some(kind) = text.strip_prefix("latest:") {
            return Ok(Self::Latest(Some(kind.parse().map_err(|_| malformed())?)));
        }
        if let Some(time) = text.strip_prefix('@') {
            return Ok(Self::At(time.parse().map_err(|_| malformed())?));
        }
        let like_an_id = text.starts_with(|first: char| first.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if like_an_id { Ok(Self::Prefix(text.to_owned())) } else { Err(malformed()) }
    }
}

impl Selector {
    /// Whether [`Selector::select`] has to know what is proven.
    pub fn asks_for_proofs(&self) -> bool {
        matches!(self, Self::LatestProven | Self::LatestUnproven)
    }

    /// The set that is meant among `sets` (in any order).
    pub fn select<'a>(&self, sets: &'a [Commit], proven: impl Fn(&SetId) -> bool) -> Result<&'a Commit, SelectorError> {
        let newest = |fits: &dyn Fn(&Commit) -> bool| {
            sets.iter().filter(|set| fits(set)).max_by_key(|set| (set.completed_at, set.set.clone()))
        };
        let found = match self {
            Self::Latest(kind) => newest(&|set| kind.is_none_or(|kind| set.kind == kind)),
            Self::LatestProven => newest(&|set| proven(&set.set)),
            Self::LatestUnproven => {
                // Nobody waits for a proof of what an upgrade has left behind.
                let lineage = newest(&|_| true).map(|set| set.lineage);
                newest(&|set| Some(set.lineage) == lineage && !proven(&set.set))
            }
            Self::Oldest => sets.iter().min_by_key(|set| (set.completed_at, set.set.clone())),
            Self::At(time) => newest(&|set| set.completed_at <= *time),
            Self::Prefix(prefix) => {
                let fitting: Vec<&Commit> = sets.iter().filter(|set| set.set.as_str().starts_with(prefix)).collect();
                if fitting.len() > 1 {
                    let candidates = fitting.iter().map(|set| set.set.to_string()).collect();
                    return Err(SelectorError::Ambiguous { prefix: prefix.clone(), candidates });
                }
                fitting.first().copied()
            }
        };
        found.ok_or_else(|| SelectorError::NoMatch {
            selector: self.clone(),
            available: match (bounds(sets), sets.len()) {
                (Some((oldest, newest)), count) => format!("there are {count}, from {oldest} to {newest}"),
                (None, _) => "there is none at all".to_owned(),
            },
        })
    }
}

/// The first and the last time a set was completed.
fn bounds(sets: &[Commit]) -> Option<(Timestamp, Timestamp)> {
    let times = || sets.iter().map(|set| set.completed_at);
    Some((times().min()?, times().max()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::manifest::tests::example;

    fn sets() -> Vec<Commit> {
        let manifest = example();
        let commit = Commit::to_manifest(&manifest, &manifest.to_bytes());
        // Named in one order, completed in the other.
        [
            ("20261101T000000Z-dump-aaaaaa", 300),
            ("20261102T000000Z-dump-bbbbbb", 200),
            ("20261102T000000Z-dump-bbbccc", 100),
        ]
        .map(|(id, second)| Commit {
            set: id.parse().expect("an id"),
            completed_at: Timestamp::from_second(second).expect("a time"),
            ..commit.clone()
        })
        .to_vec()
    }

    fn select(text: &str) -> Result<String, SelectorError> {
        let sets = sets();
        let selector: Selector = text.parse()?;
        selector.select(&sets, |set| set.as_str().ends_with("bbbccc")).map(|set| set.set.to_string())
    }

    #[test]
    fn completion_time_decides_not_the_name() {
        assert_eq!(select("latest").expect("one"), "20261101T000000Z-dump-aaaaaa");
        assert_eq!(select("latest:proven").expect("one"), "20261102T000000Z-dump-bbbccc");
        assert_eq!(select("latest:unproven").expect("one"), "20261101T000000Z-dump-aaaaaa");
        assert_eq!(select("oldest").expect("one"), "20261102T000000Z-dump-bbbccc");
        assert_eq!(select("@1970-01-01T00:03:21Z").expect("one"), "20261102T000000Z-dump-bbbbbb");
        assert_eq!(select("latest:dump").expect("one"), "20261101T000000Z-dump-aaaaaa");
    }

    #[test]
    fn what_waits_for_a_proof_is_of_the_newest_history() {
        let mut sets = sets();
        let select = |sets: &[Commit], proven: &[usize]| {
            let proven: Vec<SetId> = proven.iter().map(|place| sets[*place].set.clone()).collect();
            let found = Selector::LatestUnproven.select(sets, |set| proven.contains(set));
            found.ok().map(|found| sets.iter().position(|set| set.set == found.set).expect("one of them"))
        };
        assert_eq!(select(&sets, &[0]), Some(1));
        assert_eq!(select(&sets, &[1]), Some(0));
        sets[1].lineage = "7412345678901234568-16".parse().expect("a lineage");
        assert_eq!(select(&sets, &[0]), Some(2), "the second one is of another history");
        assert_eq!(select(&sets, &[0, 2]), None);
        assert_eq!(select(&[], &[]), None);
    }

    #[test]
    fn prefixes_must_be_unique() {
        assert_eq!(select("20261102T000000Z-dump-bbbb").expect("one"), "20261102T000000Z-dump-bbbbbb");
        assert!(matches!(select("20261102"), Err(SelectorError::Ambiguous { .. })));
        assert!(matches!(select("2025"), Err(SelectorError::NoMatch { .. })));
        assert!(matches!(select("latest:volume"), Err(SelectorError::NoMatch { .. })));
        assert!(matches!(select("newest"), Err(SelectorError::Malformed(_))));
    }
}
