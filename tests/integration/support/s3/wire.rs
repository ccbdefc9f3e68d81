//! The way between pgkeep and an S3 server: a proxy that goes wrong when a test says so.
//!
//! [`front`](super::front) decides what the server answers; here is what happens on the wire, where
//! the server has no say: connections are refused, reset or fall silent, before the server has seen
//! a request or after it did what was asked; bodies break off in the middle; something in between
//! answers in the server's place. It can also be slow.
//!
//! It reads a whole request, decides, passes it on, reads the whole answer and passes that on. All
//! it sees is noted, so a test can record a run and then let each of its requests go wrong in turn.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinHandle,
};

use super::http::{Message, Stream};

/// How many bytes wait at this end of a connection for a slow wire, at most.
const RECEIVE_BUFFER: usize = 32 << 10;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// This status and S3's code come as the answer, and the server knows nothing of the request.
    Answer(u16, &'static str),
    /// Something in between answers with this status and a page for people.
    Page(u16),
    /// An answer that begins with 200 has this error in its body.
    Inside200(&'static str),
    /// The connection is reset before the server has the request.
    ResetBefore,
    /// The server does what was asked, and then the connection is reset.
    ResetAfter,
    /// The server does what was asked, and no byte of its answer comes.
    Silence,
    /// After half of the answer's body nothing comes any more.
    SilenceInside,
    /// After half of the answer's body the connection is closed.
    BrokenOff,
    /// Half of the answer's body comes, and its headers say that this is all.
    Shortened,
    /// The answer comes without the headers whose names begin so: a server leaves out what the
    /// credentials may not ask for.
    Without(&'static str),
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GetObject`, `PutObject`, and so on.
    pub operation: &'static str,
    /// The key, or the prefix of what is listed.
    pub key: String,
    /// Its first line and headers.
    pub head: String,
}

/// A request that was answered, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub request: Request,
    /// What happened to it, if anything did.
    pub fault: Option<Fault>,
    /// The server's answer: its status and how many bytes its body had.
    pub answer: Option<(u16, usize)>,
}

type Plan = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// The proxy. It stops when this is dropped.
pub struct Wire {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: Mutex<Option<JoinHandle<()>>>,
    runtime: Option<Runtime>,
}

struct Shared {
    server: SocketAddr,
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    /// Bytes a second of one connection.
    rate: Mutex<Option<u64>>,
    /// After so many bytes of a request's body the wire takes no more.
    freezes_after: Mutex<Option<usize>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a wire from {} to {}", self.address, self.shared.server)
    }
}

impl Wire {
    /// A wire to this server, on which all is well.
    pub fn to(server: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("wire")
            .enable_all()
            .build()
            .expect("a runtime");
        let shared = Arc::new(Shared {
            server,
            plan: Mutex::new(Box::new(|_| None)),
            seen: Mutex::default(),
            rate: Mutex::default(),
            freezes_after: Mutex::default(),
            connections: Mutex::default(),
        });
        let mut wire = Wire {
            shared,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            listening: Mutex::default(),
            runtime: Some(runtime),
        };
        wire.address = wire.listen();
        wire
    }

    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this decides about each request. What was seen before is forgotten.
    pub fn plan(&self, plan: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        self.shared.seen.lock().unwrap().clear();
        *self.shared.plan.lock().unwrap() = Box::new(plan);
    }

    /// All is well from now on. What was seen before is forgotten.
    pub fn heal(&self) {
        *self.shared.rate.lock().unwrap() = None;
        *self.shared.freezes_after.lock().unwrap() = None;
        self.plan(|_| None);
    }

    /// The requests since the plan was made, in the order in which they were done with.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// From now on each connection moves so many bytes a second in either direction.
    pub fn slow_down(&self, rate: u64) {
        *self.shared.rate.lock().unwrap() = Some(rate);
    }

    /// From now on nothing moves any more after so many bytes of a request's body.
    pub fn freeze_after(&self, bytes: usize) {
        *self.shared.freezes_after.lock().unwrap() = Some(bytes);
    }

    /// Breaks every connection and takes none, until [`Wire::accept`].
    pub fn refuse(&self) {
        if let Some(listening) = self.listening.lock().unwrap().take() {
            listening.abort();
            // The listener is closed when its task is gone.
            let _ = self.runtime().block_on(listening);
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Takes connections again.
    pub fn accept(&self) {
        self.listen();
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it runs until it is dropped")
    }

    fn listen(&self) -> SocketAddr {
        let listener = std::net::TcpListener::bind(self.address).expect("a port");
        // Connections inherit it. What waits here isn't the sender's any more, so it is little.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, RECEIVE_BUFFER)
            .expect("set the size of a buffer");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let listening = self.runtime().spawn(listen(self.shared.clone(), listener));
        *self.listening.lock().unwrap() = Some(listening);
        address
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("listen");
    while let Ok((socket, _)) = listener.accept().await {
        let serving = shared.clone();
        let connection = tokio::spawn(async move {
            // Either end may close whenever it likes.
            let _ = serving.serve(Stream::new(socket)).await;
        });
        let mut connections = shared.connections.lock().unwrap();
        connections.retain(|connection| !connection.is_finished());
        connections.push(connection);
    }
}

impl Shared {
    async fn serve(&self, mut client: Stream) -> io::Result<()> {
        let mut server: Option<Stream> = None;
        while let Some(head) = client.head().await? {
            let request = Request::read(&head);
            let rate = *self.rate.lock().unwrap();
            let fault = (*self.plan.lock().unwrap())(&request);
            if fault == Some(Fault::ResetBefore) {
                self.note(request, fault, None);
                client.reset();
                return Ok(());
            }
            if request.header("expect").is_some() {
                client.send(b"HTTP/1.1 100 Continue\r\n\r\n", None).await?;
            }
            let frozen = *self.freezes_after.lock().unwrap();
            if let Some(bytes) = frozen.filter(|bytes| request.body_len() > *bytes) {
                let head = format!("\r\ncontent-length: {bytes}\r\n");
                client.request_body(head.as_bytes(), rate).await?;
                self.note(request, None, None);
                std::future::pending::<()>().await;
                return Ok(());
            }
            let body = client.request_body(&head, rate).await?;
            if let Some(answer) = fault.and_then(|fault| fault.answer(&request)) {
                self.note(request, fault, None);
                client.send(&answer, rate).await?;
                continue;
            }
            if server.is_none() {
                server = Some(Stream::new(TcpStream::connect(self.server).await?));
            }
            let to = server.as_mut().expect("it was just made");
            let answer = ask(to, Message { head, body }, &request).await?;
            let closes = answer.header("connection").is_some_and(|c| c == "close");
            self.note(request, fault, Some((answer.status(), answer.body.len())));
            let half = answer.body.len() / 2;
            match fault {
                Some(Fault::ResetAfter) => {
                    client.reset();
                    return Ok(());
                }
                Some(Fault::Silence) => {
                    client.fall_silent().await;
                    return Ok(());
                }
                Some(Fault::SilenceInside) => {
                    client.send(&[&answer.head, &answer.body[..half]].concat(), None).await?;
                    client.fall_silent().await;
                    return Ok(());
                }
                Some(Fault::BrokenOff) => {
                    client.send(&[&answer.head, &answer.body[..half]].concat(), None).await?;
                    return Ok(());
                }
                Some(Fault::Shortened) => {
                    let head = answer.with_length(half);
                    client.send(&[&head, &answer.body[..half]].concat(), None).await?;
                }
                Some(Fault::Without(header)) => {
                    client.send(&answer.without(header), rate).await?;
                    client.send(&answer.body, rate).await?;
                }
                _ => {
                    client.send(&answer.head, rate).await?;
                    client.send(&answer.body, rate).await?;
                }
            }
            if closes {
                return Ok(());
            }
        }
        Ok(())
    }

    fn note(&self, request: Request, fault: Option<Fault>, answer: Option<(u16, usize)>) {
        self.seen.lock().unwrap().push(Seen { request, fault, answer });
    }
}

/// Has the server answer a request.
async fn ask(server: &mut Stream, message: Message, request: &Request) -> io::Result<Message> {
    server.send(&message.head, None).await?;
    server.send(&message.body, None).await?;
    loop {
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed");
        let head = server.head().await?.ok_or_else(closed)?;
        let body = server.answer_body(&head, request.method()).await?;
        let answer = Message { head, body };
        // The body is there already, so that it may come needn't be passed on.
        if answer.status() != 100 {
            return Ok(answer);
        }
    }
}

impl Fault {
    /// What is answered in the server's place, if it is.
    fn answer(self, request: &Request) -> Option<Vec<u8>> {
        let (status, kind, body) = match self {
            Fault::Answer(status, code) => (status, "application/xml", error(code)),
            Fault::Inside200(code) => (200, "application/xml", error(code)),
            Fault::Page(status) => {
                (status, "text/html", format!("<html><body><h1>{status}</h1></body></html>"))
            }
            _ => return None,
        };
        let len = body.len();
        let head = format!(
            "HTTP/1.1 {status} A fault of the test\r\ncontent-type: {kind}\r\n\
             content-length: {len}\r\nx-amz-request-id: FAULT\r\n\r\n"
        );
        let body = if request.operation == "HeadObject" { String::new() } else { body };
        Some([head.into_bytes(), body.into_bytes()].concat())
    }
}

fn error(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>a fault of the test</Message><RequestId>FAULT</RequestId></Error>"
    )
}

impl Request {
    fn read(head: &[u8]) -> Self {
        let head = String::from_utf8_lossy(head).into_owned();
        let (operation, key) = operation(head.lines().next().unwrap_or_default());
        Request { operation, key, head }
    }

    fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<String> {
        Message { head: self.head.clone().into_bytes(), body: Vec::new() }.header(name)
    }

    /// Whether it names one of an object's versions.
    pub fn names_a_version(&self) -> bool {
        self.head.lines().next().is_some_and(|start| start.contains("versionId="))
    }

    fn body_len(&self) -> usize {
        self.header("content-length").and_then(|len| len.parse().ok()).unwrap_or_default()
    }
}

/// What S3 calls a request with this first line, and the key that it is about.
fn operation(start: &str) -> (&'static str, String) {
    let mut words = start.split(' ');
    let method = words.next().unwrap_or_default();
    let (path, query) = words.next().map_or(("", ""), |w| w.split_once('?').unwrap_or((w, "")));
    let parameter = |name: &str| {
        let mut all = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
        all.find(|(found, _)| *found == name).map(|(_, value)| decoded(value))
    };
    let has = |name| parameter(name).is_some();
    let key = path.trim_start_matches('/').split_once('/').map(|(_, key)| decoded(key));
    let key = key.filter(|key| !key.is_empty());
    let operation = match (method, &key) {
        ("GET", None) if has("list-type") => "ListObjectsV2",
        ("GET", None) if has("uploads") => "ListMultipartUploads",
        ("GET", None) if has("versions") => "ListObjectVersions",
        ("GET", None) if has("object-lock") => "GetObjectLockConfiguration",
        ("GET", Some(_)) => "GetObject",
        ("HEAD", Some(_)) => "HeadObject",
        ("PUT", Some(_)) if has("partNumber") => "UploadPart",
        ("PUT", Some(_)) if has("retention") => "PutObjectRetention",
        ("PUT", Some(_)) => "PutObject",
        ("POST", Some(_)) if has("uploads") => "CreateMultipartUpload",
        ("POST", Some(_)) if has("uploadId") => "CompleteMultipartUpload",
        ("DELETE", Some(_)) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", Some(_)) => "DeleteObject",
        _ => "another",
    };
    (operation, key.or_else(|| parameter("prefix")).unwrap_or_default())
}

/// Without percent signs. The names of pgkeep's objects are ASCII.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(char::from(byte));
                decoded.push_str(&part[2..]);
            }
            None => decoded.push_str(part),
        }
    }
    decoded
}
