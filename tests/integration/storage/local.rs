//! What a directory adds to the suite: modes, owners, missing roots, full disks, killed writers.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use pgkeep::storage::{ErrorKind, ObjectName, Range, Storage, StorageError, local::Local};

use super::{content, name};
use crate::support::{
    Scratch,
    child::{self, child},
    install::{is_root, user},
    wait_until,
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
}

/// Everything below a directory, folders too.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[tokio::test]
async fn only_the_owner_can_read() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path().join("made/here");
    let storage = Local::open_or_make(&root).expect("make it");
    storage.put(&name("a/b/c"), "secret".into()).await.expect("put");
    storage.replace(&name("leases/x"), "lease".into()).await.expect("replace");
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&folder.path().join("made")), 0o700);
    let mut files = 0;
    for path in walk(&root) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        files += u32::from(path.is_file());
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert_eq!(files, 2);
}

/// What each operation fails with: on the object `a/b`, and on others.
async fn kinds(storage: &Local) -> [ErrorKind; 9] {
    let object = name("a/b");
    [
        storage.read(&object, Range::All).await.map(|_| ()),
        storage.size(&object).await.map(|_| ()),
        storage.list("", None, 10).await.map(|_| ()),
        storage.list("a/", None, 10).await.map(|_| ()),
        storage.folders("").await.map(|_| ()),
        storage.delete(&object).await,
        storage.put(&name("a/c"), "x".into()).await,
        storage.replace(&name("l"), "x".into()).await,
        storage.ensure_durable(&object).await,
    ]
    .map(|result| result.expect_err("it isn't there").kind)
}

#[tokio::test]
async fn a_root_that_is_gone_is_not_an_empty_one() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path().join("disk");
    fs::create_dir(&root).expect("make it");
    let storage = Local::open(&root).expect("open it");
    storage.put(&name("a/b"), "x".into()).await.expect("put");
    // The disk goes away under a running process.
    fs::rename(&root, folder.path().join("unplugged")).expect("unplug");
    assert_eq!(kinds(&storage).await, [ErrorKind::RootMissing; 9]);
    assert!(!root.exists(), "a missing root is never made");
    let error = Local::open(&root).expect_err("open a root that is gone");
    assert_eq!(error.kind, ErrorKind::RootMissing);
    // Plugged in again, all works, also through the same handle.
    fs::rename(folder.path().join("unplugged"), &root).expect("plug in");
    assert_eq!(storage.read(&name("a/b"), Range::All).await.expect("read"), "x");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("write");
    assert_eq!(Local::open(&file).expect_err("a file").kind, ErrorKind::RootMissing);
}

/// A disk may go between the look whether it is there and what is done then.
#[test]
fn a_directory_that_goes_at_any_moment_is_not_made_anew() {
    let folder = Scratch::new("goes");
    let (root, away) = (folder.path().join("disk"), folder.path().join("away"));
    fs::create_dir(&root).expect("make it");
    let storage = Local::open(&root).expect("open it");
    let landmark = name("repo.json");
    let put = async |name: &ObjectName| storage.put(name, "this one".into()).await;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(put(&landmark)).expect("put");
    storage.set_landmark(&landmark, "this one".into());
    let over = AtomicBool::new(false);
    let (made, stored) = thread::scope(|scope| {
        let storing = scope.spawn(|| {
            let mut stored = 0;
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let done = runtime.block_on(put(&name(&format!("{n}/of/many"))));
                stored += u32::from(done.is_ok());
            }
            stored
        });
        let made = (0..5000).any(|_| {
            fs::rename(&root, &away).expect("unmount");
            thread::sleep(Duration::from_micros(50));
            root.exists() || fs::rename(&away, &root).is_err()
        });
        over.store(true, Ordering::Relaxed);
        (made, storing.join().expect("the other thread"))
    });
    assert!(!made, "the root was made where there was none");
    assert!(stored > 0);
}

