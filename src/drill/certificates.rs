//! Writing certificates, each chained to the one before it in its lineage, and reading them.

use crate::backup_set::certificate::{Certificate, Verdict};
use crate::backup_set::{Commit, Digest, RecoveryTime};
use crate::cluster::RepoName;
use crate::control::{ControlPlane, OperationError, Repositories, catalogue, failed};
use crate::policy::Policy;
use crate::storage::{Repository, StorageError};

use super::key;

/// A certificate, and where it is.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Listed {
    /// The certificate.
    #[serde(flatten)]
    pub certificate: Certificate,
    /// The repositories that hold it.
    pub repositories: Vec<RepoName>,
    /// How long restores took up to this one, where it is a proof.
    pub recovery: Option<RecoveryTime>,
    /// False where the one before it in its lineage is not the one it names: something was changed or taken away.
    pub chained: bool,
}

/// Writes a certificate of the set of `commit`, if the repository holds the set. False where it does not.
pub(super) fn write(
    control: &ControlPlane,
    repository: &Repository,
    commit: &Commit,
    certificate: &Certificate,
) -> Result<bool, OperationError> {
    let what = || format!("the certificate of {} was not written", commit.set);
    let store = repository.store();
    match store.head(&key(commit.location().commit_key())) {
        Ok(_) => {}
        Err(StorageError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(failed(what())(error)),
    }
    let catalogue = catalogue::read(control, repository, Some(&commit.cluster))?;
    let mut written = catalogue::certificates(store, &catalogue.drilled)?;
    written.retain(|(other, _)| other.lineage == commit.lineage);
    let certificate = Certificate { previous: written.last().map(|(_, digest)| *digest), ..certificate.clone() };
    let place = key(commit.location().drill_key(certificate.ended_at));
    store.put(&place, &certificate.to_bytes()).map_err(failed(what()))?;
    Ok(true)
}

/// The certificates that the repositories of `policy` hold, oldest first.
pub fn list(
    control: &ControlPlane,
    policy: &Policy,
    repositories: &Repositories,
) -> Result<Vec<Listed>, OperationError> {
    let mut all: Vec<Listed> = Vec::new();
    for (name, repository) in &repositories.open {
        let catalogue = catalogue::read(control, repository, Some(&policy.name))?;
        let held = catalogue::certificates(repository.store(), &catalogue.drilled)?;
        for (place, (certificate, _)) in held.iter().enumerate() {
            let chained = is_chained(certificate, &held[..place]);
            // The same drill in another repository differs in nothing but the one before it.
            let same = all.iter_mut().find(|listed| {
                listed.certificate.set == certificate.set && listed.certificate.ended_at == certificate.ended_at
            });
            if let Some(listed) = same {
                listed.repositories.push(name.clone());
                listed.chained &= chained;
            } else {
                let certificate = certificate.clone();
                all.push(Listed { certificate, repositories: vec![name.clone()], recovery: None, chained });
            }
        }
    }
    all.sort_by_key(|listed| listed.certificate.ended_at);
    for place in 0..all.len() {
        all[place].recovery = recovery(&all[..=place]);
    }
    Ok(all)
}

/// How long restores took up to the last one of these, where that is a proof, by its own budget.
fn recovery(until: &[Listed]) -> Option<RecoveryTime> {
    let last = &until.last()?.certificate;
    let certificates = until.iter().map(|listed| &listed.certificate);
    let measured = RecoveryTime::measured(certificates, last.lineage, last.kind, last.rto_budget_seconds)?;
    (last.verdict == Verdict::Proven).then_some(measured)
}

/// Whether `certificate` follows the last one before it in its lineage.
fn is_chained(certificate: &Certificate, before: &[(Certificate, Digest)]) -> bool {
    let last = before.iter().rev().find(|(other, _)| other.lineage == certificate.lineage);
    certificate.previous == last.map(|(_, digest)| *digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::certificate::tests::example;

    #[test]
    fn what_was_changed_or_taken_away_breaks_the_chain() {
        let digest = |certificate: &Certificate| Digest::of(&certificate.to_bytes());
        let first = Certificate { previous: None, ..example() };
        let second = Certificate { previous: Some(digest(&first)), ..example() };
        let stored = |certificate: &Certificate| (certificate.clone(), digest(certificate));
        assert!(is_chained(&first, &[]));
        assert!(is_chained(&second, &[stored(&first)]));
        assert!(!is_chained(&second, &[]));
        let changed = Certificate { rto_seconds: 0.5, ..first };
        assert!(!is_chained(&second, &[stored(&changed)]));
    }
}
