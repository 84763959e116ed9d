//! Replicas of a master's log, as backups hold them.

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::certificate::{Certificate, Certifier, Claim, SegmentKind};
use ramkeep_wire::entry::{DigestItem, NewEntry, SegmentHeader};
use ramkeep_wire::{CertificateKey, ClusterId, ReplicationEpoch, SegmentId, ServerId, Version};

use super::World;
use super::servers::BOOT;

impl World {
    /// Gives `backups` replicas of a log of `master`: a closed segment and an open head after it.
    pub fn store_log(&mut self, master: ServerId, backups: &[ServerId]) {
        let log = self.log_of(master);
        let closed = log.segment(5, &[]);
        let item = log.closed(5, &closed);
        let head = log.segment(6, &[item]);
        for backup in backups {
            let fake = self.server(*backup);
            let info = log.info(5, closed.len(), true, item.certificate);
            fake.replicas.push((info, closed.clone()));
            let claim = log.open(6, head.len());
            let info = log.info(6, head.len(), false, log.certify(&claim, &head));
            fake.replicas.push((info, head.clone()));
        }
    }

    fn log_of(&self, master: ServerId) -> Log {
        let state = self.state();
        Log {
            cluster: state.constants().unwrap().cluster,
            master,
            key: state.servers().by_id(master).unwrap().key,
        }
    }

    /// `backup` has the next entry of the log's head, which the others lack.
    pub fn store_more(&mut self, master: ServerId, backup: ServerId) {
        let log = self.log_of(master);
        let fake = self.server(backup);
        let own = |(info, _): &&mut (ReplicaInfo, Vec<u8>)| {
            info.master == master && info.segment == SegmentId(6)
        };
        let (info, bytes) = fake.replicas.iter_mut().find(own).unwrap();
        append(bytes, &NewEntry::SafeVersion(Version(8)));
        let claim = log.open(6, bytes.len());
        *info = log.info(6, bytes.len(), false, log.certify(&claim, bytes));
    }
}

fn append(bytes: &mut Vec<u8>, entry: &NewEntry<'_>) {
    let start = bytes.len();
    bytes.resize(start + entry.encoded_len(), 0);
    entry.write(&mut bytes[start..]);
}

struct Log {
    cluster: ClusterId,
    master: ServerId,
    key: CertificateKey,
}

impl Log {
    fn segment(&self, id: u64, named: &[DigestItem]) -> Vec<u8> {
        let mut items = named.to_vec();
        items.push(DigestItem {
            segment: SegmentId(id),
            length: 0,
            certificate: Certificate::NONE,
        });
        let header = SegmentHeader {
            kind: SegmentKind::Head,
            cluster: self.cluster,
            master: self.master,
            segment: SegmentId(id),
            size: 1 << 16,
        };
        let entries = [
            NewEntry::SegmentHeader(header),
            NewEntry::Digest(&items),
            NewEntry::SafeVersion(Version(7)),
        ];
        let mut bytes = Vec::new();
        for entry in entries {
            append(&mut bytes, &entry);
        }
        bytes
    }

    fn certify(&self, claim: &Claim, bytes: &[u8]) -> Certificate {
        let mut certifier = Certifier::new(&self.key);
        certifier.update(bytes);
        certifier.certify(claim)
    }

    fn open(&self, id: u64, length: usize) -> Claim {
        Claim {
            cluster: self.cluster,
            master: self.master,
            segment: SegmentId(id),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: length as u32,
            closed: false,
        }
    }

    fn closed(&self, id: u64, bytes: &[u8]) -> DigestItem {
        let length = bytes.len() as u32;
        let segment = SegmentId(id);
        let claim = Claim::closed(
            self.cluster,
            self.master,
            segment,
            SegmentKind::Head,
            length,
        );
        DigestItem {
            segment,
            length,
            certificate: self.certify(&claim, bytes),
        }
    }

    fn info(&self, id: u64, length: usize, closed: bool, certificate: Certificate) -> ReplicaInfo {
        ReplicaInfo {
            master: self.master,
            segment: SegmentId(id),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: length as u32,
            closed,
            certificate,
            boot: BOOT,
            inherited: false,
        }
    }
}
