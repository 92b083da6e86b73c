//! PostgreSQL's own `backup_manifest`, so that the stock `pg_verifybackup` (13 and later) checks a restored data directory.
//!
//! The format is in the manual: Backup Manifest Format. It is kept in memory until it is written: some 200 bytes for each file.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crc_fast::{CrcAlgorithm, Digest};
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
            checksum_of(checksum),
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
        let seal = seal_of(text.as_bytes());
        text.push_str(&format!("{SEAL}{seal}\"}}\n"));
        text.into_bytes()
    }
}

/// What stands before the checksum of a manifest itself.
const SEAL: &str = "\"Manifest-Checksum\": \"";

/// The checksum of a manifest that says `text` before it.
fn seal_of(text: &[u8]) -> String {
    hexadecimal(&Sha256::digest(text))
}

/// As the server writes it: the bytes as they are in memory.
fn checksum_of(crc: u32) -> String {
    hexadecimal(&crc.to_ne_bytes())
}

/// `manifest`, as [`ServerManifest::finish`] made it, as if the file called `name` had this content, and as many bytes as before.
/// None where it does not have the file.
pub(crate) fn with_content(manifest: &[u8], name: &str, content: &[u8]) -> Option<Vec<u8>> {
    const CHECKSUM: &str = "\"Checksum\": \"";
    let text = std::str::from_utf8(manifest).ok()?;
    let file = text.find(&format!("\"Path\": {}, ", serde_json::Value::from(name)))?;
    let checksum = file + text[file..].find(CHECKSUM)? + CHECKSUM.len();
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(content);
    let fitting = checksum_of(u32::try_from(digest.finalize()).ok()?);
    let mut changed = text.to_owned();
    changed.replace_range(checksum..checksum + fitting.len(), &fitting);
    let sealed = changed.rfind(SEAL)?;
    let seal = seal_of(&changed.as_bytes()[..sealed]);
    changed.replace_range(sealed + SEAL.len()..sealed + SEAL.len() + seal.len(), &seal);
    Some(changed.into_bytes())
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

    #[test]
    fn it_can_be_made_to_fit_another_content() {
        let crc = |content: &[u8]| {
            let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
            digest.update(content);
            u32::try_from(digest.finalize()).expect("32 bits")
        };
        let of = |content: &[u8]| {
            let mut manifest = ServerManifest::new("17".parse().expect("a major"), 7);
            for (name, content) in [("base/5/1638", &b"x"[..]), ("base/5/16384", content), ("base/5/163840", b"y")] {
                manifest.add(Path::new(name), content.len() as u64, 0, crc(content));
            }
            manifest.finish(None)
        };
        assert_eq!(with_content(&of(b"before"), "base/5/16384", b"after!"), Some(of(b"after!")));
        assert_eq!(with_content(&of(b"before"), "base/5/16385", b"after!"), None);
    }
}
