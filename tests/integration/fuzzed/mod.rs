//! What reads bytes that nobody vouches for, with what the fuzzer was given and what it found: see
//! `docs/testing.md`.
//!
//! `PGKEEP_WRITE_FIXTURES=1 cargo test --test integration fuzzed::each_target_has_its_seeds` writes the seeds.

mod seeds;
#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::net::UnixListener,
    panic::catch_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pgkeep::{
    error::Kind,
    postgres::client::{Client, ConnInfo, Environment, Mode},
    repo::{
        Repository,
        keys::KeyMaterial,
        sealed::{ObjectReader, SealedWriter, read_whole},
    },
    storage::ObjectName,
};
use tokio::runtime::Runtime;

use self::targets::TARGETS;
use crate::support::{memory::Memory, random::Random};

/// How long seeds are mutated, all targets together.
const MUTATED_FOR: Duration = Duration::from_secs(20);

/// What all inputs together may take, in bytes: they are in everybody's checkout.
const MOST: u64 = 300 << 10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder(target: &str) -> PathBuf {
    root().join("fixtures/fuzz").join(target)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The inputs that are kept for a target, with their paths.
fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder(target);
    let read = |name: &String| (folder.join(name), fs::read(folder.join(name)).unwrap());
    names(&folder).iter().map(read).collect()
}

#[test]
fn each_target_has_its_seeds() {
    let mut bytes = 0;
    if std::env::var_os("PGKEEP_WRITE_FIXTURES").is_some() {
        for (target, name, seed) in seeds::all() {
            fs::create_dir_all(folder(target)).unwrap();
            fs::write(folder(target).join(format!("seed-{name}")), seed).unwrap();
        }
    }
    for (target, _) in TARGETS {
        let kept = kept(target);
        let is_seed =
            |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with("seed-");
        assert!(kept.iter().any(|(path, _)| is_seed(path)), "{target} has no seed");
        bytes += kept.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    }
    assert!(bytes <= MOST, "fixtures/fuzz has {bytes} bytes");
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len(), "two targets of one name");
    assert_eq!(names(&root().join("fixtures/fuzz")), targets);
}

#[test]
fn every_target_is_one_of_the_fuzzers() {
    let source = root().join("tests/fuzz/src");
    let files = names(&source.join("targets"));
    let shared = ["input.rs", "mod.rs", "place.rs"];
    let targets = files.iter().filter(|file| !shared.contains(&file.as_str()));
    let expected = TARGETS.iter().map(|(name, _)| format!("{name}.rs"));
    assert_eq!(targets.cloned().collect::<BTreeSet<_>>(), expected.collect());
    // The fuzzer takes them from the same table.
    let fuzzer = fs::read_to_string(source.join("main.rs")).unwrap();
    assert!(fuzzer.contains("mod targets;") && fuzzer.contains("targets::TARGETS.iter()"));
    // And from the same library, with the same versions beside it.
    let locked = |path: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let package = |block: &str| Some(block.lines().take(2).collect::<Vec<_>>().join(" "));
        let own = |package: &String| package.contains("\"pgkeep") || package.contains("fuzz");
        text.split("[[package]]\n").skip(1).filter_map(package).filter(|p| !own(p)).collect()
    };
    let (fuzzers, ours) = (locked("tests/fuzz/Cargo.lock"), locked("Cargo.lock"));
    let of_libfuzzer = |package: &&String| package.contains("\"arbitrary\"");
    let others: Vec<_> = fuzzers.difference(&ours).filter(|p| !of_libfuzzer(p)).collect();
    assert!(others.is_empty(), "tests/fuzz/Cargo.lock has others: {others:?}");
    // And with all that the library needs: it is built with --locked.
    let text = fs::read_to_string(root().join("tests/fuzz/Cargo.lock")).unwrap();
    let ours = text.split("[[package]]\n").find(|block| block.starts_with("name = \"pgkeep\"\n"));
    let ours = ours.expect("the library is in it");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, needed) = manifest.split_once("\n[dependencies]\n").unwrap();
    let needed = needed.split("\n[").next().unwrap().lines();
    let needed = needed.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
    let is_missing = |name: &&str| {
        let begins = [format!("\n \"{name}\""), format!("\n \"{name} ")];
        !begins.iter().any(|begin| ours.contains(begin.as_str()))
    };
    let missing: Vec<_> = needed.filter(|name| !name.starts_with('#')).filter(is_missing).collect();
    assert!(
        missing.is_empty(),
        "tests/fuzz/Cargo.lock lacks {missing:?}: cargo metadata adds them"
    );
}

