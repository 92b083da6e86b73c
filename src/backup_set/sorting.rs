//! Which libraries a server sorts text with. Indexes are in their order, so files that come to another version of one need new indexes.

use serde::{Deserialize, Serialize};

/// Versions of the libraries that sort text; indexes are in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sorting {
    /// Of the C library, `2.31`; None where it cannot be told.
    pub libc: Option<String>,
    /// Of ICU, `67`; None where the server has none.
    pub icu: Option<String>,
}

impl Sorting {
    /// What sorts in another way, maybe, in `new`: each library with both versions. One that is unknown counts as another.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let word = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        let mut changes = Vec::new();
        if self.libc.is_none() || self.libc != new.libc {
            changes.push(format!("the C library, {} to {}", word(&self.libc), word(&new.libc)));
        }
        if self.icu != new.icu {
            changes.push(format!("ICU, {} to {}", word(&self.icu), word(&new.icu)));
        }
        changes
    }
}
