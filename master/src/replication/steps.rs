//! What is sent for one segment: what its replicas lack, and what renews the lease.

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::{Replicate, flags};
use ramkeep_wire::{Certificate, Micros, ReplicationEpoch, SegmentId};

use super::replica::{Step, Wanted};
use super::segment::Replicated;
use super::{LogSegment, Output, ReplicatedLog, Replication};

impl Replication {
    pub(super) fn send_steps(
        &mut self,
        now: Micros,
        id: SegmentId,
        info: &LogSegment,
        log: &mut impl ReplicatedLog,
        send: &mut impl FnMut(Output),
    ) {
        let may_close = info.sealed.is_some() && self.may_close(id);
        let paced = self.segments.get(&id).is_some_and(Replicated::is_paced);
        // Heads, which clients wait for, do not ask.
        let mut may_copy = paced && self.may_copy(now);
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        let wanted = Wanted {
            length: info.length,
            epoch: segment.wanted_epoch(),
            close: may_close,
            lease: !segment.closed_everywhere,
        };
        // All complete steps are to the same length and epoch: one certificate serves them.
        let mut complete = info.sealed.filter(|_| wanted.close);
        for replica in &mut segment.replicas {
            let to = replica.backup;
            while let Some(step) = replica.next_step(&wanted) {
                if paced && !std::mem::take(&mut may_copy) {
                    break;
                }
                let certificate = if step.flags & flags::COMPLETE == 0 {
                    Certificate::NONE
                } else {
                    *complete.get_or_insert_with(|| log.certify(id, wanted.epoch).1)
                };
                segment.told = segment.told.max(step.length);
                if wanted.lease {
                    self.leases.asked(now, to);
                    let whole = step.flags & flags::COMPLETE != 0;
                    if whole && !segment.witnesses.contains(&to) {
                        segment.witnesses.push(to);
                    }
                }
                let message = message(id, info, &step, wanted.epoch, certificate);
                send(Output::Replicate { to, message });
                replica.sent(now, &step, wanted.epoch);
            }
            let due = wanted.lease && self.leases.due(now, to, self.config.renew_us);
            if let Some(step) = replica.renewal().filter(|_| due) {
                self.leases.asked(now, to);
                let message = message(id, info, &step, replica.sent.epoch, Certificate::NONE);
                send(Output::Replicate { to, message });
                replica.waits_from(now);
            }
        }
    }

    /// Whether a sealed segment's replicas may be closed now (invariant 3 of replication).
    fn may_close(&self, id: SegmentId) -> bool {
        let Some(segment) = self.segments.get(&id) else {
            return false;
        };
        if segment.closed_everywhere {
            return true;
        }
        let next = self.segments.range(SegmentId(id.0 + 1)..).next();
        segment.change.is_none()
            && next.is_some_and(|(_, next)| {
                next.open_on_all(self.config.replicas) || mutants::active(Mutant::CloseBeforeOpen)
            })
    }
}

/// Without its bytes.
fn message(
    segment: SegmentId,
    info: &LogSegment,
    step: &Step,
    epoch: ReplicationEpoch,
    certificate: Certificate,
) -> Replicate<'static> {
    Replicate {
        segment,
        epoch,
        offset: step.offset,
        length: step.length,
        kind: info.kind,
        flags: step.flags,
        certificate,
        bytes: &[],
    }
}
