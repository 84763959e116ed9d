//! Random messages against a plain model, and random bytes against everything.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use ramkeep_backup::{Backup, Frames, MemoryStore};
use ramkeep_wire::backup::{BackupRequest, ReplicaInfo};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::*;

const FRAMES: u32 = 3;
const LENGTH: u32 = 600;

#[derive(Clone, Debug)]
enum Act {
    Send {
        segment: usize,
        epoch: u32,
        from: u32,
        to: u32,
        flags: u8,
        /// A byte of the message that is not the log's.
        wrong: Option<u16>,
    },
    Free(usize),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let point = prop_oneof![Just(0), Just(100), Just(200), Just(LENGTH), 0..=LENGTH];
    let flag = prop_oneof![
        Just(OPEN),
        Just(COPY),
        Just(MORE),
        Just(CLOSE),
        Just(0),
        0..16u8
    ];
    let wrong = prop::option::weighted(0.05, any::<u16>());
    let send = (0..4usize, 1..4u32, point.clone(), point, flag, wrong);
    let send = send.prop_map(|(segment, epoch, a, b, flags, wrong)| Act::Send {
        segment,
        epoch,
        from: a.min(b),
        to: a.max(b),
        flags,
        wrong,
    });
    prop_oneof![20 => send, 1 => (0..4usize).prop_map(Act::Free), 1 => Just(Act::Restart)]
}

/// What a replica is, said as plainly as possible.
#[derive(Clone, Debug, Default)]
struct Held {
    epoch: u32,
    bytes: Vec<u8>,
    shown: Option<Shown>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Shown {
    epoch: u32,
    length: u32,
    closed: bool,
    certificate: Certificate,
    inherited: bool,
}

#[derive(Default)]
struct Model {
    new: BTreeMap<SegmentId, Held>,
    old: BTreeMap<SegmentId, Shown>,
}

impl Model {
    fn receive(&mut self, message: &Replicate<'_>) -> ReplicateStatus {
        use ReplicateStatus::*;
        let complete = message.has(flags::COMPLETE);
        if message.has(flags::CLOSED) && !complete {
            return Refused;
        }
        if !self.new.contains_key(&message.segment) {
            if !message.has(flags::OPEN) {
                return Unknown;
            }
            if self.new.len() + self.old.len() == FRAMES as usize {
                return NoFrame;
            }
        }
        let held = self.new.entry(message.segment).or_default();
        let status = held.receive(message, complete);
        if held.shown.is_some() {
            self.old.remove(&message.segment);
        }
        status
    }

    fn restart(&mut self) {
        for (segment, held) in std::mem::take(&mut self.new) {
            if let Some(shown) = held.shown {
                self.old.insert(
                    segment,
                    Shown {
                        inherited: true,
                        ..shown
                    },
                );
            }
        }
    }

    fn shown(&self) -> Vec<(SegmentId, Shown)> {
        let mut all: BTreeMap<_, _> = self.old.clone();
        all.extend(
            self.new
                .iter()
                .filter_map(|(id, held)| Some((*id, held.shown?))),
        );
        all.into_iter().collect()
    }
}

impl Held {
    fn receive(&mut self, message: &Replicate<'_>, complete: bool) -> ReplicateStatus {
        use ReplicateStatus::*;
        let (epoch, from, to) = (
            message.epoch.0,
            message.offset as usize,
            message.length as usize,
        );
        let closes = message.has(flags::CLOSED);
        if epoch < self.epoch {
            return StaleEpoch;
        }
        let closed = self.shown.filter(|shown| shown.closed);
        if closed.is_some() && to > self.bytes.len() {
            return Closed;
        }
        if from > self.bytes.len() {
            self.epoch = epoch;
            return Gap;
        }
        let overlap = self.bytes.len().min(to) - from;
        if self.bytes[from..from + overlap] != message.bytes[..overlap] {
            return Refused;
        }
        let wanted = Shown {
            epoch,
            length: message.length,
            closed: closes,
            certificate: message.certificate,
            inherited: false,
        };
        let certify = match (self.shown, complete) {
            (_, false) => false,
            (None, true) => true,
            (Some(shown), true) if shown.closed && !closes => false,
            (Some(shown), true) if shown.closed => {
                if (shown.length, shown.certificate) != (wanted.length, wanted.certificate) {
                    return Closed;
                }
                epoch > shown.epoch
            }
            (Some(shown), true) if wanted.length < shown.length => {
                if epoch > shown.epoch || closes {
                    return Refused;
                }
                false
            }
            (Some(shown), true) if wanted.length == shown.length && epoch == shown.epoch => {
                if !closes && wanted.certificate != shown.certificate {
                    return Refused;
                }
                closes
            }
            (Some(_), true) => true,
        };
        self.bytes.extend_from_slice(&message.bytes[overlap..]);
        self.epoch = epoch;
        if certify {
            self.bytes.truncate(to);
            self.shown = Some(wanted);
        }
        Done
    }
}

fn seen(info: &ReplicaInfo) -> (SegmentId, Shown) {
    let shown = Shown {
        epoch: info.epoch.0,
        length: info.length,
        closed: info.closed,
        certificate: info.certificate,
        inherited: info.inherited,
    };
    (info.segment, shown)
}

struct Run {
    backup: Memory,
    model: Model,
    segments: Vec<Segment>,
}

impl Run {
    fn new() -> Self {
        let mut segments: Vec<Segment> = (1..5).map(|id| Segment::new(MASTER, id)).collect();
        for segment in &mut segments {
            segment.grow(LENGTH as usize);
        }
        Self {
            backup: backup(FRAMES),
            model: Model::default(),
            segments,
        }
    }

