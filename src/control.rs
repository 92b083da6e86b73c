//! What every operation of the control plane needs: the configuration, its state, the engines, the repository, and a *run*
//! with its locks, its record and its cleaning up.
//!
//! ```text
//! begin: lock the cluster ─▶ bury dead runs, of other clusters too ─▶ record the run ─▶ sweep orphans
//!   … the operation; whatever it makes is recorded before it is made …
//! end:   record how it ended ─▶ let go of the locks          (a process that dies skips this; the next begin does it)
//! ```

pub mod catalogue;
mod keys;
mod lock;
mod repositories;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::backup_set::{ServerProfile, SetId, SetLocation};
use crate::cluster::{ClusterName, HostName, RepoName, VolumeName};
use crate::configuration::Configuration;
use crate::consul::{Consul, ConsulError};
use crate::docker::worker::{RunningWorker, WorkerMount};
use crate::docker::{self, Container, DockerError, Engine, label};
use crate::exit::Exit;
use crate::policy::{self, Policy};
use crate::postgres::{Login, Password};
use crate::settings;
use crate::state::{HeldLock, Made, Operation, RUN_FOLDER, State, StateError, Thing};
use crate::storage::{self, Key, Location, StorageError};
use crate::worker::Trouble;
use crate::worker::session::{Session, SessionError};
use crate::worker::{Event, Request};

pub use repositories::{Found, Held, Holdings, Repositories, or_elsewhere};

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

impl Advise for DockerError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        self.next()
    }
}

impl Advise for ConsulError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        Some(self.next().to_owned())
    }
}

impl Advise for StateError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Busy { .. } | Self::Going { .. } => "wait for that run to end, then try again",
            Self::SecondDaemon { .. } => {
                "one daemon is enough: stop the other one first, or give this one its own `state_dir`"
            }
            Self::Newer { .. } => "use the pglife that wrote it, or a later one; or name another, empty `state_dir`",
            _ => return None,
        };
        Some(words.to_owned())
    }
}

impl Advise for StorageError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Full { .. } => "free space in the repository, then run the same command again",
            Self::NewerFormat { .. } => "use the pglife that wrote the repository, or a later one",
            Self::NotEmpty { .. } => "name an empty folder, or another `prefix`",
            Self::OutOfQuota { .. } => "make room in the bucket or raise its quota, then run the same command again",
            Self::Unreachable { .. } | Self::Uncertain { .. } => {
                "see why the S3 service does not answer; then run the same command again"
            }
            Self::Untrusted { .. } => "name the authority's certificate: [repos.…] ca_file = …",
            Self::NoBucket { .. } => "create the bucket, or correct `bucket` and `endpoint` in pglife.toml",
            Self::WrongRegion { .. } => "correct `region` in pglife.toml",
            Self::NoCredentials { .. } => {
                "write the credentials into `credentials_file`, or give the daemon the AWS_… variables or a role"
            }
            Self::CredentialsRefused { .. } => "renew the credentials, then run the same command again",
            Self::NotPermitted { .. } => {
                "give the credentials the permission: docs/repositories.md lists what pglife needs"
            }
            Self::ClockSkew { .. } => "set the wrong clock right (NTP), then run the same command again",
            Self::Locked { .. } => "delete it when the lock has ended",
            Self::Changed { .. } => "find out what else writes to the repository; then run the same command again",
            Self::Service { .. } => "see what the service says above; then run the same command again",
            _ => {
                "look at the repository's disk: that it is mounted, writable and sound; then run the same command again"
            }
        };
        Some(words.to_owned())
    }
}

