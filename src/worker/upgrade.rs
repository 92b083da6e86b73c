//! The worker's part in an upgrade: it surveys the old server, takes the facts of both, and settles the new one.

mod renewal;

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use crate::cluster::{DatabaseName, PgMajor, RoleName};
use crate::facts::Facts;
use crate::postgres::facts::{Asker, Look};
use crate::postgres::installation::Installation;
use crate::postgres::tools::Toolbox;
use crate::postgres::{self, Login, PostgresError, inspect, survey};

use super::files::{make_folder_of, replace};
use super::process::{Line, connect_somewhere};
use super::{BESIDE, Event, Failure, SettleJob, TakeFactsJob, Trouble};

/// Asks the server what stands in the way, and the file system how much is free.
pub(super) async fn survey(login: &Login, line: &Line) -> Result<Vec<String>, Failure> {
    let client = connect_somewhere(login).await?;
    let mut survey = survey::survey(&client).await?;
    // Where the worker does not see the volume, nothing is said of it.
    survey.free_bytes = free_bytes(&survey.data_directory).unwrap_or(u64::MAX);
    let disk = |folder: &str| std::fs::metadata(folder).map(|folder| folder.dev());
    survey.is_own_disk = disk(BESIDE).is_ok_and(|above| disk(&survey.data_directory).is_ok_and(|own| own != above));
    for database in inspect::databases(&client).await?.into_iter().filter(|database| database.connectable) {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        let inside = postgres::connect(login, &database.name).await?;
        survey.look_into(&inside, &database.name).await?;
    }
    line.tell(&Event::Surveyed(Box::new(survey)));
    Ok(vec![])
}

/// Says what the image has, in which this worker runs.
pub(super) fn look_at_image(major: PgMajor, line: &Line) -> Result<Vec<String>, Failure> {
    let installation = Installation::look(&Toolbox::find(major, &nobody())?)?;
    line.tell(&Event::Image(Box::new(installation)));
    Ok(vec![])
}

/// Says what the control file of a data directory says.
pub(super) fn read_control_file(major: PgMajor, pgdata: &str, line: &Line) -> Result<Vec<String>, Failure> {
    let control = Toolbox::find(major, &nobody())?.control_data(Path::new(pgdata))?;
    line.tell(&Event::ControlFile(control));
    Ok(vec![])
}

fn free_bytes(folder: &str) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Says how much is free on the disk with `folder`.
pub(super) fn measure_free_space(folder: &str, line: &Line) -> Result<Vec<String>, Failure> {
    let what = format!("measuring what is free in {folder}");
    let bytes = free_bytes(folder).map_err(|error| Failure::from_error(Trouble::Other, &what, &error))?;
    line.tell(&Event::FreeSpace { bytes });
    Ok(vec![])
}

/// Makes an empty folder with the owner and the mode of another; content with one that is there and empty.
pub(super) fn make_folder(folder: &str, like: &str) -> Result<Vec<String>, Failure> {
    let make = || {
        if let Err(error) = std::fs::create_dir(folder)
            && (error.kind() != io::ErrorKind::AlreadyExists || std::fs::read_dir(folder)?.next().is_some())
        {
            return Err(error);
        }
        let model = std::fs::metadata(like)?;
        std::fs::set_permissions(folder, model.permissions())?;
        chown(folder, Some(model.uid()), Some(model.gid()))
    };
    make().map_err(|error| Failure::from_error(Trouble::Other, &format!("making the folder {folder}"), &error))?;
    Ok(vec![])
}

/// Removes a folder with all that is in it; content where there is none.
pub(super) fn remove_folder(folder: &str) -> Result<Vec<String>, Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::from_error(Trouble::Other, &format!("removing the folder {folder}"), &error))
        }
        _ => Ok(vec![]),
    }
}

/// Says how far the server's transactions are: only one that writes gets an id (PostgreSQL manual, Transactions and Identifiers).
pub(super) async fn count_transactions(login: &Login, line: &Line) -> Result<Vec<String>, Failure> {
    let client = connect_somewhere(login).await?;
    let row = client
        .query_one(
            "select pg_catalog.txid_snapshot_xmin(s), pg_catalog.txid_snapshot_xmax(s) from pg_catalog.txid_current_snapshot() s",
            &[],
        )
        .await
        .map_err(|error| query_failed("its transactions", &error))?;
    let (oldest, next) = (row.get::<_, i64>(0).cast_unsigned(), row.get::<_, i64>(1).cast_unsigned());
    line.tell(&Event::Transactions { next, writing: oldest != next });
    Ok(vec![])
}

/// The login of tools that enter no server.
pub(super) fn nobody() -> Login {
    let user = RoleName::new("postgres").expect("a role");
    Login { host: "/nowhere".to_owned(), port: 5432, user, password: None }
}

/// Takes the facts of a server on which nobody works.
pub(super) async fn take_facts(job: &TakeFactsJob, line: &Line) -> Result<Vec<String>, Failure> {
    let entry = DatabaseName::new("postgres").expect("a plain name");
    let entry = if job.databases.contains(&entry) { entry } else { job.databases.first().cloned().unwrap_or(entry) };
    let asker = Asker { login: &job.login, lock_timeout_ms: 60_000, stop: &line.stop };
    let look = Look { mode: job.mode, algorithm: job.algorithm, snapshot: None };
    let mut taken = Facts::of_server(asker.version(&entry).await?, job.mode, job.algorithm);
    taken.cluster = asker.of_cluster(&entry, &job.databases).await?;
    for database in &job.databases {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        let found = asker.of_database(database, &look).await?;
        taken.databases.insert(database.clone(), found);
    }
    line.tell(&Event::FactsTaken(Box::new(taken)));
    Ok(vec![])
}

/// Carries what no dump holds: access files and `ALTER SYSTEM`; then makes statistics.
pub(super) async fn settle(job: &SettleJob, line: &Line) -> Result<Vec<String>, Failure> {
    for (from, to) in &job.files {
        std::fs::read(from)
            .and_then(|bytes| {
                make_folder_of(Path::new(to))?;
                replace(Path::new(to), &bytes)
            })
            .map_err(|error| Failure::from_error(Trouble::Other, &format!("copying {from} to {to}"), &error))?;
    }
    let client = connect_somewhere(&job.login).await?;
    for statement in &job.statements {
        client.batch_execute(statement).await.map_err(|error| query_failed("a setting of ALTER SYSTEM", &error))?;
    }
    drop(client);
    if let Some(renew) = job.renew {
        for database in &job.analyse {
            renewal::renew(&job.login, database, renew, line).await?;
        }
    }
    for database in &job.analyse {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        let client = postgres::connect(&job.login, database).await?;
        // Partitioned tables included, which autovacuum never analyses (PostgreSQL manual, ANALYZE).
        client.batch_execute("analyze").await.map_err(|error| query_failed("statistics", &error))?;
    }
    let client = connect_somewhere(&job.login).await?;
    client.batch_execute("checkpoint").await.map_err(|error| query_failed("a checkpoint", &error))?;
    Ok(vec![])
}

fn query_failed(what: &'static str, error: &tokio_postgres::Error) -> Failure {
    PostgresError::Query { what, reason: postgres::words(error) }.into()
}
