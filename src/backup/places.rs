//! Where the files of a cluster are: as its server sees them, on the host, and in a copy. Pure.
//!
//! A cluster that pglife made has them in the volumes of its data container, which the copy has under the same names. That of an
//! adopted one lie where somebody put them. Its copy has them where pglife's images look for them, so that it restores as any
//! other: the data directory in `/data/<major>`, a tablespace of `/mnt/fast` in `/data/tablespaces/mnt/fast`.

use crate::backup_set::{Moved, ServerProfile};
use crate::cluster::PgMajor;
use crate::docker::Container;
use crate::docker::container::{Mount, is_below};
use crate::docker::worker::WorkerMount;
use crate::policy::{Layout, Policy, VolumeName};

/// Where a copy has the tablespaces of an adopted cluster.
const TABLESPACES: &str = "/data/tablespaces";

/// The variable by which the official image is told where the WAL is to lie.
const WAL_FOLDER: &str = "POSTGRES_INITDB_WALDIR";

/// What a worker mounts to copy a cluster, and what is where else then.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Places {
    /// Read-only, each.
    pub(super) mounts: Vec<WorkerMount>,
    /// Folders that the server sees elsewhere, the data directory first; none, where pglife laid the containers out.
    pub(super) moved: Vec<Moved>,
}

/// Files that cannot be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The policy names a volume that is not there.
    #[error("container \"{container}\" has no volume at {volume}")]
    NoVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// The data directory is gone with the container.
    #[error("the data directory {0} lies in the container itself, not in a volume or in a folder of the host")]
    InContainer(String),
    /// A tablespace is somewhere else.
    #[error("tablespace \"{name}\" lies in {location}, which is in none of the volumes that are copied ({volumes})")]
    TablespaceOutside {
        /// Its name.
        name: String,
        /// Its folder.
        location: String,
        /// What is copied.
        volumes: String,
    },
}

/// The data directory of a server of `major`, where pglife's images have it.
pub(super) fn data_directory(major: PgMajor) -> String {
    format!("/data/{major}")
}

/// Finds what is to be copied of the cluster of `policy`, whose server told `server` of itself.
pub(super) fn find(policy: &Policy, container: &Container, server: &ServerProfile) -> Result<Places, PlaceError> {
    match &policy.layout {
        Layout::Managed(_) => in_volumes(&policy.volume.volumes, container, server),
        Layout::Adopted(adopted) => wherever(&adopted.pgdata.to_string_lossy(), container, server),
    }
}

/// What a worker mounts to copy the cluster, as far as that is known without its server; None: it is not.
pub(super) fn known(policy: &Policy, container: &Container) -> Result<Option<Vec<WorkerMount>>, PlaceError> {
    match &policy.layout {
        Layout::Managed(_) => mount_volumes(&policy.volume.volumes, container).map(Some),
        Layout::Adopted(_) => Ok(None),
    }
}

fn mount_volumes(volumes: &[VolumeName], container: &Container) -> Result<Vec<WorkerMount>, PlaceError> {
    let mount = |volume: &VolumeName| {
        let found = container.mounts.iter().find(|mount| mount.destination == volume.path());
        let found = found.map(|mount| read_only(mount.source.clone(), mount.destination.clone()));
        found
            .ok_or_else(|| PlaceError::NoVolume { container: container.name.clone(), volume: volume.path().to_owned() })
    };
    volumes.iter().map(mount).collect()
}

fn in_volumes(volumes: &[VolumeName], container: &Container, server: &ServerProfile) -> Result<Places, PlaceError> {
    let mounts = mount_volumes(volumes, container)?;
    let volumes: Vec<&str> = volumes.iter().map(|volume| volume.path()).collect();
    // One in the data directory itself has a relative location.
    let elsewhere =
        |location: &str| location.starts_with('/') && !volumes.iter().any(|volume| is_below(location, volume));
    match server.tablespaces.iter().find(|tablespace| elsewhere(&tablespace.location)) {
        Some(outside) => Err(PlaceError::TablespaceOutside {
            name: outside.name.clone(),
            location: outside.location.clone(),
            volumes: volumes.join(", "),
        }),
        None => Ok(Places { mounts, moved: vec![] }),
    }
}

fn wherever(pgdata: &str, container: &Container, server: &ServerProfile) -> Result<Places, PlaceError> {
    let on_host = |path: &str| container.mount_of(path).and_then(|mount| source(mount, path));
    let data = on_host(pgdata).ok_or_else(|| PlaceError::InContainer(pgdata.to_owned()))?;
    let to = data_directory(server.major);
    let mut mounts = vec![read_only(data, to.clone())];
    let mut moved = vec![Moved { from: pgdata.trim_end_matches('/').to_owned(), to }];
    for tablespace in &server.tablespaces {
        let location = &tablespace.location;
        if !location.starts_with('/') || is_below(location, pgdata) {
            continue;
        }
        let source = on_host(location).ok_or_else(|| PlaceError::TablespaceOutside {
            name: tablespace.name.clone(),
            location: location.clone(),
            volumes: container.mounts.iter().map(|mount| mount.destination.clone()).collect::<Vec<_>>().join(", "),
        })?;
        let to = format!("{TABLESPACES}{location}");
        mounts.push(read_only(source, to.clone()));
        moved.push(Moved { from: location.clone(), to });
    }
    // A link in the data directory leads there; the worker follows it.
    let wal = container.variable(WAL_FOLDER).filter(|folder| !is_below(folder, pgdata));
    mounts.extend(wal.and_then(|folder| Some(read_only(on_host(folder)?, folder.to_owned()))));
    Ok(Places { mounts, moved })
}

