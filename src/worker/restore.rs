//! Restores a logical set into a new, empty server: folders of tablespaces, roles, then databases; the first error ends it.
//!
//! ```text
//! globals ──▶ template1 ──▶ postgres ──▶ the rest, `jobs` side by side, each with `pg_restore -j`
//! ```
//!
//! `pg_restore -j` needs a file it can seek in: a dump is unpacked into the scratch folder after a look at the free space,
//! and removed when its database is there. Where space is short it goes through a pipe with one job.

mod contents;
mod globals;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::backup_set::{Content, Object, Tablespace};
use crate::cluster::DatabaseName;
use crate::pipeline::pipe::widen;
use crate::pipeline::{PipelineError, Sealed, decompress};
use crate::postgres::tools::{Tool, Toolbox};
use crate::postgres::{self, PostgresError};
use crate::sql::quote_identifier;
use crate::storage::{Folder, ReadAt};

use self::contents::{keep_rows_of, phases};
use self::globals::{Changes, LineEditor};
use super::process::{Line, connect_somewhere};
use super::{DatabaseRestore, Event, Failure, RestoreJob, Trouble, keys_for, pipeline_failure, storage_failure};

/// Scratch space that must stay free beside what is unpacked.
const SPARE: u64 = 64 << 20;

/// Does the job. Returns the versions of the tools used.
pub fn run(job: &RestoreJob, line: &Line, runtime: &tokio::runtime::Handle) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(job.major, &job.login)?;
    let work = Work {
        job,
        line,
        runtime,
        toolbox: &toolbox,
        set: job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?,
        reserved: Mutex::new(0),
        stop: line.stop.child_token(),
    };
    let server = runtime.block_on(connect_somewhere(&job.login))?;
    let bootstrap_role = runtime.block_on(postgres::inspect::profile(&server, &job.login))?.bootstrap_role;
    make_tablespace_folders(&job.tablespaces, &runtime.block_on(data_directory(&server))?)?;
    drop(server);

    work.restore_globals(&job.globals, bootstrap_role.as_str())?;
    // Until 14 everyone could create in schema public, and the archive says nothing of a default. New databases are made
    // from template0, so that is where the old default has to be while they are restored (PostgreSQL 15 release notes).
    let public_schema_changed = !job.from_major.is_at_least(15) && job.major.is_at_least(15);
    if public_schema_changed {
        runtime.block_on(set_template_public_schema(job, bootstrap_role.as_str(), PublicSchema::Until14))?;
    }
    let restored = work.restore_databases();
    if public_schema_changed {
        runtime.block_on(set_template_public_schema(job, bootstrap_role.as_str(), PublicSchema::Since15))?;
    }
    restored?;
    Ok(["pg_restore", "psql"].iter().filter_map(|tool| toolbox.version(tool)).collect())
}

async fn data_directory(server: &tokio_postgres::Client) -> Result<PathBuf, Failure> {
    let row = server.query_one("select pg_catalog.current_setting('data_directory')", &[]).await;
    let row = row.map_err(|error| Failure::from_error(Trouble::Tool, "asking for the data directory", &error))?;
    Ok(PathBuf::from(row.get::<_, String>(0)))
}

/// `CREATE TABLESPACE` wants an empty folder that belongs to the server's user (PostgreSQL manual, CREATE TABLESPACE).
fn make_tablespace_folders(tablespaces: &[Tablespace], data_directory: &Path) -> Result<(), Failure> {
    for tablespace in tablespaces {
        let folder = Path::new(&tablespace.location);
        let make = || -> io::Result<()> {
            let owner = std::fs::metadata(data_directory)?;
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
            chown(folder, Some(owner.uid()), Some(owner.gid()))
        };
        make().map_err(|error| {
            let what = format!("making the folder {} for tablespace \"{}\"", folder.display(), tablespace.name);
            Failure::from_error(Trouble::Other, &what, &error)
        })?;
    }
    Ok(())
}

