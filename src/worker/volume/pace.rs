//! Not faster than allowed: how long a reader waits.

use std::time::{Duration, Instant};

/// How long a wait is at most before it is looked whether the job should end.
const SLICE: Duration = Duration::from_millis(100);

/// A limit on the bytes read in a second, over all of a copy.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    began: Instant,
    passed: u64,
}

/// When so many bytes may have passed, from the beginning on. Pure.
fn due(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl Pace {
    /// Begins now.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, began: Instant::now(), passed: 0 }
    }

    /// How much may be read at once, so that the waits are short.
    pub(super) fn at_once(&self) -> usize {
        usize::try_from(self.bytes_per_second / 10).unwrap_or(usize::MAX).max(4 << 10)
    }

    /// Waits until `bytes` more may have passed, or until `ends` says so.
    pub(super) fn pass(&mut self, bytes: usize, ends: impl Fn() -> bool) {
        self.passed += bytes as u64;
        let due = due(self.passed, self.bytes_per_second);
        while let Some(early) = due.checked_sub(self.began.elapsed()).filter(|early| !early.is_zero()) {
            if ends() {
                return;
            }
            std::thread::sleep(early.min(SLICE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_by_their_number() {
        assert_eq!(due(0, 1000), Duration::ZERO);
        assert_eq!(due(1500, 1000), Duration::from_millis(1500));
        assert_eq!(due(u64::MAX, 1), Duration::from_nanos(u64::MAX));
        // 40 GB at 200 MB/s: no error adds up.
        assert_eq!(due(40_000_000_000, 200_000_000), Duration::from_secs(200));
    }

    #[test]
    fn a_wait_ends_when_the_job_does() {
        let mut pace = Pace::new(1);
        let began = Instant::now();
        pace.pass(1000, || true);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
