//! `pglife upgrade --to N`: the cluster moves to a newer major; killed anywhere, it ends *upgraded* or *as before*.
//!
//! ```text
//! survey ─▶ findings, plan ─▶ journal: open
//!   ─▶ old server stopped ─▶ the same server in a container nobody knows: facts, last backup
//!   ─▶ new volume, new server in a container nobody knows: restore, settings, facts, compare ─▶ start with everything
//!   ─▶ journal: committed ─▶ old containers put aside ─▶ new ones in their place ─▶ policy ─▶ journal: upgraded
//! ```
//!
//! The old volume is not written to by anything but its own server, and stays until `finalize`. Until the commit a failure or
//! a resume goes back, after it forward; both by [`journal::next`], which looks at the world and not at what was intended.

mod drive;
pub mod journal;
pub mod plan;
mod transfer;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup;
use crate::backup_set::SetId;
use crate::cluster::{ClusterName, PgMajor, VolumeName};
use crate::control::{ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed};
use crate::docker::Engine;
use crate::exit::Exit;
use crate::facts::Extent;
use crate::policy::{Layout, Login, Managed, Policy};
use crate::postgres::survey::Survey;
use crate::provision;
use crate::state::Operation;
use crate::state::upgrades::UpgradeRecord;
use crate::worker::{Event, Request};

use drive::Scene;
use journal::{Goal, Phase};
use plan::{Finding, PinnedImage, Severity, Trial, UpgradePlan};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct UpgradeRequest {
    /// The major to move to.
    pub to: PgMajor,
    /// An image other than the major's usual one.
    pub image: Option<String>,
    /// The file with a key, where backups are encrypted and it is not the configured one.
    pub identity: Option<PathBuf>,
}

/// An upgrade that was looked at, and could begin where nothing blocks it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What would be done.
    pub plan: UpgradePlan,
    /// What matters.
    pub findings: Vec<Finding>,
    /// Where the key of encrypted backups is.
    identity: Option<PathBuf>,
}

/// What an upgrade found out, kept in the journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The backup through which the data went.
    pub backup: Option<SetId>,
    /// The new server's system identifier.
    pub system_identifier: Option<u64>,
    /// How much was compared.
    pub compared: Option<Compared>,
    /// Differences that are the majors' own.
    pub notes: Vec<String>,
    /// When the old server was stopped.
    pub stopped_at: Option<Timestamp>,
    /// When the new server answered.
    pub serving_at: Option<Timestamp>,
    /// Seconds of each step.
    pub seconds: Vec<(String, f64)>,
    /// Why it was undone.
    pub failure: Option<String>,
    /// The first backup of the new server.
    pub first_backup: Option<SetId>,
}

/// How much was compared between the old and the new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Databases.
    pub databases: u64,
    /// Tables.
    pub tables: u64,
    /// Rows, all of them hashed.
    pub rows: u64,
    /// Sequences.
    pub sequences: u64,
    /// Statements about everything else.
    pub statements: u64,
}

impl From<Extent> for Compared {
    fn from(extent: Extent) -> Self {
        Self {
            databases: extent.databases,
            tables: extent.tables,
            rows: extent.rows,
            sequences: extent.sequences,
            statements: extent.statements,
        }
    }
}

impl Report {
    /// How long nobody was served, in seconds, as far as this process or those before it saw it.
    pub fn downtime_seconds(&self) -> Option<f64> {
        Some(self.serving_at?.duration_since(self.stopped_at?).as_secs_f64())
    }
}

/// An upgrade as the journal has it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its id.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// The step begun last.
    pub step: String,
    /// Its plan.
    pub plan: UpgradePlan,
    /// What it found out.
    pub report: Report,
    /// When it began.
    pub started_at: Timestamp,
    /// When the journal was last written.
    pub updated_at: Timestamp,
}

