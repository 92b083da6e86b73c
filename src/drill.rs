//! `pglife drill`: proves a backup by restoring it into a throwaway server and comparing what is there with what was backed up.
//!
//! ```text
//! set ─▶ fetch (from a bucket, into a volume) ─▶ restore or unpack and recover ─▶ checks ─▶ verdict ─▶ everything removed
//!                                                                                       └─ proven or bad: a certificate
//! ```
//!
//! * The server has no network, no published port, and volumes of its own; the cluster itself is not touched, nor locked: its
//!   backups go on.
//! * Whatever is made is recorded before and labelled, so it goes whatever happens, at the latest with the next command.
//! * Three ends that are never mixed up: *proven*, *bad* (exit 20, the backup is at fault) and *not judged* (an error of Docker, the
//!   repository, a key …, or a check that could not be made). Only the first two leave a certificate.

mod certificates;
pub mod junit;
mod verdict;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

use crate::backup_set::certificate::{CERTIFICATE_VERSION, Certificate, Check, Outcome, Stage, Verdict};
use crate::backup_set::{Commit, ImageReference, Kind, Manifest, Selector};
use crate::cluster::{ClusterName, PgMajor, RepoName, VolumeName};
use crate::control::{
    ControlPlane, Found, OperationError, Progress, Run, Tick, catalogue, close_worker, failed, start_worker,
};
use crate::docker::Container;
use crate::docker::label::{self, Purpose};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::exit::Exit;
use crate::facts::Extent;
use crate::policy::{Layout, Policy};
use crate::provision;
use crate::restore::{self, Plan, Prepared, RestoreRequest, Source, Wanted};
use crate::state::{Operation, Thing};
use crate::storage::{FolderLocation, Key, Location};
use crate::worker::session::SessionError;
use crate::worker::{CheckJob, CopyJob, Event, PagesJob, Request, SET_FOLDER};

pub use certificates::{Listed, list};
pub use verdict::Judgement;

/// What is asked for.
#[derive(Debug)]
pub struct DrillRequest {
    /// The set.
    pub backup: Selector,
    /// The repository, where it is not the policy's first.
    pub repository: Option<RepoName>,
    /// The file with a key, where it is not the configured one.
    pub identity: Option<PathBuf>,
    /// A newer major: a rehearsal of an upgrade, which proves nothing about the backup.
    pub major: Option<PgMajor>,
}

