//! A new cluster from a copy of volumes: its volumes are unpacked before there is a server, which then replays the WAL in them.

use serde::Serialize;

use crate::backup_set::certificate::{Check, Outcome};
use crate::backup_set::{Ancestor, Kind, Manifest, Moved, Object, SetId, Sorting};
use crate::cluster::{ClusterName, DatabaseName, PgMajor, VolumeName};
use crate::control::{ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed, start_worker};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine, Image};
use crate::encryption::Keys;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::provision::{self, ClusterPlan};
use crate::worker::session::Session;
use crate::worker::{
    ChainJob, Event, Excerpt, FilesCheck, LocateJob, PartOfDatabase, Renewal, Request, SettleIn, SettleJob, TableName,
    UnpackJob,
};

use super::plan::{PlanError, Wanted};
use super::{Source, damaged_set};

/// Everything about a restore of volumes that is about to begin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeRestorePlan {
    /// The set.
    pub set: SetId,
    /// The cluster it is of.
    pub source: ClusterName,
    /// Its major.
    pub major: PgMajor,
    /// The server's system identifier, which the copy keeps.
    pub system_identifier: u64,
    /// The object.
    pub object: Object,
    /// What it is put together from, where the object does not hold all of it.
    pub chain: Option<Chain>,
    /// The volumes in it that are restored.
    pub volumes: Vec<String>,
    /// Those that are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The databases that come with them.
    pub databases: Vec<DatabaseName>,
    /// Codec threads.
    pub threads: usize,
    /// With what the source sorted text, where that is known: an image that sorts with something else needs new indexes.
    pub sorting: Option<Sorting>,
    /// What makes the data directory one of pglife's image, where it is that of an adopted cluster.
    #[serde(skip)]
    settle_in: Option<SettleIn>,
    /// The databases that can be entered.
    #[serde(skip)]
    connectable: Vec<DatabaseName>,
    /// The data directory in them, where its files are to be compared with the server's own manifest.
    #[serde(skip)]
    pub check: Option<String>,
    /// What of it is unpacked, where that is not all.
    #[serde(skip)]
    excerpt: Option<Excerpt>,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// What the tar of an incremental set is put together from, beside the set's own object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chain {
    /// Bytes of the tar.
    pub tar_bytes: u64,
    /// The block index.
    pub index: Object,
    /// The sets it builds on, nearest first.
    pub ancestors: Vec<Ancestor>,
}

/// Plans the restore of the volumes that `manifest` describes into a cluster of `major`.
pub fn plan_volume_restore(
    manifest: &Manifest,
    major: PgMajor,
    wanted: &Wanted,
    threads: usize,
) -> Result<VolumeRestorePlan, PlanError> {
    if manifest.kind != Kind::Volume {
        return Err(PlanError::OtherKind(manifest.set.clone(), manifest.kind));
    }
    if *wanted != Wanted::Everything {
        return Err(PlanError::OnlyWhole(manifest.set.clone()));
    }
    let from = manifest.server.major;
    if from != major {
        return Err(PlanError::OtherMajor { set: manifest.set.clone(), from, to: major });
    }
    let (object, copy) = manifest.volume().ok_or(PlanError::NoVolumes)?;
    let chain = match &copy.incremental {
        None => None,
        Some(incremental) => Some(Chain {
            tar_bytes: incremental.tar_bytes,
            index: manifest.blocks().ok_or(PlanError::NoVolumes)?.clone(),
            ancestors: incremental.ancestors.clone(),
        }),
    };
    let mut warnings = Vec::new();
    if manifest.server.archives() {
        warnings.push(
            "the copy has archive_mode on, as its source: see to it that both do not write to one archive".to_owned(),
        );
    }
    // Of an adopted cluster the data directory is there, and what its container had beside it is not.
    let outside = |file: &str| !copy.moved.is_empty() && Moved::place(&copy.moved, file).is_none();
    let missing: Vec<&str> = manifest.server.files.iter().map(String::as_str).filter(|file| outside(file)).collect();
    if !missing.is_empty() {
        warnings.push(format!(
            "{} lay outside the data directory and are not in the backup: those in the data directory hold; put what you miss into /config",
            missing.join(", ")
        ));
    }
    Ok(VolumeRestorePlan {
        set: manifest.set.clone(),
        source: manifest.cluster.clone(),
        major,
        system_identifier: manifest.server.system_identifier,
        object: object.clone(),
        chain,
        volumes: copy.volumes.clone(),
        left_out: vec![],
        databases: manifest
            .server
            .databases
            .iter()
            .map(|database| database.name.clone())
            .filter(|name| name.as_str() != "template0")
            .collect(),
        threads,
        sorting: copy.sorting.clone(),
        settle_in: (!copy.moved.is_empty()).then(|| SettleIn {
            pgdata: copy.pgdata.clone(),
            role: manifest.server.bootstrap_role.clone(),
            own_access_rules: manifest.server.files.iter().skip(1).any(|file| outside(file)),
        }),
        connectable: manifest.server.connectable(),
        check: None,
        excerpt: None,
        warnings,
    })
}

