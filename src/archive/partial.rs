//! Segments that aren't whole: the end of a timeline that a promotion left, or as far as the stream
//! has come.
//!
//! Recovery never asks for one by its name. It asks for the segment, and is given a partial one, or
//! what the stream's parts have of it, only when the whole is certainly in no repository and the
//! timeline has no later segment: where there is one, the whole was written and may still arrive,
//! and the partial would hide the gap. Parts that have all of the segment are as good as the whole.
//!
//! Several standbys promoted within one segment leave several. All begin alike, so the one with the
//! longest valid WAL has all the others have. One that can't be read might be the longest; then
//! nothing is served.

use std::collections::BTreeMap;

use super::get::Request;
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, SegmentSize, WalFile},
    repo::{
        wal::{WalObject, WalStore},
        wal_parts::covered,
    },
    storage::ObjectName,
};

/// One content that partial copies of the segment have.
struct Content<'a> {
    /// Where its valid WAL ends; `None` as long as no copy's summary could be read.
    end: Option<Lsn>,
    copies: Vec<(&'a WalStore, ObjectName)>,
    damage: Option<Error>,
}

/// What was served.
pub type Served<'a> = (&'a WalStore, String);

/// How parts are told from objects where it is said what was served.
fn parts_of(segment: SegmentName) -> String {
    format!("{segment}.part.*")
}

