//! What an application answers as `fly-replay`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use litefs_proxy::fly_replay::{FlyReplay, VALUE_BYTES_MAX, parse};

fuzz_target!(|data: &[u8]| {
    let Some(replay) = parse(data) else { return };
    assert!(data.len() <= VALUE_BYTES_MAX);
    let FlyReplay { instance, region, app, state, elsewhere } = &replay;
    let said = [("instance", instance), ("region", region), ("app", app), ("state", state)];
    let mut text: Vec<String> = said.iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?))).collect();
    if *elsewhere {
        text.push("elsewhere=true".into());
    }
    assert!(!text.is_empty(), "an empty instruction is none");
    let text = text.join(";");
    if text.len() <= VALUE_BYTES_MAX {
        assert_eq!(parse(text.as_bytes()).as_ref(), Some(&replay), "{text:?}");
    }
});
