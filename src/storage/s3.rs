//! A repository in a bucket of Amazon S3, or of a service that speaks its protocol.
//!
//! * An object appears whole when its upload is completed, never over another: `If-None-Match: *` where the service has
//!   it, a look before where not ([`upload`] has the window).
//! * Every request is tried for as long as [`Patience`] lasts; then the error names `s3://bucket/key` and what to do. A
//!   read that breaks goes on where it stopped, and only if the object is still the same.
//! * Memory is a few parts, see [`parts`]; a part is kept until it is stored, because it may have to be sent again.
//! * With `object_lock` every object carries a retention. In a bucket with versions a deletion removes the version, not
//!   just the name: a deletion that leaves the bytes would be a lie, and one that hides a locked object a worse one.
//! * pglife never makes a bucket, nor changes one.

mod access;
mod connection;
mod failure;
mod listing;
mod object;
mod parts;
mod patience;
mod renewal;
mod upload;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_s3::types::MultipartUpload;
use serde::{Deserialize, Serialize};

use super::{Key, Listed, Place, ReadAt, StorageError, Store, Upload};
pub use access::{Environment, reach};
use connection::{Connection, persist};
use listing::{first_name, last_change, list, page};
use object::{Found, Lock, S3Object, Small, look, read_small};
pub use patience::Patience;
pub(crate) use renewal::LOOK;
pub use renewal::Renewable;
use upload::{S3Upload, abort_upload};

/// The metadata by which an upload knows its object again: `x-amz-meta-pglife-upload`.
const TOKEN: &str = "pglife-upload";

/// How a bucket is reached: everything a worker needs, secrets included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its name.
    pub bucket: String,
    /// What every key begins with; without slashes at its ends, possibly empty.
    pub prefix: String,
    /// `http://…` or `https://…` of the service; `None`: Amazon's own.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
    /// Whether the bucket's name is in the path of a request rather than in the host's name.
    pub path_style: bool,
    /// Who asks.
    pub credentials: Renewable,
    /// The certificates of the authorities that are trusted, as PEM: a worker's image may have none.
    pub authorities: String,
    /// The retention of every object that is stored.
    pub object_lock: Option<ObjectLock>,
}

/// An access key with its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The name of the key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// What temporary credentials have besides.
    pub session_token: Option<Secret>,
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that hands it over.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

/// How long, and how firmly, an object may not be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectLock {
    /// How long from its upload on.
    pub seconds: u64,
    /// Who may lift it.
    pub mode: LockMode,
}

/// Who may lift a retention: Amazon S3 User Guide, "Retention modes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Who has `s3:BypassGovernanceRetention`; pglife does not ask for it.
    Governance,
    /// Nobody.
    Compliance,
}

/// What a store may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Parts of one upload under way at once, where [`parts`] finds the memory for them.
    pub concurrency: usize,
    /// The size of every part; `None`: as [`parts`] says. S3 itself takes no part under 5 MiB except the last.
    pub part_bytes: Option<u64>,
    /// How long a request is tried.
    pub patience: Patience,
    /// What time it is.
    pub clock: fn() -> SystemTime,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: 6, part_bytes: None, patience: Patience::default(), clock: SystemTime::now }
    }
}

impl Bucket {
    /// Where an object lies or would lie; without a key, the repository.
    pub fn place(&self, key: Option<&Key>) -> Place {
        let inside = key.map_or_else(|| self.prefix.clone(), |key| self.full_key(key));
        let slash = if inside.is_empty() { "" } else { "/" };
        Place::new(format!("s3://{}{slash}{inside}", self.bucket))
    }

    /// The object's key in the bucket.
    fn full_key(&self, key: &Key) -> String {
        format!("{}{key}", self.root())
    }

    /// What every key in the bucket begins with.
    fn root(&self) -> String {
        if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) }
    }

    /// The key of an object of the bucket, if it can be one of ours.
    fn key(&self, full: &str) -> Option<Key> {
        Key::new(full.strip_prefix(&self.root())?).ok()
    }

    /// Cloudflare R2 takes no parts of different sizes.
    fn wants_equal_parts(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.contains(".r2.cloudflarestorage.com"))
    }
}

/// The objects of a bucket under a prefix.
#[derive(Debug, Clone)]
pub struct S3Store {
    connection: Arc<Connection>,
}