/// A drill that came to an end.
#[derive(Debug)]
pub struct Drilled {
    /// Everything about it. Where it is no proof, `verdict` stands for nothing: see `judgement`.
    pub certificate: Certificate,
    /// What it came to.
    pub judgement: Judgement,
    /// Whether it was a rehearsal in a newer major.
    pub rehearsal: bool,
    /// Repositories that hold the certificate now.
    pub certified: Vec<RepoName>,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

impl Drilled {
    /// How the process ends.
    pub fn exit(&self) -> Exit {
        match &self.judgement {
            // The upgrade would be at fault, not the backup.
            Judgement::Bad if self.rehearsal => Exit::Failed,
            Judgement::Bad => Exit::DrillFailed,
            Judgement::Unknown(_) => Exit::Failed,
            Judgement::Proven if self.warnings.is_empty() => Exit::Ok,
            Judgement::Proven => Exit::Warnings,
        }
    }
}

/// Settings of the cluster that a restore may need, or that decide how long it takes.
const SETTINGS: [&str; 11] = [
    "shared_preload_libraries",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_connections",
    "max_worker_processes",
    "max_parallel_workers",
    "max_parallel_maintenance_workers",
    "shared_buffers",
    "maintenance_work_mem",
    "work_mem",
    "max_wal_size",
];

/// The name of the throwaway cluster: one at a time for each cluster.
pub fn throwaway_name(cluster: &ClusterName) -> Result<ClusterName, OperationError> {
    let name = format!("{cluster}-drill");
    ClusterName::new(&name).or_else(|_| ClusterName::new(format!("drill-{:.40}", cluster.as_str()))).map_err(|error| {
        OperationError::new(
            Exit::Usage,
            format!("drill of cluster \"{cluster}\" failed: no name for its server: {error}"),
        )
    })
}

/// Drills a backup of the cluster of `policy`.
pub async fn drill(
    control: &ControlPlane,
    policy: &Policy,
    request: &DrillRequest,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    let name = throwaway_name(&policy.name)?;
    let what = format!("drill of cluster \"{}\" failed", policy.name);
    let safe = "the cluster, its backups and their certificates are as they were";
    if control.configuration.policies.contains_key(&name) {
        let refused =
            format!("{what}: there is a cluster called \"{name}\", the name that the throwaway server would get");
        return Err(OperationError::new(Exit::Refused, refused).next("rename that cluster's policy"));
    }
    let began = Timestamp::now();
    // A drill that died may still hold the names.
    control.bury_dead_runs().await?;
    let repositories = control.repositories_of(policy, request.repository.as_ref())?;
    let Found { commit, .. } = repositories.find(control, policy, &request.backup)?;
    let wanted = RestoreRequest {
        backup: Selector::Prefix(commit.set.to_string()),
        into: name.clone(),
        repository: request.repository.clone(),
        major: request.major,
        image: None,
        wanted: Wanted::Everything,
        identity: request.identity.clone(),
    };
    let mut prepared = match restore::prepare(control, policy, &wanted).await {
        Ok(prepared) => prepared,
        Err(error) if error.exit == Exit::VerifyFailed => {
            // What cannot even be read as a backup is a bad one.
            let mut drilled = Findings::begun(began);
            drilled.checks.push(failed_check("manifest", &error));
            let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
            let run = control.begin(Operation::Drill, &name, &engine).await?;
            let image = ImageReference { name: String::new(), id: String::new(), digests: vec![] };
            let ended = conclude(control, policy, request, &commit, None, policy.major, image, drilled, &run.id);
            return finish(run, ended).await;
        }
        Err(error) => return Err(error.safe(safe)),
    };
    prepared.cluster.throwaway = true;
    prepared.cluster.network = Some("none".to_owned());
    prepared.cluster.publish = None;
    prepared.cluster.settings = Some(settings(&prepared.manifest));
    let run = control.begin(Operation::Drill, &name, &prepared.engine).await?;
    let findings = in_run(control, &run, policy, &prepared, began, &what, progress).await;
    remove_everything(&run, &prepared).await;
    let image = ImageReference {
        name: prepared.image.reference.clone(),
        id: prepared.image.id.clone(),
        digests: prepared.image.digests.clone(),
    };
    let ended = findings.and_then(|findings| {
        let (commit, manifest, major) = (&prepared.commit, Some(&prepared.manifest), prepared.policy.major);
        conclude(control, policy, request, commit, manifest, major, image, findings, &run.id)
    });
    finish(run, ended.map_err(|error| error.safe(safe))).await
}

async fn finish(run: Run<'_>, ended: Result<Drilled, OperationError>) -> Result<Drilled, OperationError> {
    run.end(ended, |drilled| {
        let set = drilled.certificate.set.clone();
        (drilled.exit(), format!("{}: {set}", drilled.judgement), Some(set))
    })
    .await
}

/// What a drill has seen so far.
#[derive(Debug)]
struct Findings {
    began: Timestamp,
    stages: Vec<Stage>,
    checks: Vec<Check>,
    extent: Option<Extent>,
    warnings: Vec<String>,
}

impl Findings {
    fn begun(began: Timestamp) -> Self {
        Self { began, stages: vec![], checks: vec![], extent: None, warnings: vec![] }
    }
}

fn passed_check(name: &str) -> Check {
    Check { name: name.to_owned(), outcome: Outcome::Passed, found: vec![], seconds: 0.0 }
}

fn failed_check(name: &str, error: &OperationError) -> Check {
    Check { name: name.to_owned(), outcome: Outcome::Failed, found: vec![error.chain()], seconds: 0.0 }
}

/// Settings for the throwaway server: those of the cluster that matter, and nothing that reaches the outside.
fn settings(manifest: &Manifest) -> String {
    let mut text = "# A drill's throwaway server: it archives, replicates and listens nowhere.\n".to_owned();
    if manifest.kind == Kind::Dump {
        for name in SETTINGS {
            if let Some(value) = manifest.server.settings.get(name) {
                text.push_str(&format!("{name} = '{}'\n", value.replace('\\', r"\\").replace('\'', "''")));
            }
        }
    }
    text.push_str("archive_mode = off\nlisten_addresses = ''\nmax_logical_replication_workers = 0\n");
    text
}

/// Times the steps that an operation tells.
struct Stopwatch {
    stages: Mutex<Timed>,
}

/// Stages that have ended, and the one that goes on since.
type Timed = (Vec<Stage>, Option<(String, Instant)>);

impl Stopwatch {
    fn new() -> Self {
        Self { stages: Mutex::new((vec![], None)) }
    }

