//! Asking the server for the changes only, which PostgreSQL 17 and later can send
//! ([`crate::postgres::incremental`]).
//!
//! The server is told which backup we have by a manifest made of the base's tree. Visibility maps are
//! left out of it, so that they come whole: before 17.11 and 18.6 the server's summaries miss some of
//! their changes. When the server can't, or can't be trusted to, there is a reason, and everything is
//! sent and compared.

use super::{base::Base, server::Server};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        Timeline,
        backup_manifest::WalRange,
        client::{Client, PgError},
        history::TimelineHistory,
        incremental::{ManifestUpload, NativeRefusal},
        page::{Fork, RelationFile},
        replication::{self, SystemIdentity},
    },
    repo::{record::BackupRecord, tree::BackupTable},
};

/// Tells the server that we have the backup `record`, whose tree is `base`. Why that can't be of use,
/// if it can't; then a backup that isn't incremental can be started on the same connection.
pub async fn offer(
    client: &mut Client,
    server: &mut Server,
    identity: &SystemIdentity,
    record: &BackupRecord,
    (base, table): (&Base, &BackupTable),
) -> Result<Option<NativeRefusal>> {
    if server.facts.major < 17 {
        return Ok(Some(NativeRefusal::Version));
    }
    if record.timeline != identity.timeline {
        let (from, to) = (record.timeline, identity.timeline);
        return Ok(Some(NativeRefusal::Switched { from, to }));
    }
    let history = history(client, identity.timeline).await?;
    let range =
        WalRange { timeline: record.timeline, start: record.start_lsn, end: record.stop_lsn };
    let ranges = [range];
    if let Some(refusal) = server.can_send_changes(&history, &ranges).await? {
        return Ok(Some(refusal));
    }
    match upload(client, identity.system_identifier, base, table, &ranges).await {
        Ok(()) => Ok(None),
        Err(e) => refused(e).map(Some),
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
) -> Result<(), PgError> {
    let mut upload = ManifestUpload::start(client, system).await?;
    for (path, size) in base.files(table) {
        let file = std::str::from_utf8(path).ok().and_then(RelationFile::parse);
        if file.is_none_or(|file| file.fork != Fork::Visibility) {
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
