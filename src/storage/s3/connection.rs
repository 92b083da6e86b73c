//! The SDK's client, and the thread on which it works.
//!
//! The SDK is asynchronous, [`Store`](super::super::Store) blocks, and is called from plain threads as well as from
//! inside other runtimes. So each store has a runtime of its own on one thread: requests are handed over, and the caller
//! waits on a channel. The thread ends with the store, after what was to be cleaned up in the background, or a few
//! seconds.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{mpsc, oneshot};

use super::super::{Key, Place, StorageError};
use super::failure::Failure;
use super::patience::{Patience, Remaining};
use super::{Bucket, Limits};

const CONNECT: Duration = Duration::from_secs(5);
/// How long the thread outlives the store for what goes on in the background.
const GRACE: Duration = Duration::from_secs(5);

/// One bucket, reached.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) bucket: Bucket,
    pub(super) limits: Limits,
    /// Whether the service is believed to know `If-None-Match: *`.
    pub(super) conditional: AtomicBool,
    background: Background,
}

/// Bytes that went out so far; a request that stands still is told by it.
pub(super) type Progress = Arc<AtomicU64>;

impl Connection {
    pub(super) fn open(bucket: &Bucket, limits: Limits) -> Result<Arc<Self>, StorageError> {
        let place = bucket.place(None);
        let http = http_client(bucket).map_err(|source| StorageError::Untrusted { path: place.clone(), source })?;
        let background = Background::start().map_err(|source| StorageError::Io {
            what: "start a thread for",
            path: place,
            source,
        })?;
        Ok(Arc::new(Self {
            client: client(bucket, limits, http),
            bucket: bucket.clone(),
            limits,
            conditional: AtomicBool::new(true),
            background,
        }))
    }

    /// Does `work` on the store's thread, and waits for it.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (tell, told) = crossbeam_channel::bounded(1);
        self.background.handle.spawn(async move {
            // Nobody listens any more: then nobody needs it.
            tell.send(work.await).ok();
        });
        told.recv().unwrap_or_else(|_| Err(self.lost(None)))
    }

    /// Does `work` on the store's thread.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.background.handle.spawn(work)
    }

    /// Does `work` on the store's thread, which stays a while for it.
    pub(super) fn spawn_clean_up(&self, work: impl Future<Output = ()> + Send + 'static) {
        let keep = self.background.keep.clone();
        drop(self.background.handle.spawn(async move {
            work.await;
            drop(keep);
        }));
    }

    /// The store's thread did not do its work.
    pub(super) fn lost(&self, key: Option<&Key>) -> StorageError {
        let source = io::Error::other("the thread that speaks to the S3 service failed");
        StorageError::Io { what: "use", path: self.place(key), source }
    }

    /// What the caller hears who tried to `what` the object at `path`.
    pub(super) fn explain(&self, failure: Failure, what: &'static str, path: Place) -> StorageError {
        failure.on(what, path, &self.bucket, self.now())
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::try_from((self.limits.clock)()).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn place(&self, key: Option<&Key>) -> Place {
        self.bucket.place(key)
    }

    /// Whether `If-None-Match: *` is to be sent.
    pub(super) fn if_none_match(&self) -> Option<String> {
        self.conditional.load(Ordering::Relaxed).then(|| "*".to_owned())
    }

    /// The service does not know it.
    pub(super) fn forget_conditional(&self) {
        if self.conditional.swap(false, Ordering::Relaxed) {
            tracing::debug!(
                bucket = self.bucket.bucket,
                "the S3 service has no conditional writes: pglife looks first"
            );
        }
    }
}

