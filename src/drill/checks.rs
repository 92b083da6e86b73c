//! What is looked at in the restored server, by workers beside it.

use crate::cluster::VolumeName;
use crate::control::{ControlPlane, OperationError, Run, close_worker, failed, start_worker};
use crate::docker::Container;
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::policy::Policy;
use crate::restore::{Plan, Prepared, Source};
use crate::worker::session::SessionError;
use crate::worker::{CheckJob, Event, PagesJob, Request};

use super::{Findings, beside, looks_at_structure};

/// Asks a worker beside the restored server.
#[expect(clippy::too_many_arguments, reason = "one caller, with all of it at hand")]
pub(super) async fn check(
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
        mounts: source.mounts().into_iter().chain(way_in).collect(),
        network: WorkerNetwork::Of(container.id.clone()),
        serves: false,
    };
    let (databases, is_volume) = match &prepared.plan {
        Plan::Dump(plan) => (plan.databases.iter().map(|database| database.database.clone()).collect(), false),
        Plan::Volume(plan) => (plan.databases.clone(), true),
    };
    let major = prepared.policy.major;
    let beside = if is_volume { beside::facts(control, prepared) } else { None };
    let job = CheckJob {
        login,
        major,
        place: source.own.place.clone(),
        facts: prepared.chosen.manifest.facts().cloned(),
        keys: prepared.chosen.keys.clone(),
        beside,
        databases,
        structure: is_volume && looks_at_structure(major),
        assertions: policy.drill.assertions.clone(),
    };
    ask(control, prepared, &worker, &Request::Check(Box::new(job)), findings, what).await
}

/// Looks at the files of the restored server, which is shut down.
pub(super) async fn check_pages(
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
        serves: false,
    };
    let Some((_, copy)) = prepared.chosen.manifest.volume() else { return Ok(()) };
    let server = &prepared.chosen.manifest.server;
    let job = PagesJob {
        major: server.major,
        pgdata: copy.pgdata.clone(),
        system_identifier: server.system_identifier,
        checksums: server.data_checksums,
        consistent_at: copy.stop_lsn.parse().ok(),
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
