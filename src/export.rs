//! `pglife backups export`: a set as an ordinary folder, for a disk in a safe or a machine without pglife; or files out of a copy of volumes.
//!
//! ```text
//! set is held ─▶ manifest ─▶ .pglife-export-… beside the destination: each object copied and hashed ─▶ fsync ─▶ rename
//! ```
//!
//! A set that builds on others is exported as one that does not: its tar is put together, and what tells of it is written anew. That
//! needs a key where it is encrypted. So do single files, of which a worker reads no more than it must ([`crate::worker::fetch`]).
//!
//! Invariant: the destination is all that was asked for, every byte of it as it was written, or is not there. An encrypted set is
//! exported as it is, and needs no key.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::backup::documents::Documents;
use crate::backup_set::{Commit, Digest, Kind, Manifest, Measured, StoredObject, VolumeCopy};
use crate::control::{ControlPlane, OperationError, Progress, Tick, catalogue, close_worker, failed, worker_threads};
use crate::encryption::Keys;
use crate::exit::Exit;
use crate::pipeline::PipelineError;
use crate::pipeline::seal::unseal_bytes;
use crate::restore::{PlanError, Source, Wanted, plan_volume_restore};
use crate::state::HeldLock;
use crate::storage::{FolderLocation, Key, Location, Repository, StorageError, Store};
use crate::worker::fetch::{FetchJob, PathInCopy};
use crate::worker::session::{Session, SessionError};
use crate::worker::{Event, JoinJob, Request, Trouble, UnpackJob};

/// How much is read at once: large enough for a bucket far away, which answers each read with a request.
const BLOCK: usize = 8 << 20;
/// The largest manifest and `COMMIT` that are copied.
const DOCUMENT_LIMIT: u64 = 1 << 30;
/// What to do about a set that is not what was written.
const DAMAGED: &str = "see what else is damaged: pglife backups verify; export another backup; take a new one now";
/// What to do about a destination that takes no more.
const FULL: &str = "name a folder on a disk with enough space that you may write to";

