//! The control plane's end of a worker: sends requests, hears events, and tells a worker that failed from one that is gone.

use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::sync::CancellationToken;

use crate::docker::DockerError;
use crate::docker::worker::RunningWorker;
use crate::exit::Exit;

use crate::storage::s3::{Credentials, LOOK, Renewable};

use super::{Event, PROTOCOL, Renewed, Request, Trouble, Verdict};

/// The longest event: a server with very many databases.
const LONGEST_LINE: usize = 64 << 20;
/// How long a worker may take to end its children once its stdin is closed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker that listens.
pub struct Session {
    input: Pin<Box<dyn AsyncWrite + Send>>,
    events: FramedRead<Pin<Box<dyn AsyncRead + Send>>, LinesCodec>,
    place: Place,
}

enum Place {
    Container(Box<ContainerEnd>),
    Child(tokio::process::Child),
}

struct ContainerEnd(RunningWorker);

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The worker tried and failed.
    #[error("{message}")]
    Failed {
        /// What kind of trouble.
        trouble: Trouble,
        /// What failed and why, in the tool's own words.
        message: String,
    },
    /// The worker ended without a verdict.
    #[error("the worker ended before its work was done: {how}")]
    Lost {
        /// What is known of its end.
        how: String,
    },
    /// The worker does not speak as expected.
    #[error("the worker's answer is not understood: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// The operator or a signal asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// Docker failed.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The child process could not be started.
    #[error("a worker process could not be started")]
    NotStarted(#[source] std::io::Error),
}

impl SessionError {
    /// How the process ends when this is what stopped it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Failed { trouble, .. } => trouble.exit(),
            Self::Lost { .. } | Self::Protocol { .. } | Self::NotStarted(_) => Exit::Failed,
            Self::Cancelled => Exit::Interrupted,
            Self::Docker(error) => error.exit(),
        }
    }
}

/// What the verdict `ok` carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Versions of the tools used.
    pub tools: Vec<String>,
    /// Peak resident memory of the worker, in bytes.
    pub peak_memory_bytes: u64,
}

impl Session {
    /// Talks to a worker container.
    pub async fn in_container(mut worker: RunningWorker) -> Result<Self, SessionError> {
        let input = std::mem::replace(&mut worker.input, Box::pin(tokio::io::sink()));
        let output = std::mem::replace(&mut worker.output, Box::pin(tokio::io::empty()));
        Self::greet(input, output, Place::Container(Box::new(ContainerEnd(worker)))).await
    }

    /// Starts a worker as a child process: for work that needs no server and no tools, only the repository.
    pub async fn in_child() -> Result<Self, SessionError> {
        Self::in_child_of(Path::new("/proc/self/exe")).await
    }

