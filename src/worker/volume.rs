//! A volume backup: the data container's volumes, copied from a running server into one tar, through the pipeline into the set's
//! folder in each repository.
//!
//! ```text
//!   copying thread                                                        this thread and the codec's
//!   ──────────────                                                        ───────────────────────────
//!   server into backup mode ─▶ /data /config /secret /log, pg_control last ──▶ tar ──▶ compress ─▶ seal ─▶ uploads
//!     ─▶ out of backup mode ─▶ backup_label, tablespace_map, WAL, backup_manifest ──▶
//!     ─▶ session ends
//! ```
//!
//! * One session is in backup mode for the whole copy and holds a temporary slot, which keeps the WAL: both end with the session,
//!   whatever ends it, this process's death included.
//! * The WAL from start to stop is in the tar, so the directory that is unpacked reaches consistency by itself, without an archive.
//! * A cold copy is made the same way of a server that is shut down: without session and label, and with the WAL of its last
//!   checkpoint only ([`cold`]).
//! * Where later copies are to hold only what changed, a block index says what is in this one; and of this one, only what changed is
//!   written ([`blocks`]). Where the server can tell what has changed, the rest is not even read ([`summaries`], [`unread`]).
//! * An object counts only when the copy, the stop call and the codec agree that it is whole, and its end reads back.

mod archive;
mod blocks;
mod cold;
mod copier;
mod crc;
mod pace;
mod pages;
mod passing;
pub(crate) mod relations;
mod selection;
pub(crate) mod server_manifest;
mod summaries;
mod unread;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::backup_set::{Content, CopyMode, Incremental, Moved, Object, VolumeCopy};
use crate::encryption::{Keys, Recipients};
use crate::pipeline::frames::{FrameBytes, SeekTable};
use crate::pipeline::handover::{Giver, handover};
use crate::pipeline::seal::Unsealed;
use crate::pipeline::{Compression, PipelineError, Sealed, compress};
use crate::policy::IoPriority;
use crate::postgres::hot_backup::{self, HotBackup, Stopped};
use crate::postgres::installation::sorting;
use crate::postgres::tools::Toolbox;
use crate::postgres::{PostgresError, inspect};
use crate::storage::Folder;

use super::destinations::Destinations;
use super::process::{Line, connect_somewhere};
use super::{Event, Failure, ParentJob, Trouble, VolumeJob, pipeline_failure, storage_failure};

use archive::Owner;
use blocks::{Blocks, Parent};
use copier::{Copier, CopyError};
use selection::{Selection, relocate};
use server_manifest::ServerManifest;

/// Plain bytes in a frame: larger ones save little, and there are `threads + 3` of them at once.
const FRAME: u32 = 4 << 20;

pub(super) fn frame_bytes() -> FrameBytes {
    FrameBytes::new(FRAME).expect("a frame size within limits")
}

