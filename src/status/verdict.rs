//! What is to be said about a cluster, check by check: the same words for `pglife check`, Consul, HTTP and the page. Pure.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::proof::nothing_proven;
use super::{ClusterStatus, CoverageStatus, KindStatus, ProofStatus, UncoveredServer};
use crate::cluster::RepoName;
use crate::policy::freshness::Level;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The age of the newest dump.
    Dump,
    /// The age of the newest copy of the volumes.
    Volume,
    /// The age of the newest proven backup, and what the last drills found.
    Drill,
    /// Whether a repository can be used.
    Repository(RepoName),
    /// Whether there is something that no backup takes.
    Coverage,
}

impl fmt::Display for Check {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dump => out.write_str("dump"),
            Self::Volume => out.write_str("volume"),
            Self::Drill => out.write_str("drill"),
            Self::Repository(name) => write!(out, "repo-{name}"),
            Self::Coverage => out.write_str("coverage"),
        }
    }
}

impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is to be said about one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Verdict {
    /// What was looked at.
    #[schemars(with = "String")]
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
    verdicts.extend(of_proof(&cluster.proof));
    for repository in &cluster.repositories {
        verdicts.push(Verdict {
            check: Check::Repository(repository.name.clone()),
            level: if repository.problem.is_some() { Level::Critical } else { Level::Ok },
            text: repository.problem.clone().unwrap_or_else(|| "it can be read".to_owned()),
        });
    }
    verdicts.extend(cluster.coverage.as_ref().map(of_coverage));
    verdicts
}

fn of_coverage(coverage: &CoverageStatus) -> Verdict {
    let names: Vec<String> = coverage.uncovered.iter().map(|name| format!("\"{name}\"")).collect();
    let (level, text) = match names.len() {
        0 => (Level::Ok, "every database is in the backups".to_owned()),
        1 => (Level::Warn, format!("database {} is in no backup", names[0])),
        count => (Level::Warn, format!("{count} databases are in no backup: {}", names.join(", "))),
    };
    Verdict { check: Check::Coverage, level, text }
}

/// What is to be said of servers that no policy covers.
pub fn of_servers(uncovered: &[UncoveredServer]) -> Verdict {
    let name = |server: &UncoveredServer| format!("{} on {}", server.container, server.host);
    let (level, text) = match uncovered {
        [] => (Level::Ok, "every PostgreSQL server that runs has a policy".to_owned()),
        [one] => (Level::Warn, format!("no policy covers the PostgreSQL server {}", name(one))),
        several => {
            let names: Vec<String> = several.iter().map(name).collect();
            (Level::Warn, format!("no policy covers {} PostgreSQL servers: {}", several.len(), names.join(", ")))
        }
    };
    Verdict { check: Check::Coverage, level, text }
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
    let mut level = match kind.freshness.as_deref() {
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
            format!("last success {}, the policy sets no limit", second(at))
        }
    };
    if kind.failures_since_success > 0 {
        text.push_str(&format!("; {} failed since", runs(kind.failures_since_success)));
    }
    if let Some(last) = kind.last_backup.as_ref().filter(|last| last.damaged_pages > 0) {
        level = Level::Critical;
        text = format!("damaged pages on the disk: {}, copied into backup {}; {text}", last.damaged_pages, last.set);
    }
    Verdict { check, level, text }
}

fn runs(count: usize) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

/// What is to be said of drills, where they are scheduled or limited, or have found out something.
fn of_proof(proof: &ProofStatus) -> Option<Verdict> {
    let is_asked_for = proof.freshness.is_some() || proof.next_run_at.is_some();
    if !is_asked_for && proof.bad.is_none() && proof.last_proven.is_none() {
        return None;
    }
    let mut level = match (&proof.freshness, &proof.last_proven) {
        (Some(word), _) => level_of(word),
        (None, Some(_)) => Level::Ok,
        // The first drill is still to come.
        (None, None) => Level::Warn,
    };
    let age = proof.freshness_text.clone().unwrap_or_else(|| match &proof.last_proven {
        Some(proven) => format!("last success {}, the policy sets no limit", second(proven.completed_at)),
        None => nothing_proven(proof.unreadable.is_some()).to_owned(),
    });
    let mut said = vec![age];
    if let Some(bad) = &proof.bad {
        level = Level::Critical;
        said.insert(0, format!("the drill of {} found backup {} bad", second(bad.found_at), bad.set));
    } else if proof.failures_since_success > 0 {
        let drills = match proof.failures_since_success {
            1 => "1 drill".to_owned(),
            count => format!("{count} drills"),
        };
        said.push(format!("{drills} since came to no proof"));
    }
    for late in proof.recovery.iter().filter(|recovery| recovery.within_budget == Some(false)) {
        level = level.max(Level::Warn);
        said.push(format!(
            "a restore of a {} takes {:.0} s, `rto_budget` is {:.0} s",
            late.kind,
            late.seconds,
            late.budget_seconds.unwrap_or_default()
        ));
    }
    Some(Verdict { check: Check::Drill, level, text: said.join("; ") })
}

