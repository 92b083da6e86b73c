//! A Docker engine: the only home of `bollard`.
//!
//! [`Engine`] offers verbs that ask first and act then, so that they can be called again after a kill: `ensure_*` creates
//! what is missing, `remove_*` is content when there is nothing. Two clients are kept, because a request's time limit runs
//! until its response headers: one for control calls, one for calls that wait for work to end.
//!
//! Bulk bytes never pass here; [`worker`] starts the containers in which they move.

pub mod binary;
pub mod container;
mod events;
pub mod label;
mod tls;
pub mod twin;
pub mod worker;

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{HostConfig, VolumeCreateRequest};
use bollard::query_parameters as query;
use futures_util::TryStreamExt;

use crate::causes;
use crate::cluster::{ContainerName, HostName, VolumeName};
use crate::exit::Exit;
use crate::settings::Endpoint;

pub use container::{Container, Image, Limits, Mount};

/// The engine's own words for what a container is made of. Only those who make containers need them.
pub mod body {
    pub use bollard::models::{ContainerCreateBody, HostConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum};
}

/// Why an engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// It does not answer.
    #[error("the Docker engine of host \"{host}\" ({endpoint}) does not answer")]
    Unreachable {
        /// Name of the host.
        host: HostName,
        /// Its endpoint.
        endpoint: String,
        /// Why.
        source: Box<EngineError>,
    },
    /// One of our own files for the way to it is no good.
    #[error("the Docker engine of host \"{host}\" cannot be reached: {}: {why}", file.display())]
    BadFile {
        /// Name of the host.
        host: HostName,
        /// The authority's certificate, or our certificate or key.
        file: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is too old.
    #[error("the Docker engine of host \"{host}\" speaks API {found}; pglife needs 1.41 (Docker 20.10) or newer")]
    TooOld {
        /// Name of the host.
        host: HostName,
        /// What it speaks.
        found: String,
    },
    /// It runs on another processor than this executable is made for.
    #[error("the Docker engine of host \"{host}\" runs on {found}, this pglife is made for {ours}")]
    OtherArchitecture {
        /// Name of the host.
        host: HostName,
        /// The engine's architecture.
        found: String,
        /// Ours.
        ours: &'static str,
    },
    /// The image is not there.
    #[error("the image {image} is not on host \"{host}\"")]
    ImageMissing {
        /// The image.
        image: String,
        /// Name of the host.
        host: HostName,
    },
    /// The container is not there.
    #[error("there is no container \"{container}\" on host \"{host}\"")]
    ContainerMissing {
        /// The container.
        container: String,
        /// Name of the host.
        host: HostName,
    },
    /// The name belongs to something else.
    #[error("the name \"{name}\" is already taken on host \"{host}\"")]
    NameTaken {
        /// The name.
        name: String,
        /// Name of the host.
        host: HostName,
    },
    /// The engine refused or failed.
    #[error("Docker could not {action}")]
    Failed {
        /// What was asked of it.
        action: String,
        /// Its own words.
        source: Box<EngineError>,
    },
    /// Something outside the engine failed.
    #[error("could not {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why.
        source: std::io::Error,
    },
}

impl DockerError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::BadFile { .. } | Self::TooOld { .. } | Self::OtherArchitecture { .. } => {
                Exit::Docker
            }
            Self::ImageMissing { .. } | Self::ContainerMissing { .. } => Exit::NotFound,
            Self::NameTaken { .. } => Exit::Refused,
            Self::Failed { .. } | Self::Io { .. } => Exit::Failed,
        }
    }

    /// What to do next, where there is something to say.
    pub fn next(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, endpoint, source } if endpoint.starts_with("tcp://") => {
                let said = causes::chain(source);
                let next = tls::advice(&said).unwrap_or(
                    "see that the machine is up, that its engine listens there, and that no firewall is between",
                );
                Some(format!("{next} ([hosts.{host}] in pglife.toml, now {endpoint})"))
            }
            Self::Unreachable { endpoint, .. } => Some(format!(
                "see that the engine runs and that you may use it (`docker info`), or correct [hosts] in pglife.toml (now {endpoint})"
            )),
            Self::BadFile { host, .. } => Some(format!(
                "correct `ca`, `cert` or `key` of [hosts.{host}] in pglife.toml, or the file's owner and mode"
            )),
            Self::ImageMissing { image, .. } => Some(format!(
                "pull or build {image} on that host (see docs/images.md), then run the same command again"
            )),
            Self::NameTaken { name, .. } => {
                Some(format!("choose another name, or look at what \"{name}\" is: docker inspect {name}"))
            }
            _ => None,
        }
    }
}

