//! A logical backup: globals and every database of the plan, each from the server's own tool through the pipeline into
//! the set's folder in each repository.
//!
//! An object counts only when everything agrees: the tool's exit code, its stderr (told on), the number of bytes, and for a
//! database what `pg_restore -l` says of the object *as it lies on disk*.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::backup_set::{Content, Object};
use crate::cluster::DatabaseName;
use crate::encryption::{Keys, Recipients};
use crate::facts::DatabaseFacts;
use crate::pipeline::frames::FrameBytes;
use crate::pipeline::pipe::{PipeSource, widen};
use crate::pipeline::{Compression, Meter, PipelineError, Sealed, compress, decompress};
use crate::postgres::tools::{Tool, Toolbox};
use crate::postgres::{self, inspect};
use crate::storage::Folder;

use super::destinations::Destinations;
use super::process::{Line, connect_somewhere};
use super::{DatabaseDump, DumpJob, Event, Failure, Trouble, pipeline_failure, storage_failure};

mod facts;

/// Plain bytes in a frame of a dump. Small, so that several databases side by side stay within the memory promised.
const FRAME: u32 = 2 << 20;

/// Does the job. Returns the versions of the tools used.
pub fn run(job: &DumpJob, line: &Line, runtime: &tokio::runtime::Handle) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(job.major, &job.login)?;
    let work = Work {
        job,
        line,
        runtime,
        toolbox: &toolbox,
        destinations: Destinations::open(&job.destinations, line)?,
        sealing: job.recipients.as_ref().map(Recipients::with_reader),
        // One database that fails ends the others: an incomplete set is no backup.
        stop: line.stop.child_token(),
        facts: Mutex::default(),
    };
    let cluster_before = work.cluster_facts();
    let globals = work.produce(
        "pg_dumpall",
        &["--globals-only", "--no-password"].map(str::to_owned),
        &job.globals,
        &work.unsaid_globals()?,
    )?;
    line.tell(&Event::Object(Work::object(job.globals.clone(), Content::Globals, &globals)));
    let cluster_after = work.cluster_facts();

    let queue = Mutex::new(job.databases.iter().collect::<VecDeque<_>>());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..job.jobs.max(1) {
            scope.spawn(|| {
                while let Some(database) = { queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
                    if work.stop.is_cancelled() {
                        return;
                    }
                    if let Err(failure) = work.dump(database) {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                        work.stop.cancel();
                    }
                }
            });
        }
    });
    if line.stop.is_cancelled() {
        return Err(Failure::new(Trouble::Cancelled, "cancelled"));
    }
    // The first one is the cause; those that it cancelled say only that.
    if let Some(failure) = failures.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().next() {
        return Err(failure);
    }
    if let Some(wanted) = &job.facts {
        work.write_facts(wanted, cluster_before, cluster_after)?;
    }
    Ok(["pg_dump", "pg_dumpall", "pg_restore"].iter().filter_map(|tool| toolbox.version(tool)).collect())
}

struct Work<'a> {
    job: &'a DumpJob,
    line: &'a Line,
    runtime: &'a tokio::runtime::Handle,
    toolbox: &'a Toolbox,
    destinations: Destinations<'a>,
    /// Whom objects are sealed to, and a key of this run alone: what was written is read back, and no other key is here.
    sealing: Option<(Recipients, Keys)>,
    stop: CancellationToken,
    /// What was seen of each database so far, or why nothing was.
    facts: Mutex<BTreeMap<DatabaseName, Result<DatabaseFacts, String>>>,
}

struct Produced {
    sealed: Sealed,
    seconds: f64,
}

