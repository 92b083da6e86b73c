//! `pglife restore --into NAME`: a new cluster from a committed set.
//!
//! ```text
//! set and manifest ─▶ plan (pure) ─▶ names free? images there? ─▶ run begins
//!   a dump:     ─▶ new containers ─▶ worker restores into the server
//!   volumes:    ─▶ new volumes ─▶ worker unpacks into them ─▶ new container, whose server replays the WAL ([`volume`])
//!   ─▶ policy written last ─▶ run ends
//! ```
//!
//! The source cluster is not touched. Until the policy is there, nothing of the new cluster stays: a run that fails removes
//! what it made, and one that dies leaves that to the next run.

mod chosen;
mod excerpt;
mod plan;
mod refresh;
mod volume;

use std::path::PathBuf;

use crate::backup_set::certificate::Check;
use crate::backup_set::{Commit, Kind, Manifest, Selector, SetId};
use crate::cluster::{ClusterName, DatabaseName, PgMajor, RepoName, VolumeName};
use crate::control::{ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed, or_elsewhere};
use crate::docker::label::{self, Purpose};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Engine, Image};
use crate::encryption::Keys;
use crate::exit::Exit;
use crate::policy::{self, Layout, Policy};
use crate::provision::{self, ClusterPlan};
use crate::state::Operation;
use crate::worker::session::SessionError;
use crate::worker::{Event, Request, SCRATCH_FOLDER};

pub(crate) use chosen::{Chosen, Source, refused};
pub(crate) use excerpt::{CAN_BE_HOLLOW, excerpt};
pub use plan::{PlanError, RestorePlan, Wanted, plan_restore};
pub use refresh::{Refresh, RefreshRequest, Refreshed, prepare_refresh, refresh};
pub use volume::{VolumeRestorePlan, plan_volume_restore};
pub(crate) use volume::{VolumeScene, renew, restore_excerpt, unpack};

/// What is asked for.
#[derive(Debug)]
pub struct RestoreRequest {
    /// The set.
    pub backup: Selector,
    /// The new cluster.
    pub into: ClusterName,
    /// The repository, where it is not the policy's first.
    pub repository: Option<RepoName>,
    /// A newer major than the set's.
    pub major: Option<PgMajor>,
    /// An image other than the set's or the major's usual one.
    pub image: Option<String>,
    /// What of the set.
    pub wanted: Wanted,
    /// The file with a key, where it is not the configured one; encrypted sets need one.
    pub identity: Option<PathBuf>,
}

/// A restore that was done.
#[derive(Debug)]
pub struct Restored {
    /// The set it came from.
    pub commit: Commit,
    /// The new cluster.
    pub cluster: ClusterName,
    /// Its database container.
    pub container: String,
    /// Its image.
    pub image: String,
    /// Its policy.
    pub policy: PathBuf,
    /// Databases that were restored.
    pub databases: Vec<DatabaseName>,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// A restore that could begin.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) chosen: Chosen,
    pub(crate) engine: Engine,
    pub(crate) image: Image,
    pub(crate) cluster: ClusterPlan,
    /// What will be done.
    pub plan: Plan,
    pub(crate) policy: Policy,
    /// The text of the new policy; None where there is one already.
    policy_text: Option<String>,
}

/// What will be done, by the kind of the set.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Databases go into a new, empty server.
    Dump(Box<RestorePlan>),
    /// Volumes are unpacked, and a server is started on them.
    Volume(Box<VolumeRestorePlan>),
}

impl Plan {
    /// The set.
    pub fn set(&self) -> &SetId {
        match self {
            Self::Dump(plan) => &plan.set,
            Self::Volume(plan) => &plan.set,
        }
    }
}

/// A cluster that a restore could make.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) engine: Engine,
    pub(crate) image: Image,
    pub(crate) cluster: ClusterPlan,
    pub(crate) policy: Policy,
    /// The text of the new policy; None where there is one already.
    policy_text: Option<String>,
}