/// One Docker engine.
#[derive(Debug, Clone)]
pub struct Engine {
    host: HostName,
    endpoint: String,
    control: bollard::Docker,
    patient: bollard::Docker,
    version: String,
}

const CONTROL_SECONDS: u64 = 30;
const PATIENT_SECONDS: u64 = 24 * 3600;

impl Engine {
    /// Connects to the engine at `endpoint` and agrees on an API version.
    #[expect(clippy::disallowed_methods, reason = "this is Docker's one home")]
    pub async fn connect(host: &HostName, endpoint: &Endpoint) -> Result<Self, DockerError> {
        let unreachable = |source: EngineError| DockerError::Unreachable {
            host: host.clone(),
            endpoint: endpoint.to_string(),
            source: Box::new(source),
        };
        let identity = match endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tls { ca, cert, key, .. } => {
                Some(tls::Identity::read(ca, cert, key).map_err(|bad| DockerError::BadFile {
                    host: host.clone(),
                    file: bad.file,
                    why: bad.why,
                })?)
            }
        };
        let client = |seconds| match (endpoint, &identity) {
            (Endpoint::Tls { address, .. }, Some(identity)) => tls::client(address, identity, seconds),
            (Endpoint::Unix(path), _) => {
                bollard::Docker::connect_with_unix(&path.to_string_lossy(), seconds, bollard::API_DEFAULT_VERSION)
            }
            (Endpoint::Tls { .. }, None) => unreachable!("its files were read"),
        };
        let control = client(CONTROL_SECONDS).map_err(unreachable)?.negotiate_version().await.map_err(unreachable)?;
        let patient = client(PATIENT_SECONDS).map_err(unreachable)?.negotiate_version().await.map_err(unreachable)?;
        let version = control.version().await.map_err(unreachable)?;
        let api = version.api_version.unwrap_or_default();
        if !api_is_at_least(&api, (1, 41)) {
            return Err(DockerError::TooOld { host: host.clone(), found: api });
        }
        let found = version.arch.unwrap_or_default();
        let ours = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if found != ours {
            return Err(DockerError::OtherArchitecture { host: host.clone(), found, ours });
        }
        let version = version.version.unwrap_or_default();
        tracing::debug!(%host, %endpoint, version, api, "connected to Docker");
        Ok(Self { host: host.clone(), endpoint: endpoint.to_string(), control, patient, version })
    }

    /// The engine's host, as the configuration calls it.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// The engine's version, such as `28.2.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn failed(&self, action: impl Into<String>) -> impl FnOnce(EngineError) -> DockerError {
        let (host, endpoint, action) = (self.host.clone(), self.endpoint.clone(), action.into());
        move |source| {
            let source = Box::new(source);
            match *source {
                EngineError::DockerResponseServerError { .. } | EngineError::DockerStreamError { .. } => {
                    DockerError::Failed { action, source }
                }
                _ => DockerError::Unreachable { host, endpoint, source },
            }
        }
    }

    /// The image `reference` names, if it is on the host.
    pub async fn image(&self, reference: &str) -> Result<Option<Image>, DockerError> {
        match self.control.inspect_image(reference).await {
            Ok(found) => Ok(Some(Image::from_inspection(reference, found))),
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(format!("look for image {reference}"))(error)),
        }
    }

    /// The image `reference` names; an error that says so where it is missing.
    pub async fn require_image(&self, reference: &str) -> Result<Image, DockerError> {
        self.image(reference)
            .await?
            .ok_or_else(|| DockerError::ImageMissing { image: reference.to_owned(), host: self.host.clone() })
    }

    /// The container with this name or id, if there is one.
    pub async fn container(&self, name: &str) -> Result<Option<Container>, DockerError> {
        match self.control.inspect_container(name, None).await {
            Ok(found) => Ok(Some(Container::from_inspection(found))),
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(format!("look for container {name}"))(error)),
        }
    }

    /// The container with this name; an error that says so where it is missing.
    pub async fn require_container(&self, name: &ContainerName) -> Result<Container, DockerError> {
        self.container(name.as_str())
            .await?
            .ok_or_else(|| DockerError::ContainerMissing { container: name.to_string(), host: self.host.clone() })
    }

    /// Every container, running or not, that has all of `labels` (`key` or `key=value`).
    pub async fn containers_labelled(&self, labels: &[&str]) -> Result<Vec<Container>, DockerError> {
        let filters = HashMap::from([("label".to_owned(), labels.iter().map(ToString::to_string).collect::<Vec<_>>())]);
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.list(options).await
    }

    /// Every container that runs.
    pub async fn running_containers(&self) -> Result<Vec<Container>, DockerError> {
        self.list(query::ListContainersOptionsBuilder::default().build()).await
    }

    async fn list(&self, options: query::ListContainersOptions) -> Result<Vec<Container>, DockerError> {
        let found = self.control.list_containers(Some(options)).await.map_err(self.failed("list containers"))?;
        let mut containers = Vec::new();
        for id in found.into_iter().filter_map(|summary| summary.id) {
            // It may have gone since.
            containers.extend(self.container(&id).await?);
        }
        Ok(containers)
    }

    /// The names of all volumes that have all of `labels`, with their labels.
    pub async fn volumes_labelled(
        &self,
        labels: &[&str],
    ) -> Result<Vec<(VolumeName, HashMap<String, String>)>, DockerError> {
        let filters = HashMap::from([("label".to_owned(), labels.iter().map(ToString::to_string).collect::<Vec<_>>())]);
        let options = query::ListVolumesOptionsBuilder::default().filters(&filters).build();
        let found = self.control.list_volumes(Some(options)).await.map_err(self.failed("list volumes"))?;
        Ok(found
            .volumes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|volume| Some((VolumeName::new(volume.name).ok()?, volume.labels)))
            .collect())
    }

    /// The labels of a volume, if there is one of that name.
    pub async fn volume(&self, name: &VolumeName) -> Result<Option<HashMap<String, String>>, DockerError> {
        match self.control.inspect_volume(name.as_str()).await {
            Ok(volume) => Ok(Some(volume.labels)),
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(format!("look for volume {name}"))(error)),
        }
    }

    /// Makes the volume where it is missing.
    pub async fn ensure_volume(&self, name: &VolumeName, labels: &HashMap<String, String>) -> Result<(), DockerError> {
        self.make_volume(name, labels, None).await
    }

    /// Makes a volume that stands for `folder` of the host, where it is missing. The folder stays when the volume goes.
    pub async fn ensure_volume_of_folder(
        &self,
        name: &VolumeName,
        labels: &HashMap<String, String>,
        folder: &str,
    ) -> Result<(), DockerError> {
        let options = [("type", "none"), ("o", "bind"), ("device", folder)];
        self.make_volume(name, labels, Some(options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()))
            .await
    }

    async fn make_volume(
        &self,
        name: &VolumeName,
        labels: &HashMap<String, String>,
        driver_opts: Option<HashMap<String, String>>,
    ) -> Result<(), DockerError> {
        let request = VolumeCreateRequest {
            name: Some(name.to_string()),
            labels: Some(labels.clone()),
            driver_opts,
            ..Default::default()
        };
        self.control.create_volume(request).await.map_err(self.failed(format!("create volume {name}")))?;
        Ok(())
    }

    /// Removes the volume; content where there is none.
    pub async fn remove_volume(&self, name: &VolumeName) -> Result<(), DockerError> {
        match self.control.remove_volume(name.as_str(), None::<query::RemoveVolumeOptions>).await {
            Err(error) if status_of(&error) != Some(404) => Err(self.failed(format!("remove volume {name}"))(error)),
            _ => Ok(()),
        }
    }

    /// Makes a container and returns its id. Nothing runs yet.
    pub async fn create_container(
        &self,
        name: &ContainerName,
        body: bollard::models::ContainerCreateBody,
    ) -> Result<String, DockerError> {
        let image = body.image.clone().unwrap_or_default();
        let options = query::CreateContainerOptionsBuilder::default().name(name.as_str()).build();
        match self.control.create_container(Some(options), body).await {
            Ok(created) => Ok(created.id),
            Err(error) => Err(match status_of(&error) {
                Some(409) => DockerError::NameTaken { name: name.to_string(), host: self.host.clone() },
                Some(404) if error.to_string().to_lowercase().contains("no such image") => {
                    DockerError::ImageMissing { image, host: self.host.clone() }
                }
                _ => self.failed(format!("create container {name}"))(error),
            }),
        }
    }

    /// Starts a container; content where it runs.
    pub async fn start(&self, container: &str) -> Result<(), DockerError> {
        self.patient
            .start_container(container, None::<query::StartContainerOptions>)
            .await
            .map_err(self.failed(format!("start container {container}")))
    }

    /// Stops a container with its own stop signal; kills it after `patience`.
    pub async fn stop(&self, container: &str, patience: Duration) -> Result<(), DockerError> {
        let seconds = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::default().t(seconds).build();
        self.stop_with(container, Some(options)).await
    }

    /// Stops a container as it says of itself: with its own signal, and its own time before it is killed.
    pub async fn stop_gently(&self, container: &str) -> Result<(), DockerError> {
        self.stop_with(container, None).await
    }

    async fn stop_with(
        &self,
        container: &str,
        options: Option<query::StopContainerOptions>,
    ) -> Result<(), DockerError> {
        match self.patient.stop_container(container, options).await {
            // 304: it does not run.
            Err(error) if !matches!(status_of(&error), Some(304 | 404)) => {
                Err(self.failed(format!("stop container {container}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Freezes the processes of a container; content where they are.
    pub async fn pause(&self, container: &str) -> Result<(), DockerError> {
        match self.control.pause_container(container).await {
            Err(error) if !error.to_string().contains("already paused") => {
                Err(self.failed(format!("pause container {container}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Lets the processes of a container go on; content where they do.
    pub async fn unpause(&self, container: &str) -> Result<(), DockerError> {
        match self.control.unpause_container(container).await {
            Err(error) if !error.to_string().contains("not paused") => {
                Err(self.failed(format!("unpause container {container}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Kills and removes a container with its anonymous volumes; content where there is none.
    pub async fn remove_container(&self, container: &str) -> Result<(), DockerError> {
        self.remove(container, true).await
    }

    /// The same, but its anonymous volumes stay.
    pub async fn remove_container_only(&self, container: &str) -> Result<(), DockerError> {
        self.remove(container, false).await
    }

    async fn remove(&self, container: &str, volumes: bool) -> Result<(), DockerError> {
        let options = query::RemoveContainerOptionsBuilder::default().force(true).v(volumes).build();
        match self.patient.remove_container(container, Some(options)).await {
            // 409: another process is removing it just now.
            Err(error) if !matches!(status_of(&error), Some(404 | 409)) => {
                Err(self.failed(format!("remove container {container}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives a container another name.
    pub async fn rename_container(&self, container: &str, name: &ContainerName) -> Result<(), DockerError> {
        let options = query::RenameContainerOptionsBuilder::default().name(name.as_str()).build();
        self.control
            .rename_container(container, options)
            .await
            .map_err(self.failed(format!("rename container {container} to {name}")))
    }

    /// Writes small files into a folder of a container, which need not run.
    pub async fn put_files(&self, container: &str, folder: &str, files: &[SmallFile]) -> Result<(), DockerError> {
        let action = || format!("write files into {folder} of container {container}");
        let archive = tar_of(files).map_err(|source| DockerError::Io { action: action(), source })?;
        let options = query::UploadToContainerOptionsBuilder::default().path(folder).build();
        self.patient
            .upload_to_container(container, Some(options), bollard::body_full(archive.into()))
            .await
            .map_err(self.failed(action()))
    }

    /// The last lines of a container's log, for a message about why it ended.
    pub async fn last_log_lines(&self, container: &str, lines: usize) -> Result<String, DockerError> {
        let options = query::LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let output: Vec<_> = self
            .control
            .logs(container, Some(options))
            .try_collect()
            .await
            .map_err(self.failed(format!("read the log of container {container}")))?;
        Ok(output.iter().map(ToString::to_string).collect::<String>().trim_end().to_owned())
    }

    /// The first line that a container said of which `is_meant` holds.
    pub async fn find_in_log(
        &self,
        container: &str,
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, DockerError> {
        let options = query::LogsOptionsBuilder::default().stdout(true).stderr(true).build();
        let mut output = self.control.logs(container, Some(options));
        let failed = || self.failed(format!("read the log of container {container}"));
        while let Some(some) = output.try_next().await.map_err(failed())? {
            let some = some.to_string();
            if let Some(line) = some.lines().find(|line| is_meant(line)) {
                return Ok(Some(line.to_owned()));
            }
        }
        Ok(None)
    }
}

/// A small file to write into a container.
#[derive(Debug)]
pub struct SmallFile {
    /// Its name, without a folder.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its mode, such as `0o600`.
    pub mode: u32,
}

fn tar_of(files: &[SmallFile]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(file.mode);
        header.set_mtime(0);
        archive.append_data(&mut header, &file.name, file.content.as_slice())?;
    }
    archive.into_inner()
}

fn status_of(error: &EngineError) -> Option<u16> {
    match error {
        EngineError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn api_is_at_least(found: &str, least: (u32, u32)) -> bool {
    let parsed = found.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.is_some_and(|version: (u32, u32)| version >= least)
}

/// What every container of ours has in common: no log of its own, no restart, nothing it does not need.
fn frugal_host_config() -> HostConfig {
    HostConfig {
        log_config: Some(bollard::models::HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(true),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_compared_as_numbers() {
        assert!(api_is_at_least("1.41", (1, 41)));
        assert!(api_is_at_least("1.100", (1, 41)));
        assert!(api_is_at_least("2.0", (1, 41)));
        assert!(!api_is_at_least("1.9", (1, 41)));
        assert!(!api_is_at_least("", (1, 41)));
    }
}
