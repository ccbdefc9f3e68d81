//! What requests carry for the server: storage classes and encryption.

use bytes::Bytes;
use pgkeep::storage::{
    ObjectName, Range, Storage,
    s3::{CLASSED, S3, S3Settings, Sse},
};

use crate::support::s3::{Server, Wire};

const CLASS: &str = "x-amz-storage-class";
const SSE: &str = "x-amz-server-side-encryption";
const KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";

/// What the requests of an object that is made, and of some others, carry: operation, key, the
/// values of the three headers.
type Carried = Vec<(&'static str, String, [Option<String>; 3])>;

/// Makes objects of every kind and returns what was asked.
fn carried(class: Option<&str>, sse: Sse) -> Carried {
    let server = Server::start();
    let wire = Wire::to(server.address());
    let storage = S3::new(S3Settings {
        endpoint: Some(wire.endpoint()),
        storage_class: class.map(str::to_owned),
        sse,
        ..server.settings("x")
    });
    let name = |text: &str| ObjectName::new(text).expect("a good name");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let put = async |text: &str, len: usize| {
            storage.put(&name(text), Bytes::from(vec![7; len])).await.expect("put");
        };
        storage.create_only().await.expect("probe");
        put("small", CLASSED - 1).await;
        put("large", CLASSED).await;
        put("parts", (8 << 20) + 1).await;
        storage.replace(&name("lease"), "x".into()).await.expect("replace");
        storage.read(&name("small"), Range::All).await.expect("read");
        storage.list("", None, 10).await.expect("list");
        storage.delete(&name("small")).await.expect("delete");
    });
    let seen = wire.seen().into_iter().map(|seen| seen.request);
    seen.map(|r| (r.operation, r.key.clone(), [CLASS, SSE, KEY].map(|name| r.header(name))))
        .collect()
}

/// The requests with this header, and what it says.
fn with(carried: &Carried, header: usize) -> Vec<(&'static str, &str, &str)> {
    let with = carried.iter().filter_map(|(operation, key, values)| {
        Some((*operation, key.as_str(), values[header].as_deref()?))
    });
    let mut with: Vec<_> = with.collect();
    with.sort();
    with.dedup();
    with
}

/// All that makes objects.
const MADE: [(&str, &str); 6] = [
    ("CreateMultipartUpload", "x/parts"),
    ("CreateMultipartUpload", "x/probe"),
    ("PutObject", "x/large"),
    ("PutObject", "x/lease"),
    ("PutObject", "x/probe"),
    ("PutObject", "x/small"),
];

#[test]
fn nothing_is_said_unless_it_is_set() {
    let carried = carried(None, Sse::Default);
    assert!(carried.len() > 15, "{carried:?}");
    for header in 0..3 {
        assert_eq!(with(&carried, header), []);
    }
}

#[test]
fn what_is_large_has_the_class() {
    let carried = carried(Some("REDUCED_REDUNDANCY"), Sse::Default);
    // How large an object in parts becomes nobody knows yet; it has more than a part.
    let expected = [
        ("CreateMultipartUpload", "x/parts"),
        ("CreateMultipartUpload", "x/probe"),
        ("PutObject", "x/large"),
    ];
    assert_eq!(with(&carried, 0), expected.map(|(made, key)| (made, key, "REDUCED_REDUNDANCY")));
    assert_eq!(with(&carried, 1), []);
}

#[test]
fn all_that_is_made_is_encrypted() {
    let plain = carried(None, Sse::Aes256);
    assert_eq!(with(&plain, 1), MADE.map(|(made, key)| (made, key, "AES256")));
    assert_eq!(with(&plain, 2), []);
    let own = carried(None, Sse::Kms(None));
    assert_eq!(with(&own, 1), MADE.map(|(made, key)| (made, key, "aws:kms")));
    assert_eq!(with(&own, 2), []);
    let named = carried(None, Sse::Kms(Some("alias/backup".into())));
    assert_eq!(with(&named, 1), MADE.map(|(made, key)| (made, key, "aws:kms")));
    assert_eq!(with(&named, 2), MADE.map(|(made, key)| (made, key, "alias/backup")));
}
