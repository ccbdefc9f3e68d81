//! Sealed objects: the one container for everything that is stored, except repo.json and the keys.
//!
//! ```text
//! header   64   magic, version, compression, cipher, key id, salt
//! frame 0 …     u32 sealed length, u32 raw length, sealed bytes
//! closing       the same, under a reserved number: every frame's lengths, and the object's summary
//! trailer  84   the header again, u64 offset and u32 length of the closing frame, magic
//! ```
//!
//! A frame is compressed, then sealed under the object's own key with its number as nonce, so that
//! threads can seal frames of one object side by side. What it is bound to (header, object name,
//! frame number, raw length) is authenticated with it: a frame that was flipped, cut, moved or
//! exchanged doesn't open. The closing frame ends the object: without it there is no telling that
//! nothing is missing, so nothing is taken for whole that doesn't have it.
//!
//! The *summary* is a few bytes that the writer knows only at the end (what a WAL segment holds,
//! say). It comes with the last bytes of the object, in one request.

mod frame;
mod reader;
mod stream;
mod writer;

pub use frame::{CLOSING, CompressedFrame, Header, Lengths, MAX_RAW, Opener, SealedFrame, Sealer};
pub use reader::{Frames, ObjectReader, WholeObject, open_whole, read_whole};
pub use stream::FrameStream;
pub use writer::{FrameContent, SealedWriter, ThreadedWriter, put_sealed};
