//! Credentials that end while they are used, and where newer ones come from.
//!
//! ```text
//! control plane:  file or role ──looked at──▶ Renewable ──▶ its own stores
//!                                                 └─ one line on stdin ─▶ worker: Renewable ──▶ the worker's stores
//! ```
//! The service makes newer credentials of a role known minutes before the old ones end, so that a run may well begin with the
//! last minutes of some. A file is somebody else's to renew; it is read again now and then. What is in the environment of a
//! process does not change any more, and nothing is asked for it.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::{self, ProvideCredentials};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::error::Cause;
use super::{Credentials, Secret};

/// How long nothing is looked at again.
pub(crate) const LOOK: Duration = Duration::from_secs(10);
/// How long before credentials of a role end others are asked for.
const AHEAD: Duration = Duration::from_secs(10 * 60);

/// Credentials, and where newer ones come from. Clones share both; what travels to a worker is the newest.
#[derive(Clone)]
pub struct Renewable(Arc<Shared>);

struct Shared {
    source: Option<Source>,
    held: Mutex<Held>,
}

struct Held {
    fetched: Fetched,
    looked: Instant,
}

/// Credentials as they came from their source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) credentials: Credentials,
    /// When they end, where that is known.
    pub(super) end: Option<SystemTime>,
}

/// Where credentials come from that may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A file.
    File(PathBuf),
    /// The role of the instance; its metadata service, where it is not at its usual place.
    Instance(Option<String>),
}

impl Renewable {
    pub(super) fn new(fetched: Fetched, source: Option<Source>) -> Self {
        Self(Arc::new(Shared { source, held: Mutex::new(Held { fetched, looked: Instant::now() }) }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest that are known.
    pub fn newest(&self) -> Credentials {
        self.held().fetched.credentials.clone()
    }

    /// Newer ones have come.
    pub fn renew(&self, credentials: Credentials) {
        self.held().fetched = Fetched { credentials, end: None };
    }

    /// Whether this process can find newer ones.
    pub fn has_source(&self) -> bool {
        self.0.source.is_some()
    }

    /// Looks for newer ones where it is time to. The old ones stay where none can be had: they may be good still, and if
    /// not, the service says so. Asking for a role may take seconds.
    pub fn look(&self) {
        let Some(source) = &self.0.source else { return };
        {
            let mut held = self.held();
            if held.looked.elapsed() < LOOK {
                return;
            }
            held.looked = Instant::now();
            if !source.may_have_newer(held.fetched.end, SystemTime::now()) {
                return;
            }
        }
        self.fetch(source);
    }

    fn is_due(&self) -> bool {
        self.has_source() && self.held().looked.elapsed() >= LOOK
    }

    fn fetch(&self, source: &Source) {
        match source.fetch() {
            Ok(fetched) => {
                let mut held = self.held();
                if held.fetched.credentials != fetched.credentials {
                    tracing::info!(access_key = fetched.credentials.access_key, "newer credentials of the S3 service");
                }
                held.fetched = fetched;
            }
            Err(error) => tracing::debug!("no newer credentials of the S3 service: {error}"),
        }
    }
}

impl Source {
    /// Whether it is worth asking for others than those that end at `end`. Who wrote a file did not say when.
    fn may_have_newer(&self, end: Option<SystemTime>, now: SystemTime) -> bool {
        match self {
            Self::File(_) => true,
            Self::Instance(_) => end.is_none_or(|end| end < now + AHEAD),
        }
    }

    fn fetch(&self) -> Result<Fetched, Cause> {
        match self {
            Self::File(file) => {
                let credentials = super::access::credentials_in(&std::fs::read_to_string(file)?)?;
                Ok(Fetched { credentials, end: None })
            }
            Self::Instance(endpoint) => super::access::of_instance(endpoint.as_deref()),
        }
    }
}

impl From<Credentials> for Renewable {
    /// Credentials that nothing is known to renew.
    fn from(credentials: Credentials) -> Self {
        Self::new(Fetched { credentials, end: None }, None)
    }
}

impl fmt::Debug for Renewable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.newest().fmt(out)
    }
}

impl PartialEq for Renewable {
    fn eq(&self, other: &Self) -> bool {
        // The locks one after the other: both may be the same.
        let own = self.newest();
        own == other.newest()
    }
}

impl Eq for Renewable {}

impl Serialize for Renewable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.newest().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Renewable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Credentials::deserialize(deserializer).map(Self::from)
    }
}

/// Asked before every request: an attempt that is made again signs with what is newest then.
impl ProvideCredentials for Renewable {
    fn provide_credentials<'a>(&'a self) -> provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        provider::future::ProvideCredentials::new(async move {
            if self.is_due() {
                let renewable = self.clone();
                // The store's one thread goes on with other requests meanwhile.
                if let Err(error) = tokio::task::spawn_blocking(move || renewable.look()).await {
                    tracing::debug!(%error, "looking for newer credentials failed");
                }
            }
            let Credentials { access_key, secret_key, session_token } = self.newest();
            let token = session_token.as_ref().map(|token| Secret::reveal(token).to_owned());
            Ok(aws_credential_types::Credentials::new(access_key, secret_key.reveal(), token, None, "pglife"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(access_key: &str) -> Credentials {
        Credentials {
            access_key: access_key.to_owned(),
            secret_key: Secret::new("hunter2"),
            session_token: Some(Secret::new("hunter3")),
        }
    }

    #[test]
    fn what_travels_is_the_newest_and_clones_share_it() {
        let first = Renewable::from(credentials("first"));
        let clone = first.clone();
        clone.renew(credentials("second"));
        assert_eq!(first.newest().access_key, "second");
        let travelled: Renewable = serde_json::from_str(&serde_json::to_string(&first).expect("json")).expect("json");
        assert_eq!(travelled, first);
        first.renew(credentials("third"));
        assert_eq!(travelled.newest().access_key, "second", "the other process has to be told");
        assert!(!format!("{first:?}").contains("hunter"));
        assert!(!first.has_source());
    }

    #[test]
    fn a_role_is_asked_in_the_last_ten_minutes() {
        let now = SystemTime::now();
        let minutes = |minutes: u64| Some(now + Duration::from_secs(minutes * 60));
        let role = Source::Instance(None);
        assert!(!role.may_have_newer(minutes(11), now) && !role.may_have_newer(minutes(360), now));
        assert!(role.may_have_newer(minutes(9), now) && role.may_have_newer(Some(now), now));
        assert!(role.may_have_newer(Some(now - AHEAD), now) && role.may_have_newer(None, now));
        assert!(Source::File(PathBuf::new()).may_have_newer(minutes(360), now));
    }

    #[test]
    fn a_file_that_is_half_written_takes_nothing_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("credentials");
        let source = Source::File(file.clone());
        let held = Renewable::new(Fetched { credentials: credentials("first"), end: None }, Some(source.clone()));
        for text in [None, Some("[default]\naws_access_key_id = second\n")] {
            if let Some(text) = text {
                std::fs::write(&file, text).expect("written");
            }
            held.fetch(&source);
            assert_eq!(held.newest(), credentials("first"));
        }
        std::fs::write(&file, "[default]\naws_access_key_id = second\naws_secret_access_key = x\n").expect("written");
        held.look();
        assert_eq!(held.newest().access_key, "first", "it was looked at just now");
        held.fetch(&source);
        assert_eq!(held.newest().access_key, "second");
    }
}
