//! Listing the root directory.

use std::collections::HashMap;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::FileType;
use litefs::FileKind;
use parking_lot::Mutex;

use super::Tree;
use crate::names::{Special, mount_name};
use crate::node::ROOT_INO;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: FileType,
    /// Name.
    pub name: String,
}

/// Open directories: what each listed when it was opened or rewound, so that offsets stay right while files come and go.
#[derive(Default)]
pub struct Listings {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Vec<DirEntry>>>>,
}

impl Listings {
    /// A handle for a new open directory.
    pub fn open(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The listing behind a handle; made anew at the beginning.
    ///
    /// # Errors
    /// When making it fails.
    pub fn get(
        &self,
        handle: u64,
        offset: u64,
        list: impl FnOnce() -> Result<Vec<DirEntry>>,
    ) -> Result<Arc<Vec<DirEntry>>> {
        if offset > 0
            && let Some(listing) = self.open.lock().get(&handle)
        {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(list()?);
        self.open.lock().insert(handle, Arc::clone(&listing));
        Ok(listing)
    }

    /// The directory is closed.
    pub fn close(&self, handle: u64) {
        self.open.lock().remove(&handle);
    }
}

impl Tree {
    /// The names of the root directory (COMPAT §3): HALT locks and the alias directory are not listed.
    pub(crate) fn list(&self) -> Result<Vec<DirEntry>> {
        let directory = |name: &str| DirEntry { ino: ROOT_INO, kind: FileType::Directory, name: name.to_owned() };
        let mut entries = vec![directory("."), directory("..")];
        self.list_databases(&mut entries);
        for (special, name) in [(Special::Primary, ".primary"), (Special::Lag, ".lag")] {
            if self.special_attributes(&special).is_some() {
                entries.push(self.special_entry(&special, name.to_owned()));
            }
        }
        let listed: std::collections::HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        for file in std::fs::read_dir(&self.files_dir)? {
            let file = file?;
            if let Ok(name) = file.file_name().into_string()
                && file.file_type().is_ok_and(|kind| kind.is_file())
                && !listed.contains(&name)
            {
                entries.push(self.file_entry(name));
            }
        }
        Ok(entries)
    }

    fn list_databases(&self, entries: &mut Vec<DirEntry>) {
        for database in self.store.databases() {
            let db = database.name();
            for kind in FileKind::ALL {
                if self.database_path(db, kind).exists() {
                    entries.push(self.file_entry(mount_name(db, kind)));
                }
            }
            entries.push(self.special_entry(&Special::Position(db.clone()), format!("{db}-pos")));
        }
    }

    fn file_entry(&self, name: String) -> DirEntry {
        DirEntry { ino: self.nodes.number(&name), kind: FileType::RegularFile, name }
    }

    fn special_entry(&self, special: &Special, name: String) -> DirEntry {
        DirEntry { ino: self.specials.number(special), kind: FileType::RegularFile, name }
    }
}
