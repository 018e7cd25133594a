//! Which litefs this is.

/// `LiteFS <version>, commit=<commit>`: the version of the package, and the commit where git knew it.
pub fn text() -> String {
    format!("LiteFS v{}, commit={}", env!("CARGO_PKG_VERSION"), env!("LITEFS_COMMIT"))
}
