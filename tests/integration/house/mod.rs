//! The rules of the house that no compiler checks: who may import whom, and what a file looks like.

mod imports;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
};

use imports::{edges, forbidden};
use source::{outside_tests, tokens};

/// Past this a file is probably two rooms.
const MOST_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `folder` that end in `.extension`, with their text, by path.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, extension: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("read a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, extension, found);
            } else if path.extension().is_some_and(|e| e == extension) {
                let text = fs::read_to_string(&path).expect("read a file");
                found.push((path.strip_prefix(root()).expect("below the root").into(), text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), extension, &mut found);
    found.sort();
    found
}

fn rust_files() -> Vec<(PathBuf, String)> {
    [files("src", "rs"), files("tests", "rs")].concat()
}

/// Fails with every complaint, not only the first.
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_go_one_way() {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (path, text) in files("src", "rs") {
        for (from, to) in edges(&path, &text) {
            seen += 1;
            if forbidden(&from, &to) {
                complaints.push(format!("{}: {from} may not use {to}", path.display()));
            }
        }
    }
    assert!(seen > 20, "the reader of imports finds hardly any: {seen}");
    none(complaints);
}

#[test]
fn every_room_of_the_house_has_a_rule_and_a_place_on_the_map() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("read lib.rs");
    let mut complaints = Vec::new();
    for module in lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')) {
        if !imports::known(module) {
            complaints.push(format!("tests/integration/house/imports.rs has no rule for {module}"));
        }
        if !lib.contains(&format!("[`{module}`]:")) {
            complaints.push(format!("the map in src/lib.rs doesn't say what {module} is"));
        }
    }
    none(complaints);
}

#[test]
fn every_file_is_part_of_a_program() {
    let mut complaints = Vec::new();
    let all = rust_files();
    for (path, _) in &all {
        let top = [
            "src/lib.rs",
            "src/main.rs",
            "tests/integration/main.rs",
            "tests/fuzz/src/main.rs",
            "tests/mutants/src/main.rs",
        ];
        if top.iter().any(|top| path == Path::new(top)) {
            continue;
        }
        let folder = path.parent().expect("a file is in a folder");
        let (name, of) = if path.ends_with("mod.rs") {
            (folder.file_name(), folder.parent().expect("src or tests is above"))
        } else {
            (path.file_stem(), folder)
        };
        let declaration = format!("mod {};", name.expect("a name").to_str().expect("UTF-8"));
        let declared = all.iter().any(|(parent, text)| {
            let above = parent.with_extension("") == *of
                || (parent.parent() == Some(of)
                    && ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| parent.ends_with(name)));
            above && text.lines().any(|line| declares(line, &declaration))
        });
        if !declared {
            complaints.push(format!("{}: nothing says `{declaration}`", path.display()));
        }
    }
    none(complaints);
}

/// Whether a line is this declaration, whatever it is visible to.
fn declares(line: &str, declaration: &str) -> bool {
    let visibility = line.trim_start().strip_suffix(declaration);
    visibility.is_some_and(|v| v.is_empty() || (v.starts_with("pub") && v.ends_with([' '])))
}

#[test]
fn files_open_with_what_they_are_and_end_in_time() {
    let mut complaints = Vec::new();
    for (path, text) in rust_files() {
        let path = path.display();
        if !text.starts_with("//! ") {
            complaints.push(format!("{path}: doesn't open with `//!` and what it is about"));
        }
        let lines = text.lines().count();
        if lines > MOST_LINES {
            complaints.push(format!("{path}: {lines} lines are more than {MOST_LINES}"));
        }
    }
    none(complaints);
}

#[test]
fn nothing_is_left_for_later() {
    let mut complaints = Vec::new();
    for (path, text) in rust_files() {
        if path.starts_with("tests/integration/house") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in ["TODO", "FIXME", "allow(dead_code)", "#[ignore"] {
                if line.contains(word) {
                    complaints.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    none(complaints);
}

#[test]
fn a_program_that_guards_data_does_not_unwrap() {
    let mut complaints = Vec::new();
    for (path, text) in files("src", "rs") {
        if path.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let tokens = outside_tests(tokens(&text));
        for three in tokens.windows(3) {
            if three[0] == "." && three[1] == "unwrap" && three[2] == "(" {
                complaints.push(format!("{}: unwrap() outside tests", path.display()));
            }
        }
    }
    none(complaints);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = files("docs", "md");
    assert!(!documents.is_empty());
    for name in ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"] {
        if let Ok(text) = fs::read_to_string(root().join(name)) {
            documents.push((name.into(), text));
        }
    }
    let mut complaints = Vec::new();
    for (path, text) in documents {
        for after in text.split("](").skip(1) {
            let target = after.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let folder = root().join(path.parent().expect("a file is in a folder"));
            if !folder.join(target).exists() {
                complaints.push(format!("{}: {target} isn't there", path.display()));
            }
        }
    }
    none(complaints);
}

#[test]
fn tests_that_the_documents_name_exist() {
    let text = fs::read_to_string(root().join("docs/testing.md")).expect("read it");
    let source: String = rust_files().into_iter().map(|(_, text)| text).collect();
    let mut named = 0;
    let mut complaints = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        for name in line.split('`').filter(|part| part.contains("::")) {
            named += 1;
            let function = name.rsplit("::").next().expect("a last part");
            if !source.contains(&format!("fn {function}(")) {
                complaints.push(format!("docs/testing.md names {name}, which isn't there"));
            }
        }
    }
    assert!(named > 20, "the reader of docs/testing.md finds hardly any test: {named}");
    none(complaints);
}
