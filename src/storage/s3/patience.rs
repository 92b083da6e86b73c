//! How long a request is tried.
//!
//! A service that restarts is waited for; one that is gone is given up. What counts is time lost, not time taken: an
//! attempt that sends bytes may last as long as it likes.

use std::time::Duration;

/// How much time may be lost on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// In all, over every attempt and the pauses between them.
    pub total: Duration,
    /// Without a byte going either way, before an attempt is given up.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { total: Duration::from_secs(45), silence: Duration::from_secs(20) }
    }
}

impl Patience {
    /// For the first question to a service: one that has not answered yet is mostly not there, and somebody waits to be told.
    pub const AT_THE_DOOR: Self = Self { total: Duration::from_secs(8), silence: Duration::from_secs(8) };
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Patience {
    /// For a request after whose last byte the service works for long.
    pub(super) fn for_long_work(self) -> Self {
        Self { total: self.total * 2, silence: self.silence * 3 }
    }
}

/// What is left of the patience with one request.
#[derive(Debug)]
pub(super) struct Remaining {
    patience: Patience,
    lost: Duration,
    failures: u32,
}

impl Remaining {
    pub(super) fn of(patience: Patience) -> Self {
        Self { patience, lost: Duration::ZERO, failures: 0 }
    }

    /// After how long without a byte the next attempt is given up.
    pub(super) fn silence(&self) -> Duration {
        self.patience.silence.min(self.patience.total.saturating_sub(self.lost))
    }

    /// An attempt failed after `lasted`: how long to wait before the next, or nothing, if there is none. `chance` (0 to
    /// 255) spreads the clients of a service that restarts.
    pub(super) fn pause(&mut self, lasted: Duration, chance: u8) -> Option<Duration> {
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        let pause = longest / 2 + longest * u32::from(chance) / 512;
        self.failures += 1;
        self.lost += lasted.min(self.patience.silence) + pause;
        (self.lost < self.patience.total).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_than_the_total_is_lost(attempts in proptest::collection::vec((0_u64..100_000, any::<u8>()), 100)) {
            let patience = Patience::default();
            let mut remaining = Remaining::of(patience);
            let mut lost = Duration::ZERO;
            for (lasted, chance) in attempts {
                // A silent attempt ends when it is given up.
                let lasted = Duration::from_millis(lasted).min(remaining.silence());
                lost += lasted;
                match remaining.pause(lasted, chance) {
                    Some(pause) => {
                        prop_assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE);
                        lost += pause;
                    }
                    None => break,
                }
                prop_assert!(lost <= patience.total);
            }
        }

        #[test]
        fn an_attempt_that_sends_for_hours_costs_no_more_than_a_silent_one(chance in any::<u8>()) {
            let mut remaining = Remaining::of(Patience::default());
            prop_assert!(remaining.pause(Duration::from_secs(7200), chance).is_some());
        }
    }

    #[test]
    fn a_service_that_refuses_at_once_is_given_up_after_the_total() {
        let mut remaining = Remaining::of(Patience::default());
        let waited: Duration = std::iter::from_fn(|| remaining.pause(Duration::ZERO, 128)).sum();
        assert!(waited > Duration::from_secs(38) && waited <= Duration::from_secs(45), "{waited:?}");
    }
}
