//! `pglife prune`: which backups stay and which go, and their way out of the repository.
//!
//! ```text
//! COMMITs, pins ─▶ plan (pure: policy::retention) ─▶ for each set that goes, unless somebody reads it or has pinned it:
//!                                                      COMMIT ─▶ its other objects ─▶ its pin
//!                                                        └ locked by the store, or forbidden to these credentials: told, and
//!                                                          nothing of it is touched
//! ```
//!
//! Invariant: a set that is listed is whole. `COMMIT` goes first and is gone for good before anything else goes, so whatever
//! ends a deletion leaves a set that is listed with everything in it, or one that nobody lists; what is left of the latter is
//! for [`leftovers`].

pub mod leftovers;
pub mod pins;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::backup_set::{Commit, Parents, SetId, SetLocation};
use crate::cluster::{ClusterName, Lineage, RepoName};
use crate::control::{ControlPlane, OperationError, catalogue, failed};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::retention::{self, KEEP_OLD, Pinning, Reason, SetFacts, Terms, Verdict};
use crate::state::Operation;
use crate::storage::{Key, Repository, StorageError, Store};

/// What becomes of each set that a repository holds of a cluster.
#[derive(Debug)]
pub struct PrunePlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repository.
    pub repository: RepoName,
    /// Every committed set, oldest first.
    pub sets: Vec<PlannedSet>,
    /// Sets that are left alone because their `COMMIT` cannot be read: why.
    pub unreadable: Vec<String>,
    /// Sets without `COMMIT`, which `pglife repo gc` removes.
    pub uncommitted: usize,
}

/// A set and what becomes of it.
#[derive(Debug)]
pub struct PlannedSet {
    /// The set.
    pub commit: Commit,
    /// Keep or delete, and why.
    pub verdict: Verdict,
}

impl PrunePlan {
    /// The sets that go.
    pub fn going(&self) -> impl Iterator<Item = &PlannedSet> {
        self.sets.iter().filter(|planned| matches!(planned.verdict, Verdict::Delete(_)))
    }
}

/// What was done about a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It stays, as planned.
    Kept,
    /// It is gone.
    Deleted,
    /// The store forbids it until a time, where it says so. It is listed as before.
    Locked(Option<Timestamp>),
    /// It is no longer listed, but the store holds some of its objects until a time.
    PartlyLocked(Option<Timestamp>),
    /// The credentials do not allow to delete it: nothing of it was touched, and it is listed as before.
    Forbidden,
    /// It is no longer listed, but the credentials do not allow to delete these of its objects.
    PartlyForbidden(Vec<Key>),
    /// Somebody reads it, or has pinned it meanwhile; it stays for the next time.
    InUse,
    /// One that builds on it is still there; it stays for the next time.
    Needed,
    /// Its deletion failed, or was not tried after another one had failed.
    NotDeleted,
}

impl Outcome {
    /// Whether the set is still a backup.
    fn is_listed(&self) -> bool {
        match self {
            Self::Deleted | Self::PartlyLocked(_) | Self::PartlyForbidden(_) => false,
            Self::Kept | Self::Locked(_) | Self::Forbidden | Self::InUse | Self::Needed | Self::NotDeleted => true,
        }
    }
}

/// The places of `sets`, oldest first, but what builds on another before that one. Pure.
fn children_first(sets: &[PlannedSet]) -> Vec<usize> {
    let here: BTreeSet<&SetId> = sets.iter().map(|planned| &planned.commit.set).collect();
    let parents = Parents::of(sets.iter().map(|planned| &planned.commit));
    let depth = |at: usize| parents.ancestors(&sets[at].commit.set).filter(|set| here.contains(set)).count();
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(depth(at)));
    order
}

/// What came of pruning one repository.
#[derive(Debug)]
pub struct Pruned {
    /// The plan.
    pub plan: PrunePlan,
    /// What was done about each set of the plan, in its order.
    pub outcomes: Vec<Outcome>,
}

