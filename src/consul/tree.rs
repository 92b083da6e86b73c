//! Plain keys below one: read at once, waited for, and changed together.
//!
//! A blocking query is answered when something has changed, or after a while. Its index may go backwards (the servers lost
//! what they had): then everything is new. After an error nothing is known of what was missed, so all is read again.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::session::Pair;
use super::{Consul, ConsulError, PATIENCE, encoded, words};

/// How long Consul keeps a question that nothing has an answer to yet. It adds a sixteenth.
const HOLD: Duration = Duration::from_secs(50);

/// Keys of one moment.
#[derive(Debug)]
pub struct Tree {
    /// What follows the key they are below, and what is in each.
    pub keys: Vec<(String, Pair)>,
    /// The moment, to ask for what comes after it.
    pub index: u64,
}

impl Tree {
    /// The names, and the bytes in each.
    pub fn values(&self) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
        self.keys.iter().map(|(name, pair)| (name.clone(), pair.bytes()))
    }
}

/// How soon Consul is asked again after it did not answer, and how late at most.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// Whoever changes one key may be about to change others.
const MORE_TO_COME: Duration = Duration::from_secs(1);

/// A change of one key, where it is as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its [`Pair::modify_index`] as it was read; 0: there was no such key.
    pub index: u64,
    /// What is in it from then on; None: it is removed.
    pub value: Option<Vec<u8>>,
}

/// So many changes Consul makes at once, at most: Consul's "Transactions", limits.
pub const AT_ONCE: usize = 64;
/// And so many bytes, with some room for what is around them; one value alone may be as large as Consul takes it.
const BYTES_AT_ONCE: usize = 256 << 10;

impl Change {
    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }

    fn as_operation(&self) -> serde_json::Value {
        match &self.value {
            Some(value) => {
                json!({ "KV": { "Verb": "cas", "Key": self.key, "Index": self.index, "Value": STANDARD.encode(value) } })
            }
            None => json!({ "KV": { "Verb": "delete-cas", "Key": self.key, "Index": self.index } }),
        }
    }
}

