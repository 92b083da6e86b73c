//! The copy that is spoiled. The untouched objects lie beside it and are linked into it, so that each mutation begins with a whole
//! set and costs no more than what it changes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::backup_set::{Commit, Content, Manifest, Measured, Object};
use crate::cluster::DatabaseName;
use crate::encryption::{Keys, Recipients};
use crate::facts::{Facts, TableContent};
use crate::pipeline::frames::FrameBytes;
use crate::pipeline::seal::{seal_bytes, unseal_bytes};
use crate::pipeline::{Compression, Meter, PipelineError, compress, decompress};
use crate::storage::{Key, Repository, StorageError};

use super::archive::{self, Patch};
use super::mutation::{self, Mutation};
use super::volume::{self, Change};

/// How much of an archive is looked at for something to change: its table of contents, and the rows of the first tables.
const HEAD: u64 = 64 << 20;

/// A copy could not be spoiled.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The folder with the copies.
    #[error("the copy in {} cannot be changed", folder.display())]
    Disk {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading or writing an object.
    #[error("an object of the copy cannot be written anew")]
    Pipeline(#[from] PipelineError),
    /// Opening an object.
    #[error("an object of the copy cannot be read")]
    Storage(#[from] StorageError),
    /// The backup is not what its manifest says.
    #[error("the backup cannot be read: {0}")]
    Content(String),
}

/// A set, whole and as a copy.
pub(super) struct SetCopy {
    /// The whole set.
    pub(super) whole: PathBuf,
    /// The repository with the copy.
    pub(super) repository: Repository,
    /// The folder of that.
    pub(super) root: PathBuf,
    /// What the set's manifest says.
    pub(super) manifest: Manifest,
    /// What its `COMMIT` says.
    pub(super) commit: Commit,
    /// What opens it, where it is encrypted.
    pub(super) keys: Option<Keys>,
    /// Fires when the operator asks to stop.
    pub(super) cancel: CancellationToken,
}

impl SetCopy {
    fn set(&self) -> PathBuf {
        self.root.join(self.commit.location().folder())
    }

    fn failed(&self) -> impl Fn(io::Error) -> CopyError + '_ {
        |source| CopyError::Disk { folder: self.set(), source }
    }

    fn recipients(&self) -> Option<&Recipients> {
        self.manifest.encryption.as_ref()
    }

    /// Makes the copy whole again.
    pub(super) fn renew(&self) -> Result<(), CopyError> {
        match fs::remove_dir_all(self.set()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.failed()(error)),
            _ => {}
        }
        link_all(&self.whole, &self.set()).map_err(self.failed())
    }

    /// Spoils the whole copy. Some words where the backup has nothing of what would be spoiled.
    pub(super) fn spoil(&self, mutation: &Mutation) -> Result<Result<(), &'static str>, CopyError> {
        let patched = |find: fn(&[u8]) -> Option<Vec<Patch>>| self.patch(find);
        match mutation {
            Mutation::Flip(name) => {
                let mut bytes = self.read(name)?;
                let middle = bytes.len() / 2;
                let Some(byte) = bytes.get_mut(middle) else { return Ok(Err("the object is empty")) };
                *byte ^= 1;
                self.write(name, &bytes)?;
            }
            Mutation::Cut(name) => {
                let bytes = self.read(name)?;
                self.write(name, &bytes[..bytes.len() / 2])?;
            }
            Mutation::Lose(name) => fs::remove_file(self.set().join(name)).map_err(self.failed())?,
            Mutation::ChangeRow => return patched(archive::change_row),
            Mutation::DropRow => return patched(archive::drop_row),
            Mutation::DropIndex => return patched(archive::drop_index),
            Mutation::DropGrant => return patched(archive::drop_grant),
            Mutation::SwapDatabases => {
                let mut manifest = self.manifest.clone();
                let places: Vec<usize> = (0..manifest.objects.len())
                    .filter(|place| matches!(manifest.objects[*place].content, Content::Database { .. }))
                    .collect();
                let [.., first, second] = places[..] else { return Ok(Err("it has one database")) };
                let content = manifest.objects[first].content.clone();
                manifest.objects[first].content = std::mem::replace(&mut manifest.objects[second].content, content);
                self.commit(&manifest)?;
            }
            Mutation::ForgetDatabase => {
                let mut manifest = self.manifest.clone();
                let (_, facts) = self.taken()?;
                // One with tables: every new server has an empty `postgres` by itself.
                let has_tables = |object: &Object| match &object.content {
                    Content::Database { database, .. } => {
                        facts.databases.get(database).is_some_and(|facts| !facts.tables.is_empty())
                    }
                    _ => false,
                };
                let Some(last) = manifest.objects.iter().rposition(has_tables) else {
                    return Ok(Err("no database has a table"));
                };
                manifest.objects.remove(last);
                self.commit(&manifest)?;
            }
            Mutation::Tar(change) => return self.tar(*change),
            Mutation::ForgetRole => return self.globals(mutation::without_role),
            Mutation::ChangeRole => return self.globals(mutation::with_changed_role),
            Mutation::StaleFacts => {
                return self.facts(|facts| {
                    let tables = facts.databases.values_mut().flat_map(|database| &mut database.tables);
                    let mut counts = tables.filter_map(|table| match &mut table.content {
                        TableContent::Rows { count, .. } if *count > 0 => Some(count),
                        _ => None,
                    });
                    counts.next().map(|count| *count -= 1).ok_or("no table has rows")
                });
            }
            Mutation::StaleSequence => {
                return self.facts(|facts| {
                    let mut sequences = facts.databases.values_mut().flat_map(|database| &mut database.sequences);
                    let sequence = sequences.next().ok_or("it has no sequence")?;
                    let stood = sequence.before.last_value.min(sequence.after.last_value);
                    sequence.before.last_value = stood.saturating_sub(10);
                    sequence.after = sequence.before;
                    Ok(())
                });
            }
            Mutation::ForgetFacts => {
                return self.facts(|facts| facts.databases.pop_last().map(drop).ok_or("it has no facts of a database"));
            }
        }
        Ok(Ok(()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, CopyError> {
        fs::read(self.set().join(name)).map_err(self.failed())
    }

    /// The linked file stays as it is.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CopyError> {
        let file = self.set().join(name);
        fs::remove_file(&file).and_then(|()| fs::write(&file, bytes)).map_err(self.failed())
    }

    /// Gives the copy another manifest, and a `COMMIT` that fits it.
    fn commit(&self, manifest: &Manifest) -> Result<(), CopyError> {
        let bytes = self.sealed(&manifest.to_bytes());
        self.write(&manifest.naming().document("manifest.json"), &bytes)?;
        self.write("COMMIT", &Commit::to_manifest(manifest, &bytes).to_bytes())
    }

    fn sealed(&self, plain: &[u8]) -> Vec<u8> {
        self.recipients().map_or_else(|| plain.to_vec(), |recipients| seal_bytes(plain, recipients))
    }

    fn commit_object(&self, object: &Object, plain: Measured, stored: Measured) -> Result<(), CopyError> {
        let mut manifest = self.manifest.clone();
        let same = manifest.objects.iter_mut().find(|other| other.name == object.name).expect("it is of this set");
        (same.plain, same.stored) = (plain, stored);
        self.commit(&manifest)
    }

    /// The facts of the whole set.
    fn taken(&self) -> Result<(&Object, Facts), CopyError> {
        let missing = || CopyError::Content("it has no facts".to_owned());
        let object = self.manifest.facts().ok_or_else(missing)?;
        let stored = self.read(&object.name)?;
        let plain = match &self.keys {
            Some(keys) => unseal_bytes(&stored, keys)?,
            None => stored,
        };
        let facts = Facts::from_bytes(&plain).map_err(|error| CopyError::Content(error.to_string()))?;
        Ok((object, facts))
    }

    fn facts(
        &self,
        change: impl FnOnce(&mut Facts) -> Result<(), &'static str>,
    ) -> Result<Result<(), &'static str>, CopyError> {
        let (object, mut facts) = self.taken()?;
        if let Err(why) = change(&mut facts) {
            return Ok(Err(why));
        }
        let plain = facts.to_bytes();
        let stored = self.sealed(&plain);
        self.write(&object.name, &stored)?;
        self.commit_object(object, Measured::of(&plain), Measured::of(&stored))?;
        Ok(Ok(()))
    }

    fn globals(
        &self,
        change: impl FnOnce(&str, &str) -> Option<String>,
    ) -> Result<Result<(), &'static str>, CopyError> {
        let object = self.manifest.globals().ok_or_else(|| CopyError::Content("it has no globals".to_owned()))?;
        let plain = fs::read(self.unpacked(object)?).map_err(self.failed())?;
        let bootstrap = self.manifest.server.bootstrap_role.as_str();
        let Some(changed) = change(&String::from_utf8_lossy(&plain), bootstrap) else {
            return Ok(Err("it has no role that could be taken"));
        };
        fs::write(self.plain(), changed).map_err(self.failed())?;
        self.pack(object)?;
        Ok(Ok(()))
    }

    /// Changes the archive of the smallest database that has what `find` looks for.
    fn patch(&self, find: fn(&[u8]) -> Option<Vec<Patch>>) -> Result<Result<(), &'static str>, CopyError> {
        let (_, facts) = self.taken()?;
        let compared = |database: &DatabaseName| facts.databases.contains_key(database);
        let mut archives: Vec<&Object> =
            self.manifest.databases().filter(|(database, _)| compared(database)).map(|(_, object)| object).collect();
        archives.sort_by_key(|object| object.plain.bytes);
        for object in archives {
            let file = self.unpacked(object)?;
            let mut head = Vec::new();
            let opened = File::open(&file).map_err(self.failed())?;
            io::Read::read_to_end(&mut io::Read::take(&opened, HEAD), &mut head).map_err(self.failed())?;
            let Some(patches) = find(&head) else { continue };
            let file = File::options().write(true).open(&file).map_err(self.failed())?;
            for patch in patches {
                file.write_all_at(&patch.bytes, patch.at as u64).map_err(self.failed())?;
            }
            self.pack(object)?;
            return Ok(Ok(()));
        }
        Ok(Err("no database has one"))
    }

    /// Changes the tar of the volumes.
    fn tar(&self, change: Change) -> Result<Result<(), &'static str>, CopyError> {
        let volumes = self.manifest.volume();
        let (object, copy) = volumes.ok_or_else(|| CopyError::Content("it has no volumes".to_owned()))?;
        let path = self.unpacked(object)?;
        let tar = File::options().read(true).write(true).open(&path).map_err(self.failed())?;
        let patches = match volume::spoil(&tar, &copy.pgdata, change).map_err(self.failed())? {
            Ok(patches) => patches,
            Err(why) => return Ok(Err(why)),
        };
        for patch in patches {
            tar.write_all_at(&patch.bytes, patch.at as u64).map_err(self.failed())?;
        }
        self.pack(object)?;
        Ok(Ok(()))
    }

    /// Where an object lies unpacked.
    fn plain(&self) -> PathBuf {
        self.root.with_extension("plain")
    }

    fn unpacked(&self, object: &Object) -> Result<PathBuf, CopyError> {
        let key = Key::new(self.commit.location().key(&object.name))
            .map_err(|error| CopyError::Content(error.to_string()))?;
        let stored = self.repository.store().open(&key)?;
        let mut file = File::create(self.plain()).map_err(self.failed())?;
        let keys = self.keys.as_ref().filter(|_| object.is_sealed());
        decompress(&*stored, None, keys, &mut file, NonZeroUsize::MIN, &Meter::new(), &self.cancel)?;
        file.flush().map_err(self.failed())?;
        Ok(self.plain())
    }

    /// Makes the object of what lies unpacked, and a manifest that vouches for it.
    fn pack(&self, object: &Object) -> Result<(), CopyError> {
        let codec = self.manifest.codec.parse();
        let codec = codec.map_err(|error| CopyError::Content(format!("its codec: {error}")))?;
        let compression = Compression { codec, threads: NonZeroUsize::MIN, frame_bytes: FrameBytes::DUMP };
        let mut source = File::open(self.plain()).map_err(self.failed())?;
        let file = self.set().join(&object.name);
        fs::remove_file(&file).map_err(self.failed())?;
        let mut sink = File::create_new(&file).map_err(self.failed())?;
        let recipients = self.recipients().filter(|_| object.is_sealed());
        let sealed = compress(&mut source, &mut sink, compression, recipients, &Meter::new(), &self.cancel)?;
        self.commit_object(object, sealed.plain, sealed.stored)
    }
}

/// Makes `to` a folder like `from`, of links to the same files.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let there = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_all(&entry.path(), &there)?;
        } else {
            fs::hard_link(entry.path(), there)?;
        }
    }
    Ok(())
}
