//! A server's certificate: the names it is for, and what channel binding takes of it.
//!
//! The first byte says what stands for what: the rest is a certificate in DER where it is even, else a seed
//! certificate with changes: two bytes where, one byte how many are taken away, and what is put there behind its
//! length. A certificate is for no host that isn't one of its names, and for none with a name of many hosts but one
//! label's.

use pgkeep::postgres::client::certificate::{Names, end_point_hash};

use super::input::Input;

/// Of version 3, for `db.example.com`, `*.example.org` and 10.0.0.1, with the common name `common.example.net`.
const SEED: &[u8] = include_bytes!("../../../../fixtures/fuzz/certificate/seed-names");

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut der = Vec::new();
    if input.byte() & 1 == 0 {
        der.extend_from_slice(input.rest());
    } else {
        der.extend_from_slice(&SEED[1..]);
        while !input.is_empty() {
            let at = usize::from(input.short()).min(der.len());
            let end = (at + usize::from(input.byte())).min(der.len());
            der.splice(at..end, input.piece().iter().copied());
        }
    }
    if let Some(hash) = end_point_hash(&der) {
        assert!(matches!(hash.len(), 28 | 32 | 48 | 64), "a hash of {} bytes", hash.len());
    }
    let Some(names) = Names::read(&der) else { return };
    let list = names.list();
    assert!(list.len() <= 4 * der.len() + 16, "a list of {} bytes", list.len());
    let holds = |text: &[u8]| der.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text));
    for host in ["db.example.com", "a.example.org", "a.b.example.org", "example.org", "10.0.0.1"] {
        if !names.fit(host) {
            continue;
        }
        let address: Vec<u8> = host.split('.').filter_map(|n| n.parse().ok()).collect();
        let (_, domain) = host.split_once('.').expect("a dot");
        let wild = format!("*.{domain}");
        let by_address = address.len() == 4 && holds(&address);
        assert!(
            holds(host.as_bytes()) || by_address || (address.len() < 4 && holds(wild.as_bytes())),
            "{list} fits {host}"
        );
    }
}
