//! What must hold before anything is touched: the window, a proven backup, a rehearsal. The cluster serves meanwhile.
//!
//! ```text
//! window open? ─▶ a proven backup that is young enough, else take one and drill it ─▶ rehearsal: the newest one in the new major
//! ```
//!
//! Each part is a run of its own, as if the operator had called `pglife backup` and `pglife drill`.

use jiff::Timestamp;

use super::journal::Phase;
use super::look::Prepared;
use super::plan::Method;
use super::record::{Report, last};
use crate::backup;
use crate::backup_set::certificate::{Check, Outcome};
use crate::backup_set::{Kind, Selector, SetId};
use crate::cluster::PgMajor;
use crate::control::{ControlPlane, Held, OperationError, Progress, Tick};
use crate::drill::{self, DrillRequest, Drilled, Judgement};
use crate::exit::Exit;
use crate::policy::{Policy, UpgradePolicy};

/// Findings of a check that are told; the drill has all of them.
const MOST_FINDINGS: usize = 20;

/// Refuses outside the policy's window.
pub(super) fn check_window(
    wanted: &UpgradePolicy,
    at_any_time: bool,
    now: Timestamp,
    what: &str,
) -> Result<(), OperationError> {
    match wanted.window {
        Some(window) if !at_any_time && !window.is_open(now, &wanted.timezone) => Err(OperationError::new(
            Exit::Refused,
            format!(
                "{what}: its window is {window} ({}), and it is {} there",
                wanted.timezone.as_str(),
                clock(wanted, now)
            ),
        )
        .safe("nothing was touched")
        .next("wait for the window; if it cannot wait: --outside-window")),
        _ => Ok(()),
    }
}

fn clock(wanted: &UpgradePolicy, now: Timestamp) -> String {
    wanted.timezone.show(now).strftime("%H:%M").to_string()
}

/// What [`pass`] does, for the plan.
pub(super) fn steps(wanted: &UpgradePolicy, rehearse: bool, to: PgMajor) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(age) = wanted.require_proven {
        steps.push(format!("take a backup and prove it by a drill, unless one not older than {age} is proven"));
    }
    if rehearse || wanted.rehearse {
        steps.push(format!(
            "restore the newest backup into the new major, in a throwaway server of pglife/postgres:{to}, and compare"
        ));
    }
    steps
}

/// Sees to a proven backup and a rehearsal, where they are wanted; notes both in the report.
pub(super) async fn pass(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    what: &str,
    progress: Progress<'_>,
) -> Result<Report, OperationError> {
    let mut report = Report::default();
    let safe = |error: OperationError| error.safe("the cluster serves as before; nothing of it was touched");
    if let Some(age) = policy.upgrade.require_proven {
        let since = Timestamp::now().checked_sub(age.as_signed()).unwrap_or(Timestamp::MIN);
        // What was restored in place is not what older backups hold, though its server has the identifier of theirs.
        let restored = last(control, &policy.name)?
            .filter(|last| last.phase == Phase::Finalized && matches!(last.plan.method, Method::Restore(_)))
            .and_then(|last| last.report.stopped_at);
        let is_of_these_data = |held: &Held| restored.is_none_or(|at| held.commit.completed_at >= at);
        let proven = newest(control, policy, prepared, |held| {
            held.proof().is_some() && held.commit.completed_at >= since && is_of_these_data(held)
        })?;
        report.proven = Some(match proven {
            Some(set) => set,
            None => prove(control, policy, prepared, what, progress).await.map_err(safe)?,
        });
    }
    if policy.upgrade.rehearse || prepared.rehearse {
        let of_dump = |held: &Held| held.commit.kind == Kind::Dump;
        let set = match newest(control, policy, prepared, of_dump)? {
            Some(set) => set,
            None => take(control, policy, what, progress).await.map_err(safe)?,
        };
        let seconds = rehearse(control, policy, prepared, &set, what, progress).await.map_err(safe)?;
        report.rehearsed = Some(seconds);
    }
    Ok(report)
}

/// The newest set of this server that `fits`.
fn newest(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    fits: impl Fn(&Held) -> bool,
) -> Result<Option<SetId>, OperationError> {
    let plan = &prepared.plan;
    let holdings = control.repositories_of(policy, None)?.holdings(control, policy)?;
    let of_server = |held: &&Held| {
        let lineage = held.commit.lineage;
        lineage.major == plan.from && lineage.system_identifier == plan.system_identifier
    };
    Ok(holdings.sets.iter().rev().filter(of_server).find(|held| fits(held)).map(|held| held.commit.set.clone()))
}

