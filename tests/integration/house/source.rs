//! Rust source cut into words and signs: enough to read imports by, without a parser.

/// The words and signs of a Rust source, without comments, strings and character literals. `::` is
/// one sign.
pub fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if let Some(after) = raw_string(&chars, i) {
            i = after;
        } else if c == '"' {
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else if c.is_alphanumeric() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            found.push(chars[start..i].iter().collect());
        } else if c == ':' && at(i + 1) == ':' {
            found.push("::".to_owned());
            i += 2;
        } else {
            if !c.is_whitespace() {
                found.push(c.to_string());
            }
            i += 1;
        }
    }
    found
}

/// Where the raw string that begins at `start` ends, if one does.
fn raw_string(chars: &[char], start: usize) -> Option<usize> {
    let mut i = start;
    if start > 0 && (chars[start - 1].is_alphanumeric() || chars[start - 1] == '_') {
        return None;
    }
    i += usize::from(chars.get(i) == Some(&'b'));
    if chars.get(i) != Some(&'r') {
        return None;
    }
    i += 1;
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    i += hashes;
    if chars.get(i) != Some(&'"') {
        return None;
    }
    i += 1;
    while i < chars.len() {
        let closed = chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if closed {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(i)
}

/// The tokens without `#[cfg(test)] mod … { … }`.
pub fn outside_tests(tokens: Vec<String>) -> Vec<String> {
    let opening = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let here = tokens[i..].iter().take(opening.len());
        if here.eq(opening.iter()) {
            i = after_block(&tokens, i);
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

/// Where the first block in braces from `start` on ends.
fn after_block(tokens: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return i + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

#[test]
fn words_in_strings_and_comments_are_not_read() {
    let text = r##"
        // use crate::one;
        /* use crate::two; /* nested */ use crate::three */
        let a = "use crate::four \" still";
        let b = r#"use crate::"five""#;
        let c = '"'; let d = '\''; let e: &'static str = b;
        use crate::six;
    "##;
    let found = tokens(text);
    for word in ["one", "two", "three", "four", "five", "nested", "still"] {
        assert!(!found.iter().any(|t| t == word), "{word} in {found:?}");
    }
    assert!(found.ends_with(&["use", "crate", "::", "six", ";"].map(String::from)), "{found:?}");
}

#[test]
fn test_modules_are_cut_out() {
    let text = "fn a() { b() } #[cfg(test)] mod tests { fn c() { d() } } fn e() {}";
    let found = outside_tests(tokens(text)).join(" ");
    assert_eq!(found, "fn a ( ) { b ( ) } fn e ( ) { }");
}
