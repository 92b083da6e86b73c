//! A dump that is no backup: of a throwaway server, for whoever restores it at once.

use jiff::Timestamp;

use super::{check_complete, describe, plan_dump, work};
use crate::backup_set::{DatabaseProfile, Kind, Manifest, SetId};
use crate::cluster::{DatabaseName, RepoName};
use crate::control::{ControlPlane, OperationError, Progress, Run, close_worker, entropy, failed, worker_threads};
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Engine, Image};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::postgres::Login;
use crate::provision;
use crate::sql::all_tables_but;
use crate::storage::FolderLocation;
use crate::worker::session::{Session, SessionError};
use crate::worker::{Destination, Event, PartOfDatabase, Request, TableName, Trouble};

/// Where it comes from, and where it goes.
pub(crate) struct Aside<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) image: &'a Image,
    /// That of the throwaway server.
    pub(crate) policy: &'a Policy,
    pub(crate) container: &'a Container,
    pub(crate) database: &'a DatabaseName,
    /// The one table whose rows are dumped, and of which relations the files are whole; None: all of the database is there.
    pub(crate) part: Option<(&'a TableName, &'a PartOfDatabase)>,
    /// The folder, and what a worker must see for it.
    pub(crate) place: FolderLocation,
    pub(crate) mount: WorkerMount,
}

/// What came of it.
pub(crate) enum Dumped {
    /// What the manifest of a set would say of the objects.
    Whole(Box<Manifest>),
    /// The table, or the catalogue, needs files that are not there; in words.
    NotThere(String),
}

/// Dumps the roles and one database.
pub(crate) async fn dump_aside(
    control: &ControlPlane,
    run: &Run<'_>,
    aside: Aside<'_>,
    what: &str,
    progress: Progress<'_>,
) -> Result<Dumped, OperationError> {
    let Aside { engine, image, policy, container, database, part, place, mount } = aside;
    let (login, _) = control.login(policy, container)?;
    let (mut session, server) = provision::await_server(
        control,
        run,
        policy,
        engine,
        container,
        image,
        vec![mount],
        what,
        provision::FIRST_START_SECONDS,
        Some(policy.major),
    )
    .await?;
    let Some(profile) = server.databases.iter().find(|one| one.name == *database) else {
        close_worker(session).await;
        let gone = format!("{what}: database \"{database}\" was dropped while the copy was made");
        return Err(OperationError::new(Exit::NotFound, gone).next("restore an older backup: pglife backups list"));
    };
    let mut only_rows = vec![];
    if let Some((table, part)) = part {
        match find_table(control, &mut session, &login, profile, (table, part), what).await {
            Ok(Ok(arguments)) => only_rows = arguments,
            other => {
                close_worker(session).await;
                return other.map(|why| Dumped::NotThere(why.err().unwrap_or_default()));
            }
        }
    }
    let set = SetId::new(Timestamp::now(), Kind::Dump, entropy());
    let threads = worker_threads();
    // What it lies in is removed with the run, and holds no more than the server beside it.
    let mut planned = match plan_dump(policy, server, set, threads, None) {
        Ok(planned) => planned,
        Err(error) => {
            close_worker(session).await;
            return Err(OperationError::new(Exit::Failed, format!("{what}: {error}")));
        }
    };
    planned.databases.retain(|dump| dump.database == *database);
    planned.skipped.clear();
    planned.facts = None;
    if planned.databases.is_empty() {
        close_worker(session).await;
        let why = format!("{what}: database \"{database}\" cannot be dumped: it refuses connections");
        return Err(OperationError::new(Exit::Postgres, why)
            .next("restore all of the copy: the same command without --database"));
    }
    for dump in &mut planned.databases {
        dump.arguments.extend(only_rows.iter().cloned());
    }
    let repository = RepoName::new("scratch-volume").expect("a name");
    let request = Request::Dump(planned.job(login, vec![Destination { repository, place }]));
    let (heard, done) = match work(control, session, &planned, &request, progress).await {
        // It may have asked for what is not there.
        Err(SessionError::Failed { trouble: Trouble::Tool, message }) if part.is_some() => {
            return Ok(Dumped::NotThere(message));
        }
        other => other.map_err(failed(what))?,
    };
    check_complete(&planned, &heard).map_err(|why| OperationError::new(Exit::Failed, format!("{what}: {why}")))?;
    Ok(Dumped::Whole(Box::new(describe(policy, run, container, None, planned, heard, &done))))
}

/// Has the server say where the table is. Returns the arguments with which `pg_dump` dumps the rows of no other, or why they cannot
/// be dumped: the files are not all there.
async fn find_table(
    control: &ControlPlane,
    session: &mut Session,
    login: &Login,
    database: &DatabaseProfile,
    (table, part): (&TableName, &PartOfDatabase),
    what: &str,
) -> Result<Result<Vec<String>, String>, OperationError> {
    let request = Request::FindTable { login: login.clone(), database: database.name.clone(), table: table.clone() };
    let mut found = None;
    let asked = session.request(&request, &control.cancel, |event| {
        if let Event::Table(table) = event {
            found = Some(table);
        }
    });
    let found = match (asked.await, found) {
        (Ok(_), Some(found)) => found,
        (Ok(_), None) => return Ok(Err("the server did not say where it is".to_owned())),
        // Its catalogue may lack what was rewritten while the copy was made.
        (Err(SessionError::Failed { trouble: Trouble::Server | Trouble::Tool | Trouble::Other, message }), _) => {
            return Ok(Err(message));
        }
        (Err(error), _) => return Err(failed(what)(error)),
    };
    // What the catalogue says counts only where all of it was there to be read.
    let files_of_table = found.table.iter().flat_map(|rows| &rows.files);
    if let Some(missing) = found.catalogue.iter().chain(files_of_table).find(|number| !part.has(**number)) {
        return Ok(Err(format!("file {missing} was made while the copy was made, or shortly before")));
    }
    let Some(rows) = found.table else {
        let absent =
            format!("{what}: database \"{}\" has no table {table}, or it has no rows of its own", database.name);
        return Err(OperationError::new(Exit::NotFound, absent).next("write it as the catalogue has it: schema.table"));
    };
    if rows.is_special {
        return Ok(Err(format!("an extension or an access method of its own knows where the rows of {table} are")));
    }
    let sequences = rows.sequences.iter().map(|(schema, name)| (schema.as_str(), name.as_str()));
    let kept: Vec<(&str, &str)> = sequences.chain([(table.schema.as_str(), table.name.as_str())]).collect();
    // In a pattern pg_dump would take each byte of another encoding for a letter.
    if database.encoding != "UTF8" && !kept.iter().all(|(schema, name)| schema.is_ascii() && name.is_ascii()) {
        return Ok(Err(format!("{table}, or a sequence of it, has letters of {} in its name", database.encoding)));
    }
    let others = all_tables_but(&kept).into_iter().map(|pattern| format!("--exclude-table-data={pattern}"));
    Ok(Ok(std::iter::once("--no-blobs".to_owned()).chain(others).collect()))
}
