//! `pglife restore --in-place`: the data of a backup take the place of a cluster's, in containers of the same names.
//!
//! ```text
//! set ─▶ plan ─▶ journal: open ─▶ new volume, the set goes into it; started once, where nobody knows it
//!   ─▶ old server stopped ─▶ journal: committed ─▶ on as an upgrade goes on
//! ```
//!
//! The old server may be whole, damaged, or down. Its containers and its volume with the data are kept until `finalize`; the other
//! volumes (`/config`, `/secret`, `/log`) are the cluster's, and stay as they are.

use std::path::PathBuf;

use jiff::Timestamp;

use super::look::{check_findings, kept_name, managed, names_taken, shared};
use super::plan::{self, Containers, DataContainer, Method, OldServer, PinnedImage, UpgradePlan};
use super::record::{Report, check_journal};
use super::transfer::Origin;
use super::{Upgraded, carry_out, preflight};
use crate::backup_set::{Manifest, Selector, ServerProfile};
use crate::cluster::{ContainerName, RepoName, VolumeName};
use crate::control::{ControlPlane, OperationError, Progress, Run, close_worker, failed, or_elsewhere};
use crate::dependents::act::Dependents;
use crate::docker::{Container, Engine, Image};
use crate::exit::Exit;
use crate::policy::{Managed, Policy};
use crate::provision;
use crate::restore::{Chosen, Plan, Wanted};
use crate::state::Operation;

/// How long a server that runs may take to say who it is.
const PATIENCE_SECONDS: u64 = 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct InPlaceRequest {
    /// The set.
    pub backup: Selector,
    /// The repository, where it is not the policy's first.
    pub repository: Option<RepoName>,
    /// The file with a key, where it is not the configured one; encrypted sets need one.
    pub identity: Option<PathBuf>,
}

/// A restore in place that could begin.
#[derive(Debug)]
pub struct InPlace {
    /// What would be done.
    pub plan: UpgradePlan,
    pub(super) chosen: Chosen,
    /// How the set is restored.
    pub how: Plan,
    /// What the operator should read before.
    pub warnings: Vec<String>,
    /// Where a worker reaches a bucket.
    pub(super) network: Option<String>,
}

/// Finds the set, looks at the cluster and makes the plan; nothing is changed.
pub async fn prepare_in_place(
    control: &ControlPlane,
    policy: &Policy,
    request: &InPlaceRequest,
) -> Result<InPlace, OperationError> {
    let what = format!("restore in place of cluster \"{}\" did not begin", policy.name);
    let layout = managed(policy, &what)?;
    check_journal(control, policy, &what)?;
    let wish = (&request.backup, request.repository.as_ref(), request.identity.as_deref());
    let chosen = Chosen::find(control, policy, wish, &what)?;
    control.check_reach(&policy.host, &chosen.repository_name, &what)?;
    let mut how = chosen.plan(policy.major, &Wanted::Everything, &what)?;
    if let Plan::Volume(volumes) = &mut how {
        if !volumes.is_of_our_image() {
            let why = format!("{what}: {} is of the container that the cluster had when it was adopted", volumes.set);
            return Err(OperationError::new(Exit::Refused, why)
                .safe("nothing was touched")
                .next(format!("restore it into a new cluster: pglife restore {} --into NAME", policy.name)));
        }
        volumes.only("/data");
        // Those are for a copy beside its source.
        volumes.warnings.clear();
    }
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Look, &policy.name, &engine).await?;
    let mut looked = look(control, &run, &engine, (policy, layout), &chosen, &what).await;
    if let (Ok((plan, _)), Plan::Volume(volumes)) = (&mut looked, &how) {
        plan.needed_bytes = volumes.tar_bytes() + preflight::ROOM_TO_START;
    }
    let (plan, present) = run.end(looked, |(plan, _)| (Exit::Ok, format!("plan of a {plan}"), None)).await?;
    let archives = [Some(&chosen.manifest.server), present.as_ref()].into_iter().flatten().any(ServerProfile::archives);
    let warnings = warnings(policy, &chosen.manifest, &how, archives);
    let network = layout.network.as_ref().map(|network| network.as_str().to_owned());
    Ok(InPlace { plan, chosen, how, warnings, network })
}

/// What is not in the cluster afterwards, or not as it was, beside what was written since. Where the server archives its WAL, or did when the
/// backup was taken, it will again: its settings are the backup's, or those in `/config`.
fn warnings(policy: &Policy, manifest: &Manifest, how: &Plan, archives: bool) -> Vec<String> {
    let mut warnings: Vec<String> = manifest
        .skipped
        .iter()
        .map(|skipped| {
            let (database, reason) = (&skipped.database, &skipped.reason);
            format!("database \"{database}\" is not in the backup ({reason}), so it is not in the cluster afterwards")
        })
        .collect();
    if matches!(how, Plan::Dump(_)) && !policy.dump.exclude_table_data.is_empty() {
        let tables: Vec<String> = policy.dump.exclude_table_data.iter().map(ToString::to_string).collect();
        warnings.push(format!(
            "`exclude_table_data` of the policy keeps rows out of dumps ({}): those tables are empty afterwards",
            tables.join(", ")
        ));
    }
    warnings.extend(archives.then(|| archiving(how)));
    warnings
}

