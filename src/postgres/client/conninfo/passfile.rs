//! The password file (documentation, "The Password File"): `host:port:database:user:password` lines.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use zeroize::Zeroizing;

use super::Secret;

/// What the password file says.
#[derive(Debug)]
pub(in crate::postgres::client) struct Answer {
    /// The password of the first line that fits.
    pub(in crate::postgres::client) password: Option<Secret>,
    /// Why the file was ignored, to be told if the password turns out to be needed.
    pub(in crate::postgres::client) problem: Option<String>,
}

/// Whom a password is wanted for.
#[derive(Debug, Clone, Copy)]
pub(in crate::postgres::client) struct Wanted<'a> {
    /// As it was given; `localhost` for the default socket directory.
    pub(in crate::postgres::client) host: &'a str,
    pub(in crate::postgres::client) port: u16,
    /// `replication` for a replication connection.
    pub(in crate::postgres::client) database: &'a str,
    pub(in crate::postgres::client) user: &'a str,
}

/// Looks a password up. A file that others may read is ignored, as libpq does it.
pub(in crate::postgres::client) fn look_up(path: &Path, wanted: Wanted<'_>) -> Answer {
    let ignored = |why: String| Answer {
        password: None,
        problem: Some(format!("the password file {} {why}", path.display())),
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Answer { password: None, problem: None };
        }
        Err(e) => return ignored(format!("can't be read: {e}")),
    };
    if !metadata.is_file() {
        return ignored("is not a plain file".to_owned());
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return ignored(format!(
            "is ignored because others may read it (mode {mode:04o}): make it 0600"
        ));
    }
    match fs::read(path).map(Zeroizing::new) {
        Ok(contents) => Answer { password: find(&contents, wanted), problem: None },
        Err(e) => ignored(format!("can't be read: {e}")),
    }
}

/// The first line that fits counts, as in libpq (`passwordFromFile` in `fe-connect.c`): also if it has no
/// password, and up to the next colon only.
fn find(contents: &[u8], wanted: Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.database, wanted.user];
    let password = contents.split(|&b| b == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let line = line.trim_end_matches('\r');
        if line.starts_with('#') {
            return None;
        }
        let mut rest = line;
        for field in fields {
            rest = field_matches(rest, field)?;
        }
        Some(unescaped(rest.get(..field_end(rest)).unwrap_or(rest)))
    })?;
    (!password.is_empty()).then(|| Secret::new(password))
}

/// Where the first field of `text` ends: at a colon without a backslash before it, or with the text.
fn field_end(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|b| match b {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        b => b == b':',
    });
    end.unwrap_or(text.len())
}

/// What follows the first field of `line`, if that field is `*` or says `wanted`.
fn field_matches<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    let (field, rest) = line.split_at_checked(field_end(line))?;
    let rest = rest.strip_prefix(':')?;
    (field == "*" || unescaped(field) == wanted).then_some(rest)
}

/// `text` with each backslash taken away that stands before a character.
fn unescaped(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(c) = characters.next() {
        match c {
            '\\' => plain.push(characters.next().unwrap_or('\\')),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "#h:5432:db:u:comment\nh:5432:db:u:first\n*:*:*:u:any\n\
        a\\:b:*:db:u\\\\v:with\\:colon\\\\\r\nlocalhost:*:replication:r:rep:more\nh:*:db:none:\n\
        h:*:db:none:later\n";

    fn password(host: &str, database: &str, user: &str) -> Option<String> {
        let wanted = Wanted { host, port: 5432, database, user };
        find(FILE.as_bytes(), wanted).map(|s| s.reveal().to_owned())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        assert_eq!(password("h", "db", "u").as_deref(), Some("first"));
        assert_eq!(password("other", "db", "u").as_deref(), Some("any"));
        assert_eq!(password("a:b", "db", "u\\v").as_deref(), Some("with:colon\\"));
        assert_eq!(password("localhost", "replication", "r").as_deref(), Some("rep"));
        assert_eq!(password("localhost", "db", "r"), None);
        assert_eq!(password("h", "db", "none"), None, "its line has no password");
    }

    #[test]
    fn a_file_that_others_may_read_is_ignored_and_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        let wanted = Wanted { host: "h", port: 5432, database: "db", user: "u" };
        let absent = look_up(&path, wanted);
        assert!(absent.password.is_none() && absent.problem.is_none());
        fs::write(&path, FILE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let open = look_up(&path, wanted);
        assert!(open.password.is_none());
        assert!(open.problem.unwrap().contains("0640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let answer = look_up(&path, wanted);
        assert_eq!(answer.password.as_ref().map(Secret::reveal), Some("first"));
        assert!(!format!("{answer:?}").contains("first"));
    }
}
