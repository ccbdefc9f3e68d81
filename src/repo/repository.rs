//! A repository: its storage, its id, its keys.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    id::RandomId,
    keys::{KeyMaterial, Keyring, WrappedKeys, open_ring},
    layout,
};
use crate::{
    error::{Context, Error, Kind, Result},
    storage::{CreateOnly, Listed, ObjectName, Range, Storage},
};

/// The repository format that this code writes and reads.
pub const FORMAT: u32 = 1;

/// `repo.json`: the only object that is plain by design. Written last by `init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RepositoryFile {
    /// Always `pgkeep`.
    pub product: String,
    /// The format version.
    pub format: u32,
    /// The repository's id.
    pub repository: RandomId,
    /// How objects are sealed.
    pub encryption: Encryption,
    /// What the names of archived files hold.
    #[serde(default, skip_serializing_if = "Names::are_plain")]
    pub names: Names,
}

/// What the names of archived files and backups hold beside what they stand for. Settled by `init`,
/// for the repository's whole life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// Nothing: the storage refuses to create an object that is there.
    #[default]
    Plain,
    /// What makes them differ where the content does, since the storage would overwrite: archived
    /// files have their checksum, backups a random number.
    Content,
}

impl Names {
    fn are_plain(&self) -> bool {
        *self == Names::Plain
    }
}

/// Whether a repository is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// AES-256-GCM, the default.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// None: checksums find damage and mix-ups, not forgery. Only when asked for.
    None,
}

/// An open repository.
#[derive(Clone)]
pub struct Repository {
    name: String,
    storage: Arc<dyn Storage>,
    keyring: Arc<Keyring>,
    names: Names,
    compression_level: i32,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "repository {} at {}", self.name, self.storage.address())
    }
}

impl Repository {
    /// Opens the repository in `storage`, configured under `name`, and checks that it is one, that
    /// this version reads it, and that `material` opens it.
    pub async fn open(
        name: &str,
        storage: Arc<dyn Storage>,
        material: &KeyMaterial,
        compression_level: i32,
    ) -> Result<Self> {
        // Both at once, since each answer may take its time. Without a key there is nothing to be opened.
        let (bytes, keys) = match material {
            KeyMaterial::None => (fetch_repository_file(storage.as_ref()).await?, Ok(Vec::new())),
            _ => {
                let keys = async { Ok(fetch_keys(storage.as_ref()).await) };
                // Where there is no repository, what lies below keys/ isn't waited for.
                tokio::try_join!(fetch_repository_file(storage.as_ref()), keys)?
            }
        };
        let file = parse_repository_file(&bytes, storage.address())?;
        if file.names == Names::Content {
            storage.create_without_condition();
        }
        let address = storage.address();
        let keyring = match (file.encryption, material) {
            (Encryption::None, KeyMaterial::None) => {
                // No key proves the id, and what is written now is of use only with the right one: a bit may
                // have flipped on the way.
                if read_repository_file(storage.as_ref()).await? != file {
                    return Err(Error::new(
                        Kind::Damaged,
                        format!("repo.json in {address} is damaged: read twice, it isn't the same"),
                    )
                    .hint("check the disk under the repository, and the way to it"));
                }
                Keyring::plain(file.repository)
            }
            (Encryption::None, _) => {
                return Err(Error::new(
                    Kind::Key,
                    format!("the repository {name} at {address} says that it isn't encrypted, but a \
                             key is configured for it"),
                )
                .hint("someone may have replaced it; if it is meant to be plain, set encryption = \"none\" and no key"));
            }
            (Encryption::Aes256Gcm, KeyMaterial::None) => {
                return Err(Error::new(
                    Kind::Key,
                    format!(
                        "the repository {name} at {address} is encrypted, but no key is configured"
                    ),
                )
                .hint(format!(
                    "set key-file, passphrase-file or passphrase-command in [repository.{name}]"
                )));
            }
            (Encryption::Aes256Gcm, material) => {
                let mut wrapped = parse_keys(&keys?, file.repository, address)?;
                if wrapped.is_empty() {
                    // They may have come since, where an init writes both.
                    wrapped = read_keys(storage.as_ref(), file.repository).await?;
                }
                open_ring(file.repository, &wrapped, material).map_err(|e| {
                    e.while_doing(format!("open the repository {name} at {address}"))
                })?
            }
        };
        storage.set_landmark(&layout::repository_file(), bytes);
        Ok(Repository {
            name: name.to_owned(),
            storage,
            keyring: Arc::new(keyring),
            names: file.names,
            compression_level,
        })
    }

    /// Makes a new repository in `storage`: the keys object, read back, then `repo.json`. Whether
    /// the storage refuses to create what is there decides what names hold.
    pub async fn init(storage: &dyn Storage, material: &KeyMaterial) -> Result<RepositoryFile> {
        let address = storage.address();
        match storage.read(&layout::repository_file(), Range::All).await {
            Ok(_) => {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("there is a repository at {address} already"),
                ));
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        let names = match storage.create_only().await? {
            CreateOnly::Inherent | CreateOnly::Honoured => Names::Plain,
            CreateOnly::Ignored => {
                storage.create_without_condition();
                Names::Content
            }
        };
        let repository = RandomId::random()?;
        let encryption = match material {
            KeyMaterial::None => Encryption::None,
            _ => Encryption::Aes256Gcm,
        };
        if encryption == Encryption::Aes256Gcm {
            let wrapped = WrappedKeys::generate(repository, material)?;
            storage.put(&layout::keys_object(1, wrapped.key), wrapped.to_json()?.into()).await?;
            let back = read_keys(storage, repository).await?;
            open_ring(repository, &back, material)?;
        }
        let file = RepositoryFile {
            product: "pgkeep".into(),
            format: FORMAT,
            repository,
            encryption,
            names,
        };
        let mut json =
            serde_json::to_vec_pretty(&file).context(Kind::Internal, || "write repo.json")?;
        json.push(b'\n');
        storage.put(&layout::repository_file(), json.into()).await?;
        Ok(file)
    }

