//! What `pg_restore --list` says of a dump, and the order in which its entries are restored. Pure.
//!
//! `pg_restore -j` of 13 to 18 has three races that its dependencies do not exclude (each was seen): the state of a partition's
//! trigger is set before its parent's trigger is there; `ALTER INDEX … ATTACH PARTITION` deadlocks with its neighbours; and
//! a privilege that somebody else granted comes before the grantor's own right to the schema. So one dump is restored in three
//! calls:
//!
//! ```text
//! 1. definitions and rows            -j N, makes the database
//! 2. indexes and constraints         -j N: where the time goes
//! 3. all that is left, in order      one job: privileges, attachments, foreign keys, triggers, matviews' content, …
//! ```

use std::collections::HashSet;

use crate::worker::TableName;

/// The lists for the three calls; an empty one needs no call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Phases {
    /// Definitions and rows.
    pub(super) first: String,
    /// Indexes and constraints but foreign keys.
    pub(super) indexes: String,
    /// Everything else.
    pub(super) rest: String,
}

/// Divides `everything` (`--list --create`) into phases; `post_data` is what `--list --section=post-data` says.
pub(super) fn phases(everything: &str, post_data: &str) -> Phases {
    let post: HashSet<&str> = post_data.lines().filter_map(dump_id).collect();
    let mut phases = Phases { first: String::new(), indexes: String::new(), rest: String::new() };
    for line in everything.lines() {
        let Some(id) = dump_id(line) else { continue };
        let entry = entry_of(line);
        let list = if is_privilege(entry) {
            &mut phases.rest
        } else if !post.contains(id) {
            &mut phases.first
        } else if entry.starts_with("INDEX ") && !entry.starts_with("INDEX ATTACH ") || entry.starts_with("CONSTRAINT ")
        {
            &mut phases.indexes
        } else {
            &mut phases.rest
        };
        list.push_str(line);
        list.push('\n');
    }
    phases
}

/// Privileges on anything but the database itself: those belong to the call that makes it.
fn is_privilege(entry: &str) -> bool {
    entry.starts_with("DEFAULT ACL ") || (entry.starts_with("ACL ") && !entry.starts_with("ACL - DATABASE "))
}

/// The number that names an entry: `3456` in `3456; 0 16400 TABLE DATA public orders shop`.
fn dump_id(line: &str) -> Option<&str> {
    let (id, _) = line.split_once("; ")?;
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())).then_some(id)
}

/// The description of an entry: `TABLE DATA public orders shop` in `3456; 0 16400 TABLE DATA public orders shop`.
fn entry_of(line: &str) -> &str {
    line.split_once("; ").and_then(|(_, rest)| rest.splitn(3, ' ').nth(2)).unwrap_or_default()
}

/// The lines that restore the whole schema but the rows of one table only: without the rows of others, large objects, foreign
/// keys, and matviews' content. None when the table has no rows in the dump.
pub(super) fn keep_rows_of(table: &TableName, everything: &str) -> Option<String> {
    let rows = format!("TABLE DATA {} {} ", table.schema, table.name);
    let left_out =
        ["TABLE DATA ", "BLOB", "LARGE OBJECT", "FK CONSTRAINT ", "MATERIALIZED VIEW DATA ", "STATISTICS DATA "];
    let mut found = false;
    let mut kept = String::new();
    for line in everything.lines() {
        let entry = entry_of(line);
        let wanted = entry.starts_with(&rows);
        found |= wanted;
        // The comment on a foreign key goes with it.
        let of_foreign_key = entry.starts_with("COMMENT ") && entry.contains(" CONSTRAINT ");
        if wanted || !(of_foreign_key || left_out.iter().any(|kind| entry.starts_with(kind))) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    found.then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: &str = "; Archive created at …
5; 2615 2200 SCHEMA - public postgres
3500; 0 0 ACL - DATABASE shop postgres
3501; 0 0 ACL public TABLE orders shop
3502; 826 16450 DEFAULT ACL - DEFAULT PRIVILEGES FOR TABLES shop
215; 1259 16400 TABLE public orders shop
216; 1259 16410 TABLE public order_lines shop
3400; 0 16400 TABLE DATA public orders shop
3401; 0 16410 TABLE DATA public orders2 shop
3402; 0 0 SEQUENCE SET public orders_id_seq shop
3300; 2606 16420 CONSTRAINT public orders orders_pkey shop
3310; 1259 16421 INDEX public orders_note shop
3311; 0 0 INDEX ATTACH public orders_2026_note shop
3301; 2606 16430 FK CONSTRAINT public order_lines order_fk shop
3320; 2620 16440 TRIGGER public orders audit shop
";

    const POST_DATA: &str = ";
3300; 2606 16420 CONSTRAINT public orders orders_pkey shop
3310; 1259 16421 INDEX public orders_note shop
3311; 0 0 INDEX ATTACH public orders_2026_note shop
3301; 2606 16430 FK CONSTRAINT public order_lines order_fk shop
3320; 2620 16440 TRIGGER public orders audit shop
";

    #[test]
    fn every_entry_is_in_exactly_one_phase() {
        let phases = phases(EVERYTHING, POST_DATA);
        let ids = |list: &str| list.lines().filter_map(dump_id).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(ids(&phases.first), ["5", "3500", "215", "216", "3400", "3401", "3402"]);
        assert_eq!(ids(&phases.indexes), ["3300", "3310"]);
        assert_eq!(ids(&phases.rest), ["3501", "3502", "3311", "3301", "3320"]);
    }

    #[test]
    fn one_table_keeps_its_rows_and_everyone_their_definition() {
        let table = TableName { schema: "public".to_owned(), name: "orders".to_owned() };
        let kept = keep_rows_of(&table, EVERYTHING).expect("it has rows");
        assert!(
            kept.contains("TABLE DATA public orders shop") && kept.contains("CONSTRAINT public orders orders_pkey")
        );
        assert!(!kept.contains("orders2") && !kept.contains("FK CONSTRAINT"));
        assert_eq!(keep_rows_of(&TableName { schema: "x".to_owned(), ..table }, EVERYTHING), None);
    }
}
