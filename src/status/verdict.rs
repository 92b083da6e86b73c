//! What is to be said about a cluster, check by check: the same words for `pglife check`, Consul, HTTP and the page. Pure.

use std::fmt;

use serde::Serialize;

use super::{ClusterStatus, KindStatus};
use crate::cluster::RepoName;
use crate::policy::freshness::Level;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The age of the newest dump.
    Dump,
    /// The age of the newest copy of the volumes.
    Volume,
    /// The age of the newest proven backup.
    Drill,
    /// Whether a repository can be used.
    Repository(RepoName),
}

impl fmt::Display for Check {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dump => out.write_str("dump"),
            Self::Volume => out.write_str("volume"),
            Self::Drill => out.write_str("drill"),
            Self::Repository(name) => write!(out, "repo-{name}"),
        }
    }
}

impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is to be said about one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What was looked at.
    pub check: Check,
    /// How bad it is.
    pub level: Level,
    /// Why, in words that stay the same while nothing happens.
    pub text: String,
}

/// Everything that is to be said about a cluster, in a fixed order. A kind of backup that the policy neither schedules nor
/// limits, and that was never taken, is not spoken of; but a cluster of which nothing is asked is said to have no backup.
pub fn verdicts(cluster: &ClusterStatus) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let volume = is_asked_for(&cluster.volume);
    if is_asked_for(&cluster.dump) || !volume {
        verdicts.push(of_kind(Check::Dump, &cluster.dump));
    }
    if volume {
        verdicts.push(of_kind(Check::Volume, &cluster.volume));
    }
    if let (Some(freshness), Some(text)) = (&cluster.proof.freshness, &cluster.proof.freshness_text) {
        verdicts.push(Verdict { check: Check::Drill, level: level_of(freshness), text: text.clone() });
    }
    for repository in &cluster.repositories {
        verdicts.push(Verdict {
            check: Check::Repository(repository.name.clone()),
            level: if repository.problem.is_some() { Level::Critical } else { Level::Ok },
            text: repository.problem.clone().unwrap_or_else(|| "it can be read".to_owned()),
        });
    }
    verdicts
}

fn is_asked_for(kind: &KindStatus) -> bool {
    kind.limits.is_some() || kind.next_run_at.is_some() || kind.last_known_at.is_some()
}

fn level_of(word: &str) -> Level {
    match word {
        "ok" => Level::Ok,
        "warn" => Level::Warn,
        _ => Level::Critical,
    }
}

fn of_kind(check: Check, kind: &KindStatus) -> Verdict {
    let level = match kind.freshness.as_deref() {
        Some(word) => level_of(word),
        // Without limits nothing is stale; never backed up is critical all the same.
        None if kind.last_known_at.is_none() => Level::Critical,
        None if kind.unreadable.is_some() => Level::Warn,
        None => Level::Ok,
    };
    let mut text = match (&kind.freshness_text, kind.last_known_at) {
        (Some(text), _) => text.clone(),
        (None, None) if kind.unreadable.is_some() => "no backup is known, and no repository can be read".to_owned(),
        (None, None) => "never backed up".to_owned(),
        (None, Some(at)) => {
            let at = at.round(jiff::Unit::Second).unwrap_or(at);
            format!("last success {at}, the policy sets no limit")
        }
    };
    if kind.failures_since_success > 0 {
        text.push_str(&format!("; {} failed since", runs(kind.failures_since_success)));
    }
    Verdict { check, level, text }
}

fn runs(count: usize) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::status::RepositoryStatus;

    fn told(dump: KindStatus, volume: KindStatus, repository: Option<&str>) -> String {
        let cluster = ClusterStatus {
            cluster: "chado".parse().expect("a name"),
            host: "local".to_owned(),
            major: "17".to_owned(),
            server: "healthy".to_owned(),
            dump,
            volume,
            repositories: vec![RepositoryStatus {
                name: "nas".parse().expect("a name"),
                problem: repository.map(str::to_owned),
                free_bytes: None,
                backups: 0,
            }],
            proof: crate::status::ProofStatus::default(),
            prune: None,
            verify: None,
            problems: vec![],
        };
        let lines = verdicts(&cluster)
            .iter()
            .map(|it| format!("{} {:?}: {}\n", it.check, it.level, it.text))
            .collect::<Vec<_>>();
        lines.concat()
    }

    #[test]
    fn never_backed_up_is_critical_with_or_without_limits() {
        assert_eq!(
            told(KindStatus::default(), KindStatus::default(), None),
            "dump Critical: never backed up\nrepo-nas Ok: it can be read\n"
        );
        let volume =
            KindStatus { next_run_at: Some(Timestamp::UNIX_EPOCH), failures_since_success: 2, ..KindStatus::default() };
        let told = told(KindStatus::default(), volume, Some("its disk is not mounted"));
        assert_eq!(
            told,
            "volume Critical: never backed up; 2 runs failed since\nrepo-nas Critical: its disk is not mounted\n"
        );
    }

    #[test]
    fn a_backup_that_cannot_be_seen_is_not_simply_fresh() {
        let seen = KindStatus { last_known_at: Some(Timestamp::UNIX_EPOCH), ..KindStatus::default() };
        let unseen = KindStatus { unreadable: Some("away".to_owned()), ..seen.clone() };
        assert!(told(seen, KindStatus::default(), None).starts_with("dump Ok: last success 1970-01-01T00:00:00Z"));
        assert!(told(unseen, KindStatus::default(), None).starts_with("dump Warn: last success 1970-01-01T00:00:00Z"));
    }
}
