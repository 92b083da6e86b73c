//! Plain keys below one, read at once, and waited for.

use std::time::Duration;

use reqwest::Method;

use super::session::Pair;
use super::{Consul, ConsulError, PATIENCE, encoded};

/// How long Consul keeps a question that nothing has an answer to yet. It adds a sixteenth.
const HOLD: Duration = Duration::from_secs(50);

/// Keys of one moment.
#[derive(Debug)]
pub struct Tree {
    /// What follows the key they are below, and what is in each.
    pub keys: Vec<(String, Vec<u8>)>,
    /// The moment, to ask for what comes after it.
    pub index: u64,
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
            Some((name, pair.bytes()))
        });
        Ok(Tree { keys: keys.collect(), index })
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
