//! Password files, as a server that asks for a password in clear text gets to see what is found in them.
//!
//! The first byte says: 1 others may read the file, 2 it is a session of SQL and not of replication. Then come two
//! bytes of port, user and database, each behind its length of two bytes, and the file, in which `HOST` stands for the
//! host. What is sent has to be what libpq would send, whose way of reading (`passwordFromFile` in
//! `fe-connect.c`) is written down here once more; and nothing of the file is shown.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use pgkeep::postgres::client::{Client, ConnInfo, Environment, Mode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::{input::Input, place::wait};

/// What shows that a message has a password in it.
const SECRET: &str = "s3cr3t";

/// What follows a line's first field, if that is `*` or says `wanted`.
fn behind<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (mut at, mut token) = (0, wanted.iter());
    loop {
        match *line.get(at)? {
            b':' if token.as_slice().is_empty() => return Some(&line[at + 1..]),
            b'\\' => at += 1,
            _ => {}
        }
        if token.next()? != line.get(at)? {
            return None;
        }
        at += 1;
    }
}

/// The password of the first line that fits.
fn of_libpq(file: &[u8], fields: [&str; 4]) -> Option<Vec<u8>> {
    file.split(|b| *b == b'\n').find_map(|line| {
        let end = line.iter().rposition(|b| *b != b'\r').map_or(0, |at| at + 1);
        let line = &line[..end];
        // No password that isn't UTF-8 is sent.
        if line.first() == Some(&b'#') || std::str::from_utf8(line).is_err() {
            return None;
        }
        let rest = fields.iter().try_fold(line, |rest, field| behind(rest, field.as_bytes()))?;
        let (mut password, mut rest) = (Vec::new(), rest.iter().peekable());
        while let Some(&byte) = rest.next_if(|b| **b != b':') {
            let escaped = if byte == b'\\' { rest.next() } else { None };
            password.push(*escaped.unwrap_or(&byte));
        }
        Some(password)
    })
}

/// Asks one client for its password, and says what it sent.
async fn ask(listener: UnixListener) -> Option<Vec<u8>> {
    let (mut socket, _) = listener.accept().await.ok()?;
    let len = socket.read_u32().await.ok()?;
    let mut startup = vec![0; (len as usize).saturating_sub(4).min(1 << 16)];
    socket.read_exact(&mut startup).await.ok()?;
    socket.write_all(b"R\0\0\0\x08\0\0\0\x03").await.ok()?;
    if socket.read_u8().await.ok()? != b'p' {
        return None;
    }
    let len = socket.read_u32().await.ok()?;
    let mut sent = vec![0; (len as usize).saturating_sub(4).min(1 << 16)];
    socket.read_exact(&mut sent).await.ok()?;
    assert_eq!(sent.pop(), Some(0), "a password ends with a zero");
    Some(sent)
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn asked(text: &str, mode: Mode, socket: &Path) -> (Option<Vec<u8>>, String) {
    let environment = Environment::new(&[], None, Some("me"));
    let info = ConnInfo::parse_in(text, &environment).expect("a connection string");
    wait(async {
        let listener = UnixListener::bind(socket).expect("a socket");
        let server = tokio::spawn(ask(listener));
        let connected = Client::connect(&info, mode);
        let refused = tokio::time::timeout(Duration::from_secs(10), connected).await;
        let refused = refused.expect("an end comes when the server has gone").err();
        let refused = refused.expect("no server says that all is well");
        let shown = format!("{refused} {refused:?} {:?}", refused.hint());
        server.abort();
        (server.await.ok().flatten(), shown)
    })
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let port = input.short().max(1);
    let (user, database) = (input.piece(), input.piece());
    let (Ok(user), Ok(database)) = (std::str::from_utf8(user), std::str::from_utf8(database))
    else {
        return;
    };
    let file = input.rest();
    // libpq reads texts that a zero ends, and takes an empty setting for none.
    let has_zero = [user.as_bytes(), database.as_bytes(), file].concat().contains(&0);
    if has_zero
        || user.is_empty()
        || database.is_empty()
        || [user, database].concat().contains(SECRET)
    {
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let host = folder.path().to_str().expect("UTF-8");
    let mut written = Vec::with_capacity(file.len());
    let mut rest = file;
    while let Some(at) = rest.windows(4).position(|part| part == b"HOST") {
        written.extend_from_slice(&rest[..at]);
        written.extend_from_slice(host.as_bytes());
        rest = &rest[at + 4..];
    }
    written.extend_from_slice(rest);
    let path = folder.path().join("pgpass");
    let mode = if how & 1 == 1 { 0o640 } else { 0o600 };
    fs::write(&path, &written)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
        .expect("a file");
    let text = format!(
        "host={host} port={port} user={} dbname={} passfile={} connect_timeout=5",
        quoted(user),
        quoted(database),
        path.display()
    );
    let (mode, wanted) = match how & 2 {
        0 => (Mode::Replication, "replication"),
        _ => (Mode::Sql, database),
    };
    let socket = folder.path().join(format!(".s.PGSQL.{port}"));
    let (sent, shown) = asked(&text, mode, &socket);
    let fields = [host, &port.to_string(), wanted, user];
    // An empty password is none.
    let expected = of_libpq(&written, fields).filter(|password| !password.is_empty());
    assert_eq!(sent, expected.filter(|_| how & 1 == 0), "not what libpq sends");
    assert!(!shown.contains(SECRET), "a password is shown: {shown}");
}
