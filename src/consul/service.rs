//! Services and their checks at the agent.
//!
//! The agent is the authority: its anti-entropy brings the catalogue in line (Consul documentation, "Anti-Entropy"). A TTL check
//! turns critical by itself when nobody speaks for it any more.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Consul, ConsulError, encoded};

/// A service as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// Its id; no colon in it, so that registrator does not take it for one of its own.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Facts that do not change.
    pub meta: BTreeMap<String, String>,
    /// Where it is; empty: where the agent is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Its port; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u16,
    /// Its checks.
    pub checks: Vec<CheckRegistration>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// A check as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckRegistration {
    /// Its id.
    #[serde(rename = "CheckID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is about, for people.
    pub notes: String,
    /// How it is before anybody spoke for it.
    pub status: Status,
    /// How it is done.
    #[serde(flatten)]
    pub kind: CheckKind,
}

/// How a check is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CheckKind {
    /// Somebody speaks for it, at least so often.
    Ttl {
        /// A duration as Consul reads it: `120s`.
        #[serde(rename = "TTL")]
        ttl: String,
    },
    /// The agent connects to an address.
    Tcp {
        /// The address and the port.
        #[serde(rename = "TCP")]
        address: String,
        /// How often.
        #[serde(rename = "Interval")]
        interval: String,
        /// How long it waits.
        #[serde(rename = "Timeout")]
        timeout: String,
    },
    /// The agent asks an address.
    Http {
        /// The address.
        #[serde(rename = "HTTP")]
        url: String,
        /// How often.
        #[serde(rename = "Interval")]
        interval: String,
        /// How long it waits.
        #[serde(rename = "Timeout")]
        timeout: String,
    },
}

/// What becomes of checks that a service has and its registration does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They go.
    Go,
    /// They stay.
    Stay,
}

/// How a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Well.
    Passing,
    /// Not well.
    Warning,
    /// Bad.
    Critical,
}

/// A service as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    /// Its name.
    pub service: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Facts that do not change.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// Where it is; empty: where the agent is.
    #[serde(default)]
    pub address: String,
    /// Its port.
    #[serde(default)]
    pub port: u16,
}

/// A check as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// The service it is of.
    #[serde(rename = "ServiceID")]
    pub service: String,
    /// How it is.
    pub status: Status,
    /// Why.
    #[serde(default)]
    pub output: String,
    /// What it is about; of a maintenance, its reason.
    #[serde(default)]
    pub notes: String,
}

/// The id of the check that a service in maintenance has.
pub fn maintenance_check(service: &str) -> String {
    format!("_service_maintenance:{service}")
}

/// What is said of a check.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Update<'a> {
    status: Status,
    output: &'a str,
}

impl Consul {
    /// Registers a service, with exactly these checks or beside what others check of it, a maintenance for example.
    pub async fn register(&self, registration: &Registration, others: Others) -> Result<(), ConsulError> {
        let action = format!("register the service {}", registration.id);
        let body = serde_json::to_vec(registration).expect("texts and numbers");
        let path = match others {
            Others::Go => "/v1/agent/service/register?replace-existing-checks=true",
            Others::Stay => "/v1/agent/service/register",
        };
        let answer = self.ask(Method::PUT, path, Some(body), &action).await?;
        self.good(answer, &action).map(drop)
    }

    /// Takes a service and its checks away; content when it is not there.
    pub async fn deregister(&self, id: &str) -> Result<(), ConsulError> {
        let action = format!("deregister the service {id}");
        let answer =
            self.ask(Method::PUT, &format!("/v1/agent/service/deregister/{}", encoded(id)), None, &action).await?;
        // Newer versions answer so to what they do not know.
        if answer.status.as_u16() == 404 {
            return Ok(());
        }
        self.good(answer, &action).map(drop)
    }

    /// Takes a service out of what others find, for a `reason`; without one it is found again. False: there is no such service.
    pub async fn maintain(&self, id: &str, reason: Option<&str>) -> Result<bool, ConsulError> {
        let action = format!("change the maintenance of the service {id}");
        let path = match reason {
            Some(reason) => format!("{}?enable=true&reason={}", encoded(id), encoded(reason)),
            None => format!("{}?enable=false", encoded(id)),
        };
        let answer = self.ask(Method::PUT, &format!("/v1/agent/service/maintenance/{path}"), None, &action).await?;
        if answer.status.as_u16() == 404 {
            return Ok(false);
        }
        self.good(answer, &action).map(|_| true)
    }

    /// The services of the agent, by id.
    pub async fn services(&self) -> Result<BTreeMap<String, Service>, ConsulError> {
        let action = "list the agent's services";
        let answer = self.ask(Method::GET, "/v1/agent/services", None, action).await?;
        self.read(&self.good(answer, action)?, action)
    }

    /// The checks of the agent, by id.
    pub async fn checks(&self) -> Result<BTreeMap<String, Check>, ConsulError> {
        let action = "list the agent's checks";
        let answer = self.ask(Method::GET, "/v1/agent/checks", None, action).await?;
        self.read(&self.good(answer, action)?, action)
    }

    /// Speaks for a TTL check; false where the agent does not know it (500 in 1.8, 404 in newer versions).
    pub async fn update(&self, check: &str, status: Status, output: &str) -> Result<bool, ConsulError> {
        let action = format!("update the check {check}");
        let output: String = output.replace('\n', " ").chars().take(1000).collect();
        let body = serde_json::to_vec(&Update { status, output: &output }).expect("texts");
        let answer =
            self.ask(Method::PUT, &format!("/v1/agent/check/update/{}", encoded(check)), Some(body), &action).await?;
        match answer.status.as_u16() {
            404 => Ok(false),
            500 if super::words(&answer.body).contains("TTL") => Ok(false),
            _ => self.good(answer, &action).map(|_| true),
        }
    }
}
