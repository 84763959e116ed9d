//! A master as backups see it: a segment that grows, and messages about it.
#![allow(dead_code, reason = "each test file uses its part")]

use ramkeep_backup::{Answer, Backup, Frames, Geometry, MemoryStore};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{self, Certifier, Claim};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, flags};
use ramkeep_wire::*;

pub(crate) const BOOT: BootId = BootId([7; 16]);
pub(crate) const CLUSTER: ClusterId = ClusterId([3; 16]);
pub(crate) const BACKUP: ServerId = ServerId(90);
pub(crate) const MASTER: ServerId = ServerId(5);
pub(crate) const SEGMENT: SegmentId = SegmentId(1);
pub(crate) const KEY: CertificateKey = CertificateKey([0x5a; 32]);
pub(crate) const LEASE_US: u32 = 200_000;
pub(crate) const SIZE: u32 = 8192;
pub(crate) const NOW: Micros = Micros(1_000_000);
pub(crate) const OPEN: u8 = flags::OPEN | flags::COMPLETE;
pub(crate) const MORE: u8 = flags::COMPLETE;
pub(crate) const COPY: u8 = flags::OPEN;
pub(crate) const CLOSE: u8 = flags::COMPLETE | flags::CLOSED;

/// One segment of a master.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) master: ServerId,
    pub(crate) id: SegmentId,
    pub(crate) kind: SegmentKind,
    pub(crate) epoch: ReplicationEpoch,
    pub(crate) bytes: Vec<u8>,
}

impl Segment {
    pub(crate) fn new(master: ServerId, id: u64) -> Self {
        Self {
            master,
            id: SegmentId(id),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            bytes: Vec::new(),
        }
    }

    /// Appends `count` bytes that say where they are and whose.
    pub(crate) fn grow(&mut self, count: usize) -> &mut Self {
        let seed = (self.master.0 * 31 + self.id.0) as usize;
        for _ in 0..count {
            let at = self.bytes.len();
            self.bytes.push((at * 7 + at / 251 + seed) as u8);
        }
        self
    }

    pub(crate) fn claim(&self, epoch: ReplicationEpoch, length: u32, closed: bool) -> Claim {
        if closed {
            return Claim::closed(CLUSTER, self.master, self.id, self.kind, length);
        }
        Claim {
            cluster: CLUSTER,
            master: self.master,
            segment: self.id,
            kind: self.kind,
            epoch,
            length,
            closed,
        }
    }

    pub(crate) fn certificate(&self, length: u32, closed: bool) -> Certificate {
        let mut certifier = Certifier::new(&KEY);
        certifier.update(&self.bytes[..length as usize]);
        certifier.certify(&self.claim(self.epoch, length, closed))
    }

    /// The message that takes a replica from `offset` to all bytes there are.
    pub(crate) fn message(&self, offset: u32, flags: u8) -> Replicate<'_> {
        self.part(offset, self.bytes.len() as u32, flags)
    }

    pub(crate) fn part(&self, offset: u32, length: u32, flags: u8) -> Replicate<'_> {
        let complete = flags & flags::COMPLETE != 0;
        Replicate {
            segment: self.id,
            epoch: self.epoch,
            offset,
            length,
            kind: self.kind,
            flags,
            certificate: if complete {
                self.certificate(length, flags & flags::CLOSED != 0)
            } else {
                Certificate::NONE
            },
            bytes: &self.bytes[offset as usize..length as usize],
        }
    }

    /// Whether what a backup shows is proved by its certificate.
    pub(crate) fn proves(&self, info: &ReplicaInfo, contents: &[u8]) -> bool {
        let claim = self.claim(info.epoch, info.length, info.closed);
        certificate::verify(&KEY, &claim, contents, &info.certificate)
    }
}

pub(crate) type Memory = Backup<MemoryStore>;

pub(crate) fn geometry(frames: u32) -> Geometry {
    Geometry::new(frames, SIZE).unwrap()
}

/// A backup with new frames, enlisted.
pub(crate) fn backup(frames: u32) -> Memory {
    let mut store = MemoryStore::new(geometry(frames));
    Frames::format(&mut store, BOOT).unwrap();
    let mut backup = Backup::open(store, BOOT, Micros(0)).unwrap();
    backup.assign(CLUSTER, BACKUP, LEASE_US).unwrap();
    backup
}

/// The same frames in a new process.
pub(crate) fn reopen(mut store: MemoryStore) -> Memory {
    store.revive();
    Backup::open(store, BOOT, NOW).unwrap()
}

pub(crate) fn restart(backup: Memory) -> Memory {
    reopen(backup.into_store())
}

pub(crate) fn send(backup: &mut Memory, segment: &Segment, offset: u32, flags: u8) -> ReplicateAck {
    backup.handle_replicate(NOW, segment.master, &segment.message(offset, flags))
}

pub(crate) fn ask(backup: &mut Memory, from: ServerId, request: BackupRequest) -> BackupResponse {
    backup
        .handle_request(NOW, Party::server(from), request)
        .response
}

/// What the master sees of its own replicas.
pub(crate) fn inventory(backup: &mut Memory, master: ServerId) -> Vec<ReplicaInfo> {
    let request = BackupRequest::Inventory {
        master,
        after: None,
    };
    match ask(backup, master, request) {
        BackupResponse::Inventory(replicas) => replicas,
        other => panic!("no inventory: {other:?}"),
    }
}

/// All bytes that the master can fetch of its replica.
pub(crate) fn contents(backup: &mut Memory, master: ServerId, segment: SegmentId) -> Vec<u8> {
    let request = BackupRequest::Fetch {
        master,
        segment,
        offset: 0,
        length: u32::MAX,
    };
    let Answer { response, bytes } = backup.handle_request(NOW, Party::server(master), request);
    assert!(
        matches!(response, BackupResponse::Bytes { length, .. } if length as usize == bytes.len())
    );
    bytes.to_vec()
}

/// The one replica of a segment that is shown, proved; `None` when none is shown.
pub(crate) fn proved(backup: &mut Memory, segment: &Segment) -> Option<ReplicaInfo> {
    let shown = inventory(backup, segment.master);
    let mut of_segment = shown.iter().filter(|info| info.segment == segment.id);
    let info = *of_segment.next()?;
    assert_eq!(of_segment.next(), None, "a replica is shown once");
    let held = contents(backup, segment.master, segment.id);
    assert!(segment.proves(&info, &held), "{info:?} is not proved");
    Some(info)
}