fn second(at: Timestamp) -> Timestamp {
    at.round(jiff::Unit::Second).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::{Kind, RecoveryTime};
    use crate::status::{Disproven, LastBackup, RepositoryStatus};

    fn told(dump: KindStatus, volume: KindStatus, repository: Option<&str>) -> String {
        let cluster = ClusterStatus {
            dump,
            volume,
            repositories: vec![RepositoryStatus {
                name: "nas".parse().expect("a name"),
                problem: repository.map(str::to_owned),
                free_bytes: None,
                backups: 0,
            }],
            ..ClusterStatus::example()
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
    fn a_bad_backup_is_critical_whatever_the_policy_asks() {
        let proof = ProofStatus { failures_since_success: 1, ..ProofStatus::default() };
        assert_eq!(of_proof(&proof), None, "nobody asked for drills");
        let scheduled = ProofStatus { next_run_at: Some(Timestamp::UNIX_EPOCH), ..proof.clone() };
        let told = of_proof(&scheduled).expect("told");
        assert_eq!(
            (told.level, told.text.as_str()),
            (Level::Warn, "no backup is proven; 1 drill since came to no proof")
        );
        let bad =
            Disproven { set: "s".to_owned(), completed_at: Timestamp::UNIX_EPOCH, found_at: Timestamp::UNIX_EPOCH };
        for freshness in [None, Some("ok".to_owned())] {
            let told = of_proof(&ProofStatus { bad: Some(bad.clone()), freshness, ..ProofStatus::default() });
            let told = told.expect("told");
            assert_eq!(told.level, Level::Critical);
            assert!(told.text.starts_with("the drill of 1970-01-01T00:00:00Z found backup s bad; "), "{}", told.text);
        }
    }

    #[test]
    fn a_backup_with_damaged_pages_is_critical_however_fresh() {
        let last = LastBackup {
            set: "s".to_owned(),
            completed_at: Timestamp::UNIX_EPOCH,
            plain_bytes: 1,
            stored_bytes: 1,
            damaged_pages: 3,
        };
        let volume = KindStatus {
            last_backup: Some(last),
            last_known_at: Some(Timestamp::UNIX_EPOCH),
            freshness: Some("ok".to_owned()),
            freshness_text: Some("fresh".to_owned()),
            ..KindStatus::default()
        };
        let told = told(KindStatus::default(), volume, None);
        let expected = "volume Critical: damaged pages on the disk: 3, copied into backup s; fresh\n";
        assert!(told.starts_with(expected), "{told}");
    }

    #[test]
    fn a_restore_that_takes_too_long_is_a_warning() {
        let recovery = RecoveryTime {
            kind: Kind::Dump,
            seconds: 61.0,
            measured_at: Timestamp::UNIX_EPOCH,
            median_seconds: 50.0,
            measurements: 2,
            change_percent: None,
            budget_seconds: Some(60.0),
            within_budget: Some(false),
        };
        let proof = ProofStatus {
            freshness: Some("ok".to_owned()),
            freshness_text: Some("fresh".to_owned()),
            recovery: vec![recovery],
            ..ProofStatus::default()
        };
        let told = of_proof(&proof).expect("told");
        assert_eq!(told.level, Level::Warn);
        assert_eq!(told.text, "fresh; a restore of a dump takes 61 s, `rto_budget` is 60 s");
    }

    #[test]
    fn a_backup_that_cannot_be_seen_is_not_simply_fresh() {
        let seen = KindStatus { last_known_at: Some(Timestamp::UNIX_EPOCH), ..KindStatus::default() };
        let unseen = KindStatus { unreadable: Some("away".to_owned()), ..seen.clone() };
        assert!(told(seen, KindStatus::default(), None).starts_with("dump Ok: last success 1970-01-01T00:00:00Z"));
        assert!(told(unseen, KindStatus::default(), None).starts_with("dump Warn: last success 1970-01-01T00:00:00Z"));
    }
}
