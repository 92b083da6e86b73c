//! `--sample n/t`: a part of the backups a day, all of them in `t` days. Pure.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;

use crate::backup_set::{Digest, SetId};

/// Which share of the backups is verified on a day.
///
/// Each backup has a fixed place among `of` places, given by its id alone. Day by day the next `share` places are taken, so
/// that every backup is verified at least once in any `of / share` days (rounded up), whatever comes and goes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    share: u16,
    of: u16,
}

/// The text is no sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sample: two numbers such as 1/7, a seventh of the backups each day")]
pub struct SampleError(String);

impl Sample {
    /// Whether `set` is looked at on `day`.
    pub fn takes(self, set: &SetId, day: Date) -> bool {
        let (share, of) = (u64::from(self.share), u64::from(self.of));
        let place = Digest::of(set.as_str().as_bytes()).number() % of;
        // Days since year 0, so that the number is never negative: year 0 is a leap year of the calendar jiff uses.
        let days = (day - Date::constant(0, 1, 1)).get_days();
        let first = u64::try_from(days).unwrap_or(0) * share % of;
        (place + of - first) % of < share
    }
}

impl FromStr for Sample {
    type Err = SampleError;
    fn from_str(text: &str) -> Result<Self, SampleError> {
        let error = || SampleError(text.to_owned());
        let (share, of) = text.split_once('/').ok_or_else(error)?;
        let (share, of) = (share.parse().map_err(|_| error())?, of.parse().map_err(|_| error())?);
        if share == 0 || share > of { Err(error()) } else { Ok(Self { share, of }) }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.share, self.of)
    }
}

#[cfg(test)]
mod tests {
    use jiff::{Timestamp, ToSpan as _};
    use proptest::prelude::*;

    use super::*;
    use crate::backup_set::Kind;

    fn set(random: u32) -> SetId {
        SetId::new(Timestamp::UNIX_EPOCH, Kind::Dump, random)
    }

    proptest! {
        #[test]
        fn everything_is_covered_in_time_and_not_much_more_than_a_share_each_day(
            share in 1_u16..20, more in 0_u16..40, start in 0_i32..200_000,
        ) {
            let sample = Sample { share, of: share + more };
            let days = i32::from(sample.of.div_ceil(share));
            let first = Date::constant(1970, 1, 1) + start.days();
            let sets: Vec<SetId> = (0..400_u32).map(|random| set(random.wrapping_mul(2_654_435_761))).collect();
            let mut seen = vec![false; sets.len()];
            for day in 0..days {
                for (seen, set) in seen.iter_mut().zip(&sets) {
                    *seen |= sample.takes(set, first + day.days());
                }
            }
            prop_assert!(seen.iter().all(|seen| *seen), "{sample}: not all of them within {days} days");
        }
    }

    #[test]
    fn a_seventh_a_day_is_about_that() {
        let sample: Sample = "1/7".parse().expect("a sample");
        let day = Date::constant(2026, 11, 24);
        let taken = (0..7000).filter(|&random| sample.takes(&set(random), day)).count();
        assert!((800..1200).contains(&taken), "{taken}");
    }

    #[test]
    fn samples_read_as_written() {
        assert_eq!("2/30".parse::<Sample>().expect("a sample").to_string(), "2/30");
        assert!("1/1".parse::<Sample>().expect("a sample").takes(&set(5), Date::constant(2026, 1, 1)));
        for text in ["", "1", "0/7", "8/7", "1/0", "a/b", "-1/7", "1/7/2"] {
            assert!(text.parse::<Sample>().is_err(), "{text}");
        }
    }
}
