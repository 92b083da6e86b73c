//! The old server's programs, out of its own image, for a worker in the new one.

use super::drive::Scene;
use super::plan::UpgradePlan;
use crate::backup_set::ServerProfile;
use crate::cluster::VolumeName;
use crate::control::{ControlPlane, OperationError, Run, failed, start_worker, worker_threads};
use crate::docker::Engine;
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::policy::Policy;
use crate::postgres::pg_upgrade::Parity;
use crate::postgres::survey::Survey;
use crate::restore;
use crate::worker::pg_upgrade::{OldPrograms, Pair};
use crate::worker::{Event, Request};

/// Where a worker sees the scratch volume with them.
pub(super) const OLD_PROGRAMS: &str = "/pglife-scratch";

/// Copies them into a scratch volume of the run.
pub(super) async fn lay_out(
    control: &ControlPlane,
    run: &Run<'_>,
    engine: &Engine,
    policy: &Policy,
    plan: &UpgradePlan,
    what: &str,
) -> Result<(VolumeName, OldPrograms), OperationError> {
    let scratch = restore::scratch_volume(run, engine, policy).await.map_err(failed(what))?;
    let worker = WorkerPlan {
        run: run.id.clone(),
        cluster: plan.cluster.clone(),
        image_id: plan.old_image.id.clone(),
        mounts: vec![WorkerMount { source: scratch.to_string(), destination: OLD_PROGRAMS.to_owned(), writable: true }],
        network: WorkerNetwork::Nothing,
        serves: false,
    };
    let session = start_worker(engine, &worker).await.map_err(failed(what))?;
    let copied = |event| match event {
        Event::InstallationCopied(programs) => Some(programs),
        _ => None,
    };
    let request = Request::CopyInstallation { major: plan.from, to: OLD_PROGRAMS.to_owned() };
    Ok((scratch, control.ask(session, &request, what, copied).await?))
}

/// What the new server must have as the old one has it.
pub(super) fn parity(profile: &ServerProfile, survey: &Survey) -> Parity {
    Parity {
        role: profile.bootstrap_role.clone(),
        locale: survey.template.clone(),
        checksums: profile.data_checksums,
        wal_segment_bytes: profile.wal_segment_bytes,
    }
}

/// What both majors need to work in one worker, which sees the old data at `old_data`.
pub(super) fn pair(
    programs: &OldPrograms,
    plan: &UpgradePlan,
    profile: &ServerProfile,
    survey: &Survey,
    old_data: String,
) -> Pair {
    let preloaded = survey.preloaded.iter().find(|(setting, _)| setting == "shared_preload_libraries");
    Pair {
        old: programs.clone(),
        to: plan.to,
        parity: parity(profile, survey),
        preloaded: preloaded.map(|(_, value)| value.clone()).unwrap_or_default(),
        old_data,
        scratch: format!("{OLD_PROGRAMS}/work"),
        jobs: worker_threads(),
    }
}

impl Scene<'_> {
    /// Lays out the old programs while the cluster serves.
    pub(super) async fn lay_out_old_programs(&self) -> Result<(VolumeName, OldPrograms), OperationError> {
        let policy = self.source_policy();
        lay_out(self.control, self.run, self.engine, &policy, self.plan, self.what()).await
    }
}
