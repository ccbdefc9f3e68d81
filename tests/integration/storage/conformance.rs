//! The contract of [`Storage`], one function a promise. Each gets a storage of its own.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
};

use bytes::Bytes;
use pgkeep::storage::{ErrorKind, LARGEST_WHOLE, ObjectName, Range, Result, Storage};

use super::{content, name};

type Any = Arc<dyn Storage>;

async fn put(storage: &Any, object: &str, bytes: impl Into<Bytes>) {
    storage.put(&name(object), bytes.into()).await.expect("put an object");
}

async fn read(storage: &Any, object: &str) -> Bytes {
    storage.read(&name(object), Range::All).await.expect("read an object")
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("this should fail"),
        Err(e) => e.kind,
    }
}

async fn listing(storage: &Any, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let listed = storage.list(prefix, after, limit).await.expect("list");
    listed.into_iter().map(|object| object.name.to_string()).collect()
}

pub async fn what_is_put_can_be_read_and_sized(storage: &Any) {
    for (object, len) in [("empty", 0), ("one", 1), ("a/b/c/deep", 70_000), ("big", 5_000_000)] {
        let bytes = content(len as u64, len);
        put(storage, object, bytes.clone()).await;
        assert_eq!(read(storage, object).await, bytes, "{object}");
        assert_eq!(storage.size(&name(object)).await.expect("a size"), len as u64);
    }
    // In pieces it is the same object.
    let mut writer = storage.create(&name("pieces")).await.expect("create");
    for piece in 0..100 {
        writer.write(content(piece, 1000 + piece as usize)).await.expect("write");
    }
    writer.write(Bytes::new()).await.expect("write nothing");
    writer.finish().await.expect("finish");
    let whole: Vec<u8> = (0..100).flat_map(|p| content(p, 1000 + p as usize)).collect();
    assert_eq!(read(storage, "pieces").await, whole);
}

pub async fn a_taken_name_is_refused_and_keeps_its_content(storage: &Any) {
    put(storage, "a/taken", "first").await;
    for again in ["second", "first", ""] {
        let refused = storage.put(&name("a/taken"), again.into()).await;
        assert_eq!(kind(refused), ErrorKind::AlreadyExists);
        assert_eq!(read(storage, "a/taken").await, "first");
    }
    // A writer that began before the name was taken is refused too.
    let mut early = storage.create(&name("late")).await.expect("create");
    early.write("early".into()).await.expect("write");
    put(storage, "late", "won").await;
    assert_eq!(kind(early.finish().await), ErrorKind::AlreadyExists);
    assert_eq!(read(storage, "late").await, "won");
}

pub async fn of_racing_creators_exactly_one_wins(storage: &Any) {
    const CREATORS: usize = 8;
    for round in 0..25 {
        let object = name(&format!("race/{round}"));
        let start = Arc::new(Barrier::new(CREATORS));
        let racers: Vec<_> = (0..CREATORS)
            .map(|creator| {
                let (storage, object, start) = (storage.clone(), object.clone(), start.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build();
                    start.wait();
                    runtime.expect("a runtime").block_on(async {
                        storage.put(&object, content(creator as u64, 10_000)).await
                    })
                })
            })
            .collect();
        let results: Vec<_> = racers.into_iter().map(|r| r.join().expect("a racer")).collect();
        let winners: Vec<usize> =
            (0..CREATORS).filter(|creator| results[*creator].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert_eq!(read(storage, object.as_str()).await, content(winners[0] as u64, 10_000));
        for result in results.into_iter().filter(Result::is_err) {
            assert_eq!(kind(result), ErrorKind::AlreadyExists);
        }
    }
}

