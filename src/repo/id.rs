//! Identities: of a repository, a data key, a backup, a system.

use std::{fmt, str::FromStr};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 16 random bytes, written as 32 hexadecimal digits: a repository's or a data key's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RandomId(pub [u8; 16]);

impl RandomId {
    /// A new one.
    pub fn random() -> crate::error::Result<Self> {
        Ok(RandomId(super::keys::random()?))
    }
}

impl fmt::Display for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for RandomId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(s, &mut bytes)
            .map_err(|_| format!("{s:?} is not an id of 32 hexadecimal digits"))?;
        Ok(RandomId(bytes))
    }
}

/// What a backup stores itself: everything, what changed since the last full, or since the last
/// backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Everything.
    Full,
    /// What changed since the last full backup.
    Diff,
    /// What changed since the last backup.
    Incr,
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackupType::Full => "full",
            BackupType::Diff => "diff",
            BackupType::Incr => "incr",
        })
    }
}

/// A backup's id, `20261120T195812Z-full`: sorts by the time it was reserved and says its type.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

const ID_TIME: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The id for a backup of this type that begins at `time`, to the second, with a random number
    /// in hexadecimal where one is needed.
    pub fn at(time: DateTime<Utc>, kind: BackupType, random: Option<&str>) -> Self {
        let random = random.map(|random| format!("-{random}")).unwrap_or_default();
        BackupId(format!("{}-{kind}{random}", time.format(ID_TIME)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parse = || {
            let (time, rest) = s.split_at_checked(16)?;
            NaiveDateTime::parse_from_str(time, ID_TIME).ok()?;
            let (kind, random) = rest.strip_prefix('-')?.split_at_checked(4)?;
            let random_ok = random.is_empty()
                || random.strip_prefix('-').is_some_and(|r| {
                    (1..=32).contains(&r.len()) && r.bytes().all(|b| b.is_ascii_hexdigit())
                });
            (matches!(kind, "full" | "diff" | "incr") && random_ok).then(|| BackupId(s.to_owned()))
        };
        parse().ok_or_else(|| {
            format!("{s:?} is not a backup id: expected one like 20261120T195812Z-full")
        })
    }
}

/// A cluster's identity across its life: the major version and the system identifier that initdb
/// gave it. Timelines and positions mean something only within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId {
    /// PostgreSQL's major version.
    pub major: u32,
    /// `pg_control`'s system identifier.
    pub identifier: u64,
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.major, self.identifier)
    }
}

impl FromStr for SystemId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.split_once('-')
            .and_then(|(major, id)| {
                Some(SystemId { major: major.parse().ok()?, identifier: id.parse().ok()? })
            })
            .filter(|id| id.to_string() == s)
            .ok_or_else(|| format!("{s:?} is not a system: expected <major>-<system identifier>"))
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(RandomId, BackupId, SystemId);

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["20261120T195812Z-full", "20240229T000000Z-incr", "20261120T195812Z-diff-0af3"]
        {
            assert_eq!(good.parse::<BackupId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "20261120T195812Z",
            "20261320T195812Z-full",
            "20261120T195812Z-fullx",
            "20261120T195812Z-base",
            "../../20261120T195812Z-full",
            "20261120T195812Z-full-",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
        assert!("15-7654321".parse::<SystemId>().is_ok());
        for bad in ["15", "15-", "-7", "15-07", "+15-7"] {
            assert!(bad.parse::<SystemId>().is_err(), "{bad}");
        }
    }
}
