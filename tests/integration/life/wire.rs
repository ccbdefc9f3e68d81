//! The server's side of the protocol (documentation, "Message Formats"), as far as pgkeep speaks it.

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// A connection of a client's.
pub struct Wire {
    stream: UnixStream,
    input: BytesMut,
    output: Vec<u8>,
}

/// What there is to say when the client is gone: nothing.
pub struct Gone;

pub type Result<T> = std::result::Result<T, Gone>;

impl Wire {
    /// Takes the client's first message, and lets it in.
    pub async fn welcome(stream: UnixStream, version: &str) -> Result<Self> {
        let mut wire = Wire { stream, input: BytesMut::new(), output: Vec::new() };
        while wire.input.len() < 4
            || wire.input.len() < u32::from_be_bytes(wire.input[..4].try_into().unwrap()) as usize
        {
            wire.read().await?;
        }
        wire.input.clear();
        wire.put(b'R', &0u32.to_be_bytes());
        for (name, value) in [
            ("server_version", version),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("in_hot_standby", "off"),
        ] {
            wire.put(b'S', format!("{name}\0{value}\0").as_bytes());
        }
        wire.ready().await?;
        Ok(wire)
    }

    async fn read(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => Ok(()),
        }
    }

    /// The client's next message: its type and its body. It may be given up at any time.
    pub async fn next(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if self.input.len() >= 5 {
                let length = u32::from_be_bytes(self.input[1..5].try_into().unwrap()) as usize;
                if self.input.len() > length {
                    let mut message = self.input.split_to(1 + length).freeze();
                    let kind = message.get_u8();
                    message.advance(4);
                    return if kind == b'X' { Err(Gone) } else { Ok((kind, message)) };
                }
            }
            self.read().await?;
        }
    }

    /// Adds a message to what is to be sent.
    pub fn put(&mut self, kind: u8, body: &[u8]) {
        self.output.push(kind);
        self.output.extend((body.len() as u32 + 4).to_be_bytes());
        self.output.extend(body);
    }

    /// Adds a result.
    pub fn rows(&mut self, columns: &[&str], rows: &[Vec<Option<String>>]) {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            body.extend(column.as_bytes());
            body.push(0);
            // Of no table, text, of any length.
            body.extend([0; 6]);
            body.extend(25u32.to_be_bytes());
            body.extend((-1i16).to_be_bytes());
            body.extend((-1i32).to_be_bytes());
            body.extend([0; 2]);
        }
        self.put(b'T', &body);
        for row in rows {
            let mut body = (row.len() as u16).to_be_bytes().to_vec();
            for value in row {
                let Some(value) = value else {
                    body.extend((-1i32).to_be_bytes());
                    continue;
                };
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value.as_bytes());
            }
            self.put(b'D', &body);
        }
        self.complete();
    }

    /// Adds that a command is done.
    pub fn complete(&mut self) {
        self.put(b'C', b"DONE\0");
    }

    /// Says that the next command may come, and all that was to be said before.
    pub async fn ready(&mut self) -> Result<()> {
        self.put(b'Z', b"I");
        self.send().await
    }

    /// Sends what there is to be said.
    pub async fn send(&mut self) -> Result<()> {
        let output = std::mem::take(&mut self.output);
        self.stream.write_all(&output).await.map_err(|_| Gone)
    }
}
