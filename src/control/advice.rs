//! How the process ends, and what to do next, for each error of an adapter.

use super::Advise;
use crate::backup_set::{FormatError, SelectorError};
use crate::configuration::ConfigurationError;
use crate::consul::ConsulError;
use crate::docker::DockerError;
use crate::exit::Exit;
use crate::kv::KvError;
use crate::notify::NotifyError;
use crate::pipeline::PipelineError;
use crate::state::StateError;
use crate::storage::StorageError;
use crate::worker::Trouble;
use crate::worker::session::SessionError;

impl Advise for DockerError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        self.next()
    }
}

impl Advise for ConsulError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        Some(self.next().to_owned())
    }
}

impl Advise for NotifyError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        Some("correct `url`, `url_file` or `secret_file` in [[notify]], then: pglife notify test".to_owned())
    }
}

impl Advise for StateError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Busy { .. } | Self::Going { .. } => "wait for that run to end, then try again",
            Self::SecondDaemon { .. } => {
                "one daemon is enough: stop the other one first, or give this one its own `state_dir`"
            }
            Self::Newer { .. } => "use the pglife that wrote it, or a later one; or name another, empty `state_dir`",
            _ => return None,
        };
        Some(words.to_owned())
    }
}

impl Advise for StorageError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Full { .. } => "free space in the repository, then run the same command again",
            Self::NewerFormat { .. } => "use the pglife that wrote the repository, or a later one",
            Self::NotEmpty { .. } => "name an empty folder, or another `prefix`",
            Self::OutOfQuota { .. } => "make room in the bucket or raise its quota, then run the same command again",
            Self::Unreachable { .. } | Self::Uncertain { .. } => {
                "see why the S3 service does not answer; then run the same command again"
            }
            Self::Untrusted { .. } => "name the authority's certificate: [repos.…] ca_file = …",
            Self::NoBucket { .. } => "create the bucket, or correct `bucket` and `endpoint` in pglife.toml",
            Self::WrongRegion { .. } => "correct `region` in pglife.toml",
            Self::NoCredentials { .. } => {
                "write the credentials into `credentials_file`, or give the daemon the AWS_… variables or a role"
            }
            Self::CredentialsExpired { .. } => {
                "put newer ones where these came from; a daemon with AWS_SESSION_TOKEN must be started again with a new one; then run the same command again"
            }
            Self::CredentialsRefused { .. } => "renew the credentials, then run the same command again",
            Self::NotPermitted { .. } => {
                "give the credentials the permission: docs/repositories.md lists what pglife needs"
            }
            Self::ClockSkew { .. } => "set the wrong clock right (NTP), then run the same command again",
            Self::Locked { .. } => "delete it when the lock has ended",
            Self::Changed { .. } => "find out what else writes to the repository; then run the same command again",
            Self::Service { .. } => "see what the service says above; then run the same command again",
            _ => {
                "look at the repository's disk: that it is mounted, writable and sound; then run the same command again"
            }
        };
        Some(words.to_owned())
    }
}

impl Advise for SessionError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        let words = match self {
            Self::Docker(error) => return error.next(),
            // pg_dump's own limit for a lock is a statement_timeout around LOCK TABLE.
            Self::Failed { message, .. } if message.contains("LOCK TABLE") && message.contains("timeout") => {
                "find out who holds the table (pg_locks, pg_stat_activity) and try again, or raise `lock_timeout` in the policy"
            }
            Self::Failed { trouble: Trouble::Full, .. } => {
                "free space in the repository, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Tool, .. } => {
                "mend what the tool's own words above name, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Server, .. } => {
                "see what the server says (docker logs), then run the same command again"
            }
            Self::Failed { trouble: Trouble::Credentials, .. } => "correct `user` and `password_file` in the policy",
            Self::Failed { trouble: Trouble::Key, .. } => "name the file with the secret key: --identity FILE",
            Self::Failed { trouble: Trouble::RepositoryCredentials, .. } => {
                "renew the repository's credentials or their permissions, then run the same command again"
            }
            Self::Failed { trouble: Trouble::Repository | Trouble::Other, .. } => {
                "look at the repository (its disk, owner and mode; its S3 service), then run the same command again"
            }
            Self::Failed { trouble: Trouble::ToolMissing, .. } => {
                "use an image that holds the server's own client tools"
            }
            Self::Lost { .. } => {
                "run the same command again; if it happens again, see what ended the worker: docker events"
            }
            Self::NotStarted(_) | Self::Cancelled | Self::Failed { trouble: Trouble::Cancelled, .. } => {
                "run the same command again"
            }
            Self::Protocol { .. }
            | Self::Failed { trouble: Trouble::Request | Trouble::Absent | Trouble::Damaged, .. } => return None,
        };
        Some(words.to_owned())
    }
}

impl Advise for ConfigurationError {
    fn exit(&self) -> Exit {
        self.exit()
    }
}

impl Advise for KvError {
    fn exit(&self) -> Exit {
        self.exit()
    }
    fn next(&self) -> Option<String> {
        Some(self.next().to_owned())
    }
}

impl Advise for SelectorError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoMatch { .. } => Exit::NotFound,
            Self::Malformed(_) | Self::Ambiguous { .. } => Exit::Usage,
        }
    }
    fn next(&self) -> Option<String> {
        Some("see what there is: pglife backups list".to_owned())
    }
}

impl Advise for PipelineError {
    fn exit(&self) -> Exit {
        self.exit()
    }
}

impl Advise for FormatError {
    fn exit(&self) -> Exit {
        match self {
            Self::Newer { .. } => Exit::Repository,
            Self::Malformed { .. } | Self::Damaged { .. } => Exit::VerifyFailed,
        }
    }
    fn next(&self) -> Option<String> {
        matches!(self, Self::Newer { .. }).then(|| "use the pglife that wrote it, or a later one".to_owned())
    }
}
