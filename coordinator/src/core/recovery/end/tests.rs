//! The stories of SAFETY 11 to 16, one test each. M's heads are S1 and S2; A, B, C, D are backups.

use ramkeep_wire::certificate::{Certificate, Certifier};
use ramkeep_wire::entry::{NewEntry, SegmentHeader};

use super::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);
const M: ServerId = ServerId(1);
const A: ServerId = ServerId(2);
const B: ServerId = ServerId(3);
const C: ServerId = ServerId(4);
const D: ServerId = ServerId(5);
const KEY: CertificateKey = CertificateKey([7; 32]);
const BOOT: BootId = BootId([1; 16]);
const S0: u64 = 5;
const S1: u64 = 6;
const S2: u64 = 7;

/// A segment as M wrote it.
#[derive(Clone)]
struct Segment {
    id: SegmentId,
    bytes: Vec<u8>,
    /// Where each entry ends.
    ends: Vec<usize>,
}

impl Segment {
    fn new(id: u64, named: &[&Segment]) -> Self {
        let mut segment = Self {
            id: SegmentId(id),
            bytes: Vec::new(),
            ends: Vec::new(),
        };
        segment.append(&NewEntry::SegmentHeader(SegmentHeader {
            kind: SegmentKind::Head,
            cluster: CLUSTER,
            master: M,
            segment: SegmentId(id),
            size: 1 << 16,
        }));
        let mut items: Vec<_> = named.iter().map(|old| old.item()).collect();
        items.push(DigestItem {
            segment: SegmentId(id),
            length: 0,
            certificate: Certificate::NONE,
        });
        segment.append(&NewEntry::Digest(&items));
        segment
    }

    fn append(&mut self, entry: &NewEntry<'_>) {
        let start = self.bytes.len();
        self.bytes.resize(start + entry.encoded_len(), 0);
        entry.write(&mut self.bytes[start..]);
        self.ends.push(self.bytes.len());
    }

    /// With so many entries more.
    fn with(mut self, more: u64) -> Self {
        for version in 1..=more {
            self.append(&NewEntry::SafeVersion(ramkeep_wire::Version(version)));
        }
        self
    }

    fn active(mut self, previous: u64) -> Self {
        self.append(&NewEntry::Active(SegmentId(previous)));
        self
    }

    fn item(&self) -> DigestItem {
        let length = self.bytes.len() as u32;
        let claim = Claim::closed(CLUSTER, M, self.id, SegmentKind::Head, length);
        DigestItem {
            segment: self.id,
            length,
            certificate: certify(&claim, &self.bytes),
        }
    }

    fn info(
        &self,
        epoch: u32,
        length: usize,
        closed: bool,
        certificate: Certificate,
    ) -> ReplicaInfo {
        ReplicaInfo {
            master: M,
            segment: self.id,
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(epoch),
            length: length as u32,
            closed,
            certificate,
            boot: BOOT,
            inherited: false,
        }
    }

    /// An open replica that lacks the last entries.
    fn open(&self, by: ServerId, epoch: u32, lacks: usize) -> Stored {
        let length = self.ends[self.ends.len() - 1 - lacks];
        let claim = Claim {
            cluster: CLUSTER,
            master: M,
            segment: self.id,
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(epoch),
            length: length as u32,
            closed: false,
        };
        let bytes = self.bytes[..length].to_vec();
        let certificate = certify(&claim, &bytes);
        let replica = self.info(epoch, length, false, certificate);
        Stored::new(by, replica, bytes)
    }

    fn closed(&self, by: ServerId) -> Stored {
        let item = self.item();
        let replica = self.info(1, self.bytes.len(), true, item.certificate);
        Stored::new(by, replica, self.bytes.clone())
    }
}

fn certify(claim: &Claim, bytes: &[u8]) -> Certificate {
    let mut certifier = Certifier::new(&KEY);
    certifier.update(bytes);
    certifier.certify(claim)
}

/// A replica with its bytes.
#[derive(Clone)]
struct Stored {
    held: Held,
    bytes: Vec<u8>,
}

impl Stored {
    fn new(by: ServerId, replica: ReplicaInfo, bytes: Vec<u8>) -> Self {
        let held = Held {
            by,
            boot: BOOT,
            replica,
        };
        Self { held, bytes }
    }

