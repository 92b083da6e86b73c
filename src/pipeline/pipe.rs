//! Pipes to and from child processes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

/// What [`widen`] asks for: the most an unprivileged process gets (`/proc/sys/fs/pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

/// How long [`PipeSource`] sleeps in the kernel before it lets its reader look round.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a read waits a moment for. `pg_dump` writes 4 KiB at a time: a reader that takes each as it comes is woken by each,
/// and the two switch a core 250,000 times for a gigabyte. One that lets the pipe fill is woken by none.
const WORTH_A_READ: u64 = PIPE_BYTES as u64 / 4;

/// That moment: shorter than a fast producer needs to fill the pipe.
const MOMENT: Duration = Duration::from_millis(1);

/// Gives a pipe a buffer of 1 MiB instead of 64 KiB, so that both ends switch less often. Best effort: where the
/// user's pipe quota is used up, the pipe works as it is.
pub fn widen(pipe: impl AsFd) {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES) {
        tracing::debug!(%error, "a pipe keeps its small buffer");
    }
}

/// The reading end of a child's output, which does not sleep for ever in a silent pipe.
///
/// A read that finds nothing for a moment fails with [`io::ErrorKind::TimedOut`]; [`compress`](super::compress()) then
/// looks whether it should end, and reads again. So a full disk or a cancelled run is noticed while `pg_dump` waits for
/// a lock.
#[derive(Debug)]
pub struct PipeSource {
    pipe: File,
}

impl PipeSource {
    /// Takes over the reading end of a pipe (in blocking mode), and widens it.
    pub fn new(pipe: impl Into<OwnedFd>) -> Self {
        let pipe = pipe.into();
        widen(&pipe);
        Self { pipe: File::from(pipe) }
    }
}

impl Read for PipeSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut ready = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut ready, Some(&PATIENCE)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {
                // The end of the stream waits for nothing.
                if !ready[0].revents().contains(PollFlags::HUP) && ioctl_fionread(&self.pipe)? < WORTH_A_READ {
                    std::thread::sleep(MOMENT);
                }
                self.pipe.read(buffer)
            }
            Err(Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_silent_pipe_times_out_then_delivers_then_ends() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut source = PipeSource::new(reader);
        let mut buffer = [0; 16];
        assert_eq!(source.read(&mut buffer).expect_err("silent").kind(), io::ErrorKind::TimedOut);
        writer.write_all(b"bytes").expect("written");
        assert_eq!(source.read(&mut buffer).expect("bytes"), 5);
        drop(writer);
        assert_eq!(source.read(&mut buffer).expect("end"), 0);
    }

    #[test]
    fn a_widened_pipe_is_larger() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let before = rustix::pipe::fcntl_getpipe_size(&reader).expect("size");
        widen(&reader);
        assert!(rustix::pipe::fcntl_getpipe_size(&reader).expect("size") >= before);
        widen(File::open("/dev/null").expect("no pipe at all is no reason to fail"));
    }
}
