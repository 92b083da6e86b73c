//! The PostgreSQL server: connecting to it, asking it what it is, and running its own tools.
//!
//! Only a worker talks to a server, from inside the cluster's image and network namespace. [`inspect`] answers what there
//! is, [`facts`] what it holds; [`hot_backup`] holds a server in backup mode, [`wal_summary`] what it knows of changed blocks; [`tools`] runs `pg_dump` and its kin as children whose verdict is exit
//! code and stderr, never the end of a stream.

pub(crate) mod catalog_page;
pub mod control_data;
pub mod facts;
pub mod hot_backup;
pub mod inspect;
pub mod installation;
pub(crate) mod page;
pub mod pg_upgrade;
pub mod survey;
pub mod tools;
pub mod wal_summary;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::cluster::{DatabaseName, RoleName};
use crate::exit::Exit;

/// A password. It travels on stdin and in files of a container's memory only; it cannot be printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// Takes the text as it is; callers cut the line end of a file.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that hands it over.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Password(…)")
    }
}

/// How a worker enters a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Folder of the unix socket, or the loopback address of the network namespace the worker shares with the server.
    pub host: String,
    /// The server's port (for a socket: the number in its name).
    pub port: u16,
    /// The role; it must be a superuser, because password hashes are part of a backup.
    pub user: RoleName,
    /// None where the server trusts the way in.
    pub password: Option<Password>,
}

impl Login {
    /// True when the way in is a unix socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

impl fmt::Display for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_socket() {
            write!(out, "role \"{}\" through the socket {}/.s.PGSQL.{}", self.user, self.host, self.port)
        } else {
            write!(out, "role \"{}\" at {}:{}", self.user, self.host, self.port)
        }
    }
}

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// It refused the login.
    #[error("the server refused {login}: {reason}; check the policy's `user` and `password_file`")]
    Credentials {
        /// Who tried, and how.
        login: String,
        /// The server's own words.
        reason: String,
    },
    /// It does not answer.
    #[error("the server does not answer {login}: {reason}")]
    Unreachable {
        /// Who tried, and how.
        login: String,
        /// The server's or the system's own words.
        reason: String,
    },
    /// The role may not see what a backup needs.
    #[error("role \"{user}\" is not a superuser; a backup needs one, because roles' password hashes are part of it")]
    NotSuperuser {
        /// The role.
        user: RoleName,
    },
    /// A statement failed.
    #[error("asking the server for {what} failed: {reason}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// The server's own words.
        reason: String,
    },
    /// The answer was wanted no more; the server was told so.
    #[error("cancelled")]
    Cancelled,
    /// The session that held backup mode, and the WAL with it, is over before its time.
    #[error(
        "the server left backup mode: its session ended ({reason}). The server was stopped or restarted, the session was terminated, \
         or the WAL of the backup grew beyond max_slot_wal_keep_size; the server's log says which"
    )]
    BackupModeLost {
        /// The client's or the server's own words.
        reason: String,
    },
    /// A tool of the server's own version is not in the image.
    #[error("{tool} of PostgreSQL {major} is not in the image; looked in {looked_in}")]
    ToolMissing {
        /// The tool.
        tool: String,
        /// The major it must be of.
        major: String,
        /// The folders.
        looked_in: String,
    },
    /// A tool could not be started or watched.
    #[error("{tool} could not be run")]
    ToolNotRun {
        /// The tool.
        tool: String,
        /// Why.
        source: std::io::Error,
    },
}

impl PostgresError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Credentials { .. } | Self::NotSuperuser { .. } => Exit::Credentials,
            Self::Unreachable { .. } | Self::BackupModeLost { .. } => Exit::Postgres,
            Self::Cancelled => Exit::Interrupted,
            Self::ToolMissing { .. } => Exit::NotFound,
            Self::Query { .. } | Self::ToolNotRun { .. } => Exit::Failed,
        }
    }
}

/// Connects to `database` as `login`. Each attempt may take ten seconds; the caller decides about another.
#[expect(clippy::disallowed_methods, reason = "this is PostgreSQL's one home")]
pub async fn connect(login: &Login, database: &DatabaseName) -> Result<Client, PostgresError> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&login.host)
        .port(login.port)
        .user(login.user.as_str())
        .dbname(database.as_str())
        .application_name("pglife")
        .connect_timeout(Duration::from_secs(10))
        // Messages are classified and shown to operators: let them be in one language.
        .options("-c lc_messages=C -c statement_timeout=0 -c client_min_messages=warning -c default_transaction_read_only=off");
    if let Some(password) = &login.password {
        config.password(password.reveal());
    }
    let connecting = tokio::time::timeout(Duration::from_secs(15), config.connect(NoTls)).await;
    let (client, connection) = match connecting {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err(classify(login, &error)),
        Err(_) => {
            return Err(PostgresError::Unreachable {
                login: login.to_string(),
                reason: "no answer within 15 s".to_owned(),
            });
        }
    };
    // It ends with the client; its error reaches the caller through the client's own calls.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

fn classify(login: &Login, error: &tokio_postgres::Error) -> PostgresError {
    let reason = words(error);
    // Only a superuser may choose the language of messages; nothing else was asked for.
    if error.as_db_error().is_some_and(|db| *db.code() == SqlState::INSUFFICIENT_PRIVILEGE)
        && reason.contains("lc_messages")
    {
        return PostgresError::NotSuperuser { user: login.user.clone() };
    }
    let refused = match error.as_db_error() {
        Some(db) => matches!(
            *db.code(),
            SqlState::INVALID_PASSWORD
                | SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                | SqlState::INSUFFICIENT_PRIVILEGE
        ),
        // The client's own refusal: the server asks for a password and there is none.
        None => reason.contains("password missing") || reason.contains("authentication"),
    };
    let login = login.to_string();
    if refused { PostgresError::Credentials { login, reason } } else { PostgresError::Unreachable { login, reason } }
}

/// The server's own words where it spoke, else the whole chain of the client's.
pub(crate) fn words(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{}: {}", db.severity(), db.message());
    }
    crate::causes::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_cannot_be_printed() {
        let login = Login {
            host: "127.0.0.1".to_owned(),
            port: 5432,
            user: RoleName::new("admin").expect("a role"),
            password: Some(Password::new("hunter2")),
        };
        assert!(!format!("{login:?} {login}").contains("hunter2"));
    }
}
