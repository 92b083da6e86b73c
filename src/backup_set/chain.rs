//! Which set builds on which.

use std::collections::BTreeMap;

use super::{Commit, SetId};

/// The parents of sets.
#[derive(Debug)]
pub struct Parents<'s>(BTreeMap<&'s SetId, &'s SetId>);

impl<'s> Parents<'s> {
    /// Those of `sets`.
    pub fn of(sets: impl IntoIterator<Item = &'s Commit>) -> Self {
        Self(sets.into_iter().filter_map(|commit| Some((&commit.set, commit.parent.as_ref()?))).collect())
    }

    /// What `set` builds on, nearest first; the last one may be a set that is not there.
    pub fn ancestors<'a>(&'a self, set: &'a SetId) -> impl Iterator<Item = &'s SetId> + 'a {
        let chain = std::iter::successors(self.0.get(set).copied(), |set| self.0.get(*set).copied());
        // No chain is longer than all sets, whatever a damaged one says of its parents.
        chain.take(self.0.len())
    }
}
