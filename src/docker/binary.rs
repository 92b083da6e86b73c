//! The executable's way into containers: a volume `pglife-bin-<digest>-<random>` on each host, filled once, mounted read-only.
//!
//! A container that is never started keeps the volume; its *name*, `pglife-bin-<digest>`, says that the volume is complete. It has
//! the volume's name until the executable is in, so a kill half-way is seen and repeated. Whoever fills one fills one of their own:
//! nobody writes where a worker may already run from.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use bollard::query_parameters::UploadToContainerOptionsBuilder;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::OnceCell;
use tokio_util::io::ReaderStream;

use crate::cluster::{ContainerName, VolumeName};

use super::label::{self, Purpose};
use super::{DockerError, Engine, frugal_host_config};

/// Where containers see the volume.
pub const FOLDER: &str = "/pglife";
/// The executable in it.
pub const EXECUTABLE: &str = "/pglife/pglife";

static OWN_DIGEST: OnceCell<String> = OnceCell::const_new();

/// The running file itself, even where a newer one has taken its path. It is never in memory as a whole: it is larger than all that
/// a control plane needs.
const OWN: &str = "/proc/self/exe";

fn unreadable(source: io::Error) -> DockerError {
    DockerError::Io { action: "read pglife's own executable".to_owned(), source }
}

async fn own_digest() -> Result<&'static str, DockerError> {
    let digest = || async {
        let hashed = tokio::task::spawn_blocking(|| {
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut File::open(OWN)?, &mut hasher)?;
            Ok(hasher.finalize().to_hex()[..16].to_owned())
        });
        hashed.await.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(unreadable)
    };
    OWN_DIGEST.get_or_try_init(digest).await.map(String::as_str)
}

/// Writes the executable into its folder in a container.
async fn put(engine: &Engine, container: &str) -> Result<(), DockerError> {
    let file = File::open(OWN).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let mut header = tar::Header::new_gnu();
    header.set_path("pglife").map_err(unreadable)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_cksum();
    let head = Bytes::copy_from_slice(header.as_bytes());
    // What fills its last block, and the two that end a tar.
    let block = head.len();
    let filled = usize::try_from(bytes % block as u64).unwrap_or_default();
    let end = Bytes::from(vec![0; (block - filled) % block + 2 * block]);
    let one = |piece: Bytes| stream::iter([Ok::<_, io::Error>(piece)]);
    let tar = one(head).chain(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10)).chain(one(end));
    let options = UploadToContainerOptionsBuilder::default().path(FOLDER).build();
    let put = engine.patient.upload_to_container(container, Some(options), bollard::body_try_stream(tar)).await;
    put.map_err(engine.failed(format!("write the executable into {FOLDER} of container {container}")))
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
    put(engine, &id).await?;
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
