//! From a repository's settings to an open [`Repository`], and the making of a new one.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};
use zeroize::Zeroizing;

use super::{
    Repository,
    id::RandomId,
    keys::{KeyMaterial, read_key_file, write_key_file},
    layout,
    repository::Names,
};
use crate::{
    config::{KeySource, Location, RepositorySettings},
    error::{Context, Error, Kind, Result},
    storage::{
        Storage,
        local::{Local, sync_what_is_there},
        s3::S3,
    },
};

/// How long a passphrase command may take. Archiving waits for it, so it is bounded.
const PASSPHRASE_COMMAND_TIME: Duration = Duration::from_secs(60);

/// Held while a passphrase command runs: several may need the same thing, as a terminal. When the last one ended.
static PASSPHRASE_COMMAND: Mutex<Option<Instant>> = Mutex::const_new(None);

/// Opens a configured repository: reads its key, opens the place, and checks that what is there is
/// a repository that the key opens. A user who isn't its owner is refused.
pub async fn open(settings: &RepositorySettings) -> Result<Repository> {
    open_in(storage(&settings.location)?, settings).await
}

/// As [`open`], in the place that [`storage`] has given for these settings.
pub async fn open_in(
    storage: Arc<dyn Storage>,
    settings: &RepositorySettings,
) -> Result<Repository> {
    let material = key_material(settings).await?;
    Repository::open(&settings.name, storage, &material, settings.compression_level).await
}

/// The place where a repository lies.
pub fn storage(location: &Location) -> Result<Arc<dyn Storage>> {
    Ok(match location {
        Location::Directory(root) => Arc::new(Local::open(root)?),
        Location::Bucket(place) => Arc::new(S3::new((**place).clone())),
        Location::Given(given) => Arc::clone(&given.0),
    })
}

/// Whether `repo.json` alone is gone from where a repository's other objects are: then it isn't a disk
/// that isn't mounted, or a wrong url.
pub async fn has_lost_its_file(settings: &RepositorySettings) -> Result<bool> {
    let storage = storage(&settings.location)?;
    match storage.size(&layout::repository_file()).await {
        Ok(_) => return Ok(false),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    let clusters = storage.list("clusters/", None, 1).await?;
    Ok(!clusters.is_empty() || !storage.list(layout::KEYS, None, 1).await?.is_empty())
}

/// What [`init`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRepository {
    /// The new repository's id.
    pub id: RandomId,
    /// What names hold in it: whether the storage refuses to create what is there.
    pub names: Names,
    /// Its key file, if it has one.
    pub key_file: Option<PathBuf>,
    /// Whether `init` made the key file. An existing one is used as it is.
    pub key_file_made: bool,
}

/// Makes a repository, and its key file unless that is there.
///
/// The key file is durable before anything is sealed with it, and `repo.json` comes last, so an
/// `init` that was killed is just run again. Where there is a repository already, nothing is made.
pub async fn init(settings: &RepositorySettings) -> Result<NewRepository> {
    let storage: Arc<dyn Storage> = match &settings.location {
        Location::Directory(root) => Arc::new(Local::open_or_make(root)?),
        elsewhere => storage(elsewhere)?,
    };
    // Asked before a key is made that wouldn't open what is there.
    match storage.size(&layout::repository_file()).await {
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
        Ok(_) => {
            let message = format!("there is a repository at {} already", storage.address());
            return Err(Error::new(Kind::Conflict, message));
        }
    }
    let (key_file, key_file_made) = match &settings.key {
        KeySource::File(path) => (Some(path.clone()), make_key_file(path)?),
        _ => (None, false),
    };
    let material = key_material(settings).await?;
    let file = Repository::init(storage.as_ref(), &material).await?;
    let (id, names) = (file.repository, file.names);
    Ok(NewRepository { id, names, key_file, key_file_made })
}

/// Makes the key file unless it is there; whether it did. It is durable either way: an `init` that was
/// killed may have left one that isn't.
fn make_key_file(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => {
            sync_what_is_there(path)
                .context(Kind::Local, || format!("sync the key file {}", path.display()))?;
            Ok(false)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            write_key_file(path).map_err(|e| {
                e.hint(
                    "the folder of the key file must be there, and this user must be able to \
                     write to it",
                )
            })?;
            Ok(true)
        }
        Err(e) => Err(Error::new(Kind::Key, format!("look at the key file {}", path.display()))
            .because(e)
            .if_denied(path)),
    }
}

async fn key_material(settings: &RepositorySettings) -> Result<KeyMaterial> {
    match &settings.key {
        KeySource::File(path) => read_key_file(path).map(KeyMaterial::KeyFile),
        KeySource::PassphraseFile(path) => passphrase_file(path).map(KeyMaterial::Passphrase),
        KeySource::PassphraseCommand(command) => {
            passphrase_command(&settings.name, command).await.map(KeyMaterial::Passphrase)
        }
        KeySource::Unencrypted => Ok(KeyMaterial::None),
    }
}

