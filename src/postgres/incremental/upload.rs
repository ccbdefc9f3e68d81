//! `UPLOAD_MANIFEST`: telling the server which backup the client has.
//!
//! The manifest is written as it is sent, file by file, so its length doesn't matter here. (The
//! server holds all paths.) What must be in it (`common/parse_manifest.c`, checked against
//! servers): version 2, the system's identifier, a path and a size for each file, the WAL ranges,
//! its own SHA-256. The sizes are read and not used.

use std::io;

use super::super::{
    backup_manifest::{ManifestVersion, ManifestWriter, WalRange},
    client::{Client, Message, PgError, log, unexpected},
};

/// How much is collected before it is sent, in bytes.
const CHUNK: usize = 64 << 10;

/// A manifest being sent. If it is dropped before its end, the client can only be closed.
pub struct ManifestUpload<'a> {
    client: &'a mut Client,
    manifest: ManifestWriter<Vec<u8>>,
}

impl<'a> ManifestUpload<'a> {
    /// Begins the upload on a replication connection. The manifest is kept for the session: the
    /// incremental backup has to be asked for on the same connection.
    pub async fn start(client: &'a mut Client, system_identifier: u64) -> Result<Self, PgError> {
        client.send_query("UPLOAD_MANIFEST").await?;
        loop {
            match client.receive().await? {
                Message::CopyIn => break,
                Message::Notice(notice) => log(&notice),
                Message::Error(error) => return Err(client.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
        let manifest = ManifestWriter::new(Vec::new(), ManifestVersion::Two, system_identifier)
            .map_err(unwritten)?;
        Ok(ManifestUpload { client, manifest })
    }

    /// Adds a file that the client has whole: `path` is relative to the data directory. The server
    /// sends what isn't listed whole.
    pub async fn file(&mut self, path: &[u8], size: u64) -> Result<(), PgError> {
        self.manifest.file_name_only(path, size).map_err(unwritten)?;
        if self.manifest.get_mut().len() < CHUNK {
            return Ok(());
        }
        let chunk = std::mem::take(self.manifest.get_mut());
        self.client.send_copy_data(&chunk).await?;
        // The server reads the manifest as it comes. What it doesn't like it says at once, and
        // then drops the rest.
        while let Some(message) = self.client.received().await? {
            match message {
                Message::Notice(notice) => log(&notice),
                Message::Error(error) => return Err(self.client.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Ends the manifest with the WAL that the backup needs ([`WalRange::of_backup`]).
    pub async fn finish(self, ranges: &[WalRange]) -> Result<(), PgError> {
        let rest = self.manifest.finish(ranges).map_err(unwritten)?;
        self.client.send_copy_data(&rest).await?;
        self.client.send_copy_done().await?;
        loop {
            match self.client.receive().await? {
                Message::CommandComplete(_) => {}
                Message::Notice(notice) => log(&notice),
                Message::ReadyForQuery => return Ok(()),
                Message::Error(error) => return Err(self.client.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
    }
}

/// Writing into memory doesn't fail.
fn unwritten(error: io::Error) -> PgError {
    PgError::protocol(format!("the manifest can't be written: {error}"))
}
