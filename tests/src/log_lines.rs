//! Every line that may alarm an operator is in docs/operations.md.

use std::fs;
use std::path::{Path, PathBuf};

/// Source folders of what runs in production.
const SOURCES: [&str; 6] = ["src", "fuse/src", "lease/src", "replication/src", "proxy/src", "cmd/src"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.contains("test") || name == "litefs-bench" {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The string literals of a macro call whose arguments begin at the start of `text`.
fn literals(text: &str) -> Vec<String> {
    let (mut found, mut depth, mut chars) = (Vec::new(), 1, text.chars());
    while let Some(char) = chars.next() {
        match char {
            '(' => depth += 1,
            ')' if depth == 1 => break,
            ')' => depth -= 1,
            '"' => {
                let mut literal = String::new();
                while let Some(char) = chars.next().filter(|char| *char != '"') {
                    literal.push(char);
                    if char == '\\' {
                        literal.extend(chars.next());
                    }
                }
                found.push(literal);
            }
            _ => {}
        }
    }
    found
}

/// The message without what is put in, and only its first clause: how the table names it.
fn head(message: &str) -> &str {
    let end = message.find(['{', '\\', ';']).unwrap_or(message.len());
    message[..end].trim_end_matches([' ', ':', ','])
}

#[test]
fn every_warning_and_error_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documented = fs::read_to_string(root.join("docs/operations.md")).expect("docs/operations.md");
    let mut files = Vec::new();
    for folder in SOURCES {
        sources(&root.join(folder), &mut files);
    }
    let (mut seen, mut missing) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        for (at, mark) in text.match_indices("warn!(").chain(text.match_indices("error!(")) {
            let Some(message) = literals(&text[at + mark.len()..]).pop() else { continue };
            let head = head(&message);
            seen += 1;
            // Messages that are nothing but somebody else's text are documented as that.
            if !head.is_empty() && !documented.contains(head) {
                missing.push(format!("{}: {head}", file.display()));
            }
        }
    }
    assert!(seen > 80, "the sources are where they were");
    assert!(missing.is_empty(), "not in docs/operations.md:\n{}", missing.join("\n"));
}
