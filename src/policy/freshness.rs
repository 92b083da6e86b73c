//! How old the newest backup may be.
//!
//! Pure: the newest success, the limits and the clock give a level and a text. The text names instants, never ages, so
//! that it stays the same while nothing happens. Never backed up is critical, with or without limits.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;

/// What a success may lie ahead of the clock before the clock, or the set, is not believed.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);

/// The ages at which a backup becomes worrying; `warn` is below `critical`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    warn: Duration,
    critical: Duration,
}

impl Limits {
    /// Limits, if `warn` is above zero and below `critical`.
    pub fn new(warn: Duration, critical: Duration) -> Option<Self> {
        (Duration::ZERO < warn && warn < critical).then_some(Self { warn, critical })
    }

    /// The age that is worth a warning.
    pub fn warn(&self) -> Duration {
        self.warn
    }

    /// The age that must not be.
    pub fn critical(&self) -> Duration {
        self.critical
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Within the limits.
    Ok,
    /// Past the first limit.
    Warn,
    /// Past the second limit, or never backed up.
    Critical,
}

impl Level {
    /// Its word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Critical => "critical",
        }
    }
}

/// The answer for one cluster and one kind of backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Freshness {
    /// How bad it is.
    pub level: Level,
    /// Why, in instants.
    pub text: String,
}

/// Judges the newest committed backup (`last_success`: when it was complete) at `now`.
pub fn evaluate(last_success: Option<Timestamp>, limits: Option<&Limits>, now: Timestamp) -> Freshness {
    let answer = |level, text| Freshness { level, text };
    let Some(last) = last_success else {
        return answer(Level::Critical, "never backed up".to_owned());
    };
    let last = last.round(jiff::Unit::Second).unwrap_or(last);
    if now.duration_since(last) < -CLOCK_TOLERANCE.as_signed() {
        return answer(Level::Warn, format!("last success {last} is ahead of the clock"));
    }
    let Some(limits) = limits else {
        return answer(Level::Ok, format!("last success {last}, the policy sets no limit"));
    };
    // Sums beyond the calendar's end (the year 9999) are limits that are never reached.
    let warn = last.checked_add(limits.warn.as_signed()).unwrap_or(Timestamp::MAX);
    let critical = last.checked_add(limits.critical.as_signed()).unwrap_or(Timestamp::MAX);
    if now >= critical {
        answer(Level::Critical, format!("last success {last}, critical since {critical}"))
    } else if now >= warn {
        answer(Level::Warn, format!("last success {last}, stale since {warn}, critical from {critical}"))
    } else {
        answer(Level::Ok, format!("last success {last}, fresh until {warn}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("an instant")
    }

    fn limits() -> Limits {
        Limits::new(Duration::from_hours(26), Duration::from_hours(50)).expect("ordered")
    }

    #[test]
    fn levels_change_at_the_limits() {
        let last = Some(at("2026-11-01T02:30:12.7Z"));
        let told = |now| {
            let Freshness { level, text } = evaluate(last, Some(&limits()), at(now));
            format!("{level:?}: {text}\n")
        };
        let told: String = [
            "2026-11-01T02:00:00Z",
            "2026-11-02T04:30:12Z",
            "2026-11-02T04:30:13Z",
            "2026-11-03T04:30:12Z",
            "2026-11-03T04:30:13Z",
        ]
        .map(told)
        .concat();
        insta::assert_snapshot!(told, @r"
        Warn: last success 2026-11-01T02:30:13Z is ahead of the clock
        Ok: last success 2026-11-01T02:30:13Z, fresh until 2026-11-02T04:30:13Z
        Warn: last success 2026-11-01T02:30:13Z, stale since 2026-11-02T04:30:13Z, critical from 2026-11-03T04:30:13Z
        Warn: last success 2026-11-01T02:30:13Z, stale since 2026-11-02T04:30:13Z, critical from 2026-11-03T04:30:13Z
        Critical: last success 2026-11-01T02:30:13Z, critical since 2026-11-03T04:30:13Z
        ");
    }

    #[test]
    fn never_backed_up_is_critical_whatever_the_limits() {
        for limits in [None, Some(&limits())] {
            assert_eq!(evaluate(None, limits, at("2026-01-01T00:00:00Z")).level, Level::Critical);
        }
    }

    #[test]
    fn without_limits_a_backup_is_enough() {
        let freshness = evaluate(Some(at("2020-01-01T00:00:00Z")), None, at("2026-01-01T00:00:00Z"));
        assert_eq!(freshness.text, "last success 2020-01-01T00:00:00Z, the policy sets no limit");
        assert_eq!(freshness.level, Level::Ok);
    }

    #[test]
    fn limits_are_ordered() {
        let hours = Duration::from_hours;
        assert!(Limits::new(hours(2), hours(2)).is_none());
        assert!(Limits::new(hours(3), hours(2)).is_none());
        assert!(Limits::new(Duration::ZERO, hours(2)).is_none());
    }

    proptest! {
        #[test]
        fn it_never_gets_better_by_waiting(
            last in -1_000_000i64..2_000_000_000, age in 0i64..1_000_000, wait in 0i64..1_000_000,
            warn in 1u64..500_000, more in 1u64..500_000,
        ) {
            let limits = Limits::new(Duration::from_secs(warn), Duration::from_secs(warn + more)).expect("ordered");
            let last = Timestamp::from_second(last).expect("in range");
            let after = |seconds| last + jiff::SignedDuration::from_secs(seconds);
            let (early, late) =
                (evaluate(Some(last), Some(&limits), after(age)), evaluate(Some(last), Some(&limits), after(age + wait)));
            prop_assert!(early.level <= late.level);
            // The text changes only with the level: no ages in it.
            prop_assert_eq!(early.level == late.level, early.text == late.text);
        }

        #[test]
        fn a_newer_success_is_never_worse(now in 1_000_000_000i64..2_000_000_000, a in 0i64..400_000, b in 0i64..400_000) {
            let now = Timestamp::from_second(now).expect("in range");
            let level = |age| evaluate(Some(now - jiff::SignedDuration::from_secs(age)), Some(&limits()), now).level;
            prop_assert!(level(a.min(b)) <= level(a.max(b)));
        }

        #[test]
        fn extreme_clocks_are_answered(last in any::<i64>(), now in any::<i64>()) {
            if let (Ok(last), Ok(now)) = (Timestamp::from_second(last), Timestamp::from_second(now)) {
                evaluate(Some(last), Some(&limits()), now);
            }
        }
    }
}
