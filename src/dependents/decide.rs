//! What to do next about the dependents of a cluster. Pure.
//!
//! ```text
//!            down for 5 s                            up, and steady for a while
//!   serves ───────────────▶ each is taken down, ─────────────────────────────▶ each is brought back, the first first,
//!                           the last first                                     and waited for until it is healthy
//! ```
//!
//! A database that goes down again and again is waited for longer each time, so that its dependents are not worn out with it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::Follower;
use crate::docker::Container;
use crate::policy::{OnDown, OnUp};
use crate::state::dependents::{Taken, TakenHow};

/// How long the database must be down before anything is done: a restart is shorter.
pub const DEBOUNCE: SignedDuration = SignedDuration::from_secs(5);
/// How long it must serve before its dependents come back, the first time.
const STEADY: SignedDuration = SignedDuration::from_secs(1);
/// However often it went down, its dependents do not wait longer than this.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(300);
/// Going down is counted for so long.
const COUNTED: SignedDuration = SignedDuration::from_mins(10);
/// From so many times on it is told as flapping.
pub const FLAPPING: usize = 3;
/// How long one that was started is waited for to become healthy, before the next one is.
const HEALTH: SignedDuration = SignedDuration::from_secs(60);
/// When one that could not be started is tried again.
const AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// When one that also depends on another cluster, which does not serve, is looked at again.
const PUT_OFF: SignedDuration = SignedDuration::from_secs(5);

/// Who ended so shortly before the engine went away ended with it: it stops its containers first, and gives them this time.
const ENGINES_END: SignedDuration = SignedDuration::from_secs(15);

const STARTED: &str = "it was started by somebody else";

/// How the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It serves.
    Up {
        /// Which container, started when: another one after a restart.
        life: String,
    },
    /// It comes up.
    Starting,
    /// It does not serve, and why.
    Down(String),
}

impl Seen {
    /// How a database container is; nothing where there is none.
    pub fn of(container: Option<&Container>) -> Self {
        let Some(container) = container else { return Self::Down("its container is gone".to_owned()) };
        match (container.status.as_str(), container.health.as_deref()) {
            ("running", None | Some("healthy")) => {
                Self::Up { life: format!("{} {}", container.id, container.started_at.as_deref().unwrap_or_default()) }
            }
            ("running", Some("starting")) => Self::Starting,
            ("running", Some(health)) => Self::Down(format!("its container is {health}")),
            ("exited", _) => Self::Down(match container.exit_code {
                Some(code) => format!("its container exited with code {code}"),
                None => "its container exited".to_owned(),
            }),
            (status, _) => Self::Down(format!("its container is {status}")),
        }
    }
}

/// What is known from earlier looks. A new one knows nothing, and does no harm.
#[derive(Debug, Default)]
pub struct Memory {
    /// The database's container, as it was seen last.
    pub(super) container: Option<Container>,
    life: Option<String>,
    /// Who ran when the database last served.
    ran: BTreeSet<String>,
    /// When each was last seen to run while the database served.
    seen: BTreeMap<String, Timestamp>,
    /// The engine went away since the database last served.
    cut: bool,
    down_since: Option<Timestamp>,
    up_since: Option<Timestamp>,
    /// When dependents were taken down.
    downs: Vec<Timestamp>,
    /// This outage is among them.
    counted: bool,
    /// Who was taken down in this outage.
    handled: BTreeSet<String>,
    /// Those that are to be restarted because the database was, while they ran on.
    restart: BTreeSet<String>,
    /// Those that were brought back, and when: they are waited for.
    back: BTreeMap<String, Timestamp>,
    /// Those that could not be brought back, and when that is tried again.
    later: BTreeMap<String, Timestamp>,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until somebody looks again.
    Nothing,
    /// Nothing before then.
    Wait(Timestamp),
    /// Take this one down; it is remembered first.
    TakeDown {
        /// Its name.
        name: String,
        /// How.
        how: TakenHow,
        /// It runs; else it only has to be remembered, for it ended by itself.
        running: bool,
        /// It is to be remembered, and brought back.
        remember: bool,
        /// Why.
        reason: String,
    },
    /// Bring back what was taken down.
    BringBack(Taken),
    /// Restart one that ran on while the database restarted.
    Restart(String),
    /// What was taken down is gone or back by other means: it is not ours any more.
    Forget {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
}

impl Memory {
    /// How often dependents were taken down lately.
    pub fn recent_downs(&self, now: Timestamp) -> usize {
        self.downs.iter().filter(|at| now.duration_since(**at) < COUNTED).count()
    }