/// Finds the set, makes the plan, and checks everything that can be known before anything is made.
pub async fn prepare(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
) -> Result<Prepared, OperationError> {
    let chosen = find(control, source, request).await?;
    prepare_chosen(control, source, request, chosen).await
}

fn what_fails(source: &Policy, request: &RestoreRequest) -> String {
    format!("restore of cluster \"{}\" into \"{}\" failed", source.name, request.into)
}

/// Finds the set.
pub(crate) async fn find(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
) -> Result<Chosen, OperationError> {
    // A restore that died may still hold the names.
    control.bury_dead_runs().await?;
    let wish = (&request.backup, request.repository.as_ref(), request.identity.as_deref());
    Chosen::find(control, source, wish, &what_fails(source, request))
}

/// Makes the plan for a set that was found.
pub(crate) async fn prepare_chosen(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
    chosen: Chosen,
) -> Result<Prepared, OperationError> {
    let what = what_fails(source, request);
    if chosen.manifest.kind == Kind::Volume {
        // Before anything else is looked for that only a dump can do.
        chosen.plan(request.major.unwrap_or(chosen.manifest.server.major), &request.wanted, &what)?;
    }
    let target = Target::prepare(control, source, request, &chosen).await?;
    let plan = chosen.plan(target.policy.major, &request.wanted, &what)?;
    target.check_free(&what).await?;
    Ok(target.with(chosen, plan))
}

impl Target {
    /// Finds host, image and names of the new cluster.
    pub(crate) async fn prepare(
        control: &ControlPlane,
        source: &Policy,
        request: &RestoreRequest,
        chosen: &Chosen,
    ) -> Result<Self, OperationError> {
        let what = what_fails(source, request);
        let manifest = &chosen.manifest;
        let host = control.configuration.policies.get(&request.into).map_or(&source.host, |policy| &policy.host);
        let engine = control.engine(host).await.map_err(failed(&what))?;
        let of_set = engine.image(&manifest.image.id).await.map_err(failed(&what))?;
        // A cluster of pglife's own is never made from somebody else's image.
        let is_ours = of_set.as_ref().map_or(matches!(source.layout, Layout::Managed(_)), Image::is_ours);
        let (policy, policy_text) = policy_for(control, source, request, manifest, is_ours)?;
        let Layout::Managed(managed) = &policy.layout else {
            return Err(OperationError::new(
                Exit::Refused,
                format!(
                    "{what}: \"{}\" is an adopted cluster, whose containers are not pglife's to make",
                    request.into
                ),
            )
            .next("restore into a new name"));
        };
        control.check_reach(&policy.host, &chosen.repository_name, &what)?;
        let image = find_image(&engine, manifest, of_set, &policy, request, &what).await?;
        let mut cluster = ClusterPlan::of_policy(&policy, managed);
        cluster.image.clone_from(&image.reference);
        cluster.bootstrap_role = manifest.server.bootstrap_role.clone();
        cluster.wal_segment_bytes = Some(manifest.server.wal_segment_bytes).filter(|bytes| *bytes != 16 << 20);
        Ok(Self { engine, image, cluster, policy, policy_text })
    }

    /// Its names must not be taken.
    pub(crate) async fn check_free(&self, what: &str) -> Result<(), OperationError> {
        provision::check_free(&self.engine, &self.cluster, what).await.map(drop)
    }

    /// Into it goes what `plan` takes of `chosen`.
    pub(crate) fn with(self, chosen: Chosen, plan: Plan) -> Prepared {
        let Self { engine, image, cluster, policy, policy_text } = self;
        Prepared { chosen, engine, image, cluster, plan, policy, policy_text }
    }

    /// Begins the run that makes it from `set`.
    pub(crate) async fn begin<'c>(&self, control: &'c ControlPlane, set: &SetId) -> Result<Run<'c>, OperationError> {
        begin(control, set, &self.policy, self.policy_text.as_ref(), &self.engine).await
    }
}

