//! `pglife backup --kind volume`: a copy of the data container's volumes, taken while the server runs, or while it is stopped.
//!
//! ```text
//! hot:  worker inspects the server ─▶ plan (pure) ─▶ the same worker, with the volumes mounted read-only, copies
//!         ─▶ as every backup: verdict, commit
//! cold: the same, but another worker copies, between: stop the container ─▶ … ─▶ start it
//! ```
//!
//! With `full_every` above 1, a copy holds only the blocks that changed since the one before ([`parent`]), until a full one is due.
//!
//! That a container is to be stopped is recorded before it is. It is started again as soon as the copy is through, well or not;
//! where pglife dies meanwhile, by the next run or `pglife status`.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::backup_set::{
    Codec, Content, CopyMode, ImageReference, Kind, MANIFEST_VERSION, Manifest, Moved, Naming, Object, ServerProfile,
    SetId, SetLocation, block_index,
};
use crate::cluster::{ClusterName, Lineage, PgMajor, RepoName};
use crate::control::{
    ControlPlane, OperationError, Progress, Run, Tick, close_worker, entropy, failed, start_worker, worker_threads,
};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine};
use crate::encryption::{Keys, Recipients};
use crate::exit::Exit;
use crate::policy::{IoPriority, Layout, Policy, Rate};
use crate::postgres::Login;
use crate::postgres::hot_backup::HotBackup;
use crate::provision;
use crate::state::Thing;
use crate::storage::Repository;
use crate::worker::session::{Session, SessionError};
use crate::worker::{BlocksJob, Destination, Event, ParentJob, Request, VolumeJob};

use super::copies::Copies;
use super::documents::Documents;
use super::parent::{self, Full, Parent};
use super::places::{self, PlaceError, Places};
use super::{Made, commit_copies, destinations, inspect, look, make_staging, recipe, rule_out, running_container};

/// Codec threads: each has a frame of some MiB, and the worker must stay small on a large machine.
const MOST_THREADS: usize = 16;

/// Everything about a volume backup that is about to begin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumePlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The set it becomes.
    pub set: SetId,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The object of a full copy.
    pub object: String,
    /// While the server runs, or while it is stopped.
    pub mode: CopyMode,
    /// The volumes that are copied, by the place where the containers see them.
    pub volumes: Vec<String>,
    /// The data directory among them.
    pub pgdata: String,
    /// Folders that the server sees elsewhere, the data directory first: those of an adopted cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Moved>,
    /// What the worker mounts of the cluster.
    #[serde(skip)]
    mounts: Vec<WorkerMount>,
    /// What the operator should read.
    pub warnings: Vec<String>,
    /// Its codec.
    pub codec: Codec,
    /// How many bytes are read in a second at most; None: as many as possible.
    pub rate_limit_bytes_per_second: Option<u64>,
    /// Whose turn it is at the disk; None: nobody's before others.
    pub ionice: Option<IoPriority>,
    /// Codec threads.
    pub threads: usize,
    /// Who will be able to open it; None: everybody.
    pub recipients: Option<Recipients>,
    /// The block index, where later copies are to hold only what changed; None: there is none.
    pub blocks: Option<BlocksPlan>,
    /// The server as it was found.
    pub server: ServerProfile,
}

/// What is to be noted of a copy's blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlocksPlan {
    /// The object of the index.
    pub object: String,
    /// Bytes in a block of a full copy.
    pub block_bytes: u32,
    /// The object of a copy that holds only what changed.
    pub changes: String,
    /// The copies that it builds on, nearest first; none: it is a full one.
    pub ancestors: Vec<SetId>,
}

/// The cluster cannot be backed up so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumePlanError {
    /// The server is of another major than the policy says.
    #[error("the policy says PostgreSQL {policy}, the server is {server}")]
    OtherMajor {
        /// In the policy.
        policy: PgMajor,
        /// In the world.
        server: PgMajor,
    },
    /// Before 10 no slot keeps the WAL for a session.
    #[error("while it runs, this version copies the volumes of PostgreSQL 10 and newer; the server is {0}")]
    TooOld(PgMajor),
    /// Its files are not where they can be copied.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

