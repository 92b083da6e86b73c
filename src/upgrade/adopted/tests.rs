use std::collections::HashMap;

use super::*;
use crate::postgres::survey::FileSetting;
use crate::upgrade::preflight::Severity;

const PGDATA: &str = "/var/lib/postgresql/data";

fn major(number: u16) -> PgMajor {
    PgMajor::since_10(number)
}

fn mounted(kind: &str, source: &str, destination: &str) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        folder: String::new(),
        destination: destination.to_owned(),
        writable: destination != "/extra",
    }
}

fn old(mounts: Vec<Mount>) -> Container {
    Container { name: "shop".to_owned(), mounts, ..Container::default() }
}

fn place(data_mount: &str, pgdata: &str) -> Single {
    let restore_settings = vec![("shared_preload_libraries".to_owned(), "a, b".to_owned())];
    Single { data_mount: data_mount.to_owned(), pgdata: pgdata.to_owned(), restore_settings, new_folder: None }
}

const VOLUME: &str = "pglife-shop-data-pg18";

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn the_next_image_has_the_same_name_but_for_the_major() {
    let of = |image: &str| successor(image, major(17), major(18));
    for (image, next) in [
        ("postgres:17", "postgres:18"),
        ("postgres:17.6", "postgres:18"),
        ("postgres:17-alpine", "postgres:18-alpine"),
        ("postgres:17.6-bookworm@sha256:0123", "postgres:18-bookworm"),
        ("registry:5000/team/postgis:17-3.5", "registry:5000/team/postgis:18-3.5"),
    ] {
        assert_eq!(of(image).as_deref(), Some(next), "{image}");
    }
    for image in [
        "postgres",
        "postgres:latest",
        "postgres:17rc1",
        "postgres:170",
        "postgres:17.",
        "registry:17/postgres",
        "sha256:17ab",
        "postgres:16",
    ] {
        assert_eq!(of(image), None, "{image}");
    }
    let of_96 = successor("postgres:9.6.24-alpine", "9.6".parse().expect("a major"), major(10));
    assert_eq!(of_96.as_deref(), Some("postgres:10-alpine"));
}

#[test]
fn every_mount_of_the_old_container_is_the_new_one_s_but_the_data() {
    // Nobody named the volume with the data: without a bind the engine would make another, empty one.
    let old = old(vec![
        mounted("volume", "c0ffee", PGDATA),
        mounted("bind", "/srv/conf", "/etc/postgresql"),
        mounted("volume", "extra", "/extra"),
        mounted("tmpfs", "", "/tmp"),
    ]);
    let body = || HostConfig {
        binds: Some(words(&["/srv/conf:/etc/postgresql:ro"])),
        volumes_from: Some(words(&["others"])),
        ..HostConfig::default()
    };
    let mut same = body();
    mount(&mut same, &old, None);
    let expected = ["/srv/conf:/etc/postgresql:ro", "c0ffee:/var/lib/postgresql/data", "extra:/extra:ro"];
    assert_eq!((same.binds, same.volumes_from), (Some(words(&expected)), None));

    let (mut new, adopted) = (body(), place(PGDATA, PGDATA));
    mount(&mut new, &old, Some((&adopted, VOLUME)));
    let expected =
        ["/srv/conf:/etc/postgresql:ro", "extra:/extra:ro", "pglife-shop-data-pg18:/var/lib/postgresql/data"];
    assert_eq!(new.binds, Some(words(&expected)));

    let mut named = HostConfig { binds: Some(words(&["shop:/var/lib/postgresql/data/"])), ..HostConfig::default() };
    mount(&mut named, &self::old(vec![mounted("volume", "shop", PGDATA)]), Some((&adopted, VOLUME)));
    assert_eq!(named.binds, Some(words(&["pglife-shop-data-pg18:/var/lib/postgresql/data"])));
}

