//! The fuzzer: libFuzzer around the [`targets`].
//!
//! One program for all of them, so that the library is linked once: `PGKEEP_FUZZ_TARGET` says which
//! one it is. `tools/fuzz.sh` builds and runs it.

#![no_main]

mod limit;
mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// A target: takes any bytes, and panics when what must hold doesn't.
static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let name = std::env::var("PGKEEP_FUZZ_TARGET").unwrap_or_default();
    match targets::TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, run)) => *run,
        None => {
            let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("PGKEEP_FUZZ_TARGET is to be one of: {}", names.join(" "));
            std::process::exit(2);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let run = TARGET.get_or_init(chosen);
    limit::within(|| run(bytes));
});
