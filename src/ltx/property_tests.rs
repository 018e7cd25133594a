//! Generated files: both encoders against the decoder, the independent crate `litetx`, and damage anywhere.

use std::collections::BTreeMap;
use std::io::{Cursor, Seek};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::{Decoder, Encoder, Header, ImageBuilder, LtxError, compact, compact_spooled, verify};
use crate::sqlite::page::page_checksum;
use crate::{Checksum, Txid};

type Pages = BTreeMap<u32, Vec<u8>>;

fn page(seed: u64, page_size: u32) -> Vec<u8> {
    // Half random, half runs: compressible like a real page.
    let mut random = fastrand::Rng::with_seed(seed);
    (0..page_size).map(|i| if i % 97 < 50 { random.u8(..) } else { 7 }).collect()
}

fn encode(header: &Header, pages: &Pages, post: Checksum) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).expect("header");
    for (pgno, page) in pages {
        encoder.write_page(*pgno, page).expect("page");
    }
    encoder.finish(post).expect("trailer").1
}

fn decode(bytes: &[u8]) -> Result<(Header, Pages, Checksum), LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut pages = Pages::new();
    let mut page = vec![0; header.page_size as usize];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.insert(pgno, page.clone());
    }
    let (trailer, _) = decoder.finish()?;
    Ok((header, pages, trailer.post_apply))
}

