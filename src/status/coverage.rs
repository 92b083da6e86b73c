//! What is in no backup, because no policy speaks of it: databases of a cluster, and servers on a host. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cluster::{ClusterName, DatabaseName, HostName};
use crate::docker::{Container, label};
use crate::policy::Policy;
use crate::state::SeenDatabases;

/// What is known of a cluster's databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CoverageStatus {
    /// When a backup run last looked which databases there are.
    pub seen_at: Timestamp,
    /// Databases that no backup takes and that the policy does not leave out by name.
    pub uncovered: Vec<DatabaseName>,
}

/// Compares the databases that a run saw with what the policy takes now. A copy of the volumes takes all of them.
pub(super) fn of_cluster(policy: &Policy, seen: &SeenDatabases) -> CoverageStatus {
    let copies_all = policy.volume.schedule.is_some() || policy.volume_freshness.is_some();
    let uncovered = |name: &&DatabaseName| !copies_all && !policy.dump.databases.speaks_of(name);
    CoverageStatus { seen_at: seen.at, uncovered: seen.names.iter().filter(uncovered).cloned().collect() }
}

/// A PostgreSQL server that no policy covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UncoveredServer {
    /// Its Docker host.
    pub host: HostName,
    /// Its container.
    pub container: String,
    /// The image.
    pub image: String,
}

/// The label with which the owner of a server says that pglife need not care: `pglife.ignore=true`.
const IGNORE: &str = "pglife.ignore";

/// Of the containers that run on `host`, those that serve PostgreSQL and belong to none of `policies`.
pub(super) fn servers(
    host: &HostName,
    containers: &[Container],
    policies: &BTreeMap<ClusterName, Policy>,
) -> Vec<UncoveredServer> {
    let is_covered = |container: &Container| {
        policies.values().any(|policy| policy.host == *host && policy.container.as_str() == container.name)
    };
    let is_set = |container: &Container, name: &str| container.labels.get(name).is_some_and(|value| value == "true");
    let uncovered = containers.iter().filter(|container| {
        container.running
            && serves_postgres(container)
            && !is_covered(container)
            && !is_set(container, IGNORE)
            && !is_set(container, label::MANAGED)
    });
    let mut servers: Vec<UncoveredServer> = uncovered
        .map(|container| UncoveredServer {
            host: host.clone(),
            container: container.name.clone(),
            image: container.image.clone(),
        })
        .collect();
    servers.sort_by(|one, other| one.container.cmp(&other.container));
    servers
}

/// True where it is started like a server of PostgreSQL: the variables that the images in use have, or the program's name.
fn serves_postgres(container: &Container) -> bool {
    let has = |name: &str| container.variable(name).is_some_and(|value| !value.is_empty());
    let runs = |word: &String| word.rsplit('/').next() == Some("postgres");
    ["PGDATA", "POSTGRESQL_VOLUME_DIR", "PGROOT"].into_iter().any(has) || container.command.iter().any(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::file;

    fn policy(text: &str) -> Policy {
        file::example(&format!("[cluster]\nmajor = '17'\n{text}"))
    }

    fn uncovered(text: &str, names: &[&str]) -> String {
        let names = names.iter().map(|name| DatabaseName::new(*name).expect("a name")).collect();
        let seen = SeenDatabases { at: Timestamp::UNIX_EPOCH, names };
        let found = of_cluster(&policy(text), &seen).uncovered;
        found.iter().map(DatabaseName::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_database_that_no_pattern_speaks_of_is_uncovered() {
        let names = ["app", "crm", "postgres"];
        assert_eq!(uncovered("", &names), "");
        assert_eq!(uncovered("[backup.dump]\ndatabases = ['app']", &names), "crm postgres");
        assert_eq!(uncovered("[backup.dump]\ndatabases = ['app', '!postgres']", &names), "crm");
        let both = "[backup.dump]\ndatabases = ['app']\n[backup.volume]\nschedule = '@daily'";
        assert_eq!(uncovered(both, &names), "", "a copy of the volumes takes all");
    }

    #[test]
    fn a_server_without_a_policy_is_told() {
        let host: HostName = "local".parse().expect("a name");
        let container = |name: &str, environment: &[&str], label: Option<&str>| Container {
            name: name.to_owned(),
            running: true,
            environment: environment.iter().map(ToString::to_string).collect(),
            labels: label.map(|label| (label.to_owned(), "true".to_owned())).into_iter().collect(),
            ..Container::default()
        };
        let ours = policy("").container.to_string();
        let containers = [
            container(&ours, &["PGDATA=/data/17"], None),
            container("theirs", &["PGDATA=/var/lib/postgresql/data"], None),
            container("web", &["PATH=/bin"], None),
            container("scratch", &["PGDATA=/x"], Some(IGNORE)),
            container("drill", &["PGDATA=/x"], Some(label::MANAGED)),
            Container {
                command: vec!["/usr/lib/postgresql/17/bin/postgres".to_owned()],
                ..container("bare", &[], None)
            },
            Container { running: false, ..container("stopped", &["PGDATA=/x"], None) },
        ];
        let policies = BTreeMap::from([(policy("").name, policy(""))]);
        let told = servers(&host, &containers, &policies);
        assert_eq!(told.iter().map(|it| it.container.as_str()).collect::<Vec<_>>(), ["bare", "theirs"]);
        let elsewhere: HostName = "db1".parse().expect("a name");
        assert_eq!(servers(&elsewhere, &containers, &policies).len(), 3, "the same name on another host");
    }
}
