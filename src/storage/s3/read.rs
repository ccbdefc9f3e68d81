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
use crate::storage::{ErrorKind, Fetched, ObjectName, Range, Result, whole};

/// No object is longer: S3's own limit, 5 TiB, with room.
const LONGEST: u64 = 1 << 43;

/// What a GET asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    All,
    /// The bytes from the first to the last one.
    From(u64, u64),
    /// So many last bytes.
    Last(u64),
}

impl Asked {
    /// The header's value.
    fn range(self) -> Option<String> {
        match self {
            Asked::All => None,
            Asked::From(first, last) => Some(format!("bytes={first}-{last}")),
            Asked::Last(len) => Some(format!("bytes=-{len}")),
        }
    }

    /// Whether an answer that covers this of an object is the one that was asked for.
    fn fits(self, covered: &Covered) -> bool {
        let Covered { first, last, size } = *covered;
        match self {
            Asked::All => false,
            Asked::From(from, to) => (first, last) == (from, to.min(size - 1)),
            Asked::Last(len) => (first, last) == (size.saturating_sub(len), size - 1),
        }
    }

    /// Whether nothing of it is there in an object of this size.
    fn is_behind(self, size: u64) -> bool {
        match self {
            Asked::From(first, _) => size <= first,
            Asked::All | Asked::Last(_) => size == 0,
        }
    }
}

/// What a `Content-Range` says: which bytes come, of how many. The last one is within the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Covered {
    first: u64,
    last: u64,
    size: u64,
}

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
        let asked = match range {
            Range::All => Asked::All,
            Range::Last(0) | Range::At { len: 0, .. } => {
                let size = self.size(name).await?;
                return Ok(Fetched { bytes: Bytes::new(), size });
            }
            Range::Last(len) => Asked::Last(len.min(LONGEST)),
            Range::At { offset, len } => {
                let last = offset.saturating_add(len - 1).min(LONGEST);
                Asked::From(offset.min(LONGEST), last)
            }
        };
        match self.get(&about, name, asked).await {
            Ok(Got { bytes, size }) => Ok(Fetched { bytes, size }),
            // Nothing of the range is there, so the object ends before it.
            Err(failure) if failure.error.kind == ErrorKind::OutOfRange => {
                let size = self.size_behind(name, asked).await?;
                Ok(Fetched { bytes: Bytes::new(), size })
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
        let asked = Asked::From(0, 0);
        match self.get(&about, name, asked).await {
            Ok(got) => Ok(got.size),
            Err(failure) if failure.error.kind == ErrorKind::OutOfRange => {
                self.size_behind(name, asked).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// The size of an object that is known to be there, and of which nothing is that was asked for.
    async fn size_behind(&self, name: &ObjectName, asked: Asked) -> Result<u64> {
        let head = self.head(name, None).await?;
        let size = head.content_length().and_then(|len| u64::try_from(len).ok());
        size.filter(|size| asked.is_behind(*size)).ok_or_else(|| {
            let what = match size {
                Some(size) => {
                    format!("nothing of {asked:?} is said to be there, and {size} bytes are")
                }
                None => "the server doesn't say how long it is".to_owned(),
            };
            self.about("look at", name.as_str()).error(ErrorKind::Unavailable, what)
        })
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
    async fn get(&self, about: &About, name: &ObjectName, asked: Asked) -> Result<Got, Failure> {
        let client = self.client(about).await.map_err(Failure::from)?;
        self.attempts(|| async {
            let answer = client
                .get_object()
                .bucket(&self.settings.bucket)
                .key(self.settings.key(name.as_str()))
                .set_range(asked.range())
                .send()
                .await
                .map_err(|e| about.failure(&e))?;
            self.saw_version(answer.version_id());
            collect(about, answer, asked).await
        })
        .await
    }
}

async fn collect(about: &About, mut answer: GetObjectOutput, asked: Asked) -> Result<Got, Failure> {
    let failure =
        |kind, again, what: String| Failure { error: about.error(kind, what), again, code: None };
    let strange = |what: String| failure(ErrorKind::Unavailable, Again::Soon, what);
    let Some(len) = answer.content_length().and_then(|len| u64::try_from(len).ok()) else {
        return Err(strange("the server doesn't say how long its answer is".to_owned()));
    };
    let size = match (answer.content_range(), asked) {
        (None, Asked::All) => {
            whole(len).map_err(|e| failure(ErrorKind::Refused, Again::Never, e.to_string()))?
        }
        // Allowed by HTTP, and of no use here.
        (None, _) => {
            let what = "the server doesn't read ranges of objects".to_owned();
            return Err(failure(ErrorKind::Refused, Again::Never, what));
        }
        // That as much comes as the range has is the only thing that tells a cut answer whose
        // length was made to fit; and that it is the range that was asked for, what came from elsewhere.
        (Some(range), asked) => match parse_range(range) {
            Some(covered) if covered.last - covered.first + 1 == len && asked.fits(&covered) => {
                covered.size
            }
            _ => {
                let what = format!("{len} bytes came for {asked:?}, and {range:?} is said of them");
                return Err(strange(what));
            }
        },
    };
    let mut bytes = BytesMut::with_capacity(usize::try_from(len).unwrap_or_default());
    while let Some(piece) = answer.body.next().await {
        bytes.extend_from_slice(&piece.map_err(|e| about.broken_off(&e))?);
        if bytes.len() as u64 > len {
            break;
        }
    }
    if bytes.len() as u64 != len {
        return Err(strange(format!("{} of {len} bytes came", bytes.len())));
    }
    Ok(Got { bytes: bytes.freeze(), size })
}

/// What a `Content-Range` says: `bytes 0-9/100`.
fn parse_range(text: &str) -> Option<Covered> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let covered =
        Covered { first: first.parse().ok()?, last: last.parse().ok()?, size: size.parse().ok()? };
    (covered.first <= covered.last && covered.last < covered.size).then_some(covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let covered = |first, last, size| Some(Covered { first, last, size });
        assert_eq!(parse_range("bytes 0-9/100"), covered(0, 9, 100));
        assert_eq!(parse_range("bytes 5-5/6"), covered(5, 5, 6));
        for bad in [
            "",
            "bytes */100",
            "bytes 9-0/100",
            "bytes 0-9/*",
            "0-9/100",
            "bytes 0-9",
            "bytes 0-9/9",
            "bytes 0-18446744073709551615/18446744073709551615",
        ] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn another_range_than_was_asked_for_is_seen() {
        let fits = |asked: Asked, text: &str| asked.fits(&parse_range(text).unwrap());
        assert!(fits(Asked::From(5, 14), "bytes 5-14/100"));
        assert!(fits(Asked::From(5, 14), "bytes 5-9/10"), "the object ends there");
        assert!(!fits(Asked::From(5, 14), "bytes 5-9/100"));
        assert!(!fits(Asked::From(5, 14), "bytes 15-24/100"));
        assert!(fits(Asked::Last(5), "bytes 95-99/100"));
        assert!(fits(Asked::Last(5), "bytes 0-2/3"));
        assert!(!fits(Asked::Last(5), "bytes 94-98/100"));
        assert!(!fits(Asked::All, "bytes 0-9/10"));
    }
}