/// What came of pruning a cluster.
#[derive(Debug)]
pub struct PruneResult {
    /// Repository by repository.
    pub pruned: Vec<Pruned>,
    /// What ended it early.
    pub failure: Option<OperationError>,
}

/// Decides about every set of the cluster of `policy` in its repositories, or in `only` one of them.
pub fn plan(
    control: &ControlPlane,
    policy: &Policy,
    only: Option<&RepoName>,
    now: Timestamp,
) -> Result<Vec<PrunePlan>, OperationError> {
    let repositories = open_all(control, policy, only)?;
    repositories.iter().map(|(name, repository)| plan_repository(control, repository, policy, name, now)).collect()
}

/// The repositories of `policy`, or `only` one. All of them can be read, or nothing is done.
pub(crate) fn open_all(
    control: &ControlPlane,
    policy: &Policy,
    only: Option<&RepoName>,
) -> Result<Vec<(RepoName, Repository)>, OperationError> {
    let names: Vec<&RepoName> = only.map_or_else(|| policy.dump.repositories.iter().collect(), |only| vec![only]);
    let several = names.len() > 1;
    let open = |name: &RepoName| {
        control.repository(name).map(|repository| (name.clone(), repository)).map_err(|error| {
            let error = error.safe("nothing was changed in any repository");
            if !several {
                return error;
            }
            let way_out = "mend it, or name the others one by one with --repo";
            OperationError {
                next: Some(error.next.as_ref().map_or(way_out.to_owned(), |next| format!("{next}; or {way_out}"))),
                ..error
            }
        })
    };
    names.into_iter().map(open).collect()
}

/// The plan for one repository.
fn plan_repository(
    control: &ControlPlane,
    repository: &Repository,
    policy: &Policy,
    name: &RepoName,
    now: Timestamp,
) -> Result<PrunePlan, OperationError> {
    let catalogue = catalogue::read(control, repository, Some(&policy.name))?;
    let pins = catalogue::pins(repository.store(), &catalogue)?;
    let proofs = catalogue::proven(repository.store(), &catalogue)?;
    let terms = Terms { rules: policy.retention.as_ref(), zone: &policy.dump.timezone, keep_old: KEEP_OLD };
    let facts: Vec<SetFacts> = catalogue
        .sets
        .iter()
        .map(|commit| {
            let pin = pins.get(&(commit.lineage, commit.set.clone())).cloned();
            SetFacts::of(commit, pin.unwrap_or(Pinning::Absent), proofs.contains_key(&commit.set))
        })
        .collect();
    let mut verdicts: BTreeMap<(Lineage, SetId), Verdict> = retention::decide(&facts, &terms, now)
        .into_iter()
        .map(|decision| ((decision.set.lineage, decision.set.id.clone()), decision.verdict))
        .collect();
    let sets = catalogue.sets.into_iter().filter_map(|commit| {
        let verdict = verdicts.remove(&(commit.lineage, commit.set.clone()))?;
        Some(PlannedSet { commit, verdict })
    });
    Ok(PrunePlan {
        cluster: policy.name.clone(),
        repository: name.clone(),
        sets: sets.collect(),
        unreadable: catalogue.unreadable.iter().map(|unreadable| unreadable.error.chain()).collect(),
        uncommitted: catalogue.uncommitted.len(),
    })
}

