//! A sealed object, read whole, by its end, frame by frame and as a stream.
//!
//! The first byte chooses the form. Even: the rest is an object of the encrypted fixture, as it is;
//! nobody without the key gets behind its tags. Odd: the rest is an unencrypted object, of which every checksum
//! that its lengths lead to is put right, the closing frame's too. So arbitrary compressed bytes,
//! lengths, counts and summaries come behind the door. All ways to read an object have to agree.

use std::sync::OnceLock;

use pgkeep::{
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        sealed::{FrameStream, ObjectReader, open_whole},
    },
    storage::ObjectName,
};
use sha2::{Digest, Sha256};

use super::place::{Place, layout, plain, wait};

const HEADER: usize = 64;
const TRAILER: usize = HEADER + 20;
const CLOSING: u64 = u64::MAX;

/// What every object is called here: that of the fixture's that the seeds are made of.
fn name() -> ObjectName {
    layout().of_backup(&"20250120T205812Z-incr".parse().expect("an id"), "manifest")
}

/// The fixture's repository with its key.
fn encrypted() -> &'static (Place, Repository) {
    static OPENED: OnceLock<(Place, Repository)> = OnceLock::new();
    OPENED.get_or_init(|| {
        let place = Place::default();
        let file = include_bytes!("../../../../fixtures/repository-v1/repo.json");
        place.put(&pgkeep::repo::layout::repository_file(), file.to_vec());
        let keys = include_bytes!(
            "../../../../fixtures/repository-v1/keys/000001-67a16e4effe0683ba4d0737df67fe17c.json"
        );
        let id = "67a16e4effe0683ba4d0737df67fe17c".parse().expect("an id");
        place.put(&pgkeep::repo::layout::keys_object(1, id), keys.to_vec());
        // A key file is refused when others may read it, as they may in a checkout.
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("key");
        std::fs::write(&path, include_bytes!("../../../../fixtures/repository-v1.key"))
            .and_then(|()| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                std::fs::set_permissions(&path, mode)
            })
            .expect("a copy of the key");
        let key = KeyMaterial::KeyFile(read_key_file(&path).expect("the fixture's key"));
        let repository = place.open(&key).expect("the fixture");
        (place, repository)
    })
}

fn unencrypted() -> &'static (Place, Repository) {
    static OPENED: OnceLock<(Place, Repository)> = OnceLock::new();
    OPENED.get_or_init(plain)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// Puts the checksum of the frame at `at` right, and says where it ends.
fn repair_frame(object: &mut [u8], header: &[u8], number: u64, at: usize) -> Option<usize> {
    let (sealed, raw) = (word(object, at)? as usize, word(object, at + 4)?);
    let frame = object.get_mut(at + 8..(at + 8).checked_add(sealed)?)?;
    let (content, tag) = frame.split_last_chunk_mut::<16>()?;
    let digest = Sha256::new()
        .chain_update(header)
        .chain_update(name().as_str())
        .chain_update(number.to_le_bytes())
        .chain_update(raw.to_le_bytes())
        .chain_update(&*content)
        .finalize();
    tag.copy_from_slice(&digest[..16]);
    Some(at + 8 + sealed)
}

fn repair(object: &mut [u8]) -> Option<()> {
    let trailer = object.len().checked_sub(TRAILER)?;
    let header = object.get(trailer..trailer + HEADER)?.to_vec();
    let offset = word(object, trailer + HEADER)? as usize;
    let (mut at, mut number) = (HEADER, 0);
    while at < offset.min(trailer) {
        match repair_frame(object, &header, number, at) {
            Some(next) => (at, number) = (next, number + 1),
            None => break,
        }
    }
    let closing = trailer.checked_sub(word(object, trailer + HEADER + 8)? as usize)?;
    repair_frame(object, &header, CLOSING, closing)?;
    Some(())
}

pub fn run(bytes: &[u8]) {
    let Some((form, object)) = bytes.split_first() else { return };
    let mut object = object.to_vec();
    let (place, repository) = if form % 2 == 0 { encrypted() } else { unencrypted() };
    if form % 2 == 1 {
        repair(&mut object);
    }
    let name = name();
    let whole = open_whole(repository, &name, &object);
    place.put(&name, object);
    if let Ok(whole) = &whole {
        let stream = wait(FrameStream::find(repository, &name)).expect("as whole").expect("there");
        assert_eq!(stream.summary(), whole.summary);
    }
    let Ok(reader) = wait(ObjectReader::open(repository, &name)) else {
        assert!(whole.is_err(), "its end can't be read, all of it can");
        return;
    };
    let mut streamed = wait(FrameStream::find(repository, &name)).ok().flatten();
    // Of many, which may have 16 MiB each, the first are enough.
    for number in 0..(reader.frame_count() as u64).min(8) {
        let frame = wait(reader.frame(repository, number));
        if let Ok(frame) = &frame {
            assert_eq!(reader.raw_len(number), Some(frame.len() as u32));
        }
        if let Ok(whole) = &whole {
            assert_eq!(frame.as_ref().ok(), whole.frames.get(number as usize));
        }
        if let Some(stream) = &mut streamed {
            let next = wait(stream.next()).map(|next| next.map(<[u8]>::to_vec));
            assert_eq!(next.ok().flatten(), frame.ok());
        }
    }
    assert!(reader.raw_len(reader.frame_count() as u64).is_none());
}
