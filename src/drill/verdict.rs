//! What the checks of a drill come to, and whose fault a restore is that failed. Pure.

use std::fmt;

use crate::backup_set::certificate::{Check, Outcome};
use crate::backup_set::{Kind, Manifest};
use crate::cluster::PgMajor;
use crate::control::OperationError;
use crate::exit::Exit;
use crate::worker::Trouble;
use crate::worker::check::FILES;
use crate::worker::session::SessionError;

/// What a drill comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Everything that must be checked was, and all of it is as it should be.
    Proven,
    /// The backup is at fault.
    Bad,
    /// Neither: these checks could not be made.
    Unknown(Vec<String>),
}

impl fmt::Display for Judgement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proven => out.write_str("proven"),
            Self::Bad => out.write_str("bad"),
            Self::Unknown(missing) => write!(out, "not judged ({})", missing.join(", ")),
        }
    }
}

/// The checks without which a set of `kind` is not proven.
pub(super) fn required(kind: Kind, manifest: Option<&Manifest>) -> Vec<&'static str> {
    let mut required = vec!["restore", "databases"];
    match kind {
        Kind::Dump => required.push("facts"),
        Kind::Volume => {
            required.push("control data");
            if let Some(manifest) = manifest {
                if data_directory_with_manifest(manifest).is_some() {
                    required.push(FILES);
                }
                if manifest.server.data_checksums {
                    required.push("page checksums");
                }
                if looks_at_structure(manifest.server.major) {
                    required.push("structure");
                }
            }
        }
    }
    required
}

/// Whether the server of this major has `pg_amcheck` (release notes of 14).
pub(crate) fn looks_at_structure(major: PgMajor) -> bool {
    major.is_at_least(14)
}

/// The data directory of a copy that has the server's own manifest of it, and a server with `pg_verifybackup` (release notes of 13).
pub(super) fn data_directory_with_manifest(manifest: &Manifest) -> Option<&str> {
    let (_, copy) = manifest.volume()?;
    (copy.server_files > 0 && manifest.server.major.is_at_least(13)).then_some(copy.pgdata.as_str())
}

/// One failure is enough; a proof needs every check, and every required one among them.
pub(super) fn judge(checks: &[Check], required: &[&str]) -> Judgement {
    if checks.iter().any(|check| check.outcome == Outcome::Failed) {
        return Judgement::Bad;
    }
    let unknown = checks.iter().filter(|check| check.outcome == Outcome::Unknown).map(|check| check.name.as_str());
    let missing = required.iter().copied().filter(|name| !checks.iter().any(|check| check.name == *name));
    let open: Vec<String> = unknown.chain(missing).map(str::to_owned).collect();
    // No checks at all are no proof, whatever is required.
    if open.is_empty() && !checks.is_empty() { Judgement::Proven } else { Judgement::Unknown(open) }
}

/// Words of servers and tools about the machine they run on.
const OF_THE_MACHINE: [&str; 12] = [
    "No space left on device",
    "Disk quota exceeded",
    "out of memory",
    "Cannot allocate memory",
    "could not fork",
    "Too many open files",
    "server closed the connection",
    "terminating connection",
    "Connection refused",
    "Is the server running",
    "Input/output error",
    "Read-only file system",
];

/// Whether an object of the backup is missing or damaged.
pub(super) fn is_damage(error: &OperationError) -> bool {
    error.exit == Exit::VerifyFailed || matches!(trouble(error), Some(Trouble::Damaged))
}

fn trouble(error: &OperationError) -> Option<Trouble> {
    let source = error.source.as_ref()?.downcast_ref::<SessionError>()?;
    match source {
        SessionError::Failed { trouble, .. } => Some(*trouble),
        _ => None,
    }
}

