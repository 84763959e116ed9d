//! Replication against a model: a log that grows and rolls over, backups that obey the wire
//! contract, a coordinator that records epochs, and connections that break.

use std::collections::{BTreeMap, VecDeque};

use ramkeep_wire::certificate::BLAKE3_KEYED;
use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus, flags};

use super::super::*;

const ME: ServerId = ServerId(100);
pub(super) const HEADER: u32 = 10;

fn config(replicas: usize) -> Config {
    Config {
        me: ME,
        replicas,
        slow_backup_us: 1_000,
        slow_copy_us: 1_000,
        renew_us: 400,
        retry_us: 500,
        coordinator_fresh_us: u64::MAX,
        backup_wait_us: 2_000,
        seed: 1,
    }
}

#[derive(Default)]
pub(super) struct FakeLog {
    pub(super) segments: BTreeMap<SegmentId, (u32, Option<Certificate>, Option<u32>, u32)>,
    pub(super) waiting: Option<SegmentId>,
}

impl FakeLog {
    pub(super) fn new() -> Self {
        let mut log = Self::default();
        log.segments
            .insert(SegmentId(1), (HEADER, None, Some(HEADER), 0));
        log
    }

    pub(super) fn head(&mut self) -> &mut (u32, Option<Certificate>, Option<u32>, u32) {
        self.segments
            .values_mut()
            .next_back()
            .expect("a log has a head")
    }

    pub(super) fn roll_over(&mut self) -> bool {
        if self.waiting.is_some() {
            return false;
        }
        let old = *self.segments.keys().next_back().expect("a log has a head");
        self.head().1 = Some(Certificate {
            algorithm: BLAKE3_KEYED,
            hash: [9; 32],
        });
        self.segments
            .insert(SegmentId(old.0 + 1), (HEADER, None, None, 0));
        self.waiting = Some(old);
        true
    }
}

impl ReplicatedLog for FakeLog {
    fn open_heads(&self) -> [Option<SegmentId>; 2] {
        [self.waiting, self.segments.keys().next_back().copied()]
    }

    fn segment(&self, id: SegmentId) -> Option<LogSegment> {
        let (length, sealed, ..) = *self.segments.get(&id)?;
        Some(LogSegment {
            kind: SegmentKind::Head,
            length,
            sealed,
        })
    }

    fn certify(&mut self, id: SegmentId, epoch: ReplicationEpoch) -> (u32, Certificate) {
        let hash = [epoch.0 as u8; 32];
        (
            self.segments[&id].0,
            Certificate {
                algorithm: BLAKE3_KEYED,
                hash,
            },
        )
    }

    fn set_durable(&mut self, id: SegmentId, length: u32) {
        let durable = &mut self.segments.get_mut(&id).expect("of the log").3;
        assert!(length > *durable, "the durable position only grows");
        *durable = length;
    }

    fn predecessor_closed(&mut self, id: SegmentId) {
        assert_eq!(self.waiting, Some(id), "told once, of the head before");
        self.waiting = None;
        let head = self.head();
        head.0 += 5;
        head.2 = Some(head.0);
    }

    fn active_end(&self, id: SegmentId) -> Option<u32> {
        self.segments.get(&id)?.2
    }
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Held {
    pub(super) length: u32,
    pub(super) certified: u32,
    pub(super) epoch: ReplicationEpoch,
    /// Of the certificate on record: what recovery would see.
    pub(super) shown: ReplicationEpoch,
    pub(super) closed: bool,
    pub(super) bad: bool,
}

/// What goes to a backup over one connection, in order.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    Replicate(Replicate<'static>),
    Free(Vec<SegmentId>),
}

/// A backup process.
#[derive(Clone, Default, Debug)]
pub(super) struct FakeBackup {
    pub(super) held: BTreeMap<SegmentId, Held>,
    /// What it found in its frames when it started.
    pub(super) inherited: BTreeSet<SegmentId>,
    /// Before this time it would not answer recovery.
    pub(super) silent_until: Micros,
}

/// What the backups grant, microseconds.
pub(super) const LEASE: u32 = 3_200;

/// Frames of each backup: enough for all segments of a run, if none leaks for good.
pub(super) const FRAMES: usize = 24;

impl FakeBackup {
    pub(super) fn receive(&mut self, now: Micros, sent: &Sent) -> Option<ReplicateAck> {
        let message = match sent {
            Sent::Free(segments) => {
                self.held.retain(|id, _| !segments.contains(id));
                self.inherited.retain(|id| !segments.contains(id));
                return None;
            }
            Sent::Replicate(message) => message,
        };
        let is_new = !self.held.contains_key(&message.segment);
        let full = self.held.len() + self.inherited.len() >= FRAMES;
        let mut ack = receive(&mut self.held, message);
        if full && is_new && ack.status == ReplicateStatus::Done {
            self.held.remove(&message.segment);
            ack.status = ReplicateStatus::NoFrame;
        } else if self
            .held
            .get(&message.segment)
            .is_some_and(|h| h.certified > 0)
        {
            self.inherited.remove(&message.segment);
        }
        if ack.status == ReplicateStatus::Done && message.has(flags::LEASE) {
            ack.lease_us = LEASE;
            self.silent_until = now + Duration::from_micros(LEASE.into());
        }
        Some(ack)
    }
}

