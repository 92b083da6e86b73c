//! Environments of containers, kept as keys: which names may be set, and what wins. Pure.

pub mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// The name of an environment variable: letters, digits and `_`, not a digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VariableName(String);

/// Why a variable cannot be set from keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no name.
    #[error("its name is not made of letters, digits and '_', or begins with a digit")]
    Name,
    /// It decides which code programs load.
    #[error("it decides which code programs load: whoever may write keys must not")]
    Loader,
    /// A value with a NUL cannot be in an environment.
    #[error("its value holds a NUL")]
    Nul,
}

/// Besides everything that begins with `LD_`: environ(7), bash(1), ld.so(8).
const LOADERS: [&str; 12] = [
    "PATH",
    "IFS",
    "ENV",
    "BASH_ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "PYTHONPATH",
    "PERL5OPT",
    "NODE_OPTIONS",
];

impl VariableName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VariableName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for VariableName {
    type Err = Unfit;
    fn from_str(text: &str) -> Result<Self, Unfit> {
        let begins_well = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !begins_well || !text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            return Err(Unfit::Name);
        }
        if text.starts_with("LD_") || LOADERS.contains(&text) {
            return Err(Unfit::Loader);
        }
        Ok(Self(text.to_owned()))
    }
}

/// What a command gets besides its own environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// What is set.
    pub set: BTreeMap<VariableName, Vec<u8>>,
    /// What has a value already, which stays.
    pub kept: Vec<VariableName>,
    /// What cannot be set, and why.
    pub unfit: Vec<(String, Unfit)>,
}

/// Merges `keys`, names and values, into an environment that has `own` names. What the container says itself is nearer to it than
/// what is said for its cluster, and wins, unless `over` says otherwise.
pub fn merge(keys: impl IntoIterator<Item = (String, Vec<u8>)>, own: &BTreeSet<String>, over: bool) -> Merged {
    let mut merged = Merged::default();
    for (name, value) in keys {
        match name.parse::<VariableName>() {
            Err(unfit) => merged.unfit.push((name, unfit)),
            Ok(_) if value.contains(&0) => merged.unfit.push((name, Unfit::Nul)),
            Ok(known) if !over && own.contains(&name) => merged.kept.push(known),
            Ok(new) => {
                merged.set.insert(new, value);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_of_environments() {
        for good in ["A", "_", "a1", "PGOPTIONS", "http_proxy"] {
            assert_eq!(good.parse::<VariableName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "1A", "A B", "A=B", "sub/A", "Ä", "A\n"] {
            assert_eq!(bad.parse::<VariableName>(), Err(Unfit::Name), "{bad:?}");
        }
        for loader in ["LD_PRELOAD", "LD_X", "PATH", "BASH_ENV"] {
            assert_eq!(loader.parse::<VariableName>(), Err(Unfit::Loader), "{loader}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_container_wins(
            keys in proptest::collection::btree_map("[A-D1/]{0,3}", proptest::collection::vec(any::<u8>(), 0..4), 0..12),
            own in proptest::collection::btree_set("[A-D]{1,3}", 0..6),
            over: bool,
        ) {
            let merged = merge(keys.clone(), &own, over);
            prop_assert_eq!(merged.set.len() + merged.kept.len() + merged.unfit.len(), keys.len());
            for (name, value) in &merged.set {
                prop_assert_eq!(&keys[name.as_str()], value);
                prop_assert!(!value.contains(&0) && (over || !own.contains(name.as_str())));
            }
            prop_assert!(merged.kept.iter().all(|name| !over && own.contains(name.as_str())));
        }
    }
}