impl VolumeRestorePlan {
    /// Whether the data directory is one of pglife's image as it is.
    pub(crate) fn is_of_our_image(&self) -> bool {
        self.settle_in.is_none()
    }

    /// Takes only `excerpt` of the copy that `manifest` describes, for a server that lives as long as it is asked for that.
    pub(crate) fn take(&mut self, excerpt: Excerpt, manifest: &Manifest) {
        // With it, what is left out need not be read.
        if let (None, Some(index)) = (&self.chain, manifest.blocks()) {
            let tar_bytes = self.object.plain.bytes;
            self.chain = Some(Chain { tar_bytes, index: index.clone(), ancestors: vec![] });
        }
        self.excerpt = Some(excerpt);
        let volumes = std::mem::take(&mut self.volumes);
        (self.left_out, self.volumes) = volumes.into_iter().partition(|volume| volume == "/log");
        // Rows are read in the order of no index.
        self.sorting = None;
        // Those are for a server that stays.
        self.warnings.clear();
    }

    /// What of it is unpacked, where that is not all.
    pub(crate) fn excerpt(&self) -> Option<&Excerpt> {
        self.excerpt.as_ref()
    }

    /// Leaves out all volumes but `volume`.
    pub(crate) fn only(&mut self, volume: &str) {
        let volumes = std::mem::take(&mut self.volumes);
        (self.volumes, self.left_out) = volumes.into_iter().partition(|one| one == volume);
    }

    /// Bytes of the tar.
    pub(crate) fn tar_bytes(&self) -> u64 {
        self.chain.as_ref().map_or(self.object.plain.bytes, |chain| chain.tar_bytes)
    }

    /// The request for the worker.
    pub(crate) fn job(&self, source: &Source, keys: Option<Keys>) -> UnpackJob {
        let places = source.ancestors.iter().map(|reach| reach.place.clone());
        UnpackJob {
            place: source.own.place.clone(),
            object: self.object.clone(),
            volumes: self.volumes.clone(),
            left_out: self.left_out.clone(),
            threads: self.threads,
            keys,
            chain: self.chain.as_ref().map(|chain| ChainJob {
                tar_bytes: chain.tar_bytes,
                index: chain.index.clone(),
                ancestors: chain.ancestors.iter().cloned().zip(places).collect(),
            }),
            check: self.check.clone().map(|pgdata| FilesCheck { major: self.major, pgdata }),
            settle_in: self.settle_in.clone(),
            excerpt: self.excerpt.clone(),
        }
    }
}

/// What is needed to do it.
pub(crate) struct VolumeScene<'a> {
    pub(crate) control: &'a ControlPlane,
    pub(crate) run: &'a Run<'a>,
    pub(crate) engine: &'a Engine,
    pub(crate) image: &'a Image,
    pub(crate) policy: &'a Policy,
    pub(crate) source: &'a Source,
    pub(crate) what: &'a str,
    pub(crate) progress: Progress<'a>,
}

/// Makes the volumes, fills them, and starts the server on them; a bucket is reached through `network`. Returns its container when it has
/// reached consistency, and what the operator should read. What was checked on the way is added to `checks`; on files that are not what
/// was copied no server is started.
pub(crate) async fn restore(
    scene: &VolumeScene<'_>,
    cluster: &ClusterPlan,
    network: Option<&str>,
    plan: &VolumeRestorePlan,
    keys: Option<Keys>,
    checks: &mut Vec<Check>,
) -> Result<(Container, Vec<String>), OperationError> {
    let &VolumeScene { run, engine, what, progress, .. } = scene;
    provision::make_data(run, engine, cluster, what, progress).await?;
    progress(Tick::Step(format!("unpacking {}", plan.volumes.join(" "))));
    let volumes = cluster.volumes().map(|(volume, destination)| (volume, destination.to_owned()));
    let sorts_otherwise = unpack(scene, (volumes.collect(), network), plan, keys, checks).await?;
    if let Some(failed) = checks.iter().find(|check| check.outcome == Outcome::Failed) {
        let what = format!("{what}: its files are not what was copied: {}", failed.found.join("; "));
        return Err(OperationError::new(Exit::VerifyFailed, what).next("restore another backup: pglife backups list"));
    }
    let container = provision::make_database(run, engine, cluster, what, progress).await?;
    let warnings = serve(scene, plan, &container, &sorts_otherwise).await?;
    Ok((container, warnings))
}

