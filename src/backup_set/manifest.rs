//! `manifest.json`: everything known about a set, every object with its sizes and digests, sealed by its own digest.
//!
//! The file is a JSON document followed by one line, `{"blake3":"…"}`, the digest of all bytes before that line. Both are
//! ordinary JSON texts, so `jq` reads the file; `head -n -1 manifest.json | b3sum` checks it.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, DatabaseName, Lineage, PgMajor, RoleName};

use super::block_index::Stamp;
use super::layout::is_sealed;
use super::{Digest, Kind, Naming, SetId, Sorting};
use crate::encryption::Recipients;

/// The newest manifest format this version reads. 2 is that of volume sets, 3 that of dumps with facts, 4 that of volume sets with a
/// block index: older readers would take them for damaged.
pub const MANIFEST_VERSION: u32 = 4;

/// How much there is of something, and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of those bytes.
    pub blake3: Digest,
}

impl Measured {
    /// The measure of bytes held in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: Digest::of(bytes) }
    }
}

/// What an object of a set holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "lowercase")]
pub enum Content {
    /// `pg_dumpall --globals-only`, then what that leaves out; SQL for `psql`.
    Globals,
    /// One database, in `pg_dump`'s custom format, without compression of its own.
    Database {
        /// Its name.
        database: DatabaseName,
        /// SQL to run in it after `pg_restore`: what its `pg_dump` leaves unsaid.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        afterwards: Vec<String>,
    },
    /// The volumes of the data container, as a tar.
    Volume(Box<VolumeCopy>),
    /// What the volumes' tar is put together from, block by block: `volume.blocks.zst`.
    Blocks,
    /// What the databases held when they were dumped: `facts.json`.
    Facts,
    /// How the containers were made: `recipe.json`.
    Recipe,
    /// How to recover without pglife: `RECOVER.md`.
    Instructions,
    /// The same for an encrypted set, whose `RECOVER.md` tells only how to open this: `RECOVER.details.md.age`.
    Details,
}

/// How volumes are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// The server runs, and the WAL that makes the copy consistent is in it.
    #[default]
    Hot,
    /// The server was stopped for it.
    Cold,
}

impl CopyMode {
    /// As in policies and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

/// What a tar of volumes holds, and what it takes to start a server from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCopy {
    /// The volumes, by the place where the containers see them: `/data`. In the tar they are relative: `data/…`.
    pub volumes: Vec<String>,
    /// The data directory among them.
    pub pgdata: String,
    /// Folders of the server's that are in another place in the copy, the data directory first: those of an adopted cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Moved>,
    /// With what the server sorted text; None in sets of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sorting: Option<Sorting>,
    /// How it was made.
    pub mode: CopyMode,
    /// Where replay begins; of a cold copy, the last checkpoint.
    pub start_lsn: String,
    /// Where the copy is consistent; of a cold one, the same.
    pub stop_lsn: String,
    /// The timeline of both.
    pub timeline: u32,
    /// The first file of the WAL in between.
    pub first_wal: String,
    /// The last one.
    pub last_wal: String,
    /// What the server said of the backup; it is in the tar too. Empty for a cold copy.
    pub backup_label: String,
    /// Entries in the tar.
    pub entries: u64,
    /// Files in it that PostgreSQL's own `backup_manifest` lists.
    pub server_files: u64,
    /// Files with pages that are not what their checksums say: they were damaged on the disk before they were copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedFile>,
    /// What is not in the object, because an earlier set has it; None: the object is the whole tar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// What the next copy needs to rely on the server's WAL summaries; None: it compares every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// By what a server is known again as the one that a copy was made of, and which has gone on from there: not one that was restored from
/// an earlier copy, whose WAL may have the same places in it, and other changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When it was started, in seconds since 1970, in its own words.
    pub server_started: String,
    /// Its WAL summary that ends where the copy begins.
    pub summary: String,
    /// What the file system says of that file.
    pub stamp: Stamp,
}

/// A folder that a copy has in another place than the server had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Where the server had it.
    pub from: String,
    /// Where the copy has it.
    pub to: String,
}

