//! From the running old server to a new one that is proven: everything up to the commit. How the data go over is the method's;
//! what comes before and after is the same for all of them.

mod as_files;
mod from_set;
mod through_backup;

use jiff::Timestamp;

use super::drive::{STOP_PATIENCE, Scene, no_restart};
use super::in_place::InPlace;
use super::journal::Phase;
use super::look::{Prepared, check_findings, survey_by};
use super::old_programs::parity;
use super::plan::Trial;
use super::preflight::Finding;
use super::{carried, content, preflight};
use crate::backup_set::ServerProfile;
use crate::cluster::{DatabaseName, VolumeName};
use crate::control::{OperationError, close_worker, failed};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Image};
use crate::facts::Facts;
use crate::policy::{Policy, UpgradeMethod};
use crate::postgres::survey::Survey;
use crate::provision;
use crate::worker::pg_upgrade::{OLD_DATA, OldPrograms};
use crate::worker::session::Session;
use crate::worker::{Event, Renewal, Request, SettleJob};

/// Where the data come from, with all that was prepared for it.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// From the old server.
    OldServer(&'a Prepared),
    /// From a backup.
    Set(&'a InPlace),
}

/// Does everything up to the commit, and the commit.
pub(super) async fn until_commit(scene: &mut Scene<'_>, origin: Origin<'_>) -> Result<(), OperationError> {
    let prepared = match origin {
        Origin::OldServer(prepared) => prepared,
        Origin::Set(in_place) => return from_set::until_commit(scene, in_place).await,
    };
    // The cluster serves meanwhile.
    let old_programs = match prepared.method {
        UpgradeMethod::Dump => None,
        UpgradeMethod::PgUpgrade => {
            let step = scene.step("programs")?;
            let laid_out = scene.lay_out_old_programs().await?;
            scene.end(step);
            Some(laid_out)
        }
    };
    let ended = async {
        if old_programs.is_some() {
            as_files::initialise(scene, prepared).await?;
        }
        from_stop_to_commit(scene, prepared, old_programs.as_ref()).await
    }
    .await;
    if let Some((scratch, _)) = old_programs
        && let Err(error) = scene.engine.remove_volume(&scratch).await
    {
        tracing::warn!("the scratch volume is left for the next sweep: {error}");
    }
    ended
}

async fn from_stop_to_commit(
    scene: &mut Scene<'_>,
    prepared: &Prepared,
    old_programs: Option<&(VolumeName, OldPrograms)>,
) -> Result<(), OperationError> {
    let plan = scene.plan;
    stop_old(scene).await?;

    let Source { policy, profile, survey, databases, facts: expected } = facts_of_source(scene, prepared).await?;

    let target = match prepared.method {
        UpgradeMethod::Dump => {
            through_backup::transfer(scene, &policy, &databases, prepared.identity.as_deref()).await?
        }
        UpgradeMethod::PgUpgrade => as_files::transfer(scene, old_programs, &profile, &survey).await?,
    };

    let image = scene.new_image().await?;
    let policy = scene.target_policy();
    let step = scene.step("settle")?;
    let mounts = vec![mount(&plan.old_volume, OLD_DATA, false), mount(plan.new_data(), "/data", true)];
    let (mut session, _) = scene.enter(&policy, &target, &image, mounts, provision::FIRST_START_SECONDS).await?;
    let found = async {
        settle(scene, &mut session, &policy, &target, prepared.method, &survey, &databases).await?;
        scene.end(step);

        let step = scene.step("compare")?;
        let found = content::facts_by(scene, &mut session, &policy, &target, &databases, Some(&expected)).await?;
        Ok((found, step))
    }
    .await;
    close_worker(session).await;
    let (found, step) = found?;
    content::compare_both(scene, &expected, &found)?;
    content::keep(scene, &found)?;
    scene.remove_trial(Trial::Target).await?;
    scene.end(step);

    prove(scene).await?;
    scene.phase(Phase::Committed)
}

/// The old server as it was stopped.
struct Source {
    policy: Policy,
    profile: ServerProfile,
    survey: Survey,
    databases: Vec<DatabaseName>,
    facts: Facts,
}

/// Starts the old server where nobody finds it, looks once more for what stands in the way, and takes its facts.
async fn facts_of_source(scene: &mut Scene<'_>, prepared: &Prepared) -> Result<Source, OperationError> {
    let plan = scene.plan;
    let step = scene.step("source")?;
    let source = scene.start_trial(Trial::Source).await?;
    let image = scene.engine.require_image(&source.image_id).await.map_err(scene.failed())?;
    let policy = scene.source_policy();
    let (mut session, profile, survey) =
        survey_by(scene.control, scene.run, scene.engine, &policy, &source, &image, scene.what()).await?;
    let databases = profile.connectable();
    let facts = async {
        // What came since the plan; nobody can change it any more.
        let mut findings = preflight::findings(&profile, &survey, plan.to, &plan.containers);
        findings.extend(preflight::missing_in_image(&survey, &prepared.installation, &plan.new_image.name, plan.to));
        findings.extend(preflight::of_method(prepared.method, &profile, &survey, plan.to));
        if prepared.method == UpgradeMethod::PgUpgrade && parity(&profile, &survey) != prepared.parity {
            let what =
                "the new cluster was made before its template0, page checksums or size of WAL segments were changed";
            findings.push(Finding::blocks(what, "begin the upgrade again"));
        }
        check_findings(&findings, scene.what(), &prepared.again())?;
        scene.end(step);

        let step = scene.step("facts")?;
        let facts = content::facts_by(scene, &mut session, &policy, &source, &databases, None).await?;
        scene.end(step);
        Ok(facts)
    }
    .await;
    close_worker(session).await;
    Ok(Source { policy, profile, survey, databases, facts: facts? })
}

/// From here on nobody is served.
async fn stop_old(scene: &mut Scene<'_>) -> Result<(), OperationError> {
    let plan = scene.plan;
    let step = scene.step("dependents")?;
    scene.close(&plan.to_string()).await?;
    scene.end(step);

    let step = scene.step("stop")?;
    scene.report.stopped_at = Some(Timestamp::now());
    scene.save_report()?;
    scene.engine.set_restart_policy(&plan.old_container_id, no_restart()).await.map_err(scene.failed())?;
    scene.engine.stop(&plan.old_container_id, STOP_PATIENCE).await.map_err(scene.failed())?;
    scene.end(step);
    Ok(())
}

/// Starts the new server once with the secrets, the log and every setting that it will serve with.
async fn prove(scene: &mut Scene<'_>) -> Result<(), OperationError> {
    let step = scene.step("proof")?;
    let proof = scene.start_trial(Trial::Proof).await?;
    let policy = scene.policy_of(scene.plan.trial(Trial::Proof), true);
    let image = scene.new_image().await?;
    let identifier = scene.answer(&policy, &proof, &image, provision::FIRST_START_SECONDS).await?;
    scene.report.system_identifier = Some(identifier);
    scene.remove_trial(Trial::Proof).await?;
    scene.report.next_transaction = Some(scene.control_file().await?.next_transaction);
    scene.end(step);
    Ok(())
}

/// The new server, where nobody knows it.
#[derive(Clone, Copy)]
struct Place<'a> {
    policy: &'a Policy,
    target: &'a Container,
    image: &'a Image,
}

