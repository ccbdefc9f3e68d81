//! The command line: one file a command, with its arguments and what it prints. No logic.
//!
//! [`main`] is the program. Results go to standard output, as text or JSON ([`output`]); logs and
//! progress go to standard error ([`logging`], [`progress`]). What the exit code says, and to whom,
//! is decided in [`exit`].

mod archive_get;
mod archive_push;
mod archiving;
mod backup;
mod check;
mod delete;
mod demo;
mod drill;
mod each;
mod exit;
mod expire;
mod human;
mod info;
mod init;
mod junit;
mod logging;
mod output;
mod pin;
mod progress;
mod restore;
mod restore_command;
mod runtime;
mod stream;
mod table;
pub mod time;
mod verify;
mod wal_path;

use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Overrides, Settings},
    error::{Error, Kind, Result},
    progress::Progress,
};
use exit::Reader;
use output::Output;
use runtime::Guarded;

/// PostgreSQL backup and point-in-time recovery.
#[derive(Debug, Parser)]
#[command(
    name = "pgkeep",
    version,
    arg_required_else_help = true,
    infer_long_args = false,
    long_about = "PostgreSQL backup and point-in-time recovery.\n\n\
        pgkeep keeps full backups and the WAL of PostgreSQL clusters in encrypted repositories, and \
        restores a cluster to any moment since its first backup.",
    after_long_help = AFTER_HELP
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
To begin, write /etc/pgkeep/pgkeep.toml:

  [repository.main]
  url      = \"file:///var/lib/pgkeep\"
  key-file = \"/etc/pgkeep/main.key\"

  [cluster.main]
  conninfo = \"host=/var/run/postgresql user=postgres\"
  pgdata   = \"/var/lib/postgresql/17/main\"

and postgresql.conf (restart the server then):

  wal_level       = replica
  archive_mode    = on
  archive_command = 'pgkeep archive-push %p'

and run, as the user of the server:

  pgkeep init
  pgkeep check
  pgkeep backup
  pgkeep info

Keep a copy of the key file elsewhere: without it nothing can be restored.

Every key of the file can be an environment variable instead, PGKEEP_REPOSITORY__MAIN__URL for
repository.main.url; those go over the file.

Exit codes:
  0   done
  1   the answer is no: the segment isn't there, problems were found
  2   wrong usage or configuration
  3   a repository can't be reached, read or written
  4   something stored is damaged
  5   the key is missing, wrong or weak
  6   PostgreSQL refused, failed or can't be reached
  7   WAL isn't where it should be
  8   the recovery target can't be reached
  9   something else is there under this name
  10  a local file or directory can't be used
  11  stopped by a signal
  12  a fault in pgkeep
  13  a repository refuses this user or these credentials
archive-get exits with 126 instead of 2 to 13, so that PostgreSQL stops and doesn't promote.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The configuration file, instead of $PGKEEP_CONFIG or /etc/pgkeep/pgkeep.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cluster, by its name in the configuration
    #[arg(long, global = true, value_name = "NAME")]
    cluster: Option<String>,
    /// The repository, by its name in the configuration
    #[arg(long, global = true, value_name = "NAME")]
    repo: Option<String>,
    /// How results and errors are written
    #[arg(long, global = true, value_name = "FORM", default_value = "text")]
    output: Output,
    /// Say what is done; twice, how
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// No progress and no warnings, only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Check(check::Check),
    ArchivePush(archive_push::ArchivePush),
    ArchiveGet(archive_get::ArchiveGet),
    Stream(stream::Stream),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Info(info::Info),
    Verify(verify::Verify),
    Drill(drill::Drill),
    Expire(expire::Expire),
    Delete(delete::Delete),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Demo(demo::Demo),
}

impl Command {
    /// Who reads its exit code.
    fn reader(&self) -> Reader {
        match self {
            Command::ArchivePush(_) => Reader::Archiver,
            Command::ArchiveGet(_) => Reader::Recovery,
            _ => Reader::Anyone,
        }
    }

