//! Asks Docker, the repositories and the state how the clusters are.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{ClusterStatus, Findings, Place, RepositoryStatus, UncoveredServer, coverage, of_cluster, service};
use crate::cluster::ClusterName;
use crate::control::{ControlPlane, OperationError, failed};
use crate::dependents::{self, act::Dependents};
use crate::docker::Engine;
use crate::policy::Policy;
use crate::provision::{self, kept::StillKept};
use crate::storage::Location;

/// Runs that are looked at to count failures.
const RUNS: u32 = 200;

/// How all clusters are, or one of them. What cannot be found out about one is in its problems, and keeps nobody from the rest.
pub async fn look(
    control: &ControlPlane,
    only: Option<&ClusterName>,
    now: Timestamp,
) -> Result<Vec<ClusterStatus>, OperationError> {
    // Nobody wants to read that a server is down because a backup of it died.
    if let Err(error) = control.start_what_dead_runs_stopped().await {
        tracing::warn!("{}", error.chain());
    }
    let dead = control.state.dead_runs().map_err(failed("the runs cannot be read"))?;
    let dead: Vec<String> = dead.into_iter().map(|run| run.run).collect();
    let policies = control.configuration.select_all(only).map_err(|error| {
        let next = error.next();
        failed("the clusters cannot be looked at")(error).next(next)
    })?;
    let mut engines = BTreeMap::new();
    let mut rows = Vec::new();
    for policy in policies {
        // A host that is down is waited for once.
        if !engines.contains_key(&policy.host) {
            let engine = control.engine(&policy.host).await.map_err(failed("Docker"));
            engines.insert(policy.host.clone(), engine.map_err(|error| error.chain()));
        }
        let docker = match &engines[&policy.host] {
            Ok(engine) => on_host(control, engine, policy).await.map_err(|error| error.chain()),
            Err(problem) => Err(problem.clone()),
        };
        let (server, kept, place) = match docker {
            Ok(OnHost { server, kept, place }) => (Ok(server), kept, place),
            Err(problem) => (Err(problem), None, None),
        };
        let mut unreadable: Vec<String> = Vec::new();
        let mut states: Vec<RepositoryStatus> = Vec::new();
        let sets = control.repositories_of(policy, None).and_then(|repositories| {
            states.extend(repositories.open.iter().map(|(name, repository)| RepositoryStatus {
                name: name.clone(),
                problem: None,
                free_bytes: free_space(repository.location()),
                backups: 0,
            }));
            states.extend(repositories.failed.iter().map(|(name, error)| RepositoryStatus {
                name: name.clone(),
                problem: Some(error.chain()),
                free_bytes: None,
                backups: 0,
            }));
            let holdings = repositories.holdings(control, policy)?;
            let failed = repositories.failed.iter().map(|(_, error)| error);
            unreadable.extend(holdings.problems.iter().chain(failed).map(OperationError::chain));
            for state in &mut states {
                state.backups = holdings.sets.iter().filter(|held| held.repositories.contains(&state.name)).count();
            }
            Ok(holdings.sets)
        });
        let sets = sets.map_err(|error| error.chain());
        if let (Err(problem), true) = (&sets, states.is_empty()) {
            states.extend(policy.dump.repositories.iter().map(|name| RepositoryStatus {
                name: name.clone(),
                problem: Some(problem.clone()),
                free_bytes: None,
                backups: 0,
            }));
        }
        let runs = control.state.runs(Some(&policy.name), RUNS).map_err(failed("the runs cannot be read"))?;
        let upgrade = control.state.last_upgrade(&policy.name);
        let databases = control.state.seen_databases(&policy.name);
        let dependents = match &engines[&policy.host] {
            Ok(engine) => {
                Dependents { control, engine, policy, shared: None }.look().await.map_err(|error| error.chain())
            }
            Err(problem) => Err(problem.clone()),
        };
        let findings = Findings {
            server,
            kept,
            place,
            sets: sets.as_deref().map_err(Clone::clone),
            runs: &runs,
            dead: &dead,
            repositories: states,
            databases: databases.map_err(failed("the databases that were seen cannot be read"))?,
            dependents: dependents.map(dependents::act::Look::listed),
            upgrade: upgrade.map_err(failed("the journal of upgrades cannot be read"))?,
        };
        let mut row = of_cluster(policy, &findings, now);
        row.problems.extend(unreadable);
        rows.push(row);
    }
    Ok(rows)
}

/// The servers on all hosts that no policy covers; None where that is not asked for. A host that is down is told elsewhere.
pub async fn uncovered_servers(control: &ControlPlane) -> Option<Vec<UncoveredServer>> {
    let configuration = &control.configuration;
    if !configuration.settings.coverage.containers {
        return None;
    }
    let mut found = Vec::new();
    for host in configuration.settings.hosts.keys() {
        let containers = async { control.engine(host).await?.running_containers().await };
        match containers.await {
            Ok(containers) => {
                found.extend(coverage::servers(host, &containers, &configuration.policies));
            }
            Err(error) => tracing::debug!(%host, "its containers cannot be listed: {error}"),
        }
    }
    Some(found)
}

/// What a Docker host says of a cluster.
struct OnHost {
    /// The state of the database container.
    server: String,
    /// The server that a drill keeps.
    kept: Option<StillKept>,
    /// Where clients reach the database.
    place: Option<Place>,
}

async fn on_host(control: &ControlPlane, engine: &Engine, policy: &Policy) -> Result<OnHost, OperationError> {
    let found = provision::inventory(engine, policy).await?;
    let kept = provision::kept::find(engine, policy).await.map_err(failed("what drills keep cannot be looked at"))?;
    let published = found.database.as_ref().and_then(|container| container.ports.get(&format!("{}/tcp", policy.port)));
    let place = published
        .zip(control.configuration.settings.hosts.get(&policy.host))
        .and_then(|(published, endpoint)| service::place(published, endpoint));
    let server = match found.database {
        None => "not created".to_owned(),
        Some(container) if container.running => container.health.unwrap_or_else(|| "running".to_owned()),
        Some(container) => container.status,
    };
    Ok(OnHost { server, kept, place })
}

fn free_space(location: &Location) -> Option<u64> {
    let Location::Local { folder } = location else { return None };
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}
