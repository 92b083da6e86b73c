//! A dump beside a copy of the volumes: where nobody wrote in between, the copy must hold what the dump's facts say.

use jiff::SignedDuration;

use crate::backup_set::{Commit, Kind, Measured, SetId};
use crate::control::{ControlPlane, OperationError, catalogue, failed};
use crate::exit::Exit;
use crate::facts::Facts;
use crate::pipeline::seal::unseal_bytes;
use crate::restore::Prepared;

use super::key;

/// How long before the copy a dump may have been made: the same night.
const SAME_NIGHT: SignedDuration = SignedDuration::from_hours(24);
/// Facts that are larger are not compared: they travel in the worker's job.
const LARGEST: u64 = 8 << 20;

/// The newest dump that was complete before `copy` was begun, in its lineage, and not long before.
fn dump_before<'s>(sets: &'s [Commit], copy: &Commit) -> Option<&'s Commit> {
    let before = |set: &&Commit| {
        let age = copy.started_at.duration_since(set.completed_at);
        set.kind == Kind::Dump && set.lineage == copy.lineage && !age.is_negative() && age <= SAME_NIGHT
    };
    sets.iter().filter(before).max_by_key(|set| set.completed_at)
}

/// The facts of the dump before the set of `prepared`, where there are any that can be read. What is wrong with another backup is
/// no reason not to prove this one.
pub(super) fn facts(control: &ControlPlane, prepared: &Prepared) -> Option<(SetId, Facts)> {
    let (repository, commit) = (&prepared.chosen.repository, &prepared.chosen.commit);
    let catalogue = catalogue::read(control, repository, Some(&commit.cluster));
    let found = catalogue
        .and_then(|catalogue| dump_before(&catalogue.sets, commit).map_or(Ok(None), |dump| read(prepared, dump)));
    found.unwrap_or_else(|error| {
        tracing::warn!("not compared with the dump before it: {}", error.chain());
        None
    })
}

fn read(prepared: &Prepared, dump: &Commit) -> Result<Option<(SetId, Facts)>, OperationError> {
    let what = || format!("the facts of {} cannot be read", dump.set);
    let keys = prepared.chosen.keys.as_ref();
    if dump.encryption.is_some() && keys.is_none() {
        return Ok(None);
    }
    let manifest = catalogue::manifest(&prepared.chosen.repository, dump, keys)?;
    let Some(object) = manifest.facts().filter(|object| object.plain.bytes <= LARGEST) else { return Ok(None) };
    let stored = prepared.chosen.repository.store().read_small(&key(dump.location().key(&object.name)), 2 * LARGEST);
    let stored = stored.map_err(failed(what()))?;
    let damaged = || OperationError::new(Exit::VerifyFailed, what());
    if Measured::of(&stored) != object.stored {
        return Err(damaged());
    }
    let plain = match keys.filter(|_| object.is_sealed()) {
        Some(keys) => unseal_bytes(&stored, keys).map_err(failed(what()))?,
        None => stored,
    };
    let facts =
        Facts::from_bytes(&plain).map_err(|error| OperationError { source: Some(Box::new(error)), ..damaged() })?;
    Ok(Some((dump.set.clone(), facts)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::example_manifest;

    #[test]
    fn only_the_last_dump_of_the_same_night_counts() {
        let hours = SignedDuration::from_hours;
        let copy = Commit { kind: Kind::Volume, ..Commit::to_manifest(&example_manifest(), b"") };
        let dump = |completed: SignedDuration| Commit {
            kind: Kind::Dump,
            started_at: copy.started_at + completed - SignedDuration::from_mins(5),
            completed_at: copy.started_at + completed,
            ..copy.clone()
        };
        let found = |sets: &[Commit]| dump_before(sets, &copy).map(|set| set.completed_at - copy.started_at);
        let [old, before, later] = [hours(-25), hours(-2), SignedDuration::from_secs(1)].map(dump);
        assert!(found(&[old.clone(), later.clone(), copy.clone()]).is_none());
        assert_eq!(dump_before(&[old, dump(hours(-3)), before.clone(), later], &copy), Some(&before));
        let elsewhere = Commit { lineage: "7412345678901234568-17".parse().expect("a lineage"), ..before };
        assert_eq!(dump_before(&[elsewhere], &copy), None);
    }
}
