//! What there is in a bucket.
//!
//! A service answers with a thousand keys at a time, each page after the one before it. So what fills more than a page is listed
//! in parts, side by side: by its folders, where these are few, and by what their names begin with, where they are many. Nothing
//! is asked for but prefixes, the delimiter `/` and the continuation of a page, which every service has.

use std::time::SystemTime;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::super::{Key, Listed, StorageError};
use super::connection::{Connection, persist};
use super::failure::Failure;

/// The most keys that are asked for at once: more, no service gives.
const PAGE: i32 = 1000;

/// Requests under way at once.
const SIDE_BY_SIDE: usize = 8;

/// Into about how many parts the folders of a folder are split.
const PARTS: usize = 4 * SIDE_BY_SIDE;

/// One page of what begins with `prefix`.
#[derive(Debug, Default)]
pub(super) struct Page {
    objects: Vec<aws_sdk_s3::types::Object>,
    /// The folders, with their last `/`, where a delimiter was asked for.
    folders: Vec<String>,
    /// How to go on.
    next: Option<String>,
}

/// Whether folders are listed with all that is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    Everything,
    FoldersByName,
}

/// At most `most` of the objects whose keys begin with `prefix`.
pub(super) async fn page(connection: &Connection, prefix: &str, most: i32) -> Result<Page, Failure> {
    next_page(connection, prefix, Depth::Everything, None, most).await
}

async fn next_page(
    connection: &Connection,
    prefix: &str,
    depth: Depth,
    after: Option<String>,
    most: i32,
) -> Result<Page, Failure> {
    let delimiter = (depth == Depth::FoldersByName).then(|| "/".to_owned());
    let page = persist(connection.limits.patience, |_| {
        let request = connection.client.list_objects_v2().bucket(&connection.bucket.bucket).prefix(prefix);
        let request = request.set_delimiter(delimiter.clone()).set_continuation_token(after.clone());
        request.max_keys(most).send()
    });
    let page = page.await?;
    let folders = page.common_prefixes.unwrap_or_default().into_iter().filter_map(|folder| folder.prefix);
    Ok(Page {
        folders: folders.collect(),
        next: if page.is_truncated == Some(true) { page.next_continuation_token } else { None },
        objects: page.contents.unwrap_or_default(),
    })
}

/// The rest of what `begun` began.
async fn to_the_end(connection: &Connection, prefix: &str, depth: Depth, begun: Page) -> Result<Page, Failure> {
    let mut whole = begun;
    while let Some(after) = whole.next.take() {
        let page = next_page(connection, prefix, depth, Some(after), PAGE).await?;
        whole.objects.extend(page.objects);
        whole.folders.extend(page.folders);
        whole.next = page.next;
    }
    Ok(whole)
}

/// What is listed on its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// A folder, possibly of many pages.
    Folder(String),
    /// All that begins with it: several folders that were not worth a part each.
    Prefix(String),
}

/// Splits `folders`, which differ and end with `/`, into parts of at most `most` folders: each is in exactly one part.
fn split(folders: &[&str], most: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    // Groups with the same beginning of so many bytes.
    let mut groups = vec![(folders.to_vec(), 0)];
    while let Some((group, same)) = groups.pop() {
        match group[..] {
            [] => {}
            [folder] => parts.push(Part::Folder(folder.to_owned())),
            [first, ..] if same > 0 && group.len() <= most && first.is_char_boundary(same) => {
                parts.push(Part::Prefix(first[..same].to_owned()));
            }
            _ => {
                let mut by_next: std::collections::BTreeMap<Option<u8>, Vec<&str>> = std::collections::BTreeMap::new();
                for folder in group {
                    by_next.entry(folder.as_bytes().get(same).copied()).or_default().push(folder);
                }
                groups.extend(by_next.into_values().map(|group| (group, same + 1)));
            }
        }
    }
    parts
}

/// Lists one part, and says what is to be listed besides.
async fn list_part(
    connection: &Connection,
    part: Part,
) -> Result<(Vec<aws_sdk_s3::types::Object>, Vec<Part>), Failure> {
    let (Part::Folder(prefix) | Part::Prefix(prefix)) = &part;
    let begun = page(connection, prefix, PAGE).await?;
    if begun.next.is_none() {
        return Ok((begun.objects, vec![]));
    }
    if let Part::Prefix(prefix) = &part {
        return Ok((to_the_end(connection, prefix, Depth::Everything, begun).await?.objects, vec![]));
    }
    let mut prefix = prefix.clone();
    let mut loose = Vec::new();
    loop {
        let inside = next_page(connection, &prefix, Depth::FoldersByName, None, PAGE).await?;
        let inside = to_the_end(connection, &prefix, Depth::FoldersByName, inside).await?;
        loose.extend(inside.objects);
        if let [folder] = &inside.folders[..] {
            prefix.clone_from(folder);
            continue;
        }
        let folders: Vec<&str> = inside.folders.iter().map(String::as_str).collect();
        return Ok((loose, split(&folders, folders.len().div_ceil(PARTS))));
    }
}

