//! Whether a run may begin now. Pure: what goes on, what is wanted, the limits.
//!
//! There is no queue: a run that may not begin stays due, and is asked for again at the next tick, until it would be later than
//! its policy allows.
//!
//! Drills give way: a backup is admitted as if there were none, and a drill waits until the host has no other one.

use std::num::NonZeroUsize;

use crate::cluster::{ClusterName, HostName, RepoName};

/// What a run takes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it works on, one run at a time: the cluster, or the throwaway server of a drill.
    pub(super) cluster: ClusterName,
    /// The Docker host.
    pub(super) host: HostName,
    /// The repositories.
    pub(super) repositories: Vec<RepoName>,
    /// What it is.
    pub(super) kind: ClaimKind,
}

/// Runs of one kind take room from each other, and from no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimKind {
    /// A backup, or what reads backups beside the cluster.
    Backup,
    /// A drill.
    Drill,
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
    /// The host restores already.
    #[error("host \"{0}\" has a drill: there is one at a time")]
    Drill(HostName),
    /// The repository has enough to do.
    #[error("repository \"{0}\" has as many runs as `daemon.runs_per_repository` allows")]
    Repository(RepoName),
}

/// Decides about `wanted` beside what is `running`.
pub(super) fn admit(running: &[Claim], wanted: &Claim, limits: Limits) -> Result<(), Refusal> {
    let running = || running.iter().filter(|claim| claim.kind == wanted.kind);
    if running().any(|claim| claim.cluster == wanted.cluster) {
        return Err(Refusal::Cluster);
    }
    let on_host = running().filter(|claim| claim.host == wanted.host).count();
    match wanted.kind {
        ClaimKind::Drill if on_host > 0 => return Err(Refusal::Drill(wanted.host.clone())),
        ClaimKind::Backup if on_host >= limits.per_host.get() => return Err(Refusal::Host(wanted.host.clone())),
        ClaimKind::Drill | ClaimKind::Backup => {}
    }
    for repository in &wanted.repositories {
        let with = running().filter(|claim| claim.repositories.contains(repository)).count();
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
            kind: ClaimKind::Backup,
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
        let drill = |cluster| Claim { kind: ClaimKind::Drill, ..claim(cluster, 1, &[1]) };
        assert_eq!(asked(drill(1), limits(1, 1)), Ok(()), "backups do not keep a drill from its host");
        let second = admit(&[drill(1)], &drill(2), limits(9, 9)).expect_err("one at a time").to_string();
        assert!(second.contains("host \"h1\" has a drill"), "{second}");
    }

    proptest! {
        #[test]
        fn drills_keep_no_backup_from_running(
            running in proptest::collection::vec((0_usize..6, 0_usize..3, 0_usize..4, any::<bool>()), 0..12),
            wanted in (0_usize..6, 0_usize..3, 0_usize..4),
            per_host in 1_usize..4, per_repository in 1_usize..4,
        ) {
            let limits = limits(per_host, per_repository);
            let running: Vec<Claim> = running.into_iter().map(|(cluster, host, repository, drill)| Claim {
                kind: if drill { ClaimKind::Drill } else { ClaimKind::Backup },
                ..claim(cluster, host, &[repository])
            }).collect();
            let backups: Vec<Claim> = running.iter().filter(|claim| claim.kind == ClaimKind::Backup).cloned().collect();
            let wanted = claim(wanted.0, wanted.1, &[wanted.2]);
            prop_assert_eq!(admit(&running, &wanted, limits), admit(&backups, &wanted, limits));
        }

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
