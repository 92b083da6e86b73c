//! Whether a run may begin now. Pure: what goes on, what is wanted, the limits.
//!
//! There is no queue: a run that may not begin stays due, and is asked for again at the next tick, until it would be later than
//! its policy allows.

use std::num::NonZeroUsize;

use crate::cluster::{ClusterName, HostName, RepoName};

/// What a run takes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// The cluster: one run at a time.
    pub(super) cluster: ClusterName,
    /// The Docker host.
    pub(super) host: HostName,
    /// The repositories.
    pub(super) repositories: Vec<RepoName>,
}

/// How many runs there may be side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// On one Docker host.
    pub(super) per_host: NonZeroUsize,
    /// With one repository.
    pub(super) per_repository: NonZeroUsize,
}

/// Why a run has to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// There is a run on the cluster.
    #[error("another run works on the cluster")]
    Cluster,
    /// The host has enough to do.
    #[error("host \"{0}\" has as many runs as `daemon.runs_per_host` allows")]
    Host(HostName),
    /// The repository has enough to do.
    #[error("repository \"{0}\" has as many runs as `daemon.runs_per_repository` allows")]
    Repository(RepoName),
}

/// Decides about `wanted` beside what is `running`.
pub(super) fn admit(running: &[Claim], wanted: &Claim, limits: Limits) -> Result<(), Refusal> {
    if running.iter().any(|claim| claim.cluster == wanted.cluster) {
        return Err(Refusal::Cluster);
    }
    let on_host = running.iter().filter(|claim| claim.host == wanted.host).count();
    if on_host >= limits.per_host.get() {
        return Err(Refusal::Host(wanted.host.clone()));
    }
    for repository in &wanted.repositories {
        let with = running.iter().filter(|claim| claim.repositories.contains(repository)).count();
        if with >= limits.per_repository.get() {
            return Err(Refusal::Repository(repository.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(cluster: usize, host: usize, repositories: &[usize]) -> Claim {
        Claim {
            cluster: format!("c{cluster}").parse().expect("a name"),
            host: format!("h{host}").parse().expect("a name"),
            repositories: repositories.iter().map(|name| format!("r{name}").parse().expect("a name")).collect(),
        }
    }

    fn limits(per_host: usize, per_repository: usize) -> Limits {
        let number = |number| NonZeroUsize::new(number).expect("not zero");
        Limits { per_host: number(per_host), per_repository: number(per_repository) }
    }

    #[test]
    fn each_limit_is_named() {
        let running = [claim(1, 1, &[1]), claim(2, 1, &[2])];
        let asked = |wanted, limits| admit(&running, &wanted, limits).map_err(|refusal| refusal.to_string());
        assert_eq!(asked(claim(1, 2, &[]), limits(9, 9)), Err("another run works on the cluster".to_owned()));
        let host = asked(claim(3, 1, &[]), limits(2, 9)).expect_err("full");
        assert!(host.contains("host \"h1\"") && host.contains("runs_per_host"), "{host}");
        let repository = asked(claim(3, 2, &[3, 2]), limits(2, 1)).expect_err("full");
        assert!(repository.contains("repository \"r2\""), "{repository}");
        assert_eq!(asked(claim(3, 2, &[3]), limits(1, 1)), Ok(()));
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded_and_a_free_house_takes_anybody(
            wanted in proptest::collection::vec((0_usize..6, 0_usize..3, proptest::collection::vec(0_usize..4, 1..3)), 1..30),
            per_host in 1_usize..4, per_repository in 1_usize..4,
        ) {
            let limits = limits(per_host, per_repository);
            let mut running: Vec<Claim> = Vec::new();
            for (cluster, host, repositories) in wanted {
                let mut repositories = repositories;
                repositories.sort_unstable();
                repositories.dedup();
                let claim = claim(cluster, host, &repositories);
                prop_assert!(admit(&[], &claim, limits).is_ok());
                if admit(&running, &claim, limits).is_ok() {
                    running.push(claim);
                }
                for one in &running {
                    prop_assert_eq!(running.iter().filter(|other| other.cluster == one.cluster).count(), 1);
                    prop_assert!(running.iter().filter(|other| other.host == one.host).count() <= per_host);
                    for name in &one.repositories {
                        prop_assert!(running.iter().filter(|other| other.repositories.contains(name)).count() <= per_repository);
                    }
                }
            }
        }
    }
}
