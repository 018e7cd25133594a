//! The litefs command.

mod config;

fn main() {}
