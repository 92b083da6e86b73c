//! Whole streams: there and back, and everything that can go wrong on the way.

use std::io::{self, Cursor, Read, Write};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::frames::{Entry, Format, FrameBytes, SeekTable};
use super::pipe::PipeSource;
use super::*;
use crate::backup_set::{Codec, Digest, Measured};
use crate::exit::Exit;
use crate::storage::ReadAt;

/// An object in memory.
#[derive(Debug)]
struct InMemory(Vec<u8>);

impl ReadAt for InMemory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        Read::read_exact(&mut &rest[..], buffer)
    }
}

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("some threads")
}

fn compression(count: usize, frame_bytes: u32) -> Compression {
    with(Codec::default(), count, frame_bytes)
}

fn with(codec: Codec, count: usize, frame_bytes: u32) -> Compression {
    let frame_bytes = FrameBytes::new(frame_bytes).expect("a frame size");
    Compression { codec, threads: threads(count), frame_bytes }
}

/// One codec of each format.
fn codecs() -> [Codec; 3] {
    ["zstd:1", "gzip:6", "none"].map(|codec| codec.parse().expect("a codec"))
}

fn packed(plain: &[u8], compression: Compression) -> (Vec<u8>, Sealed) {
    let mut object = Vec::new();
    let meter = Meter::new();
    let sealed = compress(&mut &plain[..], &mut object, compression, None, &meter, &CancellationToken::new());
    let sealed = sealed.expect("compressed");
    assert_eq!(sealed, Sealed { plain: Measured::of(plain), stored: Measured::of(&object) });
    assert_eq!((meter.plain(), meter.stored()), (sealed.plain.bytes, sealed.stored.bytes));
    (object, sealed)
}

fn unpacked(object: &[u8], expect: Option<&Sealed>) -> Result<Vec<u8>, PipelineError> {
    let mut plain = Vec::new();
    let meter = Meter::new();
    let object = InMemory(object.to_vec());
    let sealed = decompress(&object, expect, None, &mut plain, threads(2), &meter, &CancellationToken::new())?;
    assert_eq!(sealed, Sealed { plain: Measured::of(&plain), stored: Measured::of(&object.0) });
    assert_eq!((meter.plain(), meter.stored()), (sealed.plain.bytes, sealed.stored.bytes));
    Ok(plain)
}

fn corruption(result: Result<Vec<u8>, PipelineError>) -> Corruption {
    match result {
        Err(error @ PipelineError::Corrupt(_)) => {
            assert_eq!(error.exit(), Exit::VerifyFailed);
            let PipelineError::Corrupt(corruption) = error else { unreachable!() };
            corruption
        }
        other => panic!("corruption was not found: {other:?}"),
    }
}

/// Text that compresses a little, different everywhere.
fn text(lines: usize) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("{line}\t{}\trow\n", Digest::of(&line.to_le_bytes())).into_bytes()).collect()
}

/// Fails the test if `work` hangs.
fn within_a_minute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("it ended, without a panic")
}

proptest! {
    #[test]
    fn every_stream_comes_back(
        plain in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..5000),
        frame_bytes in 1..2000_u32,
        count in 1..5_usize,
        codec in prop::sample::select(codecs().to_vec()),
    ) {
        let (object, sealed) = packed(&plain, with(codec, count, frame_bytes));
        prop_assert_eq!(unpacked(&object, Some(&sealed)).expect("unpacked"), plain);
        let table = SeekTable::read(&InMemory(object)).expect("a table");
        prop_assert_eq!(table.plain_bytes(), sealed.plain.bytes);
    }

    #[test]
    fn no_object_makes_a_panic(object in prop::collection::vec(any::<u8>(), 0..300)) {
        corruption(unpacked(&object, None));
    }
}

#[test]
fn threads_do_not_change_the_object() {
    let plain = text(5000);
    let (one, _) = packed(&plain, compression(1, 1000));
    let (four, _) = packed(&plain, compression(4, 1000));
    assert_eq!(one, four);
}

