//! Objects of unknown length, part by part.
//!
//! ```text
//! write ─▶ part full ─▶ MD5 ─▶ at most so many under way, else wait ─▶ UploadPart
//! commit ─▶ is the key free? ─▶ CompleteMultipartUpload, If-None-Match: * ─▶ answer lost? is the object ours?
//!           (all of it fits into one part: PutObject in the place of both)
//! ```
//! * Nothing of an upload is ever listed before its commit. A process that dies leaves parts, which cost money until
//!   [`Store::sweep_unfinished`](super::super::Store::sweep_unfinished) or the bucket's lifecycle rule removes them.
//! * Every upload has a random token, which the object carries as metadata. When the answer to a commit is lost, the
//!   token tells whether the object that is there is this upload's.
//! * A service without conditional writes leaves a window between looking and committing, in which another upload to the
//!   same key could be overwritten. So does, for objects of several parts, one that looks and completes in two steps
//!   (SeaweedFS 4.48). Keys of sets are random and made under the cluster's lock: it takes two control planes without a
//!   common state and the same six random characters in the same second.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ObjectLockMode};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use http_body::{Body, Frame, SizeHint};
use md5::{Digest as _, Md5};
use tokio::task::AbortHandle;

use super::super::{Key, StorageError, Upload};
use super::connection::{Connection, Progress, persist};
use super::failure::Failure;
use super::object::{Found, look};
use super::parts::{self, MAX_PARTS, Sizes};
use super::{LockMode, TOKEN};

/// An object that is being written.
pub(super) struct S3Upload {
    connection: Arc<Connection>,
    key: Key,
    token: String,
    sizes: Sizes,
    /// What is not yet a part.
    buffer: Vec<u8>,
    /// How large this part becomes.
    part: usize,
    /// Bytes in the parts before it.
    stored: u64,
    started: Option<Started>,
    failed: bool,
}

/// A multipart upload that the service knows of.
struct Started {
    id: String,
    /// Parts handed over, so the number of the last one.
    parts: i32,
    under_way: BTreeMap<i32, AbortHandle>,
    tell: Sender<Ended>,
    told: Receiver<Ended>,
    done: BTreeMap<i32, CompletedPart>,
}

struct Ended {
    number: i32,
    result: Result<CompletedPart, Failure>,
}

impl std::fmt::Debug for S3Upload {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("S3Upload").field("key", &self.key).field("stored", &self.stored).finish_non_exhaustive()
    }
}

