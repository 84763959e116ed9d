//! What came in: one reused buffer per connection, and the envelopes of one read as a batch.
//!
//! # Invariants
//! 1. Memory is taken for an envelope only after its header was judged, and never more than the
//!    largest envelope needs.
//! 2. An envelope is given out once, whole, with a fitting checksum, meant for this process and
//!    sent by the peer that said hello.

use std::io;

use ramkeep_wire::Party;
use ramkeep_wire::envelope::{
    self, Envelope, EnvelopeError, HEADER_LEN, Header, Kind, PROTOCOL_VERSION,
};
use ramkeep_wire::hello::Refusal;
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

/// Who may be named in the envelopes of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// This process; envelopes may be for it or for nobody in particular.
    pub(crate) to: Party,
    /// The peer as it said hello.
    pub(crate) from: Party,
    /// Envelopes may also come from nobody in particular: from a server that hadn't enlisted.
    pub(crate) from_unknown: bool,
}

impl Expect {
    fn judge(self, header: &Header) -> Result<(), Refusal> {
        if header.to != Party::NONE && header.to != self.to {
            return Err(Refusal::Party(self.to));
        }
        if header.from != self.from && !(self.from_unknown && header.from == Party::NONE) {
            return Err(Refusal::Malformed(format!(
                "an envelope from {:?} on the connection of {:?}",
                header.from, self.from
            )));
        }
        Ok(())
    }
}

/// The refusal that answers bytes that are no envelope.
pub(crate) fn refusal_of(error: EnvelopeError) -> Refusal {
    match error {
        EnvelopeError::Version(_) => Refusal::Version(PROTOCOL_VERSION),
        other => Refusal::Malformed(other.to_string()),
    }
}

/// The envelopes that one read brought, in order. Bytes that are no envelope end it; the
/// connection is then refused, after what came before was handled.
#[derive(Debug)]
pub struct Batch<'a> {
    bytes: &'a [u8],
    at: usize,
    needed: usize,
    expect: Option<Expect>,
    /// Only kinds for which this table names this service.
    only: Option<(&'a [u8; KIND_CODES], u8)>,
    failure: Option<Refusal>,
}

/// Codes of kinds lie below this.
pub(crate) const KIND_CODES: usize = 64;
const _: () = {
    let mut at = 0;
    while at < Kind::ALL.len() {
        assert!((Kind::ALL[at] as usize) < KIND_CODES);
        at += 1;
    }
};
/// Where a header has the kind's code.
const KIND_OFFSET: usize = 6;

impl<'a> Batch<'a> {
    /// The envelopes in `bytes`, from and to anyone: for tests and benchmarks of sessions.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            needed: 0,
            expect: None,
            only: None,
            failure: None,
        }
    }

    pub(crate) fn expecting(bytes: &'a [u8], expect: Expect) -> Self {
        let mut batch = Self::new(bytes);
        batch.expect = Some(expect);
        batch
    }

    /// Gives out only the kinds that `table` routes to `service`, until lifted with `None`.
    pub(crate) fn restrict(&mut self, only: Option<(&'a [u8; KIND_CODES], u8)>) {
        self.only = only;
    }

    /// Bytes given out so far.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.at
    }

    /// Why the batch ended early.
    #[must_use]
    pub fn failure(&self) -> Option<&Refusal> {
        self.failure.as_ref()
    }

    /// Room that the envelope after those given out needs, as far as is known.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    /// The kind of the next whole envelope.
    #[must_use]
    pub fn peek(&mut self) -> Option<Kind> {
        self.header().map(|header| header.kind)
    }

    /// Judges the next header; `None` unless its envelope is whole.
    fn header(&mut self) -> Option<Header> {
        if self.failure.is_some() {
            return None;
        }
        match envelope::parse_header(&self.bytes[self.at..]) {
            Ok(Some(header)) => {
                self.needed = HEADER_LEN + header.len as usize;
                (self.bytes.len() - self.at >= self.needed).then_some(header)
            }
            Ok(None) => {
                self.needed = HEADER_LEN;
                None
            }
            Err(error) => self.fail(refusal_of(error)),
        }
    }

    #[cold]
    fn fail<T>(&mut self, refusal: Refusal) -> Option<T> {
        self.failure = Some(refusal);
        None
    }
}

impl<'a> Iterator for Batch<'a> {
    type Item = Envelope<'a>;

    #[inline]
    fn next(&mut self) -> Option<Envelope<'a>> {
        if let Some((table, service)) = self.only {
            // Whatever else is wrong with the header is judged below, or by the next `peek`.
            let code = self.bytes[self.at..].get(KIND_OFFSET..KIND_OFFSET + 2);
            let code = code.map_or(0, |code| {
                usize::from(u16::from_le_bytes([code[0], code[1]]))
            });
            if code >= KIND_CODES || table[code] != service {
                return None;
            }
        }
        if self.failure.is_some() {
            return None;
        }
        match envelope::parse(&self.bytes[self.at..]) {
            Ok(Some((envelope, len))) => {
                if let Some(Err(refusal)) = self.expect.map(|e| e.judge(&envelope.header)) {
                    return self.fail(refusal);
                }
                self.at += len;
                Some(envelope)
            }
            Ok(None) => {
                self.header();
                None
            }
            Err(error) => self.fail(refusal_of(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::ServerId;

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

    #[test]
    fn a_batch_ends_before_what_is_not_for_its_service() {
        let mut table = [0; KIND_CODES];
        table[Kind::Order as usize] = 1;
        let mut bytes = order(b"1").repeat(2);
        let header = Header::new(Kind::DataRequest, 1, Party::NONE, Party::NONE);
        envelope::append(&mut bytes, header, b"");
        bytes.extend(order(b"2"));
        let mut batch = Batch::new(&bytes);
        batch.restrict(Some((&table, 1)));
        assert_eq!(batch.by_ref().count(), 2);
        assert_eq!(batch.peek(), Some(Kind::DataRequest));
        batch.restrict(Some((&table, 0)));
        assert_eq!(batch.by_ref().count(), 1);
        batch.restrict(None);
        assert_eq!(batch.by_ref().count(), 1);
        assert_eq!((batch.taken(), batch.failure()), (bytes.len(), None));
    }

    #[test]
    fn only_the_peer_that_said_hello_is_heard() {
        let (ours, theirs) = (Party::server(ServerId(1)), Party::server(ServerId(2)));
        let judge = |to, from, from_unknown| {
            let expect = Expect {
                to: ours,
                from: theirs,
                from_unknown,
            };
            let mut bytes = Vec::new();
            envelope::append(&mut bytes, Header::new(Kind::Order, 1, to, from), b"");
            Batch::expecting(&bytes, expect).count() == 1
        };
        assert!(judge(ours, theirs, false));
        assert!(judge(Party::NONE, theirs, false));
        assert!(!judge(theirs, theirs, false));
        assert!(!judge(ours, ours, false));
        assert!(!judge(ours, Party::NONE, false));
        assert!(judge(ours, Party::NONE, true));
    }
}
