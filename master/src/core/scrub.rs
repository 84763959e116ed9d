//! Scrubbing: what backups hold of this master's closed segments is read back, a little at a time, and
//! proved as recovery would prove it. What can't be proved is dropped, reported, and replicated anew.
//!
//! # Invariants
//! 1. A replica is damaged if its whole contents, read back twice, are not what the segment's
//!    certificate proves, and those of the log's memory are: else it is the memory that is wrong, and
//!    nothing is freed or said of anybody.
//! 2. One request of [`CHUNK`] bytes at a time, and none while a crashed master's tablets wait.

use std::collections::BTreeSet;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{CertificateKey, Certifier, Claim};
use ramkeep_wire::coordinator::DamagedReplica;
use ramkeep_wire::limits::{MAX_DAMAGED_REPORTED, MAX_REPLICATE_BYTES};
use ramkeep_wire::{Certificate, SegmentId, ServerId};

use super::{Control, Master};

/// Bytes read back at a time: with its header the answer fits the buffers of connections.
pub const CHUNK: u32 = 248 << 10;

const _: () = assert!(CHUNK as usize <= MAX_REPLICATE_BYTES);

/// A request to a backup. It is answered by [`Master::handle_scrubbed`], in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubAsk {
    /// Whom.
    pub to: ServerId,
    /// What.
    pub request: BackupRequest,
}

/// How far it is, and what was found.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// The last replica whose reading was begun.
    done: (ServerId, SegmentId),
    reading: Option<Reading>,
    pub(super) found: BTreeSet<DamagedReplica>,
}

/// A replica that is being read.
#[derive(Debug)]
struct Reading {
    from: ServerId,
    claim: Claim,
    certificate: Certificate,
    certifier: Certifier,
    /// For the second time.
    again: bool,
}

/// What an answer means for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// More is to be read.
    GoOn,
    /// It is whole, or can't be judged now.
    Done,
    /// Its backup did not answer.
    Silent,
    /// It is not what it should be.
    Misfit,
}

impl Master {
    /// What to read back next. One at a time: the answer first.
    pub fn poll_scrub(&self) -> Option<ScrubAsk> {
        if self.is_fenced() {
            return None;
        }
        let control = &mut *self.control.lock();
        if control.replication.is_recovering() {
            return None;
        }
        if let Some(reading) = &control.scrub.reading
            && !control
                .replication
                .is_closed_on(reading.claim.segment, reading.from)
        {
            control.scrub.reading = None;
        }
        if control.scrub.reading.is_none() {
            control.scrub.reading = self.next_reading(control);
        }
        let reading = control.scrub.reading.as_ref()?;
        let offset = reading.certifier.length();
        Some(ScrubAsk {
            to: reading.from,
            request: BackupRequest::Fetch {
                master: self.config.me,
                segment: reading.claim.segment,
                offset,
                length: reading.wanted(),
            },
        })
    }

    /// The replica after the last one, backup by backup.
    fn next_reading(&self, control: &mut Control) -> Option<Reading> {
        let (from, segment) = control.replication.next_closed(control.scrub.done)?;
        control.scrub.done = (from, segment);
        let mut writer = self.store.writer();
        let info = writer.log_mut().info(segment)?;
        let claim = Claim::closed(
            self.config.cluster,
            self.config.me,
            segment,
            info.kind,
            info.length,
        );
        Some(Reading {
            from,
            claim,
            certificate: info.sealed?,
            certifier: Certifier::new(&self.config.key),
            again: false,
        })
    }

