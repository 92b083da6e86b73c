//! `pglife daemon`: starts what the policies schedule, and tells how things are, for years.
//!
//! ```text
//!            ticker (pokes)   SIGHUP, changed files or keys   a run that ended   a look that ended
//!                 │                   │                      │                   │
//!                 ▼                   ▼                      ▼                   ▼
//!            ┌─────────────────────── one loop, one owner of everything ──────────────────────┐
//!            │ reload? ─▶ agenda (pure: due?) ─▶ admission (pure: room?) ─▶ remember the slot ─▶ start │
//!            └────────────────────────────────────┬───────────────────────────────────────────┘
//!                                                 ▼
//!                          jobs on threads of their own ─▶ board ─▶ who shows it
//! ```
//!
//! Invariants: a slot is remembered, on disk, before its run starts, so that no slot runs twice whatever kills the daemon; a
//! cluster has one run at a time, and a drill beside it; a configuration that is not valid changes nothing but a flag; a run is never dropped half-way:
//! the end waits for it, and asks it to end when the time is up.

mod admission;
mod agenda;
mod announce;
mod jobs;
mod keeper;
mod kv;
mod lease;
mod ticker;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterName, HostName};
use crate::configuration::{self, Configuration, ConfigurationError};
use crate::control::{ControlPlane, OperationError, failed};
use crate::exit::Exit;
use crate::http;
use crate::kv::{Loaded, OnInvalid, Source, as_read, folder as folder_of_policies, keep, load};
use crate::policy::{Policy, Task};
use crate::settings::{self, Policies, WhenAway};
use crate::state::{Fired, FiredSlots, Operation, State};
use crate::status::board::{Board, Role, Running};
use crate::status::{ClusterStatus, UncoveredServer, look, uncovered_servers};
use crate::upgrade;

use admission::{Claim, ClaimKind, Limits, admit};
use agenda::{Step, decide, entries, remembered};
use announce::Announcer;
use jobs::{Ended, Job};
use keeper::{Fence, Keeper, News, merge, share};
use kv::{Known, Staleness};
use ticker::Ticker;

