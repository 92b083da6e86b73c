//! Which backups stay: a pure function of the sets, the policy and the clock.
//!
//! ```text
//! committed sets ──▶ a lineage and kind at a time, newest first ──▶ Keep, with every reason for it
//!                      by completion time, never by name        └─▶ Delete, because nothing holds the set
//! ```
//!
//! Invariants, whatever the rules say and however the clock jumps:
//!
//! * The newest `last` sets of each lineage and kind stay. So does the newest proven one, the newest one without
//!   damaged pages, and a pinned one.
//! * A set whose completion lies ahead of the clock stays, and takes no other set's place: one of the two is wrong.
//! * A lineage is judged as if it were alone, until a later lineage has a proven set and `keep_old` has passed since the last
//!   set before it. From then on the earlier one ages by the calendar along with its successors; its own last ones stay.
//! * A set stays as long as one that stays builds on it.
//! * What is kept now is kept by the same call on what is left: pruning twice is pruning once.
//!
//! A calendar rule counts the days, weeks, months or years *that have a backup*, on the clock of the policy's zone. It asks
//! nothing of `now`: a cluster that was down for a month loses nothing for it, and neither does one whose clock is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use jiff::Timestamp;
use jiff::civil::Date;

use super::Duration;
use super::freshness::CLOCK_TOLERANCE;
use super::schedule::Zone;
use crate::backup_set::{Commit, Kind, Pin, SetId};
use crate::cluster::Lineage;

/// What to keep of each kind of backup, in each lineage. A set that any rule keeps is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest sets, whatever their age. Pruning never goes below this floor.
    pub last: NonZeroU32,
    /// The newest set of each of so many days.
    pub daily: u32,
    /// The newest set of each of so many ISO weeks.
    pub weekly: u32,
    /// The newest set of each of so many months.
    pub monthly: u32,
    /// The newest set of each of so many years.
    pub yearly: u32,
}

/// The most that a rule may ask for; far above any use, so that a slip of the pen is noticed.
pub(super) const MOST: u32 = 10_000;

/// The period of one of the calendar's rules that a date lies in.
type PeriodOf = fn(Date) -> Period;

/// How long the last set before an upgrade stays at least, where the policy does not say.
pub const KEEP_OLD: Duration = Duration::from_hours(72);

impl Retention {
    /// The floor when the policy does not say.
    pub const DEFAULT_LAST: NonZeroU32 = NonZeroU32::new(3).expect("three is not zero");

    /// The calendar's rules, each with how many of its periods it keeps.
    fn calendar(&self) -> [(u32, PeriodOf); 4] {
        [
            (self.daily, Period::day_of),
            (self.weekly, Period::week_of),
            (self.monthly, Period::month_of),
            (self.yearly, Period::year_of),
        ]
    }
}

/// What retention knows of one committed set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetFacts {
    /// The set.
    pub id: SetId,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// When it was complete. Sets are ordered by this.
    pub completed_at: Timestamp,
    /// Whether a drill has restored it and found everything in it.
    pub proven: bool,
    /// Whether it has no page that was damaged on the disk already.
    pub sound: bool,
    /// Whether somebody wants it to stay.
    pub pin: Pinning,
    /// The set it cannot be restored without, if there is one.
    pub parent: Option<SetId>,
}

impl SetFacts {
    /// What is known of a committed set.
    pub fn of(commit: &Commit, pin: Pinning, proven: bool) -> Self {
        Self {
            id: commit.set.clone(),
            lineage: commit.lineage,
            completed_at: commit.completed_at,
            proven,
            sound: commit.damaged_pages == 0,
            pin,
            parent: commit.parent.clone(),
        }
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        self.id.kind()
    }

    /// The order of sets.
    fn order(&self) -> (Timestamp, &SetId) {
        (self.completed_at, &self.id)
    }
}

/// What is known of a set's pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinning {
    /// There is none.
    Absent,
    /// There is one; it may have ended.
    Present(Pin),
    /// There is one that cannot be read: damaged, or of a newer format. It counts as a pin without end.
    Unreadable,
}

