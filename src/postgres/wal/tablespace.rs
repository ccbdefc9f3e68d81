//! Records that make tablespaces (`commands/tablespace.h`). Replay makes them where the original had
//! them, whatever was mapped elsewhere in a restore.

use super::{header::u32_at, xlog::main_data};

/// `XLOG_TBLSPC_CREATE`; the other kind drops one.
const CREATE: u8 = 0x00;

/// How much of a record's content is looked at: a path has 1024 bytes at most (`MAXPGPATH`).
pub(super) const LOOKED_AT: usize = 1100;

/// A tablespace that a record makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewTablespace {
    /// Its object id.
    pub oid: u32,
    /// The directory.
    pub path: String,
}

/// Whether the record's content is wanted by [`decode`].
pub(super) fn matters(info: u8) -> bool {
    info & 0xF0 == CREATE
}

/// Reads the beginning of a record's content. `None` for a tablespace in the data directory itself
/// (`allow_in_place_tablespaces`), which has an empty path.
pub(super) fn decode(content: &[u8]) -> Option<NewTablespace> {
    let data = main_data(content)?;
    let oid = u32_at(data, 0)?;
    let path = data.get(4..)?;
    let length = path.iter().position(|&b| b == 0).unwrap_or(path.len());
    let path = String::from_utf8_lossy(&path[..length]).into_owned();
    (!path.is_empty()).then_some(NewTablespace { oid, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tablespace_has_an_id_and_a_path_unless_it_lies_in_place() {
        let record = |path: &str| {
            let mut content = vec![255, path.len() as u8 + 5];
            content.extend(16_401u32.to_le_bytes());
            content.extend(path.as_bytes());
            content.push(0);
            content
        };
        let expected = NewTablespace { oid: 16_401, path: "/mnt/a".into() };
        assert_eq!(decode(&record("/mnt/a")), Some(expected));
        assert_eq!(decode(&record("")), None);
        assert_eq!(decode(&[255]), None);
        assert!(matters(0x00) && !matters(0x10));
    }
}
