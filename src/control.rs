//! What every operation of the control plane needs: the configuration, its state, the engines, the repository, and a *run*
//! with its locks, its record and its cleaning up.
//!
//! ```text
//! begin: lock the cluster ─▶ bury dead runs, of other clusters too ─▶ record the run ─▶ sweep orphans
//!   … the operation; whatever it makes is recorded before it is made …
//! end:   record how it ended ─▶ let go of the locks          (a process that dies skips this; the next begin does it)
//! ```

mod advice;
pub mod catalogue;
mod cleanup;
mod keys;
mod lock;
mod policies;
mod repositories;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::backup_set::SetId;
use crate::cluster::{ClusterName, HostName, RepoName};
use crate::configuration::Configuration;
use crate::consul::Consul;
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, DockerError, Engine};
use crate::exit::Exit;
use crate::policy::{self, Policy};
use crate::postgres::{Login, Password};
use crate::settings;
use crate::state::{HeldLock, Made, Operation, State, Thing};
use crate::storage::{self, Location};

pub use cleanup::sweep;
pub use lock::LockHeld;
pub use repositories::{Found, Held, Holdings, Repositories, or_elsewhere};
pub use workers::{Reach, ask_server, close_worker, start_worker, worker_threads};

/// Why an operation did not do what was asked, for the one who has to act on it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct OperationError {
    /// What failed, on which cluster.
    pub what: String,
    /// How the process ends.
    pub exit: Exit,
    /// What is still as it was.
    pub safe: Option<String>,
    /// What to do next.
    pub next: Option<String>,
    /// Why it failed.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl OperationError {
    /// A refusal or failure that has no cause below it.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { what: what.into(), exit, safe: None, next: None, source: None }
    }

    /// With what is still safe, unless something nearer to the cause said so already.
    #[must_use]
    pub fn safe(mut self, safe: impl Into<String>) -> Self {
        self.safe.get_or_insert_with(|| safe.into());
        self
    }

    /// With what to do next, unless something nearer to the cause said so already.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next.get_or_insert_with(|| next.into());
        self
    }

    /// The message and its causes, each once, on one line: for the record of the run.
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let words = cause.to_string();
            if !text.contains(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            source = cause.source();
        }
        text
    }
}

/// An error of an adapter that knows its exit code and perhaps what to do next.
pub trait Advise: std::error::Error + Send + Sync + 'static {
    /// How the process ends when this is what stopped it.
    fn exit(&self) -> Exit;
    /// What to do next.
    fn next(&self) -> Option<String> {
        None
    }
}

/// `what` failed because of an adapter's error.
pub fn failed<E: Advise>(what: impl Into<String>) -> impl FnOnce(E) -> OperationError {
    let what = what.into();
    move |error| OperationError {
        what,
        exit: error.exit(),
        safe: None,
        next: error.next(),
        source: Some(Box::new(error)),
    }
}

/// What an operation tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tick {
    /// A step begins.
    Step(String),
    /// Bytes that passed since the step began; how many are expected, where that is known.
    Bytes {
        /// Before the codec.
        plain: u64,
        /// In the repository.
        stored: u64,
        /// The estimate for `plain`.
        expected: Option<u64>,
    },
    /// Something the operator should read.
    Warning(String),
}

/// Where an operation tells what it does.
pub type Progress<'a> = &'a (dyn Fn(Tick) + Send + Sync);

/// The control plane: one configuration, one state directory.
#[derive(Debug)]
pub struct ControlPlane {
    /// The settings and policies.
    pub configuration: Configuration,
    /// The runs and locks.
    pub state: State,
    /// The Consul agent, if there is one.
    pub consul: Option<Arc<Consul>>,
    /// Fires when the operator or a signal asks to stop.
    pub cancel: CancellationToken,
}

impl ControlPlane {
    /// Opens the state of `configuration`.
    pub fn open(configuration: Configuration, cancel: CancellationToken) -> Result<Self, OperationError> {
        let state = State::open(&configuration.settings.state_dir).map_err(|error| {
            failed("pglife cannot start")(error).next("correct `state_dir` in pglife.toml, or its owner and mode")
        })?;
        let consul = configuration.settings.consul.as_ref().map(Consul::new).transpose();
        let consul = consul.map_err(failed("pglife cannot start"))?.map(Arc::new);
        Ok(Self { configuration, state, consul, cancel })
    }

    /// Connects to the Docker engine called `host`.
    pub async fn engine(&self, host: &HostName) -> Result<Engine, DockerError> {
        // The configuration has checked that policies name known hosts; a recorded one may be gone since.
        let local = settings::Endpoint::Unix(settings::DEFAULT_SOCKET.into());
        Engine::connect(host, self.configuration.settings.hosts.get(host).unwrap_or(&local)).await
    }

