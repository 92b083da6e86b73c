//! Objects that are there: looking at them, and reading ranges of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aws_sdk_s3::types::ObjectLockLegalHoldStatus;
use bytes::Bytes;
use jiff::Timestamp;

use super::super::{Key, ReadAt, StorageError};
use super::TOKEN;
use super::connection::{Connection, Progress, persist, watch};
use super::failure::Failure;
use super::patience::Remaining;

/// What the service tells about an object.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) bytes: u64,
    pub(super) etag: Option<String>,
    /// In a bucket with versions.
    pub(super) version: Option<String>,
    /// The token of the upload that stored it.
    pub(super) token: Option<String>,
    pub(super) lock: Lock,
}

/// Until when an object is locked, as far as the credentials may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// It is not.
    None,
    /// It is, until then.
    Until(Timestamp),
    /// A legal hold lasts until it is lifted.
    Hold,
}

/// Looks at an object. The answer to HEAD has no body, so that why it failed is asked again with GET.
pub(super) async fn look(connection: &Connection, key: &Key) -> Result<Option<Found>, Failure> {
    let full = connection.bucket.full_key(key);
    let head = persist(connection.limits.patience, |_| {
        connection.client.head_object().bucket(&connection.bucket.bucket).key(&full).send()
    });
    let head = match head.await {
        Ok(head) => head,
        Err(failure) if failure.has_status(404) => return Ok(None),
        Err(failure) if !failure.is_answer() => return Err(failure),
        Err(failure) => {
            let get = persist(connection.limits.patience, |_| {
                let request = connection.client.get_object().bucket(&connection.bucket.bucket).key(&full);
                request.range("bytes=0-0").send()
            });
            return Err(get.await.err().unwrap_or(failure));
        }
    };
    let until = head.object_lock_retain_until_date.and_then(|until| Timestamp::from_second(until.secs()).ok());
    let lock = match until {
        _ if head.object_lock_legal_hold_status == Some(ObjectLockLegalHoldStatus::On) => Lock::Hold,
        Some(until) => Lock::Until(until),
        None => Lock::None,
    };
    Ok(Some(Found {
        bytes: head.content_length.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
        etag: head.e_tag,
        version: head.version_id,
        token: head.metadata.and_then(|mut metadata| metadata.remove(TOKEN)),
        lock,
    }))
}

/// What [`read_small`] found.
pub(super) enum Small {
    /// All of it.
    Whole(Vec<u8>),
    /// It is this large, which is too much.
    TooLarge(u64),
}

/// Reads an object of at most `limit` bytes with one request.
pub(super) async fn read_small(connection: &Connection, key: &Key, limit: u64) -> Result<Small, Failure> {
    let full = connection.bucket.full_key(key);
    let attempt = |progress: Progress| {
        let request = connection.client.get_object().bucket(&connection.bucket.bucket).key(&full);
        async move {
            let mut answer = request.send().await.map_err(Failure::from)?;
            let size = answer.content_length.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
            if size > limit {
                return Ok(Small::TooLarge(size));
            }
            let mut content = Vec::new();
            while let Some(piece) = answer.body.next().await {
                let piece = piece.map_err(|error| Failure::broken(&error))?;
                progress.fetch_add(piece.len() as u64, Ordering::Relaxed);
                content.extend_from_slice(&piece);
            }
            if content.len() as u64 == size {
                Ok(Small::Whole(content))
            } else {
                Err(Failure::broken(&io::Error::from(io::ErrorKind::UnexpectedEof)))
            }
        }
    };
    persist(connection.limits.patience, attempt).await
}

/// An object, opened for reading. What is read is what was there when it was opened, or an error.
#[derive(Debug)]
pub(super) struct S3Object {
    connection: Arc<Connection>,
    key: Key,
    bytes: u64,
    etag: Option<String>,
}

/// The most that one request asks for: what arrives is in memory until all of it is there.
const LARGEST_READ: usize = 8 << 20;

impl S3Object {
    pub(super) fn open(connection: Arc<Connection>, key: &Key, found: Found) -> Self {
        Self { connection, key: key.clone(), bytes: found.bytes, etag: found.etag }
    }

    fn read_range(&self, buffer: &mut [u8], offset: u64) -> Result<(), StorageError> {
        let (connection, key, etag) = (Arc::clone(&self.connection), self.key.clone(), self.etag.clone());
        let wanted = buffer.len();
        let pieces = self.connection.wait(async move {
            let pieces = fetch(&connection, &key, etag.as_deref(), offset, wanted).await;
            pieces.map_err(|failure| {
                let path = connection.place(Some(&key));
                if failure.has_status(412) || failure.has_status(404) && !failure.has_code("NoSuchBucket") {
                    StorageError::Changed { path }
                } else {
                    connection.explain(failure, "read", path)
                }
            })
        })?;
        let mut filled = 0;
        for piece in pieces {
            buffer[filled..filled + piece.len()].copy_from_slice(&piece);
            filled += piece.len();
        }
        Ok(())
    }
}

impl ReadAt for S3Object {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut offset = offset;
        for piece in buffer.chunks_mut(LARGEST_READ) {
            self.read_range(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

/// Fetches `wanted` bytes from `offset` on. When the connection breaks, it goes on where it stopped.
async fn fetch(
    connection: &Connection,
    key: &Key,
    etag: Option<&str>,
    offset: u64,
    wanted: usize,
) -> Result<Vec<Bytes>, Failure> {
    let mut pieces = Vec::new();
    let mut got = 0;
    let mut remaining = Remaining::of(connection.limits.patience);
    while got < wanted {
        let before = got;
        let began = std::time::Instant::now();
        let (first, last) = (offset + got as u64, offset + wanted as u64 - 1);
        let answer = persist(connection.limits.patience, |_| {
            let request = connection.client.get_object().bucket(&connection.bucket.bucket);
            let request = request.key(connection.bucket.full_key(key)).range(format!("bytes={first}-{last}"));
            request.set_if_match(etag.map(str::to_owned)).send()
        });
        let mut body = answer.await?.body;
        let failure = loop {
            let piece = watch(&<_>::default(), remaining.silence(), Box::pin(body.next())).await;
            match piece {
                Ok(Some(Ok(piece))) => {
                    // A service that ignores the range sends more than was asked for, from the object's beginning.
                    if piece.len() > wanted - got {
                        break Some(Failure::broken(&io::Error::other("the service sent more than was asked for")));
                    }
                    got += piece.len();
                    pieces.push(piece);
                }
                Ok(Some(Err(error))) => break Some(Failure::broken(&error)),
                Ok(None) if got < wanted => {
                    break Some(Failure::broken(&io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            }
        };
        let Some(failure) = failure else { break };
        if got > before {
            remaining = Remaining::of(connection.limits.patience);
        }
        match remaining.pause(began.elapsed(), 128) {
            Some(pause) => {
                tracing::debug!(?failure, %key, "reading goes on after {pause:?}");
                tokio::time::sleep(pause).await;
            }
            None => return Err(failure),
        }
    }
    Ok(pieces)
}
