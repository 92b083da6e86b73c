//! Looks at a cluster before its upgrade: makes the plan, and finds everything that stands in the way. Nothing is changed.

use std::path::PathBuf;

use jiff::Timestamp;

use super::adopted;
use super::carried;
use super::gate;
use super::old_programs;
use super::plan::{self, Containers, DataContainer, Method, OldServer, PinnedImage, Trial, UpgradePlan};
use super::preflight::{self, Finding, Severity};
use super::record::check_journal;
use super::rehearsal;
use crate::backup;
use crate::backup_set::ServerProfile;
use crate::cluster::{ClusterName, ContainerName, PgMajor, VolumeName};
use crate::control::{ControlPlane, OperationError, Run, close_worker, failed, start_worker};
use crate::dependents::act::Dependents;
use crate::docker::worker::{WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine, Image};
use crate::exit::Exit;
use crate::policy::{Layout, Login, Managed, Policy, UpgradeMethod};
use crate::postgres::installation::Installation;
use crate::postgres::pg_upgrade::Parity;
use crate::postgres::survey::Survey;
use crate::provision;
use crate::state::Operation;
use crate::worker::session::Session;
use crate::worker::{Event, Request};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct UpgradeRequest {
    /// The major to move to.
    pub to: PgMajor,
    /// An image other than the major's usual one.
    pub image: Option<String>,
    /// How the data go over, where it is not the policy's method.
    pub method: Option<UpgradeMethod>,
    /// The file with a key, where backups are encrypted and it is not the configured one.
    pub identity: Option<PathBuf>,
    /// Restore the newest backup into the new major first, even where the policy does not ask for it.
    pub rehearse: bool,
    /// Begin outside the policy's window.
    pub outside_window: bool,
}

/// An upgrade that was looked at, and could begin where nothing blocks it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What would be done.
    pub plan: UpgradePlan,
    /// What matters.
    pub findings: Vec<Finding>,
    /// What is done while the cluster still serves.
    pub before: Vec<String>,
    /// How the data go over.
    pub method: UpgradeMethod,
    /// What the new image has beside the server.
    pub(super) installation: Installation,
    /// What the old server is like, and the new one must be.
    pub(super) parity: Parity,
    /// The old data directory.
    pub(super) data_directory: String,
    /// Where the key of encrypted backups is.
    pub(super) identity: Option<PathBuf>,
    /// A rehearsal is wanted, whatever the policy says.
    pub(super) rehearse: bool,
    /// It may begin outside the policy's window.
    pub(super) outside_window: bool,
}

impl Prepared {
    /// The command that looks again.
    pub(super) fn again(&self) -> String {
        format!("pglife upgrade {} --to {} --plan", self.plan.cluster, self.plan.to)
    }
}

/// Refuses what cannot be done with a cluster of this layout.
fn check_layout(policy: &Policy, method: UpgradeMethod, what: &str) -> Result<(), OperationError> {
    if matches!(policy.layout, Layout::Managed(_)) {
        return managed(policy, what).map(drop);
    }
    if method == UpgradeMethod::Dump {
        return Ok(());
    }
    Err(OperationError::new(Exit::Refused, format!("{what}: it is adopted, and this version moves those by a dump"))
        .safe("nothing was touched")
        .next("take the method `dump`: --method dump"))
}

/// The containers of a cluster that pglife made.
pub(super) fn managed<'a>(policy: &'a Policy, what: &str) -> Result<&'a Managed, OperationError> {
    match (&policy.layout, &policy.login) {
        (Layout::Managed(managed), Login::Socket { .. }) => Ok(managed),
        (Layout::Managed(_), Login::Tcp { .. }) => Err(OperationError::new(
            Exit::Refused,
            format!("{what}: its policy logs in by TCP, and a new server has no password yet"),
        )
        .next("take `password_file` out of the policy: pglife's own images let it in by the socket")),
        (Layout::Adopted(_), _) => Err(OperationError::new(
            Exit::Refused,
            format!("{what}: it is adopted, and a backup takes the place only of data in containers that pglife made"),
        )
        .next(format!("restore a backup of it into a new cluster: pglife restore {} --into NAME", policy.name))),
    }
    .map_err(|error| error.safe("nothing was touched"))
}

