//! `pglife backups verify`: is every byte of a set what was written? `pglife key check`: does a key open it? Both need the
//! repository alone, not Docker, not the server.
//!
//! An encrypted set is verified without a key too, from outside: every stored byte is compared with what `COMMIT` recorded.
//! With a key, every object is also opened, unpacked and compared with what the server gave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::civil::Date;
use serde::Serialize;

use crate::backup_set::{Commit, Content, Object, Parents, SetId, StoredObject};
use crate::cluster::RepoName;
use crate::control::{ControlPlane, OperationError, Progress, Tick, catalogue, failed, worker_threads};
use crate::encryption::{Keys, Recipient};
use crate::exit::Exit;
use crate::pipeline::frames::SeekTable;
use crate::pipeline::seal::Unsealed;
use crate::pipeline::{Corruption, PipelineError};
use crate::policy::Policy;
use crate::state::Operation;
use crate::storage::{Key, ReadAt, Repository};
use crate::worker::session::{Session, SessionError};
use crate::worker::{Event, Request, Trouble, VerifyJob};

pub use crate::policy::{Sample, SampleError};

/// What was found about one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The set.
    pub set: SetId,
    /// True when every object is what was written.
    pub intact: bool,
    /// True when the objects were opened; false when an encrypted set was compared from outside, for want of a key.
    pub opened: bool,
    /// Objects looked at.
    pub objects: usize,
    /// Bytes read from the repository.
    pub stored_bytes: u64,
    /// Damaged or missing objects.
    pub damage: Vec<Damage>,
    /// One that it builds on and that is damaged or missing: intact or not, it cannot be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspect: Option<SetId>,
}

impl Verified {
    /// Of a set whose `document` is not what was written, so that nothing else was looked at.
    fn unreadable(commit: &Commit, document: String, why: String) -> Self {
        Self {
            set: commit.set.clone(),
            intact: false,
            opened: false,
            objects: 1,
            stored_bytes: 0,
            damage: vec![Damage { object: document, why }],
            suspect: None,
        }
    }
}

/// What each of `sets`, which one repository holds, builds on that is in `damaged` or not among `sets`: the nearest such. Pure.
pub fn suspects<'s>(sets: impl IntoIterator<Item = &'s Commit>, damaged: &BTreeSet<SetId>) -> BTreeMap<SetId, SetId> {
    let sets: Vec<&Commit> = sets.into_iter().collect();
    let here: BTreeSet<&SetId> = sets.iter().map(|commit| &commit.set).collect();
    let parents = Parents::of(sets.iter().copied());
    let trouble =
        |set: &SetId| parents.ancestors(set).find(|ancestor| damaged.contains(ancestor) || !here.contains(ancestor));
    here.iter().filter_map(|set| Some(((*set).clone(), trouble(set)?.clone()))).collect()
}

/// What to say of a set that builds on a damaged one.
pub fn suspicion(set: &SetId, repository: &RepoName, ancestor: &SetId) -> String {
    format!(
        "{set} in repository \"{repository}\" builds on {ancestor}, which is damaged or missing: it cannot be restored"
    )
}

/// One damaged or missing object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its name inside the set.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
}

/// Reads all of `commit`'s objects and compares them with what was recorded. A set that is gone by now is not found.
/// `identity` is the file with a key, where it is not the configured one.
pub async fn verify(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    identity: Option<&Path>,
    progress: Progress<'_>,
) -> Result<Verified, OperationError> {
    let what = format!("verification of {} failed", commit.set);
    progress(Tick::Step(format!("verifying {}", commit.set)));
    // A set that is being deleted would look damaged.
    let _held = control.state.hold_set(&commit.set).map_err(failed(&what))?;
    // What is known of it may be remembered from an earlier look.
    let commit_key = Key::new(commit.location().commit_key()).expect("names make a key");
    let bytes = repository.store().read_small(&commit_key, catalogue::COMMIT_LIMIT);
    let found = Commit::from_bytes(&bytes.map_err(failed(format!("{what}: it has been deleted")))?);
    if found.as_ref().ok() != Some(commit) {
        let why = found.map_or_else(|error| error.to_string(), |_| "it is not what was written".to_owned());
        return Ok(Verified::unreadable(commit, "COMMIT".to_owned(), why));
    }
    let threads = worker_threads();
    let job = match objects_of(control, repository, commit, identity) {
        Ok(Look { objects, stored, keys }) => {
            let folder = Key::new(commit.location().folder()).expect("names make a key");
            VerifyJob { place: repository.folder_location(folder), objects, stored, threads, keys }
        }
        Err(error) if error.exit == Exit::VerifyFailed => {
            return Ok(Verified::unreadable(commit, commit.naming().document("manifest.json"), error.chain()));
        }
        Err(error) => return Err(error),
    };
    let opened = job.stored.is_empty();
    let count = job.objects.len() + job.stored.len();
    let expected = Some(if opened { commit.plain_bytes } else { commit.stored_bytes });
    let mut damage = Vec::new();
    let mut session = Session::in_child().await.map_err(failed(&what))?;
    let done = session
        .request(&Request::Verify(job), &control.cancel, |event| match event {
            Event::Damaged { object, why } => damage.push(Damage { object, why }),
            Event::Progress { plain_bytes, stored_bytes } => {
                let plain = if opened { plain_bytes } else { stored_bytes };
                progress(Tick::Bytes { plain, stored: stored_bytes, expected });
            }
            _ => {}
        })
        .await;
    crate::control::close_worker(session).await;
    match done {
        Ok(_) | Err(SessionError::Failed { trouble: Trouble::Damaged, .. }) => Ok(Verified {
            set: commit.set.clone(),
            intact: done.is_ok() && damage.is_empty(),
            opened,
            objects: count,
            stored_bytes: commit.stored_bytes,
            damage,
            suspect: None,
        }),
        Err(error) => Err(failed(what)(error)),
    }
}

