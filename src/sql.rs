//! Quoting: names and values as SQL and libpq's connection strings want them, whatever is in them. Pure.

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

    proptest! {
        #[test]
        fn conninfo_values_read_back(text in "[^\0]{0,30}") {
            let config: tokio_postgres::Config = format!("dbname={}", quote_conninfo(&text)).parse().expect("a conninfo");
            prop_assert_eq!(config.get_dbname(), Some(text.as_str()));
        }
    }
}
