//! `pglife.toml`, validated: the state directory, the Docker hosts, the repositories. No I/O in here.
//!
//! Sections that belong to later versions are refused rather than ignored: a key that has no effect would be a lie.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::cluster::{HostName, InstanceName, RepoName};
use crate::encryption::Recipients;
use crate::policy::Duration;

pub mod file;
pub mod notify;

/// What one control plane works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder of `pglife.toml`: relative paths, in policies too, begin here.
    pub folder: PathBuf,
    /// Where the control plane keeps `state.db` and its locks.
    pub state_dir: PathBuf,
    /// Where the policies are.
    pub policies: Policies,
    /// The Docker engines.
    pub hosts: BTreeMap<HostName, Endpoint>,
    /// Where backups lie.
    pub repositories: BTreeMap<RepoName, Repository>,
    /// Who can open backups; None: they are not encrypted.
    pub encryption: Option<Encryption>,
    /// How the daemon works.
    pub daemon: Daemon,
    /// Where the daemon serves HTTP; `None`: nowhere.
    pub http: Option<SocketAddr>,
    /// The Consul agent; `None`: pglife works without.
    pub consul: Option<Consul>,
    /// Who is told what happens.
    pub notify: Vec<notify::Channel>,
    /// What is looked for that no policy covers.
    pub coverage: Coverage,
}

/// What is looked for that no policy covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// Servers on the Docker hosts.
    pub containers: bool,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { containers: true }
    }
}

/// Where the policies are: one document for each cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policies {
    /// A folder with `<cluster>.toml` files.
    Folder(PathBuf),
    /// Keys in Consul, below `<kv_prefix>/config/clusters`. There is a [`Settings::consul`] then.
    Consul,
}

/// How to reach a Consul agent, and what to do when it is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consul {
    /// `http://…` or `https://…`, without a slash at its end.
    pub address: String,
    /// The file with the ACL token.
    pub token_file: Option<PathBuf>,
    /// The certificates, as PEM, of the authorities that are trusted; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// What is shown to an agent that asks who calls (`verify_incoming`).
    pub client: Option<ClientCertificate>,
    /// What every key begins with; without slashes at its ends.
    pub kv_prefix: String,
    /// What happens while it does not answer.
    pub when_away: WhenAway,
    /// The name of the service under which databases are registered, where their policies ask for it.
    pub database_service: String,
}

impl Consul {
    /// That of an address, with what is usual for the rest.
    pub fn at(address: String) -> Self {
        Self {
            address,
            token_file: None,
            ca: None,
            client: None,
            kv_prefix: "pglife".to_owned(),
            when_away: WhenAway::default(),
            database_service: "postgres".to_owned(),
        }
    }
}

/// A client's certificate and its key; files, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, with those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What happens while Consul does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenAway {
    /// Work goes on, on this machine's own judgement: a backup twice is better than none.
    #[default]
    Run,
    /// Nothing begins.
    Wait,
}

impl std::str::FromStr for WhenAway {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "run" => Ok(Self::Run),
            "wait" => Ok(Self::Wait),
            _ => Err(format!("{text:?} is neither \"run\" nor \"wait\"")),
        }
    }
}

/// How the daemon works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its name among other daemons; `None`: the machine's.
    pub instance: Option<InstanceName>,
    /// Scheduled runs side by side on one Docker host.
    pub runs_per_host: NonZeroUsize,
    /// Scheduled runs side by side with one repository.
    pub runs_per_repository: NonZeroUsize,
    /// How long runs may go on when the daemon is asked to end, before they are asked to.
    pub stop_within: Duration,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            instance: None,
            runs_per_host: const { NonZeroUsize::new(2).expect("not zero") },
            runs_per_repository: const { NonZeroUsize::new(4).expect("not zero") },
            stop_within: Duration::from_secs(60),
        }
    }
}

impl Settings {
    /// Whether workers on `host` can reach the repository called `repository`: a bucket from anywhere, a folder where the engine
    /// is this machine's.
    pub fn is_within_reach(&self, host: &HostName, repository: &RepoName) -> bool {
        let elsewhere = matches!(self.hosts.get(host), Some(Endpoint::Tls { .. }));
        let folder = matches!(self.repositories.get(repository), Some(Repository::Local { .. }));
        !(elsewhere && folder)
    }

    /// The path that a key `written` in `pglife.toml` or a policy means.
    pub fn resolve(&self, written: &Path) -> PathBuf {
        self.folder.join(written)
    }
}

/// Encryption of every backup from now on. Sets that are there stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Whom backups are sealed to.
    pub recipients: Recipients,
    /// The file with a key that opens them: for restores and full verification. Backups do without, and so it need not be
    /// there.
    pub identity_file: Option<PathBuf>,
}

/// How to reach a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The engine on this machine: its socket.
    Unix(PathBuf),
    /// An engine elsewhere, by mutual TLS.
    Tls {
        /// `host:port`, an IPv6 address in brackets.
        address: String,
        /// The certificate of the authority that signed the engine's.
        ca: PathBuf,
        /// The client's certificate.
        cert: PathBuf,
        /// The client's key.
        key: PathBuf,
    },
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(socket) => write!(out, "unix://{}", socket.display()),
            Self::Tls { address, .. } => write!(out, "tcp://{address}"),
        }
    }
}

/// The socket of the engine on this machine, where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Where backup sets lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repository {
    /// A directory of the Docker host.
    Local {
        /// Its path, the same inside and outside of containers.
        path: PathBuf,
    },
    /// A bucket.
    S3(S3Repository),
}

/// A bucket and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Repository {
    /// The bucket's name.
    pub bucket: String,
    /// What every key begins with; without slashes at its ends, possibly empty.
    pub prefix: String,
    /// `http://…` or `https://…` of the service; `None`: Amazon's own.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The file with the access key and its secret.
    pub credentials_file: Option<PathBuf>,
    /// The certificates, as PEM, of authorities that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether the bucket's name is in the path of a request rather than in the host's name.
    pub path_style: bool,
    /// How long an object may not be deleted.
    pub object_lock: Option<Duration>,
    /// Who may lift that.
    pub object_lock_mode: LockMode,
}

impl std::fmt::Display for S3Repository {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(out, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

/// Who may lift the lock of an object: Amazon S3 User Guide, "Retention modes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockMode {
    /// Who has the permission to; pglife does not ask for it.
    #[default]
    Governance,
    /// Nobody.
    Compliance,
}

impl std::str::FromStr for LockMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "governance" => Ok(Self::Governance),
            "compliance" => Ok(Self::Compliance),
            _ => Err(format!("{text:?} is not a mode of Object Lock")),
        }
    }
}
