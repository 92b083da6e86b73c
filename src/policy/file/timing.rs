//! Reads the keys that say when, which every section with a schedule has: `schedule`, `timezone`, `on_missed`, `max_lateness`,
//! `splay`.

use jiff::Timestamp;

use super::super::schedule::{self, CronExpression, OnMissed, PUNCTUAL, Schedule, Zone};
use super::super::{DURATION_HELP, Duration};
use crate::cluster::ClusterName;
use crate::document::{Entry, Table};

/// The schedule of `cluster` in a table. `timezone` is `None` where it cannot be read.
pub(super) fn read(table: &Table<'_>, cluster: &ClusterName, timezone: Option<&Zone>) -> Option<Schedule> {
    let given = ["on_missed", "max_lateness", "splay"].map(|key| table.get(key).map(|entry| (key, entry)));
    let on_missed = read_on_missed(table);
    let splay = table.get("splay").map_or(Some(Duration::ZERO), |entry| entry.parse(DURATION_HELP));
    let Some(cron) = table.get("schedule") else {
        for (key, entry) in given.iter().flatten() {
            entry.problem(format!("{key} has no effect without a schedule"), "add schedule, or remove the key");
        }
        return None;
    };
    let cron = cron.parse::<CronExpression>(schedule::HELP);
    let schedule = Schedule::new(cluster, cron?, timezone?.clone(), on_missed?, splay?);
    if let Some(gap) = shortest_gap(&schedule).filter(|gap| *gap <= schedule.splay)
        && let Some(entry) = table.get("splay")
    {
        entry.problem(
            format!("the splay is not shorter than the {gap} between two runs"),
            "choose a splay well below that",
        );
    }
    Some(schedule)
}

/// The schedule's shortest gap; reading a policy does not look at the clock, and any year will do.
pub(super) fn shortest_gap(schedule: &Schedule) -> Option<Duration> {
    schedule.shortest_gap(Timestamp::UNIX_EPOCH)
}

pub(super) fn read_zone(entry: &Entry<'_>) -> Option<Zone> {
    let help = "a name of the IANA database: \"Europe/Berlin\"";
    let name = entry.text(help)?;
    match name.parse() {
        Ok(zone) => Some(zone),
        Err(error) => {
            let near = Zone::nearest(name).map(|near| format!("did you mean {near}?"));
            let error: schedule::ZoneError = error;
            entry.problem(error.to_string(), near.unwrap_or_else(|| help.to_owned()));
            None
        }
    }
}

fn read_on_missed(table: &Table<'_>) -> Option<OnMissed> {
    const HELP: &str = "\"run_once\" or \"skip\"";
    let lateness = table.get("max_lateness");
    let max_lateness = lateness.as_ref().map_or(Some(Duration::from_hours(12)), |entry| {
        let duration = entry.parse::<Duration>(DURATION_HELP)?;
        if duration < PUNCTUAL {
            let message = format!("a run less than {PUNCTUAL} late is punctual");
            entry.problem(message, "choose more, or on_missed = \"skip\"");
        }
        Some(duration)
    });
    let Some(entry) = table.get("on_missed") else {
        return max_lateness.map(|max_lateness| OnMissed::RunOnce { max_lateness });
    };
    match entry.text(HELP)? {
        "run_once" => max_lateness.map(|max_lateness| OnMissed::RunOnce { max_lateness }),
        "skip" => {
            if let Some(lateness) = lateness {
                lateness.problem("max_lateness has no effect with on_missed = \"skip\"", "remove one of the two");
            }
            Some(OnMissed::Skip)
        }
        other => {
            entry.problem(format!("{other:?} is not known"), HELP);
            None
        }
    }
}
