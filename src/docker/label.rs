//! Labels: how pglife knows its own, and who may sweep what.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use crate::cluster::ClusterName;

/// The cluster a container or volume belongs to.
pub const CLUSTER: &str = "pglife.cluster";
/// `database`, `data` or `dependent`.
pub const ROLE: &str = "pglife.role";
/// On users' containers: the clusters it depends on, `chado,blog`.
pub const DEPENDS_ON: &str = "pglife.depends-on";
/// On users' containers: what is done when the database goes down: `stop`, `pause`, `none`.
pub const ON_DOWN: &str = "pglife.on-down";
/// On users' containers: what is done when it is back: `start`, `restart`, `none`.
pub const ON_UP: &str = "pglife.on-up";
/// On users' containers: its place among those that depend on the same cluster; the low ones come back first.
pub const ORDER: &str = "pglife.order";
/// Set on everything pglife made.
pub const MANAGED: &str = "pglife.managed";
/// What it is for: [`Purpose`].
pub const PURPOSE: &str = "pglife.purpose";
/// The run that made it.
pub const RUN: &str = "pglife.run-id";
/// The upgrade that made it.
pub const UPGRADE: &str = "pglife.upgrade";
/// When it may be swept, whoever made it.
pub const EXPIRES: &str = "pglife.expires-at";
/// Tells registrator to leave it alone.
pub const SERVICE_IGNORE: &str = "SERVICE_IGNORE";
/// What an image is: `postgres`, `data`, `pglife`.
pub const IMAGE: &str = "pglife.image";

/// What a container or volume of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Part of a cluster: never swept.
    Cluster,
    /// A worker container.
    Worker,
    /// A worker's scratch volume.
    Scratch,
    /// A drill's throwaway server and its volumes.
    Drill,
    /// A drill's server that somebody wants to look at: what its run made stays as long as it does.
    Kept,
    /// A server at work in an upgrade, which alone removes it.
    Trial,
    /// The volume with the executable, and the container that keeps it.
    Binary,
}

impl Purpose {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Worker => "worker",
            Self::Scratch => "scratch",
            Self::Drill => "drill",
            Self::Kept => "kept",
            Self::Trial => "trial",
            Self::Binary => "binary",
        }
    }
}

/// The labels of something short-lived that `run` makes for `cluster`.
pub fn short_lived(purpose: Purpose, run: &str, cluster: &ClusterName, expires: Timestamp) -> HashMap<String, String> {
    let mut labels = of_cluster(purpose, run, cluster);
    labels.insert(EXPIRES.to_owned(), expires.to_string());
    labels.insert(SERVICE_IGNORE.to_owned(), "true".to_owned());
    labels
}

/// The labels of something that `run` makes for `cluster` and that stays.
pub fn of_cluster(purpose: Purpose, run: &str, cluster: &ClusterName) -> HashMap<String, String> {
    HashMap::from([
        (MANAGED.to_owned(), "true".to_owned()),
        (PURPOSE.to_owned(), purpose.as_str().to_owned()),
        (RUN.to_owned(), run.to_owned()),
        (CLUSTER.to_owned(), cluster.to_string()),
    ])
}

/// When something with these labels may be swept, whoever made it.
#[expect(clippy::implicit_hasher, reason = "the engine's labels come in one kind of map")]
pub fn expires_at(labels: &HashMap<String, String>) -> Option<Timestamp> {
    labels.get(EXPIRES)?.parse().ok()
}

/// True for the server of a drill that is kept, and still may be.
#[expect(clippy::implicit_hasher, reason = "the engine's labels come in one kind of map")]
pub fn is_kept(labels: &HashMap<String, String>, now: Timestamp) -> bool {
    let value = |key: &str| labels.get(key).map(String::as_str);
    value(MANAGED) == Some("true")
        && value(PURPOSE) == Some(Purpose::Kept.as_str())
        && expires_at(labels).is_some_and(|time| time > now)
}

/// The runs of which a server is kept: nothing they made is an orphan.
pub fn kept_runs<'l>(all: impl IntoIterator<Item = &'l HashMap<String, String>>, now: Timestamp) -> BTreeSet<String> {
    all.into_iter().filter(|labels| is_kept(labels, now)).filter_map(|labels| labels.get(RUN).cloned()).collect()
}

/// Whether something with these labels is an orphan that may be removed now.
///
/// Only workers, scratch volumes and what a drill made ever are: when `run_is_over` says that their run has ended, or when their time is up.
/// A run nobody here knows of may be another daemon's, so only time tells. Of the `kept` runs nothing is.
#[expect(clippy::implicit_hasher, reason = "the engine's labels come in one kind of map")]
pub fn is_orphan(
    labels: &HashMap<String, String>,
    kept: &BTreeSet<String>,
    run_is_over: impl Fn(&str) -> bool,
    now: Timestamp,
) -> bool {
    let value = |key: &str| labels.get(key).map(String::as_str);
    let ours = value(MANAGED) == Some("true");
    let short_lived = value(PURPOSE).is_some_and(|purpose| {
        [Purpose::Worker, Purpose::Scratch, Purpose::Drill, Purpose::Kept].iter().any(|kind| kind.as_str() == purpose)
    });
    let expired = expires_at(labels).is_some_and(|time| time <= now);
    let run = value(RUN);
    ours && short_lived && !run.is_some_and(|run| kept.contains(run)) && (expired || run.is_some_and(run_is_over))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn cluster() -> ClusterName {
        ClusterName::new("chado").expect("a name")
    }

    proptest! {
        #[test]
        fn nothing_of_a_cluster_is_ever_an_orphan(now in 0i64..4_000_000_000, over: bool) {
            let labels = of_cluster(Purpose::Cluster, "run", &cluster());
            prop_assert!(!is_orphan(&labels, &BTreeSet::new(), |_| over, at(now)));
        }

        #[test]
        fn a_worker_is_an_orphan_when_its_run_or_its_time_is_over(now in 0i64..2_000, over: bool) {
            let labels = short_lived(Purpose::Worker, "run", &cluster(), at(1_000));
            prop_assert_eq!(is_orphan(&labels, &BTreeSet::new(), |_| over, at(now)), over || now >= 1_000);
        }

        #[test]
        fn what_belongs_to_a_kept_server_stays_as_long_as_it_does(now in 0i64..3_000, over: bool) {
            let server = short_lived(Purpose::Kept, "run", &cluster(), at(2_000));
            let volume = short_lived(Purpose::Drill, "run", &cluster(), at(1_000));
            let others = short_lived(Purpose::Drill, "other", &cluster(), at(1_000));
            let kept = kept_runs([&server, &volume, &others], at(now));
            let is_orphan = |labels| is_orphan(labels, &kept, |_| over, at(now));
            prop_assert_eq!(is_orphan(&server), now >= 2_000);
            prop_assert_eq!(is_orphan(&volume), now >= 2_000);
            prop_assert_eq!(is_orphan(&others), over || now >= 1_000);
        }
    }

    #[test]
    fn what_others_made_is_not_ours() {
        let mut labels = short_lived(Purpose::Worker, "run", &cluster(), at(0));
        labels.remove(MANAGED);
        assert!(!is_orphan(&labels, &BTreeSet::new(), |_| true, at(1)));
    }
}