#[tokio::test]
async fn another_directory_under_the_same_name_is_not_this_one() {
    let folder = tempfile::tempdir().expect("a directory");
    let (root, unplugged) = (folder.path().join("disk"), folder.path().join("unplugged"));
    fs::create_dir(&root).expect("make it");
    let storage = Local::open(&root).expect("open it");
    let landmark = name("repo.json");
    storage.put(&landmark, "this one".into()).await.expect("put");
    storage.set_landmark(&landmark, "this one".into());
    storage.put(&name("a/b"), "x".into()).await.expect("put");
    let writer = storage.create(&name("begun")).await.expect("begin an object");
    fs::rename(&root, &unplugged).expect("unmount");
    // The directory that the disk was mounted on; and other disks.
    for other in [None, Some("another"), Some("this one, longer")] {
        fs::create_dir(&root).expect("make it");
        if let Some(content) = other {
            fs::write(root.join("repo.json"), content).expect("write");
        }
        assert_eq!(kinds(&storage).await, [ErrorKind::RootMissing; 9], "{other:?}");
        let left = walk(&root);
        assert!(left.iter().all(|path| path.ends_with("repo.json")), "{left:?}");
        fs::remove_dir_all(&root).expect("remove");
    }
    fs::create_dir(&root).expect("make it");
    let error = writer.finish().await.expect_err("the disk is gone");
    assert_eq!(error.kind, ErrorKind::RootMissing, "{error}");
    let text = storage.put(&name("c"), "x".into()).await.expect_err("elsewhere").to_string();
    assert!(text.contains("repo.json isn't there any more, or is another one"), "{text}");
    fs::remove_dir(&root).expect("nothing was written");
    fs::rename(&unplugged, &root).expect("mount");
    storage.put(&name("a/c"), "y".into()).await.expect("put");
    storage.delete(&name("a/b")).await.expect("delete");
    assert_eq!(storage.list("a/", None, 10).await.expect("list").len(), 1);
}

#[tokio::test]
async fn foreign_files_in_the_directory_are_left_alone() {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Local::open(folder.path()).expect("open it");
    fs::create_dir(folder.path().join("lost+found")).expect("make");
    fs::write(folder.path().join("not a name"), "x").expect("write");
    fs::write(folder.path().join(".hidden"), "x").expect("write");
    storage.put(&name("a"), "x".into()).await.expect("put");
    let listed = storage.list("", None, 10).await.expect("list");
    assert_eq!(listed.len(), 1);
    storage.delete(&name("a")).await.expect("delete");
    assert!(folder.path().join("lost+found").exists());
}

/// Does in a process of its own what the tests below ask for: `verb:directory`.
#[tokio::test]
async fn in_a_child() {
    let Some(task) = child::task() else { return };
    let (verb, root) = task.split_once(':').expect("verb:directory");
    let root = Path::new(root);
    let show = |result: Result<(), StorageError>| match result {
        Ok(()) => println!("{verb}: worked"),
        Err(e) => println!("{verb}: {:?}: {e}", e.kind),
    };
    match verb {
        "open" => show(Local::open(root).map(|_| ())),
        "put" => {
            let storage = Local::open(root).expect("open");
            show(storage.put(&name("folder/new"), content(1, 3000)).await);
        }
        "read" => {
            let storage = Local::open(root).expect("open");
            show(storage.read(&name("folder/object"), Range::All).await.map(|_| ()));
        }
        "make" => {
            let storage = Local::open_or_make(root).expect("make");
            show(storage.put(&name("a/b/c"), "x".into()).await);
            show(storage.replace(&name("leases/x"), "lease".into()).await);
            assert_eq!(storage.read(&name("a/b/c"), Range::All).await.expect("read"), "x");
        }
        "fill" => {
            let storage = Local::open(root).expect("open");
            storage.put(&name("small"), content(1, 10_000)).await.expect("there is room");
            show(storage.put(&name("big"), content(2, 2_000_000)).await);
            show(storage.replace(&name("lease"), content(3, 2_000_000)).await);
            let small = storage.read(&name("small"), Range::All).await.expect("read");
            assert_eq!(small, content(1, 10_000));
            let left = storage.list("", None, 10).await.expect("list");
            assert_eq!(left.len(), 1, "{left:?}");
            storage.put(&name("after"), content(4, 50_000)).await.expect("the room is free again");
        }
        "write" => {
            let storage = Local::open(root).expect("open");
            for number in 0.. {
                let object = name(&format!("folder{}/{number}", number % 3));
                let mut writer = storage.create(&object).await.expect("create");
                for piece in 0..5 {
                    writer.write(content(number * 5 + piece, 20_000)).await.expect("write");
                }
                writer.finish().await.expect("finish");
                println!("made {number}");
            }
        }
        other => panic!("nobody knows how to {other}"),
    }
}

