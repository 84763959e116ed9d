//! Choosing the end of a dead master's log from what backups hold: SAFETY 11 to 14 as a pure
//! function, written down independently of any role so that it can judge them.
//!
//! # Invariants
//! 1. Only replicas whose certificate, header and entries hold count.
//! 2. An open replica counts only at an epoch that is at least the recorded one, and not below the
//!    floor.
//! 3. An open replica from before a reboot of its machine never counts: old pages may have come
//!    back.
//! 4. Among replicas that count equally, the one that loses most is taken: if that one is enough,
//!    every choice is. Where one may have been brought back from earlier, it is the one that loses
//!    least, open or closed, as a recovery has to take it.

use std::collections::BTreeMap;

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::certificate::Claim;
use ramkeep_wire::entry::{DigestItem, Entry};
use ramkeep_wire::segment::{UnverifiedSegment, VerifiedSegment};
use ramkeep_wire::{CertificateKey, ClusterId, ReplicationEpoch, SegmentId, SegmentKind, ServerId};

/// What the coordinator has recorded of a master.
#[derive(Clone, Debug)]
pub struct MasterRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master.
    pub master: ServerId,
    /// Its certificates' key.
    pub key: CertificateKey,
    /// Below this no open replica counts (SAFETY 13).
    pub floor: Option<(SegmentId, ReplicationEpoch)>,
    /// Replication epochs recorded for its heads.
    pub epochs: BTreeMap<SegmentId, ReplicationEpoch>,
}

/// Which replica of the last head is the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one that loses most.
    Shortest,
    /// The one that loses least, open or closed.
    Longest,
}

/// A replica as found on a backup.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// On which.
    pub backup: ServerId,
    /// What the backup says of it.
    pub info: ReplicaInfo,
    /// Its machine has booted since it was written (SAFETY 14).
    pub before_reboot: bool,
    /// What the backup has of it.
    pub contents: &'a [u8],
}

/// The log cannot be had from these replicas.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No open head counts.
    #[error("no replica of a head was found that counts")]
    NoHead,
    /// The head has no digest.
    #[error("{0:?} has no digest")]
    NoDigest(SegmentId),
    /// The digest names a segment that is nowhere to be found as it was closed.
    #[error("{segment:?}, which the digest of {head:?} names with length {length}, was not found")]
    Missing {
        /// Whose digest.
        head: SegmentId,
        /// Which segment.
        segment: SegmentId,
        /// How long it was.
        length: u32,
    },
}

/// The log up to its end, oldest segment first; the last is the head.
#[derive(Clone, Debug)]
pub struct Log<'a> {
    /// Its segments.
    pub segments: Vec<VerifiedSegment<'a>>,
    /// The replicas that a certificate, header or entry proved wrong.
    pub bad: Vec<(ServerId, SegmentId)>,
}

struct Head<'a> {
    segment: VerifiedSegment<'a>,
    active: bool,
    digest: Option<Vec<DigestItem>>,
}

/// Finds the log's end and collects the segments that its digest names.
pub fn log_end<'a>(
    record: &MasterRecord,
    found: &[Found<'a>],
    choice: Choice,
) -> Result<Log<'a>, Refusal> {
    let mut bad = Vec::new();
    let mut heads: BTreeMap<SegmentId, Head<'a>> = BTreeMap::new();
    for replica in found.iter().filter(|f| counts_as_head(record, f)) {
        let Some(segment) = verified(record, replica) else {
            bad.push((replica.backup, replica.info.segment));
            continue;
        };
        keep(&mut heads, segment, choice);
    }
    let end = heads
        .iter()
        .rev()
        .find(|(_, head)| head.active)
        .or_else(|| heads.iter().next())
        .map(|(id, _)| *id)
        .ok_or(Refusal::NoHead)?;
    if choice == Choice::Longest {
        for replica in found.iter().filter(|f| is_closed(record, f, end)) {
            match verified(record, replica) {
                Some(segment) => keep(&mut heads, segment, choice),
                None => bad.push((replica.backup, end)),
            }
        }
    }
    let head = heads.remove(&end).ok_or(Refusal::NoHead)?;
    let digest = head.digest.ok_or(Refusal::NoDigest(end))?;
    let mut segments = Vec::new();
    for item in digest.iter().filter(|item| item.segment != end) {
        segments.push(closed_segment(record, found, end, item, &mut bad)?);
    }
    segments.push(head.segment);
    Ok(Log { segments, bad })
}