/// What is inside `folder`, or everything, in the order of the keys.
pub(super) async fn list(connection: &Connection, folder: Option<&Key>) -> Result<Vec<Listed>, StorageError> {
    let prefix = folder.map_or_else(|| connection.bucket.root(), |key| format!("{}/", connection.bucket.full_key(key)));
    let mut listed = Vec::new();
    let mut parts = vec![Part::Folder(prefix)];
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < SIDE_BY_SIDE
            && let Some(part) = parts.pop()
        {
            under_way.push(list_part(connection, part));
        }
        let Some(found) = under_way.next().await else { break };
        let (objects, besides) =
            found.map_err(|failure| connection.explain(failure, "list", connection.place(folder)))?;
        listed.extend(objects.into_iter().filter_map(|object| ours(connection, object)));
        parts.extend(besides);
    }
    // Parts come as they are answered, and not every service lists in the order of bytes.
    listed.sort_unstable();
    listed.dedup();
    Ok(listed)
}

/// What pglife stored.
fn ours(connection: &Connection, object: aws_sdk_s3::types::Object) -> Option<Listed> {
    let full = object.key.unwrap_or_default();
    let Some(key) = connection.bucket.key(&full) else {
        // Consoles make objects with such names when somebody makes a folder.
        if !full.ends_with('/') {
            tracing::warn!(key = full, "a repository holds something that pglife did not write");
        }
        return None;
    };
    let bytes = object.size.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    Some(Listed { key, bytes })
}

/// When the last object inside `folder` was stored.
pub(super) async fn last_change(connection: &Connection, folder: &Key) -> Result<Option<SystemTime>, StorageError> {
    let prefix = format!("{}/", connection.bucket.full_key(folder));
    let listed = async {
        let begun = page(connection, &prefix, PAGE).await?;
        to_the_end(connection, &prefix, Depth::Everything, begun).await
    };
    let listed = listed.await;
    let found = listed.map_err(|failure| connection.explain(failure, "list", connection.place(Some(folder))))?;
    Ok(found.objects.into_iter().filter_map(|object| SystemTime::try_from(object.last_modified?).ok()).max())
}

/// The first name in the repository.
pub(super) async fn first_name(connection: &Connection) -> Result<Option<String>, StorageError> {
    let root = connection.bucket.root();
    let found = page(connection, &root, 2)
        .await
        .map_err(|failure| connection.explain(failure, "list", connection.place(None)))?;
    let mut names = found.objects.into_iter().filter_map(|object| object.key);
    Ok(names.find_map(|full| full.strip_prefix(&root).filter(|name| !name.is_empty()).map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn parts(folders: &[&str], most: usize) -> Vec<Part> {
        let mut parts = split(folders, most);
        parts.sort();
        parts
    }

    #[test]
    fn few_folders_are_listed_each_and_many_by_what_they_begin_with() {
        let folder = |name: &str| Part::Folder(name.to_owned());
        let prefix = |name: &str| Part::Prefix(name.to_owned());
        assert_eq!(parts(&[], 1), []);
        assert_eq!(parts(&["a/", "ab/"], 1), [folder("a/"), folder("ab/")]);
        let nights = ["s/20251230/", "s/20251231/", "s/20260101/", "s/20260102/", "s/20270101/"];
        assert_eq!(parts(&nights, 2), [folder("s/20270101/"), prefix("s/2025"), prefix("s/2026")]);
        assert_eq!(parts(&nights, 9), [prefix("s")]);
    }

    proptest! {
        #[test]
        fn every_folder_is_in_exactly_one_part(
            names in prop::collection::btree_set("[abü0-9]{1,6}", 0..60),
            most in 1usize..20,
        ) {
            let names: BTreeSet<String> = names.into_iter().map(|name| format!("p/{name}/")).collect();
            let folders: Vec<&str> = names.iter().map(String::as_str).collect();
            let parts = split(&folders, most);
            for folder in &folders {
                let covers = |part: &&Part| match part {
                    Part::Folder(name) => name == folder,
                    Part::Prefix(prefix) => folder.starts_with(prefix.as_str()),
                };
                prop_assert_eq!(parts.iter().filter(covers).count(), 1, "{}: {:?}", folder, parts);
            }
            for part in &parts {
                let Part::Prefix(prefix) = part else { continue };
                let count = folders.iter().filter(|folder| folder.starts_with(prefix.as_str())).count();
                prop_assert!((2..=most).contains(&count), "{:?}", parts);
            }
        }
    }
}
