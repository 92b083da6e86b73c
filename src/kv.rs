//! Policies in Consul's KV: `policies = "consul"`. One key below `<kv_prefix>/config/clusters` for each cluster, with the text
//! that a file `<cluster>.toml` would have.
//!
//! ```text
//!  Consul ──▶ documents ──▶ judge (pure) ──▶ valid? ──▶ Configuration, and a copy in the state directory
//!                              │ away, refused, or all of a sudden empty
//!                              └──────────▶ the copy, and what is stale about it
//! ```
//!
//! Invariants: what is copied was valid; a KV that is empty all of a sudden never takes the clusters away; whatever is written
//! was checked, and is written only over what was read.

mod copy;
pub mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::causes;
use crate::cluster::ClusterName;
use crate::configuration::{self, Configuration, ConfigurationError, Document, KEY, KEYS, Opened};
use crate::consul::tree::{Change, Tree};
use crate::consul::{Consul, ConsulError};
use crate::environment::settings::is_of_server;
use crate::exit::Exit;
use crate::settings::{Policies, Settings};

pub use copy::LastGood;

/// Texts by the names of their keys; they should be UTF-8, and the names those of clusters.
pub type Documents = BTreeMap<String, Vec<u8>>;

/// The configuration, and where its policies are from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings and every policy, checked.
    pub configuration: Configuration,
    /// Where the policies are from.
    pub source: Source,
}

/// Where policies are from.
#[derive(Debug)]
pub enum Source {
    /// A folder.
    Folder,
    /// Consul, at this moment.
    Consul {
        /// What was read.
        documents: Documents,
        /// The moment, to wait for the next change.
        index: u64,
    },
    /// The copy of what was in Consul.
    Copy {
        /// What it holds.
        documents: Documents,
        /// Why it is not Consul itself.
        stale: Stale,
    },
}

/// Why the policies are not what Consul says now; its text is for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// When the policies were last what Consul said.
    pub as_of: Timestamp,
    /// Why.
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl fmt::Display for Stale {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { as_of, why, next } = self;
        let as_of = as_of.strftime("%Y-%m-%dT%H:%M:%SZ");
        write!(out, "the policies of {as_of} go on, as they were last read from Consul: {why}; next: {next}")
    }
}

impl Stale {
    /// Consul does not answer, or does not let us read.
    pub fn away(as_of: Timestamp, error: &ConsulError) -> Self {
        Self { as_of, why: causes::chain(error), next: error.next().to_owned() }
    }

    /// Nothing is left of them.
    pub fn wiped(as_of: Timestamp, key: &str, copy: &Path) -> Self {
        Self {
            as_of,
            why: format!("no policy is left below {key}"),
            next: format!(
                "put them back: pglife config push DIR; if no cluster is meant to be left, delete {} and start the daemon again",
                copy.display()
            ),
        }
    }

    /// They are not valid.
    fn invalid(as_of: Timestamp, error: &ConfigurationError) -> Self {
        Self { as_of, why: error.to_string(), next: error.next().to_owned() }
    }
}

/// Why there are no policies from Consul, or none got there.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// What is there is not valid, or it is about files.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// Consul did not say, and there is no copy.
    #[error("the policies are in Consul, which cannot be asked, and there is no copy of them in {}", copy.display())]
    NoPolicies {
        /// Where a copy would be.
        copy: PathBuf,
        /// Why Consul did not say.
        source: ConsulError,
    },
    /// Consul did not do what was asked.
    #[error("Consul did not do it")]
    Consul(#[source] ConsulError),
    /// Somebody else was quicker.
    #[error("{key} was changed by somebody else meanwhile")]
    Changed {
        /// The key.
        key: String,
    },
    /// There is no such key.
    #[error("there is no key {key} in Consul")]
    Missing {
        /// The key.
        key: String,
    },
}

