//! What the catalogues say, in names and words that are the same in a restored server.
//!
//! Every query gives a name and a JSON object of words. Grants are written out and sorted, with PUBLIC and defaults in full,
//! because a restore may write the same rights in another order or leave defaults unsaid. Grantors are not told.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::facts::{About, Statement};
use crate::postgres::{PostgresError, words};

/// SQL that is true of what users made: not of the system's, not of an extension's.
pub(super) fn of_users(catalogue: &str, oid: &str, namespace: &str) -> String {
    format!(
        "({namespace}.nspname !~ '^pg_' and {namespace}.nspname <> 'information_schema' and {})",
        not_of_extension(catalogue, oid)
    )
}

fn not_of_extension(catalogue: &str, oid: &str) -> String {
    format!(
        "not exists (select 1 from pg_depend e where e.classid = '{catalogue}'::regclass and e.objid = {oid} and e.deptype = 'e')"
    )
}

/// SQL for the rights on something, as text.
pub(super) fn acl(column: &str, kind: &str, owner: &str) -> String {
    rights(&format!("coalesce({column}, acldefault('{kind}', {owner}))"))
}

fn rights(acl: &str) -> String {
    format!(
        "select coalesce(string_agg(g, ', ' order by g collate \"C\"), '') from (select \
         (case when a.grantee = 0 then 'PUBLIC' else pg_get_userbyid(a.grantee)::text end) || '=' || a.privilege_type || \
         (case when a.is_grantable then '*' else '' end) as g from aclexplode({acl}) a) s"
    )
}

/// A query for statements about one kind of thing.
struct Query {
    about: About,
    /// The oldest `server_version_num` that has it.
    since: u32,
    sql: String,
}

/// `select <name>, json of <words> from …`.
fn query(about: About, since: u32, name: &str, says: &[(&str, &str)], from: &str) -> Query {
    let says: Vec<String> = says.iter().map(|(word, value)| format!("'{word}', ({value})::text")).collect();
    let sql = format!("select ({name})::text, json_build_object({})::text from {from}", says.join(", "));
    Query { about, since, sql }
}

async fn ask(client: &Client, version: u32, queries: &[Query]) -> Result<Vec<Statement>, PostgresError> {
    let mut statements = Vec::new();
    for query in queries.iter().filter(|query| version >= query.since) {
        let failed = |reason: String| PostgresError::Query {
            what: "what its catalogues say",
            reason: format!("{}: {reason}", query.about),
        };
        let rows = client.query(&query.sql, &[]).await.map_err(|error| failed(words(&error)))?;
        for row in &rows {
            let name = row.try_get(0).map_err(|error| failed(words(&error)))?;
            let says: String = row.try_get(1).map_err(|error| failed(words(&error)))?;
            let says: BTreeMap<String, Option<String>> =
                serde_json::from_str(&says).map_err(|error| failed(error.to_string()))?;
            let says = says.into_iter().filter_map(|(word, value)| Some((word, value?))).collect();
            statements.push(Statement { about: query.about, name, says });
        }
    }
    Ok(statements)
}