/// Who may do what in schema public of template0.
#[derive(Debug, Clone, Copy)]
enum PublicSchema {
    /// Owned by the bootstrap role, everyone may create.
    Until14,
    /// Owned by the database's owner, everyone may look.
    Since15,
}

async fn set_template_public_schema(job: &RestoreJob, bootstrap_role: &str, want: PublicSchema) -> Result<(), Failure> {
    let name = |text: &str| DatabaseName::new(text).expect("a plain name");
    let statement = match want {
        PublicSchema::Until14 => format!(
            "alter schema public owner to {}; grant create, usage on schema public to public",
            quote_identifier(bootstrap_role)
        ),
        PublicSchema::Since15 => {
            "alter schema public owner to pg_database_owner; revoke create on schema public from public".to_owned()
        }
    };
    let connectable = |yes: bool| format!("alter database template0 with allow_connections {yes}");
    let failed = |error: &tokio_postgres::Error| {
        let reason = postgres::words(error);
        Failure::from(PostgresError::Query { what: "the old defaults of schema public", reason })
    };
    let server = connect_somewhere(&job.login).await?;
    server.batch_execute(&connectable(true)).await.map_err(|error| failed(&error))?;
    let changed = async {
        let template = postgres::connect(&job.login, &name("template0")).await?;
        template.batch_execute(&statement).await.map_err(|error| failed(&error))
    }
    .await;
    server.batch_execute(&connectable(false)).await.map_err(|error| failed(&error))?;
    changed
}

struct Work<'a> {
    job: &'a RestoreJob,
    line: &'a Line,
    runtime: &'a tokio::runtime::Handle,
    toolbox: &'a Toolbox,
    set: Folder,
    /// Bytes of scratch space that running restores were promised.
    reserved: Mutex<u64>,
    stop: CancellationToken,
}

