//! Settings files of a server, kept as keys: what is written, what goes, and what is left alone. Pure.

use std::collections::BTreeMap;

/// How a file begins that was written from a key.
pub const MARK: &str = "# From Consul, written at each start: what is changed here is lost";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A file gets the text of its key.
    Write {
        /// Its name.
        name: String,
        /// Its text.
        text: Vec<u8>,
    },
    /// Its key is gone.
    Remove {
        /// Its name.
        name: String,
    },
    /// The key is not used.
    LeaveOut {
        /// Its name.
        name: String,
        /// Why.
        why: &'static str,
    },
}

/// True for the name of a key that is a settings file and not a policy: `shop/20-memory.conf` below `config/clusters`.
pub fn is_of_server(name: &str) -> bool {
    name.split_once('/').is_some_and(|(_, file)| file.strip_suffix(".conf").is_some())
}

/// What brings a folder in line with `keys`. `present` are its settings files: true for those that were written from keys. A file
/// that somebody else put there is nearer to the server, and stays.
pub fn steps(keys: impl IntoIterator<Item = (String, Vec<u8>)>, present: &BTreeMap<String, bool>) -> Vec<Step> {
    let keys: BTreeMap<String, Vec<u8>> = keys.into_iter().collect();
    let gone = present.iter().filter(|(name, is_ours)| **is_ours && !keys.contains_key(*name));
    let mut steps: Vec<Step> = gone.map(|(name, _)| Step::Remove { name: name.clone() }).collect();
    steps.extend(keys.into_iter().map(|(name, text)| {
        if !is_file_name(&name) {
            Step::LeaveOut { name, why: "it is no name of a settings file: letters, digits, '-' and '_', then .conf" }
        } else if present.get(&name) == Some(&false) {
            Step::LeaveOut { name, why: "the folder has a file of that name already, which stays" }
        } else {
            Step::Write { name, text }
        }
    }));
    steps
}

/// Who may enter is decided beside the server, and not by whoever may write keys.
fn is_file_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".conf") else { return false };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    !stem.is_empty() && stem.chars().all(is_plain) && !["pg_hba", "pg_ident"].contains(&stem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_are_told_from_policies() {
        assert!(is_of_server("shop/20-memory.conf") && is_of_server("shop/a/b.conf"));
        assert!(
            !is_of_server("shop") && !is_of_server("shop.conf") && !is_of_server("shop/") && !is_of_server("a/b.toml")
        );
    }

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["a.conf", "20-memory.conf", "A_1.conf"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in
            ["", ".conf", "a", "../a.conf", "a/b.conf", ".a.conf", "a.b.conf", "ä.conf", "pg_hba.conf", "a.conf\n"]
        {
            assert!(!is_file_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn afterwards_the_folder_says_what_the_keys_say(
            keys in proptest::collection::btree_map("[ab./]{1,2}(\\.conf)?", proptest::collection::vec(any::<u8>(), 0..3), 0..8),
            present in proptest::collection::btree_map("[abc]{1,2}\\.conf", any::<bool>(), 0..8),
        ) {
            let mut after = present.clone();
            let mut left_out = 0;
            for step in steps(keys.clone(), &present) {
                match step {
                    Step::Write { name, text } => {
                        prop_assert_eq!(&keys[&name], &text);
                        prop_assert!(after.insert(name, true) != Some(false));
                    }
                    Step::Remove { name } => prop_assert_eq!(after.remove(&name), Some(true)),
                    Step::LeaveOut { .. } => left_out += 1,
                }
            }
            for (name, is_ours) in &after {
                prop_assert!(!is_ours || keys.contains_key(name));
                prop_assert!(*is_ours || present.get(name) == Some(&false));
            }
            let written = after.values().filter(|is_ours| **is_ours).count();
            prop_assert_eq!(written + left_out, keys.len());
        }
    }
}