impl Advise for SessionError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Docker(error) => return error.next(),
            // pg_dump's own limit for a lock is a statement_timeout around LOCK TABLE.
            Self::Failed { message, .. } if message.contains("LOCK TABLE") && message.contains("timeout") => {
                "find out who holds the table (pg_locks, pg_stat_activity) and try again, or raise `lock_timeout` in the policy"
            }
            Self::Failed { trouble: Trouble::Full, .. } => {
                "free space in the repository, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Tool, .. } => {
                "mend what the tool's own words above name, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Server, .. } => {
                "see what the server says (docker logs), then run the same command again"
            }
            Self::Failed { trouble: Trouble::Credentials, .. } => "correct `user` and `password_file` in the policy",
            Self::Failed { trouble: Trouble::Key, .. } => "name the file with the secret key: --identity FILE",
            Self::Failed { trouble: Trouble::RepositoryCredentials, .. } => {
                "renew the repository's credentials or their permissions, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Repository | Trouble::Other, .. } => {
                "look at the repository (its disk, owner and mode; its S3 service), then run the same command again"
            }
            Self::Failed { trouble: Trouble::ToolMissing, .. } => {
                "use an image that holds the server's own client tools"
            }
            Self::Lost { .. } => {
                "run the same command again; if it happens again, see what ended the worker: docker events"
            }
            Self::NotStarted(_) | Self::Cancelled | Self::Failed { trouble: Trouble::Cancelled, .. } => {
                "run the same command again"
            }
            Self::Protocol { .. }
            | Self::Failed { trouble: Trouble::Request | Trouble::Absent | Trouble::Damaged, .. } => return None,
        };
        Some(words.to_owned())
    }
}

impl Advise for crate::configuration::ConfigurationError {
    fn exit(&self) -> Exit {
        self.exit()
    }
}

impl Advise for crate::backup_set::SelectorError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoMatch { .. } => Exit::NotFound,
            Self::Malformed(_) | Self::Ambiguous { .. } => Exit::Usage,
        }
    }
    fn next(&self) -> Option<String> {
        Some("see what there is: pglife backups list".to_owned())
    }
}

impl Advise for crate::pipeline::PipelineError {
    fn exit(&self) -> Exit {
        self.exit()
    }
}

