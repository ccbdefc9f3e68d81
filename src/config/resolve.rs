//! From keys that are set to typed settings: types, bounds, and what excludes what.

use std::{path::PathBuf, time::Duration};

use rustix::process::geteuid;

use super::{
    ClusterSettings, KeySource, Location, RepositorySettings, Settings, StandbyOutage,
    file::ConfigFile,
    keys::{MAX_THREADS, Scope},
    source::{Entry, Origin, Raw, Section, Value},
    values,
};
use crate::{
    error::{Error, Kind, Result},
    storage::s3::S3Settings,
};

const DAY: Duration = Duration::from_secs(86_400);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);

/// Makes the settings. `file` is the configuration file, if one was read.
pub(super) fn settings(raw: &Raw, file: Option<&ConfigFile>) -> Result<Settings> {
    let threads = match raw.get("threads") {
        Some(entry) => entry.number(1, MAX_THREADS)? as usize,
        None => std::thread::available_parallelism().map_or(1, usize::from).min(4),
    };
    let state_dir = match raw.get("state-dir") {
        Some(entry) => path(entry)?,
        None => PathBuf::from(format!("/var/tmp/pgkeep-{}", geteuid().as_raw())),
    };
    let repositories: Vec<_> = raw.repositories.iter().map(repository).collect::<Result<_>>()?;
    let clusters: Vec<_> =
        raw.clusters.iter().map(|section| cluster(section, file)).collect::<Result<_>>()?;
    let settings = Settings {
        repositories,
        clusters,
        threads,
        state_dir,
        drill: super::drill::settings(raw)?,
        file: file.map(|file| file.path.clone()),
        looked_for: PathBuf::new(),
    };
    check_places(&settings, raw)?;
    Ok(settings)
}

fn repository(section: &Section) -> Result<RepositorySettings> {
    let path = section.path();
    let url = section.get("url").ok_or_else(|| {
        Error::new(Kind::Usage, format!("{path} ({}): url isn't set", section.origin))
            .hint("set url = \"file:///var/lib/pgkeep\", or where the repository shall lie")
    })?;
    let location = match values::location(url.text()?).map_err(|why| url.refuse(why))? {
        Location::Bucket(place) => {
            Location::Bucket(Box::new(super::s3::settings(*place, section)?))
        }
        directory => {
            if let Some(entry) = section.any_of(Scope::S3) {
                return Err(entry.refuse(format!("the url of {path} isn't one of S3")));
            }
            directory
        }
    };
    let compression_level = match section.get("compression-level") {
        Some(entry) => entry.number(1, 19)? as i32,
        None => 1,
    };
    let key = key_source(section)?;
    let retention = super::retention::settings(section)?;
    Ok(RepositorySettings {
        name: section.name.clone(),
        location,
        key,
        compression_level,
        retention,
    })
}

fn key_source(section: &Section) -> Result<KeySource> {
    let names = ["key-file", "passphrase-file", "passphrase-command", "encryption"];
    let mut given = names.iter().filter_map(|name| section.get(name));
    let Some(entry) = given.next() else {
        let message = format!("{} ({}): the repository has no key", section.path(), section.origin);
        return Err(Error::new(Kind::Usage, message)
            .hint(format!(
                "set key-file = \"/etc/pgkeep/{}.key\" (`pgkeep init` makes the file), or \
                 passphrase-file or passphrase-command",
                section.name
            ))
            .hint("encryption = \"none\" does without, and stores everything readable"));
    };
    if let Some(second) = given.next() {
        let message = format!(
            "{} ({}) and {} ({}) exclude each other",
            entry.path, entry.origin, second.path, second.origin
        );
        return Err(Error::new(Kind::Usage, message)
            .hint("a repository has one key: leave one of them out"));
    }
    match entry.key.name {
        "key-file" => path(entry).map(KeySource::File),
        "passphrase-file" => path(entry).map(KeySource::PassphraseFile),
        "passphrase-command" => Ok(KeySource::PassphraseCommand(entry.text()?.to_owned())),
        _ => match entry.text()? {
            "none" => Ok(KeySource::Unencrypted),
            other => Err(entry.refuse(format!("{other:?} isn't one of its values"))),
        },
    }
}