impl Recorded {
    fn read(record: UpgradeRecord) -> Result<Self, OperationError> {
        let unreadable = |why: String| {
            OperationError::new(
                Exit::UpgradeNeedsOperator,
                format!("the journal of the upgrade of cluster \"{}\" cannot be read: {why}", record.cluster),
            )
            .next("use the pglife that wrote it, or a later one")
        };
        let plan: UpgradePlan = serde_json::from_str(&record.plan).map_err(|error| unreadable(error.to_string()))?;
        if plan.version > plan::PLAN_VERSION {
            return Err(unreadable(format!("its plan has version {}", plan.version)));
        }
        Ok(Self {
            phase: Phase::from_word(&record.phase).ok_or_else(|| unreadable(format!("phase {:?}", record.phase)))?,
            report: serde_json::from_str(&record.report).map_err(|error| unreadable(error.to_string()))?,
            id: record.id,
            step: record.step,
            plan,
            started_at: record.started_at,
            updated_at: record.updated_at,
        })
    }
}

/// The last upgrade of `cluster`, if there was one.
pub fn last(control: &ControlPlane, cluster: &ClusterName) -> Result<Option<Recorded>, OperationError> {
    let found = control.state.last_upgrade(cluster).map_err(failed("the journal of upgrades cannot be read"))?;
    found.map(Recorded::read).transpose()
}

fn require_last(control: &ControlPlane, cluster: &ClusterName) -> Result<Recorded, OperationError> {
    last(control, cluster)?.ok_or_else(|| {
        OperationError::new(Exit::NotFound, format!("cluster \"{cluster}\" was never upgraded"))
            .next(format!("see what an upgrade would do: pglife upgrade {cluster} --to MAJOR --plan"))
    })
}

fn managed<'a>(policy: &'a Policy, what: &str) -> Result<&'a Managed, OperationError> {
    match (&policy.layout, &policy.login) {
        (Layout::Managed(managed), Login::Socket { .. }) => Ok(managed),
        (Layout::Managed(_), Login::Tcp { .. }) => Err(OperationError::new(
            Exit::Refused,
            format!("{what}: its policy logs in by TCP, and a new server has no password yet"),
        )
        .next("take `password_file` out of the policy: pglife's own images let it in by the socket")),
        (Layout::Adopted(_), _) => Err(OperationError::new(
            Exit::Refused,
            format!("{what}: it is adopted, and this version upgrades only clusters that pglife made"),
        )
        .next(format!(
            "restore a backup of it into a new cluster: pglife restore {} --into NAME --major N",
            policy.name
        ))),
    }
    .map_err(|error| error.safe("nothing was touched"))
}

/// No upgrade may be open, and none that still keeps its old server.
fn check_journal(control: &ControlPlane, policy: &Policy, what: &str) -> Result<(), OperationError> {
    let Some(last) = last(control, &policy.name)? else { return Ok(()) };
    let cluster = &policy.name;
    let refused = match last.phase {
        Phase::Open | Phase::Undoing | Phase::Committed => {
            OperationError::new(Exit::LockBusy, format!("{what}: an upgrade to {} is open", last.plan.to))
                .next(format!("pglife upgrade resume {cluster}"))
        }
        Phase::Upgraded => OperationError::new(
            Exit::Refused,
            format!("{what}: the server before the last upgrade, PostgreSQL {}, is still kept", last.plan.from),
        )
        .next(format!("pglife upgrade finalize {cluster} --yes, or pglife upgrade rollback {cluster}")),
        Phase::AsBefore | Phase::Finalized => return Ok(()),
    };
    Err(refused.safe("nothing was touched"))
}

/// Looks at everything and makes the plan; nothing is changed.
pub async fn prepare(
    control: &ControlPlane,
    policy: &Policy,
    request: &UpgradeRequest,
) -> Result<Prepared, OperationError> {
    let what = format!("upgrade of cluster \"{}\" did not begin", policy.name);
    let layout = managed(policy, &what)?;
    if request.to <= policy.major {
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: it has PostgreSQL {}, and {} is not newer", policy.major, request.to),
        )
        .safe("nothing was touched"));
    }
    check_journal(control, policy, &what)?;
    control.repositories_of(policy, None)?.writable(policy, &what)?;
    if let Some(encryption) = &control.configuration.settings.encryption {
        let keys = control.keys(request.identity.as_deref())?;
        if keys.is_none() {
            return Err(OperationError::new(
                Exit::Credentials,
                format!("{what}: backups are encrypted, and the data goes through one"),
            )
            .safe("nothing was touched")
            .next(control.ask_for_key(&encryption.recipients, request.identity.as_deref(), None)));
        }
    }
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Look, &policy.name, &engine).await?;
    let prepared = look(control, &run, &engine, policy, layout, request, &what).await;
    run.end(prepared, |_| (Exit::Ok, format!("plan of an upgrade to {}", request.to), None)).await
}