/// A world of backups; each connection is a queue of messages and one of acknowledgements.
pub(super) struct World {
    pub(super) log: FakeLog,
    pub(super) replication: Replication,
    pub(super) backups: BTreeMap<ServerId, FakeBackup>,
    pub(super) sent: BTreeMap<ServerId, VecDeque<Sent>>,
    pub(super) acks: BTreeMap<ServerId, VecDeque<ReplicateAck>>,
    pub(super) records: VecDeque<(SegmentId, ReplicationEpoch)>,
    pub(super) recorded: BTreeMap<SegmentId, ReplicationEpoch>,
    /// Replicas of each segment that were lost since every segment had k.
    pub(super) lost: BTreeMap<SegmentId, usize>,
    pub(super) next_server: u64,
    pub(super) now: Micros,
}

impl World {
    pub(super) fn new(replicas: usize, backups: u64) -> Self {
        let mut world = Self {
            log: FakeLog::new(),
            replication: Replication::new(config(replicas)),
            backups: (1..=backups)
                .map(|id| (ServerId(id), FakeBackup::default()))
                .collect(),
            sent: BTreeMap::new(),
            acks: BTreeMap::new(),
            records: VecDeque::new(),
            recorded: BTreeMap::new(),
            lost: BTreeMap::new(),
            next_server: backups + 1,
            now: Micros(1),
        };
        (1..=backups).for_each(|id| world.replication.link_up(ServerId(id)));
        world
    }

    pub(super) fn pump(&mut self) {
        let (sent, records) = (&mut self.sent, &mut self.records);
        self.replication
            .pump(self.now, &mut self.log, &mut |output| match output {
                Output::Replicate { to, message } => {
                    let queue = sent.entry(to).or_default();
                    queue.push_back(Sent::Replicate(message));
                }
                Output::RecordEpoch { segment, epoch, .. } => records.push_back((segment, epoch)),
                Output::Free { to, segments } => {
                    sent.entry(to).or_default().push_back(Sent::Free(segments));
                }
            });
    }

    pub(super) fn deliver(&mut self, to: ServerId) {
        let Some(message) = self.sent.entry(to).or_default().pop_front() else {
            return;
        };
        let Some(backup) = self.backups.get_mut(&to) else {
            return;
        };
        if let Some(ack) = backup.receive(self.now, &message) {
            self.acks.entry(to).or_default().push_back(ack);
        }
    }

    pub(super) fn acknowledge(&mut self, from: ServerId) {
        if let Some(ack) = self.acks.entry(from).or_default().pop_front() {
            self.replication.handle_ack(self.now, from, &ack);
        }
    }

    pub(super) fn record(&mut self) {
        if let Some((segment, epoch)) = self.records.pop_front() {
            let known = self.recorded.entry(segment).or_default();
            if epoch > *known {
                *known = epoch;
                self.replication.epoch_recorded(segment, epoch);
            } else {
                self.replication.epoch_refused(segment, epoch, true);
            }
        }
    }

    /// The answer to a record is lost, whether it was recorded or not.
    pub(super) fn lose_record(&mut self, was_recorded: bool) {
        if let Some((segment, epoch)) = self.records.pop_front() {
            let known = self.recorded.entry(segment).or_default();
            if was_recorded {
                *known = epoch.max(*known);
            }
            self.replication.epoch_refused(segment, epoch, false);
        }
    }

    pub(super) fn break_link(&mut self, server: ServerId) {
        self.sent.remove(&server);
        self.acks.remove(&server);
        self.replication.link_down(server);
    }

    pub(super) fn kill(&mut self, server: ServerId) -> Option<FakeBackup> {
        self.break_link(server);
        let dead = self.backups.remove(&server)?;
        for id in dead.held.keys() {
            *self.lost.entry(*id).or_default() += 1;
        }
        self.replication.crashed(server);
        Some(dead)
    }

    /// A killed backup starts again with its frames, as another server.
    pub(super) fn restart(&mut self, server: ServerId) {
        let Some(dead) = self.kill(server) else {
            return;
        };
        let new = ServerId(self.next_server);
        self.next_server += 1;
        let inherited = dead.held.into_keys().chain(dead.inherited).collect();
        let backup = FakeBackup {
            held: BTreeMap::new(),
            inherited,
            silent_until: self.now + Duration::from_micros(LEASE.into()),
        };
        self.backups.insert(new, backup);
        self.replication.inherited(new, server);
        self.replication.link_up(new);
    }

    /// A closed replica is damaged, and found to be so.
    pub(super) fn damage(&mut self, n: u64) {
        let closed = |one: &(ServerId, SegmentId)| self.replication.is_closed_on(one.1, one.0);
        let all = self.backups.iter();
        let all = all.flat_map(|(server, backup)| backup.held.keys().map(|id| (*server, *id)));
        let all: Vec<_> = all.filter(closed).collect();
        let Some((server, id)) = all.get(n as usize % all.len().max(1)).copied() else {
            return;
        };
        let backup = self.backups.get_mut(&server).expect("listed above");
        backup.held.get_mut(&id).expect("listed above").bad = true;
        *self.lost.entry(id).or_default() += 1;
        self.replication.replica_damaged(id, server);
    }

