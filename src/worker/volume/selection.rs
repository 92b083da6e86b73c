//! What of the volumes is copied. Pure.
//!
//! In the data directory and the tablespaces: what the PostgreSQL manual leaves out (Making a Base Backup Using the Low Level
//! API, Backing Up the Data Directory), which is what `pg_basebackup` leaves out. Beside them: what only has a meaning for the
//! containers that run now.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::backup_set::{CopyMode, Moved};

/// What becomes of something in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// It is copied, a folder with all that is chosen of it.
    Take,
    /// The folder is copied, what is in it is not.
    Empty,
    /// It is copied when everything else is.
    Last,
    /// It is not copied.
    Leave,
}

/// Folders of the data directory whose content is worthless, or harmful, in a copy.
const EMPTY: [&str; 8] = [
    "pg_wal", // what the copy needs of it is added afterwards
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Files of the data directory that belong to the running server, or to another backup.
const LEAVE: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
];

/// Where the server's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    /// The data directory.
    pub(super) pgdata: PathBuf,
    /// How it is copied.
    pub(super) mode: CopyMode,
    /// Tablespaces outside of it: name of the link in `pg_tblspc`, and the folder it leads to.
    pub(super) tablespaces: Vec<(String, PathBuf)>,
    /// Folders that the server sees elsewhere.
    pub(super) moved: Vec<Moved>,
}

impl Selection {
    /// What becomes of `path`, whose parent is taken.
    pub(super) fn choose(&self, path: &Path) -> Choice {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        if let Ok(inside) = path.strip_prefix(&self.pgdata) {
            let inside = inside.to_str().unwrap_or_default();
            if EMPTY.contains(&inside) {
                return Choice::Empty;
            }
            if LEAVE.contains(&inside) {
                return Choice::Leave;
            }
            if inside == "global/pg_control" {
                return Choice::Last;
            }
        }
        if self.in_server(path).is_some() {
            let worthless = name.starts_with(b"pgsql_tmp") || name.starts_with(b"pg_internal.init");
            return if worthless { Choice::Leave } else { Choice::Take };
        }
        match path.to_str().unwrap_or_default() {
            // Sockets and the lock of the running container.
            "/data/run" => Choice::Empty,
            // An initialisation that was cut.
            path if path.starts_with("/data/.init-") => Choice::Leave,
            _ => Choice::Take,
        }
    }

    /// Where the link at `path` is to lead to in the copy: a tablespace's to where the copy has its folder.
    pub(super) fn target(&self, path: &Path, target: PathBuf) -> PathBuf {
        if path.parent() == Some(&self.pgdata.join("pg_tblspc")) { relocate(&self.moved, target) } else { target }
    }

    /// The name of `path` for the server: relative to the data directory, a tablespace by way of its link. None for what is not
    /// the server's.
    pub(super) fn in_server(&self, path: &Path) -> Option<PathBuf> {
        if let Ok(inside) = path.strip_prefix(&self.pgdata) {
            return Some(inside.to_owned());
        }
        self.tablespaces.iter().find_map(|(link, folder)| {
            let inside = path.strip_prefix(folder).ok()?;
            Some(Path::new("pg_tblspc").join(link).join(inside))
        })
    }

    /// Which of the names in a database's folder are unlogged relations whose rows are not copied: all of them while the server
    /// runs, none of one that was shut down in order.
    pub(super) fn unlogged<'a>(&self, names: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
        match self.mode {
            CopyMode::Hot => unlogged(names),
            CopyMode::Cold => HashSet::new(),
        }
    }

    /// True for a folder with relations, of one database or of all.
    pub(super) fn holds_pages(&self, folder: &Path) -> bool {
        self.holds_relations(folder) || folder == self.pgdata.join("global")
    }

    /// True for a folder with the relations of one database.
    pub(super) fn holds_relations(&self, folder: &Path) -> bool {
        let Some(inside) = self.in_server(folder) else { return false };
        let parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap_or_default()).collect();
        match parts[..] {
            ["base", database] => is_number(database),
            ["pg_tblspc", _, version, database] => version.starts_with("PG_") && is_number(database),
            _ => false,
        }
    }
}