pub async fn only_what_has_a_bounded_size_is_read_whole(storage: &Any) {
    let piece = Bytes::from(vec![7; 1 << 20]);
    let object = name("large");
    let mut writer = storage.create(&object).await.expect("create");
    for _ in 0..LARGEST_WHOLE >> 20 {
        writer.write(piece.clone()).await.expect("write");
    }
    writer.write(Bytes::from_static(b"8")).await.expect("write");
    writer.finish().await.expect("finish");
    assert_eq!(kind(storage.read(&object, Range::All).await), ErrorKind::Refused);
    let last = storage.read(&object, Range::Last(2)).await.expect("read its end");
    assert_eq!(last, &b"\x078"[..]);
}

pub async fn nothing_is_visible_before_finish(storage: &Any) {
    let object = name("folder/unfinished");
    let mut writer = storage.create(&object).await.expect("create");
    for piece in 0..10 {
        writer.write(content(piece, 300_000)).await.expect("write");
        assert_eq!(kind(storage.read(&object, Range::All).await), ErrorKind::NotFound);
        assert_eq!(kind(storage.size(&object).await), ErrorKind::NotFound);
        assert!(listing(storage, "", None, 10).await.is_empty());
    }
    writer.finish().await.expect("finish");
    assert_eq!(storage.size(&object).await.expect("a size"), 3_000_000);
    assert_eq!(listing(storage, "", None, 10).await, ["folder/unfinished"]);
}

pub async fn a_dropped_writer_leaves_nothing(storage: &Any) {
    let mut writer = storage.create(&name("folder/dropped")).await.expect("create");
    writer.write(content(1, 300_000)).await.expect("write");
    drop(writer);
    drop(storage.create(&name("folder/empty")).await.expect("create"));
    assert!(listing(storage, "", None, 10).await.is_empty());
    put(storage, "folder/dropped", "the name is free").await;
    assert_eq!(read(storage, "folder/dropped").await, "the name is free");
}

pub async fn ranges_are_exact(storage: &Any) {
    let bytes = content(7, 100_000);
    put(storage, "object", bytes.clone()).await;
    for (offset, len) in
        [(0, 0), (0, 1), (0, 100_000), (1, 99_999), (65_535, 2), (99_999, 1), (100_000, 0)]
    {
        let range = Range::At { offset, len };
        let got = storage.read(&name("object"), range).await.expect("read");
        assert_eq!(got, bytes[offset as usize..(offset + len) as usize], "{range:?}");
    }
    for (last, from) in
        [(0, 100_000), (1, 99_999), (40, 99_960), (100_000, 0), (100_001, 0), (u64::MAX, 0)]
    {
        let got = storage.read(&name("object"), Range::Last(last)).await.expect("read");
        assert_eq!(got, bytes[from..], "the last {last}");
    }
    put(storage, "empty", "").await;
    for range in [Range::All, Range::Last(10), Range::At { offset: 0, len: 0 }] {
        assert!(storage.read(&name("empty"), range).await.expect("read").is_empty());
    }
}

pub async fn a_range_past_the_end_is_an_error(storage: &Any) {
    put(storage, "object", content(7, 1000)).await;
    put(storage, "empty", "").await;
    let past = [(0, 1001), (1000, 1), (1001, 0), (999, 2), (u64::MAX, 1), (1, u64::MAX)];
    for (offset, len) in past {
        let got = storage.read(&name("object"), Range::At { offset, len }).await;
        assert_eq!(kind(got), ErrorKind::OutOfRange, "{len} from {offset}");
    }
    let got = storage.read(&name("empty"), Range::At { offset: 0, len: 1 }).await;
    assert_eq!(kind(got), ErrorKind::OutOfRange);
}

pub async fn what_is_not_there_is_not_found(storage: &Any) {
    put(storage, "folder/object", "x").await;
    for absent in ["other", "folder/other", "other/object", "folder/object/below", "folder"] {
        // What is a folder to one back end is nothing to another: it isn't an object.
        let absent = name(absent);
        if absent.as_str() != "folder" {
            let ranges = [Range::All, Range::Last(1), Range::At { offset: 0, len: 1 }];
            for range in ranges {
                assert_eq!(kind(storage.read(&absent, range).await), ErrorKind::NotFound);
            }
            assert_eq!(kind(storage.size(&absent).await), ErrorKind::NotFound, "{absent}");
            assert_eq!(kind(storage.ensure_durable(&absent).await), ErrorKind::NotFound);
        } else {
            assert!(storage.read(&absent, Range::All).await.is_err());
        }
    }
    let error = storage.read(&name("folder/other"), Range::All).await.expect_err("absent");
    assert!(error.is_not_found() && error.is_permanent());
    let text = error.to_string();
    assert!(text.contains("folder/other") && text.contains(storage.address()), "{text}");
}

