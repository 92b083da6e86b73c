//! Work on a row of frames in parallel, with the results in order.
//!
//! ```text
//!          ┌──────────────── free slots ◀───────────────┐
//!          ▼                                            │
//!   feed (1 thread) ─ jobs ─▶ work (N threads) ─ done ─▶ emit (the caller's thread, reorders)
//! ```
//! A slot holds a frame on both sides of the work, so a frame that is under way never waits for memory that a later
//! frame holds. Every channel has room for all slots: sending never blocks, and whoever waits, waits for somebody who
//! can act. When any part fails, the ends of its channels are dropped and everybody else finds them closed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio_util::sync::CancellationToken;

use super::PipelineError;

/// Slots beside those the working threads hold: one being fed, one waiting, one being emitted.
const SPARE_SLOTS: usize = 3;

/// Whether the work should end early: asked between any two steps that may take long.
pub(super) struct Ending<'a> {
    stop: &'a CancellationToken,
    abandoned: AtomicBool,
}

impl Ending<'_> {
    /// Fails if the caller cancelled, or if another part of the work failed already.
    pub(super) fn check(&self) -> Result<(), PipelineError> {
        if self.stop.is_cancelled() || self.abandoned.load(Ordering::Relaxed) {
            return Err(PipelineError::Cancelled);
        }
        Ok(())
    }
}

struct Slot<T> {
    tag: T,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The buffers of a slot that nobody uses.
#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

enum Done<T> {
    Frame(usize, Slot<T>),
    /// The feed is through, after so many frames.
    End(usize),
    Failed(PipelineError),
    /// A thread panicked; leaving the scope repeats the panic.
    Panicked,
}

/// Runs `feed` until it says there is no more, `work` on each frame in `threads` threads, and `emit` on the results in
/// the order of the feed.
///
/// * `feed(input, ending)` fills `input` (its old content is left for reuse) and returns the frame's tag, or `None`.
/// * `worker()` makes one thread's work, which keeps its codec context: `work(tag, input, output)`.
/// * `emit(tag, input, output)` runs in the caller's thread.
///
/// The first failure ends everything and is returned; if the caller cancelled, that is the cause.
pub(super) fn in_order<T, W>(
    threads: NonZeroUsize,
    mut feed: impl FnMut(&mut Vec<u8>, &Ending<'_>) -> Result<Option<T>, PipelineError> + Send,
    worker: impl Fn() -> Result<W, PipelineError> + Sync,
    mut emit: impl FnMut(&T, &[u8], &[u8]) -> Result<(), PipelineError>,
    stop: &CancellationToken,
) -> Result<(), PipelineError>
where
    T: Send,
    W: FnMut(&T, &[u8], &mut Vec<u8>) -> Result<(), PipelineError>,
{
    let slots = threads.get() + SPARE_SLOTS;
    let ending = Ending { stop, abandoned: AtomicBool::new(false) };
    let (free_sender, free) = bounded::<Buffers>(slots);
    let (job_sender, jobs) = bounded::<(usize, Slot<T>)>(slots);
    // Each thread may add one message about its own end.
    let (done_sender, done) = bounded::<Done<T>>(slots + threads.get() + 1);

    let result = thread::scope(|scope| {
        for _ in 0..slots {
            send(&free_sender, Buffers::default());
        }
        {
            let (ending, done) = (&ending, AnnouncePanic(done_sender.clone()));
            scope.spawn(move || {
                let last = run_feed(&mut feed, &free, &job_sender, ending);
                send(&done.0, last.map_or_else(Done::Failed, Done::End));
            });
        }
        for _ in 0..threads.get() {
            let (jobs, done, worker, ending) = (jobs.clone(), AnnouncePanic(done_sender.clone()), &worker, &ending);
            scope.spawn(move || {
                if let Err(error) = run_work(worker, &jobs, &done.0, ending) {
                    send(&done.0, Done::Failed(error));
                }
            });
        }
        drop((jobs, done_sender));
        let result = run_emit(&mut emit, &done, &free_sender, &ending);
        if result.is_err() {
            ending.abandoned.store(true, Ordering::Relaxed);
        }
        drop((done, free_sender));
        result
    });
    match result {
        Err(_) if stop.is_cancelled() => Err(PipelineError::Cancelled),
        result => result,
    }
}

/// Returns the number of frames fed.
fn run_feed<T>(
    feed: &mut impl FnMut(&mut Vec<u8>, &Ending<'_>) -> Result<Option<T>, PipelineError>,
    free: &Receiver<Buffers>,
    jobs: &Sender<(usize, Slot<T>)>,
    ending: &Ending<'_>,
) -> Result<usize, PipelineError> {
    let mut frames = 0;
    // The channel of free slots closes when the emitting end has failed.
    while let Ok(Buffers { mut input, output }) = free.recv() {
        ending.check()?;
        let Some(tag) = feed(&mut input, ending)? else { return Ok(frames) };
        send(jobs, (frames, Slot { tag, input, output }));
        frames += 1;
    }
    Err(PipelineError::Cancelled)
}

fn run_work<T, W>(
    worker: &impl Fn() -> Result<W, PipelineError>,
    jobs: &Receiver<(usize, Slot<T>)>,
    done: &Sender<Done<T>>,
    ending: &Ending<'_>,
) -> Result<(), PipelineError>
where
    W: FnMut(&T, &[u8], &mut Vec<u8>) -> Result<(), PipelineError>,
{
    let mut work = worker()?;
    for (index, mut slot) in jobs {
        ending.check()?;
        work(&slot.tag, &slot.input, &mut slot.output)?;
        send(done, Done::Frame(index, slot));
    }
    Ok(())
}

fn run_emit<T>(
    emit: &mut impl FnMut(&T, &[u8], &[u8]) -> Result<(), PipelineError>,
    done: &Receiver<Done<T>>,
    free: &Sender<Buffers>,
    ending: &Ending<'_>,
) -> Result<(), PipelineError> {
    let mut early = BTreeMap::new();
    let mut emitted = 0;
    let mut end = None;
    while end != Some(emitted) {
        match done.recv() {
            Ok(Done::Frame(index, slot)) => {
                early.insert(index, slot);
            }
            Ok(Done::End(frames)) => end = Some(frames),
            Ok(Done::Failed(error)) => return Err(error),
            Ok(Done::Panicked) | Err(_) => return Err(PipelineError::Cancelled),
        }
        while let Some(slot) = early.remove(&emitted) {
            ending.check()?;
            emit(&slot.tag, &slot.input, &slot.output)?;
            emitted += 1;
            send(free, Buffers { input: slot.input, output: slot.output });
        }
    }
    Ok(())
}

/// Sends without ever waiting: there is room for all slots. A closed channel means that its reader has ended, and has
/// said why; what is sent then is not needed any more.
fn send<M>(channel: &Sender<M>, message: M) {
    if let Err(error) = channel.try_send(message) {
        assert!(error.is_disconnected(), "a channel has no room for a slot");
    }
}

/// Tells the emitting end if its thread panics, so that nobody waits for the frame it held.
struct AnnouncePanic<T>(Sender<Done<T>>);

impl<T> Drop for AnnouncePanic<T> {
    fn drop(&mut self) {
        if thread::panicking() {
            send(&self.0, Done::Panicked);
        }
    }
}