impl S3Store {
    /// The store in `bucket`. Nothing is asked yet; [`Repository::open`](super::Repository::open) checks the place.
    pub fn open(bucket: &Bucket) -> Result<Self, StorageError> {
        Self::with_limits(bucket, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(bucket: &Bucket, limits: Limits) -> Result<Self, StorageError> {
        Ok(Self { connection: Connection::open(bucket, limits)? })
    }

    /// Does `work` with the connection on the store's thread.
    fn run<T, W, F>(&self, work: W) -> Result<T, StorageError>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Connection>) -> F,
        F: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        self.connection.wait(work(Arc::clone(&self.connection)))
    }

    fn find(&self, key: &Key) -> Result<Found, StorageError> {
        let key = key.clone();
        self.run(|connection| async move {
            match look(&connection, &key).await {
                Ok(Some(found)) => Ok(found),
                Ok(None) => Err(absent(&connection, &key).await),
                Err(failure) => Err(connection.explain(failure, "look at", connection.place(Some(&key)))),
            }
        })
    }
}

impl Store for S3Store {
    fn begin(&self, key: &Key) -> Result<Box<dyn Upload>, StorageError> {
        Ok(Box::new(S3Upload::new(Arc::clone(&self.connection), key.clone())?))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn ReadAt>, StorageError> {
        let found = self.find(key)?;
        Ok(Box::new(S3Object::open(Arc::clone(&self.connection), key, found)))
    }

    fn head(&self, key: &Key) -> Result<Listed, StorageError> {
        Ok(Listed { key: key.clone(), bytes: self.find(key)?.bytes })
    }

    fn list(&self, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError> {
        let folder = folder.cloned();
        self.run(|connection| async move { list(&connection, folder.as_ref()).await })
    }

    fn last_change(&self, folder: &Key) -> Result<Option<SystemTime>, StorageError> {
        let folder = folder.clone();
        self.run(|connection| async move { last_change(&connection, &folder).await })
    }

    fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let key = key.clone();
        self.run(|connection| async move { delete(&connection, &key).await })
    }

    fn sweep_unfinished(&self, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError> {
        let folder = folder.cloned();
        self.run(|connection| async move { sweep(&connection, folder.as_ref(), before).await })
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    fn check_writable(&self) -> Result<(), StorageError> {
        self.run(|connection| async move { try_upload(&connection).await })
    }

    fn make_place(&self) -> Result<(), StorageError> {
        self.run(|connection| async move { first_name(&connection).await.map(drop) })
    }

    fn first_foreign_name(&self) -> Result<Option<String>, StorageError> {
        self.run(|connection| async move { first_name(&connection).await })
    }

    fn place(&self, key: Option<&Key>) -> Place {
        self.connection.place(key)
    }

    fn read_small(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StorageError> {
        let key = key.clone();
        self.run(|connection| async move {
            let path = connection.place(Some(&key));
            match read_small(&connection, &key, limit).await {
                Ok(Small::Whole(content)) => Ok(content),
                Ok(Small::TooLarge(bytes)) => Err(StorageError::TooLarge { path, bytes, limit }),
                Err(failure) => Err(connection.explain(failure, "read", path)),
            }
        })
    }
}

/// An object is not there: is its bucket?
async fn absent(connection: &Connection, key: &Key) -> StorageError {
    let path = connection.place(Some(key));
    match page(connection, &connection.bucket.full_key(key), 1).await {
        Err(failure) if failure.has_code("NoSuchBucket") => connection.explain(failure, "look at", path),
        // It was the object that was asked for.
        _ => StorageError::NotFound { path },
    }
}

/// How many versions of one write-once object are deleted before something is wrong.
const MAX_VERSIONS: usize = 16;

/// Deletes the object, and what would appear in its place: in a bucket with versions each of them, one after the other.
async fn delete(connection: &Connection, key: &Key) -> Result<(), StorageError> {
    let path = || connection.place(Some(key));
    for attempt in 0..MAX_VERSIONS {
        let found = match look(connection, key).await {
            Ok(Some(found)) => found,
            Ok(None) if attempt == 0 => return Err(absent(connection, key).await),
            Ok(None) => return Ok(()),
            Err(failure) => return Err(connection.explain(failure, "look at", path())),
        };
        match found.lock {
            Lock::Hold => return Err(StorageError::Locked { path: path(), until: None }),
            Lock::Until(until) if until > connection.now() => {
                return Err(StorageError::Locked { path: path(), until: Some(until) });
            }
            Lock::Until(_) | Lock::None => {}
        }
        let deleted = persist(connection.limits.patience, |_| {
            let request = connection.client.delete_object().bucket(&connection.bucket.bucket);
            request.key(connection.bucket.full_key(key)).set_version_id(found.version.clone()).send()
        });
        deleted.await.map_err(|failure| connection.explain(failure, "delete", path()))?;
        if found.version.is_none() {
            return Ok(());
        }
    }
    let source = "there is always another version of it: something other than pglife writes to the repository".into();
    Err(StorageError::Service { what: "delete", path: path(), source })
}

/// Aborts the uploads inside `folder`, or all, that began before `before`.
async fn sweep(connection: &Connection, folder: Option<&Key>, before: SystemTime) -> Result<u64, StorageError> {
    let prefix = folder.map_or_else(|| connection.bucket.root(), |key| format!("{}/", connection.bucket.full_key(key)));
    let mut stale = Vec::new();
    let (mut after_key, mut after_upload) = (None, None);
    loop {
        let page = persist(connection.limits.patience, |_| {
            let request = connection.client.list_multipart_uploads().bucket(&connection.bucket.bucket);
            let request = request.set_key_marker(after_key.clone()).set_upload_id_marker(after_upload.clone());
            request.prefix(&prefix).send()
        });
        let page = match page.await {
            Ok(page) => page,
            Err(failure) if failure.has_code("AccessDenied") || failure.is_not_implemented() => {
                // Nothing is wrong with a backup because of it.
                tracing::warn!(
                    "{}: parts of uploads that died are not looked for, because the credentials or the service do not \
                     allow it; let the bucket's lifecycle rule AbortIncompleteMultipartUpload remove them",
                    connection.place(folder)
                );
                return Ok(0);
            }
            Err(failure) => {
                return Err(connection.explain(failure, "list the uploads in", connection.place(folder)));
            }
        };
        let uploads = page.uploads.unwrap_or_default();
        stale.extend(uploads.into_iter().filter_map(|upload| stale_upload(connection, &prefix, upload, before)));
        match (page.is_truncated, page.next_key_marker) {
            (Some(true), Some(key)) => (after_key, after_upload) = (Some(key), page.next_upload_id_marker),
            _ => break,
        }
    }
    let mut swept = 0;
    for (key, id) in stale {
        let aborted = abort_upload(connection, &key, &id).await;
        aborted.map_err(|failure| connection.explain(failure, "abort the upload of", connection.place(Some(&key))))?;
        swept += 1;
    }
    Ok(swept)
}

fn stale_upload(
    connection: &Connection,
    prefix: &str,
    upload: MultipartUpload,
    before: SystemTime,
) -> Option<(Key, String)> {
    let full = upload.key?;
    if !full.starts_with(prefix) || SystemTime::try_from(upload.initiated?).ok()? >= before {
        return None;
    }
    Some((connection.bucket.key(&full)?, upload.upload_id?))
}

/// Begins an upload and gives it up: that is how a permission is tried without writing.
async fn try_upload(connection: &Connection) -> Result<(), StorageError> {
    // Some services make a bucket that is missing.
    first_name(connection).await?;
    let key = Key::new("pglife-write-check").expect("a plain name");
    let begun = persist(connection.limits.patience, |_| {
        let request = connection.client.create_multipart_upload().bucket(&connection.bucket.bucket);
        request.key(connection.bucket.full_key(&key)).send()
    });
    let begun = begun.await.map_err(|failure| connection.explain(failure, "write to", connection.place(None)))?;
    let id = begun.upload_id.unwrap_or_default();
    match abort_upload(connection, &key, &id).await {
        Ok(()) => Ok(()),
        // What can be written can be backed up to. Only what dies on the way stays there, and costs money.
        Err(failure) if failure.has_code("AccessDenied") => {
            tracing::warn!(
                "{}: the credentials do not allow to abort uploads (s3:AbortMultipartUpload), so that parts of those that \
                 died stay; let the bucket's lifecycle rule AbortIncompleteMultipartUpload remove them",
                connection.place(None)
            );
            Ok(())
        }
        Err(failure) => Err(connection.explain(failure, "abort an upload to", connection.place(None))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_printed() {
        let credentials = Credentials {
            access_key: "name".to_owned(),
            secret_key: Secret::new("hunter2"),
            session_token: Some(Secret::new("hunter3")),
        };
        let printed = format!("{credentials:?}");
        assert!(!printed.contains("hunter") && printed.contains("name"), "{printed}");
        let travelled: Credentials =
            serde_json::from_str(&serde_json::to_string(&credentials).expect("json")).expect("json");
        assert_eq!(travelled, credentials);
    }
}
