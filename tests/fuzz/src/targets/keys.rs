//! What opens a repository: key files, passphrases, and the slots that they open.
//!
//! The first byte chooses. 0: the rest is a key file. Else it is a keys object, whose slots the target seals: 1 for
//! what a passphrase file has, 2 for what a passphrase command prints, 3 for a key file. The second byte says how
//! many slots there are, and each takes: how, salt, cost of memory in KiB, passes, lanes. How is: 1 of the other
//! kind, 2 sealed for another secret, 4 with keys that are too short, 8 without costs. Then comes the file.
//! What is opened has to be what these say, and no error shows what the file has.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hkdf::Hkdf;
use pgkeep::{
    config::{KeySource, Location, RepositorySettings, RetentionSettings},
    error::{Error, Kind},
    repo::{Repository, id::RandomId, keys::read_key_file, layout, open::open},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{input::Input, place::wait};

/// The most that a passphrase's slots may cost here: what they cost really is bounded by the reader, and
/// would take a time of its own.
const MOST_KIB: u32 = 128;

const REPOSITORY: RandomId = RandomId([0x11; 16]);
const KEY: RandomId = RandomId([0x22; 16]);

fn checksum(key: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"pgkeep key file").chain_update(key).finalize();
    hex::encode(&digest[..4])
}

/// Writes a file that this user alone may read.
fn write(path: &Path, content: &[u8]) {
    fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o600)))
        .expect("a file");
}

/// No error shows what a file of secrets has.
fn shows_nothing(error: &Error, file: &[u8]) {
    let shown = format!("{error} {error:?} {:?}", error.hints());
    for word in file.split(u8::is_ascii_whitespace) {
        // Not what a message has anyway.
        let is_secret = word.len() >= 32 && word.iter().collect::<BTreeSet<_>>().len() >= 8;
        let is_shown = is_secret && shown.as_bytes().windows(word.len()).any(|part| part == word);
        assert!(!is_shown, "a secret is shown: {shown}");
    }
}

fn key_file(content: &[u8]) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("key");
    write(&path, content);
    match read_key_file(&path) {
        Ok(key) => {
            let line = format!("pgkeep-key-1 {} {}", hex::encode(*key), checksum(&*key));
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let mut said = words(std::str::from_utf8(content).expect("it was read"));
            said[1].make_ascii_lowercase();
            assert_eq!(said, words(&line));
        }
        Err(e) => {
            assert_eq!(e.kind(), Kind::Key);
            shows_nothing(&e, content);
        }
    }
}

/// What a slot is sealed for.
#[derive(Clone, Copy)]
enum Secret<'a> {
    Key([u8; 32]),
    Phrase(&'a [u8]),
}

struct Slot {
    json: Value,
    opens: bool,
}

fn slot(input: &mut Input<'_>, secret: Option<Secret<'_>>) -> Slot {
    let how = input.byte();
    let salt = input.piece();
    let (memory, passes, lanes) = (input.word(), input.byte(), input.byte());
    let is_phrase = matches!(secret, Some(Secret::Phrase(_))) != (how & 1 == 1);
    let kind = if is_phrase { "passphrase" } else { "key-file" };
    let memory = if memory <= 1 << 20 { memory % MOST_KIB } else { memory };
    let cost = json!({ "memory-kib": memory, "passes": passes, "lanes": lanes });
    let mut derived = [0u8; 32];
    let mut can_open = how & 0b1111 == 0 || (how & 0b1111 == 8 && !is_phrase);
    match secret {
        Some(Secret::Key(key)) => derived = key,
        Some(Secret::Phrase(phrase)) => {
            let params = argon2::Params::new(memory, passes.into(), lanes.into(), Some(32)).ok();
            let params = params.filter(|_| memory <= 1 << 20 && passes <= 64);
            let made = params.is_some_and(|params| {
                let (algorithm, version) = (argon2::Algorithm::Argon2id, argon2::Version::V0x13);
                argon2::Argon2::new(algorithm, version, params)
                    .hash_password_into(phrase, salt, &mut derived)
                    .is_ok()
            });
            can_open &= made;
        }
        None => can_open = false,
    }
    derived[0] ^= how & 2;
    let aad = [&REPOSITORY.0, &KEY.0, kind.as_bytes()].concat();
    let mut slot_key = [0u8; 32];
    Hkdf::<Sha256>::new(Some(salt), &derived)
        .expand_multi_info(&[b"pgkeep slot v1", &aad], &mut slot_key)
        .expect("32 bytes");
    let keys = vec![7u8; if how & 4 == 4 { 63 } else { 64 }];
    let cipher = Aes256Gcm::new_from_slice(&slot_key).expect("32 bytes");
    let sealed =
        cipher.encrypt(&Nonce::default(), Payload { msg: &keys, aad: &aad }).expect("it is short");
    let mut json = json!({
        "kind": kind, "salt": hex::encode(salt), "sealed": BASE64_STANDARD.encode(sealed)
    });
    if how & 8 == 0 {
        json["argon2id"] = cost;
    }
    Slot { json, opens: can_open }
}

