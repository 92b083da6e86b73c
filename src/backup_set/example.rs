//! A manifest for tests: the units' own, and those of the contract that a set keeps on its way into any store.

use super::Kind;
use super::manifest::{
    Ancestor, Content, CopyMode, DatabaseProfile, ImageReference, Incremental, MANIFEST_VERSION, Manifest, Measured,
    Object, ServerProfile, Tablespace, VolumeCopy,
};
use crate::cluster::{DatabaseName, PgMajor, RoleName};

/// A small logical set of three databases, one with an odd name.
pub fn example() -> Manifest {
    let object = |name: &str, content| Object {
        name: name.to_owned(),
        content,
        stored: Measured::of(b"stored"),
        plain: Measured::of(b"the plain bytes"),
        seconds: 0.25,
    };
    let database = |name: &str| DatabaseName::new(name).expect("a name");
    let profile = |name: &str| DatabaseProfile {
        name: database(name),
        oid: 16384,
        bytes: 7_000_000,
        connectable: true,
        is_template: name == "template1",
        encoding: "UTF8".to_owned(),
        collate: "C.UTF-8".to_owned(),
        ctype: "C.UTF-8".to_owned(),
    };
    Manifest {
        version: MANIFEST_VERSION,
        set: "20261122T023000Z-dump-k3x9qa".parse().expect("an id"),
        kind: Kind::Dump,
        cluster: "chado".parse().expect("a name"),
        lineage: "7412345678901234567-17".parse().expect("a lineage"),
        started_at: "2026-11-22T02:30:00Z".parse().expect("a time"),
        completed_at: "2026-11-22T02:31:40Z".parse().expect("a time"),
        pglife: "0.1.0".to_owned(),
        tools: vec!["pg_dump (PostgreSQL) 17.6".to_owned()],
        codec: "zstd:1".to_owned(),
        server: ServerProfile {
            version: "17.6".to_owned(),
            major: PgMajor::since_10(17),
            system_identifier: 7_412_345_678_901_234_567,
            bootstrap_role: RoleName::new("postgres").expect("a role"),
            data_checksums: true,
            wal_segment_bytes: 16 << 20,
            databases: ["it's $HOME", "postgres", "template1"].map(profile).to_vec(),
            tablespaces: vec![Tablespace { name: "fast".to_owned(), location: "/data/table spaces/fast".to_owned() }],
            settings: std::collections::BTreeMap::new(),
            files: vec![],
        },
        image: ImageReference { name: "pglife/postgres:17".to_owned(), id: "sha256:0123".to_owned(), digests: vec![] },
        encryption: None,
        objects: vec![
            object("globals.sql.zst", Content::Globals),
            object(
                "db/it%27s%20%24HOME.dump.zst",
                Content::Database { database: database("it's $HOME"), afterwards: vec![] },
            ),
            object("db/postgres.dump.zst", Content::Database { database: database("postgres"), afterwards: vec![] }),
            object("db/template1.dump.zst", Content::Database { database: database("template1"), afterwards: vec![] }),
        ],
        skipped: vec![],
        warnings: vec![],
    }
}

/// A copy of the volumes of the same cluster with a block index, which builds on `ancestors`.
pub fn copy(ancestors: Vec<Ancestor>) -> Manifest {
    let object = |name: &str, content| {
        let measured = Measured::of(b"bytes");
        Object { name: name.to_owned(), content, stored: measured, plain: measured, seconds: 1.0 }
    };
    let incremental = (!ancestors.is_empty()).then_some(Incremental {
        tar_bytes: 1,
        ancestors,
        unread_bytes: 0,
        summaries_unused: None,
    });
    let copy = VolumeCopy {
        volumes: ["/data", "/config", "/secret", "/log"].map(str::to_owned).to_vec(),
        pgdata: "/data/17".to_owned(),
        moved: vec![],
        sorting: None,
        mode: CopyMode::Hot,
        start_lsn: String::new(),
        stop_lsn: String::new(),
        timeline: 1,
        first_wal: String::new(),
        last_wal: String::new(),
        backup_label: String::new(),
        entries: 1,
        server_files: 1,
        damaged: vec![],
        incremental,
        history: None,
    };
    Manifest {
        set: "20261122T023000Z-volume-k3x9qa".parse().expect("an id"),
        kind: Kind::Volume,
        objects: vec![
            object("volume.tar.zst", Content::Volume(Box::new(copy))),
            object("volume.blocks.zst", Content::Blocks),
        ],
        ..example()
    }
}
