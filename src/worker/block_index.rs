//! Reads the block index of a set.

use std::num::NonZeroUsize;

use tokio_util::sync::CancellationToken;

use crate::backup_set::Object;
use crate::backup_set::block_index::IndexError;
use crate::encryption::Keys;
use crate::pipeline::{Meter, Sealed, decompress};
use crate::storage::Folder;

use super::{Failure, Trouble, pipeline_failure, storage_failure};

/// The largest index that is read: twice what a copy of 32 GB and more has.
const LARGEST: u64 = 256 << 20;

/// All of the index that is the object `index`, checked.
pub(super) fn read_index(
    folder: &Folder,
    index: &Object,
    keys: Option<&Keys>,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<Vec<u8>, Failure> {
    let name = &index.name;
    if index.plain.bytes > LARGEST {
        let what = format!("{name} has {} bytes, more than any block index", index.plain.bytes);
        return Err(Failure::new(Trouble::Damaged, what));
    }
    let object = folder.open(name).map_err(|error| storage_failure(&format!("cannot read {name}"), &error))?;
    let mut text = Vec::with_capacity(usize::try_from(index.plain.bytes).unwrap_or_default());
    let expect = Sealed { plain: index.plain, stored: index.stored };
    decompress(&*object, Some(&expect), keys, &mut text, NonZeroUsize::MIN, meter, stop)
        .map_err(|error| pipeline_failure(&format!("reading {name}"), &error))?;
    Ok(text)
}

/// The failure that an index is not what was written.
pub(super) fn unreadable_index(error: &IndexError) -> Failure {
    Failure::from_error(Trouble::Damaged, "the block index cannot be used", error)
}
