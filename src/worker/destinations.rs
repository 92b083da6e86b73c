//! The repositories a set is written to: the bytes are made once and go to each, and each has its own verdict.
//!
//! ```text
//!                     ┌──▶ upload in repository a
//! frames ──▶ Fan-out ─┼──▶ upload in repository b   ✗ told as it fails, left out from here on
//!                     └──▶ upload in repository c
//! ```
//!
//! A repository that fails is out for the rest of the job, whatever other objects are under way, and the others go on. Only
//! when none is left does the job fail, with what the last one said.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use crate::cluster::RepoName;
use crate::storage::{Folder, StorageError, Upload};

use super::process::Line;
use super::{Destination, Event, Failure, Trouble, storage_failure, writing_failure};

/// The repositories of a job.
#[derive(Debug)]
pub(super) struct Destinations<'a> {
    line: &'a Line,
    all: Vec<Arrival>,
}

/// One repository, and why it is out.
#[derive(Debug)]
struct Arrival {
    repository: RepoName,
    folder: Mutex<Result<Folder, Failure>>,
}

/// One object on its way into every repository that is still in.
#[derive(Debug)]
pub(super) struct FanOut<'a> {
    destinations: &'a Destinations<'a>,
    name: String,
    uploads: Vec<(&'a Arrival, Box<dyn Upload>)>,
}

impl<'a> Destinations<'a> {
    /// Connects to all of them.
    pub(super) fn open(wanted: &[Destination], line: &'a Line) -> Result<Self, Failure> {
        let opened = wanted.iter().map(|wanted| Arrival {
            repository: wanted.repository.clone(),
            folder: Mutex::new(
                wanted.place.open().map_err(|error| storage_failure("the repository cannot be used", &error)),
            ),
        });
        let destinations = Self { line, all: opened.collect() };
        for arrival in &destinations.all {
            if let Err(failure) = arrival.state() {
                destinations.tell(arrival, &failure);
            }
        }
        destinations.standing()?;
        Ok(destinations)
    }

    /// Those that are still in; an error where none is.
    fn standing(&self) -> Result<Vec<(&Arrival, Folder)>, Failure> {
        let mut last = Failure::new(Trouble::Request, "the job names no repository");
        let mut standing = Vec::new();
        for arrival in &self.all {
            match arrival.state() {
                Ok(folder) => standing.push((arrival, folder)),
                Err(failure) => last = failure,
            }
        }
        if standing.is_empty() { Err(last) } else { Ok(standing) }
    }

    /// Starts an object in each.
    pub(super) fn begin(&'a self, name: &str) -> Result<FanOut<'a>, Failure> {
        let mut uploads = Vec::new();
        for (arrival, folder) in self.standing()? {
            match folder.begin(name) {
                Ok(upload) => uploads.push((arrival, upload)),
                Err(error) => self.fail(arrival, &format!("cannot write {name}"), &error),
            }
        }
        self.standing()?;
        Ok(FanOut { destinations: self, name: name.to_owned(), uploads })
    }

    /// Does `work` with each one's folder; one that fails is out.
    pub(super) fn each(&self, work: impl Fn(&Folder) -> Result<(), Failure>) -> Result<(), Failure> {
        for (arrival, folder) in self.standing()? {
            if let Err(failure) = work(&folder) {
                self.rule_out(arrival, failure);
            }
        }
        self.standing().map(drop)
    }

    fn fail(&self, arrival: &Arrival, what: &str, error: &StorageError) {
        self.rule_out(arrival, writing_failure(what, error));
    }

    fn rule_out(&self, arrival: &Arrival, failure: Failure) {
        let mut folder = arrival.folder.lock().unwrap_or_else(PoisonError::into_inner);
        if folder.is_ok() {
            self.tell(arrival, &failure);
            *folder = Err(failure);
        }
    }

    fn tell(&self, arrival: &Arrival, failure: &Failure) {
        self.line.tell(&Event::RepositoryFailed {
            repository: arrival.repository.clone(),
            trouble: failure.trouble,
            message: failure.message.clone(),
        });
    }
}

impl Arrival {
    fn state(&self) -> Result<Folder, Failure> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl FanOut<'_> {
    /// Gives the object its name in each.
    pub(super) fn commit(self) -> Result<(), Failure> {
        let Self { destinations, name, uploads } = self;
        for (arrival, upload) in uploads {
            // Ruled out by another object meanwhile: what this one holds is not wanted either.
            let ended = if arrival.state().is_ok() { upload.commit() } else { upload.abort() };
            if let Err(error) = ended {
                destinations.fail(arrival, &format!("cannot finish {name}"), &error);
            }
        }
        destinations.standing().map(drop)
    }
}

impl Write for FanOut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut last = None;
        let mut uploads = std::mem::take(&mut self.uploads);
        uploads.retain_mut(|(arrival, upload)| {
            if arrival.state().is_err() {
                return false;
            }
            let Err(error) = upload.write_all(bytes) else { return true };
            let error = StorageError::of_write(self.name.as_str(), error);
            self.destinations.fail(arrival, &format!("writing {}", self.name), &error);
            last = Some(error);
            false
        });
        self.uploads = uploads;
        if self.uploads.is_empty() {
            return Err(last.map_or_else(|| io::Error::other("no repository takes the data any more"), Into::into));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // uploads are flushed by their commit
    }
}
