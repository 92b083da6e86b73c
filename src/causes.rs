//! An error with its causes, on one line. Pure.

use std::error::Error;

/// What an error and its causes say, the last cause last.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_cause_is_told_in_its_order() {
        let error = anyhow::anyhow!("the disk is full").context("writing failed").context("the backup failed");
        assert_eq!(super::chain(error.as_ref()), "the backup failed: writing failed: the disk is full");
    }
}