/// The first line of a passphrase file.
fn passphrase_file(path: &Path) -> Result<Zeroizing<String>> {
    let refuse =
        |why: &str| Error::new(Kind::Key, format!("the passphrase file {} {why}", path.display()));
    let unreadable = |e| refuse("can't be read").because(e).if_denied(path);
    let meta = fs::metadata(path).map_err(unreadable)?;
    if meta.mode() & 0o007 != 0 {
        return Err(refuse("may be used by everybody on this host").hint("chmod 600 it"));
    }
    let text = Zeroizing::new(fs::read(path).map_err(unreadable)?);
    match first_line(&text) {
        Ok("") => Err(refuse("has no passphrase in its first line")),
        Ok(phrase) => Ok(Zeroizing::new(phrase.to_owned())),
        Err(_) => Err(refuse("has a first line that isn't UTF-8")),
    }
}

/// What a passphrase's source says in its first line, without the line's end.
fn first_line(text: &[u8]) -> Result<&str, std::str::Utf8Error> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
}

/// When this process last had a passphrase command to wait for: now, if one runs.
pub(super) fn last_waited_for_passphrase() -> Option<Instant> {
    PASSPHRASE_COMMAND.try_lock().map_or_else(|_| Some(Instant::now()), |ended| *ended)
}

/// The first line that a shell command writes. What it says on standard error goes to ours.
async fn passphrase_command(repository: &str, command: &str) -> Result<Zeroizing<String>> {
    // The command itself may hold a secret, so errors name the setting and not its value.
    let refuse = |why: String| {
        Error::new(Kind::Key, format!("passphrase-command of [repository.{repository}] {why}"))
    };
    let mut ended = PASSPHRASE_COMMAND.lock().await;
    let child = tokio::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context(Kind::Local, || "run /bin/sh for passphrase-command")?;
    let output = tokio::time::timeout(PASSPHRASE_COMMAND_TIME, child.wait_with_output()).await;
    *ended = Some(Instant::now());
    drop(ended);
    let output = output
        .map_err(|_| refuse(format!("took more than {} s", PASSPHRASE_COMMAND_TIME.as_secs())))?
        .map_err(|e| refuse("can't be run".into()).because(e))?;
    let stdout = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(refuse(format!("failed: {}", output.status)));
    }
    match first_line(&stdout) {
        Ok("") => Err(refuse("wrote nothing".into()).hint("it must write the passphrase")),
        Ok(phrase) => Ok(Zeroizing::new(phrase.to_owned())),
        Err(_) => Err(refuse("wrote something that isn't UTF-8".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::RetentionSettings;

    fn settings(folder: &Path, key: KeySource) -> RepositorySettings {
        RepositorySettings {
            name: "main".into(),
            location: Location::Directory(folder.join("repo")),
            key,
            compression_level: 1,
            retention: RetentionSettings::NONE,
        }
    }

    #[tokio::test]
    async fn init_makes_a_key_file_once_and_open_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("main.key");
        let settings = settings(folder.path(), KeySource::File(key.clone()));
        assert_eq!(open(&settings).await.unwrap_err().kind(), Kind::Repository);

        let made = init(&settings).await.unwrap();
        assert_eq!((made.key_file.as_deref(), made.key_file_made), (Some(key.as_path()), true));
        let repository = open(&settings).await.unwrap();
        assert_eq!(repository.keyring().repository(), made.id);
        assert!(repository.keyring().is_encrypted());

        let again = init(&settings).await.unwrap_err();
        assert_eq!(again.kind(), Kind::Conflict);
        assert!(open(&settings).await.is_ok(), "the first one is untouched");
    }

    #[tokio::test]
    async fn init_of_an_existing_repository_makes_no_key() {
        let folder = tempfile::tempdir().unwrap();
        init(&settings(folder.path(), KeySource::Unencrypted)).await.unwrap();
        let key = folder.path().join("other.key");
        let other = settings(folder.path(), KeySource::File(key.clone()));
        assert_eq!(init(&other).await.unwrap_err().kind(), Kind::Conflict);
        assert!(!key.exists());
    }

    #[tokio::test]
    async fn init_that_was_killed_after_the_key_is_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("main.key");
        let settings = settings(folder.path(), KeySource::File(key.clone()));
        init(&settings).await.unwrap();
        // All but the last step was done.
        fs::remove_file(folder.path().join("repo/repo.json")).unwrap();
        let made = init(&settings).await.unwrap();
        assert!(!made.key_file_made, "the existing key is used as it is");
        assert_eq!(open(&settings).await.unwrap().keyring().repository(), made.id);
    }

    #[tokio::test]
    async fn passphrases_come_from_a_private_file_or_a_command() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("phrase");
        fs::write(&path, "correct horse battery\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let from_file = settings(folder.path(), KeySource::PassphraseFile(path.clone()));
        assert_eq!(init(&from_file).await.unwrap_err().kind(), Kind::Key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        init(&from_file).await.unwrap();

        let command = |c: &str| {
            settings(
                folder.path(),
                KeySource::PassphraseCommand(c.replace("PATH", &path.to_string_lossy())),
            )
        };
        open(&command("cat PATH; echo more")).await.unwrap();
        for bad in ["cat PATH; exit 3", "true", "echo wrong horse battery", "printf '\\377\\n'"] {
            let e = open(&command(bad)).await.unwrap_err();
            assert_eq!(e.kind(), Kind::Key, "{bad}");
            assert!(!e.to_string().contains("horse"), "{e}");
        }
    }
}
