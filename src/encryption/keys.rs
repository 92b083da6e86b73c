//! Secret keys: what opens sealed objects.

use std::fmt;
use std::sync::Arc;

use age::secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::Recipient;

/// The content of an identity file: one or several keys of age, or one SSH key. It travels on stdin only and cannot be
/// printed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Keys {
    text: String,
    identities: Vec<Arc<dyn age::Identity + Send + Sync>>,
    recipients: Vec<Recipient>,
}

/// The text holds no key that can be used. The text itself is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// There is nothing in it.
    #[error("there is no key in it")]
    Empty,
    /// It is sealed with a passphrase.
    #[error("the key is protected by a passphrase, and nobody may be there to type it")]
    Passphrase,
    /// It is a key of a kind that is not supported.
    #[error("keys of type {0} are not supported")]
    UnsupportedType(String),
    /// It is the public half.
    #[error("line {0} is a recipient, the public half of a key; the secret half is needed")]
    Public(usize),
    /// A line is no key.
    #[error("line {0} is not a secret key of age (AGE-SECRET-KEY-1…)")]
    Line(usize),
    /// An SSH key that cannot be read.
    #[error("the SSH key in it is damaged or cut short")]
    Ssh,
}

impl KeysError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Passphrase => {
                "write an unprotected copy where only you can read it (age -d FILE; for an SSH key a copy, then ssh-keygen -p), name that, and delete it afterwards"
            }
            Self::UnsupportedType(_) => "use a key of age, or an SSH key of type ed25519 or RSA",
            Self::Empty | Self::Public(_) | Self::Line(_) | Self::Ssh => {
                "name the file that pglife key generate or age-keygen wrote, or the SSH key whose .pub is a recipient"
            }
        }
    }
}

impl Keys {
    /// Reads the text of an identity file, as age does: one key a line, `#` begins a comment; or one SSH key.
    pub fn parse(text: impl Into<String>) -> Result<Self, KeysError> {
        let text = text.into();
        let begins = text.trim_start();
        if begins.starts_with("age-encryption.org/") || begins.starts_with("-----BEGIN AGE ENCRYPTED FILE") {
            return Err(KeysError::Passphrase);
        }
        let (identities, recipients) =
            if begins.starts_with("-----BEGIN") { ssh_key(begins)? } else { native_keys(&text)? };
        Ok(Self { text, identities, recipients })
    }

    /// A new key that nobody has, for as long as it is held.
    #[expect(clippy::disallowed_methods, reason = "this is the one home of keys")]
    pub fn ephemeral() -> Self {
        Self::parse(age::x25519::Identity::generate().to_string().expose_secret()).expect("a key reads back")
    }

    /// The text of their file; secret.
    pub fn reveal_text(&self) -> &str {
        &self.text
    }

    /// The public halves.
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// The secrets, for the one place that opens objects with them.
    pub(crate) fn identities(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.identities.iter().map(|identity| &**identity as &dyn age::Identity)
    }
}

type Halves = (Vec<Arc<dyn age::Identity + Send + Sync>>, Vec<Recipient>);

fn native_keys(text: &str) -> Result<Halves, KeysError> {
    let (mut identities, mut recipients): Halves = (vec![], vec![]);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Ok(identity) = line.parse::<age::x25519::Identity>() {
            recipients.push(Recipient::of_x25519(&identity.to_public()));
            identities.push(Arc::new(identity));
        } else if line.starts_with("AGE-PLUGIN-") {
            return Err(KeysError::UnsupportedType("AGE-PLUGIN".to_owned()));
        } else if line.parse::<Recipient>().is_ok() {
            return Err(KeysError::Public(number));
        } else {
            return Err(KeysError::Line(number));
        }
    }
    if identities.is_empty() { Err(KeysError::Empty) } else { Ok((identities, recipients)) }
}

fn ssh_key(text: &str) -> Result<Halves, KeysError> {
    use age::ssh::{Identity, UnsupportedKey};
    let identity = Identity::from_buffer(text.as_bytes(), None).map_err(|_| KeysError::Ssh)?;
    match &identity {
        Identity::Unencrypted(_) => {}
        Identity::Encrypted(_)
        | Identity::Unsupported(UnsupportedKey::EncryptedPem | UnsupportedKey::EncryptedSsh(_)) => {
            return Err(KeysError::Passphrase);
        }
        Identity::Unsupported(UnsupportedKey::Hardware(kind) | UnsupportedKey::Type(kind)) => {
            return Err(KeysError::UnsupportedType(kind.clone()));
        }
    }
    let recipient = age::ssh::Recipient::try_from(identity.clone()).map_err(|_| KeysError::Ssh)?;
    Ok((vec![Arc::new(identity)], vec![Recipient::of_ssh(&recipient)]))
}

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Keys(…)")
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TryFrom<String> for Keys {
    type Error = KeysError;
    fn try_from(text: String) -> Result<Self, KeysError> {
        Self::parse(text)
    }
}

impl From<Keys> for String {
    fn from(keys: Keys) -> String {
        keys.text
    }
}

/// A new key, on its way into a file.
pub struct GeneratedKey {
    /// Its public half.
    pub recipient: Recipient,
    file: String,
}

impl GeneratedKey {
    /// Makes a key. `created` is a time as the file's comment tells it.
    #[expect(clippy::disallowed_methods, reason = "this is the one home of keys")]
    pub fn generate(created: &str) -> Self {
        let identity = age::x25519::Identity::generate();
        let recipient = Recipient::of_x25519(&identity.to_public());
        let secret = identity.to_string();
        // The form of age-keygen.
        let file = format!("# created: {created}\n# public key: {recipient}\n{}\n", secret.expose_secret());
        Self { recipient, file }
    }

    /// The text of its file; secret.
    pub fn reveal_file(&self) -> &str {
        &self.file
    }
}

impl fmt::Debug for GeneratedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "GeneratedKey({}, …)", self.recipient)
    }
}