/// What belongs to the cluster; of databases, and of settings in databases, those named.
pub(super) async fn of_cluster(
    client: &Client,
    version: u32,
    databases: &[&str],
) -> Result<Vec<Statement>, PostgresError> {
    let named = databases.iter().map(|name| crate::sql::quote_literal(name)).collect::<Vec<_>>().join(", ");
    let named = if named.is_empty() { "null".to_owned() } else { named };
    let mut member = vec![("admin", "bool_or(m.admin_option)")];
    if version >= 160_000 {
        member.extend([("inherit", "bool_or(m.inherit_option)"), ("set", "bool_or(m.set_option)")]);
    }
    let mut role = vec![
        ("superuser", "rolsuper"),
        ("inherit", "rolinherit"),
        ("create role", "rolcreaterole"),
        ("create database", "rolcreatedb"),
        ("login", "rolcanlogin"),
        ("replication", "rolreplication"),
        ("connection limit", "rolconnlimit"),
        ("valid until", "extract(epoch from rolvaliduntil)"),
        // Not even the digest of a password: only that it is the same one.
        ("password", "md5(md5(rolpassword) || rolname)"),
    ];
    if version >= 90_500 {
        role.push(("bypasses row security", "rolbypassrls"));
    }
    let database_acl = acl("d.datacl", "d", "d.datdba");
    let tablespace_acl = acl("t.spcacl", "t", "t.spcowner");
    let mut database = vec![
        ("owner", "pg_get_userbyid(d.datdba)"),
        ("encoding", "pg_encoding_to_char(d.encoding)"),
        ("collate", "d.datcollate"),
        ("ctype", "d.datctype"),
        ("template", "d.datistemplate"),
        ("connections allowed", "d.datallowconn"),
        ("connection limit", "d.datconnlimit"),
        ("privileges", database_acl.as_str()),
        ("tablespace", "(select spcname from pg_tablespace where oid = d.dattablespace)"),
    ];
    if version >= 150_000 {
        database.extend([("locale provider", "d.datlocprovider"), ("version", "d.datcollversion")]);
    }
    let queries = [
        query(About::Role, 0, "rolname", &role, "pg_authid where rolname !~ '^pg_'"),
        query(
            About::Membership,
            0,
            "quote_ident(g.rolname) || ' of ' || quote_ident(r.rolname)",
            &member,
            "pg_auth_members m join pg_roles r on r.oid = m.member join pg_roles g on g.oid = m.roleid group by g.rolname, r.rolname",
        ),
        query(
            About::Setting,
            0,
            "coalesce('role ' || quote_ident(r.rolname), 'every role') || coalesce(' in database ' || quote_ident(d.datname), '')",
            &[("settings", "select string_agg(c, E'\\n' order by c collate \"C\") from unnest(s.setconfig) c")],
            &format!(
                "pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase \
                 where s.setdatabase = 0 or d.datname in ({named})"
            ),
        ),
        query(
            About::Tablespace,
            0,
            "t.spcname",
            &[
                ("owner", "pg_get_userbyid(t.spcowner)"),
                ("privileges", &tablespace_acl),
                ("options", "array_to_string(t.spcoptions, ', ')"),
            ],
            "pg_tablespace t where t.spcname !~ '^pg_'",
        ),
        query(About::Database, 0, "d.datname", &database, &format!("pg_database d where d.datname in ({named})")),
    ];
    ask(client, version, &queries).await
}

/// What belongs to the database behind `client`.
pub(super) async fn of_database(client: &Client, version: u32) -> Result<Vec<Statement>, PostgresError> {
    let mut queries = relations(version);
    queries.extend(routines(version));
    queries.extend(others(version));
    ask(client, version, &queries).await
}

const TABLE: &str = "quote_ident(n.nspname) || '.' || quote_ident(c.relname)";

