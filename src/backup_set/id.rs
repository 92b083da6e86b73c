//! Set ids: `<UTC yyyymmddThhmmssZ>-<kind>-<6 chars>`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a backup set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Globals and every database, as `pg_dump` wrote them.
    Dump,
    /// The data container's volumes, as a tar.
    Volume,
}

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Volume => "volume",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = SetIdError;
    fn from_str(text: &str) -> Result<Self, SetIdError> {
        match text {
            "dump" => Ok(Self::Dump),
            "volume" => Ok(Self::Volume),
            _ => Err(SetIdError(text.to_owned())),
        }
    }
}

/// The id of a backup set, such as `20261122T023000Z-dump-k3x9qa`. The time in it is when the run began, for people; the
/// order of sets is the completion time in `COMMIT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetId {
    text: String,
    kind: Kind,
}

/// The text is not a set id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a backup set id (<yyyymmddThhmmssZ>-<kind>-<6 chars>)")]
pub struct SetIdError(String);

/// Digits and lower-case letters that are not mistaken for one another: 32 of them, five bits each.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl SetId {
    /// An id for a run of `kind` that begins at `started`; `entropy` makes it distinct from others of that second.
    pub fn new(started: Timestamp, kind: Kind, entropy: u32) -> Self {
        let time = started.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
        let suffix: String =
            (0..6).map(|place| char::from(ALPHABET[((entropy >> (place * 5)) & 31) as usize])).collect();
        Self { text: format!("{time}-{kind}-{suffix}"), kind }
    }

    /// What the set holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// When the run began; nothing where the digits are no date.
    pub fn started_at(&self) -> Option<Timestamp> {
        let (time, _) = self.text.split_once('-')?;
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
        time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl FromStr for SetId {
    type Err = SetIdError;
    fn from_str(text: &str) -> Result<Self, SetIdError> {
        let refuse = || SetIdError(text.to_owned());
        let mut parts = text.splitn(3, '-');
        let (Some(time), Some(kind), Some(suffix)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(refuse());
        };
        let shaped = time.len() == 16
            && time.bytes().enumerate().all(|(at, byte)| match at {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
        let distinct = suffix.len() == 6 && suffix.bytes().all(|byte| ALPHABET.contains(&byte));
        if shaped && distinct {
            Ok(Self { text: text.to_owned(), kind: kind.parse().map_err(|_| refuse())? })
        } else {
            Err(refuse())
        }
    }
}

impl TryFrom<String> for SetId {
    type Error = SetIdError;
    fn try_from(text: String) -> Result<Self, SetIdError> {
        text.parse()
    }
}

impl From<SetId> for String {
    fn from(id: SetId) -> String {
        id.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_shows_time_and_kind() {
        let started: Timestamp = "2026-11-22T02:30:00Z".parse().expect("a time");
        let id = SetId::new(started, Kind::Dump, 0);
        assert_eq!(id.as_str(), "20261122T023000Z-dump-000000");
        assert_eq!(id.started_at(), Some(started));
        let no_date: SetId = "99999999T999999Z-dump-000000".parse().expect("the shape of an id");
        assert_eq!(no_date.started_at(), None);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "latest",
            "20261122T023000Z-dump-00000",
            "20261122T023000Z-tape-000000",
            "20261122T023000Z-dump-../000",
        ] {
            assert!(text.parse::<SetId>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_read_back(second in 0i64..4_000_000_000, entropy: u32, volume: bool) {
            let kind = if volume { Kind::Volume } else { Kind::Dump };
            let id = SetId::new(Timestamp::from_second(second).expect("in range"), kind, entropy);
            prop_assert_eq!(id.as_str().parse::<SetId>().expect("an id"), id);
        }

        #[test]
        fn rubbish_never_panics(text in "\\PC{0,40}") {
            text.parse::<SetId>().ok();
        }
    }
}
