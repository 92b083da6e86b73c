//! `COMMIT`: the object whose presence makes a set a backup. It holds the digest of the manifest and what a listing shows,
//! so that listing a repository reads nothing else.
//!
//! It is never encrypted, and sealed by its own digest as the manifest is. Of an encrypted set it also holds the digest of every object as it is stored, so that whoever has
//! no key can still check every byte; and who has one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, Lineage};
use crate::encryption::Recipients;

use super::manifest::{is_zero, read_sealed, read_versioned, write_sealed};
use super::{Digest, FormatError, Kind, Manifest, Measured, Naming, Object, SetId, SetLocation};

/// The newest format of `COMMIT` this version reads: that of incremental sets, of which an older reader would delete the parents.
/// 1 and 2, 2 of encrypted sets, had no digest of their own.
pub const COMMIT_VERSION: u32 = 4;
/// The format of a set that needs no other.
const ALONE_VERSION: u32 = 3;
/// The newest format without a seal.
const UNSEALED_VERSION: u32 = 2;

/// A committed set, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
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
    /// When the run began.
    pub started_at: Timestamp,
    /// When the last byte was safe. Sets are ordered by this.
    pub completed_at: Timestamp,
    /// BLAKE3 of the manifest as it is stored: of `manifest.json`, its last line included, or of `manifest.json.age`.
    pub manifest_blake3: Digest,
    /// Number of databases in it.
    pub databases: usize,
    /// Bytes before the codec.
    pub plain_bytes: u64,
    /// Bytes in the repository.
    pub stored_bytes: u64,
    /// Number of warnings in the manifest.
    pub warnings: usize,
    /// Pages in it that were damaged on the disk: it is suspect.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damaged_pages: u64,
    /// Bytes of its volumes that were not read, because nothing had changed there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread_bytes: u64,
    /// The set it cannot be restored without; None: it needs no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SetId>,
    /// What can be known of an encrypted set without a key; None: the set is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// What can be known of an encrypted set without a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// Who can open it.
    #[serde(flatten)]
    pub recipients: Recipients,
    /// Every object but the manifest and `COMMIT`.
    pub objects: Vec<StoredObject>,
}

/// An object from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Name inside the set's folder.
    pub name: String,
    /// The object as it lies in the repository.
    #[serde(flatten)]
    pub stored: Measured,
}

impl From<&Object> for StoredObject {
    fn from(object: &Object) -> Self {
        Self { name: object.name.clone(), stored: object.stored }
    }
}

impl Commit {
    const DOCUMENT: &'static str = "COMMIT";

    /// The commitment to a manifest that is stored as `manifest_bytes`.
    pub fn to_manifest(manifest: &Manifest, manifest_bytes: &[u8]) -> Self {
        let encryption = manifest.encryption.clone().map(|recipients| Encryption {
            recipients,
            objects: manifest.objects.iter().map(StoredObject::from).collect(),
        });
        let parent = manifest.ancestors().first().map(|parent| parent.set.clone());
        Self {
            version: if parent.is_some() { COMMIT_VERSION } else { ALONE_VERSION },
            set: manifest.set.clone(),
            kind: manifest.kind,
            cluster: manifest.cluster.clone(),
            lineage: manifest.lineage,
            started_at: manifest.started_at,
            completed_at: manifest.completed_at,
            manifest_blake3: Digest::of(manifest_bytes),
            databases: manifest.database_count(),
            plain_bytes: manifest.plain_bytes(),
            stored_bytes: manifest.stored_bytes(),
            warnings: manifest.warnings.len(),
            damaged_pages: manifest.damaged_pages(),
            unread_bytes: manifest.unread_bytes(),
            parent,
            encryption,
        }
    }

    /// The object's bytes, sealed.
    pub fn to_bytes(&self) -> Vec<u8> {
        write_sealed(self)
    }