/// Makes the volumes, fills them with the excerpt that `plan` takes, of the database `sought` only what its table needs, and starts the
/// server on them. Returns its container when it has reached consistency. What it takes on disk must be free; where that is not known
/// of the excerpt itself, it is `bytes` at least.
pub(crate) async fn restore_excerpt(
    scene: &VolumeScene<'_>,
    cluster: &ClusterPlan,
    network: Option<&str>,
    plan: &mut VolumeRestorePlan,
    (sought, bytes): (Option<(u32, &TableName)>, u64),
    keys: Option<Keys>,
) -> Result<Container, OperationError> {
    let &VolumeScene { run, engine, what, progress, .. } = scene;
    provision::make_data(run, engine, cluster, what, progress).await?;
    let mounts = mounts(cluster.volumes().map(|(volume, destination)| (volume, destination.to_owned())));
    let mut session = unpacker(scene, mounts, network).await?;
    let filled = fill_excerpt(scene, &mut session, plan, (sought, bytes), keys).await;
    close_worker(session).await;
    filled?;
    let container = provision::make_database(run, engine, cluster, what, progress).await?;
    serve(scene, plan, &container, &[]).await?;
    Ok(container)
}

async fn fill_excerpt(
    scene: &VolumeScene<'_>,
    session: &mut Session,
    plan: &mut VolumeRestorePlan,
    (sought, mut bytes): (Option<(u32, &TableName)>, u64),
    keys: Option<Keys>,
) -> Result<(), OperationError> {
    let &VolumeScene { control, source, what, progress, .. } = scene;
    if let Some((database, table)) = sought {
        progress(Tick::Step(format!("looking for the files of {table}")));
        let job = LocateJob { tar: plan.job(source, keys.clone()), major: plan.major, database, table: table.clone() };
        let request = Request::Locate(Box::new(job));
        let mut part = None;
        let located = session.request(&request, &control.cancel, |event| {
            if let Event::Located { files, bytes: needed } = event {
                part = Some(PartOfDatabase { database, files });
                bytes = needed;
            }
        });
        located.await.map_err(|error| damaged_set(error, &plan.set, what))?;
        if let Some(excerpt) = &mut plan.excerpt {
            excerpt.part = part;
        }
    }
    let mut free = u64::MAX;
    let request = Request::MeasureFreeSpace { folder: "/data".to_owned() };
    let measured = session.request(&request, &control.cancel, |event| {
        if let Event::FreeSpace { bytes } = event {
            free = bytes;
        }
    });
    measured.await.map_err(failed(what))?;
    if free < bytes {
        let (needed, free) = (bytes >> 20, free >> 20);
        let why = format!(
            "{what}: the throwaway server needs {needed} MB, and the disk with Docker's volumes has {free} MB free"
        );
        return Err(OperationError::new(Exit::Refused, why).next("make room there, then run the same command again"));
    }
    progress(Tick::Step(format!("unpacking {}", plan.volumes.join(" "))));
    let request = Request::Unpack(Box::new(plan.job(source, keys)));
    into_volumes(scene, session, plan, &request, |_| ()).await.map(drop)
}

/// Waits until the server in `container` has reached consistency, and makes sure that it is the one of the backup. Returns what the
/// operator should read.
pub(super) async fn serve(
    scene: &VolumeScene<'_>,
    plan: &VolumeRestorePlan,
    container: &Container,
    sorts_otherwise: &[String],
) -> Result<Vec<String>, OperationError> {
    let &VolumeScene { control, run, engine, image, policy, what, progress, .. } = scene;
    progress(Tick::Step("waiting until the server has replayed its WAL".to_owned()));
    let (mut session, server) = provision::await_server(
        control,
        run,
        policy,
        engine,
        container,
        image,
        vec![],
        what,
        provision::RECOVERY_SECONDS,
        Some(policy.major),
    )
    .await?;
    // A server answers when it is consistent, not before. That it is the one of the backup is known by its identifier.
    let warnings = if server.system_identifier == plan.system_identifier {
        renew(scene, plan, &mut session, container, sorts_otherwise).await
    } else {
        Err(OperationError::new(Exit::Failed, format!("{what}: another server answers than the one of the backup")))
    };
    close_worker(session).await;
    warnings
}

