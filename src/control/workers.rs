//! Sessions with workers: begun, asked, closed.

use tokio_util::sync::CancellationToken;

use super::{ControlPlane, OperationError, Run, failed};
use crate::backup_set::{ServerProfile, SetLocation};
use crate::cluster::{HostName, PgMajor, RepoName};
use crate::docker::Engine;
use crate::docker::worker::{RunningWorker, WorkerMount, WorkerNetwork, WorkerPlan, launch};
use crate::exit::Exit;
use crate::postgres::Login;
use crate::postgres::control_data::ControlData;
use crate::storage::{FolderLocation, Key, Repository};
use crate::worker::session::{Session, SessionError};
use crate::worker::{Event, Request};

/// How a worker reaches the folder of a set.
#[derive(Debug)]
pub struct Reach {
    /// Where it is, for the worker.
    pub place: FolderLocation,
    /// What it must see for that; None: a bucket.
    pub mount: Option<WorkerMount>,
}

impl Reach {
    /// Where the repository has it; a folder is mounted at `mount_point`.
    pub fn in_place(repository: &Repository, location: &SetLocation, mount_point: &str) -> Self {
        let folder = Key::new(location.folder()).expect("names make a key");
        let (place, on_host) = repository.for_worker(&folder, mount_point);
        let mount = on_host.map(|path| WorkerMount {
            source: path.to_string_lossy().into_owned(),
            destination: mount_point.to_owned(),
            writable: false,
        });
        Self { place, mount }
    }

    /// The same for a process on this machine.
    pub fn from_here(repository: &Repository, location: &SetLocation) -> Self {
        let folder = Key::new(location.folder()).expect("names make a key");
        Self { place: repository.folder_location(folder), mount: None }
    }
}

/// How many threads a worker gets.
pub fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Starts a worker container and greets it.
pub async fn start_worker(engine: &Engine, plan: &WorkerPlan) -> Result<Session, SessionError> {
    let worker: RunningWorker = launch(engine, plan).await?;
    Session::in_container(worker).await
}

/// Closes a session whose work is done or lost; a worker that cannot be removed now is left to the next sweep.
pub async fn close_worker(session: Session) {
    if let Err(error) = session.close().await {
        tracing::warn!("a worker is left for the next sweep: {error}");
    }
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

impl Run<'_> {
    /// What the control file says of the data directory that is `below` the root of `data`, a volume or a folder of the host; a worker
    /// from the image reads it.
    pub async fn control_file(
        &self,
        engine: &Engine,
        image_id: &str,
        (data, below): (&str, &str),
        major: PgMajor,
        what: &str,
    ) -> Result<ControlData, OperationError> {
        let worker = WorkerPlan {
            run: self.id.clone(),
            cluster: self.cluster.clone(),
            image_id: image_id.to_owned(),
            mounts: vec![WorkerMount { source: data.to_owned(), destination: "/data".to_owned(), writable: false }],
            network: WorkerNetwork::Nothing,
            serves: false,
        };
        let session = start_worker(engine, &worker).await.map_err(failed(what))?;
        let request = Request::ReadControlFile { major, pgdata: format!("/data{below}") };
        let control_file = |event| match event {
            Event::ControlFile(control) => Some(control),
            _ => None,
        };
        self.control.ask(session, &request, what, control_file).await
    }
}

impl ControlPlane {
    /// Refuses a folder of this machine for workers on `host` where that is another machine.
    pub fn check_reach(&self, host: &HostName, repository: &RepoName, what: &str) -> Result<(), OperationError> {
        if self.configuration.settings.is_within_reach(host, repository) {
            return Ok(());
        }
        let why =
            format!("repository \"{repository}\" is a folder of this machine, and host \"{host}\" is another one");
        Err(OperationError::new(Exit::Refused, format!("{what}: {why}")).safe("nothing was touched").next(format!(
            "the workers there need a bucket: name one with --repo; what only \"{repository}\" holds gets there by pglife repo sync \
             BUCKET"
        )))
    }

    /// Asks the worker of `session` for one thing, which `pick` takes from what it tells; closes the session.
    pub async fn ask<T>(
        &self,
        mut session: Session,
        request: &Request,
        what: &str,
        pick: impl Fn(Event) -> Option<T>,
    ) -> Result<T, OperationError> {
        let answer = self.ask_first(&mut session, request, what, pick).await;
        close_worker(session).await;
        answer
    }

    /// The same of a session that is wanted for more.
    pub async fn ask_first<T>(
        &self,
        session: &mut Session,
        request: &Request,
        what: &str,
        pick: impl Fn(Event) -> Option<T>,
    ) -> Result<T, OperationError> {
        let mut answer = None;
        session
            .request(request, &self.cancel, |event| {
                if let Some(found) = pick(event) {
                    answer = Some(found);
                }
            })
            .await
            .map_err(failed(what))?;
        answer.ok_or_else(|| failed(what)(SessionError::Protocol { what: "it did not answer".to_owned() }))
    }
}