async fn look(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    layout: &Managed,
    request: &UpgradeRequest,
    what: &str,
) -> Result<Prepared, OperationError> {
    let container = backup::running_container(engine, policy, what).await?;
    let data = engine.require_container(&layout.data_container).await.map_err(failed(what))?;
    let old_image = engine.require_image(&container.image_id).await.map_err(failed(what))?;
    let reference = request.image.clone().unwrap_or_else(|| format!("pglife/postgres:{}", request.to));
    let new_image = engine.require_image(&reference).await.map_err(failed(what))?;
    let major = new_image.labels.get("pglife.major").map(String::as_str);
    if !new_image.is_ours() || major != Some(request.to.to_string().as_str()) {
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: {reference} is not made from pglife's image of PostgreSQL {}", request.to),
        )
        .safe("nothing was touched")
        .next("name an image built from docker/postgres/Dockerfile (see docs/images.md)"));
    }
    let (profile, survey) = survey_of(control, run, engine, policy, &container, &old_image, what).await?;
    let mut findings = plan::findings(&profile, &survey, request.to);
    let old_volume = container.mount_of("/data").map(|mount| mount.source.clone()).unwrap_or_default();
    let suffix = |name: &str| format!("{name}-pg{}", profile.major);
    let plan = UpgradePlan {
        version: plan::PLAN_VERSION,
        cluster: policy.name.clone(),
        host: policy.host.clone(),
        method: "dump".to_owned(),
        from: profile.major,
        to: request.to,
        old_image: PinnedImage { name: container.image.clone(), id: container.image_id.clone() },
        new_image: PinnedImage { name: reference, id: new_image.id.clone() },
        kept_container: suffix(policy.container.as_str()).parse().expect("a suffix fits"),
        kept_data_container: suffix(layout.data_container.as_str()).parse().expect("a suffix fits"),
        container: policy.container.clone(),
        data_container: layout.data_container.clone(),
        old_container_id: container.id.clone(),
        old_data_container_id: data.id.clone(),
        new_volume: VolumeName::new(format!("pglife-{}-data-pg{}", policy.name, request.to)).expect("it fits"),
        shared: data
            .mounts
            .iter()
            .filter(|mount| mount.destination != "/data")
            .map(|mount| (mount.source.clone(), mount.destination.clone()))
            .collect(),
        old_volume,
        restart: engine.restart_policy(&container.id).await.map_err(failed(what))?,
        bootstrap_role: profile.bootstrap_role.clone(),
        system_identifier: profile.system_identifier,
        wal_segment_bytes: profile.wal_segment_bytes,
        bytes: profile.databases.iter().map(|database| database.bytes).sum(),
        databases: profile.databases.iter().filter(|one| one.connectable).map(|one| one.name.clone()).collect(),
        policy_image: (layout.image.as_str() != format!("pglife/postgres:{}", policy.major))
            .then(|| request.image.clone().unwrap_or_else(|| format!("pglife/postgres:{}", request.to)))
            .or_else(|| request.image.clone()),
    };
    findings.extend(names_taken(engine, &plan, what).await?);
    findings.extend(policy_stays_readable(control, policy, &plan)?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(Prepared { plan, findings, identity: request.identity.clone() })
}

async fn names_taken(engine: &Engine, plan: &UpgradePlan, what: &str) -> Result<Vec<Finding>, OperationError> {
    let mut findings = Vec::new();
    let trials = Trial::ALL.map(|trial| plan.trial(trial));
    for name in [&plan.kept_container, &plan.kept_data_container].into_iter().chain(&trials) {
        if engine.container(name.as_str()).await.map_err(failed(what))?.is_some() {
            findings.push(Finding::blocks(
                format!("there is a container \"{name}\", whose name the upgrade needs"),
                format!("look at what it is (docker inspect {name}); rename or remove it"),
            ));
        }
    }
    if engine.volume(&plan.new_volume).await.map_err(failed(what))?.is_some() {
        findings.push(Finding::blocks(
            format!("there is a volume \"{}\", whose name the upgrade needs", plan.new_volume),
            format!("if nothing needs it any more: docker volume rm {}", plan.new_volume),
        ));
    }
    Ok(findings)
}