    /// Reads the object's bytes; refuses a newer format and anything that its seal does not fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (document, why) = match read_sealed(Self::DOCUMENT, bytes, COMMIT_VERSION) {
            Err(FormatError::Malformed { document, why }) => (document, why),
            read => return read,
        };
        match read_versioned(document, bytes, UNSEALED_VERSION) {
            Ok(unsealed) => Ok(unsealed),
            // Whatever it ends with.
            Err(FormatError::Newer { found, .. }) if found > COMMIT_VERSION => {
                Err(FormatError::Newer { document, found, supported: COMMIT_VERSION })
            }
            Err(_) => Err(FormatError::Malformed { document, why }),
        }
    }

    /// Where the set lies.
    pub fn location(&self) -> SetLocation {
        SetLocation { cluster: self.cluster.clone(), lineage: self.lineage, id: self.set.clone() }
    }

    /// How the set's objects are called.
    pub fn naming(&self) -> Naming {
        Naming::of_set(self.encryption.is_some())
    }

    /// The key of the manifest.
    pub fn manifest_key(&self) -> String {
        self.location().manifest_key(self.naming())
    }

    /// Refuses bytes that are not those of the manifest this commits to, as it is stored.
    pub fn check_manifest(&self, stored: &[u8]) -> Result<(), FormatError> {
        let actual = Digest::of(stored);
        if actual == self.manifest_blake3 {
            Ok(())
        } else {
            Err(FormatError::Damaged { document: "the manifest", actual, expected: self.manifest_blake3 })
        }
    }

    /// What sets are ordered by: the time of completion, then the id.
    pub fn order(&self) -> (Timestamp, &SetId) {
        (self.completed_at, &self.set)
    }

    /// How long the run took, in whole seconds.
    pub fn seconds(&self) -> i64 {
        self.completed_at.as_second() - self.started_at.as_second()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup_set::manifest::tests::{encrypted_example, example};

    #[test]
    fn a_commit_knows_its_own_manifest_only() {
        let manifest = example();
        let bytes = manifest.to_bytes();
        let commit = Commit::to_manifest(&manifest, &bytes);
        assert_eq!(Commit::from_bytes(&commit.to_bytes()).expect("a commit"), commit);
        assert!(commit.check_manifest(&bytes).is_ok());

        let other = Manifest { pglife: "0.2.0".to_owned(), ..manifest }.to_bytes();
        assert!(matches!(commit.check_manifest(&other), Err(FormatError::Damaged { .. })));
    }

    #[test]
    fn an_encrypted_set_tells_its_objects_and_no_content() {
        let manifest = encrypted_example();
        let commit = Commit::to_manifest(&manifest, b"sealed bytes");
        let text = String::from_utf8(commit.to_bytes()).expect("text");
        assert_eq!(Commit::from_bytes(text.as_bytes()).expect("a commit"), commit);
        assert!(commit.check_manifest(b"sealed bytes").is_ok());
        assert!(commit.manifest_key().ends_with("/manifest.json.age"));
        let objects = commit.encryption.expect("encrypted").objects;
        assert_eq!(objects.len(), manifest.objects.len());
        assert_eq!(objects[1].name, "db/0001.dump.zst.age");
        for secret in ["HOME", "template1", "fast", "7000000", "pglife/postgres"] {
            assert!(!text.contains(secret), "{secret} is in\n{text}");
        }
    }

    /// Repositories are older than programs.
    #[test]
    fn a_commit_without_a_seal_is_still_read() {
        let manifest = example();
        let old = Commit { version: UNSEALED_VERSION, ..Commit::to_manifest(&manifest, &manifest.to_bytes()) };
        let bytes = serde_json::to_vec_pretty(&old).expect("text keys");
        assert_eq!(Commit::from_bytes(&bytes).expect("a commit"), old);
        let unsealed = Commit { version: ALONE_VERSION, ..old };
        let bytes = serde_json::to_vec_pretty(&unsealed).expect("text keys");
        assert!(matches!(Commit::from_bytes(&bytes), Err(FormatError::Malformed { .. })));
    }

    #[test]
    fn a_newer_commit_is_named_as_such() {
        let manifest = example();
        let mut commit = Commit::to_manifest(&manifest, &manifest.to_bytes());
        commit.version = COMMIT_VERSION + 1;
        assert!(matches!(Commit::from_bytes(&commit.to_bytes()), Err(FormatError::Newer { .. })));
        assert!(matches!(
            Commit::from_bytes(b"{\"version\": 99}"),
            Err(FormatError::Newer { found: 99, supported: 4, .. })
        ));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_found(at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = Commit::to_manifest(&encrypted_example(), b"sealed bytes").to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Commit::from_bytes(&bytes).is_err());
        }
    }
}
