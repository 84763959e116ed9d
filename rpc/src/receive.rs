//! What came in: the envelopes of one read as a batch.
//!
//! # Invariants
//! 1. An envelope is given out once, whole, with a fitting checksum, meant for this process and
//!    sent by the peer that said hello.

use ramkeep_wire::Party;
use ramkeep_wire::envelope::{
    self, Envelope, EnvelopeError, HEADER_LEN, Header, Kind, PROTOCOL_VERSION,
};
use ramkeep_wire::hello::Refusal;

use crate::identity::is_for;

/// Who may be named in the envelopes of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    to: Party,
    from: Party,
    from_unknown: bool,
}

impl Expect {
    /// On a connection that `local` has made to `peer`. Envelopes may also come from nobody in
    /// particular: from a server that had not enlisted when it began to answer.
    #[must_use]
    pub fn made(local: Party, peer: Party) -> Self {
        Self {
            to: local,
            from: peer,
            from_unknown: true,
        }
    }

    /// On a connection that was accepted from `peer`. `local` is this process as it is now: it may
    /// have enlisted since.
    #[must_use]
    pub fn accepted(local: Party, peer: Party) -> Self {
        Self {
            to: local,
            from: peer,
            from_unknown: false,
        }
    }

    /// This process; envelopes may be for it or for nobody in particular.
    #[must_use]
    pub fn to(self) -> Party {
        self.to
    }

    /// The peer as it said hello.
    #[must_use]
    pub fn from(self) -> Party {
        self.from
    }

    fn judge(self, header: &Header) -> Result<(), Refusal> {
        if !is_for(self.to, header.to) {
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

    /// The envelopes in `bytes` as they may come on a connection.
    #[must_use]
    pub fn expecting(bytes: &'a [u8], expect: Expect) -> Self {
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
    #[must_use]
    pub fn needed(&self) -> usize {
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
            let expect = match from_unknown {
                true => Expect::made(ours, theirs),
                false => Expect::accepted(ours, theirs),
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

    #[cfg(feature = "mutants")]
    #[test]
    fn a_planted_ear_for_everybody_shows() {
        use ramkeep_wire::mutants::{Mutant, fails};
        assert!(fails(
            Mutant::IgnoreServerId,
            only_the_peer_that_said_hello_is_heard
        ));
    }
}
