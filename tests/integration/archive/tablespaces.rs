//! Which tablespaces replay may make: none in the midst of another server's files, as far as replay comes by it.

use std::{fs, path::Path, sync::Arc};

use pgkeep::{
    archive::{self, GetOptions, Got},
    config::ClusterSettings,
    error::{Kind, Result},
    postgres::{Lsn, Timeline, WalFile},
    repo::{Repository, catalog::register_system, keys::KeyMaterial, layout::ClusterLayout},
};

use crate::support::{
    Scratch,
    memory::Memory,
    wal::{SYSTEM, Writer, data_directory, main_data, segment_size},
};

#[tokio::test]
async fn what_replay_does_not_come_by_or_has_itself_is_no_reason() {
    let scratch = Scratch::new("tablespaces");
    let there = scratch.folder("there");
    let inside = there.join("PG_15_202209061");
    fs::create_dir_all(&inside).expect("make folders");

    let memory = Memory::default();
    Repository::init(&memory, &KeyMaterial::None).await.expect("make it");
    let storage = Arc::new(memory.clone());
    let opened = Repository::open("main", storage, &KeyMaterial::None, 1).await;
    let layout = ClusterLayout::new("main").expect("a name");
    register_system(&opened.expect("open it"), &layout, SYSTEM).await.expect("register");
    let repository = memory.configured("main");
    let cluster = ClusterSettings { pgdata: None, ..ClusterSettings::named("main") };

    // A tablespace is made, and then comes something else.
    let mut wal = Writer::new(1);
    let made = wal.position();
    let path = there.display().to_string();
    let content = [&16_401u32.to_le_bytes()[..], path.as_bytes(), &[0]].concat();
    wal.record(5, 0, 700, &main_data(&content));
    let behind = wal.position();
    wal.commit(700, "2026-11-20T20:12:27Z".parse().expect("a time"));
    wal.switch();
    let number = segment_size().number_at(made);
    let name = segment_size().name(Timeline(1), number);
    let original = data_directory(&scratch.path().join("original")).join("pg_wal");
    let state = Path::new("/dev/null/state");
    for (at, bytes) in wal.segments().into_iter().enumerate() {
        let name = segment_size().name(Timeline(1), 1 + at as u64);
        let file = original.join(name.to_string());
        fs::write(&file, bytes).expect("write");
        archive::push(&[&repository], &cluster, state, &file).await.expect("push");
    }

    let copy = data_directory(&scratch.path().join("copy"));
    fs::create_dir(copy.join("pg_tblspc")).expect("make a folder");
    let asked = async |options: &GetOptions| -> Result<Got> {
        let file = copy.join("pg_wal/RECOVERYXLOG");
        archive::get(&[&repository], &cluster, WalFile::Segment(name), &file, options).await
    };
    let get = async || asked(&GetOptions::default()).await;
    let is_refused = async || get().await.is_err_and(|e| e.kind() == Kind::Conflict);
    get().await.expect("nobody's files are in it");
    fs::write(inside.join("16402"), "a table").expect("write");
    assert!(is_refused().await, "they are another's");

    let label = |start: Lsn| {
        let file = segment_size().name(Timeline(1), number);
        let text = format!(
            "START WAL LOCATION: {start} (file {file})\nCHECKPOINT LOCATION: {start}\nBACKUP METHOD: streamed\n\
             BACKUP FROM: standby\nSTART TIME: 2026-11-20 20:12:27 UTC\nLABEL: x\nSTART TIMELINE: 1\n"
        );
        fs::write(copy.join("backup_label"), text).expect("write");
    };
    label(made);
    assert!(is_refused().await, "replay begins with it");
    label(behind);
    assert!(get().await.is_ok(), "replay begins behind it");
    let each = GetOptions { refuse_tablespaces: true, ..GetOptions::default() };
    assert!(asked(&each).await.is_ok(), "for a drill as well");

    label(made);
    fs::write(copy.join("tablespace_map"), format!("16401 {path}\n")).expect("write");
    assert!(get().await.is_ok(), "it is the copy's own, and will be linked");
    assert!(asked(&each).await.is_err_and(|e| e.kind() == Kind::Conflict));
}
