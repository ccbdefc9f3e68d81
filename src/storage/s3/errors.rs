//! What the server, or the way to it, said: as a [`StorageError`], and whether to try again.

use std::{error::Error as StdError, io};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use super::watch::Standstill;
use crate::storage::{ErrorKind, StorageError};

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What callers get.
    pub error: StorageError,
    /// Whether it may work a moment later.
    pub again: Again,
    /// The server's code for it, as in `NoSuchKey`.
    pub code: Option<String>,
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The same request fails the same way.
    Never,
    /// It may pass.
    Soon,
    /// The server asked for fewer requests.
    Later,
    /// The server was silent for as long as it may be: a connection may have died, and if it wasn't that, it will
    /// be silent for as long again.
    Once,
}

impl Failure {
    /// Whether the server said this.
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

impl From<Failure> for StorageError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl From<StorageError> for Failure {
    /// One that doesn't pass.
    fn from(error: StorageError) -> Self {
        Failure { error, again: Again::Never, code: None }
    }
}

/// What a request was about, for its error.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// What was being done: "read", "create".
    pub operation: &'static str,
    /// The object, or the beginning of names.
    pub object: String,
    /// The storage's address.
    pub address: String,
}

impl About {
    /// An error that isn't the server's.
    pub fn error(&self, kind: ErrorKind, message: impl Into<String>) -> StorageError {
        StorageError {
            kind,
            operation: self.operation,
            object: self.object.clone(),
            address: self.address.clone(),
            message: shortened(message.into()),
            hint: None,
        }
    }

    /// A failure on the way of an answer's body.
    pub fn broken_off(&self, e: &(dyn StdError + 'static)) -> Failure {
        Failure {
            error: self.error(ErrorKind::Unavailable, chain(e)),
            again: Again::Soon,
            code: None,
        }
    }

    /// What the SDK says.
    pub fn failure<E>(&self, e: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        match e {
            SdkError::ServiceError(service) => self.answered(service.err(), service.raw()),
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                let message = format!("HTTP status {status}, and nothing that can be understood");
                self.judged(ErrorKind::Unavailable, Again::Soon, message, None)
            }
            other => self.unanswered(other),
        }
    }

    fn judged(
        &self,
        kind: ErrorKind,
        again: Again,
        message: String,
        hint: Option<&str>,
    ) -> Failure {
        let error = StorageError { hint: hint.map(str::to_owned), ..self.error(kind, message) };
        Failure { error, again, code: None }
    }

    /// No answer came.
    fn unanswered(&self, e: &(dyn StdError + 'static)) -> Failure {
        let mut below = Some(e);
        while let Some(error) = below {
            if error.is::<Standstill>() {
                return self.judged(ErrorKind::Unavailable, Again::Once, chain(e), None);
            }
            if is_about_a_certificate(error) {
                return self.judged(ErrorKind::Unavailable, Again::Never, chain(e), Some(CA_FILE));
            }
            if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
                return self.without_credentials(credentials);
            }
            below = error.source();
        }
        self.judged(ErrorKind::Unavailable, Again::Soon, chain(e), None)
    }

    fn without_credentials(&self, e: &CredentialsError) -> Failure {
        let message = format!("no credentials: {}", chain(e));
        match e {
            CredentialsError::CredentialsNotLoaded(_)
            | CredentialsError::InvalidConfiguration(_) => {
                self.judged(ErrorKind::Denied, Again::Never, message, Some(NO_CREDENTIALS))
            }
            _ => self.judged(ErrorKind::Unavailable, Again::Soon, message, None),
        }
    }

    /// The server answered with an error.
    fn answered<E>(&self, e: &E, response: &HttpResponse) -> Failure
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).map(str::to_owned);
        let mut message = match (e.code(), e.message()) {
            (Some(code), Some(said)) => format!("{code}: {said}"),
            (Some(code), None) => code.to_owned(),
            (None, _) => format!("HTTP status {status} without an S3 error: {}", chain(e)),
        };
        if let Some(id) = header("x-amz-request-id") {
            message += &format!(" (request {id})");
        }
        let Judgement { kind, again, hint } = judge(status, e.code());
        let hint = match header("x-amz-bucket-region") {
            Some(region) if is_elsewhere(status, e.code()) && is_region(&region) => {
                Some(format!("the bucket is in {region}: set region = \"{region}\""))
            }
            _ => hint.map(str::to_owned),
        };
        Failure {
            error: StorageError { hint, ..self.error(kind, message) },
            again,
            code: e.code().map(str::to_owned),
        }
    }
}

const NO_CREDENTIALS: &str = "they come from the environment, a profile or the host's role, as the AWS SDK \
                              finds them, or from the file that credentials-file names";

const CA_FILE: &str = "ca-file names a file with the certificate of the server's authority, if the system doesn't \
                       know it; the endpoint has to be a name that the server's certificate is for";