/// Looks at everything and makes the plan; nothing is changed.
pub async fn prepare(
    control: &ControlPlane,
    policy: &Policy,
    request: &UpgradeRequest,
) -> Result<Prepared, OperationError> {
    let what = format!("upgrade of cluster \"{}\" did not begin", policy.name);
    let method = request.method.unwrap_or(policy.upgrade.method);
    check_layout(policy, method, &what)?;
    if request.to <= policy.major {
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: it has PostgreSQL {}, and {} is not newer", policy.major, request.to),
        )
        .safe("nothing was touched"));
    }
    check_journal(control, policy, &what)?;
    let usual = format!("pglife/postgres:{}", request.to);
    let of_our_image = matches!(policy.layout, Layout::Managed(_));
    if of_our_image
        && (request.rehearse || policy.upgrade.rehearse)
        && request.image.as_ref().is_some_and(|image| *image != usual)
    {
        return Err(OperationError::new(Exit::Usage, format!("{what}: a rehearsal uses {usual}, not another --image"))
            .safe("nothing was touched")
            .next(format!("give that image the name {usual} (docker tag), or upgrade without a rehearsal")));
    }
    control.repositories_of(policy, None)?.writable(policy, &what)?;
    let reads_backups = method == UpgradeMethod::Dump || request.rehearse || policy.upgrade.rehearse;
    if let (Some(encryption), true) = (&control.configuration.settings.encryption, reads_backups) {
        let keys = control.keys(request.identity.as_deref())?;
        if keys.is_none() {
            return Err(OperationError::new(
                Exit::Credentials,
                format!("{what}: backups are encrypted, and it restores one"),
            )
            .safe("nothing was touched")
            .next(control.ask_for_key(&encryption.recipients, request.identity.as_deref(), None)));
        }
    }
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Look, &policy.name, &engine).await?;
    let prepared = look(control, &run, &engine, policy, request, &what).await;
    run.end(prepared, |_| (Exit::Ok, format!("plan of an upgrade to {}", request.to), None)).await
}

