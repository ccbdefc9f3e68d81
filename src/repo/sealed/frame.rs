//! Headers and frames: bytes in, bytes out, no storage.

use std::{cell::RefCell, io};

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::AeadInOut};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;
use zstd::bulk::{Compressor, Decompressor};

use super::super::{
    codec::Reader,
    id::RandomId,
    keys::{Keyring, random},
};
use crate::{
    error::{Error, Kind, Result},
    storage::ObjectName,
};

/// The number of the closing frame.
pub const CLOSING: u64 = u64::MAX;

/// The largest raw frame a reader accepts, in bytes. Bounds memory whatever an object claims.
pub const MAX_RAW: u32 = 16 << 20;

pub(super) const HEADER_LEN: usize = 64;
pub(super) const PREFIX_LEN: usize = 8;
pub(super) const TRAILER_LEN: usize = HEADER_LEN + 8 + 4 + 8;
pub(super) const TAG_LEN: usize = 16;

const MAGIC: &[u8; 8] = b"PGKEEP\r\n";
pub(super) const TRAILER_MAGIC: &[u8; 8] = b"\nPGKEND\n";
const VERSION: u8 = 1;
const ZSTD: u8 = 1;
const CIPHER_NONE: u8 = 0;
const CIPHER_AES_256_GCM: u8 = 1;

/// The first 64 bytes of an object: magic 8, version 1, compression 1, cipher 1, zero 5, key id 16
/// (zero without encryption), salt 32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header(pub(super) [u8; HEADER_LEN]);

impl Header {
    fn new(key: Option<RandomId>) -> Result<Self> {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = VERSION;
        bytes[9] = ZSTD;
        bytes[10] = if key.is_some() { CIPHER_AES_256_GCM } else { CIPHER_NONE };
        if let Some(key) = key {
            bytes[16..32].copy_from_slice(&key.0);
        }
        bytes[32..].copy_from_slice(&random::<32>()?);
        Ok(Header(bytes))
    }

    /// Reads a header and says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let bytes: [u8; HEADER_LEN] = bytes
            .get(..HEADER_LEN)
            .and_then(|b| b.try_into().ok())
            .ok_or("it is shorter than a header")?;
        if &bytes[..8] != MAGIC {
            return Err("it doesn't begin like a pgkeep object".into());
        }
        if bytes[8] != VERSION {
            return Err(format!("its format version is {}, this pgkeep reads {VERSION}", bytes[8]));
        }
        if bytes[9] != ZSTD || bytes[11..16] != [0; 5] {
            return Err("its header has unknown flags".into());
        }
        if !matches!(bytes[10], CIPHER_NONE | CIPHER_AES_256_GCM) {
            return Err(format!("its cipher {} is unknown", bytes[10]));
        }
        Ok(Header(bytes))
    }

    fn key_id(&self) -> Option<RandomId> {
        let id = self.0[16..32].try_into().unwrap_or_default();
        (self.0[10] == CIPHER_AES_256_GCM).then_some(RandomId(id))
    }
}

/// A frame's lengths in bytes: as stored (with its tag), and raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Compressed and sealed, with the 16 bytes of tag or checksum.
    pub sealed: u32,
    /// Before compression.
    pub raw: u32,
}

/// A frame that was compressed before it is known what seals it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressedFrame {
    /// Prefix and compressed bytes, with room for what seals them.
    bytes: Vec<u8>,
    /// How many bytes it had.
    raw: u32,
}

