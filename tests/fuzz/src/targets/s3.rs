//! The answers of an S3 server, to the storage as it is used.
//!
//! The first byte chooses what is asked: 0 all of an object, 1 and 2 a range of it, 3 its end, 4 its size, 5 and 6 a
//! listing, 7 the folders, 8 a creation, 9 a large one, 10 a deletion, 11 a replacement, 12 until when it is held, 13
//! to hold it longer, 14 to remove leftovers, 15 whether names are refused that are taken; 16 and 17 are the size again, by a ca-file or a
//! file of credentials, which is all that comes then. Else there comes one answer for
//! each request, while there are any; behind them the connection is closed. An answer is a byte, and: where it is
//! odd, bytes as they are behind their length; else two bytes of status, and headers and body behind their lengths. The
//! byte says too: 2 there is no Content-Length, 4 it is wrong by what one byte says, 8 the body comes again and again,
//! for so many MiB as one byte says; 16 the connection is kept.
//!
//! No object is missing unless the server says so, nothing comes that wasn't asked for, and whatever comes is bounded.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use pgkeep::storage::{
    ErrorKind, Listed, ObjectName, Range, Result, Storage,
    s3::{S3, S3Settings},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{input::Input, place::wait};

/// The secret key of the credentials.
const SECRET: &str = "s3cr3t-0f-n0b0dy";

const MIB: usize = 1 << 20;

/// The most of an answer's body that comes, in MiB: more than an input may take of memory.
const LONGEST: u8 = 200;

/// What the server says to a request.
struct Answer {
    bytes: Vec<u8>,
    /// What comes behind it, and how often.
    again: (Vec<u8>, usize),
    keeps: bool,
}

fn answer(input: &mut Input<'_>) -> Answer {
    let how = input.byte();
    let keeps = how & 16 == 16;
    if how & 1 == 1 {
        return Answer { bytes: input.piece().to_vec(), again: (Vec::new(), 0), keeps };
    }
    let (status, headers, body) = (input.short(), input.piece(), input.piece());
    let wrong = if how & 4 == 4 { i64::from(input.byte() as i8) } else { 0 };
    let (again, times) = match how & 8 {
        8 if !body.is_empty() => {
            let pieces = (64 << 10) / body.len().max(1) + 1;
            let again = body.repeat(pieces);
            let times = usize::from(input.byte().min(LONGEST)) * MIB / again.len();
            (again, times)
        }
        _ => (Vec::new(), 0),
    };
    let mut bytes = format!("HTTP/1.1 {} Said\r\n", 100 + status % 500).into_bytes();
    bytes.extend_from_slice(headers);
    if how & 2 == 0 {
        let len = (body.len() + again.len() * times) as i64 + wrong;
        bytes.extend_from_slice(format!("Content-Length: {len}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    Answer { bytes, again: (again, times), keeps }
}

/// Reads one request, with its body; `None` when there is none any more.
async fn request(socket: &mut TcpStream) -> Option<()> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    assert!(!head.contains(SECRET), "the secret key is sent");
    let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let len: usize = len.map_or(0, |len| len.trim().parse().unwrap_or(0));
    let mut left = (end + len).saturating_sub(read.len());
    let mut rest = vec![0; 64 << 10];
    while left > 0 {
        match socket.read(&mut rest).await.ok()? {
            0 => return None,
            n => left = left.saturating_sub(n),
        }
    }
    Some(())
}

async fn serve(mut socket: TcpStream, answers: Arc<Mutex<VecDeque<Answer>>>) {
    while request(&mut socket).await.is_some() {
        let next = answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(Answer { bytes, again: (again, times), keeps }) = next else { return };
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
        for _ in 0..times {
            if socket.write_all(&again).await.is_err() {
                return;
            }
        }
        if !keeps {
            let _ = socket.shutdown().await;
            return;
        }
    }
}

async fn listen(listener: TcpListener, answers: Arc<Mutex<VecDeque<Answer>>>) {
    let mut serving = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        serving.spawn(serve(socket, answers.clone()));
    }
}

fn name() -> ObjectName {
    ObjectName::new("clusters/main/leases/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a").expect("a name")
}

/// A file that nobody else may read.
fn private(path: PathBuf, content: &[u8]) -> PathBuf {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::write(&path, content)
        .and_then(|()| std::fs::set_permissions(&path, mode))
        .expect("a file");
    path
}

fn credentials() -> PathBuf {
    static FOLDER: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("credentials");
        let text = format!("[default]\naws_access_key_id = me\naws_secret_access_key = {SECRET}\n");
        let path = private(path, text.as_bytes());
        (folder, path)
    });
    path.clone()
}

