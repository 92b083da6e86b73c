//! What an entry of a tar of volumes says of itself.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{Entry, EntryType};

use super::{broken, place};
use crate::worker::attributes::{self, Attribute};
use crate::worker::{Failure, Trouble};

/// An entry without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) struct Head {
    /// Where it goes.
    pub(in crate::worker) path: PathBuf,
    /// What it is.
    pub(in crate::worker) kind: Kind,
    uid: u32,
    gid: u32,
    /// Permission bits, set-user-id and the like included.
    mode: u32,
    time: SystemTime,
    /// Extended attributes.
    attributes: Vec<Attribute>,
}

/// Extended attributes that files could not get.
#[derive(Debug, Default)]
pub(in crate::worker) struct Refused {
    count: usize,
    first: Option<String>,
}

impl Refused {
    fn note(&mut self, path: &Path, names: &[&str]) {
        self.count += names.len();
        if let (None, Some(name)) = (&self.first, names.first()) {
            self.first = Some(format!("{name} of {}", path.display()));
        }
    }

    /// A warning, where there is something to say.
    pub(in crate::worker) fn words(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(format!(
            "{} extended attributes were left out, which the file system does not take: {first}, …",
            self.count
        ))
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) enum Kind {
    Folder,
    File,
    /// A symbolic link, and where it leads.
    Symlink(PathBuf),
    /// Another name of a file, and the one that came before.
    Link(PathBuf),
}

impl Head {
    /// Reads it. What would lead out of `volumes` is refused, and what no copy of volumes has.
    pub(in crate::worker) fn read<R: Read>(entry: &mut Entry<'_, R>, volumes: &[String]) -> Result<Self, Failure> {
        let mut attributes = Vec::new();
        for record in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
            let record = record.map_err(broken)?;
            attributes.extend(Attribute::of_record(record.key_bytes(), record.value_bytes()));
        }
        let name = entry.path().map_err(broken)?;
        let refuse = |why: &str| Failure::new(Trouble::Damaged, format!("the tar has {}, {why}", name.display()));
        let path = place(&name, volumes).ok_or_else(|| refuse("which is in none of its volumes"))?;
        let link = entry.link_name().map_err(broken)?.map(std::borrow::Cow::into_owned);
        let header = entry.header();
        let number = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok());
        let (Some(uid), Some(gid)) = (number(header.uid()), number(header.gid())) else {
            return Err(refuse("with an owner that is no number"));
        };
        let kind = match (header.entry_type(), link) {
            (EntryType::Directory, _) => Kind::Folder,
            (EntryType::Regular | EntryType::Continuous, _) => Kind::File,
            (EntryType::Symlink, Some(target)) => Kind::Symlink(target),
            (EntryType::Link, Some(target)) => {
                Kind::Link(place(&target, volumes).ok_or_else(|| refuse("a link that leads out of its volumes"))?)
            }
            _ => return Err(refuse("of a type that no volume backup has")),
        };
        Ok(Self {
            path,
            kind,
            uid,
            gid,
            mode: header.mode().map_err(broken)? & 0o7777,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(header.mtime().map_err(broken)?),
            attributes,
        })
    }

    /// Gives the file its attributes, owner, mode and time; notes which attributes its file system does not take.
    pub(in crate::worker) fn finish_file(&self, file: &File, refused: &mut Refused) -> io::Result<()> {
        refused.note(&self.path, &attributes::give(file, &self.attributes)?);
        fchown(file, Some(self.uid), Some(self.gid))?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.set_modified(self.time)
    }

    /// Gives the folder, into which nothing is put any more, its attributes, owner, mode and time; notes the same.
    pub(in crate::worker) fn finish_folder(&self, refused: &mut Refused) -> io::Result<()> {
        let folder = File::open(&self.path)?;
        refused.note(&self.path, &attributes::give(&folder, &self.attributes)?);
        chown(&self.path, Some(self.uid), Some(self.gid))?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(self.mode))?;
        folder.set_modified(self.time)
    }

    /// Makes a link that leads to `target`.
    pub(in crate::worker) fn make_symlink(&self, target: &Path) -> io::Result<()> {
        symlink(target, &self.path)?;
        lchown(&self.path, Some(self.uid), Some(self.gid))
    }
}
