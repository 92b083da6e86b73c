//! The copies of one backup: a repository each, and each with its own verdict.
//!
//! ```text
//! Open ──▶ Committed        a step that fails in one repository ends that copy alone;
//!   └────▶ Failed           when no copy is open any more, the backup has failed
//! ```

use crate::cluster::RepoName;
use crate::control::{OperationError, Repositories};
use crate::exit::Exit;
use crate::state::Thing;
use crate::storage::{Key, Repository};

/// What became of one copy.
#[derive(Debug)]
pub struct Verdict {
    /// The repository.
    pub repository: RepoName,
    /// Why it does not hold the set; `None`: it does.
    pub failure: Option<OperationError>,
}

/// How the copies together make a backup good, degraded or failed. Pure.
///
/// `required` copies make a backup; with fewer it has failed, whatever was committed; with some missing it is degraded.
pub(super) fn exit(committed: usize, wanted: usize, required: usize) -> Exit {
    if committed == 0 || committed < required {
        Exit::Failed
    } else if committed < wanted {
        Exit::Warnings
    } else {
        Exit::Ok
    }
}

/// One copy under way.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) repository: RepoName,
    state: State,
    /// What was recorded as made for it, to be removed if it fails.
    pub(super) made: Vec<Thing>,
}

#[derive(Debug)]
enum State {
    Open(Under),
    Committed,
    Failed(Option<OperationError>),
}

/// A copy that is still good.
#[derive(Debug)]
pub(super) struct Under {
    pub(super) repository: Repository,
    /// The folder in which a local copy is put together.
    pub(super) staging: Option<Key>,
}

/// All copies of a backup.
#[derive(Debug)]
pub(super) struct Copies(Vec<Copy>);

impl Copies {
    /// One for each repository; those that do not answer have failed already.
    pub(super) fn of(repositories: Repositories) -> Self {
        let open = repositories.open.into_iter().map(|(name, repository)| Copy {
            repository: name,
            state: State::Open(Under { repository, staging: None }),
            made: vec![],
        });
        let failed = repositories.failed.into_iter().map(|(name, error)| Copy {
            repository: name,
            state: State::Failed(Some(error)),
            made: vec![],
        });
        Self(open.chain(failed).collect())
    }

    /// Does `step` for every copy that is still good. Fails when none is left then.
    pub(super) fn each(
        &mut self,
        mut step: impl FnMut(&RepoName, &mut Under, &mut Vec<Thing>) -> Result<(), OperationError>,
    ) -> Result<(), OperationError> {
        for copy in &mut self.0 {
            let State::Open(under) = &mut copy.state else { continue };
            if let Err(error) = step(&copy.repository, under, &mut copy.made) {
                copy.state = State::Failed(Some(error));
            }
        }
        self.unless_none()
    }

    /// The repositories of the copies that are still good.
    pub(super) fn repositories(&self) -> Vec<Repository> {
        let open = self.0.iter().filter_map(|copy| match &copy.state {
            State::Open(under) => Some(under.repository.clone()),
            State::Committed | State::Failed(_) => None,
        });
        open.collect()
    }

    /// The copy in `repository` has failed elsewhere.
    pub(super) fn fail(&mut self, repository: &RepoName, error: OperationError) {
        for copy in self.0.iter_mut().filter(|copy| copy.repository == *repository) {
            if matches!(copy.state, State::Open(_)) {
                copy.state = State::Failed(Some(error));
                return;
            }
        }
    }

    /// Every copy that is still good is complete.
    pub(super) fn committed(&mut self) {
        for copy in &mut self.0 {
            if matches!(copy.state, State::Open(_)) {
                copy.state = State::Committed;
            }
        }
    }

    fn unless_none(&mut self) -> Result<(), OperationError> {
        if self.0.iter().any(|copy| matches!(copy.state, State::Open(_) | State::Committed)) {
            return Ok(());
        }
        let first = self.0.iter_mut().find_map(|copy| match &mut copy.state {
            State::Failed(error) => error.take(),
            _ => None,
        });
        Err(first.unwrap_or_else(|| OperationError::new(Exit::Failed, "no repository holds the backup")))
    }

    /// What failed copies left.
    pub(super) fn leftovers(&self) -> impl Iterator<Item = &Thing> {
        self.0.iter().filter(|copy| matches!(copy.state, State::Failed(_))).flat_map(|copy| &copy.made)
    }

    /// What became of each.
    pub(super) fn verdicts(self) -> Vec<Verdict> {
        let verdict = |copy: Copy| Verdict {
            repository: copy.repository,
            failure: match copy.state {
                State::Open(_) | State::Committed => None,
                State::Failed(error) => error,
            },
        };
        self.0.into_iter().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copies_decide_together() {
        for (committed, wanted, required, expected) in [
            (1, 1, 1, Exit::Ok),
            (0, 1, 1, Exit::Failed),
            (2, 2, 1, Exit::Ok),
            (1, 2, 1, Exit::Warnings),
            (1, 2, 2, Exit::Failed),
            (2, 3, 2, Exit::Warnings),
            (0, 3, 0, Exit::Failed),
        ] {
            assert_eq!(exit(committed, wanted, required), expected, "{committed} of {wanted}, {required} required");
        }
    }
}
