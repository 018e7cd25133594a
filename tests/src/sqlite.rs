//! SQLite clients that nobody here wrote: the `sqlite3` program and Python.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs SQL in the `sqlite3` program with a busy timeout of 30 s; what it prints, without the last line end.
///
/// # Errors
/// What it printed on standard error, when it failed.
pub fn cli(db: &Path, sql: &str) -> Result<String, String> {
    let output = Command::new("sqlite3")
        .args(["-batch", "-bail", "-cmd", ".timeout 30000"])
        .arg(db)
        .arg(sql)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("start sqlite3: {error}"))?;
    text_of(output)
}

/// Runs a Python program with arguments.
///
/// # Errors
/// What it printed on standard error, when it failed.
pub fn python(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new("python3")
        .arg("-c")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("start python3: {error}"))?;
    text_of(output)
}

fn text_of(output: Output) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    Err(format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
