//! Asking the server for the changes only, which PostgreSQL 17 and later can send
//! ([`crate::postgres::incremental`]).
//!
//! The server is told which backup we have by a manifest made of the base's tree. Visibility maps are
//! left out of it, so that they come whole: before 17.11 and 18.6 the server's summaries miss some of
//! their changes. So are files of relations that were made shorter since ([`CutOff`]); as that goes on
//! until the backup begins, it is looked at again then. When the server can't, or can't be trusted to,
//! there is a reason, and everything is sent and compared.

use super::{
    base::Base,
    server::{ONE_SERVER, Server},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        backup_manifest::WalRange,
        client::{Client, PgError},
        history::TimelineHistory,
        incremental::{CutOff, ManifestUpload, NativeRefusal},
        page::{Fork, RelationFile},
        replication::{self, SystemIdentity},
    },
    repo::{record::BackupRecord, tree::BackupTable},
};

/// How it stands with asking the server for the changes only.
pub enum Offer {
    /// It was told which backup we have, but for files that are to come whole.
    Made(CutOff),
    /// That can't be of use.
    Refused(NativeRefusal),
}

/// Tells the server that we have the backup `record`, whose tree is `base`. If that is refused, a
/// backup that isn't incremental can be started on the same connection.
pub async fn offer(
    client: &mut Client,
    server: &mut Server,
    identity: &SystemIdentity,
    record: &BackupRecord,
    (base, table): (&Base, &BackupTable),
) -> Result<Offer> {
    if server.facts.major < 17 {
        return Ok(Offer::Refused(NativeRefusal::Version));
    }
    if record.timeline != identity.timeline {
        let (from, to) = (record.timeline, identity.timeline);
        return Ok(Offer::Refused(NativeRefusal::Switched { from, to }));
    }
    if server.facts.data_checksums && !record.data_checksums {
        return Ok(Offer::Refused(NativeRefusal::Checksums));
    }
    let history = history(client, identity.timeline).await?;
    let range =
        WalRange { timeline: record.timeline, start: record.start_lsn, end: record.stop_lsn };
    let ranges = [range];
    if let Some(refusal) = server.can_send_changes(&history, &ranges).await? {
        return Ok(Offer::Refused(refusal));
    }
    let cut_off = match server.cut_off_since(record.timeline, record.start_lsn).await {
        Ok(cut_off) => cut_off,
        Err(e) => return refused(e).map(Offer::Refused),
    };
    let whole = Whole { cut_off: &cut_off, segment_blocks: server.facts.segment_blocks };
    match upload(client, identity.system_identifier, base, table, &ranges, &whole).await {
        Ok(()) => Ok(Offer::Made(cut_off)),
        Err(e) => refused(e).map(Offer::Refused),
    }
}

/// Whether nothing was cut off between an offer and the beginning of the backup over `record`, at `begun`, but what
/// the offer knew of. The server that begins it has summarized all WAL up to there. One that hasn't is another one, an
/// error: what it says is of no use.
pub async fn holds(
    server: &mut Server,
    record: &BackupRecord,
    known: &CutOff,
    begun: Lsn,
) -> Result<bool> {
    if server.summarized().await? < begun {
        let what = "the server that is asked isn't the one that sends the backup";
        return Err(Error::new(Kind::Postgres, what).hint(ONE_SERVER));
    }
    let now = server.cut_off_since(record.timeline, record.start_lsn).await;
    let now = now.map_err(|e| Error::of_server("ask the server for its WAL summaries", e))?;
    Ok(known.includes(&now, server.facts.segment_blocks))
}

/// Which files have to come whole.
struct Whole<'a> {
    cut_off: &'a CutOff,
    segment_blocks: u32,
}

impl Whole<'_> {
    fn has(&self, file: &RelationFile) -> bool {
        file.fork == Fork::Visibility || self.cut_off.covers(file, self.segment_blocks)
    }
}

/// What the server's error means: that it refuses, or that something is wrong.
pub fn refused(error: PgError) -> Result<NativeRefusal> {
    NativeRefusal::of(error).map_err(|e| Error::of_server("start the backup", e))
}

async fn upload(
    client: &mut Client,
    system: u64,
    base: &Base,
    table: &BackupTable,
    ranges: &[WalRange],
    whole: &Whole<'_>,
) -> Result<(), PgError> {
    let mut upload = ManifestUpload::start(client, system).await?;
    for (path, size) in base.files(table) {
        let file = std::str::from_utf8(path).ok().and_then(RelationFile::parse);
        if file.is_none_or(|file| !whole.has(&file)) {
            upload.file(path, size).await?;
        }
    }
    upload.finish(ranges).await
}

async fn history(client: &mut Client, timeline: Timeline) -> Result<TimelineHistory> {
    if timeline == Timeline(1) {
        return Ok(TimelineHistory::first());
    }
    let bytes = replication::timeline_history(client, timeline)
        .await
        .map_err(|e| Error::of_server("ask for the timeline's history", e))?;
    TimelineHistory::parse(timeline, &bytes)
        .context(Kind::Postgres, || format!("read the server's history of timeline {timeline}"))
}
