//! The clock's hand: pokes the daemon every few seconds. What is due then is [`super::agenda`]'s to say.
//!
//! tokio-cron-scheduler knows one job, which does nothing else: it remembers nothing, and a poke that is lost is made up by the
//! next one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// How often the daemon looks at the clock.
pub(super) const BEAT: Duration = Duration::from_secs(2);

/// Pokes while it lives.
pub(super) struct Ticker {
    scheduler: JobScheduler,
    poke: Arc<Notify>,
}

impl Ticker {
    pub(super) async fn start() -> Result<Self, JobSchedulerError> {
        let scheduler = JobScheduler::new().await?;
        let poke = Arc::new(Notify::new());
        let poked = Arc::clone(&poke);
        scheduler.add(Job::new_repeated(BEAT, move |_, _| poked.notify_one())?).await?;
        scheduler.start().await?;
        Ok(Self { scheduler, poke })
    }

    /// Waits for the next poke; should the ticker have stopped, a little longer.
    pub(super) async fn next(&self) {
        tokio::select! {
            () = self.poke.notified() => {}
            () = tokio::time::sleep(BEAT * 5) => tracing::warn!("the ticker is late"),
        }
    }

    pub(super) async fn stop(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!("the ticker did not stop: {error}");
        }
    }
}
