//! A session stepped through virtual time against servers and coordinators played by the test.

mod coordinators;
mod operations;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Answer, Request, Response, Table, Tablet, TabletMap, TabletState};
use ramkeep_wire::data::{Items, Op, ResponseItem, Status};
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, KeyHash, LogPosition, MapVersion, Micros, Party, PeerId, RpcId,
    ServerId, TableId, Version, key_hash, postcards,
};

use super::{CallId, Connect, NotStarted, OpId, Session, Target};
use crate::error::Error;
use crate::limits::MAX_LINK_UNSENT;
use crate::types::{Object, Operation, Outcome, Reject};

const TABLE: TableId = TableId(1);
const ONE: ServerId = ServerId(1);
const TWO: ServerId = ServerId(2);
/// Who has the lease from the start.
const CLIENT: ClientId = ClientId(5);
const HALF: u64 = u64::MAX / 2;

/// An item as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    server: ServerId,
    client: ClientId,
    op: Op,
    id: u32,
    rpc: RpcId,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// A session, its clock, and all that it has put out. A connection's handle is its target.
struct Bench {
    session: Session<Target>,
    now: Micros,
    items: Vec<Seen>,
    envelopes: Vec<(ServerId, usize)>,
    asks: Vec<(usize, u64, Request)>,
    /// By correlation: the coordinator that was asked.
    sent_to: BTreeMap<u64, usize>,
    done: Vec<(OpId, Result<Outcome, Error>)>,
    closed: Vec<Target>,
    /// Each operation is a call of its own.
    calls: BTreeMap<OpId, CallId>,
    /// The numbers of connections.
    links: BTreeMap<Target, u64>,
    /// Who takes no connections, and the wishes for them.
    held: BTreeSet<Target>,
    wishes: Vec<Connect>,
}

impl Bench {
    /// Knows no map yet.
    fn fresh(coordinators: usize) -> Self {
        let addresses = (0..coordinators).map(|i| format!("c:{i}")).collect();
        let mut bench = Self {
            session: Session::new(Identity::new(None), addresses, [7; 16]),
            now: Micros(1_000),
            items: Vec::new(),
            envelopes: Vec::new(),
            asks: Vec::new(),
            sent_to: BTreeMap::new(),
            done: Vec::new(),
            closed: Vec::new(),
            calls: BTreeMap::new(),
            links: BTreeMap::new(),
            held: BTreeSet::new(),
            wishes: Vec::new(),
        };
        bench.drain();
        bench
    }

    /// Knows a map, the table's lower half at server 1, its upper half at server 2, and is connected
    /// to all servers.
    fn unleased() -> Self {
        let mut bench = Self::fresh(1);
        bench.answer_map(map(1, ONE, TWO));
        for server in [ONE, TWO, ServerId(3)] {
            bench.try_connection(Target::Server(server));
        }
        bench.drain();
        bench
    }

    /// The same, with a client lease.
    fn new() -> Self {
        let mut bench = Self::unleased();
        let lease = bench.session.core.lease_mut();
        lease.opened(bench.now, CLIENT, 600_000_000);
        bench
    }

    /// As if there were something to send.
    fn try_connection(&mut self, target: Target) {
        self.session.core.handle_connecting(target);
        self.session.connections.wish(target);
    }

    /// No connections are made to this target from now on.
    fn hold(&mut self, target: Target) {
        self.held.insert(target);
    }

    /// The connection that is wished for is made after all.
    fn let_through(&mut self, target: Target) {
        self.held.remove(&target);
        let wishes = std::mem::take(&mut self.wishes);
        let wish = wishes.into_iter().rfind(|wish| wish.target == target);
        self.connect(&wish.expect("it is wished for"));
    }

    fn connect(&mut self, wish: &Connect) {
        assert_eq!(wish.addresses.len(), 1);
        self.session
            .connected(wish.target, wish.number, wish.target, ClusterId([1; 16]));
        self.links.insert(wish.target, wish.number);
    }