    /// Its backup's process was started anew, on a machine that was, too, or not.
    fn inherited(mut self, rebooted: bool) -> Self {
        self.held.replica.inherited = true;
        if rebooted {
            self.held.boot = BootId([2; 16]);
        }
        self
    }

    fn damaged(mut self) -> Self {
        let last = self.bytes.len() - 1;
        self.bytes[last] ^= 1;
        self
    }
}

fn dead() -> Dead {
    Dead {
        cluster: CLUSTER,
        master: M,
        key: KEY,
        floor: None,
        epochs: BTreeMap::new(),
        accepted: None,
        decided: None,
    }
}

fn recorded(segment: u64, epoch: u32) -> Dead {
    Dead {
        epochs: BTreeMap::from([(SegmentId(segment), ReplicationEpoch(epoch))]),
        ..dead()
    }
}

/// What comes of a search with all these replicas there; which of them were read.
fn search(dead: &Dead, stored: &[Stored]) -> (Result<Found, String>, Vec<ServerId>) {
    let shown: Vec<Held> = stored.iter().map(|stored| stored.held).collect();
    let mut finder = Finder::default();
    let mut read = Vec::new();
    for _ in 0..20 {
        match finder.step(dead, &shown, &Gone::default()) {
            Step::Found(found) => return (Ok(found), read),
            Step::Stuck(stuck) => return (Err(stuck.why), read),
            Step::Read(held) => {
                let source = stored.iter().find(|stored| stored.held == held).unwrap();
                finder.read(dead, &held, &source.bytes);
                read.push(held.by);
            }
            Step::Prove(held) => panic!("nothing is suspected: {held:?}"),
        }
    }
    panic!("no end of reading");
}

fn end(dead: &Dead, stored: &[Stored]) -> Result<(u64, u32), String> {
    let (found, _) = search(dead, stored);
    found.map(|found| (found.end.segment.0, found.end.length))
}

fn is(stored: &Stored) -> Result<(u64, u32), String> {
    let replica = &stored.held.replica;
    Ok((replica.segment.0, replica.length))
}

/// S0, closed; S1 with some entries after it; S2 after that.
fn log() -> (Segment, Segment, Segment) {
    let s0 = Segment::new(S0, &[]).with(3);
    let s1 = Segment::new(S1, &[&s0]).active(S0).with(3);
    let s2 = Segment::new(S2, &[&s0, &s1]);
    (s0, s1, s2)
}

#[test]
fn the_longest_replica_of_the_head_is_the_end() {
    let (s0, s1, _) = log();
    let long = s1.open(B, 1, 0);
    let stored = [s1.open(A, 1, 2), long.clone(), s0.closed(A)];
    let (found, read) = search(&dead(), &stored);
    let found = found.unwrap();
    assert_eq!(found.end.certificate, long.held.replica.certificate);
    assert_eq!(found.end.epoch, ReplicationEpoch(1));
    assert_eq!(found.bytes as usize, long.bytes.len() + s0.bytes.len());
    assert_eq!(read, [B], "one head is read once");
}

#[test]
fn an_old_shorter_valid_copy_takes_nothing_away() {
    // A brought back what it had before the last entries were acknowledged.
    let (s0, s1, s2) = log();
    let old = s1.open(A, 1, 3);
    let honest = s1.open(B, 1, 0);
    assert_eq!(
        end(&dead(), &[old.clone(), honest.clone(), s0.closed(A)]),
        is(&honest)
    );
    // B has closed it meanwhile: so it ends as it was closed, and the next head was not active.
    let closed = s1.closed(B);
    let stored = [old.clone(), closed.clone(), s2.open(C, 1, 0), s0.closed(A)];
    let (found, _) = search(&dead(), &stored);
    let found = found.unwrap();
    assert_eq!(found.end.certificate, closed.held.replica.certificate);
    assert!(found.end.is_closed());
    // Damaged ones are longest in vain.
    let bad = closed.damaged();
    assert_eq!(end(&dead(), &[old.clone(), bad, s0.closed(A)]), is(&old));
}

