//! Looking at one sealed object: at its end, or at all of it.
//!
//! The end has the closing frame, which is authenticated under the object's own name and says how
//! long each frame is and so how long the object is. So one small request tells whether an object is
//! the one that was stored here, and whole; not whether what is before its end can be read.

use super::findings::damage;
use crate::{
    error::Result,
    repo::{
        Repository,
        catalog::exists,
        sealed::{FrameStream, ObjectReader},
    },
    storage::ObjectName,
};

/// Up to this size reading all of an object costs no more than reading its end.
pub const SMALL: u64 = 16 << 10;

/// What was seen of an object.
#[derive(Debug)]
pub enum Look {
    /// It is sound as far as was looked; its summary.
    Sound(Vec<u8>),
    /// It isn't there.
    Gone,
    /// It isn't what was stored.
    Damaged(String),
}

/// Looks at an object's end.
pub async fn end(repository: &Repository, name: &ObjectName) -> Result<Look> {
    let found = ObjectReader::find(repository, name).await;
    look(repository, name, found.map(|found| found.map(|reader| reader.summary().to_vec()))).await
}

/// Reads all of an object.
pub async fn whole(repository: &Repository, name: &ObjectName) -> Result<Look> {
    let read = async {
        let Some(mut frames) = FrameStream::find(repository, name).await? else { return Ok(None) };
        while frames.next().await?.is_some() {}
        Ok(Some(frames.summary().to_vec()))
    };
    look(repository, name, read.await).await
}

/// Tells what came of reading an object.
pub async fn look(
    repository: &Repository,
    name: &ObjectName,
    read: Result<Option<Vec<u8>>>,
) -> Result<Look> {
    Ok(match read {
        Ok(Some(summary)) => Look::Sound(summary),
        Ok(None) => Look::Gone,
        Err(e) => {
            let what = damage(e)?;
            // It may have been removed while it was read.
            if exists(repository, name).await? { Look::Damaged(what) } else { Look::Gone }
        }
    })
}
