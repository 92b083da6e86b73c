//! What it means when a request fails.

use std::error::Error;
use std::fmt;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use jiff::Timestamp;

use super::super::error::Cause;
use super::super::{Place, StorageError};

/// Why one request, tried as often as patience lasted, did not do what it was to do.
#[derive(Debug)]
pub(super) struct Failure {
    reason: Reason,
    /// An attempt may have had its effect all the same: its answer was lost, or was one of the 500s.
    pub(super) ambiguous: bool,
}

#[derive(Debug)]
enum Reason {
    /// The request was never made.
    NotMade(Cause),
    /// No connection, or one that broke.
    NoAnswer(Cause),
    /// Nothing came or went for this many seconds.
    Silent(u64),
    /// The service answered.
    Answer(Answer),
}

/// What the service said.
#[derive(Debug)]
struct Answer {
    status: u16,
    code: String,
    message: String,
    request: Option<String>,
    date: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the service answered {}", self.status)?;
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                write!(out, " {part}")?;
            }
        }
        match &self.request {
            Some(request) => write!(out, " (request {request})"),
            None => Ok(()),
        }
    }
}

impl Error for Answer {}

/// Words for what has no error of its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Words(String);

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let reason = match error {
            SdkError::ServiceError(context) => {
                let (raw, error) = (context.raw(), context.err());
                let header = |name: &str| raw.headers().get(name).map(str::to_owned);
                Reason::Answer(Answer {
                    status: raw.status().as_u16(),
                    code: error.code().unwrap_or_default().to_owned(),
                    message: error.message().unwrap_or_default().trim_end_matches('.').to_owned(),
                    request: header("x-amz-request-id"),
                    date: header("date"),
                })
            }
            SdkError::ConstructionFailure(_) => Reason::NotMade(words(&error)),
            _ => Reason::NoAnswer(words(&error)),
        };
        let ambiguous = match &reason {
            Reason::Answer(answer) => answer.status >= 500,
            Reason::NotMade(_) => false,
            Reason::NoAnswer(_) | Reason::Silent(_) => true,
        };
        Self { reason, ambiguous }
    }
}

impl Failure {
    /// Nothing came or went for this long.
    pub(super) fn silent(for_long: std::time::Duration) -> Self {
        Self { reason: Reason::Silent(for_long.as_secs()), ambiguous: true }
    }

    /// A body that ended early or broke.
    pub(super) fn broken(error: &(dyn Error + 'static)) -> Self {
        Self { reason: Reason::NoAnswer(words(error)), ambiguous: true }
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match &self.reason {
            Reason::NotMade(_) => false,
            Reason::NoAnswer(cause) => !is_untrusted(cause),
            Reason::Silent(_) => true,
            Reason::Answer(answer) => match answer.code.as_str() {
                // 409 on the way: another request with the same key is being served.
                "BadDigest"
                | "IncompleteBody"
                | "RequestTimeout"
                | "SlowDown"
                | "Throttling"
                // Newer credentials may be on their way: see [`super::renewal`].
                | "ExpiredToken"
                | "ConditionalRequestConflict"
                | "OperationAborted" => true,
                _ => matches!(answer.status, 429 | 500 | 502..=504),
            },
        }
    }

    /// Whether the service answered with this status.
    pub(super) fn has_status(&self, status: u16) -> bool {
        matches!(&self.reason, Reason::Answer(answer) if answer.status == status)
    }

    /// Whether the service answered at all.
    pub(super) fn is_answer(&self) -> bool {
        matches!(&self.reason, Reason::Answer(_))
    }

    /// Whether the service answered with this code.
    pub(super) fn has_code(&self, code: &str) -> bool {
        matches!(&self.reason, Reason::Answer(answer) if answer.code == code)
    }

    /// Whether the service does not know the header `If-None-Match` here.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.has_status(501) || self.has_code("NotImplemented")
    }

    /// What the caller hears who tried to `what` the object at `path`.
    pub(super) fn on(self, what: &'static str, path: Place, bucket: &super::Bucket, now: Timestamp) -> StorageError {
        let answer = match self.reason {
            Reason::Answer(answer) => answer,
            Reason::NotMade(source) => return StorageError::Service { what, path, source },
            Reason::NoAnswer(source) if is_untrusted(&source) => return StorageError::Untrusted { path, source },
            Reason::NoAnswer(source) => return StorageError::Unreachable { path, source },
            Reason::Silent(seconds) => {
                let source = Box::new(Words(format!("no byte came or went for {seconds} s")));
                return StorageError::Unreachable { path, source };
            }
        };
        match (answer.code.as_str(), answer.status) {
            ("NoSuchBucket", _) => StorageError::NoBucket { path, bucket: bucket.bucket.clone() },
            ("NoSuchKey" | "NotFound", _) => StorageError::NotFound { path },
            ("RequestTimeTooSkewed", _) => {
                let there = answer.date.as_deref().and_then(http_date);
                StorageError::ClockSkew { path, here: now, there }
            }
            ("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired", _) => {
                StorageError::CredentialsExpired { path, source: Box::new(answer) }
            }
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "InvalidSecurity"
                | "NotSignedUp"
                | "AccountProblem"
                | "InvalidClientTokenId"
                | "UnrecognizedClientException",
                _,
            ) => StorageError::CredentialsRefused { path, source: Box::new(answer) },
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
            | (_, 301) => StorageError::WrongRegion { path, region: bucket.region.clone(), source: Box::new(answer) },
            ("QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded", _) | (_, 507) => {
                StorageError::OutOfQuota { path, source: Box::new(answer) }
            }
            (_, 401) => StorageError::CredentialsRefused { path, source: Box::new(answer) },
            ("AccessDenied" | "AllAccessDisabled", _) | (_, 403) => {
                StorageError::NotPermitted { what, path, source: Box::new(answer) }
            }
            (_, 429 | 500..) => StorageError::Unreachable { path, source: Box::new(answer) },
            _ => StorageError::Service { what, path, source: Box::new(answer) },
        }
    }

    /// Why the outcome is not known, in words.
    pub(super) fn into_cause(self) -> Cause {
        match self.reason {
            Reason::NotMade(cause) | Reason::NoAnswer(cause) => cause,
            Reason::Silent(seconds) => Box::new(Words(format!("no byte came or went for {seconds} s"))),
            Reason::Answer(answer) => Box::new(answer),
        }
    }
}

/// The time in an answer's header `Date`.
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// The SDK's errors say little themselves; what is below them says it. Each once, in one line.
pub(super) fn words(error: &(dyn Error + 'static)) -> Cause {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = error.source();
    }
    Box::new(Words(text))
}

/// rustls's words for a certificate it does not accept; it is several wrappers down, each of another crate.
fn is_untrusted(cause: &Cause) -> bool {
    cause.to_string().contains("invalid peer certificate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        let date = http_date("Wed, 25 Nov 2026 01:10:49 GMT").expect("a date");
        assert_eq!(date.to_string(), "2026-11-25T01:10:49Z");
        assert_eq!(http_date("yesterday"), None);
    }
}
