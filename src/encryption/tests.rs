//! Keys of every kind, and what is refused.

use super::*;

pub(crate) const NATIVE: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const NATIVE_PUBLIC: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

/// Made with `ssh-keygen -t ed25519`; its passphrase-protected twin below.
pub(crate) const SSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACCR5iHAUJa23TfRIK4BHFZDt7QHyhFeNID7v5HsyJNKmAAAAIjEZ17LxGde
ywAAAAtzc2gtZWQyNTUxOQAAACCR5iHAUJa23TfRIK4BHFZDt7QHyhFeNID7v5HsyJNKmA
AAAECJPM3/MEVamlNm0wJEiPk/6i4Ur3vx5UslzZRMLhaEq5HmIcBQlrbdN9EgrgEcVkO3
tAfKEV40gPu/kezIk0qYAAAAAAECAwQF
-----END OPENSSH PRIVATE KEY-----
";
const SSH_PUBLIC: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJHmIcBQlrbdN9EgrgEcVkO3tAfKEV40gPu/kezIk0qY";
const SSH_WITH_PASSPHRASE: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABAOF7RmtT
UvL2lh3HYxMxJIAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIJHmIcBQlrbdN9Eg
rgEcVkO3tAfKEV40gPu/kezIk0qYAAAAkMwU2Jz4xHY/zjYw2wuj79aLnz05uki25Zlh3K
Ptkuns+N+m/4RJP1mBBbgFJOoD/6dxFaAibvc2CDyTR5RyTm/8N+w5yjAAWShdk/w1HidI
uH1aaaWql+1xEq45gqR9NEhk4Nw15xTqTWo2ostSSdgwJFi/3cY26wavpnA/VeZkwdUoRm
muoKzpb7yi8U3TAw==
-----END OPENSSH PRIVATE KEY-----
";
const RSA_PUBLIC: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCfJocE+suEmNyXHhLpxvRyBqLWjJ7kRUveAe5ncpe6NllkQERaZERIjHSkcAqkzA8SviMgqXeSiVp9VyuX1jz4lUmr1nQJFo07VLD6C8kMgvbLNr7AFOlis/kT7AHWuaRs+O1PuSsytg4OSk27cHG8NKRGG1s615xUhf6sySu4kaBf8Pzx1K5uL38mPMeXkAGvPNAIVuMn5t3b1LiYKh564CS5b42/OV07egAaUX49zXxOQxF+k2oDiL5E0SyQjbxH9B/2US6BhxH4HeL1OkQAlMUL7ZKdHN1d9SS/51HGs8JiSBr8mFKwFiSPhcnYYYWMasNWgLPe1g6K+otgXktl";
const RSA_SHORT: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDnqrL66TcH4lGNLclCHeR6AGJ1JCRWtuYbA6XdQ5EqkHdzUwgIJ7qOpumIsApH5XUqX+88MPVqF9rlwP/8fAmkJ3EyLrzZ9UfNR7lFRWA2lhIZpRe13H9BUR2aErGpysi/2dsx022uUIw2xU5OIR/sVJTkDbhN5DoiQd1UPgGByQ==";
const ECDSA_PUBLIC: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIJbKrHfIz0cGPGs23U+/uBxEafuQPEuloyQ3gBaFlVWNC1rCyLozS+965MuwfwSOKmXzx2vcxrjA/TnetshXKE=";

fn recipient(text: &str) -> Result<String, RecipientError> {
    text.parse::<Recipient>().map(|recipient| recipient.to_string())
}

#[test]
fn recipients_have_one_spelling() {
    assert_eq!(recipient(NATIVE_PUBLIC).expect("a key"), NATIVE_PUBLIC);
    for key in [SSH_PUBLIC, RSA_PUBLIC] {
        for written in [key.to_owned(), format!("{key} dba@example"), format!(" {key}\n")] {
            assert_eq!(recipient(&written).expect("a key"), key);
        }
    }
    let json = serde_json::to_string(&RSA_PUBLIC.parse::<Recipient>().expect("a key")).expect("json");
    assert_eq!(json, format!("\"{RSA_PUBLIC}\""));
}