    /// Runs it. The exit code of a success is 0, or 1 where the answer is no. `guarded` is there for
    /// commands that a server runs.
    fn run(&self, global: &Global, guarded: Option<Result<Guarded>>) -> Result<u8> {
        let guarded = || guarded.unwrap_or_else(Guarded::new);
        match self {
            Command::Init(command) => command.run(global),
            Command::Check(command) => command.run(global),
            Command::ArchivePush(command) => command.run(global, guarded()?),
            Command::ArchiveGet(command) => command.run(global, guarded()?),
            Command::Stream(command) => command.run(global),
            Command::Backup(command) => command.run(global),
            Command::Restore(command) => command.run(global),
            Command::Info(command) => command.run(global),
            Command::Verify(command) => command.run(global),
            Command::Drill(command) => command.run(global),
            Command::Expire(command) => command.run(global),
            Command::Delete(command) => command.run(global),
            Command::Pin(command) => command.run(global),
            Command::Unpin(command) => command.run(global),
            Command::Demo(command) => command.run(global),
        }
    }
}

impl Global {
    fn settings(&self) -> Result<Settings> {
        let overrides = Overrides { config: self.config.clone(), cluster: self.cluster.clone() };
        let settings = Settings::load(&overrides)?;
        tracing::debug!(?settings, "configuration");
        Ok(settings)
    }

    fn progress(&self) -> Arc<dyn Progress> {
        progress::show(self.quiet)
    }
}

/// The program: parses `args` (the program's own name first), runs the command, returns the exit
/// code.
pub fn main(args: Vec<OsString>) -> u8 {
    let reader = Reader::of(&args);
    exit::watch_for_panics(reader);
    // Before all else: until then a signal leaves an exit code that means something else to a server.
    let guarded = (reader != Reader::Anyone).then(Guarded::new);
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let reader = cli.command.reader();
            exit::watch_for_panics(reader);
            logging::start(cli.global.verbose, cli.global.quiet);
            let outcome = catch_unwind(AssertUnwindSafe(|| cli.command.run(&cli.global, guarded)));
            if let Ok(Err(e)) = &outcome {
                cli.global.output.error(e, reader);
            }
            reader.code(outcome)
        }
        Err(e) => not_parsed(&e, &args, reader),
    }
}

/// Help and version are answers; everything else is wrong usage.
fn not_parsed(e: &clap::Error, args: &[OsString], reader: Reader) -> u8 {
    let output = Output::of(args);
    if !e.use_stderr() {
        return reader.code(Ok(output::print(&e.render().to_string()).map(|()| 0)));
    }
    let error = usage_error(e);
    match (output, reader, e.kind()) {
        (Output::Text, Reader::Anyone, NO_COMMAND) => {
            // Nothing was asked, so all there is to ask is shown.
            let _ = e.print();
        }
        _ => output.error(&error, reader),
    }
    reader.code(Ok(Err(error)))
}

/// pgkeep alone.
const NO_COMMAND: clap::error::ErrorKind =
    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// clap's message in one line, without its headings; its tips and the command's form are hints.
fn usage_error(e: &clap::Error) -> Error {
    let help = "pgkeep COMMAND --help says how it is used";
    if e.kind() == NO_COMMAND {
        return Error::new(Kind::Usage, "there is no command").hint(help);
    }
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = e.render().to_string();
    let (first, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut error = Error::new(Kind::Usage, one_line(first.trim_start_matches("error: ")));
    for line in rest.lines().map(str::trim) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            error = error.hint(tip);
        } else if let Some(form) = line.strip_prefix("Usage: ") {
            error = error.hint(format!("usage: {form}"));
        }
    }
    error.hint(help)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_has_help_to_work_from() {
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{name} has no example");
            assert!(help.contains(&format!("pgkeep {name}")), "{name} isn't in its example");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name}: {}", argument.get_id());
            }
        }
    }

    #[test]
    fn wrong_usage_is_one_line() {
        let e = Cli::try_parse_from(["pgkeep", "archive-get", "x"]).unwrap_err();
        insta::assert_snapshot!(usage_error(&e), @"the following required arguments were not provided: <PATH>");
        let e = Cli::try_parse_from(["pgkeep", "inf"]).unwrap_err();
        assert_eq!(
            usage_error(&e).hints(),
            [
                "some similar subcommands exist: 'init', 'info'",
                "usage: pgkeep [OPTIONS] <COMMAND>",
                "pgkeep COMMAND --help says how it is used"
            ]
        );
    }
}
