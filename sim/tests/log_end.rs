//! The end of a log is chosen by SAFETY 11 to 14, and what it lacks is found.

use std::collections::BTreeMap;

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::certificate::{Certifier, Claim};
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::entry::{DigestItem, NewEntry, Object, SegmentHeader, Tombstone};
use ramkeep_wire::{
    BootId, Certificate, CertificateKey, ClusterId, LogPosition, ReplicationEpoch, SegmentId,
    SegmentKind, ServerId, TableId, Version,
};
use sim::check::durable::{self, Loss};
use sim::check::log_end::{Choice, Found, MasterRecord, Refusal, log_end};
use sim::check::zones::State;
use sim::history::{Action, History, Outcome, Place};

const MASTER: ServerId = ServerId(1);
const CLUSTER: ClusterId = ClusterId([5; 16]);
const KEY: CertificateKey = CertificateKey([7; 32]);

fn record() -> MasterRecord {
    MasterRecord {
        cluster: CLUSTER,
        master: MASTER,
        key: KEY,
        floor: None,
        epochs: BTreeMap::new(),
    }
}

fn place() -> Place {
    (TableId(1), b"k".to_vec())
}

fn object(version: u64, value: &[u8]) -> NewEntry<'_> {
    NewEntry::Object(Object {
        table: TableId(1),
        version: Version(version),
        expiry: None,
        key: b"k",
        value,
    })
}

fn tombstone(version: u64) -> NewEntry<'static> {
    NewEntry::Tombstone(Tombstone {
        table: TableId(1),
        version: Version(version),
        segment: SegmentId(1),
        key: b"k",
    })
}

#[derive(Clone)]
struct Segment {
    id: SegmentId,
    bytes: Vec<u8>,
}

impl Segment {
    fn new(id: u64, before: &[DigestItem]) -> Self {
        let id = SegmentId(id);
        let mut segment = Self {
            id,
            bytes: Vec::new(),
        };
        segment.add(&NewEntry::SegmentHeader(SegmentHeader {
            kind: SegmentKind::Head,
            cluster: CLUSTER,
            master: MASTER,
            segment: id,
            size: 4096,
        }));
        let mut items = before.to_vec();
        items.push(DigestItem {
            segment: id,
            length: 0,
            certificate: Certificate::NONE,
        });
        segment.add(&NewEntry::Digest(&items));
        segment
    }

    fn with(mut self, entry: &NewEntry<'_>) -> Self {
        self.add(entry);
        self
    }

    fn active(self, previous: u64) -> Self {
        self.with(&NewEntry::Active(SegmentId(previous)))
    }

    fn add(&mut self, entry: &NewEntry<'_>) {
        let start = self.bytes.len();
        self.bytes.resize(start + entry.encoded_len(), 0);
        entry.write(&mut self.bytes[start..]);
    }

    fn certificate(&self, epoch: u32, closed: bool) -> Certificate {
        let mut certifier = Certifier::new(&KEY);
        certifier.update(&self.bytes);
        certifier.certify(&Claim {
            cluster: CLUSTER,
            master: MASTER,
            segment: self.id,
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(epoch),
            length: self.bytes.len() as u32,
            closed,
        })
    }

    fn sealed(&self) -> DigestItem {
        DigestItem {
            segment: self.id,
            length: self.bytes.len() as u32,
            certificate: self.certificate(0, true),
        }
    }

    fn on(&self, backup: u64, epoch: u32, closed: bool) -> Found<'_> {
        Found {
            backup: ServerId(backup),
            info: ReplicaInfo {
                master: MASTER,
                segment: self.id,
                kind: SegmentKind::Head,
                epoch: ReplicationEpoch(epoch),
                length: self.bytes.len() as u32,
                closed,
                certificate: self.certificate(if closed { 0 } else { epoch }, closed),
                boot: BootId([0; 16]),
                inherited: false,
            },
            before_reboot: false,
            contents: &self.bytes,
        }
    }
}

