//! Whether a server can make an incremental backup over a given one, and whether it can be trusted
//! to: asked over SQL beforehand, because a refusal of `BASE_BACKUP` itself comes only after its
//! checkpoint, and because servers say yes where they shouldn't.

use std::fmt;

use super::super::{
    Lsn, Timeline,
    backup_manifest::WalRange,
    client::{Client, PgError, Row, ServerError},
    history::TimelineHistory,
};

/// Why an incremental backup over a given one isn't to be had from a server, so that changes must
/// be found in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NativeRefusal {
    /// The server is older than 17.
    Version,
    /// `summarize_wal` is off.
    SummariesOff,
    /// There is no summary of WAL that was written since, and there won't be one: it was written
    /// while `summarize_wal` was off, or the summary was removed (`wal_summary_keep_time`).
    SummariesMissing {
        /// Of which timeline.
        timeline: Timeline,
        /// From where on.
        from: Lsn,
    },
    /// The earlier backup isn't of the server's past: it is of a timeline that the server never was
    /// on, or that it left before the backup's end. In the latter case the server itself sees
    /// nothing wrong, and wouldn't send what has to be undone.
    OtherHistory {
        /// The backup's timeline.
        timeline: Timeline,
        /// The backup's end.
        end: Lsn,
    },
    /// The server left a timeline, and has a summary of it from beyond that position: it was
    /// received from a primary and never replayed. What the summary says was cut off would hide
    /// blocks that did change.
    SummaryBeyond {
        /// The timeline.
        timeline: Timeline,
        /// Where it was left.
        left: Lsn,
    },
    /// The server has switched timelines since the earlier backup. Summaries of the new timeline are
    /// put together before those of the old one, on 17.10 at least, so that a relation that was cut off
    /// before a promotion and filled again after it comes out with blocks of the earlier backup
    /// ([`CutOff`](super::CutOff)).
    Switched {
        /// The earlier backup's timeline.
        from: Timeline,
        /// The server's.
        to: Timeline,
    },
    /// Data checksums were turned on since the earlier backup: `pg_checksums` writes every page anew, and
    /// nothing of it is in the WAL.
    Checksums,
    /// Each time when the backup had begun, another relation had been made shorter just before, of
    /// which the summaries can't be relied on ([`CutOff`](super::CutOff)).
    CutOff,
    /// The server itself refuses, in its own words.
    Server(Box<ServerError>),
}

impl fmt::Display for NativeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NativeRefusal::Version => {
                f.write_str("the server is older than PostgreSQL 17, which has no WAL summaries")
            }
            NativeRefusal::SummariesOff => f.write_str("summarize_wal is off"),
            NativeRefusal::SummariesMissing { timeline, from } => {
                write!(f, "the server has no summary of the WAL of timeline {timeline} at {from}")
            }
            NativeRefusal::OtherHistory { timeline, end } => write!(
                f,
                "the server's history doesn't have timeline {timeline} up to {end}, where the \
                 earlier backup ends"
            ),
            NativeRefusal::SummaryBeyond { timeline, left } => write!(
                f,
                "the server's summaries of timeline {timeline} go beyond {left}, where it left \
                 that timeline, and can't be trusted"
            ),
            NativeRefusal::Switched { from, to } => write!(
                f,
                "the server went from timeline {from} to {to} since, and its summaries aren't relied \
                 on across that"
            ),
            NativeRefusal::Checksums => {
                f.write_str("data checksums were turned on since, which isn't in the WAL")
            }
            NativeRefusal::CutOff => f.write_str(
                "relations are made shorter all the while, and the server's summaries aren't relied on \
                 for those",
            ),
            NativeRefusal::Server(error) => write!(f, "the server refuses: {error}"),
        }
    }
}

impl NativeRefusal {
    /// What an error of [`ManifestUpload`](super::ManifestUpload) or of the start of an incremental
    /// [`BaseBackup`](super::super::replication::BaseBackup) means: a refusal, after which a backup
    /// that isn't incremental can be tried on the same connection; or a failure, given back.
    ///
    /// What servers refuse for has the SQLSTATE 55000 ("object not in prerequisite state") where it
    /// is about summaries and timelines, XX000 where it is about the manifest, and some others where
    /// a summary can't be read. So each error that leaves the session alive is taken for one, but
    /// for those of an operator's doing (class 57): when it was something else, the next way fails
    /// of it too.
    pub fn of(error: PgError) -> Result<Self, PgError> {
        match error {
            PgError::Server(error) if !error.is_fatal() && !error.code.starts_with("57") => {
                Ok(NativeRefusal::Server(error))
            }
            error => Err(error),
        }
    }
}

