//! Replication against a model: a log that grows and rolls over, backups that obey the wire
//! contract, a coordinator that records epochs, and connections that break.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use ramkeep_wire::certificate::BLAKE3_KEYED;
use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus};

use super::*;

const ME: ServerId = ServerId(100);
const HEADER: u32 = 10;

fn config(replicas: usize) -> Config {
    Config {
        me: ME,
        replicas,
        slow_backup_us: 1_000,
        retry_us: 500,
        backup_wait_us: 2_000,
        seed: 1,
    }
}

#[derive(Default)]
struct FakeLog {
    segments: BTreeMap<SegmentId, (u32, Option<Certificate>, Option<u32>, u32)>,
    waiting: Option<SegmentId>,
}

impl FakeLog {
    fn new() -> Self {
        let mut log = Self::default();
        log.segments
            .insert(SegmentId(1), (HEADER, None, Some(HEADER), 0));
        log
    }

    fn head(&mut self) -> &mut (u32, Option<Certificate>, Option<u32>, u32) {
        self.segments
            .values_mut()
            .next_back()
            .expect("a log has a head")
    }

    fn roll_over(&mut self) -> bool {
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
struct Held {
    length: u32,
    certified: u32,
    epoch: ReplicationEpoch,
    /// Of the certificate on record: what recovery would see.
    shown: ReplicationEpoch,
    closed: bool,
}

/// A world of backups; each connection is a queue of messages and one of acknowledgements.
struct World {
    log: FakeLog,
    replication: Replication,
    backups: BTreeMap<ServerId, BTreeMap<SegmentId, Held>>,
    sent: BTreeMap<ServerId, VecDeque<Replicate<'static>>>,
    acks: BTreeMap<ServerId, VecDeque<ReplicateAck>>,
    records: VecDeque<(SegmentId, ReplicationEpoch)>,
    recorded: BTreeMap<SegmentId, ReplicationEpoch>,
    now: Micros,
}

impl World {
    fn new(replicas: usize, backups: u64) -> Self {
        let mut world = Self {
            log: FakeLog::new(),
            replication: Replication::new(config(replicas)),
            backups: (1..=backups)
                .map(|id| (ServerId(id), BTreeMap::new()))
                .collect(),
            sent: BTreeMap::new(),
            acks: BTreeMap::new(),
            records: VecDeque::new(),
            recorded: BTreeMap::new(),
            now: Micros(1),
        };
        (1..=backups).for_each(|id| world.replication.link_up(ServerId(id)));
        world
    }

    fn pump(&mut self) {
        let (sent, records) = (&mut self.sent, &mut self.records);
        let backups = &mut self.backups;
        self.replication
            .pump(self.now, &mut self.log, &mut |output| match output {
                Output::Replicate { to, message } => sent.entry(to).or_default().push_back(message),
                Output::RecordEpoch { segment, epoch, .. } => records.push_back((segment, epoch)),
                Output::Free { to, segments } => {
                    let held = backups.get_mut(&to).expect("a known backup");
                    held.retain(|id, _| !segments.contains(id));
                }
            });
    }

    fn deliver(&mut self, to: ServerId) {
        let Some(message) = self.sent.entry(to).or_default().pop_front() else {
            return;
        };
        let Some(held) = self.backups.get_mut(&to) else {
            return;
        };
        let ack = receive(held, &message);
        self.acks.entry(to).or_default().push_back(ack);
    }

    fn acknowledge(&mut self, from: ServerId) {
        if let Some(ack) = self.acks.entry(from).or_default().pop_front() {
            self.replication.handle_ack(self.now, from, &ack);
        }
    }

    fn record(&mut self) {
        if let Some((segment, epoch)) = self.records.pop_front() {
            let known = self.recorded.entry(segment).or_default();
            if epoch > *known {
                *known = epoch;
            }
            self.replication.epoch_recorded(segment, epoch);
        }
    }

    fn break_link(&mut self, server: ServerId) {
        self.sent.remove(&server);
        self.acks.remove(&server);
        self.replication.link_down(server);
    }

    fn kill(&mut self, server: ServerId) {
        self.break_link(server);
        self.backups.remove(&server);
        self.replication.crashed(server);
    }

    /// Whatever was published as durable is on k replicas that recovery may count.
    fn check(&self, replicas: usize) {
        for (id, (_, _, active_end, durable)) in &self.log.segments {
            if *durable == 0 {
                continue;
            }
            assert!(
                active_end.is_some_and(|end| *durable >= end),
                "durable before active"
            );
            let floor = self.recorded.get(id).copied().unwrap_or_default();
            let counts =
                |held: &Held| held.certified >= *durable && (held.closed || held.shown >= floor);
            let copies = self
                .backups
                .values()
                .filter_map(|held| held.get(id))
                .filter(|h| counts(h))
                .count();
            let stale = self
                .backups
                .values()
                .filter_map(|held| held.get(id))
                .filter(|h| !h.closed && h.shown >= floor.max(ReplicationEpoch(1)))
                .filter(|h| h.certified > 0 && h.certified < *durable)
                .count();
            assert_eq!(stale, 0, "{id:?}: a short open replica of a valid epoch");
            assert!(
                copies >= replicas,
                "{id:?}: {durable} bytes on {copies} backups only"
            );
        }
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            self.now = Micros(self.now.0 + 100);
            self.pump();
            let ids: Vec<ServerId> = self.backups.keys().copied().collect();
            for id in ids {
                self.deliver(id);
                self.acknowledge(id);
            }
            self.record();
        }
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

#[test]
fn nothing_is_durable_until_every_backup_has_acknowledged() {
    let mut world = World::new(2, 2);
    world.pump();
    world.deliver(ServerId(1));
    world.acknowledge(ServerId(1));
    world.pump();
    assert_eq!(world.log.head().3, 0);
    world.deliver(ServerId(2));
    world.acknowledge(ServerId(2));
    world.pump();
    assert_eq!(world.log.head().3, HEADER);
}

#[test]
fn nothing_more_is_durable_until_the_epoch_of_a_changed_set_is_recorded() {
    let mut world = World::new(2, 3);
    world.settle();
    let on = world.replication.backups_of(SegmentId(1));
    world.log.head().0 += 100;
    world.break_link(on[0]);
    for _ in 0..10 {
        world.pump();
        (1..=3).for_each(|id| world.deliver(ServerId(id)));
        (1..=3).for_each(|id| world.acknowledge(ServerId(id)));
    }
    assert_eq!(world.log.head().3, HEADER, "held by both, but not recorded");
    assert_eq!(world.records.len(), 1);
    world.record();
    world.pump();
    assert_eq!(world.log.head().3, HEADER + 100);
}

#[test]
fn a_head_closes_only_after_the_next_is_open_and_acknowledges_only_after_that() {
    let mut world = World::new(2, 2);
    world.settle();
    assert!(world.log.roll_over());
    world.log.head().0 += 50;
    assert!(!world.log.roll_over(), "never a third open head");
    world.pump();
    let closes = |world: &World| {
        world
            .sent
            .values()
            .flatten()
            .filter(|m| m.has(flags::CLOSED))
            .count()
    };
    assert_eq!(closes(&world), 0, "the next head is not open yet");
    (1..=2).for_each(|id| world.deliver(ServerId(id)));
    (1..=2).for_each(|id| world.acknowledge(ServerId(id)));
    world.pump();
    assert_eq!((closes(&world), world.log.head().3), (2, 0));
    world.settle();
    assert_eq!(world.log.head().3, HEADER + 50 + 5);
}

#[test]
fn too_few_backups_refuse_writes_after_a_while_and_take_them_again_later() {
    let mut world = World::new(2, 2);
    world.settle();
    world.kill(ServerId(1));
    world.pump();
    assert!(!world.replication.too_few_backups(world.now));
    world.settle();
    assert!(world.replication.too_few_backups(world.now));
    world.backups.insert(ServerId(3), BTreeMap::new());
    world.replication.link_up(ServerId(3));
    world.settle();
    assert!(!world.replication.too_few_backups(world.now));
    assert_eq!(world.replication.under_replicated(), 0);
}

#[derive(Clone, Debug)]
enum Event {
    Append(u32),
    RollOver,
    Deliver(u64),
    Acknowledge(u64),
    Record,
    Break(u64),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1u32..2_000_000).prop_map(Event::Append),
        1 => Just(Event::RollOver),
        8 => (1u64..=5).prop_map(Event::Deliver),
        8 => (1u64..=5).prop_map(Event::Acknowledge),
        2 => Just(Event::Record),
        1 => (1u64..=5).prop_map(Event::Break),
        1 => (1u64..2_000).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn what_is_durable_is_never_contradicted_by_a_countable_replica(
        events in prop::collection::vec(event(), 1..300),
    ) {
        let mut world = World::new(2, 5);
        for event in events {
            world.now = Micros(world.now.0 + 1);
            match event {
                Event::Append(n) => world.log.head().0 += n,
                Event::RollOver => { world.log.roll_over(); }
                Event::Deliver(id) => world.deliver(ServerId(id)),
                Event::Acknowledge(id) => world.acknowledge(ServerId(id)),
                Event::Record => world.record(),
                Event::Break(id) => {
                    world.break_link(ServerId(id));
                    world.replication.link_up(ServerId(id));
                }
                Event::Wait(us) => world.now = Micros(world.now.0 + us),
            }
            world.pump();
            world.check(2);
        }
        world.settle();
        let head = *world.log.head();
        prop_assert_eq!(head.0, head.3, "everything becomes durable once faults stop");
        prop_assert_eq!(world.replication.under_replicated(), 0);
    }
}
