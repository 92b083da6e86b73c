//! `pglife backup`: a set of everything in a cluster: a logical one (`--kind dump`, here), or a copy of its volumes ([`volume`]).
//!
//! ```text
//! repositories open ─▶ run begins ─▶ staging folders ─▶ worker inspects the server ─▶ plan (pure) ─▶ worker dumps
//!   ─▶ verdict ok? ─▶ in each repository: folder moves to its place ─▶ recipe, instructions, manifest ─▶ COMMIT ─▶ run ends
//! ```
//!
//! The bytes are made once and go to every repository of the policy; each has its own verdict ([`copies`]). In a folder the
//! worker sees its staging folder only; in a bucket, where nothing can be moved, it writes to the set's own place. Until `COMMIT` is there, nothing of it is a backup; a run that ends in any other
//! way removes the folder, and one that dies leaves it to the next run.

mod aside;
#[doc(hidden)]
pub mod contract;
mod copies;
pub(crate) mod documents;
mod parent;
mod places;
mod plan;
pub mod volume;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::Timestamp;

use crate::backup_set::{
    Commit, ImageReference, Kind, Manifest, Object, Recipe, RecipeMount, ServerProfile, SetId, SetLocation, Skipped,
};
use crate::cluster::{DatabaseName, RepoName};
use crate::control::{
    ControlPlane, OperationError, Progress, Run, Tick, ask_server, close_worker, entropy, failed, start_worker,
    worker_threads,
};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::state::{Operation, SeenDatabases, Thing};
use crate::storage::{Key, Repository};
use crate::worker::session::{Done, Session, SessionError};
use crate::worker::{Destination, Event, Request, SET_FOLDER};

pub(crate) use aside::{Aside, Dumped, dump_aside};
pub use copies::Verdict;
pub use plan::{DumpPlan, plan_dump};

use copies::Copies;
use documents::{Documents, commit_set};

/// How long a worker goes on trying to reach a server that does not answer.
const SERVER_PATIENCE_SECONDS: u64 = 10;

/// The manifest's format of a logical set.
const DUMP_VERSION: u32 = 3;

/// A backup that was taken: a set that at least one repository holds.
#[derive(Debug)]
pub struct Taken {
    /// The set, as listings show it.
    pub commit: Commit,
    /// What became of each copy.
    pub copies: Vec<Verdict>,
    /// How it ended: all copies, or enough of them, or too few.
    pub exit: Exit,
    /// What the operator should read.
    pub warnings: Vec<String>,
    /// Peak resident memory of the worker, in bytes.
    pub worker_peak_memory_bytes: u64,
}

impl Taken {
    /// The repositories that hold it.
    pub fn repositories(&self) -> impl Iterator<Item = &RepoName> {
        self.copies.iter().filter(|copy| copy.failure.is_none()).map(|copy| &copy.repository)
    }
}

/// Takes a backup of the cluster of `policy`.
pub async fn take(
    control: &ControlPlane,
    policy: &Policy,
    kind: Kind,
    repository: Option<&RepoName>,
    progress: Progress<'_>,
) -> Result<Taken, OperationError> {
    let what = format!("backup of cluster \"{}\" failed", policy.name);
    if let Some(chosen) = repository {
        control.check_reach(&policy.host, chosen, &what)?;
    }
    let repositories = control.repositories_of(policy, repository)?.writable(policy, &what)?;
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let operation = match kind {
        Kind::Dump => Operation::Dump,
        Kind::Volume => Operation::Volume,
    };
    let run = control.begin(operation, &policy.name, &engine).await?;
    let mut copies = Copies::of(repositories);
    let taken = match kind {
        Kind::Dump => dump_in_run(control, &run, policy, &engine, &mut copies, progress).await,
        Kind::Volume => volume::in_run(control, &run, policy, &engine, &mut copies, progress).await,
    };
    let taken = taken.map_err(|error| {
        error.safe("nothing was added to the repository; earlier backups and the cluster are as they were")
    });
    if taken.is_ok() {
        for thing in copies.leftovers() {
            run.give_up(&policy.host, thing).await;
        }
    }
    let taken = taken.map(|made| judge(policy, made, copies.verdicts()));
    run.end(taken, |taken| (taken.exit, taken.warnings.join("; "), Some(taken.commit.set.clone()))).await
}