impl KvError {
    /// The exit code this error ends the process with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Configuration(error) => error.exit(),
            Self::NoPolicies { source, .. } | Self::Consul(source) => source.exit(),
            Self::Changed { .. } => Exit::LockBusy,
            Self::Missing { .. } => Exit::NotFound,
        }
    }

    /// What the operator does next.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Configuration(error) => error.next(),
            Self::NoPolicies { source, .. } | Self::Consul(source) => source.next(),
            Self::Changed { .. } => "see what is there now: pglife config show; then try again",
            Self::Missing { .. } => "see what is there: pglife config show; put it there: pglife config push DIR",
        }
    }
}

/// What becomes of policies in Consul that are not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInvalid {
    /// They are an error, as files are.
    Tell,
    /// The last good ones go on, where there are any.
    KeepLastGood,
}

/// Below which key the policies are.
pub fn folder(consul: &Consul) -> String {
    consul.key(KEYS)
}

fn key(consul: &Consul, cluster: &ClusterName) -> String {
    format!("{}/{cluster}", folder(consul))
}

/// The documents among these keys. What ends with a slash is how Consul's page makes a folder.
pub fn documents(tree: &Tree) -> Documents {
    tree.values().filter(|(name, _)| !name.ends_with('/') && !is_of_server(name)).collect()
}

/// Documents as the configuration reads them; `folder` is the key they are below.
pub fn as_read(folder: &str, documents: &Documents) -> Vec<Document> {
    let document = |(name, bytes): (&String, &Vec<u8>)| {
        Document::of_bytes(PathBuf::from(format!("{KEY}{folder}/{name}")), name.clone(), bytes.clone())
    };
    documents.iter().map(document).collect()
}

/// Reads the configuration: `pglife.toml` at `path` or where it is looked for, and the policies from wherever it says. What is in
/// Consul is copied into the state directory once it is known to be valid; while Consul is away, that copy counts.
pub async fn load(path: Option<&Path>, on_invalid: OnInvalid) -> Result<Loaded, KvError> {
    let opened = configuration::open(path)?;
    if let Some(folder) = opened.folder().map(Path::to_owned) {
        return Ok(Loaded { configuration: opened.with_folder(&folder)?, source: Source::Folder });
    }
    // Where pglife.toml has problems it may name another Consul than is meant.
    let settings = opened.settings()?.clone();
    let below = folder_of(&settings);
    let last = LastGood::of(&settings);
    let seen = match settings.consul.as_ref().map(Consul::new).transpose() {
        Ok(Some(consul)) => consul.tree(&below, None).await,
        Ok(None) => unreachable!("the settings have been checked"),
        Err(error) => Err(error),
    };
    let file = LastGood::file(&settings.state_dir);
    match judge(seen.map(|tree| (documents(&tree), tree.index)), last, &below, &file) {
        Chosen::Seen { documents, index, last } => match opened.clone().with(Ok(as_read(&below, &documents))) {
            Ok(configuration) => {
                keep(&settings, &documents, Timestamp::now());
                Ok(Loaded { configuration, source: Source::Consul { documents, index } })
            }
            Err(error) => match last {
                Some(last) if on_invalid == OnInvalid::KeepLastGood => {
                    let stale = Stale::invalid(last.as_of, &error);
                    from_copy(opened, &below, &last, stale)
                }
                _ => Err(error.into()),
            },
        },
        Chosen::Last { last, stale } => from_copy(opened, &below, &last, stale),
        Chosen::Nothing(source) => Err(KvError::NoPolicies { copy: file, source }),
    }
}

fn from_copy(opened: Opened, below: &str, last: &LastGood, stale: Stale) -> Result<Loaded, KvError> {
    let documents = last.documents();
    let configuration = opened.with(Ok(as_read(below, &documents)))?;
    Ok(Loaded { configuration, source: Source::Copy { documents, stale } })
}

fn folder_of(settings: &Settings) -> String {
    let prefix = settings.consul.as_ref().map_or("pglife", |consul| &consul.kv_prefix);
    format!("{prefix}/{KEYS}")
}

/// What counts.
#[derive(Debug)]
enum Chosen {
    /// What Consul says; `last` is there if that is not valid.
    Seen { documents: Documents, index: u64, last: Option<LastGood> },
    /// The copy.
    Last { last: LastGood, stale: Stale },
    /// There is neither.
    Nothing(ConsulError),
}

