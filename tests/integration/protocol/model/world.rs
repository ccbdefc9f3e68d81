//! What the model's repository holds, and what may never be seen in it.

/// A part of a backup's folder. There are two packs, so that one can be written late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    PackA,
    PackB,
    Manifest,
    Record,
    Abandoned,
    Begin,
    Deleted,
}

/// All but the two that go last.
pub const REST: [Part; 5] =
    [Part::PackA, Part::PackB, Part::Manifest, Part::Record, Part::Abandoned];
const PACKS: [Part; 2] = [Part::PackA, Part::PackB];

/// The first backup, a full one.
pub const FULL: usize = 0;
/// The second, whose base it is. It refers to a pack of the first.
pub const INCR: usize = 1;
/// A backup that is taken while other things happen, with the second as its base. Of that one it
/// refers to nothing: all that it shares is the first one's.
pub const RUNNING: usize = 2;
/// Another one that is taken, on top of that.
pub const NEXT: usize = 3;
/// How many backups there may be.
pub const BACKUPS: usize = 4;

/// The packs that a backup's list names.
pub fn list(backup: usize) -> Vec<(usize, Part)> {
    let own = PACKS.map(|pack| (backup, pack));
    let others: &[(usize, Part)] = match backup {
        INCR | RUNNING => &[(FULL, Part::PackA)],
        NEXT => &[(FULL, Part::PackA), (RUNNING, Part::PackB)],
        _ => &[],
    };
    [&own, others].concat()
}

/// A set of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Objects(u64);

const FLOOR: u64 = 1 << 63;

impl Objects {
    fn bit(backup: usize, part: Part) -> u64 {
        1 << (backup * 8 + part as usize)
    }

    fn wal_bit(backup: usize) -> u64 {
        1 << (40 + backup)
    }

    /// Two whole backups, and the WAL of all.
    pub fn at_first() -> Self {
        let mut objects = Objects::default();
        for backup in [FULL, INCR] {
            for part in [Part::PackA, Part::PackB, Part::Manifest, Part::Record, Part::Begin] {
                objects.create(backup, part);
            }
        }
        (0..BACKUPS).for_each(|backup| objects.0 |= Objects::wal_bit(backup));
        objects
    }

    pub fn has(self, backup: usize, part: Part) -> bool {
        self.0 & Objects::bit(backup, part) != 0
    }

    pub fn create(&mut self, backup: usize, part: Part) {
        self.0 |= Objects::bit(backup, part);
    }

    pub fn remove(&mut self, backup: usize, part: Part) {
        self.0 &= !Objects::bit(backup, part);
    }

    /// The backups that have a folder, as bits.
    pub fn folders(self) -> u8 {
        (0..BACKUPS).filter(|b| self.0 >> (b * 8) & 0xFF != 0).fold(0, |set, b| set | 1 << b)
    }

    pub fn has_wal(self, backup: usize) -> bool {
        self.0 & Objects::wal_bit(backup) != 0
    }

    pub fn remove_wal(&mut self, backup: usize) {
        self.0 &= !Objects::wal_bit(backup);
    }

    /// A floor above where every backup starts.
    pub fn has_floor(self) -> bool {
        self.0 & FLOOR != 0
    }

    pub fn create_floor(&mut self) {
        self.0 |= FLOOR;
    }

    /// Whether it is a backup, for who lists them.
    pub fn is_listed(self, backup: usize) -> bool {
        self.has(backup, Part::Record)
            && self.has(backup, Part::Begin)
            && !self.has(backup, Part::Deleted)
    }

    /// The first of what a listed backup lacks.
    pub fn lacks(self, backup: usize) -> Option<(usize, Part)> {
        let needed = list(backup).into_iter().chain([(backup, Part::Manifest)]);
        needed.into_iter().find(|(of, part)| !self.has(*of, *part))
    }
}