/// In as few parts as Consul takes them.
pub fn parts(changes: &[Change]) -> Vec<&[Change]> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, change) in changes.iter().enumerate() {
        if at > begin && (at - begin == AT_ONCE || bytes + change.bytes() > BYTES_AT_ONCE) {
            parts.push(&changes[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += change.bytes();
    }
    if begin < changes.len() {
        parts.push(&changes[begin..]);
    }
    parts
}

/// What a transaction that did not happen says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    errors: Vec<OperationRefused>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OperationRefused {
    op_index: usize,
    /// Its own words, such as `failed to set key "x", index is stale`.
    what: String,
}

impl Consul {
    /// All keys below `key`, at one moment. With `after` the answer comes when something has changed since, or after a while.
    pub async fn tree(&self, key: &str, after: Option<u64>) -> Result<Tree, ConsulError> {
        let action = format!("read {key}");
        let path = format!("/v1/kv/{}/?recurse=true", encoded(key));
        let (path, patience) = match after {
            // An index of 0 would be an answer at once, again and again.
            Some(index) => (format!("{path}&index={}&wait={}s", index.max(1), HOLD.as_secs()), HOLD + 2 * PATIENCE),
            None => (format!("{path}&consistent"), PATIENCE),
        };
        let answer = self.ask_within(Method::GET, &path, None, &action, patience).await?;
        let index = answer.index.unwrap_or(1).max(1);
        // It goes backwards where the servers lost what they had: everything is new then.
        let pairs: Vec<Pair> = match answer.status.as_u16() {
            404 => {
                // What a token may not see is left out in silence; asked for one key, Consul says so.
                self.get(&format!("{key}/")).await?;
                Vec::new()
            }
            _ => self.read(&self.good(answer, &action)?, &action)?,
        };
        let below = format!("{key}/");
        let keys = pairs.into_iter().filter_map(|pair| {
            let name = pair.key.strip_prefix(&below).filter(|name| !name.is_empty())?.to_owned();
            Some((name, pair))
        });
        Ok(Tree { keys: keys.collect(), index })
    }

    /// All keys below `key` after the next change since `index`, or as they are where there is none; `index` is theirs then.
    /// Consul's death ends nothing: it is asked again, less and less often. `heard` is told of every answer, and of every
    /// error. Nothing is lost with a call that is dropped.
    pub async fn next_tree(
        &self,
        key: &str,
        index: &mut Option<u64>,
        mut heard: impl FnMut(Option<&ConsulError>) + Send,
    ) -> Tree {
        let mut pause = AGAIN[0];
        loop {
            match self.tree(key, *index).await {
                Ok(tree) if index.is_none() => {
                    heard(None);
                    *index = Some(tree.index);
                    return tree;
                }
                Ok(tree) if *index != Some(tree.index) => {
                    tokio::time::sleep(MORE_TO_COME).await;
                    // As it is by now. The moment counts from here on only: this may be cut before.
                    let tree = self.tree(key, None).await.unwrap_or(tree);
                    heard(None);
                    *index = Some(tree.index);
                    return tree;
                }
                Ok(_) => {
                    heard(None);
                    pause = AGAIN[0];
                }
                Err(error) => {
                    heard(Some(&error));
                    *index = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN[1]);
                }
            }
        }
    }

    /// Makes all these changes, or none; they are one of [`parts`]. The error inside names the key that is not as it was read.
    pub async fn change(&self, changes: &[Change]) -> Result<Result<(), String>, ConsulError> {
        let action = match changes {
            [one] => format!("write {}", one.key),
            _ => format!("write {} keys", changes.len()),
        };
        let operations: Vec<serde_json::Value> = changes.iter().map(Change::as_operation).collect();
        let body = serde_json::to_vec(&operations).expect("texts");
        let answer = self.ask(Method::PUT, "/v1/txn", Some(body), &action).await?;
        if answer.status.as_u16() != 409 {
            return self.good(answer, &action).map(|_| Ok(()));
        }
        let address = || self.address().to_owned();
        let refused: Refused = self.read(&answer.body, &action)?;
        let Some(first) = refused.errors.into_iter().next() else {
            return Err(ConsulError::Answer { address: address(), action, status: 409, words: words(&answer.body) });
        };
        // A token that may not write is told in the same way as a key that has changed.
        if first.what.to_lowercase().contains("permission denied") {
            return Err(ConsulError::Refused { address: address(), action, words: first.what });
        }
        match changes.get(first.op_index) {
            Some(change) if first.what.contains("stale") => Ok(Err(change.key.clone())),
            _ => Err(ConsulError::Answer { address: address(), action, status: 409, words: first.what }),
        }
    }

    /// Writes a key, whatever was in it.
    pub async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), ConsulError> {
        let action = format!("write {key}");
        let answer = self.ask(Method::PUT, &format!("/v1/kv/{}", encoded(key)), Some(value), &action).await?;
        self.good(answer, &action).map(drop)
    }

    /// Removes a key; content where there is none.
    pub async fn delete(&self, key: &str) -> Result<(), ConsulError> {
        let action = format!("remove {key}");
        let answer = self.ask(Method::DELETE, &format!("/v1/kv/{}", encoded(key)), None, &action).await?;
        self.good(answer, &action).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_small_enough_and_nothing_is_lost(sizes in proptest::collection::vec(0_usize..300_000, 0..200)) {
            let change = |bytes: &usize| Change { key: "k".to_owned(), index: 1, value: Some(vec![0; *bytes / 1000]) };
            let changes: Vec<Change> = sizes.iter().map(change).collect();
            let parts = parts(&changes);
            prop_assert_eq!(parts.concat(), changes.clone());
            prop_assert!(parts.iter().all(|part| !part.is_empty() && part.len() <= AT_ONCE));
        }
    }

    #[test]
    fn large_values_go_alone() {
        let change = |bytes| Change { key: "k".to_owned(), index: 0, value: Some(vec![0; bytes]) };
        let changes = [change(BYTES_AT_ONCE + 1), change(1), change(BYTES_AT_ONCE - 1), change(1)];
        let parts: Vec<usize> = parts(&changes).into_iter().map(<[Change]>::len).collect();
        assert_eq!(parts, [1, 2, 1]);
    }
}
