//! Names and positions: of segments, objects, backups, files; each as text.
//!
//! What a name was read as has to be the same when it is written and read again, and no name of an
//! object may lead out of the repository.

use std::{fmt::Display, str::FromStr};

use pgkeep::{
    postgres::{
        Lsn, SegmentName, SegmentSize, Timeline, WalFile, incremental::original_path,
        page::RelationFile,
    },
    repo::{
        BackupId, SystemId, drill, id::RandomId, layout::ClusterLayout, named::named,
        repository::Names, wal::WalObject, wal_parts::PartRange,
    },
    storage::ObjectName,
};

/// Reads it, and reads again what it is written as.
fn again<T: FromStr + Display + PartialEq>(text: &str) -> Option<T> {
    let read: T = text.parse().ok()?;
    assert!(read.to_string().parse().is_ok_and(|same: T| same == read), "{text:?}: {read}");
    Some(read)
}

pub fn run(bytes: &[u8]) {
    original_path(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(lsn) = again::<Lsn>(text) {
        let size = SegmentSize::default();
        assert!(size.start_of(size.number_at(lsn)) <= lsn);
        size.number_before(lsn);
    }
    if let Some(timeline) = Timeline::from_hex(text) {
        assert_eq!(Timeline::from_hex(&timeline.hex()), Some(timeline));
    }
    if let Some(segment) = again::<SegmentName>(text) {
        let mut size = 1 << 20;
        while let Some(segment_size) = SegmentSize::new(size) {
            if let Some(number) = segment.number(segment_size) {
                assert_eq!(segment_size.name(segment.timeline, number), segment);
            }
            size <<= 1;
        }
    }
    if let Some(file) = again::<WalFile>(text) {
        file.timeline();
    }
    again::<BackupId>(text);
    again::<SystemId>(text);
    again::<RandomId>(text);
    if let Some(range) = PartRange::parse(text) {
        assert!(range.bytes() > 0);
        assert_eq!(PartRange::parse(&range.to_string()), Some(range));
    }
    if let Some(object) = WalObject::parse(text) {
        object.file();
    }
    if let Some((began, id)) = drill::parts_of_name(text) {
        assert_eq!(drill::parts_of_name(&drill::file_name(began, id)), Some((began, id)));
    }
    if let Some(file) = RelationFile::parse(text) {
        file.first_block(131_072);
    }
    if let Ok(layout) = ClusterLayout::new(text) {
        assert!(ObjectName::new(format!("{}x", layout.folder())).is_ok());
    }
    if let (Ok(name), Ok(layout)) = (ObjectName::new(text), ClusterLayout::new("main")) {
        let inside = |part: &str| !matches!(part, "" | "." | "..");
        assert!(name.as_str().split('/').all(inside) && !text.contains('\0'), "{text:?}");
        name.file_name();
        named(&layout, Names::Plain, &name);
        named(&layout, Names::Content, &name);
    }
}
