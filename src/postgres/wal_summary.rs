//! What the server itself knows of changed blocks: its WAL summaries (17 and later, `summarize_wal = on`; PostgreSQL manual, WAL
//! Summarization Information Functions).
//!
//! A summary covers the WAL from one place to another, and names the blocks of relations that it changes. Where summaries cover all
//! of the WAL between two places, a block that none of them names is the same at both. Of a fork that was made, truncated or removed
//! they name a *limit*: every block from there on counts as changed; of a database that was made or removed, the relation 0.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use tokio_postgres::Client;

use super::hot_backup::{Lsn, LsnError};
use super::{PostgresError, words};

/// The first major that has them.
pub const OLDEST: u16 = 17;

/// How often it is looked how far the summaries are.
const PULSE: Duration = Duration::from_millis(100);

/// A file with a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Summary {
    /// Of which timeline.
    pub timeline: u32,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends: what is there is not in it.
    pub end: Lsn,
}

impl Summary {
    /// The name of its file in `pg_wal/summaries`.
    pub fn file_name(&self) -> String {
        let halves = |lsn: Lsn| format!("{:08X}{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
        format!("{:08X}{}{}.summary", self.timeline, halves(self.start), halves(self.end))
    }
}

/// Why it is not known what changed.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// Nobody writes summaries.
    #[error("summarize_wal is off")]
    Off,
    /// The summarizer hangs, or is not there.
    #[error("the server's WAL summarizer is at {at} and gets no further; the copy begins at {wanted}")]
    Stuck {
        /// How far it is.
        at: Lsn,
        /// How far it should be.
        wanted: Lsn,
    },
    /// Some WAL is in no summary.
    #[error("the WAL from {from} to {to} is not all in summaries: what comes after {missing} is in none")]
    Gap {
        /// From where it is needed.
        from: Lsn,
        /// Up to where.
        to: Lsn,
        /// What is missing first.
        missing: Lsn,
    },
    /// Pages or segments are not of the usual size.
    #[error("the server was built with pages or segments of another size than 8 KiB and 1 GiB")]
    OtherPages,
    /// The server did not answer, or not as expected.
    #[error(transparent)]
    Server(#[from] PostgresError),
}

/// The summaries of `timeline` that cover the WAL from `from` to `to`, or the first place that none covers. Pure.
pub fn covering(summaries: &[Summary], timeline: u32, from: Lsn, to: Lsn) -> Result<Vec<Summary>, Lsn> {
    let needed = |summary: &&Summary| summary.timeline == timeline && summary.end > from && summary.start < to;
    let mut needed: Vec<Summary> = summaries.iter().filter(needed).copied().collect();
    needed.sort_unstable();
    let mut covered = from;
    for summary in &needed {
        if summary.start > covered {
            return Err(covered);
        }
        covered = covered.max(summary.end);
    }
    if covered < to { Err(covered) } else { Ok(needed) }
}

/// A relation, by what its files are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The oid of its tablespace.
    pub tablespace: u32,
    /// The oid of its database; 0: all share it.
    pub database: u32,
    /// Its file number; 0: all of the database in that tablespace.
    pub number: u32,
}

/// Which blocks of the main forks of relations changed. What it does not name did not.
#[derive(Debug)]
pub struct Changes {
    /// Pages that are told as one.
    pages_together: u32,
    relations: HashMap<RelationFile, Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    /// From which page on everything changed.
    limit: Option<u32>,
    /// A bit for each block of `pages_together` pages.
    blocks: Vec<u64>,
}

impl Changes {
    /// Nothing changed. So many pages are told as one.
    pub fn none(pages_together: u32) -> Self {
        Self { pages_together: pages_together.max(1), relations: HashMap::new() }
    }

    /// A page of a relation changed, or with `is_limit` everything from it on.
    pub fn note(&mut self, relation: RelationFile, page: u32, is_limit: bool) {
        let together = self.pages_together;
        let changed = self.relations.entry(relation).or_default();
        if is_limit {
            changed.limit = Some(changed.limit.map_or(page, |limit| limit.min(page)));
            return;
        }
        let (word, bit) = place(page / together);
        if changed.blocks.len() <= word {
            changed.blocks.resize(word + 1, 0);
        }
        changed.blocks[word] |= bit;
    }

    /// Whether any of the `pages` of a relation may have changed.
    pub fn touch(&self, relation: RelationFile, pages: Range<u64>) -> bool {
        if self.relations.contains_key(&RelationFile { number: 0, ..relation }) {
            return true;
        }
        let Some(changed) = self.relations.get(&relation) else { return false };
        if changed.limit.is_some_and(|limit| u64::from(limit) < pages.end) {
            return true;
        }
        let together = u64::from(self.pages_together);
        (pages.start / together..pages.end.div_ceil(together)).any(|block| match u32::try_from(block).map(place) {
            Ok((word, bit)) => changed.blocks.get(word).is_some_and(|bits| bits & bit != 0),
            Err(_) => true,
        })
    }
}