    fn drain(&mut self) {
        loop {
            while let Some(target) = self.session.pop_closed() {
                self.links.remove(&target);
                self.closed.push(target);
            }
            self.take_results();
            while let Some(wish) = self.session.poll_connect() {
                if self.held.contains(&wish.target) {
                    self.wishes.push(wish);
                } else {
                    self.connect(&wish);
                }
            }
            match self.session.next_send(self.now) {
                Some((target, connection)) => self.send(target, connection.number),
                None if !self.session.has_wishes() => return,
                None => {}
            }
        }
    }

    fn take_results(&mut self) {
        let over = |call: &CallId| self.session.is_over(*call);
        let over: Vec<_> = self.calls.extract_if(.., |_, call| over(call)).collect();
        for (op, call) in over {
            let result = self.session.take(op);
            self.session.close(call);
            self.done.push((op, result));
        }
    }

    fn send(&mut self, target: Target, number: u64) {
        assert_eq!(self.links.get(&target), Some(&number));
        let mut bytes = Vec::new();
        self.session
            .fill(self.now, target, &mut bytes, MAX_LINK_UNSENT);
        let mut rest = &bytes[..];
        while let Some((envelope, length)) = envelope::parse(rest).unwrap() {
            let Header {
                kind, correlation, ..
            } = envelope.header;
            self.record(target, kind, correlation, envelope.payload);
            rest = &rest[length..];
        }
    }

    fn record(&mut self, to: Target, kind: Kind, correlation: u64, payload: &[u8]) {
        match to {
            Target::Coordinator(peer) => {
                assert_eq!(kind, Kind::CoordinatorRequest);
                let request = postcards::decode(payload).unwrap();
                self.asks.push((peer, correlation, request));
                self.sent_to.insert(correlation, peer);
            }
            Target::Server(server) => {
                assert_eq!(kind, Kind::DataRequest);
                let mut items = Items::read(payload).unwrap();
                self.envelopes.push((server, items.remaining()));
                while let Some(item) = items.next_item().unwrap() {
                    self.items.push(Seen {
                        server,
                        client: items.client,
                        op: item.op,
                        id: item.id,
                        rpc: item.rpc,
                        key: item.key.to_vec(),
                        value: item.value.to_vec(),
                    });
                }
            }
        }
    }

    fn start(&mut self, operation: Operation<'_>) -> OpId {
        self.start_within(operation, Duration::from_secs(10))
    }

    fn start_within(&mut self, operation: Operation<'_>, time: Duration) -> OpId {
        let op = self.begin(operation, self.now + time).unwrap();
        self.drain();
        op
    }

    /// Begins an operation that is not sent yet.
    fn begin(&mut self, operation: Operation<'_>, deadline: Micros) -> Result<OpId, NotStarted> {
        let call = self.session.open(true);
        let begun = self.session.begin(self.now, call, operation, deadline);
        match begun {
            Ok(op) => {
                self.calls.insert(op, call);
            }
            Err(_) => self.session.close(call),
        }
        begun
    }

    fn ask(&mut self, request: Request) -> OpId {
        let call = self.session.open(false);
        let deadline = self.now + Duration::from_secs(5);
        let op = self.session.ask(call, request, deadline).unwrap();
        self.calls.insert(op, call);
        self.drain();
        op
    }

    fn cancel(&mut self, op: OpId) {
        self.session.cancel(op);
        let call = self.calls.remove(&op).expect("it is under way");
        self.session.close(call);
    }