impl S3Upload {
    pub(super) fn new(connection: Arc<Connection>, key: Key) -> Result<Self, StorageError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| StorageError::Io {
            what: "make a random token for",
            path: connection.place(Some(&key)),
            source: error.into(),
        })?;
        let sizes = connection.limits.part_bytes.map_or_else(
            || if connection.bucket.wants_equal_parts() { Sizes::equal() } else { Sizes::Growing },
            |bytes| Sizes::Equal(bytes.max(1)),
        );
        Ok(Self {
            connection,
            key,
            token: format!("{:032x}", u128::from_be_bytes(random)),
            sizes,
            buffer: Vec::new(),
            part: part_size(sizes, 0),
            stored: 0,
            started: None,
            failed: false,
        })
    }

    fn error(&self, what: &'static str, failure: Failure) -> StorageError {
        self.connection.explain(failure, what, self.connection.place(Some(&self.key)))
    }

    /// Hands the buffer over as the next part, when there is room for one.
    fn send_part(&mut self) -> Result<(), StorageError> {
        if self.started.is_none() {
            self.started = Some(self.start()?);
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let limit = parts::under_way(bytes.len() as u64, self.connection.limits.concurrency);
        self.settle_parts(limit - 1)?;
        let started = self.started.as_mut().expect("started above");
        if started.parts == MAX_PARTS {
            return Err(StorageError::TooLarge {
                path: self.connection.place(Some(&self.key)),
                bytes: self.stored + bytes.len() as u64,
                limit: self.stored,
            });
        }
        started.parts += 1;
        let number = started.parts;
        self.stored += bytes.len() as u64;
        let work = store_part(Arc::clone(&self.connection), self.key.clone(), started.id.clone(), number, bytes);
        let tell = started.tell.clone();
        let task = self.connection.spawn(async move {
            let result = work.await;
            // There is room for all that may be under way; and an upload that was given up does not listen.
            tell.try_send(Ended { number, result }).ok();
        });
        started.under_way.insert(number, task.abort_handle());
        self.part = part_size(self.sizes, self.stored);
        Ok(())
    }

    /// Waits until at most `most` parts are under way.
    fn settle_parts(&mut self, most: usize) -> Result<(), StorageError> {
        let Some(started) = &mut self.started else { return Ok(()) };
        let mut failed = None;
        while failed.is_none() {
            let ended = if started.under_way.len() > most {
                // A sender of our own is kept: what ends this wait is an end of each part, which patience guarantees.
                started.told.recv().ok()
            } else {
                started.told.try_recv().ok()
            };
            let Some(Ended { number, result }) = ended else { break };
            started.under_way.remove(&number);
            match result {
                Ok(part) => drop(started.done.insert(number, part)),
                Err(failure) => failed = Some(failure),
            }
        }
        failed.map_or(Ok(()), |failure| Err(self.error("store a part of", failure)))
    }

    fn start(&self) -> Result<Started, StorageError> {
        let (connection, key, token) = (Arc::clone(&self.connection), self.key.clone(), self.token.clone());
        let id = self.connection.wait(async move {
            let created = persist(connection.limits.patience, |_| {
                let request = connection
                    .client
                    .create_multipart_upload()
                    .bucket(&connection.bucket.bucket)
                    .key(connection.bucket.full_key(&key))
                    .metadata(TOKEN, &token);
                let request = match retention(&connection) {
                    Some((mode, until)) => request.object_lock_mode(mode).object_lock_retain_until_date(until),
                    None => request,
                };
                request.send()
            });
            let created = created.await.map_err(|failure| fail(&connection, &key, "begin the upload of", failure))?;
            created.upload_id.ok_or_else(|| no_id(&connection, &key))
        })?;
        let (tell, told) = bounded(self.connection.limits.concurrency.max(1));
        Ok(Started { id, parts: 0, under_way: BTreeMap::new(), tell, told, done: BTreeMap::new() })
    }

    /// Ends the parts under way and returns what is to be aborted.
    fn give_up(&mut self) -> Option<String> {
        let started = self.started.take()?;
        for task in started.under_way.values() {
            task.abort();
        }
        Some(started.id)
    }

    /// Aborts, and waits for it.
    fn abort_now(&mut self) -> Result<(), StorageError> {
        let Some(id) = self.give_up() else { return Ok(()) };
        let (connection, key) = (Arc::clone(&self.connection), self.key.clone());
        self.connection.wait(async move {
            let aborted = abort_upload(&connection, &key, &id).await;
            aborted.map_err(|failure| fail(&connection, &key, "abort the upload of", failure))
        })
    }

    /// Aborts without waiting.
    fn abort_in_background(&mut self) {
        if let Some(id) = self.give_up() {
            let (connection, key) = (Arc::clone(&self.connection), self.key.clone());
            // The task holds the client, not the connection: the thread is to end with the store.
            let work = abort_upload(&connection, &key, &id);
            self.connection.spawn_clean_up(async move {
                if let Err(failure) = work.await {
                    tracing::debug!(?failure, %key, "an upload is left to be swept");
                }
            });
        }
    }

    fn try_commit(&mut self) -> Result<(), StorageError> {
        if self.started.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            let (connection, key, token) = (Arc::clone(&self.connection), self.key.clone(), self.token.clone());
            return self.connection.wait(async move { put(&connection, &key, &token, bytes).await });
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        self.settle_parts(0)?;
        let started = self.started.as_mut().expect("it was started");
        let parts = std::mem::take(&mut started.done).into_values().collect();
        let id = started.id.clone();
        let (connection, key, token) = (Arc::clone(&self.connection), self.key.clone(), self.token.clone());
        let stored = self.stored;
        self.connection.wait(async move { complete(&connection, &key, &token, &id, parts, stored).await })?;
        self.started = None;
        Ok(())
    }
}

