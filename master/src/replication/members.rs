//! Which backups hold what: connections that come and go, crashes, restarts, and the choice of
//! backups in their place.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::{Micros, SegmentId, ServerId};

use super::placement::Health;
use super::segment::Replicated;
use super::{MAX_BACK_OFF_US, MAX_SUSPECTED, OWN_PAUSE, RECOVERY_FIRST, Replication};

impl Replication {
    /// The connection to a backup is there (again): it may be chosen. What it was told on an
    /// earlier one may not have come.
    pub fn link_up(&mut self, server: ServerId) {
        if server == self.config.me || !self.backups.connected(server) {
            return;
        }
        self.look_for_orphans(server);
        self.damaged.connected(server);
    }

    /// The connection to a backup broke or could not be made: heads replace it at once, and so do
    /// segments that were being copied to it.
    pub fn link_down(&mut self, server: ServerId) {
        self.backups.set(server, Health::Away);
        // What was on its way will not come.
        let segments = self.segments.values_mut();
        for replica in segments.flat_map(|segment| &mut segment.replicas) {
            if replica.backup == server {
                replica.in_flight.clear();
            }
        }
        self.late_acks.retain(|(of, _), _| *of != server);
        self.replace(server);
    }

    /// The coordinator decided that a backup is dead: every segment replaces it.
    pub fn crashed(&mut self, server: ServerId) {
        self.orphans.forget(server);
        self.damaged.forget(server);
        if self.backups.health(server) == Health::Crashed {
            return;
        }
        self.link_down(server);
        self.backups.set(server, Health::Crashed);
        let held = self.segments.iter().filter(|(_, s)| s.is_on(server));
        let held: Vec<SegmentId> = held.map(|(id, _)| *id).collect();
        for id in held {
            self.lose(id, server);
        }
        self.orphans.forget(server);
    }

    /// Whether tablets of a crashed master wait to be recovered, somewhere.
    pub fn recovering(&mut self, any: bool) {
        let since = self.recovering_since.unwrap_or(self.pumped);
        self.recovering_since = any.then_some(since);
    }

