//! Keys of sealed backups: who can open one, and what opens it. No I/O.
//!
//! ```text
//! recipients (public)   pglife.toml, the job of a backup, COMMIT      whoever has one can seal, nobody can open
//! keys       (secret)   a file the operator keeps; stdin of a worker  opens what was sealed to any one of its recipients
//! ```
//!
//! * A backup needs recipients only: no key has to be on the machine that takes it.
//! * Everything is sealed to *all* recipients at once, the escrow ones included, so that any one key opens all of it.
//! * [`Keys`] do not print, and no error here repeats what it could not read: it may be a secret in the wrong place.
//!
//! The format is that of age (<https://age-encryption.org/v1>): X25519 keys, and SSH keys of type ed25519 and RSA.

mod keys;
mod recipient;

pub use keys::{GeneratedKey, Keys, KeysError};
pub use recipient::{Recipient, RecipientError, Recipients};

#[cfg(test)]
pub(crate) mod tests;