const IN_A_CHILD: &str = "storage::local::in_a_child";

fn said(command: &mut Command) -> String {
    let output = command.output().expect("run a child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn no_permission_is_not_absence() {
    let scratch = Scratch::new("denied");
    let root = scratch.folder("repository");
    scratch.folder("repository/folder");
    scratch.file("repository/folder/object", "x");
    let ask = |verb: &str| said(&mut child(IN_A_CHILD, &format!("{verb}:{}", root.display())));
    assert!(ask("read").contains("read: worked"));
    let permit = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    permit(&root.join("folder"), 0o000);
    assert!(ask("read").contains("read: Denied"), "{}", ask("read"));
    assert!(ask("put").contains("put: Denied"), "{}", ask("put"));
    permit(&root.join("folder"), 0o500);
    assert!(ask("put").contains("put: Denied"), "{}", ask("put"));
    permit(&root.join("folder"), 0o700);
    assert!(ask("put").contains("put: worked"));
    if is_root() {
        // Another user's repository is refused before anything is written into it.
        let theirs = tempfile::tempdir().expect("a directory of root");
        permit(theirs.path(), 0o777);
        let open = || said(&mut child(IN_A_CHILD, &format!("open:{}", theirs.path().display())));
        // With nothing in it, it may as well be a mount point.
        assert!(open().contains("open: RootMissing"), "{}", open());
        fs::write(theirs.path().join("repo.json"), "theirs").expect("write");
        let output = open();
        assert!(output.contains("open: Denied"), "{output}");
        assert!(output.contains(&format!("runs as {}", user().uid)), "{output}");
    }
}

/// Of each object it is said what came of it, where some of them can't go.
#[tokio::test]
async fn what_cannot_be_deleted_is_told_of_itself_alone() {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Local::open(folder.path()).expect("open");
    for object in ["a/one", "b/two", "c/three"] {
        storage.put(&name(object), content(1, 3)).await.expect("put");
    }
    // A directory isn't removed as a file is, whoever asks.
    fs::create_dir(folder.path().join("b/four")).expect("make a directory");
    let names = ["a/one", "b/four", "c/three", "b/two"].map(name);
    let results = storage.delete_all(&names).await;
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false, false], "{results:?}");
    assert!(results[1].as_ref().unwrap_err().to_string().contains("b/four"), "{results:?}");
    assert!(!folder.path().join("a").exists() && folder.path().join("b/four").exists());
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    for umask in ["777", "277", "000"] {
        let scratch = Scratch::new("umask");
        let root = scratch.path().join("made/repository");
        let work = child(IN_A_CHILD, &format!("make:{}", root.display()));
        let mut command = crate::support::install::command("sh");
        command.args(["-c", "umask $0 && exec \"$@\"", umask]);
        command.arg(work.get_program()).args(work.get_args());
        for (key, value) in work.get_envs() {
            command.env(key, value.expect("a value"));
        }
        let output = said(&mut command);
        assert_eq!(output.matches("make: worked").count(), 2, "{umask}: {output}");
        let found = walk(scratch.path());
        assert_eq!(found.iter().filter(|path| path.is_file()).count(), 2, "{found:?}");
        for path in found {
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{umask}: {}", path.display());
        }
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half() {
    let scratch = Scratch::new("full");
    let disk = scratch.folder("disk");
    let work = child(IN_A_CHILD, &format!("fill:{}", disk.display()));
    // The mount is in a namespace of the child's own and goes with it.
    let mut command = crate::support::install::command("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=256k none \"$0\" && echo mounted && exec \"$@\"");
    command.arg(&disk).arg(work.get_program()).args(work.get_args());
    for (key, value) in work.get_envs() {
        command.env(key, value.expect("a value"));
    }
    let output = command.output().expect("run a child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !text.contains("mounted") {
        // Containers may forbid it. Nothing else makes a disk full on every machine.
        eprintln!(
            "SKIPPED a_full_disk_is_told: no user namespace to mount a small disk in: {errors}"
        );
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(text.matches("fill: Full").count(), 2, "{text}");
}

#[tokio::test]
async fn a_killed_writer_leaves_no_half_file_and_its_rest_is_swept() {
    let scratch = Scratch::new("killed");
    let root = scratch.folder("repository");
    for round in 0..12_u64 {
        let mut writer = child(IN_A_CHILD, &format!("write:{}", root.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("start a writer");
        // It needs a moment to start; then at a point that differs from round to round.
        let made = root.join("folder0/0");
        wait_until("the writer has begun", 30, || made.exists());
        thread::sleep(Duration::from_micros(1700 * round));
        writer.kill().expect("kill");
        writer.wait().expect("wait");

        let found: Vec<PathBuf> = walk(&root)
            .into_iter()
            .filter(|path| path.is_file() && !path.starts_with(root.join(".tmp")))
            .collect();
        assert!(!found.is_empty());
        for path in found {
            let number: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let whole: Vec<u8> = (0..5).flat_map(|p| content(number * 5 + p, 20_000)).collect();
            assert!(fs::read(&path).expect("read") == whole, "{} is damaged", path.display());
        }
        fs::remove_dir_all(root.join("folder0")).expect("clean up");
        let _ = fs::remove_dir_all(root.join("folder1"));
        let _ = fs::remove_dir_all(root.join("folder2"));
    }

    // A rest is swept by the next writer once it is a minute old.
    let rest = scratch.file("repository/.tmp/0123456789abcdef", "half an object");
    let output = said(&mut child(IN_A_CHILD, &format!("put:{}", root.display())));
    assert!(output.contains("put: worked") && rest.exists(), "{output}");
    for path in walk(&root.join(".tmp")) {
        let file = fs::File::options().append(true).open(path).expect("open");
        file.set_modified(SystemTime::now() - Duration::from_secs(120)).expect("age it");
    }
    storage_of_the_same_user(&root);
    assert!(walk(&root.join(".tmp")).is_empty(), "{:?}", walk(&root.join(".tmp")));
}

/// Writes one more object, as the owner of the directory.
fn storage_of_the_same_user(root: &Path) {
    fs::remove_dir_all(root.join("folder")).expect("free the name");
    let output = said(&mut child(IN_A_CHILD, &format!("put:{}", root.display())));
    assert!(output.contains("put: worked"), "{output}");
}

#[tokio::test]
async fn the_file_of_a_living_writer_is_not_swept() {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Local::open(folder.path()).expect("open it");
    let mut writer = storage.create(&name("slow")).await.expect("create");
    writer.write("half".into()).await.expect("write");
    for path in walk(&folder.path().join(".tmp")) {
        let file = fs::File::options().append(true).open(path).expect("open");
        file.set_modified(SystemTime::now() - Duration::from_secs(600)).expect("age it");
    }
    let other = Local::open(folder.path()).expect("open it again");
    other.put(&name("other"), "x".into()).await.expect("put");
    writer.write(" and half".into()).await.expect("write");
    writer.finish().await.expect("the file is still there");
    let bytes = storage.read(&name("slow"), Range::All).await.expect("read");
    assert_eq!(bytes, "half and half");
}