/// Does the job.
pub fn run(job: &VolumeJob, line: &Line, runtime: &tokio::runtime::Handle) -> Result<Vec<String>, Failure> {
    let begun = Instant::now();
    let destinations = Destinations::open(&job.destinations, line)?;
    let sealing = job.recipients.as_ref().map(Recipients::with_reader);
    let (blocks, parent) = begin_blocks(job, line)?;
    let object = parent.map_or(&job.object, |parent| &parent.object);
    let mut upload = destinations.begin(object)?;
    let compression = Compression {
        codec: job.codec,
        threads: NonZeroUsize::new(job.threads).unwrap_or(NonZeroUsize::MIN),
        frame_bytes: frame_bytes(),
    };
    // A copy that fails ends the codec, and the other way round.
    let stop = line.stop.child_token();
    let (giver, mut taker) = handover();
    let (copied, streamed) = std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            if let Some(priority) = job.ionice {
                wait_at_the_disk(priority, line);
            }
            match job.mode {
                CopyMode::Hot => copy(job, blocks, giver, runtime, &stop),
                CopyMode::Cold => cold::copy(job, blocks, giver, &stop),
            }
        });
        let recipients = sealing.as_ref().map(|(recipients, _)| recipients);
        let streamed = compress(&mut taker, &mut upload, compression, recipients, &line.meter, &stop);
        drop(taker);
        if streamed.is_err() {
            stop.cancel();
        }
        (copying.join(), streamed)
    });
    let copied = copied.unwrap_or_else(|_| Err(Failure::new(Trouble::Other, "copying hit a bug").into()));
    if line.stop.is_cancelled() {
        return Err(Failure::new(Trouble::Cancelled, "cancelled"));
    }
    let writing = |name: &str, error: &PipelineError| pipeline_failure(&format!("writing {name}"), error);
    let (Copied { mut copy, blocks, summaries_unused, unkept }, sealed) = match (copied, streamed) {
        (Ok(copied), Ok(sealed)) => (copied, sealed),
        // The first one is the cause; the other was stopped by it.
        (Err(CopyError::Failed(failure)), _) if failure.trouble != Trouble::Cancelled => return Err(failure),
        (_, Err(error)) => return Err(writing(object, &error)),
        (Err(CopyError::Failed(failure)), Ok(_)) => return Err(failure),
        (Err(CopyError::Gone), Ok(_)) => return Err(Failure::new(Trouble::Other, "the copy ended early")),
    };
    upload.commit()?;
    let keys = sealing.as_ref().map(|(_, keys)| keys);
    destinations.each(|folder| check(folder, object, &sealed, keys))?;
    let copied_in = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let mut index = None;
    if let (Some(blocks), Some(wanted)) = (blocks, &job.blocks) {
        let unread_bytes = blocks.unread();
        let (text, tar_bytes) = blocks.finish();
        copy.incremental = parent.map(|parent| Incremental {
            tar_bytes,
            ancestors: parent.ancestors.clone(),
            unread_bytes,
            summaries_unused,
        });
        let mut upload = destinations.begin(&wanted.object)?;
        let sealing = wanted.readers.as_ref().map(Recipients::with_reader);
        let readers = sealing.as_ref().map(|(readers, _)| readers);
        let compression = Compression { codec: compression.codec.that_packs(), ..compression };
        let sealed = compress(&mut &text[..], &mut upload, compression, readers, &line.meter, &line.stop)
            .map_err(|error| writing(&wanted.object, &error))?;
        upload.commit()?;
        let keys = sealing.as_ref().map(|(_, keys)| keys);
        destinations.each(|folder| check(folder, &wanted.object, &sealed, keys))?;
        index = Some((&wanted.object, sealed));
    }
    if let Some(first) = unkept.first() {
        let count = unkept.len();
        line.warn(format!(
            "{count} extended attributes are not in the copy, because they are of several lines: {first}, …"
        ));
    }
    for damaged in &copy.damaged {
        line.warn(format!("{}; see the server's log, and take a dump of what can still be read", damaged.words()));
    }
    let tell = |name: &str, content, Sealed { stored, plain }, seconds| {
        line.tell(&Event::Object(Object { name: name.to_owned(), content, stored, plain, seconds }));
    };
    tell(object, Content::Volume(Box::new(copy)), sealed, copied_in);
    if let Some((name, sealed)) = index {
        tell(name, Content::Blocks, sealed, begun.elapsed().as_secs_f64());
    }
    Ok(vec![])
}

/// Has this thread, which is the one that reads the volumes, wait for its turn at the disk.
fn wait_at_the_disk(priority: IoPriority, line: &Line) {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let set = Command::new("ionice").args(priority.arguments()).args(["-p", &thread]).stdin(Stdio::null()).output();
    let why = match set {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    line.warn(format!("the volumes were read as everybody reads, not by ionice = \"{priority}\": {why}"));
}

/// A tar that was written.
struct Copied {
    copy: VolumeCopy,
    blocks: Option<Blocks>,
    /// Why the server did not tell what changed, where it was asked.
    summaries_unused: Option<String>,
    /// Extended attributes that are not in it.
    unkept: Vec<String>,
}

/// What is known of blocks before the copy, and whose they are. A parent whose index cannot be used costs a full copy, no more.
fn begin_blocks<'j>(job: &'j VolumeJob, line: &Line) -> Result<(Option<Blocks>, Option<&'j ParentJob>), Failure> {
    let Some(wanted) = &job.blocks else { return Ok((None, None)) };
    let begin = |parent| Some(Blocks::begin(wanted.set.clone(), wanted.block_bytes, parent));
    let Some(parent) = &wanted.parent else { return Ok((begin(None), None)) };
    match Parent::read(parent, &line.stop) {
        Ok(known) => Ok((begin(Some(known)), Some(parent))),
        Err(failure) if failure.trouble == Trouble::Cancelled => Err(failure),
        Err(failure) => {
            let set = parent.ancestors.first().map(|parent| parent.set.to_string()).unwrap_or_default();
            let why = failure.message;
            line.warn(format!("a full copy was taken: which blocks changed since {set} cannot be told: {why}"));
            Ok((begin(None), None))
        }
    }
}

/// Reads the end of the object back: where its frames are, and that they are all there.
fn check(folder: &Folder, name: &str, sealed: &Sealed, keys: Option<&Keys>) -> Result<(), Failure> {
    let object = folder.open(name).map_err(|error| storage_failure(&format!("cannot read {name} back"), &error))?;
    let read = || match keys {
        None => SeekTable::read(&*object),
        Some(keys) => SeekTable::read(&Unsealed::open(&*object, keys)?),
    };
    let found = read().map_err(|error| pipeline_failure(&format!("reading {name} back"), &error))?.plain_bytes();
    if found == sealed.plain.bytes {
        return Ok(());
    }
    Err(Failure::new(Trouble::Damaged, format!("{name} has {found} bytes in it, {} were written", sealed.plain.bytes)))
}

