//! Lengths of time as policies write them: `26h`, `8d`, `10m`, `5s`, `1h30m`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A length of time in whole seconds, from 0 to 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(u64);

/// Why a duration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a duration: {rule}")]
pub struct DurationError {
    value: String,
    rule: &'static str,
}

/// What the messages and the documentation show as examples.
pub(crate) const HELP: &str = "a number and its unit, s, m, h, d or w: \"5s\", \"10m\", \"26h\", \"8d\", \"1h30m\"";

const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
const LONGEST: u64 = 100 * 366 * 86_400;

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many seconds; at most 100 years.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(if seconds > LONGEST { LONGEST } else { seconds })
    }

    /// So many hours; at most 100 years.
    pub const fn from_hours(hours: u64) -> Self {
        Self::from_secs(hours.saturating_mul(3600))
    }

    /// The length in seconds.
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// The length as the standard library's type, for timeouts.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// The length as jiff's type, for arithmetic with instants.
    pub fn as_signed(self) -> jiff::SignedDuration {
        // Never out of range: at most 100 years.
        jiff::SignedDuration::from_secs(i64::try_from(self.0).unwrap_or(i64::MAX))
    }
}

/// A whole number of the largest unit that needs no second one: `26h`, `8d`, `90m`, `0s`.
impl fmt::Display for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, seconds) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
            if self.0.is_multiple_of(seconds) && self.0 > 0 {
                return write!(out, "{}{unit}", self.0 / seconds);
            }
        }
        write!(out, "0s")
    }
}

impl FromStr for Duration {
    type Err = DurationError;
    fn from_str(text: &str) -> Result<Self, DurationError> {
        let refuse = |rule| DurationError { value: text.to_owned(), rule };
        let mut rest = text;
        let mut total = 0u64;
        let mut units = UNITS.iter();
        if rest.is_empty() {
            return Err(refuse("it is empty"));
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let Some(unit) = tail.chars().next() else { return Err(refuse("the unit is missing")) };
            if number.is_empty() {
                return Err(refuse("a whole number and its unit are expected"));
            }
            if !UNITS.iter().any(|(known, _)| *known == unit) {
                return Err(refuse("the unit is not one of s, m, h, d, w"));
            }
            // `units` only moves on, so each unit appears once, the larger before the smaller.
            let Some((_, seconds)) = units.find(|(known, _)| *known == unit) else {
                return Err(refuse("the larger unit goes first, and each only once"));
            };
            let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*seconds));
            total = part
                .and_then(|part| total.checked_add(part))
                .filter(|total| *total <= LONGEST)
                .ok_or_else(|| refuse("it is longer than 100 years"))?;
            rest = &tail[unit.len_utf8()..];
        }
        Ok(Self(total))
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;
    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> String {
        duration.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in
            [("26h", 93_600), ("8d", 691_200), ("10m", 600), ("5s", 5), ("1h30m", 5400), ("2w", 1_209_600), ("0s", 0)]
        {
            assert_eq!(text.parse::<Duration>().expect(text).as_secs(), seconds);
        }
    }

    #[test]
    fn odd_durations_are_refused_with_the_rule() {
        let refused =
            ["", "5", "h", "-5m", "5x", "5m2h", "1h1h", "1.5h", " 5m", "5 m", "101000d", "99999999999999999999s"]
                .map(|text| text.parse::<Duration>().expect_err(text).to_string())
                .join("\n");
        insta::assert_snapshot!(refused, @r#"
        "" is not a duration: it is empty
        "5" is not a duration: the unit is missing
        "h" is not a duration: a whole number and its unit are expected
        "-5m" is not a duration: a whole number and its unit are expected
        "5x" is not a duration: the unit is not one of s, m, h, d, w
        "5m2h" is not a duration: the larger unit goes first, and each only once
        "1h1h" is not a duration: the larger unit goes first, and each only once
        "1.5h" is not a duration: the unit is not one of s, m, h, d, w
        " 5m" is not a duration: a whole number and its unit are expected
        "5 m" is not a duration: the unit is not one of s, m, h, d, w
        "101000d" is not a duration: it is longer than 100 years
        "99999999999999999999s" is not a duration: it is longer than 100 years
        "#);
    }

    proptest! {
        #[test]
        fn durations_read_back(seconds in 0u64..=LONGEST) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(duration.to_string().parse::<Duration>().expect("its own text"), duration);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,20}") {
            text.parse::<Duration>().ok();
        }
    }
}
