//! Containers that depend on a cluster: they go down with it, and come back with it.
//!
//! ```text
//! engine ──▶ [`find`]: who follows, in which order ──▶ [`decide`]: the next thing to do (pure) ──▶ [`act`]: does it
//!                                                            ▲                                        │
//!                                            state.db: what was taken down, and why ◀─────────────────┘
//! ```
//!
//! Who follows says so itself, by the label `pglife.depends-on=<cluster>[,…]`; where the policy wants it, so does
//! `depends_on` of a compose file, through as many services as there are between. What is taken down is remembered on disk
//! before it is touched, so that whoever comes next brings it back; nothing else is ever started.

pub mod act;
pub mod decide;
pub mod shared;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cluster::ClusterName;
use crate::docker::{Container, label};
use crate::policy::{Dependents, OnDown, OnUp};
use crate::state::dependents::TakenHow;

/// A container that depends on a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    /// Its name.
    pub name: String,
    /// The engine's id.
    pub id: String,
    /// Its place: low ones come back first, and go down last.
    pub order: i64,
    /// How many containers are between it and the database; 0: none.
    pub depth: usize,
    /// What is done when the database goes down.
    pub on_down: OnDown,
    /// What is done when it is back.
    pub on_up: OnUp,
    /// Its processes are there, frozen or not.
    pub running: bool,
    /// Its processes are frozen.
    pub paused: bool,
    /// What its own health check says, where it has one.
    pub health: Option<String>,
    /// `exited`, `running`, ….
    pub status: String,
    /// The other clusters it depends on: it comes back when they all serve.
    pub others: Vec<String>,
    /// A label that is not understood, in words. The policy counts instead.
    pub problem: Option<String>,
}

/// A container that depends on a cluster, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Dependent {
    /// Its place: low ones come back first, and go down last.
    pub order: i64,
    /// Its name.
    pub container: String,
    /// `running`, `exited`, …, or what its health check says.
    pub state: String,
    /// What is done when the database goes down.
    pub on_down: &'static str,
    /// What is done when it is back.
    pub on_up: &'static str,
    /// When pglife took it down; None: it did not.
    pub down_since: Option<Timestamp>,
    /// Why it did.
    pub reason: Option<String>,
    /// A label that is not understood, in words.
    pub problem: Option<String>,
}

impl Follower {
    /// How it is taken down.
    fn how(&self) -> TakenHow {
        if self.on_down == OnDown::Pause { TakenHow::Paused } else { TakenHow::Stopped }
    }

    /// It is brought back, so that it has to be remembered.
    fn comes_back(&self) -> bool {
        self.on_up != OnUp::Nothing
    }
}

/// Who follows `cluster`, in the order in which they come back.
///
/// `database` is its container, which need not be there; `all` are containers of its host, among them those that have
/// [`label::DEPENDS_ON`] and those of the database's compose project.
pub fn find(
    cluster: &ClusterName,
    database: Option<&Container>,
    all: &[Container],
    defaults: Dependents,
) -> Vec<Follower> {
    let is_candidate = |container: &&Container| {
        // Never what pglife made itself: workers, drills, the clusters' own.
        !container.labels.contains_key(label::MANAGED) && database.is_none_or(|database| database.id != container.id)
    };
    let by_label = |container: &Container| {
        let names = container.labels.get(label::DEPENDS_ON)?;
        names.split(',').any(|name| name.trim() == cluster.as_str()).then_some(0)
    };
    let compose =
        database.filter(|_| defaults.compose).map(|database| compose_depths(database, all)).unwrap_or_default();
    let mut followers: Vec<Follower> = all
        .iter()
        .filter(is_candidate)
        .filter_map(|container| {
            let depth = by_label(container).or_else(|| compose.get(&container.id).copied())?;
            Some(follower(cluster, container, depth, defaults))
        })
        .collect();
    followers.sort_by(|a, b| (a.order, a.depth, &a.name).cmp(&(b.order, b.depth, &b.name)));
    followers
}

fn follower(cluster: &ClusterName, container: &Container, depth: usize, defaults: Dependents) -> Follower {
    let mut problem = None;
    let mut tell = |key: &str, text: &str, known: &str| {
        problem.get_or_insert(format!("its label {key}={text} is not understood ({known}), so the policy counts"));
    };
    let label_of = |key: &str| container.labels.get(key).map(String::as_str);
    let on_down = label_of(label::ON_DOWN)
        .and_then(|text| text.parse().map_err(|_| tell(label::ON_DOWN, text, "stop, pause or none")).ok());
    let on_up = label_of(label::ON_UP)
        .and_then(|text| text.parse().map_err(|_| tell(label::ON_UP, text, "start, restart or none")).ok());
    let order = label_of(label::ORDER)
        .and_then(|text| text.parse().map_err(|_| tell(label::ORDER, text, "a whole number")).ok());
    Follower {
        name: container.name.clone(),
        id: container.id.clone(),
        order: order.unwrap_or(0),
        depth,
        on_down: on_down.unwrap_or(defaults.on_down),
        on_up: on_up.unwrap_or(defaults.on_up),
        running: container.running || container.status == "restarting",
        paused: container.status == "paused",
        health: container.health.clone(),
        status: container.status.clone(),
        others: label_of(label::DEPENDS_ON)
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty() && *name != cluster.as_str())
            .map(str::to_owned)
            .collect(),
        problem,
    }
}

const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// `service:condition:restart[,…]`.
const COMPOSE_DEPENDS_ON: &str = "com.docker.compose.depends_on";

/// The compose project of a container.
pub fn compose_project(container: &Container) -> Option<&str> {
    container.labels.get(COMPOSE_PROJECT).map(String::as_str)
}

/// Which containers of the database's project depend on it, and through how many services; by id.
fn compose_depths(database: &Container, all: &[Container]) -> BTreeMap<String, usize> {
    let mut depths = BTreeMap::new();
    let (Some(project), Some(service)) = (compose_project(database), database.labels.get(COMPOSE_SERVICE)) else {
        return depths;
    };
    let of_project: Vec<&Container> = all.iter().filter(|other| compose_project(other) == Some(project)).collect();
    let depends_on = |container: &Container, services: &BTreeSet<&str>| {
        let listed = container.labels.get(COMPOSE_DEPENDS_ON).map(String::as_str).unwrap_or_default();
        listed.split(',').filter_map(|entry| entry.split(':').next()).any(|name| services.contains(name.trim()))
    };
    let mut layer = BTreeSet::from([service.as_str()]);
    // Each round finds others, so there are at most as many as containers, whatever circles there are.
    for depth in 0..of_project.len() {
        let next: Vec<&&Container> = of_project
            .iter()
            .filter(|container| container.id != database.id && !depths.contains_key(&container.id))
            .filter(|container| depends_on(container, &layer))
            .collect();
        if next.is_empty() {
            break;
        }
        depths.extend(next.iter().map(|container| (container.id.clone(), depth)));
        layer = next.iter().filter_map(|container| container.labels.get(COMPOSE_SERVICE)).map(String::as_str).collect();
    }
    depths
}

#[cfg(test)]
mod tests;
