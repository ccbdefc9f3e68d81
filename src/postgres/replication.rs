//! Replication commands (documentation, "Streaming Replication Protocol"), on connections made with
//! [`Mode::Replication`](super::client::Mode).
//!
//! A base backup arrives as a stream of [`BaseBackupEvent`]s. Nothing is read from the server
//! before [`BaseBackup::next`] is called, so whoever doesn't call it holds the server up.

use bytes::{Buf, Bytes};

use super::{
    Lsn, Timeline,
    client::{
        Client, Message, PgError, Row, ServerError, ServerVersion, bytes_to_nul, quote_replication,
    },
};

/// Who a server is and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by initdb, and shared by all that descends from that cluster.
    pub system_identifier: u64,
    /// Its current timeline; on a standby the one being replayed.
    pub timeline: Timeline,
    /// The end of its WAL; on a standby of what was received or replayed.
    pub position: Lsn,
}

/// `IDENTIFY_SYSTEM`.
pub async fn identify_system(client: &mut Client) -> Result<SystemIdentity, PgError> {
    let rows = client.query("IDENTIFY_SYSTEM").await?;
    let row = only(&rows, "IDENTIFY_SYSTEM")?;
    Ok(SystemIdentity {
        system_identifier: parsed(row.named("systemid"), "IDENTIFY_SYSTEM's systemid")?,
        timeline: Timeline(parsed(row.named("timeline"), "IDENTIFY_SYSTEM's timeline")?),
        position: parsed(row.named("xlogpos"), "IDENTIFY_SYSTEM's xlogpos")?,
    })
}

/// `SHOW name`: a setting as the server writes it, with its unit.
pub async fn show(client: &mut Client, name: &str) -> Result<String, PgError> {
    let rows = client.query(&format!("SHOW {name}")).await?;
    let value = only(&rows, "SHOW")?.get(0);
    value.map(str::to_owned).ok_or_else(|| PgError::protocol(format!("SHOW {name} gave nothing")))
}

/// `TIMELINE_HISTORY`: the bytes of a timeline's history file. Timeline 1 has none (58P01).
pub async fn timeline_history(client: &mut Client, timeline: Timeline) -> Result<Vec<u8>, PgError> {
    let rows = client.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
    let content = only(&rows, "TIMELINE_HISTORY")?.bytes(1);
    content
        .map(|bytes| bytes.to_vec())
        .ok_or_else(|| PgError::protocol("TIMELINE_HISTORY gave no content"))
}

fn only<'a>(rows: &'a [Row], command: &str) -> Result<&'a Row, PgError> {
    match rows {
        [row] => Ok(row),
        rows => Err(PgError::protocol(format!("{command} gave {} rows, not one", rows.len()))),
    }
}

fn parsed<T: std::str::FromStr>(value: Option<&str>, what: &str) -> Result<T, PgError> {
    value.and_then(|text| text.parse().ok()).ok_or_else(|| {
        PgError::protocol(format!("{what} can't be read: {:?}", value.unwrap_or("null")))
    })
}

/// What to ask for in a base backup. A manifest of the server's is never asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Goes into `backup_label`.
    pub label: String,
    /// Begin with an immediate checkpoint instead of a spread one, which may take minutes.
    pub fast_checkpoint: bool,
    /// The most that the server may send, in kB a second, from 32 to 1048576.
    pub max_rate: Option<u32>,
    /// The server ends the backup only when its own archiver has stored the last segment. (A
    /// standby waits only with `archive_mode = always`.)
    pub wait_for_archive: bool,
    /// The server checks the checksum of each page that it sends, if the cluster has checksums.
    pub verify_checksums: bool,
    /// Send only what changed since the backup whose manifest was uploaded in this session
    /// ([`super::incremental`]). From PostgreSQL 17 on.
    pub incremental: bool,
}

