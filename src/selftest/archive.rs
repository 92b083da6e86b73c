//! Where to write into a `pg_dump` archive in custom format, uncompressed, so that it stays an archive but brings back something
//! else. Every patch keeps the length: the archive's table of contents holds places and lengths. Pure.
//!
//! The format is that of PostgreSQL's `pg_backup_custom.c`: integers are a byte for the sign and four bytes, lowest first; a block of
//! data is its type (1), the number of its entry, and chunks, each a length and its bytes, until a length of zero.

/// Bytes to write at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patch {
    /// Where, from the start of the archive.
    pub(super) at: usize,
    /// What.
    pub(super) bytes: Vec<u8>,
}

/// An integer, as the archive has it.
const INTEGER: usize = 5;
const BLOCK_OF_DATA: u8 = 1;

fn integer(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0, value @ ..] => usize::try_from(u32::from_le_bytes(value.get(..4)?.try_into().ok()?)).ok(),
        _ => None,
    }
}

/// The rows of one table, each as the places of its bytes in the archive, its end of line among them.
fn rows(head: &[u8], block: usize) -> Option<Vec<Vec<usize>>> {
    let entry = integer(head.get(block + 1..)?)?;
    if head[block] != BLOCK_OF_DATA || entry == 0 || entry > 10_000_000 {
        return None;
    }
    let (mut at, mut rows, mut row) = (block + 1 + INTEGER, vec![], vec![]);
    loop {
        let length = integer(head.get(at..)?)?;
        at += INTEGER;
        if length == 0 {
            break;
        }
        for place in at..at + length {
            row.push(place);
            match *head.get(place)? {
                // Rows are text. The table of contents, which may look like a block too, is not.
                0 => return None,
                b'\n' => rows.push(std::mem::take(&mut row)),
                _ => {}
            }
        }
        at += length;
    }
    // What COPY ends with.
    let end = rows.iter().position(|row| row.iter().map(|place| head[*place]).eq(*b"\\.\n"))?;
    rows.truncate(end);
    Some(rows)
}

/// The rows of the first table in `head`, the beginning of an archive, that has at least `most`.
fn first_table(head: &[u8], least: usize) -> Option<Vec<Vec<usize>>> {
    let starts = (0..head.len()).filter(|place| head[*place] == BLOCK_OF_DATA);
    starts.filter_map(|block| rows(head, block)).find(|rows| rows.len() >= least)
}

/// Another letter or digit for `byte`; None for anything else.
fn another(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'8' | b'a'..=b'y' | b'A'..=b'Y' => Some(byte + 1),
        b'9' => Some(b'0'),
        _ => None,
    }
}

/// Changes one character in the last column of a row: that is hardly ever a key.
pub(super) fn change_row(head: &[u8]) -> Option<Vec<Patch>> {
    let rows = first_table(head, 1)?;
    rows.iter().find_map(|row| {
        let byte = |place: usize| head[row[place]];
        let mut last_column = (0..row.len() - 1).rev().take_while(|place| byte(*place) != b'\t');
        last_column.find_map(|place| {
            // A backslash makes something else of what follows it.
            let escaped = place.checked_sub(1).is_some_and(|before| byte(before) == b'\\');
            let other = another(byte(place)).filter(|_| !escaped)?;
            Some(vec![Patch { at: row[place], bytes: vec![other] }])
        })
    })
}

/// Makes one row of the first two: their columns are text in the end, or the restore fails.
pub(super) fn drop_row(head: &[u8]) -> Option<Vec<Patch>> {
    let rows = first_table(head, 2)?;
    let end = *rows[0].last()?;
    let tabs = rows[1].iter().copied().filter(|place| head[*place] == b'\t');
    Some(std::iter::once(end).chain(tabs).map(|at| Patch { at, bytes: vec![b' '] }).collect())
}

/// Puts nothing in the place of a statement that begins with one of `beginnings`.
fn silence(head: &[u8], beginnings: &[&str], but: &str) -> Option<Vec<Patch>> {
    const NOTHING: &[u8] = b"SELECT 1";
    (0..head.len()).find_map(|at| {
        let rest = &head[at..];
        let begins = beginnings.iter().any(|beginning| rest.starts_with(beginning.as_bytes()));
        // A statement is a text of its own: its length stands before it.
        let alone = begins && at >= INTEGER && integer(&head[at - INTEGER..])? >= NOTHING.len();
        let end = rest.windows(2).position(|two| two == b";\n").filter(|_| alone)?;
        let is_other = but.is_empty() || !rest[..end].windows(but.len()).any(|words| words == but.as_bytes());
        is_other.then(|| {
            let mut bytes = NOTHING.to_vec();
            bytes.resize(end, b' ');
            vec![Patch { at, bytes }]
        })
    })
}

