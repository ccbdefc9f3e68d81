//! Weaves mutants into the source: all of them at once, each behind a switch.
//!
//! ```text
//! weave TREE < mutants.json    what `cargo mutants --list --json` says, with a number `id` in each
//! ```
//!
//! Compiling a program for each of some thousand changes takes days. So the copy of the source in TREE is rewritten once: where a
//! change is to be, there stands "if it is switched on, the change, else what was there", and `src/mutation.rs` knows which
//! one is on (`MUTANT_ON`) and can note which ones a run came by (`MUTANTS_SEEN`). The numbers of those that found their
//! place are printed. `tools/mutants` builds what comes of it, and leaves out what doesn't compile.

mod weave;

use std::{collections::BTreeMap, io::Read, path::Path};

use weave::{Mutant, Weaver};

/// What stands in the copy as `src/mutation.rs`.
const SWITCH: &str = include_str!("../switch.rs.in");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tree = std::env::args().nth(1).ok_or("usage: weave TREE < mutants.json")?;
    let tree = Path::new(&tree);
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut by_file: BTreeMap<String, Vec<Mutant>> = BTreeMap::new();
    for mutant in serde_json::from_str::<Vec<Mutant>>(&text)? {
        by_file.entry(mutant.file.clone()).or_default().push(mutant);
    }
    for (file, mutants) in by_file {
        let path = tree.join(&file);
        let mut syntax = syn::parse_file(&std::fs::read_to_string(&path)?)?;
        let woven = Weaver::new(mutants)?.weave(&mut syntax);
        std::fs::write(&path, prettyplease::unparse(&syntax))?;
        for id in woven {
            println!("{id}");
        }
    }
    std::fs::write(tree.join("src/mutation.rs"), SWITCH)?;
    let root = tree.join("src/lib.rs");
    let library = std::fs::read_to_string(&root)?;
    std::fs::write(&root, format!("{library}\n#[doc(hidden)]\npub mod mutation;\n"))?;
    Ok(())
}
