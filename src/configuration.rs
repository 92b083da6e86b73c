//! Finds and reads `pglife.toml` and the policies, and writes new policies into a folder.
//!
//! ```text
//! open ─▶ Opened (pglife.toml) ─▶ with(documents: of a folder, or of Consul's KV) ─▶ Configuration
//! ```
//!
//! Everything is read before anything is reported, so that one run shows all that is wrong. What comes out is
//! consistent: the policies fit the settings and each other.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::cluster::ClusterName;
use crate::document::Problem;
use crate::exit::Exit;
use crate::policy::file::{Claim, Reading};
use crate::policy::{self, Policy};
use crate::settings::{self, Policies, Settings};

/// The settings and every policy, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// `pglife.toml`.
    pub settings: Settings,
    /// The policies, from wherever they are.
    pub policies: BTreeMap<ClusterName, Policy>,
    /// The `pglife.toml` that was read; absolute.
    pub file: PathBuf,
}

/// Where `pglife.toml` is looked for when no path is given, in this order.
pub const SEARCHED: [&str; 2] = ["pglife.toml", "/etc/pglife/pglife.toml"];

/// Why there is no configuration, or not the part that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// There is no `pglife.toml`.
    #[error("there is no configuration: neither {} nor {} exists", SEARCHED[0], SEARCHED[1])]
    NotFound,
    /// The path that was given does not exist.
    #[error("the configuration file {} does not exist", file.display())]
    Missing {
        /// The path as it was given.
        file: PathBuf,
    },
    /// The current folder cannot be asked for, so relative paths mean nothing.
    #[error("the current folder is not accessible")]
    CurrentFolder(#[source] io::Error),
    /// The files have problems; here are all of them.
    #[error("{} in the configuration\n{}", count(problems.len()), list(problems))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
    /// No cluster was named, and there are several.
    #[error("there are several clusters: {}", names(known))]
    SeveralClusters {
        /// Their names.
        known: Vec<ClusterName>,
    },
    /// No cluster was named, and there is none.
    #[error("no cluster is configured: {} has no policy", place.display())]
    NoCluster {
        /// Where a policy would be.
        place: PathBuf,
    },
    /// The cluster that was named has no policy.
    #[error("there is no cluster {cluster}; {}", known_clusters(known))]
    UnknownCluster {
        /// The name.
        cluster: ClusterName,
        /// The names there are.
        known: Vec<ClusterName>,
    },
    /// A policy is in the way of a new one.
    #[error("{} exists already", file.display())]
    PolicyExists {
        /// The policy.
        file: PathBuf,
    },
    /// A policy could not be written; nothing is left of it.
    #[error("{} cannot be written", file.display())]
    Write {
        /// The policy.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn names(names: &[ClusterName]) -> String {
    names.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(", ")
}

fn known_clusters(known: &[ClusterName]) -> String {
    if known.is_empty() { "none is configured".to_owned() } else { format!("configured: {}", names(known)) }
}

impl ConfigurationError {
    /// The exit code this error ends the process with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotFound
            | Self::Missing { .. }
            | Self::CurrentFolder(_)
            | Self::Invalid { .. }
            | Self::SeveralClusters { .. }
            | Self::NoCluster { .. } => Exit::Usage,
            Self::UnknownCluster { .. } => Exit::NotFound,
            Self::PolicyExists { .. } => Exit::Refused,
            Self::Write { .. } => Exit::Failed,
        }
    }

    /// What the operator does next.
    pub fn next(&self) -> &'static str {
        match self {
            Self::NotFound => "run `pglife init` to write a first pglife.toml, or name one with --config",
            Self::Missing { .. } => "check --config and PGLIFE_CONFIG, or run `pglife init` to write a first one",
            Self::CurrentFolder(_) => "change to a folder that exists, or name the file with its full path",
            Self::Invalid { problems } if problems.iter().any(|problem| is_key(&problem.file)) => {
                "mend them in files (pglife config pull DIR) and put those into Consul: pglife config push DIR"
            }
            Self::Invalid { .. } => "mend the files, then run `pglife policy validate`",
            Self::SeveralClusters { .. } => "name one of them",
            Self::NoCluster { .. } => "write a policy, or run `pglife cluster create` or `pglife cluster adopt`",
            Self::UnknownCluster { .. } => "check the name; `pglife policy validate` lists the policies",
            Self::PolicyExists { .. } => "choose another name, or edit that one",
            Self::Write { .. } => "check the folder's owner, its permissions and the free space",
        }
    }
}

