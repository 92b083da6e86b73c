//! What the server says of changed blocks, and whether that may be relied on.
//!
//! A wrong answer is a wrong copy, so everything must fit. That WAL has the same places is not enough: a server that was restored from
//! an earlier copy goes on with other changes at the same ones. It is the parent's own server, gone on from there, if it runs since
//! before the parent was made, and the summary that ended where the parent began is the very same file. Where anything is in doubt,
//! everything is read.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::backup_set::History;
use crate::backup_set::block_index::Stamp;
use crate::postgres::PostgresError;
use crate::postgres::hot_backup::{HotBackup, Lsn};
use crate::postgres::page::BYTES as PAGE;
use crate::postgres::wal_summary::{self, Changes, Summary, Unknown};
use crate::worker::{Since, VolumeJob};

use super::copier::stamp_of;

/// How long summaries may get no further before the copy goes on without, as `pg_basebackup` has it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for the one that the next copy will look for: nobody waits longer for what is not needed yet.
const LITTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Whether a copy is to be one that the next can rely on summaries for: they are written.
pub(super) async fn are_written(job: &VolumeJob, server: &HotBackup) -> bool {
    job.blocks.is_some()
        && job.major.is_at_least(wal_summary::OLDEST)
        && wal_summary::is_on(server.session()).await.unwrap_or(false)
}

/// What changed since the parent, told for blocks of so many bytes. None: nobody asks; else why nothing is known.
pub(super) async fn changes(
    job: &VolumeJob,
    server: &HotBackup,
    block_bytes: usize,
    pgdata: &Path,
) -> Option<Result<Changes, String>> {
    let parent = job.blocks.as_ref()?.parent.as_ref().filter(|_| job.major.is_at_least(wal_summary::OLDEST))?;
    let Some(since) = &parent.since else {
        return Some(Err("the copy before was not made of a running server with them".to_owned()));
    };
    if parent.read_all {
        return Some(Err("the copy before has damaged pages, which are looked for again".to_owned()));
    }
    Some(ask(job, server, since, block_bytes, pgdata).await)
}

async fn ask(
    job: &VolumeJob,
    server: &HotBackup,
    since: &Since,
    block_bytes: usize,
    pgdata: &Path,
) -> Result<Changes, String> {
    let unknown = |error: Unknown| crate::causes::chain(&error);
    let client = server.session();
    if !wal_summary::is_on(client).await.map_err(|error| unknown(error.into()))? {
        return Err(unknown(Unknown::Off));
    }
    let run = wal_summary::run_of(client).await.map_err(|error| unknown(error.into()))?;
    let found = mark_of(pgdata, &since.history.summary).map(|stamp| History { stamp, ..since.history.clone() });
    same_history(since, found.as_ref(), &run, server.start(), job.page_checksums)?;
    let pages = u32::try_from(block_bytes / PAGE).unwrap_or(1);
    let range = (since.start, server.start());
    wal_summary::changes(client, since.timeline, range, pages, PATIENCE).await.map_err(unknown)
}

/// Whether the server went on from the parent: `found` is its mark as it is now, `run` when it was started, and its timeline. Pure.
fn same_history(
    since: &Since,
    found: Option<&History>,
    (started, timeline): &(String, u32),
    start: Lsn,
    page_checksums: bool,
) -> Result<(), String> {
    let doubt = if *started != since.history.server_started {
        "the server was started after the copy before: all is read once"
    } else if *timeline != since.timeline {
        "the server is on another timeline than the copy before"
    } else if found != Some(&since.history) {
        "the summary that ends where the copy before begins is not there, or not the same file"
    } else if start < since.stop {
        "the server's WAL ends before that of the copy before"
    } else if page_checksums != since.page_checksums {
        "page checksums were switched on or off"
    } else {
        return Ok(());
    };
    Err(doubt.to_owned())
}

/// What the next copy will know this server by, if it writes summaries fast enough.
pub(super) async fn history(server: &HotBackup, pgdata: &Path) -> Result<Option<History>, PostgresError> {
    let client = server.session();
    if wal_summary::reach(client, server.start(), LITTLE_PATIENCE).await.is_err() {
        return Ok(None);
    }
    let (server_started, timeline) = wal_summary::run_of(client).await?;
    let ends = |summary: &&Summary| summary.timeline == timeline && summary.end == server.start();
    let summaries = wal_summary::available(client).await?;
    let Some(summary) = summaries.iter().find(ends).map(Summary::file_name) else { return Ok(None) };
    Ok(mark_of(pgdata, &summary).map(|stamp| History { server_started, summary, stamp }))
}

fn mark_of(pgdata: &Path, summary: &str) -> Option<Stamp> {
    let metadata = fs::metadata(pgdata.join("pg_wal/summaries").join(summary)).ok()?;
    stamp_of(&metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_doubt_counts() {
        let history = History {
            server_started: "1795833266.000001".to_owned(),
            summary: "x.summary".to_owned(),
            stamp: Stamp { inode: 1, modified: 2, changed: 3 },
        };
        let since =
            Since { timeline: 1, start: Lsn(100), stop: Lsn(200), history: history.clone(), page_checksums: true };
        let run = (history.server_started.clone(), 1);
        let judge = |found: Option<&History>, run: &(String, u32), start: u64, page_checksums| {
            same_history(&since, found, run, Lsn(start), page_checksums).is_ok()
        };
        assert!(judge(Some(&history), &run, 200, true));
        let touched = History { stamp: Stamp { changed: 4, ..history.stamp }, ..history.clone() };
        assert!(!judge(Some(&touched), &run, 200, true), "a file of the same name, of another history");
        assert!(!judge(None, &run, 200, true));
        assert!(!judge(Some(&history), &("1795833266.000002".to_owned(), 1), 200, true));
        assert!(!judge(Some(&history), &(run.0.clone(), 2), 200, true));
        assert!(!judge(Some(&history), &run, 199, true));
        assert!(!judge(Some(&history), &run, 200, false));
    }
}
