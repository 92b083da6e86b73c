//! When a run is due: a pure function of the policy, the last fired slot and the clock.
//!
//! A *slot* is an instant the cron expression names in the policy's time zone; the run starts at the slot plus the
//! cluster's splay. Daylight saving follows Vixie cron: a fixed time inside the spring gap fires at the gap's end, a
//! fixed time inside the autumn overlap fires once, at its first occurrence; wildcard hours and minutes follow the
//! real clock.
//!
//! ```text
//!            slot            start = slot + splay                      start + max_lateness
//!  ───────────┼──────────────────┼──────────── Run ─────────────────────────────┼──── Missed ───▶ now
//! ```

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Duration;
use crate::cluster::ClusterName;

/// What a start may lag behind its time and still count as punctual: the ticker looks once a minute.
pub const PUNCTUAL: Duration = Duration::from_secs(120);

/// What to do about a slot that passed while nobody was there to start it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissed {
    /// Run once, as soon as possible, however many slots were missed; unless it is later than `max_lateness`.
    RunOnce {
        /// The longest delay after which a run still makes sense.
        max_lateness: Duration,
    },
    /// Wait for the next slot.
    Skip,
}

/// Five cron fields or a nickname (`@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`) that name at least one real
/// date.
#[derive(Debug, Clone)]
pub struct CronExpression {
    text: String,
    cron: Cron,
}

/// Why a cron expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronExpressionError {
    /// Not five fields.
    #[error("{text:?} has {fields} fields, not 5")]
    Fields {
        /// The expression.
        text: String,
        /// How many fields it has.
        fields: usize,
    },
    /// A field or nickname cannot be read.
    #[error("{text:?} is not a cron expression: {reason}")]
    Syntax {
        /// The expression.
        text: String,
        /// What the parser says.
        reason: String,
    },
    /// The date does not exist (30 February).
    #[error("{text:?} never happens: there is no such date")]
    Never {
        /// The expression.
        text: String,
    },
}

/// What the messages show as examples.
pub(crate) const HELP: &str = "five fields: minute hour day month weekday, such as \"30 2 * * *\"; or @hourly, @daily, @weekly, @monthly, @yearly";

impl CronExpression {
    /// The expression as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The expression in English, for tables.
    pub fn describe(&self) -> String {
        self.cron.describe()
    }
}

impl FromStr for CronExpression {
    type Err = CronExpressionError;
    fn from_str(text: &str) -> Result<Self, CronExpressionError> {
        let nickname = text.trim_start().starts_with('@');
        let fields = text.split_whitespace().count();
        if !nickname && fields != 5 {
            return Err(CronExpressionError::Fields { text: text.to_owned(), fields });
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| CronExpressionError::Syntax {
            text: text.to_owned(),
            reason: if nickname { "no such nickname".to_owned() } else { error.to_string() },
        })?;
        // Any reference will do: the search goes far enough for every date that exists.
        match cron.find_next_occurrence(&Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC), false) {
            Ok(_) => Ok(Self { text: text.to_owned(), cron }),
            Err(_) => Err(CronExpressionError::Never { text: text.to_owned() }),
        }
    }
}

/// Two expressions are equal when they are written alike.
impl PartialEq for CronExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for CronExpression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// An IANA time zone, `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// A name the time zone database does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time zone of the IANA database")]
pub struct ZoneError(String);