/// Waits for the server, unless the job should end.
fn wait<T>(
    runtime: &tokio::runtime::Handle,
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, Failure> {
    runtime.block_on(async {
        tokio::select! {
            done = work => done.map_err(Failure::from),
            () = stop.cancelled() => Err(Failure::new(Trouble::Cancelled, "cancelled")),
        }
    })
}

/// What the copying thread does.
fn copy(
    job: &VolumeJob,
    mut blocks: Option<Blocks>,
    out: Giver,
    runtime: &tokio::runtime::Handle,
    stop: &CancellationToken,
) -> Result<Copied, CopyError> {
    let pgdata = PathBuf::from(&job.pgdata);
    let owner = Owner::from(&fs::metadata(&pgdata).map_err(|error| {
        Failure::from_error(Trouble::Request, &format!("the data directory {} cannot be read", job.pgdata), &error)
    })?);
    let server = wait(runtime, stop, async {
        let client = connect_somewhere(&job.login).await?;
        let found = inspect::data_directory(&client).await?;
        if relocate(&job.moved, PathBuf::from(&found)) != pgdata {
            let reason = format!("it is {found}, and the policy's image keeps it in {}", job.pgdata);
            return Err(PostgresError::Query { what: "its data directory", reason });
        }
        HotBackup::begin(client, job.major, &job.label, &job.slot).await
    })?;
    let summarized = wait(runtime, stop, async { Ok(summaries::are_written(job, &server).await) })?;
    let mut summaries_unused = None;
    if let Some(blocks) = &mut blocks {
        if summarized {
            blocks.note_crcs();
        }
        let block_bytes = blocks.block_bytes();
        match wait(runtime, stop, async { Ok(summaries::changes(job, &server, block_bytes, &pgdata).await) })? {
            Some(Ok(changes)) => blocks.rely_on(changes),
            Some(Err(why)) => summaries_unused = Some(why),
            None => {}
        }
    }
    let selection = selection(job, &pgdata)?;
    let manifest = ServerManifest::new(job.major, job.system_identifier);
    let mut copier = Copier::new(out, &selection, manifest, job.rate_limit, blocks, stop);
    copier.judge_before = job.page_checksums.then_some(server.start().0);
    let server = Arc::new(server);
    while_it_lasts(&server, runtime, stop, || {
        for volume in &job.volumes {
            copier.volume(Path::new(volume))?;
        }
        copier.last()
    })?;
    let stopped = wait(runtime, stop, server.stop())?;
    let now_there = tablespaces(&pgdata, job)?;
    for folder in now_there.into_iter().filter(|found| !selection.tablespaces.contains(found)) {
        // Replay makes a tablespace that is new only where its folder is there.
        let within: Vec<&Path> = folder.1.ancestors().take_while(|path| !is_volume(path, &job.volumes)).collect();
        for path in within.into_iter().rev() {
            let metadata = fs::metadata(path).map_err(|error| copier::unreadable(path, &error))?;
            copier.made_folder(path, Owner::from(&metadata))?;
        }
    }
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let file = Owner { mode: 0o600, mtime: now, ..owner };
    let timeline = hot_backup::timeline_of(&stopped.backup_label).ok_or_else(|| {
        Failure::new(Trouble::Tool, format!("the server's backup_label names no timeline: {}", stopped.backup_label))
    })?;
    copier.made(&pgdata.join("backup_label"), file, stopped.backup_label.as_bytes())?;
    if let Some(map) = &stopped.tablespace_map {
        let map = hot_backup::relocate_tablespaces(map, |path| Moved::place(&job.moved, path));
        copier.made(&pgdata.join("tablespace_map"), file, map.as_bytes())?;
    }
    let segments: Vec<String> =
        hot_backup::segments(timeline, server.start(), stopped.stop, job.wal_segment_bytes).collect();
    copy_wal(&mut copier, &pgdata, &segments, job.wal_segment_bytes, file)?;
    let found = std::mem::take(&mut copier.damaged);
    let damaged = wait(runtime, stop, async { Ok(relations::name(&job.login, found).await) })?;
    let history = if summarized { wait(runtime, stop, summaries::history(&server, &pgdata))? } else { None };
    let start = server.start();
    // The WAL is copied: the slot may go.
    drop(server);
    let manifest = std::mem::replace(&mut copier.manifest, ServerManifest::new(job.major, 0));
    let files = manifest.files();
    // pg_verifybackup is there since 13.
    if job.major.is_at_least(13) {
        let bytes = manifest.finish(Some((timeline, start, stopped.stop)));
        copier.made(&pgdata.join("backup_manifest"), file, &bytes)?;
    }
    let Stopped { stop, backup_label, .. } = stopped;
    let unkept = std::mem::take(&mut copier.unkept);
    let (entries, blocks) = copier.finish()?;
    let copy = VolumeCopy {
        volumes: job.volumes.clone(),
        pgdata: job.pgdata.clone(),
        moved: job.moved.clone(),
        sorting: Toolbox::find(job.major, &job.login).ok().map(|toolbox| sorting(&toolbox)),
        mode: CopyMode::Hot,
        start_lsn: start.to_string(),
        stop_lsn: stop.to_string(),
        timeline,
        first_wal: segments.first().cloned().unwrap_or_default(),
        last_wal: segments.last().cloned().unwrap_or_default(),
        backup_label,
        entries,
        server_files: files,
        damaged,
        incremental: None,
        history,
    };
    Ok(Copied { copy, blocks, summaries_unused, unkept })
}

/// Copies with `work`; ends it as soon as `server` is in backup mode no more: nothing of what it copies could be used.
fn while_it_lasts(
    server: &Arc<HotBackup>,
    runtime: &tokio::runtime::Handle,
    stop: &CancellationToken,
    work: impl FnOnce() -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let watch = runtime.spawn({
        let (server, stop) = (Arc::clone(server), stop.clone());
        async move {
            let error = server.lost().await;
            stop.cancel();
            error
        }
    });
    let worked = work();
    watch.abort();
    match runtime.block_on(watch) {
        Ok(error) => Err(Failure::from(error).into()),
        Err(_) => worked,
    }
}

/// Adds the WAL that the copy needs, and the histories of timelines. Each file is marked as archived, as `pg_basebackup` does: a
/// server that starts from the copy has no reason to archive it again.
fn copy_wal(
    copier: &mut Copier<'_>,
    pgdata: &Path,
    segments: &[String],
    segment_bytes: u64,
    file: Owner,
) -> Result<(), CopyError> {
    let wal = pgdata.join("pg_wal");
    let archived = wal.join("archive_status");
    copier.made_folder(&archived, Owner { mode: 0o700, ..file })?;
    let mut done = Vec::new();
    let listing = fs::read_dir(&wal)
        .map_err(|error| Failure::from_error(Trouble::Other, &format!("reading {} failed", wal.display()), &error))?;
    let mut histories: Vec<PathBuf> = listing
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "history"))
        .collect();
    histories.sort();
    for path in histories {
        let bytes = fs::metadata(&path).map(|metadata| metadata.size()).unwrap_or_default();
        copier.whole_file(&path, bytes)?;
        done.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    for segment in segments {
        copier.whole_file(&wal.join(segment), segment_bytes).map_err(|error| match error {
            CopyError::Failed(failure) => CopyError::Failed(Failure {
                message: format!("WAL that the backup needs is not there as it should be: {}", failure.message),
                ..failure
            }),
            CopyError::Gone => CopyError::Gone,
        })?;
        done.push(segment.clone());
    }
    for name in done {
        copier.made(&archived.join(format!("{name}.done")), file, &[])?;
    }
    Ok(())
}