/// The policy of the new cluster: the one there is, or one made from the source's. It names the image of the set if that is one of
/// pglife's.
fn policy_for(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
    manifest: &Manifest,
    image_is_ours: bool,
) -> Result<(Policy, Option<String>), OperationError> {
    let what = format!("restore into \"{}\" failed", request.into);
    let major = request.major.unwrap_or(manifest.server.major);
    if let Some(policy) = control.configuration.policies.get(&request.into) {
        if policy.major == major {
            return Ok((policy.clone(), None));
        }
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: its policy says PostgreSQL {}, the restore would make {major}", policy.major),
        )
        .next(format!("pass --major {}, or correct the policy", policy.major)));
    }
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let repositories: Vec<String> = source.dump.repositories.iter().map(|name| quoted(name.as_str())).collect();
    let mut text = format!(
        "# Written by `pglife restore {} --backup {} --into {}`.\n# It has no schedule: nothing backs this cluster up by itself until you add one.\n\n[cluster]\nhost = {}\nmajor = {}\n",
        source.name,
        manifest.set,
        request.into,
        quoted(source.host.as_str()),
        quoted(&major.to_string()),
    );
    if manifest.server.bootstrap_role.as_str() != "postgres" {
        text.push_str(&format!("user = {}\n", quoted(manifest.server.bootstrap_role.as_str())));
    }
    if let Some(image) = &request.image {
        text.push_str(&format!("image = {}\n", quoted(image)));
    } else if image_is_ours
        && major == manifest.server.major
        && manifest.image.name != format!("pglife/postgres:{major}")
        && is_name(&manifest.image.name)
    {
        text.push_str(&format!("image = {}\n", quoted(&manifest.image.name)));
    }
    text.push_str(&format!("\n[backup.dump]\nrepos = [{}]\n", repositories.join(", ")));
    // What was adopted has all of them now.
    if let Some((_, copy)) = manifest.volume()
        && copy.moved.is_empty()
        && copy.volumes.len() < policy::VolumeName::ALL.len()
    {
        let volumes: Vec<String> = copy.volumes.iter().map(|volume| quoted(volume)).collect();
        text.push_str(&format!("\n[backup.volume]\nvolumes = [{}]\n", volumes.join(", ")));
    }
    let policy = control.configuration.check_policy(&request.into, &text).map_err(failed(&what))?;
    Ok((policy, Some(text)))
}

/// An image that was started by its id alone has no name to put into a policy.
fn is_name(image: &str) -> bool {
    !image.starts_with("sha256:")
}

/// The image of the new cluster: what was asked for, else the very image of the set where the major is the same and the host
/// still has it, else the policy's.
async fn find_image(
    engine: &Engine,
    manifest: &Manifest,
    of_set: Option<Image>,
    policy: &Policy,
    request: &RestoreRequest,
    what: &str,
) -> Result<Image, OperationError> {
    if let Some(image) = &request.image {
        let image = engine.require_image(image).await.map_err(failed(what))?;
        if image.is_ours() {
            return Ok(image);
        }
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: {} is not made from pglife's image", image.reference),
        )
        .next("name an image built from docker/postgres/Dockerfile (see docs/images.md)"));
    }
    if policy.major == manifest.server.major
        && let Some(same) = of_set.filter(Image::is_ours)
    {
        // By its name where that still means the same image: people read names.
        let named = engine.image(&manifest.image.name).await.map_err(failed(what))?;
        return Ok(named.filter(|named| named.id == same.id).unwrap_or(same));
    }
    let Layout::Managed(managed) = &policy.layout else { unreachable!("checked by the caller") };
    let name = if managed.image.as_str() == manifest.image.name {
        format!("pglife/postgres:{}", policy.major)
    } else {
        managed.image.as_str().to_owned()
    };
    engine.require_image(&name).await.map_err(failed(what))
}