impl Zone {
    /// Coordinated universal time.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// The zone's name.
    pub fn as_str(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// An instant as this zone's clock shows it.
    pub fn show(&self, instant: Timestamp) -> jiff::Zoned {
        instant.to_zoned(self.0.clone())
    }

    /// The instant at which a day begins on this zone's clock; nothing at the end of time.
    pub fn beginning_of(&self, day: jiff::civil::Date) -> Option<Timestamp> {
        day.to_zoned(self.0.clone()).ok().map(|begins| begins.timestamp())
    }

    /// The zone whose name is nearest to `name`, for a hint.
    pub(crate) fn nearest(name: &str) -> Option<String> {
        let names: Vec<String> = jiff::tz::db().available().map(|known| known.to_string()).collect();
        crate::document::nearest(name, names.iter().map(String::as_str)).map(str::to_owned)
    }
}

impl FromStr for Zone {
    type Err = ZoneError;
    fn from_str(name: &str) -> Result<Self, ZoneError> {
        let refuse = || ZoneError(name.to_owned());
        let zone = TimeZone::get(name).map_err(|_| refuse())?;
        // "Etc/Unknown" and the like have no name to show to anyone.
        if zone.iana_name().is_none() || zone.is_unknown() { Err(refuse()) } else { Ok(Self(zone)) }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// When a cluster's runs start.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The slots.
    pub cron: CronExpression,
    /// Whose clock the slots are read on.
    pub timezone: Zone,
    /// What happens to missed slots.
    pub on_missed: OnMissed,
    /// The width over which clusters with the same expression spread their starts.
    pub splay: Duration,
    delay: Duration,
}

/// An instant the schedule names, and the start that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// What cron names. This is what is remembered as fired.
    pub at: Timestamp,
    /// The slot plus the cluster's splay.
    pub start: Timestamp,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until `next` (`None`: the clock is past every date cron can name).
    Wait {
        /// The next start.
        next: Option<Slot>,
    },
    /// Start a run for this slot. Remember the slot as fired *before* starting.
    Run {
        /// The newest slot whose start has come.
        slot: Slot,
    },
    /// The slot is too old to run for. Remember it as fired, and record that it was missed.
    Missed {
        /// The newest slot whose start has come.
        slot: Slot,
        /// How late a start would be now.
        lateness: Duration,
    },
}

impl Schedule {
    /// The schedule of `cluster`. Its delay inside `splay` follows from its name, so it is the same every time.
    pub fn new(
        cluster: &ClusterName,
        cron: CronExpression,
        timezone: Zone,
        on_missed: OnMissed,
        splay: Duration,
    ) -> Self {
        Self { cron, timezone, on_missed, splay, delay: delay_within(cluster, splay) }
    }

    /// How long after each slot this cluster starts: a fixed number of seconds below `splay`.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// The first slot whose start is later than `now`.
    pub fn next_after(&self, now: Timestamp) -> Option<Slot> {
        let from = self.on_slot_clock(now)?;
        self.cron.cron.find_next_occurrence(&from, false).ok().and_then(|found| self.slot(found.timestamp()))
    }

    /// The next slots after `now`, without end.
    pub fn upcoming(&self, now: Timestamp) -> impl Iterator<Item = Slot> + '_ {
        std::iter::successors(self.next_after(now), |slot| self.next_after(slot.start))
    }

    /// Decides for `now`. `last_fired` is the newest slot that was run or recorded as missed; a schedule that never
    /// fired has nothing to make up for, so only a punctual slot counts then. (Whoever keeps `last_fired` should begin
    /// by keeping the time it first saw the policy.)
    pub fn due(&self, last_fired: Option<Timestamp>, now: Timestamp) -> Due {
        let wait = || Due::Wait { next: self.next_after(now) };
        let Some(slot) = self.newest_started(now) else { return wait() };
        if last_fired.is_some_and(|last_fired| last_fired >= slot.at) {
            return wait();
        }
        let lateness = now.duration_since(slot.start);
        let lateness = Duration::from_secs(u64::try_from(lateness.as_secs()).unwrap_or(0));
        let allowed = match (self.on_missed, last_fired) {
            (OnMissed::RunOnce { max_lateness }, Some(_)) => max_lateness.max(PUNCTUAL),
            (OnMissed::Skip, _) | (OnMissed::RunOnce { .. }, None) => PUNCTUAL,
        };
        match (lateness <= allowed, last_fired) {
            (true, _) => Due::Run { slot },
            (false, Some(_)) => Due::Missed { slot, lateness },
            (false, None) => wait(),
        }
    }

