//! `fly-replay`: the header by which a node on Fly.io asks the platform to run a request elsewhere.
//!
//! We write it (`instance=<primary>`), and read it from applications that were written for Fly.io.

/// The header's name, in answers.
pub const HEADER: &str = "fly-replay";
/// The header a replayed request carries.
pub const SOURCE_HEADER: &str = "fly-replay-src";
/// Longest value that is looked at, in bytes.
pub const VALUE_BYTES_MAX: usize = 4096;

/// What an application asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlyReplay {
    /// `instance=` (or its synonym `prefer_instance=`): a machine; LiteFS applications name the primary's hostname.
    pub instance: Option<String>,
    /// `region=`: a region, `primary` in some frameworks' helpers.
    pub region: Option<String>,
    /// `app=`: another application altogether: never ours to perform.
    pub app: Option<String>,
    /// `state=`: handed through to the replayed request.
    pub state: Option<String>,
    /// `elsewhere=true`: anywhere but here.
    pub elsewhere: bool,
}

impl FlyReplay {
    /// Whether this cluster can perform it: the request is meant for another node of the same application.
    #[must_use]
    pub fn is_for_this_cluster(&self) -> bool {
        self.app.is_none() && (self.instance.is_some() || self.region.is_some() || self.elsewhere)
    }
}

/// Parses the value of the header: `key=value` pairs separated by `;`. Unknown keys are ignored, the first of a repeated
/// key counts. `None`: not a replay instruction.
#[must_use]
pub fn parse(value: &[u8]) -> Option<FlyReplay> {
    if value.len() > VALUE_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    let mut replay = FlyReplay::default();
    let mut elsewhere = None;
    for part in text.split(';') {
        let Some((key, value)) = part.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if value.is_empty() {
            continue;
        }
        let field = match key.to_ascii_lowercase().as_str() {
            "instance" | "prefer_instance" => &mut replay.instance,
            "region" => &mut replay.region,
            "app" => &mut replay.app,
            "state" => &mut replay.state,
            "elsewhere" => {
                elsewhere.get_or_insert_with(|| value.eq_ignore_ascii_case("true"));
                continue;
            }
            _ => continue,
        };
        field.get_or_insert_with(|| value.to_owned());
    }
    replay.elsewhere = elsewhere == Some(true);
    (replay != FlyReplay::default()).then_some(replay)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_forms_applications_use() {
        let parsed = parse(b"instance=3d8d9014b32d89").expect("a replay");
        assert_eq!(parsed.instance.as_deref(), Some("3d8d9014b32d89"));
        assert!(parsed.is_for_this_cluster());
        assert!(parse(b"region=primary; state=x=1").is_some_and(|r| r.state.as_deref() == Some("x=1")));
        assert!(parse(b"elsewhere=true").is_some_and(|r| r.is_for_this_cluster()));
        assert!(parse(b"app=other;region=fra").is_some_and(|r| !r.is_for_this_cluster()));
    }

    #[test]
    fn anything_else_is_not_a_replay() {
        for value in [&b""[..], b"instance", b"instance=", b"foo=bar", b"elsewhere=false;elsewhere=true", b"\xff=x"] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn an_instance_is_read_back(name in "[a-zA-Z0-9.-]{1,40}") {
            let value = format!("{HEADER_KEY}={name}");
            prop_assert_eq!(parse(value.as_bytes()).and_then(|r| r.instance), Some(name));
        }
    }
    const HEADER_KEY: &str = "instance";
}