/// Reads `pglife.toml`: `path` if given (`--config` or `PGLIFE_CONFIG`), else the first of [`SEARCHED`] there is.
/// `DOCKER_HOST` of the environment counts where `pglife.toml` has no `[hosts]`.
pub fn open(path: Option<&Path>) -> Result<Opened, ConfigurationError> {
    let docker_host = std::env::var("DOCKER_HOST").ok();
    read(&find(path)?, docker_host.as_deref())
}

fn find(path: Option<&Path>) -> Result<PathBuf, ConfigurationError> {
    let file = match path {
        Some(path) if path.exists() => path,
        Some(path) => return Err(ConfigurationError::Missing { file: path.to_owned() }),
        None => SEARCHED.map(Path::new).into_iter().find(|path| path.exists()).ok_or(ConfigurationError::NotFound)?,
    };
    std::path::absolute(file).map_err(ConfigurationError::CurrentFolder)
}

fn read(file: &Path, docker_host: Option<&str>) -> Result<Opened, ConfigurationError> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let shown = as_written(file);
    let text = read_text(file, &shown).map_err(|problem| ConfigurationError::Invalid { problems: vec![problem] })?;
    let outcome = settings::file::read(&shown, &text, folder, docker_host);
    match outcome.value {
        Some(settings) => Ok(Opened { settings, problems: outcome.problems, file: file.to_owned() }),
        None => Err(ConfigurationError::Invalid { problems: outcome.problems }),
    }
}

/// `pglife.toml` alone. It may have problems, which are told together with those of the policies.
#[derive(Debug, Clone)]
pub struct Opened {
    settings: Settings,
    problems: Vec<Problem>,
    file: PathBuf,
}

/// A policy that is still text, from wherever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What names it to a person: a file, or a key in Consul.
    pub place: PathBuf,
    /// What it calls its cluster.
    pub name: String,
    /// What it says, or why that cannot be read.
    pub text: Result<String, Problem>,
}

impl Document {
    /// A document out of bytes, which should be UTF-8.
    pub fn of_bytes(place: PathBuf, name: String, bytes: Vec<u8>) -> Self {
        let text = in_utf8(bytes, &place);
        Self { place, name, text }
    }
}

impl Opened {
    /// What `pglife.toml` says, where it has no problem.
    pub fn settings(&self) -> Result<&Settings, ConfigurationError> {
        if self.problems.is_empty() {
            return Ok(&self.settings);
        }
        Err(ConfigurationError::Invalid { problems: self.problems.clone() })
    }

    /// The folder of the policies; None where they are in Consul.
    pub fn folder(&self) -> Option<&Path> {
        match &self.settings.policies {
            Policies::Folder(folder) => Some(folder),
            Policies::Consul => None,
        }
    }

    /// The `pglife.toml` that was read; absolute.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The configuration with the policies of a folder.
    pub fn with_folder(self, folder: &Path) -> Result<Configuration, ConfigurationError> {
        self.with(documents_in(folder))
    }

    /// The configuration with these policies.
    pub fn with(mut self, documents: Result<Vec<Document>, Problem>) -> Result<Configuration, ConfigurationError> {
        let policies = match documents {
            Ok(documents) => {
                let (policies, problems) = self.check(&documents);
                self.problems.extend(problems);
                policies
            }
            Err(problem) => {
                self.problems.push(problem);
                BTreeMap::new()
            }
        };
        if self.problems.is_empty() {
            Ok(Configuration { settings: self.settings, policies, file: self.file })
        } else {
            Err(ConfigurationError::Invalid { problems: self.problems })
        }
    }