/// The command for this version of the server: the one place that knows how the grammar differs.
fn base_backup_command(
    version: &ServerVersion,
    options: &BaseBackupOptions,
) -> Result<String, PgError> {
    if version.major() < 15 {
        return Err(PgError::Unsuitable(format!(
            "PostgreSQL {version} isn't supported: backups are taken from version 15 or newer"
        )));
    }
    if options.incremental && version.major() < 17 {
        return Err(PgError::Unsuitable(format!(
            "PostgreSQL {version} can't send incremental backups: version 17 and newer can"
        )));
    }
    let mut words = vec![
        format!("LABEL {}", quote_replication(&options.label)),
        "PROGRESS".to_owned(),
        format!("CHECKPOINT '{}'", if options.fast_checkpoint { "fast" } else { "spread" }),
        format!("WAIT {}", options.wait_for_archive),
        "TABLESPACE_MAP".to_owned(),
        format!("VERIFY_CHECKSUMS {}", options.verify_checksums),
    ];
    if let Some(rate) = options.max_rate {
        words.push(format!("MAX_RATE {rate}"));
    }
    if options.incremental {
        words.push("INCREMENTAL".to_owned());
    }
    Ok(format!("BASE_BACKUP ({})", words.join(", ")))
}

/// A tablespace of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceRow {
    /// `None` for the main data directory, which comes last.
    pub oid: Option<u32>,
    /// Where it is on the server; `pg_tblspc/<oid>` for one within the data directory.
    pub location: Option<String>,
    /// About how much is in it, in bytes.
    pub size: Option<u64>,
}

/// A part of a base backup.
#[derive(Debug)]
pub enum BaseBackupEvent {
    /// A tar archive begins: `base.tar`, or `<oid>.tar` of the tablespace at `location`. What was
    /// begun before is complete.
    Archive {
        /// The archive's name.
        name: String,
        /// The tablespace's path; empty for the main data directory.
        location: String,
    },
    /// Bytes of the archive that was begun last. They share a buffer with their neighbours: what is
    /// kept for long should be copied.
    Data(Bytes),
    /// How many bytes of the cluster the server has sent, all in all.
    Progress(u64),
    /// A notice or a warning; page checksum failures come as such.
    Notice(ServerError),
    /// The backup is complete; nothing follows.
    End(BaseBackupEnd),
}

/// The end of a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseBackupEnd {
    /// WAL up to here is needed to make the backup consistent.
    pub stop_lsn: Lsn,
    /// The timeline of that position.
    pub stop_timeline: Timeline,
    /// The server found pages with wrong checksums; it sent them as they are, and named them in
    /// warnings.
    pub checksum_failures: bool,
}

/// A base backup under way. If it is dropped before its end, the client can only be closed.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    client: &'a mut Client,
    start_lsn: Lsn,
    timeline: Timeline,
    tablespaces: Vec<TablespaceRow>,
    /// Notices that came before the data.
    notices: std::collections::VecDeque<ServerError>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Archives are coming.
    Data,
    /// They have ended; the stop position comes.
    Stop(Option<(Lsn, Timeline)>),
    /// The end was told.
    Ended,
}

/// How many messages there are at most before the data of a backup: one for each tablespace, and some.
const MAX_BEGIN: usize = 1 << 20;

/// The SQLSTATE of "data corrupted", which is what a backup with page checksum failures ends with.
const DATA_CORRUPTED: &str = "XX001";

