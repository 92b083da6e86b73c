//! Facts: what a cluster holds, said exactly enough to tell a good copy of it from a bad one.
//!
//! ```text
//! backup:  the dump's own snapshot ──▶ Facts ──▶ facts.json in the set
//! drill:   the restored server     ──▶ Facts ──▶ compare(expected, found) ──▶ Differences, none where it is all there
//! ```
//!
//! Pure: how a server is asked stands in `postgres::facts`. Invariants:
//!
//! * Nothing depends on what a restore may change: no oids of users' objects, no order of rows or of grants, no place on disk.
//! * A sequence is no part of a snapshot: it is read before and after the dump, and its copy must lie between.
//! * What changed while it was looked at is left out and counted, never guessed.

mod comparison;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::DatabaseName;
use crate::sql::quote_identifier;

pub use comparison::{Difference, Weight, compare};

/// The newest format of facts this version reads, and the one it writes.
pub const FACTS_VERSION: u32 = 1;

/// How closely tables are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Rows are counted.
    Counts,
    /// Rows are counted; of tables with a primary key one row in 16 is hashed, of others all.
    Sampled,
    /// Rows are counted and hashed.
    Full,
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Counts => "counts",
            Self::Sampled => "sampled",
            Self::Full => "full",
        })
    }
}

impl std::str::FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Counts, Self::Sampled, Self::Full].into_iter().find(|mode| mode.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is not known"))
    }
}

/// How a row is hashed. Two sides can be compared only where they hash in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// `hash_record_extended`, since 14.
    Record,
    /// `hashtextextended` of the row as text, since 11.
    Text,
    /// 64 bits of `md5` of the row as text.
    Md5,
}

impl Algorithm {
    /// The fastest that a server of this `server_version_num` has.
    pub fn of_server(version_num: u32) -> Self {
        match version_num {
            140_000.. => Self::Record,
            110_000.. => Self::Text,
            _ => Self::Md5,
        }
    }
}

/// What a cluster holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Format version of this document.
    pub version: u32,
    /// `server_version_num` of the server that was asked.
    pub server: u32,
    /// How closely tables were looked at.
    pub mode: Mode,
    /// How rows were hashed.
    pub algorithm: Algorithm,
    /// What belongs to no database: roles, memberships, settings, tablespaces, the databases themselves.
    pub cluster: Vec<Statement>,
    /// What changed of it while the backup was taken: of these nothing is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changing: Vec<Subject>,
    /// Why nothing at all is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_unknown: Option<String>,
    /// What each database holds.
    pub databases: BTreeMap<DatabaseName, DatabaseFacts>,
    /// Databases of which no facts could be taken, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unknown: BTreeMap<DatabaseName, String>,
}

/// What one database holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Tables with rows of their own: partitions, not what they are partitions of.
    pub tables: Vec<TableFacts>,
    /// Sequences.
    pub sequences: Vec<SequenceFacts>,
    /// Everything else.
    pub statements: Vec<Statement>,
    /// How long it took to ask, in seconds.
    pub seconds: f64,
    /// The server's next transaction id as the snapshot saw it, where none before it was under way. Where it is still the next one
    /// later, nothing has been written since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_transaction: Option<u64>,
}

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFacts {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its rows, or why they were not looked at.
    pub content: TableContent,
}

/// What is known of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableContent {
    /// They were looked at.
    Rows {
        /// How many.
        count: u64,
        /// The sum of the rows' hashes, whatever their order; None where they were only counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hash: Option<String>,
    },
    /// They were not, and why.
    Unknown(String),
}

/// Where a sequence stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceFacts {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Before the dump.
    pub before: SequencePlace,
    /// After the dump; a sequence that somebody reset meanwhile may stand lower.
    pub after: SequencePlace,
}

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencePlace {
    /// `last_value`.
    pub last_value: i64,
    /// Whether that value was given out.
    pub is_called: bool,
}

/// Something that is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// What kind of thing it is said of.
    pub about: About,
    /// Which.
    pub name: String,
    /// What is so, by a word for it.
    pub says: BTreeMap<String, String>,
}

impl Statement {
    /// What it is said of.
    pub fn subject(&self) -> Subject {
        Subject { about: self.about, name: self.name.clone() }
    }
}

/// What statements can be about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// The kind of thing.
    pub about: About,
    /// Which.
    pub name: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.about, self.name)
    }
}

/// Kinds of things that statements are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is PostgreSQL's own word")]
pub enum About {
    Role,
    Membership,
    Setting,
    Tablespace,
    Database,
    Schema,
    Relation,
    Index,
    Constraint,
    Function,
    Trigger,
    Rule,
    Policy,
    Type,
    Extension,
    DefaultPrivileges,
    EventTrigger,
    Collation,
    Publication,
    Subscription,
    ForeignServer,
    UserMapping,
    Statistics,
    LargeObjects,
    Comments,
    OtherObjects,
}

impl fmt::Display for About {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Role => "role",
            Self::Membership => "membership",
            Self::Setting => "settings of",
            Self::Tablespace => "tablespace",
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Relation => "relation",
            Self::Index => "index",
            Self::Constraint => "constraint",
            Self::Function => "function",
            Self::Trigger => "trigger",
            Self::Rule => "rule",
            Self::Policy => "policy",
            Self::Type => "type",
            Self::Extension => "extension",
            Self::DefaultPrivileges => "default privileges of",
            Self::EventTrigger => "event trigger",
            Self::Collation => "collation",
            Self::Publication => "publication",
            Self::Subscription => "subscription",
            Self::ForeignServer => "foreign server",
            Self::UserMapping => "user mapping",
            Self::Statistics => "statistics",
            Self::LargeObjects | Self::Comments | Self::OtherObjects => "all",
        })
    }
}

