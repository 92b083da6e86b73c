//! The executable's way into containers: a volume `pglife-bin-<digest>-<random>` on each host, filled once, mounted read-only.
//!
//! A container that is never started keeps the volume; its *name*, `pglife-bin-<digest>`, says that the volume is complete. It has
//! the volume's name until the executable is in, so a kill half-way is seen and repeated. Whoever fills one fills one of their own:
//! nobody writes where a worker may already run from.

use std::collections::HashMap;

use tokio::sync::OnceCell;

use crate::cluster::{ContainerName, VolumeName};

use super::label::{self, Purpose};
use super::{DockerError, Engine, SmallFile, frugal_host_config};

/// Where containers see the volume.
pub const FOLDER: &str = "/pglife";
/// The executable in it.
pub const EXECUTABLE: &str = "/pglife/pglife";

static OWN_DIGEST: OnceCell<String> = OnceCell::const_new();

async fn own_executable() -> Result<Vec<u8>, DockerError> {
    let failed = |source| DockerError::Io { action: "read pglife's own executable".to_owned(), source };
    // The running file itself, even where a newer one has taken its path.
    tokio::fs::read("/proc/self/exe").await.map_err(failed)
}

async fn own_digest() -> Result<&'static str, DockerError> {
    let digest = || async { Ok(blake3::hash(&own_executable().await?).to_hex()[..16].to_owned()) };
    OWN_DIGEST.get_or_try_init(digest).await.map(String::as_str)
}

/// Makes sure that the host has this very executable in a volume, and names the volume. `image` is any image on the host.
pub async fn ensure(engine: &Engine, image: &str) -> Result<VolumeName, DockerError> {
    let name = format!("pglife-bin-{}", own_digest().await?);
    let checked = |text: &str| ContainerName::new(text).expect("a digest fits into a name");
    if let Some(volume) = filled(engine, &name).await? {
        return Ok(volume);
    }
    let random = getrandom::u32().unwrap_or_else(|_| std::process::id());
    let filling = format!("{name}-{random:08x}");
    let volume = VolumeName::new(filling.clone()).expect("a digest fits into a name");
    let labels = HashMap::from([
        (label::MANAGED.to_owned(), "true".to_owned()),
        (label::PURPOSE.to_owned(), Purpose::Binary.as_str().to_owned()),
        (label::SERVICE_IGNORE.to_owned(), "true".to_owned()),
    ]);
    engine.ensure_volume(&volume, &labels).await?;
    let mut host_config = frugal_host_config();
    host_config.binds = Some(vec![format!("{volume}:{FOLDER}")]);
    // The archive API refuses to write into a container whose root is read-only.
    host_config.readonly_rootfs = Some(false);
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec![EXECUTABLE.to_owned()]),
        cmd: Some(vec!["version".to_owned()]),
        labels: Some(labels),
        network_disabled: Some(true),
        host_config: Some(host_config),
        ..Default::default()
    };
    let id = engine.create_container(&checked(&filling), body).await?;
    let executable = SmallFile { name: "pglife".to_owned(), content: own_executable().await?, mode: 0o755 };
    engine.put_files(&id, FOLDER, &[executable]).await?;
    match engine.rename_container(&id, &checked(&name)).await {
        Ok(()) => tracing::info!(host = %engine.host(), %volume, "put the executable into a volume"),
        // Another pglife was quicker, with the same bytes.
        Err(error) => {
            let Some(other) = filled(engine, &name).await? else { return Err(error) };
            engine.remove_container(&id).await?;
            engine.remove_volume(&volume).await?;
            return Ok(other);
        }
    }
    Ok(volume)
}

/// The volume that the container called `name` keeps.
async fn filled(engine: &Engine, name: &str) -> Result<Option<VolumeName>, DockerError> {
    let Some(keeper) = engine.container(name).await? else { return Ok(None) };
    let volume = keeper.mount_of(FOLDER).and_then(|mount| VolumeName::new(mount.source.clone()).ok());
    let Some(volume) = volume else { return Ok(None) };
    Ok(engine.volume(&volume).await?.map(|_| volume))
}

/// An executable of another version that is younger may be about to be used.
const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Removes the executables of other versions from the host, and those that were never complete, where no container uses them and
/// they are a day old.
pub async fn sweep(engine: &Engine) -> Result<Vec<String>, DockerError> {
    let current = format!("pglife-bin-{}", own_digest().await?);
    let purpose = format!("{}={}", label::PURPOSE, Purpose::Binary.as_str());
    let mut swept = Vec::new();
    for container in engine.containers_labelled(&[&purpose]).await? {
        let old = container.created.is_some_and(|created| created + KEPT < jiff::Timestamp::now());
        if container.name == current || !old {
            continue;
        }
        engine.remove_container(&container.id).await?;
        for mount in container.mounts.iter().filter(|mount| mount.kind == "volume") {
            let Ok(volume) = VolumeName::new(mount.source.clone()) else { continue };
            // A worker of another version may still use it; the next sweep asks again.
            if engine.remove_volume(&volume).await.is_ok() {
                swept.push(volume.to_string());
            }
        }
    }
    Ok(swept)
}