    fn step(&self, words: &str) {
        let name = match words.split(' ').next().unwrap_or_default() {
            "creating" => "create",
            "starting" => "start",
            "restoring" => "restore",
            "unpacking" => "unpack",
            "waiting" => "recover",
            "fetching" => "fetch",
            "checking" => "check",
            other => other,
        };
        let mut guard = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let (stages, running) = &mut *guard;
        if let Some((name, begun)) = running.take() {
            stages.push(Stage { name, seconds: begun.elapsed().as_secs_f64() });
        }
        *running = Some((name.to_owned(), Instant::now()));
    }

    fn stop(self) -> Vec<Stage> {
        let (mut stages, running) = self.stages.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, begun)) = running {
            stages.push(Stage { name, seconds: begun.elapsed().as_secs_f64() });
        }
        stages
    }
}

async fn in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    prepared: &Prepared,
    began: Timestamp,
    what: &str,
    progress: Progress<'_>,
) -> Result<Findings, OperationError> {
    let mut findings = Findings::begun(began);
    let watch = Stopwatch::new();
    let told = |tick: Tick| {
        if let Tick::Step(words) = &tick {
            watch.step(words);
        }
        progress(tick);
    };
    let looked = look(control, run, policy, prepared, &mut findings, what, &told).await;
    findings.stages = watch.stop();
    looked.map(|()| findings)
}

