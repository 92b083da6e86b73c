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
mod policies;
mod runs;
mod ticker;
mod upgrades;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterName, HostName};
use crate::configuration::Configuration;
use crate::control::{ControlPlane, OperationError, failed};
use crate::exit::Exit;
use crate::http;
use crate::kv::{Loaded, OnInvalid, Source, load};
use crate::policy::Task;
use crate::settings::WhenAway;
use crate::state::FiredSlots;
use crate::status::board::{Board, Role};
use crate::status::{ClusterStatus, UncoveredServer, look, uncovered_servers};

use admission::Claim;
use agenda::entries;
use announce::Announcer;
use jobs::Ended;
use keeper::{Fence, Keeper, News, merge};
use kv::Known;
use policies::{Fingerprint, fingerprint};
use ticker::Ticker;
use upgrades::Patience;

/// How often the clusters are looked at, besides after every run.
const LOOK: Duration = Duration::from_secs(30);
/// How often the configuration's files are looked at.
const FILES: Duration = Duration::from_secs(10);
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
    let watching = tokio::spawn(watch::run(controls, Arc::clone(&board), Arc::clone(&fence), around.clone()));
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
        upgrades: Patience::default(),
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
            Some(ended) = daemon.jobs.join_next() => daemon.ended(ended).await,
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
    upgrades: Patience,
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
        self.see_to_upgrades(now);
        if self.looks.is_empty() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.look();
        }
        if sd_notify::watchdog_enabled().is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Takes up what the keeper tells.
    async fn hear(&mut self, news: News) {
        match news {
            News::Leader(shared) => {
                for key in merge(&mut self.fired, shared) {
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
                Ok(Some(ended)) => self.ended(ended).await,
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