    /// The shortest time between two neighbouring slots, as the slots around `now` show it; `None` when cron names
    /// fewer than two.
    pub fn shortest_gap(&self, now: Timestamp) -> Option<Duration> {
        let slots: Vec<Slot> = self.upcoming(now).take(64).collect();
        let gaps = slots.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_secs());
        gaps.min().and_then(|gap| u64::try_from(gap).ok()).map(Duration::from_secs)
    }

    fn newest_started(&self, now: Timestamp) -> Option<Slot> {
        let until = self.on_slot_clock(now)?;
        self.cron.cron.find_previous_occurrence(&until, true).ok().and_then(|found| self.slot(found.timestamp()))
    }

    /// Start times are slots moved by the delay; so look for slots on a clock that is the delay slow. Slots are whole
    /// seconds: a part of a second more never matters.
    fn on_slot_clock(&self, now: Timestamp) -> Option<jiff::Zoned> {
        let now = now.checked_sub(self.delay.as_signed()).ok()?;
        let second = if now.subsec_nanosecond() < 0 { now.as_second() - 1 } else { now.as_second() };
        Some(self.timezone.show(Timestamp::from_second(second).ok()?))
    }

    fn slot(&self, at: Timestamp) -> Option<Slot> {
        Some(Slot { at, start: at.checked_add(self.delay.as_signed()).ok()? })
    }
}

