//! Messages of the server, read from their bytes (documentation, "Message Formats").
//!
//! Everything is checked: the bytes come from the network, before the server is known to be the
//! right one.

use bytes::{Buf, Bytes, BytesMut};

use super::error::{PgError, ServerError};

/// A message from the server.
#[derive(Debug)]
pub(in crate::postgres) enum Message {
    /// A request to authenticate, or that it is done: its kind, and what belongs to it.
    Authentication(u32, Bytes),
    /// Process id and secret key, for cancelling: not used.
    BackendKeyData,
    ParameterStatus(String, String),
    ReadyForQuery,
    Error(ServerError),
    Notice(ServerError),
    Notification,
    /// Names of the columns of the rows that follow.
    RowDescription(Vec<String>),
    DataRow(Vec<Option<Bytes>>),
    /// The command's tag.
    CommandComplete(String),
    EmptyQuery,
    /// The server waits for data.
    CopyIn,
    CopyOut,
    /// Data goes both ways from here on.
    CopyBoth,
    CopyData(Bytes),
    CopyDone,
    /// Anything else, by its tag.
    Other(u8),
}

/// The longest message that is taken: far above what a server sends, far below what hurts.
const MAX_LENGTH: usize = 64 << 20;

/// The longest message before authentication is done, as in libpq.
pub(super) const MAX_STARTUP_LENGTH: usize = 30_000;

/// Takes one message off the front of `input`, if all of it is there.
pub(super) fn take(
    input: &mut BytesMut,
    max_length: Option<usize>,
) -> Result<Option<Message>, PgError> {
    let Some((&[tag, a, b, c, d], _)) = input.split_first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length < 4 || length > max_length.unwrap_or(MAX_LENGTH) {
        return Err(PgError::protocol(format!(
            "a message of type {:?} says that it is {length} bytes long",
            char::from(tag)
        )));
    }
    if input.len() <= length {
        return Ok(None);
    }
    let mut body = input.split_to(length + 1).freeze();
    body.advance(5);
    parse(tag, body).map(Some)
}

fn parse(tag: u8, mut body: Bytes) -> Result<Message, PgError> {
    Ok(match tag {
        b'd' => Message::CopyData(body),
        b'R' => Message::Authentication(body.try_get_u32().map_err(|_| short())?, body),
        b'K' => Message::BackendKeyData,
        b'S' => Message::ParameterStatus(text(&mut body)?, text(&mut body)?),
        b'Z' => Message::ReadyForQuery,
        b'E' => Message::Error(fields(body)?),
        b'N' => Message::Notice(fields(body)?),
        b'A' => Message::Notification,
        b'T' => Message::RowDescription(columns(body)?),
        b'D' => Message::DataRow(values(body)?),
        b'C' => Message::CommandComplete(text(&mut body)?),
        b'I' => Message::EmptyQuery,
        b'G' => Message::CopyIn,
        b'H' => Message::CopyOut,
        b'W' => Message::CopyBoth,
        b'c' => Message::CopyDone,
        other => Message::Other(other),
    })
}

fn short() -> PgError {
    PgError::protocol("a message ends too early")
}

/// The bytes up to the next NUL, which is skipped.
pub(in crate::postgres) fn bytes_to_nul(body: &mut Bytes) -> Result<Bytes, PgError> {
    let end = body.iter().position(|&b| b == 0).ok_or_else(short)?;
    let bytes = body.split_to(end);
    body.advance(1);
    Ok(bytes)
}

/// Text up to the next NUL. A server may speak another encoding before it knows ours.
fn text(body: &mut Bytes) -> Result<String, PgError> {
    bytes_to_nul(body).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn fields(mut body: Bytes) -> Result<ServerError, PgError> {
    let mut error = ServerError::default();
    loop {
        let kind = body.try_get_u8().map_err(|_| short())?;
        if kind == 0 {
            return Ok(error);
        }
        let value = text(&mut body)?;
        match kind {
            b'V' => error.severity = value,
            // The translated severity, in case the other one isn't sent.
            b'S' if error.severity.is_empty() => error.severity = value,
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
}

fn columns(mut body: Bytes) -> Result<Vec<String>, PgError> {
    let count = body.try_get_u16().map_err(|_| short())?;
    (0..count)
        .map(|_| {
            let name = text(&mut body)?;
            // Table, column number, type, its size and modifier, format.
            const REST: usize = 4 + 2 + 4 + 2 + 4 + 2;
            if body.len() < REST {
                return Err(short());
            }
            body.advance(REST);
            Ok(name)
        })
        .collect()
}

fn values(mut body: Bytes) -> Result<Vec<Option<Bytes>>, PgError> {
    let count = body.try_get_u16().map_err(|_| short())?;
    (0..count)
        .map(|_| {
            let length = body.try_get_i32().map_err(|_| short())?;
            match usize::try_from(length) {
                Err(_) => Ok(None),
                Ok(length) if length <= body.len() => Ok(Some(body.split_to(length))),
                Ok(_) => Err(short()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::from(&[tag][..]);
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_message_is_taken_only_whole() {
        let whole = message(b'C', b"SELECT 1\0");
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert!(matches!(take(&mut part, None), Ok(None)), "{cut}");
            assert_eq!(part.len(), cut, "nothing is lost");
        }
        let mut two = whole.clone();
        two.extend_from_slice(&message(b'Z', b"I"));
        assert!(
            matches!(take(&mut two, None), Ok(Some(Message::CommandComplete(t))) if t == "SELECT 1")
        );
        assert!(matches!(take(&mut two, None), Ok(Some(Message::ReadyForQuery))));
        assert!(two.is_empty());
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        for (tag, body) in [
            (b'E', &b"Mno end"[..]),
            (b'E', b"Mtext\0"),
            (b'T', b"\0\x01name\0\0\0"),
            (b'T', b"\0\x02"),
            (b'D', b"\0\x01\0\0\0\x09abc"),
            (b'D', b"\0"),
            (b'S', b"one\0two"),
            (b'R', b"\0"),
            (b'C', b"no end"),
        ] {
            assert!(take(&mut message(tag, body), None).is_err(), "{}", char::from(tag));
        }
        for length in [0u32, 3, u32::MAX, (MAX_LENGTH + 1) as u32] {
            let mut bytes = BytesMut::from(&b"d"[..]);
            bytes.extend_from_slice(&length.to_be_bytes());
            assert!(take(&mut bytes, None).is_err(), "{length}");
        }
        assert!(take(&mut message(b'R', &[0; 40_000]), Some(MAX_STARTUP_LENGTH)).is_err());
    }

    #[test]
    fn errors_keep_the_servers_words() {
        let body = b"SFEHLER\0VERROR\0C58P01\0Mno such file\0DIt is gone.\0HLook.\0Ffile.c\0\0";
        let Ok(Some(Message::Error(error))) = take(&mut message(b'E', body), None) else {
            panic!("not an error")
        };
        assert_eq!(error.to_string(), "ERROR: no such file: It is gone (SQLSTATE 58P01)");
        assert_eq!(PgError::from(error).hint(), Some("Look."));
    }

    #[test]
    fn rows_tell_null_from_empty() {
        let body = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0";
        let Ok(Some(Message::DataRow(values))) = take(&mut message(b'D', body), None) else {
            panic!("not a row")
        };
        assert_eq!(values, [Some(Bytes::from("a")), None, Some(Bytes::new())]);
    }
}