/// Deletes what the plan says, made anew while nobody else works on the cluster.
pub async fn prune(
    control: &ControlPlane,
    policy: &Policy,
    only: Option<&RepoName>,
) -> Result<PruneResult, OperationError> {
    let repositories = open_all(control, policy, only)?;
    let run = control.begin_without_engine(Operation::Prune, &policy.name).await?;
    let done = prune_in_run(control, policy, &repositories);
    run.end(done, |result| {
        let count = |wanted: fn(&Outcome) -> bool| {
            result.pruned.iter().flat_map(|pruned| &pruned.outcomes).filter(|outcome| wanted(outcome)).count()
        };
        let gone = |outcome: &Outcome| {
            matches!(outcome, Outcome::Deleted | Outcome::PartlyLocked(_) | Outcome::PartlyForbidden(_))
        };
        let deleted = count(gone);
        let locked = count(|outcome| matches!(outcome, Outcome::Locked(_) | Outcome::PartlyLocked(_)));
        let forbidden = count(|outcome| matches!(outcome, Outcome::Forbidden | Outcome::PartlyForbidden(_)));
        let message = format!("{deleted} backups deleted, {locked} locked, {forbidden} forbidden");
        match &result.failure {
            Some(failure) => (failure.exit, format!("{message}; {}", failure.chain()), None),
            None if forbidden > 0 => (Exit::Credentials, message, None),
            None if locked > 0 => (Exit::Warnings, message, None),
            None => (Exit::Ok, message, None),
        }
    })
    .await
}

fn prune_in_run(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &[(RepoName, Repository)],
) -> Result<PruneResult, OperationError> {
    // All plans before the first deletion: a repository that cannot be read stops everything.
    let now = Timestamp::now();
    let mut plans = Vec::new();
    for (name, repository) in repositories {
        plans.push((repository, plan_repository(control, repository, policy, name, now)?));
    }
    let mut result = PruneResult { pruned: Vec::new(), failure: None };
    for (repository, plan) in plans {
        let mut outcomes = vec![Outcome::Kept; plan.sets.len()];
        // What is still listed cannot do without these.
        let mut needed = BTreeSet::new();
        for at in children_first(&plan.sets) {
            let PlannedSet { commit, verdict } = &plan.sets[at];
            outcomes[at] = match verdict {
                Verdict::Keep(_) => Outcome::Kept,
                Verdict::Delete(_) if result.failure.is_some() => Outcome::NotDeleted,
                Verdict::Delete(_) if needed.contains(&commit.set) => Outcome::Needed,
                Verdict::Delete(_) => match delete_set(control, repository.store(), commit, now) {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        result.failure = Some(error);
                        Outcome::NotDeleted
                    }
                },
            };
            if outcomes[at].is_listed() {
                needed.extend(commit.parent.as_ref());
            }
        }
        result.pruned.push(Pruned { plan, outcomes });
    }
    Ok(result)
}

/// Deletes one set, unless somebody reads it or it has been pinned since the plan was made.
fn delete_set(
    control: &ControlPlane,
    store: &dyn Store,
    commit: &Commit,
    now: Timestamp,
) -> Result<Outcome, OperationError> {
    let what = format!("deletion of backup {} of cluster \"{}\" failed", commit.set, commit.cluster);
    if control.cancel.is_cancelled() {
        return Err(OperationError::new(Exit::Interrupted, "pruning was interrupted")
            .safe("every backup that is listed is whole")
            .next("run the same command again: it goes on where it stopped"));
    }
    let Some(taken) = control.state.take_set(&commit.set).map_err(failed(&what))? else { return Ok(Outcome::InUse) };
    // Pins are made while their set is held, so none can come after this look.
    match catalogue::pin(store, &commit.location())? {
        Pinning::Absent => {}
        Pinning::Present(pin) if !pin.holds(now) => {}
        Pinning::Present(_) | Pinning::Unreadable => return Ok(Outcome::InUse),
    }
    let outcome = remove_set(store, &commit.location()).map_err(|error| {
        failed(&what)(error).safe("every backup that is still listed is whole").next(
            "look at the repository, then run the same command again; `pglife repo gc` clears what a cut deletion left",
        )
    })?;
    if outcome == Outcome::Deleted {
        taken.discard();
    }
    Ok(outcome)
}

/// How often a set is removed that comes back under the hand.
const ROUNDS: usize = 3;

