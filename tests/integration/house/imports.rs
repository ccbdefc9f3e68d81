//! Which room of the house uses which.

use std::path::Path;

use super::source::tokens;

/// What each top-level module may use besides itself. Imports go one way: an operation doesn't
/// know another one; `storage` and `postgres` know nobody, but for the names of steps. `error` turns the errors of these two
/// into its own.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli", "error"]),
    (
        "cli",
        &[
            "demo",
            "backup",
            "archive",
            "restore",
            "retention",
            "verify",
            "info",
            "repo",
            "storage",
            "postgres",
            "config",
            "progress",
            "error",
        ],
    ),
    (
        "demo",
        &[
            "backup", "archive", "restore", "info", "repo", "storage", "postgres", "config",
            "progress", "error",
        ],
    ),
    ("backup", &["repo", "storage", "postgres", "config", "progress", "error", "steps"]),
    ("archive", &["repo", "storage", "postgres", "config", "progress", "error", "steps"]),
    ("restore", &["repo", "storage", "postgres", "config", "progress", "error", "steps"]),
    ("retention", &["repo", "storage", "postgres", "config", "progress", "error", "steps"]),
    // A drill restores.
    ("verify", &["restore", "repo", "storage", "postgres", "config", "progress", "error"]),
    ("info", &["repo", "storage", "postgres", "config", "progress", "error"]),
    ("repo", &["storage", "postgres", "config", "progress", "error", "steps"]),
    ("config", &["storage", "postgres", "error"]),
    ("error", &["storage", "postgres"]),
    ("progress", &[]),
    ("storage", &["steps"]),
    ("postgres", &[]),
    ("steps", &[]),
];

/// Whether there is a rule for this module.
pub fn known(module: &str) -> bool {
    ALLOWED.iter().any(|(name, _)| *name == module)
}

/// Whether one top-level module may not use another. What there is no rule for is forbidden.
pub fn forbidden(from: &str, to: &str) -> bool {
    let allowed = ALLOWED.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, to)| to);
    from != to && !allowed.contains(&to)
}

/// The top-level modules that a file's text uses, as (from, to): by `crate::`, by enough
/// `super::`s, or, in the program, by the library's name. `lib.rs` itself is only the map.
pub fn edges(path: &Path, text: &str) -> Vec<(String, String)> {
    let parts: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .filter(|part| part != "src" && part != "mod")
        .collect();
    let from = parts[0].clone();
    if from == "lib" {
        return Vec::new();
    }
    // The program is a crate of its own, and the library is what it imports.
    let (home, depth) = if from == "main" { ("pgkeep", 0) } else { ("crate", parts.len()) };
    let tokens = tokens(text);
    let mut inline = Vec::new(); // how deep in braces each open `mod x {` began
    let mut braces = 0;
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        match tokens[i].as_str() {
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
            }
            "mod" if tokens.get(i + 2).is_some_and(|t| t == "{") => inline.push(braces),
            "super" if home == "crate" && !follows_path(&tokens, i) => {
                climb(&tokens, i, depth + inline.len(), &mut found);
            }
            word if word == home && !follows_path(&tokens, i) => {
                climb(&tokens, i + 1, 0, &mut found);
            }
            _ => {}
        }
        i += 1;
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|to| (from.clone(), to)).collect()
}

/// Whether the token at `i` goes on a path that began before it.
fn follows_path(tokens: &[String], i: usize) -> bool {
    i > 0 && tokens[i - 1] == "::"
}

/// Reads a path from `i` on that has to climb `up` modules to reach the crate's root, and adds
/// what it names there: one module, or several in braces.
fn climb(tokens: &[String], mut i: usize, mut up: usize, found: &mut Vec<String>) {
    let token = |i: usize| tokens.get(i).map_or("", String::as_str);
    while token(i) == "super" {
        if up == 0 {
            return;
        }
        up -= 1;
        i += 1;
        if token(i) == "::" && token(i + 1) == "super" {
            i += 1;
        }
    }
    if token(i) != "::" {
        return;
    }
    i += 1;
    if token(i) == "{" {
        let mut depth = 0;
        let mut begins = true;
        while i < tokens.len() {
            match token(i) {
                "{" => depth += 1,
                "}" if depth == 1 => return,
                "}" => depth -= 1,
                "," => {}
                "super" if begins && depth == 1 => climb(tokens, i, up, found),
                word if begins && depth == 1 && up == 0 => found.push(word.to_owned()),
                _ => {}
            }
            begins = matches!(token(i), "{" | ",");
            i += 1;
        }
    } else if up == 0 {
        found.push(token(i).to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(path: &str, text: &str) -> Vec<(String, String)> {
        edges(Path::new(path), text).into_iter().filter(|(a, b)| forbidden(a, b)).collect()
    }

    fn edge(from: &str, to: &str) -> Vec<(String, String)> {
        vec![(from.to_owned(), to.to_owned())]
    }

    #[test]
    fn made_up_bad_edges_are_seen() {
        let use_error = "use crate::error::Error;";
        assert_eq!(bad("src/storage/local.rs", use_error), edge("storage", "error"));
        assert_eq!(bad("src/backup/mod.rs", use_error), []);
        let grouped =
            "use std::io;\nuse crate::{\n    error::{Error, Kind},\n    restore::plan,\n};";
        assert_eq!(bad("src/archive/push.rs", grouped), edge("archive", "restore"));
        let inside = "fn f() -> u8 { crate::archive::push() }";
        assert_eq!(bad("src/backup/proof.rs", inside), edge("backup", "archive"));
        assert_eq!(bad("src/repo/wal.rs", inside), edge("repo", "archive"));
        assert_eq!(
            bad("src/config/mod.rs", "use crate::repo::Repository;"),
            edge("config", "repo")
        );
        assert_eq!(bad("src/postgres/mod.rs", "use crate::storage;"), edge("postgres", "storage"));
        assert_eq!(bad("src/main.rs", "use pgkeep::{cli, backup::run};"), edge("main", "backup"));
        assert_eq!(bad("src/new/mod.rs", use_error), edge("new", "error"));
    }

    #[test]
    fn climbing_out_by_super_is_seen() {
        let climb = "use super::super::storage::Local;";
        assert_eq!(bad("src/postgres/client/tls.rs", climb), []); // postgres::storage, if it were
        assert_eq!(bad("src/postgres/lsn.rs", climb), edge("postgres", "storage"));
        assert_eq!(bad("src/postgres/mod.rs", "use super::error;"), edge("postgres", "error"));
        let grouped = "use super::{lsn, super::{error::Error, storage}};";
        assert_eq!(bad("src/storage/name.rs", grouped), edge("storage", "error"));
        let test = "fn a() {} mod tests { use super::super::error::Error; }";
        assert_eq!(bad("src/storage/name.rs", test), []); // storage::error
        let test = "fn a() {} mod tests { use super::super::super::error::Error; }";
        assert_eq!(bad("src/storage/name.rs", test), edge("storage", "error"));
    }

    #[test]
    fn what_looks_like_an_edge_and_is_none_passes() {
        for text in
            ["// use crate::error;", "let a = \"crate::error\";", "use other::crate_::error;"]
        {
            assert_eq!(bad("src/storage/name.rs", text), [], "{text}");
        }
        assert_eq!(bad("src/storage/local.rs", "pub(crate) fn f() {} use super::Storage;"), []);
    }
}