/// What becomes of an archive of WAL.
fn archiving(how: &Plan) -> String {
    let (of_another, remedy) = preflight::ARCHIVE_OF_ANOTHER_SERVER;
    let what = match how {
        Plan::Volume(_) => {
            "archive_mode is on: the server goes on from the time of the backup, and writes WAL of the same names as before \
             into its archive"
        }
        Plan::Dump(_) => of_another,
    };
    format!("{what}; {remedy}")
}

async fn look(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    (policy, layout): (&Policy, &Managed),
    chosen: &Chosen,
    what: &str,
) -> Result<(UpgradePlan, Option<ServerProfile>), OperationError> {
    let into_itself = format!(
        "if nothing is left of its containers and volumes: pglife restore {0} --into {0}; else into another name",
        policy.name
    );
    let gone = |error| failed(what)(error).next(&into_itself);
    let container = engine.require_container(&policy.container).await.map_err(gone)?;
    let data = engine.require_container(&layout.data_container).await.map_err(gone)?;
    if container.status == "paused" {
        return Err(OperationError::new(Exit::Refused, format!("{what}: container \"{}\" is paused", container.name))
            .safe("nothing was touched")
            .next(format!("docker unpause {0}, or docker stop {0}", container.name)));
    }
    let image = engine.require_image(&container.image_id).await.map_err(failed(what))?;
    let major = policy.major.to_string();
    if !image.is_ours() || image.labels.get("pglife.major") != Some(&major) {
        let why = format!("{what}: container \"{}\" has no image of pglife's PostgreSQL {major}", container.name);
        return Err(OperationError::new(Exit::Refused, why).safe("nothing was touched").next(into_itself));
    }
    let server = &chosen.manifest.server;
    let (old_server, present) = old_server(control, run, engine, policy, &container, &image, what).await;
    let set = chosen.commit.set.clone();
    let bytes = server.databases.iter().map(|database| database.bytes).sum();
    let dependents = Dependents { control, engine, policy, shared: None }.look().await?;
    let kept = |name: &ContainerName| kept_name(name, "-before", what);
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let image = PinnedImage { name: container.image.clone(), id: container.image_id.clone() };
    let plan = UpgradePlan {
        version: plan::PLAN_VERSION,
        cluster: policy.name.clone(),
        host: policy.host.clone(),
        method: Method::Restore(set),
        old_server,
        from: policy.major,
        to: policy.major,
        old_image: image.clone(),
        new_image: image,
        kept_container: kept(&policy.container)?,
        container: policy.container.clone(),
        old_container_id: container.id.clone(),
        containers: Containers::Pair(DataContainer {
            name: layout.data_container.clone(),
            old_id: data.id.clone(),
            kept: kept(&layout.data_container)?,
            shared: shared(&data),
        }),
        new_volume: VolumeName::new(format!("pglife-{}-data-{stamp}", policy.name)).expect("it fits"),
        old_volume: data.mount_of("/data").map(|mount| mount.source.clone()).unwrap_or_default(),
        restart: engine.restart_policy(&container.id).await.map_err(failed(what))?,
        bootstrap_role: server.bootstrap_role.clone(),
        system_identifier: present.as_ref().unwrap_or(server).system_identifier,
        wal_segment_bytes: server.wal_segment_bytes,
        databases: server.connectable(),
        bytes,
        policy_image: None,
        sorting: vec![],
        dependents: dependents.would_go_down().map(|follower| follower.name.clone()).collect(),
        needed_bytes: preflight::with_room(bytes),
        expected_downtime: None,
    };
    let again = format!("pglife restore {} --in-place --dry-run", policy.name);
    check_findings(&names_taken(engine, &plan, what).await?, what, &again)?;
    Ok((plan, present))
}

/// What the server in `container` does, and what it is where it says so.
async fn old_server(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    container: &Container,
    image: &Image,
    what: &str,
) -> (OldServer, Option<ServerProfile>) {
    if !container.running {
        return (OldServer::Stopped, None);
    }
    let entered = provision::await_server(
        control,
        run,
        policy,
        engine,
        container,
        image,
        vec![],
        what,
        PATIENCE_SECONDS,
        Some(policy.major),
    );
    match entered.await {
        Ok((session, profile)) => {
            close_worker(session).await;
            (OldServer::Serves, Some(profile))
        }
        // That is why it is restored, as likely as not.
        Err(error) => {
            tracing::info!(cluster = %policy.name, "the server to be replaced does not answer: {}", error.chain());
            (OldServer::Runs, None)
        }
    }
}

/// Does what was prepared.
pub async fn restore_in_place(
    control: &ControlPlane,
    policy: &Policy,
    in_place: &InPlace,
    progress: Progress<'_>,
) -> Result<Upgraded, OperationError> {
    let done = carry_out(control, policy, &in_place.plan, Report::default(), Origin::Set(in_place), progress).await;
    done.map_err(or_elsewhere(&in_place.chosen.elsewhere))
}
