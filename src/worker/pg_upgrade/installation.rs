//! The old server's programs and what they need, out of its own image; and what of that the new image has itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::PgMajor;
use crate::postgres::tools::Toolbox;

use super::super::process::Line;
use super::super::upgrade::nobody;
use super::super::{Event, Failure, Trouble};
use super::OldPrograms;
use super::servers::failed_io;

/// Copies the programs of `major` from the image in which this worker runs to below `to`, with every library that they load.
///
/// Their folders keep their places relative to each other, by which a server finds its own (PostgreSQL's `make_relative_path`).
pub(in super::super) fn copy_out(major: PgMajor, to: &str, line: &Line) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(major, &nobody())?;
    let to = Path::new(to);
    let mut folders = Vec::new();
    for option in ["--bindir", "--pkglibdir", "--sharedir"] {
        folders.push(PathBuf::from(toolbox.print("pg_config", option)?.trim()));
    }
    let below = |folder: &Path| to.join("root").join(folder.strip_prefix("/").unwrap_or(folder));
    let mut programs = Vec::new();
    for folder in &folders {
        copy_folder(folder, &below(folder), &mut programs)
            .map_err(|error| failed_io(&format!("copying {} out of the old image", folder.display()), &error))?;
    }
    let libraries = to.join("libraries");
    std::fs::create_dir_all(&libraries).map_err(|error| failed_io("a folder for libraries", &error))?;
    for library in needed(&programs)? {
        let Some(name) = library.file_name() else { continue };
        std::fs::copy(&library, libraries.join(name))
            .map_err(|error| failed_io(&format!("copying {} out of the old image", library.display()), &error))?;
    }
    line.tell(&Event::InstallationCopied(OldPrograms {
        major,
        programs: below(&folders[0]).display().to_string(),
        libraries: libraries.display().to_string(),
    }));
    Ok(vec![])
}

/// Whether a file is of use: not the just-in-time compiler, whose libraries are larger than all others, nor what is for building.
fn is_wanted(name: &str) -> bool {
    !name.starts_with("llvmjit") && !["bitcode", "pgxs", "man"].contains(&name)
}

/// Copies files and folders, links by what they lead to; notes programs and libraries.
fn copy_folder(from: &Path, to: &Path, programs: &mut Vec<PathBuf>) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        // A link that leads nowhere is of no use to the server either.
        let Ok(kind) = std::fs::metadata(&path) else { continue };
        if !is_wanted(&name.to_string_lossy()) {
            continue;
        }
        if kind.is_dir() {
            copy_folder(&path, &to.join(name), programs)?;
        } else if kind.is_file() {
            std::fs::copy(&path, to.join(name))?;
            let is_library = path.extension() == Some(OsStr::new("so"));
            let is_program = path.parent().and_then(Path::file_name) == Some(OsStr::new("bin"));
            if is_library || is_program {
                programs.push(path);
            }
        }
    }
    Ok(())
}

/// The libraries that `programs` load, as this image's loader finds them.
fn needed(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Failure> {
    let output = Command::new("ldd")
        .args(programs)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed_io("ldd, in the old image", &error))?;
    // Scripts among the programs make it end with 1.
    let found = loaded(&String::from_utf8_lossy(&output.stdout));
    if found.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::new(Trouble::ToolMissing, format!("ldd names no library of the old server: {said}")));
    }
    Ok(found)
}

/// The paths in what `ldd` prints.
fn loaded(said: &str) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        let path = line.split_once(" => ")?.1.split(" (").next()?.trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    said.lines().filter_map(path).collect()
}

/// Takes away from `folder` what this image has itself: of two C libraries in one process only its own can work.
pub(super) fn keep_missing(folder: &Path) -> Result<(), Failure> {
    let failed = |error| failed_io("the libraries of this image", &error);
    let output =
        Command::new("/sbin/ldconfig").arg("-p").env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let own: BTreeSet<&str> = said.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if own.contains(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let said = "/usr/lib/postgresql/13/bin/postgres:\n\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibxml2.so.2 => /usr/lib/x86_64-linux-gnu/libxml2.so.2 (0x00007f)\n\tlibgone.so.1 => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/usr/bin/script:\n\tnot a dynamic executable\n";
        assert_eq!(loaded(said), BTreeSet::from([PathBuf::from("/usr/lib/x86_64-linux-gnu/libxml2.so.2")]));
    }

    #[test]
    fn the_compiler_is_left_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for name in ["bin", "lib/bitcode"] {
            std::fs::create_dir_all(from.join(name)).expect("a folder");
        }
        for name in ["bin/postgres", "lib/hstore.so", "lib/llvmjit.so", "lib/bitcode/x.bc"] {
            std::fs::write(from.join(name), name).expect("written");
        }
        std::os::unix::fs::symlink("nowhere", from.join("lib/dead.so")).expect("a link");
        let mut programs = Vec::new();
        copy_folder(&from, &to, &mut programs).expect("copied");
        programs.sort();
        assert_eq!(programs, [from.join("bin/postgres"), from.join("lib/hstore.so")]);
        assert!(to.join("bin/postgres").exists() && to.join("lib/hstore.so").exists());
        for name in ["lib/llvmjit.so", "lib/bitcode", "lib/dead.so"] {
            assert!(!to.join(name).exists(), "{name}");
        }
    }
}