impl CompressedFrame {
    /// Compresses `raw` with zstd's `level`.
    pub fn of(raw: &[u8], level: i32) -> Result<Self> {
        let too_large = || Error::new(Kind::Internal, format!("a frame of {} bytes", raw.len()));
        let raw_len =
            u32::try_from(raw.len()).ok().filter(|n| *n <= MAX_RAW).ok_or_else(too_large)?;
        let bytes = compress(raw, level, |compressed| {
            let mut bytes = Vec::with_capacity(PREFIX_LEN + compressed.len() + TAG_LEN);
            bytes.extend_from_slice(&((compressed.len() + TAG_LEN) as u32).to_le_bytes());
            bytes.extend_from_slice(&raw_len.to_le_bytes());
            bytes.extend_from_slice(compressed);
            bytes
        })
        .map_err(|e| Error::new(Kind::Internal, "compress a frame").because(e))?;
        Ok(CompressedFrame { bytes, raw: raw_len })
    }

    /// How many bytes it takes in memory.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// A frame ready to be stored.
#[derive(Debug)]
pub struct SealedFrame {
    /// Prefix and sealed bytes.
    pub bytes: Vec<u8>,
    /// Its lengths.
    pub lengths: Lengths,
}

thread_local! {
    // To make one for each frame costs a third of the compression itself.
    static COMPRESSOR: RefCell<Option<KeptCompressor>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    // What is decrypted, on its way to be decompressed.
    static DECRYPTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct KeptCompressor {
    level: i32,
    compressor: Compressor<'static>,
    /// Where it writes to: as large as the largest frame may become, and its pages are there already.
    compressed: Vec<u8>,
}

/// Compresses `raw` and lets `take` have the result.
fn compress<T>(raw: &[u8], level: i32, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let kept = match slot.take_if(|kept| kept.level == level) {
            Some(kept) => slot.insert(kept),
            None => {
                let compressor = Compressor::new(level)?;
                slot.insert(KeptCompressor { level, compressor, compressed: Vec::new() })
            }
        };
        kept.compressed.clear();
        kept.compressed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        kept.compressor.compress_to_buffer(raw, &mut kept.compressed)?;
        Ok(take(&kept.compressed))
    })
}

/// Decompresses to `raw`, in place of what it has: up to `len` bytes, or as many as it has room for anyway.
fn decompress(compressed: &[u8], len: usize, raw: &mut Vec<u8>) -> io::Result<()> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot.take() {
            Some(kept) => slot.insert(kept),
            None => slot.insert(Decompressor::new()?),
        };
        raw.clear();
        raw.reserve_exact(len);
        decompressor.decompress_to_buffer(compressed, raw).map(drop)
    })
}

/// What frames of one object are bound to, and the object's key.
#[derive(Clone)]
struct Binding {
    cipher: Option<Aes256Gcm>,
    /// Header and object name.
    context: Vec<u8>,
}

impl Binding {
    fn new(ring: &Keyring, header: &Header, name: &ObjectName) -> Result<Self, String> {
        let cipher = match (header.key_id(), ring.is_encrypted()) {
            (None, false) => None,
            (None, true) => {
                return Err(
                    "it is not encrypted, but this repository is; someone may have put it \
                            there"
                        .into(),
                );
            }
            (Some(id), _) => {
                let key = ring.data_key(id).ok_or_else(|| format!("its key {id} is not known"))?;
                let info = [b"pgkeep object v1".as_slice(), &ring.repository().0, &header.0];
                let mut object_key = Zeroizing::new([0u8; 32]);
                Hkdf::<Sha256>::new(Some(&header.0[32..]), key)
                    .expand_multi_info(&info, object_key.as_mut_slice())
                    .map_err(|e| e.to_string())?;
                Some(Aes256Gcm::new_from_slice(object_key.as_slice()).map_err(|e| e.to_string())?)
            }
        };
        let context = [header.0.as_slice(), name.as_str().as_bytes()].concat();
        Ok(Binding { cipher, context })
    }

    fn associated(&self, number: u64, raw: u32) -> Vec<u8> {
        [&self.context, number.to_le_bytes().as_slice(), &raw.to_le_bytes()].concat()
    }