fn end(record: &MasterRecord, found: &[Found<'_>]) -> Result<(SegmentId, State), Refusal> {
    end_by(Choice::Shortest, record, found)
}

fn end_by(
    choice: Choice,
    record: &MasterRecord,
    found: &[Found<'_>],
) -> Result<(SegmentId, State), Refusal> {
    let log = log_end(record, found, choice)?;
    let last = log.segments.last().expect("a log has a head");
    Ok((
        last.claim().segment,
        durable::replay(&log.segments, &|_, _| true).state(&place()),
    ))
}

#[test]
fn the_only_head_is_the_end() {
    let head = Segment::new(1, &[]).with(&object(1, b"a"));
    let found = [head.on(2, 0, false), head.on(3, 0, false)];
    assert_eq!(end(&record(), &found), Ok((SegmentId(1), State(2))));
    assert_eq!(end(&record(), &[]), Err(Refusal::NoHead));
}

#[test]
fn of_replicas_that_count_equally_the_one_that_lacks_most_is_taken() {
    let short = Segment::new(1, &[]);
    let long = short.clone().with(&object(1, b"a"));
    let found = [long.on(2, 0, false), short.on(3, 0, false)];
    assert_eq!(end(&record(), &found), Ok((SegmentId(1), State(0))));
}

#[test]
fn an_active_head_beats_an_older_open_one() {
    let first = Segment::new(1, &[]).with(&object(1, b"a"));
    let stale = Segment::new(1, &[]);
    let second = Segment::new(2, &[first.sealed()])
        .active(1)
        .with(&object(2, b"b"));
    let found = [
        stale.on(2, 0, false),
        second.on(3, 0, false),
        first.on(3, 0, true),
    ];
    assert_eq!(end(&record(), &found), Ok((SegmentId(2), State(4))));
}

#[test]
fn without_an_active_head_the_oldest_open_one_is_the_end() {
    let first = Segment::new(1, &[]).with(&object(1, b"a"));
    let second = Segment::new(2, &[first.sealed()]);
    let found = [
        first.on(2, 0, false),
        second.on(3, 0, false),
        first.on(3, 0, true),
    ];
    assert_eq!(end(&record(), &found), Ok((SegmentId(1), State(2))));
}

#[test]
fn a_segment_that_the_digest_names_must_be_found_closed() {
    let first = Segment::new(1, &[]).with(&object(1, b"a"));
    let other = Segment::new(1, &[]).with(&object(1, b"b"));
    let second = Segment::new(2, &[first.sealed()]).active(1);
    let missing = Err(Refusal::Missing {
        head: SegmentId(2),
        segment: SegmentId(1),
        length: first.bytes.len() as u32,
    });
    assert_eq!(end(&record(), &[second.on(3, 0, false)]), missing);
    let found = [second.on(3, 0, false), other.on(3, 0, true)];
    assert_eq!(end(&record(), &found), missing);
}

#[test]
fn stale_epochs_and_heads_below_the_floor_do_not_count() {
    let stale = Segment::new(1, &[]);
    let fresh = stale.clone().with(&object(1, b"a"));
    let found = [stale.on(2, 1, false), fresh.on(3, 2, false)];
    let mut record = record();
    record.epochs.insert(SegmentId(1), ReplicationEpoch(2));
    assert_eq!(end(&record, &found), Ok((SegmentId(1), State(2))));
    record.epochs.clear();
    assert_eq!(end(&record, &found), Ok((SegmentId(1), State(0))));
    record.floor = Some((SegmentId(1), ReplicationEpoch(2)));
    assert_eq!(end(&record, &found), Ok((SegmentId(1), State(2))));
    record.floor = Some((SegmentId(2), ReplicationEpoch(0)));
    assert_eq!(end(&record, &found), Err(Refusal::NoHead));
}

#[test]
fn an_open_replica_from_before_a_reboot_is_no_evidence_for_the_end() {
    let head = Segment::new(1, &[]).with(&object(1, b"a"));
    let mut old = head.on(2, 0, false);
    old.before_reboot = true;
    assert_eq!(end(&record(), &[old]), Err(Refusal::NoHead));
    let next = Segment::new(2, &[head.sealed()]).active(1);
    let mut closed = head.on(2, 0, true);
    closed.before_reboot = true;
    let found = [closed, next.on(3, 0, false)];
    assert_eq!(end(&record(), &found), Ok((SegmentId(2), State(2))));
}

#[test]
fn bytes_that_their_certificate_does_not_cover_never_count() {
    let head = Segment::new(1, &[]).with(&object(1, b"a"));
    let mut damaged = head.bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut bad = head.on(2, 0, false);
    bad.contents = &damaged;
    let log = log_end(&record(), &[bad, head.on(3, 0, false)], Choice::Shortest).unwrap();
    assert_eq!(log.bad, [(ServerId(2), SegmentId(1))]);
    assert_eq!(log.segments.len(), 1);
}

fn replayed(segment: &Segment) -> durable::Replayed {
    let found = [segment.on(2, 0, false)];
    let log = log_end(&record(), &found, Choice::Shortest).expect("a head that counts is there");
    durable::replay(&log.segments, &|_, _| true)
}

fn history(steps: &[(Action, Outcome)]) -> History {
    let mut history = History::default();
    for (action, outcome) in steps {
        let ticket = history.invoke(0, &place(), action.clone());
        history.complete(ticket, outcome.clone());
    }
    history
}

fn wrote(value: &[u8], version: u64) -> (Action, Outcome) {
    let rules = RejectRules::default();
    let action = Action::Write {
        value: value.to_vec(),
        rules,
    };
    let version = Version(version);
    (action, Outcome::Written { version })
}

fn removed(version: u64) -> (Action, Outcome) {
    let rules = RejectRules::default();
    let version = Some(Version(version));
    (Action::Remove { rules }, Outcome::Removed { version })
}

fn check(history: &History, segment: &Segment) -> Result<(), Loss> {
    durable::check_key(&place(), history.of(&place()), &replayed(segment))
}

#[test]
fn an_acknowledged_write_that_the_log_lacks_is_found() {
    let empty = Segment::new(1, &[]);
    let history = history(&[wrote(b"a", 1)]);
    assert!(matches!(check(&history, &empty), Err(Loss::Lost { .. })));
    let full = empty.with(&object(1, b"a"));
    assert_eq!(check(&history, &full), Ok(()));
}

#[test]
fn an_acknowledged_removal_that_the_log_lacks_is_found() {
    let segment = Segment::new(1, &[]).with(&object(1, b"a"));
    let history = history(&[wrote(b"a", 1), removed(1)]);
    assert!(matches!(check(&history, &segment), Err(Loss::Lost { .. })));
    assert_eq!(check(&history, &segment.with(&tombstone(1))), Ok(()));
}

#[test]
fn an_absence_that_the_log_does_not_have_is_found() {
    let segment = Segment::new(1, &[]).with(&object(1, b"a"));
    let rules = RejectRules::default();
    let history = history(&[
        wrote(b"a", 1),
        (Action::Remove { rules }, Outcome::Unknown),
        (Action::Read, Outcome::Absent),
    ]);
    let came_back = Loss::CameBack {
        place: place(),
        state: State(2),
    };
    assert_eq!(check(&history, &segment), Err(came_back));
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let segment = Segment::new(1, &[]).with(&object(1, b"x"));
    let wrong = check(&history(&[wrote(b"a", 1)]), &segment);
    assert!(matches!(wrong, Err(Loss::WrongValue { .. })));
    let invented = check(&history(&[(Action::Read, Outcome::Absent)]), &segment);
    assert!(matches!(invented, Err(Loss::Invented { .. })));
}

#[test]
fn two_objects_of_one_version_are_found() {
    let segment = Segment::new(1, &[])
        .with(&object(1, b"a"))
        .with(&object(1, b"b"));
    assert_eq!(replayed(&segment).reused.len(), 1);
}

#[test]
fn what_was_brought_back_from_earlier_is_no_end_while_a_longer_one_is_there() {
    let old = Segment::new(1, &[]);
    let long = old.clone().with(&object(1, b"a"));
    let end = |found: &[_]| end_by(Choice::Longest, &record(), found);
    let found = [old.on(2, 0, false), long.on(3, 0, false)];
    assert_eq!(end(&found), Ok((SegmentId(1), State(2))));
    let found = [old.on(2, 0, false), long.on(3, 0, true)];
    assert_eq!(end(&found), Ok((SegmentId(1), State(2))));
}

#[test]
fn entries_before_a_takeover_do_not_count() {
    let before = Segment::new(1, &[]).with(&object(1, b"given up"));
    let takeover = LogPosition::new(SegmentId(1), before.bytes.len() as u32);
    let head = before.with(&object(2, b"b"));
    let found = [head.on(2, 0, false)];
    let log = log_end(&record(), &found, Choice::Shortest).unwrap();
    let from = |position: LogPosition| {
        durable::replay(&log.segments, &move |_, at| at >= position).state(&place())
    };
    assert_eq!(from(takeover), State(4));
    assert_eq!(from(LogPosition::new(SegmentId(2), 0)), State::INITIAL);
}

#[test]
fn an_object_is_gone_if_an_unanswered_removal_may_have_taken_it_and_its_version_is_never_used_again()
 {
    let rules = RejectRules::default();
    let removed = (Action::Remove { rules }, Outcome::Unknown);
    let check = |steps: &[_], safe: u64| {
        let head = Segment::new(1, &[]).with(&NewEntry::SafeVersion(Version(safe)));
        check(&history(steps), &head)
    };
    let steps = [wrote(b"a", 8), removed];
    assert_eq!(check(&steps, 9), Ok(()));
    assert!(check(&steps, 8).is_err(), "its version may be used again");
    assert!(check(&steps[..1], 9).is_err(), "nobody has removed it");
}
