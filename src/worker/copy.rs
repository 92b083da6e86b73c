//! Copies objects of a set from one repository to another, as they are stored: nothing is opened, so no key is needed.
//!
//! An object gets its name only if its bytes are those that were written: damage is not passed on. What an earlier copy left
//! and could not be removed (Object Lock, credentials that cannot delete) counts, if it is the same byte for byte.

use std::io::Write as _;

use crate::storage::{Folder, StorageError};

use super::process::Line;
use super::{CopyJob, Failure, Trouble, storage_failure, writing_failure};
use crate::backup_set::StoredObject;

/// How much is read at once: large enough for a bucket far away, which answers each read with a request.
const BLOCK: usize = 8 << 20;

/// Does the job.
pub fn run(job: &CopyJob, line: &Line) -> Result<Vec<String>, Failure> {
    let unusable = |error| storage_failure("the repository cannot be used", &error);
    let (from, to) = (job.from.open().map_err(unusable)?, job.to.open().map_err(unusable)?);
    let mut block = vec![0; BLOCK];
    for object in &job.objects {
        copy(&from, &to, object, &mut block, line)?;
    }
    Ok(vec![])
}

fn copy(from: &Folder, to: &Folder, object: &StoredObject, block: &mut [u8], line: &Line) -> Result<(), Failure> {
    let name = object.name.as_str();
    let writing = |error| writing_failure(&format!("writing {name} failed"), &error);
    match to.head(name) {
        Ok(_) => {
            let Some(why) = read(to, object, block, line, |_| Ok(()))? else { return Ok(()) };
            let what = format!("{} lies there from an earlier copy, and is damaged: {why}", to.place(name));
            return Err(Failure::new(Trouble::Repository, format!("{what}; pglife repo gc removes it")));
        }
        Err(StorageError::NotFound { .. }) => {}
        Err(error) => return Err(writing(error)),
    }
    let mut upload = to.begin(name).map_err(writing)?;
    let why = read(from, object, block, line, |bytes| {
        upload.write_all(bytes).map_err(|error| writing(StorageError::of_write(to.place(name), error)))
    })?;
    match why {
        None => upload.commit().map_err(writing),
        Some(why) => Err(Failure::new(Trouble::Damaged, format!("{name} is damaged, and was not copied: {why}"))),
    }
}

/// Reads an object and hands its bytes on. Says why they are not those that were written, where they are not.
fn read(
    folder: &Folder,
    object: &StoredObject,
    block: &mut [u8],
    line: &Line,
    mut hand_on: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Option<String>, Failure> {
    let name = object.name.as_str();
    let reading = |error| storage_failure(&format!("reading {name} failed"), &error);
    let source = folder.open(name).map_err(reading)?;
    let (expected, found) = (object.stored.bytes, source.size());
    if found != expected {
        return Ok(Some(format!("it has {found} bytes, {expected} were written")));
    }
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    while offset < found {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        let wanted = usize::try_from(found - offset).unwrap_or(BLOCK).min(BLOCK);
        let block = &mut block[..wanted];
        let read = source.read_exact_at(block, offset);
        read.map_err(|error| reading(StorageError::of_read(folder.place(name), error)))?;
        hasher.update(block);
        hand_on(block)?;
        offset += wanted as u64;
        line.meter.add(wanted);
    }
    let digest = crate::backup_set::Digest::from(hasher.finalize());
    let written = object.stored.blake3;
    Ok((digest != written).then(|| format!("its BLAKE3 is {digest}, {written} was written")))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::backup_set::Measured;
    use crate::storage::{FolderLocation, Location};

    #[test]
    fn what_cannot_be_removed_from_an_earlier_copy_counts_if_it_is_whole() {
        let root = tempfile::tempdir().expect("a folder");
        let place =
            |name: &str| FolderLocation { location: Location::Local { folder: root.path().join(name) }, folder: None };
        let lies = |folder: &str, name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(root.path().join(folder)).expect("a folder");
            std::fs::write(root.path().join(folder).join(name), bytes).expect("written");
        };
        let object = |name: &str| StoredObject { name: name.to_owned(), stored: Measured::of(b"as it was") };
        for name in ["a", "b", "c"] {
            lies("from", name, b"as it was");
        }
        lies("to", "a", b"as it was");
        lies("to", "c", b"as it is!");
        let job = |names: &[&str]| CopyJob {
            from: place("from"),
            to: place("to"),
            objects: names.iter().map(|name| object(name)).collect(),
        };
        let line = Line::new(CancellationToken::new());
        run(&job(&["a", "b"]), &line).expect("copied");
        assert_eq!(std::fs::read(root.path().join("to/b")).expect("there"), b"as it was");
        let failure = run(&job(&["c"]), &line).expect_err("damaged");
        assert_eq!(failure.trouble, Trouble::Repository);
        assert!(failure.message.contains("to/c lies there from an earlier copy"), "{}", failure.message);
        assert_eq!(std::fs::read(root.path().join("to/c")).expect("there"), b"as it is!");
    }
}