async fn look(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    request: &UpgradeRequest,
    what: &str,
) -> Result<Prepared, OperationError> {
    let container = backup::running_container(engine, policy, what).await?;
    let old_image = engine.require_image(&container.image_id).await.map_err(failed(what))?;
    let new_image = new_image(engine, policy, &container, request, what).await?;
    let reference = new_image.reference.clone();
    let (session, profile, survey) = survey_by(control, run, engine, policy, &container, &old_image, what).await?;
    close_worker(session).await;
    let installation = installation_of(control, run, engine, &policy.name, &new_image, request.to, what).await?;
    let method = request.method.unwrap_or(policy.upgrade.method);
    let suffix = |name: &ContainerName| kept_name(name, &format!("-pg{}", profile.major), what);
    let (containers, mut findings) = match &policy.layout {
        Layout::Managed(layout) => {
            let data = engine.require_container(&layout.data_container).await.map_err(failed(what))?;
            let pair = DataContainer {
                name: layout.data_container.clone(),
                kept: suffix(&layout.data_container)?,
                shared: shared(&data),
                old_id: data.id,
            };
            (Containers::Pair(pair), vec![])
        }
        Layout::Adopted(layout) => {
            let body = engine.blueprint(&container.id).await.map_err(failed(what))?.body;
            let single = adopted::single(
                &container,
                &layout.pgdata.to_string_lossy(),
                &profile,
                // Nobody else's folder has such a name: it may be removed.
                &format!("-pg{}-{}", request.to, Timestamp::now().strftime("%Y%m%dT%H%M%SZ")),
            );
            let findings = adopted::findings(&container, &body, [&old_image, &new_image], &single.pgdata, &survey);
            (Containers::Single(single), findings)
        }
    };
    findings.extend(preflight::findings(&profile, &survey, request.to, &containers));
    findings.extend(preflight::of_method(method, &profile, &survey, request.to));
    findings.extend(preflight::missing_in_image(&survey, &installation, &reference, request.to));
    let dependents = Dependents { control, engine, policy, shared: None }.look().await?;
    let mut plan = UpgradePlan {
        version: plan::PLAN_VERSION,
        cluster: policy.name.clone(),
        host: policy.host.clone(),
        method: Method::Upgrade(method),
        old_server: OldServer::Serves,
        from: profile.major,
        to: request.to,
        old_image: PinnedImage { name: container.image.clone(), id: container.image_id.clone() },
        new_image: PinnedImage { name: reference, id: new_image.id.clone() },
        kept_container: suffix(&policy.container)?,
        container: policy.container.clone(),
        old_container_id: container.id.clone(),
        containers,
        new_volume: VolumeName::new(format!("pglife-{}-data-pg{}", policy.name, request.to)).expect("it fits"),
        old_volume: String::new(),
        restart: engine.restart_policy(&container.id).await.map_err(failed(what))?,
        bootstrap_role: profile.bootstrap_role.clone(),
        system_identifier: profile.system_identifier,
        wal_segment_bytes: profile.wal_segment_bytes,
        bytes: profile.databases.iter().map(|database| database.bytes).sum(),
        databases: profile.connectable(),
        policy_image: policy_image(policy, request),
        sorting: vec![],
        dependents: dependents.would_go_down().map(|follower| follower.name.clone()).collect(),
        needed_bytes: preflight::needed_bytes(&profile),
        expected_downtime: None,
    };
    plan.old_volume = container.mount_of(plan.data_mount()).map(|mount| mount.source.clone()).unwrap_or_default();
    if method == UpgradeMethod::PgUpgrade {
        let old = installation_of(control, run, engine, &policy.name, &old_image, plan.from, what).await?;
        plan.sorting = old.sorting.changes(&installation.sorting);
        let rehearsed =
            rehearsal::of_schema(control, run, engine, policy, &container, &plan, (&profile, &survey), what).await?;
        plan.expected_downtime = rehearsed.seconds.map(|seconds| plan::expected_downtime(seconds, plan.bytes));
        findings.extend(rehearsed.obstacle);
    }
    findings.extend(names_taken(engine, &plan, what).await?);
    findings.extend(policy_stays_readable(control, policy, &plan).await?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(Prepared {
        plan,
        findings,
        before: gate::steps(&policy.upgrade, request.rehearse, request.to),
        method,
        installation,
        parity: old_programs::parity(&profile, &survey),
        data_directory: survey.data_directory,
        identity: request.identity.clone(),
        rehearse: request.rehearse,
        outside_window: request.outside_window,
    })
}

/// The image of the new server.
async fn new_image(
    engine: &Engine,
    policy: &Policy,
    container: &Container,
    request: &UpgradeRequest,
    what: &str,
) -> Result<Image, OperationError> {
    let to = request.to;
    let refused = |why: String, next: &str| {
        Err(OperationError::new(Exit::Refused, format!("{what}: {why}")).safe("nothing was touched").next(next))
    };
    if matches!(policy.layout, Layout::Managed(_)) {
        let reference = request.image.clone().unwrap_or_else(|| format!("pglife/postgres:{to}"));
        let image = engine.require_image(&reference).await.map_err(failed(what))?;
        let major = image.labels.get("pglife.major").map(String::as_str);
        if !image.is_ours() || major != Some(to.to_string().as_str()) {
            return refused(
                format!("{reference} is not made from pglife's image of PostgreSQL {to}"),
                "name an image built from docker/postgres/Dockerfile (see docs/images.md)",
            );
        }
        return Ok(image);
    }
    let of_the_same_name = || adopted::successor(&container.image, policy.major, to);
    let Some(reference) = request.image.clone().or_else(of_the_same_name) else {
        return refused(
            format!(
                "the image {} of container \"{}\" does not tell by its name which one has PostgreSQL {to}",
                container.image, container.name
            ),
            "name that one, with the same layout and everything that the old one has: --image NAME",
        );
    };
    let image = engine.require_image(&reference).await.map_err(|error| {
        let next = format!("docker pull {reference} on host \"{}\"; or name another one: --image NAME", policy.host);
        OperationError { next: Some(next), ..failed(what)(error).safe("nothing was touched") }
    })?;
    match adopted::unfit(&image) {
        Some(why) => refused(
            format!(
                "the container of an adopted cluster is made anew from an image of its own layout, and {reference} {why}"
            ),
            "name one that is made from the official image of PostgreSQL: --image NAME; or restore a backup into a new cluster: \
             pglife restore … --into NAME",
        ),
        None => Ok(image),
    }
}

/// The value of `image` in the policy afterwards: that of an adopted cluster has none.
fn policy_image(policy: &Policy, request: &UpgradeRequest) -> Option<String> {
    let Layout::Managed(layout) = &policy.layout else { return None };
    let usual = |major: PgMajor| format!("pglife/postgres:{major}");
    let names_one = layout.image.as_str() != usual(policy.major);
    request.image.clone().or_else(|| names_one.then(|| usual(request.to)))
}

/// The volumes of a data container beside that of the data: source and destination.
pub(super) fn shared(data: &Container) -> Vec<(String, String)> {
    let others = data.mounts.iter().filter(|mount| mount.destination != "/data");
    others.map(|mount| (mount.source.clone(), mount.destination.clone())).collect()
}

/// What an old container is called while it is kept.
pub(super) fn kept_name(name: &ContainerName, suffix: &str, what: &str) -> Result<ContainerName, OperationError> {
    format!("{name}{suffix}").parse().map_err(|_| {
        let why =
            format!("{what}: the name of container \"{name}\" is too long to be kept with \"{suffix}\" behind it");
        OperationError::new(Exit::Refused, why)
            .safe("nothing was touched")
            .next(format!("give it a shorter one (docker rename {name} NAME), and write that into the policy"))
    })
}

/// Names that the plan needs and somebody else has.
pub(super) async fn names_taken(
    engine: &Engine,
    plan: &UpgradePlan,
    what: &str,
) -> Result<Vec<Finding>, OperationError> {
    let mut findings = Vec::new();
    let trials = Trial::ALL.map(|trial| plan.trial(trial));
    let kept_data = plan.data_container().map(|data| &data.kept);
    for name in [&plan.kept_container].into_iter().chain(kept_data).chain(&trials) {
        if engine.container(name.as_str()).await.map_err(failed(what))?.is_some() {
            findings.push(Finding::blocks(
                format!("there is a container \"{name}\", whose name is needed"),
                format!("look at what it is (docker inspect {name}); rename or remove it"),
            ));
        }
    }
    if engine.volume(&plan.new_volume).await.map_err(failed(what))?.is_some() {
        findings.push(Finding::blocks(
            format!("there is a volume \"{}\", whose name is needed", plan.new_volume),
            format!("if nothing needs it any more: docker volume rm {}", plan.new_volume),
        ));
    }
    Ok(findings)
}

/// The policy is changed at the end; that it can be is known at the beginning.
async fn policy_stays_readable(
    control: &ControlPlane,
    policy: &Policy,
    plan: &UpgradePlan,
) -> Result<Vec<Finding>, OperationError> {
    let configuration = &control.configuration;
    let text = control.policy_text(&policy.name).await.map_err(failed("the policy cannot be read"))?;
    let changed = carried::policy_with(&text, plan.to, plan.policy_image.as_deref());
    let fits = configuration.check_policy(&policy.name, &changed).is_ok_and(|changed| {
        let has_image = match &changed.layout {
            Layout::Managed(layout) => layout.image.as_str() == plan.new_image.name,
            Layout::Adopted(_) => true,
        };
        changed.major == plan.to && has_image
    });
    if fits {
        return Ok(vec![]);
    }
    Ok(vec![Finding::blocks(
        format!(
            "pglife cannot write `major` and `image` into {} by itself",
            configuration.policy_place(&policy.name).display()
        ),
        format!(
            "write them in the section [cluster], one a line; an image other than pglife/postgres:{} needs --image",
            plan.to
        ),
    )])
}

/// What `image` has beside the server of `major`.
async fn installation_of(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    cluster: &ClusterName,
    image: &Image,
    major: PgMajor,
    what: &str,
) -> Result<Installation, OperationError> {
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: cluster.clone(),
        image_id: image.id.clone(),
        mounts: vec![],
        network: WorkerNetwork::Nothing,
        serves: false,
    };
    let session = start_worker(engine, &worker).await.map_err(failed(what))?;
    let installation = |event| match event {
        Event::Image(installation) => Some(*installation),
        _ => None,
    };
    control.ask(session, &Request::LookAtImage { major }, what, installation).await
}

