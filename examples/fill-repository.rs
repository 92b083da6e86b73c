//! Fills the repositories of a configuration with sets that only look like sets, for `scripts/bench catalogue`:
//!
//! ```text
//! fill-repository PGLIFE.toml CLUSTER SETS
//! ```
//!
//! Each has seven small objects and a `COMMIT` that listings can read, four a day up to now.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use pglife::backup_set::{COMMIT_VERSION, Commit, Digest, Kind, SetId};
use pglife::control::ControlPlane;
use pglife::storage::{Key, Repository};
use tokio_util::sync::CancellationToken;

/// Sets written side by side: a bucket answers each object with a round trip.
const SIDE_BY_SIDE: u32 = 16;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [configuration, cluster, sets] = &arguments[..] else {
        anyhow::bail!("usage: fill-repository PGLIFE.toml CLUSTER SETS");
    };
    let sets: u32 = sets.parse()?;
    let opened = pglife::configuration::open(Some(configuration.as_ref()))?;
    let policies = opened.folder().context("this needs policies in a folder")?.to_owned();
    let control = ControlPlane::open(opened.with_folder(&policies)?, CancellationToken::new())?;
    let policy = control.configuration.policies.get(&cluster.parse()?).context("no such cluster")?;
    let now = Timestamp::now();
    for (_, repository) in control.repositories_of(policy, None)?.open {
        std::thread::scope(|scope| {
            let fill = |first: u32| {
                let repository = &repository;
                scope.spawn(move || {
                    (first..sets)
                        .step_by(SIDE_BY_SIDE as usize)
                        .try_for_each(|number| write(repository, cluster, number, now))
                })
            };
            let threads: Vec<_> = (0..SIDE_BY_SIDE).map(fill).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}

fn write(repository: &Repository, cluster: &str, number: u32, now: Timestamp) -> anyhow::Result<()> {
    let started_at = now - SignedDuration::from_hours(6 * i64::from(number));
    let manifest = format!("a manifest, {number}\n");
    let commit = Commit {
        version: COMMIT_VERSION,
        set: SetId::new(started_at, Kind::Dump, number),
        kind: Kind::Dump,
        cluster: cluster.parse()?,
        lineage: "7412345678901234567-17".parse()?,
        started_at,
        completed_at: started_at + SignedDuration::from_mins(3),
        manifest_blake3: Digest::of(manifest.as_bytes()),
        databases: 3,
        plain_bytes: 3_000_000_000,
        stored_bytes: 800_000_000,
        warnings: 0,
        damaged_pages: 0,
        unread_bytes: 0,
        parent: None,
        encryption: None,
    };
    let location = commit.location();
    let put = |name: &str, bytes: &[u8]| {
        repository.store().put(&Key::new(location.key(name))?, bytes).map_err(anyhow::Error::from)
    };
    for name in ["globals.sql.zst", "db/postgres.dump.zst", "db/shop.dump.zst", "recipe.json", "RECOVER.md"] {
        put(name, b"some bytes")?;
    }
    put("manifest.json", manifest.as_bytes())?;
    put("COMMIT", &commit.to_bytes())
}
