//! Segments that aren't whole: the end of a timeline that a promotion left, or as far as the stream
//! has come.
//!
//! Recovery never asks for one by its name. It asks for the segment, and is given what there is only
//! when the whole is certainly in no repository. A partial copy is served only when the timeline has no
//! later segment: where there is one, the whole was written and may still arrive, and the partial would
//! hide the gap. The stream's parts are served in any case, since what they have was acknowledged. And
//! neither is where the server's own file has as much: PostgreSQL would put ours in its place.
//!
//! Several standbys promoted within one segment leave several. All begin alike, so the one with the
//! longest valid WAL has all the others have. One that can't be read might be the longest; then
//! nothing is served.

use std::{cmp::Reverse, collections::BTreeMap, fs::File, io::Read};

use super::{
    get::{Fetched, Received, Request},
    source::check_header,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, WalFile,
        wal::{SegmentHeader, scan_file},
    },
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
    let (streamed, copy) =
        tokio::join!(Streamed::find(request, &stores, segment), longest(&stores, segment));
    let streamed = streamed?;
    let (copy, copy_end) = match copy? {
        Some(copy) if !has_later_in_any(&stores, segment).await? => {
            let end = copy.end;
            (Some(copy), end)
        }
        Some(_) => {
            tracing::warn!(
                "{segment} is missing from the archive; a partial copy isn't served for it, since \
                 later segments of its timeline are there"
            );
            (None, None)
        }
        None => (None, None),
    };
    let streamed_end = streamed.as_ref().map(|streamed| streamed.received.end);
    let Some(end) = streamed_end.max(copy_end) else { return Ok(None) };
    // The server's own file may have more, and would be replaced.
    if own_end(request, segment) >= Some(end) {
        tracing::info!("the server's own {segment} has all that the archive has of it");
        return Ok(None);
    }
    match (copy, streamed) {
        (Some(copy), _) if copy_end >= streamed_end => {
            let (store, fetched) = copy.serve(request).await?;
            Ok(Some((store, fetched.object.to_string())))
        }
        (_, Some(Streamed { store, received })) => {
            if has_later_in_any(&stores, segment).await? {
                tracing::warn!(
                    "{segment} isn't whole in the archive: recovery ends at {end}, although later segments of its \
                     timeline are there"
                );
            }
            request.hand_over(store, segment, received).await?;
            Ok(Some((store, parts_of(segment))))
        }
        _ => Ok(None),
    }
}

async fn has_later_in_any(stores: &[&WalStore], segment: SegmentName) -> Result<bool> {
    for store in stores {
        if has_later(store, segment).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where the valid WAL ends in the file of this segment that the server has itself, if it is one.
fn own_end(request: &Request<'_>, segment: SegmentName) -> Option<Lsn> {
    let size = request.directory.control.segment_size;
    let mut file = File::open(request.destination.with_file_name(segment.to_string())).ok()?;
    let mut page = [0; SegmentHeader::LEN];
    file.read_exact(&mut page).ok()?;
    let header = SegmentHeader::parse(&page).ok()?;
    check_header(&header, segment, request.directory).ok()?;
    let summary = scan_file(&mut file, segment, size).ok()?;
    summary.parsed.then_some(summary.end)
}

/// What the stream has of a segment, from the repository that has most of it. What was acknowledged is
/// in each of them; so where one can't be read, the next is as good.
struct Streamed<'a> {
    store: &'a WalStore,
    received: Received,
}

impl<'a> Streamed<'a> {
    async fn find(
        request: &Request<'_>,
        stores: &[&'a WalStore],
        segment: SegmentName,
    ) -> Result<Option<Self>> {
        let mut found: Vec<(u64, &'a WalStore)> = Vec::new();
        for store in stores {
            let parts = store.parts(segment).await?;
            found.push((covered(parts.iter().map(|part| &part.range)), store));
        }
        found.retain(|(bytes, _)| *bytes > 0);
        found.sort_by_key(|(bytes, _)| Reverse(*bytes));
        let mut failure = None;
        for (_, store) in found {
            match request.fetch_parts(store, segment).await {
                Ok(Some(received)) => {
                    if let Some(e) = failure {
                        tracing::warn!("{e}");
                    }
                    return Ok(Some(Streamed { store, received }));
                }
                Ok(None) => {}
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => failure = Some(e),
                Err(e) => return Err(e),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

/// Serves the longest partial copy that one repository has, under its own name.
pub async fn serve_partial(
    request: &Request<'_>,
    store: &WalStore,
    segment: SegmentName,
) -> Result<Option<Fetched>> {
    match longest(&[store], segment).await? {
        Some(content) => content.serve(request).await.map(|(_, fetched)| Some(fetched)),
        None => Ok(None),
    }
}

impl<'a> Content<'a> {
    /// Serves the first copy that is sound.
    async fn serve(self, request: &Request<'_>) -> Result<(&'a WalStore, Fetched)> {
        let mut damage = self.damage;
        for (store, name) in self.copies {
            match request.fetch(store, &name).await {
                Ok(Some(fetched)) => return Ok((store, fetched)),
                Ok(None) => {}
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
        let (names, repairs) =
            tokio::join!(store.partials(segment), store.repairs(WalFile::Partial(segment)));
        let names = names?.into_iter().chain(repairs?);
        for name in names {
            let object = WalObject::parse(name.file_name());
            let Some(checksum) = object.as_ref().and_then(WalObject::checksum) else { continue };
            let content = contents.entry(checksum.to_owned()).or_insert_with(|| Content {
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
pub(super) async fn has_later(store: &WalStore, segment: SegmentName) -> Result<bool> {
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
