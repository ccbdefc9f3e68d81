//! Relations that were made shorter since an earlier backup. What a server's summaries say of what
//! came after that can't be relied on.
//!
//! - A summary covers the WAL from one checkpoint to the next, and servers up to 17.10 and 18.4 at least
//!   put summaries together in the order in which the directory lists them. One that says "cut off at
//!   block 52", read after a later one that says "blocks 52 to 60 changed", takes those blocks out of
//!   what is sent. That was seen with PostgreSQL's own `pg_basebackup` and `pg_combinebackup` of a
//!   cluster on tmpfs, which lists what is newest first; 17.12 sends the blocks.
//! - Pages that a bulk load adds, and hasn't filled yet, are in no WAL and so in no summary; the server
//!   has the client take them from the earlier backup, where something may have been at their place.
//!
//! Both are only about blocks from where the relation was cut off. So the files that hold such blocks
//! are asked for as a whole ([`CutOff::covers`]).

use std::collections::BTreeMap;

use super::super::{
    Lsn, Timeline,
    client::{Client, PgError, Row},
    page::RelationFile,
};

/// The tablespaces that a data directory has itself (`catalog/pg_tablespace.dat`).
const DEFAULT: u32 = 1663;
const GLOBAL: u32 = 1664;

/// A relation: tablespace, database, file number.
type Relation = (Option<u32>, u32, u32);

/// Relations and the shortest length in blocks that each was cut off to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CutOff(BTreeMap<Relation, u32>);

impl CutOff {
    /// What the summaries say that there are by now of a timeline's WAL from `from` on.
    pub async fn since(
        client: &mut Client,
        timeline: Timeline,
        from: Lsn,
    ) -> Result<Self, PgError> {
        // Those cut off to nothing are sent whole in any case.
        let sql = format!(
            "SELECT c.reltablespace, c.reldatabase, c.relfilenode, min(c.relblocknumber) \
             FROM pg_catalog.pg_available_wal_summaries() s, LATERAL \
             pg_catalog.pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
             WHERE s.tli = {timeline} AND s.end_lsn > '{from}' \
             AND c.is_limit_block AND c.relblocknumber > 0 GROUP BY 1, 2, 3",
        );
        let rows = client.query_long(&sql).await?;
        let cut_off = rows.iter().map(relation).collect::<Option<_>>();
        let unreadable = || PgError::protocol("the server's WAL summaries can't be read");
        cut_off.map(CutOff).ok_or_else(unreadable)
    }

    /// Whether the file holds blocks from where its relation was cut off, or would.
    pub fn covers(&self, file: &RelationFile, segment_blocks: u32) -> bool {
        let relation = (file.tablespace, file.database, file.number);
        self.0.get(&relation).is_some_and(|limit| limit / segment_blocks <= file.segment)
    }

    /// Whether each file that `other` covers is covered by this too.
    pub fn includes(&self, other: &CutOff, segment_blocks: u32) -> bool {
        let segment = |limit: u32| limit / segment_blocks;
        other.0.iter().all(|(relation, limit)| {
            self.0.get(relation).is_some_and(|known| segment(*known) <= segment(*limit))
        })
    }
}

fn relation(row: &Row) -> Option<(Relation, u32)> {
    let number = |index: usize| row.get(index)?.parse::<u32>().ok();
    let tablespace = number(0).map(|oid| Some(oid).filter(|oid| ![DEFAULT, GLOBAL].contains(oid)));
    Some(((tablespace?, number(1)?, number(2)?), number(3)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_from_the_cut_on_are_covered() {
        let cut_off = CutOff(BTreeMap::from([
            ((None, 5, 16384), 52),
            ((None, 5, 16390), 250),
            ((Some(16400), 5, 16384), 300),
            ((None, 0, 1262), 1),
        ]));
        for (path, covered) in [
            ("base/5/16384", true),
            ("base/5/16384.3", true),
            ("base/4/16384", false),
            ("base/5/16385", false),
            ("base/5/16390.1", false),
            ("base/5/16390.2", true),
            ("base/5/16390.3", true),
            ("pg_tblspc/16400/PG_17_202406281/5/16384.2", false),
            ("pg_tblspc/16400/PG_17_202406281/5/16384.3", true),
            ("pg_tblspc/16401/PG_17_202406281/5/16384.3", false),
            ("global/1262", true),
        ] {
            let file = RelationFile::parse(path).unwrap();
            assert_eq!(cut_off.covers(&file, 100), covered, "{path}");
        }
    }

    #[test]
    fn what_was_cut_off_further_since_is_noticed() {
        let of = |limit| CutOff(BTreeMap::from([((None, 5, 16384), limit)]));
        assert!(of(52).includes(&of(80), 100));
        assert!(of(80).includes(&of(52), 100));
        assert!(of(150).includes(&of(250), 100));
        assert!(!of(250).includes(&of(150), 100));
        assert!(!CutOff::default().includes(&of(1), 100));
        assert!(of(1).includes(&CutOff::default(), 100));
    }
}