/// How much there is to compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Databases.
    pub databases: u64,
    /// Tables whose rows were counted.
    pub tables: u64,
    /// Of them, those whose rows were hashed too.
    pub hashed: u64,
    /// Rows in them.
    pub rows: u64,
    /// Sequences.
    pub sequences: u64,
    /// Other statements.
    pub statements: u64,
}

/// The facts cannot be taken as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// They were written by a newer pglife.
    #[error("the facts have format version {found}, this pglife reads up to {FACTS_VERSION}")]
    Newer {
        /// Their version.
        found: u32,
    },
    /// They do not have the promised shape.
    #[error("the facts cannot be read: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
}

impl Facts {
    /// Of a server that nothing is known of yet.
    pub fn of_server(server: u32, mode: Mode, algorithm: Algorithm) -> Self {
        Self {
            version: FACTS_VERSION,
            server,
            mode,
            algorithm,
            cluster: vec![],
            changing: vec![],
            cluster_unknown: None,
            databases: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Takes in what both looks at the cluster agree on; of what they do not, it is known only that it changed.
    pub fn settle_cluster(&mut self, before: Vec<Statement>, after: &[Statement]) {
        let (first, second): (HashMap<_, _>, HashMap<_, _>) = (by_subject(&before), by_subject(after));
        let subjects: BTreeSet<&Subject> = first.keys().chain(second.keys()).collect();
        let changing = subjects.into_iter().filter(|subject| first.get(subject) != second.get(subject));
        self.changing = changing.cloned().collect();
        self.cluster = before.into_iter().filter(|statement| !self.changing.contains(&statement.subject())).collect();
    }

    /// What a copy of the files must hold that was begun after these facts were taken, where the copy's next transaction id is `next`:
    /// the databases that nobody has written to in between. None where there is no such database.
    pub fn unchanged_until(&self, next: u64) -> Option<Self> {
        let unchanged = self.databases.iter().filter(|(_, database)| database.next_transaction == Some(next));
        let databases: BTreeMap<DatabaseName, DatabaseFacts> =
            unchanged.map(|(name, database)| (name.clone(), database.clone().in_files())).collect();
        (!databases.is_empty()).then(|| Self {
            cluster: vec![],
            changing: vec![],
            cluster_unknown: Some("it was asked at another time".to_owned()),
            databases,
            unknown: BTreeMap::new(),
            ..*self
        })
    }

    /// Whether it says anything of `database`: what it holds, or why that is not known.
    pub fn covers(&self, database: &DatabaseName) -> bool {
        self.databases.contains_key(database) || self.unknown.contains_key(database)
    }

    /// The document's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("facts have only text keys");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the document's bytes; refuses a newer format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FactsError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |error: serde_json::Error| FactsError::Malformed { why: error.to_string() };
        let found = serde_json::from_slice::<Version>(bytes).map_err(malformed)?.version;
        if found > FACTS_VERSION {
            return Err(FactsError::Newer { found });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// How much there is to compare.
    pub fn extent(&self) -> Extent {
        let mut extent = Extent { statements: self.cluster.len() as u64, ..Extent::default() };
        for database in self.databases.values() {
            extent.databases += 1;
            extent.sequences += database.sequences.len() as u64;
            extent.statements += database.statements.len() as u64;
            for table in &database.tables {
                if let TableContent::Rows { count, hash } = &table.content {
                    extent.tables += 1;
                    extent.rows += count;
                    extent.hashed += u64::from(hash.is_some());
                }
            }
        }
        extent
    }

    /// Seconds that asking took, over all databases.
    pub fn seconds(&self) -> f64 {
        self.databases.values().map(|database| database.seconds).sum()
    }
}

impl DatabaseFacts {
    /// Takes in where the sequences stand at a second look: between both lies what a dump has seen. A sequence that is only
    /// in one of them was made or dropped meanwhile, and nothing is said of it.
    pub fn second_look(&mut self, later: &[SequenceFacts]) {
        self.sequences.retain_mut(|sequence| {
            let again = later.iter().find(|other| (&other.schema, &other.name) == (&sequence.schema, &sequence.name));
            if let Some(again) = again {
                sequence.after = again.after;
            }
            again.is_some()
        });
    }
}

impl DatabaseFacts {
    /// What of it is in a copy of the files. Recovery empties tables that are not logged, and lets sequences go ahead.
    fn in_files(mut self) -> Self {
        self.sequences.clear();
        let is_unlogged = |statement: &&Statement| {
            statement.about == About::Relation && statement.says.get("persistence").map(String::as_str) == Some("u")
        };
        let unlogged: BTreeSet<String> =
            self.statements.iter().filter(is_unlogged).map(|statement| statement.name.clone()).collect();
        for table in &mut self.tables {
            // Statements have names as the server prints them: in quotes where it must.
            let ways = |name: &str| [name.to_owned(), quote_identifier(name)];
            let [schemas, names] = [ways(&table.schema), ways(&table.name)];
            let mut all = schemas.iter().flat_map(|schema| names.iter().map(move |name| format!("{schema}.{name}")));
            if all.any(|name| unlogged.contains(&name)) {
                table.content = TableContent::Unknown("it is not logged, so recovery makes it empty".to_owned());
            }
        }
        self
    }
}

fn by_subject(statements: &[Statement]) -> HashMap<Subject, &Statement> {
    statements.iter().map(|statement| (statement.subject(), statement)).collect()
}

#[cfg(test)]
mod tests;
