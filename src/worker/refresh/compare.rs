//! Which blocks of files are not what they shall be.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backup_set::block_index::{Line, block_digest};
use crate::worker::fetch::between::cut;
use crate::worker::process::Line as Messages;
use crate::worker::unpack::failed;
use crate::worker::{Failure, Trouble};

/// Bytes that a thread compares in one go.
const STRETCH: usize = 8 << 20;

/// What is to be written of a file, in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) path: &'a Path,
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// Its content.
    pub(super) line: Line,
}

/// What is to be written of `files`, in their order, and how many bytes are what they shall be. A file that the index does not name is
/// not compared.
pub(super) fn pieces<'a>(
    files: &'a [(PathBuf, Line)],
    block_bytes: u32,
    threads: NonZeroUsize,
    line: &Messages,
) -> Result<(Vec<Piece<'a>>, u64), Failure> {
    let block_bytes = block_bytes as usize;
    let differing = differing(files, block_bytes, threads, line)?;
    let mut pieces = Vec::new();
    let mut kept = 0;
    for ((path, content), ranges) in files.iter().zip(differing) {
        if content.path.is_none() {
            pieces.push(Piece { path, offset: 0, line: content.clone() });
            continue;
        }
        let mut differ = 0;
        for blocks in ranges {
            let piece = part_of(content, block_bytes, blocks).map(|(offset, line)| Piece { path, offset, line });
            let piece = piece.ok_or_else(|| {
                let what = format!("the block index does not say where all of {} lies", path.display());
                Failure::new(Trouble::Damaged, what)
            })?;
            differ += piece.line.bytes();
            pieces.push(piece);
        }
        kept += content.bytes() - differ;
    }
    Ok((pieces, kept))
}

/// Where `blocks` of a file begin, and what is known of them.
fn part_of(file: &Line, block_bytes: usize, blocks: Range<usize>) -> Option<(u64, Line)> {
    let offset = (blocks.start * block_bytes) as u64;
    let bytes = file.bytes().min((blocks.end * block_bytes) as u64).checked_sub(offset)?;
    let mut begins = 0;
    let mut places = Vec::with_capacity(file.parts.len());
    for part in &file.parts {
        places.push((begins, *part));
        begins += part.bytes;
    }
    let path = file.path.as_ref().map(|path| match blocks.start {
        0 => path.clone(),
        first => format!("{path}, counted from its block {first},"),
    });
    let digests = file.blocks.get(blocks)?.to_vec();
    Some((offset, Line { parts: cut(&places, offset, bytes)?, path, blocks: digests, ..Line::default() }))
}

/// The blocks of each file that differ from what is on disk, in rows.
fn differing(
    files: &[(PathBuf, Line)],
    block_bytes: usize,
    threads: NonZeroUsize,
    line: &Messages,
) -> Result<Vec<Vec<Range<usize>>>, Failure> {
    let in_a_stretch = (STRETCH / block_bytes).max(1);
    let stretches: Vec<(usize, Range<usize>)> = files
        .iter()
        .enumerate()
        .flat_map(|(file, (_, content))| {
            let blocks = content.blocks.len();
            let starts = (0..blocks).step_by(in_a_stretch);
            starts.map(move |start| (file, start..blocks.min(start + in_a_stretch)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let compare = || -> Result<(), Failure> {
        let mut buffer = vec![0; in_a_stretch * block_bytes];
        while let Some((file, blocks)) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) {
            if line.stop.is_cancelled() {
                return Err(Failure::new(Trouble::Cancelled, "cancelled"));
            }
            let (path, content) = &files[*file];
            let rows = rows_that_differ(path, content, blocks.clone(), block_bytes, &mut buffer);
            let rows = rows.map_err(|error| failed(&format!("comparing {}", path.display()), &error))?;
            let differ: usize = rows.iter().map(ExactSizeIterator::len).sum();
            line.meter.add_plain((blocks.len() - differ) * block_bytes);
            let mut found = found.lock().expect("nobody panics with it");
            found.extend(rows.into_iter().map(|row| (*file, row)));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.get()).map(|_| scope.spawn(compare)).collect();
        let bug = || Failure::new(Trouble::Other, "comparing hit a bug");
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(bug())))
    })?;
    let mut found = found.into_inner().expect("nobody panicked with it");
    found.sort_by_key(|(file, row)| (*file, row.start));
    let mut differing = vec![Vec::new(); files.len()];
    for (file, row) in found {
        push_row(&mut differing[file], row);
    }
    Ok(differing)
}

/// Adds a row of blocks, to the last one where it continues it.
fn push_row(rows: &mut Vec<Range<usize>>, row: Range<usize>) {
    match rows.last_mut() {
        Some(last) if last.end == row.start => last.end = row.end,
        _ => rows.push(row),
    }
}

fn rows_that_differ(
    path: &Path,
    file: &Line,
    blocks: Range<usize>,
    block_bytes: usize,
    buffer: &mut [u8],
) -> io::Result<Vec<Range<usize>>> {
    let found = match File::open(path) {
        Ok(there) => fill(&there, (blocks.start * block_bytes) as u64, buffer)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let size = usize::try_from(file.bytes()).unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    for block in blocks.clone() {
        let at = (block - blocks.start) * block_bytes;
        let bytes = block_bytes.min(size - block * block_bytes);
        let there = buffer[..found].get(at..at + bytes);
        if there.is_none_or(|there| block_digest(there) != file.blocks[block]) {
            push_row(&mut rows, block..block + 1);
        }
    }
    Ok(rows)
}

/// Reads from `at` on until the buffer is full or the file ends. Returns how many bytes that were.
fn fill(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