/// Names whose order by bytes isn't their order by folders: `-` and `.` come before `/`.
const NAMES: [&str; 12] = [
    "a-b", "a.b", "a/b", "a/b-c", "a/b.c/d", "a/b2/c", "a/bc", "a/bc2", "a0", "ab/c/d/e", "ab/c2",
    "b",
];

async fn filled(storage: &Any) {
    for (number, object) in NAMES.iter().enumerate().rev() {
        put(storage, object, content(1, number)).await;
    }
}

/// What a listing has to be.
fn expected(prefix: &str, after: Option<&str>, limit: usize) -> Vec<&'static str> {
    NAMES
        .into_iter()
        .filter(|object| object.starts_with(prefix) && after.is_none_or(|after| *object > after))
        .take(limit)
        .collect()
}

pub async fn listings_are_in_byte_order_and_by_prefix(storage: &Any) {
    assert!(NAMES.is_sorted());
    filled(storage).await;
    for prefix in [
        "", "a", "a/", "a/b", "a/b/", "a/bc", "a/bc2", "a/bc22", "ab", "ab/", "b", "b/", "c",
        "a/b.",
    ] {
        assert_eq!(
            listing(storage, prefix, None, 100).await,
            expected(prefix, None, 100),
            "{prefix}"
        );
    }
    for listed in storage.list("", None, 100).await.expect("list") {
        let number = NAMES.iter().position(|object| *object == listed.name.as_str());
        assert_eq!(number, Some(listed.size as usize), "{}", listed.name);
    }
}

pub async fn listings_go_on_after_a_name(storage: &Any) {
    filled(storage).await;
    let between =
        ["", "a", "a-", "a/", "a/a", "a/b/", "a/b/zz", "a/b.c", "a/b.c/e", "a1", "ab/c/", "zz"];
    for after in NAMES.into_iter().chain(between) {
        for prefix in ["", "a", "a/", "a/b", "a/bc", "ab/c/", "b"] {
            for limit in [1, 2, 100] {
                let got = listing(storage, prefix, Some(after), limit).await;
                let expected = expected(prefix, Some(after), limit);
                assert_eq!(got, expected, "prefix {prefix:?} after {after:?} limit {limit}");
            }
        }
    }
}

pub async fn a_listing_in_pages_is_the_same_listing(storage: &Any) {
    let mut all = BTreeSet::new();
    for number in 0..150_u64 {
        let object = format!("f{}/{}/x{}", number % 3, number % 7, number * 37 % 151);
        put(storage, &object, content(number, 3)).await;
        all.insert(object);
    }
    let all: Vec<String> = all.into_iter().collect();
    for limit in [1, 2, 7, 149, 150, 151] {
        let mut paged: Vec<String> = Vec::new();
        loop {
            let page = listing(storage, "", paged.last().map(String::as_str), limit).await;
            let ended = page.len() < limit;
            paged.extend(page);
            if ended {
                break;
            }
        }
        assert_eq!(paged, all, "in pages of {limit}");
    }
    assert!(listing(storage, "", None, 0).await.is_empty());
}

pub async fn folders_are_told(storage: &Any) {
    filled(storage).await;
    let folders = async |folder: &str| storage.folders(folder).await.expect("folders");
    assert_eq!(folders("").await, ["a", "ab"]);
    assert_eq!(folders("a").await, ["b.c", "b2"]);
    assert_eq!(folders("ab").await, ["c"]);
    assert!(folders("ab/c/d").await.is_empty());
    assert!(folders("nothing/here").await.is_empty());
}