/// Takes a logical backup as a part of a greater run, which holds the cluster already.
pub async fn take_in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    progress: Progress<'_>,
) -> Result<Taken, OperationError> {
    let what = format!("backup of cluster \"{}\" failed", policy.name);
    let repositories = control.repositories_of(policy, None)?.writable(policy, &what)?;
    let mut copies = Copies::of(repositories);
    let made = dump_in_run(control, run, policy, engine, &mut copies, progress).await?;
    for thing in copies.leftovers() {
        run.give_up(&policy.host, thing).await;
    }
    Ok(judge(policy, made, copies.verdicts()))
}

/// A set that was committed in some of the repositories.
struct Made {
    commit: Commit,
    warnings: Vec<String>,
    /// How the command ends even if every copy was made.
    exit: Exit,
    peak_memory_bytes: u64,
}

/// What the copies together come to.
fn judge(policy: &Policy, made: Made, copies: Vec<Verdict>) -> Taken {
    let Made { commit, mut warnings, exit: trouble, peak_memory_bytes } = made;
    let committed = copies.iter().filter(|copy| copy.failure.is_none()).count();
    let required = policy.dump.required.get().min(copies.len());
    let mut exit = copies::exit(committed, copies.len(), required);
    for copy in &copies {
        let Some(error) = &copy.failure else { continue };
        warnings.push(format!(
            "repository \"{0}\" does not hold this backup: {1}; when it is well again: pglife repo sync {0}",
            copy.repository,
            error.chain()
        ));
    }
    if exit == Exit::Failed {
        warnings.push(format!(
            "{committed} copies were made, {required} are required: this counts as failed, but what was made is a good backup"
        ));
    }
    if exit == Exit::Ok && !warnings.is_empty() {
        exit = Exit::Warnings;
    }
    if trouble != Exit::Ok {
        exit = trouble;
    }
    Taken { commit, copies, exit, warnings, worker_peak_memory_bytes: peak_memory_bytes }
}

/// Looks at the server and says what a logical backup would do.
pub async fn dry_run(
    control: &ControlPlane,
    policy: &Policy,
    repository: Option<&RepoName>,
) -> Result<DumpPlan, OperationError> {
    let what = format!("planning a backup of cluster \"{}\" failed", policy.name);
    look(control, policy, repository, &what, |_, server| plan(control, policy, server, &what)).await
}

/// Has a worker look at the server, and makes a plan of what it sees; nothing else is done.
async fn look<Plan>(
    control: &ControlPlane,
    policy: &Policy,
    repository: Option<&RepoName>,
    what: &str,
    plan: impl FnOnce(&Container, ServerProfile) -> Result<Plan, OperationError>,
) -> Result<Plan, OperationError> {
    control.repositories_of(policy, repository)?;
    let engine = control.engine(&policy.host).await.map_err(failed(what))?;
    let run = control.begin(Operation::Look, &policy.name, &engine).await?;
    let planned = async {
        let container = running_container(&engine, policy, what).await?;
        let (session, server) = inspect(control, &run, policy, &engine, &container, vec![], what).await?;
        let planned = plan(&container, server);
        close_worker(session).await;
        planned
    }
    .await;
    run.end(planned, |_| (Exit::Ok, "dry run".to_owned(), None)).await
}

/// The database container, which must run.
pub async fn running_container(engine: &Engine, policy: &Policy, what: &str) -> Result<Container, OperationError> {
    let container = engine.require_container(&policy.container).await.map_err(|error| {
        failed(what)(error)
            .next(format!("create it: pglife cluster create {}; or correct `container` in the policy", policy.name))
    })?;
    if container.running {
        return Ok(container);
    }
    let ended = container.exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
    Err(OperationError::new(
        Exit::Postgres,
        format!("{what}: container \"{}\" does not run (it {}{ended})", container.name, container.status),
    )
    .next(format!("see why: docker logs {0}; then start it: docker start {0}", container.name)))
}

