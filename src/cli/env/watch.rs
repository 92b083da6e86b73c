//! A command beside which pglife stays: it is restarted, or told, when its variables change.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::str::FromStr;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::super::{Context, Failure};
use super::{Variables, as_environment, not_started};
use crate::environment::VariableName;
use crate::exit::Exit;
use crate::policy::Duration;

/// What is done when a variable changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnChange {
    /// The command is restarted, with the new environment.
    Restart,
    /// It gets a signal; its environment stays what it was.
    Signal(Signal),
}

const SIGNALS: [(&str, Signal); 5] = [
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
];

impl FromStr for OnChange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.strip_prefix("signal:").map(|name| name.strip_prefix("SIG").unwrap_or(name));
        match (text, wanted) {
            ("restart", _) => Ok(Self::Restart),
            (_, Some(wanted)) => {
                let known = SIGNALS.iter().find(|(name, _)| *name == wanted).map(|(_, signal)| Self::Signal(*signal));
                known.ok_or_else(|| "signals are HUP, USR1, USR2, TERM and INT".to_owned())
            }
            _ => Err("restart, or signal:HUP".to_owned()),
        }
    }
}

/// The command and its variables.
pub(super) struct Watched<'a> {
    pub(super) variables: &'a Variables,
    pub(super) command: &'a [OsString],
    pub(super) on_change: OnChange,
    pub(super) stop_within: Duration,
}

type Set = BTreeMap<VariableName, Vec<u8>>;

impl Watched<'_> {
    /// Runs the command until it ends, and ends with its exit code.
    pub(super) async fn run(self, mut set: Set, mut index: Option<u64>, context: &Context) -> Result<Exit, Failure> {
        let mut hangup = signal(SignalKind::hangup()).map_err(|error| Failure::new(Exit::Failed, error))?;
        let mut child = self.start(&set, context)?;
        let mut known = index.is_some();
        loop {
            // Nothing is lost with a question that is dropped: it is asked again.
            let change = tokio::select! {
                ended = child.wait() => return with_code_of(&ended, context),
                () = context.cancel.cancelled() => {
                    let ended = self.stop(&mut child).await;
                    return with_code_of(&ended, context);
                }
                _ = hangup.recv() => { tell(&child, Signal::HUP); continue; }
                change = self.variables.next(&mut index) => change.set,
            };
            // Without what there was at the start there is nothing to compare with.
            if change == set && known {
                continue;
            }
            known = true;
            set = change;
            match self.on_change {
                OnChange::Signal(signal) => {
                    tracing::info!("a variable changed: the command is told");
                    tell(&child, signal);
                }
                OnChange::Restart => {
                    tracing::info!("a variable changed: the command is restarted");
                    let ended = self.stop(&mut child).await;
                    if context.cancel.is_cancelled() {
                        return with_code_of(&ended, context);
                    }
                    child = self.start(&set, context)?;
                }
            }
        }
    }

    fn start(&self, set: &Set, context: &Context) -> Result<Child, Failure> {
        let program = &self.command[0];
        let mut command = Command::new(program);
        command.args(&self.command[1..]).envs(as_environment(set));
        command.spawn().map_err(|error| not_started(program, error, context))
    }

    async fn stop(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        tell(child, Signal::TERM);
        if let Ok(ended) = tokio::time::timeout(self.stop_within.as_std(), child.wait()).await {
            return ended;
        }
        tracing::warn!("the command did not end within {}: it is killed", self.stop_within);
        child.start_kill()?;
        child.wait().await
    }
}

/// Ends as the command did: with its exit code, or 128 and the signal that ended it.
fn with_code_of(ended: &std::io::Result<ExitStatus>, context: &Context) -> Result<Exit, Failure> {
    match ended {
        Ok(status) => {
            let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            context.end_with(u8::try_from(code).unwrap_or(1));
            Ok(Exit::Ok)
        }
        Err(error) => Err(Failure::message(Exit::Failed, format!("the command cannot be waited for: {error}"))),
    }
}

/// Sends a signal to a child that is not reaped yet.
fn tell(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id
        && let Err(error) = rustix::process::kill_process(id, signal)
    {
        tracing::warn!("the command could not be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_said_in_words() {
        assert_eq!("restart".parse(), Ok(OnChange::Restart));
        assert_eq!("signal:HUP".parse(), Ok(OnChange::Signal(Signal::HUP)));
        assert_eq!("signal:SIGUSR1".parse(), Ok(OnChange::Signal(Signal::USR1)));
        for bad in ["", "HUP", "signal:", "signal:KILL", "reload"] {
            assert!(bad.parse::<OnChange>().is_err(), "{bad}");
        }
    }
}
