//! Looking for new tablespaces in a segment before a server gets it.
//!
//! Replay of a `CREATE TABLESPACE` makes the directory that the record names, or takes the one that is
//! there (`create_tablespace_directories` in `tablespace.c`): on the original's host that is the original's
//! own, and the files in it are written to. So a copy that is only to be looked at mustn't get there.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        SegmentName, SegmentSize, WalFile,
        wal::{Event, RecordHead, SegmentScanner, trailing_head},
    },
    repo::wal::REFUSES_TABLESPACE,
};

/// Refuses a segment in which a tablespace is made. `wal` is the folder in which the server keeps the
/// segments that it got before: a record may begin in one and end in the next.
pub fn refuse(file: &mut File, segment: SegmentName, size: SegmentSize, wal: &Path) -> Result<()> {
    let what = || format!("look for new tablespaces in {segment}");
    let head = head(segment, size, wal).context(Kind::Local, what)?;
    let mut scanner = SegmentScanner::new(segment, size, head);
    let mut found = None;
    let mut buffer = vec![0; 1 << 18];
    file.seek(SeekFrom::Start(0)).context(Kind::Local, what)?;
    loop {
        let read = file.read(&mut buffer).context(Kind::Local, what)?;
        if read == 0 {
            break;
        }
        scanner.feed(&buffer[..read], &mut |event| {
            if let Event::NewTablespace { start, oid, path, .. } = event
                && found.is_none()
            {
                found = Some((*start, *oid, path.clone()));
            }
        });
    }
    let Some((start, oid, path)) = found else { return Ok(()) };
    let message = format!("at {start} is tablespace {oid} made, at {path}, {REFUSES_TABLESPACE}");
    Err(Error::new(Kind::Conflict, message))
}

/// The unfinished record at the end of the segment before, if that is here.
fn head(segment: SegmentName, size: SegmentSize, wal: &Path) -> io::Result<Option<RecordHead>> {
    let before = segment.number(size).and_then(|number| number.checked_sub(1));
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let Some(Ok(WalFile::Segment(name))) = entry.file_name().to_str().map(str::parse) else {
            continue;
        };
        // Of whichever timeline: the server has followed one path.
        if name.timeline <= segment.timeline && name.number(size) == before {
            let head = trailing_head(&mut File::open(entry.path())?, size)?.into_head();
            if head.is_some() {
                return Ok(head);
            }
        }
    }
    Ok(None)
}
