//! The two ways to write a connection string: `key=value` pairs and a URI (documentation,
//! "Connection Strings"; `fe-connect.c`).
//!
//! Errors never quote the text: a password with an unescaped character in it ends up in any part.

use super::ConnInfoError;

/// Keys with their values, in the order in which they were written.
pub(super) type Pairs = Vec<(String, String)>;

/// Reads a connection string of either form.
pub(super) fn parse(text: &str) -> Result<Pairs, ConnInfoError> {
    let uri_rest =
        ["postgresql://", "postgres://"].iter().find_map(|prefix| text.strip_prefix(prefix));
    match uri_rest {
        Some(rest) => uri(rest),
        None => key_values(text),
    }
}

fn key_values(text: &str) -> Result<Pairs, ConnInfoError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let key = &rest[..end];
        let Some(value) = rest[end..].trim_start().strip_prefix('=') else {
            let position = text.len() - rest.len() + 1;
            return Err(ConnInfoError::new(format!(
                "the connection string has no \"=\" after the word at character {position}"
            ))
            .hint("a value with spaces needs single quotes around it: key = 'a value'"));
        };
        if key.is_empty() {
            return Err(ConnInfoError::new("the connection string has \"=\" without a key"));
        }
        let (value, after) = value_of(value.trim_start(), key)?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// One value, quoted or not, and what follows it. A backslash takes the next character as it is.
fn value_of<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), ConnInfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    match quoted {
        true => Err(ConnInfoError::new(format!(
            "the value of {key} in the connection string has no closing quote"
        ))),
        false => Ok((value, "")),
    }
}

/// `[user[:password]@][host[:port]][,…][/dbname][?key=value[&…]]`, each part percent-encoded.
fn uri(text: &str) -> Result<Pairs, ConnInfoError> {
    let mut pairs = Vec::new();
    let mut rest = text;
    if let Some(at) = text.find(['@', '/']).filter(|&at| text[at..].starts_with('@')) {
        let credentials = &text[..at];
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        push_decoded(&mut pairs, "user", user)?;
        if let Some(password) = password {
            push_decoded(&mut pairs, "password", password)?;
        }
        rest = &text[at + 1..];
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    hosts(&rest[..end], &mut pairs)?;
    rest = &rest[end..];
    if let Some(path) = rest.strip_prefix('/') {
        let end = path.find('?').unwrap_or(path.len());
        if path[..end].contains('@') {
            return Err(stray_character());
        }
        push_decoded(&mut pairs, "dbname", &path[..end])?;
        rest = &path[end..];
    }
    let Some(parameters) = rest.strip_prefix('?') else { return Ok(pairs) };
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(ConnInfoError::new("a parameter of the connection URI has no \"=\""));
        };
        if value.contains('=') {
            return Err(ConnInfoError::new(
                "a parameter of the connection URI has more than one \"=\"",
            )
            .hint("write %3D for an equals sign in a value"));
        }
        let (key, value) = (decode(key)?, decode(value)?);
        match (key.as_str(), value.as_str()) {
            // The JDBC driver's spelling, which libpq takes too.
            ("ssl", "true") => pairs.push(("sslmode".to_owned(), "require".to_owned())),
            _ => pairs.push((key, value)),
        }
    }
    Ok(pairs)
}

/// `host[:port],…`; a host may be an IPv6 address in brackets.
fn hosts(text: &str, pairs: &mut Pairs) -> Result<(), ConnInfoError> {
    if text.contains('@') {
        return Err(stray_character());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in text.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let Some((address, port)) = rest.split_once(']') else {
                    return Err(ConnInfoError::new(
                        "an IPv6 address in the connection URI has no closing \"]\"",
                    ));
                };
                if address.is_empty() || !(port.is_empty() || port.starts_with(':')) {
                    return Err(ConnInfoError::new(
                        "an IPv6 address in the connection URI is empty or followed by a stray \
                         character",
                    ));
                }
                (address, port.strip_prefix(':'))
            }
            None => match host.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (host, None),
            },
        };
        names.push(decode(name)?);
        ports.push(decode(port.unwrap_or(""))?);
    }
    if names.iter().any(|name| !name.is_empty()) {
        pairs.push(("host".to_owned(), names.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        if ports.iter().any(|p| !p.is_empty() && p.parse::<u16>().is_err()) {
            return Err(ConnInfoError::new("a port in the connection URI isn't a number")
                .hint("a slash or colon in a user name or password is written %2F or %3A"));
        }
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

fn push_decoded(pairs: &mut Pairs, key: &str, text: &str) -> Result<(), ConnInfoError> {
    if !text.is_empty() {
        pairs.push((key.to_owned(), decode(text)?));
    }
    Ok(())
}

fn stray_character() -> ConnInfoError {
    ConnInfoError::new("the connection URI has a stray \"@\"")
        .hint("in a user name or password, write %40 for @, %2F for /, %3A for : and %25 for %")
}

/// Undoes percent-encoding. `%00` is refused.
fn decode(text: &str) -> Result<String, ConnInfoError> {
    let refused = || {
        ConnInfoError::new("the connection URI has a percent sign that encodes no character")
            .hint("write %25 for a percent sign")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) if high + low > 0 => bytes.push((high << 4 | low) as u8),
            _ => return Err(refused()),
        }
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn key_values_may_be_quoted_and_spaced() {
        let text = r" host = localhost port=5433 password='it\'s \\ here' options='' user=a\ b ";
        let expected = [
            ("host", "localhost"),
            ("port", "5433"),
            ("password", r"it's \ here"),
            ("options", ""),
            ("user", "a b"),
        ];
        assert_eq!(read(text), pairs(&expected));
        assert_eq!(read(""), []);
        assert_eq!(read("a='x'b=y"), pairs(&[("a", "x"), ("b", "y")]), "as libpq reads it");
        assert_eq!(read("a= b=c"), pairs(&[("a", "b=c")]), "as libpq reads it");
    }

    #[test]
    fn faults_are_told_without_the_text() {
        for bad in [
            "password=my secret",
            "password='secret",
            "=secret",
            "postgresql://u:p%secret@h",
            "postgresql://u:p%00secret@h",
            "postgresql://u:secret@secret@h/db",
            "postgresql://u:secret/secret@h/db",
            "postgresql://u:p@h:secret/db",
            "postgresql://[::1/secret",
            "postgresql://[::1]secret/db",
            "postgresql://h/db?secret",
            "postgresql://h/db?a=secret=b",
        ] {
            let error = parse(bad).map(drop).expect_err(bad);
            assert!(!format!("{error} {error:?}").contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn uris_have_all_their_parts() {
        assert_eq!(
            read("postgresql://me:p%40ss%2F@db.example:5433/app?sslmode=require&ssl=true"),
            pairs(&[
                ("user", "me"),
                ("password", "p@ss/"),
                ("host", "db.example"),
                ("port", "5433"),
                ("dbname", "app"),
                ("sslmode", "require"),
                ("sslmode", "require"),
            ])
        );
        assert_eq!(
            read("postgres://a,[::1]:5433,c:5434"),
            pairs(&[("host", "a,::1,c"), ("port", ",5433,5434")])
        );
        assert_eq!(read("postgresql://"), []);
        assert_eq!(
            read("postgresql:///app?host=/tmp"),
            pairs(&[("dbname", "app"), ("host", "/tmp")])
        );
        assert_eq!(read("postgresql://%2Ftmp/"), pairs(&[("host", "/tmp")]));
        assert_eq!(read("postgresql://me@"), pairs(&[("user", "me")]));
    }
}