/// What the policy says about keeping.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The rules; None keeps everything.
    pub rules: Option<&'a Retention>,
    /// Whose days, weeks, months and years are counted.
    pub zone: &'a Zone,
    /// How long the last set before an upgrade stays at least.
    pub keep_old: Duration,
}

/// What becomes of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'s> {
    /// The set.
    pub set: &'s SetFacts,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Keep or delete, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays, for each of these reasons; at least one.
    Keep(Vec<Reason>),
    /// It may go.
    Delete(Expiry),
}

impl Decision<'_> {
    /// Why the set stays; empty where it does not.
    pub fn reasons(&self) -> &[Reason] {
        match &self.verdict {
            Verdict::Keep(reasons) => reasons,
            Verdict::Delete(_) => &[],
        }
    }

    /// Whether the set may go.
    pub fn is_deletion(&self) -> bool {
        matches!(self.verdict, Verdict::Delete(_))
    }
}

/// Why a set stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The policy has no rules.
    NoRules,
    /// One of the newest sets of its lineage and kind.
    Last {
        /// 1 for the newest.
        place: u32,
        /// The floor.
        floor: NonZeroU32,
    },
    /// The newest set of its kind in a period that a rule keeps.
    NewestOf(Period),
    /// Somebody wants it to stay.
    Pinned {
        /// Why.
        reason: String,
        /// Until when.
        until: Option<Timestamp>,
    },
    /// There is a pin that cannot be read.
    PinUnreadable,
    /// The newest set of its lineage and kind that a drill has restored.
    NewestProven,
    /// The newest set of its lineage and kind without damaged pages, while newer ones have some.
    NewestSound,
    /// The last set of its kind before another lineage began: the way back from an upgrade.
    BeforeUpgrade {
        /// The lineage that began.
        to: Lineage,
        /// When the hold ends; None: not before a set of a later lineage is proven.
        until: Option<Timestamp>,
    },
    /// Its completion lies ahead of the clock.
    AheadOfClock,
    /// A set that stays cannot be restored without it.
    NeededBy(SetId),
}

impl Reason {
    /// A word for programs.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NoRules => "no-rules",
            Self::Last { .. } => "last",
            Self::NewestOf(Period::Day(_)) => "daily",
            Self::NewestOf(Period::Week { .. }) => "weekly",
            Self::NewestOf(Period::Month { .. }) => "monthly",
            Self::NewestOf(Period::Year(_)) => "yearly",
            Self::Pinned { .. } | Self::PinUnreadable => "pinned",
            Self::NewestProven => "newest-proven",
            Self::NewestSound => "newest-sound",
            Self::BeforeUpgrade { .. } => "before-upgrade",
            Self::AheadOfClock => "ahead-of-clock",
            Self::NeededBy(_) => "needed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => out.write_str("no [retention] in the policy"),
            Self::Last { place, floor } => write!(out, "last {place}/{floor}"),
            Self::NewestOf(period) => write!(out, "{period}"),
            Self::Pinned { reason, until: Some(until) } => write!(out, "pinned until {until}: {reason}"),
            Self::Pinned { reason, until: None } => write!(out, "pinned: {reason}"),
            Self::PinUnreadable => out.write_str("pinned, but its pin cannot be read"),
            Self::NewestProven => out.write_str("newest proven"),
            Self::NewestSound => out.write_str("newest without damaged pages"),
            Self::BeforeUpgrade { to, until: None } => write!(out, "last before {to}, of which no backup is proven"),
            Self::BeforeUpgrade { to, until: Some(until) } => write!(out, "last before {to}, until {until}"),
            Self::AheadOfClock => out.write_str("completed ahead of the clock"),
            Self::NeededBy(set) => write!(out, "{set} builds on it"),
        }
    }
}

/// Why a set may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// How many newer sets of its lineage and kind stay.
    pub newer: usize,
    /// When its pin ended, if it had one.
    pub pin_ended: Option<Timestamp>,
}

