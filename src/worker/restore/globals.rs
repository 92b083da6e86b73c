//! What must change in the text of `pg_dumpall --globals-only` on its way into a new server: line by line, as it streams.

use std::io::{self, Write};

use crate::cluster::PgMajor;
use crate::sql::quote_identifier;

/// The changes for one restore.
#[derive(Debug)]
pub(super) struct Changes {
    /// Statements that create the role which initdb has made already. `ALTER ROLE`, which gives it its password and
    /// attributes, stays.
    existing: [Vec<u8>; 2],
    /// Until 15 the grantor of a membership was recorded but never checked; since 16 it must hold the right itself, so the
    /// old server's word is left out (PostgreSQL 16 release notes). 18's own `pg_dumpall` leaves it out as well.
    without_grantor: bool,
}

impl Changes {
    pub(super) fn new(bootstrap_role: &str, from: PgMajor, to: PgMajor) -> Self {
        Self {
            existing: [
                format!("CREATE ROLE {bootstrap_role};").into_bytes(),
                format!("CREATE ROLE {};", quote_identifier(bootstrap_role)).into_bytes(),
            ],
            without_grantor: !from.is_at_least(16) && to.is_at_least(16),
        }
    }

    /// The line as it shall be; None where it shall not be. `line` has no line end.
    fn apply<'a>(&self, line: &'a [u8]) -> Option<(&'a [u8], &'static [u8])> {
        if self.existing.iter().any(|existing| existing == line) {
            return None;
        }
        if self.without_grantor
            && line.starts_with(b"GRANT ")
            && line.ends_with(b";")
            && let Some(at) = outside_quotes(line, b" GRANTED BY ")
        {
            return Some((&line[..at], b";"));
        }
        Some((line, b""))
    }
}

/// Where `part` first stands in `line` outside of a quoted identifier.
fn outside_quotes(line: &[u8], part: &[u8]) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate() {
        match byte {
            // A doubled quote inside an identifier closes and opens it again.
            b'"' => quoted = !quoted,
            _ if !quoted && line[at..].starts_with(part) => return Some(at),
            _ => {}
        }
    }
    None
}

/// Passes lines on, changed.
pub(super) struct LineEditor {
    inner: Box<dyn Write>,
    changes: Changes,
    line: Vec<u8>,
}

impl LineEditor {
    pub(super) fn new(inner: Box<dyn Write>, changes: Changes) -> Self {
        Self { inner, changes, line: Vec::new() }
    }
}

impl Write for LineEditor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if let Some(line) = self.line.strip_suffix(b"\n") {
                if let Some((kept, end)) = self.changes.apply(line) {
                    for part in [kept, end, b"\n"] {
                        self.inner.write_all(part)?;
                    }
                }
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A last line without an end is passed on as it is.
        self.inner.write_all(&std::mem::take(&mut self.line))?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn edited(text: &str, piece: usize, from: u16, to: u16) -> String {
        let out = Shared::default();
        let changes = Changes::new("postgres", PgMajor::since_10(from), PgMajor::since_10(to));
        let mut editor = LineEditor::new(Box::new(out.clone()), changes);
        for piece in text.as_bytes().chunks(piece) {
            editor.write_all(piece).expect("memory");
        }
        editor.flush().expect("memory");
        let bytes = out.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn only_the_creation_of_the_existing_role_is_left_out() {
        let text = "CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER;\nCREATE ROLE \"postgres\";\nCREATE ROLE postgres2;\nend";
        assert_eq!(edited(text, 7, 17, 17), "ALTER ROLE postgres WITH SUPERUSER;\nCREATE ROLE postgres2;\nend");
    }

    #[test]
    fn grantors_of_old_servers_are_left_out_for_new_ones() {
        let text = "GRANT \"x GRANTED BY y\" TO b WITH ADMIN OPTION GRANTED BY \" GRANTED BY \";\nALTER ROLE x SET y TO ' GRANTED BY ;';\n";
        let without = "GRANT \"x GRANTED BY y\" TO b WITH ADMIN OPTION;\nALTER ROLE x SET y TO ' GRANTED BY ;';\n";
        assert_eq!(edited(text, 5, 13, 18), without);
        assert_eq!(edited(text, 5, 13, 15), text);
        assert_eq!(edited(text, 5, 17, 18), text);
    }

    proptest! {
        #[test]
        fn other_text_passes_unchanged(text in "[ -~\n]{0,200}", piece in 1usize..50) {
            prop_assume!(!text.contains("CREATE ROLE") && !text.contains("GRANT"));
            prop_assert_eq!(edited(&text, piece, 13, 18), text);
        }
    }
}
