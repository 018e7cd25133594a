//! What a name in the mount directory stands for (COMPAT §3).

use std::ffi::OsStr;

use litefs::{DbName, FileKind, NameError};

/// The hidden directory through which the engine opens clients' inodes (ENGINE "Attaching"). Not listed; mode 0700.
pub const ALIAS_DIRECTORY: &str = ".litefs-engine";

/// A special file: no backing file, content made when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Special {
    /// `<db>-pos`: the position, 34 bytes.
    Position(DbName),
    /// `<db>-lock`: symbolic link into the control mount.
    HaltLock(DbName),
    /// `.primary`: the primary's hostname, only on a connected replica.
    Primary,
    /// `.lag`: milliseconds behind the primary, 11 bytes.
    Lag,
}

/// A name of the main mount, by its form alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// Could be a database: it is one once its content or its journal says so; an ordinary file until then.
    Candidate(DbName),
    /// The journal, WAL or wal-index of a database.
    Attached(DbName, FileKind),
    /// One of the files the node makes up.
    Special(Special),
    /// The engine's own directory.
    Alias,
    /// A name that cannot be a database, such as `.hidden`: always an ordinary file.
    Ordinary(String),
}

/// Why a name cannot exist here, as an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// `ENAMETOOLONG`
    TooLong,
    /// `EINVAL`
    Invalid,
}

impl Name {
    /// Sorts a name.
    ///
    /// # Errors
    /// Names that are not UTF-8, hold control characters, or are too long for a database with its suffixes.
    pub fn parse(name: &OsStr) -> Result<Self, BadName> {
        let text = name.to_str().ok_or(BadName::Invalid)?;
        match text {
            ".primary" => return Ok(Self::Special(Special::Primary)),
            ".lag" => return Ok(Self::Special(Special::Lag)),
            ALIAS_DIRECTORY => return Ok(Self::Alias),
            _ => {}
        }
        match text.parse::<DbName>() {
            Ok(db) => Ok(Self::Candidate(db)),
            Err(NameError::TooLong) => Self::parse_suffixed(text).ok_or(BadName::TooLong),
            Err(NameError::BadCharacter) => Err(BadName::Invalid),
            Err(NameError::Suffix) => Self::parse_suffixed(text).ok_or(BadName::Invalid),
            Err(NameError::Reserved) if text.is_empty() || text == "." || text == ".." => Err(BadName::Invalid),
            Err(NameError::Reserved) if text.len() > 255 => Err(BadName::TooLong),
            Err(NameError::Reserved) if text.chars().any(|c| c == '/' || c.is_control()) => Err(BadName::Invalid),
            Err(NameError::Reserved) => Ok(Self::Ordinary(text.to_owned())),
        }
    }

    /// The name of a database's file.
    #[must_use]
    pub const fn of(db: DbName, kind: FileKind) -> Self {
        match kind {
            FileKind::Database => Self::Candidate(db),
            FileKind::Journal | FileKind::Wal | FileKind::Shm => Self::Attached(db, kind),
        }
    }

    fn parse_suffixed(text: &str) -> Option<Self> {
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            if let Some(db) = text.strip_suffix(kind.suffix()) {
                return Some(Self::Attached(db.parse().ok()?, kind));
            }
        }
        if let Some(db) = text.strip_suffix("-pos") {
            return Some(Self::Special(Special::Position(db.parse().ok()?)));
        }
        let db = text.strip_suffix("-lock")?;
        Some(Self::Special(Special::HaltLock(db.parse().ok()?)))
    }
}

/// Whether an ordinary file's name is that of a super-journal: SQLite names them `<db>-mj` and nine hex digits.
#[must_use]
pub fn is_super_journal(name: &str) -> bool {
    name.rsplit_once("-mj")
        .is_some_and(|(db, hex)| !db.is_empty() && !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name of a database's file in the mount.
#[must_use]
pub fn mount_name(db: &DbName, kind: FileKind) -> String {
    format!("{db}{}", kind.suffix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn parse(text: &str) -> Result<Name, BadName> {
        Name::parse(OsStr::new(text))
    }

    fn db(text: &str) -> DbName {
        text.parse().expect("a database name")
    }

    #[test]
    fn every_form_is_told_apart() {
        assert_eq!(parse("app.db"), Ok(Name::Candidate(db("app.db"))));
        assert_eq!(parse("app.db-wal"), Ok(Name::Attached(db("app.db"), FileKind::Wal)));
        assert_eq!(parse("app.db-shm"), Ok(Name::Attached(db("app.db"), FileKind::Shm)));
        assert_eq!(parse("app.db-journal"), Ok(Name::Attached(db("app.db"), FileKind::Journal)));
        assert_eq!(parse("app.db-pos"), Ok(Name::Special(Special::Position(db("app.db")))));
        assert_eq!(parse("app.db-lock"), Ok(Name::Special(Special::HaltLock(db("app.db")))));
        assert_eq!(parse(".primary"), Ok(Name::Special(Special::Primary)));
        assert_eq!(parse(".x.swp"), Ok(Name::Ordinary(".x.swp".into())));
    }

    #[test]
    fn a_long_database_name_still_has_its_suffixes() {
        let name = "x".repeat(200);
        assert_eq!(parse(&format!("{name}-journal")), Ok(Name::Attached(db(&name), FileKind::Journal)));
        assert_eq!(parse(&format!("{name}x")), Err(BadName::TooLong));
    }

    #[test]
    fn impossible_names_are_refused() {
        for bad in ["", ".", "..", "a\nb", "-wal", "a-wal-shm", ".a\tb"] {
            assert_eq!(parse(bad), Err(BadName::Invalid), "{bad:?}");
        }
        assert_eq!(Name::parse(OsStr::from_bytes(b"\xff")), Err(BadName::Invalid));
    }

    #[test]
    fn super_journals_are_recognised_by_sqlites_pattern() {
        assert!(is_super_journal("app.db-mj0123ABC9F"));
        assert!(!is_super_journal("app.db-mjx"));
        assert!(!is_super_journal("-mj00"));
        assert!(!is_super_journal("app-mj"));
    }
}
