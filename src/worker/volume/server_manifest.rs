//! PostgreSQL's own `backup_manifest`, so that the stock `pg_verifybackup` (13 and later) checks a restored data directory.
//!
//! The format is in the manual: Backup Manifest Format. It is kept in memory until it is written: some 200 bytes for each file.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::cluster::PgMajor;
use crate::postgres::hot_backup::Lsn;

/// The first major that wants the system identifier in it.
const WITH_IDENTIFIER: u16 = 17;

/// The manifest, as far as it has come.
#[derive(Debug)]
pub(super) struct ServerManifest {
    text: String,
    files: u64,
}

impl ServerManifest {
    /// Begins one.
    pub(super) fn new(major: PgMajor, system_identifier: u64) -> Self {
        let head = if major.is_at_least(WITH_IDENTIFIER) {
            format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n\"Files\": ["
            )
        } else {
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned()
        };
        Self { text: head, files: 0 }
    }

    /// Adds a file, by its name in the data directory, with its size, its time and its CRC-32C as they are in the copy.
    pub(super) fn add(&mut self, name: &Path, bytes: u64, mtime: u64, checksum: u32) {
        self.text.push_str(if self.files == 0 { "\n" } else { ",\n" });
        self.files += 1;
        let path = match name.to_str() {
            Some(name) => format!("\"Path\": {}", serde_json::Value::from(name)),
            None => format!("\"Encoded-Path\": \"{}\"", hexadecimal(name.as_os_str().as_bytes())),
        };
        let mtime = Timestamp::from_second(i64::try_from(mtime).unwrap_or_default()).unwrap_or(Timestamp::UNIX_EPOCH);
        self.text.push_str(&format!(
            "{{ {path}, \"Size\": {bytes}, \"Last-Modified\": \"{} GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            mtime.strftime("%Y-%m-%d %H:%M:%S"),
            // As the server writes it: the bytes as they are in memory.
            hexadecimal(&checksum.to_ne_bytes()),
        ));
    }

    /// Files in it so far.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Ends it with the WAL that makes the files consistent: timeline, start and end; none where they are so without.
    pub(super) fn finish(self, wal: Option<(u32, Lsn, Lsn)>) -> Vec<u8> {
        let mut text = self.text;
        text.push_str("\n],\n\"WAL-Ranges\": [\n");
        if let Some((timeline, start, stop)) = wal {
            text.push_str(&format!(
                "{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n"
            ));
        }
        text.push_str("],\n");
        let seal = hexadecimal(&Sha256::digest(text.as_bytes()));
        text.push_str(&format!("\"Manifest-Checksum\": \"{seal}\"}}\n"));
        text.into_bytes()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn it_is_the_json_that_the_manual_describes() {
        for (major, version) in [("13", 1), ("17", 2)] {
            let mut manifest = ServerManifest::new(major.parse().expect("a major"), 7_412_345_678_901_234_567);
            manifest.add(Path::new("base/5/we \"ird"), 8192, 1_700_000_000, 0x0102_0304);
            manifest.add(Path::new(OsStr::from_bytes(b"x\xFF")), 0, 0, 0);
            assert_eq!(manifest.files(), 2);
            let bytes = manifest.finish(Some((1, Lsn(0x200_0028), Lsn(0x200_0138))));
            let read: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            assert_eq!(read["PostgreSQL-Backup-Manifest-Version"], version);
            assert_eq!(read["System-Identifier"].is_null(), version == 1);
            assert_eq!(read["Files"][0]["Path"], "base/5/we \"ird");
            assert_eq!(read["Files"][0]["Last-Modified"], "2023-11-14 22:13:20 GMT");
            assert_eq!(read["Files"][1]["Encoded-Path"], "78ff");
            assert_eq!(read["WAL-Ranges"][0]["End-LSN"], "0/2000138");
            let text = String::from_utf8(bytes).expect("text");
            let (body, _) = text.split_once("\"Manifest-Checksum\"").expect("a seal");
            assert_eq!(read["Manifest-Checksum"], hexadecimal(&Sha256::digest(body.as_bytes())));
        }
    }
}