fn read_only(source: String, destination: String) -> WorkerMount {
    WorkerMount { source, destination, writable: false }
}

/// By what a worker mounts `path`, which lies in `mount`: a volume by its name, what lies inside of one by its path on the host.
/// None for memory.
fn source(mount: &Mount, path: &str) -> Option<String> {
    let inside = path.strip_prefix(mount.destination.trim_end_matches('/'))?.trim_end_matches('/');
    match mount.kind.as_str() {
        "volume" if inside.is_empty() => Some(mount.source.clone()),
        "volume" | "bind" => Some(format!("{}{inside}", mount.folder.trim_end_matches('/'))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::{Tablespace, example_manifest};

    fn mount(kind: &str, source: &str, destination: &str) -> Mount {
        let folder =
            if kind == "volume" { format!("/var/lib/docker/volumes/{source}/_data") } else { source.to_owned() };
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            folder,
            destination: destination.to_owned(),
            writable: true,
        }
    }

    fn server(tablespaces: &[&str]) -> ServerProfile {
        let tablespaces =
            tablespaces.iter().map(|location| Tablespace { name: "fast".to_owned(), location: (*location).to_owned() });
        ServerProfile { tablespaces: tablespaces.collect(), ..example_manifest().server }
    }

    fn adopted(
        mounts: Vec<Mount>,
        tablespaces: &[&str],
        pgdata: &str,
        variables: &[&str],
    ) -> Result<Places, PlaceError> {
        let environment = variables.iter().map(ToString::to_string).collect();
        wherever(pgdata, &Container { mounts, environment, ..Container::default() }, &server(tablespaces))
    }

    fn seen(places: &Places) -> Vec<(&str, &str)> {
        places.mounts.iter().map(|mount| (mount.source.as_str(), mount.destination.as_str())).collect()
    }

    #[test]
    fn a_data_directory_is_found_wherever_it_lies() {
        let pgdata = "/var/lib/postgresql/data";
        let whole = adopted(vec![mount("volume", "shop", pgdata)], &[], pgdata, &[]).expect("found");
        assert_eq!(seen(&whole), [("shop", "/data/17")]);
        assert_eq!(whole.moved, [Moved { from: pgdata.to_owned(), to: "/data/17".to_owned() }]);
        let bound = adopted(vec![mount("bind", "/srv/pg/", "/var/lib/postgresql")], &[], pgdata, &[]).expect("found");
        assert_eq!(seen(&bound), [("/srv/pg/data", "/data/17")]);
        let below =
            adopted(vec![mount("volume", "shop", "/var/lib/postgresql")], &[], "/var/lib/postgresql/18/docker", &[]);
        assert_eq!(seen(&below.expect("found")), [("/var/lib/docker/volumes/shop/_data/18/docker", "/data/17")]);
        for elsewhere in
            [vec![], vec![mount("tmpfs", "", pgdata)], vec![mount("bind", "/srv", "/var/lib/postgresql/database")]]
        {
            let refused = adopted(elsewhere, &[], pgdata, &[]);
            assert_eq!(refused, Err(PlaceError::InContainer(pgdata.to_owned())));
        }
    }

    #[test]
    fn tablespaces_and_wal_come_along() {
        let mounts =
            || vec![mount("volume", "data", "/pg"), mount("bind", "/ssd", "/mnt"), mount("volume", "wal", "/wal")];
        let all = ["/mnt/fast one", "/pg/inside", "pg_tblspc/16400"];
        let found = adopted(mounts(), &all, "/pg", &["POSTGRES_INITDB_WALDIR=/wal"]).expect("found");
        let expected = [("data", "/data/17"), ("/ssd/fast one", "/data/tablespaces/mnt/fast one"), ("wal", "/wal")];
        assert_eq!(seen(&found), expected);
        assert_eq!(Moved::place(&found.moved, "/mnt/fast one/x").as_deref(), Some("/data/tablespaces/mnt/fast one/x"));
        assert_eq!(Moved::place(&found.moved, "/pg/inside").as_deref(), Some("/data/17/inside"));
        let refused = adopted(mounts(), &["/srv/fast"], "/pg", &[]).expect_err("in no mount");
        assert_eq!(
            refused.to_string(),
            "tablespace \"fast\" lies in /srv/fast, which is in none of the volumes that are copied (/pg, /mnt, /wal)"
        );
    }

    #[test]
    fn a_tablespace_of_a_managed_cluster_must_be_in_a_volume_that_is_copied() {
        let container = Container {
            mounts: vec![mount("volume", "data", "/data"), mount("volume", "log", "/log")],
            ..Container::default()
        };
        let with = |location: &str| in_volumes(&[VolumeName::Data], &container, &server(&[location]));
        for inside in ["/data/tablespaces/fast", "pg_tblspc/16400"] {
            assert_eq!(seen(&with(inside).expect("inside")), [("data", "/data")], "{inside}");
        }
        for outside in ["/srv/fast", "/database/fast", "/log/fast"] {
            assert!(matches!(with(outside), Err(PlaceError::TablespaceOutside { .. })), "{outside}");
        }
        let absent = in_volumes(&[VolumeName::Config], &container, &server(&[]));
        assert!(matches!(absent, Err(PlaceError::NoVolume { .. })));
    }
}
