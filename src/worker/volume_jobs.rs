//! What workers are told about copies of volumes.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

pub use super::unpack::excerpt::{Excerpt, PartOfDatabase};
use super::{Destination, TableName};
use crate::backup_set::{Ancestor, Codec, CopyMode, History, Moved, Object, SetId, VolumeCopy};
use crate::cluster::{PgMajor, RoleName};
use crate::encryption::{Keys, Recipients};
use crate::policy::IoPriority;
use crate::postgres::Login;
use crate::postgres::hot_backup::Lsn;
use crate::storage::FolderLocation;

/// Everything a volume backup needs; no choice is left to the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeJob {
    /// While the server runs, or while it is stopped.
    pub mode: CopyMode,
    /// How to log in.
    pub login: Login,
    /// The server's major.
    pub major: PgMajor,
    /// Its system identifier.
    pub system_identifier: u64,
    /// Size of its WAL segments in bytes.
    pub wal_segment_bytes: u64,
    /// The data directory, where the worker sees it, and where it is in the copy.
    pub pgdata: String,
    /// The volumes, where the worker sees them.
    pub volumes: Vec<String>,
    /// Folders that the server sees elsewhere than the worker; none: it sees all of them where the worker does.
    #[serde(default)]
    pub moved: Vec<Moved>,
    /// What the backup is called in `backup_label`.
    pub label: String,
    /// The temporary slot that keeps the WAL.
    pub slot: String,
    /// Where the set is written to.
    pub destinations: Vec<Destination>,
    /// The object.
    pub object: String,
    /// Its codec.
    pub codec: Codec,
    /// How many bytes are read in a second at most.
    #[serde(default)]
    pub rate_limit: Option<u64>,
    /// Whose turn it is at the disk.
    #[serde(default)]
    pub ionice: Option<IoPriority>,
    /// Codec threads.
    pub threads: usize,
    /// Whom it is sealed to; None: to nobody.
    pub recipients: Option<Recipients>,
    /// Whether its pages have checksums.
    #[serde(default)]
    pub page_checksums: bool,
    /// What is to be noted of its blocks, so that a later copy needs to hold only what changed.
    #[serde(default)]
    pub blocks: Option<BlocksJob>,
}

/// What is to be noted of a copy's blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlocksJob {
    /// The set.
    pub set: SetId,
    /// The object that the index goes to.
    pub object: String,
    /// Whom the index is sealed to; None: to nobody.
    pub readers: Option<Recipients>,
    /// Bytes in a block, where there is no parent.
    pub block_bytes: u32,
    /// The copy whose blocks are not written again; None: all are written.
    pub parent: Option<ParentJob>,
}

/// An earlier copy of the same volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParentJob {
    /// Its folder, as the worker reaches it.
    pub place: FolderLocation,
    /// Its index.
    pub index: Object,
    /// What opens it, where it is sealed.
    pub keys: Option<Keys>,
    /// It, and those that it needs.
    pub ancestors: Vec<Ancestor>,
    /// The object that what changed goes to, in place of the whole tar.
    pub object: String,
    /// Whether files are read that nobody has touched since, too.
    pub read_all: bool,
    /// What it takes to rely on the server's WAL summaries since then; None: the copy does not say.
    #[serde(default)]
    pub since: Option<Since>,
}

/// Where an earlier copy of a running server was in its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The timeline.
    pub timeline: u32,
    /// Where replay of it begins.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// By what the server is known again.
    pub history: History,
    /// Whether its pages had checksums.
    pub page_checksums: bool,
}

/// Everything it needs to unpack a volume backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// The set's folder, as the worker reaches it.
    pub place: FolderLocation,
    /// The object.
    pub object: Object,
    /// The volumes, where the worker sees them: new ones.
    pub volumes: Vec<String>,
    /// Volumes in the tar that are not unpacked.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Codec threads.
    pub threads: usize,
    /// What opens a sealed object.
    pub keys: Option<Keys>,
    /// What it is put together from, where it is not the whole tar.
    #[serde(default)]
    pub chain: Option<ChainJob>,
    /// Whether the files are compared with the server's own manifest when they are there.
    #[serde(default)]
    pub check: Option<FilesCheck>,
    /// What makes a data directory of another image one of pglife's image.
    #[serde(default)]
    pub settle_in: Option<SettleIn>,
    /// What of it is wanted, where that is not all of it.
    #[serde(default)]
    pub excerpt: Option<Excerpt>,
}

/// A table to find in a volume backup, before it is unpacked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocateJob {
    /// What will be unpacked, with an excerpt in which the database is whole.
    pub tar: UnpackJob,
    /// The major that wrote it.
    pub major: PgMajor,
    /// The oid of the database.
    pub database: u32,
    /// The table.
    pub table: TableName,
}

/// A data directory that a server of another image served from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleIn {
    /// The data directory, where the worker sees it.
    pub pgdata: String,
    /// The role that enters by the socket.
    pub role: RoleName,
    /// Whether the access rules in the data directory are to be used, because those that were are not in the copy.
    pub own_access_rules: bool,
}

/// A data directory with a `backup_manifest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesCheck {
    /// The major: the tools must be of it.
    pub major: PgMajor,
    /// The data directory, where the worker sees it.
    pub pgdata: String,
}

impl UnpackJob {
    /// The sets that the tar lies in beside its own, nearest first.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &(Ancestor, FolderLocation)> {
        self.chain.iter().flat_map(|chain| &chain.ancestors)
    }

    pub(super) fn places(&self) -> Vec<&FolderLocation> {
        std::iter::once(&self.place).chain(self.ancestors().map(|(_, place)| place)).collect()
    }

    pub(super) fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.threads).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Everything it needs to make a full copy of an incremental one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinJob {
    /// The tar; into no volumes.
    pub tar: UnpackJob,
    /// What is known of it, as a full copy.
    pub copy: VolumeCopy,
    /// The folder that the object goes to.
    pub to: FolderLocation,
    /// The object.
    pub object: String,
    /// Its codec.
    pub codec: Codec,
    /// Whom it is sealed to; None: to nobody.
    pub recipients: Option<Recipients>,
}

/// The other objects that a tar is put together from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChainJob {
    /// Bytes of the tar.
    pub tar_bytes: u64,
    /// The block index, in the set's own folder.
    pub index: Object,
    /// The sets it needs, nearest first, each with its folder as the worker reaches it.
    pub ancestors: Vec<(Ancestor, FolderLocation)>,
}
