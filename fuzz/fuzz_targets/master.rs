//! Data operations against a plain model: what a master answers is what a map would.
#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ramkeep_master::store::{DataSession, MasterLease, Store, StoreConfig};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::data::{
    self, Item, Op, RejectRules, ResponseItem, ScanCursor, ScanObject, Status,
};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{
    ClientId, ClusterId, KeyHash, Party, RpcId, SegmentId, ServerId, TableId, Version, key_hash,
};

const SEGMENT: u32 = 64 << 10;
const MEMORY: u64 = 1 << 20;
const HALF: u64 = 1 << 63;

#[derive(Arbitrary, Clone, Debug)]
enum Act {
    Read,
    Write {
        len: u16,
        filler: u8,
    },
    Remove,
    Increment(i64),
    Scan {
        hash: u64,
        until: u64,
        after: Vec<u8>,
    },
}

#[derive(Arbitrary, Clone, Debug)]
struct Ask {
    act: Act,
    table: u8,
    key: u8,
    long_key: bool,
    exists: bool,
    absent: bool,
    version: Option<u8>,
    rpc: u8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Batch {
        envelopes: Vec<Vec<Ask>>,
        lease: bool,
    },
    Raw(Vec<u8>),
    Release {
        lease: bool,
    },
    Durable,
    TakeAgain,
    DropTable(u8),
    Sweep(u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    replicated: bool,
    steps: Vec<Step>,
}

type Name = (TableId, Vec<u8>);
type Answer = (Status, u64, Vec<u8>);

/// What happened to the store, in the order in which it did.
enum Event {
    Item(u32, Name, Ask),
    Dropped(TableId),
    TakenAgain,
}

/// Objects as a map has them. Follows the store as its answers become known.
#[derive(Default)]
struct Model {
    objects: BTreeMap<Name, (u64, Vec<u8>)>,
    /// The highest version that a key ever had.
    highest: BTreeMap<Name, u64>,
    dropped: BTreeSet<TableId>,
    /// All that a key ever was.
    ever: BTreeSet<(Name, u64, Vec<u8>)>,
}

struct Run {
    store: Store,
    session: DataSession,
    out: Vec<u8>,
    model: Model,
    next_id: u32,
    /// Not replayed on the model yet, for want of an answer.
    events: VecDeque<Event>,
    answers: BTreeMap<u32, Answer>,
    scans: BTreeMap<u32, (TableId, u64, u64)>,
    pages: Vec<((TableId, u64, u64), Answer)>,
}

fuzz_target!(|input: Input| {
    let mut run = Run {
        store: store(input.replicated),
        session: DataSession::new(),
        out: Vec::new(),
        model: Model::default(),
        next_id: 0,
        events: VecDeque::new(),
        answers: BTreeMap::new(),
        scans: BTreeMap::new(),
        pages: Vec::new(),
    };
    for step in input.steps.into_iter().take(60) {
        run.step(step);
    }
    run.finish();
});

fn store(replicated: bool) -> Store {
    let store = Store::new(StoreConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key: replicated.then_some(CertificateKey([2; 32])),
        segment_size: SEGMENT,
        memory: MEMORY,
        first_segment: SegmentId(1),
    })
    .expect("a small store");
    store.take_tablets(&grants()).expect("they don't overlap");
    store
}

/// Table 1 in two tablets, the first half of table 2; nothing of table 3.
fn grants() -> Vec<TabletGrant> {
    let grant = |table, first, last| TabletGrant {
        table: TableId(table),
        first: KeyHash(first),
        last: KeyHash(last),
    };
    vec![
        grant(1, 0, HALF - 1),
        grant(1, HALF, u64::MAX),
        grant(2, 0, HALF - 1),
    ]
}

