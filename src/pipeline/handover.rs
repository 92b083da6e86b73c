//! Bytes handed from one thread to another, in order, in buffers that travel round and round.
//!
//! ```text
//! Giver ──▶ full buffers, then the end ──▶ Taker
//!       ◀────────── empty buffers ────────
//! ```
//!
//! The end of the data is a message. A giver that goes away without it has failed, and the taker says so; a taker that goes away
//! is told to the giver as [`io::ErrorKind::BrokenPipe`].

use std::io::{self, Read, Write};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// Bytes in a buffer.
const BUFFER: usize = 1 << 20;
/// Buffers under way: enough that neither end waits for a short pause of the other.
const BUFFERS: usize = 6;
/// How long [`Taker`] sleeps before it lets its reader look round.
const PATIENCE: Duration = Duration::from_millis(100);

enum Message {
    Bytes(Vec<u8>, usize),
    End,
}

/// The writing end.
#[derive(Debug)]
pub struct Giver {
    full: Sender<Message>,
    empty: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    filled: usize,
}

/// The reading end. As long as nothing comes, a read fails with [`io::ErrorKind::TimedOut`], so that its reader can look whether
/// it should end.
#[derive(Debug)]
pub struct Taker {
    full: Receiver<Message>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    ended: bool,
}

/// Two ends.
pub fn handover() -> (Giver, Taker) {
    let (full_sender, full) = bounded(BUFFERS);
    let (empty_sender, empty) = bounded(BUFFERS);
    for _ in 0..BUFFERS - 1 {
        empty_sender.try_send(Vec::new()).expect("there is room for all buffers");
    }
    let giver = Giver { full: full_sender, empty, buffer: vec![0; BUFFER], filled: 0 };
    let taker = Taker { full, empty: empty_sender, buffer: Vec::new(), at: 0, filled: 0, ended: false };
    (giver, taker)
}

fn gone<E>(_: E) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the other end went away")
}

impl Giver {
    /// Reads once from `source`, at most `limit` bytes, and hands over what came. Nothing is copied in between. `see` is shown
    /// the bytes.
    pub fn pass(&mut self, source: &mut dyn Read, limit: u64, see: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let room = self.room()?;
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(room.len());
        let read = loop {
            match source.read(&mut room[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        see(&room[..read]);
        self.filled += read;
        Ok(read)
    }

    /// What is free of the buffer at hand; never empty.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.send()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn send(&mut self) -> io::Result<()> {
        let mut next = self.empty.recv().map_err(gone)?;
        next.resize(BUFFER, 0); // once for each buffer
        let full = std::mem::replace(&mut self.buffer, next);
        let filled = std::mem::take(&mut self.filled);
        self.full.send(Message::Bytes(full, filled)).map_err(gone)
    }

    /// Hands over what is left, and the end.
    pub fn finish(mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.send()?;
        }
        self.full.send(Message::End).map_err(gone)
    }
}

impl Write for Giver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room()?;
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a buffer travels when it is full, the last one with the end
    }
}

impl Read for Taker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.filled {
            if self.ended {
                return Ok(0);
            }
            match self.full.recv_timeout(PATIENCE) {
                Ok(Message::Bytes(bytes, filled)) => {
                    let read = std::mem::replace(&mut self.buffer, bytes);
                    (self.at, self.filled) = (0, filled);
                    // The first one taken replaces none that travelled.
                    if !read.is_empty() {
                        self.empty.send(read).ok();
                    }
                }
                Ok(Message::End) => self.ended = true,
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the data ended before its end"));
                }
            }
        }
        let taken = buffer.len().min(self.filled - self.at);
        buffer[..taken].copy_from_slice(&self.buffer[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads to the end, whatever the pauses.
    fn read_all(mut taker: Taker) -> io::Result<Vec<u8>> {
        let (mut all, mut block) = (Vec::new(), vec![0; 70_000]);
        loop {
            match taker.read(&mut block) {
                Ok(0) => return Ok(all),
                Ok(read) => all.extend_from_slice(&block[..read]),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_given_is_taken(sizes in proptest::collection::vec(0..3_000_000_usize, 0..6)) {
            let (mut giver, taker) = handover();
            let part = |size: &usize| (0..*size).map(|at| u8::try_from(at % 251).expect("small")).collect::<Vec<u8>>();
            let parts: Vec<Vec<u8>> = sizes.iter().map(part).collect();
            let taken = std::thread::scope(|scope| {
                let taking = scope.spawn(|| read_all(taker));
                for (number, part) in parts.iter().enumerate() {
                    if number % 2 == 0 {
                        giver.write_all(part).expect("given");
                    } else {
                        let mut rest = &part[..];
                        while !rest.is_empty() {
                            giver.pass(&mut rest, u64::MAX, &mut |_| ()).expect("given");
                        }
                    }
                }
                giver.finish().expect("ended");
                taking.join().expect("no panic")
            });
            prop_assert!(taken.expect("all of it") == parts.concat());
        }
    }

    #[test]
    fn a_giver_that_goes_away_is_no_end() {
        let (mut giver, taker) = handover();
        giver.write_all(b"half of it").expect("given");
        drop(giver);
        assert_eq!(read_all(taker).expect_err("no end").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_taker_that_goes_away_is_told() {
        let (mut giver, taker) = handover();
        drop(taker);
        let error = giver.write_all(&vec![0; 20 << 20]).expect_err("nobody takes it");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
