//! What ends a connection, as far as the envelopes on it say.

use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::postcards;

use crate::receive::Batch;

/// Why a connection that this process made is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    ByPeer,
    /// The peer said why it closed the connection.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer sent what is no envelope, or not for us.
    #[error("the peer sent what cannot be read: {0}")]
    Malformed(Refusal),
    /// This side closed it.
    #[error("the connection was closed here")]
    Here,
}

impl Closed {
    /// What the peer is to be told before the connection is closed.
    #[must_use]
    pub fn farewell(&self) -> Option<&Refusal> {
        match self {
            Self::Malformed(refusal) => Some(refusal),
            Self::ByPeer | Self::Refused(_) | Self::Broken(_) | Self::Here => None,
        }
    }
}

/// Hands over what came on a connection that this process made, until the peer refuses or sends what
/// cannot be read: how many envelopes, and the end, if this is one.
pub fn hand_over(
    batch: &mut Batch<'_>,
    each: &mut dyn FnMut(Envelope<'_>),
) -> (usize, Option<Closed>) {
    let mut count = 0;
    for envelope in batch.by_ref() {
        if envelope.header.kind == Kind::Refusal {
            return (count, Some(told(envelope.payload)));
        }
        count += 1;
        each(envelope);
    }
    (count, batch.failure().cloned().map(Closed::Malformed))
}

fn told(payload: &[u8]) -> Closed {
    match postcards::decode(payload) {
        Ok(refusal) => Closed::Refused(refusal),
        Err(error) => Closed::Malformed(Refusal::Malformed(error.0)),
    }
}

/// Why an accepted connection ends, as far as the envelopes on it say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The peer said why it closes.
    Told(Refusal),
    /// The peer is told this, then the connection is closed.
    Refuse(Refusal),
}

impl Parting {
    /// At the next envelope of a batch, which is of a kind that no service here answers.
    #[must_use]
    pub fn of_unserved(kind: Kind, batch: &mut Batch<'_>) -> Self {
        if kind == Kind::Refusal
            && let Some(envelope) = batch.next()
            && let Ok(refusal) = postcards::decode(envelope.payload)
        {
            return Self::Told(refusal);
        }
        // An envelope that is damaged, or not for us, is refused for that.
        let failure = batch.failure().cloned();
        let unserved = || Refusal::Malformed(format!("{kind:?} is not served here"));
        Self::Refuse(failure.unwrap_or_else(unserved))
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::envelope::{self, Header};
    use ramkeep_wire::{Party, ServerId};

    use super::*;
    use crate::hello::refusal_envelope;
    use crate::receive::Expect;

    fn ours() -> Party {
        Party::server(ServerId(1))
    }

    fn theirs() -> Party {
        Party::server(ServerId(2))
    }

    fn sent(kind: Kind, from: Party) -> Vec<u8> {
        let mut out = Vec::new();
        envelope::append(&mut out, Header::new(kind, 1, ours(), from), b"x");
        out
    }

    fn handed_over(bytes: &[u8]) -> (usize, Option<Closed>) {
        let mut batch = Batch::expecting(bytes, Expect::made(ours(), theirs()));
        let mut seen = 0;
        let (count, end) = hand_over(&mut batch, &mut |_| seen += 1);
        assert_eq!(seen, count);
        (count, end)
    }

    #[test]
    fn what_came_before_the_end_is_handed_over() {
        let answer = sent(Kind::OrderReply, theirs());
        assert_eq!(handed_over(&answer.repeat(2)), (2, None));
        assert_eq!(handed_over(&answer[..answer.len() - 1]), (0, None));

        let mut bytes = answer.clone();
        bytes.extend(refusal_envelope(&Refusal::Stopping, theirs(), ours()));
        bytes.extend(&answer);
        let (count, end) = handed_over(&bytes);
        assert_eq!(
            (count, &end),
            (1, &Some(Closed::Refused(Refusal::Stopping)))
        );
        assert_eq!(end.and_then(|end| end.farewell().cloned()), None);

        bytes = answer.clone();
        bytes.extend(sent(Kind::OrderReply, ours()));
        let (count, end) = handed_over(&bytes);
        assert_eq!(count, 1);
        let end = end.expect("an envelope of another process");
        assert!(matches!(end.farewell(), Some(Refusal::Malformed(_))));

        let (_, end) = handed_over(&sent(Kind::Refusal, theirs()));
        assert!(matches!(end, Some(Closed::Malformed(_))));
    }

    #[test]
    fn a_kind_that_is_not_served_is_refused_unless_it_says_why_the_peer_closes() {
        let judge = |bytes: &[u8]| {
            let mut batch = Batch::expecting(bytes, Expect::accepted(ours(), theirs()));
            let kind = batch.peek().unwrap();
            Parting::of_unserved(kind, &mut batch)
        };
        let stopping = refusal_envelope(&Refusal::Stopping, theirs(), ours());
        assert_eq!(judge(&stopping), Parting::Told(Refusal::Stopping));
        for bytes in [sent(Kind::Hello, theirs()), sent(Kind::Refusal, theirs())] {
            let judged = judge(&bytes);
            assert!(matches!(judged, Parting::Refuse(Refusal::Malformed(_))));
        }
    }
}
