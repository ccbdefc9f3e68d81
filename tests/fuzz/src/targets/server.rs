//! A server's messages, from its answer to the startup on: everything the client reads of a socket.
//!
//! The first byte chooses what is asked of it: 0 nothing, and then its bytes are all of the connection; else the
//! session is opened first. 1 a query, 2 who it is, 3 a timeline's history, 4 a base backup, 5 a stream, 6 a
//! slot, 7 what it says of its archiving, 8 of where it is, 9 of what waits, 10 of who streams. An even second byte has the rest sent as it is, an odd one has it cut into messages: a type, a
//! length of two bytes, a body; so that lengths fit and later messages are reached.

use std::{path::PathBuf, time::Duration};

use chrono::Utc;
use pgkeep::postgres::{
    Lsn, Timeline,
    archiving::{Archiver, Position, Slot, Waiting},
    client::{Client, ConnInfo, Environment, Mode, PgError},
    replication::{
        BaseBackup, BaseBackupEvent, BaseBackupOptions, identify_system, show, timeline_history,
    },
    streaming::{Started, StreamEvent, WalStream, read_slot},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::{input::Input, place::wait};

fn message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
}

/// That all is well, as a server of version 17 says it to a session that needs no password.
fn welcome() -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, b'R', &[0; 4]);
    message(&mut out, b'S', b"server_version\x0017.10\0");
    message(&mut out, b'S', b"integer_datetimes\0on\0");
    message(&mut out, b'Z', b"I");
    out
}

async fn ask(info: &ConnInfo, what: u8) -> Result<(), PgError> {
    let mode = if what == 1 || what > 6 { Mode::Sql } else { Mode::Replication };
    let mut client = Client::connect(info, mode).await?;
    match what {
        1 => {
            for row in client.query("SELECT 1").await? {
                let _ = (row.get(0), row.named("a"), row.len());
            }
        }
        2 => {
            identify_system(&mut client).await?;
            show(&mut client, "wal_segment_size").await?;
        }
        3 => drop(timeline_history(&mut client, Timeline(2)).await?),
        4 => {
            let options = BaseBackupOptions {
                label: "x".to_owned(),
                fast_checkpoint: true,
                max_rate: None,
                wait_for_archive: false,
                verify_checksums: true,
                incremental: false,
            };
            let mut backup = BaseBackup::start(&mut client, &options).await?;
            while !matches!(backup.next().await?, BaseBackupEvent::End(_)) {}
        }
        5 => {
            let start = WalStream::start(&mut client, Some("s"), Lsn(0), Timeline(1)).await?;
            let Started::Stream(mut stream) = start else { return Ok(()) };
            loop {
                match stream.next().await? {
                    StreamEvent::TimelineEnd => return stream.finish().await.map(drop),
                    StreamEvent::ServerEnd => return stream.stop().await,
                    StreamEvent::Keepalive { server_end, .. } => stream.report(server_end).await?,
                    StreamEvent::Data { .. } => {}
                }
            }
        }
        6 => drop(read_slot(&mut client, "s").await?),
        7 => {
            let archiver = Archiver::ask(&mut client).await?;
            let _ = (archiver.is_failing(), archiver.rate(Utc::now()));
        }
        8 => {
            if let Some(position) = Position::ask(&mut client).await? {
                let number = position.segment_size.number_at(position.flushed);
                position.segment_size.start_of(number + 1);
            }
        }
        9 => {
            if let Some(waiting) = Waiting::ask(&mut client).await? {
                assert!(waiting.segments <= waiting.files);
            }
        }
        _ => drop(Slot::ask(&mut client, "s").await?.map(|slot| slot.is_lost())),
    }
    Ok(())
}

/// Answers one connection with these bytes, and reads what it says until it goes.
async fn answer(listener: UnixListener, bytes: Vec<u8>) {
    let Ok((mut socket, _)) = listener.accept().await else { return };
    let mut said = [0; 4096];
    let _ = socket.read(&mut said).await;
    let _ = socket.write_all(&bytes).await;
    let _ = socket.shutdown().await;
    while matches!(socket.read(&mut said).await, Ok(n) if n > 0) {}
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (what, cut) = (input.byte() % 11, input.byte() & 1 == 1);
    let mut answers = if what == 0 { Vec::new() } else { welcome() };
    if cut {
        while !input.is_empty() {
            let kind = input.byte();
            message(&mut answers, kind, input.piece());
        }
    } else {
        answers.extend(input.rest());
    }
    let folder: TempDir = tempfile::tempdir().expect("a directory");
    let socket: PathBuf = folder.path().join(".s.PGSQL.5432");
    let text =
        format!("host={} user=me password=secret connect_timeout=5", folder.path().display());
    let info = ConnInfo::parse_in(&text, &Environment::new(&[], None, Some("me")));
    let info = info.expect("a connection string");
    wait(async {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = tokio::spawn(answer(listener, answers));
        let asked = tokio::time::timeout(Duration::from_secs(10), ask(&info, what)).await;
        server.abort();
        if let Err(e) = asked.expect("an end comes when the server has gone") {
            let _ = (e.to_string(), e.hint().map(str::len));
        }
    });
}
