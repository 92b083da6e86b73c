//! Pins: a person's word that a set stays, with the reason and, if it is not for ever, the end of it.
//!
//! A pin is an object of its own, `<cluster>/<lineage>/pins/<set>.json`: sets are immutable, and whoever may delete a set
//! in the repository may delete its pin.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::manifest::read_versioned;
use super::{FormatError, SetId};

/// The newest format of a pin this version reads, and the one it writes.
pub const PIN_VERSION: u32 = 1;

/// The longest reason, in bytes: it is shown in tables.
const LONGEST_REASON: usize = 300;

/// A set that retention must leave alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Format version of this document.
    pub version: u32,
    /// The set.
    pub set: SetId,
    /// Why, in the operator's words.
    pub reason: String,
    /// Since when.
    pub pinned_at: Timestamp,
    /// Until when; None: until somebody removes the pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Why a pin was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Nobody would know in a year why the set is kept.
    #[error("a pin needs a reason that somebody else understands in a year")]
    NoReason,
    /// Tables and logs could not show it.
    #[error("the reason is longer than {LONGEST_REASON} bytes, or not on one line")]
    UnreadableReason,
    /// It would hold nothing.
    #[error("the pin would end at {until}, which is not later than now ({now})")]
    EndsAlready {
        /// The end.
        until: Timestamp,
        /// The clock.
        now: Timestamp,
    },
}

impl Pin {
    const DOCUMENT: &'static str = "the pin";

    /// A pin that begins `now`.
    pub fn new(set: SetId, reason: &str, now: Timestamp, until: Option<Timestamp>) -> Result<Self, PinError> {
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(PinError::NoReason);
        }
        if reason.len() > LONGEST_REASON || reason.chars().any(char::is_control) {
            return Err(PinError::UnreadableReason);
        }
        match until {
            Some(until) if until <= now => Err(PinError::EndsAlready { until, now }),
            _ => Ok(Self { version: PIN_VERSION, set, reason: reason.to_owned(), pinned_at: now, until }),
        }
    }

    /// Whether it still holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// The object's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a pin has only text keys");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the object's bytes; refuses a newer format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        read_versioned(Self::DOCUMENT, bytes, PIN_VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn pin(reason: &str, until: Option<&str>) -> Result<Pin, PinError> {
        let set = "20261122T023000Z-dump-k3x9qa".parse().expect("an id");
        Pin::new(set, reason, at("2026-11-22T09:00:00Z"), until.map(at))
    }

    #[test]
    fn a_pin_reads_back() {
        for until in [None, Some("2027-01-01T00:00:00Z")] {
            let pin = pin(" the audit of 2026 ", until).expect("a pin");
            assert_eq!(pin.reason, "the audit of 2026");
            assert_eq!(Pin::from_bytes(&pin.to_bytes()).expect("a pin"), pin);
        }
    }

    #[test]
    fn a_pin_without_a_reason_or_a_future_is_refused() {
        for reason in ["", " \t ", "two\nlines", "\u{1b}[31m", &"x".repeat(301)] {
            assert!(pin(reason, None).is_err(), "{reason:?}");
        }
        let ends = pin("audit", Some("2026-11-22T09:00:00Z"));
        assert!(matches!(ends, Err(PinError::EndsAlready { .. })), "{ends:?}");
    }

    #[test]
    fn a_pin_holds_until_its_end() {
        let pin = pin("audit", Some("2027-01-01T00:00:00Z")).expect("a pin");
        assert!(pin.holds(at("2026-12-31T23:59:59Z")));
        assert!(!pin.holds(at("2027-01-01T00:00:00Z")));
    }

    #[test]
    fn a_newer_pin_is_named_as_such() {
        let pin = Pin { version: PIN_VERSION + 1, ..pin("audit", None).expect("a pin") };
        assert!(matches!(Pin::from_bytes(&pin.to_bytes()), Err(FormatError::Newer { found: 2, .. })));
    }
}
