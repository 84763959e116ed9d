//! One segment of the log as its writer has it: its slot, and while it may be the log's end, the
//! hash of its bytes so far.

use ramkeep_memory::{Appender, Closed, SegmentMemory, Slot};
use ramkeep_wire::certificate::{CertificateKey, Certifier, Claim};
use ramkeep_wire::entry::{DigestItem, NewEntry};
use ramkeep_wire::{Certificate, SegmentId, SegmentKind};

/// What a segment is and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// What it is for.
    pub kind: SegmentKind,
    /// Where it is in memory.
    pub slot: Slot,
    /// Bytes appended.
    pub length: u32,
    /// Its closed certificate once nothing more will be appended. [`Certificate::NONE`] in a log
    /// without a key.
    pub sealed: Option<Certificate>,
}

/// The head, or the head before it until that is durably closed.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) id: SegmentId,
    appender: Appender,
    /// Hashes the bytes as they are certified; none in a log without a key.
    certifier: Option<Certifier>,
    pub(super) sealed: Option<Certificate>,
    /// The last certificate made, which every backup gets.
    last: Option<(Claim, Certificate)>,
    /// Where its active mark ends, once it is appended.
    pub(super) active_end: Option<u32>,
}

/// A segment that nothing is appended to and that can't be the log's end.
#[derive(Debug)]
pub(super) struct ClosedSegment {
    pub(super) kind: SegmentKind,
    /// Freed by the cleaner; until then the token says that the slot is in use.
    slot: Closed,
    pub(super) certificate: Certificate,
}

impl Head {
    pub(super) fn new(id: SegmentId, appender: Appender, key: Option<&CertificateKey>) -> Self {
        Self {
            id,
            appender,
            certifier: key.map(Certifier::new),
            sealed: None,
            last: None,
            active_end: None,
        }
    }

    #[inline]
    pub(super) fn slot(&self) -> Slot {
        self.appender.slot()
    }

    #[inline]
    pub(super) fn length(&self) -> u32 {
        // A segment is shorter than 16 MiB.
        self.appender.written() as u32
    }

    #[inline]
    pub(super) fn left(&self) -> usize {
        self.appender.left()
    }

    pub(super) fn info(&self) -> SegmentInfo {
        SegmentInfo {
            kind: SegmentKind::Head,
            slot: self.slot(),
            length: self.length(),
            sealed: self.sealed,
        }
    }

    /// Appends `entries`, whose encoded lengths add up to `len`, as one; calls `placed` with the
    /// offset of each. The caller has made sure of the room.
    #[inline]
    pub(super) fn append(
        &mut self,
        entries: &[NewEntry<'_>],
        len: usize,
        mut placed: impl FnMut(usize, u32),
    ) {
        assert!(self.sealed.is_none(), "a sealed segment takes nothing more");
        let mut at = self.length();
        self.appender
            .append_with(len, |mut buffer| {
                for (number, entry) in entries.iter().enumerate() {
                    let (place, rest) = buffer.split_at_mut(entry.encoded_len());
                    entry.write(place);
                    placed(number, at);
                    at += place.len() as u32;
                    buffer = rest;
                }
            })
            .expect("the log asked for the room before");
    }

    /// The certificate of what `claim` makes of the appended length, over all appended bytes. Hashes
    /// only what was appended since the last call.
    pub(super) fn certify(
        &mut self,
        memory: &SegmentMemory,
        claim: impl FnOnce(u32) -> Claim,
    ) -> Certificate {
        let (slot, length) = (self.slot(), self.appender.written());
        let Some(certifier) = &mut self.certifier else {
            return Certificate::NONE;
        };
        let claim = claim(length as u32);
        if let Some((_, certificate)) = self.last.filter(|(last, _)| *last == claim) {
            return certificate;
        }
        let guard = memory.pin();
        let news = memory
            .slice(&guard, slot, certifier.length() as usize..length)
            .expect("the log's own slot is readable up to its end");
        certifier.update(news);
        let certificate = certifier.certify(&claim);
        self.last = Some((claim, certificate));
        certificate
    }

    /// The head is durably closed: what stays of it.
    pub(super) fn close(self) -> (SegmentId, ClosedSegment) {
        let certificate = self.sealed.expect("a head is sealed before it is closed");
        let slot = self.appender.close();
        (
            self.id,
            ClosedSegment {
                kind: SegmentKind::Head,
                slot,
                certificate,
            },
        )
    }
}

impl ClosedSegment {
    pub(super) fn info(&self) -> SegmentInfo {
        SegmentInfo {
            kind: self.kind,
            slot: self.slot.slot(),
            length: self.slot.written() as u32,
            sealed: Some(self.certificate),
        }
    }

    pub(super) fn digest_item(&self, segment: SegmentId) -> DigestItem {
        DigestItem {
            segment,
            length: self.slot.written() as u32,
            certificate: self.certificate,
        }
    }
}