#[test]
fn the_server_into_which_the_data_go_has_no_secrets_and_runs_nobody_s_scripts() {
    let environment = [
        "POSTGRES_PASSWORD_FILE=/run/word",
        "POSTGRES_DB=shop",
        "POSTGRES_INITDB_ARGS=--locale=de_DE.UTF-8",
        "TZ=Europe/Berlin",
        "PGDATA=/elsewhere",
    ];
    let binds = ["/srv/init:/docker-entrypoint-initdb.d/10.sql", "/srv/words:/usr/share/postgresql/tsearch_data"];
    let mut body = ContainerCreateBody {
        env: Some(words(&environment)),
        cmd: Some(words(&["postgres", "-c", "config_file=/etc/postgresql/x.conf"])),
        host_config: Some(HostConfig {
            binds: Some(words(&binds)),
            readonly_rootfs: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let role = RoleName::new("shop keeper").expect("a role");
    let port = NonZeroU16::new(6000).expect("a port");
    keep_data_directory(&mut body, &place(PGDATA, PGDATA));
    empty(&mut body, &place(PGDATA, PGDATA), &role, port, 64 << 20);
    add_settings(&mut body, [HIDDEN]);
    let expected = [
        "TZ=Europe/Berlin",
        "PGDATA=/var/lib/postgresql/data",
        "POSTGRES_USER=shop keeper",
        "POSTGRES_DB=postgres",
        "POSTGRES_HOST_AUTH_METHOD=trust",
        "POSTGRES_INITDB_ARGS=--wal-segsize=64",
    ];
    assert_eq!(body.env, Some(words(&expected)));
    let command = body.cmd.expect("a command").join(" ");
    assert_eq!(
        command,
        "postgres -c shared_preload_libraries=a, b -c ssl=off -c synchronous_standby_names= -c port=6000 \
         -c hba_file=/etc/pglife-hba.conf -c listen_addresses=127.0.0.1"
    );
    let host = body.host_config.expect("a host's part");
    assert_eq!(host.binds, Some(words(&binds[1..])));
    assert_eq!(host.tmpfs, Some(HashMap::from([(FIRST_START.to_owned(), String::new())])));
    assert_eq!(host.readonly_rootfs, Some(false));
}

#[test]
fn settings_are_added_to_any_command_of_the_official_image() {
    for (command, expected) in [
        (None, "postgres -c listen_addresses=127.0.0.1"),
        (Some(words(&["-c", "work_mem=1MB"])), "-c work_mem=1MB -c listen_addresses=127.0.0.1"),
    ] {
        let mut body = ContainerCreateBody { cmd: command, ..ContainerCreateBody::default() };
        add_settings(&mut body, [HIDDEN]);
        assert_eq!(body.cmd.expect("a command").join(" "), expected);
    }
    let of = |mode: &str| {
        let mut host = HostConfig { network_mode: Some(mode.to_owned()), ..HostConfig::default() };
        own_network(&mut host);
        host.network_mode.expect("a network")
    };
    assert_eq!(["host", "container:c0ffee", "shop-net"].map(of), ["bridge", "bridge", "shop-net"]);
}

fn image(command: &str) -> Image {
    Image {
        reference: "postgres:18".to_owned(),
        id: "sha256:1".to_owned(),
        digests: vec![],
        labels: HashMap::new(),
        environment: vec![],
        command: command.split(' ').map(str::to_owned).collect(),
    }
}

/// Of a container whose images are the official ones.
fn told(old: &Container, body: &ContainerCreateBody, pgdata: &str, survey: &Survey) -> Vec<Finding> {
    findings(old, body, [&image("postgres"); 2], pgdata, survey)
}

#[test]
fn what_stands_in_the_way_is_told_with_a_remedy() {
    let survey = Survey { data_directory: PGDATA.to_owned(), ..Survey::default() };
    let plain = old(vec![mounted("volume", "shop", PGDATA)]);
    let body = ContainerCreateBody { cmd: Some(words(&["postgres", "-c", "a=b"])), ..ContainerCreateBody::default() };
    assert_eq!(told(&plain, &body, PGDATA, &survey), []);

    let setting = |file: &str| FileSetting {
        file: file.to_owned(),
        name: "work_mem".to_owned(),
        value: "1MB".to_owned(),
        error: None,
    };
    let survey = Survey {
        data_directory: "/elsewhere".to_owned(),
        is_own_disk: true,
        settings: vec![setting("/etc/a.conf"), setting("/etc/a.conf"), setting("/var/lib/postgresql/data/b.conf")],
        ..Survey::default()
    };
    let bad = Container {
        environment: words(&["POSTGRES_INITDB_WALDIR=/wal"]),
        labels: ["com.docker.compose.project", "com.docker.swarm.service.name"]
            .map(|label| (label.to_owned(), "shop".to_owned()))
            .into(),
        ..old(vec![mounted("bind", "/srv/pg", PGDATA)])
    };
    let body = ContainerCreateBody {
        entrypoint: Some(words(&["bash"])),
        host_config: Some(HostConfig { auto_remove: Some(true), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let found = told(&bad, &body, PGDATA, &survey);
    let blocking = found.iter().filter(|finding| finding.severity == Severity::Blocks).count();
    assert_eq!((blocking, found.len()), (6, 8), "{found:#?}");
    assert!(found.iter().all(|finding| !finding.remedy.is_empty()));
    let inside = told(&old(vec![]), &ContainerCreateBody::default(), "/elsewhere", &survey);
    assert!(inside[0].what.contains("in the container itself"), "{inside:#?}");
}

#[test]
fn data_in_a_folder_of_the_host_get_another_one_beside_it() {
    let profile = crate::backup_set::example_manifest().server;
    let of = |kind: &str| {
        let old = old(vec![mounted(kind, "/srv/pg", "/var/lib/postgresql")]);
        single(&old, PGDATA, &profile, "-pg18-now")
    };
    let found = of("bind");
    assert_eq!(
        (found.data_mount.as_str(), found.new_folder.as_deref()),
        ("/var/lib/postgresql", Some("/srv/pg-pg18-now"))
    );
    assert_eq!(of("volume").new_folder, None);
    let upgraded = old(vec![mounted("bind", "/srv/pg-pg17-20261128T072216Z", PGDATA)]);
    assert_eq!(single(&upgraded, PGDATA, &profile, "-pg18-now").new_folder.as_deref(), Some("/srv/pg-pg18-now"));
    let seen = |folder: &str| {
        let (mount, seen) = beside(folder, true);
        (mount.source, seen)
    };
    assert_eq!(seen("/srv/pg-pg18"), ("/srv".to_owned(), "/pglife-beside/pg-pg18".to_owned()));
    assert_eq!(seen("/pg/"), ("/".to_owned(), "/pglife-beside/pg".to_owned()));
}

#[test]
fn a_socket_that_others_may_see_is_told() {
    let of = |mounts: &[(&str, &str)], folders: &[&str]| {
        let mounts = mounts.iter().map(|(kind, destination)| mounted(kind, "x", destination)).collect();
        let socket_folders = words(folders);
        let survey = Survey { data_directory: PGDATA.to_owned(), socket_folders, ..Survey::default() };
        shared_sockets(&old(mounts), &survey).into_iter().map(|(folder, _)| folder).collect::<Vec<_>>()
    };
    let usual = "/var/run/postgresql";
    for shared in ["/run/postgresql", "/var/run/postgresql/", "/run", "/var/run", "/var"] {
        assert_eq!(of(&[("volume", shared)], &[usual]), [usual], "{shared}");
        // A new server has it there at first.
        assert_eq!(of(&[("bind", shared)], &["/tmp"]), [usual], "{shared}");
    }
    assert_eq!(of(&[("bind", "/run/postgresql")], &["/run/postgresql"]), ["/run/postgresql"]);
    assert_eq!(of(&[("bind", "/sockets")], &[usual, "/sockets/a"]), ["/sockets/a"]);
    assert_eq!(of(&[("volume", PGDATA)], &["."]), [format!("{PGDATA}/.")]);
    // Nobody else has what lies in memory, in the container itself, or beside it.
    assert!(of(&[("volume", "/run"), ("tmpfs", "/var/run/postgresql")], &[usual]).is_empty());
    assert!(of(&[("volume", PGDATA), ("bind", "/run/secrets"), ("bind", "/srv")], &[usual, "@x", "/tmp"]).is_empty());
}

/// What blocks, of a container with these mounts and this host's part.
fn blocking(mounts: &[&str], host: HostConfig, environment: &[&str], survey: &Survey) -> Vec<String> {
    let mounts = mounts.iter().map(|destination| mounted("volume", destination, destination)).collect();
    let old = Container { environment: words(environment), ..old(mounts) };
    let body = ContainerCreateBody { host_config: Some(host), ..ContainerCreateBody::default() };
    let found = told(&old, &body, &survey.data_directory, survey);
    found.into_iter().filter(|one| one.severity == Severity::Blocks).map(|one| one.what).collect()
}

#[test]
fn a_data_directory_of_several_places_is_told() {
    let survey = Survey { data_directory: PGDATA.to_owned(), ..Survey::default() };
    let plain =
        || HostConfig { tmpfs: Some(HashMap::from([("/tmp".to_owned(), String::new())])), ..HostConfig::default() };
    let of = |mounts: &[&str], host: HostConfig, environment: &[&str]| blocking(mounts, host, environment, &survey);
    assert!(of(&["/var/lib/postgresql", PGDATA, "/var/lib/postgresql/data2"], plain(), &[]).is_empty());

    let wal = format!("{PGDATA}/pg_wal");
    let found = of(&[PGDATA, &wal], plain(), &[]);
    assert!(found.len() == 1 && found[0].starts_with(&wal), "{found:?}");
    let memory = HostConfig {
        tmpfs: Some(HashMap::from([(format!("{PGDATA}/pg_stat_tmp"), String::new())])),
        ..HostConfig::default()
    };
    assert_eq!(of(&[PGDATA], memory, &[]).len(), 1);

    for (options, blocked) in
        [("--waldir=/wal -k", 1), ("-k -X /wal", 1), ("'--waldir' /wal", 1), ("--locale=C -k --lc-collate=X", 0)]
    {
        assert_eq!(of(&[PGDATA], plain(), &[&format!("POSTGRES_INITDB_ARGS={options}")]).len(), blocked, "{options}");
    }

    let part = |target: &str| {
        let json = serde_json::json!({
            "Mounts": [{"Type": "volume", "Source": "x", "Target": target, "VolumeOptions": {"Subpath": "shop"}}]
        });
        serde_json::from_value::<HostConfig>(json).expect("a host's part")
    };
    assert_eq!(of(&[PGDATA], part("/var/lib/postgresql/data/"), &[]).len(), 1);
    assert_eq!(of(&[PGDATA, "/conf"], part("/conf"), &[]).len(), 0);
}

#[test]
fn the_command_of_an_image_must_be_plain() {
    let survey = Survey { data_directory: PGDATA.to_owned(), ..Survey::default() };
    let old = old(vec![mounted("volume", "shop", PGDATA)]);
    let of = |own: Option<&str>, images: [&str; 2]| {
        let cmd = own.map(|own| own.split(' ').map(str::to_owned).collect());
        let [before, after] = images.map(image);
        let body = ContainerCreateBody { cmd, ..ContainerCreateBody::default() };
        findings(&old, &body, [&before, &after], PGDATA, &survey).len()
    };
    let other = "postgres -D /etc/postgresql";
    assert_eq!(of(None, ["postgres", "postgres"]), 0);
    assert_eq!((of(None, [other, "postgres"]), of(None, ["postgres", other]), of(None, [other, other])), (1, 1, 2));
    assert_eq!(of(Some("postgres -c a=b"), [other, other]), 0);
}

#[test]
fn a_file_beside_the_data_directory_is_told() {
    let directory = format!("{PGDATA}/own");
    let of = |file: &str| {
        let survey = Survey {
            data_directory: directory.clone(),
            access_files: vec![file.to_owned(), format!("{PGDATA}/own/pg_ident.conf")],
            ..Survey::default()
        };
        blocking(&[PGDATA, "/conf", "/var/lib/postgresql/data/conf"], HostConfig::default(), &[], &survey).len()
    };
    assert_eq!(of(&format!("{PGDATA}/pg_hba.conf")), 1);
    for elsewhere in ["/conf/pg_hba.conf", "/etc/pg_hba.conf", "/var/lib/postgresql/data/conf/pg_hba.conf"] {
        assert_eq!(of(elsewhere), 0, "{elsewhere}");
    }
}
