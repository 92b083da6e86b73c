//! One upgrade at work: it looks at the world, has [`journal::next`] decide, and does that one thing; again, until it is done.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::adopted;
use super::carried::policy_with;
use super::journal::{Action, Goal, Next, Observed, Phase, Seat, next};
use super::maintenance;
use super::plan::{Containers, DataContainer, Method, OldServer, PinnedImage, Single, Trial, UpgradePlan};
use super::record::Report;
use crate::backup_set::ServerProfile;
use crate::cluster::ContainerName;
use crate::control::{ControlPlane, OperationError, Progress, Run, Tick, close_worker, failed, start_worker};
use crate::dependents::act::Dependents;
use crate::docker::body::{ContainerCreateBody, HostConfig, RestartPolicy, RestartPolicyNameEnum};
use crate::docker::label::{self, Purpose};
use crate::docker::twin::Blueprint;
use crate::docker::worker::{WorkerMount, WorkerNetwork, WorkerPlan};
use crate::docker::{Container, DockerError, Engine, Image};
use crate::exit::Exit;
use crate::policy::{DatabaseSelection, Login, Policy};
use crate::postgres::control_data::ControlData;
use crate::provision;
use crate::worker::Request;
use crate::worker::session::Session;

/// How long a server may take to shut down before it is killed, and no kill is wanted: it is waited for.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(600);
/// No way from anywhere to an end has so many actions.
const MOST_ACTIONS: usize = 64;

