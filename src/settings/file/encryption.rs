//! Reads `[encryption]`.

use std::path::Path;

use super::super::Encryption;
use super::read_path;
use crate::document::Table;
use crate::encryption::{Recipient, Recipients};

const RECIPIENTS_HELP: &str = "a list of public keys: [\"age1…\", \"ssh-ed25519 …\"]";

/// None only where there is a problem: without a recipient nobody could open a backup.
pub(super) fn read(table: &Table<'_>, folder: &Path) -> Option<Encryption> {
    let mut known = Vec::new();
    let recipients = recipients_in(table, "recipients", &mut known);
    let escrow = recipients_in(table, "escrow", &mut known).unwrap_or_default();
    let identity_file = read_path(table, "identity_file", folder);
    let Some(recipients) = recipients else {
        let help = "make a key: pglife key generate FILE; it prints its recipient";
        table.missing("recipients", "the recipients are missing: nobody could open a backup", help);
        return None;
    };
    Some(Encryption { recipients: Recipients::new(recipients, escrow)?, identity_file })
}

/// The recipients of one key of the table; `known` has those read before, and where. None only where the key is not there.
fn recipients_in(table: &Table<'_>, key: &str, known: &mut Vec<(Recipient, String)>) -> Option<Vec<Recipient>> {
    let given = table.get(key)?;
    let entries = given.list(RECIPIENTS_HELP);
    if entries.as_ref().is_some_and(Vec::is_empty) {
        given.problem("the list is empty", RECIPIENTS_HELP);
    }
    let mut recipients = Vec::new();
    for (index, entry) in entries.into_iter().flatten().enumerate() {
        let Some(text) = entry.text(RECIPIENTS_HELP) else { continue };
        match text.parse::<Recipient>() {
            // Not with the text: it may be a secret.
            Err(error) => entry.problem(error.to_string(), error.help()),
            Ok(recipient) => {
                if let Some((_, place)) = known.iter().find(|(other, _)| *other == recipient) {
                    entry.problem(format!("this is the same key as {place}"), "a second key must be another one");
                    continue;
                }
                known.push((recipient.clone(), format!("{key}[{index}]")));
                recipients.push(recipient);
            }
        }
    }
    Some(recipients)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::settings::Settings;

    const KEY: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN";

    fn read_text(text: &str) -> (Option<Settings>, String) {
        let outcome = super::super::read(Path::new("p.toml"), text, Path::new("/etc/pglife"), None);
        let problems = outcome.problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat();
        (outcome.value, problems)
    }

    #[test]
    fn recipients_escrow_and_identity_are_read() {
        let text = format!(
            "[encryption]\nrecipients = ['{KEY}']\nescrow = ['{OTHER} dba@example']\nidentity_file = 'key.txt'\n"
        );
        let (settings, problems) = read_text(&text);
        assert_eq!(problems, "");
        let encryption = settings.expect("read").encryption.expect("encryption");
        assert_eq!(encryption.recipients.everyday()[0].as_str(), KEY);
        assert_eq!(encryption.recipients.escrow()[0].as_str(), OTHER);
        assert_eq!(encryption.identity_file, Some(PathBuf::from("/etc/pglife/key.txt")));
        assert_eq!(read_text("").0.expect("read").encryption, None);
    }

    #[test]
    fn every_problem_is_told_and_no_secret() {
        let secret = crate::encryption::tests::NATIVE;
        let text = format!(
            "[encryption]\nrecipients = ['{KEY}', '{secret}', 5, 'age1x', 'ssh-dss AAAAB3NzaC1kc3MAAAAA']\nescrow = ['{KEY}']\nidentity = 'x'\n"
        );
        let (_, problems) = read_text(&text);
        assert!(!problems.contains("AGE-SECRET") && !problems.contains(&secret[20..]), "{problems}");
        for told in [
            "encryption.recipients[1]: this is a secret key",
            "encryption.recipients[2]: a string is expected",
            "encryption.recipients[3]: this is not a public key",
            "encryption.recipients[4]: keys of type ssh-dss are not supported",
            "encryption.escrow[0]: this is the same key as recipients[0]",
            "encryption.identity: unknown key\n    help: did you mean identity_file?",
        ] {
            assert!(problems.contains(told), "{told} is not in\n{problems}");
        }
        for text in ["[encryption]\n", "[encryption]\nescrow = ['age1x']\nidentity_file = 'x'\n"] {
            assert!(read_text(text).1.contains("encryption.recipients: the recipients are missing"), "{text}");
        }
        assert!(read_text("[encryption]\nrecipients = []\n").1.contains("the list is empty"));
    }
}
