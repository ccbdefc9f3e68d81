//! The `restore_command` that a restored server gets: this program, with this configuration.

use std::path::PathBuf;

use super::Global;
use crate::{
    config::{DEFAULT_PATH, Settings},
    error::{Context, Kind, Result},
};

/// The command, ready for `restore_command`: quoted for the shell, `%` doubled for PostgreSQL.
pub(super) fn for_server(global: &Global, settings: &Settings, cluster: &str) -> Result<String> {
    written(settings, cluster, global.repo.as_deref(), &[])
}

/// As [`for_server`], for a copy that is to leave everything alone that isn't its own, and gets its WAL
/// from this repository.
pub(super) fn for_copy(settings: &Settings, cluster: &str, repository: &str) -> Result<String> {
    written(settings, cluster, Some(repository), &["--refuse-new-tablespaces"])
}

fn written(
    settings: &Settings,
    cluster: &str,
    repository: Option<&str>,
    options: &[&str],
) -> Result<String> {
    // Where /proc isn't mounted, the way it was called has to do.
    let called = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
    let program = std::env::current_exe()
        .or_else(|e| called.ok_or(e))
        .context(Kind::Local, || "find this program")?;
    let mut words = vec![program.display().to_string()];
    if let Some(file) = settings.file.as_ref().filter(|f| f.as_os_str() != DEFAULT_PATH) {
        words.extend(["--config".into(), file.display().to_string()]);
    }
    words.extend(["--cluster".into(), cluster.to_owned()]);
    if let Some(repository) = repository {
        words.extend(["--repo".into(), repository.to_owned()]);
    }
    words.push("archive-get".into());
    words.extend(options.iter().map(|option| (*option).to_owned()));
    Ok(command(&words))
}

fn command(words: &[String]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| quote(word).replace('%', "%%")).collect();
    format!("{} %f %p", quoted.join(" "))
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    let plain = !word.is_empty()
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell_and_postgresql() {
        let words = ["/usr/bin/pgkeep", "--config", "/my dir/it's 100%.toml", "archive-get"];
        assert_eq!(
            command(&words.map(String::from)),
            r"/usr/bin/pgkeep --config '/my dir/it'\''s 100%%.toml' archive-get %f %p"
        );
    }
}
