//! Reads a TOML document key by key and remembers every problem instead of stopping at the first.
//!
//! A reader asks a [`Table`] for the keys it knows. Whatever it did not ask for is an unknown key; whatever has the
//! wrong type or value becomes a [`Problem`] with its place in the file, and reading goes on. So one look at the
//! output shows all there is to mend.
//!
//! ```text
//! document::read(file, text, |root| root.section("backup", |backup| …)) ──▶ Outcome { value, problems, known }
//! ```
//!
//! Invariant: a document that has a syntax error is not read at all (what the parser recovered would give follow-up
//! problems that are not there); its [`Outcome::value`] is `None`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

/// Where in a file: both count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Something wrong in a configuration file, worded for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the user would name it.
    pub file: PathBuf,
    /// The place; `None` when the problem concerns the whole file.
    pub position: Option<Position>,
    /// The key's full path, `backup.dump.schedule`; empty when no key is concerned.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(file: &Path, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            key: String::new(),
            message: message.into(),
            help: Some(help.into()),
        }
    }
}

/// `policies/chado.toml:7:12: backup.dump.schedule: <message>`, and the help on a line of its own.
impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(out, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(out, " {}:", self.key)?;
        }
        write!(out, " {}", self.message)?;
        if let Some(help) = &self.help {
            write!(out, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// What came of reading one document.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What the reader made of the document, with stand-ins where there were problems; `None` after a syntax error.
    pub value: Option<T>,
    /// Everything wrong, in the file's order. The value counts only when this is empty.
    pub problems: Vec<Problem>,
    /// The path of every key the reader asked for. The JSON Schema is held against this.
    pub known: BTreeSet<String>,
}

/// Parses `text` and lets `read` take what it knows out of the root table.
pub fn read<T>(file: &Path, text: &str, read: impl FnOnce(&Table<'_>) -> T) -> Outcome<T> {
    let log = Log { file, text, problems: RefCell::default(), known: RefCell::default() };
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        log.problem(error.span().map(|span| span.start), "", format!("not TOML: {}", error.message()), None);
    }
    let value = errors.is_empty().then(|| {
        let table = Table::new(&log, String::new(), None, Some(root.get_ref()));
        let value = read(&table);
        table.report_unknown_keys();
        value
    });
    let mut problems = log.problems.into_inner();
    problems.sort_by_key(|problem| problem.position);
    Outcome { value, problems, known: log.known.into_inner() }
}

#[derive(Debug)]
struct Log<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
    known: RefCell<BTreeSet<String>>,
}

