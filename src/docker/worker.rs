//! Worker containers: the static executable inside the cluster's own image, with stdin and stdout as its only line home.
//!
//! ```text
//! create ─▶ attach (before it runs, so that nothing is missed) ─▶ start ─▶ … ─▶ stdin closes ─▶ it ends ─▶ remove
//! ```
//!
//! What a worker gets: the mounts its job names, the network namespace its job names, the capabilities to read and own
//! files, and nothing more: no log, read-only root, no new privileges, no restart.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, Mount as EngineMount, MountType};
use bollard::query_parameters as query;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::StreamReader;

use crate::cluster::{ClusterName, ContainerName, VolumeName};

use super::label::{self, Purpose};
use super::{DockerError, Engine, binary, frugal_host_config};

/// A worker may be swept after this long, whoever made it: longer than any job is allowed to take.
const LIFETIME: SignedDuration = SignedDuration::from_hours(48);

/// A worker's weight beside the 1024 of every other container.
const CPU_SHARES: i64 = 128;

/// What a worker container is made of.
#[derive(Debug)]
pub struct WorkerPlan {
    /// The run it works for.
    pub run: String,
    /// The cluster it works for.
    pub cluster: ClusterName,
    /// Id of the image it runs in.
    pub image_id: String,
    /// What it sees, besides the executable.
    pub mounts: Vec<WorkerMount>,
    /// Its network.
    pub network: WorkerNetwork,
    /// It runs servers of its own while clients wait: it may become the user they run as, and has a full share of the cores.
    pub serves: bool,
}

/// Something a worker sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerMount {
    /// A named volume, or a path on the host (it begins with `/`).
    pub source: String,
    /// Where the worker sees it.
    pub destination: String,
    /// False where it may only read.
    pub writable: bool,
}

/// The network of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerNetwork {
    /// That of a running container, by id.
    Of(String),
    /// One of Docker's, by name.
    Named(String),
    /// None at all.
    Nothing,
}

/// A worker container that runs.
pub struct RunningWorker {
    engine: Engine,
    id: String,
    /// Its stdin; closing it ends the worker.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// Its stdout.
    pub output: Pin<Box<dyn AsyncRead + Send>>,
    complaints: Arc<Mutex<VecDeque<Bytes>>>,
}

/// How a worker container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEnd {
    /// Its exit code, where it ended by itself.
    pub exit_code: Option<i64>,
    /// The kernel killed it for its memory.
    pub out_of_memory: bool,
    /// What it said on stderr, the end of it.
    pub complaints: String,
}

/// Makes, attaches to and starts a worker.
pub async fn launch(engine: &Engine, plan: &WorkerPlan) -> Result<RunningWorker, DockerError> {
    let volume = binary::ensure(engine, &plan.image_id).await?;
    let name = ContainerName::new(format!("pglife-worker-{}", plan.run)).expect("a run id fits into a name");
    let id = engine.create_container(&name, body(plan, &volume)).await?;
    match attach_and_start(engine, &id).await {
        Ok((input, output, complaints)) => Ok(RunningWorker { engine: engine.clone(), id, input, output, complaints }),
        Err(error) => {
            if let Err(also) = engine.remove_container(&id).await {
                tracing::warn!(container = id, "a worker that did not start is left for the next sweep: {also}");
            }
            Err(error)
        }
    }
}

type Streams = (Pin<Box<dyn AsyncWrite + Send>>, Pin<Box<dyn AsyncRead + Send>>, Arc<Mutex<VecDeque<Bytes>>>);

async fn attach_and_start(engine: &Engine, id: &str) -> Result<Streams, DockerError> {
    let options =
        query::AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
    let attached = engine
        .patient
        .attach_container(id, Some(options))
        .await
        .map_err(engine.failed(format!("attach to worker {id}")))?;
    let complaints = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&complaints);
    let stdout = attached.output.filter_map(move |frame| {
        let bytes = match frame {
            Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
            Ok(LogOutput::StdErr { message }) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == 64 {
                    kept.pop_front();
                }
                kept.push_back(message);
                None
            }
            // Not from a container without a terminal: the stream is not what it should be.
            Ok(other) => Some(Err(std::io::Error::other(format!("unexpected frame from Docker: {other}")))),
            Err(error) => Some(Err(std::io::Error::other(error))),
        };
        std::future::ready(bytes)
    });
    engine.start(id).await?;
    Ok((attached.input, Box::pin(StreamReader::new(Box::pin(stdout))), complaints))
}