fn listed(found: &[Listed], prefix: &str, after: Option<&str>, limit: usize) {
    assert!(found.len() <= limit, "{} of at most {limit} objects", found.len());
    let names: Vec<&str> = found.iter().map(|object| object.name.as_str()).collect();
    assert!(names.windows(2).all(|two| two[0] < two[1]), "not in order: {names:?}");
    let fits = |name: &&str| name.starts_with(prefix) && after.is_none_or(|after| *name > after);
    assert!(names.iter().all(fits), "not what was asked for: {names:?}");
}

async fn ask(storage: &S3, what: u8) -> Result<()> {
    let name = name();
    match what {
        0 => drop(storage.read(&name, Range::All).await?),
        1 => {
            let bytes = storage.read(&name, Range::At { offset: 5, len: 10 }).await?;
            assert_eq!(bytes.len(), 10);
        }
        2 => {
            let fetched = storage.fetch(&name, Range::At { offset: 5, len: 1000 }).await?;
            let there = fetched.size.saturating_sub(5).min(1000);
            assert_eq!(fetched.bytes.len() as u64, there);
        }
        3 => {
            let fetched = storage.fetch(&name, Range::Last(100)).await?;
            assert_eq!(fetched.bytes.len() as u64, fetched.size.min(100));
        }
        4 | 16 | 17 => drop(storage.size(&name).await?),
        5 => listed(&storage.list("clusters/", None, 3).await?, "clusters/", None, 3),
        6 => {
            let after = Some("clusters/b");
            listed(&storage.list("clusters/", after, 5000).await?, "clusters/", after, 5000);
        }
        7 => {
            let found = storage.folders("clusters/main").await?;
            assert!(found.windows(2).all(|two| two[0] < two[1]), "not in order: {found:?}");
            let is_one = |name: &String| !name.contains('/') && name != "." && name != "..";
            assert!(found.iter().all(is_one), "not folders: {found:?}");
        }
        8 => {
            let mut writer = storage.create(&name).await?;
            writer.write(Bytes::from_static(b"content")).await?;
            writer.finish().await?;
        }
        9 => {
            let mut writer = storage.create(&name).await?;
            writer.write(vec![0; 9 << 20].into()).await?;
            writer.finish().await?;
        }
        10 => storage.delete(&name).await?,
        11 => storage.replace(&name, Bytes::from_static(b"content")).await?,
        12 => drop(storage.retained_until(&name).await?),
        13 => {
            let until = "2030-01-01T00:00:00Z".parse().expect("a time");
            storage.extend_retention(&name, until).await?;
        }
        14 => drop(storage.remove_leftovers("clusters/", Duration::from_secs(60)).await?),
        _ => drop(storage.create_only().await?),
    }
    Ok(())
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let what = input.byte() % 18;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("file");
    let file = if what >= 16 { Some(private(file, input.rest())) } else { None };
    let mut answers = VecDeque::new();
    while !input.is_empty() && answers.len() < 16 {
        answers.push_back(answer(&mut input));
    }
    let says =
        |answer: &Answer, word: &[u8]| answer.bytes.windows(word.len()).any(|part| part == word);
    let says_missing = answers.iter().any(|answer| says(answer, b"NoSuch"));
    let says_range = answers.iter().any(|answer| says(answer, b"5-14/"));
    let answers = Arc::new(Mutex::new(answers));
    let credentials_given = file.clone().unwrap_or_default();
    wait(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = tokio::spawn(listen(listener, answers));
        let storage = S3::new(S3Settings {
            // Of a certificate's file nothing is left to see once it was read: nobody listens there.
            endpoint: Some(match what {
                16 => "https://127.0.0.1:1".to_owned(),
                _ => format!("http://127.0.0.1:{port}"),
            }),
            region: Some("us-east-1".to_owned()),
            credentials_file: Some(if what == 17 { credentials_given } else { credentials() }),
            ca_file: file.filter(|_| what == 16),
            attempts: 2,
            first_pause: Duration::ZERO,
            // A request is given up after twice as long at the latest, and there may be two.
            stall: Duration::from_secs(1),
            ..S3Settings::new("bucket", "prefix")
        });
        let asked = tokio::time::timeout(Duration::from_secs(9), ask(&storage, what)).await;
        // It waits until what was begun is removed, which takes answers.
        let _ = tokio::task::spawn_blocking(move || drop(storage)).await;
        server.abort();
        let _ = server.await;
        let asked = asked.expect("an end comes when the server has gone");
        assert!(what != 1 || asked.is_err() || says_range, "another range was taken for it");
        if let Err(e) = asked {
            let shown = format!("{e} {:?}", e.hint);
            assert!(!shown.contains("s3cr3t"), "the secret key is shown");
            assert!(!shown.contains("a task died"), "{shown}");
            assert!(shown.len() < 4096, "an error of {} bytes", shown.len());
            assert!(e.kind != ErrorKind::NotFound || says_missing, "missing, and nobody said so");
        }
    });
}