fn lease(held: bool) -> MasterLease {
    if held {
        MasterLease::Held
    } else {
        MasterLease::Lost
    }
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Batch {
                envelopes,
                lease: held,
            } => self.batch(&envelopes, lease(held)),
            Step::Raw(bytes) => raw(&bytes),
            Step::Release { lease: held } => {
                self.session
                    .release(&self.store, || lease(held), &mut self.out);
            }
            Step::Durable => self.make_durable(),
            Step::TakeAgain => {
                self.store
                    .take_tablets(&grants())
                    .expect("the same grants as ever");
                self.events.push_back(Event::TakenAgain);
            }
            Step::DropTable(table) => {
                let table = TableId(u32::from(table % 4));
                self.store.drop_table(table);
                self.events.push_back(Event::Dropped(table));
            }
            Step::Sweep(buckets) => {
                self.store.sweep(usize::from(buckets) * 16);
            }
        }
        self.take_answers();
        let stats = self.store.stats();
        assert!(stats.used <= MEMORY, "{stats:?}");
    }

    fn batch(&mut self, envelopes: &[Vec<Ask>], lease: MasterLease) {
        let header = Header::new(
            Kind::DataRequest,
            7,
            Party::server(ServerId(1)),
            Party::client(ClientId(1)),
        );
        let mut batch = self.session.begin(&self.store, &mut self.out);
        for asks in envelopes.iter().take(8) {
            let asks = &asks[..asks.len().min(40)];
            let mut payload = Vec::new();
            let start = data::begin_request(&mut payload, ClientId(1), RpcId(1));
            for ask in asks {
                self.next_id += 1;
                let name = write_item(&mut payload, ask, self.next_id);
                if let Act::Scan { hash, until, .. } = ask.act {
                    self.scans.insert(self.next_id, (name.0, hash, until));
                } else {
                    let event = Event::Item(self.next_id, name, ask.clone());
                    self.events.push_back(event);
                }
            }
            data::set_count(&mut payload, start, asks.len() as u32);
            batch
                .envelope(&header, &payload)
                .expect("written by this build");
        }
        batch.end(|| lease);
    }

    fn make_durable(&mut self) {
        {
            let mut writer = self.store.writer();
            let log = writer.log_mut();
            if log.is_replicated() {
                if let Some(previous) = log.previous_head() {
                    log.predecessor_closed(previous);
                }
                let head = log.head();
                let length = log.info(head).expect("the head").length;
                log.set_durable(head, length);
            }
        }
        self.session
            .release(&self.store, || MasterLease::Held, &mut self.out);
    }

    fn take_answers(&mut self) {
        for (id, answer) in answers(&std::mem::take(&mut self.out)) {
            if let Some(scan) = self.scans.remove(&id) {
                self.pages.push((scan, answer));
            } else {
                let again = self.answers.insert(id, answer);
                assert!(again.is_none(), "{id} was answered twice");
            }
        }
        while let Some(event) = self.events.front() {
            let answer = match event {
                Event::Item(id, ..) => match self.answers.remove(id) {
                    Some(answer) => Some(answer),
                    None => return,
                },
                _ => None,
            };
            match (self.events.pop_front(), answer) {
                (Some(Event::Item(_, name, ask)), Some(answer)) => {
                    self.model.item(name, &ask, answer);
                }
                (Some(Event::Dropped(table)), _) => self.model.drop_table(table),
                _ => self.model.dropped.clear(),
            }
        }
    }

    /// Everything becomes durable; then everything is answered.
    fn finish(mut self) {
        for _ in 0..10_000 {
            self.make_durable();
            self.take_answers();
            if !self.session.holds() {
                break;
            }
        }
        assert!(!self.session.holds() && self.events.is_empty());
        assert!(self.scans.is_empty() && self.answers.is_empty());
        for ((table, first, last), answer) in &self.pages {
            self.model.check_page(*table, *first..=*last, answer);
        }
        while self.store.sweep(1 << 20) {}
        assert_eq!(
            self.store.stats().objects as usize,
            self.model.objects.len()
        );
    }
}

impl Model {
    fn owned(&self, (table, key): &Name) -> bool {
        match table.0 {
            _ if self.dropped.contains(table) => false,
            1 => true,
            2 => key_hash(*table, key).0 < HALF,
            _ => false,
        }
    }

    fn drop_table(&mut self, table: TableId) {
        self.dropped.insert(table);
        self.objects.retain(|(of, _), _| *of != table);
        self.highest.retain(|(of, _), _| *of != table);
    }

    fn item(&mut self, name: Name, ask: &Ask, (status, version, value): Answer) {
        let mutates = !matches!(ask.act, Act::Read);
        if status == Status::RetryLater
            || mutates && matches!(status, Status::OutOfMemory | Status::TooLarge)
        {
            return;
        }
        if !self.owned(&name) {
            assert_eq!(status, Status::WrongServer);
            return;
        }
        let current = self.objects.get(&name).cloned();
        let seen = current.as_ref().map(|(version, _)| Version(*version));
        let old = seen.map_or(0, |version| version.0);
        if mutates && rules(ask).reject(seen) {
            assert_eq!((status, version), (Status::Rejected, old));
            return;
        }
        match (&ask.act, current) {
            (Act::Read, None) => assert_eq!((status, version), (Status::Absent, 0)),
            (Act::Read, Some(object)) => {
                assert_eq!((status, (version, value)), (Status::Ok, object));
            }
            (Act::Write { len, filler }, _) => {
                assert_eq!(status, Status::Ok);
                self.set(name, version, vec![*filler; usize::from(*len)]);
            }
            (Act::Remove, _) => {
                assert_eq!((status, version), (Status::Ok, old));
                self.objects.remove(&name);
            }
            (Act::Increment(by), current) => {
                let counter = match current {
                    None => Some(0),
                    Some((_, value)) => value.try_into().ok().map(i64::from_le_bytes),
                };
                let Some(counter) = counter else {
                    assert_eq!((status, version), (Status::NotACounter, old));
                    return;
                };
                let Some(sum) = counter.checked_add(*by) else {
                    assert_eq!((status, version), (Status::Overflow, old));
                    return;
                };
                assert_eq!((status, &value[..]), (Status::Ok, &sum.to_le_bytes()[..]));
                self.set(name, version, value);
            }
            (Act::Scan { .. }, _) => unreachable!("checked as a page"),
        }
    }