impl VolumePlanError {
    fn next(&self, policy: &Policy) -> String {
        match self {
            Self::OtherMajor { .. } => format!("correct `major` in the policy of \"{}\"", policy.name),
            Self::TooOld(_) => format!(
                "copy it while it is stopped: pglife backup {0} --kind volume --mode cold; or take a dump: pglife backup {0} --kind dump",
                policy.name
            ),
            Self::Place(PlaceError::NoVolume { .. }) => {
                format!("leave it out in the policy of \"{}\": [backup.volume] volumes", policy.name)
            }
            Self::Place(PlaceError::InContainer(_)) => {
                format!(
                    "take a dump, and restore it into a cluster with volumes: pglife backup {} --kind dump",
                    policy.name
                )
            }
            Self::Place(PlaceError::TablespaceOutside { .. }) => format!(
                "move it {} (ALTER TABLE … SET TABLESPACE), or take a dump: pglife backup {} --kind dump",
                if matches!(policy.layout, Layout::Managed(_)) { "below /data" } else { "into one of them" },
                policy.name
            ),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::OtherMajor { .. } | Self::Place(PlaceError::NoVolume { .. }) => Exit::Usage,
            Self::TooOld(_) | Self::Place(_) => Exit::Refused,
        }
    }
}

/// Plans a copy of the files of the server that `server` describes, in `container`, sealed to `recipients` if there are any.
pub fn plan_volume(
    policy: &Policy,
    container: &Container,
    server: ServerProfile,
    set: SetId,
    threads: usize,
    recipients: Option<Recipients>,
) -> Result<VolumePlan, VolumePlanError> {
    if server.major != policy.major {
        return Err(VolumePlanError::OtherMajor { policy: policy.major, server: server.major });
    }
    if policy.volume.mode == CopyMode::Hot && !server.major.is_at_least(HotBackup::OLDEST) {
        return Err(VolumePlanError::TooOld(server.major));
    }
    let volumes: Vec<String> = policy.volume.volumes.iter().map(|volume| volume.path().to_owned()).collect();
    let Places { mounts, moved } = places::find(policy, container, &server)?;
    let (naming, codec) = (Naming::of_set(recipients.is_some()), policy.volume.codec);
    let bytes = server.databases.iter().map(|database| database.bytes).sum();
    let blocks = is_indexed(policy).then(|| BlocksPlan {
        object: naming.blocks(codec),
        block_bytes: block_index::block_bytes(bytes),
        changes: naming.changes(codec),
        ancestors: vec![],
    });
    Ok(VolumePlan {
        cluster: policy.name.clone(),
        set,
        lineage: Lineage { system_identifier: server.system_identifier, major: server.major },
        object: naming.volume(codec),
        mode: policy.volume.mode,
        volumes,
        pgdata: places::data_directory(server.major),
        moved,
        mounts,
        warnings: vec![],
        codec,
        rate_limit_bytes_per_second: policy.volume.rate_limit.map(Rate::bytes_per_second),
        ionice: policy.volume.ionice,
        threads: threads.clamp(1, MOST_THREADS),
        recipients,
        blocks,
        server,
    })
}

impl VolumePlan {
    /// Builds on `parent`, unless that is a copy of another server or there is none: then says why not.
    fn build_on(&mut self, parent: Result<Parent, Full>) -> Option<Parent> {
        let blocks = self.blocks.as_mut()?;
        let full = match parent {
            Ok(parent) if parent.lineage == self.lineage => {
                blocks.ancestors = parent.ancestors.iter().map(|ancestor| ancestor.set.clone()).collect();
                return Some(parent);
            }
            Ok(parent) => Full::OtherLineage(parent.ancestors[0].set.clone()),
            Err(full) => full,
        };
        tracing::info!("a full copy is taken: {full}");
        if full.is_trouble() {
            self.warnings.push(format!("a full copy was taken, not only what changed: {full}"));
        }
        None
    }

    /// The request for the worker.
    fn job(
        &self,
        login: Login,
        destinations: Vec<Destination>,
        parent: Option<&Parent>,
        reader: Option<&Keys>,
    ) -> VolumeJob {
        VolumeJob {
            mode: self.mode,
            login,
            major: self.lineage.major,
            system_identifier: self.lineage.system_identifier,
            wal_segment_bytes: self.server.wal_segment_bytes,
            pgdata: self.pgdata.clone(),
            volumes: self.volumes.clone(),
            moved: self.moved.clone(),
            label: format!("pglife {}", self.set),
            // Slots have lower-case letters, digits and underscores.
            slot: format!("pglife_{}", self.set.as_str().to_ascii_lowercase().replace('-', "_")),
            destinations,
            object: self.object.clone(),
            codec: self.codec,
            rate_limit: self.rate_limit_bytes_per_second,
            ionice: self.ionice,
            threads: self.threads,
            recipients: self.recipients.clone(),
            page_checksums: self.server.data_checksums,
            blocks: self.blocks.as_ref().map(|blocks| BlocksJob {
                set: self.set.clone(),
                object: blocks.object.clone(),
                readers: self.recipients.as_ref().map(|all| reader.map_or_else(|| all.clone(), |key| all.and(key))),
                block_bytes: blocks.block_bytes,
                parent: parent.map(|parent| ParentJob {
                    place: parent.reach.place.clone(),
                    index: parent.index.clone(),
                    keys: parent.keys.clone(),
                    ancestors: parent.ancestors.clone(),
                    object: blocks.changes.clone(),
                    read_all: parent.damaged,
                    since: parent.since.clone(),
                }),
            }),
        }
    }

