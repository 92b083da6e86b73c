//! `pglife init`: a commented `pglife.toml` and a first policy to start from. Never touches what is there.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Context, Failure, output};
use crate::cluster::{ClusterName, PgMajor};
use crate::configuration;
use crate::exit::Exit;

const SETTINGS: &str = include_str!("init/pglife.toml");
const POLICY: &str = include_str!("../../policies/example.toml");

/// The folder of a system-wide installation; only there the files name folders of the system.
const SYSTEM_FOLDER: &str = "/etc/pglife";

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder to write to
    #[arg(default_value = SYSTEM_FOLDER)]
    dir: PathBuf,
    /// The cluster of the first policy
    #[arg(long, default_value = "main", value_name = "NAME")]
    cluster: ClusterName,
    /// The major version of its server
    #[arg(long, default_value = "17")]
    major: PgMajor,
}

#[derive(Serialize)]
struct Written {
    path: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let written = init(args)?;
    let items: Vec<Written> = written.iter().map(|path| Written { path: path.display().to_string() }).collect();
    context.output.items("WrittenFileList", &items, |_| {
        let mut table = output::table(&["WRITTEN"]);
        for item in &items {
            table.add_row([&item.path]);
        }
        table
    })?;
    let is_found = written[0].parent() == Some(Path::new(SYSTEM_FOLDER));
    let config = if is_found { String::new() } else { format!(" -c {}", written[0].display()) };
    context.output.note(&format!("next: read the two files, then run `pglife{config} policy validate`"));
    Ok(Exit::Ok)
}

/// Writes `pglife.toml` and the policy; both or none. Returns their paths in this order.
fn init(args: &Args) -> Result<[PathBuf; 2], Failure> {
    let folder = std::path::absolute(&args.dir)
        .map_err(|error| Failure::new(Exit::Usage, error).context("the folder's path is not usable"))?;
    let (config, first) = (folder.join("pglife.toml"), folder.join("policies").join(format!("{}.toml", args.cluster)));
    let exists = |path: &&PathBuf| path.symlink_metadata().is_ok();
    let existing: Vec<String> = [&config, &first].into_iter().filter(exists).map(|p| p.display().to_string()).collect();
    if !existing.is_empty() {
        let message = format!("{} is already there, nothing was written", existing.join(" and "));
        return Err(Failure::message(Exit::Refused, message).next("choose another folder, or edit what is there"));
    }
    // pglife.toml comes last: while it is missing nothing is configured, and `init` can be run again.
    write(&folder, &[(first.as_path(), policy(&args.cluster, args.major)), (config.as_path(), settings(&folder))])?;
    Ok([config, first])
}

/// Writes the files, or none of them.
fn write(folder: &Path, files: &[(&Path, String)]) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::AlreadyExists { Exit::Refused } else { Exit::Failed };
        let error = anyhow::Error::new(error).context(format!("{} cannot be written", path.display()));
        Failure::new(exit, error).next("name a folder that you may write to: pglife init DIR")
    };
    let policies = folder.join("policies");
    std::fs::create_dir_all(&policies).map_err(|error| failed(&policies, error))?;
    for (index, (path, text)) in files.iter().enumerate() {
        if let Err(error) = configuration::write_new(path, text) {
            for (written, _) in &files[..index] {
                if let Err(error) = std::fs::remove_file(written) {
                    tracing::warn!(file = %written.display(), %error, "a file is left behind");
                }
            }
            return Err(failed(path, error));
        }
    }
    Ok(())
}

fn settings(folder: &Path) -> String {
    if folder == Path::new(SYSTEM_FOLDER) {
        SETTINGS.to_owned()
    } else {
        SETTINGS.replace("\"/var/lib/pglife\"", "\"state\"").replace("\"/var/lib/pglife/repo\"", "\"repo\"")
    }
}

/// The example of `policies/`, for this cluster and this major.
fn policy(cluster: &ClusterName, major: PgMajor) -> String {
    let lines = POLICY.lines().map(|line| {
        let line = match line {
            "major = \"17\"" => format!("major = \"{major}\""),
            "# image = \"pglife/postgres:17\"" => format!("# image = \"pglife/postgres:{major}\""),
            other => other.replace("\"main-", &format!("\"{cluster}-")).replace("\"main.", &format!("\"{cluster}.")),
        };
        line + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::file;

    fn init_in(dir: &Path) -> Result<[PathBuf; 2], Failure> {
        let cluster = ClusterName::new("chado").expect("a name");
        init(&Args { dir: dir.to_owned(), cluster, major: PgMajor::since_10(13) })
    }

    #[test]
    fn what_is_written_loads() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("new");
        init_in(&dir).expect("written");
        let configuration = configuration::open(Some(&dir.join("pglife.toml"))).expect("settings");
        let configuration = configuration.with_folder(&dir.join("policies")).expect("a valid configuration");
        let policy = configuration.select(None).expect("the only cluster");
        assert_eq!((policy.name.as_str(), policy.major), ("chado", PgMajor::since_10(13)));
        assert_eq!(policy.container.as_str(), "chado-db");
        assert_eq!(configuration.settings.state_dir, dir.join("state"));
        let repositories: Vec<_> = configuration.settings.repositories.into_values().collect();
        assert_eq!(repositories, [crate::settings::Repository::Local { path: dir.join("repo") }]);
        let left: Vec<_> =
            std::fs::read_dir(&dir).expect("readable").map(|e| e.expect("readable").file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn what_is_there_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("policies")).expect("a folder");
        let policy = folder.path().join("policies/chado.toml");
        std::fs::write(&policy, "mine").expect("written");
        let failure = init_in(folder.path()).expect_err("refused");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.to_string().contains("policies/chado.toml is already there"), "{failure}");
        assert_eq!(std::fs::read_to_string(&policy).expect("readable"), "mine");
        assert!(!folder.path().join("pglife.toml").exists());
    }

    /// All that the system-wide files name is where a distribution's package would put it.
    #[test]
    fn the_system_folder_names_the_system_s_folders() {
        let text = settings(Path::new(SYSTEM_FOLDER));
        let outcome = crate::settings::file::read(Path::new("p"), &text, Path::new(SYSTEM_FOLDER), None);
        assert_eq!(outcome.problems, []);
        let settings = outcome.value.expect("read");
        assert_eq!(settings.state_dir, Path::new("/var/lib/pglife"));
        assert_eq!(settings.policies, crate::settings::Policies::Folder("/etc/pglife/policies".into()));
    }

    proptest! {
        /// The optional keys, put into force, still tell the defaults of *this* cluster.
        #[test]
        fn the_policy_fits_any_cluster(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", major in 10u16..100) {
            let (cluster, major) = (ClusterName::new(name).expect("a name"), PgMajor::since_10(major));
            let text = policy(&cluster, major);
            let defaults = ["container", "image", "data_container"];
            let in_force: String = text
                .lines()
                .map(|line| match line.strip_prefix("# ") {
                    Some(key) if defaults.iter().any(|default| key.starts_with(&format!("{default} = "))) => key,
                    _ => line,
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            let settings = crate::settings::file::read(Path::new("p"), SETTINGS, Path::new("/"), None).value.expect("read");
            let read = |text: &str| file::read(Path::new("p"), text, &cluster, &settings);
            prop_assert_eq!(read(&text).problems, &[]);
            prop_assert_eq!(read(&text).policy.expect("valid").major, major);
            prop_assert_eq!(read(&text).policy, read(&in_force).policy);
        }
    }
}