fn delay_within(cluster: &ClusterName, splay: Duration) -> Duration {
    if splay == Duration::ZERO {
        return Duration::ZERO;
    }
    let hash = blake3::hash(cluster.as_str().as_bytes());
    let (head, _) = hash.as_bytes().split_first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    Duration::from_secs(u64::from_le_bytes(*head) % splay.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).expect("a name")
    }

    fn schedule(cron: &str, zone: &str, on_missed: OnMissed, splay: Duration) -> Schedule {
        let cron = cron.parse().expect("a cron expression");
        Schedule::new(&cluster("chado"), cron, zone.parse().expect("a zone"), on_missed, splay)
    }

    fn berlin(cron: &str) -> Schedule {
        schedule(cron, "Europe/Berlin", OnMissed::Skip, Duration::ZERO)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("an instant")
    }

    /// The slots of one civil day, as Berlin's clock shows them.
    fn slots_on(day: &str, cron: &str) -> String {
        let schedule = berlin(cron);
        let midnight: jiff::Zoned = format!("{day}T00:00[Europe/Berlin]").parse().expect("a midnight");
        let (from, date) = (midnight.timestamp() - jiff::SignedDuration::from_secs(1), midnight.date());
        let shown = schedule.upcoming(from).map(|slot| schedule.timezone.show(slot.at));
        let today: Vec<String> =
            shown.take_while(|shown| shown.date() == date).map(|shown| shown.strftime("%H:%M%z").to_string()).collect();
        today.join(" ")
    }

    const SPRING: &str = "2026-03-29";
    const AUTUMN: &str = "2026-10-25";

    #[test]
    fn a_fixed_time_in_the_spring_gap_fires_at_its_end() {
        assert_eq!(slots_on("2026-03-28", "30 2 * * *"), "02:30+0100");
        assert_eq!(slots_on(SPRING, "30 2 * * *"), "03:00+0200");
        assert_eq!(slots_on("2026-03-30", "30 2 * * *"), "02:30+0200");
    }

    #[test]
    fn a_fixed_time_in_the_autumn_overlap_fires_once() {
        assert_eq!(slots_on(AUTUMN, "30 2 * * *"), "02:30+0200");
        assert_eq!(slots_on("2026-10-26", "30 2 * * *"), "02:30+0100");
    }

    #[test]
    fn wildcards_follow_the_real_clock() {
        let autumn = slots_on(AUTUMN, "0 * * * *");
        assert!(autumn.starts_with("00:00+0200 01:00+0200 02:00+0200 02:00+0100 03:00+0100"), "{autumn}");
        assert_eq!(autumn.split(' ').count(), 25);
        let spring = slots_on(SPRING, "0 * * * *");
        assert!(spring.starts_with("00:00+0100 01:00+0100 03:00+0200"), "{spring}");
        assert_eq!(spring.split(' ').count(), 23);
        assert_eq!(slots_on(AUTUMN, "*/30 2 * * *"), "02:00+0200 02:30+0200 02:00+0100 02:30+0100");
    }

    /// What fires is the same whether one asks forward (what is next?) or backward (what has passed?).
    #[test]
    fn daylight_saving_looks_the_same_from_both_sides() {
        for cron in ["30 2 * * *", "0 * * * *", "*/30 2 * * *", "@daily", "0 2 * * 7", "0 0 L * *"] {
            let schedule = berlin(cron);
            for day in [SPRING, AUTUMN] {
                let from = at(&format!("{day}T00:00Z")) - jiff::SignedDuration::from_hours(72);
                let mut last = from;
                for slot in schedule.upcoming(from).take(200) {
                    assert!(slot.at > last, "{cron} after {last}");
                    assert_eq!(schedule.newest_started(slot.at), Some(slot), "{cron} at {}", slot.at);
                    let before = slot.at - jiff::SignedDuration::from_secs(1);
                    assert!(schedule.newest_started(before).is_none_or(|earlier| earlier.at <= last || last == from));
                    last = slot.at;
                }
            }
        }
    }

    #[test]
    fn nicknames_are_read() {
        for (nickname, fields) in [
            ("@hourly", "0 * * * *"),
            ("@daily", "0 0 * * *"),
            ("@weekly", "0 0 * * 0"),
            ("@monthly", "0 0 1 * *"),
            ("@yearly", "0 0 1 1 *"),
        ] {
            let now = at("2026-05-05T05:05:05Z");
            assert_eq!(berlin(nickname).next_after(now), berlin(fields).next_after(now), "{nickname}");
        }
    }

    #[test]
    fn impossible_expressions_are_refused_with_the_rule() {
        let refused = ["0 0 30 2 *", "0 0 2 * * *", "* * * *", "", "61 * * * *", "@reboot", "a b c d e"]
            .map(|text| text.parse::<CronExpression>().expect_err(text).to_string())
            .join("\n");
        insta::assert_snapshot!(refused, @r#"
        "0 0 30 2 *" never happens: there is no such date
        "0 0 2 * * *" has 6 fields, not 5
        "* * * *" has 4 fields, not 5
        "" has 0 fields, not 5
        "61 * * * *" is not a cron expression: Component error: Number out of bounds.
        "@reboot" is not a cron expression: no such nickname
        "a b c d e" is not a cron expression: Pattern contains illegal characters: CronPattern contains illegal character 'A' in part 'A'
        "#);
        assert!("0 0 29 2 *".parse::<CronExpression>().is_ok(), "leap days happen");
    }

    #[test]
    fn a_slot_is_run_once() {
        let schedule = berlin("30 2 * * *");
        let slot = Slot { at: at("2026-06-01T00:30:00Z"), start: at("2026-06-01T00:30:00Z") };
        let yesterday = Some(at("2026-05-31T00:30:00Z"));
        assert_eq!(schedule.due(yesterday, at("2026-06-01T00:30:20Z")), Due::Run { slot });
        let next = Slot { at: at("2026-06-02T00:30:00Z"), start: at("2026-06-02T00:30:00Z") };
        assert_eq!(schedule.due(Some(slot.at), at("2026-06-01T00:30:40Z")), Due::Wait { next: Some(next) });
        assert_eq!(schedule.due(yesterday, at("2026-06-01T00:29:59Z")), Due::Wait { next: Some(slot) });
    }

    #[test]
    fn missed_slots_follow_the_policy() {
        let slot = at("2026-06-01T00:30:00Z");
        let last = Some(at("2026-05-25T00:30:00Z"));
        let morning = at("2026-06-01T06:30:00Z");
        let twelve_hours = OnMissed::RunOnce { max_lateness: Duration::from_hours(12) };
        let run_once = schedule("30 2 * * *", "Europe/Berlin", twelve_hours, Duration::ZERO);
        assert_eq!(run_once.due(last, morning), Due::Run { slot: Slot { at: slot, start: slot } });
        let evening = at("2026-06-01T16:30:00Z");
        assert!(matches!(run_once.due(last, evening), Due::Missed { lateness, .. } if lateness.as_secs() == 16 * 3600));
        assert!(matches!(berlin("30 2 * * *").due(last, morning), Due::Missed { .. }));
        // A policy that is new makes up for nothing.
        assert!(matches!(run_once.due(None, morning), Due::Wait { .. }));
        assert!(matches!(run_once.due(None, at("2026-06-01T00:31:00Z")), Due::Run { .. }));
    }

    #[test]
    fn the_splay_is_fixed_and_spread() {
        let splay = Duration::from_secs(600);
        let names = ["chado", "main", "a", "b", "c", "d"];
        let delays = names.map(|name| delay_within(&cluster(name), splay).as_secs());
        assert!(delays.iter().all(|delay| *delay < 600), "{delays:?}");
        assert!(delays.iter().collect::<std::collections::BTreeSet<_>>().len() > 3, "{delays:?}");
        // Pinned: another version of pglife must not move everyone's backups.
        assert_eq!(delays[0], 282);
        let splayed = schedule("30 2 * * *", "UTC", OnMissed::Skip, splay);
        let slot = splayed.next_after(at("2026-06-01T00:00:00Z")).expect("a slot");
        assert_eq!(slot.start.duration_since(slot.at), splayed.delay().as_signed());
        assert_eq!(splayed.due(None, slot.start), Due::Run { slot });
    }

    #[test]
    fn zones_are_those_of_the_database() {
        assert_eq!("europe/berlin".parse::<Zone>().expect("a zone").as_str(), "Europe/Berlin");
        assert!("Europe/Berlln".parse::<Zone>().is_err());
        assert_eq!(Zone::nearest("Europe/Berlln").as_deref(), Some("Europe/Berlin"));
    }

    fn crons() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("@hourly".to_owned()),
            (0..60u8, 0..24u8).prop_map(|(minute, hour)| format!("{minute} {hour} * * *")),
            (0..60u8, 0..24u8, 0..7u8).prop_map(|(minute, hour, day)| format!("{minute} {hour} * * {day}")),
            (1..30u8, 0..24u8).prop_map(|(step, hour)| format!("*/{step} {hour} * * *")),
        ]
    }

    proptest! {
        #[test]
        fn the_next_slot_is_later_and_then_due(
            cron in crons(), second in 1_700_000_000i64..1_900_000_000, splay in 0u64..3000,
        ) {
            let schedule = schedule(&cron, "Europe/Berlin", OnMissed::Skip, Duration::from_secs(splay));
            let now = Timestamp::from_second(second).expect("in range");
            let slot = schedule.next_after(now).expect("a slot");
            prop_assert!(slot.start > now);
            let before = slot.at - jiff::SignedDuration::from_secs(1);
            prop_assert_eq!(schedule.due(Some(before), slot.start), Due::Run { slot });
            prop_assert_eq!(schedule.due(Some(slot.at), slot.start), Due::Wait { next: schedule.next_after(slot.start) });
        }

        #[test]
        fn nothing_is_due_before_its_start(cron in crons(), second in 1_700_000_000i64..1_900_000_000) {
            let schedule = schedule(&cron, "Europe/Berlin", OnMissed::Skip, Duration::ZERO);
            let now = Timestamp::from_second(second).expect("in range");
            match schedule.due(Some(Timestamp::UNIX_EPOCH), now) {
                Due::Run { slot } | Due::Missed { slot, .. } => prop_assert!(slot.start <= now),
                Due::Wait { .. } => prop_assert!(false, "years have passed since the last run"),
            }
        }

        #[test]
        fn any_text_is_answered(text in ".{0,24}", zone in ".{0,24}") {
            text.parse::<CronExpression>().ok();
            zone.parse::<Zone>().ok();
        }
    }
}