/// What came of a day's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    /// Copies that were read.
    pub looked_at: usize,
    /// What is wrong, a text each.
    pub damage: Vec<String>,
}

/// Verifies, in every repository of `policy`, the backups that `sample` takes on `day`. It is a run, on record, but holds no
/// cluster: nothing is changed.
pub async fn verify_sample(
    control: &ControlPlane,
    policy: &Policy,
    sample: Sample,
    day: Date,
    progress: Progress<'_>,
) -> Result<Sampled, OperationError> {
    let run = control.begin_reading(Operation::Verify, &policy.name)?;
    let done = sample_in_run(control, policy, sample, day, progress).await;
    run.end(done, |sampled| {
        let count = format!("{} copies verified", sampled.looked_at);
        if sampled.damage.is_empty() {
            (Exit::Ok, count, None)
        } else {
            (Exit::VerifyFailed, format!("{count}: {}", sampled.damage.join("; ")), None)
        }
    })
    .await
}

async fn sample_in_run(
    control: &ControlPlane,
    policy: &Policy,
    sample: Sample,
    day: Date,
    progress: Progress<'_>,
) -> Result<Sampled, OperationError> {
    let mut sampled = Sampled { looked_at: 0, damage: Vec::new() };
    let repositories = control.repositories_of(policy, None)?;
    for (name, repository) in &repositories.open {
        let catalogue = catalogue::read(control, repository, Some(&policy.name))?;
        sampled.damage.extend(catalogue.unreadable.iter().map(|unreadable| unreadable.error.chain()));
        let mut damaged = BTreeSet::new();
        for commit in catalogue.sets.iter().filter(|commit| sample.takes(&commit.set, day)) {
            let verified = match verify(control, repository, commit, None, progress).await {
                Ok(verified) => verified,
                // It was pruned meanwhile.
                Err(error) if matches!(error.exit, Exit::NotFound | Exit::LockBusy) => continue,
                Err(error) => return Err(error),
            };
            sampled.looked_at += 1;
            damaged.extend((!verified.intact).then(|| commit.set.clone()));
            for damage in verified.damage {
                sampled
                    .damage
                    .push(format!("{} in repository \"{name}\": {}: {}", commit.set, damage.object, damage.why));
            }
        }
        let suspects = suspects(&catalogue.sets, &damaged);
        sampled.damage.extend(suspects.iter().map(|(set, ancestor)| suspicion(set, name, ancestor)));
    }
    Ok(sampled)
}

/// What is looked at of a set, and with what.
struct Look {
    objects: Vec<Object>,
    stored: Vec<StoredObject>,
    keys: Option<Keys>,
}

/// Opens the manifest where that can be done; the outside of the objects is known without it.
fn objects_of(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    identity: Option<&Path>,
) -> Result<Look, OperationError> {
    if commit.encryption.is_some() && control.keys(identity)?.is_none() {
        return Ok(Look { objects: vec![], stored: catalogue::stored_objects(repository, commit)?, keys: None });
    }
    let (manifest, keys) = control.manifest(repository, commit, identity)?;
    Ok(Look { objects: manifest.objects, stored: vec![], keys })
}

