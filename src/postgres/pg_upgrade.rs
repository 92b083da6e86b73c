//! What `initdb` and `pg_upgrade` are told, and what they say. Pure.
//!
//! The new cluster must be made like the old one (PostgreSQL manual, `pg_upgrade`, step "Initialize the new cluster"): same
//! role, encoding, locale, locale provider, page checksums and size of WAL segments.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cluster::{PgMajor, RoleName};

/// What `template0` has, from which every database is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateLocale {
    /// Its encoding, such as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `libc`, `icu` or `builtin`.
    pub provider: String,
    /// The provider's own locale, where it is not `libc`.
    pub locale: Option<String>,
}

/// What the new cluster must have as the old one has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parity {
    /// The role that initdb makes.
    pub role: RoleName,
    /// Encoding and locale.
    pub locale: TemplateLocale,
    /// Whether pages have checksums.
    pub checksums: bool,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u64,
}

impl Parity {
    /// Options of `initdb` of `major`, but for checksums: how they are had, or not, differs by major.
    pub fn initdb_options(&self, major: PgMajor) -> Vec<String> {
        let TemplateLocale { encoding, collate, ctype, provider, locale } = &self.locale;
        let mut options =
            vec![format!("--encoding={encoding}"), format!("--lc-collate={collate}"), format!("--lc-ctype={ctype}")];
        if let (true, Some(locale)) = (major.is_at_least(15), locale) {
            options.push(format!("--locale-provider={provider}"));
            options.push(format!("--{provider}-locale={locale}"));
        }
        if self.wal_segment_bytes != 16 << 20 {
            options.push(format!("--wal-segsize={}", self.wal_segment_bytes >> 20));
        }
        options
    }
}

/// The settings of the servers that `pg_upgrade` starts: those of the cluster may reach outside, or not hold here.
///
/// A server with logical slots does not start without `wal_level = logical`; a restored schema takes a lock for each object.
pub fn settings(folder: &Path, preloaded: &str) -> String {
    let (folder, preloaded) = (folder.display(), preloaded.replace('\'', "''"));
    format!(
        "hba_file = '{folder}/pg_hba.conf'\nident_file = '{folder}/pg_ident.conf'\nshared_preload_libraries = '{preloaded}'\n\
         max_locks_per_transaction = 1024\nwal_level = logical\nmax_replication_slots = 200\n"
    )
}

/// What such a server is started with: it wins over `ALTER SYSTEM`, which is in the data directory.
pub fn server_options(folder: &Path, major: PgMajor) -> String {
    let mut options = format!(
        "-c config_file={}/postgresql.conf -c archive_mode=off -c ssl=off -c logging_collector=off",
        folder.display()
    );
    if major.is_at_least(11) {
        // Its compiler was not brought along.
        options.push_str(" -c jit=off");
    }
    options
}

/// Where everything is that `pg_upgrade` works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places<'a> {
    /// Programs of the old and the new major.
    pub programs: (&'a Path, &'a Path),
    /// Data directories of the old and the new cluster.
    pub data: (&'a Path, &'a Path),
    /// Its working directory, where sockets and settings are.
    pub folder: &'a Path,
}

/// The arguments of `pg_upgrade` from the first to the second major, which copies files; with `--verbose` it tells of each.
pub fn arguments(places: &Places<'_>, majors: (PgMajor, PgMajor), role: &RoleName, jobs: usize) -> Vec<String> {
    let Places { programs, data, folder } = places;
    [
        ("--old-bindir", programs.0.display().to_string()),
        ("--new-bindir", programs.1.display().to_string()),
        ("--old-datadir", data.0.display().to_string()),
        ("--new-datadir", data.1.display().to_string()),
        ("--username", role.to_string()),
        ("--jobs", jobs.to_string()),
        ("--old-options", server_options(folder, majors.0)),
        ("--new-options", server_options(folder, majors.1)),
    ]
    .map(|(option, value)| format!("{option}={value}"))
    .to_vec()
}

