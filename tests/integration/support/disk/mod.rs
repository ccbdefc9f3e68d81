//! A disk that may lose its power: what is durable on it, and what was only written.
//!
//! [`record`] takes down what the real program asks of the system. [`Disk`] replays that, and keeps two
//! sides of everything apart: what a running system sees, and what a sync has promised. Of a file the
//! content is durable that it had when its last sync began; of a directory the names that it had then,
//! whatever was synced of the files. A name may lead to a file of which nothing is durable: it is empty,
//! then.
//!
//! [`Disk::lost`] makes trees of what a power loss may leave. What wasn't synced may have reached the disk
//! or not: each change of a directory by itself, and not in their order; of a file its new content,
//! the old one, a part, or zeros where bytes should be. Only a rename stays one thing: the old name goes
//! with the new one or after it, as every file system with a journal has it.

mod fault;
mod record;
mod tree;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

pub use fault::{Faulty, Place, places, run_with};
pub use record::{Op, Recording, record, record_while};
pub use tree::{Node, Tree};

use super::random::Random;

type Inode = usize;
type Names = BTreeMap<OsString, Inode>;

#[derive(Debug, Clone)]
enum Thing {
    Directory { now: Names, durable: Names },
    File { now: Rc<Vec<u8>>, durable: Rc<Vec<u8>>, position: u64, appends: bool },
    Link(PathBuf),
}

/// A name that leads elsewhere, or nowhere.
#[derive(Debug, Clone)]
struct Change {
    directory: Inode,
    name: OsString,
    to: Option<Inode>,
    durable: bool,
}

/// A sync on its way: what it will have made durable.
#[derive(Debug, Clone)]
enum Covers {
    Content(Inode, Rc<Vec<u8>>),
    /// The changes before this one.
    Names(Inode, usize),
}

/// What a power loss leaves of what wasn't synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// All names, and of no content more than was synced.
    Names,
    /// All of it: no power loss, but a process that was killed.
    All,
    /// Some, by chance.
    Some,
}

/// The disk below one directory, which is durable itself.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
    things: Vec<Thing>,
    unnamed: HashMap<PathBuf, Inode>,
    by_descriptor: HashMap<u32, Inode>,
    /// The changes of names since the beginning, a rename's together.
    changes: Vec<Vec<Change>>,
    syncs: HashMap<usize, Covers>,
    /// How many syncs had something to make durable.
    pub useful_syncs: usize,
}

impl Disk {
    /// The disk with what is below `root` now, all of it durable.
    pub fn of(root: &Path) -> Self {
        let mut disk = Disk {
            root: root.to_owned(),
            things: Vec::new(),
            unnamed: HashMap::new(),
            by_descriptor: HashMap::new(),
            changes: Vec::new(),
            syncs: HashMap::new(),
            useful_syncs: 0,
        };
        disk.load(root);
        disk
    }

    fn load(&mut self, path: &Path) -> Inode {
        let meta = fs::symlink_metadata(path).expect("look at what is there");
        let inode = self.things.len();
        if meta.is_symlink() {
            self.things.push(Thing::Link(fs::read_link(path).expect("read a link")));
        } else if meta.is_dir() {
            self.things.push(directory());
            let mut names = Names::new();
            for entry in fs::read_dir(path).expect("read a folder").flatten() {
                names.insert(entry.file_name(), self.load(&entry.path()));
            }
            self.things[inode] = Thing::Directory { now: names.clone(), durable: names };
        } else {
            let content = Rc::new(fs::read(path).expect("read a file"));
            let durable = content.clone();
            self.things.push(Thing::File { now: content, durable, position: 0, appends: false });
        }
        inode
    }

    /// Adds what others have put below the root meanwhile, as far as `theirs` says that it is, as durable.
    pub fn add_of_others(&mut self, theirs: impl Fn(&Path) -> bool) {
        self.add_below(0, &self.root.clone(), &theirs);
    }

    fn add_below(&mut self, inode: Inode, path: &Path, theirs: &impl Fn(&Path) -> bool) {
        for entry in fs::read_dir(path).expect("read a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let known = self.names(inode).get(&name).copied();
            match known {
                Some(known) if path.is_dir() => self.add_below(known, &path, theirs),
                None if theirs(&path) => {
                    let new = self.load(&path);
                    let Thing::Directory { now, durable } = &mut self.things[inode] else {
                        continue;
                    };
                    now.insert(name.clone(), new);
                    durable.insert(name, new);
                }
                _ => {}
            }
        }
    }

    fn names(&self, inode: Inode) -> &Names {
        match &self.things[inode] {
            Thing::Directory { now, .. } => now,
            other => panic!("not a directory: {other:?}"),
        }
    }

