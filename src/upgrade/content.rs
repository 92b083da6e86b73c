//! What both servers hold, compared; and what the new one held at the commit, kept for a rollback.

use std::io::Write as _;
use std::path::PathBuf;

use super::drive::Scene;
use crate::cluster::DatabaseName;
use crate::control::{ControlPlane, OperationError, close_worker};
use crate::docker::{Container, Image};
use crate::exit::Exit;
use crate::facts::{Algorithm, Facts, Mode, Weight, compare};
use crate::policy::Policy;
use crate::provision;
use crate::worker::session::Session;
use crate::worker::{Event, Request, TakeFactsJob};

/// The facts of the server in `container`, hashed as those of `like`, or as the older server can.
pub(super) async fn facts_of(
    scene: &Scene<'_>,
    policy: &Policy,
    container: &Container,
    image: &Image,
    databases: &[DatabaseName],
    like: Option<&Facts>,
) -> Result<Facts, OperationError> {
    let (mut session, _) = scene.enter(policy, container, image, vec![], provision::FIRST_START_SECONDS).await?;
    let facts = facts_by(scene, &mut session, policy, container, databases, like).await;
    close_worker(session).await;
    facts
}

/// The same by a session beside that server.
pub(super) async fn facts_by(
    scene: &Scene<'_>,
    session: &mut Session,
    policy: &Policy,
    container: &Container,
    databases: &[DatabaseName],
    like: Option<&Facts>,
) -> Result<Facts, OperationError> {
    let (login, _) = scene.control.login(policy, container)?;
    // Both sides hash in the way the older one can.
    let server = u32::from(scene.plan.from.is_at_least(14)) * 140_000;
    let algorithm = like.map_or_else(
        || Algorithm::of_server(server.max(if scene.plan.from.is_at_least(11) { 110_000 } else { 0 })),
        |like| like.algorithm,
    );
    let job = TakeFactsJob { login, databases: databases.to_vec(), mode: Mode::Full, algorithm };
    let taken = |event| match event {
        Event::FactsTaken(facts) => Some(*facts),
        _ => None,
    };
    scene.control.ask_first(session, &Request::TakeFacts(job), scene.what(), taken).await
}

/// Both servers hold the same, or the upgrade fails.
pub(super) fn compare_both(scene: &mut Scene<'_>, expected: &Facts, found: &Facts) -> Result<(), OperationError> {
    let differences = compare(expected, found);
    let (bad, notes): (Vec<_>, Vec<_>) = differences.iter().partition(|one| one.weight == Weight::Bad);
    scene.report.notes = notes.iter().map(ToString::to_string).collect();
    scene.report.compared = Some(expected.extent().into());
    if bad.is_empty() {
        return scene.save_report();
    }
    let list = bad.iter().take(20).map(|one| format!("\n  - {one}")).collect::<Vec<_>>().concat();
    Err(OperationError::new(
        Exit::Failed,
        format!(
            "{}: the new server does not hold what the old one holds; {} differences:{list}",
            scene.what(),
            bad.len()
        ),
    ))
}

/// Where the facts of the new server at the commit lie.
fn place(control: &ControlPlane, upgrade: &str) -> PathBuf {
    control.configuration.settings.state_dir.join("upgrades").join(format!("{upgrade}.facts.json"))
}

/// Keeps what the new server holds before any client enters it.
pub(super) fn keep(scene: &Scene<'_>, facts: &Facts) -> Result<(), OperationError> {
    let path = place(scene.control, &scene.id);
    let write = || -> std::io::Result<()> {
        let folder = path.parent().expect("a file has a folder");
        std::fs::create_dir_all(folder)?;
        // Its mode is 0600.
        let mut half = tempfile::NamedTempFile::new_in(folder)?;
        half.write_all(&facts.to_bytes())?;
        half.as_file().sync_all()?;
        half.persist(&path).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| OperationError {
        source: Some(Box::new(error)),
        ..OperationError::new(Exit::Failed, format!("{}: {} cannot be written", scene.what(), path.display()))
    })
}

/// What the new server held at the commit; None where nobody can say any more.
pub(super) fn kept(scene: &Scene<'_>) -> Option<Facts> {
    Facts::from_bytes(&std::fs::read(place(scene.control, &scene.id)).ok()?).ok()
}

/// Removes the facts of an upgrade from which nobody goes back any more.
pub(super) fn forget(control: &ControlPlane, upgrade: &str) {
    let path = place(control, upgrade);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{} is left: {error}", path.display());
    }
}