#[test]
fn stock_tools_read_the_object_whole() {
    for (codec, tool) in codecs().into_iter().zip(["zstd", "gzip"]) {
        // Of no bytes, of one frame, of many, and of more than one member of gzip's table has room for.
        for (plain, frame_bytes) in [(Vec::new(), 9), (b"x".to_vec(), 9), (text(20_000), 64 << 10), (text(200), 2)] {
            let (object, _) = packed(&plain, with(codec, 2, frame_bytes));
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join(format!("object{}", codec.ending()));
            std::fs::write(&path, object).expect("written");
            let stock = Command::new(tool).arg("-dc").arg(&path).output().expect("it is installed");
            assert!(stock.status.success(), "{}", String::from_utf8_lossy(&stock.stderr));
            assert_eq!(Digest::of(&stock.stdout), Digest::of(&plain));
            let stock = Command::new(tool).arg("-t").arg(&path).output().expect("it is installed");
            assert!(stock.status.success(), "{}", String::from_utf8_lossy(&stock.stderr));
        }
    }
}

#[test]
fn stock_tar_reads_a_tar_that_is_not_packed() {
    let mut tar = tar::Builder::new(Vec::new());
    let content = text(2000);
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "data/file", &content[..]).expect("memory");
    let tar = tar.into_inner().expect("a tar");
    let (object, _) = packed(&tar, with(Codec::Plain, 2, 1000));
    assert!(object.starts_with(&tar));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("volume.tar");
    std::fs::write(&path, object).expect("written");
    let stock = Command::new("tar").arg("-xOf").arg(&path).output().expect("it is installed");
    assert!(stock.status.success() && stock.stderr.is_empty(), "{}", String::from_utf8_lossy(&stock.stderr));
    assert_eq!(Digest::of(&stock.stdout), Digest::of(&content));
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    codecs().into_iter().for_each(every_flipped_bit_is_found);
}

fn every_flipped_bit_is_found(codec: Codec) {
    let plain = text(12);
    let (object, sealed) = packed(&plain, with(codec, 2, 300));
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut bad = object.clone();
            bad[at] ^= 1 << bit;
            corruption(unpacked(&bad, Some(&sealed)));
            // Without the manifest, a change either is found or changes nothing that comes out.
            if let Ok(same) = unpacked(&bad, None) {
                assert_eq!(same, plain, "bit {bit} at {at}");
            }
        }
    }
}

#[test]
fn a_truncated_object_is_found_wherever_it_ends() {
    codecs().into_iter().for_each(every_truncation_is_found);
}

fn every_truncation_is_found(codec: Codec) {
    let (object, sealed) = packed(&text(12), with(codec, 2, 300));
    for end in 0..object.len() {
        let found = corruption(unpacked(&object[..end], Some(&sealed)));
        let sizes = (sealed.stored.bytes, end as u64);
        assert_eq!(found, Corruption::StoredSize { expected: sizes.0, found: sizes.1 });
        assert!(found.to_string().ends_with("it was cut short"), "{found}");
        corruption(unpacked(&object[..end], None));
    }
    let mut longer = object.clone();
    longer.push(0);
    assert!(corruption(unpacked(&longer, Some(&sealed))).to_string().ends_with("it has grown"));
    corruption(unpacked(&longer, None));
    longer.extend_from_slice(&object);
    corruption(unpacked(&longer, None));
}

