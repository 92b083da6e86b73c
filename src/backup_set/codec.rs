//! Which codec an object is written with, as policies and manifests spell it: `zstd:1`, `gzip:6`, `none`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A codec and its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Codec {
    /// Zstandard (RFC 8878); objects end in `.zst`.
    Zstd(ZstdLevel),
    /// gzip (RFC 1952), for whoever has nothing else where the backups are read; objects end in `.gz`.
    Gzip(GzipLevel),
    /// None, for tars on a disk that packs by itself; objects have no ending of their own.
    Plain,
}

/// A zstd level from 1 (fast) to 19 (small). Higher ones need more memory than a worker may use.
pub type ZstdLevel = Level<19>;

/// A gzip level from 1 (fast) to 9 (small).
pub type GzipLevel = Level<9>;

/// How hard a codec tries: from 1 (fast) to `SMALLEST` (small).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level<const SMALLEST: u8>(u8);

/// The text names no codec that pglife writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a codec")]
pub struct CodecError(String);

impl<const SMALLEST: u8> Level<SMALLEST> {
    /// The fastest level: of zstd, 245 MB/s a core.
    pub const FASTEST: Self = Self(1);

    /// The level as a number, 1 to `SMALLEST`.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Reads a number without sign and leading zero: there is one spelling for one codec.
    fn parse(text: &str) -> Option<Self> {
        let number: u8 = text.parse().ok()?;
        (number.to_string() == text && (1..=SMALLEST).contains(&number)).then_some(Self(number))
    }
}

impl Codec {
    /// How one that packs may be written, for those who are to.
    pub const FORMS: &str = r#""zstd:1" (fast) to "zstd:19" (small), or "gzip:1" to "gzip:9""#;
    /// How any may be written.
    pub const FORMS_FOR_TARS: &str = r#""zstd:1" (fast) to "zstd:19" (small), "gzip:1" to "gzip:9", or "none""#;

    /// What the names of objects written with it end in, with the dot.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Zstd(_) => ".zst",
            Self::Gzip(_) => ".gz",
            Self::Plain => "",
        }
    }

    /// It, or where it is none one that packs: only a tar says itself where it ends.
    #[must_use]
    pub fn that_packs(self) -> Self {
        match self {
            Self::Plain => Self::default(),
            packs => packs,
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
            Self::Gzip(level) => write!(out, "gzip:{}", level.0),
            Self::Plain => out.write_str("none"),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        let codec = match text.split_once(':') {
            Some(("zstd", level)) => Level::parse(level).map(Self::Zstd),
            Some(("gzip", level)) => Level::parse(level).map(Self::Gzip),
            None if text == "none" => Some(Self::Plain),
            _ => None,
        };
        codec.ok_or_else(|| CodecError(text.to_owned()))
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
        let zstd = (1..=19).map(|level| (Codec::Zstd(Level(level)), format!("zstd:{level}")));
        let gzip = (1..=9).map(|level| (Codec::Gzip(Level(level)), format!("gzip:{level}")));
        for (codec, text) in zstd.chain(gzip).chain([(Codec::Plain, "none".to_owned())]) {
            assert_eq!(text.parse(), Ok(codec));
            assert_eq!(codec.to_string(), text);
            let json = serde_json::to_string(&codec).expect("json");
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Codec>(&json).expect("codec"), codec);
        }
        assert_eq!(Codec::default().to_string(), "zstd:1");
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "", "zstd", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:+1", "zstd:01", "ZSTD:1", "zstd:1 ", "zstd:300",
            "gzip", "gzip:0", "gzip:10", "lz4:1", "none:1", "None",
        ] {
            assert_eq!(text.parse::<Codec>(), Err(CodecError(text.to_owned())), "{text:?}");
        }
    }
}
