//! `pglife backups export`: a backup as an ordinary folder, or files out of one.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Place, policy};
use crate::backup_set::{Selector, SetId};
use crate::cli::{Context, Failure, human, output};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, Found, or_elsewhere};
use crate::exit::Exit;
use crate::export;
use crate::worker::fetch::PathInCopy;

#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    set: &'a SetId,
    folder: PathBuf,
    files: usize,
    bytes: u64,
}

/// What is to be exported.
pub(super) struct Wish<'a> {
    pub(super) backup: &'a Selector,
    /// The files; none: all of it.
    pub(super) paths: &'a [PathInCopy],
    pub(super) identity: Option<&'a Path>,
}

pub(super) async fn run(
    control: &ControlPlane,
    place: &Place,
    wish: &Wish<'_>,
    to: &Path,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let repositories = control.repositories_of(policy, place.repo.as_ref())?;
    let Found { repository, commit, elsewhere, .. } = repositories.find(control, policy, wish.backup)?;
    let reporter = context.reporter();
    let tick = |tick| reporter.tick(tick);
    let exported = export::export(control, repository, &commit, to, wish.paths, wish.identity, &tick).await;
    reporter.finish();
    let exported = exported.map_err(or_elsewhere(&elsewhere))?;
    let item = Item {
        cluster: &exported.commit.cluster,
        set: &exported.commit.set,
        folder: exported.folder.clone(),
        files: exported.files,
        bytes: exported.bytes,
    };
    context.output.items("Export", &[item], |_| {
        let mut table = output::table(&["CLUSTER", "BACKUP", "FILES", "SIZE", "FOLDER"]);
        table.add_row([
            exported.commit.cluster.to_string(),
            exported.commit.set.to_string(),
            exported.files.to_string(),
            human::bytes(exported.bytes),
            exported.folder.display().to_string(),
        ]);
        table
    })?;
    context.output.note(match commit.parent {
        _ if !wish.paths.is_empty() => {
            "what was copied while the server ran is of different moments: only the WAL in the copy makes it agree"
        }
        None => "every byte is as it was written; RECOVER.md there tells how to recover without pglife",
        Some(_) => {
            "it is a full backup there, which needs no other; RECOVER.md there tells how to recover without pglife"
        }
    });
    Ok(Exit::Ok)
}
