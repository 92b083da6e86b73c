//! What a backup will do, fixed before it begins: every database, object and argument. Pure.

use serde::Serialize;

use crate::backup_set::{Codec, DatabaseProfile, Naming, ServerProfile, SetId, Skipped};
use crate::cluster::{ClusterName, Lineage, PgMajor};
use crate::encryption::Recipients;
use crate::policy::Policy;
use crate::postgres::Login;
use crate::sql::quote_conninfo;
use crate::worker::{DatabaseDump, Destination, DumpJob, FactsJob};

/// Everything about a backup that is about to begin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DumpPlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The set it becomes.
    pub set: SetId,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The object for roles, tablespaces and settings.
    pub globals: String,
    /// Databases to dump, largest first, so that the last one to end is not a large one that began late.
    pub databases: Vec<DatabaseDump>,
    /// Databases left out, and why.
    pub skipped: Vec<Skipped>,
    /// What the operator should read.
    pub warnings: Vec<String>,
    /// Databases dumped side by side.
    pub jobs: usize,
    /// Codec of every object.
    pub codec: Codec,
    /// Codec threads for each database.
    pub threads: usize,
    /// Who will be able to open the objects; None: everybody.
    pub recipients: Option<Recipients>,
    /// The facts to take in the dumps' snapshots; None: none.
    pub facts: Option<FactsJob>,
    /// The server as it was found.
    pub server: ServerProfile,
}

/// The policy does not fit the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The server is of another major than the policy says.
    #[error("the policy says PostgreSQL {policy}, the server is {server}")]
    OtherMajor {
        /// In the policy.
        policy: PgMajor,
        /// In the world.
        server: PgMajor,
    },
}

/// Plans a logical backup of the server that `server` describes, sealed to `recipients` if there are any.
pub fn plan_dump(
    policy: &Policy,
    server: ServerProfile,
    set: SetId,
    threads: usize,
    recipients: Option<Recipients>,
) -> Result<DumpPlan, PlanError> {
    if server.major != policy.major {
        return Err(PlanError::OtherMajor { policy: policy.major, server: server.major });
    }
    let dump = &policy.dump;
    let mut skipped = Vec::new();
    let mut chosen: Vec<&DatabaseProfile> = Vec::new();
    for database in &server.databases {
        // template0 is never connectable and the same in every server.
        if database.name.as_str() == "template0" {
            continue;
        }
        if !dump.databases.selects(&database.name) {
            skipped.push(Skipped {
                database: database.name.clone(),
                reason: "the policy leaves it out".to_owned(),
                intended: true,
            });
        } else if database.connectable {
            chosen.push(database);
        } else {
            skipped.push(Skipped {
                database: database.name.clone(),
                reason:
                    "it refuses connections; allow them, or leave it out in the policy: databases = [\"*\", \"!…\"]"
                        .to_owned(),
                intended: false,
            });
        }
    }
    let warnings = dump
        .databases
        .named()
        .filter(|named| !server.databases.iter().any(|database| database.name == *named))
        .map(|named| format!("the policy names database \"{named}\", which is not there"))
        .collect();
    chosen.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let naming = Naming::of_set(recipients.is_some());
    let databases = chosen
        .into_iter()
        .enumerate()
        .map(|(place, database)| DatabaseDump {
            database: database.name.clone(),
            oid: database.oid,
            object: naming.database(&database.name, place, dump.codec),
            arguments: dump_arguments(policy, database),
        })
        .collect::<Vec<_>>();
    Ok(DumpPlan {
        cluster: policy.name.clone(),
        set,
        lineage: Lineage { system_identifier: server.system_identifier, major: server.major },
        globals: naming.globals(dump.codec),
        jobs: dump.jobs.get().min(databases.len().max(1)),
        databases,
        skipped,
        warnings,
        codec: dump.codec,
        threads,
        recipients,
        facts: Some(FactsJob {
            object: naming.document("facts.json"),
            mode: policy.drill.facts,
            lock_timeout_ms: u64::try_from(dump.lock_timeout.as_signed().as_millis()).unwrap_or(u64::MAX),
        }),
        server,
    })
}

fn dump_arguments(policy: &Policy, database: &DatabaseProfile) -> Vec<String> {
    let mut arguments = vec![
        "--format=custom".to_owned(),
        // The pipeline compresses: in parallel, and far faster than pg_dump's gzip.
        "--compress=0".to_owned(),
        "--no-password".to_owned(),
        // The database's own encoding, whatever client_encoding it or the role was given: nothing is converted.
        format!("--encoding={}", database.encoding),
        format!("--lock-wait-timeout={}", policy.dump.lock_timeout.as_signed().as_millis()),
        // A connection string, because a plain name with `=` in it would be taken for one.
        format!("--dbname=dbname={}", quote_conninfo(database.name.as_str())),
    ];
    arguments.extend(
        policy.dump.exclude_table_data.iter().map(|pattern| format!("--exclude-table-data={}", pattern.as_str())),
    );
    arguments
}

impl DumpPlan {
    /// The request for the worker.
    pub fn job(&self, login: Login, destinations: Vec<Destination>) -> DumpJob {
        DumpJob {
            login,
            major: self.lineage.major,
            bootstrap_role: self.server.bootstrap_role.clone(),
            destinations,
            globals: self.globals.clone(),
            databases: self.databases.clone(),
            jobs: self.jobs,
            codec: self.codec,
            threads: self.threads,
            recipients: self.recipients.clone(),
            facts: self.facts.clone(),
        }
    }

    /// Size on disk of what will be dumped, as an estimate of its plain bytes; None where the server did not say.
    pub fn expected_bytes(&self) -> Option<u64> {
        let chosen = |database: &&DatabaseProfile| self.databases.iter().any(|dump| dump.database == database.name);
        let sum = self.server.databases.iter().filter(chosen).map(|database| database.bytes).sum();
        (sum > 0).then_some(sum)
    }
}