fn cluster(section: &Section, file: Option<&ConfigFile>) -> Result<ClusterSettings> {
    let mut settings = ClusterSettings::named(&section.name);
    if let Some(entry) = section.get("conninfo") {
        let conninfo = entry.text()?;
        check_secrecy(entry, conninfo, file)?;
        settings.conninfo = conninfo.to_owned();
    }
    settings.pgdata = section.get("pgdata").map(path).transpose()?;
    if let Some(entry) = section.get("standby-outage") {
        settings.standby_outage = match entry.text()? {
            "continue" => StandbyOutage::Continue,
            "stop" => StandbyOutage::Stop,
            other => return Err(entry.refuse(format!("{other:?} isn't one of its values"))),
        };
    }
    if let Some(entry) = section.get("archive-timeout") {
        settings.archive_wait = duration(entry, Duration::from_secs(1), DAY)?;
    }
    if let Some(entry) = section.get("stall-timeout") {
        settings.stall_timeout = duration(entry, Duration::from_secs(1), HOUR)?;
    }
    if let Some(entry) = section.get("outage-timeout") {
        settings.outage_wait = duration(entry, Duration::ZERO, HOUR)?;
    }
    if let Some(entry) = section.get("stream.slot") {
        let slot = entry.text()?;
        // As the server has it (`slot.c`, `ReplicationSlotValidateName`).
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if !(1..=63).contains(&slot.len()) || !slot.bytes().all(allowed) {
            return Err(entry.refuse(format!("{slot:?} can't be a replication slot's name")));
        }
        settings.stream.slot = slot.to_owned();
    }
    if let Some(entry) = section.get("stream.max-lag") {
        settings.stream.max_lag = duration(entry, Duration::ZERO, HOUR)?;
    }
    if let Some(entry) = section.get("stream.conninfo") {
        let conninfo = entry.text()?;
        check_secrecy(entry, conninfo, file)?;
        settings.stream.conninfo = Some(conninfo.to_owned());
    }
    Ok(settings)
}

/// A file with a password in it must be its owner's alone.
fn check_secrecy(entry: &Entry, conninfo: &str, file: Option<&ConfigFile>) -> Result<()> {
    let (Origin::File { .. }, Some(file)) = (&entry.origin, file) else { return Ok(()) };
    if !values::has_password(conninfo) || file.mode & 0o077 == 0 {
        return Ok(());
    }
    let message = format!(
        "{} ({}) has a password, and others may read the file (mode {:04o})",
        entry.path,
        entry.origin,
        file.mode & 0o7777
    );
    Err(Error::new(Kind::Usage, message)
        .hint(format!("chmod 600 {}, or put the password into ~/.pgpass", file.path.display())))
}

/// Refuses places that are used twice: two copies would be one, or a backup would hold itself.
fn check_places(settings: &Settings, raw: &Raw) -> Result<()> {
    for (i, one) in settings.repositories.iter().enumerate() {
        if let Some(other) =
            settings.repositories.iter().take(i).find(|r| same_place(&r.location, &one.location))
        {
            let message = format!(
                "repository.{} and repository.{} lie in the same place {}",
                other.name, one.name, one.location
            );
            return Err(Error::new(Kind::Usage, message)
                .hint("give each a url of its own, on another disk or host if it shall help"));
        }
        let Location::Directory(place) = &one.location else { continue };
        let url = raw.repositories.iter().find(|s| s.name == one.name).and_then(|s| s.get("url"));
        for cluster in &settings.clusters {
            let inside = cluster.pgdata.as_ref().is_some_and(|pgdata| place.starts_with(pgdata));
            if let (true, Some(url)) = (inside, url) {
                return Err(url.refuse(format!(
                    "the repository would lie in the data directory of cluster.{}",
                    cluster.name
                )));
            }
        }
    }
    for (i, one) in raw.clusters.iter().enumerate() {
        let Some(entry) = one.get("pgdata") else { continue };
        let pgdata = path(entry)?;
        for other in settings.clusters.iter().take(i) {
            if other.pgdata.as_ref() == Some(&pgdata) {
                return Err(
                    entry.refuse(format!("cluster.{} has the same data directory", other.name))
                );
            }
        }
    }
    Ok(())
}

/// Whether two repositories are one. A bucket's name means something at its server only.
fn same_place(one: &Location, other: &Location) -> bool {
    match (one, other) {
        (Location::Bucket(one), Location::Bucket(other)) => {
            let place = |s: &S3Settings| (s.endpoint.clone(), s.bucket.clone(), s.prefix.clone());
            place(one) == place(other)
        }
        _ => one == other,
    }
}

pub(super) fn path(entry: &Entry) -> Result<PathBuf> {
    values::absolute_path(entry.text()?).map_err(|why| entry.refuse(why))
}

pub(super) fn duration(entry: &Entry, least: Duration, most: Duration) -> Result<Duration> {
    // A number in the file is as good as the text 60: it has no unit.
    let text = match &entry.value {
        Value::Number(number) => number.to_string(),
        _ => entry.text()?.to_owned(),
    };
    let duration = values::duration(&text).map_err(|why| entry.refuse(why))?;
    if duration < least || duration > most {
        return Err(entry.refuse(format!("{text:?} is out of range")));
    }
    Ok(duration)
}