    /// What is copied, by the place where the server sees it.
    pub fn sources(&self) -> Vec<&str> {
        if self.moved.is_empty() {
            return self.volumes.iter().map(String::as_str).collect();
        }
        self.moved.iter().map(|moved| moved.from.as_str()).collect()
    }

    /// The copies that it builds on, nearest first; none: it is a full one.
    pub fn ancestors(&self) -> &[SetId] {
        self.blocks.as_ref().map_or(&[], |blocks| &blocks.ancestors)
    }

    /// The object that the volumes go to.
    pub fn object(&self) -> &str {
        match &self.blocks {
            Some(blocks) if !blocks.ancestors.is_empty() => &blocks.changes,
            _ => &self.object,
        }
    }

    /// Whether these are the objects that the worker was asked for.
    fn is_all(&self, objects: &[Object]) -> bool {
        let (volume, index) = match (objects, &self.blocks) {
            ([volume], None) => (volume, None),
            ([volume, index], Some(blocks)) => (volume, Some((index, blocks))),
            _ => return false,
        };
        let Content::Volume(copy) = &volume.content else { return false };
        let name = match (&copy.incremental, &self.blocks) {
            (Some(_), Some(blocks)) => &blocks.changes,
            _ => &self.object,
        };
        let indexed =
            |(index, blocks): (&Object, &BlocksPlan)| index.content == Content::Blocks && index.name == blocks.object;
        volume.name == *name && index.is_none_or(indexed)
    }

    /// Size on disk of all databases: most of what will be copied; None where the server did not say.
    pub fn expected_bytes(&self) -> Option<u64> {
        let sum = self.server.databases.iter().map(|database| database.bytes).sum();
        (sum > 0).then_some(sum)
    }
}

fn plan(
    control: &ControlPlane,
    policy: &Policy,
    container: &Container,
    server: ServerProfile,
    what: &str,
) -> Result<VolumePlan, OperationError> {
    let set = SetId::new(Timestamp::now(), Kind::Volume, entropy());
    let threads = worker_threads();
    let recipients = control.configuration.settings.encryption.as_ref().map(|encryption| encryption.recipients.clone());
    plan_volume(policy, container, server, set, threads, recipients).map_err(|error| refused(&error, policy, what))
}

fn refused(error: &VolumePlanError, policy: &Policy, what: &str) -> OperationError {
    OperationError::new(error.exit(), format!("{what}: {error}")).next(error.next(policy))
}

/// Looks at the server and says what a volume backup would do.
pub async fn dry_run(
    control: &ControlPlane,
    policy: &Policy,
    repository: Option<&RepoName>,
) -> Result<VolumePlan, OperationError> {
    let what = format!("planning a volume backup of cluster \"{}\" failed", policy.name);
    let repositories = control.repositories_of(policy, repository)?.open;
    let repositories: Vec<Repository> = repositories.into_iter().map(|(_, repository)| repository).collect();
    let reader = reader(control, policy)?;
    let parent = find_parent(control, policy, &repositories, reader.as_ref());
    look(control, policy, repository, &what, |container, server| {
        let mut planned = plan(control, policy, container, server, &what)?;
        planned.build_on(parent);
        Ok(planned)
    })
    .await
}

/// The key that opens this machine's block indexes, where there are any and they are sealed.
fn reader(control: &ControlPlane, policy: &Policy) -> Result<Option<Keys>, OperationError> {
    let wanted = is_indexed(policy) && control.configuration.settings.encryption.is_some();
    wanted.then(|| control.reader()).transpose()
}

fn is_indexed(policy: &Policy) -> bool {
    policy.volume.full_every.get() > 1
}

fn find_parent(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &[Repository],
    reader: Option<&Keys>,
) -> Result<Parent, Full> {
    if is_indexed(policy) { parent::find(control, policy, repositories, reader) } else { Err(Full::First) }
}

