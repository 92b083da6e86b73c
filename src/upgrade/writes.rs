//! Whether anybody wrote to the new server since the commit. Pure.
//!
//! Two witnesses: only a transaction that writes gets an id, so an unmoved counter means that nobody did. Where it moved,
//! because the server itself analysed a table for example, the facts of the commit are held against those of now.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::DatabaseName;
use crate::facts::{DatabaseFacts, Facts, Statement, TableContent};

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

fn tables(then: &DatabaseFacts, now: &DatabaseFacts) -> Vec<String> {
    let by_name = |facts: &DatabaseFacts| -> BTreeMap<String, TableContent> {
        let named =
            |table: &crate::facts::TableFacts| (format!("{}.{}", table.schema, table.name), table.content.clone());
        facts.tables.iter().map(named).collect()
    };
    let (then, now) = (by_name(then), by_name(now));
    let mut found = Vec::new();
    for (name, content) in &then {
        let words = match (content, now.get(name)) {
            (_, None) => "was dropped".to_owned(),
            (TableContent::Unknown(why), _) => format!("was not looked at: {why}"),
            (_, Some(TableContent::Unknown(why))) => format!("cannot be looked at: {why}"),
            (was, Some(is)) if was == is => continue,
            (TableContent::Rows { count: was, .. }, Some(TableContent::Rows { count: is, .. })) if was == is => {
                format!("{was} rows, but not the same")
            }
            (TableContent::Rows { count: was, .. }, Some(TableContent::Rows { count: is, .. })) => {
                format!("{was} rows at the commit, {is} now")
            }
        };
        found.push(format!("table {name}: {words}"));
    }
    found.extend(now.keys().filter(|name| !then.contains_key(*name)).map(|name| format!("table {name}: was made")));
    found
}

fn sequences(then: &DatabaseFacts, now: &DatabaseFacts) -> Vec<String> {
    let by_name = |facts: &DatabaseFacts| -> BTreeMap<String, (i64, bool)> {
        let named = |one: &crate::facts::SequenceFacts| {
            (format!("{}.{}", one.schema, one.name), (one.before.last_value, one.before.is_called))
        };
        facts.sequences.iter().map(named).collect()
    };
    let (then, now) = (by_name(then), by_name(now));
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| match (then.get(name), now.get(name)) {
            (Some(was), Some(is)) if was == is => None,
            (Some(was), Some(is)) => Some(format!("sequence {name}: at {} then, at {} now", was.0, is.0)),
            (None, _) => Some(format!("sequence {name}: was made")),
            (_, None) => Some(format!("sequence {name}: was dropped")),
        })
        .collect()
}

fn statements(then: &[Statement], now: &[Statement]) -> Vec<String> {
    let by_name = |all: &[Statement]| -> BTreeMap<String, BTreeMap<String, String>> {
        all.iter().map(|one| (format!("{} {}", one.about, one.name), one.says.clone())).collect()
    };
    let (then, now) = (by_name(then), by_name(now));
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| match (then.get(name), now.get(name)) {
            (Some(was), Some(is)) if was == is => None,
            (Some(_), Some(_)) => Some(format!("{name}: was changed")),
            (None, _) => Some(format!("{name}: was made")),
            (_, None) => Some(format!("{name}: was dropped")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{About, Algorithm, Mode, SequenceFacts, SequencePlace, TableFacts};

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