/// Where the copy has a folder that the server has at `path`.
pub(super) fn relocate(moved: &[Moved], path: PathBuf) -> PathBuf {
    let place = path.to_str().and_then(|path| Moved::place(moved, path));
    place.map_or(path, PathBuf::from)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The file number, fork and segment of a relation's file: `16384`, `16384.1`, `16384_fsm`, `16384_vm.1`.
pub(super) fn relation_file(name: &str) -> Option<(&str, Option<&str>)> {
    let (name, segment) = name.split_once('.').map_or((name, None), |(name, segment)| (name, Some(segment)));
    if segment.is_some_and(|segment| !is_number(segment)) {
        return None;
    }
    let (number, fork) = name.split_once('_').map_or((name, None), |(number, fork)| (number, Some(fork)));
    let known = fork.is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init"));
    (is_number(number) && known).then_some((number, fork))
}

/// Which of a relation's segments of 1 GiB a file is.
pub(super) fn segment_of(name: &str) -> u32 {
    name.split_once('.').and_then(|(_, segment)| segment.parse().ok()).unwrap_or(0)
}

/// The file numbers of unlogged relations among the names of a database's folder: those with an init fork.
fn unlogged<'a>(names: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
    names.filter_map(relation_file).filter(|(_, fork)| *fork == Some("init")).map(|(number, _)| number).collect()
}

