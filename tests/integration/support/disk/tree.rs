//! A tree of files as a power loss leaves it, to look at and to write to a real disk.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::support::{
    install::user,
    scratch::{own, write},
};

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Rc<Vec<u8>>),
    Link(PathBuf),
}

/// Everything below a directory, by its path there; the directory itself has the empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

impl Tree {
    /// What is below `root`.
    pub fn read(root: &Path) -> Self {
        let mut tree = Tree::default();
        tree.read_below(root, Path::new(""));
        tree
    }

    fn read_below(&mut self, root: &Path, path: &Path) {
        let full = root.join(path);
        let meta = fs::symlink_metadata(&full).expect("look at what is there");
        let node = if meta.is_symlink() {
            Node::Link(fs::read_link(&full).expect("read a link"))
        } else if meta.is_dir() {
            for entry in fs::read_dir(&full).expect("read a folder").flatten() {
                self.read_below(root, &path.join(entry.file_name()));
            }
            Node::Directory
        } else {
            Node::File(Rc::new(fs::read(&full).expect("read a file")))
        };
        self.0.insert(path.to_owned(), node);
    }

    /// The content of a file, if it is there.
    pub fn file(&self, path: impl AsRef<Path>) -> Option<&Rc<Vec<u8>>> {
        match self.0.get(path.as_ref()) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        }
    }

    /// The files below `folder`, with their contents.
    pub fn files<'t>(
        &'t self,
        folder: &'t Path,
    ) -> impl Iterator<Item = (&'t Path, &'t Rc<Vec<u8>>)> {
        let below =
            self.0.range(folder.to_owned()..).take_while(move |(path, _)| path.starts_with(folder));
        below.filter_map(|(path, node)| match node {
            Node::File(content) => Some((path.as_path(), content)),
            _ => None,
        })
    }

    /// What tells it from other trees, without the contents of files of which `is_rest` says that nobody
    /// will read them.
    pub fn hash(&self, is_rest: impl Fn(&Path) -> bool) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (path, node) in &self.0 {
            part(path.as_os_str().as_encoded_bytes());
            match node {
                Node::Directory => part(b"directory"),
                Node::Link(target) => part(target.as_os_str().as_encoded_bytes()),
                Node::File(_) if is_rest(path) => part(b"rest"),
                Node::File(content) => part(content),
            }
        }
        hasher.finalize()
    }

    /// The paths that differ, and how.
    pub fn differences(&self, other: &Tree) -> Vec<String> {
        let of_both =
            self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path)));
        let says = |tree: &Tree, path: &Path| match tree.0.get(path) {
            None => "nothing".to_owned(),
            Some(Node::File(content)) => format!("a file of {} bytes", content.len()),
            Some(node) => format!("{node:?}"),
        };
        of_both
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| {
                format!("{}: {} and {}", path.display(), says(self, path), says(other, path))
            })
            .collect()
    }

    /// Makes what is below `root` this tree. What is right already stays as it is, so that it stays the same
    /// file.
    pub fn write(&self, root: &Path) {
        self.clear(root, Path::new(""));
        for (path, node) in &self.0 {
            let full = root.join(path);
            match node {
                Node::Directory if full.is_dir() => {}
                Node::Directory => {
                    fs::create_dir(&full).expect("make a folder");
                    fs::set_permissions(&full, fs::Permissions::from_mode(0o700)).expect("chmod");
                    own(&full);
                }
                Node::File(content) if fs::read(&full).is_ok_and(|is| is == **content) => {}
                Node::File(content) => write(&full, content.as_slice()),
                Node::Link(target) if fs::read_link(&full).is_ok_and(|is| is == *target) => {}
                Node::Link(target) => {
                    symlink(target, &full).expect("make a link");
                    let user = user();
                    std::os::unix::fs::lchown(&full, Some(user.uid), Some(user.gid))
                        .expect("give a link to the server's user");
                }
            }
        }
    }

    /// Removes what the tree has not, or has as something else.
    fn clear(&self, root: &Path, path: &Path) {
        for entry in fs::read_dir(root.join(path)).expect("read a folder").flatten() {
            let (path, full) = (path.join(entry.file_name()), entry.path());
            let meta = entry.metadata().expect("look at what is there");
            match self.0.get(&path) {
                Some(Node::Directory) if meta.is_dir() => self.clear(root, &path),
                Some(Node::File(_)) if meta.is_file() => {}
                Some(Node::Link(_)) if meta.is_symlink() => {}
                _ if meta.is_dir() => fs::remove_dir_all(&full).expect("remove a folder"),
                _ => fs::remove_file(&full).expect("remove a file"),
            }
        }
    }
}