/// Asks a server over SQL whether it can send what changed since a backup that needs `base`
/// ([`WalRange::of_backup`]). `history` is of the timeline that the server is on now; if the
/// incremental backup then starts on another one, this has to be asked again.
///
/// `None` doesn't mean that the server won't refuse, only that no reason is known.
pub async fn check(
    client: &mut Client,
    history: &TimelineHistory,
    base: &[WalRange],
) -> Result<Option<NativeRefusal>, PgError> {
    if client.server_version().major() < 17 {
        return Ok(Some(NativeRefusal::Version));
    }
    let rows = client.query("SELECT pg_catalog.current_setting('summarize_wal')").await?;
    if rows.first().and_then(|row| row.get(0)) != Some("on") {
        return Ok(Some(NativeRefusal::SummariesOff));
    }
    let rows = client
        .query("SELECT tli, start_lsn, end_lsn FROM pg_catalog.pg_available_wal_summaries()")
        .await?;
    let summaries = rows.iter().map(summary).collect::<Option<Vec<_>>>();
    let reached = reached(client).await?;
    let Some(summaries) = summaries else {
        return Err(PgError::protocol("the server's list of WAL summaries can't be read"));
    };
    Ok(judge(history, base, &summaries, reached))
}

/// How far a server has summarized its WAL: of which timeline, and up to where; 0 and 0/0 before it knows.
pub async fn reached(client: &mut Client) -> Result<(Timeline, Lsn), PgError> {
    let rows = client
        .query(
            "SELECT summarized_tli, summarized_lsn FROM pg_catalog.pg_get_wal_summarizer_state()",
        )
        .await?;
    let reached = rows.first().and_then(|row| Some((timeline(row, 0)?, lsn(row, 1)?)));
    reached.ok_or_else(|| PgError::protocol("how far the server's summaries go can't be read"))
}

/// A WAL summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    timeline: Timeline,
    start: Lsn,
    end: Lsn,
}

fn summary(row: &Row) -> Option<Summary> {
    Some(Summary { timeline: timeline(row, 0)?, start: lsn(row, 1)?, end: lsn(row, 2)? })
}

fn timeline(row: &Row, index: usize) -> Option<Timeline> {
    row.get(index)?.parse().ok().map(Timeline)
}

fn lsn(row: &Row, index: usize) -> Option<Lsn> {
    row.get(index)?.parse().ok()
}

