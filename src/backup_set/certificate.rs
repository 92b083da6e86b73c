//! Certificates: what a drill found about a set. Append-only, and each holds the digest of the one before, so that none can be
//! changed or taken away unseen.
//!
//! `<cluster>/<lineage>/drills/<set>/<UTC>.json`; the chain runs through all sets of a lineage, in the order of time. Like a
//! manifest, the file ends with a line that is the digest of all before it. Only a drill that came to a verdict leaves one: what
//! could not be judged proves nothing, in either way.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, Lineage, PgMajor};
use crate::facts::Extent;

use super::manifest::{read_sealed, write_sealed};
use super::{Digest, FormatError, ImageReference, Kind, SetId, SetLocation};

/// The newest format of a certificate this version reads, and the one it writes.
pub const CERTIFICATE_VERSION: u32 = 1;

/// What a drill found about a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Format version of this document.
    pub version: u32,
    /// The set.
    pub set: SetId,
    /// What it holds.
    pub kind: Kind,
    /// The cluster it is of.
    pub cluster: ClusterName,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// Digest of the set's manifest: that it was this set.
    pub manifest: Digest,
    /// Whether the set is good.
    pub verdict: Verdict,
    /// When the drill began.
    pub started_at: Timestamp,
    /// When it came to its verdict.
    pub ended_at: Timestamp,
    /// The machine and run that drilled.
    pub by: String,
    /// Version of the pglife that drilled.
    pub pglife: String,
    /// The major of the throwaway server.
    pub major: PgMajor,
    /// The image it ran from.
    pub image: ImageReference,
    /// What was done, and how long it took.
    pub stages: Vec<Stage>,
    /// How long a restore took, in seconds: all stages but the checks.
    pub rto_seconds: f64,
    /// How long it may take, in seconds, where the policy says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_budget_seconds: Option<f64>,
    /// What was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
    /// What was checked.
    pub checks: Vec<Check>,
    /// Digest of the certificate before this one in its lineage, as it is stored; None for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

/// Whether a set is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was restored, and everything in it was found.
    Proven,
    /// It does not restore, or not to what was backed up.
    Bad,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Proven => "proven",
            Self::Bad => "bad",
        })
    }
}

/// One step of a drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Something that was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What was found, one thing a line; in the certificate of an encrypted set, nothing that tells its content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What a finding begins with that is worth knowing, but no fault.
const NOTE: &str = "note: ";

impl Check {
    /// A finding that is worth knowing, but no fault.
    pub fn note(words: impl fmt::Display) -> String {
        format!("{NOTE}{words}")
    }

    /// What was found, notes aside.
    pub fn faults(&self) -> impl Iterator<Item = &String> {
        self.found.iter().filter(|found| !found.starts_with(NOTE))
    }
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Not as it should be: the backup is at fault.
    Failed,
    /// Nothing is known: it could not be looked at.
    Unknown,
}

impl Certificate {
    /// The checks that did not pass.
    pub fn red(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome != Outcome::Passed)
    }

    /// The object's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        write_sealed(self)
    }

    /// Reads the object's bytes; refuses a newer format and what its last line does not fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        read_sealed("the certificate", bytes, CERTIFICATE_VERSION)
    }

    /// The same without words that tell the content of an encrypted set: names of checks are numbered, findings are counted.
    #[must_use]
    pub fn without_words(mut self) -> Self {
        for (place, check) in self.checks.iter_mut().enumerate() {
            if check.name.starts_with("assertion") {
                check.name = format!("assertion {}", place + 1);
            }
            if !check.found.is_empty() {
                check.found =
                    vec![format!("{} findings; the set is encrypted, so they are not told here", check.found.len())];
            }
        }
        self
    }

    /// The set's place.
    pub fn location(&self) -> SetLocation {
        SetLocation { cluster: self.cluster.clone(), lineage: self.lineage, id: self.set.clone() }
    }
}

/// The verdict that counts for a set: that of its last certificate.
pub fn last_verdict<'c>(
    certificates: impl IntoIterator<Item = &'c Certificate>,
    set: &SetId,
) -> Option<&'c Certificate> {
    certificates
        .into_iter()
        .filter(|certificate| certificate.set == *set)
        .max_by_key(|certificate| certificate.ended_at)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup_set::manifest::tests::example as manifest;

    pub(crate) fn example() -> Certificate {
        let manifest = manifest();
        Certificate {
            version: CERTIFICATE_VERSION,
            set: manifest.set,
            kind: manifest.kind,
            cluster: manifest.cluster,
            lineage: manifest.lineage,
            manifest: Digest::of(b"the manifest"),
            verdict: Verdict::Proven,
            started_at: "2026-11-22T05:00:00Z".parse().expect("a time"),
            ended_at: "2026-11-22T05:03:00Z".parse().expect("a time"),
            by: "host, run x".to_owned(),
            pglife: "0.1.0".to_owned(),
            major: manifest.server.major,
            image: manifest.image,
            stages: vec![Stage { name: "restore".to_owned(), seconds: 12.5 }],
            rto_seconds: 12.5,
            rto_budget_seconds: Some(1800.0),
            extent: Some(Extent { databases: 2, tables: 3, hashed: 3, rows: 12, ..Extent::default() }),
            checks: vec![Check {
                name: "facts".to_owned(),
                outcome: Outcome::Passed,
                found: vec!["database \"payroll\": table x: …".to_owned()],
                seconds: 1.0,
            }],
            previous: Some(Digest::of(b"the one before")),
        }
    }

    #[test]
    fn a_certificate_reads_back() {
        assert_eq!(Certificate::from_bytes(&example().to_bytes()).expect("sealed"), example());
        let newer = Certificate { version: CERTIFICATE_VERSION + 1, ..example() };
        assert!(matches!(Certificate::from_bytes(&newer.to_bytes()), Err(FormatError::Newer { .. })));
    }

    #[test]
    fn the_certificate_of_an_encrypted_set_tells_no_names() {
        let text = String::from_utf8(example().without_words().to_bytes()).expect("text");
        assert!(!text.contains("payroll"), "{text}");
    }

    #[test]
    fn the_last_certificate_counts() {
        let bad = Certificate {
            verdict: Verdict::Bad,
            ended_at: "2026-11-23T05:00:00Z".parse().expect("a time"),
            ..example()
        };
        let set = example().set;
        assert_eq!(last_verdict(&[bad.clone(), example()], &set).map(|last| last.verdict), Some(Verdict::Bad));
        assert_eq!(last_verdict(&[example()], &"20261122T023000Z-dump-aaaaaa".parse().expect("an id")), None);
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_found(at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = example().to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Certificate::from_bytes(&bytes).is_err());
        }
    }
}
