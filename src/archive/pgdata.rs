//! What `check` says of the configured data directory: whether it is the server's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    check::{CheckReport, CheckStep, StepState},
    data_directory::DataDirectory,
    server::Server,
};
use crate::config::ClusterSettings;

const NAME: &str = "data-directory";

/// Compares the configured data directory with the server's. Returns it if it is the server's, as
/// far as can be seen.
pub fn report_data_directory(
    server: &Server,
    cluster: &ClusterSettings,
    report: &mut CheckReport,
) -> Option<PathBuf> {
    let section = format!("[cluster.{}]", cluster.name);
    let Some(pgdata) = &cluster.pgdata else {
        let text = format!("pgdata isn't set in {section}, so it can't be compared");
        report.step(NAME, StepState::Skipped, text);
        return None;
    };
    let lost = match fs::metadata(pgdata.join("global/pg_control")) {
        Err(e) => e.kind() == io::ErrorKind::NotFound && !pgdata.exists(),
        Ok(_) => false,
    };
    if lost {
        report_lost(server, pgdata, &section, report);
        return None;
    }
    match DataDirectory::read(pgdata) {
        Err(e) => {
            let step = report.failed(NAME, &e);
            correct(server, pgdata, &section, step);
            None
        }
        Ok(directory) if directory.system != server.system => {
            let text = format!(
                "pgdata in {section}, {}, is of system {}, the server is system {}",
                pgdata.display(),
                directory.system,
                server.system
            );
            let step = report.step(NAME, StepState::Problem, text);
            correct(server, pgdata, &section, step)
                .hint(format!("make conninfo and pgdata in {section} the same server's"));
            None
        }
        Ok(_) if !is_same(server, pgdata) => {
            let text = format!(
                "the server's data directory is {}, pgdata in {section} is {}",
                server.setting("data_directory"),
                pgdata.display()
            );
            let step = report.step(NAME, StepState::Problem, text);
            correct(server, pgdata, &section, step)
                .hint(format!("make conninfo and pgdata in {section} the same server's"));
            None
        }
        Ok(_) => {
            report.step(NAME, StepState::Ok, format!("{} is the server's", pgdata.display()));
            Some(pgdata.clone())
        }
    }
}

/// Nothing is there. On another host than the server's that is as it should be, and in a container
/// that shares the server's socket alone; else it is the wrong path.
fn report_lost(server: &Server, pgdata: &Path, section: &str, report: &mut CheckReport) {
    let theirs = server.setting("data_directory");
    if !server.is_local() || Path::new(theirs) == pgdata {
        let text = format!("{} isn't on this host", pgdata.display());
        report.step(NAME, StepState::Skipped, text);
        return;
    }
    let text = format!("pgdata in {section} is {}, which isn't there", pgdata.display());
    if theirs.is_empty() {
        report.step(NAME, StepState::Warning, text).hint(
            "`SHOW data_directory` says what it should be, to a superuser or a member of pg_monitor",
        );
    } else {
        let step = report.step(NAME, StepState::Problem, text);
        correct(server, pgdata, section, step);
    }
}

/// Says what `pgdata` should be, where the server says it and is on this host.
fn correct<'s>(
    server: &Server,
    pgdata: &Path,
    section: &str,
    step: &'s mut CheckStep,
) -> &'s mut CheckStep {
    let theirs = server.setting("data_directory");
    if server.is_local() && !theirs.is_empty() && Path::new(theirs) != pgdata {
        step.hint(format!(
            "the server that conninfo leads to has its data directory at {theirs}: set pgdata = \
             {theirs:?} in {section}"
        ));
    }
    step
}

/// The same system may have a copy elsewhere: is it the same directory, too?
fn is_same(server: &Server, pgdata: &Path) -> bool {
    fs::canonicalize(server.setting("data_directory"))
        .and_then(|theirs| Ok(theirs == fs::canonicalize(pgdata)?))
        // Only privileged users are told, and it may be a path on another host.
        .unwrap_or(true)
}