/// One upgrade at work.
pub(super) struct Scene<'a> {
    pub(super) control: &'a ControlPlane,
    pub(super) run: &'a Run<'a>,
    pub(super) engine: &'a Engine,
    /// As it is on disk.
    policy: &'a Policy,
    pub(super) plan: &'a UpgradePlan,
    /// Its id in the journal, which its containers and volumes carry as a label.
    pub(super) id: String,
    pub(super) report: Report,
    pub(super) progress: Progress<'a>,
    what: String,
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        control: &'a ControlPlane,
        run: &'a Run<'a>,
        engine: &'a Engine,
        policy: &'a Policy,
        plan: &'a UpgradePlan,
        id: String,
        progress: Progress<'a>,
    ) -> Self {
        let what = format!("{plan} failed");
        Self { control, run, engine, policy, plan, id, report: Report::default(), progress, what }
    }

    /// With other words for what failed.
    pub(super) fn called(self, what: &str) -> Self {
        Self { what: what.to_owned(), ..self }
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn say(&self, step: &str) {
        (self.progress)(Tick::Step(step.to_owned()));
    }

    pub(super) fn failed(&self) -> impl FnOnce(DockerError) -> OperationError + use<> {
        failed(self.what.clone())
    }

    /// The journal knows of the step before it is begun.
    pub(super) fn step(&self, name: &str) -> Result<Step, OperationError> {
        self.control.state.upgrade_step(&self.id, name, Timestamp::now()).map_err(failed(&self.what))?;
        fail_point("before", name);
        self.say(name);
        Ok(Step { name: name.to_owned(), began: Instant::now() })
    }

    pub(super) fn end(&mut self, step: Step) {
        fail_point("after", &step.name);
        self.report.seconds.push((step.name, step.began.elapsed().as_secs_f64()));
    }

    pub(super) fn phase(&mut self, phase: Phase) -> Result<(), OperationError> {
        self.save_report()?;
        let word = phase.as_str();
        fail_point("before", word);
        self.control.state.upgrade_phase(&self.id, word, Timestamp::now()).map_err(failed(&self.what))?;
        fail_point("after", word);
        Ok(())
    }

    pub(super) fn save_report(&self) -> Result<(), OperationError> {
        let text = serde_json::to_string(&self.report).expect("a report has only text keys");
        self.control.state.upgrade_report(&self.id, &text, Timestamp::now()).map_err(failed(&self.what))
    }

    /// The containers that depend on the cluster.
    pub(super) fn dependents(&self) -> Dependents<'_> {
        Dependents { control: self.control, engine: self.engine, policy: self.policy, shared: None }
    }

    /// Nobody shall find the database any more: its services in Consul are in maintenance, and its dependents are down.
    pub(super) async fn close(&self, reason: &str) -> Result<(), OperationError> {
        if let Some(consul) = &self.control.consul
            && let Some(trouble) = maintenance::begin(consul, self.plan, &self.run.id).await
        {
            tracing::warn!(cluster = %self.plan.cluster, "{trouble}");
        }
        self.control.state.upgrade_closes(&self.id, Timestamp::now()).map_err(failed(&self.what))?;
        let dependents = self.dependents();
        // A daemon that looked before that would take what is remembered and still runs for started by somebody.
        let _alone = dependents.alone().await?;
        dependents.take_all_down(reason).await.map(drop)
    }

    /// Has the database found again, now that a server serves, and brings back who was taken down; what goes wrong with that is
    /// told, and undoes nothing. Where nobody is `served`, none of them would become healthy.
    pub(super) async fn reopen(&mut self, served: bool) -> Option<String> {
        if let Some(consul) = &self.control.consul
            && let Some(trouble) = maintenance::end(consul, self.plan).await
        {
            tracing::warn!(cluster = %self.plan.cluster, "{trouble}");
        }
        if !served {
            return None;
        }
        self.say("dependents come back");
        let trouble = self.dependents().bring_all_back().await.err()?;
        let next = trouble.next.as_deref().unwrap_or_default();
        Some(format!("{}; next: {next}", trouble.chain()))
    }

    /// The policy by which the server in `container` is reached: everything of it is wanted.
    pub(super) fn policy_of(&self, container: ContainerName, new: bool) -> Policy {
        let mut policy = self.policy.clone();
        policy.container = container;
        policy.major = if new { self.plan.to } else { self.plan.from };
        policy
    }

    /// The policy of the new server before the roles are there.
    pub(super) fn target_policy(&self) -> Policy {
        let mut policy = self.policy_of(self.plan.trial(Trial::Target), true);
        if self.plan.single().is_some() {
            policy.login = Login::Tcp { user: self.plan.bootstrap_role.clone(), password_file: None };
        }
        policy
    }

    /// The policy of the old server for the last backup: nothing may be left out of it.
    pub(super) fn source_policy(&self) -> Policy {
        with_everything(self.policy_of(self.plan.trial(Trial::Source), false))
    }

    /// The policy of the new server while nobody finds it, for a backup of what was written to it.
    pub(super) fn fenced_policy(&self) -> Policy {
        with_everything(self.policy_of(self.plan.trial(Trial::Proof), true))
    }

    /// The policy of the new server in its place.
    pub(super) fn new_policy(&self) -> Policy {
        self.policy_of(self.plan.container.clone(), true)
    }

    async fn seat(&self, name: &ContainerName, old: &str) -> Result<(Seat, Option<Container>), OperationError> {
        let found = self.engine.container(name.as_str()).await.map_err(self.failed())?;
        let seat = match &found {
            None => Seat::Empty,
            Some(found) if found.id == old => Seat::Old { running: found.running },
            Some(found) if found.labels.get(label::UPGRADE) == Some(&self.id) => Seat::New { running: found.running },
            Some(_) => Seat::Stranger,
        };
        Ok((seat, found))
    }

    async fn observe(&self) -> Result<Observed, OperationError> {
        let plan = self.plan;
        let mut trials = false;
        for trial in Trial::ALL {
            trials |= self.engine.container(plan.trial(trial).as_str()).await.map_err(self.failed())?.is_some();
        }
        let (database, _) = self.seat(&plan.container, &plan.old_container_id).await?;
        let (aside, _) = self.seat(&plan.kept_container, &plan.old_container_id).await?;
        let (data, data_aside) = match plan.data_container() {
            Some(DataContainer { name, old_id, kept, .. }) => {
                (Some(self.seat(name, old_id).await?.0), self.seat(kept, old_id).await?.0)
            }
            None => (None, Seat::Empty),
        };
        let old_is_there = self.engine.container(&plan.old_container_id).await.map_err(self.failed())?.is_some();
        let text = self.control.policy_text(&plan.cluster).await.map_err(failed(&self.what))?;
        let as_new = policy_with(&text, plan.to, plan.policy_image.as_deref());
        Ok(Observed {
            trials,
            database,
            data,
            database_aside: matches!(aside, Seat::Old { .. }),
            data_aside: matches!(data_aside, Seat::Old { .. }),
            new_volume: !self.report.keep_new_volume
                && self.engine.volume(&plan.new_volume).await.map_err(self.failed())?.is_some(),
            in_folder: plan.new_folder().is_some(),
            policy_is_new: as_new == text,
            policy_changes: plan.changes_policy(),
            ran: plan.old_server != OldServer::Stopped,
            restarts: old_is_there
                && restarts(&self.engine.restart_policy(&plan.old_container_id).await.map_err(self.failed())?),
            had_restarts: restarts(&plan.restart),
        })
    }

    /// Does what is to be done, one thing after the other, until the goal is reached.
    pub(super) async fn drive(&mut self, goal: Goal) -> Result<(), OperationError> {
        let (mut started, mut checked) = (false, goal != Goal::AsBefore);
        for _ in 0..MOST_ACTIONS {
            let mut seen = self.observe().await?;
            // Once is enough: one that does not stay up is told of below.
            seen.ran &= !started;
            match next(goal, seen) {
                Next::Do(Action::RemoveNewVolume) | Next::Done if !checked => {
                    self.see_to_old_server().await?;
                    checked = true;
                }
                Next::Done => return Ok(()),
                Next::Stuck(why) => {
                    return Err(OperationError::new(Exit::UpgradeNeedsOperator, format!("{}: {why}", self.what)));
                }
                Next::Do(action) => {
                    started |= action == Action::StartOld;
                    let step = self.step(&action.to_string())?;
                    self.apply(action, goal).await?;
                    self.end(step);
                }
            }
        }
        Err(OperationError::new(Exit::UpgradeNeedsOperator, format!("{}: it comes to no end", self.what)))
    }

    async fn apply(&mut self, action: Action, goal: Goal) -> Result<(), OperationError> {
        let plan = self.plan;
        let (engine, old) = (self.engine, &plan.old_container_id);
        match action {
            Action::RemoveTrials => {
                for trial in Trial::ALL {
                    // What it made is thrown away, and nobody waits for that: an entry point that makes a cluster does not hear.
                    let is_scrap =
                        goal == Goal::AsBefore && trial == Trial::Target && matches!(plan.method, Method::Upgrade(_));
                    let patience = if is_scrap { Duration::from_secs(2) } else { STOP_PATIENCE };
                    self.remove_trial_within(trial, patience).await?;
                }
                Ok(())
            }
            Action::ForbidRestart => engine.set_restart_policy(old, no_restart()).await,
            Action::StopOld => engine.stop(old, STOP_PATIENCE).await,
            Action::SetDatabaseAside => engine.rename_container(old, &plan.kept_container).await,
            Action::SetDataAside | Action::MakeData | Action::RemoveNewData | Action::BringDataBack => {
                return self.apply_to_data(action).await;
            }
            Action::MakeDatabase => return self.make_database().await,
            Action::StartNew => return self.start_new().await,
            Action::WritePolicy => return self.write_policy(plan.to, plan.policy_image.as_deref()).await,
            Action::RestorePolicy => {
                let image = plan.policy_image.as_ref().map(|_| plan.old_image.name.as_str());
                return self.write_policy(plan.from, image).await;
            }
            Action::RemoveNewDatabase => {
                engine.stop(plan.container.as_str(), STOP_PATIENCE).await.map_err(self.failed())?;
                engine.remove_container(plan.container.as_str()).await
            }
            Action::BringDatabaseBack => engine.rename_container(old, &plan.container).await,
            Action::RemoveNewVolume => {
                if let Some(folder) = plan.new_folder() {
                    let (mount, folder) = adopted::beside(folder, true);
                    // What had the upgrade stopped does not stop the way back; and of the images the old one is there for certain.
                    let image = &plan.old_image;
                    self.ask_beside(image, vec![mount], &Request::RemoveFolder { folder }, &CancellationToken::new())
                        .await?;
                }
                engine.remove_volume(&plan.new_volume).await
            }
            Action::RestoreRestart => engine.set_restart_policy(old, plan.restart.clone()).await,
            Action::StartOld => engine.start(old).await,
        }
        .map_err(self.failed())
    }

    async fn write_policy(&self, major: crate::cluster::PgMajor, image: Option<&str>) -> Result<(), OperationError> {
        let (control, cluster) = (self.control, &self.plan.cluster);
        let text = control.policy_text(cluster).await.map_err(failed(&self.what))?;
        let new = policy_with(&text, major, image);
        control.replace_policy(cluster, &text, &new).await.map_err(failed(&self.what))
    }

    /// What concerns the data container; where there is none, nothing does.
    async fn apply_to_data(&self, action: Action) -> Result<(), OperationError> {
        let (engine, Some(data)) = (self.engine, self.plan.data_container()) else { return Ok(()) };
        match action {
            Action::SetDataAside => engine.rename_container(&data.old_id, &data.kept).await,
            Action::MakeData => return self.make_data(data).await,
            Action::RemoveNewData => engine.remove_container(data.name.as_str()).await,
            Action::BringDataBack => engine.rename_container(&data.old_id, &data.name).await,
            _ => Ok(()),
        }
        .map_err(self.failed())
    }

    async fn make_data(&self, data: &DataContainer) -> Result<(), OperationError> {
        let plan = self.plan;
        let blueprint = self.engine.blueprint(&data.old_id).await.map_err(self.failed())?;
        let mut binds = vec![format!("{}:/data", plan.new_volume)];
        binds.extend(data.shared.iter().map(|(source, destination)| format!("{source}:{destination}")));
        let Blueprint { mut body, .. } = blueprint;
        body.labels.get_or_insert_default().insert(label::UPGRADE.to_owned(), self.id.clone());
        let host = body.host_config.take().unwrap_or_default();
        body.host_config = Some(HostConfig { binds: Some(binds), mounts: None, ..host });
        self.engine.create_container(&data.name, body).await.map_err(self.failed())?;
        Ok(())
    }

    /// The new image, by the name that still means it, else by its id.
    pub(super) async fn new_image(&self) -> Result<Image, OperationError> {
        let pinned = &self.plan.new_image;
        let named = self.engine.image(&pinned.name).await.map_err(self.failed())?;
        match named.filter(|named| named.id == pinned.id) {
            Some(named) => Ok(named),
            None => self.engine.require_image(&pinned.id).await.map_err(self.failed()),
        }
    }

    async fn make_database(&self) -> Result<(), OperationError> {
        let Blueprint { mut body, .. } =
            self.engine.blueprint(&self.plan.old_container_id).await.map_err(self.failed())?;
        body.image = Some(self.new_image().await?.reference);
        body.labels.get_or_insert_default().insert(label::UPGRADE.to_owned(), self.id.clone());
        let mut host = body.host_config.take().unwrap_or_default();
        host.restart_policy = Some(self.plan.restart.clone());
        match &self.plan.containers {
            Containers::Pair(data) => host.volumes_from = Some(vec![data.name.to_string()]),
            Containers::Single(single) => {
                adopted::mount(&mut host, &self.old_container().await?, Some((single, self.plan.new_data())));
                adopted::keep_data_directory(&mut body, single);
            }
        }
        body.host_config = Some(host);
        self.engine.create_container(&self.plan.container, body).await.map_err(self.failed())?;
        Ok(())
    }

    /// Makes the volume for the new data; where it stands for a folder of the host, that too.
    pub(super) async fn make_volume(&self) -> Result<(), OperationError> {
        let (engine, plan) = (self.engine, self.plan);
        let mut labels = label::of_cluster(Purpose::Cluster, &self.run.id, &plan.cluster);
        labels.insert(label::ROLE.to_owned(), "data".to_owned());
        labels.insert(label::UPGRADE.to_owned(), self.id.clone());
        let Some(folder) = plan.new_folder() else {
            engine.ensure_volume(&plan.new_volume, &labels).await.map_err(self.failed())?;
            return self.give_volume_its_owner().await;
        };
        // First: by it a resume knows that there is a folder to be removed.
        engine.ensure_volume_of_folder(&plan.new_volume, &labels, folder).await.map_err(self.failed())?;
        let (mount, folder) = adopted::beside(folder, true);
        let like = adopted::beside(&plan.old_volume, true).1;
        let request = Request::MakeFolder { folder, like };
        self.ask_beside(&plan.new_image, vec![mount], &request, &self.control.cancel).await
    }

    /// A server that does not begin as root cannot take its new volume for its own.
    async fn give_volume_its_owner(&self) -> Result<(), OperationError> {
        let plan = self.plan;
        if plan.single().is_none() || self.old_container().await?.begins_as_root() {
            return Ok(());
        }
        let (mounts, folder, like) = adopted::both(&plan.old_volume, plan.new_volume.as_str());
        let request = Request::MakeFolder { folder, like };
        self.ask_beside(&plan.new_image, mounts.into(), &request, &self.control.cancel).await
    }

    /// Has a worker in `image` do something in folders of the host, or in volumes.
    async fn ask_beside(
        &self,
        image: &PinnedImage,
        mounts: Vec<WorkerMount>,
        request: &Request,
        cancel: &CancellationToken,
    ) -> Result<(), OperationError> {
        let worker = WorkerPlan {
            run: self.run.id.clone(),
            cluster: self.plan.cluster.clone(),
            image_id: image.id.clone(),
            mounts,
            network: WorkerNetwork::Nothing,
            serves: false,
        };
        let mut session = start_worker(self.engine, &worker).await.map_err(failed(&self.what))?;
        let done = session.request(request, cancel, |_| {}).await;
        close_worker(session).await;
        done.map(drop).map_err(failed(&self.what))
    }

    /// The old database container, whatever it is called now.
    async fn old_container(&self) -> Result<Container, OperationError> {
        let id = &self.plan.old_container_id;
        self.engine.container(id).await.map_err(self.failed())?.ok_or_else(|| {
            OperationError::new(
                Exit::UpgradeNeedsOperator,
                format!("{}: the old database container ({id}), after which others are made, is gone", self.what),
            )
        })
    }

    /// Joins the networks that it does not have yet, and starts.
    async fn start_new(&self) -> Result<(), OperationError> {
        let name = self.plan.container.as_str();
        let made = self.engine.require_container(&self.plan.container).await.map_err(self.failed())?;
        let Blueprint { more_networks, .. } =
            self.engine.blueprint(&self.plan.old_container_id).await.map_err(self.failed())?;
        for (network, endpoint) in more_networks {
            if !made.networks.contains_key(&network) {
                self.engine.connect_network(name, &network, endpoint).await.map_err(self.failed())?;
            }
        }
        self.engine.start(name).await.map_err(self.failed())
    }

    /// The server under the cluster's name is the one that was compared.
    pub(super) async fn check_serving(&mut self) -> Result<(), OperationError> {
        let container = self.engine.require_container(&self.plan.container).await.map_err(self.failed())?;
        let policy = self.new_policy();
        let image = self.new_image().await?;
        let found = self.answer(&policy, &container, &image, provision::RECOVERY_SECONDS).await?;
        if Some(found) != self.report.system_identifier {
            return Err(OperationError::new(
                Exit::UpgradeNeedsOperator,
                format!("{}: under the cluster's name answers another server (system identifier {found})", self.what),
            ));
        }
        if self.report.serving_at.is_none() {
            self.report.serving_at = Some(Timestamp::now());
        }
        Ok(())
    }

    /// The old server serves again, as far as it did before: until then nothing of the new one is removed.
    async fn see_to_old_server(&mut self) -> Result<(), OperationError> {
        // Nobody stopped it; or nobody waits for it, and its own container was started.
        let is_left_alone = self.report.stopped_at.is_none() || self.control.cancel.is_cancelled();
        if self.plan.old_server != OldServer::Serves || is_left_alone {
            return Ok(());
        }
        let Err(error) = self.check_old_serving().await else { return Ok(()) };
        if matches!(self.plan.method, Method::Upgrade(_)) {
            return Err(error);
        }
        // It was to be replaced, after all. The restored data stay.
        self.report.keep_new_volume = true;
        let why = format!("the server before does not serve: {}", error.chain());
        let before = self.report.failure.take().map(|failure| format!("{failure}; ")).unwrap_or_default();
        self.report.failure = Some(before + &why);
        self.save_report()
    }

    async fn check_old_serving(&self) -> Result<(), OperationError> {
        let container = self.engine.require_container(&self.plan.container).await.map_err(self.failed())?;
        let policy = self.policy_of(self.plan.container.clone(), false);
        let image = self.engine.require_image(&container.image_id).await.map_err(self.failed())?;
        let found = self.answer(&policy, &container, &image, provision::RECOVERY_SECONDS).await?;
        if found == self.plan.system_identifier {
            return Ok(());
        }
        Err(OperationError::new(
            Exit::UpgradeNeedsOperator,
            format!("{}: under the cluster's name answers another server (system identifier {found})", self.what),
        ))
    }

    /// A session beside the server in `container`, and what that is, as soon as it answers.
    pub(super) async fn enter(
        &self,
        policy: &Policy,
        container: &Container,
        image: &Image,
        mounts: Vec<WorkerMount>,
        patience_seconds: u64,
    ) -> Result<(Session, ServerProfile), OperationError> {
        let (what, major) = (&self.what, Some(policy.major));
        let (control, run, engine) = (self.control, self.run, self.engine);
        provision::await_server(control, run, policy, engine, container, image, mounts, what, patience_seconds, major)
            .await
    }

    /// Waits until the server in `container` answers, and says which it is: its system identifier.
    pub(super) async fn answer(
        &self,
        policy: &Policy,
        container: &Container,
        image: &Image,
        patience_seconds: u64,
    ) -> Result<u64, OperationError> {
        let (session, profile) = self.enter(policy, container, image, vec![], patience_seconds).await?;
        close_worker(session).await;
        Ok(profile.system_identifier)
    }

    /// What the control file in the new volume says; its server must not run.
    pub(super) async fn control_file(&self) -> Result<ControlData, OperationError> {
        let plan = self.plan;
        let data = (plan.new_data(), plan.new_data_below(""));
        self.run.control_file(self.engine, &plan.new_image.id, (data.0, &data.1), plan.to, &self.what).await
    }

    /// Has nobody served by the new server any more: stops it in its place, and removes what works beside it.
    pub(super) async fn stop_new(&self) -> Result<(), OperationError> {
        for trial in Trial::ALL {
            self.remove_trial(trial).await?;
        }
        match self.new_container().await? {
            Some(container) => self.engine.stop(&container.id, STOP_PATIENCE).await.map_err(self.failed()),
            None => Ok(()),
        }
    }

    /// The database container that this upgrade made, where it stands in its place.
    pub(super) async fn new_container(&self) -> Result<Option<Container>, OperationError> {
        let (seat, found) = self.seat(&self.plan.container, &self.plan.old_container_id).await?;
        Ok(found.filter(|_| matches!(seat, Seat::New { .. })))
    }

    /// Stops in good order and removes a container for work or proof.
    pub(super) async fn remove_trial(&self, trial: Trial) -> Result<(), OperationError> {
        self.remove_trial_within(trial, STOP_PATIENCE).await
    }

    /// The same; a server that takes longer is killed.
    async fn remove_trial_within(&self, trial: Trial, patience: Duration) -> Result<(), OperationError> {
        let name = self.plan.trial(trial);
        let Some(found) = self.engine.container(name.as_str()).await.map_err(self.failed())? else { return Ok(()) };
        if found.labels.get(label::UPGRADE) != Some(&self.id) {
            return Err(OperationError::new(
                Exit::UpgradeNeedsOperator,
                format!("{}: container \"{name}\" is not of this upgrade", self.what),
            )
            .next(format!("look at what it is (docker inspect {name}) and rename or remove it")));
        }
        self.engine.stop(&found.id, patience).await.map_err(self.failed())?;
        self.engine.remove_container(&found.id).await.map_err(self.failed())
    }

    /// Makes and starts a container for work or proof: no published port, no alias, a name that nobody knows.
    pub(super) async fn start_trial(&self, trial: Trial) -> Result<Container, OperationError> {
        let plan = self.plan;
        let Blueprint { mut body, .. } = self.engine.blueprint(&plan.old_container_id).await.map_err(self.failed())?;
        let expires = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 30);
        let mut labels = label::short_lived(Purpose::Trial, &self.run.id, &plan.cluster, expires);
        labels.insert(label::UPGRADE.to_owned(), self.id.clone());
        body.labels = Some(labels);
        body.networking_config = None;
        let host = body.host_config.take().unwrap_or_default();
        body.host_config = Some(HostConfig {
            port_bindings: None,
            publish_all_ports: Some(false),
            links: None,
            restart_policy: Some(no_restart()),
            ..host
        });
        if trial != Trial::Source {
            body.image = Some(plan.new_image.id.clone());
        }
        match &plan.containers {
            Containers::Pair(data) if trial != Trial::Source => self.for_new_server(&mut body, data, trial),
            Containers::Pair(_) => {}
            Containers::Single(single) => self.hide(&mut body, single, trial).await?,
        }
        let name = plan.trial(trial);
        self.engine.create_container(&name, body).await.map_err(self.failed())?;
        if trial == Trial::Target && plan.single().is_some() {
            let (folder, rules) = adopted::rules();
            self.engine.put_files(name.as_str(), folder, &[rules]).await.map_err(self.failed())?;
        }
        self.engine.start(name.as_str()).await.map_err(self.failed())?;
        self.engine.require_container(&name).await.map_err(self.failed())
    }

    /// Makes of the body of an adopted container one that nobody finds.
    async fn hide(&self, body: &mut ContainerCreateBody, single: &Single, trial: Trial) -> Result<(), OperationError> {
        let (plan, old) = (self.plan, self.old_container().await?);
        let host = body.host_config.get_or_insert_default();
        adopted::mount(host, &old, (trial != Trial::Source).then_some((single, plan.new_data())));
        adopted::own_network(host);
        adopted::keep_data_directory(body, single);
        if trial == Trial::Target {
            adopted::empty(body, single, &plan.bootstrap_role, self.policy.port, plan.wal_segment_bytes);
        }
        if trial != Trial::Source {
            // It must not write into the archive of the old server.
            adopted::add_settings(body, ["archive_mode=off"]);
        }
        adopted::add_settings(body, [adopted::HIDDEN]);
        Ok(())
    }

    /// The target has no secrets: they would make an admin role, and the backup brings its own.
    fn for_new_server(&self, body: &mut ContainerCreateBody, data: &DataContainer, trial: Trial) {
        let plan = self.plan;
        let mut binds = vec![format!("{}:/data", plan.new_volume)];
        let shared = data.shared.iter().filter(|(_, destination)| trial == Trial::Proof || destination == "/config");
        binds.extend(shared.map(|(source, destination)| format!("{source}:{destination}")));
        let host = body.host_config.take().unwrap_or_default();
        body.host_config = Some(HostConfig { volumes_from: None, binds: Some(binds), ..host });
        let mut command = body.cmd.take().unwrap_or_else(|| vec!["postgres".to_owned()]);
        // It must not write into the archive of the old server.
        command.extend(["-c", "archive_mode=off"].map(str::to_owned));
        if matches!(plan.method, Method::Restore(_)) {
            // Its subscriptions are those of the old server, which may serve meanwhile.
            command.extend(["-c", "max_logical_replication_workers=0"].map(str::to_owned));
        }
        if trial == Trial::Target {
            // No standby finds it, so that a commit would wait for one for ever.
            command.extend(["-c", "ssl=off", "-c", "synchronous_standby_names="].map(str::to_owned));
            let environment = body.env.get_or_insert_default();
            environment.retain(|variable| {
                let name = variable.split('=').next().unwrap_or_default();
                !name.starts_with("POSTGRES_PASSWORD") && !name.starts_with("ADMIN_")
            });
            if plan.wal_segment_bytes != 16 << 20 {
                environment.retain(|variable| !variable.starts_with("POSTGRES_INITDB_ARGS="));
                environment.push(format!("POSTGRES_INITDB_ARGS=--wal-segsize={}", plan.wal_segment_bytes >> 20));
            }
        }
        body.cmd = Some(command);
    }
}

/// With nothing left out of a dump.
fn with_everything(mut policy: Policy) -> Policy {
    policy.dump.databases = DatabaseSelection::everything();
    policy.dump.exclude_table_data = vec![];
    policy
}

/// A step that was begun.
pub(super) struct Step {
    name: String,
    began: Instant,
}

pub(super) fn no_restart() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }
}

fn restarts(policy: &RestartPolicy) -> bool {
    !matches!(policy.name, None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY))
}

/// For tests: `PGLIFE_FAILPOINT=before:<step>` or `after:<step>` ends the process there as SIGKILL would.
fn fail_point(when: &str, step: &str) {
    if std::env::var("PGLIFE_FAILPOINT").is_ok_and(|wanted| wanted == format!("{when}:{step}")) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
    }
}
