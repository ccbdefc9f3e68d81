//! The tar streams of `BASE_BACKUP`, read as they come.
//!
//! The server writes plain ustar (`port/tar.c`, `backup/basebackup.c`): 512-byte headers, names of
//! at most 99 bytes, sizes beyond 8 GiB in base 256, and nothing else of what tar has grown. The
//! parser is fed bytes cut anywhere and gives events; a file's data is handed out as slices of what
//! was fed, never copied.
//!
//! A name decides where something is written one day, so the stream isn't trusted with it:
//! absolute names, `..`, and links that lead out are refused (CVE-2026-6475).

/// tar's unit, in bytes.
const BLOCK: usize = 512;

/// What the parser found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarEvent<'a> {
    /// A directory.
    Directory(Entry),
    /// A regular file begins. [`TarEvent::Data`] of `size` bytes in all follows, then
    /// [`TarEvent::FileEnd`].
    File {
        /// Name and mode.
        entry: Entry,
        /// In bytes.
        size: u64,
    },
    /// The next bytes of the file, as many as were at hand; never empty.
    Data(&'a [u8]),
    /// The file is complete.
    FileEnd,
    /// A symbolic link.
    Symlink {
        /// Name and mode.
        entry: Entry,
        /// Where it leads. Absolute only for `pg_tblspc/<oid>`.
        target: Vec<u8>,
    },
}

/// A member's name and mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `./` before and `/` behind it, and without `.`, `..` or empty parts.
    pub path: Vec<u8>,
    /// The permission bits, at most 0o7777.
    pub mode: u32,
}

/// The stream isn't a tar that PostgreSQL writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The header's checksum is wrong: bytes were lost or changed.
    #[error("the tar header at byte {at} has a wrong checksum")]
    Checksum {
        /// Where the header begins in the stream.
        at: u64,
    },
    /// A number isn't one, or is too large.
    #[error("the tar header at byte {at} has an impossible {field}")]
    Number {
        /// Where the header begins in the stream.
        at: u64,
        /// Which number.
        field: &'static str,
    },
    /// A member of a type that the server doesn't write.
    #[error("{path:?} in the tar stream has the type {kind:?}, which PostgreSQL doesn't write")]
    Type {
        /// The member's name.
        path: String,
        /// The type flag.
        kind: char,
    },
    /// A name that leads, or may lead, out of the directory.
    #[error("the tar stream has a member named {path:?}, which could be written anywhere")]
    UnsafePath {
        /// The name as it came.
        path: String,
    },
    /// A link that leads out of the directory.
    #[error("the tar stream has a link {path:?} to {target:?}, which leads out of the directory")]
    UnsafeLink {
        /// The link's name.
        path: String,
        /// Its target.
        target: String,
    },
    /// Something follows the end mark, or half of an end mark.
    #[error("the tar stream goes on after its end mark at byte {at}")]
    AfterEnd {
        /// Where, in the stream.
        at: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A header is next.
    Header,
    /// A file's data: bytes left, and padding behind them.
    Data { left: u64, padding: u64 },
    /// Padding after a file.
    Padding { left: u64 },
    /// One block of zeros has been seen where a header could be.
    HalfEnd,
    /// The end mark has been seen.
    End,
}

/// Reads one archive. See the module.
#[derive(Debug)]
pub struct TarParser {
    state: State,
    /// A header that came in pieces: its first bytes.
    header: [u8; BLOCK],
    have: usize,
    /// Bytes consumed so far.
    at: u64,
}

impl Default for TarParser {
    fn default() -> Self {
        TarParser::new()
    }
}

impl TarParser {
    /// A parser at the start of an archive.
    pub fn new() -> Self {
        TarParser { state: State::Header, header: [0; BLOCK], have: 0, at: 0 }
    }