fn is_volume(path: &Path, volumes: &[String]) -> bool {
    volumes.iter().any(|volume| path == Path::new(volume))
}

/// What of the files is the server's.
fn selection(job: &VolumeJob, pgdata: &Path) -> Result<Selection, Failure> {
    let tablespaces = tablespaces(pgdata, job)?;
    Ok(Selection { mode: job.mode, pgdata: pgdata.to_owned(), tablespaces, moved: job.moved.clone() })
}

/// The tablespaces outside of the data directory, where the copy has them. Each must be in a volume that is copied.
fn tablespaces(pgdata: &Path, job: &VolumeJob) -> Result<Vec<(String, PathBuf)>, Failure> {
    let folder = pgdata.join("pg_tblspc");
    let failed = |error: std::io::Error| {
        Failure::from_error(Trouble::Other, &format!("reading {} failed", folder.display()), &error)
    };
    let mut tablespaces = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().map_err(failed)?.is_symlink() {
            continue; // in place
        }
        let target = relocate(&job.moved, fs::read_link(entry.path()).map_err(failed)?);
        if !job.volumes.iter().any(|volume| target.starts_with(volume)) {
            return Err(Failure::new(
                Trouble::Request,
                format!("a tablespace lies in {}, which is in none of the volumes that are copied", target.display()),
            ));
        }
        tablespaces.push((entry.file_name().to_string_lossy().into_owned(), target));
    }
    tablespaces.sort();
    Ok(tablespaces)
}
