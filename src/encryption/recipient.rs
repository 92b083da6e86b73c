//! Public keys: who can open what is sealed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Keys;

/// A public key, in its one canonical spelling: `age1…`, `ssh-ed25519 …` or `ssh-rsa …`, without a comment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(String);

/// The text is not a public key that pglife can seal to. The text itself is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    /// It is the secret half of a key.
    #[error("this is a secret key, not a recipient: whoever can read this file can open the backups")]
    Secret,
    /// It is a key of a kind that is not supported.
    #[error("keys of type {0} are not supported")]
    UnsupportedType(String),
    /// It is an RSA key that is too short to be safe, or too long.
    #[error("RSA keys have 2048 to 4096 bits")]
    RsaSize,
    /// It is no key, or not all of one.
    #[error("this is not a public key of age or SSH, or not all of one")]
    Malformed,
}

impl RecipientError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Secret => {
                "make a new key (pglife key generate), keep its file off this machine, and write the line that begins with age1"
            }
            Self::UnsupportedType(_) | Self::RsaSize | Self::Malformed => {
                "\"age1…\" as pglife key generate or age-keygen print it, or the text of an SSH key's .pub file (ssh-ed25519, ssh-rsa)"
            }
        }
    }
}

enum Parsed {
    X25519(age::x25519::Recipient),
    Ssh(age::ssh::Recipient),
}

fn parse(text: &str) -> Result<Parsed, RecipientError> {
    use age::ssh::ParseRecipientKeyError as Refused;
    let upper = text.to_ascii_uppercase();
    if upper.contains("AGE-SECRET-KEY-") || upper.contains("PRIVATE KEY") {
        return Err(RecipientError::Secret);
    }
    if text.starts_with("age1") {
        if let Ok(recipient) = text.parse() {
            return Ok(Parsed::X25519(recipient));
        }
        // `age1yubikey1…`, `age1tag1…`: a plugin's or a newer kind; its name stands before the last `1`.
        return Err(match text.rsplit_once('1') {
            Some((kind, _)) if kind.len() > 4 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                RecipientError::UnsupportedType(kind.to_owned())
            }
            _ => RecipientError::Malformed,
        });
    }
    // The parser wants to see that the key ends.
    match format!("{text} ").parse() {
        Ok(recipient) => Ok(Parsed::Ssh(recipient)),
        Err(Refused::Unsupported(kind)) => Err(RecipientError::UnsupportedType(kind)),
        Err(Refused::RsaModulusTooLarge | Refused::RsaModulusTooSmall) => Err(RecipientError::RsaSize),
        Err(_) => Err(RecipientError::Malformed),
    }
}

impl Recipient {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn of_x25519(recipient: &age::x25519::Recipient) -> Self {
        Self(recipient.to_string())
    }

    pub(super) fn of_ssh(recipient: &age::ssh::Recipient) -> Self {
        Self(recipient.to_string())
    }

    fn parsed(&self) -> Box<dyn age::Recipient + Send + Sync> {
        match parse(&self.0).expect("it was parsed before") {
            Parsed::X25519(recipient) => Box::new(recipient),
            Parsed::Ssh(recipient) => Box::new(recipient),
        }
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;
    fn from_str(text: &str) -> Result<Self, RecipientError> {
        Ok(match parse(text.trim())? {
            Parsed::X25519(recipient) => Self::of_x25519(&recipient),
            Parsed::Ssh(recipient) => Self::of_ssh(&recipient),
        })
    }
}

impl TryFrom<String> for Recipient {
    type Error = RecipientError;
    fn try_from(text: String) -> Result<Self, RecipientError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> String {
        recipient.0
    }
}

/// Everyone who can open a set: at least one. Any one of them opens all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Form")]
pub struct Recipients {
    recipients: Vec<Recipient>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    escrow: Vec<Recipient>,
}

#[derive(Deserialize)]
struct Form {
    recipients: Vec<Recipient>,
    #[serde(default)]
    escrow: Vec<Recipient>,
}

impl TryFrom<Form> for Recipients {
    type Error = &'static str;
    fn try_from(form: Form) -> Result<Self, Self::Error> {
        Self::new(form.recipients, form.escrow).ok_or("without a recipient nobody could open it")
    }
}

impl Recipients {
    /// The recipients for every day, and those whose keys lie in a safe; None without one of the first kind.
    pub fn new(recipients: Vec<Recipient>, escrow: Vec<Recipient>) -> Option<Self> {
        (!recipients.is_empty()).then_some(Self { recipients, escrow })
    }

    /// Those for every day.
    pub fn everyday(&self) -> &[Recipient] {
        &self.recipients
    }

    /// Those whose keys lie in a safe.
    pub fn escrow(&self) -> &[Recipient] {
        &self.escrow
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Recipient> {
        self.recipients.iter().chain(&self.escrow)
    }

    /// The same with one more, and its key: for whoever must read back what it seals. The key is nowhere else, and gone when
    /// it is dropped.
    pub fn with_reader(&self) -> (Self, Keys) {
        let keys = Keys::ephemeral();
        (self.and(&keys), keys)
    }

    /// The same, and who holds `keys`.
    #[must_use]
    pub fn and(&self, keys: &Keys) -> Self {
        let recipients = self.recipients.iter().chain(keys.recipients()).cloned().collect();
        Self { recipients, escrow: self.escrow.clone() }
    }

    /// What encrypts one stream to all of them: each stream gets a key of its own.
    #[expect(clippy::disallowed_methods, reason = "this is the one home of keys")]
    pub(crate) fn encryptor(&self) -> age::Encryptor {
        let parsed: Vec<_> = self.all().map(Recipient::parsed).collect();
        age::Encryptor::with_recipients(parsed.iter().map(|recipient| &**recipient as &dyn age::Recipient))
            .expect("there is a recipient, and X25519 and SSH recipients go together")
    }
}
