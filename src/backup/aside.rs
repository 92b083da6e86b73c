//! A dump that is no backup: of a throwaway server, for whoever restores it at once.

use jiff::Timestamp;

use super::{check_complete, describe, plan_dump, work};
use crate::backup_set::{Kind, Manifest, SetId};
use crate::cluster::{DatabaseName, RepoName};
use crate::control::{ControlPlane, OperationError, Progress, Run, close_worker, entropy, failed, worker_threads};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Engine, Image};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::provision;
use crate::storage::FolderLocation;
use crate::worker::{Destination, Request};

/// Where it comes from, and where it goes.
pub(crate) struct Aside<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) image: &'a Image,
    /// That of the throwaway server.
    pub(crate) policy: &'a Policy,
    pub(crate) container: &'a Container,
    pub(crate) database: &'a DatabaseName,
    /// The folder, and what a worker must see for it.
    pub(crate) place: FolderLocation,
    pub(crate) mount: WorkerMount,
}

/// Dumps the roles and one database. Returns what the manifest of a set would say of the objects.
pub(crate) async fn dump_aside(
    control: &ControlPlane,
    run: &Run<'_>,
    aside: Aside<'_>,
    what: &str,
    progress: Progress<'_>,
) -> Result<Manifest, OperationError> {
    let Aside { engine, image, policy, container, database, place, mount } = aside;
    let (login, _) = control.login(policy, container)?;
    let (session, server) = provision::await_server(
        control,
        run,
        policy,
        engine,
        container,
        image,
        vec![mount],
        what,
        provision::FIRST_START_SECONDS,
        Some(policy.major),
    )
    .await?;
    let set = SetId::new(Timestamp::now(), Kind::Dump, entropy());
    let threads = worker_threads();
    // What it lies in is removed with the run, and holds no more than the server beside it.
    let mut planned = match plan_dump(policy, server, set, threads, None) {
        Ok(planned) => planned,
        Err(error) => {
            close_worker(session).await;
            return Err(OperationError::new(Exit::Failed, format!("{what}: {error}")));
        }
    };
    planned.databases.retain(|dump| dump.database == *database);
    planned.skipped.clear();
    planned.facts = None;
    if planned.databases.is_empty() {
        close_worker(session).await;
        let gone = format!("{what}: database \"{database}\" was dropped while the copy was made");
        return Err(OperationError::new(Exit::NotFound, gone).next("restore an older backup: pglife backups list"));
    }
    let repository = RepoName::new("scratch-volume").expect("a name");
    let request = Request::Dump(planned.job(login, vec![Destination { repository, place }]));
    let (heard, done) = work(control, session, &planned, &request, progress).await.map_err(failed(what))?;
    check_complete(&planned, &heard).map_err(|why| OperationError::new(Exit::Failed, format!("{what}: {why}")))?;
    Ok(describe(policy, run, container, None, planned, heard, &done))
}