#[test]
fn what_was_kept_passes() {
    for (target, run) in TARGETS {
        for (path, bytes) in kept(target) {
            let passed = catch_unwind(|| run(&bytes));
            assert!(passed.is_ok(), "the target {target} fails with {}", path.display());
        }
    }
}

#[test]
fn what_was_kept_passes_when_it_is_changed() {
    let random = Random::of_this_run();
    let each = MUTATED_FOR / TARGETS.len() as u32;
    for (target, run) in TARGETS {
        let (mut random, begin) = (random.clone(), Instant::now());
        let kept: Vec<Vec<u8>> = kept(target).into_iter().map(|(_, bytes)| bytes).collect();
        let mut runs = 0;
        // On a machine that has much else to do it takes longer.
        while begin.elapsed() < each || runs <= 20 {
            let input = mutated(&mut random, &kept);
            if catch_unwind(|| run(&input)).is_err() {
                let path = std::env::temp_dir().join(format!("pgkeep-fuzzed-{target}"));
                fs::write(&path, &input).unwrap();
                panic!(
                    "the target {target} fails with {}: copy it to {} when it is mended",
                    path.display(),
                    folder(target).display()
                );
            }
            runs += 1;
        }
        eprintln!("{target}: {runs} inputs");
    }
}

/// The fuzzer's inputs are too short for what this takes.
#[test]
fn an_object_that_unpacks_to_too_much_is_refused() {
    let runtime = Runtime::new().unwrap();
    let memory = Memory::default();
    runtime.block_on(async {
        Repository::init(&memory, &KeyMaterial::None).await.unwrap();
        let storage = Arc::new(memory.clone());
        let repository = Repository::open("main", storage, &KeyMaterial::None, 1).await.unwrap();
        let name = ObjectName::new("clusters/main/backups/x/manifest").unwrap();
        let zeros = vec![0; 16 << 20];
        let mut writer = SealedWriter::create(&repository, &name).await.unwrap();
        for _ in 0..20 {
            writer.seal(&zeros).await.unwrap();
        }
        let size = writer.finish(&[]).await.unwrap();
        assert!(size < 1 << 20, "320 MiB take {size} bytes");
        let error = read_whole(&repository, &name).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("unpacks to 335544320 bytes"), "{error}");
        // A closing frame that would have to be read first.
        let mut bytes = memory.objects()[name.as_str()].to_vec();
        let at = bytes.len() - 12;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        memory.objects().insert(name.to_string(), bytes.into());
        let error = ObjectReader::open(&repository, &name).await.err().unwrap();
        assert!(error.to_string().contains("its closing frame has 4294967295 bytes"), "{error}");
    });
}

/// Neither are they long enough for this.
#[test]
fn a_result_without_an_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let ready = b"Z\0\0\0\x05I";
        let welcome = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0017.10\0";
        socket.write_all(&[&welcome[..], ready].concat()).unwrap();
        let row = [&b"D\0\0\x10\x0a\0\x01\0\0\x10\0"[..], &[b'x'; 4096]].concat();
        let rows = row.repeat(64);
        // Until the client hangs up.
        while socket.write_all(&rows).is_ok() {}
    });
    let text = format!("host={} user=me", folder.path().display());
    let info = ConnInfo::parse_in(&text, &Environment::new(&[], None, Some("me"))).unwrap();
    let error = Runtime::new().unwrap().block_on(async {
        let mut client = Client::connect(&info, Mode::Replication).await.unwrap();
        client.query("IDENTIFY_SYSTEM").await.unwrap_err()
    });
    assert!(error.to_string().contains("a result is longer than 256 MiB"), "{error}");
    server.join().unwrap();
}

/// One of the inputs with a few changes.
fn mutated(random: &mut Random, kept: &[Vec<u8>]) -> Vec<u8> {
    let mut input = kept[random.below(kept.len() as u64) as usize].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let len = (random.below(9) as usize).min(input.len() - at);
        match random.below(8) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..at + len)),
            2 => {
                let again = input[at..at + len].to_vec();
                input.splice(at..at, again);
            }
            3 => {
                let other = &kept[random.below(kept.len() as u64) as usize];
                let from = random.below(other.len() as u64 + 1) as usize;
                let len = (random.below(64) as usize).min(other.len() - from);
                input.splice(at..at, other[from..from + len].iter().copied());
            }
            4 => input.insert(at, random.below(256) as u8),
            5 => input[at..at + len].fill([0, 0xFF, 0x7F, 0x80][random.below(4) as usize]),
            6 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
        }
    }
    input
}
