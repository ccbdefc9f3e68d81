//! An HTTP server that answers as a test says: for the services that clients ask for credentials.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// The server. It stops when this is dropped.
#[derive(Debug)]
pub struct Answers {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Answers {
    /// A server that answers a request, of which it is told the first line, with this body, or with 404.
    pub fn start(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let answering = std::thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                // Who asks may go away whenever it likes.
                let _ = one(connection, &answer);
            }
        });
        Answers { address, over, answering: Some(answering) }
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

fn one(connection: TcpStream, answer: impl Fn(&str) -> Option<String>) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut len = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    std::io::copy(&mut reader.take(len), &mut std::io::sink())?;
    let (status, body) = match answer(first.trim_end()) {
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", String::new()),
    };
    // The instance's service says so of its tokens, and others are asked no such thing.
    let more = "x-aws-ec2-metadata-token-ttl-seconds: 21600";
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n\r\n",
        body.len()
    );
    (&connection).write_all(format!("{head}{body}").as_bytes())
}
