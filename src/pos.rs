//! Positions: which transaction a database is at, and what its contents are worth there (COMPAT §1).

use std::fmt;
use std::ops::BitXor;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A transaction ID. `Txid(0)` means "no transaction yet"; printed as 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Txid(pub u64);

impl Txid {
    /// No transaction yet.
    pub const ZERO: Self = Self(0);

    /// The ID of the transaction after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The ID of the transaction before this one (0 stays 0).
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Whether no transaction has happened.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// The checksum of a page or a database, or of a file. A valid one always has its top bit set, so it is never zero;
/// `Checksum(0)` means "none" (an empty database, the pre-apply checksum of a snapshot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum(pub u64);

impl Checksum {
    /// The bit that every valid checksum carries.
    pub const FLAG: u64 = 0x8000_0000_0000_0000;
    /// No checksum.
    pub const NONE: Self = Self(0);
    /// The checksum of a database without pages (post-apply of a deletion; the start of the rolling XOR).
    pub const EMPTY: Self = Self(Self::FLAG);

    /// Whether the flag bit is set, which every checksum of something has.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::FLAG != 0
    }
}

impl BitXor for Checksum {
    type Output = Self;

    /// Adds a page to a database checksum, or takes it out again; the flag bit stays set (COMPAT §1).
    fn bitxor(self, other: Self) -> Self {
        Self((self.0 ^ other.0) | Self::FLAG)
    }
}

/// A transaction ID with the checksum of the whole database after it.
/// Text form: `<txid>/<checksum>`, 33 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pos {
    /// The last transaction.
    pub txid: Txid,
    /// The database checksum after it; [`Checksum::NONE`] before the first.
    pub checksum: Checksum,
}

impl Pos {
    /// Before the first transaction.
    pub const ZERO: Self = Self { txid: Txid::ZERO, checksum: Checksum::NONE };

    /// A position from its parts.
    #[must_use]
    pub const fn new(txid: Txid, checksum: Checksum) -> Self {
        Self { txid, checksum }
    }

    /// Whether no transaction has happened.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.txid.is_zero()
    }
}

/// Text that is not a TXID, checksum or position.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not {expected}")]
pub struct ParsePosError {
    text: String,
    expected: &'static str,
}

fn parse_hex16(text: &str, expected: &'static str) -> Result<u64, ParsePosError> {
    let error = || ParsePosError { text: text.chars().take(64).collect(), expected };
    if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(error());
    }
    u64::from_str_radix(text, 16).map_err(|_| error())
}

/// Writes 16 hex digits. (The proxy writes some for every request; the general formatter is slow at padding them.)
fn write_hex16(number: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let digit = |shift: usize| {
        let value = (number >> shift) as u8 & 15;
        value + if value < 10 { b'0' } else { b'a' - 10 }
    };
    let text: [u8; 16] = std::array::from_fn(|at| digit(60 - 4 * at));
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex16(self.0, f)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex16(self.0, f)
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}

impl FromStr for Txid {
    type Err = ParsePosError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex16(text, "a TXID of 16 hex digits").map(Self)
    }
}

impl FromStr for Checksum {
    type Err = ParsePosError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex16(text, "a checksum of 16 hex digits").map(Self)
    }
}

impl FromStr for Pos {
    type Err = ParsePosError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error =
            || ParsePosError { text: text.chars().take(64).collect(), expected: "a position <txid>/<checksum>" };
        let (txid, checksum) = text.split_once('/').ok_or_else(error)?;
        Ok(Self { txid: txid.parse().map_err(|_| error())?, checksum: checksum.parse().map_err(|_| error())? })
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Txid, Checksum, Pos);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_prints_as_33_characters_and_parses_back() {
        let pos = Pos::new(Txid(26), Checksum(0x8000_0000_0000_00ff));
        assert_eq!(pos.to_string(), "000000000000001a/80000000000000ff");
        assert_eq!(pos.to_string().parse::<Pos>(), Ok(pos));
    }

    #[test]
    fn wrong_text_is_refused_with_what_was_expected() {
        for text in ["", "1a", "000000000000001g", "+00000000000001a", "000000000000001a0"] {
            assert!(text.parse::<Txid>().is_err(), "{text:?}");
        }
        let error = "x".parse::<Pos>().expect_err("no position");
        assert_eq!(error.to_string(), "\"x\" is not a position <txid>/<checksum>");
    }

    #[test]
    fn taking_a_page_out_again_gives_the_checksum_before() {
        let (db, page) = (Checksum(Checksum::FLAG | 7), Checksum(Checksum::FLAG | 9));
        assert_eq!((db ^ page) ^ page, db);
        assert!((db ^ page).is_valid());
    }
}
