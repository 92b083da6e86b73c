//! Files of a data directory that a worker writes.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
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

/// Makes the folder in which the file at `path` is to stand, with the owner of the one above; content where it is there.
pub(super) fn make_folder_of(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.exists()) else { return Ok(()) };
    make_folder_of(folder)?;
    std::fs::DirBuilder::new().mode(0o700).create(folder)?;
    let owner = std::fs::metadata(folder.parent().unwrap_or(Path::new("/")))?;
    chown(folder, Some(owner.uid()), Some(owner.gid()))
}
