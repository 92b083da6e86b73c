//! Tells others what happens: webhooks, chats, and watchers that want a ping for each run.
//!
//! What is news is decided in [`news`], which is pure: a state is told when it changes, and again when it is over. Here is how it is
//! said to whom, one attempt at a time; whoever calls decides whether to try again. A URL is often as good as a password: it is in no
//! message and no log.

pub mod news;

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::Client;
use serde::Serialize;
use sha2::Sha256;

use crate::exit::Exit;
use crate::settings::notify::{Channel, ChannelKind, Place};

use news::Notice;

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// What watchers take of a run's words; healthchecks.io keeps 100 KB.
const LONGEST_BODY: usize = 10 << 10;

/// Why somebody was not told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// A file that `[[notify]]` names cannot be read.
    #[error("the file {file} of [[notify]] \"{channel}\" cannot be read")]
    File {
        /// The channel's name.
        channel: String,
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It does not answer.
    #[error("[[notify]] \"{channel}\" does not answer")]
    Unreachable {
        /// The channel's name.
        channel: String,
        /// Why, without the URL.
        source: reqwest::Error,
    },
    /// It refuses.
    #[error("[[notify]] \"{channel}\" answers {status}: {words}")]
    Answer {
        /// The channel's name.
        channel: String,
        /// The status of the answer.
        status: u16,
        /// Its own words.
        words: String,
    },
}

impl NotifyError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File { .. } => Exit::Usage,
            Self::Unreachable { .. } | Self::Answer { .. } => Exit::Failed,
        }
    }

    /// True where another attempt can help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::File { .. } => false,
            Self::Unreachable { .. } => true,
            Self::Answer { status, .. } => *status >= 500 || *status == 429 || *status == 408,
        }
    }
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parcel {
    /// News.
    Notice(Notice),
    /// How far a run is.
    Ping {
        /// Where it stands.
        stage: Stage,
        /// The same for start and end of one run: a UUID.
        run: String,
        /// What came of it.
        text: String,
    },
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It begins.
    Start,
    /// It ended well.
    Success,
    /// It did not.
    Fail,
}

/// The form in which webhooks get news.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hook<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    notice: &'a Notice,
}

/// Says it to `channel`, once.
#[expect(clippy::disallowed_methods, reason = "this is the home of what is said to others")]
pub async fn deliver(channel: &Channel, parcel: &Parcel) -> Result<(), NotifyError> {
    let name = || channel.name.clone();
    let file = |path: &std::path::Path| {
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|source| NotifyError::File {
            channel: name(),
            file: path.display().to_string(),
            source,
        })
    };
    let url = match &channel.url {
        Place::Written(url) => url.clone(),
        Place::File(path) => file(path)?,
    };
    let (path, body, json) = match parcel {
        Parcel::Notice(notice) => ("", content(channel.kind, notice), channel.kind != ChannelKind::Healthchecks),
        Parcel::Ping { stage, text, .. } => (path_of(*stage), shortened(text).as_bytes().to_vec(), false),
    };
    // One for the process; whoever was first is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut builder = Client::builder()
        .timeout(PATIENCE)
        .connect_timeout(Duration::from_secs(5))
        .user_agent(concat!("pglife/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("http://") {
        // Without TLS no authority is needed, and a machine may have none.
        builder = builder.tls_certs_only([]);
    }
    let unreachable =
        |source: reqwest::Error| NotifyError::Unreachable { channel: name(), source: source.without_url() };
    let client = builder.build().map_err(unreachable)?;
    let url = url.trim_end_matches('/');
    let mut request = match parcel {
        // healthchecks.io, "Pinging API": the same id for start and end makes one run of them.
        Parcel::Ping { run, .. } => client.post(format!("{url}{path}?rid={run}")),
        Parcel::Notice(notice) => client.post(url).header("Idempotency-Key", &notice.id),
    };
    if json {
        request = request.header("Content-Type", "application/json");
    }
    if let Some(secret) = channel.secret_file.as_deref().map(file).transpose()? {
        request = request.header("X-Pglife-Signature", format!("sha256={}", signature(secret.as_bytes(), &body)));
    }
    let response = request.body(body).send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let words = response.text().await.unwrap_or_default();
    Err(NotifyError::Answer {
        channel: name(),
        status: status.as_u16(),
        words: words.trim().chars().take(200).collect(),
    })
}

fn path_of(stage: Stage) -> &'static str {
    match stage {
        Stage::Start => "/start",
        Stage::Success => "",
        Stage::Fail => "/fail",
    }
}

fn content(kind: ChannelKind, notice: &Notice) -> Vec<u8> {
    let text = || notice.to_string();
    match kind {
        ChannelKind::Webhook => {
            let hook = Hook { api_version: "pglife/v1", kind: "Notice", notice };
            serde_json::to_vec(&hook).expect("texts")
        }
        ChannelKind::Slack => serde_json::to_vec(&serde_json::json!({ "text": text() })).expect("texts"),
        ChannelKind::Healthchecks => text().into_bytes(),
    }
}

/// The end of it: what went wrong stands there.
fn shortened(text: &str) -> &str {
    let start = text.len().saturating_sub(LONGEST_BODY);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}

/// HMAC-SHA256 of RFC 2104, in hexadecimal.
fn signature(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(body);
    let mut text = String::with_capacity(64);
    for byte in mac.finalize().into_bytes() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A notice for those who want to see that they are told.
pub fn trial(instance: &str, now: Timestamp) -> Notice {
    Notice {
        id: format!("test-{now}"),
        at: now,
        instance: instance.to_owned(),
        cluster: None,
        event: "notify.test".to_owned(),
        text: "this is a test: somebody ran pglife notify test".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_standard() {
        // RFC 4231, test case 2.
        let known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), known);
    }

    #[test]
    fn the_end_of_long_words_is_kept_whole() {
        let long = format!("{}the end ä", "ä".repeat(LONGEST_BODY));
        assert!(shortened(&long).len() <= LONGEST_BODY && shortened(&long).ends_with("the end ä"));
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn each_kind_gets_what_it_understands() {
        let notice = trial("here", Timestamp::UNIX_EPOCH);
        let hook: serde_json::Value = serde_json::from_slice(&content(ChannelKind::Webhook, &notice)).expect("JSON");
        assert_eq!((&hook["apiVersion"], &hook["event"]), (&"pglife/v1".into(), &"notify.test".into()));
        let slack: serde_json::Value = serde_json::from_slice(&content(ChannelKind::Slack, &notice)).expect("JSON");
        assert!(slack["text"].as_str().expect("text").contains("this is a test"));
    }
}
