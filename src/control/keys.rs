//! The keys that open encrypted sets: where they are looked for, and what to tell the one who has to bring them.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{ControlPlane, OperationError, catalogue};
use crate::backup_set::{Commit, Manifest};
use crate::encryption::{Keys, Recipients};
use crate::exit::Exit;
use crate::storage::Repository;

/// The largest identity file that is read.
const LIMIT: u64 = 1 << 20;

impl ControlPlane {
    /// The keys in `identity`, or else in the configured identity file. None where no file is named, or the configured one
    /// is not there: it need not be on this machine.
    pub fn keys(&self, identity: Option<&Path>) -> Result<Option<Keys>, OperationError> {
        match (identity, self.identity_file()) {
            (Some(given), _) => read(given).map(Some),
            (None, Some(configured)) if configured.try_exists().unwrap_or(true) => read(configured).map(Some),
            (None, _) => Ok(None),
        }
    }

    /// The key of this machine for the manifests and block indexes of its own encrypted copies of volumes: the next copy needs them,
    /// while nobody who could open the data is here. Made when it is first asked for.
    pub fn reader(&self) -> Result<Keys, OperationError> {
        let file = self.state.reader_key();
        if file.try_exists().unwrap_or(true) {
            return read(&file);
        }
        let keys = Keys::ephemeral();
        let written = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new("."))).and_then(|mut made| {
            made.write_all(keys.reveal_text().as_bytes())?;
            made.as_file().sync_all()?;
            // Another process may have been quicker: its key counts.
            match made.persist_noclobber(&file) {
                Ok(_) => Ok(()),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error.error),
            }
        });
        written.map_err(|error| OperationError {
            source: Some(Box::new(error)),
            ..OperationError::new(Exit::Failed, format!("{} cannot be written", file.display()))
        })?;
        read(&file)
    }

    /// The manifest of `commit`, and the keys that opened it where it is encrypted; see [`ControlPlane::keys`].
    pub fn manifest(
        &self,
        repository: &Repository,
        commit: &Commit,
        identity: Option<&Path>,
    ) -> Result<(Manifest, Option<Keys>), OperationError> {
        let Some(encryption) = &commit.encryption else {
            return Ok((catalogue::manifest(repository, commit, None)?, None));
        };
        let keys = self.keys(identity)?;
        let manifest = catalogue::manifest(repository, commit, keys.as_ref()).map_err(|error| match error.exit {
            Exit::Credentials => error.next(self.ask_for_key(&encryption.recipients, identity, keys.as_ref())),
            _ => error,
        })?;
        Ok((manifest, keys))
    }

    /// What to tell the one who has to bring the key of one of `recipients`.
    pub fn ask_for_key(&self, recipients: &Recipients, identity: Option<&Path>, found: Option<&Keys>) -> String {
        let everyday = recipients.everyday().iter().map(ToString::to_string);
        let escrow = recipients.escrow().iter().map(|recipient| format!("{recipient} (escrow)"));
        let wanted = everyday.chain(escrow).collect::<Vec<_>>().join(", or ");
        let looked = match (found, identity.or(self.identity_file())) {
            (Some(keys), Some(file)) => {
                let own = keys.recipients().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!("; {} holds that of {own}", file.display())
            }
            (None, Some(file)) => format!("; {} (`identity_file` in pglife.toml) is not there", file.display()),
            (_, None) => String::new(),
        };
        format!("name the file with the secret key, --identity FILE, that belongs to {wanted}{looked}")
    }

    fn identity_file(&self) -> Option<&Path> {
        self.configuration.settings.encryption.as_ref()?.identity_file.as_deref()
    }
}

fn read(file: &Path) -> Result<Keys, OperationError> {
    let what = || format!("the key in {} cannot be used", file.display());
    let text = read_text(file).map_err(|error| OperationError {
        source: Some(Box::new(error)),
        ..OperationError::new(Exit::Credentials, what())
            .next("name the file with the secret key: --identity FILE, or `identity_file` in pglife.toml")
    })?;
    Keys::parse(text).map_err(|error| {
        let help = error.help();
        OperationError { source: Some(Box::new(error)), ..OperationError::new(Exit::Credentials, what()).next(help) }
    })
}

fn read_text(file: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(file)?;
    if metadata.len() > LIMIT {
        return Err(io::Error::other("it is too large to be a key"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others on this machine may read the key: chmod 600");
    }
    let text = std::fs::read(file)?;
    // Its own error would quote the bytes.
    String::from_utf8(text).map_err(|_| io::Error::other("it is not text"))
}
