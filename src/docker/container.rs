//! Containers and images as the engine describes them, reduced to what pglife decides by.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{ContainerInspectResponse, ImageInspect};

/// A container as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// The image it was made from, as it was named then.
    pub image: String,
    /// That image's id.
    pub image_id: String,
    /// True while its program runs.
    pub running: bool,
    /// When it was made; None where the engine does not say it in a way that we understand.
    pub created: Option<jiff::Timestamp>,
    /// When its program was started last, in the engine's own words: others after a restart.
    pub started_at: Option<String>,
    /// `running`, `exited`, `created`, ….
    pub status: String,
    /// Exit code of the last end.
    pub exit_code: Option<i64>,
    /// The kernel killed it for its memory.
    pub out_of_memory: bool,
    /// `healthy`, `starting`, `unhealthy`, where it has a check.
    pub health: Option<String>,
    /// Everything mounted.
    pub mounts: Vec<Mount>,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Whom its program runs as, in the engine's words: `user`, `user:group`, or nothing for root.
    pub user: String,
    /// Environment, `NAME=value`. Values may be secret: never print or store them.
    pub environment: Vec<String>,
    /// Entry point and arguments.
    pub command: Vec<String>,
    /// Networks it is in, and its address there.
    pub networks: BTreeMap<String, String>,
    /// Published ports: `5432/tcp` to `address:port`.
    pub ports: BTreeMap<String, Vec<String>>,
    /// What it may use.
    pub limits: Limits,
}

/// What a container may use of its host; `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<i64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<i64>,
}

impl Limits {
    fn of(host: &bollard::models::HostConfig) -> Self {
        // The engine says 0 for "no limit"; limits by quota are those of old clients.
        let set = |value: Option<i64>| value.filter(|value| *value > 0);
        let by_quota =
            || Some(set(host.cpu_quota)?.saturating_mul(1_000_000_000) / set(host.cpu_period).unwrap_or(100_000));
        Self { memory_bytes: set(host.memory), nano_cpus: set(host.nano_cpus).or_else(by_quota) }
    }
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `volume`, `bind` or `tmpfs`.
    pub kind: String,
    /// The volume's name, or the path on the host.
    pub source: String,
    /// The path on the host, of a volume too; empty for memory.
    pub folder: String,
    /// Where the container sees it.
    pub destination: String,
    /// False where it is mounted read-only.
    pub writable: bool,
}

impl Container {
    pub(super) fn from_inspection(found: ContainerInspectResponse) -> Self {
        let state = found.state.unwrap_or_default();
        let config = found.config.unwrap_or_default();
        let network = found.network_settings.unwrap_or_default();
        let limits = found.host_config.as_ref().map(Limits::of).unwrap_or_default();
        let mut command = config.entrypoint.unwrap_or_default();
        command.extend(config.cmd.unwrap_or_default());
        Self {
            id: found.id.unwrap_or_default(),
            name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            image: config.image.unwrap_or_default(),
            image_id: found.image.unwrap_or_default(),
            created: found.created.and_then(|time| time.parse().ok()),
            running: state.running.unwrap_or(false),
            started_at: state.started_at,
            status: state.status.map(|status| status.to_string()).unwrap_or_default(),
            exit_code: state.exit_code,
            out_of_memory: state.oom_killed.unwrap_or(false),
            health: state
                .health
                .and_then(|health| health.status)
                .map(|status| status.to_string())
                .filter(|status| !status.is_empty() && status != "none"),
            mounts: found
                .mounts
                .unwrap_or_default()
                .into_iter()
                .map(|mount| Mount {
                    kind: mount.typ.as_ref().map(ToString::to_string).unwrap_or_default(),
                    folder: mount.source.clone().unwrap_or_default(),
                    source: match mount.typ.as_ref().map(ToString::to_string).as_deref() {
                        Some("volume") => mount.name.unwrap_or_default(),
                        _ => mount.source.unwrap_or_default(),
                    },
                    destination: mount.destination.unwrap_or_default(),
                    writable: mount.rw.unwrap_or(false),
                })
                .collect(),
            labels: config.labels.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            environment: config.env.unwrap_or_default(),
            command,
            networks: network
                .networks
                .unwrap_or_default()
                .into_iter()
                .map(|(name, endpoint)| (name, endpoint.ip_address.unwrap_or_default()))
                .collect(),
            ports: network
                .ports
                .unwrap_or_default()
                .into_iter()
                .map(|(port, bindings)| {
                    let bindings = bindings.unwrap_or_default().into_iter().map(|binding| {
                        format!("{}:{}", binding.host_ip.unwrap_or_default(), binding.host_port.unwrap_or_default())
                    });
                    (port, bindings.collect())
                })
                .collect(),
            limits,
        }
    }

    /// Its program begins as root.
    pub fn begins_as_root(&self) -> bool {
        ["", "0", "root"].contains(&self.user.split(':').next().unwrap_or_default())
    }

    /// Names of the environment variables, without their values.
    pub fn environment_names(&self) -> Vec<String> {
        let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
        self.environment.iter().map(name).collect()
    }

    /// The value of an environment variable; look only at those that cannot be secret.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
    }

    /// The mount that `path` lies in: the one with the longest destination above it.
    pub fn mount_of(&self, path: &str) -> Option<&Mount> {
        self.mounts
            .iter()
            .filter(|mount| is_below(path, &mount.destination))
            .max_by_key(|mount| mount.destination.len())
    }
}

/// True when `path` is `folder` or lies in it.
pub fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An image on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it was asked for by.
    pub reference: String,
    /// The engine's id, `sha256:…`.
    pub id: String,
    /// Digests it has in registries.
    pub digests: Vec<String>,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Environment that its containers start with.
    pub environment: Vec<String>,
    /// Command that its containers start with, behind its entry point.
    pub command: Vec<String>,
}

impl Image {
    pub(super) fn from_inspection(reference: &str, found: ImageInspect) -> Self {
        let config = found.config.unwrap_or_default();
        Self {
            reference: reference.to_owned(),
            id: found.id.unwrap_or_default(),
            digests: found.repo_digests.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
            environment: config.env.unwrap_or_default(),
            command: config.cmd.unwrap_or_default(),
        }
    }

    /// True for an image made from `docker/postgres`: it keeps the contract of the data container.
    pub fn is_ours(&self) -> bool {
        self.labels.get(super::label::IMAGE).map(String::as_str) == Some("postgres")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mount = |destination: &str| Mount {
            kind: "volume".to_owned(),
            source: destination.to_owned(),
            folder: String::new(),
            destination: destination.to_owned(),
            writable: true,
        };
        let mounts = ["/var/lib/postgresql", "/var/lib/postgresql/data", "/var/lib/postgresql/database"];
        let container = Container {
            running: true,
            mounts: mounts.map(mount).to_vec(),
            environment: vec!["PGDATA=/var/lib/postgresql/data/17".to_owned(), "PGDATABASE=x".to_owned()],
            ..Container::default()
        };
        let found = container.mount_of("/var/lib/postgresql/data/17").expect("a mount");
        assert_eq!(found.destination, "/var/lib/postgresql/data");
        assert!(container.mount_of("/etc").is_none());
        for (user, is_root) in [("", true), ("0:0", true), ("root", true), ("999", false), ("postgres:0", false)] {
            let container = Container { user: user.to_owned(), ..Container::default() };
            assert_eq!(container.begins_as_root(), is_root, "{user}");
        }
        assert_eq!(container.variable("PGDATA"), Some("/var/lib/postgresql/data/17"));
    }
}