impl Write for S3Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(StorageError::Incomplete { path: self.connection.place(Some(&self.key)) }.into());
        }
        if self.buffer.capacity() == 0 {
            // Small objects are many: they need not hold a part's memory.
            self.buffer.reserve_exact(if self.stored == 0 { bytes.len().min(self.part) } else { self.part });
        }
        let taken = bytes.len().min(self.part - self.buffer.len());
        if self.buffer.len() + taken > self.buffer.capacity() {
            let more = (self.buffer.capacity() * 2).clamp(self.buffer.len() + taken, self.part);
            self.buffer.reserve_exact(more - self.buffer.len());
        }
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == self.part {
            self.send_part().inspect_err(|_| self.failed = true)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a part is sent when it is full
    }
}

impl Upload for S3Upload {
    fn commit(mut self: Box<Self>) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Incomplete { path: self.connection.place(Some(&self.key)) });
        }
        let done = self.try_commit();
        if let Err(error) = &done
            && !matches!(error, StorageError::Unreachable { .. } | StorageError::Uncertain { .. })
            && let Err(error) = self.abort_now()
        {
            tracing::warn!("an upload is left to be swept: {error}");
        }
        done
    }

    fn abort(mut self: Box<Self>) -> Result<(), StorageError> {
        self.abort_now()
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        self.abort_in_background();
    }
}

fn part_size(sizes: Sizes, stored: u64) -> usize {
    usize::try_from(sizes.next(stored)).unwrap_or(usize::MAX)
}

fn fail(connection: &Connection, key: &Key, what: &'static str, failure: Failure) -> StorageError {
    connection.explain(failure, what, connection.place(Some(key)))
}

fn no_id(connection: &Connection, key: &Key) -> StorageError {
    let source = "the service named no upload id".into();
    StorageError::Service { what: "begin the upload of", path: connection.place(Some(key)), source }
}

/// Until when an object stored now is locked, and how.
fn retention(connection: &Connection) -> Option<(ObjectLockMode, DateTime)> {
    let lock = connection.bucket.object_lock?;
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    };
    let until = (connection.limits.clock)() + std::time::Duration::from_secs(lock.seconds);
    Some((mode, until.into()))
}

fn md5_of(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(Md5::digest(bytes))
}

/// Stores one part. Computing its MD5 is the caller's work, done before the future is first polled.
fn store_part(
    connection: Arc<Connection>,
    key: Key,
    upload: String,
    number: i32,
    bytes: Bytes,
) -> impl Future<Output = Result<CompletedPart, Failure>> + Send + 'static {
    let md5 = md5_of(&bytes);
    async move {
        let stored = persist(connection.limits.patience, |progress| {
            connection
                .client
                .upload_part()
                .bucket(&connection.bucket.bucket)
                .key(connection.bucket.full_key(&key))
                .upload_id(&upload)
                .part_number(number)
                .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
                .content_md5(&md5)
                .body(body(&bytes, progress))
                .customize()
                // The signature covers Content-MD5, and with it the body.
                .disable_payload_signing()
                .send()
        });
        let stored = stored.await?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(stored.e_tag).build())
    }
}

/// Stores an object whole.
async fn put(connection: &Connection, key: &Key, token: &str, bytes: Bytes) -> Result<(), StorageError> {
    free(connection, key).await?;
    let md5 = md5_of(&bytes);
    loop {
        let condition = connection.if_none_match();
        let stored = persist(connection.limits.patience, |progress| {
            let request = connection
                .client
                .put_object()
                .bucket(&connection.bucket.bucket)
                .key(connection.bucket.full_key(key))
                .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
                .content_md5(&md5)
                .metadata(TOKEN, token)
                .set_if_none_match(condition.clone())
                .body(body(&bytes, progress));
            let request = match retention(connection) {
                Some((mode, until)) => request.object_lock_mode(mode).object_lock_retain_until_date(until),
                None => request,
            };
            request.customize().disable_payload_signing().send()
        });
        match stored.await {
            Ok(_) => return Ok(()),
            Err(failure) if failure.is_not_implemented() && condition.is_some() => connection.forget_conditional(),
            Err(failure) => return settle(connection, key, token, bytes.len() as u64, failure).await,
        }
    }
}

