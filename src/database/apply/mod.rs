//! Applying a record from the primary (DESIGN §8).

mod incoming;
mod wal_writer;

use super::ApplyError;
