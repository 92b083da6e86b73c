//! Names and small values that occur in policies only.

use std::fmt;
use std::str::FromStr;

/// Why such a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct PolicyValueError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = PolicyValueError;
            fn from_str(value: &str) -> Result<Self, PolicyValueError> {
                let check: fn(&str) -> bool = $check;
                let value = value.to_owned();
                if check(&value) { Ok(Self(value)) } else { Err(PolicyValueError { what: $what, value, rule: $rule }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }
    };
}

fn is_image(value: &str) -> bool {
    (1..=300).contains(&value.len())
        && value.as_bytes()[0].is_ascii_alphanumeric()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
}

fn is_network(value: &str) -> bool {
    (1..=128).contains(&value.len())
        && value.as_bytes()[0].is_ascii_alphanumeric()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !["host", "none", "container"].contains(&value)
}

fn is_table_pattern(value: &str) -> bool {
    (1..=1024).contains(&value.len()) && !value.contains(['\0', '\n'])
}

checked_text!(
    /// An image as Docker names it: `pglife/postgres:17`, with a digest if need be.
    ImageName,
    "image",
    is_image,
    "a name such as pglife/postgres:17 or registry.example.org/postgres@sha256:… is expected"
);
checked_text!(
    /// A user-defined Docker network.
    NetworkName,
    "network",
    is_network,
    "the name of a user-defined Docker network is expected"
);
checked_text!(
    /// A pattern of tables as `pg_dump --exclude-table-data` reads it: `audit.*`, `"Odd Schema".events`.
    TablePattern,
    "table pattern",
    is_table_pattern,
    "1 to 1024 bytes on one line"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_networks_are_checked() {
        for text in ["pglife/postgres:17", "postgres", "localhost:5000/a/b:c@sha256:00"] {
            assert!(text.parse::<ImageName>().is_ok(), "{text:?}");
        }
        for text in ["", "-v", "a b", "a\n", "ä"] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
            assert!(text.parse::<NetworkName>().is_err(), "{text:?}");
        }
        assert!("host".parse::<NetworkName>().is_err(), "the host's network is not a user-defined one");
    }
}