async fn take(
    control: &ControlPlane,
    policy: &Policy,
    what: &str,
    progress: Progress<'_>,
) -> Result<SetId, OperationError> {
    progress(Tick::Step("taking a backup, while the cluster serves".to_owned()));
    let taken = backup::take(control, policy, Kind::Dump, None, progress).await?;
    if taken.exit == Exit::Failed {
        return Err(OperationError::new(Exit::Failed, format!("{what}: {}", taken.warnings.join("; "))));
    }
    Ok(taken.commit.set)
}

/// Takes a backup and drills it.
async fn prove(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    what: &str,
    progress: Progress<'_>,
) -> Result<SetId, OperationError> {
    let set = take(control, policy, what, progress).await?;
    progress(Tick::Step("proving it in a throwaway server".to_owned()));
    let drilled = drill_of(control, policy, prepared, &set, false, progress).await?;
    match &drilled.judgement {
        Judgement::Proven => Ok(set),
        judgement => Err(OperationError::new(
            drilled.exit(),
            format!("{what}: `require_proven` asks for a proven backup, and {set} is {judgement}:{}", list(&drilled)),
        )
        .next(format!("see why: pglife drill {} --backup {set}", policy.name))),
    }
}

/// Restores a backup into the new major, in a throwaway server, and compares.
async fn rehearse(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    set: &SetId,
    what: &str,
    progress: Progress<'_>,
) -> Result<f64, OperationError> {
    let to = prepared.plan.to;
    progress(Tick::Step(format!("rehearsing: {set} goes into a throwaway server of PostgreSQL {to}")));
    let drilled = drill_of(control, policy, prepared, set, true, progress).await?;
    match &drilled.judgement {
        Judgement::Proven => Ok(drilled.certificate.rto_seconds),
        judgement => {
            let came = match judgement {
                Judgement::Bad => "failed".to_owned(),
                judgement => format!("was {judgement}"),
            };
            Err(OperationError::new(
                Exit::Refused,
                format!("{what}: its rehearsal with {set} in PostgreSQL {to} {came}:{}", list(&drilled)),
            )
            .next(format!(
                "mend in the cluster what is named; try it again: pglife drill {} --backup latest:dump --to {to}",
                policy.name
            )))
        }
    }
}

async fn drill_of(
    control: &ControlPlane,
    policy: &Policy,
    prepared: &Prepared,
    set: &SetId,
    in_new_major: bool,
    progress: Progress<'_>,
) -> Result<Drilled, OperationError> {
    let request = DrillRequest {
        backup: Selector::Prefix(set.to_string()),
        repository: None,
        identity: prepared.identity.clone(),
        major: in_new_major.then_some(prepared.plan.to),
    };
    Box::pin(drill::drill(control, policy, &request, progress)).await
}

/// What the checks found that did not pass.
fn list(drilled: &Drilled) -> String {
    drilled.certificate.red().map(words).collect()
}

fn words(check: &Check) -> String {
    let found = check.faults().take(MOST_FINDINGS).map(|found| format!("\n      {found}")).collect::<Vec<_>>().concat();
    let outcome = match check.outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Unknown => "could not be made",
    };
    format!("\n  - {}: {outcome}{found}", check.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        crate::policy::file::example(&format!("[cluster]\nmajor = '17'\n{text}"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn outside_its_window_an_upgrade_is_refused_unless_that_is_meant() {
        let policy = policy("[upgrade]\ntimezone = 'Europe/Berlin'\nwindow = { start = '22:00', end = '05:00' }\n");
        let check = |now, any| check_window(&policy.upgrade, any, at(now), "upgrade");
        assert!(check("2026-01-10T23:00:00Z", false).is_ok());
        let error = check("2026-01-10T12:00:00Z", false).expect_err("closed");
        assert_eq!(error.exit, Exit::Refused);
        assert_eq!(error.what, "upgrade: its window is 22:00 to 05:00 (Europe/Berlin), and it is 13:00 there");
        assert!(check("2026-01-10T12:00:00Z", true).is_ok());
    }

    #[test]
    fn without_a_window_it_may_always_begin() {
        assert!(check_window(&policy("").upgrade, false, at("2026-01-10T12:00:00Z"), "upgrade").is_ok());
    }

    #[test]
    fn the_plan_names_the_image_of_a_rehearsal() {
        let wanted = policy("").upgrade;
        assert_eq!(steps(&wanted, false, PgMajor::since_10(18)), [""; 0]);
        let told = steps(&wanted, true, PgMajor::since_10(18));
        assert!(told.len() == 1 && told[0].contains("pglife/postgres:18"), "{told:?}");
    }
}