#[test]
fn two_swapped_frames_are_found() {
    let plain: Vec<u8> = (0..4_u8).flat_map(|frame| vec![frame; 1000]).collect();
    let (object, sealed) = packed(&plain, compression(1, 1000));
    let table = SeekTable::read(&InMemory(object.clone())).expect("a table");
    let frames: Vec<_> = table.frames().collect();
    let length = frames[1].entry.stored_bytes as usize;
    assert_eq!(length, frames[2].entry.stored_bytes as usize, "frames of one size, or the test shows nothing");

    // The frames alone: each is a good frame, in the wrong place.
    let mut bad = object.clone();
    let (first, second) = (usize::try_from(frames[1].offset), usize::try_from(frames[2].offset));
    let (first, second) = (first.expect("small"), second.expect("small"));
    bad[first..first + length].copy_from_slice(&object[second..second + length]);
    bad[second..second + length].copy_from_slice(&object[first..first + length]);
    let place = Corruption::Frame { frame: 1, offset: frames[1].offset, fault: FrameFault::OtherFrame };
    assert_eq!(corruption(unpacked(&bad, None)), place);

    // With their entries: a good object, but not the one that was written.
    let entries_at = object.len() - table.encode().len() + 8;
    let (first, second) = (entries_at + 12, entries_at + 24);
    bad[first..first + 12].copy_from_slice(&object[second..second + 12]);
    bad[second..second + 12].copy_from_slice(&object[first..first + 12]);
    assert!(unpacked(&bad, None).is_ok());
    assert!(matches!(corruption(unpacked(&bad, Some(&sealed))), Corruption::StoredDigest { .. }));
}

#[test]
fn wrong_expectations_are_told_apart() {
    let (object, sealed) = packed(b"plain bytes", compression(1, 1000));
    let other = Digest::of(b"other");
    let mut plain_size = sealed;
    plain_size.plain.bytes += 1;
    let mut plain_digest = sealed;
    plain_digest.plain.blake3 = other;
    let mut stored_digest = sealed;
    stored_digest.stored.blake3 = other;
    assert!(matches!(corruption(unpacked(&object, Some(&plain_size))), Corruption::PlainSize { .. }));
    assert!(matches!(corruption(unpacked(&object, Some(&plain_digest))), Corruption::PlainDigest { .. }));
    assert!(matches!(corruption(unpacked(&object, Some(&stored_digest))), Corruption::StoredDigest { .. }));
}

/// An object of frames made by hand, with a table that fits them but for what `lie` does.
fn forged(format: Format, frames: &[Vec<u8>], lie: impl Fn(usize, &mut Entry)) -> Vec<u8> {
    let mut table = SeekTable::new(format);
    for (index, frame) in frames.iter().enumerate() {
        let mut entry = format.entry(frame, 100).expect("a frame");
        lie(index, &mut entry);
        table.push(entry).expect("room");
    }
    let mut object = frames.concat();
    object.extend_from_slice(&table.encode());
    object
}

fn frame(plain: &[u8], checksum: bool) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(1).expect("zstd");
    compressor.include_checksum(checksum).expect("zstd");
    compressor.compress(plain).expect("zstd")
}

