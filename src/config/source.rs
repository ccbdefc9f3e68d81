//! What the file and the environment say, before it is understood: which keys are set, to what,
//! and where that is written.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use super::keys::{Key, Scope};
use crate::error::{Error, Kind};

/// Where a key was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    File {
        path: Arc<Path>,
        line: usize,
    },
    Environment(String),
    /// Nowhere: a cluster that is there by default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Origin::Environment(variable) => f.write_str(variable),
            Origin::Default => f.write_str("by default"),
        }
    }
}

/// What a key was set to. Everything in the environment is a text.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Truth(bool),
    List(Vec<Nested>),
    Table(Vec<(String, Nested)>),
    /// Of a type that no key takes: its name in TOML.
    Other(&'static str),
}

/// A value within a list or a table.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Nested {
    /// The line it is on in the file; of no meaning in the environment.
    pub line: usize,
    pub value: Value,
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "string",
            Value::Number(_) => "integer",
            Value::Truth(_) => "boolean",
            Value::List(_) => "array",
            Value::Table(_) => "table",
            Value::Other(kind) => kind,
        }
    }
}

/// A key that was set.
#[derive(Clone)]
pub(super) struct Entry {
    /// The whole path, as in `cluster.main.pgdata`.
    pub path: String,
    pub key: &'static Key,
    pub value: Value,
    pub origin: Origin,
}

impl Entry {
    /// The error for a value that can't be: `path (origin): why`, and what the key takes. `why`
    /// must not repeat what may hold a secret.
    pub fn refuse(&self, why: impl fmt::Display) -> Error {
        Error::new(Kind::Usage, format!("{} ({}): {why}", self.path, self.origin))
            .hint(format!("{} takes {}", self.key.name, self.key.takes))
    }

    /// As [`Entry::refuse`], for a value within it: `path` goes on the entry's own, as in
    /// `[2].sql`.
    pub fn refuse_within(&self, path: &str, line: usize, why: impl fmt::Display) -> Error {
        let origin = match &self.origin {
            Origin::File { path, .. } => Origin::File { path: path.clone(), line },
            other => other.clone(),
        };
        Entry { path: format!("{}{path}", self.path), origin, ..self.clone() }.refuse(why)
    }

    /// The value as text.
    pub fn text(&self) -> Result<&str, Error> {
        match &self.value {
            Value::Text(text) if text.is_empty() => Err(self.refuse("it is empty")),
            Value::Text(text) if text.contains('\0') => Err(self.refuse("it has a zero byte")),
            Value::Text(text) => Ok(text),
            Value::Number(_) => Err(self.refuse("a number where a text in quotes is expected")),
            Value::Truth(_) => Err(self.refuse("true or false where a text is expected")),
            other => {
                let kind = other.kind();
                Err(self.refuse(format!("a value of type {kind} where a text is expected")))
            }
        }
    }

    /// The value as a number between two bounds, both included.
    pub fn number(&self, least: i64, most: i64) -> Result<i64, Error> {
        let number = match (&self.value, &self.origin) {
            (Value::Number(number), _) => *number,
            (Value::Text(text), Origin::Environment(_)) => {
                text.parse().map_err(|_| self.refuse(format!("{text:?} isn't a number")))?
            }
            (Value::Text(_), _) => {
                return Err(self.refuse("a text where a number without quotes is expected"));
            }
            (Value::Truth(_), _) => {
                return Err(self.refuse("true or false where a number is expected"));
            }
            (other, _) => {
                let kind = other.kind();
                return Err(
                    self.refuse(format!("a value of type {kind} where a number is expected"))
                );
            }
        };
        if (least..=most).contains(&number) {
            Ok(number)
        } else {
            Err(self.refuse(format!("{number} is out of range")))
        }
    }
}

impl Entry {
    /// The value as yes or no.
    pub fn truth(&self) -> Result<bool, Error> {
        match (&self.value, &self.origin) {
            (Value::Truth(truth), _) => Ok(*truth),
            (Value::Text(text), Origin::Environment(_)) if text == "true" => Ok(true),
            (Value::Text(text), Origin::Environment(_)) if text == "false" => Ok(false),
            _ => Err(self.refuse("it is neither true nor false")),
        }
    }
}

/// A table `[repository.NAME]` or `[cluster.NAME]`, with the tables in it.
#[derive(Clone)]
pub(super) struct Section {
    pub scope: Scope,
    pub name: String,
    /// Where it is named first.
    pub origin: Origin,
    /// By the key's path within the section.
    entries: BTreeMap<String, Entry>,
}

impl Section {
    /// An empty one, if `name` can be a repository's or cluster's name.
    pub fn new(scope: Scope, name: &str, origin: Origin) -> Result<Self, Error> {
        let ok = (1..=63).contains(&name.len())
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !ok {
            let word = scope.word().unwrap_or_default();
            let message = format!("{name:?} can't be the name of a {word} ({origin})");
            return Err(Error::new(Kind::Usage, message)
                .hint("a name has lower-case letters, digits and '-', at most 63 of them"));
        }
        Ok(Section { scope, name: name.to_owned(), origin, entries: BTreeMap::new() })
    }

    /// As in `cluster.main`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.scope.word().unwrap_or_default(), self.name)
    }

    /// What the key is set to, if it is: `url`, `s3.region`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }
}

/// Everything that is set.
#[derive(Clone, Default)]
pub(super) struct Raw {
    top: BTreeMap<&'static str, Entry>,
    pub repositories: Vec<Section>,
    pub clusters: Vec<Section>,
    drill: BTreeMap<&'static str, Entry>,
}

impl Raw {
    /// What a key at the top is set to, if it is.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.top.get(key)
    }

    /// What a key of `[drill]` is set to, if it is.
    pub fn drill(&self, key: &str) -> Option<&Entry> {
        self.drill.get(key)
    }

    /// Sets a key at the top or of `[drill]`, over what it was.
    pub fn set(&mut self, entry: Entry) {
        let keys = match entry.key.scope {
            Scope::Drill => &mut self.drill,
            _ => &mut self.top,
        };
        keys.insert(entry.key.name, entry);
    }

    /// The section of this name, made when it isn't there.
    pub fn section(
        &mut self,
        scope: Scope,
        name: &str,
        origin: &Origin,
    ) -> Result<&mut Section, Error> {
        let sections = match scope {
            Scope::Cluster | Scope::Stream => &mut self.clusters,
            _ => &mut self.repositories,
        };
        let index = match sections.iter().position(|s| s.name == name) {
            Some(index) => index,
            None => {
                sections.push(Section::new(scope, name, origin.clone())?);
                sections.len() - 1
            }
        };
        Ok(&mut sections[index])
    }
}

impl Section {
    /// Sets a key, over what it was.
    pub fn set(&mut self, entry: Entry) {
        self.entries.insert(entry.key.local(), entry);
    }

    /// A key that is set in a table of this section, if any is.
    pub fn any_of(&self, scope: Scope) -> Option<&Entry> {
        self.entries.values().find(|entry| entry.key.scope == scope)
    }
}
