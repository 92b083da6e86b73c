//! The repositories of a policy: those that answer, and why the others do not. One that is down keeps nobody from the rest.
//!
//! Each is known by its id (`state.db`), so that another one in its place, a swapped disk, is not taken for it.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::backup_set::certificate::Verdict;
use crate::backup_set::{Certificate, Commit, Selector, SetId};
use crate::cluster::RepoName;
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::retention::Pinning;
use crate::storage::{Location, Repository, StorageError};

use super::catalogue::{self, Certificates, Pins};
use super::{Advise as _, ControlPlane, OperationError, failed};

/// What a policy's repositories are at the moment.
#[derive(Debug)]
pub struct Repositories {
    /// Those that answer, in the policy's order; at least one.
    pub open: Vec<(RepoName, Repository)>,
    /// Those that do not.
    pub failed: Vec<(RepoName, OperationError)>,
}

/// A committed set, and the repositories that hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The set.
    pub commit: Commit,
    /// Where it is, in the policy's order.
    pub repositories: Vec<RepoName>,
    /// The pin it has in one of them.
    pub pin: Pinning,
    /// What the last drill of it found, as the certificates in all of them tell.
    pub judged: Option<Certificate>,
}

impl Held {
    /// The certificate that says it is good, where its last one does.
    pub fn proof(&self) -> Option<&Certificate> {
        self.judged.as_ref().filter(|certificate| certificate.verdict == Verdict::Proven)
    }

    /// The certificate that says it is bad, where its last one does.
    pub fn disproof(&self) -> Option<&Certificate> {
        self.judged.as_ref().filter(|certificate| certificate.verdict == Verdict::Bad)
    }
}

/// The sets of several repositories.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Committed sets, oldest first by completion time.
    pub sets: Vec<Held>,
    /// What could not be read.
    pub problems: Vec<OperationError>,
}

impl ControlPlane {
    /// Opens the repository called `name`. One that was never seen is remembered; another one in the place of one that was is
    /// refused: mostly its disk was swapped.
    pub fn repository(&self, name: &RepoName) -> Result<Repository, OperationError> {
        let repository = self.open_repository(name)?;
        let (place, id) = (repository.store().place(None).to_string(), repository.id().to_string());
        let cannot = || format!("repository \"{name}\" cannot be used");
        let known = self.state.known_repositories(name, &place).map_err(failed(cannot()))?;
        if known.is_empty() {
            self.accept_repository(name, &repository)?;
        } else if known.iter().all(|(known, _)| *known != id) {
            let ids: Vec<String> = known.iter().map(|(id, since)| format!("{id} since {since}")).collect();
            let what = format!(
                "{}: at {place} lies another repository than before: its id is {id}, known is {} (if it belongs there: pglife repo \
                 check {name} --accept)",
                cannot(),
                ids.join(", and ")
            );
            let next = format!(
                "if a disk was swapped by mistake, mount the right one; if this one belongs there, say so once: pglife repo check \
                 {name} --accept"
            );
            return Err(OperationError::new(Exit::Repository, what).safe("nothing in it was touched").next(next));
        }
        Ok(repository)
    }

    /// From now on `repository` is one of those that may lie in the place of `name`.
    pub fn accept_repository(&self, name: &RepoName, repository: &Repository) -> Result<(), OperationError> {
        let (place, id) = (repository.store().place(None).to_string(), repository.id().to_string());
        let kept = self.state.know_repository(name, &place, &id, Timestamp::now());
        kept.map_err(failed(format!("repository \"{name}\" cannot be remembered")))
    }

    /// Opens the repository called `name`, whichever it is.
    pub fn open_repository(&self, name: &RepoName) -> Result<Repository, OperationError> {
        let location = self.location(name)?;
        Repository::open(&location).map_err(|error| {
            let next = match (&error, &location) {
                (StorageError::Missing { .. } | StorageError::NotARepository { .. }, Location::Local { folder }) => {
                    Some(format!(
                        "if {} is a disk that is not mounted, mount it; if the repository is new, run: pglife repo init {name}",
                        folder.display()
                    ))
                }
                (_, Location::Local { folder }) => Some(format!("look at {} and its owner and mode", folder.display())),
                (StorageError::NotARepository { .. }, Location::S3(_)) => Some(format!(
                    "if `bucket` and `prefix` are right and the repository is new, run: pglife repo init {name}"
                )),
                (_, Location::S3(_)) => error.next(),
            };
            OperationError { next, ..failed(format!("repository \"{name}\" cannot be used"))(error) }
        })
    }

    /// Opens the repositories that `policy` backs up to, or the one called `choice`. Fails when none can be used.
    pub fn repositories_of(&self, policy: &Policy, choice: Option<&RepoName>) -> Result<Repositories, OperationError> {
        let names = choice.map_or(&policy.dump.repositories[..], std::slice::from_ref);
        let mut repositories = Repositories { open: vec![], failed: vec![] };
        for name in names {
            match self.repository(name) {
                Ok(repository) => repositories.open.push((name.clone(), repository)),
                Err(error) => repositories.failed.push((name.clone(), error)),
            }
        }
        repositories.unless_none(policy)
    }
}

