//! `pglife repo sync`: make the copies that are missing.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{Context, Failure, human, output};
use crate::cluster::{ClusterName, RepoName};
use crate::control::{ControlPlane, Holdings, OperationError};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::policy::retention::{self, KEEP_OLD, SetFacts, Terms, Verdict};
use crate::sync::{self, Missing};

#[derive(Serialize)]
struct Row {
    cluster: ClusterName,
    set: String,
    from: RepoName,
    to: RepoName,
    stored_bytes: u64,
    outcome: &'static str,
}

pub(super) async fn run(
    control: &ControlPlane,
    only: Option<&RepoName>,
    dry_run: bool,
    context: &Context,
) -> Result<Exit, Failure> {
    if let Some(name) = only
        && !control.configuration.settings.repositories.contains_key(name)
    {
        return Err(control.no_repository(name).into());
    }
    let now = Timestamp::now();
    let reporter = context.reporter();
    let mut rows = Vec::new();
    let mut problems: Vec<OperationError> = Vec::new();
    for policy in control.configuration.policies.values() {
        let concerned = only.is_none_or(|only| policy.dump.repositories.contains(only));
        if policy.dump.repositories.len() < 2 || !concerned {
            continue;
        }
        let mut repositories = control.repositories_of(policy, None)?;
        problems.extend(std::mem::take(&mut repositories.failed).into_iter().map(|(_, error)| error));
        let holdings = repositories.holdings(control, policy)?;
        let keeps = kept(policy, &holdings, now);
        for (to, _) in repositories.open.iter().filter(|(name, _)| only.is_none_or(|only| only == name)) {
            let mut lacking = BTreeSet::new();
            for missing in sync::plan(&holdings.sets, to, &keeps) {
                let first = missing.from[0].clone();
                if let Some(parent) = missing.commit.parent.as_ref().filter(|parent| lacking.contains(*parent)) {
                    let set = missing.commit.set.clone();
                    let what = format!("{set} was not copied to \"{to}\": it builds on {parent}, which was not copied");
                    problems.push(OperationError::new(Exit::VerifyFailed, what));
                    lacking.insert(set);
                    rows.push(row(missing, first, "failed"));
                    continue;
                }
                if dry_run {
                    rows.push(row(missing, first, "missing"));
                    continue;
                }
                let copied = sync::copy(control, policy, &repositories, &missing, &|tick| reporter.tick(tick)).await;
                match copied {
                    Ok(copied) => {
                        // The copy is made, and whoever holds a damaged one is told.
                        let instead = format!("the copy was made from repository \"{}\" instead", copied.from);
                        problems.extend(copied.damage.into_iter().map(|error| error.safe(instead.clone())));
                        rows.push(row(missing, copied.from, "copied"));
                    }
                    Err(error) => {
                        lacking.insert(missing.commit.set.clone());
                        rows.push(row(missing, first, "failed"));
                        if control.cancel.is_cancelled() {
                            reporter.finish();
                            return Err(error.into());
                        }
                        // Damage is one backup's. What else stops one copy mostly stops the next: this repository is done for now.
                        let damage = error.exit == Exit::VerifyFailed;
                        problems.push(error);
                        if !damage {
                            break;
                        }
                    }
                }
            }
        }
    }
    reporter.finish();
    context.output.items("CopyList", &rows, |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "FROM", "TO", "STORED", "STATE"]);
        for row in &rows {
            table.add_row([
                row.cluster.to_string(),
                row.set.clone(),
                row.from.to_string(),
                row.to.to_string(),
                human::bytes(row.stored_bytes),
                row.outcome.to_owned(),
            ]);
        }
        table
    })?;
    let mut problems = problems.into_iter();
    let Some(first) = problems.next() else { return Ok(Exit::Ok) };
    for other in problems {
        context.output.note(&format!("warning: {}", other.chain()));
    }
    Err(first.into())
}

fn row(missing: Missing, from: RepoName, outcome: &'static str) -> Row {
    let Missing { commit, to, .. } = missing;
    Row { cluster: commit.cluster, set: commit.set.to_string(), from, to, stored_bytes: commit.stored_bytes, outcome }
}

/// What retention would keep in a repository that held everything: only that is worth a copy.
fn kept(policy: &Policy, holdings: &Holdings, now: Timestamp) -> BTreeSet<crate::backup_set::SetId> {
    let facts: Vec<SetFacts> =
        holdings.sets.iter().map(|held| SetFacts::of(&held.commit, held.pin.clone(), held.proof().is_some())).collect();
    let terms = Terms { rules: policy.retention.as_ref(), zone: &policy.dump.timezone, keep_old: KEEP_OLD };
    let decisions = retention::decide(&facts, &terms, now);
    let keeps = decisions.into_iter().filter(|decision| matches!(decision.verdict, Verdict::Keep(_)));
    keeps.map(|decision| decision.set.id.clone()).collect()
}
