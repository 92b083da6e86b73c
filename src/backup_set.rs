//! Backup sets: what one is, how it is named, and where its objects lie in a repository. No I/O.
//!
//! ```text
//! <cluster>/<lineage>/sets/<set id>/
//!     globals.sql.zst   db/<database>.dump.zst     the bytes, written by a worker
//!     volume.tar.zst                               the same of a volume backup
//!     recipe.json  RECOVER.md                      how to bring it back, with and without pglife
//!     manifest.json                                every object with sizes and digests; [`manifest`]
//!     COMMIT                                       written last; no COMMIT, no backup; [`commit`]
//! <cluster>/<lineage>/pins/<set id>.json           a person's word that a set stays; [`pin`]
//! <cluster>/<lineage>/drills/<set id>/<UTC>.json   what a drill found about a set; [`certificate`]
//! ```
//! The objects of an encrypted set end in `.age`, are called by number (`db/0001.dump.zst.age`) and are all age files, with two
//! exceptions: `COMMIT`, which listing needs, and a `RECOVER.md` that tells how to open `RECOVER.details.md.age`.
//!
//! Invariants: every object is written once; a set without `COMMIT` does not exist for anyone; sets are ordered by the
//! completion time in `COMMIT`, never by name.

pub mod block_index;
pub mod certificate;
mod chain;
mod codec;
mod commit;
mod digest;
mod example;
mod id;
mod layout;
mod manifest;
mod pin;
mod recover;
mod recovery_time;
mod selector;
mod sorting;

pub use certificate::Certificate;
pub use chain::Parents;
pub use codec::{Codec, CodecError, GzipLevel, ZstdLevel};
pub use commit::{COMMIT_VERSION, Commit, Encryption, StoredObject};
pub use digest::{Digest, DigestError};
pub use id::{Kind, SetId, SetIdError};
pub use layout::{Naming, SetLocation, drill_key_owner, pin_key_owner, set_object};
pub use manifest::{
    Ancestor, Content, CopyMode, DamagedFile, DatabaseProfile, FormatError, History, ImageReference, Incremental,
    MANIFEST_VERSION, Manifest, Measured, Moved, Object, ServerProfile, Skipped, Tablespace, VolumeCopy,
};
pub use pin::{PIN_VERSION, Pin, PinError};
pub use recover::{Recipe, RecipeMount, RestoreStep, cover, instructions, restore_order};
pub use recovery_time::RecoveryTime;
pub use selector::{Selector, SelectorError};
pub use sorting::Sorting;

#[doc(hidden)]
pub use example::{copy as example_copy, example as example_manifest};