pub(super) async fn in_run(
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
    let mut beside = make_staging(run, policy, copies, &what)?;
    let reader = reader(control, policy)?;
    let parent = find_parent(control, policy, &copies.repositories(), reader.as_ref());
    beside.extend(parent.as_ref().ok().and_then(|parent| parent.reach.mount.clone()));
    let cold = policy.volume.mode == CopyMode::Cold;
    // Another worker copies where the first one cannot: what of an adopted cluster lies where is known when its server has told of its
    // tablespaces, and a worker in the network of a container that stops has none any more.
    let known = places::known(policy, &container).map_err(|error| refused(&error.into(), policy, &what))?;
    let copies_too = known.filter(|_| !cold).map(|known| known.into_iter().chain(beside.clone()).collect());
    let another = copies_too.is_none();
    let mounts = copies_too.unwrap_or_default();
    let (mut session, server) = inspect(control, run, policy, engine, &container, mounts, &what).await?;
    let prepared = plan(control, policy, &container, server, &what).and_then(|mut planned| {
        let parent = planned.build_on(parent);
        let location = SetLocation { cluster: policy.name.clone(), lineage: planned.lineage, id: planned.set.clone() };
        let destinations = destinations(run, policy, copies, &location)?;
        Ok((planned, parent, location, destinations, control.login(policy, &container)?.0))
    });
    let (planned, parent, location, destinations, login) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            close_worker(session).await;
            return Err(error);
        }
    };
    if another {
        close_worker(session).await;
        let mounts = planned.mounts.iter().cloned().chain(beside).collect();
        session = start_another(run, policy, engine, &container, mounts, &what).await?;
    }
    if cold && let Err(error) = stop(control, run, policy, engine, &container, &what, progress).await {
        close_worker(session).await;
        return Err(error);
    }
    let since = parent.as_ref().map(|parent| format!(" since {}", parent.ancestors[0].set)).unwrap_or_default();
    progress(Tick::Step(format!("copying {}{since}", planned.sources().join(" "))));
    let expected = planned.expected_bytes();
    let heard = Mutex::new((Vec::<Object>::new(), Vec::<String>::new(), Vec::<(RepoName, SessionError)>::new()));
    let request = Request::Volume(Box::new(planned.job(login, destinations, parent.as_ref(), reader.as_ref())));
    let done = session
        .request(&request, &control.cancel, |event| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Object(object) => heard.0.push(object),
                Event::Log { message, .. } => {
                    progress(Tick::Warning(message.clone()));
                    heard.1.push(message);
                }
                Event::RepositoryFailed { repository, trouble, message } => {
                    progress(Tick::Warning(format!("repository \"{repository}\" takes no more: {message}")));
                    heard.2.push((repository, SessionError::Failed { trouble, message }));
                }
                Event::Progress { plain_bytes, stored_bytes } => {
                    progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected });
                }
                _ => {}
            }
        })
        .await;
    close_worker(session).await;
    if cold {
        progress(Tick::Step("starting the server".to_owned()));
        start(engine, &container, &what).await?;
    }
    let done = done.map_err(failed(&what))?;
    let (objects, mut warnings, lost) = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !planned.is_all(&objects) {
        let why = "the worker's account of the volumes does not add up";
        return Err(OperationError::new(Exit::Failed, format!("{what}: {why}")));
    }
    rule_out(copies, lost);
    if let Some(why) = objects.iter().find_map(summaries_unused) {
        tracing::info!("every block was read: summaries of the server's WAL did not tell what changed: {why}");
    }

    progress(Tick::Step("committing".to_owned()));
    warnings.extend(planned.warnings);
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        set: planned.set,
        kind: Kind::Volume,
        cluster: policy.name.clone(),
        lineage: planned.lineage,
        started_at: run.started_at,
        completed_at: Timestamp::now(),
        pglife: env!("CARGO_PKG_VERSION").to_owned(),
        tools: done.tools,
        codec: planned.codec.to_string(),
        image: ImageReference {
            name: container.image.clone(),
            id: container.image_id.clone(),
            digests: image.as_ref().map(|image| image.digests.clone()).unwrap_or_default(),
        },
        server: planned.server,
        encryption: planned.recipients,
        objects,
        skipped: vec![],
        warnings: warnings.clone(),
    };
    let recipe = recipe(&container, &manifest).to_bytes();
    let documents = Documents::of(location, manifest, &recipe, reader.as_ref());
    commit_copies(run, policy, copies, &documents, &what)?;
    let mut exit = Exit::Ok;
    if let (true, Some(image)) = (cold, &image) {
        progress(Tick::Step("waiting for the server".to_owned()));
        let what = "the backup was taken, but the server does not answer since it was started again";
        let seconds = provision::RECOVERY_SECONDS;
        let answers =
            provision::await_server(control, run, policy, engine, &container, image, vec![], what, seconds, None);
        match answers.await {
            Ok((session, _)) => close_worker(session).await,
            Err(error) => {
                exit = Exit::Postgres;
                warnings.push(format!("{}; see docker logs {}", error.chain(), container.name));
            }
        }
    }
    Ok(Made { commit: documents.commit, warnings, exit, peak_memory_bytes: done.peak_memory_bytes })
}

