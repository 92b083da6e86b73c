//! Rows of tables, counted and hashed inside the server.

use std::collections::HashMap;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::facts::{About, Algorithm, Mode, Statement, TableContent, TableFacts};
use crate::postgres::PostgresError;
use crate::sql::quote_identifier;

use super::{Look, failed, statements};

/// Tables looked at in one transaction.
const BATCH: usize = 20;

/// Types that are hashed as they are: their hash depends on nothing but the value. All others are hashed as text: enums and
/// `regclass` hash by oid, `citext` by the locale, and `json` or `point` not at all.
///
/// bool bytea char name int8 int2 int4 text oid float4 float8 varchar bpchar date time timestamp timestamptz interval timetz
/// numeric uuid jsonb inet cidr macaddr, and arrays of the usual ones.
const HASHABLE: [u32; 41] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 700, 701, 1043, 1042, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950, 3802,
    869, 650, 829, 1000, 1001, 1005, 1007, 1016, 1009, 1015, 1021, 1022, 1182, 1115, 1185, 1231, 2951, 1014, 1028,
];

pub(super) struct Looker<'a> {
    pub(super) client: &'a Client,
    pub(super) version: u32,
    pub(super) look: &'a Look<'a>,
}

/// A table whose rows will be looked at.
pub(super) struct Wanted {
    oid: u32,
    schema: String,
    name: String,
    /// Of an extension's table, the rows that belong to users (`pg_extension_config_dump`).
    condition: String,
}

struct Column {
    name: String,
    hashable: bool,
    key: bool,
}

