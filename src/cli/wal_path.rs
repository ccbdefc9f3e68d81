//! The paths that PostgreSQL puts for `%p`, and whose data directory they are in.

use std::path::{Path, PathBuf};

use super::Global;
use crate::{
    config::{ClusterSettings, Settings},
    error::Result,
};

/// The data directory of `path`, which is `pg_wal/NAME` in it, absolute or not. Where that leads to
/// none, as through a link of `pg_wal`, it is the working directory: PostgreSQL runs its commands in
/// the data directory.
pub(super) fn data_directory(path: &Path) -> PathBuf {
    let above = path.parent().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty());
    match above {
        Some(above) if above.join("PG_VERSION").exists() => above.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The cluster that a command for `path` is about: the one that was named, or the one whose data
/// directory it is.
pub(super) fn cluster<'s>(
    global: &Global,
    settings: &'s Settings,
    path: &Path,
) -> Result<&'s ClusterSettings> {
    match &global.cluster {
        Some(name) => settings.cluster(Some(name)),
        None => settings.cluster_of_data_directory(&data_directory(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_above_pg_wal() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("pg_wal/RECOVERYXLOG");
        assert_eq!(data_directory(&path), Path::new("."), "not a data directory yet");
        std::fs::write(data.path().join("PG_VERSION"), "17\n").unwrap();
        assert_eq!(data_directory(&path), data.path());
        for relative in ["pg_wal/RECOVERYXLOG", "RECOVERYXLOG", ""] {
            assert_eq!(data_directory(Path::new(relative)), Path::new("."), "{relative}");
        }
    }
}
