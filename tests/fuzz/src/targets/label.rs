//! `backup_label` and `tablespace_map`: the same bytes as each.

use pgkeep::postgres::backup_label::{
    BackupLabel, complete_label, format_tablespace_map, parse_tablespace_map,
};

pub fn run(bytes: &[u8]) {
    if let Ok(label) = BackupLabel::parse(bytes) {
        assert_eq!(label.start_segment.timeline, label.timeline);
    }
    if let Ok(completed) = complete_label(bytes) {
        let again = complete_label(&completed.label).expect("it can be read again");
        assert_eq!((again.base, again.label), (None, completed.label), "nothing is left of it");
    }
    if let Ok(links) = parse_tablespace_map(bytes) {
        assert!(links.iter().all(|link| link.oid > 0 && !link.path.contains(&0)));
        assert_eq!(parse_tablespace_map(&format_tablespace_map(&links)), Ok(links));
    }
}