/// Makes an object of its parts.
async fn complete(
    connection: &Connection,
    key: &Key,
    token: &str,
    upload: &str,
    parts: Vec<CompletedPart>,
    bytes: u64,
) -> Result<(), StorageError> {
    free(connection, key).await?;
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    loop {
        let condition = connection.if_none_match();
        // The service puts the parts together before it answers.
        let completed = persist(connection.limits.patience.for_long_work(), |_| {
            connection
                .client
                .complete_multipart_upload()
                .bucket(&connection.bucket.bucket)
                .key(connection.bucket.full_key(key))
                .upload_id(upload)
                .multipart_upload(parts.clone())
                .set_if_none_match(condition.clone())
                .send()
        });
        match completed.await {
            Ok(_) => return verify(connection, key, token, bytes).await,
            Err(failure) if failure.is_not_implemented() && condition.is_some() => connection.forget_conditional(),
            Err(failure) => return settle(connection, key, token, bytes, failure).await,
        }
    }
}

/// Fails if the key is taken. Only services without conditional writes need it, but which those are shows too late.
async fn free(connection: &Connection, key: &Key) -> Result<(), StorageError> {
    match look(connection, key).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(StorageError::AlreadyExists { path: connection.place(Some(key)) }),
        Err(failure) => Err(fail(connection, key, "look at", failure)),
    }
}

/// What a service put together is looked at once more: the size, and that nobody else was quicker or later.
async fn verify(connection: &Connection, key: &Key, token: &str, bytes: u64) -> Result<(), StorageError> {
    let path = || connection.place(Some(key));
    match look(connection, key).await {
        Ok(Some(found)) if found.token.as_deref().is_some_and(|found| found != token) => {
            Err(StorageError::AlreadyExists { path: path() })
        }
        Ok(Some(found)) if found.bytes == bytes => Ok(()),
        Ok(found) => {
            let size = found.map_or(0, |found| found.bytes);
            let source = format!("{bytes} bytes were sent, but the service has {size}").into();
            Err(StorageError::Service { what: "store", path: path(), source })
        }
        // The service did say that it is stored.
        Err(failure) => {
            tracing::debug!(?failure, "{} could not be looked at after its commit", path());
            Ok(())
        }
    }
}

/// A commit failed, or its answer was lost: is the object there, and is it ours?
async fn settle(
    connection: &Connection,
    key: &Key,
    token: &str,
    bytes: u64,
    failure: Failure,
) -> Result<(), StorageError> {
    let refused = failure.has_status(412) || failure.has_status(409);
    if !refused && !failure.ambiguous {
        return Err(fail(connection, key, "store", failure));
    }
    match look(connection, key).await {
        Ok(Some(Found { token: Some(found), bytes: size, .. })) if found == token && size == bytes => {
            tracing::warn!("{} is stored; the service's answer was lost", connection.place(Some(key)));
            Ok(())
        }
        Ok(Some(_)) => Err(StorageError::AlreadyExists { path: connection.place(Some(key)) }),
        Ok(None) => Err(fail(connection, key, "store", failure)),
        Err(_) if !refused => {
            Err(StorageError::Uncertain { path: connection.place(Some(key)), source: failure.into_cause() })
        }
        Err(failure) => Err(fail(connection, key, "look at", failure)),
    }
}

/// Gives an upload up. One that is not there any more is content with it.
pub(super) fn abort_upload(
    connection: &Connection,
    key: &Key,
    id: &str,
) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
    let (client, patience) = (connection.client.clone(), connection.limits.patience);
    let (bucket, key, id) = (connection.bucket.bucket.clone(), connection.bucket.full_key(key), id.to_owned());
    async move {
        let aborted =
            persist(patience, |_| client.abort_multipart_upload().bucket(&bucket).key(&key).upload_id(&id).send());
        match aborted.await {
            Err(failure) if !failure.has_code("NoSuchUpload") => Err(failure),
            _ => Ok(()),
        }
    }
}

/// A body that tells how far it got. Every attempt gets a new one of the same bytes.
struct Told {
    left: Bytes,
    progress: Progress,
}

/// How much is handed over at once.
const FRAME: usize = 256 << 10;

fn body(bytes: &Bytes, progress: Progress) -> ByteStream {
    ByteStream::new(SdkBody::from_body_1_x(Told { left: bytes.clone(), progress }))
}

impl Body for Told {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(FRAME);
        self.progress.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
