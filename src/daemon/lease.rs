//! Who starts scheduled runs: the daemon that holds the leader's lock in Consul.
//!
//! ```text
//!            the lock is ours ┌────────┐ another holds it
//!           ┌────────────────▶│ Leader │◀────────┐
//!           │                 └───┬────┘         ▼
//!   start ──┤  no answer for a TTL│          ┌─────────┐
//!           │                     ▼          │ Standby │── no answer: stays so
//!           └── no answer ──▶ ┌───────┐      └─────────┘
//!                             │ Alone │ (or Standby, with `when_away = "wait"`)
//!                             └───────┘
//! ```
//!
//! Invariant: a daemon counts as leader only until its last successful renewal was a TTL ago, by its own monotonic clock,
//! counted from before the renewal was sent. Consul ends the session later than that, never earlier.

use std::time::{Duration, Instant};

use crate::consul::session::{SessionId, TTL};
use crate::consul::{Consul, ConsulError};
use crate::status::board::Role;

/// What came of one attempt to hold or renew the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The lock is ours; the attempt began then.
    Held(Instant),
    /// It is another's, or closed for a while.
    Other,
    /// Consul does not answer.
    Silence,
}

/// What is remembered between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) role: Role,
    /// When the last attempt began that found the lock ours.
    pub(super) held_at: Option<Instant>,
}

/// The next standing. `waits`: without Consul nothing is started.
pub(super) fn next(before: Option<Standing>, attempt: Attempt, waits: bool, now: Instant) -> Standing {
    let alone = if waits { Role::Standby } else { Role::Alone };
    match (attempt, before) {
        (Attempt::Held(at), _) => Standing { role: Role::Leader, held_at: Some(at) },
        (Attempt::Other, _) => Standing { role: Role::Standby, held_at: None },
        (Attempt::Silence, None) => Standing { role: alone, held_at: None },
        (Attempt::Silence, Some(before)) => match (before.role, before.held_at) {
            (Role::Leader, Some(at)) if now.saturating_duration_since(at) < TTL => before,
            (Role::Leader | Role::Alone, _) => Standing { role: alone, held_at: None },
            (Role::Standby, _) => Standing { role: Role::Standby, held_at: None },
        },
    }
}

/// The session, and the lock it wants.
#[derive(Debug)]
pub(super) struct Lease {
    key: String,
    instance: String,
    session: Option<SessionId>,
}

impl Lease {
    pub(super) fn new(consul: &Consul, instance: &str) -> Self {
        Self { key: consul.key("leader"), instance: instance.to_owned(), session: None }
    }

    /// The session, where there is one.
    pub(super) fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// Renews the session, or makes one, and takes the lock if it is free.
    pub(super) async fn attempt(&mut self, consul: &Consul) -> (Attempt, Option<ConsulError>) {
        match self.try_once(consul).await {
            Ok(attempt) => (attempt, None),
            Err(error) => (Attempt::Silence, Some(error)),
        }
    }

    async fn try_once(&mut self, consul: &Consul) -> Result<Attempt, ConsulError> {
        let begun = Instant::now();
        if let Some(session) = &self.session
            && !consul.renew(session).await?
        {
            self.session = None;
        }
        let session = match &self.session {
            Some(session) => session.clone(),
            None => consul.create_session(&format!("pglife/{}", self.instance)).await?,
        };
        self.session = Some(session.clone());
        let value = serde_json::json!({ "instance": self.instance, "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION") });
        let held = consul.acquire(&self.key, &session, &value.to_string()).await?;
        Ok(if held { Attempt::Held(begun) } else { Attempt::Other })
    }

    /// Lets go of the lock, so that another daemon takes over at once, and ends the session.
    pub(super) async fn end(&mut self, consul: &Consul) {
        let Some(session) = self.session.take() else { return };
        let ended = async {
            consul.release(&self.key, &session).await?;
            consul.destroy(&session).await
        };
        if let Err(error) = ended.await {
            tracing::warn!(
                "the leader's lock ends by itself within {} s: {error}",
                (TTL * 2 + Duration::from_secs(15)).as_secs()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leader(at: Instant) -> Standing {
        Standing { role: Role::Leader, held_at: Some(at) }
    }

    #[test]
    fn a_leader_that_hears_nothing_is_leader_for_a_ttl_and_then_alone() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(next(Some(leader(begun)), Attempt::Silence, false, after(29)).role, Role::Leader);
        assert_eq!(next(Some(leader(begun)), Attempt::Silence, false, after(30)).role, Role::Alone);
        assert_eq!(next(Some(leader(begun)), Attempt::Silence, true, after(30)).role, Role::Standby);
        assert_eq!(next(Some(leader(begun)), Attempt::Other, false, after(1)).role, Role::Standby);
        assert_eq!(next(None, Attempt::Silence, false, begun).role, Role::Alone);
    }

    proptest! {
        /// With one lock there is one leader: two daemons never believe it at the same time, whatever they hear and miss. The
        /// model's Consul takes a lock back no earlier than a TTL after the last renewal.
        #[test]
        fn two_daemons_are_never_leader_together(steps in proptest::collection::vec((0_usize..2, any::<bool>(), 1_u64..20), 1..200)) {
            let begun = Instant::now();
            let mut clock = 0;
            let mut standing: [Option<Standing>; 2] = [None, None];
            let mut holder: Option<(usize, u64)> = None;
            for (who, hears, seconds) in steps {
                clock += seconds;
                let now = begun + Duration::from_secs(clock);
                if holder.is_some_and(|(_, renewed)| clock >= renewed + TTL.as_secs()) {
                    holder = None;
                }
                let attempt = if !hears {
                    Attempt::Silence
                } else if holder.is_none_or(|(held, _)| held == who) {
                    holder = Some((who, clock));
                    Attempt::Held(now)
                } else {
                    Attempt::Other
                };
                standing[who] = Some(next(standing[who], attempt, true, now));
                // What counts is what each would believe if it looked now.
                let believes = standing.map(|standing| {
                    next(standing, Attempt::Silence, true, now).role == Role::Leader
                });
                prop_assert!(believes != [true, true]);
            }
        }
    }
}