fn relations(version: u32) -> Vec<Query> {
    let own = of_users("pg_class", "c.oid", "n");
    let from_class = "pg_class c join pg_namespace n on n.oid = c.relnamespace";
    let relation_acl = format!(
        "case when c.relkind = 'S' then ({}) else ({}) end",
        acl("c.relacl", "s", "c.relowner"),
        acl("c.relacl", "r", "c.relowner")
    );
    let columns = format!(
        "select md5(coalesce(string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull \
         || coalesce(' ' || pg_get_expr(f.adbin, f.adrelid), '') || ({}), E'\\n' order by a.attname::text collate \"C\"), '')) \
         from pg_attribute a left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum \
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped",
        rights("a.attacl")
    );
    let mut says = vec![
        ("kind", "c.relkind"),
        ("owner", "pg_get_userbyid(c.relowner)"),
        ("privileges", relation_acl.as_str()),
        ("persistence", "c.relpersistence"),
        ("columns", columns.as_str()),
        ("replica identity", "c.relreplident"),
        ("options", "select string_agg(o, ', ' order by o) from unnest(c.reloptions) o"),
        ("tablespace", "select spcname from pg_tablespace where oid = c.reltablespace"),
        ("definition", "case when c.relkind in ('v', 'm') then md5(pg_get_viewdef(c.oid)) end"),
    ];
    if version >= 90_500 {
        says.extend([("row security", "c.relrowsecurity"), ("forced row security", "c.relforcerowsecurity")]);
    }
    if version >= 100_000 {
        says.push(("partition", "pg_get_expr(c.relpartbound, c.oid)"));
    }
    let schema_acl = acl("n.nspacl", "n", "n.nspowner");
    // A foreign key to a partitioned table has one more for each partition, which the server makes and names as it likes.
    let derived = if version >= 110_000 { "and (k.contype <> 'f' or k.conparentid = 0)" } else { "" };
    let constraint_of = format!(
        "pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace where {own} {derived}"
    );
    vec![
        query(
            About::Schema,
            0,
            "n.nspname",
            &[("owner", "pg_get_userbyid(n.nspowner)"), ("privileges", &schema_acl)],
            &format!("pg_namespace n where {}", of_users("pg_namespace", "n.oid", "n")),
        ),
        query(
            About::Relation,
            0,
            TABLE,
            &says,
            &format!(
                "{from_class} where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relpersistence <> 't' and {own}"
            ),
        ),
        query(
            About::Index,
            0,
            "quote_ident(n.nspname) || '.' || quote_ident(ic.relname)",
            &[
                ("table", TABLE),
                ("valid", "i.indisvalid"),
                ("definition", "pg_get_indexdef(i.indexrelid)"),
                ("clustered", "i.indisclustered"),
                ("tablespace", "select spcname from pg_tablespace where oid = ic.reltablespace"),
            ],
            &format!(
                "pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_class c on c.oid = i.indrelid \
                 join pg_namespace n on n.oid = c.relnamespace where c.relpersistence <> 't' and {own}"
            ),
        ),
        query(
            About::Constraint,
            0,
            &format!("{TABLE} || ' ' || quote_ident(k.conname)"),
            &[("definition", "pg_get_constraintdef(k.oid)"), ("validated", "k.convalidated")],
            &constraint_of,
        ),
        query(
            About::Trigger,
            0,
            &format!("{TABLE} || ' ' || quote_ident(g.tgname)"),
            &[("definition", "pg_get_triggerdef(g.oid)"), ("enabled", "g.tgenabled")],
            &format!(
                "pg_trigger g join pg_class c on c.oid = g.tgrelid join pg_namespace n on n.oid = c.relnamespace \
                 where not g.tgisinternal and {own}"
            ),
        ),
        query(
            About::Rule,
            0,
            &format!("{TABLE} || ' ' || quote_ident(w.rulename)"),
            &[("definition", "md5(pg_get_ruledef(w.oid))"), ("enabled", "w.ev_enabled")],
            &format!(
                "pg_rewrite w join pg_class c on c.oid = w.ev_class join pg_namespace n on n.oid = c.relnamespace \
                 where w.rulename <> '_RETURN' and {own}"
            ),
        ),
        query(
            About::Policy,
            90_500,
            &format!("{TABLE} || ' ' || quote_ident(y.polname)"),
            &[
                ("command", "y.polcmd"),
                ("using", "pg_get_expr(y.polqual, y.polrelid)"),
                ("check", "pg_get_expr(y.polwithcheck, y.polrelid)"),
                (
                    "roles",
                    "select string_agg(case when o = 0 then 'PUBLIC' else pg_get_userbyid(o)::text end, ', ' \
                     order by case when o = 0 then 'PUBLIC' else pg_get_userbyid(o)::text end) from unnest(y.polroles) o",
                ),
            ],
            &format!(
                "pg_policy y join pg_class c on c.oid = y.polrelid join pg_namespace n on n.oid = c.relnamespace where {own}"
            ),
        ),
        query(
            About::Statistics,
            100_000,
            "quote_ident(n.nspname) || '.' || quote_ident(x.stxname)",
            &[("definition", "pg_get_statisticsobjdef(x.oid)"), ("owner", "pg_get_userbyid(x.stxowner)")],
            &format!(
                "pg_statistic_ext x join pg_namespace n on n.oid = x.stxnamespace where {}",
                of_users("pg_statistic_ext", "x.oid", "n")
            ),
        ),
    ]
}

