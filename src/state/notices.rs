//! What was said last about each subject, so that a daemon that starts again does not say it again.

use rusqlite::params;

use super::{State, StateError};

impl State {
    /// What was said last: subjects and states, in words.
    pub fn said(&self) -> Result<Vec<(String, String)>, StateError> {
        let connection = self.connection();
        let mut query = connection.prepare("select subject, state from said").map_err(self.wrong())?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(self.wrong())?;
        rows.collect::<Result<_, _>>().map_err(self.wrong())
    }

    /// Remembers what is said now.
    pub fn say(&self, subject: &str, state: &str) -> Result<(), StateError> {
        self.connection()
            .execute("insert or replace into said (subject, state) values (?1, ?2)", params![subject, state])
            .map_err(self.wrong())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_known_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opened");
        for word in ["good", "bad"] {
            state.say("check chado dump", word).expect("said");
        }
        let known = State::open(folder.path()).expect("opened").said().expect("read");
        assert_eq!(known, [("check chado dump".to_owned(), "bad".to_owned())]);
    }
}