fn slots(chosen: u8, input: &mut Input<'_>) {
    let count = input.byte() % 4;
    // The file is at the end, and has to be known first.
    let mut ahead = Input::new(input.rest());
    let (mut raw, of_slots) = (Vec::new(), ahead.piece());
    raw.extend_from_slice(of_slots);
    let file = ahead.rest();
    let line = file.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let phrase = (!line.is_empty() && std::str::from_utf8(line).is_ok()).then_some(line);
    let key = [9; 32];
    let secret = match chosen {
        3 => Some(Secret::Key(key)),
        _ => phrase.map(Secret::Phrase),
    };
    let mut input = Input::new(&raw);
    let slots: Vec<Slot> = (0..count).map(|_| slot(&mut input, secret)).collect();
    let folder = tempfile::tempdir().expect("a directory");
    let path = |name: &str| folder.path().join(name);
    let root = path("repository");
    fs::create_dir_all(root.join("keys")).expect("a directory");
    let mut about: Value =
        serde_json::from_slice(include_bytes!("../../../../fixtures/repository-v1/repo.json"))
            .expect("JSON");
    about["repository"] = json!(REPOSITORY);
    fs::write(root.join("repo.json"), about.to_string()).expect("a file");
    let of_slots: Vec<&Value> = slots.iter().map(|slot| &slot.json).collect();
    let keys =
        json!({ "format": 1, "repository": REPOSITORY, "key": KEY, "slots": of_slots }).to_string();
    fs::write(root.join(layout::keys_object(1, KEY).as_str()), keys).expect("a file");
    let secret_file = path("secret");
    let written = match chosen {
        3 => format!("pgkeep-key-1 {} {}\n", hex::encode(key), checksum(&key)).into_bytes(),
        _ => file.to_vec(),
    };
    write(&secret_file, &written);
    let settings = RepositorySettings {
        name: "main".into(),
        location: Location::Directory(root),
        key: match chosen {
            1 => KeySource::PassphraseFile(secret_file),
            2 => KeySource::PassphraseCommand(format!("cat '{}'", secret_file.display())),
            _ => KeySource::File(secret_file),
        },
        compression_level: 1,
        retention: RetentionSettings::NONE,
    };
    let opened: Result<Repository, Error> = wait(open(&settings));
    match &opened {
        Ok(repository) => {
            assert!(repository.keyring().is_encrypted());
            assert_eq!(repository.keyring().page_hash_key(), &[7; 32]);
            assert!(slots.iter().any(|slot| slot.opens), "a slot opened that none fits");
        }
        Err(e) => {
            shows_nothing(e, &written);
            // Costs that are impossible make the whole object useless; those before them count.
            let first = slots.first().is_some_and(|slot| slot.opens);
            assert!(!first, "a slot that fits doesn't open: {e}");
        }
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 4 {
        0 => key_file(input.rest()),
        chosen => slots(chosen, &mut input),
    }
}
