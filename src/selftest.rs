//! `pglife selftest`: would a bad backup be noticed? Spoils copies of a backup in every way it knows, and wants each noticed.
//!
//! ```text
//! set ─▶ copied ─▶ whole: must verify and be proven
//!                └▶ for each mutation: copy made whole ─▶ spoiled ─▶ listed? ─▶ verify ─▶ drill ─▶ noticed by …, or MISSED
//! ```
//!
//! * The cluster and its repositories are only read. Copies, their certificates and the record of their drills lie in a folder of
//!   their own, which goes whatever happens, at the latest with the next command.
//! * A mutation that digests do not show comes with digests that are right: what notices it is the comparison of what was restored.
//! * What a backup has nothing of is told as not applicable, never as noticed.

mod archive;
mod copy;
mod mutation;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::backup_set::certificate::Check;
use crate::backup_set::{Commit, Manifest, Selector, SetId};
use crate::cluster::RepoName;
use crate::control::{ControlPlane, Found, OperationError, Progress, Run, Tick, catalogue, failed};
use crate::drill::{self, DrillRequest, Judgement};
use crate::encryption::Keys;
use crate::exit::Exit;
use crate::export;
use crate::policy::Policy;
use crate::settings;
use crate::settings::Endpoint;
use crate::state::{Operation, RUN_FOLDER, Thing};
use crate::storage::{Location, Repository};
use crate::verification;

use copy::{CopyError, SetCopy};
use mutation::Mutation;

/// What is asked for.
#[derive(Debug)]
pub struct SelftestRequest {
    /// The set.
    pub backup: Selector,
    /// The repository, where it is not the policy's first.
    pub repository: Option<RepoName>,
    /// The file with a key, where it is not the configured one.
    pub identity: Option<PathBuf>,
    /// Mutations by their word; none: all.
    pub only: Vec<String>,
    /// The folder for the copies, on the Docker host; `None`: the state directory.
    pub scratch: Option<PathBuf>,
}

/// What came of one mutation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// What was spoiled.
    pub mutation: String,
    /// Whether it was noticed.
    pub result: Noticed,
    /// By what: `listing`, `verify`, or the drill's checks.
    pub by: Vec<String>,
    /// In its words; or why it is not applicable.
    pub found: Vec<String>,
    /// Seconds from the copy to the verdict.
    pub seconds: f64,
}

/// Whether something was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noticed {
    /// It was.
    Noticed,
    /// It was not: a backup like that would be taken for a good one.
    Missed,
    /// The backup has nothing of what would be spoiled.
    NotApplicable,
}

/// What came of all of them.
#[derive(Debug)]
pub struct Selftested {
    /// The set whose copies were spoiled.
    pub set: SetId,
    /// In the order they were made.
    pub trials: Vec<Trial>,
}

impl Selftested {
    /// Those that nobody noticed.
    pub fn missed(&self) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(|trial| trial.result == Noticed::Missed)
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        let noticed = self.trials.iter().any(|trial| trial.result == Noticed::Noticed);
        // A test that tried nothing shows nothing.
        if noticed && self.missed().next().is_none() { Exit::Ok } else { Exit::Failed }
    }
}

/// Spoils copies of a backup of the cluster of `policy`.
pub async fn selftest(
    control: &ControlPlane,
    policy: &Policy,
    request: &SelftestRequest,
    progress: Progress<'_>,
) -> Result<Selftested, OperationError> {
    let what = format!("selftest with a backup of cluster \"{}\" failed", policy.name);
    let safe = "the cluster, its backups and their certificates are as they were";
    if let Some(Endpoint::Tls { .. }) = control.configuration.settings.hosts.get(&policy.host) {
        let why =
            format!("the spoilt copies are in a folder of this machine, and host \"{}\" is another one", policy.host);
        let next = "restore it into a cluster on this machine's engine, back that up, and test that backup";
        return Err(OperationError::new(Exit::Refused, format!("{what}: {why}")).safe(safe).next(next));
    }
    let repositories = control.repositories_of(policy, request.repository.as_ref())?;
    let Found { repository, commit, .. } = repositories.find(control, policy, &request.backup)?;
    let opened = control.manifest(repository, &commit, request.identity.as_deref())?;
    // A word that means nothing is told before anything is copied.
    wanted(&opened.0, &request.only, &what)?;
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    // The throwaway servers of its drills have the name of every drill's.
    let run = control.begin(Operation::Selftest, &policy.name, &engine).await?;
    let folder = request.scratch.as_ref().unwrap_or(&control.configuration.settings.state_dir);
    let scratch = folder.join(format!("{RUN_FOLDER}{}", run.id));
    let tried = in_run(control, &run, policy, request, &scratch, repository, &commit, opened, &what, progress).await;
    run.give_up(&policy.host, &Thing::Folder(scratch)).await;
    run.end(tried.map_err(|error| error.safe(safe)), |tested| {
        let missed: Vec<&str> = tested.missed().map(|trial| trial.mutation.as_str()).collect();
        let words = if missed.is_empty() {
            format!("{} mutations, none missed", tested.trials.len())
        } else {
            format!("missed: {}", missed.join(", "))
        };
        (tested.exit(), words, Some(tested.set.clone()))
    })
    .await
}