/// A set that was exported.
#[derive(Debug)]
pub struct Exported {
    /// The set, as it is there.
    pub commit: Commit,
    /// Its manifest, where that was made anew.
    pub manifest: Option<Manifest>,
    /// The folder.
    pub folder: PathBuf,
    /// Files in it.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

/// Writes the set of `commit` to `destination`, a folder that is empty or does not exist. With `names`, only these files of a copy of
/// volumes.
pub async fn export(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    destination: &Path,
    names: &[PathInCopy],
    identity: Option<&Path>,
    progress: Progress<'_>,
) -> Result<Exported, OperationError> {
    let what = format!("export of backup {} failed", commit.set);
    let safe = format!("the backup is as it was; {} was not written", destination.display());
    if !names.is_empty() && commit.kind != Kind::Volume {
        let what = format!("{what}: it is a {}, which has no files of the server", commit.kind);
        return Err(OperationError::new(Exit::Refused, what)
            .safe("nothing was written")
            .next("name a copy of the volumes (--backup latest:volume), or leave out --path"));
    }
    let _held = control.state.hold_set(&commit.set).map_err(failed(&what))?;
    // What builds on others is not copied as it is.
    let objects = match commit.parent {
        None if names.is_empty() => Some(catalogue::stored_objects(repository, commit)?),
        _ => None,
    };
    let disk = |source: io::Error| OperationError {
        source: Some(Box::new(source)),
        ..OperationError::new(Exit::Failed, format!("{what}: {} cannot be written", destination.display()))
            .safe(&safe)
            .next(FULL)
    };
    let destination = std::path::absolute(destination).map_err(disk)?;
    let taken = match fs::read_dir(&destination) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if taken {
        let what = format!("{what}: {} is there already and not an empty folder", destination.display());
        return Err(OperationError::new(Exit::Refused, what).safe("nothing was written").next("name a new folder"));
    }
    let parent = destination.parent().unwrap_or(Path::new("/"));
    // A worker is told of it in JSON.
    if objects.is_none() && parent.to_str().is_none() {
        let what = format!("{what}: the name of the folder {} is not UTF-8", parent.display());
        return Err(OperationError::new(Exit::Usage, what).safe("nothing was written").next("name another folder"));
    }
    fs::create_dir_all(parent).map_err(disk)?;
    // As everything of the database is in it.
    let owner_only = Permissions::from_mode(0o700);
    let half = tempfile::Builder::new().prefix(".pglife-export-").permissions(owner_only).tempdir_in(parent);
    let half = half.map_err(disk)?;

    progress(Tick::Step(format!("exporting {}", commit.set)));
    let (commit, manifest, files, bytes) = match objects {
        None if !names.is_empty() => {
            let fetched = fetch(control, repository, commit, half.path(), names, identity, &what, progress).await;
            let (files, bytes) = fetched.map_err(|error| error.safe(&safe))?;
            sync_folders(half.path()).map_err(disk)?;
            (commit.clone(), None, files, bytes)
        }
        None => put_together(control, repository, commit, half.path(), identity, &what, progress)
            .await
            .map_err(|error| error.safe(&safe))?,
        Some(objects) => {
            let copied = copy_all(control, repository, commit, objects, half.path(), progress).await;
            let (files, bytes) = copied.map_err(|error| match error {
                CopyError::Interrupted => {
                    OperationError::new(Exit::Interrupted, format!("{what}: interrupted")).safe(&safe)
                }
                CopyError::Disk(error) => disk(error),
                CopyError::Storage(error) => failed(&what)(error).safe(&safe),
                CopyError::Damaged(why) => {
                    OperationError::new(Exit::VerifyFailed, format!("{what}: {why}")).safe(&safe).next(DAMAGED)
                }
            })?;
            (commit.clone(), None, files, bytes)
        }
    };

    // On the disk before it has its name, and its name too.
    fs::rename(half.path(), &destination).and_then(|()| File::open(parent)?.sync_all()).map_err(disk)?;
    // It is elsewhere now; there is nothing left to remove.
    let _moved = half.keep();
    Ok(Exported { commit, manifest, folder: destination, files, bytes })
}

/// Copies the set of `commit` into `folder` as it is. Returns the number and size of its files.
async fn copy_all(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    objects: Vec<StoredObject>,
    folder: &Path,
    progress: Progress<'_>,
) -> Result<(usize, u64), CopyError> {
    let copy = Copy {
        repository: repository.clone(),
        commit: commit.clone(),
        objects,
        folder: folder.to_owned(),
        cancel: control.cancel.clone(),
    };
    let (told, mut heard) = tokio::sync::watch::channel(0);
    let copying = tokio::task::spawn_blocking(move || copy.all(&told));
    let expected = Some(commit.stored_bytes);
    while heard.changed().await.is_ok() {
        let stored = *heard.borrow_and_update();
        progress(Tick::Bytes { plain: stored, stored, expected });
    }
    copying.await.unwrap_or_else(|panic| Err(CopyError::Disk(io::Error::other(panic))))
}

/// Writes the incremental set of `commit` into `folder` as a full one. Returns its `COMMIT`, its manifest, and the number and size of its files.
async fn put_together(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    folder: &Path,
    identity: Option<&Path>,
    what: &str,
    progress: Progress<'_>,
) -> Result<(Commit, Option<Manifest>, usize, u64), OperationError> {
    let Tar { mut manifest, job, bytes, _held } = tar_of(control, repository, commit, identity, what)?;
    let recipe = recipe_of(repository, commit, job.keys.as_ref()).map_err(failed(what))?;
    let (_, copy) = manifest.volume().ok_or_else(|| refuse(what)(PlanError::NoVolumes))?;
    let codec = manifest.codec.parse().unwrap_or_default();
    let to = FolderLocation { location: Location::Local { folder: folder.to_owned() }, folder: None };
    let request = Request::Join(Box::new(JoinJob {
        tar: job,
        copy: VolumeCopy { incremental: None, ..copy.clone() },
        to,
        object: manifest.naming().volume(codec),
        codec,
        recipients: manifest.encryption.clone(),
    }));
    let mut made = None;
    let done = work(control, &request, what, |event| match event {
        Event::Object(object) => made = Some(object),
        Event::Progress { plain_bytes, stored_bytes } => {
            progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected: Some(bytes) });
        }
        _ => {}
    });
    done.await?;
    manifest.objects = made.into_iter().collect();
    let mut bytes = manifest.stored_bytes();
    let documents = Documents::of(commit.location(), manifest, &recipe, None);
    let last = ("COMMIT".to_owned(), documents.commit.to_bytes());
    let disk = |source: io::Error| OperationError {
        source: Some(Box::new(source)),
        ..OperationError::new(Exit::Failed, format!("{what}: {} cannot be written", folder.display()))
    };
    for (name, content) in documents.small.iter().chain([&last]) {
        let mut file = File::create_new(folder.join(name)).map_err(disk)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(disk)?;
        bytes += content.len() as u64;
    }
    sync_folders(folder).map_err(disk)?;
    Ok((documents.commit, Some(documents.manifest), documents.small.len() + 2, bytes))
}

