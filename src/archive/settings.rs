//! What `check` says of the server's settings.

use std::path::Path;

use super::{
    check::{CheckReport, StepState},
    command::lost_program,
    server::Server,
};

const SET: &str = "set archive_command = 'pgkeep archive-push %p' in postgresql.conf and reload";

/// Checks the settings of a server, whose data directory is `directory` as far as that is known.
/// Whether the server archives at all.
pub fn report_settings(
    server: &Server,
    directory: Option<&Path>,
    report: &mut CheckReport,
) -> bool {
    use StepState::{Ok, Problem, Skipped, Warning};
    let level = server.setting("wal_level");
    if level == "minimal" {
        report
            .step("wal-level", Problem, "wal_level is minimal: such WAL can't be replayed")
            .hint("set wal_level = replica in postgresql.conf and restart the server");
    } else {
        report.step("wal-level", Ok, format!("wal_level is {level}"));
    }
    let mode = server.setting("archive_mode");
    if !matches!(mode, "on" | "always") {
        // The server doesn't even say what archive_command is then.
        report
            .step("archive-mode", Problem, format!("archive_mode is {mode}"))
            .hint("set archive_mode = on in postgresql.conf and restart the server");
        return false;
    }
    if server.in_recovery && mode == "on" {
        let text = "archive_mode is on: a standby archives only after its promotion";
        report.step("archive-mode", Skipped, text);
    } else {
        report.step("archive-mode", Ok, format!("archive_mode is {mode}"));
    }
    let archives = report_command(server, directory, report);
    if server.setting("archive_timeout") == "0" {
        let text = "archive_timeout is 0: what a quiet server writes isn't archived before its \
                    segment is full";
        report
            .step("archive-timeout", Warning, text)
            .hint("set archive_timeout = 60 to lose at most a minute");
    }
    archives
}

fn report_command(server: &Server, directory: Option<&Path>, report: &mut CheckReport) -> bool {
    use StepState::{Ok, Problem, Warning};
    const NAME: &str = "archive-command";
    let (command, library) = (server.setting("archive_command"), server.setting("archive_library"));
    if !library.is_empty() {
        let text = format!("archive_library is {library}, so archive_command isn't used");
        report.step(NAME, Problem, text).hint("set archive_library = ''").hint(SET);
        return false;
    }
    if command.is_empty() {
        report.step(NAME, Problem, "archive_command isn't set").hint(SET);
        return false;
    }
    // No more of the command is shown than its program: it may have a secret in it.
    if let Some(program) = directory.and_then(|directory| lost_program(command, directory)) {
        let why = match program.contains('/') {
            true => "which isn't there, or can't be run",
            false => "which isn't in the PATH that the server was started with",
        };
        let text = format!("archive_command begins with {program}, {why}");
        let step = report.step(NAME, Problem, text);
        let this = std::env::current_exe().unwrap_or_else(|_| "pgkeep".into());
        step.hint(format!("write the whole path of pgkeep; this one is {}", this.display()));
        return false;
    }
    if !command.contains("archive-push") {
        let text = "archive_command doesn't call pgkeep archive-push, unless it is a script \
                    that does";
        report.step(NAME, Warning, text).hint(SET);
    } else if !command.contains("%p") {
        let text = "archive_command has no %p, so pgkeep isn't told which file to push";
        report.step(NAME, Problem, text).hint(SET);
    } else {
        report.step(NAME, Ok, "archive_command calls pgkeep archive-push");
    }
    true
}