/// Why the server did not tell what changed, where it might have.
fn summaries_unused(object: &Object) -> Option<&str> {
    let Content::Volume(copy) = &object.content else { return None };
    copy.incremental.as_ref()?.summaries_unused.as_deref()
}

/// How long a server may take to shut down before it is killed, and the backup fails.
const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// Starts the worker that will copy.
async fn start_another(
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    container: &Container,
    mounts: Vec<WorkerMount>,
    what: &str,
) -> Result<Session, OperationError> {
    let network = match policy.volume.mode {
        CopyMode::Hot => WorkerNetwork::Of(container.id.clone()),
        CopyMode::Cold => {
            let name = container.networks.keys().next();
            WorkerNetwork::Named(name.cloned().unwrap_or_else(|| "bridge".to_owned()))
        }
    };
    let plan = WorkerPlan {
        run: run.id.clone(),
        cluster: policy.name.clone(),
        image_id: container.image_id.clone(),
        mounts,
        network,
        serves: false,
    };
    start_worker(engine, &plan).await.map_err(failed(what))
}

/// Stops the server.
async fn stop(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    container: &Container,
    what: &str,
    progress: Progress<'_>,
) -> Result<(), OperationError> {
    if control.cancel.is_cancelled() {
        return Err(OperationError::new(Exit::Interrupted, format!("{what}: cancelled")));
    }
    run.will_make(&policy.host, &Thing::Stopped(container.id.clone()))?;
    progress(Tick::Step(format!("stopping container \"{}\"", container.name)));
    engine.stop(&container.id, STOP_PATIENCE).await.map_err(failed(what))
}

/// Starts the server again.
async fn start(engine: &Engine, container: &Container, what: &str) -> Result<(), OperationError> {
    engine.start(&container.id).await.map_err(|error| {
        let name = &container.name;
        failed(format!("{what}: container \"{name}\" was stopped for the copy, and does not start"))(error)
            .next(format!("start it: docker start {name}; then see its log: docker logs {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::example_manifest;
    use crate::docker::Mount;
    use crate::policy::VolumeName;

    fn plan(change: impl FnOnce(&mut Policy, &mut ServerProfile)) -> Result<VolumePlan, VolumePlanError> {
        let mut policy = crate::policy::file::example("[cluster]\nmajor = '17'\n");
        let mut server = example_manifest().server;
        server.tablespaces.clear();
        change(&mut policy, &mut server);
        let set = "20261122T023000Z-volume-k3x9qa".parse().expect("an id");
        let mount = |volume: VolumeName| Mount {
            kind: "volume".to_owned(),
            source: format!("shop{}", volume.path().replace('/', "-")),
            folder: String::new(),
            destination: volume.path().to_owned(),
            writable: true,
        };
        let container = Container { mounts: VolumeName::ALL.map(mount).to_vec(), ..Container::default() };
        plan_volume(&policy, &container, server, set, 64, None)
    }

    #[test]
    fn everything_is_fixed_before_it_begins() {
        let planned = plan(|_, _| ()).expect("a plan");
        assert_eq!(planned.volumes, ["/data", "/config", "/secret", "/log"]);
        assert_eq!((planned.pgdata.as_str(), planned.threads), ("/data/17", MOST_THREADS));
        let login = Login {
            host: "/data/run".to_owned(),
            port: 5432,
            user: crate::cluster::RoleName::new("postgres").expect("a role"),
            password: None,
        };
        let job = planned.job(login, vec![], None, None);
        assert_eq!(
            (job.object.as_str(), job.label.as_str()),
            ("volume.tar.zst", "pglife 20261122T023000Z-volume-k3x9qa")
        );
        assert_eq!(job.slot, "pglife_20261122t023000z_volume_k3x9qa");
        assert!(job.slot.len() < 64);
    }

    #[test]
    fn another_server_is_refused() {
        let major = |text: &str| text.parse::<PgMajor>().expect("a major");
        let refused = plan(|_, server| server.major = major("15")).expect_err("another major");
        assert!(matches!(refused, VolumePlanError::OtherMajor { .. }));
        let old = plan(|policy, server| {
            policy.major = major("9.6");
            server.major = major("9.6");
        });
        assert_eq!(old, Err(VolumePlanError::TooOld(major("9.6"))));
    }
}
