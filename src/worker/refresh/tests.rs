use std::num::NonZeroUsize;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backup_set::block_index::{Part, SMALLEST_BLOCK, block_digest};

const PAGE: usize = SMALLEST_BLOCK as usize;
/// Where the content begins in its object.
const BEGINS: u64 = 700;

/// A file as the index has it.
fn known(content: &[u8]) -> Line {
    Line {
        parts: vec![Part { source: 2, offset: BEGINS, bytes: content.len() as u64 }],
        path: Some("data/17/base/5/16384".to_owned()),
        blocks: content.chunks(PAGE).map(block_digest).collect(),
        ..Line::default()
    }
}

fn compared(files: &[(PathBuf, Line)]) -> (Vec<Piece<'_>>, u64) {
    let threads = NonZeroUsize::new(2).expect("two");
    pieces(files, SMALLEST_BLOCK, threads, &Messages::new(CancellationToken::new())).expect("compared")
}

/// Content, and what lies on disk in its place: with some bytes changed, and of another length.
fn differing() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let content = (0..6 * PAGE, any::<u8>()).prop_map(|(bytes, seed)| {
        (0..bytes).map(|at| u8::try_from(at / 3 % 251).expect("small") ^ seed).collect::<Vec<u8>>()
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (content, prop::option::weighted(0.9, (changes, 0..8 * PAGE, any::<bool>()))).prop_map(|(content, there)| {
        let there = there.map(|(changes, length, resized)| {
            let mut there = content.clone();
            for (at, byte) in changes.into_iter().filter(|_| !content.is_empty()) {
                there[at.index(content.len())] = byte;
            }
            if resized {
                there.resize(length, 7);
            }
            there
        });
        (content, there)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_differs_is_written_and_nothing_else((content, there) in differing()) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("16384");
        if let Some(there) = &there {
            fs::write(&path, there).expect("written");
        }
        let files = [(path.clone(), known(&content))];
        let (pieces, kept) = compared(&files);

        let same = |block: usize, some: &[u8]| {
            let at = block * PAGE;
            there.as_ref().and_then(|there| there.get(at..at + some.len())).is_some_and(|there| there == some)
        };
        let equal: usize =
            content.chunks(PAGE).enumerate().filter(|(block, some)| same(*block, some)).map(|(_, some)| some.len()).sum();
        prop_assert_eq!(kept, equal as u64);
        let bar = Bar::put(folder.path()).expect("barred");
        let mut sink = Files::new(&pieces, &bar);
        for piece in &pieces {
            let from = usize::try_from(piece.offset).expect("small");
            let to = from + usize::try_from(piece.line.bytes()).expect("small");
            let part = Part { source: 2, offset: BEGINS + piece.offset, bytes: piece.line.bytes() };
            prop_assert_eq!(&piece.line.parts, &vec![part]);
            let digests: Vec<_> = content[from..to].chunks(PAGE).map(block_digest).collect();
            prop_assert_eq!(&piece.line.blocks, &digests);
            for some in content[from..to].chunks(5000) {
                sink.write_all(some).expect("written");
            }
        }
        prop_assert!(sink.written <= content.len() as u64 - kept);
        let file = open(&path).expect("there");
        file.set_len(content.len() as u64).expect("resized");
        prop_assert!(fs::read(&path).expect("read") == content);
    }
}

#[test]
fn what_the_index_does_not_name_is_written_where_it_differs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("000000010000000000000001");
    fs::write(&path, [vec![1; 5000], vec![2; 5000]].concat()).expect("written");
    let content = [vec![1; 5000], vec![3; 6000]].concat();
    let files = [(path.clone(), Line { path: None, blocks: vec![], ..known(&content) })];
    let (pieces, kept) = compared(&files);
    assert_eq!((pieces.len(), kept), (1, 0));
    let bar = Bar::put(folder.path()).expect("barred");
    let mut sink = Files::new(&pieces, &bar);
    content.chunks(5000).for_each(|some| sink.write_all(some).expect("written"));
    assert_eq!(sink.written, 6000);
    assert!(sink.write_all(&[0]).is_err(), "more than all pieces");
    assert_eq!(fs::read(&path).expect("read"), content);
}

#[test]
fn what_shall_not_be_there_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["keep", "gone", "keep/inner", "gone/inner", "now-a-file", "lost+found"] {
        fs::create_dir(at(name)).expect("made");
    }
    for name in ["keep/file", "keep/stale", "gone/file", "now-a-folder", "twice"] {
        fs::write(at(name), "content").expect("written");
    }
    fs::hard_link(at("twice"), at("keep/twice")).expect("linked");
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("safe"), "content").expect("written");
    std::os::unix::fs::symlink(outside.path(), at("keep/link")).expect("linked");
    std::os::unix::fs::symlink(outside.path(), at("led-away")).expect("linked");

    let (folders, files) = (["keep", "keep/inner", "now-a-folder", "led-away"], ["keep/file", "now-a-file", "twice"]);
    let kinds: Vec<(PathBuf, Kind)> = folders
        .map(|name| (at(name), Kind::Folder))
        .into_iter()
        .chain(files.map(|name| (at(name), Kind::File)))
        .collect();
    let kinds = kinds.iter().map(|(path, kind)| (path.as_path(), kind)).collect();
    let lost_and_found = at("lost+found");
    clear(folder.path(), &kinds, &|path| path == lost_and_found).expect("cleared");

    let mut left: Vec<String> = Vec::new();
    for below in ["", "keep"] {
        for entry in fs::read_dir(at(below)).expect("a folder") {
            left.push(
                entry.expect("an entry").path().strip_prefix(folder.path()).expect("below").display().to_string(),
            );
        }
    }
    left.sort();
    assert_eq!(left, ["keep", "keep/file", "keep/inner", "lost+found"]);
    assert!(outside.path().join("safe").exists());
}

#[test]
fn a_bar_gives_way_to_the_label_of_the_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let label = folder.path().join("backup_label");
    let bar = Bar::put(folder.path()).expect("barred");
    assert!(fs::read_to_string(&label).expect("read").contains("No server starts"));
    fs::write(bar.place_of(&label), "START WAL LOCATION").expect("written");
    assert_eq!(bar.place_of(&folder.path().join("PG_VERSION")), folder.path().join("PG_VERSION"));
    bar.lift().expect("lifted");
    assert_eq!(fs::read_to_string(&label).expect("read"), "START WAL LOCATION");
    // A copy of a server that was shut down has none.
    Bar::put(folder.path()).expect("barred").lift().expect("lifted");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
