//! What has to be known of a bucket to work with it.

use std::{fmt, path::PathBuf, time::Duration};

/// A place in S3, and how it is talked to. Nothing in it is a secret: credentials come from the
/// SDK's chain or from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without a slash at either end; empty for the bucket's root.
    pub prefix: String,
    /// The server's URL, where it isn't AWS.
    pub endpoint: Option<String>,
    /// The region; without one the SDK's chain is asked, and then it is `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host's name. Without a choice it does
    /// wherever there is an endpoint.
    pub path_style: Option<bool>,
    /// The profile of the AWS configuration files to use.
    pub profile: Option<String>,
    /// A file in the form of `~/.aws/credentials`, instead of the SDK's chain.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) of authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The storage class of objects of at least [`CLASSED`] bytes.
    pub storage_class: Option<String>,
    /// How the server encrypts what lies with it.
    pub sse: Sse,
    /// When requests and answers carry the SDK's checksums.
    pub checksums: Checksums,
    /// How often a request is tried, at least once.
    pub attempts: u32,
    /// The pause before the second attempt. Each further one is twice as long.
    pub first_pause: Duration,
    /// After how long without a byte moving a request is given up.
    pub stall: Duration,
}

impl S3Settings {
    /// The bucket and prefix with everything else as it is by default.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        S3Settings {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint: None,
            region: None,
            path_style: None,
            profile: None,
            credentials_file: None,
            ca_file: None,
            storage_class: None,
            sse: Sse::Default,
            checksums: Checksums::WhenSupported,
            attempts: DEFAULT_ATTEMPTS,
            first_pause: DEFAULT_FIRST_PAUSE,
            stall: DEFAULT_STALL,
        }
    }

    /// The key of an object or the beginning of keys, from a name or the beginning of names.
    pub(super) fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// The name that a key stands for, if it is below the prefix.
    pub(super) fn name<'k>(&self, key: &'k str) -> Option<&'k str> {
        if self.prefix.is_empty() {
            return Some(key);
        }
        key.strip_prefix(&self.prefix)?.strip_prefix('/')
    }
}

impl fmt::Display for S3Settings {
    /// The URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// How often a request is tried unless that is configured: with growing pauses, for 10 to 40 s.
pub const DEFAULT_ATTEMPTS: u32 = 8;

/// The pause before the second attempt unless that is configured.
pub const DEFAULT_FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long nothing may move unless that is configured.
pub const DEFAULT_STALL: Duration = Duration::from_secs(60);

/// Objects of fewer bytes stay in the standard class: the others bill each object as if it had at
/// least 128 KiB.
pub const CLASSED: usize = 128 << 10;

/// Encryption by the server, beside that of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sse {
    /// As the bucket has it.
    Default,
    /// With the server's own keys (SSE-S3).
    Aes256,
    /// With a key of its key management (SSE-KMS): this one, or the account's default.
    Kms(Option<String>),
}

/// When the SDK adds a checksum to what it sends and checks the one that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Always. Some servers refuse that.
    WhenSupported,
    /// Only where S3 demands it.
    WhenRequired,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_are_told_apart_by_the_prefix() {
        let below = S3Settings::new("bucket", "a/b");
        assert_eq!(below.key("repo.json"), "a/b/repo.json");
        assert_eq!(below.name("a/b/repo.json"), Some("repo.json"));
        assert_eq!(below.name("a/bc/repo.json"), None);
        assert_eq!(below.to_string(), "s3://bucket/a/b");
        let root = S3Settings::new("bucket", "");
        assert_eq!(root.key("repo.json"), "repo.json");
        assert_eq!(root.name("repo.json"), Some("repo.json"));
        assert_eq!(root.to_string(), "s3://bucket");
    }
}
