//! Sealed streams: there and back, at any place, and everything that can be wrong with one.

use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backup_set::Codec;
use crate::encryption::tests::SSH;
use crate::exit::Exit;
use crate::pipeline::frames::FrameBytes;
use crate::pipeline::{Compression, Meter, Sealed, compress, decompress};

fn keys() -> (Keys, Recipients) {
    let keys = Keys::ephemeral();
    let escrow = Keys::parse(SSH).expect("a key").recipients().to_vec();
    let recipients = Recipients::new(keys.recipients().to_vec(), escrow).expect("one");
    (keys, recipients)
}

fn bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new().update(&count.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn compression() -> Compression {
    let frame_bytes = FrameBytes::new(10_000).expect("a frame size");
    Compression { codec: Codec::default(), threads: NonZeroUsize::MIN, frame_bytes }
}

fn packed(plain: &[u8], recipients: &Recipients) -> (Vec<u8>, Sealed) {
    let mut object = Vec::new();
    let (meter, stop) = (Meter::new(), CancellationToken::new());
    let sealed =
        compress(&mut &plain[..], &mut object, compression(), Some(recipients), &meter, &stop).expect("packed");
    assert_eq!(sealed, Sealed { plain: Measured::of(plain), stored: Measured::of(&object) });
    assert_eq!((meter.plain(), meter.stored()), (sealed.plain.bytes, sealed.stored.bytes));
    (object, sealed)
}

fn unpacked(object: &[u8], expect: Option<&Sealed>, keys: &Keys) -> Result<Vec<u8>, PipelineError> {
    let mut plain = Vec::new();
    let (meter, stop) = (Meter::new(), CancellationToken::new());
    let two = NonZeroUsize::new(2).expect("two");
    let sealed = decompress(&Bytes(object), expect, Some(keys), &mut plain, two, &meter, &stop)?;
    assert_eq!(sealed, Sealed { plain: Measured::of(&plain), stored: Measured::of(object) });
    assert_eq!((meter.plain(), meter.stored()), (sealed.plain.bytes, sealed.stored.bytes));
    Ok(plain)
}

fn corruption(result: Result<Vec<u8>, PipelineError>) -> Corruption {
    match result {
        Err(PipelineError::Corrupt(corruption)) => corruption,
        other => panic!("corruption was not found: {other:?}"),
    }
}

#[test]
fn every_size_around_a_chunk_comes_back_whole_and_in_parts() {
    let (keys, recipients) = keys();
    let chunk = usize::try_from(CHUNK).expect("small");
    for size in [0, 1, 15, 16, 17, chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, 2 * chunk + 1, 3 * chunk] {
        let plain = bytes(size);
        let sealed = seal_bytes(&plain, &recipients);
        assert_eq!(unseal_bytes(&sealed, &keys).expect("opened"), plain, "{size}");
        let object = Bytes(&sealed);
        let unsealed = Unsealed::open(&object, &keys).expect("opened");
        assert_eq!(unsealed.size(), size as u64);
        for at in [size, 0, size / 2, chunk - 1, chunk, chunk + 1, size.saturating_sub(1), 1] {
            for length in [0, 1, 5, chunk, chunk + 2] {
                let mut buffer = vec![0; length];
                let read = unsealed.read_exact_at(&mut buffer, at as u64);
                match plain.get(at..at + length) {
                    Some(part) => assert!(read.is_ok() && buffer == part, "{length} at {at} of {size}"),
                    None => assert_eq!(read.expect_err("beyond").kind(), io::ErrorKind::UnexpectedEof),
                }
            }
        }
        assert_eq!(unsealed.stored().expect("measured"), Measured::of(&sealed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_place_reads_as_it_was_written(size in 0..300_000_usize, places in prop::collection::vec((any::<prop::sample::Index>(), 0..150_000_usize), 1..12)) {
        let (keys, recipients) = keys();
        let plain = bytes(size);
        let sealed = seal_bytes(&plain, &recipients);
        let object = Bytes(&sealed);
        let unsealed = Unsealed::open(&object, &keys).expect("opened");
        for (at, length) in places {
            let at = at.index(size + 1);
            let mut buffer = vec![0; length.min(size - at)];
            unsealed.read_exact_at(&mut buffer, at as u64).expect("read");
            prop_assert_eq!(&buffer, &plain[at..at + buffer.len()]);
        }
        prop_assert_eq!(unsealed.stored().expect("measured"), Measured::of(&sealed));
    }

    #[test]
    fn every_stream_comes_back_sealed(plain in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..5000), repeat in 1..60_usize) {
        let (keys, recipients) = keys();
        let plain = plain.repeat(repeat);
        let (object, sealed) = packed(&plain, &recipients);
        prop_assert_eq!(unpacked(&object, Some(&sealed), &keys).expect("opened"), plain);
    }

    #[test]
    fn a_changed_byte_of_a_long_object_is_found(at: prop::sample::Index, flip in 1_u8..) {
        let (keys, recipients) = keys();
        let plain = bytes(200_000);
        let (object, sealed) = packed(&plain, &recipients);
        let mut bad = object;
        let at = at.index(bad.len());
        bad[at] ^= flip;
        corruption(unpacked(&bad, Some(&sealed), &keys));
        // Without the manifest too, but in a header, where it may look like one for other keys.
        let alone = unpacked(&bad, None, &keys);
        prop_assert!(matches!(alone, Err(PipelineError::Corrupt(_) | PipelineError::WrongKey)), "{:?}", alone);
    }

    #[test]
    fn no_object_makes_a_panic(object in prop::collection::vec(any::<u8>(), 0..300), begins_well: bool) {
        let (keys, _) = keys();
        let object = if begins_well { [b"age-encryption.org/v1\n".as_slice(), &object].concat() } else { object };
        corruption(unpacked(&object, None, &keys));
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (keys, recipients) = keys();
    let (object, sealed) = packed(&bytes(300), &recipients);
    for at in 0..object.len() {
        let mut bad = object.clone();
        bad[at] ^= 1 << (at % 8);
        let error = unpacked(&bad, Some(&sealed), &keys).expect_err("found");
        assert_eq!(error.exit(), Exit::VerifyFailed, "at {at}: {error}");
        assert!(unpacked(&bad, None, &keys).is_err(), "at {at}");
        assert!(unseal_bytes(&bad, &keys).is_err(), "at {at}");
    }
}

#[test]
fn a_truncated_object_is_found_wherever_it_ends() {
    let (keys, recipients) = keys();
    let sealed = seal_bytes(&bytes(140_000), &recipients);
    let header = sealed.len() - 140_000 - 3 * 16;
    let chunk = usize::try_from(SEALED_CHUNK).expect("small");
    // Most tellingly where a chunk ends: there the rest is a row of good chunks.
    let chunk_ends = [header, header + chunk, header + 2 * chunk];
    for end in (0..header + 40).chain(chunk_ends.iter().flat_map(|end| end.saturating_sub(20)..end + 20)) {
        let error = unseal_bytes(&sealed[..end], &keys).expect_err("found");
        assert!(matches!(error, PipelineError::Corrupt(_)), "{end}: {error}");
    }
    let longer = [&sealed[..], b"x"].concat();
    assert!(matches!(unseal_bytes(&longer, &keys), Err(PipelineError::Corrupt(Corruption::Seal { .. }))));
    let twice = sealed.repeat(2);
    assert!(matches!(unseal_bytes(&twice, &keys), Err(PipelineError::Corrupt(Corruption::Seal { .. }))));
}

#[test]
fn chunks_that_moved_are_found() {
    let (keys, recipients) = keys();
    let chunk = usize::try_from(SEALED_CHUNK).expect("small");
    let sealed = seal_bytes(&bytes(3 * 65_536), &recipients);
    let first = sealed.len() - 3 * chunk;
    let mut bad = sealed.clone();
    bad[first..first + chunk].copy_from_slice(&sealed[first + chunk..first + 2 * chunk]);
    bad[first + chunk..first + 2 * chunk].copy_from_slice(&sealed[first..first + chunk]);
    let error = unseal_bytes(&bad, &keys).expect_err("found");
    assert!(error.to_string().contains("does not authenticate"), "{error}");
}

#[test]
fn swapped_objects_are_found() {
    let (keys, recipients) = keys();
    let (one, one_sealed) = packed(&[1; 5000], &recipients);
    // The header has a stanza of random length. Of one size, or the test shows nothing.
    let (other, other_sealed) = (0..100_000)
        .map(|_| packed(&[2; 5000], &recipients))
        .find(|(_, sealed)| sealed.stored.bytes == one_sealed.stored.bytes)
        .expect("one of the same size");
    for (object, expect) in [(&one, &other_sealed), (&other, &one_sealed)] {
        assert!(unpacked(object, None, &keys).is_ok(), "each is a good object");
        assert!(matches!(corruption(unpacked(object, Some(expect), &keys)), Corruption::StoredDigest { .. }));
    }
    // Sealed anew by somebody who has only the recipients: the manifest knows.
    let (again, again_sealed) = packed(&[1; 5000], &recipients);
    assert_ne!(again_sealed.stored.blake3, one_sealed.stored.blake3);
    let found = corruption(unpacked(&again, Some(&one_sealed), &keys));
    assert!(matches!(found, Corruption::StoredDigest { .. } | Corruption::StoredSize { .. }), "{found}");
}

#[test]
fn each_recipient_opens_it_and_nobody_else() {
    let (key, recipients) = keys();
    let plain = bytes(100_000);
    let (object, sealed) = packed(&plain, &recipients);
    for key in [key, Keys::parse(SSH).expect("a key")] {
        assert_eq!(unpacked(&object, Some(&sealed), &key).expect("opened"), plain);
    }
    for expect in [None, Some(&sealed)] {
        let error = unpacked(&object, expect, &Keys::ephemeral()).expect_err("another key");
        assert!(matches!(error, PipelineError::WrongKey), "{error}");
        assert_eq!(error.exit(), Exit::Credentials);
    }
    assert!(matches!(unseal_bytes(&object, &Keys::ephemeral()), Err(PipelineError::WrongKey)));
}

#[test]
fn an_open_object_is_not_taken_for_a_sealed_one_nor_the_other_way() {
    let (keys, recipients) = keys();
    let (sealed, _) = packed(b"text", &recipients);
    let (meter, stop) = (Meter::new(), CancellationToken::new());
    let as_open = decompress(&Bytes(&sealed), None, None, &mut io::sink(), NonZeroUsize::MIN, &meter, &stop);
    assert!(matches!(as_open, Err(PipelineError::Corrupt(Corruption::NoSeekTable))), "{as_open:?}");
    let mut open = Vec::new();
    compress(&mut &b"text"[..], &mut open, compression(), None, &meter, &stop).expect("packed");
    assert!(matches!(corruption(unpacked(&open, None, &keys)), Corruption::Seal { .. }));
}

#[test]
fn a_seal_that_is_not_finished_does_not_open() {
    let (keys, recipients) = keys();
    let mut object = Vec::new();
    let mut seal = Seal::begin(&mut object, Some(&recipients)).expect("begun");
    seal.write_all(&bytes(200_000)).expect("written");
    drop(seal);
    assert!(matches!(unseal_bytes(&object, &keys), Err(PipelineError::Corrupt(Corruption::Seal { .. }))));
}

#[test]
fn a_full_disk_is_told_as_such() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (_, recipients) = keys();
    for room in [0, 300, 10_000, 70_000] {
        let (meter, stop, plain) = (Meter::new(), CancellationToken::new(), bytes(200_000));
        let error = compress(&mut &plain[..], &mut Full(room), compression(), Some(&recipients), &meter, &stop);
        let Err(PipelineError::Sink { source, written }) = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(written <= room as u64 && written == meter.stored());
    }
}

/// An object that counts its reads, and fails after some.
#[derive(Debug)]
struct Counted<'a> {
    bytes: Bytes<'a>,
    reads: AtomicUsize,
    fail_at: usize,
}

impl ReadAt for Counted<'_> {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= self.fail_at {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.bytes.read_exact_at(buffer, offset)
    }
}