impl Repositories {
    /// Rules out those that cannot be written.
    pub fn writable(mut self, policy: &Policy, what: &str) -> Result<Self, OperationError> {
        for (name, repository) in std::mem::take(&mut self.open) {
            match repository.store().check_writable() {
                Ok(()) => self.open.push((name, repository)),
                Err(error) => {
                    let error = failed(format!("{what}: repository \"{name}\" cannot be written"))(error);
                    self.failed.push((name, error));
                }
            }
        }
        self.unless_none(policy)
    }

    fn unless_none(mut self, policy: &Policy) -> Result<Self, OperationError> {
        if !self.open.is_empty() {
            return Ok(self);
        }
        if self.failed.is_empty() {
            return Err(OperationError::new(Exit::Usage, format!("cluster \"{}\" has no repository", policy.name))
                .next("name one in its policy: [backup.dump] repos = [\"local\"]"));
        }
        Err(self.failed.swap_remove(0).1)
    }

    /// What they hold of the policy's cluster.
    pub fn holdings(&self, control: &ControlPlane, policy: &Policy) -> Result<Holdings, OperationError> {
        let mut holdings = Holdings::default();
        let mut first_problem = None;
        let mut read = 0;
        for (name, repository) in &self.open {
            let looked = catalogue::read(control, repository, Some(&policy.name)).and_then(|catalogue| {
                let pins = catalogue::pins(repository.store(), &catalogue)?;
                Ok((pins, catalogue::judged(repository.store(), &catalogue)?, catalogue))
            });
            match looked {
                Ok((pins, judged, catalogue)) => {
                    read += 1;
                    holdings.add(name, catalogue.sets, pins, judged);
                    holdings.problems.extend(catalogue.unreadable.into_iter().map(|unreadable| unreadable.error));
                }
                Err(error) if first_problem.is_none() => first_problem = Some(error),
                Err(error) => holdings.problems.push(error),
            }
        }
        match first_problem {
            Some(error) if read == 0 => return Err(error),
            error => holdings.problems.extend(error),
        }
        holdings.sets.sort_by(|a, b| a.commit.order().cmp(&b.commit.order()));
        Ok(holdings)
    }

    /// The set that `selector` means, in the first repository that holds it. What could not be looked at is logged: it may
    /// hold more.
    pub fn find(
        &self,
        control: &ControlPlane,
        policy: &Policy,
        selector: &Selector,
    ) -> Result<Found<'_>, OperationError> {
        let holdings = self.holdings(control, policy)?;
        for problem in holdings.problems.iter().chain(self.failed.iter().map(|(_, error)| error)) {
            tracing::warn!("{}", problem.chain());
        }
        let Held { commit, mut repositories, .. } = holdings.select(policy, selector)?.clone();
        let name = repositories.remove(0);
        let (_, repository) = self.open.iter().find(|(open, _)| *open == name).expect("it was read");
        Ok(Found { name, repository, commit, elsewhere: repositories })
    }
}

/// A set, and where it is read from.
#[derive(Debug)]
pub struct Found<'a> {
    /// The name of the first repository that holds it.
    pub name: RepoName,
    /// That repository.
    pub repository: &'a Repository,
    /// The set.
    pub commit: Commit,
    /// The other repositories that hold it.
    pub elsewhere: Vec<RepoName>,
}

/// `error`, and where a set that turned out to be damaged is held too.
pub fn or_elsewhere(elsewhere: &[RepoName]) -> impl Fn(OperationError) -> OperationError {
    move |error| match elsewhere.first() {
        Some(other) if error.exit == Exit::VerifyFailed => {
            let way_out = format!("repository \"{other}\" holds this backup too: --repo {other}");
            OperationError {
                next: Some(error.next.map_or(way_out.clone(), |next| format!("{way_out}; {next}"))),
                ..error
            }
        }
        _ => error,
    }
}

impl Holdings {
    /// The set that `selector` means.
    pub fn select(&self, policy: &Policy, selector: &Selector) -> Result<&Held, OperationError> {
        let commits: Vec<Commit> = self.sets.iter().map(|held| held.commit.clone()).collect();
        let commit = selector
            .select(&commits, |set| self.sets.iter().any(|held| held.commit.set == *set && held.proof().is_some()))
            .map_err(failed(format!("cluster \"{}\": no such backup", policy.name)))?;
        Ok(self.sets.iter().find(|held| held.commit.set == commit.set).expect("it was selected from them"))
    }

    fn add(&mut self, repository: &RepoName, sets: Vec<Commit>, mut pins: Pins, mut judged: Certificates) {
        let mut known: HashMap<SetId, usize> =
            self.sets.iter().enumerate().map(|(place, held)| (held.commit.set.clone(), place)).collect();
        for commit in sets {
            let pin = pins.remove(&(commit.lineage, commit.set.clone())).unwrap_or(Pinning::Absent);
            if let Some(&place) = known.get(&commit.set) {
                let held = &mut self.sets[place];
                held.repositories.push(repository.clone());
                // A repository that was away misses certificates; the last one counts.
                let judged = held.judged.take().into_iter().chain(judged.remove(&commit.set));
                held.judged = judged.max_by_key(|certificate| certificate.ended_at);
                if held.pin == Pinning::Absent {
                    held.pin = pin;
                }
            } else {
                known.insert(commit.set.clone(), self.sets.len());
                let judged = judged.remove(&commit.set);
                self.sets.push(Held { commit, repositories: vec![repository.clone()], pin, judged });
            }
        }
    }
}