/// What is found to be wrong with the first bad frame of an object.
fn fault(object: &[u8]) -> FrameFault {
    match corruption(unpacked(object, None)) {
        Corruption::Frame { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn frames_that_lie_are_found() {
    let forged = |frames: &[Vec<u8>], lie: &dyn Fn(usize, &mut Entry)| forged(Format::Zstd, frames, lie);
    let good = frame(&[7; 100], true);
    assert!(unpacked(&forged(std::slice::from_ref(&good), &|_, _| {}), None).is_ok());

    let smaller = forged(std::slice::from_ref(&good), &|_, entry| entry.plain_bytes = 99);
    assert_eq!(fault(&smaller), FrameFault::ContentSize { header: 100, table: 99 });
    let without_checksum = forged(&[frame(&[7; 100], false)], &|_, _| {});
    assert_eq!(fault(&without_checksum), FrameFault::Header);
    let two_as_one = forged(&[[good.clone(), good.clone()].concat()], &|_, _| {});
    assert_eq!(fault(&two_as_one), FrameFault::Length);
    let borders_moved = forged(&[good.clone(), good.clone()], &|index, entry| {
        entry.stored_bytes = if index == 0 { entry.stored_bytes - 1 } else { entry.stored_bytes + 1 };
    });
    assert_eq!(fault(&borders_moved), FrameFault::Length);
    let no_zstd = forged(&[vec![0x55; 40]], &|_, _| {});
    assert_eq!(fault(&no_zstd), FrameFault::Header);
    let mut other_content = good;
    other_content[9] ^= 1;
    assert!(matches!(fault(&forged(&[other_content], &|_, _| {})), FrameFault::Undecodable(_)));
}

#[test]
fn gzip_members_that_lie_are_found() {
    let forged = |frames: &[Vec<u8>], lie: &dyn Fn(usize, &mut Entry)| forged(Format::Gzip, frames, lie);
    let [_, gzip, _] = codecs();
    let plain = text(2)[..100].to_vec();
    let mut good = packed(&plain, with(gzip, 1, 1000)).0;
    good.truncate(good.len() - SeekTable::read(&InMemory(good.clone())).expect("a table").encode().len());
    assert_eq!(unpacked(&forged(std::slice::from_ref(&good), &|_, _| {}), None).expect("unpacked"), plain);

    let smaller = forged(std::slice::from_ref(&good), &|_, entry| entry.plain_bytes = 99);
    assert_eq!(fault(&smaller), FrameFault::ContentSize { header: 100, table: 99 });
    let two_as_one = forged(&[[good.clone(), good.clone()].concat()], &|_, _| {});
    assert_eq!(fault(&two_as_one), FrameFault::Length);
    let mut other_name = good.clone();
    other_name[3] = 8;
    assert_eq!(fault(&forged(&[other_name], &|_, _| {})), FrameFault::Header);
    let other_checksum = forged(std::slice::from_ref(&good), &|_, entry| entry.checksum ^= 1);
    assert_eq!(fault(&other_checksum), FrameFault::OtherFrame);
    // What it says of itself is what the table says, and not true.
    for (at, by) in [(20, 1), (good.len() - 8, 1), (good.len() - 4, 1)] {
        let mut lying = good.clone();
        lying[at] ^= by;
        let found = fault(&forged(&[lying], &|_, entry| {
            if at == good.len() - 4 {
                entry.plain_bytes ^= 1;
            }
        }));
        assert!(matches!(found, FrameFault::Undecodable(_) | FrameFault::ContentSize { .. }), "{at}: {found}");
    }
    // More than it promises goes nowhere.
    let mut more = good;
    let at = more.len() - 4;
    more[at] = 50;
    let found = fault(&forged(&[more], &|_, entry| entry.plain_bytes = 50));
    assert!(matches!(found, FrameFault::Undecodable(_)), "{found}");
}

/// A source that gives `lines` and then does what `then` says.
fn source_then(lines: usize, then: impl FnMut() -> io::Result<usize> + Send) -> impl Read + Send {
    struct Then<F>(F);
    impl<F: FnMut() -> io::Result<usize>> Read for Then<F> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            (self.0)()
        }
    }
    Cursor::new(text(lines)).chain(Then(then))
}

/// A sink that takes `room` bytes and then fails.
struct Narrow {
    room: usize,
    failure: io::ErrorKind,
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(self.room) {
            0 => Err(self.failure.into()),
            taken => {
                self.room -= taken;
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failing_source_ends_everything() {
    for lines in [0, 1, 3000] {
        let error = within_a_minute(move || {
            let mut source = source_then(lines, || Err(io::ErrorKind::ConnectionReset.into()));
            compress(&mut source, &mut io::sink(), compression(3, 1000), None, &Meter::new(), &CancellationToken::new())
        });
        let Err(PipelineError::Source { source }) = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_full_disk_ends_everything() {
    for room in [0, 1, 5000] {
        let error = within_a_minute(move || {
            let mut source = source_then(100, || Ok(1)); // never ends
            let mut sink = Narrow { room, failure: io::ErrorKind::StorageFull };
            compress(&mut source, &mut sink, compression(3, 1000), None, &Meter::new(), &CancellationToken::new())
        });
        let Err(PipelineError::Sink { source, .. }) = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let error = compress(&mut &b"x"[..], &mut full, compression(1, 9), None, &Meter::new(), &CancellationToken::new());
    let Err(PipelineError::Sink { source, written: 0 }) = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_is_noticed_while_the_producer_is_silent() {
    let error = within_a_minute(|| {
        let (reader, mut silent) = io::pipe().expect("a pipe");
        silent.write_all(&text(100)).expect("written");
        let mut sink = Narrow { room: 0, failure: io::ErrorKind::StorageFull };
        let mut source = PipeSource::new(reader);
        let result =
            compress(&mut source, &mut sink, compression(1, 1000), None, &Meter::new(), &CancellationToken::new());
        drop(silent); // only now: until here the pipe was open, and nobody wrote
        result
    });
    assert!(matches!(error, Err(PipelineError::Sink { .. })), "{error:?}");
}

#[test]
fn a_cancelled_run_ends_while_the_producer_is_silent() {
    let error = within_a_minute(|| {
        let (reader, silent) = io::pipe().expect("a pipe");
        let stop = CancellationToken::new();
        let cancel = stop.clone();
        let result = thread::scope(|scope| {
            scope.spawn(move || cancel.cancel());
            compress(&mut PipeSource::new(reader), &mut io::sink(), compression(2, 1000), None, &Meter::new(), &stop)
        });
        drop(silent);
        result
    });
    assert!(matches!(error, Err(PipelineError::Cancelled)), "{error:?}");
}

#[test]
fn the_end_of_a_producer_killed_by_cancelling_is_no_success() {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let mut source = source_then(10, move || {
        cancel.cancel();
        Ok(0)
    });
    let error = compress(&mut source, &mut io::sink(), compression(1, 1 << 20), None, &Meter::new(), &stop);
    assert!(matches!(error, Err(PipelineError::Cancelled)), "{error:?}");
}

#[test]
fn a_panicking_source_panics_and_does_not_hang() {
    let (sender, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        let _dropped_at_the_end = sender;
        let mut source = source_then(100, || panic!("the source panics"));
        compress(&mut source, &mut io::sink(), compression(2, 1000), None, &Meter::new(), &CancellationToken::new())
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_sink_that_closes_early_is_not_corruption() {
    let (object, sealed) = packed(&text(50_000), compression(2, 100 << 10));
    let error = within_a_minute(move || {
        let mut head = Command::new("head");
        head.arg("-c1").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = head.spawn().expect("head");
        let mut stdin = child.stdin.take().expect("its input");
        let meter = Meter::new();
        let stop = CancellationToken::new();
        let error = decompress(&InMemory(object), Some(&sealed), None, &mut stdin, threads(2), &meter, &stop);
        drop(stdin);
        assert!(child.wait().expect("head ends").success());
        error
    });
    assert!(matches!(error, Err(PipelineError::SinkClosed { .. })), "{error:?}");
}

#[test]
fn unpacking_ends_when_cancelled_or_when_the_disk_is_full() {
    let (object, sealed) = packed(&text(5000), compression(2, 1000));
    within_a_minute(move || {
        let object = InMemory(object);
        let stop = CancellationToken::new();
        let mut sink = Narrow { room: 5000, failure: io::ErrorKind::StorageFull };
        let error = decompress(&object, Some(&sealed), None, &mut sink, threads(2), &Meter::new(), &stop);
        assert!(matches!(error, Err(PipelineError::Sink { written: 5000, .. })), "{error:?}");
        stop.cancel();
        let error = decompress(&object, Some(&sealed), None, &mut io::sink(), threads(2), &Meter::new(), &stop);
        assert!(matches!(error, Err(PipelineError::Cancelled)), "{error:?}");
    });
}

#[test]
fn an_unreadable_object_is_not_called_corrupt() {
    #[derive(Debug)]
    struct Broken;
    impl ReadAt for Broken {
        fn size(&self) -> u64 {
            1000
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let error = decompress(&Broken, None, None, &mut io::sink(), threads(1), &Meter::new(), &CancellationToken::new());
    assert!(matches!(error, Err(PipelineError::Object { .. })), "{error:?}");
}