/// Restores what was prepared.
pub async fn restore(
    control: &ControlPlane,
    prepared: Prepared,
    progress: Progress<'_>,
) -> Result<Restored, OperationError> {
    let Prepared { policy, policy_text, engine, chosen, .. } = &prepared;
    let (set, elsewhere) = (chosen.commit.set.clone(), chosen.elsewhere.clone());
    let run = begin(control, &set, policy, policy_text.as_ref(), engine).await?;
    let source = chosen.source();
    let restored = in_run(control, &run, prepared, &source, progress).await;
    end(run, restored, set, &elsewhere).await
}

async fn begin<'c>(
    control: &'c ControlPlane,
    set: &SetId,
    policy: &Policy,
    policy_text: Option<&String>,
    engine: &Engine,
) -> Result<Run<'c>, OperationError> {
    if policy_text.is_some() {
        // Its policy is written last: that it can be is known before the hours.
        let what = format!("restore of {set} into \"{}\" did not begin", policy.name);
        control.may_write_policy(&policy.name).await.map_err(failed(what))?;
    }
    control.begin(Operation::Restore, &policy.name, engine).await
}

/// Ends the run of a restore of `set`, which other repositories hold, too.
pub(crate) async fn end(
    run: Run<'_>,
    restored: Result<Restored, OperationError>,
    set: SetId,
    elsewhere: &[RepoName],
) -> Result<Restored, OperationError> {
    let restored = restored.map_err(or_elsewhere(elsewhere)).map_err(|error| {
        error.safe("the backup and the cluster it came from are as they were; what was made of the new one was removed")
    });
    run.end(restored, |restored| {
        let exit = if restored.warnings.is_empty() { Exit::Ok } else { Exit::Warnings };
        (exit, restored.warnings.join("; "), Some(set))
    })
    .await
}

/// Restores what was prepared, from `source`, in a run that goes on.
pub(crate) async fn in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: Prepared,
    source: &Source,
    progress: Progress<'_>,
) -> Result<Restored, OperationError> {
    let what = format!("restore of {} into \"{}\" failed", prepared.chosen.commit.set, prepared.policy.name);
    let (container, databases, warnings) = fill(control, run, &prepared, source, &mut vec![], &what, progress).await?;
    let Prepared { chosen, image, policy, policy_text, .. } = prepared;
    // All of it is there now. A policy that cannot be written is no reason to throw it away.
    run.keep_made()?;
    let path = match &policy_text {
        Some(text) => control.write_policy(&policy.name, text).await.map_err(failed(&what))?,
        None => control.configuration.policy_place(&policy.name),
    };
    Ok(Restored {
        cluster: policy.name,
        container: container.name,
        image: image.reference,
        policy: path,
        databases,
        warnings,
        commit: chosen.commit,
    })
}

/// Makes the containers and fills them from `source`. Returns the database container, the databases in it, and what the operator
/// should read. What was checked on the way is added to `checks`.
pub(crate) async fn fill(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: &Prepared,
    source: &Source,
    checks: &mut Vec<Check>,
    what: &str,
    progress: Progress<'_>,
) -> Result<(Container, Vec<DatabaseName>, Vec<String>), OperationError> {
    let Prepared { chosen: Chosen { commit, keys, .. }, engine, image, cluster, plan, policy, .. } = prepared;
    match plan {
        Plan::Dump(plan) => {
            let container = provision::make(run, engine, cluster, what, progress).await?;
            let scratch = scratch_volume(run, engine, policy).await.map_err(failed(what))?;
            let result = into_server(
                control,
                run,
                engine,
                &container,
                image,
                policy,
                source,
                commit,
                plan,
                keys.clone(),
                &scratch,
                what,
                progress,
            )
            .await;
            if let Err(error) = engine.remove_volume(&scratch).await {
                tracing::warn!("the scratch volume is left for the next sweep: {error}");
            }
            let (databases, warnings) = result?;
            Ok((container, databases, warnings.into_iter().chain(plan.warnings.iter().cloned()).collect()))
        }
        Plan::Volume(plan) => {
            let scene = VolumeScene { control, run, engine, image, policy, source, what, progress };
            let (container, warnings) =
                volume::restore(&scene, cluster, cluster.network.as_deref(), plan, keys.clone(), checks).await?;
            Ok((container, plan.databases.clone(), warnings))
        }
    }
}

