//! The way of the data with the schema alone, while the cluster serves: what `pg_upgrade` has against it is known before anything is
//! touched.

use super::old_programs::{OLD_PROGRAMS, lay_out, pair};
use super::plan::UpgradePlan;
use super::preflight::Finding;
use crate::backup_set::ServerProfile;
use crate::control::{ControlPlane, OperationError, Run, failed, start_worker};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::postgres::survey::Survey;
use crate::worker::pg_upgrade::RehearseJob;
use crate::worker::{Event, Request};

/// What a rehearsal found.
#[derive(Debug)]
pub(super) struct Rehearsed {
    /// How long `pg_upgrade` took; None where it did not come to its end.
    pub(super) seconds: Option<f64>,
    /// Why the upgrade must not begin.
    pub(super) obstacle: Option<Finding>,
}

/// Upgrades an empty copy of the server in `container`, in a worker of the new image, and throws it away.
#[expect(clippy::too_many_arguments, reason = "a look at a server of one run, as its neighbours have it")]
pub(super) async fn of_schema(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    container: &Container,
    plan: &UpgradePlan,
    (profile, survey): (&ServerProfile, &Survey),
    what: &str,
) -> Result<Rehearsed, OperationError> {
    let (scratch, programs) = lay_out(control, run, engine, policy, plan, what).await?;
    let could_not = "it could not be tried";
    let (login, mut mounts) = control.login(policy, container)?;
    mounts.push(WorkerMount { source: scratch.to_string(), destination: OLD_PROGRAMS.to_owned(), writable: true });
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: plan.cluster.clone(),
        image_id: plan.new_image.id.clone(),
        mounts,
        network: WorkerNetwork::Of(container.id.clone()),
        serves: true,
    };
    let pair = pair(&programs, plan, profile, survey, survey.data_directory.clone());
    let request = Request::RehearsePgUpgrade(Box::new(RehearseJob { login, pair }));
    let rehearsed = |event| match event {
        Event::Rehearsed { seconds, obstacle } => Some((seconds, obstacle)),
        _ => None,
    };
    let asked = match start_worker(engine, &worker).await {
        Ok(session) => control.ask(session, &request, could_not, rehearsed).await,
        Err(error) => Err(failed(could_not)(error)),
    };
    if let Err(error) = engine.remove_volume(&scratch).await {
        tracing::warn!("the scratch volume is left for the next sweep: {error}");
    }
    judge(asked, plan)
}

/// An obstacle, and a rehearsal that could not be made, are findings beside the others.
fn judge(
    asked: Result<(f64, Option<String>), OperationError>,
    plan: &UpgradePlan,
) -> Result<Rehearsed, OperationError> {
    let again = "mend what is named, and look again; or upgrade with --method dump";
    match asked {
        Ok((seconds, None)) => Ok(Rehearsed { seconds: Some(seconds), obstacle: None }),
        Ok((_, Some(why))) => Ok(Rehearsed {
            seconds: None,
            obstacle: Some(Finding::blocks(
                format!("PostgreSQL {} does not take its schema, tried with an empty copy: {why}", plan.to),
                again,
            )),
        }),
        Err(error) if error.exit == Exit::Interrupted => Err(error),
        Err(error) => Ok(Rehearsed {
            seconds: None,
            obstacle: Some(Finding::blocks(
                format!("whether PostgreSQL {} takes its schema: {}", plan.to, error.chain()),
                again,
            )),
        }),
    }
}
