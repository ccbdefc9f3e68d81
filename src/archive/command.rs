//! Whether the server can run its `archive_command` at all.
//!
//! A program that isn't there is exit code 127 of the shell, which ends the archiver itself and is
//! counted nowhere (`pgarch.c`): from outside it looks as if nothing happened. On the server's own
//! host, as its user, it can be seen beforehand.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
};

/// Prints nothing; succeeds if the shell could run `$1`: a path, or a name in PATH, or its own.
const CAN_RUN: &str = r#"case "$1" in */*) test -x "$1";; *) command -v "$1";; esac"#;

/// The program that `command` begins with, if it is certain that the server on this data directory
/// can't run it.
pub fn lost_program<'c>(command: &'c str, data_directory: &Path) -> Option<&'c str> {
    let program = program(command)?;
    // Another user may find or may run other programs.
    let owner = fs::metadata(data_directory).ok()?.uid();
    if owner != rustix::process::geteuid().as_raw() {
        return None;
    }
    let path = match program.contains('/') {
        true => OsString::new(),
        false => path_of_server(data_directory)?,
    };
    // The same shell as system() takes.
    let status = Command::new("/bin/sh")
        .args(["-c", CAN_RUN, "sh", program])
        .env_clear()
        .env("PATH", path)
        .current_dir(data_directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| !status.success()).then_some(program)
}

/// The PATH that the server was started with, which it hands on to what it runs.
fn path_of_server(data_directory: &Path) -> Option<OsString> {
    let text = fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let process: u32 = text.lines().next()?.trim().parse().ok()?;
    let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
    let path = environment.split(|b| *b == 0).find_map(|pair| pair.strip_prefix(b"PATH="))?;
    Some(OsStr::from_bytes(path).to_owned())
}

/// The first word that isn't an assignment, if it is a plain one: nothing in it that a shell or the
/// server would replace.
fn program(command: &str) -> Option<&str> {
    let mut rest = command.trim_start();
    loop {
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let (word, after) = match quote {
            Some(quote) => rest.get(1..)?.split_once(quote)?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        if quote.is_some() && after.starts_with(|c: char| !c.is_whitespace()) {
            return None;
        }
        let plain = |c: char| c.is_alphanumeric() || "_./+-,:=".contains(c);
        let in_quotes = |c: char| plain(c) || (quote.is_some() && c == ' ');
        if word.is_empty() || word.starts_with('-') || !word.chars().all(in_quotes) {
            return None;
        }
        if quote.is_some() || !word.contains('=') {
            return Some(word);
        }
        rest = after.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_first_word_that_needs_no_shell_to_be_read() {
        for (command, expected) in [
            ("pgkeep archive-push %p", Some("pgkeep")),
            ("  /usr/bin/pgkeep", Some("/usr/bin/pgkeep")),
            ("PGKEEP_CONFIG=/etc/x.toml A= pgkeep archive-push %p", Some("pgkeep")),
            ("'/opt/my tools/pgkeep' archive-push %p", Some("/opt/my tools/pgkeep")),
            ("\"/opt/pgkeep\" archive-push", Some("/opt/pgkeep")),
            ("test ! -f x && pgkeep archive-push %p", Some("test")),
            ("", None),
            ("A=1", None),
            ("A='x y' pgkeep", None),
            ("$HOME/pgkeep archive-push", None),
            ("(cd /; pgkeep)", None),
            ("pgkeep; true", None),
            ("'/opt/pg'keep x", None),
            ("'unfinished", None),
            ("%p", None),
            ("\"$PGKEEP\" archive-push", None),
        ] {
            assert_eq!(program(command), expected, "{command}");
        }
    }

    #[test]
    fn only_what_certainly_cannot_be_run_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let at = |command| lost_program(command, folder.path());
        assert_eq!(at("/nowhere/pgkeep archive-push %p"), Some("/nowhere/pgkeep"));
        assert_eq!(at("/etc/passwd archive-push %p"), Some("/etc/passwd"));
        assert_eq!(at("./pgkeep archive-push %p"), Some("./pgkeep"));
        assert_eq!(at("/bin/sh -c x"), None);
        assert_eq!(at("pgkeeep archive-push %p"), None, "nobody knows the server's PATH");
        // This process as the server: its PATH is known, and the shell's own words too.
        fs::write(folder.path().join("postmaster.pid"), std::process::id().to_string()).unwrap();
        assert_eq!(at("pgkeeep archive-push %p"), Some("pgkeeep"));
        for command in ["sh -c x", "test -f x", "if true", "exec pgkeep"] {
            assert_eq!(at(command), None, "{command}");
        }
    }
}
