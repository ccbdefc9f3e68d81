//! Proofs that a backup's WAL is in the repository: one before much is read, one at the end.

use std::time::Duration;

use tokio::time::timeout;

use super::{server::Server, tail};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline},
    progress::Progress,
    repo::{
        record::Source,
        wal::WalStore,
        wal_wait::{wait_for_range, wait_for_segment},
    },
};

/// How long the segment in which a standby's backup stops may take to arrive before it is received.
const OPEN_SEGMENT: Duration = Duration::from_secs(3);

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is to be proven, and how patiently.
pub struct Proof<'a> {
    /// The archive.
    pub store: &'a WalStore,
    /// Whose WAL it is, and who is asked why it doesn't arrive.
    pub server: &'a mut Server,
    /// The backup's timeline.
    pub timeline: Timeline,
    /// Where its replay begins.
    pub start_lsn: Lsn,
    /// How long an arrival may take.
    pub within: Duration,
    /// Hears what is waited for.
    pub progress: &'a dyn Progress,
}

impl Proof<'_> {
    /// Proves, before much is read, that archiving works.
    ///
    /// On a primary the backup has just switched WAL: the segment before the one it starts in is
    /// closed and must arrive. On a standby nothing can be switched, but what lies between the start
    /// and `received`, where its WAL has come to, is closed on the primary.
    pub async fn early(&mut self, received: Lsn) -> Result<()> {
        let size = self.server.facts.segment_size;
        let first = size.number_at(self.start_lsn);
        if self.server.facts.source == Source::Standby {
            let Some(last) = size.number_at(received).checked_sub(1).filter(|n| *n >= first) else {
                return Ok(());
            };
            self.progress.step("waiting for the WAL that the standby has received");
            return self.range(first, last).await;
        }
        let Some(before) = first.checked_sub(1) else { return Ok(()) };
        let segment = size.name(self.timeline, before);
        self.progress.step(&format!("waiting for WAL segment {segment} to be archived"));
        let mut before = self.server.archiver().await;
        loop {
            let arrived = tokio::select! {
                arrived = wait_for_segment(self.store, segment, self.within) => arrived,
                gone = self.server.watch() => Err(gone),
            };
            let Err(e) = arrived else { break };
            // One that is far behind archives the older segments first.
            let now = self.server.archiver().await;
            if e.kind() != Kind::Wal || !now.is_some_and(|a| a.is_on_the_way_to(segment, before)) {
                return Err(self.explained(e).await);
            }
            before = now;
            self.progress.warn(&format!(
                "the server's archiver is behind: it has archived files, but not {segment} yet"
            ));
        }
        self.progress.step(&format!("archiving is proven: segment {segment} arrived"));
        Ok(())
    }

    /// Proves that all WAL from the start to `stop_lsn` is there.
    pub async fn whole(&mut self, stop_lsn: Lsn) -> Result<()> {
        let size = self.server.facts.segment_size;
        self.progress.step(&format!("waiting for the WAL from {} to {stop_lsn}", self.start_lsn));
        let (first, last) = (size.number_at(self.start_lsn), size.number_before(stop_lsn));
        if self.server.facts.source == Source::Standby {
            if let Some(before) = last.checked_sub(1).filter(|before| *before >= first) {
                self.range(first, before).await?;
            }
            // A standby writes nothing into the WAL that would tell its backup.
            return self.last_of_standby(stop_lsn).await;
        }
        self.range(first, last).await?;
        let segment = size.name(self.timeline, last);
        let summary = self.store.segment_summary(segment).await?.and_then(|s| s.segment);
        let is_ours = summary.is_some_and(|s| {
            s.backup_ends.contains(&self.start_lsn) || !s.head_known || s.lists_cut
        });
        if is_ours {
            return Ok(());
        }
        Err(Error::new(
            Kind::Conflict,
            format!(
                "WAL segment {segment} in the repository isn't this server's: it doesn't hold the \
                 end of the backup that began at {}",
                self.start_lsn
            ),
        )
        .hint("another server, a copy of this one perhaps, archives into the same place: its log says so")
        .hint("give each a cluster name of its own, or switch the archiving of the copy off"))
    }

    /// Proves that the segment in which a standby's backup stops is there as far as that: whole, or as
    /// parts of a stream. What doesn't arrive in a while is received from the standby.
    async fn last_of_standby(&mut self, stop_lsn: Lsn) -> Result<()> {
        let size = self.server.facts.segment_size;
        let segment = size.name(self.timeline, size.number_before(stop_lsn));
        let arrived = async {
            loop {
                let is_there = self.store.segment_summary(segment).await?.is_some()
                    || tail::is_received(self.store, self.timeline, size, stop_lsn).await?;
                if is_there {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if let Ok(arrived) = timeout(self.within.min(OPEN_SEGMENT), arrived).await {
            return arrived;
        }
        self.progress.step(&format!(
            "segment {segment} is still open on the primary: receiving it up to {stop_lsn} from the \
             standby"
        ));
        let receive =
            tail::receive(self.store, self.server.conninfo(), self.timeline, size, stop_lsn);
        match timeout(self.within, receive).await {
            Ok(received) => received,
            Err(_) => {
                let what = format!(
                    "the standby didn't send the end of segment {segment} within {} s",
                    self.within.as_secs()
                );
                Err(Error::new(Kind::Wal, what))
            }
        }
    }

    async fn range(&mut self, first: u64, last: u64) -> Result<()> {
        let size = self.server.facts.segment_size;
        let progress = self.progress;
        let mut on_wait =
            |segment| progress.step(&format!("waiting for WAL segment {segment} to be archived"));
        let (timeline, within) = (self.timeline, self.within);
        let arrival = wait_for_range(self.store, timeline, first, last, size, within, &mut on_wait);
        let arrived = tokio::select! {
            arrived = arrival => arrived,
            gone = self.server.watch() => Err(gone),
        };
        match arrived {
            Ok(()) => Ok(()),
            Err(e) => Err(self.explained(e).await),
        }
    }

    /// The error, with what can be known about why WAL is missing.
    async fn explained(&mut self, mut e: Error) -> Error {
        if e.kind() != Kind::Wal {
            return e;
        }
        if self.server.facts.source == Source::Standby {
            return e.hint(
                "the segment may still be open on the primary: run `SELECT pg_switch_wal()` there, \
                 or set archive_timeout, and run the backup again",
            );
        }
        for hint in self.server.archiver_says().await {
            e = e.hint(hint);
        }
        e
    }
}