/// The policy is changed at the end; that it can be is known at the beginning.
fn policy_stays_readable(
    control: &ControlPlane,
    policy: &Policy,
    plan: &UpgradePlan,
) -> Result<Vec<Finding>, OperationError> {
    let configuration = &control.configuration;
    let text = configuration.policy_text(&policy.name).map_err(failed("the policy cannot be read"))?;
    let changed = plan::policy_with(&text, plan.to, plan.policy_image.as_deref());
    let fits = configuration.check_policy(&policy.name, &changed).is_ok_and(|changed| {
        let Layout::Managed(layout) = &changed.layout else { return false };
        changed.major == plan.to && layout.image.as_str() == plan.new_image.name
    });
    if fits {
        return Ok(vec![]);
    }
    Ok(vec![Finding::blocks(
        format!(
            "pglife cannot write `major` and `image` into {} by itself",
            configuration.policy_path(&policy.name).display()
        ),
        format!(
            "write them in the section [cluster], one a line; an image other than pglife/postgres:{} needs --image",
            plan.to
        ),
    )])
}

async fn survey_of(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    container: &crate::docker::Container,
    image: &crate::docker::Image,
    what: &str,
) -> Result<(crate::backup_set::ServerProfile, Survey), OperationError> {
    let (mut session, profile) =
        provision::await_server(control, run, policy, engine, container, image, vec![], what, 10, Some(policy.major))
            .await?;
    let (login, _) = control.login(policy, container)?;
    let mut survey = None;
    let asked = session
        .request(&Request::Survey { login }, &control.cancel, |event| {
            if let Event::Surveyed(found) = event {
                survey = Some(*found);
            }
        })
        .await;
    close_worker(session).await;
    asked.map_err(failed(what))?;
    let survey =
        survey.ok_or_else(|| OperationError::new(Exit::Failed, format!("{what}: the worker did not survey")))?;
    Ok((profile, survey))
}

/// Refuses where something blocks.
fn check_findings(findings: &[Finding], what: &str, cluster: &ClusterName) -> Result<(), OperationError> {
    let blocking: Vec<&Finding> = findings.iter().filter(|finding| finding.severity == Severity::Blocks).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let list =
        blocking.iter().map(|one| format!("\n  - {}\n      {}", one.what, one.remedy)).collect::<Vec<_>>().concat();
    Err(OperationError::new(Exit::Refused, format!("{what}: {} things stand in its way:{list}", blocking.len()))
        .safe("nothing was touched")
        .next(format!("mend them, then look again: pglife upgrade {cluster} --to MAJOR --plan")))
}

/// How an upgrade ended.
#[derive(Debug)]
pub struct Upgraded {
    /// As the journal has it now.
    pub recorded: Recorded,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// Does what was prepared.
pub async fn upgrade(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let plan = &prepared.plan;
    let what = format!("upgrade of cluster \"{}\" to PostgreSQL {}", policy.name, plan.to);
    check_findings(&prepared.findings, &format!("{what} did not begin"), &policy.name)?;
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        // Somebody may have been quicker.
        check_journal(control, policy, &what)?;
        let text = serde_json::to_string(plan).expect("a plan has only text keys");
        let id = run.id.clone();
        control
            .state
            .begin_upgrade(&id, &policy.name, Phase::Open.as_str(), &text, Timestamp::now())
            .map_err(failed(&what))?;
        let mut scene = Scene::new(control, &run, &engine, policy, plan, id, progress);
        let identity = prepared.identity.as_deref();
        match transfer::until_commit(&mut scene, identity).await {
            Ok(()) => finish(&mut scene).await,
            Err(error) => Err(undo_after(&mut scene, error).await),
        }
    }
    .await;
    run.end(ended, |done| {
        let exit = if done.warnings.is_empty() { Exit::Ok } else { Exit::Warnings };
        (exit, format!("PostgreSQL {} to {}", plan.from, plan.to), done.recorded.report.backup.clone())
    })
    .await
}

