//! Names of the things pglife looks after: clusters, containers, volumes, databases, majors.
//!
//! Each name is a type of its own, checked once where it enters (a policy file, the command line, Docker's or the
//! server's answer), so that a database can never be taken for a container further in.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a name was refused. The message names the rule, for the file or command line it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(inline)]
        pub struct $name(String);

        impl $name {
            /// Checks `value` against the rule for this kind of name.
            pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
                let value = value.into();
                let check: fn(&str) -> bool = $check;
                if check(&value) { Ok(Self(value)) } else { Err(NameError { what: $what, value, rule: $rule }) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_cluster_name(value: &str) -> bool {
    (1..=48).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

fn is_docker_name(value: &str) -> bool {
    (2..=128).contains(&value.len())
        && value.as_bytes()[0].is_ascii_alphanumeric()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_config_name(value: &str) -> bool {
    (1..=48).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        && value.as_bytes()[0].is_ascii_alphanumeric()
}

/// PostgreSQL cuts identifiers at 63 bytes (`NAMEDATALEN` - 1) and allows every byte but NUL.
fn is_postgres_identifier(value: &str) -> bool {
    (1..=63).contains(&value.len()) && !value.contains('\0')
}

checked_name!(
    /// A cluster: the name of its policy file, and what Consul, labels and the repository call it.
    ClusterName,
    "cluster name",
    is_cluster_name,
    "1 to 48 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
impl ClusterName {
    /// What the throwaway server of a drill of this cluster is called: there is one at a time.
    #[must_use]
    pub fn for_drills(&self) -> Self {
        self.with_purpose("drill")
    }

    /// What the throwaway server is called that serves a copy of volumes, of which a part is restored into this cluster.
    #[must_use]
    pub fn for_extraction(&self) -> Self {
        self.with_purpose("extract")
    }

    fn with_purpose(&self, purpose: &str) -> Self {
        let name = format!("{self}-{purpose}");
        if is_cluster_name(&name) {
            return Self(name);
        }
        // Too long for that; long names that begin alike are told apart all the same.
        let digest = blake3::hash(self.0.as_bytes()).to_hex();
        Self(format!("{purpose}-{}", &digest[..32]))
    }
}

checked_name!(
    /// A Docker container's name, as the engine accepts it.
    ContainerName,
    "container name",
    is_docker_name,
    "2 to 128 of A-Z, a-z, 0-9, '_', '.', '-', beginning with a letter or digit"
);
checked_name!(
    /// A named Docker volume.
    VolumeName,
    "volume name",
    is_docker_name,
    "2 to 128 of A-Z, a-z, 0-9, '_', '.', '-', beginning with a letter or digit"
);
checked_name!(
    /// A Docker host, as `[hosts.<name>]` in `pglife.toml` calls it.
    HostName,
    "host name",
    is_config_name,
    "1 to 48 of A-Z, a-z, 0-9, '_' and '-', beginning with a letter or digit"
);
checked_name!(
    /// A daemon among others: a part of its service's id in Consul, beside those of the clusters, `pglife-backup-<cluster>`.
    InstanceName,
    "instance name",
    |value: &str| is_config_name(value) && !value.contains('_') && !value.starts_with("backup"),
    "1 to 48 of A-Z, a-z, 0-9 and '-', beginning with a letter or digit and not with \"backup\""
);
checked_name!(
    /// A repository, as `[repos.<name>]` in `pglife.toml` calls it.
    RepoName,
    "repository name",
    is_config_name,
    "1 to 48 of A-Z, a-z, 0-9, '_' and '-', beginning with a letter or digit"
);
checked_name!(
    /// A database inside a cluster; any bytes PostgreSQL allows, so never put it into a path or SQL unquoted.
    DatabaseName,
    "database name",
    is_postgres_identifier,
    "1 to 63 bytes without NUL"
);
checked_name!(
    /// A role inside a cluster.
    RoleName,
    "role name",
    is_postgres_identifier,
    "1 to 63 bytes without NUL"
);

impl DatabaseName {
    /// The name as one path component: ASCII letters, digits, `_`, `-` and inner dots as they are, every other byte as
    /// `%XX`. Distinct names give distinct components, and the result is never `.` or `..`.
    pub fn as_path_component(&self) -> String {
        let mut component = String::with_capacity(self.0.len());
        for (position, byte) in self.0.bytes().enumerate() {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && position > 0);
            if plain {
                component.push(char::from(byte));
            } else {
                use fmt::Write as _;
                // Writing to a String cannot fail.
                write!(component, "%{byte:02X}").ok();
            }
        }
        component
    }
}

/// A PostgreSQL major version: one number since 10, two before (`9.4`). Ordered as releases are: 9.4 < 9.6 < 10 < 17.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PgMajor {
    first: u16,
    /// The second number before 10; 0 since.
    second: u16,
}

impl PgMajor {
    /// A major since 10. Panics on a number below 10, which only a programmer can pass.
    pub const fn since_10(first: u16) -> Self {
        assert!(first >= 10, "majors before 10 have two numbers");
        Self { first, second: 0 }
    }

    /// The major of a server that reports `server_version_num` (`90426` is 9.4.26, `170002` is 17.2).
    pub fn from_version_num(num: u32) -> Result<Self, NameError> {
        let refuse = || NameError {
            what: "server_version_num",
            value: num.to_string(),
            rule: "a number such as 90426 or 170002 is expected",
        };
        let first = u16::try_from(num / 10_000).map_err(|_| refuse())?;
        let second = u16::try_from(num / 100 % 100).map_err(|_| refuse())?;
        match first {
            0..=7 => Err(refuse()),
            8 | 9 => Ok(Self { first, second }),
            _ => Ok(Self { first, second: 0 }),
        }
    }

    /// True when this major is at least `first` (a number since 10).
    pub fn is_at_least(self, first: u16) -> bool {
        self.first >= first
    }

    /// The last day of the community's fixes for it, from its versioning policy; None where that is not known here.
    pub fn end_of_life(self) -> Option<jiff::civil::Date> {
        let date = jiff::civil::date;
        Some(match (self.first, self.second) {
            (9, 4) => date(2020, 2, 13),
            (9, 5) => date(2021, 2, 11),
            (9, 6) => date(2021, 11, 11),
            (10, _) => date(2022, 11, 10),
            (11, _) => date(2023, 11, 9),
            (12, _) => date(2024, 11, 21),
            (13, _) => date(2025, 11, 13),
            (14, _) => date(2026, 11, 12),
            (15, _) => date(2027, 11, 11),
            (16, _) => date(2028, 11, 9),
            (17, _) => date(2029, 11, 8),
            (18, _) => date(2030, 11, 14),
            _ => return None,
        })
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first >= 10 { write!(out, "{}", self.first) } else { write!(out, "{}.{}", self.first, self.second) }
    }
}

impl FromStr for PgMajor {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        let refuse = || NameError {
            what: "PostgreSQL major version",
            value: value.to_owned(),
            rule: "one number since 10 (\"17\"), two before (\"9.4\")",
        };
        let number = |text: &str| -> Result<u16, NameError> {
            let canonical = !text.is_empty() && (text == "0" || !text.starts_with('0'));
            if canonical && text.bytes().all(|b| b.is_ascii_digit()) {
                text.parse().map_err(|_| refuse())
            } else {
                Err(refuse())
            }
        };
        match value.split_once('.') {
            None => match number(value)? {
                first if (10..1000).contains(&first) => Ok(Self { first, second: 0 }),
                _ => Err(refuse()),
            },
            Some((first, second)) => match (number(first)?, number(second)?) {
                (first @ (8 | 9), second) if second < 100 => Ok(Self { first, second }),
                _ => Err(refuse()),
            },
        }
    }
}

impl TryFrom<String> for PgMajor {
    type Error = NameError;
    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<PgMajor> for String {
    fn from(major: PgMajor) -> String {
        major.to_string()
    }
}

/// System identifier + major version: the history a backup belongs to. Retention and incrementals never cross it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lineage {
    /// `pg_control_system().system_identifier`, made by initdb.
    pub system_identifier: u64,
    /// The server's major version.
    pub major: PgMajor,
}

impl fmt::Display for Lineage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.system_identifier, self.major)
    }
}

