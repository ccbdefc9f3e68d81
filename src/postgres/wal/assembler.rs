//! Pages in, whole records out.
//!
//! Follows `xlogreader.c`: a record that doesn't fit into its page goes on after the next page's
//! header, which says how much is missing; after an unfinished record that was given up the next
//! page says so; after a switch record the rest of the segment is unused. The first thing that
//! doesn't fit (a page of an earlier use of the file, a length of 0, a wrong back link, a wrong
//! checksum) is the end of the WAL, not an error.

use super::{
    head::{RecordHead, Trailing},
    header::{Opening, PAGE_HEADER, PageHeader, SegmentHeader, major},
    record::Record,
};
use crate::postgres::{Lsn, SegmentSize, Timeline};

/// What the next byte of a page's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Padding up to the next multiple of 8, where a record begins.
    Between,
    /// Inside a record that is being put together.
    Record,
    /// So many bytes of a record whose beginning isn't known.
    Tail(u64),
    /// Unused, up to the end of the segment.
    Switched,
    /// Nothing valid any more.
    Ended,
}

/// Called with each valid record and its end.
pub(super) type OnRecord<'a> = &'a mut dyn FnMut(&Record, Lsn);

/// Puts records together.
#[derive(Debug, Clone)]
pub(super) struct Assembler {
    /// Where the segment begins and ends.
    start: Lsn,
    end: Lsn,
    size: SegmentSize,
    /// The newest timeline a page may have.
    newest: Timeline,
    position: Lsn,
    /// Whether the bytes before the next page header were seen, so that it must fit to them.
    continued: bool,
    state: State,
    record: Record,
    /// The start of the last valid record, when the next one follows it.
    previous: Option<Lsn>,
    page: [u8; SegmentHeader::LEN],
    /// How much of a page header is there.
    page_have: usize,
    /// How much of the page's content is still to come.
    page_left: usize,
    block_size: usize,
    magic: u16,
    major: u32,
    timeline: Timeline,
    head_known: bool,
}

impl Assembler {
    /// For a whole segment from its first byte on; `head` is the record that began before it.
    /// `start` is `None` when there can't be such a segment.
    pub fn new(
        timeline: Timeline,
        start: Option<Lsn>,
        size: SegmentSize,
        head: Option<RecordHead>,
    ) -> Self {
        let at = start.unwrap_or_default();
        let end = at.0.checked_add(size.bytes()).filter(|_| start.is_some());
        let mut assembler = Assembler {
            start: at,
            end: Lsn(end.unwrap_or(at.0)),
            size,
            newest: timeline,
            position: at,
            continued: false,
            state: if end.is_some() { State::Between } else { State::Ended },
            record: Record::new(at),
            previous: None,
            page: [0; SegmentHeader::LEN],
            page_have: 0,
            page_left: 0,
            block_size: 0,
            magic: 0,
            major: 0,
            timeline: Timeline(0),
            head_known: true,
        };
        if let Some(head) = head.filter(|head| head.position == at && end.is_some()) {
            assembler.state = State::Record;
            assembler.record = head.record;
            assembler.previous = head.previous;
        }
        assembler
    }

    /// For the pages of a segment from `page` on, whose first page said this.
    pub fn from_page(header: &SegmentHeader, page: Lsn) -> Self {
        let newest = Timeline(u32::MAX);
        let mut assembler = Assembler::new(newest, Some(header.address), header.segment_size, None);
        if page != header.address {
            assembler.position = page;
            assembler.block_size = header.wal_block_size as usize;
            assembler.magic = header.magic;
            assembler.major = header.major().unwrap_or(0);
            assembler.timeline = header.timeline;
        }
        assembler
    }

    /// Goes on with the next segment; the last one has been fed to its end. What was unfinished
    /// goes on if the segment follows, and is forgotten else.
    pub fn next_segment(&mut self, timeline: Timeline, start: Option<Lsn>) {
        let follows = start == Some(self.end)
            && self.is_at_end()
            && self.state != State::Ended
            && self.newest <= timeline;
        let mut next = Assembler::new(timeline, start, self.size, None);
        if follows && next.state != State::Ended {
            next.continued = true;
            next.state = match self.state {
                State::Switched => State::Between,
                state => state,
            };
            next.head_known = !matches!(next.state, State::Tail(_));
            next.record = self.record.clone();
            next.previous = self.previous;
            next.magic = self.magic;
            next.timeline = self.timeline;
        }
        *self = next;
    }

