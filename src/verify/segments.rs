//! The archive's objects, one after the other: their ends, or all of their bytes.
//!
//! Segments that are read whole go in stretches to [`super::records`], which reads their records as
//! recovery would.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Level,
    archive::Archive,
    findings::{Done, Finding, Loss, damage},
    objects::{Look, end, look},
    pool::Pool,
    records::{Piece, Stretch, scan},
    report::ProblemKind,
    stranger,
};
use crate::{
    error::{Error, Result},
    postgres::{SegmentName, SegmentSize, Timeline, WalFile, history::TimelineHistory},
    progress::Progress,
    repo::{
        BackupId,
        catalog::{PAGE, exists},
        named::{Named, named},
        wal::{StoredSummary, WalObject, WalStore, longest},
        wal_parts::PartRange,
    },
    storage::{Listed, ObjectName},
};

/// The longest stretch of segments that one task reads. Each but the first of a row begins with the
/// segment before it, for the record that goes on from there.
const STRETCH: u64 = 16;

/// Between a file and its copies come at most its own backup history files in a listing.
const REMEMBERED: usize = 64;

/// How the objects of an archive are gone through.
pub struct Objects<'a> {
    /// The archive.
    pub archive: &'a Archive,
    /// How closely.
    pub level: Level,
    /// Only what this backup may need.
    pub only: Option<&'a BackupId>,
    /// How many objects' ends are looked at, or stretches read, at a time.
    pub at_once: usize,
    /// Is told of bytes that were read.
    pub progress: Arc<dyn Progress>,
}

/// The segments of a row that weren't handed out yet.
#[derive(Default)]
struct Row {
    lead: Option<Piece>,
    pieces: Vec<Piece>,
}

