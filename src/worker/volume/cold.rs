//! A copy of a server that is shut down (PostgreSQL manual, File System Level Backup).
//!
//! That it is, its control file says before and after the copy, and says the same. Of the WAL only the last checkpoint is needed.

use std::fs;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::backup_set::{CopyMode, VolumeCopy};
use crate::pipeline::handover::Giver;
use crate::postgres::control_data::ControlData;
use crate::postgres::hot_backup::{Lsn, segments};
use crate::postgres::installation::sorting;
use crate::postgres::tools::Toolbox;
use crate::worker::{Failure, Trouble, VolumeJob};

use super::archive::Owner;
use super::blocks::Blocks;
use super::copier::{Copier, CopyError};
use super::server_manifest::ServerManifest;
use super::{Copied, copy_wal, selection};

/// More than the record of a checkpoint has, wherever its pages begin.
const CHECKPOINT_RECORD: u64 = 256;

/// What the copying thread does.
pub(super) fn copy(
    job: &VolumeJob,
    blocks: Option<Blocks>,
    out: Giver,
    stop: &CancellationToken,
) -> Result<Copied, CopyError> {
    let pgdata = PathBuf::from(&job.pgdata);
    let owner = Owner::from(&fs::metadata(&pgdata).map_err(|error| {
        Failure::from_error(Trouble::Request, &format!("the data directory {} cannot be read", job.pgdata), &error)
    })?);
    let toolbox = Toolbox::find(job.major, &job.login).map_err(Failure::from)?;
    let control = shut_down(job, &toolbox, &pgdata)?;
    let selection = selection(job, &pgdata)?;
    let manifest = ServerManifest::new(job.major, job.system_identifier);
    let mut copier = Copier::new(out, &selection, manifest, job.rate_limit, blocks, stop);
    copier.judge_before = job.page_checksums.then_some(u64::MAX);
    for volume in &job.volumes {
        copier.volume(Path::new(volume))?;
    }
    copier.last()?;
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let file = Owner { mode: 0o600, mtime: now, ..owner };
    let end = Lsn(control.checkpoint.0 + CHECKPOINT_RECORD);
    let wal: Vec<String> = segments(control.timeline, control.redo, end, job.wal_segment_bytes)
        .enumerate()
        // The record ends before the next file, where there is none.
        .filter(|(number, name)| *number == 0 || pgdata.join("pg_wal").join(name).exists())
        .map(|(_, name)| name)
        .collect();
    copy_wal(&mut copier, &pgdata, &wal, job.wal_segment_bytes, file)?;
    if shut_down(job, &toolbox, &pgdata)? != control {
        let what = "the server was started and stopped again while it was copied";
        return Err(Failure::new(Trouble::Server, what).into());
    }
    let manifest = std::mem::replace(&mut copier.manifest, ServerManifest::new(job.major, 0));
    let files = manifest.files();
    // pg_verifybackup is there since 13. No WAL has to be replayed.
    if job.major.is_at_least(13) {
        copier.made(&pgdata.join("backup_manifest"), file, &manifest.finish(None))?;
    }
    let damaged = std::mem::take(&mut copier.damaged);
    let unkept = std::mem::take(&mut copier.unkept);
    let (entries, blocks) = copier.finish()?;
    let copy = VolumeCopy {
        volumes: job.volumes.clone(),
        pgdata: job.pgdata.clone(),
        moved: job.moved.clone(),
        sorting: Some(sorting(&toolbox)),
        mode: CopyMode::Cold,
        start_lsn: control.redo.to_string(),
        stop_lsn: control.checkpoint.to_string(),
        timeline: control.timeline,
        first_wal: wal.first().cloned().unwrap_or_default(),
        last_wal: wal.last().cloned().unwrap_or_default(),
        backup_label: String::new(),
        entries,
        server_files: files,
        damaged,
        incremental: None,
        history: None,
    };
    Ok(Copied { copy, blocks, summaries_unused: None, unkept })
}

/// What the control file says, which must be that the server of the job is shut down.
fn shut_down(job: &VolumeJob, toolbox: &Toolbox, pgdata: &Path) -> Result<ControlData, Failure> {
    let control = toolbox.control_data(pgdata).map_err(Failure::from)?;
    if control.system_identifier != job.system_identifier {
        let what = format!("{} holds another server, {}", job.pgdata, control.system_identifier);
        return Err(Failure::new(Trouble::Request, what));
    }
    if !control.is_shut_down() || pgdata.join("postmaster.pid").exists() {
        let what = format!(
            "the server did not shut down in order, or runs again: its control file says \"{}\"",
            control.state
        );
        return Err(Failure::new(Trouble::Server, what));
    }
    // One that a server ended in order on has none: it is a copy that no server was started on, or half of one.
    if pgdata.join("backup_label").exists() {
        let what = format!("{} holds a copy that no server was started on: it has a backup_label", job.pgdata);
        return Err(Failure::new(Trouble::Server, what));
    }
    Ok(control)
}