#[test]
fn a_decided_end_stays_while_somebody_holds_it_and_is_replaced_only_by_one_that_is_proved() {
    let (s0, s1, _) = log();
    let (long, short) = (s1.open(A, 1, 0), s1.open(B, 1, 2));
    let all = [long.clone(), short.clone(), s0.closed(B)];
    let (found, _) = search(&dead(), &all);
    let end_of = |found: Result<Found, String>| found.unwrap().end;
    let decided = |end| Dead {
        decided: Some(end),
        ..dead()
    };
    let first = end_of(found);
    assert_eq!(first.length, long.held.replica.length);
    assert_eq!(end_of(search(&decided(first), &all).0), first);
    let second = end_of(search(&decided(first), &all[1..]).0);
    assert_eq!(second.length, short.held.replica.length);
    // Who was away is back, with more than is decided: that stays.
    assert_eq!(end_of(search(&decided(second), &all).0), second);
    assert!(search(&decided(first), &all[2..]).0.is_err());
}

#[test]
fn an_open_head_is_the_end_while_the_next_is_not_active() {
    // 11: S2 is open on all its backups, S1 is not closed on A.
    let (s0, s1, s2) = log();
    let open = s1.open(A, 1, 0);
    let stored = [
        open.clone(),
        s1.closed(B),
        s2.open(C, 1, 0),
        s2.open(D, 1, 0),
        s0.closed(A),
    ];
    assert_eq!(end(&dead(), &stored), is(&open));
}

#[test]
fn a_head_is_the_end_once_the_one_before_is_closed_everywhere() {
    let (s0, s1, s2) = log();
    let open = s2.open(C, 1, 0);
    let stored = [s1.closed(A), s1.closed(B), open.clone(), s0.closed(A)];
    assert_eq!(end(&dead(), &stored), is(&open));
}

#[test]
fn an_active_head_beats_every_older_open_one() {
    // 12: one stale frame of S1 must not cut the log off at S1.
    let (s0, s1, s2) = log();
    let s2 = s2.active(S1).with(5);
    let open = s2.open(C, 1, 0);
    let stored = [s1.open(A, 1, 2), s1.closed(B), open.clone(), s0.closed(B)];
    assert_eq!(end(&dead(), &stored), is(&open));
}

#[test]
fn one_replica_with_the_active_mark_is_enough() {
    let (s0, s1, s2) = log();
    let s2 = s2.active(S1);
    let marked = s2.open(D, 1, 0);
    let stored = [
        s1.open(A, 1, 2),
        s1.closed(B),
        s2.open(C, 1, 1),
        marked.clone(),
        s0.closed(B),
    ];
    assert_eq!(end(&dead(), &stored), is(&marked));
}

#[test]
fn a_segment_of_the_digest_must_be_there_closed_as_named() {
    // 12: every other segment, closed, with the length and certificate that the digest names.
    let (s0, s1, s2) = log();
    let s2 = s2.active(S1).with(1);
    let head = s2.open(C, 1, 0);
    let shorter = Segment::new(S1, &[&s0]).active(S0).with(2);
    let other = Segment::new(S1, &[&s0]).active(S0).with(2).active(S0);
    for wrong in [s1.open(A, 1, 0), shorter.closed(A), other.closed(A)] {
        let stored = [head.clone(), wrong, s0.closed(A)];
        let why = end(&dead(), &stored).unwrap_err();
        assert!(
            why.contains("segment-6") && why.contains("missing"),
            "{why}"
        );
        assert!(why.contains("server-2 has it"), "{why}");
    }
    let stored = [head.clone(), s1.closed(D), s0.closed(A)];
    assert_eq!(end(&dead(), &stored), is(&head));
}

#[test]
fn a_missing_segment_is_named_with_who_may_have_it() {
    let (_, s1, _) = log();
    let head = s1.open(A, 1, 0);
    let mut finder = Finder::default();
    finder.read(&dead(), &head.held, &head.bytes);
    let mut gone = Gone {
        held: BTreeMap::new(),
        backups: vec![D],
    };
    let Step::Stuck(Stuck { why, .. }) = finder.step(&dead(), &[head.held], &gone) else {
        panic!("found");
    };
    assert!(
        why.contains("segment-5") && why.contains("[server-5]"),
        "{why}"
    );
    gone.held.insert(SegmentId(S0), C);
    let Step::Stuck(Stuck { why, .. }) = finder.step(&dead(), &[head.held], &gone) else {
        panic!("found");
    };
    assert!(why.contains("server-4, which crashed, held it"), "{why}");
}

