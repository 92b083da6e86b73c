//! `pglife prune`: show which backups stay and which go, and why; delete with `--confirm`.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::backup_set::{Kind, SetId};
use crate::cluster::{ClusterName, Lineage, RepoName};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::retention::Verdict;
use crate::prune::{self, Outcome, PlannedSet, PrunePlan};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster; not needed when there is only one
    cluster: Option<ClusterName>,
    /// Only this repository, instead of all of the policy's
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepoName>,
    /// Delete; without it the plan is shown and nothing is changed
    #[arg(long)]
    confirm: bool,
}

/// One set, as programs read it.
#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    repository: &'a RepoName,
    set: &'a SetId,
    kind: Kind,
    lineage: Lineage,
    completed_at: Timestamp,
    stored_bytes: u64,
    /// `keep` or `delete`.
    verdict: &'static str,
    /// `planned`, `kept`, `deleted`, `locked`, `partly-locked`, `forbidden`, `partly-forbidden`, `in-use`, `not-deleted`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locked_until: Option<Timestamp>,
    reasons: Vec<ReasonItem>,
}

#[derive(Serialize)]
struct ReasonItem {
    rule: &'static str,
    text: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let policy = control.configuration.select(args.cluster.as_ref())?.clone();
    if !args.confirm {
        let plans = prune::plan(&control, &policy, args.repo.as_ref(), Timestamp::now())?;
        let planned: Vec<(&PrunePlan, Vec<Option<Outcome>>)> =
            plans.iter().map(|plan| (plan, vec![None; plan.sets.len()])).collect();
        show(&planned, context)?;
        note_plan(&plans, &policy, args.repo.as_ref(), context);
        return Ok(warn(&plans, context));
    }
    let result = prune::prune(&control, &policy, args.repo.as_ref()).await?;
    let done: Vec<(&PrunePlan, Vec<Option<Outcome>>)> = result
        .pruned
        .iter()
        .map(|pruned| (&pruned.plan, pruned.outcomes.iter().cloned().map(Some).collect()))
        .collect();
    show(&done, context)?;
    let exit = note_outcomes(&done, context);
    if let Some(failure) = result.failure {
        return Err(failure.into());
    }
    Ok(exit.max(warn(done.iter().map(|(plan, _)| *plan), context)))
}

fn show(planned: &[(&PrunePlan, Vec<Option<Outcome>>)], context: &Context) -> Result<(), Failure> {
    let rows: Vec<(&RepoName, &PlannedSet, Option<&Outcome>)> = planned
        .iter()
        .flat_map(|(plan, outcomes)| {
            plan.sets.iter().zip(outcomes).map(|(set, outcome)| (&plan.repository, set, outcome.as_ref()))
        })
        .collect();
    let items: Vec<Item<'_>> = rows.iter().map(|(name, set, outcome)| item(name, set, *outcome)).collect();
    context.output.items("PrunePlan", &items, |wide| {
        let mut heads = vec!["REPOSITORY", "BACKUP", "COMPLETED", "STORED", "ACTION", "WHY"];
        if wide {
            heads.push("LINEAGE");
        }
        let mut table = output::table(&heads);
        for (name, set, outcome) in &rows {
            let mut row = vec![
                name.to_string(),
                set.commit.set.to_string(),
                set.commit.completed_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                human::bytes(set.commit.stored_bytes),
                action(&set.verdict, *outcome),
                reasons(&set.verdict).into_iter().map(|reason| reason.text).collect::<Vec<_>>().join(", "),
            ];
            row.extend(wide.then(|| set.commit.lineage.to_string()));
            table.add_row(row);
        }
        table
    })
}

fn item<'a>(repository: &'a RepoName, planned: &'a PlannedSet, outcome: Option<&Outcome>) -> Item<'a> {
    let commit = &planned.commit;
    let (outcome, locked_until) = match outcome {
        None => ("planned", None),
        Some(Outcome::Kept) => ("kept", None),
        Some(Outcome::Deleted) => ("deleted", None),
        Some(Outcome::Locked(until)) => ("locked", *until),
        Some(Outcome::PartlyLocked(until)) => ("partly-locked", *until),
        Some(Outcome::Forbidden) => ("forbidden", None),
        Some(Outcome::PartlyForbidden(_)) => ("partly-forbidden", None),
        Some(Outcome::InUse) => ("in-use", None),
        Some(Outcome::Needed) => ("needed", None),
        Some(Outcome::NotDeleted) => ("not-deleted", None),
    };
    Item {
        cluster: &commit.cluster,
        repository,
        set: &commit.set,
        kind: commit.kind,
        lineage: commit.lineage,
        completed_at: commit.completed_at,
        stored_bytes: commit.stored_bytes,
        verdict: if matches!(planned.verdict, Verdict::Keep(_)) { "keep" } else { "delete" },
        outcome,
        locked_until,
        reasons: reasons(&planned.verdict),
    }
}

fn reasons(verdict: &Verdict) -> Vec<ReasonItem> {
    match verdict {
        Verdict::Keep(reasons) => {
            reasons.iter().map(|reason| ReasonItem { rule: reason.rule(), text: reason.to_string() }).collect()
        }
        Verdict::Delete(expiry) => vec![ReasonItem { rule: "expired", text: expiry.to_string() }],
    }
}