pub async fn deleting_can_be_repeated(storage: &Any) {
    filled(storage).await;
    for again in 0..2 {
        storage.delete(&name("a/b.c/d")).await.unwrap_or_else(|e| panic!("time {again}: {e}"));
    }
    for never in ["never/was", "a/b/below/an/object"] {
        storage.delete(&name(never)).await.expect("delete what never was");
    }
    let mut rest = NAMES.to_vec();
    rest.retain(|object| *object != "a/b.c/d");
    assert_eq!(listing(storage, "", None, 100).await, rest);
    // A folder is there for its objects only.
    assert_eq!(storage.folders("a").await.expect("folders"), ["b2"]);
    for object in rest {
        storage.delete(&name(object)).await.expect("delete");
    }
    assert!(listing(storage, "", None, 100).await.is_empty());
    assert!(storage.folders("").await.expect("folders").is_empty());
}

pub async fn many_are_deleted_together(storage: &Any) {
    filled(storage).await;
    // More than are asked for at once, some that never were, and one twice.
    let mut names: Vec<ObjectName> = (0..40).map(|n| name(&format!("many/{n:02}"))).collect();
    for object in &names {
        put(storage, object.as_str(), "x").await;
    }
    names.extend(["never/was", "a/b.c/d", "many/00", "a/b/below/an/object"].map(name));
    let results = storage.delete_all(&names).await;
    assert_eq!(results.len(), names.len());
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let mut rest = NAMES.to_vec();
    rest.retain(|object| *object != "a/b.c/d");
    assert_eq!(listing(storage, "", None, 100).await, rest);
    assert_eq!(storage.folders("").await.expect("folders"), ["a", "ab"]);
    assert_eq!(storage.folders("a").await.expect("folders"), ["b2"]);
    assert!(storage.delete_all(&[]).await.is_empty());
}

pub async fn a_deleted_name_can_be_used_again(storage: &Any) {
    put(storage, "a/b", "one").await;
    storage.delete(&name("a/b")).await.expect("delete");
    assert_eq!(kind(storage.read(&name("a/b"), Range::All).await), ErrorKind::NotFound);
    put(storage, "a/b", "two").await;
    assert_eq!(read(storage, "a/b").await, "two");
    // Also when a folder goes while an object is made in it.
    let object: ObjectName = name("a/c");
    let mut writer = storage.create(&object).await.expect("create");
    writer.write("three".into()).await.expect("write");
    storage.delete(&name("a/b")).await.expect("delete");
    writer.finish().await.expect("finish");
    assert_eq!(read(storage, "a/c").await, "three");
}

pub async fn replacing_is_all_or_nothing(storage: &Any) {
    let object = name("leases/one");
    storage.replace(&object, content(0, 2000)).await.expect("replace what isn't there");
    let writer = {
        let (storage, object) = (storage.clone(), object.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            for round in 1..200 {
                let bytes = content(round, 2000 + round as usize);
                runtime.block_on(storage.replace(&object, bytes)).expect("replace");
            }
        })
    };
    while !writer.is_finished() {
        let bytes = storage.read(&object, Range::All).await.expect("read");
        assert_eq!(bytes, content((bytes.len() - 2000) as u64, bytes.len()));
    }
    writer.join().expect("the writer");
    assert_eq!(read(storage, "leases/one").await, content(199, 2199));
    assert_eq!(listing(storage, "", None, 10).await, ["leases/one"]);
}

pub async fn durability_of_what_is_there_can_be_asked_for(storage: &Any) {
    put(storage, "a/b", "content").await;
    for _ in 0..2 {
        storage.ensure_durable(&name("a/b")).await.expect("sync");
    }
    assert_eq!(read(storage, "a/b").await, "content");
    assert_eq!(kind(storage.ensure_durable(&name("a/c")).await), ErrorKind::NotFound);
}
