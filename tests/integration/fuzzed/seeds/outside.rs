//! Seeds of what lies around a repository: files of secrets, directories, parts, a bucket's answers.

use std::fs;

use base64::Engine;

use super::{Add, piece};
use crate::fuzzed::root;

pub fn all(add: Add<'_>) {
    of_secrets(add);
    of_directories(add);
    of_the_repository(add);
    of_the_bucket(add);
    of_certificates(add);
}

fn of_secrets(add: Add<'_>) {
    let file = b"#c\nHOST:5432:*:u:first\n*:*:db:u\\\\v:with\\:colon\\\\\r\nHOST:*:replication:r:s3cr3t:x\n";
    for (name, how, user, database) in [
        ("first", 2, "u", "db"),
        ("escaped", 2, "u\\v", "db"),
        ("replication", 0, "r", "db"),
        ("open-to-others", 1, "r", "db"),
        ("none", 2, "nobody", "db"),
    ] {
        let port = 5432u16.to_le_bytes();
        let who = [piece(user.as_bytes()), piece(database.as_bytes())].concat();
        add("pgpass", name, &[&[how], &port, &who, file]);
    }
    let key = fs::read(root().join("fixtures/repository-v1.key")).unwrap();
    add("keys", "key-file", &[&[0], &key]);
    let slot = |how: u8, memory: u32, passes: u8, lanes: u8| {
        let cost = [&memory.to_le_bytes()[..], &[passes, lanes]].concat();
        [&[how][..], &piece(&[0x5a; 16]), &cost].concat()
    };
    let phrase = b"correct horse battery staple\nand more\n";
    let one = piece(&slot(0, 64, 1, 1));
    add("keys", "passphrase-file", &[&[1, 1], &one, phrase]);
    add("keys", "other-line-ends", &[&[1, 1], &one, b"correct horse battery\r\n\xff"]);
    add("keys", "no-line-end", &[&[1, 1], &one, b"correct horse battery\r"]);
    add("keys", "passphrase-command", &[&[2, 1], &one, phrase]);
    add("keys", "of-a-file", &[&[3, 1], &piece(&slot(8, 64, 1, 1))]);
    let two = piece(&[slot(2, 8, 1, 1), slot(0, 16, 2, 2)].concat());
    add("keys", "second-slot", &[&[1, 2], &two, phrase]);
    add("keys", "too-costly", &[&[1, 1], &piece(&slot(0, u32::MAX, 255, 1)), phrase]);
    add("keys", "without-costs", &[&[1, 1], &piece(&slot(8, 64, 1, 1)), phrase]);
    add("keys", "short-keys", &[&[3, 1], &piece(&slot(4, 64, 1, 1))]);
}

