//! Reads objects of a set and compares them, byte for byte, with what the manifest recorded; where nothing is there to open
//! them, with what `COMMIT` recorded of their outside.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use crate::backup_set::{Content, Measured, Object, StoredObject};
use crate::pipeline::seal::{measure, unseal_bytes};
use crate::pipeline::{PipelineError, Sealed, compare_stored, decompress};
use crate::storage::Folder;

use super::process::Line;
use super::{Event, Failure, Trouble, VerifyJob, keys_for, pipeline_failure, storage_failure};

/// The most an object that is read as a whole (`facts.json`, `recipe.json`, `RECOVER.md`) may have.
const SMALL: u64 = 1 << 30;

enum Task<'a> {
    Open(&'a Object),
    Outside(&'a StoredObject),
}

impl Task<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Open(object) => &object.name,
            Self::Outside(object) => &object.name,
        }
    }
}

/// Does the job: every damaged object is told, and the verdict counts them.
pub fn run(job: &VerifyJob, line: &Line) -> Result<Vec<String>, Failure> {
    let folder = job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    let tasks = job.objects.iter().map(Task::Open).chain(job.stored.iter().map(Task::Outside));
    let queue = Mutex::new(tasks.collect::<VecDeque<_>>());
    let count = job.objects.len() + job.stored.len();
    let damaged = Mutex::new(0_usize);
    let stopped = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..job.threads.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some(task) = { queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
                    let checked = match task {
                        Task::Open(object) => check(&folder, object, job, line),
                        Task::Outside(object) => check_outside(&folder, object, line),
                    };
                    match checked {
                        Ok(()) => {}
                        Err(failure) if failure.trouble == Trouble::Damaged => {
                            *damaged.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                            line.tell(&Event::Damaged { object: task.name().to_owned(), why: failure.message });
                        }
                        Err(failure) => {
                            stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(failure) = stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    match damaged.into_inner().unwrap_or_else(PoisonError::into_inner) {
        0 => Ok(vec![]),
        damaged => Err(Failure::new(Trouble::Damaged, format!("{damaged} of {count} objects are damaged or missing"))),
    }
}

fn check(folder: &Folder, object: &Object, job: &VerifyJob, line: &Line) -> Result<(), Failure> {
    let keys = keys_for(object, job.keys.as_ref())?;
    match object.content {
        Content::Facts | Content::Recipe | Content::Instructions | Content::Details => {
            let bytes =
                folder.read_small(&object.name, SMALL).map_err(|error| storage_failure("it cannot be read", &error))?;
            compare_small(object.stored, &bytes)?;
            match keys {
                None => Ok(()),
                Some(keys) => {
                    compare_small(object.plain, &unseal_bytes(&bytes, keys).map_err(|error| unopened(&error))?)
                }
            }
        }
        Content::Globals | Content::Database { .. } | Content::Volume(_) | Content::Blocks => {
            let opened = folder.open(&object.name).map_err(|error| storage_failure("it cannot be read", &error))?;
            let expect = Sealed { plain: object.plain, stored: object.stored };
            let (mut nowhere, one) = (std::io::sink(), NonZeroUsize::MIN);
            decompress(&*opened, Some(&expect), keys, &mut nowhere, one, &line.meter, &line.stop)
                .map(drop)
                .map_err(|error| unopened(&error))
        }
    }
}

fn check_outside(folder: &Folder, object: &StoredObject, line: &Line) -> Result<(), Failure> {
    let opened = folder.open(&object.name).map_err(|error| storage_failure("it cannot be read", &error))?;
    let compared = measure(&*opened, &line.meter, &line.stop)
        .and_then(|found| compare_stored(object.stored, found).map_err(PipelineError::from));
    compared.map_err(|error| unopened(&error))
}

fn unopened(error: &PipelineError) -> Failure {
    match error {
        // Said of an object, as everybody sees.
        PipelineError::Corrupt(corruption) => Failure::new(Trouble::Damaged, corruption.to_string()),
        error => pipeline_failure("reading it", error),
    }
}

fn compare_small(expect: Measured, bytes: &[u8]) -> Result<(), Failure> {
    let found = Measured::of(bytes);
    if found == expect {
        return Ok(());
    }
    Err(Failure::new(
        Trouble::Damaged,
        format!(
            "it has {} bytes with BLAKE3 {}, {} bytes with {} were written",
            found.bytes, found.blake3, expect.bytes, expect.blake3
        ),
    ))
}