#[test]
fn a_replica_of_an_epoch_below_the_recorded_one_does_not_count() {
    // 3: A was replaced by C in epoch 2 and has less than was acknowledged since.
    let (s0, s1, _) = log();
    let stored = [
        s1.open(A, 1, 3),
        s1.open(B, 2, 0),
        s1.open(C, 2, 1),
        s0.closed(B),
    ];
    assert_eq!(end(&recorded(S1, 2), &stored), is(&stored[1]));
    // A change that was not recorded before M died: both sets have all that was acknowledged.
    assert_eq!(end(&recorded(S1, 1), &stored[1..]), is(&stored[1]));
    // Whatever is longer.
    let longer = [s1.open(A, 1, 0), s1.open(C, 2, 1), s0.closed(B)];
    assert_eq!(end(&recorded(S1, 2), &longer), is(&longer[1]));
    let (found, _) = search(&recorded(S1, 2), &stored[..1]);
    assert!(found.unwrap_err().contains("outdated"));
}

#[test]
fn an_open_replica_below_the_floor_does_not_count() {
    // 13: the floor stands for epochs that are not kept any more.
    let (s0, s1, s2) = log();
    let dead = Dead {
        floor: Some((SegmentId(S2), ReplicationEpoch(1))),
        ..dead()
    };
    let open = s2.open(C, 1, 0);
    let stored = [s1.open(A, 1, 0), s1.closed(B), open.clone(), s0.closed(B)];
    assert_eq!(end(&dead, &stored), is(&open));
    let higher = Dead {
        floor: Some((SegmentId(S2), ReplicationEpoch(2))),
        ..dead
    };
    assert!(end(&higher, &stored).is_err());
}

#[test]
fn what_was_written_before_a_reboot_is_no_evidence_for_the_end() {
    // 14: old pages may have come back from a disk.
    let (s0, s1, _) = log();
    let stale = s1.open(A, 1, 3).inherited(true);
    let open = s1.open(B, 1, 0);
    // Closed, it is proved by what the digest names.
    let old = s0.closed(A).inherited(true);
    let stored = [stale.clone(), open.clone(), old.clone()];
    assert_eq!(end(&dead(), &stored), is(&open));
    let why = end(&dead(), &[stale.clone(), old.clone()]).unwrap_err();
    assert!(why.contains("restart of its machine"), "{why}");
    // The process alone was started anew, and the frames are in memory: nothing is older.
    let kept = s1.open(A, 1, 1).inherited(false);
    assert_eq!(end(&dead(), &[kept.clone(), old]), is(&kept));
}

#[test]
fn a_replica_whose_certificate_does_not_fit_is_set_aside() {
    // 16: the next copy is read.
    let (s0, s1, _) = log();
    let bad = s1.open(A, 1, 0).damaged();
    let good = s1.open(B, 1, 2);
    let stored = [bad, good.clone(), s0.closed(B)];
    let (found, read) = search(&dead(), &stored);
    assert_eq!(found.unwrap().end.length as usize, good.bytes.len());
    assert_eq!(read, [A, B]);
    // With another master's key, or for another cluster, none of it fits.
    let other = Dead {
        key: CertificateKey([8; 32]),
        ..dead()
    };
    assert!(end(&other, &stored).is_err());
}

/// What comes of a search in which no recovery master could prove these segments; which replicas were
/// read for that.
fn search_suspecting(
    dead: &Dead,
    stored: &[Stored],
    segments: &[u64],
) -> (Result<Found, Stuck>, Vec<ServerId>) {
    let segments: Vec<_> = segments.iter().copied().map(SegmentId).collect();
    let shown: Vec<Held> = stored.iter().map(|stored| stored.held).collect();
    let mut finder = Finder::default();
    finder.suspects.add(&segments);
    let mut proved = Vec::new();
    for _ in 0..20 {
        let bytes = |held| {
            let mut stored = stored.iter();
            &stored.find(|stored| stored.held == held).unwrap().bytes
        };
        match finder.step(dead, &shown, &Gone::default()) {
            Step::Found(found) => return (Ok(found), proved),
            Step::Stuck(stuck) => return (Err(stuck), proved),
            Step::Read(held) => assert!(finder.read(dead, &held, bytes(held))),
            Step::Prove(held) => {
                finder.prove(dead, &held, bytes(held));
                proved.push(held.by);
            }
        }
    }
    panic!("no end of reading");
}

