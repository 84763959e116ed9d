//! What the engine needs of a wire protocol: requests into a buffer, replies out of one.
//!
//! # Invariants
//! 1. Neither direction allocates once the buffers have grown to their size.
//! 2. Every reply is checked against the key that was asked for; a wrong one ends the run.

use crate::workload::Asked;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read one object.
    Get,
    /// Read a batch of objects with the protocol's own many-key request, where it has one.
    MultiGet,
    /// Write one object.
    Set,
    /// Write a batch that is acknowledged only when both replicas have it.
    DurableSet,
}

/// One batch of requests: consecutive sequence numbers, the first of them, and how many.
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    /// Sequence number of the first request.
    pub(crate) first: u32,
    /// How many requests.
    pub(crate) count: u32,
}

impl Batch {
    /// The sequence numbers of the batch.
    #[inline]
    pub(crate) fn sequences(self) -> impl Iterator<Item = u32> {
        (0..self.count).map(move |i| self.first.wrapping_add(i))
    }
}

/// How far a call of [`Protocol::parse`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes used up.
    pub(crate) consumed: usize,
    /// Requests answered, each as asked.
    pub(crate) completed: u32,
}

/// A reply that is not the answer to what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadReply {
    /// Not this protocol, or an error reply; the beginning of it.
    #[error("unexpected reply {0:?}")]
    Unexpected(String),
    /// A value that does not belong to the key asked for.
    #[error("the value returned is not that of key number {0}")]
    WrongValue(u32),
    /// Not a Ramkeep envelope.
    #[error(transparent)]
    Envelope(#[from] ramkeep_wire::envelope::EnvelopeError),
    /// Not a data envelope's payload.
    #[error(transparent)]
    Data(#[from] ramkeep_wire::data::DataError),
    /// Fewer replicas than asked for had the write.
    #[error("only {0} replicas acknowledged")]
    NotDurable(u32),
}

impl BadReply {
    /// An unexpected reply, shown by its first bytes.
    pub(crate) fn unexpected(bytes: &[u8]) -> Self {
        Self::Unexpected(bytes[..bytes.len().min(80)].escape_ascii().to_string())
    }
}

/// A protocol's state for one connection.
pub(crate) trait Protocol {
    /// Appends the requests of `batch` to `out`.
    fn encode(&mut self, op: Op, batch: Batch, asked: &Asked, out: &mut Vec<u8>);

    /// Takes whole replies from the front of `input`, checking each.
    fn parse(&mut self, op: Op, input: &[u8], asked: &Asked) -> Result<Progress, BadReply>;
}

/// The line at the front of `input` without its CR LF, and the bytes that it takes.
#[inline]
pub(crate) fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    // Reply lines are a few bytes long: a plain loop beats a vectorized search here.
    let end = input.iter().position(|&b| b == b'\n')?;
    (end > 0).then(|| (&input[..end - 1], end + 1))
}

/// A decimal number.
#[inline]
pub(crate) fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |n, d| {
        d.is_ascii_digit().then(|| n * 10 + u32::from(d - b'0'))
    })
}
