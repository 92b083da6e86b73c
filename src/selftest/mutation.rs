//! The ways in which a backup is spoiled. Pure.

use std::fmt;

use super::volume::Change;
use crate::backup_set::{Content, CopyMode, Manifest, Object};
use crate::drill;

/// A way to spoil a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mutation {
    /// A bit of an object is another one.
    Flip(String),
    /// An object ends in its middle.
    Cut(String),
    /// An object is gone.
    Lose(String),
    /// One character of a row.
    ChangeRow,
    /// A row less.
    DropRow,
    /// An index less.
    DropIndex,
    /// A privilege less.
    DropGrant,
    /// Two databases are each other's.
    SwapDatabases,
    /// A database less.
    ForgetDatabase,
    /// A role less.
    ForgetRole,
    /// A role that may log in may not any more, or the other way round.
    ChangeRole,
    /// The facts are of an earlier night.
    StaleFacts,
    /// A sequence has gone on since.
    StaleSequence,
    /// A database that the facts say nothing of.
    ForgetFacts,
    /// Something in the tar of the volumes.
    Tar(Change),
}

impl Mutation {
    /// All that can be done to the set of `manifest`, whose objects lie under these names.
    pub(super) fn all(manifest: &Manifest) -> Vec<Self> {
        let mut objects: Vec<String> = vec!["COMMIT".to_owned(), manifest.naming().document("manifest.json")];
        // They stand there as they were finished.
        let mut by_name: Vec<&Object> = manifest.objects.iter().collect();
        by_name.sort_by(|a, b| a.name.cmp(&b.name));
        let mut seen = Vec::new();
        for object in by_name {
            let kind = std::mem::discriminant(&object.content);
            if !seen.contains(&kind) {
                seen.push(kind);
                objects.push(object.name.clone());
            }
        }
        let mut all: Vec<Self> = Vec::new();
        for spoil in [Self::Flip, Self::Cut, Self::Lose] {
            all.extend(objects.iter().cloned().map(spoil));
        }
        if manifest.objects.iter().any(|object| object.content == Content::Facts) {
            all.extend([
                Self::ChangeRow,
                Self::DropRow,
                Self::DropIndex,
                Self::DropGrant,
                Self::SwapDatabases,
                Self::ForgetDatabase,
                Self::ForgetRole,
                Self::ChangeRole,
                Self::StaleFacts,
                Self::StaleSequence,
                Self::ForgetFacts,
            ]);
        }
        if let Some((_, copy)) = manifest.volume() {
            all.extend([Change::Row, Change::LoseTable, Change::LoseWal, Change::LoseLabel].map(Self::Tar));
            // What these change, nothing else would show.
            if manifest.server.data_checksums {
                all.push(Self::Tar(Change::Page));
            }
            if drill::looks_at_structure(manifest.server.major) {
                all.push(Self::Tar(Change::IndexEntry));
            }
            all.retain(|mutation| copy.mode == CopyMode::Hot || !mutation.is_of_replay());
        }
        all
    }

    /// What the digests tell. Other mutations come with digests that are right: only a restore shows them.
    pub(super) fn shows_in_the_digests(&self) -> bool {
        matches!(self, Self::Flip(_) | Self::Cut(_) | Self::Lose(_))
    }

    /// What a copy has only if the server must replay WAL on it.
    fn is_of_replay(&self) -> bool {
        matches!(self, Self::Tar(Change::LoseWal | Change::LoseLabel))
    }

    /// What it is called on the command line: the same for whichever object.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Flip(_) => "flip",
            Self::Cut(_) => "cut",
            Self::Lose(_) => "lose",
            Self::ChangeRow => "change-row",
            Self::DropRow => "drop-row",
            Self::DropIndex => "drop-index",
            Self::DropGrant => "drop-grant",
            Self::SwapDatabases => "swap-databases",
            Self::ForgetDatabase => "forget-database",
            Self::ForgetRole => "forget-role",
            Self::ChangeRole => "change-role",
            Self::StaleFacts => "stale-facts",
            Self::StaleSequence => "stale-sequence",
            Self::ForgetFacts => "forget-facts",
            Self::Tar(Change::Row) => "change-file",
            Self::Tar(Change::Page) => "change-page",
            Self::Tar(Change::IndexEntry) => "lose-entry",
            Self::Tar(Change::LoseTable) => "lose-table",
            Self::Tar(Change::LoseWal) => "lose-wal",
            Self::Tar(Change::LoseLabel) => "lose-label",
        }
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flip(object) | Self::Cut(object) | Self::Lose(object) => write!(out, "{} {object}", self.word()),
            other => out.write_str(other.word()),
        }
    }
}

/// `globals` without the last role that is not `bootstrap`. None where there is no other.
pub(super) fn without_role(globals: &str, bootstrap: &str) -> Option<String> {
    let role = last_role(globals, bootstrap)?;
    let names = |line: &str| line.split([' ', ';']).any(|word| word == role);
    Some(globals.lines().filter(|line| !names(line)).flat_map(|line| [line, "\n"]).collect())
}

/// `globals` with a role whose right to log in is turned round.
pub(super) fn with_changed_role(globals: &str, bootstrap: &str) -> Option<String> {
    let alter = format!("ALTER ROLE {} WITH ", last_role(globals, bootstrap)?);
    let turned = |line: &str| {
        let words: Vec<&str> = line
            .split(' ')
            .map(|word| match word {
                "LOGIN" => "NOLOGIN",
                "NOLOGIN" => "LOGIN",
                other => other,
            })
            .collect();
        words.join(" ")
    };
    let one = |line: &str| if line.starts_with(&alter) { turned(line) } else { line.to_owned() };
    let changed: String = globals.lines().map(|line| one(line) + "\n").collect();
    (changed != globals).then_some(changed)
}

fn last_role<'g>(globals: &'g str, bootstrap: &str) -> Option<&'g str> {
    let mut created = globals.lines().filter_map(|line| line.strip_prefix("CREATE ROLE ")?.strip_suffix(';'));
    let plain = |role: &&str| *role != bootstrap && !role.contains([' ', '"']);
    created.rfind(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &str = "SET client_encoding = 'UTF8';\nCREATE ROLE keeper;\nALTER ROLE keeper WITH NOSUPERUSER LOGIN PASSWORD 'x';\n\
                           CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER LOGIN;\nGRANT pg_monitor TO keeper;\n";

    #[test]
    fn a_role_is_taken_out_or_changed() {
        let without = without_role(GLOBALS, "postgres").expect("a role");
        let left = "SET client_encoding = 'UTF8';\nCREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER LOGIN;\n";
        assert_eq!(without, left);
        let changed = with_changed_role(GLOBALS, "postgres").expect("a role");
        assert_eq!(changed, GLOBALS.replace("NOSUPERUSER LOGIN", "NOSUPERUSER NOLOGIN"));
        assert_eq!(without_role(left, "postgres"), None);
        assert_eq!(with_changed_role(left, "postgres"), None);
    }

    #[test]
    fn every_kind_of_object_is_flipped_cut_and_lost() {
        let manifest = crate::backup_set::example_manifest();
        let all = Mutation::all(&manifest);
        for word in ["flip", "cut", "lose"] {
            let count = all.iter().filter(|mutation| mutation.word() == word).count();
            assert_eq!(count, 2 + 2, "COMMIT, the manifest, globals and a database: {all:?}");
        }
        let names: std::collections::BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), all.len());
    }
}
