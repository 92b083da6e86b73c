//! A server in backup mode (PostgreSQL manual, Making a Base Backup Using the Low Level API), and the names of the WAL a
//! backup needs.
//!
//! ```text
//! slot ─▶ start ─▶ files are copied, however they change meanwhile ─▶ stop ─▶ WAL from start to stop is copied ─▶ session ends
//! ```
//!
//! The form is the non-exclusive one: backup mode belongs to the session, so it ends with it, however that ends. The slot that
//! keeps the WAL is temporary and ends with the session too. Nothing is left behind.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Client;

use crate::cluster::PgMajor;

use super::{PostgresError, words};

/// A place in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Lsn(pub u64);

/// The text is not a place in the WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a place in the WAL (such as 16/B374D848)")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |part: &str| u32::from_str_radix(part, 16).ok().filter(|_| !part.starts_with('+'));
        let (high, low) = text.split_once('/').ok_or_else(|| LsnError(text.to_owned()))?;
        match (half(high), half(low)) {
            (Some(high), Some(low)) => Ok(Self((u64::from(high) << 32) | u64::from(low))),
            _ => Err(LsnError(text.to_owned())),
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The file names of the WAL from `start` to `stop` (which is not in it any more), in order.
pub fn segments(timeline: u32, start: Lsn, stop: Lsn, segment_bytes: u64) -> impl Iterator<Item = String> {
    let in_each_high_half = 0x1_0000_0000 / segment_bytes;
    let (first, last) = (start.0 / segment_bytes, stop.0.saturating_sub(1) / segment_bytes);
    (first..=last.max(first)).map(move |number| {
        format!("{timeline:08X}{:08X}{:08X}", number / in_each_high_half, number % in_each_high_half)
    })
}

/// The timeline that a `backup_label` says the backup starts on: it is in the name of its first WAL file.
pub fn timeline_of(backup_label: &str) -> Option<u32> {
    let file = backup_label.lines().find(|line| line.starts_with("START WAL LOCATION: "))?.split_once("(file ")?.1;
    u32::from_str_radix(file.get(..8)?, 16).ok()
}

/// A `tablespace_map` whose folders are where `place` says; it is None for one that stays where it is. A line is a tablespace's oid,
/// a space and its folder, in which a backslash stands before each backslash and each end of a line (`do_pg_backup_start` in `xlog.c`).
pub fn relocate_tablespaces(map: &str, place: impl Fn(&str) -> Option<String>) -> String {
    let mut relocated = String::new();
    let mut rest = map;
    while !rest.is_empty() {
        let (line, after) = first_line(rest);
        let moved = line
            .split_once(' ')
            .and_then(|(oid, folder)| Some(format!("{oid} {}", escape(&place(&unescape(folder))?))));
        relocated.push_str(moved.as_deref().unwrap_or(line));
        if line.len() < rest.len() {
            relocated.push('\n');
        }
        rest = after;
    }
    relocated
}

/// The first line of `text`, and what comes after its end. An end of a line with a backslash before it is none.
fn first_line(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        if letter == '\n' && !escaped {
            return (&text[..at], &text[at + 1..]);
        }
        escaped = letter == '\\' && !escaped;
    }
    (text, "")
}

fn unescape(folder: &str) -> String {
    let mut letters = folder.chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    plain
}

fn escape(folder: &str) -> String {
    let special = |letter: char| matches!(letter, '\\' | '\n' | '\r');
    folder.chars().flat_map(|letter| special(letter).then_some('\\').into_iter().chain([letter])).collect()
}

/// How often the session is looked at while files are copied.
const PULSE: Duration = Duration::from_secs(1);

/// A server in backup mode, for as long as this lives.
pub struct HotBackup {
    client: Client,
    major: PgMajor,
    start: Lsn,
}

/// What the server said at the end of backup mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Where replay is consistent.
    pub stop: Lsn,
    /// The content of `backup_label`.
    pub backup_label: String,
    /// The content of `tablespace_map`; None where there are no tablespaces.
    pub tablespace_map: Option<String>,
}

/// Why a request of the session failed: it is over, or the server refused it.
fn left_or(what: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    if error.is_closed() { PostgresError::BackupModeLost { reason: words(error) } } else { query_error(what, error) }
}

impl HotBackup {
    /// The oldest major whose slots can be temporary and reserve WAL.
    pub const OLDEST: u16 = 10;

    /// Puts the server behind `client` into backup mode, with a checkpoint at once. The WAL from here on stays until this is
    /// dropped.
    pub async fn begin(client: Client, major: PgMajor, label: &str, slot: &str) -> Result<Self, PostgresError> {
        if major.is_at_least(14) {
            // The session says nothing while files are copied, however long that takes.
            let quiet = client.batch_execute("set idle_session_timeout = 0").await;
            quiet.map_err(|error| query_error("patience with the backup's session", &error))?;
        }
        let standby = client.query_one("select pg_catalog.pg_is_in_recovery()", &[]).await;
        if standby.map_err(|error| query_error("whether it is a standby", &error))?.get(0) {
            return Err(PostgresError::Query {
                what: "backup mode",
                reason: "it is a standby, of which this version takes no volume backups".to_owned(),
            });
        }
        client
            .query_one(
                "select slot_name::text from pg_catalog.pg_create_physical_replication_slot($1, true, true)",
                &[&slot],
            )
            .await
            .map_err(|error| query_error("a temporary slot that keeps the WAL", &error))?;
        let start = if major.is_at_least(15) {
            "select pg_catalog.pg_backup_start($1, true)::text"
        } else {
            "select pg_catalog.pg_start_backup($1, true, false)::text"
        };
        let row = client.query_one(start, &[&label]).await.map_err(|error| left_or("backup mode", &error))?;
        let start = lsn("backup mode", row.get(0))?;
        Ok(Self { client, major, start })
    }

