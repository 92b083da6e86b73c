//! What a copy lacks, or has otherwise. Pure.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::DatabaseName;

use super::{About, DatabaseFacts, Facts, SequenceFacts, SequencePlace, Statement, TableContent, TableFacts};

/// How much a difference matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// The copy is not what was backed up.
    Bad,
    /// Worth knowing; the backup is not at fault.
    Note,
}

/// Something that is not in the copy as it was backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Whether the backup is at fault.
    pub weight: Weight,
    /// The database; None where it belongs to the cluster.
    pub database: Option<DatabaseName>,
    /// What it is about, such as `table public.feature`.
    pub subject: String,
    /// What was backed up, and what was found.
    pub words: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.database {
            Some(database) => write!(out, "database \"{database}\": {}: {}", self.subject, self.words),
            None => write!(out, "{}: {}", self.subject, self.words),
        }
    }
}

/// What of `expected` is not in `found` as it should be, and what is there beyond it.
///
/// Between majors the catalogues themselves differ: there, rows, sequences and missing objects count, and other differences
/// are notes. Databases of which nothing was found are named.
pub fn compare(expected: &Facts, found: &Facts) -> Vec<Difference> {
    let same_major = expected.server / 100 == found.server / 100
        || (expected.server >= 100_000 && expected.server / 10_000 == found.server / 10_000);
    let mut comparison = Comparison {
        same_major,
        same_hash: expected.algorithm == found.algorithm && expected.mode == found.mode,
        database: None,
        differences: vec![],
    };
    if expected.cluster_unknown.is_none() {
        let settled = |statement: &&Statement| !expected.changing.contains(&statement.subject());
        comparison.statements(&expected.cluster, found.cluster.iter().filter(settled));
    }
    for subject in &expected.changing {
        let words = "changed while it was backed up, so it was not compared".to_owned();
        comparison.add(Weight::Note, subject.to_string(), words);
    }
    for (name, database) in &expected.databases {
        comparison.database = Some(name.clone());
        if let Some(there) = found.databases.get(name) {
            comparison.contents(database, there);
        } else {
            let why = found.unknown.get(name).map(|why| format!(": {why}")).unwrap_or_default();
            comparison.add(Weight::Bad, "the whole of it".to_owned(), format!("backed up, but not found{why}"));
        }
    }
    comparison.differences.sort_by_key(|difference| difference.weight);
    comparison.differences
}

struct Comparison {
    same_major: bool,
    same_hash: bool,
    database: Option<DatabaseName>,
    differences: Vec<Difference>,
}

impl Comparison {
    fn add(&mut self, weight: Weight, subject: String, words: String) {
        self.differences.push(Difference { weight, database: self.database.clone(), subject, words });
    }

    fn contents(&mut self, expected: &DatabaseFacts, found: &DatabaseFacts) {
        self.tables(&expected.tables, &found.tables);
        self.sequences(&expected.sequences, &found.sequences);
        self.statements(&expected.statements, &found.statements);
    }

    fn tables(&mut self, expected: &[TableFacts], found: &[TableFacts]) {
        let key = |table: &TableFacts| (table.schema.clone(), table.name.clone());
        let mut there: HashMap<_, _> = found.iter().map(|table| (key(table), &table.content)).collect();
        for table in expected {
            let subject = format!("table {}.{}", table.schema, table.name);
            match (&table.content, there.remove(&key(table))) {
                (TableContent::Unknown(why), _) => {
                    self.add(Weight::Note, subject, format!("its rows were not compared: {why}"));
                }
                (TableContent::Rows { count, .. }, None) => {
                    self.add(Weight::Bad, subject, format!("{} rows backed up, the table is missing", grouped(*count)));
                }
                (TableContent::Rows { .. }, Some(TableContent::Unknown(why))) => {
                    self.add(Weight::Bad, subject, format!("its rows could not be looked at: {why}"));
                }
                (
                    TableContent::Rows { count: was, hash: hash_was },
                    Some(TableContent::Rows { count: is, hash: hash_is }),
                ) => {
                    if was != is {
                        let words = format!("{} rows backed up, {} restored", grouped(*was), grouped(*is));
                        self.add(Weight::Bad, subject, words);
                    } else if self.same_hash && hash_was != hash_is {
                        let words = format!("{} rows, but their content is not what was backed up", grouped(*was));
                        self.add(Weight::Bad, subject, words);
                    } else if !self.same_hash && hash_was.is_some() {
                        self.add(Weight::Note, subject, "rows were counted only: both sides hash differently".into());
                    }
                }
            }
        }
        for (schema, name) in there.into_keys() {
            self.beyond(format!("table {schema}.{name}"));
        }
    }

