//! How far an operation is, on stderr: bars for people, lines for logs, JSON for programs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Output, ProgressMode, human};
use crate::control::Tick;

/// How often a log gets a line about bytes.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows ticks.
#[derive(Debug)]
pub(super) struct Reporter {
    mode: ProgressMode,
    output: Output,
    state: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    step: String,
    began: Instant,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Reporter {
    /// A reporter in the mode that was asked for.
    pub(super) fn new(mode: ProgressMode, output: &Output) -> Self {
        let state = Shown { step: String::new(), began: Instant::now(), bar: None, last_line: None };
        Self { mode, output: output.clone(), state: Mutex::new(state) }
    }

    /// Shows one tick.
    pub(super) fn tick(&self, tick: Tick) {
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.mode {
            ProgressMode::None => {}
            ProgressMode::Json => self.output.progress(&as_json(&shown.step, &tick)),
            ProgressMode::Plain => match &tick {
                Tick::Step(step) => self.output.progress(step),
                Tick::Warning(message) => self.output.progress(&format!("warning: {message}")),
                Tick::Bytes { plain, stored, expected } => {
                    if shown.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                        shown.last_line = Some(Instant::now());
                        self.output.progress(&bytes_line(shown.began, *plain, *stored, *expected));
                    }
                }
            },
            ProgressMode::Auto => draw(&mut shown, &tick),
        }
        if let Tick::Step(step) = tick {
            shown.step = step;
            shown.began = Instant::now();
            shown.last_line = None;
        }
    }

    /// Takes the bar away; the command prints its answer next.
    pub(super) fn finish(&self) {
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = shown.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

fn draw(shown: &mut Shown, tick: &Tick) {
    let bar = shown.bar.get_or_insert_with(|| {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    match tick {
        Tick::Step(step) => {
            bar.set_style(ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").expect("a template"));
            bar.set_length(0);
            bar.set_message(step.clone());
            bar.reset_elapsed();
        }
        Tick::Bytes { plain, stored, expected } => {
            let template = match expected {
                Some(_) => "{spinner} {msg} [{elapsed}] {bar:30} about {eta} left",
                None => "{spinner} {msg} [{elapsed}]",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("a template"));
            // The estimate is the size on disk; the dump may be larger or smaller.
            bar.set_length(expected.unwrap_or(0).max(*plain));
            bar.set_position(*plain);
            bar.set_message(format!("{}: {}", shown.step, bytes_line(shown.began, *plain, *stored, None)));
        }
        Tick::Warning(message) => bar.println(format!("warning: {message}")),
    }
}

fn bytes_line(began: Instant, plain: u64, stored: u64, expected: Option<u64>) -> String {
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = human::bytes(plain.saturating_mul(1000) / millis);
    let of = expected.map(|expected| format!(" of about {}", human::bytes(expected))).unwrap_or_default();
    format!("{}{of}, {} in the repository, {rate}/s", human::bytes(plain), human::bytes(stored))
}

fn as_json(step: &str, tick: &Tick) -> String {
    match tick {
        Tick::Step(step) => json!({ "message_type": "status", "step": step }),
        Tick::Bytes { plain, stored, expected } => json!({
            "message_type": "status", "step": step, "plain_bytes": plain, "stored_bytes": stored, "expected_bytes": expected,
        }),
        Tick::Warning(message) => json!({ "message_type": "warning", "message": message }),
    }
    .to_string()
}
