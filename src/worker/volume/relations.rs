//! Which relation a file belongs to, as far as the server can tell.

use std::path::Path;

use crate::backup_set::DamagedFile;
use crate::cluster::DatabaseName;
use crate::postgres::{self, Login};
use crate::worker::process::connect_somewhere;

/// What a file's name says of its relation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// 0: the default one.
    pub(crate) tablespace: u32,
    /// 0: all databases share it.
    pub(crate) database: u32,
    pub(crate) file_number: u32,
}

impl Place {
    /// What `file` says, which is relative to the data directory. None: it is no relation's.
    pub(crate) fn of(file: &str) -> Option<Self> {
        let parts: Vec<&str> = Path::new(file).iter().filter_map(|part| part.to_str()).collect();
        let (tablespace, database, name) = match parts[..] {
            ["global", name] => (1664, 0, name),
            ["base", database, name] => (0, database.parse().ok()?, name),
            ["pg_tblspc", tablespace, version, database, name] if version.starts_with("PG_") => {
                (tablespace.parse().ok()?, database.parse().ok()?, name)
            }
            _ => return None,
        };
        let file_number = name.split(['_', '.']).next()?.parse().ok()?;
        Some(Self { tablespace, database, file_number })
    }
}

/// Names the relations of files with damaged pages. One whose catalogue is damaged too is left without a name.
pub(super) async fn name(login: &Login, mut damaged: Vec<DamagedFile>) -> Vec<DamagedFile> {
    for file in &mut damaged {
        if let Some(place) = Place::of(&file.file) {
            file.relation = relation(login, &place).await;
        }
    }
    damaged
}

async fn relation(login: &Login, place: &Place) -> Option<String> {
    let somewhere = connect_somewhere(login).await.ok()?;
    let (client, database) = if place.database == 0 {
        (somewhere, None)
    } else {
        let named = "select datname::text from pg_database where oid = $1";
        let name: String = somewhere.query_one(named, &[&place.database]).await.ok()?.get(0);
        (postgres::connect(login, &DatabaseName::new(&name).ok()?).await.ok()?, Some(name))
    };
    let relation = "select n.nspname::text || '.' || c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
        where c.oid = pg_filenode_relation($1, $2)";
    let name: String = client.query_one(relation, &[&place.tablespace, &place.file_number]).await.ok()?.get(0);
    Some(database.map_or_else(|| name.clone(), |database| format!("{database}.{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_name_says_where_it_belongs() {
        let place = |tablespace, database, file_number| Some(Place { tablespace, database, file_number });
        assert_eq!(Place::of("base/5/16384.1"), place(0, 5, 16384));
        assert_eq!(Place::of("base/5/16384_fsm"), place(0, 5, 16384));
        assert_eq!(Place::of("global/1262"), place(1664, 0, 1262));
        assert_eq!(Place::of("pg_tblspc/16400/PG_17_1/5/16401"), place(16400, 5, 16401));
        assert_eq!(Place::of("pg_wal/000000010000000000000001"), None);
    }
}
