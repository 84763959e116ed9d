//! The core stepped through virtual time against servers and coordinators played by the test.

mod coordinators;
mod operations;
mod trouble;

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::coordinator::{Answer, Request, Response, Table, Tablet, TabletMap, TabletState};
use ramkeep_wire::data::{Items, Op, ResponseItem, Status};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{
    Ballot, ClientId, KeyHash, LogPosition, MapVersion, Micros, PeerId, RpcId, ServerId, TableId,
    Version, key_hash, postcards,
};

use super::{Core, NotStarted, OpId, Output, Target};
use crate::error::Error;
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

/// The core, its clock, and all that it has put out.
struct Bench {
    core: Core,
    now: Micros,
    items: Vec<Seen>,
    envelopes: Vec<(ServerId, usize)>,
    asks: Vec<(usize, u64, Request)>,
    /// By correlation: the coordinator that was asked.
    sent_to: BTreeMap<u64, usize>,
    done: Vec<(OpId, Result<Outcome, Error>)>,
    closed: Vec<Target>,
}

impl Bench {
    /// Knows no map yet.
    fn fresh(coordinators: usize) -> Self {
        let addresses = (0..coordinators).map(|i| format!("c:{i}")).collect();
        let mut bench = Self {
            core: Core::new(addresses, [7; 16]),
            now: Micros(1_000),
            items: Vec::new(),
            envelopes: Vec::new(),
            asks: Vec::new(),
            sent_to: BTreeMap::new(),
            done: Vec::new(),
            closed: Vec::new(),
        };
        bench.drain();
        bench
    }

    /// Knows a map: the table's lower half at server 1, its upper half at server 2.
    fn unleased() -> Self {
        let mut bench = Self::fresh(1);
        bench.answer_map(map(1, ONE, TWO));
        bench
    }

    /// The same, with a client lease.
    fn new() -> Self {
        let mut bench = Self::unleased();
        bench.core.lease.opened(bench.now, CLIENT, 600_000_000);
        bench
    }

    fn drain(&mut self) {
        let mut payload = Vec::new();
        while let Some(output) = self.core.poll_output(self.now, &mut payload) {
            match output {
                Output::Send { to, header } => {
                    self.record(to, header.kind, header.correlation, &payload);
                }
                Output::Done { op, result } => self.done.push((op, result)),
                Output::Close(target) => self.closed.push(target),
            }
            payload.clear();
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
        let deadline = self.now + time;
        let op = self.core.start(self.now, operation, deadline).unwrap();
        self.drain();
        op
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
        self.core.handle_response(self.now, server, &payload);
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
        let response = Response { ballot, answer };
        self.core
            .handle_coordinator_response(self.now, peer, correlation, response);
        self.drain();
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
        self.core.handle_link_down(self.now, target, "broken");
        self.drain();
    }

    /// Lets time pass, with a tick whenever the core wants one.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.core.next_timeout().map_or(end, |next| next.min(end));
            self.now = self.now.max(next);
            self.core.handle_tick(self.now);
            self.drain();
            if self.now == end {
                return;
            }
            let stuck = self
                .core
                .next_timeout()
                .is_some_and(|next| next <= self.now);
            assert!(!stuck, "the core wants a tick that changes nothing");
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