/// True where a name in a database's folder is not copied: temporary relations, which end with their sessions; and all of an
/// unlogged relation but its init fork, from which a server that starts from the copy makes it anew, empty.
pub(super) fn is_left_out(name: &str, unlogged: &HashSet<&str>) -> bool {
    if let Some(temporary) = name.strip_prefix('t')
        && let Some((session, file)) = temporary.split_once('_')
    {
        return is_number(session) && relation_file(file).is_some();
    }
    relation_file(name).is_some_and(|(number, fork)| fork != Some("init") && unlogged.contains(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selection() -> Selection {
        Selection {
            mode: CopyMode::Hot,
            pgdata: "/data/17".into(),
            tablespaces: vec![("16400".to_owned(), "/data/table spaces/fast".into())],
            moved: vec![],
        }
    }

    fn choose(path: &str) -> Choice {
        selection().choose(Path::new(path))
    }

    #[test]
    fn the_manual_is_followed() {
        for path in [
            "/data/17",
            "/data/17/base/5/16384",
            "/data/17/pg_stat/pgstat.stat",
            "/data/17/postgresql.auto.conf",
            "/data/17/global/pg_control.old",
            "/data/17/pg_logical/replorigin_checkpoint",
            "/data/16/postmaster.pid",
            "/data/table spaces/fast/PG_17_202406281/5/16400",
            "/config/backup_label",
            "/secret/adminpass",
            "/log/postgresql.log",
            "/data/run.old",
        ] {
            assert_eq!(choose(path), Choice::Take, "{path}");
        }
        for folder in ["pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"]
        {
            assert_eq!(choose(&format!("/data/17/{folder}")), Choice::Empty, "{folder}");
            assert_eq!(choose(&format!("/data/17/base/{folder}")), Choice::Take, "{folder} elsewhere");
        }
        assert_eq!(choose("/data/run"), Choice::Empty);
        assert_eq!(choose("/data/17/global/pg_control"), Choice::Last);
        for path in [
            "/data/17/postmaster.pid",
            "/data/17/postmaster.opts",
            "/data/17/backup_label",
            "/data/17/backup_manifest",
            "/data/17/base/pgsql_tmp",
            "/data/17/base/5/pg_internal.init",
            "/data/17/global/pg_internal.init.4711",
            "/data/table spaces/fast/PG_17_202406281/pgsql_tmp",
            "/data/.init-17",
        ] {
            assert_eq!(choose(path), Choice::Leave, "{path}");
        }
    }

    #[test]
    fn tablespaces_have_their_place_in_the_data_directory() {
        let inside = |path: &str| selection().in_server(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(inside("/data/17/PG_VERSION").as_deref(), Some("PG_VERSION"));
        assert_eq!(inside("/data/table spaces/fast/PG_17_1/5/7").as_deref(), Some("pg_tblspc/16400/PG_17_1/5/7"));
        assert_eq!(inside("/data/170/PG_VERSION"), None);
        let holds = |path: &str| selection().holds_relations(Path::new(path));
        assert!(holds("/data/17/base/5") && holds("/data/table spaces/fast/PG_17_1/5"));
        assert!(!holds("/data/17/base") && !holds("/data/17/global") && !holds("/data/table spaces/fast/PG_17_1"));
        assert!(!holds("/data/16/base/5"));
    }

    #[test]
    fn links_of_tablespaces_lead_to_where_the_copy_has_them() {
        let moved = |from: &str, to: &str| Moved { from: from.to_owned(), to: to.to_owned() };
        let moved = vec![moved("/srv/pg", "/data/17"), moved("/mnt/fast", "/data/tablespaces/mnt/fast")];
        let selection = Selection { moved, ..selection() };
        let target = |path: &str, target: &str| selection.target(Path::new(path), target.into()).display().to_string();
        assert_eq!(target("/data/17/pg_tblspc/16400", "/mnt/fast"), "/data/tablespaces/mnt/fast");
        assert_eq!(target("/data/17/pg_tblspc/16400", "/mnt/fast/one"), "/data/tablespaces/mnt/fast/one");
        assert_eq!(target("/data/17/pg_tblspc/16401", "/srv/pg/inside"), "/data/17/inside");
        assert_eq!(target("/data/17/pg_tblspc/16402", "/mnt/faster"), "/mnt/faster");
        assert_eq!(target("/data/17/link", "/mnt/fast"), "/mnt/fast");
    }

    #[test]
    fn unlogged_and_temporary_relations_are_left_out() {
        let names = ["16384", "16384_fsm", "16384_init", "16384.1", "163840", "16385", "16385_vm", "PG_VERSION"];
        let unlogged = unlogged(names.into_iter());
        let left: Vec<&str> = names.into_iter().filter(|name| is_left_out(name, &unlogged)).collect();
        assert_eq!(left, ["16384", "16384_fsm", "16384.1"]);
        for name in ["t3_16390", "t12_16390_fsm", "t3_16390.1"] {
            assert!(is_left_out(name, &unlogged), "{name}");
        }
        for name in ["t3", "t_16390", "test_1", "t3_x", "tablespace_map"] {
            assert!(!is_left_out(name, &unlogged), "{name}");
        }
    }

    #[test]
    fn unlogged_relations_of_a_stopped_server_are_copied() {
        let names = ["16384", "16384_init", "t3_16390"];
        let cold = Selection { mode: CopyMode::Cold, ..selection() };
        let unlogged = cold.unlogged(names.into_iter());
        let left: Vec<&str> = names.into_iter().filter(|name| is_left_out(name, &unlogged)).collect();
        assert_eq!(left, ["t3_16390"]);
    }

    proptest! {
        #[test]
        fn no_logged_relation_is_ever_left_out(numbers in proptest::collection::hash_set(1..50_u32, 1..20), some in 0..50_u32) {
            let names: Vec<String> = numbers
                .iter()
                .flat_map(|number| {
                    let init = (*number < some).then(|| format!("{number}_init"));
                    [format!("{number}"), format!("{number}_vm"), format!("{number}.2")].into_iter().chain(init)
                })
                .collect();
            let unlogged = unlogged(names.iter().map(String::as_str));
            for name in &names {
                let number: u32 = name.split(['_', '.']).next().expect("a part").parse().expect("a number");
                let init = name.ends_with("_init");
                prop_assert_eq!(is_left_out(name, &unlogged), number < some && !init, "{}", name);
            }
        }

        #[test]
        fn odd_names_are_never_left_out(name in "\\PC{0,20}") {
            let odd = !name.bytes().any(|byte| byte.is_ascii_digit());
            prop_assert!(!(odd && is_left_out(&name, &HashSet::new())));
        }
    }
}
