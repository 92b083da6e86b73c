//! Keys, sessions and locks.
//!
//! A lock is a key that a session holds. A session ends when nobody renews it for its TTL (in fact up to twice that); what it
//! held is free again after the lock-delay. A plain write goes through a lock, so whatever must be written by the holder alone
//! goes through [`Consul::put_as`].

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Consul, ConsulError, encoded, words};

/// How long a session lives without being renewed.
pub const TTL: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(10);
/// How long a lock stays closed after its session died.
const LOCK_DELAY: Duration = Duration::from_secs(15);

/// A session's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionId(String);

/// A key and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pair {
    /// The key.
    pub key: String,
    /// Its content, in base64.
    value: Option<String>,
    /// The session that holds it.
    session: Option<String>,
    /// Which change to it was the last; for [`Consul::change`].
    pub modify_index: u64,
}

impl Pair {
    /// Who holds it.
    pub fn holder(&self) -> Option<SessionId> {
        self.session.clone().map(SessionId)
    }

    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        self.value.as_deref().and_then(|value| STANDARD.decode(value).ok()).unwrap_or_default()
    }

    /// What is in it, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NewSession<'a> {
    name: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: &'static str,
}

impl Consul {
    /// Makes a session. It also ends with the health of its node: the agent's own checks are kept.
    pub async fn create_session(&self, name: &str) -> Result<SessionId, ConsulError> {
        let action = "make a session";
        let session = NewSession {
            name,
            ttl: format!("{}s", TTL.as_secs()),
            lock_delay: format!("{}s", LOCK_DELAY.as_secs()),
            behavior: "release",
        };
        let body = serde_json::to_vec(&session).expect("texts");
        let answer = self.ask(Method::PUT, "/v1/session/create", Some(body), action).await?;
        let created: Created = self.read(&self.good(answer, action)?, action)?;
        Ok(SessionId(created.id))
    }

    /// Renews a session; false when it is dead.
    pub async fn renew(&self, session: &SessionId) -> Result<bool, ConsulError> {
        let action = "renew a session";
        let answer = self.ask(Method::PUT, &format!("/v1/session/renew/{}", session.0), None, action).await?;
        if answer.status.as_u16() == 404 {
            return Ok(false);
        }
        self.good(answer, action).map(|_| true)
    }

    /// Ends a session.
    pub async fn destroy(&self, session: &SessionId) -> Result<(), ConsulError> {
        let action = "end a session";
        let answer = self.ask(Method::PUT, &format!("/v1/session/destroy/{}", session.0), None, action).await?;
        self.good(answer, action).map(drop)
    }

    /// Takes a lock; false when another session holds it, or when ours is dead.
    pub async fn acquire(&self, key: &str, session: &SessionId, value: &str) -> Result<bool, ConsulError> {
        let action = format!("take the lock {key}");
        let path = format!("/v1/kv/{}?acquire={}", encoded(key), session.0);
        let answer = self.ask(Method::PUT, &path, Some(value.as_bytes().to_vec()), &action).await?;
        if answer.status.as_u16() == 500 && words(&answer.body).contains("invalid session") {
            return Ok(false);
        }
        Ok(self.good(answer, &action)?.trim_ascii() == b"true")
    }

    /// Lets go of a lock. Its key stays.
    pub async fn release(&self, key: &str, session: &SessionId) -> Result<(), ConsulError> {
        let action = format!("let go of the lock {key}");
        let path = format!("/v1/kv/{}?release={}", encoded(key), session.0);
        let answer = self.ask(Method::PUT, &path, Some(Vec::new()), &action).await?;
        self.good(answer, &action).map(drop)
    }

    /// What is in a key; None where it is not there.
    pub async fn get(&self, key: &str) -> Result<Option<Pair>, ConsulError> {
        Ok(self.pairs(&format!("/v1/kv/{}", encoded(key)), key).await?.into_iter().next())
    }

    /// All keys below one.
    pub async fn list(&self, below: &str) -> Result<Vec<Pair>, ConsulError> {
        self.pairs(&format!("/v1/kv/{}/?recurse=true&consistent", encoded(below)), below).await
    }

    async fn pairs(&self, path: &str, key: &str) -> Result<Vec<Pair>, ConsulError> {
        let action = format!("read {key}");
        let answer = self.ask(Method::GET, path, None, &action).await?;
        if answer.status.as_u16() == 404 {
            return Ok(Vec::new());
        }
        self.read(&self.good(answer, &action)?, &action)
    }

    /// Writes a key, if `session` is alive; false when it is dead.
    pub async fn put_as(&self, session: &SessionId, key: &str, value: &str) -> Result<bool, ConsulError> {
        let action = format!("write {key}");
        let body = json!([
            { "KV": { "Verb": "check-session", "Key": self.key("leader"), "Session": session.0 } },
            { "KV": { "Verb": "set", "Key": key, "Value": STANDARD.encode(value) } },
        ]);
        let body = serde_json::to_vec(&body).expect("texts");
        let answer = self.ask(Method::PUT, "/v1/txn", Some(body), &action).await?;
        if answer.status.as_u16() == 409 {
            return Ok(false);
        }
        self.good(answer, &action).map(|_| true)
    }
}