/// Starts a worker beside the server and asks it what server that is.
async fn inspect(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    container: &Container,
    mut mounts: Vec<WorkerMount>,
    what: &str,
) -> Result<(Session, ServerProfile), OperationError> {
    let (login, way_in) = control.login(policy, container)?;
    mounts.extend(
        way_in
            .into_iter()
            .filter(|mount| mounts.iter().all(|other| other.destination != mount.destination))
            .collect::<Vec<_>>(),
    );
    let plan = WorkerPlan {
        run: run.id.clone(),
        cluster: policy.name.clone(),
        image_id: container.image_id.clone(),
        mounts,
        network: WorkerNetwork::Of(container.id.clone()),
        serves: false,
    };
    let session = start_worker(engine, &plan).await.map_err(failed(what))?;
    let asked = ask_server(session, login, SERVER_PATIENCE_SECONDS, &control.cancel).await;
    if let Ok((_, server)) = &asked {
        remember_databases(control, policy, server);
    }
    asked.map_err(|error| {
        let next = match error.exit() {
            Exit::Postgres => Some(format!("see why the server does not answer: docker logs {}", container.name)),
            Exit::Credentials => {
                Some(format!("correct `user` and `password_file` in the policy of \"{}\"", policy.name))
            }
            _ => None,
        };
        let error = failed(what)(error);
        match next {
            Some(next) => OperationError { next: Some(next), ..error },
            None => error,
        }
    })
}

/// Remembers which databases there are, for those who ask whether a policy covers them.
fn remember_databases(control: &ControlPlane, policy: &Policy, server: &ServerProfile) {
    let own = server.databases.iter().filter(|database| !database.is_template);
    let seen = SeenDatabases { at: Timestamp::now(), names: own.map(|database| database.name.clone()).collect() };
    if let Err(error) = control.state.saw_databases(&policy.name, &seen) {
        tracing::warn!(cluster = %policy.name, "which databases there are could not be remembered: {error}");
    }
}

fn plan(
    control: &ControlPlane,
    policy: &Policy,
    server: ServerProfile,
    what: &str,
) -> Result<DumpPlan, OperationError> {
    let set = SetId::new(Timestamp::now(), Kind::Dump, entropy());
    let threads = worker_threads();
    let recipients = control.configuration.settings.encryption.as_ref().map(|encryption| encryption.recipients.clone());
    plan_dump(policy, server, set, threads, recipients).map_err(|error| {
        OperationError::new(Exit::Usage, format!("{what}: {error}"))
            .next(format!("correct `major` in the policy of \"{}\"", policy.name))
    })
}

/// What the worker told about a dump.
#[derive(Debug, Default)]
struct Heard {
    objects: Vec<Object>,
    vanished: Vec<DatabaseName>,
    warnings: Vec<String>,
    /// Repositories that take no more.
    failed: Vec<(RepoName, SessionError)>,
}

async fn dump_in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    copies: &mut Copies,
    progress: Progress<'_>,
) -> Result<Made, OperationError> {
    let what = format!("backup of cluster \"{}\" failed", policy.name);
    let container = running_container(engine, policy, &what).await?;
    let image = engine.image(&container.image_id).await.map_err(failed(&what))?;

    progress(Tick::Step("looking at the server".to_owned()));
    let mounts = make_staging(run, policy, copies, &what)?;
    let (session, server) = inspect(control, run, policy, engine, &container, mounts, &what).await?;
    let prepared = plan(control, policy, server, &what).and_then(|planned| {
        let location = SetLocation { cluster: policy.name.clone(), lineage: planned.lineage, id: planned.set.clone() };
        let destinations = destinations(run, policy, copies, &location)?;
        Ok((planned, location, destinations, control.login(policy, &container)?.0))
    });
    let (planned, location, destinations, login) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            close_worker(session).await;
            return Err(error);
        }
    };
    let request = Request::Dump(planned.job(login, destinations));
    let (mut heard, done) = work(control, session, &planned, &request, progress).await.map_err(failed(&what))?;
    check_complete(&planned, &heard).map_err(|why| OperationError::new(Exit::Failed, format!("{what}: {why}")))?;
    rule_out(copies, std::mem::take(&mut heard.failed));

    progress(Tick::Step("committing".to_owned()));
    let manifest = describe(policy, run, &container, image, planned, heard, &done);
    let warnings = manifest.warnings.clone();
    let recipe = recipe(&container, &manifest).to_bytes();
    let documents = Documents::of(location, manifest, &recipe, None);
    commit_copies(run, policy, copies, &documents, &what)?;
    Ok(Made { commit: documents.commit, warnings, exit: Exit::Ok, peak_memory_bytes: done.peak_memory_bytes })
}