impl Moved {
    /// Where a copy has `path`, which the server has in one of `moved`: the deepest that holds it. None for what is in none.
    pub fn place(moved: &[Self], path: &str) -> Option<String> {
        let rest = |folder: &Self| {
            let rest = path.strip_prefix(folder.from.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then(|| format!("{}{rest}", folder.to))
        };
        moved.iter().filter_map(|folder| Some((folder.from.len(), rest(folder)?))).max().map(|(_, place)| place)
    }
}

/// A file of a relation with damaged pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Its name in the data directory.
    pub file: String,
    /// The relation, as `database.schema.name`, where the server could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
    /// How many of its pages are damaged.
    pub count: u64,
    /// Which blocks of the relation they are; the first ones.
    pub blocks: Vec<u32>,
}

impl DamagedFile {
    /// What to tell the operator.
    pub fn words(&self) -> String {
        let relation = self.relation.as_ref().map_or_else(String::new, |relation| format!("{relation}, "));
        let blocks: Vec<String> = self.blocks.iter().map(ToString::to_string).collect();
        let more = if self.count > self.blocks.len() as u64 { ", …" } else { "" };
        format!("{} damaged pages in {relation}{}: blocks {}{more}", self.count, self.file, blocks.join(", "))
    }
}

/// A tar that is put together from the objects of several sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incremental {
    /// Bytes of the tar.
    pub tar_bytes: u64,
    /// The sets it needs beside its own: its parent, the parent's parent, up to the full one.
    pub ancestors: Vec<Ancestor>,
    /// Bytes of it that were not read, because nothing had changed there since the parent: their page checksums were not looked at either.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread_bytes: u64,
    /// Why the server's WAL summaries (17 and later) did not tell what changed; None: they did, or it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summaries_unused: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An earlier set that an incremental one needs, with what the object must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The set.
    pub set: SetId,
    /// The name of its object, inside its folder.
    pub name: String,
    /// The object as it lies in the repository.
    pub stored: Measured,
    /// The bytes before codec and encryption.
    pub plain: Measured,
}

/// One object of a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Name inside the set's folder, such as `db/chado.dump.zst`.
    pub name: String,
    /// What it holds.
    #[serde(flatten)]
    pub content: Content,
    /// The object as it lies in the repository.
    pub stored: Measured,
    /// The bytes before codec and encryption.
    pub plain: Measured,
    /// How long it took to make, in seconds.
    pub seconds: f64,
}

impl Object {
    /// True where it is stored encrypted.
    pub fn is_sealed(&self) -> bool {
        is_sealed(&self.name)
    }
}

/// A database as it was found when the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseProfile {
    /// Its name.
    pub name: DatabaseName,
    /// `pg_database.oid`.
    pub oid: u32,
    /// `pg_database_size` in bytes; 0 where the role may not see it.
    pub bytes: u64,
    /// `datallowconn`, and not marked invalid by an interrupted DROP DATABASE.
    pub connectable: bool,
    /// `datistemplate`.
    pub is_template: bool,
    /// Name of the encoding, such as `UTF8`.
    pub encoding: String,
    /// `datcollate`.
    pub collate: String,
    /// `datctype`.
    pub ctype: String,
}

/// A tablespace outside `pg_default` and `pg_global`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// `spcname`.
    pub name: String,
    /// The folder it lies in, inside the database container.
    pub location: String,
}

/// The server as the worker found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProfile {
    /// `server_version`, such as `17.6 (Debian 17.6-1)`.
    pub version: String,
    /// The major of it.
    pub major: PgMajor,
    /// `pg_control_system().system_identifier`.
    pub system_identifier: u64,
    /// The role that initdb made (oid 10).
    pub bootstrap_role: RoleName,
    /// Whether data checksums are on.
    pub data_checksums: bool,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u64,
    /// All databases, connectable or not, in name order.
    pub databases: Vec<DatabaseProfile>,
    /// Tablespaces in name order.
    pub tablespaces: Vec<Tablespace>,
    /// Settings that a file or the command line gave, without those that may hold a secret.
    pub settings: std::collections::BTreeMap<String, String>,
    /// Its files of settings and access rules: `config_file`, `hba_file` and `ident_file`. None in sets of older versions.
    #[serde(default)]
    pub files: Vec<String>,
}

impl ServerProfile {
    /// The databases that can be entered.
    pub fn connectable(&self) -> Vec<DatabaseName> {
        self.databases.iter().filter(|one| one.connectable).map(|one| one.name.clone()).collect()
    }

