//! The configuration file: TOML into keys with their lines.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    keys::Scope,
    source::{Entry, Nested, Origin, Raw, Section, Value},
};
use crate::error::{Context, Error, Kind, Result};

/// Where the file is when neither `--config` nor `PGKEEP_CONFIG` says it.
pub const DEFAULT_PATH: &str = "/etc/pgkeep/pgkeep.toml";

/// The environment variable with the file's path.
pub const PATH_VARIABLE: &str = "PGKEEP_CONFIG";

/// A configuration file that was read.
pub(super) struct ConfigFile {
    pub path: PathBuf,
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

impl ConfigFile {
    /// Reads the file. `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let what = || format!("read the configuration file {}", path.display());
        let mut file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.context(Kind::Usage, what).map_err(|e| e.if_denied(path))?,
        };
        let mode = file.metadata().context(Kind::Usage, what)?.mode();
        let mut text = String::new();
        file.read_to_string(&mut text).context(Kind::Usage, what)?;
        Ok(Some(ConfigFile { path: path.to_owned(), text, mode }))
    }

    /// The keys it sets.
    pub fn parse(&self) -> Result<Raw> {
        let reader = Reader { path: self.path.as_path().into(), text: &self.text };
        // The error's own text would repeat the line, and a password with it.
        let table = DeTable::parse(&self.text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start);
            let (line, column) = reader.position(start);
            if let Some(key) = key_of_bare_text(&self.text, start) {
                let message = format!(
                    "{}, line {line}: the value of {key} is a text without quotes",
                    self.path.display()
                );
                return Error::new(Kind::Usage, message)
                    .hint(format!("a text is in quotes: {key} = \"…\""));
            }
            let message =
                format!("{}, line {line}, column {column}: {}", self.path.display(), e.message());
            let word = e.span().and_then(|span| self.text.get(span)).filter(|w| is_bare_key(w));
            Error::new(
                Kind::Usage,
                match word.filter(|_| e.message().contains("duplicate key")) {
                    Some(word) => format!("{message} {word}"),
                    None => message,
                },
            )
            .hint(
                "the file is TOML: key = \"text in quotes\" or a number, tables as [cluster.main]",
            )
        })?;
        reader.document(table.get_ref())
    }
}

/// The key of the line that byte `at` is on, if its value is none in TOML for want of quotes. The
/// parser's own words for that are about booleans.
fn key_of_bare_text(text: &str, at: usize) -> Option<&str> {
    let begin = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let (key, value) = text.get(begin..)?.lines().next()?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim_start());
    let is_text = value.starts_with(|c: char| c.is_alphabetic() || "/~.".contains(c))
        || (value.starts_with(|c: char| c.is_ascii_digit()) && value.contains(char::is_alphabetic));
    (is_bare_key(key) && is_text).then_some(key)
}

fn is_bare_key(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

struct Reader<'a> {
    path: Arc<Path>,
    text: &'a str,
}

type Pair<'t, 'i> = (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>);

