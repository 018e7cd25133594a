//! Retiring a wal-index: from then on no SQLite uses it, nor the WAL beside it.
//!
//! A client that has `-wal` and `-shm` open with FUSE passthrough reaches them for as long as it keeps them open, even when the mount is gone
//! and every process of the node with it: a commit at `synchronous=NORMAL` would be acknowledged, and nobody would ever capture it.
//! But whenever SQLite begins a transaction it looks at the index's header (`walIndexReadHdr`), and refuses a version that it
//! does not know with `SQLITE_CANTOPEN`; and it does not upgrade to writing when the header has changed. So the header of an index
//! that is at its end gets another version. All else in it stays: it still says what is committed.

use std::fs::File;
use std::io;

use super::header::IndexHeader;
use super::stored::{agreed, header_copies};
use crate::os;

/// The version that no SQLite knows.
pub(super) const RETIRED_VERSION: u32 = u32::MAX;

/// Retires the index in `file`, the backing file or one opened with passthrough. Returns whether it was in use until now. The caller holds WRITE
/// if that is possible: else a transaction that is just ending may undo it.
///
/// # Errors
/// Reading and writing.
pub fn retire(file: &File) -> io::Result<bool> {
    let copies = header_copies(file)?;
    // Without a valid header a client would rebuild the index from the WAL.
    let header = copies.as_ref().and_then(agreed).unwrap_or(IndexHeader::EMPTY);
    let retired = [header.encode_version(RETIRED_VERSION); 2];
    if copies == Some(retired) {
        return Ok(false);
    }
    let bytes: Vec<u8> = retired.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect();
    // In one piece: nobody who reads both copies under WRITE finds that they differ.
    os::write_all_at("shm.retire", file, &bytes, 0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::wal_index::header::HEADER_WORDS;
    use crate::sqlite::wal_index::stored::StoredIndex;

    fn header() -> IndexHeader {
        IndexHeader { change: 7, page_size: 4096, mx_frame: 12, page_count: 5, salt: [1, 2], ..IndexHeader::EMPTY }
    }

    fn file_with(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        os::write_all_at("test.write", &file, bytes, 0).expect("written");
        file
    }

    #[test]
    fn what_a_retired_index_says_can_still_be_read() {
        let one: Vec<u8> = header().encode().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let file = file_with(&[one.clone(), one, vec![0; 40]].concat());
        assert!(retire(&file).expect("retired"));
        assert!(!retire(&file).expect("retired before"));
        let stored = StoredIndex::open(file.try_clone().expect("a descriptor")).expect("read").expect("valid");
        assert_eq!(*stored.header(), header());
        let copies = header_copies(&file).expect("read").expect("long enough");
        assert_eq!(copies.map(|words| IndexHeader::decode(&words)), [None, None], "no client takes it");
    }

    #[test]
    fn one_that_was_cut_short_is_believed_and_completed() {
        let bytes = |words: [u32; HEADER_WORDS]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let (before, retired) = (bytes(header().encode()), bytes(header().encode_version(RETIRED_VERSION)));
        for copies in [[&before, &retired], [&retired, &before]] {
            let file = file_with(&copies.map(Vec::as_slice).concat());
            let stored = StoredIndex::open(file.try_clone().expect("a descriptor")).expect("read").expect("valid");
            assert_eq!(*stored.header(), header());
            assert!(retire(&file).expect("retired"));
            assert!(!retire(&file).expect("retired before"));
            assert_eq!(*StoredIndex::open(file).expect("read").expect("valid").header(), header());
        }
        // A writer that died between its copies: SQLite rebuilds such an index.
        let other = bytes(IndexHeader { change: 8, mx_frame: 13, ..header() }.encode());
        assert!(StoredIndex::open(file_with(&[before, other].concat())).expect("read").is_none());
    }

    #[test]
    fn a_damaged_or_empty_index_is_retired_as_well() {
        for bytes in [&[][..], &[0; 3], &[0xa5; 136]] {
            let file = file_with(bytes);
            assert!(retire(&file).expect("retired"));
            let stored = StoredIndex::open(file).expect("read").expect("valid");
            assert_eq!(stored.header().mx_frame, 0);
        }
    }

    #[test]
    fn sqlite_refuses_it_and_its_open_connections_do_from_their_next_transaction_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).expect("opened");
        let sql = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)";
        connection.execute_batch(sql).expect("filled");
        let upgrading = rusqlite::Connection::open(&path).expect("opened");
        upgrading.execute_batch("BEGIN; SELECT * FROM t").expect("a reader");
        let shm = File::options().read(true).write(true).open(dir.path().join("db-shm")).expect("the shm");
        assert!(retire(&shm).expect("retired"));
        for (client, expected) in
            [(&connection, rusqlite::ErrorCode::CannotOpen), (&upgrading, rusqlite::ErrorCode::DatabaseBusy)]
        {
            let error = client.execute("INSERT INTO t VALUES(2)", []).expect_err("refused");
            assert_eq!(error.sqlite_error_code(), Some(expected), "{error}");
        }
        let new = rusqlite::Connection::open(&path).expect("opened");
        let error = new.query_row("SELECT count(*) FROM t", [], |_| Ok(())).expect_err("refused");
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen), "{error}");
    }
}
