//! Keys: data keys, the slots that wrap them, key files and passphrases.
//!
//! A repository has random data keys. Each lies, with the page-hash key, in one object below
//! `keys/`, wrapped once for each *slot*: a key file's key through HKDF, or a passphrase through
//! Argon2id. What wraps is bound to the repository's id, so a key opens no other repository, and a
//! `repo.json` from elsewhere is noticed.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::Aead, aead::Payload};
use base64::{Engine, prelude::BASE64_STANDARD};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::id::RandomId;
use crate::error::{Context, Error, Kind, Result};

/// A secret of 32 bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// The shortest passphrase that `init` accepts, in characters.
pub const MIN_PASSPHRASE: usize = 12;

const KEY_FILE_MAGIC: &str = "pgkeep-key-1";

const FROM_COPY: &str = "bring it back from the copy that was made of it: nothing else opens the \
                         repository";

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Kind::Internal, format!("get random bytes: {e}")))?;
    Ok(bytes)
}

/// What a client has to open a repository with.
pub enum KeyMaterial {
    /// The key from a key file.
    KeyFile(Secret),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
    /// Nothing: the repository isn't encrypted, because that was asked for.
    None,
}

impl KeyMaterial {
    fn slot_kind(&self) -> SlotKind {
        match self {
            KeyMaterial::Passphrase(_) => SlotKind::Passphrase,
            _ => SlotKind::KeyFile,
        }
    }
}

/// Writes a new key file (0600, never over an existing one) and makes it durable. It has its name
/// only once it is whole: half a key would be in the way of a second attempt.
pub fn write_key_file(path: &Path) -> Result<()> {
    let what = || format!("write the key file {}", path.display());
    let key = Zeroizing::new(random::<32>()?);
    let line = Zeroizing::new(format!(
        "{KEY_FILE_MAGIC} {} {}\n",
        *Zeroizing::new(hex::encode(key.as_slice())),
        key_checksum(&key)
    ));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let write = || -> std::io::Result<()> {
        // One that a killed attempt left opens nothing.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        linked?;
        File::open(folder)?.sync_all()
    };
    write().context(Kind::Local, what).map_err(|e| e.if_denied(path))
}

fn key_checksum(key: &Secret) -> String {
    let digest = Sha256::new().chain_update(b"pgkeep key file").chain_update(key).finalize();
    hex::encode(&digest[..4])
}

/// Reads a key file. A file that others may read, or one that isn't a whole key, is refused.
pub fn read_key_file(path: &Path) -> Result<Secret> {
    let refuse =
        |why: &str| Error::new(Kind::Key, format!("the key file {} {why}", path.display()));
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => refuse("can't be read").because(e).hint(
            "`pgkeep init` makes one for a new repository; for an existing repository bring the \
             key file that it was made with",
        ),
        _ => refuse("can't be read").because(e).if_denied(path),
    };
    let meta = fs::metadata(path).map_err(unreadable)?;
    if meta.mode() & 0o007 != 0 {
        return Err(refuse("may be used by everybody on this host").hint("chmod 600 it"));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    let mut words = text.split_whitespace();
    let (magic, key, checksum) = (words.next(), words.next(), words.next());
    if magic != Some(KEY_FILE_MAGIC) || words.next().is_some() {
        return Err(refuse("isn't a pgkeep key file")
            .hint(format!("expected one line: {KEY_FILE_MAGIC}, 64 hexadecimal digits, checksum"))
            .hint(FROM_COPY));
    }
    let mut secret = Zeroizing::new([0u8; 32]);
    let whole = key.is_some_and(|k| hex::decode_to_slice(k, secret.as_mut_slice()).is_ok())
        && checksum == Some(key_checksum(&secret).as_str());
    if !whole {
        return Err(
            refuse("is damaged: its key is short or doesn't fit its checksum").hint(FROM_COPY)
        );
    }
    Ok(secret)
}

/// The keys of an open repository.
pub struct Keyring {
    repository: RandomId,
    current: Option<RandomId>,
    data_keys: BTreeMap<RandomId, Secret>,
    page_hash_key: Secret,
}

impl Keyring {
    /// The ring of an unencrypted repository. Its page-hash key is no secret.
    pub(super) fn plain(repository: RandomId) -> Self {
        let page_hash_key = blake3::derive_key("pgkeep page-hash key, unencrypted", &repository.0);
        Keyring {
            repository,
            current: None,
            data_keys: BTreeMap::new(),
            page_hash_key: Zeroizing::new(page_hash_key),
        }
    }

    /// The repository these keys belong to.
    pub fn repository(&self) -> RandomId {
        self.repository
    }

    /// Whether the repository is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.current.is_some()
    }

    /// The key that new objects are sealed with; `None` without encryption.
    pub fn current(&self) -> Option<RandomId> {
        self.current
    }

    /// The key for blocks' hashes, the same for the repository's whole life.
    pub fn page_hash_key(&self) -> &[u8; 32] {
        &self.page_hash_key
    }

    pub(super) fn data_key(&self, id: RandomId) -> Option<&[u8]> {
        self.data_keys.get(&id).map(|key| key.as_slice())
    }
}

