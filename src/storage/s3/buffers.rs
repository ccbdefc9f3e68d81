//! Memory for what is on its way, used again.
//!
//! What is freed in pieces of some MiB lies between other things until it is all free, and comes to a third more than is in
//! use; so buffers of one size go round.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// How many buffers wait to be used again.
const SPARE: usize = 2;

/// Up to how many bytes memory is taken as it is needed: most objects are small.
const SMALL: usize = 256 << 10;

/// Buffers of one size.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    spare: Mutex<Vec<BytesMut>>,
}

impl Buffers {
    /// Buffers of `size` bytes, none of which is made yet.
    pub fn new(size: usize) -> Self {
        Buffers { size, spare: Mutex::default() }
    }

    /// Adds bytes to what is being filled, which has `size` bytes in the end at most.
    pub fn append(&self, filling: &mut BytesMut, bytes: &[u8]) {
        let needed = filling.len() + bytes.len();
        if needed > filling.capacity() && needed > SMALL {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut larger = spare.unwrap_or_else(|| BytesMut::with_capacity(self.size));
            larger.extend_from_slice(filling);
            *filling = larger;
        }
        filling.extend_from_slice(bytes);
    }

    /// Takes back what was sent, unless somebody holds it still.
    pub fn take_back(&self, sent: Bytes) {
        let Ok(mut buffer) = sent.try_into_mut() else { return };
        buffer.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() >= self.size && spare.len() < SPARE {
            spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_go_round_and_small_ones_are_none() {
        let buffers = Buffers::new(1 << 20);
        let mut small = BytesMut::new();
        buffers.append(&mut small, &[1; 1000]);
        assert!(small.capacity() < SMALL);
        buffers.take_back(small.freeze());
        let mut first = BytesMut::new();
        buffers.append(&mut first, &[2; 200 << 10]);
        buffers.append(&mut first, &[3; 200 << 10]);
        assert_eq!(first.len(), 400 << 10);
        assert!(first[..200 << 10].iter().all(|b| *b == 2));
        assert!(first[200 << 10..].iter().all(|b| *b == 3));
        let address = first.as_ptr();
        buffers.take_back(first.freeze());
        let mut second = BytesMut::new();
        buffers.append(&mut second, &[4; 1 << 20]);
        assert_eq!((second.as_ptr(), second.len()), (address, 1 << 20));
        // One that is held goes with whoever holds it.
        let sent = second.freeze();
        let still = sent.clone();
        buffers.take_back(sent);
        let mut third = BytesMut::new();
        buffers.append(&mut third, &[5; 300 << 10]);
        assert_ne!(third.as_ptr(), address);
        assert!(still.iter().all(|b| *b == 4));
    }
}