#[test]
fn a_suspect_is_there_once_a_copy_of_it_is_proved_and_missing_when_none_is() {
    let (s5, s6, s7) = log();
    let rest = || [s6.closed(B), s7.open(B, 1, 0), s7.open(C, 1, 0)];
    let with = |copies: [Stored; 2]| copies.into_iter().chain(rest()).collect::<Vec<_>>();
    let one = with([s5.closed(B).damaged(), s5.closed(C)]);
    let (found, proved) = search_suspecting(&dead(), &one, &[5]);
    assert!(found.is_ok() && proved.contains(&C), "{found:?} {proved:?}");
    let (found, proved) = search_suspecting(&dead(), &one, &[]);
    assert!(found.is_ok() && proved.is_empty(), "nobody doubts it");
    let none = with([s5.closed(B).damaged(), s5.closed(C).damaged()]);
    let (found, proved) = search_suspecting(&dead(), &none, &[5]);
    let stuck = found.unwrap_err();
    assert_eq!(stuck.missing, Some(loss(&[], &[5], false)));
    assert!(
        stuck.why.contains("no copy that proves itself"),
        "{stuck:?}"
    );
    assert_eq!(proved.len(), 2);
    // What is given up is not read.
    let accepting = Dead {
        accepted: Some(loss(&[], &[5], false)),
        ..dead()
    };
    let (found, proved) = search_suspecting(&accepting, &none, &[5]);
    assert!(found.is_ok() && proved.is_empty());
    // What is lost beside it comes to it.
    let both = [
        s5.closed(B).damaged(),
        s6.closed(B).damaged(),
        s7.open(C, 1, 0),
    ];
    let (found, _) = search_suspecting(&accepting, &both, &[5, 6]);
    assert_eq!(found.unwrap_err().missing, Some(loss(&[], &[5, 6], false)));
}

#[test]
fn a_damaged_active_mark_is_not_believed() {
    let (s0, s1, s2) = log();
    let s2 = s2.active(S1);
    let open = s1.open(A, 1, 0);
    let forged = s2.open(C, 1, 0).damaged();
    let stored = [open.clone(), forged, s0.closed(A)];
    assert_eq!(end(&dead(), &stored), is(&open));
}

#[test]
fn a_head_without_its_digest_proves_nothing() {
    let (s0, s1, s2) = log();
    let header_alone = s2.open(C, 1, 1);
    let stored = [s1.closed(A), header_alone, s0.closed(A)];
    assert!(end(&dead(), &stored).is_err());
}

#[test]
fn survivors_and_replicas_without_a_certificate_are_never_the_end() {
    let (s0, s1, _) = log();
    let head = s1.open(A, 1, 0);
    let mut survivor = s1.open(B, 1, 2);
    survivor.held.replica.kind = SegmentKind::Survivor;
    let mut under_way = s1.open(C, 1, 3);
    under_way.held.replica.certificate = Certificate::NONE;
    let stored = [head.clone(), survivor, under_way, s0.closed(A)];
    assert_eq!(end(&dead(), &stored), is(&head));
}

/// As [`search`], with backups that are gone and what an operator gave up.
fn search_after_loss(
    stored: &[Stored],
    gone: &[ServerId],
    accepted: Option<Loss>,
) -> Result<Found, Option<Loss>> {
    let dead = Dead { accepted, ..dead() };
    let gone = Gone {
        held: BTreeMap::new(),
        backups: gone.to_vec(),
    };
    let shown: Vec<Held> = stored.iter().map(|stored| stored.held).collect();
    let mut finder = Finder::default();
    for _ in 0..20 {
        match finder.step(&dead, &shown, &gone) {
            Step::Found(found) => return Ok(found),
            Step::Stuck(stuck) => return Err(stuck.missing),
            Step::Read(held) => {
                let source = stored.iter().find(|stored| stored.held == held).unwrap();
                finder.read(&dead, &held, &source.bytes);
            }
            Step::Prove(held) => panic!("nothing is suspected: {held:?}"),
        }
    }
    panic!("no end of reading");
}

fn loss(dead: &[ServerId], segments: &[u64], tail: bool) -> Loss {
    Loss {
        dead: dead.to_vec(),
        segments: segments.iter().copied().map(SegmentId).collect(),
        tail,
    }
}

