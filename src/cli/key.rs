//! `pglife key`: the keys of encrypted backups. Making one needs no configuration: it is best done on another machine.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::backup_set::Selector;
use crate::cluster::{ClusterName, RepoName};
use crate::control::{Found, or_elsewhere};
use crate::encryption::{GeneratedKey, Recipient};
use crate::exit::Exit;
use crate::verification::{self, KeyChecked};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new key: the secret half goes into a file, the public half is printed
    Generate {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Open the newest encrypted backup with a key, to see that it is the right one
    Check {
        /// The cluster; not needed when there is only one
        cluster: Option<ClusterName>,
        /// The file with the key, instead of the configured one; try the escrow key too
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Another backup: an id or its beginning, latest, oldest, @2026-11-01T00:00Z
        #[arg(long, default_value = "latest", value_name = "SELECTOR")]
        backup: Selector,
        /// The repository, instead of the policy's
        #[arg(long, value_name = "REPOSITORY")]
        repo: Option<RepoName>,
    },
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    match &args.command {
        Command::Generate { file } => generate(file, context),
        Command::Check { cluster, identity, backup, repo } => {
            check(cluster.as_ref(), identity.as_deref(), backup, repo.as_ref(), context).await
        }
    }
}

#[derive(Serialize)]
struct Generated<'a> {
    recipient: &'a Recipient,
    file: String,
}

fn generate(file: &Path, context: &Context) -> Result<Exit, Failure> {
    let created = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let key = GeneratedKey::generate(&created);
    write_secret(file, key.reveal_file()).map_err(|error| {
        let taken = error.kind() == io::ErrorKind::AlreadyExists;
        let exit = if taken { Exit::Refused } else { Exit::Failed };
        let next = if taken {
            "name another file: what this one opens may need it"
        } else {
            "name a file in a folder that you may write to"
        };
        Failure::new(exit, anyhow::Error::new(error).context(format!("{} was not written", file.display()))).next(next)
    })?;
    let item = Generated { recipient: &key.recipient, file: file.display().to_string() };
    context.output.items("Key", &[&item], |_| {
        let mut table = output::table(&["RECIPIENT", "FILE"]);
        table.add_row([item.recipient.to_string(), item.file.clone()]);
        table
    })?;
    context.output.note("the recipient goes into pglife.toml: [encryption] recipients = [\"age1…\"]; it is no secret");
    context.output.note(
        "the file is the only thing that opens backups made for it: keep copies of it, none of them on this machine or in the repository",
    );
    context.output.note(
        "make a second key for escrow = [\"age1…\"], print or burn its file and lock it away: whoever loses all keys has lost all backups",
    );
    Ok(Exit::Ok)
}

/// Writes a file that only its owner may read; never over another. It is on the disk when this returns.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err()
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(file = %path.display(), %error, "half a key is left behind");
    }
    written
}

#[derive(Serialize)]
struct Row<'a> {
    cluster: &'a ClusterName,
    #[serde(flatten)]
    checked: &'a KeyChecked,
}

async fn check(
    cluster: Option<&ClusterName>,
    identity: Option<&Path>,
    backup: &Selector,
    repo: Option<&RepoName>,
    context: &Context,
) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(cluster)?;
    let repositories = control.repositories_of(policy, repo)?;
    let Found { repository, commit, elsewhere, .. } = repositories.find(&control, policy, backup)?;
    let checked = verification::check_key(&control, repository, &commit, identity).map_err(or_elsewhere(&elsewhere))?;
    context.output.items("KeyCheck", &[Row { cluster: &policy.name, checked: &checked }], |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "KEY", "OPENED", "RECIPIENT"]);
        table.add_row([
            policy.name.to_string(),
            checked.set.to_string(),
            if checked.escrow { "escrow" } else { "everyday" }.to_owned(),
            format!("{} of {} objects", checked.objects - checked.damage.len(), checked.objects),
            checked.recipient.to_string(),
        ]);
        table
    })?;
    if checked.damage.is_empty() {
        return Ok(Exit::Ok);
    }
    let damage: Vec<String> =
        checked.damage.iter().map(|damage| format!("{}: {}", damage.object, damage.why)).collect();
    let message = format!("{} does not open whole:\n  {}", checked.set, damage.join("\n  "));
    Err(Failure::message(Exit::VerifyFailed, message).next(format!(
        "see all that is damaged: pglife backups verify --backup {}; take a new backup now",
        checked.set
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_written_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key.txt");
        write_secret(&path, "secret").expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let error = write_secret(&path, "another").expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "secret");
    }
}
