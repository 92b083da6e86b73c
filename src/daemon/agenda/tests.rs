//! Years of scheduling with a clock of the test's own.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::policy::schedule::PUNCTUAL;
use crate::policy::{OnMissed, Zone};

/// Zones of every kind of transition: none, an hour, half an hour, at midnight, and one whose offset changes by law.
const ZONES: [&str; 10] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Cairo",
    "Asia/Kathmandu",
    "Pacific/Chatham",
    "America/Havana",
    "Africa/Casablanca",
];
const CRONS: [&str; 7] =
    ["30 2 * * *", "0 3 * * 0", "15 */6 * * *", "0 0 1 * *", "45 23 * * 1-5", "30 1 * * *", "0 0 * * *"];

fn at(text: &str) -> Timestamp {
    text.parse().expect("an instant")
}

struct Cluster {
    name: ClusterName,
    schedule: Schedule,
}

impl Cluster {
    fn new(number: usize, cron: &str, zone: &str, on_missed: OnMissed, splay: u64) -> Self {
        let name: ClusterName = format!("c{number}").parse().expect("a name");
        let zone: Zone = zone.parse().expect("a zone");
        let schedule = Schedule::new(&name, cron.parse().expect("cron"), zone, on_missed, Duration::from_secs(splay));
        Self { name, schedule }
    }

    fn entry(&self) -> Entry<'_> {
        Entry { cluster: &self.name, task: Task::Dump, schedule: &self.schedule }
    }

    /// Every slot whose start is in `from..until`, from the first one on.
    fn slots(&self, from: Timestamp, until: Timestamp) -> Vec<Slot> {
        let before = from - SignedDuration::from_secs(1);
        self.schedule.upcoming(before).take_while(|slot| slot.start < until).collect()
    }
}

/// What became of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ran(Timestamp),
    Missed,
}

/// Lives from `from` to `until`, a tick a minute while it is not down. Returns what became of the slots of each cluster.
fn live(
    clusters: &[Cluster],
    from: Timestamp,
    until: Timestamp,
    down: &[(Timestamp, Timestamp)],
) -> Vec<BTreeMap<Timestamp, Fate>> {
    let mut fired = FiredSlots::new();
    let mut fates = vec![BTreeMap::new(); clusters.len()];
    // Most minutes nothing is due: looking again only when something can be keeps a year short. The daemon itself looks always.
    let mut look_at = vec![from; clusters.len()];
    let mut now = from;
    while now < until {
        if let Some((_, back)) = down.iter().find(|(gone, back)| *gone <= now && now < *back) {
            now = *back;
            continue;
        }
        for (number, cluster) in clusters.iter().enumerate() {
            if now < look_at[number] {
                continue;
            }
            let entry = cluster.entry();
            let step = decide(&entry, &fired, now);
            let fate = match step {
                Step::Start(slot) => Some((slot, Fate::Ran(now))),
                Step::Miss { slot, .. } => Some((slot, Fate::Missed)),
                Step::Begin | Step::Wait => None,
            };
            if let Some((slot, fate)) = fate {
                assert!(fates[number].insert(slot.at, fate).is_none(), "{}: {} fired twice", cluster.name, slot.at);
            }
            if let Some(remember) = remembered(&entry, step, now) {
                fired.insert((cluster.name.clone(), "dump".to_owned()), remember);
            }
            assert!(!matches!(decide(&entry, &fired, now), Step::Start(_) | Step::Miss { .. }), "due again at once");
            look_at[number] = cluster.schedule.next_after(now).map_or(until, |slot| slot.start);
        }
        now += SignedDuration::from_secs(60);
    }
    fates
}

/// Holds what became of the slots against what the policy says must.
fn check(
    cluster: &Cluster,
    fates: &BTreeMap<Timestamp, Fate>,
    from: Timestamp,
    until: Timestamp,
    down: &[(Timestamp, Timestamp)],
) -> Result<(), TestCaseError> {
    let is_down = |time: Timestamp| down.iter().find(|(gone, back)| *gone <= time && time < *back);
    // The first minute only begins the schedule.
    let first = from + SignedDuration::from_secs(60);
    let slots = cluster.slots(first, until - SignedDuration::from_secs(120));
    for (slot, next) in slots.iter().zip(slots.iter().skip(1).map(Some).chain([None])) {
        // Ticks are on whole minutes after `from`; a start between two waits for the later one.
        let wait = (from.as_second() - slot.start.as_second()).rem_euclid(60);
        let tick = slot.start + SignedDuration::from_secs(wait);
        let seen = is_down(tick).map_or(tick, |(_, back)| *back);
        if seen >= until - SignedDuration::from_secs(60) {
            continue;
        }
        let replaced = next.is_some_and(|next| next.start <= seen);
        let late = u64::try_from(seen.duration_since(slot.start).as_secs()).expect("later");
        let allowed = match cluster.schedule.on_missed {
            OnMissed::RunOnce { max_lateness } => max_lateness.max(PUNCTUAL),
            OnMissed::Skip => PUNCTUAL,
        };
        let expected = if replaced {
            None
        } else if late <= allowed.as_secs() {
            Some(Fate::Ran(seen))
        } else {
            Some(Fate::Missed)
        };
        prop_assert_eq!(
            fates.get(&slot.at).copied(),
            expected,
            "{} {}: slot {:?}, next {:?}",
            signature(&cluster.schedule),
            cluster.name,
            slot,
            next
        );
    }
    for slot in fates.keys() {
        prop_assert!(
            slots.iter().any(|known| known.at == *slot)
                || *slot >= until - SignedDuration::from_hours(1)
                || *slot <= first,
            "{} fired at {}, which is no slot",
            signature(&cluster.schedule),
            slot
        );
    }
    Ok(())
}

