//! The names of objects.

use std::fmt;

/// An object's name, relative to the repository root: folders and a file name joined by `/`.
///
/// Each part has letters, digits, `.`, `_`, `-` and `+` and doesn't begin with `.`; so a name is the
/// same on every file system and in every bucket, can't leave the root, and is never one of a back
/// end's own files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// A text can't be an object's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't be an object's name: parts of letters, digits, '.', '_', '-' and '+', joined by '/'"
)]
pub struct NotAnObjectName(pub String);

impl ObjectName {
    /// `name`, checked.
    pub fn new(name: impl Into<String>) -> Result<Self, NotAnObjectName> {
        let name = name.into();
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.len() <= 200
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
        };
        if name.len() <= 900 && name.split('/').all(part_ok) {
            Ok(ObjectName(name))
        } else {
            Err(NotAnObjectName(name))
        }
    }

    /// A name put together from parts that were checked when they were read.
    pub(crate) fn of_checked_parts(name: String) -> Self {
        debug_assert!(ObjectName::new(name.as_str()).is_ok(), "{name:?}");
        ObjectName(name)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the last slash.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_root() {
        for good in
            ["repo.json", "clusters/main/backups/20261120T195812Z-full/packs/0", "a/b.c_d-e+f"]
        {
            assert!(ObjectName::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.", ".tmp/x", "a b", "a\\b", "a\0", "ä"]
        {
            assert!(ObjectName::new(bad).is_err(), "{bad}");
        }
    }
}
