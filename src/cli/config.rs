//! `pglife config`: policies in Consul's KV. `push` puts a folder's files there, `pull` gets them into a folder, `show` compares.
//!
//! They work whether or not `pglife.toml` says `policies = "consul"` already, and while what is there is not valid: they are how
//! it is mended.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::policy::ProblemItem;
use super::{Context, Failure, output};
use crate::cluster::ClusterName;
use crate::configuration::{self, ConfigurationError, Document, Opened};
use crate::consul::Consul;
use crate::consul::tree::{Tree, parts};
use crate::control::failed;
use crate::document::Problem;
use crate::exit::Exit;
use crate::kv::plan::{Step, changes, steps};
use crate::kv::{self, Documents};

/// The command line.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the policies in Consul: are they valid, are they what the files say
    Show {
        /// The folder to compare with [default: the one of pglife.toml, else `policies` beside it]
        dir: Option<PathBuf>,
    },
    /// Put the policies of a folder into Consul, if all of them are valid
    Push {
        /// The folder [default: the one of pglife.toml, else `policies` beside it]
        dir: Option<PathBuf>,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
        /// Remove policies from Consul that are not in the folder
        #[arg(long)]
        delete: bool,
    },
    /// Write the policies in Consul into a folder
    Pull {
        /// The folder; it is made if it is not there
        dir: PathBuf,
        /// Replace files that say something else
        #[arg(long)]
        force: bool,
    },
}

/// Consul, and what is in it.
struct Kv {
    opened: Opened,
    consul: Consul,
    folder: String,
    tree: Tree,
    there: Documents,
}

impl Kv {
    async fn read(context: &Context, what: &'static str) -> Result<Self, Failure> {
        let opened = context.settings()?;
        let Some(settings) = &opened.settings()?.consul else {
            let why = format!("{what}: there is no [consul] in {}", opened.file().display());
            return Err(Failure::message(Exit::Usage, why).next("add [consul] with the address of an agent"));
        };
        let consul = Consul::new(settings).map_err(failed(what))?;
        let folder = kv::folder(&consul);
        let tree = consul.tree(&folder, None).await.map_err(failed(what))?;
        let there = kv::documents(&tree);
        Ok(Self { opened, consul, folder, tree, there })
    }

    /// The folder that was named, else the one where policies are or would be.
    fn folder_of_files(&self, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
        let beside = || Ok(self.opened.settings()?.folder.join("policies"));
        named.or_else(|| self.opened.folder().map(Path::to_owned)).map_or_else(beside, Ok)
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    match args.command {
        Command::Show { dir } => show(dir, context).await,
        Command::Push { dir, dry_run, delete } => push(dir, dry_run, delete, context).await,
        Command::Pull { dir, force } => pull(&dir, force, context).await,
    }
}

/// The documents of a folder as they are, by name, and as the configuration reads them.
fn in_folder(dir: &Path) -> Result<(Vec<Document>, Documents), Problem> {
    let documents = configuration::documents_in(dir)?;
    let text = |document: &Document| {
        let text = document.text.as_ref().ok()?;
        Some((document.name.clone(), text.clone().into_bytes()))
    };
    let by_name = documents.iter().filter_map(text).collect();
    Ok((documents, by_name))
}

#[derive(Serialize)]
struct ShownPolicy<'a> {
    cluster: &'a str,
    key: String,
    valid: bool,
    problems: Vec<ProblemItem<'a>>,
    /// Against the folder; none where there is no such folder.
    local: Option<&'static str>,
    bytes: usize,
}

async fn show(dir: Option<PathBuf>, context: &Context) -> Result<Exit, Failure> {
    let kv = Kv::read(context, "the policies in Consul cannot be shown").await?;
    let dir = kv.folder_of_files(dir)?;
    let files = in_folder(&dir).ok().map(|(_, by_name)| by_name);
    let documents = kv::as_read(&kv.folder, &kv.there);
    let (_, problems) = kv.opened.check(&documents);
    let item = |document: &'_ Document| {
        let of_this = |problem: &&Problem| problem.file == document.place;
        let (name, bytes) = kv.there.get_key_value(&document.name).expect("it was made of this");
        let local = files.as_ref().map(|files| match files.get(name) {
            None => "missing",
            Some(file) if file == bytes => "same",
            Some(_) => "differs",
        });
        let problems: Vec<ProblemItem<'_>> = problems.iter().filter(of_this).map(ProblemItem::from).collect();
        ShownPolicy {
            cluster: name,
            key: kv.key(name),
            valid: problems.is_empty(),
            problems,
            local,
            bytes: bytes.len(),
        }
    };
    let items: Vec<ShownPolicy<'_>> = documents.iter().map(item).collect();
    context.output.items("ConsulPolicyList", &items, |_| {
        let mut table = output::table(&["CLUSTER", "STATE", "FILE", "KEY"]);
        for item in &items {
            let state = if item.valid { "valid" } else { "INVALID" };
            table.add_row([item.cluster, state, item.local.unwrap_or("-"), &item.key]);
        }
        table
    })?;
    for problem in &problems {
        context.output.note(&problem.to_string());
    }
    match &files {
        None => context.output.note(&format!("there is no folder {} to compare with", dir.display())),
        Some(files) => {
            for name in files.keys().filter(|name| !kv.there.contains_key(*name)) {
                context.output.note(&format!("{name} is in {} and not in Consul", dir.display()));
            }
        }
    }
    if kv.opened.folder().is_some() {
        let file = kv.opened.file().display();
        context.output.note(&format!("nothing reads them here: {file} does not say policies = \"consul\""));
    }
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Told<'a> {
    cluster: &'a str,
    step: Step,
    /// Where it is written to, or would be.
    place: String,
}

