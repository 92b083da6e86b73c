//! Times the steps of a drill, which become the stages of its certificate.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::backup_set::certificate::Stage;

/// Times the steps that an operation tells.
pub(super) struct Stopwatch {
    stages: Mutex<Timed>,
}

/// Stages that have ended, and the one that goes on since.
type Timed = (Vec<Stage>, Option<(String, Instant)>);

impl Stopwatch {
    pub(super) fn new() -> Self {
        Self { stages: Mutex::new((vec![], None)) }
    }

    /// A step begins; the one before has ended.
    pub(super) fn step(&self, words: &str) {
        let name = match words.split(' ').next().unwrap_or_default() {
            "creating" => "create",
            "starting" => "start",
            "restoring" => "restore",
            "unpacking" => "unpack",
            "waiting" => "recover",
            "fetching" => "fetch",
            "checking" => "check",
            other => other,
        };
        let mut guard = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let (stages, running) = &mut *guard;
        if let Some((name, begun)) = running.take() {
            stages.push(Stage { name, seconds: begun.elapsed().as_secs_f64() });
        }
        *running = Some((name.to_owned(), Instant::now()));
    }

    /// The last step has ended.
    pub(super) fn stop(self) -> Vec<Stage> {
        let (mut stages, running) = self.stages.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, begun)) = running {
            stages.push(Stage { name, seconds: begun.elapsed().as_secs_f64() });
        }
        stages
    }
}
