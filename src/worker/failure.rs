//! How a worker fails: what kind of trouble it is, for the control plane, and in words, for whoever reads them.

use serde::{Deserialize, Serialize};

use crate::causes;
use crate::exit::Exit;
use crate::pipeline::PipelineError;
use crate::postgres::PostgresError;
use crate::storage::StorageError;

/// Kinds of trouble the control plane tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The request cannot be done as it was asked.
    Request,
    /// The backup does not have what was asked for.
    Absent,
    /// The server refused the login.
    Credentials,
    /// No key is there that opens the backup.
    Key,
    /// The server does not answer.
    Server,
    /// A tool is not in the image.
    ToolMissing,
    /// A tool failed.
    Tool,
    /// The repository or scratch space is full.
    Full,
    /// The repository cannot be read or written.
    Repository,
    /// The repository's service refuses the credentials, or what they ask for.
    RepositoryCredentials,
    /// An object is missing, damaged or not the one recorded.
    Damaged,
    /// The control plane went away or asked to stop.
    Cancelled,
    /// Anything else.
    Other,
}

impl Trouble {
    /// How the process ends for it.
    pub fn exit(self) -> Exit {
        match self {
            Self::Credentials | Self::Key | Self::RepositoryCredentials => Exit::Credentials,
            Self::Server => Exit::Postgres,
            Self::Absent | Self::ToolMissing => Exit::NotFound,
            Self::Repository => Exit::Repository,
            Self::Damaged => Exit::VerifyFailed,
            Self::Cancelled => Exit::Interrupted,
            Self::Request | Self::Tool | Self::Full | Self::Other => Exit::Failed,
        }
    }
}

/// A request that failed, inside the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of trouble.
    pub trouble: Trouble,
    /// What failed and why.
    pub message: String,
}

impl Failure {
    /// A failure of the given kind.
    pub fn new(trouble: Trouble, message: impl Into<String>) -> Self {
        Self { trouble, message: message.into() }
    }

    /// `what` failed because of `error`, with its whole chain.
    pub fn from_error(trouble: Trouble, what: &str, error: &dyn std::error::Error) -> Self {
        Self { trouble, message: format!("{what}: {}", causes::chain(error)) }
    }
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        use PostgresError as E;
        let trouble = match &error {
            E::Credentials { .. } | E::NotSuperuser { .. } => Trouble::Credentials,
            E::Unreachable { .. } | E::BackupModeLost { .. } => Trouble::Server,
            E::Cancelled => Trouble::Cancelled,
            E::ToolMissing { .. } => Trouble::ToolMissing,
            E::Query { .. } | E::ToolNotRun { .. } => Trouble::Tool,
        };
        match std::error::Error::source(&error) {
            Some(source) => Self::new(trouble, format!("{error}: {source}")),
            None => Self::new(trouble, error.to_string()),
        }
    }
}

/// A failure of the store, of the kind the control plane tells apart.
pub(super) fn storage_failure(what: &str, error: &StorageError) -> Failure {
    use StorageError as E;
    let trouble = match error {
        E::Full { .. } | E::OutOfQuota { .. } => Trouble::Full,
        E::NoCredentials { .. }
        | E::CredentialsRefused { .. }
        | E::CredentialsExpired { .. }
        | E::NotPermitted { .. } => Trouble::RepositoryCredentials,
        E::NotFound { .. } => Trouble::Damaged,
        other if other.exit() == Exit::Repository => Trouble::Repository,
        _ => Trouble::Other,
    };
    Failure::from_error(trouble, what, error)
}

/// The same of writing: what is not there any more was taken away by somebody else, and no backup is damaged by it.
pub(super) fn writing_failure(what: &str, error: &StorageError) -> Failure {
    match error {
        StorageError::NotFound { .. } => {
            let what = format!("{what}: something else removed what was written of it");
            Failure::from_error(Trouble::Repository, &what, error)
        }
        _ => storage_failure(what, error),
    }
}

/// A failure of a stream, of the kind the control plane tells apart.
pub(super) fn pipeline_failure(what: &str, error: &PipelineError) -> Failure {
    let io_trouble = |source: &std::io::Error| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Trouble::Full,
        _ => match source.get_ref().and_then(|inner| inner.downcast_ref::<StorageError>()) {
            Some(error) => storage_failure(what, error).trouble,
            None => Trouble::Other,
        },
    };
    let trouble = match error {
        PipelineError::Corrupt(_) => Trouble::Damaged,
        PipelineError::WrongKey => Trouble::Key,
        PipelineError::Cancelled => Trouble::Cancelled,
        PipelineError::Sink { source, .. } | PipelineError::Object { source } => io_trouble(source),
        _ => Trouble::Other,
    };
    Failure::from_error(trouble, what, error)
}
