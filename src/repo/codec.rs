//! Numbers and byte strings of the binary objects: LEB128 varints, length-prefixed bytes.
//!
//! Reading is total: bytes from a repository are untrusted, so every shortage and every
//! impossible number is an error and never a panic or a large allocation.

/// Stored bytes don't follow the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct Malformed {
    /// What was being read.
    pub what: &'static str,
    /// Where in the frame's raw bytes, or in the part of it that was given.
    pub at: usize,
}

/// Appends `n` as a LEB128 varint, 1 to 10 bytes.
pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends `bytes` behind their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads one thing after the other from bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// The error that `what` isn't well formed here.
    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or_else(|| self.malformed(what))?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(|| self.malformed(what))?;
        self.at = end;
        Ok(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.array::<1>(what)?[0])
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let at = self.malformed(what);
        self.take(N, what)?.try_into().map_err(|_| at)
    }

    /// The next varint.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                break;
            }
            n |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(self.malformed(what))
    }

    /// The next varint, which has to fit.
    pub fn number<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, Malformed> {
        let at = self.malformed(what);
        T::try_from(self.varint(what)?).map_err(|_| at)
    }

    /// A count of things of which each takes at least one byte here.
    pub fn count(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let count = self.number(what)?;
        if count > self.left() { Err(self.malformed(what)) } else { Ok(count) }
    }

    /// The next length-prefixed bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.number(what)?;
        self.take(len, what)
    }

    /// The next length-prefixed text.
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let at = self.malformed(what);
        std::str::from_utf8(self.bytes(what)?).map_err(|_| at)
    }

    /// That nothing is left.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.left() == 0 { Ok(()) } else { Err(self.malformed(what)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_come_back(n: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, n);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint("n"), Ok(n));
            prop_assert_eq!(reader.left(), 0);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.left() > 0 && reader.bytes("bytes").is_ok() && reader.varint("n").is_ok() {}
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        let mut eleven = vec![0xFF; 10];
        eleven.push(1);
        assert!(Reader::new(&eleven).varint("n").is_err());
        assert!(Reader::new(&[0xFF; 9]).varint("n").is_err());
    }
}