impl Objects<'_> {
    /// Looks at all of them.
    pub async fn check(&self, done: &mut Done) -> Result<()> {
        let timelines: Vec<Timeline> =
            self.archive.inventory.timelines().map(|(timeline, _)| timeline).collect();
        let mut pool = Pool::new(self.at_once);
        for timeline in timelines {
            self.timeline(timeline, &mut pool, done).await?;
        }
        while let Some(more) = pool.next().await? {
            done.add(more);
        }
        Ok(())
    }

    async fn timeline(
        &self,
        timeline: Timeline,
        pool: &mut Pool<Done>,
        done: &mut Done,
    ) -> Result<()> {
        let archive = self.archive;
        let size = archive.inventory.segment_size;
        let mut after: Option<ObjectName> = None;
        let mut row = Row::default();
        // The last files that were met, of which copies may follow.
        let mut met: VecDeque<WalFile> = VecDeque::new();
        let (repository, layout) = (archive.store.repository(), archive.store.layout());
        let folder = layout.timeline_folder(archive.system, timeline);
        loop {
            let last = after.as_ref().map(ObjectName::as_str);
            let page = repository.storage().list(&folder, last, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for listed in page {
                let known = named(layout, repository.names(), &listed.name);
                let Some(Named::Wal(_, _, object)) = known else {
                    if self.only.is_none() {
                        done.findings.push(stranger(&listed));
                    }
                    continue;
                };
                if !self.is_wanted(&object) {
                    continue;
                }
                let file = object.file();
                let has_file = met.contains(&file);
                if matches!(&object, WalObject::Plain(_) | WalObject::Content(..)) {
                    if has_file {
                        done.findings.push(self.two_contents(&listed, file));
                    }
                    met.push_back(file);
                    met.drain(..met.len().saturating_sub(REMEMBERED));
                }
                match (&object, self.level) {
                    (
                        WalObject::Plain(WalFile::Segment(segment))
                        | WalObject::Content(WalFile::Segment(segment), _),
                        Level::Full,
                    ) if segment.number(size).is_some() => {
                        self.take(&mut row, *segment, listed, pool, done).await?;
                    }
                    _ => {
                        let store = archive.store.clone();
                        let (level, progress) = (self.level, self.progress.clone());
                        let is_spare = match &object {
                            WalObject::Repair(..) => has_file,
                            WalObject::Part(segment, ..) => {
                                met.contains(&WalFile::Segment(*segment))
                            }
                            _ => false,
                        };
                        let one = One { store, size, object, listed, level, is_spare };
                        let work = async move {
                            let done = one.check().await?;
                            progress.advance(one.listed.size);
                            Ok(done)
                        };
                        if let Some(more) = pool.add(work).await? {
                            done.add(more);
                        }
                    }
                }
            }
        }
        self.hand_out(&mut row, false, pool, done).await
    }

    fn is_wanted(&self, object: &WalObject) -> bool {
        let Some(id) = self.only else { return true };
        let Some(record) = self.archive.backups.iter().find(|record| record.id == *id) else {
            return false;
        };
        let size = self.archive.inventory.segment_size;
        match object.file() {
            WalFile::Segment(segment)
            | WalFile::Partial(segment)
            | WalFile::BackupHistory(segment, _) => segment
                .number(size)
                .is_some_and(|n| self.archive.is_of_use(record, segment.timeline, n)),
            WalFile::History(timeline) => self.archive.is_of_use(record, timeline, u64::MAX),
        }
    }

    /// Two contents of a file: recovery refuses both.
    fn two_contents(&self, listed: &Listed, file: WalFile) -> Finding {
        let text =
            format!("there are two contents of {file}: which is the right one can't be told");
        let loss = loss_of(&self.archive.store, self.archive.inventory.segment_size, file);
        Finding::of(ProblemKind::Inconsistent, &listed.name, text)
            .costs(loss)
            .hint("remove by hand the one that isn't this cluster's")
    }

    /// Takes a segment that is to be read whole.
    async fn take(
        &self,
        row: &mut Row,
        name: SegmentName,
        listed: Listed,
        pool: &mut Pool<Done>,
        done: &mut Done,
    ) -> Result<()> {
        let size = self.archive.inventory.segment_size;
        let number = name.number(size).unwrap_or_default();
        let follows = |piece: &Piece| piece.number + 1 == number;
        let piece = Piece { name, number, object: Some(listed.name), stored: listed.size };
        if !row.pieces.last().is_some_and(follows) {
            self.hand_out(row, false, pool, done).await?;
            *row = Row { lead: self.lead(name, number), pieces: vec![piece] };
            return Ok(());
        }
        if row.pieces.len() as u64 >= self.longest() {
            self.hand_out(row, true, pool, done).await?;
        }
        row.pieces.push(piece);
        Ok(())
    }

    /// How long a stretch is: short enough that there is one for each task.
    fn longest(&self) -> u64 {
        let ranges = self.archive.inventory.timelines().flat_map(|(_, wal)| &wal.ranges);
        let segments: u64 = ranges.map(|range| range.last - range.first + 1).sum();
        (segments / self.at_once.max(1) as u64).clamp(2, STRETCH)
    }

    /// The segment before the first one of a row: where a timeline begins, its parent's.
    fn lead(&self, first: SegmentName, number: u64) -> Option<Piece> {
        let before = number.checked_sub(1)?;
        let path = self.archive.inventory.path(first.timeline)?;
        let name = self.archive.inventory.segment(path, before)?;
        // Of the same timeline it would be in the row.
        (name.timeline != first.timeline).then_some(Piece {
            name,
            number: before,
            object: None,
            stored: 0,
        })
    }

    /// Hands the row's segments out; it `goes_on` if the next one follows.
    async fn hand_out(
        &self,
        row: &mut Row,
        goes_on: bool,
        pool: &mut Pool<Done>,
        done: &mut Done,
    ) -> Result<()> {
        let pieces = std::mem::take(&mut row.pieces);
        let Some(last) = pieces.last().cloned() else { return Ok(()) };
        let stretch = Stretch {
            store: self.archive.store.clone(),
            size: self.archive.inventory.segment_size,
            lead: row.lead.replace(last),
            pieces,
            goes_on,
            progress: self.progress.clone(),
        };
        if let Some(more) = pool.add(scan(stretch)).await? {
            done.add(more);
        }
        Ok(())
    }
}