/// Makes a request until it succeeds, fails for good, or patience ends.
pub(super) async fn persist<T, E, Request>(patience: Patience, make: impl Fn(Progress) -> Request) -> Result<T, Failure>
where
    Request: Future<Output = Result<T, E>>,
    E: Into<Failure>,
{
    let mut remaining = Remaining::of(patience);
    let mut ambiguous = false;
    loop {
        let began = Instant::now();
        let progress = Progress::default();
        let attempt = watch(&progress, remaining.silence(), Box::pin(make(Arc::clone(&progress)))).await;
        let mut failure = match attempt {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error.into(),
            Err(failure) => failure,
        };
        ambiguous |= failure.ambiguous;
        failure.ambiguous = ambiguous;
        if !failure.is_transient() {
            return Err(failure);
        }
        let Some(pause) = remaining.pause(began.elapsed(), chance()) else { return Err(failure) };
        tracing::debug!(?failure, "a request to the S3 service is tried again in {pause:?}");
        tokio::time::sleep(pause).await;
    }
}

/// Fails when there is no progress for `silence`.
pub(super) async fn watch<T>(
    progress: &AtomicU64,
    silence: Duration,
    mut request: impl Future<Output = T> + Unpin,
) -> Result<T, Failure> {
    const LOOKS: u32 = 8;
    let mut seen = progress.load(Ordering::Relaxed);
    let mut silent_looks = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(silence / LOOKS, &mut request).await {
            return Ok(done);
        }
        let now = progress.load(Ordering::Relaxed);
        silent_looks = if now == seen { silent_looks + 1 } else { 0 };
        seen = now;
        if silent_looks >= LOOKS {
            return Err(Failure::silent(silence));
        }
    }
}

fn chance() -> u8 {
    let mut byte = [128];
    // Without randomness, the middle will do.
    getrandom::fill(&mut byte).ok();
    byte[0]
}

#[expect(clippy::disallowed_methods, reason = "this is the home of S3")]
fn client(bucket: &Bucket, limits: Limits, http: SharedHttpClient) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(bucket.region.clone()))
        .credentials_provider(bucket.credentials.clone())
        // They may be renewed at any time, and are in memory anyway.
        .identity_cache(IdentityCache::no_cache())
        .force_path_style(bucket.path_style)
        // The checksums the SDK adds by itself are trailers, which many services do not know. Every part has its MD5.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .time_source(Clock(limits.clock))
        .http_client(http);
    let config = match &bucket.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    Client::from_conf(config.build())
}

/// The time that requests are signed with.
#[derive(Debug)]
struct Clock(fn() -> SystemTime);

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        (self.0)()
    }
}

fn http_client(bucket: &Bucket) -> Result<SharedHttpClient, super::super::error::Cause> {
    let builder = aws_smithy_http_client::Builder::new();
    if bucket.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        return Ok(builder.build_http());
    }
    // The connector takes for granted that certificates can be parsed.
    let mut roots = rustls::RootCertStore::empty();
    let mut trusted = TrustStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bucket.authorities.as_bytes()) {
        let certificate = certificate?;
        if roots.add(certificate.clone()).is_ok() {
            trusted = trusted.with_pem_certificate(pem(&certificate));
        }
    }
    if roots.is_empty() {
        return Err("no certificate of an authority is known: install ca-certificates, or name one as `ca_file`".into());
    }
    let context = TlsContext::builder().with_trust_store(trusted).build()?;
    Ok(builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

/// A certificate as text.
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let encoded = aws_smithy_types::base64::encode(certificate);
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The thread, as long as this lives.
#[derive(Debug)]
struct Background {
    handle: tokio::runtime::Handle,
    keep: mpsc::Sender<()>,
    /// Dropped with this: that is what ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Background {
    fn start() -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (keep, mut kept) = mpsc::channel::<()>(1);
        let (tell, told) = crossbeam_channel::bounded(1);
        // A runtime must not be dropped inside another: this one is made and dropped on its own thread.
        std::thread::Builder::new().name("s3".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    tell.send(Err(error)).ok();
                    return;
                }
            };
            tell.send(Ok(runtime.handle().clone())).ok();
            runtime.block_on(async move {
                // Never sent, only dropped.
                stopped.await.ok();
                tokio::time::timeout(GRACE, kept.recv()).await.ok();
            });
        })?;
        let handle = told.recv().map_err(io::Error::other)??;
        Ok(Self { handle, keep, _stop: stop })
    }
}