/// Whether the server's certificate was refused: it will be the next time, too.
fn is_about_a_certificate(e: &(dyn StdError + 'static)) -> bool {
    // What an I/O error wraps isn't its source, and it may wrap another.
    if let Some(wrapped) = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return is_about_a_certificate(wrapped);
    }
    let tls = e.downcast_ref::<rustls::Error>();
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

struct Judgement {
    kind: ErrorKind,
    again: Again,
    hint: Option<&'static str>,
}

fn is_elsewhere(status: u16, code: Option<&str>) -> bool {
    matches!(status, 301 | 307)
        || matches!(
            code,
            Some(
                "PermanentRedirect"
                    | "TemporaryRedirect"
                    | "AuthorizationHeaderMalformed"
                    | "IllegalLocationConstraintException"
            )
        )
}

/// What an answer means, by its code and, where it has none, its status.
fn judge(status: u16, code: Option<&str>) -> Judgement {
    use Again::{Later, Never, Soon};
    use ErrorKind::{
        AlreadyExists, Denied, Full, NotFound, OutOfRange, Refused, RootMissing, Unavailable,
    };
    let (kind, again, hint) = match (code, status) {
        (Some("NoSuchKey" | "NoSuchVersion"), _) => (NotFound, Never, None),
        (Some("NoSuchBucket"), _) => (
            RootMissing,
            Never,
            Some("pgkeep makes no buckets: is the url right, and the endpoint?"),
        ),
        _ if is_elsewhere(status, code) => {
            (RootMissing, Never, Some("the bucket is in another region, or the endpoint is wrong"))
        }
        (Some("PreconditionFailed"), _) | (None, 412) => (AlreadyExists, Never, None),
        (Some("InvalidRange"), _) | (None, 416) => (OutOfRange, Never, None),
        // Made under the name, or removed from it, in this moment.
        (Some("ConditionalRequestConflict" | "OperationAborted"), _) => (Unavailable, Soon, None),
        (Some("RequestTimeTooSkewed"), _) => {
            (Denied, Soon, Some("the clocks of this host and of the server differ: set this one's"))
        }
        (Some("ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException"), _) => {
            (Denied, Never, Some("the credentials have expired: renew them"))
        }
        (Some("InvalidAccessKeyId" | "InvalidToken" | "NotSignedUp"), _) => {
            (Denied, Never, Some("the server doesn't know these credentials"))
        }
        (Some("SignatureDoesNotMatch"), _) => (
            Denied,
            Never,
            Some(
                "the secret key is wrong, or something between here and the server changes requests",
            ),
        ),
        (Some("InvalidObjectState"), _) => {
            (Denied, Never, Some("the object is in an archive class: bring it back first"))
        }
        (Some("QuotaExceeded" | "InsufficientCapacity" | "XMinioStorageFull"), _) | (None, 507) => {
            (Full, Never, None)
        }
        // What arrived isn't what was sent.
        (
            Some(
                "BadDigest"
                | "IncompleteBody"
                | "XAmzContentSHA256Mismatch"
                | "RequestTimeout"
                | "InternalError",
            ),
            _,
        ) => (Unavailable, Soon, None),
        (
            Some(
                "SlowDown"
                | "ServiceUnavailable"
                | "Throttling"
                | "ThrottlingException"
                | "RequestLimitExceeded"
                | "TooManyRequests"
                | "Busy",
            ),
            _,
        )
        | (_, 429 | 503) => (
            Unavailable,
            Later,
            Some("the server asks for fewer requests; it was asked for a while"),
        ),
        // An error that came inside what had begun as a success.
        (_, 200..=299) => (Unavailable, Soon, None),
        (Some("NotImplemented"), _) | (_, 501) => (Refused, Never, None),
        (_, 500..=599) => (Unavailable, Soon, None),
        (_, 401 | 403) => {
            (Denied, Never, Some("docs/s3.md says which permissions each command needs"))
        }
        // Whatever answers here knows no such bucket, and may be no S3 server at all.
        (None, 404) => {
            (RootMissing, Never, Some("is the endpoint an S3 server, and the url right?"))
        }
        _ => (Refused, Never, None),
    };
    Judgement { kind, again, hint }
}

/// The most of what a server says that is shown, in bytes.
const SHOWN: usize = 1000;

fn shortened(mut text: String) -> String {
    if text.len() > SHOWN {
        text.truncate(text.floor_char_boundary(SHOWN));
        text.push('…');
    }
    text
}

/// Whether a text can be a region's name.
fn is_region(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// An error with everything below it, without what repeats.
fn chain(e: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut below = Some(e);
    while let Some(error) = below {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &part;
        }
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_cant_tell_are_never_confused() {
        let kind = |status, code| judge(status, code).kind;
        assert_eq!(kind(404, Some("NoSuchKey")), ErrorKind::NotFound);
        for (status, code) in [
            (404, None),
            (404, Some("NoSuchBucket")),
            (404, Some("SomethingElse")),
            (403, None),
            (403, Some("AccessDenied")),
            (301, None),
            (301, Some("PermanentRedirect")),
            (500, Some("InternalError")),
            (503, Some("SlowDown")),
            (503, None),
            (200, Some("InternalError")),
            (200, None),
        ] {
            assert_ne!(kind(status, code), ErrorKind::NotFound, "{status} {code:?}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let again = |status, code| judge(status, code).again;
        assert_eq!(again(503, Some("SlowDown")), Again::Later);
        assert_eq!(again(429, None), Again::Later);
        assert_eq!(again(500, None), Again::Soon);
        assert_eq!(again(502, Some("Strange")), Again::Soon);
        assert_eq!(again(200, Some("InternalError")), Again::Soon);
        assert_eq!(again(200, None), Again::Soon);
        assert_eq!(again(409, Some("ConditionalRequestConflict")), Again::Soon);
        assert_eq!(again(403, Some("AccessDenied")), Again::Never);
        assert_eq!(again(403, Some("ExpiredToken")), Again::Never);
        assert_eq!(again(501, Some("NotImplemented")), Again::Never);
    }
}