/// Where the bit of a block is.
fn place(block: u32) -> (usize, u64) {
    ((block / 64) as usize, 1 << (block % 64))
}

fn failed(what: &'static str) -> impl Fn(tokio_postgres::Error) -> PostgresError {
    move |error| PostgresError::Query { what, reason: words(&error) }
}

fn misread(what: &'static str) -> impl Fn(LsnError) -> PostgresError {
    move |error| PostgresError::Query { what, reason: error.to_string() }
}

const STATE: &str = "how far its WAL summaries are";
const LIST: &str = "its WAL summaries";
const CONTENT: &str = "what a WAL summary says";

/// Whether the server writes summaries.
pub async fn is_on(client: &Client) -> Result<bool, PostgresError> {
    let setting = client.query_one("select coalesce(current_setting('summarize_wal', true), 'off') = 'on'", &[]).await;
    Ok(setting.map_err(failed("summarize_wal"))?.get(0))
}

/// Waits until the WAL up to `wanted` is in summaries; gives up when they get no further for as long as `patience`.
pub async fn reach(client: &Client, wanted: Lsn, patience: Duration) -> Result<(), Unknown> {
    let (mut furthest, mut moved) = (Lsn(0), Instant::now());
    loop {
        if !is_on(client).await? {
            return Err(Unknown::Off);
        }
        let state = "select summarized_lsn::text, pending_lsn::text from pg_catalog.pg_get_wal_summarizer_state()";
        let row = client.query_one(state, &[]).await.map_err(failed(STATE))?;
        let lsn = |column: usize| row.get::<_, &str>(column).parse::<Lsn>().map_err(misread(STATE));
        let (on_disk, in_memory) = (lsn(0)?, lsn(1)?);
        if on_disk >= wanted {
            return Ok(());
        }
        if in_memory > furthest {
            (furthest, moved) = (in_memory, Instant::now());
        } else if moved.elapsed() >= patience {
            return Err(Unknown::Stuck { at: on_disk, wanted });
        }
        tokio::time::sleep(PULSE).await;
    }
}

/// The summaries that are there.
pub async fn available(client: &Client) -> Result<Vec<Summary>, PostgresError> {
    let list = "select tli, start_lsn::text, end_lsn::text from pg_catalog.pg_available_wal_summaries()";
    let rows = client.query(list, &[]).await.map_err(failed(LIST))?;
    let lsn = |text: &str| text.parse::<Lsn>().map_err(misread(LIST));
    rows.iter()
        .map(|row| {
            let timeline = u32::try_from(row.get::<_, i64>(0)).unwrap_or_default();
            Ok(Summary { timeline, start: lsn(row.get(1))?, end: lsn(row.get(2))? })
        })
        .collect()
}

/// When the server was started, and which timeline it is on: the seconds since 1970, to the microsecond, and in its own words.
pub async fn run_of(client: &Client) -> Result<(String, u32), PostgresError> {
    let run = "select extract(epoch from pg_catalog.pg_postmaster_start_time())::text, timeline_id \
        from pg_catalog.pg_control_checkpoint()";
    let row = client.query_one(run, &[]).await.map_err(failed("when it was started"))?;
    Ok((row.get(0), u32::try_from(row.get::<_, i32>(1)).unwrap_or_default()))
}

/// What changed on `timeline` from `from` to `to`, told for `pages_together` pages each, once the server has summed that up.
pub async fn changes(
    client: &Client,
    timeline: u32,
    (from, to): (Lsn, Lsn),
    pages_together: u32,
    patience: Duration,
) -> Result<Changes, Unknown> {
    let sizes = "select current_setting('block_size') = '8192' and \
        (select setting from pg_catalog.pg_settings where name = 'segment_size') = '131072'";
    let usual: Option<bool> = client.query_one(sizes, &[]).await.map_err(failed("the size of its pages"))?.get(0);
    if usual != Some(true) {
        return Err(Unknown::OtherPages);
    }
    reach(client, to, patience).await?;
    let needed = covering(&available(client).await?, timeline, from, to).map_err(|missing| Unknown::Gap {
        from,
        to,
        missing,
    })?;
    let mut changes = Changes::none(pages_together);
    for summary in needed {
        read(client, summary, &mut changes).await?;
    }
    Ok(changes)
}

