//! The litefs command.
fn main() {}
