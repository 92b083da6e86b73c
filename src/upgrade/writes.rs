//! Whether anybody wrote to the new server since the commit. Pure.
//!
//! Two witnesses: only a transaction that writes gets an id, so an unmoved counter means that nobody did. Where it moved,
//! because the server itself analysed a table for example, the facts of the commit are held against those of now.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::DatabaseName;
use crate::facts::{DatabaseFacts, Facts, SequenceFacts, SequencePlace, Statement, TableContent, TableFacts};

/// What changed from `at_commit` to `now`, facts of one server: nothing where nobody wrote.
pub(super) fn written(at_commit: &Facts, now: &Facts) -> Vec<String> {
    let mut found: Vec<String> = statements(&at_commit.cluster, &now.cluster);
    let names: BTreeSet<&DatabaseName> = at_commit.databases.keys().chain(now.databases.keys()).collect();
    for name in names {
        match (at_commit.databases.get(name), now.databases.get(name)) {
            (Some(then), Some(now)) => {
                let changes = tables(then, now).into_iter().chain(sequences(then, now));
                let changes = changes.chain(statements(&then.statements, &now.statements));
                found.extend(changes.map(|words| format!("database \"{name}\": {words}")));
            }
            (None, _) => found.push(format!("database \"{name}\" was made")),
            (_, None) => found.push(format!("database \"{name}\" was dropped, or cannot be entered")),
        }
    }
    found
}

/// What was made, dropped, or is otherwise, in the order of the names; `compare` says how, or nothing where it is the same.
fn changes<T>(
    then: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
    compare: impl Fn(&T, &T) -> Option<String>,
) -> Vec<String> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let change = |name: &String| match (then.get(name), now.get(name)) {
        (Some(was), Some(is)) => compare(was, is),
        (Some(_), None) => Some("was dropped".to_owned()),
        (None, _) => Some("was made".to_owned()),
    };
    names.into_iter().filter_map(|name| Some(format!("{name}: {}", change(name)?))).collect()
}

fn tables(then: &DatabaseFacts, now: &DatabaseFacts) -> Vec<String> {
    use TableContent::{Rows, Unknown};
    fn by_name(facts: &DatabaseFacts) -> BTreeMap<String, &TableContent> {
        let named = |table: &TableFacts| format!("table {}.{}", table.schema, table.name);
        facts.tables.iter().map(|table| (named(table), &table.content)).collect()
    }
    changes(&by_name(then), &by_name(now), |was, is| match (was, is) {
        (Unknown(why), _) => Some(format!("was not looked at: {why}")),
        (_, Unknown(why)) => Some(format!("cannot be looked at: {why}")),
        (was, is) if was == is => None,
        (Rows { count: was, .. }, Rows { count: is, .. }) if was == is => Some(format!("{was} rows, but not the same")),
        (Rows { count: was, .. }, Rows { count: is, .. }) => Some(format!("{was} rows at the commit, {is} now")),
    })
}

fn sequences(then: &DatabaseFacts, now: &DatabaseFacts) -> Vec<String> {
    fn by_name(facts: &DatabaseFacts) -> BTreeMap<String, SequencePlace> {
        let named = |one: &SequenceFacts| format!("sequence {}.{}", one.schema, one.name);
        facts.sequences.iter().map(|one| (named(one), one.before)).collect()
    }
    changes(&by_name(then), &by_name(now), |was, is| {
        (was != is).then(|| format!("at {} then, at {} now", was.last_value, is.last_value))
    })
}

fn statements(then: &[Statement], now: &[Statement]) -> Vec<String> {
    fn by_name(all: &[Statement]) -> BTreeMap<String, &BTreeMap<String, String>> {
        all.iter().map(|one| (one.subject().to_string(), &one.says)).collect()
    }
    changes(&by_name(then), &by_name(now), |was, is| (was != is).then(|| "was changed".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{About, Algorithm, Mode};

    fn facts() -> Facts {
        let place = SequencePlace { last_value: 7, is_called: true };
        let table = |name: &str, count| TableFacts {
            schema: "public".to_owned(),
            name: name.to_owned(),
            content: TableContent::Rows { count, hash: Some("1".to_owned()) },
        };
        let database = DatabaseFacts {
            tables: vec![table("t", 5), table("u", 6)],
            sequences: vec![SequenceFacts {
                schema: "public".to_owned(),
                name: "s".to_owned(),
                before: place,
                after: place,
            }],
            statements: vec![],
            seconds: 1.0,
            next_transaction: None,
        };
        Facts {
            cluster: vec![Statement { about: About::Role, name: "bob".to_owned(), says: BTreeMap::new() }],
            databases: [(name("shop"), database)].into(),
            ..Facts::of_server(180_000, Mode::Full, Algorithm::Record)
        }
    }

    fn name(text: &str) -> DatabaseName {
        DatabaseName::new(text).expect("a name")
    }

    #[test]
    fn the_same_content_means_that_nobody_wrote() {
        let mut later = facts();
        later.databases.get_mut(&name("shop")).expect("there").seconds = 9.0;
        later.databases.get_mut(&name("shop")).expect("there").tables.reverse();
        assert_eq!(written(&facts(), &later), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_write_is_named() {
        let mut later = facts();
        later.cluster[0].says.insert("password".to_owned(), "x".to_owned());
        later.databases.insert(name("new"), DatabaseFacts::default());
        let shop = later.databases.get_mut(&name("shop")).expect("there");
        shop.tables[0].content = TableContent::Rows { count: 6, hash: Some("2".to_owned()) };
        shop.tables[1].content = TableContent::Rows { count: 6, hash: Some("2".to_owned()) };
        shop.tables.push(TableFacts {
            schema: "public".to_owned(),
            name: "v".to_owned(),
            content: shop.tables[0].content.clone(),
        });
        shop.sequences[0].before.last_value = 8;
        assert_eq!(
            written(&facts(), &later),
            [
                "role bob: was changed",
                "database \"new\" was made",
                "database \"shop\": table public.t: 5 rows at the commit, 6 now",
                "database \"shop\": table public.u: 6 rows, but not the same",
                "database \"shop\": table public.v: was made",
                "database \"shop\": sequence public.s: at 7 then, at 8 now",
            ]
        );
        assert_eq!(written(&later, &facts()).len(), 6);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_unchanged() {
        let mut later = facts();
        let shop = later.databases.get_mut(&name("shop")).expect("there");
        shop.tables[0].content = TableContent::Unknown("locked".to_owned());
        assert_eq!(written(&facts(), &later), ["database \"shop\": table public.t: cannot be looked at: locked"]);
    }
}
