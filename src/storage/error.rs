//! What can go wrong with a repository.

use std::io;

use crate::exit::Exit;

use super::{KeyError, Place};

/// What a service said, or why it could not be asked.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a repository did not do what it was asked to.
///
/// Whatever the variant: objects that were committed before are as they were.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The root is not there.
    #[error(
        "the repository {root} does not exist: mount its disk, correct the path, or create it with `pglife repo init`"
    )]
    Missing {
        /// Where it should be.
        root: Place,
    },
    /// The root is there, but no repository is in it.
    #[error(
        "{root} is not a pglife repository ({why}): if its disk is not mounted, mount it; if the place is right and empty, run `pglife repo init`"
    )]
    NotARepository {
        /// The folder.
        root: Place,
        /// What shows it.
        why: String,
    },
    /// A repository cannot be made in a folder that holds something else.
    #[error(
        "no repository is made in {root}: it already holds {found:?}, which pglife did not write; name an empty folder"
    )]
    NotEmpty {
        /// The folder.
        root: Place,
        /// The first name found in it.
        found: String,
    },
    /// The repository was written by a later pglife.
    #[error(
        "the repository {root} has format {found}, this pglife knows up to {supported}: nothing was touched; use the pglife that wrote it, or a later one"
    )]
    NewerFormat {
        /// The repository.
        root: Place,
        /// Its format.
        found: u64,
        /// The newest format known here.
        supported: u64,
    },
    /// No object has this key.
    #[error("{path} does not exist in the repository")]
    NotFound {
        /// Where it would be.
        path: Place,
    },
    /// The key is taken; objects are never overwritten.
    #[error("{path} exists already, and objects are never overwritten: it is as it was")]
    AlreadyExists {
        /// Where it is.
        path: Place,
    },
    /// The file system is mounted read-only, or pglife may not write there.
    #[error(
        "{path} cannot be written: check that its file system is mounted read-write and who owns the folder; what is stored is intact"
    )]
    ReadOnly {
        /// What was to be written.
        path: Place,
        /// What the system said.
        source: io::Error,
    },
    /// pglife may not read there.
    #[error("{path} may not be read: check its owner and mode")]
    Denied {
        /// What was to be read.
        path: Place,
        /// What the system said.
        source: io::Error,
    },
    /// The disk or the quota is full.
    #[error(
        "no space left for {path} ({free} bytes free): this object was not stored, everything committed before is intact; free some space, then try again"
    )]
    Full {
        /// What was to be written.
        path: Place,
        /// Bytes free now; more than 0 where a quota or a reserve ends before the disk.
        free: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The object is larger than an object of its kind can be.
    #[error("{path} has {bytes} bytes, where at most {limit} make sense: it was not read")]
    TooLarge {
        /// Where it is.
        path: Place,
        /// Its size.
        bytes: u64,
        /// The most that was accepted.
        limit: u64,
    },
    /// An upload whose write failed cannot be committed.
    #[error("{path} was not stored: a write to it had failed")]
    Incomplete {
        /// Where it would be.
        path: Place,
    },
    /// The store confirmed what it does not hold.
    #[error("{path}: {bytes} bytes were written and confirmed, and {} there", match found {
        None => "nothing is".to_owned(),
        Some(found) if found == bytes => "other bytes are".to_owned(),
        Some(found) => format!("{found} are"),
    })]
    Lost {
        /// The object.
        path: Place,
        /// What was written.
        bytes: u64,
        /// How much of it is there.
        found: Option<u64>,
    },
    /// The store forbids the deletion until a time: Object Lock.
    #[error("{path} is locked{}: it stays until then", until.map(|until| format!(" until {until}")).unwrap_or_default())]
    Locked {
        /// What was to be deleted.
        path: Place,
        /// When the lock ends, where the store says so.
        until: Option<jiff::Timestamp>,
    },
    /// The name cannot be an object's.
    #[error(transparent)]
    Name(#[from] KeyError),
    /// The service does not answer.
    #[error("{path} cannot be reached: see whether the S3 service runs and whether `endpoint` in pglife.toml is right")]
    Unreachable {
        /// What was to be reached.
        path: Place,
        /// Why not.
        source: Cause,
    },
    /// The service's certificate is signed by nobody we trust, or is not for its name.
    #[error(
        "{path} cannot be reached: the certificate of the S3 service is not trusted; name the certificate of the authority that signed it as `ca_file`"
    )]
    Untrusted {
        /// What was to be reached.
        path: Place,
        /// What is wrong with it.
        source: Cause,
    },
    /// There is no such bucket.
    #[error(
        "{path} cannot be used: the bucket \"{bucket}\" does not exist; correct `bucket`, `endpoint` and `region`, or create it (pglife never creates a bucket)"
    )]
    NoBucket {
        /// What was to be used.
        path: Place,
        /// The bucket's name.
        bucket: String,
    },
    /// The bucket is in another region, or the service has another name for its region.
    #[error("{path} is in another region than \"{region}\": correct `region` in pglife.toml")]
    WrongRegion {
        /// What was to be used.
        path: Place,
        /// The region that was used.
        region: String,
        /// What the service said.
        source: Cause,
    },
    /// There are no credentials to ask with.
    #[error("there are no credentials for {path}: {why}")]
    NoCredentials {
        /// What they would be for.
        path: Place,
        /// Where they were looked for, and what was found.
        why: String,
        /// What the system said.
        source: Option<Cause>,
    },
    /// The service does not accept the credentials.
    #[error(
        "the S3 service does not accept the credentials for {path}: they are wrong, revoked or expired; renew `credentials_file`, the AWS_… variables or the instance's role"
    )]
    CredentialsRefused {
        /// What was to be used.
        path: Place,
        /// What the service said.
        source: Cause,
    },
    /// The credentials were temporary, and are over.
    #[error(
        "the credentials for {path} have expired, and no newer ones came: those of the instance's role and of `credentials_file` are looked for again while a run goes on, those of AWS_SESSION_TOKEN last as long as they last; let newer ones be put into `credentials_file`, or use a key without an end"
    )]
    CredentialsExpired {
        /// What was to be used.
        path: Place,
        /// What the service said.
        source: Cause,
    },
    /// The credentials are accepted, but do not allow this.
    #[error("the credentials do not allow to {what} {path}: give them the permission, or use others")]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: Place,
        /// What the service said.
        source: Cause,
    },
    /// The clocks are too far apart for signed requests.
    #[error(
        "the S3 service refuses to touch {path} because the clocks differ{}; set the wrong one right (NTP)", difference(*here, *there)
    )]
    ClockSkew {
        /// What was to be used.
        path: Place,
        /// This machine's clock.
        here: jiff::Timestamp,
        /// The service's clock, where it told.
        there: Option<jiff::Timestamp>,
    },
    /// The service takes no more bytes.
    #[error(
        "the S3 service takes no more bytes for {path}: its disk or the quota is full; this object was not stored, everything committed before is intact"
    )]
    OutOfQuota {
        /// What was to be written.
        path: Place,
        /// What the service said.
        source: Cause,
    },
    /// The answer to the last request of an upload was lost, and so was every later one.
    #[error(
        "whether {path} was stored is not known: the S3 service stopped answering when it was to be committed; look again when it answers"
    )]
    Uncertain {
        /// Where it is, if it is.
        path: Place,
        /// Why there was no answer.
        source: Cause,
    },
    /// The object is not the one that was opened.
    #[error(
        "{path} was replaced or deleted while it was being read: something other than pglife writes to the repository"
    )]
    Changed {
        /// Where it was.
        path: Place,
    },
    /// The service answered something else.
    #[error("cannot {what} {path}")]
    Service {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: Place,
        /// What the service said.
        source: Cause,
    },
    /// The system failed in another way.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: Place,
        /// What the system said.
        source: io::Error,
    },
}