/// What is damaged is the set, not the command.
fn damaged_set(error: SessionError, set: &SetId, what: &str) -> OperationError {
    match &error {
        SessionError::Failed { trouble: crate::worker::Trouble::Damaged, .. } => failed(what)(error)
            .next(format!("see what is damaged: pglife backups verify --backup {set}; then restore another backup")),
        _ => failed(what)(error),
    }
}

/// Makes the volume in which dumps are unpacked; it is swept with the run.
pub async fn scratch_volume(
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
) -> Result<VolumeName, crate::docker::DockerError> {
    let name = VolumeName::new(format!("pglife-scratch-{}", run.id)).expect("a run id fits into a name");
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(48);
    engine.ensure_volume(&name, &label::short_lived(Purpose::Scratch, &run.id, &policy.name, expires)).await?;
    Ok(name)
}

/// Has a worker restore into the new server, and ends the worker.
#[expect(clippy::too_many_arguments, reason = "two callers, each with all of it at hand")]
pub(crate) async fn into_server(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    container: &Container,
    image: &Image,
    policy: &Policy,
    source: &Source,
    commit: &Commit,
    plan: &RestorePlan,
    keys: Option<Keys>,
    scratch: &VolumeName,
    what: &str,
    progress: Progress<'_>,
) -> Result<(Vec<DatabaseName>, Vec<String>), OperationError> {
    let mount = |source: String, destination: &str, writable| WorkerMount {
        source,
        destination: destination.to_owned(),
        writable,
    };
    let mut mounts = vec![mount(scratch.to_string(), SCRATCH_FOLDER, true)];
    mounts.extend(source.mounts());
    // Writable, for the folders of tablespaces.
    mounts.extend(
        container
            .mounts
            .iter()
            .filter(|mounted| mounted.destination == "/data")
            .map(|mounted| mount(mounted.source.clone(), "/data", true)),
    );
    let (mut session, server) = provision::await_server(
        control,
        run,
        policy,
        engine,
        container,
        image,
        mounts,
        what,
        provision::FIRST_START_SECONDS,
        Some(policy.major),
    )
    .await?;
    tracing::debug!(version = server.version, "the new server answers");
    let (login, _) = control.login(policy, container)?;
    progress(Tick::Step(format!("restoring {} databases", plan.databases.len())));
    let mut databases = Vec::new();
    let mut warnings = Vec::new();
    let expected = Some(plan.plain_bytes());
    let done = session
        .request(
            &Request::Restore(Box::new(plan.job(login, source.own.place.clone(), keys))),
            &control.cancel,
            |event| match event {
                Event::Restored { database } => databases.push(database),
                Event::Log { message, .. } => {
                    progress(Tick::Warning(message.clone()));
                    warnings.push(message);
                }
                Event::Progress { plain_bytes, stored_bytes } => {
                    progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected });
                }
                _ => {}
            },
        )
        .await;
    close_worker(session).await;
    done.map_err(|error| damaged_set(error, &commit.set, what))?;
    let missing: Vec<String> = plan
        .databases
        .iter()
        .filter(|wanted| !databases.contains(&wanted.database))
        .map(|wanted| wanted.database.to_string())
        .collect();
    if missing.is_empty() {
        return Ok((databases, warnings));
    }
    Err(OperationError::new(Exit::Failed, format!("{what}: the worker did not report {}", missing.join(", "))))
}