/// The two files of a line in which `pg_upgrade --verbose` tells of one that it copied.
pub fn copied(line: &str) -> Option<(&str, &str)> {
    line.trim().strip_prefix("copying \"")?.strip_suffix('"')?.split_once("\" to \"")
}

/// Lines that are told of a failure.
const TOLD: usize = 25;

/// Why `pg_upgrade` failed, from all that it said: without what `--verbose` adds, the end of it.
pub fn failure(said: &str) -> Vec<&str> {
    let lines: Vec<&str> = said.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
    // What it does is told step by step; the last step is the one that failed.
    let failed = lines.iter().rposition(|line| ["fatal", "*failure*"].iter().any(|word| line.ends_with(word)));
    let told: Vec<&str> = lines[failed.unwrap_or(0)..].iter().filter(|line| !is_chatter(line)).copied().collect();
    told[told.len().saturating_sub(TOLD)..].to_vec()
}

/// How lines begin that only `--verbose` adds, and those that say nothing.
const BEGINNINGS: [&str; 6] = ["copying ", "executing: ", "relname: ", "Database: ", "Failure, exiting", "Performing "];

/// True for what only `--verbose` says, and for what went well.
fn is_chatter(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('"') && line.contains("/bin/")
        || line == "ok"
        || line.ends_with(" ok")
        || BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
}

/// The files that it names for more: lists of what is wrong, and logs of what failed.
pub fn files_named<'a>(told: &[&'a str]) -> Vec<&'a str> {
    let named = told.iter().filter_map(|line| {
        let line = line.trim();
        match line.split('"').nth(1) {
            Some(quoted) => Some(quoted).filter(|name| Path::new(name).extension() == Some("log".as_ref())),
            None => {
                Some(line).filter(|line| line.starts_with('/') && Path::new(line).extension() == Some("txt".as_ref()))
            }
        }
    });
    named.collect()
}