    /// Some living backup.
    pub(super) fn any(&self, n: u64) -> ServerId {
        let at = (n % self.backups.len() as u64) as usize;
        *self.backups.keys().nth(at).expect("there is one")
    }

    pub(super) fn held(&self, id: SegmentId) -> impl Iterator<Item = &Held> + '_ {
        let held = self.backups.values();
        held.filter_map(move |backup| backup.held.get(&id))
    }

    /// Whatever was published as durable is on k replicas that recovery may count, but for those
    /// that were lost since; and on k of them if replication thinks so.
    pub(super) fn check(&mut self, replicas: usize) {
        if self.replication.under_replicated() == 0 {
            self.lost.clear();
        }
        for (id, (_, _, active_end, durable)) in &self.log.segments {
            if *durable == 0 {
                continue;
            }
            assert!(
                active_end.is_some_and(|end| *durable >= end),
                "durable before active"
            );
            let floor = self.recorded.get(id).copied().unwrap_or_default();
            let counts = |held: &&Held| {
                !held.bad && held.certified >= *durable && (held.closed || held.shown >= floor)
            };
            let copies = self.held(*id).filter(counts).count();
            let stale = self
                .held(*id)
                .filter(|h| !h.closed && h.shown >= floor.max(ReplicationEpoch(1)))
                .filter(|h| h.certified > 0 && h.certified < *durable)
                .count();
            assert_eq!(stale, 0, "{id:?}: a short open replica of a valid epoch");
            let lost = self.lost.get(id).copied().unwrap_or(0);
            assert!(
                copies + lost >= replicas,
                "{id:?}: {durable} bytes on {copies} backups only"
            );
        }
    }

    /// As long as the lease is held, no backup would answer recovery that has a head in a state
    /// that counts: whole, open, of the recorded epoch or a later one.
    pub(super) fn check_lease(&self) {
        let until = self.replication.lease_until();
        if until <= self.now {
            return;
        }
        for id in self.log.open_heads().into_iter().flatten() {
            let floor = self.recorded.get(&id).copied().unwrap_or_default();
            for (server, backup) in &self.backups {
                let held = backup.held.get(&id).copied().unwrap_or_default();
                let counts = held.certified > 0 && !held.closed && held.shown >= floor;
                assert!(
                    !counts || backup.silent_until >= until,
                    "{server:?} could show {id:?} at {:?}, but the lease is until {until:?}",
                    backup.silent_until,
                );
            }
        }
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..600 {
            self.now = Micros(self.now.0 + 100);
            self.pump();
            let ids: Vec<ServerId> = self.backups.keys().copied().collect();
            for id in ids {
                while self.sent.get(&id).is_some_and(|queue| !queue.is_empty()) {
                    self.deliver(id);
                }
                while self.acks.get(&id).is_some_and(|queue| !queue.is_empty()) {
                    self.acknowledge(id);
                }
            }
            self.record();
        }
    }

    /// What backups hold of closed segments and replication doesn't know of.
    pub(super) fn leaked(&self) -> Vec<(ServerId, SegmentId)> {
        let known = |server: ServerId, id: SegmentId| {
            self.replication.backups_of(id).contains(&server)
                && self.backups[&server].held.contains_key(&id)
        };
        let all = self.backups.iter().flat_map(|(server, backup)| {
            let ids = backup.held.keys().chain(&backup.inherited);
            ids.map(|id| (*server, *id))
        });
        let open = self.log.open_heads();
        all.filter(|(server, id)| !open.contains(&Some(*id)) && !known(*server, *id))
            .collect()
    }
}

fn receive(held: &mut BTreeMap<SegmentId, Held>, message: &Replicate<'_>) -> ReplicateAck {
    let known = held.get(&message.segment).copied();
    let mut replica = known.unwrap_or_default();
    let mut status = ReplicateStatus::Done;
    if known.is_none() && !message.has(flags::OPEN) {
        status = ReplicateStatus::Unknown;
    } else if message.epoch < replica.epoch {
        status = ReplicateStatus::StaleEpoch;
    } else if message.offset > replica.length {
        status = ReplicateStatus::Gap;
    } else {
        replica.length = replica.length.max(message.length);
        replica.epoch = message.epoch;
        if message.has(flags::COMPLETE) {
            replica.certified = replica.certified.max(message.length);
            replica.shown = message.epoch;
        }
        replica.closed |= message.has(flags::CLOSED);
        held.insert(message.segment, replica);
    }
    let complete = replica.certified == replica.length && replica.shown == replica.epoch;
    ReplicateAck {
        segment: message.segment,
        epoch: replica.epoch,
        length: replica.length,
        status,
        flags: if complete { flags::COMPLETE } else { 0 }
            | if replica.closed { flags::CLOSED } else { 0 },
        lease_us: 0,
    }
}