    /// Takes the next bytes of the segment; those past its end are ignored.
    pub fn feed(&mut self, bytes: &[u8], on_record: OnRecord<'_>) {
        let room = usize::try_from(self.end.0 - self.position.0).unwrap_or(usize::MAX);
        let mut bytes = &bytes[..bytes.len().min(room)];
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Ended | State::Switched => bytes.len(),
                _ if self.page_left == 0 => self.take_page_header(bytes),
                _ => {
                    let content = &bytes[..bytes.len().min(self.page_left)];
                    let taken = self.take_content(content, on_record);
                    self.page_left -= taken;
                    taken
                }
            };
            self.position.0 += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    /// Takes bytes of a page's header and, when all are there, sees what follows.
    fn take_page_header(&mut self, bytes: &[u8]) -> usize {
        let first = self.position.0 - (self.page_have as u64) == self.start.0;
        let length = if first { SegmentHeader::LEN } else { PAGE_HEADER };
        let n = bytes.len().min(length - self.page_have);
        self.page[self.page_have..self.page_have + n].copy_from_slice(&bytes[..n]);
        self.page_have += n;
        if self.page_have == length {
            self.page_have = 0;
            let address = Lsn(self.position.0 + n as u64 - length as u64);
            match self.open_page(address, first) {
                Some(state) => {
                    self.state = state;
                    self.continued = true;
                    self.page_left = self.block_size - length;
                }
                None => self.state = State::Ended,
            }
        }
        n
    }

    /// The state after a page header, `None` if it doesn't fit.
    fn open_page(&mut self, address: Lsn, first: bool) -> Option<State> {
        let page = PageHeader::parse(&self.page)?;
        if first {
            let known = self.magic;
            self.magic = page.magic;
            let header = SegmentHeader::parse(&self.page).ok()?;
            if header.segment_size != self.size || (known != 0 && known != page.magic) {
                return None;
            }
            self.block_size = header.wal_block_size as usize;
            self.major = major(page.magic)?;
        }
        let fits = page.address == address
            && page.magic == self.magic
            && page.is_long() == first
            && (self.timeline..=self.newest).contains(&page.timeline);
        if !fits {
            return None;
        }
        self.timeline = page.timeline;
        match (self.state, page.opening()) {
            (_, Opening::GivesUp) => {
                self.head_known = true;
                Some(State::Between)
            }
            (State::Record, Opening::Continues(left)) if left == self.record.missing() => {
                Some(State::Record)
            }
            (State::Tail(known), Opening::Continues(left)) if known == u64::from(left) => {
                Some(State::Tail(known))
            }
            (State::Between, Opening::Fresh) => Some(State::Between),
            // The record that was to begin before this segment is another one, or isn't known.
            (_, Opening::Continues(left)) if !self.continued && left > 0 => {
                self.head_known = false;
                self.previous = None;
                Some(State::Tail(u64::from(left)))
            }
            (_, Opening::Fresh) if !self.continued => {
                self.previous = None;
                Some(State::Between)
            }
            _ => None,
        }
    }

    /// Takes bytes of a page's content, at least one; `content` isn't longer than the page.
    fn take_content(&mut self, content: &[u8], on_record: OnRecord<'_>) -> usize {
        match self.state {
            State::Tail(left) => {
                let n = content.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - n as u64;
                self.state = if left == 0 { State::Between } else { State::Tail(left) };
                n
            }
            State::Between if !self.position.0.is_multiple_of(8) => {
                content.len().min(8 - (self.position.0 % 8) as usize)
            }
            State::Between => {
                self.record.begin(self.position);
                self.state = State::Record;
                self.take_record(content, on_record)
            }
            State::Record => self.take_record(content, on_record),
            State::Switched | State::Ended => content.len(),
        }
    }

    fn take_record(&mut self, content: &[u8], on_record: OnRecord<'_>) -> usize {
        let Ok(taken) = self.record.take(content, self.previous, self.major) else {
            self.state = State::Ended;
            return content.len();
        };
        if self.record.is_complete() {
            let end = Lsn((self.position.0 + taken as u64).next_multiple_of(8));
            self.complete(end, on_record);
        }
        taken
    }

    /// All bytes of the record are here, and the next may begin at `end`.
    fn complete(&mut self, end: Lsn, on_record: OnRecord<'_>) {
        if !self.record.is_valid() {
            self.state = State::Ended;
            return;
        }
        self.previous = Some(self.record.start());
        let switch = self.record.is_switch() && end != self.end;
        self.state = if switch { State::Switched } else { State::Between };
        on_record(&self.record, if switch { self.end } else { end });
    }

    /// Whether every byte of the segment was taken.
    fn is_at_end(&self) -> bool {
        self.position == self.end
    }

    /// Whether the segment was valid up to its end, or to a switch.
    pub fn is_whole(&self) -> bool {
        match self.state {
            State::Ended => false,
            State::Switched => true,
            _ => self.is_at_end() && self.end != self.start,
        }
    }

    /// What is unfinished at the end of the segment.
    pub fn trailing(&self) -> Trailing {
        match self.state {
            State::Switched => Trailing::Nothing,
            State::Between if self.is_at_end() => Trailing::Nothing,
            State::Record if self.is_at_end() => Trailing::Head(Box::new(RecordHead {
                position: self.end,
                record: self.record.clone(),
                previous: self.previous,
            })),
            _ => Trailing::Unknown,
        }
    }

    /// The timeline of the last valid page; 0 if there was none.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The magic of the first page; 0 if there was none.
    pub fn magic(&self) -> u16 {
        self.magic
    }

    /// Whether the version is known and the first page was valid.
    pub fn is_parsed(&self) -> bool {
        self.major != 0 && self.timeline.0 != 0
    }

    /// Whether the record that the segment began in was known, or there was none.
    pub fn head_known(&self) -> bool {
        self.head_known
    }
}
