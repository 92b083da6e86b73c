//! Which codec an object is written with, as policies and manifests spell it: `zstd:1`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A codec and its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Codec {
    /// Zstandard (RFC 8878); objects end in `.zst`.
    Zstd(ZstdLevel),
}

/// A zstd level from 1 (fast) to 19 (small). Higher ones need more memory than a worker may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZstdLevel(u8);

/// The text names no codec that pglife writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a codec; write \"zstd:1\" (fast) up to \"zstd:19\" (small)")]
pub struct CodecError(String);

impl ZstdLevel {
    /// The fastest level, and the default: 245 MB/s a core.
    pub const FASTEST: Self = Self(1);
    /// The smallest result.
    pub const SMALLEST: Self = Self(19);

    /// The level as a number, 1 to 19.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Codec {
    /// What the names of objects written with it end in, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Zstd(_) => "zst",
        }
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::Zstd(ZstdLevel::FASTEST)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zstd(level) => write!(out, "zstd:{}", level.0),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        let refuse = || CodecError(text.to_owned());
        let level = text.strip_prefix("zstd:").ok_or_else(refuse)?;
        let number: u8 = level.parse().map_err(|_| refuse())?;
        let level_is_plain = number.to_string() == level; // no sign, no leading zero: one spelling for one codec
        if level_is_plain && (ZstdLevel::FASTEST.0..=ZstdLevel::SMALLEST.0).contains(&number) {
            Ok(Self::Zstd(ZstdLevel(number)))
        } else {
            Err(refuse())
        }
    }
}

impl TryFrom<String> for Codec {
    type Error = CodecError;
    fn try_from(text: String) -> Result<Self, CodecError> {
        text.parse()
    }
}

impl From<Codec> for String {
    fn from(codec: Codec) -> String {
        codec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_reads_back_as_written() {
        for level in 1..=19 {
            let codec: Codec = format!("zstd:{level}").parse().expect("a codec");
            assert_eq!(codec, Codec::Zstd(ZstdLevel(level)));
            assert_eq!(codec.to_string(), format!("zstd:{level}"));
            let json = serde_json::to_string(&codec).expect("json");
            assert_eq!(json, format!("\"zstd:{level}\""));
            assert_eq!(serde_json::from_str::<Codec>(&json).expect("codec"), codec);
        }
        assert_eq!(Codec::default().to_string(), "zstd:1");
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "", "zstd", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:+1", "zstd:01", "ZSTD:1", "gzip:6", "zstd:1 ",
            "zstd:300",
        ] {
            assert_eq!(text.parse::<Codec>(), Err(CodecError(text.to_owned())), "{text:?}");
        }
    }
}
