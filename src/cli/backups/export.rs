//! `pglife backups export`: a backup as an ordinary folder.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Place, policy};
use crate::backup_set::{Selector, SetId};
use crate::cli::{Context, Failure, human, output};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, Found, or_elsewhere};
use crate::exit::Exit;
use crate::export;

#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    set: &'a SetId,
    folder: PathBuf,
    files: usize,
    bytes: u64,
}

pub(super) async fn run(
    control: &ControlPlane,
    place: &Place,
    backup: &Selector,
    to: &Path,
    identity: Option<&Path>,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let repositories = control.repositories_of(policy, place.repo.as_ref())?;
    let Found { repository, commit, elsewhere, .. } = repositories.find(control, policy, backup)?;
    let reporter = context.reporter();
    let exported = export::export(control, repository, &commit, to, identity, &|tick| reporter.tick(tick)).await;
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
    let how = match commit.parent {
        None => "every byte is as it was written",
        Some(_) => "it is a full backup there, which needs no other",
    };
    context.output.note(&format!("{how}; RECOVER.md there tells how to recover without pglife"));
    Ok(Exit::Ok)
}