impl Log<'_> {
    fn problem(&self, offset: Option<usize>, key: &str, message: String, help: Option<String>) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            position: offset.map(|offset| self.position(offset)),
            key: key.to_owned(),
            message,
            help,
        });
    }

    fn position(&self, offset: usize) -> Position {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            line: before.bytes().filter(|&byte| byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// A table of the document, or an absent one: asking an absent table gives nothing, so that defaults are written once.
#[derive(Debug)]
pub struct Table<'a> {
    log: &'a Log<'a>,
    path: String,
    /// Where the table begins; that of the nearest present parent when it is absent.
    offset: Option<usize>,
    entries: Option<&'a DeTable<'a>>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Table<'a> {
    fn new(log: &'a Log<'a>, path: String, offset: Option<usize>, entries: Option<&'a DeTable<'a>>) -> Self {
        Self { log, path, offset, entries, asked: RefCell::default() }
    }

    /// The value of `key`, which is a known key from now on.
    pub fn get(&self, key: &str) -> Option<Entry<'a>> {
        let path = self.path_of(key);
        self.asked.borrow_mut().insert(key.to_owned());
        // A table in a list has no path of its own: there may be any number of them.
        if !path.contains('[') {
            self.log.known.borrow_mut().insert(path.clone());
        }
        let (_, value) = self.entries?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Entry { log: self.log, path, offset: value.span().start, value: value.get_ref() })
    }

    /// Reads the table `key`; `read` runs on an absent table when there is none.
    pub fn section<T>(&self, key: &str, read: impl FnOnce(&Table<'a>) -> T) -> T {
        let table = self.get(key).and_then(|entry| entry.table());
        let table = table.unwrap_or_else(|| Table::new(self.log, self.path_of(key), self.offset, None));
        let value = read(&table);
        table.report_unknown_keys();
        value
    }

    /// Reads the table `key` if there is one.
    pub fn optional<T>(&self, key: &str, read: impl FnOnce(&Table<'a>) -> T) -> Option<T> {
        let present = self.entries.is_some_and(|entries| entries.iter().any(|(name, _)| name.get_ref() == key));
        if present {
            Some(self.section(key, read))
        } else {
            // Known all the same, so that a slip of the pen is recognised.
            self.get(key);
            None
        }
    }

    /// Reads every entry of this table as a table with a name of the user's choice (`[repos.<name>]`).
    pub fn each_named<N: FromStr + Ord, T>(&self, mut read: impl FnMut(&Table<'a>) -> T) -> Vec<(N, T)>
    where
        N::Err: fmt::Display,
    {
        let mut named = Vec::new();
        for (name, value) in self.entries.into_iter().flat_map(DeTable::iter) {
            self.asked.borrow_mut().insert(name.get_ref().to_string());
            let path = self.path_of(name.get_ref());
            match name.get_ref().parse::<N>() {
                Err(error) => self.log.problem(Some(name.span().start), &path, error.to_string(), None),
                Ok(parsed) => {
                    let entry = Entry { log: self.log, path, offset: value.span().start, value: value.get_ref() };
                    if let Some(table) = entry.table() {
                        named.push((parsed, read(&table)));
                        table.report_unknown_keys();
                    }
                }
            }
        }
        named
    }

    /// True when the table is in the file.
    pub fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    /// The table's own path, `backup.dump`; empty for the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the table begins.
    pub fn position(&self) -> Option<Position> {
        self.offset.map(|offset| self.log.position(offset))
    }

    /// Reports a problem of `key`, which is not in this table though it should be.
    pub fn missing(&self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.log.problem(self.offset, &self.path_of(key), message.into(), Some(help.into()));
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn report_unknown_keys(&self) {
        let asked = self.asked.borrow();
        for (name, _) in self.entries.into_iter().flat_map(DeTable::iter) {
            let key: &str = name.get_ref();
            if !asked.contains(key) {
                let known = asked.iter().map(String::as_str);
                let help = match nearest(key, known.clone()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
                };
                self.log.problem(Some(name.span().start), &self.path_of(key), "unknown key".to_owned(), Some(help));
            }
        }
    }
}

/// A value that is in the document.
#[derive(Debug)]
pub struct Entry<'a> {
    log: &'a Log<'a>,
    path: String,
    offset: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    /// Reports a problem of this value.
    pub fn problem(&self, message: impl Into<String>, help: impl Into<String>) {
        self.log.problem(Some(self.offset), &self.path, message.into(), Some(help.into()));
    }

    /// Where the value begins.
    pub fn position(&self) -> Position {
        self.log.position(self.offset)
    }

    /// The value as text.
    pub fn text(&self, help: &str) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong_type("a string", help);
        }
        text
    }

    /// The value as text that `T` accepts. `T`'s own error is the message.
    pub fn parse<T: FromStr>(&self, help: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        match self.text(help)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(error.to_string(), help);
                None
            }
        }
    }

    /// The value as yes or no.
    pub fn flag(&self) -> Option<bool> {
        let flag = self.value.as_bool();
        if flag.is_none() {
            self.wrong_type("true or false", "true, or false");
        }
        flag
    }

    /// The value as a whole number within `range`.
    pub fn integer(&self, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let help = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("an integer", &help);
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| u32::try_from(n).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.problem(format!("{} is out of range", integer.as_str()), help);
        }
        number
    }

    /// The value as a list; each item is an entry `key[0]`, `key[1]`, …
    pub fn list(&self, help: &str) -> Option<Vec<Entry<'a>>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type("a list", help);
            return None;
        };
        let entry = |(index, item): (usize, &'a toml::Spanned<DeValue<'a>>)| Entry {
            log: self.log,
            path: format!("{}[{index}]", self.path),
            offset: item.span().start,
            value: item.get_ref(),
        };
        Some(array.iter().enumerate().map(entry).collect())
    }

    /// The value as a whole number, negative or not.
    pub fn number(&self, help: &str) -> Option<i64> {
        let number =
            self.value.as_integer().and_then(|integer| i64::from_str_radix(integer.as_str(), integer.radix()).ok());
        if number.is_none() {
            self.wrong_type("a whole number", help);
        }
        number
    }

    /// Reads an item of a list that is a table: `[[key]]`.
    pub fn item<T>(&self, read: impl FnOnce(&Table<'a>) -> T) -> Option<T> {
        let table = self.table()?;
        let value = read(&table);
        table.report_unknown_keys();
        Some(value)
    }

    fn table(&self) -> Option<Table<'a>> {
        let Some(entries) = self.value.as_table() else {
            self.wrong_type("a table", &format!("write [{}] or {} = {{ … }}", self.path, self.path));
            return None;
        };
        Some(Table::new(self.log, self.path.clone(), Some(self.offset), Some(entries)))
    }

    fn wrong_type(&self, expected: &str, help: &str) {
        let found = match self.value.type_str() {
            kind @ ("integer" | "array") => format!("an {kind}"),
            kind => format!("a {kind}"),
        };
        self.problem(format!("{expected} is expected, not {found}"), help);
    }
}

