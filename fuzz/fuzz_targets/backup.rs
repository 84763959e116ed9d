//! A backup under any messages: no panic, no more frames than there are, and what it acknowledged
//! as complete is what it shows, also after a kill.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ramkeep_backup::{Backup, Frames, Geometry, MemoryStore};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::limits::{MAX_INVENTORY, MAX_PAYLOAD};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::{
    BootId, Certificate, ClusterId, Micros, Party, ReplicationEpoch, SegmentId, SegmentKind,
    ServerId, postcards,
};

const FRAMES: u32 = 4;
const SEGMENT: u32 = 4096;
const BOOT: BootId = BootId([1; 16]);
const LEASE_US: u32 = 1_000;

#[derive(Arbitrary, Debug)]
struct Message {
    master: u8,
    segment: u8,
    epoch: u8,
    offset: u16,
    len: u16,
    flags: u8,
    side: bool,
    certificate: u8,
    filler: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Message),
    RawReplicate {
        master: u8,
        bytes: Vec<u8>,
    },
    Free {
        from: u8,
        master: u8,
        segments: Vec<u8>,
    },
    Inventory {
        from: u8,
        master: u8,
        after: Option<u8>,
    },
    Fetch {
        from: u8,
        master: u8,
        segment: u8,
        offset: u32,
        length: u32,
    },
    RawRequest {
        from: u8,
        bytes: Vec<u8>,
    },
    Fence(u8),
    FreeMaster(u8),
    Wait(u16),
    Kill,
}

/// What was acknowledged last of a replica: its epoch, length, and whether it is closed.
type Acknowledged = BTreeMap<(ServerId, SegmentId), (u32, bool)>;

fuzz_target!(|steps: Vec<Step>| {
    let geometry = Geometry::new(FRAMES, SEGMENT).expect("a possible geometry");
    let mut store = MemoryStore::new(geometry);
    Frames::format(&mut store, BOOT).expect("a new store");
    let mut now = Micros(1);
    let mut backup = opened(store, now);
    let mut acknowledged = Acknowledged::new();
    for step in steps {
        now = Micros(now.0 + 1);
        match step {
            Step::Send(message) => send(&mut backup, now, &message, &mut acknowledged),
            Step::RawReplicate { master, bytes } => {
                if let Ok(message) = Replicate::read(&bytes) {
                    let master = ServerId(master.into());
                    let ack = backup.handle_replicate(now, master, &message);
                    note(master, &message, &ack, &mut acknowledged);
                }
            }
            Step::Free {
                from,
                master,
                segments,
            } => {
                let segments: Vec<_> = segments.iter().map(|&id| SegmentId(id.into())).collect();
                let request = BackupRequest::Free {
                    master: ServerId(master.into()),
                    segments: segments.clone(),
                };
                if ask(&mut backup, now, from, request) == BackupResponse::Done {
                    for segment in segments {
                        acknowledged.remove(&(ServerId(master.into()), segment));
                    }
                }
            }
            Step::Inventory {
                from,
                master,
                after,
            } => {
                let request = BackupRequest::Inventory {
                    master: ServerId(master.into()),
                    after: after.map(|id| SegmentId(id.into())),
                };
                ask(&mut backup, now, from, request);
            }
            Step::Fetch {
                from,
                master,
                segment,
                offset,
                length,
            } => {
                let request = BackupRequest::Fetch {
                    master: ServerId(master.into()),
                    segment: SegmentId(segment.into()),
                    offset,
                    length,
                };
                ask(&mut backup, now, from, request);
            }
            Step::RawRequest { from, bytes } => {
                if let Ok(request) = postcards::decode::<BackupRequest>(&bytes)
                    && !matches!(request, BackupRequest::Free { .. })
                {
                    ask(&mut backup, now, from, request);
                }
            }
            Step::Fence(master) => backup.fence(ServerId(master.into())),
            Step::FreeMaster(master) => {
                let master = ServerId(master.into());
                backup.free_master(master);
                acknowledged.retain(|(of, _), _| *of != master);
            }
            Step::Wait(micros) => now = Micros(now.0 + u64::from(micros)),
            Step::Kill => backup = opened(backup.into_store(), now),
        }
        assert!(backup.stats().used <= FRAMES);
    }
    check_shown(backup, now, &acknowledged);
});