    /// The policies that these documents are, and all that is wrong with them, alone and together. What is wrong with
    /// `pglife.toml` is not among it.
    pub fn check(&self, documents: &[Document]) -> (BTreeMap<ClusterName, Policy>, Vec<Problem>) {
        let (mut policies, mut problems, mut claimed) = (BTreeMap::new(), Vec::new(), Vec::new());
        for document in documents {
            match read_policy(document, &self.settings) {
                Err(problem) => problems.push(problem),
                Ok((name, reading)) => {
                    let mut of_document = reading.problems;
                    of_document.extend(contested(&mut claimed, &document.place, reading.claims));
                    of_document.sort_by_key(|problem| problem.position);
                    problems.extend(of_document);
                    policies.extend(reading.policy.map(|policy| (name, policy)));
                }
            }
        }
        (policies, problems)
    }
}

/// A path the way the user would write it: relative when it is below the current folder.
fn as_written(path: &Path) -> PathBuf {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(current).unwrap_or(path).to_owned()
}

fn read_text(file: &Path, shown: &Path) -> Result<String, Problem> {
    let bytes = std::fs::read(file).map_err(|error| {
        Problem::of_file(shown, format!("the file cannot be read: {error}"), "check its owner and permissions")
    })?;
    in_utf8(bytes, shown)
}

fn in_utf8(bytes: Vec<u8>, shown: &Path) -> Result<String, Problem> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        Problem::of_file(shown, format!("line {line} is not UTF-8"), "save the file as UTF-8")
    })
}

/// The `*.toml` files of the folder, sorted; hidden files (half-written ones among them) do not count.
pub fn documents_in(folder: &Path) -> Result<Vec<Document>, Problem> {
    let unreadable = |error: io::Error| {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "the folder of the policies does not exist".to_owned(),
            _ => format!("the folder of the policies cannot be read: {error}"),
        };
        Problem::of_file(&as_written(folder), message, "create it, or set `policies` in pglife.toml")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("toml")) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    let document = |file: PathBuf| {
        let place = as_written(&file);
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Document { text: read_text(&file, &place), place, name }
    };
    Ok(files.into_iter().map(document).collect())
}

fn read_policy(document: &Document, settings: &Settings) -> Result<(ClusterName, Reading), Problem> {
    let Document { place, name, text } = document;
    let name = ClusterName::new(name.as_str()).map_err(|error| {
        let help = if is_key(place) {
            "a key is named after its cluster: config/clusters/<cluster>"
        } else {
            "a policy file is named after its cluster: <cluster>.toml"
        };
        Problem::of_file(place, error.to_string(), help)
    })?;
    let reading = policy::file::read(place, text.as_ref().map_err(Clone::clone)?, &name, settings);
    Ok((name, reading))
}

/// How a key in Consul is written where a file could stand.
pub const KEY: &str = "consul:";

/// Below which key, of pglife's, the policies are in Consul.
pub const KEYS: &str = "config/clusters";

fn is_key(place: &Path) -> bool {
    place.as_os_str().as_encoded_bytes().starts_with(KEY.as_bytes())
}

/// The problems of a policy whose containers an earlier policy has claimed.
fn contested(claimed: &mut Vec<(PathBuf, Claim)>, file: &Path, claims: Vec<Claim>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for claim in claims {
        let same = |(_, other): &&(PathBuf, Claim)| {
            other.container == claim.container && claim.endpoint.is_some() && other.endpoint == claim.endpoint
        };
        if let Some((other_file, other)) = claimed.iter().find(same) {
            let whose = if other_file == file { "this policy".to_owned() } else { other_file.display().to_string() };
            problems.push(Problem {
                file: file.to_owned(),
                position: claim.position,
                key: format!("cluster.{}", claim.key),
                message: format!("{} is also the {} of {whose}", claim.container, other.key),
                help: Some("each container belongs to one cluster, and does one thing there".to_owned()),
            });
        } else {
            claimed.push((file.to_owned(), claim));
        }
    }
    problems
}

impl Configuration {
    /// The policy of `cluster`; without a name that of the only cluster there is.
    pub fn select(&self, cluster: Option<&ClusterName>) -> Result<&Policy, ConfigurationError> {
        let known = || self.policies.keys().cloned().collect();
        if let Some(cluster) = cluster {
            let unknown = || ConfigurationError::UnknownCluster { cluster: cluster.clone(), known: known() };
            return self.policies.get(cluster).ok_or_else(unknown);
        }
        let mut policies = self.policies.values();
        match (policies.next(), policies.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(ConfigurationError::NoCluster { place: self.policies_place() }),
            (Some(_), Some(_)) => Err(ConfigurationError::SeveralClusters { known: known() }),
        }
    }

