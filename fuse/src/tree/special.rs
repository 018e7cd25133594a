//! The files the node makes up: positions, HALT locks, `.primary`, `.lag`.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType};
use parking_lot::Mutex;

use super::Tree;
use crate::attributes::made_up;
use crate::names::Special;
use crate::node::SPECIAL_INO;

/// Inode numbers of special files, given out when they are first asked for and kept.
#[derive(Default)]
pub struct Specials(Mutex<(HashMap<Special, u64>, Vec<Special>)>);

impl Specials {
    /// The inode number of a special file.
    pub fn number(&self, special: &Special) -> u64 {
        let (numbers, files) = &mut *self.0.lock();
        if let Some(number) = numbers.get(special) {
            return *number;
        }
        let number = SPECIAL_INO + files.len() as u64;
        files.push(special.clone());
        numbers.insert(special.clone(), number);
        number
    }

    /// The special file of an inode number.
    pub fn get(&self, ino: u64) -> Option<Special> {
        let index = usize::try_from(ino.checked_sub(SPECIAL_INO)?).ok()?;
        self.0.lock().1.get(index).cloned()
    }
}

impl Tree {
    /// What a special file holds at this moment; `None` when it does not exist now.
    pub(crate) fn special_content(&self, special: &Special) -> Option<Vec<u8>> {
        match special {
            Special::Position(db) => {
                let database = self.store.database(db.as_str())?;
                // A commit that a client has seen succeed is in the position it reads afterwards.
                let pos = database.position_now().unwrap_or_else(|error| {
                    tracing::warn!(%db, %error, "capture for reading the position; showing the last one");
                    database.pos()
                });
                Some(format!("{pos}\n").into_bytes())
            }
            Special::HaltLock(db) => {
                self.store.database(db.as_str())?;
                Some(self.control_dir.join(format!("{db}-lock")).as_os_str().as_bytes().to_vec())
            }
            Special::Primary => Some(format!("{}\n", self.info.primary_hostname()?).into_bytes()),
            Special::Lag => Some(lag_text(self.info.lag_ms())),
        }
    }

    /// Attributes of a special file; `None` when it does not exist now. Does not capture: the size never depends on it.
    pub(crate) fn special_attributes(&self, special: &Special) -> Option<FileAttr> {
        let ino = self.specials.number(special);
        let (kind, perm, size) = match special {
            Special::Position(db) => {
                self.store.database(db.as_str())?;
                (FileType::RegularFile, 0o444, 34)
            }
            Special::HaltLock(_) => (FileType::Symlink, 0o777, self.special_content(special)?.len() as u64),
            Special::Primary => (FileType::RegularFile, 0o444, self.special_content(special)?.len() as u64),
            Special::Lag => (FileType::RegularFile, 0o444, 11),
        };
        let at = if kind == FileType::Symlink { UNIX_EPOCH } else { SystemTime::now() };
        Some(made_up(ino, kind, perm, size, at))
    }
}

/// `%+010d\n`: a sign and nine digits.
fn lag_text(lag_ms: i64) -> Vec<u8> {
    let lag_ms = lag_ms.clamp(-999_999_999, 999_999_999);
    format!("{lag_ms:+010}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_has_eleven_bytes() {
        assert_eq!(lag_text(0), b"+000000000\n");
        assert_eq!(lag_text(-5), b"-000000005\n");
        assert_eq!(lag_text(i64::MAX), b"+999999999\n");
    }

    #[test]
    fn numbers_of_special_files_lead_back_to_them() {
        let specials = Specials::default();
        let lag = specials.number(&Special::Lag);
        let primary = specials.number(&Special::Primary);
        assert_ne!(lag, primary);
        assert_eq!(specials.get(lag), Some(Special::Lag));
        assert_eq!(specials.number(&Special::Primary), primary);
        assert_eq!(specials.get(primary + 1), None);
    }
}
