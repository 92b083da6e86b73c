//! Uploads its stdin to S3 as pglife does, for `scripts/bench s3`:
//!
//! ```text
//! s3-upload BUCKET.json KEY [PARTS-UNDER-WAY [MIB-A-PART]] <content
//! ```
//!
//! BUCKET.json is a `storage::s3::Bucket`. Without numbers, pglife's own.

use std::io::{self, Read as _, Write as _};

use pglife::storage::s3::{Bucket, Limits, S3Store};
use pglife::storage::{Key, Store as _};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(bucket), Some(key)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: s3-upload BUCKET.json KEY [PARTS-UNDER-WAY [MIB-A-PART]] <content");
    };
    let mut limits = Limits::default();
    if let Some(concurrency) = arguments.next() {
        limits.concurrency = concurrency.parse()?;
    }
    if let Some(mebibytes) = arguments.next() {
        limits.part_bytes = Some(mebibytes.parse::<u64>()? << 20);
    }
    let bucket: Bucket = serde_json::from_slice(&std::fs::read(bucket)?)?;
    let mut upload = S3Store::with_limits(&bucket, limits)?.begin(&Key::new(key)?)?;
    let (mut stdin, mut buffer) = (io::stdin().lock(), vec![0; 1 << 20]);
    loop {
        match stdin.read(&mut buffer)? {
            0 => break,
            read => upload.write_all(&buffer[..read])?,
        }
    }
    upload.commit()?;
    Ok(())
}