fn counts_as_head(record: &MasterRecord, replica: &Found<'_>) -> bool {
    let info = &replica.info;
    let recorded = record.epochs.get(&info.segment).copied();
    info.master == record.master
        && info.kind == SegmentKind::Head
        && !info.closed
        && !replica.before_reboot
        && info.epoch >= recorded.unwrap_or_default()
        && record
            .floor
            .is_none_or(|floor| (info.segment, info.epoch) >= floor)
}

fn verified<'a>(record: &MasterRecord, replica: &Found<'a>) -> Option<VerifiedSegment<'a>> {
    let info = &replica.info;
    let claim = if info.closed {
        Claim::closed(
            record.cluster,
            record.master,
            info.segment,
            info.kind,
            info.length,
        )
    } else {
        Claim {
            cluster: record.cluster,
            master: record.master,
            segment: info.segment,
            kind: info.kind,
            epoch: info.epoch,
            length: info.length,
            closed: false,
        }
    };
    let contents = replica.contents.get(..info.length as usize)?;
    UnverifiedSegment::new(claim, info.certificate, contents)
        .verify(&record.key)
        .ok()
}

fn is_closed(record: &MasterRecord, replica: &Found<'_>, segment: SegmentId) -> bool {
    let info = &replica.info;
    info.master == record.master
        && info.segment == segment
        && info.kind == SegmentKind::Head
        && info.closed
}

/// Of the replicas of one head: an active one beats one that does not know yet that it is, and
/// among equals the shortest is kept, for it lacks most; or the longest.
fn keep<'a>(
    heads: &mut BTreeMap<SegmentId, Head<'a>>,
    segment: VerifiedSegment<'a>,
    choice: Choice,
) {
    let new = read_head(segment);
    let id = segment.claim().segment;
    let rank = |head: &Head<'_>| {
        let length = head.segment.claim().length;
        let rank = match choice {
            Choice::Shortest => u32::MAX - length,
            Choice::Longest => length,
        };
        (head.active, rank)
    };
    if heads.get(&id).is_none_or(|held| rank(&new) > rank(held)) {
        heads.insert(id, new);
    }
}

fn read_head(segment: VerifiedSegment<'_>) -> Head<'_> {
    let mut head = Head {
        segment,
        active: false,
        digest: None,
    };
    for (_, entry) in segment.entries() {
        match entry {
            Entry::Digest(digest) => head.digest = Some(digest.iter().collect()),
            // What was written while the log rolled over stands before it.
            Entry::Active(_) => head.active = true,
            _ => {}
        }
    }
    head
}

fn closed_segment<'a>(
    record: &MasterRecord,
    found: &[Found<'a>],
    head: SegmentId,
    item: &DigestItem,
    bad: &mut Vec<(ServerId, SegmentId)>,
) -> Result<VerifiedSegment<'a>, Refusal> {
    for replica in found {
        let info = &replica.info;
        let fits = info.master == record.master
            && info.segment == item.segment
            && info.closed
            && info.length == item.length
            && info.certificate == item.certificate;
        if !fits {
            continue;
        }
        match verified(record, replica) {
            Some(segment) => return Ok(segment),
            None => bad.push((replica.backup, info.segment)),
        }
    }
    Err(Refusal::Missing {
        head,
        segment: item.segment,
        length: item.length,
    })
}
