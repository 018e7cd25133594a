//! What a peer sends: position maps, tails of records and stream frames. What decodes encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use litefs_replication::wire::{StreamDecoder, decode_position_map, decode_tail, encode_position_map, encode_tail};

fuzz_target!(|data: &[u8]| {
    if let Ok(map) = decode_position_map(data) {
        assert_eq!(decode_position_map(&encode_position_map(&map)).expect("our own map"), map);
    }
    if let Ok(tail) = decode_tail(data) {
        assert_eq!(encode_tail(&tail), data);
    }
    let mut decoder = StreamDecoder::new();
    for piece in data.chunks(7) {
        decoder.push(piece);
        while let Ok(Some(_)) = decoder.next_item() {}
    }
});
