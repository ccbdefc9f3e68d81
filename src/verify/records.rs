//! WAL segments read whole: every byte, and every record as recovery would read it.
//!
//! Segments that follow one another go through one scanner, so that a record that begins in one and
//! ends in the next is checked as well, and that the next one goes on where the last one ended.

use std::{io::Write, sync::Arc};

use super::{
    findings::{Done, Finding, Loss},
    report::ProblemKind,
    segments::{damaged, loss_of, push_again, segment_unlike},
};
use crate::{
    error::Result,
    postgres::{
        SegmentName, SegmentSize, WalFile,
        wal::{Event, SegmentScanner, SegmentSummary},
    },
    progress::Progress,
    repo::wal::{StoredSummary, WalStore},
    storage::ObjectName,
};

/// A segment of a stretch.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Its name.
    pub name: SegmentName,
    /// Its number.
    pub number: u64,
    /// Its object; looked for, if it isn't known.
    pub object: Option<ObjectName>,
    /// Stored bytes.
    pub stored: u64,
}

/// Segments that follow one another.
pub struct Stretch {
    /// The archive.
    pub store: WalStore,
    /// The size of its segments.
    pub size: SegmentSize,
    /// The segment before the first one.
    pub lead: Option<Piece>,
    /// The segments.
    pub pieces: Vec<Piece>,
    /// Whether the timeline has a segment behind the last one.
    pub goes_on: bool,
    /// Is told of bytes that were read.
    pub progress: Arc<dyn Progress>,
}

/// Reads a stretch.
pub async fn scan(stretch: Stretch) -> Result<Done> {
    let mut done = Done::default();
    let mut scanner: Option<SegmentScanner> = None;
    if let Some(lead) = &stretch.lead {
        let mut begun = Scan::new(SegmentScanner::new(lead.name, stretch.size, None));
        // What is wrong with it is told by the stretch that it is in.
        if stretch.read(lead, &mut begun, &mut Done::default()).await?.is_some() {
            scanner = Some(begun.scanner);
        }
    }
    // The segment that the scanner has been fed, and what its object says.
    let mut fed: Option<(&Piece, StoredSummary)> = None;
    for piece in &stretch.pieces {
        let next = match scanner.take() {
            Some(mut scanner) => {
                let summary = scanner.next_segment(piece.name);
                if let Some((piece, stored)) = fed.take() {
                    stretch.judge(piece, &stored, &summary, true, &mut done);
                }
                scanner
            }
            None => SegmentScanner::new(piece.name, stretch.size, None),
        };
        let mut scan = Scan::new(next.report_records());
        if let Some(stored) = stretch.read(piece, &mut scan, &mut done).await? {
            fed = Some((piece, stored));
            scanner = Some(scan.scanner);
        }
        done.checked.records += scan.records;
        done.checked.objects += 1;
        done.checked.segments += 1;
        done.checked.bytes += piece.stored;
        stretch.progress.advance(piece.stored);
    }
    if let (Some(scanner), Some((piece, stored))) = (scanner, fed) {
        stretch.judge(piece, &stored, &scanner.finish(), stretch.goes_on, &mut done);
    }
    Ok(done)
}

impl Stretch {
    /// Feeds a segment to a scan: from its object or, where that is damaged, from a repaired copy.
    /// `None` when it can't be read; that is told.
    async fn read(
        &self,
        piece: &Piece,
        scan: &mut Scan,
        done: &mut Done,
    ) -> Result<Option<StoredSummary>> {
        let file = WalFile::Segment(piece.name);
        let object = match &piece.object {
            Some(object) => Some(object.clone()),
            None => self.store.find(file).await?,
        };
        let Some(object) = object else { return Ok(None) };
        let fresh = scan.scanner.clone();
        let wrong = match self.store.copy_to(&object, scan).await {
            Ok(Some(stored)) => match segment_unlike(file, self.size, &stored) {
                None => return Ok(Some(stored)),
                Some(wrong) => Some(wrong),
            },
            Ok(None) => None,
            Err(e) => damaged(&self.store, &object, e).await?,
        };
        let Some(wrong) = wrong else {
            done.vanished = true;
            return Ok(None);
        };
        for copy in self.store.repairs(file).await? {
            *scan = Scan::new(fresh.clone());
            match self.store.copy_to(&copy, scan).await {
                Ok(Some(stored)) if segment_unlike(file, self.size, &stored).is_none() => {
                    let copy = copy.file_name();
                    let text = format!("is damaged ({wrong}); its repaired copy {copy} is sound");
                    done.notice(&object, text);
                    return Ok(Some(stored));
                }
                Ok(_) => {}
                // It is told where the archive's other objects are looked at.
                Err(e) => drop(damaged(&self.store, &copy, e).await?),
            }
        }
        let finding = Finding::of(ProblemKind::Damaged, &object, wrong)
            .costs(loss_of(&self.store, self.size, file))
            .hint(push_again(file));
        done.findings.push(finding);
        Ok(None)
    }

    /// Compares what was read with what the object says, and with what follows.
    fn judge(
        &self,
        piece: &Piece,
        stored: &StoredSummary,
        found: &SegmentSummary,
        goes_on: bool,
        done: &mut Done,
    ) {
        let Some(object) = &piece.object else { return };
        let Some(told) = &stored.segment else { return };
        if !told.parsed && !found.parsed {
            done.notice(object, "its records are of a version that this pgkeep doesn't know");
            return;
        }
        let is_broken = !found.whole && (goes_on || told.whole);
        let loss =
            Loss::of_segments(self.store.system(), piece.name.timeline, piece.number, piece.number);
        if is_broken {
            let text = format!(
                "its records end at {}, before its end: recovery would stop there",
                found.end
            );
            done.findings.push(
                Finding::of(ProblemKind::Inconsistent, object, text)
                    .costs(loss)
                    .hint("it is as the server archived it; take a backup, so that later moments don't need it"),
            );
        } else if found.head_known == told.head_known && !told.fits(found) {
            let text = "what it says of its records isn't what is in them";
            done.findings.push(
                Finding::of(ProblemKind::Inconsistent, object, text).costs(loss).hint(
                    "restores are planned by what it says; report this with the segment's name",
                ),
            );
        }
    }
}

/// A scanner that is written to.
struct Scan {
    scanner: SegmentScanner,
    records: u64,
}

impl Scan {
    fn new(scanner: SegmentScanner) -> Self {
        Scan { scanner, records: 0 }
    }
}

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let records = &mut self.records;
        self.scanner.feed(bytes, &mut |event| {
            *records += u64::from(matches!(event, Event::Record { .. }));
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