impl fmt::Display for Expiry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "no rule keeps it, {} newer stay", self.newer)?;
        match self.pin_ended {
            Some(ended) => write!(out, "; its pin ended {ended}"),
            None => Ok(()),
        }
    }
}

/// A stretch of the calendar. Periods of one rule are ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// A day.
    Day(Date),
    /// An ISO 8601 week: it begins on Monday, and belongs to the year that its Thursday is in.
    Week {
        /// The year the week belongs to.
        year: i16,
        /// 1 to 53.
        week: i8,
    },
    /// A month.
    Month {
        /// Its year.
        year: i16,
        /// 1 to 12.
        month: i8,
    },
    /// A year.
    Year(i16),
}

impl Period {
    fn day_of(date: Date) -> Self {
        Self::Day(date)
    }

    fn week_of(date: Date) -> Self {
        let week = date.iso_week_date();
        Self::Week { year: week.year(), week: week.week() }
    }

    fn month_of(date: Date) -> Self {
        Self::Month { year: date.year(), month: date.month() }
    }

    fn year_of(date: Date) -> Self {
        Self::Year(date.year())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(date) => write!(out, "day {date}"),
            Self::Week { year, week } => write!(out, "week {year:04}-W{week:02}"),
            Self::Month { year, month } => write!(out, "month {year:04}-{month:02}"),
            Self::Year(year) => write!(out, "year {year:04}"),
        }
    }
}

/// Decides about every one of the `sets` of one cluster in one repository; in the order of their completion.
///
/// `sets` are the committed ones, in any order: what was not committed is no backup and holds nobody's place.
pub fn decide<'s>(sets: &'s [SetFacts], terms: &Terms<'_>, now: Timestamp) -> Vec<Decision<'s>> {
    let mut ordered: Vec<&SetFacts> = sets.iter().collect();
    ordered.sort_by_key(|set| set.order());
    let mut reasons: Vec<Vec<Reason>> = ordered.iter().map(|set| reasons_of_its_own(set, terms, now)).collect();

    // Positions in `ordered`, oldest first. What is ahead of the clock stays, and counts for nothing.
    let judged: Vec<usize> = (0..ordered.len()).filter(|&at| !is_ahead(ordered[at], now)).collect();
    let mut groups: BTreeMap<(Lineage, Kind), Vec<usize>> = BTreeMap::new();
    for &at in &judged {
        groups.entry((ordered[at].lineage, ordered[at].kind())).or_default().push(at);
    }
    for ((lineage, kind), group) in &groups {
        let end = judged.iter().rfind(|&&at| ordered[at].lineage == *lineage);
        let later = || judged.iter().copied().filter(|at| end.is_some_and(|end| at > end));
        let hold = hold(later().map(|at| ordered[at]), end.map(|&end| ordered[end]), terms.keep_old);

        if let Some(&proven) = group.iter().rfind(|&&at| ordered[at].proven) {
            reasons[proven].push(Reason::NewestProven);
        }
        let sound = group.iter().rfind(|&&at| ordered[at].sound);
        if let Some(&sound) = sound.filter(|&&at| group.last() != Some(&at)) {
            reasons[sound].push(Reason::NewestSound);
        }
        if let (Some(hold), Some(&newest)) = (hold, group.last())
            && hold.until.is_none_or(|until| now < until)
        {
            reasons[newest].push(Reason::BeforeUpgrade { to: hold.to, until: hold.until });
        }
        let Some(rules) = terms.rules else { continue };
        for (place, &at) in (1..=rules.last.get()).zip(group.iter().rev()) {
            reasons[at].push(Reason::Last { place, floor: rules.last });
        }
        // Once the hold is over, the later lineages' periods count too.
        let released = hold.is_some_and(|hold| hold.until.is_some_and(|until| now >= until));
        let successors = later().filter(|&at| released && ordered[at].kind() == *kind);
        let counted: Vec<usize> = group.iter().copied().chain(successors).collect();
        for (count, period_of) in rules.calendar() {
            // Oldest first, so the newest set of each period is what remains.
            let newest: BTreeMap<Period, usize> =
                counted.iter().map(|&at| (period_of(terms.zone.show(ordered[at].completed_at).date()), at)).collect();
            for (&period, &at) in newest.iter().rev().take(count as usize) {
                if ordered[at].lineage == *lineage {
                    reasons[at].push(Reason::NewestOf(period));
                }
            }
        }
    }

    keep_parents(&ordered, &mut reasons);
    let mut staying: BTreeMap<(Lineage, Kind), usize> = BTreeMap::new();
    let mut decisions: Vec<Decision<'_>> = ordered
        .into_iter()
        .zip(reasons)
        .rev()
        .map(|(set, reasons)| {
            let newer = staying.entry((set.lineage, set.kind())).or_default();
            let verdict = if reasons.is_empty() {
                Verdict::Delete(Expiry { newer: *newer, pin_ended: set.pin_end() })
            } else {
                *newer += 1;
                Verdict::Keep(reasons)
            };
            Decision { set, verdict }
        })
        .collect();
    decisions.reverse();
    decisions
}