/// Makes an index that is not created. One that a constraint has is no statement of its own.
pub(super) fn drop_index(head: &[u8]) -> Option<Vec<Patch>> {
    silence(head, &["CREATE INDEX ", "CREATE UNIQUE INDEX "], " ON ONLY ")
}

/// Makes a privilege that is not granted.
pub(super) fn drop_grant(head: &[u8]) -> Option<Vec<Patch>> {
    silence(head, &["GRANT "], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u32) -> Vec<u8> {
        [&[0][..], &value.to_le_bytes()].concat()
    }

    fn text(value: &str) -> Vec<u8> {
        [number(u32::try_from(value.len()).expect("short")), value.as_bytes().to_vec()].concat()
    }

    /// A table of contents with an index and a grant, and a table, its rows in chunks of `chunk` bytes.
    fn archive(chunk: usize) -> Vec<u8> {
        let mut bytes = b"PGDMP\x01\x0e\0".to_vec();
        bytes.extend(text("CREATE INDEX on_parts ON ONLY public.parts USING btree (name);\n"));
        bytes.extend(text("CREATE INDEX item_name ON public.item USING btree (name);\n"));
        bytes.extend(text("GRANT SELECT ON TABLE public.item TO keeper;\n"));
        bytes.push(BLOCK_OF_DATA);
        bytes.extend(number(3421));
        for chunk in b"1\titem 1\\n\n2\titem 2\n3\t\\N\n\\.\n\n\n".chunks(chunk) {
            bytes.extend(number(u32::try_from(chunk.len()).expect("short")));
            bytes.extend(chunk);
        }
        bytes.extend(number(0));
        bytes
    }

    fn patched(archive: &[u8], patches: &[Patch]) -> Vec<u8> {
        let mut bytes = archive.to_vec();
        for patch in patches {
            bytes[patch.at..][..patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        bytes
    }

    fn content(archive: &[u8]) -> Vec<String> {
        let rows = first_table(archive, 1).expect("rows");
        let row = |row: &Vec<usize>| row.iter().map(|place| char::from(archive[*place])).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn rows_are_changed_and_dropped_whatever_the_chunks() {
        for chunk in [1, 3, 9, 4096] {
            let archive = archive(chunk);
            assert_eq!(content(&archive), ["1\titem 1\\n\n", "2\titem 2\n", "3\t\\N\n"]);
            let changed = patched(&archive, &change_row(&archive).expect("a row"));
            assert_eq!(content(&changed)[0], "1\titem 2\\n\n", "{chunk}");
            let fewer = patched(&archive, &drop_row(&archive).expect("two rows"));
            assert_eq!(content(&fewer), ["1\titem 1\\n 2 item 2\n", "3\t\\N\n"]);
        }
    }

    #[test]
    fn what_looks_like_a_block_in_the_table_of_contents_is_none() {
        let whole = archive(9);
        // One chunk, up to the end of the rows.
        let length = u32::try_from(whole.len() - INTEGER).expect("short");
        let archive = [&[BLOCK_OF_DATA][..], &number(5), &number(length), &whole].concat();
        assert_eq!(content(&archive), content(&whole));
    }

    #[test]
    fn statements_are_silenced_in_their_place() {
        let archive = archive(4096);
        let changed = patched(&archive, &drop_index(&archive).expect("an index"));
        let words = String::from_utf8_lossy(&changed).into_owned();
        assert!(words.contains("on_parts") && !words.contains("item_name") && words.contains("SELECT 1   "));
        assert_eq!(changed.len(), archive.len());
        let changed = patched(&archive, &drop_grant(&archive).expect("a grant"));
        assert!(!String::from_utf8_lossy(&changed).contains("GRANT"));
        assert_eq!(content(&changed), content(&archive));
    }

    #[test]
    fn an_archive_without_any_of_it_is_left_alone() {
        let empty = b"PGDMP\x01\x0e\0 CREATE INDEX in a text\n";
        for change in [change_row, drop_row, drop_index, drop_grant] {
            assert_eq!(change(empty), None);
            assert_eq!(change(b""), None);
        }
    }
}
