//! `pglife drill`: proves a backup by restoring it into a throwaway server and comparing what is there with what was backed up.
//!
//! ```text
//! set ─▶ fetch (from a bucket, into a volume) ─▶ restore or unpack and recover ─▶ checks ─▶ verdict ─▶ everything removed
//!                                                                                       └─ proven or bad: a certificate
//! ```
//!
//! * The server has no network, no published port, and volumes of its own; the cluster itself is not touched, nor locked: its
//!   backups go on.
//! * A drill is a run from its first step: one that finds no key, no repository or no image is in the record too.
//! * Whatever is made is recorded before and labelled, so it goes whatever happens, at the latest with the next command.
//! * Only where it is asked for does the server stay for a while ([`kept`]).
//! * Three ends that are never mixed up: *proven*, *bad* (exit 20, the backup is at fault) and *not judged* (an error of Docker, the
//!   repository, a key …, or a check that could not be made). Only the first two leave a certificate.

mod beside;
mod certificates;
mod checks;
pub mod junit;
mod kept;
mod stopwatch;
mod throwaway;
mod verdict;

use std::path::PathBuf;

use jiff::Timestamp;

use crate::backup_set::certificate::{CERTIFICATE_VERSION, Certificate, Check, Outcome, Stage, Verdict};
use crate::backup_set::{Commit, ImageReference, Manifest, Selector};
use crate::cluster::{PgMajor, RepoName};
use crate::control::{ControlPlane, OperationError, Progress, Repositories, Run, Tick, failed, sweep};
use crate::exit::Exit;
use crate::facts::Extent;
use crate::policy::Policy;
use crate::provision;
use crate::restore::{self, Plan, Prepared, RestoreRequest, Wanted};
use crate::state::Operation;
use crate::storage::Key;

use stopwatch::Stopwatch;

pub use certificates::{Listed, list};
pub use kept::{Keep, Kept, LONGEST, Removed, remove};
pub use verdict::Judgement;
pub(crate) use verdict::looks_at_structure;

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
    /// The server, where it is kept.
    pub kept: Option<Kept>,
}

impl Drilled {
    /// What it came to, in a line: for the record of runs, and for events.
    pub fn summary(&self) -> String {
        let mut text = format!("{}: {}", self.judgement, self.certificate.set);
        if self.rehearsal {
            text.push_str(&format!(" in PostgreSQL {}", self.certificate.major));
        }
        let bad = self.certificate.checks.iter().filter(|check| check.outcome == Outcome::Failed);
        for found in
            bad.flat_map(|check| check.found.iter().map(move |found| format!("; {}: {found}", check.name))).take(3)
        {
            text.push_str(&found);
        }
        for warning in &self.warnings {
            text.push_str("; ");
            text.push_str(warning);
        }
        text
    }

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

/// What a failed drill leaves as it was.
const SAFE: &str = "the cluster, its backups and their certificates are as they were";

/// Drills a backup of the cluster of `policy`. Whatever comes of it is in the record of runs, and is told as an event.
pub async fn drill(
    control: &ControlPlane,
    policy: &Policy,
    request: &DrillRequest,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    drill_and_keep(control, policy, request, None, progress).await
}

/// The same; and where `keep` says so, the throwaway server stays for a while.
pub async fn drill_and_keep(
    control: &ControlPlane,
    policy: &Policy,
    request: &DrillRequest,
    keep: Option<Keep>,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    kept::refuse_while_kept(control, policy).await?;
    let operation = match request.major {
        Some(major) if major != policy.major => Operation::Rehearsal,
        _ => Operation::Drill,
    };
    let run = control.begin_without_engine(operation, &policy.name).await?;
    let ended = in_run(control, &run, policy, request, keep, progress).await.map_err(|error| error.safe(SAFE));
    let ended = run
        .end(ended, |drilled| {
            let set = drilled.certificate.set.clone();
            (drilled.exit(), drilled.summary(), Some(set))
        })
        .await;
    tell(control, policy, operation, &ended);
    ended
}

/// Tells as an event what a drill came to.
fn tell(control: &ControlPlane, policy: &Policy, operation: Operation, ended: &Result<Drilled, OperationError>) {
    let (kind, text) = match ended {
        _ if operation == Operation::Rehearsal => {
            let came_through = ended.as_ref().is_ok_and(|drilled| drilled.judgement == Judgement::Proven);
            let kind = if came_through { "drill.rehearsed" } else { "drill.rehearsal_failed" };
            (kind, ended.as_ref().map_or_else(OperationError::chain, Drilled::summary))
        }
        Ok(drilled) => match drilled.judgement {
            Judgement::Proven => ("drill.proven", drilled.summary()),
            Judgement::Bad => ("drill.failed", drilled.summary()),
            Judgement::Unknown(_) => ("drill.unjudged", drilled.summary()),
        },
        Err(error) => {
            let next = error.next.as_ref().map_or_else(String::new, |next| format!("; next: {next}"));
            ("drill.unjudged", format!("{}{next}", error.chain()))
        }
    };
    if let Err(error) = control.state.record_event(Timestamp::now(), Some(&policy.name), kind, &text) {
        tracing::warn!("an event could not be recorded: {error}");
    }
}

async fn in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    request: &DrillRequest,
    keep: Option<Keep>,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    let what = format!("drill of cluster \"{}\" failed", policy.name);
    let name = policy.name.for_drills();
    if control.configuration.policies.contains_key(&name) {
        let refused =
            format!("{what}: there is a cluster called \"{name}\", the name that the throwaway server would get");
        return Err(OperationError::new(Exit::Refused, refused).next("rename that cluster's policy"));
    }
    let began = Timestamp::now();
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    // What an earlier drill left may still hold the names.
    sweep(&engine, &control.state).await.map_err(failed(&what))?;
    let repositories = control.repositories_of(policy, request.repository.as_ref())?;
    let commit = choose(control, policy, &repositories, &request.backup)?;
    let wanted = RestoreRequest {
        backup: Selector::Prefix(commit.set.to_string()),
        into: name,
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
            let mut findings = Findings::begun(began);
            findings.checks.push(failed_check("manifest", &error));
            let image = ImageReference { name: String::new(), id: String::new(), digests: vec![] };
            return conclude(control, policy, request, &commit, None, policy.major, image, findings, &run.id);
        }
        Err(error) => return Err(error),
    };
    prepared.cluster.life = provision::Life::Drill;
    prepared.cluster.network = Some("none".to_owned());
    prepared.cluster.publish = None;
    prepared.cluster.settings = Some(throwaway::settings(&prepared.chosen.manifest));
    if let Plan::Volume(plan) = &mut prepared.plan {
        plan.check = verdict::data_directory_with_manifest(&prepared.chosen.manifest).map(str::to_owned);
    }
    let own = engine.container(policy.container.as_str()).await.map_err(failed(&what))?;
    prepared.cluster.limits = throwaway::limits(&policy.drill, own.map(|own| own.limits).unwrap_or_default());
    let findings = examine(control, run, policy, &prepared, began, &what, progress).await;
    let image = ImageReference {
        name: prepared.image.reference.clone(),
        id: prepared.image.id.clone(),
        digests: prepared.image.digests.clone(),
    };
    let ended = findings.and_then(|findings| {
        let (commit, manifest, major) =
            (&prepared.chosen.commit, Some(&prepared.chosen.manifest), prepared.policy.major);
        conclude(control, policy, request, commit, manifest, major, image, findings, &run.id)
    });
    leave(control, run, &prepared, keep, ended, progress).await
}

