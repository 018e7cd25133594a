//! Hooks: called by the mount for clients' operations, before it answers them.
//!
//! All blocking; the error's errno is SQLite's answer (`ENOSPC` → `SQLITE_FULL`, `EIO` → `SQLITE_IOERR`). They do the I/O on
//! the backing file themselves. (The journal's hooks and the dirty-page tracking are in `rollback`.)