    /// It archives its WAL.
    pub fn archives(&self) -> bool {
        self.settings.get("archive_mode").is_some_and(|mode| mode != "off")
    }
}

/// The image the server ran from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReference {
    /// The name it was started by, such as `pglife/postgres:17`.
    pub name: String,
    /// The engine's id of it, `sha256:…`.
    pub id: String,
    /// Digests it has in registries, `name@sha256:…`.
    pub digests: Vec<String>,
}

/// A database that is not in the set, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub database: DatabaseName,
    /// Why, in words.
    pub reason: String,
    /// True where the policy asked for it; false where the operator should look.
    pub intended: bool,
}

/// Everything known about a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version of this document.
    pub version: u32,
    /// The set's id.
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
    /// Version of the pglife that made it.
    pub pglife: String,
    /// Versions of the tools that made it, as they print them.
    pub tools: Vec<String>,
    /// The codec of the objects, such as `zstd:1`.
    pub codec: String,
    /// The server.
    pub server: ServerProfile,
    /// The image the server ran from.
    pub image: ImageReference,
    /// Who can open the objects; None: they are not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Recipients>,
    /// Every object but the manifest and `COMMIT`.
    pub objects: Vec<Object>,
    /// Databases that are not in the set.
    pub skipped: Vec<Skipped>,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// A document of the repository cannot be taken as it is.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It was written by a newer pglife.
    #[error(
        "{document} has format version {found}, this pglife reads up to {supported}; use the pglife that wrote it or a newer one"
    )]
    Newer {
        /// Which document.
        document: &'static str,
        /// Its version.
        found: u32,
        /// What we read.
        supported: u32,
    },
    /// It does not have the promised shape.
    #[error("{document} cannot be read: {why}")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Its bytes are not those that were written.
    #[error("{document} is damaged: its digest is {actual}, {expected} was recorded")]
    Damaged {
        /// Which document.
        document: &'static str,
        /// Digest of what is there.
        actual: Digest,
        /// Digest of what was written.
        expected: Digest,
    },
}