fn routines(version: u32) -> Vec<Query> {
    let plain = if version >= 110_000 { "p.prokind in ('f', 'p', 'w')" } else { "not p.proisagg" };
    let definition = format!("case when {plain} then md5(pg_get_functiondef(p.oid)) end");
    let function_acl = acl("p.proacl", "f", "p.proowner");
    let type_acl = acl("t.typacl", "T", "t.typowner");
    let domain = "select string_agg(pg_get_constraintdef(k.oid), ', ' order by k.conname::text collate \"C\") \
                  from pg_constraint k where k.contypid = t.oid and k.contype <> 'n'";
    let composite = "select string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum) \
                     from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped";
    vec![
        query(
            About::Function,
            0,
            "quote_ident(n.nspname) || '.' || quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')'",
            &[("owner", "pg_get_userbyid(p.proowner)"), ("privileges", &function_acl), ("definition", &definition)],
            &format!(
                "pg_proc p join pg_namespace n on n.oid = p.pronamespace where {} \
                 and not exists (select 1 from pg_depend i where i.classid = 'pg_proc'::regclass and i.objid = p.oid and i.deptype = 'i')",
                of_users("pg_proc", "p.oid", "n")
            ),
        ),
        query(
            About::Type,
            0,
            "quote_ident(n.nspname) || '.' || quote_ident(t.typname)",
            &[
                ("kind", "t.typtype"),
                ("owner", "pg_get_userbyid(t.typowner)"),
                ("privileges", &type_acl),
                (
                    "labels",
                    "select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid",
                ),
                (
                    "domain of",
                    "case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) || ' ' || t.typnotnull end",
                ),
                ("default", "t.typdefault"),
                ("constraints", domain),
                ("attributes", composite),
            ],
            &format!(
                "pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class r on r.oid = t.typrelid \
                 where t.typtype in ('b', 'c', 'd', 'e', 'r') and t.typelem = 0 and (t.typrelid = 0 or r.relkind = 'c') and {}",
                of_users("pg_type", "t.oid", "n")
            ),
        ),
        query(
            About::EventTrigger,
            0,
            "v.evtname",
            &[
                ("event", "v.evtevent"),
                ("enabled", "v.evtenabled"),
                ("owner", "pg_get_userbyid(v.evtowner)"),
                ("tags", "array_to_string(v.evttags, ', ')"),
                (
                    "function",
                    "select quote_ident(n.nspname) || '.' || quote_ident(p.proname) from pg_proc p \
                     join pg_namespace n on n.oid = p.pronamespace where p.oid = v.evtfoid",
                ),
            ],
            &format!("pg_event_trigger v where {}", not_of_extension("pg_event_trigger", "v.oid")),
        ),
    ]
}