prop_compose! {
    fn file()(
        shift in 0_u32..4,
        compressed: bool,
        numbers in prop::collection::btree_set(1_u32..300, 0..40),
        min in 2_u64..1000,
        span in 0_u64..5,
        salts: [u32; 2],
        seed: u64,
    ) -> (Header, Pages) {
        let page_size = 512 << shift;
        let pages: Pages = numbers.into_iter().map(|n| (n, page(seed ^ u64::from(n), page_size))).collect();
        let header = Header {
            compressed,
            page_size,
            commit: 300,
            min_txid: Txid(min),
            max_txid: Txid(min + span),
            timestamp_ms: seed >> 20,
            pre_apply: Checksum(seed | Checksum::FLAG),
            wal_offset: 32,
            wal_size: 4120,
            wal_salts: salts,
            node_id: seed,
        };
        (header, pages)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_the_same((header, pages) in file(), post: u64) {
        let post = Checksum(post | Checksum::FLAG);
        let bytes = encode(&header, &pages, post);
        prop_assert_eq!(decode(&bytes).expect("valid"), (header, pages.clone(), post));

        let mut builder = ImageBuilder::new();
        builder.begin(&header, pages.len()).expect("header");
        for (pgno, page) in &pages {
            prop_assert_eq!(builder.push_page(*pgno, page).expect("page"), page_checksum(*pgno, page));
        }
        prop_assert_eq!(&builder.finish(post).expect("image").bytes[..], &bytes[..]);
    }

    #[test]
    fn litetx_reads_the_same((header, pages) in file(), post: u64) {
        let post = Checksum(post | Checksum::FLAG);
        // That crate refuses the header fields it does not know of.
        let header = Header { wal_offset: 0, wal_size: 0, wal_salts: [0; 2], node_id: 0, timestamp_ms: 1_000, ..header };
        let bytes = encode(&header, &pages, post);
        let (mut decoder, theirs) = litetx::Decoder::new(&bytes[..]).expect("litetx header");
        prop_assert_eq!(theirs.max_txid.into_inner(), header.max_txid.0);
        let mut read = Pages::new();
        let mut page = vec![0; header.page_size as usize];
        while let Some(number) = decoder.decode_page(&mut page).expect("litetx page") {
            read.insert(number.into_inner(), page.clone());
        }
        let trailer = decoder.finish().expect("litetx trailer");
        prop_assert_eq!(read, pages);
        prop_assert_eq!(trailer.post_apply_checksum.into_inner(), post.0);
    }

    #[test]
    fn a_damaged_byte_never_goes_unnoticed((header, pages) in file(), at: prop::sample::Index, bit in 0_u8..8) {
        let mut bytes = encode(&header, &pages, Checksum::EMPTY);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // The LZ4 frame may encode the same contents in two ways; anything else must be refused.
        if let Ok(read) = decode(&bytes) {
            prop_assert_eq!(read, (header, pages, Checksum::EMPTY));
        }
    }

    #[test]
    fn a_file_cut_short_is_refused((header, pages) in file(), at: prop::sample::Index) {
        let bytes = encode(&header, &pages, Checksum::EMPTY);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(verify(cut).expect_err("cut").is_damage());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(mut bytes: Vec<u8>, (header, _) in file()) {
        let _ = verify(&bytes[..]);
        bytes.splice(0..0, header.to_bytes());
        prop_assert!(verify(&bytes[..]).is_err());
    }
}

/// A history of `count` transactions after TXID `first - 1`, and the database it leads to.
fn history(first: u64, count: u64) -> (Vec<Vec<u8>>, Pages, u32) {
    let mut random = fastrand::Rng::with_seed(count);
    let (mut files, mut all, mut pre) = (Vec::new(), Pages::new(), Checksum(Checksum::FLAG | 1));
    let mut commit = 0;
    for txid in first..first + count {
        let before = std::mem::replace(&mut commit, random.u32(20..60));
        all.retain(|pgno, _| *pgno <= commit);
        // Every page a database grows by is in the transaction.
        let mut numbers: Vec<u32> = (0..random.u32(1..9)).map(|_| random.u32(1..=commit)).collect();
        numbers.extend(before + 1..=commit);
        let changed: Pages = numbers.into_iter().map(|pgno| (pgno, page(random.u64(..), 512))).collect();
        all.extend(changed.clone());
        let post = Checksum(random.u64(..) | Checksum::FLAG);
        let header = Header {
            compressed: txid % 2 == 0,
            page_size: 512,
            commit,
            min_txid: Txid(txid),
            max_txid: Txid(txid),
            pre_apply: pre,
            timestamp_ms: txid,
            ..Header::default()
        };
        files.push(encode(&header, &changed, post));
        pre = post;
    }
    (files, all, commit)
}

#[test]
fn compaction_keeps_the_last_version_of_every_page() {
    let (files, all, commit) = history(5, 40);
    let inputs = files.iter().map(|file| Decoder::new(&file[..]).expect("header")).collect();
    let (header, trailer, merged) = compact(inputs, true, Vec::new()).expect("compact");
    assert_eq!((header.min_txid, header.max_txid, header.commit), (Txid(5), Txid(44), commit));
    assert_eq!(header.timestamp_ms, 44);
    assert!(decode(&merged).expect("valid") == (header, all, trailer.post_apply), "the merged file is the database");
    assert_eq!(trailer.post_apply, verify(&files[39][..]).expect("valid").trailer.post_apply);
}

#[test]
fn any_number_of_files_is_compacted_through_temporary_ones() {
    let (files, all, _) = history(2, 300);
    let (header, _, merged) = compact_spooled(
        files.len(),
        |i| Ok(Cursor::new(files[i].clone())),
        || Ok(Cursor::new(Vec::new())),
        |file| file.rewind(),
        false,
        Vec::new(),
    )
    .expect("compact");
    assert_eq!((header.min_txid, header.max_txid), (Txid(2), Txid(301)));
    assert!(decode(&merged).expect("valid").1 == all, "the merged file is the database");
}

#[test]
fn files_with_a_gap_or_a_fork_are_not_merged() {
    let (files, ..) = history(5, 3);
    let open = |i: usize| Decoder::new(&files[i][..]).expect("header");
    assert!(matches!(compact(vec![open(0), open(2)], false, Vec::new()), Err(LtxError::NotContiguous(_))));
    assert!(matches!(compact::<&[u8], _>(vec![], false, Vec::new()), Err(LtxError::NotContiguous(_))));

    let (header, pages, post) = decode(&files[1]).expect("valid");
    let forked = encode(&Header { pre_apply: Checksum::EMPTY, ..header }, &pages, post);
    let inputs = vec![open(0), Decoder::new(&forked[..]).expect("header"), open(2)];
    assert!(matches!(compact(inputs, false, Vec::new()), Err(LtxError::NotContiguous(_))));
}

#[test]
fn a_snapshot_needs_every_page_and_its_own_checksum() {
    let header = Header { page_size: 512, commit: 3, min_txid: Txid(1), max_txid: Txid(4), ..Header::default() };
    let pages: Pages = (1..=3).map(|n| (n, page(n.into(), 512))).collect();
    let sum = pages.iter().fold(Checksum::EMPTY, |sum, (n, page)| sum ^ page_checksum(*n, page));
    assert_eq!(decode(&encode(&header, &pages, sum)).expect("valid"), (header, pages.clone(), sum));

    let mut encoder = Encoder::new(Vec::new(), &header).expect("header");
    encoder.write_page(1, &pages[&1]).expect("page 1");
    assert!(matches!(encoder.write_page(3, &pages[&3]), Err(LtxError::Page { pgno: 3, .. })));
    assert!(matches!(encoder.finish(sum), Err(LtxError::Page { .. })));

    let mut encoder = Encoder::new(Vec::new(), &header).expect("header");
    for (pgno, page) in &pages {
        encoder.write_page(*pgno, page).expect("page");
    }
    assert!(matches!(encoder.finish(Checksum::EMPTY), Err(LtxError::PostApply { .. })));
}

#[test]
fn the_lock_page_is_left_out_of_snapshots_and_refused() {
    // The page size makes page 16385 the lock page; order alone is tested, so the pages are tiny in number.
    let header = Header {
        page_size: 65_536,
        commit: 16_386,
        min_txid: Txid(2),
        max_txid: Txid(2),
        pre_apply: Checksum::EMPTY,
        ..Header::default()
    };
    let mut encoder = Encoder::new(Vec::new(), &header).expect("header");
    let page = vec![0; 65_536];
    assert!(matches!(encoder.write_page(16_385, &page), Err(LtxError::Page { pgno: 16_385, .. })));
    encoder.write_page(16_386, &page).expect("the page behind it");
    assert!(matches!(encoder.write_page(16_386, &page), Err(LtxError::Page { .. })));
    assert!(matches!(encoder.write_page(16_387, &page), Err(LtxError::Page { .. })));
    assert!(matches!(encoder.write_page(1, &page[1..]), Err(LtxError::PageLength { .. })));
}
