//! How a command fails: an exit code, what went wrong and why, and what to do next.

use std::fmt;

use crate::configuration::ConfigurationError;
use crate::control::OperationError;
use crate::exit::Exit;
use crate::kv::KvError;

/// The end of a command that did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong; its sources say why.
    pub error: anyhow::Error,
    /// What is still as it was.
    pub safe: Option<String>,
    /// What the operator does next.
    pub next: Option<String>,
}

impl Failure {
    /// A failure because of an error.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), safe: None, next: None }
    }

    /// A failure that has no error behind it.
    pub fn message(exit: Exit, message: impl Into<String>) -> Self {
        Self::new(exit, anyhow::Error::msg(message.into()))
    }

    /// The same failure with what the operator does next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The same failure as part of something greater: "dump of chado failed".
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        self.error = self.error.context(what);
        self
    }

    /// The texts of the error and its sources; none that the one before says already.
    pub(crate) fn chain(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for error in self.error.chain() {
            let text = error.to_string();
            if texts.last().is_none_or(|last| !last.contains(&text)) {
                texts.push(text);
            }
        }
        texts
    }
}

/// ```text
/// pglife: error: <what failed>
///   because: <why>
///   safe: <what is still as it was>
///   next: <what to do>
/// ```
impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = self.chain();
        write!(out, "pglife: error: {}", chain[0])?;
        for cause in &chain[1..] {
            write!(out, "\n  because: {cause}")?;
        }
        if let Some(safe) = &self.safe {
            write!(out, "\n  safe: {safe}")?;
        }
        if let Some(next) = &self.next {
            write!(out, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl From<ConfigurationError> for Failure {
    fn from(error: ConfigurationError) -> Self {
        let (exit, next) = (error.exit(), error.next());
        Self::new(exit, error).next(next)
    }
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        let (exit, next) = (error.exit(), error.next());
        Self::new(exit, error).next(next)
    }
}

impl From<OperationError> for Failure {
    fn from(mut error: OperationError) -> Self {
        let (exit, safe, next) = (error.exit, error.safe.take(), error.next.take());
        Self { safe, next, ..Self::new(exit, error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let disk = std::io::Error::other("no space left on device");
        let error =
            anyhow::Error::new(disk).context("no space left on device (os error 28)").context("dump of chado failed");
        let failure = Failure::new(Exit::Failed, error).next("free some space");
        insta::assert_snapshot!(failure, @r"
        pglife: error: dump of chado failed
          because: no space left on device (os error 28)
          next: free some space
        ");
    }
}
