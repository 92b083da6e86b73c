use super::super::plan::{DataContainer, Single};
use super::*;
use crate::backup_set::{DatabaseProfile, Tablespace};
use crate::cluster::{DatabaseName, RoleName};
use crate::postgres::survey::Outdated;

fn major(number: u16) -> PgMajor {
    PgMajor::since_10(number)
}

fn profile(from: u16) -> ServerProfile {
    ServerProfile {
        version: format!("{from}.1"),
        major: major(from),
        system_identifier: 7,
        bootstrap_role: RoleName::new("postgres").expect("a role"),
        data_checksums: true,
        wal_segment_bytes: 16 << 20,
        databases: vec![database("postgres", true), database("template0", false)],
        tablespaces: vec![],
        settings: std::collections::BTreeMap::new(),
        files: vec![],
    }
}

fn database(name: &str, connectable: bool) -> DatabaseProfile {
    DatabaseProfile {
        name: DatabaseName::new(name).expect("a name"),
        oid: 1,
        bytes: 8 << 20,
        connectable,
        is_template: !connectable,
        encoding: "UTF8".to_owned(),
        collate: "C".to_owned(),
        ctype: "C".to_owned(),
    }
}

fn pair() -> Containers {
    let name = |text: &str| text.parse().expect("a name");
    let data =
        DataContainer { name: name("c-data"), old_id: "1".to_owned(), kept: name("c-data-pg15"), shared: vec![] };
    Containers::Pair(data)
}

fn single() -> Containers {
    let (data_mount, pgdata) = ("/var/lib/postgresql/data".to_owned(), "/var/lib/postgresql/data".to_owned());
    Containers::Single(Single { data_mount, pgdata, restore_settings: vec![], new_folder: None })
}

fn survey() -> Survey {
    Survey { data_directory: "/data/15".to_owned(), free_bytes: u64::MAX, ..Survey::default() }
}

fn setting(file: &str, name: &str, value: &str) -> FileSetting {
    FileSetting { file: file.to_owned(), name: name.to_owned(), value: value.to_owned(), error: None }
}

#[test]
fn a_plain_server_has_nothing_against_it() {
    let mut plain = survey();
    plain.settings = vec![
        setting("/data/15/postgresql.conf", "max_connections", "100"),
        setting("/data/15/postgresql.conf", "TimeZone", "UTC"),
        setting("/config/my.conf", "work_mem", "64MB"),
        setting("/data/15/postgresql.auto.conf", "work_mem", "8MB"),
    ];
    plain.access_files = vec!["/data/15/pg_hba.conf".to_owned(), "/config/pg_ident.conf".to_owned()];
    assert_eq!(findings(&profile(15), &plain, major(18), &pair()), []);
}

#[test]
fn everything_that_blocks_is_told_at_once_with_a_remedy() {
    let mut bad = survey();
    bad.prepared = vec!["'x' in database \"a\"".to_owned()];
    bad.subscriptions = vec!["s in database \"a\"".to_owned()];
    bad.in_recovery = true;
    bad.free_bytes = 1 << 20;
    bad.settings = vec![
        setting("/config/a.conf", "force_parallel_mode", "on"),
        setting("/data/15/postgresql.conf", "max_connections", "500"),
        FileSetting { error: Some("invalid value".to_owned()), ..setting("/config/a.conf", "work_mem", "x") },
    ];
    bad.role_settings = vec![("role \"r\"".to_owned(), "force_parallel_mode=on".to_owned())];
    bad.access_files = vec!["/etc/pg_hba.conf".to_owned()];
    let mut server = profile(15);
    server.databases.push(database("closed", false));
    server.tablespaces.push(Tablespace { name: "far".to_owned(), location: "/mnt/x".to_owned() });
    let found = findings(&server, &bad, major(18), &pair());
    for part in [
        "standby",
        "prepared transaction",
        "subscription s",
        "\"closed\"",
        "tablespace \"far\"",
        "/config/a.conf is unknown to PostgreSQL 18",
        "max_connections was set to '500'",
        "invalid value",
        "of role \"r\"",
        "/etc/pg_hba.conf",
        "MB free",
    ] {
        let finding = found.iter().find(|finding| finding.what.contains(part)).unwrap_or_else(|| panic!("{part}"));
        assert_eq!(finding.severity, Severity::Blocks);
        assert!(!finding.remedy.is_empty());
    }
    assert_eq!(found.len(), 11);
}

#[test]
fn a_setting_is_removed_only_between_the_majors_of_the_upgrade() {
    let mut server = survey();
    server.settings = vec![setting("/config/a.conf", "old_snapshot_threshold", "1h")];
    assert_eq!(findings(&profile(15), &server, major(16), &pair()), []);
    assert_eq!(findings(&profile(15), &server, major(17), &pair()).len(), 1);
}

#[test]
fn slots_and_receivers_are_warnings() {
    let mut server = survey();
    server.slots = vec!["s (logical)".to_owned()];
    server.receivers = vec!["walreceiver".to_owned()];
    let found = findings(&profile(15), &server, major(17), &pair());
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
    assert_eq!(found.len(), 2);
}

