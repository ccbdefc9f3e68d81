//! What a target is begun with: one valid input of each form that it tells apart.

mod outside;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use pgkeep::{
    repo::{
        BackupId, Repository,
        keys::KeyMaterial,
        layout::ClusterLayout,
        manifest::Manifest,
        pack::PackReader,
        sealed::read_whole,
        tree::{
            BackupTable, Extent, FileKind, FileLeaf, FileMap, MapLeaf, decode_file_leaf,
            decode_map_leaf, leaf_len,
        },
        tree_reader::ReadFrames,
    },
    storage::ObjectName,
};
use tokio::runtime::Runtime;

use super::root;
use crate::{
    fixture::wal,
    support::memory::{Memory, Objects},
};

/// A leaf's bytes, those of the one that it is over, and how many blocks it has.
type Leaf = (Vec<u8>, Vec<u8>, usize);

type Seed = (&'static str, String, Vec<u8>);

const INCREMENTAL: &str = "20250120T205812Z-incr";

/// All of them: target, name, content.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, name: &str, parts: &[&[u8]]| {
        seeds.push((target, name.to_owned(), parts.concat()));
    };
    of_the_fixture(&mut add);
    of_the_wal(&mut add);
    of_the_server(&mut add);
    of_texts(&mut add);
    outside::all(&mut add);
    seeds
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, &[&[u8]]);

fn piece(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn objects(below: &Path, folder: &Path, found: &mut Objects) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => objects(below, &path, found),
            false => {
                let name = path.strip_prefix(below).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap().into());
            }
        }
    }
}

fn of_the_fixture(add: Add<'_>) {
    let fixture = root().join("fixtures/repository-v1-plain");
    let mut all = BTreeMap::new();
    objects(&fixture, &fixture, &mut all);
    let runtime = Runtime::new().unwrap();
    let storage = Arc::new(Memory::of(all.clone()));
    let opened = Repository::open("plain", storage, &KeyMaterial::None, 1);
    let repository = runtime.block_on(opened).unwrap();
    let layout = ClusterLayout::new("main").unwrap();
    let id: BackupId = INCREMENTAL.parse().unwrap();
    let manifest = layout.of_backup(&id, "manifest");
    let raw = |name: &ObjectName| runtime.block_on(read_whole(&repository, name)).unwrap();

    add("sealed", "plain-manifest", &[&[1], &all[manifest.as_str()]]);
    let encrypted = root().join("fixtures/repository-v1").join(manifest.as_str());
    add("sealed", "encrypted-manifest", &[&[0], &fs::read(encrypted).unwrap()]);
    let part = all.keys().find(|name| name.contains(".part.")).unwrap();
    add("sealed", "plain-part", &[&[1], &all[part]]);

    let frames: Vec<_> = raw(&manifest).frames.iter().map(|frame| piece(frame)).collect();
    add("manifest", "incremental", &[&frames.concat()]);

    let numbered = [
        (0, "backup-json", layout.of_backup(&id, "backup.json").to_string()),
        (1, "pin", "/pins/".to_owned()),
        (3, "wal-floor", "/wal-floor/".to_owned()),
        (4, "drill", "/drills/".to_owned()),
    ];
    for (number, name, part) in numbered {
        let object = all.keys().find(|object| object.contains(&part)).unwrap();
        let content = raw(&ObjectName::new(object.as_str()).unwrap()).into_bytes();
        add("objects", name, &[&[number], &content]);
    }
    let lease = all.keys().find(|name| name.contains("/leases/")).unwrap();
    let lease_name = ObjectName::new(lease.as_str()).unwrap();
    let content = match runtime.block_on(read_whole(&repository, &lease_name)) {
        Ok(object) => object.into_bytes(),
        Err(_) => all[lease].to_vec(),
    };
    add("objects", "lease", &[&[2], &content]);
    let ending = |end: &str| {
        let name = all.keys().find(|name| name.ends_with(end)).unwrap();
        raw(&ObjectName::new(name.as_str()).unwrap())
    };
    add("objects", "summary", &[&[5], &ending("000000010000000000000003").summary]);
    add("objects", "history", &[&[6], &ending(".history").into_bytes()]);
    add("objects", "repo-json", &[&[7], &all["repo.json"]]);
    let keys = root().join("fixtures/repository-v1/keys");
    let keys = fs::read_dir(keys).unwrap().next().unwrap().unwrap().path();
    add("objects", "keys", &[&[8], &fs::read(keys).unwrap()]);

    let packs = PackReader::new(&repository, &layout);
    let Manifest { leaves, mut table, .. } =
        runtime.block_on(Manifest::read(&repository, &layout, &id)).unwrap();
    let slice = |table: &BackupTable, extent: Extent| {
        let frame = runtime.block_on(ReadFrames::frame(&packs, table, extent.place)).unwrap();
        let from = extent.place.offset as usize;
        frame[from..from + extent.len as usize].to_vec()
    };
    // The shortest of each form, with what it is over.
    let mut shortest: BTreeMap<(u8, &str), Leaf> = BTreeMap::new();
    let mut keep = |form: u8, leaf: &[u8], over: Option<Vec<u8>>, count: usize| {
        let kind = if over.is_some() { "patch" } else { "whole" };
        let kept = shortest.get(&(form, kind));
        if kept.is_none_or(|kept| leaf.len() < kept.0.len()) {
            shortest.insert((form, kind), (leaf.to_vec(), over.unwrap_or_default(), count));
        }
    };
    for extent in leaves {
        let leaf = slice(&table, extent);
        let (entries, over) = match decode_file_leaf(&leaf, &mut table).unwrap() {
            FileLeaf::Whole(entries) => (entries, None),
            FileLeaf::Patch(patch) => {
                let base = slice(&table, patch.base);
                (patch.apply(Vec::new()), Some(base))
            }
        };
        keep(0, &leaf, over, 0);
        for entry in entries {
            let FileKind::File { size, map: FileMap::Leaves(map), .. } = entry.kind else {
                continue;
            };
            for (number, extent) in map.extents.into_iter().enumerate() {
                let leaf = slice(&table, extent);
                let over = match decode_map_leaf(&leaf, &mut table).unwrap() {
                    MapLeaf::Whole(_) => None,
                    MapLeaf::Patch(patch) => Some(slice(&table, patch.base)),
                };
                keep(1, &leaf, over, leaf_len(size, number));
            }
        }
    }
    for ((form, kind), (leaf, over, count)) in &shortest {
        let what = ["file", "map"][usize::from(*form)];
        add("leaves", &format!("{what}-{kind}"), &[&[*form], leaf]);
        if *kind == "patch" {
            let count = (*count as u16).to_le_bytes();
            add("leaves", &format!("{what}-over"), &[&[form + 2], &count, &piece(leaf), over]);
        }
    }
}

