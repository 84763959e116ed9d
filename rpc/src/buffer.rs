//! What came in and is not handled yet: one reused buffer per connection.
//!
//! # Invariants
//! 1. Memory is taken for an envelope only after its header was judged, and never more than the
//!    largest envelope needs.

use std::io;

use ramkeep_wire::envelope::HEADER_LEN;
use ramkeep_wire::limits::MAX_PAYLOAD;

use crate::socket::{Moved, Socket};

/// Usual size of a receive buffer: a batch of many small requests comes in by one read.
pub(crate) const RECEIVE_BUFFER: usize = 256 << 10;
/// Largest it gets: one largest envelope.
pub(crate) const MAX_RECEIVE_BUFFER: usize = HEADER_LEN + MAX_PAYLOAD;
/// Reads that could have done with the usual size, after which a grown buffer is given back.
const READS_BEFORE_SHRINKING: u32 = 64;

const _: () = assert!(RECEIVE_BUFFER <= MAX_RECEIVE_BUFFER);

/// Bytes received and not yet consumed.
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Room that the envelope at the front needs to be whole.
    needed: usize,
    small_reads: u32,
}

impl ReceiveBuffer {
    /// A buffer that already holds `first`. The system gives its pages as they are touched.
    pub(crate) fn new(first: &[u8]) -> Self {
        assert!(first.len() <= RECEIVE_BUFFER);
        let mut bytes = vec![0; RECEIVE_BUFFER];
        bytes[..first.len()].copy_from_slice(first);
        Self {
            bytes,
            start: 0,
            end: first.len(),
            needed: 0,
            small_reads: 0,
        }
    }

    /// Everything not consumed.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Takes away what a batch gave out, and remembers what the rest needs to be whole.
    pub(crate) fn consume(&mut self, taken: usize, needed: usize) {
        assert!(taken <= self.end - self.start);
        self.start += taken;
        self.needed = needed;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once from `socket` into the free room.
    #[inline]
    pub(crate) fn fill(&mut self, socket: &Socket) -> io::Result<Moved> {
        if self.start > 0 || self.needed > self.bytes.len() || self.bytes.len() > RECEIVE_BUFFER {
            self.make_room();
        }
        debug_assert!(self.end < self.bytes.len(), "a whole envelope was left");
        let moved = socket.receive(&mut self.bytes[self.end..])?;
        if let Moved::Bytes(count) = moved {
            self.end += count;
        }
        Ok(moved)
    }

    fn make_room(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let wanted = self.needed.max(RECEIVE_BUFFER);
        debug_assert!(wanted <= MAX_RECEIVE_BUFFER);
        if wanted > self.bytes.len() {
            self.bytes.resize(wanted, 0);
            self.small_reads = 0;
        } else if wanted < self.bytes.len() {
            self.small_reads += 1;
            if self.small_reads >= READS_BEFORE_SHRINKING && self.end <= RECEIVE_BUFFER {
                self.bytes.truncate(RECEIVE_BUFFER);
                self.bytes.shrink_to_fit();
            }
        } else {
            self.small_reads = 0;
        }
    }

    /// Gives grown memory back when the connection goes to sleep.
    pub(crate) fn rest(&mut self) {
        if self.bytes.len() > RECEIVE_BUFFER && self.start == self.end {
            self.bytes = vec![0; RECEIVE_BUFFER];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::Batch;
    use ramkeep_wire::Party;
    use ramkeep_wire::envelope::{self, Header, Kind};
    use ramkeep_wire::hello::Refusal;

    fn order(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let header = Header::new(Kind::Order, 1, Party::NONE, Party::NONE);
        envelope::append(&mut out, header, payload);
        out
    }

    /// A buffer that has received `bytes` by as many reads as it takes, consuming what is whole.
    fn pass(buffer: &mut ReceiveBuffer, mut bytes: &[u8]) -> (usize, Option<Refusal>) {
        let mut count = 0;
        while !bytes.is_empty() {
            if buffer.start > 0 || buffer.needed > buffer.bytes.len() {
                buffer.make_room();
            }
            let room = bytes.len().min(buffer.bytes.len() - buffer.end);
            assert!(room > 0, "no room for what is to come");
            buffer.bytes[buffer.end..buffer.end + room].copy_from_slice(&bytes[..room]);
            buffer.end += room;
            bytes = &bytes[room..];
            let mut batch = Batch::new(buffer.pending());
            count += batch.by_ref().count();
            assert!(batch.peek().is_none());
            let (taken, needed) = (batch.taken(), batch.needed());
            if let Some(refusal) = batch.failure() {
                return (count, Some(refusal.clone()));
            }
            buffer.consume(taken, needed);
        }
        (count, None)
    }

    #[test]
    fn a_buffer_grows_for_the_largest_envelope_and_shrinks_after_it() {
        let mut buffer = ReceiveBuffer::new(&[]);
        let largest = order(&vec![1; MAX_PAYLOAD]);
        assert_eq!(pass(&mut buffer, &largest), (1, None));
        assert_eq!(buffer.bytes.len(), MAX_RECEIVE_BUFFER);
        buffer.rest();
        assert_eq!(buffer.bytes.len(), RECEIVE_BUFFER);

        assert_eq!(pass(&mut buffer, &largest), (1, None));
        for _ in 0..=READS_BEFORE_SHRINKING {
            assert_eq!(pass(&mut buffer, &order(b"small")), (1, None));
            buffer.make_room();
        }
        assert_eq!(buffer.bytes.len(), RECEIVE_BUFFER);
    }

    #[test]
    fn no_memory_is_taken_for_an_envelope_that_is_refused() {
        let mut bytes = order(b"");
        bytes[8..12].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
        let mut buffer = ReceiveBuffer::new(&[]);
        let (count, refusal) = pass(&mut buffer, &bytes);
        assert_eq!(count, 0);
        assert!(matches!(refusal, Some(Refusal::Malformed(_))));
        assert_eq!(buffer.bytes.len(), RECEIVE_BUFFER);
    }

    #[test]
    fn envelopes_across_the_end_of_the_buffer_come_out_whole() {
        let bytes = order(&[7; 60_007]).repeat(50);
        let mut buffer = ReceiveBuffer::new(&bytes[..1_000]);
        assert_eq!(pass(&mut buffer, &bytes[1_000..]), (50, None));
        assert_eq!(buffer.bytes.len(), RECEIVE_BUFFER);
    }
}