impl Looker<'_> {
    pub(super) async fn begin(&self) -> Result<(), PostgresError> {
        let begin = "begin transaction isolation level repeatable read, read only";
        let begin = match self.look.snapshot {
            Some(snapshot) => format!("{begin}; set transaction snapshot {}", crate::sql::quote_literal(snapshot)),
            None => begin.to_owned(),
        };
        self.client.batch_execute(&begin).await.map_err(failed("the snapshot"))
    }

    pub(super) async fn end(&self) -> Result<(), PostgresError> {
        self.client.batch_execute("commit").await.map_err(failed("the end of a transaction"))
    }

    /// Plain tables and partitions; of extensions those whose rows are dumped.
    pub(super) async fn tables(&self) -> Result<Vec<Wanted>, PostgresError> {
        let own = statements::of_users("pg_class", "c.oid", "n");
        let rows = self
            .client
            .query(
                &format!(
                    "select c.oid, n.nspname::text, c.relname::text, coalesce(x.condition, '') \
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                     left join (select unnest(extconfig) as config, unnest(extcondition) as condition \
                                from pg_extension) x on x.config = c.oid \
                     where c.relkind = 'r' and c.relpersistence <> 't' and ({own} or x.config is not null) \
                     order by 2, 3"
                ),
                &[],
            )
            .await
            .map_err(failed("its tables"))?;
        let wanted = rows.iter().map(|row| Wanted {
            oid: row.get(0),
            schema: row.get(1),
            name: row.get(2),
            condition: row.get(3),
        });
        Ok(wanted.collect())
    }

    /// What is in them.
    pub(super) async fn contents(&self, wanted: &[Wanted]) -> Result<Vec<TableFacts>, PostgresError> {
        let mut found = Vec::with_capacity(wanted.len());
        for batch in wanted.chunks(BATCH) {
            self.begin().await?;
            let columns = self.columns(batch).await?;
            for table in batch {
                let columns = columns.get(&table.oid).map_or(&[][..], Vec::as_slice);
                let content = match self.content(table, columns).await {
                    Ok(content) => content,
                    Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                        self.client.batch_execute("rollback").await.map_err(failed("the end of a transaction"))?;
                        self.begin().await?;
                        TableContent::Unknown("it was dropped while it was looked at".to_owned())
                    }
                    Err(error) => {
                        let reason = format!("{}.{}: {}", table.schema, table.name, crate::postgres::words(&error));
                        return Err(PostgresError::Query { what: "the rows of a table", reason });
                    }
                };
                found.push(TableFacts { schema: table.schema.clone(), name: table.name.clone(), content });
            }
            self.end().await?;
        }
        Ok(found)
    }

    async fn content(&self, table: &Wanted, columns: &[Column]) -> Result<TableContent, tokio_postgres::Error> {
        let from = format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name));
        let hash = match self.look.mode {
            Mode::Counts => "null::text".to_owned(),
            Mode::Full => format!("coalesce(sum({}), 0)::text", self.hash(columns.iter())),
            Mode::Sampled => {
                let sum = format!("sum({})", self.hash(columns.iter()));
                let chosen = if columns.iter().any(|column| column.key) {
                    format!(" filter (where {} % 16 = 0)", self.hash(columns.iter().filter(|column| column.key)))
                } else {
                    String::new()
                };
                format!("coalesce({sum}{chosen}, 0)::text")
            }
        };
        let sql = format!("select count(*), {hash} from only {from} {}", table.condition);
        let row = self.client.query_one(&sql, &[]).await?;
        // The catalogue as of the snapshot, and as it is now: a table that was rewritten shows an old snapshot no rows.
        let rewritten = self
            .client
            .query_opt(
                "select c.relfilenode is distinct from pg_relation_filenode(c.oid) from pg_class c where c.oid = $1",
                &[&table.oid],
            )
            .await?;
        if self.look.snapshot.is_some() && rewritten.is_none_or(|row| row.get::<_, Option<bool>>(0) != Some(false)) {
            return Ok(TableContent::Unknown("it was rewritten or truncated while it was looked at".to_owned()));
        }
        Ok(TableContent::Rows { count: row.get::<_, i64>(0).cast_unsigned(), hash: row.get(1) })
    }

    /// SQL for a 64-bit hash of these columns of a row.
    fn hash<'c>(&self, columns: impl Iterator<Item = &'c Column>) -> String {
        let as_they_are = self.look.algorithm != Algorithm::Record;
        let columns = columns.map(|column| {
            let name = quote_identifier(&column.name);
            // As a row, because that prints what `COPY` prints: a cast of XML, for one, does not.
            if as_they_are || column.hashable { name } else { format!("row({name})::text collate \"C\"") }
        });
        hash_of(self.look.algorithm, &columns.collect::<Vec<_>>())
    }

    /// In the order of their names: an inherited table gets its columns in another order when it is restored.
    async fn columns(&self, tables: &[Wanted]) -> Result<HashMap<u32, Vec<Column>>, PostgresError> {
        let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
        let plain = if self.version >= 120_000 { "coalesce(k.collisdeterministic, true)" } else { "true" };
        let rows = self
            .client
            .query(
                &format!(
                    "select a.attrelid, a.attname::text, a.atttypid, {plain}, \
                     coalesce(a.attnum = any (i.indkey::int2[]), false) \
                     from pg_attribute a left join pg_collation k on k.oid = a.attcollation \
                     left join pg_index i on i.indrelid = a.attrelid and i.indisprimary \
                     where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped \
                     order by a.attrelid, a.attname::text collate \"C\""
                ),
                &[&oids],
            )
            .await
            .map_err(failed("the columns of its tables"))?;
        let mut columns: HashMap<u32, Vec<Column>> = HashMap::new();
        for row in &rows {
            columns.entry(row.get(0)).or_default().push(Column {
                name: row.get(1),
                hashable: row.get(3) && HASHABLE.contains(&row.get::<_, u32>(2)),
                key: row.get(4),
            });
        }
        Ok(columns)
    }

    /// Their number, owners and, where rows are hashed, their content. A page without content is a hole or is not: a restore
    /// may fill holes.
    pub(super) async fn large_objects(&self) -> Result<Statement, PostgresError> {
        let algorithm = self.look.algorithm;
        let acl = statements::acl("m.lomacl", "L", "m.lomowner");
        let owned = hash_of(algorithm, &["m.oid::int8", "pg_get_userbyid(m.lomowner)::text", &format!("({acl})")]);
        let content = match self.look.mode {
            Mode::Counts => "null::text".to_owned(),
            Mode::Sampled | Mode::Full => format!(
                "(select coalesce(sum({}), 0)::text from (select loid::int8 as loid, pageno, btrim(data, '\\x00'::bytea) \
                 as data from pg_largeobject) p where data <> ''::bytea)",
                hash_of(algorithm, &["p.loid", "p.pageno", "p.data"])
            ),
        };
        let sql =
            format!("select count(*)::text, coalesce(sum({owned}), 0)::text, {content} from pg_largeobject_metadata m");
        let row = self.client.query_one(&sql, &[]).await.map_err(failed("its large objects"))?;
        let says = ["count", "owners and privileges", "content"]
            .iter()
            .enumerate()
            .filter_map(|(place, word)| Some(((*word).to_owned(), row.get::<_, Option<String>>(place)?)));
        Ok(Statement { about: About::LargeObjects, name: "large objects".to_owned(), says: says.collect() })
    }
}

fn hash_of(algorithm: Algorithm, expressions: &[impl AsRef<str>]) -> String {
    let row = format!("row({})", expressions.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", "));
    match algorithm {
        Algorithm::Record => format!("hash_record_extended({row}, 0)"),
        Algorithm::Text => format!("hashtextextended({row}::text collate \"C\", 0)"),
        Algorithm::Md5 => format!("('x' || left(md5({row}::text), 16))::bit(64)::int8"),
    }
}