    /// What was sent to servers since the last look.
    fn sent(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.items)
    }

    fn asked(&mut self) -> Vec<(usize, u64, Request)> {
        std::mem::take(&mut self.asks)
    }

    fn respond(&mut self, server: ServerId, items: &[ResponseItem<'_>]) {
        let mut payload = Vec::new();
        items.iter().for_each(|item| item.write(&mut payload));
        self.receive(Target::Server(server), Kind::DataResponse, 0, &payload);
    }

    fn receive(&mut self, from: Target, kind: Kind, correlation: u64, payload: &[u8]) {
        let header = Header::new(kind, correlation, Party::NONE, Party::NONE);
        let number = self.links.get(&from).copied().unwrap_or_default();
        let envelope = Envelope { header, payload };
        let taken = self.session.receive(self.now, from, number, &envelope);
        assert_eq!(taken, Ok(()));
        self.drain();
    }

    /// One answer to the one item that was sent since the last look.
    fn respond_to_last(&mut self, status: Status, version: u64, value: &[u8]) -> Seen {
        let seen = self.sent().pop().expect("something was sent");
        self.respond(seen.server, &[answer(seen.id, status, version, value)]);
        seen
    }

    /// Answers what went out under this correlation, from where it went.
    fn answer_at(&mut self, correlation: u64, round: u64, answer: Answer) {
        let peer = self.sent_to[&correlation];
        let ballot = Ballot {
            round,
            peer: PeerId(1),
        };
        let payload = postcards::encode(&Response::new(ballot, answer));
        let kind = Kind::CoordinatorResponse;
        self.receive(Target::Coordinator(peer), kind, correlation, &payload);
    }

    /// Answers the last request.
    fn answer(&mut self, answer: Answer) -> Request {
        let (_, correlation, request) = self.asked().pop().expect("something was asked");
        self.answer_at(correlation, 1, answer);
        request
    }

    /// Answers the last request for the map.
    fn answer_map(&mut self, map: TabletMap) {
        let is_map = |(_, _, request): &(_, _, Request)| matches!(request, Request::Map { .. });
        let at = self.asks.iter().rposition(is_map).expect("asked for a map");
        let (_, correlation, _) = self.asks.remove(at);
        self.answer_at(correlation, 1, Answer::Map(Some(map)));
    }

    fn break_link(&mut self, target: Target) {
        if !self.links.contains_key(&target) {
            self.try_connection(target);
            let wish = self.session.poll_connect().expect("just wished for");
            self.links.insert(target, wish.number);
        }
        let number = self.links.remove(&target).expect("it was looked for");
        self.session.lost(self.now, target, number, "broken");
        self.drain();
    }

    /// Lets time pass, with a tick whenever the core wants one.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.session.next_timeout();
            self.now = self.now.max(next.map_or(end, |next| next.min(end)));
            self.session.handle_tick(self.now);
            self.drain();
            if self.now == end {
                return;
            }
            let next = self.session.next_timeout();
            let stuck = next.is_some_and(|next| next <= self.now);
            assert!(!stuck, "a tick is wanted that changes nothing");
        }
    }

    fn result(&mut self, op: OpId) -> Option<Result<Outcome, Error>> {
        let at = self.done.iter().position(|(done, _)| *done == op)?;
        Some(self.done.remove(at).1)
    }
}

fn answer(id: u32, status: Status, version: u64, value: &[u8]) -> ResponseItem<'_> {
    ResponseItem {
        id,
        status,
        version: Version(version),
        value,
    }
}

fn map(version: u64, low: ServerId, high: ServerId) -> TabletMap {
    let tablet = |first, last, owner| Tablet {
        table: TABLE,
        first: KeyHash(first),
        last: KeyHash(last),
        owner,
        takeover: LogPosition::ZERO,
        state: TabletState::Normal,
    };
    TabletMap {
        version: MapVersion(version),
        tables: vec![Table {
            table: TABLE,
            name: "t".into(),
            tablets: vec![tablet(0, HALF, low), tablet(HALF + 1, u64::MAX, high)],
        }],
        servers: [ONE, TWO, ServerId(3)]
            .map(|server| (server, vec![format!("s:{server}")]))
            .to_vec(),
    }
}

/// The `n`th key of the table's lower (server 1) or upper half.
fn key(upper: bool, n: usize) -> Vec<u8> {
    (0..u64::MAX)
        .map(|i| format!("key-{i}").into_bytes())
        .filter(|key| (key_hash(TABLE, key).0 > HALF) == upper)
        .nth(n)
        .unwrap()
}

fn read(key: &[u8]) -> Operation<'_> {
    Operation::Read { table: TABLE, key }
}

fn write<'a>(key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation::Write {
        table: TABLE,
        key,
        value,
        reject: Reject::never(),
    }
}

fn object(value: &'static [u8], version: u64) -> Outcome {
    Outcome::Read(Some(Object {
        value: value.into(),
        version: Version(version),
    }))
}

const MAYBE: Error = Error::Timeout {
    maybe_applied: true,
};
const NOT: Error = Error::Timeout {
    maybe_applied: false,
};
