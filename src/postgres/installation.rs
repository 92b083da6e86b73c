//! What an image has of PostgreSQL beside the server: extensions, libraries, and the locales of its operating system.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::backup_set::Sorting;

use super::PostgresError;
use super::tools::Toolbox;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Where libraries without a path are looked for.
    pub library_folder: String,
    /// Libraries in it, below it too, without their suffix.
    pub libraries: BTreeSet<String>,
    /// Extensions that `CREATE EXTENSION` would find.
    pub extensions: BTreeSet<String>,
    /// Locales, as [`plain_locale`] has them; empty where the image cannot tell.
    pub locales: BTreeSet<String>,
    /// Versions of the libraries that sort text.
    #[serde(default)]
    pub sorting: Sorting,
}

/// With which libraries the server that `toolbox` belongs to sorts text.
pub fn sorting(toolbox: &Toolbox) -> Sorting {
    let said = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new("ldd").args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    read_sorting(&said(&["--version".as_ref()]), &said(&[toolbox.path("postgres").as_os_str()]))
}

/// From what `ldd --version` and `ldd postgres` say.
fn read_sorting(version: &str, libraries: &str) -> Sorting {
    let libc = version.lines().next().and_then(|line| line.split_whitespace().last());
    let icu = libraries.lines().find_map(|line| {
        let number = line.trim().strip_prefix("libicui18n.so.")?.split_whitespace().next()?;
        Some(number.to_owned())
    });
    Sorting { libc: libc.map(str::to_owned), icu }
}

impl Installation {
    /// Looks at the installation that `toolbox` belongs to.
    pub fn look(toolbox: &Toolbox) -> Result<Self, PostgresError> {
        let folder = |option: &str| -> Result<String, PostgresError> {
            let tool = "pg_config";
            let text = toolbox.print(tool, option)?.trim().to_owned();
            if text.starts_with('/') {
                return Ok(text);
            }
            let source = std::io::Error::other(format!("{option}: it names no folder, but {text:?}"));
            Err(PostgresError::ToolNotRun { tool: tool.to_owned(), source })
        };
        let (library_folder, share) = (folder("--pkglibdir")?, folder("--sharedir")?);
        let mut libraries = BTreeSet::new();
        files(Path::new(&library_folder), "", ".so", &mut libraries);
        let mut extensions = BTreeSet::new();
        files(&Path::new(&share).join("extension"), "", ".control", &mut extensions);
        let listed = Command::new("locale").arg("-a").env("LC_ALL", "C").stdin(Stdio::null()).output();
        let locales = listed.map(|output| String::from_utf8_lossy(&output.stdout).lines().map(plain_locale).collect());
        Ok(Self {
            library_folder,
            libraries,
            extensions,
            locales: locales.unwrap_or_default(),
            sorting: sorting(toolbox),
        })
    }

    /// Whether the server would find the library called `name`.
    pub fn has_library(&self, name: &str) -> bool {
        let inside = name
            .strip_prefix("$libdir/")
            .or_else(|| name.strip_prefix(self.library_folder.as_str()).and_then(|rest| rest.strip_prefix('/')));
        let inside = inside.unwrap_or(name);
        self.libraries.contains(inside.strip_suffix(".so").unwrap_or(inside))
    }

    /// Whether its operating system has the locale; true where it cannot tell.
    pub fn has_locale(&self, name: &str) -> bool {
        let name = plain_locale(name);
        self.locales.is_empty() || ["", "C", "POSIX"].contains(&name.as_str()) || self.locales.contains(&name)
    }
}

/// The name of a locale with its encoding as the C library compares it: `de_DE.UTF-8` and `de_DE.utf8` are one.
fn plain_locale(name: &str) -> String {
    let Some((place, rest)) = name.split_once('.') else { return name.to_owned() };
    let (encoding, modifier) =
        rest.split_once('@').map_or((rest, None), |(encoding, modifier)| (encoding, Some(modifier)));
    let encoding: String =
        encoding.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    match modifier {
        Some(modifier) => format!("{place}.{encoding}@{modifier}"),
        None => format!("{place}.{encoding}"),
    }
}

/// Names of the files below `folder` that end in `suffix`, without it. What cannot be read is not there.
fn files(folder: &Path, below: &str, suffix: &str, found: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files(&entry.path(), &format!("{below}{name}/"), suffix, found);
        } else if let Some(name) = name.strip_suffix(suffix) {
            found.insert(format!("{below}{name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> Installation {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Installation {
            library_folder: "/usr/lib/postgresql/18/lib".to_owned(),
            libraries: set(&["auto_explain", "plugins/mine"]),
            extensions: set(&["hstore"]),
            locales: set(&["de_DE.utf8", "C.utf8", "sr_RS.utf8@latin"]),
            sorting: Sorting::default(),
        }
    }

    #[test]
    fn another_library_that_sorts_is_named_with_both_versions() {
        let sorting = |libc, icu| {
            let libraries =
                format!("\tlinux-vdso.so.1 (0x1)\n\tlibicui18n.so.{icu} => /lib/libicui18n.so.{icu} (0x2)\n");
            read_sorting(&format!("ldd (Debian GLIBC {libc}-13) {libc}\nCopyright\n"), &libraries)
        };
        let (old, new) = (sorting("2.31", "67"), sorting("2.41", "76"));
        assert_eq!(old, Sorting { libc: Some("2.31".to_owned()), icu: Some("67".to_owned()) });
        assert_eq!(old.changes(&old), [""; 0]);
        assert_eq!(old.changes(&new), ["the C library, 2.31 to 2.41", "ICU, 67 to 76"]);
        assert_eq!(old.changes(&sorting("2.31", "76")), ["ICU, 67 to 76"]);
        assert_eq!(Sorting::default().changes(&Sorting::default()), ["the C library, unknown to unknown"]);
    }

    #[test]
    fn a_library_is_found_by_all_its_names() {
        let installation = installation();
        for name in [
            "auto_explain",
            "auto_explain.so",
            "$libdir/auto_explain",
            "$libdir/plugins/mine",
            "/usr/lib/postgresql/18/lib/auto_explain.so",
        ] {
            assert!(installation.has_library(name), "{name}");
        }
        for name in ["pg_cron", "mine", "/usr/lib/postgresql/17/lib/auto_explain", "/opt/auto_explain.so"] {
            assert!(!installation.has_library(name), "{name}");
        }
    }

    #[test]
    fn a_locale_is_found_however_its_encoding_is_written() {
        let installation = installation();
        for name in ["de_DE.UTF-8", "de_DE.utf8", "C", "POSIX", "C.UTF-8", "sr_RS.UTF-8@latin"] {
            assert!(installation.has_locale(name), "{name}");
        }
        for name in ["de_AT.UTF-8", "de_DE", "de_DE.iso88591"] {
            assert!(!installation.has_locale(name), "{name}");
        }
        assert!(Installation::default().has_locale("xx_XX.UTF-8"));
    }

    #[test]
    fn files_are_listed_without_their_suffix() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("plugins")).expect("a folder");
        for name in ["a.so", "b.txt", "plugins/c.so"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let mut found = BTreeSet::new();
        files(folder.path(), "", ".so", &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "plugins/c"]);
    }
}
