//! Which databases a backup takes: `["*", "!scratch_*"]`.

use crate::cluster::DatabaseName;

/// Patterns that include, and patterns that exclude. `*` stands for any text, `!` in front excludes, `\` takes the
/// next character as it is. A database is taken when a pattern includes it and none excludes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSelection {
    written: Vec<String>,
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// Why a selection was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseSelectionError {
    /// Nothing would be taken.
    #[error("no pattern includes a database")]
    NothingIncluded,
    /// A pattern that cannot match the name of any database.
    #[error("{pattern:?} is not a database pattern: {rule}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The rule it breaks.
        rule: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    AnyText,
}

impl DatabaseSelection {
    /// Every database.
    pub fn everything() -> Self {
        Self { written: vec!["*".to_owned()], include: vec![Pattern(vec![Piece::AnyText])], exclude: Vec::new() }
    }

    /// Reads patterns.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Self, DatabaseSelectionError> {
        let mut selection = Self { written: Vec::new(), include: Vec::new(), exclude: Vec::new() };
        for written in patterns {
            match written.strip_prefix('!') {
                Some(rest) => selection.exclude.push(Pattern::new(written, rest)?),
                None => selection.include.push(Pattern::new(written, written)?),
            }
            selection.written.push(written.to_owned());
        }
        if selection.include.is_empty() { Err(DatabaseSelectionError::NothingIncluded) } else { Ok(selection) }
    }

    /// True when `database` is taken.
    pub fn selects(&self, database: &DatabaseName) -> bool {
        let matched = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(database.as_str()));
        matched(&self.include) && !matched(&self.exclude)
    }

    /// True when a pattern takes `database`, or leaves it out.
    pub fn speaks_of(&self, database: &DatabaseName) -> bool {
        self.include.iter().chain(&self.exclude).any(|pattern| pattern.matches(database.as_str()))
    }

    /// The databases that are included by their full name; a backup that does not find one of them should say so.
    pub fn named(&self) -> impl Iterator<Item = DatabaseName> + '_ {
        self.include.iter().filter_map(Pattern::literal)
    }

    /// The patterns as written.
    pub fn patterns(&self) -> &[String] {
        &self.written
    }
}

impl Pattern {
    fn new(written: &str, text: &str) -> Result<Self, DatabaseSelectionError> {
        let refuse = |rule| DatabaseSelectionError::Pattern { pattern: written.to_owned(), rule };
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            pieces.push(match character {
                '*' => Piece::AnyText,
                '\\' => Piece::Char(characters.next().ok_or_else(|| refuse("nothing follows the last \\"))?),
                other => Piece::Char(other),
            });
        }
        let fixed: String = pieces.iter().filter_map(|piece| piece.char()).collect();
        if pieces.is_empty() {
            Err(refuse("it is empty"))
        } else if !fixed.is_empty() && DatabaseName::new(fixed).is_err() {
            Err(refuse("the name of a database has at most 63 bytes and no NUL"))
        } else {
            Ok(Self(pieces))
        }
    }

    fn literal(&self) -> Option<DatabaseName> {
        let name: Option<String> = self.0.iter().map(|piece| piece.char()).collect();
        DatabaseName::new(name?).ok()
    }

    /// Greedy with one point to come back to: linear in most cases, never worse than |pattern| × |name|.
    fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut piece, mut at) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(piece) {
                Some(Piece::AnyText) => {
                    star = Some((piece, at));
                    piece += 1;
                }
                Some(Piece::Char(character)) if *character == name[at] => {
                    piece += 1;
                    at += 1;
                }
                _ => {
                    let Some((star_piece, star_at)) = star else { return false };
                    star = Some((star_piece, star_at + 1));
                    piece = star_piece + 1;
                    at = star_at + 1;
                }
            }
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::AnyText)
    }
}

impl Piece {
    fn char(self) -> Option<char> {
        match self {
            Self::Char(character) => Some(character),
            Self::AnyText => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selects(patterns: &[&str], name: &str) -> bool {
        let selection = DatabaseSelection::new(patterns.iter().copied()).expect("a selection");
        selection.selects(&DatabaseName::new(name).expect("a name"))
    }

    #[test]
    fn exclusion_wins() {
        assert!(selects(&["*"], "chado"));
        assert!(!selects(&["*", "!chado"], "chado"));
        assert!(!selects(&["!tmp_*", "*"], "tmp_1"), "the order does not matter");
        assert!(selects(&["chado", "feature*"], "features"));
        assert!(!selects(&["chado", "feature*"], "other"));
        assert!(selects(&["a*b*c"], "a-b-b-c"));
        assert!(!selects(&["a*b*c"], "a-b-c-d"));
        assert!(!selects(&["Chado"], "chado"), "case matters, as it does to the server");
    }

    #[test]
    fn odd_names_can_be_written() {
        assert!(selects(&[r"\*"], "*") && !selects(&[r"\*"], "x"));
        assert!(selects(&[r"\!odd"], "!odd"));
        assert!(selects(&["we ird"], "we ird"));
    }

    #[test]
    fn odd_selections_are_refused() {
        for patterns in [&[][..], &["!x"], &["*", ""], &["*", "!"], &["x\\"], &[&"x".repeat(64)]] {
            assert!(DatabaseSelection::new(patterns.iter().copied()).is_err(), "{patterns:?}");
        }
    }

    #[test]
    fn full_names_are_known() {
        let selection = DatabaseSelection::new(["chado", "x*", r"a\*", "!gone"]).expect("a selection");
        assert_eq!(selection.named().map(|name| name.to_string()).collect::<Vec<_>>(), ["chado", "a*"]);
    }

    fn escaped(name: &str) -> String {
        name.chars().flat_map(|c| ['\\', c]).collect()
    }

    /// The definition of `*`, without cleverness.
    fn slowly_matches(pieces: &[Piece], name: &[char]) -> bool {
        match (pieces.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((Piece::AnyText, rest)), None) => slowly_matches(rest, name),
            (Some((Piece::AnyText, rest)), Some((_, shorter))) => {
                slowly_matches(rest, name) || slowly_matches(pieces, shorter)
            }
            (Some((Piece::Char(wanted), rest)), Some((found, shorter))) => {
                wanted == found && slowly_matches(rest, shorter)
            }
            (None, Some(_)) | (Some((Piece::Char(_), _)), None) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_the_definition_says(pattern in "[ab*]{1,8}", name in "[ab]{1,10}") {
            let pattern = Pattern::new(&pattern, &pattern).expect("a pattern");
            let characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), slowly_matches(&pattern.0, &characters));
        }

        #[test]
        fn any_name_can_be_named(name in "[^\0]{1,15}", other in "[^\0]{1,15}") {
            prop_assert!(selects(&[&escaped(&name)], &name));
            prop_assert_eq!(selects(&[&escaped(&name)], &other), name == other);
        }
    }
}
