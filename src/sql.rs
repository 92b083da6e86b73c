//! Quoting: names and values as SQL and libpq's connection strings want them, whatever is in them. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// `text` as an SQL identifier, whatever is in it.
pub fn quote_identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// `text` as an SQL string, whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// `text` as a value in a libpq connection string.
pub fn quote_conninfo(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Patterns of tables, as psql and `pg_dump` take them, that fit every table but those in `kept`, each of which is a schema and a name.
///
/// A pattern of theirs is a regular expression in which nothing can be denied but single letters (psql's manual, Patterns). So this
/// has, for every beginning that names in `kept` share, whatever goes on otherwise.
pub fn all_tables_but(kept: &[(&str, &str)]) -> Vec<String> {
    let mut by_schema: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (schema, name) in kept {
        by_schema.entry(schema).or_default().insert(name);
    }
    let others = format!("{}.*", any_name_but(&by_schema.keys().copied().collect()));
    let within =
        by_schema.iter().map(|(schema, names)| format!("{}.{}", quote_identifier(schema), any_name_but(names)));
    std::iter::once(others).chain(within).collect()
}

fn any_name_but(kept: &BTreeSet<&str>) -> String {
    // What follows each beginning of a name.
    let mut beginnings: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for name in kept {
        for (at, letter) in name.char_indices() {
            beginnings.entry(&name[..at]).or_default().insert(letter);
        }
        beginnings.entry(name).or_default();
    }
    let quoted = |text: &str| if text.is_empty() { String::new() } else { quote_identifier(text) };
    let mut others = Vec::new();
    for (beginning, next) in &beginnings {
        if !beginning.is_empty() && !kept.contains(beginning) {
            others.push(quoted(beginning));
        }
        // A hyphen between two letters would mean those between.
        let (hyphen, rest): (BTreeSet<char>, BTreeSet<char>) = next.iter().partition(|letter| **letter == '-');
        let next: String = rest.into_iter().chain(hyphen).collect();
        let otherwise = if next.is_empty() { "?*".to_owned() } else { format!("[^{}]*", quoted(&next)) };
        others.push(quoted(beginning) + &otherwise);
    }
    format!("({})", others.join("|"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier(r#"we "ird"#), r#""we ""ird""#);
        assert_eq!(quote_literal(r"it's \ me"), r"E'it''s \\ me'");
        assert_eq!(quote_conninfo(r"it's \ me"), r"'it\'s \\ me'");
    }

    /// Whether a pattern of these fits. What a server makes of them is seen where tables are restored.
    fn fits(pattern: &str, schema: &str, name: &str) -> bool {
        // Within quotes every letter is one that stands for itself.
        let (mut quoted, mut letters, mut parts) = (false, pattern.chars().peekable(), vec![vec![]]);
        while let Some(letter) = letters.next() {
            match letter {
                '"' if quoted && letters.next_if_eq(&'"').is_some() => parts.last_mut().expect("one").push((true, '"')),
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(vec![]),
                letter => parts.last_mut().expect("one").push((quoted, letter)),
            }
        }
        let text = |letters: &[(bool, char)]| letters.iter().map(|(_, letter)| *letter).collect::<String>();
        let alternative = |letters: &[(bool, char)], name: &str| {
            let (literal, rest) = letters.split_at(letters.iter().take_while(|(quoted, _)| *quoted).count());
            let Some(behind) = name.strip_prefix(&text(literal)) else { return false };
            match rest {
                [] => behind.is_empty(),
                [(false, '?'), (false, '*')] => !behind.is_empty(),
                [(false, '*')] => true,
                [(false, '['), (false, '^'), class @ .., (false, ']'), (false, '*')] => {
                    let last = class.len() - 1;
                    assert!(class.iter().enumerate().all(|(at, letter)| letter.0 && (letter.1 != '-' || at == last)));
                    behind.chars().next().is_some_and(|first| !text(class).contains(first))
                }
                other => panic!("{other:?} in {pattern}"),
            }
        };
        let part = |letters: &[(bool, char)], name: &str| match letters {
            [(false, '('), inside @ .., (false, ')')] => {
                inside.split(|letter| *letter == (false, '|')).any(|letters| alternative(letters, name))
            }
            letters => alternative(letters, name),
        };
        assert_eq!(parts.len(), 2, "{pattern}");
        part(&parts[0], schema) && part(&parts[1], name)
    }

    #[test]
    fn patterns_are_as_psql_takes_them() {
        assert_eq!(
            all_tables_but(&[("s", "ab"), ("s", "a")]),
            [r#"([^"s"]*|"s"?*).*"#, r#""s".([^"a"]*|"a"[^"b"]*|"ab"?*)"#]
        );
    }

    proptest! {
        #[test]
        fn every_table_but_those_fits(
            kept in prop::collection::vec(("[ab\\-\"]{1,3}", "[abC.$^\\]\\-\\\\ü *?|(\\[]{1,5}"), 1..4),
            schema in "[ab\\-\"]{1,3}",
            name in "[abcC.$^\\]\\-\\\\ü *?|(\\[\"]{1,6}",
        ) {
            let borrowed: Vec<(&str, &str)> = kept.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
            let patterns = all_tables_but(&borrowed);
            let is_left_out = |schema: &str, name: &str| patterns.iter().any(|pattern| fits(pattern, schema, name));
            for (schema, name) in &borrowed {
                prop_assert!(!is_left_out(schema, name), "{} {} {:?}", schema, name, patterns);
            }
            prop_assert_eq!(is_left_out(&schema, &name), !borrowed.contains(&(&schema, &name)), "{:?}", patterns);
            for (schema, _) in &borrowed {
                prop_assert_eq!(is_left_out(schema, &name), !borrowed.contains(&(schema, &name)), "{:?}", patterns);
            }
        }

        #[test]
        fn conninfo_values_read_back(text in "[^\0]{0,30}") {
            let config: tokio_postgres::Config = format!("dbname={}", quote_conninfo(&text)).parse().expect("a conninfo");
            prop_assert_eq!(config.get_dbname(), Some(text.as_str()));
        }
    }
}