    /// The policies of `cluster`, or of every cluster when no name is given.
    pub fn select_all(&self, cluster: Option<&ClusterName>) -> Result<Vec<&Policy>, ConfigurationError> {
        match cluster {
            Some(_) => Ok(vec![self.select(cluster)?]),
            None => Ok(self.policies.values().collect()),
        }
    }

    /// Where the policy of `cluster` is, or would be, as a person reads it: a file, or a key in Consul.
    pub fn policy_place(&self, cluster: &ClusterName) -> PathBuf {
        match &self.settings.policies {
            Policies::Folder(folder) => file_in(folder, cluster),
            Policies::Consul => self.policies_place().join(cluster.as_str()),
        }
    }

    fn policies_place(&self) -> PathBuf {
        match &self.settings.policies {
            Policies::Folder(folder) => folder.clone(),
            Policies::Consul => {
                let prefix = self.settings.consul.as_ref().map_or("pglife", |consul| &consul.kv_prefix);
                PathBuf::from(format!("{KEY}{prefix}/{KEYS}"))
            }
        }
    }

    /// Checks a policy that is not written yet against the settings and the other policies.
    pub fn check_policy(&self, cluster: &ClusterName, text: &str) -> Result<Policy, ConfigurationError> {
        let file = as_written(&self.policy_place(cluster));
        let mut claimed = Vec::new();
        for other in self.policies.values().filter(|other| other.name != *cluster) {
            let file = as_written(&self.policy_place(&other.name));
            claimed.extend(self.claims_of(other).into_iter().map(|claim| (file.clone(), claim)));
        }
        let reading = policy::file::read(&file, text, cluster, &self.settings);
        let mut problems = reading.problems;
        problems.extend(contested(&mut claimed, &file, reading.claims));
        match reading.policy {
            Some(policy) if problems.is_empty() => Ok(policy),
            _ => Err(ConfigurationError::Invalid { problems }),
        }
    }

    fn claims_of(&self, policy: &Policy) -> Vec<Claim> {
        let endpoint = self.settings.hosts.get(&policy.host).cloned();
        let claim = |key, container: &crate::cluster::ContainerName| Claim {
            key,
            position: None,
            endpoint: endpoint.clone(),
            container: container.clone(),
        };
        let mut claims = vec![claim("container", &policy.container)];
        if let policy::Layout::Managed(managed) = &policy.layout {
            claims.push(claim("data_container", &managed.data_container));
        }
        claims
    }
}

/// The file of the policy of `cluster` in a folder.
pub fn file_in(folder: &Path, cluster: &ClusterName) -> PathBuf {
    folder.join(format!("{cluster}.toml"))
}

/// Writes a new policy into a folder: whole or not at all, and never over another one. Does not check it.
pub fn write_policy(folder: &Path, cluster: &ClusterName, text: &str) -> Result<PathBuf, ConfigurationError> {
    let file = file_in(folder, cluster);
    write_new(&file, text).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => ConfigurationError::PolicyExists { file: file.clone() },
        _ => ConfigurationError::Write { file: file.clone(), source },
    })?;
    Ok(file)
}

/// The text of the policy of `cluster` in a folder, as it is on disk now.
pub fn policy_text(folder: &Path, cluster: &ClusterName) -> Result<String, ConfigurationError> {
    let file = file_in(folder, cluster);
    std::fs::read_to_string(&file).map_err(|source| ConfigurationError::Write { file, source })
}

/// Replaces the policy of `cluster` in a folder by a text that was checked. There is the old file or the new one, never a half.
pub fn replace_policy(folder: &Path, cluster: &ClusterName, text: &str) -> Result<(), ConfigurationError> {
    let file = file_in(folder, cluster);
    let write = || replace(&file, text.as_bytes(), std::fs::metadata(&file)?.permissions());
    write().map_err(|source| ConfigurationError::Write { file: file.clone(), source })
}

/// Writes a file: there is the old one or the new one, never a half.
pub(crate) fn replace(file: &Path, bytes: &[u8], permissions: std::fs::Permissions) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mut half = tempfile::Builder::new().prefix(".pglife-").suffix(".partial").tempfile_in(folder)?;
    half.as_file().set_permissions(permissions)?;
    half.write_all(bytes)?;
    half.as_file().sync_all()?;
    half.persist(file).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}

