//! The copy that an incremental one builds on: the newest that every repository of the run holds, with all that it needs.
//!
//! ```text
//! sets of each repository ─▶ newest that all have ─▶ its manifest ─▶ does it suit? (pure) ─▶ after the server is known: its lineage?
//! ```
//!
//! Where there is none, a full copy is taken: that is never wrong, only larger.

use std::collections::BTreeSet;
use std::fmt;

use crate::backup_set::{Ancestor, Commit, CopyMode, Kind, Manifest, Object, SetId};
use crate::cluster::Lineage;
use crate::control::{ControlPlane, OperationError, Reach, catalogue, failed};
use crate::encryption::Keys;
use crate::policy::Policy;
use crate::state::HeldLock;
use crate::storage::Repository;
use crate::worker::Since;

/// Where a worker sees the parent.
const PARENT_FOLDER: &str = "/pglife-parent";

/// A copy that another may build on.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) lineage: Lineage,
    /// It, and what it needs.
    pub(super) ancestors: Vec<Ancestor>,
    /// Its block index.
    pub(super) index: Object,
    /// Its folder.
    pub(super) reach: Reach,
    pub(super) keys: Option<Keys>,
    /// Whether it has damaged pages: they are to be found, and told, again.
    pub(super) damaged: bool,
    /// Where it is in the server's history; None: it was stopped, or nothing is known of that.
    pub(super) since: Option<Since>,
    /// Nobody deletes it, nor what it needs, while these are held.
    _held: Vec<HeldLock>,
}

/// Why a copy is a full one.
#[derive(Debug)]
pub(super) enum Full {
    /// There is no other yet.
    First,
    /// The chain is as long as it may be.
    ChainEnds(u32),
    /// Nothing is known of the blocks of the newest one.
    NoIndex(SetId),
    /// The newest one is of other volumes.
    OtherVolumes(SetId),
    /// The newest one is of another server, or another major.
    OtherLineage(SetId),
    /// A repository lacks what the newest one needs.
    Incomplete(SetId, SetId),
    /// What is known of the newest one cannot be read.
    Unreadable(OperationError),
}

impl Full {
    /// Whether the operator should know: something is wrong that is not so by itself.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(self, Self::Incomplete(..) | Self::Unreadable(_))
    }
}

impl fmt::Display for Full {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => out.write_str("there is no earlier one in every repository"),
            Self::ChainEnds(sets) => write!(out, "{sets} in a row build on each other, as many as `full_every` allows"),
            Self::NoIndex(set) => write!(out, "{set} was taken without a block index"),
            Self::OtherVolumes(set) => write!(out, "{set} is a copy of other volumes"),
            Self::OtherLineage(set) => write!(out, "{set} is a copy of another server"),
            Self::Incomplete(set, ancestor) => {
                write!(out, "{set} needs {ancestor}, which not every repository holds: pglife repo sync")
            }
            Self::Unreadable(error) => out.write_str(&error.chain()),
        }
    }
}

/// The copy that the next one of `policy` builds on, as far as that is known without the server.
pub(super) fn find(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &[Repository],
    reader: Option<&Keys>,
) -> Result<Parent, Full> {
    let mut common: Option<Vec<Commit>> = None;
    for repository in repositories {
        let here = catalogue::read(control, repository, Some(&policy.name)).map_err(Full::Unreadable)?.sets;
        common = Some(match common {
            None => here,
            Some(sets) => sets.into_iter().filter(|set| here.contains(set)).collect(),
        });
    }
    let common = common.unwrap_or_default();
    let newest = common.iter().filter(|set| set.kind == Kind::Volume).max_by_key(|set| set.order());
    let (Some(newest), Some(repository)) = (newest, repositories.first()) else { return Err(Full::First) };
    // What this machine sealed, its own key opens; for anything else somebody's is needed.
    let known =
        reader.and_then(|keys| Some((catalogue::manifest(repository, newest, Some(keys)).ok()?, reader.cloned())));
    let (manifest, keys) = match known {
        Some(known) => known,
        None => control.manifest(repository, newest, None).map_err(Full::Unreadable)?,
    };
    let here: BTreeSet<&SetId> = common.iter().map(|set| &set.set).collect();
    let (ancestors, index) = suits(&manifest, policy, &here)?;
    let held = control.state.hold_sets(ancestors.iter().map(|ancestor| &ancestor.set));
    let held = held.map_err(|error| Full::Unreadable(failed(format!("{} cannot be built on", newest.set))(error)))?;
    let reach = Reach::in_place(repository, &newest.location(), PARENT_FOLDER);
    let damaged = manifest.volume().is_some_and(|(_, copy)| !copy.damaged.is_empty());
    let since = since(&manifest);
    Ok(Parent { lineage: newest.lineage, ancestors, index, reach, keys, damaged, since, _held: held })
}

/// Where the copy of `manifest` is in the history of the server that it was made of. Pure.
fn since(manifest: &Manifest) -> Option<Since> {
    let (_, copy) = manifest.volume()?;
    let history = copy.history.clone().filter(|_| copy.mode == CopyMode::Hot)?;
    Some(Since {
        timeline: copy.timeline,
        start: copy.start_lsn.parse().ok()?,
        stop: copy.stop_lsn.parse().ok()?,
        history,
        page_checksums: manifest.server.data_checksums,
    })
}

