//! HTTP/1.1 messages as they are on the wire, as far as a proxy has to understand them.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How much is moved at a time, in bytes.
const STEP: usize = 16 << 10;

/// One end of a connection, with what was read of it too early.
pub struct Stream {
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its first line and headers, with the empty line at their end.
    pub head: Vec<u8>,
    /// Its body as it was sent, in chunks if it was sent in chunks.
    pub body: Vec<u8>,
}

impl Message {
    /// The first line.
    pub fn start(&self) -> String {
        let head = String::from_utf8_lossy(&self.head);
        head.lines().next().unwrap_or_default().to_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// Its head, with another length of its body.
    pub fn with_length(&self, len: usize) -> Vec<u8> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let lines = head.split_terminator("\r\n").map(|line| match line.split_once(':') {
            Some((name, _)) if name.eq_ignore_ascii_case("content-length") => {
                format!("{name}: {len}\r\n")
            }
            _ => format!("{line}\r\n"),
        });
        lines.collect::<String>().into_bytes()
    }

    /// Its head without the headers whose names begin so.
    pub fn without(&self, beginning: &str) -> Vec<u8> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let stays = |line: &&str| !line.to_ascii_lowercase().starts_with(beginning);
        let lines = head.split_terminator("\r\n").filter(stays);
        lines.flat_map(|line| [line, "\r\n"]).collect::<String>().into_bytes()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        let start = self.start();
        start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// How a body ends.
enum End {
    None,
    After(usize),
    Chunked,
    Closed,
}

impl Stream {
    pub fn new(socket: TcpStream) -> Self {
        let _ = socket.set_nodelay(true);
        Stream { socket, buffer: Vec::new() }
    }

    /// The next message's head; `None` when the other end closes the connection instead.
    pub async fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                let rest = self.buffer.split_off(at + 4);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if !self.more(None).await? {
                return Ok(None);
            }
        }
    }

    /// The body of a request with this head, at most so many bytes of it a second.
    pub async fn request_body(&mut self, head: &[u8], rate: Option<u64>) -> io::Result<Vec<u8>> {
        let len = header(head, "content-length").and_then(|len| len.parse().ok());
        let end = match len {
            Some(len) => End::After(len),
            None if header(head, "transfer-encoding").is_some() => End::Chunked,
            None => End::None,
        };
        self.body(end, rate).await
    }

    /// The body of the answer with this head, to a request of this method.
    pub async fn answer_body(&mut self, head: &[u8], method: &str) -> io::Result<Vec<u8>> {
        let message = Message { head: head.to_vec(), body: Vec::new() };
        let len = message.header("content-length").and_then(|len| len.parse().ok());
        let end = match (message.status(), len) {
            _ if method == "HEAD" => End::None,
            (100..=199 | 204 | 304, _) => End::None,
            (_, Some(len)) => End::After(len),
            _ if message.header("transfer-encoding").is_some() => End::Chunked,
            _ => End::Closed,
        };
        self.body(end, None).await
    }

    async fn body(&mut self, end: End, rate: Option<u64>) -> io::Result<Vec<u8>> {
        let mut len = match end {
            End::None => 0,
            End::After(len) => len,
            End::Closed => {
                while self.more(rate).await? {}
                self.buffer.len()
            }
            End::Chunked => {
                // Chunks end with one of no bytes, and that with an empty line.
                loop {
                    if let Some(len) = chunks(&self.buffer) {
                        break len;
                    }
                    self.need_more(rate).await?;
                }
            }
        };
        while self.buffer.len() < len {
            self.need_more(rate).await?;
        }
        len = len.min(self.buffer.len());
        let rest = self.buffer.split_off(len);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn need_more(&mut self, rate: Option<u64>) -> io::Result<()> {
        if self.more(rate).await? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the message breaks off"))
    }

    /// Reads some more; whether there was any.
    async fn more(&mut self, rate: Option<u64>) -> io::Result<bool> {
        let mut piece = [0; STEP];
        let len = self.socket.read(&mut piece).await?;
        self.buffer.extend_from_slice(&piece[..len]);
        pace(len, rate).await;
        Ok(len > 0)
    }

    /// Sends bytes, at most so many a second.
    pub async fn send(&mut self, bytes: &[u8], rate: Option<u64>) -> io::Result<()> {
        let step = if rate.is_some() { STEP } else { bytes.len().max(1) };
        for piece in bytes.chunks(step) {
            self.socket.write_all(piece).await?;
            pace(piece.len(), rate).await;
        }
        Ok(())
    }

    /// Answers nothing until the other end gives up.
    pub async fn fall_silent(mut self) {
        let mut ignored = [0; 1024];
        while matches!(self.socket.read(&mut ignored).await, Ok(len) if len > 0) {}
    }

    /// Breaks the connection off: the other end gets an RST.
    pub fn reset(self) {
        let at_once = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&self.socket, at_once).expect("set linger");
    }
}

async fn pace(len: usize, rate: Option<u64>) {
    if let Some(rate) = rate {
        tokio::time::sleep(Duration::from_micros(len as u64 * 1_000_000 / rate)).await;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The length of a body in chunks, once it is there.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            // Trailers, if there are any, and an empty line.
            let end = if bytes[at..].starts_with(b"\r\n") {
                2
            } else {
                find(&bytes[at..], b"\r\n\r\n")? + 4
            };
            return (bytes.len() >= at + end).then_some(at + end);
        }
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
}