/// How often the clusters are looked at, besides after every run.
const LOOK: Duration = Duration::from_secs(30);
/// How often the configuration's files are looked at.
const FILES: Duration = Duration::from_secs(10);
/// How often it is looked whether an upgrade was cut, or its old server is to go.
const UPGRADES: Duration = Duration::from_secs(10);
/// How long a cluster that somebody worked on is left alone.
const UPGRADES_GRACE: Duration = Duration::from_secs(20);
/// What could not be done about an upgrade is tried again after so long, and what was refused after so much longer.
const UPGRADES_AGAIN: Duration = Duration::from_secs(600);
const UPGRADES_REFUSED: Duration = Duration::from_secs(6 * 3600);
/// How long runs may take to clean up once they were asked to end.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// Runs until `cancel`, with the `pglife.toml` at `path` or where it is looked for. `ready` is told when it has begun.
pub async fn run(
    path: Option<&Path>,
    cancel: &CancellationToken,
    ready: impl FnOnce(&str),
) -> Result<Exit, OperationError> {
    let what = "the daemon did not start";
    let Loaded { configuration, source } = load(path, OnInvalid::KeepLastGood).await.map_err(failed(what))?;
    let stop = CancellationToken::new();
    let control = Arc::new(ControlPlane::open(configuration, stop.clone())?);
    let now = Timestamp::now();
    let _alone = control.state.lock_daemon(now).map_err(failed(what))?;
    let io = |error: std::io::Error| OperationError {
        source: Some(Box::new(error)),
        ..OperationError::new(Exit::Failed, what)
    };
    let mut hangup = signal(SignalKind::hangup()).map_err(io)?;
    let ticker = Ticker::start().await.map_err(|error| OperationError {
        source: Some(Box::new(error)),
        ..OperationError::new(Exit::Failed, format!("{what}: there is no ticker"))
    })?;
    control.bury_dead_runs().await.unwrap_or_else(|error| tracing::warn!("{}", error.chain()));
    let fired = control.state.fired().map_err(failed(what))?;
    let board = Arc::new(Board::new(instance(&control.configuration), now));
    let settings = &control.configuration.settings;
    let around = CancellationToken::new();
    let mut keepers = JoinSet::new();
    let http = serve_http(settings.http, &board, &around, &mut keepers).await;
    let fence = Arc::new(Fence::default());
    // Who has a keeper hears its role from it; until then nothing is started.
    let (told, mut news) = mpsc::channel(16);
    if let (Some(consul), Some(settings)) = (&control.consul, &settings.consul) {
        board.change(|snapshot| snapshot.role = Role::Standby);
        let keeper = Keeper {
            consul: Arc::clone(consul),
            board: Arc::clone(&board),
            fence: Arc::clone(&fence),
            news: told.clone(),
            http,
            waits: settings.when_away == WhenAway::Wait,
        };
        keepers.spawn(keeper.run(around.clone()));
    }
    // Where the policies are in a folder, nothing comes this way.
    let first = Known::from(&source);
    let (known, mut policies) = watch_channel::channel(first.clone());
    let mut nobody = Some(known);
    if let (Source::Consul { .. } | Source::Copy { .. }, Some(consul)) = (&source, &control.consul)
        && let Some(known) = nobody.take()
    {
        let settings = control.configuration.settings.clone();
        let watcher = kv::Watcher { consul: Arc::clone(consul), settings, known };
        keepers.spawn(watcher.run(source, around.clone()));
    }
    let (newest, controls) = watch_channel::channel(Arc::clone(&control));
    let name = instance(&control.configuration);
    let (announcer, announcing) = Announcer::start(controls.clone(), name, around.clone());
    let watching = tokio::spawn(watch::run(controls, Arc::clone(&board), around.clone()));
    let mut daemon = Daemon {
        newest,
        announcer,
        fence,
        unannounced: !fired.is_empty(),
        fingerprint: fingerprint(&control.configuration),
        // Not what hangs there by now: that is still to be judged.
        known: first,
        control,
        stop,
        board,
        fired,
        claims: BTreeMap::new(),
        jobs: JoinSet::new(),
        looks: JoinSet::new(),
        looked: None,
        upgrades: None,
        upgrades_later: BTreeMap::new(),
        filed: Instant::now(),
    };
    let at = http.map_or_else(|| "no HTTP".to_owned(), |address| format!("http://{address}/"));
    daemon.event(None, "daemon.started", &format!("version {}, {at}", env!("CARGO_PKG_VERSION")));
    tell(&[NotifyState::Ready]);
    ready(&format!("{}, {at}", daemon.summary()));
    daemon.flag_policies();

    while !cancel.is_cancelled() {
        // Nothing is dropped half-way here: each arm only waits.
        tokio::select! {
            () = cancel.cancelled() => break,
            () = ticker.next() => {}
            _ = hangup.recv() => daemon.reload(path, true),
            Some(ended) = daemon.jobs.join_next() => daemon.ended(ended),
            Some(looked) = daemon.looks.join_next() => daemon.looked_at(looked),
            Some(news) = news.recv() => daemon.hear(news).await,
            Ok(()) = policies.changed() => daemon.learn(policies.borrow_and_update().clone(), path),
        }
        daemon.turn(path).await;
    }
    drop(nobody);
    tell(&[NotifyState::Stopping]);
    ticker.stop().await;
    let exit = daemon.wind_down().await;
    // Until here the lock is held and the page is served: the runs were ours.
    around.cancel();
    news.close();
    while keepers.join_next().await.is_some() {}
    for (task, what) in [(watching, "watching over dependents"), (announcing, "telling others")] {
        if let Err(error) = task.await {
            tracing::error!("{what} ended badly: {error}");
        }
    }
    daemon.event(None, "daemon.stopped", "");
    Ok(exit)
}

/// Serves the board, if that is wanted. A port that is taken must not keep backups from happening: it is a flag.
async fn serve_http(
    wanted: Option<SocketAddr>,
    board: &Arc<Board>,
    cancel: &CancellationToken,
    keepers: &mut JoinSet<()>,
) -> Option<SocketAddr> {
    let wanted = wanted?;
    let listening: Result<(TcpListener, SocketAddr), std::io::Error> = http::listen(wanted).await;
    match listening {
        Ok((listener, address)) => {
            tracing::info!("HTTP is served at http://{address}/");
            keepers.spawn(http::serve(listener, Arc::clone(board), cancel.clone()));
            Some(address)
        }
        Err(error) => {
            let text = format!(
                "HTTP is not served: {wanted} cannot be listened at: {error}; correct `listen` in [http], then start again"
            );
            tracing::error!("{text}");
            board.flag("http", Some(text));
            None
        }
    }
}