impl Advise for crate::backup_set::FormatError {
    fn exit(&self) -> Exit {
        match self {
            Self::Newer { .. } => Exit::Repository,
            Self::Malformed { .. } | Self::Damaged { .. } => Exit::VerifyFailed,
        }
    }
    fn next(&self) -> Option<String> {
        matches!(self, Self::Newer { .. }).then(|| "use the pglife that wrote it, or a later one".to_owned())
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
                "an upgrade of it is open: it was cut, and must be carried to an end first",
                format!("pglife upgrade resume {cluster}"),
            ),
            ("upgraded", Operation::Remove) => (
                Exit::Refused,
                "the old server of its upgrade is still kept",
                format!("pglife upgrade finalize {cluster} --yes, or pglife upgrade rollback {cluster}"),
            ),
            _ => return Ok(()),
        };
        Err(OperationError::new(exit, format!("{what}: {why}")).safe("nothing was touched").next(next))
    }

    /// Ends, in the table and in the world, the runs whose process died. A cluster that somebody works on is left to them, and
    /// what cannot be removed now to the next call.
    pub async fn bury_dead_runs(&self) -> Result<(), OperationError> {
        let what = "cleaning up after a run that died";
        for run in self.state.dead_runs().map_err(failed(what))? {
            let Ok(_lock) = self.state.lock_cluster(&run.cluster, run.operation, Timestamp::now()) else { continue };
            // Somebody may have been quicker.
            if !self.state.dead_runs().map_err(failed(what))?.iter().any(|dead| dead.run == run.run) {
                continue;
            }
            if let Err(error) = self.undo_all(&run.run).await {
                tracing::warn!(run = run.run, cluster = %run.cluster, "left for the next run: {}", error.chain());
                continue;
            }
            tracing::warn!(run = run.run, cluster = %run.cluster, "an earlier run died; what it left is removed");
            self.state
                .end_run(&run.run, Exit::Failed, "the process died; what it left was removed", None, Timestamp::now())
                .map_err(failed(what))?;
        }
        Ok(())
    }

    /// Starts the servers that runs stopped which died since; the rest of what such a run left is the next run's.
    pub async fn start_what_dead_runs_stopped(&self) -> Result<(), OperationError> {
        let what = "starting a server again that a run stopped which died";
        for run in self.state.dead_runs().map_err(failed(what))? {
            let stopped = self.state.made_by(&run.run).map_err(failed(what))?.into_iter().filter_map(|made| {
                let Thing::Stopped(id) = made.thing else { return None };
                Some((made.host, id))
            });
            for (host, id) in stopped.collect::<Vec<_>>() {
                let Ok(_lock) = self.state.lock_cluster(&run.cluster, run.operation, Timestamp::now()) else {
                    continue;
                };
                self.start_again(&host, &id).await?;
            }
        }
        Ok(())
    }

    /// Starts a container that a run stopped; content where it runs, or is not there any more.
    async fn start_again(&self, host: &HostName, id: &str) -> Result<(), OperationError> {
        let what = "starting a server again that was stopped for a backup";
        let engine = self.engine(host).await.map_err(failed(what))?;
        let Some(container) = engine.container(id).await.map_err(failed(what))? else { return Ok(()) };
        if container.running {
            return Ok(());
        }
        tracing::warn!(
            container = container.name,
            "an earlier run stopped this server and did not start it: it is started"
        );
        engine.start(id).await.map_err(|error| {
            let what = format!("{what}: container \"{}\" is still down", container.name);
            failed(what)(error)
                .next(format!("start it: docker start {}; then see its log: docker logs {0}", container.name))
        })
    }

    /// Removes everything that a failed or dead run made and that is not complete.
    async fn undo_all(&self, run: &str) -> Result<(), OperationError> {
        let what = "cleaning up after a run that did not end well";
        let made = self.state.made_by(run).map_err(failed(what))?;
        // A server that is down does not wait for anything else.
        for made in made.iter().filter(|made| matches!(made.thing, Thing::Stopped(_))) {
            self.undo(made).await?;
        }
        // Its worker first: a volume that a container has mounted cannot be removed.
        for host in made.iter().map(|made| &made.host).collect::<BTreeSet<_>>() {
            let engine = self.engine(host).await.map_err(failed(what))?;
            sweep(&engine, &self.state).await.map_err(failed(what))?;
        }
        for made in &made {
            self.undo(made).await?;
        }
        Ok(())
    }

    /// Removes something a failed or dead run made; content when it is gone, careful when it is somebody else's.
    async fn undo(&self, made: &Made) -> Result<(), OperationError> {
        let what = "cleaning up after a run that did not end well";
        match &made.thing {
            // COMMIT is the point of no return: who died after it took a backup, whatever the table says.
            Thing::SetFolder(folder) if folder.join("COMMIT").exists() => {
                tracing::warn!(folder = %folder.display(), "an earlier run died after its commit; the backup stays");
                Ok(())
            }
            // Not there, because its disk is not: it comes back with the disk.
            Thing::SetFolder(folder) if !folder.ancestors().any(|above| above.join("pglife-repo.json").exists()) => {
                Err(OperationError::new(
                    Exit::Repository,
                    format!("{what}: the repository of {} is not there", folder.display()),
                ))
            }
            Thing::SetFolder(folder) => match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(OperationError {
                    source: Some(Box::new(error)),
                    ..OperationError::new(Exit::Repository, format!("{what}: {} cannot be removed", folder.display()))
                }),
                _ => {
                    // And the folders above that are empty now; the root of a repository never is.
                    folder.ancestors().skip(1).take_while(|above| std::fs::remove_dir(above).is_ok()).for_each(drop);
                    Ok(())
                }
            },
            Thing::Folder(folder) => self.remove_folder(folder).await,
            Thing::SetObjects { repository, set } => self.clear_uncommitted(repository, set),
            Thing::Stopped(id) => self.start_again(&made.host, id).await,
            Thing::Container(name) => {
                let engine = self.engine(&made.host).await.map_err(failed(what))?;
                match engine.container(name).await.map_err(failed(what))? {
                    Some(found) if found.labels.get(label::RUN) == Some(&made.run) => {
                        engine.remove_container(&found.id).await.map_err(failed(what))
                    }
                    _ => Ok(()),
                }
            }
            Thing::Volume(name) => {
                let Ok(name) = VolumeName::new(name.clone()) else { return Ok(()) };
                let engine = self.engine(&made.host).await.map_err(failed(what))?;
                match engine.volume(&name).await.map_err(failed(what))? {
                    Some(labels) if labels.get(label::RUN) == Some(&made.run) => {
                        engine.remove_volume(&name).await.map_err(failed(what))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Removes a run's own folder, and first what the runs did whose state is in it.
    async fn remove_folder(&self, folder: &Path) -> Result<(), OperationError> {
        let what = || format!("cleaning up: {} cannot be removed", folder.display());
        let own = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(RUN_FOLDER));
        if !own || !folder.exists() {
            return Ok(());
        }
        let state_dir = folder.join("state");
        if state_dir.is_dir() {
            let mut configuration = self.configuration.clone();
            configuration.settings.state_dir = state_dir;
            configuration.settings.consul = None;
            let inside = Self::open(configuration, CancellationToken::new())?;
            Box::pin(inside.bury_dead_runs()).await?;
            if !inside.state.dead_runs().map_err(failed(what()))?.is_empty() {
                return Err(OperationError::new(Exit::Failed, format!("{}: its runs left something", what())));
            }
        }
        std::fs::remove_dir_all(folder).map_err(|error| OperationError {
            source: Some(Box::new(error)),
            ..OperationError::new(Exit::Failed, what())
        })
    }

    /// Removes the objects of a set that is not committed from a repository; one that is stays.
    pub fn clear_uncommitted(&self, name: &RepoName, set: &SetLocation) -> Result<(), OperationError> {
        let what = || format!("removing what a run left in repository \"{name}\"");
        if !self.configuration.settings.repositories.contains_key(name) {
            tracing::warn!(set = %set.id, "repository \"{name}\" is not in pglife.toml any more; what a dead run left there stays");
            return Ok(());
        }
        let repository = self.repository(name)?;
        let store = repository.store();
        let key = |text: String| Key::new(text).expect("a set's names make a key");
        let (folder, commit) = (key(set.folder()), key(set.commit_key()));
        // COMMIT is the point of no return, here too.
        match store.head(&commit) {
            Ok(_) => return Ok(()),
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(failed(what())(error)),
        }
        let removed = store.sweep_unfinished(Some(&folder), SystemTime::now()).and_then(|_| {
            for object in store.list(Some(&folder))? {
                match store.delete(&object.key) {
                    Ok(()) | Err(StorageError::NotFound { .. } | StorageError::Locked { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        match removed {
            // A daemon whose key cannot delete is as it should be; the rest is for somebody whose key can.
            Err(error) if error.exit() == Exit::Credentials => {
                tracing::warn!("{}: {error}; pglife repo gc removes it with other credentials", what());
                Ok(())
            }
            removed => removed.map_err(failed(what())),
        }
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

/// Removes workers, scratch volumes and what drills made, once nobody works with them any more.
pub async fn sweep(engine: &Engine, state: &State) -> Result<Vec<String>, DockerError> {
    let managed = format!("{}=true", label::MANAGED);
    let now = Timestamp::now();
    let containers = engine.containers_labelled(&[&managed, label::EXPIRES]).await?;
    let kept = label::kept_runs(containers.iter().map(|container| &container.labels), now);
    let is_orphan = |labels: &std::collections::HashMap<String, String>| {
        label::is_orphan(labels, &kept, |run| state.is_over(run), now)
    };
    let mut swept = Vec::new();
    for container in containers {
        if is_orphan(&container.labels) {
            engine.remove_container(&container.id).await?;
            tracing::warn!(container = container.name, "removed an orphan");
            swept.push(format!("container {}", container.name));
        }
    }
    for (volume, labels) in engine.volumes_labelled(&[&managed, label::EXPIRES]).await? {
        if is_orphan(&labels) {
            engine.remove_volume(&volume).await?;
            tracing::warn!(%volume, "removed an orphan");
            swept.push(format!("volume {volume}"));
        }
    }
    Ok(swept)
}

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

/// Starts a worker container and greets it.
pub async fn start_worker(engine: &Engine, plan: &docker::worker::WorkerPlan) -> Result<Session, SessionError> {
    let worker: RunningWorker = docker::worker::launch(engine, plan).await?;
    Session::in_container(worker).await
}

/// Closes a session whose work is done or lost; a worker that cannot be removed now is left to the next sweep.
pub async fn close_worker(session: Session) {
    if let Err(error) = session.close().await {
        tracing::warn!("a worker is left for the next sweep: {error}");
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

/// Has a worker log in and say what server that is; closes the session where it cannot.
pub async fn ask_server(
    mut session: Session,
    login: Login,
    patience_seconds: u64,
    cancel: &CancellationToken,
) -> Result<(Session, ServerProfile), SessionError> {
    let mut server = None;
    let request = Request::Inspect { login, patience_seconds };
    let asked = session.request(&request, cancel, |event| {
        if let Event::Server(profile) = event {
            server = Some(profile);
        }
    });
    match (asked.await, server) {
        (Ok(_), Some(server)) => Ok((session, server)),
        (result, _) => {
            close_worker(session).await;
            Err(result.err().unwrap_or(SessionError::Protocol { what: "it did not say what the server is".to_owned() }))
        }
    }
}