/// Makes the folder in which a local copy is put together, recorded before it is made. Returns what the worker must mount.
///
/// The worker sees this folder of the repository only.
fn make_staging(
    run: &Run<'_>,
    policy: &Policy,
    copies: &mut Copies,
    what: &str,
) -> Result<Vec<WorkerMount>, OperationError> {
    let staging = Key::new(format!("{}/incoming/{}", policy.name, run.id)).expect("names make a key");
    let mut mounts = Vec::new();
    copies.each(|repository, copy, made| {
        let Some(store) = copy.repository.folder() else { return Ok(()) };
        let thing = Thing::SetFolder(store.path(&staging));
        run.will_make(&policy.host, &thing)?;
        made.push(thing);
        let folder = store.create_folder(&staging).map_err(failed(what))?;
        copy.staging = Some(staging.clone());
        mounts.push(WorkerMount {
            source: folder.to_string_lossy().into_owned(),
            destination: mount_point(repository),
            writable: true,
        });
        Ok(())
    })?;
    Ok(mounts)
}

/// Where the worker sees the copy in `repository`, if that is a folder.
fn mount_point(repository: &RepoName) -> String {
    format!("{SET_FOLDER}/{repository}")
}

/// Where the worker writes to. What goes straight to its place is recorded before.
fn destinations(
    run: &Run<'_>,
    policy: &Policy,
    copies: &mut Copies,
    location: &SetLocation,
) -> Result<Vec<Destination>, OperationError> {
    let place = Key::new(location.folder()).expect("names make a key");
    let mut destinations = Vec::new();
    copies.each(|repository, copy, made| {
        if copy.staging.is_none() {
            let thing = Thing::SetObjects { repository: repository.clone(), set: location.clone() };
            run.will_make(&policy.host, &thing)?;
            made.push(thing);
        }
        let (place, _) = copy.repository.for_worker(&place, &mount_point(repository));
        destinations.push(Destination { repository: repository.clone(), place });
        Ok(())
    })?;
    Ok(destinations)
}

/// The copies in repositories that took no more from the worker have failed.
fn rule_out(copies: &mut Copies, lost: Vec<(RepoName, SessionError)>) {
    for (repository, error) in lost {
        copies.fail(&repository, failed(format!("writing to repository \"{repository}\" failed"))(error));
    }
}

/// Makes every copy that is still good a backup: the objects in their place, then [`commit_set`].
fn commit_copies(
    run: &Run<'_>,
    policy: &Policy,
    copies: &mut Copies,
    documents: &Documents,
    what: &str,
) -> Result<(), OperationError> {
    copies.each(|repository, copy, made| {
        let what = format!("{what} in repository \"{repository}\"");
        if let Some(staging) = &copy.staging {
            move_to_its_place(run, policy, &copy.repository, staging, &documents.location, made)?;
        }
        commit_set(copy.repository.store(), documents).map_err(failed(what))
    })?;
    copies.committed();
    Ok(())
}

fn move_to_its_place(
    run: &Run<'_>,
    policy: &Policy,
    repository: &Repository,
    staging: &Key,
    location: &SetLocation,
    made: &mut Vec<Thing>,
) -> Result<(), OperationError> {
    let what = format!("backup of cluster \"{}\" failed", policy.name);
    let Some(store) = repository.folder() else { return Ok(()) };
    let place = Key::new(location.folder()).expect("names make a key");
    let thing = Thing::SetFolder(store.path(&place));
    run.will_make(&policy.host, &thing)?;
    made.push(thing);
    store.move_folder(staging, &place).map_err(failed(what))
}