/// Writes a file that must not exist yet: its bytes are on the disk before it has its name.
pub(crate) fn write_new(file: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mut half = tempfile::Builder::new()
        .prefix(".pglife-")
        .suffix(".partial")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    half.write_all(text.as_bytes())?;
    half.as_file().sync_all()?;
    half.persist_noclobber(file).map_err(|error| error.error)?;
    // The name is safe only when the folder is.
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, bytes) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, bytes).expect("written");
        }
        folder
    }

    const SETTINGS: &[u8] = b"[repos.local]\ntype = 'local'\npath = 'repo'\n";
    const POLICY: &[u8] = b"[cluster]\nmajor = '17'\n";

    fn load_in(folder: &tempfile::TempDir) -> Result<Configuration, ConfigurationError> {
        let opened = read(&folder.path().join("pglife.toml"), None)?;
        let policies = opened.folder().expect("a folder").to_owned();
        opened.with_folder(&policies)
    }

    /// The error's text, with the folder's own name taken out.
    fn told(folder: &tempfile::TempDir, error: &ConfigurationError) -> String {
        error.to_string().replace(&format!("{}/", folder.path().display()), "")
    }

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).expect("a name")
    }

    #[test]
    fn an_empty_folder_of_policies_is_fine() {
        let folder = folder(&[("pglife.toml", SETTINGS), ("policies/.keep", b"")]);
        let configuration = load_in(&folder).expect("valid");
        assert!(configuration.policies.is_empty());
        let error = configuration.select(None).expect_err("no cluster");
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn the_problems_of_all_files_are_told_at_once() {
        let folder = folder(&[
            ("pglife.toml", b"statedir = 'x'\n[repos.local]\ntype = 'local'\npath = 'repo'\n[repos.b]\n"),
            ("policies/Chado.toml", POLICY),
            ("policies/a.toml", b"[cluster]\nmajor = '17'\ncontainer = 'same'\n[backup.dump]\nrepos = ['local']\n"),
            ("policies/b.toml", b"[cluster]\nmajor = 17\n\ncontainer = 'same'\ndata_container = 'same'\n"),
            ("policies/c.toml", b"# ok\n# \xff\n"),
            ("policies/d.toml", b"[cluster\n"),
            (
                "policies/e.toml",
                b"[cluster]\nmajor = '17'\ndata_container = 'a-data'\n[backup.dump]\nrepos = ['b', 'x']\n",
            ),
            ("policies/.f.toml", b"half"),
            ("policies/README.md", b"not a policy"),
        ]);
        let error = load_in(&folder).expect_err("problems");
        assert_eq!(error.exit(), Exit::Usage);
        insta::assert_snapshot!(told(&folder, &error), @r#"
        11 problems in the configuration
        pglife.toml:1:1: statedir: unknown key
            help: did you mean state_dir?
        pglife.toml:5:1: repos.b.type: the type is missing
            help: type = "local" with a path, or type = "s3" with a bucket
        policies/Chado.toml: cluster name "Chado" is not valid: 1 to 48 of a-z, 0-9 and '-', not beginning or ending with '-'
            help: a policy file is named after its cluster: <cluster>.toml
        policies/b.toml: backup.dump.repos: the repositories are missing
            help: pglife.toml has: b, local
        policies/b.toml:2:9: cluster.major: a string is expected, not an integer
            help: a quoted major version: "17", or "9.6" before 10
        policies/b.toml:4:13: cluster.container: same is also the container of policies/a.toml
            help: each container belongs to one cluster, and does one thing there
        policies/b.toml:5:18: cluster.data_container: same is also the container of policies/a.toml
            help: each container belongs to one cluster, and does one thing there
        policies/c.toml: line 2 is not UTF-8
            help: save the file as UTF-8
        policies/d.toml:1:9: not TOML: unclosed table, expected `]`
        policies/e.toml:3:18: cluster.data_container: a-data is also the data_container of policies/a.toml
            help: each container belongs to one cluster, and does one thing there
        policies/e.toml:5:15: backup.dump.repos[1]: pglife.toml has no [repos.x]
            help: pglife.toml has: b, local
        "#);
    }

    #[test]
    fn unreadable_files_and_folders_are_problems() {
        let folder = folder(&[("pglife.toml", b"policies = 'gone'\n[x\n")]);
        insta::assert_snapshot!(told(&folder, &load_in(&folder).expect_err("problems")), @r"
        1 problem in the configuration
        pglife.toml:2:3: not TOML: unclosed table, expected `]`
        ");
        std::fs::write(folder.path().join("pglife.toml"), "policies = 'gone'\n").expect("written");
        insta::assert_snapshot!(told(&folder, &load_in(&folder).expect_err("problems")), @r"
        1 problem in the configuration
        gone: the folder of the policies does not exist
            help: create it, or set `policies` in pglife.toml
        ");
        std::fs::remove_file(folder.path().join("pglife.toml")).expect("removed");
        let missing = open(Some(&folder.path().join("pglife.toml"))).expect_err("missing");
        assert!(matches!(missing, ConfigurationError::Missing { .. }), "{missing}");
        std::fs::create_dir(folder.path().join("pglife.toml")).expect("a folder");
        assert!(told(&folder, &load_in(&folder).expect_err("a folder")).contains("cannot be read"));
    }

    #[test]
    fn the_same_names_on_another_engine_are_no_conflict() {
        let claim = |endpoint: &str| Claim {
            key: "container",
            position: None,
            endpoint: Some(settings::Endpoint::Unix(PathBuf::from(endpoint))),
            container: crate::cluster::ContainerName::new("same").expect("a name"),
        };
        let mut claimed = Vec::new();
        assert!(contested(&mut claimed, Path::new("a.toml"), vec![claim("/one")]).is_empty());
        assert!(contested(&mut claimed, Path::new("b.toml"), vec![claim("/two")]).is_empty());
        assert_eq!(contested(&mut claimed, Path::new("c.toml"), vec![claim("/one")]).len(), 1);
    }

    #[test]
    fn clusters_are_selected() {
        let folder = folder(&[("pglife.toml", SETTINGS), ("policies/a.toml", POLICY), ("policies/b.toml", POLICY)]);
        let mut configuration = load_in(&folder).expect("valid");
        let several = configuration.select(None).expect_err("two clusters");
        assert_eq!((several.exit(), several.to_string().as_str()), (Exit::Usage, "there are several clusters: a, b"));
        let unknown = configuration.select(Some(&cluster("c"))).expect_err("unknown");
        let text = "there is no cluster c; configured: a, b";
        assert_eq!((unknown.exit(), unknown.to_string().as_str()), (Exit::NotFound, text));
        assert_eq!(configuration.select(Some(&cluster("b"))).expect("known").name, cluster("b"));
        assert_eq!(configuration.select_all(None).expect("all").len(), 2);
        configuration.policies.remove(&cluster("b"));
        assert_eq!(configuration.select(None).expect("the only one").name, cluster("a"));
    }

    #[test]
    fn new_policies_are_checked_and_written_whole() {
        let folder = folder(&[("pglife.toml", SETTINGS), ("policies/a.toml", POLICY)]);
        let configuration = load_in(&folder).expect("valid");
        let taken = configuration.check_policy(&cluster("b"), "[cluster]\nmajor = '17'\ncontainer = 'a-db'\n");
        insta::assert_snapshot!(told(&folder, &taken.expect_err("taken")), @r"
        1 problem in the configuration
        policies/b.toml:3:13: cluster.container: a-db is also the container of policies/a.toml
            help: each container belongs to one cluster, and does one thing there
        ");
        let text = "[cluster]\nmajor = '17'\n";
        configuration.check_policy(&cluster("b"), text).expect("valid");
        let policies = folder.path().join("policies");
        let file = write_policy(&policies, &cluster("b"), text).expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), text);
        let again = write_policy(&policies, &cluster("b"), "other").expect_err("it exists");
        assert_eq!(again.exit(), Exit::Refused);
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), text);
        assert_eq!(load_in(&folder).expect("valid").policies.len(), 2);
        let left = std::fs::read_dir(folder.path().join("policies")).expect("readable").count();
        assert_eq!(left, 2, "nothing half-written is left");
    }
}
