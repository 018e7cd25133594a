//! Files that LiteFS v0.5.14 wrote must decode, and encode again to the same contents.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Decoder, Encoder, Header, ImageBuilder, Trailer, compact, verify};
use crate::{Checksum, Txid};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn ltx_files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("golden directory").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            ltx_files_below(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "ltx") {
            found.push(entry);
        }
    }
}

fn ltx_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    ltx_files_below(&golden(), &mut found);
    found.sort();
    assert!(found.len() >= 28, "golden data is missing: {found:?}");
    found
}

fn decode(bytes: &[u8]) -> (Header, Vec<(u32, Vec<u8>)>, Trailer) {
    let mut decoder = Decoder::new(bytes).expect("header");
    let header = *decoder.header();
    let mut pages = Vec::new();
    let mut page = vec![0; header.page_size as usize];
    while let Some(pgno) = decoder.next_page(&mut page).expect("page") {
        pages.push((pgno, page.clone()));
    }
    let (trailer, rest) = decoder.finish().expect("trailer");
    assert!(rest.is_empty(), "the decoder stops at the end of the file");
    (header, pages, trailer)
}

fn encode(header: &Header, pages: &[(u32, Vec<u8>)], post: Checksum) -> (Vec<u8>, Trailer) {
    let mut encoder = Encoder::new(Vec::new(), header).expect("header");
    for (pgno, page) in pages {
        encoder.write_page(*pgno, page).expect("page");
    }
    let (trailer, bytes) = encoder.finish(post).expect("trailer");
    (bytes, trailer)
}

#[test]
fn every_golden_file_encodes_again_to_the_same_contents_and_trailer() {
    for path in ltx_files() {
        let bytes = fs::read(&path).expect("read");
        let (header, pages, trailer) = decode(&bytes);
        assert!(header.compressed, "{path:?}");
        assert_eq!(header.to_bytes(), bytes[..100], "{path:?}");

        let (again, again_trailer) = encode(&header, &pages, trailer.post_apply);
        assert_eq!(again_trailer, trailer, "{path:?}");
        assert_eq!(decode(&again), (header, pages.clone(), trailer), "{path:?}");
        // The LZ4 frame's own header (magic, flags, block size) must be what LiteFS writes.
        assert_eq!(again[100..107], bytes[100..107], "{path:?}");

        let mut builder = ImageBuilder::new();
        builder.begin(&header, pages.len()).expect("header");
        for (pgno, page) in &pages {
            builder.push_page(*pgno, page).expect("page");
        }
        let image = builder.finish(trailer.post_apply).expect("image");
        assert_eq!(image.trailer, trailer, "{path:?}");
        assert_eq!(image.bytes, again, "both encoders write the same bytes: {path:?}");
    }
}

#[test]
fn an_uncompressed_golden_file_is_its_pages_between_header_and_trailer() {
    let bytes =
        fs::read(golden().join("datadir-n1/dbs/wal.db/ltx/0000000000000006-0000000000000006.ltx")).expect("read");
    let (header, pages, trailer) = decode(&bytes);
    let plain = Header { compressed: false, ..header };
    let (encoded, plain_trailer) = encode(&plain, &pages, trailer.post_apply);
    assert_eq!(encoded.len(), 100 + pages.len() * (4 + 4096) + 4 + 16);
    assert_eq!(decode(&encoded), (plain, pages, plain_trailer));
}

#[test]
fn a_deletion_has_no_pages() {
    let bytes =
        fs::read(golden().join("datadir-n1/dbs/del.db/ltx/0000000000000003-0000000000000003.ltx")).expect("read");
    let summary = verify(&bytes[..]).expect("valid");
    assert_eq!((summary.header.commit, summary.pages, summary.trailer.post_apply), (0, 0, Checksum::EMPTY));
}

#[test]
fn compacting_the_history_gives_the_exported_database() {
    let dir = golden().join("datadir-n1/dbs/wal.db/ltx");
    let inputs: Vec<_> = (1..=6)
        .map(|txid| {
            let name = format!("{}-{}.ltx", Txid(txid), Txid(txid));
            Decoder::new(fs::File::open(dir.join(name)).expect("open")).expect("header")
        })
        .collect();
    let (header, trailer, file) = compact(inputs, true, Vec::new()).expect("compact");
    let (_, pages, _) = decode(&file);
    let database: Vec<u8> = pages.into_iter().flat_map(|(_, page)| page).collect();
    let exported = fs::read(golden().join("export-wal.db.sqlite")).expect("read");
    assert_eq!((header.min_txid, header.max_txid, header.commit), (Txid(1), Txid(6), 25));
    assert_eq!(database, exported);

    let snapshot = fs::read(golden().join("stream-ahead.ltx/000-wal.db-0000000000000001-0000000000000006.ltx"));
    assert_eq!(decode(&snapshot.expect("read")).2.post_apply, trailer.post_apply);
}