    fn sequences(&mut self, expected: &[SequenceFacts], found: &[SequenceFacts]) {
        let there: HashMap<_, _> = found.iter().map(|found| ((&found.schema, &found.name), found.before)).collect();
        for sequence in expected {
            let subject = format!("sequence {}.{}", sequence.schema, sequence.name);
            let SequenceFacts { before, after, .. } = sequence;
            match there.get(&(&sequence.schema, &sequence.name)) {
                None => self.add(Weight::Bad, subject, "backed up, but missing".to_owned()),
                Some(found) if lies_between(found, before, after) => {}
                Some(found) if before == after => {
                    self.add(Weight::Bad, subject, format!("stood at {before}, restored at {found}"));
                }
                Some(found) => {
                    let words = format!("stood between {before} and {after}, restored at {found}");
                    self.add(Weight::Bad, subject, words);
                }
            }
        }
    }

    fn statements<'f>(&mut self, expected: &[Statement], found: impl IntoIterator<Item = &'f Statement>) {
        let mut there: HashMap<(About, &str), &Statement> =
            found.into_iter().map(|statement| ((statement.about, statement.name.as_str()), statement)).collect();
        for statement in expected {
            let subject = statement.subject().to_string();
            match there.remove(&(statement.about, statement.name.as_str())) {
                None if was_invalid(statement) => {
                    // pg_dump leaves it out, as it should.
                    self.add(Weight::Note, subject, "was invalid, so it is not in the backup".to_owned());
                }
                None => self.add(Weight::Bad, subject, "backed up, but missing".to_owned()),
                Some(found) => self.values(&subject, statement, found),
            }
        }
        for statement in there.into_values() {
            self.beyond(statement.subject().to_string());
        }
    }

    fn values(&mut self, subject: &str, expected: &Statement, found: &Statement) {
        let words: std::collections::BTreeSet<&String> = expected.says.keys().chain(found.says.keys()).collect();
        for word in words {
            let (was, is) = (expected.says.get(word), found.says.get(word));
            if was == is {
                continue;
            }
            let weight = if self.same_major && !may_differ(expected.about, word) { Weight::Bad } else { Weight::Note };
            let shown = |value: Option<&String>| value.map_or_else(|| "nothing".to_owned(), |value| shortened(value));
            self.add(weight, subject.to_owned(), format!("{word}: {} backed up, {} found", shown(was), shown(is)));
        }
    }

    /// Something is there that was not backed up: in the same major nothing makes objects by itself.
    fn beyond(&mut self, subject: String) {
        let weight = if self.same_major { Weight::Bad } else { Weight::Note };
        self.add(weight, subject, "found, but not backed up".to_owned());
    }
}

/// A restored object gets the image's version, whatever the source had: worth knowing, no fault of the backup.
fn may_differ(about: About, word: &str) -> bool {
    matches!(
        (about, word),
        (About::Extension | About::Collation | About::Database, "version") | (About::Index, "valid")
    )
}

fn was_invalid(statement: &Statement) -> bool {
    statement.about == About::Index && statement.says.get("valid").map(String::as_str) == Some("false")
}

fn lies_between(found: &SequencePlace, before: &SequencePlace, after: &SequencePlace) -> bool {
    if before == after {
        return found == before;
    }
    let (low, high) = (before.last_value.min(after.last_value), before.last_value.max(after.last_value));
    (low..=high).contains(&found.last_value)
}

impl fmt::Display for SequencePlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let called = if self.is_called { "" } else { " (not given out)" };
        write!(out, "{}{called}", self.last_value)
    }
}

/// A number with its thousands apart, for people.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn shortened(value: &str) -> String {
    const MOST: usize = 120;
    if value.chars().count() <= MOST {
        return format!("{value:?}");
    }
    format!("{:?}…", value.chars().take(MOST).collect::<String>())
}
