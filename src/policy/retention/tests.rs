//! What stays, by example; and against a model that knows nothing of how it is decided.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::cluster::PgMajor;

const DAY: i64 = 86_400;

fn at(text: &str) -> Timestamp {
    text.parse().expect("an instant")
}

fn zone(name: &str) -> Zone {
    name.parse().expect("a zone")
}

fn lineage(number: u64) -> Lineage {
    Lineage { system_identifier: 1000 + number, major: PgMajor::since_10(13 + u16::try_from(number).expect("small")) }
}

fn rules(last: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Retention {
    Retention { last: NonZeroU32::new(last).expect("not zero"), daily, weekly, monthly, yearly }
}

fn pin(set: &SetId, until: Option<Timestamp>) -> Pinning {
    Pinning::Present(Pin::new(set.clone(), "the audit", Timestamp::UNIX_EPOCH, until).expect("a pin"))
}

/// The `number`th set of a history. Ids are in no order: names must not matter.
fn set(number: u32, lineage: Lineage, kind: Kind, completed_at: Timestamp) -> SetFacts {
    let id = SetId::new(Timestamp::UNIX_EPOCH, kind, number.wrapping_mul(0x2545_F491));
    SetFacts { id, lineage, completed_at, proven: false, sound: true, pin: Pinning::Absent, parent: None }
}

fn dumps(times: &[&str]) -> Vec<SetFacts> {
    (0..).zip(times).map(|(number, time)| set(number, lineage(0), Kind::Dump, at(time))).collect()
}

fn told(sets: &[SetFacts], terms: &Terms<'_>, now: &str) -> String {
    decide(sets, terms, at(now))
        .iter()
        .map(|decision| {
            let words = match &decision.verdict {
                Verdict::Keep(reasons) => {
                    format!("keep   {}", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                }
                Verdict::Delete(expiry) => format!("delete {expiry}"),
            };
            format!("{} {} {} {words}\n", decision.set.completed_at, decision.set.lineage, decision.set.kind())
        })
        .collect::<Vec<_>>()
        .concat()
}

#[test]
fn every_reason_is_told() {
    // On the clock of Berlin: the 1st is a Sunday, the end of week 44; midnight is at 23:00Z.
    let mut sets = dumps(&[
        "2025-12-29T12:00:00Z",
        "2026-01-02T12:00:00Z",
        "2026-10-31T22:59:59Z",
        "2026-10-31T23:00:00Z",
        "2026-11-01T22:00:00Z",
        "2026-11-01T23:00:00Z",
        "2026-11-02T12:00:00Z",
        "2026-11-03T12:00:00Z",
    ]);
    sets[0].pin = pin(&sets[0].id, Some(at("2026-11-01T00:00:00Z")));
    sets[1].pin = pin(&sets[1].id, None);
    sets[3].proven = true;
    sets.reverse();
    let berlin = zone("Europe/Berlin");
    let terms = Terms { rules: Some(&rules(1, 3, 2, 2, 1)), zone: &berlin, keep_old: KEEP_OLD };
    insta::assert_snapshot!(told(&sets, &terms, "2026-11-03T13:00:00Z"), @r"
    2025-12-29T12:00:00Z 1000-13 dump delete no rule keeps it, 6 newer stay; its pin ended 2026-11-01T00:00:00Z
    2026-01-02T12:00:00Z 1000-13 dump keep   pinned: the audit
    2026-10-31T22:59:59Z 1000-13 dump keep   month 2026-10
    2026-10-31T23:00:00Z 1000-13 dump keep   newest proven
    2026-11-01T22:00:00Z 1000-13 dump keep   day 2026-11-01, week 2026-W44
    2026-11-01T23:00:00Z 1000-13 dump delete no rule keeps it, 2 newer stay
    2026-11-02T12:00:00Z 1000-13 dump keep   day 2026-11-02
    2026-11-03T12:00:00Z 1000-13 dump keep   last 1/1, day 2026-11-03, week 2026-W45, month 2026-11, year 2026
    ");
}

#[test]
fn without_rules_everything_stays() {
    let sets = dumps(&["2001-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]);
    let terms = Terms { rules: None, zone: &Zone::UTC, keep_old: KEEP_OLD };
    let decisions = decide(&sets, &terms, at("2030-01-01T00:00:00Z"));
    assert!(decisions.iter().all(|decision| decision.reasons() == [Reason::NoRules]));
}

#[test]
fn weeks_are_iso_weeks() {
    // Monday 29 December 2025 to Thursday 1 January 2026 are one week, of 2026.
    let sets = dumps(&["2025-12-28T12:00:00Z", "2025-12-29T12:00:00Z", "2026-01-01T12:00:00Z"]);
    let terms = Terms { rules: Some(&rules(1, 0, 9, 0, 0)), zone: &Zone::UTC, keep_old: KEEP_OLD };
    insta::assert_snapshot!(told(&sets, &terms, "2026-01-02T00:00:00Z"), @r"
    2025-12-28T12:00:00Z 1000-13 dump keep   week 2025-W52
    2025-12-29T12:00:00Z 1000-13 dump delete no rule keeps it, 1 newer stay
    2026-01-01T12:00:00Z 1000-13 dump keep   last 1/1, week 2026-W01
    ");
}

#[test]
fn a_set_from_the_future_takes_nobodys_place() {
    let mut sets = dumps(&["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"]);
    let known = decide(
        &sets,
        &Terms { rules: Some(&rules(1, 2, 0, 0, 0)), zone: &Zone::UTC, keep_old: KEEP_OLD },
        at("2026-11-02T01:00:00Z"),
    )
    .iter()
    .map(|decision| decision.verdict.clone())
    .collect::<Vec<_>>();
    let ahead = dumps(&["2027-06-01T00:00:00Z", "2027-06-02T00:00:00Z", "2027-06-03T00:00:00Z"]);
    sets.extend(ahead.into_iter().map(|set| SetFacts { proven: true, ..set }));
    let terms = Terms { rules: Some(&rules(1, 2, 0, 0, 0)), zone: &Zone::UTC, keep_old: KEEP_OLD };
    let decisions = decide(&sets, &terms, at("2026-11-02T01:00:00Z"));
    assert_eq!(decisions[..2].iter().map(|decision| decision.verdict.clone()).collect::<Vec<_>>(), known);
    assert!(decisions[2..].iter().all(|decision| decision.reasons() == [Reason::AheadOfClock]));
}

#[test]
fn the_way_back_from_an_upgrade_stays_until_the_new_lineage_is_proven_and_some_time_has_passed() {
    let mut sets = dumps(&["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z"]);
    for (number, day) in (10..).zip(["2026-11-04T00:00:00Z", "2026-11-05T00:00:00Z", "2026-11-06T00:00:00Z"]) {
        sets.push(set(number, lineage(4), Kind::Dump, at(day)));
    }
    let terms = Terms { rules: Some(&rules(1, 2, 0, 0, 0)), zone: &Zone::UTC, keep_old: KEEP_OLD };
    let mut stages = format!("nothing is proven\n{}", told(&sets, &terms, "2027-11-06T01:00:00Z"));
    sets[3].proven = true;
    stages += &format!("proven, too early\n{}", told(&sets, &terms, "2026-11-05T23:59:59Z"));
    stages += &format!("proven, and some time has passed\n{}", told(&sets, &terms, "2026-11-06T00:00:00Z"));
    insta::assert_snapshot!(stages, @r"
    nothing is proven
    2026-11-01T00:00:00Z 1000-13 dump delete no rule keeps it, 2 newer stay
    2026-11-02T00:00:00Z 1000-13 dump keep   day 2026-11-02
    2026-11-03T00:00:00Z 1000-13 dump keep   last before 1004-17, of which no backup is proven, last 1/1, day 2026-11-03
    2026-11-04T00:00:00Z 1004-17 dump delete no rule keeps it, 2 newer stay
    2026-11-05T00:00:00Z 1004-17 dump keep   day 2026-11-05
    2026-11-06T00:00:00Z 1004-17 dump keep   last 1/1, day 2026-11-06
    proven, too early
    2026-11-01T00:00:00Z 1000-13 dump delete no rule keeps it, 2 newer stay
    2026-11-02T00:00:00Z 1000-13 dump keep   day 2026-11-02
    2026-11-03T00:00:00Z 1000-13 dump keep   last before 1004-17, until 2026-11-06T00:00:00Z, last 1/1, day 2026-11-03
    2026-11-04T00:00:00Z 1004-17 dump keep   newest proven
    2026-11-05T00:00:00Z 1004-17 dump keep   day 2026-11-05
    2026-11-06T00:00:00Z 1004-17 dump keep   last 1/1, day 2026-11-06
    proven, and some time has passed
    2026-11-01T00:00:00Z 1000-13 dump delete no rule keeps it, 1 newer stay
    2026-11-02T00:00:00Z 1000-13 dump delete no rule keeps it, 1 newer stay
    2026-11-03T00:00:00Z 1000-13 dump keep   last 1/1
    2026-11-04T00:00:00Z 1004-17 dump keep   newest proven
    2026-11-05T00:00:00Z 1004-17 dump keep   day 2026-11-05
    2026-11-06T00:00:00Z 1004-17 dump keep   last 1/1, day 2026-11-06
    ");
}

#[test]
fn the_kinds_do_not_hold_each_others_place() {
    let mut sets = dumps(&["2026-11-01T00:00:00Z"]);
    sets.extend((1..9).map(|number| set(number, lineage(0), Kind::Volume, at("2026-11-02T00:00:00Z"))));
    let terms = Terms { rules: Some(&rules(1, 1, 1, 1, 1)), zone: &Zone::UTC, keep_old: KEEP_OLD };
    let decisions = decide(&sets, &terms, at("2026-11-03T00:00:00Z"));
    assert!(!decisions[0].is_deletion());
    assert_eq!(decisions.iter().filter(|decision| decision.is_deletion()).count(), 7);
}

#[test]
fn a_pin_that_cannot_be_read_holds() {
    let mut sets = dumps(&["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"]);
    sets[0].pin = Pinning::Unreadable;
    let terms = Terms { rules: Some(&rules(1, 0, 0, 0, 0)), zone: &Zone::UTC, keep_old: KEEP_OLD };
    assert_eq!(decide(&sets, &terms, at("2026-11-03T00:00:00Z"))[0].reasons(), [Reason::PinUnreadable]);
}

/// What a set is held by, said about each set from the definitions, one set and one rule at a time. Slow and plain on
/// purpose; periods are texts, made by another part of the calendar's library.
mod model {
    use super::*;

    fn newer(a: &SetFacts, b: &SetFacts) -> bool {
        (a.completed_at, a.id.as_str()) > (b.completed_at, b.id.as_str())
    }

    fn believed(set: &SetFacts, now: Timestamp) -> bool {
        set.completed_at.as_second() - now.as_second() <= 600
    }

    pub(super) fn rules_that_hold(
        set: &SetFacts,
        all: &[SetFacts],
        terms: &Terms<'_>,
        now: Timestamp,
    ) -> BTreeSet<&'static str> {
        let mut held = BTreeSet::new();
        match &set.pin {
            Pinning::Present(pin) if pin.until.is_some_and(|until| until <= now) => {}
            Pinning::Absent => {}
            Pinning::Present(_) | Pinning::Unreadable => {
                held.insert("pinned");
            }
        }
        if terms.rules.is_none() {
            held.insert("no-rules");
        }
        if !believed(set, now) {
            held.insert("ahead-of-clock");
            return held;
        }
        let all: Vec<&SetFacts> = all.iter().filter(|other| believed(other, now)).collect();
        let alike = |other: &SetFacts| other.lineage == set.lineage && other.kind() == set.kind();
        if set.proven && !all.iter().any(|other| alike(other) && other.proven && newer(other, set)) {
            held.insert("newest-proven");
        }
        let newer_alike: Vec<&&SetFacts> = all.iter().filter(|other| alike(other) && newer(other, set)).collect();
        if set.sound && !newer_alike.is_empty() && newer_alike.iter().all(|other| !other.sound) {
            held.insert("newest-sound");
        }
        // Sets of other lineages that no set of this lineage is newer than.
        let of_later_lineages: Vec<&SetFacts> = all
            .iter()
            .copied()
            .filter(|other| other.lineage != set.lineage)
            .filter(|other| !all.iter().any(|own| own.lineage == set.lineage && newer(own, other)))
            .collect();
        let seconds_since_end = now.as_second()
            - all
                .iter()
                .filter(|own| own.lineage == set.lineage)
                .map(|own| own.completed_at.as_second())
                .max()
                .unwrap_or(0);
        let over = of_later_lineages.iter().any(|other| other.proven)
            && seconds_since_end >= i64::try_from(terms.keep_old.as_secs()).expect("short");
        let newest_of_its_kind = !all.iter().any(|other| alike(other) && newer(other, set));
        if newest_of_its_kind && !of_later_lineages.is_empty() && !over {
            held.insert("before-upgrade");
        }
        let Some(rules) = terms.rules else { return held };
        if all.iter().filter(|other| alike(other) && newer(other, set)).count() < rules.last.get() as usize {
            held.insert("last");
        }
        let beside: Vec<&SetFacts> = all
            .iter()
            .copied()
            .filter(|other| {
                let later = of_later_lineages.iter().any(|known| known.id == other.id);
                alike(other) || (over && later && other.kind() == set.kind())
            })
            .collect();
        for (word, count, format) in [
            ("daily", rules.daily, "%Y-%m-%d"),
            ("weekly", rules.weekly, "%G-W%V"),
            ("monthly", rules.monthly, "%Y-%m"),
            ("yearly", rules.yearly, "%Y"),
        ] {
            let period = |of: &SetFacts| terms.zone.show(of.completed_at).strftime(format).to_string();
            let is_newest = !beside.iter().any(|other| newer(other, set) && period(other) == period(set));
            let later: BTreeSet<String> =
                beside.iter().map(|other| period(other)).filter(|other| *other > period(set)).collect();
            if is_newest && later.len() < count as usize {
                held.insert(word);
            }
        }
        held
    }
}

/// One thing that happens to a cluster.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that may be so")]
struct Event {
    /// Since the event before, on the clock that the tool sees; it may jump back.
    seconds: i64,
    /// The run failed: nothing is committed.
    failed: bool,
    /// From here on the cluster is of the other lineage.
    upgrade: bool,
    kind: Kind,
    proven: bool,
    sound: bool,
    /// Pinned for so many days; 0 is without end.
    pinned: Option<i64>,
    /// A copy of volumes builds on the one before.
    incremental: bool,
}

fn events(most: usize) -> impl Strategy<Value = Vec<Event>> {
    let seconds = prop_oneof![
        20 => 0i64..2 * DAY,
        4 => Just(DAY),
        2 => 0i64..60,
        2 => 0i64..90 * DAY,
        1 => -400 * DAY..0,
        1 => 0i64..800 * DAY,
    ];
    let event = (
        seconds,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.05),
        prop_oneof![4 => Just(Kind::Dump), 1 => Just(Kind::Volume)],
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.7),
        prop::option::weighted(0.1, 0i64..60),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(seconds, failed, upgrade, kind, proven, sound, pinned, incremental)| Event {
            seconds,
            failed,
            upgrade,
            kind,
            proven,
            sound,
            pinned,
            incremental,
        });
    prop::collection::vec(event, 0..most)
}

/// What was committed in a history, and the clock at its end.
fn committed(events: &[Event]) -> (Vec<SetFacts>, Timestamp) {
    let (mut clock, mut now_lineage) = (at("2026-03-01T02:30:00Z"), 0);
    let mut sets = Vec::new();
    for (number, event) in (0..).zip(events) {
        clock = clock.checked_add(SignedDuration::from_secs(event.seconds)).expect("in range");
        // Two lineages: an upgrade, and sometimes the way back.
        now_lineage = (now_lineage + u64::from(event.upgrade)) % 2;
        if event.failed {
            continue;
        }
        let (proven, sound) = (event.proven, event.sound || event.kind == Kind::Dump);
        let mut made = SetFacts { proven, sound, ..set(number, lineage(now_lineage), event.kind, clock) };
        if let Some(days) = event.pinned {
            let until = clock.checked_add(SignedDuration::from_secs(days * DAY)).expect("in range");
            made.pin = pin(&made.id, Some(until).filter(|_| days > 0));
        }
        if event.incremental && event.kind == Kind::Volume {
            let before = sets.iter().rfind(|set: &&SetFacts| set.lineage == made.lineage && set.kind() == Kind::Volume);
            made.parent = before.map(|before| before.id.clone());
        }
        sets.push(made);
    }
    (sets, clock)
}

fn some_rules() -> impl Strategy<Value = Option<Retention>> {
    let some = (1u32..5, 0u32..9, 0u32..6, 0u32..14, 0u32..4)
        .prop_map(|(last, daily, weekly, monthly, yearly)| rules(last, daily, weekly, monthly, yearly));
    prop_oneof![1 => Just(None), 20 => some.prop_map(Some)]
}

fn zones() -> impl Strategy<Value = Zone> {
    prop::sample::select(vec!["UTC", "Europe/Berlin", "Pacific/Apia", "America/St_Johns", "America/Havana"])
        .prop_map(zone)
}

fn keep_olds() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(KEEP_OLD), Just(Duration::ZERO), Just(Duration::from_hours(24 * 200))]
}

fn kept(decisions: &[Decision<'_>]) -> Vec<SetFacts> {
    decisions.iter().filter(|decision| !decision.is_deletion()).map(|decision| decision.set.clone()).collect()
}

/// What must hold of every decision about `sets`.
fn check(sets: &[SetFacts], terms: &Terms<'_>, now: Timestamp) -> Result<Vec<SetFacts>, TestCaseError> {
    let decisions = decide(sets, terms, now);
    prop_assert_eq!(decisions.len(), sets.len());
    prop_assert!(decisions.is_sorted_by_key(|decision| decision.set.completed_at));
    let deleted: Vec<&SetFacts> =
        decisions.iter().filter(|decision| decision.is_deletion()).map(|decision| decision.set).collect();
    prop_assert!(terms.rules.is_some() || deleted.is_empty(), "nothing goes without rules");
    for set in &deleted {
        let held = match &set.pin {
            Pinning::Absent => false,
            Pinning::Unreadable => true,
            Pinning::Present(pin) => pin.until.is_none_or(|until| now < until),
        };
        prop_assert!(!held, "a pinned set goes: {set:?}");
        prop_assert!(set.completed_at <= now + CLOCK_TOLERANCE.as_signed(), "a set from the future goes: {set:?}");
        // Newer ones of its lineage and kind stay, as many as `last` says, and none of them is from the future.
        let stay: Vec<&SetFacts> = decisions
            .iter()
            .filter(|decision| !decision.is_deletion())
            .map(|decision| decision.set)
            .filter(|other| other.lineage == set.lineage && other.kind() == set.kind())
            .filter(|other| (other.completed_at, &other.id) > (set.completed_at, &set.id))
            .filter(|other| other.completed_at <= now + CLOCK_TOLERANCE.as_signed())
            .collect();
        let floor = terms.rules.map_or(0, |rules| rules.last.get() as usize);
        prop_assert!(stay.len() >= floor, "{} newer than {set:?} stay, the floor is {floor}", stay.len());
        prop_assert!(!set.proven || stay.iter().any(|other| other.proven), "the newest proven set goes: {set:?}");
        prop_assert!(!set.sound || stay.iter().any(|other| other.sound), "the newest sound set goes: {set:?}");
    }
    // What a set builds on is there as long as the set is.
    let staying: BTreeSet<&SetId> =
        decisions.iter().filter(|decision| !decision.is_deletion()).map(|decision| &decision.set.id).collect();
    for set in sets.iter().filter(|set| staying.contains(&set.id)) {
        let parent = set.parent.as_ref().filter(|parent| sets.iter().any(|set| set.id == **parent));
        prop_assert!(parent.is_none_or(|parent| staying.contains(parent)), "{:?} goes, {:?} stays", parent, set);
    }
    // Each set that stays says why.
    prop_assert!(decisions.iter().all(|decision| decision.is_deletion() == decision.reasons().is_empty()));
    // Pruning twice is pruning once.
    let left = kept(&decisions);
    prop_assert!(decide(&left, terms, now).iter().all(|decision| !decision.is_deletion()), "a second pruning deletes");
    // It does not grow without bound.
    if let Some(rules) = terms.rules {
        let most = rules.last.get() + rules.daily + rules.weekly + rules.monthly + rules.yearly + 2;
        let mut groups: BTreeMap<(Lineage, Kind), u32> = BTreeMap::new();
        for decision in decisions.iter().filter(|decision| !decision.is_deletion()) {
            let of_its_own = |reason: &Reason| matches!(reason.rule(), "pinned" | "ahead-of-clock" | "needed");
            if !decision.reasons().iter().all(of_its_own) {
                *groups.entry((decision.set.lineage, decision.set.kind())).or_default() += 1;
            }
        }
        prop_assert!(groups.values().all(|count| *count <= most), "{groups:?} of at most {most}");
    }
    Ok(left)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn decisions_are_those_of_the_model(
        events in events(40), rules in some_rules(), zone in zones(), keep_old in keep_olds(), jump in -30i64..900, unreadable: prop::sample::Index,
    ) {
        let (mut sets, clock) = committed(&events);
        if unreadable.index(4) == 0 && !sets.is_empty() {
            let chosen = unreadable.index(sets.len());
            sets[chosen].pin = Pinning::Unreadable;
        }
        let terms = Terms { rules: rules.as_ref(), zone: &zone, keep_old };
        let now = clock + SignedDuration::from_secs(jump * DAY / 10);
        check(&sets, &terms, now)?;
        for decision in decide(&sets, &terms, now) {
            let rules = || decision.reasons().iter().map(Reason::rule).filter(|rule| *rule != "needed");
            let told: BTreeSet<&str> = rules().collect();
            let expected = model::rules_that_hold(decision.set, &sets, &terms, now);
            prop_assert_eq!(&told, &expected, "{:?}", decision.set);
            prop_assert_eq!(told.len(), rules().count(), "a reason is told twice");
        }
    }

    /// The order in which a listing gives the sets is nothing to go by.
    #[test]
    fn the_order_of_listing_does_not_matter(
        (sets, shuffled, now) in events(20).prop_flat_map(|events| {
            let (sets, now) = committed(&events);
            (Just(sets.clone()), Just(sets).prop_shuffle(), Just(now))
        }),
        rules in some_rules(),
    ) {
        let terms = Terms { rules: rules.as_ref(), zone: &Zone::UTC, keep_old: KEEP_OLD };
        prop_assert_eq!(decide(&sets, &terms, now), decide(&shuffled, &terms, now));
    }

    /// No backup succeeds any more: however often it is pruned and whatever the clock does, nothing more is deleted.
    #[test]
    fn time_alone_deletes_nothing(events in events(40), rules in some_rules(), jumps in prop::collection::vec(-500i64..2000, 1..6)) {
        let (mut sets, _) = committed(&events);
        for set in &mut sets {
            // Pins end and holds end with time; that is what they are for.
            set.pin = Pinning::Absent;
            set.lineage = lineage(0);
        }
        let end = sets.iter().map(|set| set.completed_at).max().unwrap_or(Timestamp::UNIX_EPOCH);
        let terms = Terms { rules: rules.as_ref(), zone: &Zone::UTC, keep_old: KEEP_OLD };
        let left = check(&sets, &terms, end)?;
        for jump in jumps {
            let now = end + SignedDuration::from_secs(jump * DAY);
            prop_assert_eq!(check(&left, &terms, now)?.len(), left.len());
        }
    }

    #[test]
    fn extreme_clocks_are_answered(completed in prop::collection::vec(any::<i64>(), 1..6), now: i64, keep_old: u64) {
        let stamps = completed.into_iter().filter_map(|second| Timestamp::from_second(second % 400_000_000_000).ok());
        let sets: Vec<SetFacts> = (0..).zip(stamps).map(|(number, time)| set(number, lineage(u64::from(number % 2)), Kind::Dump, time)).collect();
        let rules = rules(1, 1, 1, 1, 1);
        let terms = Terms { rules: Some(&rules), zone: &zone("Europe/Berlin"), keep_old: Duration::from_secs(keep_old) };
        if let Ok(now) = Timestamp::from_second(now % 200_000_000_000) {
            prop_assert_eq!(decide(&sets, &terms, now).len(), sets.len());
        }
    }
}

/// Years of a cluster's life, in which the repository is pruned after every day.
#[derive(Debug, Clone)]
struct Life {
    days: u32,
    backups_a_day: i64,
    /// In percent: runs that fail, sets that a drill proves, sets that somebody pins.
    failing: u32,
    proven: u32,
    pinned: u32,
    /// Days of an upgrade, or of the way back.
    upgrades: BTreeSet<u32>,
    /// Day, and how far the clock jumps for that day.
    jumps: Vec<(u32, i64)>,
    seed: u32,
}

fn lives() -> impl Strategy<Value = Life> {
    let upgrades = prop::collection::btree_set(0u32..1200, 0..3);
    let jumps = prop::collection::vec((0u32..1200, -700i64..4000), 0..4);
    ((400u32..1200, 1i64..4), (0u32..60, 0u32..30, 0u32..3), upgrades, jumps, any::<u32>()).prop_map(
        |((days, backups_a_day), (failing, proven, pinned), upgrades, jumps, seed)| Life {
            days,
            backups_a_day,
            failing,
            proven,
            pinned,
            upgrades,
            jumps,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn years_of_pruning_leave_what_was_promised(life in lives(), rules in some_rules(), zone in zones()) {
        let rules = rules.unwrap_or(self::rules(2, 7, 4, 12, 2));
        let terms = Terms { rules: Some(&rules), zone: &zone, keep_old: KEEP_OLD };
        // Any generator will do; this one repeats with the seed.
        let mut random = life.seed | 1;
        let mut chance = |percent: u32| {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random % 100 < percent
        };
        let start = at("2026-01-01T00:00:00Z");
        let mut repository: Vec<SetFacts> = Vec::new();
        let mut ever: BTreeMap<Lineage, usize> = BTreeMap::new();
        let (mut now_lineage, mut number) = (0, 0);
        for day in 0..life.days {
            now_lineage = (now_lineage + u64::from(life.upgrades.contains(&day))) % 2;
            let jump = life.jumps.iter().find(|(on, _)| *on == day).map_or(0, |(_, days)| *days);
            let clock = start + SignedDuration::from_secs((i64::from(day) + jump) * DAY);
            for run in 0..life.backups_a_day {
                if chance(life.failing) {
                    continue;
                }
                number += 1;
                let completed_at = clock + SignedDuration::from_secs(run * DAY / life.backups_a_day);
                let mut made = set(number, lineage(now_lineage), Kind::Dump, completed_at);
                made.proven = chance(life.proven);
                if chance(life.pinned) {
                    made.pin = pin(&made.id, Some(completed_at + SignedDuration::from_secs(40 * DAY)));
                }
                repository.push(made);
                *ever.entry(lineage(now_lineage)).or_default() += 1;
            }
            let before = repository.len();
            repository = check(&repository, &terms, clock + SignedDuration::from_secs(DAY - 1))?;
            // A lineage never has fewer sets than the floor, once it had them.
            for (lineage, made) in &ever {
                let stay = repository.iter().filter(|set| set.lineage == *lineage).count();
                prop_assert!(stay >= (*made).min(rules.last.get() as usize), "{stay} of {lineage} stay on day {day}");
            }
            prop_assert!(repository.len() <= before);
        }
    }
}