    fn step(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match *act {
            Act::Restart => {
                let store = std::mem::replace(&mut self.backup, backup(1)).into_store();
                self.backup = reopen(store);
                self.model.restart();
            }
            Act::Free(segment) => {
                let id = self.segments[segment].id;
                let segments = vec![id];
                ask(
                    &mut self.backup,
                    MASTER,
                    BackupRequest::Free {
                        master: MASTER,
                        segments,
                    },
                );
                self.model.new.remove(&id);
                self.model.old.remove(&id);
            }
            Act::Send {
                segment,
                epoch,
                from,
                to,
                flags,
                wrong,
            } => {
                let mut segment = self.segments[segment].clone();
                segment.epoch = ReplicationEpoch(epoch);
                let honest = segment.part(from, to, flags);
                let mut bytes = honest.bytes.to_vec();
                if let (Some(at), false) = (wrong, bytes.is_empty()) {
                    let at = usize::from(at) % bytes.len();
                    bytes[at] ^= 0x10;
                }
                let message = Replicate {
                    bytes: &bytes,
                    ..honest
                };
                let ack = self.backup.handle_replicate(NOW, MASTER, &message);
                let status = self.model.receive(&message);
                prop_assert_eq!(ack.status, status, "{:?}", act);
                self.acknowledged(&ack)?;
            }
        }
        self.compare()
    }

    /// An acknowledgement says how the replica is, whatever came of the message.
    fn acknowledged(&self, ack: &ReplicateAck) -> Result<(), TestCaseError> {
        let Some(held) = self.model.new.get(&ack.segment) else {
            prop_assert_eq!((ack.epoch.0, ack.length, ack.flags), (0, 0, 0));
            return Ok(());
        };
        prop_assert_eq!(
            (ack.epoch.0, ack.length as usize),
            (held.epoch, held.bytes.len())
        );
        let complete = held.shown.is_some_and(|shown| {
            shown.closed || shown.epoch == held.epoch && shown.length == ack.length
        });
        prop_assert_eq!(ack.flags & flags::COMPLETE != 0, complete);
        let closed = held.shown.is_some_and(|shown| shown.closed);
        prop_assert_eq!(ack.flags & flags::CLOSED != 0, closed);
        Ok(())
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        let found: Vec<_> = inventory(&mut self.backup, MASTER)
            .iter()
            .map(seen)
            .collect();
        prop_assert_eq!(found, self.model.shown());
        let used = self.model.new.len() + self.model.old.len();
        prop_assert_eq!(self.backup.stats().used as usize, used);
        for (id, held) in &self.model.new {
            if let Some(shown) = held.shown {
                let bytes = contents(&mut self.backup, MASTER, *id);
                prop_assert_eq!(&bytes, &held.bytes[..shown.length as usize]);
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn any_messages_make_what_the_model_makes(acts in prop::collection::vec(act(), 1..60)) {
        let mut run = Run::new();
        for act in &acts {
            run.step(act)?;
        }
    }

    #[test]
    fn no_payload_makes_a_backup_panic(payloads in prop::collection::vec(
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 1..40,
    )) {
        let mut backup = backup(2);
        for (master, payload) in &payloads {
            if let Ok(message) = Replicate::read(payload) {
                backup.handle_replicate(NOW, ServerId(u64::from(*master)), &message);
            }
            if let Ok(request) = postcards::decode::<BackupRequest>(payload) {
                backup.handle_request(NOW, Party(u64::from(*master)), request);
            }
        }
        prop_assert!(backup.stats().used <= 2);
    }

    /// Payloads that begin like a message: small fields, so that many of them are read.
    #[test]
    fn no_likely_message_makes_a_backup_panic(messages in prop::collection::vec(
        (0..3u64, 0..3u32, any::<u16>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)),
        1..40,
    )) {
        let mut backup = backup(2);
        for (segment, epoch, offset, flags, bytes) in &messages {
            let message = Replicate {
                segment: SegmentId(*segment),
                epoch: ReplicationEpoch(*epoch),
                offset: u32::from(*offset),
                length: u32::from(*offset) + bytes.len() as u32,
                kind: SegmentKind::Head,
                flags: flags & 0x1f,
                certificate: Certificate { algorithm: flags >> 5, hash: [*flags; 32] },
                bytes,
            };
            let mut payload = Vec::new();
            message.write(&mut payload);
            let read = Replicate::read(&payload).expect("what was written is read");
            backup.handle_replicate(NOW, MASTER, &read);
        }
        restart(backup);
    }

    #[test]
    fn no_bytes_in_a_store_make_opening_panic(
        headers in prop::collection::vec((any::<u16>(), any::<u8>()), 0..50),
    ) {
        let mut running = backup(2);
        for id in 1..3 {
            let mut segment = Segment::new(MASTER, id);
            send(&mut running, segment.grow(50), 0, OPEN);
        }
        let mut store: MemoryStore = running.into_store();
        for (at, bit) in headers {
            let area = match at % 3 {
                0 => ramkeep_backup::Area::Superblock,
                n => ramkeep_backup::Area::Frame(u32::from(n) - 1),
            };
            store.flip(area, usize::from(at) % 4096, bit);
        }
        if let Ok((frames, _)) = Frames::open(store, BOOT) {
            let mut found = Backup::open(frames.into_store(), BOOT, NOW).expect("opened once");
            inventory(&mut found, MASTER);
        }
    }
}