/// Serves a partial one in place of `segment`, which is in none of `stores`. `None` when there is
/// none that may be served.
pub async fn serve_as_segment<'a>(
    request: &Request<'_>,
    stores: &'a [WalStore],
    segment: SegmentName,
) -> Result<Option<Served<'a>>> {
    let stores: Vec<_> = stores.iter().collect();
    let size = request.directory.control.segment_size;
    let streamed = Streamed::find(&stores, segment).await?;
    if let Some(streamed) = &streamed
        && streamed.bytes == size.bytes()
    {
        return streamed.serve(request, segment).await.map(Some);
    }
    let longest = longest(&stores, segment).await?;
    if longest.is_none() && streamed.is_none() {
        return Ok(None);
    }
    for store in &stores {
        if has_later(store, segment).await? {
            tracing::warn!(
                "{segment} is missing from the archive; a partial copy isn't served for it, since \
                 later segments of its timeline are there"
            );
            return Ok(None);
        }
    }
    // Parts may reach farther than valid WAL does, so both are compared by their records.
    let streamed_end = match &streamed {
        Some(streamed) => streamed.end(segment, size).await?,
        None => None,
    };
    match (longest, streamed) {
        (Some(longest), _) if longest.end >= streamed_end => {
            let (store, name) = longest.serve(request).await?;
            Ok(Some((store, name.to_string())))
        }
        (_, Some(streamed)) if streamed_end.is_some() => {
            streamed.serve(request, segment).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// What the stream has of a segment, in the repositories that have most of it.
struct Streamed<'a> {
    /// How far its parts reach, in bytes from the segment's start.
    bytes: u64,
    stores: Vec<&'a WalStore>,
}

impl<'a> Streamed<'a> {
    async fn find(stores: &[&'a WalStore], segment: SegmentName) -> Result<Option<Self>> {
        let mut most: Option<Streamed<'a>> = None;
        for store in stores {
            let bytes = covered(&store.parts(segment).await?);
            match &mut most {
                _ if bytes == 0 => {}
                Some(most) if most.bytes == bytes => most.stores.push(store),
                Some(most) if most.bytes > bytes => {}
                _ => most = Some(Streamed { bytes, stores: vec![store] }),
            }
        }
        Ok(most)
    }

    /// Where the valid WAL ends. Damaged parts in one repository may be sound in another.
    async fn end(&self, segment: SegmentName, size: SegmentSize) -> Result<Option<Lsn>> {
        let mut damage = None;
        for store in &self.stores {
            match store.parts_summary(segment, size).await {
                Ok(summary) => return Ok(summary.map(|summary| summary.end)),
                Err(e) if e.kind() == Kind::Damaged => damage = Some(e),
                Err(e) => return Err(e),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    async fn serve(&self, request: &Request<'_>, segment: SegmentName) -> Result<Served<'a>> {
        let mut damage = None;
        for store in &self.stores {
            match request.fetch_parts(store, segment, self.bytes).await {
                Ok(()) => return Ok((store, parts_of(segment))),
                Err(e) if e.kind() == Kind::Damaged => damage = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(damage.unwrap_or_else(|| Error::new(Kind::Internal, "no repository has the parts")))
    }
}

/// Serves the longest partial copy that one repository has, under its own name.
pub async fn serve_partial(
    request: &Request<'_>,
    store: &WalStore,
    segment: SegmentName,
) -> Result<Option<ObjectName>> {
    match longest(&[store], segment).await? {
        Some(content) => content.serve(request).await.map(|(_, name)| Some(name)),
        None => Ok(None),
    }
}

impl<'a> Content<'a> {
    /// Serves the first copy that is sound.
    async fn serve(self, request: &Request<'_>) -> Result<(&'a WalStore, ObjectName)> {
        let mut damage = self.damage;
        for (store, name) in self.copies {
            match request.fetch(store, &name).await {
                Ok(true) => return Ok((store, name)),
                Ok(false) => {}
                Err(e) if e.kind() == Kind::Damaged => damage = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(damage.unwrap_or_else(|| {
            Error::new(Kind::Repository, "a partial segment vanished while it was looked at")
        }))
    }
}

/// The content with the longest valid WAL.
async fn longest<'a>(stores: &[&'a WalStore], segment: SegmentName) -> Result<Option<Content<'a>>> {
    let mut contents: BTreeMap<String, Content<'a>> = BTreeMap::new();
    for store in stores {
        let mut names = store.partials(segment).await?;
        names.extend(store.repairs(WalFile::Partial(segment)).await?);
        for name in names {
            let checksum = match WalObject::parse(name.file_name()) {
                Some(WalObject::Partial(_, checksum) | WalObject::Repair(_, checksum)) => checksum,
                _ => continue,
            };
            // A second repair has a number behind its checksum.
            let checksum = checksum.split('-').next().unwrap_or_default().to_owned();
            let content = contents.entry(checksum).or_insert_with(|| Content {
                end: None,
                copies: Vec::new(),
                damage: None,
            });
            match store.summary(&name).await {
                Ok(Some(summary)) => {
                    content.end = Some(summary.segment.map_or(Lsn::INVALID, |s| s.end));
                    content.copies.push((store, name));
                }
                Ok(None) => {}
                Err(e) if e.kind() == Kind::Damaged => content.damage = Some(e),
                Err(e) => return Err(e),
            }
        }
    }
    let mut longest: Option<Content<'a>> = None;
    for content in contents.into_values() {
        if content.end.is_none() {
            match content.damage {
                Some(damage) => return Err(damage),
                None => continue,
            }
        }
        if longest.as_ref().is_none_or(|l| content.end > l.end) {
            longest = Some(content);
        }
    }
    Ok(longest)
}

/// Whether the timeline has anything of a segment after this one.
async fn has_later(store: &WalStore, segment: SegmentName) -> Result<bool> {
    let mut after = Some(store.plain(WalFile::Segment(segment)));
    loop {
        let page = store.page(segment.timeline, after.as_ref()).await?;
        let Some((_, last, _)) = page.last() else { return Ok(false) };
        after = Some(last.clone());
        let later = page.iter().any(|(object, ..)| {
            let file = match object {
                WalObject::Plain(file)
                | WalObject::Content(file, _)
                | WalObject::Repair(file, _) => *file,
                WalObject::Partial(segment, _) | WalObject::Part(segment, ..) => {
                    WalFile::Partial(*segment)
                }
            };
            matches!(file, WalFile::Segment(s) | WalFile::Partial(s) if s > segment)
        });
        if later {
            return Ok(true);
        }
    }
}
