//! What a run leaves that fails or dies, and how it goes: whatever was made is on record before it is made.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{ControlPlane, OperationError, failed};
use crate::backup_set::SetLocation;
use crate::cluster::{HostName, RepoName, VolumeName};
use crate::docker::{DockerError, Engine, label};
use crate::exit::Exit;
use crate::state::{Made, RUN_FOLDER, State, Thing};
use crate::storage::{Key, StorageError};

impl ControlPlane {
    /// Ends, in the table and in the world, the runs whose process died. A cluster that somebody works on is left to them, and
    /// what cannot be removed now to the next call.
    pub async fn bury_dead_runs(&self) -> Result<(), OperationError> {
        let what = "cleaning up after a run that died";
        for run in self.state.dead_runs().map_err(failed(what))? {
            let Ok(_lock) = self.state.lock_cluster(&run.cluster, run.operation, Timestamp::now()) else { continue };
            // Somebody may have been quicker.
            if !self.state.dead_runs().map_err(failed(what))?.iter().any(|dead| dead.run == run.run) {
                continue;
            }
            if let Err(error) = self.undo_all(&run.run).await {
                tracing::warn!(run = run.run, cluster = %run.cluster, "left for the next run: {}", error.chain());
                continue;
            }
            tracing::warn!(run = run.run, cluster = %run.cluster, "an earlier run died; what it left is removed");
            self.state
                .end_run(&run.run, Exit::Failed, "the process died; what it left was removed", None, Timestamp::now())
                .map_err(failed(what))?;
        }
        Ok(())
    }

    /// Starts the servers that runs stopped which died since; the rest of what such a run left is the next run's.
    pub async fn start_what_dead_runs_stopped(&self) -> Result<(), OperationError> {
        let what = "starting a server again that a run stopped which died";
        for run in self.state.dead_runs().map_err(failed(what))? {
            let stopped = self.state.made_by(&run.run).map_err(failed(what))?.into_iter().filter_map(|made| {
                let Thing::Stopped(id) = made.thing else { return None };
                Some((made.host, id))
            });
            for (host, id) in stopped.collect::<Vec<_>>() {
                let Ok(_lock) = self.state.lock_cluster(&run.cluster, run.operation, Timestamp::now()) else {
                    continue;
                };
                self.start_again(&host, &id).await?;
            }
        }
        Ok(())
    }

    /// Starts a container that a run stopped; content where it runs, or is not there any more.
    async fn start_again(&self, host: &HostName, id: &str) -> Result<(), OperationError> {
        let what = "starting a server again that was stopped for a backup";
        let engine = self.engine(host).await.map_err(failed(what))?;
        let Some(container) = engine.container(id).await.map_err(failed(what))? else { return Ok(()) };
        if container.running {
            return Ok(());
        }
        tracing::warn!(
            container = container.name,
            "an earlier run stopped this server and did not start it: it is started"
        );
        engine.start(id).await.map_err(|error| {
            let what = format!("{what}: container \"{}\" is still down", container.name);
            failed(what)(error)
                .next(format!("start it: docker start {}; then see its log: docker logs {0}", container.name))
        })
    }

    /// Removes everything that a failed or dead run made and that is not complete.
    pub(super) async fn undo_all(&self, run: &str) -> Result<(), OperationError> {
        let what = "cleaning up after a run that did not end well";
        let made = self.state.made_by(run).map_err(failed(what))?;
        // A server that is down does not wait for anything else.
        for made in made.iter().filter(|made| matches!(made.thing, Thing::Stopped(_))) {
            self.undo(made).await?;
        }
        // Its worker first: a volume that a container has mounted cannot be removed.
        for host in made.iter().map(|made| &made.host).collect::<BTreeSet<_>>() {
            let engine = self.engine(host).await.map_err(failed(what))?;
            sweep(&engine, &self.state).await.map_err(failed(what))?;
        }
        for made in &made {
            self.undo(made).await?;
        }
        Ok(())
    }

