//! How many tests run at a time: as many as the machine has cores, and more while those that run mostly wait.
//!
//! Some tests keep all cores at work, others wait for a lock or a daemon for minutes. A fixed number of tests side by side leaves
//! the machine idle with the latter, or makes the former miss their limits.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long the machine is watched before one more is let in.
const WATCHED: Duration = Duration::from_secs(4);
/// How often is looked whether a test has ended.
const LOOK: Duration = Duration::from_millis(200);
/// The share of the machine that must have been idle then, of 1.
const IDLE: f64 = 0.3;

static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Those who wait stand in line, so that each sees what the one before does to the machine.
static LINE: Mutex<()> = Mutex::new(());

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A test's room; it is given back when this is dropped.
pub struct Room {
    /// The test had it already.
    again: bool,
}

impl Room {
    /// Waits for room.
    pub fn wait() -> Self {
        let again = INSIDE.replace(true);
        if !again {
            // A test that failed while it was in line has no say in it.
            let _turn = LINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            wait_in_line();
            RUNNING.fetch_add(1, Ordering::SeqCst);
        }
        Self { again }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.again {
            INSIDE.set(false);
            RUNNING.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn wait_in_line() {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let looks = WATCHED.as_millis() / LOOK.as_millis();
    loop {
        let before = Times::now();
        for _ in 0..looks {
            if RUNNING.load(Ordering::SeqCst) < cores {
                return;
            }
            std::thread::sleep(LOOK);
        }
        if Times::now().idle_since(before) > IDLE {
            return;
        }
    }
}

/// What the cores did since the machine was started, in ticks.
#[derive(Clone, Copy)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    /// See proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; waiting for a disk is work here.
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/stat").expect("a file");
        let line = text.lines().next().expect("all cores");
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map(|n| n.parse().expect("ticks")).collect();
        Self { idle: ticks[3], all: ticks.iter().sum() }
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks of seconds")]
    fn idle_since(self, before: Self) -> f64 {
        let all = (self.all - before.all).max(1);
        self.idle.saturating_sub(before.idle) as f64 / all as f64
    }
}