/// Removes a set's objects: `COMMIT` first, the pin last. What is gone already is no error, so a deletion that was cut can be
/// done again.
///
/// A control plane without common state may copy the set back at the same time, some objects before they are removed and some
/// after. So `COMMIT` is looked for at the end: whoever puts it there later finds that objects are missing
/// ([`sync`](crate::sync)), whoever put it there earlier did not see all of this deletion.
pub fn remove_set(store: &dyn Store, location: &SetLocation) -> Result<Outcome, StorageError> {
    let key = |text: String| Key::new(text).expect("a set's names make a key");
    let commit = key(location.commit_key());
    for _ in 0..ROUNDS {
        match remove(store, &commit)? {
            Gone::Yes => {}
            Gone::Locked(until) => return Ok(Outcome::Locked(until)),
            Gone::Forbidden => return Ok(Outcome::Forbidden),
        }
        let objects = store.list(Some(&key(location.folder())))?;
        // A COMMIT that came meanwhile goes first as well.
        let (first, others): (Vec<Key>, Vec<Key>) =
            objects.into_iter().map(|object| object.key).partition(|key| *key == commit);
        let left = remove_all(store, first.into_iter().chain(others))?;
        match store.head(&commit) {
            Ok(_) => tracing::warn!("{} came back while it was removed", store.place(Some(&commit))),
            Err(StorageError::NotFound { .. }) if left != Outcome::Deleted => return Ok(left),
            Err(StorageError::NotFound { .. }) => return remove_all(store, [key(location.pin_key())]),
            Err(error) => return Err(error),
        }
    }
    // It comes back faster than it goes; let whoever copies it finish first.
    remove(store, &commit)?;
    Ok(Outcome::InUse)
}

/// Removes objects that nobody needs; those that the store or the credentials keep do not keep the others.
fn remove_all(store: &dyn Store, keys: impl IntoIterator<Item = Key>) -> Result<Outcome, StorageError> {
    let mut locked: Option<Option<Timestamp>> = None;
    let mut forbidden = Vec::new();
    for key in keys {
        match remove(store, &key)? {
            Gone::Yes => {}
            // The last of the dates is when all of it can go; a date that is not known is later than any.
            Gone::Locked(until) => {
                locked = Some(match locked {
                    Some(known) => known.and_then(|known| until.map(|until| known.max(until))),
                    None => until,
                });
            }
            Gone::Forbidden => forbidden.push(key),
        }
    }
    Ok(match (forbidden.is_empty(), locked) {
        (false, _) => Outcome::PartlyForbidden(forbidden),
        (true, Some(until)) => Outcome::PartlyLocked(until),
        (true, None) => Outcome::Deleted,
    })
}

/// Whether an object is gone.
enum Gone {
    Yes,
    Locked(Option<Timestamp>),
    Forbidden,
}

fn remove(store: &dyn Store, key: &Key) -> Result<Gone, StorageError> {
    match store.delete(key) {
        Ok(()) | Err(StorageError::NotFound { .. }) => Ok(Gone::Yes),
        Err(StorageError::Locked { until, .. }) => Ok(Gone::Locked(until)),
        Err(error @ StorageError::NotPermitted { .. }) => {
            tracing::debug!("{error}");
            Ok(Gone::Forbidden)
        }
        Err(error) => Err(error),
    }
}

/// Why a set is not deleted by hand just like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Protection {
    /// A person's word; nothing but another word overrides it.
    #[error("it is {0}")]
    Pinned(Reason),
    /// Others cannot be restored without it; nothing overrides that.
    #[error("{0} builds on it")]
    Needed(SetId),
    /// The newest one that is known to restore.
    #[error("it is the newest backup of its lineage that a drill has restored")]
    NewestProven,
    /// The newest one whose pages are as their checksums say.
    #[error("it is the newest backup of its lineage without damaged pages")]
    NewestSound,
    /// The way back from an upgrade.
    #[error("it is the {0}")]
    BeforeUpgrade(Reason),
    /// There would be nothing left.
    #[error("it is the only {kind} of cluster \"{cluster}\" in lineage {lineage}")]
    Only {
        /// What it holds.
        kind: crate::backup_set::Kind,
        /// The cluster.
        cluster: ClusterName,
        /// The lineage.
        lineage: Lineage,
    },
}