/// Of a file that `pg_upgrade` names: its errors, with the statements that follow them in a log, else the end of it; so many lines.
pub fn worth_telling(text: &str, most: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let is_error = |line: &&str| ["error: ", "ERROR: ", "FATAL: "].iter().any(|word| line.contains(word));
    match lines.iter().position(is_error) {
        Some(first) => lines[first..].iter().take(most).copied().collect(),
        None => lines[lines.len().saturating_sub(most)..].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parity(provider: &str, locale: Option<&str>) -> Parity {
        Parity {
            role: RoleName::new("boss").expect("a role"),
            locale: TemplateLocale {
                encoding: "UTF8".to_owned(),
                collate: "de_DE.UTF-8".to_owned(),
                ctype: "C".to_owned(),
                provider: provider.to_owned(),
                locale: locale.map(str::to_owned),
            },
            checksums: true,
            wal_segment_bytes: 16 << 20,
        }
    }

    fn options(parity: &Parity, major: u16) -> String {
        parity.initdb_options(PgMajor::since_10(major)).join(" ")
    }

    #[test]
    fn a_new_cluster_is_made_like_the_old_one() {
        let plain = "--encoding=UTF8 --lc-collate=de_DE.UTF-8 --lc-ctype=C";
        assert_eq!(options(&parity("libc", None), 18), plain);
        assert_eq!(options(&parity("libc", None), 13), plain);
        let icu = options(&parity("icu", Some("de-u-kn")), 17);
        assert_eq!(icu, format!("{plain} --locale-provider=icu --icu-locale=de-u-kn"));
        let builtin = options(&parity("builtin", Some("C.UTF-8")), 18);
        assert_eq!(builtin, format!("{plain} --locale-provider=builtin --builtin-locale=C.UTF-8"));
        let large = Parity { wal_segment_bytes: 64 << 20, ..parity("libc", None) };
        assert_eq!(options(&large, 15), format!("{plain} --wal-segsize=64"));
    }

    #[test]
    fn every_pair_of_majors_gets_both_servers_options() {
        let numbers = [13, 15, 17, 18];
        let pairs = numbers.iter().flat_map(|from| numbers.iter().map(move |to| (*from, *to)));
        for (from, to) in pairs.filter(|(from, to)| from < to) {
            let places = Places {
                programs: (Path::new("/o/bin"), Path::new("/n/bin")),
                data: (Path::new("/old/data"), Path::new("/data/n")),
                folder: Path::new("/run"),
            };
            let majors = (PgMajor::since_10(from), PgMajor::since_10(to));
            let told = arguments(&places, majors, &RoleName::new("boss").expect("a role"), 2);
            for wanted in [
                "--old-bindir=/o/bin",
                "--new-bindir=/n/bin",
                "--old-datadir=/old/data",
                "--new-datadir=/data/n",
                "--username=boss",
                "--jobs=2",
            ] {
                assert!(told.iter().any(|one| one == wanted), "{from} {to} {wanted}: {told:?}");
            }
            let fenced = "-c config_file=/run/postgresql.conf -c archive_mode=off -c ssl=off -c logging_collector=off -c jit=off";
            for option in ["old", "new"] {
                assert!(told.contains(&format!("--{option}-options={fenced}")), "{told:?}");
            }
        }
        assert!(!server_options(Path::new("/run"), PgMajor::since_10(10)).contains("jit"));
    }

    #[test]
    fn preloaded_libraries_are_a_quoted_text() {
        let text = settings(Path::new("/run"), "a,'b'");
        assert!(text.contains("shared_preload_libraries = 'a,''b'''\n"), "{text}");
        assert!(text.contains("hba_file = '/run/pg_hba.conf'\n"), "{text}");
    }

    #[test]
    fn files_that_were_copied_are_read_from_its_words() {
        let line = "  copying \"/old/base/5/1\" to \"/new/base/5/2\"  ";
        assert_eq!(copied(line), Some(("/old/base/5/1", "/new/base/5/2")));
        for other in ["", "copying", "rewriting \"/a\" to \"/b\"", "copying \"/a\""] {
            assert_eq!(copied(other), None, "{other}");
        }
    }

    const FAILED: &str = r#"Performing Consistency Checks
Checking cluster versions                                     ok
"/x/bin/pg_ctl" -w -l "/data/18/x.log" start >> "/data/18/x.log" 2>&1
Checking for user-defined postfix operators                   fatal

Your installation contains user-defined postfix operators.
A list of user-defined postfix operators is in the file:
    /data/18/pg_upgrade_output.d/1/postfix_ops.txt
"/x/bin/pg_ctl" -w -D "/x" stop

Failure, exiting
"#;

    #[test]
    fn the_reason_of_a_failure_is_the_last_step_and_the_files_it_names() {
        let told = failure(FAILED);
        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(told[0].starts_with("Checking for user-defined postfix operators"), "{told:#?}");
        assert_eq!(files_named(&told), ["/data/18/pg_upgrade_output.d/1/postfix_ops.txt"]);
        let told = failure(
            "Restoring database schemas\n*failure*\n\nConsult the last few lines of \"/d/a.log\" for\nthe probable cause of the failure.\n",
        );
        assert_eq!(files_named(&told), ["/d/a.log"]);
        let newer = "Checking for prepared transactions      ok\nChecking data type usage      failed check: reg*\n\
            executing: SELECT 1\nYour installation contains one of them\n";
        let told = failure(newer);
        assert_eq!(
            told,
            ["Checking data type usage      failed check: reg*", "Your installation contains one of them"]
        );
        assert_eq!(failure(""), Vec::<&str>::new());
        assert_eq!(failure("died early"), ["died early"]);
        let log = "command: pg_restore\npg_restore: error: could not execute query: ERROR:  no\nCommand was:\nCREATE 1\nCREATE 2\n";
        assert_eq!(
            worth_telling(log, 3),
            ["pg_restore: error: could not execute query: ERROR:  no", "Command was:", "CREATE 1"]
        );
        assert_eq!(worth_telling("a\n\nb\nc\n", 2), ["b", "c"]);
    }
}