/// Has the worker do the dump, and ends the worker.
async fn work(
    control: &ControlPlane,
    mut session: Session,
    planned: &DumpPlan,
    request: &Request,
    progress: Progress<'_>,
) -> Result<(Heard, Done), SessionError> {
    let count = planned.databases.len();
    progress(Tick::Step(format!("dumping {count} databases, {} side by side", planned.jobs)));
    let expected = planned.expected_bytes();
    let heard = Mutex::new(Heard::default());
    let done = session
        .request(request, &control.cancel, |event| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Object(object) => heard.objects.push(object),
                Event::Vanished { database } => heard.vanished.push(database),
                Event::RepositoryFailed { repository, trouble, message } => {
                    progress(Tick::Warning(format!("repository \"{repository}\" takes no more: {message}")));
                    heard.failed.push((repository, SessionError::Failed { trouble, message }));
                }
                Event::Log { message, .. } => {
                    progress(Tick::Warning(message.clone()));
                    heard.warnings.push(message);
                }
                Event::Progress { plain_bytes, stored_bytes } => {
                    progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected });
                }
                _ => {}
            }
        })
        .await;
    close_worker(session).await;
    Ok((heard.into_inner().unwrap_or_else(PoisonError::into_inner), done?))
}

/// Every object of the plan was written, or its database is known to be gone; and nothing else was.
fn check_complete(planned: &DumpPlan, heard: &Heard) -> Result<(), String> {
    let mut written: BTreeMap<&str, usize> = BTreeMap::new();
    for object in &heard.objects {
        *written.entry(&object.name).or_default() += 1;
    }
    if written.remove(planned.globals.as_str()) != Some(1) {
        return Err("the worker did not report the globals".to_owned());
    }
    if planned.facts.as_ref().is_some_and(|facts| written.remove(facts.object.as_str()) != Some(1)) {
        return Err("the worker did not report the facts".to_owned());
    }
    for database in &planned.databases {
        let gone = heard.vanished.contains(&database.database);
        match (written.remove(database.object.as_str()), gone) {
            (Some(1), false) | (None, true) => {}
            _ => return Err(format!("the worker's account of database \"{}\" does not add up", database.database)),
        }
    }
    match written.keys().next() {
        Some(name) => Err(format!("the worker reported an object nobody asked for: {name}")),
        None => Ok(()),
    }
}

fn describe(
    policy: &Policy,
    run: &Run<'_>,
    container: &Container,
    image: Option<crate::docker::Image>,
    planned: DumpPlan,
    heard: Heard,
    done: &Done,
) -> Manifest {
    let mut skipped = planned.skipped;
    skipped.extend(heard.vanished.into_iter().map(|database| Skipped {
        database,
        reason: "it was dropped while the backup ran".to_owned(),
        intended: false,
    }));
    let mut warnings = heard.warnings;
    warnings.extend(
        skipped
            .iter()
            .filter(|skipped| !skipped.intended)
            .map(|skipped| format!("database \"{}\" is not in the backup: {}", skipped.database, skipped.reason)),
    );
    warnings.extend(planned.warnings);
    Manifest {
        version: DUMP_VERSION,
        set: planned.set,
        kind: Kind::Dump,
        cluster: policy.name.clone(),
        lineage: planned.lineage,
        started_at: run.started_at,
        completed_at: Timestamp::now(),
        pglife: env!("CARGO_PKG_VERSION").to_owned(),
        tools: done.tools.clone(),
        codec: planned.codec.to_string(),
        image: ImageReference {
            name: container.image.clone(),
            id: container.image_id.clone(),
            digests: image.map(|image| image.digests).unwrap_or_default(),
        },
        server: planned.server,
        encryption: planned.recipients,
        objects: heard.objects,
        skipped,
        warnings,
    }
}

fn recipe(container: &Container, manifest: &Manifest) -> Recipe {
    Recipe {
        version: 1,
        container: container.name.clone(),
        image: manifest.image.clone(),
        command: container.command.clone(),
        mounts: container
            .mounts
            .iter()
            .map(|mount| RecipeMount {
                kind: mount.kind.clone(),
                source: mount.source.clone(),
                destination: mount.destination.clone(),
                writable: mount.writable,
            })
            .collect(),
        networks: container.networks.keys().cloned().collect(),
        ports: container.ports.clone(),
        labels: container.labels.clone().into_iter().collect(),
        environment: container.environment_names(),
        settings: manifest.server.settings.clone(),
    }
}

#[cfg(test)]
mod tests;