/// Whether a restore failed because of the backup, and not because of the machine, the engine, the repository or a key. In
/// doubt it was not: a good backup must not be called bad for a full disk.
pub(super) fn is_the_backups_fault(error: &OperationError, kind: Kind) -> bool {
    if is_damage(error) {
        return true;
    }
    let said = error.chain();
    if OF_THE_MACHINE.iter().any(|words| said.contains(words)) {
        return false;
    }
    match (kind, trouble(error)) {
        // What pg_restore or psql refuse.
        (_, Some(Trouble::Tool)) => true,
        // A server that does not start on the files says why in its log, which the error quotes.
        (Kind::Volume, _) => error.exit != Exit::Docker && (said.contains("PANIC:") || said.contains("FATAL:")),
        (Kind::Dump, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(name: &str, outcome: Outcome) -> Check {
        Check { name: name.to_owned(), outcome, found: vec![], seconds: 0.0 }
    }

    fn error(trouble: Trouble, message: &str) -> OperationError {
        let source = SessionError::Failed { trouble, message: message.to_owned() };
        OperationError { source: Some(Box::new(source)), ..OperationError::new(trouble.exit(), "drill failed") }
    }

    #[test]
    fn no_checks_are_no_proof() {
        assert_eq!(judge(&[], &[]), Judgement::Unknown(vec![]));
        assert_eq!(judge(&[], &["facts"]), Judgement::Unknown(vec!["facts".to_owned()]));
        let others = [check("restore", Outcome::Passed), check("databases", Outcome::Passed)];
        let required = required(Kind::Dump, None);
        assert_eq!(judge(&others, &required), Judgement::Unknown(vec!["facts".to_owned()]));
    }

    #[test]
    fn whose_fault_it_is() {
        let fault = |trouble, message| is_the_backups_fault(&error(trouble, message), Kind::Dump);
        assert!(fault(Trouble::Damaged, "db/chado.dump.zst is damaged"));
        assert!(fault(Trouble::Tool, "pg_restore: error: could not execute query"));
        for (trouble, message) in [
            (Trouble::Tool, "pg_restore: error: could not extend file: No space left on device"),
            (Trouble::Tool, "pg_restore: error: server closed the connection unexpectedly"),
            (Trouble::Full, "the scratch volume"),
            (Trouble::Key, "no key"),
            (Trouble::Server, "it does not answer"),
            (Trouble::Repository, "it is gone"),
            (Trouble::Cancelled, "cancelled"),
            (Trouble::Other, "a bug"),
        ] {
            assert!(!fault(trouble, message), "{trouble:?} {message}");
        }
        let unstarted = |log: &str| {
            let what = format!("drill failed: the server does not answer; its log ends with:\n{log}");
            is_the_backups_fault(&OperationError::new(Exit::Postgres, what), Kind::Volume)
        };
        assert!(unstarted("PANIC:  could not locate a valid checkpoint record"));
        assert!(!unstarted("FATAL:  could not write lock file: No space left on device"));
        assert!(!unstarted("LOG:  redo in progress"));
    }

    proptest! {
        /// Nothing but passed checks, with every required one among them, is a proof.
        #[test]
        fn a_proof_needs_every_check(
            outcomes in proptest::collection::vec((0usize..5, 0u8..3), 0..7),
        ) {
            let names = ["restore", "databases", "facts", "assertion a", "assertion b"];
            let outcome = |number| [Outcome::Passed, Outcome::Failed, Outcome::Unknown][usize::from(number)];
            let checks: Vec<Check> = outcomes.iter().map(|(name, number)| check(names[*name], outcome(*number))).collect();
            let required = required(Kind::Dump, None);
            let all = |wanted| checks.iter().all(|check| check.outcome == wanted);
            let there = required.iter().all(|name| checks.iter().any(|check| check.name == *name));
            let expected_proof = all(Outcome::Passed) && there;
            match judge(&checks, &required) {
                Judgement::Proven => prop_assert!(expected_proof),
                Judgement::Bad => prop_assert!(checks.iter().any(|check| check.outcome == Outcome::Failed)),
                Judgement::Unknown(open) => prop_assert!(!expected_proof && !open.is_empty()),
            }
        }
    }
}
