//! The connection service file (documentation, "The Connection Service File").
//!
//! `PGSERVICEFILE` or `~/.pg_service.conf` is read first, then `pg_service.conf` in the system's
//! directory. The first section of the name counts.

use std::{fs, io, path::Path};

use super::{ConnInfoError, environment::Environment, text::Pairs};

/// The settings of `service`. `file` is the service file that was asked for by name, if any.
pub(super) fn load(
    service: &str,
    file: Option<&str>,
    environment: &Environment,
) -> Result<Pairs, ConnInfoError> {
    let own = match file {
        Some(file) => Some(file.into()),
        None => environment.in_home(".pg_service.conf"),
    };
    if let Some(own) = own {
        match fs::read_to_string(&own) {
            Ok(contents) => {
                if let Some(pairs) = section(&contents, service, &own)? {
                    return Ok(pairs);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.is_none() => {}
            Err(e) => return Err(unreadable(&own, &e)),
        }
    }
    for directory in environment.service_directories() {
        let path = directory.join("pg_service.conf");
        match fs::read_to_string(&path) {
            Ok(contents) => {
                if let Some(pairs) = section(&contents, service, &path)? {
                    return Ok(pairs);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unreadable(&path, &e)),
        }
    }
    Err(ConnInfoError::new(format!("there is no service {service:?} in a service file")).hint(
        "a service is a section [name] of ~/.pg_service.conf, of the file named by PGSERVICEFILE, \
         or of pg_service.conf in PGSYSCONFDIR",
    ))
}

fn unreadable(path: &Path, error: &io::Error) -> ConnInfoError {
    ConnInfoError::new(format!("the service file {} can't be read: {error}", path.display()))
}

/// The lines of `[service]`, or `None` if the file has no such section. Values aren't quoted: they
/// go to the end of the line.
fn section(contents: &str, service: &str, path: &Path) -> Result<Option<Pairs>, ConnInfoError> {
    let mut found: Option<Pairs> = None;
    for (number, line) in contents.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.split(']').next() == Some(service) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let place = || format!("line {} of the service file {}", number + 1, path.display());
        match line.split_once('=') {
            Some(("service" | "servicefile", _)) => {
                return Err(ConnInfoError::new(format!(
                    "a service can't name another service, as {} does",
                    place()
                )));
            }
            Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
            None => {
                return Err(ConnInfoError::new(format!("{} is not key=value", place())));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "# ours\n\n[first]\nhost=a\n\n[wanted]\n  host=b b  \nport=5433\n#c\n[wanted]\nuser=x\n";

    #[test]
    fn the_first_section_of_the_name_counts() {
        let pairs = section(FILE, "wanted", Path::new("f")).unwrap().unwrap();
        let expected = [("host", "b b"), ("port", "5433")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(section(FILE, "want", Path::new("f")), Ok(None));
        assert!(section("[a]\nhost\n", "a", Path::new("f")).is_err());
        assert!(section("[a]\nservice=b\n", "a", Path::new("f")).is_err());
    }

    #[test]
    fn files_are_looked_for_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let system = dir.path().join("system");
        fs::create_dir_all(&home).unwrap();
        fs::create_dir_all(&system).unwrap();
        fs::write(system.join("pg_service.conf"), "[s]\nhost=system\n[only]\nhost=there\n")
            .unwrap();
        let at = system.to_str().unwrap().to_owned();
        let environment = Environment::new(&[("PGSYSCONFDIR", &at)], Some(&home), None);
        let host = |service: &str, file: Option<&str>| {
            load(service, file, &environment).map(|pairs| pairs[0].1.clone())
        };
        assert_eq!(host("s", None).unwrap(), "system");
        fs::write(home.join(".pg_service.conf"), "[s]\nhost=home\n").unwrap();
        assert_eq!(host("s", None).unwrap(), "home");
        assert_eq!(host("only", None).unwrap(), "there", "not in the first file, in the second");
        let named = dir.path().join("named");
        fs::write(&named, "[s]\nhost=named\n").unwrap();
        assert_eq!(host("s", named.to_str()).unwrap(), "named");
        assert!(host("s", Some("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
        assert!(host("nobody", None).unwrap_err().to_string().contains("\"nobody\""));
    }
}