fn tell(
    steps: &BTreeMap<String, Step>,
    place: impl Fn(&str) -> String,
    kind: &'static str,
    context: &Context,
) -> Result<(), Failure> {
    let items: Vec<Told<'_>> =
        steps.iter().map(|(name, step)| Told { cluster: name, step: *step, place: place(name) }).collect();
    context.output.items(kind, &items, |_| {
        let mut table = output::table(&["CLUSTER", "WHAT", "WHERE"]);
        for item in &items {
            table.add_row([item.cluster, item.step.as_str(), &item.place]);
        }
        table
    })
}

async fn push(dir: Option<PathBuf>, dry_run: bool, delete: bool, context: &Context) -> Result<Exit, Failure> {
    let kv = Kv::read(context, "nothing was pushed").await?;
    let dir = kv.folder_of_files(dir)?;
    let invalid = |problems| {
        let next = "mend the files, then push again; nothing was written";
        Failure::from(ConfigurationError::Invalid { problems }).next(next)
    };
    let (mut documents, wanted) = in_folder(&dir).map_err(|problem| invalid(vec![problem]))?;
    if documents.is_empty() {
        let what = format!("nothing was pushed: there is no policy in {}", dir.display());
        return Err(Failure::message(Exit::Refused, what).next("name the folder that has them: pglife config push DIR"));
    }
    // What is there already may be wrong, and is not made worse; what comes must be right, also beside what stays.
    let mut stays = if delete { Documents::new() } else { kv.there.clone() };
    stays.retain(|name, _| !wanted.contains_key(name));
    let (_, before) = kv.opened.check(&kv::as_read(&kv.folder, &stays));
    documents.extend(kv::as_read(&kv.folder, &stays));
    let (_, after) = kv.opened.check(&documents);
    let (old, new): (Vec<Problem>, Vec<Problem>) = after.into_iter().partition(|problem| before.contains(problem));
    if !new.is_empty() {
        return Err(invalid(new));
    }
    let steps = steps(&wanted, &kv.there, delete);
    let changes = changes(&steps, &wanted, &kv.tree, &kv.folder);
    let mut written = 0;
    for part in parts(&changes).into_iter().filter(|_| !dry_run) {
        let what = format!("{written} of {} changes were pushed", changes.len());
        if let Err(key) = kv.consul.change(part).await.map_err(failed(what.clone()))? {
            let safe = "what somebody else wrote is as they wrote it";
            let error = kv::KvError::Changed { key };
            return Err(Failure { safe: Some(safe.to_owned()), ..Failure::from(error).context(what) });
        }
        written += part.len();
    }
    tell(&steps, |name| kv.key(name), "PushedPolicyList", context)?;
    for problem in &old {
        context.output.note(&format!("pglife: warning: not changed, and not valid: {problem}"));
    }
    let left = steps.values().filter(|step| **step == Step::Left).count();
    if left > 0 {
        context.output.note(&format!("{left} in Consul and not in {}: --delete removes what is left", dir.display()));
    }
    if dry_run {
        context.output.note(&format!("{} changes would be made; nothing was written", changes.len()));
    }
    Ok(if old.is_empty() { Exit::Ok } else { Exit::Warnings })
}

async fn pull(dir: &Path, force: bool, context: &Context) -> Result<Exit, Failure> {
    let kv = Kv::read(context, "nothing was pulled").await?;
    // A key can have any name; that of a file must be a cluster's.
    let (named, unnamed): (Vec<_>, Vec<_>) =
        kv.there.clone().into_iter().partition(|(name, _)| ClusterName::new(name.as_str()).is_ok());
    let wanted: Documents = named.into_iter().collect();
    let unwritable = |error: std::io::Error, path: &Path| {
        let what = format!("{} cannot be written", path.display());
        Failure::new(Exit::Failed, anyhow::Error::new(error).context(what))
    };
    let file = |name: &str| dir.join(format!("{name}.toml"));
    let mut there = Documents::new();
    for name in wanted.keys() {
        match std::fs::read(file(name)) {
            Ok(bytes) => {
                there.insert(name.clone(), bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(unwritable(error, &file(name))),
        }
    }
    let steps = steps(&wanted, &there, false);
    let differing: Vec<String> = steps
        .iter()
        .filter(|(_, step)| **step == Step::Changed)
        .map(|(name, _)| file(name).display().to_string())
        .collect();
    if !differing.is_empty() && !force {
        let what = format!("nothing was pulled: these files say something else: {}", differing.join(", "));
        return Err(Failure::message(Exit::Refused, what)
            .next("compare them: pglife config show DIR; --force replaces them; or pull into another folder"));
    }
    std::fs::create_dir_all(dir).map_err(|error| unwritable(error, dir))?;
    for (name, bytes) in wanted.iter().filter(|(name, _)| steps.get(*name).is_some_and(|step| step.is_a_change())) {
        let file = file(name);
        let permissions = std::fs::metadata(&file).map(|metadata| metadata.permissions());
        let permissions = permissions.unwrap_or_else(|_| std::fs::Permissions::from_mode(0o644));
        configuration::replace(&file, bytes, permissions).map_err(|error| unwritable(error, &file))?;
    }
    tell(&steps, |name| file(name).display().to_string(), "PulledPolicyList", context)?;
    for (name, _) in &unnamed {
        let key = kv.key(name);
        context.output.note(&format!("pglife: warning: {key} was left out: it is not named after a cluster"));
    }
    if wanted.is_empty() {
        context.output.note(&format!("there is no policy below {}", kv.folder));
    }
    Ok(if unnamed.is_empty() { Exit::Ok } else { Exit::Warnings })
}