/// What the server in `container` is, what there is in it, and the session that it was asked by.
pub(super) async fn survey_by(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    container: &Container,
    image: &Image,
    what: &str,
) -> Result<(Session, ServerProfile, Survey), OperationError> {
    let mounts = adopted::data_seen_by_a_survey(policy, container);
    let (mut session, profile) =
        provision::await_server(control, run, policy, engine, container, image, mounts, what, 10, Some(policy.major))
            .await?;
    let surveyed = async {
        let (login, _) = control.login(policy, container)?;
        let surveyed = |event| match event {
            Event::Surveyed(survey) => Some(*survey),
            _ => None,
        };
        control.ask_first(&mut session, &Request::Survey { login }, what, surveyed).await
    }
    .await;
    match surveyed {
        Ok(survey) => Ok((session, profile, survey)),
        Err(error) => {
            close_worker(session).await;
            Err(error)
        }
    }
}

/// Refuses where something blocks.
pub(super) fn check_findings(findings: &[Finding], what: &str, again: &str) -> Result<(), OperationError> {
    let blocking: Vec<&Finding> = findings.iter().filter(|finding| finding.severity == Severity::Blocks).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let list =
        blocking.iter().map(|one| format!("\n  - {}\n      {}", one.what, one.remedy)).collect::<Vec<_>>().concat();
    Err(OperationError::new(Exit::Refused, format!("{what}: {} things stand in its way:{list}", blocking.len()))
        .safe("nothing was touched")
        .next(format!("mend them, then: {again}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leaves_no_room_for_the_kept_one_is_an_error() {
        let name = |length: usize| ContainerName::new("a".repeat(length)).expect("a name");
        assert_eq!(kept_name(&name(3), "-pg17", "it").expect("fits").as_str(), "aaa-pg17");
        assert!(kept_name(&name(123), "-pg17", "it").is_ok());
        assert_eq!(kept_name(&name(124), "-pg17", "it").expect_err("too long").exit, Exit::Refused);
    }
}
