//! Exit codes, and who reads them.
//!
//! A person or a script gets the code of the error's kind. PostgreSQL reads more into a code:
//!
//! - `restore_command`: 1 to 125 mean that the file isn't in the archive. Recovery ends there, the
//!   server promotes, and what came after is lost. So `archive-get` says 1 only when it knows, and
//!   126, which makes the server stop, whenever it doesn't: errors, wrong usage and panics alike. A
//!   death by SIGTERM (143) is taken for a shutdown; it isn't one, so it is 126 too.
//! - `archive_command`: 1 to 125 are logged and tried again; above, the archiver itself dies. So
//!   `archive-push` stays below, whatever happens.
//!
//! Signals are kept from ending these two in [`super::runtime::Guarded`].
//!
//! (Documentation, "Continuous Archiving"; `RestoreArchivedFile` in `xlogarchive.c`, `pgarch.c`.)

use std::{
    any::Any,
    ffi::OsString,
    io::Write,
    panic::PanicHookInfo,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    error::{Kind, Result},
    postgres::WalFile,
};

/// What `archive-get` exits with when it can't tell: PostgreSQL stops.
pub(super) const CANT_TELL: u8 = 126;

/// Who reads the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// A person or a script.
    Anyone,
    /// `archive_command`.
    Archiver,
    /// `restore_command`.
    Recovery,
}

impl Reader {
    /// Who reads the exit code of a command line that needn't be a right one.
    ///
    /// Any word may decide it: a value that was forgotten makes the command's name the value of the
    /// option before it. A misspelt `archive-get` is known by what the server put for `%f` or `%p`.
    pub fn of(args: &[OsString]) -> Reader {
        let words = || args.iter().skip(1).filter_map(|arg| arg.to_str());
        for word in words() {
            match word {
                "archive-get" => return Reader::Recovery,
                "archive-push" => return Reader::Archiver,
                _ => {}
            }
        }
        let from_recovery = |word: &str| {
            word.ends_with("RECOVERYXLOG")
                || word.ends_with("RECOVERYHISTORY")
                || word.parse::<WalFile>().is_ok()
        };
        if words().any(from_recovery) { Reader::Recovery } else { Reader::Anyone }
    }

    /// The exit code for this outcome: a command's own code, 0 or 1, or an error, or a panic.
    pub fn code(self, outcome: Result<Result<u8>, Box<dyn Any + Send>>) -> u8 {
        let panicked = PANICKED.load(Ordering::Relaxed);
        match (outcome, self) {
            (Ok(Ok(code @ (0 | 1))), _) if !panicked => code,
            (_, Reader::Recovery) => CANT_TELL,
            (Ok(Err(e)), _) => e.kind().exit_code(),
            _ => Kind::Internal.exit_code(),
        }
    }
}

/// Whether any thread has panicked. What it was to do is lost, so nothing counts as done.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Says what happened in one line, and, where a server waits for the exit code, exits at once: it
/// must get the right one also when the panic is in another thread, or in a destructor.
pub(super) fn watch_for_panics(reader: Reader) {
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        let _ = writeln!(std::io::stderr().lock(), "pgkeep: {}", panic_message(info));
        if reader != Reader::Anyone {
            std::process::exit(reader.code(Err(Box::new(()))).into());
        }
    }));
}

fn panic_message(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = text.unwrap_or("no message").replace('\n', " ");
    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
    format!("a fault in pgkeep{}: {what}", place.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::error::Error;

    fn reader(line: &str) -> Reader {
        Reader::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn recovery_is_known_from_any_command_line_it_may_have_started() {
        for line in [
            "pgkeep archive-get 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "pgkeep archive-get",
            "pgkeep --nonsense archive-get x y z",
            "pgkeep --config archive-get 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "pgkeep archiveget 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "pgkeep get 00000002.history",
            "pgkeep get x pg_wal/RECOVERYHISTORY",
        ] {
            assert_eq!(reader(line), Reader::Recovery, "{line}");
        }
        for line in
            ["pgkeep archive-push pg_wal/000000010000000000000001", "pgkeep -x archive-push"]
        {
            assert_eq!(reader(line), Reader::Archiver, "{line}");
        }
        for line in ["pgkeep", "pgkeep info", "pgkeep push pg_wal/000000010000000000000001"] {
            assert_eq!(reader(line), Reader::Anyone, "{line}");
        }
    }

    #[test]
    fn recovery_hears_no_only_when_the_answer_is_no() {
        assert_eq!(Reader::Recovery.code(Ok(Ok(0))), 0);
        assert_eq!(Reader::Recovery.code(Ok(Ok(1))), 1);
        assert_eq!(Reader::Recovery.code(Ok(Ok(7))), CANT_TELL);
        assert_eq!(Reader::Recovery.code(catch_unwind(|| panic!("test"))), CANT_TELL);
        for kind in ALL {
            assert_eq!(
                Reader::Recovery.code(Ok(Err(Error::new(kind, "x")))),
                CANT_TELL,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn the_archiver_survives_everything() {
        for kind in ALL {
            let code = Reader::Archiver.code(Ok(Err(Error::new(kind, "x"))));
            assert!((1..=125).contains(&code), "{kind:?}: {code}");
        }
        let code = Reader::Archiver.code(catch_unwind(|| panic!("test")));
        assert!((1..=125).contains(&code), "{code}");
    }

    #[test]
    fn each_kind_has_a_code_of_its_own() {
        let mut codes = ALL.map(|kind| Reader::Anyone.code(Ok(Err(Error::new(kind, "x")))));
        codes.sort();
        assert_eq!(codes, std::array::from_fn(|i| i as u8 + 1));
        assert_eq!(Reader::Anyone.code(catch_unwind(|| panic!("test"))), 12);
    }

    const ALL: [Kind; 13] = [
        Kind::No,
        Kind::Usage,
        Kind::Repository,
        Kind::Damaged,
        Kind::Key,
        Kind::Postgres,
        Kind::Wal,
        Kind::Target,
        Kind::Conflict,
        Kind::Local,
        Kind::Interrupted,
        Kind::Internal,
        Kind::Denied,
    ];
}