/// Reads `bytes` as `T` after looking at its `version` alone, so that a newer format is named as such.
pub(super) fn read_versioned<T: DeserializeOwned>(
    document: &'static str,
    bytes: &[u8],
    supported: u32,
) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let malformed = |error: serde_json::Error| FormatError::Malformed { document, why: error.to_string() };
    let found = serde_json::from_slice::<Version>(bytes).map_err(malformed)?.version;
    if found > supported {
        return Err(FormatError::Newer { document, found, supported });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

#[derive(Serialize, Deserialize)]
struct Seal {
    blake3: Digest,
}

/// The bytes of a document whose last line is the digest of what is above it.
pub(super) fn write_sealed(document: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document).expect("a document has only text keys");
    bytes.push(b'\n');
    let seal = serde_json::to_string(&Seal { blake3: Digest::of(&bytes) }).expect("a seal is text");
    bytes.extend_from_slice(seal.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// Reads what [`write_sealed`] wrote; refuses a newer format and anything that its last line does not fit.
pub(super) fn read_sealed<T: DeserializeOwned>(
    document: &'static str,
    bytes: &[u8],
    supported: u32,
) -> Result<T, FormatError> {
    let malformed = |why: &str| FormatError::Malformed { document, why: why.to_owned() };
    let body_and_seal = bytes.strip_suffix(b"\n").ok_or_else(|| malformed("it is cut short"))?;
    let seal_at = 1 + body_and_seal.iter().rposition(|&byte| byte == b'\n').ok_or_else(|| malformed("no seal"))?;
    let (body, seal) = body_and_seal.split_at(seal_at);
    let seal: Seal = serde_json::from_slice(seal).map_err(|_| malformed("its last line is not its digest"))?;
    let actual = Digest::of(body);
    if actual != seal.blake3 {
        return Err(FormatError::Damaged { document, actual, expected: seal.blake3 });
    }
    read_versioned(document, body, supported)
}

impl Manifest {
    /// The file's bytes, sealed.
    pub fn to_bytes(&self) -> Vec<u8> {
        write_sealed(self)
    }

    /// Reads the file's bytes; refuses a newer format and anything that its seal does not fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        read_sealed("manifest.json", bytes, MANIFEST_VERSION)
    }

    /// How the objects are called.
    pub fn naming(&self) -> Naming {
        Naming::of_set(self.encryption.is_some())
    }

    /// The object that holds `database`, if the set has it.
    pub fn database_object(&self, database: &DatabaseName) -> Option<&Object> {
        self.objects
            .iter()
            .find(|object| matches!(&object.content, Content::Database { database: held, .. } if held == database))
    }

    /// The databases in the set, with their objects.
    pub fn databases(&self) -> impl Iterator<Item = (&DatabaseName, &Object)> {
        self.objects.iter().filter_map(|object| match &object.content {
            Content::Database { database, .. } => Some((database, object)),
            _ => None,
        })
    }

    /// The object with roles and tablespaces.
    pub fn globals(&self) -> Option<&Object> {
        self.objects.iter().find(|object| object.content == Content::Globals)
    }

    /// The object with the facts, if any were taken.
    pub fn facts(&self) -> Option<&Object> {
        self.objects.iter().find(|object| object.content == Content::Facts)
    }

    /// The object with the volumes, and what is known of it.
    pub fn volume(&self) -> Option<(&Object, &VolumeCopy)> {
        self.objects.iter().find_map(|object| match &object.content {
            Content::Volume(copy) => Some((object, &**copy)),
            _ => None,
        })
    }

    /// The object with the block index, if there is one.
    pub fn blocks(&self) -> Option<&Object> {
        self.objects.iter().find(|object| object.content == Content::Blocks)
    }

    /// The sets it cannot be restored without: its parent first.
    pub fn ancestors(&self) -> &[Ancestor] {
        self.volume().and_then(|(_, copy)| copy.incremental.as_ref()).map_or(&[], |incremental| &incremental.ancestors)
    }

    /// Number of databases in it: in a copy of volumes, all that the server has but the empty template.
    pub fn database_count(&self) -> usize {
        match self.kind {
            Kind::Dump => self.databases().count(),
            Kind::Volume => {
                self.server.databases.iter().filter(|database| database.name.as_str() != "template0").count()
            }
        }
    }

    /// Pages of its volumes that were damaged on the disk.
    pub fn damaged_pages(&self) -> u64 {
        self.volume().map_or(0, |(_, copy)| copy.damaged.iter().map(|file| file.count).sum())
    }

    /// Bytes of its volumes that were not read, because nothing had changed there since the copy that it builds on.
    pub fn unread_bytes(&self) -> u64 {
        self.volume().and_then(|(_, copy)| copy.incremental.as_ref()).map_or(0, |incremental| incremental.unread_bytes)
    }

    /// Bytes before the codec, over all objects.
    pub fn plain_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.plain.bytes).sum()
    }

    /// Bytes in the repository, over all objects.
    pub fn stored_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.stored.bytes).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup_set::Codec;
    pub(in crate::backup_set) use crate::backup_set::example::example;

    /// The same set, encrypted.
    pub(in crate::backup_set) fn encrypted_example() -> Manifest {
        let recipient = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa".parse().expect("a recipient");
        let escrow = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN";
        let mut manifest = example();
        manifest.encryption = Recipients::new(vec![recipient], vec![escrow.parse().expect("a recipient")]);
        for (place, object) in manifest.objects.iter_mut().enumerate() {
            object.name = match &object.content {
                Content::Database { database, .. } => Naming::Opaque.database(database, place - 1, Codec::default()),
                _ => Naming::Opaque.globals(Codec::default()),
            };
        }
        manifest
    }

    #[test]
    fn a_manifest_reads_back() {
        let manifest = example();
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).expect("sealed"), manifest);
        let encrypted = encrypted_example();
        assert_eq!(Manifest::from_bytes(&encrypted.to_bytes()).expect("sealed"), encrypted);
    }

    #[test]
    fn a_newer_manifest_is_named_as_such() {
        let bytes = Manifest { version: MANIFEST_VERSION + 1, ..example() }.to_bytes();
        assert!(matches!(Manifest::from_bytes(&bytes), Err(FormatError::Newer { found: 5, .. })));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_found(at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = example().to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Manifest::from_bytes(&bytes).is_err());
        }

        #[test]
        fn a_cut_manifest_is_found(at: prop::sample::Index) {
            let bytes = example().to_bytes();
            prop_assert!(Manifest::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
        }
    }
}
