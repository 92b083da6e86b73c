//! Consul's HTTP API, as far as pglife needs it: services and their checks ([`service`]), keys, sessions and locks ([`session`]),
//! and keys below one ([`tree`]).
//!
//! Each call is one request with a limit of its own; nothing is retried here. The token is read from its file for each request,
//! so that it can be renewed, and travels in a header only.

pub mod service;
pub mod session;
pub mod tree;

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};

use crate::cluster::ClusterName;
use crate::exit::Exit;
use crate::settings;

/// How long a request may take. Consul's own agents answer in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why Consul did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    /// It does not answer.
    #[error("Consul at {address} does not answer")]
    Unreachable {
        /// Its address.
        address: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It refused the token, or has none.
    #[error("Consul at {address} refused to {action}: {words}")]
    Refused {
        /// Its address.
        address: String,
        /// What was tried.
        action: String,
        /// Its own words.
        words: String,
    },
    /// It answered something else than what was hoped for.
    #[error("Consul at {address} could not {action}: {status}: {words}")]
    Answer {
        /// Its address.
        address: String,
        /// What was tried.
        action: String,
        /// The status of the answer.
        status: u16,
        /// Its own words.
        words: String,
    },
    /// The answer cannot be read.
    #[error("what Consul at {address} answered to the attempt to {action} cannot be read")]
    Unreadable {
        /// Its address.
        address: String,
        /// What was tried.
        action: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A file that `[consul]` names cannot be used.
    #[error("the file {} that [consul] names cannot be used", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or a key cannot be used.
    #[error("a client for Consul cannot be made")]
    Client {
        /// Why.
        source: reqwest::Error,
    },
}

impl ConsulError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Answer { .. } | Self::Unreadable { .. } => Exit::Consul,
            Self::Refused { .. } => Exit::Credentials,
            Self::File { .. } | Self::Client { .. } => Exit::Usage,
        }
    }

    /// What to do next.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "see why the agent does not answer: consul members; or correct `address` in [consul], and `ca`, or `cert` and `key`, where it is about a certificate"
            }
            Self::Refused { .. } => "give the token the policy of docs/consul.md, or correct `token_file` in [consul]",
            Self::Answer { .. } | Self::Unreadable { .. } => "see what Consul says above, and its log",
            Self::File { .. } | Self::Client { .. } => {
                "correct `token_file`, `ca`, `cert` and `key` in [consul], or the files' owner and mode"
            }
        }
    }

    /// True where another attempt can help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Answer { .. } | Self::Unreadable { .. })
    }
}

/// A client of one agent.
#[derive(Debug)]
pub struct Consul {
    http: Client,
    settings: settings::Consul,
    /// Instead of the settings' file.
    token: Option<Token>,
}

/// What came back.
struct Answer {
    status: StatusCode,
    /// The moment of what was read.
    index: Option<u64>,
    body: Vec<u8>,
}

/// A token that is not in a file; never shown.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Token")
    }
}

impl Consul {
    /// A client for the agent of `[consul]`; nothing is asked yet.
    #[expect(clippy::disallowed_methods, reason = "this is Consul's one home")]
    pub fn new(settings: &settings::Consul) -> Result<Self, ConsulError> {
        // One for the process; whoever was first is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut builder = Client::builder()
            .timeout(PATIENCE)
            .connect_timeout(Duration::from_secs(3))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("pglife/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &settings.ca {
            let text = std::fs::read(file).map_err(|source| ConsulError::File { file: file.clone(), source })?;
            let authorities = reqwest::Certificate::from_pem_bundle(&text);
            builder = builder.tls_certs_only(authorities.map_err(|source| ConsulError::Client { source })?);
        } else if settings.address.starts_with("http://") {
            // Without TLS no authority is needed, and a machine may have none.
            builder = builder.tls_certs_only([]);
        }
        if let Some(client) = &settings.client {
            builder = builder.identity(identity(client)?);
        }
        let http = builder.build().map_err(|source| ConsulError::Client { source })?;
        Ok(Self { http, settings: settings.clone(), token: None })
    }

    /// With a token that is not in a file.
    #[must_use]
    pub fn with_token(self, token: Option<String>) -> Self {
        Self { token: token.map(Token), ..self }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.settings.address
    }

    /// The name of the service under which databases are registered.
    pub fn database_service(&self) -> &str {
        &self.settings.database_service
    }

    /// The id of the service of a cluster's database, where pglife registers it.
    pub fn database_service_id(&self, cluster: &ClusterName) -> String {
        format!("{}-{cluster}", self.settings.database_service)
    }

    /// A key below the prefix of all of pglife's.
    pub fn key(&self, below: &str) -> String {
        format!("{}/{below}", self.settings.kv_prefix)
    }

    fn token(&self) -> Result<Option<String>, ConsulError> {
        if let Some(Token(token)) = &self.token {
            return Ok(Some(token.clone()));
        }
        let Some(file) = &self.settings.token_file else { return Ok(None) };
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(source) => Err(ConsulError::File { file: file.clone(), source }),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        action: &str,
    ) -> Result<Answer, ConsulError> {
        self.ask_within(method, path, body, action, PATIENCE).await
    }

    async fn ask_within(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        action: &str,
        patience: Duration,
    ) -> Result<Answer, ConsulError> {
        let address = || self.settings.address.clone();
        let mut request = self.http.request(method, format!("{}{path}", self.settings.address)).timeout(patience);
        if let Some(token) = self.token()? {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        // The path can hold names of clusters, and the error repeats it; the action says it better.
        let unreachable =
            |source: reqwest::Error| ConsulError::Unreachable { address: address(), source: source.without_url() };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let index = response.headers().get("X-Consul-Index").and_then(|index| index.to_str().ok()?.parse().ok());
        let body = response.bytes().await.map_err(unreachable)?.to_vec();
        if status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED {
            let words = words(&body);
            return Err(ConsulError::Refused { address: address(), action: action.to_owned(), words });
        }
        Ok(Answer { status, index, body })
    }

    /// An answer that must be a success.
    fn good(&self, answer: Answer, action: &str) -> Result<Vec<u8>, ConsulError> {
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        Err(ConsulError::Answer {
            address: self.settings.address.clone(),
            action: action.to_owned(),
            status: answer.status.as_u16(),
            words: words(&answer.body),
        })
    }

    fn read<T: serde::de::DeserializeOwned>(&self, body: &[u8], action: &str) -> Result<T, ConsulError> {
        serde_json::from_slice(body).map_err(|source| ConsulError::Unreadable {
            address: self.settings.address.clone(),
            action: action.to_owned(),
            source,
        })
    }
}

/// What tells an agent who calls.
fn identity(client: &settings::ClientCertificate) -> Result<reqwest::Identity, ConsulError> {
    let mut pem = Vec::new();
    for file in [&client.cert, &client.key] {
        let text = std::fs::read(file).map_err(|source| ConsulError::File { file: file.clone(), source })?;
        pem.extend(text);
        pem.push(b'\n');
    }
    reqwest::Identity::from_pem(&pem).map_err(|source| ConsulError::Client { source })
}

/// What Consul says, short enough for a message.
fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().chars().take(300).collect()
}

/// A name as a part of a path.
fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_slashes_stay() {
        assert_eq!(encoded("pglife/state/a-b_c/x?recurse&é"), "pglife/state/a-b_c/x%3Frecurse%26%C3%A9");
    }
}
