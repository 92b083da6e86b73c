//! How long a restore takes, by what drills measured, and whether that grows. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::certificate::{Certificate, Verdict};
use super::{Kind, SetId};
use crate::cluster::Lineage;

/// So many measurements make a median.
const MEASUREMENTS: usize = 5;

/// How long a restore of one kind of backup takes: the recovery time that is to be reckoned with (RTO).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RecoveryTime {
    /// The kind of backup.
    pub kind: Kind,
    /// What was measured last, in seconds.
    pub seconds: f64,
    /// When.
    pub measured_at: Timestamp,
    /// The median of the last measurements, this one among them, in seconds.
    pub median_seconds: f64,
    /// How many measurements those are: five at most.
    pub measurements: usize,
    /// By how many percent the last one is above the median of those before it (five at most); None for the first.
    pub change_percent: Option<f64>,
    /// How long it may take, in seconds, where the policy says so.
    pub budget_seconds: Option<f64>,
    /// Whether the last one kept to it.
    pub within_budget: Option<bool>,
}

impl RecoveryTime {
    /// Of backups of one kind in one history, by their certificates in any order. Of each backup the last drill counts, where
    /// it was a proof; a restore of a bad one took some other time.
    pub fn measured<'c>(
        certificates: impl IntoIterator<Item = &'c Certificate>,
        lineage: Lineage,
        kind: Kind,
        budget_seconds: Option<f64>,
    ) -> Option<Self> {
        let mut last: BTreeMap<&SetId, &Certificate> = BTreeMap::new();
        for certificate in certificates {
            if certificate.lineage != lineage || certificate.kind != kind {
                continue;
            }
            let known = last.entry(&certificate.set).or_insert(certificate);
            if known.ended_at < certificate.ended_at {
                *known = certificate;
            }
        }
        let mut proofs: Vec<&Certificate> =
            last.into_values().filter(|certificate| certificate.verdict == Verdict::Proven).collect();
        proofs.sort_by_key(|certificate| (certificate.ended_at, certificate.set.clone()));
        let (newest, before) = proofs.split_last()?;
        let newest_of = |proofs: &[&Certificate]| {
            let proofs = &proofs[proofs.len().saturating_sub(MEASUREMENTS)..];
            proofs.iter().map(|certificate| certificate.rto_seconds).collect::<Vec<f64>>()
        };
        let measured = newest_of(&proofs);
        let change = median(newest_of(before)).filter(|usual| *usual > 0.0);
        Some(Self {
            kind,
            seconds: newest.rto_seconds,
            measured_at: newest.ended_at,
            measurements: measured.len(),
            median_seconds: median(measured)?,
            change_percent: change.map(|usual| (newest.rto_seconds / usual - 1.0) * 100.0),
            budget_seconds,
            within_budget: budget_seconds.map(|budget| newest.rto_seconds <= budget),
        })
    }
}

/// The middle one of some numbers, or the mean of the two in the middle.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    let upper = *numbers.get(middle)?;
    Some(if numbers.len() % 2 == 1 { upper } else { f64::midpoint(numbers[middle - 1], upper) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup_set::certificate::tests::example;

    /// Certificates of as many backups, a day apart.
    fn certificates(seconds: &[f64]) -> Vec<Certificate> {
        let certificate = |(day, rto_seconds): (usize, &f64)| Certificate {
            set: SetId::new(Timestamp::UNIX_EPOCH, Kind::Dump, u32::try_from(day).expect("few")),
            ended_at: Timestamp::from_second(86_400 * i64::try_from(day).expect("few")).expect("a time"),
            rto_seconds: *rto_seconds,
            ..example()
        };
        seconds.iter().enumerate().map(certificate).collect()
    }

    fn measured(certificates: &[Certificate]) -> Option<RecoveryTime> {
        RecoveryTime::measured(certificates, example().lineage, Kind::Dump, Some(60.0))
    }

    #[test]
    fn the_last_is_held_against_those_before_it() {
        assert_eq!(measured(&[]), None);
        let first = measured(&certificates(&[10.0])).expect("one");
        assert_eq!(
            (first.seconds, first.median_seconds, first.measurements, first.change_percent),
            (10.0, 10.0, 1, None)
        );
        let grown = measured(&certificates(&[900.0, 10.0, 10.0, 30.0, 10.0, 20.0, 61.0])).expect("seven");
        assert_eq!((grown.seconds, grown.median_seconds, grown.measurements), (61.0, 20.0, 5));
        // Those before: 10, 10, 30, 10, 20.
        assert_eq!(grown.change_percent.map(f64::round), Some(510.0));
        assert_eq!(grown.within_budget, Some(false));
    }

    #[test]
    fn other_histories_other_kinds_and_bad_backups_do_not_count() {
        let mut all = certificates(&[10.0, 20.0, 30.0, 40.0]);
        all[1].lineage = "7412345678901234568-16".parse().expect("a lineage");
        all[2].kind = Kind::Volume;
        all[3].verdict = Verdict::Bad;
        assert_eq!(measured(&all).map(|found| found.seconds), Some(10.0));
        // A backup that was proven once and then found bad has no restore to speak of.
        let again = Certificate { verdict: Verdict::Bad, ended_at: Timestamp::MAX, ..all[0].clone() };
        all.push(again);
        assert_eq!(measured(&all), None);
    }

    proptest! {
        #[test]
        fn it_lies_between_what_was_measured_and_does_not_depend_on_the_order(
            seconds in proptest::collection::vec(0.1..10_000.0_f64, 1..20), turn in any::<prop::sample::Index>(), factor in 0.5..4.0_f64,
        ) {
            let all = certificates(&seconds);
            let found = measured(&all).expect("some");
            let window = &seconds[seconds.len().saturating_sub(MEASUREMENTS)..];
            prop_assert!(window.iter().any(|one| *one <= found.median_seconds));
            prop_assert!(window.iter().any(|one| *one >= found.median_seconds));
            prop_assert_eq!(Some(&found.seconds), seconds.last());
            prop_assert_eq!(found.measurements, window.len());
            prop_assert_eq!(found.change_percent.is_some(), seconds.len() > 1);
            let mut turned = all.clone();
            turned.rotate_left(turn.index(all.len()));
            prop_assert_eq!(measured(&turned).expect("some"), found.clone());
            // On a machine that is slower by a factor everything grows alike, and the change is the same.
            let slower: Vec<f64> = seconds.iter().map(|one| one * factor).collect();
            let slower = measured(&certificates(&slower)).expect("some");
            prop_assert!((slower.median_seconds - found.median_seconds * factor).abs() < 1e-6 * slower.median_seconds);
            if let (Some(slow), Some(change)) = (slower.change_percent, found.change_percent) {
                prop_assert!((slow - change).abs() < 1e-6 * (1.0 + change.abs()));
            }
        }
    }
}
