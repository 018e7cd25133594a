use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use litefs::{Checksum, DbName, Pos, Txid};
use proptest::prelude::*;

use super::{
    CHUNK_BYTES, Frame, Item, StreamDecoder, WireError, decode_position_map, encode_position_map, end_ltx, put_chunks,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn items(bytes: &[u8], step: usize) -> Result<Vec<Item>, WireError> {
    let mut decoder = StreamDecoder::new();
    let mut items = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Some(item) = decoder.next_item()? {
            items.push(item);
        }
    }
    assert!(decoder.at_boundary(), "bytes are left over");
    Ok(items)
}

/// Writes items with the chunk boundaries they came with.
fn encode(items: &[Item]) -> BytesMut {
    let mut out = BytesMut::new();
    for item in items {
        match item {
            Item::Frame(frame) => frame.encode(&mut out),
            Item::Chunk(chunk) => {
                out.put_u16(u16::try_from(chunk.len()).expect("a chunk"));
                out.put_slice(chunk);
            }
            Item::LtxEnd => end_ltx(&mut out),
        }
    }
    out
}

/// Every LTX file of a stream, as `<index of the frame>-<database>-…`.
fn ltx_files(items: &[Item]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut frames = 0;
    for item in items {
        match item {
            Item::Frame(Frame::Ltx { name }) => {
                files.push((format!("{frames:03}-{name}-"), Vec::new()));
                frames += 1;
            }
            Item::Frame(_) => frames += 1,
            Item::Chunk(chunk) => files.last_mut().expect("inside a file").1.extend_from_slice(chunk),
            Item::LtxEnd => {}
        }
    }
    files
}

#[test]
fn golden_streams_decode_and_encode_to_the_same_bytes() {
    for name in ["from-empty", "resume", "badsum", "ahead", "filter", "shutdown", "handoff"] {
        let bytes = std::fs::read(golden(&format!("stream-{name}.bin"))).expect(name);
        let whole = items(&bytes, usize::MAX).expect(name);
        assert!(!whole.is_empty(), "{name}");
        assert_eq!(items(&bytes, 1).expect(name), whole, "{name} byte by byte");
        assert_eq!(encode(&whole), bytes, "{name}");
    }
}

#[test]
fn golden_streams_carry_the_golden_files() {
    for name in ["from-empty", "resume", "badsum", "ahead"] {
        let bytes = std::fs::read(golden(&format!("stream-{name}.bin"))).expect(name);
        let files = ltx_files(&items(&bytes, 1000).expect(name));
        let mut paths: Vec<_> = std::fs::read_dir(golden(&format!("stream-{name}.ltx")))
            .expect(name)
            .map(|entry| entry.expect(name).path())
            .collect();
        paths.sort();
        assert_eq!(files.len(), paths.len(), "{name}");
        for ((start, bytes), path) in files.iter().zip(paths) {
            let file_name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            assert!(file_name.starts_with(start.as_str()), "{file_name} is not {start}");
            assert_eq!(*bytes, std::fs::read(&path).expect(name), "{file_name}");
        }
    }
}

#[test]
fn golden_handoff_names_the_session() {
    let bytes = std::fs::read(golden("stream-handoff.bin")).expect("golden");
    let lease_id = "950d76df-9df7-5421-e481-4a39bbc26c88".to_owned();
    assert!(items(&bytes, 7).expect("a stream").contains(&Item::Frame(Frame::Handoff { lease_id })));
}

#[test]
fn golden_position_maps_decode_and_encode_to_the_same_bytes() {
    for (name, databases) in [("empty", 0), ("resume", 2), ("badsum", 1), ("ahead", 1)] {
        let bytes = std::fs::read(golden(&format!("posmap-{name}.bin"))).expect(name);
        let positions = decode_position_map(&bytes).expect(name);
        assert_eq!(positions.len(), databases, "{name}");
        assert_eq!(encode_position_map(&positions), bytes, "{name}");
    }
}