/// Whether a copy can build on the one of `manifest`: then what it needs, nearest first, and the index. `here` are the sets that
/// every repository holds. Pure.
fn suits(manifest: &Manifest, policy: &Policy, here: &BTreeSet<&SetId>) -> Result<(Vec<Ancestor>, Object), Full> {
    let set = || manifest.set.clone();
    let ((object, copy), index) =
        manifest.volume().zip(manifest.blocks()).ok_or_else(|| Full::NoIndex(manifest.set.clone()))?;
    let itself = Ancestor { set: set(), name: object.name.clone(), stored: object.stored, plain: object.plain };
    let ancestors: Vec<Ancestor> = std::iter::once(itself).chain(manifest.ancestors().iter().cloned()).collect();
    let full_every = policy.volume.full_every.get();
    if ancestors.len() >= full_every as usize {
        return Err(Full::ChainEnds(full_every));
    }
    if !copy.volumes.iter().map(String::as_str).eq(policy.volume.volumes.iter().map(|volume| volume.path())) {
        return Err(Full::OtherVolumes(set()));
    }
    match ancestors.iter().find(|ancestor| !here.contains(&ancestor.set)) {
        Some(missing) => Err(Full::Incomplete(set(), missing.set.clone())),
        None => Ok((ancestors, index.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::block_index::Stamp;
    use crate::backup_set::{Content, History, Measured, VolumeCopy, example_copy as copy};

    fn ancestor(set: &str) -> Ancestor {
        let measured = Measured::of(b"bytes");
        Ancestor {
            set: set.parse().expect("an id"),
            name: "volume.tar.zst".to_owned(),
            stored: measured,
            plain: measured,
        }
    }

    fn judge(manifest: &Manifest, full_every: u32, here: &[&str]) -> Result<Vec<String>, String> {
        let text = format!("[cluster]\nmajor = '17'\n[backup.volume]\nfull_every = {full_every}\n");
        let policy = crate::policy::file::example(&text);
        let here: Vec<SetId> = here.iter().map(|set| set.parse().expect("an id")).collect();
        let found = suits(manifest, &policy, &here.iter().collect());
        found
            .map(|(ancestors, _)| ancestors.iter().map(|ancestor| ancestor.set.to_string()).collect())
            .map_err(|full| format!("{full:?}").split(['(', ' ']).next().unwrap_or_default().to_owned())
    }

    const FULL: &str = "20261121T023000Z-volume-k3x9qa";
    const NEWEST: &str = "20261122T023000Z-volume-k3x9qa";

    #[test]
    fn a_chain_is_as_long_as_it_may_be_and_no_longer() {
        let second = copy(vec![ancestor(FULL)]);
        assert_eq!(judge(&copy(vec![]), 2, &[NEWEST]), Ok(vec![NEWEST.to_owned()]));
        assert_eq!(judge(&second, 3, &[FULL, NEWEST]), Ok(vec![NEWEST.to_owned(), FULL.to_owned()]));
        assert_eq!(judge(&second, 2, &[FULL, NEWEST]), Err("ChainEnds".to_owned()));
    }

    #[test]
    fn nothing_builds_on_what_is_not_all_there() {
        let second = copy(vec![ancestor(FULL)]);
        assert_eq!(judge(&second, 7, &[NEWEST]), Err("Incomplete".to_owned()));
        let mut without = copy(vec![]);
        without.objects.pop();
        assert_eq!(judge(&without, 7, &[NEWEST]), Err("NoIndex".to_owned()));
    }

    #[test]
    fn only_a_copy_of_a_running_server_says_where_it_is_in_its_history() {
        let mut manifest = copy(vec![]);
        let mut change = |change: &dyn Fn(&mut VolumeCopy)| {
            let Content::Volume(copy) = &mut manifest.objects[0].content else { unreachable!() };
            change(copy);
            since(&manifest)
        };
        assert_eq!(change(&|copy| (copy.start_lsn, copy.stop_lsn) = ("1/28".to_owned(), "1/138".to_owned())), None);
        let stamp = Stamp { inode: 1, modified: 2, changed: 3 };
        let history =
            History { server_started: "1795833266.000001".to_owned(), summary: "0.summary".to_owned(), stamp };
        let found = change(&|copy| copy.history = Some(history.clone())).expect("all is there");
        assert_eq!((found.timeline, found.start.0, found.stop.0), (1, 0x1_0000_0028, 0x1_0000_0138));
        assert_eq!(found.history, history);
        assert_eq!(change(&|copy| copy.mode = CopyMode::Cold), None);
    }

    #[test]
    fn other_volumes_are_another_copy() {
        let mut other = copy(vec![]);
        let Content::Volume(copy) = &mut other.objects[0].content else { unreachable!() };
        copy.volumes.pop();
        assert_eq!(judge(&other, 7, &[NEWEST]), Err("OtherVolumes".to_owned()));
    }
}
