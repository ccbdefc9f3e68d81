//! What only a bucket has: lost answers, conditions that aren't honoured, uploads left behind, and
//! a server that says no in many ways.

use std::time::{Duration, Instant};

use pgkeep::storage::{
    CreateOnly, ErrorKind, Range, Storage, StorageError,
    s3::{Checksums, S3, S3Settings},
};
use s3s::S3ErrorCode;

use super::{content, name};
use crate::support::{
    s3::{BUCKET, Call, Go, Server, Traits, Wire, wire::Fault},
    scratch,
};

/// More than a part.
const LARGE: usize = (8 << 20) + 1000;

fn storage(server: &Server) -> S3 {
    S3::new(server.settings("x"))
}

fn error<T>(result: pgkeep::storage::Result<T>) -> StorageError {
    match result {
        Ok(_) => panic!("this should fail"),
        Err(e) => e,
    }
}

/// The first request of this operation goes so, the others work.
fn first(operation: &'static str, go: Go) -> impl FnMut(&Call) -> Go + Send + 'static {
    move |call| {
        if call.operation == operation && call.before == 0 { go.clone() } else { Go::On }
    }
}

async fn put(storage: &S3, object: &str, len: usize) -> pgkeep::storage::Result<()> {
    storage.put(&name(object), content(len as u64, len)).await
}

async fn is_whole(storage: &S3, object: &str, len: usize) {
    let read = storage.read(&name(object), Range::All).await.expect("read");
    assert!(read == content(len as u64, len), "{object} has other content");
}

#[tokio::test]
async fn large_objects_go_up_in_parts_and_small_ones_at_once() {
    let server = Server::start();
    let storage = storage(&server);
    for (len, puts, parts) in
        [(0, 1, 0), (1000, 1, 0), (8 << 20, 1, 0), ((8 << 20) + 1, 0, 2), (20 << 20, 0, 3)]
    {
        server.front().heal();
        put(&storage, &format!("o{len}"), len).await.expect("put");
        let counts = server.front().counts();
        let count = |operation: &str| counts.get(operation).copied().unwrap_or_default();
        assert_eq!((count("PutObject"), count("UploadPart")), (puts, parts), "{len}: {counts:?}");
        assert_eq!(count("CompleteMultipartUpload"), u64::from(parts > 0));
        assert_eq!(counts.values().sum::<u64>(), puts + parts + 2 * u64::from(parts > 0));
        is_whole(&storage, &format!("o{len}"), len).await;
    }
}

#[tokio::test]
async fn each_question_is_one_request() {
    let server = Server::start();
    let storage = storage(&server);
    put(&storage, "a/b", 1000).await.expect("put");
    let b = name("a/b");
    server.front().heal();
    storage.size(&b).await.expect("size");
    storage.size(&name("a/c")).await.expect_err("absent");
    storage.read(&b, Range::All).await.expect("read");
    storage.read(&b, Range::Last(10)).await.expect("read");
    storage.fetch(&b, Range::At { offset: 10, len: 5000 }).await.expect("read");
    storage.ensure_durable(&b).await.expect("durable");
    storage.list("a/", None, 1000).await.expect("list");
    storage.folders("").await.expect("list");
    storage.delete(&b).await.expect("delete");
    assert_eq!(server.front().counts().values().sum::<u64>(), 9, "{:?}", server.front().counts());
}

/// An outage isn't waited out a thousand times.
#[tokio::test]
async fn many_are_deleted_at_once_and_none_after_a_failure() {
    let server = Server::start();
    let storage = storage(&server);
    let names: Vec<_> = (0..100).map(|n| name(&format!("many/{n:02}"))).collect();
    for object in &names {
        storage.put(object, content(1, 3)).await.expect("put");
    }
    server.front().refuse("DeleteObject", S3ErrorCode::AccessDenied);
    let results = storage.delete_all(&names).await;
    assert_eq!(results.len(), 100);
    assert!(results.into_iter().all(|result| error(result).kind == ErrorKind::Denied));
    let asked = server.front().counts()["DeleteObject"];
    assert!(asked < 20, "{asked} requests");
    server.front().heal();
    assert!(storage.delete_all(&names).await.iter().all(Result::is_ok));
    assert_eq!(server.front().counts()["DeleteObject"], 100);
    assert_eq!(storage.list("many", None, 10).await.expect("list"), []);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_conflict() {
    let server = Server::start();
    let storage = storage(&server);
    let lost = || Go::DoneBut(S3ErrorCode::InternalError);
    server.front().plan(first("PutObject", lost()));
    put(&storage, "small", 1000).await.expect("our own object is no conflict");
    is_whole(&storage, "small", 1000).await;

    // The upload is gone after that: S3 says 412 or NoSuchUpload, and both are tried.
    for second in [Go::On, Go::Refuse(S3ErrorCode::PreconditionFailed)] {
        let (mut seen, object) = (0, format!("large-{second:?}").replace(['(', ')'], "-"));
        server.front().plan(move |call| match call.operation {
            "CompleteMultipartUpload" => {
                seen += 1;
                if seen == 1 { Go::DoneBut(S3ErrorCode::InternalError) } else { second.clone() }
            }
            _ => Go::On,
        });
        put(&storage, &object, LARGE).await.expect("our own object is no conflict");
        assert_eq!(server.front().counts()["CompleteMultipartUpload"], 2);
        is_whole(&storage, &object, LARGE).await;
    }

    // Before it says so, the server may still be at it.
    let conflict = || Go::Refuse(S3ErrorCode::ConditionalRequestConflict);
    for (operation, len) in [("PutObject", 1000), ("CompleteMultipartUpload", LARGE)] {
        let object = format!("conflict-{operation}");
        server.front().plan(move |call| match call.before {
            _ if call.operation != operation => Go::On,
            0 => lost(),
            1 => conflict(),
            _ => Go::On,
        });
        put(&storage, &object, len).await.expect("our own object is no conflict");
        assert_eq!(server.front().counts()[operation], 3);
        is_whole(&storage, &object, len).await;
    }

    // Somebody else's object of the same content is one.
    server.front().heal();
    assert!(error(put(&storage, "small", 1000).await).already_exists());
    assert!(error(put(&storage, "large-On", LARGE).await).already_exists());
    // Also when an answer was lost on the way.
    server.front().plan(first("PutObject", Go::Refuse(S3ErrorCode::InternalError)));
    assert!(error(put(&storage, "small", 1000).await).already_exists());
}

#[tokio::test]
async fn who_took_the_name_is_never_guessed() {
    let server = Server::start();
    let storage = storage(&server);
    put(&storage, "taken", 10).await.expect("put");
    server.front().refuse("HeadObject", S3ErrorCode::SlowDown);
    let e = error(put(&storage, "taken", 10).await);
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    // The upload is gone, and nothing came of it.
    server.front().refuse("CompleteMultipartUpload", S3ErrorCode::NoSuchUpload);
    let e = error(put(&storage, "gone", LARGE).await);
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    assert!(e.message.contains("NoSuchUpload"), "{e}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_then_said() {
    let server = Server::start();
    let storage = storage(&server);
    for (number, code) in [
        S3ErrorCode::SlowDown,
        S3ErrorCode::InternalError,
        S3ErrorCode::ConditionalRequestConflict,
        S3ErrorCode::RequestTimeout,
    ]
    .into_iter()
    .enumerate()
    {
        for (operation, len) in [
            ("PutObject", 10),
            ("CreateMultipartUpload", LARGE),
            ("UploadPart", LARGE),
            ("CompleteMultipartUpload", LARGE),
        ] {
            let object = format!("{operation}-{number}");
            server.front().plan(first(operation, Go::Refuse(code.clone())));
            put(&storage, &object, len).await.unwrap_or_else(|e| panic!("{object}: {e}"));
            server.front().heal();
            is_whole(&storage, &object, len).await;
        }
        for operation in ["GetObject", "ListObjectsV2", "DeleteObject"] {
            let object = format!("PutObject-{number}");
            server.front().plan(first(operation, Go::Refuse(code.clone())));
            storage.read(&name(&object), Range::All).await.expect("read");
            assert_eq!(storage.list(&object, None, 9).await.expect("list").len(), 1);
            storage.delete(&name(&object)).await.expect("delete");
            put(&storage, &object, 10).await.expect("put");
        }
        server.front().refuse("UploadPart", code.clone());
        let e = error(put(&storage, "never", LARGE).await);
        assert_eq!(e.kind, ErrorKind::Unavailable);
        let text = e.to_string();
        for part in ["write never in s3://", code.as_str(), "after 3 attempts"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(storage.list("never", None, 10).await.expect("list").is_empty());
    }
}

#[tokio::test]
async fn an_error_inside_a_success_is_an_error() {
    let server = Server::start();
    let storage = storage(&server);
    let inside = || Go::Inside200(S3ErrorCode::InternalError);
    server.front().plan(first("CompleteMultipartUpload", inside()));
    put(&storage, "object", LARGE).await.expect("the second answer is good");
    is_whole(&storage, "object", LARGE).await;
    server.front().plan(move |call| match call.operation {
        "CompleteMultipartUpload" => inside(),
        _ => Go::On,
    });
    let e = error(put(&storage, "other", LARGE).await);
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    assert!(e.message.contains("InternalError"), "{e}");
    assert!(storage.list("other", None, 10).await.expect("list").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_less_than_its_range_is_asked_for_again() {
    let server = Server::start();
    let wire = Wire::to(server.address());
    let settings = S3Settings { endpoint: Some(wire.endpoint()), ..server.settings("x") };
    let storage = S3::new(settings);
    put(&storage, "object", 1000).await.expect("put");
    let once = || {
        let mut met = false;
        move |_: &_| (!std::mem::replace(&mut met, true)).then_some(Fault::Shortened)
    };
    let whole = content(1000, 1000);
    for (range, expected) in [
        (Range::At { offset: 100, len: 200 }, whole.slice(100..300)),
        (Range::Last(50), whole.slice(950..)),
    ] {
        wire.plan(once());
        assert_eq!(storage.read(&name("object"), range).await.expect("read"), expected);
        assert_eq!(wire.seen().len(), 2);
        wire.plan(|_| Some(Fault::Shortened));
        let e = error(storage.read(&name("object"), range).await);
        assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    }
}

#[tokio::test]
async fn missing_and_cant_tell_are_never_confused() {
    let server = Server::start();
    let storage = storage(&server);
    put(&storage, "there", 10).await.expect("put");
    let absent = name("absent");
    assert!(error(storage.size(&absent).await).is_not_found());
    for (code, kind) in [
        (S3ErrorCode::AccessDenied, ErrorKind::Denied),
        (S3ErrorCode::NoSuchBucket, ErrorKind::RootMissing),
        (S3ErrorCode::SlowDown, ErrorKind::Unavailable),
        (S3ErrorCode::ExpiredToken, ErrorKind::Denied),
        (S3ErrorCode::PermanentRedirect, ErrorKind::RootMissing),
    ] {
        server.front().refuse("GetObject", code.clone());
        assert_eq!(error(storage.size(&absent).await).kind, kind, "{code:?}");
        let e = error(storage.read(&absent, Range::All).await);
        assert_eq!(e.kind, kind, "{code:?}");
        assert!(e.hint.is_some(), "{code:?} says what to do");
    }
    server.front().heal();
    server.remove_bucket();
    for result in
        [storage.list("", None, 10).await.map(drop), storage.size(&absent).await.map(drop)]
    {
        // s3s-fs says NoSuchKey of an object in a bucket that isn't there; S3 doesn't.
        let kind = error(result).kind;
        assert!(matches!(kind, ErrorKind::RootMissing | ErrorKind::NotFound), "{kind:?}");
    }
}

#[tokio::test]
async fn wrong_credentials_and_no_server_are_told() {
    let server = Server::start();
    let folder = scratch::Scratch::new("s3");
    let wrong = folder.file(
        "credentials",
        "[default]\naws_access_key_id = AKIAPGKEEPTEST\naws_secret_access_key = wrong\n",
    );
    let with = |settings: S3Settings| S3::new(settings);
    let of_wrong = with(S3Settings { credentials_file: Some(wrong), ..server.settings("x") });
    let e = error(of_wrong.size(&name("a")).await);
    assert_eq!(e.kind, ErrorKind::Denied, "{e}");
    assert!(e.hint.as_deref().is_some_and(|hint| hint.contains("secret key")), "{e:?}");

    let open = folder.file("open", "x");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let of_open = with(S3Settings { credentials_file: Some(open), ..server.settings("x") });
    let e = error(of_open.size(&name("a")).await);
    assert!(e.to_string().contains("chmod 600"), "{e}");

    let began = Instant::now();
    let nobody =
        with(S3Settings { endpoint: Some("http://127.0.0.1:1".into()), ..server.settings("x") });
    let e = error(nobody.size(&name("a")).await);
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    let nowhere = with(S3Settings {
        endpoint: Some("http://no-such-host.invalid".into()),
        ..server.settings("x")
    });
    let e = error(nowhere.size(&name("a")).await);
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_connection_that_has_gone_silent_is_given_up() {
    // It takes everything and answers nothing.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::start();
    let storage = S3::new(S3Settings {
        endpoint: Some(format!("http://{address}")),
        stall: Duration::from_secs(1),
        attempts: 1,
        ..server.settings("x")
    });
    let began = Instant::now();
    for result in [
        storage.size(&name("a")).await.map(drop),
        put(&storage, "b", 1000).await,
        put(&storage, "c", 8 << 20).await,
    ] {
        let e = error(result);
        assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
        assert!(e.to_string().contains("nothing moved"), "{e}");
    }
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_dropped_upload_is_aborted() {
    let server = Server::start();
    let storage = storage(&server);
    let mut writer = storage.create(&name("dropped")).await.expect("create");
    writer.write(content(1, LARGE)).await.expect("write");
    assert_eq!(server.front().uploads(), ["x/dropped"]);
    drop(writer);
    // The end of the storage waits for it.
    drop(storage);
    assert!(server.front().uploads().is_empty());
    assert_eq!(server.front().counts()["AbortMultipartUpload"], 1);
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed_once_it_is_old() {
    let server = Server::start();
    let killed = storage(&server);
    for object in ["backups/a/packs/0", "backups/a/packs/1", "wal/x"] {
        let mut writer = killed.create(&name(object)).await.expect("create");
        writer.write(content(1, LARGE)).await.expect("write");
        // As if its process had been killed: nobody aborts it.
        std::mem::forget(writer);
    }
    let later = storage(&server);
    let remove = async |age| later.remove_leftovers("backups/", age).await.expect("remove");
    assert_eq!(remove(Duration::from_secs(3600)).await, 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(remove(Duration::from_millis(1)).await, 2);
    assert_eq!(server.front().uploads(), ["x/wal/x"]);
    server.front().refuse("ListMultipartUploads", S3ErrorCode::NotImplemented);
    assert_eq!(remove(Duration::ZERO).await, 0);
}

#[tokio::test]
async fn whether_creation_is_conditional_is_tried() {
    let honours = Server::start();
    let storage_of = storage;
    let storage = storage_of(&honours);
    for again in 0..2 {
        assert_eq!(storage.create_only().await.expect("probe"), CreateOnly::Honoured, "{again}");
    }
    assert!(honours.front().uploads().is_empty());
    let ignores = Server::with(Traits { conditional: false, ..Traits::default() });
    let storage = storage_of(&ignores);
    assert_eq!(storage.create_only().await.expect("probe"), CreateOnly::Ignored);
    put(&storage, "a", 10).await.expect("put");
    put(&storage, "a", 11).await.expect("it overwrites");

    // A server that doesn't know the header at all.
    let refuses = Server::start();
    refuses.front().refuse("PutObject", S3ErrorCode::NotImplemented);
    assert_eq!(storage_of(&refuses).create_only().await.expect("probe"), CreateOnly::Ignored);
}

#[tokio::test]
async fn checksums_that_a_server_refuses_can_be_left_out() {
    let server = Server::start();
    let settings = S3Settings { checksums: Checksums::WhenRequired, ..server.settings("x") };
    let storage = S3::new(settings);
    put(&storage, "small", 1000).await.expect("put");
    put(&storage, "large", LARGE).await.expect("put");
    is_whole(&storage, "small", 1000).await;
    is_whole(&storage, "large", LARGE).await;
    assert!(server.objects("x/small").exists());
}

#[tokio::test]
async fn the_address_has_no_secret_and_errors_name_it() {
    let server = Server::start();
    let storage = storage(&server);
    assert_eq!(storage.address(), format!("s3://{BUCKET}/x"));
    let e = error(storage.read(&name("some/object"), Range::All).await);
    assert!(e.to_string().starts_with("read some/object in s3://pgkeep-test/x: NoSuchKey"), "{e}");
}