#[test]
fn one_read_of_the_inside_is_one_read_of_the_object() {
    let (keys, recipients) = keys();
    let plain = bytes(3_000_000);
    let sealed = seal_bytes(&plain, &recipients);
    let object = Counted { bytes: Bytes(&sealed), reads: AtomicUsize::new(0), fail_at: usize::MAX };
    let unsealed = Unsealed::open(&object, &keys).expect("opened");
    let opening = object.reads.swap(0, Ordering::Relaxed);
    assert!(opening <= 3, "{opening} reads");
    let mut buffer = vec![0; 1_000_000];
    for part in 0..3 {
        unsealed.read_exact_at(&mut buffer, part * 1_000_000).expect("read");
    }
    assert_eq!(object.reads.load(Ordering::Relaxed), 3);
}

#[test]
fn an_unreadable_object_is_not_called_corrupt() {
    let (keys, recipients) = keys();
    let (sealed, expect) = packed(&bytes(500_000), &recipients);
    let mut ended_well = false;
    for fail_at in 0..200 {
        let object = Counted { bytes: Bytes(&sealed), reads: AtomicUsize::new(0), fail_at };
        let (meter, stop) = (Meter::new(), CancellationToken::new());
        match decompress(&object, Some(&expect), Some(&keys), &mut io::sink(), NonZeroUsize::MIN, &meter, &stop) {
            Err(PipelineError::Object { source }) => assert_eq!(source.kind(), io::ErrorKind::ConnectionReset),
            Ok(_) => ended_well = true,
            other => panic!("failing read {fail_at}: {other:?}"),
        }
    }
    assert!(ended_well);
    // After a failure nothing wrong comes out of the same reader.
    let object = Counted { bytes: Bytes(&sealed), reads: AtomicUsize::new(0), fail_at: 3 };
    if let Ok(unsealed) = Unsealed::open(&object, &keys) {
        let mut buffer = vec![0; 100_000];
        for offset in [0, 100_000, 200_000, 0] {
            let read = unsealed.read_exact_at(&mut buffer, offset);
            assert!(read.is_err() || offset < 200_000, "{offset}");
        }
    }
}