    /// How the repository called `name` is reached, secrets included.
    pub fn location(&self, name: &RepoName) -> Result<Location, OperationError> {
        match self.configuration.settings.repositories.get(name) {
            Some(settings::Repository::Local { path }) => Ok(Location::Local { folder: path.clone() }),
            Some(settings::Repository::S3(bucket)) => {
                let reached = storage::s3::reach(bucket, &storage::s3::Environment::of_process());
                reached.map(Location::S3).map_err(failed(format!("repository \"{name}\" cannot be used")))
            }
            None => Err(self.no_repository(name)),
        }
    }

    /// What to say where `name` is not a repository of pglife.toml.
    pub fn no_repository(&self, name: &RepoName) -> OperationError {
        let known: Vec<&str> = self.configuration.settings.repositories.keys().map(RepoName::as_str).collect();
        OperationError::new(
            Exit::NotFound,
            format!("there is no repository \"{name}\" in pglife.toml; configured: {}", known.join(", ")),
        )
    }

    /// Begins a run on `cluster`: what died before is cleaned up first, and nobody else may work on the cluster meanwhile.
    pub async fn begin(
        &self,
        operation: Operation,
        cluster: &ClusterName,
        engine: &Engine,
    ) -> Result<Run<'_>, OperationError> {
        let run = self.begin_without_engine(operation, cluster).await?;
        let what = || format!("{} of cluster \"{cluster}\" did not begin", operation.as_str());
        sweep(engine, &self.state).await.map_err(failed(what()))?;
        Ok(run)
    }

    /// Begins a run that needs the repository alone: it goes on while Docker is down.
    pub async fn begin_without_engine(
        &self,
        operation: Operation,
        cluster: &ClusterName,
    ) -> Result<Run<'_>, OperationError> {
        let what = || format!("{} of cluster \"{cluster}\" did not begin", operation.as_str());
        let now = Timestamp::now();
        self.bury_dead_runs().await?;
        let lock = self.state.lock_cluster(cluster, operation, now).map_err(failed(what()))?;
        self.not_in_an_upgrade(operation, cluster, &what())?;
        let everywhere = lock::take(self, &operation.locks(cluster), operation, &what()).await?;
        let id = new_run_id(now);
        let alive = self.state.begin_run(&id, cluster, operation, now).map_err(failed(what()))?;
        tracing::info!(run = id, %cluster, operation = operation.as_str(), "run begins");
        Ok(Run {
            control: self,
            id,
            operation,
            cluster: cluster.clone(),
            started_at: now,
            everywhere,
            _cluster_lock: Some(lock),
            _alive: alive,
        })
    }

    /// Begins a run that only reads: others may work on the cluster meanwhile.
    pub fn begin_reading(&self, operation: Operation, cluster: &ClusterName) -> Result<Run<'_>, OperationError> {
        let now = Timestamp::now();
        let id = new_run_id(now);
        let what = format!("{} of cluster \"{cluster}\" did not begin", operation.as_str());
        let alive = self.state.begin_run(&id, cluster, operation, now).map_err(failed(what))?;
        Ok(Run {
            control: self,
            id,
            operation,
            cluster: cluster.clone(),
            started_at: now,
            everywhere: None,
            _cluster_lock: None,
            _alive: alive,
        })
    }

    /// While an upgrade is open, its resume is the only thing that may touch the cluster; and what it put aside is removed by
    /// `finalize` only. A drill touches the repository and its own server alone.
    fn not_in_an_upgrade(&self, operation: Operation, cluster: &ClusterName, what: &str) -> Result<(), OperationError> {
        let Some(last) = self.state.last_upgrade(cluster).map_err(failed(what))? else { return Ok(()) };
        let (exit, why, next) = match (last.phase.as_str(), operation) {
            (_, Operation::Upgrade | Operation::Drill | Operation::Rehearsal) => return Ok(()),
            _ if last.is_open() => (
                Exit::LockBusy,
                "an upgrade or a restore in place of it is open: it was cut, and must be carried to an end first",
                format!("pglife upgrade resume {cluster}"),
            ),
            ("upgraded", Operation::Remove) => (
                Exit::Refused,
                "the server before its last upgrade or restore in place is still kept",
                format!("pglife upgrade finalize {cluster} --yes, or pglife upgrade rollback {cluster}"),
            ),
            _ => return Ok(()),
        };
        Err(OperationError::new(exit, format!("{what}: {why}")).safe("nothing was touched").next(next))
    }

    /// How a worker enters the server of `policy`: the way in, and what it must mount for it.
    pub fn login(&self, policy: &Policy, container: &Container) -> Result<(Login, Vec<WorkerMount>), OperationError> {
        let what = || format!("cluster \"{}\" cannot be entered", policy.name);
        match &policy.login {
            policy::Login::Socket { user } => {
                let mount = container.mount_of(SOCKET_FOLDER).ok_or_else(|| {
                    OperationError::new(Exit::Usage, what()).next(format!(
                        "container \"{}\" keeps no volume at {SOCKET_FOLDER}; give the policy `user` and `password_file`",
                        container.name
                    ))
                })?;
                let mount = WorkerMount {
                    source: mount.source.clone(),
                    destination: mount.destination.clone(),
                    writable: false,
                };
                let login = Login {
                    host: SOCKET_FOLDER.to_owned(),
                    port: policy.port.get(),
                    user: user.clone(),
                    password: None,
                };
                Ok((login, vec![mount]))
            }
            policy::Login::Tcp { user, password_file } => {
                let password = match password_file {
                    None => None,
                    Some(file) => {
                        let path: PathBuf = self.configuration.settings.resolve(file);
                        let text = std::fs::read_to_string(&path).map_err(|error| OperationError {
                            source: Some(Box::new(error)),
                            ..OperationError::new(
                                Exit::Credentials,
                                format!("{}: the password file {} cannot be read", what(), path.display()),
                            )
                            .next("correct `password_file` in the policy, or the file's owner and mode")
                        })?;
                        Some(Password::new(text.trim_end_matches(['\n', '\r'])))
                    }
                };
                let login =
                    Login { host: "127.0.0.1".to_owned(), port: policy.port.get(), user: user.clone(), password };
                Ok((login, vec![]))
            }
        }
    }
}

