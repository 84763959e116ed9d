//! The client: one thread, one connection, polling, the same for every system.
//!
//! # Invariants
//! 1. At most `window` requests are unanswered; requests leave in batches of exactly `batch`, one
//!    write each.
//! 2. Nothing is allocated once a run has begun.
//! 3. A run ends: at its time, at its count, or when nothing has been heard for [`SILENCE`].

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::protocol::{Batch, Op, Protocol};
use crate::workload::{Asked, Keys, MAX_WINDOW};
use crate::{Failure, Outcome};

/// A server that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(10);
/// Empty polls between looks at the clock.
const POLLS_PER_LOOK: u32 = 1 << 14;
/// Room for replies; far above what a full window brings.
const INPUT_BYTES: usize = 1 << 20;

/// What to do when there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wait {
    /// Ask again at once.
    Spin,
    /// Give the core away, then ask again.
    Yield,
    /// Sleep in the read until there is something.
    Block,
}

impl Wait {
    /// One pause between two polls.
    #[inline]
    pub(crate) fn pause(self) {
        match self {
            Self::Spin => std::hint::spin_loop(),
            Self::Yield | Self::Block => rustix::thread::sched_yield(),
        }
    }
}

/// How requests are laid on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The operation.
    pub(crate) op: Op,
    /// Requests per write.
    pub(crate) batch: u32,
    /// Requests unanswered at most; equal to `batch`: the next goes when the last is answered.
    pub(crate) window: u32,
}

/// When a run ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// After so long, or so many requests if that comes first.
    Elapsed(Duration, u64),
    /// After so many requests.
    Count(u64),
}

/// What a run did.
pub(crate) struct Run {
    /// Requests answered as asked.
    pub(crate) operations: u64,
    /// From the first request sent to the last reply.
    pub(crate) elapsed: Duration,
    /// Nanoseconds from a batch's write to its last reply, when `batch` equals `window`.
    pub(crate) latency: Histogram<u64>,
}

/// One connection with its protocol.
pub(crate) struct Session {
    stream: TcpStream,
    protocol: Box<dyn Protocol>,
    wait: Wait,
    asked: Asked,
    next: u32,
    unanswered: u32,
    out: Vec<u8>,
    input: Vec<u8>,
    filled: usize,
}

impl Session {
    /// Takes over a connection on which the protocol is ready to send its first request.
    pub(crate) fn new(stream: TcpStream, protocol: Box<dyn Protocol>, wait: Wait) -> Outcome<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(wait != Wait::Block)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self {
            stream,
            protocol,
            wait,
            asked: Asked::new(),
            next: 0,
            unanswered: 0,
            out: Vec::with_capacity(INPUT_BYTES),
            input: vec![0; INPUT_BYTES],
            filled: 0,
        })
    }

    /// Drives the connection until the end that `until` names; every reply is checked.
    pub(crate) fn run(&mut self, shape: Shape, keys: &mut Keys, until: Until) -> Outcome<Run> {
        assert!(shape.batch <= shape.window && shape.window as usize <= MAX_WINDOW);
        let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
        let closed = shape.batch == shape.window;
        let (mut sent, mut operations) = (0_u64, 0_u64);
        let begin = Instant::now();
        let mut now = begin;
        loop {
            let more = match until {
                Until::Elapsed(limit, most) => now - begin < limit && sent < most,
                Until::Count(count) => sent < count,
            };
            while more && shape.window - self.unanswered >= shape.batch {
                self.send(shape, keys)?;
                sent += u64::from(shape.batch);
            }
            if self.unanswered == 0 {
                return Ok(Run {
                    operations,
                    elapsed: now - begin,
                    latency,
                });
            }
            let left = if more { shape.window - shape.batch } else { 0 };
            operations += u64::from(self.receive(shape.op, left)?);
            let after = Instant::now();
            if closed {
                latency.saturating_record((after - now).as_nanos() as u64);
            }
            now = after;
        }
    }

    /// Writes one batch.
    #[inline]
    fn send(&mut self, shape: Shape, keys: &mut Keys) -> Outcome<()> {
        let batch = Batch {
            first: self.next,
            count: shape.batch,
        };
        for sequence in batch.sequences() {
            self.asked.put(sequence, keys.draw());
        }
        self.next = self.next.wrapping_add(shape.batch);
        self.unanswered += shape.batch;
        self.out.clear();
        self.protocol
            .encode(shape.op, batch, &self.asked, &mut self.out);
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait.pause(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Polls until at most `left` requests are unanswered; the number answered meanwhile.
    #[inline]
    fn receive(&mut self, op: Op, left: u32) -> Outcome<u32> {
        let mut completed = 0;
        let mut polls = 0_u32;
        let mut silent_since = None;
        while self.unanswered > left {
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err(Failure::new("the server closed the connection")),
                Ok(n) => {
                    self.filled += n;
                    completed += self.take_replies(op)?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.wait.pause();
                    polls += 1;
                    if polls.is_multiple_of(POLLS_PER_LOOK) {
                        let since = *silent_since.get_or_insert_with(Instant::now);
                        if since.elapsed() > SILENCE {
                            return Err(Failure::new("the server stopped answering"));
                        }
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(completed)
    }

    #[inline]
    fn take_replies(&mut self, op: Op) -> Outcome<u32> {
        let progress = self
            .protocol
            .parse(op, &self.input[..self.filled], &self.asked)?;
        if progress.consumed < self.filled {
            self.input.copy_within(progress.consumed..self.filled, 0);
        }
        self.filled -= progress.consumed;
        self.unanswered = self
            .unanswered
            .checked_sub(progress.completed)
            .ok_or_else(|| Failure::new("more replies than requests"))?;
        Ok(progress.completed)
    }
}