    /// What has this path now.
    fn find(&self, path: &Path) -> Option<Inode> {
        if let Some(inode) = self.unnamed.get(path) {
            return Some(*inode);
        }
        let below = path.strip_prefix(&self.root).expect("below the root");
        below.iter().try_fold(0, |at, name| match &self.things[at] {
            Thing::Directory { now, .. } => now.get(name).copied(),
            _ => None,
        })
    }

    fn known(&self, path: &Path) -> Inode {
        self.find(path).unwrap_or_else(|| panic!("the model doesn't have {}", path.display()))
    }

    fn place(&self, path: &Path) -> (Inode, OsString) {
        let folder = self.known(path.parent().expect("below the root"));
        (folder, path.file_name().expect("a name").to_owned())
    }

    /// Names that lead elsewhere from now on, as one change.
    fn change(&mut self, changes: Vec<(Inode, OsString, Option<Inode>)>) {
        let mut together = Vec::new();
        for (directory, name, to) in changes {
            let Thing::Directory { now, .. } = &mut self.things[directory] else { unreachable!() };
            match to {
                Some(inode) => now.insert(name.clone(), inode),
                None => now.remove(&name),
            };
            together.push(Change { directory, name, to, durable: false });
        }
        self.changes.push(together);
    }

    fn make(&mut self, path: &Path, thing: Thing) -> Inode {
        self.things.push(thing);
        let inode = self.things.len() - 1;
        let (folder, name) = self.place(path);
        self.change(vec![(folder, name, Some(inode))]);
        inode
    }