async fn look(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    prepared: &Prepared,
    findings: &mut Findings,
    what: &str,
    progress: Progress<'_>,
) -> Result<(), OperationError> {
    let source = fetch(control, run, policy, prepared, what, progress).await;
    let source = match source {
        Ok(source) => source,
        Err(error) if verdict::is_damage(&error) => {
            findings.checks.push(failed_check("objects", &error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let restored = restore::fill(control, run, prepared, &source, what, progress).await;
    let container = match restored {
        Ok((container, _, warnings)) => {
            findings.warnings.extend(warnings);
            findings.checks.push(passed_check("restore"));
            container
        }
        Err(error) if verdict::is_the_backups_fault(&error, prepared.commit.kind) => {
            findings.checks.push(failed_check("restore", &error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    progress(Tick::Step("checking what is there".to_owned()));
    check(control, run, policy, prepared, &source, &container, findings, what).await?;
    if let Plan::Volume(_) = &prepared.plan {
        prepared.engine.stop(&container.id, provision::STOP_PATIENCE).await.map_err(failed(what))?;
        check_pages(control, run, prepared, findings, what).await?;
    }
    Ok(())
}

/// The throwaway server has no network: what lies in a bucket is copied into a volume first.
async fn fetch(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    prepared: &Prepared,
    what: &str,
    progress: Progress<'_>,
) -> Result<Source, OperationError> {
    let source = Source::in_place(&prepared.repository, &prepared.commit);
    if source.mounted.is_some() {
        return Ok(source);
    }
    progress(Tick::Step("fetching the backup".to_owned()));
    let volume = fetched_volume(run);
    let expires = Timestamp::now() + jiff::SignedDuration::from_hours(48);
    let labels = label::short_lived(Purpose::Drill, &run.id, &prepared.policy.name, expires);
    run.will_make(&policy.host, &Thing::Volume(volume.to_string()))?;
    prepared.engine.ensure_volume(&volume, &labels).await.map_err(failed(what))?;
    let network = match &policy.layout {
        Layout::Managed(managed) => managed.network.as_ref().map(|network| network.as_str().to_owned()),
        Layout::Adopted(_) => None,
    };
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: prepared.policy.name.clone(),
        image_id: prepared.image.id.clone(),
        mounts: vec![WorkerMount { source: volume.to_string(), destination: SET_FOLDER.to_owned(), writable: true }],
        network: WorkerNetwork::Named(network.unwrap_or_else(|| "bridge".to_owned())),
    };
    let inside = || FolderLocation { location: Location::Local { folder: SET_FOLDER.into() }, folder: None };
    let objects = catalogue::stored_objects(&prepared.repository, &prepared.commit)?;
    let mut session = start_worker(&prepared.engine, &worker).await.map_err(failed(what))?;
    let request = Request::Copy(CopyJob { from: source.place, to: inside(), objects });
    let done = session
        .request(&request, &control.cancel, |event| {
            if let Event::Progress { plain_bytes, stored_bytes } = event {
                progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected: None });
            }
        })
        .await;
    close_worker(session).await;
    done.map_err(failed(what))?;
    Ok(Source { place: inside(), mounted: Some(volume.to_string()) })
}

fn fetched_volume(run: &Run<'_>) -> VolumeName {
    VolumeName::new(format!("pglife-drill-{}", run.id)).expect("a run id fits into a name")
}

/// Asks a worker beside the restored server.
#[expect(clippy::too_many_arguments, reason = "one caller, with all of it at hand")]
async fn check(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    prepared: &Prepared,
    source: &Source,
    container: &Container,
    findings: &mut Findings,
    what: &str,
) -> Result<(), OperationError> {
    let (login, way_in) = control.login(&prepared.policy, container)?;
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: prepared.policy.name.clone(),
        image_id: prepared.image.id.clone(),
        mounts: source.mount().into_iter().chain(way_in).collect(),
        network: WorkerNetwork::Of(container.id.clone()),
    };
    let (databases, is_volume) = match &prepared.plan {
        Plan::Dump(plan) => (plan.databases.iter().map(|database| database.database.clone()).collect(), false),
        Plan::Volume(plan) => (plan.databases.clone(), true),
    };
    let major = prepared.policy.major;
    let job = CheckJob {
        login,
        major,
        place: source.place.clone(),
        facts: prepared.manifest.facts().cloned(),
        keys: prepared.keys.clone(),
        databases,
        structure: is_volume && major.is_at_least(14),
        assertions: policy.drill.assertions.clone(),
    };
    ask(control, prepared, &worker, &Request::Check(Box::new(job)), findings, what).await
}

/// Looks at the files of the restored server, which is shut down.
async fn check_pages(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: &Prepared,
    findings: &mut Findings,
    what: &str,
) -> Result<(), OperationError> {
    let mount = |(volume, destination): (VolumeName, &str)| WorkerMount {
        source: volume.to_string(),
        destination: destination.to_owned(),
        writable: false,
    };
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: prepared.policy.name.clone(),
        image_id: prepared.image.id.clone(),
        mounts: prepared.cluster.volumes().map(mount).collect(),
        network: WorkerNetwork::Nothing,
    };
    let Some((_, copy)) = prepared.manifest.volume() else { return Ok(()) };
    let server = &prepared.manifest.server;
    let job = PagesJob {
        major: server.major,
        pgdata: copy.pgdata.clone(),
        system_identifier: server.system_identifier,
        checksums: server.data_checksums,
    };
    ask(control, prepared, &worker, &Request::Pages(job), findings, what).await
}

async fn ask(
    control: &ControlPlane,
    prepared: &Prepared,
    worker: &WorkerPlan,
    request: &Request,
    findings: &mut Findings,
    what: &str,
) -> Result<(), OperationError> {
    let mut session = start_worker(&prepared.engine, worker).await.map_err(failed(what))?;
    let done = session
        .request(request, &control.cancel, |event| match event {
            Event::Checked(check) => findings.checks.push(check),
            Event::Compared(extent) => findings.extent = Some(extent),
            Event::Log { message, .. } => findings.warnings.push(message),
            _ => {}
        })
        .await;
    close_worker(session).await;
    let done: Result<_, SessionError> = done;
    done.map(drop).map_err(failed(what))
}

/// Removes what the drill made; what cannot be removed now is left to the next command.
async fn remove_everything(run: &Run<'_>, prepared: &Prepared) {
    let host = &prepared.policy.host;
    let cluster = &prepared.cluster;
    let mut things =
        vec![Thing::Container(cluster.container.to_string()), Thing::Container(cluster.data_container.to_string())];
    things.extend(cluster.volumes().map(|(volume, _)| Thing::Volume(volume.to_string())));
    things.push(Thing::Volume(fetched_volume(run).to_string()));
    for thing in &things {
        run.give_up(host, thing).await;
    }
}

/// Comes to a verdict, and certifies it.
#[expect(clippy::too_many_arguments, reason = "two callers, each with all of it at hand")]
fn conclude(
    control: &ControlPlane,
    policy: &Policy,
    request: &DrillRequest,
    commit: &Commit,
    manifest: Option<&Manifest>,
    major: PgMajor,
    image: ImageReference,
    findings: Findings,
    run: &str,
) -> Result<Drilled, OperationError> {
    let required = verdict::required(commit.kind, manifest);
    let judgement = verdict::judge(&findings.checks, &required);
    let Findings { began, stages, checks, extent, mut warnings, .. } = findings;
    let rto_seconds = stages.iter().filter(|stage| stage.name != "check").map(|stage| stage.seconds).sum();
    let budget = policy.drill.rto_budget.map(|budget| budget.as_signed().as_secs_f64());
    if let Some(budget) = budget.filter(|budget| judgement == Judgement::Proven && rto_seconds > *budget) {
        warnings.push(format!("the restore took {rto_seconds:.0} s, `rto_budget` is {budget:.0} s"));
    }
    let certificate = Certificate {
        version: CERTIFICATE_VERSION,
        set: commit.set.clone(),
        kind: commit.kind,
        cluster: commit.cluster.clone(),
        lineage: commit.lineage,
        manifest: commit.manifest_blake3,
        verdict: if judgement == Judgement::Proven { Verdict::Proven } else { Verdict::Bad },
        started_at: began,
        ended_at: Timestamp::now(),
        by: format!("{}, run {run}", rustix::system::uname().nodename().to_string_lossy()),
        pglife: env!("CARGO_PKG_VERSION").to_owned(),
        major,
        image,
        stages,
        rto_seconds,
        rto_budget_seconds: budget,
        extent,
        checks,
        previous: None,
    };
    let rehearsal = manifest.is_some_and(|manifest| manifest.server.major != major);
    let mut drilled = Drilled { certificate, judgement, rehearsal, certified: vec![], warnings };
    if matches!(drilled.judgement, Judgement::Unknown(_)) || rehearsal {
        return Ok(drilled);
    }
    let stored = match commit.encryption {
        Some(_) => drilled.certificate.clone().without_words(),
        None => drilled.certificate.clone(),
    };
    let repositories = control.repositories_of(policy, request.repository.as_ref())?;
    for (name, repository) in &repositories.open {
        match certificates::write(control, repository, commit, &stored) {
            Ok(true) => drilled.certified.push(name.clone()),
            Ok(false) => {}
            Err(error) => {
                drilled
                    .warnings
                    .push(format!("repository \"{name}\" does not have the certificate: {}", error.chain()));
            }
        }
    }
    for (name, error) in &repositories.failed {
        drilled.warnings.push(format!("repository \"{name}\" does not have the certificate: {}", error.chain()));
    }
    // The key that the place has nothing of is no certificate: say so rather than promise one.
    if drilled.certified.is_empty() {
        drilled.warnings.push("no repository holds a certificate of this drill".to_owned());
    }
    Ok(drilled)
}

/// A key in a repository, of names that make one.
fn key(text: String) -> Key {
    Key::new(text).expect("a set's names make a key")
}