/// The mutations that were asked for.
fn wanted(manifest: &Manifest, only: &[String], what: &str) -> Result<Vec<Mutation>, OperationError> {
    let all = Mutation::all(manifest);
    let mut words: Vec<&str> = all.iter().map(Mutation::word).collect();
    words.dedup();
    if let Some(unknown) = only.iter().find(|only| !words.contains(&only.as_str())) {
        let what = format!("{what}: {unknown:?} is no mutation of this backup; there are: {}", words.join(", "));
        return Err(OperationError::new(Exit::Usage, what));
    }
    let asked = |mutation: &Mutation| only.is_empty() || only.iter().any(|only| only == mutation.word());
    Ok(all.into_iter().filter(asked).collect())
}

#[expect(clippy::too_many_arguments, reason = "one caller, with all of it at hand")]
async fn in_run(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    request: &SelftestRequest,
    scratch: &Path,
    repository: &Repository,
    commit: &Commit,
    (manifest, keys): (Manifest, Option<Keys>),
    what: &str,
    progress: Progress<'_>,
) -> Result<Selftested, OperationError> {
    run.will_make(&policy.host, &Thing::Folder(scratch.to_owned()))?;
    let whole = scratch.join("whole");
    // What builds on others is a full set there.
    let identity = request.identity.as_deref();
    let exported = export::export(control, repository, commit, &whole, &[], identity, progress).await?;
    let manifest = exported.manifest.unwrap_or(manifest);
    let mutations = wanted(&manifest, &request.only, what)?;
    let root = scratch.join("repository");
    let location = Location::Local { folder: root.clone() };
    let repository = Repository::init(&location).map_err(failed(what))?;
    let bench = Bench {
        control: apart(control, scratch, &root)?,
        policy: policy_apart(policy),
        copy: Arc::new(SetCopy {
            whole,
            repository,
            root,
            manifest,
            commit: exported.commit,
            keys,
            cancel: control.cancel.clone(),
        }),
        identity: request.identity.clone(),
        what: what.to_owned(),
    };
    progress(Tick::Step("trying the whole copy".to_owned()));
    bench.whole_is_good().await?;
    let mut trials = Vec::new();
    for mutation in mutations {
        progress(Tick::Step(format!("trying {mutation}")));
        trials.push(bench.try_out(mutation).await?);
    }
    Ok(Selftested { set: commit.set.clone(), trials })
}

/// The one repository there is for the copies.
fn repository_name() -> RepoName {
    RepoName::new("selftest").expect("a plain name")
}

/// A control plane that knows the copies only: what it records of them is not the cluster's history.
fn apart(control: &ControlPlane, scratch: &Path, root: &Path) -> Result<ControlPlane, OperationError> {
    let mut configuration = control.configuration.clone();
    configuration.settings.state_dir = scratch.join("state");
    let repository = settings::Repository::Local { path: root.to_owned() };
    configuration.settings.repositories = [(repository_name(), repository)].into();
    configuration.settings.consul = None;
    ControlPlane::open(configuration, control.cancel.clone())
}

fn policy_apart(policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    policy.dump.repositories = vec![repository_name()];
    // They would notice what pglife's own checks must.
    policy.drill.assertions = vec![];
    policy
}

/// Where copies are tried.
struct Bench {
    control: ControlPlane,
    policy: Policy,
    copy: Arc<SetCopy>,
    identity: Option<PathBuf>,
    what: String,
}

/// Who noticed something, and in which words.
type Witness = (Vec<String>, Vec<String>);

impl Bench {
    /// Without this, everything would be noticed by a drill that is always red.
    async fn whole_is_good(&self) -> Result<(), OperationError> {
        self.spoil(None).await?.expect("nothing was asked");
        let noticed = match self.outside().await? {
            Some(noticed) => Some(noticed),
            None => self.inside().await?,
        };
        let Some((by, found)) = noticed else { return Ok(()) };
        let exit =
            if by.iter().any(|by| by == VERIFY || by == LISTING) { Exit::VerifyFailed } else { Exit::DrillFailed };
        let what = format!(
            "{}: the unspoiled copy of {} is not good itself ({}): {}",
            self.what,
            self.copy.commit.set,
            by.join(", "),
            found.join("; ")
        );
        Err(OperationError::new(exit, what)
            .next(format!("see what a drill of it says: pglife drill {}", self.policy.name)))
    }