/// Tells systemd, if it is there.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}

/// The name of this daemon among others: the machine's, unless it is given.
fn instance(configuration: &Configuration) -> String {
    if let Some(name) = &configuration.settings.daemon.instance {
        return name.to_string();
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // Names in Consul: letters, digits and '-'.
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = name.chars().map(plain).collect();
    if name.is_empty() { "pglife".to_owned() } else { name }
}

/// What a look found.
struct Looked {
    clusters: Vec<ClusterStatus>,
    uncovered: Option<Vec<UncoveredServer>>,
}

/// What the loop owns.
struct Daemon {
    control: Arc<ControlPlane>,
    /// Hands it to those who watch over dependents.
    newest: watch_channel::Sender<Arc<ControlPlane>>,
    /// Tells others what happens.
    announcer: Announcer,
    /// Asks every run to end.
    stop: CancellationToken,
    board: Arc<Board>,
    /// The leader's session, where there is Consul.
    fence: Arc<Fence>,
    /// Slots that this daemon knows and KV may not.
    unannounced: bool,
    fired: FiredSlots,
    /// What the runs take up that go on.
    claims: BTreeMap<(ClusterName, Task), Claim>,
    jobs: JoinSet<Ended>,
    looks: JoinSet<Result<Looked, OperationError>>,
    looked: Option<Instant>,
    /// When upgrades were looked at last, and those that are left alone until later.
    upgrades: Option<Instant>,
    upgrades_later: BTreeMap<ClusterName, Instant>,
    filed: Instant,
    fingerprint: Fingerprint,
    /// The policies in Consul, as far as they are known.
    known: Known,
}

impl Daemon {
    /// One turn of the wheel.
    async fn turn(&mut self, path: Option<&Path>) {
        let now = Timestamp::now();
        self.board.change(|snapshot| snapshot.turned_at = now);
        if self.filed.elapsed() >= FILES {
            self.filed = Instant::now();
            if fingerprint(&self.control.configuration) != self.fingerprint {
                self.reload(path, false);
            }
        }
        if self.board.read().role != Role::Standby {
            self.start_due(now).await;
        }
        // The journal is on this machine: nobody else can do it, whoever leads.
        if self.upgrades.is_none_or(|seen| seen.elapsed() >= UPGRADES) {
            self.upgrades = Some(Instant::now());
            self.see_to_upgrades(now);
        }
        if self.looks.is_empty() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.look();
        }
        if sd_notify::watchdog_enabled().is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Starts what is due and has room.
    async fn start_due(&mut self, now: Timestamp) {
        let control = Arc::clone(&self.control);
        let daemon = &control.configuration.settings.daemon;
        let limits = Limits { per_host: daemon.runs_per_host, per_repository: daemon.runs_per_repository };
        for policy in control.configuration.policies.values() {
            for entry in entries(policy) {
                let step = decide(&entry, &self.fired, now);
                let Some(remember) = remembered(&entry, step, now) else { continue };
                let claim = claim(&entry);
                if let Step::Start(_) = step {
                    let running: Vec<Claim> = self.claims.values().cloned().collect();
                    if let Err(refusal) = admit(&running, &claim, limits) {
                        tracing::debug!(cluster = %policy.name, task = %entry.task, "waits: {refusal}");
                        continue;
                    }
                    if control.state.is_busy(&claim.cluster) {
                        tracing::debug!(cluster = %policy.name, task = %entry.task, "waits: a command works on it");
                        continue;
                    }
                }
                let before = self.remember(&policy.name, entry.task, remember);
                let Ok(before) = before else { continue };
                if !self.share(&policy.name).await && matches!(step, Step::Start(_)) {
                    // Another daemon could take over and not know of it; so it is as if it had not been looked at.
                    self.forget(&policy.name, entry.task, before);
                    return;
                }
                match step {
                    Step::Start(_) => self.start(policy, entry.task, claim, before, now),
                    Step::Miss { slot, lateness } => {
                        let text = format!(
                            "the {} of {} was missed: a start would be {lateness} late; the next one is on time",
                            entry.task,
                            entry.schedule.timezone.show(slot.at)
                        );
                        self.count(&policy.name, entry.task, "missed");
                        let kind = if entry.task == Task::Drill { "drill.missed" } else { "backup.missed" };
                        self.event(Some(&policy.name), kind, &text);
                    }
                    Step::Wait | Step::Begin => {}
                }
            }
        }
    }

    /// Starts what is overdue about upgrades.
    fn see_to_upgrades(&mut self, now: Timestamp) {
        let control = Arc::clone(&self.control);
        for policy in control.configuration.policies.values() {
            let now_here = Instant::now();
            if control.state.is_busy(&policy.name) {
                // Whoever works on it, or resumes what was cut, is not raced.
                let later = self.upgrades_later.entry(policy.name.clone()).or_insert(now_here);
                *later = (*later).max(now_here + UPGRADES_GRACE);
                continue;
            }
            if self.upgrades_later.get(&policy.name).is_some_and(|later| now_here < *later) {
                continue;
            }
            let is_overdue = match upgrade::last(&control, &policy.name) {
                Ok(last) => last.is_some_and(|last| upgrade::overdue(policy, &last, now).is_some()),
                Err(error) => {
                    tracing::warn!(cluster = %policy.name, "{}", error.chain());
                    false
                }
            };
            if !is_overdue {
                continue;
            }
            self.upgrades_later.insert(policy.name.clone(), Instant::now() + UPGRADES_AGAIN);
            let claim = Claim {
                cluster: policy.name.clone(),
                host: policy.host.clone(),
                repositories: policy.dump.repositories.clone(),
                kind: ClaimKind::Backup,
            };
            self.start(policy, Task::Upgrade, claim, None, now);
        }
    }

    /// Remembers a slot on disk, and returns what was remembered before. Without that nothing may start.
    fn remember(&mut self, cluster: &ClusterName, task: Task, fired: Fired) -> Result<Option<Fired>, ()> {
        if let Err(error) = self.control.state.set_fired(cluster, task.as_str(), &fired) {
            if self
                .board
                .flag("state", Some(format!("nothing is started, because its slot cannot be remembered: {error}")))
            {
                tracing::error!(%cluster, %task, "a slot cannot be remembered, so nothing is started: {error}");
            }
            return Err(());
        }
        self.board.flag("state", None);
        Ok(self.fired.insert((cluster.clone(), task.as_str().to_owned()), fired))
    }

    /// Takes back what was remembered: nothing was started.
    fn forget(&mut self, cluster: &ClusterName, task: Task, before: Option<Fired>) {
        let Some(before) = before else { return };
        if self.control.state.set_fired(cluster, task.as_str(), &before).is_ok() {
            self.fired.insert((cluster.clone(), task.as_str().to_owned()), before);
        }
    }

    /// Puts the slots of a cluster where the next leader finds them; true where there is no need to.
    async fn share(&mut self, cluster: &ClusterName) -> bool {
        let control = Arc::clone(&self.control);
        let Some(consul) = &control.consul else { return true };
        if self.board.read().role != Role::Leader {
            self.unannounced = true;
            return true;
        }
        share(consul, &self.fence, cluster, &self.fired).await
    }

    /// Takes up what the keeper tells.
    async fn hear(&mut self, news: News) {
        match news {
            News::Leader(theirs) => {
                for key in merge(&mut self.fired, theirs) {
                    let Some(fired) = self.fired.get(&key) else { continue };
                    if let Err(error) = self.control.state.set_fired(&key.0, &key.1, fired) {
                        tracing::warn!("a slot of another daemon could not be remembered: {error}");
                    }
                }
                self.board.change(|snapshot| snapshot.role = Role::Leader);
                if std::mem::take(&mut self.unannounced) {
                    let mut clusters: Vec<ClusterName> =
                        self.fired.keys().map(|(cluster, _)| cluster.clone()).collect();
                    clusters.dedup();
                    for cluster in clusters {
                        self.share(&cluster).await;
                    }
                }
                self.event(None, "daemon.leads", "this daemon starts what is scheduled");
            }
            News::Other(role) => {
                self.board.change(|snapshot| snapshot.role = role);
                let text = match role {
                    Role::Standby => "another daemon starts what is scheduled, or Consul is waited for",
                    Role::Alone | Role::Leader => {
                        "Consul does not answer; this daemon starts what is scheduled on its own judgement"
                    }
                };
                self.event(None, if role == Role::Standby { "daemon.stands_by" } else { "daemon.alone" }, text);
            }
            News::Answers(true, _) => self.event(None, "consul.back", "Consul answers again"),
            News::Answers(false, words) => {
                tracing::error!("{words}");
                self.event(None, "consul.lost", &words);
            }
        }
    }

    fn start(&mut self, policy: &Policy, task: Task, claim: Claim, before: Option<Fired>, now: Timestamp) {
        self.claims.insert((policy.name.clone(), task), claim);
        self.board.change(|snapshot| {
            snapshot.running.push(Running {
                cluster: policy.name.clone(),
                task: task.as_str(),
                started_at: now,
                step: "starting".to_owned(),
                plain_bytes: 0,
                stored_bytes: 0,
                expected_bytes: None,
            });
        });
        tracing::info!(cluster = %policy.name, %task, "a run starts");
        self.announcer.tell(announce::News::Begins(policy.name.clone(), task.as_str()));
        let job = Job {
            control: Arc::clone(&self.control),
            board: Arc::clone(&self.board),
            policy: policy.clone(),
            task,
            before,
        };
        let handle = tokio::runtime::Handle::current();
        // A thread of its own: pruning and listing block.
        self.jobs.spawn_blocking(move || handle.block_on(jobs::run(job)));
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A panic; its claim cannot be told from the others', so the daemon's own end is the honest answer.
                tracing::error!("a run ended in a panic: {error}");
                self.event(None, "daemon.failed", &format!("a run ended in a panic: {error}"));
                std::panic::resume_unwind(error.into_panic());
            }
        };
        let Ended { cluster, task, outcome, before, seconds } = ended;
        self.claims.remove(&(cluster.clone(), task));
        self.board.change(|snapshot| {
            snapshot.running.retain(|running| running.cluster != cluster || running.task != task.as_str());
        });
        match outcome {
            // Somebody was quicker: the slot is still to be run.
            jobs::Outcome::Busy => {
                tracing::debug!(%cluster, %task, "another run works on the cluster; it is tried again");
                self.forget(&cluster, task, before);
                if task == Task::Upgrade {
                    self.upgrades_later.remove(&cluster);
                }
            }
            jobs::Outcome::Done(reports) => {
                for report in &reports {
                    match (task, report.kind) {
                        (Task::Upgrade, Some(jobs::KEPT)) => {
                            self.upgrades_later.insert(cluster.clone(), Instant::now() + UPGRADES_REFUSED);
                        }
                        (Task::Upgrade, _) if report.result != "failed" => drop(self.upgrades_later.remove(&cluster)),
                        _ => {}
                    }
                    if report.is_main {
                        let good = matches!(report.result, "ok" | "warnings" | "proven");
                        let ended = announce::News::Ended(cluster.clone(), task.as_str(), good, report.text.clone());
                        self.announcer.tell(ended);
                        self.count(&cluster, task, report.result);
                        if good {
                            self.board.change(|snapshot| {
                                snapshot.durations.insert((cluster.clone(), task.as_str()), seconds);
                            });
                        }
                    }
                    if let Some(kind) = report.kind {
                        self.event(Some(&cluster), kind, &report.text);
                    }
                }
            }
        }
        self.looked = None;
    }

    fn count(&self, cluster: &ClusterName, task: Task, result: &'static str) {
        self.board.change(|snapshot| {
            *snapshot.ended.entry((cluster.clone(), task.as_str(), result)).or_default() += 1;
        });
    }

    /// Looks at all clusters, on a thread of its own.
    fn look(&mut self) {
        self.looked = Some(Instant::now());
        let control = Arc::clone(&self.control);
        let handle = tokio::runtime::Handle::current();
        self.looks.spawn_blocking(move || {
            handle.block_on(async {
                let clusters = look(&control, None, Timestamp::now()).await?;
                Ok(Looked { clusters, uncovered: uncovered_servers(&control).await })
            })
        });
    }

    fn looked_at(&mut self, looked: Result<Result<Looked, OperationError>, tokio::task::JoinError>) {
        let now = Timestamp::now();
        match looked {
            Ok(Ok(Looked { clusters, uncovered })) => {
                self.board.flag("look", None);
                let summary = self.summary();
                let docker: BTreeMap<HostName, bool> = self
                    .control
                    .configuration
                    .policies
                    .values()
                    .map(|policy| {
                        let seen = clusters.iter().find(|cluster| cluster.cluster == policy.name);
                        (policy.host.clone(), seen.is_some_and(|cluster| cluster.server != "unknown"))
                    })
                    .collect();
                // Who stands by leaves that to the other.
                if self.board.read().role != Role::Standby {
                    self.announcer.tell(announce::News::Looked(clusters.clone()));
                }
                self.board.change(|snapshot| {
                    snapshot.clusters = clusters;
                    snapshot.uncovered = uncovered;
                    snapshot.docker_up = docker;
                    snapshot.looked_at = Some(now);
                });
                tell(&[NotifyState::Status(&summary)]);
            }
            Ok(Err(error)) => {
                if self.board.flag("look", Some(error.chain())) {
                    tracing::error!("the clusters cannot be looked at: {}", error.chain());
                }
            }
            Err(error) => tracing::error!("a look at the clusters ended badly: {error}"),
        }
    }

    /// Takes up what Consul says of the policies, or that it says nothing.
    fn learn(&mut self, known: Known, path: Option<&Path>) {
        let is_new = known.documents != self.known.documents;
        self.known = known;
        self.flag_policies();
        if is_new {
            self.reload(path, false);
        }
    }

    /// Raises a flag where the policies are not what Consul says now.
    fn flag_policies(&mut self) {
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
    fn reload(&mut self, path: Option<&Path>, asked: bool) {
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

    /// Lets the runs end in their time, then asks them to; waits for all of them.
    async fn wind_down(&mut self) -> Exit {
        let patience = self.control.configuration.settings.daemon.stop_within;
        if !self.jobs.is_empty() {
            tracing::info!("waiting up to {patience} for {} runs", self.jobs.len());
        }
        let mut deadline = Instant::now() + patience.as_std();
        let mut exit = Exit::Ok;
        while !self.jobs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let systemd = u32::try_from(left.as_micros()).unwrap_or(u32::MAX).saturating_add(30_000_000);
            tell(&[NotifyState::ExtendTimeoutUsec(systemd), NotifyState::Watchdog]);
            // Waiting is all that is cut short here: the run goes on.
            let waited = tokio::time::timeout(left.min(Duration::from_secs(5)), self.jobs.join_next()).await;
            match waited {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) => break,
                Err(_) if Instant::now() < deadline => {}
                Err(_) if exit == Exit::Ok => {
                    tracing::warn!("the time is up: {} runs are asked to end", self.jobs.len());
                    exit = Exit::Terminated;
                    self.stop.cancel();
                    deadline = Instant::now() + CLEAN_UP;
                }
                Err(_) => {
                    tracing::error!("{} runs did not end; the next start cleans up after them", self.jobs.len());
                    break;
                }
            }
        }
        exit
    }

    fn summary(&self) -> String {
        let configuration = &self.control.configuration;
        let scheduled: usize = configuration.policies.values().map(|policy| entries(policy).count()).sum();
        format!("{} clusters, {scheduled} schedules", configuration.policies.len())
    }

    fn event(&self, cluster: Option<&ClusterName>, kind: &str, text: &str) {
        self.announcer.tell(announce::News::Happened(cluster.cloned(), kind.to_owned(), text.to_owned()));
        if let Err(error) = self.control.state.record_event(Timestamp::now(), cluster, kind, text) {
            tracing::warn!("an event could not be recorded: {error}");
        }
    }
}

/// What a run of a schedule takes up.
fn claim(entry: &agenda::Entry<'_>) -> Claim {
    let (kind, operation) = match entry.task {
        Task::Drill => (ClaimKind::Drill, Operation::Drill),
        Task::Dump | Task::Volume | Task::Verify | Task::Upgrade => (ClaimKind::Backup, Operation::Dump),
    };
    Claim {
        cluster: operation.locks(entry.cluster),
        host: entry.host.clone(),
        repositories: entry.repositories.to_vec(),
        kind,
    }
}

/// What the configuration's files look like from outside.
type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

fn fingerprint(configuration: &Configuration) -> Fingerprint {
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
