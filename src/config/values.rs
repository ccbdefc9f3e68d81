//! Texts of the configuration into paths, addresses and durations.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use super::Location;

/// An absolute path without `..`. Commands run in any directory, the server's among them, so a
/// relative path would mean another file each time; `~` isn't expanded.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if text.starts_with('~') {
        return Err(format!("{text:?} isn't an absolute path (~ isn't expanded)"));
    }
    if !path.is_absolute() {
        return Err(format!("{text:?} isn't an absolute path"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("{text:?} has a .. in it"));
    }
    Ok(path.components().collect())
}

/// A repository's address. What is refused isn't repeated: people write secrets into URLs.
pub(super) fn location(text: &str) -> Result<Location, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("it isn't a URL".into());
    };
    match scheme {
        "file" if !rest.starts_with('/') => {
            Err("three slashes are expected after file:, as in file:///var/lib/pgkeep".into())
        }
        "file" => {
            let path = absolute_path(rest)?;
            if path.parent().is_none() {
                return Err("the root of the file system can't be a repository".into());
            }
            Ok(Location::Directory(path))
        }
        "s3" => super::s3::place(rest).map(|settings| Location::Bucket(Box::new(settings))),
        _ => Err("its scheme isn't known".into()),
    }
}

/// A whole number and its unit, as in `60s` or `5min`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if digits > 0 => return Err(format!("{text:?} has no unit (ms, s, min, h, d)")),
        _ => return Err(format!("{text:?} isn't a duration")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} isn't a duration"))?;
    let milliseconds =
        number.checked_mul(milliseconds).ok_or_else(|| format!("{text:?} is out of range"))?;
    Ok(Duration::from_millis(milliseconds))
}

/// Whether a connection string seems to hold a password. Rather once too often: what follows is a
/// check of the file's mode.
pub(super) fn has_password(conninfo: &str) -> bool {
    let named = conninfo
        .match_indices("password")
        .any(|(at, word)| conninfo[at + word.len()..].trim_start().starts_with('='));
    let in_uri = conninfo
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?']).next())
        .and_then(|authority| authority.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    named || in_uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_their_unit() {
        for (text, seconds) in
            [("60s", 60), ("5min", 300), ("1 h", 3600), ("1d", 86_400), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "60", "s", "-1s", "1.5s", "5 minutes", "1m", "99999999999999999999s", "1s "]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repository_lies_at_an_absolute_path() {
        let at = |text| match location(text) {
            Ok(Location::Directory(path)) => Ok(path),
            Ok(other) => Err(other.to_string()),
            Err(why) => Err(why),
        };
        assert_eq!(at("file:///var/lib/pgkeep/"), Ok("/var/lib/pgkeep".into()));
        assert_eq!(at("file:///a%20b"), Ok("/a%20b".into()), "nothing is decoded");
        for bad in
            ["/var/lib", "file://var/lib", "file:/var", "file:///", "file:///a/../b", "ftp://x", ""]
        {
            assert!(at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_seen_in_every_form_of_a_connection_string() {
        for with in [
            "host=x password=y",
            "password = 'y'",
            "postgres://u:p@h/db",
            "postgresql://u@h/db?password=y",
            "host=x sslpassword=y",
        ] {
            assert!(has_password(with), "{with}");
        }
        for without in ["", "host=/run user=postgres", "postgresql://u@h:5432/db", "passfile=/x"] {
            assert!(!has_password(without), "{without}");
        }
    }
}
