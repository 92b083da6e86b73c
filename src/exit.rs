//! How the process ends. The numbers are a contract with scripts; `docs/exit-codes.md` lists them for users.

/// The exit code of `pglife`, and of every operation inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Ok = 0,
    /// The operation failed; the message says what is still safe.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Done, with something the operator should read.
    Warnings = 3,
    /// Refused: it needs `--yes`, would be unsafe, or is outside its window.
    Refused = 4,
    /// The named thing does not exist.
    NotFound = 5,
    /// `--plan --exit-code` found something to do.
    ChangesPending = 6,
    /// The repository is missing, unreachable, read-only or of a newer format.
    Repository = 10,
    /// Another run holds the cluster's lock.
    LockBusy = 11,
    /// A password, token or key was refused.
    Credentials = 12,
    /// Consul does not answer.
    Consul = 13,
    /// The Docker engine does not answer.
    Docker = 14,
    /// The PostgreSQL server does not answer.
    Postgres = 15,
    /// A drill showed that the backup does not restore.
    DrillFailed = 20,
    /// Verification found a corrupt or missing object.
    VerifyFailed = 21,
    /// The upgrade failed and was rolled back.
    UpgradeRolledBack = 22,
    /// The upgrade needs an operator.
    UpgradeNeedsOperator = 23,
    /// A freshness limit is exceeded.
    Stale = 30,
    /// A time limit passed.
    TimedOut = 124,
    /// Interrupted from the keyboard.
    Interrupted = 130,
    /// Asked to end by a signal.
    Terminated = 143,
}

impl Exit {
    /// The number the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }
}