    /// Whether a crashed master's tablets are recovered just now, as far as is known: what nobody waits
    /// for leaves the machines to that, but not for ever.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        let recovering = |since| self.pumped.since(since) < RECOVERY_FIRST;
        self.recovering_since.is_some_and(recovering)
    }

    /// `server` took over the frames of `old` by restarting with its directory: the replicas in
    /// them are freed once their segments are whole elsewhere.
    pub fn inherited(&mut self, server: ServerId, old: ServerId) {
        let frames = self.frames(old);
        self.frames_of.insert(server, frames);
        self.look_for_orphans(server);
    }

    /// The first server known to have had the frames that `server` has. A server that crashed
    /// before it knew who it was leaves them to the next without a trace of itself.
    fn frames(&self, server: ServerId) -> ServerId {
        self.frames_of.get(&server).copied().unwrap_or(server)
    }

    fn look_for_orphans(&mut self, server: ServerId) {
        let frames = self.frames(server);
        for (id, segment) in &self.segments {
            if segment.was_in(frames) && !segment.is_on(server) {
                self.orphans.add(server, *id);
            }
        }
        self.orphans.due = true;
    }

    /// Takes a backup out of all sets in which it does not yet hold a closed replica.
    fn replace(&mut self, server: ServerId) {
        let open = |id: &&SegmentId| {
            let segment = self.segments.get(*id);
            segment.is_some_and(|segment| segment.is_open_on(server))
        };
        let held: Vec<SegmentId> = self.active.iter().filter(open).copied().collect();
        for id in held {
            self.lose(id, server);
        }
    }

    /// Takes a backup out of a segment's set.
    pub(super) fn lose(&mut self, id: SegmentId, server: ServerId) {
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        let Some(replica) = segment.lose(server) else {
            return;
        };
        if !replica.in_flight.is_empty() {
            *self.late_acks.entry((server, id)).or_default() += replica.in_flight.len();
        }
        if segment.closed_everywhere && !self.active.contains(&id) {
            self.lacking.put(id, !segment.has_copy());
        }
        self.orphans.add(server, id);
    }

    /// If this process slept, what backups left unanswered meanwhile is no reason to suspect them.
    pub(super) fn note_own_pause(&mut self, now: Micros) {
        let last = std::mem::replace(&mut self.pumped, now);
        if now.since(last) < OWN_PAUSE {
            return;
        }
        for id in &self.active {
            let segment = self.segments.get_mut(id);
            for replica in segment.into_iter().flat_map(|s| &mut s.replicas) {
                replica.waiting_since = now;
            }
        }
    }

    /// Replaces backups that have let a message wait too long, if others are there. Backs off: a loaded machine doesn't answer slowness with copying
    /// (SAFETY 10). Without a coordinator a change could not be recorded, and one who is slow is
    /// better than one who is gone: that it answered a while ago is not enough.
    pub(super) fn replace_slow(&mut self, now: Micros) {
        if now < self.next_change_not_before || !self.coordinator_is_there(now) {
            return;
        }
        let quiet = now.since(self.next_change_not_before).as_micros();
        if quiet > u128::from(self.change_back_off_us) {
            self.change_back_off_us = 0;
        }
        // Several at once only out of the blue.
        let most = if self.change_back_off_us == 0 {
            MAX_SUSPECTED
        } else {
            1
        };
        for _ in 0..most {
            let Some(slow) = self.slow(now) else { return };
            self.back_off(now);
            let until = now + Duration::from_micros(self.config.retry_us);
            self.backups.doubt(slow, Health::Suspect { until });
            self.replace(slow);
        }
    }

    fn coordinator_is_there(&self, now: Micros) -> bool {
        let fresh = Duration::from_micros(self.config.coordinator_fresh_us);
        let heard = self.coordinator_heard;
        heard.is_some_and(|heard| now.since(heard) <= fresh)
    }

    /// A backup that has let a message wait too long and can be replaced.
    fn slow(&self, now: Micros) -> Option<ServerId> {
        self.active.iter().find_map(|id| {
            let segment = self.segments.get(id)?;
            let limit = if segment.closed_everywhere {
                self.config.slow_copy_us
            } else {
                self.config.slow_backup_us
            };
            let replica = segment.replicas.iter().find(|replica| {
                let waits = now.since(replica.waiting_since);
                !replica.in_flight.is_empty() && waits > Duration::from_micros(limit)
            })?;
            self.has_spare(now, segment).then_some(replica.backup)
        })
    }

    fn back_off(&mut self, now: Micros) {
        self.change_back_off_us =
            (self.change_back_off_us * 2).clamp(2 * self.config.retry_us, MAX_BACK_OFF_US);
        self.next_change_not_before = now + Duration::from_micros(self.change_back_off_us);
    }

    /// Whether a head's set is to go on with fewer than k backups (SAFETY 9): there is nobody to take
    /// the place of those that are missing, each of them was decided crashed, and the lease that is
    /// left of them is about to run out. One that only can't be reached may hold the last copy of
    /// what was acknowledged, if more are lost; a new epoch would outdate that copy.
    pub(super) fn must_shrink(&self, now: Micros, segment: &Replicated) -> bool {
        let missing = |backup: &&ServerId| !segment.is_on(**backup);
        let mut missing = segment.witnesses.iter().filter(missing);
        let soon = now + Duration::from_micros(2 * self.config.renew_us);
        missing.all(|backup| {
            self.backups.health(*backup) == Health::Crashed && self.leases.until(*backup) <= soon
        }) && !self.has_spare(now, segment)
    }

    /// Whether there is a backup that could take on one more replica of `segment`.
    pub(super) fn has_spare(&self, now: Micros, segment: &Replicated) -> bool {
        let taken = |backup| segment.is_on(backup) || owes_answers(&self.late_acks, backup);
        self.backups.has_spare(now, taken)
    }

    /// Fills up a segment's set of backups.
    pub(super) fn place(&mut self, now: Micros, id: SegmentId) {
        let k = self.config.replicas;
        let lacks = |segment: &Replicated| segment.replicas.len() < k;
        if !self.segments.get(&id).is_some_and(lacks) {
            return;
        }
        let stalled = self.stalled(now);
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        while segment.replicas.len() < self.config.replicas {
            let late = &self.late_acks;
            let taken = |backup| {
                segment.is_on(backup) || owes_answers(late, backup) || stalled.contains(&backup)
            };
            // One that has damaged it before is the last choice.
            let shunned = |backup| taken(backup) || self.damaged.was_on(backup, id);
            let chosen = self.backups.choose(now, shunned);
            let Some(backup) = chosen.or_else(|| self.backups.choose(now, taken)) else {
                break;
            };
            let frames = self.frames_of.get(&backup).copied();
            segment.add(backup, frames.unwrap_or(backup));
        }
    }
}

/// Whether a backup that was given up has not answered yet what it was sent before: it may be
/// stopped, and is not chosen until it shows that it lives.
fn owes_answers(late: &BTreeMap<(ServerId, SegmentId), usize>, server: ServerId) -> bool {
    let all = (server, SegmentId(0))..=(server, SegmentId(u64::MAX));
    late.range(all).next().is_some()
}