    /// The next event in `input`, which is moved past what was consumed. `None` when more bytes are
    /// needed: then all of `input` was consumed.
    ///
    /// After an error the parser is of no further use.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        loop {
            match self.state {
                State::Data { left: 0, padding } => {
                    self.state = State::Padding { left: padding };
                    return Ok(Some(TarEvent::FileEnd));
                }
                State::Padding { left: 0 } => self.state = State::Header,
                _ if input.is_empty() => return Ok(None),
                State::Data { left, padding } => {
                    let data = self.take(input, left);
                    self.state = State::Data { left: left - data.len() as u64, padding };
                    return Ok(Some(TarEvent::Data(data)));
                }
                State::Padding { left } => {
                    let skipped = self.take(input, left).len() as u64;
                    self.state = State::Padding { left: left - skipped };
                }
                State::End => {
                    let at = self.at;
                    let rest = self.take(input, u64::MAX);
                    if let Some(i) = rest.iter().position(|b| *b != 0) {
                        return Err(TarError::AfterEnd { at: at + i as u64 });
                    }
                }
                State::Header | State::HalfEnd => {
                    let piece = self.take(input, (BLOCK - self.have) as u64);
                    let end = self.have + piece.len();
                    if let Some(free) = self.header.get_mut(self.have..end) {
                        free.copy_from_slice(piece);
                    }
                    self.have = end;
                    if end == BLOCK {
                        self.have = 0;
                        if let Some(event) = self.member()? {
                            return Ok(Some(event));
                        }
                    }
                }
            }
        }
    }

    /// Whether the end mark has been seen. Servers up to 14 leave it out: there
    /// [`TarParser::is_between_members`] has to do.
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// Whether no member is cut: the stream may end here without one being incomplete.
    pub fn is_between_members(&self) -> bool {
        match self.state {
            State::Header => self.have == 0,
            State::Padding { left } => left == 0,
            State::HalfEnd | State::End => true,
            State::Data { .. } => false,
        }
    }

    /// At most `len` bytes off the front of `input`.
    fn take<'a>(&mut self, input: &mut &'a [u8], len: u64) -> &'a [u8] {
        let len = usize::try_from(len).map_or(input.len(), |len| len.min(input.len()));
        let (taken, rest) = input.split_at(len);
        *input = rest;
        self.at += len as u64;
        taken
    }

    /// What the header in `self.header` begins.
    fn member(&mut self) -> Result<Option<TarEvent<'static>>, TarError> {
        let header = &self.header;
        let at = self.at - BLOCK as u64;
        if header.iter().all(|b| *b == 0) {
            self.state = if self.state == State::HalfEnd { State::End } else { State::HalfEnd };
            return Ok(None);
        }
        if self.state == State::HalfEnd {
            return Err(TarError::AfterEnd { at });
        }
        let number = |field, from: usize, len: usize| {
            let bytes = header.get(from..from + len).unwrap_or_default();
            parse_number(bytes).ok_or(TarError::Number { at, field })
        };
        if number("checksum", 148, 8)? != checksum(header) {
            return Err(TarError::Checksum { at });
        }
        let mode = number("mode", 100, 8)? as u32 & 0o7777;
        let raw = name(header);
        let Some(path) = normalise(&raw) else {
            return Err(TarError::UnsafePath { path: text(&raw) });
        };
        if path.is_empty() {
            // The archive's own root.
            return Ok(None);
        }
        let entry = Entry { path: path.to_vec(), mode };
        match header[156] {
            b'0' | 0 if raw.ends_with(b"/") => Err(TarError::UnsafePath { path: text(&raw) }),
            b'0' | 0 => {
                let size = number("size", 124, 12)?;
                let padding = size.wrapping_neg() % BLOCK as u64;
                self.state = State::Data { left: size, padding };
                Ok(Some(TarEvent::File { entry, size }))
            }
            b'5' => Ok(Some(TarEvent::Directory(entry))),
            b'2' => {
                let target = until_nul(&header[157..257]);
                if !link_is_safe(&entry.path, target) {
                    let path = text(&entry.path);
                    return Err(TarError::UnsafeLink { path, target: text(target) });
                }
                Ok(Some(TarEvent::Symlink { entry, target: target.to_vec() }))
            }
            kind => Err(TarError::Type { path: text(&entry.path), kind: kind.into() }),
        }
    }
}

/// The sum of a header's bytes, its checksum field taken for spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
    sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..])
}