/// What there is against an incremental backup over `base`, with these summaries, where the
/// summarizer has `reached` a timeline and a position (0 and 0/0 before it knows).
fn judge(
    history: &TimelineHistory,
    base: &[WalRange],
    summaries: &[Summary],
    reached: (Timeline, Lsn),
) -> Option<NativeRefusal> {
    let other = |range: &WalRange| !history.includes(range.timeline, range.end);
    if let Some(range) = base.iter().find(|range| other(range)) {
        let WalRange { timeline, end, .. } = *range;
        return Some(NativeRefusal::OtherHistory { timeline, end });
    }
    // Newest first; where the earlier backup starts is what counts.
    let oldest = base.last()?;
    let path = history.path().skip_while(|(timeline, ..)| *timeline != oldest.timeline);
    let path: Vec<(Timeline, Lsn, Option<Lsn>)> = path.collect();
    let of = |timeline: Timeline| summaries.iter().filter(move |s| s.timeline == timeline);
    for (timeline, _, end) in &path {
        if let Some(left) = *end
            && of(*timeline).any(|s| s.start <= left && left < s.end)
        {
            return Some(NativeRefusal::SummaryBeyond { timeline: *timeline, left });
        }
    }
    // How far the summarizer has come on this path. What is missing below won't come any more.
    let begun = |timeline: Timeline, lsn: Lsn| history.includes(timeline, lsn).then_some(lsn);
    let done = summaries.iter().filter_map(|s| begun(s.timeline, s.end));
    let done = done.chain(begun(reached.0, reached.1)).max().unwrap_or(Lsn::INVALID);
    let mut covered = oldest.start;
    for (timeline, begin, end) in path {
        covered = covered.max(begin);
        let mut own: Vec<&Summary> = of(timeline).collect();
        own.sort_unstable_by_key(|s| s.start);
        for summary in own {
            if summary.start <= covered {
                covered = covered.max(summary.end);
            }
        }
        if covered < end.map_or(done, |end| end.min(done)) {
            return Some(NativeRefusal::SummariesMissing { timeline, from: covered });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Timeline = Timeline(1);
    const SECOND: Timeline = Timeline(2);

    fn summaries(list: &[(u32, u64, u64)]) -> Vec<Summary> {
        let summary = |&(timeline, start, end): &(u32, u64, u64)| Summary {
            timeline: Timeline(timeline),
            start: Lsn(start),
            end: Lsn(end),
        };
        list.iter().map(summary).collect()
    }

    fn range(timeline: Timeline, start: u64, end: u64) -> WalRange {
        WalRange { timeline, start: Lsn(start), end: Lsn(end) }
    }

    /// On timeline 1, over a backup from 100 to 150.
    fn on_first(list: &[(u32, u64, u64)], reached: u64) -> Option<NativeRefusal> {
        let reached = (if reached == 0 { Timeline(0) } else { FIRST }, Lsn(reached));
        judge(&TimelineHistory::first(), &[range(FIRST, 100, 150)], &summaries(list), reached)
    }

    /// On timeline 2, which left timeline 1 at 500, over a backup of timeline 1 from 100 to `end`.
    fn on_second(list: &[(u32, u64, u64)], end: u64, reached: u64) -> Option<NativeRefusal> {
        let history = TimelineHistory::parse(SECOND, b"1\t0/1F4\n").unwrap();
        judge(&history, &[range(FIRST, 100, end)], &summaries(list), (SECOND, Lsn(reached)))
    }

    fn missing(timeline: Timeline, from: u64) -> Option<NativeRefusal> {
        Some(NativeRefusal::SummariesMissing { timeline, from: Lsn(from) })
    }

    #[test]
    fn a_hole_that_stays_is_told_from_what_is_still_to_come() {
        assert_eq!(on_first(&[(1, 50, 100), (1, 100, 200), (1, 200, 300)], 300), None);
        assert_eq!(on_first(&[(1, 200, 300), (1, 80, 200)], 300), None);
        // Nothing there yet: the summarizer has just been started, or isn't as far.
        assert_eq!(on_first(&[], 0), None);
        assert_eq!(on_first(&[(1, 40, 90)], 90), None);
        // It began behind the backup's start.
        assert_eq!(on_first(&[], 120), missing(FIRST, 100));
        assert_eq!(on_first(&[(1, 120, 200)], 0), missing(FIRST, 100));
        // Something between is gone.
        assert_eq!(on_first(&[(1, 100, 200), (1, 250, 300)], 300), missing(FIRST, 200));
        // Summaries of another timeline don't help.
        assert_eq!(on_first(&[(2, 50, 300)], 200), missing(FIRST, 100));
    }

    #[test]
    fn a_switch_of_timelines_must_be_summarized_on_both_sides() {
        let both = [(1, 100, 300), (1, 300, 500), (2, 500, 700)];
        assert_eq!(on_second(&both, 150, 700), None);
        assert_eq!(on_second(&both[..1], 150, 300), None);
        assert_eq!(on_second(&[both[0], both[2]], 150, 700), missing(FIRST, 300));
        assert_eq!(on_second(&both[..2], 150, 600), missing(SECOND, 500));
    }

    #[test]
    fn a_summary_beyond_the_switch_is_refused() {
        let beyond = Some(NativeRefusal::SummaryBeyond { timeline: FIRST, left: Lsn(500) });
        for last in [(1, 300, 501), (1, 500, 600)] {
            assert_eq!(on_second(&[(1, 100, 300), last, (2, 500, 700)], 150, 700), beyond);
        }
        // The server doesn't look at one that begins later.
        assert_eq!(on_second(&[(1, 100, 500), (1, 501, 600), (2, 500, 700)], 150, 700), None);
    }

    #[test]
    fn a_backup_of_another_past_is_refused() {
        let all = [(1, 100, 500), (2, 500, 700)];
        assert_eq!(on_second(&all, 500, 700), None);
        let other = |timeline, end| {
            Some(NativeRefusal::OtherHistory { timeline: Timeline(timeline), end: Lsn(end) })
        };
        assert_eq!(on_second(&all, 501, 700), other(1, 501));
        let backup = [range(SECOND, 100, 150)];
        let found = judge(&TimelineHistory::first(), &backup, &summaries(&all), (FIRST, Lsn(700)));
        assert_eq!(found, other(2, 150));
    }

    #[test]
    fn refusals_are_told_from_failures() {
        let error = |severity: &str, code: &str| {
            PgError::from(ServerError {
                severity: severity.to_owned(),
                code: code.to_owned(),
                ..ServerError::default()
            })
        };
        assert!(NativeRefusal::of(error("ERROR", "55000")).is_ok());
        assert!(NativeRefusal::of(error("ERROR", "XX000")).is_ok());
        assert!(NativeRefusal::of(error("FATAL", "55000")).is_err());
        assert!(NativeRefusal::of(error("ERROR", "57014")).is_err());
        assert!(NativeRefusal::of(PgError::Closed).is_err());
    }
}
