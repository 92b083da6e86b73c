//! The set that a restore reads.

use std::path::Path;

use super::Plan;
use super::plan::{PlanError, Wanted, plan_restore};
use super::volume::plan_volume_restore;
use crate::backup_set::{Ancestor, Commit, Kind, Manifest, Selector, SetLocation};
use crate::cluster::{PgMajor, RepoName};
use crate::control::{ControlPlane, Found, OperationError, Reach, failed, or_elsewhere, worker_threads};
use crate::docker::worker::WorkerMount;
use crate::encryption::Keys;
use crate::policy::Policy;
use crate::state::HeldLock;
use crate::storage::Repository;
use crate::worker::SET_FOLDER;

/// A set that is about to be restored: found, read, and held.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The repository that is read.
    pub(crate) repository_name: RepoName,
    pub(crate) repository: Repository,
    pub(crate) commit: Commit,
    /// Other repositories that hold it.
    pub(crate) elsewhere: Vec<RepoName>,
    pub(crate) manifest: Manifest,
    pub(crate) keys: Option<Keys>,
    /// It is not deleted while it is read, nor what it builds on.
    _held: Vec<HeldLock>,
}

impl Chosen {
    /// Finds the set of `policy` that `backup` selects.
    pub(crate) fn find(
        control: &ControlPlane,
        policy: &Policy,
        (backup, repository, identity): (&Selector, Option<&RepoName>, Option<&Path>),
        what: &str,
    ) -> Result<Self, OperationError> {
        let repositories = control.repositories_of(policy, repository)?;
        let Found { name: repository_name, repository, commit, elsewhere } =
            repositories.find(control, policy, backup)?;
        let repository = repository.clone();
        let mut held = vec![control.state.hold_set(&commit.set).map_err(failed(what))?];
        let (manifest, keys) = control.manifest(&repository, &commit, identity).map_err(or_elsewhere(&elsewhere))?;
        let ancestors = manifest.ancestors().iter().map(|ancestor| &ancestor.set);
        held.extend(control.state.hold_sets(ancestors).map_err(failed(what))?);
        Ok(Self { repository_name, repository, commit, elsewhere, manifest, keys, _held: held })
    }

    /// What its restore into a server of `major` will do.
    pub(crate) fn plan(&self, major: PgMajor, wanted: &Wanted, what: &str) -> Result<Plan, OperationError> {
        let (manifest, threads) = (&self.manifest, worker_threads());
        let plan = match manifest.kind {
            Kind::Dump => plan_restore(manifest, major, wanted, threads).map(|plan| Plan::Dump(Box::new(plan))),
            Kind::Volume => {
                plan_volume_restore(manifest, major, wanted, threads).map(|plan| Plan::Volume(Box::new(plan)))
            }
        };
        plan.map_err(refused(what))
    }

    /// Where a worker reads it.
    pub(crate) fn source(&self) -> Source {
        Source::in_place(&self.repository, &self.commit, self.manifest.ancestors())
    }
}

/// Why something cannot be done with it.
pub(crate) fn refused(what: &str) -> impl FnOnce(PlanError) -> OperationError {
    move |error| {
        let refused = OperationError::new(error.exit(), format!("{what}: {error}"));
        match error.next() {
            Some(next) => refused.next(next),
            None => refused,
        }
    }
}

/// Where workers read the objects of a set, and of those that it builds on.
#[derive(Debug)]
pub(crate) struct Source {
    /// The set itself.
    pub(crate) own: Reach,
    /// What it builds on, nearest first.
    pub(crate) ancestors: Vec<Reach>,
}

impl Source {
    /// Where the repository has them.
    pub(crate) fn in_place(repository: &Repository, commit: &Commit, ancestors: &[Ancestor]) -> Self {
        Self::of(commit, ancestors, |location, place| {
            let mount_point = if place == 0 { SET_FOLDER.to_owned() } else { format!("{SET_FOLDER}-{place}") };
            Reach::in_place(repository, location, &mount_point)
        })
    }

    /// The set itself is at place 0, what it builds on from 1 on.
    fn of(commit: &Commit, ancestors: &[Ancestor], reach: impl Fn(&SetLocation, usize) -> Reach) -> Self {
        let beside = |ancestor: &Ancestor| SetLocation { id: ancestor.set.clone(), ..commit.location() };
        let ancestors = ancestors.iter().zip(1..).map(|(ancestor, place)| reach(&beside(ancestor), place)).collect();
        Self { own: reach(&commit.location(), 0), ancestors }
    }

    /// How a process on this machine reaches them.
    pub(crate) fn from_here(repository: &Repository, commit: &Commit, ancestors: &[Ancestor]) -> Self {
        Self::of(commit, ancestors, |location, _| Reach::from_here(repository, location))
    }

    /// What a worker must see for it; nothing: it lies in a bucket.
    pub(crate) fn mounts(&self) -> Vec<WorkerMount> {
        std::iter::once(&self.own).chain(&self.ancestors).filter_map(|reach| reach.mount.clone()).collect()
    }
}