    /// The answer to what was asked last; none if there was none. Whether a damaged replica was found:
    /// then there is something to [`Master::pump`].
    pub fn handle_scrubbed(&self, answer: Option<&(BackupResponse, &[u8])>) -> bool {
        // Nobody waits while this is hashed.
        let Some(mut reading) = self.control.lock().scrub.reading.take() else {
            return false;
        };
        let verdict = reading.judge(answer);
        let is_damaged = verdict == Verdict::Misfit && reading.again;
        if is_damaged && !self.is_right_in_memory(&reading) {
            let segment = reading.claim.segment;
            tracing::error!(%segment, "a segment in memory is not what was sealed: its replicas are left alone");
            return false;
        }
        let control = &mut *self.control.lock();
        let (segment, backup) = (reading.claim.segment, reading.from);
        if !control.replication.is_closed_on(segment, backup) {
            return false;
        }
        match verdict {
            Verdict::GoOn => control.scrub.reading = Some(reading),
            Verdict::Done => {}
            // The others on it are read another time.
            Verdict::Silent => control.scrub.done = (backup, SegmentId(u64::MAX)),
            Verdict::Misfit if !reading.again => {
                reading.certifier = Certifier::new(&self.config.key);
                reading.again = true;
                control.scrub.reading = Some(reading);
            }
            Verdict::Misfit => {
                tracing::warn!(%backup, %segment, "a replica is damaged: it is replaced");
                control.replication.replica_damaged(segment, backup);
                control.scrub.note(DamagedReplica {
                    backup,
                    master: self.config.me,
                    segment,
                });
                return true;
            }
        }
        false
    }

    /// Whether the log's own bytes are what the segment's certificate proves.
    fn is_right_in_memory(&self, reading: &Reading) -> bool {
        let (guard, slot) = {
            let mut writer = self.store.writer();
            let info = writer.log_mut().info(reading.claim.segment);
            (self.store.pin(), info.map(|info| info.slot))
        };
        let whole = 0..reading.claim.length as usize;
        let bytes = slot.and_then(|slot| self.store.memory().slice(&guard, slot, whole));
        bytes.is_some_and(|bytes| reading.proves(&self.config.key, bytes))
    }
}

impl Scrub {
    fn note(&mut self, damaged: DamagedReplica) {
        if self.found.len() < MAX_DAMAGED_REPORTED {
            self.found.insert(damaged);
        }
    }
}

impl Reading {
    /// Whether these are the segment's bytes.
    fn proves(&self, key: &CertificateKey, bytes: &[u8]) -> bool {
        let mut certifier = Certifier::new(key);
        certifier.update(bytes);
        certifier.certify(&self.claim) == self.certificate
    }

    /// Bytes of the next request.
    fn wanted(&self) -> u32 {
        (self.claim.length - self.certifier.length()).min(CHUNK)
    }

    fn judge(&mut self, answer: Option<&(BackupResponse, &[u8])>) -> Verdict {
        let (replica, bytes) = match answer {
            None => return Verdict::Silent,
            Some((BackupResponse::Bytes { replica, .. }, bytes)) => (replica, bytes),
            // It said that it had it.
            Some((BackupResponse::Unknown, _)) => return Verdict::Misfit,
            _ => return Verdict::Done,
        };
        if !self.fits(replica) || bytes.len() != self.wanted() as usize {
            return Verdict::Misfit;
        }
        self.certifier.update(bytes);
        if self.certifier.length() < self.claim.length {
            return Verdict::GoOn;
        }
        if self.certifier.certify(&self.claim) == self.certificate {
            Verdict::Done
        } else {
            Verdict::Misfit
        }
    }

    fn fits(&self, replica: &ReplicaInfo) -> bool {
        replica.closed
            && replica.length == self.claim.length
            && replica.certificate == self.certificate
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::{ClusterId, SegmentKind};

    use super::*;

    #[test]
    fn memory_that_is_not_what_was_sealed_is_told_from_a_damaged_replica() {
        let key = CertificateKey([7; 32]);
        let claim = Claim::closed(
            ClusterId([1; 16]),
            ServerId(1),
            SegmentId(3),
            SegmentKind::Head,
            4,
        );
        let mut certifier = Certifier::new(&key);
        certifier.update(b"like");
        let reading = Reading {
            from: ServerId(2),
            certificate: certifier.certify(&claim),
            claim,
            certifier: Certifier::new(&key),
            again: true,
        };
        assert!(reading.proves(&key, b"like"));
        assert!(!reading.proves(&key, b"lake"));
        assert!(!reading.proves(&CertificateKey([8; 32]), b"like"));
    }
}
