//! `backup_manifest`, which is written of paths that a server or a repository says: it is JSON whatever they
//! are, and nothing gets in that isn't the path.

use pgkeep::postgres::{
    Lsn, Timeline,
    backup_manifest::{ManifestVersion, ManifestWriter, WalRange},
};
use serde_json::Value;

use super::input::Input;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let version = ManifestVersion::of_major(if how & 1 == 1 { 17 } else { 16 });
    let mut writer = ManifestWriter::new(Vec::new(), version, 7).expect("memory takes all");
    let mut paths = Vec::new();
    while !input.is_empty() {
        let (size, path) = (input.word(), input.piece());
        let time = chrono::DateTime::from_timestamp(size.into(), 0).unwrap_or_default();
        let put = match how & 2 {
            0 => writer.file(path, size.into(), time, size),
            _ => writer.file_name_only(path, size.into()),
        };
        put.expect("memory takes all");
        paths.push((path, size));
    }
    let range = WalRange { timeline: Timeline(1), start: Lsn(1), end: Lsn(2) };
    let written = writer.finish(&[range]).expect("memory takes all");
    let json: Value = serde_json::from_slice(&written).expect("it is JSON");
    let files = json["Files"].as_array().expect("a list");
    assert_eq!(files.len(), paths.len());
    for (file, (path, size)) in files.iter().zip(paths) {
        let named = match (&file["Path"], &file["Encoded-Path"]) {
            (Value::String(path), Value::Null) => path.clone().into_bytes(),
            (Value::Null, Value::String(encoded)) => {
                let digits: Vec<u8> = encoded.bytes().collect();
                let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).ok());
                pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).map(Option::unwrap).collect()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(named, path);
        assert_eq!(file["Size"], size);
    }
}
