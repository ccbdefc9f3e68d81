//! From the keys of `[repository.NAME.s3]` to the settings of a bucket.

use std::time::Duration;

use super::{
    resolve::{HOUR, duration, path},
    source::{Entry, Section},
};
use crate::{
    error::Result,
    storage::{
        ObjectName,
        s3::{Checksums, S3Settings, Sse},
    },
};

/// The longest prefix: a key has at most 1,024 bytes, and names have up to 900 of them.
const LONGEST_PREFIX: usize = 120;

/// The longest pause before a second attempt.
const LONGEST_FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Bucket and prefix, from what follows `s3://`. What is refused isn't repeated: people write
/// secrets into URLs.
pub(super) fn place(rest: &str) -> Result<S3Settings, String> {
    if rest.contains('@') {
        return Err("credentials don't belong into it: leave them to the AWS SDK's chain, or set \
                    credentials-file"
            .into());
    }
    if rest.contains(['?', '#']) {
        return Err("it has options in it: they are keys of [repository.NAME.s3]".into());
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket_ok = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b))
        && !bucket.starts_with(['-', '.'])
        && !bucket.ends_with(['-', '.']);
    if !bucket_ok {
        return Err(
            "a bucket's name has 3 to 63 lower-case letters, digits, '-', '.' and '_'".into()
        );
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() && (prefix.len() > LONGEST_PREFIX || ObjectName::new(prefix).is_err()) {
        return Err(format!(
            "a prefix has parts of letters, digits, '.', '_', '-' and '+' joined by '/', at most \
             {LONGEST_PREFIX} bytes"
        ));
    }
    Ok(S3Settings::new(bucket, prefix))
}

/// The settings of a place, with what its section says.
pub(super) fn settings(place: S3Settings, section: &Section) -> Result<S3Settings> {
    let mut settings = place;
    let get = |key: &str| section.get(&format!("s3.{key}"));
    let text = |key: &str| get(key).map(|entry| entry.text().map(str::to_owned)).transpose();
    settings.endpoint = get("endpoint").map(endpoint).transpose()?;
    settings.region = text("region")?;
    settings.path_style = get("path-style").map(Entry::truth).transpose()?;
    settings.profile = text("profile")?;
    settings.credentials_file = get("credentials-file").map(path).transpose()?;
    settings.ca_file = get("ca-file").map(path).transpose()?;
    settings.storage_class = get("storage-class").map(storage_class).transpose()?;
    settings.sse = sse(get("sse"), get("kms-key"))?;
    if let Some(entry) = get("checksums") {
        settings.checksums = match entry.text()? {
            "when-supported" => Checksums::WhenSupported,
            "when-required" => Checksums::WhenRequired,
            other => return Err(entry.refuse(format!("{other:?} isn't one of its values"))),
        };
    }
    if let Some(entry) = get("attempts") {
        settings.attempts = entry.number(1, 20)? as u32;
    }
    if let Some(entry) = get("retry-pause") {
        settings.first_pause = duration(entry, Duration::from_millis(1), LONGEST_FIRST_PAUSE)?;
    }
    if let Some(entry) = get("stall-timeout") {
        settings.stall = duration(entry, Duration::from_secs(1), HOUR)?;
    }
    Ok(settings)
}

fn endpoint(entry: &Entry) -> Result<String> {
    let text = entry.text()?;
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = host.map(|host| host.strip_suffix('/').unwrap_or(host));
    match host {
        Some(host) if host.contains(['@', '?', '#']) => {
            Err(entry.refuse("it has more than a host and a port"))
        }
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => {
            Ok(text.strip_suffix('/').unwrap_or(text).to_owned())
        }
        _ => Err(entry.refuse("it isn't an address that begins with https:// or http://")),
    }
}

fn storage_class(entry: &Entry) -> Result<String> {
    let class = entry.text()?;
    if matches!(class, "GLACIER" | "DEEP_ARCHIVE") {
        return Err(entry.refuse(format!("objects of class {class} can't be read at once")));
    }
    if !class.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
        return Err(entry.refuse(format!("{class:?} can't be a storage class")));
    }
    Ok(class.to_owned())
}

fn sse(sse: Option<&Entry>, key: Option<&Entry>) -> Result<Sse> {
    let kind = match sse {
        Some(entry) => Some((entry, entry.text()?)),
        None => None,
    };
    match (kind, key) {
        (Some((_, "aws:kms")), key) => {
            Ok(Sse::Kms(key.map(|key| key.text().map(str::to_owned)).transpose()?))
        }
        (_, Some(key)) => Err(key.refuse("it needs sse = \"aws:kms\"")),
        (None, None) => Ok(Sse::Default),
        (Some((_, "aes256")), None) => Ok(Sse::Aes256),
        (Some((entry, other)), None) => {
            Err(entry.refuse(format!("{other:?} isn't one of its values")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_and_a_prefix_and_nothing_else() {
        let url = |rest: &str| place(rest).map(|settings| settings.to_string());
        assert_eq!(url("bucket"), Ok("s3://bucket".into()));
        assert_eq!(url("bucket/"), Ok("s3://bucket".into()));
        assert_eq!(url("my.bucket-1/some/prefix/"), Ok("s3://my.bucket-1/some/prefix".into()));
        for bad in ["", "/prefix", "ab", "Bucket", "-bucket", "b/../x", "bucket//x", "bucket/.x"] {
            assert!(url(bad).is_err(), "{bad}");
        }
        for secret in ["AKIAX:hunter2@bucket/prefix", "bucket/prefix?secret=hunter2"] {
            let why = url(secret).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
