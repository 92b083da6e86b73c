//! The worker's own end: reads requests from stdin, does one at a time, writes events to stdout, ends when stdin closes.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use crate::cluster::DatabaseName;
use crate::exit::Exit;
use crate::pipeline::Meter;
use crate::postgres::{self, Login, PostgresError, inspect};
use crate::storage::s3::Renewable;

use super::{
    Event, Failure, PROTOCOL, Renewed, Request, Trouble, Verdict, check, copy, dump, fetch, join, locate, pg_upgrade,
    refresh, restore, unpack, upgrade, verify, volume,
};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(400);
/// Pause between two attempts to reach a server that is starting.
const RETRY: Duration = Duration::from_millis(200);

/// Where a job tells what it sees, and how it learns that it should end.
#[derive(Debug, Clone)]
pub struct Line {
    out: Arc<Mutex<std::io::Stdout>>,
    /// Bytes that passed so far.
    pub meter: Arc<Meter>,
    /// Fires when the control plane is gone.
    pub stop: CancellationToken,
}

impl Line {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { out: Arc::new(Mutex::new(std::io::stdout())), meter: Arc::new(Meter::new()), stop }
    }

    /// Tells the control plane. When it no longer listens, everything stops.
    pub fn tell(&self, event: &Event) {
        let mut text = serde_json::to_vec(event).expect("events have only text keys");
        text.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            self.stop.cancel();
        }
    }

    /// Tells something that the operator should read.
    pub fn warn(&self, message: impl Into<String>) {
        self.tell(&Event::Log { warning: true, message: message.into() });
    }
}

/// Runs the worker until stdin closes. The exit code says nothing that the verdicts did not say.
pub async fn run() -> Exit {
    let stop = CancellationToken::new();
    let line = Line::new(stop.clone());
    line.tell(&Event::Hello { protocol: PROTOCOL.to_owned() });

    // Requests are read beside the work, so that the end of stdin is seen at once, and newer credentials too.
    let (requests, mut queue) = tokio::sync::mpsc::channel::<Result<Request, serde_json::Error>>(4);
    let reader = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut lines = BufReader::new(tokio::io::stdin()).lines();
            let mut in_use = Vec::new();
            while let Ok(Some(text)) = lines.next_line().await {
                if let Ok(Renewed { renewed, credentials }) = serde_json::from_str::<Renewed>(&text) {
                    let renewable: Option<&Renewable> = in_use.get(renewed);
                    if let Some(renewable) = renewable {
                        renewable.renew(credentials);
                    }
                    continue;
                }
                let request = serde_json::from_str::<Request>(&text);
                in_use = request.as_ref().map(Request::credentials).unwrap_or_default();
                if requests.send(request).await.is_err() {
                    break;
                }
            }
            stop.cancel();
        }
    });
    while let Some(request) = queue.recv().await {
        let verdict = match request {
            // The text may hold a password: only the place of the mistake is told.
            Err(error) => Err(Failure::new(
                Trouble::Request,
                format!("the request is not understood (line {}, column {})", error.line(), error.column()),
            )),
            Ok(request) => answer(request, &line).await,
        };
        line.tell(&Event::Verdict(match verdict {
            Ok(tools) => Verdict::Ok { tools, peak_memory_bytes: peak_memory() },
            Err(failure) => Verdict::Failed { trouble: failure.trouble, message: failure.message },
        }));
    }
    // The runtime's stdin thread may sit in a read that never ends; leaving does not wait for it.
    reader.abort();
    Exit::Ok
}

