//! Tells others what happens, beside everything else: whatever becomes of it, no backup waits for it.
//!
//! ```text
//! the daemon ──▶ news (bounded; what does not fit is dropped, and that is logged)
//!                  └─▶ announcer: is it news? (pure; what was said is in state.db) ──▶ a queue and a task for each channel
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::ClusterName;
use crate::control::{ControlPlane, entropy};
use crate::notify::news::{Notice, Said, State, Subject, change, is_told_each_time};
use crate::notify::{Parcel, Stage, deliver};
use crate::policy::freshness::Level;
use crate::settings::notify::{Channel, ChannelKind};
use crate::status::{ClusterStatus, verdicts};

/// Waits between attempts; after the last one it is given up.
const WAITS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
/// So many notices within [`SPAN`] are said to one channel; the others are counted.
const MOST: usize = 30;
const SPAN: Duration = Duration::from_secs(600);
/// How long the daemon's end waits for what is not said yet.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// News that wait for the announcer, and parcels that wait for a channel.
const QUEUE: usize = 256;

/// What the daemon saw.
pub(super) enum News {
    /// How the clusters are.
    Looked(Vec<ClusterStatus>),
    /// A scheduled run begins.
    Begins(ClusterName, &'static str),
    /// A scheduled run ended, well or not.
    Ended(ClusterName, &'static str, bool, String),
    /// Something happened.
    Happened(Option<ClusterName>, String, String),
}

/// The daemon's end of it.
#[derive(Clone)]
pub(super) struct Announcer(mpsc::Sender<News>);

impl Announcer {
    /// Starts it; it ends with `cancel`.
    pub(super) fn start(
        controls: watch::Receiver<Arc<ControlPlane>>,
        instance: String,
        cancel: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, news) = mpsc::channel(QUEUE);
        (Self(sender), tokio::spawn(run(controls, instance, news, cancel)))
    }

    /// Hands it on, if there is room.
    pub(super) fn tell(&self, news: News) {
        if self.0.try_send(news).is_err() {
            tracing::warn!("news were dropped: those who are to be told do not answer fast enough");
        }
    }
}

async fn run(
    mut controls: watch::Receiver<Arc<ControlPlane>>,
    instance: String,
    mut news: mpsc::Receiver<News>,
    cancel: CancellationToken,
) {
    while !cancel.is_cancelled() {
        let control = Arc::clone(&controls.borrow_and_update());
        let mut tasks = JoinSet::new();
        let channels: Vec<(Channel, mpsc::Sender<Parcel>)> = control
            .configuration
            .settings
            .notify
            .iter()
            .map(|channel| {
                let (sender, parcels) = mpsc::channel(QUEUE);
                tasks.spawn(serve(Arc::clone(&control), channel.clone(), parcels, cancel.clone()));
                (channel.clone(), sender)
            })
            .collect();
        let mut desk = Desk { instance: &instance, said: said(&control), runs: BTreeMap::new(), control: &control };
        loop {
            // Nothing is lost with either that is dropped.
            let next = tokio::select! {
                next = news.recv() => next,
                _ = controls.changed() => None,
                () = cancel.cancelled() => None,
            };
            let Some(next) = next else { break };
            for (task, parcel) in desk.parcels(next) {
                for (channel, sender) in &channels {
                    if is_for(channel, &parcel, &task) && sender.try_send(parcel.clone()).is_err() {
                        tracing::warn!(channel = channel.name, "a notice was dropped: too many wait");
                    }
                }
            }
        }
        // What waits is still said, by tasks that end when their queue does.
        drop(channels);
        if cancel.is_cancelled() {
            tokio::time::timeout(LAST_WORDS, async { while tasks.join_next().await.is_some() {} }).await.ok();
        } else {
            tasks.detach_all();
        }
    }
}

fn said(control: &ControlPlane) -> Said {
    let known = control.state.said().unwrap_or_else(|error| {
        tracing::warn!("what was said before cannot be read, so it is said again: {error}");
        Vec::new()
    });
    known.into_iter().filter_map(|(subject, word)| Some((subject, State::from_word(&word)?))).collect()
}

/// About whom a parcel is, for those who hear of some only.
type About = (Option<ClusterName>, &'static str);

fn is_for(channel: &Channel, parcel: &Parcel, (cluster, task): &About) -> bool {
    match parcel {
        Parcel::Notice(notice) => {
            channel.kind != ChannelKind::Healthchecks && channel.hears(&notice.event, cluster.as_ref())
        }
        Parcel::Ping { .. } => {
            channel.kind == ChannelKind::Healthchecks
                && channel.tasks.iter().any(|wanted| wanted == task)
                && cluster.as_ref().is_none_or(|one| channel.clusters.is_empty() || channel.clusters.contains(one))
        }
    }
}

/// Where news become parcels.
struct Desk<'a> {
    instance: &'a str,
    said: Said,
    /// The id of each run that goes on, for those who are pinged.
    runs: BTreeMap<(ClusterName, &'static str), String>,
    control: &'a ControlPlane,
}

impl Desk<'_> {
    fn parcels(&mut self, news: News) -> Vec<(About, Parcel)> {
        match news {
            News::Looked(clusters) => {
                let mut parcels = Vec::new();
                for cluster in &clusters {
                    for verdict in verdicts(cluster) {
                        let state = match verdict.level {
                            Level::Ok => State::Good,
                            Level::Warn => State::Warning,
                            Level::Critical => State::Bad,
                        };
                        let name = verdict.check.to_string();
                        let text = format!("{name}: {}", verdict.text);
                        let subject = Subject { what: "check", cluster: cluster.cluster.clone(), name };
                        parcels.extend(self.state(&subject, state, &text));
                    }
                }
                parcels
            }
            News::Begins(cluster, task) => {
                let run = uuid();
                self.runs.insert((cluster.clone(), task), run.clone());
                vec![((Some(cluster), task), Parcel::Ping { stage: Stage::Start, run, text: String::new() })]
            }
            News::Ended(cluster, task, good, text) => {
                let run = self.runs.remove(&(cluster.clone(), task)).unwrap_or_else(uuid);
                let (now, stage) = if good { (State::Good, Stage::Success) } else { (State::Bad, Stage::Fail) };
                let subject = Subject { what: "run", cluster: cluster.clone(), name: task.to_owned() };
                let notice = self.state(&subject, now, &format!("{task}: {text}"));
                let ping = ((Some(cluster), task), Parcel::Ping { stage, run, text });
                notice.into_iter().chain([ping]).collect()
            }
            News::Happened(cluster, event, text) => {
                if !is_told_each_time(&event) {
                    return vec![];
                }
                vec![((cluster.clone(), ""), self.notice(cluster, event, text))]
            }
        }
    }

    /// What is to be said of a subject that is in `state`; it is remembered as said.
    fn state(&mut self, subject: &Subject, state: State, text: &str) -> Option<(About, Parcel)> {
        let event = change(&self.said, subject, state);
        let words = subject.to_string();
        if self.said.insert(words.clone(), state) != Some(state)
            && let Err(error) = self.control.state.say(&words, state.as_str())
        {
            tracing::warn!("that it was said cannot be remembered: {error}");
        }
        let cluster = Some(subject.cluster.clone());
        Some(((cluster.clone(), ""), self.notice(cluster, event?, text.to_owned())))
    }

    fn notice(&self, cluster: Option<ClusterName>, event: String, text: String) -> Parcel {
        let at = Timestamp::now();
        let id = format!("{}-{:08x}", at.as_millisecond(), entropy());
        Parcel::Notice(Notice { id, at, instance: self.instance.to_owned(), cluster, event, text })
    }
}

/// Random, of version 4.
fn uuid() -> String {
    let word = || u64::from(entropy());
    let (a, b, c, d) = (word(), word(), word(), word());
    let (b, c) = (b & 0xffff_0fff | 0x4000, c & 0x3fff_ffff | 0x8000_0000);
    format!("{a:08x}-{:04x}-{:04x}-{:04x}-{:04x}{d:08x}", b >> 16, b & 0xffff, c >> 16, c & 0xffff)
}

/// Says to one channel what comes, one after the other, and tries again where that helps.
async fn serve(
    control: Arc<ControlPlane>,
    channel: Channel,
    mut parcels: mpsc::Receiver<Parcel>,
    cancel: CancellationToken,
) {
    let mut recent: VecDeque<Instant> = VecDeque::new();
    let (mut held_back, mut failing) = (0_usize, false);
    while let Some(mut parcel) = parcels.recv().await {
        if let Parcel::Notice(notice) = &mut parcel {
            recent.retain(|at| at.elapsed() < SPAN);
            if recent.len() >= MOST {
                held_back += 1;
                continue;
            }
            recent.push_back(Instant::now());
            if held_back > 0 {
                notice.text.push_str(&format!("; {held_back} notices before this one were held back: pglife events"));
                held_back = 0;
            }
        }
        let Err(error) = patiently(&channel, &parcel, &cancel).await else {
            failing = false;
            continue;
        };
        tracing::warn!("{error}");
        if !std::mem::replace(&mut failing, true) {
            let recorded = control.state.record_event(Timestamp::now(), None, "notify.failed", &error);
            recorded.unwrap_or_else(|error| tracing::warn!("an event could not be recorded: {error}"));
        }
    }
}

/// The last error, in words.
async fn patiently(channel: &Channel, parcel: &Parcel, cancel: &CancellationToken) -> Result<(), String> {
    let mut waits = WAITS.iter();
    loop {
        let Err(error) = deliver(channel, parcel).await else { return Ok(()) };
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        let words = format!("{error}{cause}");
        let Some(wait) = waits.next().filter(|_| error.is_passing()) else { return Err(words) };
        tracing::debug!("{words}; it is tried again in {wait:?}");
        tokio::select! {
            () = tokio::time::sleep(*wait) => {}
            () = cancel.cancelled() => return Err(format!("{words}; the daemon ends")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_runs_are_uuids() {
        for _ in 0..100 {
            let id = uuid();
            let parts: Vec<&str> = id.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id}");
            assert!(parts[2].starts_with('4') && ["8", "9", "a", "b"].contains(&&parts[3][..1]), "{id}");
        }
    }
}
