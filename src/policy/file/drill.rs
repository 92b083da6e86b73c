//! Reads `[drill]`.

use std::num::NonZeroU32;

use super::super::schedule::{Schedule, Zone};
use super::super::{Assertion, DURATION_HELP, DrillPolicy, memory};
use crate::document::{Entry, Table};
use crate::facts;

/// The most processors that a throwaway server can be given.
const MOST_CPUS: u32 = 1024;

/// The section; `timing` is what its keys about time say.
pub(super) fn read(table: &Table<'_>, timing: (Option<Schedule>, Zone)) -> DrillPolicy {
    const FACTS: &str = "\"counts\", \"sampled\" or \"full\"";
    const ASSERT: &str = "a list of tables: [[drill.assert]] name = \"…\" database = \"…\" sql = \"select …\"";
    let asserted = table.get("assert").and_then(|entry| entry.list(ASSERT)).unwrap_or_default();
    let assertions: Vec<(Assertion, &Entry<'_>)> =
        asserted.iter().filter_map(|item| Some((item.item(|table| read_assertion(table, item))??, item))).collect();
    for (place, (assertion, item)) in assertions.iter().enumerate() {
        if assertions[..place].iter().any(|(other, _)| other.name == assertion.name) {
            item.problem(
                format!("there are two assertions called {:?}", assertion.name),
                "give each a name of its own",
            );
        }
    }
    let (schedule, timezone) = timing;
    DrillPolicy {
        schedule,
        timezone,
        facts: table.get("facts").and_then(|entry| entry.parse(FACTS)).unwrap_or(facts::Mode::Full),
        rto_budget: table.get("rto_budget").and_then(|entry| entry.parse(DURATION_HELP)),
        memory: table.get("memory").and_then(|entry| entry.parse(memory::HELP)),
        cpus: table.get("cpus").and_then(|entry| entry.integer(1..=MOST_CPUS)).and_then(NonZeroU32::new),
        assertions: assertions.into_iter().map(|(assertion, _)| assertion).collect(),
    }
}

fn read_assertion(table: &Table<'_>, item: &Entry<'_>) -> Option<Assertion> {
    let text = |key: &str, help: &str| {
        let entry = table.get(key);
        if entry.is_none() {
            table.missing(key, format!("{key} is missing"), help);
        }
        let text = entry.as_ref()?.text(help)?;
        if text.trim().is_empty() {
            item.problem(format!("{key} is empty"), help);
        }
        Some(text.to_owned())
    };
    let name = text("name", "what the assertion is called in certificates");
    let sql = text("sql", "a query with one value: true, or a number for min and max");
    let database = table.get("database");
    if database.is_none() {
        table.missing("database", "database is missing", "the database that the query is asked in");
    }
    let database = database.and_then(|entry| entry.parse("the database's name"));
    let bound = |key: &str| table.get(key).and_then(|entry| entry.number("a whole number"));
    let (min, max) = (bound("min"), bound("max"));
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        item.problem("min is above max", "no number lies between them");
    }
    Some(Assertion { name: name?, database: database?, sql: sql?, min, max })
}
