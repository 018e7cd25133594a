//! Stamps the commit into the binary: from `LITEFS_COMMIT` (image builds), else from git, else "unknown".

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=LITEFS_COMMIT");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&head).exists()
    {
        println!("cargo::rerun-if-changed={head}");
    }
    let commit = std::env::var("LITEFS_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = commit.or_else(|| git(&["rev-parse", "HEAD"])).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=LITEFS_COMMIT={commit}");
}

/// What git prints, on one line; `None` without git or repository.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