/// What a key is for a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyChecked {
    /// The set.
    pub set: SetId,
    /// The public half of the key that opened it.
    pub recipient: Recipient,
    /// True when that is an escrow recipient.
    pub escrow: bool,
    /// Objects that were opened, the manifest among them.
    pub objects: usize,
    /// Objects that do not open as they should.
    pub damage: Vec<Damage>,
}

/// Opens the manifest of an encrypted set and the beginning and end of each of its objects with one key.
pub fn check_key(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    identity: Option<&Path>,
) -> Result<KeyChecked, OperationError> {
    let what = format!("the key was not checked with {}", commit.set);
    let Some(encryption) = &commit.encryption else {
        return Err(OperationError::new(Exit::Refused, format!("{what}: the backup is not encrypted"))
            .next("set [encryption] recipients in pglife.toml, and take a backup"));
    };
    let _held = control.state.hold_set(&commit.set).map_err(failed(&what))?;
    let (manifest, keys) = control.manifest(repository, commit, identity)?;
    let keys = keys.expect("an encrypted manifest was opened");
    let mut damage = Vec::new();
    let sealed: Vec<&Object> = manifest.objects.iter().filter(|object| object.is_sealed()).collect();
    for object in &sealed {
        let key = Key::new(commit.location().key(&object.name)).map_err(|error| OperationError {
            source: Some(Box::new(error)),
            ..OperationError::new(Exit::VerifyFailed, what.clone())
        })?;
        let opened = match repository.store().open(&key) {
            Ok(opened) => opened,
            Err(error) if error.exit() == Exit::NotFound => {
                damage.push(Damage { object: object.name.clone(), why: error.to_string() });
                continue;
            }
            Err(error) => return Err(failed(what)(error)),
        };
        match open_ends(&*opened, object, &keys) {
            Ok(()) => {}
            Err(error @ (PipelineError::Corrupt(_) | PipelineError::WrongKey)) => {
                damage.push(Damage { object: object.name.clone(), why: error.to_string() });
            }
            Err(error) => return Err(failed(what)(error)),
        }
    }
    let owned = |recipient: &&Recipient| keys.recipients().contains(recipient);
    let everyday = encryption.recipients.everyday().iter().find(owned);
    let escrow = encryption.recipients.escrow().iter().find(owned);
    let recipient = everyday.or(escrow).ok_or_else(|| {
        OperationError::new(
            Exit::VerifyFailed,
            format!("{what}: it opens the backup, but COMMIT does not name its recipient"),
        )
    })?;
    Ok(KeyChecked {
        set: commit.set.clone(),
        recipient: recipient.clone(),
        escrow: everyday.is_none(),
        objects: sealed.len() + 1,
        damage,
    })
}

/// Authenticates the header and the last chunk; of a stream also what says where its frames are.
fn open_ends(stored: &dyn ReadAt, object: &Object, keys: &Keys) -> Result<(), PipelineError> {
    let inside = Unsealed::open(stored, keys)?;
    let plain_bytes = match object.content {
        Content::Globals | Content::Database { .. } | Content::Volume(_) | Content::Blocks => {
            SeekTable::read(&inside)?.plain_bytes()
        }
        Content::Facts | Content::Recipe | Content::Instructions | Content::Details => inside.size(),
    };
    if plain_bytes == object.plain.bytes {
        Ok(())
    } else {
        Err(Corruption::PlainSize { expected: object.plain.bytes, found: plain_bytes }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::example_manifest;

    #[test]
    fn what_builds_on_a_damaged_set_is_suspect() {
        let id = |letter: char| format!("20261122T023000Z-volume-k3x9q{letter}").parse::<SetId>().expect("an id");
        let manifest = example_manifest();
        let sets: Vec<Commit> = [('a', None), ('b', Some('a')), ('c', Some('b')), ('d', None), ('e', Some('x'))]
            .map(|(set, parent)| Commit {
                set: id(set),
                parent: parent.map(id),
                ..Commit::to_manifest(&manifest, &manifest.to_bytes())
            })
            .into();
        assert_eq!(Parents::of(&sets).ancestors(&id('c')).collect::<Vec<_>>(), [&id('b'), &id('a')]);
        // What is lost is as bad as what is damaged.
        let lost = (id('e'), id('x'));
        assert_eq!(suspects(&sets, &BTreeSet::new()), BTreeMap::from([lost.clone()]));
        let expected = [(id('b'), id('a')), (id('c'), id('a')), lost.clone()];
        assert_eq!(suspects(&sets, &BTreeSet::from([id('a')])), BTreeMap::from(expected));
        assert_eq!(suspects(&sets, &BTreeSet::from([id('c'), id('d')])), BTreeMap::from([lost]));
    }
}
