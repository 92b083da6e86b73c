use super::*;
use crate::postgres::survey::FileSetting;

fn setting(file: &str, name: &str, value: &str) -> FileSetting {
    FileSetting { file: file.to_owned(), name: name.to_owned(), value: value.to_owned(), error: None }
}

#[test]
fn alter_system_is_said_again_the_last_one_wins() {
    let mut server = Survey::default();
    let auto = "/data/15/postgresql.auto.conf";
    server.settings = vec![
        setting(auto, "work_mem", "1MB"),
        setting(auto, "work_mem", "2MB"),
        setting(auto, "shared_preload_libraries", "auto_explain, pg_stat_statements"),
        setting(auto, "auto_explain.log_format", "it's"),
        setting("/config/a.conf", "port", "1"),
    ];
    assert_eq!(
        system_settings(&server),
        [
            r#"alter system set "auto_explain"."log_format" = E'it''s'"#,
            r#"alter system set "shared_preload_libraries" = E'auto_explain', E'pg_stat_statements'"#,
            r#"alter system set "work_mem" = E'2MB'"#,
        ]
    );
}

#[test]
fn a_policy_keeps_all_but_its_major_and_image() {
    let text = "# mine\n[cluster]\nmajor = \"15\" # old\nimage = 'pglife/postgres:15'\n\n[backup.dump]\nschedule = \"major = 1\"\n";
    assert_eq!(
        policy_with(text, PgMajor::since_10(18), Some("pglife/postgres:18")),
        "# mine\n[cluster]\nmajor = \"18\" # old\nimage = \"pglife/postgres:18\"\n\n[backup.dump]\nschedule = \"major = 1\"\n"
    );
    let text = "[cluster]\n  major='15'\n";
    assert_eq!(policy_with(text, PgMajor::since_10(17), None), "[cluster]\n  major = \"17\"\n");
}

#[test]
fn settings_of_every_role_are_carried_and_no_others() {
    let of = |whose: &str, setting: &str| (whose.to_owned(), setting.to_owned());
    let survey = Survey {
        role_settings: vec![
            of("all roles", "work_mem=4MB"),
            of("all roles", "search_path=\"$user\", public"),
            of("all roles in database \"x\"", "work_mem=5MB"),
            of("role \"bob\"", "work_mem=6MB"),
        ],
        ..Survey::default()
    };
    let expected =
        ["ALTER ROLE ALL SET \"work_mem\" TO E'4MB';", "ALTER ROLE ALL SET \"search_path\" TO \"$user\", public;"];
    let found = settings_of_every_role(&survey).into_iter().map(|one| one.replace('"', "")).collect::<Vec<_>>();
    assert_eq!(found, expected.map(|one| one.replace('"', "")));
}

#[test]
fn files_are_carried_from_where_the_old_server_reads_them() {
    use super::super::plan::{Containers, DataContainer, Single, example};
    let server = |data: &str| Survey {
        data_directory: data.to_owned(),
        settings: vec![
            setting(&format!("{data}/postgresql.conf"), "max_connections", "77"),
            setting(&format!("{data}/conf.d/tls.conf"), "ssl", "on"),
            setting(&format!("{data}/conf.d/tls.conf"), "ssl_key_file", "/run/secrets/key"),
            setting(&format!("{data}/postgresql.auto.conf"), "work_mem", "2MB"),
        ],
        access_files: vec![format!("{data}/pg_hba.conf"), "/etc/pg_ident.conf".to_owned()],
        ..Survey::default()
    };
    let name = |text: &str| text.parse().expect("a name");
    let pair =
        DataContainer { name: name("shop-data"), old_id: "1".to_owned(), kept: name("shop-data-pg17"), shared: vec![] };
    let plan = UpgradePlan { containers: Containers::Pair(pair), ..example() };
    let told = |files: Vec<(String, String)>| -> Vec<String> {
        files.iter().map(|(from, to)| format!("{from} {to}")).collect()
    };
    // What is in /config is shared, and a line of the data directory's own file was refused before.
    assert_eq!(told(files(&server("/data/17"), &plan)), ["17/pg_hba.conf pg_hba.conf"]);
    assert_eq!(plan.new_data_below("/x"), "/x/18");

    let single = |pgdata: &str| Single {
        data_mount: "/var/lib/postgresql/data".to_owned(),
        pgdata: pgdata.to_owned(),
        restore_settings: vec![],
        new_folder: None,
    };
    let pgdata = "/var/lib/postgresql/data/pgdata";
    let plan = UpgradePlan { containers: Containers::Single(single(pgdata)), ..example() };
    assert_eq!(plan.new_data_below("/x"), "/x/pgdata");
    let expected = [
        "pgdata/conf.d/tls.conf conf.d/tls.conf",
        "pgdata/pg_hba.conf pg_hba.conf",
        "pgdata/postgresql.conf postgresql.conf",
        "pgdata/server.crt server.crt",
    ];
    let told_of_both = |rules: &str| {
        let access_files = vec![rules.to_owned(), "/etc/pg_ident.conf".to_owned()];
        told(files(&Survey { access_files, ..server(pgdata) }, &plan))
    };
    for rules in ["/etc/pg_hba.conf", "/var/lib/postgresql/data/pgdata/pg_hba.conf"] {
        assert_eq!(told_of_both(rules), expected, "{rules}");
    }
    let plan = UpgradePlan { containers: Containers::Single(single("/var/lib/postgresql/data")), ..example() };
    assert_eq!(plan.new_data_below("/x"), "/x");
}