impl Reader<'_> {
    /// Line and column of a byte, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
    }

    fn origin(&self, key: &Spanned<DeString<'_>>) -> Origin {
        Origin::File { path: self.path.clone(), line: self.position(key.span().start).0 }
    }

    fn document(&self, table: &DeTable<'_>) -> Result<Raw> {
        let mut raw = Raw::default();
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            match name {
                "repository" => self.sections(Scope::Repository, key, value, &mut raw)?,
                "cluster" => self.sections(Scope::Cluster, key, value, &mut raw)?,
                "drill" => self.drill(key, value, &mut raw)?,
                _ => raw.set(self.entry(Scope::Top, name.to_owned(), key, value)?),
            }
        }
        Ok(raw)
    }

    /// `[drill]`, which has no name.
    fn drill(
        &self,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        raw: &mut Raw,
    ) -> Result<()> {
        let Some(table) = value.get_ref().as_table() else {
            let message = format!("drill ({}): it has to be a table", self.origin(key));
            return Err(Error::new(Kind::Usage, message).hint("write it as [drill]"));
        };
        for (key, value) in in_order(table) {
            raw.set(self.entry(Scope::Drill, format!("drill.{}", key.get_ref()), key, value)?);
        }
        Ok(())
    }

    /// `[repository.NAME]` or `[cluster.NAME]`, in the order in which they stand in the file.
    fn sections(
        &self,
        scope: Scope,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        raw: &mut Raw,
    ) -> Result<()> {
        let word = key.get_ref();
        let not_a_table = |path: &str, key| {
            let message = format!("{path} ({}): it has to be a table", self.origin(key));
            Error::new(Kind::Usage, message).hint(format!("write it as [{word}.main]"))
        };
        let tables = value.get_ref().as_table().ok_or_else(|| not_a_table(word, key))?;
        for (name_key, value) in in_order(tables) {
            let name = name_key.get_ref();
            let origin = self.origin(name_key);
            let path = format!("{word}.{name}");
            let Some(table) = value.get_ref().as_table() else {
                // [repository] url = "…" instead of [repository.main].
                return Err(match scope.key(name) {
                    Some(_) => {
                        let message =
                            format!("{path} ({origin}): the name of the {word} is missing");
                        Error::new(Kind::Usage, message)
                            .hint(format!("put {name} into a table as [{word}.main]"))
                    }
                    None => not_a_table(&path, name_key),
                });
            };
            let section = raw.section(scope, name, &origin)?;
            self.entries(scope, &path, table, section)?;
        }
        Ok(())
    }

    /// The keys of a table, and of the tables in it.
    fn entries(
        &self,
        scope: Scope,
        path: &str,
        table: &DeTable<'_>,
        section: &mut Section,
    ) -> Result<()> {
        for (key, value) in in_order(table) {
            let path = format!("{path}.{}", key.get_ref());
            match (scope.within(key.get_ref()), value.get_ref().as_table()) {
                (Some(within), Some(table)) => self.entries(within, &path, table, section)?,
                (Some(_), None) => {
                    let message = format!("{path} ({}): it has to be a table", self.origin(key));
                    return Err(
                        Error::new(Kind::Usage, message).hint(format!("write it as [{path}]"))
                    );
                }
                (None, _) => section.set(self.entry(scope, path, key, value)?),
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        scope: Scope,
        path: String,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Entry> {
        let origin = self.origin(key);
        let known = scope.key(key.get_ref()).ok_or_else(|| {
            Error::new(Kind::Usage, format!("unknown key {path} ({origin})")).hint(scope.takes())
        })?;
        let value = match (known.is_structured(), self.value(value.get_ref())) {
            (false, Value::List(_)) => Value::Other("array"),
            (false, Value::Table(_)) => Value::Other("table"),
            (_, value) => value,
        };
        Ok(Entry { path, key: known, value, origin })
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        let nested = |value: &Spanned<DeValue<'_>>| Nested {
            line: self.position(value.span().start).0,
            value: self.value(value.get_ref()),
        };
        match value {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("integer"), Value::Number),
            DeValue::Boolean(truth) => Value::Truth(*truth),
            DeValue::Array(values) => Value::List(values.iter().map(nested).collect()),
            DeValue::Table(table) => {
                let pairs = in_order(table).into_iter();
                Value::Table(
                    pairs.map(|(key, v)| (key.get_ref().clone().into_owned(), nested(v))).collect(),
                )
            }
            other => Value::Other(other.type_str()),
        }
    }
}

/// Reads a value alone, as the environment has one.
pub(super) fn value(text: &str) -> Option<Value> {
    let reader = Reader { path: Path::new("").into(), text };
    DeValue::parse(text).ok().map(|value| reader.value(value.get_ref()))
}

/// A table's pairs in the order of the file, which decides the order of the repositories.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<Pair<'t, 'i>> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}