    fn set(&mut self, name: Name, version: u64, value: Vec<u8>) {
        let highest = self.highest.entry(name.clone()).or_default();
        assert!(version > *highest, "version {version} after {highest}");
        *highest = version;
        self.ever.insert((name.clone(), version, value.clone()));
        self.objects.insert(name, (version, value));
    }

    fn check_page(&self, table: TableId, hashes: RangeInclusive<u64>, answer: &Answer) {
        let (status, _, page) = answer;
        if *status != Status::Ok {
            assert!(matches!(
                status,
                Status::WrongServer | Status::Invalid | Status::RetryLater
            ));
            return;
        }
        let mut reader = Reader(page);
        assert!(reader.u8().expect("says whether there is more") <= 1);
        let mut last: Option<(KeyHash, Vec<u8>)> = None;
        while let Some(object) = ScanObject::read(&mut reader).expect("a good page") {
            let place = (key_hash(table, object.key), object.key.to_vec());
            assert!(hashes.contains(&place.0.0));
            assert!(last.is_none_or(|last| last < place), "in order, each once");
            let name = (table, object.key.to_vec());
            let known = (name, object.version.0, object.value.to_vec());
            assert!(self.ever.contains(&known), "never written: {known:?}");
            last = Some(place);
        }
    }
}

fn rules(ask: &Ask) -> RejectRules {
    RejectRules {
        exists: ask.exists,
        absent: ask.absent,
        unless_version: ask.version.map(|version| Version(version.into())),
    }
}

/// Appends the item; returns what it is about.
fn write_item(out: &mut Vec<u8>, ask: &Ask, id: u32) -> Name {
    let table = TableId(u32::from(ask.table % 4));
    let len = if ask.long_key { 3_000 } else { 1 };
    let key = vec![ask.key % 32; len];
    let mut value = Vec::new();
    let op = match &ask.act {
        Act::Read => Op::Read,
        Act::Write { len, filler } => {
            value.resize(usize::from(*len), *filler);
            Op::Write
        }
        Act::Remove => Op::Remove,
        Act::Increment(by) => {
            value.extend_from_slice(&by.to_le_bytes());
            Op::Increment
        }
        Act::Scan { hash, until, after } => {
            let (hash, until) = (KeyHash(*hash), KeyHash(*until));
            ScanCursor { hash, until, after }.write(&mut value);
            Op::Scan
        }
    };
    let scan = op == Op::Scan;
    Item {
        op,
        id,
        table,
        rpc: RpcId(ask.rpc.into()),
        rules: if op.mutates() {
            rules(ask)
        } else {
            RejectRules::default()
        },
        key: if scan { &[] } else { &key },
        value: &value,
    }
    .write(out);
    (table, key)
}

/// The items of all envelopes in `out`, which must be whole.
fn answers(out: &[u8]) -> Vec<(u32, Answer)> {
    let (mut answers, mut at) = (Vec::new(), 0);
    while at < out.len() {
        let (envelope, len) = envelope::parse(&out[at..]).expect("sealed").expect("whole");
        let header = envelope.header;
        assert_eq!((header.kind, header.correlation), (Kind::DataResponse, 7));
        let mut reader = Reader(envelope.payload);
        while let Some(item) = ResponseItem::read(&mut reader).expect("a good item") {
            answers.push((item.id, (item.status, item.version.0, item.value.to_vec())));
        }
        at += len;
    }
    answers
}

/// Any bytes as a payload, on a store of their own.
fn raw(bytes: &[u8]) {
    let store = store(false);
    let (mut session, mut out) = (DataSession::new(), Vec::new());
    let header = Header::new(Kind::DataRequest, 7, Party::NONE, Party::NONE);
    let mut batch = session.begin(&store, &mut out);
    // Refused or not: what was answered is whole.
    let _ = batch.envelope(&header, bytes);
    batch.end(|| MasterLease::Held);
    while session.holds() {
        session.release(&store, || MasterLease::Held, &mut out);
    }
    answers(&out);
}