fn downtimes(from: Timestamp, cuts: &[(u32, u32)]) -> Vec<(Timestamp, Timestamp)> {
    let mut down = Vec::new();
    let mut at = from + SignedDuration::from_secs(120);
    for (up_minutes, down_minutes) in cuts {
        let gone = at + SignedDuration::from_secs(i64::from(*up_minutes) * 60);
        let back = gone + SignedDuration::from_secs(i64::from(*down_minutes) * 60);
        down.push((gone, back));
        at = back + SignedDuration::from_secs(60);
    }
    down
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// A year of 25 clusters, each time others: every slot ran, was made up for, or was skipped, as its policy says.
    #[test]
    fn in_a_year_every_slot_is_fired_caught_up_or_skipped(
        kinds in proptest::collection::vec((0..CRONS.len(), 0..ZONES.len(), 0_u64..3, 0_u64..1500), 25),
        cuts in proptest::collection::vec((1_u32..60 * 24 * 40, 1_u32..60 * 30), 8..20),
        start in 0_i64..525_600,
    ) {
        let from = at("2025-06-01T00:00:00Z") + SignedDuration::from_secs(start * 60);
        let until = from + SignedDuration::from_hours(366 * 24);
        let clusters: Vec<Cluster> = kinds.iter().enumerate().map(|(number, (cron, zone, kind, splay))| {
            let on_missed = match kind {
                0 => OnMissed::Skip,
                1 => OnMissed::RunOnce { max_lateness: Duration::from_hours(2) },
                _ => OnMissed::RunOnce { max_lateness: Duration::from_hours(12) },
            };
            Cluster::new(number, CRONS[*cron], ZONES[*zone], on_missed, *splay)
        }).collect();
        let down = downtimes(from, &cuts);
        let fates = live(&clusters, from, until, &down);
        for (cluster, fates) in clusters.iter().zip(&fates) {
            check(cluster, fates, from, until, &down)?;
        }
    }
}

#[test]
fn five_hundred_clusters_live_a_year() {
    let from = at("2026-01-01T00:00:00Z");
    let until = at("2027-01-01T00:00:00Z");
    let clusters: Vec<Cluster> = (0..500)
        .map(|number| {
            let on_missed = if number % 3 == 0 {
                OnMissed::Skip
            } else {
                OnMissed::RunOnce { max_lateness: Duration::from_hours(12) }
            };
            Cluster::new(number, "30 2 * * *", ZONES[number % ZONES.len()], on_missed, 1200)
        })
        .collect();
    let down = downtimes(from, &[(50_000, 700), (90_000, 1500), (120_000, 2), (100_000, 5000)]);
    let fates = live(&clusters, from, until, &down);
    for (cluster, fates) in clusters.iter().zip(&fates) {
        check(cluster, fates, from, until, &down).expect("as the policy says");
    }
    let ran = fates.iter().flat_map(BTreeMap::values).filter(|fate| matches!(fate, Fate::Ran(_))).count();
    assert!(ran > 500 * 355, "{ran}");
}

#[test]
fn a_schedule_that_is_new_or_was_changed_has_nothing_to_make_up_for() {
    let run_once = OnMissed::RunOnce { max_lateness: Duration::from_hours(12) };
    let before = Cluster::new(1, "30 2 * * *", "UTC", run_once, 0);
    let noon = at("2026-05-05T12:00:00Z");
    let mut fired = FiredSlots::new();
    assert_eq!(decide(&before.entry(), &fired, noon), Step::Begin);
    let remember = remembered(&before.entry(), Step::Begin, noon).expect("remembered");
    fired.insert((before.name.clone(), "dump".to_owned()), remember);
    assert_eq!(decide(&before.entry(), &fired, noon), Step::Wait);
    let late = at("2026-05-06T04:00:00Z");
    assert!(
        matches!(decide(&before.entry(), &fired, late), Step::Start(slot) if slot.at == at("2026-05-06T02:30:00Z"))
    );
    // The operator moves it to an hour that has passed: it does not start at once.
    let after = Cluster::new(1, "30 3 * * *", "UTC", run_once, 0);
    assert_eq!(decide(&after.entry(), &fired, late), Step::Begin);
    assert!(matches!(decide(&after.entry(), &fired, at("2026-05-06T03:30:05Z")), Step::Start(_)));
}

#[test]
fn a_tick_for_five_hundred_clusters_is_short() {
    let run_once = OnMissed::RunOnce { max_lateness: Duration::from_hours(12) };
    let clusters: Vec<Cluster> =
        (0..500).map(|number| Cluster::new(number, "30 2 * * *", ZONES[number % ZONES.len()], run_once, 600)).collect();
    let now = at("2026-05-05T12:00:00Z");
    let mut fired = FiredSlots::new();
    for cluster in &clusters {
        let entry = cluster.entry();
        let remember = remembered(&entry, Step::Begin, now - SignedDuration::from_secs(600)).expect("remembered");
        fired.insert((cluster.name.clone(), "dump".to_owned()), remember);
    }
    let shortest = (0..5)
        .map(|_| {
            let begun = std::time::Instant::now();
            for cluster in &clusters {
                assert_eq!(decide(&cluster.entry(), &fired, now), Step::Wait);
            }
            begun.elapsed()
        })
        .min();
    // The limit is wide, for machines with much to do.
    assert!(shortest.expect("five") < std::time::Duration::from_millis(200), "{shortest:?}");
}
