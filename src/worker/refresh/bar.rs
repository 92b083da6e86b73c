//! Keeps servers from starting on a data directory that is neither one copy nor another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::worker::files::replace;

/// A `backup_label` that every major refuses: `invalid data in file "backup_label"`. Its control file stays readable.
const BARRED: &str = "This data directory is half of one copy and half of another: pglife was replacing it, and was cut.\n\
                      No server starts on it. Give the same pglife restore again.\n";

/// A bar that was put up.
#[derive(Debug)]
pub(super) struct Bar {
    label: PathBuf,
    /// Where the label that holds afterwards waits.
    waiting: PathBuf,
}

impl Bar {
    /// Puts it up; it is on disk then.
    pub(super) fn put(pgdata: &Path) -> io::Result<Self> {
        let label = pgdata.join("backup_label");
        replace(&label, BARRED.as_bytes())?;
        Ok(Self { label, waiting: pgdata.join("backup_label.pglife") })
    }

    /// Its file.
    pub(super) fn label(&self) -> &Path {
        &self.label
    }

    /// Where the file that shall be at `path` is written.
    pub(super) fn place_of(&self, path: &Path) -> PathBuf {
        if path == self.label { self.waiting.clone() } else { path.to_owned() }
    }

    /// Takes it away. Everything else must be on disk.
    pub(super) fn lift(self) -> io::Result<()> {
        match fs::rename(&self.waiting, &self.label) {
            // A copy of a server that was shut down has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(&self.label)?,
            other => other?,
        }
        File::open(self.label.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}