/// By how much two clocks differ, in words.
fn difference(here: jiff::Timestamp, there: Option<jiff::Timestamp>) -> String {
    let Some(there) = there else { return format!(": here it is {here}, and the service did not say what it has") };
    let seconds = there.as_second() - here.as_second();
    let way = if seconds < 0 { "ahead of" } else { "behind" };
    let by = jiff::SignedDuration::from_secs(seconds.abs());
    format!(": this machine's is {by:#} {way} the service's (here it is {here}, there {there})")
}

impl StorageError {
    /// How the process ends because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing { .. }
            | Self::NotARepository { .. }
            | Self::NewerFormat { .. }
            | Self::ReadOnly { .. }
            | Self::Denied { .. }
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::NoBucket { .. }
            | Self::WrongRegion { .. }
            | Self::ClockSkew { .. }
            | Self::Uncertain { .. } => Exit::Repository,
            Self::NoCredentials { .. }
            | Self::CredentialsRefused { .. }
            | Self::CredentialsExpired { .. }
            | Self::NotPermitted { .. } => Exit::Credentials,
            Self::NotFound { .. } => Exit::NotFound,
            Self::NotEmpty { .. } | Self::Locked { .. } => Exit::Refused,
            Self::AlreadyExists { .. }
            | Self::Full { .. }
            | Self::TooLarge { .. }
            | Self::Incomplete { .. }
            | Self::Lost { .. }
            | Self::Name(_)
            | Self::OutOfQuota { .. }
            | Self::Changed { .. }
            | Self::Service { .. }
            | Self::Io { .. } => Exit::Failed,
        }
    }

    /// True when no other object could be had either: the place or the credentials are the trouble, not this object.
    pub fn is_of_place(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. }
                | Self::NotARepository { .. }
                | Self::Unreachable { .. }
                | Self::Untrusted { .. }
                | Self::NoBucket { .. }
                | Self::WrongRegion { .. }
                | Self::NoCredentials { .. }
                | Self::CredentialsRefused { .. }
                | Self::CredentialsExpired { .. }
                | Self::NotPermitted { .. }
                | Self::ClockSkew { .. }
        )
    }

    /// What a failed write to an upload of `path` means: the error inside it, or the system's own.
    pub fn of_write(path: impl Into<Place>, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(source) => Self::writing("write", path, source, || 0),
        }
    }

    /// What a failed read of an open object means: the error inside it, or the system's own.
    pub fn of_read(path: Place, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(source) => Self::reading("read", path, source),
        }
    }

    /// What a failed read of `path` means.
    pub(super) fn reading(what: &'static str, path: impl Into<Place>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            io::ErrorKind::PermissionDenied => Self::Denied { path, source },
            _ => Self::Io { what, path, source },
        }
    }

    /// What a failed change of `path` means; `free` is asked only when there is no space.
    pub(super) fn writing(
        what: &'static str,
        path: impl Into<Place>,
        source: io::Error,
        free: impl FnOnce() -> u64,
    ) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, free: free(), source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { path, source },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            _ => Self::Io { what, path, source },
        }
    }

    /// The kind an [`io::Error`] made of this error has.
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::ReadOnly { source, .. }
            | Self::Denied { source, .. }
            | Self::Full { source, .. }
            | Self::Io { source, .. } => source.kind(),
            Self::Missing { .. } | Self::NoBucket { .. } | Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::OutOfQuota { .. } => io::ErrorKind::QuotaExceeded,
            Self::NoCredentials { .. }
            | Self::CredentialsRefused { .. }
            | Self::CredentialsExpired { .. }
            | Self::NotPermitted { .. } => io::ErrorKind::PermissionDenied,
            Self::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
            Self::NotARepository { .. }
            | Self::NotEmpty { .. }
            | Self::NewerFormat { .. }
            | Self::TooLarge { .. }
            | Self::Locked { .. }
            | Self::Name(_)
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::WrongRegion { .. }
            | Self::ClockSkew { .. }
            | Self::Uncertain { .. }
            | Self::Changed { .. }
            | Self::Service { .. }
            | Self::Lost { .. }
            | Self::Incomplete { .. } => io::ErrorKind::Other,
        }
    }
}

impl From<StorageError> for io::Error {
    /// The error stays inside: [`StorageError::of_write`] gets it out again.
    fn from(error: StorageError) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_clocks_is_told() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().expect("a time");
        let here = at("2026-11-25T01:00:00Z");
        let words = |there: &str| difference(here, Some(at(there)));
        assert!(words("2026-11-25T02:01:05Z").starts_with(": this machine's is 1h 1m 5s behind the service's (here"));
        assert!(words("2026-11-24T00:59:00Z").starts_with(": this machine's is 24h 1m ahead of the service's (here"));
        assert!(difference(here, None).contains("did not say"));
    }
}
