//! Numbers and times for people. Programs get bytes and seconds as numbers and RFC 3339.

use jiff::{SignedDuration, Timestamp};

use crate::backup_set::RecoveryTime;

/// A size in decimal units: `0 B`, `999 B`, `1.2 GB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut scaled, mut unit) = (bytes, 0);
    // Whole numbers with one digit kept aside, so that nothing is rounded twice.
    while scaled >= 1_000_000 {
        scaled /= 1000;
        unit += 1;
    }
    let mut tenths = (scaled + 50) / 100;
    if tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1000);
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A length of time with its two largest units: `12s`, `3m 05s`, `2h 30m`, `4d 6h`.
pub fn duration(length: SignedDuration) -> String {
    let seconds = length.as_secs().unsigned_abs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// The same of a number of seconds.
pub fn seconds(seconds: f64) -> String {
    duration(SignedDuration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// How long ago something was, or how far ahead it is: `3m 05s ago`, `in 2h 30m`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let length = now.duration_since(then);
    if length.is_negative() { format!("in {}", duration(length)) } else { format!("{} ago", duration(length)) }
}

/// How long a restore takes, how that changes, and whether it may: `12s (+20 %), over the budget of 10s`.
pub fn recovery(recovery: &RecoveryTime) -> String {
    let mut text = seconds(recovery.seconds);
    if let Some(change) = recovery.change_percent {
        text.push_str(&format!(" ({change:+.0} %)"));
    }
    if let (Some(false), Some(budget)) = (recovery.within_budget, recovery.budget_seconds) {
        text.push_str(&format!(", over the budget of {}", seconds(budget)));
    }
    text
}

/// Names with commas between them; `-` where there is none.
pub fn list<T: std::fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_short() {
        for (size, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_049, "1.0 kB"),
            (1_050, "1.1 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(size), shown, "{size}");
        }
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, shown) in [(0, "0s"), (59, "59s"), (185, "3m 05s"), (9000, "2h 30m"), (367_200, "4d 6h")] {
            assert_eq!(duration(SignedDuration::from_secs(seconds)), shown);
        }
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(age(now - SignedDuration::from_secs(60), now), "1m 00s ago");
        assert_eq!(age(now + SignedDuration::from_secs(60), now), "in 1m 00s");
    }

    proptest! {
        #[test]
        fn any_size_is_at_most_eight_characters(size in any::<u64>()) {
            prop_assert!(bytes(size).len() <= 8, "{}", bytes(size));
        }
    }
}
