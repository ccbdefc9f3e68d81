//! Reading: one GET for what is asked, told apart from what can't be told.
//!
//! Also an object's size is asked with a GET, of one byte: the answer to a HEAD has no body, and
//! its 404 may mean that the bucket isn't there.

use aws_sdk_s3::operation::{get_object::GetObjectOutput, head_object::HeadObjectOutput};
use bytes::{Bytes, BytesMut};

use super::{
    engine::Engine,
    errors::{About, Again, Failure},
};
use crate::storage::{ErrorKind, Fetched, ObjectName, Range, Result};

/// No object is longer: S3's own limit, 5 TiB, with room.
const LONGEST: u64 = 1 << 43;

/// A GET's answer.
struct Got {
    bytes: Bytes,
    /// The whole object's size.
    size: u64,
}

impl Engine {
    /// Reads a range as far as the object goes, and says how long it is.
    pub async fn fetch(&self, name: &ObjectName, range: Range) -> Result<Fetched> {
        let about = self.about("read", name.as_str());
        let wanted = match range {
            Range::All => None,
            Range::Last(0) | Range::At { len: 0, .. } => {
                let size = self.size(name).await?;
                return Ok(Fetched { bytes: Bytes::new(), size });
            }
            Range::Last(len) => Some(format!("bytes=-{}", len.min(LONGEST))),
            Range::At { offset, len } => {
                let last = offset.saturating_add(len - 1).min(LONGEST);
                Some(format!("bytes={}-{last}", offset.min(LONGEST)))
            }
        };
        match self.get(&about, name, wanted).await {
            Ok(Got { bytes, size }) => Ok(Fetched { bytes, size }),
            // Nothing of the range is there, so the object ends before it.
            Err(failure) if failure.error.kind == ErrorKind::OutOfRange => {
                Ok(Fetched { bytes: Bytes::new(), size: self.size_by_head(name).await? })
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Reads exactly a range.
    pub async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        let Fetched { bytes, size } = self.fetch(name, range).await?;
        let missing = match range {
            Range::At { offset, len } => offset.checked_add(len).is_none_or(|end| end > size),
            Range::Last(_) | Range::All => false,
        };
        if missing {
            let message = format!("it has {size} bytes, {range:?} was asked for");
            return Err(self.about("read", name.as_str()).error(ErrorKind::OutOfRange, message));
        }
        Ok(bytes)
    }

    /// An object's size.
    pub async fn size(&self, name: &ObjectName) -> Result<u64> {
        let about = self.about("look at", name.as_str());
        match self.get(&about, name, Some("bytes=0-0".into())).await {
            Ok(got) => Ok(got.size),
            Err(failure) if failure.error.kind == ErrorKind::OutOfRange => {
                self.size_by_head(name).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// The size of an object that is known to be there.
    async fn size_by_head(&self, name: &ObjectName) -> Result<u64> {
        let head = self.head(name, None).await?;
        Ok(head.content_length().unwrap_or_default().unsigned_abs())
    }

    /// What the server says of an object, or of a version of it, without its bytes.
    pub async fn head(
        &self,
        name: &ObjectName,
        version: Option<&str>,
    ) -> Result<HeadObjectOutput, Failure> {
        let about = self.about("look at", name.as_str());
        let client = self.client(&about).await.map_err(Failure::from)?;
        self.attempts(|| async {
            let request = client
                .head_object()
                .bucket(&self.settings.bucket)
                .key(self.settings.key(name.as_str()))
                .set_version_id(version.map(str::to_owned));
            request.send().await.map_err(|e| about.failure(&e))
        })
        .await
    }

    /// A GET, with its body. It is tried again when the body breaks off, too.
    async fn get(
        &self,
        about: &About,
        name: &ObjectName,
        range: Option<String>,
    ) -> Result<Got, Failure> {
        let client = self.client(about).await.map_err(Failure::from)?;
        self.attempts(|| async {
            let answer = client
                .get_object()
                .bucket(&self.settings.bucket)
                .key(self.settings.key(name.as_str()))
                .set_range(range.clone())
                .send()
                .await
                .map_err(|e| about.failure(&e))?;
            self.saw_version(answer.version_id());
            collect(about, answer, range.is_some()).await
        })
        .await
    }
}

async fn collect(about: &About, mut answer: GetObjectOutput, ranged: bool) -> Result<Got, Failure> {
    let len = answer.content_length().unwrap_or_default().unsigned_abs();
    let strange = |what: String| Failure {
        error: about.error(ErrorKind::Unavailable, what),
        again: Again::Soon,
        code: None,
    };
    let size = match answer.content_range() {
        // That as much comes as the range has is the only thing that tells a cut answer whose
        // length was made to fit.
        Some(range) => match parse_range(range) {
            Some((covered, size)) if covered == len => size,
            _ => return Err(strange(format!("{len} bytes came, and {range:?} is said of them"))),
        },
        // Allowed by HTTP, and of no use here.
        None if ranged => {
            return Err(Failure {
                error: about.error(ErrorKind::Refused, "the server doesn't read ranges of objects"),
                again: Again::Never,
                code: None,
            });
        }
        None => len,
    };
    let mut bytes = BytesMut::with_capacity(len.min(64 << 20) as usize);
    while let Some(piece) = answer.body.next().await {
        bytes.extend_from_slice(&piece.map_err(|e| about.broken_off(&e))?);
    }
    if bytes.len() as u64 != len {
        return Err(strange(format!("{} of {len} bytes came", bytes.len())));
    }
    Ok(Got { bytes: bytes.freeze(), size })
}

/// How many bytes a `Content-Range` covers, and how many the whole object has: `bytes 0-9/100`.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some((last.checked_sub(first)?.checked_add(1)?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_range("bytes 0-9/100"), Some((10, 100)));
        assert_eq!(parse_range("bytes 5-5/6"), Some((1, 6)));
        for bad in ["", "bytes */100", "bytes 9-0/100", "bytes 0-9/*", "0-9/100", "bytes 0-9"] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }
}