/// Writes the files called `names` of the copy of `commit` into `folder`. Returns their number and size.
#[expect(clippy::too_many_arguments, reason = "one caller, with all of it at hand")]
async fn fetch(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    folder: &Path,
    names: &[PathInCopy],
    identity: Option<&Path>,
    what: &str,
    progress: Progress<'_>,
) -> Result<(usize, u64), OperationError> {
    let Tar { manifest, job, _held, .. } = tar_of(control, repository, commit, identity, what)?;
    let (_, copy) = manifest.volume().ok_or_else(|| refuse(what)(PlanError::NoVolumes))?;
    let request = Request::Fetch(Box::new(FetchJob {
        tar: job,
        index: manifest.blocks().cloned(),
        entries: copy.entries,
        names: names.to_vec(),
        to: folder.to_owned(),
    }));
    let mut fetched = (0, 0);
    let done = work(control, &request, what, |event| match event {
        Event::Fetched { files, bytes } => fetched = (files, bytes),
        Event::Progress { plain_bytes, stored_bytes } => {
            progress(Tick::Bytes { plain: plain_bytes, stored: stored_bytes, expected: None });
        }
        _ => {}
    });
    let pgdata = copy.pgdata.trim_start_matches('/');
    done.await.map_err(|error| match error.exit {
        Exit::NotFound => error.next(format!(
            "names are those in the tar: {pgdata}/postgresql.conf, {pgdata}/base (a folder: every file below it), and for a table what \
             pg_relation_filepath() says, below {pgdata}; those of all files: export without --path, then tar -t"
        )),
        _ => error,
    })?;
    Ok(fetched)
}

/// The tar of a copy of volumes, as a worker on this machine reads it.
struct Tar {
    manifest: Manifest,
    job: UnpackJob,
    /// Its size.
    bytes: u64,
    /// The sets that it lies in beside its own.
    _held: Vec<HeldLock>,
}

fn tar_of(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    identity: Option<&Path>,
    what: &str,
) -> Result<Tar, OperationError> {
    let (manifest, keys) = control.manifest(repository, commit, identity)?;
    let ancestors = manifest.ancestors().iter().map(|ancestor| &ancestor.set);
    let held = control.state.hold_sets(ancestors).map_err(failed(what))?;
    let plan = plan_volume_restore(&manifest, manifest.server.major, &Wanted::Everything, worker_threads());
    let plan = plan.map_err(refuse(what))?;
    let job = plan.job(&Source::from_here(repository, commit, manifest.ancestors()), keys);
    Ok(Tar { bytes: plan.tar_bytes(), manifest, job, _held: held })
}

fn refuse(what: &str) -> impl FnOnce(PlanError) -> OperationError {
    move |error| OperationError::new(error.exit(), format!("{what}: {error}"))
}

/// Has a worker on this machine do `request`.
async fn work(
    control: &ControlPlane,
    request: &Request,
    what: &str,
    on_event: impl FnMut(Event),
) -> Result<(), OperationError> {
    let mut session = Session::in_child().await.map_err(failed(what))?;
    let done = session.request(request, &control.cancel, on_event).await;
    close_worker(session).await;
    done.map(drop).map_err(|error| match error {
        SessionError::Failed { trouble: Trouble::Damaged, .. } => failed(what)(error).next(DAMAGED),
        // It writes to the destination only.
        SessionError::Failed { trouble: Trouble::Full, .. } => {
            OperationError { next: Some(FULL.to_owned()), ..failed(what)(error) }
        }
        error => failed(what)(error),
    })
}