#[test]
fn other_recipients_are_refused_without_repeating_them() {
    assert_eq!(recipient(NATIVE), Err(RecipientError::Secret));
    assert_eq!(recipient(&NATIVE.to_lowercase()), Err(RecipientError::Secret));
    assert_eq!(recipient(SSH), Err(RecipientError::Secret));
    assert_eq!(recipient(ECDSA_PUBLIC), Err(RecipientError::UnsupportedType("ecdsa-sha2-nistp256".to_owned())));
    let plugin = "age1yubikey1q2w7u3vpya839jxxuq8g0sedh3d740d4xvn639sqhr95ejj8vu3hyfumptt";
    assert_eq!(recipient(plugin), Err(RecipientError::UnsupportedType("age1yubikey".to_owned())));
    assert_eq!(recipient(RSA_SHORT), Err(RecipientError::RsaSize));
    for text in ["", "age1", "ssh-ed25519", "ssh-ed25519 AAAA", &NATIVE_PUBLIC[..60], "correct horse battery staple"] {
        let refused = recipient(text);
        assert!(matches!(refused, Err(RecipientError::Malformed)), "{text:?}: {refused:?}");
    }
}

#[test]
fn keys_know_their_recipients() {
    let public = |text: &str| Keys::parse(text).map(|keys| keys.recipients().to_vec());
    let native: Recipient = NATIVE_PUBLIC.parse().expect("a key");
    assert_eq!(public(NATIVE).expect("a key"), std::slice::from_ref(&native));
    let file = format!("# created: now\n# public key: {native}\r\n{NATIVE}\r\n\n");
    assert_eq!(public(&file).expect("a key"), std::slice::from_ref(&native));
    assert_eq!(public(SSH).expect("a key"), [SSH_PUBLIC.parse().expect("a key")]);

    let generated = GeneratedKey::generate("2026-11-24T02:30:00Z");
    assert_eq!(public(generated.reveal_file()).expect("a key"), std::slice::from_ref(&generated.recipient));
    let two = format!("{NATIVE}\n{}", generated.reveal_file());
    assert_eq!(public(&two).expect("two keys"), [native, generated.recipient]);
}

#[test]
fn other_keys_are_refused() {
    let refused = |text: &str| Keys::parse(text).expect_err("refused");
    assert_eq!(refused("# nothing\n\n"), KeysError::Empty);
    assert_eq!(refused(SSH_WITH_PASSPHRASE), KeysError::Passphrase);
    assert_eq!(refused("age-encryption.org/v1\n-> scrypt …"), KeysError::Passphrase);
    assert_eq!(refused("-----BEGIN AGE ENCRYPTED FILE-----\n"), KeysError::Passphrase);
    assert_eq!(refused("AGE-PLUGIN-YUBIKEY-1QQPQQ"), KeysError::UnsupportedType("AGE-PLUGIN".to_owned()));
    assert_eq!(refused(&format!("# x\n{NATIVE_PUBLIC}")), KeysError::Public(2));
    assert_eq!(refused(&format!("{NATIVE}\nnonsense")), KeysError::Line(2));
    assert_eq!(refused(&SSH[..SSH.len() / 2]), KeysError::Ssh);
    assert_eq!(refused(&NATIVE[..70]), KeysError::Line(1));
}

#[test]
fn secrets_do_not_print() {
    let keys = Keys::parse(NATIVE).expect("a key");
    assert_eq!(format!("{keys:?}"), "Keys(…)");
    assert!(!format!("{:?}", GeneratedKey::generate("now")).contains("SECRET"));
    // They travel as they were read, and only where somebody serializes them on purpose.
    let json = serde_json::to_string(&keys).expect("json");
    assert_eq!(serde_json::from_str::<Keys>(&json).expect("keys"), keys);
    let error = serde_json::from_str::<Keys>("\"AGE-SECRET-KEY-1GQ9778VQX\"").expect_err("refused").to_string();
    assert!(!error.contains("GQ9778"), "{error}");
}

#[test]
fn recipients_are_never_nobody() {
    assert_eq!(Recipients::new(vec![], vec![NATIVE_PUBLIC.parse().expect("a key")]), None);
    assert!(serde_json::from_str::<Recipients>("{\"recipients\":[]}").is_err());
    let one: Recipients = serde_json::from_str(&format!("{{\"recipients\":[\"{NATIVE_PUBLIC}\"]}}")).expect("one");
    assert_eq!((one.everyday().len(), one.escrow().len(), one.all().count()), (1, 0, 1));
}