/// What the loss of a file of the archive costs.
pub fn loss_of(store: &WalStore, size: SegmentSize, file: WalFile) -> Loss {
    match file {
        WalFile::Segment(segment) | WalFile::Partial(segment) => match segment.number(size) {
            Some(n) => Loss::of_segments(store.system(), segment.timeline, n, n),
            None => Loss::default(),
        },
        WalFile::History(timeline) => {
            Loss { timeline: Some((store.system(), timeline)), ..Loss::default() }
        }
        WalFile::BackupHistory(..) => Loss::default(),
    }
}

/// What there is to do about a damaged part of a segment.
const RECEIVE_AGAIN: &str = "`pgkeep stream`, started again, stores what the part had while the server still has it; else \
                             take a backup, so that later moments don't need it";

/// What there is to do about a damaged file of the archive.
pub fn push_again(file: WalFile) -> String {
    format!(
        "if a server still has {file} in its pg_wal, `pgkeep archive-push` of it stores a repaired \
         copy; else take a backup, so that later moments don't need it"
    )
}

/// An object of the archive that is looked at by itself.
struct One {
    store: WalStore,
    size: SegmentSize,
    object: WalObject,
    listed: Listed,
    level: Level,
    /// Whether it is a repaired copy of a file that is there, or a part of one.
    is_spare: bool,
}

impl One {
    async fn check(&self) -> Result<Done> {
        let mut done = Done::default();
        let file = self.object.file();
        let name = &self.listed.name;
        done.checked.objects = 1;
        let is_segment = matches!(file, WalFile::Segment(_) | WalFile::Partial(_))
            && !matches!(self.object, WalObject::Part(..));
        done.checked.segments = u64::from(is_segment);
        done.checked.bytes = match self.level {
            Level::Quick => self.listed.size.min(super::objects::SMALL),
            Level::Full => self.listed.size,
        };
        let wrong = match self.look(name, true).await? {
            Look::Gone => return Ok(Done { vanished: true, ..Done::default() }),
            Look::Sound(_) => return Ok(done),
            Look::Damaged(what) => what,
        };
        let is_copy = matches!(self.object, WalObject::Repair(..));
        if let (false, Some(copy)) = (is_copy, self.sound_copy(file).await?) {
            done.notice(name, format!("is damaged ({wrong}); its repaired copy {copy} is sound"));
            return Ok(done);
        }
        let finding = Finding::of(ProblemKind::Damaged, name, wrong);
        // Where the file itself is damaged too, that is told with what it costs.
        done.findings.push(match self.is_spare {
            true => finding
                .hint("it is a copy; what it is a copy of is told apart, if that is damaged too"),
            false => {
                let hint = match self.object {
                    WalObject::Part(..) => RECEIVE_AGAIN.to_owned(),
                    _ => push_again(file),
                };
                finding.hint(hint).costs(loss_of(&self.store, self.size, file))
            }
        });
        Ok(done)
    }

    /// A repaired copy of the file that is sound.
    async fn sound_copy(&self, file: WalFile) -> Result<Option<String>> {
        if matches!(file, WalFile::Partial(_)) {
            return Ok(None);
        }
        for copy in self.store.repairs(file).await? {
            if let Look::Sound(_) = self.look(&copy, false).await? {
                return Ok(Some(copy.file_name().to_owned()));
            }
        }
        Ok(None)
    }

