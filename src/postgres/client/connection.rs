//! A socket with messages on it.
//!
//! The socket is read only while somebody asks for a message: what isn't asked for stays with the
//! server, which then waits. The bytes of CopyData are handed out as they lie in the read buffer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    error::{PgError, ServerError},
    message::{self, Message},
};

/// The socket below.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Hands a call on to the socket there is.
macro_rules! on_socket {
    ($stream:expr, $socket:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Unix($socket) => $call,
            Stream::Tcp($socket) => $call,
            Stream::Tls($socket) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_socket!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_socket!(self, socket => Pin::new(socket).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}

/// How much is read at once: several of the 32 kB messages that a base backup comes in. What is
/// handed out keeps its buffer alive, and a new one is made when none of it is free.
const READ_SIZE: usize = 256 << 10;

/// Less room than this at the end of the buffer isn't worth a system call.
const MIN_READ: usize = 32 << 10;

/// How long the last words of a server are waited for that doesn't listen any more.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Messages over a socket.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    input: BytesMut,
    /// Bound on the length of a message, while the server isn't known yet.
    max_length: Option<usize>,
    /// How long the rest of a message may take whose beginning is here.
    stall_timeout: Option<Duration>,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        let max_length = Some(message::MAX_STARTUP_LENGTH);
        Connection { stream, input: BytesMut::new(), max_length, stall_timeout: None }
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_unix(&self) -> bool {
        matches!(self.stream, Stream::Unix(_))
    }

    /// From now on messages of any sane length are taken; the next byte of one that has begun to come has
    /// to come within `stall_timeout`.
    pub(super) fn authenticated(&mut self, stall_timeout: Option<Duration>) {
        self.max_length = None;
        self.stall_timeout = stall_timeout;
    }

    /// Sends whole messages.
    pub(super) async fn send(&mut self, messages: &[u8]) -> Result<(), PgError> {
        let sent = async {
            self.stream.write_all(messages).await?;
            self.stream.flush().await
        };
        match sent.await {
            Ok(()) => Ok(()),
            // A server that went away may have said why before it did.
            Err(e) => match self.receive(Some(LAST_WORDS)).await {
                Ok(Message::Error(error)) => Err(error.into()),
                _ => Err(PgError::Io(e)),
            },
        }
    }

    /// The next message. With a `limit`, a server of which nothing comes for so long is given up.
    ///
    /// Cancel safe: what was read stays in the buffer.
    pub(super) async fn receive(&mut self, limit: Option<Duration>) -> Result<Message, PgError> {
        loop {
            if let Some(error) = self.postmaster_error() {
                return Ok(Message::Error(error));
            }
            if let Some(message) = message::take(&mut self.input, self.max_length)? {
                return Ok(message);
            }
            if self.input.capacity() - self.input.len() < MIN_READ {
                self.input.reserve(READ_SIZE);
            }
            let limit = if self.input.is_empty() { limit } else { limit.or(self.stall_timeout) };
            let reading = self.stream.read_buf(&mut self.input);
            let read = match limit {
                None => reading.await,
                Some(limit) => match timeout(limit, reading).await {
                    Ok(read) => read,
                    Err(_) => return Err(PgError::Silent(limit)),
                },
            };
            match read {
                Ok(0) => return Err(PgError::Closed),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(PgError::Closed),
                Err(e) => return Err(PgError::Io(e)),
            }
        }
    }

    /// A postmaster that can't even start a process sends `E`, a text and a NUL, without a length
    /// (`postmaster.c`, `report_fork_failure_to_client`).
    fn postmaster_error(&mut self) -> Option<ServerError> {
        let max_length = self.max_length?;
        let (&[tag, a, b, c, d], _) = self.input.split_first_chunk::<5>()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if tag != b'E' || (8..=max_length).contains(&length) {
            return None;
        }
        let text = self.input.get(1..)?;
        let end = text.iter().position(|&b| b == 0 || b == b'\n')?;
        Some(ServerError {
            severity: "FATAL".to_owned(),
            code: "53000".to_owned(),
            message: String::from_utf8_lossy(text.get(..end)?).into_owned(),
            ..ServerError::default()
        })
    }

    /// Says goodbye and closes the socket.
    pub(super) async fn close(mut self) {
        let mut goodbye = BytesMut::new();
        postgres_protocol::message::frontend::terminate(&mut goodbye);
        let _ = self.stream.write_all(&goodbye).await;
        let _ = self.stream.shutdown().await;
    }
}
