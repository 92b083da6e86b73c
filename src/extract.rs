//! `pglife restore --database`: from a dump as [`restore`] does it, from a copy of volumes by way of a throwaway server.
//!
//! ```text
//! set ─▶ as much of it as the database needs ─▶ throwaway server replays the WAL ─▶ dump, into a scratch volume
//!   ─▶ did the replay miss anything of it? ─▶ throwaway server removed ─▶ the dump goes into the new cluster, as any dump does
//! ```
//!
//! * What the relations of other databases held is neither unpacked nor, where that can be told, read (`worker::unpack::excerpt`).
//! * For one table, neither is what other relations of its database held. What the table needs is a guess (`worker::locate`), which the
//!   server proves before it is dumped; where it was wrong, all of the database is unpacked.
//! * The throwaway server has no network, and settings by which it reaches nothing and does nothing by itself. It is made as that of a
//!   drill is: recorded before, labelled, and swept if the run dies.
//! * Its replay may miss what is left out, and says so in its log. Where it says so of anything else, nothing is restored.
//! * It runs in the image of the set; the new cluster may be of a newer major.

use serde::Serialize;

use crate::backup::{Aside, Dumped, dump_aside};
use crate::backup_set::{Kind, Manifest, SetId};
use crate::cluster::{ClusterName, DatabaseName, PgMajor};
use crate::control::{ControlPlane, OperationError, Progress, Reach, Run, Tick, failed, worker_threads};
use crate::docker::worker::WorkerMount;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::provision::{self, Life};
use crate::restore::{
    self, Chosen, Plan, PlanError, RestoreRequest, Restored, Source, Target, VolumeRestorePlan, VolumeScene, Wanted,
    plan_restore, plan_volume_restore, refused,
};
use crate::storage::{FolderLocation, Key, Location};
use crate::worker::{Excerpt, SET_FOLDER, TableName};

/// A restore that could begin, whichever way it goes.
#[derive(Debug)]
pub enum Prepared {
    /// What is wanted is in the set as it is wanted.
    Direct(Box<restore::Prepared>),
    /// It must be taken out of a copy of volumes.
    Extraction(Box<Extraction>),
}

/// A database that could be taken out of a copy of volumes.
#[derive(Debug)]
pub struct Extraction {
    chosen: Chosen,
    wanted: Wanted,
    /// The throwaway server, what is unpacked for it, and what of that counts.
    server: Target,
    volumes: VolumeRestorePlan,
    target: Target,
    /// What will be done.
    pub plan: ExtractionPlan,
}

/// What will be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExtractionPlan {
    /// The set.
    pub set: SetId,
    /// The cluster it is of.
    pub source: ClusterName,
    /// Its major.
    pub from_major: PgMajor,
    /// The new server's major.
    pub major: PgMajor,
    /// The database.
    pub database: DatabaseName,
    /// The one table that gets its rows; None for all.
    pub table: Option<TableName>,
    /// The image of the throwaway server.
    pub image: String,
    /// The databases in the copy.
    pub databases: Vec<DatabaseInCopy>,
}

/// A database in a copy of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseInCopy {
    /// Its name.
    pub database: DatabaseName,
    /// Its size when the copy was begun, in bytes.
    pub bytes: u64,
    /// Whether what is in it is unpacked.
    pub unpacked: bool,
}

/// Finds the set, makes the plan, and checks everything that can be known before anything is made.
pub async fn prepare(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
) -> Result<Prepared, OperationError> {
    let chosen = restore::find(control, source, request).await?;
    match request.wanted.database() {
        Some(database) if chosen.manifest.kind == Kind::Volume => {
            let extraction = prepare_extraction(control, source, request, chosen, database).await?;
            Ok(Prepared::Extraction(Box::new(extraction)))
        }
        _ => Ok(Prepared::Direct(Box::new(restore::prepare_chosen(control, source, request, chosen).await?))),
    }
}

async fn prepare_extraction(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
    chosen: Chosen,
    database: &DatabaseName,
) -> Result<Extraction, OperationError> {
    let what = format!("restore of database \"{database}\" into \"{}\" failed", request.into);
    let (manifest, major) = (&chosen.manifest, chosen.manifest.server.major);
    if let Some(to) = request.major.filter(|to| *to < major) {
        return Err(refused(&what)(PlanError::OlderMajor { from: major, to }));
    }
    let excerpt = restore::excerpt(manifest, database).map_err(refused(&what))?;
    let mut volumes =
        plan_volume_restore(manifest, major, &Wanted::Everything, worker_threads()).map_err(refused(&what))?;
    let listed = databases(manifest, &excerpt);
    volumes.take(excerpt, manifest);

    let target = Target::prepare(control, source, request, &chosen).await?;
    target.check_free(&what).await?;
    let server = throwaway(control, source, request, &chosen, &target, &what).await?;
    let plan = ExtractionPlan {
        set: manifest.set.clone(),
        source: manifest.cluster.clone(),
        from_major: major,
        major: target.policy.major,
        database: database.clone(),
        table: request.wanted.table().cloned(),
        image: server.image.reference.clone(),
        databases: listed,
    };
    Ok(Extraction { wanted: request.wanted.clone(), server, volumes, target, plan, chosen })
}