/// Runs stock `age` on `object` and returns what it prints.
fn stock_age(object: &[u8], identity: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, key) = (folder.path().join("object.age"), folder.path().join("key"));
    std::fs::write(&file, object).expect("written");
    std::fs::write(&key, identity).expect("written");
    let stock = Command::new("age").arg("-d").arg("-i").arg(&key).arg(&file).output().expect("age is installed");
    assert!(stock.status.success(), "{}", String::from_utf8_lossy(&stock.stderr));
    stock.stdout
}

#[test]
fn stock_age_opens_the_object() {
    let (keys, recipients) = keys();
    let plain = bytes(200_000);
    for identity in [String::from(keys), SSH.to_owned()] {
        for plain in [&plain[..], &[]] {
            assert!(stock_age(&seal_bytes(plain, &recipients), &identity) == plain);
        }
        let zstd = stock_age(&packed(&plain, &recipients).0, &identity);
        assert!(zstd::stream::decode_all(&zstd[..]).expect("zstd") == plain);
    }
}

#[test]
fn what_stock_age_made_is_opened() {
    let (keys, recipients) = keys();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("plain");
    std::fs::write(&file, bytes(150_000)).expect("written");
    let mut age = Command::new("age");
    for recipient in recipients.all() {
        age.arg("-r").arg(recipient.as_str());
    }
    let stock = age.arg(&file).output().expect("age is installed");
    assert!(stock.status.success(), "{}", String::from_utf8_lossy(&stock.stderr));
    assert!(unseal_bytes(&stock.stdout, &keys).expect("opened") == bytes(150_000));
}