impl Work<'_> {
    fn open(&self, object: &Object) -> Result<Box<dyn ReadAt>, Failure> {
        self.set.open(&object.name).map_err(|error| storage_failure(&format!("cannot read {}", object.name), &error))
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.job.threads).unwrap_or(NonZeroUsize::MIN)
    }

    /// Unpacks `object` into `sink`, checking every digest.
    fn unpack(&self, object: &Object, sink: &mut dyn Write) -> Result<Result<(), PipelineError>, Failure> {
        let opened = self.open(object)?;
        let expect = Sealed { plain: object.plain, stored: object.stored };
        let keys = keys_for(object, self.job.keys.as_ref())?;
        Ok(decompress(&*opened, Some(&expect), keys, sink, self.threads(), &self.line.meter, &self.stop).map(|_| ()))
    }

    /// Unpacks `object` into the stdin of `tool` and waits for its verdict.
    fn feed(
        &self,
        object: &Object,
        mut tool: Tool,
        through: impl FnOnce(Box<dyn Write>) -> Box<dyn Write>,
    ) -> Result<(), Failure> {
        let stdin = tool.stdin().expect("stdin is piped");
        widen(&stdin);
        let mut sink = through(Box::new(stdin));
        let unpacked = self.unpack(object, &mut sink)?;
        let flushed = sink.flush();
        // Damage must not look like a complete input: the tool is ended before it sees the end of it.
        if matches!(&unpacked, Err(error) if !matches!(error, PipelineError::SinkClosed { .. })) {
            tool.kill();
        }
        drop(sink);
        let ending = tool.wait()?;
        match unpacked {
            Err(PipelineError::SinkClosed { .. }) | Ok(()) => {}
            Err(error) => return Err(pipeline_failure(&format!("unpacking {}", object.name), &error)),
        }
        if !ending.succeeded() {
            return Err(Failure::new(Trouble::Tool, ending.describe()));
        }
        if unpacked.is_err() || flushed.is_err() {
            return Err(Failure::new(
                Trouble::Tool,
                format!("{} stopped reading before the end of {}", ending.tool, object.name),
            ));
        }
        for complaint in ending.complaints.lines() {
            self.line.warn(format!("{} ({}): {complaint}", ending.tool, object.name));
        }
        Ok(())
    }

    fn restore_globals(&self, globals: &Object, bootstrap_role: &str) -> Result<(), Failure> {
        let mut command = self.toolbox.command("psql");
        command
            .args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--dbname=postgres", "--file=-"])
            .stdin(Stdio::piped());
        let psql = Tool::start("psql", command)?;
        let changes = Changes::new(bootstrap_role, self.job.from_major, self.job.major);
        self.feed(globals, psql, |stdin| Box::new(LineEditor::new(stdin, changes)))
            .map_err(|failure| Failure { message: format!("roles and tablespaces: {}", failure.message), ..failure })
    }

    fn restore_databases(&self) -> Result<(), Failure> {
        for database in self.job.databases.iter().filter(|database| database.alone) {
            self.restore_database(database)?;
        }
        let rest = self.job.databases.iter().filter(|database| !database.alone);
        let queue = Mutex::new(rest.collect::<VecDeque<_>>());
        let failures = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.job.jobs.max(1) {
                scope.spawn(|| {
                    while let Some(database) = { queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
                        if self.stop.is_cancelled() {
                            return;
                        }
                        if let Err(failure) = self.restore_database(database) {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                            self.stop.cancel();
                        }
                    }
                });
            }
        });
        if self.line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        failures.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().next().map_or(Ok(()), Err)
    }

    fn restore_database(&self, database: &DatabaseRestore) -> Result<(), Failure> {
        let in_words = |failure: Failure| Failure {
            message: format!("database \"{}\": {}", database.database, failure.message),
            ..failure
        };
        let unpacked = database.object.plain.bytes;
        // The list that picks a table's rows is made from a file, so there must be room for one.
        let room = self.reserve(unpacked).map_err(in_words)?;
        if database.table.is_some() && !room {
            let message =
                format!("database \"{}\": the scratch volume has no room for {unpacked} bytes", database.database);
            return Err(Failure::new(Trouble::Full, message));
        }
        if room {
            let restored = self.restore_from_scratch(database).map_err(in_words);
            *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) -= unpacked;
            restored?;
        } else {
            let mut command = self.toolbox.command("pg_restore");
            command.args(&database.arguments).stdin(Stdio::piped());
            self.feed(&database.object, Tool::start("pg_restore", command)?, |stdin| stdin).map_err(in_words)?;
        }
        self.finish_database(database).map_err(in_words)?;
        self.line.tell(&Event::Restored { database: database.database.clone() });
        Ok(())
    }

    /// Runs the statements for what `pg_dump` left unsaid.
    fn finish_database(&self, database: &DatabaseRestore) -> Result<(), Failure> {
        let Content::Database { afterwards, .. } = &database.object.content else { return Ok(()) };
        if afterwards.is_empty() {
            return Ok(());
        }
        self.runtime.block_on(async {
            let session = postgres::connect(&self.job.login, &database.database).await?;
            // Event triggers of the database are for its users.
            let quietly = "set session_replication_role = replica".to_owned();
            for statement in [&quietly].into_iter().chain(afterwards) {
                session.batch_execute(statement).await.map_err(|error| {
                    let reason = postgres::words(&error);
                    Failure::from(PostgresError::Query { what: "what pg_dump leaves out of schema public", reason })
                })?;
            }
            Ok(())
        })
    }

    /// Promises `bytes` of scratch space to a restore, if there is room.
    fn reserve(&self, bytes: u64) -> Result<bool, Failure> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = rustix::fs::statvfs(self.job.scratch.as_str()).map_err(|error| {
            Failure::from_error(Trouble::Other, "looking at the scratch volume", &io::Error::from(error))
        })?;
        // What others were promised may not be written yet, so it counts twice at worst: that errs towards the pipe.
        let room = stat.f_bavail * stat.f_frsize >= *reserved + bytes + SPARE;
        if room {
            *reserved += bytes;
        }
        Ok(room)
    }

    fn restore_from_scratch(&self, database: &DatabaseRestore) -> Result<(), Failure> {
        let scratch_failed =
            |error: &io::Error| Failure::from_error(Trouble::Other, "writing to the scratch volume", error);
        let mut file = tempfile::Builder::new()
            .suffix(".dump")
            .tempfile_in(&self.job.scratch)
            .map_err(|error| scratch_failed(&error))?;
        self.unpack(&database.object, file.as_file_mut())?
            .map_err(|error| pipeline_failure(&format!("unpacking {}", database.object.name), &error))?;
        // Without --create the list would lack the database's own comment and privileges.
        let mut everything = self.contents(file.path(), "--create")?;
        if let Some(table) = &database.table {
            everything = keep_rows_of(table, &everything)
                .ok_or_else(|| Failure::new(Trouble::Absent, format!("the backup has no rows of a table {table}")))?;
        }
        let phases = phases(&everything, &self.contents(file.path(), "--section=post-data")?);
        let into = format!("--dbname=dbname={}", crate::sql::quote_conninfo(database.database.as_str()));
        let into = ["--no-password".to_owned(), "--exit-on-error".to_owned(), "--enable-row-security".to_owned(), into];
        self.restore_listed(database, file.path(), &phases.first, &database.arguments, self.job.restore_jobs)?;
        self.restore_listed(database, file.path(), &phases.indexes, &into, self.job.restore_jobs)?;
        self.restore_listed(database, file.path(), &phases.rest, &into, 1)
    }

    /// Runs `pg_restore` on what `list` has of the file; nothing where it has nothing.
    fn restore_listed(
        &self,
        database: &DatabaseRestore,
        dump: &Path,
        list: &str,
        arguments: &[String],
        jobs: usize,
    ) -> Result<(), Failure> {
        if list.is_empty() {
            return Ok(());
        }
        let scratch_failed =
            |error: io::Error| Failure::from_error(Trouble::Other, "writing to the scratch volume", &error);
        let mut list_file =
            tempfile::Builder::new().suffix(".list").tempfile_in(&self.job.scratch).map_err(scratch_failed)?;
        list_file.write_all(list.as_bytes()).map_err(scratch_failed)?;
        let mut command = self.toolbox.command("pg_restore");
        command.arg(format!("--jobs={jobs}")).args(arguments).arg("--use-list").arg(list_file.path()).arg(dump);
        let mut tool = Tool::start("pg_restore", command)?;
        // Nothing flows through us meanwhile, so we look ourselves whether to go on.
        let ending = loop {
            if self.stop.is_cancelled() {
                tool.kill();
                break tool.wait()?;
            }
            if tool.has_ended() {
                break tool.wait()?;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        for complaint in ending.complaints.lines().filter(|_| ending.succeeded()) {
            self.line.warn(format!("pg_restore ({}): {complaint}", database.object.name));
        }
        if ending.succeeded() { Ok(()) } else { Err(Failure::new(Trouble::Tool, ending.describe())) }
    }
}

impl Work<'_> {
    /// What `pg_restore --list` says of a dump, with an option that limits or widens it. Names are in the database's encoding,
    /// which need not be UTF-8; they may lose letters here, because `--use-list` goes by the numbers of the entries alone.
    fn contents(&self, dump: &Path, option: &str) -> Result<String, Failure> {
        let mut command = self.toolbox.command("pg_restore");
        command.args(["--list", option]).arg(dump).stdout(Stdio::piped());
        let mut tool = Tool::start("pg_restore --list", command)?;
        let mut contents = Vec::new();
        let read = io::Read::read_to_end(&mut tool.stdout().expect("stdout is piped"), &mut contents);
        let ending = tool.wait()?;
        read.map_err(|error| Failure::from_error(Trouble::Tool, "reading what pg_restore lists", &error))?;
        if !ending.succeeded() {
            return Err(Failure::new(Trouble::Tool, ending.describe()));
        }
        Ok(String::from_utf8_lossy(&contents).into_owned())
    }
}
