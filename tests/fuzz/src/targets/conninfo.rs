//! Connection strings and URIs, service files and password files.
//!
//! The first byte chooses: 0 a connection string; 1 a service file, with the service `main`; 2 a connection
//! string as an environment variable. The error's text is made as well, and has no password in it.

use std::path::Path;

use pgkeep::postgres::client::{ConnInfo, Environment};

use super::input::Input;

const SECRET: &str = "s3cr3t-0f-n0b0dy";

fn show(read: Result<ConnInfo, pgkeep::postgres::client::ConnInfoError>) {
    match read {
        Ok(info) => {
            let shown = format!("{info} {info:?}");
            assert!(!shown.contains(SECRET), "a password is shown");
            info.with_application_name("other").with_database("db").user();
        }
        Err(e) => {
            let shown = format!("{e} {:?}", e.hint_text());
            assert!(shown.len() < 1 << 20);
        }
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let chosen = input.byte() % 3;
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    let home = Path::new("/nonexistent");
    let secret = ("PGPASSWORD", SECRET);
    match chosen {
        0 => show(ConnInfo::parse_in(text, &Environment::new(&[secret], Some(home), Some("me")))),
        1 => {
            let folder = tempfile::tempdir().expect("a directory");
            let file = folder.path().join("services");
            std::fs::write(&file, text).expect("a file");
            let file = file.to_str().expect("UTF-8");
            let variables = [("PGSERVICEFILE", file), ("PGSERVICE", "main"), secret];
            show(ConnInfo::parse_in("", &Environment::new(&variables, Some(home), Some("me"))));
        }
        _ => {
            for variable in ["PGHOST", "PGPORT", "PGSSLMODE", "PGCONNECT_TIMEOUT", "PGREQUIREAUTH"]
            {
                let environment = Environment::new(&[(variable, text), secret], None, Some("me"));
                show(ConnInfo::parse_in("", &environment));
            }
        }
    }
}