    /// The engine went away. It ends its containers in any order; so who ran until then did not end by somebody's wish.
    pub fn engine_is_away(&mut self, now: Timestamp) {
        if !std::mem::replace(&mut self.cut, true) {
            let lately = self.seen.iter().filter(|(_, at)| now.duration_since(**at) <= ENGINES_END);
            self.ran.extend(lately.map(|(name, _)| name.clone()));
        }
    }

    /// One was brought back.
    pub fn is_back(&mut self, name: &str, now: Timestamp) {
        self.back.insert(name.to_owned(), now);
        self.later.remove(name);
    }

    /// One could not be brought back. True where that is news.
    pub fn has_failed(&mut self, name: &str, now: Timestamp) -> bool {
        self.later.insert(name.to_owned(), now + AGAIN).is_none()
    }

    /// One must not come back yet. True where that is news.
    pub fn put_off(&mut self, name: &str, now: Timestamp) -> bool {
        self.later.insert(name.to_owned(), now + PUT_OFF).is_none()
    }

    /// How long the database must serve before dependents come back.
    fn steady(&self, now: Timestamp) -> SignedDuration {
        let downs = u32::try_from(self.recent_downs(now)).unwrap_or(u32::MAX);
        let factor = 2_i32.checked_pow(downs.saturating_sub(1)).unwrap_or(i32::MAX);
        STEADY.checked_mul(factor).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
    }
}

/// What to do next. `followers` are in the order in which they come back; `taken` is what was taken down before.
pub fn decide(memory: &mut Memory, database: &Seen, followers: &[Follower], taken: &[Taken], now: Timestamp) -> Step {
    memory.downs.retain(|at| now.duration_since(*at) < COUNTED);
    match database {
        Seen::Down(reason) => down(memory, reason, followers, taken, now),
        Seen::Starting => {
            memory.up_since = None;
            Step::Nothing
        }
        Seen::Up { life } => up(memory, life, followers, taken, now),
    }
}

fn down(memory: &mut Memory, reason: &str, followers: &[Follower], taken: &[Taken], now: Timestamp) -> Step {
    memory.up_since = None;
    memory.back.clear();
    let since = *memory.down_since.get_or_insert(now);
    let due = since + DEBOUNCE;
    let runs = |follower: &Follower| follower.running && !follower.paused;
    let is_taken = |follower: &Follower| taken.iter().any(|taken| taken.name == follower.name);
    // What somebody starts while it is down is theirs from then on, even if they stop it again.
    let theirs = followers
        .iter()
        .find(|follower| runs(follower) && is_taken(follower) && memory.handled.contains(&follower.name));
    if let Some(theirs) = theirs {
        return Step::Forget { name: theirs.name.clone(), reason: STARTED.to_owned() };
    }
    // Each is taken down once. One that was remembered by a process that died may not have been touched yet; one that ended by
    // itself, because its database did, has run.
    let next = followers.iter().rev().find(|follower| {
        follower.on_down != OnDown::Nothing
            && !memory.handled.contains(&follower.name)
            && (runs(follower) || (memory.ran.contains(&follower.name) && !is_taken(follower)))
    });
    let Some(follower) = next else { return Step::Nothing };
    if now < due {
        return Step::Wait(due);
    }
    memory.ran.remove(&follower.name);
    memory.handled.insert(follower.name.clone());
    if !std::mem::replace(&mut memory.counted, true) {
        memory.downs.push(now);
    }
    Step::TakeDown {
        name: follower.name.clone(),
        how: follower.how(),
        running: follower.running,
        remember: follower.comes_back(),
        reason: format!("the database is down: {reason}"),
    }
}

fn up(memory: &mut Memory, life: &str, followers: &[Follower], taken: &[Taken], now: Timestamp) -> Step {
    memory.down_since = None;
    memory.counted = false;
    memory.handled.clear();
    if memory.life.as_deref().is_some_and(|before| before != life) {
        let ran_on = followers.iter().filter(|follower| follower.on_up == OnUp::Restart && follower.running);
        let is_taken = |name: &str| taken.iter().any(|taken| taken.name == name);
        memory
            .restart
            .extend(ran_on.filter(|follower| !is_taken(&follower.name)).map(|follower| follower.name.clone()));
    }
    let is_same = memory.life.as_deref() == Some(life);
    if let Some(step) = ended_with_engine(memory, is_same, followers, taken) {
        return step;
    }
    memory.life = Some(life.to_owned());
    let since = *memory.up_since.get_or_insert(now);
    let gone = taken.iter().find(|taken| followers.iter().all(|follower| follower.name != taken.name));
    if let Some(gone) = gone {
        return Step::Forget { name: gone.name.clone(), reason: "its container is gone".to_owned() };
    }
    let mut wait: Option<Timestamp> = None;
    for follower in followers {
        let mine = taken.iter().find(|taken| taken.name == follower.name);
        let restart = memory.restart.contains(&follower.name);
        if mine.is_some() || restart {
            let due = since + memory.steady(now);
            if now < due {
                return Step::Wait(due);
            }
            if let Some(later) = memory.later.get(&follower.name).filter(|later| now < **later) {
                // The others do not wait for it.
                wait = Some(wait.map_or(*later, |wait| wait.min(*later)));
                continue;
            }
        }
        match mine {
            Some(taken) if taken.id == follower.id && follower.running && !follower.paused => {
                return Step::Forget { name: follower.name.clone(), reason: STARTED.to_owned() };
            }
            Some(taken) if taken.id != follower.id => {
                return Step::Forget { name: follower.name.clone(), reason: "it is another container now".to_owned() };
            }
            Some(taken) => return Step::BringBack(taken.clone()),
            None if restart => {
                memory.restart.remove(&follower.name);
                if follower.running {
                    return Step::Restart(follower.name.clone());
                }
            }
            None => {}
        }
        // Who comes after it waits until it serves, but not for ever.
        if let Some(back) = memory.back.get(&follower.name)
            && follower.health.as_deref() == Some("starting")
            && now < *back + HEALTH
        {
            let someone_waits = taken.iter().any(|taken| taken.name != follower.name) || !memory.restart.is_empty();
            if someone_waits {
                return Step::Wait((now + SignedDuration::from_millis(500)).min(*back + HEALTH));
            }
        }
    }
    let runs = followers.iter().filter(|follower| follower.running);
    memory.ran = runs.map(|follower| follower.name.clone()).collect();
    memory.seen.retain(|_, at| now.duration_since(*at) <= ENGINES_END);
    memory.seen.extend(memory.ran.iter().map(|name| (name.clone(), now)));
    wait.map_or(Step::Nothing, Step::Wait)
}

/// Remembers those that ended with the engine, as if they had been taken down: the engine starts the database again, and only
/// those that are told to it.
fn ended_with_engine(memory: &mut Memory, is_same: bool, followers: &[Follower], taken: &[Taken]) -> Option<Step> {
    if !memory.cut || is_same {
        memory.cut = false;
        return None;
    }
    let is_owed = |follower: &&Follower| {
        !follower.running
            && follower.comes_back()
            && follower.on_down != OnDown::Nothing
            && memory.ran.contains(&follower.name)
            && taken.iter().all(|taken| taken.name != follower.name)
    };
    let Some(follower) = followers.iter().rev().find(is_owed) else {
        memory.cut = false;
        return None;
    };
    Some(Step::TakeDown {
        name: follower.name.clone(),
        how: TakenHow::Stopped,
        running: false,
        remember: true,
        reason: "the Docker engine went away, and the database with it".to_owned(),
    })
}

#[cfg(test)]
mod tests;