fn action(verdict: &Verdict, outcome: Option<&Outcome>) -> String {
    match (verdict, outcome) {
        (Verdict::Keep(_), _) => "keep".to_owned(),
        (Verdict::Delete(_), None) => "delete".to_owned(),
        (Verdict::Delete(_), Some(outcome)) => outcome_words(outcome),
    }
}

/// What was done about a set, in a table.
pub(super) fn outcome_words(outcome: &Outcome) -> String {
    let date = |until: &Option<Timestamp>| until.map(|until| format!(" until {until}")).unwrap_or_default();
    match outcome {
        Outcome::Kept => "keep".to_owned(),
        Outcome::Deleted => "deleted".to_owned(),
        Outcome::Locked(until) => format!("locked{}", date(until)),
        Outcome::PartlyLocked(until) => format!("gone, parts locked{}", date(until)),
        Outcome::Forbidden => "forbidden".to_owned(),
        Outcome::PartlyForbidden(keys) => format!("gone, but for {}", objects(keys.len())),
        Outcome::InUse => "in use".to_owned(),
        Outcome::Needed => "needed".to_owned(),
        Outcome::NotDeleted => "not deleted".to_owned(),
    }
}

fn note_plan(plans: &[PrunePlan], policy: &Policy, only: Option<&RepoName>, context: &Context) {
    let going = plans.iter().flat_map(PrunePlan::going).count();
    let bytes: u64 = plans.iter().flat_map(PrunePlan::going).map(|planned| planned.commit.stored_bytes).sum();
    context.output.note(&match (policy.retention, going) {
        (None, _) => format!(
            "nothing would be deleted: the policy of \"{}\" has no [retention], so every backup stays",
            policy.name
        ),
        (Some(_), 0) => "nothing would be deleted".to_owned(),
        (Some(_), _) => format!(
            "nothing was deleted; {} ({}) would go: pglife prune {}{} --confirm",
            backups(going),
            human::bytes(bytes),
            policy.name,
            only.map(|name| format!(" --repo {name}")).unwrap_or_default()
        ),
    });
}

fn note_outcomes(done: &[(&PrunePlan, Vec<Option<Outcome>>)], context: &Context) -> Exit {
    let mut exit = Exit::Ok;
    let (mut deleted, mut bytes) = (0, 0);
    for (plan, outcomes) in done {
        for (planned, outcome) in plan.sets.iter().zip(outcomes) {
            let set = &planned.commit.set;
            let date =
                |until: &Option<Timestamp>| until.map_or("a date it does not tell".to_owned(), |at| at.to_string());
            match outcome {
                Some(Outcome::Deleted) => {
                    deleted += 1;
                    bytes += planned.commit.stored_bytes;
                }
                Some(Outcome::Locked(until)) => {
                    exit = exit.max(Exit::Warnings);
                    let until = date(until);
                    context.output.note(&format!(
                        "warning: {set} is locked by the repository \"{}\" until {until}; it is whole, and listed until a later prune",
                        plan.repository
                    ));
                }
                Some(Outcome::PartlyLocked(until)) => {
                    exit = exit.max(Exit::Warnings);
                    let until = date(until);
                    context.output.note(&format!(
                        "warning: {set} is no longer listed, but the repository \"{}\" locks parts of it until {until}; then: pglife repo gc {}",
                        plan.repository, plan.repository
                    ));
                }
                Some(Outcome::Needed) => {
                    context.output.note(&format!("warning: {set} stays until one that builds on it is gone too"));
                }
                Some(Outcome::Forbidden) => {
                    exit = exit.max(Exit::Credentials);
                    context.output.note(&format!(
                        "warning: {set}: the credentials of repository \"{}\" do not allow to delete its COMMIT; it is whole, and listed as before",
                        plan.repository
                    ));
                }
                Some(Outcome::PartlyForbidden(keys)) => {
                    exit = exit.max(Exit::Credentials);
                    let keys = keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    context.output.note(&format!(
                        "warning: {set} is no longer listed, but the credentials of repository \"{0}\" do not allow to delete {keys}; with others: pglife repo gc {0}",
                        plan.repository
                    ));
                }
                Some(Outcome::InUse) => context.output.note(&format!(
                    "{set} stays for now: it is being read, or has just been pinned; the next prune looks again"
                )),
                Some(Outcome::Kept | Outcome::NotDeleted) | None => {}
            }
        }
    }
    context.output.note(&format!("{} deleted, {} freed", backups(deleted), human::bytes(bytes)));
    if exit == Exit::Credentials {
        context.output.note(
            "prune with credentials that may delete (`credentials_file` of a pglife.toml elsewhere), or let the bucket's lifecycle do it",
        );
    }
    exit
}

/// Tells what the plan left alone.
fn warn<'p>(plans: impl IntoIterator<Item = &'p PrunePlan>, context: &Context) -> Exit {
    let mut exit = Exit::Ok;
    for plan in plans {
        for why in &plan.unreadable {
            exit = Exit::Warnings;
            context.output.note(&format!("warning: left alone, because it cannot be read: {why}"));
        }
        if plan.uncommitted > 0 {
            context.output.note(&format!(
                "{} in repository \"{}\" have no COMMIT (a backup that is running, or leftovers): pglife repo gc {} clears what is old",
                folders(plan.uncommitted),
                plan.repository,
                plan.repository
            ));
        }
    }
    exit
}

fn backups(count: usize) -> String {
    if count == 1 { "1 backup".to_owned() } else { format!("{count} backups") }
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}

fn folders(count: usize) -> String {
    if count == 1 { "1 folder".to_owned() } else { format!("{count} folders") }
}
