//! Quoting for SQL and for replication commands.

/// `text` as an SQL string, with quotes. A backslash makes it an `E''` string, so that it means the
/// same whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match text.contains('\\') {
        true => format!(" E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }
}

/// `name` as an SQL identifier, with quotes.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string of a replication command: its scanner (`repl_scanner.l`) knows doubled quotes
/// and no backslashes.
pub(in crate::postgres) fn quote_replication(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_survive() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\b'c"), r" E'a\\b''c'");
        assert_eq!(quote_ident(r#"a"b"#), r#""a""b""#);
        assert_eq!(quote_replication(r"it's \ here"), r"'it''s \ here'");
    }
}