/// One object below `keys/`: a data key and the page-hash key, wrapped in slots.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct WrappedKeys {
    format: u32,
    repository: RandomId,
    pub key: RandomId,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SlotKind {
    KeyFile,
    Passphrase,
}

/// The keys, sealed under a key that only a key file or a passphrase gives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Slot {
    kind: SlotKind,
    /// 32 hexadecimal digits.
    salt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon2Cost>,
    /// Data key and page-hash key, AES-256-GCM, base64.
    sealed: String,
}

/// What Argon2id costs for a slot.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Argon2Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// 64 MiB, three passes: the second recommended choice of RFC 9106, section 4.
const ARGON2_COST: Argon2Cost = Argon2Cost { memory_kib: 64 << 10, passes: 3, lanes: 4 };

/// The most a stored slot may ask for: it is untrusted until it has opened.
const ARGON2_MAX_KIB: u32 = 1 << 20;

impl WrappedKeys {
    /// A new data key and page-hash key for a new repository, wrapped for `material`.
    pub fn generate(repository: RandomId, material: &KeyMaterial) -> Result<Self> {
        if let KeyMaterial::Passphrase(phrase) = material
            && phrase.chars().count() < MIN_PASSPHRASE
        {
            let message = format!("the passphrase has fewer than {MIN_PASSPHRASE} characters");
            return Err(Error::new(Kind::Key, message).hint("take a longer one, or a key file"));
        }
        let key = RandomId::random()?;
        let secrets = Zeroizing::new(random::<64>()?);
        let argon2id = matches!(material, KeyMaterial::Passphrase(_)).then_some(ARGON2_COST);
        let mut slot = Slot {
            kind: material.slot_kind(),
            salt: hex::encode(random::<16>()?),
            argon2id,
            sealed: String::new(),
        };
        let cipher = slot.cipher(repository, key, material)?;
        let payload = Payload { msg: secrets.as_slice(), aad: &slot.aad(repository, key) };
        let sealed = cipher
            .encrypt(&Nonce::default(), payload)
            .map_err(|e| Error::new(Kind::Internal, format!("wrap the data key: {e}")))?;
        slot.sealed = BASE64_STANDARD.encode(sealed);
        Ok(WrappedKeys { format: 1, repository, key, slots: vec![slot] })
    }

    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).context(Kind::Internal, || "write the keys object")
    }

    /// Reads a keys object. Those of another repository (an `init` that was killed may have left
    /// one) are `None`.
    pub fn parse(bytes: &[u8], repository: RandomId) -> Result<Option<Self>, String> {
        let keys: WrappedKeys = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if keys.format != 1 {
            return Err(format!("its format is {}, this pgkeep reads 1", keys.format));
        }
        Ok((keys.repository == repository).then_some(keys))
    }

    /// Unwraps the data key and the page-hash key, if a slot opens with `material`.
    fn unwrap_with(&self, material: &KeyMaterial) -> Result<Option<(Secret, Secret)>> {
        for slot in self.slots.iter().filter(|s| s.kind == material.slot_kind()) {
            let cipher = slot.cipher(self.repository, self.key, material)?;
            let Ok(sealed) = BASE64_STANDARD.decode(&slot.sealed) else { continue };
            let aad = slot.aad(self.repository, self.key);
            let opened = cipher.decrypt(&Nonce::default(), Payload { msg: &sealed, aad: &aad });
            let Ok(secrets) = opened.map(Zeroizing::new) else { continue };
            if let Some((data, hash)) = secrets.split_at_checked(32)
                && let (Ok(data), Ok(hash)) = (data.try_into(), hash.try_into())
            {
                return Ok(Some((Zeroizing::new(data), Zeroizing::new(hash))));
            }
        }
        Ok(None)
    }
}

impl Slot {
    fn aad(&self, repository: RandomId, key: RandomId) -> Vec<u8> {
        let kind: &[u8] = match self.kind {
            SlotKind::KeyFile => b"key-file",
            SlotKind::Passphrase => b"passphrase",
        };
        [&repository.0, &key.0, kind].concat()
    }

