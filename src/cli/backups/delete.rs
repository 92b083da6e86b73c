//! `pglife backups delete`: one backup goes by hand.

use jiff::Timestamp;

use super::{Place, policy};
use crate::backup_set::Selector;
use crate::cli::prune::outcome_words;
use crate::cli::{Context, Failure, human};
use crate::control::{ControlPlane, catalogue};
use crate::exit::Exit;
use crate::prune::{self, Outcome};

/// What is asked for besides the place.
#[derive(Debug, clap::Args)]
pub(super) struct Wish {
    /// Which: an id or its beginning, oldest, @2026-11-01T00:00Z
    #[arg(long, value_name = "SELECTOR")]
    backup: Selector,
    /// Delete without asking
    #[arg(long)]
    yes: bool,
    /// Also the only one, the newest proven one, or the last one before an upgrade
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(
    control: &ControlPlane,
    place: &Place,
    wish: &Wish,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let mut repositories = control.repositories_of(policy, place.repo.as_ref())?;
    if repositories.open.len() + repositories.failed.len() > 1 {
        // The copies elsewhere are what a slip of the hand is mended with.
        let names = human::list(&policy.dump.repositories);
        let what = format!("cluster \"{}\" has several repositories: {names}", policy.name);
        return Err(Failure::message(Exit::Usage, what).next("name the one whose copy is to be deleted, with --repo"));
    }
    let (name, repository) = repositories.open.remove(0);
    let commit = catalogue::find(control, &repository, &policy.name, &wish.backup)?;
    let protections = prune::protections(control, &repository, &name, policy, &commit, Timestamp::now())?;
    prune::refuse_protected(&commit, &protections, wish.force)?;
    for protection in &protections {
        context.output.note(&format!("warning: {protection}"));
    }
    let what = format!(
        "delete backup {} of cluster \"{}\" ({}, completed {}) from repository \"{name}\"",
        commit.set,
        commit.cluster,
        human::bytes(commit.stored_bytes),
        commit.completed_at.strftime("%Y-%m-%d %H:%M:%SZ")
    );
    context.confirm(wish.yes, &what).await?;
    let outcome = prune::delete(control, policy, &name, &repository, &commit, wish.force).await?;
    match outcome {
        Outcome::Deleted => {
            context.output.note(&format!("backup {} is deleted from repository \"{name}\"", commit.set));
            Ok(Exit::Ok)
        }
        Outcome::InUse => Err(Failure::message(
            Exit::LockBusy,
            format!("backup {} was not deleted: it is being read, or has just been pinned", commit.set),
        )
        .next("wait for the restore, verification or export to end, then try again")),
        Outcome::Forbidden | Outcome::PartlyForbidden(_) => {
            let what = format!("backup {} was not deleted: the credentials of repository \"{name}\"", commit.set);
            let failure = match outcome {
                Outcome::PartlyForbidden(keys) => {
                    let keys = keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    let what = format!("{what} do not allow to delete {keys}; it is no longer listed");
                    Failure::message(Exit::Credentials, what).next(format!("with others: pglife repo gc {name}"))
                }
                _ => Failure::message(Exit::Credentials, format!("{what} do not allow to delete its COMMIT"))
                    .next("use credentials that may delete; the backup is whole, and listed as before"),
            };
            Err(failure)
        }
        Outcome::Locked(_) | Outcome::PartlyLocked(_) | Outcome::Kept | Outcome::Needed | Outcome::NotDeleted => {
            context.output.note(&format!(
                "warning: backup {} in repository \"{name}\": {}; the repository forbids more before that date",
                commit.set,
                outcome_words(&outcome)
            ));
            Ok(Exit::Warnings)
        }
    }
}