    /// Does what the program did.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Open { path, truncate, append } => {
                let inode = self.find(path).unwrap_or_else(|| self.make(path, file()));
                let Thing::File { now, position, appends, .. } = &mut self.things[inode] else {
                    panic!("{} is no file", path.display());
                };
                (*position, *appends) = (0, *append);
                if *truncate {
                    *now = Rc::default();
                }
            }
            Op::Unnamed { path, descriptor } => {
                self.things.push(file());
                let inode = self.things.len() - 1;
                self.unnamed.insert(path.clone(), inode);
                self.by_descriptor.insert(*descriptor, inode);
            }
            Op::Write { path, offset, bytes } => {
                let inode = self.known(path);
                let Thing::File { now, position, appends, .. } = &mut self.things[inode] else {
                    panic!("{} is no file", path.display());
                };
                let at = if *appends { now.len() as u64 } else { offset.unwrap_or(*position) };
                let (at, end) = (at as usize, at as usize + bytes.len());
                let content = Rc::make_mut(now);
                content.resize(content.len().max(end), 0);
                content[at..end].copy_from_slice(bytes);
                if offset.is_none() {
                    *position = end as u64;
                }
            }
            Op::Seek { path, position: to } => {
                // Of a directory it is where its listing has come to.
                let inode = self.known(path);
                if let Thing::File { position, .. } = &mut self.things[inode] {
                    *position = *to;
                }
            }
            Op::Truncate { path, size } => {
                let inode = self.known(path);
                let Thing::File { now, .. } = &mut self.things[inode] else { unreachable!() };
                Rc::make_mut(now).resize(*size as usize, 0);
            }
            Op::MakeDirectory(path) => drop(self.make(path, directory())),
            Op::MakeLink { path, target } => drop(self.make(path, Thing::Link(target.clone()))),
            Op::Rename { from, to } => {
                let inode = self.known(from);
                let ((old, old_name), (new, name)) = (self.place(from), self.place(to));
                self.change(vec![(new, name, Some(inode)), (old, old_name, None)]);
            }
            Op::Link { from, to } => {
                let (inode, (folder, name)) = (self.known(from), self.place(to));
                self.change(vec![(folder, name, Some(inode))]);
            }
            Op::LinkUnnamed { descriptor, to } => {
                let inode = self.by_descriptor.remove(descriptor).expect("an unnamed file");
                let (folder, name) = self.place(to);
                self.change(vec![(folder, name, Some(inode))]);
            }
            Op::Remove(path) => {
                let (folder, name) = self.place(path);
                assert!(self.names(folder).contains_key(&name), "{} isn't there", path.display());
                self.change(vec![(folder, name, None)]);
            }
            Op::Told(_) => {}
            Op::BeginSync(id, path) => {
                let inode = self.known(path);
                let covers = match &self.things[inode] {
                    Thing::File { now, .. } => Covers::Content(inode, now.clone()),
                    _ => Covers::Names(inode, self.changes.len()),
                };
                self.syncs.insert(*id, covers);
            }
            Op::Sync(id, _) => match self.syncs.remove(id).expect("it has begun") {
                Covers::Content(inode, content) => {
                    let Thing::File { durable, .. } = &mut self.things[inode] else { return };
                    self.useful_syncs += usize::from(*durable != content);
                    *durable = content;
                }
                Covers::Names(inode, before) => self.sync_names(inode, before),
            },
        }
    }

    fn sync_names(&mut self, inode: Inode, before: usize) {
        let mut useful = false;
        for together in &mut self.changes[..before] {
            let is_here = |change: &Change| change.directory == inode && !change.durable;
            if !together.iter().any(is_here) {
                continue;
            }
            useful = true;
            // An old name is never gone for good while the new one may still be lost.
            let removes = together.iter().any(|change| is_here(change) && change.to.is_none());
            for change in together.iter_mut().filter(|c| !c.durable) {
                if change.directory == inode || (removes && change.to.is_some()) {
                    change.durable = true;
                    let Thing::Directory { durable, .. } = &mut self.things[change.directory]
                    else {
                        continue;
                    };
                    set(durable, change);
                }
            }
        }
        self.useful_syncs += usize::from(useful);
    }

    /// Whether a sync of what is at `path` had anything to do at this moment.
    pub fn has_to_sync(&self, path: &Path) -> bool {
        let Some(inode) = self.find(path) else { return false };
        match &self.things[inode] {
            Thing::File { now, durable, .. } => now != durable,
            _ => self.changes.iter().flatten().any(|c| c.directory == inode && !c.durable),
        }
    }

    /// What a running system sees.
    pub fn now(&self) -> Tree {
        self.lost(Rest::All, &mut Random::of_seed(0))
    }

    /// What a power loss at this moment leaves.
    pub fn lost(&self, rest: Rest, random: &mut Random) -> Tree {
        let mut names: HashMap<Inode, Names> = HashMap::new();
        for together in &self.changes {
            let reached = match rest {
                Rest::Nothing => false,
                Rest::Names | Rest::All => true,
                Rest::Some => random.below(2) == 0,
            };
            // A rename's old name may come back to life, if the new one is in another directory.
            let across = together.iter().any(|c| c.directory != together[0].directory);
            let both = !across || rest != Rest::Some || random.below(2) == 0;
            for change in together.iter().filter(|c| reached && !c.durable) {
                if change.to.is_none() && !both {
                    continue;
                }
                let Thing::Directory { durable, .. } = &self.things[change.directory] else {
                    continue;
                };
                set(names.entry(change.directory).or_insert_with(|| durable.clone()), change);
            }
        }
        let mut tree = Tree::default();
        self.walk(0, Path::new(""), &names, rest, random, &mut tree);
        tree
    }

    fn walk(
        &self,
        inode: Inode,
        path: &Path,
        names: &HashMap<Inode, Names>,
        rest: Rest,
        random: &mut Random,
        tree: &mut Tree,
    ) {
        let node = match &self.things[inode] {
            Thing::Link(target) => Node::Link(target.clone()),
            Thing::File { now, durable, .. } => Node::File(match rest {
                _ if Rc::ptr_eq(now, durable) || now == durable => durable.clone(),
                Rest::All => now.clone(),
                Rest::Some => partly(now, durable, random),
                Rest::Nothing | Rest::Names => durable.clone(),
            }),
            Thing::Directory { durable, .. } => {
                for (name, below) in names.get(&inode).unwrap_or(durable) {
                    self.walk(*below, &path.join(name), names, rest, random, tree);
                }
                Node::Directory
            }
        };
        tree.0.insert(path.to_owned(), node);
    }
}

fn set(names: &mut Names, change: &Change) {
    match change.to {
        Some(inode) => names.insert(change.name.clone(), inode),
        None => names.remove(&change.name),
    };
}

fn directory() -> Thing {
    Thing::Directory { now: Names::new(), durable: Names::new() }
}

fn file() -> Thing {
    Thing::File { now: Rc::default(), durable: Rc::default(), position: 0, appends: false }
}

/// What may be on the disk of a content that wasn't synced.
fn partly(now: &Rc<Vec<u8>>, durable: &Rc<Vec<u8>>, random: &mut Random) -> Rc<Vec<u8>> {
    const PAGE: usize = 4096;
    match random.below(5) {
        0 => durable.clone(),
        1 => now.clone(),
        2 => Rc::new(now[..random.below(now.len() as u64 + 1) as usize].to_vec()),
        // Its length reached the disk, and nothing else did.
        3 => Rc::new(vec![0; now.len()]),
        _ => {
            let mut pages = now.to_vec();
            for (number, page) in pages.chunks_mut(PAGE).enumerate() {
                let before = durable.get(number * PAGE..number * PAGE + page.len());
                match (random.below(3), before) {
                    (0, Some(before)) => page.copy_from_slice(before),
                    (1, _) => page.fill(0),
                    _ => {}
                }
            }
            Rc::new(pages)
        }
    }
}
