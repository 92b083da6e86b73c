//! What of a copy of volumes one of its databases needs. Pure.

use super::plan::PlanError;
use crate::backup_set::{Manifest, Moved};
use crate::cluster::DatabaseName;
use crate::docker::container::is_below;
use crate::provision::REACHES_NOTHING;
use crate::worker::Excerpt;

/// Databases that are whole in every excerpt: tools log in to them, and new databases are copies of them.
const WHOLE: [&str; 3] = ["postgres", "template0", "template1"];

/// From this major on a server can be told to replay changes of what is not there (`ignore_invalid_pages`). Before, all is whole.
pub(crate) const CAN_BE_HOLLOW: u16 = 13;

/// Settings of a server that lives for one dump: what it says of its replay is read, nothing else works in it, and nothing of it must
/// outlive a crash of the machine.
const FOR_ONE_DUMP: &str = "log_destination = 'stderr'\nlogging_collector = off\nlog_min_messages = warning\n\
    max_worker_processes = 0\nautovacuum_freeze_max_age = 2000000000\nfsync = off\n\
    zero_damaged_pages = off\nignore_checksum_failure = off\n";

/// What is needed for a server that has nothing to do but to dump `wanted` of the copy that `manifest` describes.
pub(crate) fn excerpt(manifest: &Manifest, wanted: &DatabaseName) -> Result<Excerpt, PlanError> {
    let server = &manifest.server;
    let (_, copy) = manifest.volume().ok_or(PlanError::NoVolumes)?;
    let Some(database) =
        server.databases.iter().find(|database| database.name == *wanted && wanted.as_str() != "template0")
    else {
        let names = server.databases.iter().map(|database| database.name.as_str());
        let available = names.filter(|name| *name != "template0").collect::<Vec<_>>().join(", ");
        return Err(PlanError::NoSuchDatabase { database: wanted.clone(), available });
    };
    if !database.connectable {
        return Err(PlanError::RefusesConnections(wanted.clone()));
    }
    let mut tablespaces = Vec::new();
    for tablespace in &server.tablespaces {
        let location = &tablespace.location;
        let place = Moved::place(&copy.moved, location).unwrap_or_else(|| location.clone());
        if !is_below(&place, "/data") {
            return Err(PlanError::TablespaceOutside { name: tablespace.name.clone(), location: location.clone() });
        }
        tablespaces.push(place);
    }
    let mut settings = format!("# Added by pglife: this server is here for one dump.\n{REACHES_NOTHING}{FOR_ONE_DUMP}");
    let mut hollow = Vec::new();
    if server.major.is_at_least(CAN_BE_HOLLOW) {
        settings.push_str("ignore_invalid_pages = on\n");
        let others =
            server.databases.iter().filter(|other| other.name != *wanted && !WHOLE.contains(&other.name.as_str()));
        hollow.extend(others.map(|other| other.oid));
    }
    Ok(Excerpt { pgdata: copy.pgdata.clone(), tablespaces, hollow, entries: copy.entries, settings, part: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::{Content, DatabaseProfile, Tablespace, example_copy};

    fn manifest(major: &str) -> Manifest {
        let mut manifest = example_copy(vec![]);
        let database = |name: &str, oid: u32, connectable: bool| DatabaseProfile {
            name: DatabaseName::new(name).expect("a name"),
            oid,
            bytes: 8 << 20,
            connectable,
            is_template: name.starts_with("template"),
            encoding: "UTF8".to_owned(),
            collate: "C".to_owned(),
            ctype: "C".to_owned(),
        };
        manifest.server.major = major.parse().expect("a major");
        manifest.server.tablespaces.clear();
        manifest.server.databases = vec![
            database("one", 16384, true),
            database("postgres", 5, true),
            database("shut", 16386, false),
            database("template0", 4, false),
            database("template1", 1, true),
            database("two", 16385, true),
        ];
        manifest
    }

    fn of(manifest: &Manifest, wanted: &str) -> Result<Excerpt, PlanError> {
        excerpt(manifest, &DatabaseName::new(wanted).expect("a name"))
    }

    #[test]
    fn the_others_are_hollow_where_a_server_can_be_told_so() {
        for (major, wanted, hollow) in [
            ("17", "one", vec![16386, 16385]),
            ("17", "postgres", vec![16384, 16386, 16385]),
            ("13", "two", vec![16384, 16386]),
            ("12", "one", vec![]),
            ("9.6", "one", vec![]),
        ] {
            let excerpt = of(&manifest(major), wanted).expect("an excerpt");
            assert_eq!(excerpt.hollow, hollow, "{major} {wanted}");
            assert_eq!(excerpt.settings.contains("ignore_invalid_pages"), !hollow.is_empty(), "{major}");
        }
    }

    #[test]
    fn what_cannot_be_dumped_is_refused() {
        let manifest = manifest("17");
        let nothing = of(&manifest, "three").expect_err("it is not there");
        assert_eq!(
            nothing.to_string(),
            "database \"three\" is not in the backup; it has: one, postgres, shut, template1, two"
        );
        assert!(matches!(of(&manifest, "template0"), Err(PlanError::NoSuchDatabase { .. })));
        assert!(matches!(of(&manifest, "shut"), Err(PlanError::RefusesConnections(_))));
    }

    #[test]
    fn tablespaces_are_where_the_copy_has_them() {
        let mut manifest = manifest("17");
        manifest.server.tablespaces = vec![Tablespace { name: "fast".to_owned(), location: "/mnt/fast".to_owned() }];
        assert!(matches!(of(&manifest, "one"), Err(PlanError::TablespaceOutside { .. })));
        for object in &mut manifest.objects {
            if let Content::Volume(copy) = &mut object.content {
                copy.moved = vec![Moved { from: "/mnt/fast".to_owned(), to: "/data/tablespaces/fast".to_owned() }];
            }
        }
        assert_eq!(of(&manifest, "one").expect("an excerpt").tablespaces, ["/data/tablespaces/fast"]);
    }
}