/// After the commit: forward to the end, then the first backup of the new lineage.
async fn finish(scene: &mut Scene<'_>) -> Result<Upgraded, OperationError> {
    let (control, cluster) = (scene.control, scene.plan.cluster.clone());
    let forward = async {
        scene.drive(Goal::Upgraded).await?;
        scene.check_serving().await?;
        scene.phase(Phase::Upgraded)
    }
    .await;
    forward.map_err(|error: OperationError| {
        OperationError {
            exit: Exit::UpgradeNeedsOperator,
            next: Some(format!(
                "see to what is said above, then: pglife upgrade resume {cluster}; or go back: pglife upgrade rollback {cluster} --accept-data-loss"
            )),
            ..error
        }
        .safe("the new server's data are complete and compared; the old server's are untouched and kept")
    })?;
    let mut warnings = Vec::new();
    scene.say("first backup of the new server");
    let policy = scene.new_policy();
    match backup::take_in_run(control, scene.run, &policy, scene.engine, scene.progress).await {
        Ok(taken) => {
            warnings.extend(taken.warnings.iter().cloned());
            scene.report.first_backup = Some(taken.commit.set);
            scene.save_report()?;
        }
        Err(error) => warnings.push(format!(
            "the upgrade is done, but the first backup of the new server failed: {}; take one: pglife backup {cluster}",
            error.chain()
        )),
    }
    Ok(Upgraded { recorded: require_last(control, &cluster)?, warnings })
}

/// Goes back because of `error`, and says how it is now.
async fn undo_after(scene: &mut Scene<'_>, error: OperationError) -> OperationError {
    let cluster = scene.plan.cluster.clone();
    (scene.progress)(Tick::Warning(format!("{}; going back", error.chain())));
    scene.report.failure = Some(error.chain());
    if let Err(also) = scene.save_report() {
        tracing::warn!("{}", also.chain());
    }
    match go_back(scene).await {
        Ok(()) => OperationError {
            exit: Exit::UpgradeRolledBack,
            safe: Some(format!("cluster \"{cluster}\" serves as before; what was made for the upgrade was removed")),
            ..error
        },
        Err(also) => OperationError {
            what: format!("{}; and going back failed: {}", error.what, also.chain()),
            exit: Exit::UpgradeNeedsOperator,
            safe: Some("the old server's data are untouched".to_owned()),
            next: Some(format!("see to what is said above, then: pglife upgrade resume {cluster}")),
            ..error
        },
    }
}

async fn go_back(scene: &mut Scene<'_>) -> Result<(), OperationError> {
    scene.phase(Phase::Undoing)?;
    scene.drive(Goal::AsBefore).await?;
    scene.phase(Phase::AsBefore)
}

/// Carries an upgrade that was cut to its end.
pub async fn resume(
    control: &ControlPlane,
    policy: &Policy,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("resume of the upgrade of cluster \"{}\" failed", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        // Read under the lock: whoever had it may have carried on.
        let last = require_last(control, &policy.name)?;
        let Some(goal) = last.phase.goal() else {
            return Ok(Upgraded { recorded: last, warnings: vec![] });
        };
        let mut scene = Scene::new(control, &run, &engine, policy, &last.plan, last.id.clone(), progress);
        scene.report = last.report.clone();
        match goal {
            Goal::Upgraded => finish(&mut scene).await,
            Goal::AsBefore => {
                scene.report.failure.get_or_insert_with(|| format!("the process was cut at {}", last.step));
                scene.save_report()?;
                go_back(&mut scene).await.map_err(|error| needs_operator(error, policy))?;
                Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings: vec![] })
            }
        }
    }
    .await;
    run.end(ended, |done| (exit_of(done), format!("resumed: {}", done.recorded.phase.as_str()), None)).await
}

fn needs_operator(error: OperationError, policy: &Policy) -> OperationError {
    OperationError {
        exit: Exit::UpgradeNeedsOperator,
        next: Some(format!("see to what is said above, then: pglife upgrade resume {}", policy.name)),
        ..error
    }
    .safe("the old server's data are untouched")
}

/// How the process ends for an upgrade that came to an end.
pub fn exit_of(done: &Upgraded) -> Exit {
    match done.recorded.phase {
        Phase::AsBefore => Exit::UpgradeRolledBack,
        _ if done.warnings.is_empty() => Exit::Ok,
        _ => Exit::Warnings,
    }
}