/// Removes what the drill made, or has its server stay where that is wanted. What cannot be kept is removed.
async fn leave(
    control: &ControlPlane,
    run: &Run<'_>,
    prepared: &Prepared,
    keep: Option<Keep>,
    mut ended: Result<Drilled, OperationError>,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    let proven = ended.as_ref().is_ok_and(|drilled| drilled.judgement == Judgement::Proven);
    let kept = match keep.filter(|keep| !(keep.only_on_failure && proven)) {
        // Who asked for an end does not wait for a server to start.
        Some(keep) if !control.cancel.is_cancelled() => Some(kept::keep(control, run, prepared, keep, progress).await),
        _ => None,
    };
    if !matches!(kept, Some(Ok(_))) {
        throwaway::remove_everything(run, prepared).await;
    }
    match (kept, &mut ended) {
        (None, _) => {}
        (Some(Ok((kept, warnings))), Ok(drilled)) => {
            drilled.warnings.extend(warnings);
            drilled.kept = Some(kept);
        }
        (Some(Ok((kept, _))), Err(error)) => {
            let look = format!("its server is kept until {}; look at it: {}", kept.until, kept.connect.join(", or "));
            error.next = Some(error.next.take().map_or(look.clone(), |next| format!("{next}; {look}")));
        }
        (Some(Err(why)), Ok(drilled)) => drilled.warnings.push(why.chain()),
        (Some(Err(why)), Err(_)) => tracing::warn!("{}", why.chain()),
    }
    ended
}

/// The set that is meant. Where every one is proven, the newest one is as good as any to prove again.
fn choose(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &Repositories,
    selector: &Selector,
) -> Result<Commit, OperationError> {
    let found = match repositories.find(control, policy, selector) {
        Err(error) if *selector == Selector::LatestUnproven && error.exit == Exit::NotFound => {
            repositories.find(control, policy, &Selector::Latest(None))
        }
        found => found,
    };
    found.map(|found| found.commit)
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

/// Restores and checks, with a stopwatch.
async fn examine(
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
    let source = throwaway::fetch(control, run, policy, prepared, what, progress).await;
    let source = match source {
        Ok(source) => source,
        Err(error) if verdict::is_damage(&error) => {
            findings.checks.push(failed_check("objects", &error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let checked = &mut findings.checks;
    let restored = restore::fill(control, run, prepared, &source, checked, what, progress).await;
    let container = match restored {
        Ok((container, _, warnings)) => {
            findings.warnings.extend(warnings);
            findings.checks.push(passed_check("restore"));
            container
        }
        // A check has said why.
        Err(_) if findings.checks.iter().any(|check| check.outcome == Outcome::Failed) => return Ok(()),
        Err(error) if verdict::is_the_backups_fault(&error, prepared.chosen.commit.kind) => {
            findings.checks.push(failed_check("restore", &error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    progress(Tick::Step("checking what is there".to_owned()));
    checks::check(control, run, policy, prepared, &source, &container, findings, what).await?;
    if let Plan::Volume(_) = &prepared.plan {
        prepared.engine.stop(&container.id, provision::STOP_PATIENCE).await.map_err(failed(what))?;
        checks::check_pages(control, run, prepared, findings, what).await?;
    }
    Ok(())
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
    let mut drilled = Drilled { certificate, judgement, rehearsal, certified: vec![], warnings, kept: None };
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