    /// The slot's own cipher. Its key is used once, with a salt of its own, so the nonce is zero.
    fn cipher(
        &self,
        repository: RandomId,
        key: RandomId,
        material: &KeyMaterial,
    ) -> Result<Aes256Gcm> {
        let internal = |e: String| Error::new(Kind::Internal, format!("derive a slot's key: {e}"));
        let salt = hex::decode(&self.salt)
            .map_err(|e| Error::new(Kind::Damaged, format!("a slot of key {key}: {e}")))?;
        let secret: Secret = match material {
            KeyMaterial::KeyFile(secret) => secret.clone(),
            KeyMaterial::Passphrase(phrase) => {
                let cost =
                    self.argon2id.filter(|c| c.memory_kib <= ARGON2_MAX_KIB && c.passes <= 64);
                let params = cost
                    .and_then(|c| {
                        argon2::Params::new(c.memory_kib, c.passes, c.lanes, Some(32)).ok()
                    })
                    .ok_or_else(|| {
                        Error::new(
                            Kind::Damaged,
                            format!("a slot of key {key} has impossible costs"),
                        )
                    })?;
                let mut secret = Zeroizing::new([0u8; 32]);
                argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
                    .hash_password_into(phrase.as_bytes(), &salt, secret.as_mut_slice())
                    .map_err(|e| internal(e.to_string()))?;
                secret
            }
            KeyMaterial::None => return Err(internal("there is no key".into())),
        };
        let mut slot_key = Zeroizing::new([0u8; 32]);
        let info = [b"pgkeep slot v1".as_slice(), &self.aad(repository, key)];
        Hkdf::<Sha256>::new(Some(&salt), secret.as_slice())
            .expand_multi_info(&info, slot_key.as_mut_slice())
            .map_err(|e| internal(e.to_string()))?;
        Aes256Gcm::new_from_slice(slot_key.as_slice()).map_err(|e| internal(e.to_string()))
    }
}

/// The ring of an encrypted repository, from its keys objects in ascending order: the last one is
/// the current.
pub(super) fn open_ring(
    repository: RandomId,
    wrapped: &[WrappedKeys],
    material: &KeyMaterial,
) -> Result<Keyring> {
    let mut data_keys = BTreeMap::new();
    let mut last = None;
    for keys in wrapped {
        if let Some((data, hash)) = keys.unwrap_with(material)? {
            data_keys.insert(keys.key, data);
            last = Some((keys.key, hash));
        }
    }
    let Some((current, page_hash_key)) = last else {
        let with = match material {
            KeyMaterial::Passphrase(_) => "the passphrase",
            _ => "the key file",
        };
        return Err(Error::new(Kind::Key, format!("{with} doesn't open repository {repository}"))
            .hint("is it the one that this repository was made with?"));
    };
    Ok(Keyring { repository, current: Some(current), data_keys, page_hash_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> KeyMaterial {
        KeyMaterial::KeyFile(Zeroizing::new([7; 32]))
    }

    #[test]
    fn a_slot_opens_with_its_key_and_its_repository_only() {
        let repository = RandomId([1; 16]);
        let wrapped = WrappedKeys::generate(repository, &key()).unwrap();
        let json = wrapped.to_json().unwrap();
        let read = || WrappedKeys::parse(&json, repository).unwrap().unwrap();
        let ring = open_ring(repository, &[read()], &key()).unwrap();
        assert_eq!(ring.current(), Some(wrapped.key));

        let wrong = KeyMaterial::KeyFile(Zeroizing::new([8; 32]));
        assert_eq!(open_ring(repository, &[read()], &wrong).err().unwrap().kind(), Kind::Key);
        assert!(WrappedKeys::parse(&json, RandomId([2; 16])).unwrap().is_none());
        let mut moved = read();
        moved.repository = RandomId([2; 16]);
        assert!(open_ring(RandomId([2; 16]), &[moved], &key()).is_err());
    }

    #[test]
    fn a_passphrase_opens_its_slot() {
        let repository = RandomId([1; 16]);
        let phrase = |p: &str| KeyMaterial::Passphrase(Zeroizing::new(p.to_owned()));
        let wrapped = WrappedKeys::generate(repository, &phrase("correct horse battery")).unwrap();
        assert!(open_ring(repository, &[wrapped], &phrase("correct horse battery")).is_ok());
        let wrapped = WrappedKeys::generate(repository, &phrase("correct horse battery")).unwrap();
        assert!(open_ring(repository, &[wrapped], &phrase("correct horse batterx")).is_err());
        assert!(WrappedKeys::generate(repository, &phrase("short")).is_err());
    }

    #[test]
    fn key_files_that_are_short_damaged_or_public_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        write_key_file(&path).unwrap();
        let key = read_key_file(&path).unwrap();
        assert_ne!(*key, [0; 32]);
        assert!(write_key_file(&path).is_err(), "never over an existing key");

        let text = fs::read_to_string(&path).unwrap();
        for bad in [
            String::new(),
            "secret".into(),
            text[..40].into(),
            text.replacen(&text[13..14], if &text[13..14] == "0" { "1" } else { "0" }, 1),
        ] {
            fs::write(&path, &bad).unwrap();
            assert_eq!(read_key_file(&path).unwrap_err().kind(), Kind::Key, "{bad:?}");
        }
        fs::write(&path, &text).unwrap();
        let open = PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, open).unwrap();
        assert!(read_key_file(&path).is_err());
    }
}
