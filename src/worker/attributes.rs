//! Extended attributes that users give to files, `user.*`: read for a tar, and given again.
//!
//! Others (`security.*`, `system.*`, `trusted.*`) say what one machine makes of a file, and are left to it.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, flistxattr_query, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// What their names begin with.
const OF_USERS: &str = "user.";
/// What the names of their records in a tar begin with, before their own.
const RECORD: &str = "SCHILY.xattr.";

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attribute {
    name: String,
    value: Vec<u8>,
}

impl Attribute {
    /// Its record in the extended header of a tar (as star and GNU tar have it): key and value. None where not every reader of such
    /// headers would find its end.
    pub(super) fn record(&self) -> Option<(String, &[u8])> {
        let is_plain = !self.name.contains(['=', '\n']) && !self.value.contains(&b'\n');
        is_plain.then(|| (format!("{RECORD}{}", self.name), self.value.as_slice()))
    }

    /// The attribute that a record of a tar is; None for a record of something else.
    pub(super) fn of_record(key: &[u8], value: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(RECORD)?;
        name.starts_with(OF_USERS).then(|| Self { name: name.to_owned(), value: value.to_vec() })
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Those of an open file or folder, in the order of their names; none where the file system has none.
pub(super) fn read(file: impl AsFd) -> io::Result<Vec<Attribute>> {
    let mut found = Vec::new();
    for name in names(&file)? {
        let mut value = vec![0; MOST];
        match fgetxattr(&file, &name, value.as_mut_slice()) {
            Ok(bytes) => {
                value.truncate(bytes);
                found.push(Attribute { name, value });
            }
            // Taken away meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// The most bytes that Linux lets a value have (`XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;

fn names(file: impl AsFd) -> io::Result<Vec<String>> {
    let mut list = match flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(vec![]),
        Ok(bytes) => vec![0; bytes.max(MOST)],
        Err(error) => return Err(error.into()),
    };
    let bytes = flistxattr(&file, list.as_mut_slice())?;
    let names = list[..bytes].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(OF_USERS)).map(str::to_owned).collect();
    names.sort_unstable();
    Ok(names)
}

/// Gives an open file or folder those that are `wanted`, and no others. Returns the names of those that its file system does not take: it
/// has none, or no room for as many bytes beside a file.
pub(super) fn give(file: impl AsFd, wanted: &[Attribute]) -> io::Result<Vec<&str>> {
    for name in names(&file)?.iter().filter(|name| wanted.iter().all(|one| one.name != **name)) {
        fremovexattr(&file, name)?;
    }
    let mut refused = Vec::new();
    for Attribute { name, value } in wanted {
        match fsetxattr(&file, name, value, XattrFlags::empty()) {
            // A disk that is full says the same; whatever is written to it next says so again.
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::DQUOT) => refused.push(name.as_str()),
            other => other?,
        }
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_read_and_the_rest_is_gone() {
        // A file system in memory has none on older kernels.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let file = std::fs::File::create(folder.path().join("file")).expect("made");
        let one = |name: &str, value: &[u8]| Attribute { name: name.to_owned(), value: value.to_vec() };
        let (note, bytes) = (one("user.note", b"kept"), one("user.bytes", &[0, 255, b'=']));
        give(&file, &[note.clone(), one("user.other", b"")]).expect("given");
        give(&file, &[bytes.clone(), note.clone()]).expect("given");
        assert_eq!(read(&file).expect("read"), [bytes.clone(), note.clone()]);
        // More than the kernel lets anybody have.
        let large = one("user.large", &vec![7; MOST + 1]);
        assert_eq!(give(&file, &[bytes.clone(), large, note.clone()]).expect("given"), ["user.large"]);
        assert_eq!(read(&file).expect("read"), [bytes, note]);
    }

    #[test]
    fn a_record_is_the_attribute_again_or_there_is_none() {
        let one = |name: &str, value: &[u8]| Attribute { name: name.to_owned(), value: value.to_vec() };
        let note = one("user.note", &[0, 255, b'=']);
        let (key, value) = note.record().expect("plain");
        assert_eq!(Attribute::of_record(key.as_bytes(), value), Some(note.clone()));
        assert_eq!(one("user.note", b"two\nlines").record(), None);
        assert_eq!(one("user.a=b", b"").record(), None);
        assert_eq!(Attribute::of_record(b"SCHILY.xattr.security.selinux", b"x"), None);
        assert_eq!(Attribute::of_record(b"path", b"x"), None);
    }
}