/// Has a worker unpack into the volumes, each at its place, and checks what it unpacked; a bucket is reached through `network`. Returns
/// what sorts text otherwise than it did for the source.
pub(crate) async fn unpack(
    scene: &VolumeScene<'_>,
    (volumes, network): (Vec<(VolumeName, String)>, Option<&str>),
    plan: &VolumeRestorePlan,
    keys: Option<Keys>,
    checks: &mut Vec<Check>,
) -> Result<Vec<String>, OperationError> {
    let mut session = unpacker(scene, mounts(volumes.into_iter()), network).await?;
    let request = Request::Unpack(Box::new(plan.job(scene.source, keys)));
    let done = into_volumes(scene, &mut session, plan, &request, |event| {
        if let Event::Checked(check) = event {
            checks.push(check);
        }
    })
    .await;
    close_worker(session).await;
    done
}

/// How a worker sees volumes that it fills, each at its place.
fn mounts(volumes: impl Iterator<Item = (VolumeName, String)>) -> Vec<WorkerMount> {
    volumes
        .map(|(volume, destination)| WorkerMount { source: volume.to_string(), destination, writable: true })
        .collect()
}

/// A worker that sees volumes and the set; a bucket is reached through `network`.
pub(super) async fn unpacker(
    scene: &VolumeScene<'_>,
    volumes: Vec<WorkerMount>,
    network: Option<&str>,
) -> Result<Session, OperationError> {
    let &VolumeScene { run, engine, image, policy, source, what, .. } = scene;
    let reached = source.mounts();
    let network = if reached.is_empty() {
        // Docker's own bridge, or where the server will be.
        WorkerNetwork::Named(network.unwrap_or("bridge").to_owned())
    } else {
        WorkerNetwork::Nothing
    };
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: policy.name.clone(),
        image_id: image.id.clone(),
        mounts: volumes.into_iter().chain(reached).collect(),
        network,
        serves: false,
    };
    start_worker(engine, &worker).await.map_err(failed(what))
}

/// Has the worker of `session` do `request`, with which the volumes hold the set. Returns what sorts text otherwise than it did for the
/// source.
pub(super) async fn into_volumes(
    scene: &VolumeScene<'_>,
    session: &mut Session,
    plan: &VolumeRestorePlan,
    request: &Request,
    mut hear: impl FnMut(Event),
) -> Result<Vec<String>, OperationError> {
    let &VolumeScene { control, what, progress, .. } = scene;
    let expected = Some(plan.tar_bytes());
    let done = session.request(request, &control.cancel, |event| match event {
        Event::Progress { plain_bytes, stored_bytes } => {
            progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected });
        }
        event => hear(event),
    });
    done.await.map_err(|error| damaged_set(error, &plan.set, what))?;
    match &plan.sorting {
        Some(of_source) => changes_of_sorting(control, session, plan.major, of_source, what).await,
        None => Ok(vec![]),
    }
}

/// Which libraries sort text otherwise in the image of `session` than those of the source, maybe.
async fn changes_of_sorting(
    control: &ControlPlane,
    session: &mut Session,
    major: PgMajor,
    of_source: &Sorting,
    what: &str,
) -> Result<Vec<String>, OperationError> {
    let mut changes = Vec::new();
    let request = Request::LookAtImage { major };
    let looked = session.request(&request, &control.cancel, |event| {
        if let Event::Image(installation) = event {
            changes = of_source.changes(&installation.sorting);
        }
    });
    looked.await.map_err(failed(what))?;
    Ok(changes)
}

/// Builds anew the indexes that are in the order of a library that the new image has in another version: searches in them would
/// miss rows. Returns what the operator should read.
pub(crate) async fn renew(
    scene: &VolumeScene<'_>,
    plan: &VolumeRestorePlan,
    session: &mut Session,
    container: &Container,
    sorts_otherwise: &[String],
) -> Result<Vec<String>, OperationError> {
    let &VolumeScene { control, policy, what, progress, .. } = scene;
    let mut warnings = plan.warnings.clone();
    if sorts_otherwise.is_empty() {
        return Ok(warnings);
    }
    let why = sorts_otherwise.join("; ");
    progress(Tick::Step(format!("building indexes anew, because text may sort otherwise ({why})")));
    let job = SettleJob {
        login: control.login(policy, container)?.0,
        files: vec![],
        statements: vec![],
        analyse: plan.connectable.clone(),
        renew: Some(Renewal { major: plan.major, extensions: false, reindex: true }),
    };
    let request = Request::Settle(job);
    let done = session.request(&request, &control.cancel, |event| match event {
        Event::Log { message, .. } => {
            progress(Tick::Warning(message.clone()));
            warnings.push(message);
        }
        Event::Reindexed { indexes } => tracing::info!(indexes, why, "indexes were built anew"),
        _ => {}
    });
    done.await.map_err(failed(what))?;
    Ok(warnings)
}