    /// Looks at one object of the file. `named`: its name is the one it was listed under.
    async fn look(&self, name: &ObjectName, named: bool) -> Result<Look> {
        let repository = self.store.repository();
        let file = self.object.file();
        let found = match (file, self.level) {
            (WalFile::History(timeline), _) => {
                let mut content = Vec::new();
                let read = self.store.copy_at_most(name, longest(file), &mut content).await;
                let summary = read.and_then(|s| s.map(|s| s.to_bytes()).transpose());
                let found = look(repository, name, summary).await?;
                match (&found, TimelineHistory::parse(timeline, &content)) {
                    (Look::Sound(_), Err(e)) => Look::Damaged(e.to_string()),
                    _ => found,
                }
            }
            (WalFile::Segment(_) | WalFile::Partial(_), Level::Quick) => {
                end(repository, name).await?
            }
            (WalFile::BackupHistory(..) | WalFile::Segment(_) | WalFile::Partial(_), _) => {
                let read = self.store.copy_to(name, &mut std::io::sink()).await;
                let summary = read.and_then(|s| s.map(|s| s.to_bytes()).transpose());
                look(repository, name, summary).await?
            }
        };
        let Look::Sound(summary) = &found else { return Ok(found) };
        let parsed = serde_json::from_slice::<StoredSummary>(summary);
        let wrong = match parsed {
            Err(e) => Some(format!("what it says of itself can't be read: {e}")),
            Ok(summary) => self.unlike_name(&summary, named),
        };
        Ok(wrong.map_or(found, Look::Damaged))
    }

    /// What doesn't fit to the object's name.
    fn unlike_name(&self, summary: &StoredSummary, named: bool) -> Option<String> {
        let checksum = match &self.object {
            WalObject::Content(_, checksum)
            | WalObject::Partial(_, checksum)
            | WalObject::Repair(_, checksum)
            | WalObject::Part(.., checksum) => Some(checksum.as_str()),
            WalObject::Plain(_) => None,
        };
        let checksum = checksum.filter(|_| named).and_then(|c| c.split('-').next());
        if checksum.is_some_and(|checksum| checksum != summary.short_checksum()) {
            return Some(format!("its content's SHA-256 begins with {}", summary.short_checksum()));
        }
        match &self.object {
            WalObject::Part(segment, range, _) => self.part_unlike(*segment, *range, summary),
            _ => segment_unlike(self.object.file(), self.size, summary),
        }
    }

    fn part_unlike(
        &self,
        segment: SegmentName,
        range: PartRange,
        summary: &StoredSummary,
    ) -> Option<String> {
        let fits = segment.number(self.size).is_some() && u64::from(range.to) <= self.size.bytes();
        if !fits {
            return Some(format!("the system's segments have {}, so this is none", self.size));
        }
        (summary.size != range.bytes())
            .then(|| format!("it has {} bytes, its name says {}", summary.size, range.bytes()))
    }
}

/// What of a segment's summary doesn't fit to its name.
pub fn segment_unlike(file: WalFile, size: SegmentSize, summary: &StoredSummary) -> Option<String> {
    let (segment, whole) = match file {
        WalFile::Segment(segment) => (segment, true),
        WalFile::Partial(segment) => (segment, false),
        WalFile::History(_) | WalFile::BackupHistory(..) => {
            return summary.segment.is_some().then(|| "it is a WAL segment".to_owned());
        }
    };
    let Some(number) = segment.number(size) else {
        return Some(format!("the system's segments have {size}, and none of them has this name"));
    };
    if summary.size > size.bytes() || (whole && summary.size != size.bytes()) {
        return Some(format!("it has {} bytes, the system's segments have {size}", summary.size));
    }
    let Some(contents) = &summary.segment else {
        return Some("it doesn't say what is in the segment".to_owned());
    };
    (contents.parsed && contents.start != size.start_of(number))
        .then(|| format!("it is the segment that begins at {}", contents.start))
}

/// The reason of an error that is damage, if the object is there.
pub async fn damaged(store: &WalStore, name: &ObjectName, e: Error) -> Result<Option<String>> {
    let what = damage(e)?;
    let there = exists(store.repository(), name).await?;
    Ok(there.then_some(what))
}
