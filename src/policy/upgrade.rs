//! What must hold before a cluster is upgraded, and when that may be: the section `[upgrade]`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Time;
use serde::{Deserialize, Serialize};

use super::{DURATION_HELP, Duration, Zone};
use crate::document::{Entry, Table};

/// What must hold before a cluster is upgraded.
#[derive(Debug, Clone, PartialEq)]
pub struct UpgradePolicy {
    /// How the data go over.
    pub method: UpgradeMethod,
    /// A backup that is not older than this must be proven; where none is, one is taken and drilled. `None`: the upgrade's own backup
    /// is enough.
    pub require_proven: Option<Duration>,
    /// Whether the newest backup is restored into the new major before.
    pub rehearse: bool,
    /// When upgrades may begin; `None`: always.
    pub window: Option<Window>,
    /// Whose clock the window is read on.
    pub timezone: Zone,
    /// How long the old server is kept at least.
    pub keep_old: Option<Duration>,
}

/// How the data go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeMethod {
    /// Through a backup.
    #[default]
    Dump,
    /// As files, by `pg_upgrade`.
    PgUpgrade,
}

impl UpgradeMethod {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::PgUpgrade => "pg_upgrade",
        }
    }
}

impl FromStr for UpgradeMethod {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "dump" => Ok(Self::Dump),
            "pg_upgrade" => Ok(Self::PgUpgrade),
            "logical" => Err(format!("{text:?} is not supported by this version")),
            _ => Err(format!("{text:?} is not known")),
        }
    }
}

/// Hours of a day, such as 22:00 to 05:00: past midnight where it ends before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    start: Time,
    end: Time,
}

impl Window {
    /// From `start` to `end`, which is no part of it; None where both are the same.
    pub fn new(start: Time, end: Time) -> Option<Self> {
        (start != end).then_some(Self { start, end })
    }

    /// Whether it is open.
    pub fn is_open(&self, now: Timestamp, zone: &Zone) -> bool {
        let time = zone.show(now).time();
        if self.start < self.end {
            self.start <= time && time < self.end
        } else {
            self.start <= time || time < self.end
        }
    }

    /// Its beginning, `22:00`.
    pub fn start(&self) -> String {
        clock(self.start)
    }

    /// Its end, `05:00`.
    pub fn end(&self) -> String {
        clock(self.end)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} to {}", clock(self.start), clock(self.end))
    }
}

fn clock(time: Time) -> String {
    time.strftime("%H:%M").to_string()
}

/// Reads the section, whose times are those of `zone`.
pub(super) fn read(table: &Table<'_>, zone: Zone) -> UpgradePolicy {
    let duration = |key: &str| {
        let entry = table.get(key)?;
        let duration = entry.parse::<Duration>(DURATION_HELP)?;
        if duration == Duration::ZERO {
            entry.problem("no time at all is the same as no such key", "at least 1s, or remove the key");
        }
        Some(duration)
    };
    UpgradePolicy {
        method: table.get("method").and_then(|entry| entry.parse("\"dump\", or \"pg_upgrade\"")).unwrap_or_default(),
        require_proven: duration("require_proven"),
        rehearse: table.get("rehearse").and_then(|entry| entry.flag()).unwrap_or(false),
        window: table.optional("window", read_window).flatten(),
        timezone: zone,
        keep_old: duration("keep_old"),
    }
}

fn read_window(table: &Table<'_>) -> Option<Window> {
    const HELP: &str = "hours and minutes: { start = \"22:00\", end = \"05:00\" }";
    let entry = |key: &str| {
        let entry = table.get(key);
        if entry.is_none() && table.is_present() {
            table.missing(key, format!("{key} is missing"), HELP);
        }
        entry
    };
    let time = |entry: &Entry<'_>| {
        let text = entry.text(HELP)?;
        let time = (text.len() == 5).then(|| Time::strptime("%H:%M", text).ok()).flatten();
        if time.is_none() {
            entry.problem(format!("{text:?} is not a time of day"), HELP);
        }
        time
    };
    let (start, end) = (entry("start"), entry("end"));
    let (start, end) = (start.as_ref().and_then(time), end.as_ref().map(|end| (end, time(end))));
    let (start, (end_entry, end)) = (start?, end?);
    let window = Window::new(start, end?);
    if window.is_none() {
        end_entry.problem("the window ends when it starts", HELP);
    }
    window
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: &str, end: &str) -> Window {
        let time = |text: &str| Time::strptime("%H:%M", text).expect("a time");
        Window::new(time(start), time(end)).expect("a window")
    }

    #[test]
    fn a_window_is_open_between_its_ends_past_midnight_too() {
        let zone: Zone = "Europe/Berlin".parse().expect("a zone");
        let open = |window: Window, at: &str| window.is_open(at.parse().expect("a time"), &zone);
        // Berlin is one hour ahead in winter, two in summer.
        let night = window("22:00", "05:00");
        for (at, is_open) in [
            ("2026-01-10T20:59:59Z", false),
            ("2026-01-10T21:00:00Z", true),
            ("2026-01-10T23:30:00Z", true),
            ("2026-01-11T03:59:59Z", true),
            ("2026-01-11T04:00:00Z", false),
            ("2026-07-10T20:00:00Z", true),
            ("2026-07-10T12:00:00Z", false),
        ] {
            assert_eq!(open(night, at), is_open, "{at}");
        }
        let noon = window("11:00", "13:00");
        assert!(open(noon, "2026-01-10T10:00:00Z") && !open(noon, "2026-01-10T12:00:00Z"));
        assert_eq!(night.to_string(), "22:00 to 05:00");
    }
}
