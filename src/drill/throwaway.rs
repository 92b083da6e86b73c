//! What a drill makes: a server that reaches nothing, and a volume with the backup where that lies in a bucket.

use jiff::Timestamp;

use crate::backup_set::{Kind, Manifest, StoredObject};
use crate::cluster::VolumeName;
use crate::control::{
    ControlPlane, OperationError, Progress, Reach, Run, Tick, catalogue, close_worker, failed, start_worker,
};
use crate::docker::Limits;
use crate::docker::label::{self, Purpose};
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::policy::{DrillPolicy, Layout, Policy};
use crate::provision;
use crate::restore::{Prepared, Source};
use crate::state::Thing;
use crate::storage::{FolderLocation, Key, Location};
use crate::worker::{CopyJob, Event, Request, SET_FOLDER};

/// Settings for the throwaway server: those of the cluster that matter, and nothing that reaches the outside, or writes by itself.
pub(super) fn settings(manifest: &Manifest) -> String {
    let mut text = "# A drill's throwaway server: it archives, replicates and listens nowhere.\n".to_owned();
    if manifest.kind == Kind::Dump {
        for name in provision::SETTINGS_OF_RESTORES {
            if let Some(value) = manifest.server.settings.get(name) {
                text.push_str(&format!("{name} = '{}'\n", value.replace('\\', r"\\").replace('\'', "''")));
            }
        }
    }
    text + provision::REACHES_NOTHING
}

/// What the throwaway server may use: what the policy says, else as much as the cluster's `own` container.
pub(super) fn limits(policy: &DrillPolicy, own: Limits) -> Limits {
    Limits {
        memory_bytes: policy.memory.and_then(|memory| i64::try_from(memory.bytes()).ok()).or(own.memory_bytes),
        nano_cpus: policy.cpus.map(|cpus| i64::from(cpus.get()) * 1_000_000_000).or(own.nano_cpus),
    }
}

/// The throwaway server has no network: what lies in a bucket is copied into a volume first.
pub(super) async fn fetch(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    prepared: &Prepared,
    what: &str,
    progress: Progress<'_>,
) -> Result<Source, OperationError> {
    let ancestors = prepared.chosen.manifest.ancestors();
    let source = Source::in_place(&prepared.chosen.repository, &prepared.chosen.commit, ancestors);
    if source.own.mount.is_some() {
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
        serves: false,
    };
    let inside = |folder: Option<String>| FolderLocation {
        location: Location::Local { folder: SET_FOLDER.into() },
        folder: folder.map(|name| Key::new(name).expect("a key")),
    };
    let mut jobs = vec![CopyJob {
        from: source.own.place,
        to: inside(None),
        objects: catalogue::stored_objects(&prepared.chosen.repository, &prepared.chosen.commit)?,
    }];
    for (place, (ancestor, reach)) in ancestors.iter().zip(source.ancestors).enumerate() {
        let objects = vec![StoredObject { name: ancestor.name.clone(), stored: ancestor.stored }];
        jobs.push(CopyJob { from: reach.place, to: inside(Some(format!("needed-{}", place + 1))), objects });
    }
    let places: Vec<FolderLocation> = jobs.iter().map(|job| job.to.clone()).collect();
    let mut session = start_worker(&prepared.engine, &worker).await.map_err(failed(what))?;
    let mut fetched = Ok(());
    for job in jobs {
        fetched = session
            .request(&Request::Copy(job), &control.cancel, |event| {
                if let Event::Progress { plain_bytes, stored_bytes } = event {
                    progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected: None });
                }
            })
            .await
            .map(drop);
        if fetched.is_err() {
            break;
        }
    }
    close_worker(session).await;
    fetched.map_err(failed(what))?;
    let mut reaches = places.into_iter().map(|place| Reach { place, mount: None });
    let mount = WorkerMount { source: volume.to_string(), destination: SET_FOLDER.to_owned(), writable: false };
    let own = reaches.next().map(|own| Reach { mount: Some(mount), ..own }).expect("the set's own is the first");
    Ok(Source { own, ancestors: reaches.collect() })
}

/// The volume with the backup, where that lies in a bucket.
pub(super) fn fetched(run: &Run<'_>) -> Thing {
    Thing::Volume(fetched_volume(run).to_string())
}

fn fetched_volume(run: &Run<'_>) -> VolumeName {
    VolumeName::new(format!("pglife-drill-{}", run.id)).expect("a run id fits into a name")
}

/// Removes what the drill made; what cannot be removed now is left to the next command.
pub(super) async fn remove_everything(run: &Run<'_>, prepared: &Prepared) {
    provision::give_up(run, &prepared.cluster).await;
    run.give_up(&prepared.policy.host, &fetched(run)).await;
}