fn body(plan: &WorkerPlan, binary_volume: &VolumeName) -> ContainerCreateBody {
    let mut host_config = frugal_host_config();
    // As root without DAC_OVERRIDE it could not read what belongs to postgres, nor write where the repository's owner can.
    // Without FSETID it could not give back the set-group-id bit of a folder.
    let needed = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"];
    let more: &[&str] = if plan.serves { &["SETUID", "SETGID", "KILL"] } else { &[] };
    host_config.cap_add = Some(needed.iter().chain(more).map(|&name| name.to_owned()).collect());
    host_config.tmpfs = Some(HashMap::from([("/tmp".to_owned(), "size=16m,mode=1777".to_owned())]));
    host_config.network_mode = Some(match &plan.network {
        WorkerNetwork::Of(container) => format!("container:{container}"),
        WorkerNetwork::Named(network) => network.clone(),
        WorkerNetwork::Nothing => "none".to_owned(),
    });
    let binary =
        WorkerMount { source: binary_volume.to_string(), destination: binary::FOLDER.to_owned(), writable: false };
    host_config.mounts = Some(plan.mounts.iter().chain([&binary]).map(engine_mount).collect());
    // The server comes first: clients wait for it, and a dump that keeps it from running only delays itself. Where cores are
    // idle this costs nothing.
    host_config.cpu_shares = (!plan.serves).then_some(CPU_SHARES);
    let expires = Timestamp::now() + LIFETIME;
    ContainerCreateBody {
        image: Some(plan.image_id.clone()),
        user: Some("0:0".to_owned()),
        entrypoint: Some(vec![binary::EXECUTABLE.to_owned()]),
        cmd: Some(vec!["worker".to_owned()]),
        working_dir: Some("/".to_owned()),
        open_stdin: Some(true),
        // When we go away, however that happens, its stdin closes.
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        healthcheck: Some(bollard::models::HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(label::short_lived(Purpose::Worker, &plan.run, &plan.cluster, expires)),
        host_config: Some(host_config),
        ..Default::default()
    }
}

fn engine_mount(mount: &WorkerMount) -> EngineMount {
    EngineMount {
        typ: Some(if mount.source.starts_with('/') { MountType::BIND } else { MountType::VOLUME }),
        source: Some(mount.source.clone()),
        target: Some(mount.destination.clone()),
        read_only: Some(!mount.writable),
        ..Default::default()
    }
}

impl RunningWorker {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Why a worker that says nothing more has ended, as far as Docker knows.
    pub async fn obituary(&self) -> Result<String, DockerError> {
        let said = self.said();
        // The line may end a moment before the engine knows that the process did.
        let mut found = self.engine.container(&self.id).await?;
        for _ in 0..20 {
            if !found.as_ref().is_some_and(|container| container.running) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            found = self.engine.container(&self.id).await?;
        }
        let seen = match found {
            Some(container) if container.running => "its container still runs, but its line is cut".to_owned(),
            Some(container) if container.out_of_memory => "the kernel killed it for want of memory".to_owned(),
            Some(container) => match container.exit_code {
                Some(137) => "it was killed (signal 9)".to_owned(),
                Some(code) => format!("its container ended with exit code {code}"),
                None => "its container ended".to_owned(),
            },
            None => "its container was removed".to_owned(),
        };
        Ok(if said.is_empty() { seen } else { format!("{seen}; its last words: {said}") })
    }

    fn said(&self) -> String {
        let said = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect::<String>().trim_end().to_owned()
    }

    /// Closes the worker's stdin, gives it `patience` to end, and removes the container.
    pub async fn finish(self, patience: Duration) -> Result<WorkerEnd, DockerError> {
        let said = self.said();
        let Self { engine, id, mut input, output, .. } = self;
        // Dropping the writer does not close the stream; and the worker may have ended already.
        tokio::io::AsyncWriteExt::shutdown(&mut input).await.ok();
        drop(output);
        let deadline = tokio::time::Instant::now() + patience;
        let mut seen = engine.container(&id).await?;
        while seen.as_ref().is_some_and(|container| container.running) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen = engine.container(&id).await?;
        }
        engine.remove_container(&id).await?;
        Ok(WorkerEnd {
            exit_code: seen.as_ref().filter(|container| !container.running).and_then(|container| container.exit_code),
            out_of_memory: seen.is_some_and(|container| container.out_of_memory),
            complaints: said,
        })
    }
}