fn others(version: u32) -> Vec<Query> {
    let mut collation =
        vec![("owner", "pg_get_userbyid(k.collowner)"), ("collate", "k.collcollate"), ("ctype", "k.collctype")];
    if version >= 100_000 {
        collation.extend([("provider", "k.collprovider"), ("version", "k.collversion")]);
    }
    let server_acl = acl("s.srvacl", "S", "s.srvowner");
    let default_rights = rights("d.defaclacl");
    let number_of = |catalogue: &str| {
        let own = not_of_extension(catalogue, "x.oid");
        format!("select count(*) from {catalogue} x where x.oid >= 16384 and {own}")
    };
    let counted = [
        ("aggregates and operators", "pg_operator"),
        ("casts", "pg_cast"),
        ("conversions", "pg_conversion"),
        ("operator classes", "pg_opclass"),
        ("operator families", "pg_opfamily"),
        ("languages", "pg_language"),
        ("text search configurations", "pg_ts_config"),
        ("text search dictionaries", "pg_ts_dict"),
        ("text search parsers", "pg_ts_parser"),
        ("text search templates", "pg_ts_template"),
    ]
    .map(|(word, catalogue)| (word, number_of(catalogue)));
    let counted: Vec<(&str, &str)> = counted.iter().map(|(word, sql)| (*word, sql.as_str())).collect();
    let comments = "select md5(coalesce(string_agg(i || ': ' || description, E'\\n' order by i collate \"C\", description collate \"C\"), '')) from \
         (select pg_describe_object(d.classoid, d.objoid, d.objsubid) as i, d.description from pg_description d \
          where d.objoid >= 16384 and not exists (select 1 from pg_depend e where e.classid = d.classoid and e.objid = d.objoid \
          and e.deptype = 'e') and d.classoid <> 'pg_extension'::regclass) x";
    vec![
        query(
            About::Extension,
            0,
            "x.extname",
            &[
                ("version", "x.extversion"),
                ("schema", "select nspname from pg_namespace where oid = x.extnamespace"),
                ("owner", "pg_get_userbyid(x.extowner)"),
            ],
            "pg_extension x",
        ),
        query(
            About::DefaultPrivileges,
            0,
            "pg_get_userbyid(d.defaclrole)::text || coalesce(' in schema ' || quote_ident(n.nspname), '') || ' on ' || d.defaclobjtype::text",
            &[("privileges", &default_rights)],
            "pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace",
        ),
        query(
            About::Collation,
            0,
            "quote_ident(n.nspname) || '.' || quote_ident(k.collname)",
            &collation,
            &format!(
                "pg_collation k join pg_namespace n on n.oid = k.collnamespace where {}",
                of_users("pg_collation", "k.oid", "n")
            ),
        ),
        query(
            About::Publication,
            100_000,
            "p.pubname",
            &[
                ("owner", "pg_get_userbyid(p.pubowner)"),
                ("all tables", "p.puballtables"),
                ("insert", "p.pubinsert"),
                ("update", "p.pubupdate"),
                ("delete", "p.pubdelete"),
                (
                    "tables",
                    "select string_agg(t, ', ' order by t) from (select quote_ident(schemaname) || '.' || quote_ident(tablename) as t \
                     from pg_publication_tables where pubname = p.pubname) x",
                ),
            ],
            "pg_publication p",
        ),
        query(
            About::Subscription,
            100_000,
            "s.subname",
            &[("owner", "pg_get_userbyid(s.subowner)"), ("publications", "array_to_string(s.subpublications, ', ')")],
            "pg_subscription s where s.subdbid = (select oid from pg_database where datname = current_database())",
        ),
        query(
            About::ForeignServer,
            0,
            "s.srvname",
            &[
                ("owner", "pg_get_userbyid(s.srvowner)"),
                ("wrapper", "select fdwname from pg_foreign_data_wrapper where oid = s.srvfdw"),
                ("privileges", &server_acl),
                ("options", "select md5(string_agg(o, E'\\n' order by o collate \"C\")) from unnest(s.srvoptions) o"),
            ],
            "pg_foreign_server s",
        ),
        query(
            About::UserMapping,
            0,
            "case when m.umuser = 0 then 'PUBLIC' else pg_get_userbyid(m.umuser)::text end || ' on ' || quote_ident(s.srvname)",
            &[("options", "select md5(string_agg(o, E'\\n' order by o collate \"C\")) from unnest(m.umoptions) o")],
            "pg_user_mapping m join pg_foreign_server s on s.oid = m.umserver",
        ),
        query(About::Comments, 0, "'comments'", &[("content", comments)], "(select 1) one"),
        query(About::OtherObjects, 0, "'other objects'", &counted, "(select 1) one"),
    ]
}