/// The server that serves the copy: beside the new cluster, and as its source was.
async fn throwaway(
    control: &ControlPlane,
    source: &Policy,
    request: &RestoreRequest,
    chosen: &Chosen,
    target: &Target,
    what: &str,
) -> Result<Target, OperationError> {
    let name = request.into.for_extraction();
    if control.configuration.policies.contains_key(&name) {
        let taken =
            format!("{what}: there is a cluster called \"{name}\", the name that the throwaway server would get");
        return Err(OperationError::new(Exit::Refused, taken).next("choose another name for --into"));
    }
    let major = chosen.manifest.server.major;
    let wish = RestoreRequest {
        backup: request.backup.clone(),
        into: name,
        repository: request.repository.clone(),
        major: None,
        image: request.image.clone().filter(|_| request.major.is_none_or(|to| to == major)),
        wanted: Wanted::Everything,
        identity: None,
    };
    let beside = Policy { host: target.policy.host.clone(), ..source.clone() };
    let mut server = Target::prepare(control, &beside, &wish, chosen).await?;
    server.check_free(what).await?;
    server.cluster.life = Life::Drill;
    server.cluster.network = Some("none".to_owned());
    server.cluster.publish = None;
    Ok(server)
}

impl Extraction {
    /// The oid of the database, where a server may lack relations of it.
    fn oid_to_thin(&self) -> Option<u32> {
        let server = &self.chosen.manifest.server;
        let database = server.databases.iter().find(|database| database.name == self.plan.database)?;
        server.major.is_at_least(restore::CAN_BE_HOLLOW).then_some(database.oid)
    }
}

fn databases(manifest: &Manifest, excerpt: &Excerpt) -> Vec<DatabaseInCopy> {
    let all = manifest.server.databases.iter().filter(|database| database.name.as_str() != "template0");
    all.map(|database| DatabaseInCopy {
        database: database.name.clone(),
        bytes: database.bytes,
        unpacked: !excerpt.hollow.contains(&database.oid),
    })
    .collect()
}

/// Takes out and restores what was prepared.
pub async fn extract(
    control: &ControlPlane,
    extraction: Extraction,
    progress: Progress<'_>,
) -> Result<Restored, OperationError> {
    let commit = &extraction.chosen.commit;
    let (set, elsewhere) = (commit.set.clone(), extraction.chosen.elsewhere.clone());
    let run = extraction.target.begin(control, &set).await?;
    let restored = in_run(control, &run, extraction, progress).await;
    restore::end(run, restored, set, &elsewhere).await
}

async fn in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    extraction: Extraction,
    progress: Progress<'_>,
) -> Result<Restored, OperationError> {
    let (database, into) = (&extraction.plan.database, &extraction.target.policy.name);
    let what = format!("restore of database \"{database}\" of {} into \"{into}\" failed", extraction.plan.set);
    let engine = &extraction.target.engine;
    let scratch = restore::scratch_volume(run, engine, &extraction.target.policy).await.map_err(failed(&what))?;
    let mount = WorkerMount { source: scratch.to_string(), destination: SET_FOLDER.to_owned(), writable: true };
    let dumped = dump(control, run, &extraction, &mount, &what, progress).await;
    let (manifest, place) = match dumped {
        Ok(dumped) => dumped,
        Err(error) => {
            if let Err(error) = engine.remove_volume(&scratch).await {
                tracing::warn!("the scratch volume is left for the next sweep: {error}");
            }
            return Err(error);
        }
    };
    progress(Tick::Step("removing the throwaway server".to_owned()));
    let Extraction { chosen, wanted, server, target, .. } = extraction;
    provision::give_up(run, &server.cluster).await;

    let plan = plan_restore(&manifest, target.policy.major, &wanted, worker_threads());
    let plan = Plan::Dump(Box::new(plan.map_err(refused(&what))?));
    let own = Reach { place, mount: Some(WorkerMount { writable: false, ..mount }) };
    let source = Source { own, ancestors: vec![] };
    let mut restored = restore::in_run(control, run, target.with(chosen, plan), &source, progress).await?;
    restored.warnings.extend(manifest.warnings);
    Ok(restored)
}