    fn nonce(number: u64) -> Nonce<aes_gcm::aead::consts::U12> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        nonce.into()
    }

    fn checksum(associated: &[u8], bytes: &[u8]) -> [u8; TAG_LEN] {
        let digest = Sha256::new().chain_update(associated).chain_update(bytes).finalize();
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&digest[..TAG_LEN]);
        tag
    }
}

/// Seals the frames of one new object. Cheap to clone, so that each thread has its own.
#[derive(Clone)]
pub struct Sealer {
    header: Header,
    binding: Binding,
    level: i32,
}

impl Sealer {
    /// A sealer for the object `name`, with a fresh salt and the repository's current key.
    pub fn new(ring: &Keyring, name: &ObjectName, level: i32) -> Result<Self> {
        let header = Header::new(ring.current())?;
        let binding = Binding::new(ring, &header, name)
            .map_err(|e| Error::new(Kind::Internal, format!("seal {name}: {e}")))?;
        Ok(Sealer { header, binding, level })
    }

    /// The object's first bytes.
    pub fn header(&self) -> &[u8] {
        &self.header.0
    }

    /// Compresses and seals frame `number`. No two frames of an object may have the same number.
    pub fn seal(&self, number: u64, raw: &[u8]) -> Result<SealedFrame> {
        self.seal_compressed(number, CompressedFrame::of(raw, self.level)?)
    }

    /// Seals frame `number`, as [`Sealer::seal`] does, which is compressed already.
    pub fn seal_compressed(&self, number: u64, frame: CompressedFrame) -> Result<SealedFrame> {
        let CompressedFrame { mut bytes, raw } = frame;
        let sealed = (bytes.len() - PREFIX_LEN + TAG_LEN) as u32;
        let associated = self.binding.associated(number, raw);
        let tag: [u8; TAG_LEN] = match &self.binding.cipher {
            Some(cipher) => cipher
                .encrypt_inout_detached(
                    &Binding::nonce(number),
                    &associated,
                    (&mut bytes[PREFIX_LEN..]).into(),
                )
                .map_err(|e| Error::new(Kind::Internal, format!("seal a frame: {e}")))?
                .into(),
            None => Binding::checksum(&associated, &bytes[PREFIX_LEN..]),
        };
        bytes.extend_from_slice(&tag);
        Ok(SealedFrame { bytes, lengths: Lengths { sealed, raw } })
    }

    /// The object's last bytes: the closing frame, with every frame's lengths in order and the
    /// summary, and the trailer.
    pub fn close(&self, frames: &[Lengths], summary: &[u8]) -> Result<Vec<u8>> {
        let mut raw = Vec::with_capacity(8 + frames.len() * 8 + summary.len());
        raw.extend_from_slice(&(frames.len() as u32).to_le_bytes());
        let mut offset = HEADER_LEN as u64;
        for lengths in frames {
            raw.extend_from_slice(&lengths.sealed.to_le_bytes());
            raw.extend_from_slice(&lengths.raw.to_le_bytes());
            offset += PREFIX_LEN as u64 + u64::from(lengths.sealed);
        }
        raw.extend_from_slice(summary);
        let mut bytes = self.seal(CLOSING, &raw)?.bytes;
        let len = bytes.len() as u32;
        bytes.extend_from_slice(&self.header.0);
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(TRAILER_MAGIC);
        Ok(bytes)
    }
}

/// The closing frame's content.
pub(super) struct Closing {
    pub frames: Vec<Lengths>,
    pub summary: Vec<u8>,
}

/// Opens the frames of one object.
#[derive(Clone)]
pub struct Opener {
    binding: Binding,
}

impl Opener {
    /// An opener for the object `name`, whose header this is. Says what is wrong with the header.
    pub fn new(ring: &Keyring, header: &Header, name: &ObjectName) -> Result<Self, String> {
        Ok(Opener { binding: Binding::new(ring, header, name)? })
    }