    async fn try_out(&self, mutation: Mutation) -> Result<Trial, OperationError> {
        let begun = Instant::now();
        let (name, by_digests) = (mutation.to_string(), mutation.shows_in_the_digests());
        let trial = |result, (by, found): Witness| {
            Ok(Trial { mutation: name, result, by, found, seconds: begun.elapsed().as_secs_f64() })
        };
        if let Err(why) = self.spoil(Some(mutation)).await? {
            return trial(Noticed::NotApplicable, (vec![], vec![why.to_owned()]));
        }
        let mut noticed = self.outside().await?;
        if noticed.is_none() && !by_digests {
            noticed = self.inside().await?;
        }
        match noticed {
            Some(witness) => trial(Noticed::Noticed, witness),
            None => trial(Noticed::Missed, (vec![], vec![])),
        }
    }

    /// Makes the copy whole, and spoils it.
    async fn spoil(&self, mutation: Option<Mutation>) -> Result<Result<(), &'static str>, OperationError> {
        let copy = Arc::clone(&self.copy);
        let spoiled = tokio::task::spawn_blocking(move || {
            copy.renew()?;
            mutation.map_or(Ok(Ok(())), |mutation| copy.spoil(&mutation))
        });
        let spoiled: Result<_, CopyError> = spoiled.await.expect("spoiling does not panic");
        spoiled.map_err(|error| {
            let exit = if self.control.cancel.is_cancelled() { Exit::Interrupted } else { Exit::Failed };
            OperationError { source: Some(Box::new(error)), ..OperationError::new(exit, self.what.clone()) }
                .next("name a folder with enough space on the Docker host: --scratch FOLDER")
        })
    }

    /// What can be seen without Docker.
    async fn outside(&self) -> Result<Option<Witness>, OperationError> {
        let (repository, set) = (&self.copy.repository, &self.copy.commit.set);
        let catalogue = catalogue::read(&self.control, repository, Some(&self.policy.name))?;
        let listed = |words: String| Ok(Some((vec![LISTING.to_owned()], vec![words])));
        if let Some(unreadable) = catalogue.unreadable.first() {
            return listed(unreadable.error.chain());
        }
        let Some(commit) = catalogue.sets.iter().find(|commit| commit.set == *set) else {
            return listed("it is not listed as a backup".to_owned());
        };
        let identity = self.identity.as_deref();
        let verified = verification::verify(&self.control, repository, commit, identity, &|_| {}).await?;
        let words = |damage: verification::Damage| format!("{}: {}", damage.object, damage.why);
        Ok((!verified.intact).then(|| (vec![VERIFY.to_owned()], verified.damage.into_iter().map(words).collect())))
    }

    /// What a drill sees.
    async fn inside(&self) -> Result<Option<Witness>, OperationError> {
        let request = DrillRequest {
            backup: Selector::Prefix(self.copy.commit.set.to_string()),
            repository: None,
            identity: self.identity.clone(),
            major: None,
        };
        let drilled = Box::pin(drill::drill(&self.control, &self.policy, &request, &|_| {})).await?;
        let open = match drilled.judgement {
            Judgement::Proven => return Ok(None),
            Judgement::Bad => vec![],
            Judgement::Unknown(open) => open,
        };
        let red = || drilled.certificate.red();
        let mut by: Vec<String> = red().map(|check| check.name.clone()).collect();
        by.extend(open);
        by.dedup();
        Ok(Some((by, red().flat_map(Check::faults).cloned().collect())))
    }
}

/// Who notices that a set is not listed, or cannot be.
const LISTING: &str = "listing";
/// Who notices wrong digests.
const VERIFY: &str = "verify";

#[cfg(test)]
mod tests {
    use super::*;

    fn tested(results: &[Noticed]) -> Selftested {
        let trial = |result: &Noticed| Trial {
            mutation: "flip COMMIT".to_owned(),
            result: *result,
            by: vec![],
            found: vec![],
            seconds: 0.0,
        };
        let set = "20261122T023000Z-dump-aaaaaa".parse().expect("an id");
        Selftested { set, trials: results.iter().map(trial).collect() }
    }

    #[test]
    fn one_that_is_missed_is_a_failure_and_so_is_having_tried_nothing() {
        use super::Noticed::{Missed, NotApplicable, Noticed};
        for (results, exit) in [
            (&[Noticed, NotApplicable][..], Exit::Ok),
            (&[Noticed, Missed], Exit::Failed),
            (&[NotApplicable], Exit::Failed),
            (&[], Exit::Failed),
        ] {
            assert_eq!(tested(results).exit(), exit, "{results:?}");
        }
    }
}
