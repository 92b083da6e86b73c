//! Speeds as policies write them: `200MB/s`.

use std::fmt;
use std::str::FromStr;

/// Bytes in a second: at least 64 kB, so that a copy ends at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

/// Why a speed was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a speed: {rule}")]
pub struct RateError {
    value: String,
    rule: &'static str,
}

/// What the messages and the documentation show as examples.
pub(crate) const HELP: &str = "a whole number and kB/s, MB/s or GB/s: \"200MB/s\", \"500kB/s\"";

const UNITS: [(&str, u64); 3] = [("GB/s", 1_000_000_000), ("MB/s", 1_000_000), ("kB/s", 1000)];
const SLOWEST: u64 = 64_000;

impl Rate {
    /// Bytes in a second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&show_whole(self.0, &UNITS, "B/s"))
    }
}

/// Why a text is not a whole number with a unit.
pub(super) enum NotWhole {
    /// It ends with none of the units.
    Unit,
    /// What stands before the unit is no whole number.
    Number,
    /// It is more than can be counted.
    TooLarge,
}

/// Reads a whole number and one of `units`, which have their sizes.
pub(super) fn read_whole(text: &str, units: &[(&str, u64)]) -> Result<u64, NotWhole> {
    let split = units.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let (number, size) = split.ok_or(NotWhole::Unit)?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| plain).ok_or(NotWhole::Number)?;
    number.checked_mul(*size).ok_or(NotWhole::TooLarge)
}

/// `value` in the largest of `units` of which it is a whole number, else in `smallest`.
pub(super) fn show_whole(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let whole = units.iter().find(|(_, size)| value.is_multiple_of(*size));
    let (unit, size) = whole.copied().unwrap_or((smallest, 1));
    format!("{}{unit}", value / size)
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let refuse = |rule| RateError { value: text.to_owned(), rule };
        let bytes = read_whole(text, &UNITS).map_err(|wrong| {
            refuse(match wrong {
                NotWhole::Unit => "write a whole number and kB/s, MB/s or GB/s",
                NotWhole::Number => "the number is not a whole one",
                NotWhole::TooLarge => "nothing is so fast",
            })
        })?;
        if bytes < SLOWEST { Err(refuse("a copy so slow never ends; at least 64kB/s")) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn speeds_are_read_and_written_in_one_way() {
        for (text, bytes, written) in [
            ("200MB/s", 200_000_000, "200MB/s"),
            ("64kB/s", 64_000, "64kB/s"),
            ("1000MB/s", 1_000_000_000, "1GB/s"),
            ("1500kB/s", 1_500_000, "1500kB/s"),
        ] {
            let rate: Rate = text.parse().expect("a speed");
            assert_eq!((rate.bytes_per_second(), rate.to_string().as_str()), (bytes, written));
        }
        for text in
            ["", "200", "200MB", "MB/s", "-1MB/s", "+1MB/s", "1.5MB/s", "1 MB/s", "63kB/s", "0GB/s", "99999999999GB/s"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(thousands in 64_u64..10_000_000_000) {
            let rate: Rate = format!("{thousands}kB/s").parse().expect("a speed");
            prop_assert_eq!(rate.to_string().parse::<Rate>().expect("the same"), rate);
        }
    }
}