/// Does one request, telling progress meanwhile, and returns the versions of the tools it used.
async fn answer(request: Request, line: &Line) -> Result<Vec<String>, Failure> {
    let line = Line { meter: Arc::new(Meter::new()), ..line.clone() };
    let telling = tokio::spawn(tell_progress(line.clone()));
    let work = {
        let line = line.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || match request {
            Request::Inspect { login, patience_seconds } => {
                runtime.block_on(inspect_server(&login, Duration::from_secs(patience_seconds), &line)).map(|()| vec![])
            }
            Request::Dump(job) => dump::run(&job, &line, &runtime),
            Request::Volume(job) => volume::run(&job, &line, &runtime),
            Request::Unpack(job) => unpack::run(&job, &line),
            Request::Locate(job) => locate::run(&job, &line),
            Request::FindTable { login, database, table } => {
                runtime.block_on(locate::find_table(&login, &database, &table, &line)).map(|()| vec![])
            }
            Request::Refresh(job) => refresh::run(&job, &line),
            Request::Join(job) => join::run(&job, &line),
            Request::Fetch(job) => fetch::run(&job, &line),
            Request::Restore(job) => restore::run(&job, &line, &runtime),
            Request::Verify(job) => verify::run(&job, &line),
            Request::Copy(job) => copy::run(&job, &line),
            Request::Survey { login } => runtime.block_on(upgrade::survey(&login, &line)),
            Request::LookAtImage { major } => upgrade::look_at_image(major, &line),
            Request::ReadControlFile { major, pgdata } => upgrade::read_control_file(major, &pgdata, &line),
            Request::MeasureFreeSpace { folder } => upgrade::measure_free_space(&folder, &line),
            Request::MakeFolder { folder, like } => upgrade::make_folder(&folder, &like),
            Request::RemoveFolder { folder } => upgrade::remove_folder(&folder),
            Request::CountTransactions { login } => runtime.block_on(upgrade::count_transactions(&login, &line)),
            Request::TakeFacts(job) => runtime.block_on(upgrade::take_facts(&job, &line)),
            Request::Settle(job) => runtime.block_on(upgrade::settle(&job, &line)),
            Request::CopyInstallation { major, to } => pg_upgrade::copy_out(major, &to, &line),
            Request::RehearsePgUpgrade(job) => pg_upgrade::rehearse(&job, &line),
            Request::Initialise(job) => pg_upgrade::initialise(&job, &line),
            Request::PgUpgrade(job) => pg_upgrade::transfer(&job, &line),
            Request::Check(job) => check::run(&job, &line, &runtime),
            Request::Pages(job) => check::pages(&job, &line),
        })
        .await
    };
    telling.abort();
    work.unwrap_or_else(|panic| Err(Failure::new(Trouble::Other, format!("the worker hit a bug: {panic}"))))
}

async fn tell_progress(line: Line) {
    let mut ticks = tokio::time::interval(PROGRESS);
    let mut last = (0, 0);
    loop {
        ticks.tick().await;
        let now = (line.meter.plain(), line.meter.stored());
        if now != last {
            line.tell(&Event::Progress { plain_bytes: now.0, stored_bytes: now.1 });
            last = now;
        }
    }
}

async fn inspect_server(login: &Login, patience: Duration, line: &Line) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match connect_somewhere(login).await {
            Ok(client) => {
                line.tell(&Event::Server(inspect::profile(&client, login).await?));
                return Ok(());
            }
            Err(error @ PostgresError::Unreachable { .. }) => {
                if tokio::time::Instant::now() >= deadline {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        if line.stop.is_cancelled() {
            return Err(Failure::new(Trouble::Cancelled, "cancelled"));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A session in `postgres`, or in `template1` where there is no such database.
pub(super) async fn connect_somewhere(login: &Login) -> Result<tokio_postgres::Client, PostgresError> {
    let database = |name: &str| DatabaseName::new(name).expect("a plain name");
    match postgres::connect(login, &database("postgres")).await {
        Err(PostgresError::Unreachable { reason, .. }) if reason.contains("does not exist") => {
            postgres::connect(login, &database("template1")).await
        }
        other => other,
    }
}

/// `VmHWM`: the most memory this process ever had in RAM, in bytes; 0 where the kernel does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