#[test]
fn a_segment_that_was_given_up_no_longer_stops_the_end_and_nothing_else_does_so() {
    let (_, s1, _) = log();
    let stored = [s1.open(A, 1, 0)];
    let missing = loss(&[D], &[S0], false);
    let search = |gone: &[ServerId], accepted| search_after_loss(&stored, gone, accepted);
    assert_eq!(search(&[D], None), Err(Some(missing.clone())));
    let other = loss(&[D], &[S2], false);
    assert_eq!(search(&[D], Some(other)), Err(Some(missing.clone())));
    let found = search(&[D], Some(missing.clone())).unwrap();
    assert_eq!(found.end.segment, SegmentId(S1));
    assert_eq!(found.bytes, u64::from(found.end.length), "what is there");
    // The head proves the end whoever else is gone by now.
    assert!(search(&[C, D], Some(missing)).is_ok());
}

#[test]
fn without_a_head_the_end_is_the_newest_that_is_left_once_the_tail_is_given_up() {
    let (s0, s1, _) = log();
    let all = [s0.closed(D), s1.closed(D)];
    let tail = loss(&[A, B], &[], true);
    assert_eq!(
        search_after_loss(&all, &[A, B], None),
        Err(Some(tail.clone()))
    );
    let found = search_after_loss(&all, &[A, B], Some(tail.clone())).unwrap();
    assert_eq!(found.end.segment, SegmentId(S1));
    assert!(found.end.is_closed());
    // One more may hold a head now: that it is dead was not asserted.
    let more = loss(&[A, B, C], &[], true);
    assert_eq!(
        search_after_loss(&all, &[A, B, C], Some(tail.clone())),
        Err(Some(more))
    );
    // A closed segment of its digest is missing, too.
    let both = loss(&[A, B], &[S0], true);
    let one = [s1.closed(D)];
    assert_eq!(
        search_after_loss(&one, &[A, B], Some(tail)),
        Err(Some(both.clone()))
    );
    assert!(search_after_loss(&one, &[A, B], Some(both)).is_ok());
    // An open one from before a reboot may be the last that was written.
    let old = [s0.closed(D), s1.open(D, 1, 0).inherited(true)];
    let found = search_after_loss(&old, &[], Some(loss(&[], &[], true))).unwrap();
    assert_eq!(found.end.segment, SegmentId(S1));
    assert!(!found.end.is_closed());
}

#[test]
fn of_a_log_that_left_nothing_nothing_is_the_end_once_that_is_accepted() {
    let tail = loss(&[A, B], &[], true);
    assert_eq!(
        search_after_loss(&[], &[A, B], None),
        Err(Some(tail.clone()))
    );
    let found = search_after_loss(&[], &[A, B], Some(tail.clone())).unwrap();
    assert_eq!((found.end, found.bytes), (LogEnd::NOTHING, 0));
    // Damaged replicas are nothing.
    let (s0, ..) = log();
    let damaged = [s0.closed(D).damaged()];
    let found = search_after_loss(&damaged, &[A, B], Some(tail)).unwrap();
    assert_eq!(found.end, LogEnd::NOTHING);
}

#[test]
fn a_head_that_comes_back_after_the_loss_was_accepted_is_the_end() {
    let (s0, s1, _) = log();
    let all = [s0.closed(D), s1.open(A, 1, 0).inherited(false)];
    let found = search_after_loss(&all, &[B], Some(loss(&[A, B], &[], true))).unwrap();
    assert_eq!(found.end.segment, SegmentId(S1));
    assert!(!found.end.is_closed());
}

/// With each of these faults planted one of the stories above goes wrong.
#[cfg(feature = "mutants")]
#[test]
fn planted_faults_are_caught() {
    let faults: [(Mutant, fn()); 6] = [
        (
            Mutant::NameWhatIsNew,
            a_suspect_is_there_once_a_copy_of_it_is_proved_and_missing_when_none_is,
        ),
        (
            Mutant::EndIgnoresEpoch,
            a_replica_of_an_epoch_below_the_recorded_one_does_not_count,
        ),
        (
            Mutant::EndIgnoresFloor,
            an_open_replica_below_the_floor_does_not_count,
        ),
        (
            Mutant::EndIgnoresReboot,
            what_was_written_before_a_reboot_is_no_evidence_for_the_end,
        ),
        (
            Mutant::ShortestEnd,
            an_old_shorter_valid_copy_takes_nothing_away,
        ),
        (
            Mutant::MissingSegmentIgnored,
            a_segment_of_the_digest_must_be_there_closed_as_named,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