async fn settle(
    scene: &mut Scene<'_>,
    session: &mut Session,
    policy: &Policy,
    target: &Container,
    method: UpgradeMethod,
    survey: &Survey,
    databases: &[DatabaseName],
) -> Result<(), OperationError> {
    let plan = scene.plan;
    let (login, _) = scene.control.login(policy, target)?;
    // Those in /config are shared as they are.
    let new_data = plan.new_data_below("/data");
    let files = carried::files(survey, plan).into_iter();
    let files = files.map(|(inside, name)| (format!("{OLD_DATA}/{inside}"), format!("{new_data}/{name}")));
    let mut statements = carried::system_settings(survey);
    if method == UpgradeMethod::PgUpgrade {
        statements.extend(carried::settings_of_every_role(survey));
    }
    let job = SettleJob {
        login,
        files: files.collect(),
        statements,
        analyse: databases.to_vec(),
        renew: (method == UpgradeMethod::PgUpgrade).then_some(Renewal {
            major: plan.to,
            extensions: true,
            reindex: !plan.sorting.is_empty(),
        }),
    };
    let (mut warnings, mut reindexed) = (Vec::new(), None);
    let hear = |event| match event {
        Event::Log { warning: true, message } => warnings.push(message),
        Event::Reindexed { indexes } => reindexed = Some(reindexed.unwrap_or(0) + indexes),
        _ => {}
    };
    session.request(&Request::Settle(job), &scene.control.cancel, hear).await.map_err(failed(scene.what()))?;
    scene.report.left_to_do.extend(warnings);
    scene.report.reindexed = reindexed;
    scene.save_report()
}

fn mount(source: &str, destination: &str, writable: bool) -> WorkerMount {
    WorkerMount { source: source.to_owned(), destination: destination.to_owned(), writable }
}