impl<'a> BaseBackup<'a> {
    /// Begins a backup. Returns when the server has made its checkpoint and tells where the backup
    /// starts; the data stays with the server. Nothing comes until then, however long that takes: whether
    /// the server is still there has to be asked over another connection.
    pub async fn start(
        client: &'a mut Client,
        options: &BaseBackupOptions,
    ) -> Result<Self, PgError> {
        let command = base_backup_command(client.server_version(), options)?;
        client.send_query(&command).await?;
        let mut notices = std::collections::VecDeque::new();
        let mut results: Vec<Vec<Vec<Option<Bytes>>>> = Vec::new();
        let mut count = 0usize;
        loop {
            let message = match results.is_empty() {
                // The checkpoint isn't done.
                true => client.receive_at_last().await?,
                false => client.receive().await?,
            };
            count += 1;
            if count > MAX_BEGIN {
                return Err(PgError::protocol("BASE_BACKUP begins with too many messages"));
            }
            match message {
                Message::RowDescription(_) => results.push(Vec::new()),
                Message::DataRow(values) => match results.last_mut() {
                    Some(rows) => rows.push(values),
                    None => return Err(PgError::protocol("a row came before its description")),
                },
                Message::CommandComplete(_) => {}
                Message::Notice(notice) => notices.push_back(notice),
                Message::CopyOut => break,
                Message::Error(error) => return Err(client.recover(error).await),
                other => return Err(out_of_turn(&other)),
            }
        }
        let [start, tablespaces] = results.as_slice() else {
            return Err(PgError::protocol(format!(
                "BASE_BACKUP began with {} results, not two",
                results.len()
            )));
        };
        let (start_lsn, timeline) = position(start.first(), "start")?;
        let tablespaces =
            tablespaces.iter().map(|row| tablespace(row)).collect::<Result<_, _>>()?;
        let stage = Stage::Data;
        Ok(BaseBackup { client, start_lsn, timeline, tablespaces, notices, stage })
    }

    /// Where recovery of this backup starts.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// The timeline at the start.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The tablespaces, the main data directory last. Archives may come in another order.
    pub fn tablespaces(&self) -> &[TablespaceRow] {
        &self.tablespaces
    }

    /// The next part, up to [`BaseBackupEvent::End`].
    pub async fn next(&mut self) -> Result<BaseBackupEvent, PgError> {
        if let Some(notice) = self.notices.pop_front() {
            return Ok(BaseBackupEvent::Notice(notice));
        }
        loop {
            let message = match self.stage {
                Stage::Ended => return Err(PgError::protocol("the base backup has ended")),
                _ => self.client.receive().await?,
            };
            match (message, &mut self.stage) {
                (Message::CopyData(data), Stage::Data) => return part(data),
                (Message::Notice(notice), _) => return Ok(BaseBackupEvent::Notice(notice)),
                (Message::CopyDone, Stage::Data) => self.stage = Stage::Stop(None),
                (Message::RowDescription(_) | Message::CommandComplete(_), Stage::Stop(_)) => {}
                (Message::DataRow(row), Stage::Stop(stop @ None)) => {
                    *stop = Some(position(Some(&row), "stop")?);
                }
                (Message::ReadyForQuery, Stage::Stop(Some(stop))) => {
                    let stop = *stop;
                    return Ok(self.end(stop, false));
                }
                // All data and the stop position were sent before the server says this.
                (Message::Error(error), Stage::Stop(Some(stop)))
                    if error.code == DATA_CORRUPTED =>
                {
                    let stop = *stop;
                    let _ = self.client.recover(error).await;
                    return Ok(self.end(stop, true));
                }
                (Message::Error(error), _) => {
                    self.stage = Stage::Ended;
                    return Err(self.client.recover(error).await);
                }
                (other, _) => return Err(out_of_turn(&other)),
            }
        }
    }

    fn end(&mut self, stop: (Lsn, Timeline), checksum_failures: bool) -> BaseBackupEvent {
        self.stage = Stage::Ended;
        let (stop_lsn, stop_timeline) = stop;
        BaseBackupEvent::End(BaseBackupEnd { stop_lsn, stop_timeline, checksum_failures })
    }
}

fn out_of_turn(message: &Message) -> PgError {
    super::client::unexpected(message)
}