    /// Where replay begins.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The session, for questions that belong to the backup.
    pub fn session(&self) -> &Client {
        &self.client
    }

    /// Waits until the session is over before its time, which may never be; says why it is.
    pub async fn lost(&self) -> PostgresError {
        loop {
            tokio::time::sleep(PULSE).await;
            // A statement, too: an end that nobody told us of shows only when something is sent.
            if let Err(error) = self.client.batch_execute("").await {
                return PostgresError::BackupModeLost { reason: words(&error) };
            }
        }
    }

    /// Ends backup mode. The WAL is complete on disk then, and is kept until this is dropped.
    pub async fn stop(&self) -> Result<Stopped, PostgresError> {
        // Not waiting for the archive, which may be broken or missing: the backup takes its WAL along.
        let stop = if self.major.is_at_least(15) {
            "select lsn::text, labelfile, spcmapfile from pg_catalog.pg_backup_stop(false)"
        } else {
            "select lsn::text, labelfile, spcmapfile from pg_catalog.pg_stop_backup(false, false)"
        };
        let row = self.client.query_one(stop, &[]).await.map_err(|error| left_or("the end of backup mode", &error))?;
        Ok(Stopped {
            stop: lsn("the end of backup mode", row.get(0))?,
            backup_label: row.get(1),
            tablespace_map: row.get::<_, Option<String>>(2).filter(|map| !map.trim().is_empty()),
        })
    }
}

fn lsn(what: &'static str, text: &str) -> Result<Lsn, PostgresError> {
    text.parse().map_err(|error: LsnError| PostgresError::Query { what, reason: error.to_string() })
}

fn query_error(what: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, reason: words(error) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: u64 = 16 << 20;

    fn names(start: &str, stop: &str, segment_bytes: u64) -> Vec<String> {
        segments(1, start.parse().expect("an LSN"), stop.parse().expect("an LSN"), segment_bytes).collect()
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        assert_eq!(names("0/2000028", "0/2000138", USUAL), ["000000010000000000000002"]);
        // A stop on the edge is the end of the segment before it.
        assert_eq!(names("0/2000028", "0/3000000", USUAL), ["000000010000000000000002"]);
        let over_the_edge = ["0000000100000001000000FF", "000000010000000200000000"];
        assert_eq!(names("1/FF000028", "2/28", USUAL), over_the_edge);
        assert_eq!(names("0/40000028", "0/40000138", 1 << 30), ["000000010000000000000001"]);
        assert_eq!(names("1/28", "1/138", 1 << 20), ["000000010000000100000000"]);
    }

    #[test]
    fn the_timeline_is_in_the_label() {
        let label = "START WAL LOCATION: 0/2000028 (file 0000000A0000000000000002)\nCHECKPOINT LOCATION: 0/2000080\n";
        assert_eq!(timeline_of(label), Some(10));
        assert_eq!(timeline_of("LABEL: START WAL LOCATION: 0/1 (file 00000001"), None);
    }

    #[test]
    fn tablespaces_are_relocated_line_by_line() {
        let place = |path: &str| path.strip_prefix("/mnt/").map(|rest| format!("/data/tablespaces/mnt/{rest}"));
        let relocated = relocate_tablespaces("16400 /mnt/fast one\n16401 /srv/b\n", place);
        assert_eq!(relocated, "16400 /data/tablespaces/mnt/fast one\n16401 /srv/b\n");
        assert_eq!(relocate_tablespaces("16400 /mnt/a", place), "16400 /data/tablespaces/mnt/a");
    }

    proptest! {
        #[test]
        fn every_folder_survives_its_relocation(folders in proptest::collection::vec("/[a-z \\\\\n\r/]{1,12}", 0..5)) {
            let map = |folders: &[String]| {
                let lines = folders.iter().enumerate().map(|(oid, folder)| format!("{oid} {}\n", escape(folder)));
                lines.collect::<Vec<_>>().concat()
            };
            let moved: Vec<String> = folders.iter().map(|folder| format!("/data{folder}")).collect();
            prop_assert_eq!(relocate_tablespaces(&map(&folders), |folder| Some(format!("/data{folder}"))), map(&moved));
            prop_assert_eq!(relocate_tablespaces(&map(&folders), |_| None), map(&folders));
        }

        #[test]
        fn places_read_back(number: u64) {
            prop_assert_eq!(Lsn(number).to_string().parse::<Lsn>().expect("an LSN"), Lsn(number));
        }

        #[test]
        fn segments_have_no_gap(start in 0..u64::MAX / 4, bytes in 1..200_u64 << 20, power in 20..31_u32) {
            let segment = 1_u64 << power;
            let names: Vec<String> = segments(1, Lsn(start), Lsn(start + bytes), segment).collect();
            let first = start / segment;
            for (at, name) in (first..).zip(&names) {
                let (high, low) = (&name[8..16], &name[16..24]);
                let part = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
                prop_assert_eq!((part(high) << 32) / segment + part(low), at);
            }
            let covered = (first + names.len() as u64) * segment;
            prop_assert!(covered >= start + bytes && covered - segment < start + bytes);
        }
    }
}