/// What counts, of what Consul says now and what it said last. A KV that lost everything is not believed.
fn judge(seen: Result<(Documents, u64), ConsulError>, last: Option<LastGood>, below: &str, copy: &Path) -> Chosen {
    match (seen, last) {
        (Ok((documents, _)), Some(last)) if is_wiped(&documents, &last.documents()) => {
            let stale = Stale::wiped(last.as_of, below, copy);
            Chosen::Last { last, stale }
        }
        (Ok((documents, index)), last) => Chosen::Seen { documents, index, last },
        (Err(error), Some(last)) => {
            let stale = Stale::away(last.as_of, &error);
            Chosen::Last { last, stale }
        }
        (Err(error), None) => Chosen::Nothing(error),
    }
}

/// Whether all is gone that there was.
pub fn is_wiped(now: &Documents, before: &Documents) -> bool {
    now.is_empty() && !before.is_empty()
}

/// Copies documents that are known to be valid. That it fails is no reason not to work: it is logged.
pub fn keep(settings: &Settings, documents: &Documents, now: Timestamp) {
    if let Err(error) = LastGood::keep(&settings.state_dir, &folder_of(settings), documents, now) {
        let file = LastGood::file(&settings.state_dir);
        tracing::warn!("the policies from Consul cannot be copied to {}: {error}", file.display());
    }
}

/// The text of a cluster's policy, as it is now. While Consul is away, that of the copy: whoever changes it will be told.
pub async fn policy_text(
    settings: &Settings,
    consul: Option<&Consul>,
    cluster: &ClusterName,
) -> Result<String, KvError> {
    let consul = match (&settings.policies, consul) {
        (Policies::Folder(folder), _) => return Ok(configuration::policy_text(folder, cluster)?),
        (Policies::Consul, consul) => consul.expect("the settings have been checked"),
    };
    let key = key(consul, cluster);
    match consul.get(&key).await {
        Ok(Some(pair)) => Ok(pair.text()),
        Ok(None) => Err(KvError::Missing { key }),
        Err(error) => {
            let last = LastGood::of(settings);
            let text = last.and_then(|mut last| last.texts.remove(cluster.as_str()));
            let text = text.ok_or(KvError::Consul(error))?;
            tracing::warn!("{key} cannot be read; its copy counts");
            Ok(text)
        }
    }
}

/// Whether a policy for `cluster` could be written now: asked before work that takes hours.
pub async fn may_write(settings: &Settings, consul: Option<&Consul>, cluster: &ClusterName) -> Result<(), KvError> {
    let (Policies::Consul, Some(consul)) = (&settings.policies, consul) else { return Ok(()) };
    let key = key(consul, cluster);
    match consul.get(&key).await.map_err(KvError::Consul)? {
        None => Ok(()),
        Some(_) => Err(exists(&key)),
    }
}

fn exists(key: &str) -> KvError {
    ConfigurationError::PolicyExists { file: PathBuf::from(format!("{KEY}{key}")) }.into()
}

/// Writes a new policy where the policies are, never over another one, and says where. Does not check it.
pub async fn write_policy(
    settings: &Settings,
    consul: Option<&Consul>,
    cluster: &ClusterName,
    text: &str,
) -> Result<PathBuf, KvError> {
    let consul = match (&settings.policies, consul) {
        (Policies::Folder(folder), _) => return Ok(configuration::write_policy(folder, cluster, text)?),
        (Policies::Consul, consul) => consul.expect("the settings have been checked"),
    };
    let key = key(consul, cluster);
    let change = Change { key: key.clone(), index: 0, value: Some(text.as_bytes().to_vec()) };
    match consul.change(&[change]).await.map_err(KvError::Consul)? {
        Ok(()) => {
            keep_one(settings, cluster, text);
            Ok(PathBuf::from(format!("{KEY}{key}")))
        }
        Err(key) => Err(exists(&key)),
    }
}