impl Work<'_> {
    fn object(name: String, content: Content, produced: &Produced) -> Object {
        let Sealed { plain, stored } = produced.sealed;
        Object { name, content, stored, plain, seconds: produced.seconds }
    }

    fn dump(&self, database: &DatabaseDump) -> Result<(), Failure> {
        let what = format!("database \"{}\"", database.database);
        let dumped = self
            .unsaid(database)
            .and_then(|afterwards| self.dump_and_look(database).map(|(produced, facts)| (afterwards, produced, facts)));
        let (afterwards, produced, facts) = match dumped {
            Ok(dumped) => dumped,
            Err(failure)
                if matches!(failure.trouble, Trouble::Tool | Trouble::Server) && self.is_gone(database, &failure) =>
            {
                self.line.tell(&Event::Vanished { database: database.database.clone() });
                return Ok(());
            }
            Err(failure) => return Err(Failure { message: format!("{what}: {}", failure.message), ..failure }),
        };
        let mut contents = String::new();
        let contents = Mutex::new(&mut contents);
        self.destinations
            .each(|folder| {
                let listed = self.check(folder, &database.object, &produced.sealed)?;
                **contents.lock().unwrap_or_else(PoisonError::into_inner) = listed;
                Ok(())
            })
            .map_err(|failure| Failure { message: format!("{what}: {}", failure.message), ..failure })?;
        if let Some(facts) = facts {
            let contents = contents.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.keep_facts(database, facts, contents);
        }
        let content = Content::Database { database: database.database.clone(), afterwards };
        self.line.tell(&Event::Object(Self::object(database.object.clone(), content, &produced)));
        Ok(())
    }

    /// SQL for what `pg_dump` will leave out of this database.
    fn unsaid(&self, database: &DatabaseDump) -> Result<Vec<String>, Failure> {
        self.runtime.block_on(async {
            let client = postgres::connect(&self.job.login, &database.database).await?;
            Ok(inspect::unsaid(&client, self.job.major, &self.job.bootstrap_role).await?)
        })
    }

    /// True when the server itself says that the database is no longer there. No answer is no proof.
    ///
    /// `drop database … with (force)` ends the sessions first, and then takes its time: a dump that was ended from outside
    /// asks again for a while.
    fn is_gone(&self, database: &DatabaseDump, failure: &Failure) -> bool {
        let asks = if failure.message.contains("terminating connection") { 15 } else { 1 };
        self.runtime.block_on(async {
            for ask in 0..asks {
                if ask > 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                let Ok(client) = connect_somewhere(&self.job.login).await else { continue };
                if matches!(inspect::database_exists(&client, database.oid).await, Ok(false)) {
                    return true;
                }
            }
            false
        })
    }

    /// SQL for what `pg_dumpall --globals-only` will leave out.
    fn unsaid_globals(&self) -> Result<String, Failure> {
        let statements = self.runtime.block_on(async {
            let client = connect_somewhere(&self.job.login).await?;
            inspect::settings_of_every_role(&client).await
        })?;
        Ok(statements.into_iter().map(|statement| statement + "\n").collect())
    }

    /// Runs `tool` into the object `name`, with `more` after what it writes. The object exists only if the tool ended well.
    fn produce(&self, tool: &str, arguments: &[String], name: &str, more: &str) -> Result<Produced, Failure> {
        let begun = Instant::now();
        let mut upload = self.destinations.begin(name)?;
        let mut command = self.toolbox.command(tool);
        command.args(arguments).stdout(Stdio::piped());
        let mut child = Tool::start(tool, command)?;
        let stdout = child.stdout().expect("stdout is piped");
        let compression = Compression {
            codec: self.job.codec,
            threads: NonZeroUsize::new(self.job.threads).unwrap_or(NonZeroUsize::MIN),
            frame_bytes: FrameBytes::new(FRAME).expect("a frame size within limits"),
        };
        let recipients = self.sealing.as_ref().map(|(recipients, _)| recipients);
        let mut source = PipeSource::new(stdout).chain(more.as_bytes());
        let streamed = compress(&mut source, &mut upload, compression, recipients, &self.line.meter, &self.stop);
        if streamed.is_err() {
            child.kill();
        }
        let ending = child.wait()?;
        let sealed = streamed.map_err(|error| pipeline_failure(&format!("writing {name}"), &error))?;
        if !ending.succeeded() {
            return Err(Failure::new(Trouble::Tool, ending.describe()));
        }
        if sealed.plain.bytes == 0 {
            return Err(Failure::new(Trouble::Tool, format!("{tool} ended well but wrote nothing")));
        }
        for complaint in ending.complaints.lines() {
            self.line.warn(format!("{tool} ({name}): {complaint}"));
        }
        upload.commit()?;
        Ok(Produced { sealed, seconds: begun.elapsed().as_secs_f64() })
    }

    /// Reads the object back far enough for `pg_restore -l` to list it, and returns the list.
    fn check(&self, folder: &Folder, name: &str, sealed: &Sealed) -> Result<String, Failure> {
        let object = folder.open(name).map_err(|error| storage_failure(&format!("cannot read {name} back"), &error))?;
        let mut command = self.toolbox.command("pg_restore");
        command.arg("--list").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Tool::start("pg_restore --list", command)?;
        let mut stdin = child.stdin().expect("stdin is piped");
        let mut stdout = child.stdout().expect("stdout is piped");
        // Beside the feeding: it may print before it has stopped reading.
        let listing = std::thread::spawn(move || {
            let mut listed = Vec::new();
            stdout.read_to_end(&mut listed).map(|_| listed)
        });
        widen(&stdin);
        // Not the meter of the run: these bytes were counted when they were written.
        let keys = self.sealing.as_ref().map(|(_, keys)| keys);
        let read = decompress(&*object, Some(sealed), keys, &mut stdin, NonZeroUsize::MIN, &Meter::new(), &self.stop);
        // It stops reading as soon as it has the table of contents; the error is then ours to ignore, its verdict counts.
        stdin.flush().ok();
        drop(stdin);
        match read {
            Ok(_) | Err(PipelineError::SinkClosed { .. }) => {}
            Err(error) => {
                child.kill();
                return Err(pipeline_failure(&format!("reading {name} back"), &error));
            }
        }
        let ending = child.wait()?;
        let listed = listing.join().unwrap_or_else(|_| Ok(vec![]));
        if !ending.succeeded() {
            return Err(Failure::new(Trouble::Tool, ending.describe()));
        }
        let listed =
            listed.map_err(|error| Failure::from_error(Trouble::Tool, "reading what pg_restore lists", &error))?;
        // Names are in the database's encoding; what is not UTF-8 loses letters here.
        Ok(String::from_utf8_lossy(&listed).into_owned())
    }
}
