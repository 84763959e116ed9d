//! Scrubbing: what backups hold of this master's closed segments is read back, a little at a time, and
//! proved as recovery would prove it. What can't be proved is dropped, reported, and replicated anew.
//!
//! # Invariants
//! 1. A replica is damaged if its whole contents, read back twice, are not what the segment's
//!    certificate proves. The log's memory is not asked: it may be the one that is wrong.
//! 2. One request of [`CHUNK`] bytes at a time, and none while a crashed master's tablets wait.

use std::collections::BTreeSet;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{Certifier, Claim};
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
    /// The last replica that was read to its end.
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
        let control = &mut *self.control.lock();
        let Some(mut reading) = control.scrub.reading.take() else {
            return false;
        };
        let (segment, backup) = (reading.claim.segment, reading.from);
        if !control.replication.is_closed_on(segment, backup) {
            return false;
        }
        match reading.judge(answer) {
            Verdict::GoOn => control.scrub.reading = Some(reading),
            Verdict::Done => control.scrub.done = (backup, segment),
            Verdict::Misfit if !reading.again => {
                reading.certifier = Certifier::new(&self.config.key);
                reading.again = true;
                control.scrub.reading = Some(reading);
            }
            Verdict::Misfit => {
                control.scrub.done = (backup, segment);
                tracing::warn!(%backup, %segment, "a replica is damaged: it is replaced");
                control.replication.replica_damaged(segment, backup);
                if control.scrub.found.len() < MAX_DAMAGED_REPORTED {
                    let master = self.config.me;
                    control.scrub.found.insert(DamagedReplica {
                        backup,
                        master,
                        segment,
                    });
                }
                return true;
            }
        }
        false
    }
}

impl Reading {
    /// Bytes of the next request.
    fn wanted(&self) -> u32 {
        (self.claim.length - self.certifier.length()).min(CHUNK)
    }

    fn judge(&mut self, answer: Option<&(BackupResponse, &[u8])>) -> Verdict {
        let (replica, bytes) = match answer {
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
