//! Settings files of a server, kept as keys: what is in Consul is written into a folder such as `/config`, before the server starts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use super::super::{Context, Failure};
use crate::cluster::ClusterName;
use crate::consul::Consul;
use crate::environment::settings::{MARK, Step, steps};
use crate::exit::Exit;

/// Where the settings of a cluster are.
pub(super) fn folder(consul: &Consul, cluster: &ClusterName) -> String {
    consul.key(&format!("config/clusters/{cluster}"))
}

/// Brings the files of `folder` in line with `keys`, names and texts; `from` is the key they are below.
pub(super) fn write(
    folder: &Path,
    keys: impl IntoIterator<Item = (String, Vec<u8>)>,
    from: &str,
    context: &Context,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("the settings from Consul cannot be written into {}", folder.display());
        Failure::new(Exit::Failed, anyhow::Error::new(error).context(what))
            .next("see to the folder's owner and mode, or start it without --settings")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let present = present(folder).map_err(failed)?;
    // Some tools make a key for a folder, too.
    let keys = keys.into_iter().filter(|(name, _)| !name.is_empty() && !name.ends_with('/'));
    for step in steps(keys, &present) {
        match step {
            Step::Write { name, text } => replace(folder, &name, from, &text).map_err(failed)?,
            Step::Remove { name } => std::fs::remove_file(folder.join(name)).map_err(failed)?,
            Step::LeaveOut { name, why } => {
                context.output.note(&format!("pglife: warning: {from}/{name} is left out: {why}"));
            }
        }
    }
    Ok(())
}

/// The settings files that are there: true for those that were written from keys.
fn present(folder: &Path) -> std::io::Result<BTreeMap<String, bool>> {
    let mut present = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && name.strip_suffix(".conf").is_some()
        {
            let is_ours = entry.file_type()?.is_file() && std::fs::read(entry.path())?.starts_with(MARK.as_bytes());
            present.insert(name, is_ours);
        }
    }
    Ok(present)
}

/// Whole or not at all: a server that reads it meanwhile must not see half of it. Its name until then is none that it reads.
fn replace(folder: &Path, name: &str, from: &str, text: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut file = tempfile::Builder::new().prefix(".pglife").tempfile_in(folder)?;
    writeln!(file, "{MARK} ({from}/{name})")?;
    file.write_all(text)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map(drop).map_err(|error| error.error)
}