/// Replaces a policy that was `old` by a text that was checked, where the policies are.
pub async fn replace_policy(
    settings: &Settings,
    consul: Option<&Consul>,
    cluster: &ClusterName,
    old: &str,
    new: &str,
) -> Result<(), KvError> {
    let consul = match (&settings.policies, consul) {
        (Policies::Folder(folder), _) => return Ok(configuration::replace_policy(folder, cluster, new)?),
        (Policies::Consul, consul) => consul.expect("the settings have been checked"),
    };
    let key = key(consul, cluster);
    let there = consul.get(&key).await.map_err(KvError::Consul)?;
    let Some(there) = there.filter(|there| there.text() == old) else { return Err(KvError::Changed { key }) };
    let change = Change { key, index: there.modify_index, value: Some(new.as_bytes().to_vec()) };
    match consul.change(&[change]).await.map_err(KvError::Consul)? {
        Ok(()) => {
            keep_one(settings, cluster, new);
            Ok(())
        }
        Err(key) => Err(KvError::Changed { key }),
    }
}

/// The copy has what this process wrote itself.
fn keep_one(settings: &Settings, cluster: &ClusterName, text: &str) {
    let last = LastGood::of(settings);
    let mut documents = last.map(|last| last.documents()).unwrap_or_default();
    documents.insert(cluster.to_string(), text.as_bytes().to_vec());
    keep(settings, &documents, Timestamp::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(names: &[&str]) -> Documents {
        names.iter().map(|name| ((*name).to_owned(), b"[cluster]\nmajor = '17'\n".to_vec())).collect()
    }

    fn last(names: &[&str]) -> LastGood {
        let folder = tempfile::tempdir().expect("a folder");
        let then: Timestamp = "2026-11-26T03:00:00Z".parse().expect("a time");
        LastGood::keep(folder.path(), "pglife/config/clusters", &documents(names), then).expect("kept");
        LastGood::read(folder.path(), "pglife/config/clusters").expect("there")
    }

    fn away() -> ConsulError {
        ConsulError::Answer { address: "http://c".into(), action: "read it".into(), status: 500, words: "x".into() }
    }

    fn judged(seen: Result<(Documents, u64), ConsulError>, last: Option<LastGood>) -> Chosen {
        judge(seen, last, "pglife/config/clusters", Path::new("state/policies-from-consul.json"))
    }

    #[test]
    fn what_consul_says_counts_unless_all_is_gone() {
        let chosen = judged(Ok((documents(&["b"]), 7)), Some(last(&["a", "b"])));
        assert!(matches!(chosen, Chosen::Seen { index: 7, .. }), "{chosen:?}");
        let chosen = judged(Ok((documents(&[]), 7)), None);
        assert!(matches!(chosen, Chosen::Seen { .. }), "the first start, with nothing there yet: {chosen:?}");
        let chosen = judged(Ok((documents(&[]), 7)), Some(last(&[])));
        assert!(matches!(chosen, Chosen::Seen { .. }), "{chosen:?}");
        let Chosen::Last { last, stale } = judged(Ok((documents(&[]), 7)), Some(last(&["a"]))) else { panic!("wiped") };
        assert_eq!(last.documents(), documents(&["a"]));
        insta::assert_snapshot!(stale, @"the policies of 2026-11-26T03:00:00Z go on, as they were last read from Consul: no policy is left below pglife/config/clusters; next: put them back: pglife config push DIR; if no cluster is meant to be left, delete state/policies-from-consul.json and start the daemon again");
    }

    #[test]
    fn while_consul_is_away_the_copy_counts() {
        let Chosen::Last { stale, .. } = judged(Err(away()), Some(last(&["a"]))) else { panic!("away") };
        insta::assert_snapshot!(stale, @"the policies of 2026-11-26T03:00:00Z go on, as they were last read from Consul: Consul at http://c could not read it: 500: x; next: see what Consul says above, and its log");
        let Chosen::Nothing(error) = judged(Err(away()), None) else { panic!("nothing") };
        let error = KvError::NoPolicies { copy: "c.json".into(), source: error };
        assert_eq!(error.exit(), Exit::Consul);
    }
}
