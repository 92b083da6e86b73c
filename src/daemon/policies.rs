//! The configuration while the daemon runs: read again when it changes, and where it is not valid the last good one goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;

use super::Daemon;
use super::kv::{Known, Staleness};
use crate::configuration::{self, Configuration, ConfigurationError};
use crate::control::ControlPlane;
use crate::kv::{as_read, folder as folder_of_policies, keep};
use crate::settings::{self, Policies};
use crate::state::State;

impl Daemon {
    /// Takes up what Consul says of the policies, or that it says nothing.
    pub(super) fn learn(&mut self, known: Known, path: Option<&Path>) {
        let is_new = known.documents != self.known.documents;
        self.known = known;
        self.flag_policies();
        if is_new {
            self.reload(path, false);
        }
    }

    /// Raises a flag where the policies are not what Consul says now.
    pub(super) fn flag_policies(&mut self) {
        let (flag, is_wiped) = match &self.known.stale {
            Some(Staleness { stale, is_wiped }) => (Some(stale.to_string()), *is_wiped),
            None => (None, false),
        };
        if self.board.flag("policies", flag.clone())
            && let Some(text) = flag
        {
            tracing::error!("{text}");
            if is_wiped {
                self.event(None, "configuration.invalid", &text);
            }
        }
    }

    /// `pglife.toml` as it is now, with the policies as they are known.
    fn read(&self, path: Option<&Path>) -> Result<Configuration, ConfigurationError> {
        let opened = configuration::open(path)?;
        if let Some(folder) = opened.folder().map(Path::to_owned) {
            return opened.with_folder(&folder);
        }
        let below = self.control.consul.as_deref().map(folder_of_policies).unwrap_or_default();
        opened.with(Ok(as_read(&below, &self.known.documents)))
    }

    /// Reads the configuration again; one that is not valid changes nothing but a flag.
    pub(super) fn reload(&mut self, path: Option<&Path>, asked: bool) {
        let told = fingerprint(&self.control.configuration);
        self.fingerprint = told;
        let configuration = match self.read(path) {
            Ok(configuration) => configuration,
            Err(error) => {
                let text = format!("the configuration is not valid, the last good one goes on: {error}");
                if self.board.flag("configuration", Some(text.clone())) {
                    tracing::error!("{text}");
                    self.event(None, "configuration.invalid", &text);
                }
                return;
            }
        };
        let (old, new) = (&self.control.configuration.settings, &configuration.settings);
        let fixed =
            |settings: &settings::Settings| (settings.state_dir.clone(), settings.http, settings.consul.clone());
        let restart = fixed(old) != fixed(new);
        let moved = |settings: &settings::Settings| settings.policies == Policies::Consul;
        if moved(old) != moved(new) {
            let text = "policies go from a folder to Consul, or back, when the daemon is started again; until then nothing of the new configuration takes effect";
            self.board.flag("configuration", Some(text.to_owned()));
            return;
        }
        if old.state_dir != new.state_dir {
            let text = "a change of `state_dir` takes effect when the daemon is started again; until then nothing of the new configuration does";
            self.board.flag("configuration", Some(text.to_owned()));
            return;
        }
        let text = "a change of [http] or [consul] takes effect when the daemon is started again";
        self.board.flag("configuration", restart.then(|| text.to_owned()));
        if new.policies == Policies::Consul && self.known.stale.is_none() {
            keep(new, &self.known.documents, Timestamp::now());
        }
        if !asked && *old == *new && self.control.configuration.policies == configuration.policies {
            return;
        }
        let opened = State::open(&configuration.settings.state_dir);
        match opened {
            Ok(state) => {
                let consul = self.control.consul.clone();
                self.control = Arc::new(ControlPlane { configuration, state, consul, cancel: self.stop.clone() });
                self.newest.send_replace(Arc::clone(&self.control));
                self.fingerprint = fingerprint(&self.control.configuration);
                let summary = self.summary();
                tracing::info!("the configuration was read again: {summary}");
                self.event(None, "configuration.reloaded", &summary);
                self.looked = None;
            }
            Err(error) => {
                self.board.flag("configuration", Some(format!("the configuration was not taken over: {error}")));
            }
        }
    }
}

/// What the configuration's files look like from outside.
pub(super) type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

pub(super) fn fingerprint(configuration: &Configuration) -> Fingerprint {
    let mut files = vec![configuration.file.clone()];
    if let Policies::Folder(folder) = &configuration.settings.policies
        && let Ok(entries) = std::fs::read_dir(folder)
    {
        let listed = entries.filter_map(|entry| Some(entry.ok()?.path()));
        files.extend(listed.filter(|path| path.extension().is_some_and(|extension| extension == "toml")));
    }
    files.sort();
    let seen = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        (path, modified, metadata.map_or(0, |metadata| metadata.len()))
    };
    files.into_iter().map(seen).collect()
}