impl FromStr for Lineage {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        let refuse = || NameError {
            what: "lineage",
            value: value.to_owned(),
            rule: "<system identifier>-<major>, such as 7412345678901234567-17",
        };
        let (identifier, major) = value.split_once('-').ok_or_else(refuse)?;
        let system_identifier = identifier.parse().map_err(|_| refuse())?;
        let lineage = Self { system_identifier, major: major.parse().map_err(|_| refuse())? };
        if lineage.to_string() == value { Ok(lineage) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for Lineage {
    type Error = NameError;
    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<Lineage> for String {
    fn from(lineage: Lineage) -> String {
        lineage.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn major(text: &str) -> PgMajor {
        text.parse().expect("a major")
    }

    #[test]
    fn majors_are_ordered_as_released() {
        let released = ["8.4", "9.3", "9.4", "9.6", "10", "13", "17", "18"].map(major);
        assert!(released.is_sorted());
        assert!(major("9.6") < major("10"));
    }

    #[test]
    fn majors_come_from_version_numbers() {
        for (num, text) in [(90_426, "9.4"), (90_624, "9.6"), (100_001, "10"), (130_022, "13"), (180_000, "18")] {
            assert_eq!(PgMajor::from_version_num(num).expect("a version"), major(text));
        }
        assert!(PgMajor::from_version_num(17).is_err());
    }

    #[test]
    fn odd_majors_are_refused() {
        for text in ["", "9", "017", "17.2", "9.4.1", "ten", "-1", " 17", "9.", ".4", "1000"] {
            assert!(text.parse::<PgMajor>().is_err(), "{text:?} was taken for a major");
        }
    }

    #[test]
    fn cluster_names_are_checked() {
        for name in ["chado", "a", "main-17", &"x".repeat(48)] {
            assert!(ClusterName::new(name).is_ok(), "{name:?}");
        }
        for name in ["", "Main", "a_b", "-a", "a-", "a/b", "..", "ä", &"x".repeat(49)] {
            assert!(ClusterName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn throwaway_servers_have_names_of_their_own() {
        let name = |text: &str| ClusterName::new(text).expect("a name").for_drills();
        assert_eq!(name("chado").as_str(), "chado-drill");
        assert_eq!(ClusterName::new("chado").expect("a name").for_extraction().as_str(), "chado-extract");
        let long = ["a", "b"].map(|end| format!("{}{end}", "x".repeat(47)));
        for text in &long {
            assert!(ClusterName::new(name(text).as_str()).is_ok());
        }
        assert_ne!(name(&long[0]), name(&long[1]));
    }

    #[test]
    fn lineages_read_back() {
        let lineage = Lineage { system_identifier: 7_412_345_678_901_234_567, major: major("9.4") };
        assert_eq!(lineage.to_string().parse::<Lineage>().expect("a lineage"), lineage);
        assert!("017-17".parse::<Lineage>().is_err());
    }

    proptest! {
        #[test]
        fn path_components_are_safe_and_distinct(a in "[^\0]{1,15}", b in "[^\0]{1,15}") {
            let (a, b) = (DatabaseName::new(a).expect("short"), DatabaseName::new(b).expect("short"));
            let (left, right) = (a.as_path_component(), b.as_path_component());
            prop_assert!(left.is_ascii() && !left.contains('/') && !left.starts_with('.') && !left.is_empty());
            prop_assert_eq!(a == b, left == right);
        }

        #[test]
        fn majors_read_back(first in 10u16..1000) {
            prop_assert_eq!(major(&first.to_string()).to_string(), first.to_string());
        }
    }
}