/// Notes what a summary says of main forks. It is read row by row: it may have one for every page of the server.
async fn read(client: &Client, summary: Summary, changes: &mut Changes) -> Result<(), PostgresError> {
    let content = "select reltablespace, reldatabase, relfilenode, relblocknumber, is_limit_block \
        from pg_catalog.pg_wal_summary_contents($1::text::int8, $2::text::pg_lsn, $3::text::pg_lsn) where relforknumber = 0";
    let which = [summary.timeline.to_string(), summary.start.to_string(), summary.end.to_string()];
    let rows = client.query_raw(content, which).await.map_err(failed(CONTENT))?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(failed(CONTENT))? {
        let relation = RelationFile { tablespace: row.get(0), database: row.get(1), number: row.get(2) };
        let page = u32::try_from(row.get::<_, i64>(3)).map_err(|_| PostgresError::Query {
            what: CONTENT,
            reason: "it names a block that no relation can have".to_owned(),
        })?;
        changes.note(relation, page, row.get(4));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn summary(timeline: u32, start: u64, end: u64) -> Summary {
        Summary { timeline, start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn a_gap_is_never_overlooked() {
        let all = [summary(1, 30, 40), summary(1, 10, 20), summary(2, 20, 30), summary(1, 20, 30), summary(1, 40, 50)];
        let covering = |from, to| covering(&all, 1, Lsn(from), Lsn(to));
        assert_eq!(covering(12, 38), Ok(vec![summary(1, 10, 20), summary(1, 20, 30), summary(1, 30, 40)]));
        assert_eq!(covering(20, 30), Ok(vec![summary(1, 20, 30)]));
        assert_eq!((covering(9, 30), covering(20, 51)), (Err(Lsn(9)), Err(Lsn(50))));
        let without = [all[0], all[1], all[2], all[4]];
        assert_eq!(super::covering(&without, 1, Lsn(10), Lsn(50)), Err(Lsn(20)), "that of another timeline is none");
        assert_eq!(super::covering(&[], 1, Lsn(10), Lsn(20)), Err(Lsn(10)));
    }

    #[test]
    fn files_are_named_as_the_server_names_them() {
        let named =
            Summary { timeline: 1, start: "1/28".parse().expect("an LSN"), end: "2/A0".parse().expect("an LSN") };
        assert_eq!(named.file_name(), "00000001000000010000002800000002000000A0.summary");
    }

    const TABLE: RelationFile = RelationFile { tablespace: 1663, database: 5, number: 16384 };

    #[test]
    fn a_database_that_was_made_is_new_in_that_tablespace() {
        let mut changes = Changes::none(1);
        changes.note(RelationFile { number: 0, ..TABLE }, 0, true);
        assert!(changes.touch(TABLE, 0..1) && changes.touch(RelationFile { number: 1, ..TABLE }, 700..701));
        assert!(!changes.touch(RelationFile { database: 6, ..TABLE }, 0..1));
        assert!(!changes.touch(RelationFile { tablespace: 16400, ..TABLE }, 0..1));
    }

    proptest! {
        #[test]
        fn whatever_was_noted_is_told(
            pages in prop::collection::vec((0..2000_u32, prop::bool::weighted(0.02)), 0..40),
            together in prop::sample::select(vec![1_u32, 2, 16, 128]),
            asked in 0..3000_u64,
            more in 1..200_u64,
        ) {
            let mut changes = Changes::none(together);
            for (page, is_limit) in &pages {
                changes.note(TABLE, *page, *is_limit);
            }
            let limit = pages.iter().filter(|(_, is_limit)| *is_limit).map(|(page, _)| *page).min();
            let changed = |page: u64| {
                limit.is_some_and(|limit| u64::from(limit) <= page)
                    || pages.iter().any(|(noted, is_limit)| !is_limit && u64::from(*noted) == page)
            };
            let asked = asked..asked + more;
            let told = changes.touch(TABLE, asked.clone());
            prop_assert!(told || !asked.clone().any(changed));
            // With pages that are told one by one, nothing else is.
            prop_assert!(together != 1 || told == asked.clone().any(changed));
            let other = RelationFile { number: 16385, ..TABLE };
            prop_assert!(!changes.touch(other, asked));
        }

        #[test]
        fn what_covers_has_every_place(cuts in prop::collection::vec((1..30_u64, any::<bool>()), 1..20), from in 0..300_u64, bytes in 1..300_u64) {
            let mut at = 0;
            let mut summaries = Vec::new();
            for (bytes, there) in &cuts {
                if *there {
                    summaries.push(summary(1, at, at + bytes));
                }
                at += bytes;
            }
            let covered = |place: u64| summaries.iter().any(|one| one.start.0 <= place && place < one.end.0);
            let missing = (from..from + bytes).find(|place| !covered(*place));
            match covering(&summaries, 1, Lsn(from), Lsn(from + bytes)) {
                Ok(_) => prop_assert_eq!(missing, None),
                Err(first) => prop_assert_eq!(missing, Some(first.0)),
            }
        }
    }
}