/// Starts a server on the copy, and dumps the database into a folder of what is mounted: for one table on no more than that needs, and where
/// that was not all of it, on the whole database. Returns where the dump is, too.
async fn dump(
    control: &ControlPlane,
    run: &Run<'_>,
    extraction: &Extraction,
    mount: &WorkerMount,
    what: &str,
    progress: Progress<'_>,
) -> Result<(Manifest, FolderLocation), OperationError> {
    let place = |folder: &str| FolderLocation {
        location: Location::Local { folder: SET_FOLDER.into() },
        folder: Some(Key::new(folder).expect("a key")),
    };
    let sought = extraction.oid_to_thin().zip(extraction.plan.table.as_ref());
    let first = place("first");
    let why = match dump_from(control, run, extraction, sought, (&first, mount), what, progress).await? {
        Dumped::Whole(manifest) => return Ok((*manifest, first)),
        Dumped::NotThere(why) => why,
    };
    let again =
        format!("all of database \"{}\" was unpacked, because the table needs it: {why}", extraction.plan.database);
    progress(Tick::Warning(again.clone()));
    provision::give_up(run, &extraction.server.cluster).await;
    let second = place("second");
    match dump_from(control, run, extraction, None, (&second, mount), what, progress).await? {
        Dumped::Whole(mut manifest) => {
            manifest.warnings.push(again);
            Ok((*manifest, second))
        }
        Dumped::NotThere(why) => Err(OperationError::new(Exit::Failed, format!("{what}: {why}"))),
    }
}

async fn dump_from(
    control: &ControlPlane,
    run: &Run<'_>,
    Extraction { chosen, server, volumes, target, plan, .. }: &Extraction,
    sought: Option<(u32, &TableName)>,
    (place, mount): (&FolderLocation, &WorkerMount),
    what: &str,
    progress: Progress<'_>,
) -> Result<Dumped, OperationError> {
    let Target { engine, image, policy, cluster, .. } = server;
    let source = chosen.source();
    let scene = VolumeScene { control, run, engine, image, policy, source: &source, what, progress };
    // What lies in a bucket is reached as the new cluster would be.
    let network = target.cluster.network.as_deref();
    let mut volumes = volumes.clone();
    let bytes = plan.databases.iter().filter(|database| database.unpacked).map(|database| database.bytes).sum();
    let served =
        restore::restore_excerpt(&scene, cluster, network, &mut volumes, (sought, bytes), chosen.keys.clone()).await;
    let container = match served {
        Ok(container) => container,
        // What it lacks may be why.
        Err(error) if error.exit == Exit::Postgres && sought.is_some() => return Ok(Dumped::NotThere(error.what)),
        Err(error) if error.exit == Exit::Postgres => {
            return Err(error.next("restore all of the copy: the same command without --database"));
        }
        Err(error) => return Err(error),
    };
    let excerpt = volumes.excerpt();
    let part = excerpt.and_then(|excerpt| excerpt.part.as_ref());
    let aside = Aside {
        engine,
        image,
        policy,
        container: &container,
        database: &plan.database,
        part: sought.map(|(_, table)| table).zip(part),
        place: place.clone(),
        mount: mount.clone(),
    };
    let dumped = dump_aside(control, run, aside, what, progress).await?;
    if matches!(dumped, Dumped::NotThere(_)) {
        return Ok(dumped);
    }
    // When it has ended, its log is whole.
    engine.stop(&container.id, provision::STOP_PATIENCE).await.map_err(failed(what))?;
    let is_alarming = |line: &str| excerpt.is_some_and(|excerpt| excerpt.is_alarming(line));
    let alarming = engine.find_in_log(&container.id, is_alarming).await.map_err(failed(what))?;
    match alarming {
        None => Ok(dumped),
        Some(line) => Err(OperationError::new(
            Exit::VerifyFailed,
            format!("{what}: the copy is not whole: its WAL changes what is not there: {line}"),
        )
        .next("restore another backup: pglife backups list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::example_copy;

    #[test]
    fn the_plan_tells_what_is_unpacked() {
        let mut manifest = example_copy(vec![]);
        for (oid, database) in (5..).zip(&mut manifest.server.databases) {
            database.oid = oid;
        }
        let wanted = DatabaseName::new("it's $HOME").expect("a name");
        let told = |wanted: &DatabaseName| -> Vec<(String, bool)> {
            let excerpt = restore::excerpt(&manifest, wanted).expect("an excerpt");
            let found = databases(&manifest, &excerpt).into_iter();
            found.map(|database| (database.database.to_string(), database.unpacked)).collect()
        };
        let all = |own: bool| [("it's $HOME", own), ("postgres", true), ("template1", true)];
        let all = |own: bool| all(own).map(|(name, unpacked)| (name.to_owned(), unpacked)).to_vec();
        assert_eq!(told(&wanted), all(true));
        assert_eq!(told(&DatabaseName::new("postgres").expect("a name")), all(false));
    }
}