    /// The name it has in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// Its keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// What names hold here.
    pub fn names(&self) -> Names {
        self.names
    }

    /// The zstd level for new objects.
    pub fn compression_level(&self) -> i32 {
        self.compression_level
    }

    /// What is wrong with a keys object that doesn't keep the repository from being opened: one that
    /// isn't what its name says. One of another repository, which an `init` that was killed has left,
    /// is in nobody's way.
    pub async fn check_keys_object(
        &self,
        name: &ObjectName,
        number: u32,
    ) -> Result<Option<String>> {
        let bytes = match self.storage.read(name, Range::All).await {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(match WrappedKeys::parse(&bytes, self.keyring.repository()) {
            Err(e) => Some(e),
            Ok(Some(keys)) if layout::keys_object(number, keys.key) != *name => {
                Some(format!("it has key {}", keys.key))
            }
            Ok(_) => None,
        })
    }

    /// Reads `repo.json` once more and checks that it is still this repository: what answered
    /// "not there" may be an unmounted disk's empty directory.
    pub async fn prove_present(&self) -> Result<()> {
        let file = read_repository_file(self.storage()).await?;
        if file.repository == self.keyring.repository() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Conflict,
            format!("{} is another repository than a moment ago", self.storage.address()),
        ))
    }
}

async fn read_repository_file(storage: &dyn Storage) -> Result<RepositoryFile> {
    parse_repository_file(&fetch_repository_file(storage).await?, storage.address())
}

async fn fetch_repository_file(storage: &dyn Storage) -> Result<Bytes> {
    match storage.read(&layout::repository_file(), Range::All).await {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.is_not_found() => Err(Error::new(
            Kind::Repository,
            format!("there is no repository at {}", storage.address()),
        )
        .hint("run `pgkeep init`, or check the url; is the disk mounted?")),
        Err(e) => Err(e.into()),
    }
}

fn parse_repository_file(bytes: &[u8], address: &str) -> Result<RepositoryFile> {
    let damaged = |what: String| {
        Error::new(Kind::Damaged, format!("repo.json in {address} is damaged: {what}"))
    };
    // The version first: a later format may have other fields.
    #[derive(Deserialize)]
    struct Version {
        product: String,
        format: u32,
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if version.product != "pgkeep" {
        return Err(damaged(format!("it is a repository of {:?}", version.product)));
    }
    if version.format != FORMAT {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "the repository at {address} has format {}, this pgkeep reads {FORMAT}",
                version.format
            ),
        )
        .hint("use a newer pgkeep"));
    }
    serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))
}

/// The largest keys object, in bytes: that of one with a hundred slots is smaller.
const LARGEST_KEYS: u64 = 64 << 10;

/// The objects of `keys/`. What lies there may be anybody's, as long as `repo.json` wasn't read.
async fn fetch_keys(storage: &dyn Storage) -> Result<Vec<(ObjectName, Bytes)>> {
    let mut found = Vec::new();
    for listed in storage.list(layout::KEYS, None, 10_000).await? {
        if listed.size > LARGEST_KEYS {
            let Listed { name, size } = listed;
            let address = storage.address();
            let what = format!(
                "{name} in {address} is damaged: it has {size} bytes, where {LARGEST_KEYS} are the most"
            );
            return Err(Error::new(Kind::Damaged, what));
        }
        match storage.read(&listed.name, Range::All).await {
            Ok(bytes) => found.push((listed.name, bytes)),
            // Gone with the rest, where a disk was unmounted meanwhile.
            Err(e) if e.is_not_found() => drop(read_repository_file(storage).await?),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Those of them that are of `repository`.
fn parse_keys(
    objects: &[(ObjectName, Bytes)],
    repository: RandomId,
    address: &str,
) -> Result<Vec<WrappedKeys>> {
    let mut found = Vec::new();
    for (name, bytes) in objects {
        let parsed = WrappedKeys::parse(bytes, repository).map_err(|e| {
            Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {e}"))
        })?;
        found.extend(parsed);
    }
    Ok(found)
}

/// The keys of a repository whose `repo.json` was read before.
async fn read_keys(storage: &dyn Storage, repository: RandomId) -> Result<Vec<WrappedKeys>> {
    let address = storage.address();
    let found = parse_keys(&fetch_keys(storage).await?, repository, address)?;
    if found.is_empty() {
        // A disk may have been unmounted since repo.json was read.
        read_repository_file(storage).await?;
        let message = format!(
            "repo.json in {address} says that this is repository {repository}, and keys/ has no key of it"
        );
        return Err(Error::new(Kind::Damaged, message)
            .hint("restore repo.json and the folder keys/ from a copy; without them nothing can be opened"));
    }
    Ok(found)
}
