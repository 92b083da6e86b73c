//! What is news: a state that changed, or something that happened. Pure.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::cluster::ClusterName;

/// What somebody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// The same however often it is said.
    pub id: String,
    /// When it came to be.
    pub at: Timestamp,
    /// The daemon that says it.
    pub instance: String,
    /// The cluster it is about, if it is about one.
    pub cluster: Option<ClusterName>,
    /// `check.critical`, `run.failed`, `run.recovered`, ….
    pub event: String,
    /// What, in words.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.event)?;
        if let Some(cluster) = &self.cluster {
            write!(out, " {cluster}")?;
        }
        write!(out, ": {} ({}, {})", self.text, self.instance, self.at.strftime("%Y-%m-%d %H:%M:%SZ"))
    }
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Good,
    /// Worth a warning.
    Warning,
    /// As it must not be.
    Bad,
}

impl State {
    /// Its word, where what was said is remembered.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }

    /// The state with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Good, Self::Warning, Self::Bad].into_iter().find(|state| state.as_str() == word)
    }
}

/// What has a state: a check, or the runs of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `check` or `run`.
    pub what: &'static str,
    /// The cluster.
    pub cluster: ClusterName,
    /// `dump`, `repo-local`.
    pub name: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.what, self.cluster, self.name)
    }
}

/// What was said last of each subject, by its words.
pub type Said = BTreeMap<String, State>;

/// The event, where a subject is now in another state than was said last. Nobody is told that something unheard of is good.
pub fn change(said: &Said, subject: &Subject, now: State) -> Option<String> {
    let before = said.get(&subject.to_string()).copied();
    let word = match (before, now) {
        (Some(before), now) if before == now => return None,
        (None, State::Good) => return None,
        (_, State::Good) => "recovered",
        (_, State::Warning) => "warning",
        (_, State::Bad) if subject.what == "run" => "failed",
        (_, State::Bad) => "critical",
    };
    Some(format!("{}.{word}", subject.what))
}

/// Events that are told each time. States are told when they change, and are not among them.
pub fn is_told_each_time(event: &str) -> bool {
    const TOLD: [&str; 16] = [
        "backup.missed",
        "drill.missed",
        "drill.rehearsal_failed",
        "upgrade.resumed",
        "upgrade.undone",
        "upgrade.finalized",
        "upgrade.kept",
        "upgrade.failed",
        "verify.damaged",
        "dependent.failed",
        "dependent.flapping",
        "configuration.invalid",
        "daemon.failed",
        "daemon.leads",
        "consul.lost",
        "consul.back",
    ];
    TOLD.contains(&event)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(what: &'static str) -> Subject {
        Subject { what, cluster: ClusterName::new("chado").expect("a name"), name: "dump".to_owned() }
    }

    #[test]
    fn a_state_is_told_when_it_changes() {
        let mut said = Said::new();
        let mut tell = |what, now| {
            let event = change(&said, &subject(what), now);
            said.insert(subject(what).to_string(), now);
            event
        };
        assert_eq!(tell("check", State::Good), None);
        assert_eq!(tell("check", State::Warning).as_deref(), Some("check.warning"));
        assert_eq!(tell("check", State::Warning), None);
        assert_eq!(tell("check", State::Bad).as_deref(), Some("check.critical"));
        assert_eq!(tell("check", State::Good).as_deref(), Some("check.recovered"));
        assert_eq!(tell("run", State::Bad).as_deref(), Some("run.failed"));
        assert_eq!(tell("run", State::Bad), None);
        assert_eq!(tell("run", State::Good).as_deref(), Some("run.recovered"));
    }

    proptest! {
        #[test]
        fn whoever_hears_all_of_it_knows_how_it_is(
            states in proptest::collection::vec(prop_oneof![Just(State::Good), Just(State::Warning), Just(State::Bad)], 1..40)
        ) {
            let (mut said, mut heard) = (Said::new(), State::Good);
            for now in states {
                match change(&said, &subject("check"), now).as_deref() {
                    Some("check.recovered") => heard = State::Good,
                    Some("check.warning") => heard = State::Warning,
                    Some(_) => heard = State::Bad,
                    None => {}
                }
                said.insert(subject("check").to_string(), now);
                prop_assert_eq!(heard, now);
            }
        }
    }
}
