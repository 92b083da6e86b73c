//! What `pg_controldata` prints about a data directory.

use serde::{Deserialize, Serialize};

use super::hot_backup::Lsn;

/// The parts of a control file that say how far a stopped server came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// The server's identifier.
    pub system_identifier: u64,
    /// In its own words, such as `shut down` and `in production`.
    pub state: String,
    /// Where its last checkpoint lies in the WAL.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of both.
    pub timeline: u32,
    /// The transaction id that is given out next, with its epoch in the upper half.
    pub next_transaction: u64,
}

/// The tool's output is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pg_controldata does not say \"{0}\" in a way that is understood")]
pub struct ControlDataError(&'static str);

fn read<T: std::str::FromStr>(name: &'static str, text: &str) -> Result<T, ControlDataError> {
    text.parse().map_err(|_| ControlDataError(name))
}

const NEXT_TRANSACTION: &str = "Latest checkpoint's NextXID";

/// `epoch:id`, or `epoch/id` before 9.6.
fn next_transaction(text: &str) -> Result<u64, ControlDataError> {
    let (epoch, id) = text.split_once([':', '/']).ok_or(ControlDataError(NEXT_TRANSACTION))?;
    Ok((read::<u64>(NEXT_TRANSACTION, epoch)? << 32) | read::<u64>(NEXT_TRANSACTION, id)?)
}

impl ControlData {
    /// Reads the output of `pg_controldata` with `LC_ALL=C`.
    pub fn parse(output: &str) -> Result<Self, ControlDataError> {
        let find = |name: &'static str| {
            let line = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).ok_or(ControlDataError(name))
        };
        let (identifier, checkpoint) = ("Database system identifier", "Latest checkpoint location");
        let (redo, timeline) = ("Latest checkpoint's REDO location", "Latest checkpoint's TimeLineID");
        Ok(Self {
            system_identifier: read(identifier, find(identifier)?)?,
            state: find("Database cluster state")?.to_owned(),
            checkpoint: read(checkpoint, find(checkpoint)?)?,
            redo: read(redo, find(redo)?)?,
            timeline: read(timeline, find(timeline)?)?,
            next_transaction: next_transaction(find(NEXT_TRANSACTION)?)?,
        })
    }

    /// Whether the server ended in order, as a primary: its files are consistent as they are.
    pub fn is_shut_down(&self) -> bool {
        self.state == "shut down"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
pg_control version number:            1700
Catalog version number:               202406281
Database system identifier:           7576543210987654321
Database cluster state:               shut down
pg_control last modified:             Wed Nov 25 01:10:49 2026
Latest checkpoint location:           0/1D000028
Latest checkpoint's REDO location:    0/1D000028
Latest checkpoint's REDO WAL file:    00000001000000000000001D
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Latest checkpoint's NextXID:          2:746
";

    #[test]
    fn what_a_copy_needs_is_read() {
        let control = ControlData::parse(OUTPUT).expect("read");
        let at: Lsn = "0/1D000028".parse().expect("an LSN");
        assert_eq!((control.checkpoint, control.redo, control.timeline), (at, at, 1));
        assert_eq!(control.system_identifier, 7_576_543_210_987_654_321);
        assert_eq!(control.next_transaction, (2 << 32) + 746);
        assert!(control.is_shut_down());
        for state in ["in production", "shut down in recovery", "shutting down"] {
            let other = ControlData::parse(&OUTPUT.replace("shut down", state)).expect("read");
            assert!(!other.is_shut_down(), "{state}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            ControlData::parse(&OUTPUT.replace("TimeLineID:       1", "TimeLineID: one")).expect_err("no number");
        assert!(error.to_string().contains("TimeLineID"), "{error}");
        assert!(ControlData::parse("").is_err());
    }
}