fn of_directories(add: Add<'_>) {
    let marker = |phase: &str, place: &str| {
        format!(
            r#"{{"product":"pgkeep restore","restore":"{0}","repository":"{0}","backup":"20250120T205812Z-incr",
            "started":"2025-01-20T12:00:00Z","phase":"{phase}","data-directory":"ABOVE/data",
            "tablespaces":{{"16400":"{place}"}}}}"#,
            "5a".repeat(16)
        )
        .into_bytes()
    };
    let none = u16::MAX.to_le_bytes();
    let space = "ABOVE/space";
    let writing = piece(&marker("writing", space));
    add("marker", "none", &[&none, &none, &none, &[0]]);
    add("marker", "writing", &[&writing, &none, &writing, &[3]]);
    add("marker", "finishing", &[&piece(&marker("finishing", space)), &none, &none, &[3]]);
    add("marker", "elsewhere", &[&piece(&marker("finishing", "ABOVE/other")), &none, &none, &[7]]);
    add("marker", "left-out", &[&writing, &none, &writing, &[7]]);
    add("marker", "running", &[&writing, &piece(b"1\n/data\n"), &none, &[0]]);
    let rest = br#"{"repository":"main"}"#;
    let at = br#"{"boot":"x","after":{"secs":1,"nanos":2}}"#;
    let file = br#"{"device":1,"inode":2,"size":7,"modified":[1,2],"changed":[1,2]}"#;
    for chosen in [0, 1] {
        let name = ["spool", "stored"][usize::from(chosen)];
        add("notes", &format!("{name}-right"), &[&[chosen, 3], &piece(b""), &piece(b""), rest]);
        add("notes", &format!("{name}-wrong"), &[&[chosen, 0], &piece(at), &piece(file), rest]);
        add("notes", &format!("{name}-raw"), &[&[chosen, 4], br#"{"at":{},"file":{}}"#]);
    }
    add("notes", "wanted", &[&[2], b"000000010000000000000003"]);
    let names = b"lock\nwanted.7\n000000010000000000000003.json\n000000010000000000000004\nx";
    add("notes", "names", &[&[3], names]);
}

fn of_the_repository(add: Add<'_>) {
    let part = |how: u8, from: u16, len: u16, more: &[u8]| {
        [&[how][..], &from.to_le_bytes(), &len.to_le_bytes(), more].concat()
    };
    let whole = [part(0, 0, 80, &[]), part(0, 80, 40, &[]), part(0, 100, 60, &[])];
    add("parts", "overlapping", &[&whole.concat()]);
    add("parts", "differing", &[&whole[0], &part(1, 40, 60, &[50, 0])]);
    add("parts", "damaged", &[&part(4, 0, 90, &[100, 0]), &whole.concat()]);
    add("parts", "of-another-length", &[&whole[0], &part(2, 80, 9, &[1]), &part(8, 80, 7, &[])]);
    add("parts", "too-long", &[&whole[0], &part(240, 80, 9, &[150])]);
    add("parts", "with-a-gap", &[&whole[0], &part(0, 200, 9, &[])]);
    let patch = |object: u8, how: u8, at: u16, bytes: &[u8]| {
        [&[object, how][..], &at.to_le_bytes(), &piece(bytes)].concat()
    };
    add("repository", "whole", &[&[3]]);
    for how in [0u8, 1, 6, 12] {
        add("repository", &format!("gone-{how}"), &[&[how, 4 + how, 0]]);
    }
    for object in [0u8, 3, 5, 8, 14, 20, 22, 27] {
        let change = patch(object, 5, 90, b"x");
        add("repository", &format!("damaged-{object}"), &[&[1], &change]);
        let sealed = [&[object, 1, 0][..], &[30, 0], &piece(b"7")].concat();
        add("repository", &format!("sealed-again-{object}"), &[&[7], &sealed]);
    }
    add("repository", "other-names", &[&[5], &[20, 3, 22], &[22, 6], &piece(b"clusters/main/x")]);
    let last = "clusters/main/wal/15-7450000000000000001/00000001/00000001FFFFFFFF000000FF";
    for how in [0u8, 1] {
        let copied = [&[22, 6][..], &piece(last.as_bytes())].concat();
        add("repository", &format!("last-segment-{how}"), &[&[how], &copied]);
    }
    add("repository", "cut", &[&[9, 22, 7, 200, 0]]);
    add("repository", "summary", &[&[13, 22, 2, 20, 0], &piece(b"9")]);
    let begin = |marks: u8, content: &[u8]| [&[9, marks][..], content].concat();
    add("objects", "marks", &[&begin(0b1011, b"anything")]);
    add("objects", "marks-among-others", &[&begin(0b10_1101, b"anything")]);
    add("objects", "registered", &[&[10], b"15-7450000000000000001\n17-07\n"]);
}

fn of_the_bucket(add: Add<'_>) {
    let answer = |how: u8, status: u16, headers: &str, body: &str| {
        let status = (status - 100).to_le_bytes();
        [&[how][..], &status, &piece(headers.as_bytes()), &piece(body.as_bytes())].concat()
    };
    let error = |status: u16, code: &str| {
        let text = format!("<Error><Code>{code}</Code><Message>said</Message></Error>");
        answer(0, status, "", &text)
    };
    add("s3", "all", &[&[0], &answer(0, 200, "", "content")]);
    add("s3", "all-cut", &[&[0], &answer(4, 200, "", "content"), &[5]]);
    add(
        "s3",
        "all-chunked",
        &[&[0], &answer(2, 200, "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n")],
    );
    add("s3", "all-endless", &[&[0], &answer(10, 200, "", "content"), &[200]]);
    add("s3", "missing", &[&[0], &error(404, "NoSuchKey")]);
    add("s3", "no-bucket", &[&[0], &error(404, "NoSuchBucket")]);
    add("s3", "nothing-there", &[&[4], &answer(0, 404, "", "")]);
    let range = "Content-Range: bytes 5-14/100\r\n";
    add("s3", "range", &[&[1], &answer(0, 206, range, "0123456789")]);
    let other = "Content-Range: bytes 15-24/100\r\n";
    add("s3", "other-range", &[&[1], &answer(0, 206, other, "0123456789")]);
    let behind = [error(416, "InvalidRange"), answer(4, 200, "", "")].concat();
    add("s3", "behind-the-end", &[&[2], &behind, &[3]]);
    let end = "Content-Range: bytes 95-99/100\r\n";
    add("s3", "end", &[&[3], &answer(0, 206, end, "01234")]);
    add("s3", "size", &[&[4], &answer(16, 206, "Content-Range: bytes 0-0/100\r\n", "0")]);
    let list = |truncated: bool, token: &str, keys: &[&str]| {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| format!("<Contents><Key>prefix/{key}</Key><Size>7</Size></Contents>"))
            .collect();
        answer(
            0,
            200,
            "",
            &format!(
                "<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{}{token}</ListBucketResult>",
                keys.concat()
            ),
        )
    };
    let token = "<NextContinuationToken>t</NextContinuationToken>";
    let names = ["clusters/a", "clusters/b", "clusters/c", "clusters/d"];
    add("s3", "list", &[&[5], &list(true, token, &names[..2]), &list(false, "", &names[2..])]);
    let endless = answer(10, 200, "", "<ListBucketResult><Contents></Contents>");
    add("s3", "list-endless", &[&[5], &endless, &[200], &endless, &[200]]);
    let endless = answer(8, 500, "", "<Error><Message>said</Message></Error>");
    add("s3", "error-endless", &[&[0], &endless, &[200], &endless, &[200]]);
    let again = list(true, token, &names[2..3]);
    add("s3", "list-again", &[&[6], &again, &again]);
    add("s3", "list-cut-short", &[&[6], &list(true, "", &names[2..])]);
    let common = |prefix: &str| {
        format!("<CommonPrefixes><Prefix>prefix/clusters/main/{prefix}/</Prefix></CommonPrefixes>")
    };
    let folders = format!("<ListBucketResult>{}{}</ListBucketResult>", common("a"), common("b"));
    add("s3", "folders", &[&[7], &answer(0, 200, "", &folders)]);
    add("s3", "created", &[&[8], &answer(0, 200, "ETag: \"x\"\r\n", "")]);
    let taken =
        [error(412, "PreconditionFailed"), answer(0, 200, "x-amz-meta-pgkeep-mark: x\r\n", "")];
    add("s3", "taken", &[&[8], &taken.concat()]);
    add("s3", "slow-down", &[&[11], &error(503, "SlowDown"), &answer(0, 200, "", "")]);
    let begun = answer(
        0,
        200,
        "",
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
    );
    let sent = answer(0, 200, "ETag: \"x\"\r\n", "");
    let done = answer(
        0,
        200,
        "",
        "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>",
    );
    add("s3", "in-parts", &[&[9], &begun, &sent, &sent, &done]);
    let late = answer(0, 200, "", "<Error><Code>InternalError</Code></Error>");
    add("s3", "in-parts-fails", &[&[9], &begun, &sent, &sent, &late, &late, &sent]);
    let versions = "<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>prefix/clusters/main/leases/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a</NextKeyMarker><NextVersionIdMarker>v</NextVersionIdMarker><Version><Key>prefix/clusters/main/leases/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a</Key><VersionId>v</VersionId></Version></ListVersionsResult>";
    let hidden = answer(0, 204, "x-amz-delete-marker: true\r\nx-amz-version-id: m\r\n", "");
    let of_versions = answer(0, 200, "", versions);
    add("s3", "deleted", &[&[10], &hidden, &of_versions, &of_versions, &answer(0, 204, "", "")]);
    let held = "x-amz-object-lock-mode: COMPLIANCE\r\nx-amz-object-lock-retain-until-date: 2029-01-01T00:00:00Z\r\nx-amz-version-id: v\r\n";
    add("s3", "held", &[&[12], &answer(0, 200, held, "")]);
    add("s3", "held-longer", &[&[13], &answer(0, 200, held, ""), &sent]);
    add(
        "s3",
        "held-by-the-bucket",
        &[
            &[12],
            &answer(0, 200, "x-amz-version-id: v\r\n", ""),
            &error(404, "ObjectLockConfigurationNotFoundError"),
        ],
    );
    let uploads = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>prefix/clusters/x</Key><UploadId>u</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>";
    add("s3", "leftovers", &[&[14], &answer(0, 200, "", uploads), &answer(0, 204, "", "")]);
    let refused = error(412, "PreconditionFailed");
    add(
        "s3",
        "probed",
        &[&[15], &sent, &refused, &begun, &sent, &refused, &answer(0, 204, "", "")],
    );
    let certificate = fs::read(root().join("fixtures/fuzz/certificate/seed-names")).unwrap();
    let certificate = base64::prelude::BASE64_STANDARD.encode(&certificate[1..]);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n");
    add("s3", "ca-file", &[&[16], pem.as_bytes()]);
    add("s3", "credentials", &[&[17], b"[default]\naws_access_key_id = s3cr3t\n[x]\n"]);
    let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncontent";
    add("s3", "raw", &[&[0, 1], &piece(raw)]);
}

/// Those that are there stay: each has a key of its own.
fn of_certificates(add: Add<'_>) {
    use rcgen::{
        CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    };
    let of = |seed: &str, algorithm, names: &[&str]| {
        if let Ok(there) = fs::read(root().join("fixtures/fuzz/certificate").join(seed)) {
            return there[1..].to_vec();
        }
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "common.example.net");
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let names =
        of("seed-names", &PKCS_ECDSA_P256_SHA256, &["db.example.com", "*.example.org", "10.0.0.1"]);
    add("certificate", "names", &[&[0], &names]);
    add(
        "certificate",
        "common-name",
        &[&[0], &of("seed-common-name", &PKCS_ECDSA_P384_SHA384, &[])],
    );
    add("certificate", "changed", &[&[1], &[40, 0, 1], &piece(b"x")]);
}
