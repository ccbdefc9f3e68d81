//! Links that are slow, and links that have died: what moves is waited for, however long it takes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pgkeep::storage::{
    ErrorKind, ObjectName, Range, Storage,
    s3::{S3, S3Settings},
};

use crate::support::s3::{Server, Wire};

/// No attempt gets a second one, so that one that was given up shows.
fn over(wire: &Wire, server: &Server, stall: Duration) -> S3 {
    S3::new(S3Settings {
        endpoint: Some(wire.endpoint()),
        attempts: 1,
        stall,
        ..server.settings("x")
    })
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a good name")
}

/// Bytes that differ from place to place.
fn content(len: usize) -> Bytes {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

const STALL: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_any_timeout_is_put_and_got() {
    let server = Server::start();
    let wire = Wire::to(server.address());
    let content = content(8 << 20);
    let quick = S3::new(server.settings("x"));
    quick.put(&name("there"), content.clone()).await.expect("put");
    // This takes six times as long as a request may stand still, and so does what the kernel takes
    // of it at once, which is some megabytes.
    wire.slow_down(700 << 10);
    let storage = over(&wire, &server, STALL);
    let put = async {
        let began = Instant::now();
        storage.put(&name("slow"), content.clone()).await.expect("put");
        began.elapsed()
    };
    let read = async {
        let began = Instant::now();
        let read = storage.read(&name("there"), Range::All).await.expect("read");
        assert!(read == content, "other bytes came back");
        began.elapsed()
    };
    let took = tokio::join!(put, read);
    assert!(took.0 > STALL * 4 && took.1 > STALL * 4, "{took:?}");
    let stored = quick.read(&name("slow"), Range::All).await.expect("read");
    assert!(stored == content, "other bytes were stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_has_died_is_given_up_wherever_it_was() {
    let server = Server::start();
    let wire = Wire::to(server.address());
    let storage = over(&wire, &server, Duration::from_secs(1));
    // In the head of the body, in the middle, and where all the rest lies in the kernel's buffer.
    for bytes in [0, 3 << 20, (8 << 20) - 1000] {
        wire.freeze_after(bytes);
        let began = Instant::now();
        let e = storage.put(&name("frozen"), content(8 << 20)).await.expect_err("it must fail");
        assert_eq!(e.kind, ErrorKind::Unavailable, "{bytes}: {e}");
        assert!(e.to_string().contains("nothing moved for 1 s"), "{bytes}: {e}");
        assert!(began.elapsed() < Duration::from_secs(10), "{bytes}: {:?}", began.elapsed());
    }
    assert!(!server.objects("x/frozen").exists());
}
