//! Files of a data directory that a worker writes.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

/// Replaces the file at `path` by `bytes`, with the owner of the folder it stands in; whole or not at all, and on disk.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let owner = std::fs::metadata(folder)?;
    let mut half = tempfile::Builder::new().prefix(".pglife-").tempfile_in(folder)?;
    io::Write::write_all(&mut half, bytes)?;
    std::fs::set_permissions(half.path(), std::fs::Permissions::from_mode(0o600))?;
    chown(half.path(), Some(owner.uid()), Some(owner.gid()))?;
    half.as_file().sync_all()?;
    half.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}
