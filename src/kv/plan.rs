//! What a push changes in Consul, and a pull in a folder. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Documents;
use crate::consul::tree::{Change, Tree};

/// What becomes of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// It is not there yet.
    New,
    /// Another one is there.
    Changed,
    /// It is there.
    Same,
    /// It is there, not wanted, and removed.
    Deleted,
    /// It is there, not wanted, and stays.
    Left,
}

impl Step {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Same => "same",
            Self::Deleted => "deleted",
            Self::Left => "left",
        }
    }

    /// True where something is written.
    pub fn is_a_change(self) -> bool {
        matches!(self, Self::New | Self::Changed | Self::Deleted)
    }
}

/// What becomes of each document, by name, where `wanted` is to be where `there` is.
pub fn steps(wanted: &Documents, there: &Documents, delete: bool) -> BTreeMap<String, Step> {
    let names: BTreeSet<&String> = wanted.keys().chain(there.keys()).collect();
    let step = |name: &String| match (wanted.get(name), there.get(name)) {
        (Some(_), None) => Step::New,
        (Some(new), Some(old)) if new == old => Step::Same,
        (Some(_), Some(_)) => Step::Changed,
        (None, _) if delete => Step::Deleted,
        (None, _) => Step::Left,
    };
    names.into_iter().map(|name| (name.clone(), step(name))).collect()
}

/// The changes of keys below `folder` that these steps are, each only over what was read.
pub fn changes(steps: &BTreeMap<String, Step>, wanted: &Documents, read: &Tree, folder: &str) -> Vec<Change> {
    let index =
        |name: &String| read.keys.iter().find(|(known, _)| known == name).map_or(0, |(_, pair)| pair.modify_index);
    let changed = steps.iter().filter(|(_, step)| step.is_a_change());
    let change = |(name, _): (&String, &Step)| Change {
        key: format!("{folder}/{name}"),
        index: index(name),
        value: wanted.get(name).cloned(),
    };
    changed.map(change).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_documents() -> impl Strategy<Value = Documents> {
        proptest::collection::btree_map("[a-d]", proptest::collection::vec(0_u8..2, 0..2), 0..4)
    }

    fn tree(documents: &Documents) -> Tree {
        let key = |(at, (name, bytes)): (usize, (&String, &Vec<u8>))| {
            use base64::Engine as _;
            let value = base64::engine::general_purpose::STANDARD.encode(bytes);
            let pair = serde_json::json!({ "Key": format!("k/{name}"), "Value": value, "ModifyIndex": at + 10 });
            (name.clone(), serde_json::from_value(pair).expect("a pair"))
        };
        Tree { keys: documents.iter().enumerate().map(key).collect(), index: 99 }
    }

    proptest! {
        #[test]
        fn changes_make_what_is_wanted_and_touch_nothing_else(
            wanted in any_documents(), there in any_documents(), delete: bool,
        ) {
            let steps = steps(&wanted, &there, delete);
            let read = tree(&there);
            let changes = changes(&steps, &wanted, &read, "k");
            let mut after = there.clone();
            for change in &changes {
                let name = change.key.strip_prefix("k/").expect("below").to_owned();
                let index = read.keys.iter().find(|(known, _)| *known == name).map_or(0, |(_, pair)| pair.modify_index);
                prop_assert_eq!(change.index, index);
                match &change.value {
                    Some(value) => { after.insert(name, value.clone()); }
                    None => { after.remove(&name); }
                }
            }
            let mut expected = if delete { Documents::new() } else { there.clone() };
            expected.extend(wanted.clone());
            prop_assert_eq!(after, expected);
            // What is the same is not written again.
            prop_assert!(changes.iter().all(|change| there.get(&change.key[2..]) != change.value.as_ref()));
        }
    }
}
