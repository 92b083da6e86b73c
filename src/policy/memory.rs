//! Amounts of memory as policies write them: `4GB`.

use std::fmt;
use std::str::FromStr;

use super::rate::{NotWhole, read_whole, show_whole};

/// Bytes of memory: at least 64 MB, without which no server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(u64);

/// Why an amount was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not an amount of memory: {rule}")]
pub struct MemoryError {
    value: String,
    rule: &'static str,
}

/// What the messages and the documentation show as examples.
pub(crate) const HELP: &str = "a whole number and MB or GB: \"512MB\", \"4GB\"";

const UNITS: [(&str, u64); 2] = [("GB", 1_000_000_000), ("MB", 1_000_000)];
const LEAST: u64 = 64_000_000;

impl Memory {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&show_whole(self.0, &UNITS, "B"))
    }
}

impl FromStr for Memory {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let refuse = |rule| MemoryError { value: text.to_owned(), rule };
        let bytes = read_whole(text, &UNITS).map_err(|wrong| {
            refuse(match wrong {
                NotWhole::Unit => "write a whole number and MB or GB",
                NotWhole::Number => "the number is not a whole one",
                NotWhole::TooLarge => "no machine has so much",
            })
        })?;
        match i64::try_from(bytes) {
            Err(_) => Err(refuse("no machine has so much")),
            Ok(_) if bytes < LEAST => Err(refuse("no server starts in it; at least 64MB")),
            Ok(_) => Ok(Self(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_in_one_way() {
        for (text, bytes, written) in
            [("64MB", 64_000_000, "64MB"), ("4GB", 4_000_000_000, "4GB"), ("2000MB", 2_000_000_000, "2GB")]
        {
            let memory: Memory = text.parse().expect("an amount");
            assert_eq!((memory.bytes(), memory.to_string().as_str()), (bytes, written));
            assert_eq!(memory.to_string().parse::<Memory>().expect("the same"), memory);
        }
        for text in ["", "4", "4 GB", "GB", "-4GB", "4gb", "63MB", "0GB", "9999999999GB", "99999999999GB", "4GB/s"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }
}