/// What stays keeps what it builds on, whatever their order: a clock may have gone back between them.
fn keep_parents(sets: &[&SetFacts], reasons: &mut [Vec<Reason>]) {
    let places: BTreeMap<&SetId, usize> = sets.iter().enumerate().map(|(at, set)| (&set.id, at)).collect();
    let mut staying: Vec<usize> = (0..sets.len()).filter(|&at| !reasons[at].is_empty()).collect();
    while let Some(child) = staying.pop() {
        let Some(&parent) = sets[child].parent.as_ref().and_then(|parent| places.get(parent)) else { continue };
        let needed = Reason::NeededBy(sets[child].id.clone());
        if reasons[parent].is_empty() {
            staying.push(parent);
        }
        if !reasons[parent].contains(&needed) {
            reasons[parent].push(needed);
        }
    }
}

/// The reasons that look at no other set.
fn reasons_of_its_own(set: &SetFacts, terms: &Terms<'_>, now: Timestamp) -> Vec<Reason> {
    let mut reasons = Vec::new();
    match &set.pin {
        Pinning::Present(pin) if pin.holds(now) => {
            reasons.push(Reason::Pinned { reason: pin.reason.clone(), until: pin.until });
        }
        Pinning::Unreadable => reasons.push(Reason::PinUnreadable),
        Pinning::Present(_) | Pinning::Absent => {}
    }
    if is_ahead(set, now) {
        reasons.push(Reason::AheadOfClock);
    }
    if terms.rules.is_none() {
        reasons.push(Reason::NoRules);
    }
    reasons
}

impl SetFacts {
    fn pin_end(&self) -> Option<Timestamp> {
        match &self.pin {
            Pinning::Present(pin) => pin.until,
            Pinning::Absent | Pinning::Unreadable => None,
        }
    }
}

/// Whether the clock, or the set, is not to be believed.
fn is_ahead(set: &SetFacts, now: Timestamp) -> bool {
    set.completed_at.duration_since(now) > CLOCK_TOLERANCE.as_signed()
}

/// What holds a lineage that others have followed.
#[derive(Debug, Clone, Copy)]
struct Hold {
    /// The first lineage that followed.
    to: Lineage,
    /// When the hold ends; None: no later set is proven.
    until: Option<Timestamp>,
}

/// The hold on a lineage whose newest set is `end`, if there are `later` sets; those of other lineages, oldest first.
fn hold<'s>(later: impl Iterator<Item = &'s SetFacts>, end: Option<&SetFacts>, keep_old: Duration) -> Option<Hold> {
    let mut later = later.peekable();
    let to = later.peek()?.lineage;
    let passed = end?.completed_at.checked_add(keep_old.as_signed()).unwrap_or(Timestamp::MAX);
    Some(Hold { to, until: later.any(|set| set.proven).then_some(passed) })
}

#[cfg(test)]
mod tests;