    /// Opens a stored frame, prefix included, and returns its raw bytes. `expected` are the lengths
    /// that the closing frame has for it, if known.
    pub fn open(
        &self,
        number: u64,
        bytes: &[u8],
        expected: Option<Lengths>,
    ) -> Result<Vec<u8>, String> {
        let mut raw = Vec::new();
        self.open_into(number, bytes, expected, &mut raw)?;
        Ok(raw)
    }

    /// As [`Opener::open`], into memory that is there: `raw` has only the frame's bytes after it.
    pub fn open_into(
        &self,
        number: u64,
        bytes: &[u8],
        expected: Option<Lengths>,
        raw: &mut Vec<u8>,
    ) -> Result<(), String> {
        let what =
            || if number == CLOSING { "closing frame".into() } else { format!("frame {number}") };
        let lengths = parse_prefix(bytes).map_err(|e| format!("{}: {e}", what()))?;
        if expected.is_some_and(|e| e != lengths)
            || bytes.len() != PREFIX_LEN + lengths.sealed as usize
        {
            return Err(format!("{} has other lengths than it should", what()));
        }
        let (content, tag) = bytes[PREFIX_LEN..]
            .split_last_chunk::<TAG_LEN>()
            .ok_or_else(|| format!("{} is too short", what()))?;
        let associated = self.binding.associated(number, lengths.raw);
        let len = lengths.raw as usize;
        let decompressed = match &self.binding.cipher {
            Some(cipher) => DECRYPTED.with_borrow_mut(|decrypted| {
                decrypted.clear();
                decrypted.extend_from_slice(content);
                cipher
                    .decrypt_inout_detached(
                        &Binding::nonce(number),
                        &associated,
                        decrypted.as_mut_slice().into(),
                        &(*tag).into(),
                    )
                    .map_err(|_| format!("{} doesn't authenticate", what()))?;
                Ok(decompress(decrypted, len, raw))
            }),
            None if Binding::checksum(&associated, content) == *tag => {
                Ok(decompress(content, len, raw))
            }
            None => Err(format!("{} has a wrong checksum", what())),
        };
        decompressed?.map_err(|e| format!("{}: {e}", what()))?;
        if raw.len() != len {
            return Err(format!("{} has another length than it should", what()));
        }
        Ok(())
    }

    pub(super) fn open_closing(&self, bytes: &[u8]) -> Result<Closing, String> {
        let raw = self.open(CLOSING, bytes, None)?;
        let parse = || -> Result<Closing, super::super::codec::Malformed> {
            let mut reader = Reader::new(&raw);
            let count = u32::from_le_bytes(reader.array("frame count")?) as usize;
            if count > reader.left() / 8 {
                return Err(reader.malformed("frame count"));
            }
            let mut frames = Vec::with_capacity(count);
            for _ in 0..count {
                let sealed = u32::from_le_bytes(reader.array("frame length")?);
                let raw = u32::from_le_bytes(reader.array("frame length")?);
                frames.push(Lengths { sealed, raw });
            }
            let summary = reader.take(reader.left(), "summary")?.to_vec();
            Ok(Closing { frames, summary })
        };
        parse().map_err(|e| e.to_string())
    }
}

/// The longest that a frame may be as stored, without its prefix, in bytes.
pub(super) fn max_sealed() -> usize {
    zstd::zstd_safe::compress_bound(MAX_RAW as usize) + TAG_LEN
}

/// A stored frame's lengths, from its first 8 bytes.
pub(super) fn parse_prefix(bytes: &[u8]) -> Result<Lengths, String> {
    let mut reader = Reader::new(bytes);
    let mut number = || reader.array("frame length").map(u32::from_le_bytes);
    let lengths = number()
        .and_then(|sealed| Ok(Lengths { sealed, raw: number()? }))
        .map_err(|e| e.to_string())?;
    if lengths.raw > MAX_RAW
        || (lengths.sealed as usize) < TAG_LEN
        || lengths.sealed as usize > max_sealed()
    {
        return Err("its lengths are impossible".into());
    }
    Ok(lengths)
}