/// The text of `recipe.json`.
fn recipe_of(repository: &Repository, commit: &Commit, keys: Option<&Keys>) -> Result<Vec<u8>, PipelineError> {
    let name = commit.naming().document("recipe.json");
    let key = Key::new(commit.location().key(&name)).expect("names make a key");
    let stored = repository
        .store()
        .read_small(&key, DOCUMENT_LIMIT)
        .map_err(|error| PipelineError::Object { source: io::Error::other(error) })?;
    match keys {
        Some(keys) => unseal_bytes(&stored, keys),
        None => Ok(stored),
    }
}

/// Why a copy ended early.
#[derive(Debug)]
enum CopyError {
    Interrupted,
    /// The destination.
    Disk(io::Error),
    /// The repository.
    Storage(StorageError),
    /// What is read is not what was written.
    Damaged(String),
}

/// Everything that copying needs, on a thread of its own.
struct Copy {
    repository: Repository,
    commit: Commit,
    objects: Vec<StoredObject>,
    folder: PathBuf,
    cancel: CancellationToken,
}

impl Copy {
    /// Copies every object, and tells how many bytes are done. Returns the number of files and their size.
    fn all(&self, told: &tokio::sync::watch::Sender<u64>) -> Result<(usize, u64), CopyError> {
        let store = self.repository.store();
        let location = self.commit.location();
        let key = |name: &str| {
            Key::new(location.key(name)).map_err(|error| CopyError::Damaged(format!("the manifest names {error}")))
        };
        let mut bytes = 0;
        for object in &self.objects {
            let measured = self.one(store, &key(&object.name)?, &object.name, |more| {
                bytes += more;
                told.send_replace(bytes);
            })?;
            if measured != object.stored {
                let why = format!(
                    "{}: its digest is {}, {} was recorded",
                    object.name, measured.blake3, object.stored.blake3
                );
                return Err(CopyError::Damaged(why));
            }
        }
        let manifest = self.commit.naming().document("manifest.json");
        for name in [manifest.as_str(), "COMMIT"] {
            let content = store.read_small(&key(name)?, DOCUMENT_LIMIT).map_err(CopyError::Storage)?;
            let expected = if name == "COMMIT" { Digest::of(&content) } else { self.commit.manifest_blake3 };
            if Digest::of(&content) != expected {
                return Err(CopyError::Damaged(format!("{name} changed while it was copied")));
            }
            let mut file = File::create_new(self.folder.join(name)).map_err(CopyError::Disk)?;
            file.write_all(&content).and_then(|()| file.sync_all()).map_err(CopyError::Disk)?;
            bytes += content.len() as u64;
        }
        sync_folders(&self.folder).map_err(CopyError::Disk)?;
        Ok((self.objects.len() + 2, bytes))
    }

    fn one(
        &self,
        store: &dyn Store,
        key: &Key,
        name: &str,
        mut passed: impl FnMut(u64),
    ) -> Result<Measured, CopyError> {
        // A name that is a key has no way out of the folder.
        let path = self.folder.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(CopyError::Disk)?;
        }
        let mut file = File::create_new(&path).map_err(CopyError::Disk)?;
        let object = store.open(key).map_err(|error| match error {
            // The set is committed and held: what is not there is lost.
            StorageError::NotFound { .. } => CopyError::Damaged(error.to_string()),
            error => CopyError::Storage(error),
        })?;
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; BLOCK];
        let (size, mut offset) = (object.size(), 0);
        while offset < size {
            if self.cancel.is_cancelled() {
                return Err(CopyError::Interrupted);
            }
            let length = usize::try_from(size - offset).unwrap_or(BLOCK).min(BLOCK);
            let block = &mut block[..length];
            object
                .read_exact_at(block, offset)
                .map_err(|error| CopyError::Storage(StorageError::of_read(store.place(Some(key)), error)))?;
            hasher.update(block);
            file.write_all(block).map_err(CopyError::Disk)?;
            offset += length as u64;
            passed(length as u64);
        }
        file.sync_all().map_err(CopyError::Disk)?;
        Ok(Measured { bytes: size, blake3: hasher.finalize().into() })
    }
}

/// Makes the names in a folder, and in those below it, durable.
fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}