/// What protects the set of `commit` from being deleted by hand.
pub fn protections(
    control: &ControlPlane,
    repository: &Repository,
    name: &RepoName,
    policy: &Policy,
    commit: &Commit,
    now: Timestamp,
) -> Result<Vec<Protection>, OperationError> {
    Ok(protections_in(&plan_repository(control, repository, policy, name, now)?, commit))
}

fn protections_in(plan: &PrunePlan, commit: &Commit) -> Vec<Protection> {
    let mut protections = Vec::new();
    for planned in plan.sets.iter().filter(|planned| planned.commit.location() == commit.location()) {
        let Verdict::Keep(reasons) = &planned.verdict else { continue };
        protections.extend(reasons.iter().filter_map(|reason| match reason {
            Reason::Pinned { .. } | Reason::PinUnreadable => Some(Protection::Pinned(reason.clone())),
            Reason::NewestProven => Some(Protection::NewestProven),
            Reason::NewestSound => Some(Protection::NewestSound),
            Reason::BeforeUpgrade { .. } => Some(Protection::BeforeUpgrade(reason.clone())),
            _ => None,
        }));
    }
    let children = plan.sets.iter().filter(|planned| planned.commit.parent.as_ref() == Some(&commit.set));
    protections.extend(children.map(|child| Protection::Needed(child.commit.set.clone())));
    let alike = |other: &Commit| other.lineage == commit.lineage && other.kind == commit.kind;
    if plan.sets.iter().filter(|planned| alike(&planned.commit)).count() <= 1 {
        let (kind, cluster, lineage) = (commit.kind, commit.cluster.clone(), commit.lineage);
        protections.push(Protection::Only { kind, cluster, lineage });
    }
    protections
}

/// Refuses to delete what is protected; `force` overrides everything but a pin, and that others build on it.
pub fn refuse_protected(commit: &Commit, protections: &[Protection], force: bool) -> Result<(), OperationError> {
    let refuse = |protection: &Protection, next: String| {
        let what = format!("backup {} of cluster \"{}\" was not deleted: {protection}", commit.set, commit.cluster);
        Err(OperationError::new(Exit::Refused, what).safe("nothing was changed").next(next))
    };
    if let Some(pinned) = protections.iter().find(|protection| matches!(protection, Protection::Pinned(_))) {
        let next =
            format!("ask whoever pinned it; then: pglife backups unpin {} --backup {}", commit.cluster, commit.set);
        return refuse(pinned, next);
    }
    let needed = protections.iter().find_map(|protection| match protection {
        Protection::Needed(child) => Some((protection, child)),
        _ => None,
    });
    if let Some((needed, child)) = needed {
        return refuse(
            needed,
            format!("delete that one first: pglife backups delete {} --backup {child}", commit.cluster),
        );
    }
    match protections.first() {
        Some(protection) if !force => {
            refuse(protection, "take another backup first; add --force if it shall go nevertheless".to_owned())
        }
        _ => Ok(()),
    }
}

/// Deletes one set by hand. The caller has asked the operator.
pub async fn delete(
    control: &ControlPlane,
    policy: &Policy,
    name: &RepoName,
    repository: &Repository,
    commit: &Commit,
    force: bool,
) -> Result<Outcome, OperationError> {
    let run = control.begin_without_engine(Operation::Delete, &policy.name).await?;
    let now = Timestamp::now();
    // Again, now that nobody else works on the cluster.
    let done = protections(control, repository, name, policy, commit, now)
        .and_then(|protections| refuse_protected(commit, &protections, force))
        .and_then(|()| delete_set(control, repository.store(), commit, now));
    run.end(done, |outcome| {
        let exit = match outcome {
            Outcome::Deleted => Exit::Ok,
            Outcome::Forbidden | Outcome::PartlyForbidden(_) => Exit::Credentials,
            _ => Exit::Warnings,
        };
        (exit, format!("backup {}: {outcome:?}", commit.set), Some(commit.set.clone()))
    })
    .await
}

#[cfg(test)]
mod tests;
