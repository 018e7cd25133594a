//! `proxy.passthrough` and `proxy.always-forward`: lists of path globs.

use std::borrow::Cow;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::config::ConfigError;

/// Globs over paths: `*` stands for any characters, also `/`; everything else for itself; the whole path must match.
#[derive(Debug, Clone)]
pub(crate) struct PathGlobs {
    set: GlobSet,
}

impl PathGlobs {
    /// Compiles the list. A glob that can match no path is an error: it is a typing mistake.
    pub fn new(key: &'static str, globs: &[String]) -> Result<Self, ConfigError> {
        let mut builder = GlobSetBuilder::new();
        for glob in globs {
            if !glob.starts_with(['/', '*']) || glob.chars().any(char::is_control) {
                return Err(ConfigError::new(key, format!("{glob:?} matches no path: start with / or *")));
            }
            let compiled = GlobBuilder::new(&only_star(glob)).literal_separator(false).backslash_escape(false).build();
            builder.add(compiled.map_err(|e| ConfigError::new(key, format!("{glob:?}: {e}")))?);
        }
        let set = builder.build().map_err(|e| ConfigError::new(key, e.to_string()))?;
        Ok(Self { set })
    }

    /// Whether the request path matches. Percent-encoding is undone first, as LiteFS does: `/%61pi` is `/api`.
    pub fn matches(&self, path: &str) -> bool {
        !self.set.is_empty() && self.set.is_match(&*decode(path))
    }
}

/// The same glob with everything but `*` escaped, and runs of `*` (special to the library) made one.
fn only_star(glob: &str) -> String {
    let mut out = String::with_capacity(glob.len());
    for (index, literal) in glob.split('*').enumerate() {
        if index > 0 && !out.ends_with('*') {
            out.push('*');
        }
        out.push_str(&globset::escape(literal));
    }
    out
}

fn decode(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        PathGlobs::new("proxy.passthrough", &[glob.to_owned()]).expect("a glob").matches(path)
    }

    #[test]
    fn star_is_the_only_wildcard_and_the_whole_path_must_match() {
        assert!(matches("/static/*", "/static/a/b.css"));
        assert!(matches("*.png", "/x/y.png"));
        assert!(matches("/a**b", "/a/x/b"));
        assert!(matches("/api/*/x", "/api/1/2/x"));
        assert!(!matches("/static", "/static/a"));
        assert!(!matches("*.png", "/x.png/y"));
        assert!(!matches("/a?", "/ab"));
        assert!(matches("/a?", "/a?"));
        assert!(matches("/[x]{y}\\z", "/[x]{y}\\z"));
        assert!(!matches("/a.b", "/aXb"));
    }

    #[test]
    fn percent_encoding_hides_nothing() {
        assert!(matches("/api/*", "/%61pi/%2Fx"));
        assert!(matches("/100%", "/100%"));
        assert!(matches("/ä", "/%C3%A4"));
    }
}