    /// Removes something a failed or dead run made; content when it is gone, careful when it is somebody else's.
    pub(super) async fn undo(&self, made: &Made) -> Result<(), OperationError> {
        let what = "cleaning up after a run that did not end well";
        match &made.thing {
            // COMMIT is the point of no return: who died after it took a backup, whatever the table says.
            Thing::SetFolder(folder) if folder.join("COMMIT").exists() => {
                tracing::warn!(folder = %folder.display(), "an earlier run died after its commit; the backup stays");
                Ok(())
            }
            // Not there, because its disk is not: it comes back with the disk.
            Thing::SetFolder(folder) if !folder.ancestors().any(|above| above.join("pglife-repo.json").exists()) => {
                Err(OperationError::new(
                    Exit::Repository,
                    format!("{what}: the repository of {} is not there", folder.display()),
                ))
            }
            Thing::SetFolder(folder) => match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(OperationError {
                    source: Some(Box::new(error)),
                    ..OperationError::new(Exit::Repository, format!("{what}: {} cannot be removed", folder.display()))
                }),
                _ => {
                    // And the folders above that are empty now; the root of a repository never is.
                    folder.ancestors().skip(1).take_while(|above| std::fs::remove_dir(above).is_ok()).for_each(drop);
                    Ok(())
                }
            },
            Thing::Folder(folder) => self.remove_folder(folder).await,
            Thing::SetObjects { repository, set } => self.clear_uncommitted(repository, set),
            Thing::Stopped(id) => self.start_again(&made.host, id).await,
            Thing::Container(name) => {
                let engine = self.engine(&made.host).await.map_err(failed(what))?;
                match engine.container(name).await.map_err(failed(what))? {
                    Some(found) if found.labels.get(label::RUN) == Some(&made.run) => {
                        engine.remove_container(&found.id).await.map_err(failed(what))
                    }
                    _ => Ok(()),
                }
            }
            Thing::Volume(name) => {
                let Ok(name) = VolumeName::new(name.clone()) else { return Ok(()) };
                let engine = self.engine(&made.host).await.map_err(failed(what))?;
                match engine.volume(&name).await.map_err(failed(what))? {
                    Some(labels) if labels.get(label::RUN) == Some(&made.run) => {
                        engine.remove_volume(&name).await.map_err(failed(what))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Removes a run's own folder, and first what the runs did whose state is in it.
    async fn remove_folder(&self, folder: &Path) -> Result<(), OperationError> {
        let what = || format!("cleaning up: {} cannot be removed", folder.display());
        let own = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(RUN_FOLDER));
        if !own || !folder.exists() {
            return Ok(());
        }
        let state_dir = folder.join("state");
        if state_dir.is_dir() {
            let mut configuration = self.configuration.clone();
            configuration.settings.state_dir = state_dir;
            configuration.settings.consul = None;
            let inside = Self::open(configuration, CancellationToken::new())?;
            Box::pin(inside.bury_dead_runs()).await?;
            if !inside.state.dead_runs().map_err(failed(what()))?.is_empty() {
                return Err(OperationError::new(Exit::Failed, format!("{}: its runs left something", what())));
            }
        }
        std::fs::remove_dir_all(folder).map_err(|error| OperationError {
            source: Some(Box::new(error)),
            ..OperationError::new(Exit::Failed, what())
        })
    }

    /// Removes the objects of a set that is not committed from a repository; one that is stays.
    pub fn clear_uncommitted(&self, name: &RepoName, set: &SetLocation) -> Result<(), OperationError> {
        let what = || format!("removing what a run left in repository \"{name}\"");
        if !self.configuration.settings.repositories.contains_key(name) {
            tracing::warn!(set = %set.id, "repository \"{name}\" is not in pglife.toml any more; what a dead run left there stays");
            return Ok(());
        }
        let repository = self.repository(name)?;
        let store = repository.store();
        let key = |text: String| Key::new(text).expect("a set's names make a key");
        let (folder, commit) = (key(set.folder()), key(set.commit_key()));
        // COMMIT is the point of no return, here too.
        match store.head(&commit) {
            Ok(_) => return Ok(()),
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(failed(what())(error)),
        }
        let removed = store.sweep_unfinished(Some(&folder), SystemTime::now()).and_then(|_| {
            for object in store.list(Some(&folder))? {
                match store.delete(&object.key) {
                    Ok(()) | Err(StorageError::NotFound { .. } | StorageError::Locked { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        match removed {
            // A daemon whose key cannot delete is as it should be; the rest is for somebody whose key can.
            Err(error) if error.exit() == Exit::Credentials => {
                tracing::warn!("{}: {error}; pglife repo gc removes it with other credentials", what());
                Ok(())
            }
            removed => removed.map_err(failed(what())),
        }
    }
}

/// Removes workers, scratch volumes and what drills made, once nobody works with them any more.
pub async fn sweep(engine: &Engine, state: &State) -> Result<Vec<String>, DockerError> {
    let managed = format!("{}=true", label::MANAGED);
    let now = Timestamp::now();
    let containers = engine.containers_labelled(&[&managed, label::EXPIRES]).await?;
    let kept = label::kept_runs(containers.iter().map(|container| &container.labels), now);
    let is_orphan = |labels: &std::collections::HashMap<String, String>| {
        label::is_orphan(labels, &kept, |run| state.is_over(run), now)
    };
    let mut swept = Vec::new();
    for container in containers {
        if is_orphan(&container.labels) {
            engine.remove_container(&container.id).await?;
            tracing::warn!(container = container.name, "removed an orphan");
            swept.push(format!("container {}", container.name));
        }
    }
    for (volume, labels) in engine.volumes_labelled(&[&managed, label::EXPIRES]).await? {
        if is_orphan(&labels) {
            engine.remove_volume(&volume).await?;
            tracing::warn!(%volume, "removed an orphan");
            swept.push(format!("volume {volume}"));
        }
    }
    Ok(swept)
}