fn of_the_wal(add: Add<'_>) {
    let record = |manager: u8, info: u8, xid: u8, content: &[u8]| {
        [&[manager, info, xid][..], &piece(content)].concat()
    };
    let main = |data: &[u8]| [&[255, data.len() as u8], data].concat();
    let time = 790_000_000_000_000i64.to_le_bytes();
    let mut name = [0; 72];
    name[..8].copy_from_slice(&time);
    name[8..12].copy_from_slice(b"name");
    let records = [
        record(1, 0, 9, &main(&time)),
        record(1, 0x20, 9, &main(&time)),
        record(1, 0x80, 9, &main(&[&time[..], &[1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]].concat())),
        record(0, 0x70, 0, &main(&name)),
        record(0, 0x50, 0, &main(&[0x28, 0, 0x30, 0, 0, 0, 0, 0])),
        record(0, 0x90, 0, &main(&[&time[..], &[2, 0, 0, 0, 1, 0, 0, 0]].concat())),
        record(5, 0, 9, &main(b"\x10\x40\0\0/somewhere\0")),
        record(10, 0, 9, &[7; 9000]),
        record(1, 0, 10, &main(&time)),
        record(0, 0x40, 0, &[]),
    ];
    add("wal", "records", &[&[0x41, 1, 3, 2], &records.concat()]);
    add("wal", "whole", &[&[7, 1, 3, 2], &records[7]]);
    add(
        "wal",
        "changed",
        &[&[1, 1, 3, 5], &records[0], &records[7], &[0, 0, 0, 0xFF, 0xFF, 24, 0, 1]],
    );
    add("wal", "last-segment", &[&[1, 1, 0xFE, 2], &records.concat()]);
    let story = wal::Story::tell();
    let end = story.streamed.1.len();
    add("wal", "segment", &[&[0, 2, 6, 0], &story.streamed.1[..end]]);

    let file = |number: u32, blocks: &[u32]| {
        let mut bytes = Vec::new();
        for n in [0xd3ae_1f0d, blocks.len() as u32, number].iter().chain(blocks) {
            bytes.extend(n.to_le_bytes());
        }
        bytes
    };
    let one = file(40, &[7]);
    let mut whole = one.clone();
    whole.resize(8192, 0);
    whole.resize(2 * 8192, 7);
    add("incremental", "one-block", &[&[0, 0, 1, 30, 0], &whole]);
    add("incremental", "no-block", &[&[2, 0, 1, 30, 0], &file(20, &[])]);
    let many: Vec<u32> = (0..200).map(|n| n + n / 9).collect();
    add("incremental", "many", &[&[1, 0, 1, 30, 0], &file(230, &many)]);

    let story = wal::backup_label();
    add("label", "label", &[story.as_bytes()]);
    let more = "INCREMENTAL FROM LSN: 0/3000028\nINCREMENTAL FROM TLI: 1\n";
    add("label", "incremental", &[story.as_bytes(), more.as_bytes()]);
    add("label", "map", &[b"16400 /old/space\n16402 pg_tblspc/16402\n16403 /a\\\\b\\\nc\n"]);
    let control = &wal::control_file()[..512];
    add("control", "15", &[control]);
    for (name, version) in [("17", 1700u32), ("18", 1800), ("19", 1902)] {
        let mut control = control.to_vec();
        control[8..12].copy_from_slice(&version.to_le_bytes());
        if version == 1902 {
            for (at, word) in [(224, 8192u32), (228, 131_072), (236, 8192), (240, 1 << 20)] {
                control[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        add("control", name, &[&control]);
    }
    add(
        "history",
        "two",
        &[&[3, 0, 3, 0], b"1\t0/3000028\tno reason\n# a comment\n\n2\t0/4000000\tx\r\n"],
    );
}

fn of_the_server(add: Add<'_>) {
    let header = |name: &str, kind: u8, size: usize, link: &str| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block.to_vec()
    };
    let mut data = vec![b'x'; 700];
    data.resize(1024, 0);
    let archive = [
        header("./base/", b'5', 0, ""),
        header("base/1", b'0', 700, ""),
        data,
        header("pg_tblspc/16400", b'2', 0, "/old/space"),
        header("pg_wal", b'2', 0, "../wal"),
        vec![0; 1024],
    ];
    add("tar", "repaired", &[&[0x0F], &archive.concat()]);
    let two = [archive[0].clone(), archive[1].clone()].concat();
    add("tar", "cut", &[&[0x81], &two]);

    let message = |kind: u8, body: &[u8]| [&[kind][..], &piece(body)].concat();
    let row = |values: &[&str]| {
        let mut body = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            body.extend((value.len() as i32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        message(b'D', &body)
    };
    let columns_of = |names: &[&str]| {
        let rest = [0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0];
        let column = |name: &&str| [name.as_bytes(), &[0], &rest].concat();
        let columns: Vec<_> = names.iter().map(column).collect();
        message(b'T', &[&(names.len() as u16).to_be_bytes()[..], &columns.concat()].concat())
    };
    let columns = columns_of(&["name"]);
    let (done, ready) = (message(b'C', b"SELECT\0"), message(b'Z', b"I"));
    let error = message(b'E', b"SERROR\0VERROR\0C58P01\0Mgone\0DIt is.\0HLook.\0\0");
    let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mso\0\0");
    let copy = |kind: u8, data: &[&[u8]]| {
        let parts: Vec<_> = data.iter().map(|data| message(b'd', data)).collect();
        [message(kind, &[0, 0, 0]), parts.concat(), message(b'c', &[])].concat()
    };
    let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let first = message(b'R', b"\0\0\0\x0br=abcdefgh,s=c2FsdHNhbHQ=,i=4096");
    add("server", "scram", &[&[0, 1], &sasl, &first, &message(b'R', b"\0\0\0\x0cv=AAAA")]);
    add("server", "md5", &[&[0, 1], &message(b'R', b"\0\0\0\x05salt"), &message(b'R', &[0; 4])]);
    add("server", "fork-failed", &[&[0, 0], b"Ecould not fork new process\0"]);
    add(
        "server",
        "query",
        &[&[1, 1], &done, &ready, &columns, &row(&["one"]), &notice, &done, &ready],
    );
    let identity = row(&["7450000000000000001", "1", "0/3000028", ""]);
    let size = row(&["16MB"]);
    let described = columns_of(&["systemid", "timeline", "xlogpos", "dbname"]);
    let answers = [described, identity, done.clone(), ready.clone(), columns.clone(), size];
    add("server", "identify", &[&[2, 1], &answers.concat(), &done, &ready]);
    let history = row(&["00000002.history", "1\t0/3000028\tx\n"]);
    add("server", "history", &[&[3, 1], &columns, &history, &done, &ready]);
    let begin = [columns.clone(), row(&["0/3000028", "1"]), done.clone()].concat();
    let spaces = [columns.clone(), row(&["16400", "/old", "9"]), done.clone()].concat();
    let parts: [&[u8]; 3] = [b"nbase.tar\0\0", b"d123", b"p\0\0\0\0\0\0\x01\0"];
    let stop = [columns.clone(), row(&["0/3000128", "1"]), done.clone(), ready.clone()].concat();
    let backup = [begin, spaces, notice, copy(b'H', &parts), stop].concat();
    add("server", "base-backup", &[&[4, 1], &backup]);
    let wal = [&b"w"[..], &[0; 8], &5u64.to_be_bytes(), &[0; 8], b"bytes"].concat();
    let alive = [&b"k"[..], &[0; 16], &[1]].concat();
    let next = [columns.clone(), row(&["2", "0/4000000"]), done.clone(), ready.clone()].concat();
    add("server", "stream", &[&[5, 1], &copy(b'W', &[&wal, &alive]), &next]);
    add("server", "refused", &[&[5, 1], &error, &ready]);
    let slot = row(&["physical", "0/3000028", "1"]);
    add("server", "slot", &[&[6, 1], &columns, &slot, &done, &ready]);
    let mut asked = |chosen: u8, name: &str, said: &[(&str, &str)]| {
        let (names, values): (Vec<&str>, Vec<&str>) = said.iter().copied().unzip();
        let answer = [columns_of(&names), row(&values), done.clone(), ready.clone()].concat();
        add("server", name, &[&[chosen, 1], &answer]);
    };
    let (file, at) = ("000000010000000000000007", "2026-11-20T12:00:00.000000Z");
    let of_archiver = [
        ("archived_count", "5"),
        ("last_archived_wal", file),
        ("failed_count", "1"),
        ("last_failed_wal", file),
        ("last_archived_time", at),
        ("last_failed_time", at),
        ("stats_reset", at),
    ];
    asked(7, "archiver", &of_archiver);
    let of_position = [
        ("system_identifier", "-7"),
        ("standby", "f"),
        ("lsn", "FFFFFFFF/FFFFFFFF"),
        ("file", file),
        ("timeline", "1"),
        ("size", "16777216"),
        ("archive_mode", "on"),
        ("clock", at),
    ];
    asked(8, "position", &of_position);
    asked(9, "waiting", &[("name", "000000010000000000000007.ready"), ("age", "1.5")]);
    let of_slot = [
        ("active", "t"),
        ("restart_lsn", "0/3000028"),
        ("wal_status", "reserved"),
        ("safe_wal_size", "-1"),
        ("sender_state", "streaming"),
        ("sender_flush", "0/3000028"),
        ("sender_sync", "async"),
    ];
    asked(10, "sender", &of_slot);
}

fn of_texts(add: Add<'_>) {
    for (name, text) in [
        ("lsn", "16/B374D848"),
        ("segment", "00000001000000000000001A"),
        ("history", "0000000A.history"),
        ("backup-file", "00000001000000000000001A.00000028.backup"),
        ("partial", "00000001000000000000001A.partial.0123456789abcdef"),
        ("repair", "00000001000000000000001A.repair.0123456789abcdef-1"),
        ("part", "00000001000000000000001A.part.00000000-0000ffff.0123456789abcdef"),
        ("backup", "20261120T195812Z-full"),
        ("system", "15-7450000000000000001"),
        ("drill", "20250120T233000Z-d7d7d7d7d7d7d7d7d7d7d7d7d7d7d7d7"),
        ("range", "00000000-0000ffff"),
        ("relation", "pg_tblspc/16400/PG_17_202406281/5/16401_fsm.3"),
        ("incremental", "base/5/INCREMENTAL.1259.12"),
        ("keys", "keys/000001-67a16e4effe0683ba4d0737df67fe17c.json"),
        ("wal", "clusters/main/wal/15-7/00000001/00000001000000000000001A"),
        ("pack", "clusters/main/backups/20261120T195812Z-full/packs/000007"),
        ("pin", "clusters/main/pins/20250120T195812Z-full-5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"),
    ] {
        add("names", name, &[text.as_bytes()]);
    }
    for (name, text) in [
        ("postgres", "2026-11-20 20:12:27.425498+00"),
        ("rfc3339", "2026-11-20T21:12:27+01:00"),
        ("zulu", "2026-11-20T21:12:27.5Z"),
        ("seconds", "1900-01-01 00:00:00+15:59:59"),
    ] {
        add("time", name, &[text.as_bytes()]);
    }
    for (name, chosen, text) in [
        ("pairs", 0, "host=a,/run port=1,2 user='it\\'s' password=x sslmode=verify-full"),
        ("uri", 0, "postgresql://me:p%40ss@[::1]:5433,b/db?connect_timeout=3&options=-c%20a%3Db"),
        ("socket-uri", 0, "postgres://%2Frun/db?require_auth=!none,scram-sha-256"),
        ("more", 0, "keepalives_idle=3 target_session_attrs=any load_balance_hosts=random"),
        ("service", 1, "# one\n[other]\nhost=b\n[main]\nhost=a\nport=7\n"),
        ("environment", 2, "require"),
    ] {
        add("conninfo", name, &[&[chosen], text.as_bytes()]);
    }
    let config = r#"threads = 2
state-dir = "/var/tmp/x"
[repository.main]
url = "file:///backup"
key-file = "/etc/key"
[repository.far]
url = "s3://bucket/prefix"
passphrase-command = "true"
[cluster.main]
conninfo = "host=/run user=me"
pgdata = "/var/lib/pg"
standby-outage = "stop"
archive-timeout = "90s"
[cluster.main.stream]
slot = "other"
max-lag = "500ms"
[repository.main.retention]
full = 2
[repository.far.s3]
endpoint = "https://minio.internal:9000"
path-style = true
[drill]
queries = [{ database = "app", sql = "select 1", expect = "t" }]
timeout = "10min"
"#;
    add("config", "file", &[config.as_bytes()]);
    add("config", "variable", &[config.as_bytes(), b"\0PGKEEP_REPOSITORY__MAIN__KEY_FILE=/other"]);
    let paths =
        [&[9, 0, 0, 0][..], &piece(b"base/1/\"1259\\\x01"), &[0; 4], &piece(b"a\xff")].concat();
    add("backup_manifest", "17", &[&[1], &paths]);
    let entry = |how: u8, mode: u16, path: &str| {
        [&[how][..], &mode.to_le_bytes(), &piece(path.as_bytes())].concat()
    };
    let tree = [
        entry(1, 0o700, "base"),
        [entry(0, 0o600, "base/1"), piece(&[7; 9000])].concat(),
        [entry(0, 0o640, "postgresql.auto.conf"), piece(b"work_mem = '4MB'\n")].concat(),
        [entry(0, 0o600, "tablespace_map"), piece(b"16400 /old\n")].concat(),
        entry(1, 0o700, "pg_tblspc"),
        entry(1, 0o700, "pg_tblspc/16400"),
        entry(1, 0o700, "pg_tblspc/16400/PG_15"),
        [entry(4, 0o600, "pg_tblspc/16400/PG_15/9"), piece(b"x"), vec![9, 0, 0, 0]].concat(),
    ];
    add("restore", "whole", &[&tree[..7].concat()]);
    add("restore", "other-size", &[&tree.concat()]);
    let out = [entry(1, 0o700, "../out"), [entry(8, 0o600, "/tmp/x"), piece(b"x")].concat()];
    add("restore", "out", &[&out.concat(), &[1, 0, 0, 0]]);
    add("backup_manifest", "names-only", &[&[2], &paths]);
}