#[test]
fn what_the_new_image_lacks_is_named_with_those_who_need_it() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let installation = Installation {
        library_folder: "/usr/lib/postgresql/18/lib".to_owned(),
        libraries: set(&["auto_explain", "plugins/mine"]),
        extensions: set(&["plpgsql", "hstore"]),
        locales: set(&["de_DE.utf8"]),
        ..Installation::default()
    };
    let database = |name: &str| DatabaseName::new(name).expect("a name");
    let mut server = survey();
    server.extensions = [
        ("plpgsql".to_owned(), vec![database("a")]),
        ("hstore".to_owned(), vec![database("a")]),
        ("postgis".to_owned(), vec![database("a"), database("b c")]),
        ("adminpack".to_owned(), vec![database("a")]),
    ]
    .into();
    server.preloaded = vec![
        ("local_preload_libraries".to_owned(), "mine".to_owned()),
        ("shared_preload_libraries".to_owned(), "auto_explain, \"pg_cron\"".to_owned()),
    ];
    server.role_settings = vec![("role \"r\"".to_owned(), "session_preload_libraries=gone".to_owned())];
    server.libraries = [("$libdir/own".to_owned(), "function f(integer) of database \"a\"".to_owned())].into();
    server.locales = [
        ("C".to_owned(), "database \"a\"".to_owned()),
        ("de_DE.UTF-8".to_owned(), "database \"a\"".to_owned()),
        ("de_AT.UTF-8".to_owned(), "collation \"austrian\" of database \"a\"".to_owned()),
    ]
    .into();
    let found = missing_in_image(&server, &installation, "pglife/postgres:18", major(18));
    let parts = [
        ("extension adminpack, in database \"a\", is not in pglife/postgres:18", "PostgreSQL 17 removed it"),
        ("extension postgis, in database \"a\", \"b c\"", "--image"),
        ("setting shared_preload_libraries loads library pg_cron", "take it out"),
        ("setting session_preload_libraries of role \"r\" loads library gone", "take it out"),
        ("library $libdir/own of function f(integer)", "DROP FUNCTION"),
        ("locale de_AT.UTF-8 of collation \"austrian\"", "--image"),
    ];
    assert_eq!(found.len(), parts.len(), "{found:#?}");
    for (finding, (what, remedy)) in found.iter().zip(parts) {
        assert_eq!(finding.severity, Severity::Blocks);
        assert!(finding.what.contains(what), "{finding:?}");
        assert!(finding.remedy.contains(remedy), "{finding:?}");
    }
}

#[test]
fn what_a_later_major_does_not_take_is_told_only_for_that_major() {
    let outdated =
        |kind, name: &str| Outdated { kind, name: name.to_owned(), database: DatabaseName::new("a").expect("a name") };
    let mut server = survey();
    server.outdated = vec![
        outdated(OutdatedKind::Oids, "t"),
        outdated(OutdatedKind::PostfixOperator, "!!!(bigint,NONE)"),
        outdated(OutdatedKind::NullableChild, "public.child (c)"),
    ];
    let told = |to| findings(&profile(11), &server, major(to), &pair()).len();
    assert_eq!((told(12), told(13), told(14)), (2, 2, 3));
    let words = findings(&profile(11), &server, major(14), &pair())[1].what.clone();
    assert!(words.contains("postfix") && words.contains("!!!(bigint,NONE) in database \"a\""), "{words}");
}

#[test]
fn what_matters_to_one_method_is_told_for_that_one() {
    let mut survey = survey();
    survey.slots = vec!["s (logical)".to_owned(), "p (physical)".to_owned()];
    let plain = ServerProfile { data_checksums: false, ..profile(17) };
    let told = |method, from: u16| {
        let server = ServerProfile { major: major(from), ..plain.clone() };
        of_method(method, &server, &survey, major(18))
            .into_iter()
            .map(|one| (one.severity, one.what))
            .collect::<Vec<_>>()
    };
    let dump = told(UpgradeMethod::Dump, 17);
    assert_eq!(dump.len(), 1, "{dump:?}");
    assert!(dump[0].0 == Severity::Note && dump[0].1.contains("checksums"), "{dump:?}");
    let archiving = {
        let mut server = profile(17);
        server.settings.insert("archive_mode".to_owned(), "on".to_owned());
        of_method(UpgradeMethod::Dump, &server, &survey, major(17))
    };
    assert!(archiving.len() == 1 && archiving[0].severity == Severity::Warning, "{archiving:?}");
    let files = told(UpgradeMethod::PgUpgrade, 17);
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].0 == Severity::Blocks && files[0].1.contains("slot s (logical)"), "{files:?}");
    assert_eq!(told(UpgradeMethod::PgUpgrade, 15), []);
}

/// The files of an adopted cluster's data directory are carried, and its other mounts are the new container's, too.
#[test]
fn an_adopted_cluster_keeps_its_settings_where_it_has_them() {
    let mut adopted = survey();
    adopted.data_directory = "/var/lib/postgresql/data".to_owned();
    adopted.settings = vec![
        setting("/var/lib/postgresql/data/postgresql.conf", "max_connections", "500"),
        setting("/etc/postgresql/my.conf", "work_mem", "64MB"),
    ];
    adopted.access_files = vec!["/etc/postgresql/pg_hba.conf".to_owned()];
    assert_eq!(findings(&profile(15), &adopted, major(18), &single()), []);

    let location = |text: &str| Tablespace { name: "fast".to_owned(), location: text.to_owned() };
    for place in ["/mnt/fast", "/data/fast", "pg_tblspc/16400"] {
        let server = ServerProfile { tablespaces: vec![location(place)], ..profile(15) };
        assert_eq!(findings(&server, &adopted, major(18), &single()).len(), 1, "{place}");
    }
}

#[test]
fn a_disk_that_does_not_hold_the_data_twice_is_told_of() {
    let needed = with_room(100 << 20);
    assert_eq!(needed, 366 << 20);
    assert_eq!(shortage(needed, needed), None);
    let said = shortage(needed, needed - 1).expect("a byte too little");
    assert!(said.contains("needs 366 MB") && said.contains("has 365 MB free"), "{said}");
}
