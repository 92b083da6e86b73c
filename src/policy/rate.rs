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

/// In the largest unit of which it is a whole number.
impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.into_iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(("B/s", 1));
        write!(out, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let refuse = |rule| RateError { value: text.to_owned(), rule };
        let split = UNITS.into_iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
        let (number, size) = split.ok_or_else(|| refuse("write a whole number and kB/s, MB/s or GB/s"))?;
        let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 =
            number.parse().ok().filter(|_| plain).ok_or_else(|| refuse("the number is not a whole one"))?;
        let bytes = number.checked_mul(size).ok_or_else(|| refuse("nothing is so fast"))?;
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