/// Where a managed cluster's server puts its socket for workers: on the data volume, so that they can mount it.
pub const SOCKET_FOLDER: &str = "/data/run";

/// One run: it holds its cluster until it is dropped, and knows what to undo.
#[derive(Debug)]
pub struct Run<'a> {
    control: &'a ControlPlane,
    /// Its id; containers and volumes it makes carry it as a label.
    pub id: String,
    /// What it does.
    pub operation: Operation,
    /// The cluster.
    pub cluster: ClusterName,
    /// When it began.
    pub started_at: Timestamp,
    /// The lock that also keeps other machines out, where there is Consul.
    everywhere: Option<lock::ClusterLock>,
    _cluster_lock: Option<HeldLock>,
    _alive: HeldLock,
}

impl Run<'_> {
    /// Records, before it is made, something that must go if the run does not end well.
    pub fn will_make(&self, host: &HostName, thing: &Thing) -> Result<(), OperationError> {
        let what = format!("{} of cluster \"{}\" failed", self.operation.as_str(), self.cluster);
        self.control.state.will_make(&self.id, host, thing).map_err(failed(what))
    }

    /// Removes something the run made for a part of it that failed, while the run goes on. What cannot be removed now is told.
    pub async fn give_up(&self, host: &HostName, thing: &Thing) {
        let made = Made { run: self.id.clone(), host: host.clone(), thing: thing.clone() };
        if let Err(error) = self.control.undo(&made).await {
            tracing::warn!("{}; pglife repo gc removes it later", error.chain());
        }
    }

    /// What the run made is complete: from here on it stays, even if the process dies now.
    pub fn keep_made(&self) -> Result<(), OperationError> {
        let what = format!("{} of cluster \"{}\" failed", self.operation.as_str(), self.cluster);
        self.control.state.keep_made(&self.id).map_err(failed(what))
    }

    /// Ends the run: records `result`, and undoes what was made where it is an error.
    pub async fn end<T>(
        mut self,
        result: Result<T, OperationError>,
        summary: impl FnOnce(&T) -> (Exit, String, Option<SetId>),
    ) -> Result<T, OperationError> {
        let everywhere = self.everywhere.take();
        let ended = self.end_here(result, summary).await;
        if let Some(lock) = everywhere {
            lock.release().await;
        }
        ended
    }

    async fn end_here<T>(
        &self,
        result: Result<T, OperationError>,
        summary: impl FnOnce(&T) -> (Exit, String, Option<SetId>),
    ) -> Result<T, OperationError> {
        let (exit, message, set) = match &result {
            Ok(done) => summary(done),
            Err(error) => (error.exit, error.chain(), None),
        };
        if result.is_err() {
            // The run stays open in the table then, and the next one tries again.
            if let Err(error) = self.control.undo_all(&self.id).await {
                tracing::warn!("left for the next run: {}", error.chain());
                let safe =
                    "what was there before is as it was; what this run made is left, and the next run removes it";
                return result.map_err(|error| OperationError { safe: Some(safe.to_owned()), ..error });
            }
        }
        let recorded = self.control.state.end_run(&self.id, exit, &message, set.as_ref(), Timestamp::now());
        match (result, recorded) {
            // The work is done and committed; that the record of it failed must not turn it into a failure.
            (Ok(done), Err(error)) => {
                tracing::error!("the run ended well but could not be recorded: {error}");
                Ok(done)
            }
            (result, _) => result,
        }
    }
}

/// Random bits for ids. The system's source does not fail once the system is up.
pub fn entropy() -> u32 {
    getrandom::u32().unwrap_or_else(|_| std::process::id())
}

fn new_run_id(now: Timestamp) -> String {
    let time = now.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m%dt%H%M%Sz").to_string();
    format!("{time}-{:08x}", entropy())
}

/// When a run with this id began; nothing for what is no run's id.
pub fn run_began(id: &str) -> Option<Timestamp> {
    let (time, _) = id.split_once('-')?;
    let time = jiff::civil::DateTime::strptime("%Y%m%dt%H%M%Sz", time).ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
}