    /// The same with another executable of pglife.
    pub async fn in_child_of(executable: &Path) -> Result<Self, SessionError> {
        let mut child = tokio::process::Command::new(executable)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(SessionError::NotStarted)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(SessionError::Protocol { what: "its stdin and stdout are missing".to_owned() });
        };
        Self::greet(Box::pin(input), Box::pin(output), Place::Child(child)).await
    }

    async fn greet(
        input: Pin<Box<dyn AsyncWrite + Send>>,
        output: Pin<Box<dyn AsyncRead + Send>>,
        place: Place,
    ) -> Result<Self, SessionError> {
        let events = FramedRead::new(output, LinesCodec::new_with_max_length(LONGEST_LINE));
        let mut session = Self { input, events, place };
        let hello = tokio::time::timeout(Duration::from_secs(60), session.next()).await;
        match hello {
            Ok(Ok(Event::Hello { protocol })) if protocol == PROTOCOL => Ok(session),
            Ok(Ok(Event::Hello { protocol })) => {
                session.close().await?;
                Err(SessionError::Protocol { what: format!("it is of version {protocol}, this is {PROTOCOL}") })
            }
            Ok(Ok(_)) => Err(SessionError::Protocol { what: "it did not greet".to_owned() }),
            Ok(Err(error)) => Err(session.lost(error).await),
            Err(_) => {
                session.close().await?;
                Err(SessionError::Lost { how: "it said nothing for 60 s".to_owned() })
            }
        }
    }

    async fn next(&mut self) -> Result<Event, SessionError> {
        match self.events.next().await {
            Some(Ok(text)) => serde_json::from_str(&text).map_err(|error| SessionError::Protocol {
                what: format!("{error} in {:?}", text.chars().take(200).collect::<String>()),
            }),
            Some(Err(error)) => Err(SessionError::Lost { how: error.to_string() }),
            None => Err(SessionError::Lost { how: String::new() }),
        }
    }

    /// Sends `request` and hears its events until the verdict; meanwhile it hands on newer credentials for buckets. `cancel`
    /// closes the worker's stdin, which ends it.
    ///
    /// After an error the session is of no more use; [`Session::close`] it.
    pub async fn request(
        &mut self,
        request: &Request,
        cancel: &CancellationToken,
        mut on_event: impl FnMut(Event),
    ) -> Result<Done, SessionError> {
        // The repository may have been opened hours ago.
        let mut in_use = InUse::of(request);
        in_use.look().await;
        self.send(request).await;
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        loop {
            let event = tokio::select! {
                event = self.next() => event,
                () = cancel.cancelled() => return Err(SessionError::Cancelled),
                _ = looks.tick(), if !in_use.0.is_empty() => {
                    for renewed in in_use.look().await {
                        self.send(&renewed).await;
                    }
                    continue;
                }
            };
            match event {
                Ok(Event::Verdict(Verdict::Ok { tools, peak_memory_bytes })) => {
                    return Ok(Done { tools, peak_memory_bytes });
                }
                Ok(Event::Verdict(Verdict::Failed { trouble, message })) => {
                    return Err(SessionError::Failed { trouble, message });
                }
                Ok(event) => on_event(event),
                Err(SessionError::Lost { how }) => return Err(self.explain(how).await),
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&mut self, what: &impl serde::Serialize) {
        let mut text = serde_json::to_vec(what).expect("what is sent has only text keys");
        text.push(b'\n');
        let sent = async {
            self.input.write_all(&text).await?;
            self.input.flush().await
        };
        // A worker that is gone shows in its events, with the reason.
        if let Err(error) = sent.await {
            tracing::debug!(%error, "the worker takes no request");
        }
    }

    /// Ends the worker and waits until it is gone.
    pub async fn close(mut self) -> Result<(), SessionError> {
        self.input.shutdown().await.ok();
        drop(self.input);
        drop(self.events);
        match self.place {
            Place::Container(end) => {
                let end = end.0.finish(PATIENCE).await?;
                tracing::debug!(?end, "the worker container is gone");
            }
            Place::Child(mut child) => {
                if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
                    child.kill().await.map_err(SessionError::NotStarted)?;
                }
            }
        }
        Ok(())
    }

    async fn lost(self, error: SessionError) -> SessionError {
        let mut session = self;
        let explained = match error {
            SessionError::Lost { how } => session.explain(how).await,
            other => return other,
        };
        if let Err(error) = session.close().await {
            tracing::warn!("a lost worker is left for the next sweep: {error}");
        }
        explained
    }

    /// What is known about a worker whose events ended. Where the engine cannot say, it is the engine that was lost.
    async fn explain(&mut self, how: String) -> SessionError {
        let known = match &mut self.place {
            Place::Container(end) => match end.0.obituary().await {
                Ok(known) => known,
                Err(error) => return SessionError::Docker(error),
            },
            Place::Child(child) => match tokio::time::timeout(PATIENCE, child.wait()).await {
                Ok(Ok(status)) => status.to_string(),
                _ => "it does not answer".to_owned(),
            },
        };
        SessionError::Lost { how: if how.is_empty() { known } else { format!("{known} ({how})") } }
    }
}

/// The credentials of a request that may be renewed: which of them they are, and what the worker has.
struct InUse(Vec<(usize, Renewable, Credentials)>);

impl InUse {
    fn of(request: &Request) -> Self {
        let renewable = request.credentials().into_iter().enumerate().filter(|(_, held)| held.has_source());
        Self(renewable.map(|(number, held)| (number, held.clone(), held.newest())).collect())
    }

    /// What there is that the worker does not have.
    async fn look(&mut self) -> Vec<Renewed> {
        let mut news = Vec::new();
        for (number, held, known) in &mut self.0 {
            let looking = held.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || looking.look()).await {
                tracing::debug!(%error, "looking for newer credentials failed");
            }
            let newest = held.newest();
            if newest != *known {
                *known = newest.clone();
                news.push(Renewed { renewed: *number, credentials: newest });
            }
        }
        news
    }
}