#[test]
fn lengths_beyond_their_bound_are_refused_before_anything_is_read() {
    let frame = |head: &[u32]| {
        let mut out = BytesMut::new();
        head.iter().for_each(|word| out.put_u32(*word));
        items(&out, usize::MAX)
    };
    let name = |len| WireError::TooLong { what: "a database name", len, max: 200 };
    assert_eq!(frame(&[1, 0, 0, 201]), Err(name(201)));
    assert_eq!(frame(&[4, u32::MAX]), Err(name(u64::from(u32::MAX))));
    assert_eq!(frame(&[5, 1025]), Err(WireError::TooLong { what: "the lease ID", len: 1025, max: 1024 }));
    assert_eq!(frame(&[6, 0, 0, 1 << 30]), Err(name(1 << 30)));
    assert_eq!(frame(&[0]), Err(WireError::UnknownFrame(0)));
    assert_eq!(frame(&[8]), Err(WireError::UnknownFrame(8)));
    assert_eq!(frame(&[4, 1, u32::from_be_bytes(*b"/\0\0\0")]), Err(WireError::Name(litefs::NameError::BadCharacter)));
    assert_eq!(frame(&[5, 1, 0xff00_0000]), Err(WireError::NotUtf8("the lease ID")));
}

#[test]
fn bad_position_maps_are_refused() {
    let map = |parts: &[&[u8]]| decode_position_map(&parts.concat());
    let entry = |name: &[u8]| [&(name.len() as u32).to_be_bytes()[..], name, &[0; 16]].concat();
    assert_eq!(map(&[&[0, 0, 0]]), Err(WireError::Truncated("the position map")));
    assert_eq!(map(&[&u32::MAX.to_be_bytes()]), Err(WireError::Truncated("the position map")));
    assert_eq!(map(&[&[0, 0, 0, 1], &entry(b"a")[..20]]), Err(WireError::Truncated("the position map")));
    assert_eq!(map(&[&[0, 0, 0, 0, 0]]), Err(WireError::TrailingBytes(1)));
    assert_eq!(map(&[&[0, 0, 0, 2], &entry(b"a"), &entry(b"a")]), Err(WireError::Duplicate("a".into())));
    assert!(matches!(map(&[&[0, 0, 0, 1], &entry(b"../a")]), Err(WireError::Name(_))));
}

fn any_name() -> impl Strategy<Value = DbName> {
    "[a-zß][a-z0-9.ü]{0,40}".prop_map(|name| name.parse().expect("a name"))
}

fn any_items() -> impl Strategy<Value = Vec<Item>> {
    let file = (any_name(), proptest::collection::vec(any::<u8>(), 0..3 * CHUNK_BYTES)).prop_map(|(name, bytes)| {
        let chunks = bytes.chunks(CHUNK_BYTES).map(|chunk| Item::Chunk(chunk.to_vec().into()));
        [Item::Frame(Frame::Ltx { name })].into_iter().chain(chunks).chain([Item::LtxEnd]).collect()
    });
    let frame = prop_oneof![
        Just(Frame::Ready),
        Just(Frame::End),
        any_name().prop_map(|name| Frame::DropDatabase { name }),
        "[ -~]{0,100}".prop_map(|lease_id| Frame::Handoff { lease_id }),
        (any::<u64>(), any_name()).prop_map(|(txid, name)| Frame::HighWaterMark { txid: Txid(txid), name }),
        any::<i64>().prop_map(|timestamp_ms| Frame::Heartbeat { timestamp_ms }),
    ]
    .prop_map(|frame| vec![Item::Frame(frame)]);
    proptest::collection::vec(prop_oneof![frame, file], 0..6).prop_map(|groups| groups.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_comes_back_however_it_is_cut(sent in any_items(), step in 1_usize..70_000) {
        prop_assert_eq!(items(&encode(&sent), step), Ok(sent));
    }

    #[test]
    fn chunks_of_a_file_put_together_are_the_file(file in proptest::collection::vec(any::<u8>(), 0..100_000)) {
        let mut out = BytesMut::new();
        Frame::Ltx { name: "a".parse().expect("a name") }.encode(&mut out);
        put_chunks(&mut out, &file);
        end_ltx(&mut out);
        let files = ltx_files(&items(&out, 4096).expect("a stream"));
        prop_assert_eq!(&files[0].1, &file);
    }

    #[test]
    fn garbage_is_an_error_or_waits_for_more(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = StreamDecoder::new();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_item() {}
        let _ = decode_position_map(&bytes);
    }

    #[test]
    fn every_position_map_comes_back(
        positions in proptest::collection::btree_map(any_name(), (any::<u64>(), any::<u64>()), 0..20)
    ) {
        let positions: BTreeMap<_, _> = positions
            .into_iter()
            .map(|(name, (txid, checksum))| (name, Pos::new(Txid(txid), Checksum(checksum))))
            .collect();
        prop_assert_eq!(decode_position_map(&encode_position_map(&positions)), Ok(positions));
    }
}