/// Goes back to the old server. What was written to the new one since is in a backup, and not in the old one.
pub async fn rollback(
    control: &ControlPlane,
    policy: &Policy,
    accept_data_loss: bool,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let what = format!("rollback of the upgrade of cluster \"{}\" did not begin", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        let last = require_last(control, &policy.name)?;
        match last.phase {
            Phase::Open | Phase::Undoing => {}
            Phase::Committed | Phase::Upgraded if accept_data_loss => {}
            Phase::Committed | Phase::Upgraded => {
                return Err(OperationError::new(
                    Exit::Refused,
                    format!(
                        "{what}: since {} clients may have written to the new server; the old one has nothing of that",
                        last.report.serving_at.map_or_else(|| "the commit".to_owned(), |at| at.to_string())
                    ),
                )
                .safe("nothing was touched")
                .next("add --accept-data-loss if that is meant: a backup of the new server is taken first"));
            }
            Phase::AsBefore | Phase::Finalized => {
                return Err(OperationError::new(
                    Exit::NotFound,
                    format!("{what}: there is nothing to go back from (it is {})", last.phase.as_str()),
                )
                .safe("nothing was touched"));
            }
        }
        let mut scene = Scene::new(control, &run, &engine, policy, &last.plan, last.id.clone(), progress);
        scene.report = last.report.clone();
        let mut warnings = Vec::new();
        if last.phase == Phase::Upgraded {
            scene.say("backup of the new server");
            let taken = backup::take_in_run(control, &run, &scene.new_policy(), &engine, progress).await;
            let taken = taken.map_err(|error| {
                error.safe("nothing was touched: the new server serves").next(
                    "see why the new server cannot be backed up; what was written to it would be lost without a backup",
                )
            })?;
            warnings.push(format!("what was written to the new server is in backup {}", taken.commit.set));
        }
        go_back(&mut scene).await.map_err(|error| needs_operator(error, policy))?;
        Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings })
    }
    .await;
    run.end(ended, |_| (Exit::Ok, "rolled back".to_owned(), None)).await
}

/// Removes the old server for good.
pub async fn finalize(control: &ControlPlane, policy: &Policy) -> Result<Upgraded, OperationError> {
    let what = format!("finalize of the upgrade of cluster \"{}\" did not begin", policy.name);
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Upgrade, &policy.name, &engine).await?;
    let ended = async {
        let last = require_last(control, &policy.name)?;
        if last.phase == Phase::Finalized {
            return Ok(Upgraded { recorded: last, warnings: vec![] });
        }
        if last.phase != Phase::Upgraded {
            return Err(OperationError::new(
                Exit::Refused,
                format!("{what}: it is {}, so there is no old server to remove", last.phase.as_str()),
            )
            .safe("nothing was touched"));
        }
        check_backed_up(control, policy, &last, &what)?;
        let plan = &last.plan;
        for (name, id) in
            [(&plan.kept_container, &plan.old_container_id), (&plan.kept_data_container, &plan.old_data_container_id)]
        {
            if let Some(found) = engine.container(name.as_str()).await.map_err(failed(&what))?
                && found.id == *id
            {
                engine.remove_container(&found.id).await.map_err(failed(&what))?;
            }
        }
        // A folder of the host that was mounted instead of a volume is not ours to delete.
        if let Ok(volume) = VolumeName::new(plan.old_volume.clone()) {
            engine.remove_volume(&volume).await.map_err(failed(&what))?;
        }
        control.state.upgrade_phase(&last.id, Phase::Finalized.as_str(), Timestamp::now()).map_err(failed(&what))?;
        Ok(Upgraded { recorded: require_last(control, &policy.name)?, warnings: vec![] })
    }
    .await;
    run.end(ended, |_| (Exit::Ok, "finalized".to_owned(), None)).await
}

/// The old data go only when a backup of the new server is there.
fn check_backed_up(control: &ControlPlane, policy: &Policy, last: &Recorded, what: &str) -> Result<(), OperationError> {
    let holdings = control.repositories_of(policy, None)?.holdings(control, policy)?;
    let of_new = |commit: &crate::backup_set::Commit| {
        commit.lineage.major == last.plan.to && Some(commit.lineage.system_identifier) == last.report.system_identifier
    };
    if holdings.sets.iter().any(|held| of_new(&held.commit)) {
        return Ok(());
    }
    Err(OperationError::new(Exit::Refused, format!("{what}: no repository has a backup of the new server"))
        .safe("nothing was touched: the old server is kept")
        .next(format!("take one: pglife backup {}", policy.name)))
}