/// One CopyData of a base backup: a byte that says what it is, and the rest.
fn part(mut data: Bytes) -> Result<BaseBackupEvent, PgError> {
    let kind = data.try_get_u8().map_err(|_| PgError::protocol("an empty part of a backup"))?;
    match kind {
        b'd' => Ok(BaseBackupEvent::Data(data)),
        b'n' => Ok(BaseBackupEvent::Archive {
            name: utf8(&bytes_to_nul(&mut data)?, "an archive's name")?,
            location: utf8(&bytes_to_nul(&mut data)?, "a tablespace's path")?,
        }),
        b'p' => data
            .try_get_u64()
            .map(BaseBackupEvent::Progress)
            .map_err(|_| PgError::protocol("a backup's progress is no number")),
        other => Err(PgError::protocol(format!(
            "a backup has a part of the unknown type {:?}",
            char::from(other)
        ))),
    }
}

fn utf8(bytes: &[u8], what: &str) -> Result<String, PgError> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| {
        PgError::Unsuitable(format!(
            "{what} isn't UTF-8, which isn't supported: {:?}",
            String::from_utf8_lossy(bytes)
        ))
    })
}

/// A row of an LSN and a timeline.
fn position(row: Option<&Vec<Option<Bytes>>>, what: &str) -> Result<(Lsn, Timeline), PgError> {
    let field = |i: usize| {
        let value = row.and_then(|row| row.get(i)?.as_deref());
        value.and_then(|bytes| std::str::from_utf8(bytes).ok())
    };
    Ok((
        parsed(field(0), &format!("the backup's {what} position"))?,
        Timeline(parsed(field(1), &format!("the backup's {what} timeline"))?),
    ))
}

fn tablespace(row: &[Option<Bytes>]) -> Result<TablespaceRow, PgError> {
    let field = |i: usize, what: &str| {
        row.get(i).and_then(Option::as_deref).map(|bytes| utf8(bytes, what)).transpose()
    };
    let number = |i: usize, what: &str| -> Result<Option<u64>, PgError> {
        field(i, what)?.map(|text| parsed(Some(&text), what)).transpose()
    };
    let oid = number(0, "a tablespace's oid")?;
    Ok(TablespaceRow {
        oid: oid
            .map(u32::try_from)
            .transpose()
            .map_err(|_| PgError::protocol("a tablespace's oid is beyond 32 bits"))?,
        location: field(1, "a tablespace's path")?.filter(|path| !path.is_empty()),
        // The server counts in kB.
        size: number(2, "a tablespace's size")?.map(|kb| kb.saturating_mul(1024)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> BaseBackupOptions {
        BaseBackupOptions {
            label: "it's".to_owned(),
            fast_checkpoint: true,
            max_rate: Some(1024),
            wait_for_archive: false,
            verify_checksums: true,
            incremental: false,
        }
    }

    #[test]
    fn the_command_follows_the_version() {
        let version = |num: u32| ServerVersion { num, text: (num / 10_000).to_string() };
        assert_eq!(
            base_backup_command(&version(150_018), &options()).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
             VERIFY_CHECKSUMS true, MAX_RATE 1024)"
        );
        let incremental = BaseBackupOptions { incremental: true, max_rate: None, ..options() };
        let command = base_backup_command(&version(170_010), &incremental).unwrap();
        assert!(command.ends_with("VERIFY_CHECKSUMS true, INCREMENTAL)"), "{command}");
        for (num, options) in [(140_000, options()), (160_014, incremental)] {
            assert!(matches!(
                base_backup_command(&version(num), &options),
                Err(PgError::Unsuitable(_))
            ));
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let read = |bytes: &'static [u8]| part(Bytes::from_static(bytes));
        assert!(matches!(read(b"dabc"), Ok(BaseBackupEvent::Data(d)) if d == "abc"));
        assert!(matches!(read(b"d"), Ok(BaseBackupEvent::Data(d)) if d.is_empty()));
        assert!(matches!(
            read(b"n16385.tar\0/t s\0"),
            Ok(BaseBackupEvent::Archive { name, location })
                if name == "16385.tar" && location == "/t s"
        ));
        assert!(matches!(read(b"p\0\0\0\0\0\0\x01\0"), Ok(BaseBackupEvent::Progress(256))));
        for bad in [&b""[..], b"n", b"nbase.tar\0", b"p\0", b"m", b"x"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
