//! Looks whether a restored server holds what was backed up. Every check is told with what came of it; the verdict `ok` says only
//! that all of them were made. A check that could not be made is `unknown`, never `passed`.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use crate::backup_set::certificate::{Check, Outcome};
use crate::backup_set::{Measured, Object};
use crate::cluster::DatabaseName;
use crate::facts::{self, Facts, Weight};
use crate::pipeline::seal::unseal_bytes;
use crate::policy::Assertion;
use crate::postgres::control_data::ControlData;
use crate::postgres::facts::{Asker, Look};
use crate::postgres::tools::{Tool, Toolbox};
use crate::postgres::{self, Login, PostgresError};

use super::process::{Line, connect_somewhere};
use super::{CheckJob, Event, Failure, FilesCheck, PagesJob, Trouble, keys_for, pipeline_failure, storage_failure};

/// The largest facts that are read.
const FACTS_LIMIT: u64 = 1 << 30;
/// Findings that are told of one check; more say nothing more.
const MOST_FINDINGS: usize = 200;
/// How long to wait for a lock; nobody else is there.
const LOCK_TIMEOUT_MS: u64 = 60_000;

/// The check of restored files.
pub const FILES: &str = "files";

/// What a check came to.
type Found = (Outcome, Vec<String>);

/// Makes one check and tells of it. An error is about the checking, not about the backup.
fn check(line: &Line, name: &str, look: impl FnOnce() -> Result<Found, Failure>) -> Result<(), Failure> {
    if line.stop.is_cancelled() {
        return Err(Failure::new(Trouble::Cancelled, "cancelled"));
    }
    let begun = Instant::now();
    let (outcome, mut found) = look()?;
    if found.len() > MOST_FINDINGS {
        let more = found.len() - MOST_FINDINGS;
        found.truncate(MOST_FINDINGS);
        found.push(format!("… and {more} more"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    line.tell(&Event::Checked(Check { name: name.to_owned(), outcome, found, seconds }));
    Ok(())
}

/// Does the job. Returns the versions of the tools used.
pub fn run(job: &CheckJob, line: &Line, runtime: &tokio::runtime::Handle) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(job.major, &job.login)?;
    check(line, "databases", || runtime.block_on(databases(job)))?;
    if let Some(object) = &job.facts {
        check(line, "facts", || of_the_set(job, object, line, runtime))?;
    }
    if let (Some((set, facts)), Some(entry)) = (&job.beside, job.databases.first()) {
        // Before pg_amcheck, which writes.
        let next = runtime.block_on(asker(job, line).next_transaction(entry))?;
        if let Some(unchanged) = next.and_then(|next| facts.unchanged_until(next)) {
            check(line, &format!("facts of {set}"), || compare(job, &unchanged, line, runtime))?;
        }
    }
    if job.structure {
        check(line, "structure", || structure(&toolbox))?;
    }
    for assertion in &job.assertions {
        check(line, &format!("assertion {}", assertion.name), || runtime.block_on(assert(&job.login, assertion)))?;
    }
    Ok(["pg_amcheck"].iter().filter_map(|tool| toolbox.version(tool)).filter(|_| job.structure).collect())
}

/// All of them are there, and can be entered.
async fn databases(job: &CheckJob) -> Result<Found, Failure> {
    let there = present(&job.login).await?;
    let missing: Vec<String> = job
        .databases
        .iter()
        .filter(|database| !there.contains(database.as_str()))
        .map(|database| format!("database \"{database}\" is missing"))
        .collect();
    let outcome = match (missing.is_empty(), job.databases.is_empty()) {
        (true, false) => Outcome::Passed,
        // Nothing was looked for.
        (true, true) => Outcome::Unknown,
        (false, _) => Outcome::Failed,
    };
    Ok((outcome, missing))
}

/// The names of the databases that the server has.
async fn present(login: &Login) -> Result<HashSet<String>, Failure> {
    let server = connect_somewhere(login).await?;
    let rows = server
        .query("select datname::text from pg_catalog.pg_database", &[])
        .await
        .map_err(|error| query_failure("its databases", &error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn query_failure(what: &'static str, error: &tokio_postgres::Error) -> Failure {
    PostgresError::Query { what, reason: postgres::words(error) }.into()
}

/// Compares with the facts of the set itself, which must tell of everything.
fn of_the_set(
    job: &CheckJob,
    object: &Object,
    line: &Line,
    runtime: &tokio::runtime::Handle,
) -> Result<Found, Failure> {
    let expected = match read(job, object)? {
        Ok(expected) => expected,
        Err(why) => return Ok((Outcome::Failed, vec![why])),
    };
    let (mut outcome, mut words) = compare(job, &expected, line, runtime)?;
    let left_out = |database: &&DatabaseName| !expected.covers(database);
    for database in job.databases.iter().filter(left_out) {
        outcome = Outcome::Failed;
        words.push(format!(
            "database \"{database}\" is in the backup, but not in its facts: they are of another backup"
        ));
    }
    let cluster =
        expected.cluster_unknown.iter().map(|why| format!("roles and settings have no facts in the backup: {why}"));
    let databases =
        expected.unknown.iter().map(|(name, why)| format!("database \"{name}\" has no facts in the backup: {why}"));
    for unknown in cluster.chain(databases) {
        words.push(unknown);
        if outcome == Outcome::Passed {
            outcome = Outcome::Unknown;
        }
    }
    Ok((outcome, words))
}

fn asker<'a>(job: &'a CheckJob, line: &'a Line) -> Asker<'a> {
    Asker { login: &job.login, lock_timeout_ms: LOCK_TIMEOUT_MS, stop: &line.stop }
}

/// Takes the facts of the server as the expected ones were taken, and compares.
fn compare(job: &CheckJob, expected: &Facts, line: &Line, runtime: &tokio::runtime::Handle) -> Result<Found, Failure> {
    let wanted: Vec<DatabaseName> = expected.databases.keys().cloned().collect();
    if wanted.is_empty() {
        return Ok((Outcome::Unknown, vec!["the backup has no facts of any database".to_owned()]));
    }
    let there = runtime.block_on(present(&job.login))?;
    let wanted: Vec<DatabaseName> = wanted.into_iter().filter(|database| there.contains(database.as_str())).collect();
    let Some(entry) = wanted.first() else {
        return Ok((Outcome::Failed, vec!["not one of the databases that were backed up is there".to_owned()]));
    };
    let asker = asker(job, line);
    let look = Look { mode: expected.mode, algorithm: expected.algorithm, snapshot: None };
    let server = runtime.block_on(asker.version(entry))?;
    let mut found = Facts::of_server(server, expected.mode, expected.algorithm);
    found.cluster = runtime.block_on(asker.of_cluster(entry, &wanted))?;
    for database in &wanted {
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        match runtime.block_on(asker.of_database(database, &look)) {
            Ok(there) => drop(found.databases.insert(database.clone(), there)),
            // A table that cannot be read is the backup's fault; a server that is gone is not.
            Err(error @ PostgresError::Query { .. }) if runtime.block_on(connect_somewhere(&job.login)).is_ok() => {
                found.unknown.insert(database.clone(), error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    line.tell(&Event::Compared(expected.extent()));
    let differences = facts::compare(expected, &found);
    let mut outcome = Outcome::Passed;
    if differences.iter().any(|difference| difference.weight == Weight::Bad) {
        outcome = Outcome::Failed;
    }
    let shown = |difference: &facts::Difference| match difference.weight {
        Weight::Bad => difference.to_string(),
        Weight::Note => Check::note(difference),
    };
    Ok((outcome, differences.iter().map(shown).collect()))
}

/// The facts of the backup, or what is wrong with their object.
fn read(job: &CheckJob, object: &Object) -> Result<Result<Facts, String>, Failure> {
    let folder = job.place.open().map_err(|error| storage_failure("the repository cannot be used", &error))?;
    let stored = match folder.read_small(&object.name, FACTS_LIMIT) {
        Ok(stored) => stored,
        Err(error) => {
            let failure = storage_failure(&format!("{} cannot be read", object.name), &error);
            return if failure.trouble == Trouble::Damaged { Ok(Err(failure.message)) } else { Err(failure) };
        }
    };
    if Measured::of(&stored) != object.stored {
        return Ok(Err(format!("{} is not what was written", object.name)));
    }
    let plain = match keys_for(object, job.keys.as_ref())? {
        None => stored,
        Some(keys) => unseal_bytes(&stored, keys).map_err(|error| pipeline_failure("opening the facts", &error))?,
    };
    if Measured::of(&plain) != object.plain {
        return Ok(Err(format!("{} does not hold what was written", object.name)));
    }
    match Facts::from_bytes(&plain) {
        Ok(facts) => Ok(Ok(facts)),
        Err(error @ facts::FactsError::Newer { .. }) => Err(Failure::new(Trouble::Request, error.to_string())),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// `pg_amcheck` reads every table and index, and every row's entry in every B-tree index.
fn structure(toolbox: &Toolbox) -> Result<Found, Failure> {
    if toolbox.version("pg_amcheck").is_none() {
        // It is there since 14 (release notes), in the images of those majors.
        return Ok((Outcome::Unknown, vec!["the image has no pg_amcheck".to_owned()]));
    }
    let mut command = toolbox.command("pg_amcheck");
    command
        .args(["--all", "--install-missing", "--heapallindexed", "--no-password", "--maintenance-db=template1"])
        .stdout(Stdio::piped());
    let mut tool = Tool::start("pg_amcheck", command)?;
    let mut told = Vec::new();
    std::io::Read::read_to_end(&mut tool.stdout().expect("stdout is piped"), &mut told)
        .map_err(|error| Failure::from_error(Trouble::Tool, "reading what pg_amcheck tells", &error))?;
    let ending = tool.wait()?;
    let told = String::from_utf8_lossy(&told);
    let findings: Vec<String> = told.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
    match (ending.succeeded(), findings.is_empty()) {
        (true, _) => Ok((Outcome::Passed, vec![])),
        // It says on stdout what is corrupt, and on stderr what it could not do.
        (false, false) => Ok((Outcome::Failed, findings)),
        (false, true) => Ok((Outcome::Unknown, vec![ending.describe()])),
    }
}

/// One value: true, or a number within the bounds.
async fn assert(login: &Login, assertion: &Assertion) -> Result<Found, Failure> {
    let client = match postgres::connect(login, &assertion.database).await {
        Ok(client) => client,
        Err(PostgresError::Unreachable { reason, .. }) if reason.contains("does not exist") => {
            return Ok((Outcome::Failed, vec![reason]));
        }
        Err(error) => return Err(error.into()),
    };
    client
        .batch_execute("begin transaction read only")
        .await
        .map_err(|error| query_failure("a transaction", &error))?;
    let answered = match client.simple_query(&assertion.sql).await {
        Ok(answered) => answered,
        Err(error) => {
            let said = vec![postgres::words(&error)];
            return match error.code() {
                // The policy is wrong, whatever the backup is.
                Some(code) if *code == SqlState::SYNTAX_ERROR => Ok((Outcome::Unknown, said)),
                Some(_) => Ok((Outcome::Failed, said)),
                None => Err(query_failure("an assertion", &error)),
            };
        }
    };
    let rows: Vec<Option<String>> = answered
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.len() == 1 => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })
        .collect();
    Ok(match rows.as_slice() {
        [Some(value)] => judge(assertion, value),
        [None] => (Outcome::Failed, vec!["it is null".to_owned()]),
        [] => (Outcome::Failed, vec!["it gives no row of one value".to_owned()]),
        more => (Outcome::Failed, vec![format!("it gives {} rows, one is wanted", more.len())]),
    })
}

/// Whether `value`, as the server prints it, is what is wanted.
fn judge(assertion: &Assertion, value: &str) -> Found {
    let bounded = assertion.min.is_some() || assertion.max.is_some();
    if !bounded {
        return match value {
            "t" => (Outcome::Passed, vec![]),
            "f" => (Outcome::Failed, vec!["it is false".to_owned()]),
            other => {
                (Outcome::Unknown, vec![format!("it gives {other:?}: without min or max it must be true or false")])
            }
        };
    }
    let Ok(number) = value.parse::<f64>() else {
        return (Outcome::Unknown, vec![format!("it gives {value:?}, which is no number")]);
    };
    #[expect(clippy::cast_precision_loss, reason = "bounds are people's numbers")]
    let bound = |bound: Option<i64>| bound.map(|bound| bound as f64);
    if bound(assertion.min).is_some_and(|min| number < min) || bound(assertion.max).is_some_and(|max| number > max) {
        let shown = |bound: Option<i64>| bound.map_or_else(|| "…".to_owned(), |bound| bound.to_string());
        let words = format!("{value} is not within {} to {}", shown(assertion.min), shown(assertion.max));
        return (Outcome::Failed, vec![words]);
    }
    (Outcome::Passed, vec![])
}

/// `pg_verifybackup` compares every file of a data directory with the `backup_manifest` in it, and reads the WAL that it needs.
pub(super) fn files(job: &FilesCheck, line: &Line) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(job.major, &super::upgrade::nobody())?;
    let version = toolbox.version("pg_verifybackup");
    check(line, FILES, || {
        if version.is_none() {
            return Ok((Outcome::Unknown, vec!["the image has no pg_verifybackup".to_owned()]));
        }
        let (ending, _) = tell(&toolbox, "pg_verifybackup", &["--quiet", &job.pgdata])?;
        Ok(if ending.0 { (Outcome::Passed, vec![]) } else { (Outcome::Failed, vec![ending.1]) })
    })?;
    Ok(version.into_iter().collect())
}

/// Looks at a data directory whose server is shut down.
pub fn pages(job: &PagesJob, line: &Line) -> Result<Vec<String>, Failure> {
    let toolbox = Toolbox::find(job.major, &super::upgrade::nobody())?;
    check(line, "control data", || {
        let (ending, told) = tell(&toolbox, "pg_controldata", &[&job.pgdata])?;
        if !ending.0 {
            return Ok((Outcome::Failed, vec![ending.1]));
        }
        Ok(match ControlData::parse(&told) {
            Err(error) => (Outcome::Unknown, vec![error.to_string()]),
            Ok(found) => {
                let wrong = wrong_in_control_data(&found, job);
                (if wrong.is_empty() { Outcome::Passed } else { Outcome::Failed }, wrong)
            }
        })
    })?;
    if job.checksums {
        check(line, "page checksums", || {
            let (ending, told) = tell(&toolbox, "pg_checksums", &["--check", &job.pgdata])?;
            if ending.0 {
                Ok((Outcome::Passed, vec![]))
            } else {
                Ok((checksum_failure(&told, &ending.1), vec![ending.1]))
            }
        })?;
    }
    debug_assert!(Path::new(&job.pgdata).is_absolute());
    Ok(["pg_controldata", "pg_checksums"].iter().filter_map(|tool| toolbox.version(tool)).collect())
}

/// What a server that was recovered and shut down must not say of itself.
fn wrong_in_control_data(found: &ControlData, job: &PagesJob) -> Vec<String> {
    let mut wrong = Vec::new();
    if !found.is_shut_down() {
        wrong.push(format!("the cluster state is {:?} after a shutdown", found.state));
    }
    if found.system_identifier != job.system_identifier {
        let (found, wanted) = (found.system_identifier, job.system_identifier);
        wrong.push(format!("the system identifier is {found}, that of the backup {wanted}"));
    }
    // Where the copy is consistent: before that, what was copied last may be ahead of what was copied first.
    if let Some(end) = job.consistent_at.filter(|end| found.checkpoint < *end) {
        wrong.push(format!("recovery came to {} only, and the copy is consistent at {end}", found.checkpoint));
    }
    wrong
}

/// A tool that found bad pages says how many; one that could not look has no verdict.
fn checksum_failure(told: &str, said: &str) -> Outcome {
    if told.contains("Bad checksums:") || said.contains("checksum verification failed") {
        Outcome::Failed
    } else {
        Outcome::Unknown
    }
}

/// Runs a tool and returns whether it ended well, how it ended, and what it printed.
fn tell(toolbox: &Toolbox, name: &str, arguments: &[&str]) -> Result<((bool, String), String), Failure> {
    let mut command = toolbox.command(name);
    command.args(arguments).stdout(Stdio::piped());
    let mut tool = Tool::start(name, command)?;
    let mut told = Vec::new();
    std::io::Read::read_to_end(&mut tool.stdout().expect("stdout is piped"), &mut told)
        .map_err(|error| Failure::from_error(Trouble::Tool, "reading what a tool tells", &error))?;
    let ending = tool.wait()?;
    Ok(((ending.succeeded(), ending.describe()), String::from_utf8_lossy(&told).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(min: Option<i64>, max: Option<i64>, value: &str) -> Outcome {
        let assertion = Assertion {
            name: "features".to_owned(),
            database: DatabaseName::new("chado").expect("a name"),
            sql: String::new(),
            min,
            max,
        };
        judge(&assertion, value).0
    }

    #[test]
    fn an_assertion_is_true_or_a_number_within_bounds() {
        assert_eq!(outcome(None, None, "t"), Outcome::Passed);
        assert_eq!(outcome(None, None, "f"), Outcome::Failed);
        // Not an answer to the question: the policy is wrong, not the backup.
        assert_eq!(outcome(None, None, "12"), Outcome::Unknown);
        assert_eq!(outcome(Some(1), None, "abc"), Outcome::Unknown);
        assert_eq!(outcome(Some(1), None, "1"), Outcome::Passed);
        assert_eq!(outcome(Some(1), None, "0.99"), Outcome::Failed);
        assert_eq!(outcome(Some(1), Some(5), "5.5"), Outcome::Failed);
        assert_eq!(outcome(None, Some(5), "-7"), Outcome::Passed);
    }

    #[test]
    fn recovery_must_have_come_to_where_the_copy_is_consistent() {
        let job = |consistent_at: Option<&str>| PagesJob {
            major: "17".parse().expect("a major"),
            pgdata: "/data/17".to_owned(),
            system_identifier: 7,
            checksums: true,
            consistent_at: consistent_at.map(|text| text.parse().expect("an LSN")),
        };
        let found = |state: &str, system_identifier| ControlData {
            system_identifier,
            state: state.to_owned(),
            checkpoint: "0/2000028".parse().expect("an LSN"),
            redo: "0/2000028".parse().expect("an LSN"),
            timeline: 1,
            next_transaction: 746,
        };
        for good in [None, Some("0/2000028"), Some("0/1FFFFFF")] {
            assert_eq!(wrong_in_control_data(&found("shut down", 7), &job(good)), Vec::<String>::new(), "{good:?}");
        }
        let behind = wrong_in_control_data(&found("shut down", 7), &job(Some("1/0")));
        assert_eq!(behind, ["recovery came to 0/2000028 only, and the copy is consistent at 1/0"]);
        assert_eq!(wrong_in_control_data(&found("in production", 8), &job(None)).len(), 2);
    }

    #[test]
    fn only_bad_pages_are_the_backup_s_fault() {
        assert_eq!(checksum_failure("Bad checksums:  3\n", "exit code 1"), Outcome::Failed);
        assert_eq!(checksum_failure("", "pg_checksums: error: cluster must be shut down"), Outcome::Unknown);
    }
}