/// Octal digits behind spaces up to a NUL or space, or base 256 behind a first byte of 0x80.
fn parse_number(bytes: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = bytes.split_first() {
        let (high, low) = rest.split_at_checked(rest.len().saturating_sub(8))?;
        let fits = high.iter().all(|b| *b == 0);
        let n = low.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        // A file of this size can't be: it leaves room for adding to it.
        return (fits && n <= i64::MAX as u64).then_some(n);
    }
    let digits = bytes.trim_ascii_start();
    let end = digits.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if digits.is_empty() || !rest.iter().all(|b| matches!(b, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0u64, |n, b| {
        matches!(b, b'0'..=b'7').then(|| n.checked_mul(8)?.checked_add(u64::from(b - b'0')))?
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.iter().position(|b| *b == 0).map_or(bytes, |end| &bytes[..end])
}

/// The member's name, with ustar's prefix for long ones.
fn name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if prefix.is_empty() || &header[257..263] != b"ustar\0" {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// The name without `./` before and `/` behind it; `None` if it isn't certainly below the root.
fn normalise(name: &[u8]) -> Option<&[u8]> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    if name == b"." {
        return Some(&[]);
    }
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")).then_some(name)
}

/// Whether a link stays where it is, or is a tablespace's.
fn link_is_safe(path: &[u8], target: &[u8]) -> bool {
    let of_tablespace = path
        .strip_prefix(b"pg_tblspc/")
        .is_some_and(|oid| !oid.is_empty() && oid.iter().all(u8::is_ascii_digit));
    !target.is_empty()
        && target.split(|b| *b == b'/').all(|part| part != b"..")
        && (of_tablespace || !target.starts_with(b"/"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as `tarCreateHeader` makes it.
    fn header(name: &[u8], kind: u8, size: u64, target: &[u8]) -> [u8; BLOCK] {
        let mut h = [0; BLOCK];
        h[..name.len()].copy_from_slice(name);
        h[100..108].copy_from_slice(b"0000600 ");
        if size < 1 << 33 {
            h[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
        } else {
            h[124] = 0x80;
            h[128..136].copy_from_slice(&size.to_be_bytes());
        }
        h[136..148].copy_from_slice(b"00000000000 ");
        h[156] = kind;
        h[157..157 + target.len()].copy_from_slice(target);
        h[257..263].copy_from_slice(b"ustar\0");
        seal(&mut h);
        h
    }

    fn seal(h: &mut [u8; BLOCK]) {
        let sum = checksum(h);
        h[148..156].copy_from_slice(format!("{sum:06o} \0").as_bytes());
    }

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut tar = header(b"./base/", b'5', 0, b"").to_vec();
        for (name, data) in files {
            tar.extend(header(name.as_bytes(), b'0', data.len() as u64, b""));
            tar.extend(data);
            tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        }
        tar.extend([0; 2 * BLOCK]);
        tar
    }

    #[derive(Debug, Default, PartialEq)]
    struct Collected {
        directories: Vec<Entry>,
        links: Vec<(Entry, Vec<u8>)>,
        files: Vec<(Entry, u64, Vec<u8>)>,
        ended: usize,
    }

    fn collect<'a>(
        parser: &mut TarParser,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Collected, TarError> {
        let mut all = Collected::default();
        for mut piece in pieces {
            while let Some(event) = parser.next(&mut piece)? {
                match event {
                    TarEvent::Directory(entry) => all.directories.push(entry),
                    TarEvent::Symlink { entry, target } => all.links.push((entry, target)),
                    TarEvent::File { entry, size } => all.files.push((entry, size, Vec::new())),
                    TarEvent::Data(data) => all.files.last_mut().unwrap().2.extend(data),
                    TarEvent::FileEnd => all.ended += 1,
                }
            }
            assert!(piece.is_empty());
        }
        Ok(all)
    }

    fn one(header: [u8; BLOCK]) -> Result<Collected, TarError> {
        collect(&mut TarParser::new(), [&header[..]])
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same(
            files in prop::collection::vec(("[a-z0-9]{1,20}", prop::collection::vec(any::<u8>(), 0..1600)), 0..6),
            cut in prop::collection::vec(1usize..700, 1..40),
        ) {
            let tar = archive(&files);
            let whole = collect(&mut TarParser::new(), [&tar[..]]).unwrap();
            let mut parser = TarParser::new();
            let mut pieces = Vec::new();
            let mut rest = &tar[..];
            for len in cut.iter().cycle() {
                let (piece, left) = rest.split_at((*len).min(rest.len()));
                pieces.push(piece);
                rest = left;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&collect(&mut parser, pieces).unwrap(), &whole);
            prop_assert!(parser.is_complete());
            prop_assert_eq!(whole.ended, files.len());
            for ((name, data), (entry, size, found)) in files.iter().zip(&whole.files) {
                prop_assert_eq!(name.as_bytes(), &entry.path[..]);
                prop_assert_eq!((data.len() as u64, data), (*size, found));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = collect(&mut TarParser::new(), [&bytes[..]]);
        }

        #[test]
        fn any_header_with_a_right_checksum_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
            let mut header: [u8; BLOCK] = bytes.try_into().unwrap();
            seal(&mut header);
            let _ = one(header);
        }

        #[test]
        fn a_cut_archive_is_never_complete(cut in 0usize..4096) {
            let tar = archive(&[("a".into(), vec![1; 700]), ("b".into(), vec![]), ("c".into(), vec![2])]);
            let mut parser = TarParser::new();
            let cut = cut.min(tar.len() - 1);
            collect(&mut parser, [&tar[..cut]]).unwrap();
            prop_assert!(!parser.is_complete());
        }
    }

    #[test]
    fn names_are_normalised_and_those_that_lead_out_refused() {
        let wal = one(header(b"./pg_wal/archive_status/", b'5', 0, b"")).unwrap();
        assert_eq!(wal.directories[0].path, b"pg_wal/archive_status");
        assert_eq!(one(header(b"./", b'5', 0, b"")).unwrap(), Collected::default());
        for bad in ["/etc/passwd", "../x", "base/../../x", "base//1", "a/./b", "..", "", "file/"] {
            let found = one(header(bad.as_bytes(), b'0', 0, b""));
            assert!(matches!(found, Err(TarError::UnsafePath { .. })), "{bad}: {found:?}");
        }
    }

    #[test]
    fn links_that_lead_out_are_refused() {
        let tablespace = one(header(b"pg_tblspc/16384/", b'2', 0, b"/srv/space")).unwrap();
        assert_eq!(tablespace.links[0].1, b"/srv/space");
        for (path, target) in [
            ("base/1", "/etc"),
            ("pg_tblspc/x", "/etc"),
            ("base/1", "../../etc"),
            ("pg_tblspc/16384", "/srv/../etc"),
            ("base/1", ""),
        ] {
            let found = one(header(path.as_bytes(), b'2', 0, target.as_bytes()));
            assert!(matches!(found, Err(TarError::UnsafeLink { .. })), "{path}: {found:?}");
        }
        let hard = one(header(b"base/1", b'1', 0, b"/etc/passwd"));
        assert!(matches!(hard, Err(TarError::Type { .. })));
    }

    #[test]
    fn sizes_beyond_8_gib_are_base_256() {
        for size in [0, 0o77777777777, 1 << 33, 1 << 50] {
            let mut parser = TarParser::new();
            let all = collect(&mut parser, [&header(b"f", b'0', size, b"")[..]]).unwrap();
            assert_eq!(all.files[0].1, size);
            assert_eq!(parser.is_between_members(), size == 0);
        }
        let mut huge = header(b"f", b'0', 1 << 33, b"");
        huge[125] = 1;
        seal(&mut huge);
        assert!(matches!(one(huge), Err(TarError::Number { .. })));
    }

    #[test]
    fn a_changed_header_and_bytes_after_the_end_are_seen() {
        let mut changed = header(b"base/1", b'0', 0, b"");
        changed[3] ^= 1;
        assert_eq!(one(changed), Err(TarError::Checksum { at: 0 }));
        let mut tar = archive(&[]);
        tar.extend([0; 512]);
        tar.push(1);
        let found = collect(&mut TarParser::new(), [&tar[..]]);
        assert_eq!(found, Err(TarError::AfterEnd { at: 2048 }));
        let half = [&[0; BLOCK][..], &header(b"f", b'0', 0, b"")].concat();
        let found = collect(&mut TarParser::new(), [&half[..]]);
        assert_eq!(found, Err(TarError::AfterEnd { at: 512 }));
    }
}
