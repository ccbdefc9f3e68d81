//! The time strings of `--target-time`.

use pgkeep::cli::time::parse;

pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(time) = parse(text) {
        // As reports show it, which people copy.
        let shown = time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string();
        let again = parse(&shown).unwrap_or_else(|e| panic!("{text:?} is {shown}: {e}"));
        assert_eq!(again, time);
    }
}