/// The candidate that `word` was most likely meant to be, if any is near enough.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    let distance = |candidate: &&str| strsim::osa_distance(&word, &candidate.to_lowercase());
    let best = candidates.min_by_key(distance)?;
    let shortened = word.len() >= 3 && best.to_lowercase().starts_with(&word);
    (shortened || distance(&best) <= 1 + word.chars().count() / 4).then_some(best)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problems(text: &str, reader: impl FnOnce(&Table<'_>)) -> String {
        let outcome = read(Path::new("f.toml"), text, reader);
        outcome.problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat()
    }

    #[test]
    fn every_syntax_error_is_told_with_its_place() {
        insta::assert_snapshot!(problems("a = \nb = 1\nb = 2\n", |_| ()), @r"
        f.toml:1:5: not TOML: string values must be quoted, expected literal string
        f.toml:3:1: not TOML: duplicate key
        ");
    }

    #[test]
    fn unknown_keys_are_told_with_the_nearest_known_one() {
        let told = problems("[backup]\nschedul = 1\nzzz = 2\n", |root| {
            root.section("backup", |backup| {
                backup.get("schedule");
            });
        });
        insta::assert_snapshot!(told, @r"
        f.toml:2:1: backup.schedul: unknown key
            help: did you mean schedule?
        f.toml:3:1: backup.zzz: unknown key
            help: known here: schedule
        ");
    }

    #[test]
    fn wrong_types_are_told_at_the_value() {
        let told = problems("ä = 'x'\nn = 1.5\nt = 3\nl = [1, 'x']\nbig = 99999999999999999999\n", |root| {
            root.get("ä").and_then(|entry| entry.integer(1..=2));
            root.get("n").and_then(|entry| entry.text("quote it"));
            root.section("t", |_| ());
            for item in root.get("l").and_then(|entry| entry.list("[…]")).expect("a list") {
                item.text("quote it");
            }
            root.get("big").and_then(|entry| entry.integer(1..=2));
        });
        insta::assert_snapshot!(told, @"f.toml:1:1: not TOML: invalid unquoted key, expected letters, numbers, `-`, `_`");
    }

    #[test]
    fn far_words_are_not_suggested() {
        assert_eq!(nearest("jbos", ["jobs", "repos"].into_iter()), Some("jobs"));
        assert_eq!(nearest("wal_level", ["jobs", "repos"].into_iter()), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
        assert_eq!(nearest("crit", ["critical", "warn"].into_iter()), Some("critical"));
    }

    proptest! {
        #[test]
        fn places_lie_inside_the_file(text in "[a-c=\\[\\]\"'{}.#\n ä0-9,]{0,80}") {
            let outcome = read(Path::new("f.toml"), &text, |_| ());
            let lines = text.split('\n').count();
            for problem in outcome.problems {
                prop_assert!(problem.position.is_none_or(|place| place.line >= 1 && place.line <= lines), "{problem}");
            }
        }
    }
}
