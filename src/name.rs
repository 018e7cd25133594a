//! Database names: one file name, valid everywhere a name comes in (mount, API, stream, data directory).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The longest name of a database, in bytes: with its longest suffix it stays a valid file name.
pub const NAME_BYTES_MAX: usize = 200;

/// Suffixes of files that belong to a database (SQLite's and ours, COMPAT §3).
pub const SUFFIXES: [&str; 5] = ["-journal", "-wal", "-shm", "-pos", "-lock"];

/// The name of a replicated database: a plain file name. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbName(Arc<str>);

impl DbName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text cannot name a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing, `.` or `..`, or a name that starts with a dot (reserved for the node's own files).
    #[error("a database name must not be empty or start with a dot")]
    Reserved,
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("a database name has at most 200 bytes")]
    TooLong,
    /// A slash, NUL or control character.
    #[error("a database name must not contain '/' or control characters")]
    BadCharacter,
    /// Ends with one of [`SUFFIXES`].
    #[error("a database name must not end with -journal, -wal, -shm, -pos or -lock")]
    Suffix,
}

impl FromStr for DbName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.starts_with('.') {
            return Err(NameError::Reserved);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        if text.chars().any(|c| c == '/' || c.is_control()) {
            return Err(NameError::BadCharacter);
        }
        if SUFFIXES.iter().any(|suffix| text.ends_with(suffix)) {
            return Err(NameError::Suffix);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for DbName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for DbName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_file_names() {
        for good in ["a", "app.db", "Größe.sqlite", "x-walrus"] {
            assert!(good.parse::<DbName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".primary", "a/b", "a\0", "a\nb", "a-wal", "db-journal", "x-shm", "x-pos", "x-lock"]
        {
            assert!(bad.parse::<DbName>().is_err(), "{bad:?}");
        }
        assert_eq!("x".repeat(201).parse::<DbName>(), Err(NameError::TooLong));
    }
}