fn opened(store: MemoryStore, now: Micros) -> Backup<MemoryStore> {
    let mut backup = Backup::open(store, BOOT, now).expect("a store that only a kill has touched");
    assert_eq!(backup.damaged(), 0);
    backup
        .assign(ClusterId([2; 16]), ServerId(99), LEASE_US)
        .expect("the same cluster");
    backup
}

fn send(
    backup: &mut Backup<MemoryStore>,
    now: Micros,
    step: &Message,
    acknowledged: &mut Acknowledged,
) {
    let bytes = vec![if step.filler { 0xaa } else { 0xbb }; usize::from(step.len)];
    let master = ServerId(u64::from(step.master % 3));
    let message = Replicate {
        segment: SegmentId(u64::from(step.segment % 4)),
        epoch: ReplicationEpoch(u32::from(step.epoch % 4)),
        offset: step.offset.into(),
        length: u32::from(step.offset) + u32::from(step.len),
        kind: if step.side {
            SegmentKind::Side
        } else {
            SegmentKind::Head
        },
        flags: step.flags,
        certificate: Certificate {
            algorithm: step.certificate % 2,
            hash: [step.certificate; 32],
        },
        bytes: &bytes,
    };
    let ack = backup.handle_replicate(now, master, &message);
    note(master, &message, &ack, acknowledged);
}

fn note(
    master: ServerId,
    message: &Replicate<'_>,
    ack: &ReplicateAck,
    acknowledged: &mut Acknowledged,
) {
    assert_eq!(ack.segment, message.segment);
    assert!(ack.length <= SEGMENT);
    assert!(ack.lease_us == 0 || ack.lease_us == LEASE_US);
    if ack.status == ReplicateStatus::Done {
        assert!(
            ack.epoch >= message.epoch && ack.length >= message.length
                || message.has(flags::COMPLETE)
        );
        if ack.flags & flags::COMPLETE != 0 {
            let closed = ack.flags & flags::CLOSED != 0;
            acknowledged.insert((master, message.segment), (ack.length, closed));
        }
    }
}

fn ask(
    backup: &mut Backup<MemoryStore>,
    now: Micros,
    from: u8,
    request: BackupRequest,
) -> BackupResponse {
    let answer = backup.handle_request(now, Party::server(ServerId(from.into())), request);
    let payload = [&postcards::encode(&answer.response), answer.bytes].concat();
    assert!(payload.len() <= MAX_PAYLOAD);
    let (read, rest) = BackupResponse::read(&payload).expect("an answer can be read");
    assert_eq!((&read, rest), (&answer.response, answer.bytes));
    if let BackupResponse::Inventory(replicas) = &read {
        assert!(replicas.len() <= MAX_INVENTORY);
        assert!(replicas.is_sorted_by_key(|replica| replica.segment));
    }
    read
}

/// Kills the backup, fences everybody, waits for their leases, and looks at all it has.
fn check_shown(backup: Backup<MemoryStore>, now: Micros, acknowledged: &Acknowledged) {
    let mut backup = opened(backup.into_store(), now);
    let later = Micros(now.0 + 10 * u64::from(LEASE_US));
    for ((master, segment), (length, closed)) in acknowledged {
        backup.fence(*master);
        let request = BackupRequest::Fetch {
            master: *master,
            segment: *segment,
            offset: 0,
            length: u32::MAX,
        };
        let answer = backup.handle_request(later, Party::NONE, request);
        let BackupResponse::Bytes {
            replica,
            length: sent,
        } = answer.response
        else {
            panic!(
                "{master:?} {segment:?} was acknowledged: {:?}",
                answer.response
            );
        };
        assert!(replica.certificate.is_some() && replica.inherited);
        assert!(replica.length >= *length && replica.length == sent);
        assert!(replica.closed || !closed);
    }
}
